//! The watches: one for each kind and scope that is wanted, each a consistent list and then what follows it, for as
//! long as it is.
//!
//! Trouble with one (a permission that was taken away, a missing CRD, an apiserver that is away) leaves the
//! others alone and leaves in force what it said before. It is logged once for as long as it stays the
//! same, and can be read from [`WatchHealth`].
//!
//! A watch is never left off for a list that somebody asks for: what a new template needs, or what is in doubt, is listed
//! while the watch goes on, so that no author can keep others from being heard.
//!
//! kube's own `watcher` is not used: it does not say when a watch is up again, a page of its lists may take
//! for ever, and it goes on after an object that it could not decode as if that had not been.

mod aims;
mod lists;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::WatchParams;
use kube::core::{NamespaceResourceScope, WatchEvent};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use self::aims::{Aims, Division, Kept};
pub(super) use self::aims::{OWN_WATCHES, is_by_namespace};
use self::lists::{Lists, Next, key_of};
use super::api::ConsulService;
use super::convert::{ResourceObject, Rules};
use super::decode::{Decoder, NamespaceObject, NodeObject, PodObject, ServiceObject, SliceObject, Watched};
use super::list::{Failure, Pages};
use crate::state::event::{Event, Kind, Scope};
use crate::state::world::Wanted;

/// After so many seconds the apiserver ends a watch, and it is taken up again. Shortly before, it sends a bookmark. So a watch
/// that nothing happens to is heard of twice within [`NOT_HEARD_OF`].
const WATCH_SECONDS: u32 = 30;
/// A watch that is silent for longer is dead: within [`WATCH_SECONDS`] it either says something or ends.
const SILENCE: Duration = Duration::from_secs(35);
/// A watch that was not heard of for longer is one that Lictor is blind without.
const NOT_HEARD_OF: Duration = Duration::from_secs(60);
/// The longest time that a watch may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch that ends sooner has not worked.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// More scopes than this are listed all at once.
const MANY: usize = 8;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Says what is wrong with the watches, in words, and when each was last heard of.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    failing: BTreeMap<(Kind, Scope), String>,
    /// The time of the last word of each watch that there is: an event, a bookmark, the end of a list.
    last: BTreeMap<(Kind, Scope), Instant>,
}

impl WatchHealth {
    /// One line for each watch that fails, with what it watches; none if all is well.
    #[must_use]
    pub fn failing(&self) -> Vec<(Kind, String)> {
        let heard = self.heard();
        let failing = heard.failing.iter().map(|((kind, scope), why)| (*kind, format!("{kind} of {scope}: {why}")));
        failing.collect()
    }

    /// One line for each watch that was not heard of for a minute, and does not fail for a reason that is known.
    #[must_use]
    pub fn silent(&self) -> Vec<String> {
        let heard = self.heard();
        let ages = heard.last.iter().filter(|(watch, _)| !heard.failing.contains_key(watch));
        let ages = ages.map(|(watch, last)| (watch, last.elapsed())).filter(|(_, age)| *age > NOT_HEARD_OF);
        ages.map(|((kind, scope), age)| format!("{kind} of {scope}: no event for {} s", age.as_secs())).collect()
    }

    /// The time since the last word of each kind that is watched: of its watches, that of the one that was silent for
    /// longest.
    #[must_use]
    pub fn ages(&self) -> BTreeMap<Kind, Duration> {
        let mut ages = BTreeMap::<Kind, Duration>::new();
        for ((kind, _), last) in &self.heard().last {
            let age = ages.entry(*kind).or_default();
            *age = last.elapsed().max(*age);
        }
        ages
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch begins: from now on it is to be heard of.
    fn begins(&self, kind: Kind, scope: &Scope) {
        self.heard().last.entry((kind, scope.clone())).or_insert_with(Instant::now);
    }

    /// A watch said something.
    fn hears(&self, kind: Kind, scope: &Scope) {
        if let Some(last) = self.heard().last.get_mut(&(kind, scope.clone())) {
            *last = Instant::now();
        }
    }

    fn fails(&self, kind: Kind, scope: &Scope, why: &str) {
        let known = self.heard().failing.insert((kind, scope.clone()), why.to_owned());
        if known.as_deref() != Some(why) {
            warn!(%kind, %scope, "cannot watch; Lictor tries again: {why}");
        }
    }

    /// Nobody asks any more.
    fn forget(&self, kind: Kind, scope: &Scope) {
        let (mut heard, watch) = (self.heard(), (kind, scope.clone()));
        heard.failing.remove(&watch);
        heard.last.remove(&watch);
    }

    fn works(&self, kind: Kind, scope: &Scope) {
        if self.heard().failing.remove(&(kind, scope.clone())).is_some() {
            info!(%kind, %scope, "watching again");
        }
    }
}

/// Counts how often each watch was asked for a list.
type Asked = BTreeMap<(Kind, Scope), u64>;

/// Tells the watches what to watch, and when to list anew. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Orders {
    wanted: tokio::sync::watch::Sender<Wanted>,
    /// Counts how often each watch was asked for a list.
    anew: tokio::sync::watch::Sender<Asked>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            wanted: tokio::sync::watch::Sender::new(Wanted::default()),
            anew: tokio::sync::watch::Sender::new(Asked::new()),
        }
    }
}

impl Orders {
    /// Has just this watched from now on.
    pub fn want(&self, wanted: &Wanted) {
        self.wanted.send_if_modified(|known| {
            let differs = known != wanted;
            known.clone_from(wanted);
            differs
        });
    }

    /// Says what is to be watched.
    pub(super) fn wanted(&self) -> Wanted {
        self.wanted.borrow().clone()
    }

    /// Asks these watches for a list.
    pub(super) fn list_anew(&self, watches: &BTreeSet<(Kind, Scope)>) {
        self.anew.send_modify(|asked| {
            for watch in watches {
                *asked.entry(watch.clone()).or_default() += 1;
            }
        });
    }
}

/// Watches what is wanted and sends what happens to `sink`. Ends when nobody receives it any more.
pub async fn watch(client: Client, rules: Arc<Rules>, sink: Sender<Event>, health: WatchHealth, orders: Orders) {
    let watches = Watches { client, rules, sink: sink.clone(), health, orders };
    let mut wanted = watches.orders.wanted.subscribe();
    let mut division = Division::default();
    let mut running: BTreeMap<(Kind, Scope), Running> = BTreeMap::new();
    loop {
        let now = division.of(&wanted.borrow_and_update());
        let is_over = |(watch, running): (&(Kind, Scope), &Running)| {
            let goes_on = now.get(watch).is_some_and(|aims| time_of(&watch.1, aims) == running.time);
            (!goes_on).then(|| watch.clone())
        };
        for watch in running.iter().filter_map(is_over).collect::<Vec<_>>() {
            if let Some(ended) = running.remove(&watch) {
                // The next one of its kind begins only after its last word.
                ended.end().await;
                watches.health.forget(watch.0, &watch.1);
            }
        }
        for (watch, aims) in now {
            match running.get(&watch) {
                Some(running) => running.go_by(aims),
                None => drop(running.insert(watch.clone(), watches.start(watch.0, &watch.1, aims))),
            }
        }
        tokio::select! {
            () = sink.closed() => break,
            changed = wanted.changed() => if changed.is_err() { break },
        }
    }
    for (_, watch) in running {
        watch.end().await;
    }
}

/// Tells one time that a watch was wanted from an earlier one; none of a watch that other scopes share.
fn time_of(scope: &Scope, aims: &Aims) -> Option<u64> {
    aims.get(scope).map(|aim| aim.time)
}

/// A watch under way.
struct Running {
    task: JoinHandle<()>,
    time: Option<u64>,
    aims: tokio::sync::watch::Sender<Aims>,
}

impl Running {
    fn go_by(&self, aims: Aims) {
        self.aims.send_if_modified(|known| {
            let differs = *known != aims;
            *known = aims;
            differs
        });
    }

    async fn end(self) {
        self.task.abort();
        // That it was cancelled is no news.
        let _ = self.task.await;
    }
}

/// Holds what all watches share.
struct Watches {
    client: Client,
    rules: Arc<Rules>,
    sink: Sender<Event>,
    health: WatchHealth,
    orders: Orders,
}

impl Watches {
    fn start(&self, kind: Kind, scope: &Scope, aims: Aims) -> Running {
        let time = time_of(scope, &aims);
        let (aims, asked) = tokio::sync::watch::channel(aims);
        self.health.begins(kind, scope);
        let task = match kind {
            Kind::Resource => self.spawn(namespaced::<ResourceObject>, scope, asked),
            Kind::Slice => self.spawn(namespaced::<SliceObject>, scope, asked),
            Kind::Service => self.spawn(namespaced::<ServiceObject>, scope, asked),
            Kind::Pod => self.spawn(namespaced::<PodObject>, scope, asked),
            Kind::Node => self.spawn(|client, _| Api::<NodeObject>::all(client.clone()), scope, asked),
            Kind::Namespace => self.spawn(|client, _| Api::<NamespaceObject>::all(client.clone()), scope, asked),
        };
        Running { task, time, aims }
    }

    fn spawn<K: Watched>(
        &self,
        api: fn(&Client, &Scope) -> Api<K>,
        scope: &Scope,
        aims: tokio::sync::watch::Receiver<Aims>,
    ) -> JoinHandle<()> {
        let watch = Watch {
            client: self.client.clone(),
            api,
            scope: scope.clone(),
            aims,
            kept: Kept::default(),
            decoder: Decoder::new(self.rules.clone()),
            health: self.health.clone(),
            sink: self.sink.clone(),
            version: None,
            pauses: Pauses::default(),
            anew: Anew::new(&self.orders, K::KIND),
            lists: Lists::default(),
        };
        tokio::spawn(watch.follow())
    }
}

/// The API of a kind in a scope.
pub(super) fn namespaced<K>(client: &Client, scope: &Scope) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match scope {
        Scope::All => Api::all(client.clone()),
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
    }
}

/// One kind in one scope.
struct Watch<K> {
    client: Client,
    api: fn(&Client, &Scope) -> Api<K>,
    scope: Scope,
    /// Says what is asked of it.
    aims: tokio::sync::watch::Receiver<Aims>,
    /// Says what it goes by.
    kept: Kept,
    decoder: Decoder,
    health: WatchHealth,
    sink: Sender<Event>,
    /// The version up to which everything was told; none where only a list can tell.
    version: Option<String>,
    pauses: Pauses,
    /// Changes when a list is asked for.
    anew: Anew,
    /// The lists that it makes while it goes on.
    lists: Lists<K>,
}

/// Tells one watch when a list is asked of it.
struct Anew {
    orders: tokio::sync::watch::Receiver<Asked>,
    kind: Kind,
    known: Asked,
}

impl Anew {
    fn new(orders: &Orders, kind: Kind) -> Self {
        let mut orders = orders.anew.subscribe();
        let known = orders.borrow_and_update().clone();
        Self { orders, kind, known }
    }

    /// Waits until a list is asked for, and gives the scopes of this kind.
    async fn is_asked(&mut self) -> BTreeSet<Scope> {
        loop {
            let asked = self.orders.borrow_and_update().clone();
            let is_news = |(watch, count): &(&(Kind, Scope), &u64)| self.known.get(*watch) != Some(count);
            let of_kind = asked.iter().filter(|((kind, _), _)| *kind == self.kind);
            let scopes: BTreeSet<Scope> = of_kind.filter(is_news).map(|((_, scope), _)| scope.clone()).collect();
            self.known = asked;
            if !scopes.is_empty() {
                return scopes;
            }
            if self.orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Says why a watch or its list ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("nobody listens")]
    NobodyListens,
    #[error("the API server no longer has the events since then")]
    Expired,
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl<K: Watched> Watch<K> {
    /// Follows what happens until nobody listens.
    async fn follow(mut self) {
        loop {
            let mut told = Duration::ZERO;
            let end = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            match end {
                Ok(()) => continue,
                Err(End::NobodyListens) => return,
                Err(End::Expired) => debug!(kind = %K::KIND, scope = %self.scope, "{}, listing", End::Expired),
                Err(End::Failed(failure)) => {
                    told = failure.retry_after();
                    self.health.fails(K::KIND, &self.scope, &advice(K::KIND, &failure));
                }
            }
            sleep(self.pauses.next().max(told)).await;
        }
    }

    /// Tells all that is there.
    async fn list(&mut self) -> Result<(), End> {
        self.follow_aims();
        self.lists = Lists::default();
        let scopes = self.kept.scopes();
        for scope in &scopes {
            self.tell(scope, watcher::Event::Init).await?;
        }
        let mut pages = Pages::of((self.api)(&self.client, &self.scope));
        while let Some(page) = pages.next().await? {
            for object in page {
                if let Some(scope) = self.scope_of(&object) {
                    self.tell(&scope, watcher::Event::InitApply(object)).await?;
                }
            }
        }
        self.version = Some(pages.version()?);
        for scope in &scopes {
            self.tell(scope, watcher::Event::InitDone).await?;
        }
        self.works();
        Ok(())
    }

    /// Tells what happens after `version`, until the watch ends as watches do.
    async fn watch(&mut self, version: String) -> Result<(), End> {
        let params = WatchParams {
            label_selector: K::LABELS.map(ToOwned::to_owned),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let begun = Instant::now();
        let api = (self.api)(&self.client, &self.scope);
        let steps = timeout(START_TIMEOUT, api.watch(&params, &version)).await.map_err(|_| Failure::NoAnswer)?;
        let mut steps = steps.map_err(|error| self.not_begun(error))?.boxed();
        self.has_heard();
        let mut silent_at = Instant::now() + SILENCE;
        loop {
            tokio::select! {
                step = timeout_at(silent_at, steps.next()) => {
                    let Ok(Some(step)) = step else { break };
                    silent_at = Instant::now() + SILENCE;
                    let step = step.map_err(|error| self.broken(error))?;
                    self.on_step(step).await?;
                }
                next = self.lists.next() => self.on_list(next).await?,
                asked = self.anew.is_asked() => {
                    let told = self.kept.scopes();
                    asked.into_iter().filter(|scope| told.contains(scope)).for_each(|scope| self.lists.ask(scope));
                }
                changed = self.aims.changed() => {
                    changed.map_err(|_| End::NobodyListens)?;
                    let to_list = self.follow_aims();
                    if to_list.len() > MANY {
                        // No author asks for so many namespaces at once: this is a start, and one list of all is quicker.
                        self.version = None;
                        return Ok(());
                    }
                    for scope in to_list {
                        self.lists.ask(scope);
                    }
                }
            }
        }
        if begun.elapsed() < TOO_SHORT {
            sleep(self.pauses.next()).await;
        }
        Ok(())
    }

    async fn on_step(&mut self, step: WatchEvent<K>) -> Result<(), End> {
        match step {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.version = object.resource_version();
                self.tell_change(object, watcher::Event::Apply).await?;
            }
            WatchEvent::Deleted(object) => {
                self.version = object.resource_version();
                self.tell_change(object, watcher::Event::Delete).await?;
            }
            WatchEvent::Bookmark(bookmark) => self.version = Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(self.broken(kube::Error::Api(status.boxed()))),
        }
        self.works();
        Ok(())
    }

    async fn tell_change(&mut self, object: K, step: fn(K) -> watcher::Event<K>) -> Result<(), End> {
        let Some(scope) = self.scope_of(&object) else { return Ok(()) };
        self.lists.tells(&scope, || key_of(&object));
        self.tell(&scope, step(object)).await
    }

    async fn on_list(&mut self, next: Next<K>) -> Result<(), End> {
        match next {
            Next::Due(scope) => {
                let Some(version) = &self.version else { return Ok(()) };
                self.lists.begin(scope.clone(), (self.api)(&self.client, &scope), version);
                self.tell(&scope, watcher::Event::Init).await?;
            }
            Next::Page(scope, objects) => {
                for object in objects {
                    self.tell(&scope, watcher::Event::InitApply(object)).await?;
                }
            }
            Next::Done(scope) => {
                self.tell(&scope, watcher::Event::InitDone).await?;
                self.health.works(K::KIND, &scope);
            }
            Next::Failed(_, failure) if failure.code() == Some(410) => {
                // Where the watch stands is too long ago. So it may not be taken up there either.
                self.version = None;
                return Err(End::Expired);
            }
            Next::Failed(scope, failure) => {
                self.health.fails(K::KIND, &scope, &advice(K::KIND, &failure));
                self.lists.ask_later(scope, self.pauses.next().max(failure.retry_after()));
            }
        }
        Ok(())
    }

    /// Goes by what is asked now. Gives the scopes that are to be listed for it.
    fn follow_aims(&mut self) -> BTreeSet<Scope> {
        let aims = self.aims.borrow_and_update().clone();
        for gone in self.kept.scopes().iter().filter(|scope| !aims.contains_key(scope)) {
            self.lists.forget(gone);
            self.health.works(K::KIND, gone);
        }
        let to_list = self.kept.follow(&aims);
        self.decoder.look_for(&self.kept.of_pods());
        to_list
    }

    fn scope_of(&self, object: &K) -> Option<Scope> {
        self.kept.scope_of(object.meta().namespace.as_deref().unwrap_or_default()).cloned()
    }

    /// A watch that did not begin missed nothing, unless the apiserver has forgotten what happened since.
    fn not_begun(&mut self, error: kube::Error) -> End {
        let failure = Failure::Kube(error);
        if failure.code() != Some(410) {
            return End::Failed(failure);
        }
        self.version = None;
        End::Expired
    }

    /// A watch that broke is taken up where it broke only if it is the connection that broke. After an
    /// answer that was not understood something may have been missed, which only a list will tell.
    fn broken(&mut self, error: kube::Error) -> End {
        if !matches!(error, kube::Error::ReadEvents(_) | kube::Error::HyperError(_)) {
            self.version = None;
        }
        self.not_begun(error)
    }

    async fn tell(&mut self, scope: &Scope, step: watcher::Event<K>) -> Result<(), End> {
        let Some(change) = self.decoder.decode(step) else { return Ok(()) };
        let event = Event { scope: scope.clone(), change };
        self.sink.send(event).await.map_err(|_| End::NobodyListens)
    }

    fn works(&mut self) {
        self.has_heard();
        self.pauses = Pauses::default();
    }

    fn has_heard(&self) {
        self.health.hears(K::KIND, &self.scope);
        // What a list says that goes on failing is not over by that.
        if !self.lists.is_failing(&self.scope) {
            self.health.works(K::KIND, &self.scope);
        }
    }
}

/// Says how long to wait before the next try: longer each time, and never just as long as the others who wait.
#[derive(Default)]
struct Pauses {
    failures: u32,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        longest.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Says what went wrong and what to do about it.
fn advice(kind: Kind, failure: &Failure) -> String {
    match failure.code() {
        Some(404) if kind == Kind::Resource => {
            let crd = ConsulService::crd_name();
            format!(
                "the CustomResourceDefinition {crd} is not there: install it with `lictor crd | kubectl apply -f -`"
            )
        }
        Some(403) => format!("forbidden: the ClusterRole or Role of Lictor must grant get, list and watch ({failure})"),
        _ => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut pauses = Pauses::default();
        let taken: Vec<Duration> = (0..40).map(|_| pauses.next()).collect();
        assert!(taken[0] <= FIRST_PAUSE && taken[0] >= FIRST_PAUSE / 2, "{:?}", taken[0]);
        assert!(taken.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(taken[20..].iter().all(|pause| *pause >= LONGEST_PAUSE / 2));
    }

    #[test]
    fn only_those_scopes_are_listed_anew_that_are_asked_for() {
        let is_asked = |anew: &mut Anew| anew.is_asked().now_or_never().unwrap_or_default();
        let orders = Orders::default();
        let shop = Scope::Namespace("shop".into());
        orders.list_anew(&[(Kind::Slice, Scope::All)].into());
        let mut slices = Anew::new(&orders, Kind::Slice);
        let mut pods = Anew::new(&orders, Kind::Pod);
        assert!(is_asked(&mut slices).is_empty(), "it lists anyway when it begins");
        orders.list_anew(&[(Kind::Slice, Scope::All)].into());
        // A later order for another one does not undo it.
        orders.list_anew(&[(Kind::Slice, shop.clone()), (Kind::Node, Scope::All)].into());
        assert_eq!(is_asked(&mut slices), [Scope::All, shop].into());
        assert!(is_asked(&mut slices).is_empty(), "once");
        assert!(is_asked(&mut pods).is_empty(), "the other watches go on");
    }

    #[test]
    fn health_tells_what_fails_until_it_works() {
        let health = WatchHealth::default();
        let scope = Scope::Namespace("shop".into());
        health.fails(Kind::Slice, &scope, "no");
        assert_eq!(health.failing(), [(Kind::Slice, "EndpointSlices of namespace shop: no".to_owned())]);
        health.works(Kind::Slice, &Scope::All);
        assert_eq!(health.failing().len(), 1, "another watch of the kind");
        health.works(Kind::Slice, &scope);
        assert!(health.failing().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_not_heard_of_is_told() {
        let health = WatchHealth::default();
        let [shop, wood] = ["shop", "wood"].map(|name| Scope::Namespace(name.into()));
        let seconds = Duration::from_secs;
        health.begins(Kind::Pod, &shop);
        health.begins(Kind::Pod, &wood);
        health.begins(Kind::Node, &Scope::All);
        tokio::time::advance(seconds(40)).await;
        health.hears(Kind::Pod, &wood);
        health.hears(Kind::Node, &Scope::All);
        tokio::time::advance(seconds(30)).await;
        assert_eq!(health.ages(), [(Kind::Pod, seconds(70)), (Kind::Node, seconds(30))].into());
        assert_eq!(health.silent(), ["Pods of namespace shop: no event for 70 s"]);
        health.fails(Kind::Pod, &shop, "no");
        assert!(health.silent().is_empty(), "that it fails says more");
        health.forget(Kind::Pod, &shop);
        assert_eq!(health.ages()[&Kind::Pod], seconds(30), "nobody needs it any more");
    }
}

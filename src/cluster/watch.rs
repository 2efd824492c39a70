//! The watches: one for each kind and scope that is wanted, each a consistent list and then what follows it, for as
//! long as it is.
//!
//! Trouble with one (a permission that was taken away, a missing CRD, an apiserver that is away) leaves the
//! others alone and leaves in force what it said before. It is logged once for as long as it stays the
//! same, and can be read from [`WatchHealth`].
//!
//! kube's own `watcher` is not used: it does not say when a watch is up again, a page of its lists may take
//! for ever, and it goes on after an object that it could not decode as if that had not been.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::WatchParams;
use kube::core::{NamespaceResourceScope, WatchEvent};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::api::ConsulService;
use super::convert::{ResourceObject, Rules};
use super::decode::{Decoder, NodeObject, PodObject, ServiceObject, SliceObject, Watched};
use super::list::{Failure, Pages};
use crate::model::ids::Str;
use crate::state::event::{Event, Kind, Scope};
use crate::state::world::Wanted;

/// After so many seconds the apiserver ends a watch, and it is taken up again.
const WATCH_SECONDS: u32 = 60;
/// A watch that is silent for longer is dead: within [`WATCH_SECONDS`] it either says something or ends.
const SILENCE: Duration = Duration::from_secs(65);
/// The longest time that a watch may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch that ends sooner has not worked.
const TOO_SHORT: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Says what is wrong with the watches, in words.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<BTreeMap<(Kind, Scope), String>>>);

impl WatchHealth {
    /// One line for each watch that fails, with what it watches; none if all is well.
    #[must_use]
    pub fn failing(&self) -> Vec<(Kind, String)> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failing.iter().map(|((kind, scope), why)| (*kind, format!("{kind} of {scope}: {why}"))).collect()
    }

    fn fails(&self, kind: Kind, scope: &Scope, why: &str) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failing.insert((kind, scope.clone()), why.to_owned());
        if known.as_deref() != Some(why) {
            warn!(%kind, %scope, "cannot watch, trying again: {why}");
        }
    }

    /// Nobody asks any more.
    fn forget(&self, kind: Kind, scope: &Scope) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, scope.clone()));
    }

    fn works(&self, kind: Kind, scope: &Scope) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&(kind, scope.clone())).is_some() {
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
    /// How often each watch was asked for a list.
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
    let mut running: BTreeMap<(Kind, Scope), Running> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let ends = |(watch, running): (&(Kind, Scope), &Running)| {
            let looks_for_all = watch.0 != Kind::Pod || running.annotations.is_superset(&now.annotations);
            (now.watches.get(watch) != Some(&running.time) || !looks_for_all).then(|| watch.clone())
        };
        for watch in running.iter().filter_map(ends).collect::<Vec<_>>() {
            if let Some(ended) = running.remove(&watch) {
                // The next one of its kind begins only after its last word.
                ended.end().await;
                watches.health.forget(watch.0, &watch.1);
            }
        }
        for (watch, time) in &now.watches {
            let start = || watches.start(watch.0, &watch.1, *time, &now.annotations);
            running.entry(watch.clone()).or_insert_with(start);
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

/// A watch under way.
struct Running {
    task: JoinHandle<()>,
    /// Counts how often it was wanted.
    time: u64,
    /// The annotations that it keeps of pods.
    annotations: BTreeSet<Str>,
}

impl Running {
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
    fn start(&self, kind: Kind, scope: &Scope, time: u64, annotations: &BTreeSet<Str>) -> Running {
        let client = &self.client;
        let task = match kind {
            Kind::Resource => self.spawn(namespaced::<ResourceObject>(client, scope), scope, annotations),
            Kind::Slice => self.spawn(namespaced::<SliceObject>(client, scope), scope, annotations),
            Kind::Service => self.spawn(namespaced::<ServiceObject>(client, scope), scope, annotations),
            Kind::Pod => self.spawn(namespaced::<PodObject>(client, scope), scope, annotations),
            Kind::Node => self.spawn(Api::<NodeObject>::all(client.clone()), scope, annotations),
        };
        Running { task, time, annotations: annotations.clone() }
    }

    fn spawn<K: Watched>(&self, api: Api<K>, scope: &Scope, annotations: &BTreeSet<Str>) -> JoinHandle<()> {
        let watch = Watch {
            api,
            scope: scope.clone(),
            decoder: Decoder::new(self.rules.clone(), annotations.clone()),
            health: self.health.clone(),
            sink: self.sink.clone(),
            version: None,
            pauses: Pauses::default(),
            anew: Anew::new(&self.orders, (K::KIND, scope.clone())),
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
    api: Api<K>,
    scope: Scope,
    decoder: Decoder,
    health: WatchHealth,
    sink: Sender<Event>,
    /// The version up to which everything was told; none where only a list can tell.
    version: Option<String>,
    pauses: Pauses,
    /// Changes when a list is asked for.
    anew: Anew,
}

/// Tells one watch when a list is asked of it.
struct Anew {
    orders: tokio::sync::watch::Receiver<Asked>,
    watch: (Kind, Scope),
    /// How often that was so when it last listed.
    known: u64,
}

impl Anew {
    fn new(orders: &Orders, watch: (Kind, Scope)) -> Self {
        let mut anew = Self { orders: orders.anew.subscribe(), watch, known: 0 };
        anew.known = anew.asked();
        anew
    }

    fn asked(&mut self) -> u64 {
        self.orders.borrow_and_update().get(&self.watch).copied().unwrap_or_default()
    }

    /// Waits until a list is asked of this watch.
    async fn is_asked(&mut self) {
        loop {
            let asked = self.asked();
            if std::mem::replace(&mut self.known, asked) != asked {
                return;
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
    #[error("what happened since is no longer known to the apiserver")]
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
        self.tell(watcher::Event::Init).await?;
        let api = self.api.clone();
        let mut pages = Pages::of(&api);
        while let Some(page) = pages.next().await? {
            for object in page {
                self.tell(watcher::Event::InitApply(object)).await?;
            }
        }
        self.version = Some(pages.version()?);
        self.tell(watcher::Event::InitDone).await?;
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
        let steps = timeout(START_TIMEOUT, self.api.watch(&params, &version)).await.map_err(|_| Failure::NoAnswer)?;
        let mut steps = steps.map_err(|error| self.not_begun(error))?.boxed();
        self.health.works(K::KIND, &self.scope);
        loop {
            let step = tokio::select! {
                () = self.anew.is_asked() => {
                    self.version = None;
                    return Ok(());
                }
                step = timeout(SILENCE, steps.next()) => step,
            };
            let Ok(Some(step)) = step else { break };
            match step.map_err(|error| self.broken(error))? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.version = object.resource_version();
                    self.tell(watcher::Event::Apply(object)).await?;
                }
                WatchEvent::Deleted(object) => {
                    self.version = object.resource_version();
                    self.tell(watcher::Event::Delete(object)).await?;
                }
                WatchEvent::Bookmark(bookmark) => self.version = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Err(self.broken(kube::Error::Api(status.boxed()))),
            }
            self.works();
        }
        if begun.elapsed() < TOO_SHORT {
            sleep(self.pauses.next()).await;
        }
        Ok(())
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

    async fn tell(&mut self, step: watcher::Event<K>) -> Result<(), End> {
        let Some(change) = self.decoder.decode(step) else { return Ok(()) };
        let event = Event { scope: self.scope.clone(), change };
        self.sink.send(event).await.map_err(|_| End::NobodyListens)
    }

    fn works(&mut self) {
        self.health.works(K::KIND, &self.scope);
        self.pauses = Pauses::default();
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
    fn only_those_watches_list_anew_that_are_asked_to() {
        let is_asked = |anew: &mut Anew| anew.is_asked().now_or_never().is_some();
        let orders = Orders::default();
        let one = (Kind::Slice, Scope::All);
        let others = [(Kind::Pod, Scope::All), (Kind::Slice, Scope::Namespace("shop".into()))];
        orders.list_anew(&[one.clone()].into());
        let mut late = Anew::new(&orders, one.clone());
        assert!(!is_asked(&mut late), "it lists anyway when it begins");
        let mut others = others.map(|watch| Anew::new(&orders, watch));
        orders.list_anew(&[one.clone()].into());
        // A later order for another one does not undo it.
        orders.list_anew(&[(Kind::Node, Scope::All)].into());
        assert!(is_asked(&mut late) && !is_asked(&mut late), "once");
        assert!(!others.iter_mut().any(is_asked), "the other watches go on");
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
}

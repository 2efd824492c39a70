//! The watches: one for each kind and scope, each a consistent list and then what follows it, for ever.
//!
//! Trouble with one (a permission that was taken away, a missing CRD, an apiserver that is away) leaves the
//! others alone and leaves in force what it said before. It is logged once for as long as it stays the
//! same, and can be read from [`WatchHealth`].
//!
//! kube's own `watcher` is not used: it does not say when a watch is up again, a page of its lists may take
//! for ever, and it goes on after an object that it could not decode as if that had not been.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::WatchParams;
use kube::core::{NamespaceResourceScope, WatchEvent};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::api::ConsulService;
use super::convert::Rules;
use super::decode::{Decoder, NodeObject, ResourceObject, ServiceObject, SliceObject, Watched};
use super::event::{Event, Kind, Scope};
use super::list::{Failure, Pages};

/// After so many seconds the apiserver ends a watch, and it is taken up again.
const WATCH_SECONDS: u32 = 60;
/// A watch that is silent for longer is dead: within [`WATCH_SECONDS`] it either says something or ends.
const SILENCE: Duration = Duration::from_secs(65);
/// How long a watch may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch that ends sooner has not worked.
const TOO_SHORT: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What is wrong with the watches, in words.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<BTreeMap<(Kind, Scope), String>>>);

impl WatchHealth {
    /// One line for each watch that fails; none if all is well.
    #[must_use]
    pub fn failing(&self) -> Vec<String> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failing.iter().map(|((kind, scope), why)| format!("{kind} of {scope}: {why}")).collect()
    }

    fn fails(&self, kind: Kind, scope: &Scope, why: &str) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failing.insert((kind, scope.clone()), why.to_owned());
        if known.as_deref() != Some(why) {
            warn!(%kind, %scope, "cannot watch, trying again: {why}");
        }
    }

    fn works(&self, kind: Kind, scope: &Scope) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&(kind, scope.clone())).is_some() {
            info!(%kind, %scope, "watching again");
        }
    }
}

/// Has the watches list anew. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Anew(tokio::sync::watch::Sender<()>);

impl Default for Anew {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(()))
    }
}

impl Anew {
    /// Asks all watches for a list.
    pub(super) fn ask(&self) {
        self.0.send_replace(());
    }
}

/// Watches everything in these scopes, with `nodes` the Nodes too, and sends what happens to `sink`. Ends
/// when nobody receives it any more.
pub async fn watch(
    client: Client,
    scopes: Vec<Scope>,
    nodes: bool,
    rules: Arc<Rules>,
    sink: Sender<Event>,
    health: WatchHealth,
    anew: Anew,
) {
    let mut watches = JoinSet::new();
    for scope in &scopes {
        let resources = namespaced::<ResourceObject>(&client, scope);
        watches.spawn(Watch::new(resources, scope, &rules, &health, &sink, &anew).follow());
        let slices = namespaced::<SliceObject>(&client, scope);
        watches.spawn(Watch::new(slices, scope, &rules, &health, &sink, &anew).follow());
        let services = namespaced::<ServiceObject>(&client, scope);
        watches.spawn(Watch::new(services, scope, &rules, &health, &sink, &anew).follow());
    }
    if nodes {
        let nodes = Api::<NodeObject>::all(client);
        watches.spawn(Watch::new(nodes, &Scope::All, &rules, &health, &sink, &anew).follow());
    }
    sink.closed().await;
    watches.shutdown().await;
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
    anew: tokio::sync::watch::Receiver<()>,
}

/// Why a watch or its list ended.
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
    fn new(
        api: Api<K>,
        scope: &Scope,
        rules: &Arc<Rules>,
        health: &WatchHealth,
        sink: &Sender<Event>,
        anew: &Anew,
    ) -> Self {
        Self {
            api,
            scope: scope.clone(),
            decoder: Decoder::new(rules.clone()),
            health: health.clone(),
            sink: sink.clone(),
            version: None,
            pauses: Pauses::default(),
            anew: anew.0.subscribe(),
        }
    }

    /// Follows what happens until nobody listens.
    async fn follow(mut self) {
        loop {
            let end = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            match end {
                Ok(()) => continue,
                Err(End::NobodyListens) => return,
                Err(End::Expired) => debug!(kind = %K::KIND, scope = %self.scope, "{}, listing", End::Expired),
                Err(End::Failed(failure)) => self.health.fails(K::KIND, &self.scope, &advice(K::KIND, &failure)),
            }
            sleep(self.pauses.next()).await;
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
                Ok(()) = self.anew.changed() => {
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

/// How long to wait before the next try: longer each time, and never just as long as the others who wait.
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

/// What went wrong and what to do about it.
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
    fn health_tells_what_fails_until_it_works() {
        let health = WatchHealth::default();
        let scope = Scope::Namespace("shop".into());
        health.fails(Kind::Slice, &scope, "no");
        assert_eq!(health.failing(), ["EndpointSlices of namespace shop: no"]);
        health.works(Kind::Slice, &Scope::All);
        assert_eq!(health.failing().len(), 1, "another watch of the kind");
        health.works(Kind::Slice, &scope);
        assert!(health.failing().is_empty());
    }
}

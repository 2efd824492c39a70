//! The real Kubernetes: writes of status, finalizers and Events, the fresh list, and which cluster it is.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, Resource};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::api::ConsulService;
use super::convert::{ResourceObject, Rules};
use super::decode::{Decoder, NamespaceObject, NodeObject, PodObject, ServiceObject, SliceObject, Watched};
use super::list::{Failure, Pages, describe, retry_after};
use super::watch::{OWN_WATCHES, Orders, is_by_namespace, namespaced};
use super::{definition, status};
use crate::model::cause::CrdState;
use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::Policy;
use crate::ports::{Finalizers, Kubernetes, ReadError, Write, WriteError};
use crate::state::event::{self, Kind, Scope};
use crate::state::world::{Wanted, World};

/// The longest that a request for one object may take: kube has no limit of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time that discovery may be behind a definition's condition: an informer of the API server carries it
/// over, which takes milliseconds.
const DISCOVERY_FOLLOWS: Duration = Duration::from_secs(1);
/// Kubernetes' limit for an Event's message, in bytes.
const MAX_NOTE: usize = 1024;

/// The apiserver of a cluster.
pub struct ApiServer {
    client: Client,
    recorder: Recorder,
    scopes: Vec<Scope>,
    nodes: bool,
    rules: Arc<Rules>,
    policy: watch::Receiver<Arc<Policy>>,
    orders: Orders,
}

impl ApiServer {
    /// The apiserver behind `client`. The fresh list reads what the watches see, by these scopes and rules; with `nodes`,
    /// the places of instances go by its Nodes.
    #[must_use]
    pub fn new(client: Client, scopes: Vec<Scope>, nodes: bool, rules: Arc<Rules>, orders: Orders) -> Self {
        let reporter = Reporter { controller: "lictor".to_owned(), instance: host_name() };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, scopes, nodes, rules, policy: watch::channel(Arc::default()).1, orders }
    }

    /// Holds the resources of fresh lists to the policy that is in force.
    #[must_use]
    pub fn under(mut self, policy: watch::Receiver<Arc<Policy>>) -> Self {
        self.policy = policy;
        self
    }

    fn resources(&self, key: &ResourceKey) -> Api<ResourceObject> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    async fn set_finalizers(&self, seen: &Finalizers, wanted: Vec<&str>) -> Result<(), WriteError> {
        let patch = Patch::Merge(json!({ "metadata": {
            "uid": &*seen.uid,
            "resourceVersion": &*seen.resource_version,
            "finalizers": wanted,
        } }));
        let resources = self.resources(&seen.key);
        in_time(resources.patch(&seen.key.name, &PatchParams::default(), &patch)).await
    }

    async fn patch_status(&self, key: &ResourceKey, patch: serde_json::Value) -> Result<(), WriteError> {
        let patch = serde_json::from_value(patch).map_err(|error| WriteError::Refused(error.to_string()))?;
        let patch = Patch::<()>::Json(patch);
        in_time(self.resources(key).patch_status(&key.name, &PatchParams::default(), &patch)).await
    }

    async fn publish(&self, key: &ResourceKey, uid: &str, event: Event) {
        let regarding = ObjectReference {
            api_version: Some(ConsulService::api_version(&()).into_owned()),
            kind: Some(ConsulService::kind(&()).into_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, self.recorder.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(resource = %key, "an Event was not written: {}", describe(&error)),
            Err(_) => debug!(resource = %key, "an Event was not written in time"),
        }
    }

    async fn look_at_definition(&self) -> Result<CrdState, ReadError> {
        let definitions = Api::<PartialObjectMeta<CustomResourceDefinition>>::all(self.client.clone());
        let name = ConsulService::crd_name();
        let failed = |failure: Failure| unread(format!("the CustomResourceDefinition {name}"), &failure);
        match tokio::time::timeout(REQUEST_TIMEOUT, definitions.get(name)).await {
            Ok(Ok(found)) if found.metadata.deletion_timestamp.is_none() => Ok(CrdState::Stays),
            Ok(Ok(_)) => Ok(CrdState::Goes),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(CrdState::Goes),
            // An operator of single namespaces may not look; discovery every service account may ask.
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => self.discover_definition().await,
            Ok(Err(error)) => Err(failed(error.into())),
            Err(_) => Err(failed(Failure::NoAnswer)),
        }
    }

    /// Asks discovery instead. It follows the definition by an informer, so only what it says twice, a moment apart,
    /// counts as what it was when it was asked.
    async fn discover_definition(&self) -> Result<CrdState, ReadError> {
        match self.discover().await? {
            CrdState::Stays => {
                tokio::time::sleep(DISCOVERY_FOLLOWS).await;
                self.discover().await
            }
            other => Ok(other),
        }
    }

    async fn discover(&self) -> Result<CrdState, ReadError> {
        let path = definition::discovery_path();
        let failed = |failure: Failure| unread(path.clone(), &failure);
        let request =
            http::Request::get(&path).body(Vec::new()).map_err(|error| failed(kube::Error::HttpError(error).into()))?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.request::<APIResourceList>(request)).await {
            Ok(Ok(group)) => Ok(definition::state(&group)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(CrdState::Goes),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Ok(CrdState::Unknown),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(_) => Err(failed(Failure::NoAnswer)),
        }
    }

    /// Lists the kind of a watch. Where many namespaces need one, a single list of all namespaces tells of those that nobody
    /// asked for yet.
    async fn read_watch(
        &self,
        (kind, scope): &(Kind, Scope),
        asked: &mut BTreeSet<(Kind, Scope)>,
        world: &mut World,
    ) -> Result<(), ReadError> {
        let mut scopes = BTreeSet::from([scope.clone()]);
        asked.insert((*kind, scope.clone()));
        if is_by_namespace(*kind) && self.scopes.contains(&Scope::All) {
            let wanted = world.wanted().watches.into_keys();
            let others: Vec<_> = wanted.filter(|watch| watch.0 == *kind && !asked.contains(watch)).collect();
            if others.len() >= OWN_WATCHES {
                scopes.extend(others.iter().map(|(_, scope)| scope.clone()));
                asked.extend(others);
            }
        }
        let listed = if scopes.len() > 1 { &Scope::All } else { scope };
        let client = &self.client;
        match kind {
            Kind::Resource => Ok(()),
            Kind::Slice => self.read(namespaced::<SliceObject>(client, listed), &scopes, world).await,
            Kind::Service => self.read(namespaced::<ServiceObject>(client, listed), &scopes, world).await,
            Kind::Pod => self.read(namespaced::<PodObject>(client, listed), &scopes, world).await,
            Kind::Node => self.read(Api::<NodeObject>::all(client.clone()), &scopes, world).await,
            Kind::Namespace => self.read(Api::<NamespaceObject>::all(client.clone()), &scopes, world).await,
        }
    }

    /// Lists what an API has, and tells of it by these scopes.
    async fn read<K: Watched>(
        &self,
        api: Api<K>,
        scopes: &BTreeSet<Scope>,
        world: &mut World,
    ) -> Result<(), ReadError> {
        let what = scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let failed = |failure: Failure| unread(format!("{} of {what}", K::KIND), &failure);
        let mut decoder = Decoder::new(self.rules.clone());
        decoder.look_for(&world.wanted().of_pods);
        let mut apply = |scope: &Scope, step: watcher::Event<K>| {
            if let Some(change) = decoder.decode(step) {
                world.apply(event::Event { scope: scope.clone(), change }, Instant::now());
            }
        };
        for scope in scopes {
            apply(scope, watcher::Event::Init);
        }
        let mut pages = Pages::of(api);
        while let Some(page) = pages.next().await.map_err(failed)? {
            for object in page {
                let own = Scope::Namespace(object.meta().namespace.as_deref().unwrap_or_default().into());
                if let Some(scope) = scopes.get(&Scope::All).or_else(|| scopes.get(&own)) {
                    apply(scope, watcher::Event::InitApply(object));
                }
            }
        }
        for scope in scopes {
            apply(scope, watcher::Event::InitDone);
        }
        Ok(())
    }
}

impl Kubernetes for ApiServer {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<(), WriteError>> {
        async move {
            match write {
                Write::AddFinalizer(seen) => {
                    let others = seen.finalizers.iter().filter(|f| **f != seen.ours);
                    let wanted = others.chain([&seen.ours]).map(|f| &**f).collect();
                    self.set_finalizers(&seen, wanted).await
                }
                Write::RemoveFinalizer(seen) => {
                    let others = seen.finalizers.iter().filter(|f| **f != seen.ours);
                    self.set_finalizers(&seen, others.map(|f| &**f).collect()).await
                }
                Write::Status { key, uid, status, since } => {
                    let status = status::to_api(&status, &since, Timestamp::now());
                    self.patch_status(&key, status::patch(&uid, &status)).await
                }
                Write::ForgetStatus { key, uid, observed_generation } => {
                    self.patch_status(&key, status::forget(&uid, observed_generation)).await
                }
                Write::Event { key, uid, warning, reason, action, message } => {
                    let type_ = if warning { EventType::Warning } else { EventType::Normal };
                    let event = Event { type_, reason, action, note: Some(cut(message)), secondary: None };
                    self.publish(&key, &uid, event).await;
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn definition_goes(&self) -> BoxFuture<'_, Result<CrdState, ReadError>> {
        self.look_at_definition().boxed()
    }

    fn list_anew(&self, watches: &BTreeSet<(Kind, Scope)>) {
        self.orders.list_anew(watches);
    }

    fn want(&self, wanted: &Wanted) {
        self.orders.want(wanted);
    }

    fn read_again(&self) -> BoxFuture<'_, Result<World, ReadError>> {
        async move {
            let policy = Arc::clone(&self.policy.borrow());
            let world = World::new(self.scopes.iter().cloned(), self.nodes);
            let mut world = world.under(policy).wanting(self.orders.wanted());
            for scope in &self.scopes {
                let resources = namespaced::<ResourceObject>(&self.client, scope);
                self.read(resources, &BTreeSet::from([scope.clone()]), &mut world).await?;
            }
            // What is wanted besides, these resources tell. A kind that may not be listed keeps only those waiting
            // that need it. A list may decide whose a name is, and so what else is needed.
            let mut asked = BTreeSet::new();
            while let Some(watch) = world.wanted().watches.into_keys().find(|watch| !asked.contains(watch)) {
                if let Err(error) = self.read_watch(&watch, &mut asked, &mut world).await {
                    tracing::warn!(%error, "cannot list a kind; removals that depend on it wait");
                }
            }
            Ok(world)
        }
        .boxed()
    }
}

fn unread(what: String, failure: &Failure) -> ReadError {
    ReadError { what, reason: failure.to_string(), code: failure.code() }
}

/// Explains why the cluster did not tell its uid.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the uid of namespace kube-system, which tells this cluster from others: {0}")]
pub struct UidError(String);

/// The uid of the namespace `kube-system`, which lives as long as the cluster.
pub async fn cluster_uid(client: &Client) -> Result<Str, UidError> {
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, namespaces.get("kube-system")).await;
    let answer = answer.map_err(|_| UidError(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())))?;
    let namespace = answer.map_err(|error| UidError(describe(&error)))?;
    namespace.metadata.uid.map(Str::from).ok_or_else(|| UidError("it has none".to_owned()))
}

/// The name of this host, which in a pod is the pod's.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Waits for a write's answer, but not for ever.
async fn in_time<T>(write: impl Future<Output = kube::Result<T>>) -> Result<(), WriteError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, write).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => Err(WriteError::Unavailable(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}

fn refusal(error: &kube::Error) -> WriteError {
    let kube::Error::Api(status) = error else { return WriteError::Unavailable(describe(error)) };
    match status.code {
        404 => WriteError::Gone,
        // The test in our JSON patch found another uid: what the schema refuses names the object, this does
        // not.
        422 if status.details.as_ref().is_some_and(|details| details.name.is_empty()) => WriteError::Gone,
        409 => WriteError::Conflict,
        429 | 503 if !retry_after(status).is_zero() => WriteError::Limited(status.message.clone(), retry_after(status)),
        // A token that has just expired, a server that is busy.
        401 | 408 | 429 => WriteError::Unavailable(status.message.clone()),
        400..=499 => WriteError::Refused(status.message.clone()),
        _ => WriteError::Unavailable(status.message.clone()),
    }
}

/// Cuts a message at Kubernetes' limit, between two characters.
fn cut(mut message: String) -> String {
    let fits = |end: &usize| message.is_char_boundary(*end);
    message.truncate((0..=MAX_NOTE.min(message.len())).rev().find(fits).unwrap_or_default());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        assert_eq!(cut("ä".repeat(600)).len(), 1024);
        assert_eq!(cut(format!("a{}", "ä".repeat(600))).len(), 1023);
    }

    #[test]
    fn an_answer_says_when_to_try_again() {
        let answer = |code: u16, seconds: u32| {
            let status = json!({ "status": "Failure", "message": "why", "code": code,
                "details": { "retryAfterSeconds": seconds } });
            refusal(&kube::Error::Api(serde_json::from_value(status).unwrap()))
        };
        for (said, heeded) in [(1, 1), (30, 30), (31, 30), (300, 30), (u32::MAX, 30)] {
            for code in [429, 503] {
                let after = match answer(code, said) {
                    WriteError::Limited(_, after) => after,
                    other => panic!("{other}"),
                };
                assert_eq!(after, Duration::from_secs(heeded), "{code}, {said} s");
            }
        }
        assert!(matches!(answer(429, 0), WriteError::Unavailable(_)));
        assert!(matches!(answer(409, 30), WriteError::Conflict));
    }

    #[test]
    fn an_answer_says_whether_to_try_again() {
        let answer = |code| {
            let status = kube::core::Status { code, message: "why".to_owned(), ..kube::core::Status::default() };
            refusal(&kube::Error::Api(status.boxed()))
        };
        assert!(matches!(answer(404), WriteError::Gone));
        assert!(matches!(answer(409), WriteError::Conflict));
        for code in [400, 403, 422] {
            assert!(matches!(answer(code), WriteError::Refused(why) if why == "why"), "{code}");
        }
        for code in [401, 408, 429, 500, 503, 504] {
            assert!(matches!(answer(code), WriteError::Unavailable(_)), "{code}");
        }
    }
}

//! One look at what somebody asks about: pods, Services and resources with more of each than decisions need.
//!
//! In: a client with the rights of whoever asks. Out: what is there, in the model's own types. Nothing is watched or written.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::convert::{ResourceObject, class_and_source};
use super::list::describe;
use crate::model::ids::{ResourceKey, Str};
use crate::model::resource::Source;
use crate::model::selector::Labels;
use crate::ports::ReadError;
use crate::state::event::Scope;

/// The longest that a list may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenPod {
    /// Its namespace and name.
    pub(crate) key: ResourceKey,
    /// Tells it from an earlier pod of the same name.
    pub(crate) uid: Str,
    /// All its labels.
    pub(crate) labels: Labels,
    /// Its addresses, the primary one first; empty until it has one.
    pub(crate) addresses: Vec<IpAddr>,
    /// The Kubernetes node that it runs on.
    pub(crate) node: Option<Str>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub(crate) phase: String,
    /// True if its condition `Ready` is true.
    pub(crate) is_ready: bool,
    /// The message of that condition, where it has one.
    pub(crate) words: Option<String>,
    /// True if it is being deleted.
    pub(crate) is_deleting: bool,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenService {
    /// Its namespace and name.
    pub(crate) key: ResourceKey,
    /// The labels that its pods have; none where others write its slices.
    pub(crate) selector: Option<Labels>,
}

/// What a resource asks for, whether that can be acted on or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asks {
    /// Its class; empty for the default class.
    pub(crate) class: String,
    /// Where its instances come from; none where that cannot be read.
    pub(crate) source: Option<Source>,
}

/// Lists the pods of a scope that a field selector picks.
pub(crate) async fn pods(client: &Client, scope: &Scope, fields: &str) -> Result<Vec<SeenPod>, ReadError> {
    let all = list::<Pod>(client, scope, ListParams::default().fields(fields), "Pods").await?;
    Ok(all.into_iter().map(seen_pod).collect())
}

/// Lists the Services of a scope.
pub(crate) async fn services(client: &Client, scope: &Scope) -> Result<Vec<SeenService>, ReadError> {
    let all = list::<Service>(client, scope, ListParams::default(), "Services").await?;
    let seen = |service: Service| SeenService {
        key: key(&service),
        selector: service.spec.and_then(|spec| spec.selector).filter(|labels| !labels.is_empty()).map(labels),
    };
    Ok(all.into_iter().map(seen).collect())
}

/// Lists what the resources of a scope ask for.
pub(crate) async fn resources(client: &Client, scope: &Scope) -> Result<Vec<(ResourceKey, Asks)>, ReadError> {
    let all = list::<ResourceObject>(client, scope, ListParams::default(), "ConsulServices").await?;
    let seen = |resource: ResourceObject| {
        let (class, source) = class_and_source(&resource.spec);
        (key(&resource), Asks { class, source })
    };
    Ok(all.into_iter().map(seen).collect())
}

async fn list<K>(client: &Client, scope: &Scope, params: ListParams, what: &str) -> Result<Vec<K>, ReadError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api = match scope {
        Scope::All => Api::<K>::all(client.clone()),
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
    };
    let failed = |reason, code| ReadError { what: format!("{what} of {scope}"), reason, code };
    match timeout(PATIENCE, api.list(&params)).await {
        Ok(Ok(found)) => Ok(found.items),
        Ok(Err(error)) => {
            let code = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
            Err(failed(describe(&error), code))
        }
        Err(_) => Err(failed(format!("no answer within {} s", PATIENCE.as_secs()), None)),
    }
}

fn key(object: &impl Resource) -> ResourceKey {
    let meta = object.meta();
    ResourceKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn labels(of: impl IntoIterator<Item = (String, String)>) -> Labels {
    of.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

fn seen_pod(pod: Pod) -> SeenPod {
    let key = key(&pod);
    let status = pod.status.unwrap_or_default();
    let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let ips = status.pod_ips.into_iter().flatten().map(|ip| ip.ip);
    SeenPod {
        key,
        uid: pod.metadata.uid.unwrap_or_default().into(),
        labels: labels(pod.metadata.labels.unwrap_or_default()),
        addresses: ips.filter_map(|ip| ip.parse().ok()).collect(),
        node: pod.spec.and_then(|spec| spec.node_name).map(Str::from),
        phase: status.phase.unwrap_or_default(),
        is_ready: ready.as_ref().is_some_and(|ready| ready.status == "True"),
        words: ready.and_then(|ready| ready.message).filter(|words| !words.is_empty()),
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
    }
}

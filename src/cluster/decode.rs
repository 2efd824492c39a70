//! From Kubernetes' objects to the model's facts.
//!
//! The types here are cut down to what is read, and every field may be absent: an object that does not
//! decode would fail its whole page of a list, and would be lost without a word on a watch. For the same
//! reason the spec and status of our own kind are decoded in a second step, one object at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Node as ApiNode, Pod as ApiPod, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::containers;
use super::convert::{self, ResourceObject, Rules};
use super::interner::Interner;
use crate::model::facts::{
    ContainerKind, ContainerPort, Endpoint, Family, KeysOfPods, Node, Pod, PodKey, PodRef, Protocol, Service,
    ServicePort, Slice, SlicePort,
};
use crate::model::ids::{Str, is_pod_name, is_uid};
use crate::model::render::MAX_TAG;
use crate::model::selector::Labels;
use crate::state::event::{Change, Kind, ObjectKey, SeenResource, Step};

/// A kind that is watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// The type of what is kept of an object.
    type Fact: Send;
    /// Says which kind it is.
    const KIND: Kind;
    /// The labels that an object must have to be of interest, if any.
    const LABELS: Option<&'static str>;

    /// Gives what is kept of an object; none where it is not of interest.
    fn fact(self, key: &ObjectKey, decoder: &mut Decoder) -> Option<Self::Fact>;

    /// A step of this kind's watch.
    fn change(step: Step<Self::Fact>) -> Change;
}

/// Decodes what one watch says.
#[derive(Debug)]
pub struct Decoder {
    rules: Arc<Rules>,
    /// The labels and annotations of pods that are kept, by namespace.
    of_pods: BTreeMap<Str, KeysOfPods>,
    strings: Interner,
}

impl Decoder {
    /// A decoder that reads resources by these rules, and keeps no labels and annotations of pods.
    #[must_use]
    pub fn new(rules: Arc<Rules>) -> Self {
        Self { rules, of_pods: BTreeMap::new(), strings: Interner::default() }
    }

    /// Keeps these labels and annotations of pods from now on, by the namespace.
    pub fn look_for(&mut self, of_pods: &BTreeMap<Str, BTreeSet<PodKey>>) {
        let of_namespace = |(namespace, keys): (&Str, &BTreeSet<PodKey>)| (namespace.clone(), KeysOfPods::of(keys));
        self.of_pods = of_pods.iter().map(of_namespace).collect();
    }

    /// Says what the watch's step means; none where it means nothing to us. An object that is no longer of interest is
    /// as good as deleted.
    pub fn decode<K: Watched>(&mut self, event: watcher::Event<K>) -> Option<Change> {
        let step = match event {
            watcher::Event::Init => Step::Init,
            watcher::Event::InitDone => Step::InitDone,
            watcher::Event::InitApply(object) => {
                let key = self.key(object.meta());
                let fact = object.fact(&key, self)?;
                Step::InitApply(key, fact)
            }
            watcher::Event::Apply(object) => {
                let key = self.key(object.meta());
                match object.fact(&key, self) {
                    Some(fact) => Step::Apply(key, fact),
                    None => Step::Delete(key),
                }
            }
            watcher::Event::Delete(object) => Step::Delete(self.key(object.meta())),
        };
        Some(K::change(step))
    }

    fn key(&mut self, meta: &ObjectMeta) -> ObjectKey {
        ObjectKey {
            namespace: self.strings.get(meta.namespace.as_deref().unwrap_or_default()),
            name: meta.name.as_deref().unwrap_or_default().into(),
        }
    }
}

impl Watched for ResourceObject {
    type Fact = SeenResource;
    const KIND: Kind = Kind::Resource;
    const LABELS: Option<&'static str> = None;

    fn fact(self, key: &ObjectKey, decoder: &mut Decoder) -> Option<SeenResource> {
        Some(convert::resource(key.clone(), self, &decoder.rules))
    }

    fn change(step: Step<SeenResource>) -> Change {
        Change::Resource(step)
    }
}

/// An `EndpointSlice`, cut down to what is read.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ApiSlice)]
#[serde(rename_all = "camelCase")]
pub struct SliceObject {
    metadata: ObjectMeta,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointObject>>,
    ports: Option<Vec<PortObject>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    addresses: Option<Vec<String>>,
    conditions: Option<ConditionsObject>,
    node_name: Option<String>,
    target_ref: Option<TargetObject>,
}

#[derive(Deserialize, Clone, Debug, Default)]
struct ConditionsObject {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Clone, Debug)]
struct TargetObject {
    kind: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
struct PortObject {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

impl PortObject {
    fn number(&self) -> Option<u16> {
        number(self.port)
    }

    fn protocol(&self) -> Option<Protocol> {
        protocol(self.protocol.as_deref())
    }
}

fn number(port: Option<i32>) -> Option<u16> {
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

/// Kubernetes' default is TCP.
fn protocol(text: Option<&str>) -> Option<Protocol> {
    text.map_or(Some(Protocol::Tcp), Protocol::parse)
}

/// The label by which a slice says whose it is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Watched for SliceObject {
    type Fact = Slice;
    const KIND: Kind = Kind::Slice;
    const LABELS: Option<&'static str> = Some(SERVICE_NAME);

    fn fact(self, _: &ObjectKey, decoder: &mut Decoder) -> Option<Slice> {
        let strings = &mut decoder.strings;
        let service = strings.get(self.metadata.labels.as_ref()?.get(SERVICE_NAME)?);
        let family = match self.address_type.as_deref()? {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => Family::Fqdn,
            _ => return None,
        };
        let ports = self.ports.unwrap_or_default();
        let ports = ports.iter().filter_map(|port| {
            let name = strings.get(port.name.as_deref().unwrap_or_default());
            Some(SlicePort { name, protocol: port.protocol()?, number: port.number()? })
        });
        let ports = ports.collect();
        let endpoints = self.endpoints.unwrap_or_default();
        let endpoints = endpoints.into_iter().filter_map(|e| endpoint(e, strings)).collect();
        Some(Slice { service, family, ports, endpoints })
    }

    fn change(step: Step<Slice>) -> Change {
        Change::Slice(step)
    }
}

fn endpoint(object: EndpointObject, strings: &mut Interner) -> Option<Endpoint> {
    let text = object.addresses?.into_iter().next()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        tracing::warn!(address = %text, "the address of an endpoint is not an IP address; Lictor does not register the endpoint");
        return None;
    };
    let conditions = object.conditions.unwrap_or_default();
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: object.node_name.map(|node| strings.get(&node)),
        pod: object.target_ref.and_then(|target| pod(target, address)),
    })
}

/// The pod that an endpoint stands for. Kubernetes checks neither name nor uid in a `targetRef` (1.37), and both are
/// in what is written to Consul: what is in no form of Kubernetes' own names no pod.
fn pod(target: TargetObject, address: IpAddr) -> Option<PodRef> {
    if target.kind.as_deref() != Some("Pod") {
        return None;
    }
    let (name, uid) = (target.name?, target.uid?);
    if !is_pod_name(&name) || !is_uid(&uid) {
        tracing::warn!(%address, "the targetRef of an endpoint is not the name and uid of a pod; Lictor ignores the targetRef");
        return None;
    }
    Some(PodRef { name: name.into(), uid: uid.into() })
}

/// A `Service`, cut down to what is read.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ApiService)]
pub struct ServiceObject {
    metadata: ObjectMeta,
    spec: Option<ServiceSpecObject>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct ServiceSpecObject {
    #[serde(rename = "type")]
    type_: Option<String>,
    selector: Option<BTreeMap<String, String>>,
    ip_families: Option<Vec<String>>,
    ports: Option<Vec<PortObject>>,
}

impl Watched for ServiceObject {
    type Fact = Service;
    const KIND: Kind = Kind::Service;
    const LABELS: Option<&'static str> = None;

    fn fact(self, _: &ObjectKey, decoder: &mut Decoder) -> Option<Service> {
        let spec = self.spec.unwrap_or_default();
        let family = spec.ip_families.as_ref().and_then(|families| families.first());
        let ports = spec.ports.unwrap_or_default();
        let ports = ports.iter().filter_map(|port| {
            let name = decoder.strings.get(port.name.as_deref().unwrap_or_default());
            Some(ServicePort { name, protocol: port.protocol()?, number: port.number()? })
        });
        Some(Service {
            family: family.and_then(|family| match family.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            }),
            selects: spec.selector.is_some_and(|selector| !selector.is_empty()),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            ports: ports.collect(),
        })
    }

    fn change(step: Step<Service>) -> Change {
        Change::Service(step)
    }
}

/// A `Pod`, cut down to what is read.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ApiPod)]
pub struct PodObject {
    metadata: ObjectMeta,
    spec: Option<PodSpecObject>,
    status: Option<PodStatusObject>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct PodSpecObject {
    node_name: Option<String>,
    containers: Option<Vec<ContainerObject>>,
    init_containers: Option<Vec<ContainerObject>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct ContainerObject {
    name: Option<String>,
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPortObject>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct ContainerPortObject {
    name: Option<String>,
    protocol: Option<String>,
    container_port: Option<i32>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct PodStatusObject {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIpObject>>,
    conditions: Option<Vec<PodConditionObject>>,
}

#[derive(Deserialize, Clone, Debug)]
struct PodIpObject {
    ip: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
struct PodConditionObject {
    #[serde(rename = "type")]
    type_: Option<String>,
    status: Option<String>,
}

impl Watched for PodObject {
    type Fact = Pod;
    const KIND: Kind = Kind::Pod;
    const LABELS: Option<&'static str> = None;

    fn fact(self, key: &ObjectKey, decoder: &mut Decoder) -> Option<Pod> {
        let Decoder { of_pods, strings, .. } = decoder;
        let (spec, status) = (self.spec.unwrap_or_default(), self.status.unwrap_or_default());
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let conditions = status.conditions.unwrap_or_default();
        let ready = |c: &PodConditionObject| c.type_.as_deref() == Some("Ready") && c.status.as_deref() == Some("True");
        let ips = status.pod_ips.unwrap_or_default().into_iter().filter_map(|object| object.ip);
        let mut addresses: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        if ended {
            // It keeps its address, which may be another's by now.
            addresses.clear();
        } else if addresses.is_empty() {
            addresses.extend(status.pod_ip.and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let there = self.metadata.annotations.unwrap_or_default();
        let main = there.get(containers::MAIN).map(String::as_str);
        let own = spec.containers.unwrap_or_default().into_iter();
        let own = own.map(|container| (containers::kind(container.name.as_deref(), main), container));
        // Native sidecars stand among the init containers, and stay.
        let sidecars = spec.init_containers.unwrap_or_default().into_iter();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let sidecars = sidecars.map(|container| (ContainerKind::Beside, container));
        let ports = own
            .chain(sidecars)
            .flat_map(|(of, container)| container.ports.unwrap_or_default().into_iter().map(move |port| (of, port)));
        let ports = ports.filter_map(|(of, port)| {
            let (number, protocol) = (number(port.container_port)?, protocol(port.protocol.as_deref())?);
            Some(ContainerPort { name: strings.get(port.name.as_deref().unwrap_or_default()), protocol, number, of })
        });
        let ports = ports.collect();
        let labels = self.metadata.labels.unwrap_or_default();
        let keys = of_pods.get(&key.namespace).cloned().unwrap_or_default();
        Some(Pod {
            uid: self.metadata.uid.unwrap_or_default().into(),
            addresses,
            ready: conditions.iter().any(ready),
            leaving: ended || self.metadata.deletion_timestamp.is_some(),
            node: spec.node_name.map(|node| strings.get(&node)),
            ports,
            labels: keys.labels(|key| labels.get(&**key).map(|value| strings.get(value))),
            annotations: keys.annotations(|key| there.get(&**key).map(|value| within_use(value))),
        })
    }

    fn change(step: Step<Pod>) -> Change {
        Change::Pod(step)
    }
}

/// As much of an annotation as can be of use: what is longer than the longest tag is too long for every text, and is only
/// known to be so.
fn within_use(value: &str) -> Str {
    let most = MAX_TAG + 4;
    let end = (0..=most.min(value.len())).rev().find(|end| value.is_char_boundary(*end)).unwrap_or_default();
    value[..end].into()
}

/// The well-known labels of Kubernetes that say where a node is.
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// A `Node`, cut down to what is read.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ApiNode)]
pub struct NodeObject {
    metadata: ObjectMeta,
    status: Option<NodeStatusObject>,
}

#[derive(Deserialize, Clone, Debug)]
struct NodeStatusObject {
    addresses: Option<Vec<NodeAddressObject>>,
}

#[derive(Deserialize, Clone, Debug)]
struct NodeAddressObject {
    #[serde(rename = "type")]
    type_: Option<String>,
    address: Option<String>,
}

impl Watched for NodeObject {
    type Fact = Node;
    const KIND: Kind = Kind::Node;
    const LABELS: Option<&'static str> = None;

    fn fact(self, _: &ObjectKey, decoder: &mut Decoder) -> Option<Node> {
        let labels = self.metadata.labels.unwrap_or_default();
        let mut label = |key: &str| labels.get(key).map(|value| decoder.strings.get(value));
        let (zone, region) = (label(ZONE), label(REGION));
        let addresses = self.status.and_then(|status| status.addresses).unwrap_or_default();
        let mut internal = addresses.iter().filter(|address| address.type_.as_deref() == Some("InternalIP"));
        Some(Node { address: internal.find_map(|address| address.address.as_deref()?.parse().ok()), zone, region })
    }

    fn change(step: Step<Node>) -> Change {
        Change::Node(step)
    }
}

/// A `Namespace`, cut down to its labels.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ApiNamespace)]
pub struct NamespaceObject {
    metadata: ObjectMeta,
}

impl Watched for NamespaceObject {
    type Fact = Labels;
    const KIND: Kind = Kind::Namespace;
    const LABELS: Option<&'static str> = None;

    fn fact(self, _: &ObjectKey, decoder: &mut Decoder) -> Option<Labels> {
        let labels = self.metadata.labels.unwrap_or_default();
        Some(labels.iter().map(|(key, value)| (decoder.strings.get(key), decoder.strings.get(value))).collect())
    }

    fn change(step: Step<Labels>) -> Change {
        Change::Namespace(step)
    }
}

#[cfg(test)]
mod tests;

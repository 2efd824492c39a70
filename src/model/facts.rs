//! The facts about endpoints that decisions need, and nothing more: what the `cluster` room keeps of an
//! `EndpointSlice`, a `Service`, a `Pod` and a `Node`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::ids::Str;

/// The address family of a slice or the primary one of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The family IPv4.
    V4,
    /// The family IPv6.
    V6,
    /// Host names: a kind of slice that Kubernetes has deprecated and that we do not register.
    Fqdn,
}

/// The protocol of a port, in the order in which one is preferred where only a number is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, also where nothing is said.
    Tcp,
    /// The protocol UDP.
    Udp,
    /// The protocol SCTP.
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Reads it; none where this version does not know it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.as_str() == text)
    }
}

/// One `EndpointSlice` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service, from the label `kubernetes.io/service-name`.
    pub service: Str,
    /// The kind of addresses that the slice holds.
    pub family: Family,
    /// Its ports. A port without a number (which means "every port" in Kubernetes) is left out.
    pub ports: Vec<SlicePort>,
    /// Its endpoints, with the first address of each, as the API's documentation asks of consumers.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice: the number of a named port may differ from slice to slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name; empty where the Service has one unnamed port.
    pub name: Str,
    /// Its protocol. A name or number may stand for one port of each.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub number: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address at which it answers.
    pub address: IpAddr,
    /// True if it is to be sent traffic, as its slice says it and kube-proxy takes it, or if the field is absent. With
    /// `publishNotReadyAddresses` Kubernetes makes it always true, so that peers find each other before they are
    /// ready.
    pub ready: bool,
    /// True if the pod is ready, be it on its way out or not, or if the field is absent. It counts only of one that
    /// terminates, whose `ready` is false.
    pub serving: bool,
    /// On its way out: it leaves Consul at once, unless it serves and none is ready.
    pub terminating: bool,
    /// The Kubernetes node that it runs on.
    pub node: Option<Str>,
    /// The pod behind it, where the slice names one.
    pub pod: Option<PodRef>,
}

/// The pod behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// The pod's name.
    pub name: Str,
    /// The pod's uid: another pod of the same name is another instance.
    pub uid: Str,
}

/// Holds what we need of a `Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The first of `spec.ipFamilies`; none where the API server left it out.
    pub family: Option<Family>,
    /// True if it has a selector: then Kubernetes' controller writes its slices, those of one family after the
    /// other's.
    pub selects: bool,
    /// `spec.type: ExternalName`: such a Service has no endpoints.
    pub external_name: bool,
    /// The Service's ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a `Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: Str,
    /// Its protocol. A name or number may stand for one port of each.
    pub protocol: Protocol,
    /// The Service's own port number, 1 to 65535.
    pub number: u16,
}

/// Holds what we need of a `Node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its first `InternalIP`.
    pub address: Option<IpAddr>,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<Str>,
    /// Its label `topology.kubernetes.io/region`.
    pub region: Option<Str>,
}

/// Holds what we need of a `Pod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Tells it from an earlier pod of the same name.
    pub uid: Str,
    /// Its addresses, the primary one first; one of each family at most. Empty until it has one.
    pub addresses: Vec<IpAddr>,
    /// True if its condition `Ready` is true.
    pub ready: bool,
    /// True if it is being deleted, or has ended (`Succeeded` and `Failed` pods keep their address).
    pub leaving: bool,
    /// The Kubernetes node that it runs on.
    pub node: Option<Str>,
    /// The ports of its containers.
    pub ports: Vec<ContainerPort>,
    /// The labels that a selector or a template of its namespace names.
    pub labels: Attributes,
    /// The annotations that a template of its namespace names.
    pub annotations: Attributes,
}

/// Something of a pod that a resource asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodKey {
    /// The label with this key.
    Label(Str),
    /// The annotation with this key.
    Annotation(Str),
}

/// The labels or the annotations of a pod that resources ask for: which were looked for, and those that are there.
///
/// Authors of resources choose the keys, and each key is looked for in every pod of their namespace. So the keys are held
/// once for a namespace, and a pod holds only what it has. Whoever makes pods chooses what they have, so what nobody asks
/// for is not held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    looked_for: Arc<BTreeSet<Str>>,
    /// In the order of the keys.
    there: Box<[(Str, Str)]>,
}

impl Attributes {
    /// Looks for these keys: `value` says what the pod has.
    #[must_use]
    pub fn look_for(keys: &Arc<BTreeSet<Str>>, mut value: impl FnMut(&Str) -> Option<Str>) -> Self {
        let there = keys.iter().filter_map(|key| Some((key.clone(), value(key)?)));
        Self { looked_for: keys.clone(), there: there.collect() }
    }

    /// Those that are there.
    pub fn iter(&self) -> impl Iterator<Item = &(Str, Str)> {
        self.there.iter()
    }

    /// Says whether this key was looked for. Whether the pod has one that was not, nobody knows yet.
    #[must_use]
    pub fn knows(&self, key: &str) -> bool {
        self.looked_for.contains(key)
    }

    /// The value under a key that was looked for; none where the pod has nothing under it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Str> {
        let at = self.there.binary_search_by(|(there, _)| (**there).cmp(key)).ok()?;
        self.there.get(at).map(|(_, value)| value)
    }
}

/// Takes what is there, as if just these keys had been looked for.
impl FromIterator<(Str, Str)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (Str, Str)>>(pairs: I) -> Self {
        let pairs: BTreeMap<Str, Str> = pairs.into_iter().collect();
        Self { looked_for: Arc::new(pairs.keys().cloned().collect()), there: pairs.into_iter().collect() }
    }
}

/// The keys of labels and of annotations that are looked for in pods.
#[derive(Clone, Debug, Default)]
pub struct KeysOfPods {
    labels: Arc<BTreeSet<Str>>,
    annotations: Arc<BTreeSet<Str>>,
}

impl KeysOfPods {
    /// Tells labels from annotations.
    #[must_use]
    pub fn of(keys: &BTreeSet<PodKey>) -> Self {
        let (mut labels, mut annotations) = (BTreeSet::new(), BTreeSet::new());
        for key in keys {
            match key {
                PodKey::Label(key) => labels.insert(key.clone()),
                PodKey::Annotation(key) => annotations.insert(key.clone()),
            };
        }
        Self { labels: Arc::new(labels), annotations: Arc::new(annotations) }
    }

    /// Looks for labels: `value` says what a pod has.
    pub fn labels(&self, value: impl FnMut(&Str) -> Option<Str>) -> Attributes {
        Attributes::look_for(&self.labels, value)
    }

    /// Looks for annotations: `value` says what a pod has.
    pub fn annotations(&self, value: impl FnMut(&Str) -> Option<Str>) -> Attributes {
        Attributes::look_for(&self.annotations, value)
    }
}

/// A port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name; empty where it has none.
    pub name: Str,
    /// Its protocol. A name or number may stand for one port of each.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub number: u16,
    /// The kind of container that has it.
    pub of: ContainerKind,
}

/// Says how a container stands to its pod, in the order in which its ports are looked at where a spec names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerKind {
    /// The pod names it as its main one.
    Main,
    /// One of several of the app's own.
    Own,
    /// Something beside the app: a native sidecar, or a container of a mesh that is injected into pods.
    Beside,
}

/// Tells what is known of one resource's namespace, and of the nodes.
pub trait Facts {
    /// The resource's namespace.
    fn namespace(&self) -> &Str;
    /// Gives a Service.
    fn service(&self, name: &str) -> Option<&Service>;
    /// The slices of a Service, in a fixed order.
    fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> + Clone;
    /// The pods that the resource's selector matches, by their names.
    fn matching(&self) -> impl Iterator<Item = (&Str, &Pod)> + Clone;
    /// Gives a pod.
    fn pod(&self, name: &str) -> Option<&Pod>;
    /// Says whether a pod has this address.
    fn has_pod_at(&self, address: IpAddr) -> bool;
    /// Gives a node.
    fn node(&self, name: &str) -> Option<&Node>;
}

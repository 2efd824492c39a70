//! The facts about endpoints that decisions need, and nothing more: what the `cluster` room keeps of an
//! `EndpointSlice`, a `Service` and a `Node`.

use std::net::IpAddr;

use super::names::Str;

/// The address family of a slice or the primary one of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Host names: a kind of slice that Kubernetes has deprecated and that we do not register.
    Fqdn,
}

/// One `EndpointSlice` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service, from the label `kubernetes.io/service-name`.
    pub service: Str,
    /// What kind of addresses the slice holds.
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
    /// 1 to 65535.
    pub number: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it answers.
    pub address: IpAddr,
    /// Whether the pod is ready: `ready` and `serving`, each true where absent. With
    /// `publishNotReadyAddresses` Kubernetes makes `ready` always true; `serving` still tells.
    pub ready: bool,
    /// On its way out: it leaves Consul at once, whatever `ready` says.
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

/// What we need of a `Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The first of `spec.ipFamilies`; none where the API server left it out.
    pub family: Option<Family>,
    /// `spec.type: ExternalName`: such a Service has no endpoints.
    pub external_name: bool,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a `Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: Str,
    /// The Service's own port number, 1 to 65535.
    pub number: u16,
}

/// What we need of a `Node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its first `InternalIP`.
    pub address: Option<IpAddr>,
}

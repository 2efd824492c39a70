//! A `ConsulService` as decisions see it: its spec in the model's own types, or why it was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::check::CheckSpec;
use super::facts::PodKey;
use super::ids::{ResourceKey, Str};
use super::port::PortRef;
use super::reasons::Refusal;
use super::registration::{TaggedAddress, Weights};
use super::selector::Selector;
use super::status::Status;
use super::template::{Template, Variable};

/// A `ConsulService` resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The key `namespace/name`.
    pub key: ResourceKey,
    /// `metadata.uid`: tells a resource from an earlier one of the same name.
    pub uid: Str,
    /// `metadata.creationTimestamp`, in seconds since 1970: of two resources that want one name, the older has it.
    pub created: i64,
    /// `metadata.generation`: rises with each edit of the spec.
    pub generation: i64,
    /// `metadata.resourceVersion`, for writes that must not overwrite what we have not seen.
    pub resource_version: Str,
    /// All finalizers, in order.
    pub finalizers: Vec<Str>,
    /// True if `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// True if it is of this operator's class. One that is not is only watched, so that what is registered for it is
    /// not taken for an orphan.
    pub ours: bool,
    /// The finalizer of this operator's class.
    pub finalizer: Str,
    /// True if the annotation [`PAUSED`] freezes it: nothing of it is written to Consul, or taken out of it.
    pub paused: bool,
    /// Says what its author wants to happen to the registrations when it is deleted; none where that cannot be read. It
    /// counts even where the rest of the spec cannot be read, as far as the administrator allows it.
    pub deletion: Option<DeletionPolicy>,
    /// The size of its spec in JSON, in bytes.
    pub bytes: usize,
    /// The spec that it asks for, or the reason why that cannot be.
    pub spec: Result<Arc<Spec>, Refusal>,
    /// The status as last read, also where it is someone else's.
    pub status: Arc<Status>,
}

/// The finalizer that makes "deleted" mean "gone from Consul", of the operator without a class.
pub const FINALIZER: &str = "lictor.dev/deregister";

/// The annotation that freezes a resource, whatever its value is but `false`.
pub const PAUSED: &str = "lictor.dev/paused";

/// The finalizer of the operator of a class; of the one without a class where it is empty. Each class has its
/// own, so that a resource that changes hands is let go by the one that had it.
#[must_use]
pub fn finalizer(class: &str) -> Str {
    if class.is_empty() { FINALIZER.into() } else { format!("{FINALIZER}-{class}").into() }
}

impl Resource {
    /// Says whether our finalizer is on it.
    #[must_use]
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.contains(&self.finalizer)
    }

    /// Says whether a decision about registrations could differ between the two: everything but the status and the
    /// bookkeeping that our own writes move.
    #[must_use]
    pub fn differs_in_substance(&self, other: &Self) -> bool {
        self.uid != other.uid
            || self.generation != other.generation
            || self.deleting != other.deleting
            || self.ours != other.ours
            || self.paused != other.paused
            || self.deletion != other.deletion
            || self.spec != other.spec
    }
}

/// Says what a resource asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The service's name in Consul.
    pub service: Str,
    /// Says where the instances come from.
    pub source: Source,
    /// The port of the source; none where it has just one.
    pub port: Option<PortRef>,
    /// Consul tags, in the order given.
    pub tags: Vec<Template>,
    /// The author's meta pairs.
    pub meta: BTreeMap<Str, Template>,
    /// DNS and load-balancing weights.
    pub weights: Weights,
    /// Other addresses of the service, by tag.
    pub tagged_addresses: Arc<BTreeMap<Str, TaggedAddress>>,
    /// True if tags belong to whoever edits them in Consul.
    pub enable_tag_override: bool,
    /// True if a pod's address of the other family is published beside its primary one.
    pub dual_stack: bool,
    /// Says what Kubernetes' readiness does in Consul.
    pub readiness: Readiness,
    /// The checks that Consul runs.
    pub checks: Vec<CheckSpec>,
    /// Says what the administrator allows.
    pub limits: Limits,
}

/// Says what the administrator allows a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most instances that it may have.
    pub instances: usize,
    /// The most instances that all resources of its namespace may have together; none for no limit.
    pub of_namespace: Option<usize>,
    /// True if its name may also be that of another namespace's resource.
    pub shares_name: bool,
    /// True if an endpoint counts only with a pod behind it.
    pub verify_endpoints: bool,
    /// The networks in which endpoints and pods may have their addresses; empty for all.
    pub endpoint_networks: Arc<[IpNet]>,
    /// True if nothing is registered or changed: what is registered stays as it is, as long as its endpoint lives. So it is
    /// for a resource that the administrator does not allow any more.
    pub only_keeps: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            instances: 5_000,
            of_namespace: None,
            shares_name: false,
            verify_endpoints: false,
            endpoint_networks: Arc::default(),
            only_keeps: false,
        }
    }
}

impl Spec {
    /// Gives the spec for a resource of which nothing but what is registered already may be there.
    #[must_use]
    pub fn only_kept(&self) -> Self {
        Self { limits: Limits { only_keeps: true, instances: usize::MAX, ..self.limits.clone() }, ..self.clone() }
    }

    /// Gives the spec for a resource of which nothing may be there but registrations under this name that came from pods, each
    /// as long as a pod of the namespace has its address.
    #[must_use]
    pub fn only_keeping_pods(&self, service: Str) -> Self {
        Self {
            service,
            source: Source::Pods { selector: Selector(Vec::new()) },
            // What is kept has its port.
            port: Some(PortRef::Number(1)),
            tags: Vec::new(),
            meta: BTreeMap::new(),
            checks: Vec::new(),
            ..self.only_kept()
        }
    }

    /// The values that its texts hold.
    #[must_use]
    pub fn variables(&self) -> BTreeSet<&Variable> {
        let own: &[StaticAddress] = match &self.source {
            Source::Static { addresses } => addresses,
            Source::Service { .. } | Source::Pods { .. } => &[],
        };
        let own = own.iter().flat_map(|address| address.own.tags.iter().chain(address.own.meta.values()));
        self.tags.iter().chain(self.meta.values()).chain(own).flat_map(Template::variables).collect()
    }

    /// Lists the kinds of objects that it cannot be understood without.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let variables = self.variables();
        let services = matches!(self.source, Source::Service { .. });
        let of_pod = variables.iter().any(|variable| variable.is_of_pod());
        let selected = match &self.source {
            Source::Pods { selector } => Some(selector.keys()),
            Source::Service { .. } | Source::Static { .. } => None,
        };
        let selected = selected.into_iter().flatten().map(|key| PodKey::Label(key.clone()));
        let in_texts = variables.iter().filter_map(|variable| match variable {
            Variable::Label(key) => Some(PodKey::Label(key.clone())),
            Variable::Annotation(key) => Some(PodKey::Annotation(key.clone())),
            _ => None,
        });
        Needs {
            services,
            pods: match self.source {
                Source::Service { .. } => of_pod || self.limits.verify_endpoints,
                Source::Pods { .. } => true,
                Source::Static { .. } => false,
            },
            nodes: variables.iter().any(|variable| variable.is_of_node())
                && !matches!(self.source, Source::Static { .. }),
            of_pods: selected.chain(in_texts).collect(),
        }
    }
}

/// Says what must be watched for a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Services and their slices.
    pub services: bool,
    /// True if pods are needed.
    pub pods: bool,
    /// True if nodes are needed.
    pub nodes: bool,
    /// These labels and annotations of pods.
    pub of_pods: BTreeSet<PodKey>,
}

/// Says where instances come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The endpoint slices of a Service of the resource's own namespace.
    Service {
        /// The Service's name.
        name: Str,
    },
    /// Pods of the resource's own namespace.
    Pods {
        /// The selector that matches them.
        selector: Selector,
    },
    /// Addresses of what runs elsewhere.
    Static {
        /// The addresses; each address and port once.
        addresses: Vec<StaticAddress>,
    },
}

/// What meta `lictor-source` says of instances that came from pods.
pub const PODS: &str = "pods";

impl fmt::Display for Source {
    /// As in meta `lictor-source`. Which pods are picked is not in it: an edit of the selector changes nothing
    /// about a pod that both pick.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name } => write!(f, "service/{name}"),
            Self::Pods { .. } => f.write_str(PODS),
            Self::Static { .. } => f.write_str("static"),
        }
    }
}

/// An instance that runs elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address at which it answers.
    pub address: IpAddr,
    /// 1 to 65535.
    pub port: u16,
    /// The tags and meta that it has besides what all instances have.
    pub own: Arc<PerAddress>,
}

/// Holds what one instance has besides what all instances of its resource have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerAddress {
    /// The additional tags.
    pub tags: Vec<Template>,
    /// More meta pairs; they count where the resource has the same key.
    pub meta: BTreeMap<Str, Template>,
}

/// Says what Kubernetes' readiness does in Consul.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not ready is critical.
    Mirror,
    /// Not ready is not registered.
    Deregister,
    /// Readiness is not looked at.
    Ignore,
}

impl Readiness {
    /// Says whether an instance is to be registered, given whether Kubernetes calls it ready.
    #[must_use]
    pub fn registers(self, ready: bool) -> bool {
        ready || self != Self::Deregister
    }
}

/// Says what happens to registrations when their resource is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They go too.
    Deregister,
    /// They stay, without our mark.
    Retain,
}

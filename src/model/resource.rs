//! A `ConsulService` as decisions see it: its spec in the model's own types, or why it was refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::check::CheckSpec;
use super::names::{ResourceKey, Str};
use super::registration::{TaggedAddress, Weights};
use super::status::Status;

/// A `ConsulService`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `namespace/name`.
    pub key: ResourceKey,
    /// `metadata.uid`: tells a resource from an earlier one of the same name.
    pub uid: Str,
    /// `metadata.generation`: rises with each edit of the spec.
    pub generation: i64,
    /// `metadata.resourceVersion`, for writes that must not overwrite what we have not seen.
    pub resource_version: Str,
    /// All finalizers, in order.
    pub finalizers: Vec<Str>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Whether it is of this operator's class. One that is not is only watched, so that what is registered
    /// for it is not taken for an orphan.
    pub ours: bool,
    /// The finalizer of this operator's class.
    pub finalizer: Str,
    /// What happens to the registrations when it is deleted; none where that cannot be read. It counts even
    /// where the rest of the spec is refused.
    pub deletion: Option<DeletionPolicy>,
    /// What it asks for, or why that cannot be.
    pub spec: Result<Arc<Spec>, Refusal>,
    /// The status as last read, also where it is someone else's.
    pub status: Arc<Status>,
}

/// The finalizer that makes "deleted" mean "gone from Consul", of the operator without a class.
pub const FINALIZER: &str = "lictor.dev/deregister";

/// The finalizer of the operator of a class; of the one without a class where it is empty. Each class has its
/// own, so that a resource that changes hands is let go by the one that had it.
#[must_use]
pub fn finalizer(class: &str) -> Str {
    if class.is_empty() { FINALIZER.into() } else { format!("{FINALIZER}-{class}").into() }
}

impl Resource {
    /// Whether our finalizer is on it.
    #[must_use]
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.contains(&self.finalizer)
    }

    /// Whether a decision about registrations could differ between the two: everything but the status and
    /// the bookkeeping that our own writes move.
    #[must_use]
    pub fn differs_in_substance(&self, other: &Self) -> bool {
        self.uid != other.uid
            || self.generation != other.generation
            || self.deleting != other.deleting
            || self.ours != other.ours
            || self.deletion != other.deletion
            || self.spec != other.spec
    }
}

/// Why a spec cannot be acted on: `Accepted=False`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The condition's reason, in CamelCase: `NotSupported`, `Invalid`, `NotAllowed`.
    pub reason: &'static str,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// What a resource asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The service's name in Consul.
    pub service: Str,
    /// Where the instances come from.
    pub source: Source,
    /// Which port of the source; none where it has just one.
    pub port: Option<PortRef>,
    /// Consul tags, in the order given.
    pub tags: Arc<[Str]>,
    /// The author's meta pairs.
    pub meta: BTreeMap<Str, Str>,
    /// DNS and load-balancing weights.
    pub weights: Weights,
    /// Other addresses of the service, by tag.
    pub tagged_addresses: Arc<BTreeMap<Str, TaggedAddress>>,
    /// Whether tags belong to whoever edits them in Consul.
    pub enable_tag_override: bool,
    /// What Kubernetes' readiness does in Consul.
    pub readiness: Readiness,
    /// The checks that Consul runs.
    pub checks: Vec<CheckSpec>,
}

/// Where instances come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The endpoint slices of a Service of the resource's own namespace.
    Service {
        /// The Service's name.
        name: Str,
    },
}

impl fmt::Display for Source {
    /// As in meta `lictor-source`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name } => write!(f, "service/{name}"),
        }
    }
}

/// A port of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// By the name of the Service's port.
    Name(Str),
    /// By the Service's own port number, as an Ingress does.
    Number(u16),
}

/// What Kubernetes' readiness does in Consul.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not ready is critical.
    Mirror,
    /// Not ready is not registered.
    Deregister,
    /// Readiness is not looked at.
    Ignore,
}

/// What happens to registrations when their resource is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They go too.
    Deregister,
    /// They stay, without our mark.
    Retain,
}

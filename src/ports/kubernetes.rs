//! The way to Kubernetes besides the events: writes, and a fresh list.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::model::cause::CrdState;
use crate::model::ids::{ResourceKey, Str};
use crate::model::status::Status;
use crate::state::event::{Kind, Scope, Transitions};
use crate::state::world::{Wanted, World};

/// The engine's way to Kubernetes besides the events: writes, and a fresh list.
pub trait Kubernetes: Send + Sync {
    /// Makes one write. It ends within seconds, with an answer or with [`WriteError::Unavailable`].
    fn write(&self, write: Write) -> BoxFuture<'_, Result<(), WriteError>>;

    /// Asks whether our `CustomResourceDefinition` is being deleted or gone, and all resources with it: then a
    /// resource that ended before this was asked does not say that its instances should end.
    fn definition_goes(&self) -> BoxFuture<'_, Result<CrdState, ReadError>>;

    /// Has these listed anew: what their watches say is in doubt. The other watches go on.
    fn list_anew(&self, watches: &BTreeSet<(Kind, Scope)>);

    /// Has just this watched from now on.
    fn want(&self, wanted: &Wanted);

    /// Reads everything that is watched again, by consistent lists, into a World that is whole.
    fn read_again(&self) -> BoxFuture<'_, Result<World, ReadError>>;
}

/// A write to Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts our finalizer beside those that were last seen.
    AddFinalizer(Finalizers),
    /// Takes our finalizer away from those that were last seen.
    RemoveFinalizer(Finalizers),
    /// Replaces the status.
    Status {
        /// The resource that the status is of.
        key: ResourceKey,
        /// Its uid: a status is not for another resource of the same name.
        uid: Str,
        /// The status to write.
        status: Arc<Status>,
        /// Says since when the conditions last seen have held.
        since: Transitions,
    },
    /// Takes the status away, unless somebody has written another one meanwhile.
    ForgetStatus {
        /// The resource that the status is of.
        key: ResourceKey,
        /// The resource's uid.
        uid: Str,
        /// The generation that the status is about.
        observed_generation: i64,
    },
    /// Tells of something that happened. It never fails: an Event is a courtesy.
    Event {
        /// The resource that it is about.
        key: ResourceKey,
        /// The resource's uid.
        uid: Str,
        /// True if it is a warning.
        warning: bool,
        /// The reason, in CamelCase, at most 128 characters.
        reason: String,
        /// The action that was taken, in CamelCase, at most 128 characters.
        action: String,
        /// For people; cut at 1 KiB, Kubernetes' limit.
        message: String,
    },
}

/// A resource's finalizers as last seen. The write is refused if the resource has changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finalizers {
    /// The resource to change.
    pub key: ResourceKey,
    /// The resource's uid.
    pub uid: Str,
    /// The version at which it was seen.
    pub resource_version: Str,
    /// All of its finalizers, in order.
    pub finalizers: Vec<Str>,
    /// The finalizer of ours.
    pub ours: Str,
}

/// Says why a write was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The resource is not there any more, or another one has its name.
    #[error("the resource is gone")]
    Gone,
    /// The resource has changed since it was seen: a newer event is on its way.
    #[error("the resource has changed since it was last seen")]
    Conflict,
    /// Kubernetes does not allow it; the same write again will not fare better.
    #[error("Kubernetes refuses: {0}")]
    Refused(String),
    /// No answer, or none that decides: the same write may fare better later.
    #[error("Kubernetes cannot be reached: {0}")]
    Unavailable(String),
    /// Kubernetes limits requests: the same write may fare better after this time.
    #[error("Kubernetes limits requests: {0}")]
    Limited(String, Duration),
}

/// Says why the fresh list failed: nothing may be concluded.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {what}: {reason}")]
pub struct ReadError {
    /// The kind that was to be listed.
    pub what: String,
    /// Kubernetes' own words.
    pub reason: String,
    /// The HTTP status of its answer, if there was one.
    pub code: Option<u16>,
}

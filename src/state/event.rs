//! What the watches say: objects in the model's own types, in the steps of a list and the watch that
//! follows it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use crate::model::facts::{Node, Pod, Service, Slice};
use crate::model::ids::{ResourceKey, Str};
use crate::model::resource::Resource;
use crate::model::selector::Labels;
use crate::model::status::{ConditionKind, Truth};

/// The namespace and name of any object; the namespace is empty for what has none.
pub type ObjectKey = ResourceKey;

/// The part of the cluster that one watch covers. Nodes and Namespaces have no namespace: theirs is always
/// [`Scope::All`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The watch covers all namespaces.
    All,
    /// The watch covers one namespace.
    Namespace(Str),
}

impl Scope {
    /// Says whether objects of `namespace` are in it.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(own) => **own == *namespace,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
        }
    }
}

/// Says what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The kind `ConsulService`.
    Resource,
    /// The kind `EndpointSlice`.
    Slice,
    /// The kind `Service`.
    Service,
    /// The kind `Pod`.
    Pod,
    /// The kind `Node`.
    Node,
    /// The kind `Namespace`.
    Namespace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resource => "ConsulServices",
            Self::Slice => "EndpointSlices",
            Self::Service => "Services",
            Self::Pod => "Pods",
            Self::Node => "Nodes",
            Self::Namespace => "Namespaces",
        })
    }
}

/// One thing that one watch said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Says what the watch covers.
    pub scope: Scope,
    /// Says what changed.
    pub change: Change,
}

/// A step of one of the watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A step in a watch of `ConsulService`s.
    Resource(Step<SeenResource>),
    /// A step in a watch of `EndpointSlice`s.
    Slice(Step<Slice>),
    /// A step in a watch of `Service`s.
    Service(Step<Service>),
    /// A step in a watch of `Pod`s.
    Pod(Step<Pod>),
    /// A step in a watch of `Node`s.
    Node(Step<Node>),
    /// A step in a watch of `Namespace`s: their labels.
    Namespace(Step<Labels>),
}

impl Change {
    /// Says which kind it is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Resource(_) => Kind::Resource,
            Self::Slice(_) => Kind::Slice,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    /// Counts the endpoints that it tells of.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        match self {
            Self::Slice(Step::Apply(_, slice) | Step::InitApply(_, slice)) => slice.endpoints.len(),
            _ => 0,
        }
    }

    /// Says whether a list is done with it: what was only unknown before may now be known to be absent.
    #[must_use]
    pub fn completes_a_list(&self) -> bool {
        matches!(
            self,
            Self::Resource(Step::InitDone)
                | Self::Slice(Step::InitDone)
                | Self::Service(Step::InitDone)
                | Self::Pod(Step::InitDone)
                | Self::Node(Step::InitDone)
                | Self::Namespace(Step::InitDone)
        )
    }
}

/// A step of a list, or of the watch that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// A list begins. An earlier one that was not done is void.
    Init,
    /// The list has this object.
    InitApply(ObjectKey, T),
    /// The list is complete: what it did not have is gone.
    InitDone,
    /// The object is new or has changed.
    Apply(ObjectKey, T),
    /// The object is gone.
    Delete(ObjectKey),
}

impl<T> Step<T> {
    /// Gives the same step with another form of the object.
    pub fn map<U>(self, form: impl FnOnce(&ObjectKey, T) -> U) -> Step<U> {
        match self {
            Self::Init => Step::Init,
            Self::InitApply(key, object) => {
                let object = form(&key, object);
                Step::InitApply(key, object)
            }
            Self::InitDone => Step::InitDone,
            Self::Apply(key, object) => {
                let object = form(&key, object);
                Step::Apply(key, object)
            }
            Self::Delete(key) => Step::Delete(key),
        }
    }
}

/// A `ConsulService` as a watch saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenResource {
    /// The resource as decisions see it.
    pub resource: Resource,
    /// Says since when its conditions have held, for the next status.
    pub since: Transitions,
}

/// Says since when each condition has had its truth, as last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transitions(pub(crate) BTreeMap<ConditionKind, (Truth, Timestamp)>);

impl Transitions {
    /// Says when a condition that is now `truth` last changed: before, if it was so already, and `now` otherwise.
    #[must_use]
    pub fn since(&self, kind: ConditionKind, truth: Truth, now: Timestamp) -> Timestamp {
        match self.0.get(&kind) {
            Some((before, since)) if *before == truth => *since,
            _ => now,
        }
    }
}

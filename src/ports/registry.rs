//! A place where registrations go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::ids::Str;
use crate::model::reasons::OutageKind;
pub use crate::model::registration::Rows;
use crate::model::words;

/// A place where registrations go. All methods may be called at any time; calls of [`apply`](Self::apply) for
/// one node are never made side by side.
pub trait Registry: Send + Sync {
    /// Makes itself known to Consul and learns where instances go. Called once before anything else and again
    /// after [`Unavailable::session_lost`]; in `catalog` mode it raises the term of the marker node.
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Unavailable>>;

    /// Answers whether what is known of Consul still counts after this replica did not act for a while: surely no other one
    /// has written since. In `catalog` mode the marker node tells; with an agent nobody can.
    fn resume(&self) -> BoxFuture<'_, Result<bool, Unavailable>>;

    /// Looks where instances go and what is there of ours, writing nothing: who is known by no [`connect`](Self::connect)
    /// may only look.
    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Unavailable>>;

    /// Says where instances go as far as is known by now, if that may change after [`connect`](Self::connect).
    fn placement(&self) -> Option<Placement>;

    /// Reads everything of ours, whole: a view that Consul filtered or that may be old is an error.
    fn read(&self) -> BoxFuture<'_, Result<Rows, Unavailable>>;

    /// Makes sure that Consul is still the one that it was at [`connect`](Self::connect), and says where it stands. Costs
    /// the same however much there is.
    fn indexes(&self) -> BoxFuture<'_, Result<Indexes, Unavailable>>;

    /// Makes sure that Consul is still the one that it was at [`connect`](Self::connect), and names the Consul nodes that
    /// may have something of ours on them. A list that may be old is an error.
    fn nodes(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>>;

    /// Names all services of which others than this cluster have instances. An answer that Consul filtered is an error.
    fn names_of_others(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>>;

    /// Reads what stands on one Consul node. Where a write got no answer before, it cannot land any more after this.
    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Unavailable>>;

    /// Carries out a bundle and says for each operation what became of it, in order.
    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>>;

    /// Makes a write that changes nothing, the way that others go: whether writes are carried out at all.
    fn check_writes(&self) -> BoxFuture<'_, Result<(), Unavailable>>;

    /// Brings the Consul nodes of our making up to date: addresses that changed, nodes that nothing is
    /// registered on any more. `addresses` answers by Kubernetes node.
    fn tidy<'a>(&'a self, addresses: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Unavailable>>;

    /// Takes away what was made besides registrations, as far as nobody else has anything on it: after the last
    /// registration of ours is gone for good.
    fn dismantle(&self) -> BoxFuture<'_, Result<(), Unavailable>>;

    /// Has bundles that are under way finish the operation that they are at and answer
    /// [`Outcome::NotTried`] for the rest: no request begins that does not complete one.
    fn wind_down(&self);

    /// The most operations in one bundle.
    fn bundle_size(&self) -> usize;

    /// The most bundles that are to be under way at once, each for another node.
    fn bundles(&self) -> usize;
}

/// The indexes of Consul: as long as both are the same, nothing in its catalog has changed, whoever changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexes {
    /// The Raft index at which a node or an instance changed last.
    pub instances: u64,
    /// The Raft index at which a check changed last.
    pub checks: u64,
}

/// Operations for one Consul node.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The node's name.
    pub node: Str,
    /// The address to give the node if it has to be made; none where no Kubernetes node is known for it.
    pub address: Option<IpAddr>,
    /// The operations to carry out, in order.
    pub ops: Vec<Op>,
    /// True if nothing of other bundles may be carried out together with them: one of them may be at fault.
    pub alone: bool,
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Consul has it.
    Written {
        /// True if the catalog shows it already: an agent answers before it has told the servers.
        shown: bool,
    },
    /// Consul refused this very operation; nothing of it was written. Consul's own words.
    Refused(String),
    /// It was not tried, or surely had no effect.
    NotTried(Unavailable),
    /// No answer came: it may have been written, or may still be.
    Unknown(Unavailable),
}

/// Says why Consul could not be written or read just now; no single registration is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unavailable {
    /// Says what happened, to whoever runs Lictor.
    pub message: String,
    /// Says of which kind it is, to the authors of resources.
    pub kind: OutageKind,
    /// The time for which Consul asked us to wait.
    pub retry_after: Option<Duration>,
    /// True if we must [`connect`](Registry::connect) and read everything again: Consul was emptied or restored, the
    /// agent is another one, or another Lictor took over.
    pub session_lost: bool,
}

impl Unavailable {
    /// Says whether it is surely not about what was asked for alone.
    pub(crate) fn is_about_all(&self) -> bool {
        self.session_lost || self.retry_after.is_some()
    }

    /// Makes one that may be over at the next attempt.
    #[must_use]
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: OutageKind::Other, retry_after: None, session_lost: false }
    }

    /// Makes one that may be over at the next attempt, of this kind and in the words of Consul or of what stands before it.
    #[must_use]
    pub fn said(kind: OutageKind, words: &str) -> Self {
        Self { kind, ..Self::transient(words::brief(words)) }
    }

    /// Makes one that lasts until somebody changes the settings of Lictor.
    #[must_use]
    pub fn not_set_up(message: impl Into<String>) -> Self {
        Self { kind: OutageKind::NotSetUp, ..Self::transient(message) }
    }

    /// Makes one after which nothing that Lictor knows of Consul is true any more: the session has to begin anew.
    #[must_use]
    pub fn session_lost(message: impl Into<String>) -> Self {
        Self { session_lost: true, kind: OutageKind::Replaced, ..Self::transient(message) }
    }
}

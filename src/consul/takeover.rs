//! Taking over what another cluster of our name has left in Consul, as where a cluster was built anew.
//!
//! In: the uid of that cluster. Out: what it has left, and then the same under our mark: from there on `run` treats it as
//! its own, replaces what lives and removes what is gone. [`Takeover`] is the seam; both registries have one.
//!
//! That the other cluster is gone has to show itself. So before anything is taken, a small change is made that every
//! Lictor of the other cluster puts right at its next whole look at Consul, and then it is watched.

use std::collections::BTreeSet;

use futures::future::BoxFuture;

use crate::model::desired::Placement;
use crate::model::ids::{Str, meta};
use crate::model::registration::Registration;
use crate::ports::{Rows, Unavailable};

/// The meta key of what is about to be taken over; it holds the uid of who does. Every Lictor of the other cluster puts
/// it right.
pub(super) const TAKEOVER: &str = "lictor-takeover";

/// This is said where a Lictor of the other cluster has shown itself.
const STILL_WRITES: &str = "a Lictor of the other cluster still writes to Consul: stop it first; nothing of it is to be \
                            taken over while it lives";

/// The way from another cluster's mark to ours. The methods are called in this order; each may be called again.
pub trait Takeover: Send + Sync {
    /// Reads what the other cluster has left, and changes nothing.
    fn survey(&self) -> BoxFuture<'_, Result<Left, Unavailable>>;

    /// Makes a change that a Lictor of the other cluster puts right, and answers whether there is anything to wait for:
    /// one that cannot write any more does not have to be waited for.
    fn challenge(&self) -> BoxFuture<'_, Result<bool, Unavailable>>;

    /// Says whether that change has been put right.
    fn is_answered(&self) -> BoxFuture<'_, Result<bool, Unavailable>>;

    /// Puts our mark on what is left. What has it by then stays taken if this fails; another call goes on.
    fn take(&self) -> BoxFuture<'_, Result<Taken, Unavailable>>;
}

/// Holds what a cluster has left.
#[derive(Debug)]
pub struct Left {
    /// Says where instances go.
    pub placement: Placement,
    /// The other cluster's instances.
    pub rows: Rows,
    /// The instances that are ours already.
    pub own: Rows,
    /// Consul nodes of its making.
    pub nodes: BTreeSet<Str>,
    /// Its marker node, where that still is its own.
    pub marker: Option<Str>,
}

impl Left {
    /// Says whether there is nothing to take over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.nodes.is_empty() && self.marker.is_none()
    }
}

/// Counts what has our mark now and did not have it before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The number of instances.
    pub instances: usize,
    /// The number of Consul nodes.
    pub nodes: usize,
    /// Consul's text about the first instance that it refused to change.
    pub refused: Option<String>,
}

pub(super) fn still_writes() -> Unavailable {
    Unavailable::transient(STILL_WRITES)
}

/// Gives the registration on its way from one cluster to the one of this uid: it still has the old mark.
pub(super) fn challenged(registration: &Registration, uid: &Str) -> Registration {
    let mut challenged = registration.clone();
    challenged.meta.insert(TAKEOVER.into(), uid.clone());
    challenged
}

/// Gives the registration as one of the cluster of this uid.
#[must_use]
pub fn taken(registration: &Registration, uid: &Str) -> Registration {
    let mut taken = registration.clone();
    taken.meta.remove(TAKEOVER);
    taken.meta.insert(meta::CLUSTER_UID.into(), uid.clone());
    taken
}

//! Taking over what another cluster of our name has left in the catalog.
//!
//! The marker node of the other cluster is changed first: its Lictor has to raise the term before it writes again. That
//! changed marker is the fence of all that follows, so that nothing is taken once a Lictor of the other cluster lives. The
//! marker itself is taken last: until then none of our own begins, and whoever dies in between is followed by another run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use super::marker::{TERM, term};
use super::transaction::{Part, SeenChecks, Transaction, body};
use super::{Catalog, NO_ADDRESS, TxnResult, unexplained};
use crate::consul::client::path;
use crate::consul::marked::marked_rows;
use crate::consul::takeover::{self, Left, TAKEOVER, Taken, Takeover};
use crate::consul::wire::{By, Fault, Node, TxnError, TxnOp, txn_body};
use crate::model::diff::Op;
use crate::model::ids::{Identity, Str, meta};
use crate::model::reasons::OutageKind;
use crate::ports::{Rows, Unavailable};

/// The most times that a write is tried again after what it is compared with has changed.
const ATTEMPTS: usize = 5;

/// Taking over in the catalog.
pub struct CatalogTakeover {
    /// As a Lictor of ours sees it.
    ours: Catalog,
    theirs: Identity,
    /// The marker as it has to be for anything to be written.
    fence: Mutex<Option<Node>>,
}

/// Says whose the marker node is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Marker {
    /// There is none.
    Absent,
    /// Ours: the other cluster cannot write any more.
    Ours(Node),
    /// The other cluster's.
    Theirs(Node),
    /// Somebody else's, of this uid.
    Others(String),
}

/// Says whose a marker node is, for the clusters of these uids.
fn whose(marker: Option<Node>, ours: &str, theirs: &str) -> Marker {
    let Some(node) = marker else { return Marker::Absent };
    match node.meta(meta::CLUSTER_UID) {
        uid if uid == ours => Marker::Ours(node),
        uid if uid == theirs => Marker::Theirs(node),
        uid => Marker::Others(uid.to_owned()),
    }
}

impl CatalogTakeover {
    /// From the cluster of our name with this uid, in a catalog of ours.
    #[must_use]
    pub fn new(ours: Catalog, from: &Str) -> Self {
        let theirs = Identity { uid: from.clone(), ..ours.identity.clone() };
        Self { ours, theirs, fence: Mutex::default() }
    }

    async fn marker(&self) -> Result<Marker, Unavailable> {
        let node = self.ours.node_services(&self.ours.marker).await?.node;
        match whose(node, &self.ours.identity.uid, &self.theirs.uid) {
            Marker::Others(uid) => Err(Unavailable::transient(format!(
                "the marker node {} belongs to neither of the two clusters, but to one with uid {uid:?}",
                self.ours.marker
            ))),
            marker => Ok(marker),
        }
    }

    /// Nodes that carry the mark of the other cluster; the marker is none that anything is registered on.
    async fn nodes(&self) -> Result<Vec<Node>, Unavailable> {
        let filter = format!("Meta[\"{}\"] == \"{}\"", meta::CLUSTER, self.theirs.cluster);
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        let nodes: Option<Vec<Node>> = self.ours.client.get(query).await?.value;
        let theirs = |node: &Node| {
            node.meta(meta::CLUSTER_UID) == &*self.theirs.uid && node.node.as_deref() != Some(&self.ours.marker)
        };
        Ok(nodes.into_iter().flatten().filter(theirs).collect())
    }

    async fn rows(&self, of: &Identity) -> Result<Rows, Unavailable> {
        let found = marked_rows(&self.ours.client, of, By::Catalog, None).await?;
        Ok(found.into_iter().map(|(_, key, row)| (key, row)).collect())
    }

    async fn look(&self) -> Result<Left, Unavailable> {
        let marker = match self.marker().await? {
            Marker::Theirs(_) => Some(Str::from(&*self.ours.marker)),
            Marker::Absent | Marker::Ours(_) | Marker::Others(_) => None,
        };
        Ok(Left {
            placement: self.ours.where_to(),
            rows: self.rows(&self.theirs).await?,
            own: self.rows(&self.ours.identity).await?,
            nodes: self.nodes().await?.iter().filter_map(|node| node.node.as_deref().map(Str::from)).collect(),
            marker,
        })
    }

    fn mark_of(identity: &Identity) -> BTreeMap<String, String> {
        let pairs = [
            (meta::MANAGED_BY, meta::LICTOR),
            (meta::CLUSTER, identity.cluster.as_str()),
            (meta::CLUSTER_UID, &identity.uid),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn fence(&self) -> Option<Node> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_fence(&self, node: Node) {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    /// Changes the marker without raising its term: a Lictor that lives finds it other than it left it, and raises the term at once.
    async fn change_marker(&self) -> Result<bool, Unavailable> {
        let mut node = match self.marker().await? {
            Marker::Ours(node) => {
                self.set_fence(node);
                return Ok(false);
            }
            Marker::Theirs(node) => node,
            Marker::Absent | Marker::Others(_) => Node {
                node: Some(self.ours.marker.clone()),
                address: Some(NO_ADDRESS.to_string()),
                meta: Some(Self::mark_of(&self.theirs)),
                ..Node::default()
            },
        };
        node.meta.get_or_insert_default().insert(TAKEOVER.to_owned(), self.ours.identity.uid.to_string());
        match self.ours.transact(txn_body(&[TxnOp::node_cas(node.clone())])).await {
            TxnResult::Done(nodes) => {
                let written = nodes.into_iter().find(|there| there.node == node.node);
                let index = written.and_then(|there| there.modify_index);
                let index = index
                    .ok_or_else(|| Unavailable::transient("Consul does not say at which index it wrote a node"))?;
                self.set_fence(Node { modify_index: Some(index), ..node });
                Ok(true)
            }
            // It has changed since it was read a moment ago.
            TxnResult::Conflict(errors) if errors.iter().all(|error| error.fault == Fault::StaleIndex) => {
                Err(takeover::still_writes())
            }
            TxnResult::Conflict(errors) => Err(Unavailable::transient(unexplained(&errors))),
            TxnResult::Rejected(words) => Err(Unavailable::said(OutageKind::Refused, &words)),
            TxnResult::NotTried(outage) | TxnResult::Unknown(outage) => Err(outage),
        }
    }

    async fn has_moved(&self) -> Result<bool, Unavailable> {
        let fence = self.fence();
        Ok(match self.marker().await? {
            Marker::Theirs(node) => fence.is_none_or(|fence| fence.modify_index != node.modify_index),
            // Nobody else takes it but one like us.
            Marker::Ours(_) => false,
            Marker::Absent | Marker::Others(_) => true,
        })
    }

    /// Sends what `compose` adds to a transaction behind the fence. Of one that was rolled back by anything but the fence
    /// it answers the errors.
    async fn send(
        &self,
        compose: impl Fn(&mut Transaction),
    ) -> Result<(Transaction, Result<Vec<Node>, Vec<TxnError>>), Unavailable> {
        for _ in 0..ATTEMPTS {
            let fence = self.fence().ok_or_else(takeover::still_writes)?;
            let mut transaction = Transaction::new();
            compose(&mut transaction);
            let errors = match self.ours.transact(body(&TxnOp::node_cas(fence.clone()), [&transaction])).await {
                TxnResult::Done(nodes) => return Ok((transaction, Ok(nodes))),
                TxnResult::Conflict(errors) => errors,
                TxnResult::Rejected(words) => return Err(Unavailable::said(OutageKind::Refused, &words)),
                TxnResult::NotTried(outage) | TxnResult::Unknown(outage) => return Err(outage),
            };
            if errors.iter().all(|error| transaction.parts().part(error.op_index) != Some(Part::Fence)) {
                return Ok((transaction, Err(errors)));
            }
            match self.marker().await? {
                // A Lictor of ours that runs raises its own term now and then.
                Marker::Ours(node) if node.modify_index != fence.modify_index => self.set_fence(node),
                Marker::Theirs(node) if node.modify_index == fence.modify_index => {
                    return Err(Unavailable::transient(unexplained(&errors)));
                }
                Marker::Ours(_) => return Err(Unavailable::transient(unexplained(&errors))),
                Marker::Theirs(_) | Marker::Absent | Marker::Others(_) => return Err(takeover::still_writes()),
            }
        }
        Err(Unavailable::transient(format!("the marker node {} changes all the time", self.ours.marker)))
    }

    async fn take_all(&self) -> Result<Taken, Unavailable> {
        let mut taken = Taken::default();
        let mut by_node: BTreeMap<Str, Vec<Op>> = BTreeMap::new();
        for (key, row) in self.rows(&self.theirs).await? {
            let registration = Arc::new(takeover::taken(&row.registration, &self.ours.identity.uid));
            by_node.entry(key.node.clone()).or_default().push(Op::Disown { key, registration });
        }
        for ops in by_node.into_values() {
            self.take_rows(ops, &mut taken).await?;
        }
        for node in self.nodes().await? {
            self.take_node(node).await?;
            taken.nodes += 1;
        }
        // What was refused would be lost to us with the marker: nobody of ours would ever look for it again.
        if taken.refused.is_none() {
            self.take_marker().await?;
        }
        Ok(taken)
    }

    async fn take_rows(&self, mut ops: Vec<Op>, taken: &mut Taken) -> Result<(), Unavailable> {
        let nothing_seen = SeenChecks::new();
        while !ops.is_empty() {
            let compose = |transaction: &mut Transaction| {
                for (index, op) in ops.iter().enumerate() {
                    if !transaction.add(index, op, false, &nothing_seen) {
                        break;
                    }
                }
            };
            let (transaction, answer) = self.send(compose).await?;
            match answer {
                Ok(_) => {
                    let written = transaction.parts().ops().len();
                    taken.instances += written;
                    ops.drain(..written);
                }
                Err(errors) => {
                    let mut culprits = BTreeSet::new();
                    for error in &errors {
                        let Some(Part::Look(index) | Part::Service(index)) = transaction.parts().part(error.op_index)
                        else {
                            continue;
                        };
                        // One that is gone needs no mark.
                        if culprits.insert(index) && error.fault != Fault::Gone {
                            taken.refused.get_or_insert_with(|| format!("{}: {}", ops[index].key(), error.what));
                        }
                    }
                    if culprits.is_empty() {
                        return Err(Unavailable::transient(unexplained(&errors)));
                    }
                    let left = ops.into_iter().enumerate().filter(|(index, _)| !culprits.contains(index));
                    ops = left.map(|(_, op)| op).collect();
                }
            }
        }
        Ok(())
    }

    async fn take_node(&self, mut node: Node) -> Result<(), Unavailable> {
        let name = node.node.clone().unwrap_or_default();
        for _ in 0..ATTEMPTS {
            let uid = self.ours.identity.uid.to_string();
            node.meta.get_or_insert_default().insert(meta::CLUSTER_UID.to_owned(), uid);
            let change = TxnOp::node_cas(node);
            let (_, answer) = self.send(|transaction| transaction.make_node(&change)).await?;
            let Err(errors) = answer else { return Ok(()) };
            if errors.iter().any(|error| error.fault != Fault::StaleIndex) {
                return Err(Unavailable::transient(format!("the Consul node {name}: {}", unexplained(&errors))));
            }
            match self.ours.node_services(&name).await?.node {
                Some(found) if found.meta(meta::CLUSTER_UID) == &*self.theirs.uid => node = found,
                _ => return Ok(()),
            }
        }
        Err(Unavailable::transient(format!("the Consul node {name} changes all the time")))
    }

    /// Makes the marker ours, at a higher term.
    async fn take_marker(&self) -> Result<(), Unavailable> {
        let Some(fence) = self.fence().filter(|fence| fence.meta(meta::CLUSTER_UID) == &*self.theirs.uid) else {
            return Ok(());
        };
        let mut mark = Self::mark_of(&self.ours.identity);
        mark.insert(TERM.to_owned(), (term(&fence) + 1).to_string());
        // Its own index is the comparison, and a fence before it the same once more.
        let change = TxnOp::node_cas(Node { meta: Some(mark), ..fence });
        match self.ours.transact(txn_body(&[change])).await {
            TxnResult::Done(_) => Ok(()),
            TxnResult::Conflict(errors) if errors.iter().all(|error| error.fault == Fault::StaleIndex) => {
                // Perhaps it was our own write whose answer got lost.
                match self.marker().await? {
                    Marker::Ours(_) => Ok(()),
                    Marker::Absent | Marker::Theirs(_) | Marker::Others(_) => Err(takeover::still_writes()),
                }
            }
            TxnResult::Conflict(errors) => Err(Unavailable::transient(unexplained(&errors))),
            TxnResult::Rejected(words) => Err(Unavailable::said(OutageKind::Refused, &words)),
            TxnResult::NotTried(outage) | TxnResult::Unknown(outage) => Err(outage),
        }
    }
}

impl Takeover for CatalogTakeover {
    fn survey(&self) -> BoxFuture<'_, Result<Left, Unavailable>> {
        Box::pin(async move {
            self.ours.may_conclude().await?;
            self.look().await
        })
    }

    fn challenge(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(self.change_marker())
    }

    fn is_answered(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(self.has_moved())
    }

    fn take(&self) -> BoxFuture<'_, Result<Taken, Unavailable>> {
        Box::pin(self.take_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_one_cluster_s() {
        let marker = |uid: &str| {
            let pair = (meta::CLUSTER_UID.to_owned(), uid.to_owned());
            Node { meta: Some(BTreeMap::from([pair])), ..Node::default() }
        };
        for (found, expected) in [
            (None, Marker::Absent),
            (Some(marker("new")), Marker::Ours(marker("new"))),
            (Some(marker("old")), Marker::Theirs(marker("old"))),
            (Some(marker("third")), Marker::Others("third".to_owned())),
            (Some(Node::default()), Marker::Others(String::new())),
        ] {
            assert_eq!(whose(found.clone(), "new", "old"), expected, "{found:?}");
        }
    }
}

//! The marker node: who may write.

use std::time::Duration;

use super::transaction::body;
use super::{Catalog, FenceState, NO_ADDRESS, Recovery, TxnResult, unexplained};
use crate::consul::client::path;
use crate::consul::wire::{Fault, Node, TxnOp, txn_body};
use crate::model::ids::meta;
use crate::model::nodes::NodeMark;
use crate::model::reasons::OutageKind;
use crate::ports::Unavailable;

/// The meta key of the marker's term.
pub(super) const TERM: &str = "lictor-term";

/// The time to stay away when another Lictor has taken over: two that run at once must not take turns.
const YIELD: Duration = Duration::from_secs(60);

/// The most times that we try to get hold of the marker before we leave it to the next time.
const ATTEMPTS: usize = 3;

/// The marker as we have written it: each transaction begins by comparing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fence {
    term: u64,
    index: u64,
}

/// The terms that we may have raised the marker to, up to the highest: raises of ours that got no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RaisedPerhaps(u64);

impl RaisedPerhaps {
    fn and(self, term: u64) -> Self {
        Self(self.0.max(term))
    }

    /// Gives the raises that may still have landed, after a raise to this term had this result.
    fn after(self, term: u64, result: &TxnResult) -> Self {
        match result {
            TxnResult::Done(_) => Self::default(),
            TxnResult::Unknown(_) => self.and(term),
            TxnResult::Conflict(_) | TxnResult::Rejected(_) | TxnResult::NotTried(_) => self,
        }
    }

    fn includes(self, term: u64) -> bool {
        term <= self.0
    }
}

impl Catalog {
    /// The operation that writes the marker at a term. Its content has to be the same to the letter each time: a compare-and-set of
    /// what is there already leaves the index as it is, one that changes something does not.
    fn marker_at(&self, term: u64, index: u64) -> TxnOp<'static> {
        let mut meta = self.node_meta();
        meta.insert(TERM.to_owned(), term.to_string());
        TxnOp::node_cas(Node {
            node: Some(self.marker.clone()),
            address: Some(NO_ADDRESS.to_string()),
            meta: Some(meta),
            modify_index: Some(index),
            ..Node::default()
        })
    }

    /// The operation that fails unless this fence still stands.
    pub(super) fn fence_op(&self, fence: Fence) -> TxnOp<'static> {
        self.marker_at(fence.term, fence.index)
    }

    async fn marker_node(&self) -> Result<Option<Node>, Unavailable> {
        Ok(self.node_services(&self.marker).await?.node)
    }

    /// The marker, where there is one; another cluster's is an error. One without a mark is ours where this process has
    /// written it, or where nodes carry our mark: a plain registration of somebody else has emptied the marker's meta.
    pub(super) async fn find_marker(&self) -> Result<Option<Node>, Unavailable> {
        let Some(node) = self.marker_node().await? else { return Ok(None) };
        match self.mark(&node) {
            NodeMark::Ours => Ok(Some(node)),
            NodeMark::None if self.has_written_marker() || self.has_nodes().await? => Ok(Some(node)),
            NodeMark::None | NodeMark::Others => Err(self.name_taken(&node)),
        }
    }

    fn has_written_marker(&self) -> bool {
        self.state().term > 0
    }

    /// Says whether any node carries our mark.
    async fn has_nodes(&self) -> Result<bool, Unavailable> {
        let ours = [(meta::CLUSTER, self.identity.cluster.as_str()), (meta::CLUSTER_UID, &*self.identity.uid)];
        let filter = ours.map(|(key, value)| format!("Meta[\"{key}\"] == \"{value}\"")).join(" and ");
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        Ok(self.client.get::<Option<Vec<Node>>>(query).await?.value.is_some_and(|nodes| !nodes.is_empty()))
    }

    /// Raises the term and forgets what was known: from here on nothing that was sent before can land.
    pub(super) async fn raise_fence(&self) -> Result<(), Unavailable> {
        let _alone = self.raising.lock().await;
        for _ in 0..ATTEMPTS {
            let (term, index) = match &self.find_marker().await? {
                None => {
                    self.refuse_like_names().await?;
                    (0, 0)
                }
                // One that was overwritten has lost its term, and must not go back to one that it had.
                Some(node) if self.mark(node) == NodeMark::None => {
                    (self.state().term, node.modify_index.unwrap_or_default())
                }
                Some(node) => (term(node), node.modify_index.unwrap_or_default()),
            };
            match self.raise(term, index).await {
                TxnResult::Done(nodes) => {
                    let fence = self.fence_of(term + 1, &nodes)?;
                    let mut state = self.state();
                    state.fence = FenceState::Firm(fence);
                    state.nodes.clear();
                    state.empty.clear();
                    state.unsure.clear();
                    return Ok(());
                }
                TxnResult::Conflict(errors) => {
                    if let Some(denied) = errors.iter().find(|error| error.fault != Fault::StaleIndex) {
                        return Err(Unavailable::transient(format!(
                            "the marker node {} cannot be written: {} (the Consul token needs node:write and \
                             node:read on it)",
                            self.marker, denied.what
                        )));
                    }
                }
                TxnResult::Rejected(words) => return Err(Unavailable::said(OutageKind::Refused, &words)),
                TxnResult::NotTried(outage) | TxnResult::Unknown(outage) => return Err(outage),
            }
        }
        Err(Unavailable::transient(format!(
            "the marker node {} changes all the time, or the Consul token may not read it (it needs node:read)",
            self.marker
        )))
    }

    /// Raises the term. Whoever stops waiting for the answer may have raised it.
    async fn raise(&self, term: u64, index: u64) -> TxnResult {
        let (before, raised) = (self.state().raised_perhaps, term + 1);
        self.state().raised_perhaps = before.and(raised);
        let result = self.transact(txn_body(&[self.marker_at(raised, index)])).await;
        self.state().raised_perhaps = before.after(raised, &result);
        result
    }

    fn fence_of(&self, term: u64, nodes: &[Node]) -> Result<Fence, Unavailable> {
        nodes
            .iter()
            .find(|node| node.node.as_deref() == Some(&self.marker))
            .and_then(|node| node.modify_index)
            .map(|index| {
                self.state().term = term;
                Fence { term, index }
            })
            .ok_or_else(|| Unavailable::transient("Consul does not say at which index it wrote the marker node"))
    }

    /// The fence to write under. If a write went without answer, it is raised first.
    pub(super) async fn current_fence(&self) -> Result<Fence, Unavailable> {
        let _alone = self.raising.lock().await;
        let fence = match &self.state().fence {
            FenceState::Firm(fence) => return Ok(*fence),
            FenceState::Lost(outage) => return Err(outage.clone()),
            FenceState::Stale(fence) => *fence,
        };
        match self.raise(fence.term, fence.index).await {
            TxnResult::Done(nodes) => {
                let fence = self.fence_of(fence.term + 1, &nodes)?;
                self.state().fence = FenceState::Firm(fence);
                Ok(fence)
            }
            TxnResult::Conflict(errors) => {
                let marker = self.marker_node().await?;
                Err(self.judge(marker.as_ref(), fence).unwrap_or_else(|| Unavailable::transient(unexplained(&errors))))
            }
            TxnResult::Unknown(outage) | TxnResult::NotTried(outage) => Err(outage),
            TxnResult::Rejected(words) => Err(Unavailable::said(OutageKind::Refused, &words)),
        }
    }

    /// Notes that a write under this fence was not answered.
    pub(super) fn doubt(&self, fence: Fence) {
        let mut state = self.state();
        // Under an older fence nothing can land any more.
        if matches!(state.fence, FenceState::Firm(present) if present == fence) {
            state.fence = FenceState::Stale(fence);
        }
    }

    /// Notes that a write was not answered of which it is not known under which fence it was sent: none but the present one
    /// can let it land.
    pub(super) fn doubt_all(&self) {
        let mut state = self.state();
        if let FenceState::Firm(present) = state.fence {
            state.fence = FenceState::Stale(present);
        }
    }

    /// Compares the marker and writes nothing else: whether transactions are carried out at all.
    pub(super) async fn transact_nothing(&self) -> Result<(), Unavailable> {
        let fence = self.current_fence().await?;
        match self.transact(body(&self.fence_op(fence), [])).await {
            TxnResult::Done(_) => Ok(()),
            TxnResult::Conflict(errors) => {
                let fault = errors.first().map_or(Fault::Other, |error| error.fault);
                match self.fence_failed(fence, fault, &unexplained(&errors)).await {
                    Recovery::Stop(outage) => Err(outage),
                    // The term was raised meanwhile, which is a write that was carried out.
                    Recovery::Again | Recovery::Blame(_) | Recovery::NoNode(_) | Recovery::Split(_) => Ok(()),
                }
            }
            TxnResult::Rejected(words) => Err(Unavailable::said(OutageKind::Refused, &words)),
            TxnResult::NotTried(outage) => Err(outage),
            TxnResult::Unknown(outage) => {
                self.doubt(fence);
                Err(outage)
            }
        }
    }

    /// Makes sure before a read that no earlier write of ours can land after it, and that Consul is the one
    /// that we know.
    pub(super) async fn confirm_standing(&self) -> Result<(), Unavailable> {
        let fence = self.current_fence().await?;
        self.stand_again(fence).await
    }

    /// Looks whether a fence, or one that we have raised since, still stands; if not, says why.
    pub(super) async fn stand_again(&self, fence: Fence) -> Result<(), Unavailable> {
        if let Some(known) = self.known_of(fence) {
            return known;
        }
        let marker = self.marker_node().await?;
        // While it is being raised, the marker may show our own new term before we have the answer.
        let _alone = self.raising.lock().await;
        if let Some(known) = self.known_of(fence) {
            return known;
        }
        self.judge(marker.as_ref(), fence).map_or(Ok(()), Err)
    }

    /// Says what is known of a fence without a look at the marker: whether we have raised another one since, and whether
    /// the session is lost already.
    fn known_of(&self, fence: Fence) -> Option<Result<(), Unavailable>> {
        match &self.state().fence {
            FenceState::Firm(present) | FenceState::Stale(present) => (*present != fence).then_some(Ok(())),
            FenceState::Lost(outage) => Some(Err(outage.clone())),
        }
    }

    /// Says what has become of the marker, if it is not as we left it. The session is lost then.
    fn judge(&self, marker: Option<&Node>, fence: Fence) -> Option<Unavailable> {
        let name = &self.marker;
        let mut state = self.state();
        let outage = match marker {
            None => Unavailable::session_lost(format!("the marker node {name} is gone: Consul was emptied")),
            Some(node) if self.mark(node) == NodeMark::None => Unavailable::session_lost(format!(
                "the marker node {name} has lost its mark: somebody else registered on it"
            )),
            Some(node) if !self.is_ours(node) => {
                Unavailable::session_lost(format!("the marker node {name} belongs to another cluster now"))
            }
            Some(node) => match term(node) {
                found if found > fence.term => {
                    // It may be our own doing: then nobody else leads.
                    let own = state.raised_perhaps.includes(found);
                    Unavailable {
                        retry_after: (!own).then_some(YIELD),
                        ..Unavailable::session_lost(format!(
                            "another Lictor (term {found}) took over from this one (term {})",
                            fence.term
                        ))
                    }
                }
                found if found == fence.term && node.modify_index == Some(fence.index) => return None,
                _ => Unavailable::session_lost(format!("the marker node {name} has changed: Consul was restored")),
            },
        };
        if matches!(state.fence, FenceState::Firm(present) | FenceState::Stale(present) if present == fence) {
            state.fence = FenceState::Lost(outage.clone());
        }
        Some(outage)
    }

    /// Refuses to begin under a name that another cluster's begins with, up to a hyphen, or the other way round: the nodes
    /// of one would have names that are those of the other. A cluster that has been here before goes on; where a name
    /// is somebody else's, its instances go to a shard.
    async fn refuse_like_names(&self) -> Result<(), Unavailable> {
        if self.has_written_marker() {
            return Ok(());
        }
        let filter = format!("Meta[\"{}\"] == \"{}\"", meta::MANAGED_BY, meta::LICTOR);
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        let nodes = self.client.get::<Option<Vec<Node>>>(query).await?.value.unwrap_or_default();
        let own = self.identity.cluster.as_str();
        if nodes.iter().any(|node| self.is_ours(node)) {
            return Ok(());
        }
        let others = nodes.iter().filter(|node| term(node) > 0).map(|node| node.meta(meta::CLUSTER));
        match others.into_iter().find(|other| are_alike(own, other)) {
            Some(other) => Err(Unavailable::not_set_up(format!(
                "cluster name {own} cannot be told from {other}, which is already used in this Consul: names of Consul \
                 nodes of the one could be those of the other; set --cluster-name to a name of which neither is the \
                 beginning of the other"
            ))),
            None => Ok(()),
        }
    }

    fn name_taken(&self, node: &Node) -> Unavailable {
        let uid = node.meta(meta::CLUSTER_UID);
        let by =
            if uid.is_empty() { "somebody else's node".to_owned() } else { format!("another cluster (uid {uid})") };
        let or = if uid.is_empty() {
            String::new()
        } else {
            format!(
                ", or if that cluster is gone for good and this one takes its place, run lictor takeover --from-uid={uid}"
            )
        };
        Unavailable::not_set_up(format!(
            "cluster name {} is already used in this Consul by {by}: {} exists; set --cluster-name{or}",
            self.identity.cluster, self.marker
        ))
    }
}

/// Says whether one of two clusters' names begins with the other and a hyphen, as the names of that one's nodes do.
fn are_alike(one: &str, other: &str) -> bool {
    let begins = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('-'));
    begins(one, other) || begins(other, one)
}

pub(super) fn term(node: &Node) -> u64 {
    node.meta(TERM).parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_we_may_have_raised_ourselves_is_nobody_elses() {
        let done = || TxnResult::Done(Vec::new());
        let (conflict, rejected) = (|| TxnResult::Conflict(Vec::new()), || TxnResult::Rejected(String::new()));
        let (lost, not_tried) =
            (|| TxnResult::Unknown(Unavailable::transient("")), || TxnResult::NotTried(Unavailable::transient("")));
        for (raises, found, own) in [
            (vec![(2, lost())], 2, true),
            (vec![(2, lost())], 3, false),
            // The next session raises what it finds.
            (vec![(2, lost()), (3, lost())], 2, true),
            (vec![(2, lost()), (3, lost())], 3, true),
            (vec![(2, lost()), (2, conflict())], 2, true),
            (vec![(2, lost()), (3, not_tried())], 2, true),
            (vec![(2, lost()), (3, not_tried())], 3, false),
            (vec![(2, conflict())], 2, false),
            (vec![(2, rejected())], 2, false),
            (vec![(2, lost()), (3, done())], 4, false),
            (vec![(2, lost()), (3, done())], 3, false),
        ] {
            let terms: Vec<u64> = raises.iter().map(|(term, _)| *term).collect();
            let after =
                raises.iter().fold(RaisedPerhaps::default(), |known, (term, result)| known.after(*term, result));
            assert_eq!(after.includes(found), own, "{terms:?} {found}");
        }
    }

    #[test]
    fn names_are_alike_where_nodes_of_one_could_be_those_of_the_other() {
        for (one, other, alike) in [
            ("lab", "lab-eu", true),
            ("lab-eu", "lab", true),
            ("lab", "lab2", false),
            ("lab-eu", "lab-us", false),
            ("lab", "lab", false),
            ("eu-lab", "lab", false),
        ] {
            assert_eq!(are_alike(one, other), alike, "{one} {other}");
        }
    }
}

//! The Consul nodes of our making: what we know of them, and keeping them in order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::transaction::{Part, Transaction, body};
use super::{Catalog, Recovery, State, TxnResult, unexplained};
use crate::consul::wire::{Check, Node, TxnOp};
use crate::model::ids::{Str, id_prefix};
use crate::model::nodes::node_name;
use crate::model::reasons::OutageKind;
use crate::ports::Unavailable;

/// The time that a node has to have been empty before it is deleted.
const GRACE: Duration = Duration::from_secs(60);

/// The meta pair by which consul-esm finds the nodes whose checks it runs. (With `external-probe` beside it, it would
/// ping the node too, and remove it if it does not answer.)
const EXTERNAL_NODE: &str = "external-node";
const TRUE: &str = "true";

/// A node of our making.
#[derive(Clone, Debug)]
pub(super) struct KnownNode {
    /// As it was when we last saw it.
    pub(super) row: Node,
    /// True if consul-esm is to look at it, as far as is known.
    is_for_esm: Option<bool>,
}

impl State {
    /// Remembers a node of ours. The marker is none that anything is registered on.
    pub(super) fn know(&mut self, marker: &str, name: &Str, node: &Node) {
        if **name != *marker {
            let is_for_esm = self.nodes.get(name).and_then(|known| known.is_for_esm);
            let row = Node { node: Some(name.to_string()), ..node.clone() };
            self.nodes.insert(Arc::clone(name), KnownNode { row, is_for_esm });
        }
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, name: &Str) {
        self.nodes.remove(name);
        self.empty.remove(name);
    }

    /// Notes that somebody else has a node: instances go elsewhere from now on.
    pub(super) fn give_up(&mut self, name: &Str) {
        self.forget(name);
        if !self.taken.contains(name) {
            Arc::make_mut(&mut self.taken).insert(Arc::clone(name));
        }
    }

    /// Notes that nobody else has a node: instances may go there.
    pub(super) fn return_to_us(&mut self, name: &Str) {
        if self.taken.contains(name) {
            Arc::make_mut(&mut self.taken).remove(name);
        }
    }

    /// Notes which nodes somebody else has.
    pub(super) fn set_taken(&mut self, taken: BTreeSet<Str>) {
        if *self.taken != taken {
            self.taken = Arc::new(taken);
        }
    }

    /// Notes that checks for consul-esm were written on a node.
    pub(super) fn note_checks_written(&mut self, name: &Str) {
        if let Some(known) = self.nodes.get_mut(name) {
            known.is_for_esm = Some(true);
        }
    }
}

impl Catalog {
    /// Remembers nodes of ours that Consul has just shown.
    pub(super) fn know_all(&self, nodes: &[Node]) {
        let mut state = self.state();
        for node in nodes {
            if let Some(name) = node.node.as_deref() {
                state.know(&self.marker, &self.own_spelling(name), node);
            }
        }
    }

    /// A node that is not there yet.
    fn new_node(&self, name: &str, address: IpAddr) -> Node {
        Node {
            node: Some(name.to_owned()),
            address: Some(address.to_string()),
            meta: Some(self.node_meta()),
            ..Node::default()
        }
    }

    /// The operation that makes a node, if it is not there, has consul-esm look at it, or marks it as ours again; none
    /// where there is nothing to do.
    pub(super) fn node_for(&self, name: &Str, address: IpAddr, is_for_esm: bool) -> Option<TxnOp<'static>> {
        let known = self.state().nodes.get(name).map(|known| known.row.clone());
        let mut node = match known {
            Some(row) if self.is_ours(&row) && (!is_for_esm || is_external(&row)) => return None,
            Some(row) => self.marked(row),
            None => self.new_node(name, address),
        };
        if is_for_esm {
            set_external(&mut node, true);
        }
        Some(TxnOp::node_cas(node))
    }

    /// A node with our mark on it, beside what others have in its meta.
    fn marked(&self, mut node: Node) -> Node {
        if !self.is_ours(&node) {
            node.meta.get_or_insert_default().extend(self.node_meta());
        }
        node
    }

    /// Notes which checks a node has.
    pub(super) fn note_checks(&self, name: &Str, checks: &[Check]) {
        let is_for_esm = self.is_for_esm(checks);
        if let Some(known) = self.state().nodes.get_mut(name) {
            known.is_for_esm = is_for_esm;
        }
    }

    /// Says whether consul-esm has to look at a node with these checks: where it has checks of ours to run. Where it
    /// has only somebody else's, that is theirs to say.
    fn is_for_esm(&self, checks: &[Check]) -> Option<bool> {
        let prefix = id_prefix(&self.identity.cluster);
        let is_ours = |check: &&Check| {
            check.name().is_some() && check.service_id.as_deref().is_some_and(|id| id.starts_with(&prefix))
        };
        let mut runs = checks.iter().filter(|check| check.is_for_esm()).peekable();
        if runs.peek().is_none() {
            return Some(false);
        }
        runs.any(|check| is_ours(&check)).then_some(true)
    }

    pub(super) async fn tidy_nodes(&self, addresses: &BTreeMap<Str, IpAddr>) -> Result<(), Unavailable> {
        let unsure = self.state().unsure.clone();
        for name in unsure {
            let done = self.look_again(&name).await;
            self.unless_an_outage(&name, done).await?;
        }
        let placement = self.where_to();
        let homes: BTreeMap<Str, IpAddr> =
            addresses.iter().filter_map(|(node, address)| Some((placement.node_for(node)?, *address))).collect();
        self.tell_of_taken(addresses.keys());
        let (changed, for_esm, empty) = {
            let state = self.state();
            let changed: Vec<(Str, Node)> = state
                .nodes
                .iter()
                .filter_map(|(name, known)| {
                    let mut row = self.marked(known.row.clone());
                    if let Some(address) = homes.get(name) {
                        row.address = Some(address.to_string());
                    }
                    (row != known.row).then(|| (Arc::clone(name), row))
                })
                .collect();
            let is_other = |known: &KnownNode| known.is_for_esm.is_some_and(|it| it != is_external(&known.row));
            let for_esm: Vec<Str> =
                state.nodes.iter().filter(|(_, known)| is_other(known)).map(|(name, _)| Arc::clone(name)).collect();
            let empty: Vec<Str> = state.empty.keys().cloned().collect();
            (changed, for_esm, empty)
        };
        for (name, row) in changed {
            let done = self.change_node(&name, &TxnOp::node_cas(row)).await;
            self.unless_an_outage(&name, done).await?;
        }
        for name in for_esm {
            let done = self.point_esm(&name).await;
            self.unless_an_outage(&name, done).await?;
        }
        for name in empty {
            let done = self.consider_empty(&name).await;
            self.unless_an_outage(&name, done).await?;
        }
        Ok(())
    }

    /// Goes on with the next node where just this one fails; what is left of it is for the next resync.
    async fn unless_an_outage(&self, name: &Str, done: Result<(), Unavailable>) -> Result<(), Unavailable> {
        let Err(outage) = done else { return Ok(()) };
        if outage.session_lost {
            return Err(outage);
        }
        self.transact_nothing().await?;
        tracing::warn!(node = %name, %outage, "cannot update a Consul node; the next resync tries again");
        Ok(())
    }

    /// Reads a node whose last change failed. The resync does not: if the change did not reach Consul, nothing has changed there,
    /// and what was known of the node is forgotten.
    async fn look_again(&self, name: &Str) -> Result<(), Unavailable> {
        let _alone = self.deleting.write().await;
        self.rows_on(name).await?;
        self.state().unsure.remove(name);
        Ok(())
    }

    /// Says once of each Kubernetes node that somebody else has its node in Consul.
    fn tell_of_taken<'a>(&self, kubernetes_nodes: impl Iterator<Item = &'a Str>) {
        let mut state = self.state();
        for kubernetes_node in kubernetes_nodes {
            let name = node_name(&self.identity.cluster, kubernetes_node);
            if !state.taken.contains(&name) {
                state.told.remove(kubernetes_node);
            } else if state.told.insert(Arc::clone(kubernetes_node)) {
                tracing::warn!(
                    node = %name,
                    %kubernetes_node,
                    "the Consul node of this name belongs to a Consul agent or to somebody else; Lictor registers the instances of \
                     the Kubernetes node on shared nodes"
                );
            }
        }
    }

    /// Has consul-esm look at a node from now on, or no more, after its checks.
    async fn point_esm(&self, name: &Str) -> Result<(), Unavailable> {
        let _alone = self.deleting.write().await;
        let (found, checks) = self.read_services(name).await?;
        let Some(mut node) = found.node.filter(|node| self.is_ours(node)) else {
            self.forget(name);
            return Ok(());
        };
        self.state().know(&self.marker, name, &node);
        self.note_checks(name, &checks);
        let Some(is_for_esm) = self.is_for_esm(&checks).filter(|it| *it != is_external(&node)) else { return Ok(()) };
        set_external(&mut node, is_for_esm);
        self.change_node(name, &TxnOp::node_cas(node)).await
    }

    /// Deletes a node if it has been empty for long enough.
    async fn consider_empty(&self, name: &Str) -> Result<(), Unavailable> {
        let found = self.node_services(name).await?;
        let due = {
            let mut state = self.state();
            if found.services.is_some_and(|services| !services.is_empty()) {
                state.empty.remove(name);
                return Ok(());
            }
            // A bundle may have put something there since.
            match state.empty.entry(Arc::clone(name)) {
                Entry::Occupied(mut since) => since.get_mut().get_or_insert_with(Instant::now).elapsed() >= GRACE,
                Entry::Vacant(_) => false,
            }
        };
        if due { self.delete_if_empty(name).await } else { Ok(()) }
    }

    /// Deletes all nodes of our making that nobody has anything on, and with the last of them the marker.
    pub(super) async fn dismantle_nodes(&self) -> Result<(), Unavailable> {
        // One whose mark was overwritten is ours to delete once it is marked again.
        self.tidy_nodes(&BTreeMap::new()).await?;
        let names: Vec<Str> = self.state().nodes.keys().cloned().collect();
        for name in names {
            self.delete_if_empty(&name).await?;
        }
        // Whoever has something left on one of them keeps all of it standing.
        self.read_rows().await?;
        if !self.state().nodes.is_empty() {
            return Ok(());
        }
        let Some(marker) = self.find_marker().await? else { return Ok(()) };
        if self.node_services(&self.marker).await?.services.is_some_and(|services| !services.is_empty()) {
            return Ok(());
        }
        let name = Str::from(&*self.marker);
        self.change_node(&name, &TxnOp::node_delete(&name, marker.modify_index.unwrap_or_default())).await
    }

    async fn delete_if_empty(&self, name: &Str) -> Result<(), Unavailable> {
        let _alone = self.deleting.write().await;
        let found = self.node_services(name).await?;
        let is_empty = found.services.is_none_or(|services| services.is_empty());
        match found.node {
            Some(node) if is_empty && self.is_ours(&node) => {
                let change = TxnOp::node_delete(name, node.modify_index.unwrap_or_default());
                // Whatever comes of it: what is there is found out when it is needed.
                self.forget(name);
                self.change_node(name, &change).await
            }
            Some(_) => {
                self.state().empty.remove(name);
                Ok(())
            }
            None => {
                self.forget(name);
                Ok(())
            }
        }
    }

    fn forget(&self, name: &Str) {
        self.state().forget(name);
    }

    /// Writes a change to a node. One that Consul refuses is left for the next time: nobody waits for it.
    async fn change_node(&self, name: &Str, change: &TxnOp<'_>) -> Result<(), Unavailable> {
        self.state().unsure.insert(Arc::clone(name));
        let fence = self.current_fence().await?;
        let mut transaction = Transaction::new();
        transaction.make_node(change);
        let parts = transaction.parts();
        match self.transact(body(&self.fence_op(fence), [&transaction])).await {
            TxnResult::Done(nodes) => {
                self.know_all(&nodes);
                self.state().unsure.remove(name);
                Ok(())
            }
            TxnResult::NotTried(outage) => Err(outage),
            TxnResult::Unknown(outage) => {
                self.doubt(fence);
                self.forget(name);
                Err(outage)
            }
            TxnResult::Rejected(words) => Err(Unavailable::said(OutageKind::Refused, &words)),
            TxnResult::Conflict(errors) => {
                if let Some(error) = errors.iter().find(|error| parts.part(error.op_index) == Some(Part::Fence)) {
                    return match self.fence_failed(fence, error.fault, &error.what).await {
                        Recovery::Stop(outage) => Err(outage),
                        Recovery::Again | Recovery::Blame(_) | Recovery::NoNode(_) | Recovery::Split(_) => Ok(()),
                    };
                }
                tracing::warn!(node = %name, words = %unexplained(&errors), "Consul refuses a change of a Consul node of this cluster");
                self.forget(name);
                Ok(())
            }
        }
    }
}

/// Says whether consul-esm looks at a node.
fn is_external(node: &Node) -> bool {
    node.meta(EXTERNAL_NODE) == TRUE
}

/// Has consul-esm look at a node, or not; nothing else of it changes.
fn set_external(node: &mut Node, is_for_esm: bool) {
    let meta = node.meta.get_or_insert_default();
    if is_for_esm {
        meta.insert(EXTERNAL_NODE.to_owned(), TRUE.to_owned());
    } else {
        meta.remove(EXTERNAL_NODE);
    }
}

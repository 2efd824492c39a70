//! Reading what the catalog holds of ours.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream, try_join};

use super::transaction::SeenChecks;
use super::{Catalog, State};
use crate::consul::client::path;
use crate::consul::wire::{By, Check, Healths, Node, NodeServices, Pool};
use crate::model::ids::{Str, id_prefix, meta};
use crate::model::nodes::{NodeMark, NodeOwner, node_prefix};
use crate::model::registration::{Ownership, Row, RowKey};
use crate::ports::{Rows, Unavailable};

/// The most nodes that are read at once.
const READS: usize = 8;

impl Catalog {
    pub(super) async fn rows(&self) -> Result<Rows, Unavailable> {
        self.confirm_standing().await?;
        self.read_rows().await
    }

    /// Reads the rows on all nodes that carry our mark or have a name like ours. A plain registration of somebody else
    /// empties a node's meta, so that the mark alone does not find them all.
    pub(super) async fn read_rows(&self) -> Result<Rows, Unavailable> {
        let cluster = &self.identity.cluster;
        let filter =
            format!("Meta[\"{}\"] == \"{cluster}\" or Node matches \"(?i)^{}\"", meta::CLUSTER, node_prefix(cluster));
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        let found: Option<Vec<Node>> = self.client.get(query).await?.value;
        let (mut marked, mut unmarked, mut taken) = (Vec::new(), Vec::new(), vec![Str::from(&*self.marker)]);
        for node in found.into_iter().flatten() {
            let Some(name) = node.node.as_deref().map(|name| self.own_spelling(name)) else { continue };
            match self.mark(&node) {
                _ if *name == *self.marker => {}
                NodeMark::Ours => marked.push((name, node)),
                NodeMark::None => unmarked.push(name),
                NodeMark::Others => taken.push(name),
            }
        }
        {
            // What was made since the list was is not in it: it is found again when it is needed.
            let mut state = self.state();
            state.nodes.clear();
            for (name, node) in &marked {
                state.know(&self.marker, name, node);
            }
            let State { nodes, empty, .. } = &mut *state;
            empty.retain(|node, _| nodes.contains_key(node));
        }
        let marked = marked.into_iter().map(|(name, _)| (name, true));
        let unmarked = unmarked.into_iter().map(|name| (name, false));
        let mut reads = stream::iter(marked.chain(unmarked))
            .map(|(name, is_marked)| async move {
                // Most of those without a mark have nothing to do with us.
                if is_marked || self.has_our_ids(&name).await? {
                    self.read_services(&name).await.map(|found| (name, Some(found)))
                } else {
                    Ok((name, None))
                }
            })
            .buffered(READS);
        let (mut rows, mut pool) = (Rows::new(), Pool::default());
        while let Some((name, found)) = reads.try_next().await? {
            let owner = match found {
                Some((found, checks)) => self.collect(&name, found, checks, &mut pool, &mut rows),
                None => Some(NodeOwner::Others),
            };
            if owner.is_some_and(|owner| !owner.is_ours()) {
                taken.push(name);
            }
        }
        let taken = taken.into_iter().collect();
        let mut state = self.state();
        if *state.taken != taken {
            state.taken = Arc::new(taken);
        }
        Ok(rows)
    }

    pub(super) async fn rows_of(&self, node: &Str) -> Result<Rows, Unavailable> {
        self.confirm_standing().await?;
        let (services, checks) = self.read_services(node).await?;
        let mut rows = Rows::new();
        let owner = self.collect(node, services, checks, &mut Pool::default(), &mut rows);
        if owner.is_some_and(|owner| !owner.is_ours()) {
            self.state().give_up(node);
        }
        Ok(rows)
    }

    /// A node's name as we write it: Consul compares names without case, and shows them as who wrote last did.
    pub(super) fn own_spelling(&self, name: &str) -> Str {
        let lower = name.to_lowercase();
        if lower.starts_with(&node_prefix(&self.identity.cluster)) { lower.into() } else { name.into() }
    }

    /// Says whether a row with an ID like ours is on a node.
    async fn has_our_ids(&self, node: &str) -> Result<bool, Unavailable> {
        let filter = format!("ID matches \"^{}\"", id_prefix(&self.identity.cluster));
        let query = path(&["catalog", "node-services", node], &[("consistent", ""), ("filter", &filter)]);
        let found: NodeServices = self.client.get(query).await?.value;
        Ok(found.services.is_some_and(|services| !services.is_empty()))
    }

    pub(super) async fn read_services(&self, node: &str) -> Result<(NodeServices, Vec<Check>), Unavailable> {
        try_join!(self.node_services(node), self.read_checks(node))
    }

    async fn read_checks(&self, node: &str) -> Result<Vec<Check>, Unavailable> {
        let path = path(&["health", "node", node], &[("consistent", "")]);
        Ok(self.client.get::<Option<Vec<Check>>>(path).await?.value.unwrap_or_default())
    }

    pub(super) async fn seen_checks(&self, node: &str) -> Result<SeenChecks, Unavailable> {
        let checks = self.read_checks(node).await?;
        Ok(checks.into_iter().filter_map(|check| Some((check.id.clone()?, check))).collect())
    }

    /// Picks out what has an ID or a mark of ours, and answers whose the node is, if it is there.
    fn collect(
        &self,
        node: &Str,
        found: NodeServices,
        checks: Vec<Check>,
        pool: &mut Pool,
        rows: &mut Rows,
    ) -> Option<NodeOwner> {
        let services = found.services.unwrap_or_default();
        let owner = found.node.as_ref().map(|node| self.owner(node, &services, &checks));
        {
            let mut state = self.state();
            match (found.node, owner) {
                (Some(row), Some(NodeOwner::OursUnmarked)) => state.know(&self.marker, node, &row),
                (_, Some(NodeOwner::Agent | NodeOwner::Others)) => state.forget(node),
                _ => {}
            }
            if services.is_empty() && state.nodes.contains_key(node) {
                state.empty.entry(Arc::clone(node)).or_default();
            }
        }
        self.note_checks(node, &checks);
        // On a node of ours nobody else makes rows with our IDs: another mark on one was put there by hand.
        let known = owner.is_some_and(NodeOwner::is_ours);
        let healths = Healths::new(checks);
        let prefix = id_prefix(&self.identity.cluster);
        for service in services {
            let Some(id) = service.id.as_deref().filter(|id| !id.is_empty()) else { continue };
            if !id.starts_with(&prefix) && !service.has_meta(meta::CLUSTER, self.identity.cluster.as_str()) {
                continue;
            }
            let registration = service.registration(By::Catalog, &healths, pool);
            let row = Row {
                ownership: Ownership::of(&self.identity, id, &registration.meta, known),
                health: healths.worst(id),
                registration: Arc::new(registration),
                shown: true,
            };
            rows.insert(RowKey { node: Arc::clone(node), id: id.into() }, row);
        }
        owner
    }
}

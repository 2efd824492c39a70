//! Reading what the catalog holds of ours.

use std::collections::{BTreeMap, BTreeSet};
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

/// The answer to a read of one node.
enum Look {
    /// Its services and checks.
    Read(NodeServices, Vec<Check>),
    /// It is there, and neither it nor anything on it is ours.
    Others,
}

impl Catalog {
    pub(super) async fn rows(&self) -> Result<Rows, Unavailable> {
        self.confirm_standing().await?;
        self.read_rows().await
    }

    /// Reads the rows on all nodes that may have some.
    pub(super) async fn read_rows(&self) -> Result<Rows, Unavailable> {
        let mut reads =
            stream::iter(self.list_nodes().await?).map(|node| async move { self.rows_on(&node).await }).buffered(READS);
        let mut rows = Rows::new();
        while let Some(found) = reads.try_next().await? {
            rows.extend(found);
        }
        Ok(rows)
    }

    /// Names all nodes that carry our mark or have a name like ours. A plain registration of somebody else empties a
    /// node's meta, so that the mark alone does not find them all.
    pub(super) async fn list_nodes(&self) -> Result<BTreeSet<Str>, Unavailable> {
        let cluster = &self.identity.cluster;
        let filter =
            format!("Meta[\"{}\"] == \"{cluster}\" or Node matches \"(?i)^{}\"", meta::CLUSTER, node_prefix(cluster));
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        let found: Option<Vec<Node>> = self.client.get(query).await?.value;
        let (mut marked, mut unmarked) = (BTreeMap::new(), Vec::new());
        let mut taken = BTreeSet::from([Str::from(&*self.marker)]);
        for node in found.into_iter().flatten() {
            let Some(name) = node.node.as_deref().map(|name| self.own_spelling(name)) else { continue };
            match self.mark(&node) {
                _ if *name == *self.marker => {}
                NodeMark::Ours => _ = marked.insert(name, node),
                NodeMark::None => unmarked.push(name),
                NodeMark::Others => _ = taken.insert(name),
            }
        }
        let names: BTreeSet<Str> = marked.keys().chain(&unmarked).cloned().collect();
        let mut state = self.state();
        // What was made since the list was is not in it: it is found again when it is needed.
        state.nodes.retain(|name, _| marked.contains_key(name));
        for (name, node) in &marked {
            state.know(&self.marker, name, node);
        }
        let State { nodes, empty, .. } = &mut *state;
        empty.retain(|node, _| nodes.contains_key(node));
        // Whose the others are, only a look at what is on them tells.
        taken.extend(state.taken.iter().filter(|name| names.contains(*name)).cloned());
        state.set_taken(taken);
        Ok(names)
    }

    pub(super) async fn rows_of(&self, node: &Str) -> Result<Rows, Unavailable> {
        self.confirm_standing().await?;
        self.rows_on(node).await
    }

    /// Reads the rows on a node, and notes whose it is.
    pub(super) async fn rows_on(&self, node: &Str) -> Result<Rows, Unavailable> {
        let mut rows = Rows::new();
        let owner = match self.look_at(node).await? {
            Look::Read(found, checks) => self.collect(node, found, checks, &mut Pool::default(), &mut rows),
            Look::Others => Some(NodeOwner::Others),
        };
        let mut state = self.state();
        match owner {
            None => {
                state.forget(node);
                state.return_to_us(node);
            }
            Some(owner) if owner.is_ours() => state.return_to_us(node),
            Some(_) => state.give_up(node),
        }
        Ok(rows)
    }

    /// Reads a node, unless it has neither our mark nor anything of ours: most of those have nothing to do with us, and
    /// may be large.
    async fn look_at(&self, name: &Str) -> Result<Look, Unavailable> {
        if !self.state().nodes.contains_key(name) {
            let filter = format!("ID matches \"^{}\"", id_prefix(&self.identity.cluster));
            let query = path(&["catalog", "node-services", name], &[("consistent", ""), ("filter", &filter)]);
            let found: NodeServices = self.client.get(query).await?.value;
            let has_ours = found.services.as_ref().is_some_and(|services| !services.is_empty());
            if found.node.as_ref().is_some_and(|node| !self.is_ours(node)) && !has_ours {
                return Ok(Look::Others);
            }
        }
        let (found, checks) = self.read_services(name).await?;
        Ok(Look::Read(found, checks))
    }

    /// A node's name as we write it: Consul compares names without case, and shows them as who wrote last did.
    pub(super) fn own_spelling(&self, name: &str) -> Str {
        let lower = name.to_lowercase();
        if lower.starts_with(&node_prefix(&self.identity.cluster)) { lower.into() } else { name.into() }
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
                (Some(row), Some(NodeOwner::Ours | NodeOwner::OursUnmarked)) => state.know(&self.marker, node, &row),
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

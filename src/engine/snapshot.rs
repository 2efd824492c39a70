//! How things stand, for `/readyz` and `/metrics`.

use std::time::Duration;

use super::Engine;
use crate::model::health::Health;
use crate::model::registration::Ownership;

/// How things stand at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The reason why Lictor is not ready; none if it is: all watches synced, and Consul answers.
    pub not_ready: Option<String>,
    /// True if this replica is the one that acts.
    pub leads: bool,
    /// The number of resources that are watched.
    pub resources: usize,
    /// The number of instances that of this cluster pass in Consul.
    pub passing: usize,
    /// The number of them that have a check that warns.
    pub warning: usize,
    /// The number of them that have a check that fails.
    pub critical: usize,
    /// The number of resources that are to be reconciled.
    pub dirty: usize,
    /// The number of writes that wait or are under way.
    pub outstanding: usize,
    /// The number of instances that Consul refuses.
    pub refused: usize,
    /// The number of Consul nodes that could not be read at the last tries, while others could.
    pub unread_nodes: usize,
    /// The number of instances of this cluster that another Consul agent holds.
    pub elsewhere: usize,
    /// The number of resources that have removals that wait for Kubernetes to confirm them.
    pub held: usize,
    /// The number of instances that stopped being ready at once with most others, while their endpoints stay.
    pub mass_unready: usize,
    /// The same in a sentence; none where that is not so.
    pub mass_unready_message: Option<String>,
    /// The time since everything of this cluster was last read from Consul; none before the first time.
    pub resync_age: Option<Duration>,
}

impl Engine {
    /// Takes a snapshot. It walks resources, and no instances but those that another agent holds.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            not_ready: self.not_ready(),
            leads: self.leads(),
            resources: self.world.entries().filter(|entry| entry.resource.ours).count(),
            passing: self.mirror.count(Health::Passing),
            warning: self.mirror.count(Health::Warning),
            critical: self.mirror.count(Health::Critical),
            dirty: self.resources.dirty_len(),
            outstanding: self.lanes.len(),
            refused: self.resources.refused_len(),
            unread_nodes: self.resync.failing_len(),
            elsewhere: self.elsewhere(),
            held: self.removals.len(),
            mass_unready: self.unready.len(),
            mass_unready_message: self.mass_unready_message(),
            resync_age: self.resync.age(),
        }
    }

    /// Counts the instances that another agent holds that are for this Lictor to take away.
    fn elsewhere(&self) -> usize {
        let Some(placement) = self.session.placement() else { return 0 };
        let others = self.mirror.nodes().filter(|node| placement.is_another_agent(node));
        let rows = others.flat_map(|node| self.mirror.on_node(node));
        rows.filter(|(_, row)| match &row.ownership {
            Ownership::Ours(owner) => {
                self.world.watches(&owner.namespace)
                    && self.world.resource(owner).is_none_or(|entry| entry.resource.ours)
            }
            Ownership::Unowned | Ownership::Other(_) => false,
        })
        .count()
    }

    fn not_ready(&self) -> Option<String> {
        if !self.world.is_synced() {
            return Some("not all watches have completed their first list".to_owned());
        }
        if let Some(outage) = self.session.outage() {
            return Some(format!("Consul: {outage}"));
        }
        // One that stands by knows Kubernetes, and that is all it needs.
        let is_ready = self.session.is_ready() || !self.leads();
        (!is_ready).then(|| "Consul's registrations have not been read yet".to_owned())
    }
}

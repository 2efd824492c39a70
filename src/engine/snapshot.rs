//! How things stand, for `/readyz` and `/metrics`.

use std::time::Duration;

use super::Engine;
use crate::model::health::Health;
use crate::model::registration::Ownership;

/// How things stand at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Why Lictor is not ready; none if it is: all watches synced, and Consul answers.
    pub not_ready: Option<String>,
    /// Whether this replica is the one that acts.
    pub leads: bool,
    /// How many resources are watched.
    pub resources: usize,
    /// How many instances of this cluster pass in Consul.
    pub passing: usize,
    /// How many of them have a check that warns.
    pub warning: usize,
    /// How many of them have a check that fails.
    pub critical: usize,
    /// How many resources are to be reconciled.
    pub dirty: usize,
    /// How many writes wait or are under way.
    pub outstanding: usize,
    /// How many instances Consul refuses.
    pub refused: usize,
    /// How many instances of this cluster another Consul agent holds.
    pub elsewhere: usize,
    /// How many resources have removals that wait for Kubernetes to confirm them.
    pub held: usize,
    /// How many instances stopped being ready at once with most others, while their endpoints stay.
    pub mass_unready: usize,
    /// The same in a sentence; none where that is not so.
    pub mass_unready_message: Option<String>,
    /// How long ago everything of this cluster was last read from Consul; none before the first time.
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
            elsewhere: self.elsewhere(),
            held: self.removals.len(),
            mass_unready: self.unready.len(),
            mass_unready_message: self.mass_unready_message(),
            resync_age: self.session.since_resync(),
        }
    }

    /// How many instances another agent holds that are for this Lictor to take away.
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

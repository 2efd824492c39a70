//! How things stand, for `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Engine;
use crate::model::health::Health;
use crate::model::ids::{PREVIOUS, Str};
use crate::model::reasons::OutageKind;
use crate::model::registration::Ownership;
use crate::model::status::{ConditionKind, Status, Truth};

/// The state of the engine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The reason why Lictor is not ready; none if it is: all watches synced, and Consul answers.
    pub not_ready: Option<String>,
    /// True if this replica is the one that acts.
    pub leads: bool,
    /// The kind of Consul's outage, where that alone keeps this replica from being ready.
    pub outage: Option<OutageKind>,
    /// The number of resources with instances that stay as they are, since the name is another namespace's.
    pub frozen_by_name: usize,
    /// The number of resources with instances that stay as they are, since the spec is refused and no earlier one is known.
    pub frozen_by_spec: usize,
    /// The number of resources that are watched, by the status and the reason of their condition `Ready`.
    pub resources: BTreeMap<(&'static str, String), usize>,
    /// True if Consul refuses instances of many resources, and not of one namespace alone.
    pub refused_widely: bool,
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
    /// Counts the instances of ours that are left at the previous place.
    pub left_behind: usize,
    /// The number of resources that have removals that wait for Kubernetes to confirm them.
    pub held: usize,
    /// The number of instances that stopped being ready at once with most others, while their endpoints stay.
    pub mass_unready: usize,
    /// Says the same in a sentence; none where that is not so.
    pub mass_unready_message: Option<String>,
    /// True if the policy asks for the names that others have in Consul, and Consul does not tell them.
    pub others_unknown: bool,
    /// The time since everything of this cluster was last read from Consul; none before the first time.
    pub resync_age: Option<Duration>,
}

impl Snapshot {
    /// Says whether Consul refuses requests as a whole: it does not know the token, or the token lacks a permission.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.outage == Some(OutageKind::Refused)
    }
}

impl Engine {
    /// Takes a snapshot. It walks resources, and no instances but those that another agent holds.
    pub(super) fn snapshot(&self) -> Snapshot {
        let frozen = self.world.frozen();
        Snapshot {
            not_ready: self.not_ready(),
            leads: self.leads(),
            outage: self.session.outage_kind().filter(|_| self.world.is_synced()),
            frozen_by_name: frozen.by_name,
            frozen_by_spec: frozen.by_spec,
            resources: self.resources_by_ready(),
            refused_widely: self.is_refused_widely(),
            passing: self.mirror.count(Health::Passing),
            warning: self.mirror.count(Health::Warning),
            critical: self.mirror.count(Health::Critical),
            dirty: self.resources.dirty_len(),
            outstanding: self.lanes.len(),
            refused: self.resources.refused_len(),
            unread_nodes: self.resync.failing_len(),
            elsewhere: self.elsewhere(),
            left_behind: self.left_behind(),
            held: self.removals.len(),
            mass_unready: self.unready.len(),
            mass_unready_message: self.mass_unready_message(),
            others_unknown: self.session.is_ready() && self.world.lacks_others(),
            resync_age: self.resync.age(),
        }
    }

    /// Counts the resources by what Kubernetes shows of their condition `Ready`.
    fn resources_by_ready(&self) -> BTreeMap<(&'static str, String), usize> {
        let ours = self.world.entries().filter(|entry| entry.resource.ours);
        count_by_ready(ours.map(|entry| &*entry.resource.status))
    }

    fn is_refused_widely(&self) -> bool {
        let ours = self.world.entries().map(|entry| &entry.resource).filter(|resource| resource.ours);
        is_wide(ours.map(|resource| (&resource.key.namespace, ready(&resource.status).1 == REFUSED)))
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

    /// Counts the instances of ours that are left at the previous place.
    fn left_behind(&self) -> usize {
        let nodes = self.mirror.nodes().filter(|node| node.starts_with(PREVIOUS));
        nodes.flat_map(|node| self.mirror.on_node(node)).filter(|(_, row)| row.is_ours()).count()
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

/// The most pairs of status and reason that are told apart. Lictor writes fewer reasons than that. Who may write a status
/// could invent any number, and each would be a time series.
const MOST_REASONS: usize = 64;

/// The reason of a resource of which Consul refuses instances.
const REFUSED: &str = "Refused";

/// The reason that stands for all others.
const OTHER: &str = "Other";

/// Says whether resources are refused far and wide, given the namespace of each, and whether it is refused: more than one in
/// five, both of all and of those of two namespaces, or of the only one that there is.
fn is_wide<'a>(resources: impl Iterator<Item = (&'a Str, bool)>) -> bool {
    let mut by_namespace: BTreeMap<&Str, (usize, usize)> = BTreeMap::new();
    for (namespace, is_refused) in resources {
        let (refused, all) = by_namespace.entry(namespace).or_default();
        (*refused, *all) = (*refused + usize::from(is_refused), *all + 1);
    }
    let is_much = |refused: usize, all: usize| refused * 5 > all;
    let (refused, all) = by_namespace.values().fold((0, 0), |(refused, all), of| (refused + of.0, all + of.1));
    let concerned = by_namespace.values().filter(|(refused, all)| is_much(*refused, *all)).count();
    is_much(refused, all) && concerned >= by_namespace.len().min(2)
}

/// Counts statuses by their condition `Ready`.
fn count_by_ready<'a>(statuses: impl Iterator<Item = &'a Status>) -> BTreeMap<(&'static str, String), usize> {
    let mut counts = BTreeMap::new();
    for status in statuses {
        let (ready, reason) = ready(status);
        let mut pair = (ready, reason.to_owned());
        if counts.len() >= MOST_REASONS && !counts.contains_key(&pair) {
            OTHER.clone_into(&mut pair.1);
        }
        *counts.entry(pair).or_insert(0) += 1;
    }
    counts
}

/// The status and the reason of the condition `Ready`.
fn ready(status: &Status) -> (&'static str, &str) {
    let ready = status.condition(ConditionKind::Ready);
    ready.map_or((Truth::Unknown.as_str(), "NotReported"), |ready| (ready.truth.as_str(), &ready.reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::Condition;

    #[test]
    fn a_resource_counts_by_its_condition_ready() {
        let condition = |kind, truth, reason: &str| Condition {
            kind,
            truth,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: 1,
        };
        let mut status = Status::default();
        assert_eq!(ready(&status), ("Unknown", "NotReported"));
        status.conditions.push(condition(ConditionKind::Accepted, Truth::True, "Accepted"));
        assert_eq!(ready(&status), ("Unknown", "NotReported"));
        status.conditions.push(condition(ConditionKind::Ready, Truth::False, "Refused"));
        assert_eq!(ready(&status), ("False", "Refused"));
    }

    #[test]
    fn refusals_of_one_namespace_are_its_own_affair() {
        for (case, of, expected) in [
            ("no resources", &[][..], false),
            ("the only namespace", &[("shop", 2, 9)], true),
            ("one in five", &[("shop", 2, 10)], false),
            ("one of two", &[("shop", 20, 20), ("lab", 0, 30)], false),
            ("few of the other", &[("shop", 20, 20), ("lab", 6, 30)], false),
            ("many of both", &[("shop", 20, 20), ("lab", 7, 30)], true),
            ("few of all", &[("shop", 1, 1), ("lab", 1, 1), ("pay", 0, 8)], false),
            ("many of all", &[("shop", 1, 1), ("lab", 1, 1), ("pay", 0, 7)], true),
        ] {
            let resources = of.iter().flat_map(|(namespace, refused, all)| {
                (0..*all).map(move |number| (Str::from(*namespace), number < *refused))
            });
            let resources: Vec<(Str, bool)> = resources.collect();
            assert_eq!(is_wide(resources.iter().map(|(namespace, refused)| (namespace, *refused))), expected, "{case}");
        }
    }

    #[test]
    fn invented_reasons_are_counted_together() {
        let status = |number: usize| Status {
            conditions: vec![Condition {
                kind: ConditionKind::Ready,
                truth: Truth::False,
                reason: format!("Reason{number}"),
                message: String::new(),
                observed_generation: 1,
            }],
            ..Status::default()
        };
        let statuses: Vec<Status> = (0..1_000).chain(0..3).map(status).collect();
        let counts = count_by_ready(statuses.iter());
        assert_eq!(counts.values().sum::<usize>(), statuses.len());
        assert_eq!(counts.len(), MOST_REASONS + 1);
        assert_eq!(counts[&("False", "Reason0".to_owned())], 2);
        assert_eq!(counts[&("False", OTHER.to_owned())], 1_000 - MOST_REASONS);
    }
}

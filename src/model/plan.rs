//! The writes that wait for their turn: one queue for each Consul node, in which later writes for an instance
//! replace earlier ones, cut into bundles that fit a transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::diff::Op;
use super::isolation::Isolation;
use super::names::{ResourceKey, Str};
use super::registration::{Registration, RowKey};

/// An operation that waits, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The resource.
    pub owner: ResourceKey,
    /// What to write.
    pub op: Op,
}

/// The most instances in one bundle: Consul takes 128 operations in a transaction, of which two fence it and
/// hold its node, and an instance takes up to two (itself and its readiness check).
pub const BUNDLE_INSTANCES: usize = 60;

/// The most bytes in one bundle, by estimate: half of Consul's default limit of 512 KiB for a transaction.
pub const BUNDLE_BYTES: usize = 256 * 1024;

/// All writes that wait.
#[derive(Debug, Default)]
pub struct Plan {
    lanes: BTreeMap<Str, Lane>,
    by_owner: BTreeMap<ResourceKey, BTreeSet<RowKey>>,
}

/// One node's writes, in the order of their sequence.
#[derive(Debug, Default)]
struct Lane {
    order: BTreeMap<u64, Planned>,
    next: u64,
    place: BTreeMap<Str, u64>,
}

impl Plan {
    /// Puts `ops` in place of everything that waits for `owner`.
    pub fn replace(&mut self, owner: &ResourceKey, ops: Vec<Op>) {
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            self.drop_op(&key);
        }
        let mut keys = BTreeSet::new();
        for op in ops {
            let key = op.key().clone();
            if let Some(previous) = self.drop_op(&key)
                && let Some(theirs) = self.by_owner.get_mut(&previous.owner)
            {
                theirs.remove(&key);
            }
            let lane = self.lanes.entry(key.node.clone()).or_default();
            lane.place.insert(key.id.clone(), lane.next);
            lane.order.insert(lane.next, Planned { owner: owner.clone(), op });
            lane.next += 1;
            keys.insert(key);
        }
        if !keys.is_empty() {
            self.by_owner.insert(owner.clone(), keys);
        }
    }

    /// Takes the next bundle for a node: as many of its oldest writes as fit, at least one. Those that have failed while
    /// others passed go after all others, and in bundles as small as `isolation` says.
    pub fn take(&mut self, node: &str, most: usize, isolation: &Isolation) -> Vec<Planned> {
        let Some(lane) = self.lanes.get_mut(node) else { return Vec::new() };
        let failed = lane.order.values().all(|planned| isolation.together(&planned.op).is_some());
        let (mut most, mut bytes, mut places) = (most, 0, Vec::new());
        for (place, Planned { op, .. }) in &lane.order {
            let together = isolation.together(op);
            if together.is_some() != failed {
                continue;
            }
            let fewest = most.min(together.unwrap_or(most));
            let size = estimate(op);
            if !places.is_empty() && (places.len() >= fewest || bytes + size > BUNDLE_BYTES) {
                break;
            }
            (most, bytes) = (fewest, bytes + size);
            places.push(*place);
        }
        let mut bundle = Vec::with_capacity(places.len());
        for place in places {
            let Some(planned) = lane.order.remove(&place) else { continue };
            lane.place.remove(&planned.op.key().id);
            if let Some(keys) = self.by_owner.get_mut(&planned.owner) {
                keys.remove(planned.op.key());
                if keys.is_empty() {
                    self.by_owner.remove(&planned.owner);
                }
            }
            bundle.push(planned);
        }
        if lane.order.is_empty() {
            self.lanes.remove(node);
        }
        bundle
    }

    /// The nodes that have writes waiting.
    pub fn nodes(&self) -> impl Iterator<Item = &Str> {
        self.lanes.keys()
    }

    /// Likewise, those that come after `node`.
    pub fn nodes_after(&self, node: Option<&Str>) -> impl Iterator<Item = &Str> {
        let after = node.map_or(Bound::Unbounded, Bound::Excluded);
        self.lanes.range::<Str, _>((after, Bound::Unbounded)).map(|(node, _)| node)
    }

    /// Whether writes for a node wait.
    #[must_use]
    pub fn has_node(&self, node: &str) -> bool {
        self.lanes.contains_key(node)
    }

    /// Whether a write for an instance waits.
    #[must_use]
    pub fn has_row(&self, row: &RowKey) -> bool {
        self.lanes.get(&row.node).is_some_and(|lane| lane.place.contains_key(&row.id))
    }

    /// Whether writes of a resource wait.
    #[must_use]
    pub fn has(&self, owner: &ResourceKey) -> bool {
        self.by_owner.contains_key(owner)
    }

    /// How many writes wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.order.len()).sum()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn drop_op(&mut self, key: &RowKey) -> Option<Planned> {
        let lane = self.lanes.get_mut(&key.node)?;
        let planned = lane.place.remove(&key.id).and_then(|place| lane.order.remove(&place));
        if lane.order.is_empty() {
            self.lanes.remove(&key.node);
        }
        planned
    }
}

/// About how many bytes an operation takes in a request, base64 and JSON included; on the high side.
fn estimate(op: &Op) -> usize {
    let of = |registration: &Registration| {
        let tags: usize = registration.tags.iter().map(|tag| tag.len() + 3).sum();
        let meta: usize = registration.meta.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
        let tagged: usize = registration.tagged_addresses.iter().map(|(k, v)| k.len() + v.address.len() + 40).sum();
        registration.service.len() * 2 + tags * 2 + meta + tagged
    };
    600 + 4 * op.key().id.len() + op.registration().map_or(0, |registration| of(registration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove(node: &str, id: &str) -> Op {
        Op::Remove { key: RowKey { node: node.into(), id: id.into() }, service: "s".into() }
    }

    fn ids(bundle: &[Planned]) -> Vec<&str> {
        bundle.iter().map(|planned| &*planned.op.key().id).collect()
    }

    #[test]
    fn a_newer_plan_replaces_what_waits_and_keeps_the_rest() {
        let (a, b) = (ResourceKey::new("ns", "a"), ResourceKey::new("ns", "b"));
        let mut plan = Plan::default();
        plan.replace(&a, vec![remove("n", "1"), remove("n", "2")]);
        plan.replace(&b, vec![remove("n", "3")]);
        plan.replace(&a, vec![remove("n", "2"), remove("m", "4")]);
        assert_eq!(plan.len(), 3);
        assert_eq!(ids(&plan.take("n", 10, &Isolation::default())), ["3", "2"]);
        assert_eq!(ids(&plan.take("m", 10, &Isolation::default())), ["4"]);
        assert!(plan.is_empty() && plan.by_owner.is_empty());
    }

    #[test]
    fn a_bundle_holds_no_more_than_fits() {
        let mut plan = Plan::default();
        plan.replace(&ResourceKey::new("ns", "a"), (10..15).map(|i| remove("n", &i.to_string())).collect());
        assert_eq!(ids(&plan.take("n", 2, &Isolation::default())), ["10", "11"]);
        assert_eq!(ids(&plan.take("n", 9, &Isolation::default())), ["12", "13", "14"]);
        assert!(plan.take("n", 9, &Isolation::default()).is_empty());
    }

    #[test]
    fn those_that_have_failed_go_last_and_among_themselves() {
        let mut plan = Plan::default();
        let ops: Vec<Op> = (10..20).map(|id| remove("n", &id.to_string())).collect();
        let mut isolation = Isolation::default();
        isolation.failed(&ops[..9].iter().collect::<Vec<_>>());
        isolation.failed(&[&ops[4]]);
        plan.replace(&ResourceKey::new("ns", "a"), ops.clone());
        assert!(plan.has_row(ops[4].key()));
        let mut bundles = Vec::new();
        while plan.has_node("n") {
            bundles.push(plan.take("n", 60, &isolation));
        }
        let bundles: Vec<_> = bundles.iter().map(|bundle| ids(bundle)).collect();
        // Two at a time, but for the one that failed by itself.
        let wanted: [&[&str]; 6] = [&["19"], &["10", "11"], &["12", "13"], &["14"], &["15", "16"], &["17", "18"]];
        assert_eq!(bundles, wanted);
        assert!(!plan.has_row(ops[4].key()));
    }
}

//! The writes that wait for their turn: one queue for each Consul node, in which later writes for an instance
//! replace earlier ones, cut into bundles that fit a transaction.
//!
//! A queue has two ranks. What clients notice at once (readiness, removals, the first registration of a ready
//! instance) goes before what can wait (rewrites of tags and meta).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::ops::Bound;

use super::diff::Op;
use super::health::Health;
use super::ids::{ResourceKey, Str};
use super::isolation::Isolation;
use super::registration::{Registration, RowKey};

/// A write that waits, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The resource that the write is for.
    pub owner: ResourceKey,
    /// The operation to carry out.
    pub op: Op,
    /// Says why it is made.
    pub why: Why,
}

/// A write that a decision asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The operation to carry out.
    pub op: Op,
    /// Says how urgent it is.
    pub rank: Rank,
    /// Says why it is made.
    pub why: Why,
}

/// Says why a write is made, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The event that led to it.
    pub cause: &'static str,
    /// True if a fresh list of Kubernetes confirmed it.
    pub confirmed: bool,
}

impl From<&'static str> for Why {
    fn from(cause: &'static str) -> Self {
        Self { cause, confirmed: false }
    }
}

impl Display for Why {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause)?;
        if self.confirmed { f.write_str(", confirmed by a fresh list") } else { Ok(()) }
    }
}

/// Says how urgent a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Clients are sent to the wrong instances until it is made.
    Urgent,
    /// It changes what clients read, and not where they are sent.
    Later,
}

impl Rank {
    /// The rank of a write, by what Consul holds of the instance now.
    #[must_use]
    pub fn of(op: &Op, there: Option<&Registration>) -> Self {
        let urgent = match (op, there) {
            (Op::Readiness { .. } | Op::Deregister { .. }, _) => true,
            (Op::Disown { .. }, _) => false,
            (Op::Register { registration, .. }, None) => registration.readiness != Some(Health::Critical),
            (Op::Register { registration, .. }, Some(there)) => {
                registration.readiness != there.readiness
                    || registration.address != there.address
                    || registration.port != there.port
            }
        };
        if urgent { Self::Urgent } else { Self::Later }
    }
}

/// The most instances in one bundle: Consul takes 128 operations in a transaction, of which two fence it and
/// hold its node, and an instance takes up to two (itself and its readiness check).
pub const BUNDLE_INSTANCES: usize = 60;

/// The most writes that can wait in a bundle with urgent ones: Consul carries out all of a bundle at once, and the urgent
/// ones are seen as late as the rest.
const ALONG: usize = 8;

/// The most bytes in one bundle, by estimate: half of Consul's default limit of 512 KiB for a transaction.
const BUNDLE_BYTES: usize = 256 * 1024;

/// All writes that wait.
#[derive(Debug, Default)]
pub struct Plan {
    lanes: BTreeMap<Str, Lane>,
    by_owner: BTreeMap<ResourceKey, BTreeSet<RowKey>>,
    /// The nodes that have urgent writes waiting.
    urgent: BTreeSet<Str>,
    /// The number of the next write.
    next: u64,
}

/// One node's writes: the urgent ones first, and those of one rank in the order in which they came.
#[derive(Debug, Default)]
struct Lane {
    order: BTreeMap<Place, Planned>,
    place: BTreeMap<Str, Place>,
}

/// The place where a write waits in its lane.
type Place = (Rank, u64);

impl Plan {
    /// Puts `writes` in place of everything that waits for `owner`. A write for an instance that had one waiting keeps its
    /// place among those of its rank.
    pub fn replace(&mut self, owner: &ResourceKey, writes: Vec<Wanted>) {
        let mut before = BTreeMap::new();
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            if let Some((place, _)) = self.drop_op(&key) {
                before.insert(key, place);
            }
        }
        let mut keys = BTreeSet::new();
        for Wanted { op, rank, why } in writes {
            let key = op.key().clone();
            if let Some((place, previous)) = self.drop_op(&key) {
                before.insert(key.clone(), place);
                if let Some(theirs) = self.by_owner.get_mut(&previous.owner) {
                    theirs.remove(&key);
                }
            }
            let sequence = before.get(&key).map_or(self.next, |(_, sequence)| *sequence);
            self.next += 1;
            let lane = self.lanes.entry(key.node.clone()).or_default();
            lane.place.insert(key.id.clone(), (rank, sequence));
            lane.order.insert((rank, sequence), Planned { owner: owner.clone(), op, why });
            if rank == Rank::Urgent {
                self.urgent.insert(key.node.clone());
            }
            keys.insert(key);
        }
        if !keys.is_empty() {
            self.by_owner.insert(owner.clone(), keys);
        }
    }

    /// Takes back the writes of a resource that wait and that `is_stale` names.
    pub fn withdraw(&mut self, owner: &ResourceKey, is_stale: impl Fn(&Op) -> bool) {
        let Some(keys) = self.by_owner.get(owner) else { return };
        let waits = |key: &&RowKey| {
            let lane = self.lanes.get(&key.node);
            let planned = lane.and_then(|lane| lane.order.get(lane.place.get(&key.id)?));
            planned.is_some_and(|planned| is_stale(&planned.op))
        };
        for key in keys.iter().filter(waits).cloned().collect::<Vec<_>>() {
            self.drop_op(&key);
            self.forget_key(owner, &key);
        }
    }

    fn forget_key(&mut self, owner: &ResourceKey, key: &RowKey) {
        if let Some(keys) = self.by_owner.get_mut(owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(owner);
            }
        }
    }

    /// Takes the next bundle for a node: as many of its oldest writes as fit, at least one. Those that have failed while
    /// others passed go after all others, and in bundles as small as `isolation` says.
    pub fn take(&mut self, node: &str, most: usize, isolation: &Isolation) -> Vec<Planned> {
        let Some(lane) = self.lanes.get_mut(node) else { return Vec::new() };
        let failed = lane.order.values().all(|planned| isolation.together(&planned.op).is_some());
        let (mut most, mut bytes, mut places) = (most, 0, Vec::new());
        let (mut is_urgent, mut along) = (false, 0);
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
            match place.0 {
                Rank::Urgent => is_urgent = true,
                Rank::Later if is_urgent && along == ALONG => break,
                Rank::Later => along += 1,
            }
            (most, bytes) = (fewest, bytes + size);
            places.push(*place);
        }
        let mut bundle = Vec::with_capacity(places.len());
        for place in places {
            let Some(planned) = lane.order.remove(&place) else { continue };
            lane.place.remove(&planned.op.key().id);
            bundle.push(planned);
        }
        for planned in &bundle {
            self.forget_key(&planned.owner, planned.op.key());
        }
        self.tidy(node);
        bundle
    }

    /// The next node that has writes waiting and of which `is_free` holds, with the rank of its first one: one with urgent
    /// writes first, and among those of one rank in turn after `last`.
    #[must_use]
    pub fn next_node(&self, last: Option<&Str>, is_free: impl Fn(&Str) -> bool) -> Option<(&Str, Rank)> {
        let bounds = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let urgent = self.urgent.range::<Str, _>(bounds).chain(&self.urgent).find(|node| is_free(node));
        urgent.map(|node| (node, Rank::Urgent)).or_else(|| {
            let rest = self.lanes.range::<Str, _>(bounds).map(|(node, _)| node);
            rest.chain(self.lanes.keys()).find(|node| is_free(node)).map(|node| (node, Rank::Later))
        })
    }

    /// Says whether writes for a node wait.
    #[must_use]
    pub fn has_node(&self, node: &str) -> bool {
        self.lanes.contains_key(node)
    }

    /// Says whether a write for an instance waits.
    #[must_use]
    pub fn has_row(&self, row: &RowKey) -> bool {
        self.lanes.get(&row.node).is_some_and(|lane| lane.place.contains_key(&row.id))
    }

    /// Says whether writes of a resource wait.
    #[must_use]
    pub fn has(&self, owner: &ResourceKey) -> bool {
        self.by_owner.contains_key(owner)
    }

    /// Counts the writes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.order.len()).sum()
    }

    /// Says whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    fn drop_op(&mut self, key: &RowKey) -> Option<(Place, Planned)> {
        let lane = self.lanes.get_mut(&key.node)?;
        let place = lane.place.remove(&key.id);
        let planned = place.and_then(|place| Some((place, lane.order.remove(&place)?)));
        self.tidy(&key.node);
        planned
    }

    /// Forgets a lane that is empty, and that a lane without urgent writes had some.
    fn tidy(&mut self, node: &str) {
        let first = self.lanes.get(node).map(|lane| lane.order.first_key_value().map(|((rank, _), _)| *rank));
        if first == Some(None) {
            self.lanes.remove(node);
        }
        if first.flatten() != Some(Rank::Urgent) {
            self.urgent.remove(node);
        }
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
        Op::Deregister { key: RowKey { node: node.into(), id: id.into() }, service: "s".into() }
    }

    fn wanted(ops: impl IntoIterator<Item = Op>) -> Vec<Wanted> {
        ops.into_iter().map(|op| Wanted { rank: Rank::of(&op, None), op, why: "a test".into() }).collect()
    }

    fn ids(bundle: &[Planned]) -> Vec<&str> {
        bundle.iter().map(|planned| &*planned.op.key().id).collect()
    }

    #[test]
    fn a_newer_plan_replaces_what_waits_and_keeps_the_rest() {
        let (a, b) = (ResourceKey::new("ns", "a"), ResourceKey::new("ns", "b"));
        let mut plan = Plan::default();
        plan.replace(&a, wanted([remove("n", "1"), remove("n", "2")]));
        plan.replace(&b, wanted([remove("n", "3")]));
        plan.replace(&a, wanted([remove("n", "2"), remove("m", "4")]));
        assert_eq!(plan.len(), 3);
        assert_eq!(ids(&plan.take("n", 10, &Isolation::default())), ["2", "3"]);
        assert_eq!(ids(&plan.take("m", 10, &Isolation::default())), ["4"]);
        assert!(plan.is_empty() && plan.by_owner.is_empty() && plan.urgent.is_empty());
    }

    #[test]
    fn what_is_stale_is_taken_back_and_the_rest_stays() {
        let (a, b) = (ResourceKey::new("ns", "a"), ResourceKey::new("ns", "b"));
        let mut plan = Plan::default();
        plan.replace(&a, wanted([remove("n", "1"), remove("n", "2"), remove("m", "3")]));
        plan.replace(&b, wanted([remove("n", "4")]));
        plan.withdraw(&a, |op| *op.key().id == *"2");
        assert_eq!(ids(&plan.take("n", 10, &Isolation::default())), ["1", "4"]);
        assert!(plan.has(&a) && !plan.has(&b));
        plan.withdraw(&a, Op::removes);
        plan.withdraw(&b, Op::removes);
        assert!(plan.is_empty() && plan.by_owner.is_empty() && plan.urgent.is_empty());
    }

    #[test]
    fn a_bundle_holds_no_more_than_fits() {
        let mut plan = Plan::default();
        plan.replace(&ResourceKey::new("ns", "a"), wanted((10..15).map(|i| remove("n", &i.to_string()))));
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
        plan.replace(&ResourceKey::new("ns", "a"), wanted(ops.clone()));
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

    #[test]
    fn urgent_writes_go_first_and_so_do_their_nodes() {
        let later = |node: &str, id: &str| Wanted { rank: Rank::Later, op: remove(node, id), why: "a test".into() };
        let mut plan = Plan::default();
        plan.replace(&ResourceKey::new("ns", "a"), vec![later("m", "1"), later("n", "2"), later("o", "3")]);
        plan.replace(&ResourceKey::new("ns", "b"), wanted([remove("n", "4"), remove("o", "5")]));
        let next = |plan: &Plan, last: &str, busy: &str| {
            plan.next_node(Some(&last.into()), |node| &**node != busy).map(|(node, _)| node.to_string())
        };
        for (last, busy, expected) in [("m", "", "n"), ("n", "", "o"), ("o", "", "n"), ("m", "n", "o"), ("z", "o", "n")]
        {
            assert_eq!(next(&plan, last, busy).as_deref(), Some(expected), "after {last}, {busy} is busy");
        }
        assert_eq!(ids(&plan.take("n", 9, &Isolation::default())), ["4", "2"]);
        assert_eq!(ids(&plan.take("o", 1, &Isolation::default())), ["5"]);
        assert_eq!(next(&plan, "m", "").as_deref(), Some("o"), "in turn, since none is urgent any more");
        assert_eq!(next(&plan, "o", "").as_deref(), Some("m"));
    }

    #[test]
    fn few_that_can_wait_go_along_with_urgent_ones() {
        let later = |id: u32| Wanted { rank: Rank::Later, op: remove("n", &id.to_string()), why: "a test".into() };
        let mut plan = Plan::default();
        plan.replace(&ResourceKey::new("ns", "a"), (10..40).map(later).collect());
        plan.replace(&ResourceKey::new("ns", "b"), wanted((40..50).map(|id| remove("n", &id.to_string()))));
        let sizes: Vec<usize> =
            std::iter::from_fn(|| Some(plan.take("n", 60, &Isolation::default()).len())).take(3).collect();
        assert_eq!(sizes, [10 + ALONG, 30 - ALONG, 0]);
    }

    #[test]
    fn a_write_that_replaces_one_that_waits_keeps_its_place() {
        let (a, b) = (ResourceKey::new("ns", "a"), ResourceKey::new("ns", "b"));
        let mut plan = Plan::default();
        plan.replace(&a, wanted([remove("n", "1")]));
        plan.replace(&b, wanted([remove("n", "2")]));
        for _ in 0..3 {
            plan.replace(&a, wanted([remove("n", "0"), remove("n", "1")]));
        }
        assert_eq!(ids(&plan.take("n", 9, &Isolation::default())), ["1", "2", "0"]);
    }
}

//! What is under way for each resource: one record a resource, and the queue of those that are to be reconciled.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::decide::Decision;
use super::instances::AllInstances;
use super::queue::Queue;
use super::refusals::Refusals;
use super::texts::AllTexts;
use crate::model::cause::Cause;
use crate::model::ids::ResourceKey;
use crate::model::port::PortInUse;
use crate::model::registration::RowKey;
use crate::state::event::Kind;

/// The reason why a resource is to be reconciled, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dirty {
    /// The way in which the change came about.
    pub(super) cause: Cause,
    /// The time at which the change arrived.
    pub(super) since: Instant,
}

impl Dirty {
    /// Joins two marks: inference outweighs observation, and the earlier time the later.
    fn merge(&mut self, other: Self) {
        self.cause = self.cause.max(other.cause);
        self.since = self.since.min(other.since);
    }
}

/// A record of one resource, besides what the World and the mirror know.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The decision about it; none where something that it went by has changed.
    pub(super) kept: Option<Kept>,
    /// Set while Consul does not hold what is desired.
    pub(super) progress: Option<Progress>,
    /// Set while instances stay although their endpoints are missing.
    pub(super) missing: Option<MissingEndpoints>,
    /// Set while instances wait for those of the resource that has their name next.
    pub(super) handover: Option<Handover>,
    /// The writes that Consul refused.
    pub(super) refusals: Refusals,
    /// The instances whose IDs somebody else holds, with who that is.
    pub(super) conflicts: Vec<(RowKey, String)>,
}

/// A decision that holds until something that it went by changes.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) decision: Decision,
    /// The inputs of the decision that change without notice.
    pub(super) basis: Basis,
}

impl Kept {
    /// Says whether it still holds.
    pub(super) fn holds(&self, now: &Basis) -> bool {
        let same_status = self.basis.told == now.told || !self.decision.goes_by_status;
        let rest = |basis: &Basis| (basis.is_placed, basis.is_whole, basis.waits_for, basis.is_released);
        same_status && rest(&self.basis) == rest(now)
    }
}

/// The inputs of a decision that change without notice. They are compared when the decision is used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Basis {
    /// True if it is known where instances go.
    pub(super) is_placed: bool,
    /// True if the resources of its namespace have been listed to the end.
    pub(super) is_whole: bool,
    /// The kind that it needs and that has not been listed to the end.
    pub(super) waits_for: Option<Kind>,
    /// The port that the status names, and whether the status is about the present spec.
    pub(super) told: (Option<PortInUse>, bool),
    /// True if a resource of another class has the finalizer of this Lictor on it.
    pub(super) is_released: bool,
}

/// That a resource is not yet as desired in Consul.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) dirty: Dirty,
    /// The number of its writes that are under way.
    pub(super) in_flight: usize,
    /// True if something is left to write once all of them are answered.
    pub(super) more: bool,
}

/// That instances stay although their endpoints are missing.
#[derive(Clone, Debug)]
pub(super) struct MissingEndpoints {
    /// The cause of the missing endpoints: for the same cause the instances are removed.
    pub(super) cause: Cause,
    /// The part of the status about it.
    pub(super) message: Option<String>,
    /// The instances whose endpoints are missing.
    pub(super) rows: BTreeSet<RowKey>,
}

/// That instances under a name wait for those of the resources that have the name next.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) until: Instant,
    pub(super) to: BTreeSet<ResourceKey>,
}

impl Record {
    fn is_empty(&self) -> bool {
        self.kept.is_none()
            && self.progress.is_none()
            && self.missing.is_none()
            && self.handover.is_none()
            && self.refusals.is_empty()
            && self.conflicts.is_empty()
    }
}

/// The most resources with news from a watch that go before one of the others.
const IN_A_ROW: usize = 8;

/// All records, and the queue.
#[derive(Debug, Default)]
pub(super) struct Resources {
    records: BTreeMap<ResourceKey, Record>,
    /// Counts the texts of instances by namespace.
    pub(super) texts: AllTexts,
    /// Counts the instances by namespace.
    pub(super) instances: AllInstances,
    dirty: BTreeMap<ResourceKey, Dirty>,
    /// Those of them about which a watch told something.
    observed: Queue,
    /// The other resources.
    inferred: Queue,
    /// Counts those that were taken from the first queue since one was taken from the second.
    in_a_row: usize,
    /// Dirty resources that wait for the first list of something that they need.
    waiting: BTreeMap<ResourceKey, Dirty>,
    /// Resources with instances whose IDs somebody else holds.
    conflicting: BTreeSet<ResourceKey>,
    /// Resources whose instances wait for those of another one.
    handing_over: BTreeSet<ResourceKey>,
    /// Instances that are registered again although nothing about them has changed: the catalog does not show them.
    pub(super) unseen: BTreeSet<RowKey>,
    /// The number of writes that Consul refused.
    refused: usize,
    empty: Record,
}

impl Resources {
    /// Gives what is known of a resource.
    pub(super) fn get(&self, key: &ResourceKey) -> &Record {
        self.records.get(key).unwrap_or(&self.empty)
    }

    /// Changes what is known of a resource.
    pub(super) fn change<T>(&mut self, key: &ResourceKey, change: impl FnOnce(&mut Record) -> T) -> T {
        let record = self.records.entry(key.clone()).or_default();
        let refused = record.refusals.len();
        let answer = change(record);
        self.refused = self.refused - refused + record.refusals.len();
        mark(&mut self.conflicting, key, !record.conflicts.is_empty());
        mark(&mut self.handing_over, key, record.handover.is_some());
        if record.is_empty() {
            self.records.remove(key);
        }
        answer
    }

    /// Has a resource reconciled.
    pub(super) fn enqueue(&mut self, key: ResourceKey, cause: Cause, since: Instant) {
        let new = Dirty { cause, since };
        match cause {
            Cause::Observed => self.observed.push(key.clone()),
            Cause::Inferred if !self.dirty.contains_key(&key) => self.inferred.push(key.clone()),
            Cause::Inferred => {}
        }
        self.dirty.entry(key).or_insert(new).merge(new);
    }

    /// Forgets what was decided about a resource.
    pub(super) fn forget_decision(&mut self, key: &ResourceKey) {
        if self.get(key).kept.is_some() {
            self.change(key, |record| record.kept = None);
        }
    }

    /// Notes that other instances of a resource are registered than before. Answers whether that makes the decision about
    /// it a thing of the past.
    pub(super) fn rows_changed(&mut self, key: &ResourceKey) -> bool {
        let goes_by_rows = self.get(key).kept.as_ref().is_some_and(|kept| kept.decision.goes_by_rows);
        if goes_by_rows {
            self.forget_decision(key);
        }
        goes_by_rows
    }

    /// Gives the reason why a resource is to be reconciled again, and since when: as at first, while it is in progress.
    pub(super) fn dirty_of(&self, key: &ResourceKey, now: Instant) -> Dirty {
        let known = self.get(key).progress.map(|progress| progress.dirty);
        known.unwrap_or(Dirty { cause: Cause::Observed, since: now })
    }

    /// Takes the next resource that is to be reconciled: those first about which a watch told something, except for one
    /// in a while.
    pub(super) fn next_dirty(&mut self) -> Option<(ResourceKey, Dirty)> {
        loop {
            let observed = if self.in_a_row < IN_A_ROW { self.observed.pop() } else { None };
            self.in_a_row = if observed.is_some() { self.in_a_row + 1 } else { 0 };
            let key = observed.or_else(|| self.inferred.pop()).or_else(|| self.observed.pop())?;
            // One may wait in both queues, or be dirty no more.
            if let Some(dirty) = self.dirty.remove(&key) {
                self.waiting.remove(&key);
                return Some((key, dirty));
            }
        }
    }

    /// Says whether a resource is to be reconciled.
    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Gives the resources that are dirty.
    pub(super) fn dirty(&self) -> impl Iterator<Item = &ResourceKey> {
        self.dirty.keys()
    }

    /// Says whether a resource is to be reconciled.
    pub(super) fn is_dirty(&self, key: &ResourceKey) -> bool {
        self.dirty.contains_key(key)
    }

    /// Does not have a resource reconciled.
    pub(super) fn forget_dirty(&mut self, key: &ResourceKey) {
        self.dirty.remove(key);
        self.observed.remove(key);
        self.inferred.remove(key);
    }

    /// Lets a resource wait until something that it needs has been listed.
    pub(super) fn wait_for_lists(&mut self, key: ResourceKey, dirty: Dirty) {
        self.waiting.insert(key, dirty);
    }

    /// Takes those that wait for a list.
    pub(super) fn take_waiting(&mut self) -> BTreeMap<ResourceKey, Dirty> {
        std::mem::take(&mut self.waiting)
    }

    /// Counts the resources that are to be reconciled.
    pub(super) fn dirty_len(&self) -> usize {
        self.dirty.len() + self.waiting.len()
    }

    /// Counts the writes that Consul refused.
    pub(super) fn refused_len(&self) -> usize {
        self.refused
    }

    /// The instances whose writes Consul refused.
    pub(super) fn refused_rows(&self) -> BTreeSet<RowKey> {
        if self.refused == 0 {
            return BTreeSet::new();
        }
        let all = self.records.values().flat_map(|record| record.refusals.iter());
        all.map(|(row, _)| row.clone()).collect()
    }

    /// The resources with instances whose IDs somebody else holds.
    pub(super) fn conflicting(&self) -> impl Iterator<Item = &ResourceKey> {
        self.conflicting.iter()
    }

    /// The resources whose instances wait for those of this one.
    pub(super) fn predecessors(&self, key: &ResourceKey) -> Vec<ResourceKey> {
        let waits = |other: &&ResourceKey| self.get(other).handover.as_ref().is_some_and(|over| over.to.contains(key));
        self.handing_over.iter().filter(waits).cloned().collect()
    }

    /// Says whether the write for an instance of a resource was refused.
    pub(super) fn is_refused(&self, key: &ResourceKey, row: &RowKey) -> bool {
        self.get(key).refusals.has(row)
    }

    /// Notes that Consul does not hold what a resource wants.
    pub(super) fn begin_progress(&mut self, key: &ResourceKey, dirty: Dirty) {
        self.change(key, |record| {
            let progress = record.progress.get_or_insert(Progress { dirty, in_flight: 0, more: false });
            progress.dirty.cause = progress.dirty.cause.max(dirty.cause);
        });
    }

    /// Notes that a write of a resource is under way.
    pub(super) fn write_began(&mut self, key: &ResourceKey) {
        if let Some(progress) = self.records.get_mut(key).and_then(|record| record.progress.as_mut()) {
            progress.in_flight += 1;
        }
    }

    /// Notes that a write of a resource was answered; `more` says whether that gives reason for another look.
    pub(super) fn write_ended(&mut self, key: &ResourceKey, more: bool) {
        if let Some(progress) = self.records.get_mut(key).and_then(|record| record.progress.as_mut()) {
            progress.in_flight = progress.in_flight.saturating_sub(1);
            progress.more |= more;
        }
    }

    /// Counts the writes that of a resource are under way.
    pub(super) fn in_flight(&self, key: &ResourceKey) -> usize {
        self.get(key).progress.map_or(0, |progress| progress.in_flight)
    }

    /// Forgets what was decided and what waits by what was known of Consul before. Writes that are under way, and
    /// refusals, stay.
    pub(super) fn reset(&mut self) {
        self.handing_over.clear();
        self.records.retain(|_, record| {
            (record.kept, record.missing, record.handover) = (None, None, None);
            !record.is_empty()
        });
    }
}

fn mark(set: &mut BTreeSet<ResourceKey>, key: &ResourceKey, is_in: bool) {
    if !is_in {
        set.remove(key);
    } else if !set.contains(key) {
        set.insert(key.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::decide::{Action, SourceReport, Texts};
    use crate::model::port::PortRef;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("shop", name)
    }

    #[test]
    fn inference_outweighs_observation_and_the_earlier_time_the_later() {
        let (mut resources, start) = (Resources::default(), Instant::now());
        let later = start + Duration::from_secs(1);
        resources.enqueue(key("a"), Cause::Observed, later);
        resources.enqueue(key("a"), Cause::Inferred, later);
        resources.enqueue(key("a"), Cause::Observed, start);
        let expected = Dirty { cause: Cause::Inferred, since: start };
        assert_eq!(resources.next_dirty(), Some((key("a"), expected)));
        assert_eq!(resources.next_dirty(), None);
    }

    #[test]
    fn what_is_in_progress_is_reconciled_again_for_its_first_reason() {
        let (mut resources, start) = (Resources::default(), Instant::now());
        let first = Dirty { cause: Cause::Inferred, since: start };
        resources.begin_progress(&key("a"), first);
        resources.begin_progress(&key("a"), Dirty { cause: Cause::Observed, since: start + Duration::from_secs(5) });
        assert_eq!(resources.dirty_of(&key("a"), start + Duration::from_secs(9)), first);
    }

    fn kept(goes_by_rows: bool, goes_by_status: bool) -> Kept {
        let (source, texts) = (SourceReport::default(), Texts::default());
        let decision = Decision { action: Action::Freeze, source, goes_by_rows, goes_by_status, texts, share: None };
        Kept { decision, basis: Basis::default() }
    }

    #[test]
    fn a_decision_holds_until_something_changes_that_it_went_by() {
        let port = PortInUse { source: "pods".into(), port: PortRef::Number(80) };
        let another_status = || Basis { told: (Some(port.clone()), true), ..Basis::default() };
        let placed = || Basis { is_placed: true, ..Basis::default() };
        let whole = || Basis { is_whole: true, ..Basis::default() };
        let listing = || Basis { waits_for: Some(Kind::Slice), ..Basis::default() };
        let released = || Basis { is_released: true, ..Basis::default() };
        for (goes_by_status, now, expected, why) in [
            (false, Basis::default(), true, "nothing has changed"),
            (true, Basis::default(), true, "nothing has changed"),
            (false, another_status(), true, "it did not go by the status"),
            (true, another_status(), false, "the status tells of another port"),
            (false, placed(), false, "it is known by now where instances go"),
            (false, whole(), false, "a list of resources has ended"),
            (false, listing(), false, "slices are listed"),
            (false, released(), false, "the finalizer is on it"),
        ] {
            assert_eq!(kept(false, goes_by_status).holds(&now), expected, "{why}");
        }
        for goes_by_rows in [true, false] {
            let mut resources = Resources::default();
            resources.change(&key("a"), |record| record.kept = Some(kept(goes_by_rows, true)));
            assert_eq!(resources.rows_changed(&key("a")), goes_by_rows);
            assert_eq!(resources.get(&key("a")).kept.is_none(), goes_by_rows);
        }
    }

    #[test]
    fn a_record_is_kept_only_while_it_says_something() {
        let mut resources = Resources::default();
        let row = RowKey { node: "n".into(), id: "1".into() };
        resources.change(&key("a"), |record| record.conflicts.push((row, "somebody".to_owned())));
        assert_eq!(resources.conflicting().collect::<Vec<_>>(), [&key("a")]);
        resources.change(&key("a"), |record| record.conflicts.clear());
        assert!(resources.records.is_empty() && resources.conflicting.is_empty());
        resources.change(&key("b"), |_| ());
        assert!(resources.records.is_empty());
    }

    #[test]
    fn predecessors_are_those_that_wait_for_a_resource() {
        let mut resources = Resources::default();
        let handover = || Handover { until: Instant::now(), to: BTreeSet::from([key("new")]) };
        resources.change(&key("old"), |record| record.handover = Some(handover()));
        assert_eq!(resources.predecessors(&key("new")), [key("old")]);
        assert!(resources.predecessors(&key("old")).is_empty());
        resources.reset();
        assert!(resources.predecessors(&key("new")).is_empty() && resources.records.is_empty());
    }

    #[test]
    fn writes_are_counted_while_they_are_under_way() {
        let mut resources = Resources::default();
        resources.begin_progress(&key("a"), Dirty { cause: Cause::Observed, since: Instant::now() });
        resources.write_began(&key("a"));
        resources.write_began(&key("a"));
        resources.write_ended(&key("a"), true);
        assert_eq!(resources.in_flight(&key("a")), 1);
        resources.write_ended(&key("a"), false);
        assert!(resources.get(&key("a")).progress.is_some_and(|progress| progress.in_flight == 0 && progress.more));
        resources.write_ended(&key("b"), true);
        assert_eq!(resources.in_flight(&key("b")), 0);
    }

    #[test]
    fn a_change_that_a_watch_told_of_goes_first_and_the_others_come_all_the_same() {
        let (mut resources, now) = (Resources::default(), Instant::now());
        for name in ["z", "y", "m"] {
            resources.enqueue(key(name), Cause::Inferred, now);
        }
        let observed: Vec<String> = (10..20).map(|number| number.to_string()).collect();
        for name in &observed {
            resources.enqueue(key(name), Cause::Observed, now);
        }
        resources.enqueue(key("m"), Cause::Observed, now);
        let taken: Vec<(ResourceKey, Cause)> =
            std::iter::from_fn(|| resources.next_dirty()).map(|(key, dirty)| (key, dirty.cause)).collect();
        let mut expected: Vec<(ResourceKey, Cause)> =
            observed.iter().map(|name| (key(name), Cause::Observed)).collect();
        expected.insert(IN_A_ROW, (key("z"), Cause::Inferred));
        expected.extend([(key("m"), Cause::Inferred), (key("y"), Cause::Inferred)]);
        assert_eq!(taken, expected);
        assert!(!resources.has_dirty());
    }
}

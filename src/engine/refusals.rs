//! The writes of one resource that Consul refused, and when to try which again.
//!
//! Consul often refuses all writes of a resource for one reason, such as a token without the right to its name. So the
//! writes that it refuses in the same words are one group: one of them is tried again, with a growing wait, and all of
//! them once that one goes through.

use std::collections::BTreeMap;
use std::ops::Bound;

use tokio::time::Instant;

use crate::model::diff::Op;
use crate::model::registration::RowKey;
use crate::ports::Backoff;

/// The refused writes of one resource.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    groups: BTreeMap<String, Group>,
    /// In which words the write for each instance was refused.
    words: BTreeMap<RowKey, String>,
}

/// Writes that Consul refused in the same words.
#[derive(Debug)]
struct Group {
    writes: BTreeMap<RowKey, Op>,
    /// The number of times in a row that it was tried again without success.
    failures: u32,
    /// The time at which one of them is tried again.
    until: Instant,
    /// The one that is being tried again, until Consul carries it out or refuses it.
    probe: Option<RowKey>,
    /// The one that was tried before: another one is tried next, since each may have a reason of its own.
    last: Option<RowKey>,
    /// True if the log has a line about it.
    is_logged: bool,
}

/// A log line about refused writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    /// The error of Consul.
    pub(super) words: String,
    /// The number of writes that it refused in these words.
    pub(super) writes: usize,
    /// One of the instances.
    pub(super) instance: RowKey,
}

impl Refusals {
    /// Says whether nothing is refused.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Counts the writes that are refused.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Says whether the write for an instance was refused.
    pub(super) fn has(&self, row: &RowKey) -> bool {
        self.words.contains_key(row)
    }

    /// The instances whose writes were refused, with Consul's words.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RowKey, &str)> {
        self.words.iter().map(|(row, words)| (row, &**words))
    }

    /// Notes that Consul refused a write in these words. Answers when one of its group is tried again.
    pub(super) fn refused(&mut self, op: Op, words: &str, now: Instant, random: &mut fastrand::Rng) -> Instant {
        let row = op.key().clone();
        // Words that name the instance are the same for all instances.
        let words = words.replace(&*row.id, "<instance>");
        if self.words.get(&row).is_some_and(|before| *before != words) {
            self.remove(&row);
        }
        let group = self.groups.entry(words.clone()).or_insert_with(|| Group {
            writes: BTreeMap::new(),
            failures: 0,
            until: now,
            probe: None,
            last: None,
            is_logged: false,
        });
        // One that stood for a group of other words says nothing of how often this one was tried.
        if group.writes.is_empty() || group.probe.as_ref() == Some(&row) {
            (group.probe, group.last) = (None, Some(row.clone()));
            group.failures = group.failures.saturating_add(1);
            group.until = now + Backoff::REFUSED.wait(group.failures, random);
        }
        group.writes.insert(row.clone(), op);
        let until = group.until;
        self.words.insert(row, words);
        until
    }

    /// Notes that Consul carried out a write. Answers whether others that it refused in the same words are to be tried
    /// again now.
    pub(super) fn written(&mut self, row: &RowKey) -> bool {
        let was_probe = self.is_probe(row);
        let group = self.remove(row);
        let Some(words) = group.filter(|_| was_probe) else { return false };
        let freed = self.groups.remove(&words).map(|group| group.writes).unwrap_or_default();
        for row in freed.keys() {
            self.words.remove(row);
        }
        !freed.is_empty()
    }

    /// Takes out of `ops` the writes that wait to be tried again, and forgets the refusals that nobody asks for any more,
    /// except those of which `is_in_flight` holds. Answers when the first one is due.
    pub(super) fn filter(
        &mut self,
        ops: &mut Vec<Op>,
        is_in_flight: impl Fn(&RowKey) -> bool,
        now: Instant,
    ) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        let wanted: BTreeMap<&RowKey, &Op> = ops.iter().map(|op| (op.key(), op)).collect();
        let keeps = |row: &RowKey, op: &Op| is_in_flight(row) || wanted.get(row).is_some_and(|wanted| **wanted == *op);
        let writes = self.groups.values().flat_map(|group| &group.writes);
        let gone: Vec<RowKey> = writes.filter(|(row, op)| !keeps(row, op)).map(|(row, _)| row.clone()).collect();
        for row in gone {
            self.remove(&row);
        }
        let mut let_through = Vec::new();
        for group in self.groups.values_mut() {
            if group.writes.keys().any(&is_in_flight) || group.until > now {
                continue;
            }
            let probe = group.next();
            let_through.extend(probe.clone());
            group.probe = probe;
        }
        ops.retain(|op| !self.words.contains_key(op.key()) || let_through.contains(op.key()));
        self.groups.values().map(|group| group.until).filter(|until| *until > now).min()
    }

    /// Gives what the log has not said yet.
    pub(super) fn news(&mut self) -> Vec<News> {
        let new = self.groups.iter_mut().filter(|(_, group)| !group.is_logged);
        new.filter_map(|(words, group)| {
            group.is_logged = true;
            let instance = group.writes.keys().next()?.clone();
            Some(News { words: words.clone(), writes: group.writes.len(), instance })
        })
        .collect()
    }

    /// Says whether this is the instance that stands for its group.
    fn is_probe(&self, row: &RowKey) -> bool {
        let group = self.words.get(row).and_then(|words| self.groups.get(words));
        group.is_some_and(|group| group.probe.as_ref() == Some(row))
    }

    /// Forgets the refusal of one write; answers in which words it was refused.
    fn remove(&mut self, row: &RowKey) -> Option<String> {
        let words = self.words.remove(row)?;
        let group = self.groups.get_mut(&words)?;
        group.writes.remove(row);
        if group.writes.is_empty() {
            self.groups.remove(&words);
        }
        Some(words)
    }
}

impl Group {
    /// The one to try: the one that is being tried, or another one in turn.
    fn next(&self) -> Option<RowKey> {
        if let Some(probe) = self.probe.as_ref().filter(|probe| self.writes.contains_key(*probe)) {
            return Some(probe.clone());
        }
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.writes.range::<RowKey, _>((after, Bound::Unbounded)).map(|(row, _)| row);
        rest.next().or_else(|| self.writes.keys().next()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn op(id: u32) -> Op {
        Op::Deregister { key: RowKey { node: "n".into(), id: id.to_string().into() }, service: "s".into() }
    }

    struct Resource {
        refusals: Refusals,
        random: fastrand::Rng,
        now: Instant,
    }

    impl Resource {
        /// A resource all of whose writes were refused in the same words.
        fn refused(ids: std::ops::Range<u32>) -> Self {
            let mut all =
                Self { refusals: Refusals::default(), random: fastrand::Rng::with_seed(1), now: Instant::now() };
            ids.for_each(|id| all.refuse(id, "Permission denied"));
            all
        }

        fn refuse(&mut self, id: u32, words: &str) {
            self.refusals.refused(op(id), words, self.now, &mut self.random);
        }

        /// Lets time pass, and answers which of these writes are tried.
        fn tries(&mut self, ids: std::ops::Range<u32>, after: u64) -> Vec<String> {
            self.now += Duration::from_secs(after);
            let mut ops: Vec<Op> = ids.map(op).collect();
            self.refusals.filter(&mut ops, |_| false, self.now);
            ops.iter().map(|op| op.key().id.to_string()).collect()
        }
    }

    #[test]
    fn one_write_of_a_group_is_tried_again_and_then_all() {
        let mut resource = Resource::refused(0..5);
        assert_eq!(resource.refusals.len(), 5);
        assert!(resource.tries(0..5, 0).is_empty(), "it waits");
        assert_eq!(resource.tries(0..5, 1), ["1"], "not the one that was refused last");
        assert_eq!(resource.tries(0..5, 1), ["1"], "the same one until it is answered");
        resource.refuse(1, "Permission denied");
        assert!(resource.tries(0..5, 0).is_empty());
        assert_eq!(resource.tries(0..5, 2), ["2"], "another one in turn");
        assert!(resource.refusals.written(op(2).key()), "the others may go, too");
        assert!(resource.refusals.is_empty());
        assert_eq!(resource.tries(3..5, 0), ["3", "4"]);
    }

    #[test]
    fn waits_grow_with_each_failure() {
        let mut resource = Resource::refused(0..2);
        for (waits, least) in [(2, 1), (4, 2), (8, 4)] {
            assert_eq!(resource.tries(0..2, waits).len(), 1);
            let id = resource.refusals.groups["Permission denied"].probe.clone().unwrap().id.parse().unwrap();
            resource.refuse(id, "Permission denied");
            let until = resource.refusals.groups["Permission denied"].until;
            assert!(until >= resource.now + Duration::from_secs(least), "after {waits} s");
        }
    }

    #[test]
    fn other_words_are_another_group() {
        let mut resource = Resource::refused(0..2);
        resource.refuse(2, "Invalid check");
        assert_eq!(resource.tries(0..3, 1), ["1", "2"]);
        resource.refuse(1, "Invalid check");
        assert_eq!(resource.refusals.iter().filter(|(_, words)| *words == "Invalid check").count(), 2);
        assert!(!resource.refusals.written(op(0).key()), "it was not tried for its group");
    }

    #[test]
    fn those_that_join_a_group_do_not_make_it_wait_longer() {
        let (mut resource, words) = (Resource::refused(0..5), "Invalid check");
        resource.refuse(5, words);
        assert_eq!(resource.tries(0..6, 1), ["1", "5"], "one for each group");
        resource.refuse(5, words);
        let until = |resource: &Resource| resource.refusals.groups[words].until;
        let before = until(&resource);
        for joins in [1, 2, 3, 4, 0] {
            assert_eq!(resource.tries(0..6, 0), [joins.to_string()], "each may have a reason of its own");
            resource.refuse(joins, words);
            assert_eq!(until(&resource), before, "after {joins}");
        }
        assert_eq!(resource.tries(0..6, 2), ["0"]);
    }

    #[test]
    fn another_write_for_an_instance_is_tried_at_once_and_one_that_nobody_wants_is_forgotten() {
        let mut resource = Resource::refused(0..3);
        assert_eq!(resource.tries(3..5, 0), ["3", "4"]);
        assert!(resource.refusals.is_empty());
    }

    #[test]
    fn the_log_has_one_line_for_a_group() {
        let mut resource = Resource::refused(0..5);
        let news = resource.refusals.news();
        assert_eq!(news.iter().map(|news| (&*news.words, news.writes)).collect::<Vec<_>>(), [("Permission denied", 5)]);
        resource.refuse(0, "Permission denied");
        assert!(resource.refusals.news().is_empty());
    }
}

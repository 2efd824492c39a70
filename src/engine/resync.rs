//! The resync: while Consul changes, every Consul node with something of ours is read once in each interval, one after
//! the other.
//!
//! In: the indexes at which Consul stands, the nodes that it lists, and whether each could be read. Out: what to ask next,
//! and when. While the indexes are those of the last round, nothing is read but them: nothing has changed. A node that cannot
//! be read is read again at once, then later and later; the others are read meanwhile. Only where no node can be read, or
//! the list cannot, Consul as a whole is unavailable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ids::Str;
use crate::ports::{Backoff, Indexes};

/// The most nodes that are read at once.
const READS: usize = 8;

/// The number of times in an interval that Consul is asked whether something has changed, unless that is more often than
/// `LOOK_AT_MOST`.
const LOOKS: u32 = 30;
const LOOK_AT_MOST: Duration = Duration::from_millis(250);

/// The most rounds that begin in an interval.
const ROUNDS: u32 = 6;

/// The least number of nodes read in an interval if instances changed and not only checks: whatever changes checks
/// all the time, somebody waits for an instance.
const FAST_READS: u32 = 150;

/// After how many intervals everything is read although Consul says that nothing has changed.
const FULL: u32 = 10;

/// The state of the resync.
#[derive(Debug, Default)]
pub(super) struct Resync {
    phase: Phase,
    /// True if the next round is not spread over the interval.
    is_urgent: bool,
    /// The indexes of Consul at the start of the last round that read every node.
    known: Option<Indexes>,
    /// The indexes of Consul at the start of this round.
    indexes: Option<Indexes>,
    /// True if something was written since the last round began. What is known of it is what was written, and not what was
    /// read; and where Consul had it already, no index has moved.
    has_written: bool,
    /// The nodes of this round.
    nodes: BTreeSet<Str>,
    /// Those of them that are still to be read in it.
    pending: BTreeSet<Str>,
    /// The nodes that are being read in it, and what reads them.
    reading: BTreeMap<Str, Reader>,
    /// The nodes whose last read failed.
    failing: BTreeMap<Str, Failing>,
    /// The number of failures of the list in a row.
    list_failures: u32,
    /// Everything is known as it was then: the last round began in which every node was read, or nothing had changed
    /// since.
    fresh_since: Option<Instant>,
}

/// The progress of a round.
#[derive(Debug, Default)]
enum Phase {
    /// The next one begins as soon as it may.
    #[default]
    Due,
    /// The nodes are being listed.
    Listing,
    /// The nodes are read, the next one not before `next`.
    Reading { next: Instant, gap: Duration, times: Times },
    /// The round is over, and Consul is asked at `next` whether something has changed since.
    Over { next: Instant, times: Times },
    /// Consul was asked at `asked`.
    Looking { asked: Instant, times: Times },
}

/// The times when each part is due, at the latest.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The time when the round began.
    began: Instant,
    interval: Duration,
    /// The time of the next work that is done once in each interval.
    chores: Instant,
}

impl Times {
    /// Gives the time from one look to the next.
    fn look(&self) -> Duration {
        (self.interval / LOOKS).max(LOOK_AT_MOST)
    }

    /// Gives the earliest time of the next round.
    fn next_round(&self) -> Instant {
        self.began + self.interval / ROUNDS
    }

    /// Gives the time when the next round begins in any case.
    fn full(&self) -> Instant {
        self.began + self.interval * FULL
    }
}

/// The failed reads of one node, in a row.
#[derive(Clone, Copy, Debug)]
struct Failing {
    failures: u32,
    /// The time when it is read again.
    due: Instant,
}

/// The purpose of a read of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// The next write to it needs it.
    Lane,
    /// The resync needs it.
    Resync,
}

/// The next question to Consul.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Ask where it stands.
    Indexes,
    /// List the nodes.
    List,
    /// Read a node.
    Read(Str),
}

/// The consequence of a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again at once.
    Again,
    /// The node is read again later; `is_new` the first time.
    Later { is_new: bool },
    /// Consul is unavailable.
    Outage,
}

impl Resync {
    /// Takes the next thing to ask.
    pub(super) fn next(&mut self, now: Instant) -> Option<Ask> {
        if let Phase::Over { next, times } = self.phase
            && next <= now
        {
            self.phase = Phase::Looking { asked: now, times };
            return Some(Ask::Indexes);
        }
        if matches!(self.phase, Phase::Due) {
            self.phase = Phase::Listing;
            return Some(Ask::List);
        }
        let node = if self.reading.len() < READS { self.next_node(now)? } else { return None };
        self.reading.insert(node.clone(), Reader::Resync);
        Some(Ask::Read(node))
    }

    /// Notes that its lane reads a node in place of the resync.
    pub(super) fn lane_reads(&mut self, node: &Str) {
        self.reading.insert(node.clone(), Reader::Lane);
    }

    fn next_node(&mut self, now: Instant) -> Option<Str> {
        let Self { failing, reading, pending, .. } = self;
        let again = failing.iter().find(|(node, failing)| failing.due <= now && !reading.contains_key(*node));
        if let Some((node, _)) = again {
            return Some(node.clone());
        }
        let Phase::Reading { next, gap, .. } = &mut self.phase else { return None };
        let node = pending.iter().find(|node| *next <= now && !reading.contains_key(*node))?.clone();
        pending.remove(&node);
        *next += *gap;
        Some(node)
    }

    /// Answers when there will be something to ask, if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        let again =
            self.failing.iter().filter(|(node, _)| !self.reading.contains_key(*node)).map(|(_, failing)| failing.due);
        let round = match self.phase {
            Phase::Due | Phase::Listing | Phase::Looking { .. } => None,
            Phase::Reading { next, .. } => {
                self.pending.iter().any(|node| !self.reading.contains_key(node)).then_some(next)
            }
            Phase::Over { next, .. } => Some(next),
        };
        let reads = self.reading.len() < READS;
        again.chain(round).min().filter(|_| reads || matches!(self.phase, Phase::Over { .. }))
    }

    /// Has all nodes read again as soon as may be.
    pub(super) fn hurry(&mut self) {
        self.is_urgent = true;
        if !matches!(self.phase, Phase::Listing) {
            self.phase = Phase::Due;
        }
    }

    /// Notes where Consul stands. Another round begins if something has changed since the last one, or with `needs_round`, or
    /// if the last one is long ago. Answers whether what is done once in each interval is due without a round.
    pub(super) fn looked(&mut self, found: Indexes, needs_round: bool, now: Instant) -> bool {
        let Phase::Looking { asked, mut times } = self.phase else { return false };
        self.list_failures = 0;
        let is_known = self.known == Some(found) && !self.has_written;
        if is_known {
            self.fresh_since = Some(asked);
        }
        if self.known.is_some_and(|known| is_before(found, known)) {
            // Consul was restored, and any node of it may be as it was at any time.
            self.is_urgent = true;
            self.phase = Phase::Due;
            return false;
        }
        if !is_known || times.full() <= now || needs_round && times.chores <= now {
            let next = times.next_round();
            self.phase = if next <= now { Phase::Due } else { Phase::Over { next, times } };
            return false;
        }
        let is_due = times.chores <= now;
        if is_due {
            times.chores = now + times.interval;
        }
        self.phase = Phase::Over { next: now + times.look(), times };
        is_due
    }

    /// Notes that Consul carried out a write: a round follows.
    pub(super) fn wrote(&mut self) {
        self.has_written = true;
    }

    /// Notes that Consul did not say where it stands. Answers whether it is unavailable: not after the first time.
    pub(super) fn look_failed(&mut self, now: Instant) -> bool {
        if let Phase::Looking { times, .. } = self.phase {
            self.phase = Phase::Over { next: now, times };
        }
        self.list_failures += 1;
        self.list_failures > 1
    }

    /// Begins a round over these nodes, which were listed while Consul stood at these indexes or after. The round takes as long
    /// as `interval` at most. Unless it is urgent, it is `spread` over that time.
    pub(super) fn listed(
        &mut self,
        nodes: BTreeSet<Str>,
        indexes: Indexes,
        now: Instant,
        interval: Duration,
        spread: bool,
    ) {
        let is_urgent = std::mem::take(&mut self.is_urgent) || !spread;
        let moved = self.known.is_some_and(|known| known.instances != indexes.instances);
        self.indexes = Some(indexes);
        self.has_written = false;
        self.list_failures = 0;
        self.failing.retain(|node, _| nodes.contains(node));
        self.pending = nodes.iter().filter(|node| !self.failing.contains_key(*node)).cloned().collect();
        let count = u32::try_from(self.pending.len()).unwrap_or(u32::MAX).max(1);
        let gap = match (is_urgent, moved) {
            (true, _) => Duration::ZERO,
            (false, true) => interval / count.max(FAST_READS),
            (false, false) => interval / count,
        };
        let times = Times { began: now, interval, chores: now + interval };
        self.phase = Phase::Reading { next: now, gap, times };
        self.nodes = nodes;
    }

    /// Notes that the nodes could not be listed. Answers whether Consul is unavailable: not after the first time.
    pub(super) fn list_failed(&mut self) -> bool {
        self.list_failures += 1;
        self.phase = Phase::Due;
        self.list_failures > 1
    }

    /// Notes that a node was read. Answers whether it had not been for a while.
    pub(super) fn read(&mut self, node: &Str, reader: Reader) -> bool {
        let is_of_round = self.no_longer_reads(node, reader);
        let Some(failing) = self.failing.remove(node) else { return false };
        if !is_of_round {
            // A read for a write may have begun before the round.
            self.read_in_round(node);
        }
        failing.failures > 1
    }

    /// Notes the end of a read. Answers whether it was the one of this round.
    fn no_longer_reads(&mut self, node: &Str, reader: Reader) -> bool {
        let is_of_round = self.reading.get(node) == Some(&reader);
        if is_of_round {
            self.reading.remove(node);
        }
        is_of_round
    }

    /// Has a node of this round read in it, unless it is being read.
    fn read_in_round(&mut self, node: &Str) {
        if self.nodes.contains(node) && !self.reading.contains_key(node) {
            self.pending.insert(node.clone());
        }
    }

    /// Notes that a node could not be read. With `needs_all`, one such node is enough for Consul to be unavailable.
    pub(super) fn read_failed(
        &mut self,
        node: &Str,
        reader: Reader,
        needs_all: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> Verdict {
        self.no_longer_reads(node, reader);
        let failing = self.failing.entry(node.clone()).or_insert(Failing { failures: 0, due: now });
        failing.failures = failing.failures.saturating_add(1);
        let failures = failing.failures;
        if failures == 1 {
            return Verdict::Again;
        }
        failing.due = now + Backoff::NODE.wait(failures - 1, random);
        let is_failing = |node: &Str| self.failing.get(node).is_some_and(|failing| failing.failures > 1);
        if needs_all || self.nodes.iter().all(is_failing) {
            return Verdict::Outage;
        }
        Verdict::Later { is_new: failures == 2 }
    }

    /// Notes that a node was not read after all: its turn comes again.
    pub(super) fn put_back(&mut self, node: &Str, reader: Reader) {
        if self.no_longer_reads(node, reader) && !self.failing.contains_key(node) {
            self.read_in_round(node);
        }
    }

    /// Notes that Consul is unavailable: that a node could not be read says nothing of the node.
    pub(super) fn outage(&mut self) {
        if matches!(self.phase, Phase::Reading { .. }) {
            self.pending.extend(self.failing.keys().filter(|node| self.nodes.contains(*node)).cloned());
        }
        self.failing.clear();
        self.list_failures = 0;
    }

    /// Ends the round if every node of it was read, or was found not to be readable now. Answers whether it has ended.
    pub(super) fn end_round(&mut self, now: Instant) -> bool {
        let Phase::Reading { times, .. } = self.phase else { return false };
        let is_decided = |node: &Str| self.failing.get(node).is_some_and(|failing| failing.failures > 1);
        let is_over = self.pending.is_empty() && self.reading.keys().chain(self.failing.keys()).all(is_decided);
        if is_over {
            self.known = self.indexes.take().filter(|_| self.failing.is_empty());
            if self.known.is_some() {
                self.fresh_since = Some(times.began);
            }
            // While a node cannot be read, the others are read once in each interval.
            let next = if self.known.is_some() { now + times.look() } else { times.chores };
            self.phase = Phase::Over { next: next.max(now), times };
        }
        is_over
    }

    /// Counts the nodes that could not be read twice in a row.
    pub(super) fn failing_len(&self) -> usize {
        self.failing.values().filter(|failing| failing.failures > 1).count()
    }

    /// Gives the greatest age of what is known of Consul: each node was read since then, or nothing had changed. None before the
    /// first time.
    pub(super) fn age(&self) -> Option<Duration> {
        self.fresh_since.map(|at| at.elapsed())
    }

    /// Notes that what was asked is not answered any more. The round goes on later.
    pub(super) fn interrupt(&mut self) {
        let reading = std::mem::take(&mut self.reading);
        self.outage();
        match self.phase {
            Phase::Listing => self.phase = Phase::Due,
            Phase::Reading { .. } => self.pending.extend(reading.into_keys().filter(|node| self.nodes.contains(node))),
            Phase::Looking { asked, times } => self.phase = Phase::Over { next: asked, times },
            Phase::Due | Phase::Over { .. } => {}
        }
    }

    /// Begins anew: what was asked before is not answered any more.
    pub(super) fn reset(&mut self) {
        *self = Self { fresh_since: self.fresh_since, ..Self::default() };
    }
}

/// Says whether Consul stood here before it stood there: it never goes back by itself.
fn is_before(here: Indexes, there: Indexes) -> bool {
    here.instances < there.instances || here.checks < there.checks
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const INDEXES: Indexes = Indexes { instances: 7, checks: 8 };

    fn nodes(names: &[&str]) -> BTreeSet<Str> {
        names.iter().map(|name| Str::from(*name)).collect()
    }

    /// A round over these nodes, spread over the interval.
    fn round(names: &[&str], now: Instant) -> Resync {
        let mut resync = Resync::default();
        assert_eq!(next(&mut resync, now).as_deref(), Some("the list"));
        resync.listed(nodes(names), INDEXES, now, INTERVAL, true);
        resync
    }

    /// Takes the next thing to ask: the list, or this node.
    fn next(resync: &mut Resync, now: Instant) -> Option<String> {
        resync.next(now).map(|ask| match ask {
            Ask::Indexes => "the indexes".to_owned(),
            Ask::List => "the list".to_owned(),
            Ask::Read(node) => node.to_string(),
        })
    }

    fn fail(resync: &mut Resync, name: &str, now: Instant) -> Verdict {
        resync.read_failed(&name.into(), Reader::Resync, false, now, &mut fastrand::Rng::with_seed(1))
    }

    #[test]
    fn nodes_are_read_one_after_the_other_over_the_interval() {
        let start = Instant::now();
        let mut resync = round(&["a", "b", "c"], start);
        for (seconds, node) in [(0, "a"), (10, "b"), (20, "c")] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(resync.due(), Some(now), "{node}");
            assert_eq!(next(&mut resync, now).as_deref(), Some(node));
            assert_eq!((resync.next(now), resync.end_round(now)), (None, false), "{node}");
            assert!(!resync.read(&node.into(), Reader::Resync));
        }
        let end = start + Duration::from_secs(21);
        assert_eq!((resync.end_round(end), resync.fresh_since), (true, Some(start)));
        let look = end + Duration::from_secs(1);
        assert_eq!((resync.due(), resync.next(end)), (Some(look), None));
        assert_eq!(next(&mut resync, look).as_deref(), Some("the indexes"));
    }

    /// A round that is over at `now`, in which nothing had to be read.
    fn over(now: Instant) -> Resync {
        let mut resync = round(&[], now);
        assert!(resync.end_round(now));
        resync
    }

    /// Has Consul say at `at` that it stands there. Answers what is asked next at that time, and whether the chores are due.
    fn look(resync: &mut Resync, indexes: Indexes, needs_round: bool, at: Instant) -> (Option<String>, bool) {
        assert_eq!(next(resync, at).as_deref(), Some("the indexes"));
        let is_due = resync.looked(indexes, needs_round, at);
        (next(resync, at), is_due)
    }

    #[test]
    fn nothing_is_read_while_nothing_changes() {
        let start = Instant::now();
        let mut resync = over(start);
        for second in 1..300 {
            let at = start + Duration::from_secs(second);
            assert_eq!(look(&mut resync, INDEXES, false, at), (None, second % 30 == 0), "{second}");
            assert_eq!(resync.fresh_since, Some(at));
        }
        let full = look(&mut resync, INDEXES, false, start + INTERVAL * FULL);
        assert_eq!(full, (Some("the list".to_owned()), false), "in case that Consul is wrong");
    }

    #[test]
    fn a_change_in_consul_begins_a_round() {
        let start = Instant::now();
        let list = || Some("the list".to_owned());
        let (instances, checks) = (Indexes { instances: 9, ..INDEXES }, Indexes { checks: 9, ..INDEXES });
        let restored = Indexes { instances: 3, checks: 3 };
        for (found, needs_round, second, expected) in [
            (instances, false, 6, list()),
            (checks, false, 6, list()),
            (restored, false, 6, list()),
            (restored, false, 2, list()),
            (INDEXES, true, 6, None),
            (INDEXES, true, 30, list()),
            // A round has just begun.
            (instances, false, 2, None),
        ] {
            let at = start + Duration::from_secs(second);
            let (asked, is_due) = look(&mut over(start), found, needs_round, at);
            assert_eq!((asked, is_due), (expected, false), "{found:?} {needs_round} {second}");
        }
        let mut resync = over(start);
        look(&mut resync, instances, false, start + Duration::from_secs(2));
        assert_eq!(resync.due(), Some(start + INTERVAL / ROUNDS), "no later than it may");
    }

    #[test]
    fn a_round_follows_a_write_that_has_moved_nothing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut resync = over(start);
        resync.wrote();
        assert_eq!(look(&mut resync, INDEXES, false, at(6)), (Some("the list".to_owned()), false));
        resync.listed(nodes(&["a"]), INDEXES, at(6), INTERVAL, true);
        resync.next(at(6));
        // Its row may not have been taken over, as this read had begun before.
        resync.wrote();
        resync.read(&"a".into(), Reader::Resync);
        assert!(resync.end_round(at(6)));
        assert_eq!(look(&mut resync, INDEXES, false, at(12)), (Some("the list".to_owned()), false));
        resync.listed(nodes(&[]), INDEXES, at(12), INTERVAL, true);
        assert!(resync.end_round(at(12)));
        assert_eq!(look(&mut resync, INDEXES, false, at(18)), (None, false), "nothing was written since");
    }

    #[test]
    fn a_consul_that_was_restored_is_read_at_once() {
        let start = Instant::now();
        for (found, gap) in [
            (Indexes { instances: 6, checks: 99 }, Duration::ZERO),
            (Indexes { instances: 99, checks: 6 }, Duration::ZERO),
            (Indexes { checks: 99, ..INDEXES }, INTERVAL / 3),
        ] {
            let mut resync = over(start);
            let at = start + Duration::from_secs(6);
            look(&mut resync, found, false, at);
            resync.listed(nodes(&["a", "b", "c"]), found, at, INTERVAL, true);
            assert_eq!(next(&mut resync, at).as_deref(), Some("a"));
            assert_eq!(resync.due(), Some(at + gap), "{found:?}");
        }
    }

    #[test]
    fn what_changed_on_instances_is_read_sooner_than_what_changed_on_checks() {
        let start = Instant::now();
        let names = ["a", "b", "c"];
        for (found, gap) in [
            (Indexes { instances: 9, ..INDEXES }, INTERVAL / FAST_READS),
            (Indexes { checks: 9, ..INDEXES }, INTERVAL / 3),
            (INDEXES, INTERVAL / 3),
        ] {
            let mut resync = over(start);
            let at = start + Duration::from_secs(6);
            look(&mut resync, Indexes { checks: 99, ..INDEXES }, false, at);
            resync.listed(nodes(&names), found, at, INTERVAL, true);
            assert_eq!(next(&mut resync, at).as_deref(), Some("a"));
            assert_eq!(resync.due(), Some(at + gap), "{found:?}");
        }
    }

    #[test]
    fn consul_is_unavailable_where_it_does_not_say_twice_where_it_stands() {
        let start = Instant::now();
        let mut resync = over(start);
        let at = start + Duration::from_secs(1);
        assert_eq!(next(&mut resync, at).as_deref(), Some("the indexes"));
        assert!(!resync.look_failed(at));
        assert_eq!(next(&mut resync, at).as_deref(), Some("the indexes"), "at once");
        assert!(resync.look_failed(at));
    }

    #[test]
    fn a_round_in_which_a_node_could_not_be_read_is_followed_by_another() {
        let now = Instant::now();
        let mut resync = round(&["a", "b"], now);
        for _ in 0..2 {
            next(&mut resync, now);
            fail(&mut resync, "a", now);
        }
        let later = now + INTERVAL / 2;
        next(&mut resync, later);
        next(&mut resync, later);
        resync.read(&"b".into(), Reader::Resync);
        fail(&mut resync, "a", later);
        assert!(resync.end_round(later));
        resync.read_failed(&"a".into(), Reader::Resync, false, later, &mut fastrand::Rng::with_seed(1));
        let end = now + INTERVAL;
        resync.failing.clear();
        assert_eq!(look(&mut resync, INDEXES, false, end), (Some("the list".to_owned()), false));
    }

    #[test]
    fn a_round_in_a_hurry_reads_a_few_at_once() {
        let now = Instant::now();
        let mut resync = Resync::default();
        resync.next(now);
        let names: Vec<String> = (10..20).map(|number| number.to_string()).collect();
        resync.listed(nodes(&names.iter().map(String::as_str).collect::<Vec<_>>()), INDEXES, now, INTERVAL, false);
        assert_eq!(std::iter::from_fn(|| resync.next(now)).count(), READS);
        assert_eq!(resync.due(), None, "an answer comes first");
        resync.read(&"10".into(), Reader::Resync);
        assert_eq!(next(&mut resync, now).as_deref(), Some("18"));
    }

    #[test]
    fn a_node_that_fails_is_read_again_at_once_and_then_later_while_the_others_count() {
        let now = Instant::now();
        let mut resync = round(&["a", "b"], now);
        assert_eq!(next(&mut resync, now).as_deref(), Some("a"));
        assert_eq!(fail(&mut resync, "a", now), Verdict::Again);
        assert_eq!((next(&mut resync, now).as_deref(), resync.end_round(now)), (Some("a"), false));
        assert_eq!(fail(&mut resync, "a", now), Verdict::Later { is_new: true });
        assert_eq!(resync.next(now), None, "it waits");
        let later = now + Duration::from_secs(15);
        assert_eq!(next(&mut resync, later).as_deref(), Some("a"));
        assert_eq!(fail(&mut resync, "a", later), Verdict::Later { is_new: false });
        assert_eq!(next(&mut resync, later).as_deref(), Some("b"));
        resync.read(&"b".into(), Reader::Resync);
        assert_eq!((resync.end_round(now), resync.fresh_since, resync.failing_len()), (true, None, 1));
        let recovers = later + Duration::from_secs(10);
        assert_eq!(next(&mut resync, recovers).as_deref(), Some("a"));
        assert!(resync.read(&"a".into(), Reader::Resync), "it could not be read before");
        assert_eq!(resync.failing_len(), 0);
    }

    #[test]
    fn consul_is_unavailable_where_no_node_can_be_read_or_all_are_needed() {
        let now = Instant::now();
        let random = &mut fastrand::Rng::with_seed(1);
        for (names, needs_all, expected) in [
            (&["a"] as &[&str], false, Verdict::Outage),
            (&["a", "b"], false, Verdict::Later { is_new: true }),
            (&["a", "b"], true, Verdict::Outage),
        ] {
            let mut resync = round(names, now);
            resync.next(now);
            assert_eq!(resync.read_failed(&"a".into(), Reader::Resync, needs_all, now, random), Verdict::Again);
            assert_eq!(
                resync.read_failed(&"a".into(), Reader::Resync, needs_all, now, random),
                expected,
                "{names:?} {needs_all}"
            );
        }
    }

    #[test]
    fn after_an_outage_a_round_goes_on_or_begins_anew() {
        let now = Instant::now();
        let mut resync = round(&["a", "b"], now);
        resync.next(now);
        fail(&mut resync, "a", now);
        resync.outage();
        assert_eq!(next(&mut resync, now + INTERVAL).as_deref(), Some("a"), "it is still to be read");
        resync.put_back(&"a".into(), Reader::Resync);
        resync.hurry();
        assert_eq!(next(&mut resync, now).as_deref(), Some("the list"));
        resync.hurry();
        assert_eq!(resync.next(now), None, "the list is under way");
        assert!(!resync.list_failed());
        assert_eq!(next(&mut resync, now).as_deref(), Some("the list"));
        assert!(resync.list_failed(), "twice");
    }

    #[test]
    fn a_round_that_is_interrupted_goes_on() {
        let now = Instant::now();
        let mut resync = round(&["a", "b"], now);
        resync.next(now);
        resync.interrupt();
        let later = now + INTERVAL;
        assert_eq!(next(&mut resync, later).as_deref(), Some("a"), "it is not known what is on it");
        assert_eq!(next(&mut resync, later).as_deref(), Some("b"));
        let mut resync = Resync::default();
        resync.next(now);
        resync.interrupt();
        assert_eq!(next(&mut resync, now).as_deref(), Some("the list"));
    }

    #[test]
    fn a_round_of_which_only_a_read_of_another_node_was_left_is_over_when_that_is_interrupted() {
        let now = Instant::now();
        let mut resync = round(&["a"], now);
        assert_eq!(next(&mut resync, now).as_deref(), Some("a"));
        // A write was to make it since the list.
        resync.read_failed(&"b".into(), Reader::Lane, false, now, &mut fastrand::Rng::with_seed(1));
        assert_eq!(next(&mut resync, now).as_deref(), Some("b"));
        resync.read(&"a".into(), Reader::Resync);
        assert!(!resync.end_round(now), "the other one is being read");
        resync.interrupt();
        assert_eq!((resync.next(now), resync.due()), (None, None), "nothing is left to wait for");
        assert!(resync.end_round(now));
        assert!(resync.due().is_some());
    }

    #[test]
    fn a_round_without_nodes_is_over_at_once() {
        let now = Instant::now();
        assert!(round(&[], now).end_round(now));
    }

    /// The state of a round after a read for a write that was answered while this was under way: whether it is over, and whether
    /// the node is still to be read.
    #[test]
    fn a_read_for_a_write_counts_for_the_round_only_in_place_of_the_resyncs_own() {
        type Begin<'a> = Box<dyn FnOnce(&mut Resync) + 'a>;
        let (now, random) = (Instant::now(), &mut fastrand::Rng::with_seed(1));
        let own = |resync: &mut Resync| drop(resync.next(now));
        let by_lane = |resync: &mut Resync| {
            resync.next(now);
            resync.lane_reads(&"a".into());
        };
        let failing = |resync: &mut Resync| {
            resync.next(now);
            resync.read_failed(&"a".into(), Reader::Resync, false, now, random);
        };
        let cases: [(&str, Begin<'_>, bool, Option<&str>); 4] = [
            ("nothing", Box::new(|_| {}), false, Some("a")),
            ("the resync's own read", Box::new(own), false, None),
            ("the resync, by the lane", Box::new(by_lane), true, None),
            ("nothing, after a read that failed", Box::new(failing), false, Some("a")),
        ];
        for (under_way, begin, is_over, node) in cases {
            let mut resync = Resync::default();
            resync.next(now);
            resync.listed(nodes(&["a"]), INDEXES, now, INTERVAL, false);
            begin(&mut resync);
            assert!(!resync.read(&"a".into(), Reader::Lane), "{under_way}");
            assert_eq!((resync.end_round(now), next(&mut resync, now).as_deref()), (is_over, node), "{under_way}");
            if !is_over {
                resync.read(&"a".into(), Reader::Resync);
                assert!(resync.end_round(now), "{under_way}");
            }
        }
    }

    #[test]
    fn a_read_for_a_write_that_fails_leaves_the_resyncs_own_under_way() {
        let now = Instant::now();
        let mut resync = round(&["a", "b"], now);
        resync.next(now);
        resync.put_back(&"a".into(), Reader::Lane);
        assert_eq!(
            resync.read_failed(&"a".into(), Reader::Lane, false, now, &mut fastrand::Rng::with_seed(1)),
            Verdict::Again
        );
        assert_eq!(resync.next(now), None, "it is being read");
    }
}

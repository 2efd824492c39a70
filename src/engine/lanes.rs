//! One lane for each Consul node: writes to one node never overtake each other, and several nodes are written to side
//! by side.
//!
//! In: the writes that decisions ask for, and what became of them. Out: the next node to read or to write to. A write that
//! got no answer may have been made: its node is read before it is written to again.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::diff::Op;
use crate::model::ids::{ResourceKey, Str};
use crate::model::isolation::Isolation;
use crate::model::plan::{Plan, Planned, Rank, Wanted};
use crate::model::registration::{Registration, RowKey};
use crate::ports::Unavailable;

/// The most writes in a bundle that holds only writes that can wait. Another one begins as long as no more than so many of
/// them are under way. Consul carries out one transaction at a time, so an urgent write waits for all that came before it.
const LATER: usize = 30;

/// The most nodes that are read at once.
const READS: usize = 8;

/// The lanes of all Consul nodes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The writes that wait.
    queue: Plan,
    /// The writes that are under way.
    in_flight: BTreeMap<RowKey, Planned>,
    /// The same writes, by the resources that they are for.
    in_flight_of: BTreeMap<ResourceKey, BTreeSet<RowKey>>,
    /// The nodes that are being written to or read.
    busy: BTreeSet<Str>,
    /// Counts those of them that are being read.
    reading: usize,
    /// Counts the writes of those of them that only get writes that can wait.
    later: BTreeMap<Str, usize>,
    /// The nodes that are read before they are written to again.
    must_read: BTreeSet<Str>,
    /// Those of them that cannot be read for now: nothing is written to them, and they are not read.
    postponed: BTreeSet<Str>,
    /// The nodes that were read for their users' tags since the last write to them.
    fresh: BTreeSet<Str>,
    /// The resources of which a write got no answer, on which nodes, and the names that may be registered there since: until
    /// these nodes are read nobody can say that nothing of such a resource is left.
    unknown: BTreeMap<ResourceKey, BTreeMap<Str, BTreeSet<Str>>>,
    /// The node that was written to last.
    cursor: Option<Str>,
    /// Finds out which write is at fault, if some fail and others do not.
    isolation: Isolation,
    /// Writes that failed together, and wait for the answer to whether others are carried out.
    failed: Vec<FailedWrites>,
    /// True if that is being asked: nothing else is written meanwhile.
    is_checking: bool,
}

/// Writes that went to Consul together, and got no answer of their own.
#[derive(Debug)]
pub(super) struct FailedWrites {
    pub(super) writes: Vec<Planned>,
    pub(super) outage: Unavailable,
}

/// The next thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Read a node.
    Read(Str),
    /// Make these writes on a node.
    Write(Str, Vec<Planned>),
}

impl Lanes {
    /// Puts the writes of a resource in place of those that waited.
    pub(super) fn replace(&mut self, owner: &ResourceKey, writes: Vec<Wanted>) {
        self.queue.replace(owner, writes);
    }

    /// Takes back the writes of a resource that wait and that `is_stale` names.
    pub(super) fn withdraw(&mut self, owner: &ResourceKey, is_stale: impl Fn(&Op) -> bool) {
        self.queue.withdraw(owner, is_stale);
    }

    /// Says whether writes of a resource wait.
    pub(super) fn has_waiting(&self, owner: &ResourceKey) -> bool {
        self.queue.has(owner)
    }

    /// Says whether a write for an instance waits.
    pub(super) fn is_waiting(&self, row: &RowKey) -> bool {
        self.queue.has_row(row)
    }

    /// Says whether a write for an instance is under way.
    pub(super) fn is_in_flight(&self, row: &RowKey) -> bool {
        self.in_flight.contains_key(row)
    }

    /// The registrations of a resource that are being written.
    pub(super) fn being_registered<'a>(
        &'a self,
        owner: &'a ResourceKey,
    ) -> impl Iterator<Item = (&'a Str, &'a Registration)> + Clone {
        self.in_flight_of(owner).filter_map(|(row, one)| Some((&row.id, &**one.op.registration()?)))
    }

    fn in_flight_of<'a>(&'a self, owner: &'a ResourceKey) -> impl Iterator<Item = (&'a RowKey, &'a Planned)> + Clone {
        self.in_flight_of.get(owner).into_iter().flatten().filter_map(|row| self.in_flight.get_key_value(row))
    }

    /// Counts the writes that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// Counts the writes that are under way.
    pub(super) fn in_flight_len(&self) -> usize {
        self.in_flight.len()
    }

    /// Says whether a write of a resource got no answer, and its node has not been read since.
    pub(super) fn has_unknown(&self, owner: &ResourceKey) -> bool {
        self.unknown.contains_key(owner)
    }

    /// The names that a resource may be registered under since, as writes of it are under way or got no answer.
    pub(super) fn names_in_doubt(&self, owner: &ResourceKey) -> BTreeSet<Str> {
        let under_way = self.in_flight_of(owner).filter_map(|(_, one)| name(&one.op));
        let unknown = self.unknown.get(owner).into_iter().flat_map(BTreeMap::values).flatten().cloned();
        under_way.chain(unknown).collect()
    }

    /// Has a node read before it is written to, unless it was read since the last write to it.
    pub(super) fn want_fresh(&mut self, node: &Str) {
        if !self.fresh.contains(node) {
            self.must_read.insert(node.clone());
        }
    }

    /// Takes the next turn: a node that is to be read first, then one with urgent writes, then any other. At most so many
    /// `bundles` are under way at once, and one has at most `bundle_size` writes.
    pub(super) fn next_turn(&mut self, bundles: usize, bundle_size: usize) -> Option<Turn> {
        if self.is_checking || self.busy.len() >= bundles {
            return None;
        }
        if self.reading < READS
            && let Some(node) = self.must_read.iter().find(|node| self.is_free(node)).cloned()
        {
            self.must_read.remove(&node);
            self.busy.insert(node.clone());
            self.reading += 1;
            return Some(Turn::Read(node));
        }
        let (node, rank) = self.queue.next_node(self.cursor.as_ref(), |node| self.is_free(node))?;
        let (node, mut most) = (node.clone(), bundle_size);
        if rank == Rank::Later {
            if self.later.values().sum::<usize>() > LATER {
                return None;
            }
            most = most.min(LATER);
        }
        let writes = self.queue.take(&node, most, &self.isolation);
        if rank == Rank::Later {
            self.later.insert(node.clone(), writes.len());
        }
        for one in &writes {
            self.in_flight_of.entry(one.owner.clone()).or_default().insert(one.op.key().clone());
            self.in_flight.insert(one.op.key().clone(), one.clone());
        }
        self.fresh.remove(&node);
        self.busy.insert(node.clone());
        self.cursor = Some(node.clone());
        Some(Turn::Write(node, writes))
    }

    fn is_free(&self, node: &Str) -> bool {
        !self.busy.contains(node)
            && !self.postponed.contains(node)
            && (self.reading < READS || !self.must_read.contains(node))
    }

    /// Notes that a node was read. Answers the resources of which nothing is unknown any more.
    pub(super) fn read(&mut self, node: &Str) -> Vec<ResourceKey> {
        self.no_longer_reads(node);
        self.fresh.insert(node.clone());
        let mut known = Vec::new();
        self.unknown.retain(|owner, nodes| {
            nodes.remove(node);
            if nodes.is_empty() {
                known.push(owner.clone());
            }
            !nodes.is_empty()
        });
        known
    }

    /// Notes that a node could not be read: it still has to be.
    pub(super) fn read_failed(&mut self, node: Str) {
        self.no_longer_reads(&node);
        self.must_read.insert(node);
    }

    fn no_longer_reads(&mut self, node: &Str) {
        if self.busy.remove(node) {
            self.reading = self.reading.saturating_sub(1);
        }
    }

    /// Notes that a node cannot be read for now. If it has to be before the next write, that waits, too.
    pub(super) fn postpone(&mut self, node: &Str) {
        if self.must_read.contains(node) {
            self.postponed.insert(node.clone());
        }
    }

    /// Gives the nodes that have to be read and could not be.
    pub(super) fn postponed(&self) -> impl Iterator<Item = &Str> {
        self.postponed.iter()
    }

    /// Has a node read again that could not be. Answers whether it is one.
    pub(super) fn resume(&mut self, node: &Str) -> bool {
        self.postponed.remove(node)
    }

    /// Has all nodes read again that could not be: it was not theirs.
    pub(super) fn resume_all(&mut self) {
        self.postponed.clear();
    }

    /// Notes that the writes to a node have been answered.
    pub(super) fn wrote(&mut self, node: &Str) {
        self.busy.remove(node);
        self.later.remove(node);
    }

    /// Notes that a write is not under way any more.
    pub(super) fn ended(&mut self, row: &RowKey) {
        let Some(one) = self.in_flight.remove(row) else { return };
        if let Some(rows) = self.in_flight_of.get_mut(&one.owner) {
            rows.remove(row);
            if rows.is_empty() {
                self.in_flight_of.remove(&one.owner);
            }
        }
    }

    /// Notes that Consul carried out a write, or refused it by itself.
    pub(super) fn dealt_with(&mut self, row: &RowKey) {
        self.isolation.dealt_with(row);
    }

    /// Notes that a write got no answer that counts: its node is to be read.
    pub(super) fn unanswered(&mut self, owner: &ResourceKey, node: &Str, op: &Op) {
        self.unknown.entry(owner.clone()).or_default().entry(node.clone()).or_default().extend(name(op));
        self.must_read.insert(node.clone());
    }

    /// Notes that writes failed together. Answers whether it is to be found out now if Consul carries out others.
    pub(super) fn failed(&mut self, failed: FailedWrites) -> bool {
        self.failed.push(failed);
        !std::mem::replace(&mut self.is_checking, true)
    }

    /// Takes the writes that failed, now that it is known whether Consul carries out others. With `is_outage`, it does
    /// not, and nothing is known of any single write.
    pub(super) fn checked(&mut self, is_outage: bool) -> Vec<FailedWrites> {
        self.is_checking = false;
        let failed = std::mem::take(&mut self.failed);
        if is_outage {
            self.isolation.clear();
            return Vec::new();
        }
        failed
    }

    /// Says whether one of these writes may be at fault where some fail: nothing else goes with them.
    pub(super) fn are_suspect(&self, writes: &[Planned]) -> bool {
        writes.iter().any(|write| self.isolation.together(&write.op).is_some())
    }

    /// Notes that these writes failed together while Consul carries out others. Answers whether they are one write that is
    /// at fault.
    pub(super) fn is_at_fault(&mut self, writes: &[Planned]) -> bool {
        self.isolation.failed(&writes.iter().map(|write| &write.op).collect::<Vec<&Op>>())
    }

    /// Forgets which writes failed that nobody wants any more; `is_refused` answers for an instance.
    pub(super) fn forget_failed(&mut self, is_refused: impl Fn(&RowKey) -> bool) {
        let Self { isolation, in_flight, queue, .. } = self;
        isolation.retain(|row| in_flight.contains_key(row) || queue.has_row(row) || is_refused(row));
    }

    /// Forgets for which nodes without writes it is known that they were read.
    pub(super) fn forget_fresh(&mut self) {
        self.fresh.retain(|node| self.queue.has_node(node));
    }

    /// Forgets what waits and what was learned. What is under way stays so, and what has to be read.
    pub(super) fn reset(&mut self) {
        self.queue.clear();
        self.postponed.clear();
        self.fresh.clear();
        self.failed.clear();
        self.isolation.clear();
        self.is_checking = false;
    }
}

/// The name that a write registers under; none where it registers nothing.
fn name(op: &Op) -> Option<Str> {
    match op {
        Op::Register { registration, .. } => Some(registration.service.clone()),
        Op::Readiness { .. } | Op::Disown { .. } | Op::Deregister { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn row(node: &str, id: &str) -> RowKey {
        RowKey { node: node.into(), id: id.into() }
    }

    fn owner() -> ResourceKey {
        ResourceKey::new("shop", "web")
    }

    /// Lanes with one write for each of these nodes.
    fn lanes(nodes: &[&str]) -> Lanes {
        let mut lanes = Lanes::default();
        let write = |node: &&str| Wanted { op: removal(node), rank: Rank::Urgent, why: "a test".into() };
        lanes.replace(&owner(), nodes.iter().map(write).collect());
        lanes
    }

    fn removal(node: &str) -> Op {
        Op::Deregister { key: row(node, "1"), service: "s".into() }
    }

    fn take(lanes: &mut Lanes) -> Option<String> {
        lanes.next_turn(2, 60).map(|turn| match turn {
            Turn::Read(node) => format!("read {node}"),
            Turn::Write(node, writes) => format!("write {node}: {}", writes.len()),
        })
    }

    #[test]
    fn nodes_take_turns_and_no_more_are_busy_than_may_be() {
        let mut lanes = lanes(&["a", "b", "c"]);
        assert_eq!(take(&mut lanes).as_deref(), Some("write a: 1"));
        assert_eq!(take(&mut lanes).as_deref(), Some("write b: 1"));
        assert_eq!(take(&mut lanes), None, "two are busy");
        assert!(lanes.is_in_flight(&row("a", "1")) && lanes.len() == 3);
        lanes.ended(&row("a", "1"));
        lanes.wrote(&"a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("write c: 1"));
    }

    #[test]
    fn what_can_wait_leaves_room_for_what_is_urgent() {
        let mut lanes = Lanes::default();
        let write = |rank, node: &str, id: usize| Wanted {
            op: Op::Deregister { key: row(node, &id.to_string()), service: "s".into() },
            rank,
            why: "a test".into(),
        };
        let many = |node| (0..=LATER).map(move |id| write(Rank::Later, node, id));
        lanes.replace(&owner(), ["a", "b", "c"].into_iter().flat_map(many).collect());
        let next = |lanes: &mut Lanes| match lanes.next_turn(8, 60) {
            Some(Turn::Write(node, writes)) => Some((node.to_string(), writes.len())),
            Some(Turn::Read(_)) | None => None,
        };
        assert_eq!(next(&mut lanes), Some(("a".to_owned(), LATER)));
        assert_eq!(next(&mut lanes), Some(("b".to_owned(), LATER)));
        assert_eq!(next(&mut lanes), None, "enough of them are under way");
        lanes.replace(&ResourceKey::new("shop", "db"), vec![write(Rank::Urgent, "d", 0)]);
        assert_eq!(next(&mut lanes), Some(("d".to_owned(), 1)));
        lanes.wrote(&"a".into());
        assert_eq!(next(&mut lanes), Some(("a".to_owned(), 1)), "there is room again");
        assert_eq!(next(&mut lanes), None, "more than one bundle of them is under way");
        lanes.wrote(&"b".into());
        assert_eq!(next(&mut lanes), Some(("b".to_owned(), 1)), "many small ones go side by side");
        assert_eq!(next(&mut lanes), Some(("c".to_owned(), LATER)));
    }

    #[test]
    fn few_nodes_are_read_at_once_and_those_that_are_to_be_are_not_written_to() {
        let names: Vec<String> = (10..20).map(|number| number.to_string()).collect();
        let mut lanes = lanes(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for name in &names[..9] {
            lanes.want_fresh(&name.as_str().into());
        }
        let next = |lanes: &mut Lanes| match lanes.next_turn(64, 60) {
            Some(Turn::Read(node)) => Some(format!("read {node}")),
            Some(Turn::Write(node, _)) => Some(format!("write {node}")),
            None => None,
        };
        for name in &names[..READS] {
            assert_eq!(next(&mut lanes), Some(format!("read {name}")));
        }
        assert_eq!(next(&mut lanes).as_deref(), Some("write 19"));
        assert_eq!(next(&mut lanes), None, "one is to be read, and it is not its turn");
        lanes.read(&"10".into());
        assert_eq!(next(&mut lanes).as_deref(), Some("read 18"));
    }

    #[test]
    fn a_node_with_an_unanswered_write_is_read_before_it_is_written_to() {
        let mut lanes = lanes(&["a"]);
        take(&mut lanes);
        lanes.ended(&row("a", "1"));
        lanes.wrote(&"a".into());
        lanes.unanswered(&owner(), &"a".into(), &removal("a"));
        assert!(lanes.has_unknown(&owner()));
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"));
        lanes.read_failed("a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"), "it still has to be");
        assert_eq!(lanes.read(&"a".into()), [owner()]);
        assert!(!lanes.has_unknown(&owner()));
    }

    #[test]
    fn a_name_is_in_doubt_until_its_registrations_are_answered_or_their_nodes_are_read() {
        let register = |node: &str, service: &str| Op::Register {
            key: row(node, "1"),
            registration: Arc::new(Registration::plain(service, "10.0.0.1", 80)),
            drop_checks: Vec::new(),
        };
        let mut lanes = Lanes::default();
        let write = |op| Wanted { op, rank: Rank::Urgent, why: "a test".into() };
        let ops = [register("a", "under-way"), register("b", "unanswered"), removal("c")];
        lanes.replace(&owner(), ops.iter().cloned().map(write).collect());
        let in_doubt = |lanes: &Lanes| lanes.names_in_doubt(&owner()).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(in_doubt(&lanes), "", "what waits is not under way");
        while lanes.next_turn(3, 60).is_some() {}
        assert_eq!(in_doubt(&lanes), "unanswered under-way");
        for op in &ops {
            lanes.ended(op.key());
        }
        assert_eq!(in_doubt(&lanes), "");
        assert!(lanes.in_flight_of.is_empty(), "nothing is kept of what has ended");
        lanes.unanswered(&owner(), &"b".into(), &ops[1]);
        lanes.unanswered(&owner(), &"c".into(), &ops[2]);
        assert_eq!(in_doubt(&lanes), "unanswered");
        lanes.read(&"b".into());
        assert_eq!(in_doubt(&lanes), "");
        assert!(lanes.has_unknown(&owner()), "the node of the removal is to be read");
    }

    #[test]
    fn a_node_that_cannot_be_read_waits_and_the_others_go_on() {
        let mut lanes = lanes(&["a", "b"]);
        lanes.want_fresh(&"a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"));
        lanes.read_failed("a".into());
        lanes.postpone(&"a".into());
        lanes.postpone(&"b".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("write b: 1"), "it need not be read");
        assert_eq!(take(&mut lanes), None, "its writes wait, too");
        assert!(!lanes.resume(&"b".into()) && lanes.resume(&"a".into()));
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"));
    }

    #[test]
    fn a_read_counts_until_the_next_write() {
        let mut lanes = lanes(&["a"]);
        lanes.want_fresh(&"a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"));
        lanes.read(&"a".into());
        lanes.want_fresh(&"a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("write a: 1"), "it is fresh");
        lanes.wrote(&"a".into());
        lanes.want_fresh(&"a".into());
        assert_eq!(take(&mut lanes).as_deref(), Some("read a"));
    }

    #[test]
    fn nothing_is_written_while_it_is_found_out_whether_writes_are_carried_out() {
        let mut lanes = lanes(&["a", "b"]);
        let Some(Turn::Write(_, writes)) = lanes.next_turn(2, 60) else { panic!("a write is next") };
        let failed = || FailedWrites { writes: writes.clone(), outage: Unavailable::transient("timed out") };
        assert!(lanes.failed(failed()) && !lanes.failed(failed()), "asked once");
        assert_eq!(take(&mut lanes), None);
        assert_eq!(lanes.checked(false).len(), 2);
        assert_eq!(take(&mut lanes).as_deref(), Some("write b: 1"));
        assert!(!lanes.are_suspect(&writes));
        assert!(!lanes.is_at_fault(&writes), "others may have gone with it");
        assert!(lanes.are_suspect(&writes));
        assert!(!lanes.is_at_fault(&writes), "once may be chance");
        assert!(lanes.is_at_fault(&writes));
        lanes.failed(failed());
        assert!(lanes.checked(true).is_empty(), "it was an outage");
        assert!(!lanes.is_at_fault(&writes), "nothing is known of it any more");
    }

    #[test]
    fn a_reset_forgets_what_waits_and_not_what_is_under_way() {
        let mut lanes = lanes(&["a", "b"]);
        take(&mut lanes);
        lanes.unanswered(&owner(), &"c".into(), &removal("c"));
        lanes.reset();
        assert!(lanes.is_in_flight(&row("a", "1")) && lanes.has_unknown(&owner()));
        assert_eq!((lanes.has_waiting(&owner()), lanes.len()), (false, 1));
        assert_eq!(take(&mut lanes).as_deref(), Some("read c"));
    }
}

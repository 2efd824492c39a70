//! Which write is at fault where Consul fails: one write that fails by itself, or none, since Consul is away.
//!
//! In: the writes that were sent together and failed, where a write that changes nothing was carried out right after
//! them. Out: how many of them may be sent together next, and whether the one that is left is at fault. Where that
//! other write failed too, it was an outage, and nothing is known of any single write. One that has failed goes with
//! nothing of other nodes from then on.

use std::collections::BTreeMap;

use super::diff::Op;
use super::registration::RowKey;

/// The number of times that a write has to fail by itself before it is at fault: once may be chance.
const ALONE: u32 = 2;

/// Into how many parts writes that failed together are divided: each part that has the one at fault in it may cost a
/// whole time-out.
const PARTS: usize = 8;

/// The writes that failed while others passed.
#[derive(Debug, Default)]
pub struct Isolation {
    by_row: BTreeMap<RowKey, Failing>,
}

/// A write that failed while others passed.
#[derive(Debug)]
struct Failing {
    op: Op,
    /// The most writes that may be sent together with it, itself included.
    together: usize,
    /// Counts how often it has failed by itself.
    alone: u32,
}

impl Isolation {
    /// The most writes that may be sent together with this one, itself included; none where it has not failed.
    #[must_use]
    pub fn together(&self, op: &Op) -> Option<usize> {
        self.of(op).map(|known| known.together)
    }

    /// Notes that these were sent together and failed while others pass. Answers whether they are one write that is
    /// at fault.
    pub fn failed(&mut self, ops: &[&Op]) -> bool {
        let together = ops.len().div_ceil(PARTS);
        let mut at_fault = false;
        for op in ops {
            // One of which nothing was known may have gone with others.
            let alone = self.of(op).map_or(0, |known| known.alone + u32::from(ops.len() == 1));
            at_fault = ops.len() == 1 && alone >= ALONE;
            self.by_row.insert(op.key().clone(), Failing { op: (*op).clone(), together, alone });
        }
        at_fault
    }

    /// Notes that Consul has dealt with a write for an instance.
    pub fn dealt_with(&mut self, row: &RowKey) {
        self.by_row.remove(row);
    }

    /// Forgets all instances that this does not hold of.
    pub fn retain(&mut self, holds: impl Fn(&RowKey) -> bool) {
        self.by_row.retain(|row, _| holds(row));
    }

    /// Forgets all: it was an outage.
    pub fn clear(&mut self) {
        self.by_row.clear();
    }

    /// Gives what is known of this very write; another one for the same instance is a new one.
    fn of(&self, op: &Op) -> Option<&Failing> {
        self.by_row.get(op.key()).filter(|known| known.op == *op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove(id: &str) -> Op {
        Op::Deregister { key: RowKey { node: "n".into(), id: id.into() }, service: "s".into() }
    }

    /// Sends all, as many together as may be, until nothing is left but what is at fault; answers what that is, and how
    /// many requests failed on the way.
    fn isolate(ops: &[Op], bad: &[&str]) -> (Vec<String>, usize) {
        let (mut isolation, mut failures, mut found) = (Isolation::default(), 0, Vec::new());
        let is_bad = |op: &&Op| bad.contains(&&*op.key().id);
        let mut pending: Vec<&Op> = ops.iter().collect();
        while !pending.is_empty() {
            let most = isolation.together(pending[0]).unwrap_or(pending.len()).min(pending.len());
            let sent: Vec<&Op> = pending.drain(..most).collect();
            if !sent.iter().any(is_bad) {
                for op in sent {
                    isolation.dealt_with(op.key());
                }
                continue;
            }
            failures += 1;
            if isolation.failed(&sent) {
                found.push(sent[0].key().id.to_string());
            } else {
                pending.splice(0..0, sent);
            }
        }
        (found, failures)
    }

    #[test]
    fn those_at_fault_are_found_among_their_neighbours() {
        let ops: Vec<Op> = (0..60).map(|n| remove(&n.to_string())).collect();
        for (bad, failures) in [
            (&[][..], 0),
            // All, one eighth of them, and twice by itself.
            (&["17"], 4),
            (&["0"], 4),
            (&["59"], 4),
            (&["3", "57"], 7),
        ] {
            let (found, failed) = isolate(&ops, bad);
            assert_eq!(found, bad);
            assert_eq!(failed, failures, "{bad:?}");
        }
        let (found, failed) = isolate(&ops[..1], &["0"]);
        assert_eq!(
            (found.len(), failed),
            (1, 3),
            "one that has no neighbours here, and may have had some of other nodes"
        );
    }

    #[test]
    fn what_is_known_of_a_write_ends() {
        let (one, other) = (remove("1"), remove("2"));
        let mut isolation = Isolation::default();
        assert!(!isolation.failed(&[&one]), "others may have gone with it");
        assert!(!isolation.failed(&[&one]), "once may be chance");
        isolation.clear();
        assert!(!isolation.failed(&[&one]), "an outage between two failures says nothing of the write");
        assert!(!isolation.failed(&[&one]));
        assert!(isolation.failed(&[&one]));
        assert!(isolation.failed(&[&one]), "and each time again");
        assert_eq!((isolation.together(&one), isolation.together(&other)), (Some(1), None));
        let edited = Op::Deregister { key: one.key().clone(), service: "another".into() };
        assert_eq!(isolation.together(&edited), None, "another write for the same instance");
        isolation.dealt_with(one.key());
        assert_eq!(isolation.together(&one), None);
        assert!(!isolation.failed(&[&one, &other]));
        isolation.retain(|row| *row == *other.key());
        assert_eq!((isolation.together(&one), isolation.together(&other)), (None, Some(1)));
    }
}

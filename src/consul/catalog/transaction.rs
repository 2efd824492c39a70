//! A transaction, and which of a bundle's operations each of its own belongs to.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::consul::wire::{Check, TxnOp};
use crate::model::diff::Op;
use crate::model::ids::check_id;
use crate::model::registration::Registration;

/// The most operations in a transaction (fixed in Consul).
const MOST_OPS: usize = 128;

/// The most bytes, a little less than Consul's default of 512 KiB (`limits.txn_max_req_len`).
const MOST_BYTES: usize = 500 * 1024;

/// Says what an operation of a transaction is for. Where it belongs to an operation of the bundle, it holds that one's
/// place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The first: nothing is written unless it holds.
    Fence,
    /// Makes or changes the node.
    Node,
    /// Fails if the service is not there.
    Look(usize),
    /// Writes the service.
    Service(usize),
    /// Writes one of its checks.
    Check(usize),
}

/// The checks that were seen on a node, by ID.
pub(super) type SeenChecks = BTreeMap<String, Check>;

/// Operations to be carried out together or not at all.
pub(super) struct Transaction {
    parts: Vec<Part>,
    body: String,
}

impl Transaction {
    /// One that begins with a fence.
    pub(super) fn new(fence: &TxnOp<'_>) -> Self {
        Self { parts: vec![Part::Fence], body: format!("[{}", fence.json()) }
    }

    /// Makes or changes the node before all that follows.
    pub(super) fn make_node(&mut self, change: &TxnOp<'_>) {
        self.push(Part::Node, &change.json());
    }

    /// Adds the operation at a place of the bundle, if there is room for it; the first one is always added.
    /// `unregistered` says that the instance was found not to be there, so that moving its check takes
    /// registering it. `seen` are the checks on its node, for an operation that [`writes_checks`].
    pub(super) fn add(&mut self, index: usize, op: &Op, unregistered: bool, seen: &SeenChecks) -> bool {
        let parts = parts(index, op, unregistered, seen);
        let parts: Vec<(Part, String)> = parts.into_iter().map(|(part, op)| (part, op.json())).collect();
        let bytes: usize = parts.iter().map(|(_, json)| json.len() + 1).sum();
        let is_first = !self.parts.iter().any(|part| owner(*part).is_some());
        if !is_first && (self.parts.len() + parts.len() > MOST_OPS || self.body.len() + bytes + 1 > MOST_BYTES) {
            return false;
        }
        for (part, json) in &parts {
            self.push(*part, json);
        }
        true
    }

    /// Says what the operation at a place of the transaction is for.
    pub(super) fn part(&self, place: usize) -> Option<Part> {
        self.parts.get(place).copied()
    }

    /// The places in the bundle of all that is in it.
    pub(super) fn ops(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.parts.iter().filter_map(|part| owner(*part)).collect();
        all.dedup();
        all
    }

    /// The body of the request.
    pub(super) fn body(&self) -> Bytes {
        Bytes::from(format!("{}]", self.body))
    }

    fn push(&mut self, part: Part, json: &str) {
        self.parts.push(part);
        self.body.push(',');
        self.body.push_str(json);
    }
}

fn owner(part: Part) -> Option<usize> {
    match part {
        Part::Fence | Part::Node => None,
        Part::Look(index) | Part::Service(index) | Part::Check(index) => Some(index),
    }
}

/// Says whether an operation writes checks for consul-esm to run.
pub(super) fn writes_checks(op: &Op, unregistered: bool) -> bool {
    match op {
        Op::Register { registration, .. } => !registration.checks.placed().is_empty(),
        Op::Readiness { registration, .. } => unregistered && !registration.checks.placed().is_empty(),
        Op::Disown { .. } | Op::Deregister { .. } => false,
    }
}

fn parts<'a>(index: usize, op: &'a Op, unregistered: bool, seen: &'a SeenChecks) -> Vec<(Part, TxnOp<'a>)> {
    let (node, id) = (&*op.key().node, &*op.key().id);
    let readiness = |registration: &'a Registration| {
        let state = registration.readiness?;
        Some((Part::Check(index), TxnOp::readiness_set(node, id, &registration.service, state)))
    };
    let register = |registration: &'a Registration| {
        let mut parts = vec![(Part::Service(index), TxnOp::service_set(node, id, registration))];
        parts.extend(readiness(registration));
        for placed in registration.checks.placed() {
            let seen = seen.get(&check_id(id, &placed.check.id_name()));
            parts.push((Part::Check(index), TxnOp::check_cas(node, id, registration, placed, seen)));
        }
        parts
    };
    match op {
        Op::Register { registration, drop_checks, .. } => {
            let mut parts = register(registration);
            for name in drop_checks {
                parts.push((Part::Check(index), TxnOp::check_delete(node, id, &registration.service, name)));
            }
            parts
        }
        Op::Readiness { registration, .. } if unregistered => register(registration),
        Op::Readiness { registration, .. } => readiness(registration).into_iter().collect(),
        // Registering what is gone would bring it back without anybody to remove it later.
        Op::Disown { registration, .. } => vec![
            (Part::Look(index), TxnOp::service_get(node, id)),
            (Part::Service(index), TxnOp::service_set(node, id, registration)),
        ],
        Op::Deregister { service, .. } => vec![(Part::Service(index), TxnOp::service_delete(node, id, service))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::registration::RowKey;

    fn remove(id: &str) -> Op {
        Op::Deregister { key: RowKey { node: "n".into(), id: id.into() }, service: "s".into() }
    }

    fn fence() -> TxnOp<'static> {
        TxnOp::node_delete("n", 0)
    }

    #[test]
    fn it_holds_what_fits_and_knows_whose_each_part_is() {
        let mut transaction = Transaction::new(&fence());
        transaction.make_node(&fence());
        let fitting =
            (0..200).take_while(|index| transaction.add(*index, &remove("x"), false, &SeenChecks::new())).count();
        assert_eq!(fitting, MOST_OPS - 2);
        assert_eq!(transaction.part(0), Some(Part::Fence));
        assert_eq!(transaction.part(2), Some(Part::Service(0)));
        assert_eq!(transaction.part(MOST_OPS), None);
        assert_eq!(transaction.ops(), (0..fitting).collect::<Vec<_>>());
        let body: serde_json::Value = serde_json::from_slice(&transaction.body()).unwrap();
        assert_eq!(body.as_array().unwrap().len(), MOST_OPS);
    }

    #[test]
    fn one_that_is_too_large_for_company_goes_alone() {
        let large = remove(&"x".repeat(MOST_BYTES));
        let mut transaction = Transaction::new(&fence());
        assert!(transaction.add(0, &large, false, &SeenChecks::new()), "Consul says what it thinks of it");
        assert!(!transaction.add(1, &remove("x"), false, &SeenChecks::new()));
    }
}

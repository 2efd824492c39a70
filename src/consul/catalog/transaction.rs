//! A transaction, and which of a bundle's operations each of its own belongs to.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::consul::wire::{Check, TxnError, TxnOp};
use crate::model::diff::Op;
use crate::model::ids::check_id;
use crate::model::registration::Registration;

/// The most operations in a transaction (fixed in Consul).
const MOST_OPS: usize = 128;

/// The most bytes, less than Consul's default of 512 KiB (`limits.txn_max_req_len`): a namespace and a partition may be
/// added to each operation.
const MOST_BYTES: usize = 480 * 1024;

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

/// Says what each operation of a transaction is for, in order.
#[derive(Clone, Debug)]
pub(super) struct Parts(Vec<Part>);

impl Parts {
    /// Says what the operation at a place of the transaction is for.
    pub(super) fn part(&self, place: usize) -> Option<Part> {
        self.0.get(place).copied()
    }

    /// The places in the bundle of all that is in it.
    pub(super) fn ops(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.0.iter().filter_map(|part| owner(*part)).collect();
        all.dedup();
        all
    }
}

/// The checks that were seen on a node, by ID.
pub(super) type SeenChecks = BTreeMap<String, Check>;

/// Operations to be carried out together or not at all, behind a fence that is put before them when they are sent.
#[derive(Debug)]
pub(super) struct Transaction {
    parts: Parts,
    /// All but the fence, each behind a comma.
    rest: String,
}

impl Transaction {
    /// One of a fence alone.
    pub(super) fn new() -> Self {
        Self { parts: Parts(vec![Part::Fence]), rest: String::new() }
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
        let is_first = !self.parts.0.iter().any(|part| owner(*part).is_some());
        if !is_first && !fits(self.len() + parts.len(), self.bytes() + bytes) {
            return false;
        }
        for (part, json) in &parts {
            self.push(*part, json);
        }
        true
    }

    /// Says what its operations are for.
    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Counts its operations, the fence apart.
    pub(super) fn len(&self) -> usize {
        self.parts.0.len() - 1
    }

    /// Counts the bytes of them.
    pub(super) fn bytes(&self) -> usize {
        self.rest.len()
    }

    fn push(&mut self, part: Part, json: &str) {
        self.parts.0.push(part);
        self.rest.push(',');
        self.rest.push_str(json);
    }
}

/// Says whether a transaction of so many operations and bytes, the fence apart, is one that Consul takes.
pub(super) fn fits(ops: usize, bytes: usize) -> bool {
    ops < MOST_OPS && bytes <= MOST_BYTES
}

/// The body of a request that carries out transactions together, behind a fence.
pub(super) fn body<'a>(fence: &TxnOp<'_>, transactions: impl IntoIterator<Item = &'a Transaction>) -> Bytes {
    let mut body = format!("[{}", fence.json());
    for transaction in transactions {
        body.push_str(&transaction.rest);
    }
    body.push(']');
    Bytes::from(body)
}

/// Takes the errors that concern the transaction whose first operation stands at `first` when all are sent together. Each is given the
/// place that it has in a transaction that is sent alone: 0 is the fence.
pub(super) fn errors_of(transaction: &Transaction, first: usize, errors: &[TxnError]) -> Vec<TxnError> {
    let own = first..first + transaction.len();
    let at = |error: &TxnError| match error.op_index {
        0 => Some(0),
        place => own.contains(&place).then(|| place - first + 1),
    };
    errors.iter().filter_map(|error| Some(TxnError { op_index: at(error)?, ..error.clone() })).collect()
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
    use crate::consul::wire::Fault;
    use crate::model::registration::RowKey;

    fn remove(id: &str) -> Op {
        Op::Deregister { key: RowKey { node: "n".into(), id: id.into() }, service: "s".into() }
    }

    fn fence() -> TxnOp<'static> {
        TxnOp::node_delete("n", 0)
    }

    #[test]
    fn it_holds_what_fits_and_knows_whose_each_part_is() {
        let mut transaction = Transaction::new();
        transaction.make_node(&fence());
        let fitting =
            (0..200).take_while(|index| transaction.add(*index, &remove("x"), false, &SeenChecks::new())).count();
        assert_eq!(fitting, MOST_OPS - 2);
        assert_eq!(transaction.parts().part(0), Some(Part::Fence));
        assert_eq!(transaction.parts().part(2), Some(Part::Service(0)));
        assert_eq!(transaction.parts().part(MOST_OPS), None);
        assert_eq!(transaction.parts().ops(), (0..fitting).collect::<Vec<_>>());
        let body: serde_json::Value = serde_json::from_slice(&body(&fence(), [&transaction])).unwrap();
        assert_eq!(body.as_array().unwrap().len(), MOST_OPS);
    }

    #[test]
    fn one_that_is_too_large_for_company_goes_alone() {
        let large = remove(&"x".repeat(MOST_BYTES));
        let mut transaction = Transaction::new();
        assert!(transaction.add(0, &large, false, &SeenChecks::new()), "Consul says what it thinks of it");
        assert!(!transaction.add(1, &remove("x"), false, &SeenChecks::new()));
    }

    #[test]
    fn each_of_those_sent_together_gets_its_own_errors() {
        let with = |ops: usize| {
            let mut transaction = Transaction::new();
            for index in 0..ops {
                transaction.add(index, &remove("x"), false, &SeenChecks::new());
            }
            transaction
        };
        let (one, two) = (with(2), with(3));
        let sent: serde_json::Value = serde_json::from_slice(&body(&fence(), [&one, &two])).unwrap();
        assert_eq!(sent.as_array().unwrap().len(), 6);
        let at = |op_index| TxnError { op_index, what: op_index.to_string(), fault: Fault::Other };
        let errors = [at(0), at(2), at(3), at(5)];
        let places = |transaction, first| {
            let own = errors_of(transaction, first, &errors);
            own.into_iter().map(|error| (error.op_index, error.what)).collect::<Vec<_>>()
        };
        let said =
            |places: &[(usize, &str)]| places.iter().map(|(at, words)| (*at, (*words).to_owned())).collect::<Vec<_>>();
        assert_eq!(places(&one, 1), said(&[(0, "0"), (2, "2")]));
        assert_eq!(places(&two, 3), said(&[(0, "0"), (1, "3"), (3, "5")]));
    }
}

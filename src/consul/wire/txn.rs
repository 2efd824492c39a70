//! Transactions: the operations of `/v1/txn`, and its answer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::check_body::TxnCheck;
use super::service_body::TxnService;
use super::{Check, Fault, Node, to_json};
use crate::model::check::PlacedCheck;
use crate::model::health::Health;
use crate::model::registration::Registration;

/// An operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all_fields = "PascalCase")]
pub enum TxnOp<'a> {
    /// Concerns a node.
    Node {
        /// Says what to do with it.
        verb: Verb,
        /// The node to read or write.
        node: Node,
    },
    /// Concerns an instance.
    Service {
        /// Says what to do with it.
        verb: Verb,
        /// The Consul node that it is on.
        node: &'a str,
        /// The instance to read or write.
        service: TxnService<'a>,
    },
    /// Concerns a check.
    Check {
        /// Says what to do with it.
        verb: Verb,
        /// The check to read or write.
        check: TxnCheck<'a>,
    },
}

/// Says what an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Reads the entry, and fails if it is not there.
    Get,
    /// Writes the entry, whatever is there.
    Set,
    /// Writes the entry if its index is still the same; index 0 stands for an entry that is not there.
    Cas,
    /// Deletes the entry with all that is on it; does nothing if it is not there.
    Delete,
    /// Deletes the entry if its index is still the same.
    DeleteCas,
}

impl<'a> TxnOp<'a> {
    /// Makes a node like this if its index is still the same.
    #[must_use]
    pub fn node_cas(mut node: Node) -> Self {
        node.modify_index.get_or_insert_default();
        Self::Node { verb: Verb::Cas, node }
    }

    /// Deletes a node, and with it everything on it, if its index is still this one.
    #[must_use]
    pub fn node_delete(name: &str, index: u64) -> Self {
        let node = Node { node: Some(name.to_owned()), modify_index: Some(index), ..Node::default() };
        Self::Node { verb: Verb::DeleteCas, node }
    }

    /// Registers an instance.
    #[must_use]
    pub fn service_set(node: &'a str, id: &'a str, registration: &'a Registration) -> Self {
        let service = TxnService { id, service: Some(&registration.service), body: Some(registration.into()) };
        Self::Service { verb: Verb::Set, node, service }
    }

    /// Fails if an instance is not there.
    #[must_use]
    pub fn service_get(node: &'a str, id: &'a str) -> Self {
        Self::Service { verb: Verb::Get, node, service: TxnService { id, service: None, body: None } }
    }

    /// Deletes an instance and its checks; does nothing if it is not there. Consul judges by the name of the service
    /// whether the token may.
    #[must_use]
    pub fn service_delete(node: &'a str, id: &'a str, service: &'a str) -> Self {
        Self::Service { verb: Verb::Delete, node, service: TxnService { id, service: Some(service), body: None } }
    }

    /// Sets the readiness check of an instance.
    #[must_use]
    pub fn readiness_set(node: &'a str, id: &'a str, service: &'a str, readiness: Health) -> Self {
        Self::Check { verb: Verb::Set, check: TxnCheck::readiness(node, id, service, readiness) }
    }

    /// Sets a check for consul-esm to run. One that is there keeps what consul-esm says of it, if it still is as it was
    /// `seen`; one that is not there begins with what Kubernetes says.
    #[must_use]
    pub fn check_cas(
        node: &'a str,
        id: &'a str,
        registration: &'a Registration,
        placed: &'a PlacedCheck,
        seen: Option<&'a Check>,
    ) -> Self {
        Self::Check { verb: Verb::Cas, check: TxnCheck::for_esm(node, id, registration, placed, seen) }
    }

    /// Deletes a check of ours; does nothing if it is not there.
    #[must_use]
    pub fn check_delete(node: &'a str, id: &'a str, service: &'a str, name: &str) -> Self {
        Self::Check { verb: Verb::Delete, check: TxnCheck::named(node, id, service, name) }
    }

    /// The operation as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        to_json(self)
    }
}

/// The body of a request for `/v1/txn` with these operations.
#[must_use]
pub fn txn_body(ops: &[TxnOp<'_>]) -> Bytes {
    to_json(ops).into()
}

/// The answer of `/v1/txn`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TxnAnswer {
    /// The entries that the transaction touched, if it was carried out.
    pub results: Option<Vec<TxnEntry>>,
    /// The operations that failed, if it was rolled back.
    pub errors: Option<Vec<TxnError>>,
}

/// An entry that a transaction touched. Only nodes are read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TxnEntry {
    /// The node, if the entry is one.
    pub node: Option<Node>,
}

/// An operation of a transaction that failed.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WireTxnError")]
pub struct TxnError {
    /// The operation's place in the transaction, from 0.
    pub op_index: usize,
    /// The text of Consul.
    pub what: String,
    /// Says what that text means.
    pub fault: Fault,
}

/// A failed operation as Consul writes it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireTxnError {
    op_index: usize,
    what: String,
}

impl From<WireTxnError> for TxnError {
    fn from(WireTxnError { op_index, what }: WireTxnError) -> Self {
        Self { op_index, fault: Fault::of(&what), what }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn operations_are_written_as_consul_reads_them() {
        let node = Node {
            node: Some("n".to_owned()),
            address: Some("192.0.2.1".to_owned()),
            meta: Some([("k".to_owned(), "v".to_owned())].into()),
            ..Node::default()
        };
        let table = [
            (
                TxnOp::node_cas(node),
                json!({ "Node": { "Verb": "cas", "Node": {
                    "Node": "n", "Address": "192.0.2.1", "Meta": { "k": "v" }, "ModifyIndex": 0,
                } } }),
            ),
            (
                TxnOp::node_delete("n", 7),
                json!({ "Node": { "Verb": "delete-cas", "Node": { "Node": "n", "ModifyIndex": 7 } } }),
            ),
            (
                TxnOp::service_get("n", "id"),
                json!({ "Service": { "Verb": "get", "Node": "n", "Service": { "ID": "id" } } }),
            ),
            (
                TxnOp::service_delete("n", "id", "s"),
                json!({ "Service": { "Verb": "delete", "Node": "n", "Service": { "ID": "id", "Service": "s" } } }),
            ),
            (
                TxnOp::readiness_set("n", "id", "s", Health::Critical),
                json!({ "Check": { "Verb": "set", "Check": {
                    "Node": "n", "CheckID": "id:readiness", "Name": "Kubernetes readiness",
                    "Notes": "Whether Kubernetes considers the pod ready. Kept by Lictor.",
                    "Type": "kubernetes-readiness", "Status": "critical", "Output": "not ready in Kubernetes",
                    "ServiceID": "id", "ServiceName": "s",
                } } }),
            ),
            (
                TxnOp::check_delete("n", "id", "s", "web:http"),
                json!({ "Check": { "Verb": "delete", "Check": {
                    "Node": "n", "CheckID": "id:web:http", "ServiceID": "id", "ServiceName": "s",
                } } }),
            ),
        ];
        for (op, expected) in &table {
            assert_eq!(serde_json::from_str::<Value>(&op.json()).unwrap(), *expected);
        }
        let ops = table.map(|(op, _)| op);
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&txn_body(&ops)).unwrap().len(), ops.len());
    }

    #[test]
    fn an_answer_may_lack_anything() {
        assert!(serde_json::from_str::<TxnAnswer>("{}").unwrap().errors.is_none());
        let answer: TxnAnswer =
            serde_json::from_str(r#"{"Errors":[{"OpIndex":2,"What":"ACL not found"},{}]}"#).unwrap();
        let errors: Vec<_> = answer.errors.unwrap().into_iter().map(|error| (error.op_index, error.fault)).collect();
        assert_eq!(errors, [(2, Fault::UnknownToken), (0, Fault::Other)]);
    }
}

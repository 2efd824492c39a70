//! Which part of Consul requests are for: a datacenter and, in Consul Enterprise, a namespace and a partition.
//!
//! Consul reads them from the query of a request. A transaction is an exception: there the namespace and the partition
//! stand in each operation (`convertOps` in `agent/txn_endpoint.go` of Consul).

use bytes::Bytes;
use serde_json::Value;

use super::path::encode;

/// Names the part of Consul that requests are for. What is none is Consul's own default: the datacenter that is asked, the
/// namespace `default`, and the partition of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenancy {
    /// The datacenter.
    pub datacenter: Option<String>,
    /// The namespace, in Consul Enterprise.
    pub namespace: Option<String>,
    /// The partition, in Consul Enterprise.
    pub partition: Option<String>,
}

impl Tenancy {
    /// Consul's own defaults.
    pub const DEFAULT: Self = Self { datacenter: None, namespace: None, partition: None };

    /// Adds the tenancy to a path, under the names of Consul's own client (`setQueryOptions` in `api/api.go`).
    #[must_use]
    pub(super) fn of_path(&self, mut path: String) -> String {
        let mut mark = if path.contains('?') { '&' } else { '?' };
        for (key, value) in [("dc", &self.datacenter), ("ns", &self.namespace), ("partition", &self.partition)] {
            let Some(value) = value else { continue };
            path.push(mark);
            path.push_str(key);
            path.push('=');
            encode(value, &mut path);
            mark = '&';
        }
        path
    }

    /// Adds the tenancy to each operation of a transaction, whose body this is. What does not read as one stays as it is.
    #[must_use]
    pub(super) fn of_transaction(&self, body: Bytes) -> Bytes {
        if self.namespace.is_none() && self.partition.is_none() {
            return body;
        }
        let Ok(mut operations) = serde_json::from_slice::<Vec<Value>>(&body) else { return body };
        for operation in &mut operations {
            // A node is in a partition, and in no namespace.
            for (kind, namespace) in [("Node", &None), ("Service", &self.namespace), ("Check", &self.namespace)] {
                let Some(Value::Object(entry)) = operation.get_mut(kind).and_then(|of_kind| of_kind.get_mut(kind))
                else {
                    continue;
                };
                for (key, value) in [("Namespace", namespace), ("Partition", &self.partition)] {
                    if let Some(value) = value {
                        entry.insert(key.to_owned(), Value::from(value.as_str()));
                    }
                }
            }
        }
        Value::Array(operations).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_stands_in_each_operation_of_a_transaction() {
        let some = |text: &str| Some(text.to_owned());
        let plain = r#"[{"Node":{"Verb":"cas","Node":{"Node":"n"}}},{"Service":{"Verb":"set","Node":"n","Service":{"ID":"i"}}},{"Check":{"Verb":"set","Check":{"Node":"n"}}}]"#;
        let within = |tenancy: &Tenancy| -> Value {
            serde_json::from_slice(&tenancy.of_transaction(Bytes::from_static(plain.as_bytes()))).unwrap()
        };
        let elsewhere = Tenancy { datacenter: some("dc2"), ..Tenancy::DEFAULT };
        assert_eq!(elsewhere.of_transaction(Bytes::from_static(b"[]")), "[]");
        assert_eq!(within(&elsewhere), serde_json::from_str::<Value>(plain).unwrap());
        let both = Tenancy { datacenter: None, namespace: some("shop"), partition: some("eu") };
        let expected = json!([
            { "Node": { "Verb": "cas", "Node": { "Node": "n", "Partition": "eu" } } },
            { "Service": { "Verb": "set", "Node": "n", "Service": { "ID": "i", "Namespace": "shop", "Partition": "eu" } } },
            { "Check": { "Verb": "set", "Check": { "Node": "n", "Namespace": "shop", "Partition": "eu" } } },
        ]);
        assert_eq!(within(&both), expected);
    }

    #[test]
    fn it_stands_in_the_query_of_every_path() {
        let some = |text: &str| Some(text.to_owned());
        let all = Tenancy { datacenter: some("dc2"), namespace: some("shop"), partition: some("a b") };
        for (tenancy, path, expected) in [
            (Tenancy::default(), "/v1/agent/self", "/v1/agent/self"),
            (Tenancy { namespace: some("shop"), ..Tenancy::default() }, "/v1/txn", "/v1/txn?ns=shop"),
            (all.clone(), "/v1/txn", "/v1/txn?dc=dc2&ns=shop&partition=a%20b"),
            (all, "/v1/x?consistent", "/v1/x?consistent&dc=dc2&ns=shop&partition=a%20b"),
        ] {
            assert_eq!(tenancy.of_path(path.to_owned()), expected);
        }
    }
}

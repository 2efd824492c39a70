//! The servers' catalog: nodes, services, checks, and the transactions over them, as Consul's state store has
//! them (`agent/consul/state/catalog.go`). Names and IDs are compared without case.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::null_is_default;

/// A node of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    #[serde(rename = "ID", deserialize_with = "null_is_default")]
    pub id: String,
    pub node: String,
    #[serde(deserialize_with = "null_is_default")]
    pub address: String,
    #[serde(deserialize_with = "null_is_default")]
    pub meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub create_index: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub modify_index: u64,
}

/// A service instance. Which node it is on is in its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    #[serde(rename = "ID")]
    pub id: String,
    pub service: String,
    #[serde(deserialize_with = "null_is_default")]
    pub tags: Vec<String>,
    pub address: String,
    pub port: i64,
    #[serde(deserialize_with = "null_is_default")]
    pub meta: BTreeMap<String, String>,
    pub weights: Weights,
    pub enable_tag_override: bool,
    #[serde(deserialize_with = "null_is_default")]
    pub tagged_addresses: BTreeMap<String, Address>,
    #[serde(skip_serializing_if = "is_zero")]
    pub create_index: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub modify_index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    pub passing: i64,
    pub warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Address {
    pub address: String,
    pub port: i64,
}

/// A check of a node or, with a `ServiceID`, of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    pub node: String,
    #[serde(rename = "CheckID")]
    pub check_id: String,
    pub name: String,
    pub status: String,
    pub notes: String,
    pub output: String,
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    pub service_name: String,
    #[serde(deserialize_with = "null_is_default")]
    pub service_tags: Vec<String>,
    #[serde(rename = "Type")]
    pub kind: String,
    /// What consul-esm is to do, as it was written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub definition: Value,
    #[serde(skip_serializing_if = "is_zero")]
    pub create_index: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub modify_index: u64,
}

/// An agent has no indexes.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(index: &u64) -> bool {
    *index == 0
}

/// Something that is in the catalog or with an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entity {
    Node(Arc<Node>),
    Service { node: String, service: Arc<Service> },
    Check(Arc<Check>),
}

/// What a write did to one of them.
#[derive(Clone, Debug)]
pub struct Change {
    pub before: Option<Entity>,
    pub after: Option<Entity>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, Deserialize)]
pub enum Op {
    Node(NodeOp),
    Service(ServiceOp),
    Check(CheckOp),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeOp {
    pub verb: String,
    pub node: Node,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceOp {
    pub verb: String,
    pub node: String,
    pub service: Service,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckOp {
    pub verb: String,
    pub check: Check,
}

impl Op {
    /// Whether it only reads.
    pub fn reads(&self) -> bool {
        let (Op::Node(NodeOp { verb, .. }) | Op::Service(ServiceOp { verb, .. }) | Op::Check(CheckOp { verb, .. })) =
            self;
        verb == "get"
    }
}

/// The body of `/v1/catalog/register`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CatalogRegistration {
    pub node: String,
    pub address: String,
    pub node_meta: BTreeMap<String, String>,
    pub skip_node_update: bool,
    pub service: Option<Service>,
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpError {
    pub op_index: usize,
    pub what: String,
}

/// What an operation touched.
#[derive(Clone, Debug, Serialize)]
pub enum OpResult {
    Node(Node),
    Service(Service),
    Check(Check),
}

const MISSING_NODE: &str = "Missing node registration";
const MISSING_SERVICE: &str = "Missing service registration";

/// A name or ID as keys have it.
pub fn fold(text: &str) -> String {
    text.to_lowercase()
}

fn pair(node: &str, id: &str) -> (String, String) {
    (fold(node), fold(id))
}

/// The catalog.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// The Raft index of the last write.
    pub index: u64,
    nodes: BTreeMap<String, Arc<Node>>,
    services: BTreeMap<(String, String), Arc<Service>>,
    checks: BTreeMap<(String, String), Arc<Check>>,
    /// When anything on a node last changed.
    moved: BTreeMap<String, u64>,
    /// When a node was last deleted.
    extinction: u64,
    /// When a node or an instance last changed.
    instances_moved: u64,
    /// When a check last changed.
    checks_moved: u64,
    /// What has been done and not been taken by [`take_changes`](Self::take_changes).
    changes: Vec<Change>,
}

impl Store {
    /// What has been done since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&fold(name))
    }

    pub fn service(&self, node: &str, id: &str) -> Option<&Arc<Service>> {
        self.services.get(&pair(node, id))
    }

    pub fn check(&self, node: &str, id: &str) -> Option<&Arc<Check>> {
        self.checks.get(&pair(node, id))
    }

    /// All services with their nodes' keys.
    pub fn services(&self) -> impl Iterator<Item = (&str, &Arc<Service>)> {
        self.services.iter().map(|((node, _), service)| (node.as_str(), service))
    }

    pub fn services_on(&self, node: &str) -> impl Iterator<Item = &Arc<Service>> {
        let node = fold(node);
        let own = self.services.range((node.clone(), String::new())..);
        own.take_while(move |((of, _), _)| *of == node).map(|(_, service)| service)
    }

    pub fn checks_on(&self, node: &str) -> impl Iterator<Item = &Arc<Check>> {
        let node = fold(node);
        let own = self.checks.range((node.clone(), String::new())..);
        own.take_while(move |((of, _), _)| *of == node).map(|(_, check)| check)
    }

    /// The index of a query for what is on a node.
    pub fn index_of(&self, node: &str) -> u64 {
        self.moved.get(&fold(node)).copied().unwrap_or(self.extinction).max(1)
    }

    /// The index of a query that goes by all nodes and instances.
    pub fn index_of_instances(&self) -> u64 {
        self.instances_moved.max(1)
    }

    /// The index of a query that goes by all checks.
    pub fn index_of_checks(&self) -> u64 {
        self.checks_moved.max(1)
    }

    /// Everything that could be read, for a test of whether anything moved.
    pub fn contents(&self) -> impl PartialEq + use<> {
        (self.nodes.clone(), self.services.clone(), self.checks.clone())
    }

    /// Carries out a transaction, all of it or nothing.
    pub fn transact(&mut self, ops: &[Op]) -> Result<Vec<OpResult>, Vec<OpError>> {
        let before = self.changes.len();
        let kept = (self.instances_moved, self.checks_moved, self.extinction, self.moved.clone());
        self.index += 1;
        let (mut results, mut errors) = (Vec::new(), Vec::new());
        for (op_index, op) in ops.iter().enumerate() {
            match self.carry_out(op) {
                Ok(result) => results.extend(result),
                Err(what) => errors.push(OpError { op_index, what }),
            }
        }
        if errors.is_empty() {
            return Ok(results);
        }
        for Change { before, after } in self.changes.split_off(before).into_iter().rev() {
            match (before, after) {
                (Some(entity), _) => self.place(&entity, true),
                (None, Some(entity)) => self.place(&entity, false),
                (None, None) => {}
            }
        }
        // A conflicting transaction still takes an entry of the Raft log.
        (self.instances_moved, self.checks_moved, self.extinction, self.moved) = kept;
        Err(errors)
    }

    fn carry_out(&mut self, op: &Op) -> Result<Option<OpResult>, String> {
        match op {
            Op::Node(NodeOp { verb, node }) => self.node_op(verb, node),
            Op::Service(ServiceOp { verb, node, service }) => self.service_op(verb, node, service),
            Op::Check(CheckOp { verb, check }) => self.check_op(verb, check),
        }
    }

    /// Registers a node, and an instance on it if there is one. The node becomes what the registration says, its meta
    /// too, unless that asks to leave it as it is.
    pub fn register(&mut self, wanted: CatalogRegistration) -> Result<(), String> {
        self.index += 1;
        let CatalogRegistration { node, address, node_meta: meta, skip_node_update, service } = wanted;
        if !skip_node_update || self.node(&node).is_none() {
            self.set_node(Node { node: node.clone(), address, meta, ..Node::default() });
        }
        service.map_or(Ok(()), |service| self.set_service(&node, service))
    }

    fn node_op(&mut self, verb: &str, wanted: &Node) -> Result<Option<OpResult>, String> {
        let name = &wanted.node;
        let there = self.node(name).map(|node| node.modify_index);
        match verb {
            "get" => {
                let node = self.node(name).ok_or_else(|| format!("node {name:?} doesn't exist"))?;
                return Ok(Some(OpResult::Node((**node).clone())));
            }
            "set" => {}
            "cas" => {
                let fits = there.unwrap_or_default() == wanted.modify_index;
                if !fits {
                    return Err(format!("failed to set node {name:?}, index is stale"));
                }
            }
            "delete" => {
                self.delete_node(name);
                return Ok(None);
            }
            "delete-cas" => {
                if there != Some(wanted.modify_index) {
                    return Err(format!("failed to delete node {name:?}, index is stale"));
                }
                self.delete_node(name);
                return Ok(None);
            }
            _ => unimplemented!("node verb {verb}"),
        }
        self.set_node(wanted.clone());
        Ok(self.node(name).map(|node| OpResult::Node((**node).clone())))
    }

    fn service_op(&mut self, verb: &str, node: &str, wanted: &Service) -> Result<Option<OpResult>, String> {
        let id = &wanted.id;
        match verb {
            "get" => {
                let there = self.service(node, id).cloned();
                let there = there.ok_or_else(|| format!("service {id:?} on node {node:?} doesn't exist"))?;
                Ok(Some(OpResult::Service((*there).clone())))
            }
            "set" | "cas" => {
                let there = self.service(node, id).map(|service| service.modify_index);
                if verb == "cas" && there.unwrap_or_default() != wanted.modify_index {
                    return Err(format!("failed to set service {id:?} on node {node:?}, index is stale"));
                }
                self.set_service(node, wanted.clone())?;
                Ok(self.service(node, id).map(|service| OpResult::Service((**service).clone())))
            }
            "delete" => {
                self.delete_service(node, id);
                Ok(None)
            }
            _ => unimplemented!("service verb {verb}"),
        }
    }

    fn check_op(&mut self, verb: &str, wanted: &Check) -> Result<Option<OpResult>, String> {
        match verb {
            "set" | "cas" => {
                let Check { node, check_id, .. } = wanted;
                let there = self.check(node, check_id).map(|check| check.modify_index);
                if verb == "cas" && there.unwrap_or_default() != wanted.modify_index {
                    return Err(format!("failed to set check {check_id:?} on node {node:?}, index is stale"));
                }
                let set = self.set_check(wanted.clone());
                if verb == "set" {
                    // Of a compare-and-set Consul loses what went wrong (`txnCheck`).
                    set?;
                }
                Ok(self.check(&wanted.node, &wanted.check_id).map(|check| OpResult::Check((**check).clone())))
            }
            "delete" => {
                self.delete_check(&wanted.node, &wanted.check_id);
                Ok(None)
            }
            _ => unimplemented!("check verb {verb}"),
        }
    }

    /// Registers a node, or changes it.
    pub fn set_node(&mut self, mut node: Node) {
        let there = self.node(&node.node).cloned();
        (node.create_index, node.modify_index) =
            there.as_ref().map_or((self.index, self.index), |there| (there.create_index, there.modify_index));
        // A name that differs in case alone is the same (`structs.Node.IsSame`).
        let same = |there: &Node| *there == Node { node: there.node.clone(), ..node.clone() };
        if there.as_deref().is_some_and(same) {
            return;
        }
        node.modify_index = self.index;
        self.write(there.map(Entity::Node), Some(Entity::Node(Arc::new(node))));
    }

    /// Registers an instance on a node that is there.
    pub fn set_service(&mut self, node: &str, mut service: Service) -> Result<(), String> {
        if service.weights.passing == 0 {
            service.weights = Weights::default();
        }
        let Some(on) = self.node(node).map(|on| on.node.clone()) else { return Err(MISSING_NODE.to_owned()) };
        let there = self.service(node, &service.id).cloned();
        (service.create_index, service.modify_index) =
            there.as_ref().map_or((self.index, self.index), |there| (there.create_index, there.modify_index));
        if there.as_deref() == Some(&service) {
            return Ok(());
        }
        service.modify_index = self.index;
        let entity = |service| Entity::Service { node: on.clone(), service };
        self.write(there.map(entity), Some(entity(Arc::new(service))));
        Ok(())
    }

    /// Registers a check on a node, and on an instance that is there.
    pub fn set_check(&mut self, mut check: Check) -> Result<(), String> {
        if self.node(&check.node).is_none() {
            return Err(MISSING_NODE.to_owned());
        }
        if !check.service_id.is_empty() {
            let Some(service) = self.service(&check.node, &check.service_id) else {
                return Err(MISSING_SERVICE.to_owned());
            };
            check.service_name.clone_from(&service.service);
            check.service_tags.clone_from(&service.tags);
        }
        if check.status.is_empty() {
            "critical".clone_into(&mut check.status);
        }
        let there = self.check(&check.node, &check.check_id).cloned();
        (check.create_index, check.modify_index) =
            there.as_ref().map_or((self.index, self.index), |there| (there.create_index, there.modify_index));
        if there.as_deref() == Some(&check) {
            return Ok(());
        }
        check.modify_index = self.index;
        self.write(there.map(Entity::Check), Some(Entity::Check(Arc::new(check))));
        Ok(())
    }

    /// Deletes a node and everything on it.
    pub fn delete_node(&mut self, name: &str) {
        let Some(node) = self.node(name).cloned() else { return };
        let services: Vec<String> = self.services_on(name).map(|service| service.id.clone()).collect();
        for id in services {
            self.delete_service(name, &id);
        }
        let checks: Vec<String> = self.checks_on(name).map(|check| check.check_id.clone()).collect();
        for id in checks {
            self.delete_check(name, &id);
        }
        self.write(Some(Entity::Node(node)), None);
        self.moved.remove(&fold(name));
        self.extinction = self.index;
    }

    /// Deletes an instance and its checks.
    pub fn delete_service(&mut self, node: &str, id: &str) {
        let Some(service) = self.service(node, id).cloned() else { return };
        let checks: Vec<String> = self
            .checks_on(node)
            .filter(|check| fold(&check.service_id) == fold(id))
            .map(|check| check.check_id.clone())
            .collect();
        for check in checks {
            self.delete_check(node, &check);
        }
        let node = self.node(node).map_or_else(|| node.to_owned(), |on| on.node.clone());
        self.write(Some(Entity::Service { node, service }), None);
    }

    pub fn delete_check(&mut self, node: &str, id: &str) {
        if let Some(check) = self.check(node, id).cloned() {
            self.write(Some(Entity::Check(check)), None);
        }
    }

    fn write(&mut self, before: Option<Entity>, after: Option<Entity>) {
        match (&before, &after) {
            (_, Some(entity)) => self.place(entity, true),
            (Some(entity), None) => self.place(entity, false),
            (None, None) => return,
        }
        self.changes.push(Change { before, after });
    }

    /// Puts something in its place, or takes it away.
    fn place(&mut self, entity: &Entity, there: bool) {
        let node = match entity {
            Entity::Node(node) => {
                let key = fold(&node.node);
                if there {
                    self.nodes.insert(key, node.clone())
                } else {
                    self.nodes.remove(&key)
                };
                &node.node
            }
            Entity::Service { node, service } => {
                let key = pair(node, &service.id);
                if there {
                    self.services.insert(key, service.clone())
                } else {
                    self.services.remove(&key)
                };
                node
            }
            Entity::Check(check) => {
                let key = pair(&check.node, &check.check_id);
                if there {
                    self.checks.insert(key, check.clone())
                } else {
                    self.checks.remove(&key)
                };
                // A query for a node's services does not wake for its checks.
                self.checks_moved = self.index;
                return;
            }
        };
        self.instances_moved = self.index;
        self.moved.insert(fold(node), self.index);
    }
}

//! A model of Consul: as much of its HTTP API as the registries use, over a catalog and, in `agent` mode, an
//! agent. It is held against the real one by the conformance test.

pub mod agent;
pub mod filter;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use agent::Agent;
use store::{CatalogRegistration, Check, Node, Op, Service, Store, Weights};

/// JSON's null for a list or a map is an empty one.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Consul.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub struct Consul {
    pub store: Store,
    pub agent: Option<Agent>,
    /// The one that the agent's address led to before; it lives on.
    pub former: Option<Agent>,
    /// The token may not write.
    pub denies_writes: bool,
    /// The instances of which that was the last answer to a write.
    pub denied: BTreeSet<String>,
    /// The token may only read some of what is there.
    pub filters_reads: bool,
    /// The agent's registrations do not reach the catalog.
    pub sync_fails: bool,
    /// A planted fault: lists of nodes leave out those without a mark.
    pub hides_unmarked: bool,
}

/// An answer of Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub index: Option<u64>,
    pub filtered: bool,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(status: u16, text: &str) -> Self {
        Self { status, index: None, filtered: false, body: text.as_bytes().to_vec() }
    }

    fn json(value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("the model's own types are JSON");
        Self { status: 200, index: None, filtered: false, body }
    }

    fn at(self, index: u64) -> Self {
        Self { index: Some(index), ..self }
    }
}

/// A request's path, taken apart.
#[derive(Debug)]
pub struct Url {
    pub segments: Vec<String>,
    pub query: BTreeMap<String, String>,
}

impl Url {
    pub fn parse(path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let segments = path.trim_start_matches('/').split('/').skip(1).map(decoded).collect();
        let query = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .map(|(key, value)| (key.to_owned(), decoded(value)))
            .collect();
        Self { segments, query }
    }

    /// The node and the index of a query that waits for something newer.
    pub fn waits_for(&self) -> Option<(&str, u64)> {
        let index = self.query.get("index")?.parse().ok().filter(|&index| index > 0)?;
        match self.segments() {
            ["catalog", "node-services", node] => Some((node, index)),
            other => panic!("not in the model: a blocking query of {other:?}"),
        }
    }

    /// How long it waits at most, in seconds.
    pub fn wait(&self) -> u64 {
        let text = self.query.get("wait").map_or("300", |wait| wait.trim_end_matches('s'));
        text.parse().expect("waits are in whole seconds")
    }

    fn segments(&self) -> [&str; 3] {
        let at = |i: usize| self.segments.get(i).map_or("", String::as_str);
        [at(0), at(1), at(2)]
    }

    fn filter(&self) -> &str {
        self.query.get("filter").map_or("", String::as_str)
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&hex, 16).expect("percent-encoded"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// The body of `/v1/agent/service/register`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentService {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    tags: Vec<String>,
    address: String,
    port: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    meta: BTreeMap<String, String>,
    #[serde(default)]
    weights: Weights,
    #[serde(default)]
    enable_tag_override: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    tagged_addresses: BTreeMap<String, store::Address>,
    check: Option<AgentCheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct AgentCheck {
    #[serde(rename = "CheckID")]
    check_id: String,
    name: String,
    notes: String,
    status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CheckUpdate {
    status: String,
    #[serde(default)]
    output: String,
}

impl Consul {
    /// Answers a request. A blocking query is answered as things stand: whoever calls does the waiting.
    pub fn answer(&mut self, writes: bool, url: &Url, body: &[u8]) -> Reply {
        let mut reply = match (writes, url.segments()) {
            (false, ["catalog", "nodes", ""]) => self.nodes(url.filter()),
            // The servers: those of the model are of no version.
            (false, ["catalog", "service", "consul"]) => Reply::json(&json!([])).at(self.store.index_of_instances()),
            (false, ["catalog", "services", ""]) if url.query.contains_key("node-meta") => {
                // Asked for is what no node has.
                Reply::json(&json!({})).at(self.store.index_of_instances())
            }
            (false, ["catalog", "services", ""]) => self.service_names(url.filter()),
            (false, ["health", "service", name]) => self.health_service(name, url.filter()),
            (false, ["catalog", "node-services", node]) => self.node_services(node, url.filter()),
            (false, ["health", "node", node]) => self.health_node(node, url.filter()),
            (true, ["txn", ..]) => self.transact(body),
            (true, ["catalog", "register", ""]) => self.register(body),
            (writes, ["agent", what, how]) => self.ask_agent(writes, what, how, url, body),
            (_, other) => panic!("not in the model: {other:?}"),
        };
        if !writes && self.filters_reads && reply.status == 200 {
            reply.filtered = true;
        }
        reply
    }

    /// Answers a request to the agent that was there before; none where there is none.
    pub fn answer_of_former(&mut self, writes: bool, url: &Url, body: &[u8]) -> Option<Reply> {
        self.former.as_ref()?;
        std::mem::swap(&mut self.agent, &mut self.former);
        let reply = self.answer(writes, url, body);
        std::mem::swap(&mut self.agent, &mut self.former);
        Some(reply)
    }

    /// Lists are cut short where the token may not read everything.
    fn shown(&self, nth: usize) -> bool {
        !self.filters_reads || nth.is_multiple_of(3)
    }

    fn nodes(&self, filter: &str) -> Reply {
        let get = |node: &Node, field: &str| match field.strip_prefix("Meta.") {
            Some(key) => node.meta.get(key).cloned(),
            None if field == "Node" => Some(node.node.clone()),
            None => panic!("not in the model: field {field} of a node"),
        };
        let hidden = |node: &Node| self.hides_unmarked && !node.meta.contains_key("lictor-cluster");
        let fits =
            |node: &Node| !hidden(node) && (filter.is_empty() || filter::fits(filter, &|field| get(node, field)));
        let nodes = self.store.nodes().filter(|node| fits(node)).enumerate();
        let nodes: Vec<&Node> = nodes.filter(|(nth, _)| self.shown(*nth)).map(|(_, node)| &**node).collect();
        Reply::json(&nodes).at(self.store.index.max(1))
    }

    fn service_names(&self, filter: &str) -> Reply {
        let fits = |node: &str, service: &Service| {
            let get = |field: &str| match field.split_once('.') {
                Some(("ServiceMeta", key)) => service.meta.get(key).cloned(),
                Some(("NodeMeta", key)) => self.store.node(node).and_then(|node| node.meta.get(key).cloned()),
                None if field == "Node" => self.store.node(node).map(|node| node.node.clone()),
                _ => panic!("not in the model: field {field} of a service of the catalog"),
            };
            filter.is_empty() || filter::fits(filter, &get)
        };
        let services = self.store.services().filter(|(node, service)| fits(node, service)).enumerate();
        let names: BTreeMap<&str, Vec<&str>> = services
            .filter(|(nth, _)| self.shown(*nth))
            .map(|(_, (_, service))| (service.service.as_str(), Vec::new()))
            .collect();
        Reply::json(&names).at(self.store.index.max(1))
    }

    fn health_service(&self, name: &str, filter: &str) -> Reply {
        let fits = |service: &Service| {
            let get = |field: &str| match field.strip_prefix("Service.Meta.") {
                Some(key) => service.meta.get(key).cloned(),
                None => panic!("not in the model: field {field} of an instance"),
            };
            filter.is_empty() || filter::fits(filter, &get)
        };
        let found = self.store.services().filter(|(_, service)| store::fold(&service.service) == store::fold(name));
        let found = found.filter(|(_, service)| fits(service)).enumerate().filter(|(nth, _)| self.shown(*nth));
        let entries = found.filter_map(|(_, (node, service))| {
            let of = |check: &&Check| check.service_id.is_empty() || check.service_id == service.id;
            let mut checks: Vec<&Check> =
                self.store.checks_on(node).filter(|check| of(&&***check)).map(|c| &**c).collect();
            // The node's own come first.
            checks.sort_by_key(|check| !check.service_id.is_empty());
            Some(json!({ "Node": &**self.store.node(node)?, "Service": &**service, "Checks": checks }))
        });
        Reply::json(&entries.collect::<Vec<_>>()).at(self.store.index.max(1))
    }

    fn node_services(&self, node: &str, filter: &str) -> Reply {
        let index = self.store.index_of(node);
        let Some(there) = self.store.node(node) else { return Reply::json(&json!(null_node())).at(index) };
        let services = self.store.services_on(node).filter(|service| service_fits(filter, service)).enumerate();
        let services: Vec<&Service> =
            services.filter(|(nth, _)| self.shown(*nth)).map(|(_, service)| &**service).collect();
        Reply::json(&json!({ "Node": &**there, "Services": services })).at(index)
    }

    fn health_node(&self, node: &str, filter: &str) -> Reply {
        let checks = self.store.checks_on(node).filter(|check| check_fits(filter, check)).enumerate();
        let checks: Vec<&Check> = checks.filter(|(nth, _)| self.shown(*nth)).map(|(_, check)| &**check).collect();
        Reply::json(&checks).at(self.store.index_of_checks())
    }

    fn register(&mut self, body: &[u8]) -> Reply {
        let wanted: CatalogRegistration = serde_json::from_slice(body).expect("a registration in the model's terms");
        match self.store.register(wanted) {
            Ok(()) => Reply::text(200, "true"),
            Err(words) => Reply::text(500, &words),
        }
    }

    fn transact(&mut self, body: &[u8]) -> Reply {
        let ops: Vec<Op> = serde_json::from_slice(body).expect("a transaction in the model's terms");
        assert!(ops.len() <= 128, "a transaction of {} operations", ops.len());
        let denied = |op: &Op| self.denies_writes && matches!(op, Op::Service(_)) && !op.reads();
        let denials: Vec<store::OpError> = ops
            .iter()
            .enumerate()
            .filter(|(_, op)| denied(op))
            .map(|(op_index, _)| store::OpError { op_index, what: "Permission denied: lacks service:write".to_owned() })
            .collect();
        for op in ops.iter().filter(|op| !op.reads()) {
            if let Op::Service(of) = op {
                self.denied.remove(&of.service.id);
                self.denied.extend(denied(op).then(|| of.service.id.clone()));
            }
        }
        let outcome = if denials.is_empty() { self.store.transact(&ops) } else { Err(denials) };
        match outcome {
            Ok(results) => Reply::json(&json!({ "Results": results, "Errors": null })),
            Err(errors) => Reply { status: 409, ..Reply::json(&json!({ "Results": null, "Errors": errors })) },
        }
    }

    fn ask_agent(&mut self, writes: bool, what: &str, how: &str, url: &Url, body: &[u8]) -> Reply {
        let id = url.segments.get(3).map_or("", String::as_str);
        let (denied, filters) = (self.denies_writes, self.filters_reads);
        let shown = |nth: usize| !filters || nth.is_multiple_of(3);
        let agent = self.agent.as_mut().expect("an agent answers in agent mode only");
        if writes && denied {
            return Reply::text(403, "Permission denied: token lacks permission 'service:write'");
        }
        match (writes, what, how) {
            (false, "self", "") => Reply::json(&json!({ "Config": { "NodeName": agent.node, "NodeID": agent.id } })),
            (false, "services", "") => {
                let services = agent.services().filter(|service| service_fits(url.filter(), service)).enumerate();
                let services: BTreeMap<&str, &Service> = services
                    .filter(|(nth, _)| shown(*nth))
                    .map(|(_, service)| (service.id.as_str(), &**service))
                    .collect();
                Reply::json(&services)
            }
            (false, "checks", "") => {
                let checks = agent.checks().filter(|check| check_fits(url.filter(), check)).enumerate();
                let checks: BTreeMap<&str, &Check> = checks
                    .filter(|(nth, _)| shown(*nth))
                    .map(|(_, check)| (check.check_id.as_str(), &**check))
                    .collect();
                Reply::json(&checks)
            }
            (false, "service", id) => match agent.service(id) {
                Some(service) => Reply::json(&**service),
                None => Reply::text(404, &format!("unknown service ID: {id}")),
            },
            (true, "service", "register") => {
                let wanted: AgentService = serde_json::from_slice(body).expect("a registration in the model's terms");
                let check = wanted.check.map(|check| Check {
                    check_id: check.check_id,
                    name: check.name,
                    notes: check.notes,
                    status: check.status,
                    kind: "ttl".to_owned(),
                    ..Check::default()
                });
                let service = Service {
                    id: wanted.id,
                    service: wanted.name,
                    tags: wanted.tags,
                    address: wanted.address,
                    port: wanted.port,
                    meta: wanted.meta,
                    weights: wanted.weights,
                    enable_tag_override: wanted.enable_tag_override,
                    tagged_addresses: wanted.tagged_addresses,
                    ..Service::default()
                };
                agent.register(service, check);
                Reply::text(200, "")
            }
            (true, "service", "deregister") => {
                if agent.deregister(id) {
                    Reply::text(200, "")
                } else {
                    let hint = "Ensure that the service ID is passed, not the service name.";
                    Reply::text(404, &format!("Unknown service ID \"{id}\". {hint}"))
                }
            }
            (true, "check", "update") => {
                let update: CheckUpdate = serde_json::from_slice(body).expect("an update in the model's terms");
                if agent.update(id, &update.status, &update.output) { Reply::text(200, "") } else { unknown_check(id) }
            }
            (true, "check", "deregister") => {
                if agent.remove_check(id) {
                    Reply::text(200, "")
                } else {
                    unknown_check(id)
                }
            }
            other => panic!("not in the model: {other:?}"),
        }
    }
}

fn unknown_check(id: &str) -> Reply {
    Reply::text(404, &format!("Unknown check ID \"{id}\". Ensure that the check ID is passed, not the check name."))
}

/// What `/v1/catalog/node-services` says of a node that is not there.
fn null_node() -> BTreeMap<&'static str, Option<()>> {
    BTreeMap::from([("Node", None), ("Services", None)])
}

fn service_fits(filter: &str, service: &Service) -> bool {
    let get = |field: &str| match field.strip_prefix("Meta.") {
        Some(key) => service.meta.get(key).cloned(),
        None if field == "ID" => Some(service.id.clone()),
        None => panic!("not in the model: field {field} of a service"),
    };
    filter.is_empty() || filter::fits(filter, &get)
}

fn check_fits(filter: &str, check: &Check) -> bool {
    let get = |field: &str| match field {
        "ServiceID" => Some(check.service_id.clone()),
        _ => panic!("not in the model: field {field} of a check"),
    };
    filter.is_empty() || filter::fits(filter, &get)
}

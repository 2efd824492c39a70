//! The model of Consul against a real one: the same requests, drawn at random, and the same answers.
//!
//! Compared is what the model has; Raft indexes are compared by whether they move together, since a real server
//! writes other things too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use lictor::consul::transport::{ConsulSettings, Http, Method, Request, Transport};
use lictor_testbed::{Consul as RealConsul, ConsulApi, ConsulOptions, Programs, init_tls, wait};
use serde_json::{Value, json};

use crate::consul::agent::Agent;
use crate::consul::{Consul, Url};

/// How many requests are made in each round, and how many rounds.
const REQUESTS: usize = 150;
const ROUNDS: u64 = 4;

const CATALOG_NODES: [&str; 3] = ["c1-n0", "c1-n1", "lictor-c1"];
const IDS: [&str; 3] = ["c1:ns:r:user:u1:80", "c1:ns:r:user:u2:80", "theirs"];

/// Both, and what their indexes have to do with each other.
struct Pair {
    real: Http,
    api: ConsulApi,
    model: Consul,
    node: String,
    indexes: BTreeMap<u64, u64>,
}

impl Pair {
    /// Makes a request of both and compares the answers.
    async fn ask(&mut self, method: Method, path: &str, bodies: Option<[Value; 2]>) {
        let writes = method == Method::Put;
        let text = |body: &Value| Bytes::from(body.to_string());
        let request = Request {
            method,
            path: path.to_owned(),
            body: bodies.as_ref().map(|[real, _]| text(real)),
            timeout: Duration::from_secs(10),
            last_of_connection: false,
        };
        let real = self.real.send(request).await.unwrap();
        let model_body = bodies.as_ref().map(|[_, model]| text(model)).unwrap_or_default();
        let model = self.model.answer(writes, &Url::parse(path), &model_body);
        let what = format!("{method:?} {path} {}", bodies.map_or(Value::Null, |[real, _]| real));
        assert_eq!(model.status, real.status, "{what}: the real one says {:?}", real.body);
        let decoded = |body: &[u8]| serde_json::from_slice::<Value>(body);
        if let (Ok(model), Ok(real)) = (decoded(&model.body), decoded(&real.body)) {
            self.compare(&what, "", &model, &real);
        } else {
            let text = |body: &[u8]| String::from_utf8_lossy(body).trim().to_owned();
            assert_eq!(text(&model.body), text(&real.body), "{what}");
        }
        if writes && path.starts_with("/v1/agent/") {
            self.carry_on(&what).await;
        }
    }

    /// Has the model's agent carry on to the catalog, and waits for the real one to have done so.
    async fn carry_on(&mut self, what: &str) {
        let agent = self.model.agent.as_mut().unwrap();
        if !agent.is_in_sync() {
            agent.sync(&mut self.model.store);
        }
        let services = self.model.store.services_on(&self.node).map(|service| (service.id.clone(), service.port));
        let checks = self.model.store.checks_on(&self.node).filter(|check| !check.service_id.is_empty());
        let checks = checks.map(|check| (check.check_id.clone(), check.status.clone()));
        let (services, checks): (Vec<_>, Vec<_>) = (services.collect(), checks.collect());
        let (api, node) = (&self.api, &self.node);
        wait::until(format!("{what} in the catalog"), Duration::from_secs(10), || async {
            let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
            let there = api.get(&format!("/v1/catalog/node-services/{node}")).await?;
            let there = there["Services"].as_array().into_iter().flatten().filter(|service| service["ID"] != "consul");
            let there: Vec<_> = there.map(|one| (text(one, "ID"), one["Port"].as_i64().unwrap_or_default())).collect();
            let health = api.get(&format!("/v1/health/node/{node}")).await?;
            let health = health.as_array().into_iter().flatten().filter(|check| check["ServiceID"] != "");
            let health: Vec<_> = health.map(|one| (text(one, "CheckID"), text(one, "Status"))).collect();
            Ok((there == services && health == checks).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Holds what the model says against the real answer; the latter may say more.
    fn compare(&mut self, what: &str, at: &str, model: &Value, real: &Value) {
        // Nobody reads these of an agent's checks, which have them from their last registration.
        if what.contains(&self.node) && [".ServiceTags", ".ServiceName"].iter().any(|field| at.ends_with(field)) {
            return;
        }
        // The names alone count.
        if what.contains("/v1/catalog/services") {
            let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            return assert_eq!(names(model), names(real), "{what}");
        }
        match (model, real) {
            (Value::Object(model), Value::Object(real)) => {
                for (key, value) in model {
                    let there = real.get(key).unwrap_or(&Value::Null);
                    self.compare(what, &format!("{at}.{key}"), value, there);
                }
                let whole = [".Meta", ".TaggedAddresses"].iter().any(|field| at.ends_with(field));
                let list = at.is_empty() && what.contains("/v1/agent/") && what.contains("?filter");
                // An agent says more of its own node.
                let all = list || whole && !(at.ends_with(".Node.Meta") && what.contains(&self.node));
                assert!(!all || model.len() == real.len(), "{what}{at}: {model:?} and really {real:?}");
            }
            (Value::Array(model), Value::Array(real)) => {
                assert_eq!(model.len(), real.len(), "{what}{at}: {model:?} and really {real:?}");
                for (nth, (model, real)) in model.iter().zip(real).enumerate() {
                    self.compare(what, &format!("{at}[{nth}]"), model, real);
                }
            }
            (Value::Number(model), Value::Number(real)) if at.ends_with("Index") && !at.ends_with("OpIndex") => {
                let (model, real) = (model.as_u64().unwrap(), real.as_u64().unwrap());
                if model > 0 && !what.contains(&self.node) && !what.contains("/v1/agent/") {
                    let known = *self.indexes.entry(model).or_insert(real);
                    assert_eq!(known, real, "{what}{at}: what moved at {known} moved at {real}");
                }
            }
            // An agent takes minutes to carry on a mere output, and what it carries on together is chance.
            _ if at.ends_with(".Output") && what.contains(&self.node) => {}
            // Nothing is null, an empty list or map, or nothing at all.
            (model, real) if is_nothing(model) && is_nothing(real) => {}
            _ => assert_eq!(model, real, "{what}{at}"),
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn pick<'a>(random: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

fn service(random: &mut fastrand::Rng, id: &str) -> Value {
    let mut meta = json!({ "lictor-cluster": pick(random, &["c1", "c2"]) });
    if random.bool() {
        meta["version"] = json!(pick(random, &["1", "2"]));
    }
    json!({
        "ID": id,
        "Tags": if random.bool() { json!(["a", "b"]) } else { json!([]) },
        "Address": "10.0.0.1",
        "Port": random.u16(1..4),
        "Meta": meta,
        "Weights": { "Passing": random.u8(1..3), "Warning": 1 },
        "EnableTagOverride": false,
        "TaggedAddresses": if random.bool() { json!({ "wan": { "Address": "198.51.100.1", "Port": 443 } }) } else { json!({}) },
    })
}

/// One operation of a transaction, for the real server and for the model: their indexes differ.
fn operation(pair: &Pair, random: &mut fastrand::Rng) -> [Value; 2] {
    let (node, id) = (pick(random, &CATALOG_NODES), pick(random, &IDS));
    let both = |op: Value| [op.clone(), op];
    // For a compare-and-set: what is there, or something else.
    let index = |there: Option<u64>, random: &mut fastrand::Rng| {
        let index = match random.u8(..5) {
            0 => 0,
            1 => pair.indexes.keys().next().copied().unwrap_or_default(),
            _ => there.unwrap_or_default(),
        };
        [pair.indexes.get(&index).copied().unwrap_or(u64::from(index > 0)), index]
    };
    match random.u8(..12) {
        0..3 => {
            let indexes = index(pair.model.store.node(node).map(|node| node.modify_index), random);
            let verb = if random.u8(..6) == 0 { "delete-cas" } else { "cas" };
            let meta = json!({ "lictor-cluster": "c1", "lictor-term": pick(random, &["1", "1", "2"]) });
            indexes.map(|index| {
                json!({ "Node": { "Verb": verb, "Node": { "Node": node, "Address": "192.0.2.1", "Meta": meta, "ModifyIndex": index } } })
            })
        }
        3..6 => {
            let mut service = service(random, id);
            service["Service"] = json!(pick(random, &["user", "User"]));
            both(json!({ "Service": { "Verb": "set", "Node": node, "Service": service } }))
        }
        10 => {
            let indexes = index(pair.model.store.service(node, id).map(|service| service.modify_index), random);
            let mut service = service(random, id);
            service["Service"] = json!("user");
            indexes.map(|index| {
                service["ModifyIndex"] = json!(index);
                json!({ "Service": { "Verb": "cas", "Node": node, "Service": service } })
            })
        }
        11 => {
            let check = format!("{id}:web:tcp");
            let indexes = index(pair.model.store.check(node, &check).map(|check| check.modify_index), random);
            let definition = json!({ "TCP": "10.0.0.1:80", "Interval": "10s", "Timeout": pick(random, &["1s", "2s"]) });
            let status = pick(random, &["passing", "critical"]);
            indexes.map(|index| {
                json!({ "Check": { "Verb": "cas", "Check": {
                    "Node": node,
                    "CheckID": check,
                    "Name": "web",
                    "Type": "tcp",
                    "Status": status,
                    "ServiceID": id,
                    "ServiceName": "user",
                    "Definition": definition,
                    "ModifyIndex": index,
                } } })
            })
        }
        6 => both(json!({ "Service": { "Verb": "delete", "Node": node, "Service": { "ID": id, "Service": "user" } } })),
        7 => both(json!({ "Service": { "Verb": "get", "Node": node, "Service": { "ID": id } } })),
        8 => both(json!({ "Check": { "Verb": "delete", "Check": {
            "Node": node, "CheckID": format!("{id}:readiness"), "ServiceID": id, "ServiceName": "user",
        } } })),
        _ => both(json!({ "Check": { "Verb": "set", "Check": {
            "Node": node,
            "CheckID": format!("{id}:readiness"),
            "Name": "Kubernetes readiness",
            "Type": "kubernetes-readiness",
            "Status": pick(random, &["passing", "critical"]),
            "Output": "as it is",
            "ServiceID": id,
            "ServiceName": "user",
        } } })),
    }
}

async fn one_request(pair: &mut Pair, random: &mut fastrand::Rng) {
    let id = pick(random, &IDS);
    let encoded = id.replace(':', "%3A");
    let both = |body: Value| Some([body.clone(), body]);
    match random.u8(..18) {
        16.. => {
            // Somebody else's, who may write a node's name in another case, and may leave the node as it is.
            let node = pick(random, &["c1-n0", "C1-n0", "c1-n1", "lictor-c1"]);
            let mut body = json!({ "Node": node, "Address": pick(random, &["192.0.2.1", "10.7.7.7"]) });
            if random.bool() {
                body["NodeMeta"] = json!({ "rack": pick(random, &["7", "8"]) });
            }
            if random.u8(..3) == 0 {
                body["SkipNodeUpdate"] = json!(true);
            }
            if random.bool() {
                let mut service = service(random, id);
                service["Service"] = json!("user");
                body["Service"] = service;
            }
            pair.ask(Method::Put, "/v1/catalog/register", both(body)).await;
            // Its answer says nothing of indexes.
            pair.ask(Method::Get, &format!("/v1/catalog/node-services/{node}"), None).await;
        }
        0..7 => {
            let ops: Vec<[Value; 2]> = (0..random.usize(1..4)).map(|_| operation(pair, random)).collect();
            let bodies = [0, 1].map(|of| ops.iter().map(|op| op[of].clone()).collect());
            pair.ask(Method::Put, "/v1/txn", Some(bodies)).await;
        }
        7..9 => {
            let mut body = service(random, id);
            body["Name"] = json!(pick(random, &["user", "User"]));
            if random.bool() {
                body["Check"] = json!({
                    "CheckID": format!("{id}:readiness"),
                    "Name": "Kubernetes readiness",
                    "TTL": "87600h",
                    "Status": pick(random, &["passing", "critical"]),
                });
            }
            pair.ask(Method::Put, "/v1/agent/service/register", both(body)).await;
        }
        9..11 => {
            let status = pick(random, &["passing", "warning", "critical"]);
            let path = format!("/v1/agent/check/update/{encoded}%3Areadiness");
            pair.ask(Method::Put, &path, both(json!({ "Status": status, "Output": "so it is" }))).await;
        }
        11 => {
            pair.ask(Method::Put, &format!("/v1/agent/service/deregister/{encoded}"), None).await;
        }
        12 => {
            pair.ask(Method::Put, &format!("/v1/agent/check/deregister/{encoded}%3Areadiness"), None).await;
        }
        13 => {
            pair.ask(Method::Get, &format!("/v1/agent/service/{encoded}"), None).await;
        }
        _ => read_all(pair).await,
    }
}

/// All reads that the registries make, but for the catalog's view of the agent's node, which comes later.
async fn read_all(pair: &mut Pair) {
    let ours = "Meta%5B%22lictor-cluster%22%5D%20%3D%3D%20%22c1%22%20or%20ID%20matches%20%22%5Ec1%3A%22";
    let checks = "ServiceID%20matches%20%22%5Ec1%3A%22";
    for filter in [String::new(), format!("?filter={ours}")] {
        if filter.is_empty() {
            pair.ask(Method::Get, &format!("/v1/agent/checks?filter={checks}"), None).await;
        } else {
            pair.ask(Method::Get, &format!("/v1/agent/services{filter}"), None).await;
        }
        for node in CATALOG_NODES {
            pair.ask(Method::Get, &format!("/v1/catalog/node-services/{node}{filter}"), None).await;
        }
    }
    for node in CATALOG_NODES {
        pair.ask(Method::Get, &format!("/v1/health/node/{node}?consistent"), None).await;
    }
    let nodes = "Meta%5B%22lictor-cluster%22%5D%20%3D%3D%20%22c1%22";
    for more in [
        "",
        "%20or%20Node%20matches%20%22%28%3Fi%29%5Ec1-%22",
        "%20and%20Meta%5B%22lictor-term%22%5D%20%3D%3D%20%221%22",
    ] {
        pair.ask(Method::Get, &format!("/v1/catalog/nodes?consistent&filter={nodes}{more}"), None).await;
    }
    for node in CATALOG_NODES {
        let ids = "ID%20matches%20%22%5Ec1%3A%22";
        pair.ask(Method::Get, &format!("/v1/catalog/node-services/{node}?consistent&filter={ids}"), None).await;
    }
    let elsewhere = format!("Service{nodes}%20and%20NodeMeta%5B%22lictor-cluster%22%5D%20!%3D%20%22c1%22");
    let others = format!("{elsewhere}%20and%20Node%20!%3D%20%22{}%22", pair.node);
    pair.ask(Method::Get, &format!("/v1/catalog/services?filter={others}"), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_answers_as_consul_does() {
    init_tls();
    let consul = Programs::ensure_consul().await.unwrap();
    let none = PathBuf::new;
    let programs = Programs {
        consul,
        etcd: none(),
        kube_apiserver: none(),
        kube_controller_manager: none(),
        kube_scheduler: none(),
        kubectl: none(),
    };
    for round in 0..ROUNDS {
        let server = RealConsul::start(&programs, ConsulOptions::default()).await.unwrap();
        let real = Http::new(&ConsulSettings::new(server.http_addr())).unwrap();
        let name = server.node_name().to_owned();
        let id = server.api().get("/v1/agent/self").await.unwrap()["Config"]["NodeID"].as_str().unwrap().to_owned();
        let model = Consul { agent: Some(Agent::new(&name, id)), ..Consul::default() };
        let mut pair = Pair { real, api: server.api(), model, node: name.clone(), indexes: BTreeMap::new() };
        let mut random = fastrand::Rng::with_seed(round);
        pair.ask(Method::Get, "/v1/agent/self", None).await;
        for _ in 0..REQUESTS {
            one_request(&mut pair, &mut random).await;
        }
        read_all(&mut pair).await;
        for filter in ["Meta%5B%22lictor-cluster%22%5D%20%3D%3D%20%22c1%22", "ID%20matches%20%22%5Ec1%3A%22"] {
            pair.ask(Method::Get, &format!("/v1/catalog/node-services/{name}?filter={filter}"), None).await;
        }
        let checks = "ServiceID%20matches%20%22%5Ec1%3A%22";
        pair.ask(Method::Get, &format!("/v1/health/node/{name}?filter={checks}"), None).await;
        // Consul takes no notice of the last part: it says that the agent's node is in the answer.
        let ours = "Service.Meta%5B%22lictor-cluster%22%5D%20%3D%3D%20%22c1%22";
        pair.ask(Method::Get, &format!("/v1/health/service/user?filter={ours}&of={name}"), None).await;
        drop(server);
    }
}

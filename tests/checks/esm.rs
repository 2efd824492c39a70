//! Checks in the catalog, as consul-esm runs them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lictor::cluster::convert::ChecksRunBy;
use lictor::consul::catalog::Catalog;
use lictor::model::check::Checks;
use lictor::model::diff::Op;
use lictor::model::health::Health;
use lictor::model::ids::Str;
use lictor::model::registration::{Registration, RowKey};
use lictor::ports::Registry;
use lictor_testbed::{
    Consul, ConsulApi, ConsulOptions, Esm, Fault, Heard, Hold, Listener, Message, Protocol, Proxy, esm, wait,
};
use serde_json::{Value, json};

use crate::fixture::{HERE, checks, edit, health, instance, read, with_checks};
use crate::registries::{SOON, catalog, connect, consul, full, key, put, remove, write};

fn for_esm(yaml: &str, port: u16) -> Checks {
    checks(yaml, ChecksRunBy::Esm, port, Health::Passing).unwrap()
}

/// A check of an instance in the catalog; null if it is not there.
async fn check(api: &ConsulApi, key: &RowKey, name: &str) -> Value {
    let all = api.get(&format!("/v1/health/node/{}", key.node)).await.unwrap();
    let id = format!("{}:{name}", key.id);
    all.as_array().unwrap().iter().find(|check| check["CheckID"] == *id).cloned().unwrap_or_default()
}

/// A node's row, without what moves by itself.
async fn row(api: &ConsulApi, node: &Str) -> Value {
    let mut row = api.get(&format!("/v1/catalog/node-services/{node}")).await.unwrap()["Node"].take();
    for index in ["CreateIndex", "ModifyIndex"] {
        row.as_object_mut().unwrap().remove(index);
    }
    row
}

fn external(row: &Value) -> &Value {
    &row["Meta"]["external-node"]
}

/// Writes a check's status as consul-esm would.
async fn say(api: &ConsulApi, key: &RowKey, name: &str, status: &str) {
    let check = check(api, key, name).await;
    esm::write(api, &check, status, &format!("{status}, says consul-esm")).await.unwrap();
}

fn said(check: &Value) -> (&str, &str) {
    (check["Status"].as_str().unwrap(), check["Output"].as_str().unwrap())
}

async fn a_catalog() -> (Consul, Catalog, Str) {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    (consul, registry, node)
}

#[tokio::test]
async fn each_kind_is_run_after_what_the_catalog_says() {
    let (consul, registry, node) = a_catalog().await;
    let api = consul.api();
    let _esm = Esm::start(consul.api());
    let kinds = [
        ("http: { path: /health?deep=1, method: POST, headers: [{ name: X-Probe, value: one }] }", Protocol::Http),
        ("tcp: {}", Protocol::Tcp),
        ("grpc: { service: user.v1.User }", Protocol::Grpc),
    ];
    let mut cases = Vec::new();
    for (number, (yaml, protocol)) in kinds.into_iter().enumerate() {
        let listener = Listener::start(protocol, HERE, None).await.unwrap();
        let yaml = format!("[{{ name: c, interval: 1s, timeout: 500ms, notes: see the runbook, {yaml} }}]");
        let instance = instance(HERE, listener.port(), for_esm(&yaml, listener.port()));
        cases.push((key(&node, &number.to_string()), instance, listener));
    }
    write(&registry, &node, cases.iter().map(|(key, instance, _)| put(key, instance)).collect()).await;
    assert_eq!(external(&row(&api, &node).await), "true");

    let heard: Vec<Heard> =
        futures::future::join_all(cases.iter().map(|(_, _, listener)| listener.next("a check", |_| true, SOON)))
            .await
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap();
    assert!(matches!(&heard[0].what, Message::Request { method, target, headers, .. }
        if method == "POST" && target == "/health?deep=1" && headers.contains(&("x-probe".into(), "one".into()))));
    assert_eq!(heard[1].what, Message::Connection);
    assert!(matches!(&heard[2].what, Message::Call { service, .. } if service == "user.v1.User"));

    for (key, instance, listener) in &mut cases {
        listener.fail().await.unwrap();
        let row = health(&registry, key, Health::Critical).await;
        assert_eq!(*row.registration, *instance, "what consul-esm says is no difference");
        listener.recover().await.unwrap();
        health(&registry, key, Health::Passing).await;
    }
    let there = check(&api, &cases[1].0, "c:tcp").await;
    let definition = &there["Definition"];
    assert_eq!(
        (&there["Name"], &there["Notes"], &there["Type"], &definition["Interval"], &definition["Timeout"]),
        (&json!("c"), &json!("see the runbook"), &json!("tcp"), &json!("1s"), &json!("500ms"))
    );
}

#[tokio::test]
async fn what_tls_needs_is_in_the_definition() {
    let (consul, registry, node) = a_catalog().await;
    let yaml = "[{ name: web, http: { scheme: https, tlsServerName: user.example, tlsSkipVerify: true } }, \
                 { name: rpc, grpc: { useTLS: true, tlsServerName: rpc.example }, port: 9090 }]";
    let (key, instance) = (key(&node, "a"), instance("fd00::7".parse().unwrap(), 8080, for_esm(yaml, 8080)));
    write(&registry, &node, vec![put(&key, &instance)]).await;
    let web = check(&consul.api(), &key, "web:http").await["Definition"].take();
    assert_eq!(
        (&web["HTTP"], &web["TLSServerName"], &web["TLSSkipVerify"]),
        (&json!("https://[fd00::7]:8080/"), &json!("user.example"), &json!(true))
    );
    let rpc = check(&consul.api(), &key, "rpc:grpc").await["Definition"].take();
    assert_eq!(
        (&rpc["GRPC"], &rpc["GRPCUseTLS"], &rpc["TLSServerName"]),
        (&json!("[fd00::7]:9090"), &json!(true), &json!("rpc.example"))
    );
}

/// Whatever of an instance is edited, what consul-esm says of it stays.
#[tokio::test]
async fn an_edit_leaves_what_consul_esm_says() {
    let (consul, registry, node) = a_catalog().await;
    let api = consul.api();
    let (good, bad) = (key(&node, "good"), key(&node, "bad"));
    let web = |path: &str| for_esm(&format!("[{{ name: web, http: {{ path: {path} }} }}]"), 8080);
    let mut now = Registration { readiness: Some(Health::Passing), ..instance(HERE, 8080, web("/")) };
    write(&registry, &node, vec![put(&good, &now), put(&bad, &now)]).await;
    say(&api, &good, "web:http", "passing").await;
    say(&api, &bad, "web:http", "critical").await;
    let tagged = Registration { tags: ["v2".into()].into(), ..now.clone() };
    let moved = Registration { address: "127.0.0.2".into(), ..tagged.clone() };
    let unready = Registration { readiness: Some(Health::Critical), ..moved.clone() };
    for edited in [tagged, moved, with_checks(&unready, web("/other"))] {
        write(&registry, &node, vec![edit(&good, &now, &edited), edit(&bad, &now, &edited)]).await;
        now = edited;
        assert_eq!(said(&check(&api, &good, "web:http").await), ("passing", "passing, says consul-esm"));
        let bad = check(&api, &bad, "web:http").await;
        assert_eq!(said(&bad), ("critical", "critical, says consul-esm"));
        assert_eq!(bad["ServiceTags"], json!(now.tags.iter().map(|tag| &**tag).collect::<Vec<_>>()));
    }
    let url = &check(&api, &bad, "web:http").await["Definition"]["HTTP"];
    assert_eq!(url, "http://127.0.0.2:8080/other");

    // What comes anew begins with what Kubernetes says: these instances are ready.
    let more = with_checks(&now, for_esm("[{ name: web, tcp: {} }]", 8080));
    write(&registry, &node, vec![edit(&bad, &now, &more)]).await;
    assert_eq!(said(&check(&api, &bad, "web:tcp").await), ("passing", ""));
    assert!(check(&api, &bad, "web:http").await.is_null());
}

/// Between our look at a check and our write of it consul-esm may have something to say.
#[tokio::test]
async fn what_consul_esm_says_meanwhile_is_not_lost() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    let (registry, api) = (catalog(&proxy.addr(), None), consul.api());
    let node = connect(&registry).await;
    let key = key(&node, "a");
    let before = instance(HERE, 8080, for_esm("[{ name: web, http: {} }]", 8080));
    write(&registry, &node, vec![put(&key, &before)]).await;
    let after = Registration { tags: ["v2".into()].into(), ..before.clone() };
    let first = AtomicBool::new(true);
    let hold = Hold::default();
    let fault = Fault::Hold(hold.clone());
    proxy.set_fault(Fault::Rule(Arc::new(move |record| {
        let is_edit = String::from_utf8_lossy(&record.body).contains("\"v2\"");
        (is_edit && first.swap(false, Ordering::SeqCst)).then(|| fault.clone())
    })));
    let writes =
        || proxy.writes().iter().filter(|write| String::from_utf8_lossy(&write.body).contains("\"v2\"")).count();
    let meanwhile = async {
        let arrived = || async { Ok((writes() > 0).then_some(())) };
        wait::until("the edit to be under way", SOON, arrived).await.unwrap();
        say(&api, &key, "web:http", "critical").await;
        hold.release();
    };
    tokio::join!(write(&registry, &node, vec![edit(&key, &before, &after)]), meanwhile);
    assert_eq!(writes(), 2, "the first was of a check that had changed");
    let there = check(&api, &key, "web:http").await;
    assert_eq!((said(&there).0, &there["ServiceTags"]), ("critical", &json!(["v2"])));
}

#[tokio::test]
async fn an_added_header_is_noticed() {
    let (consul, registry, node) = a_catalog().await;
    let _esm = Esm::start(consul.api());
    let listener = Listener::start(Protocol::Http, HERE, None).await.unwrap();
    let key = key(&node, "a");
    let of = |headers: &str| {
        let yaml = format!("[{{ name: c, interval: 1s, http: {{ headers: [{headers}] }} }}]");
        instance(HERE, listener.port(), for_esm(&yaml, listener.port()))
    };
    let mut now = of("");
    write(&registry, &node, vec![put(&key, &now)]).await;
    listener.next("a request", |_| true, SOON).await.unwrap();
    let (one, agent) = ("{ name: X-One, value: '1' }", "{ name: User-Agent, value: probe }");
    for (headers, name, value) in [(one.to_owned(), "x-one", "1"), (format!("{one}, {agent}"), "user-agent", "probe")] {
        let edited = of(&headers);
        write(&registry, &node, vec![edit(&key, &now, &edited)]).await;
        now = edited;
        let has = |heard: &Heard| matches!(&heard.what, Message::Request { headers, .. } if headers.contains(&(name.into(), value.into())));
        listener.next(name, has, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn only_nodes_with_checks_are_for_consul_esm() {
    let (consul, registry, node) = a_catalog().await;
    let api = consul.api();
    let (a, b) = (key(&node, "a"), key(&node, "b"));
    let plain = full("10.0.0.1", Some(Health::Passing));
    write(&registry, &node, vec![put(&a, &plain), put(&b, &plain)]).await;
    assert!(external(&row(&api, &node).await).is_null());

    // What others have written into the row stays there, whatever we do to it.
    let mut theirs = row(&api, &node).await;
    theirs["Meta"]["rack"] = json!("7");
    let mut entry = json!({ "TaggedAddresses": { "wan": "198.51.100.1" }, "NodeMeta": theirs["Meta"] });
    entry["Node"] = theirs["Node"].clone();
    entry["Address"] = theirs["Address"].clone();
    api.put("/v1/catalog/register", &entry).await.unwrap();
    let before = row(&api, &node).await;
    assert_eq!(before["TaggedAddresses"]["wan"], "198.51.100.1");
    let marked = || {
        let mut row = before.clone();
        row["Meta"]["external-node"] = json!("true");
        row
    };

    let checked = with_checks(&plain, for_esm("[{ name: c, tcp: {} }]", 8080));
    write(&registry, &node, vec![edit(&a, &plain, &checked), edit(&b, &plain, &checked)]).await;
    assert_eq!(row(&api, &node).await, marked());

    // Somebody else's check of an instance of ours, and its maintenance.
    let entry = |check: Value| json!({ "Node": &*node, "SkipNodeUpdate": true, "Check": check });
    let theirs = json!({ "CheckID": "theirs", "Name": "theirs", "ServiceID": &*a.id, "Status": "passing" });
    let maintenance = format!("_service_maintenance:{}", a.id);
    let maintenance =
        json!({ "CheckID": maintenance, "Name": "maintenance", "ServiceID": &*a.id, "Status": "critical" });
    for check in [&theirs, &maintenance] {
        api.put("/v1/catalog/register", &entry(check.clone())).await.unwrap();
    }

    // One of two instances loses its check, and then the other is gone.
    let settle = || async {
        registry.read().await.unwrap();
        registry.tidy(&BTreeMap::new()).await.unwrap();
    };
    write(&registry, &node, vec![edit(&a, &checked, &plain)]).await;
    settle().await;
    assert_eq!(row(&api, &node).await, marked(), "the other one has a check still");
    write(&registry, &node, vec![remove(&b)]).await;
    settle().await;
    assert_eq!(row(&api, &node).await, before);
    let left = api.get(&format!("/v1/health/node/{node}")).await.unwrap();
    let left: Vec<&str> = left.as_array().unwrap().iter().map(|check| check["CheckID"].as_str().unwrap()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&"theirs") && left.iter().any(|id| id.starts_with("_service_maintenance")), "{left:?}");
    read(&registry, &a, "maintenance to count", |row| row.health == Health::Critical).await;

    // Lost behind our back, it is set again.
    write(&registry, &node, vec![edit(&a, &plain, &checked)]).await;
    assert_eq!(row(&api, &node).await, marked());
    let mut lost = json!({ "Node": &*node, "NodeMeta": before["Meta"], "TaggedAddresses": before["TaggedAddresses"] });
    lost["Address"] = before["Address"].clone();
    api.put("/v1/catalog/register", &lost).await.unwrap();
    assert_eq!(row(&api, &node).await, before);
    settle().await;
    assert_eq!(row(&api, &node).await, marked());

    // Where only somebody else has checks to run, it is theirs to say.
    write(&registry, &node, vec![edit(&a, &checked, &plain)]).await;
    let runs = json!({ "CheckID": "theirs", "Name": "theirs", "ServiceID": &*a.id, "Definition": { "TCP": "a:1" } });
    api.put("/v1/catalog/register", &entry(runs)).await.unwrap();
    settle().await;
    assert_eq!(row(&api, &node).await, marked());
}

/// An instance that is gone comes back with its checks when its readiness moves.
#[tokio::test]
async fn a_lost_instance_comes_back_with_its_checks() {
    let (consul, registry, node) = a_catalog().await;
    let key = key(&node, "a");
    let wanted = Registration {
        readiness: Some(Health::Passing),
        ..instance(HERE, 8080, for_esm("[{ name: c, tcp: {} }]", 8080))
    };
    let back = Op::Readiness { key: key.clone(), registration: Arc::new(wanted.clone()) };
    write(&registry, &node, vec![back]).await;
    let there = read(&registry, &key, "it to be back", |_| true).await;
    assert_eq!((&*there.registration, there.health), (&wanted, Health::Passing));
    assert_eq!(external(&row(&consul.api(), &node).await), "true");
}

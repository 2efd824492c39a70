//! What cannot be done is said, in the status and by an Event, and affects nothing else.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use lictor_testbed::{ConsulOptions, Fault, NewEndpoint, Proxy, Record, wait};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, merged};
use crate::rows::fingerprint;

pub(crate) async fn a_service_that_does_not_exist(fixture: &Fixture) -> Result<()> {
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "False", "ServiceNotFound").await?;
    ensure!(message.contains("\"web\""), "it does not say which: {message}");
    fixture.wait_for_condition("web", "Ready", "False", "ServiceNotFound").await?;
    let told = fixture.wait_for_event("web", "ServiceNotFound").await?;
    ensure!(told == message, "{told}");
    let pods = fixture.web(1).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;

    // A new name that may be mistyped: what the old one registered stays.
    let before = fingerprint(fixture, &fixture.service).await?;
    fixture.apply_web(json!({ "source": { "service": { "name": "wbe" } } })).await?;
    fixture.wait_for_condition("web", "Resolved", "False", "ServiceNotFound").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    fixture.apply_web(json!({})).await?;
    fixture.wait_ready("web").await?;

    // One that was there and is deleted takes its endpoints with it.
    fixture.namespace.kubectl(&["delete", "service", "web"]).await?;
    fixture.wait_for_condition("web", "Resolved", "False", "ServiceNotFound").await?;
    fixture.wait_for_pods(&[]).await.map(drop)
}

pub(crate) async fn consul_refuses_one(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.own_consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await?;
    let denied = fixture.service_named("denied");
    let token = token(fixture, &format!("service {:?} {{ policy = \"write\" }}", fixture.service)).await?;
    fixture.operator().token(&token).ready().await?;
    fixture.apply("denied", &fixture.spec(json!({ "name": denied }))).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;

    let message = fixture.wait_for_condition("denied", "Registered", "False", "Refused").await?;
    ensure!(message.contains("Permission denied"), "not Consul's own words: {message}");
    fixture.wait_for_condition("denied", "Ready", "False", "Refused").await?;
    let told = fixture.wait_for_event("denied", "Refused").await?;
    ensure!(told.contains("Permission denied"), "{told}");
    let status = &fixture.resources().get("denied").await?.data["status"];
    ensure!(status["problems"].as_array().is_some_and(|problems| !problems.is_empty()), "no problems: {status}");
    ensure!(fixture.consul().instances(&denied).await?.is_empty(), "it is registered all the same");
    // Deleting what could never be registered waits for nothing.
    fixture.delete("denied").await?;
    fixture.wait_gone("denied").await
}

/// Makes a token for an operator, with this rule besides what it needs to work at all.
pub(crate) async fn token(fixture: &Fixture, rule: &str) -> Result<String> {
    let rules = format!(
        "agent_prefix \"\" {{ policy = \"read\" }}\n\
         node_prefix \"\" {{ policy = \"write\" }}\n\
         service_prefix \"\" {{ policy = \"read\" }}\n{rule}"
    );
    let consul = fixture.consul();
    consul.put("/v1/acl/policy", &json!({ "Name": "lictor", "Rules": rules })).await?;
    let token = consul.put("/v1/acl/token", &json!({ "Policies": [{ "Name": "lictor" }] })).await?;
    ensure!(token["SecretID"].is_string(), "{token}");
    Ok(token["SecretID"].as_str().unwrap_or_default().to_owned())
}

pub(crate) async fn what_is_not_supported(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "namespace": "default", "partition": "default" })).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    let before = fingerprint(fixture, &fixture.service).await?;

    let mut not_supported: Vec<(&str, Value, &[&str])> = vec![
        ("namespace", json!({ "namespace": "team-a" }), &["spec.namespace", "\"team-a\"", "Enterprise"]),
        ("partition", json!({ "partition": "part-b" }), &["spec.partition", "\"part-b\"", "Enterprise"]),
    ];
    if fixture.mode == Mode::Catalog {
        not_supported.push(("checks", json!({ "checks": [{ "name": "http", "http": {} }] }), &["spec.checks"]));
    }
    for (name, more, words) in &not_supported {
        let service = fixture.service_named(name);
        fixture.apply(name, &merged(fixture.spec(json!({ "name": service })), more.clone())).await?;
        let message = fixture.wait_for_condition(name, "Accepted", "False", "NotSupported").await?;
        ensure!(words.iter().all(|words| message.contains(words)), "{name}: {message}");
        fixture.wait_for_condition(name, "Ready", "False", "NotSupported").await?;
        fixture.wait_for_event(name, "NotSupported").await?;
        ensure!(fixture.consul().instances(&service).await?.is_empty(), "{name} is registered all the same");
    }

    // An edit to something that is not supported: what was registered stays, and still follows the pods.
    fixture.apply_web(json!({ "namespace": "team-a", "tags": ["other"] })).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NotSupported").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    let more = fixture.web_pod("web-1", "b").await?;
    fixture.wait_for_pods(&[&pods[0], &more]).await?;
    fixture.apply_web(json!({ "tags": ["fine"] })).await?;
    fixture
        .wait_for("as specified again", |found| found.len() == 2 && found.iter().all(|i| i.tags == ["fine"]))
        .await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn a_check_that_consul_does_not_know(fixture: &Fixture) -> Result<()> {
    /// What a Consul says that is older than a kind of check: it passes over what it does not know, and finds nothing
    /// else.
    const WORDS: &str = "Invalid check: TTL must be > 0 for TTL checks";
    let pods = fixture.web(2).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let is_new = |record: &Record| record.is_write() && String::from_utf8_lossy(&record.body).contains("\"H2PING\"");
    proxy.set_fault(Fault::Rule(Arc::new(move |record| {
        is_new(record).then(|| Fault::Status(400, WORDS.to_owned(), Vec::new()))
    })));
    fixture.operator().consul(&proxy.addr()).ready().await?;
    let refused = fixture.service_named("refused");
    let check = json!({ "checks": [{ "name": "ping", "h2ping": {} }] });
    fixture.apply("refused", &merged(fixture.spec(json!({ "name": refused })), check.clone())).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_flawless("web").await?;
    let message = fixture.wait_for_condition("refused", "Registered", "False", "Refused").await?;
    ensure!(message.contains(WORDS) && message.contains("0 of 2"), "not Consul's own words: {message}");
    fixture.wait_for_condition("refused", "Ready", "False", "Refused").await?;
    ensure!(fixture.wait_for_event("refused", "Refused").await?.contains(WORDS), "not in the Event");
    ensure!(fixture.consul().instances(&refused).await?.is_empty(), "it is registered all the same");

    // An edit to such a check: what is registered stays as it is, and goes on once the check is gone.
    let before = fingerprint(fixture, &fixture.service).await?;
    fixture.apply_web(merged(check, json!({ "tags": ["new"] }))).await?;
    fixture.wait_for_condition("web", "Registered", "False", "Refused").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    fixture.apply_web(json!({ "tags": ["new"] })).await?;
    fixture.wait_for("as specified again", |found| found.len() == 2 && found.iter().all(|i| i.tags == ["new"])).await?;
    fixture.wait_flawless("web").await
}

pub(crate) async fn an_address_that_is_not_allowed(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operator().flag("--allow-static", "198.51.100.0/24").ready().await?;
    let wan = |address: &str| json!({ "taggedAddresses": { "wan": { "address": address, "port": 443 } } });
    fixture.apply_web(wan("198.51.100.1")).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    let before = fingerprint(fixture, &fixture.service).await?;
    fixture.apply_web(wan("203.0.113.1")).await?;
    let message = fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    ensure!(message.contains("203.0.113.1") && message.contains("--allow-static"), "{message}");
    ensure!(fingerprint(fixture, &fixture.service).await? == before, "what was registered did not stay");
    // What is registered still follows the pods.
    fixture.namespace.set_ready("web-0", false).await?;
    let critical = |found: &[lictor_testbed::Instance]| matches!(found, [one] if one.status == "critical");
    fixture.consul().wait_for(&fixture.service, "critical", critical, SOON).await.map(drop)
}

pub(crate) async fn a_write_that_fails_each_time(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(4).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let (lost, stumbles) = (pods[1].uid.clone(), pods[2].uid.clone());
    proxy.set_fault(Fault::Rule(Arc::new(move |record: &Record| {
        let about = |uid: &str| record.path.contains(uid) || String::from_utf8_lossy(&record.body).contains(uid);
        let words = "rpc error making call: this one cannot be".to_owned();
        let failed = about(&stumbles).then(|| Fault::Status(500, words, Vec::new()));
        if about(&lost) { Some(Fault::Refuse) } else { failed }
    })));
    let operator = fixture.operator().consul(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[3]]).await?;
    let message = fixture.wait_for_condition("web", "Registered", "False", "Refused").await?;
    ensure!(message.contains("while other writes succeed"), "{message}");
    fixture.wait_for_counts("web", [4, 2, 2, 0]).await?;
    let of_both = |problems: &Vec<Value>| {
        let of = |pod: usize| problems.iter().any(|problem| problem["instance"].to_string().contains(&pods[pod].uid));
        of(1) && of(2)
    };
    wait::until("a problem of each", SOON, || async {
        let web = fixture.resources().get("web").await?;
        Ok(web.data["status"]["problems"].as_array().is_some_and(of_both).then_some(()))
    })
    .await?;

    // Others go on, and Consul is not said to be away.
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for_counts("web", [4, 2, 1, 1]).await?;
    let other = fixture.service_named("other");
    fixture.apply("other", &fixture.spec(json!({ "name": other, "port": "http", "tags": ["other"] }))).await?;
    fixture.consul().wait_for(&other, "the two that can be", |found| found.len() == 2, SOON).await?;
    fixture.wait_for_a_look(&operator).await?;
    let ready = operator.get("/readyz").await?;
    ensure!(ready.starts_with("ok"), "{ready}");

    proxy.set_fault(Fault::None);
    fixture.namespace.set_ready("web-0", true).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2], &pods[3]]).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn a_target_that_names_no_pod(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let address = |octet| Ipv4Addr::new(10, 1, 1, octet);
    let uid = "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0b";
    let long = ":".repeat(20_000);
    let pods = [("p", uid), ("p", long.as_str()), (long.as_str(), uid), ("p", "a/b?c"), ("P%20", uid)];
    let endpoints: Vec<NewEndpoint> = (1..)
        .zip(pods)
        .map(|(octet, (name, uid))| NewEndpoint {
            pod: Some((name.to_owned(), uid.to_owned())),
            ..NewEndpoint::new(address(octet).into())
        })
        .collect();
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for("all of them, passing", |found| {
        found.len() == pods.len() && found.iter().all(|instance| instance.status == "passing")
    });
    for instance in found.await? {
        let is_a_pods = instance.address == address(1).to_string();
        let target = if is_a_pods { uid } else { &instance.address };
        ensure!(instance.id.contains(&format!(":{target}:")), "{instance:?}");
        ensure!(instance.meta.contains_key("k8s-pod") == is_a_pods, "{instance:?}");
    }
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await
}

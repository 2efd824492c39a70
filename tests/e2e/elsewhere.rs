//! Instances that run elsewhere, at addresses that a resource gives.

use anyhow::{Context, Result, ensure};
use lictor_testbed::{ConsulApi, Instance};
use serde_json::{Value, json};

use crate::fixture::{Fixture, SOON, merged, pair};
use crate::rows::fingerprint;

const ALLOWED: &str = "198.51.100.0/24,2001:db8::/32";

#[expect(clippy::needless_pass_by_value, reason = "written in place as json!")]
fn source(addresses: Value) -> Value {
    json!({ "source": { "static": addresses } })
}

/// Address and port of each instance.
fn ends(found: &[Instance]) -> Vec<(&str, u16)> {
    let mut ends: Vec<_> = found.iter().map(|i| (i.address.as_str(), i.port)).collect();
    ends.sort_unstable();
    ends
}

pub(crate) async fn static_addresses(fixture: &Fixture) -> Result<()> {
    fixture.operator().flag("--allow-static", ALLOWED).ready().await?;
    let spec = |first: Value, second: Value| {
        merged(source(json!([first, second])), json!({ "tags": ["all"], "meta": { "rack": "0", "team": "shop" } }))
    };
    let second = json!({ "address": "2001:db8::7", "port": 8443 });
    fixture
        .apply_web(spec(
            json!({ "address": "198.51.100.7", "port": 8080, "tags": ["own", "all"], "meta": { "rack": "7" } }),
            second.clone(),
        ))
        .await?;
    let found =
        fixture.wait_for("both", |found| ends(found) == [("198.51.100.7", 8080), ("2001:db8::7", 8443)]).await?;
    let of = |address: &str| found.iter().find(|i| i.address == address).context("it was just there");
    let (v4, v6) = (of("198.51.100.7")?, of("2001:db8::7")?);
    ensure!(v4.tags == ["all", "own"] && v4.meta["rack"] == "7" && v4.meta["team"] == "shop", "{v4:?}");
    ensure!(v6.tags == ["all"] && v6.meta["rack"] == "0", "{v6:?}");
    // Kubernetes has nothing to say about what runs elsewhere: no check of ours, and no pod.
    for instance in &found {
        ensure!(instance.status == "passing" && !instance.meta.contains_key("k8s-pod"), "{instance:?}");
        ensure!(instance.checks.iter().all(|check| check.service_id.is_empty()), "{instance:?}");
    }
    fixture.wait_flawless("web").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;

    // An edit of what is the first one's own leaves the other one as it is; one of its address replaces it.
    let before = v6.service_modify_index;
    fixture
        .apply_web(spec(json!({ "address": "198.51.100.7", "port": 8080, "meta": { "rack": "8" } }), second.clone()))
        .await?;
    let is_edited = |i: &Instance| i.tags == ["all"] && pair(i, "rack") == Some("8");
    fixture.wait_for("its own edited", |found| found.iter().any(is_edited) && found.len() == 2).await?;
    fixture.apply_web(spec(json!({ "address": "198.51.100.8", "port": 8080 }), second.clone())).await?;
    let replaced = |found: &[Instance]| ends(found) == [("198.51.100.8", 8080), ("2001:db8::7", 8443)];
    let found = fixture.wait_for("replaced", replaced).await?;
    ensure!(found.iter().any(|i| i.service_modify_index == before), "the other one was written: {found:?}");
    fixture.apply_web(source(json!([{ "address": "198.51.100.8", "port": 8081 }]))).await?;
    fixture.wait_for("one, at another port", |found| ends(found) == [("198.51.100.8", 8081)]).await?;
    fixture.wait_flawless("web").await?;

    // The same address twice, at two ports.
    fixture
        .apply_web(source(
            json!([{ "address": "198.51.100.8", "port": 8081 }, { "address": "198.51.100.8", "port": 8082 }]),
        ))
        .await?;
    fixture.wait_for("two", |found| ends(found) == [("198.51.100.8", 8081), ("198.51.100.8", 8082)]).await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "gone from Kubernetes, but not from Consul");
    Ok(())
}

pub(crate) async fn addresses_that_are_not_allowed(fixture: &Fixture) -> Result<()> {
    fixture.operator().flag("--allow-static", ALLOWED).ready().await?;
    let good = json!({ "address": "198.51.100.7", "port": 8080 });
    fixture.apply_web(source(json!([good]))).await?;
    fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
    fixture.wait_ready("web").await?;
    let before = fingerprint(fixture, &fixture.service).await?;

    let outside = ["203.0.113.7", "198.51.101.1", "2001:db9::1"];
    for (number, address) in outside.into_iter().enumerate() {
        let (name, service) = (format!("outside-{number}"), fixture.service_named(&format!("outside-{number}")));
        let spec = source(json!([good, { "address": address, "port": 80 }]));
        fixture.apply(&name, &merged(fixture.spec(json!({ "name": service })), spec)).await?;
        let message = fixture.wait_for_condition(&name, "Accepted", "False", "NotAllowed").await?;
        ensure!(message.contains(address), "it does not say which: {message}");
        ensure!(message.contains("administrator") && message.contains("--allow-static"), "not what to ask: {message}");
        ensure!(nothing_of(&fixture.consul(), &service).await?, "{name} is registered all the same");
    }
    fixture.wait_for_event("outside-0", "NotAllowed").await?;

    // What was registered stays, and an edit back is followed.
    fixture.apply_web(source(json!([good, { "address": "203.0.113.7", "port": 80 }]))).await?;
    fixture.wait_for_condition("web", "Ready", "False", "NotAllowed").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    fixture.apply_web(source(json!([good, { "address": "198.51.100.9", "port": 80 }]))).await?;
    let both = [("198.51.100.7", 8080), ("198.51.100.9", 80)];
    fixture.consul().wait_for(&fixture.service, "both", |found| ends(found) == both, SOON).await?;
    fixture.wait_flawless("web").await
}

async fn nothing_of(consul: &ConsulApi, service: &str) -> Result<bool> {
    Ok(consul.instances(service).await?.is_empty())
}

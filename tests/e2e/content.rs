//! What an instance says in Consul.

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Instance, NewEndpoint};
use serde_json::json;

use crate::answering::own_address;
use crate::fixture::Fixture;
use crate::rows::Row;

const ALLOWED: &str = "198.51.100.0/24,2001:db8::/32";

/// The tagged addresses that an agent adds are Consul's own.
fn tagged(instance: &Instance) -> Vec<(&str, &str, u16)> {
    let tagged =
        instance.tagged_addresses.iter().map(|(name, (address, port))| (name.as_str(), address.as_str(), *port));
    tagged.filter(|(name, ..)| !matches!(*name, "lan_ipv4" | "wan_ipv4")).collect()
}

pub(crate) async fn all_of_it_is_read_back(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operator().flag("--allow-static", ALLOWED).ready().await?;
    fixture
        .apply_web(json!({
            "tags": ["z-last-first", "grpc", "Ünïcode ✓"],
            "meta": { "version": "1.2.3", "team_name": "user & shop" },
            "weights": { "passing": 10, "warning": 0 },
            "enableTagOverride": false,
            "taggedAddresses": {
                "wan": { "address": "198.51.100.1", "port": 443 },
                "v6": { "address": "2001:db8::7", "port": 8443 },
            },
        }))
        .await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    for instance in &found {
        ensure!(instance.tags == ["z-last-first", "grpc", "Ünïcode ✓"], "{instance:?}");
        ensure!(instance.meta["version"] == "1.2.3" && instance.meta["team_name"] == "user & shop", "{instance:?}");
        ensure!(instance.weights == (10, 0) && !instance.enable_tag_override, "{instance:?}");
        let wanted = [("v6", "2001:db8::7", 8443), ("wan", "198.51.100.1", 443)];
        ensure!(tagged(instance) == wanted, "{instance:?}");
    }
    fixture.wait_ready("web").await
}

pub(crate) async fn an_edit_is_followed(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operator().flag("--allow-static", ALLOWED).ready().await?;
    fixture
        .apply_web(json!({
            "tags": ["one", "two"],
            "meta": { "version": "1", "gone": "soon" },
            "weights": { "passing": 10, "warning": 2 },
            "taggedAddresses": { "wan": { "address": "198.51.100.1", "port": 443 } },
        }))
        .await?;
    let before = fixture.wait_for_pods(&[&pods[0]]).await?.remove(0);
    ensure!(before.weights == (10, 2) && tagged(&before).len() == 1, "{before:?}");

    fixture.apply_web(json!({ "tags": ["two", "one"], "meta": { "version": "2" } })).await?;
    let after = fixture
        .wait_for("as edited", |found| {
            matches!(found, [one] if one.tags == ["two", "one"]
                && one.meta.get("version").is_some_and(|version| version == "2")
                && !one.meta.contains_key("gone")
                && one.weights == (1, 1)
                && tagged(one).is_empty())
        })
        .await?;
    ensure!(after[0].id == before.id && after[0].status == "passing", "another instance: {after:?}");
    fixture.wait_ready("web").await
}

pub(crate) async fn tags_of_consuls_users_are_kept(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({ "tags": ["ours"], "enableTagOverride": true })).await?;
    let ours = fixture.wait_for_pods(&[&pods[0]]).await?.remove(0);
    ensure!(ours.enable_tag_override && ours.tags == ["ours"], "{ours:?}");
    fixture.wait_ready("web").await?;

    // A user of Consul edits the tags in the catalog, as `enableTagOverride` has it.
    let mut row = Row::of(fixture, &ours);
    row.tags = vec!["theirs".to_owned()];
    row.put_in_catalog_overriding(fixture).await?;
    fixture.wait_for("their tags", |found| matches!(found, [one] if one.tags == ["theirs"])).await?;
    fixture.wait_for_a_look(&operator).await?;
    // A change of something else is written, and keeps them.
    fixture.apply_web(json!({ "tags": ["ours"], "enableTagOverride": true, "meta": { "version": "2" } })).await?;
    let after = fixture.wait_for("the new version", |found| {
        found.iter().any(|one| one.meta.get("version").is_some_and(|version| version == "2"))
    });
    let after = after.await?.into_iter().next().context("it was just there")?;
    ensure!(after.tags == ["theirs"], "{after:?}");
    Ok(())
}

pub(crate) async fn checks_that_consul_runs(fixture: &Fixture) -> Result<()> {
    let ip = own_address()?;
    let listener = tokio::net::TcpListener::bind((ip, 0)).await?;
    let port = listener.local_addr()?.port();
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    fixture.namespace.apply_slice("web-1", "web", &[("http", port)], &[NewEndpoint::new(ip)]).await?;
    let _esm = fixture.esm();
    fixture.operator().with_checks().ready().await?;
    fixture.apply_web(json!({ "checks": [{ "name": "open", "tcp": {}, "interval": "1s", "timeout": "1s" }] })).await?;
    let passing =
        fixture.wait_for("passing", |found| matches!(found, [one] if one.status == "passing")).await?.remove(0);
    let kinds: Vec<&str> =
        passing.checks.iter().filter(|check| check.service_id == passing.id).map(|check| check.kind.as_str()).collect();
    ensure!(kinds.len() == 2 && kinds.contains(&"tcp"), "not readiness and the one: {passing:?}");
    fixture.wait_for_counts("web", [1, 1, 1, 0]).await?;

    drop(listener);
    fixture.wait_for("critical", |found| matches!(found, [one] if one.status == "critical")).await?;
    fixture.wait_for_counts("web", [1, 1, 0, 1]).await?;
    fixture.wait_ready("web").await?;

    fixture.apply_web(json!({})).await?;
    fixture
        .wait_for("readiness alone again", |found| {
            matches!(found, [one] if one.status == "passing"
            && one.checks.iter().filter(|check| check.service_id == one.id).count() == 1)
        })
        .await?;
    fixture.wait_ready("web").await
}

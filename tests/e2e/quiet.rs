//! No change, no write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use lictor_testbed::{Instance, NewPod, Operator, Proxy};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, merged, pair};
use crate::rows::fingerprint;

/// How long nothing changes.
const WHILE: Duration = Duration::from_secs(30);

pub(crate) async fn no_change_no_write(fixture: &Fixture) -> Result<()> {
    let (proxy, _) = settled(fixture).await?;
    let before = (indices(fixture).await?, version(fixture).await?);
    proxy.clear();
    // The one thing here that is about time itself.
    tokio::time::sleep(WHILE).await;
    let writes = proxy.writes();
    ensure!(writes.is_empty(), "{} writes, although nothing changed: {writes:?}", writes.len());
    ensure!(proxy.records().len() > 20, "it did not even look: {:?}", proxy.records());
    let after = (indices(fixture).await?, version(fixture).await?);
    ensure!(after == before, "something moved:\n{before:#?}\n{after:#?}");
    Ok(())
}

pub(crate) async fn a_status_write_wakes_no_write(fixture: &Fixture) -> Result<()> {
    let (proxy, _) = settled(fixture).await?;
    let before = indices(fixture).await?;
    proxy.clear();
    // In this order: what puts the status right has seen the others before.
    let annotated =
        Patch::Merge(json!({ "metadata": { "annotations": { "note": "1" }, "labels": { "team": "shop" } } }));
    fixture.resources().patch("web", &PatchParams::default(), &annotated).await?;
    let broken = Patch::Merge(
        json!({ "status": { "serviceName": "by-hand", "conditions": [], "instances": { "desired": 77 } } }),
    );
    fixture.resources().patch_status("web", &PatchParams::default(), &broken).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [3, 3, 2, 1]).await?;
    let resource = fixture.resources().get("web").await?;
    ensure!(resource.data["status"]["serviceName"] == json!(fixture.service), "{resource:?}");
    let writes = proxy.writes();
    ensure!(writes.is_empty(), "{} writes for a status: {writes:?}", writes.len());
    ensure!(indices(fixture).await? == before, "something moved");
    Ok(())
}

pub(crate) async fn a_restart_writes_nothing(fixture: &Fixture) -> Result<()> {
    let (proxy, operator) = settled(fixture).await?;
    let marker = format!("node lictor-{}", fixture.cluster);
    let what_moves = async || -> Result<_> {
        let mut indices = indices(fixture).await?;
        indices.remove(&marker);
        Ok((indices, version(fixture).await?))
    };
    let before = what_moves().await?;
    operator.terminate(SOON).await?;
    proxy.clear();
    let operator = operate(fixture, &proxy).await?;
    fixture.wait_for_a_look(&operator).await?;
    // In the catalog the marker's term rises, and that is all.
    let allowed = match fixture.mode {
        Mode::Agent => 0,
        Mode::Catalog => 1,
    };
    let writes = proxy.writes();
    ensure!(writes.len() == allowed, "{} writes for a restart: {writes:?}", writes.len());
    let after = what_moves().await?;
    ensure!(after == before, "something moved:\n{before:#?}\n{after:#?}");
    Ok(())
}

pub(crate) async fn one_change_is_one_write(fixture: &Fixture) -> Result<()> {
    let (proxy, operator) = settled(fixture).await?;
    let writes = async |what: &str, wanted: usize| -> Result<()> {
        // What would come late comes before the end of a later look.
        fixture.wait_for_a_look(&operator).await?;
        let writes = proxy.writes();
        ensure!(writes.len() == wanted, "{} writes, not {wanted}, for {what}: {writes:?}", writes.len());
        proxy.clear();
        Ok(())
    };
    // An agent is told of an instance and then, once, of its check.
    let new = match fixture.mode {
        Mode::Agent => 2,
        Mode::Catalog => 1,
    };
    let before = fingerprint(fixture, &fixture.service).await?;
    proxy.clear();

    fixture.namespace.set_ready("web-2", true).await?;
    fixture.wait_for_counts("web", [3, 3, 3, 0]).await?;
    writes("a pod that became ready", 1).await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    let moved = after.iter().filter(|(key, print)| before.get(*key) != Some(print)).count();
    ensure!(moved == 1, "{moved} instances moved:\n{before:#?}\n{after:#?}");

    let pod = fixture.web_pod("web-3", "a").await?;
    fixture.wait_for_counts("web", [4, 4, 4, 0]).await?;
    writes("a new pod", new).await?;
    fixture.namespace.force_delete(&pod.name).await?;
    // Nobody saw it terminate, so its instance stays for some seconds.
    fixture.wait_for("the other three", |found| found.len() == 3).await?;
    fixture.wait_for_counts("web", [3, 3, 3, 0]).await?;
    writes("a pod that left", 1).await
}

pub(crate) async fn one_change_is_one_decision(fixture: &Fixture) -> Result<()> {
    /// How many resources nothing happens to.
    const OTHERS: usize = 20;
    let node = |name: &str| format!("{}-{name}", fixture.namespace.name());
    let with_zone = |more: Value| merged(json!({ "meta": { "zone": "${node.zone}" } }), more);
    let operator = fixture.operate().await?;
    fixture.web(2).await?;
    fixture.namespace.apply_service("other", &[("app", "other")], &[("http", 80, "8080")]).await?;
    fixture.namespace.create_pod(NewPod::new("other", &node("a")).label("app", "other").port("http", 8080)).await?;
    for number in 0..OTHERS {
        let other = json!({
            "name": fixture.service_named(&format!("other-{number}")),
            "source": { "service": { "name": "other" } },
        });
        fixture.apply(&format!("other-{number}"), &with_zone(other)).await?;
    }
    fixture.apply_web(with_zone(json!({}))).await?;
    for number in 0..OTHERS {
        fixture.wait_ready(&format!("other-{number}")).await?;
    }
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;
    let decisions = async || -> Result<u64> {
        // What would come late comes before the end of a later look.
        fixture.wait_for_a_look(&operator).await?;
        let metrics = operator.metrics().await?;
        let decisions = metrics.lines().find_map(|line| line.strip_prefix("lictor_decisions_total "));
        Ok(decisions.context("no decisions are counted")?.parse()?)
    };
    let mut before = decisions().await?;
    let mut made = async |what: &str, wanted: u64| -> Result<()> {
        let now = decisions().await?;
        ensure!(now == before + wanted, "{} decisions, not {wanted}, for {what}", now - before);
        before = now;
        Ok(())
    };
    made("nothing", 0).await?;

    fixture.namespace.set_ready("web-1", false).await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    made("a pod that is not ready", 1).await?;
    fixture.namespace.set_ready("web-1", true).await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;
    made("a pod that is ready again", 1).await?;

    fixture.apply_web(with_zone(json!({ "tags": ["a"] }))).await?;
    fixture.wait_for("the tag", |found| found.len() == 2 && found.iter().all(|i| i.tags == ["a"])).await?;
    made("an edit", 1).await?;
    // The old instances go after the new ones are there.
    let renamed = fixture.service_named("renamed");
    fixture.apply_web(with_zone(json!({ "name": renamed }))).await?;
    fixture.wait_for("none under the old name", <[_]>::is_empty).await?;
    fixture.consul().wait_for(&renamed, "both", |found| found.len() == 2, SOON).await?;
    fixture.wait_ready("web").await?;
    made("another name", 1).await?;

    // Of all resources with values of Nodes, only `web` has an endpoint on this one.
    fixture.namespace.label_node(&node("b"), "topology.kubernetes.io/zone", Some("zone-2")).await?;
    let moved = |found: &[Instance]| found.iter().filter(|i| pair(i, "zone") == Some("zone-2")).count() == 1;
    fixture.consul().wait_for(&renamed, "the zone", moved, SOON).await?;
    fixture.wait_ready("web").await?;
    made("a Node's zone", 1).await?;
    fixture.namespace.create_node("c", "192.0.2.12".parse()?, "zone-3").await?;
    made("a Node that joins", 0).await?;

    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    made("a deletion: that it is asked for, and that the resource is gone", 2).await
}

/// An operator behind a recording proxy, with three instances that are as they should be.
async fn settled(fixture: &Fixture) -> Result<(Proxy, Arc<Operator>)> {
    let mut pods = fixture.web(2).await?;
    let node = format!("{}-b", fixture.namespace.name());
    pods.push(fixture.namespace.create_pod(NewPod::new("web-2", &node).label("app", "web").not_ready()).await?);
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = operate(fixture, &proxy).await?;
    fixture
        .apply_web(json!({
            "tags": ["b", "a"],
            "meta": { "version": "1" },
            "weights": { "passing": 10, "warning": 2 },
            "taggedAddresses": { "wan": { "address": "198.51.100.1", "port": 443 } },
        }))
        .await?;
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [3, 3, 2, 1]).await?;
    Ok((proxy, operator))
}

async fn operate(fixture: &Fixture, proxy: &Proxy) -> Result<Arc<Operator>> {
    fixture.operator().consul(&proxy.addr()).flag("--allow-static", "198.51.100.0/24").ready().await
}

/// The version of the resource, which every write to it moves.
async fn version(fixture: &Fixture) -> Result<Option<String>> {
    Ok(fixture.resources().get("web").await?.metadata.resource_version)
}

/// All that carries an index of ours: services, checks, and the nodes that we made.
async fn indices(fixture: &Fixture) -> Result<BTreeMap<String, Value>> {
    let mut indices = fingerprint(fixture, &fixture.service).await?;
    for node in fixture.consul().get("/v1/catalog/nodes").await?.as_array().into_iter().flatten() {
        if let Some(name) = node["Node"].as_str().filter(|name| name.contains(&fixture.cluster)) {
            indices.insert(format!("node {name}"), node.clone());
        }
    }
    Ok(indices)
}

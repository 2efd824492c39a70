//! No change, no write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::{Patch, PatchParams};
use lictor_testbed::{NewPod, Operator, Proxy};
use serde_json::{Value, json};

use crate::bed::{Bed, Mode, SOON};
use crate::rows::fingerprint;

/// How long nothing changes.
const WHILE: Duration = Duration::from_secs(30);

pub(crate) async fn no_change_no_write(bed: &Bed) -> Result<()> {
    let (proxy, _) = settled(bed).await?;
    let before = (indices(bed).await?, version(bed).await?);
    proxy.clear();
    // The one thing here that is about time itself.
    tokio::time::sleep(WHILE).await;
    let writes = proxy.writes();
    ensure!(writes.is_empty(), "{} writes, although nothing changed: {writes:?}", writes.len());
    ensure!(proxy.records().len() > 20, "it did not even look: {:?}", proxy.records());
    let after = (indices(bed).await?, version(bed).await?);
    ensure!(after == before, "something moved:\n{before:#?}\n{after:#?}");
    Ok(())
}

pub(crate) async fn a_status_write_wakes_no_write(bed: &Bed) -> Result<()> {
    let (proxy, _) = settled(bed).await?;
    let before = indices(bed).await?;
    proxy.clear();
    // In this order: what puts the status right has seen the others before.
    let annotated =
        Patch::Merge(json!({ "metadata": { "annotations": { "note": "1" }, "labels": { "team": "shop" } } }));
    bed.resources().patch("web", &PatchParams::default(), &annotated).await?;
    let broken = Patch::Merge(
        json!({ "status": { "serviceName": "by-hand", "conditions": [], "instances": { "desired": 77 } } }),
    );
    bed.resources().patch_status("web", &PatchParams::default(), &broken).await?;
    bed.wait_ready("web").await?;
    bed.wait_for_counts("web", [3, 3, 2, 1]).await?;
    let resource = bed.resources().get("web").await?;
    ensure!(resource.data["status"]["serviceName"] == json!(bed.service), "{resource:?}");
    let writes = proxy.writes();
    ensure!(writes.is_empty(), "{} writes for a status: {writes:?}", writes.len());
    ensure!(indices(bed).await? == before, "something moved");
    Ok(())
}

pub(crate) async fn a_restart_writes_nothing(bed: &Bed) -> Result<()> {
    let (proxy, operator) = settled(bed).await?;
    let marker = format!("node lictor-{}", bed.cluster);
    let what_moves = async || -> Result<_> {
        let mut indices = indices(bed).await?;
        indices.remove(&marker);
        Ok((indices, version(bed).await?))
    };
    let before = what_moves().await?;
    operator.terminate(SOON).await?;
    proxy.clear();
    let operator = operate(bed, &proxy).await?;
    bed.wait_for_a_look(&operator).await?;
    // In the catalog the marker's term rises, and that is all.
    let allowed = match bed.mode {
        Mode::Agent => 0,
        Mode::Catalog => 1,
    };
    let writes = proxy.writes();
    ensure!(writes.len() == allowed, "{} writes for a restart: {writes:?}", writes.len());
    let after = what_moves().await?;
    ensure!(after == before, "something moved:\n{before:#?}\n{after:#?}");
    Ok(())
}

pub(crate) async fn one_change_is_one_write(bed: &Bed) -> Result<()> {
    let (proxy, operator) = settled(bed).await?;
    let writes = async |what: &str, wanted: usize| -> Result<()> {
        // What would come late comes before the end of a later look.
        bed.wait_for_a_look(&operator).await?;
        let writes = proxy.writes();
        ensure!(writes.len() == wanted, "{} writes, not {wanted}, for {what}: {writes:?}", writes.len());
        proxy.clear();
        Ok(())
    };
    // An agent is told of an instance and then, once, of its check.
    let new = match bed.mode {
        Mode::Agent => 2,
        Mode::Catalog => 1,
    };
    let before = fingerprint(bed, &bed.service).await?;
    proxy.clear();

    bed.namespace.set_ready("web-2", true).await?;
    bed.wait_for_counts("web", [3, 3, 3, 0]).await?;
    writes("a pod that became ready", 1).await?;
    let after = fingerprint(bed, &bed.service).await?;
    let moved = after.iter().filter(|(key, print)| before.get(*key) != Some(print)).count();
    ensure!(moved == 1, "{moved} instances moved:\n{before:#?}\n{after:#?}");

    let pod = bed.web_pod("web-3", "a").await?;
    bed.wait_for_counts("web", [4, 4, 4, 0]).await?;
    writes("a new pod", new).await?;
    bed.namespace.force_delete(&pod.name).await?;
    // Nobody saw it terminate, so its instance stays for some seconds.
    bed.wait_for("the other three", |found| found.len() == 3).await?;
    bed.wait_for_counts("web", [3, 3, 3, 0]).await?;
    writes("a pod that left", 1).await
}

/// An operator behind a recording proxy, with three instances that are as they should be.
async fn settled(bed: &Bed) -> Result<(Proxy, Arc<Operator>)> {
    let mut pods = bed.web(2).await?;
    let node = format!("{}-b", bed.namespace.name());
    pods.push(bed.namespace.create_pod(NewPod::new("web-2", &node).label("app", "web").not_ready()).await?);
    let proxy = Proxy::start(&bed.consul_address()).await?;
    let operator = operate(bed, &proxy).await?;
    bed.apply_web(json!({
        "tags": ["b", "a"],
        "meta": { "version": "1" },
        "weights": { "passing": 10, "warning": 2 },
        "taggedAddresses": { "wan": { "address": "198.51.100.1", "port": 443 } },
    }))
    .await?;
    bed.wait_ready("web").await?;
    bed.wait_for_counts("web", [3, 3, 2, 1]).await?;
    Ok((proxy, operator))
}

async fn operate(bed: &Bed, proxy: &Proxy) -> Result<Arc<Operator>> {
    bed.operator().consul(&proxy.addr()).flag("--allow-static", "198.51.100.0/24").ready().await
}

/// The version of the resource, which every write to it moves.
async fn version(bed: &Bed) -> Result<Option<String>> {
    Ok(bed.resources().get("web").await?.metadata.resource_version)
}

/// All that carries an index of ours: services, checks, and the nodes that we made.
async fn indices(bed: &Bed) -> Result<BTreeMap<String, Value>> {
    let mut indices = fingerprint(bed, &bed.service).await?;
    for node in bed.consul().get("/v1/catalog/nodes").await?.as_array().into_iter().flatten() {
        if let Some(name) = node["Node"].as_str().filter(|name| name.contains(&bed.cluster)) {
            indices.insert(format!("node {name}"), node.clone());
        }
    }
    Ok(indices)
}

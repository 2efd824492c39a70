//! A kind is watched only while a resource needs it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::bed::{Bed, Mode, SOON, merged, pair};
use crate::listening::Listening;

pub(crate) async fn only_what_is_needed_is_watched(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.namespace.annotate_pod("web-0", "team", Some("shop")).await?;
    let listening = Listening::to(&bed.kubeconfig).await?;
    let operator = bed.operator().kubeconfig(&listening.kubeconfig).ready().await?;
    // What is always needed: resources and, in the catalog, the nodes that its own stand for.
    let always: &[&str] = match bed.mode {
        Mode::Agent => &["consulservices"],
        Mode::Catalog => &["consulservices", "nodes"],
    };
    let watched = async |more: &[&str]| -> Result<()> {
        let wanted: BTreeSet<String> = always.iter().chain(more).map(|kind| (*kind).to_owned()).collect();
        wait::until(format!("just {wanted:?} are watched"), SOON, || async {
            let watched = listening.watched();
            ensure!(watched == wanted, "it is {watched:?}");
            Ok(Some(()))
        })
        .await
    };
    watched(&[]).await?;
    for kind in ["pods", "services", "endpointslices"] {
        ensure!(listening.looks_at(kind) == 0, "{kind} were looked at without need");
    }

    // A Service needs its slices, and no pods.
    bed.apply_web(json!({})).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    watched(&["services", "endpointslices"]).await?;
    bed.wait_for_a_look(&operator).await?;
    ensure!(listening.looks_at("pods") == 0, "pods were looked at without need");

    // Values of pods need pods, those of nodes need nodes; without them neither is watched.
    bed.apply_web(json!({ "meta": { "app": "${pod.labels['app']}", "zone": "${node.zone}" } })).await?;
    bed.wait_for("the values", |found| found.len() == 2 && found.iter().all(|i| pair(i, "app") == Some("web"))).await?;
    bed.wait_for("the values", |found| found.len() == 2 && found.iter().all(|i| pair(i, "zone") == Some("zone-1")))
        .await?;
    watched(&["services", "endpointslices", "pods", "nodes"]).await?;
    bed.apply_web(json!({})).await?;
    watched(&["services", "endpointslices"]).await?;

    // Pods as the source need nothing but pods. An annotation is not even kept before a text holds it.
    let picked = bed.service_named("picked");
    let of_pods = |more: Value| {
        let source = json!({ "name": picked, "source": { "pods": { "matchLabels": { "app": "web" } } } });
        merged(bed.spec(source), more)
    };
    bed.apply("picked", &of_pods(json!({}))).await?;
    bed.consul().wait_for(&picked, "both pods", |found| found.len() == 2, SOON).await?;
    watched(&["services", "endpointslices", "pods"]).await?;
    bed.delete("web").await?;
    bed.wait_gone("web").await?;
    watched(&["pods"]).await?;
    bed.apply("picked", &of_pods(json!({ "meta": { "team": "${pod.annotations['team']}" } }))).await?;
    let has_team = |found: &[lictor_testbed::Instance]| {
        found.len() == 2
            && found.iter().all(|i| {
                let team = if i.address == pods[0].ip.to_string() { "shop" } else { "" };
                i.meta.get("team").is_some_and(|there| there == team)
            })
    };
    bed.consul().wait_for(&picked, "the annotation of one of them", has_team, SOON).await?;

    // Nobody needs anything: a change of a pod is not even heard of.
    bed.delete("picked").await?;
    bed.wait_gone("picked").await?;
    watched(&[]).await?;
    let before = looks(&listening);
    bed.namespace.set_ready("web-0", false).await?;
    bed.wait_for_a_look(&operator).await?;
    ensure!(looks(&listening) == before, "there was another look without need: {before:?} {:?}", looks(&listening));
    watched(&[]).await?;
    // What is needed again is listed again, and what happened meanwhile is known.
    bed.apply("picked", &of_pods(json!({}))).await?;
    let one_critical = |found: &[lictor_testbed::Instance]| {
        found.len() == 2 && found.iter().filter(|i| i.status == "critical").count() == 1
    };
    bed.consul().wait_for(&picked, "one critical, one passing", one_critical, SOON).await.map(drop)
}

fn looks(listening: &Listening) -> [usize; 3] {
    ["pods", "services", "endpointslices"].map(|kind| listening.looks_at(kind))
}

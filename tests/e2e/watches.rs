//! What is watched: only what a resource needs, and without a break.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, apply, merged, pair, resources};
use crate::listening::{Listening, Way};
use crate::rows::Row;

pub(crate) async fn only_what_is_needed_is_watched(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.namespace.annotate_pod("web-0", "team", Some("shop")).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let operator = fixture.operator().kubeconfig(&listening.kubeconfig).ready().await?;
    // What is always needed: resources and, in the catalog, the nodes that its own stand for.
    let always: &[&str] = match fixture.mode {
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
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    watched(&["services", "endpointslices"]).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(listening.looks_at("pods") == 0, "pods were looked at without need");

    // Values of pods need pods, those of nodes need nodes; without them neither is watched.
    fixture.apply_web(json!({ "meta": { "app": "${pod.labels['app']}", "zone": "${node.zone}" } })).await?;
    fixture
        .wait_for("the values", |found| found.len() == 2 && found.iter().all(|i| pair(i, "app") == Some("web")))
        .await?;
    fixture
        .wait_for("the values", |found| found.len() == 2 && found.iter().all(|i| pair(i, "zone") == Some("zone-1")))
        .await?;
    watched(&["services", "endpointslices", "pods", "nodes"]).await?;
    fixture.apply_web(json!({})).await?;
    watched(&["services", "endpointslices"]).await?;

    // Pods as the source need nothing but pods. An annotation is not even kept before a text holds it.
    let picked = fixture.service_named("picked");
    let of_pods = |more: Value| {
        let source = json!({ "name": picked, "source": { "pods": { "matchLabels": { "app": "web" } } } });
        merged(fixture.spec(source), more)
    };
    fixture.apply("picked", &of_pods(json!({}))).await?;
    fixture.consul().wait_for(&picked, "both pods", |found| found.len() == 2, SOON).await?;
    watched(&["services", "endpointslices", "pods"]).await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    watched(&["pods"]).await?;
    fixture.apply("picked", &of_pods(json!({ "meta": { "team": "${pod.annotations['team']}" } }))).await?;
    let has_team = |found: &[lictor_testbed::Instance]| {
        found.len() == 2
            && found.iter().all(|i| {
                let team = if i.address == pods[0].ip.to_string() { "shop" } else { "" };
                i.meta.get("team").is_some_and(|there| there == team)
            })
    };
    fixture.consul().wait_for(&picked, "the annotation of one of them", has_team, SOON).await?;

    // Nobody needs anything: a change of a pod is not even heard of.
    fixture.delete("picked").await?;
    fixture.wait_gone("picked").await?;
    watched(&[]).await?;
    let before = looks(&listening);
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(looks(&listening) == before, "there was another look without need: {before:?} {:?}", looks(&listening));
    watched(&[]).await?;
    // What is needed again is listed again, and what happened meanwhile is known.
    fixture.apply("picked", &of_pods(json!({}))).await?;
    let one_critical = |found: &[lictor_testbed::Instance]| {
        found.len() == 2 && found.iter().filter(|i| i.status == "critical").count() == 1
    };
    fixture.consul().wait_for(&picked, "one critical, one passing", one_critical, SOON).await.map(drop)
}

fn looks(listening: &Listening) -> [usize; 3] {
    ["pods", "services", "endpointslices"].map(|kind| listening.looks_at(kind))
}

pub(crate) async fn a_kind_that_cannot_be_listed_leaves_the_watches_alone(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let operator = fixture.operator().kubeconfig(&listening.kubeconfig).ready().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;

    listening.rule(|look| {
        let is_list = look.is_some_and(|look| look.kind == "endpointslices" && !look.is_watch);
        is_list.then_some(Way::TooMany(1))
    });
    let begun = || listening.looks().iter().filter(|look| look.is_watch).count();
    let (watched, before) = (listening.watched(), begun());
    // One more of two is more than a tenth: Kubernetes is asked for a fresh list first.
    let mut ghost = Row::of(fixture, &found[0]);
    ghost.id = format!("{}:{}:web:{}:ghost:8080", fixture.cluster, fixture.namespace.name(), ghost.service);
    "10.1.0.99".clone_into(&mut ghost.address);
    ghost.put(fixture).await?;
    wait::until("a fresh list that cannot tell, and another one", SOON, || async {
        let told = operator.log().matches("the fresh list is incomplete").count();
        Ok((told >= 2).then_some(()))
    })
    .await?;
    fixture.wait_for("the removal waits", |found| found.len() == 3).await?;
    ensure!(listening.watched() == watched, "other kinds are watched: {:?}", listening.watched());
    ensure!(begun() == before, "a watch began anew: {:?}", listening.looks());

    // What the watches tell meanwhile is followed all the same.
    fixture.namespace.set_ready("web-0", false).await?;
    let unready = pods[0].ip.to_string();
    fixture
        .wait_for("the readiness", |found| found.iter().any(|i| i.address == unready && i.status == "critical"))
        .await?;
    listening.rule(|_| None);
    fixture.wait_for("the removal", |found| found.len() == 2 && found.iter().all(|i| i.id != ghost.id)).await?;
    ensure!(begun() == before, "a watch began anew: {:?}", listening.looks());
    Ok(())
}

/// How long a list of pods takes.
const LIST: Duration = Duration::from_secs(10);

pub(crate) async fn one_author_keeps_no_other_from_being_heard(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(4).await?;
    let loud = fixture.other_namespace("loud").await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let operator = fixture.operator().flag("--namespace", loud.name()).kubeconfig(&listening.kubeconfig);
    let operator = operator.ready().await?;
    let of_pods =
        |more: Value| fixture.spec(merged(json!({ "source": { "pods": { "matchLabels": { "app": "web" } } } }), more));
    fixture.apply("web", &of_pods(json!({}))).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;

    // The other author asks for another annotation with each edit, and edits as fast as Kubernetes takes it.
    let name = fixture.service_named("loud");
    let edit = async |number: u32| {
        let key = format!("${{pod.annotations['key-{number}']}}");
        apply(&resources(&loud), "loud", &of_pods(json!({ "name": name, "meta": { "value": key } }))).await
    };
    listening.rule(|look| {
        let is_list = look.is_some_and(|look| look.kind == "pods" && !look.is_watch);
        is_list.then_some(Way::LateBody(LIST))
    });
    let lists = || listening.looks().iter().filter(|look| look.kind == "pods" && !look.is_watch).count();
    let before = lists();
    let edits = async {
        for number in 0.. {
            edit(number).await?;
        }
        anyhow::Ok(())
    };
    let removals = async {
        wait::until("a list that the edits ask for", SOON, || async { Ok((lists() > before).then_some(())) }).await?;
        let mut times = Vec::new();
        for pod in &pods[1..] {
            let (begun, ip) = (Instant::now(), pod.ip.to_string());
            fixture.namespace.force_delete(&pod.name).await?;
            wait::until_every(Duration::from_millis(10), "the pod's instance leaves", 2 * SOON, || async {
                let is_there = fixture.instances().await?.iter().any(|instance| instance.address == ip);
                Ok((!is_there).then_some(()))
            })
            .await?;
            times.push(begun.elapsed());
        }
        anyhow::Ok(times)
    };
    let times = tokio::select! {
        ended = edits => return ended,
        times = removals => times?,
    };
    println!("another author's deleted pods left after {times:?}, while a list of pods took {LIST:?}");
    // Well before any list that the edits ask for ends; on an idle machine it takes half a second.
    ensure!(times.iter().all(|time| *time < LIST / 4), "one waited for a list: {times:?}");
    // And the one who edits gets what the last edit asks for.
    listening.rule(|_| None);
    loud.create_pod(fixture.new_web_pod("late", "a").annotation("last", "here")).await?;
    let last = json!({ "name": name, "meta": { "value": "${pod.annotations['last']}" } });
    apply(&resources(&loud), "loud", &of_pods(last)).await?;
    let has_value = |found: &[lictor_testbed::Instance]| found.len() == 1 && pair(&found[0], "value") == Some("here");
    fixture.consul().wait_for(&name, "the annotation", has_value, SOON).await?;
    let metrics = operator.metrics().await?;
    ensure!(metrics.contains("lictor_watch_age_seconds{kind=\"Pods\"}"), "{metrics}");
    Ok(())
}

//! Consul is not as Lictor left it.

use anyhow::{Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use lictor_testbed::{ConsulOptions, wait};
use serde_json::json;

use crate::fixture::{Fixture, Mode, SOON, metric};
use crate::rows::{Row, remove, set_readiness};

pub(crate) async fn an_orphan_goes(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let ours = fixture.wait_for_pods(&[&pods[0]]).await?.remove(0);
    let ghost = |id: &str| {
        let owner = format!("{}/ghost", fixture.namespace.name());
        let mut row = Row::of(fixture, &ours)
            .with_meta("lictor-owner", &owner)
            .with_meta("lictor-owner-uid", "00000000-0000-0000-0000-000000000000");
        row.id = format!("{}:{}:ghost:{}:{id}:8080", fixture.cluster, fixture.namespace.name(), fixture.service);
        "10.1.0.99".clone_into(&mut row.address);
        row
    };
    ghost("one").put(fixture).await?;
    // It may be gone before anybody sees it.
    wait::until("the removal of the orphan", SOON, || async {
        let removed = "lictor_consul_writes_total{kind=\"deregister\",outcome=\"written\"}";
        Ok(metric(&operator.metrics().await?, removed).ok().filter(|count| *count > 0.0))
    })
    .await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;

    operator.kill()?;
    ghost("two").put(fixture).await?;
    fixture.wait_for("the orphan stays while nobody looks", |found| found.len() == 2).await?;
    fixture.operate().await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    ensure!(fixture.instances().await?[0].id == ours.id, "our own went");
    Ok(())
}

pub(crate) async fn the_orphan_of_a_crash_goes(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    operator.kill()?;

    // As if the finalizer had not been written yet when it crashed.
    let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    fixture.resources().patch("web", &PatchParams::default(), &without).await?;
    fixture.resources().delete("web", &DeleteParams::default()).await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.len() == 2, "its instances went without anybody there");
    fixture.operate().await?;
    fixture.wait_for_pods(&[]).await.map(drop)
}

pub(crate) async fn what_was_deleted_by_hand_is_put_back(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let (gone, stays) = (&found[0], &found[1]);
    remove(fixture, gone).await?;
    // A new row has been created later than what it replaces was.
    let back = fixture
        .wait_for("both, one of them written anew", |now| {
            let of = |id: &str| now.iter().find(|i| i.id == id);
            now.len() == 2
                && of(&gone.id)
                    .is_some_and(|i| i.service_modify_index > gone.service_modify_index && i.status == "passing")
        })
        .await?;
    let kept = back.iter().find(|i| i.id == stays.id).map(|i| i.service_modify_index);
    ensure!(kept == Some(stays.service_modify_index), "the other one was written too: {back:?}");
    fixture.wait_ready("web").await
}

pub(crate) async fn what_was_edited_by_hand_is_put_right(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "tags": ["a"], "meta": { "version": "1" } })).await?;
    let ours = fixture.wait_for_pods(&[&pods[0]]).await?.remove(0);

    let mut edited = Row::of(fixture, &ours).with_meta("version", "2");
    edited.tags = vec!["b".to_owned()];
    edited.port = 1;
    edited.put(fixture).await?;
    let right = |edited: u64| {
        let ours = &ours;
        move |found: &[lictor_testbed::Instance]| {
            matches!(found, [one] if one.tags == ["a"] && one.port == 8080 && one.meta == ours.meta
                && one.status == "passing" && one.service_modify_index > edited)
        }
    };
    let put_right = fixture.wait_for("as it was, written anew", right(ours.service_modify_index)).await?.remove(0);

    // With our mark taken off as well, it is still ours by its ID.
    let mut edited = Row::of(fixture, &ours);
    edited.meta.clear();
    edited.put(fixture).await?;
    let marked = fixture.wait_for("as it was, marked anew", right(put_right.service_modify_index)).await?.remove(0);

    set_readiness(fixture, &marked, "critical").await?;
    fixture.wait_for("critical for a moment, or passing again", |found| found.len() == 1).await?;
    fixture.wait_for_pods(&[&pods[0]]).await.map(drop)
}

pub(crate) async fn consul_restarted_empty(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    let consul = fixture.own_consul(ConsulOptions::default()).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "tags": ["a"] })).await?;
    let (first, second) = (pods[0].ip.to_string(), pods[1].ip.to_string());
    let as_it_should_be = |found: &[lictor_testbed::Instance]| {
        let of = |address: &str| found.iter().find(|i| i.address == address).map(|i| i.status.as_str());
        found.len() == 2
            && of(&first) == Some("passing")
            && of(&second) == Some("critical")
            && found.iter().all(|i| i.tags == ["a"])
    };
    fixture.wait_for("one passing, one critical", as_it_should_be).await?;
    fixture.wait_ready("web").await?;

    for _ in 0..2 {
        consul.kill()?;
        consul.start_again().await?;
        fixture.wait_for("both again, with their health", as_it_should_be).await?;
    }
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    if fixture.mode == Mode::Catalog {
        let marker = format!("/v1/catalog/node/lictor-{}", fixture.cluster);
        ensure!(!fixture.consul().get(&marker).await?.is_null(), "no marker node");
    }
    Ok(())
}

//! Resources that are deleted, and what becomes of their instances.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use lictor_testbed::{NewEndpoint, wait};
use serde_json::json;

use crate::fixture::{Fixture, SOON, merged, resources};

const OWNERSHIP: [&str; 5] = ["managed-by", "lictor-cluster", "lictor-cluster-uid", "lictor-owner", "lictor-owner-uid"];

pub(crate) async fn a_deletion(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let other = fixture.service_named("other");
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_ready("other").await?;

    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    let left = fixture.instances().await?;
    ensure!(left.is_empty(), "gone from Kubernetes, but Consul has {left:?}");
    ensure!(fixture.consul().instances(&other).await?.len() == 2, "the other resource lost its instances");

    // One that never had an instance does not linger either.
    fixture.apply("nothing", &fixture.spec(json!({ "source": { "service": { "name": "no-such" } } }))).await?;
    fixture.wait_for_condition("nothing", "Ready", "False", "ServiceNotFound").await?;
    fixture.delete("nothing").await?;
    fixture.wait_gone("nothing").await
}

pub(crate) async fn a_deletion_while_down(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let stopped = operator.terminate(SOON).await?;
    ensure!(stopped.success(), "it stopped with {stopped}");

    fixture.delete("web").await?;
    let waiting = fixture.resources().get("web").await?;
    ensure!(waiting.metadata.deletion_timestamp.is_some(), "its finalizer does not hold it");
    ensure!(fixture.instances().await?.len() == 2, "its instances went with the operator");

    fixture.operate().await?;
    fixture.wait_gone("web").await?;
    let left = fixture.instances().await?;
    ensure!(left.is_empty(), "gone from Kubernetes, but Consul has {left:?}");
    Ok(())
}

pub(crate) async fn retain_and_creation_after_it(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "deletionPolicy": "Retain", "meta": { "version": "1" } })).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let owned = fixture.instances().await?;

    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    let left = fixture.instances().await?;
    let ids = |found: &[lictor_testbed::Instance]| found.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    ensure!(ids(&left) == ids(&owned), "they did not all stay: {left:?}");
    for instance in &left {
        ensure!(OWNERSHIP.iter().all(|key| !instance.meta.contains_key(*key)), "it is still marked: {instance:?}");
        ensure!(instance.meta["version"] == "1" && instance.status == "passing", "it is not as it was: {instance:?}");
    }

    // The new one takes them up: the same IDs, with its own mark, and from then on they are its own.
    fixture.apply_web(json!({})).await?;
    fixture.wait_ready("web").await?;
    let uid = fixture.resources().get("web").await?.metadata.uid.context("no uid")?;
    let again = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    ensure!(ids(&again) == ids(&owned), "they were not taken up: {again:?}");
    ensure!(again.iter().all(|i| i.meta.get("lictor-owner-uid") == Some(&uid)), "not its own: {again:?}");
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for_pods(&[]).await.map(drop)
}

pub(crate) async fn a_hundred_resources_with_their_namespace(fixture: &Fixture) -> Result<()> {
    let shop = fixture.other_namespace("shop").await?;
    shop.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    shop.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new("10.1.0.1".parse()?)]).await?;
    fixture.operator().flag("--namespace", shop.name()).ready().await?;
    let items: Vec<_> = (0..100)
        .map(|number| {
            json!({
                "apiVersion": "lictor.dev/v1alpha1",
                "kind": "ConsulService",
                "metadata": { "name": format!("web-{number}") },
                "spec": fixture.spec(json!({})),
            })
        })
        .collect();
    shop.apply_yaml(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await?;
    fixture.wait_for("a hundred", |found| found.len() == 100).await?;
    let mine = merged(fixture.spec(json!({})), json!({ "name": fixture.service_named("mine") }));
    fixture.apply("mine", &mine).await?;

    let namespaces: Api<Namespace> = Api::all(shop.client().clone());
    namespaces.delete(shop.name(), &DeleteParams::default()).await?;
    // Kubernetes deletes one after another, and looks only now and then whether that was all: on a busy machine that
    // takes its time, which is not Lictor's.
    let resources = resources(&shop);
    wait::until("a deletion of each resource", 3 * SOON, || async {
        let left = resources.list(&ListParams::default()).await?.items;
        let untouched = left.iter().filter(|resource| resource.metadata.deletion_timestamp.is_none()).count();
        ensure!(untouched == 0, "{untouched} of {} resources are not deleted yet", left.len());
        Ok(Some(()))
    })
    .await?;
    fixture.wait_for("none", <[_]>::is_empty).await?;
    wait::until("the end of the namespace", 3 * SOON, || async {
        if namespaces.get_opt(shop.name()).await?.is_none() {
            return Ok(Some(()));
        }
        let left = resources.list(&ListParams::default()).await?.items;
        let deleting = left.iter().filter(|resource| resource.metadata.deletion_timestamp.is_some()).count();
        bail!("{} resources are left, {deleting} of them wait for their finalizer", left.len())
    })
    .await?;
    let left = fixture.instances().await?;
    ensure!(left.is_empty(), "the namespace is gone, but Consul has {} of its instances", left.len());
    // And Lictor still works for the other namespace.
    fixture.wait_for_condition("mine", "Ready", "False", "ServiceNotFound").await.map(drop)
}

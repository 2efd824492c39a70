//! Consul's own checks, run against real pods.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Instance, TestNamespace, wait};

use crate::ground::{Cluster, Ground, SOON, with_images};

const SERVICE: &str = "user_service";

/// Instances pass by readiness and by Consul's HTTP, TCP and gRPC checks; each of them shows a failure; and a pod finds
/// those that pass, and no others, by Consul's DNS.
pub(crate) async fn reach_the_pods(ground: &Ground) -> Result<()> {
    let cluster = ground.cluster().await?;
    let shop = cluster.namespace("shop").await?;
    let tested = reached(cluster, &shop).await;
    let tested = if tested.is_err() { tested.context(shop.dump().await) } else { tested };
    let tested = cluster.explain(tested).await;
    shop.delete().await;
    tested
}

async fn reached(cluster: &Cluster, shop: &TestNamespace) -> Result<()> {
    shop.apply_yaml(&with_images(include_str!("manifests/user.yaml"))).await?;
    shop.wait_for_condition("csvc/user", "Ready", "True", SOON).await?;
    shop.wait_for_condition("deployment/user", "Available", "True", SOON).await?;
    let all = wait_for(cluster, "three instances, each passing by four checks", |found| {
        found.len() == 3 && found.iter().all(|instance| passing(instance) == kinds(&["grpc", "http", "tcp", "ttl"]))
    })
    .await?;
    let pods = shop.kubectl(&["get", "pods", "--output", PODS]).await?;
    let pods: Vec<(&str, &str)> = pods.lines().filter_map(|line| line.split_once(' ')).collect();
    ensure!(addresses(&all) == pods.iter().map(|(_, address)| (*address).to_owned()).collect(), "{pods:?}: {all:#?}");
    wait_for_names(shop, &pods, &addresses(&all)).await?;

    // Told to fail the checks that Consul runs, a pod is ready all the same.
    let (pod, address) = pods[0];
    tell(shop, pod, "/health?ok=false").await?;
    let failing = |found: &Instance| found.address == address && passing(found) == kinds(&["tcp", "ttl"]);
    wait_for(cluster, "one critical by HTTP and gRPC", |found| found.len() == 3 && found.iter().any(failing)).await?;
    let others = pods[1..].iter().map(|(_, address)| (*address).to_owned()).collect();
    wait_for_names(shop, &pods[1..], &others).await?;
    tell(shop, pod, "/health?ok=true").await?;
    wait_for(cluster, "all passing again", all_pass).await?;

    // And the other way round.
    tell(shop, pod, "/ready?ok=false").await?;
    let failing = |found: &Instance| found.address == address && passing(found) == kinds(&["grpc", "http", "tcp"]);
    wait_for(cluster, "one critical by readiness", |found| found.len() == 3 && found.iter().any(failing)).await?;
    tell(shop, pod, "/ready?ok=true").await?;
    wait_for(cluster, "all passing again", all_pass).await?;

    shop.kubectl(&["delete", "csvc", "user"]).await?;
    wait_for(cluster, "none", <[_]>::is_empty).await.map(drop)
}

const PODS: &str = r#"jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;

async fn wait_for(cluster: &Cluster, what: &str, wanted: impl Fn(&[Instance]) -> bool) -> Result<Vec<Instance>> {
    cluster.consul().wait_for(SERVICE, what, wanted, SOON).await
}

/// Waits until a pod finds these addresses by Consul's DNS.
async fn wait_for_names(shop: &TestNamespace, pods: &[(&str, &str)], wanted: &BTreeSet<String>) -> Result<()> {
    let (pod, _) = pods.first().context("no pod")?;
    let name = format!("{SERVICE}.service.consul");
    wait::until(format!("{wanted:?} for {name}"), SOON, || async {
        let found = shop.kubectl(&["exec", pod, "--", "/app", "lookup", &name]).await?;
        let found: BTreeSet<String> = found.lines().map(str::to_owned).collect();
        ensure!(found == *wanted, "it is {found:?}");
        Ok(Some(()))
    })
    .await
}

async fn tell(shop: &TestNamespace, pod: &str, what: &str) -> Result<()> {
    let url = format!("http://127.0.0.1:8080{what}");
    shop.kubectl(&["exec", pod, "--", "/app", "put", &url]).await.map(drop)
}

fn all_pass(found: &[Instance]) -> bool {
    found.len() == 3 && found.iter().all(|instance| instance.status == "passing")
}

/// The types of an instance's own checks that pass.
fn passing(instance: &Instance) -> BTreeSet<&str> {
    let own = instance.checks.iter().filter(|check| !check.service_id.is_empty());
    own.filter(|check| check.status == "passing").map(|check| check.kind.as_str()).collect()
}

fn kinds<'a>(kinds: &[&'a str]) -> BTreeSet<&'a str> {
    kinds.iter().copied().collect()
}

fn addresses(found: &[Instance]) -> BTreeSet<String> {
    found.iter().map(|instance| instance.address.clone()).collect()
}

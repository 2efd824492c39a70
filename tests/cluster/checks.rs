//! Consul's own checks, run against real pods.

use anyhow::{Context, Result};
use lictor_testbed::Mode;

use crate::environment::Environment;
use crate::release::Release;
use crate::shop::{App, Pod, Shop};

/// Instances pass by readiness and by Consul's HTTP, TCP and gRPC checks; each of them shows a failure; and a pod finds
/// those that pass, and no others, by Consul's DNS.
pub(crate) async fn reach_the_pods(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let _esm = (mode == Mode::Catalog).then(|| cluster.esm()).transpose()?;
    let esm = if mode == Mode::Catalog { "consul.esm=true" } else { "consul.esm=false" };
    let release = Release::installed(cluster, &format!("checks-{}", mode.as_str()), mode, &[esm]).await?;
    let shop = Shop::open(&release, "shop", &App { checks: true, ..App::default() }).await?;
    let tested = reached(&shop).await;
    let tested = shop.close(tested).await;
    release.close(tested).await
}

async fn reached(shop: &Shop<'_>) -> Result<()> {
    shop.namespace.kubectl(&["wait", "csvc/user", "--for=condition=Ready", "--timeout=60s"]).await?;
    shop.wait_for_all(3).await?;
    let pods = shop.pods().await?;
    let (first, rest) = pods.split_first().context("no pod")?;
    shop.wait_for_names(&first.name, &addresses(&pods)).await?;

    // Told to fail the checks that Consul runs, a pod is ready all the same.
    if shop.has_checks() {
        shop.tell(&first.name, "/health?ok=false").await?;
        one_fails(shop, first, &["http", "grpc"]).await?;
        shop.wait_for_names(&first.name, &addresses(rest)).await?;
        shop.tell(&first.name, "/health?ok=true").await?;
        shop.wait_for_all(3).await?;
    }

    // And the other way round.
    shop.tell(&first.name, "/ready?ok=false").await?;
    one_fails(shop, first, &[shop.readiness()]).await?;
    shop.tell(&first.name, "/ready?ok=true").await?;
    shop.wait_for_all(3).await?;

    shop.namespace.kubectl(&["delete", "csvc", "user"]).await?;
    shop.wait_for("none", <[_]>::is_empty).await.map(drop)
}

async fn one_fails(shop: &Shop<'_>, pod: &Pod, by: &[&str]) -> Result<()> {
    shop.wait_for(&format!("{} critical by {by:?}, two passing", pod.name), |found| {
        let (this, others): (Vec<_>, Vec<_>) = found.iter().partition(|instance| instance.address == pod.address);
        matches!(this[..], [instance] if shop.fails_by(instance, by))
            && others.len() == 2
            && others.iter().all(|instance| shop.passes(instance))
    })
    .await
    .map(drop)
}

fn addresses(pods: &[Pod]) -> std::collections::BTreeSet<String> {
    pods.iter().map(|pod| pod.address.clone()).collect()
}

//! From the first installation to the last: what is registered stays as it is, until it is told to go.

use anyhow::{Context, Result, ensure};
use lictor_testbed::Instance;
use lictor_testbed::Mode;
use serde_json::Value;

use crate::environment::{CRD, Cluster, Environment, SOON, until};
use crate::older_chart::{LATER, is_current, older_chart};
use crate::release::Release;
use crate::shop::{App, Shop, Watch};

/// An upgrade of the chart brings the CRD along. Until then Lictor works, says that the CRD is older than it needs, and
/// what to do.
pub(crate) async fn the_crd_goes_along(environment: &Environment) -> Result<()> {
    let cluster = environment.cluster().await?;
    let older = older_chart(cluster.chart(), cluster.work_dir().join("older-chart"))?;
    let release = Release::prepare(cluster, "crd", Mode::Catalog).await?;
    // Others have brought the CRD.
    let flags = ["--wait", "--timeout=120s", "--take-ownership", "--force-conflicts"];
    release.helm("install", &older, &flags, &["crds.install=true"]).await?;
    ensure!(!has_later(cluster).await?, "the older chart has the newer CRD");
    let shop = Shop::open(&release, "crd", &App::default()).await?;
    let tested = upgraded(cluster, &release, &shop).await;
    let tested = shop.close(tested).await;
    release.close(tested).await
}

async fn upgraded(cluster: &Cluster, release: &Release<'_>, shop: &Shop<'_>) -> Result<()> {
    let words = format!("is older than this version of Lictor and lacks spec.{LATER}: upgrade it with `lictor crd");
    shop.wait_for_all(3).await?;
    for pod in release.pods().await? {
        let remarked = format!("{words} in /readyz of {pod}");
        until(remarked, || async {
            let said = release.ask(&pod, "/readyz").await?;
            ensure!(said.contains(&words), "it says {said}");
            Ok(Some(()))
        })
        .await?;
    }
    let (tested, said) = release.test().await;
    ensure!(tested.is_err() && said.contains(&words), "helm test said {said}");

    let rows = shop.indices().await?;
    release.upgrade(cluster.chart(), &["crds.install=true"]).await?;
    ensure!(has_later(cluster).await?, "the CRD is still the older one");
    let (tested, said) = release.test().await;
    tested.context(said)?;
    ensure!(shop.indices().await? == rows, "the registrations were touched");

    release.uninstall().await?;
    ensure!(has_later(cluster).await?, "the CRD went, or became the older one");
    ensure!(shop.indices().await? == rows, "the registrations were touched");
    Ok(())
}

async fn has_later(cluster: &Cluster) -> Result<bool> {
    let crd: Value = serde_json::from_str(&cluster.kubectl().run(&["get", CRD, "--output=json"]).await?)?;
    Ok(is_current(&crd))
}

/// Installed, tested, upgraded, uninstalled and installed again, under a reader that looks all the time: no write touches
/// what is registered. `uninstall.deregister` takes all of it along.
pub(crate) async fn nothing_moves_until_it_is_told(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let release = Release::installed(cluster, &format!("life-{}", mode.as_str()), mode, &[]).await?;
    let (tested, said) = release.test().await;
    release.explain(tested).await.with_context(|| said.clone())?;
    ensure!(said.contains("ok    Consul can be written"), "{said}");

    let shop = Shop::open(&release, "life", &App::default()).await?;
    take_an_example(&release, &shop).await?;
    let tested = lived(&release, &shop).await;
    let tested = shop.close(tested).await;
    release.close(tested).await
}

/// The repository's example, as the README has it applied, over the app.
async fn take_an_example(release: &Release<'_>, shop: &Shop<'_>) -> Result<()> {
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(include_str!("../../examples/web.yaml"))?;
    for object in &mut objects {
        match object["kind"].as_str().context("no kind")? {
            // These tests have a class for each release, and a Consul for all of them.
            "ConsulService" => {
                object["spec"]["class"] = release.name.clone().into();
                object["spec"]["name"] = format!("example-{}", shop.service).into();
                if release.mode == Mode::Catalog {
                    object["spec"].as_object_mut().context("no spec")?.remove("checks");
                }
            }
            "Service" => object["spec"]["selector"] = serde_json::json!({ "app": "user" }),
            other => anyhow::bail!("an example of {other}"),
        }
    }
    shop.apply(&objects).await?;
    shop.namespace.kubectl(&["wait", "csvc/web", "--for=condition=Ready", "--timeout=60s"]).await?;
    let passing = |found: &[Instance]| found.len() == 3 && found.iter().all(|one| one.status == "passing");
    let consul = shop.consul();
    consul.wait_for(&format!("example-{}", shop.service), "three, passing", passing, SOON).await.map(drop)
}

async fn lived(release: &Release<'_>, shop: &Shop<'_>) -> Result<()> {
    let chart = release.cluster.chart();
    shop.namespace.kubectl(&["wait", "csvc/user", "--for=condition=Ready", "--timeout=60s"]).await?;
    shop.wait_for_all(3).await?;
    let rows = shop.indices().await?;
    let untouched = async |when: &str| {
        let now = shop.indices().await?;
        ensure!(now == rows, "{when} something was written: {rows:?} became {now:?}");
        anyhow::Ok(())
    };

    Watch::new()
        .during(shop, 3, async {
            release.upgrade(chart, &["podAnnotations.round=second"]).await?;
            untouched("by the upgrade").await?;

            let said =
                release.cluster.helm().run(["get", "notes", &release.name, "--namespace", &release.name]).await?;
            ensure!(said.contains("Uninstalling deregisters nothing"), "{said}");
            release.uninstall().await?;
            untouched("by uninstalling").await?;
            let finalizers = "--output=jsonpath={.metadata.finalizers}";
            let finalizers = shop.namespace.kubectl(&["get", "csvc", "user", finalizers]).await?;
            ensure!(finalizers.is_empty(), "it is stuck: {finalizers}");

            release.install(&[]).await?;
            // To have something to wait for that only the new one does.
            let other = format!("other-{}", shop.service);
            shop.apply(&[shop.resource("other", &other, &release.name, false)]).await?;
            shop.consul().wait_for(&other, "three instances", |found| found.len() == 3, 2 * SOON).await?;
            untouched("by installing it again").await
        })
        .await?;

    release.upgrade(chart, &["uninstall.deregister=true"]).await?;
    release.uninstall().await?;
    let left = shop.consul().get("/v1/catalog/services").await?;
    let left: Vec<&String> =
        left.as_object().context("no map")?.keys().filter(|name| name.contains(&shop.service)).collect();
    ensure!(left.is_empty(), "these are left: {left:?}");
    let nodes = shop.consul().get("/v1/catalog/nodes").await?;
    let nodes: Vec<&Value> = nodes.as_array().context("no list")?.iter().map(|node| &node["Node"]).collect();
    let ours = nodes.iter().filter_map(|node| node.as_str()).find(|node| node.contains(&release.name));
    ensure!(ours.is_none(), "a node is left: {ours:?}");
    Ok(())
}

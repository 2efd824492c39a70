//! What happens to pods, as Consul tells it.

use lictor_testbed::Mode;
use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, ensure};
use lictor_testbed::Instance;
use serde_json::json;

use crate::environment::{Cluster, Environment, LONELY_NODE, SOON, until};
use crate::release::Release;
use crate::shop::{App, Shop, Watch, workload};

/// The release of all tests of this file and mode; the first one installs it.
async fn release(cluster: &Cluster, mode: Mode) -> Result<Release<'_>> {
    Release::shared(cluster, &format!("pods-{}", mode.as_str()), mode).await
}

/// From 1 to 20 and to none.
pub(crate) async fn scaled_up_and_down(environment: &Environment, mode: Mode) -> Result<()> {
    let release = release(environment.cluster().await?, mode).await?;
    let shop = Shop::open(&release, "scale", &App { replicas: 1, ..App::default() }).await?;
    let tested = async {
        shop.wait_for_all(1).await?;
        for (replicas, number) in [("20", 20), ("0", 0)] {
            shop.namespace.kubectl(&["scale", "deployment/user", "--replicas", replicas]).await?;
            shop.wait_for_all(number).await?;
        }
        // None is a truth, and no error.
        shop.namespace.kubectl(&["wait", "csvc/user", "--for=condition=Ready", "--timeout=60s"]).await.map(drop)
    };
    shop.close(tested.await).await
}

/// A pod whose process dies, and is started again, stays the instance that it is; one that is killed for good is replaced. The
/// others are not touched.
pub(crate) async fn killed(environment: &Environment, mode: Mode) -> Result<()> {
    let release = release(environment.cluster().await?, mode).await?;
    let shop = Shop::open(&release, "kill", &App::default()).await?;
    let tested = async {
        let before = ids(&shop.wait_for_all(3).await?);
        let pods = shop.pods().await?;
        let (first, second) = (pods.first().context("no pod")?, pods.get(1).context("no pod")?);
        Watch::new()
            .during(&shop, 2, async {
                // Its connection goes with it.
                let _ = shop.tell(&first.name, "/crash").await;
                let restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}";
                until("a restart", || async {
                    Ok((shop.namespace.kubectl(&["get", "pod", &first.name, restarts]).await? == "1").then_some(()))
                })
                .await?;
                let after = ids(&shop.wait_for_all(3).await?);
                ensure!(after == before, "{before:?} became {after:?}");

                shop.namespace.kubectl(&["delete", "pod", &second.name, "--force", "--grace-period=0"]).await?;
                let gone = |found: &[Instance]| found.iter().all(|one| !one.id.contains(&second.uid));
                shop.wait_for("the killed one gone", gone).await?;
                shop.wait_for_all(3).await.map(drop)
            })
            .await
    };
    shop.close(tested.await).await
}

fn ids(found: &[Instance]) -> BTreeSet<String> {
    found.iter().map(|instance| instance.id.clone()).collect()
}

/// A pod that crashes again and again stays the instance that it is, critical while it waits for its next start; what takes its
/// place passes.
pub(crate) async fn crash_looping(environment: &Environment, mode: Mode) -> Result<()> {
    let release = release(environment.cluster().await?, mode).await?;
    let app = App { replicas: 1, args: &["-crash=3s"], ..App::default() };
    let shop = Shop::open(&release, "crash", &app).await?;
    let tested = async {
        let first = shop.wait_for("one", |found| found.len() == 1).await?.remove(0);
        let restarts = "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
        until("two restarts", || async {
            let restarts = shop.namespace.kubectl(&["get", "pods", restarts]).await?;
            let found = shop.instances().await?;
            if !matches!(&found[..], [one] if one.id == first.id) {
                return Ok(Some(Err(anyhow!("it did not stay: {found:#?}"))));
            }
            Ok((restarts.parse::<u32>()? >= 2).then_some(Ok(())))
        })
        .await??;
        shop.wait_for("one, critical", |found| matches!(found, [one] if shop.fails_by(one, &[shop.readiness()])))
            .await?;
        // It is mended.
        shop.apply(&[workload(&App { replicas: 1, ..App::default() })]).await?;
        shop.wait_for_all(1).await.map(drop)
    };
    shop.close(tested.await).await
}

/// A pod of a `StatefulSet` comes back under its name as another instance, which inherits nothing.
pub(crate) async fn of_a_stateful_set(environment: &Environment, mode: Mode) -> Result<()> {
    let release = release(environment.cluster().await?, mode).await?;
    let shop = Shop::open(&release, "set", &App { replicas: 2, stateful: true, ..App::default() }).await?;
    let tested = async {
        let before = shop.wait_for_all(2).await?;
        let pods = shop.pods().await?;
        let first = pods.iter().find(|pod| pod.name == "user-0").context("no user-0")?;
        Watch::new()
            .during(&shop, 1, async {
                shop.namespace.kubectl(&["delete", "pod", "user-0"]).await?;
                let anew = |found: &[Instance]| {
                    let named = |one: &Instance| one.meta.get("k8s-pod").is_some_and(|pod| pod == "user-0");
                    found.iter().all(|one| !one.id.contains(&first.uid)) && found.iter().any(named)
                };
                shop.wait_for("another user-0", anew).await.map(drop)
            })
            .await?;
        let after = shop.wait_for_all(2).await?;
        let kept = after.iter().filter(|one| before.iter().any(|old| old.id == one.id)).count();
        ensure!(kept == 1, "{before:#?} became {after:#?}");
        Ok(())
    };
    shop.close(tested.await).await
}

/// A namespace goes with the resources in it, and is not stuck.
pub(crate) async fn with_their_namespace(environment: &Environment, mode: Mode) -> Result<()> {
    let release = release(environment.cluster().await?, mode).await?;
    let shop = Shop::open(&release, "gone", &App::default()).await?;
    let tested = async {
        shop.wait_for_all(3).await?;
        let delete = ["delete", "namespace", shop.namespace.name(), "--timeout=90s"];
        release.cluster.kubectl().run(&delete).await?;
        let left = shop.instances().await?;
        ensure!(left.is_empty(), "the namespace is gone, and Consul has {left:#?}");
        Ok(())
    };
    shop.close(tested.await).await
}

/// A node whose kubelet is silent: its pods become critical, then leave, and are replaced; those on other nodes are not
/// touched.
pub(crate) async fn of_a_node_that_falls_silent(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let release = release(cluster, mode).await?;
    let (node, _guard) = cluster.lonely_node().await?;
    let (lonely, others) = (App { lonely: true, replicas: 2, ..App::default() }, App { replicas: 2, ..App::default() });
    let shop = Shop::open(&release, "silent", &lonely).await?;
    let tested = async {
        let mut others = workload(&others);
        others["metadata"]["name"] = "others".into();
        others["spec"]["selector"]["matchLabels"]["part"] = "others".into();
        others["spec"]["template"]["metadata"]["labels"]["part"] = "others".into();
        shop.apply(&[others]).await?;
        shop.wait_for_all(4).await?;
        let pods = shop.pods().await?;
        let silent: Vec<_> = pods.iter().filter(|pod| pod.node == LONELY_NODE).map(|pod| pod.uid.clone()).collect();
        ensure!(silent.len() == 2, "{pods:?}");
        Watch::new()
            .during(&shop, 2, async {
                node.stop_kubelet()?;
                let of_it = |one: &&Instance| silent.iter().any(|uid| one.id.contains(uid.as_str()));
                let critical = |found: &[Instance]| {
                    let those: Vec<_> = found.iter().filter(of_it).collect();
                    those.len() == 2 && those.iter().all(|one| one.status == "critical")
                };
                shop.wait_for("the silent node's critical", critical).await?;
                shop.wait_for("the silent node's gone", |found| found.iter().all(|one| !of_it(&one))).await?;
                Ok(())
            })
            .await
    };
    let tested = tested.await;
    // Whatever came of it: others need the node.
    node.start_kubelet()?;
    cluster.own()?.wait_ready(node, true).await?;
    let tested = match tested {
        Ok(()) => shop.wait_for_all(4).await.map(drop),
        failed => failed,
    };
    shop.close(tested).await
}

/// Pods that a selector matches, with no Service; and an Event that is told twice, as one with a count. In `agent` mode by a
/// Lictor that watches one namespace only, and so does with Roles.
pub(crate) async fn picked_by_labels(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let release = Release::prepare(cluster, &format!("picks-{}", mode.as_str()), mode).await?;
    let shop = Shop::open(&release, "picks", &App::default()).await?;
    let watched = format!("watchNamespaces={{{}}}", shop.namespace.name());
    let values: &[&str] = if mode == Mode::Agent { &[&watched] } else { &[] };
    release.install(values).await?;
    let tested = async {
        let picked = format!("picked-{}", shop.service);
        let mut resource = shop.resource("picked", &picked, &release.name, false);
        resource["spec"]["source"] = json!({ "pods": { "matchLabels": { "app": "user" } } });
        resource["spec"]["tags"] = json!(["on-${node.name}-of-${pod.labels['app']}"]);
        shop.apply(&[resource.clone()]).await?;
        let consul = shop.consul();
        let found = consul.wait_for(
            &picked,
            "three, passing",
            |found| found.len() == 3 && found.iter().all(|one| one.status == "passing"),
            SOON,
        );
        let found = found.await?;
        let tags = |one: &Instance| one.meta.get("k8s-node").map(|node| vec![format!("on-{node}-of-user")]);
        ensure!(found.iter().all(|one| Some(&one.tags) == tags(one).as_ref()), "{found:#?}");

        for port in ["nowhere", "http", "nowhere"] {
            resource["spec"]["port"] = port.into();
            shop.apply(&[resource.clone()]).await?;
            let resolved = format!("--for=condition=Resolved={}", if port == "http" { "True" } else { "False" });
            shop.namespace.kubectl(&["wait", "csvc/picked", &resolved, "--timeout=60s"]).await?;
        }
        until("an Event with a count", || async {
            let events = ["get", "events.events.k8s.io", "--output=jsonpath={.items[*].series.count}"];
            let counts = shop.namespace.kubectl(&events).await?;
            Ok((!counts.trim().is_empty()).then_some(()))
        })
        .await
    };
    let tested = shop.close(Box::pin(tested).await).await;
    release.close(tested).await
}

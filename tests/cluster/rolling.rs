//! A rolling restart of an app under load, by clients that find it through Consul: by its HTTP API, and by DNS.

use lictor_testbed::Mode;
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lictor_testbed::node::APP_IMAGE;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::environment::{Environment, until};
use crate::release::Release;
use crate::shop::{App, Shop};

/// What `app load` prints.
#[derive(Debug, Deserialize)]
struct Load {
    requests: u64,
    /// Consul named nobody.
    not_found: u64,
    /// Whom Consul named takes no connection.
    not_reached: u64,
    /// It took one, and did not answer.
    no_answer: u64,
    #[serde(default)]
    errors: std::collections::BTreeMap<String, u64>,
}

/// How many pods the app has, and how often all of them are replaced.
const REPLICAS: usize = 4;
const RESTARTS: usize = 3;
/// The most seconds of load; it ends when the restarts are done.
const SECONDS: u32 = 240;
/// Requests a second, by each of the two clients.
const RATE: u32 = 25;
/// How many seconds an app serves on. A busy machine takes some of them until nobody finds it any more; a user's does with
/// fewer, see `docs/rolling-restarts.md`.
const PRE_STOP: u32 = 15;
/// Where a client is asked, and told to end.
const CONTROL: u16 = 8081;
/// The jobs that ask.
const CLIENTS: [&str; 2] = ["by-dns", "by-http"];

/// An app that ends as soon as it is told to loses the requests of those who have just found it: so many. One that goes on
/// serving for some seconds (`preStop`) is always found, and takes every connection.
pub(crate) async fn loses_nothing_that_waits(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let release = Release::shared(cluster, &format!("pods-{}", mode.as_str()), mode).await?;
    for pre_stop in [0, PRE_STOP] {
        let shop = Shop::open(&release, "roll", &App { replicas: 4, pre_stop, ..App::default() }).await?;
        let tested = rolled(&shop, cluster.consul_names().await?).await;
        let loads = shop.close(tested).await?;
        for (finder, load) in loads {
            println!(
                "{RESTARTS} rolling restarts, {} mode, preStop {pre_stop} s, by {finder}: {} requests, {} found nobody, {} were not \
                 taken, {} got no answer {:?}",
                mode.as_str(),
                load.requests,
                load.not_found,
                load.not_reached,
                load.no_answer,
                load.errors
            );
            // What got no answer in time, on a machine that is busy, is no word about Consul.
            ensure!(pre_stop == 0 || load.not_found + load.not_reached == 0, "{finder}: {load:?}");
        }
    }
    Ok(())
}

async fn rolled(shop: &Shop<'_>, names: Option<String>) -> Result<Vec<(&'static str, Load)>> {
    shop.wait_for_all(REPLICAS).await?;
    let dns = format!("-dns={}.service.consul", shop.service);
    let server = format!("-server={}", names.unwrap_or_default());
    let service = format!("-service={}", shop.service);
    let clients = [
        ("DNS", client(CLIENTS[0], &[&dns, &server])),
        ("HTTP", client(CLIENTS[1], &["-consul=http://consul.consul.svc:8500", &service])),
    ];
    shop.apply(&clients.clone().map(|(_, job)| job)).await?;
    for name in CLIENTS {
        let pod = format!("--selector=job-name={name}");
        shop.namespace.kubectl(&["wait", "pods", &pod, "--for=condition=Ready", "--timeout=60s"]).await?;
    }
    wait_until_all_have_answered(shop).await?;
    for _ in 0..RESTARTS {
        shop.namespace.kubectl(&["rollout", "restart", "deployment/user"]).await?;
        shop.namespace.kubectl(&["rollout", "status", "deployment/user", "--timeout=90s"]).await?;
        shop.wait_for_all(REPLICAS).await?;
        wait_until_all_have_answered(shop).await?;
    }
    let mut loads = Vec::new();
    for (finder, job) in clients {
        let job = format!("job/{}", job["metadata"]["name"].as_str().context("no name")?);
        shop.namespace.kubectl(&["exec", &job, "--", "/app", "put", &control("end")]).await?;
        shop.namespace.kubectl(&["wait", &job, "--for=condition=Complete", "--timeout=60s"]).await?;
        loads.push((finder, serde_json::from_str(&shop.namespace.kubectl(&["logs", &job]).await?)?));
    }
    Ok(loads)
}

/// Waits until each pod has answered each client: all of them are under load.
async fn wait_until_all_have_answered(shop: &Shop<'_>) -> Result<()> {
    let pods = shop.pods().await?;
    let pods: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    for name in CLIENTS {
        let job = format!("job/{name}");
        until(format!("{name} has had an answer of {pods:?}"), || async {
            let answered = shop.namespace.kubectl(&["exec", &job, "--", "/app", "get", &control("pods")]).await?;
            let answered: BTreeSet<&str> = answered.lines().collect();
            ensure!(pods.is_subset(&answered), "of {answered:?}");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

/// What a client is asked or told within its pod.
fn control(what: &str) -> String {
    format!("http://127.0.0.1:{CONTROL}/{what}")
}

/// A pod that asks until it is told to end.
fn client(name: &str, finder: &[&str]) -> Value {
    let (duration, rate) = (format!("-duration={SECONDS}s"), format!("-rate={RATE}"));
    let control = format!("-control=127.0.0.1:{CONTROL}");
    let args: Vec<&str> = ["load", &duration, &rate, &control].into_iter().chain(finder.iter().copied()).collect();
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": name },
        "spec": { "backoffLimit": 0, "template": { "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": false,
            "containers": [{ "name": "load", "image": APP_IMAGE, "imagePullPolicy": "IfNotPresent", "args": args }],
        }}},
    })
}

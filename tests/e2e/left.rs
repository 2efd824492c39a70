//! When and why an instance left Consul, as the log tells it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use lictor_testbed::{Instance, NewEndpoint, Operator, wait};
use serde_json::{Value, json};

use crate::fixture::{Fixture, SOON};
use crate::rows::Row;

/// An operator whose log is JSON.
async fn operate(fixture: &Fixture, class: Option<&str>) -> Result<Arc<Operator>> {
    let operator = fixture.operator().flag("--log-format", "json");
    match class {
        Some(class) => operator.flag("--class", class).ready().await,
        None => operator.ready().await,
    }
}

/// Waits until the log says that an instance left, and checks everything that the line is to say.
async fn tells(fixture: &Fixture, operator: &Operator, resource: &str, left: &Instance, cause: &str) -> Result<()> {
    let line = wait::until(format!("a line about {}", left.id), SOON, || async {
        let log = operator.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut about = lines.filter(|line| line["fields"]["instance"] == json!(left.id));
        Ok(about.find(|line| {
            let message = line["fields"]["message"].as_str().unwrap_or_default();
            message.starts_with("deregistered") || message.starts_with("disowned")
        }))
    })
    .await?;
    let fields = &line["fields"];
    let whole = format!("{}/{resource}", fixture.namespace.name());
    ensure!(fields["resource"] == json!(whole) && fields["node"] == json!(left.node), "{line}");
    // A resync that comes between the edit and the removal has Kubernetes asked first, and the line says so.
    let confirmed = format!("{cause}, confirmed by a fresh list");
    let is_told = [cause, &confirmed].iter().any(|told| fields["cause"] == json!(told));
    ensure!(is_told, "the cause is to be {cause:?}: {line}");
    ensure!(line["level"] == "INFO" && line["timestamp"].is_string(), "{line}");
    let span = &line["span"];
    let named = (&span["namespace"], &span["resource_name"], &span["name"]);
    let expected = (&json!(fixture.namespace.name()), &json!(resource), &json!("reconcile"));
    ensure!(named == expected, "its span is to name the resource: {line}");
    Ok(())
}

pub(crate) async fn the_log_tells_when_and_why(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(4).await?;
    fixture.namespace.apply_service("manual", &[], &[("http", 80, "8080")]).await?;
    let two = ["10.1.0.1", "10.1.0.2"].map(|address| address.parse().map(NewEndpoint::new));
    let [one, other] = two;
    let (one, other) = (one?, other?);
    fixture.namespace.apply_slice("manual-1", "manual", &[("http", 8080)], &[one]).await?;
    fixture.namespace.apply_slice("manual-2", "manual", &[("http", 8080)], &[other]).await?;
    let operator = operate(fixture, None).await?;
    fixture.apply_web(json!({ "readiness": "Deregister" })).await?;
    let kept = fixture.service_named("kept");
    fixture.apply("kept", &fixture.spec(json!({ "name": kept, "deletionPolicy": "Retain" }))).await?;
    let manual = fixture.service_named("manual");
    fixture
        .apply("manual", &fixture.spec(json!({ "name": manual, "source": { "service": { "name": "manual" } } })))
        .await?;
    let found = fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    let of = |pod: usize| {
        let address = pods[pod].ip.to_string();
        found.iter().find(|i| i.address == address).context("an instance of this pod")
    };
    let of_kept = fixture.consul().wait_for(&kept, "all four", |found| found.len() == 4, SOON).await?;
    let of_manual = fixture.consul().wait_for(&manual, "both", |found| found.len() == 2, SOON).await?;
    for name in ["web", "kept", "manual"] {
        fixture.wait_ready(name).await?;
    }

    fixture.namespace.set_ready("web-0", false).await?;
    tells(fixture, &operator, "web", of(0)?, "its endpoint is not ready").await?;
    fixture.namespace.delete_pod("web-1", 30).await?;
    tells(fixture, &operator, "web", of(1)?, "its endpoint is terminating").await?;
    fixture.namespace.delete_slice("manual-2").await?;
    let gone = of_manual.iter().find(|i| i.address == "10.1.0.2").context("the second one")?;
    tells(fixture, &operator, "manual", gone, "its endpoint is gone").await?;
    // The finalizer is on it before, so that it is not taken for an orphan.
    fixture.delete("kept").await?;
    fixture.wait_gone("kept").await?;
    let stays = of_kept.iter().find(|i| i.address == pods[2].ip.to_string()).context("one that lives")?;
    tells(fixture, &operator, "kept", stays, "the resource was deleted, and its instances are to stay").await?;

    let renamed = fixture.service_named("renamed");
    fixture.apply_web(json!({ "name": renamed, "readiness": "Deregister" })).await?;
    tells(fixture, &operator, "web", of(2)?, "the resource or its source was edited").await?;
    let now = fixture.consul().wait_for(&renamed, "the two that are left", |found| found.len() == 2, SOON).await?;
    fixture.wait_ready("web").await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    tells(fixture, &operator, "web", &now[0], "the resource was deleted").await?;

    let last = of_manual.iter().find(|i| i.address == "10.1.0.1").context("the first one")?;
    let ghost = |id: &str| {
        let mut row = Row::of(fixture, last).with_meta("lictor-owner", &format!("{}/ghost", fixture.namespace.name()));
        row.id = format!("{}:{}:ghost:{manual}:{id}:8080", fixture.cluster, fixture.namespace.name());
        "10.1.0.99".clone_into(&mut row.address);
        row
    };
    // One more of two is more than a tenth: Kubernetes is asked for a fresh list first.
    let orphan = ghost("one");
    orphan.put(fixture).await?;
    let orphan = Instance { id: orphan.id, ..last.clone() };
    tells(fixture, &operator, "ghost", &orphan, "no resource claims it, confirmed by a fresh list").await?;

    fixture
        .apply(
            "manual",
            &fixture.spec(json!({ "name": manual, "class": "other", "source": { "service": { "name": "manual" } } })),
        )
        .await?;
    tells(fixture, &operator, "manual", last, "the resource has another class").await?;

    // What a crash left behind, its resource removed by force.
    fixture.apply("crash", &fixture.spec(json!({ "name": renamed }))).await?;
    let left = fixture.consul().wait_for(&renamed, "both", |found| !found.is_empty(), SOON).await?;
    fixture.wait_ready("crash").await?;
    operator.kill()?;
    let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    fixture.resources().patch("crash", &PatchParams::default(), &without).await?;
    fixture.resources().delete("crash", &DeleteParams::default()).await?;
    let operator = operate(fixture, None).await?;
    tells(fixture, &operator, "crash", &left[0], "no resource claims it, confirmed by a fresh list").await
}

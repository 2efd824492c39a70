//! What users and administrators see.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lictor_testbed::wait;
use serde_json::json;

use crate::fixture::{Fixture, SOON, metric, wait_for_metric};
use crate::listening::{Listening, Way};

/// Resources whose status changes all the time.
const FLAPPING: usize = 60;

/// The most writes to Kubernetes that Lictor has under way at once.
const AT_ONCE: usize = 16;

pub(crate) async fn kubectl_shows_it(fixture: &Fixture) -> Result<()> {
    fixture.web(2).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.namespace.kubectl(&["wait", "csvc/web", "--for=condition=Ready", "--timeout=30s"]).await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    fixture.apply("lost", &fixture.spec(json!({ "source": { "service": { "name": "no-such" } } }))).await?;
    fixture.wait_for_condition("lost", "Ready", "False", "ServiceNotFound").await?;

    let table = fixture.namespace.kubectl(&["get", "csvc", "-o", "wide"]).await?;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let columns = ["NAME", "SERVICE", "DESIRED", "REGISTERED", "PASSING", "READY", "REASON", "AGE"];
    ensure!(lines.len() == 3 && lines[0] == columns, "{table}");
    let row = |name: &str| lines.iter().find(|line| line[0] == name).with_context(|| table.clone());
    ensure!(row("web")?[1..7] == [&fixture.service, "2", "2", "1", "True", "Ready"], "{table}");
    // It has not been resolved yet, and so it has no name in Consul.
    ensure!(row("lost")?[1..6] == ["0", "0", "0", "False", "ServiceNotFound"], "{table}");
    let narrow = fixture.namespace.kubectl(&["get", "csvc"]).await?;
    ensure!(!narrow.contains("REASON") && narrow.contains("READY"), "{narrow}");
    Ok(())
}

pub(crate) async fn metrics_are_there(fixture: &Fixture) -> Result<()> {
    fixture.web(2).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    fixture.apply("lost", &fixture.spec(json!({ "source": { "service": { "name": "no-such" } } }))).await?;
    fixture.wait_for_condition("lost", "Ready", "False", "ServiceNotFound").await?;

    for (name, expected) in [
        ("lictor_ready", 1.0),
        ("lictor_consul_unavailable", 0.0),
        ("lictor_resources{ready=\"True\",reason=\"Ready\"}", 1.0),
        ("lictor_resources{ready=\"False\",reason=\"ServiceNotFound\"}", 1.0),
        ("lictor_dirty_resources", 0.0),
        ("lictor_outstanding_writes", 0.0),
        ("lictor_refused_instances", 0.0),
        ("lictor_held_resources", 0.0),
        ("lictor_instances{state=\"passing\"}", 1.0),
        ("lictor_instances{state=\"warning\"}", 0.0),
        ("lictor_instances{state=\"critical\"}", 1.0),
    ] {
        wait_for_metric(&operator, name, |found| (found - expected).abs() < f64::EPSILON).await?;
    }
    let metrics = operator.metrics().await?;
    let value = |name: &str| metric(&metrics, name);
    ensure!(value("lictor_consul_writes_total{kind=\"register\",outcome=\"written\"}")? >= 2.0, "{metrics}");
    ensure!(value("lictor_endpoint_change_to_consul_seconds_count")? >= 1.0, "{metrics}");
    ensure!(value("lictor_resync_age_seconds")? < SOON.as_secs_f64(), "{metrics}");
    ensure!(metrics.trim_end().ends_with("# EOF"), "not OpenMetrics: {metrics}");
    // No name of anything that users make.
    ensure!(!metrics.contains(&fixture.cluster) && !metrics.contains("web"), "a label holds a name: {metrics}");
    Ok(())
}

pub(crate) async fn a_finalizer_waits_for_no_status(fixture: &Fixture) -> Result<()> {
    fixture.web(2).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let _operator = fixture.operator().kubeconfig(&listening.kubeconfig).ready().await?;
    let spec = |name: &str, policy: &str| {
        fixture.spec(json!({ "name": fixture.service_named(name), "deletionPolicy": policy }))
    };
    let names: Vec<String> = (0..FLAPPING).map(|number| format!("a-{number}")).collect();
    let apply = async |name: &String| fixture.apply(name, &spec(name, "Deregister")).await;
    stream::iter(&names).map(apply).buffer_unordered(16).try_collect::<()>().await?;
    for name in &names {
        fixture.wait_ready(name).await?;
    }

    listening.rule(|look| look.is_none().then_some(Way::Late(Duration::from_millis(100))));
    let is_status = |path: &String| path.ends_with("/status");
    let statuses = || listening.writes().into_iter().filter(is_status).count();
    let more_statuses = async |so_far: usize| {
        let many = so_far + FLAPPING / 4;
        wait::until("statuses of a pod that flaps", SOON, || async { Ok((statuses() >= many).then_some(())) }).await
    };
    let flap = async {
        for ready in [false, true].into_iter().cycle() {
            let before = statuses();
            fixture.namespace.set_ready("web-0", ready).await?;
            more_statuses(before).await?;
        }
        Ok(())
    };
    let finalizer = async {
        more_statuses(statuses()).await?;
        fixture.apply("zz", &spec("zz", "Retain")).await?;
        let before = statuses();
        let after = wait::until("the finalizer", SOON, || async {
            let writes = listening.writes();
            let finalizer = writes.iter().position(|path| path.ends_with("/consulservices/zz"));
            Ok(finalizer.map(|at| writes[..at].iter().filter(|path| is_status(path)).count()))
        })
        .await?;
        println!("{} statuses went before the finalizer", after.saturating_sub(before));
        ensure!(after <= before + AT_ONCE, "{} statuses went before the finalizer", after - before);
        fixture.consul().wait_for(&fixture.service_named("zz"), "its instances", |found| found.len() == 2, SOON).await
    };
    tokio::select! {
        flapped = flap => flapped,
        found = finalizer => found.map(drop),
    }
}

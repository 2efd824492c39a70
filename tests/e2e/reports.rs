//! What users and administrators see.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::fixture::{Fixture, SOON, metric, wait_for_metric};

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

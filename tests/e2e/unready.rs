//! Most pods stop being ready at once, as when the kubelets are cut off.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lictor_testbed::{Instance, TestPod};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::fixture::{Fixture, SOON, metric, wait_for_metric};

/// How many pods there are.
const PODS: usize = 24;

/// How long those that are not ready are kept passing.
const HOLD: Duration = Duration::from_secs(8);

fn passing(found: &[Instance]) -> usize {
    found.iter().filter(|instance| instance.status == "passing").count()
}

async fn set_all(fixture: &Fixture, pods: &[TestPod], ready: bool) -> Result<()> {
    let all = stream::iter(pods).map(|pod| fixture.namespace.set_ready(&pod.name, ready));
    all.buffer_unordered(8).try_for_each(async |()| Ok(())).await
}

pub(crate) async fn most_stop_being_ready_at_once(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(PODS).await?;
    let hold = format!("{}s", HOLD.as_secs());
    let running = fixture.operator().ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("all, passing", |found| passing(found) == PODS).await?;
    fixture.wait_flawless("web").await?;

    // A few are their own matter.
    set_all(fixture, &pods[..9], false).await?;
    fixture.wait_for("all but nine", |found| passing(found) == PODS - 9).await?;
    ensure!(metric(&running.metrics().await?, "lictor_mass_unready_instances")? < 1.0);
    set_all(fixture, &pods[..9], true).await?;
    fixture.wait_for("all again", |found| passing(found) == PODS).await?;

    // Most at once are said, and critical.
    set_all(fixture, &pods, false).await?;
    fixture.wait_for("none", |found| found.len() == PODS && passing(found) == 0).await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count >= 13.0).await?;
    let ready = running.get("/readyz").await?;
    ensure!(ready.starts_with("ok") && ready.contains("kubelets"), "{ready}");
    fixture.wait_for_condition("web", "Registered", "True", "MassUnready").await?;
    set_all(fixture, &pods, true).await?;
    fixture.wait_for("all again", |found| passing(found) == PODS).await?;
    fixture.wait_for_condition("web", "Registered", "True", "Registered").await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count < 1.0).await?;
    running.terminate(SOON).await?;

    // With the flag the rest is kept passing, until Kubernetes has said it again.
    let running = fixture.operator().flag("--hold-mass-unready", &hold).ready().await?;
    let begun = Instant::now();
    set_all(fixture, &pods, false).await?;
    fixture.wait_for_condition("web", "Registered", "False", "MassUnready").await?;
    let mut fewest = PODS;
    while begun.elapsed() + Duration::from_secs(2) < HOLD {
        fewest = fewest.min(passing(&fixture.instances().await?));
        sleep(Duration::from_millis(50)).await;
    }
    println!("most stop being ready, {} mode: {fewest} of {PODS} are kept passing", fixture.mode.as_str());
    ensure!(fewest >= PODS / 2 - 1, "only {fewest} of {PODS} were kept passing");
    // One whose pod goes is not held.
    fixture.namespace.force_delete(&pods[0].name).await?;
    fixture.wait_for("one gone", |found| found.len() == PODS - 1).await?;
    fixture.wait_for("none", |found| found.len() == PODS - 1 && passing(found) == 0).await?;
    ensure!(begun.elapsed() >= HOLD, "not held for as long as it was asked to");
    fixture.wait_for_condition("web", "Registered", "True", "MassUnready").await?;
    set_all(fixture, &pods[1..], true).await?;
    fixture.wait_for("all again", |found| passing(found) == PODS - 1).await?;
    fixture.wait_flawless("web").await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count < 1.0).await
}

//! Most pods stop being ready at once, as when the kubelets are cut off.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lictor_testbed::{Instance, TestPod};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, SOON, metric, wait_for_metric};

/// How many pods there are.
const PODS: usize = 24;

/// How long those that are not ready are kept passing.
const HOLD: Duration = Duration::from_secs(8);

fn passing(found: &[Instance]) -> usize {
    found.iter().filter(|instance| instance.status == "passing").count()
}

async fn set_all(bed: &Bed, pods: &[TestPod], ready: bool) -> Result<()> {
    let all = stream::iter(pods).map(|pod| bed.namespace.set_ready(&pod.name, ready));
    all.buffer_unordered(8).try_for_each(async |()| Ok(())).await
}

pub(crate) async fn most_stop_being_ready_at_once(bed: &Bed) -> Result<()> {
    let pods = bed.web(PODS).await?;
    let hold = format!("{}s", HOLD.as_secs());
    let running = bed.operator().ready().await?;
    bed.apply_web(json!({})).await?;
    bed.wait_for("all, passing", |found| passing(found) == PODS).await?;
    bed.wait_flawless("web").await?;

    // A few are their own matter.
    set_all(bed, &pods[..9], false).await?;
    bed.wait_for("all but nine", |found| passing(found) == PODS - 9).await?;
    ensure!(metric(&running.metrics().await?, "lictor_mass_unready_instances")? < 1.0);
    set_all(bed, &pods[..9], true).await?;
    bed.wait_for("all again", |found| passing(found) == PODS).await?;

    // Most at once are said, and critical.
    set_all(bed, &pods, false).await?;
    bed.wait_for("none", |found| found.len() == PODS && passing(found) == 0).await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count >= 13.0).await?;
    let ready = running.get("/readyz").await?;
    ensure!(ready.starts_with("ok") && ready.contains("kubelets"), "{ready}");
    bed.wait_for_condition("web", "Registered", "True", "MassUnready").await?;
    set_all(bed, &pods, true).await?;
    bed.wait_for("all again", |found| passing(found) == PODS).await?;
    bed.wait_for_condition("web", "Registered", "True", "Registered").await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count < 1.0).await?;
    running.terminate(SOON).await?;

    // With the flag the rest is kept passing, until Kubernetes has said it again.
    let running = bed.operator().flag("--hold-mass-unready", &hold).ready().await?;
    let begun = Instant::now();
    set_all(bed, &pods, false).await?;
    bed.wait_for_condition("web", "Registered", "False", "MassUnready").await?;
    let mut fewest = PODS;
    while begun.elapsed() + Duration::from_secs(2) < HOLD {
        fewest = fewest.min(passing(&bed.instances().await?));
        sleep(Duration::from_millis(50)).await;
    }
    println!("most stop being ready, {} mode: {fewest} of {PODS} are kept passing", bed.mode.as_str());
    ensure!(fewest >= PODS / 2 - 1, "only {fewest} of {PODS} were kept passing");
    // One whose pod goes is not held.
    bed.namespace.force_delete(&pods[0].name).await?;
    bed.wait_for("one gone", |found| found.len() == PODS - 1).await?;
    bed.wait_for("none", |found| found.len() == PODS - 1 && passing(found) == 0).await?;
    ensure!(begun.elapsed() >= HOLD, "not held for as long as it was asked to");
    bed.wait_for_condition("web", "Registered", "True", "MassUnready").await?;
    set_all(bed, &pods[1..], true).await?;
    bed.wait_for("all again", |found| passing(found) == PODS - 1).await?;
    bed.wait_flawless("web").await?;
    wait_for_metric(&running, "lictor_mass_unready_instances", |count| count < 1.0).await
}

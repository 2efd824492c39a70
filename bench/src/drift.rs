//! How long Consul differs from Kubernetes once somebody else has changed it: the time until it is true again, after each kind of loss.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lictor_testbed::wait;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::load::{Endpoint, Load, name};
use crate::measures::Figures;
use crate::report::percentile;
use crate::trial::Trial;

/// The time that the tries of one kind of loss may take. After that the rest of them is left out.
const BUDGET: Duration = Duration::from_secs(240);

/// The time that a loss may last.
const REPAIR: Duration = Duration::from_secs(120);

/// How often Consul is asked whether it is true again.
const LOOK: Duration = Duration::from_millis(20);

/// What somebody else does to Consul.
#[derive(Clone, Copy)]
enum Loss {
    /// An instance is deregistered.
    Deregistered,
    /// The tags of an instance are changed.
    Edited,
    /// The readiness of an instance is changed.
    CheckEdited,
    /// A node is deleted, with all that is on it.
    NodeDeleted,
    /// Consul is restored to when it was empty.
    Emptied,
    /// Consul is restored to when one instance was ready that is not any more.
    Restored,
}

/// Each with the names of its figures.
const LOSSES: [(Loss, [&str; 3]); 6] = [
    (
        Loss::Deregistered,
        ["an instance deregistered: p50, ms", "an instance deregistered: most, ms", "an instance deregistered: tries"],
    ),
    (Loss::Edited, ["an instance edited: p50, ms", "an instance edited: most, ms", "an instance edited: tries"]),
    (Loss::CheckEdited, ["a check edited: p50, ms", "a check edited: most, ms", "a check edited: tries"]),
    (Loss::NodeDeleted, ["a node deleted: p50, ms", "a node deleted: most, ms", "a node deleted: tries"]),
    (Loss::Emptied, ["Consul emptied: p50, ms", "Consul emptied: most, ms", "Consul emptied: tries"]),
    (Loss::Restored, ["Consul restored: p50, ms", "Consul restored: most, ms", "Consul restored: tries"]),
];

/// Takes the measure, with so many tries of each kind.
pub(crate) async fn drift(trial: &Trial, load: &Load, tries: u32) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut endpoints = 0..;
    for (loss, [p50, most, made]) in LOSSES {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while times.len() < tries as usize && begun.elapsed() < BUDGET {
            // At any time of a round of the resync, and between two of them.
            sleep(Duration::from_millis(fastrand::u64(1000..6000))).await;
            let endpoint = load.endpoint(endpoints.next().unwrap_or_default());
            let time = lose(loss, trial, load, endpoint).await;
            times.push(time.with_context(|| format!("{p50}, try {}", times.len() + 1))?.as_secs_f64() * 1000.0);
        }
        #[allow(clippy::cast_precision_loss, reason = "a count of tries")]
        figures.extend([(p50, percentile(&times, 50)), (most, percentile(&times, 100)), (made, times.len() as f64)]);
    }
    Ok(figures)
}

/// The time from a loss until Consul is true again.
async fn lose(loss: Loss, trial: &Trial, load: &Load, endpoint: Endpoint) -> Result<Duration> {
    let (api, (node, address)) = (trial.api(), load.place(endpoint));
    let node = format!("bench-{node}");
    let service = name(endpoint.service());
    let path = format!("/v1/catalog/service/{service}");
    // What Consul holds of the endpoint: nothing where it is not there.
    let row = || async {
        let rows = api.get(&path).await?;
        let is_its = |row: &&Value| row["ServiceAddress"] == address.to_string();
        anyhow::Ok(rows.as_array().into_iter().flatten().find(is_its).cloned().unwrap_or_default())
    };
    let before = row().await?;
    let id = before["ServiceID"].as_str().with_context(|| format!("{address} is not in {path}"))?;
    let there_again = || async { trial.wait_for_exactly(load.size.instances).await };
    let begun = Instant::now();
    match loss {
        Loss::Deregistered => {
            api.put("/v1/catalog/deregister", &json!({ "Node": node, "ServiceID": id })).await?;
            until(&format!("{id} to be there again"), || async { Ok(row().await? != Value::Null) }).await?;
        }
        Loss::Edited => {
            let edited = json!({
                "ID": id,
                "Service": service,
                "Address": before["ServiceAddress"],
                "Port": before["ServicePort"],
                "Meta": before["ServiceMeta"],
                "Tags": ["by-hand"],
            });
            let body = json!({ "Node": node, "SkipNodeUpdate": true, "Service": edited });
            api.put("/v1/catalog/register", &body).await?;
            let is_true = || async { Ok(row().await?["ServiceTags"] == before["ServiceTags"]) };
            until(&format!("{id} to have its tags again"), is_true).await?;
        }
        Loss::CheckEdited => {
            let checks = api.get(&format!("/v1/health/checks/{service}")).await?;
            let check = checks.as_array().into_iter().flatten().find(|check| check["ServiceID"] == id);
            let mut check = check.with_context(|| format!("{id} has no check"))?.clone();
            check["Status"] = "critical".into();
            let body = json!({ "Node": node, "SkipNodeUpdate": true, "Check": check });
            api.put("/v1/catalog/register", &body).await?;
            trial.wait_for(load, endpoint, true).await?;
        }
        Loss::NodeDeleted => {
            api.put("/v1/catalog/deregister", &json!({ "Node": node })).await?;
            there_again().await?;
        }
        Loss::Emptied => {
            trial.restore(trial.empty()).await?;
            there_again().await?;
        }
        Loss::Restored => {
            let snapshot = trial.snapshot().await?;
            load.set_ready(endpoint, false).await?;
            trial.wait_for(load, endpoint, false).await?;
            let begun = Instant::now();
            trial.restore(&snapshot).await?;
            trial.wait_for(load, endpoint, false).await?;
            let time = begun.elapsed();
            load.set_ready(endpoint, true).await?;
            trial.wait_for(load, endpoint, true).await?;
            return Ok(time);
        }
    }
    Ok(begun.elapsed())
}

async fn until<F>(what: &str, mut is_true: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    wait::until_every(LOOK, what, REPAIR, || {
        let found = is_true();
        async { Ok(found.await?.then_some(())) }
    })
    .await
}

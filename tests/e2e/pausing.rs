//! The annotation that freezes a resource.

use anyhow::{Context, Result, ensure};
use lictor_testbed::Instance;
use serde_json::json;

use crate::bed::{Bed, SOON};
use crate::rows::{fingerprint, remove};

const PAUSED: &str = "lictor.dev/paused";

pub(crate) async fn a_paused_resource_is_frozen(bed: &Bed) -> Result<()> {
    let pods = bed.web(3).await?;
    let running = bed.operate().await?;
    let other = bed.service_named("other");
    bed.apply_web(json!({ "tags": ["before"] })).await?;
    bed.apply("other", &bed.spec(json!({ "name": other }))).await?;
    let found = bed.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    bed.wait_ready("web").await?;
    bed.wait_ready("other").await?;

    bed.annotate("web", PAUSED, Some("true")).await?;
    let message = bed.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;
    ensure!(message.contains(PAUSED), "it does not say what freezes it: {message}");
    bed.wait_for_condition("web", "Ready", "False", "Paused").await?;
    bed.wait_for_event("web", "Paused").await?;
    // Somebody's hand, an edit of the spec, and all that pods do.
    let gone = found.iter().find(|i| i.address == pods[0].ip.to_string());
    remove(bed, gone.context("it was just there")?).await?;
    let frozen = fingerprint(bed, &bed.service).await?;
    ensure!(frozen.len() == 2, "{frozen:?}");
    bed.apply_web(json!({ "tags": ["after"] })).await?;
    bed.namespace.set_ready("web-1", false).await?;
    bed.namespace.force_delete("web-2").await?;
    let new = bed.web_pod("web-3", "b").await?;
    // The other resource of the same Service shows when all of this was heard.
    let heard = |found: &[Instance]| {
        let of = |address: &str| found.iter().find(|i| i.address == address).map(|i| i.status.as_str());
        let [first, second, new] = [&pods[0], &pods[1], &new].map(|pod| of(&pod.ip.to_string()));
        found.len() == 3 && first == Some("passing") && second == Some("critical") && new == Some("passing")
    };
    let running = {
        bed.consul().wait_for(&other, "what happened", heard, SOON).await?;
        bed.wait_for_a_look(&running).await?;
        ensure!(fingerprint(bed, &bed.service).await? == frozen, "it was not frozen");
        // Neither does a restart touch it.
        running.kill()?;
        bed.operate().await?
    };
    bed.wait_for_a_look(&running).await?;
    ensure!(fingerprint(bed, &bed.service).await? == frozen, "it was not frozen over a restart");
    bed.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;

    // It goes on when the annotation is gone, or says so itself.
    bed.annotate("web", PAUSED, Some("false")).await?;
    let as_it_is = |found: &[Instance]| heard(found) && found.iter().all(|i| i.tags == ["after"]);
    bed.wait_for("all that happened meanwhile", as_it_is).await?;
    bed.wait_flawless("web").await?;

    // A deletion waits.
    bed.annotate("web", PAUSED, Some("true")).await?;
    bed.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;
    let frozen = fingerprint(bed, &bed.service).await?;
    bed.delete("web").await?;
    bed.delete("other").await?;
    bed.wait_gone("other").await?;
    bed.wait_for_a_look(&running).await?;
    let waiting = bed.resources().get("web").await?;
    ensure!(waiting.metadata.deletion_timestamp.is_some(), "it is not being deleted: {waiting:?}");
    ensure!(fingerprint(bed, &bed.service).await? == frozen, "a deletion was not frozen");
    bed.annotate("web", PAUSED, None).await?;
    bed.wait_gone("web").await?;
    ensure!(bed.instances().await?.is_empty(), "gone from Kubernetes, but not from Consul");
    Ok(())
}

//! The annotation that freezes a resource.

use anyhow::{Context, Result, ensure};
use lictor_testbed::Instance;
use serde_json::json;

use crate::fixture::{Fixture, SOON};
use crate::rows::{fingerprint, remove};

const PAUSED: &str = "lictor.dev/paused";

pub(crate) async fn a_paused_resource_is_frozen(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(3).await?;
    let running = fixture.operate().await?;
    let other = fixture.service_named("other");
    fixture.apply_web(json!({ "tags": ["before"] })).await?;
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_ready("other").await?;

    fixture.annotate("web", PAUSED, Some("true")).await?;
    let message = fixture.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;
    ensure!(message.contains(PAUSED), "it does not say what freezes it: {message}");
    fixture.wait_for_condition("web", "Ready", "False", "Paused").await?;
    fixture.wait_for_event("web", "Paused").await?;
    // Somebody's hand, an edit of the spec, and all that pods do.
    let gone = found.iter().find(|i| i.address == pods[0].ip.to_string());
    remove(fixture, gone.context("it was just there")?).await?;
    let frozen = fingerprint(fixture, &fixture.service).await?;
    ensure!(frozen.len() == 2, "{frozen:?}");
    fixture.apply_web(json!({ "tags": ["after"] })).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.namespace.force_delete("web-2").await?;
    let new = fixture.web_pod("web-3", "b").await?;
    // The other resource of the same Service shows when all of this was heard.
    let heard = |found: &[Instance]| {
        let of = |address: &str| found.iter().find(|i| i.address == address).map(|i| i.status.as_str());
        let [first, second, new] = [&pods[0], &pods[1], &new].map(|pod| of(&pod.ip.to_string()));
        found.len() == 3 && first == Some("passing") && second == Some("critical") && new == Some("passing")
    };
    let running = {
        fixture.consul().wait_for(&other, "what happened", heard, SOON).await?;
        fixture.wait_for_a_look(&running).await?;
        ensure!(fingerprint(fixture, &fixture.service).await? == frozen, "it was not frozen");
        // Neither does a restart touch it.
        running.kill()?;
        fixture.operate().await?
    };
    fixture.wait_for_a_look(&running).await?;
    ensure!(fingerprint(fixture, &fixture.service).await? == frozen, "it was not frozen over a restart");
    fixture.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;

    // It goes on when the annotation is gone, or says so itself.
    fixture.annotate("web", PAUSED, Some("false")).await?;
    let as_it_is = |found: &[Instance]| heard(found) && found.iter().all(|i| i.tags == ["after"]);
    fixture.wait_for("all that happened meanwhile", as_it_is).await?;
    fixture.wait_flawless("web").await?;

    // A deletion waits.
    fixture.annotate("web", PAUSED, Some("true")).await?;
    fixture.wait_for_condition("web", "Registered", "Unknown", "Paused").await?;
    let frozen = fingerprint(fixture, &fixture.service).await?;
    fixture.delete("web").await?;
    fixture.delete("other").await?;
    fixture.wait_gone("other").await?;
    fixture.wait_for_a_look(&running).await?;
    let waiting = fixture.resources().get("web").await?;
    ensure!(waiting.metadata.deletion_timestamp.is_some(), "it is not being deleted: {waiting:?}");
    ensure!(fingerprint(fixture, &fixture.service).await? == frozen, "a deletion was not frozen");
    fixture.annotate("web", PAUSED, None).await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "gone from Kubernetes, but not from Consul");
    Ok(())
}

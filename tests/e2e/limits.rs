//! More instances than a resource may have.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lictor_testbed::NewPod;
use serde_json::json;

use crate::bed::{Bed, SOON};
use crate::rows::fingerprint;

/// The most that a resource may have here.
const MOST: usize = 20;

/// How many pods the selector picks that picks too many; `LICTOR_PODS` says another number.
const MANY: usize = 60;

pub(crate) async fn too_many_instances(bed: &Bed) -> Result<()> {
    let many = match std::env::var("LICTOR_PODS") {
        Ok(number) => number.parse()?,
        Err(_) => MANY,
    };
    let pods = bed.web(2).await?;
    let running = bed.operator().flag("--max-instances", &MOST.to_string()).ready().await?;
    // At first the selector picks no more than it may.
    let picked = bed.service_named("picked");
    let spec = bed.spec(json!({ "name": picked, "source": { "pods": { "matchLabels": { "group": "many" } } } }));
    let pod = |number: usize| {
        let node = format!("{}-{}", bed.namespace.name(), if number.is_multiple_of(2) { "a" } else { "b" });
        let number = u32::try_from(number).unwrap_or_default();
        let address = IpAddr::from((0x0a80_0000 + number).to_be_bytes());
        NewPod::new(&format!("many-{number}"), &node).label("group", "many").port("http", 8080).ip(address)
    };
    let create = async |numbers: std::ops::Range<usize>| -> Result<()> {
        let pods = stream::iter(numbers).map(|number| bed.namespace.create_pod(pod(number)));
        pods.buffer_unordered(16).try_for_each(async |_| Ok(())).await
    };
    create(0..MOST).await?;
    bed.apply("picked", &spec).await?;
    let all = |found: &[lictor_testbed::Instance]| found.len() == MOST;
    bed.consul().wait_for(&picked, "as many as it may", all, SOON).await?;
    bed.wait_flawless("picked").await?;
    let before = fingerprint(bed, &picked).await?;

    create(MOST..many).await?;
    let counted = async |number: usize| bed.wait_for_words("picked", "Resolved", &format!("{number} instances")).await;
    let message = counted(many).await?;
    ensure!(message.contains(&MOST.to_string()) && message.contains("--max-instances"), "{message}");
    bed.wait_for_condition("picked", "Resolved", "False", "TooManyInstances").await?;
    bed.wait_for_condition("picked", "Ready", "False", "TooManyInstances").await?;
    bed.wait_for_event("picked", "TooManyInstances").await?;

    // Others are not affected.
    bed.apply_web(json!({ "tags": ["others"] })).await?;
    let found = bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    ensure!(found.iter().all(|i| i.tags == ["others"]), "{found:?}");
    bed.wait_flawless("web").await?;
    bed.namespace.set_ready("web-0", false).await?;
    bed.wait_for_counts("web", [2, 2, 1, 1]).await?;
    // What was registered stays, but for what is gone from Kubernetes.
    bed.wait_for_a_look(&running).await?;
    let after = fingerprint(bed, &picked).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    bed.namespace.force_delete("many-0").await?;
    bed.consul().wait_for(&picked, "one gone", |found| found.len() == MOST - 1, SOON).await?;
    counted(many - 1).await?;

    // Narrowed down it is served again.
    bed.namespace.label_pod("many-1", "group", Some("few")).await?;
    let narrow = json!({ "name": picked, "source": { "pods": { "matchLabels": { "group": "few" } } } });
    bed.apply("picked", &bed.spec(narrow)).await?;
    bed.consul().wait_for(&picked, "one", |found| found.len() == 1, SOON).await?;
    bed.wait_flawless("picked").await
}

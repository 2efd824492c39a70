//! More instances than a resource may have.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lictor_testbed::{NewPod, TestPod};
use serde_json::json;

use crate::fixture::{Fixture, SOON};
use crate::rows::fingerprint;

/// The most that a resource may have here.
const MOST: usize = 20;

/// How many pods the selector matches that picks too many; `LICTOR_PODS` says another number.
const MANY: usize = 60;

pub(crate) async fn too_many_instances(fixture: &Fixture) -> Result<()> {
    let many = match std::env::var("LICTOR_PODS") {
        Ok(number) => number.parse()?,
        Err(_) => MANY,
    };
    let pods = fixture.web(2).await?;
    let running = fixture.operator().flag("--max-instances", &MOST.to_string()).ready().await?;
    // At first the selector matches no more than it may.
    let picked = fixture.service_named("picked");
    let spec = fixture.spec(json!({ "name": picked, "source": { "pods": { "matchLabels": { "group": "many" } } } }));
    let pod = |number: usize| {
        let node = format!("{}-{}", fixture.namespace.name(), if number.is_multiple_of(2) { "a" } else { "b" });
        let number = u32::try_from(number).unwrap_or_default();
        let address = IpAddr::from((0x0a80_0000 + number).to_be_bytes());
        NewPod::new(&format!("many-{number}"), &node).label("group", "many").port("http", 8080).ip(address)
    };
    let create = async |numbers: std::ops::Range<usize>| -> Result<()> {
        let pods = stream::iter(numbers).map(|number| fixture.namespace.create_pod(pod(number)));
        pods.buffer_unordered(16).try_for_each(async |_| Ok(())).await
    };
    create(0..MOST).await?;
    fixture.apply("picked", &spec).await?;
    let all = |found: &[lictor_testbed::Instance]| found.len() == MOST;
    fixture.consul().wait_for(&picked, "as many as it may", all, SOON).await?;
    fixture.wait_flawless("picked").await?;
    let before = fingerprint(fixture, &picked).await?;

    create(MOST..many).await?;
    let counted =
        async |number: usize| fixture.wait_for_words("picked", "Resolved", &format!("{number} instances")).await;
    let message = counted(many).await?;
    ensure!(message.contains(&MOST.to_string()) && message.contains("--max-instances"), "{message}");
    fixture.wait_for_condition("picked", "Resolved", "False", "TooManyInstances").await?;
    fixture.wait_for_condition("picked", "Ready", "False", "TooManyInstances").await?;
    fixture.wait_for_event("picked", "TooManyInstances").await?;

    // Others are not affected.
    fixture.apply_web(json!({ "tags": ["others"] })).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    ensure!(found.iter().all(|i| i.tags == ["others"]), "{found:?}");
    fixture.wait_flawless("web").await?;
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    // What was registered stays.
    fixture.wait_for_a_look(&running).await?;
    let after = fingerprint(fixture, &picked).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    fixture.wait_for_condition("picked", "Registered", "True", "Registered").await?;
    // Another takes the place of what is gone from Kubernetes, over a restart too.
    let of_first = |address: &str| address == "10.128.0.0";
    fixture.namespace.force_delete("many-0").await?;
    let replaced = |found: &[lictor_testbed::Instance]| {
        found.len() == MOST && !found.iter().any(|instance| of_first(&instance.address))
    };
    fixture.consul().wait_for(&picked, "another in its place", replaced, SOON).await?;
    counted(many - 1).await?;
    fixture.wait_for_words("picked", "Resolved", &format!("{} are left out", many - 1 - MOST)).await?;
    let before = fingerprint(fixture, &picked).await?;
    running.terminate(SOON).await?;
    let running = fixture.operator().flag("--max-instances", &MOST.to_string()).ready().await?;
    fixture.wait_for_a_look(&running).await?;
    let after = fingerprint(fixture, &picked).await?;
    ensure!(after == before, "the restart chose others:\n{before:?}\n{after:?}");
    // A lower limit takes nothing away that is registered and lives.
    running.terminate(SOON).await?;
    let running = fixture.operator().flag("--max-instances", &(MOST / 2).to_string()).ready().await?;
    fixture.wait_for_a_look(&running).await?;
    let after = fingerprint(fixture, &picked).await?;
    ensure!(after == before, "a lower limit took something away:\n{before:?}\n{after:?}");

    // Narrowed down it is served again.
    fixture.namespace.label_pod("many-1", "group", Some("few")).await?;
    let narrow = json!({ "name": picked, "source": { "pods": { "matchLabels": { "group": "few" } } } });
    fixture.apply("picked", &fixture.spec(narrow)).await?;
    fixture.consul().wait_for(&picked, "one", |found| found.len() == 1, SOON).await?;
    fixture.wait_flawless("picked").await
}

/// What a Deployment has here, and what it may have besides while it is rolled out.
const REPLICAS: usize = 18;
const SURGE: usize = 8;

/// How often Consul is asked.
const EVERY: Duration = Duration::from_millis(10);

/// A Deployment of 18 with `maxSurge: 8, maxUnavailable: 0` under a limit of 20, rolled out as its controller does it:
/// as many old pods go as new ones are ready, and new ones come up to the surge.
pub(crate) async fn a_rollout_at_the_limit(fixture: &Fixture) -> Result<()> {
    let old = fixture.web(REPLICAS).await?;
    fixture.operator().flag("--max-instances", &MOST.to_string()).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&old.iter().collect::<Vec<_>>()).await?;
    fixture.wait_flawless("web").await?;

    // What has to pass at every look: the old ones until they are deleted, the new ones once they were seen.
    let living: RefCell<BTreeSet<String>> = RefCell::new(old.iter().map(|pod| pod.ip.to_string()).collect());
    let done = Cell::new(false);
    let roll = async {
        let mut new: Vec<TestPod> = Vec::new();
        let (mut ready, mut gone) = (0, 0);
        while ready < REPLICAS {
            // As many as the surge leaves room for, which are not ready yet.
            while new.len() < REPLICAS && REPLICAS - gone + new.len() < REPLICAS + SURGE {
                let name = format!("new-{}", new.len());
                let node = if new.len().is_multiple_of(2) { "a" } else { "b" };
                new.push(fixture.namespace.create_pod(fixture.new_web_pod(&name, node).not_ready()).await?);
            }
            let all = REPLICAS - gone + new.len();
            let registered = all.min(MOST);
            fixture.wait_for("as many as are allowed", |found| found.len() == registered).await?;
            if all > MOST {
                fixture.wait_for_words("web", "Ready", &format!("{} are left out", all - MOST)).await?;
            }
            for pod in &new[ready..] {
                fixture.namespace.set_ready(&pod.name, true).await?;
            }
            let before = gone;
            (ready, gone) = (new.len(), new.len());
            for pod in &old[before..gone] {
                living.borrow_mut().remove(&pod.ip.to_string());
                fixture.namespace.force_delete(&pod.name).await?;
            }
            let all = old[gone..].iter().chain(&new).collect::<Vec<_>>();
            fixture.wait_for_pods(&all).await?;
            living.borrow_mut().extend(new.iter().map(|pod| pod.ip.to_string()));
        }
        fixture.wait_flawless("web").await?;
        done.set(true);
        anyhow::Ok(())
    };
    let look = async {
        let (mut looks, mut fewest) = (0_usize, usize::MAX);
        while !done.get() {
            let wanted = living.borrow().clone();
            let found = fixture.instances().await?;
            let passing: BTreeSet<&str> =
                found.iter().filter(|i| i.status == "passing").map(|i| i.address.as_str()).collect();
            // One may have been deleted meanwhile.
            let still = living.borrow().clone();
            let lost = wanted.iter().find(|address| still.contains(*address) && !passing.contains(address.as_str()));
            ensure!(lost.is_none(), "{lost:?} lives and does not pass: {passing:?}");
            (looks, fewest) = (looks + 1, fewest.min(passing.len()));
            tokio::time::sleep(EVERY).await;
        }
        anyhow::Ok((looks, fewest))
    };
    let ((), (looks, fewest)) = tokio::try_join!(roll, look)?;
    println!("a rollout at the limit, {} mode: {looks} looks, fewest passing {fewest}", fixture.mode.as_str());
    ensure!(fewest >= REPLICAS - SURGE, "{fewest} passed, and at least {} lived", REPLICAS - SURGE);
    Ok(())
}

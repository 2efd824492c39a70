//! Whose a name in Consul is.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject};
use lictor_testbed::dns::Kind;
use lictor_testbed::{Instance, NewEndpoint, Operator, TestNamespace, wait};
use serde_json::json;

use crate::fixture::{Fixture, SOON, apply, resources, wait_for_condition};
use crate::launch::Launch;

/// What the other namespace has behind its Service `web`.
const THEIRS: &str = "10.1.0.9";

/// Another namespace, with a Service `web`.
pub(crate) async fn neighbour(fixture: &Fixture) -> Result<(Arc<TestNamespace>, Api<DynamicObject>)> {
    let other = fixture.other_namespace("z").await?;
    other.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    other.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new(THEIRS.parse()?)]).await?;
    let resources = resources(&other);
    Ok((other, resources))
}

/// An operator for both namespaces.
fn operator<'a>(fixture: &'a Fixture, other: &TestNamespace) -> Launch<'a> {
    fixture.operator().flag("--namespace", other.name())
}

async fn wait_for(fixture: &Fixture, service: &str, addresses: &[&str]) -> Result<()> {
    let are = |found: &[Instance]| {
        found.len() == addresses.len() && addresses.iter().all(|address| found.iter().any(|i| i.address == **address))
    };
    fixture.consul().wait_for(service, &format!("just {addresses:?}"), are, SOON).await.map(drop)
}

pub(crate) async fn wait_gone(resources: &Api<DynamicObject>, name: &str) -> Result<()> {
    resources.delete(name, &DeleteParams::default()).await?;
    wait::until(format!("the end of resource {name}"), SOON, || async {
        Ok(resources.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

pub(crate) async fn a_name_of_two_namespaces(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let ours = pods[0].ip.to_string();
    let (other, theirs) = neighbour(fixture).await?;
    let running = operator(fixture, &other).ready().await?;
    fixture.apply_web(json!({})).await?;
    wait_for(fixture, &fixture.service, &[&ours]).await?;
    fixture.wait_ready("web").await?;

    // The younger one gets another name first, and then wants ours, in other letters: Consul compares without case.
    let elsewhere = fixture.service_named("elsewhere");
    apply(&theirs, "web", &fixture.spec(json!({ "name": elsewhere }))).await?;
    wait_for(fixture, &elsewhere, &[THEIRS]).await?;
    let shouted = fixture.service.to_uppercase();
    apply(&theirs, "web", &fixture.spec(json!({ "name": shouted }))).await?;
    let refused = async || wait_for_condition(&theirs, "web", "Accepted", "False", "NameConflict").await;
    let message = refused().await?;
    // Whose it is, only the log of Lictor says.
    let holder = fixture.namespace.name();
    ensure!(!message.contains(holder) && message.contains("--allow-shared-names"), "{message}");
    let told = format!("holder={holder}/web");
    wait::until("the log says whose the name is", SOON, || async { Ok(running.log().contains(&told).then_some(())) })
        .await?;
    wait_for_condition(&theirs, "web", "Ready", "False", "NameConflict").await?;
    // What it has registered stays, and follows its endpoints, and ours is ours.
    let more = [NewEndpoint::new(THEIRS.parse()?), NewEndpoint::new("10.1.0.10".parse()?)];
    other.apply_slice("web-1", "web", &[("http", 8080)], &more).await?;
    wait_for(fixture, &elsewhere, &[THEIRS, "10.1.0.10"]).await?;
    wait_for(fixture, &fixture.service, &[&ours]).await?;
    fixture.wait_ready("web").await?;

    // So it is after a restart.
    running.terminate(SOON).await?;
    let running = operator(fixture, &other).ready().await?;
    fixture.wait_for_a_look(&running).await?;
    refused().await?;
    wait_for(fixture, &elsewhere, &[THEIRS, "10.1.0.10"]).await?;
    wait_for(fixture, &fixture.service, &[&ours]).await?;

    // When the older one goes, the younger takes over; and the next one of ours is the younger.
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    wait_for(fixture, &fixture.service, &[THEIRS, "10.1.0.10"]).await?;
    wait_for(fixture, &elsewhere, &[]).await?;
    wait_for_condition(&theirs, "web", "Ready", "True", "Ready").await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for(fixture, &fixture.service, &[THEIRS, "10.1.0.10"]).await?;
    // Renamed away, the name is free.
    apply(&theirs, "web", &fixture.spec(json!({ "name": elsewhere }))).await?;
    wait_for(fixture, &fixture.service, &[&ours]).await?;
    fixture.wait_flawless("web").await
}

pub(crate) async fn the_older_one_has_the_name(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let ours = pods[0].ip.to_string();
    let (other, theirs) = neighbour(fixture).await?;
    // While nobody acts, theirs is made first, by a second: that is as fine as Kubernetes tells.
    apply(&theirs, "web", &fixture.spec(json!({}))).await?;
    let made = theirs.get("web").await?.metadata.creation_timestamp.context("no creationTimestamp")?.0;
    wait::until("the next second", SOON, || async {
        fixture.apply_web(json!({})).await?;
        let later = fixture.resources().get("web").await?.metadata.creation_timestamp.is_some_and(|at| at.0 > made);
        if !later {
            fixture.delete("web").await?;
        }
        Ok(later.then_some(()))
    })
    .await?;
    let running = operator(fixture, &other).ready().await?;
    wait_for(fixture, &fixture.service, &[THEIRS]).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for_condition(&theirs, "web", "Ready", "True", "Ready").await?;

    // One that is older still, and renames into the name, does not get it from whoever has it: neither now nor after a
    // restart.
    let own = fixture.service_named("own");
    apply(&theirs, "web", &fixture.spec(json!({ "name": own }))).await?;
    wait_for(fixture, &fixture.service, &[&ours]).await?;
    wait_for(fixture, &own, &[THEIRS]).await?;
    fixture.wait_ready("web").await?;
    wait_for_condition(&theirs, "web", "Ready", "True", "Ready").await?;
    apply(&theirs, "web", &fixture.spec(json!({}))).await?;
    let held = async |running: &Operator| -> Result<()> {
        wait_for_condition(&theirs, "web", "Accepted", "False", "NameConflict").await?;
        fixture.wait_for_a_look(running).await?;
        wait_for(fixture, &fixture.service, &[&ours]).await?;
        wait_for(fixture, &own, &[THEIRS]).await?;
        fixture.wait_ready("web").await
    };
    held(&running).await?;
    running.kill()?;
    held(&*operator(fixture, &other).ready().await?).await
}

pub(crate) async fn names_that_are_shared(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let ours = pods[0].ip.to_string();
    let (other, theirs) = neighbour(fixture).await?;
    operator(fixture, &other).switch("--allow-shared-names").ready().await?;
    fixture.apply_web(json!({})).await?;
    apply(&theirs, "web", &fixture.spec(json!({}))).await?;
    wait_for(fixture, &fixture.service, &[&ours, THEIRS]).await?;
    fixture.wait_flawless("web").await?;
    wait_for_condition(&theirs, "web", "Ready", "True", "Ready").await?;
    // Each has its own part of it.
    wait_gone(&theirs, "web").await?;
    wait_for(fixture, &fixture.service, &[&ours]).await
}

pub(crate) async fn blue_and_green(fixture: &Fixture) -> Result<()> {
    let blue = fixture.web(2).await?;
    fixture.namespace.apply_service("green", &[("app", "green")], &[("http", 80, "8080")]).await?;
    let green = |name: &str| lictor_testbed::NewPod::new(name, &blue[0].node).label("app", "green");
    let green = [fixture.namespace.create_pod(green("g-0")).await?, fixture.namespace.create_pod(green("g-1")).await?];
    let running = fixture.operate().await?;
    fixture.apply("blue", &fixture.spec(json!({ "tags": ["blue"] }))).await?;
    fixture.wait_for_pods(&[&blue[0], &blue[1]]).await?;
    fixture
        .apply("green", &fixture.spec(json!({ "tags": ["green"], "source": { "service": { "name": "green" } } })))
        .await?;
    let found = fixture.wait_for_pods(&[&blue[0], &blue[1], &green[0], &green[1]]).await?;
    let tagged = |tag: &str| found.iter().filter(|i| i.tags == [tag]).count();
    ensure!((tagged("blue"), tagged("green")) == (2, 2), "{found:?}");
    fixture.wait_flawless("blue").await?;
    fixture.wait_flawless("green").await?;
    for name in ["blue", "green"] {
        fixture.wait_for_counts(name, [2, 2, 2, 0]).await?;
    }
    // The same pods under the same name twice are two instances each, and the one goes without the other.
    fixture.apply("cyan", &fixture.spec(json!({ "tags": ["cyan"] }))).await?;
    fixture.wait_for("six", |found| found.len() == 6).await?;
    fixture.delete("blue").await?;
    fixture.wait_gone("blue").await?;
    let ids = |found: &[Instance]| found.iter().map(|i| (i.id.clone(), i.service_modify_index)).collect::<Vec<_>>();
    let left = fixture.wait_for("cyan and green", |found| {
        found.len() == 4 && found.iter().all(|i| i.tags == ["cyan"] || i.tags == ["green"])
    });
    let left = left.await?;
    fixture.wait_for_a_look(&running).await?;
    ensure!(ids(&fixture.instances().await?) == ids(&left), "what was left was written again");
    Ok(())
}

pub(crate) async fn a_name_that_dns_does_not_answer(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let operator = fixture.operate().await?;
    let dotted = fixture.service_named("my.dotted");
    for (resource, service) in [("web", &fixture.service), ("dotted", &dotted)] {
        let spec = json!({ "name": service, "source": { "service": { "name": "web" } } });
        fixture.apply(resource, &spec).await?;
        fixture.wait_ready(resource).await?;
    }
    fixture.wait_for_condition("web", "Accepted", "True", "Accepted").await?;
    let message = fixture.wait_for_condition("dotted", "Accepted", "True", "NotInDNS").await?;
    ensure!(message.contains("it holds '.'"), "{message}");
    let found = fixture.consul().get(&format!("/v1/health/service/{dotted}?passing")).await?;
    ensure!(found.as_array().is_some_and(|found| found.len() == 1), "{found}");
    fixture.wait_for_dns(&fixture.service, Kind::A, &[pods[0].ip]).await?;
    fixture.wait_for_dns(&dotted, Kind::A, &[]).await?;

    fixture.wait_for_event("dotted", "NotInDNS").await?;
    fixture.wait_for_event("dotted", "Ready").await?;
    // Neither an edit nor another Lictor tells it again.
    operator.kill()?;
    fixture.operate().await?;
    let spec = json!({ "name": dotted, "source": { "service": { "name": "web" } }, "tags": ["edited"] });
    fixture.apply("dotted", &spec).await?;
    wait::until("the edit", SOON, || async {
        let found = fixture.consul().get(&format!("/v1/health/service/{dotted}?tag=edited")).await?;
        Ok(found.as_array().is_some_and(|found| found.len() == 1).then_some(()))
    })
    .await?;
    fixture.wait_ready("dotted").await?;
    let events = fixture.events("dotted", "NotInDNS").await?;
    let [event] = &events[..] else { bail!("{events:?}") };
    ensure!(event.type_.as_deref() == Some("Warning") && event.count.unwrap_or(1) == 1, "{event:?}");
    Ok(())
}

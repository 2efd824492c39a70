//! Two replicas, of which one acts.
//!
//! Each has a proxy of its own in front of Consul, so that what it asked is on record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lictor_testbed::{Fault, Hold, Operator, Proxy, Record, TestPod, wait};
use serde_json::json;

use crate::fixture::{Fixture, SOON};
use crate::launch::Launch;
use crate::listening::{Listening, Way};
use crate::outages::wait_not_ready;

/// Kills in `make test`; `LICTOR_KILLS` says how many others.
const KILLS: usize = 3;

/// A replica and its way to Consul.
struct Replica {
    identity: String,
    operator: Arc<Operator>,
    proxy: Proxy,
}

impl Replica {
    async fn start(fixture: &Fixture, number: usize) -> Result<Self> {
        let identity = format!("replica-{number}");
        let proxy = Proxy::start(&fixture.consul_address()).await?;
        let launch = fixture.operator().consul(&proxy.addr()).switch("--leader-election");
        let launch = launch.flag("--lease-namespace", fixture.namespace.name()).flag("--identity", &identity);
        Ok(Self { identity, operator: launch.ready().await?, proxy })
    }

    async fn leads(&self) -> Result<bool> {
        leads(&self.operator).await
    }

    async fn until_it_leads(&self) -> Result<()> {
        wait::until(format!("{} leads", self.identity), SOON, || async { Ok(self.leads().await?.then_some(())) }).await
    }

    /// Waits until it has changed an instance, and says when.
    async fn first_change(&self) -> Result<Instant> {
        wait::until(format!("a change by {}", self.identity), SOON, || async {
            Ok(self.proxy.writes().iter().find(|record| changes_an_instance(record)).map(|record| record.at))
        })
        .await
    }
}

/// Whether a request touches a registration or its check, rather than only the marker.
fn changes_an_instance(record: &Record) -> bool {
    let body = String::from_utf8_lossy(&record.body);
    record.path.starts_with("/v1/agent/") || body.contains("\"Service\":{") || body.contains("\"Check\":{")
}

/// A leader that has registered two pods, and a replica that stands by.
async fn two(fixture: &Fixture) -> Result<(Replica, Replica, Vec<TestPod>)> {
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let first = Replica::start(fixture, 0).await?;
    first.until_it_leads().await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    let second = Replica::start(fixture, 1).await?;
    ensure!(second.operator.get("/readyz").await?.contains("standing by"));
    Ok((first, second, pods))
}

/// Flips a third pod's readiness, so that there is always something to write.
async fn keep_changing(fixture: &Fixture, pod: &str, done: &AtomicBool) -> Result<()> {
    let mut ready = false;
    while !done.load(Ordering::SeqCst) {
        fixture.namespace.set_ready(pod, ready).await?;
        ready = !ready;
        // The pace of the changes, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Looks all the time whether an instance that lives is gone.
async fn keep_looking(fixture: &Fixture, pods: &[TestPod], done: &AtomicBool) -> Result<()> {
    let mut looks = 0;
    while looks < LOOKS || !done.load(Ordering::SeqCst) {
        let found = fixture.instances().await?;
        for pod in pods {
            let there = found.iter().any(|i| i.address == pod.ip.to_string() && i.status == "passing");
            ensure!(there, "{} was not there, or not passing: {found:#?}", pod.name);
        }
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// So many looks at least show something.
const LOOKS: usize = 100;

pub(crate) async fn one_takes_over_from_one_that_is_killed(fixture: &Fixture) -> Result<()> {
    let (mut leader, mut standby, pods) = two(fixture).await?;
    let restless = fixture.web_pod("restless", "a").await?;
    let kills = std::env::var("LICTOR_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let done = AtomicBool::new(false);
    let kill_in_turn = async {
        let mut gaps = Vec::new();
        for number in 0..kills {
            leader.first_change().await?;
            standby.proxy.clear();
            let killed = Instant::now();
            leader.operator.kill()?;
            gaps.push(standby.first_change().await?.saturating_duration_since(killed));
            leader = std::mem::replace(&mut standby, Replica::start(fixture, number + 2).await?);
        }
        done.store(true, Ordering::SeqCst);
        anyhow::Ok(gaps)
    };
    let (gaps, (), ()) = tokio::try_join!(
        kill_in_turn,
        keep_changing(fixture, &restless.name, &done),
        keep_looking(fixture, &pods, &done)
    )?;
    println!("next write after a kill, {} mode: {gaps:?}", fixture.mode.as_str());
    Ok(())
}

pub(crate) async fn one_hands_over_when_it_is_told_to_stop(fixture: &Fixture) -> Result<()> {
    let (leader, standby, mut pods) = two(fixture).await?;
    standby.proxy.clear();
    let stopped = Instant::now();
    leader.operator.terminate(SOON).await?;
    standby.until_it_leads().await?;
    println!("handover, {} mode: {:?}", fixture.mode.as_str(), stopped.elapsed());
    pods.push(fixture.web_pod("web-2", "a").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    standby.first_change().await?;
    Ok(())
}

pub(crate) async fn one_that_slept_past_its_time_begins_no_request(fixture: &Fixture) -> Result<()> {
    let (leader, standby, mut pods) = two(fixture).await?;
    leader.operator.process().signal("STOP")?;
    standby.until_it_leads().await?;
    // Something to do for whoever thinks that it leads.
    pods.push(fixture.web_pod("web-2", "a").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    leader.proxy.clear();
    leader.operator.process().signal("CONT")?;
    wait::until("the sleeper knows that it leads no more", SOON, || async {
        Ok((!leader.leads().await?).then_some(()))
    })
    .await?;
    pods.push(fixture.web_pod("web-3", "b").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    let asked = leader.proxy.records();
    ensure!(asked.is_empty(), "the sleeper asked Consul: {asked:?}");
    Ok(())
}

/// A write that hangs in the network until another replica has written is rolled back.
pub(crate) async fn a_late_write_of_the_old_leader_is_fenced_off(fixture: &Fixture) -> Result<()> {
    let (leader, standby, pods) = two(fixture).await?;
    let hold = Hold::default();
    leader.proxy.clear();
    leader.proxy.set_fault(Fault::Hold(hold.clone()));
    // The old leader sends that it is not ready, and sleeps before it could give the request up.
    fixture.namespace.set_ready(&pods[0].name, false).await?;
    wait::until("the old leader's write", SOON, || async { Ok((!leader.proxy.writes().is_empty()).then_some(())) })
        .await?;
    leader.operator.process().signal("STOP")?;
    standby.until_it_leads().await?;
    fixture.namespace.set_ready(&pods[0].name, true).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    // Its own way to Consul may have been in trouble for a moment, too.
    wait::until("the new leader stands", SOON, || async { standby.operator.get("/readyz").await.map(Some) }).await?;
    hold.release();
    let answered = || async {
        let writes = leader.proxy.writes();
        Ok(writes.first().and_then(|write| write.status).map(|status| (status, writes)))
    };
    let (status, writes) = wait::until("Consul's answer to the late write", SOON, answered).await?;
    ensure!(status == 409, "the late write was not rolled back: {writes:?}");
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    leader.operator.process().signal("CONT")?;
    ensure!(leases(fixture).list(&ListParams::default()).await?.items.len() == 1);
    Ok(())
}

fn leases(fixture: &Fixture) -> Api<Lease> {
    Api::namespaced(fixture.namespace.client().clone(), fixture.namespace.name())
}

/// Whom the one Lease names; nobody if that is empty.
async fn holder(fixture: &Fixture) -> Result<String> {
    let found = leases(fixture).list(&ListParams::default()).await?.items.pop();
    Ok(found.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity).unwrap_or_default())
}

/// An operator that takes part in the election, by way of a proxy before the apiserver.
fn behind<'a>(fixture: &'a Fixture, listening: &Listening, identity: &str) -> Launch<'a> {
    let launch = fixture.operator().kubeconfig(&listening.kubeconfig).switch("--leader-election");
    launch.flag("--lease-namespace", fixture.namespace.name()).flag("--identity", identity)
}

async fn leads(operator: &Operator) -> Result<bool> {
    Ok(operator.metrics().await?.lines().any(|line| line == "lictor_leader 1"))
}

/// What is logged where a lead ends.
const LOST: &str = "lost leadership";

pub(crate) async fn one_acts_where_consul_is_slow(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    // Twice as long as the last quarter of the Lease, in which no request begins.
    let slow = Duration::from_secs(2);
    proxy.set_fault(Fault::Rule(Arc::new(move |record| record.is_write().then_some(Fault::Delay(slow)))));
    let launch = fixture.operator().consul(&proxy.addr()).switch("--leader-election");
    let operator = launch.flag("--lease-namespace", fixture.namespace.name()).ready().await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.namespace.force_delete(&pods[1].name).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    for told in [LOST, "a write got no answer", "writes are paused"] {
        ensure!(!operator.log().contains(told), "{told}:\n{}", operator.log());
    }
    Ok(())
}

pub(crate) async fn a_lead_lost_for_a_moment(fixture: &Fixture) -> Result<()> {
    let mut pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let launch = fixture.operator().consul(&proxy.addr()).switch("--leader-election").without_resyncs();
    let operator = launch.flag("--lease-namespace", fixture.namespace.name()).ready().await?;
    wait::until("it leads", SOON, || async { Ok(leads(&operator).await?.then_some(())) }).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;

    // Somebody else has the Lease for a moment, and writes nothing to Consul.
    proxy.clear();
    let lease = leases(fixture).list(&ListParams::default()).await?.items.remove(0).name_any();
    let taken = json!({ "spec": { "holderIdentity": "another", "leaseDurationSeconds": 1, "acquireTime": null } });
    leases(fixture).patch(&lease, &PatchParams::default(), &Patch::Merge(taken)).await?;
    let regained = "Lictor continues without reading Consul again";
    wait::until("it leads again", SOON, || async { Ok(operator.log().contains(regained).then_some(())) }).await?;
    ensure!(operator.log().contains(LOST), "it did not lose the lead");
    pods.push(fixture.web_pod("web-2", "a").await?);
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;
    let marker = format!("/v1/catalog/node-services/lictor-{}", fixture.cluster);
    let read: Vec<Record> =
        proxy.records().into_iter().filter(|record| !record.is_write() && record.path != marker).collect();
    ensure!(read.is_empty(), "it read Consul again: {read:?}");

    // Another one that does act raises the term.
    let second = Replica::start(fixture, 1).await?;
    operator.process().signal("STOP")?;
    second.until_it_leads().await?;
    let acted = "read what Consul holds";
    wait::until("the other one acts", SOON, || async { Ok(second.operator.log().contains(acted).then_some(())) })
        .await?;
    operator.process().signal("CONT")?;
    second.operator.kill()?;
    wait::until("it leads a third time", SOON, || async { Ok(leads(&operator).await?.then_some(())) }).await?;
    pods.push(fixture.web_pod("web-3", "b").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    ensure!(operator.log().contains("Lictor reads all registrations again"), "it went on with what it knew");
    Ok(())
}

pub(crate) async fn one_leads_where_kubernetes_is_slow(fixture: &Fixture) -> Result<()> {
    let mut pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let slow = |millis| listening.rule(move |_| Some(Way::Late(Duration::from_millis(millis))));
    // With the default of 4 s, which can be kept where a request takes less than 2.66 s: with some to spare for a busy
    // machine.
    slow(2000);
    let first = behind(fixture, &listening, "default").ready().await?;
    wait::until("it leads", SOON, || async { Ok(leads(&first).await?.then_some(())) }).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    first.terminate(SOON).await?;
    wait::until("the Lease is nobody's", SOON, || async { Ok(holder(fixture).await?.is_empty().then_some(())) })
        .await?;

    // So slow that renewals have to overlap: a Lease of 9 s can be kept where a request takes less than 6 s.
    slow(4000);
    let first = behind(fixture, &listening, "first").flag("--lease-duration", "9s").ready().await?;
    wait::until("it leads", SOON, || async { Ok(leads(&first).await?.then_some(())) }).await?;
    let second = behind(fixture, &listening, "second").flag("--lease-duration", "9s").ready().await?;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(18) {
        let acts = (leads(&first).await?, leads(&second).await?);
        ensure!(acts == (true, false), "who acts: {acts:?}");
        let named = holder(fixture).await?;
        ensure!(named.starts_with("first_"), "the Lease names {named:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pods.push(fixture.web_pod("web-2", "a").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    ensure!(!first.log().contains(LOST), "it lost the lead");

    // Too slow for anybody: nobody acts, and nobody is named. What is registered stays.
    slow(7000);
    for operator in [&first, &second] {
        wait_not_ready(operator, "raise --lease-duration").await?;
    }
    wait::until("the Lease is nobody's", SOON, || async { Ok(holder(fixture).await?.is_empty().then_some(())) })
        .await?;
    ensure!(!leads(&first).await? && !leads(&second).await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    slow(0);
    pods.push(fixture.web_pod("web-3", "b").await?);
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    Ok(())
}

pub(crate) async fn a_long_list_costs_no_lead(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    // Longer than the Lease holds without a renewal.
    let long = Duration::from_secs(6);
    let kinds = ["consulservices", "services", "endpointslices", "nodes", "pods"];
    listening.rule(move |look| {
        let list = look.is_some_and(|look| !look.is_watch && kinds.contains(&look.kind.as_str()));
        list.then_some(Way::LateBody(long))
    });
    let operator = behind(fixture, &listening, "first").start()?;
    wait::until("the Lease names it", SOON, || async {
        Ok(holder(fixture).await?.starts_with("first_").then_some(()))
    })
    .await?;
    let begun = Instant::now();
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    ensure!(begun.elapsed() > long, "the lists were not held back");
    operator.wait_ready(SOON).await?;
    ensure!(leads(&operator).await? && holder(fixture).await?.starts_with("first_"));
    ensure!(!operator.log().contains(LOST), "a list cost the lead:\n{}", operator.log());
    Ok(())
}

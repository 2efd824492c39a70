//! A name in Consul passes from one namespace's resource to another's, and somebody asks for it all the time.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use lictor_testbed::{Fault, Instance, NewEndpoint, Proxy, Record, TestNamespace, wait};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::fixture::{Fixture, SOON, apply, conditions, resources, wait_for_condition};
use crate::launch::Launch;
use crate::reader::looked;

/// How often Consul is asked.
const EVERY: Duration = Duration::from_millis(10);

/// How long Consul takes for a write that brings something: a removal that does not wait for it is there first.
const SLOWLY: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(15), Duration::from_millis(45)];

/// What our namespace has behind its Service `web`, and the other one.
const OURS: [&str; 2] = ["10.1.1.1", "10.1.1.2"];
const THEIRS: [&str; 2] = ["10.1.2.1", "10.1.2.2"];

/// Both namespaces, each with a Service `web`. Of two resources `web`, ours comes first by its key.
struct Two<'a> {
    fixture: &'a Fixture,
    other: Arc<TestNamespace>,
    theirs: Api<DynamicObject>,
}

impl<'a> Two<'a> {
    async fn lay(fixture: &'a Fixture) -> Result<Self> {
        let other = fixture.other_namespace("z").await?;
        for (namespace, addresses) in [(&fixture.namespace, OURS), (&*other, THEIRS)] {
            namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
            slice(namespace, &addresses).await?;
        }
        let theirs = resources(&other);
        Ok(Self { fixture, other, theirs })
    }

    fn operator(&self, consul: &str) -> Launch<'a> {
        self.fixture.operator().flag("--namespace", self.other.name()).consul(consul)
    }

    async fn apply_theirs(&self, more: Value) -> Result<()> {
        apply(&self.theirs, "web", &self.fixture.spec(more)).await
    }

    async fn wait_for(&self, addresses: &[&str]) -> Result<()> {
        let are = |found: &[Instance]| {
            let found: BTreeSet<&str> = found.iter().map(|instance| &*instance.address).collect();
            found == addresses.iter().copied().collect()
        };
        let what = format!("just {addresses:?}");
        self.fixture.consul().wait_for(&self.fixture.service, &what, are, SOON).await.map(drop)
    }

    async fn wait_for_their_conflict(&self) -> Result<()> {
        wait_for_condition(&self.theirs, "web", "Accepted", "False", "NameConflict").await.map(drop)
    }

    /// Does something after which the name has `after` behind it, and not `before` any more. Whoever asks meanwhile finds
    /// all of the one or all of the other.
    async fn watched(
        &self,
        what: &str,
        (before, after): (&[&str], &[&str]),
        act: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let reader = Reader::new(self.fixture);
        let through = async {
            act.await?;
            self.wait_for(after).await?;
            looked(&reader.looks).await
        };
        tokio::select! {
            done = through => done?,
            gap = reader.gap(before, after) => bail!("{what}: {}", gap?),
        }
        println!("{what}: {} looks, {} living at least, no gap", reader.looks.get(), reader.fewest.get());
        Ok(())
    }
}

/// Somebody who asks for the scenario's service.
struct Reader {
    url: String,
    looks: Cell<usize>,
    fewest: Cell<usize>,
}

impl Reader {
    fn new(fixture: &Fixture) -> Self {
        let url = format!("{}/v1/health/service/{}?passing", fixture.consul_address(), fixture.service);
        Self { url, looks: Cell::new(0), fewest: Cell::new(usize::MAX) }
    }

    /// Asks until what is passing is neither all that it was nor all that it will be; says how long that lasts.
    async fn gap(&self, before: &[&str], after: &[&str]) -> Result<String> {
        let client = reqwest::Client::new();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gap: Option<(Instant, BTreeSet<String>)> = None;
        loop {
            ticks.tick().await;
            let answer = client.get(&self.url).send().await?.error_for_status()?;
            let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
            let address = |entry: &Value| entry["Service"]["Address"].as_str().map(str::to_owned);
            let found: BTreeSet<String> = answer.as_array().context("not a list")?.iter().filter_map(address).collect();
            self.looks.set(self.looks.get() + 1);
            self.fewest.set(self.fewest.get().min(found.len()));
            let is_whole = [before, after].iter().any(|all| all.iter().all(|address| found.contains(*address)));
            match (&gap, is_whole) {
                (None, false) => gap = Some((Instant::now(), found)),
                (Some((since, first)), true) => {
                    let lasted = since.elapsed();
                    return Ok(format!("at look {} there was only {first:?}, for {lasted:?}", self.looks.get()));
                }
                (None, true) | (Some(_), false) => {}
            }
        }
    }
}

async fn slice(namespace: &TestNamespace, addresses: &[&str]) -> Result<()> {
    let endpoints =
        addresses.iter().map(|address| Ok(NewEndpoint::new(address.parse()?))).collect::<Result<Vec<_>>>()?;
    namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await.map(drop)
}

/// Whether a write makes or changes an instance.
fn brings(record: &Record) -> bool {
    let sets = || String::from_utf8_lossy(&record.body).contains("\"Verb\":\"set\"");
    record.is_write() && !record.path.contains("/deregister") && (record.path != "/v1/txn" || sets())
}

fn removes(record: &Record) -> bool {
    let body = || String::from_utf8_lossy(&record.body).into_owned();
    let of_service = |body: String| body.contains("\"Verb\":\"delete\"") || body.contains("\"Verb\":\"delete-cas\"");
    record.path.contains("/deregister") || record.path == "/v1/txn" && of_service(body())
}

/// Has what comes take its time from now on, and what only goes not.
fn slow_down(proxy: &Proxy) {
    let turn = AtomicUsize::new(0);
    let slowly = move || Fault::Delay(SLOWLY[turn.fetch_add(1, Ordering::Relaxed) % SLOWLY.len()]);
    proxy.set_fault(Fault::Rule(Arc::new(move |record| brings(record).then(&slowly))));
}

async fn wait_let_go(resources: &Api<DynamicObject>) -> Result<()> {
    wait::until("the resource is let go", SOON, || async {
        let found = resources.get_opt("web").await?;
        let held = found.is_some_and(|web| web.metadata.finalizers.is_some_and(|all| !all.is_empty()));
        Ok((!held).then_some(()))
    })
    .await
}

pub(crate) async fn a_name_changes_hands_without_a_gap(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let running = two.operator(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    fixture.wait_ready("web").await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    slow_down(&proxy);

    two.watched("a holder is deleted", (&OURS, &THEIRS), fixture.delete("web")).await?;
    fixture.wait_gone("web").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;

    fixture.apply_web(json!({})).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    let elsewhere = fixture.service_named("elsewhere");
    let renames = two.apply_theirs(json!({ "name": elsewhere }));
    two.watched("a holder is renamed", (&THEIRS, &OURS), renames).await?;
    fixture.wait_flawless("web").await?;

    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    let leaves = fixture.apply_web(json!({ "class": "another" }));
    two.watched("a holder gets another class", (&OURS, &THEIRS), leaves).await?;
    wait_let_go(&fixture.resources()).await?;
    let status = fixture.resources().get("web").await?.data.get("status").cloned();
    ensure!(status.is_none(), "it was let go with what was said of it: {status:?}");

    // While nobody is there.
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    running.kill()?;
    two.theirs.delete("web", &kube::api::DeleteParams::default()).await?;
    let starts = async { two.operator(&proxy.addr()).ready().await.map(drop) };
    two.watched("a holder was deleted meanwhile", (&THEIRS, &OURS), starts).await?;
    wait_let_go(&two.theirs).await?;
    fixture.wait_flawless("web").await
}

pub(crate) async fn a_hand_over_survives_a_crash(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let running = two.operator(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    fixture.wait_ready("web").await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;

    // What would remove anything never arrives; so both are there when the process dies.
    proxy.set_fault(Fault::Rule(Arc::new(|record| removes(record).then_some(Fault::Refuse))));
    let both: Vec<&str> = OURS.into_iter().chain(THEIRS).collect();
    fixture.delete("web").await?;
    two.wait_for(&both).await?;
    ensure!(fixture.resources().get_opt("web").await?.is_some(), "it was gone before its instances were");
    running.kill()?;
    proxy.set_fault(Fault::None);
    let starts = async { two.operator(&proxy.addr()).ready().await.map(drop) };
    two.watched("a crash in between", (&both, &THEIRS), starts).await?;
    fixture.wait_gone("web").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await.map(drop)
}

pub(crate) async fn what_cannot_come_is_not_waited_for(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let running = two.operator(&fixture.consul_address()).ready().await?;
    for what in ["unresolved", "paused"] {
        two.apply_theirs(json!({ "source": { "service": { "name": "nowhere" } } })).await?;
        if what == "paused" {
            let annotation = json!({ "metadata": { "annotations": { "lictor.dev/paused": "true" } } });
            two.theirs.patch("web", &PatchParams::default(), &Patch::Merge(annotation)).await?;
            two.apply_theirs(json!({})).await?;
        }
        fixture.wait_for_a_look(&running).await?;
        // A newcomer of that kind reserves nothing, though it is the older one.
        fixture.apply_web(json!({})).await?;
        two.wait_for(&OURS).await?;
        fixture.wait_flawless("web").await?;
        let begun = Instant::now();
        fixture.delete("web").await?;
        fixture.wait_gone("web").await?;
        ensure!(begun.elapsed() < Duration::from_secs(15), "{what}: it was waited for");
        two.wait_for(&[]).await?;
        two.theirs.delete("web", &kube::api::DeleteParams::default()).await?;
        wait::until("the other one is gone", SOON, || async {
            Ok(two.theirs.get_opt("web").await?.is_none().then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Writes a status as an earlier Lictor would have left it.
async fn write_status(resources: &Api<DynamicObject>, generation: i64, service: &str) -> Result<()> {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let kinds = ["Ready", "Accepted", "Resolved", "Registered"];
    let status = json!({ "status": {
        "observedGeneration": generation, "serviceName": service, "conditions": kinds.map(condition),
    } });
    resources.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

pub(crate) async fn an_old_status_takes_no_name(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let consul = fixture.consul_address();
    let running = two.operator(&consul).ready().await?;
    fixture.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    fixture.wait_ready("web").await?;
    // Ours is given to another class, and theirs has the name rightfully.
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    fixture.apply_web(json!({ "class": "another" })).await?;
    two.wait_for(&THEIRS).await?;
    wait_let_go(&fixture.resources()).await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;

    // It comes back while nobody is there, the older one, and still says what was once said of it.
    running.kill()?;
    fixture.apply_web(json!({})).await?;
    write_status(&fixture.resources(), 1, &fixture.service).await?;
    let mut here: Vec<&str> = THEIRS.to_vec();
    for (restart, replaced) in ["10.1.2.3", "10.1.2.4"].into_iter().enumerate() {
        // A pod of theirs is replaced meanwhile.
        let before = here.clone();
        here[0] = replaced;
        slice(&two.other, &here).await?;
        let kept = [before[1]];
        let starts = async {
            let running = two.operator(&consul).ready().await?;
            two.wait_for(&here).await?;
            fixture.wait_for_a_look(&running).await?;
            running.kill()?;
            Ok(())
        };
        two.watched(&format!("restart {restart}"), (&kept, &here), starts).await?;
    }
    let running = two.operator(&consul).ready().await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;
    // With a status that claims to be about this very spec it fares no better.
    running.kill()?;
    let generation = fixture.resources().get("web").await?.metadata.generation.context("no generation")?;
    write_status(&fixture.resources(), generation, &fixture.service).await?;
    let running = two.operator(&consul).ready().await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    fixture.wait_for_a_look(&running).await?;
    two.wait_for(&here).await
}

pub(crate) async fn a_restore_takes_no_name(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let consul = fixture.consul_address();
    let running = two.operator(&consul).ready().await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for(&THEIRS).await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    running.kill()?;

    // All resources are made anew, in the same second, with no status; by their keys, ours would come first.
    let ages = async || -> Result<Vec<_>> {
        let mut ages = Vec::new();
        for resources in [fixture.resources(), two.theirs.clone()] {
            let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
            if resources.get_opt("web").await?.is_some() {
                resources.patch("web", &PatchParams::default(), &without).await?;
                resources.delete("web", &kube::api::DeleteParams::default()).await?;
            }
        }
        fixture.apply_web(json!({})).await?;
        two.apply_theirs(json!({})).await?;
        for resources in [fixture.resources(), two.theirs.clone()] {
            ages.push(resources.get("web").await?.metadata.creation_timestamp.context("no creationTimestamp")?.0);
        }
        Ok(ages)
    };
    wait::until("both are of one age", SOON, || async {
        let ages = ages().await?;
        Ok((ages[0] == ages[1]).then_some(()))
    })
    .await?;
    let restored = two.theirs.get("web").await?;
    ensure!(conditions(&restored).next().is_none(), "restored with a status");
    let here = [THEIRS[1], "10.1.2.3"];
    slice(&two.other, &here).await?;
    let starts = async { two.operator(&consul).ready().await.map(drop) };
    two.watched("a restore", (&THEIRS[1..], &here), starts).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await.map(drop)
}

pub(crate) async fn a_loser_follows_its_endpoints(fixture: &Fixture) -> Result<()> {
    let two = Two::lay(fixture).await?;
    let consul = fixture.consul_address();
    let running = two.operator(&consul).ready().await?;
    fixture.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    let own = fixture.service_named("own");
    two.apply_theirs(json!({ "name": own })).await?;
    let has = async |addresses: &[&str]| {
        let are = |found: &[Instance]| {
            found.len() == addresses.len() && found.iter().all(|instance| addresses.contains(&&*instance.address))
        };
        fixture.consul().wait_for(&own, &format!("just {addresses:?}"), are, SOON).await.map(drop)
    };
    has(&THEIRS).await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;
    // It wants our name, and does not get it; what it has follows its endpoints, also after restarts.
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    slice(&two.other, &[THEIRS[1], "10.1.2.3"]).await?;
    has(&[THEIRS[1], "10.1.2.3"]).await?;
    let mut running = running;
    for addresses in [["10.1.2.3", "10.1.2.4"], ["10.1.2.4", "10.1.2.5"]] {
        running.kill()?;
        slice(&two.other, &addresses).await?;
        running = two.operator(&consul).ready().await?;
        has(&addresses).await?;
        two.wait_for_their_conflict().await?;
    }
    // Down to nothing and back.
    slice(&two.other, &[]).await?;
    has(&[]).await?;
    slice(&two.other, &["10.1.2.6"]).await?;
    has(&["10.1.2.6"]).await?;
    two.wait_for(&OURS).await
}

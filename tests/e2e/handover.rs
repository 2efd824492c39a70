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

use crate::bed::{Bed, SOON, apply, conditions, resources, wait_for_condition};
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
    bed: &'a Bed,
    other: Arc<TestNamespace>,
    theirs: Api<DynamicObject>,
}

impl<'a> Two<'a> {
    async fn lay(bed: &'a Bed) -> Result<Self> {
        let other = bed.other_namespace("z").await?;
        for (namespace, addresses) in [(&bed.namespace, OURS), (&*other, THEIRS)] {
            namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
            slice(namespace, &addresses).await?;
        }
        let theirs = resources(&other);
        Ok(Self { bed, other, theirs })
    }

    fn operator(&self, consul: &str) -> Launch<'a> {
        self.bed.operator().flag("--namespace", self.other.name()).consul(consul)
    }

    async fn apply_theirs(&self, more: Value) -> Result<()> {
        apply(&self.theirs, "web", &self.bed.spec(more)).await
    }

    async fn wait_for(&self, addresses: &[&str]) -> Result<()> {
        let are = |found: &[Instance]| {
            let found: BTreeSet<&str> = found.iter().map(|instance| &*instance.address).collect();
            found == addresses.iter().copied().collect()
        };
        let what = format!("just {addresses:?}");
        self.bed.consul().wait_for(&self.bed.service, &what, are, SOON).await.map(drop)
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
        let reader = Reader::new(self.bed);
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
    fn new(bed: &Bed) -> Self {
        let url = format!("{}/v1/health/service/{}?passing", bed.consul_address(), bed.service);
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

pub(crate) async fn a_name_changes_hands_without_a_gap(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let proxy = Proxy::start(&bed.consul_address()).await?;
    let running = two.operator(&proxy.addr()).ready().await?;
    bed.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    bed.wait_ready("web").await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    slow_down(&proxy);

    two.watched("a holder is deleted", (&OURS, &THEIRS), bed.delete("web")).await?;
    bed.wait_gone("web").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;

    bed.apply_web(json!({})).await?;
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    let elsewhere = bed.service_named("elsewhere");
    let renames = two.apply_theirs(json!({ "name": elsewhere }));
    two.watched("a holder is renamed", (&THEIRS, &OURS), renames).await?;
    bed.wait_flawless("web").await?;

    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    let leaves = bed.apply_web(json!({ "class": "another" }));
    two.watched("a holder gets another class", (&OURS, &THEIRS), leaves).await?;
    wait_let_go(&bed.resources()).await?;
    let status = bed.resources().get("web").await?.data.get("status").cloned();
    ensure!(status.is_none(), "it was let go with what was said of it: {status:?}");

    // While nobody is there.
    bed.apply_web(json!({})).await?;
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    running.kill()?;
    two.theirs.delete("web", &kube::api::DeleteParams::default()).await?;
    let starts = async { two.operator(&proxy.addr()).ready().await.map(drop) };
    two.watched("a holder was deleted meanwhile", (&THEIRS, &OURS), starts).await?;
    wait_let_go(&two.theirs).await?;
    bed.wait_flawless("web").await
}

pub(crate) async fn a_hand_over_survives_a_crash(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let proxy = Proxy::start(&bed.consul_address()).await?;
    let running = two.operator(&proxy.addr()).ready().await?;
    bed.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    bed.wait_ready("web").await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;

    // What would remove anything never arrives; so both are there when the process dies.
    proxy.set_fault(Fault::Rule(Arc::new(|record| removes(record).then_some(Fault::Refuse))));
    let both: Vec<&str> = OURS.into_iter().chain(THEIRS).collect();
    bed.delete("web").await?;
    two.wait_for(&both).await?;
    ensure!(bed.resources().get_opt("web").await?.is_some(), "it was gone before its instances were");
    running.kill()?;
    proxy.set_fault(Fault::None);
    let starts = async { two.operator(&proxy.addr()).ready().await.map(drop) };
    two.watched("a crash in between", (&both, &THEIRS), starts).await?;
    bed.wait_gone("web").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await.map(drop)
}

pub(crate) async fn what_cannot_come_is_not_waited_for(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let running = two.operator(&bed.consul_address()).ready().await?;
    for what in ["unresolved", "paused"] {
        two.apply_theirs(json!({ "source": { "service": { "name": "nowhere" } } })).await?;
        if what == "paused" {
            let annotation = json!({ "metadata": { "annotations": { "lictor.dev/paused": "true" } } });
            two.theirs.patch("web", &PatchParams::default(), &Patch::Merge(annotation)).await?;
            two.apply_theirs(json!({})).await?;
        }
        bed.wait_for_a_look(&running).await?;
        // A newcomer of that kind reserves nothing, though it is the older one.
        bed.apply_web(json!({})).await?;
        two.wait_for(&OURS).await?;
        bed.wait_flawless("web").await?;
        let begun = Instant::now();
        bed.delete("web").await?;
        bed.wait_gone("web").await?;
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

pub(crate) async fn an_old_status_takes_no_name(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let consul = bed.consul_address();
    let running = two.operator(&consul).ready().await?;
    bed.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    bed.wait_ready("web").await?;
    // Ours is given to another class, and theirs has the name rightfully.
    two.apply_theirs(json!({})).await?;
    two.wait_for_their_conflict().await?;
    bed.apply_web(json!({ "class": "another" })).await?;
    two.wait_for(&THEIRS).await?;
    wait_let_go(&bed.resources()).await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;

    // It comes back while nobody is there, the older one, and still says what was once said of it.
    running.kill()?;
    bed.apply_web(json!({})).await?;
    write_status(&bed.resources(), 1, &bed.service).await?;
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
            bed.wait_for_a_look(&running).await?;
            running.kill()?;
            Ok(())
        };
        two.watched(&format!("restart {restart}"), (&kept, &here), starts).await?;
    }
    let running = two.operator(&consul).ready().await?;
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;
    // With a status that claims to be about this very spec it fares no better.
    running.kill()?;
    let generation = bed.resources().get("web").await?.metadata.generation.context("no generation")?;
    write_status(&bed.resources(), generation, &bed.service).await?;
    let running = two.operator(&consul).ready().await?;
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    bed.wait_for_a_look(&running).await?;
    two.wait_for(&here).await
}

pub(crate) async fn a_restore_takes_no_name(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let consul = bed.consul_address();
    let running = two.operator(&consul).ready().await?;
    two.apply_theirs(json!({})).await?;
    two.wait_for(&THEIRS).await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await?;
    bed.apply_web(json!({})).await?;
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    running.kill()?;

    // All resources are made anew, in the same second, with no status; by their keys, ours would come first.
    let ages = async || -> Result<Vec<_>> {
        let mut ages = Vec::new();
        for resources in [bed.resources(), two.theirs.clone()] {
            let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
            if resources.get_opt("web").await?.is_some() {
                resources.patch("web", &PatchParams::default(), &without).await?;
                resources.delete("web", &kube::api::DeleteParams::default()).await?;
            }
        }
        bed.apply_web(json!({})).await?;
        two.apply_theirs(json!({})).await?;
        for resources in [bed.resources(), two.theirs.clone()] {
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
    bed.wait_for_condition("web", "Accepted", "False", "NameConflict").await?;
    wait_for_condition(&two.theirs, "web", "Ready", "True", "Ready").await.map(drop)
}

pub(crate) async fn a_loser_follows_its_endpoints(bed: &Bed) -> Result<()> {
    let two = Two::lay(bed).await?;
    let consul = bed.consul_address();
    let running = two.operator(&consul).ready().await?;
    bed.apply_web(json!({})).await?;
    two.wait_for(&OURS).await?;
    let own = bed.service_named("own");
    two.apply_theirs(json!({ "name": own })).await?;
    let has = async |addresses: &[&str]| {
        let are = |found: &[Instance]| {
            found.len() == addresses.len() && found.iter().all(|instance| addresses.contains(&&*instance.address))
        };
        bed.consul().wait_for(&own, &format!("just {addresses:?}"), are, SOON).await.map(drop)
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

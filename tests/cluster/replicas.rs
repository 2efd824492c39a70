//! Two replicas from the chart, of which one acts: killed in turn, told to stop, and stopped past its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Patch, PatchParams};
use lictor_testbed::{Mode, Process, Proxy, process, wait};
use serde_json::json;

use crate::environment::{Environment, SOON, until};
use crate::release::{DEFAULT_LEASE, Release};
use crate::shop::{App, Shop, Watch};

/// Kills in `make test`; `LICTOR_KILLS` says how many others.
const KILLS: usize = 3;

/// What is told of a write after a kill.
const PROMISED: Duration = Duration::from_secs(5);

/// Under change all the time: nothing that lives is removed, and the next write comes soon.
pub(crate) async fn killed_in_turn(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let kills = std::env::var("LICTOR_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let release = Release::installed(cluster, &format!("kills-{}", mode.as_str()), mode, &[DEFAULT_LEASE]).await?;
    let shop = Shop::open(&release, "kills", &App::default()).await?;
    let done = AtomicBool::new(false);
    let tested = async {
        shop.wait_for_all(3).await?;
        let watch = Watch::new();
        let in_turn = async {
            let mut gaps = Vec::new();
            for _ in 0..kills {
                let killed = leader(&release).await?;
                gaps.push(kill(&killed, &shop).await?);
                // Another pod in its place: a container that was killed often is started again later and later.
                release.kubectl(&["delete", "pod", &killed]).await?;
                let deployment = format!("deployment/{}", release.full_name());
                release.kubectl(&["rollout", "status", &deployment, "--timeout=60s"]).await?;
            }
            done.store(true, Ordering::SeqCst);
            anyhow::Ok(gaps)
        };
        let gaps = watch.during(&shop, 3, async { tokio::try_join!(in_turn, keep_changing(&shop, &done)) });
        let (mut gaps, ()) = Box::pin(gaps).await?;
        gaps.sort();
        println!("next write after a kill, {} mode: {gaps:?}", mode.as_str());
        let late = gaps.iter().filter(|gap| **gap > PROMISED).count();
        println!("{late} of {kills} took longer than {PROMISED:?}");
        Ok(())
    };
    let tested = shop.close(Box::pin(tested).await).await;
    release.close(tested).await
}

/// Kills the replica that acts, and gives how long it takes until Consul has a newer version of the tags.
async fn kill(leader: &str, shop: &Shop<'_>) -> Result<Duration> {
    wait::until("changes", SOON, || async { Ok((version(shop).await? > 0).then_some(())) }).await?;
    let killed = Instant::now();
    signal(leader, "KILL").await?;
    // What the old one had sent may still arrive, as far as a look takes.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let last = version(shop).await?;
    wait::until("the next write", SOON, || async { Ok((version(shop).await? > last).then_some(())) }).await?;
    Ok(killed.elapsed())
}

/// Waits for a pod that acts, and gives its name.
async fn leader(release: &Release<'_>) -> Result<String> {
    wait::until("a leader", SOON, || release.leader()).await
}

/// Waits until another pod acts, and gives its name.
async fn another_than(former: &str, release: &Release<'_>) -> Result<String> {
    let other = || async { Ok(release.leader().await?.filter(|leader| leader != former)) };
    wait::until("another leader", SOON, other).await
}

/// Edits a tag all the time.
async fn keep_changing(shop: &Shop<'_>, done: &AtomicBool) -> Result<()> {
    let resources = shop.resources();
    let mut version = 1;
    while !done.load(Ordering::SeqCst) {
        let patch = Patch::Merge(json!({ "spec": { "tags": [format!("v{version}")] } }));
        resources.patch("user", &PatchParams::default(), &patch).await?;
        version += 1;
        // The pace of the changes, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The version that all instances have reached; 0 for none.
async fn version(shop: &Shop<'_>) -> Result<u64> {
    let found = shop.instances().await?;
    let of = |tags: &[String]| tags.first().and_then(|tag| tag.strip_prefix('v')?.parse().ok()).unwrap_or(0);
    Ok(found.iter().map(|instance| of(&instance.tags)).min().unwrap_or(0))
}

/// A replica that is told to stop hands over at once: as their own logs have it, and as `kubectl` sees it, with what the
/// kubelet takes to tell it.
pub(crate) async fn told_to_stop(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let release = Release::installed(cluster, &format!("stops-{}", mode.as_str()), mode, &[DEFAULT_LEASE]).await?;
    let tested = async {
        let leader = leader(&release).await?;
        // Its log goes with it.
        let log = cluster.work_dir().join(format!("{leader}.log"));
        let follow = [&format!("--namespace={}", release.name), "logs", "--follow", &leader];
        let _following = Process::spawn("kubectl logs", cluster.kubectl().command(&follow), &log)?;
        wait::until("its log", SOON, || async {
            Ok(std::fs::read_to_string(&log)?.contains("became the leader").then_some(()))
        })
        .await?;

        let begun = Instant::now();
        release.kubectl(&["delete", "pod", &leader, "--wait=false"]).await?;
        let next = another_than(&leader, &release).await?;
        let all = begun.elapsed();
        let told =
            wait::until("its last words", SOON, || async { Ok(time_of(&std::fs::read_to_string(&log)?, "SIGTERM")) });
        let (told, next) = (told.await?, release.kubectl(&["logs", &next]).await?);
        let leads = time_of(&next, "became the leader").context("it does not say that it leads")?;
        println!(
            "handover, {} mode: {:#} from SIGTERM to the next one's lead, {all:?} from `kubectl delete pod` on",
            mode.as_str(),
            leads.duration_since(told)
        );
        Ok(())
    };
    let tested = Box::pin(tested).await;
    release.close(tested).await
}

/// The time at the beginning of the first line of a log that has these words.
fn time_of(log: &str, words: &str) -> Option<jiff::Timestamp> {
    log.lines().find(|line| line.contains(words))?.split_whitespace().next()?.parse().ok()
}

/// One that was stopped past its time, and wakes, begins no request.
pub(crate) async fn asleep_past_its_time(environment: &Environment, mode: Mode) -> Result<()> {
    let cluster = environment.cluster().await?;
    let (address, upstream) = (cluster.own()?.host_address(), cluster.consul_address().to_owned());
    let proxy = cluster.in_background(async move { Proxy::start_at(address, &upstream).await }).await?;
    let way = format!("consul.address={}", proxy.addr());
    let release =
        Release::installed(cluster, &format!("sleep-{}", mode.as_str()), mode, &[&way, DEFAULT_LEASE]).await?;
    let shop = Shop::open(&release, "sleep", &App::default()).await?;
    let tested = slept(&release, &shop, &proxy).await;
    let tested = shop.close(tested).await;
    release.close(tested).await
}

async fn slept(release: &Release<'_>, shop: &Shop<'_>, proxy: &Proxy) -> Result<()> {
    shop.wait_for_all(3).await?;
    let leader = leader(release).await?;
    let address = ["get", "pod", &leader, "--output=jsonpath={.status.podIP}"];
    let address: std::net::IpAddr = release.kubectl(&address).await?.parse()?;
    let by_it = || proxy.records().iter().filter(|record| record.from == address).count();
    ensure!(by_it() > 0, "the proxy does not see who asks");

    signal(&leader, "STOP").await?;
    another_than(&leader, release).await?;
    // Something to do for whoever thinks that it leads.
    shop.namespace.kubectl(&["scale", "deployment/user", "--replicas=4"]).await?;
    shop.wait_for_all(4).await?;
    proxy.clear();
    signal(&leader, "CONT").await?;
    until("it knows that it leads no more", || async {
        let metrics = release.ask(&leader, "/metrics").await?;
        Ok(metrics.lines().any(|line| line == "lictor_leader 0").then_some(()))
    })
    .await?;
    shop.namespace.kubectl(&["scale", "deployment/user", "--replicas=5"]).await?;
    shop.wait_for_all(5).await?;
    ensure!(by_it() == 0, "the sleeper asked Consul: {:#?}", proxy.records());
    Ok(())
}

/// Sends a signal to the program of a pod: on nodes of our own that is a process of this machine.
async fn signal(pod: &str, name: &str) -> Result<()> {
    let pid = process_of(pod)?.to_string();
    process::run(tokio::process::Command::new("kill").args(["-s", name, &pid])).await.map(drop)
}

/// The process whose host has the name of this pod, and which runs the operator.
fn process_of(pod: &str) -> Result<u32> {
    let host = format!("HOSTNAME={pod}");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
        let (environment, arguments) = (read("environ"), read("cmdline"));
        let is = |bytes: &[u8], wanted: &str| bytes.split(|byte| *byte == 0).any(|part| part == wanted.as_bytes());
        if is(&environment, &host) && is(&arguments, "run") {
            return Ok(pid);
        }
    }
    bail!("no process of {pod}")
}

//! Three Consul servers that fail under change, and two clusters in one Consul through all of it.
//!
//! Each fault is followed at once by a change of each cluster. It is over when Consul has both changes, and every server
//! that runs agrees. Meanwhile a reader asks the servers for what lives all the time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, NewEndpoint, Programs, TestNamespace, wait};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::fixture::{Fixture, SERVER_FAULTS, SOON, apply, resources};

/// For Consul to elect a leader and for Lictor to go on, on a machine that is busy.
const AGAIN: Duration = Duration::from_secs(60);

/// The longest time that one server is asked; another one may know better.
const ANSWER: Duration = Duration::from_secs(5);

/// The time after which a leader takes a server in again that was taken out is a minute.
const TAKEN_IN_AGAIN: Duration = Duration::from_secs(90);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The leader is killed, and starts again afterwards.
    LeaderKilled,
    /// Each server is stopped and started, one after the other.
    RestartedInTurn,
    /// One that does not lead is taken out: it answers that there is no leader.
    CutOff,
    /// A snapshot of before a change is restored.
    Restored,
}

const FAULTS: [Fault; 4] = [Fault::LeaderKilled, Fault::RestartedInTurn, Fault::CutOff, Fault::Restored];

/// Three servers of one datacenter.
struct Three<'a> {
    servers: [&'a Consul; 3],
    /// Those that a test has stopped.
    stopped: RefCell<BTreeSet<usize>>,
}

impl Three<'_> {
    fn running(&self) -> impl Iterator<Item = &Consul> {
        let stopped = self.stopped.borrow().clone();
        self.servers.iter().enumerate().filter(move |(place, _)| !stopped.contains(place)).map(|(_, server)| *server)
    }

    fn stop(&self, place: usize) {
        self.stopped.borrow_mut().insert(place);
    }

    async fn start(&self, place: usize) -> Result<()> {
        self.servers[place].start_again().await?;
        self.stopped.borrow_mut().remove(&place);
        Ok(())
    }

    /// The servers of Raft, as one that runs knows them.
    async fn peers(&self) -> Result<Vec<Value>> {
        let mut last = None;
        for server in self.running() {
            match timeout(ANSWER, server.api().get("/v1/operator/raft/configuration"))
                .await
                .unwrap_or_else(|late| Err(late.into()))
            {
                Ok(raft) => return Ok(raft["Servers"].as_array().cloned().unwrap_or_default()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no server runs")?)
    }

    /// Waits until three servers vote and all of them know who leads.
    async fn calm(&self) -> Result<()> {
        wait::until("three servers that vote", TAKEN_IN_AGAIN, || async {
            let peers = self.peers().await?;
            ensure!(peers.len() == 3 && peers.iter().all(|server| server["Voter"] == true), "{peers:?}");
            for server in self.running() {
                let leader = server.api().get("/v1/status/leader").await?;
                ensure!(leader.as_str().is_some_and(|leader| !leader.is_empty()), "{} has none", server.node_name());
            }
            Ok(Some(()))
        })
        .await
    }

    /// The place of the server that leads, and of one that does not.
    async fn leader(&self) -> Result<(usize, usize)> {
        let peers = self.peers().await?;
        let leads = peers.iter().find(|server| server["Leader"] == true).context("nobody leads")?;
        let place = self.servers.iter().position(|server| leads["Node"] == server.node_name()).context("a stranger")?;
        Ok((place, (place + 1) % 3))
    }
}

/// Another cluster in the same Consul, with an endpoint by hand.
struct Second<'a> {
    namespace: &'a TestNamespace,
    service: String,
}

impl Second<'_> {
    fn spec(&self, tag: &str) -> Value {
        json!({ "name": self.service, "source": { "service": { "name": "web" } }, "tags": [tag] })
    }

    async fn change(&self, tag: &str) -> Result<()> {
        apply(&resources(self.namespace), "web", &self.spec(tag)).await
    }

    async fn is_as(&self, consul: &ConsulApi, tag: &str) -> Result<bool> {
        let found = consul.instances(&self.service).await?;
        Ok(found.len() == 1 && found[0].tags == [tag] && found[0].status == "passing")
    }
}

/// Asks the servers all the time, each of which asks the leader; fails where one that answers lacks what lives. One that has just
/// started knows little by itself.
async fn looks(three: &Three<'_>, service: &str, living: &[String]) -> Result<usize> {
    let path = format!("/v1/health/service/{service}?passing");
    for looks in 0_usize.. {
        for server in three.running() {
            // One that is just going or coming does not answer.
            let Ok(Ok(found)) = timeout(ANSWER, server.api().get(&path)).await else { continue };
            let entries = found.as_array().into_iter().flatten();
            let found: BTreeSet<&str> = entries.filter_map(|entry| entry["Service"]["Address"].as_str()).collect();
            let missing = living.iter().find(|address| !found.contains(address.as_str()));
            ensure!(missing.is_none(), "at look {looks} {} lacks {missing:?}: {found:?}", server.node_name());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("it looked for ever")
}

/// How often each fault is made; `make test-long` makes each ten times.
fn rounds() -> usize {
    std::env::var(SERVER_FAULTS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

pub(crate) async fn three_servers_fail_under_change(fixture: &Fixture) -> Result<()> {
    let one = fixture.own_consul(ConsulOptions { persistent: true, ..ConsulOptions::default() }).await?;
    let joins = format!("bootstrap_expect = 0\nretry_join = [\"{}\"]\nretry_interval = \"1s\"", one.serf_addr());
    let joining = || ConsulOptions { persistent: true, extra_hcl: joins.clone(), ..ConsulOptions::default() };
    let programs: &Programs = fixture.programs;
    let (two, three) = tokio::try_join!(Consul::start(programs, joining()), Consul::start(programs, joining()))?;
    let three = Three { servers: [one, &two, &three], stopped: RefCell::default() };
    three.calm().await?;
    let all = three.servers.map(Consul::http_addr).join(",");

    let pods = fixture.web(2).await?;
    let living: Vec<String> = pods.iter().map(|pod| pod.ip.to_string()).collect();
    let operator = fixture.operator().consul(&all).ready().await?;
    fixture.apply_web(json!({})).await?;
    let namespace = fixture.other_namespace("second").await?;
    namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    namespace.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new([10, 2, 0, 1].into())]).await?;
    let second = Second { namespace: &namespace, service: fixture.service_named("second") };
    let other = fixture.operator().consul(&all).namespace(namespace.name());
    let other = other.set("--cluster-name", &format!("second-{}", fixture.cluster)).ready().await?;
    second.change("before").await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    let mut told = String::new();
    let faults = async {
        // It takes a minute until the leader takes one in again; another scenario has that once.
        for fault in FAULTS.into_iter().filter(|fault| rounds() > 1 || *fault != Fault::CutOff) {
            let mut took = Vec::new();
            for round in 0..rounds() {
                took.push(
                    happens(fixture, &three, &second, &living, fault, round)
                        .await
                        .with_context(|| format!("{fault:?}, round {round}"))?,
                );
            }
            took.sort();
            let (p50, max) = (took[took.len() / 2], took[took.len() - 1]);
            writeln!(told, "{fault:?}: true again after {p50:.1?} (p50), {max:.1?} (max of {})", took.len())?;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::select! {
        done = faults => done?,
        failed = looks(&three, &fixture.service, &living) => bail!(failed.err().context("it looked for ever")?),
    }
    println!("{told}");
    operator.wait_ready(SOON).await?;
    other.wait_ready(SOON).await?;
    fixture.wait_ready("web").await
}

/// Has a fault happen, and a change of each cluster right after it; answers how long it took until all was true again.
async fn happens(
    fixture: &Fixture,
    three: &Three<'_>,
    second: &Second<'_>,
    living: &[String],
    fault: Fault,
    round: usize,
) -> Result<Duration> {
    let tag = format!("{fault:?}-{round}").to_lowercase();
    let pod = format!("more-{tag}");
    let (leader, follower) = three.leader().await?;
    let snapshot = snapshot(three.servers[leader]).await?;
    let begun = Instant::now();
    match fault {
        Fault::LeaderKilled => {
            three.stop(leader);
            three.servers[leader].kill()?;
        }
        Fault::RestartedInTurn => {
            three.stop(follower);
            three.servers[follower].stop().await?;
        }
        Fault::CutOff => {
            let peers = three.peers().await?;
            let name = three.servers[follower].node_name();
            let id = peers.iter().find(|server| server["Node"] == name).context("the follower")?["ID"].clone();
            let id = id.as_str().context("its ID")?;
            three.servers[leader].api().delete(&format!("/v1/operator/raft/peer?id={id}")).await?;
        }
        Fault::Restored => {}
    }
    let more = fixture.web_pod(&pod, "a").await?;
    second.change(&tag).await?;
    let mut wanted: BTreeSet<String> = living.iter().cloned().collect();
    wanted.insert(more.ip.to_string());
    are_true(fixture, three, second, &wanted, &tag).await?;
    let mut took = begun.elapsed();
    match fault {
        Fault::LeaderKilled => three.start(leader).await?,
        Fault::RestartedInTurn => {
            three.start(follower).await?;
            for place in (0..3).filter(|place| *place != follower) {
                three.calm().await?;
                three.stop(place);
                three.servers[place].stop().await?;
                three.start(place).await?;
            }
        }
        Fault::CutOff => {}
        Fault::Restored => {
            let begun = Instant::now();
            restore(three.servers[leader], snapshot).await?;
            are_true(fixture, three, second, &wanted, &tag).await?;
            took = begun.elapsed();
        }
    }
    three.calm().await?;
    // What goes leaves all of them.
    fixture.namespace.force_delete(&pod).await?;
    wanted.remove(&more.ip.to_string());
    are_true(fixture, three, second, &wanted, &tag).await?;
    Ok(took)
}

/// Waits until a server that knows its leader has just these addresses, passing, and the second cluster's change.
async fn are_true(
    fixture: &Fixture,
    three: &Three<'_>,
    second: &Second<'_>,
    wanted: &BTreeSet<String>,
    tag: &str,
) -> Result<()> {
    wait::until(format!("just {wanted:?}, and {tag}"), AGAIN, || async {
        let mut last = None;
        for server in three.running() {
            let consul = server.api();
            let Ok(Ok(found)) = timeout(ANSWER, consul.instances(&fixture.service)).await else { continue };
            let passing = found.iter().filter(|instance| instance.status == "passing");
            let passing: BTreeSet<String> = passing.map(|instance| instance.address.clone()).collect();
            if passing == *wanted && found.len() == wanted.len() && second.is_as(&consul, tag).await.unwrap_or(false) {
                return Ok(Some(()));
            }
            last = Some(found);
        }
        bail!("there is {last:?}")
    })
    .await
}

async fn snapshot(server: &Consul) -> Result<Vec<u8>> {
    let request = reqwest::Client::new().get(format!("{}/v1/snapshot", server.http_addr())).timeout(AGAIN);
    Ok(request.send().await?.error_for_status()?.bytes().await?.to_vec())
}

async fn restore(server: &Consul, snapshot: Vec<u8>) -> Result<()> {
    let url = format!("{}/v1/snapshot", server.http_addr());
    reqwest::Client::new().put(url).timeout(AGAIN).body(snapshot).send().await?.error_for_status()?;
    Ok(())
}

//! Lictor that moves: to another Consul agent, and to a cluster that was built anew under the same name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, wait};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::bed::{Bed, SOON, metric};

/// How many of these instances are to be found as long as this lives: whoever asks every 10 ms keeps the fewest.
pub(crate) struct Reader {
    ends: Arc<AtomicBool>,
    task: JoinHandle<Result<(usize, usize)>>,
}

impl Reader {
    /// Asks one Consul for the passing instances of a service at these addresses.
    pub(crate) fn begin(consul: ConsulApi, service: &str, addresses: &[String]) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (wanted, service, over) = (BTreeSet::from_iter(addresses.to_vec()), service.to_owned(), Arc::clone(&ends));
        let task = tokio::spawn(async move {
            let (mut fewest, mut looks) = (usize::MAX, 0);
            while !over.load(Ordering::Relaxed) {
                let found = consul.get(&format!("/v1/health/service/{service}?passing")).await?;
                let found =
                    found.as_array().into_iter().flatten().filter_map(|entry| entry["Service"]["Address"].as_str());
                let found: BTreeSet<&str> = found.filter(|address| wanted.contains(*address)).collect();
                fewest = fewest.min(found.len());
                looks += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok((fewest, looks))
        });
        Self { ends, task }
    }

    /// The fewest of them that were found at any moment.
    pub(crate) async fn end(self) -> Result<usize> {
        self.ends.store(true, Ordering::Relaxed);
        let (fewest, looks) = self.task.await??;
        ensure!(looks > 10, "{looks} looks are too few for this to show something");
        Ok(fewest)
    }
}

/// The addresses and Consul nodes of what is passing.
async fn passing(consul: &ConsulApi, service: &str) -> Result<BTreeSet<(String, String)>> {
    let found = consul.get(&format!("/v1/health/service/{service}?passing")).await?;
    let of = |entry: &Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some((text(&entry["Service"]["Address"])?, text(&entry["Node"]["Node"])?))
    };
    Ok(found.as_array().into_iter().flatten().filter_map(of).collect())
}

/// Waits until just these addresses pass, each on one of these nodes.
async fn wait_for_places(consul: &ConsulApi, service: &str, addresses: &[&str], nodes: &[&str]) -> Result<()> {
    let wanted: BTreeSet<(String, String)> =
        addresses.iter().flat_map(|at| nodes.iter().map(|node| ((*at).to_owned(), (*node).to_owned()))).collect();
    wait::until(format!("just {wanted:?}"), 2 * SOON, || async {
        let found = passing(consul, service).await?;
        ensure!(found == wanted, "they are {found:?}");
        Ok(Some(()))
    })
    .await
}

async fn another(bed: &Bed, server: &Consul, address: &str) -> Result<Consul> {
    let options =
        ConsulOptions { join: Some(server.serf_addr()), address: address.parse()?, ..ConsulOptions::default() };
    Consul::start(bed.programs, options).await
}

pub(crate) async fn another_agent(bed: &Bed) -> Result<()> {
    let pods = bed.web(3).await?;
    let first = bed.own_consul(ConsulOptions::default()).await?;
    let second = another(bed, first, "127.0.0.2").await?;
    let (api, nodes) = (first.api(), [first.node_name(), second.node_name()]);
    let addresses: Vec<String> = pods.iter().map(|pod| pod.ip.to_string()).collect();
    let [one, two, three] = [0, 1, 2].map(|nth| addresses[nth].as_str());
    let operator = bed.operate().await?;
    bed.apply_web(serde_json::json!({})).await?;
    wait_for_places(&api, &bed.service, &[one, two, three], &nodes[..1]).await?;
    bed.wait_ready("web").await?;
    operator.terminate(SOON).await?;

    // Nobody has named the first agent: what it holds stays, and that is said everywhere.
    let says = |command| crate::commands::says(bed, command, &["--consul-address", &second.http_addr()], 1);
    let operator = bed.operator().consul(&second.http_addr()).start()?;
    let message = bed.wait_for_condition("web", "Registered", "False", "OnAnotherAgent").await?;
    for part in ["3 of 3 instances", nodes[0], "--previous-agent", "consul services deregister -id="] {
        ensure!(message.contains(part), "it does not say {part:?}: {message}");
    }
    bed.wait_for_event("web", "OnAnotherAgent").await?;
    ensure!(metric(&operator.metrics().await?, "lictor_instances_on_other_agents")? > 2.5, "nobody counts them");
    let told = says("plan")?;
    ensure!(told.contains("3 to remove") && told.contains("note:") && told.contains("--previous-agent"), "{told}");
    let told = says("doctor")?;
    ensure!(told.contains("FAIL") && told.contains(&format!("3 of them with {}", nodes[0])), "{told}");
    wait_for_places(&api, &bed.service, &[one, two, three], &nodes).await?;

    // One of the pods goes: the first agent still has it.
    bed.namespace.force_delete("web-2").await?;
    wait::until("the second agent to follow", SOON, || async {
        let found = passing(&api, &bed.service).await?;
        let has = |node: &str| found.iter().filter(|(_, on)| on == node).count();
        Ok((has(nodes[1]) == 2 && has(nodes[0]) == 3).then_some(()))
    })
    .await?;
    operator.terminate(SOON).await?;

    // With its name it is asked, and only what lives is left.
    let reader = Reader::begin(first.api(), &bed.service, &addresses[..2]);
    let operator =
        bed.operator().consul(&second.http_addr()).flag("--previous-agent", &first.http_addr()).ready().await?;
    wait_for_places(&api, &bed.service, &[one, two], &nodes[1..]).await?;
    bed.wait_ready("web").await?;
    ensure!(reader.end().await? == 2, "one that lives was missing");
    ensure!(metric(&operator.metrics().await?, "lictor_instances_on_other_agents")? < 0.5, "some are left");
    let held = first.api().get("/v1/agent/services").await?;
    ensure!(held.as_object().is_some_and(serde_json::Map::is_empty), "the first agent still has {held}");
    operator.terminate(SOON).await?;

    // An agent that is gone for good cannot bring anything back: the catalog is enough.
    second.kill()?;
    let operator = bed.operator().ready().await?;
    wait_for_places(&api, &bed.service, &[one, two], &nodes[..1]).await?;
    wait::until("nothing of the agent that is gone", 2 * SOON, || async {
        let left = bed.instances().await?;
        ensure!(left.iter().all(|instance| instance.node == nodes[0]), "there is {left:?}");
        Ok(Some(()))
    })
    .await?;
    bed.wait_ready("web").await?;
    operator.terminate(SOON).await.map(drop).context("the last one")
}

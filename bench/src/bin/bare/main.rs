//! `bare`: the least program that takes the load of the bench to Consul's catalog. The bench measures `lictor run` beside it: what
//! both cost is the price of Kubernetes, of Consul and of the writes, and what Lictor costs beyond is Lictor's own.
//!
//! In: the `EndpointSlice`s of the load. Out: the nodes, instances and readiness checks that Lictor registers for them. At the start it
//! lists the slices and writes full transactions, ordered by node, four at a time. After that it makes one write for each event of the
//! watch. It owns nothing, repairs nothing, reports nothing, and ends at the first error.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use lictor_testbed::init_tls;
use rows::{Instance, Op};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Transactions at once.
const AT_ONCE: usize = 4;

/// The operations that Consul takes in a transaction at most.
const OPERATIONS: usize = 128;

/// Marks the slices of the load.
const LOAD: &str = "endpointslice.kubernetes.io/managed-by=bench";

/// It starts as `lictor run` does.
#[derive(Parser)]
enum Command {
    /// Takes the load to Consul and follows it.
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The file that says how Kubernetes is reached.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The base of Consul's API.
    #[arg(long)]
    consul_address: String,
    /// The beginning of all names in Consul.
    #[arg(long)]
    cluster_name: String,
    /// Not used.
    #[arg(long)]
    admin_address: String,
    /// Not used: it is always the catalog.
    #[arg(long)]
    registration: String,
}

/// The instances of a slice by their IDs.
type Slice = BTreeMap<String, Instance>;

/// What is written, and what is known to be there.
struct Bare {
    consul: Consul,
    cluster: String,
    slices: BTreeMap<String, Slice>,
    nodes: BTreeSet<String>,
}

#[derive(Clone)]
struct Consul {
    client: reqwest::Client,
    transactions: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Command::Run(args) = Command::parse();
    init_tls();
    let config = Kubeconfig::read_from(&args.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let slices: Api<EndpointSlice> = Api::all(Client::try_from(config)?);
    let consul = Consul {
        client: reqwest::Client::new(),
        transactions: format!("{}/v1/txn", args.consul_address.trim_end_matches('/')),
    };
    let mut bare = Bare { consul, cluster: args.cluster_name, slices: BTreeMap::new(), nodes: BTreeSet::new() };

    let list = slices.list(&ListParams::default().labels(LOAD).match_any()).await?;
    let version = list.metadata.resource_version.context("a list without a version")?;
    bare.write_all(list.items).await?;
    bare.follow(&slices, version).await
}

impl Bare {
    /// Writes what a list has.
    async fn write_all(&mut self, listed: Vec<EndpointSlice>) -> Result<()> {
        for slice in &listed {
            self.slices.insert(name_of(slice), rows::instances(&self.cluster, slice));
        }
        drop(listed);
        let mut all: Vec<(&String, &Instance)> = self.slices.values().flatten().collect();
        all.sort_by(|(_, a), (_, b)| a.node.cmp(&b.node));
        self.nodes = all.iter().map(|(_, instance)| instance.node.clone()).collect();
        let consul = &self.consul;
        let write = |batch: &[(&String, &Instance)]| {
            let body = rows::body(&registrations(batch));
            async move { consul.transact(body?).await }
        };
        stream::iter(batches(&all)).map(write).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Makes a write for each event from a version on. Those of a slice never overtake each other.
    async fn follow(&mut self, slices: &Api<EndpointSlice>, mut version: String) -> Result<()> {
        let mut writers = JoinSet::new();
        let lanes: Vec<UnboundedSender<String>> = (0..AT_ONCE)
            .map(|_| {
                let (sender, receiver) = unbounded_channel();
                writers.spawn(write_in_turn(self.consul.clone(), receiver));
                sender
            })
            .collect();
        loop {
            let mut events = slices.watch(&WatchParams::default().labels(LOAD), &version).await?.boxed();
            loop {
                let event = tokio::select! {
                    event = events.try_next() => event?,
                    Some(ended) = writers.join_next() => return ended?,
                };
                let (slice, now) = match event {
                    None => break,
                    Some(WatchEvent::Added(slice) | WatchEvent::Modified(slice)) => {
                        let now = rows::instances(&self.cluster, &slice);
                        (slice, now)
                    }
                    Some(WatchEvent::Deleted(slice)) => (slice, Slice::new()),
                    Some(WatchEvent::Bookmark(bookmark)) => {
                        version = bookmark.metadata.resource_version;
                        continue;
                    }
                    Some(WatchEvent::Error(error)) => bail!("the watch ended: {error:?}"),
                };
                version.clone_from(slice.metadata.resource_version.as_ref().context("a slice without a version")?);
                let name = name_of(&slice);
                let lane = &lanes[lane_of(&name)];
                for body in self.take(&name, &now)? {
                    lane.send(body)?;
                }
            }
        }
    }

    /// Takes a slice as it is now, and gives the transactions that lead there.
    fn take(&mut self, name: &str, now: &Slice) -> Result<Vec<String>> {
        let before = self.slices.insert(name.to_owned(), now.clone()).unwrap_or_default();
        let mut ops = Vec::new();
        for (id, instance) in now {
            match before.get(id) {
                Some(known) if known == instance => {}
                Some(known) if known.but_for_readiness(instance) => ops.push(Op::check(id, instance)),
                _ => {
                    if self.nodes.insert(instance.node.clone()) {
                        ops.push(Op::node(instance));
                    }
                    ops.extend([Op::service(id, instance), Op::check(id, instance)]);
                }
            }
        }
        let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
        ops.extend(gone.map(|(id, instance)| Op::delete(id, instance)));
        ops.chunks(OPERATIONS).map(rows::body).collect()
    }
}

impl Consul {
    async fn transact(&self, body: String) -> Result<()> {
        let answer = self.client.put(&self.transactions).body(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "Consul answered {status}: {text}");
        Ok(())
    }
}

async fn write_in_turn(consul: Consul, mut bodies: UnboundedReceiver<String>) -> Result<()> {
    while let Some(body) = bodies.recv().await {
        consul.transact(body).await?;
    }
    Ok(())
}

/// Instances that fit into a transaction together: two operations each, and one for each node.
fn batches<'a, 'b>(all: &'b [(&'a String, &'a Instance)]) -> Vec<&'b [(&'a String, &'a Instance)]> {
    let mut batches = Vec::new();
    let (mut first, mut ops) = (0, 0);
    for (number, (_, instance)) in all.iter().enumerate() {
        let new_node = number == first || all[number - 1].1.node != instance.node;
        let more = 2 + usize::from(new_node);
        if ops + more > OPERATIONS {
            batches.push(&all[first..number]);
            // It comes first in its transaction, and brings its node.
            (first, ops) = (number, 3);
        } else {
            ops += more;
        }
    }
    batches.push(&all[first..]);
    batches
}

/// The operations that register instances, with each node before the first instance on it.
fn registrations<'a>(batch: &[(&'a String, &'a Instance)]) -> Vec<Op<'a>> {
    let mut ops = Vec::with_capacity(OPERATIONS);
    let mut last: Option<&str> = None;
    for (id, instance) in batch {
        if last.replace(&instance.node) != Some(&instance.node) {
            ops.push(Op::node(instance));
        }
        ops.extend([Op::service(id, instance), Op::check(id, instance)]);
    }
    ops
}

fn name_of(slice: &EndpointSlice) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&slice.metadata.namespace), part(&slice.metadata.name))
}

fn lane_of(name: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % AT_ONCE as u64).unwrap_or_default()
}

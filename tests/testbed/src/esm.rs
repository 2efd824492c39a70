//! A stand-in of consul-esm v0.11 for tests of what it is given: it finds nodes and checks, asks, and writes what it
//! found out as that does (its `agent.go` and `check.go`), without its leader, its pings and its thresholds. Where it
//! waits ten seconds between two looks at Consul, this one hardly waits.

mod probe;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use self::probe::Definition;
use crate::ConsulApi;

/// Between two looks at which checks there are.
const LOOK: Duration = Duration::from_millis(50);

/// What it is told to look for (`external_node_meta`).
const META: &str = "node-meta=external-node:true";

/// It runs until it is dropped.
#[derive(Debug)]
pub struct Esm {
    running: JoinHandle<()>,
}

/// A check: its node, its instance and its ID.
type Key = [String; 3];

impl Esm {
    /// Starts one for a Consul.
    #[must_use]
    pub fn start(api: ConsulApi) -> Self {
        let watch = async move {
            let mut runners = Runners { api, tasks: JoinSet::new(), running: BTreeMap::new() };
            loop {
                // What cannot be read now is read the next time.
                let _ = runners.look().await;
                tokio::time::sleep(LOOK).await;
            }
        };
        Self { running: tokio::spawn(watch) }
    }
}

impl Drop for Esm {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The checks that it runs.
struct Runners {
    api: ConsulApi,
    tasks: JoinSet<()>,
    running: BTreeMap<Key, (Definition, tokio::task::AbortHandle)>,
}

impl Runners {
    async fn look(&mut self) -> Result<()> {
        let nodes = self.api.get(&format!("/v1/catalog/nodes?{META}")).await?;
        let nodes: Vec<String> = each(&nodes).map(|node| text(node, "Node")).collect();
        let checks = self.api.get(&format!("/v1/health/state/any?{META}")).await?;
        let mut found = BTreeMap::new();
        for check in each(&checks).filter(|check| nodes.contains(&text(check, "Node"))) {
            // One without any is not for it; it says so in its log.
            if let Some(definition) = Definition::read(&check["Definition"])? {
                found.insert(["Node", "ServiceID", "CheckID"].map(|field| text(check, field)), definition);
            }
        }
        self.running.retain(|key, (running, task)| {
            let goes_on = found.get(key).is_some_and(|definition| running.is_taken_for(definition));
            if !goes_on {
                task.abort();
            }
            goes_on
        });
        for (key, definition) in found {
            if !self.running.contains_key(&key) {
                let task = self.tasks.spawn(run(self.api.clone(), key.clone(), definition.clone()));
                self.running.insert(key, (definition, task));
            }
        }
        Ok(())
    }
}

async fn run(api: ConsulApi, key: Key, definition: Definition) {
    loop {
        let (status, output) = definition.ask().await;
        // A write that comes too late, or not through, is made up for by the next one.
        let _ = tell(&api, &key, status, &output).await;
        tokio::time::sleep(definition.interval).await;
    }
}

/// Writes what a check says, if it is news. (A mere output would be written minutes later.)
async fn tell(api: &ConsulApi, [node, _, id]: &Key, status: &str, output: &str) -> Result<()> {
    let checks = api.get(&format!("/v1/health/node/{node}?consistent")).await?;
    match each(&checks).find(|check| text(check, "CheckID") == *id) {
        Some(known) if text(known, "Status") != status => write(api, known, status, output).await,
        _ => Ok(()),
    }
}

/// Writes a check as it was read, with another status and output, if it is still the same.
pub async fn write(api: &ConsulApi, check: &Value, status: &str, output: &str) -> Result<()> {
    // Consul shows more than it takes.
    let fields = ["Node", "CheckID", "Name", "Notes", "Type", "ServiceID", "ServiceName", "Definition", "ModifyIndex"];
    let mut written: Value = fields.into_iter().map(|field| (field.to_owned(), check[field].clone())).collect();
    written["Status"] = json!(status);
    written["Output"] = json!(output);
    api.put("/v1/txn", &json!([{ "Check": { "Verb": "cas", "Check": written } }])).await?;
    Ok(())
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(of: &Value, field: &str) -> String {
    of[field].as_str().unwrap_or_default().to_owned()
}

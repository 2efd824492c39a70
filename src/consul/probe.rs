//! A registration there and back: whether Consul can be reached, read, and written with the rights that are given.
//!
//! What is registered carries no mark of ours, so that no Lictor that runs at the same time takes it for its own, and
//! has an address that is for documentation (RFC 5737). It is gone again however this ends, as far as Consul lets us.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::{Client, Failed, path};
use super::dns::{self, Kind};
use super::transport::Transport;
use super::wire::AgentSelf;
use crate::model::names::{ClusterName, Str};
use crate::model::nodes::{NODE_NAME_MAX, node_name};

/// How long an agent may take to tell the servers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to register.
#[derive(Clone, Copy, Debug)]
pub enum Way<'a> {
    /// With the agent.
    Agent,
    /// In the catalog, on a node that begins with the cluster's name, as ours do.
    Catalog(&'a ClusterName),
}

/// What did not work, in a user's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

/// Asks who leads the servers.
pub async fn leader(transport: Arc<dyn Transport>) -> Result<String, Broken> {
    let leader: String = read(&Client::new(transport), path(&["status", "leader"], &[])).await?;
    if leader.is_empty() { Err(Broken("Consul has no leader".to_owned())) } else { Ok(leader) }
}

/// The most services that [`srv`] asks for.
const ASKED: usize = 20;

/// Asks Consul's DNS for the SRV records of services that have passing instances, and says how many answered. Where
/// there are addresses and no SRV answer comes, something on the nodes does not fit into one.
pub async fn srv(transport: Arc<dyn Transport>, server: &str, services: &BTreeSet<Str>) -> Result<usize, Broken> {
    let about = Client::new(transport).get::<AgentSelf>(path(&["agent", "self"], &[])).await;
    let domain = about.map(|answer| answer.value.debug_config.dns_domain).unwrap_or_default();
    let domain = if domain.is_empty() { "consul" } else { domain.trim_end_matches('.') };
    // A dot in a name means something else to Consul's DNS.
    let names = services.iter().filter(|name| !name.contains('.') && name.len() < 64).take(ASKED);
    let mut answered = 0;
    for service in names {
        let name = format!("{service}.service.{domain}");
        let ask = async |kind| dns::ask(server, &name, kind).await.map_err(Broken);
        let addresses = ask(Kind::A).await?.max(ask(Kind::Aaaa).await?);
        let Some(addresses) = addresses else { return Err(Broken(format!("{server} does not answer for {name}"))) };
        if addresses > 0 && ask(Kind::Srv).await?.is_none() {
            return Err(Broken(format!(
                "{server} has addresses of {name} and sends no SRV answer: a Consul node with one of its instances has \
                 a name of more than {NODE_NAME_MAX} characters, and meta",
            )));
        }
        answered += 1;
    }
    Ok(answered)
}

/// Registers an instance of `service`, sees it in the catalog, and deregisters it; `id` is to be one of its own.
pub async fn there_and_back(
    transport: Arc<dyn Transport>,
    way: Way<'_>,
    service: &str,
    id: &str,
) -> Result<(), Broken> {
    let probe = Probe { client: Client::new(transport), service, id };
    let there = match way {
        Way::Agent => probe.there_by_agent().await,
        Way::Catalog(cluster) => probe.there_in_catalog(cluster).await,
    };
    let back = match way {
        Way::Agent => probe.back_by_agent().await,
        Way::Catalog(cluster) => probe.back_in_catalog(cluster).await,
    };
    // A registration that did not come about explains why it cannot be taken back.
    there?;
    back
}

struct Probe<'a> {
    client: Client,
    service: &'a str,
    id: &'a str,
}

impl Probe<'_> {
    async fn there_by_agent(&self) -> Result<(), Broken> {
        // Critical, so that nobody is sent there, and gone by itself should we not come back.
        let check = json!({ "TTL": "10m", "Status": "critical", "DeregisterCriticalServiceAfter": "1m" });
        let registration =
            json!({ "ID": self.id, "Name": self.service, "Address": ADDRESS, "Port": 9, "Check": check });
        self.put(path(&["agent", "service", "register"], &[]), Some(&registration)).await?;
        self.until(true).await
    }

    async fn back_by_agent(&self) -> Result<(), Broken> {
        self.put(path(&["agent", "service", "deregister", self.id], &[]), None).await?;
        self.until(false).await
    }

    async fn there_in_catalog(&self, cluster: &ClusterName) -> Result<(), Broken> {
        let node = node(cluster);
        let service = json!({ "ID": self.id, "Service": self.service, "Address": ADDRESS, "Port": 9 });
        self.transact(&json!([
            { "Node": { "Verb": "set", "Node": { "Node": node, "Address": ADDRESS } } },
            { "Service": { "Verb": "set", "Node": node, "Service": service } },
            // Critical, so that nobody is sent there. By the service's name Consul judges whether the token may.
            { "Check": { "Verb": "set", "Check": {
                "Node": node, "CheckID": self.id, "Name": "lictor-doctor", "Status": "critical", "ServiceID": self.id,
                "ServiceName": self.service,
            } } },
        ]))
        .await?;
        self.until(true).await
    }

    async fn back_in_catalog(&self, cluster: &ClusterName) -> Result<(), Broken> {
        let node = node(cluster);
        let service = json!({ "ID": self.id, "Service": self.service });
        self.transact(&json!([
            { "Service": { "Verb": "delete", "Node": node, "Service": service } },
            { "Node": { "Verb": "delete", "Node": { "Node": node } } },
        ]))
        .await?;
        self.until(false).await
    }

    /// Waits until the catalog shows the instance, or shows it no more.
    async fn until(&self, there: bool) -> Result<(), Broken> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let query = path(&["catalog", "service", self.service], &[("consistent", "")]);
            let rows: Vec<Value> = read(&self.client, query).await?;
            if rows.iter().any(|row| row["ServiceID"] == self.id) == there {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let state = if there { "does not show" } else { "still shows" };
                return Err(Broken(format!(
                    "Consul's catalog {state} the instance {} of service {:?} after {} s: the agent may not tell the \
                     servers with this token (service:write), or cannot reach them",
                    self.id,
                    self.service,
                    PATIENCE.as_secs()
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn transact(&self, operations: &Value) -> Result<(), Broken> {
        self.put(path(&["txn"], &[]), Some(operations)).await
    }

    async fn put(&self, path: String, body: Option<&Value>) -> Result<(), Broken> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        self.client.put(path, body).await.map(drop).map_err(|failed| {
            let words = match failed {
                Failed::NotTried(trouble) | Failed::NoAnswer(trouble) | Failed::Stumbled(trouble) => trouble.message,
                Failed::Refused { status, words, .. } => format!("Consul answered {status}: {words}"),
            };
            Broken(format!("registering in service {:?}: {words}", self.service))
        })
    }
}

async fn read<T: serde::de::DeserializeOwned>(client: &Client, path: String) -> Result<T, Broken> {
    client.get(path).await.map(|answer| answer.value).map_err(|trouble| Broken(trouble.to_string()))
}

/// For documentation: nothing is there.
const ADDRESS: &str = "192.0.2.1";

fn node(cluster: &ClusterName) -> impl fmt::Display + serde::Serialize {
    node_name(cluster, "lictor-doctor").to_string()
}

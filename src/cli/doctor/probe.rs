//! Registers a test instance and deregisters it, to find out whether Consul can be reached, read and written with the
//! given token.
//!
//! The instance carries no mark of ours, so that no Lictor that runs at the same time takes it for its own. Its address
//! is one for documentation (RFC 5737). It is deregistered however the test ends, as far as Consul allows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::dns::{self, Kind};
use crate::consul::client::{Client, Failed, path};
use crate::consul::transport::Transport;
use crate::consul::wire::{AgentSelf, Node, TxnCheck, TxnOp, Verb, txn_body};
use crate::model::health::Health;
use crate::model::ids::{ClusterName, Str};
use crate::model::nodes::{NODE_NAME_MAX, node_name};
use crate::model::registration::Registration;

/// The longest wait for the catalog to show what was registered: an agent tells the servers later.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way to register the test instance.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// It is registered with the agent.
    Agent,
    /// It is registered in the catalog, on a node whose name begins with the cluster's name, as ours do.
    Catalog(&'a ClusterName),
}

/// Says to the user what did not work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

/// Asks who leads the servers.
pub(super) async fn leader(transport: Arc<dyn Transport>) -> Result<String, Broken> {
    let leader: String = read(&Client::new(transport), path(&["status", "leader"], &[])).await?;
    if leader.is_empty() { Err(Broken("Consul has no leader".to_owned())) } else { Ok(leader) }
}

/// The most services that [`srv`] asks for.
const ASKED: usize = 20;

/// What Consul's DNS answers to SRV questions.
pub(super) struct Srv {
    /// How many services it was asked for.
    pub(super) asked: usize,
    /// The services of which an answer over UDP lacks instances, and does not say so.
    pub(super) short: Vec<Str>,
}

/// Asks Consul's DNS for the SRV records of services that have passing instances. Where there are addresses and no SRV
/// answer comes, something on the nodes does not fit into one.
pub(super) async fn srv(transport: Arc<dyn Transport>, server: &str, services: &BTreeSet<Str>) -> Result<Srv, Broken> {
    let about = Client::new(transport).get::<AgentSelf>(path(&["agent", "self"], &[])).await;
    let domain = about.map(|answer| answer.value.debug_config.dns_domain).unwrap_or_default();
    let domain = if domain.is_empty() { "consul" } else { domain.trim_end_matches('.') };
    // A dot in a name means something else to Consul's DNS.
    let names = services.iter().filter(|name| !name.contains('.') && name.len() < 64).take(ASKED);
    let (mut srv, mut by_udp) = (Srv { asked: 0, short: Vec::new() }, true);
    for service in names {
        let name = format!("{service}.service.{domain}");
        let ask = async |kind| dns::ask(server, &name, kind).await.map_err(Broken);
        let addresses = ask(Kind::A).await?.max(ask(Kind::Aaaa).await?);
        let Some(addresses) = addresses else { return Err(Broken(format!("{server} does not answer for {name}"))) };
        let all = if addresses > 0 { ask(Kind::Srv).await? } else { Some(0) };
        let Some(all) = all else {
            return Err(Broken(format!(
                "{server} has addresses of {name} and sends no SRV answer: a Consul node with one of its instances has \
                 a name of more than {NODE_NAME_MAX} characters, and meta",
            )));
        };
        srv.asked += 1;
        if by_udp {
            let answer = dns::ask_over_udp(server, &name, Kind::Srv).await;
            by_udp = answer.is_some();
            srv.short.extend(answer.filter(|answer| answer.hides_some_of(all)).map(|_| service.clone()));
        }
    }
    Ok(srv)
}

/// Registers an instance of `service`, sees it in the catalog, and deregisters it; `id` is to be one of its own.
pub(super) async fn register_and_deregister(
    transport: Arc<dyn Transport>,
    way: Way<'_>,
    service: &str,
    id: &str,
) -> Result<(), Broken> {
    let probe = Probe { client: Client::new(transport), service, id };
    let (registered, deregistered) = match way {
        Way::Agent => (probe.register_with_agent().await, probe.deregister_from_agent().await),
        Way::Catalog(cluster) => {
            let node = node_name(cluster, "lictor-doctor");
            (probe.register_in_catalog(&node).await, probe.deregister_from_catalog(&node).await)
        }
    };
    // A registration that failed explains why it cannot be taken back.
    registered?;
    deregistered
}

struct Probe<'a> {
    client: Client,
    service: &'a str,
    id: &'a str,
}

impl Probe<'_> {
    async fn register_with_agent(&self) -> Result<(), Broken> {
        // Critical, so that nobody is sent there, and gone by itself should we not come back.
        let check = json!({ "TTL": "10m", "Status": "critical", "DeregisterCriticalServiceAfter": "1m" });
        let registration =
            json!({ "ID": self.id, "Name": self.service, "Address": ADDRESS, "Port": PORT, "Check": check });
        self.put(path(&["agent", "service", "register"], &[]), Some(registration.to_string().into())).await?;
        self.until(true).await
    }

    async fn deregister_from_agent(&self) -> Result<(), Broken> {
        self.put(path(&["agent", "service", "deregister", self.id], &[]), None).await?;
        self.until(false).await
    }

    async fn register_in_catalog(&self, node: &str) -> Result<(), Broken> {
        let registration = Registration::plain(self.service, ADDRESS, PORT);
        // Critical, so that nobody is sent there. By the service's name Consul judges whether the token may.
        let check = TxnCheck {
            node,
            id: self.id.to_owned(),
            name: Some("lictor-doctor"),
            status: Some(Health::Critical.as_str()),
            service_id: self.id,
            service_name: self.service,
            ..TxnCheck::default()
        };
        let address = Some(ADDRESS.to_owned());
        self.transact(&[
            TxnOp::Node { verb: Verb::Set, node: Node { node: Some(node.to_owned()), address, ..Node::default() } },
            TxnOp::service_set(node, self.id, &registration),
            TxnOp::Check { verb: Verb::Set, check },
        ])
        .await?;
        self.until(true).await
    }

    async fn deregister_from_catalog(&self, node: &str) -> Result<(), Broken> {
        self.transact(&[
            TxnOp::service_delete(node, self.id, self.service),
            TxnOp::Node { verb: Verb::Delete, node: Node { node: Some(node.to_owned()), ..Node::default() } },
        ])
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

    async fn transact(&self, ops: &[TxnOp<'_>]) -> Result<(), Broken> {
        self.written(self.client.transact(txn_body(ops)).await)
    }

    async fn put(&self, path: String, body: Option<Bytes>) -> Result<(), Broken> {
        self.written(self.client.put(path, body).await)
    }

    fn written(&self, result: Result<Bytes, Failed>) -> Result<(), Broken> {
        result.map(drop).map_err(|failed| {
            let words = match failed {
                Failed::NotTried(outage) | Failed::NoAnswer(outage) | Failed::Stumbled(outage) => outage.message,
                Failed::Refused { status, words, .. } => format!("Consul answered {status}: {words}"),
            };
            Broken(format!("registering in service {:?}: {words}", self.service))
        })
    }
}

async fn read<T: serde::de::DeserializeOwned>(client: &Client, path: String) -> Result<T, Broken> {
    client.get(path).await.map(|answer| answer.value).map_err(|outage| Broken(outage.to_string()))
}

/// An address for documentation, where nothing answers.
const ADDRESS: &str = "192.0.2.1";

/// The port of the discard protocol (RFC 863).
const PORT: u16 = 9;

//! Registering with the one agent at Consul's address.
//!
//! In: bundles for the agent's own node. Out: what became of them. The agent carries them on to the catalog
//! with the token that it was given with each registration; so what counts as there is what the catalog
//! shows, not what the agent has answered.
//!
//! - `elsewhere`: what this cluster has registered with other agents.
//! - `takeover`: what another cluster of our name has left with this one.
//! - `write`: writes a bundle.

mod elsewhere;
pub mod takeover;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::try_join;

use super::client::{Client, path};
use super::indexes::indexes;
use super::others::names_of_others;
use super::servers::judge_agent;
use super::transport::Transport;
use super::wire::{AgentConfig, AgentSelf, By, Check, Healths, NodeServices, Pool, Service};
use crate::model::desired::Placement;
use crate::model::ids::{Identity, Str, id_prefix, meta};
use crate::model::registration::{Ownership, Registration, Row, RowKey};
use crate::ports::{Bundle, Indexes, Outcome, Registry, Rows, Unavailable};

/// The most operations that an agent gets before the engine hears of them.
const BUNDLE: usize = 64;

/// The most bundles under way at once: one is for the agent's own node, and the others are for those of previous ones.
const BUNDLES: usize = 4;

/// The number of times that an agent is asked who it is when we get to know it.
const INTRODUCTIONS: usize = 3;

/// The number of times, once there were two of them at its address: agents that answer in turn all have to agree by
/// chance for us not to notice.
const SUSPICIOUS_INTRODUCTIONS: usize = 10;

/// The agent at one address.
pub struct Agent {
    client: Client,
    identity: Identity,
    known: Mutex<Known>,
    winding_down: AtomicBool,
    /// Agents that this cluster may have registered with before, by address.
    previous: Vec<(String, Agent)>,
}

/// Says which agents have answered at the address.
#[derive(Debug, Default)]
struct Known {
    /// Whom we talk to.
    current: Option<AgentConfig>,
    /// The IDs of those that answered before.
    earlier: BTreeSet<String>,
    /// The instances on the current one that are known to be ours, whatever mark is put on them.
    ours: BTreeSet<Str>,
    /// Counts the writes that changed it: a read that began before knows less.
    writes: u64,
}

impl Known {
    /// The one that we talk to is no more.
    fn retire(&mut self) {
        self.ours.clear();
        let before = self.current.take();
        self.earlier.extend(before.and_then(|before| before.node_id));
    }
}

impl Agent {
    /// The agent that a transport leads to.
    #[must_use]
    pub fn new(identity: Identity, transport: Arc<dyn Transport>) -> Self {
        Self {
            client: Client::new(transport),
            identity,
            known: Mutex::default(),
            winding_down: AtomicBool::new(false),
            previous: Vec::new(),
        }
    }

    /// Also removes what this cluster has registered with the agents at these addresses.
    #[must_use]
    pub fn with_previous(mut self, previous: impl IntoIterator<Item = (String, Arc<dyn Transport>)>) -> Self {
        let agent = |transport| Self::new(self.identity.clone(), transport);
        self.previous = previous.into_iter().map(|(address, transport)| (address, agent(transport))).collect();
        self
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn introduce(&self) -> Result<Placement, Unavailable> {
        self.client.may_conclude().await?;
        let times = if self.known().earlier.is_empty() { INTRODUCTIONS } else { SUSPICIOUS_INTRODUCTIONS };
        let mut agreed: Option<AgentConfig> = None;
        let mut version = String::new();
        for _ in 0..times {
            let about = self.client.get_once::<AgentSelf>(path(&["agent", "self"], &[])).await?.value;
            let found = about.config;
            version = about.debug_config.version;
            match &agreed {
                Some(agreed) if *agreed != found => return Err(several(agreed, &found)),
                _ => agreed = Some(found),
            }
        }
        let (node, _) = agreed.as_ref().and_then(name_and_id).ok_or_else(nameless)?;
        judge_agent(node, &version).accept()?;
        let node: Str = node.into();
        self.is_in_the_datacenter(agreed.as_ref())?;
        let mut known = self.known();
        known.retire();
        if let Some(id) = agreed.as_ref().and_then(|agreed| agreed.node_id.as_ref()) {
            known.earlier.remove(id);
        }
        known.current = agreed;
        Ok(Placement::Agent { node })
    }

    /// Makes sure that an agent is in the datacenter that the settings name, if they name one.
    fn is_in_the_datacenter(&self, agent: Option<&AgentConfig>) -> Result<(), Unavailable> {
        let found = agent.and_then(|agent| agent.datacenter.as_deref()).unwrap_or_default();
        match self.client.tenancy().datacenter.as_deref() {
            // Consul takes the name of a datacenter in any case, and writes it in lower case.
            Some(wanted) if !wanted.eq_ignore_ascii_case(found) => Err(Unavailable::not_set_up(format!(
                "the Consul agent is in the datacenter {found}, and --consul-datacenter says {wanted}: correct one of \
                 --consul-datacenter and --consul-address"
            ))),
            _ => Ok(()),
        }
    }

    /// The node of the agent that we know.
    fn own_node(&self) -> Result<Str, Unavailable> {
        let known = self.known();
        known.current.as_ref().and_then(name_and_id).map(|(node, _)| node.into()).ok_or_else(unknown)
    }

    /// Makes sure that it is still the agent that we know, and answers its node's name.
    async fn recognise(&self) -> Result<Str, Unavailable> {
        let found = self.client.get::<AgentSelf>(path(&["agent", "self"], &[])).await?.value.config;
        let (node, id) = name_and_id(&found).ok_or_else(nameless)?;
        let mut known = self.known();
        let Some(current) = &known.current else { return Err(unknown()) };
        if *current == found {
            return Ok(node.into());
        }
        if known.earlier.contains(id) {
            return Err(Unavailable { session_lost: true, ..several(current, &found) });
        }
        let before = current.node_name.clone().unwrap_or_default();
        known.retire();
        Err(Unavailable::session_lost(format!("the Consul agent {before} was replaced by another one, {node}")))
    }

    /// A filter that leaves what has an ID or a mark of ours. A cluster's name is a DNS label: nothing in it
    /// means something in a filter or in a regular expression.
    fn ours(&self, id: &str) -> String {
        format!("{id} matches \"^{}\"", id_prefix(&self.identity.cluster))
    }

    fn our_services(&self) -> String {
        format!("Meta[\"{}\"] == \"{}\" or {}", meta::CLUSTER, self.identity.cluster, self.ours("ID"))
    }

    fn catalog_services(&self, node: &str) -> String {
        path(&["catalog", "node-services", node], &[("filter", &self.our_services())])
    }

    async fn rows(&self) -> Result<Rows, Unavailable> {
        let node = self.own_node()?;
        let (mut rows, elsewhere) = try_join!(self.rows_here(&node), self.rows_elsewhere(&node, None))?;
        rows.extend(elsewhere);
        self.recognise().await?;
        Ok(rows)
    }

    /// Names the agent's own node, and those where this cluster has registered something with other agents.
    async fn list_nodes(&self) -> Result<BTreeSet<Str>, Unavailable> {
        let node = self.recognise().await?;
        let elsewhere = self.rows_elsewhere(&node, None).await?;
        Ok(elsewhere.into_keys().map(|key| key.node).chain([node]).collect())
    }

    async fn rows_of(&self, node: &Str) -> Result<Rows, Unavailable> {
        let own = self.own_node()?;
        let rows = if own == *node { self.rows_here(node).await } else { self.rows_elsewhere(&own, Some(node)).await };
        // Afterwards: of a read that two agents have answered nothing is to be believed.
        self.recognise().await?;
        rows
    }

    /// Reads what is on the agent's own node, which is called so.
    async fn rows_here(&self, node: &Str) -> Result<Rows, Unavailable> {
        let (known, writes) = {
            let known = self.known();
            (known.ours.clone(), known.writes)
        };
        let our_checks = self.ours("ServiceID");
        let (held, held_checks, shown, shown_checks) = try_join!(
            self.client
                .get::<BTreeMap<String, Service>>(path(&["agent", "services"], &[("filter", &self.our_services())])),
            self.client.get::<BTreeMap<String, Check>>(path(&["agent", "checks"], &[("filter", &our_checks)])),
            self.client.get::<NodeServices>(self.catalog_services(node)),
            self.client.get::<Option<Vec<Check>>>(path(&["health", "node", node], &[("filter", &our_checks)])),
        )?;
        let mut rows = Rows::new();
        let mut pool = Pool::default();
        let owner = |id: &Str, held: &Registration| Ownership::of(&self.identity, id, &held.meta, known.contains(id));
        let shown_checks = Healths::new(shown_checks.value.into_iter().flatten());
        let mut catalog = read_all(shown.value.services.unwrap_or_default(), &shown_checks, &mut pool);
        let held_checks = Healths::new(held_checks.value.into_values());
        let held = read_all(held.value.into_values(), &held_checks, &mut pool);
        rows.extend(held.into_iter().map(|(id, mut registration)| {
            let in_catalog = catalog.remove(&id);
            if let Some(there) = in_catalog.as_ref().filter(|_| registration.enable_tag_override) {
                // Its users edit them there, and the agent takes them over only with its next full sync.
                registration.tags.clone_from(&there.tags);
            }
            let shown = in_catalog.is_some_and(|shown| same(&registration, &shown));
            let healths = if shown { &shown_checks } else { &held_checks };
            let row = Row {
                ownership: owner(&id, &registration),
                health: healths.worst(&id),
                registration: Arc::new(registration),
                shown,
            };
            (RowKey { node: Arc::clone(node), id }, row)
        }));
        // The agent has forgotten these and the servers have not: neither registered nor gone.
        rows.extend(catalog.into_iter().map(|(id, registration)| {
            let row = Row {
                ownership: owner(&id, &registration),
                health: shown_checks.worst(&id),
                registration: Arc::new(registration),
                shown: false,
            };
            (RowKey { node: Arc::clone(node), id }, row)
        }));
        let mut known = self.known();
        if known.writes == writes {
            let ours = rows.iter().filter(|(_, row)| row.is_ours());
            known.ours = ours.map(|(key, _)| Arc::clone(&key.id)).collect();
        }
        Ok(rows)
    }
}

impl Registry for Agent {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Unavailable>> {
        Box::pin(self.introduce())
    }

    fn resume(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Unavailable>> {
        Box::pin(async move { Ok((self.introduce().await?, self.rows().await?)) })
    }

    fn placement(&self) -> Option<Placement> {
        None
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Unavailable>> {
        Box::pin(self.rows())
    }

    fn indexes(&self) -> BoxFuture<'_, Result<Indexes, Unavailable>> {
        Box::pin(async {
            self.recognise().await?;
            indexes(&self.client).await
        })
    }

    fn nodes(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(self.list_nodes())
    }

    fn names_of_others(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(names_of_others(&self.client, &self.identity))
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Unavailable>> {
        Box::pin(self.rows_of(node))
    }

    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            if self.is_elsewhere(&bundle.node) {
                self.carry_out_elsewhere(bundle).await
            } else {
                self.carry_out(bundle).await
            }
        })
    }

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        Box::pin(self.update_nothing())
    }

    fn tidy<'a>(&'a self, _: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Unavailable>> {
        // The agent's node is its own.
        Box::pin(async { Ok(()) })
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        // Nothing but registrations is made here.
        Box::pin(async { Ok(()) })
    }

    fn wind_down(&self) {
        self.winding_down.store(true, Ordering::SeqCst);
        self.previous.iter().for_each(|(_, agent)| agent.wind_down());
    }

    fn bundle_size(&self) -> usize {
        BUNDLE
    }

    fn bundles(&self) -> usize {
        BUNDLES
    }
}

/// Services by ID.
fn read_all(
    services: impl IntoIterator<Item = Service>,
    checks: &Healths,
    pool: &mut Pool,
) -> BTreeMap<Str, Registration> {
    let mut all = BTreeMap::new();
    for service in services {
        let Some(id) = service.id.as_deref().filter(|id| !id.is_empty()) else { continue };
        all.insert(Str::from(id), service.registration(By::Agent, checks, pool));
    }
    all
}

/// Says whether the catalog shows just what the agent holds, the readiness included.
fn same(held: &Registration, shown: &Registration) -> bool {
    held.same_service(shown) && held.readiness == shown.readiness && held.checks == shown.checks
}

fn name_and_id(config: &AgentConfig) -> Option<(&str, &str)> {
    config.node_name.as_deref().zip(config.node_id.as_deref())
}

fn unknown() -> Unavailable {
    Unavailable::session_lost("Lictor has not asked the Consul agent for its identity yet")
}

fn nameless() -> Unavailable {
    Unavailable::transient("the server at Consul's address does not say which agent it is")
}

fn several(one: &AgentConfig, other: &AgentConfig) -> Unavailable {
    let name = |config: &AgentConfig| {
        let (name, id) = name_and_id(config).unwrap_or_default();
        format!("{name} ({id})")
    };
    Unavailable {
        retry_after: Some(Duration::from_secs(10)),
        ..Unavailable::not_set_up(format!(
            "several agents answer at Consul's address, {} and {}: an instance would be registered with one and \
             deregistered with another. Use the address of one agent, or --registration=catalog",
            name(one),
            name(other)
        ))
    }
}

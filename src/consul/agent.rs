//! Registering with the one agent at Consul's address.
//!
//! In: bundles for the agent's own node. Out: what became of them. The agent carries them on to the catalog
//! with the token that it was given with each registration; so what counts as there is what the catalog
//! shows, not what the agent has answered.
//!
//! - `elsewhere`: what this cluster has registered with other agents.
//! - `takeover`: what another cluster of our name has left with this one.

mod elsewhere;
pub mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::try_join;
use tokio::time::Instant;

use super::client::{Client, Failed, path};
use super::transport::Transport;
use super::wire::{AgentConfig, AgentSelf, AgentService, AgentUpdate, By, Check, Healths, NodeServices, Pool, Service};
use super::{Bundle, Outcome, Registry, Rows, Trouble};
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::names::{Identity, READINESS, Str, check_id, id_prefix, meta};
use crate::model::registration::{Ownership, Registration, Row, RowKey};

/// The most operations that an agent gets before the engine hears of them.
const BUNDLE: usize = 64;

/// The longest time that the catalog may take to show what the agent has accepted. Then we go on without.
const CONFIRMATION: Duration = Duration::from_secs(5);

/// This is said where the agent has deregistered an instance, and the catalog still has it.
const STILL_SHOWN: &str = "the agent has deregistered the instance, but Consul's catalog still shows it: the agent's \
                           own token may not write it, or the agent has lost its servers";

/// The end of a check's ID that no check has.
const NO_CHECK: &str = "no-check";

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

/// Says what became of one operation.
enum Step {
    /// The agent has it; whether it is a registration that the catalog has yet to show.
    Done { confirm: bool },
    /// The agent refuses it.
    Refused(String),
    /// It surely had no effect, and those after it would fare no better.
    Stop(Trouble),
    /// It may have had an effect; those after it are not tried.
    Lost(Trouble),
    /// It may have had an effect; those after it may well work.
    Doubtful(Trouble),
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

    async fn introduce(&self) -> Result<Placement, Trouble> {
        self.client.may_conclude().await?;
        let times = if self.known().earlier.is_empty() { INTRODUCTIONS } else { SUSPICIOUS_INTRODUCTIONS };
        let mut agreed: Option<AgentConfig> = None;
        for _ in 0..times {
            let found = self.client.get_once::<AgentSelf>(path(&["agent", "self"], &[])).await?.value.config;
            match &agreed {
                Some(agreed) if *agreed != found => return Err(several(agreed, &found)),
                _ => agreed = Some(found),
            }
        }
        let (node, _) = agreed.as_ref().and_then(name_and_id).ok_or_else(nameless)?;
        let node: Str = node.into();
        let mut known = self.known();
        known.retire();
        if let Some(id) = agreed.as_ref().and_then(|agreed| agreed.node_id.as_ref()) {
            known.earlier.remove(id);
        }
        known.current = agreed;
        Ok(Placement::Agent { node })
    }

    /// Makes sure that it is still the agent that we know, and answers its node's name.
    async fn recognise(&self) -> Result<Str, Trouble> {
        let found = self.client.get::<AgentSelf>(path(&["agent", "self"], &[])).await?.value.config;
        let (node, id) = name_and_id(&found).ok_or_else(nameless)?;
        let mut known = self.known();
        let Some(current) = &known.current else {
            return Err(Trouble::lost_footing("Consul's agent was not asked who it is yet"));
        };
        if *current == found {
            return Ok(node.into());
        }
        if known.earlier.contains(id) {
            return Err(Trouble { lost_footing: true, ..several(current, &found) });
        }
        let before = current.node_name.clone().unwrap_or_default();
        known.retire();
        Err(Trouble::lost_footing(format!("the Consul agent {before} was replaced by another one, {node}")))
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

    async fn rows(&self) -> Result<Rows, Trouble> {
        let node = self.recognise().await?;
        let (known, writes) = {
            let known = self.known();
            (known.ours.clone(), known.writes)
        };
        let our_checks = self.ours("ServiceID");
        let (held, held_checks, shown, shown_checks, mut rows) = try_join!(
            self.client
                .get::<BTreeMap<String, Service>>(path(&["agent", "services"], &[("filter", &self.our_services())])),
            self.client.get::<BTreeMap<String, Check>>(path(&["agent", "checks"], &[("filter", &our_checks)])),
            self.client.get::<NodeServices>(self.catalog_services(&node)),
            self.client.get::<Option<Vec<Check>>>(path(&["health", "node", &node], &[("filter", &our_checks)])),
            self.rows_elsewhere(&node),
        )?;
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
            (RowKey { node: Arc::clone(&node), id }, row)
        }));
        // The agent has forgotten these and the servers have not: neither registered nor gone.
        rows.extend(catalog.into_iter().map(|(id, registration)| {
            let row = Row {
                ownership: owner(&id, &registration),
                health: shown_checks.worst(&id),
                registration: Arc::new(registration),
                shown: false,
            };
            (RowKey { node: Arc::clone(&node), id }, row)
        }));
        let mut known = self.known();
        if known.writes == writes {
            let ours = rows.iter().filter(|(key, row)| key.node == node && row.is_ours());
            known.ours = ours.map(|(key, _)| Arc::clone(&key.id)).collect();
        }
        Ok(rows)
    }

    async fn carry_out(&self, bundle: &Bundle) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(bundle.ops.len());
        // What the catalog has to show before it is there, and to show no more before it is gone.
        let mut to_confirm: BTreeMap<&str, Option<&Registration>> = BTreeMap::new();
        for op in &bundle.ops {
            if self.winding_down.load(Ordering::SeqCst) {
                outcomes.push(Outcome::NotTried(Trouble::passing(super::WINDING_DOWN)));
                break;
            }
            let outcome = match self.step(op).await {
                Step::Done { confirm } => {
                    self.note_done(op);
                    if confirm || op.removes() {
                        to_confirm.insert(&op.key().id, op.registration().map(|registration| &**registration));
                    }
                    Outcome::Written { shown: true }
                }
                Step::Refused(words) => Outcome::Refused(words),
                Step::Doubtful(trouble) => Outcome::Unknown(trouble),
                Step::Stop(trouble) => {
                    outcomes.push(Outcome::NotTried(trouble));
                    break;
                }
                Step::Lost(trouble) => {
                    outcomes.push(Outcome::Unknown(trouble));
                    break;
                }
            };
            outcomes.push(outcome);
        }
        if let Some(Outcome::NotTried(trouble) | Outcome::Unknown(trouble)) = outcomes.last().cloned() {
            outcomes.resize(bundle.ops.len(), Outcome::NotTried(trouble));
        }
        let unconfirmed = self.unconfirmed(&bundle.node, to_confirm).await;
        for (op, outcome) in bundle.ops.iter().zip(&mut outcomes) {
            if *outcome == (Outcome::Written { shown: true }) && unconfirmed.contains(&*op.key().id) {
                *outcome = if op.removes() {
                    Outcome::Refused(STILL_SHOWN.to_owned())
                } else {
                    Outcome::Written { shown: false }
                };
            }
        }
        outcomes
    }

    /// Notes whose an instance is after the agent has acknowledged an operation.
    fn note_done(&self, op: &Op) {
        let id = &op.key().id;
        let mut known = self.known();
        known.writes += 1;
        match op {
            Op::Put { .. } | Op::Readiness { .. } => known.ours.insert(Arc::clone(id)),
            Op::Release { .. } | Op::Remove { .. } => known.ours.remove(id),
        };
    }

    async fn step(&self, op: &Op) -> Step {
        let id = &*op.key().id;
        match op {
            Op::Put { registration, drop_checks, .. } => self.register(id, registration, drop_checks).await,
            Op::Readiness { registration, .. } => match self.update_readiness(id, registration).await {
                Err(Failed::Refused { status: 404, .. }) => self.register(id, registration, &[]).await,
                answer => step(answer),
            },
            Op::Release { registration, .. } => {
                // Registering what is gone would bring it back without anybody to remove it later.
                match self.client.get_if_there::<Service>(path(&["agent", "service", id], &[])).await {
                    Ok(Some(_)) => step(self.put_service(&AgentService::without_checks(id, registration)).await),
                    Ok(None) => Step::Done { confirm: false },
                    Err(failed) => step(Err(failed)),
                }
            }
            Op::Remove { .. } => match self.put(&["agent", "service", "deregister", id], None).await {
                Err(Failed::Refused { status: 404, .. }) => Step::Done { confirm: false },
                answer => step(answer),
            },
        }
    }

    /// Registers an instance, and then sets its check: an agent keeps the old status of a check that it
    /// knows, and forgets over a restart a status that only ever came with a registration.
    async fn register(&self, id: &str, registration: &Registration, drop_checks: &[Str]) -> Step {
        if let Err(failed) = self.put_service(&AgentService::with_checks(id, registration)).await {
            return step(Err(failed));
        }
        match self.after_registering(id, registration, drop_checks).await {
            Ok(()) => Step::Done { confirm: true },
            Err(Failed::NotTried(trouble) | Failed::NoAnswer(trouble)) => Step::Lost(trouble),
            Err(Failed::Stumbled(trouble)) => Step::Doubtful(trouble),
            Err(Failed::Refused { words, .. }) => Step::Doubtful(Trouble::passing(format!(
                "Consul has the instance, but refused a change to its checks: {words}"
            ))),
        }
    }

    async fn after_registering(
        &self,
        id: &str,
        registration: &Registration,
        drop_checks: &[Str],
    ) -> Result<(), Failed> {
        for name in drop_checks {
            match self.put(&["agent", "check", "deregister", &check_id(id, name)], None).await {
                Ok(()) | Err(Failed::Refused { status: 404, .. }) => {}
                Err(failed) => return Err(failed),
            }
        }
        self.update_readiness(id, registration).await
    }

    async fn put_service(&self, service: &AgentService<'_>) -> Result<(), Failed> {
        self.put(&["agent", "service", "register"], Some(service.body())).await
    }

    async fn update_readiness(&self, id: &str, registration: &Registration) -> Result<(), Failed> {
        let Some(readiness) = registration.readiness else { return Ok(()) };
        let check = check_id(id, READINESS);
        self.put(&["agent", "check", "update", &check], Some(AgentUpdate::of(readiness).body())).await
    }

    /// Updates a check that is not there: the agent looks at the token and then for the check, and finds none.
    async fn update_nothing(&self) -> Result<(), Trouble> {
        self.recognise().await?;
        let check = format!("{}{NO_CHECK}", id_prefix(&self.identity.cluster));
        match self.put(&["agent", "check", "update", &check], Some(AgentUpdate::of(Health::Critical).body())).await {
            Ok(()) | Err(Failed::Refused { .. }) => Ok(()),
            Err(Failed::NotTried(trouble) | Failed::NoAnswer(trouble) | Failed::Stumbled(trouble)) => Err(trouble),
        }
    }

    async fn put(&self, segments: &[&str], body: Option<Bytes>) -> Result<(), Failed> {
        self.client.put(path(segments, &[]), body).await.map(drop)
    }

    /// Waits until the catalog shows these registrations, or where there is none shows the ID no more, and
    /// answers with which of them it is not so in time.
    async fn unconfirmed<'a>(
        &self,
        node: &str,
        mut wanted: BTreeMap<&'a str, Option<&'a Registration>>,
    ) -> BTreeSet<&'a str> {
        let deadline = Instant::now() + CONFIRMATION;
        let mut index = 0;
        while !wanted.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.winding_down.load(Ordering::SeqCst) {
                break;
            }
            let query = self.catalog_services(node);
            let looked = async {
                if index == 0 {
                    self.client.get::<NodeServices>(query).await
                } else {
                    self.client.wait(query, index, left.min(Duration::from_secs(1))).await
                }
            };
            let Ok(Ok(answer)) = tokio::time::timeout(left, looked).await else { break };
            let checks = Healths::default();
            let found = read_all(answer.value.services.unwrap_or_default(), &checks, &mut Pool::default());
            wanted.retain(|id, registration| match (registration, found.get(*id)) {
                (Some(registration), Some(there)) => !registration.same_service(there),
                (Some(_), None) | (None, Some(_)) => true,
                (None, None) => false,
            });
            if answer.index <= index {
                // Nothing new: an answer that comes at once all the same must not make us spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            index = answer.index;
        }
        wanted.into_keys().collect()
    }
}

impl Registry for Agent {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Trouble>> {
        Box::pin(self.introduce())
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Trouble>> {
        Box::pin(async move { Ok((self.introduce().await?, self.rows().await?)) })
    }

    fn placement(&self) -> Option<Placement> {
        None
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Trouble>> {
        Box::pin(self.rows())
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Trouble>> {
        Box::pin(async move {
            let mut rows = self.rows().await?;
            rows.retain(|key, _| key.node == *node);
            Ok(rows)
        })
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

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(self.update_nothing())
    }

    fn tidy<'a>(&'a self, _: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Trouble>> {
        // The agent's node is its own.
        Box::pin(async { Ok(()) })
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Trouble>> {
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

fn step(answer: Result<(), Failed>) -> Step {
    match answer {
        Ok(()) => Step::Done { confirm: false },
        Err(Failed::NotTried(trouble)) => Step::Stop(trouble),
        Err(Failed::NoAnswer(trouble)) => Step::Lost(trouble),
        Err(Failed::Stumbled(trouble)) => Step::Doubtful(trouble),
        Err(Failed::Refused { words, .. }) => Step::Refused(words),
    }
}

fn name_and_id(config: &AgentConfig) -> Option<(&str, &str)> {
    config.node_name.as_deref().zip(config.node_id.as_deref())
}

fn nameless() -> Trouble {
    Trouble::passing("what answers at Consul's address does not say which agent it is")
}

fn several(one: &AgentConfig, other: &AgentConfig) -> Trouble {
    let name = |config: &AgentConfig| {
        let (name, id) = name_and_id(config).unwrap_or_default();
        format!("{name} ({id})")
    };
    Trouble {
        retry_after: Some(Duration::from_secs(10)),
        ..Trouble::passing(format!(
            "several agents answer at Consul's address, {} and {}: an instance would be registered with one and \
             deregistered with another. Use the address of one agent, or --registration=catalog",
            name(one),
            name(other)
        ))
    }
}

//! The loop: what changed → what should be there → what differs → writes → what became of them.
//!
//! In: the watches' [`Event`]s and answers of Consul and Kubernetes. Out: bundles for the [`Registry`], writes
//! to [`Kubernetes`], and a [`Snapshot`] for whoever asks. One task owns all state; everything that waits is a
//! future that this task polls, so dropping the engine is a crash, and the simulation does just that.
//!
//! - `reconcile`: one dirty resource to its operations; the guard over removals by inference.
//! - `lanes`: one bundle at a time to each Consul node; footing, sweeps, trouble.
//! - `report`: status, finalizers, Events.
//! - `unready`: most instances stop being ready at once.
//!
//! Time is tokio's (which a simulation can halt and turn), chance is a seeded source, and both servers are
//! behind traits.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster::event::Event;
use crate::cluster::lease::{self, Leads};
use crate::cluster::world::World;
use crate::cluster::{Kubernetes, ReadError, WriteError};
use crate::consul::mirror::Mirror;
use crate::consul::{Outcome, Registry, Rows, Trouble};
use crate::model::desired::Placement;
use crate::model::guard::{Cause, CrdState};
use crate::model::isolation::Isolation;
use crate::model::names::{Identity, ResourceKey, Str};
use crate::model::plan::{Plan, Planned};
use crate::model::registration::{Health, Ownership, Row, RowKey};
use crate::model::unready::MassUnready;

mod alarms;
mod lanes;
pub mod metrics;
pub mod preview;
mod reconcile;
mod report;
mod unready;

use alarms::{Alarm, Alarms};
use metrics::{Metrics, Snapshot};
use reconcile::{Dirty, Handover, LetPass, MissingFrom, Refused};
use report::Reports;

/// What the engine is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which cluster it acts for.
    pub identity: Identity,
    /// How long between whole looks at Consul.
    pub sweep_interval: Duration,
    /// How long most instances are kept passing that stop being ready at once; 0 for not at all.
    pub hold_mass_unready: Duration,
    /// How many Consul nodes are written to side by side.
    pub concurrency: usize,
    /// How long what is under way may take after the order to stop.
    pub grace: Duration,
}

/// What others ask the engine.
#[derive(Debug)]
pub enum Question {
    /// How things stand. That an answer comes also shows that the loop turns.
    Snapshot(oneshot::Sender<Snapshot>),
}

/// The engine.
pub struct Engine {
    config: Config,
    /// Until when this replica acts.
    leads: Leads,
    registry: Arc<dyn Registry>,
    kubernetes: Arc<dyn Kubernetes>,
    random: fastrand::Rng,
    metrics: Metrics,

    world: World,
    mirror: Mirror,
    plan: Plan,
    footing: Footing,
    /// Rises whenever the footing is lost: answers to what was asked before are not believed.
    era: u64,
    trouble: Option<Standstill>,
    /// How often in a row Consul failed us. That it can be read does not show that it can be written.
    failures: u32,
    /// Which write is at fault, where some fail and others do not.
    isolation: Isolation,
    /// Writes that failed, and wait for the answer to whether others are carried out.
    failed_writes: Vec<FailedWrites>,
    checking_writes: bool,
    last_sweep: Option<Instant>,
    next_sweep: Option<Instant>,
    reading: bool,

    dirty: BTreeMap<ResourceKey, Dirty>,
    /// Dirty resources whose namespace has not been listed yet.
    parked: BTreeMap<ResourceKey, Dirty>,
    /// Resources with removals by inference, which wait for a second look at Kubernetes.
    held: BTreeSet<ResourceKey>,
    /// Resources whose instances stay although their endpoints are missing.
    missing: BTreeMap<ResourceKey, MissingFrom>,
    /// Removals by inference that were let pass without a second look, since when, and of how many rows.
    let_pass: LetPass,
    /// Those that the second look under way is about.
    second_look: Option<BTreeSet<ResourceKey>>,
    /// Resources that ended, and whose instances wait for the word that their definition did not.
    ended: BTreeMap<ResourceKey, Dirty>,
    /// Those that the question under way is about: it says nothing of what ended later.
    asked_about: Option<BTreeSet<ResourceKey>>,
    /// Those of which it is known that they ended by themselves.
    ended_alone: BTreeSet<ResourceKey>,
    /// Resources that ended, whose instances stay since nobody can say whether their definition does.
    undecided: BTreeSet<ResourceKey>,
    definition_went: bool,
    /// Instances that stopped being ready of late while their endpoints stay.
    mass_unready: MassUnready,
    /// When the episode began that Kubernetes is being asked about again.
    asks_about_unready: Option<u64>,
    /// What the times of that count from.
    began: Instant,
    /// Resources whose instances go once those of the next holder of a name are there.
    handovers: BTreeMap<ResourceKey, Handover>,
    refused: BTreeMap<ResourceKey, BTreeMap<RowKey, Refused>>,
    /// Instances to be registered again although nothing about them has changed.
    again: BTreeSet<RowKey>,
    conflicts: BTreeMap<ResourceKey, Vec<(RowKey, String)>>,

    /// Nodes that are being written to or read.
    busy: BTreeSet<Str>,
    /// Nodes on which a write may have landed or not: they are read before they are written to again.
    uncertain: BTreeSet<Str>,
    /// Resources of which a write may have landed or not, and on which nodes: until these are read nobody can
    /// say that nothing of such a resource is left.
    in_doubt: BTreeMap<ResourceKey, BTreeSet<Str>>,
    /// Nodes that were read for their users' tags since the last write to them.
    looked: BTreeSet<Str>,
    in_flight: BTreeMap<RowKey, Planned>,
    /// How many writes of a resource wait or are under way, and since when it has not been as desired.
    unsettled: BTreeMap<ResourceKey, Unsettled>,
    cursor: Option<Str>,

    reports: Reports,
    /// Bundles under way: what an order to stop waits for.
    bundles: FuturesUnordered<BoxFuture<'static, Landing>>,
    /// Everything else under way.
    flights: FuturesUnordered<BoxFuture<'static, Landing>>,
    alarms: Alarms,
}

/// Where we stand with Consul.
#[derive(Debug)]
enum Footing {
    /// Not known yet, or lost.
    None,
    /// Making ourselves known.
    Connecting,
    /// Reading what is there.
    Reading(Placement),
    /// The mirror is whole.
    Standing(Placement),
}

/// Consul is in trouble.
#[derive(Debug)]
struct Standstill {
    message: String,
    /// Whether it was a write that failed, of which a look at its node tells all.
    of_a_write: bool,
    /// Nothing is asked of Consul before; none once the time has come.
    until: Option<Instant>,
}

/// Writes that went to Consul together, and got no answer of their own.
#[derive(Debug)]
struct FailedWrites {
    writes: Vec<Planned>,
    trouble: Trouble,
}

/// A resource that is not yet as desired in Consul.
#[derive(Debug)]
struct Unsettled {
    since: Instant,
    cause: Cause,
    in_flight: usize,
    /// Whether something is left to write when all that is under way has landed.
    more: bool,
}

/// An answer.
enum Landing {
    Connected { era: u64, answer: Result<Placement, Trouble> },
    Read { era: u64, since: u64, answer: Result<Rows, Trouble> },
    NodeRead { era: u64, node: Str, since: u64, answer: Result<Rows, Trouble> },
    Applied { era: u64, node: Str, planned: Vec<Planned>, outcomes: Vec<Outcome> },
    WritesChecked { era: u64, answer: Result<(), Trouble> },
    Tidied { era: u64, answer: Result<(), Trouble> },
    SecondLook { era: u64, answer: Box<Result<World, ReadError>> },
    Definition { era: u64, answer: Result<CrdState, ReadError> },
    MassUnready { answer: Box<Result<World, ReadError>> },
    StatusWritten { key: ResourceKey, answer: Result<(), WriteError> },
    StatusForgotten { key: ResourceKey, answer: Result<(), WriteError> },
    FinalizerWritten { key: ResourceKey, answer: Result<(), WriteError> },
    EventWritten(Result<(), WriteError>),
}

impl Engine {
    /// An engine over an empty World; nothing is asked of anyone before [`run`](Self::run).
    #[must_use]
    pub fn new(
        config: Config,
        world: World,
        registry: Arc<dyn Registry>,
        kubernetes: Arc<dyn Kubernetes>,
        random: fastrand::Rng,
        metrics: Metrics,
    ) -> Self {
        Self {
            config,
            leads: lease::alone(),
            registry,
            kubernetes,
            random,
            metrics,
            world,
            mirror: Mirror::default(),
            plan: Plan::default(),
            footing: Footing::None,
            era: 0,
            trouble: None,
            failures: 0,
            isolation: Isolation::default(),
            failed_writes: Vec::new(),
            checking_writes: false,
            last_sweep: None,
            next_sweep: None,
            reading: false,
            dirty: BTreeMap::new(),
            parked: BTreeMap::new(),
            held: BTreeSet::new(),
            missing: BTreeMap::new(),
            let_pass: LetPass::default(),
            second_look: None,
            ended: BTreeMap::new(),
            asked_about: None,
            ended_alone: BTreeSet::new(),
            undecided: BTreeSet::new(),
            definition_went: false,
            mass_unready: MassUnready::default(),
            asks_about_unready: None,
            began: Instant::now(),
            handovers: BTreeMap::new(),
            refused: BTreeMap::new(),
            again: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            busy: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            in_doubt: BTreeMap::new(),
            looked: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            cursor: None,
            reports: Reports::default(),
            bundles: FuturesUnordered::new(),
            flights: FuturesUnordered::new(),
            alarms: Alarms::default(),
        }
    }

    /// The same engine, which acts only while this replica leads.
    #[must_use]
    pub fn led_by(self, leads: Leads) -> Self {
        Self { leads, ..self }
    }

    /// Runs until `stop` is ready or the watches have ended, then finishes what is under way within the grace
    /// period. Registrations stay.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut questions: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut leads = self.leads.clone();
        self.kubernetes.want(&self.world.wanted());
        loop {
            self.settle();
            let alarm = self.alarms.next();
            let alarm = async {
                match alarm {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(question) = questions.recv() => self.answer(question),
                Ok(()) = leads.changed() => {
                    leads.borrow_and_update();
                    self.mind_the_lead();
                }
                Some(landing) = self.bundles.next() => self.land(landing),
                Some(landing) = self.flights.next() => self.land(landing),
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => break,
                },
                () = alarm => {}
            }
            // What has arrived meanwhile is settled together: this is where writes become bundles.
            for _ in 0..MOST_AT_ONCE {
                match events.try_recv() {
                    Ok(event) => self.hear(event),
                    Err(_) => break,
                }
            }
            while let Some(Some(landing)) = self.bundles.next().now_or_never() {
                self.land(landing);
            }
            while let Some(Some(landing)) = self.flights.next().now_or_never() {
                self.land(landing);
            }
            let now = Instant::now();
            while let Some(alarm) = self.alarms.ring(now) {
                self.ring(alarm);
            }
        }
        self.finish().await;
    }

    /// Whether this replica is the one that acts.
    fn leads(&self) -> bool {
        self.leads.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Stands by when another replica acts: what happens is heard, and nothing is asked of Consul or written.
    fn mind_the_lead(&mut self) {
        if self.leads() {
            return;
        }
        self.trouble = None;
        self.failures = 0;
        self.mass_unready = MassUnready::default();
        if !matches!(self.footing, Footing::None) {
            self.lose_footing();
        }
    }

    /// Does everything that can be done without waiting.
    fn settle(&mut self) {
        if !self.leads() {
            return;
        }
        self.keep_footing();
        self.follow_placement();
        self.reconcile_dirty();
        // A name that was freed may have brought somebody's needs along.
        self.say_what_is_wanted();
        self.launch_bundles();
        self.write_reports();
    }

    fn hear(&mut self, event: Event) {
        let completes = event.change.completes_a_list();
        let now = Instant::now();
        for dirtied in self.world.apply(event, now) {
            match dirtied.cause {
                Some(cause) => self.mark(dirtied.key, cause, now),
                // The finalizer may be on it that a registration waits for.
                None if self.unsettled.contains_key(&dirtied.key) => self.mark_again(dirtied.key),
                None => self.reports.tend(dirtied.key),
            }
        }
        self.say_what_is_wanted();
        if completes {
            for (key, dirty) in std::mem::take(&mut self.parked) {
                self.mark(key, dirty.cause, dirty.since);
            }
            // Rows whose owner nobody has heard of show only now that the list is whole.
            let orphans: Vec<ResourceKey> =
                self.mirror.owners().filter(|owner| self.world.resource(owner).is_none()).cloned().collect();
            for owner in orphans {
                self.mark(owner, Cause::Inferred, now);
            }
        }
    }

    fn say_what_is_wanted(&mut self) {
        if let Some(wanted) = self.world.wanted_anew() {
            self.kubernetes.want(&wanted);
        }
    }

    /// Marks a resource dirty; inference outweighs observation, the earlier time the later.
    fn mark(&mut self, key: ResourceKey, cause: Cause, since: Instant) {
        if self.world.resource(&key).is_none() && !self.leads() {
            // Whoever leads next finds in Consul what is left of it.
            self.dirty.remove(&key);
            self.reports.forget(&key);
            return;
        }
        if !matches!(self.footing, Footing::Standing(_)) {
            self.reports.unreachable(key.clone());
        }
        let dirty = self.dirty.entry(key).or_insert(Dirty { cause, since });
        dirty.cause = dirty.cause.max(cause);
        dirty.since = dirty.since.min(since);
    }

    /// Marks a resource that is not settled dirty again, for the reason and since the time that it was at first.
    fn mark_again(&mut self, key: ResourceKey) {
        let (cause, since) =
            self.unsettled.get(&key).map_or((Cause::Observed, Instant::now()), |known| (known.cause, known.since));
        self.mark(key, cause, since);
    }

    fn land(&mut self, landing: Landing) {
        match landing {
            Landing::Connected { era, answer } => self.land_connected(era, answer),
            Landing::Read { era, since, answer } => self.land_read(era, since, answer),
            Landing::NodeRead { era, node, since, answer } => self.land_node_read(era, &node, since, answer),
            Landing::Applied { era, node, planned, outcomes } => self.land_applied(era, node, planned, outcomes),
            Landing::WritesChecked { era, answer } => self.land_writes_checked(era, answer),
            Landing::Tidied { era, answer } => {
                if let Err(trouble) = answer
                    && era == self.era
                {
                    self.suffer(trouble);
                }
            }
            Landing::SecondLook { era, answer } => self.land_second_look(era, *answer),
            Landing::Definition { era, answer } => self.land_definition(era, answer),
            Landing::MassUnready { answer } => self.land_mass_unready(*answer),
            Landing::StatusWritten { key, answer } => self.land_status(key, answer),
            Landing::StatusForgotten { key, answer } => self.land_forgotten(key, answer),
            Landing::FinalizerWritten { key, answer } => self.land_finalizer(&key, answer),
            Landing::EventWritten(answer) => {
                self.reports.landed();
                if let Err(error) = answer {
                    tracing::debug!(%error, "an Event was not written");
                }
            }
        }
    }

    fn ring(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Sweep => {
                if self.next_sweep.is_some_and(|at| at <= Instant::now()) {
                    self.next_sweep = None;
                    self.sweep();
                }
            }
            Alarm::Resume => {
                if let Some(trouble) = &mut self.trouble
                    && trouble.until.is_some_and(|until| until <= Instant::now())
                {
                    trouble.until = None;
                    // Whether all is well again, and what was lost meanwhile, only a look can tell.
                    if !trouble.of_a_write {
                        self.sweep();
                    }
                }
            }
            Alarm::Reconcile(key) => self.mark_again(key),
            Alarm::Report(key) => self.reports.tend(key),
            Alarm::MassUnready => self.confirm_unready(),
        }
    }

    fn answer(&self, question: Question) {
        let Question::Snapshot(reply) = question;
        // Whoever asked may have gone.
        let _ = reply.send(self.snapshot());
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            not_ready: self.not_ready(),
            leads: self.leads(),
            resources: self.world.entries().filter(|entry| entry.resource.ours).count(),
            dirty: self.dirty.len() + self.parked.len(),
            outstanding: self.plan.len() + self.in_flight.len(),
            refused: self.refused.values().map(BTreeMap::len).sum(),
            held: self.held.len() + self.undecided.len(),
            mass_unready: self.mass_unready.len(),
            mass_unready_in_words: self.mass_unready_in_words(),
            sweep_age: self.last_sweep.map(|at| at.elapsed()),
            ..Snapshot::default()
        };
        for (key, row) in self.mirror.rows().filter(|(_, row)| row.is_ours()) {
            snapshot.elsewhere += usize::from(self.is_left_elsewhere(key, row));
            match row.health {
                Health::Passing => snapshot.passing += 1,
                Health::Warning => snapshot.warning += 1,
                Health::Critical => snapshot.critical += 1,
            }
        }
        snapshot
    }

    /// Whether another agent holds an instance that is for this Lictor to take away.
    fn is_left_elsewhere(&self, key: &RowKey, row: &Row) -> bool {
        let (Footing::Standing(placement), Ownership::Ours(owner)) = (&self.footing, &row.ownership) else {
            return false;
        };
        placement.is_another_agent(&key.node)
            && self.world.watches(&owner.namespace)
            && self.world.resource(owner).is_none_or(|entry| entry.resource.ours)
    }

    fn not_ready(&self) -> Option<String> {
        if !self.world.is_synced() {
            return Some("not all watches have completed their first list".to_owned());
        }
        if let Some(trouble) = &self.trouble {
            return Some(format!("Consul: {}", trouble.message));
        }
        match self.footing {
            Footing::Standing(_) => None,
            // One that stands by knows Kubernetes, and that is all it needs.
            _ if !self.leads() => None,
            _ => Some("Consul's registrations have not been read yet".to_owned()),
        }
    }

    /// Waits for the writes that are under way, no longer than the grace period.
    async fn finish(mut self) {
        self.registry.wind_down();
        let (under_way, grace) = (self.in_flight.len(), self.config.grace);
        let all = async {
            while let Some(landing) = self.bundles.next().await {
                self.land(landing);
            }
        };
        if timeout(grace, all).await.is_err() {
            tracing::warn!(given_up = self.in_flight.len(), "gave up writes that were under way");
        } else if under_way > 0 {
            tracing::info!(finished = under_way, "finished the writes that were under way");
        }
    }
}

/// The most events that are taken in before anything is written.
const MOST_AT_ONCE: usize = 4096;

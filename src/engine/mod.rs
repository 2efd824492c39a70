//! The loop: what changed → what should be there → what differs → writes → what became of them.
//!
//! In: the watches' [`Event`]s and answers of Consul and Kubernetes. Out: bundles for the [`Registry`], writes to
//! [`Kubernetes`], and [`Snapshot`]s for whoever asks. One task owns all state; everything that waits is a future that
//! this task polls, so dropping the engine is a crash, and the simulation does just that.
//!
//! The state is a few machines that know nothing of each other: plain structs that take what happened and the time, and
//! answer what to do. The engine carries their answers from one to the next.
//!
//! - `decide`: the decision about one resource, pure.
//! - `session`: connected, loaded, ready; outages; answers that came too late.
//! - `resync`: which Consul node is read next, and when.
//! - `resources`: a record for each resource, and the queue of those to be reconciled; `refusals`: what Consul refused.
//! - `removals`: which removals wait for Kubernetes to confirm them.
//! - `lanes`: one bundle at a time to each Consul node.
//! - `reports`: what Kubernetes is to be told, in which order and how fast.
//! - `timers`: what is due when.
//!
//! And what the engine does with them: `reconcile` takes a dirty resource to its writes, `confirm` asks Kubernetes about
//! removals, `exchange` asks and writes Consul, `tell` writes status, finalizers and Events, `unready` watches for most
//! instances that stop being ready at once.
//!
//! Time is tokio's (which a simulation can halt and turn), chance is a seeded source, and both servers are behind traits.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet, yield_now};
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::cause::{Cause, CrdState};
use crate::model::desired::Placement;
use crate::model::ids::{Identity, ResourceKey, Str};
use crate::model::plan::Planned;
use crate::model::policy::Policy;
use crate::ports::{Indexes, Outcome, Registry, Rows, Unavailable};
use crate::ports::{Kubernetes, ReadError, WriteError};
use crate::ports::{Leads, always};
use crate::state::event::Event;
use crate::state::mirror::Mirror;
use crate::state::world::World;

mod confirm;
pub(crate) mod decide;
mod exchange;
pub(crate) mod instances;
mod lanes;
pub mod metrics;
mod queue;
mod reconcile;
mod refusals;
mod removals;
mod reports;
mod resources;
mod resync;
mod session;
mod snapshot;
mod tell;
mod texts;
mod timers;
mod unready;
mod work;

pub use snapshot::Snapshot;
pub use work::TURN;

use lanes::Lanes;
use metrics::Metrics;
use removals::Removals;
use reports::Reports;
use resources::Resources;
use resync::{Reader, Resync};
use session::{Session, Stamped};
use timers::{Timer, Timers};
use unready::Unready;
use work::Work;

/// The settings of the engine, which do not change.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster that it acts for.
    pub identity: Identity,
    /// The longest time to read everything of this cluster from Consul and to compare it, once Consul has changed.
    pub resync_interval: Duration,
    /// The time for which instances are kept passing when most stop being ready at once; 0 for not at all.
    pub hold_mass_unready: Duration,
    /// The average number of writes of status and Events to Kubernetes per second; at least 1.
    pub status_rate: u32,
    /// The time that writes under way may take after the order to stop.
    pub grace: Duration,
    /// The number of instances that each part of a turn of the loop takes on, at least 1: the rest waits for the next turn.
    pub turn: usize,
}

/// A question to the engine.
#[derive(Debug)]
pub enum Question {
    /// Asks for a snapshot of the state. That an answer comes also shows that the loop turns.
    Snapshot(oneshot::Sender<Snapshot>),
}

/// The engine: all state, and the machines that work on it.
pub struct Engine {
    config: Config,
    ports: Ports,
    metrics: Metrics,
    world: World,
    mirror: Mirror,
    session: Session,
    resync: Resync,
    resources: Resources,
    removals: Removals,
    lanes: Lanes,
    reports: Reports,
    unready: Unready,
    timers: Timers,
    tasks: Tasks,
}

/// The ways out.
struct Ports {
    registry: Arc<dyn Registry>,
    kubernetes: Arc<dyn Kubernetes>,
    /// Says until when this replica acts.
    leads: Leads,
    /// The administrator's policy.
    policies: watch::Receiver<Arc<Policy>>,
    random: fastrand::Rng,
}

/// The tasks under way, one for each request: an answer that has come counts as one, however busy the loop is.
/// Dropping it ends them.
#[derive(Default)]
struct Tasks {
    /// Bundles: what an order to stop waits for.
    bundles: JoinSet<Completion>,
    others: JoinSet<Completion>,
}

impl Tasks {
    /// Starts something that answers with a [`Completion`].
    fn spawn(&mut self, task: impl Future<Output = Completion> + Send + 'static) {
        self.others.spawn(task);
    }

    /// Starts a bundle.
    fn spawn_bundle(&mut self, task: impl Future<Output = Completion> + Send + 'static) {
        self.bundles.spawn(task);
    }

    /// Takes an answer that has come.
    fn completed(&mut self) -> Option<Completion> {
        self.bundles.try_join_next().or_else(|| self.others.try_join_next()).map(completion)
    }
}

/// Gives what a task has come to. A bug in it is one of the engine, as if it had run there.
fn completion(joined: Result<Completion, JoinError>) -> Completion {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The first event of a turn of the loop.
enum Next {
    Question(Question),
    Leadership,
    Policy,
    Completion(Completion),
    Event(Event),
    Timer,
    /// The turn before left something to do.
    Rest,
}

/// The answer of Consul's list at the beginning of a round.
struct Listed {
    /// The indexes of Consul just before the list.
    indexes: Indexes,
    /// The nodes that may have something of ours.
    nodes: BTreeSet<Str>,
    /// The names that others have; none where the policy does not ask for them.
    others: Option<Result<BTreeSet<Str>, Unavailable>>,
}

/// An answer to a request of the engine.
enum Completion {
    Connected(Stamped<Result<Placement, Unavailable>>),
    Resumed(Stamped<Result<bool, Unavailable>>),
    IndexesRead(Stamped<Result<Indexes, Unavailable>>),
    Listed { since: u64, answer: Stamped<Result<Listed, Unavailable>> },
    NodeRead { node: Str, since: u64, reader: Reader, answer: Stamped<Result<Rows, Unavailable>> },
    Applied { node: Str, planned: Vec<Planned>, outcomes: Stamped<Vec<Outcome>> },
    WritesChecked(Stamped<Result<(), Unavailable>>),
    Tidied(Stamped<Result<(), Unavailable>>),
    Relisted(Stamped<Box<Result<World, ReadError>>>),
    Definition(Stamped<Result<CrdState, ReadError>>),
    MassUnready(Box<Result<World, ReadError>>),
    StatusWritten { key: ResourceKey, answer: Result<(), WriteError> },
    StatusForgotten { key: ResourceKey, answer: Result<(), WriteError> },
    FinalizerWritten { key: ResourceKey, answer: Result<(), WriteError> },
    EventWritten(Result<(), WriteError>),
}

impl Completion {
    /// Counts the instances that it is about.
    fn len(&self) -> usize {
        match self {
            Self::Applied { planned, .. } => planned.len(),
            _ => 0,
        }
    }
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
            reports: Reports::new(config.status_rate),
            config,
            ports: Ports { registry, kubernetes, leads: always(), policies: watch::channel(Arc::default()).1, random },
            metrics,
            world,
            mirror: Mirror::default(),
            session: Session::default(),
            resync: Resync::default(),
            resources: Resources::default(),
            removals: Removals::default(),
            lanes: Lanes::default(),
            unready: Unready::default(),
            timers: Timers::default(),
            tasks: Tasks::default(),
        }
    }

    /// Has the engine hold resources to the policy that is in force.
    #[must_use]
    pub fn under(mut self, policies: watch::Receiver<Arc<Policy>>) -> Self {
        self.ports.policies = policies;
        self
    }

    /// Makes the engine act only while this replica leads.
    #[must_use]
    pub fn led_by(mut self, leads: Leads) -> Self {
        self.ports.leads = leads;
        self
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
        let mut leads = self.ports.leads.clone();
        let mut policies = self.ports.policies.clone();
        self.ports.kubernetes.want(&self.world.wanted());
        let mut begun = Instant::now();
        loop {
            let is_done = self.step();
            self.metrics.turned(begun.elapsed());
            let due = self.timers.next();
            let timer = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                biased;
                () = &mut stop => break,
                Some(question) = questions.recv() => Next::Question(question),
                Ok(()) = leads.changed() => Next::Leadership,
                Ok(()) = policies.changed() => Next::Policy,
                Some(joined) = self.tasks.bundles.join_next() => Next::Completion(completion(joined)),
                Some(joined) = self.tasks.others.join_next() => Next::Completion(completion(joined)),
                event = events.recv() => match event {
                    Some(event) => Next::Event(event),
                    None => break,
                },
                () = timer => Next::Timer,
                // Others have their turn in between.
                () = yield_now(), if !is_done => Next::Rest,
            };
            begun = Instant::now();
            let (mut events_work, mut answers_work) = (self.work(), self.work());
            match next {
                Next::Question(question) => self.answer(question),
                Next::Leadership => {
                    leads.borrow_and_update();
                    self.on_leadership();
                }
                Next::Policy => {
                    let policy = Arc::clone(&policies.borrow_and_update());
                    self.on_policy(policy);
                }
                Next::Completion(completion) => self.on_completion(completion, &mut answers_work),
                Next::Event(event) => self.on_event(event, &mut events_work),
                Next::Timer | Next::Rest => {}
            }
            // What has arrived meanwhile is taken in together: this is where writes become bundles.
            while events_work.is_left()
                && let Ok(event) = events.try_recv()
            {
                self.on_event(event, &mut events_work);
            }
            while answers_work.is_left()
                && let Some(completion) = self.tasks.completed()
            {
                self.on_completion(completion, &mut answers_work);
            }
            let now = Instant::now();
            while let Some(timer) = self.timers.take_due(now) {
                self.on_timer(timer);
            }
        }
        self.finish().await;
    }

    /// Says whether this replica is the leader.
    fn leads(&self) -> bool {
        self.ports.leads.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Stands by when another replica acts: events are taken in, and nothing is asked of Consul or written.
    fn on_leadership(&mut self) {
        if self.leads() {
            return;
        }
        self.session.stand_by();
        self.unready.reset();
        if self.session.has_begun() && !self.session.is_suspended() {
            self.suspend_session();
        }
    }

    /// Holds resources to another policy.
    fn on_policy(&mut self, policy: Arc<Policy>) {
        let now = Instant::now();
        for dirtied in self.world.follow(policy) {
            self.enqueue(dirtied.key, dirtied.cause.unwrap_or(Cause::Observed), now);
        }
        self.update_watches();
        if self.world.lacks_others() {
            self.resync.hurry();
        }
    }

    /// The work that a part of a turn may take on.
    fn work(&self) -> Work {
        Work::on(self.config.turn)
    }

    /// Does what can be done without waiting. Answers whether that is all, and not only as much as a turn takes on.
    fn step(&mut self) -> bool {
        if !self.leads() {
            return true;
        }
        self.continue_session();
        self.follow_placement();
        self.reconcile_dirty();
        // A name that was freed may have brought somebody's needs along.
        self.update_watches();
        self.launch_bundles();
        let all_told = self.write_reports();
        all_told && !(self.session.is_ready() && self.resources.has_dirty())
    }

    fn on_event(&mut self, event: Event, work: &mut Work) {
        work.heard(event.change.endpoints());
        let completes = event.change.completes_a_list();
        let now = Instant::now();
        for dirtied in self.world.apply(event, now) {
            match dirtied.cause {
                Some(cause) => self.enqueue(dirtied.key, cause, now),
                // The finalizer may be on it that a registration waits for.
                None if self.resources.get(&dirtied.key).progress.is_some() => self.enqueue_again(dirtied.key),
                None => self.reports.enqueue(dirtied.key),
            }
        }
        self.update_watches();
        if completes {
            for (key, dirty) in self.resources.take_waiting() {
                self.enqueue(key, dirty.cause, dirty.since);
            }
            // Rows whose owner nobody has heard of show only now that the list is whole.
            let orphans: Vec<ResourceKey> =
                self.mirror.owners().filter(|owner| self.world.resource(owner).is_none()).cloned().collect();
            for owner in orphans {
                self.enqueue(owner, Cause::Inferred, now);
            }
        }
    }

    fn update_watches(&mut self) {
        if let Some(wanted) = self.world.wanted_anew() {
            self.ports.kubernetes.want(&wanted);
        }
        let to_list = self.world.take_lists();
        if !to_list.is_empty() {
            self.ports.kubernetes.list_anew(&to_list);
        }
    }

    /// Has a resource reconciled by a new decision: something that a decision goes by has changed.
    fn enqueue(&mut self, key: ResourceKey, cause: Cause, since: Instant) {
        self.resources.forget_decision(&key);
        self.enqueue_kept(key, cause, since);
    }

    /// Has a resource reconciled by the decision that is kept, as long as that holds.
    fn enqueue_kept(&mut self, key: ResourceKey, cause: Cause, since: Instant) {
        if self.world.resource(&key).is_none() && !self.leads() {
            // Whoever leads next finds in Consul what is left of it.
            self.resources.forget_dirty(&key);
            self.reports.forget(&key);
            return;
        }
        if !self.session.is_ready() {
            self.reports.enqueue_unreachable(key.clone());
        }
        self.resources.enqueue(key, cause, since);
    }

    /// Has a resource reconciled again, for the reason and since the time that it was at first.
    fn enqueue_again(&mut self, key: ResourceKey) {
        let now = Instant::now();
        let dirty = self.resources.dirty_of(&key, now);
        self.enqueue_kept(key, dirty.cause, dirty.since);
    }

    fn on_completion(&mut self, completion: Completion, work: &mut Work) {
        work.did(completion.len());
        match completion {
            Completion::Connected(answer) => self.on_connected(answer),
            Completion::Resumed(answer) => self.on_resumed(answer),
            Completion::IndexesRead(answer) => self.on_indexes_read(answer),
            Completion::Listed { since, answer } => self.on_listed(since, answer),
            Completion::NodeRead { node, since, reader, answer } => self.on_node_read(&node, since, reader, answer),
            Completion::Applied { node, planned, outcomes } => self.on_applied(&node, planned, outcomes),
            Completion::WritesChecked(answer) => self.on_writes_checked(answer),
            Completion::Tidied(answer) => {
                if let Some(Err(outage)) = self.session.accept(answer) {
                    self.failed(&outage, false);
                }
            }
            Completion::Relisted(answer) => self.on_relisted(answer),
            Completion::Definition(answer) => self.on_definition(answer),
            Completion::MassUnready(answer) => self.on_mass_unready(*answer),
            Completion::StatusWritten { key, answer } => self.on_status_written(key, answer),
            Completion::StatusForgotten { key, answer } => self.on_status_forgotten(key, answer),
            Completion::FinalizerWritten { key, answer } => self.on_finalizer_written(key, answer),
            Completion::EventWritten(answer) => {
                self.reports.completed(None);
                if let Err(error) = answer {
                    tracing::debug!(%error, "an Event was not written");
                }
            }
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Resume => {
                if self.session.resume(Instant::now()) && self.session.is_ready() {
                    self.resync.hurry();
                }
            }
            Timer::Reconcile(key) => self.enqueue_again(key),
            Timer::Report(key) => self.reports.enqueue(key),
            Timer::Forget => {
                if !self.leads() && self.session.is_suspended() {
                    self.reset_session();
                }
            }
            // The next step reads and writes what there is.
            Timer::Resync | Timer::Reports => {}
            Timer::MassUnready => self.confirm_unready(),
        }
    }

    fn answer(&self, question: Question) {
        let Question::Snapshot(reply) = question;
        // Whoever asked may have gone.
        let _ = reply.send(self.snapshot());
    }

    /// Waits for the writes that are under way, no longer than the grace period.
    async fn finish(mut self) {
        self.ports.registry.wind_down();
        let (under_way, grace) = (self.lanes.in_flight_len(), self.config.grace);
        let all = async {
            while let Some(joined) = self.tasks.bundles.join_next().await {
                let mut work = self.work();
                self.on_completion(completion(joined), &mut work);
            }
        };
        if timeout(grace, all).await.is_err() {
            tracing::warn!(
                given_up = self.lanes.in_flight_len(),
                "stopped before all writes were finished; the next start repairs what is missing"
            );
        } else if under_way > 0 {
            tracing::info!(finished = under_way, "finished all writes that were under way");
        }
    }
}

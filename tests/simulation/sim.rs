//! What all parts of one simulation share: both servers' models, the faults of the network, chance, and what was found.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::actors::Snapshot;
use crate::cluster::Cluster;
use crate::consul::Consul;
use crate::leadership::Leadership;
use crate::oracle::Oracle;
use crate::planted_faults::PlantedFault;
use crate::setup::Setup;

/// One simulation; cheap to clone.
#[derive(Clone)]
pub struct Sim(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    consul_moved: Notify,
    cluster_moved: Notify,
    lictor_killed: Notify,
}

/// Everything that moves.
pub struct State {
    pub setup: Setup,
    pub consul: Consul,
    pub cluster: Cluster,
    pub network_faults: NetworkFaults,
    /// No more faults, crashes or changes: what is unsettled may settle.
    pub calm: bool,
    /// Whether what is happening to Kubernetes ends the life of Lictor, too.
    pub kills_lictor: bool,
    pub random: Streams,
    pub oracle: Oracle,
    pub leadership: Leadership,
    pub stats: Stats,
    /// Rises whenever Consul restarts with nothing.
    pub consul_epoch: u64,
    /// An older state of the catalog, that may come back.
    pub snapshot: Option<Snapshot>,
    /// Whether what the cluster before has left is being taken over: nothing of it goes out of reach meanwhile.
    pub taking_over: bool,
    /// An agent has joined under a name of ours: once in a run, so that where instances belong does not go to and fro.
    pub agent_has_come: bool,
    /// Writes of Lictor that Consul took, whether they changed anything or not.
    pub consul_writes: u64,
    /// Requests of Lictor's about what fails each time.
    pub failing_requests: u64,
    /// Writes that reached Kubernetes from Lictor.
    pub cluster_writes: u64,
    began: Instant,
    trace: Option<VecDeque<String>>,
    violations: Vec<String>,
}

/// Chance, one stream for each source of it: a change to one does not move the others.
pub struct Streams {
    pub script: fastrand::Rng,
    pub network: fastrand::Rng,
    pub kubernetes: fastrand::Rng,
    pub lives: fastrand::Rng,
    pub leadership: fastrand::Rng,
}

/// How things go between Lictor and the servers. Shares are in percent.
#[derive(Clone, Copy, Debug)]
pub struct NetworkFaults {
    /// The longest way of a request or an answer, in milliseconds.
    pub slow: u64,
    /// Connections that are refused.
    pub refused: u8,
    /// Requests or answers that are lost.
    pub lost: u8,
    /// Requests that Consul answers as in an outage.
    pub outage: u8,
    /// The longest delay of an event of a watch, in milliseconds.
    pub watch_slow: u64,
    /// Calls to Kubernetes that fail.
    pub kubernetes_fails: u8,
}

impl NetworkFaults {
    pub const FINE: Self = Self { slow: 3, refused: 0, lost: 0, outage: 0, watch_slow: 5, kubernetes_fails: 0 };
}

/// What happened, by name.
#[derive(Clone, Debug, Default)]
pub struct Stats(pub BTreeMap<&'static str, u64>);

impl Stats {
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, n) in &other.0 {
            *self.0.entry(what).or_default() += n;
        }
    }
}

/// How many of the last events a failure shows.
const TRACED: usize = 2000;

impl Sim {
    pub fn new(setup: Setup, traced: bool) -> Self {
        let stream = |n: u64| fastrand::Rng::with_seed(setup.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n));
        let random = Streams {
            script: stream(1),
            network: stream(2),
            kubernetes: stream(3),
            lives: stream(4),
            leadership: stream(5),
        };
        let state = State {
            consul: Consul { hides_unmarked: setup.planted == Some(PlantedFault::NodesByMark), ..Consul::default() },
            cluster: Cluster::new(setup.forbids_retain),
            network_faults: NetworkFaults::FINE,
            calm: false,
            kills_lictor: false,
            random,
            oracle: Oracle::default(),
            leadership: Leadership::default(),
            stats: Stats::default(),
            consul_epoch: 0,
            snapshot: None,
            taking_over: setup.rebuilt,
            agent_has_come: false,
            consul_writes: 0,
            failing_requests: 0,
            cluster_writes: 0,
            began: Instant::now(),
            trace: traced.then(VecDeque::new),
            violations: Vec::new(),
            setup,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            consul_moved: Notify::new(),
            cluster_moved: Notify::new(),
            lictor_killed: Notify::new(),
        }))
    }

    /// The state, for a moment: never over an await, never twice at once.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A simulation is one thread: whoever would have to wait here would wait for ever.
        self.0.state.try_lock().expect("a part of the simulation has panicked or keeps the state")
    }

    /// Wakes whoever waits for a change in Consul.
    pub fn consul_has_moved(&self) {
        self.0.consul_moved.notify_waiters();
    }

    pub fn consul_moved(&self) -> &Notify {
        &self.0.consul_moved
    }

    /// Wakes whoever waits for a change in Kubernetes.
    pub fn cluster_has_moved(&self) {
        self.0.cluster_moved.notify_waiters();
    }

    pub fn cluster_moved(&self) -> &Notify {
        &self.0.cluster_moved
    }

    pub fn kill_lictor(&self) {
        self.0.lictor_killed.notify_waiters();
    }

    pub fn lictor_killed(&self) -> &Notify {
        &self.0.lictor_killed
    }
}

impl State {
    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes something for whoever reads the trace of a failure.
    pub fn trace<T: Display>(&mut self, line: impl FnOnce() -> T) {
        let now = self.now();
        // What comes after the first violation tells nothing of how it came about.
        let Some(trace) = self.trace.as_mut().filter(|_| self.violations.is_empty()) else { return };
        if trace.len() == TRACED {
            trace.pop_front();
        }
        trace.push_back(format!("{:>9.3} {}", now.as_secs_f64(), line()));
    }

    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Notes that a promise was broken.
    pub fn violate(&mut self, promise: &str, what: impl Display) {
        let line = format!("{promise}: {what}");
        self.trace(|| format!("!!! {line}"));
        if self.violations.len() < 20 {
            self.violations.push(line);
        }
    }

    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    pub fn trace_lines(&self) -> impl Iterator<Item = &String> {
        self.trace.iter().flatten()
    }

    /// True in this many of a hundred cases, while faults are on.
    pub fn strikes(&mut self, percent: u8) -> bool {
        !self.calm && percent > 0 && self.random.network.u8(..100) < percent
    }
}

//! What is counted as it happens. What can be read off the engine's state when asked is in [`Snapshot`] instead,
//! so that it never drifts. No label holds an object's name or an error's text.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Counters and histograms; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    writes: Family<Write, Counter<u64, AtomicU64>>,
    latency: Histogram,
}

/// The labels of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: Kind,
    outcome: Result,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the values of the label")]
pub enum Kind {
    /// An instance was registered or changed.
    put,
    /// Its readiness moved.
    readiness,
    /// Our mark was taken off.
    release,
    /// It was deregistered.
    remove,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the values of the label")]
pub enum Result {
    /// Consul has it.
    written,
    /// Consul refused it.
    refused,
    /// It was not tried or had no effect: Consul was in trouble.
    not_tried,
    /// No answer came.
    unknown,
}

impl Metrics {
    /// Registers all metrics with `registry`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        // From one millisecond to a minute: what a watcher of an incident wants to tell apart.
        let buckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
        let metrics = Self { writes: Family::default(), latency: Histogram::new(buckets) };
        registry.register("lictor_consul_writes", "Writes to Consul, by kind and outcome", metrics.writes.clone());
        registry.register(
            "lictor_endpoint_change_to_consul_seconds",
            "From the arrival of a change to Consul's last acknowledgement for that resource",
            metrics.latency.clone(),
        );
        metrics
    }

    /// Counts one write.
    pub(super) fn wrote(&self, kind: Kind, outcome: Result) {
        self.writes.get_or_create(&Write { kind, outcome }).inc();
    }

    /// Notes how long a change took on its way.
    pub(super) fn arrived(&self, after: Duration) {
        self.latency.observe(after.as_secs_f64());
    }
}

/// The engine's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Why Lictor is not ready; none if it is: all watches synced, and Consul answers.
    pub not_ready: Option<String>,
    /// Whether this replica is the one that acts.
    pub leads: bool,
    /// Resources watched.
    pub resources: usize,
    /// Our instances in Consul, by the worst of their checks.
    pub passing: usize,
    /// Likewise.
    pub warning: usize,
    /// Likewise.
    pub critical: usize,
    /// Resources to be looked at.
    pub dirty: usize,
    /// Writes that wait or are under way.
    pub outstanding: usize,
    /// Instances that Consul refuses.
    pub refused: usize,
    /// Instances of ours that another Consul agent holds.
    pub elsewhere: usize,
    /// Resources whose removals wait for a second look at Kubernetes.
    pub held: usize,
    /// Instances that stopped being ready at once with most others, while their endpoints stay.
    pub mass_unready: usize,
    /// The same, for people; none where that is not so.
    pub mass_unready_in_words: Option<String>,
    /// Since the last whole look at Consul; none before the first.
    pub sweep_age: Option<Duration>,
}

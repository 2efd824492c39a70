//! What is counted as it happens. What can be read off the engine's state when asked is in [`Snapshot`](super::Snapshot) instead,
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
    decisions: Counter<u64, AtomicU64>,
    latency: Histogram,
    turns: Histogram,
}

/// The labels of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: Kind,
    outcome: Result,
}

/// The kind of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the values of the label")]
pub enum Kind {
    /// An instance was registered or changed.
    register,
    /// Its readiness moved.
    readiness,
    /// Our mark was taken off.
    disown,
    /// It was deregistered.
    deregister,
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the values of the label")]
pub enum Result {
    /// Consul has it.
    written,
    /// Consul refused it.
    refused,
    /// It was not tried or had no effect: Consul is unavailable.
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
        let metrics = Self {
            writes: Family::default(),
            decisions: Counter::default(),
            latency: Histogram::new(buckets),
            turns: Histogram::new(buckets),
        };
        registry.register(
            "lictor_consul_writes",
            "Number of writes to Consul, by kind and outcome",
            metrics.writes.clone(),
        );
        registry.register(
            "lictor_decisions",
            "Number of decisions about what should be registered for a resource",
            metrics.decisions.clone(),
        );
        registry.register(
            "lictor_endpoint_change_to_consul_seconds",
            "Time from the arrival of a change until Consul has acknowledged the last write for that resource",
            metrics.latency.clone(),
        );
        registry.register(
            "lictor_loop_turn_seconds",
            "Time that one turn of the main loop takes, while everything else waits",
            metrics.turns.clone(),
        );
        metrics
    }

    /// Has every metric encoded, also before anything was counted.
    pub(crate) fn touch(&self) {
        let _ = self.writes.get_or_create(&Write { kind: Kind::register, outcome: Result::written });
    }

    /// Counts one write.
    pub(super) fn wrote(&self, kind: Kind, outcome: Result) {
        self.writes.get_or_create(&Write { kind, outcome }).inc();
    }

    /// Counts one decision about a resource.
    pub(super) fn decided(&self) {
        self.decisions.inc();
    }

    /// Notes how long a turn of the loop took.
    pub(super) fn turned(&self, took: Duration) {
        self.turns.observe(took.as_secs_f64());
    }

    /// Notes how long a change took on its way.
    pub(super) fn arrived(&self, after: Duration) {
        self.latency.observe(after.as_secs_f64());
    }
}

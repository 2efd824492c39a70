//! What is to happen at a later time, and how long to wait before trying again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::names::ResourceKey;

/// Something that is due at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// Look at everything of ours in Consul again.
    Sweep,
    /// Try Consul again after a trouble.
    Resume,
    /// Reconcile a resource again: a refused write may be tried once more, or a removal was held back.
    Reconcile(ResourceKey),
    /// Write a resource's status, which came too soon after the last one.
    Report(ResourceKey),
    /// Ask Kubernetes again about instances that stopped being ready at once.
    MassUnready,
}

/// All alarms, by time.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    due: BTreeMap<(Instant, u64), Alarm>,
    set: u64,
}

impl Alarms {
    /// Rings `alarm` at `at`.
    pub(super) fn set(&mut self, at: Instant, alarm: Alarm) {
        self.set += 1;
        self.due.insert((at, self.set), alarm);
    }

    /// When the next one rings.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next one that is due.
    pub(super) fn ring(&mut self, now: Instant) -> Option<Alarm> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

/// An exponential back-off with jitter: a random wait between half of the step and the whole of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// For Consul as a whole: it may come back at any moment.
    pub(super) const CONSUL: Self = Self { first: Duration::from_millis(250), most: Duration::from_secs(15) };
    /// For one registration that Consul refused: somebody has to change something first.
    pub(super) const REFUSED: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(300) };

    /// How long to wait after `failures` in a row, at least one.
    pub(super) fn wait(self, failures: u32, random: &mut fastrand::Rng) -> Duration {
        let step = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.most);
        step.mul_f64(0.5 + random.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_are_never_the_same() {
        let mut random = fastrand::Rng::with_seed(1);
        for (failures, least, most) in [(1, 125, 250), (2, 250, 500), (4, 1000, 2000), (40, 7_500, 15_000)] {
            for _ in 0..100 {
                let wait = Backoff::CONSUL.wait(failures, &mut random).as_millis();
                assert!((least..=most).contains(&wait), "{failures}: {wait}");
            }
        }
    }
}

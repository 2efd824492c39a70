//! What is to happen at a later time, and how long to wait before the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ids::ResourceKey;

/// Something that is due at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Read the next Consul node again.
    Resync,
    /// Forget what is known of Consul, unless this replica acts again.
    Forget,
    /// Ask Consul again after an outage.
    Resume,
    /// Ask Kubernetes again about instances that stopped being ready at once.
    MassUnready,
    /// Write reports again: the rate limit allows one more.
    Reports,
    /// Reconcile a resource again.
    Reconcile(ResourceKey),
    /// Look at the status of a resource again.
    Report(ResourceKey),
}

/// All timers, by time. Each is set at most once.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
    at: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets a timer. If it is set already, the earlier time stands: whoever handles a timer sets it again when there is
    /// more to wait for.
    pub(super) fn set(&mut self, at: Instant, timer: Timer) {
        if self.at.get(&timer).is_none_or(|known| at < *known) {
            self.replace(at, timer);
        }
    }

    /// Sets a timer in place of the time it was set to before.
    pub(super) fn replace(&mut self, at: Instant, timer: Timer) {
        if let Some(known) = self.at.insert(timer.clone(), at) {
            self.due.remove(&(known, timer.clone()));
        }
        self.due.insert((at, timer));
    }

    /// Answers when the next timer is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes the next timer that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.due.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}

/// An exponential back-off with jitter: a random wait between half of the step and the whole of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits for Consul as a whole: it may come back at any moment.
    pub(super) const CONSUL: Self = Self { first: Duration::from_millis(250), most: Duration::from_secs(15) };
    /// Waits before a Consul node is read again that could not be, while others can.
    pub(super) const NODE: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(60) };
    /// Waits before a write that Consul refused is tried again: somebody has to change something first.
    pub(super) const REFUSED: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(300) };
    /// Waits before Kubernetes is asked again about removals that it could not confirm.
    pub(super) const CONFIRMATION: Self = Self { first: Duration::from_secs(4), most: Duration::from_secs(60) };

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
    fn the_earlier_time_stands_unless_it_is_replaced() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        for (replaces, seconds, due) in [(false, 5, 5), (false, 9, 5), (false, 3, 3), (true, 7, 7), (false, 8, 7)] {
            if replaces {
                timers.replace(at(seconds), Timer::Resync);
            } else {
                timers.set(at(seconds), Timer::Resync);
            }
            assert_eq!(timers.next(), Some(at(due)), "{seconds}");
        }
        assert_eq!(timers.take_due(at(6)), None);
        assert_eq!(timers.take_due(at(7)), Some(Timer::Resync));
        assert_eq!((timers.next(), timers.take_due(at(99))), (None, None));
    }

    #[test]
    fn timers_come_in_the_order_of_their_times() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(at(2), Timer::Resync);
        timers.set(at(1), Timer::Report(ResourceKey::new("shop", "b")));
        timers.set(at(1), Timer::Reconcile(ResourceKey::new("shop", "a")));
        let taken: Vec<Timer> = std::iter::from_fn(|| timers.take_due(at(2))).collect();
        let key = |name| ResourceKey::new("shop", name);
        assert_eq!(taken, [Timer::Reconcile(key("a")), Timer::Report(key("b")), Timer::Resync]);
    }

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

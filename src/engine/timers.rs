//! What is to happen at a later time.

use std::collections::{BTreeMap, BTreeSet};

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}

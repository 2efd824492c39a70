//! How long to wait before something is tried again: the one back-off of the whole program.

use std::time::Duration;

/// An exponential back-off with jitter: a random wait between half of the step and the whole of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits for Consul as a whole: it may come back at any moment.
    pub(crate) const CONSUL: Self = Self { first: Duration::from_millis(250), most: Duration::from_secs(15) };
    /// Waits before a Consul node is read again that could not be, while others can.
    pub(crate) const NODE: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(60) };
    /// Waits before a write that Consul refused is tried again: somebody has to change something first.
    pub(crate) const REFUSED: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(300) };
    /// Waits before Consul is asked again to let Lictor in: often somebody has to change something first.
    pub(crate) const LOGIN: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(15) };
    /// Waits before Kubernetes is asked again about removals that it could not confirm.
    pub(crate) const CONFIRMATION: Self = Self { first: Duration::from_secs(4), most: Duration::from_secs(60) };

    /// Gives the wait after `failures` in a row, at least one.
    pub(crate) fn wait(self, failures: u32, random: &mut fastrand::Rng) -> Duration {
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

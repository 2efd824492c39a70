//! How much one turn of the loop takes on.
//!
//! While a turn lasts nothing else is heard: no readiness that changes, no answer of Consul. So each part of a turn begins
//! nothing more after a while, and the next turn goes on. The measure is a count of instances and no time, so that the same
//! happens in each run of the simulation.

/// The instances that each part of a turn takes on.
pub const TURN: usize = 250;

/// The number of endpoints that an event may tell of at the cost of a decision about one instance.
const ENDPOINTS: usize = 8;

/// The work that a part of a turn may still take on.
#[derive(Debug)]
pub(super) struct Work {
    left: usize,
}

impl Work {
    /// Work on so many instances.
    pub(super) fn on(instances: usize) -> Self {
        Self { left: instances }
    }

    /// Says whether something more may be begun. However much that is, it is done as a whole.
    pub(super) fn is_left(&self) -> bool {
        self.left > 0
    }

    /// Notes that an event was taken in that tells of so many endpoints.
    pub(super) fn heard(&mut self, endpoints: usize) {
        self.did(endpoints / ENDPOINTS);
    }

    /// Notes that something was done that takes as long as decisions about so many instances.
    pub(super) fn did(&mut self, instances: usize) {
        self.left = self.left.saturating_sub(instances.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_is_done_and_nothing_costs_nothing() {
        let mut work = Work::on(3);
        work.did(0);
        work.heard(2 * ENDPOINTS - 1);
        assert!(work.is_left());
        work.did(500);
        assert!(!work.is_left());
    }
}

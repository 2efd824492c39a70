//! What Kubernetes is to be told, in which order, and how fast.
//!
//! Finalizers go before status and Events, since a finalizer that is late holds up registrations and deletions. Within
//! each, who came first goes first. Status and Events share a budget, so that resources that flap do not load the API
//! server, and one resource has at most one write of its status under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::Queue;
use crate::model::ids::{ResourceKey, Str};
use crate::model::status::Status;

/// The most writes to Kubernetes at once.
const AT_ONCE: usize = 16;

/// The number of those that only finalizers may take.
const FOR_FINALIZERS: usize = 4;

/// The reports that are to be written, and those that were.
#[derive(Debug)]
pub(super) struct Reports {
    finalizers: Queue,
    statuses: Queue,
    /// Resources that are told that Consul is unavailable, should that be so.
    unreachable: BTreeSet<ResourceKey>,
    told: BTreeMap<ResourceKey, Told>,
    /// Resources whose finalizer comes off although they have registrations, which stay; with their uids, since others may
    /// be made under their names.
    detached: BTreeMap<ResourceKey, Str>,
    in_flight: usize,
    budget: Budget,
}

/// Holds what an Event says of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// The reports that one resource has got.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The last status written, which the watch may not have shown yet.
    pub(super) sent: Option<Sent>,
    /// The time since which there is nothing to tell but that writes are under way. Most are over before it is worth a word.
    pub(super) pending: Option<Instant>,
    /// The time of the last look at its status that found nothing to write yet.
    pub(super) looked: Option<Instant>,
    /// Holds what the last Events said.
    pub(super) events: Option<Vec<Said>>,
    /// The version of the resource at which its finalizer was last written: it is not written twice on one sight.
    pub(super) finalized: Option<Str>,
    /// The generation at which its status was taken away: that is tried once.
    pub(super) forgotten: Option<i64>,
    /// True if a write of its status is under way.
    is_in_flight: bool,
    /// True if its status is to be looked at again after that.
    again: bool,
}

/// A status that was written.
#[derive(Debug)]
pub(super) struct Sent {
    /// The time of the write.
    pub(super) at: Instant,
    /// The uid of the resource that it is of.
    pub(super) uid: Str,
    pub(super) status: Arc<Status>,
    /// The number of writes of the same status before this one.
    pub(super) repeats: u32,
}

impl Reports {
    /// Reports that write so many statuses and Events a second in the long run.
    pub(super) fn new(rate: u32) -> Self {
        Self {
            finalizers: Queue::default(),
            statuses: Queue::default(),
            unreachable: BTreeSet::new(),
            told: BTreeMap::new(),
            detached: BTreeMap::new(),
            in_flight: 0,
            budget: Budget::new(rate),
        }
    }

    /// Has the finalizer and the status of a resource looked at.
    pub(super) fn enqueue(&mut self, key: ResourceKey) {
        self.finalizers.push(key.clone());
        self.statuses.push(key);
    }

    /// Has a resource told that Consul is unavailable, should that be so.
    pub(super) fn enqueue_unreachable(&mut self, key: ResourceKey) {
        self.unreachable.insert(key);
    }

    /// Has those looked at now that are to be told that Consul is unavailable, or, if it is not, forgets that.
    pub(super) fn take_unreachable(&mut self, is_unavailable: bool) {
        for key in std::mem::take(&mut self.unreachable) {
            if is_unavailable {
                self.enqueue(key);
            }
        }
    }

    /// Says whether some wait to be told that Consul is unavailable.
    pub(super) fn has_unreachable(&self) -> bool {
        !self.unreachable.is_empty()
    }

    /// Has nothing looked at of a resource that is gone.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.finalizers.remove(key);
        self.statuses.remove(key);
        self.unreachable.remove(key);
    }

    /// Forgets what a resource that is gone was told.
    pub(super) fn forget_told(&mut self, key: &ResourceKey) {
        self.told.remove(key);
        self.detached.remove(key);
    }

    /// Has the finalizer of the resource that has this uid taken off although it has registrations.
    pub(super) fn detach(&mut self, key: ResourceKey, uid: Str) {
        self.detached.insert(key.clone(), uid);
        self.enqueue(key);
    }

    /// Says whether the finalizer of the resource that has this uid comes off although it has registrations; answers so
    /// once.
    pub(super) fn take_detached(&mut self, key: &ResourceKey, uid: &Str) -> bool {
        self.detached.remove(key).is_some_and(|detached| detached == *uid)
    }

    /// Gives what a resource has been told.
    pub(super) fn told(&mut self, key: &ResourceKey) -> &mut Told {
        self.told.entry(key.clone()).or_default()
    }

    /// Gives the last status that was written of a resource.
    pub(super) fn sent(&self, key: &ResourceKey) -> Option<&Sent> {
        self.told.get(key)?.sent.as_ref()
    }

    /// The next resource whose finalizer is to be looked at, while another write may begin.
    pub(super) fn next_finalizer(&mut self) -> Option<ResourceKey> {
        if self.in_flight >= AT_ONCE { None } else { self.finalizers.pop() }
    }

    /// The next resource whose status is to be looked at, while another write may begin.
    pub(super) fn next_status(&mut self, now: Instant) -> Next {
        loop {
            if self.in_flight >= AT_ONCE - FOR_FINALIZERS || self.statuses.is_empty() {
                return Next::None;
            }
            if let Some(at) = self.budget.empty_until(now) {
                return Next::At(at);
            }
            let Some(key) = self.statuses.pop() else { return Next::None };
            match self.told.get_mut(&key) {
                Some(told) if told.is_in_flight => told.again = true,
                _ => return Next::Resource(key),
            }
        }
    }

    /// Notes that a finalizer is being written, or a status taken away.
    pub(super) fn began(&mut self) {
        self.in_flight += 1;
    }

    /// Notes that the status of a resource is being written.
    pub(super) fn began_status(&mut self, key: &ResourceKey, now: Instant) {
        self.began();
        self.budget.spend(now);
        self.told(key).is_in_flight = true;
    }

    /// Notes that an Event is being written.
    pub(super) fn began_event(&mut self, now: Instant) {
        self.began();
        self.budget.spend(now);
    }

    /// Notes that a write was answered; with a resource, the write of its status.
    pub(super) fn completed(&mut self, status_of: Option<&ResourceKey>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(key) = status_of else { return };
        let Some(told) = self.told.get_mut(key) else { return };
        told.is_in_flight = false;
        if std::mem::take(&mut told.again) {
            self.statuses.push(key.clone());
        }
    }
}

/// The answer to the question whose status is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The status of this resource is next.
    Resource(ResourceKey),
    /// Nobody's before this time: the budget is spent.
    At(Instant),
    /// No status waits.
    None,
}

/// A token bucket: so many writes a second in the long run, and a burst after a quiet time.
#[derive(Debug)]
struct Budget {
    /// The time until one more write may be made.
    interval: Duration,
    /// The time up to which writes have been spent: it may run ahead of the clock by at most a burst.
    spent_until: Option<Instant>,
}

/// The number of writes that may be made at once after a quiet time, as a multiple of those of a second.
const BURST: f64 = 2.5;

impl Budget {
    fn new(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), spent_until: None }
    }

    fn burst(&self) -> Duration {
        Duration::from_secs_f64(BURST).max(self.interval)
    }

    /// Gives the time at which one more write may be made; none if that is now.
    fn empty_until(&self, now: Instant) -> Option<Instant> {
        let due = (self.spent_until? + self.interval).checked_sub(self.burst())?;
        (due > now).then_some(due)
    }

    fn spend(&mut self, now: Instant) {
        self.spent_until = Some(self.spent_until.unwrap_or(now).max(now) + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("shop", name)
    }

    #[test]
    fn who_came_first_goes_first_and_each_once() {
        let mut reports = Reports::new(20);
        for name in ["z", "a", "z", "m"] {
            reports.enqueue(key(name));
        }
        reports.forget(&key("m"));
        let finalizers: Vec<_> = std::iter::from_fn(|| reports.next_finalizer()).collect();
        assert_eq!(finalizers, [key("z"), key("a")]);
        let now = Instant::now();
        assert_eq!(reports.next_status(now), Next::Resource(key("z")));
        assert_eq!(reports.next_status(now), Next::Resource(key("a")));
        assert_eq!(reports.next_status(now), Next::None);
    }

    #[test]
    fn a_burst_goes_at_once_and_then_so_many_a_second() {
        let mut reports = Reports::new(20);
        let start = Instant::now();
        let mut written = |at: Instant| {
            let mut count = 0;
            for number in 0..200 {
                reports.enqueue(key(&number.to_string()));
            }
            while let Next::Resource(key) = reports.next_status(at) {
                reports.began_status(&key, at);
                reports.completed(Some(&key));
                count += 1;
            }
            count
        };
        assert_eq!(written(start), 50);
        assert_eq!(written(start + Duration::from_millis(49)), 0);
        assert_eq!(written(start + Duration::from_secs(1)), 20);
        assert_eq!(written(start + Duration::from_secs(60)), 50);
    }

    #[test]
    fn one_resource_has_one_status_under_way() {
        let (mut reports, now) = (Reports::new(20), Instant::now());
        reports.enqueue(key("a"));
        assert_eq!(reports.next_status(now), Next::Resource(key("a")));
        reports.began_status(&key("a"), now);
        reports.enqueue(key("a"));
        assert_eq!(reports.next_status(now), Next::None);
        reports.completed(Some(&key("a")));
        assert_eq!(reports.next_status(now), Next::Resource(key("a")), "it changed meanwhile");
    }

    #[test]
    fn one_resource_is_detached_and_not_another_one_of_its_name() {
        let mut reports = Reports::new(20);
        reports.detach(key("a"), "old".into());
        assert!(!reports.take_detached(&key("a"), &"new".into()));
        reports.detach(key("a"), "new".into());
        assert!(reports.take_detached(&key("a"), &"new".into()));
        assert!(!reports.take_detached(&key("a"), &"new".into()), "once");
    }

    #[test]
    fn finalizers_have_places_of_their_own() {
        let (mut reports, now) = (Reports::new(1000), Instant::now());
        for number in 0..40 {
            reports.enqueue(key(&number.to_string()));
        }
        let mut statuses = 0;
        while let Next::Resource(key) = reports.next_status(now) {
            reports.began_status(&key, now);
            statuses += 1;
        }
        assert_eq!(statuses, AT_ONCE - FOR_FINALIZERS);
        let mut finalizers = 0;
        while reports.next_finalizer().is_some() {
            reports.began();
            finalizers += 1;
        }
        assert_eq!(finalizers, FOR_FINALIZERS);
    }
}

//! Most instances stop being ready at once: said, and with `--hold-mass-unready` held for a while.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::confirm::ASK_AGAIN;
use super::decide::Action;
use super::timers::Timer;
use super::{Completion, Engine};
use crate::model::cause::Cause;
use crate::model::desired::Desired;
use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::ids::{ResourceKey, Str};
use crate::model::registration::{Registration, RowKey};
use crate::model::unready::{Episode, MassUnready, Now, Turn};
use crate::ports::ReadError;
use crate::state::world::World;

/// Holds what the engine knows of instances that stop being ready at once.
#[derive(Debug)]
pub(super) struct Unready {
    mass: MassUnready,
    /// The time at which the episode began that Kubernetes is being asked about again.
    asked_about: Option<u64>,
    /// The start of the times of an episode.
    began: Instant,
}

impl Default for Unready {
    fn default() -> Self {
        Self { mass: MassUnready::default(), asked_about: None, began: Instant::now() }
    }
}

impl Unready {
    /// Counts the instances that are in the episode; 0 without one.
    pub(super) fn len(&self) -> usize {
        self.mass.len()
    }

    /// Says whether a resource has instances in the episode.
    pub(super) fn concerns(&self, key: &ResourceKey) -> bool {
        self.mass.concerns(key)
    }

    /// Forgets an episode. An answer about it that is under way stays expected.
    pub(super) fn reset(&mut self) {
        self.mass = MassUnready::default();
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn open_episode(&self) -> Option<Episode> {
        self.mass.episode().filter(|episode| !episode.confirmed)
    }
}

/// Says what has become of an instance, by what is desired and by the addresses of those that are not registered only because
/// they are not ready.
fn now_of(desired: &Desired, unready: &BTreeSet<Str>, key: &RowKey, address: &str) -> Now {
    match desired.get(key) {
        Some(wanted) if wanted.readiness == Some(Health::Critical) => Now::Unready,
        Some(_) => Now::Ready,
        None if unready.contains(address) => Now::Unready,
        None => Now::Gone,
    }
}

impl Engine {
    /// Weighs which instances of a resource are about to stop passing, and takes that out of `ops` where it is held.
    pub(super) fn weigh_readiness(
        &mut self,
        key: &ResourceKey,
        desired: &Desired,
        unready: &BTreeSet<Str>,
        ops: &mut Vec<Op>,
    ) {
        let stops: Vec<(RowKey, Str)> = ops.iter().filter_map(|op| self.stops(op, unready)).collect();
        let now_of = |row: &RowKey, address: &str| now_of(desired, unready, row, address);
        let (passing, now) = (self.mirror.count(Health::Passing), self.unready.millis());
        // What somebody else registers in Consul for a namespace without resources does not count.
        let has_resources = |namespace: &Str| self.world.has_resources_in(namespace);
        let passing_besides = |namespace: &Str| self.mirror.passing_besides(namespace, has_resources);
        match self.unready.mass.decided(key, stops.into_iter(), now_of, passing, passing_besides, now) {
            Some(Turn::Begins(resources)) => {
                let hold = self.config.hold_mass_unready;
                let instances = self.unready.len();
                let passed = self.unready.mass.episode().map_or(passing, |episode| episode.passed);
                tracing::warn!(
                    instances,
                    passed,
                    hold = ?hold,
                    "most instances stop being ready at once while their endpoints stay; check whether the kubelets are cut off"
                );
                if !hold.is_zero() {
                    self.timers.set(Instant::now() + hold, Timer::MassUnready);
                }
                self.look_at_all(resources);
            }
            Some(Turn::Ends(resources)) => {
                tracing::info!(
                    "the mass unreadiness is over: half of the instances that stopped being ready, and still exist, are ready again"
                );
                self.look_at_all(resources);
            }
            None => {}
        }
        if self.holds_unready() {
            let kept: Vec<Op> = std::mem::take(ops).into_iter().filter_map(|op| self.without_stop(key, op)).collect();
            *ops = kept;
        }
    }

    /// Says whether instances are kept passing for now.
    pub(super) fn holds_unready(&self) -> bool {
        self.unready.open_episode().is_some() && !self.config.hold_mass_unready.is_zero()
    }

    /// Gives what `/readyz` says of an episode.
    pub(super) fn mass_unready_message(&self) -> Option<String> {
        let episode = self.unready.mass.episode()?;
        let held = if self.holds_unready() { "; the rest of them is kept passing" } else { "" };
        Some(format!(
            "{} of {} passing instances stopped being ready within a minute while their endpoints stay{held}: are the \
             kubelets cut off from the API server?",
            self.unready.len(),
            episode.passed
        ))
    }

    /// The instance that a write makes stop passing although its endpoint stays, and its address.
    fn stops(&self, op: &Op, unready: &BTreeSet<Str>) -> Option<(RowKey, Str)> {
        let row = self.mirror.row(op.key()).filter(|row| row.is_ours() && row.health == Health::Passing)?;
        let stops = match op.registration() {
            Some(wanted) => {
                wanted.readiness == Some(Health::Critical) && row.registration.readiness == Some(Health::Passing)
            }
            None => unready.contains(&row.registration.address),
        };
        stops.then(|| (op.key().clone(), row.registration.address.clone()))
    }

    /// A write without its making an instance of the episode stop passing; none where it does nothing else.
    fn without_stop(&self, key: &ResourceKey, op: Op) -> Option<Op> {
        let Some(row) = self.mirror.row(op.key()).filter(|_| self.unready.mass.has(key, op.key())) else {
            return Some(op);
        };
        match op {
            Op::Register { key, registration, drop_checks } => {
                let readiness = registration.readiness.and(row.registration.readiness);
                let registration = Arc::new(Registration { readiness, ..(*registration).clone() });
                Some(Op::Register { key, registration, drop_checks })
            }
            Op::Readiness { ref registration, .. } if registration.readiness == Some(Health::Critical) => None,
            Op::Deregister { .. } => None,
            Op::Readiness { .. } | Op::Disown { .. } => Some(op),
        }
    }

    /// Has resources looked at again: what they may write has changed, or only what they are told.
    fn look_at_all(&mut self, resources: BTreeSet<ResourceKey>) {
        for key in resources {
            if !self.config.hold_mass_unready.is_zero() {
                self.enqueue_kept(key.clone(), Cause::Observed, Instant::now());
            }
            self.reports.enqueue(key);
        }
    }

    /// The time of a hold is over: Kubernetes is asked again.
    pub(super) fn confirm_unready(&mut self) {
        let Some(episode) = self.unready.mass.episode() else { return };
        let lasts = Duration::from_millis(self.unready.millis().saturating_sub(episode.since));
        if lasts >= self.config.hold_mass_unready && self.holds_unready() && self.unready.asked_about.is_none() {
            self.unready.asked_about = Some(episode.since);
            let kubernetes = Arc::clone(&self.ports.kubernetes);
            self.tasks.spawn(async move { Completion::MassUnready(Box::new(kubernetes.read_again().await)) });
        }
    }

    /// Lets the held instances stop passing where Kubernetes says again that they are not ready.
    pub(super) fn on_mass_unready(&mut self, answer: Result<World, ReadError>) {
        let asked = self.unready.asked_about.take();
        if !self.holds_unready() {
            return;
        }
        let again = Instant::now() + ASK_AGAIN;
        if self.unready.mass.episode().map(|episode| episode.since) != asked {
            // That was about an earlier one.
            self.timers.set(again, Timer::MassUnready);
            return;
        }
        if !self.session.is_ready() {
            self.timers.set(again, Timer::MassUnready);
            return;
        }
        let mut fresh = match answer {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::warn!(%error, "cannot read a fresh list from Kubernetes; instances that are not ready stay passing until it answers");
                self.timers.set(again, Timer::MassUnready);
                return;
            }
        };
        fresh.remember(&self.world);
        let resources: BTreeSet<ResourceKey> = self.unready.mass.resources().cloned().collect();
        for key in &resources {
            self.look(key);
        }
        let is_frozen = |key: &ResourceKey| {
            let kept = self.resources.get(key).kept.as_ref();
            kept.is_some_and(|kept| matches!(kept.decision.action, Action::Freeze))
        };
        let says_the_same = |key: &ResourceKey| match self.decide_by(&fresh, key).action {
            Action::Apply { desired, unready, .. } => self
                .mirror
                .owned(key)
                .filter(|(row, _)| self.unready.mass.has(key, row))
                .all(|(row, there)| now_of(&desired, &unready, row, &there.registration.address) == Now::Unready),
            Action::Disown => true,
            Action::Freeze => is_frozen(key),
        };
        if resources.iter().all(says_the_same) {
            tracing::warn!("a fresh list confirms that most instances are not ready; Lictor makes them critical");
            self.unready.mass.confirm();
            self.look_at_all(resources);
        } else {
            tracing::warn!("a fresh list says that instances are ready; they stay passing");
            let watches = resources.iter().flat_map(|key| self.world.watches_for(key)).collect();
            self.ports.kubernetes.list_anew(&watches);
            self.timers.set(again, Timer::MassUnready);
        }
    }
}

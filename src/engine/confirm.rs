//! Removals that Kubernetes is asked about first: by a fresh list, or whether the `CustomResourceDefinition` goes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::decide::Removal;
use super::reconcile::span;
use super::removals::{Deletion, Inferred};
use super::resources::Dirty;
use super::session::Stamped;
use super::timers::Timer;
use super::{Completion, Engine};
use crate::model::cause::{Cause, CrdState};
use crate::model::diff::Op;
use crate::model::ids::ResourceKey;
use crate::model::registration::RowKey;
use crate::ports::{Backoff, ReadError};
use crate::state::world::World;

/// The time between two looks whether a resource that is frozen while it is being deleted may be let go.
const FROZEN: Duration = Duration::from_secs(10);

/// The time after which a question that Kubernetes did not answer it is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(3);

impl Engine {
    /// Lets removals by inference pass while they are few, and otherwise has Kubernetes confirm them.
    pub(super) fn guard(&mut self) {
        let inferred = std::mem::take(&mut self.removals.inferred);
        if inferred.is_empty() {
            return;
        }
        let removals = inferred.values().map(|of| of.removals).sum();
        let (owned, now) = (self.mirror.owned_rows(), Instant::now());
        let waits = !self.removals.relist.is_empty() || !self.removals.budget.takes(removals, owned, now);
        for (key, Inferred { since, .. }) in inferred {
            let dirty = Dirty { cause: Cause::Inferred, since };
            if waits {
                self.removals.relist.wait(key, dirty);
            } else {
                let _span = span(&key).entered();
                let ops = self.operations(&key, dirty);
                self.explain_and_schedule(&key, ops, dirty, false);
            }
        }
        if waits {
            self.relist();
        }
    }

    /// Asks Kubernetes for a fresh list, by consistent reads, before removals by inference.
    fn relist(&mut self) {
        if !self.removals.relist.ask() {
            return;
        }
        let resources = self.removals.relist.keys().count();
        tracing::info!(resources, "confirming removals with a fresh list");
        let (stamp, kubernetes) = (self.session.stamp(), Arc::clone(&self.ports.kubernetes));
        self.tasks.spawn(async move { Completion::Relisted(stamp.on(Box::new(kubernetes.read_again().await))) });
    }

    /// Makes those removals that the World and the fresh list agree on.
    pub(super) fn on_relisted(&mut self, answer: Stamped<Box<Result<World, ReadError>>>) {
        let (answer, is_current) = self.session.open(answer);
        let about = self.removals.relist.answered(is_current);
        if !is_current {
            // What waits now was not asked about.
            self.relist();
            return;
        }
        if !self.session.is_ready() {
            return;
        }
        let fresh = match *answer {
            Ok(mut fresh) => {
                fresh.remember(&self.world);
                fresh
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read a fresh list from Kubernetes; removals wait until it answers");
                // These came to wait since it was asked for, and nobody else asks about them.
                let later: Vec<ResourceKey> = self.removals.relist.keys().cloned().collect();
                for (key, dirty) in about {
                    self.confirm_later(key, dirty);
                }
                for key in later {
                    self.ask_later(key);
                }
                self.removals.relisted(false);
                return;
            }
        };
        // These came to wait since it was asked for.
        let later: Vec<ResourceKey> = self.removals.relist.keys().cloned().collect();
        let (mut contradicted, mut untold) = (BTreeSet::new(), false);
        for key in about.into_keys() {
            match self.confirm(&key, &fresh) {
                Removal::Confirmed => {}
                Removal::Contradicted => contradicted.extend(self.world.watches_for(&key)),
                Removal::Untold => untold = true,
            }
        }
        self.removals.relisted(contradicted.is_empty() && !untold);
        if !contradicted.is_empty() {
            self.ports.kubernetes.list_anew(&contradicted);
        }
        for key in later {
            self.enqueue_again(key);
        }
    }

    /// Makes the removals of one resource that a fresh list confirms, and keeps the others waiting.
    fn confirm(&mut self, key: &ResourceKey, fresh: &World) -> Removal {
        let _span = span(key).entered();
        let by_list = self.decide_by(fresh, key);
        let dirty = Dirty { cause: Cause::Inferred, since: Instant::now() };
        let ops = self.operations(key, dirty);
        if ops.iter().any(Op::removes) && self.is_deleted(key) && !self.is_confirmed(key) {
            // It was deleted meanwhile, and whether by itself is asked first.
            self.enqueue_again(key.clone());
            return Removal::Confirmed;
        }
        let of_list = |row: &RowKey| {
            self.mirror.row(row).map_or(Removal::Confirmed, |there| by_list.action.on_removal(row, &there.registration))
        };
        let (mut answer, mut kept) = (Removal::Confirmed, 0_usize);
        let mut confirmed = Vec::with_capacity(ops.len());
        for op in ops {
            match if op.removes() { of_list(op.key()) } else { Removal::Confirmed } {
                Removal::Confirmed => confirmed.push(op),
                other => {
                    kept += 1;
                    answer = if answer == Removal::Contradicted { answer } else { other };
                }
            }
        }
        match answer {
            Removal::Confirmed => {}
            Removal::Contradicted => {
                tracing::warn!(resource = %key, kept, "a fresh list contradicts the removal; the instances stay");
            }
            Removal::Untold => {
                tracing::warn!(
                    resource = %key,
                    kept,
                    "the fresh list is incomplete, so it cannot confirm the removal; the instances stay"
                );
            }
        }
        if answer != Removal::Confirmed {
            // Until the World agrees, its removals are asked about again, whatever makes the resource dirty.
            self.confirm_later(key.clone(), dirty);
        }
        self.explain_and_schedule(key, confirmed, dirty, true);
        answer
    }

    /// Lets removals wait, and has Kubernetes asked again after a while.
    fn confirm_later(&mut self, key: ResourceKey, dirty: Dirty) {
        self.removals.relist.wait(key.clone(), dirty);
        self.resources.begin_progress(&key, dirty);
        self.ask_later(key);
    }

    /// Has Kubernetes asked again after a while about removals that wait.
    fn ask_later(&mut self, key: ResourceKey) {
        let wait = Backoff::CONFIRMATION.wait(self.removals.failures() + 1, &mut self.ports.random);
        self.timers.set(Instant::now() + wait, Timer::Reconcile(key));
    }

    /// Asks whether the definition of `ConsulService` stays. When a user deletes a resource, its instances go; when the
    /// definition is deleted, all resources are, and nobody means to say that of the services.
    pub(super) fn ask_for_definition(&mut self) {
        if self.removals.definition.ask() {
            let (stamp, kubernetes) = (self.session.stamp(), Arc::clone(&self.ports.kubernetes));
            self.tasks.spawn(async move { Completion::Definition(stamp.on(kubernetes.definition_goes().await)) });
        }
    }

    /// Lets the instances of deleted resources go, or the resources without them.
    pub(super) fn on_definition(&mut self, answer: Stamped<Result<CrdState, ReadError>>) {
        let (answer, is_current) = self.session.open(answer);
        let about = self.removals.definition.answered(is_current);
        self.ask_for_definition();
        let state = match answer {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(%error, "cannot ask Kubernetes whether the CRD is being deleted; the instances of deleted resources stay until it answers");
                let later = Instant::now() + ASK_AGAIN;
                for key in about.into_keys() {
                    self.timers.set(later, Timer::Reconcile(key));
                }
                return;
            }
        };
        if self.removals.note_definition(state) {
            tracing::warn!("the CRD is being deleted: finalizers are removed, registrations stay in Consul");
        }
        for (key, dirty) in about {
            self.delete(key, dirty, state);
        }
    }

    /// Lets the instances of one deleted resource go, or the resource without them.
    fn delete(&mut self, key: ResourceKey, dirty: Dirty, state: CrdState) {
        let _span = span(&key).entered();
        let now = Instant::now();
        if !self.is_deleted(&key) {
            // Another one was made under its name.
            return;
        }
        if state != CrdState::Goes && self.world.resource(&key).is_some_and(|entry| entry.resource.paused) {
            // It waits for its author; should the definition go, for nobody.
            self.timers.set(now + FROZEN, Timer::Reconcile(key));
            return;
        }
        let (instances, owned) = (self.mirror.owned(&key).count(), self.mirror.owned_rows());
        let uid = self.world.resource(&key).map(|entry| &entry.resource.uid);
        match self.removals.delete(&key, uid, state, instances, owned, now) {
            Deletion::Deregister => self.enqueue_kept(key, dirty.cause, dirty.since),
            Deletion::Detach => {
                // Should the definition come back without the resource, what is left of it is an orphan.
                self.resources.begin_progress(&key, Dirty { cause: Cause::Inferred, since: dirty.since });
                if let Some(entry) = self.world.resource(&key) {
                    self.reports.detach(key.clone(), entry.resource.uid.clone());
                }
                self.timers.set(now + ASK_AGAIN, Timer::Reconcile(key));
            }
            Deletion::Wait { is_new } => {
                if is_new {
                    tracing::warn!(
                        resource = %key,
                        instances,
                        "the instances of a deleted resource stay: Lictor may read neither the CustomResourceDefinition \
                         nor discovery, so it cannot tell whether all resources are being deleted"
                    );
                }
                self.timers.set(now + ASK_AGAIN, Timer::Reconcile(key));
            }
        }
    }
}

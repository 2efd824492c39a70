//! One dirty resource: what should be there, how that differs from what is, and which of it may be written now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::Engine;
use super::decide::{Action, Decision, OfOthers, Texts, decide, registered, share, why_gone, without};
use super::removals::Inferred;
use super::resources::{Basis, Dirty, Handover, Kept, MissingEndpoints};
use super::timers::Timer;
use crate::model::cause::Cause;
use crate::model::desired::Desired;
use crate::model::diff::{Op, diff, disown};
use crate::model::health::Health;
use crate::model::ids::{ResourceKey, Str};
use crate::model::plan::{Rank, Wanted, Why};
use crate::model::reasons::ProblemReason;
use crate::model::registration::{Ownership, Registration, RowKey};
use crate::model::resolve::{Remains, remains};
use crate::model::resource::DeletionPolicy;
use crate::state::world::{Entry, Missing, World};

/// The time for which the instances of a resource that gives up a name wait for those of the resource that has it next.
const HAND_OVER: Duration = Duration::from_secs(30);

/// The time between looks at a hand-over while Consul cannot be written to.
const RETRY: Duration = Duration::from_secs(2);

/// The span of what is done for a resource. A line of a JSON log calls a span's own name `name`, so the resource's is called
/// otherwise.
pub(super) fn span(key: &ResourceKey) -> tracing::Span {
    tracing::info_span!("reconcile", namespace = %key.namespace, resource_name = %key.name)
}

impl Engine {
    /// Takes dirty resources to the writes that wait for them, as many as a turn takes on.
    pub(super) fn reconcile_dirty(&mut self) {
        if !self.session.is_ready() {
            return;
        }
        let mut work = self.work();
        while work.is_left()
            && let Some((key, dirty)) = self.resources.next_dirty()
        {
            let _span = span(&key).entered();
            self.reconcile(&key, dirty);
            work.did(self.instances_of(&key));
        }
        if self.resources.has_dirty() {
            self.withdraw_stale();
        } else {
            // Only together it shows whether they are few.
            self.guard();
        }
    }

    /// Takes back what waits of resources that are still to be decided about: what was to go may be the last one that
    /// serves by now, what was to become critical may be held, and of a resource that was paused nothing is written.
    fn withdraw_stale(&mut self) {
        let is_paused = |key: &ResourceKey| self.world.resource(key).is_some_and(|entry| entry.resource.paused);
        for key in self.resources.dirty() {
            let all = is_paused(key);
            // What is new takes nothing from anybody.
            let makes_critical = |op: &Op| op.makes_critical() && self.mirror.row(op.key()).is_some();
            self.lanes.withdraw(key, |op| all || op.removes() || makes_critical(op));
        }
    }

    /// Counts the instances that a decision about a resource is about, and those that it has.
    pub(super) fn instances_of(&self, key: &ResourceKey) -> usize {
        let desired = match self.resources.get(key).kept.as_ref().map(|kept| &kept.decision.action) {
            Some(Action::Apply { desired, .. }) => desired.len(),
            Some(Action::Freeze | Action::Disown) | None => 0,
        };
        desired.max(self.mirror.owned_by(key))
    }

    /// Schedules the writes of a resource, but no removals by inference.
    fn reconcile(&mut self, key: &ResourceKey, mut dirty: Dirty) {
        self.removals.inferred.remove(key);
        if !self.is_deleted(key) {
            self.removals.forget_deletion(key);
            self.removals.definition.forget(key);
        }
        if let Some(missing) = &self.resources.get(key).missing {
            dirty.cause = dirty.cause.max(missing.cause);
        }
        if !self.world.watches(&key.namespace) {
            return;
        }
        if !self.world.is_whole(&key.namespace) || self.world.waits_for(key).is_some() {
            // It stays as it is until then: what was decided before may be wrong by now.
            self.lanes.replace(key, Vec::new());
            self.resources.forget_decision(key);
            self.reports.enqueue(key.clone());
            self.resources.wait_for_lists(key.clone(), dirty);
            return;
        }
        // From here on the name is its own.
        for freed in self.world.act(key) {
            self.enqueue(freed.key, Cause::Observed, dirty.since);
        }
        let ops = self.operations(key, dirty);
        let removes = ops.iter().any(Op::removes);
        let is_deleted = self.is_deleted(key);
        let is_frozen = self
            .world
            .resource(key)
            .is_some_and(|Entry { resource, .. }| resource.paused && resource.deleting && resource.has_finalizer());
        if !removes {
            self.removals.forget_deletion(key);
        }
        if is_frozen || removes && is_deleted && !self.is_confirmed(key) {
            self.resources.begin_progress(key, dirty);
            self.removals.definition.wait(key.clone(), dirty);
            self.ask_for_definition();
            self.schedule(key, Vec::new(), dirty);
        } else if removes && (dirty.cause == Cause::Inferred || self.removals.relist.has(key)) {
            self.infer(key, ops, dirty.since);
        } else {
            self.removals.relist.forget(key);
            self.explain_and_schedule(key, ops, dirty, false);
        }
    }

    /// Schedules these writes of a resource but its removals, which wait until it is known how many there are in all.
    fn infer(&mut self, key: &ResourceKey, mut ops: Vec<Op>, since: Instant) {
        let all = ops.len();
        ops.retain(|op| !op.removes());
        let dirty = Dirty { cause: Cause::Inferred, since };
        self.removals.inferred.insert(key.clone(), Inferred { removals: all - ops.len(), since });
        self.resources.begin_progress(key, dirty);
        if ops.is_empty() {
            self.lanes.replace(key, Vec::new());
        } else {
            self.explain_and_schedule(key, ops, dirty, false);
        }
    }

    pub(super) fn is_deleted(&self, key: &ResourceKey) -> bool {
        self.world.resource(key).is_none_or(|entry| entry.resource.deleting)
    }

    /// Says whether a deleted resource was deleted by itself, and not with the CRD.
    pub(super) fn is_confirmed(&self, key: &ResourceKey) -> bool {
        self.removals.is_confirmed(key, self.world.resource(key).map(|entry| &entry.resource.uid))
    }

    /// Lists what is registered of a resource, or is just being registered: the limit of instances leaves it in.
    pub(super) fn registered<'a>(
        &'a self,
        key: &'a ResourceKey,
    ) -> impl Iterator<Item = (&'a Str, &'a Registration)> + Clone {
        registered(self.mirror.owned(key)).chain(self.lanes.being_registered(key))
    }

    /// Decides about a resource, unless the decision that is kept still holds, and has the resource reconciled if it
    /// comes to something else. So it does where the port that goes on is known from a status alone.
    pub(super) fn look(&mut self, key: &ResourceKey) {
        if self.decide(key) {
            self.enqueue_again(key.clone());
        }
    }

    /// Decides about a resource, unless the decision that is kept still holds. Answers whether another one was kept.
    fn decide(&mut self, key: &ResourceKey) -> bool {
        let basis = self.basis(key);
        if let Some(kept) = self.resources.get(key).kept.as_ref().filter(|kept| kept.holds(&basis)) {
            debug_assert!(
                kept.decision.goes_by_rows
                    || kept.decision.texts != Texts::default()
                    || kept.decision.share.is_some()
                    || kept.decision == self.what_to_do(&self.world, key),
                "the decision about {key} does not hold any more: {kept:?}"
            );
            return false;
        }
        let decision = self.decide_by(&self.world, key);
        let mut has_room = self.resources.texts.note(key, decision.texts);
        has_room.extend(self.resources.instances.note_share(key, decision.share));
        for has_room in has_room {
            self.enqueue(has_room, Cause::Observed, Instant::now());
        }
        self.resources.change(key, |record| {
            let is_another = record.kept.as_ref().is_some_and(|kept| {
                // One whose source is found gets its name, also where there is nothing to do.
                kept.decision.action != decision.action || kept.decision.is_found() != decision.is_found()
            });
            record.kept = Some(Kept { decision, basis });
            is_another
        })
    }

    /// Decides about a resource by what a World says of it.
    pub(super) fn decide_by(&self, world: &World, key: &ResourceKey) -> Decision {
        self.metrics.decided();
        self.what_to_do(world, key)
    }

    fn what_to_do(&self, world: &World, key: &ResourceKey) -> Decision {
        let bytes = self.resources.texts.of_others(key);
        let others = OfOthers { bytes, instances: self.resources.instances.of_others(key) };
        decide(world, &self.config.identity, self.session.placement(), key, self.registered(key), others)
    }

    fn basis(&self, key: &ResourceKey) -> Basis {
        let (is_placed, is_whole) = (self.session.is_ready(), self.world.is_whole(&key.namespace));
        let Some(Entry { resource, .. }) = self.world.resource(key) else {
            return Basis { is_placed, is_whole, ..Basis::default() };
        };
        let status = &resource.status;
        let told = (status.port_in_use.clone(), status.observed_generation == resource.generation);
        let (waits_for, is_released) = (self.world.waits_for(key), !resource.ours && resource.has_finalizer());
        Basis { is_placed, is_whole, waits_for, told, is_released }
    }

    /// Answers the writes that a resource wants now.
    pub(super) fn operations(&mut self, key: &ResourceKey, dirty: Dirty) -> Vec<Op> {
        self.decide(key);
        let Some(Kept { mut decision, basis }) = self.resources.change(key, |record| record.kept.take()) else {
            return Vec::new();
        };
        let (mut waits, mut missing, mut ops) = (false, Missing::default(), Vec::new());
        let mut applied = None;
        match &mut decision.action {
            Action::Freeze => {}
            Action::Disown => ops = disown(self.mirror.owned(key)),
            Action::Apply { desired, hold, unready } => {
                share(desired, &self.mirror);
                missing = self.missing_of(key, desired);
                let desired = without(desired, &missing.rows);
                // What is being written may be about to go: nothing is taken away because it is there.
                let row = |k: &_| self.mirror.row(k).filter(|_| !self.lanes.is_in_flight(k));
                let owned = self.mirror.owned(key).filter(|(row, _)| !missing.rows.contains(*row));
                let is_refused = |row: &_| self.resources.is_refused(key, row);
                let mut diff = diff(&desired, row, owned, hold, |there| self.remains_of(key, there), is_refused);
                diff.ops.extend(desired.iter().filter_map(|(row, wanted)| self.once_more(row, wanted)));
                waits = !diff.waiting.is_empty();
                self.resources.change(key, |record| record.conflicts = diff.conflicts);
                ops = diff.ops;
                applied = Some((desired, &*unready));
            }
        }
        self.wait_for_missing(key, missing, dirty.cause);
        let all = ops.len();
        let is_in_doubt = self.has_name_in_doubt(key);
        ops.retain(|op| !self.lanes.is_in_flight(op.key()));
        let waits = waits || ops.len() < all || is_in_doubt && ops.iter().any(|op| self.is_new(op));
        if waits {
            // They are looked at again when the answers to what is under way come.
            self.resources.begin_progress(key, dirty);
        }
        self.resources.change(key, |record| {
            if let Some(progress) = &mut record.progress {
                // What is under way is not in the mirror yet: what it leads to may be wanted no more.
                progress.more = waits || progress.in_flight > 0;
            }
        });
        // What waits for answers is asked for all the same: its refusal is not forgotten.
        self.without_refused(key, &mut ops);
        ops.retain(|op| !is_in_doubt || !self.is_new(op));
        if let Some((desired, unready)) = applied {
            self.weigh_readiness(key, &desired, unready, &mut ops);
        }
        if self.world.resource(key).is_some() || self.mirror.owned(key).next().is_some() {
            self.resources.change(key, |record| record.kept = Some(Kept { decision, basis }));
        }
        if !ops.is_empty() && self.waits_for_finalizer(key) {
            self.resources.begin_progress(key, dirty);
            ops.clear();
        }
        ops
    }

    /// Says whether a resource whose name is another's may have nothing under that name any more, since a write of it got no
    /// answer or has none yet. It keeps what it has. Until that is known, it registers nothing new.
    fn has_name_in_doubt(&self, key: &ResourceKey) -> bool {
        let is_unanswered = self.lanes.has_unknown(key) || self.resources.in_flight(key) > 0;
        is_unanswered && self.world.rival(key).is_some()
    }

    /// Says whether a write registers an instance that Consul does not have.
    fn is_new(&self, op: &Op) -> bool {
        matches!(op, Op::Register { .. }) && self.mirror.row(op.key()).is_none()
    }

    /// Says what is left of the endpoint behind a registration that is not desired any more.
    fn remains_of(&self, key: &ResourceKey, there: &Registration) -> Remains {
        let spec = self.world.effective_spec(key);
        spec.map_or(Remains::Nothing, |spec| remains(spec, there, &self.world.facts(key)))
    }

    /// The instances of a resource that stay although their endpoints are missing.
    fn missing_of(&self, key: &ResourceKey, desired: &Desired) -> Missing {
        let (cluster, rows) = (&self.config.identity.cluster, self.mirror.owned(key));
        self.world.missing(key, cluster, desired, rows, Instant::now())
    }

    /// Has a resource reconciled again when the first of its instances whose endpoints are missing may go.
    fn wait_for_missing(&mut self, key: &ResourceKey, missing: Missing, cause: Cause) {
        if let Some(until) = missing.until {
            self.timers.set(until, Timer::Reconcile(key.clone()));
        }
        self.resources.change(key, |record| {
            let known = record.missing.take().map(|known| known.cause);
            let cause = known.map_or(cause, |known| known.max(cause));
            let message = missing.message();
            record.missing = missing.until.map(|_| MissingEndpoints { cause, message, rows: missing.rows });
        });
    }

    /// Says whether the finalizer must be on a resource before anything is written for it. What is to stay when the resource goes
    /// must not look like the orphan of a crash: were the resource deleted before, that is all it would be.
    pub(super) fn waits_for_finalizer(&self, key: &ResourceKey) -> bool {
        self.world.resource(key).is_some_and(|entry| {
            let (resource, stays) = (&entry.resource, entry.deletion() != Some(DeletionPolicy::Deregister));
            resource.ours && !resource.deleting && stays && !resource.has_finalizer()
        })
    }

    /// The write that registers an instance again as it is, where that was found to be needed.
    fn once_more(&self, key: &RowKey, registration: &Arc<Registration>) -> Option<Op> {
        let there = &self.mirror.row(key).filter(|_| self.resources.unseen.contains(key))?.registration;
        if !registration.same_service(there) || there.readiness != registration.readiness {
            return None;
        }
        // The tags may be those of Consul's users.
        let registration = Arc::new(Registration { tags: there.tags.clone(), ..(**registration).clone() });
        Some(Op::Register { key: key.clone(), registration, drop_checks: Vec::new() })
    }

    /// Takes out the writes that Consul has refused and that are not tried again yet.
    fn without_refused(&mut self, key: &ResourceKey, ops: &mut Vec<Op>) {
        if self.resources.get(key).refusals.is_empty() {
            return;
        }
        let now = Instant::now();
        let lanes = &self.lanes;
        let (due, news) = self.resources.change(key, |record| {
            (record.refusals.filter(ops, |row| lanes.is_in_flight(row), now), record.refusals.news())
        });
        if let Some(due) = due {
            self.timers.set(due, Timer::Reconcile(key.clone()));
        }
        for news in news {
            tracing::warn!(
                resource = %key,
                writes = news.writes,
                instance = %news.instance,
                words = %news.words,
                "Consul refused writes; Lictor tries one of them again, less and less often"
            );
        }
    }

    /// Notes that Consul refused a write, and when to try again.
    pub(super) fn refuse(&mut self, owner: &ResourceKey, op: Op, words: &str) {
        let (now, random) = (Instant::now(), &mut self.ports.random);
        let due = self.resources.change(owner, |record| record.refusals.refused(op, words, now, random));
        self.timers.set(due, Timer::Reconcile(owner.clone()));
    }

    /// Puts these writes of a resource in place of those that waited. `confirmed` says whether a fresh list confirmed its
    /// removals.
    pub(super) fn explain_and_schedule(&mut self, key: &ResourceKey, ops: Vec<Op>, dirty: Dirty, confirmed: bool) {
        let writes = self.explain(key, ops, dirty.cause == Cause::Observed, confirmed);
        self.schedule(key, writes, dirty);
    }

    /// Says of each write how urgent it is and why it is made.
    fn explain(&self, key: &ResourceKey, ops: Vec<Op>, was_observed: bool, confirmed: bool) -> Vec<Wanted> {
        let none = BTreeSet::new();
        let unready = match self.resources.get(key).kept.as_ref().map(|kept| &kept.decision.action) {
            Some(Action::Apply { unready, .. }) => unready,
            Some(Action::Freeze | Action::Disown) | None => &none,
        };
        let there = |op: &Op| self.mirror.row(op.key()).map(|row| &*row.registration);
        let removed = ops.iter().filter(|op| op.removes()).filter_map(there);
        let why_gone = why_gone(&self.world, key, was_observed, unready, removed);
        let why = |op: &Op| match (op, there(op)) {
            (Op::Register { .. }, None) => "its endpoint is new".into(),
            (Op::Register { .. }, Some(_)) => "what is asked for and what Consul has differ".into(),
            (Op::Readiness { registration, .. }, _) if registration.readiness == Some(Health::Critical) => {
                "its endpoint is not ready".into()
            }
            (Op::Readiness { .. }, _) => "its endpoint is ready".into(),
            (Op::Disown { .. }, _) => "the resource was deleted, and its instances are to stay".into(),
            (Op::Deregister { .. }, Some(there)) => Why { cause: why_gone(there).as_str(), confirmed },
            (Op::Deregister { .. }, None) => "nobody asks for it".into(),
        };
        let rated = |op: Op| Wanted { rank: Rank::of(&op, there(&op)), why: why(&op), op };
        ops.into_iter().map(rated).collect()
    }

    /// Leaves out the removals under a name that another namespace's resource has from now on, until what that one wants
    /// is there: whoever asks for the name finds the old instances or the new ones. What cannot come is not waited for,
    /// nor what does not come in time.
    fn hand_over(&mut self, key: &ResourceKey, mut writes: Vec<Wanted>, dirty: Dirty) -> Vec<Wanted> {
        let removes = writes.iter().any(|write| write.op.removes());
        if removes && self.is_deleted(key) {
            for freed in self.world.ends(key) {
                self.enqueue(freed.key, Cause::Observed, dirty.since);
            }
        }
        if !removes && self.resources.get(key).handover.is_none() {
            return writes;
        }
        let mut coming = self.successors(key);
        coming.retain(|_, successors| {
            successors.retain(|successor| self.comes(successor));
            !successors.is_empty()
        });
        if coming.is_empty() {
            self.resources.change(key, |record| record.handover = None);
            return writes;
        }
        let (now, is_unavailable) = (Instant::now(), self.session.outage().is_some());
        // While Consul cannot be written to, nobody is late.
        let known = self.resources.get(key).handover.as_ref().filter(|_| !is_unavailable);
        let until = known.map_or(now + HAND_OVER, |handover| handover.until);
        if until > now {
            writes.retain(|write| !matches!(&write.op, Op::Deregister { service, .. } if coming.contains_key(service)));
            self.resources.begin_progress(key, dirty);
            let look = if is_unavailable { now + RETRY } else { until };
            self.timers.set(look, Timer::Reconcile(key.clone()));
        }
        let handover = Handover { until, to: coming.into_values().flatten().collect() };
        self.resources.change(key, |record| record.handover = Some(handover));
        writes
    }

    /// The names under which the rows of a resource go, with those that have each from now on.
    fn successors(&self, key: &ResourceKey) -> BTreeMap<Str, BTreeSet<ResourceKey>> {
        let names = self.mirror.names(key).into_iter().map(|name| name.service);
        let all = names.map(|name| (name.clone(), self.world.successors(key, &name)));
        all.filter(|(_, successors)| !successors.is_empty()).collect()
    }

    /// Says whether a desired instance is not in Consul yet and may still come.
    fn comes(&mut self, key: &ResourceKey) -> bool {
        let is_known = self.world.is_whole(&key.namespace) && self.world.waits_for(key).is_none();
        if !self.session.is_ready() || !is_known {
            return true;
        }
        self.look(key);
        let record = self.resources.get(key);
        let Some(Decision { action: Action::Apply { desired, .. }, source, .. }) =
            record.kept.as_ref().map(|kept| &kept.decision)
        else {
            return false;
        };
        // Pods are listed anew where more is asked of them than was: its instances are desired as soon as that is known.
        let waits_for_pods = source.problems.iter().any(|problem| problem.reason == ProblemReason::PodNotSeen);
        waits_for_pods
            || desired.keys().any(|row| match self.mirror.row(row) {
                _ if record.refusals.has(row) => false,
                Some(there) => !there.shown && there.is_ours() || there.ownership == Ownership::Unowned,
                None => true,
            })
    }

    /// Has those reconciled again that wait for what a resource wants to be there.
    fn wake_predecessors(&mut self, key: &ResourceKey) {
        for predecessor in self.resources.predecessors(key) {
            self.enqueue_again(predecessor);
        }
    }

    /// Puts the writes of a resource in place of those that waited.
    fn schedule(&mut self, key: &ResourceKey, writes: Vec<Wanted>, dirty: Dirty) {
        let writes = self.hand_over(key, writes, dirty);
        let some = !writes.is_empty();
        if some {
            self.resources.begin_progress(key, dirty);
        }
        // Tags that belong to Consul's users are kept by the writes: as they are now, not as of the last resync.
        for write in &writes {
            if let Op::Register { key: row, registration, .. } = &write.op
                && registration.enable_tag_override
                && self.mirror.row(row).is_some()
            {
                self.lanes.want_fresh(&row.node);
            }
        }
        let registers = writes.iter().any(|write| self.is_new(&write.op) && !self.lanes.is_waiting(write.op.key()));
        self.lanes.replace(key, writes);
        if registers {
            // What is about to go for it may wait in its lanes since there was nothing to come.
            for predecessor in self.world.predecessors(key) {
                self.enqueue_again(predecessor);
            }
        }
        if !some {
            self.settle(key);
        }
        self.reports.enqueue(key.clone());
    }

    /// Notes that a resource is as desired, if nothing of it waits or is under way.
    pub(super) fn settle(&mut self, key: &ResourceKey) {
        let is_idle = self.resources.in_flight(key) == 0 && !self.lanes.has_waiting(key);
        if is_idle {
            self.wake_predecessors(key);
        }
        if self.resources.get(key).handover.is_some() && self.successors(key).is_empty() {
            self.resources.change(key, |record| record.handover = None);
        }
        let record = self.resources.get(key);
        let is_settled = is_idle
            && record.progress.is_some()
            && record.handover.is_none()
            && record.refusals.is_empty()
            && !self.removals.has(key)
            && !self.waits_for_finalizer(key);
        if is_settled {
            self.removals.done(key);
            if let Some(progress) = self.resources.change(key, |record| record.progress.take()) {
                self.metrics.arrived(progress.dirty.since.elapsed());
            }
        }
    }

    /// The resources that have rows in Consul, or that Kubernetes has.
    pub(super) fn all_keys(&self) -> BTreeSet<ResourceKey> {
        self.mirror.owners().chain(self.world.keys()).cloned().collect()
    }
}

//! One dirty resource: what should be there, how that differs from what is, and which of it may be written now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::alarms::{Alarm, Backoff};
use super::{Engine, Footing, Landing, Unsettled};
use crate::cluster::ReadError;
use crate::cluster::world::{Entry, Missing, World};
use crate::model::desired::{Desired, Placement, desired};
use crate::model::diff::{Op, diff, release};
use crate::model::guard::{Cause, CrdState, Ending, ending, wants_confirmation};
use crate::model::names::{Identity, ResourceKey, Str, instance_id};
use crate::model::registration::{Ownership, Registration, Row, RowKey};
use crate::model::resolve::{Before, Hold, Instance, Remains, Resolution, limit, remains, resolve};
use crate::model::resource::{DeletionPolicy, Spec};

/// How long between looks whether a resource that is frozen while it is being deleted may be let go.
const FROZEN: Duration = Duration::from_secs(10);

/// How long after a question about ended resources that was not answered, or not in their favour, it is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(3);

/// How long the instances of a resource that gives up a name wait for those of the resource that has it next.
const HAND_OVER: Duration = Duration::from_secs(30);

/// How long between looks at a hand-over that is late because Consul cannot be written to.
const RETRY: Duration = Duration::from_secs(2);

/// Instances under a name that wait for those of the resource that has the name next.
#[derive(Debug)]
pub(super) struct Handover {
    until: Instant,
    to: BTreeSet<ResourceKey>,
}

/// Why a resource is to be looked at, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    pub(super) cause: Cause,
    pub(super) since: Instant,
}

/// That instances of a resource stay although their endpoints are missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct MissingFrom {
    /// How it came about that they are missing: so are they removed.
    cause: Cause,
    /// When the resource is looked at again.
    wakes: Instant,
}

/// A write that Consul refused.
#[derive(Debug)]
pub(super) struct Refused {
    op: Op,
    pub(super) message: String,
    failures: u32,
    until: Instant,
}

/// The removals by inference that went without a second look, within a while: many small ones are a large one.
#[derive(Debug, Default)]
pub(super) struct LetPass {
    since: Option<Instant>,
    removals: usize,
    owned: usize,
}

impl LetPass {
    const WHILE: Duration = Duration::from_secs(60);

    /// Whether so many more may go, of the rows that are owned now; counts them if they may.
    fn may(&mut self, removals: usize, owned: usize) -> bool {
        if self.since.is_none_or(|since| since.elapsed() > Self::WHILE) {
            *self = Self { since: Some(Instant::now()), removals: 0, owned };
        }
        if wants_confirmation(self.removals + removals, self.owned.max(owned)) {
            return false;
        }
        self.removals += removals;
        true
    }
}

/// What a World wants for a resource.
pub(super) enum Outlook {
    /// These registrations, and of what else is there, what `hold` says.
    ///
    /// `unready` are the addresses of what is not among them only since it is not ready.
    Wants { desired: Desired, hold: Hold, unready: BTreeSet<Str> },
    /// That what is registered stays as it is: nobody can tell what it should be.
    Frozen,
    /// That our mark is taken off everything.
    Release,
}

impl Outlook {
    /// Whether a row that this outlook does not name would go.
    fn removes(&self, key: &RowKey, there: &Registration) -> bool {
        match self {
            Self::Wants { desired, hold, .. } => !desired.contains_key(key) && !hold.holds(there),
            Self::Frozen | Self::Release => false,
        }
    }
}

/// What `world` wants for `key`, of which these instances are registered. Pure: the same for our World and for a second
/// look's.
pub(super) fn outlook<'a>(
    world: &World,
    identity: &Identity,
    placement: &Placement,
    key: &ResourceKey,
    registered: impl Iterator<Item = (&'a Str, &'a Registration)> + Clone,
) -> Outlook {
    let nothing = || Outlook::Wants { desired: Desired::new(), hold: Hold::Nothing, unready: BTreeSet::new() };
    if !world.watches(&key.namespace) || !world.is_whole(&key.namespace) {
        return Outlook::Frozen;
    }
    let Some(entry) = world.resource(key) else { return nothing() };
    if entry.resource.paused && entry.resource.ours {
        return Outlook::Frozen;
    }
    if !entry.resource.ours {
        // With our finalizer on it, it was ours until its class was changed.
        return if entry.resource.has_finalizer() { nothing() } else { Outlook::Frozen };
    }
    if entry.resource.deleting {
        return match entry.resource.deletion {
            Some(DeletionPolicy::Deregister) => nothing(),
            // Of a word that we do not know, the milder reading.
            Some(DeletionPolicy::Retain) | None => Outlook::Release,
        };
    }
    let Some(spec) = world.effective_spec(key).filter(|_| world.waits_for(key).is_none()) else {
        return Outlook::Frozen;
    };
    let resolution = resolution(world, identity, key, spec, registered);
    let desired = desired(identity, key, &entry.resource.uid, spec, &resolution.instances, placement);
    let unready = resolution.instances.iter().filter(|instance| !spec.readiness.registers(instance.ready));
    let unready = unready.map(|instance| instance.address.to_string().into()).collect();
    Outlook::Wants { desired, hold: resolution.hold, unready }
}

/// What the source of a spec comes to, for a resource of which these instances are registered.
pub(super) fn resolution<'a>(
    world: &World,
    identity: &Identity,
    key: &ResourceKey,
    spec: &Spec,
    registered: impl Iterator<Item = (&'a Str, &'a Registration)> + Clone,
) -> Resolution {
    let id =
        |instance: &Instance| instance_id(&identity.cluster, key, &spec.service, &instance.target(), instance.port);
    let rows = registered.clone().map(|(_, registration)| registration);
    let before = Before::of(world.resource(key).map(|entry| &entry.resource), rows);
    limit(resolve(spec, &world.facts(key), &before), spec, id, registered)
}

/// The IDs and registrations of rows.
pub(super) fn registered<'a>(
    rows: impl Iterator<Item = (&'a RowKey, &'a Row)> + Clone,
) -> impl Iterator<Item = (&'a Str, &'a Registration)> + Clone {
    rows.map(|(key, row)| (&key.id, &*row.registration))
}

/// What is left of what a registration of a resource stands for, which is not desired any more.
pub(super) fn left_of(world: &World, key: &ResourceKey, there: &Registration) -> Remains {
    world.effective_spec(key).map_or(Remains::Nothing, |spec| remains(spec, there, &world.facts(key)))
}

impl Engine {
    /// Takes every dirty resource to the writes that wait for it.
    pub(super) fn reconcile_dirty(&mut self) {
        let Footing::Standing(placement) = &self.footing else { return };
        let placement = placement.clone();
        let mut inferred = BTreeMap::new();
        while let Some((key, mut dirty)) = self.dirty.pop_first() {
            self.parked.remove(&key);
            if let Some(missing) = self.missing.get(&key) {
                dirty.cause = dirty.cause.max(missing.cause);
            }
            if !self.world.watches(&key.namespace) {
                continue;
            }
            if !self.world.is_whole(&key.namespace) || self.world.waits_for(&key).is_some() {
                self.reports.tend(key.clone());
                // It stays as it is until then: what was decided before may be wrong by now.
                self.plan.replace(&key, Vec::new());
                self.parked.insert(key, dirty);
                continue;
            }
            // From here on the name is its own.
            for freed in self.world.act(&key) {
                self.mark(freed.key, Cause::Observed, dirty.since);
            }
            let ops = self.operations(&key, &placement, dirty);
            let removes = ops.iter().any(Op::removes);
            let ends = self.has_ended(&key);
            let frozen = self
                .world
                .resource(&key)
                .is_some_and(|Entry { resource, .. }| resource.paused && resource.deleting && resource.has_finalizer());
            if !ends || !removes {
                self.ended_alone.remove(&key);
                self.undecided.remove(&key);
            }
            if frozen || removes && ends && !self.ended_alone.contains(&key) {
                self.unsettle(&key, dirty);
                self.ended.insert(key.clone(), dirty);
                self.ask_for_definition();
                self.schedule(key, Vec::new(), dirty);
            } else if removes && (dirty.cause == Cause::Inferred || self.held.contains(&key)) {
                inferred.insert(key, (ops, dirty.since));
            } else {
                self.held.remove(&key);
                self.schedule(key, ops, dirty);
            }
        }
        self.guard(inferred);
    }

    fn has_ended(&self, key: &ResourceKey) -> bool {
        self.world.resource(key).is_none_or(|entry| entry.resource.deleting)
    }

    /// What is registered of a resource, or is just being: the limit of instances leaves it in.
    pub(super) fn registered(&self, key: &ResourceKey) -> impl Iterator<Item = (&Str, &Registration)> + Clone {
        let under_way = self.in_flight.iter().filter(move |(_, one)| one.owner == *key);
        let under_way = under_way.filter_map(|(row, one)| Some((&row.id, &**one.op.registration()?)));
        registered(self.mirror.owned(key)).chain(under_way)
    }

    /// The writes that a resource wants now.
    fn operations(&mut self, key: &ResourceKey, placement: &Placement, dirty: Dirty) -> Vec<Op> {
        let (mut waits, mut weighed) = (false, None);
        let mut missing = Missing::default();
        let mut ops = match outlook(&self.world, &self.config.identity, placement, key, self.registered(key)) {
            Outlook::Frozen => Vec::new(),
            Outlook::Release => release(self.mirror.owned(key)),
            Outlook::Wants { mut desired, hold, unready } => {
                missing = self.missing_of(key, &desired);
                desired.retain(|row, _| !missing.rows.contains(row));
                let left_of = |there: &_| left_of(&self.world, key, there);
                // What is being written may be about to go: nothing is taken away because it is there.
                let row = |k: &_| self.mirror.row(k).filter(|_| !self.in_flight.contains_key(k));
                let owned = self.mirror.owned(key).filter(|(row, _)| !missing.rows.contains(*row));
                let mut diff = diff(&desired, row, owned, &hold, left_of, |row| {
                    self.refused.get(key).is_some_and(|refused| refused.contains_key(row))
                });
                let same: Vec<Op> = desired.iter().filter_map(|(row, wanted)| self.once_more(row, wanted)).collect();
                diff.ops.extend(same);
                waits = !diff.waiting.is_empty();
                if diff.conflicts.is_empty() {
                    self.conflicts.remove(key);
                } else {
                    self.conflicts.insert(key.clone(), diff.conflicts);
                }
                weighed = Some((desired, unready));
                diff.ops
            }
        };
        self.wait_for_missing(key, missing.until, dirty.cause);
        let all = ops.len();
        ops.retain(|op| !self.in_flight.contains_key(op.key()));
        if ops.len() < all || waits {
            // They are looked at again when the answers to what is under way come.
            self.unsettle(key, dirty);
        }
        if let Some(unsettled) = self.unsettled.get_mut(key) {
            // What is under way is not in the mirror yet: what it leads to may be wanted no more.
            unsettled.more = ops.len() < all || waits || unsettled.in_flight > 0;
        }
        self.without_refused(key, &mut ops);
        if let Some((desired, unready)) = weighed {
            self.weigh_readiness(key, &desired, &unready, &mut ops);
        }
        if !ops.is_empty() && self.waits_for_finalizer(key) {
            self.unsettle(key, dirty);
            return Vec::new();
        }
        ops
    }

    /// The instances of a resource that stay although their endpoints are missing.
    pub(super) fn missing_of(&self, key: &ResourceKey, desired: &Desired) -> Missing {
        let (cluster, rows) = (&self.config.identity.cluster, self.mirror.owned(key));
        self.world.missing(key, cluster, desired, rows, Instant::now())
    }

    /// Has a resource looked at again when the first of its instances whose endpoints are missing may go.
    fn wait_for_missing(&mut self, key: &ResourceKey, until: Option<Instant>, cause: Cause) {
        let Some(until) = until else {
            self.missing.remove(key);
            return;
        };
        let known = self.missing.get(key).copied();
        let cause = known.map_or(cause, |known| known.cause.max(cause));
        // One alarm is enough: should it come too early, it sets the next one.
        let wakes = known.map(|known| known.wakes).filter(|wakes| *wakes > Instant::now() && *wakes <= until);
        if wakes.is_none() {
            self.alarms.set(until, Alarm::Reconcile(key.clone()));
        }
        self.missing.insert(key.clone(), MissingFrom { cause, wakes: wakes.unwrap_or(until) });
    }

    /// Whether nothing may be written of a resource before its finalizer is on it. What is to stay when the
    /// resource goes must not look like the orphan of a crash: were it deleted before, that is all it would be.
    pub(super) fn waits_for_finalizer(&self, key: &ResourceKey) -> bool {
        self.world.resource(key).is_some_and(|Entry { resource, .. }| {
            let stays = resource.deletion != Some(DeletionPolicy::Deregister);
            resource.ours && !resource.deleting && stays && !resource.has_finalizer()
        })
    }

    /// The write that registers an instance again as it is, where that was found to be needed.
    fn once_more(&self, key: &RowKey, registration: &Arc<Registration>) -> Option<Op> {
        let there = &self.mirror.row(key).filter(|_| self.again.contains(key))?.registration;
        if !registration.same_service(there) || there.readiness != registration.readiness {
            return None;
        }
        // The tags may be those of Consul's users.
        let registration = Arc::new(Registration { tags: there.tags.clone(), ..(**registration).clone() });
        Some(Op::Put { key: key.clone(), registration, drop_checks: Vec::new() })
    }

    /// Takes out the writes that Consul has just refused, and forgets the refusals that nobody asks for any more.
    fn without_refused(&mut self, key: &ResourceKey, ops: &mut Vec<Op>) {
        let Some(mut refused) = self.refused.remove(key) else { return };
        let now = Instant::now();
        let wanted: BTreeMap<&RowKey, &Op> = ops.iter().map(|op| (op.key(), op)).collect();
        refused.retain(|row, refusal| {
            self.in_flight.contains_key(row) || wanted.get(row).is_some_and(|op| **op == refusal.op)
        });
        ops.retain(|op| refused.get(op.key()).is_none_or(|refusal| refusal.until <= now));
        if !refused.is_empty() {
            self.refused.insert(key.clone(), refused);
        }
    }

    /// Notes that Consul refused a write, and when to try again.
    pub(super) fn refuse(&mut self, owner: &ResourceKey, op: Op, message: String) {
        let row = op.key().clone();
        let known = self.refused.entry(owner.clone()).or_default();
        let failures = known.get(&row).filter(|refusal| refusal.op == op).map_or(0, |refusal| refusal.failures) + 1;
        let until = Instant::now() + Backoff::REFUSED.wait(failures, &mut self.random);
        tracing::warn!(%owner, instance = %row, words = %message, "Consul refused a write");
        known.insert(row, Refused { op, message, failures, until });
        self.alarms.set(until, Alarm::Reconcile(owner.clone()));
    }

    /// Leaves out the removals under a name that another namespace's resource has from now on, until what that one wants
    /// is there: whoever asks for the name finds the old instances or the new ones. What cannot come is not waited for,
    /// nor what does not come in time.
    fn hand_over(&mut self, key: &ResourceKey, mut ops: Vec<Op>, dirty: Dirty) -> Vec<Op> {
        let removes = ops.iter().any(Op::removes);
        if removes && self.has_ended(key) {
            for freed in self.world.ends(key) {
                self.mark(freed.key, Cause::Observed, dirty.since);
            }
        }
        if !removes && !self.handovers.contains_key(key) {
            return ops;
        }
        let mut coming = self.successors(key);
        coming.retain(|_, successor| self.comes(successor));
        if coming.is_empty() {
            self.handovers.remove(key);
            return ops;
        }
        let now = Instant::now();
        let known = self.handovers.remove(key);
        let until = known.map_or(now + HAND_OVER, |handover| handover.until);
        let is_over = until <= now && self.trouble.is_none();
        if !is_over {
            ops.retain(|op| !matches!(op, Op::Remove { service, .. } if coming.contains_key(service)));
            self.unsettle(key, dirty);
            // While Consul cannot be written to, nobody is late.
            self.alarms.set(until.max(now + RETRY), Alarm::Reconcile(key.clone()));
        }
        self.handovers.insert(key.clone(), Handover { until, to: coming.into_values().collect() });
        ops
    }

    /// The names under which the rows of a resource go, with who has each from now on.
    fn successors(&self, key: &ResourceKey) -> BTreeMap<Str, ResourceKey> {
        let names = self.mirror.names(key).into_iter().map(|name| name.service);
        names.filter_map(|name| Some((name.clone(), self.world.successor(key, &name)?))).collect()
    }

    /// Whether something that a resource wants is not in Consul yet and may still come.
    fn comes(&self, key: &ResourceKey) -> bool {
        let Footing::Standing(placement) = &self.footing else { return true };
        if !self.world.is_whole(&key.namespace) || self.world.waits_for(key).is_some() {
            return true;
        }
        let Outlook::Wants { desired, .. } =
            outlook(&self.world, &self.config.identity, placement, key, self.registered(key))
        else {
            return false;
        };
        let refused = self.refused.get(key);
        desired.keys().any(|row| match self.mirror.row(row) {
            _ if refused.is_some_and(|refused| refused.contains_key(row)) => false,
            Some(there) => !there.shown && there.is_ours() || there.ownership == Ownership::Unowned,
            None => true,
        })
    }

    /// Has those looked at again that wait for what a resource wants to be there.
    fn wake_predecessors(&mut self, key: &ResourceKey) {
        let waiting = self.handovers.iter().filter(|(_, handover)| handover.to.contains(key));
        for predecessor in waiting.map(|(predecessor, _)| predecessor.clone()).collect::<Vec<_>>() {
            self.mark_again(predecessor);
        }
    }

    /// Puts the writes of a resource in place of those that waited.
    fn schedule(&mut self, key: ResourceKey, ops: Vec<Op>, dirty: Dirty) {
        let ops = self.hand_over(&key, ops, dirty);
        let some = !ops.is_empty();
        if some {
            self.unsettle(&key, dirty);
        }
        // Tags that belong to Consul's users are kept by our writes: as they are now, not as of the last sweep.
        for op in &ops {
            if let Op::Put { key: row, registration, .. } = op
                && registration.enable_tag_override
                && self.mirror.row(row).is_some()
                && !self.looked.contains(&row.node)
            {
                self.uncertain.insert(row.node.clone());
            }
        }
        self.plan.replace(&key, ops);
        if !some {
            self.settle_resource(&key);
        }
        self.reports.tend(key);
    }

    fn unsettle(&mut self, key: &ResourceKey, dirty: Dirty) {
        let Dirty { cause, since } = dirty;
        let known = self.unsettled.entry(key.clone()).or_insert(Unsettled { since, cause, in_flight: 0, more: false });
        known.cause = known.cause.max(cause);
    }

    /// Notes that a resource has nothing to write any more, if nothing of it is under way either.
    pub(super) fn settle_resource(&mut self, key: &ResourceKey) {
        if self.unsettled.get(key).is_none_or(|unsettled| unsettled.in_flight == 0) && !self.plan.has(key) {
            self.wake_predecessors(key);
        }
        if self.handovers.contains_key(key) && self.successors(key).is_empty() {
            self.handovers.remove(key);
        }
        let settled = self.unsettled.get(key).is_some_and(|unsettled| unsettled.in_flight == 0)
            && !self.plan.has(key)
            && !self.handovers.contains_key(key)
            && !self.held.contains(key)
            && !self.ended.contains_key(key)
            && !self.waits_for_finalizer(key)
            && !self.refused.contains_key(key);
        if settled {
            self.ended_alone.remove(key);
        }
        if settled && let Some(unsettled) = self.unsettled.remove(key) {
            self.metrics.arrived(unsettled.since.elapsed());
        }
    }

    /// Lets removals by inference pass while they are few, and otherwise has Kubernetes asked again.
    fn guard(&mut self, inferred: BTreeMap<ResourceKey, (Vec<Op>, Instant)>) {
        if inferred.is_empty() {
            return;
        }
        let removals = inferred.values().flat_map(|(ops, _)| ops).filter(|op| op.removes()).count();
        let hold = !self.held.is_empty() || !self.let_pass.may(removals, self.mirror.owned_rows());
        for (key, (mut ops, since)) in inferred {
            let dirty = Dirty { cause: Cause::Inferred, since };
            if hold {
                ops.retain(|op| !op.removes());
                self.held.insert(key.clone());
                self.unsettle(&key, dirty);
            }
            self.schedule(key, ops, dirty);
        }
        if hold {
            self.look_again();
        }
    }

    /// Asks Kubernetes again, by consistent reads, before removals by inference.
    fn look_again(&mut self) {
        if self.second_look.is_some() {
            return;
        }
        // Only those: what is held later may not have been there yet when Kubernetes reads.
        self.second_look = Some(self.held.clone());
        tracing::info!(resources = self.held.len(), "asking Kubernetes again before removing by inference");
        let (era, kubernetes) = (self.era, Arc::clone(&self.kubernetes));
        self.fly(async move { Landing::SecondLook { era, answer: Box::new(kubernetes.read_again().await) } });
    }

    /// Makes those removals that our World and the second look agree on.
    pub(super) fn land_second_look(&mut self, era: u64, answer: Result<World, ReadError>) {
        let looked_at = self.second_look.take().unwrap_or_default();
        if era != self.era {
            // What is held now was not when that was asked.
            if !self.held.is_empty() {
                self.look_again();
            }
            return;
        }
        let Footing::Standing(placement) = &self.footing else { return };
        let placement = placement.clone();
        let later = Instant::now() + Duration::from_secs(3);
        let fresh = match answer {
            Ok(mut fresh) => {
                fresh.remember(&self.world);
                fresh
            }
            Err(error) => {
                tracing::warn!(%error, "Kubernetes did not answer; removals by inference wait");
                for key in self.held.clone() {
                    self.alarms.set(later, Alarm::Reconcile(key));
                }
                return;
            }
        };
        let mut contradicted = false;
        for key in &looked_at {
            if !self.held.remove(key) {
                continue;
            }
            let key = key.clone();
            let again = outlook(&fresh, &self.config.identity, &placement, &key, self.registered(&key));
            let dirty = Dirty { cause: Cause::Inferred, since: Instant::now() };
            let mut ops = self.operations(&key, &placement, dirty);
            if ops.iter().any(Op::removes) && self.has_ended(&key) && !self.ended_alone.contains(&key) {
                // It ended meanwhile, and whether it did by itself is asked first.
                self.mark_again(key);
                continue;
            }
            let before = ops.len();
            ops.retain(|op| {
                !op.removes() || self.mirror.row(op.key()).is_none_or(|row| again.removes(op.key(), &row.registration))
            });
            if ops.len() < before {
                tracing::warn!(resource = %key, kept = before - ops.len(), "Kubernetes has what a list did not have");
                // Until our World agrees, its removals are asked about again, whatever marks it dirty.
                self.held.insert(key.clone());
                self.unsettle(&key, dirty);
                self.alarms.set(later, Alarm::Reconcile(key.clone()));
                contradicted = true;
            }
            self.schedule(key, ops, dirty);
        }
        if contradicted {
            self.kubernetes.list_anew();
        }
        let since: Vec<ResourceKey> = self.held.difference(&looked_at).cloned().collect();
        for key in since {
            self.mark_again(key);
        }
    }

    /// Asks whether the definition of our kind stays. When a user deletes a resource, its instances go; when the
    /// definition is deleted, all resources are, and nobody means to say that of the services.
    fn ask_for_definition(&mut self) {
        if self.asked_about.is_none() && !self.ended.is_empty() {
            self.asked_about = Some(self.ended.keys().cloned().collect());
            let (era, kubernetes) = (self.era, Arc::clone(&self.kubernetes));
            self.fly(async move { Landing::Definition { era, answer: kubernetes.definition_goes().await } });
        }
    }

    /// Lets the instances of ended resources go, or the resources without them.
    pub(super) fn land_definition(&mut self, era: u64, answer: Result<CrdState, ReadError>) {
        let mut asked_about = self.asked_about.take().unwrap_or_default();
        if era != self.era {
            // Nothing that ended since was asked about.
            asked_about.clear();
        }
        let (ended, later): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.ended).into_iter().partition(|(key, _)| asked_about.contains(key));
        self.ended = later;
        self.ask_for_definition();
        let crd = match answer {
            Ok(crd) => crd,
            Err(error) => {
                tracing::warn!(%error, "the instances of ended resources stay until Kubernetes answers");
                let later = Instant::now() + ASK_AGAIN;
                for key in ended.into_keys() {
                    self.alarms.set(later, Alarm::Reconcile(key));
                }
                return;
            }
        };
        let went = std::mem::replace(&mut self.definition_went, crd == CrdState::Goes);
        if crd == CrdState::Goes && !went {
            tracing::warn!("the CustomResourceDefinition goes: resources are let go, registrations stay");
        }
        for (key, dirty) in ended {
            self.end(key, dirty, crd);
        }
    }

    /// Lets the instances of one ended resource go, or the resource without them.
    fn end(&mut self, key: ResourceKey, dirty: Dirty, crd: CrdState) {
        let now = Instant::now();
        if crd != CrdState::Goes && self.world.resource(&key).is_some_and(|entry| entry.resource.paused) {
            // It waits for its author; should the definition go, for nobody.
            self.alarms.set(now + FROZEN, Alarm::Reconcile(key));
            return;
        }
        let (removals, owned) = (self.mirror.owned(&key).count(), self.mirror.owned_rows());
        match ending(crd, || self.let_pass.may(removals, owned)) {
            Ending::Deregister => {
                self.undecided.remove(&key);
                self.ended_alone.insert(key.clone());
                self.mark(key, dirty.cause, dirty.since);
            }
            Ending::Detach => {
                self.undecided.remove(&key);
                // Should the definition come back without the resource, what is left of it is an orphan.
                self.unsettle(&key, Dirty { cause: Cause::Inferred, since: dirty.since });
                self.reports.let_go(key.clone());
                self.alarms.set(now + ASK_AGAIN, Alarm::Reconcile(key));
            }
            Ending::Wait => {
                if self.undecided.insert(key.clone()) {
                    tracing::warn!(
                        resource = %key,
                        instances = removals,
                        "the instances of a deleted resource stay: Lictor may read neither the CustomResourceDefinition \
                         nor discovery, so it cannot tell whether all resources are being deleted"
                    );
                }
                self.alarms.set(now + ASK_AGAIN, Alarm::Reconcile(key));
            }
        }
    }

    /// The resources that have rows in Consul or writes waiting, or that Kubernetes has.
    pub(super) fn all_keys(&self) -> BTreeSet<ResourceKey> {
        self.mirror.owners().chain(self.world.keys()).cloned().collect()
    }
}

//! The way to Consul: first a footing (who we are, where instances go, what is there), then bundles, one at a
//! time for each Consul node and several nodes side by side, and a sweep now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::alarms::{Alarm, Backoff};
use super::metrics::{Kind, Result as Written};
use super::{Engine, FailedWrites, Footing, Landing, Standstill};
use crate::consul::{Bundle, Outcome, Rows, Trouble};
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::guard::Cause;
use crate::model::names::{ResourceKey, Str, meta};
use crate::model::plan::Planned;
use crate::model::registration::{Ownership, Row, RowKey};

impl Engine {
    /// Starts something that answers with a [`Landing`].
    pub(super) fn fly(&self, flight: impl Future<Output = Landing> + Send + 'static) {
        self.flights.push(Box::pin(flight));
    }

    fn at_a_standstill(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.until.is_some())
    }

    /// Takes the next step towards a whole mirror.
    pub(super) fn keep_footing(&mut self) {
        if self.at_a_standstill() {
            return;
        }
        let (era, registry) = (self.era, Arc::clone(&self.registry));
        match self.footing {
            Footing::None => {
                self.footing = Footing::Connecting;
                self.fly(async move { Landing::Connected { era, answer: registry.connect().await } });
            }
            Footing::Reading(_) if !self.reading => self.read(),
            Footing::Connecting | Footing::Reading(_) | Footing::Standing(_) => {}
        }
    }

    pub(super) fn land_connected(&mut self, era: u64, answer: Result<Placement, Trouble>) {
        if era != self.era {
            return;
        }
        match answer {
            Ok(placement) => {
                self.footing = Footing::Reading(placement);
                self.read();
            }
            Err(trouble) => {
                self.footing = Footing::None;
                self.suffer(trouble);
            }
        }
    }

    fn read(&mut self) {
        self.reading = true;
        let (era, since, registry) = (self.era, self.mirror.now(), Arc::clone(&self.registry));
        self.fly(async move { Landing::Read { era, since, answer: registry.read().await } });
    }

    /// Looks at everything in Consul again.
    pub(super) fn sweep(&mut self) {
        if matches!(self.footing, Footing::Standing(_)) && !self.reading {
            self.read();
        }
    }

    pub(super) fn land_read(&mut self, era: u64, since: u64, answer: Result<Rows, Trouble>) {
        if era != self.era {
            return;
        }
        self.reading = false;
        let rows = match answer {
            Ok(rows) => rows,
            Err(trouble) => {
                if matches!(self.footing, Footing::Standing(_)) {
                    self.set_sweep();
                }
                self.suffer(trouble);
                return;
            }
        };
        self.recover();
        let now = Instant::now();
        self.last_sweep = Some(now);
        self.set_sweep();
        let moved = self.mirror.take_over(rows, since, None);
        self.note_rows();
        match std::mem::replace(&mut self.footing, Footing::None) {
            Footing::Reading(placement) => {
                tracing::info!(rows = self.mirror.owned_rows(), "read what Consul holds of ours");
                self.footing = Footing::Standing(placement);
                self.register_again();
                for key in self.all_keys() {
                    self.mark(key, Cause::Inferred, now);
                }
            }
            footing => {
                self.footing = footing;
                self.register_again();
                self.wake_conflicts();
                self.forget_failed_writes();
                for key in moved {
                    self.mark(key, Cause::Inferred, now);
                }
                self.tidy();
            }
        }
    }

    /// Tells the World under which names there are rows: they decide whose a name is.
    fn note_rows(&mut self) {
        let known = self.world.with_rows().chain(self.mirror.owners());
        for key in known.cloned().collect::<BTreeSet<_>>() {
            self.note_rows_of(&key);
        }
        self.world.know_rows(true);
    }

    fn note_rows_of(&mut self, key: &ResourceKey) {
        for dirtied in self.world.note_rows(key, self.mirror.names(key)) {
            self.mark(dirtied.key, Cause::Observed, Instant::now());
        }
    }

    /// Whoever held an ID of ours may have let go of it: the mirror does not know whom that concerns.
    fn wake_conflicts(&mut self) {
        for key in self.conflicts.keys().cloned().collect::<Vec<_>>() {
            self.mark(key, Cause::Inferred, Instant::now());
        }
    }

    /// What an agent has and the catalog does not show was registered with a token that does not do, or does
    /// no more: it is registered again with the one that we have now.
    fn register_again(&mut self) {
        let owner = |row: &Row| match &row.ownership {
            Ownership::Ours(owner) if !row.shown => Some(owner.clone()),
            Ownership::Ours(_) | Ownership::Unowned | Ownership::Other(_) => None,
        };
        let unseen: Vec<(RowKey, ResourceKey)> =
            self.mirror.rows().filter_map(|(key, row)| Some((key.clone(), owner(row)?))).collect();
        self.again.clear();
        for (key, owner) in unseen {
            self.again.insert(key);
            self.mark(owner, Cause::Observed, Instant::now());
        }
    }

    fn set_sweep(&mut self) {
        // Spread by a tenth, so that many clusters on one Consul do not sweep in step.
        let wait = self.config.sweep_interval.mul_f64(0.95 + self.random.f64() / 10.0);
        let at = Instant::now() + wait;
        self.next_sweep = Some(at);
        self.alarms.set(at, Alarm::Sweep);
    }

    fn tidy(&self) {
        let Footing::Standing(placement) = &self.footing else { return };
        if !self.world.knows_nodes() {
            return;
        }
        let addresses: BTreeMap<Str, IpAddr> =
            self.world.nodes().filter_map(|(name, node)| Some((name.clone(), node.address?))).collect();
        if matches!(placement, Placement::Catalog { .. }) {
            let (era, registry) = (self.era, Arc::clone(&self.registry));
            self.fly(async move { Landing::Tidied { era, answer: registry.tidy(&addresses).await } });
        }
    }

    /// Sends bundles to every node that has writes waiting and is free, up to the limit.
    pub(super) fn launch_bundles(&mut self) {
        let Footing::Standing(placement) = &self.footing else { return };
        let placement = placement.clone();
        // A look counts for the writes that waited for it.
        self.looked.retain(|node| self.plan.has_node(node));
        while !self.at_a_standstill() && !self.checking_writes && self.busy.len() < self.config.concurrency {
            let unread = self.uncertain.iter().find(|node| !self.busy.contains(*node)).cloned();
            if let Some(node) = unread {
                self.read_node(node);
                continue;
            }
            let Some(node) = self.next_node() else { return };
            let planned = self.plan.take(&node, self.registry.bundle_size(), &self.isolation);
            self.launch(&placement, node, planned);
        }
    }

    /// The next free node that has writes waiting, in turn.
    fn next_node(&mut self) -> Option<Str> {
        let free = |node: &&Str| !self.busy.contains(*node);
        let cursor = self.cursor.take();
        let next = self.plan.nodes_after(cursor.as_ref()).find(free).or_else(|| self.plan.nodes().find(free)).cloned();
        self.cursor.clone_from(&next);
        next
    }

    fn launch(&mut self, placement: &Placement, node: Str, planned: Vec<Planned>) {
        for one in &planned {
            self.mirror.begin(one.op.key());
            self.again.remove(one.op.key());
            self.in_flight.insert(one.op.key().clone(), one.clone());
            if let Some(unsettled) = self.unsettled.get_mut(&one.owner) {
                unsettled.in_flight += 1;
            }
        }
        let address = self.address_of(placement, &node, &planned);
        let bundle = Bundle { node: node.clone(), address, ops: planned.iter().map(|one| one.op.clone()).collect() };
        self.looked.remove(&node);
        self.busy.insert(node.clone());
        let (era, registry) = (self.era, Arc::clone(&self.registry));
        self.bundles.push(Box::pin(async move {
            let outcomes = registry.apply(&bundle).await;
            Landing::Applied { era, node, planned, outcomes }
        }));
    }

    /// The address of the Kubernetes node that a Consul node stands for, by one of the instances that go there: no
    /// shard has one, though the Kubernetes nodes of its instances do.
    fn address_of(&self, placement: &Placement, node: &Str, planned: &[Planned]) -> Option<IpAddr> {
        let mut names = planned.iter().filter_map(|one| one.op.registration()?.meta.get(meta::NODE));
        let own = names.find(|name| placement.node_for(name).as_ref() == Some(node))?;
        self.world.node(own)?.address
    }

    /// Follows the registry where it has found that instances go elsewhere: somebody else has a node of our name, or
    /// has it no more. What moves is there before it goes from where it was.
    pub(super) fn follow_placement(&mut self) {
        let Footing::Standing(known) = &mut self.footing else { return };
        let Some(now) = self.registry.placement().filter(|now| now != known) else { return };
        *known = now;
        for key in self.all_keys() {
            self.mark(key, Cause::Inferred, Instant::now());
        }
    }

    fn read_node(&mut self, node: Str) {
        self.uncertain.remove(&node);
        self.busy.insert(node.clone());
        let (era, since, registry) = (self.era, self.mirror.now(), Arc::clone(&self.registry));
        self.fly(async move {
            let answer = registry.read_node(&node).await;
            Landing::NodeRead { era, node, since, answer }
        });
    }

    pub(super) fn land_node_read(&mut self, era: u64, node: &Str, since: u64, answer: Result<Rows, Trouble>) {
        self.busy.remove(node);
        if era != self.era {
            // Whatever was to be found out is still to be.
            self.uncertain.insert(node.clone());
            return;
        }
        match answer {
            Ok(rows) => {
                self.recover();
                self.looked.insert(node.clone());
                self.dispel_doubts(node);
                self.wake_conflicts();
                let now = Instant::now();
                for key in self.mirror.take_over(rows, since, Some(node)) {
                    self.note_rows_of(&key);
                    self.mark(key, Cause::Inferred, now);
                }
            }
            Err(trouble) => {
                self.uncertain.insert(node.clone());
                self.suffer(trouble);
            }
        }
    }

    pub(super) fn land_applied(&mut self, era: u64, node: Str, planned: Vec<Planned>, outcomes: Vec<Outcome>) {
        self.busy.remove(&node);
        let current = era == self.era;
        let mut failed = Vec::new();
        let mut worst: Option<Trouble> = None;
        let (mut certain, mut answered) = (true, false);
        let mut owners: BTreeMap<ResourceKey, bool> = BTreeMap::new();
        for (one, outcome) in planned.into_iter().zip(outcomes) {
            let Planned { owner, op } = one;
            self.in_flight.remove(op.key());
            if let Some(unsettled) = self.unsettled.get_mut(&owner) {
                unsettled.in_flight = unsettled.in_flight.saturating_sub(1);
            }
            self.metrics.wrote(kind(&op), result(&outcome));
            // A resource is looked at again unless all went as planned.
            let again = owners.entry(owner.clone()).or_default();
            match outcome {
                Outcome::Written { shown } if current => {
                    answered = true;
                    self.isolation.dealt_with(op.key());
                    self.forget_refusal(&owner, &op);
                    self.mirror.acknowledge(&self.config.identity, &op, shown);
                }
                Outcome::Refused(message) if current => {
                    answered = true;
                    self.isolation.dealt_with(op.key());
                    *again = true;
                    self.refuse(&owner, op, message);
                }
                Outcome::NotTried(trouble) => {
                    *again = true;
                    worst = Some(trouble);
                }
                Outcome::Unknown(trouble) => {
                    *again = true;
                    certain = false;
                    self.in_doubt.entry(owner.clone()).or_default().insert(node.clone());
                    failed.push(Planned { owner, op });
                    worst = Some(trouble);
                }
                // Written or refused by a Consul that we have lost since.
                Outcome::Written { .. } | Outcome::Refused(_) => {
                    *again = true;
                    certain = false;
                    self.in_doubt.entry(owner).or_default().insert(node.clone());
                }
            }
        }
        if !certain {
            self.uncertain.insert(node);
        }
        for (owner, again) in owners {
            self.note_rows_of(&owner);
            // A rename's removals wait for what has just been written, a finalizer for what has just gone.
            if again || self.wants_another_look(&owner) {
                self.mark_again(owner);
            } else {
                self.settle_resource(&owner);
                self.reports.tend(owner);
            }
        }
        match worst {
            Some(trouble) if current && !trouble.lost_footing && !failed.is_empty() => {
                self.check_writes(FailedWrites { writes: failed, trouble });
            }
            Some(trouble) if current => self.suffer_from(trouble, true),
            None if answered => {
                self.failures = 0;
                self.recover();
            }
            Some(_) | None => {}
        }
    }

    /// Finds out whether Consul is away or just these writes fail: by one more write, which changes nothing. Nothing else
    /// is written meanwhile.
    fn check_writes(&mut self, failed: FailedWrites) {
        self.failed_writes.push(failed);
        if !std::mem::replace(&mut self.checking_writes, true) {
            let (era, registry) = (self.era, Arc::clone(&self.registry));
            self.fly(async move { Landing::WritesChecked { era, answer: registry.check_writes().await } });
        }
    }

    pub(super) fn land_writes_checked(&mut self, era: u64, answer: Result<(), Trouble>) {
        if era != self.era {
            return;
        }
        self.checking_writes = false;
        let failed = std::mem::take(&mut self.failed_writes);
        if let Err(trouble) = answer {
            self.isolation.clear();
            self.suffer_from(trouble, true);
            return;
        }
        self.failures = 0;
        self.recover();
        for FailedWrites { mut writes, trouble } in failed {
            let ops: Vec<&Op> = writes.iter().map(|write| &write.op).collect();
            let at_fault = self.isolation.failed(&ops);
            tracing::debug!(writes = ops.len(), at_fault, trouble = %trouble.message, "writes fail while others pass");
            if at_fault && let Some(Planned { owner, op }) = writes.pop() {
                let message =
                    format!("this write fails each time, while Consul carries out others: {}", trouble.message);
                self.refuse(&owner, op, message);
                self.mark_again(owner);
            }
        }
    }

    /// Forgets which writes failed that nobody wants any more.
    fn forget_failed_writes(&mut self) {
        let Self { isolation, refused, in_flight, plan, .. } = self;
        isolation.retain(|row| {
            in_flight.contains_key(row) || plan.has_row(row) || refused.values().any(|rows| rows.contains_key(row))
        });
    }

    /// Forgets the doubts about a node: it was read, and nothing was written to it meanwhile.
    fn dispel_doubts(&mut self, node: &Str) {
        let reports = &mut self.reports;
        self.in_doubt.retain(|key, nodes| {
            nodes.remove(node);
            if nodes.is_empty() {
                reports.tend(key.clone());
            }
            !nodes.is_empty()
        });
    }

    /// Whether a resource whose writes went well may have more to do.
    fn wants_another_look(&self, owner: &ResourceKey) -> bool {
        let unsettled = self.unsettled.get(owner);
        let last = !self.plan.has(owner) && unsettled.is_none_or(|unsettled| unsettled.in_flight == 0);
        let more = unsettled.is_some_and(|unsettled| unsettled.more)
            || self.world.resource(owner).is_none_or(|entry| entry.resource.deleting || !entry.resource.ours);
        last && more && !self.held.contains(owner)
    }

    fn forget_refusal(&mut self, owner: &ResourceKey, op: &Op) {
        if let Some(refused) = self.refused.get_mut(owner) {
            refused.remove(op.key());
            if refused.is_empty() {
                self.refused.remove(owner);
            }
        }
    }

    /// Consul is in trouble: nothing more is asked of it for a while.
    pub(super) fn suffer(&mut self, trouble: Trouble) {
        self.suffer_from(trouble, false);
    }

    fn suffer_from(&mut self, trouble: Trouble, of_a_write: bool) {
        // Several answers of one outage count once.
        if !self.at_a_standstill() {
            self.failures += 1;
        }
        let news = self.trouble.as_ref().is_none_or(|known| known.message != trouble.message);
        if news {
            tracing::warn!(trouble = %trouble.message, "Consul is in trouble");
        }
        let wait = Backoff::CONSUL.wait(self.failures, &mut self.random).max(trouble.retry_after.unwrap_or_default());
        let until = Instant::now() + wait;
        self.trouble = Some(Standstill { message: trouble.message, of_a_write, until: Some(until) });
        self.alarms.set(until, Alarm::Resume);
        if trouble.lost_footing {
            self.lose_footing();
        }
        if news {
            for key in self.all_keys() {
                self.reports.tend(key);
            }
        }
    }

    /// Consul answers again.
    fn recover(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("Consul answers");
        }
    }

    /// Forgets all that was known of Consul; what is under way is not believed when it lands.
    pub(super) fn lose_footing(&mut self) {
        tracing::warn!("starting over with Consul");
        self.era += 1;
        self.reading = false;
        self.looked.clear();
        self.checking_writes = false;
        self.failed_writes.clear();
        self.isolation.clear();
        self.footing = Footing::None;
        self.mirror.clear();
        self.world.know_rows(false);
        self.plan.clear();
        self.held.clear();
        self.missing.clear();
        self.ended.clear();
        self.ended_alone.clear();
        self.undecided.clear();
        self.handovers.clear();
        for key in self.all_keys() {
            self.mark(key, Cause::Inferred, Instant::now());
        }
    }
}

fn kind(op: &Op) -> Kind {
    match op {
        Op::Put { .. } => Kind::put,
        Op::Readiness { .. } => Kind::readiness,
        Op::Release { .. } => Kind::release,
        Op::Remove { .. } => Kind::remove,
    }
}

fn result(outcome: &Outcome) -> Written {
    match outcome {
        Outcome::Written { .. } => Written::written,
        Outcome::Refused(_) => Written::refused,
        Outcome::NotTried(_) => Written::not_tried,
        Outcome::Unknown(_) => Written::unknown,
    }
}

//! The exchange with Consul: the session is brought up, everything is read now and then, bundles are written, and
//! outages pause all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::{FailedWrites, Turn};
use super::metrics::{Kind, Result as Written};
use super::reconcile::span;
use super::resync::{Ask, Reader, Verdict};
use super::session::Stamped;
use super::timers::Timer;
use super::{Completion, Engine, Listed};
use crate::model::cause::Cause;
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::ids::{ResourceKey, Str, meta};
use crate::model::plan::Planned;
use crate::model::registration::{Ownership, Row, RowKey};
use crate::ports::{Bundle, Indexes, Outcome, Rows, Unavailable};

/// The time for which a replica that does not act keeps what it knows of Consul. Another one that acts by then has written.
const KEPT: Duration = Duration::from_secs(60);

/// The answers to a bundle, sorted by result.
#[derive(Default)]
struct Answers {
    /// True if Consul carried out or refused a write by itself.
    answered: bool,
    /// The writes that got no answer.
    failed: Vec<Planned>,
    /// The last failure that was not one write's own.
    outage: Option<Unavailable>,
    /// The resources, with whether each is to be reconciled again.
    owners: BTreeMap<ResourceKey, bool>,
}

impl Engine {
    /// Asks Consul for what the session and the resync need next.
    pub(super) fn continue_session(&mut self) {
        if self.session.begin_connecting() {
            let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
            self.tasks.spawn(async move { Completion::Connected(stamp.on(registry.connect().await)) });
        }
        if self.session.begin_resuming() {
            let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
            self.tasks.spawn(async move { Completion::Resumed(stamp.on(registry.resume().await)) });
        }
        if !self.session.may_read() {
            return;
        }
        // Of a round that was interrupted there may be nothing left to read.
        self.end_round();
        while let Some(ask) = self.resync.next(Instant::now()) {
            match ask {
                Ask::Indexes => self.read_indexes(),
                Ask::List => self.list_nodes(),
                // Its lane reads it, as nothing may be written to it before.
                Ask::Read(node) if self.lanes.resume(&node) => self.resync.lane_reads(&node),
                Ask::Read(node) => self.read_node(node, Reader::Resync),
            }
        }
        if let Some(due) = self.resync.due() {
            self.timers.replace(due, Timer::Resync);
        }
    }

    pub(super) fn on_connected(&mut self, answer: Stamped<Result<Placement, Unavailable>>) {
        let Some(answer) = self.session.accept(answer) else { return };
        match answer {
            Ok(placement) => self.session.connected(Some(placement)),
            Err(outage) => {
                self.session.connected(None);
                self.failed(&outage, false);
            }
        }
    }

    pub(super) fn on_resumed(&mut self, answer: Stamped<Result<bool, Unavailable>>) {
        match self.session.accept(answer) {
            Some(Ok(true)) => {
                self.consul_answered();
                self.session.resumed(true);
                tracing::info!(
                    "no other replica has written to Consul meanwhile; Lictor continues without reading Consul again"
                );
                self.begin_with_rows();
            }
            Some(Ok(false)) => self.reset_session(),
            Some(Err(outage)) => {
                self.session.resumed(false);
                self.failed(&outage, false);
            }
            None => {}
        }
    }

    /// Asks whether something has changed in Consul.
    fn read_indexes(&mut self) {
        let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
        self.tasks.spawn(async move { Completion::IndexesRead(stamp.on(registry.indexes().await)) });
    }

    pub(super) fn on_indexes_read(&mut self, answer: Stamped<Result<Indexes, Unavailable>>) {
        match self.session.accept(answer) {
            Some(Ok(indexes)) => {
                self.consul_answered();
                // What the agent has and the catalog does not show, nothing in the catalog tells of.
                if self.resync.looked(indexes, self.mirror.has_hidden(), Instant::now()) {
                    self.do_chores();
                }
            }
            Some(Err(outage)) => {
                let is_unavailable = self.resync.look_failed(Instant::now()) || outage.is_about_all();
                if is_unavailable {
                    self.failed(&outage, false);
                }
            }
            None => {}
        }
    }

    fn list_nodes(&mut self) {
        let (stamp, since, registry) = (self.session.stamp(), self.mirror.now(), Arc::clone(&self.ports.registry));
        let asks_for_others = self.world.asks_for_others();
        self.tasks.spawn(async move {
            let listed = async {
                let indexes = registry.indexes().await?;
                let nodes = registry.nodes().await?;
                let others = if asks_for_others { Some(registry.names_of_others().await) } else { None };
                Ok(Listed { indexes, nodes, others })
            };
            Completion::Listed { since, answer: stamp.on(listed.await) }
        });
    }

    pub(super) fn on_listed(&mut self, since: u64, answer: Stamped<Result<Listed, Unavailable>>) {
        let Some(answer) = self.session.accept(answer) else { return };
        let Listed { indexes, mut nodes, others } = match answer {
            Ok(listed) => listed,
            Err(outage) => {
                if self.resync.list_failed() || outage.is_about_all() {
                    self.failed(&outage, false);
                }
                return;
            }
        };
        self.consul_answered();
        if let Some(others) = others {
            self.know_others(others);
        }
        // One that is gone is read as well: that is how it is known that nothing is on it.
        nodes.extend(self.mirror.nodes().cloned());
        // Of one that a write without an answer was to make, nobody else knows.
        nodes.extend(self.lanes.postponed().cloned());
        self.mirror.forget_writes_elsewhere(&nodes, since);
        // Spread by a tenth, so that many clusters on one Consul do not read in step.
        let interval = self.config.resync_interval.mul_f64(0.95 + self.ports.random.f64() / 10.0);
        self.resync.listed(nodes, indexes, Instant::now(), interval, self.session.is_ready());
        self.end_round();
    }

    /// Notes the names that others have. Where Consul does not tell all of them, nobody begins to use a name of which that
    /// matters.
    fn know_others(&mut self, others: Result<BTreeSet<Str>, Unavailable>) {
        let others = match others {
            Ok(names) => Some(names),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot read the names that others have in Consul; new resources wait where the policy has foreignNames: false"
                );
                None
            }
        };
        for dirtied in self.world.know_others(others) {
            self.enqueue(dirtied.key, dirtied.cause.unwrap_or(Cause::Observed), Instant::now());
        }
    }

    /// Does what is to be done once all nodes have been read, if they have.
    fn end_round(&mut self) {
        if !self.resync.end_round(Instant::now()) {
            return;
        }
        if self.session.loaded() {
            tracing::info!(instances = self.mirror.owned_rows(), "read what Consul holds of this cluster");
            self.begin_with_rows();
            return;
        }
        self.do_chores();
    }

    /// Does what is done once in each interval, whether or not something has changed in Consul.
    fn do_chores(&mut self) {
        self.wake_conflicting();
        self.forget_failed_writes();
        self.tidy();
    }

    /// Reconciles everything, now that the mirror is whole.
    fn begin_with_rows(&mut self) {
        self.note_rows();
        for key in self.all_keys() {
            self.enqueue(key, Cause::Inferred, Instant::now());
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
            self.enqueue(dirtied.key, Cause::Observed, Instant::now());
        }
        for has_room in self.resources.instances.note_there(key, self.mirror.owned_by(key)) {
            self.enqueue(has_room, Cause::Observed, Instant::now());
        }
        for dirtied in self.world.note_checks(key, self.mirror.most_checks(key)) {
            self.enqueue(dirtied.key, Cause::Observed, Instant::now());
        }
        self.note_doubt_of(key);
    }

    /// Tells the World under which names a resource may have rows since.
    fn note_doubt_of(&mut self, key: &ResourceKey) {
        for dirtied in self.world.note_doubt(key, &self.lanes.names_in_doubt(key)) {
            self.enqueue(dirtied.key, Cause::Observed, Instant::now());
        }
    }

    /// Has those reconciled whose IDs somebody else held, who may hold them no more.
    fn wake_conflicting(&mut self) {
        for key in self.resources.conflicting().cloned().collect::<Vec<_>>() {
            self.enqueue_kept(key, Cause::Inferred, Instant::now());
        }
    }

    /// Has a resource reconciled of which Consul was found to have other instances than was known.
    fn rows_moved(&mut self, key: ResourceKey, now: Instant) {
        self.resources.rows_changed(&key);
        self.enqueue_kept(key, Cause::Inferred, now);
    }

    /// Has those instances on a node registered again that an agent has and the catalog does not show: they were
    /// registered with a token that does not do any more.
    fn register_unseen_again(&mut self, node: &Str) {
        let owner = |row: &Row| match &row.ownership {
            Ownership::Ours(owner) if !row.shown => Some(owner.clone()),
            Ownership::Ours(_) | Ownership::Unowned | Ownership::Other(_) => None,
        };
        let unseen: Vec<(RowKey, ResourceKey)> =
            self.mirror.on_node(node).filter_map(|(key, row)| Some((key.clone(), owner(row)?))).collect();
        self.resources.unseen.retain(|key| key.node != *node);
        for (key, owner) in unseen {
            self.resources.unseen.insert(key);
            self.enqueue_kept(owner, Cause::Observed, Instant::now());
        }
    }

    fn tidy(&mut self) {
        if !matches!(self.session.placement(), Some(Placement::Catalog { .. })) || !self.world.knows_nodes() {
            return;
        }
        let addresses: BTreeMap<Str, IpAddr> =
            self.world.nodes().filter_map(|(name, node)| Some((name.clone(), node.address?))).collect();
        let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
        self.tasks.spawn(async move { Completion::Tidied(stamp.on(registry.tidy(&addresses).await)) });
    }

    /// Sends bundles to every node that has writes waiting and is free, up to the limit.
    pub(super) fn launch_bundles(&mut self) {
        let Some(placement) = self.session.placement().cloned() else { return };
        self.lanes.forget_fresh();
        while !self.session.is_paused() {
            let registry = &self.ports.registry;
            match self.lanes.next_turn(registry.bundles(), registry.bundle_size()) {
                Some(Turn::Read(node)) => self.read_node(node, Reader::Lane),
                Some(Turn::Write(node, writes)) => self.write_bundle(&placement, node, writes),
                None => return,
            }
        }
    }

    fn write_bundle(&mut self, placement: &Placement, node: Str, planned: Vec<Planned>) {
        for one in &planned {
            self.mirror.begin(one.op.key());
            self.resources.unseen.remove(one.op.key());
            self.resources.write_began(&one.owner);
        }
        for owner in planned.iter().map(|one| &one.owner).collect::<BTreeSet<_>>() {
            self.note_doubt_of(owner);
        }
        let address = self.address_of(placement, &node, &planned);
        let ops = planned.iter().map(|one| one.op.clone()).collect();
        let is_refused = |one: &Planned| self.resources.is_refused(&one.owner, one.op.key());
        let alone = self.lanes.are_suspect(&planned) || planned.iter().any(is_refused);
        let bundle = Bundle { node: node.clone(), address, ops, alone };
        let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
        self.tasks.spawn_bundle(async move {
            let outcomes = stamp.on(registry.apply(&bundle).await);
            Completion::Applied { node, planned, outcomes }
        });
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
        if self.session.is_ready() && self.session.follow(self.ports.registry.placement()) {
            for key in self.all_keys() {
                self.enqueue(key, Cause::Inferred, Instant::now());
            }
        }
    }

    fn read_node(&mut self, node: Str, reader: Reader) {
        let (stamp, since, registry) = (self.session.stamp(), self.mirror.now(), Arc::clone(&self.ports.registry));
        self.tasks.spawn(async move {
            let answer = stamp.on(registry.read_node(&node).await);
            Completion::NodeRead { node, since, reader, answer }
        });
    }

    pub(super) fn on_node_read(
        &mut self,
        node: &Str,
        since: u64,
        reader: Reader,
        answer: Stamped<Result<Rows, Unavailable>>,
    ) {
        match self.session.accept(answer) {
            Some(Ok(rows)) => {
                self.consul_answered();
                if self.resync.read(node, reader) {
                    tracing::info!(%node, "Lictor can read the Consul node again");
                }
                let moved = self.mirror.take_over(node, rows, since);
                match reader {
                    Reader::Lane => {
                        for key in self.lanes.read(node) {
                            self.note_doubt_of(&key);
                            if self.world.rival(&key).is_some() {
                                self.enqueue_again(key.clone());
                            }
                            self.reports.enqueue(key);
                        }
                        self.wake_conflicting();
                    }
                    Reader::Resync => {
                        // Its lane could not read it, and still has to.
                        self.lanes.resume(node);
                        self.mirror.forget_writes(node, since);
                        self.register_unseen_again(node);
                    }
                }
                if self.session.is_ready() {
                    let now = Instant::now();
                    for key in moved {
                        self.note_rows_of(&key);
                        self.rows_moved(key, now);
                    }
                }
                self.end_round();
            }
            Some(Err(outage)) => self.on_node_not_read(node, reader, &outage),
            // Whatever was to be found out is still to be.
            None if reader == Reader::Lane => self.lanes.read_failed(node.clone()),
            None => {}
        }
    }

    /// Has a node read again, now or later, while others are read and written to; unless Consul is unavailable.
    fn on_node_not_read(&mut self, node: &Str, reader: Reader, outage: &Unavailable) {
        if reader == Reader::Lane {
            self.lanes.read_failed(node.clone());
        }
        if outage.is_about_all() {
            self.resync.put_back(node, reader);
            self.failed(outage, false);
            return;
        }
        if self.session.is_paused() {
            self.resync.put_back(node, reader);
            return;
        }
        let needs_all = !self.session.is_ready();
        match self.resync.read_failed(node, reader, needs_all, Instant::now(), &mut self.ports.random) {
            Verdict::Again => {}
            Verdict::Later { is_new } => {
                if is_new {
                    tracing::warn!(
                        %node, words = %outage.message,
                        "cannot read a Consul node; Lictor reads it again later, and keeps the other nodes up to date"
                    );
                }
                self.lanes.postpone(node);
                self.end_round();
            }
            Verdict::Outage => self.failed(outage, false),
        }
    }

    pub(super) fn on_applied(&mut self, node: &Str, planned: Vec<Planned>, outcomes: Stamped<Vec<Outcome>>) {
        self.lanes.wrote(node);
        let (outcomes, is_current) = self.session.open(outcomes);
        let mut answers = Answers::default();
        for (one, outcome) in planned.into_iter().zip(outcomes) {
            self.lanes.ended(one.op.key());
            self.metrics.wrote(kind(&one.op), result(&outcome));
            if is_current {
                self.on_outcome(node, one, outcome, &mut answers);
            } else {
                // Answered by a Consul of which nothing is known any more.
                self.resources.write_ended(&one.owner, false);
                self.lanes.unanswered(&one.owner, node, &one.op);
                answers.owners.insert(one.owner, true);
            }
        }
        for (owner, again) in answers.owners {
            self.note_rows_of(&owner);
            // A rename's removals wait for what has just been written, a finalizer for what has just gone.
            let is_last = !self.lanes.has_waiting(&owner) && self.resources.in_flight(&owner) == 0;
            // In between the decision stays: it was made in view of these writes.
            let goes_by_rows = is_last && self.resources.rows_changed(&owner);
            if again || is_last && self.wants_another_look(&owner, goes_by_rows) {
                self.enqueue_again(owner);
            } else {
                self.settle(&owner);
                self.reports.enqueue(owner);
            }
        }
        match answers.outage {
            Some(outage) if !outage.session_lost && !answers.failed.is_empty() => {
                self.check_writes(FailedWrites { writes: answers.failed, outage });
            }
            Some(outage) => self.failed(&outage, true),
            None if answers.answered => {
                self.session.wrote();
                self.consul_answered();
            }
            None => {}
        }
    }

    /// Takes in what became of one write.
    fn on_outcome(&mut self, node: &Str, one: Planned, outcome: Outcome, answers: &mut Answers) {
        let _span = span(&one.owner).entered();
        let again = answers.owners.entry(one.owner.clone()).or_default();
        let mut more = false;
        match outcome {
            Outcome::Written { shown } => {
                answers.answered = true;
                self.lanes.dealt_with(one.op.key());
                log_written(&one, self.mirror.row(one.op.key()));
                if !self.resources.get(&one.owner).refusals.is_empty() {
                    // Consul may take the others now that it refused in the same words.
                    *again |= self.resources.change(&one.owner, |record| record.refusals.written(one.op.key()));
                }
                self.mirror.acknowledge(&self.config.identity, &one.op, shown);
                self.resync.wrote();
            }
            Outcome::Refused(words) => {
                answers.answered = true;
                self.lanes.dealt_with(one.op.key());
                // What waits for it need not wait any more.
                more = true;
                self.refuse(&one.owner, one.op, &words);
            }
            Outcome::NotTried(outage) => {
                *again = true;
                answers.outage = Some(outage);
            }
            Outcome::Unknown(outage) => {
                *again = true;
                tracing::info!(
                    resource = %one.owner, instance = %one.op.key().id, node = %node, cause = %one.why,
                    "a write got no answer; Lictor reads the Consul node before it writes to it again"
                );
                self.lanes.unanswered(&one.owner, node, &one.op);
                self.resources.write_ended(&one.owner, false);
                answers.failed.push(one);
                answers.outage = Some(outage);
                return;
            }
        }
        self.resources.write_ended(&one.owner, more);
    }

    /// Finds out whether Consul is away or just these writes fail: by one more write, which changes nothing. Nothing else
    /// is written meanwhile.
    fn check_writes(&mut self, failed: FailedWrites) {
        if self.lanes.failed(failed) {
            let (stamp, registry) = (self.session.stamp(), Arc::clone(&self.ports.registry));
            self.tasks.spawn(async move { Completion::WritesChecked(stamp.on(registry.check_writes().await)) });
        }
    }

    pub(super) fn on_writes_checked(&mut self, answer: Stamped<Result<(), Unavailable>>) {
        let Some(answer) = self.session.accept(answer) else { return };
        let failed = self.lanes.checked(answer.is_err());
        if let Err(outage) = answer {
            self.failed(&outage, true);
            return;
        }
        self.session.wrote();
        self.consul_answered();
        for FailedWrites { mut writes, outage } in failed {
            let is_at_fault = self.lanes.is_at_fault(&writes);
            tracing::debug!(writes = writes.len(), is_at_fault, outage = %outage.message, "writes fail while other writes succeed");
            if is_at_fault && let Some(Planned { owner, op, .. }) = writes.pop() {
                let words = format!("this write fails each time, while other writes succeed: {}", outage.message);
                self.refuse(&owner, op, &words);
                self.enqueue_again(owner);
            }
        }
    }

    /// Forgets which writes failed that nobody wants any more.
    fn forget_failed_writes(&mut self) {
        let refused = self.resources.refused_rows();
        self.lanes.forget_failed(|row| refused.contains(row));
    }

    /// Says whether a resource may have more to do after all its writes succeeded. `goes_by_rows` says whether what is registered
    /// decides about it.
    fn wants_another_look(&self, owner: &ResourceKey, goes_by_rows: bool) -> bool {
        let more = goes_by_rows
            || self.resources.get(owner).progress.is_some_and(|progress| progress.more)
            || self.world.resource(owner).is_none_or(|entry| entry.resource.deleting || !entry.resource.ours);
        more && !self.removals.relist.has(owner)
    }

    /// Notes that Consul is unavailable: nothing more is asked of it for a while.
    pub(super) fn failed(&mut self, outage: &Unavailable, of_a_write: bool) {
        let failed = self.session.failed(outage, of_a_write, Instant::now(), &mut self.ports.random);
        self.timers.replace(failed.resumes, Timer::Resume);
        self.resync.outage();
        self.lanes.resume_all();
        if failed.is_new {
            tracing::warn!(kind = outage.kind.as_str(), words = %outage.message, "Consul is unavailable; writes are paused");
        }
        if outage.session_lost {
            self.reset_session();
        }
        if failed.is_new {
            for key in self.all_keys() {
                self.reports.enqueue(key);
            }
        }
    }

    /// Notes that Consul answers.
    fn consul_answered(&mut self) {
        if self.session.answered() {
            tracing::info!("Consul answers again");
        }
    }

    /// Forgets all that was known of Consul; answers to what is under way do not count.
    pub(super) fn reset_session(&mut self) {
        tracing::warn!("the session with Consul was reset; Lictor reads all registrations again");
        self.session.reset();
        self.resync.reset();
        self.mirror.clear();
        self.forget_session();
    }

    /// Stops asking Consul and writing to it. What is known of it is kept for a while: it still counts if this replica acts
    /// again and no other one did meanwhile.
    pub(super) fn suspend_session(&mut self) {
        if self.session.suspend() {
            self.resync.interrupt();
        } else {
            // Nodes that were read before are read again: what they had is forgotten, too.
            self.resync.reset();
            self.mirror.clear();
        }
        self.forget_session();
        self.timers.replace(Instant::now() + KEPT, Timer::Forget);
    }

    /// Forgets what waits and what was asked of Consul, and has everything reconciled once the mirror counts.
    fn forget_session(&mut self) {
        self.world.know_rows(false);
        self.lanes.reset();
        self.removals.reset();
        self.resources.reset();
        for key in self.all_keys() {
            self.enqueue(key, Cause::Inferred, Instant::now());
        }
    }
}

/// Writes a log line about what Consul carried out: when and why an instance came, changed and left.
fn log_written(one: &Planned, before: Option<&Row>) {
    let Planned { owner, op, why } = one;
    let (RowKey { node, id }, service) = (op.key(), op.registration().map(|registration| &*registration.service));
    match op {
        Op::Register { registration, .. } if before.is_none() => tracing::debug!(
            resource = %owner, instance = %id, node = %node, service, address = %registration.address, cause = %why,
            "registered an instance"
        ),
        Op::Register { .. } => {
            tracing::debug!(resource = %owner, instance = %id, node = %node, service, cause = %why, "changed an instance");
        }
        Op::Readiness { registration, .. } => tracing::debug!(
            resource = %owner, instance = %id, node = %node, service, cause = %why,
            readiness = registration.readiness.map_or("none", Health::as_str),
            "changed the readiness of an instance"
        ),
        Op::Disown { .. } => tracing::info!(
            resource = %owner, instance = %id, node = %node, service, cause = %why,
            "disowned an instance: it stays registered, and Lictor does not change it any more"
        ),
        Op::Deregister { service, .. } => tracing::info!(
            resource = %owner, instance = %id, node = %node, service = %service,
            address = before.map_or("", |row| &*row.registration.address), cause = %why,
            "deregistered an instance"
        ),
    }
}

fn kind(op: &Op) -> Kind {
    match op {
        Op::Register { .. } => Kind::register,
        Op::Readiness { .. } => Kind::readiness,
        Op::Disown { .. } => Kind::disown,
        Op::Deregister { .. } => Kind::deregister,
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

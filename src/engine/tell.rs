//! Finalizers, status and Events: written where something differs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::decide::{Action, Decision, NAME_CONFLICT, name_conflict, without};
use super::reports::{Next, Said, Sent};
use super::timers::Timer;
use super::{Completion, Engine};
use crate::model::diff::count;
use crate::model::ids::{PREVIOUS, ResourceKey};
use crate::model::port::PortInUse;
use crate::model::reasons::{Counts, Problem, ProblemReason};
use crate::model::registration::{Row, RowKey};
use crate::model::resource::{DeletionPolicy, Resource};
use crate::model::status::{
    Condition, ConditionKind, ENDPOINTS_MISSING, Findings, NOT_IN_DNS, NOT_LISTED, PENDING, Status, Truth, status,
};
use crate::ports::{Finalizers, Write, WriteError};
use crate::state::world::Entry;

/// The least time between two writes of one resource's status.
const BETWEEN: Duration = Duration::from_secs(1);

/// The least time between two writes of one resource's status that differ in counts and messages alone.
const BETWEEN_COUNTS: Duration = Duration::from_secs(3);

/// The time before a status that was written and not seen is written again; it doubles with each repetition. An API
/// server whose `CustomResourceDefinition` is older takes away the fields that it does not know, and so never shows it.
const UNSEEN: Duration = Duration::from_secs(5);

/// The most times that [`UNSEEN`] doubles: to more than five minutes.
const DOUBLINGS: u32 = 6;

/// The wait after a write that failed.
const RETRY: Duration = Duration::from_secs(2);

/// The wait after a write that Kubernetes refused: somebody has to change something first.
const RETRY_REFUSED: Duration = Duration::from_secs(60);

impl Engine {
    /// Writes what there is to tell, as far as the limits allow. Answers whether all of that was looked at.
    pub(super) fn write_reports(&mut self) -> bool {
        let mut work = self.work();
        let (is_ready, is_unavailable) = (self.session.is_ready(), self.session.outage().is_some());
        if self.reports.has_unreachable() && (is_ready || is_unavailable) {
            self.reports.take_unreachable(!is_ready);
        }
        while work.is_left()
            && let Some(key) = self.reports.next_finalizer()
        {
            work.did(1);
            if self.world.resource(&key).is_none() {
                self.reports.forget_told(&key);
            } else if is_ready && self.world.is_whole(&key.namespace) {
                self.tell_finalizer(&key);
            }
        }
        while work.is_left() {
            match self.reports.next_status(Instant::now()) {
                Next::Resource(key) => {
                    if self.world.is_whole(&key.namespace) && (is_ready || is_unavailable) {
                        work.did(self.tell_status(key));
                    }
                }
                Next::At(at) => {
                    self.timers.set(at, Timer::Reports);
                    return true;
                }
                Next::None => return true,
            }
        }
        false
    }

    /// Puts the finalizer on a resource that has registrations, or is about to, and takes it off one that is being
    /// deleted and has none left.
    fn tell_finalizer(&mut self, key: &ResourceKey) {
        let Some(Entry { resource, .. }) = self.world.resource(key) else { return };
        if self.reports.told(key).finalized.as_ref() == Some(&resource.resource_version) {
            return;
        }
        let is_registered = self.mirror.owned(key).next().is_some() || self.lanes.has_waiting(key);
        let is_busy = is_registered || self.resources.in_flight(key) > 0;
        let is_unknown = self.lanes.has_unknown(key) || self.resources.is_dirty(key);
        let is_wanted = self.waits_for_finalizer(key) && self.resources.get(key).progress.is_some();
        let finalizers = || Finalizers {
            key: key.clone(),
            uid: resource.uid.clone(),
            resource_version: resource.resource_version.clone(),
            finalizers: resource.finalizers.clone(),
            ours: resource.finalizer.clone(),
        };
        let leaves = resource.deleting || !resource.ours;
        let write = match (leaves, resource.has_finalizer()) {
            (true, true) if self.reports.take_detached(key, &resource.uid) => Write::RemoveFinalizer(finalizers()),
            (true, true) if !is_busy && !is_unknown => {
                if let Some(write) = forgets_status(resource, self.reports.told(key).forgotten) {
                    self.reports.told(key).forgotten = Some(resource.generation);
                    let key = key.clone();
                    self.write(write, move |answer| Completion::StatusForgotten { key, answer });
                    return;
                }
                Write::RemoveFinalizer(finalizers())
            }
            (false, false) if is_busy || is_wanted => Write::AddFinalizer(finalizers()),
            _ => return,
        };
        self.reports.told(key).finalized = Some(resource.resource_version.clone());
        let key = key.clone();
        self.write(write, move |answer| Completion::FinalizerWritten { key, answer });
    }

    pub(super) fn on_status_forgotten(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.completed(None);
        if let Err(error) = answer {
            tracing::debug!(resource = %key, %error, "cannot clear the status of a resource that now has another class");
        }
        self.reports.enqueue(key);
    }

    pub(super) fn on_finalizer_written(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.completed(None);
        match answer {
            // The watch tells of the new state, and whether more is to do.
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "cannot write a finalizer; Lictor tries again");
                self.reports.told(&key).finalized = None;
                self.timers.set(Instant::now() + retry_after(&error), Timer::Report(key));
            }
        }
    }

    /// Writes the status of a resource if it differs from what the resource has, was not just written, and is not about
    /// to be overtaken. Answers how many instances were counted for that.
    fn tell_status(&mut self, key: ResourceKey) -> usize {
        if self.world.resource(&key).is_none_or(|entry| !entry.resource.ours) {
            return 0;
        }
        let now = Instant::now();
        let told = self.reports.told(&key);
        // While writes are under way, each answer gives reason for a look, and counting thousands of instances takes time.
        let looked = told.looked.filter(|_| self.resources.get(&key).progress.is_some());
        let last = told.sent.as_ref().map(|sent| sent.at).max(looked);
        if let Some(next) = last.map(|at| at + BETWEEN).filter(|next| *next > now) {
            self.timers.set(next, Timer::Report(key));
            return 0;
        }
        self.look(&key);
        let counted = self.instances_of(&key);
        self.reports.told(&key).looked = Some(now);
        self.write_status(key, now);
        counted
    }

    /// Writes the status of a resource, or sets a timer for when it may be written.
    fn write_status(&mut self, key: ResourceKey, now: Instant) {
        let (Some(entry), Some(kept)) = (self.world.resource(&key), &self.resources.get(&key).kept) else { return };
        let status = Arc::new(self.status_of(&key, entry, &kept.decision));
        let told = self.reports.told(&key);
        told.events.get_or_insert_with(|| events_for(&entry.resource.status));
        if !is_pending(&status) {
            told.pending = None;
        }
        if *status == *entry.resource.status {
            return;
        }
        let mut at = now;
        if is_pending(&status) {
            at = at.max(*told.pending.get_or_insert(now) + BETWEEN);
        }
        if let Some(sent) = &told.sent {
            at = at.max(sent.at + wait_after(sent, &status));
        }
        if at > now {
            self.timers.set(at, Timer::Report(key));
            return;
        }
        let repeats = told.sent.as_ref().filter(|sent| sent.status == status).map_or(0, |sent| sent.repeats + 1);
        told.sent = Some(Sent { at: now, uid: entry.resource.uid.clone(), status: Arc::clone(&status), repeats });
        let events = events_for(&status);
        let before = if events.is_empty() { None } else { told.events.replace(events.clone()) }.unwrap_or_default();
        let (uid, since) = (entry.resource.uid.clone(), entry.since.clone());
        for Said { warning, reason, message } in events.into_iter().filter(|event| !before.contains(event)) {
            if let Some(holder) = self.world.rival(&key).filter(|_| reason == NAME_CONFLICT) {
                tracing::info!(resource = %key, %holder, "the name in Consul belongs to a resource of another namespace");
            }
            let (key, uid, action) = (key.clone(), uid.clone(), "Reconcile".to_owned());
            self.reports.began_event(now);
            self.spawn_write(Write::Event { key, uid, warning, reason, action, message }, Completion::EventWritten);
        }
        self.reports.began_status(&key, now);
        let write = Write::Status { key: key.clone(), uid, status, since };
        self.spawn_write(write, move |answer| Completion::StatusWritten { key, answer });
    }

    /// Starts a write of a finalizer, or one that takes a status away.
    fn write(&mut self, write: Write, completion: impl FnOnce(Result<(), WriteError>) -> Completion + Send + 'static) {
        self.reports.began();
        self.spawn_write(write, completion);
    }

    fn spawn_write(
        &mut self,
        write: Write,
        completion: impl FnOnce(Result<(), WriteError>) -> Completion + Send + 'static,
    ) {
        let kubernetes = Arc::clone(&self.ports.kubernetes);
        self.tasks.spawn(async move { completion(kubernetes.write(write).await) });
    }

    pub(super) fn on_status_written(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.completed(Some(&key));
        match answer {
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "cannot write a status; Lictor tries again");
                self.timers.set(Instant::now() + retry_after(&error), Timer::Report(key));
            }
        }
    }

    /// The status of a resource as things stand. Unless the session is ready, the counts stay as last told.
    fn status_of(&self, key: &ResourceKey, entry: &Entry, decision: &Decision) -> Status {
        let (resource, record, placement) = (&entry.resource, self.resources.get(key), self.session.placement());
        // Until it is known who has rows, what was said of the name stays.
        let was_told = || resource.status.condition(ConditionKind::Accepted).is_some_and(|c| c.reason == NAME_CONFLICT);
        let is_undecided = entry.last_good.is_some() && self.world.is_undecided(key);
        let rival = self.world.rival(key).filter(|_| !is_undecided || was_told());
        let conflict = rival.map(|_| name_conflict());
        let only_keeps = entry.last_good.as_ref().is_some_and(|spec| spec.limits.only_keeps);
        let counts = match &decision.action {
            _ if placement.is_none() => resource.status.instances,
            _ if only_keeps => Counts { desired: 0, ..count_owned(self.mirror.owned(key).map(|(_, row)| row)) },
            Action::Apply { desired, .. } => match &record.missing {
                Some(missing) => count(&without(desired, &missing.rows), |row| self.mirror.row(row)),
                None => count(desired, |row| self.mirror.row(row)),
            },
            Action::Freeze | Action::Disown => {
                Counts { desired: 0, ..count_owned(self.mirror.owned(key).map(|(_, row)| row)) }
            }
        };
        let source = &decision.source;
        status(Findings {
            generation: resource.generation,
            // Until it is acted under a new name it has the old one, and none before the first.
            service: self.world.acted_name(key),
            refusal: resource.spec.as_ref().err().or(conflict.as_ref()),
            resolved: source.resolved.as_ref().map(|resolved| resolved.as_ref().copied()),
            remarks: source.remarks.clone(),
            port_in_use: match &source.resolved {
                Some(_) if self.world.waits_for(key).is_none() => {
                    source.port_in_use.clone().or_else(|| unseen_port(resource, self.reports.sent(key)?))
                }
                _ => resource.status.port_in_use.clone(),
            },
            retains: match entry.deletion() {
                Some(deletion) => deletion == DeletionPolicy::Retain,
                None => resource.status.retains,
            },
            paused: resource.paused,
            mass_unready: self.unready.concerns(key).then(|| self.holds_unready()),
            counts,
            in_progress: record.progress.is_some() || self.lacks_finalizer(key, resource),
            left_behind: self.mirror.owned(key).filter(|(row, _)| row.node.starts_with(PREVIOUS)).count(),
            missing: record.missing.as_ref().and_then(|missing| missing.message.clone()),
            connected: placement.is_some(),
            problems: self.problems(key).chain(source.problems.iter().cloned()).collect(),
            outage: self.session.outage_kind(),
        })
    }

    /// Says whether instances are registered that a deletion would not wait for: such a resource is in progress.
    fn lacks_finalizer(&self, key: &ResourceKey, resource: &Resource) -> bool {
        !resource.deleting && !resource.has_finalizer() && self.mirror.owned(key).next().is_some()
    }

    fn problems(&self, key: &ResourceKey) -> impl Iterator<Item = Problem> {
        let record = self.resources.get(key);
        let is_elsewhere =
            |row: &RowKey| self.session.placement().is_some_and(|placement| placement.is_another_agent(&row.node));
        let refused = record.refusals.iter().map(move |(row, words)| Problem {
            instance: row.id.to_string(),
            reason: if is_elsewhere(row) { ProblemReason::OnAnotherAgent } else { ProblemReason::Refused },
            message: words.to_owned(),
        });
        let conflicts = record.conflicts.iter().map(|(row, who)| Problem {
            instance: row.id.to_string(),
            reason: ProblemReason::IdTaken,
            message: format!("this ID on Consul node {} belongs to {who}", row.node),
        });
        refused.chain(conflicts)
    }
}

/// The port that goes on by a status that was written and that the watch has not shown yet: nothing else may know it by now.
fn unseen_port(resource: &Resource, sent: &Sent) -> Option<PortInUse> {
    let spec = resource.spec.as_ref().ok().filter(|spec| spec.port.is_none())?;
    let is_present = sent.uid == resource.uid && sent.status.observed_generation == resource.generation;
    sent.status.port_in_use.clone().filter(|port| is_present && *port.source == *spec.source.to_string())
}

/// The write that takes away the status of a resource that has another class now: nothing of what it says, which is
/// about the spec before, holds any more. `forgotten` is the generation at which that was tried.
fn forgets_status(resource: &Resource, forgotten: Option<i64>) -> Option<Write> {
    let observed_generation = resource.status.observed_generation;
    let is_from_us = observed_generation != 0 && observed_generation < resource.generation;
    let is_new = forgotten != Some(resource.generation);
    (!resource.ours && is_from_us && is_new).then(|| Write::ForgetStatus {
        key: resource.key.clone(),
        uid: resource.uid.clone(),
        observed_generation,
    })
}

fn retry_after(error: &WriteError) -> Duration {
    match error {
        WriteError::Refused(_) => RETRY_REFUSED,
        WriteError::Limited(_, after) => RETRY.max(*after),
        WriteError::Gone | WriteError::Conflict | WriteError::Unavailable(_) => RETRY,
    }
}

/// The least time between the last write of a resource's status and the next one.
fn wait_after(sent: &Sent, next: &Status) -> Duration {
    if *sent.status == *next {
        UNSEEN * 2_u32.pow(sent.repeats.min(DOUBLINGS))
    } else if same_conditions(&sent.status, next) {
        BETWEEN_COUNTS
    } else {
        BETWEEN
    }
}

/// Says whether two statuses differ only in counts and messages.
fn same_conditions(one: &Status, other: &Status) -> bool {
    let conditions = |status: &Status| {
        let all = status.conditions.iter();
        all.map(|c| (c.kind, c.truth, c.reason.clone(), c.observed_generation)).collect::<Vec<_>>()
    };
    one.service_name == other.service_name && conditions(one) == conditions(other)
}

/// Says whether the only news is that something is under way.
fn is_pending(status: &Status) -> bool {
    status
        .condition(ConditionKind::Ready)
        .is_some_and(|ready| [PENDING, NOT_LISTED, ENDPOINTS_MISSING].contains(&ready.reason.as_str()))
}

/// Gives what Events say of a status, unless it is only pending: what `Ready` says, and a name that Consul's DNS cannot
/// answer, which keeps nothing from being ready.
fn events_for(status: &Status) -> Vec<Said> {
    let said = |condition: &Condition, warning| {
        let Condition { reason, message, .. } = condition.clone();
        Said { warning, reason, message }
    };
    let Some(ready) = status.condition(ConditionKind::Ready).filter(|_| !is_pending(status)) else { return Vec::new() };
    let accepted = status.condition(ConditionKind::Accepted).filter(|accepted| accepted.reason == NOT_IN_DNS);
    let ready = said(ready, ready.truth != Truth::True);
    std::iter::once(ready).chain(accepted.map(|accepted| said(accepted, true))).collect()
}

/// Counts rows of a resource of which nobody can tell how many there should be.
fn count_owned<'a>(rows: impl Iterator<Item = &'a Row>) -> Counts {
    let mut counts = Counts::default();
    rows.filter(|row| row.shown).for_each(|row| counts.add(row.health));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(reason: &str, registered: usize) -> Status {
        let condition = Condition {
            kind: ConditionKind::Ready,
            truth: Truth::True,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: 1,
        };
        Status {
            instances: Counts { registered, ..Counts::default() },
            conditions: vec![condition],
            ..Status::default()
        }
    }

    #[test]
    fn a_status_that_is_never_seen_is_written_less_and_less_often() {
        let sent =
            |repeats| Sent { at: Instant::now(), uid: "u".into(), status: Arc::new(ready("Registered", 1)), repeats };
        for (repeats, next, seconds) in [
            (0, ready("Refused", 1), 1),
            (0, ready("Registered", 2), 3),
            (0, ready("Registered", 1), 5),
            (1, ready("Registered", 1), 10),
            (6, ready("Registered", 1), 320),
            (100, ready("Registered", 1), 320),
            (100, ready("Refused", 1), 1),
        ] {
            let wait = wait_after(&sent(repeats), &next);
            assert_eq!(wait, Duration::from_secs(seconds), "{repeats} {next:?}");
        }
    }

    /// A name that is not in DNS is a warning beside what `Ready` says, and is not told of a status that is only pending.
    #[test]
    fn events_say_what_ready_says_and_that_a_name_is_not_in_dns() {
        let with = |reason: &str, accepted: &str| {
            let mut status = ready(reason, 1);
            let condition = Condition { kind: ConditionKind::Accepted, ..status.conditions[0].clone() };
            status.conditions.push(Condition { reason: accepted.to_owned(), ..condition });
            let said = events_for(&status).into_iter();
            said.map(|Said { warning, reason, .. }| (reason, warning)).collect::<Vec<_>>()
        };
        let said = |reason: &str, warning| (reason.to_owned(), warning);
        assert_eq!(with("Ready", "Accepted"), [said("Ready", false)]);
        assert_eq!(with("Ready", NOT_IN_DNS), [said("Ready", false), said(NOT_IN_DNS, true)]);
        assert_eq!(with(PENDING, NOT_IN_DNS), []);
    }
}

//! What Kubernetes is told: finalizers, status and Events. Coalesced, limited, and only where something differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::alarms::Alarm;
use super::reconcile::{Outlook, outlook, resolution};
use super::{Engine, Footing, Landing};
use crate::cluster::world::Entry;
use crate::cluster::{Finalizers, Write, WriteError};
use crate::model::desired::Placement;
use crate::model::diff::count;
use crate::model::names::{ResourceKey, Str};
use crate::model::reasons::{Counts, Problem, ProblemReason, Refusal, Remark, Unresolved};
use crate::model::registration::RowKey;
use crate::model::render;
use crate::model::resolve::Resolution;
use crate::model::resource::{Resource, Spec};
use crate::model::status::{ConditionKind, ENDPOINTS_MISSING, Findings, NOT_LISTED, PENDING, Status, Truth, status};

/// The most writes to Kubernetes at once.
const AT_ONCE: usize = 16;

/// The least time between two writes of one resource's status.
const BETWEEN: Duration = Duration::from_secs(1);

/// How long after a write that failed to try again.
const RETRY: Duration = Duration::from_secs(2);

/// How long after one that Kubernetes refused: somebody has to change something first.
const RETRY_REFUSED: Duration = Duration::from_secs(60);

/// What is to be told, and what has been.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Resources whose finalizer and status are to be looked at.
    tend: BTreeSet<ResourceKey>,
    /// Likewise, while Consul cannot be reached.
    unreachable: BTreeSet<ResourceKey>,
    tellings: BTreeMap<ResourceKey, Telling>,
    /// The version at which a finalizer was last written: it is not written twice on one sight.
    finalized: BTreeMap<ResourceKey, Str>,
    /// Resources whose status was taken away, at which generation: that is tried once.
    forgotten: BTreeMap<ResourceKey, i64>,
    flying: usize,
    /// Resources whose finalizer comes off although they have registrations, which stay.
    let_go: BTreeSet<ResourceKey>,
}

/// What one resource has been told, and when it is to be looked at again.
#[derive(Debug, Default)]
struct Telling {
    /// The last status written, which the watch may not have shown yet.
    sent: Option<(Instant, Arc<Status>)>,
    /// Since when there is nothing to tell but that writes are under way. Most are over before it is worth a word.
    pending: Option<Instant>,
    wakes: Option<Instant>,
    /// What the last Event said of `Ready`: reason and message.
    told: Option<(String, String)>,
}

impl Reports {
    /// Has a resource's finalizer and status looked at soon.
    pub(super) fn tend(&mut self, key: ResourceKey) {
        self.tend.insert(key);
    }

    /// Has a resource told that Consul cannot be reached, should that be so.
    pub(super) fn unreachable(&mut self, key: ResourceKey) {
        self.unreachable.insert(key);
    }

    /// Has nothing to tell a resource that is gone.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.tend.remove(key);
        self.unreachable.remove(key);
    }

    /// Has a resource's finalizer taken off although it has registrations.
    pub(super) fn let_go(&mut self, key: ResourceKey) {
        self.let_go.insert(key.clone());
        self.tend.insert(key);
    }

    pub(super) fn landed(&mut self) {
        self.flying = self.flying.saturating_sub(1);
    }
}

impl Engine {
    /// Writes what there is to tell, as far as the limit allows.
    pub(super) fn write_reports(&mut self) {
        let placement = match &self.footing {
            Footing::Standing(placement) => {
                self.reports.unreachable.clear();
                Some(placement.clone())
            }
            _ => None,
        };
        if placement.is_none() && self.trouble.is_some() {
            let mut unreachable = std::mem::take(&mut self.reports.unreachable);
            self.reports.tend.append(&mut unreachable);
        }
        while self.reports.flying < AT_ONCE
            && let Some(key) = self.reports.tend.pop_first()
        {
            if self.world.resource(&key).is_none() {
                self.reports.tellings.remove(&key);
                self.reports.finalized.remove(&key);
                self.reports.forgotten.remove(&key);
                self.reports.let_go.remove(&key);
            } else if self.world.is_whole(&key.namespace) && (placement.is_some() || self.trouble.is_some()) {
                self.tend_finalizer(&key, placement.is_some());
                self.tend_status(key, placement.as_ref());
            }
        }
    }

    /// Puts our finalizer on a resource that has registrations, or is about to, and takes it off one that is
    /// being deleted and has none left.
    fn tend_finalizer(&mut self, key: &ResourceKey, standing: bool) {
        let Some(Entry { resource, .. }) = self.world.resource(key) else { return };
        if !standing || self.reports.finalized.get(key) == Some(&resource.resource_version) {
            return;
        }
        let registered = self.mirror.owned(key).next().is_some() || self.plan.has(key);
        let busy = registered || self.unsettled.get(key).is_some_and(|known| known.in_flight > 0);
        let finalizers = || Finalizers {
            key: key.clone(),
            uid: resource.uid.clone(),
            resource_version: resource.resource_version.clone(),
            finalizers: resource.finalizers.clone(),
            ours: resource.finalizer.clone(),
        };
        let leaves = resource.deleting || !resource.ours;
        let write = match (leaves, resource.has_finalizer()) {
            (true, true) if self.reports.let_go.remove(key) => Write::RemoveFinalizer(finalizers()),
            (true, true) if !busy && !self.in_doubt.contains_key(key) && !self.dirty.contains_key(key) => {
                if let Some(write) = self.forgets_status(resource) {
                    self.reports.forgotten.insert(key.clone(), resource.generation);
                    let key = key.clone();
                    self.write(write, move |answer| Landing::StatusForgotten { key, answer });
                    return;
                }
                Write::RemoveFinalizer(finalizers())
            }
            (false, false) if busy || (self.waits_for_finalizer(key) && self.unsettled.contains_key(key)) => {
                Write::AddFinalizer(finalizers())
            }
            _ => return,
        };
        self.reports.finalized.insert(key.clone(), resource.resource_version.clone());
        let key = key.clone();
        self.write(write, move |answer| Landing::FinalizerWritten { key, answer });
    }

    /// What a resource that changed hands is told before it is let go: nothing of what its status says, which is about
    /// the spec before, holds any more.
    fn forgets_status(&self, resource: &Resource) -> Option<Write> {
        let observed_generation = resource.status.observed_generation;
        let is_ours = observed_generation != 0 && observed_generation < resource.generation;
        let is_new = self.reports.forgotten.get(&resource.key) != Some(&resource.generation);
        (!resource.ours && is_ours && is_new).then(|| Write::ForgetStatus {
            key: resource.key.clone(),
            uid: resource.uid.clone(),
            observed_generation,
        })
    }

    pub(super) fn land_forgotten(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.landed();
        if let Err(error) = answer {
            tracing::debug!(resource = %key, %error, "the status of a resource that is let go was not taken away");
        }
        self.reports.tend(key);
    }

    pub(super) fn land_finalizer(&mut self, key: &ResourceKey, answer: Result<(), WriteError>) {
        self.reports.landed();
        match answer {
            // The watch tells of the new state, and whether more is to do.
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "a finalizer was not written");
                self.reports.finalized.remove(key);
                self.alarms.set(Instant::now() + retry_after(&error), Alarm::Report(key.clone()));
            }
        }
    }

    /// Writes a resource's status, if it differs from what the resource has, was not just written, and is not
    /// about to be overtaken.
    fn tend_status(&mut self, key: ResourceKey, placement: Option<&Placement>) {
        let Some(entry) = self.world.resource(&key).filter(|entry| entry.resource.ours) else { return };
        let now = Instant::now();
        let next =
            self.reports.tellings.get(&key).and_then(|telling| telling.sent.as_ref()).map(|(at, _)| *at + BETWEEN);
        if let Some(next) = next.filter(|next| *next > now) {
            self.wake_to_report(key, next);
            return;
        }
        let status = Arc::new(self.status_of(&key, entry, placement));
        let telling = self.reports.tellings.entry(key.clone()).or_default();
        if telling.told.is_none() {
            telling.told = tellable(&entry.resource.status);
        }
        if !is_pending(&status) {
            telling.pending = None;
        }
        if *status == *entry.resource.status {
            return;
        }
        let mut at = now;
        if is_pending(&status) {
            at = at.max(*telling.pending.get_or_insert(now) + BETWEEN);
        }
        if let Some((sent_at, _)) = telling.sent.as_ref().filter(|(_, sent)| *sent == status) {
            at = at.max(*sent_at + 5 * BETWEEN);
        }
        if at > now {
            self.wake_to_report(key, at);
            return;
        }
        telling.sent = Some((now, Arc::clone(&status)));
        let news = tellable(&status).filter(|ready| telling.told.as_ref() != Some(ready));
        let (uid, since) = (entry.resource.uid.clone(), entry.since.clone());
        if let Some((reason, message)) = news {
            telling.told = Some((reason.clone(), message.clone()));
            let warning = status.condition(ConditionKind::Ready).is_some_and(|ready| ready.truth != Truth::True);
            let (key, uid, action) = (key.clone(), uid.clone(), "Reconcile".to_owned());
            self.write(Write::Event { key, uid, warning, reason, action, message }, Landing::EventWritten);
        }
        let write = Write::Status { key: key.clone(), uid, status, since };
        self.write(write, move |answer| Landing::StatusWritten { key, answer });
    }

    /// Has a resource's status looked at then, unless it will be before.
    fn wake_to_report(&mut self, key: ResourceKey, at: Instant) {
        let telling = self.reports.tellings.entry(key.clone()).or_default();
        if telling.wakes.is_none_or(|wakes| wakes <= Instant::now() || wakes > at) {
            telling.wakes = Some(at);
            self.alarms.set(at, Alarm::Report(key));
        }
    }

    /// Starts a write to Kubernetes.
    fn write(&mut self, write: Write, landing: impl FnOnce(Result<(), WriteError>) -> Landing + Send + 'static) {
        self.reports.flying += 1;
        let kubernetes = Arc::clone(&self.kubernetes);
        self.fly(async move { landing(kubernetes.write(write).await) });
    }

    pub(super) fn land_status(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.landed();
        match answer {
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "a status was not written");
                self.alarms.set(Instant::now() + retry_after(&error), Alarm::Report(key));
            }
        }
    }

    /// The status of a resource as things stand. Without a footing in Consul the counts stay as last told.
    fn status_of(&self, key: &ResourceKey, entry: &Entry, placement: Option<&Placement>) -> Status {
        let resource = &entry.resource;
        let undecided = entry.last_good.as_ref().filter(|_| self.world.is_undecided(key));
        let spec = self.world.effective_spec(key).or(undecided);
        let waits_for = self.world.waits_for(key).map(|kind| Unresolved {
            reason: NOT_LISTED,
            message: format!("{kind} have not been listed yet: /readyz and the log of Lictor tell if that fails"),
        });
        let identity = &self.config.identity;
        let resolution = spec
            .filter(|_| waits_for.is_none())
            .map(|spec| resolution(&self.world, identity, key, spec, self.registered(key)));
        let of_instances = spec.iter().zip(&resolution).flat_map(|(spec, resolution)| {
            resolution.left_out.iter().cloned().chain(missing_check_ports(spec, resolution))
        });
        // Until it is known who has rows, what was said of the name stays.
        let was_told = || resource.status.condition(ConditionKind::Accepted).is_some_and(|c| c.reason == NAME_CONFLICT);
        let rival = self.world.rival(key).filter(|_| undecided.is_none() || was_told());
        let conflict = rival.map(name_conflict);
        let row = |key: &_| self.mirror.row(key);
        let mut missing = None;
        let (counts, standing) = match placement {
            None => (resource.status.instances, false),
            Some(placement) => match outlook(&self.world, identity, placement, key, self.registered(key)) {
                Outlook::Wants { mut desired, .. } => {
                    let of_it = self.missing_of(key, &desired);
                    desired.retain(|row, _| !of_it.rows.contains(row));
                    missing = of_it.message();
                    (count(&desired, row), true)
                }
                Outlook::Frozen | Outlook::Release => {
                    (Counts { desired: 0, ..count_owned(self.mirror.owned(key).map(|(_, row)| row)) }, true)
                }
            },
        };
        status(Findings {
            generation: resource.generation,
            // Until it is acted under a new name it has the old one, and none before the first.
            service: self.world.acted_name(key),
            refusal: resource.spec.as_ref().err().or(conflict.as_ref()),
            resolved: match &resolution {
                Some(resolution) => Some(resolution.unresolved.as_ref().map_or(Ok(()), Err)),
                None => waits_for.as_ref().map(Err),
            },
            remarks: spec
                .zip(resolution.as_ref())
                .map(|(spec, resolution)| remarks(spec, resolution))
                .unwrap_or_default(),
            port_in_use: match &resolution {
                Some(resolution) => resolution.port_in_use.clone(),
                None => resource.status.port_in_use.clone(),
            },
            paused: resource.paused,
            mass_unready: self.mass_unready.concerns(key).then(|| self.holds_unready()),
            counts,
            unsettled: self.unsettled.contains_key(key) || self.lacks_finalizer(key, resource),
            missing,
            standing,
            problems: self.problems(key).chain(of_instances).collect(),
            trouble: self.trouble.as_ref().map(|trouble| trouble.message.as_str()),
        })
    }

    /// Whether instances are registered that a deletion would not wait for: such a resource is not settled.
    fn lacks_finalizer(&self, key: &ResourceKey, resource: &Resource) -> bool {
        !resource.deleting && !resource.has_finalizer() && self.mirror.owned(key).next().is_some()
    }

    fn problems(&self, key: &ResourceKey) -> impl Iterator<Item = Problem> {
        let elsewhere = |row: &RowKey| match &self.footing {
            Footing::Standing(placement) => placement.is_another_agent(&row.node),
            _ => false,
        };
        let refused = self.refused.get(key).into_iter().flatten().map(move |(row, refusal)| Problem {
            instance: row.id.to_string(),
            reason: if elsewhere(row) { ProblemReason::OnAnotherAgent } else { ProblemReason::Refused },
            message: refusal.message.clone(),
        });
        let conflicts = self.conflicts.get(key).into_iter().flatten().map(|(row, who)| Problem {
            instance: row.id.to_string(),
            reason: ProblemReason::IdTaken,
            message: format!("this ID on Consul node {} belongs to {who}", row.node),
        });
        refused.chain(conflicts)
    }
}

/// The checks that some instances go without.
fn missing_check_ports(spec: &Spec, resolution: &Resolution) -> impl Iterator<Item = Problem> {
    resolution.instances.iter().flat_map(|instance| {
        let missing = spec.checks.iter().zip(&instance.check_ports).filter(|(_, port)| port.is_none());
        missing.map(|(check, _)| Problem {
            instance: instance.called(),
            reason: ProblemReason::CheckPortNotFound,
            message: format!("it has not the port of check {:?}, and is registered without it", check.check.name),
        })
    })
}

/// The reason where a name is another namespace's.
const NAME_CONFLICT: &str = "NameConflict";

pub(super) fn name_conflict(holder: &ResourceKey) -> Refusal {
    Refusal {
        reason: NAME_CONFLICT,
        message: format!(
            "the name in Consul belongs to ConsulService {holder} of another namespace: set spec.name to another, or \
             ask the administrator of Lictor to let namespaces share names (--allow-shared-names)"
        ),
    }
}

/// What is to be said of a source that was found.
fn remarks(spec: &Spec, resolution: &Resolution) -> Vec<Remark> {
    let blanks = blanks(spec, resolution).map(|message| Remark { reason: "ValuesMissing", message });
    resolution.remarks.iter().cloned().chain(blanks).collect()
}

/// What the texts of the instances lack, in one sentence.
fn blanks(spec: &Spec, resolution: &Resolution) -> Option<String> {
    if spec.variables().is_empty() {
        return None;
    }
    let mut lacking = 0_usize;
    let mut first = None;
    for instance in &resolution.instances {
        let blanks = render::blanks(spec, instance);
        if let Some(blank) = blanks.first() {
            lacking += 1;
            first.get_or_insert_with(|| format!("{}, {}: {}", instance.called(), blank.text, blank.why));
        }
    }
    let all = resolution.instances.len();
    first.map(|first| format!("{lacking} of {all} instances lack a value: {first}"))
}

fn retry_after(error: &WriteError) -> Duration {
    match error {
        WriteError::Refused(_) => RETRY_REFUSED,
        WriteError::Limited(_, after) => RETRY.max(*after),
        WriteError::Gone | WriteError::Conflict | WriteError::Unavailable(_) => RETRY,
    }
}

/// Whether all that there is to say is that something is under way.
fn is_pending(status: &Status) -> bool {
    status
        .condition(ConditionKind::Ready)
        .is_some_and(|ready| [PENDING, NOT_LISTED, ENDPOINTS_MISSING].contains(&ready.reason.as_str()))
}

/// What an Event would say of a status: what `Ready` says, unless it is only pending.
fn tellable(status: &Status) -> Option<(String, String)> {
    let ready = status.condition(ConditionKind::Ready).filter(|_| !is_pending(status))?;
    Some((ready.reason.clone(), ready.message.clone()))
}

/// Counts rows of a resource of which nobody can tell how many there should be.
fn count_owned<'a>(rows: impl Iterator<Item = &'a crate::model::registration::Row>) -> Counts {
    let mut counts = Counts::default();
    rows.filter(|row| row.shown).for_each(|row| counts.add(row.health));
    counts
}

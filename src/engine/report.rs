//! What Kubernetes is told: finalizers, status and Events. Coalesced, limited, and only where something differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::alarms::Alarm;
use super::reconcile::{Outlook, outlook, resolve};
use super::{Engine, Footing, Landing};
use crate::cluster::{Finalizers, Write, WriteError};
use crate::cluster::world::Entry;
use crate::model::desired::Placement;
use crate::model::diff::{Counts, count};
use crate::model::names::{ResourceKey, Str};
use crate::model::status::{ConditionKind, Findings, Problem, Resolved, Status, Truth, status};

/// The most writes to Kubernetes at once.
const AT_ONCE: usize = 16;

/// The least time between two writes of one resource's status.
const BETWEEN: Duration = Duration::from_secs(1);

/// How long after a failed write to try again.
const RETRY: Duration = Duration::from_secs(2);

/// What is to be told, and what has been.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Resources whose finalizer and status are to be looked at.
    tend: BTreeSet<ResourceKey>,
    /// Likewise, while Consul cannot be reached.
    unreachable: BTreeSet<ResourceKey>,
    sent: BTreeMap<ResourceKey, Sent>,
    /// The version at which a finalizer was last written: it is not written twice on one sight.
    finalized: BTreeMap<ResourceKey, Str>,
    flying: usize,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    status: Arc<Status>,
    waits: bool,
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
                self.reports.sent.remove(&key);
                self.reports.finalized.remove(&key);
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
        };
        let write = match (resource.deleting, resource.has_finalizer()) {
            (true, true) if !busy && !self.dirty.contains_key(key) => Write::RemoveFinalizer(finalizers()),
            (false, false) if busy => Write::AddFinalizer(finalizers()),
            _ => return,
        };
        self.reports.finalized.insert(key.clone(), resource.resource_version.clone());
        let (key, kubernetes) = (key.clone(), Arc::clone(&self.kubernetes));
        self.reports.flying += 1;
        self.fly(async move { Landing::FinalizerWritten { key, answer: kubernetes.write(write).await } });
    }

    pub(super) fn land_finalizer(&mut self, key: &ResourceKey, answer: Result<(), WriteError>) {
        self.reports.landed();
        match answer {
            // The watch tells of the new state, and whether more is to do.
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "a finalizer was not written");
                self.reports.finalized.remove(key);
                self.alarms.set(Instant::now() + RETRY, Alarm::Report(key.clone()));
            }
        }
    }

    /// Writes a resource's status, if it differs from what the resource has and was not just written.
    fn tend_status(&mut self, key: ResourceKey, placement: Option<&Placement>) {
        let Some(entry) = self.world.resource(&key) else { return };
        let status = Arc::new(self.status_of(&key, entry, placement));
        if *status == *entry.resource.status {
            return;
        }
        let now = Instant::now();
        if let Some(sent) = self.reports.sent.get_mut(&key) {
            let next = sent.at + if sent.status == status { 5 * BETWEEN } else { BETWEEN };
            if next > now {
                if !sent.waits {
                    sent.waits = true;
                    self.alarms.set(next, Alarm::Report(key));
                }
                return;
            }
        }
        let (uid, since) = (entry.resource.uid.clone(), entry.since.clone());
        self.tell(&key, &uid, entry.resource.status.clone(), &status);
        self.reports.sent.insert(key.clone(), Sent { at: now, status: status.clone(), waits: false });
        let write = Write::Status { key: key.clone(), uid, status, since };
        let kubernetes = Arc::clone(&self.kubernetes);
        self.reports.flying += 1;
        self.fly(async move { Landing::StatusWritten { key, answer: kubernetes.write(write).await } });
    }

    pub(super) fn land_status(&mut self, key: ResourceKey, answer: Result<(), WriteError>) {
        self.reports.landed();
        match answer {
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => {
                tracing::warn!(resource = %key, %error, "a status was not written");
                self.alarms.set(Instant::now() + 5 * BETWEEN, Alarm::Report(key));
            }
        }
    }

    /// An Event where what `Ready` says has changed, other than for the moments that a write takes.
    fn tell(&mut self, key: &ResourceKey, uid: &Str, before: Arc<Status>, now: &Status) {
        let Some(ready) = now.condition(ConditionKind::Ready) else { return };
        let known = before.condition(ConditionKind::Ready);
        let told = self.reports.sent.get(key).and_then(|sent| sent.status.condition(ConditionKind::Ready));
        let same = |c: &crate::model::status::Condition| c.reason == ready.reason && c.message == ready.message;
        if ready.reason == "Pending" || known.is_some_and(same) || told.is_some_and(same) {
            return;
        }
        let write = Write::Event {
            key: key.clone(),
            uid: uid.clone(),
            warning: ready.truth != Truth::True,
            reason: ready.reason.clone(),
            action: "Reconcile".to_owned(),
            message: ready.message.clone(),
        };
        let kubernetes = Arc::clone(&self.kubernetes);
        self.reports.flying += 1;
        self.fly(async move { Landing::EventWritten(kubernetes.write(write).await) });
    }

    /// The status of a resource as things stand. Without a footing in Consul the counts stay as last told.
    fn status_of(&self, key: &ResourceKey, entry: &Entry, placement: Option<&Placement>) -> Status {
        let resource = &entry.resource;
        let before = entry.has_resolved();
        let spec = entry.effective_spec();
        let resolution = spec.map(|spec| resolve(&self.world, key, spec));
        let row = |key: &_| self.mirror.row(key);
        let (counts, standing) = match placement {
            None => (resource.status.instances, false),
            Some(placement) => match outlook(&self.world, &self.config.identity, placement, key) {
                Outlook::Wants { desired, .. } => (count(&desired, row), true),
                Outlook::Frozen | Outlook::Release => {
                    (Counts { desired: 0, ..count_owned(self.mirror.owned(key).map(|(_, row)| row)) }, true)
                }
            },
        };
        status(Findings {
            generation: resource.generation,
            service: spec.map(|spec| &spec.service),
            refusal: resource.spec.as_ref().err(),
            resolved: resolution.as_ref().map(|r| Resolved { unresolved: r.unresolved.as_ref(), before }),
            counts,
            unsettled: self.unsettled.contains_key(key),
            standing,
            problems: self.problems(key),
            trouble: self.trouble.as_ref().map(|trouble| trouble.message.as_str()),
        })
    }

    fn problems(&self, key: &ResourceKey) -> Vec<Problem> {
        let refused = self.refused.get(key).into_iter().flatten().map(|(row, refusal)| Problem {
            instance: row.id.to_string(),
            reason: "Refused".to_owned(),
            message: refusal.message.clone(),
        });
        let conflicts = self.conflicts.get(key).into_iter().flatten().map(|(row, who)| Problem {
            instance: row.id.to_string(),
            reason: "IdTaken".to_owned(),
            message: format!("this ID on Consul node {} belongs to {who}", row.node),
        });
        refused.chain(conflicts).collect()
    }
}

/// Counts rows of a resource of which nobody can tell how many there should be.
fn count_owned<'a>(rows: impl Iterator<Item = &'a crate::model::registration::Row>) -> Counts {
    let mut counts = Counts::default();
    rows.filter(|row| row.shown).for_each(|row| counts.add(row.health));
    counts
}

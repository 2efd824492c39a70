//! Writing a bundle with the agent, one operation after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Agent, read_all};
use crate::consul::WINDING_DOWN;
use crate::consul::client::{Failed, path};
use crate::consul::wire::{AgentService, AgentUpdate, Healths, NodeServices, Pool, Service};
use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::ids::{READINESS, Str, check_id, id_prefix};
use crate::model::registration::Registration;
use crate::ports::{Bundle, Outcome, Unavailable};

/// The longest time that the catalog may take to show what the agent has accepted. Then we go on without.
const CONFIRMATION: Duration = Duration::from_secs(5);

/// This is said where the agent has deregistered an instance, and the catalog still has it.
const STILL_SHOWN: &str = "the agent has deregistered the instance, but Consul's catalog still shows it: the agent's \
                           own token may not write it, or the agent has lost its servers";

/// The end of a check's ID that no check has.
const NO_CHECK: &str = "no-check";

/// Says what became of one operation.
pub(super) enum OpResult {
    /// The agent has it; whether it is a registration that the catalog has yet to show.
    Done { confirm: bool },
    /// The agent refuses it.
    Refused(String),
    /// It surely had no effect, and those after it would fare no better.
    Stop(Unavailable),
    /// It may have had an effect; those after it are not tried.
    Lost(Unavailable),
    /// It may have had an effect; those after it may well work.
    Doubtful(Unavailable),
}

impl Agent {
    pub(super) async fn carry_out(&self, bundle: &Bundle) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(bundle.ops.len());
        // What the catalog has to show before it is there, and to show no more before it is gone.
        let mut to_confirm: BTreeMap<&str, Option<&Registration>> = BTreeMap::new();
        for op in &bundle.ops {
            if self.winding_down.load(Ordering::SeqCst) {
                outcomes.push(Outcome::NotTried(Unavailable::transient(WINDING_DOWN)));
                break;
            }
            let outcome = match self.write(op).await {
                OpResult::Done { confirm } => {
                    self.note_done(op);
                    if confirm || op.removes() {
                        to_confirm.insert(&op.key().id, op.registration().map(|registration| &**registration));
                    }
                    Outcome::Written { shown: true }
                }
                OpResult::Refused(words) => Outcome::Refused(words),
                OpResult::Doubtful(outage) => Outcome::Unknown(outage),
                OpResult::Stop(outage) => {
                    outcomes.push(Outcome::NotTried(outage));
                    break;
                }
                OpResult::Lost(outage) => {
                    outcomes.push(Outcome::Unknown(outage));
                    break;
                }
            };
            outcomes.push(outcome);
        }
        if let Some(Outcome::NotTried(outage) | Outcome::Unknown(outage)) = outcomes.last().cloned() {
            outcomes.resize(bundle.ops.len(), Outcome::NotTried(outage));
        }
        let unconfirmed = self.unconfirmed(&bundle.node, to_confirm).await;
        for (op, outcome) in bundle.ops.iter().zip(&mut outcomes) {
            if *outcome == (Outcome::Written { shown: true }) && unconfirmed.contains(&*op.key().id) {
                *outcome = if op.removes() {
                    Outcome::Refused(STILL_SHOWN.to_owned())
                } else {
                    Outcome::Written { shown: false }
                };
            }
        }
        outcomes
    }

    /// Notes whose an instance is after the agent has acknowledged an operation.
    fn note_done(&self, op: &Op) {
        let id = &op.key().id;
        let mut known = self.known();
        known.writes += 1;
        match op {
            Op::Register { .. } | Op::Readiness { .. } => known.ours.insert(Arc::clone(id)),
            Op::Disown { .. } | Op::Deregister { .. } => known.ours.remove(id),
        };
    }

    async fn write(&self, op: &Op) -> OpResult {
        let id = &*op.key().id;
        match op {
            Op::Register { registration, drop_checks, .. } => self.register(id, registration, drop_checks).await,
            Op::Readiness { registration, .. } => match self.update_readiness(id, registration).await {
                Err(Failed::Refused { status: 404, .. }) => self.register(id, registration, &[]).await,
                answer => op_result(answer),
            },
            Op::Disown { registration, .. } => {
                // Registering what is gone would bring it back without anybody to remove it later.
                match self.client.get_if_there::<Service>(path(&["agent", "service", id], &[])).await {
                    Ok(Some(_)) => op_result(self.put_service(&AgentService::without_checks(id, registration)).await),
                    Ok(None) => OpResult::Done { confirm: false },
                    Err(failed) => op_result(Err(failed)),
                }
            }
            Op::Deregister { .. } => match self.put(&["agent", "service", "deregister", id], None).await {
                Err(Failed::Refused { status: 404, .. }) => OpResult::Done { confirm: false },
                answer => op_result(answer),
            },
        }
    }

    /// Registers an instance, and then sets its check: an agent keeps the old status of a check that it
    /// knows, and forgets over a restart a status that only ever came with a registration.
    async fn register(&self, id: &str, registration: &Registration, drop_checks: &[Str]) -> OpResult {
        if let Err(failed) = self.put_service(&AgentService::with_checks(id, registration)).await {
            return op_result(Err(failed));
        }
        match self.after_registering(id, registration, drop_checks).await {
            Ok(()) => OpResult::Done { confirm: true },
            Err(Failed::NotTried(outage) | Failed::NoAnswer(outage)) => OpResult::Lost(outage),
            Err(Failed::Stumbled(outage)) => OpResult::Doubtful(outage),
            Err(Failed::Refused { words, .. }) => OpResult::Doubtful(Unavailable::transient(format!(
                "Consul has the instance, but refused a change to its checks: {words}"
            ))),
        }
    }

    async fn after_registering(
        &self,
        id: &str,
        registration: &Registration,
        drop_checks: &[Str],
    ) -> Result<(), Failed> {
        for name in drop_checks {
            match self.put(&["agent", "check", "deregister", &check_id(id, name)], None).await {
                Ok(()) | Err(Failed::Refused { status: 404, .. }) => {}
                Err(failed) => return Err(failed),
            }
        }
        self.update_readiness(id, registration).await
    }

    async fn put_service(&self, service: &AgentService<'_>) -> Result<(), Failed> {
        self.put(&["agent", "service", "register"], Some(service.body())).await
    }

    async fn update_readiness(&self, id: &str, registration: &Registration) -> Result<(), Failed> {
        let Some(readiness) = registration.readiness else { return Ok(()) };
        let check = check_id(id, READINESS);
        self.put(&["agent", "check", "update", &check], Some(AgentUpdate::of(readiness).body())).await
    }

    /// Updates a check that is not there: the agent looks at the token and then for the check, and finds none.
    pub(super) async fn update_nothing(&self) -> Result<(), Unavailable> {
        self.recognise().await?;
        let check = format!("{}{NO_CHECK}", id_prefix(&self.identity.cluster));
        match self.put(&["agent", "check", "update", &check], Some(AgentUpdate::of(Health::Critical).body())).await {
            Ok(()) | Err(Failed::Refused { .. }) => Ok(()),
            Err(Failed::NotTried(outage) | Failed::NoAnswer(outage) | Failed::Stumbled(outage)) => Err(outage),
        }
    }

    async fn put(&self, segments: &[&str], body: Option<Bytes>) -> Result<(), Failed> {
        self.client.put(path(segments, &[]), body).await.map(drop)
    }

    /// Waits until the catalog shows these registrations, or where there is none shows the ID no more, and
    /// answers with which of them it is not so in time.
    async fn unconfirmed<'a>(
        &self,
        node: &str,
        mut wanted: BTreeMap<&'a str, Option<&'a Registration>>,
    ) -> BTreeSet<&'a str> {
        let deadline = Instant::now() + CONFIRMATION;
        let mut index = 0;
        while !wanted.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.winding_down.load(Ordering::SeqCst) {
                break;
            }
            let query = self.catalog_services(node);
            let looked = async {
                if index == 0 {
                    self.client.get::<NodeServices>(query).await
                } else {
                    self.client.wait(query, index, left.min(Duration::from_secs(1))).await
                }
            };
            let Ok(Ok(answer)) = tokio::time::timeout(left, looked).await else { break };
            let checks = Healths::default();
            let found = read_all(answer.value.services.unwrap_or_default(), &checks, &mut Pool::default());
            wanted.retain(|id, registration| match (registration, found.get(*id)) {
                (Some(registration), Some(there)) => !registration.same_service(there),
                (Some(_), None) | (None, Some(_)) => true,
                (None, None) => false,
            });
            if answer.index <= index {
                // Nothing new: an answer that comes at once all the same must not make us spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            index = answer.index;
        }
        wanted.into_keys().collect()
    }
}

/// Gives the result of an operation that was one request.
pub(super) fn op_result(answer: Result<(), Failed>) -> OpResult {
    match answer {
        Ok(()) => OpResult::Done { confirm: false },
        Err(Failed::NotTried(outage)) => OpResult::Stop(outage),
        Err(Failed::NoAnswer(outage)) => OpResult::Lost(outage),
        Err(Failed::Stumbled(outage)) => OpResult::Doubtful(outage),
        Err(Failed::Refused { words, .. }) => OpResult::Refused(words),
    }
}

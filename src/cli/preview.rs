//! What the engine would write to Consul as things stand, without writing it.
//!
//! In: a World that is whole and the rows that Consul holds. Out: each [`Step`] that `run` would take, and of each
//! resource that is not as asked for, why. The decisions are the engine's own; what only time brings (writes that
//! Consul refuses, removals that wait for a confirmation) is not foreseen.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::engine::decide::{Action as Decided, OfOthers, SourceReport, decide, name_conflict, registered};
use crate::engine::instances::AllInstances;
use crate::model::desired::Placement;
use crate::model::diff::{Op, diff, disown};
use crate::model::ids::{Identity, ResourceKey};
use crate::model::reasons::Refusal;
use crate::model::registration::{Registration, RowKey};
use crate::model::resolve::{Remains, remains};
use crate::model::status::{ENDPOINTS_MISSING, NOT_LISTED};
use crate::ports::Rows;
use crate::state::mirror::Mirror;
use crate::state::world::World;

/// One write that `run` would make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The resource that it is made for.
    pub resource: ResourceKey,
    /// The instance, with its Consul node.
    pub key: RowKey,
    /// The action on it.
    pub action: Action,
    /// The service's name in Consul.
    pub service: String,
    /// The address of the instance, `address:port`.
    pub address: String,
    /// The differences of an update, such as `tags: a → a, b`.
    pub differences: Vec<String>,
}

/// The effect of a write on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The instance is registered.
    Create,
    /// Registers it again with other content, or moves its readiness.
    Update,
    /// Takes our mark off it.
    Disown,
    /// The instance is deregistered.
    Deregister,
}

impl Action {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Disown => "disown",
            Self::Deregister => "deregister",
        }
    }
}

/// A reason why something of a resource is not in Consul as it asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The resource that it is about.
    pub resource: ResourceKey,
    /// As in its conditions.
    pub reason: String,
    /// The message of the condition.
    pub message: String,
}

/// All steps, resource by resource, and all notes.
#[must_use]
pub fn preview(
    mut world: World,
    rows: Rows,
    identity: &Identity,
    placement: &Placement,
    now: Instant,
) -> (Vec<Step>, Vec<Note>) {
    let mirror = Mirror::of(rows);
    for owner in mirror.owners() {
        world.note_rows(owner, mirror.names(owner));
        world.note_checks(owner, mirror.most_checks(owner));
    }
    world.know_rows(true);
    for owner in mirror.owners() {
        world.ends(owner);
    }
    let world = &world;
    let all: BTreeSet<ResourceKey> = mirror.owners().chain(world.keys()).cloned().collect();
    let (mut steps, mut notes) = (Vec::new(), Vec::new());
    let mut instances = AllInstances::default();
    for owner in mirror.owners() {
        instances.note_there(owner, mirror.owned_by(owner));
    }
    for key in all {
        let others = OfOthers { bytes: 0, instances: instances.of_others(&key) };
        let decision = decide(world, identity, Some(placement), &key, registered(mirror.owned(&key)), others);
        instances.note_share(&key, decision.share);
        let ops = match decision.action {
            Decided::Freeze => Vec::new(),
            Decided::Disown => disown(mirror.owned(&key)),
            Decided::Apply { desired, hold, .. } => {
                let left_of = |there: &_| {
                    let spec = world.effective_spec(&key);
                    spec.map_or(Remains::Nothing, |spec| remains(spec, there, &world.facts(&key)))
                };
                // They go in the end, unless their endpoints come back: they are among the steps.
                let missing = world.missing(&key, &identity.cluster, &desired, mirror.owned(&key), now);
                notes.extend(missing.message().map(|message| Note {
                    resource: key.clone(),
                    reason: ENDPOINTS_MISSING.to_owned(),
                    message,
                }));
                let diff = diff(&desired, |row| mirror.row(row), mirror.owned(&key), &hold, left_of, |_| false);
                notes.extend(diff.conflicts.iter().map(|(row, who)| Note {
                    resource: key.clone(),
                    reason: "IdTaken".to_owned(),
                    message: format!("{row} belongs to {who}"),
                }));
                let later = diff.waiting.into_iter().filter_map(|row| {
                    let service = mirror.row(&row)?.registration.service.clone();
                    Some(Op::Deregister { key: row, service })
                });
                diff.ops.into_iter().chain(later).collect()
            }
        };
        notes.extend(ops.iter().filter(|op| placement.is_another_agent(&op.key().node)).map(|op| Note {
            resource: key.clone(),
            reason: "OnAnotherAgent".to_owned(),
            message: format!(
                "the Consul agent {} holds {}: while it lives, only it can deregister that, which takes \
                 --previous-agent with its address",
                op.key().node,
                op.key().id
            ),
        }));
        steps.extend(ops.iter().filter_map(|op| step(&key, op, &mirror)));
        notes.extend(notes_of(world, decision.source, &key));
    }
    (steps, notes)
}

fn step(resource: &ResourceKey, op: &Op, mirror: &Mirror) -> Option<Step> {
    let there = mirror.row(op.key()).map(|row| &*row.registration);
    let wanted = op.registration().map(|wanted| &**wanted);
    let shown = wanted.or(there)?;
    let action = match op {
        Op::Register { .. } if there.is_none() => Action::Create,
        Op::Register { .. } | Op::Readiness { .. } => Action::Update,
        Op::Disown { .. } => Action::Disown,
        Op::Deregister { .. } => Action::Deregister,
    };
    let differences = match (action, there, wanted) {
        (Action::Update, Some(there), Some(wanted)) => differences(there, wanted),
        _ => Vec::new(),
    };
    Some(Step {
        resource: resource.clone(),
        key: op.key().clone(),
        action,
        service: shown.service.to_string(),
        address: if shown.address.contains(':') {
            format!("[{}]:{}", shown.address, shown.port)
        } else {
            format!("{}:{}", shown.address, shown.port)
        },
        differences,
    })
}

/// Lists what an update changes, a line for each field.
pub(super) fn differences(there: &Registration, wanted: &Registration) -> Vec<String> {
    let mut all = Vec::new();
    let mut differs = |field: &str, from: String, to: String| {
        if from != to {
            all.push(format!("{field}: {from} → {to}"));
        }
    };
    let join = |tags: &[crate::model::ids::Str]| tags.join(", ");
    differs("name", there.service.to_string(), wanted.service.to_string());
    differs("address", there.address.to_string(), wanted.address.to_string());
    differs("port", there.port.to_string(), wanted.port.to_string());
    if !wanted.enable_tag_override {
        differs("tags", join(&there.tags), join(&wanted.tags));
    }
    let weights = |of: &Registration| format!("{}/{}", of.weights.passing, of.weights.warning);
    differs("weights", weights(there), weights(wanted));
    differs("enableTagOverride", there.enable_tag_override.to_string(), wanted.enable_tag_override.to_string());
    let tagged = |of: &Registration| {
        let all = of.tagged_addresses.iter().map(|(tag, at)| format!("{tag}={} {}", at.address, at.port));
        all.collect::<Vec<_>>().join(", ")
    };
    differs("taggedAddresses", tagged(there), tagged(wanted));
    let readiness = |of: &Registration| of.readiness.map_or("none", crate::model::health::Health::as_str).to_owned();
    differs("readiness", readiness(there), readiness(wanted));
    let names = |of: &Registration| of.checks.names().iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
    differs("checks", names(there), names(wanted));
    let keys: BTreeSet<_> = there.meta.iter().chain(wanted.meta.iter()).map(|(key, _)| key).collect();
    for key in keys {
        let value = |of: &Registration| of.meta.get(key).map_or("none".to_owned(), |value| format!("{value:?}"));
        differs(&format!("meta {key}"), value(there), value(wanted));
    }
    all
}

fn notes_of(world: &World, source: SourceReport, key: &ResourceKey) -> Vec<Note> {
    let Some(entry) = world.resource(key).filter(|entry| entry.resource.ours) else { return Vec::new() };
    let note = |reason: &str, message: String| Note { resource: key.clone(), reason: reason.to_owned(), message };
    let mut notes = Vec::new();
    if entry.resource.paused {
        notes.push(note("Paused", "the annotation lictor.dev/paused freezes what is in Consul".to_owned()));
    }
    let conflict = world.rival(key).map(|holder| {
        let refusal = name_conflict();
        Refusal { message: format!("{}; the holder is {holder}", refusal.message), ..refusal }
    });
    let refusal = entry.resource.spec.as_ref().err().or(conflict.as_ref());
    notes.extend(refusal.map(|refusal| note(refusal.reason, refusal.message.clone())));
    let waits_for = world.waits_for(key);
    notes.extend(
        waits_for.map(|kind| note(NOT_LISTED, format!("{kind} could not be listed; what is registered stays"))),
    );
    if !entry.resource.deleting && waits_for.is_none() {
        notes.extend(source.remarks.into_iter().map(|remark| note(remark.reason, remark.message)));
        notes.extend(source.resolved.and_then(Result::err).map(|why| note(why.reason, why.message)));
        let problems = source.problems.into_iter();
        notes.extend(problems.map(|of| note(of.reason.as_str(), format!("{}: {}", of.instance, of.message))));
    }
    notes
}

//! The decision about one resource: what should be registered, and what is to be said of its source.
//!
//! Pure: the same for the World of the watches and for that of a fresh list. The loop keeps the decision until
//! something of the resource changes; its writes, its status and `lictor plan` go by the same one.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::desired::{Desired, Placement, desired};
use crate::model::ids::{Identity, InstanceIds, ResourceKey, Str};
use crate::model::policy::TOO_LARGE;
use crate::model::port::PortInUse;
use crate::model::reasons::{Problem, ProblemReason, Refusal, Remark, TOO_MANY_INSTANCES, Unresolved};
use crate::model::registration::{Registration, Row, RowKey};
use crate::model::render;
use crate::model::resolve::{Before, Hold, Instance, Resolution, are_terminating, limit, resolve};
use crate::model::resource::{DeletionPolicy, Spec};
use crate::model::status::NOT_LISTED;
use crate::state::mirror::Mirror;
use crate::state::world::World;

/// The reason of a condition where a name belongs to a resource of another namespace.
pub(crate) const NAME_CONFLICT: &str = "NameConflict";

/// The decision about one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The action on its registrations.
    pub(crate) action: Action,
    /// The report on its source.
    pub(crate) source: SourceReport,
    /// True if it would be another one if something else were registered: a limit or a port went by that.
    pub(crate) goes_by_rows: bool,
    /// True if it would be another one if the status said something else of the port.
    pub(crate) goes_by_status: bool,
    /// Counts the instances' own texts.
    pub(crate) texts: Texts,
    /// Counts the instances, where those of its namespace have a budget.
    pub(crate) share: Option<Share>,
}

/// The instances of a resource that count for the budget of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The instances that should be registered.
    pub(crate) desired: usize,
    /// True if some are left out.
    pub(crate) is_cut: bool,
}

/// What the other resources of a namespace have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfOthers {
    /// The bytes that the texts of their instances hold.
    pub(crate) bytes: usize,
    /// The number of their instances.
    pub(crate) instances: usize,
}

/// The bytes of the texts of a resource's instances in which there are values of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    /// The bytes that are held.
    pub(crate) bytes: usize,
    /// True if there are more than there is room for, so that none are held.
    pub(crate) are_too_large: bool,
}

impl Decision {
    /// Says whether the source was found.
    pub(crate) fn is_found(&self) -> bool {
        matches!(self.source.resolved, Some(Ok(())))
    }
}

/// An action on the registrations of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Register these, and deregister what else is there, except what `hold` names.
    Apply {
        /// The registrations that should be there.
        desired: Desired,
        /// The registrations that stay although they are not desired.
        hold: Hold,
        /// The addresses that are not registered only because they are not ready.
        unready: BTreeSet<Str>,
    },
    /// Leave everything as it is: nobody can tell what it should be.
    Freeze,
    /// Take the mark of this cluster off everything, and leave it registered.
    Disown,
}

impl Action {
    /// Gives the action that deregisters everything.
    fn nothing() -> Self {
        Self::Apply { desired: Desired::new(), hold: Hold::Nothing, unready: BTreeSet::new() }
    }

    /// Gives what a decision by a fresh list says of a registration that another decision removes.
    pub(crate) fn on_removal(&self, key: &RowKey, there: &Registration) -> Removal {
        match self {
            Self::Apply { desired, hold, .. } if !desired.contains_key(key) && !hold.holds(there) => Removal::Confirmed,
            Self::Apply { .. } | Self::Disown => Removal::Contradicted,
            Self::Freeze => Removal::Untold,
        }
    }
}

/// The answer of a fresh list about a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It removes the registration, too.
    Confirmed,
    /// It keeps the registration.
    Contradicted,
    /// It cannot tell: something that the decision needs could not be listed.
    Untold,
}

/// A report on the source of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceReport {
    /// The reason why it could not be resolved, if it could not; none where nobody looked.
    pub(crate) resolved: Option<Result<(), Unresolved>>,
    /// Remarks on a source that could be resolved.
    pub(crate) remarks: Vec<Remark>,
    /// Problems of single instances.
    pub(crate) problems: Vec<Problem>,
    /// The port that is registered where the spec names none; none where nobody looked, or nothing is known of it.
    pub(crate) port_in_use: Option<PortInUse>,
}

/// Decides about a resource of which these instances are registered. Without a `placement` nobody can say where instances
/// go, and everything stays as it is. `others` is what the other resources of its namespace have.
#[allow(clippy::needless_pass_by_value, reason = "the caller has no use for the iterator any more")]
pub(crate) fn decide<'a>(
    world: &World,
    identity: &Identity,
    placement: Option<&Placement>,
    key: &ResourceKey,
    registered: impl Iterator<Item = (&'a Str, &'a Registration)> + Clone,
    others: OfOthers,
) -> Decision {
    let undecided = world.resource(key).and_then(|entry| entry.last_good.as_ref());
    let spec = world.effective_spec(key).or_else(|| undecided.filter(|_| world.is_undecided(key)));
    // What changes about the source of a resource of another class, nobody is told.
    let is_ours = world.resource(key).is_some_and(|entry| entry.resource.ours);
    let Some(spec) = spec.filter(|_| is_ours && world.waits_for(key).is_none()) else {
        let action = fixed_action(world, key).unwrap_or(Action::Freeze);
        let (source, texts) = (unlisted(world, key), Texts::default());
        return Decision { action, source, goes_by_rows: false, goes_by_status: false, texts, share: None };
    };
    let (goes_by_rows, goes_by_status) = (Cell::new(false), Cell::new(false));
    let noted = std::iter::once_with(|| goes_by_rows.set(true)).flat_map(|()| registered.clone());
    let resolution = resolution(world, identity, key, spec, others.instances, noted, &goes_by_status);
    // What is registered counts: it is looked at again when that has changed.
    goes_by_rows.set(goes_by_rows.get() || spec.limits.of_namespace.is_some());
    if spec.limits.only_keeps {
        let action = fixed_action(world, key).unwrap_or_else(|| keep(spec, resolution));
        let source = SourceReport::default();
        let (goes_by_rows, goes_by_status) = (goes_by_rows.get(), goes_by_status.get());
        return Decision { action, source, goes_by_rows, goes_by_status, texts: Texts::default(), share: None };
    }
    let mut source = SourceReport::of(spec, &resolution);
    let is_cut = resolution.unresolved.as_ref().is_some_and(|why| why.reason == TOO_MANY_INSTANCES);
    let texts = texts(spec, &resolution, others.bytes, world.policy().own_bytes());
    if texts.are_too_large {
        source.resolved = Some(Err(too_large(world.policy().own_bytes())));
    }
    let action = match (fixed_action(world, key), placement) {
        (Some(action), _) => action,
        (None, _) if texts.are_too_large => keep(spec, resolution),
        (None, Some(placement)) if world.effective_spec(key).is_some() => {
            apply(world, identity, placement, key, spec, resolution)
        }
        (None, _) => Action::Freeze,
    };
    let share = spec.limits.of_namespace.map(|_| Share { desired: desired_of(&action, registered), is_cut });
    let (goes_by_rows, goes_by_status) = (goes_by_rows.get(), goes_by_status.get());
    Decision { action, source, goes_by_rows, goes_by_status, texts, share }
}

/// Counts the instances that Consul is to have by an action, or has until it is carried out.
fn desired_of<'a>(action: &Action, registered: impl Iterator<Item = (&'a Str, &'a Registration)>) -> usize {
    let desired = match action {
        Action::Apply { desired, .. } => desired.len(),
        Action::Freeze | Action::Disown => 0,
    };
    desired.max(registered.count())
}

/// Counts the bytes of the texts that instances hold for themselves. Others of the namespace hold some already.
fn texts(spec: &Spec, resolution: &Resolution, others: usize, most: usize) -> Texts {
    let bytes = resolution.instances.iter().map(|instance| render::own_bytes(spec, instance)).sum::<usize>();
    let are_too_large = bytes > 0 && bytes.saturating_add(others) > most;
    Texts { bytes: if are_too_large { 0 } else { bytes }, are_too_large }
}

/// Says that the texts of the instances take too much memory.
fn too_large(most: usize) -> Unresolved {
    let message = format!(
        "tags and meta that hold values of instances (${{…}}) may have {most} bytes together, over all instances of the \
         namespace, and there is no room for these; what is registered stays. Use fewer or shorter ones, or ask the \
         administrator of Lictor for more (--max-namespace-bytes)"
    );
    Unresolved { reason: TOO_LARGE, message }
}

/// Gives what is done whatever the source comes to; none where that decides.
fn fixed_action(world: &World, key: &ResourceKey) -> Option<Action> {
    if !world.watches(&key.namespace) || !world.is_whole(&key.namespace) {
        return Some(Action::Freeze);
    }
    let Some(entry) = world.resource(key) else { return Some(Action::nothing()) };
    let resource = &entry.resource;
    if !resource.ours {
        // With the finalizer of this Lictor on it, it was this Lictor's until its class was changed.
        return Some(if resource.has_finalizer() { Action::nothing() } else { Action::Freeze });
    }
    if resource.paused {
        return Some(Action::Freeze);
    }
    resource.deleting.then(|| match entry.deletion() {
        Some(DeletionPolicy::Deregister) => Action::nothing(),
        Some(DeletionPolicy::Retain) => Action::Disown,
        // The labels of its namespace decide, and are not known yet.
        None => Action::Freeze,
    })
}

fn apply(
    world: &World,
    identity: &Identity,
    placement: &Placement,
    key: &ResourceKey,
    spec: &Spec,
    resolution: Resolution,
) -> Action {
    let Some(entry) = world.resource(key) else { return Action::nothing() };
    let desired =
        desired(identity, key, &entry.resource.uid, spec, &resolution.instances, placement, |node| world.is_node(node));
    let unready = resolution.instances.iter().filter(|instance| !spec.readiness.registers(instance.ready));
    let unready = unready.map(|instance| instance.address.to_string().into()).collect();
    Action::Apply { desired, hold: resolution.hold, unready }
}

/// Keeps what is registered at the addresses that a source comes to, and registers nothing.
fn keep(spec: &Spec, resolution: Resolution) -> Action {
    let living = resolution.instances.iter().map(|instance| instance.address.to_string().into());
    let hold = resolution.hold.keeping(&spec.source, living);
    Action::Apply { desired: Desired::new(), hold, unready: BTreeSet::new() }
}

/// Gives what the source of a spec comes to, for a resource of which these instances are registered.
fn resolution<'a>(
    world: &World,
    identity: &Identity,
    key: &ResourceKey,
    spec: &Spec,
    others: usize,
    registered: impl Iterator<Item = (&'a Str, &'a Registration)> + Clone,
    goes_by_status: &Cell<bool>,
) -> Resolution {
    let ids = InstanceIds::new(&identity.cluster, key, &spec.service);
    let id = |instance: &Instance| ids.id(&instance.target(), instance.port);
    let rows = registered.clone().map(|(_, registration)| registration);
    let before = Before::of(world.resource(key).map(|entry| &entry.resource), rows).noting(goes_by_status);
    limit(resolve(spec, &world.facts(key), &before), spec, others, id, registered)
}

/// Gives what is said of a source before the kinds that it needs have been listed.
fn unlisted(world: &World, key: &ResourceKey) -> SourceReport {
    let waits_for = world.waits_for(key).map(|kind| Unresolved {
        reason: NOT_LISTED,
        message: format!("{kind} have not been listed yet; if that fails, /readyz and the log of Lictor say why"),
    });
    SourceReport { resolved: waits_for.map(Err), ..SourceReport::default() }
}

impl SourceReport {
    fn of(spec: &Spec, resolution: &Resolution) -> Self {
        let missing = missing_values(spec, resolution).map(|message| Remark { reason: "ValuesMissing", message });
        Self {
            resolved: Some(resolution.unresolved.clone().map_or(Ok(()), Err)),
            remarks: resolution.remarks.iter().cloned().chain(missing).collect(),
            problems: resolution.left_out.iter().cloned().chain(missing_check_ports(spec, resolution)).collect(),
            port_in_use: resolution.port_in_use.clone(),
        }
    }
}

/// The checks that some instances go without.
fn missing_check_ports(spec: &Spec, resolution: &Resolution) -> impl Iterator<Item = Problem> {
    resolution.instances.iter().flat_map(|instance| {
        let missing = spec.checks.iter().zip(&instance.check_ports).filter(|(_, port)| port.is_none());
        missing.map(|(check, _)| Problem {
            instance: instance.called(),
            reason: ProblemReason::CheckPortNotFound,
            message: format!(
                "it does not have the port of check {:?}, so it is registered without this check",
                check.check.name
            ),
        })
    })
}

/// Gives what the texts of the instances lack, in one sentence.
fn missing_values(spec: &Spec, resolution: &Resolution) -> Option<String> {
    if spec.variables().is_empty() {
        return None;
    }
    let mut lacking = 0_usize;
    let mut first = None;
    for instance in &resolution.instances {
        let missing = render::missing_values(spec, instance);
        if let Some(value) = missing.first() {
            lacking += 1;
            first.get_or_insert_with(|| format!("{}, {}: {}", instance.called(), value.text, value.why));
        }
    }
    let all = resolution.instances.len();
    first.map(|first| format!("{lacking} of {all} instances lack a value: {first}"))
}

/// Gives what is said to a resource whose name belongs to one of another namespace. Which one that is, its author may not
/// know: the log and `lictor plan` tell it to whoever runs Lictor.
pub(crate) fn name_conflict() -> Refusal {
    Refusal {
        reason: NAME_CONFLICT,
        message:
            "the name in Consul belongs to a ConsulService of another namespace: set spec.name to another, or ask \
                  the administrator of Lictor, whose log says which, to let namespaces share names \
                  (--allow-shared-names)"
                .to_owned(),
    }
}

/// The IDs and registrations of rows.
pub(crate) fn registered<'a>(
    rows: impl Iterator<Item = (&'a RowKey, &'a Row)> + Clone,
) -> impl Iterator<Item = (&'a Str, &'a Registration)> + Clone {
    rows.map(|(key, row)| (&key.id, &*row.registration))
}

/// Gives what is desired but these rows.
pub(super) fn without<'a>(desired: &'a Desired, rows: &BTreeSet<RowKey>) -> Cow<'a, Desired> {
    if rows.iter().all(|row| !desired.contains_key(row)) {
        return Cow::Borrowed(desired);
    }
    let others = desired.iter().filter(|(row, _)| !rows.contains(*row));
    Cow::Owned(others.map(|(row, wanted)| (row.clone(), Arc::clone(wanted))).collect())
}

/// Has registrations that are desired as they are registered held in memory once, and so their keys.
pub(super) fn share(desired: &mut Desired, mirror: &Mirror) {
    let shared = std::mem::take(desired).into_iter().map(|(key, wanted)| match mirror.entry(&key) {
        Some((known, row)) if wanted == row.registration => (known.clone(), Arc::clone(&row.registration)),
        Some((known, _)) => (known.clone(), wanted),
        None => (key, wanted),
    });
    *desired = shared.collect();
}

/// The reason why an instance is deregistered, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The resource was deleted while Lictor watched, or its deletion waits for this.
    ResourceDeleted,
    /// No resource claims the registration: its resource was deleted while Lictor did not watch.
    Orphan,
    /// The resource has another class.
    ClassChanged,
    /// The endpoint or pod is not ready, and `readiness: Deregister` asks for its removal.
    NotReady,
    /// The endpoint or pod is terminating.
    Terminating,
    /// No slice and no pod has the address any more.
    NoEndpoint,
    /// The endpoint lives, and the resource or its Service asks for something else.
    Edited,
}

impl Gone {
    /// As a log line says it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ResourceDeleted => "the resource was deleted",
            Self::Orphan => "no resource claims it",
            Self::ClassChanged => "the resource has another class",
            Self::NotReady => "its endpoint is not ready",
            Self::Terminating => "its endpoint is terminating",
            Self::NoEndpoint => "its endpoint is gone",
            Self::Edited => "the resource or its source was edited",
        }
    }
}

/// Answers why these registrations of a resource are deregistered.
pub(super) fn why_gone<'a>(
    world: &'a World,
    key: &'a ResourceKey,
    was_observed: bool,
    unready: &'a BTreeSet<Str>,
    removed: impl Iterator<Item = &'a Registration>,
) -> impl Fn(&Registration) -> Gone + 'a {
    let addresses: BTreeSet<IpAddr> = removed.filter_map(|there| there.address.parse().ok()).collect();
    let terminating = world.effective_spec(key).map(|spec| are_terminating(spec, &world.facts(key), &addresses));
    move |there| {
        let Some(entry) = world.resource(key) else {
            return if was_observed { Gone::ResourceDeleted } else { Gone::Orphan };
        };
        let resource = &entry.resource;
        match (&terminating, there.address.parse().ok()) {
            _ if !resource.ours => Gone::ClassChanged,
            _ if resource.deleting => Gone::ResourceDeleted,
            _ if unready.contains(&there.address) => Gone::NotReady,
            (Some(terminating), Some(address)) => match terminating.get::<IpAddr>(&address) {
                Some(true) => Gone::Terminating,
                Some(false) => Gone::Edited,
                None => Gone::NoEndpoint,
            },
            _ => Gone::Edited,
        }
    }
}

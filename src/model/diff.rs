//! What to write so that Consul holds what is desired of one resource.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::desired::Desired;
use super::names::Str;
use super::reasons::Counts;
use super::registration::{Ownership, Registration, Row, RowKey};
use super::resolve::Hold;

/// One change to one instance in Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Registers an instance, or registers it again with other content.
    Put {
        /// Where.
        key: RowKey,
        /// What; its tags are those that Consul holds, where tags belong to Consul's users.
        registration: Arc<Registration>,
        /// The names of checks of ours that are there and should go.
        drop_checks: Vec<Str>,
    },
    /// Moves the readiness check, and nothing else.
    Readiness {
        /// Where.
        key: RowKey,
        /// What the instance is registered as, with the new state of the check.
        registration: Arc<Registration>,
    },
    /// Takes our mark off an instance and leaves it.
    Release {
        /// Where.
        key: RowKey,
        /// What stays, without our mark.
        registration: Arc<Registration>,
    },
    /// Deregisters an instance and its checks.
    Remove {
        /// Where.
        key: RowKey,
        /// The service's name, which Consul wants to see for its ACLs.
        service: Str,
    },
}

impl Op {
    /// Which instance it changes.
    #[must_use]
    pub fn key(&self) -> &RowKey {
        match self {
            Self::Put { key, .. }
            | Self::Readiness { key, .. }
            | Self::Release { key, .. }
            | Self::Remove { key, .. } => key,
        }
    }

    /// What the instance will be registered as; none if it goes.
    #[must_use]
    pub fn registration(&self) -> Option<&Arc<Registration>> {
        match self {
            Self::Put { registration, .. }
            | Self::Readiness { registration, .. }
            | Self::Release { registration, .. } => Some(registration),
            Self::Remove { .. } => None,
        }
    }

    /// Whether it takes something away that Consul's users may be using.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self, Self::Remove { .. })
    }
}

/// What a resource's registrations want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// What to write: new and changed instances first, then readiness, then what goes.
    pub ops: Vec<Op>,
    /// Instances that cannot be registered: somebody else holds their ID. With who it is.
    pub conflicts: Vec<(RowKey, String)>,
    /// Instances that go as soon as their replacement is there.
    pub waiting: Vec<RowKey>,
}

/// Compares what is desired of a resource with what Consul holds.
///
/// `row` answers what Consul holds under a key, whoever's it is; `owned` lists the rows of this resource; `lives` says
/// of a registration that is not desired any more whether what it stands for lives on all the same, and `refused` of a
/// key whether Consul has refused just now what is desired under it.
///
/// A removal waits while an instance at the same address is desired under another key and not there yet: the
/// new one is there before the old one goes, also across Consul nodes, also after a crash between the two. What goes
/// by an edit, and not because its endpoint went, waits until all that is to come in its place is there: whoever asks
/// finds all of the old truth or all of the new.
pub fn diff<'a>(
    desired: &Desired,
    row: impl Fn(&RowKey) -> Option<&'a Row>,
    owned: impl Iterator<Item = (&'a RowKey, &'a Row)>,
    hold: &Hold,
    lives: impl Fn(&Registration) -> bool,
    refused: impl Fn(&RowKey) -> bool,
) -> Diff {
    let mut diff = Diff::default();
    let (mut readiness, mut removals) = (Vec::new(), Vec::new());
    let (mut coming, mut awaited): (BTreeSet<&str>, bool) = (BTreeSet::new(), false);
    for (key, wanted) in desired {
        let there = row(key);
        let comes = !there.is_some_and(|row| row.shown && matches!(row.ownership, Ownership::Ours(_)));
        if comes {
            coming.insert(&wanted.address);
        }
        let change = change(key, wanted, there);
        // What Consul refuses, or somebody else holds the ID of, never comes by itself.
        awaited |= comes && change.is_ok() && !refused(key);
        match change {
            Ok(Some(op @ Op::Readiness { .. })) => readiness.push(op),
            Ok(Some(op)) => diff.ops.push(op),
            Ok(None) => {}
            Err(other) => diff.conflicts.push((key.clone(), other)),
        }
    }
    let addresses: BTreeSet<&str> =
        if awaited { desired.values().map(|wanted| &*wanted.address).collect() } else { BTreeSet::new() };
    for (key, row) in owned {
        let there = &*row.registration;
        if desired.contains_key(key) || hold.holds(there) {
            continue;
        }
        let edited = || addresses.contains(&*there.address) || lives(there);
        if coming.contains(&*there.address) || (awaited && edited()) {
            diff.waiting.push(key.clone());
        } else {
            removals.push(Op::Remove { key: key.clone(), service: there.service.clone() });
        }
    }
    diff.ops.append(&mut readiness);
    diff.ops.append(&mut removals);
    diff
}

/// What to write for one desired instance; an error says who else holds its ID.
fn change(key: &RowKey, wanted: &Arc<Registration>, there: Option<&Row>) -> Result<Option<Op>, String> {
    let put = |registration: Arc<Registration>, drop_checks| {
        Ok(Some(Op::Put { key: key.clone(), registration, drop_checks }))
    };
    let Some(row) = there else {
        return put(wanted.clone(), Vec::new());
    };
    if let Ownership::Other(who) = &row.ownership {
        return Err(who.clone());
    }
    let there = &*row.registration;
    let wanted = with_tags_of_consul(wanted, there);
    let (has, wants) = (there.check_names(), wanted.check_names());
    if row.ownership == Ownership::Unowned || !wanted.same_service(there) || has != wants {
        let drop_checks = has.difference(&wants).map(|name| Str::from(*name)).collect();
        return put(wanted, drop_checks);
    }
    match (wanted.readiness, there.readiness) {
        (Some(new), Some(old)) if new != old => Ok(Some(Op::Readiness { key: key.clone(), registration: wanted })),
        _ => Ok(None),
    }
}

/// Where tags belong to whoever edits them in Consul, our writes keep what is there.
fn with_tags_of_consul(wanted: &Arc<Registration>, there: &Registration) -> Arc<Registration> {
    if !wanted.enable_tag_override || wanted.tags == there.tags {
        return wanted.clone();
    }
    Arc::new(Registration { tags: there.tags.clone(), ..(**wanted).clone() })
}

/// What to write so that nothing of a resource carries our mark any more, and everything stays.
#[must_use]
pub fn release<'a>(owned: impl Iterator<Item = (&'a RowKey, &'a Row)>) -> Vec<Op> {
    owned
        .map(|(key, row)| Op::Release { key: key.clone(), registration: Arc::new(row.registration.released()) })
        .collect()
}

/// Counts what the catalog shows of what is desired.
pub fn count<'a>(desired: &Desired, row: impl Fn(&RowKey) -> Option<&'a Row>) -> Counts {
    let mut counts = Counts { desired: desired.len(), ..Counts::default() };
    let shown = desired.keys().filter_map(row).filter(|row| row.shown && row.is_ours());
    shown.for_each(|row| counts.add(row.health));
    counts
}

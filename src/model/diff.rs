//! What to write so that Consul holds what is desired of one resource.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::desired::Desired;
use super::health::Health;
use super::ids::Str;
use super::reasons::Counts;
use super::registration::{Ownership, Registration, Row, RowKey};
use super::resolve::{Hold, Remains};

/// One change to one instance in Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Registers an instance, or registers it again with other content.
    Register {
        /// The row to write.
        key: RowKey,
        /// The registration; its tags are those that Consul holds, where tags belong to Consul's users.
        registration: Arc<Registration>,
        /// The names of checks of ours that are there and should go.
        drop_checks: Vec<Str>,
    },
    /// Moves the readiness check, and nothing else.
    Readiness {
        /// The row to write.
        key: RowKey,
        /// The registration of the instance, with the new state of the check.
        registration: Arc<Registration>,
    },
    /// Takes our mark off an instance and leaves it.
    Disown {
        /// The row to write.
        key: RowKey,
        /// The registration that stays, without our mark.
        registration: Arc<Registration>,
    },
    /// Deregisters an instance and its checks.
    Deregister {
        /// The row to delete.
        key: RowKey,
        /// The service's name, which Consul wants to see for its ACLs.
        service: Str,
    },
}

impl Op {
    /// Gives the instance that it changes.
    #[must_use]
    pub fn key(&self) -> &RowKey {
        match self {
            Self::Register { key, .. }
            | Self::Readiness { key, .. }
            | Self::Disown { key, .. }
            | Self::Deregister { key, .. } => key,
        }
    }

    /// Gives the registration that the instance will have; none if it goes.
    #[must_use]
    pub fn registration(&self) -> Option<&Arc<Registration>> {
        match self {
            Self::Register { registration, .. }
            | Self::Readiness { registration, .. }
            | Self::Disown { registration, .. } => Some(registration),
            Self::Deregister { .. } => None,
        }
    }

    /// Says whether it takes something away that Consul's users may be using.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self, Self::Deregister { .. })
    }

    /// Says whether it tells Consul's users not to use an instance any more.
    #[must_use]
    pub fn makes_critical(&self) -> bool {
        let (Self::Register { registration, .. } | Self::Readiness { registration, .. }) = self else { return false };
        registration.readiness == Some(Health::Critical)
    }
}

/// Says what a resource's registrations want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The operations to carry out: new and changed instances first, then readiness, then removals.
    pub ops: Vec<Op>,
    /// Instances that cannot be registered: somebody else holds their ID. With who it is.
    pub conflicts: Vec<(RowKey, String)>,
    /// Instances that go as soon as their replacement is there.
    pub waiting: Vec<RowKey>,
}

/// Compares what is desired of a resource with what Consul holds.
///
/// `row` answers what Consul holds under a key, whoever's it is; `owned` lists the rows of this resource; `left_of`
/// says of a registration that is not desired any more what is left of what it stands for, and `refused` of a key whether
/// Consul has refused just now what is desired under it.
///
/// A removal waits while the same instance, or one at the same address, is desired under another key and not there yet: the
/// new one is there before the old one goes, also across Consul nodes, also after a crash between the two. What goes
/// by an edit, and not because its endpoint went, waits until all that is to come in its place is there: whoever asks
/// finds all of the old truth or all of the new. What Consul refuses is not waited for, once it has one that passes; nor
/// is what nobody can tell how to register. What goes although it serves, since another one is ready, waits until
/// Consul has one that passes; of a resource that may only keep what it has, none comes, and it stays to its end.
pub fn diff<'a>(
    desired: &Desired,
    row: impl Fn(&RowKey) -> Option<&'a Row>,
    owned: impl Iterator<Item = (&'a RowKey, &'a Row)> + Clone,
    hold: &Hold,
    left_of: impl Fn(&Registration) -> Remains,
    refused: impl Fn(&RowKey) -> bool,
) -> Diff {
    let mut diff = Diff::default();
    let (mut readiness, mut removals) = (Vec::new(), Vec::new());
    // By address, and by ID: one that changes its node may change its address family as well.
    let (mut coming, mut moving): (BTreeSet<&str>, BTreeSet<&str>) = (BTreeSet::new(), BTreeSet::new());
    let mut awaited = false;
    for (key, wanted) in desired {
        let there = row(key);
        let comes = !there.is_some_and(|row| row.shown && matches!(row.ownership, Ownership::Ours(_)));
        if comes {
            coming.insert(&wanted.address);
            moving.insert(&key.id);
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
    // Of those that are to pass none does yet. What is held stands for endpoints that live, and may have none of them.
    let passing = || desired.iter().filter(|(_, wanted)| passes(wanted));
    let is_there = |row: &Row| row.shown && row.is_ours() && passes(&row.registration);
    let is_held = |(key, row): &(&RowKey, &Row)| !desired.contains_key(*key) && hold.holds(&row.registration);
    let is_due = passing().next().is_some() || matches!(hold, Hold::Addresses(_));
    let first_awaited = is_due
        && !passing().any(|(key, _)| row(key).is_some_and(is_there))
        && !owned.clone().filter(is_held).any(|(_, row)| is_there(row));
    // A resource that may only keep what it has registers nothing in its place, whatever else is ready.
    let is_last = matches!(hold, Hold::Kept(..)) && !owned.clone().filter(is_held).any(|(_, row)| is_there(row));
    for (key, row) in owned {
        let there = &*row.registration;
        if desired.contains_key(key) || hold.holds(there) {
            continue;
        }
        let is_replaced = coming.contains(&*there.address) || moving.contains(&*key.id);
        let may_go = || match left_of(there) {
            Remains::Living => !awaited && !first_awaited,
            Remains::Serving => !first_awaited && !is_last,
            Remains::Nothing => true,
        };
        if is_replaced || addresses.contains(&*there.address) || !may_go() {
            diff.waiting.push(key.clone());
        } else {
            removals.push(Op::Deregister { key: key.clone(), service: there.service.clone() });
        }
    }
    diff.ops.append(&mut readiness);
    diff.ops.append(&mut removals);
    diff
}

/// Says whether an instance passes, as far as Lictor has a say in it.
fn passes(registration: &Registration) -> bool {
    registration.readiness.is_none_or(|readiness| readiness == Health::Passing)
}

/// Works out what to write for one desired instance; an error says who else holds its ID.
fn change(key: &RowKey, wanted: &Arc<Registration>, there: Option<&Row>) -> Result<Option<Op>, String> {
    let put = |registration: Arc<Registration>, drop_checks| {
        Ok(Some(Op::Register { key: key.clone(), registration, drop_checks }))
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

/// Keeps the tags that are there, if they belong to whoever edits them in Consul.
fn with_tags_of_consul(wanted: &Arc<Registration>, there: &Registration) -> Arc<Registration> {
    if !wanted.enable_tag_override || wanted.tags == there.tags {
        return wanted.clone();
    }
    Arc::new(Registration { tags: there.tags.clone(), ..(**wanted).clone() })
}

/// Lists what to write so that nothing of a resource carries our mark any more, and everything stays.
#[must_use]
pub fn disown<'a>(owned: impl Iterator<Item = (&'a RowKey, &'a Row)>) -> Vec<Op> {
    owned
        .map(|(key, row)| Op::Disown { key: key.clone(), registration: Arc::new(row.registration.disowned()) })
        .collect()
}

/// Counts what the catalog shows of what is desired.
pub fn count<'a>(desired: &Desired, row: impl Fn(&RowKey) -> Option<&'a Row>) -> Counts {
    let mut counts = Counts { desired: desired.len(), ..Counts::default() };
    let shown = desired.keys().filter_map(row).filter(|row| row.shown && row.is_ours());
    shown.for_each(|row| counts.add(row.health));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::ids::{ResourceKey, meta};

    fn registration(address: &str, readiness: Option<Health>) -> Arc<Registration> {
        let meta = [(meta::SOURCE.into(), "service/web".into())].into();
        Arc::new(Registration { meta, readiness, ..Registration::plain("s", address, 80) })
    }

    #[test]
    fn an_instance_that_moves_waits_for_itself() {
        let key = |node: &str| RowKey { node: node.into(), id: "c:shop:web:s:u1:80".into() };
        let there = |address: &str| Row {
            registration: registration(address, None),
            ownership: Ownership::Ours(ResourceKey::new("shop", "web")),
            health: Health::Passing,
            shown: true,
        };
        let (old, new) = (there("fd00::1"), there("10.0.0.1"));
        let desired: Desired = [(key("b"), new.registration.clone())].into();
        for is_there in [false, true] {
            let row = |of: &RowKey| Some(&new).filter(|_| is_there && *of == key("b"));
            let before = key("a");
            let owned = [(&before, &old)].into_iter();
            let found = diff(&desired, row, owned, &Hold::Nothing, |_| Remains::Nothing, |_| false);
            assert_eq!(found.ops.iter().any(Op::removes), is_there, "its address of the other family goes last");
        }
    }

    #[test]
    fn what_an_edit_takes_away_stays_while_consul_refuses_all_that_passes() {
        let key = |id: &str| RowKey { node: "n".into(), id: id.into() };
        let there = |address: &str, readiness| Row {
            registration: registration(address, readiness),
            ownership: Ownership::Ours(ResourceKey::new("shop", "web")),
            health: Health::Passing,
            shown: true,
        };
        let (passing, critical) = (Some(Health::Passing), Some(Health::Critical));
        let old = there("10.0.0.1", passing);
        for (wanted, registered, refused, left, stays) in [
            (passing, None, vec!["a", "b"], Remains::Living, true),
            (passing, Some(critical), vec!["a", "b"], Remains::Living, true),
            (passing, Some(passing), vec!["b"], Remains::Living, false),
            (passing, Some(passing), vec![], Remains::Living, true),
            (passing, None, vec!["a", "b"], Remains::Nothing, false),
            // Nothing new is to pass, whether Consul takes it or not.
            (critical, None, vec!["a", "b"], Remains::Living, false),
        ] {
            let new = registered.map(|readiness| there("10.0.0.2", readiness));
            let desired: Desired =
                [("a", "10.0.0.2"), ("b", "10.0.0.3")].map(|(id, at)| (key(id), registration(at, wanted))).into();
            let found = diff(
                &desired,
                |of| new.as_ref().filter(|_| *of == key("a")),
                [(&key("old"), &old)].into_iter(),
                &Hold::Nothing,
                |_| left,
                |of| refused.contains(&&*of.id),
            );
            let removed = found.ops.iter().any(Op::removes);
            assert_eq!(removed, !stays, "{wanted:?} {registered:?} {refused:?} {left:?}");
        }
    }

    #[test]
    fn the_last_one_that_serves_waits_for_the_first_that_passes() {
        let key = |id: &str| RowKey { node: id.into(), id: id.into() };
        let row = |registration: &Arc<Registration>, shown| Row {
            registration: registration.clone(),
            ownership: Ownership::Ours(ResourceKey::new("shop", "web")),
            health: Health::Passing,
            shown,
        };
        let (passing, critical) = (Some(Health::Passing), Some(Health::Critical));
        let old = row(&registration("10.0.0.1", passing), true);
        let new = |readiness, shown| row(&registration("10.0.0.2", readiness), shown);
        for (wanted, there, left, waits) in [
            (passing, None, Remains::Serving, true),
            (passing, Some(new(critical, true)), Remains::Serving, true),
            (passing, Some(new(passing, false)), Remains::Serving, true),
            (passing, Some(new(passing, true)), Remains::Serving, false),
            (None, None, Remains::Serving, true),
            (None, Some(new(None, true)), Remains::Serving, false),
            // Nothing is to pass: it goes for another reason.
            (critical, None, Remains::Serving, false),
            (passing, None, Remains::Nothing, false),
        ] {
            let desired: Desired = [(key("new"), registration("10.0.0.2", wanted))].into();
            let found = diff(
                &desired,
                |of| there.as_ref().filter(|_| *of == key("new")),
                [(&key("old"), &old)].into_iter(),
                &Hold::Nothing,
                |_| left,
                |_| false,
            );
            let removed = found.ops.iter().any(Op::removes);
            assert_eq!((removed, found.waiting.is_empty()), (!waits, !waits), "{wanted:?} {there:?} {left:?}");
        }
        // Nobody can tell how what is ready is to be registered: it is held, and may not be registered yet.
        let hold = Hold::Addresses(["10.0.0.2".into()].into());
        let cases = [
            (None, true),
            (Some(new(critical, true)), true),
            (Some(new(passing, false)), true),
            (Some(new(passing, true)), false),
        ];
        let cases = cases.into_iter().flat_map(|(held, waits)| {
            [Remains::Serving, Remains::Living].map(|remains| (held.clone(), remains, waits))
        });
        for (held, remains, waits) in cases {
            let (old_key, held_key) = (key("old"), key("held"));
            let owned = [(&old_key, &old)].into_iter().chain(held.as_ref().map(|held| (&held_key, held)));
            let left = |there: &Registration| {
                if *there.address == *"10.0.0.1" { remains } else { Remains::Nothing }
            };
            let found = diff(&Desired::new(), |_| None, owned, &hold, left, |_| false);
            let removed = found.ops.iter().any(Op::removes);
            assert_eq!((removed, found.waiting.is_empty()), (!waits, !waits), "{held:?}");
        }
    }

    #[test]
    fn the_last_one_that_serves_stays_to_its_end_where_nothing_may_be_registered() {
        let key = |id: &str| RowKey { node: id.into(), id: id.into() };
        let row = |address: &str, readiness, shown| Row {
            registration: registration(address, readiness),
            ownership: Ownership::Ours(ResourceKey::new("shop", "web")),
            health: Health::Passing,
            shown,
        };
        let (passing, critical) = (Some(Health::Passing), Some(Health::Critical));
        let old = row("10.0.0.1", passing, true);
        // Whatever else is ready, 10.0.0.3 here, has no registration and gets none.
        let hold = Hold::Kept("service/web".into(), ["10.0.0.2".into(), "10.0.0.3".into()].into());
        for (held, left, stays) in [
            (None, Remains::Serving, true),
            (Some(row("10.0.0.2", critical, true)), Remains::Serving, true),
            (Some(row("10.0.0.2", passing, false)), Remains::Serving, true),
            (Some(row("10.0.0.2", passing, true)), Remains::Serving, false),
            (Some(row("10.0.0.2", None, true)), Remains::Serving, false),
            (None, Remains::Nothing, false),
            // It would stay for ever: nothing ends it.
            (None, Remains::Living, false),
        ] {
            let (old_key, held_key) = (key("old"), key("held"));
            let owned = [(&old_key, &old)].into_iter().chain(held.as_ref().map(|held| (&held_key, held)));
            let left_of = |there: &Registration| {
                if *there.address == *"10.0.0.1" { left } else { Remains::Nothing }
            };
            let found = diff(&Desired::new(), |_| None, owned, &hold, left_of, |_| false);
            let removed = found.ops.iter().any(Op::removes);
            assert_eq!((removed, found.waiting.is_empty()), (!stays, !stays), "{held:?} {left:?}");
        }
    }
}

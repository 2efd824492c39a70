//! What we know Consul to hold of ours: read at the start, kept by our own acknowledged writes, and held
//! against Consul by each resync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::ids::{Identity, ResourceKey, Str};
use crate::model::registration::{NameInUse, Ownership, Registration, Row, RowKey, Rows};

/// The rows, and whose they are.
#[derive(Debug, Default)]
pub struct Mirror {
    rows: Rows,
    by_owner: BTreeMap<ResourceKey, BTreeSet<RowKey>>,
    /// Counts the rows of each resource under each name.
    names: BTreeMap<ResourceKey, BTreeMap<NameInUse, usize>>,
    /// Counts the rows of each resource that have so many checks, if they have any.
    checks: BTreeMap<ResourceKey, BTreeMap<usize, usize>>,
    owned: usize,
    /// Counts them by health.
    by_health: BTreeMap<Health, usize>,
    /// Counts those that pass by the namespace of their resource.
    passing: BTreeMap<Str, usize>,
    /// Counts those that an agent has and the catalog does not show.
    hidden: usize,
    /// Counts how many rows each Consul node has.
    by_node: BTreeMap<Str, usize>,
    /// The time of our last write to each row, as a count of our own writes: a resync that began before knows less than
    /// we do.
    written: BTreeMap<RowKey, u64>,
    writes: u64,
}

impl Mirror {
    /// A mirror of these rows.
    #[must_use]
    pub fn of(rows: Rows) -> Self {
        let mut mirror = Self::default();
        for (key, row) in rows {
            mirror.set(&key, Some(row));
        }
        mirror
    }

    /// The row under a key, whoever's it is.
    #[must_use]
    pub fn row(&self, key: &RowKey) -> Option<&Row> {
        self.rows.get(key)
    }

    /// Gives the row under a key, and the key as it is held here.
    #[must_use]
    pub fn entry(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        self.rows.get_key_value(key)
    }

    /// The rows of a resource.
    pub fn owned<'a>(&'a self, owner: &ResourceKey) -> impl Iterator<Item = (&'a RowKey, &'a Row)> + Clone + use<'a> {
        self.by_owner.get(owner).into_iter().flatten().filter_map(|key| self.rows.get_key_value(key))
    }

    /// Counts the rows of a resource.
    #[must_use]
    pub fn owned_by(&self, owner: &ResourceKey) -> usize {
        self.by_owner.get(owner).map_or(0, BTreeSet::len)
    }

    /// The names that a resource has rows under.
    #[must_use]
    pub fn names(&self, owner: &ResourceKey) -> BTreeSet<NameInUse> {
        self.names.get(owner).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// The most checks that a row of a resource has.
    #[must_use]
    pub fn most_checks(&self, owner: &ResourceKey) -> usize {
        self.checks.get(owner).and_then(BTreeMap::last_key_value).map_or(0, |(checks, _)| *checks)
    }

    /// All resources that own rows.
    pub fn owners(&self) -> impl Iterator<Item = &ResourceKey> {
        self.by_owner.keys()
    }

    /// Counts the rows of this cluster.
    #[must_use]
    pub fn owned_rows(&self) -> usize {
        self.owned
    }

    /// Counts the rows of this cluster that have this health.
    #[must_use]
    pub fn count(&self, health: Health) -> usize {
        self.by_health.get(&health).copied().unwrap_or_default()
    }

    /// Counts the rows that pass of the resources of other namespaces than this one, of those that are to be counted.
    pub fn passing_besides(&self, namespace: &Str, counts: impl Fn(&Str) -> bool) -> usize {
        let others = self.passing.iter().filter(|(other, _)| *other != namespace && counts(other));
        others.map(|(_, passing)| passing).sum()
    }

    /// Says whether an agent has rows of this cluster that the catalog does not show.
    #[must_use]
    pub fn has_hidden(&self) -> bool {
        self.hidden > 0
    }

    /// The Consul nodes that have rows.
    pub fn nodes(&self) -> impl Iterator<Item = &Str> {
        self.by_node.keys()
    }

    /// The rows of a Consul node.
    pub fn on_node<'a>(&'a self, node: &'a Str) -> impl Iterator<Item = (&'a RowKey, &'a Row)> {
        let first = RowKey { node: node.clone(), id: "".into() };
        self.rows.range(first..).take_while(move |(key, _)| key.node == *node)
    }

    /// Gives all rows.
    pub fn rows(&self) -> impl Iterator<Item = (&RowKey, &Row)> {
        self.rows.iter()
    }

    /// The count of writes so far: what a resync that begins now already knows.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.writes
    }

    /// Notes that a write for this key was begun: until it is answered, what a resync saw of it is worth nothing.
    pub fn begin(&mut self, key: &RowKey) {
        self.writes += 1;
        self.written.insert(key.clone(), self.writes);
    }

    /// Notes that Consul acknowledged an operation.
    pub fn acknowledge(&mut self, identity: &Identity, op: &Op, shown: bool) {
        self.writes += 1;
        let key = op.key();
        self.written.insert(key.clone(), self.writes);
        let row = op.registration().map(|registration| {
            let known = self.rows.get(key);
            // A check that was updated says nothing of an instance that the catalog did not show before.
            let is_hidden = matches!(op, Op::Readiness { .. }) && known.is_some_and(|known| !known.shown);
            Row {
                registration: registration.clone(),
                ownership: Ownership::of(identity, &key.id, &registration.meta, false),
                health: health_after(registration, known),
                shown: shown && !is_hidden,
            }
        });
        self.set(key, row);
    }

    /// Takes over what a read of a Consul node that began at `since` found, and answers whose rows turned out to be other
    /// than we knew.
    pub fn take_over(&mut self, node: &Str, found: Rows, since: u64) -> BTreeSet<ResourceKey> {
        let mut moved = BTreeSet::new();
        let newer = |key: &RowKey, written: &BTreeMap<RowKey, u64>| written.get(key).is_some_and(|&at| at > since);
        let known = self.on_node(node).map(|(key, _)| key);
        let lost = known.filter(|key| !found.contains_key(key) && !newer(key, &self.written));
        for key in lost.cloned().collect::<Vec<_>>() {
            self.set(&key, None).map(|owner| moved.insert(owner));
        }
        for (key, mut row) in found {
            if newer(&key, &self.written) {
                continue;
            }
            if let Some(known) = self.rows.get(&key) {
                if *known == row {
                    continue;
                }
                if known.registration == row.registration {
                    row.registration = Arc::clone(&known.registration);
                }
            }
            let owner = self.set(&key, Some(row));
            moved.extend(owner);
            moved.extend(self.owner_of(&key));
        }
        moved
    }

    /// Forgets when the rows of a node were written before `since`: no read of it is under way that began earlier.
    pub fn forget_writes(&mut self, node: &Str, since: u64) {
        let first = RowKey { node: node.clone(), id: "".into() };
        let of_node = self.written.range(first..).take_while(|(key, _)| key.node == *node);
        for key in of_node.filter(|(_, at)| **at <= since).map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.written.remove(&key);
        }
    }

    /// Forgets when rows were written before `since` on other nodes than these: nobody reads them any more.
    pub fn forget_writes_elsewhere(&mut self, nodes: &BTreeSet<Str>, since: u64) {
        self.written.retain(|key, at| *at > since || nodes.contains(&key.node));
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        *self = Self { writes: self.writes, ..Self::default() };
    }

    fn owner_of(&self, key: &RowKey) -> Option<ResourceKey> {
        match &self.rows.get(key)?.ownership {
            Ownership::Ours(owner) => Some(owner.clone()),
            Ownership::Unowned | Ownership::Other(_) => None,
        }
    }

    /// Sets or removes a row, and answers who owned it before.
    fn set(&mut self, key: &RowKey, row: Option<Row>) -> Option<ResourceKey> {
        let before = self.owner_of(key);
        self.count_health(key, row.as_ref());
        self.count_hidden(key, row.as_ref());
        self.count_node(key, row.is_some());
        self.count_name(key, false);
        if let Some(owner) = &before
            && let Some(keys) = self.by_owner.get_mut(owner)
        {
            self.owned -= usize::from(keys.remove(key));
            if keys.is_empty() {
                self.by_owner.remove(owner);
            }
        }
        match row {
            Some(mut row) => {
                let key = self.held(key);
                if let Ownership::Ours(owner) = &mut row.ownership {
                    if let Some((known, _)) = self.by_owner.get_key_value(owner) {
                        owner.clone_from(known);
                    }
                    let keys = self.by_owner.entry(owner.clone()).or_default();
                    self.owned += usize::from(keys.insert(key.clone()));
                }
                self.rows.insert(key.clone(), row);
                self.count_name(&key, true);
            }
            None => {
                self.rows.remove(key);
            }
        }
        before
    }

    /// Gives a key whose texts are held once, as far as they are held here.
    fn held(&self, key: &RowKey) -> RowKey {
        if let Some((known, _)) = self.rows.get_key_value(key) {
            return known.clone();
        }
        let node = self.by_node.get_key_value(&key.node).map_or(&key.node, |(node, _)| node);
        RowKey { node: node.clone(), id: key.id.clone() }
    }

    /// Counts the health of a row in place of what stands under its key.
    fn count_health(&mut self, key: &RowKey, row: Option<&Row>) {
        let health = |row: &Row| row.is_ours().then_some(row.health);
        if let Some(health) = self.rows.get(key).and_then(health) {
            let count = self.by_health.entry(health).or_default();
            *count = count.saturating_sub(1);
        }
        if let Some(health) = row.and_then(health) {
            *self.by_health.entry(health).or_default() += 1;
        }
        if let Some(namespace) = self.rows.get(key).and_then(passes_for).cloned()
            && let Some(count) = self.passing.get_mut(&namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.passing.remove(&namespace);
            }
        }
        if let Some(namespace) = row.and_then(passes_for) {
            *self.passing.entry(namespace.clone()).or_default() += 1;
        }
    }

    /// Counts a row if it is hidden, in place of what stands under its key.
    fn count_hidden(&mut self, key: &RowKey, row: Option<&Row>) {
        let is_hidden = |row: &Row| row.is_ours() && !row.shown;
        self.hidden += usize::from(row.is_some_and(is_hidden));
        self.hidden -= usize::from(self.rows.get(key).is_some_and(is_hidden));
    }

    /// Counts a row of a node that comes or goes.
    fn count_node(&mut self, key: &RowKey, comes: bool) {
        match (self.rows.contains_key(key), comes) {
            (false, true) => *self.by_node.entry(key.node.clone()).or_default() += 1,
            (true, false) => {
                let count = self.by_node.entry(key.node.clone()).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.by_node.remove(&key.node);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Counts the name of a row of ours that has come, or that is about to go.
    fn count_name(&mut self, key: &RowKey, comes: bool) {
        let (Some(owner), Some(row)) = (self.owner_of(key), self.rows.get(key)) else { return };
        let (name, checks) = (NameInUse::from(&*row.registration), row.registration.checks.names().len());
        if checks > 0 {
            count(&mut self.checks, &owner, &checks, comes);
        }
        count(&mut self.names, &owner, &name, comes);
    }
}

/// Counts one that has come to a resource, or that goes.
fn count<T: Ord + Clone>(
    all: &mut BTreeMap<ResourceKey, BTreeMap<T, usize>>,
    owner: &ResourceKey,
    one: &T,
    comes: bool,
) {
    let own = all.entry(owner.clone()).or_default();
    let number = own.entry(one.clone()).or_default();
    *number = if comes { *number + 1 } else { number.saturating_sub(1) };
    if *number == 0 {
        own.remove(one);
    }
    if own.is_empty() {
        all.remove(owner);
    }
}

/// The namespace of the resource that a row passes for; none where it is not ours or does not pass.
fn passes_for(row: &Row) -> Option<&Str> {
    match &row.ownership {
        Ownership::Ours(owner) if row.health == Health::Passing => Some(&owner.namespace),
        Ownership::Ours(_) | Ownership::Unowned | Ownership::Other(_) => None,
    }
}

/// Says what an instance's health will be, as far as a write of ours tells: the checks that Consul runs are as they
/// were when we last looked.
fn health_after(registration: &Registration, known: Option<&Row>) -> Health {
    match registration.readiness {
        Some(Health::Passing) | None => {}
        Some(worse) => return worse,
    }
    if registration.checks.names().is_empty() {
        return Health::Passing;
    }
    let Some(known) = known else { return registration.checks.initial() };
    let was_ready = known.registration.readiness.is_none_or(|readiness| readiness == Health::Passing);
    if was_ready { known.health } else { Health::Passing }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::check::Checks;
    use crate::model::ids::{ClusterName, meta};

    #[test]
    fn those_that_pass_are_counted_by_namespace() {
        let row = |owner: Option<&str>, health| {
            let ownership =
                owner.map_or(Ownership::Unowned, |namespace| Ownership::Ours(ResourceKey::new(namespace, "web")));
            Row { registration: Arc::new(Registration::plain("web", "10.0.0.1", 80)), ownership, health, shown: true }
        };
        let key = |id: &str| RowKey { node: "n".into(), id: id.into() };
        let mut mirror = Mirror::default();
        for (id, row, expected) in [
            ("a", Some(row(Some("shop"), Health::Passing)), (1, 0)),
            ("b", Some(row(Some("lab"), Health::Passing)), (1, 1)),
            ("c", Some(row(None, Health::Passing)), (1, 1)),
            ("a", Some(row(Some("shop"), Health::Passing)), (1, 1)),
            ("a", Some(row(Some("lab"), Health::Passing)), (0, 2)),
            ("b", Some(row(Some("lab"), Health::Critical)), (0, 1)),
            ("a", None, (0, 0)),
        ] {
            mirror.set(&key(id), row);
            let besides = |namespace: &str| mirror.passing_besides(&namespace.into(), |_| true);
            assert_eq!((besides("lab"), besides("shop")), expected, "{id}");
            assert_eq!(mirror.passing_besides(&"lab".into(), |_| false), 0);
        }
        assert!(mirror.passing.is_empty());
    }

    #[test]
    fn the_most_checks_of_a_resource_are_known() {
        let owner = ResourceKey::new("shop", "web");
        let key = |id: &str| RowKey { node: "n".into(), id: id.into() };
        let row = |checks: &[&str]| {
            let checks = Checks::read(checks.iter().map(|name| Str::from(*name)).collect());
            let registration = Arc::new(Registration { checks, ..Registration::plain("web", "10.0.0.1", 80) });
            Row { registration, ownership: Ownership::Ours(owner.clone()), health: Health::Passing, shown: true }
        };
        let mut mirror = Mirror::default();
        for (id, row, expected) in [
            ("a", Some(row(&[])), 0),
            ("b", Some(row(&["x", "y"])), 2),
            ("c", Some(row(&["x"])), 2),
            ("b", Some(row(&["x"])), 1),
            ("b", None, 1),
            ("c", None, 0),
        ] {
            mirror.set(&key(id), row);
            assert_eq!(mirror.most_checks(&owner), expected, "{id}");
        }
        assert!(mirror.checks.is_empty(), "nothing is held of what is gone");
    }

    #[test]
    fn an_update_of_a_check_does_not_show_what_was_not_shown() {
        let identity = Identity { cluster: ClusterName::new("c").unwrap(), uid: "u".into() };
        let key = RowKey { node: "n".into(), id: "c:shop:user:user:u1:80".into() };
        // Only rows of ours are hidden, and those carry our mark.
        let mark = [(meta::CLUSTER, "c"), (meta::CLUSTER_UID, "u")];
        let registration = |readiness| {
            let meta = mark.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            let plain = Registration::plain("user", "10.0.0.1", 80);
            Arc::new(Registration { readiness: Some(readiness), meta, ..plain })
        };
        let put = |readiness| {
            let registration = registration(readiness);
            Op::Register { key: key.clone(), registration, drop_checks: Vec::new() }
        };
        let update = |readiness| Op::Readiness { key: key.clone(), registration: registration(readiness) };
        let mut mirror = Mirror::default();
        for (op, acknowledged, expected) in [
            (put(Health::Critical), false, false),
            (update(Health::Passing), true, false),
            (put(Health::Passing), true, true),
            (update(Health::Critical), true, true),
            (update(Health::Passing), false, false),
        ] {
            mirror.acknowledge(&identity, &op, acknowledged);
            assert_eq!(mirror.row(&key).map(|row| row.shown), Some(expected), "{op:?}");
            assert_eq!(mirror.has_hidden(), !expected, "{op:?}");
        }
    }
}

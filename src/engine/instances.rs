//! The instances of each namespace, for the budget that its resources have together.
//!
//! In: what Consul has of each resource, and what each decision comes to. Out: how many others have, and who may have room now.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Share;
use crate::model::ids::{ResourceKey, Str};

/// The instances of all resources.
#[derive(Debug, Default)]
pub(crate) struct AllInstances(BTreeMap<Str, OfNamespace>);

#[derive(Debug, Default)]
struct OfNamespace {
    /// The sum of all.
    instances: usize,
    of: BTreeMap<ResourceKey, Own>,
    /// The resources of which some are left out.
    cut: BTreeSet<ResourceKey>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    /// Those that Consul has.
    there: usize,
    /// Those that it is to have.
    desired: usize,
}

impl Own {
    fn instances(self) -> usize {
        self.there.max(self.desired)
    }
}

impl AllInstances {
    /// The instances of the other resources of a namespace.
    pub(crate) fn of_others(&self, key: &ResourceKey) -> usize {
        let of_namespace = self.0.get(&key.namespace);
        of_namespace.map_or(0, |all| all.instances - all.of.get(key).map_or(0, |own| own.instances()))
    }

    /// Notes how many instances Consul has of a resource. Gives the resources that may have room now.
    pub(crate) fn note_there(&mut self, key: &ResourceKey, there: usize) -> BTreeSet<ResourceKey> {
        self.note(key, |own| own.there = there)
    }

    /// Notes what a decision about a resource comes to. Gives the resources that may have room now.
    pub(crate) fn note_share(&mut self, key: &ResourceKey, share: Option<Share>) -> BTreeSet<ResourceKey> {
        if share.is_none() && !self.0.contains_key(&key.namespace) {
            return BTreeSet::new();
        }
        let mut has_room = self.note(key, |own| own.desired = share.map_or(0, |share| share.desired));
        has_room.remove(key);
        if share.is_some_and(|share| share.is_cut) {
            self.0.entry(key.namespace.clone()).or_default().cut.insert(key.clone());
        } else if let Some(all) = self.0.get_mut(&key.namespace) {
            all.cut.remove(key);
            if all.of.is_empty() && all.cut.is_empty() {
                self.0.remove(&key.namespace);
            }
        }
        has_room
    }

    fn note(&mut self, key: &ResourceKey, change: impl FnOnce(&mut Own)) -> BTreeSet<ResourceKey> {
        let all = self.0.entry(key.namespace.clone()).or_default();
        let mut own = all.of.get(key).copied().unwrap_or_default();
        let before = own.instances();
        change(&mut own);
        all.instances = all.instances - before + own.instances();
        if own == Own::default() {
            all.of.remove(key);
        } else {
            all.of.insert(key.clone(), own);
        }
        let has_room = if own.instances() < before { std::mem::take(&mut all.cut) } else { BTreeSet::new() };
        if all.of.is_empty() && all.cut.is_empty() {
            self.0.remove(&key.namespace);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instances_count_that_are_there_or_are_to_be_and_who_was_cut_hears_of_room() {
        enum Now {
            There(usize),
            Desired(usize),
            Cut(usize),
            Gone,
        }
        use Now::{Cut, Desired, Gone, There};
        let key = |name: &str| ResourceKey::new("shop", name);
        let mut all = AllInstances::default();
        for (name, now, of_others, has_room) in [
            ("a", There(3), 0, &[][..]),
            ("b", Desired(2), 3, &[]),
            ("b", There(2), 3, &[]),
            ("c", Cut(1), 5, &[]),
            ("a", Desired(5), 3, &[]),
            ("a", Desired(2), 3, &["c"]),
            ("c", Cut(1), 5, &[]),
            ("b", There(1), 4, &[]),
            ("b", Desired(1), 4, &["c"]),
            ("c", Desired(1), 4, &[]),
            ("a", Gone, 2, &[]),
            ("a", There(0), 2, &[]),
            ("b", There(0), 1, &[]),
            ("b", Gone, 1, &[]),
            ("c", Gone, 0, &[]),
        ] {
            assert_eq!(all.of_others(&key(name)), of_others, "{name}");
            assert_eq!(all.of_others(&ResourceKey::new("lab", name)), 0);
            let share = |desired, is_cut| Some(Share { desired, is_cut });
            let found = match now {
                There(there) => all.note_there(&key(name), there),
                Desired(desired) => all.note_share(&key(name), share(desired, false)),
                Cut(desired) => all.note_share(&key(name), share(desired, true)),
                Gone => all.note_share(&key(name), None),
            };
            assert_eq!(found, has_room.iter().map(|name| key(name)).collect(), "{name}");
        }
        assert!(all.0.is_empty(), "nothing is held of what is gone: {all:?}");
    }
}

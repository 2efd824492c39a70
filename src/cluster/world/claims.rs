//! Whose a name in Consul is, where resources of several namespaces want it.
//!
//! The resource that was last acted under a name keeps it, so that nobody takes a name over by an edit; among those
//! that were not, the older one has it. Others of its namespace share it. Consul compares names without case, and
//! so is done here.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::Entry;
use super::index::unlink;
use super::{Dirt, Dirtied, World};
use crate::model::names::{ResourceKey, Str};

/// Resources by the names that they want or have, and the other way round.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_name: BTreeMap<Str, BTreeSet<ResourceKey>>,
    names_of: BTreeMap<ResourceKey, BTreeSet<Str>>,
}

/// Of two claims to a name the lesser one has it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'a> {
    /// Whether the resource was not acted under the name before.
    is_new: bool,
    /// When it was made.
    created: i64,
    /// Which it is.
    key: &'a ResourceKey,
}

impl Claims {
    /// Puts these names in place of those that a resource had; gives all of them.
    fn replace(&mut self, key: &ResourceKey, new: BTreeSet<Str>) -> BTreeSet<Str> {
        let old = self.names_of.remove(key).unwrap_or_default();
        for name in old.difference(&new) {
            unlink(&mut self.by_name, name, key);
        }
        for name in new.difference(&old) {
            self.by_name.entry(name.clone()).or_default().insert(key.clone());
        }
        let all = old.union(&new).cloned().collect();
        if !new.is_empty() {
            self.names_of.insert(key.clone(), new);
        }
        all
    }

    fn of(&self, name: &Str) -> impl Iterator<Item = &ResourceKey> {
        self.by_name.get(name).into_iter().flatten()
    }
}

/// A name as it is compared.
pub(super) fn compared(name: &str) -> Str {
    name.to_lowercase().into()
}

impl World {
    /// Notes which names a resource wants or has; gives those, and the ones that it wanted or had before.
    pub(super) fn claim(&mut self, key: &ResourceKey) -> BTreeSet<Str> {
        let entry = self.resources.get(key).filter(|entry| entry.resource.ours);
        let asked = entry.and_then(Entry::asked);
        if asked.is_none() {
            self.rivals.remove(key);
        }
        let new = asked.into_iter().chain(entry.and_then(|entry| entry.granted.clone())).collect();
        self.claims.replace(key, new)
    }

    /// Says of all who ask for a name whether they may have it; gives those of whom that is news.
    pub(super) fn judge(&mut self, name: &Str) -> Vec<ResourceKey> {
        let claimants: Vec<(&ResourceKey, &Entry)> =
            self.claims.of(name).filter_map(|key| Some((key, self.resources.get(key)?))).collect();
        let claims = claimants.iter().map(|(key, entry)| Claim {
            is_new: entry.granted.as_ref() != Some(name),
            created: entry.resource.created,
            key,
        });
        let Some(holder) = claims.min().map(|claim| claim.key.clone()) else { return Vec::new() };
        let asking = claimants.into_iter().filter(|(_, entry)| entry.asked().as_ref() == Some(name));
        let judged: Vec<(ResourceKey, Option<ResourceKey>)> = asking
            .map(|(key, entry)| {
                let shares = entry.last_good.as_ref().is_some_and(|spec| spec.limits.shares_name);
                (key.clone(), (key.namespace != holder.namespace && !shares).then(|| holder.clone()))
            })
            .collect();
        let mut moved = Vec::new();
        for (key, rival) in judged {
            let known = match rival.clone() {
                Some(rival) => self.rivals.insert(key.clone(), rival),
                None => self.rivals.remove(&key),
            };
            if known != rival {
                moved.push(key);
            }
        }
        moved
    }

    /// Notes that a resource is acted on as it is: the name is its own from now on. Gives the resources that this
    /// concerns.
    pub fn act(&mut self, key: &ResourceKey) -> Vec<Dirtied> {
        let mut dirt = Dirt::default();
        if let Some(entry) = self.resources.get_mut(key)
            && !entry.resource.deleting
            && !entry.resource.paused
            && !self.rivals.contains_key(key)
            && let Some(asked) = entry.asked()
        {
            entry.acted.clone_from(&entry.last_good);
            if entry.granted.as_ref() != Some(&asked) {
                entry.granted = Some(asked);
                self.link(key, &mut dirt);
            }
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Whose the name is that a resource asks for, where that is a resource of another namespace.
    #[must_use]
    pub fn rival(&self, key: &ResourceKey) -> Option<&ResourceKey> {
        self.rivals.get(key)
    }
}

//! Whose a name in Consul is, where resources of several namespaces want it.
//!
//! Who has rows of a name in Consul holds it, so that no edit, no restart and no restore of resources takes it away.
//! Of several, and without rows, whoever was last acted under it keeps it. Among those that never were, the older one has it, of those
//! that could be registered now. Others of its namespace share it. Consul compares names without case, and so is done
//! here.
//!
//! A resource whose rows of a name are about to go does not hold it any more: the next one is registered before they
//! do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{Entry, Granted, GrantedBy, compared};
use super::index::unlink;
use super::{Dirt, Dirtied, World};
use crate::model::ids::{ResourceKey, Str};
use crate::model::registration::NameInUse;
use crate::model::resolve::{Before, Resolution, resolve};
use crate::model::resource::{PODS, Source, Spec};

/// Resources by the names that they want or have, and the other way round.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_name: BTreeMap<Str, BTreeSet<ResourceKey>>,
    names_of: BTreeMap<ResourceKey, BTreeSet<Str>>,
}

/// Says how a resource stands to a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own, and `basis` weighs them")]
pub(super) struct Standing {
    /// True if it asks for the name.
    pub(super) asks: bool,
    /// True if Consul has rows of it under the name.
    pub(super) has_rows: bool,
    /// True if these rows go, as soon as they may: nothing of it is to be under the name.
    pub(super) leaves: bool,
    /// True if Consul may have rows of it under the name, since a registration has no answer, and these would stay.
    pub(super) may_have_rows: bool,
    /// Says by whom it was acted on under the name; none if it was not.
    pub(super) granted: Option<GrantedBy>,
    /// True if it could be registered under the name now.
    pub(super) is_able: bool,
}

/// Says what a claim to a name rests on. The lesser outweighs the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Basis {
    /// It has rows or may have them, wants to have them, and was acted on under the name.
    RowsAndGrant(GrantedBy),
    /// It has rows, and wants to have them.
    RowsAndWish,
    /// It has rows that stay, although it asks for another name, or for none; or it may have such, as nobody can tell yet.
    Rows,
    /// It was acted under the name.
    Granted(GrantedBy),
    /// The resource asks for the name.
    Wish,
}

impl Standing {
    /// Says what a claim rests on; none where there is none.
    pub(super) fn basis(self) -> Option<Basis> {
        if self.leaves {
            return None;
        }
        match (self.has_rows, self.granted) {
            // What is being registered counts: the rows of another one may be about to go for it.
            (_, Some(by)) if self.asks && (self.has_rows || self.may_have_rows) => Some(Basis::RowsAndGrant(by)),
            (true, _) => Some(if self.asks { Basis::RowsAndWish } else { Basis::Rows }),
            (false, Some(by)) => Some(Basis::Granted(by)),
            (false, None) if self.may_have_rows => Some(Basis::Rows),
            (false, None) => (self.asks && self.is_able).then_some(Basis::Wish),
        }
    }
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

    /// The names that a resource wants or has, of those that resources of several namespaces do.
    fn contested_by(&self, key: &ResourceKey) -> impl Iterator<Item = &Str> {
        self.names_of.get(key).into_iter().flatten().filter(|name| self.is_contested(name))
    }

    fn is_contested(&self, name: &Str) -> bool {
        let mut claimants = self.of(name);
        claimants.next().is_some_and(|first| claimants.any(|other| other.namespace != first.namespace))
    }
}

impl World {
    /// Notes which names a resource wants or has; gives those, and the ones that it wanted or had before.
    pub(super) fn claim(&mut self, key: &ResourceKey) -> BTreeSet<Str> {
        let entry = self.resources.get(key).filter(|entry| entry.resource.ours);
        let asked = entry.and_then(Entry::asked);
        if asked.is_none() {
            self.rivals.remove(key);
        }
        let granted = entry.and_then(Entry::granted_name).cloned();
        let in_use = self.rows.get(key).into_iter().flatten().map(|name| compared(&name.service));
        let in_doubt = self.in_doubt.get(key).into_iter().flatten().cloned();
        let new = asked.into_iter().chain(granted).chain(in_use).chain(in_doubt).collect();
        self.claims.replace(key, new)
    }

    /// Says of all who ask for a name whether they may have it; gives those of whom that is news.
    pub(super) fn judge(&mut self, name: &Str) -> Vec<ResourceKey> {
        let holder = self.holder(name);
        let asks = |key: &&ResourceKey| self.asks(key, name);
        let asking: Vec<ResourceKey> = self.claims.of(name).filter(asks).cloned().collect();
        let mut moved = Vec::new();
        for key in asking {
            let shares = self.resources.get(&key).is_some_and(shares_names);
            let rival = holder.clone().filter(|holder| holder.namespace != key.namespace && !shares);
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

    /// The names that a resource wants or has and that are contested. What its source comes to may decide on them.
    pub(super) fn contested_names(&self, key: &ResourceKey) -> BTreeSet<Str> {
        self.claims.contested_by(key).cloned().collect()
    }

    /// Says who has a name that resources of several namespaces want or have.
    fn holder(&self, name: &Str) -> Option<ResourceKey> {
        if !self.claims.is_contested(name) {
            return None;
        }
        let claims = self.claims.of(name).filter_map(|key| {
            let created = self.resources.get(key).map_or(i64::MAX, |entry| entry.resource.created);
            Some((self.standing(key, name).basis()?, created, key))
        });
        claims.min().map(|(_, _, key)| key.clone())
    }

    fn asks(&self, key: &ResourceKey, name: &Str) -> bool {
        self.resources.get(key).and_then(Entry::asked).as_ref() == Some(name)
    }

    /// Says how a resource stands to a name.
    fn standing(&self, key: &ResourceKey, name: &Str) -> Standing {
        let has_rows = self.has_rows(key, name);
        let is_in_doubt = self.in_doubt.get(key).is_some_and(|names| names.contains(name));
        let Some(entry) = self.resources.get(key) else {
            let leaves = self.ending.contains(key);
            return Standing { has_rows, leaves, may_have_rows: is_in_doubt && !leaves, ..Standing::default() };
        };
        let asks = !entry.resource.deleting && self.asks(key, name);
        let granted = entry.granted.as_ref().filter(|granted| granted.name == *name && !entry.resource.deleting);
        // One that goes on by rows of another name has no use for this one.
        let granted = granted.filter(|_| asks || !self.rows.contains_key(key));
        Standing {
            asks,
            has_rows,
            leaves: has_rows && self.leaves(key, entry, name),
            may_have_rows: is_in_doubt && !self.leaves(key, entry, name),
            granted: granted.map(|granted| granted.by),
            // What decides already is not looked for.
            is_able: asks && !has_rows && granted.is_none() && self.is_able(key, entry),
        }
    }

    fn has_rows(&self, key: &ResourceKey, name: &Str) -> bool {
        self.rows.get(key).into_iter().flatten().any(|in_use| compared(&in_use.service) == *name)
    }

    /// Says whether a resource's rows under a name are to go.
    fn leaves(&self, key: &ResourceKey, entry: &Entry, name: &Str) -> bool {
        if !entry.resource.ours {
            // With our finalizer on it, it was ours until its class was changed.
            return entry.resource.has_finalizer();
        }
        if entry.resource.paused {
            return false;
        }
        if entry.resource.deleting {
            return self.ending.contains(key);
        }
        let Some(asked) = entry.asked().filter(|asked| asked != name) else { return false };
        // A name is left for one that it has: where Consul refuses the new one, the old one goes on.
        entry.granted_name() == Some(&asked) && (self.has_rows(key, &asked) || self.comes_to_nothing(key, entry))
    }

    /// Says whether a resource could be registered by what it asks for. Until all that tells was listed it may be:
    /// which list comes first decides nothing.
    fn is_able(&self, key: &ResourceKey, entry: &Entry) -> bool {
        let Ok(spec) = &entry.resource.spec else { return false };
        let is_frozen = !entry.resource.ours || entry.resource.deleting || entry.resource.paused;
        !is_frozen
            && (self.lacks_list(key, &spec.needs()).is_some() || self.resolve(key, entry, spec).unresolved.is_none())
    }

    /// Resolves a source, whatever is registered: whoever has rows goes by those.
    fn resolve(&self, key: &ResourceKey, entry: &Entry, spec: &Spec) -> Resolution {
        resolve(spec, &self.facts(key), &Before::of(Some(&entry.resource), std::iter::empty()))
    }

    /// Says whether a resource's source was found, and has no instance.
    fn comes_to_nothing(&self, key: &ResourceKey, entry: &Entry) -> bool {
        let Some(spec) = entry.last_good.as_ref().filter(|spec| self.lacks_list(key, &spec.needs()).is_none()) else {
            return false;
        };
        let resolution = self.resolve(key, entry, spec);
        resolution.unresolved.is_none() && resolution.instances.is_empty()
    }

    /// The resources that were last acted under a name, and ask for one that is another namespace's.
    pub(super) fn going_on_under(&self, name: &Str) -> impl Iterator<Item = &ResourceKey> {
        let is_granted = |key: &&ResourceKey| self.resources.get(key).and_then(Entry::granted_name) == Some(name);
        self.claims.of(name).filter(|key| self.rivals.contains_key(*key)).filter(is_granted)
    }

    /// Gives the spec that a resource goes on by while the name that it asks for is another's: what it asks for, under
    /// the name that it has rows of or, unless another namespace has that one by now, was last acted under. None where
    /// it has nothing.
    pub(super) fn spec_without_its_name(&self, key: &ResourceKey) -> Option<Arc<Spec>> {
        let entry = self.resources.get(key)?;
        let (spec, asked) = (entry.last_good.as_ref()?, entry.asked()?);
        let granted = entry.granted_name().filter(|granted| **granted != asked);
        let rows = || self.rows.get(key).into_iter().flatten();
        let in_use = rows().min_by_key(|in_use| {
            let name = compared(&in_use.service);
            (granted != Some(&name), name == asked, name)
        });
        let (service, source) = match (in_use, granted) {
            (Some(in_use), _) => {
                let of_name = rows().filter(|other| compared(&other.service) == compared(&in_use.service));
                let mut sources = of_name.filter_map(|in_use| in_use.source.as_ref());
                let service = in_use.service.clone();
                match source_in_use(spec, sources.clone()) {
                    Some(source) => (service, source),
                    None if sources.any(|source| **source == *PODS) => {
                        return Some(Arc::new(spec.only_keeping_pods(service)));
                    }
                    None => return None,
                }
            }
            (None, Some(granted)) => {
                if self.holder(granted).is_some_and(|holder| holder.namespace != key.namespace) {
                    return None;
                }
                let before = self.rows_before.get(key).into_iter().flatten();
                let of_name = before.filter(|in_use| compared(&in_use.service) == *granted);
                let mut sources = of_name.filter_map(|in_use| in_use.source.as_ref()).peekable();
                let source = match sources.peek() {
                    None => spec.source.clone(),
                    Some(_) => source_in_use(spec, sources)?,
                };
                (entry.as_written(granted), source)
            }
            (None, None) => return None,
        };
        Some(Arc::new(Spec { service, source, ..(**spec).clone() }))
    }

    /// Notes what rows Consul has of a resource. Gives the resources that this concerns.
    pub fn note_rows(&mut self, key: &ResourceKey, names: BTreeSet<NameInUse>) -> Vec<Dirtied> {
        let known = self.rows.get(key);
        if !self.watches(&key.namespace) || known.map_or(names.is_empty(), |known| *known == names) {
            return Vec::new();
        }
        let before = if names.is_empty() { self.rows.remove(key) } else { self.rows.insert(key.clone(), names) };
        let is_there = self.resources.get(key).is_some();
        match before.filter(|_| is_there && !self.rows.contains_key(key)) {
            Some(before) => _ = self.rows_before.insert(key.clone(), before),
            None => _ = self.rows_before.remove(key),
        }
        if !is_there && !self.rows.contains_key(key) {
            self.ending.remove(key);
        }
        self.link_alone(key)
    }

    /// Notes under which names Consul may have rows of a resource besides those that were noted: registrations have no
    /// answer. Gives the resources that this concerns.
    pub fn note_doubt(&mut self, key: &ResourceKey, names: &BTreeSet<Str>) -> Vec<Dirtied> {
        let names: BTreeSet<Str> = names.iter().map(|name| compared(name)).collect();
        if !self.watches(&key.namespace) || self.in_doubt.get(key).map_or(names.is_empty(), |known| *known == names) {
            return Vec::new();
        }
        self.in_doubt.remove(key);
        if !names.is_empty() {
            self.in_doubt.insert(key.clone(), names);
        }
        let names = self.claim(key);
        let mut dirt = Dirt::default();
        let concerned = self.judge_names(&names, &mut dirt);
        self.relink(&concerned, &mut dirt);
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Notes whether all rows that Consul has were noted, and are as they were. When they come to be, everything may be
    /// decided anew.
    pub fn know_rows(&mut self, known: bool) {
        let is_news = known && !self.rows_are_known;
        self.rows_are_known = known;
        // All resources are decided about anew.
        let mut dirt = Dirt::default();
        if is_news && !self.rows_were_known && self.policy.has_budgets() {
            self.share_by_rows(&mut dirt);
        } else if is_news && (self.policy.asks_for_others() || self.policy.has_budgets()) {
            self.judge_all(&mut dirt);
        }
        self.rows_were_known |= known;
    }

    /// The resources that have rows in Consul, as noted.
    pub fn with_rows(&self) -> impl Iterator<Item = &ResourceKey> {
        self.rows.keys()
    }

    /// Notes that a resource that is deleted or gone has come to its end by itself: its rows go, and its names are
    /// free. Gives the resources that this concerns.
    pub fn ends(&mut self, key: &ResourceKey) -> Vec<Dirtied> {
        let is_there = self.resources.get(key).is_some_and(|entry| !entry.resource.deleting);
        if is_there || !self.ending.insert(key.clone()) {
            return Vec::new();
        }
        self.link_alone(key)
    }

    /// Notes that a resource is acted on as it is: the name is its own from now on, if its source was found. Gives the
    /// resources that this concerns.
    pub fn act(&mut self, key: &ResourceKey) -> Vec<Dirtied> {
        let Some(entry) = self.resources.get(key) else { return Vec::new() };
        let is_frozen = entry.resource.deleting || entry.resource.paused;
        let Some(asked) = entry.asked().filter(|_| !is_frozen && !self.rivals.contains_key(key)) else {
            return Vec::new();
        };
        let shares = shares_names(entry);
        let granted = Granted { name: asked, by: GrantedBy::Act };
        let is_its_own = entry.granted_name() == Some(&granted.name) || self.has_rows(key, &granted.name);
        if entry.granted.as_ref() == Some(&granted) || !is_its_own && !self.is_able(key, entry) {
            return Vec::new();
        }
        if !shares {
            self.outdate_acts(key, &granted.name);
        }
        if let Some(entry) = self.resources.get_mut(key) {
            entry.granted = Some(granted);
        }
        self.link_alone(key)
    }

    /// Notes of the resources of other namespaces that were acted on under this name that `key` was since. Such there
    /// are where rows took the name from them: once the rows are gone, it stays with whoever was acted on last.
    fn outdate_acts(&mut self, key: &ResourceKey, name: &Str) {
        for other in self.claims.of(name).filter(|other| other.namespace != key.namespace) {
            let granted = self.resources.get_mut(other).and_then(|entry| entry.granted.as_mut());
            if let Some(granted) = granted.filter(|granted| granted.name == *name && granted.by == GrantedBy::Act) {
                granted.by = GrantedBy::EarlierAct;
            }
        }
    }

    fn link_alone(&mut self, key: &ResourceKey) -> Vec<Dirtied> {
        let mut dirt = Dirt::default();
        self.link(key, &mut dirt);
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Counts the resources that have rows in Consul and nothing to go by, so that the rows stay as they are.
    #[must_use]
    pub fn frozen(&self) -> Frozen {
        let mut frozen = Frozen::default();
        for key in self.rows.keys().filter(|key| self.effective_spec(key).is_none()) {
            let Some(resource) = self.resources.get(key).map(|entry| &entry.resource) else { continue };
            if !resource.ours || resource.deleting || resource.paused {
                continue;
            }
            let count = if self.rivals.contains_key(key) { &mut frozen.by_name } else { &mut frozen.by_spec };
            *count += 1;
        }
        frozen
    }

    /// Says whose the name is that a resource asks for, where that is a resource of another namespace.
    #[must_use]
    pub fn rival(&self, key: &ResourceKey) -> Option<&ResourceKey> {
        self.rivals.get(key)
    }

    /// Says whether nobody can tell yet whose the name is that a resource asks for: others want it, and what rows
    /// Consul has is not known.
    #[must_use]
    pub fn is_undecided(&self, key: &ResourceKey) -> bool {
        let asked = self.resources.get(key).and_then(Entry::asked);
        !self.rows_are_known && asked.is_some_and(|asked| self.claims.is_contested(&asked))
    }

    /// The resources that have this name from now on, where the rows of `key` under it are to go and the name is another
    /// namespace's: all that ask for it and may have it, since any of them may be the one that has instances.
    #[must_use]
    pub fn successors(&self, key: &ResourceKey, service: &str) -> BTreeSet<ResourceKey> {
        let name = compared(service);
        let is_passed_on = self.holder(&name).is_some_and(|holder| {
            holder.namespace != key.namespace && self.standing(key, &name).leaves && self.asks(&holder, &name)
        });
        let may_have = |other: &&ResourceKey| {
            other.namespace != key.namespace && self.asks(other, &name) && !self.rivals.contains_key(*other)
        };
        self.claims.of(&name).filter(|_| is_passed_on).filter(may_have).cloned().collect()
    }

    /// The resources of other namespaces whose rows under the name that `key` asks for are to go, where it may have the name.
    #[must_use]
    pub fn predecessors(&self, key: &ResourceKey) -> Vec<ResourceKey> {
        let asked = self.resources.get(key).and_then(Entry::asked).filter(|_| !self.rivals.contains_key(key));
        let Some(name) = asked.filter(|name| self.claims.is_contested(name)) else { return Vec::new() };
        let others = self.claims.of(&name).filter(|other| other.namespace != key.namespace);
        let leaves = |other: &&ResourceKey| self.has_rows(other, &name) && self.standing(other, &name).leaves;
        others.filter(leaves).cloned().collect()
    }
}

/// Counts resources whose rows stay as they are, whatever happens to their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// The name is another namespace's, and what the rows came from nobody knows.
    pub by_name: usize,
    /// The spec is refused, and no earlier one is known.
    pub by_spec: usize,
}

/// The source to go on by, of rows that came from these: the one that is asked for or, where that is another one, the
/// Service that they name. Which pods were asked for nobody knows any more, nor which static addresses.
fn source_in_use<'a>(spec: &Spec, mut sources: impl Iterator<Item = &'a Str> + Clone) -> Option<Source> {
    let asked = spec.source.to_string();
    if sources.clone().any(|source| **source == asked) {
        return Some(spec.source.clone());
    }
    sources.find_map(|source| Some(Source::Service { name: source.strip_prefix("service/")?.into() }))
}

fn shares_names(entry: &Entry) -> bool {
    entry.last_good.as_ref().is_some_and(|spec| spec.limits.shares_name)
}

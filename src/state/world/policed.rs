//! How a World holds its resources to the administrator's policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{Entry, Names, compared};
use super::{Dirt, Dirtied, World};
use crate::model::cause::Cause;
use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::{LEAST_BYTES, Place, Policy};
use crate::model::registration::NameInUse;
use crate::model::resource::Resource;
use crate::model::selector::Labels;
use crate::state::event::{Kind, ObjectKey, Scope, Step};
use crate::state::table::{Moved, Outcome, Table};

/// The watch of the labels of namespaces.
pub const LABELS: (Kind, Scope) = (Kind::Namespace, Scope::All);

/// Gives the labels of a namespace; none until all namespaces were listed, and of one that was not seen yet.
pub(super) fn labels_of<'a>(namespaces: &'a Table<Labels>, namespace: &Str) -> Option<&'a Labels> {
    namespaces.get(&ObjectKey::new("", namespace)).filter(|_| namespaces.is_listed(&Scope::All))
}

/// Gives what is known of the names in Consul.
pub(super) fn names<'a>(
    others: Option<&'a BTreeSet<Str>>,
    rows: &'a BTreeMap<ResourceKey, BTreeSet<NameInUse>>,
    rows_are_known: bool,
) -> Names<'a> {
    Names { others, rows: Some(rows).filter(|_| rows_are_known) }
}

/// Gives what a budget counts a resource by: its age and the bytes that it takes, if it is one of this operator's.
pub(super) fn counts(entry: Option<&Entry>) -> Option<(i64, &Str, usize)> {
    let resource = &entry.filter(|entry| entry.resource.ours)?.resource;
    Some((resource.created, &resource.uid, bytes(resource)))
}

/// The bytes that a resource counts as: those of its spec, and at least what is held of each besides.
fn bytes(resource: &Resource) -> usize {
    resource.bytes.max(LEAST_BYTES)
}

/// Gives the place of a resource that a first list tells of. Which are the oldest only the whole list tells; until then
/// those have the bytes that come first, so that no list fills the memory.
pub(super) fn place_in_list(listed: &mut usize, resource: &Resource, policy: &Policy) -> Place {
    *listed = listed.saturating_add(if resource.ours { bytes(resource) } else { 0 });
    if *listed > policy.namespace_bytes { Place::TooLarge } else { Place::Unknown }
}

impl World {
    /// The policy that resources are held to.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Gives the labels of a namespace, as far as they are known.
    #[must_use]
    pub fn labels_of(&self, namespace: &Str) -> Option<&Labels> {
        labels_of(&self.namespaces, namespace)
    }

    /// Says whether a policy asks for labels of namespaces, one that waits for them included.
    pub(super) fn asks_for_labels(&self) -> bool {
        [Some(&self.policy), self.awaited.as_ref()].into_iter().flatten().any(|policy| policy.asks_for_labels())
    }

    /// Holds resources to this policy from now on; where it asks for labels that were not listed yet, as soon as they are,
    /// and until then to the one before. Gives the resources that this concerns.
    pub fn follow(&mut self, policy: Arc<Policy>) -> Vec<Dirtied> {
        let asked = self.asks_for_labels();
        let mut dirt = Dirt::default();
        if policy.asks_for_labels() && !self.namespaces.is_listed(&Scope::All) {
            self.awaited = Some(policy);
        } else {
            (self.policy, self.awaited) = (policy, None);
            self.judge_all(&mut dirt);
        }
        if !self.asks_for_others() {
            self.others = None;
        }
        if asked != self.asks_for_labels() {
            self.wants.note_news();
            self.forget(LABELS.0, &LABELS.1);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Says whether the policy asks for the names that others have in Consul.
    #[must_use]
    pub fn asks_for_others(&self) -> bool {
        self.policy.asks_for_others()
    }

    /// Says whether the policy asks for the names that others have, and nobody can tell them.
    #[must_use]
    pub fn lacks_others(&self) -> bool {
        self.asks_for_others() && self.others.is_none()
    }

    /// Notes the names that others than this Lictor have in Consul, in any case of letters; none where Consul does not tell
    /// all of them. Gives the resources that this concerns.
    pub fn know_others(&mut self, others: Option<BTreeSet<Str>>) -> Vec<Dirtied> {
        let others = others.map(|names| names.iter().map(|name| compared(name)).collect());
        let before = std::mem::replace(&mut self.others, others);
        let mut dirt = Dirt::default();
        let asks = |entry: &Entry| entry.asked_spec.as_ref().ok().map(|spec| compared(&spec.service));
        let is_moved = |name: Str| match (&before, &self.others) {
            (Some(before), Some(now)) => before.contains(&name) != now.contains(&name),
            (before, now) => before.is_some() != now.is_some(),
        };
        let moved = self.resources.iter().filter(|(_, entry)| asks(entry).is_some_and(is_moved));
        for key in moved.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.judge_anew(&key, None, &mut dirt);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Gives the watches that have to list again, since a spec was dropped that there is room for now.
    pub fn take_lists(&mut self) -> BTreeSet<(Kind, Scope)> {
        std::mem::take(&mut self.to_list)
    }

    pub(super) fn apply_namespace(&mut self, scope: &Scope, step: Step<Labels>, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.namespaces.apply(scope, step);
        if first_list_done {
            self.policy = self.awaited.take().unwrap_or_else(|| Arc::clone(&self.policy));
            self.judge_all(dirt);
            return true;
        }
        for Moved { key, .. } in moved {
            // Of one that is gone, the resources are going as well: what they may does not matter any more.
            if self.namespaces.get(&key).is_none() {
                continue;
            }
            let of_it: Vec<ResourceKey> = self.resources.of_namespace(&key.name).map(|(key, _)| key.clone()).collect();
            for resource in &of_it {
                self.judge_anew(resource, None, dirt);
            }
            self.share_budget(&key.name, dirt);
        }
        false
    }

    /// Asks the policy again about all resources.
    pub(super) fn judge_all(&mut self, dirt: &mut Dirt) {
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        for key in &keys {
            self.judge_anew(key, None, dirt);
        }
        let namespaces: BTreeSet<Str> = keys.into_iter().map(|key| key.namespace).collect();
        for namespace in &namespaces {
            self.share_budget(namespace, dirt);
        }
    }

    /// Says which resources of a namespace its budget has room for: the oldest.
    pub(super) fn share_budget(&mut self, namespace: &Str, dirt: &mut Dirt) {
        let most = self.policy.most_resources(namespace, self.labels_of(namespace));
        // Until all are listed nobody can tell which are the oldest.
        let is_listed = self.scopes.iter().any(|scope| scope.covers(namespace) && self.resources.is_listed(scope));
        if !is_listed {
            return;
        }
        let of_namespace = self.resources.of_namespace(namespace);
        let mut by_age: Vec<_> = of_namespace.filter_map(|(key, entry)| Some((counts(Some(entry))?, key))).collect();
        by_age.sort_unstable();
        let mut bytes = 0_usize;
        let moved = by_age.iter().enumerate().filter_map(|(rank, ((_, _, own), key))| {
            bytes = bytes.saturating_add(*own);
            let place = match most {
                _ if bytes > self.policy.namespace_bytes => Place::TooLarge,
                Some(most) if rank >= most => Place::TooMany,
                _ => Place::Fits,
            };
            self.resources.get(key).is_some_and(|entry| entry.place != place).then(|| ((*key).clone(), place))
        });
        for (key, place) in moved.collect::<Vec<_>>() {
            self.judge_anew(&key, Some(place), dirt);
        }
    }

    /// Asks the policy again about a resource.
    fn judge_anew(&mut self, key: &ResourceKey, place: Option<Place>, dirt: &mut Dirt) {
        let policy = Arc::clone(&self.policy);
        let labels = labels_of(&self.namespaces, &key.namespace);
        let names = names(self.others.as_ref(), &self.rows, self.rows_are_known);
        let Some(entry) = self.resources.get_mut(key) else { return };
        let before = (entry.resource.spec.clone(), entry.last_good.clone(), entry.deletion());
        let before_place = entry.place;
        entry.place = place.unwrap_or(before_place);
        if (before_place, entry.place) == (Place::Unknown, Place::TooLarge) {
            // It was never acted by.
            entry.last_good = None;
        }
        if entry.is_dropped && entry.place != Place::TooLarge {
            let scopes = self.scopes.iter().filter(|scope| scope.covers(&key.namespace));
            self.to_list.extend(scopes.map(|scope| (Kind::Resource, scope.clone())));
            return;
        }
        entry.judge(&policy, labels, names);
        if (&before.0, &before.1, before.2) != (&entry.resource.spec, &entry.last_good, entry.deletion()) {
            dirt.add(key, Some(Cause::Observed));
            self.link(key, dirt);
        }
    }
}

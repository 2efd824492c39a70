//! How a World holds its resources to the administrator's policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{Claims, Entry, Names, compared};
use super::{Dirt, Dirtied, World};
use crate::model::cause::Cause;
use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::{Budget, Claim, LEAST_BYTES, Place, Policy, granted};
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

/// Gives what a budget counts a resource by: its age, and what it takes, if it is one of this operator's.
pub(super) fn counts(entry: Option<&Entry>) -> Option<(i64, &Str, Claims)> {
    let entry = entry.filter(|entry| entry.resource.ours)?;
    Some((entry.resource.created, &entry.resource.uid, entry.claims(None)))
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
        let moved: Vec<ResourceKey> = moved.map(|(key, _)| key.clone()).collect();
        for key in &moved {
            self.judge_anew(key, None, &mut dirt);
        }
        // What is refused counts by what it had.
        let namespaces: BTreeSet<Str> = moved.into_iter().map(|key| key.namespace).collect();
        for namespace in &namespaces {
            self.share_budget(namespace, &mut dirt);
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
            self.judge_these(&of_it, dirt);
        }
        false
    }

    /// Asks the policy again about all resources.
    pub(super) fn judge_all(&mut self, dirt: &mut Dirt) {
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        self.judge_these(&keys, dirt);
    }

    /// Asks the policy again about these resources, which are all of their namespaces. Nothing is acted by before it is known
    /// what the budget of the namespace has room for.
    fn judge_these(&mut self, keys: &[ResourceKey], dirt: &mut Dirt) {
        for key in keys {
            let is_shared = self.shares_budget(&key.namespace);
            match self.resources.get_mut(key) {
                Some(entry) if is_shared && entry.resource.ours && !entry.is_dropped => entry.place = Place::Open,
                Some(_) | None => self.judge_anew(key, None, dirt),
            }
        }
        let namespaces: BTreeSet<Str> = keys.iter().map(|key| key.namespace.clone()).collect();
        for namespace in &namespaces {
            self.share_budget(namespace, dirt);
        }
    }

    /// Says whether all resources of a namespace are listed. Until then nobody can tell which are the oldest.
    fn shares_budget(&self, namespace: &Str) -> bool {
        self.scopes.iter().any(|scope| scope.covers(namespace) && self.resources.is_listed(scope))
    }

    /// Notes how many checks Consul has of a resource, for each instance. Gives the resources that this concerns.
    pub fn note_checks(&mut self, key: &ResourceKey, checks: usize) -> Vec<Dirtied> {
        let known = self.checks_in_consul.get(key).copied().unwrap_or_default();
        if !self.watches(&key.namespace) || known == checks {
            return Vec::new();
        }
        self.checks_in_consul.remove(key);
        if checks > 0 {
            self.checks_in_consul.insert(key.clone(), checks);
        }
        let mut dirt = Dirt::default();
        if self.rows_are_known {
            self.share_budget(&key.namespace, &mut dirt);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Shares the budgets anew by what Consul has, now that this is known. Until then nothing was acted by.
    pub(super) fn share_by_rows(&mut self, dirt: &mut Dirt) {
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        for key in &keys {
            if let Some(entry) = self.resources.get_mut(key) {
                entry.forget_decision();
            }
        }
        self.judge_these(&keys, dirt);
    }

    /// Says which resources of a namespace its budgets have room for.
    pub(super) fn share_budget(&mut self, namespace: &Str, dirt: &mut Dirt) {
        let most = self.policy.budget(namespace, self.labels_of(namespace));
        if !self.shares_budget(namespace) {
            return;
        }
        // One that is allowed again counts by what it asks for, and no more by what it had: there may be room for another one.
        // Each time at least one more has what it asks for.
        let mut rounds = self.resources.of_namespace(namespace).count();
        while self.share_once(namespace, &most, dirt) && rounds > 0 {
            rounds -= 1;
        }
    }

    /// Says whether a resource has another place than before.
    fn share_once(&mut self, namespace: &Str, most: &Budget, dirt: &mut Dirt) -> bool {
        let in_consul = |key: &ResourceKey| {
            let checks = self.checks_in_consul.get(key).copied();
            checks.or_else(|| self.rows.contains_key(key).then_some(0))
        };
        let of_namespace = self.resources.of_namespace(namespace).filter(|(_, entry)| entry.resource.ours);
        let mut by_age: Vec<_> = of_namespace
            .map(|(key, entry)| (entry.resource.created, &entry.resource.uid, key, entry, entry.claims(in_consul(key))))
            .collect();
        by_age.sort_unstable_by_key(|(created, uid, key, ..)| (*created, *uid, *key));
        let left = self.checks_left(namespace);
        let of = |claim: fn(&Claims) -> Claim, left, most| {
            let claims: Vec<Claim> = by_age.iter().map(|(.., claims)| claim(claims)).collect();
            granted(&claims, left, most)
        };
        let resources = of(|claims| claims.resources, 0, most.resources);
        let bytes = of(|claims| claims.bytes, 0, most.namespace_bytes);
        let checks = of(|claims| claims.checks, left, most.namespace_checks);
        // What takes memory counts by what is there, whatever it holds in Consul.
        let mut in_memory = 0_usize;
        let moved = by_age.iter().enumerate().filter_map(|(number, (_, _, key, entry, claims))| {
            in_memory = in_memory.saturating_add(claims.bytes.asks);
            let place = match () {
                () if in_memory > self.policy.namespace_bytes => Place::TooLarge,
                () if !resources[number] => Place::TooMany,
                () if !checks[number] => Place::TooManyChecks,
                () if !bytes[number] => Place::TooManyBytes,
                () => Place::Fits,
            };
            (entry.place != place).then(|| ((*key).clone(), place))
        });
        let moved: Vec<_> = moved.collect();
        for (key, place) in &moved {
            self.judge_anew(key, Some(*place), dirt);
        }
        !moved.is_empty()
    }

    /// The checks that Consul has of what is no resource of this operator any more, and is still to go.
    fn checks_left(&self, namespace: &Str) -> usize {
        let first = ResourceKey { namespace: namespace.clone(), name: "".into() };
        let of_namespace = self.checks_in_consul.range(first..).take_while(|(key, _)| key.namespace == *namespace);
        let is_left = |key: &ResourceKey| self.resources.get(key).is_none_or(|entry| !entry.resource.ours);
        of_namespace.filter(|(key, _)| is_left(key)).map(|(_, checks)| checks).sum()
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
            entry.forget_spec();
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

//! How a World holds its resources to the administrator's policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::entry::Entry;
use super::{Dirt, Dirtied, World};
use crate::model::cause::Cause;
use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::Policy;

/// Gives what a budget counts a resource by: its age, if it is one of this operator's.
pub(super) fn counts(entry: Option<&Entry>) -> Option<(i64, &Str)> {
    let resource = &entry.filter(|entry| entry.resource.ours)?.resource;
    Some((resource.created, &resource.uid))
}

impl World {
    /// The policy that resources are held to.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Holds resources to this policy from now on. Gives the resources that this concerns.
    pub fn follow(&mut self, policy: Arc<Policy>) -> Vec<Dirtied> {
        self.policy = policy;
        let mut dirt = Dirt::default();
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        for key in &keys {
            self.judge_anew(key, None, &mut dirt);
        }
        let namespaces: BTreeSet<Str> = keys.into_iter().map(|key| key.namespace).collect();
        for namespace in &namespaces {
            self.share_budget(namespace, &mut dirt);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    /// Says which resources of a namespace its budget has room for: the oldest.
    pub(super) fn share_budget(&mut self, namespace: &Str, dirt: &mut Dirt) {
        let most = self.policy.most_resources(namespace);
        // Until all are listed nobody can tell which are the oldest.
        let is_listed = self.scopes.iter().any(|scope| scope.covers(namespace) && self.resources.is_listed(scope));
        if !is_listed {
            return;
        }
        let of_namespace = self.resources.of_namespace(namespace);
        let mut by_age: Vec<_> = of_namespace.filter_map(|(key, entry)| Some((counts(Some(entry))?, key))).collect();
        by_age.sort_unstable();
        let moved = by_age.iter().enumerate().filter_map(|(rank, (_, key))| {
            let fits = most.is_none_or(|most| rank < most);
            self.resources.get(key).is_some_and(|entry| entry.fits != fits).then(|| ((*key).clone(), fits))
        });
        for (key, fits) in moved.collect::<Vec<_>>() {
            self.judge_anew(&key, Some(fits), dirt);
        }
    }

    /// Asks the policy again about a resource.
    fn judge_anew(&mut self, key: &ResourceKey, fits: Option<bool>, dirt: &mut Dirt) {
        let policy = Arc::clone(&self.policy);
        let Some(entry) = self.resources.get_mut(key) else { return };
        let before = (entry.resource.spec.clone(), entry.last_good.clone());
        entry.fits = fits.unwrap_or(entry.fits);
        entry.judge(&policy);
        if (&before.0, &before.1) != (&entry.resource.spec, &entry.last_good) {
            dirt.add(key, Some(Cause::Observed));
            self.link(key, dirt);
        }
    }
}

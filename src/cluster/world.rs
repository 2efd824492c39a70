//! What Kubernetes has, in the least that decisions need, and which resources a change concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::event::{Change, Event, ObjectKey, Scope, SeenResource, Step};
use super::status::Transitions;
use super::table::{Moved, Outcome, Table};
use crate::model::facts::{Node, Service, Slice};
use crate::model::guard::Cause;
use crate::model::names::{ResourceKey, Str};
use crate::model::resource::{Resource, Source, Spec};

/// Kubernetes as last seen.
#[derive(Debug)]
pub struct World {
    scopes: BTreeSet<Scope>,
    watches_nodes: bool,
    resources: Table<Entry>,
    slices: Table<Slice>,
    services: Table<Service>,
    nodes: Table<Node>,
    /// From a Service to its slices.
    slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// From a Service to the resources that have it as their source, whether it is there or not.
    users_of: BTreeMap<ObjectKey, BTreeSet<ResourceKey>>,
}

/// A resource, and what is to be remembered of it beyond its last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As last seen.
    pub resource: Resource,
    /// The last spec that could be acted on, of this very resource.
    pub last_good: Option<Arc<Spec>>,
    /// Since when its conditions have held.
    pub since: Transitions,
}

impl Entry {
    fn new(seen: SeenResource, previous: Option<&Self>) -> Self {
        let SeenResource { resource, since } = seen;
        let previous = previous.filter(|previous| previous.resource.uid == resource.uid);
        let last_good = match &resource.spec {
            Ok(spec) => Some(spec.clone()),
            Err(_) => previous.and_then(|previous| previous.last_good.clone()),
        };
        Self { resource, last_good, since }
    }

    /// The spec to go by: the one that was asked for or, while that cannot be acted on, the last that could.
    #[must_use]
    pub fn effective_spec(&self) -> Option<&Arc<Spec>> {
        self.last_good.as_ref()
    }

    /// The Service that its instances come from.
    fn service(&self) -> Option<ObjectKey> {
        let Source::Service { name } = &self.effective_spec()?.source;
        Some(ObjectKey { namespace: self.resource.key.namespace.clone(), name: name.clone() })
    }
}

/// A resource that an event concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirtied {
    /// The resource.
    pub key: ResourceKey,
    /// How a change to what should be registered came about; none where only bookkeeping moved: status,
    /// finalizers, version.
    pub cause: Option<Cause>,
}

/// Resources that an event concerns, each once.
#[derive(Default)]
struct Dirt(BTreeMap<ResourceKey, Option<Cause>>);

impl Dirt {
    fn add(&mut self, key: &ResourceKey, cause: Option<Cause>) {
        let known = self.0.entry(key.clone()).or_default();
        *known = (*known).max(cause);
    }

    fn add_all<'a>(&mut self, keys: impl IntoIterator<Item = &'a ResourceKey>, cause: Cause) {
        keys.into_iter().for_each(|key| self.add(key, Some(cause)));
    }
}

impl World {
    /// An empty World that is watched in these scopes; with `nodes`, Nodes too.
    #[must_use]
    pub fn new(scopes: impl IntoIterator<Item = Scope>, nodes: bool) -> Self {
        let mut scopes: BTreeSet<Scope> = scopes.into_iter().collect();
        if scopes.contains(&Scope::All) {
            scopes = BTreeSet::from([Scope::All]);
        }
        Self {
            scopes,
            watches_nodes: nodes,
            resources: Table::default(),
            slices: Table::default(),
            services: Table::default(),
            nodes: Table::default(),
            slices_of: BTreeMap::new(),
            users_of: BTreeMap::new(),
        }
    }

    /// Takes in an event and says which resources it concerns, in the order of their keys.
    ///
    /// What a list says, or what it lacks, is inferred; what a watch says is observed. When a scope's first
    /// list of a kind is done, all resources of the scope are concerned: what was unknown of them may now
    /// be known.
    pub fn apply(&mut self, event: Event) -> Vec<Dirtied> {
        let Event { scope, change } = event;
        let mut dirt = Dirt::default();
        let first_list_done = match change {
            Change::Resource(step) => self.apply_resource(&scope, step, &mut dirt),
            Change::Slice(step) => self.apply_slice(&scope, step, &mut dirt),
            Change::Service(step) => self.apply_service(&scope, step, &mut dirt),
            Change::Node(step) => self.nodes.apply(&scope, step).first_list_done,
        };
        if first_list_done {
            dirt.add_all(self.resources.keys().filter(|key| scope.covers(&key.namespace)), Cause::Inferred);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    fn apply_resource(&mut self, scope: &Scope, step: Step<SeenResource>, dirt: &mut Dirt) -> bool {
        let step = step.map(|key, seen| Entry::new(seen, self.resources.get(key)));
        let Outcome { moved, first_list_done } = self.resources.apply(scope, step);
        for Moved { key, old, cause } in moved {
            let new = self.resources.get(&key);
            let (from, to) = (old.as_ref().and_then(Entry::service), new.and_then(Entry::service));
            if from != to {
                relink(&mut self.users_of, &key, from, to);
            }
            let substance = match (&old, new) {
                (Some(old), Some(new)) => old.resource.differs_in_substance(&new.resource),
                _ => true,
            };
            dirt.add(&key, substance.then_some(cause));
        }
        first_list_done
    }

    fn apply_slice(&mut self, scope: &Scope, step: Step<Slice>, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.slices.apply(scope, step);
        for Moved { key, old, cause } in moved {
            let service = |slice: &Slice| ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
            let (from, to) = (old.as_ref().map(service), self.slices.get(&key).map(service));
            for service in from.iter().chain(&to) {
                dirt.add_all(self.users_of.get(service).into_iter().flatten(), cause);
            }
            if from != to {
                relink(&mut self.slices_of, &key, from, to);
            }
        }
        first_list_done
    }

    fn apply_service(&mut self, scope: &Scope, step: Step<Service>, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.services.apply(scope, step);
        for Moved { key, cause, .. } in moved {
            dirt.add_all(self.users_of.get(&key).into_iter().flatten(), cause);
        }
        first_list_done
    }

    /// Takes over what `other`, which has watched for longer, remembers of the same resources: the last specs
    /// that could be acted on, where the present ones cannot.
    pub fn remember(&mut self, other: &Self) {
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        for key in keys {
            let Some(known) = other.resource(&key) else { continue };
            if let Some(entry) = self.resources.get_mut(&key)
                && entry.last_good.is_none()
                && entry.resource.uid == known.resource.uid
            {
                entry.last_good.clone_from(&known.last_good);
                let service = entry.service();
                relink(&mut self.users_of, &key, None, service);
            }
        }
    }

    /// A resource.
    #[must_use]
    pub fn resource(&self, key: &ResourceKey) -> Option<&Entry> {
        self.resources.get(key)
    }

    /// All resources.
    pub fn keys(&self) -> impl Iterator<Item = &ResourceKey> {
        self.resources.keys()
    }

    /// All resources, with what is remembered of them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.resources.iter().map(|(_, entry)| entry)
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, namespace: &Str, name: &Str) -> Option<&Service> {
        self.services.get(&ObjectKey { namespace: namespace.clone(), name: name.clone() })
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, namespace: &Str, service: &Str) -> impl Iterator<Item = &Slice> + Clone {
        let service = ObjectKey { namespace: namespace.clone(), name: service.clone() };
        self.slices_of.get(&service).into_iter().flatten().filter_map(|key| self.slices.get(key))
    }

    /// A Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&ObjectKey::new("", name))
    }

    /// All Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&Str, &Node)> {
        self.nodes.iter().map(|(key, node)| (&key.name, node))
    }

    /// Whether anything of this namespace is watched.
    #[must_use]
    pub fn watches(&self, namespace: &str) -> bool {
        self.scopes.iter().any(|scope| scope.covers(namespace))
    }

    /// Whether everything that a decision about this namespace needs was listed to the end: only then does
    /// absence mean anything.
    #[must_use]
    pub fn is_whole(&self, namespace: &str) -> bool {
        let mut covering = self.scopes.iter().filter(|scope| scope.covers(namespace)).peekable();
        covering.peek().is_some() && covering.all(|scope| self.is_listed(scope)) && self.nodes_are_listed()
    }

    /// Whether everything that is watched was listed to the end.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.scopes.iter().all(|scope| self.is_listed(scope)) && self.nodes_are_listed()
    }

    fn is_listed(&self, scope: &Scope) -> bool {
        self.resources.is_listed(scope) && self.slices.is_listed(scope) && self.services.is_listed(scope)
    }

    fn nodes_are_listed(&self) -> bool {
        !self.watches_nodes || self.nodes.is_listed(&Scope::All)
    }
}

/// Moves `key` from one group of an index to another.
fn relink(
    index: &mut BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    key: &ObjectKey,
    from: Option<ObjectKey>,
    to: Option<ObjectKey>,
) {
    if let Some(from) = from
        && let Some(group) = index.get_mut(&from)
    {
        group.remove(key);
        if group.is_empty() {
            index.remove(&from);
        }
    }
    if let Some(to) = to {
        index.entry(to).or_default().insert(key.clone());
    }
}

#[cfg(test)]
mod tests;

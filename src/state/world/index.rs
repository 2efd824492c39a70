//! What leads from a change to the resources that it concerns: Services to slices and users, pods to selectors and
//! endpoints, and what of Kubernetes has to be watched for all of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::Entry;
use super::{Dirt, World};
use crate::model::cause::Cause;
use crate::model::facts::{Endpoint, Pod, Slice};
use crate::model::ids::{ResourceKey, Str};
use crate::model::resource::{Needs, Source, Spec};
use crate::state::event::{Kind, ObjectKey, Scope};
use crate::state::table::Table;

/// Holds what the indexes have of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    /// The Services that its instances come from, or will.
    services: BTreeSet<ObjectKey>,
    /// True if it selects pods.
    selects: bool,
    pub(super) needs: Needs,
}

/// Names what is behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EndpointTarget {
    /// The pod that it names.
    Pod(ObjectKey),
    /// Whatever has its address, where it names no pod.
    Address(Str, IpAddr),
}

impl EndpointTarget {
    pub(super) fn of(namespace: &Str, endpoint: &Endpoint) -> Self {
        match &endpoint.pod {
            Some(pod) => Self::Pod(ObjectKey { namespace: namespace.clone(), name: pod.name.clone() }),
            None => Self::Address(namespace.clone(), endpoint.address),
        }
    }
}

/// Holds the slices and the pods by the Nodes that they name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OnNodes {
    pub(super) slices: BTreeMap<Str, BTreeSet<ObjectKey>>,
    pub(super) pods: BTreeMap<Str, BTreeSet<ObjectKey>>,
}

impl OnNodes {
    /// Notes that a slice has endpoints on other Nodes than before.
    pub(super) fn slice_moved(&mut self, slice: &ObjectKey, before: &BTreeSet<&Str>, after: &BTreeSet<&Str>) {
        before.difference(after).for_each(|node| unlink(&mut self.slices, *node, slice));
        for node in after.difference(before) {
            self.slices.entry((*node).clone()).or_default().insert(slice.clone());
        }
    }

    /// Says whether anything names this Node.
    pub(super) fn names(&self, node: &str) -> bool {
        self.slices.contains_key(node) || self.pods.contains_key(node)
    }

    /// Notes that a pod is on another Node than before.
    pub(super) fn pod_moved(&mut self, pod: &ObjectKey, before: Option<Str>, after: Option<Str>) {
        if before != after {
            relink(&mut self.pods, pod, before, after);
        }
    }
}

impl World {
    /// Brings the indexes in line with a resource as it is, and what follows from that for others.
    pub(super) fn link(&mut self, key: &ResourceKey, dirt: &mut Dirt) {
        let names = self.claim(key);
        // What it needed is kept until it is known what it goes by: without its name that may be what it went by before.
        let held = self.links.get(key).map(|links| links.needs.clone()).unwrap_or_default();
        let scopes = self.scopes.iter().filter(|scope| scope.covers(&key.namespace));
        self.wants.add(&key.namespace, &held, scopes);
        // Whether it could be registered is told by what it needs: that comes first.
        self.link_all(&BTreeSet::from([key.clone()]));
        let mut concerned = self.judge_names(&names, dirt);
        concerned.insert(key.clone());
        self.relink(&concerned, dirt);
        let (had_pods, had_nodes) = (self.watches_pods(), self.follows_nodes());
        let scopes = self.scopes.iter().filter(|scope| scope.covers(&key.namespace));
        for (kind, scope) in self.wants.take(&key.namespace, &held, scopes) {
            self.forget(kind, &scope);
        }
        self.index_anew(had_pods, had_nodes);
    }

    /// Judges names anew. Gives the resources of which that may change by what they go.
    pub(super) fn judge_names(&mut self, names: &BTreeSet<Str>, dirt: &mut Dirt) -> BTreeSet<ResourceKey> {
        let mut concerned: BTreeSet<ResourceKey> = names.iter().flat_map(|name| self.judge(name)).collect();
        dirt.add_all(&concerned, Cause::Observed);
        concerned.extend(names.iter().flat_map(|name| self.going_on_under(name)).cloned());
        concerned
    }

    /// Brings the indexes in line with resources, as it stands with their names. Those that go by another spec than
    /// before are concerned.
    pub(super) fn relink(&mut self, keys: &BTreeSet<ResourceKey>, dirt: &mut Dirt) {
        for key in keys {
            let goes_on = self.spec_without_its_name(key).filter(|_| self.rivals.contains_key(key));
            let known = match goes_on.clone() {
                Some(spec) => self.without_name.insert(key.clone(), spec),
                None => self.without_name.remove(key),
            };
            if known != goes_on {
                dirt.add(key, Some(Cause::Observed));
            }
        }
        self.link_all(keys);
    }

    fn link_all(&mut self, keys: &BTreeSet<ResourceKey>) {
        // What is needed is counted before what is not any more: nothing is dropped that one takes over from another.
        let moved: Vec<(ResourceKey, Links)> = keys.iter().map(|key| (key.clone(), self.links_of(key))).collect();
        let (had_pods, had_nodes) = (self.watches_pods(), self.follows_nodes());
        for (key, new) in &moved {
            let scopes = self.scopes.iter().filter(|scope| scope.covers(&key.namespace));
            self.wants.add(&key.namespace, &new.needs, scopes);
        }
        for (key, new) in moved {
            self.link_facts(&key, new);
        }
        self.index_anew(had_pods, had_nodes);
    }

    /// Makes the indexes of what is behind endpoints and on Nodes anew, where they are of use now and were not, or the other
    /// way round.
    fn index_anew(&mut self, had_pods: bool, had_nodes: bool) {
        if self.watches_pods() != had_pods {
            self.index_what_is_behind();
        }
        if self.follows_nodes() != had_nodes {
            self.index_what_is_on_nodes();
        }
    }

    /// Brings the indexes of facts in line with a resource, whose needs were counted already.
    fn link_facts(&mut self, key: &ResourceKey, new: Links) {
        let old = self.links.get(key).cloned().unwrap_or_default();
        for service in old.services.difference(&new.services) {
            unlink(&mut self.users_of, service, key);
        }
        for service in new.services.difference(&old.services) {
            self.users_of.entry(service.clone()).or_default().insert(key.clone());
        }
        let scopes = self.scopes.iter().filter(|scope| scope.covers(&key.namespace));
        for (kind, scope) in self.wants.take(&key.namespace, &old.needs, scopes) {
            self.forget(kind, &scope);
        }
        if old.selects {
            self.matching.remove(key);
            self.unsure.remove(key);
            unlink(&mut self.selecting, &key.namespace, key);
        }
        if new.selects {
            self.selecting.entry(key.namespace.clone()).or_default().insert(key.clone());
            let of_namespace = self.pods.of_namespace(&key.namespace);
            let (mut picked, mut unsure) = (BTreeSet::new(), BTreeSet::new());
            for (pod_key, pod) in of_namespace {
                match matches(&self.resources, &self.without_name, key, pod) {
                    Some(true) => drop(picked.insert(pod_key.name.clone())),
                    Some(false) => {}
                    None => drop(unsure.insert(pod_key.name.clone())),
                }
            }
            self.matching.insert(key.clone(), picked);
            self.unsure.insert(key.clone(), unsure);
        }
        if new == Links::default() {
            self.links.remove(key);
        } else {
            self.links.insert(key.clone(), new);
        }
    }

    /// Lists what leads to a resource: by what it asks for, also while the name is another's, since whether it may
    /// have the name depends on it; and by what it goes on by meanwhile.
    fn links_of(&self, key: &ResourceKey) -> Links {
        let Some(entry) = self.resources.get(key).filter(|entry| entry.resource.ours) else { return Links::default() };
        let mut links = Links::default();
        for spec in entry.last_good.iter().chain(self.without_name.get(key)) {
            match &spec.source {
                Source::Service { name } => {
                    links.services.insert(ObjectKey { namespace: key.namespace.clone(), name: name.clone() });
                }
                Source::Pods { .. } => links.selects = true,
                Source::Static { .. } => {}
            }
            let Needs { services, pods, nodes, of_pods } = spec.needs();
            links.needs.services |= services;
            links.needs.pods |= pods;
            links.needs.nodes |= nodes;
            links.needs.of_pods.extend(of_pods);
        }
        links
    }

    /// Drops what nobody needs any more.
    pub(super) fn forget(&mut self, kind: Kind, scope: &Scope) {
        if self.is_wanted_anyway(&(kind, scope.clone())) {
            return;
        }
        match kind {
            Kind::Resource => {}
            Kind::Service => drop(self.services.take(scope)),
            Kind::Slice => {
                for (key, slice) in self.slices.take(scope) {
                    for behind in behind(&key.namespace, Some(&slice)) {
                        unlink(&mut self.slices_with, &behind, &key);
                    }
                    self.on_nodes.slice_moved(&key, &nodes_of(Some(&slice)), &BTreeSet::new());
                    let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service };
                    unlink(&mut self.slices_of, &service, &key);
                }
                self.history.forget_scope(scope);
            }
            Kind::Pod => {
                for (key, pod) in self.pods.take(scope) {
                    self.on_nodes.pod_moved(&key, pod.node, None);
                    for address in pod.addresses {
                        unlink(&mut self.pods_at, &(key.namespace.clone(), address), &key.name);
                    }
                }
            }
            Kind::Node => self.nodes.forget(scope),
            Kind::Namespace => self.namespaces.forget(scope),
        }
    }

    /// Says whether pods are watched anywhere.
    pub(super) fn watches_pods(&self) -> bool {
        self.wants.has_kind(Kind::Pod) || self.besides.watches.keys().any(|(kind, _)| *kind == Kind::Pod)
    }

    /// Says whether anything depends on Nodes: values that a resource holds, or the places of instances.
    pub(super) fn follows_nodes(&self) -> bool {
        self.always_needs(Kind::Node) || self.wants.has_kind(Kind::Node)
    }

    /// Lists the resources that have an endpoint or a pod on this Node.
    pub(super) fn users_of_node(&self, node: &str) -> impl Iterator<Item = &ResourceKey> {
        let slices = self.on_nodes.slices.get(node).into_iter().flatten();
        let of_slice = move |slice: &ObjectKey| {
            let service = self.slices.get(slice).map(|of| ObjectKey::new(&slice.namespace, &of.service));
            service.and_then(|service| self.users_of.get(&service)).into_iter().flatten()
        };
        let pods = self.on_nodes.pods.get(node).into_iter().flatten();
        let of_pod = move |pod: &ObjectKey| {
            let selecting = self.selecting.get(&pod.namespace).into_iter().flatten();
            let name = pod.name.clone();
            selecting.filter(move |user| self.matching.get(*user).is_some_and(|picked| picked.contains(&name)))
        };
        slices.flat_map(of_slice).chain(pods.flat_map(of_pod))
    }

    /// Makes anew the index of what is on Nodes, while it is of use.
    fn index_what_is_on_nodes(&mut self) {
        self.on_nodes = OnNodes::default();
        if !self.follows_nodes() {
            return;
        }
        for (key, slice) in self.slices.iter() {
            self.on_nodes.slice_moved(key, &BTreeSet::new(), &nodes_of(Some(slice)));
        }
        for (key, pod) in self.pods.iter() {
            self.on_nodes.pod_moved(key, None, pod.node.clone());
        }
    }

    /// Makes anew the index of what is behind endpoints, while it is of use.
    fn index_what_is_behind(&mut self) {
        self.slices_with.clear();
        if !self.watches_pods() {
            return;
        }
        for (key, slice) in self.slices.iter() {
            for behind in behind(&key.namespace, Some(slice)) {
                self.slices_with.entry(behind).or_default().insert(key.clone());
            }
        }
    }
}

/// Says whether a resource selects a pod; none while nobody can tell, since it asks for labels that were not looked for yet.
/// It selects by what it asks for or, where that selects none, by what it goes on by without its name.
pub(super) fn matches(
    resources: &Table<Entry>,
    without_name: &BTreeMap<ResourceKey, Arc<Spec>>,
    key: &ResourceKey,
    pod: &Pod,
) -> Option<bool> {
    let asked = resources.get(key).and_then(|entry| entry.last_good.as_ref());
    let mut selectors = asked.into_iter().chain(without_name.get(key)).filter_map(|spec| match &spec.source {
        Source::Pods { selector } => Some(selector),
        Source::Service { .. } | Source::Static { .. } => None,
    });
    let Some(selector) = selectors.next() else { return Some(false) };
    let is_known = selector.keys().all(|key| pod.labels.knows(key));
    is_known.then(|| selector.matches(|key| pod.labels.get(key)))
}

/// Says whether a kind is among these needs.
pub(super) fn needs(needs: &Needs, kind: Kind) -> bool {
    match kind {
        Kind::Resource => true,
        Kind::Slice | Kind::Service => needs.services,
        Kind::Pod => needs.pods,
        Kind::Node => needs.nodes,
        Kind::Namespace => false,
    }
}

/// Lists what is behind the endpoints of a slice.
pub(super) fn behind(namespace: &Str, slice: Option<&Slice>) -> BTreeSet<EndpointTarget> {
    slice
        .into_iter()
        .flat_map(|slice| &slice.endpoints)
        .map(|endpoint| EndpointTarget::of(namespace, endpoint))
        .collect()
}

/// Lists the Nodes that the endpoints of a slice name.
pub(super) fn nodes_of(slice: Option<&Slice>) -> BTreeSet<&Str> {
    slice.into_iter().flat_map(|slice| &slice.endpoints).filter_map(|endpoint| endpoint.node.as_ref()).collect()
}

/// Moves `key` from one group of an index to another.
pub(super) fn relink<K: Ord>(
    index: &mut BTreeMap<K, BTreeSet<ObjectKey>>,
    key: &ObjectKey,
    from: Option<K>,
    to: Option<K>,
) {
    if let Some(from) = from {
        unlink(index, &from, key);
    }
    if let Some(to) = to {
        index.entry(to).or_default().insert(key.clone());
    }
}

/// Takes `member` out of a group of an index, and the group with its last member.
pub(super) fn unlink<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, group: &K, member: &V) {
    if let Some(members) = index.get_mut(group) {
        members.remove(member);
        if members.is_empty() {
            index.remove(group);
        }
    }
}

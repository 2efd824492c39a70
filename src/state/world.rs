//! What Kubernetes has, in the least that decisions need, and which resources a change concerns.

mod claims;
mod entry;
mod index;
mod known;
mod missing;
mod policed;
mod wants;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::event::{Change, Event, Kind, ObjectKey, Scope, SeenResource, Step};
use super::table::{Moved, Outcome, Table};
use crate::model::cause::Cause;
use crate::model::facts::{Facts, Node, Pod, Service, Slice};
use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::{Place, Policy};
use crate::model::registration::NameInUse;
use crate::model::resource::{Needs, Spec};
use crate::model::selector::Labels;
use claims::Claims;
use index::{EndpointTarget, Links, OnNodes, behind, matches, nodes_of, relink, unlink};
use known::Known;
use missing::{History, MOST};
use wants::Wants;

pub use claims::Frozen;
pub use entry::Entry;
pub use missing::Missing;
pub use policed::LABELS;
pub use wants::Wanted;

/// Kubernetes as last seen.
#[derive(Debug)]
pub struct World {
    scopes: BTreeSet<Scope>,
    /// Says what the administrator lets resources ask for.
    policy: Arc<Policy>,
    /// The watches that have to list again for what was dropped.
    to_list: BTreeSet<(Kind, Scope)>,
    /// Counts the bytes of the specs of a namespace while its resources are listed for the first time.
    listed_bytes: BTreeMap<Str, usize>,
    /// The policy that comes into force when the labels are known that it asks for.
    awaited: Option<Arc<Policy>>,
    /// The kinds that are watched whatever resources need.
    always: Wanted,
    /// The kinds that are taken in besides.
    besides: Wanted,
    resources: Table<Entry>,
    slices: Table<Slice>,
    services: Table<Service>,
    pods: Table<Pod>,
    nodes: Table<Node>,
    /// The labels of namespaces; kept only while a policy asks for them.
    namespaces: Table<Labels>,
    /// The links that the indexes below have of each resource.
    links: BTreeMap<ResourceKey, Links>,
    wants: Wants,
    claims: Claims,
    /// Resources that ask for a name which is another namespace's, with whose it is.
    rivals: BTreeMap<ResourceKey, ResourceKey>,
    /// The specs that each of these goes on by.
    without_name: BTreeMap<ResourceKey, Arc<Spec>>,
    /// The names under which Consul has rows of resources.
    rows: BTreeMap<ResourceKey, BTreeSet<NameInUse>>,
    /// The names and sources of rows that are all gone.
    rows_before: BTreeMap<ResourceKey, BTreeSet<NameInUse>>,
    /// The names, as they are compared, under which Consul may have rows of resources besides: registrations of them have no
    /// answer.
    in_doubt: BTreeMap<ResourceKey, BTreeSet<Str>>,
    /// The checks that Consul has of resources, for each instance.
    checks_in_consul: BTreeMap<ResourceKey, usize>,
    /// True if all of that was noted.
    rows_are_known: bool,
    /// True if it was before.
    rows_were_known: bool,
    /// The names that others have in Consul, as names are compared; none while nobody can tell. Kept only while a policy
    /// asks for them.
    others: Option<BTreeSet<Str>>,
    /// Resources that are deleted or gone, and are known to have ended by themselves.
    ending: BTreeSet<ResourceKey>,
    /// From a Service to its slices.
    slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// From a Service to the resources that have it as their source, whether it is there or not.
    users_of: BTreeMap<ObjectKey, BTreeSet<ResourceKey>>,
    /// From what is behind an endpoint to the slices that have it; kept only while pods are watched.
    slices_with: BTreeMap<EndpointTarget, BTreeSet<ObjectKey>>,
    /// From a namespace to its resources that select pods.
    selecting: BTreeMap<Str, BTreeSet<ResourceKey>>,
    /// The pods that a resource selects.
    matching: BTreeMap<ResourceKey, BTreeSet<Str>>,
    /// The pods of which nobody can tell yet whether a resource's selector matches them: their labels were not looked for.
    unsure: BTreeMap<ResourceKey, BTreeSet<Str>>,
    /// The pods at an address of a namespace.
    pods_at: BTreeMap<(Str, IpAddr), BTreeSet<Str>>,
    /// From a Node to the slices with endpoints and to the pods on it, whether it is there or not; kept only while
    /// anything depends on Nodes.
    on_nodes: OnNodes,
    /// The Nodes that have gone and may come back, with when they went: those that something still names, and those that
    /// went within the last [`MOST`].
    gone_nodes: BTreeMap<Str, Instant>,
    /// The history of slices and Nodes over a short time.
    history: History,
}

/// A resource that an event concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirtied {
    /// The key of the resource.
    pub key: ResourceKey,
    /// Says how a change to what should be registered came about; none where only bookkeeping moved: status,
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
    /// An empty World that is watched in these scopes; with `nodes`, Nodes too, whatever resources need.
    #[must_use]
    pub fn new(scopes: impl IntoIterator<Item = Scope>, nodes: bool) -> Self {
        let mut scopes: BTreeSet<Scope> = scopes.into_iter().collect();
        if scopes.contains(&Scope::All) {
            scopes = BTreeSet::from([Scope::All]);
        }
        let resources = scopes.iter().map(|scope| ((Kind::Resource, scope.clone()), 0));
        let nodes = nodes.then_some(((Kind::Node, Scope::All), 0));
        let always = Wanted { watches: resources.chain(nodes).collect(), of_pods: BTreeMap::new() };
        Self {
            scopes,
            policy: Arc::default(),
            to_list: BTreeSet::new(),
            listed_bytes: BTreeMap::new(),
            awaited: None,
            always,
            besides: Wanted::default(),
            resources: Table::default(),
            slices: Table::default(),
            services: Table::default(),
            pods: Table::default(),
            nodes: Table::default(),
            namespaces: Table::default(),
            links: BTreeMap::new(),
            wants: Wants::default(),
            claims: Claims::default(),
            rivals: BTreeMap::new(),
            without_name: BTreeMap::new(),
            rows: BTreeMap::new(),
            rows_before: BTreeMap::new(),
            in_doubt: BTreeMap::new(),
            checks_in_consul: BTreeMap::new(),
            rows_are_known: false,
            rows_were_known: false,
            others: None,
            ending: BTreeSet::new(),
            slices_of: BTreeMap::new(),
            users_of: BTreeMap::new(),
            slices_with: BTreeMap::new(),
            selecting: BTreeMap::new(),
            matching: BTreeMap::new(),
            unsure: BTreeMap::new(),
            pods_at: BTreeMap::new(),
            on_nodes: OnNodes::default(),
            gone_nodes: BTreeMap::new(),
            history: History::default(),
        }
    }

    /// Takes in all of this whatever resources need.
    #[must_use]
    pub fn wanting(mut self, wanted: Wanted) -> Self {
        self.besides = wanted;
        self
    }

    /// Holds resources to this policy from the beginning.
    #[must_use]
    pub fn under(mut self, policy: Arc<Policy>) -> Self {
        self.policy = policy;
        self
    }

    /// Says what is to be watched now.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let mut wanted = self.wants.wanted();
        wanted.watches.extend(self.asks_for_labels().then_some((LABELS, 0)));
        for more in [&self.besides, &self.always] {
            wanted.watches.extend(more.watches.clone());
            for (namespace, keys) in &more.of_pods {
                wanted.of_pods.entry(namespace.clone()).or_default().extend(keys.iter().cloned());
            }
        }
        wanted
    }

    /// Says what is to be watched now, if that is not what it was when this was last asked.
    pub fn wanted_anew(&mut self) -> Option<Wanted> {
        self.wants.take_news().then(|| self.wanted())
    }

    /// Lists the watches that tell what becomes of a resource.
    #[must_use]
    pub fn watches_for(&self, key: &ResourceKey) -> BTreeSet<(Kind, Scope)> {
        let kinds = [Kind::Resource, Kind::Slice, Kind::Service, Kind::Pod, Kind::Node];
        let needed = kinds.into_iter().filter(|kind| *kind == Kind::Resource || self.needs(key, *kind));
        needed.flat_map(|kind| self.scopes_of(key, kind).into_iter().map(move |scope| (kind, scope))).collect()
    }

    /// The scopes in which a kind is watched for a resource.
    fn scopes_of(&self, key: &ResourceKey, kind: Kind) -> Vec<Scope> {
        match kind {
            Kind::Node | Kind::Namespace => vec![Scope::All],
            Kind::Slice | Kind::Service | Kind::Pod => vec![Scope::Namespace(key.namespace.clone())],
            Kind::Resource => self.scopes.iter().filter(|scope| scope.covers(&key.namespace)).cloned().collect(),
        }
    }

    fn is_wanted_anyway(&self, watch: &(Kind, Scope)) -> bool {
        self.always.watches.contains_key(watch)
            || self.besides.watches.contains_key(watch)
            || *watch == LABELS && self.asks_for_labels()
    }

    fn wants(&self, watch: &(Kind, Scope)) -> bool {
        self.is_wanted_anyway(watch) || self.wants.has(watch)
    }

    /// Takes in an event that comes `now`, and says which resources it concerns, in the order of their keys.
    ///
    /// What a list says, or what it lacks, is inferred; what a watch says is observed. When a scope's first
    /// list of a kind is done, all resources of the scope that need the kind are concerned: what was unknown of
    /// them may now be known. What nobody needs is not taken in.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Dirtied> {
        let Event { scope, change } = event;
        let kind = change.kind();
        let mut dirt = Dirt::default();
        self.history.forget_old(now);
        if !self.wants(&(kind, scope.clone())) {
            return Vec::new();
        }
        let first_list_done = match change {
            Change::Resource(step) => self.apply_resource(&scope, step, &mut dirt),
            Change::Slice(step) => self.apply_slice(&scope, step, now, &mut dirt),
            Change::Service(step) => self.apply_service(&scope, step, now, &mut dirt),
            Change::Pod(step) => self.apply_pod(&scope, step, &mut dirt),
            Change::Node(step) => self.apply_node(&scope, step, now, &mut dirt),
            Change::Namespace(step) => self.apply_namespace(&scope, step, &mut dirt),
        };
        if first_list_done {
            // Whether a name is taken only all resources together can tell.
            let everywhere = kind == Kind::Resource && self.knows_all_resources();
            let concerned = self.resources.keys().filter(|key| {
                (everywhere || scope.covers(&key.namespace))
                    && (kind == Kind::Resource || self.always_needs(kind) || self.needs(key, kind))
            });
            dirt.add_all(concerned, Cause::Inferred);
        }
        for key in dirt.0.keys().cloned().collect::<Vec<_>>() {
            let concerned = self.judge_names(&self.contested_names(&key), &mut dirt);
            self.relink(&concerned, &mut dirt);
        }
        dirt.0.into_iter().map(|(key, cause)| Dirtied { key, cause }).collect()
    }

    fn apply_resource(&mut self, scope: &Scope, step: Step<SeenResource>, dirt: &mut Dirt) -> bool {
        let is_listed = self.resources.is_listed(scope);
        let (resources, namespaces) = (&self.resources, &self.namespaces);
        let (policy, listed) = (&self.policy, &mut self.listed_bytes);
        let names = policed::names(self.others.as_ref(), &self.rows, self.rows_are_known);
        let step = step.map(|key, seen| {
            let labels = policed::labels_of(namespaces, &key.namespace);
            let previous = resources.get(key);
            let newcomer = if previous.is_none() && !is_listed {
                policed::place_in_list(listed.entry(key.namespace.clone()).or_default(), &seen.resource, policy)
            } else {
                Place::Unknown
            };
            Entry::new(seen, previous, newcomer, policy, labels, names)
        });
        let Outcome { moved, first_list_done } = self.resources.apply(scope, step);
        let mut budgets = BTreeSet::new();
        for Moved { key, old, cause } in moved {
            if policed::counts(old.as_ref()) != policed::counts(self.resources.get(&key)) {
                budgets.insert(key.namespace.clone());
            }
            let (substance, granted) = match (&old, self.resources.get(&key)) {
                (Some(old), Some(new)) => {
                    (old.resource.differs_in_substance(&new.resource), old.granted != new.granted)
                }
                _ => (true, false),
            };
            let uid = |entry: &Entry| entry.resource.uid.clone();
            let is_another = self.resources.get(&key).map(uid) != old.as_ref().map(uid);
            if self.resources.get(&key).is_some_and(|entry| is_another || !entry.resource.deleting) {
                self.ending.remove(&key);
            }
            if is_another {
                self.rows_before.remove(&key);
            }
            dirt.add(&key, substance.then_some(cause));
            if substance || granted {
                self.link(&key, dirt);
            }
        }
        if first_list_done {
            self.listed_bytes.clear();
            budgets.extend(self.resources.keys().map(|key| key.namespace.clone()));
        }
        for namespace in &budgets {
            self.share_budget(namespace, dirt);
        }
        first_list_done
    }

    fn apply_slice(&mut self, scope: &Scope, step: Step<Slice>, now: Instant, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.slices.apply(scope, step);
        let (with_pods, with_nodes) = (self.watches_pods(), self.follows_nodes());
        for Moved { key, old, cause } in moved {
            let new = self.slices.get(&key);
            let service = |slice: &Slice| ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
            let (from, to) = (old.as_ref().map(service), new.map(service));
            for service in from.iter().chain(&to) {
                dirt.add_all(self.users_of.get(service).into_iter().flatten(), cause);
            }
            for service in [&from, &to].into_iter().flatten().filter(|service| self.users_of.contains_key(service)) {
                let of_it = |slice: &&Slice| slice.service == service.name;
                self.history.slice_moved(service, old.as_ref().filter(of_it), new.filter(of_it), now);
            }
            if with_pods {
                let behind = |slice: Option<&Slice>| behind(&key.namespace, slice);
                let (before, after) = (behind(old.as_ref()), behind(new));
                before.difference(&after).for_each(|gone| unlink(&mut self.slices_with, gone, &key));
                for new in after.difference(&before) {
                    self.slices_with.entry(new.clone()).or_default().insert(key.clone());
                }
            }
            if with_nodes {
                self.on_nodes.slice_moved(&key, &nodes_of(old.as_ref()), &nodes_of(new));
            }
            if from != to {
                relink(&mut self.slices_of, &key, from, to);
            }
        }
        if first_list_done {
            self.history.slices_listed(scope, now);
        }
        first_list_done
    }

    fn apply_service(&mut self, scope: &Scope, step: Step<Service>, now: Instant, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.services.apply(scope, step);
        for Moved { key, cause, .. } in moved {
            if let Some(users) = self.users_of.get(&key) {
                dirt.add_all(users, cause);
                self.history.service_moved(&key, self.services.get(&key).is_some(), now);
            }
        }
        if first_list_done {
            self.history.services_listed(scope, now);
        }
        first_list_done
    }

    fn apply_pod(&mut self, scope: &Scope, step: Step<Pod>, dirt: &mut Dirt) -> bool {
        let Outcome { moved, first_list_done } = self.pods.apply(scope, step);
        let with_nodes = self.follows_nodes();
        for Moved { key, old, cause } in moved {
            let new = self.pods.get(&key);
            let namespace = &key.namespace;
            if with_nodes {
                let node = |pod: Option<&Pod>| pod.and_then(|pod| pod.node.clone());
                self.on_nodes.pod_moved(&key, node(old.as_ref()), node(new));
            }
            for resource in self.selecting.get(namespace).into_iter().flatten() {
                let matches =
                    new.map_or(Some(false), |pod| matches(&self.resources, &self.without_name, resource, pod));
                let is_in = matches == Some(true);
                let was_in = set(self.matching.entry(resource.clone()).or_default(), &key.name, is_in);
                let unsure = self.unsure.entry(resource.clone()).or_default();
                let waited = !unsure.is_empty();
                set(unsure, &key.name, matches.is_none());
                let waits_anew = waited == unsure.is_empty() && self.pods.is_listed(scope);
                if is_in || was_in || waits_anew {
                    dirt.add(resource, Some(cause));
                }
            }
            let addresses = |pod: Option<&Pod>| pod.map(|pod| pod.addresses.clone()).unwrap_or_default();
            let (before, after) = (addresses(old.as_ref()), addresses(new));
            for gone in &before {
                unlink(&mut self.pods_at, &(namespace.clone(), *gone), &key.name);
            }
            for there in &after {
                self.pods_at.entry((namespace.clone(), *there)).or_default().insert(key.name.clone());
            }
            let at = before.iter().chain(&after).map(|address| EndpointTarget::Address(namespace.clone(), *address));
            for behind in at.chain([EndpointTarget::Pod(key.clone())]) {
                for slice in self.slices_with.get(&behind).into_iter().flatten() {
                    let Some(slice) = self.slices.get(slice) else { continue };
                    let service = ObjectKey { namespace: namespace.clone(), name: slice.service.clone() };
                    let users = self.users_of.get(&service).into_iter().flatten();
                    dirt.add_all(users.filter(|user| self.needs(user, Kind::Pod)), cause);
                }
            }
        }
        first_list_done
    }

    fn apply_node(&mut self, scope: &Scope, step: Step<Node>, now: Instant, dirt: &mut Dirt) -> bool {
        let was_listed = self.nodes.is_listed(scope);
        let Outcome { moved, first_list_done } = self.nodes.apply(scope, step);
        for Moved { key, old, cause } in moved {
            let place = |node: Option<&Node>| node.map(|node| (node.zone.clone(), node.region.clone()));
            if was_listed && old.is_none() {
                self.history.node_registered(&key.name, now);
            }
            let is_there = self.nodes.get(&key).is_some();
            let is_new = is_there && self.gone_nodes.remove(&key.name).is_none() && old.is_none();
            if !is_there {
                self.gone_nodes.insert(key.name.clone(), now);
            }
            if place(old.as_ref()) != place(self.nodes.get(&key)) {
                let is_placed = is_new && self.always_needs(Kind::Node);
                let users = self.users_of_node(&key.name);
                dirt.add_all(users.filter(|user| is_placed || self.needs(user, Kind::Node)), cause);
            }
        }
        self.gone_nodes.retain(|name, at| now < *at + MOST || self.on_nodes.names(name));
        first_list_done
    }

    /// Takes over what `other`, which has watched for longer, remembers of the same resources: the last specs
    /// that could be acted on, where the present ones cannot, who has which name, and which Nodes have gone.
    pub fn remember(&mut self, other: &Self) {
        self.rows.clone_from(&other.rows);
        self.rows_before.clone_from(&other.rows_before);
        self.checks_in_consul.clone_from(&other.checks_in_consul);
        (self.rows_are_known, self.rows_were_known) = (other.rows_are_known, other.rows_were_known);
        self.gone_nodes.clone_from(&other.gone_nodes);
        self.others.clone_from(&other.others);
        let gone = |key: &&ResourceKey| self.resources.get(key).is_none_or(|entry| entry.resource.deleting);
        self.ending = other.ending.iter().filter(gone).cloned().collect();
        let keys: Vec<ResourceKey> = self.keys().cloned().collect();
        let mut dirt = Dirt::default();
        for key in keys {
            let known = other.resource(&key);
            if let Some(entry) = self.resources.get_mut(&key)
                && let Some(known) = known.filter(|known| known.resource.uid == entry.resource.uid)
            {
                entry.remember(known);
            }
            self.link(&key, &mut dirt);
        }
        for key in other.rows.keys() {
            self.link(key, &mut dirt);
        }
        if self.policy.asks_for_others() || self.policy.has_budgets() {
            self.judge_all(&mut dirt);
        }
    }

    /// The spec to go by: the one that was asked for or, while that cannot be acted on, the last that was. While the
    /// name is another's, the same under the name that the resource has.
    #[must_use]
    pub fn effective_spec(&self, key: &ResourceKey) -> Option<&Arc<Spec>> {
        if self.rivals.contains_key(key) {
            return self.without_name.get(key);
        }
        self.resources.get(key)?.last_good.as_ref()
    }

    /// The name in Consul that a resource was last acted under, or goes on under; none where there is none.
    #[must_use]
    pub fn acted_name(&self, key: &ResourceKey) -> Option<Str> {
        let entry = self.resources.get(key)?;
        let goes_on = self.without_name.get(key).map(|spec| spec.service.clone());
        goes_on.or_else(|| Some(entry.as_written(entry.granted_name()?)))
    }

    /// Gives the facts that a resource's source is resolved from.
    #[must_use]
    pub fn facts<'a>(&'a self, key: &'a ResourceKey) -> impl Facts + 'a {
        Known { world: self, key }
    }

    /// Gives a resource.
    #[must_use]
    pub fn resource(&self, key: &ResourceKey) -> Option<&Entry> {
        self.resources.get(key)
    }

    /// Gives the keys of all resources.
    pub fn keys(&self) -> impl Iterator<Item = &ResourceKey> {
        self.resources.keys()
    }

    /// All resources, with what is remembered of them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.resources.iter().map(|(_, entry)| entry)
    }

    /// Says whether there are resources in a namespace.
    #[must_use]
    pub fn has_resources_in(&self, namespace: &Str) -> bool {
        self.resources.of_namespace(namespace).next().is_some()
    }

    /// Gives a Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&ObjectKey::new("", name))
    }

    /// Says whether a name is that of a Node, or of one that has gone and may come back. Where Nodes are not watched for
    /// the places of instances, nobody can tell, and every name counts as one.
    #[must_use]
    pub fn is_node(&self, name: &str) -> bool {
        !self.always_needs(Kind::Node) || self.node(name).is_some() || self.gone_nodes.contains_key(name)
    }

    /// Gives all Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&Str, &Node)> {
        self.nodes.iter().map(|(key, node)| (&key.name, node))
    }

    /// Says whether anything of this namespace is watched.
    #[must_use]
    pub fn watches(&self, namespace: &str) -> bool {
        self.scopes.iter().any(|scope| scope.covers(namespace))
    }

    /// Says whether all resources of this namespace were listed to the end, and what is always watched besides: only
    /// then does the absence of a resource mean anything.
    #[must_use]
    pub fn is_whole(&self, namespace: &str) -> bool {
        let mut covering = self.scopes.iter().filter(|scope| scope.covers(namespace)).peekable();
        covering.peek().is_some()
            && covering.all(|scope| self.resources.is_listed(scope))
            && (!self.always_needs(Kind::Node) || self.nodes.is_listed(&Scope::All))
            && (!self.always_needs(Kind::Namespace) || self.namespaces.is_listed(&Scope::All))
    }

    /// Says what a resource waits for: a kind that it needs and that was not listed to the end yet.
    #[must_use]
    pub fn waits_for(&self, key: &ResourceKey) -> Option<Kind> {
        let entry = self.resources.get(key).filter(|entry| entry.resource.ours && !entry.resource.deleting)?;
        let is_new = entry.asked().is_some_and(|asked| entry.granted_name() != Some(&asked));
        if is_new && !self.knows_all_resources() {
            return Some(Kind::Resource);
        }
        if self.rivals.contains_key(key) {
            let needs = self.without_name.get(key).map(|spec| spec.needs()).unwrap_or_default();
            return self.lacks_list(key, &needs);
        }
        self.lacks_list(key, &self.links.get(key)?.needs)
    }

    /// A kind that a resource needs and that was not listed to the end yet.
    fn lacks_list(&self, key: &ResourceKey, needs: &Needs) -> Option<Kind> {
        let kinds = [Kind::Service, Kind::Slice, Kind::Pod, Kind::Node];
        kinds.into_iter().find(|kind| {
            let is_missing = || self.scopes_of(key, *kind).iter().any(|scope| !self.is_listed(*kind, scope));
            index::needs(needs, *kind) && (is_missing() || *kind == Kind::Pod && self.is_unsure(key))
        })
    }

    /// Says whether there are pods of which nobody can tell yet whether a resource selects them.
    fn is_unsure(&self, key: &ResourceKey) -> bool {
        self.unsure.get(key).is_some_and(|pods| !pods.is_empty())
    }

    /// Says whether everything that is watched whatever resources need was listed to the end. What single resources
    /// need besides holds up only these.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.always.watches.keys().all(|(kind, scope)| self.is_listed(*kind, scope))
            && (!self.always_needs(Kind::Namespace) || self.namespaces.is_listed(&Scope::All))
    }

    /// Says whether all resources were listed to the end and, unless it goes without them, all Nodes.
    #[must_use]
    pub fn knows_nodes(&self) -> bool {
        let always = self.always.watches.contains_key(&(Kind::Node, Scope::All));
        self.knows_all_resources() && (!always || self.nodes.is_listed(&Scope::All))
    }

    fn knows_all_resources(&self) -> bool {
        self.scopes.iter().all(|scope| self.resources.is_listed(scope))
    }

    fn is_listed(&self, kind: Kind, scope: &Scope) -> bool {
        match kind {
            Kind::Resource => self.resources.is_listed(scope),
            Kind::Slice => self.slices.is_listed(scope),
            Kind::Service => self.services.is_listed(scope),
            Kind::Pod => self.pods.is_listed(scope),
            Kind::Node => self.nodes.is_listed(scope),
            Kind::Namespace => self.namespaces.is_listed(scope),
        }
    }

    /// Says whether a resource needs a kind.
    fn needs(&self, key: &ResourceKey, kind: Kind) -> bool {
        self.links.get(key).is_some_and(|links| index::needs(&links.needs, kind))
    }

    fn always_needs(&self, kind: Kind) -> bool {
        match kind {
            Kind::Node => self.always.watches.contains_key(&(Kind::Node, Scope::All)),
            Kind::Namespace => self.policy.asks_for_labels(),
            Kind::Resource | Kind::Slice | Kind::Service | Kind::Pod => false,
        }
    }
}

/// Has a name in a set or not. Gives whether it was in it.
fn set(names: &mut BTreeSet<Str>, name: &Str, is_in: bool) -> bool {
    if is_in { !names.insert(name.clone()) } else { names.remove(name) }
}

#[cfg(test)]
mod tests;

//! What is watched all the time: nothing live is removed, nothing foreign is touched.
//!
//! Whether a removal was wrong is judged by what Lictor could know: it may act on a view that is behind, and so
//! an instance counts as wanted only if Kubernetes has wanted it ever since the oldest thing that Lictor had seen
//! when it decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lictor::cluster::event::{Kind, Scope};
use lictor::model::names::{ResourceKey, Str};
use lictor::model::resource::DeletionPolicy;

use crate::consul::store::{Change, Check, Entity, Node, Service, fold};
use crate::setup::{CLUSTER, CLUSTER_UID, MARKER, Mode, PREFIX};
use crate::sim::{Sim, State};
use crate::truth::{Place, Want, owner, place};

/// Who did something in Consul.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A life of Lictor.
    Lictor(Sent),
    /// The agent, carrying on to the catalog.
    Agent,
    /// Somebody else, or a fault.
    Others,
}

/// What is to be known of a request of Lictor's.
#[derive(Clone, Debug)]
pub struct Sent {
    pub life: u32,
    /// For each Consul node, how far Lictor had seen when it decided on the bundle that it is at.
    pub decided: Arc<BTreeMap<String, u64>>,
    /// Nobody waits for the answer any more.
    pub abandoned: bool,
    /// The marker's index when it was sent.
    pub marker: Option<u64>,
    /// Which server it was sent to: it does not reach the next one.
    pub epoch: u64,
}

/// An instance that Kubernetes and a resource want.
#[derive(Clone, Debug)]
struct Wanted {
    /// The resource's uid and generation: an edit is another wish.
    wish: (Str, i64),
    /// At which position of the cluster's log it became so.
    since: u64,
    /// Likewise, for being ready.
    ready_since: Option<u64>,
}

/// What the continuous checks know.
#[derive(Clone, Default)]
pub struct Oracle {
    wanted: BTreeMap<Place, Wanted>,
    /// Addresses of endpoints that live, of resources whose port is not to be found among these ports.
    held: BTreeMap<(ResourceKey, String), (Wanted, String)>,
    /// Resources that are being deleted and leave everything behind, since when.
    retained: BTreeMap<ResourceKey, u64>,
    /// How far each watch has told of the log; none before its first list is whole.
    seen: BTreeMap<(Kind, Scope), Option<u64>>,
    /// For each Consul node, how far Lictor had seen at its last decision.
    decided: Arc<BTreeMap<String, u64>>,
    foreign: BTreeSet<(String, String)>,
    foreign_nodes: BTreeSet<String>,
    /// Instances of ours that were edited by hand.
    touched: BTreeSet<(String, String)>,
    /// Likewise, that another cluster has taken over.
    disputed: BTreeSet<(String, String)>,
    /// The catalog was put back to an earlier state.
    was_restored: bool,
}

impl Oracle {
    pub fn sees_nothing(&mut self, watches: Vec<(Kind, Scope)>) {
        self.seen = watches.into_iter().map(|watch| (watch, None)).collect();
    }

    pub fn has_seen(&mut self, kind: Kind, scope: &Scope, position: u64) {
        self.seen.insert((kind, scope.clone()), Some(position));
    }

    pub fn decisions(&self) -> Arc<BTreeMap<String, u64>> {
        self.decided.clone()
    }

    pub fn is_foreign(&self, node: &str, id: &str) -> bool {
        self.foreign.contains(&(fold(node), fold(id)))
    }

    pub fn is_foreign_node(&self, node: &str) -> bool {
        self.foreign_nodes.contains(&fold(node))
    }

    pub fn make_foreign(&mut self, node: &str, id: &str) {
        self.foreign.insert((fold(node), fold(id)));
    }

    pub fn make_foreign_node(&mut self, node: &str) {
        self.foreign_nodes.insert(fold(node));
    }

    /// Everything foreign, to be restored with a snapshot; and nothing, for a Consul that was emptied.
    pub fn foreign(&self) -> (BTreeSet<(String, String)>, BTreeSet<String>) {
        (self.foreign.clone(), self.foreign_nodes.clone())
    }

    pub fn set_foreign(&mut self, (foreign, nodes): (BTreeSet<(String, String)>, BTreeSet<String>)) {
        (self.foreign, self.foreign_nodes) = (foreign, nodes);
    }

    /// A restored catalog may have instances that nobody who let a resource go has known of.
    pub fn forget_retained(&mut self) {
        self.was_restored = true;
    }

    pub fn dispute(&mut self, node: &str, id: &str) {
        self.disputed.insert((fold(node), fold(id)));
    }

    pub fn touch(&mut self, node: &str, id: &str) {
        self.touched.insert((fold(node), fold(id)));
    }
}

/// Whether a service carries our cluster's mark.
pub fn is_marked(service: &Service) -> bool {
    let is = |key: &str, value: &str| service.meta.get(key).is_some_and(|there| there == value);
    is("managed-by", "lictor") && is("lictor-cluster", CLUSTER) && is("lictor-cluster-uid", CLUSTER_UID)
}

/// Whether a service carries anybody's mark.
fn has_owner(service: &Service) -> bool {
    ["lictor-cluster", "lictor-cluster-uid", "lictor-owner"].iter().any(|key| service.meta.contains_key(*key))
}

impl Sim {
    /// Changes Kubernetes, or tries to.
    pub fn change_cluster<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let before = state.cluster.position();
        let outcome = change(&mut state);
        if state.cluster.position() != before {
            state.work_out_what_is_wanted();
        }
        drop(state);
        self.cluster_has_moved();
        outcome
    }
}

impl State {
    /// What each resource of the watched namespaces wants.
    pub fn wants(&self) -> BTreeMap<ResourceKey, Want> {
        let watched = self.cluster.resources.values().filter(|object| self.setup.watches(&object.key.namespace));
        watched.map(|object| (object.key.clone(), Want::of(&self.cluster, self.setup.mode, object))).collect()
    }

    /// Looks at Kubernetes after a change.
    pub fn work_out_what_is_wanted(&mut self) {
        let now = self.cluster.position();
        let (mut wanted, mut held) = (BTreeMap::new(), BTreeMap::new());
        for (key, want) in self.wants() {
            let object = &self.cluster.resources[&key];
            let wish = (object.uid.clone(), object.generation);
            let keep = |known: Option<&Wanted>, ready: bool| {
                let known = known.filter(|known| known.wish == wish);
                let since = known.map_or(now, |known| known.since);
                let ready_since = ready.then(|| known.and_then(|known| known.ready_since).unwrap_or(now));
                Wanted { wish: wish.clone(), since, ready_since }
            };
            match want {
                Want::Rows(rows) => {
                    for (place, expected) in rows {
                        let now = keep(self.oracle.wanted.get(&place), expected.readiness == Some("passing"));
                        wanted.insert(place, now);
                    }
                }
                Want::NoPort { living, ports } => {
                    for address in living {
                        let key = (key.clone(), address);
                        let known = self.oracle.held.get(&key).filter(|(_, known)| *known == ports);
                        let now = keep(known.map(|(held, _)| held), false);
                        held.insert(key, (now, ports.clone()));
                    }
                }
                Want::NoService | Want::Refused | Want::Deleting => {}
            }
            let retains = object.deletion == DeletionPolicy::Retain;
            if object.deleting && retains && object.has_finalizer() {
                self.oracle.retained.entry(key).or_insert(now);
            } else {
                self.oracle.retained.remove(&key);
            }
        }
        self.oracle.wanted = wanted;
        self.oracle.held = held;
    }

    /// Lictor has taken its finalizer off: it says that nothing of a resource is left.
    pub fn finalizer_was_removed(&mut self, key: &ResourceKey) {
        self.stats.count("resources let go");
        // An agent has yet to tell the catalog, and what it was sent may still land.
        if self.setup.mode == Mode::Agent || self.oracle.was_restored {
            return;
        }
        let left = self.consul.store.services().filter(|(node, service)| {
            let row = (fold(node), fold(&service.id));
            let others = [&self.oracle.foreign, &self.oracle.touched, &self.oracle.disputed];
            is_marked(service)
                && owner(&service.id).as_ref() == Some(key)
                && others.iter().all(|set| !set.contains(&row))
        });
        let left: Vec<String> = left.map(|(_, service)| service.id.clone()).collect();
        if !left.is_empty() {
            self.violate("nothing stale", format!("{key} was let go while Consul has {left:?}"));
        }
    }

    /// How far Lictor has seen: nothing that happened before is unknown to it.
    fn view(&self) -> u64 {
        let head = self.cluster.position();
        let far = |((kind, scope), position): (&(Kind, Scope), &Option<u64>)| match position {
            None => 0,
            Some(position) => self.cluster.next_change(*position, *kind, scope).map_or(head, |(next, _)| next - 1),
        };
        self.oracle.seen.iter().map(far).min().unwrap_or_default()
    }

    /// Lictor decides on a bundle for a Consul node.
    pub fn decides(&mut self, node: &str) {
        let view = self.view();
        Arc::make_mut(&mut self.oracle.decided).insert(fold(node), view);
    }

    /// The marker's index, in `catalog` mode.
    pub fn marker_index(&self) -> Option<u64> {
        self.consul.store.node(MARKER).map(|marker| marker.modify_index)
    }

    /// Looks at what has just been done in Consul.
    pub fn observe(&mut self, origin: &Origin) {
        let mut changes = self.consul.store.take_changes();
        if let Some(agent) = &mut self.consul.agent {
            changes.append(&mut agent.take_changes());
        }
        let Origin::Lictor(sent) = origin else { return };
        let gone: BTreeSet<(String, String)> = changes
            .iter()
            .filter_map(|change| match change {
                Change { before: Some(Entity::Service { node, service }), after: None } => {
                    Some((fold(node), service.id.clone()))
                }
                _ => None,
            })
            .collect();
        for change in &changes {
            match (&change.before, &change.after) {
                (Some(Entity::Node(node)), after) => self.judge_node(node, after.is_none(), &gone),
                (None, Some(Entity::Node(node))) => self.judge_node(node, false, &gone),
                (before, Some(Entity::Service { node, service })) => {
                    let before = match before {
                        Some(Entity::Service { service, .. }) => Some(service),
                        _ => None,
                    };
                    self.judge_service(node, before.unwrap_or(service), Some(service), sent);
                }
                (Some(Entity::Service { node, service }), _) => self.judge_service(node, service, None, sent),
                (before, Some(Entity::Check(check))) => {
                    let before = match before {
                        Some(Entity::Check(before)) => Some(&**before),
                        _ => None,
                    };
                    self.judge_check(before, check, false, sent);
                }
                (Some(Entity::Check(check)), _) => {
                    let with_its_service = gone.contains(&(fold(&check.node), check.service_id.clone()));
                    self.judge_check(Some(check), check, with_its_service, sent);
                }
                (None, None) => {}
            }
        }
    }

    fn judge_node(&mut self, node: &Node, deleted: bool, gone: &BTreeSet<(String, String)>) {
        let name = &node.node;
        if self.oracle.is_foreign_node(name) || !(name == MARKER || name.starts_with("c1-")) {
            self.violate("nothing foreign", format!("the node {name} was written"));
        }
        if deleted {
            self.stats.count("nodes removed");
            if gone.iter().any(|(of, _)| *of == fold(name)) {
                self.violate("nothing lost", format!("the node {name} was deleted with what was on it"));
            }
        }
    }

    /// Judges what Lictor did to an instance.
    fn judge_service(&mut self, node: &str, before: &Service, after: Option<&Arc<Service>>, sent: &Sent) {
        let id = &before.id;
        let life = sent.life;
        if self.oracle.disputed.contains(&(fold(node), fold(id))) {
            return;
        }
        if self.oracle.is_foreign(node, id) || !id.starts_with(PREFIX) {
            let what = if after.is_some() { "written" } else { "removed" };
            self.violate("nothing foreign", format!("{id} on {node} was {what} by life {life}"));
            return;
        }
        let touched = self.oracle.touched.contains(&(fold(node), fold(id)));
        let leaves = after.is_none_or(|after| is_marked(before) && !is_marked(after));
        if !leaves {
            return;
        }
        // What an agent was sent may land at any time: what nobody owned may be owned again, and the other way round.
        let certain = self.setup.mode == Mode::Catalog || !self.setup.faults;
        if after.is_none() {
            self.stats.count("instances removed");
            if !has_owner(before) && !touched && certain {
                self.violate(
                    "nothing foreign",
                    format!("{id} on {node} was removed by life {life} although nobody owns it"),
                );
            }
        } else {
            self.stats.count("instances released");
        }
        let decided = sent.decided.get(&fold(node)).copied().unwrap_or_default();
        let wanted = self.oracle.wanted.get(&place(node, id)).filter(|wanted| wanted.since <= decided);
        if let Some(wanted) = wanted {
            let since = wanted.since;
            self.violate(
                "nothing lost",
                format!("{id} on {node} was taken by life {life}; it is wanted since {since}, and {decided} was seen"),
            );
        }
        let Some(key) = owner(id) else { return };
        let held = self.oracle.held.get(&(key.clone(), before.address.clone()));
        if held.is_some_and(|(held, _)| held.since <= decided) {
            self.violate("nothing lost", format!("{id} on {node} was taken by life {life} while its port is unknown"));
        }
        let retained = self.oracle.retained.get(&key).is_some_and(|since| *since <= decided);
        if retained && after.is_none() && certain && !touched && !self.oracle.was_restored {
            self.violate("nothing lost", format!("{id} on {node} was removed by life {life}; {key} retains it"));
        }
    }

    /// Judges what Lictor did to a check.
    fn judge_check(&mut self, before: Option<&Check>, check: &Check, with_its_service: bool, sent: &Sent) {
        let (id, node) = (&check.check_id, &check.node);
        if with_its_service || self.oracle.disputed.contains(&(fold(node), fold(&check.service_id))) {
            return;
        }
        if !id.starts_with(PREFIX) || !id.ends_with(":readiness") || self.oracle.is_foreign(node, &check.service_id) {
            self.violate("nothing foreign", format!("the check {id} on {node} was written by life {}", sent.life));
        }
        let worse = check.status == "critical" && before.is_none_or(|before| before.status == "passing");
        let decided = sent.decided.get(&fold(node)).copied().unwrap_or_default();
        let wanted = self.oracle.wanted.get(&place(node, &check.service_id));
        let ready = wanted.and_then(|wanted| wanted.ready_since).is_some_and(|since| since <= decided);
        if worse && ready {
            self.violate("nothing lost", format!("{id} on {node} was made critical by life {}", sent.life));
        }
    }
}

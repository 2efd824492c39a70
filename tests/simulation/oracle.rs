//! What is watched all the time: nothing live is removed, nothing foreign is touched.
//!
//! Whether a removal was wrong is judged by what Lictor could know: it may act on a view that is behind, and so
//! an instance counts as wanted only if Kubernetes has wanted it ever since the oldest thing that Lictor had seen
//! when it decided.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lictor::cluster::api::ConsulServiceStatus;
use lictor::model::facts::{Endpoint, Pod, Service as KubernetesService, ServicePort, Slice};
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::port::PortRef;
use lictor::model::resource::{DeletionPolicy, Readiness, Resource, Source, Spec};
use lictor::state::event::{Event, Kind, ObjectKey, Scope};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cluster::{Cluster, EndpointId, Object, endpoint_id};
use crate::consul::agent::Agent as LocalAgent;
use crate::consul::store::{Change, Check, Entity, Node, Service, fold};
use crate::expected::{Expected, Place, Rows, Want, has_port, lives_without_port, owner, place, told};
use crate::moves::FORMER_NODE;
use crate::setup::{AGENT_NODE, CLUSTER, CLUSTER_UID, MARKER, Mode, NAMESPACES, PREFIX};
use crate::sim::{Sim, State};

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
    /// For each Consul node, what Lictor had seen when it decided on the bundle that it is at.
    pub decided: Arc<BTreeMap<String, View>>,
    /// Nobody waits for the answer any more.
    pub abandoned: bool,
    /// The marker's index when it was sent.
    pub marker: Option<u64>,
    /// Which server it was sent to: it does not reach the next one.
    pub epoch: u64,
    /// How often the catalog had been put back to an earlier state.
    pub restores: u64,
    /// True once Lictor has the answer.
    pub heard: Arc<AtomicBool>,
}

/// How far Lictor has seen of each kind: nothing that happened before is unknown to it. A kind that it has not listed
/// to the end is not in it: whatever depends on one Lictor leaves as it is.
pub type View = BTreeMap<Kind, u64>;

/// An instance that Kubernetes and a resource want.
#[derive(Clone, Debug)]
struct Wanted {
    /// The resource's uid and generation: an edit is another wish.
    wish: (Str, i64),
    /// At which position of the cluster's log it became so.
    since: u64,
    /// Likewise, for being ready.
    ready_since: Option<u64>,
    /// The kinds that tell.
    kinds: Arc<[Kind]>,
    /// Which endpoint it is.
    endpoint: Option<EndpointId>,
    /// Whether it only stays as it is, since its endpoint has no port of those that the resource asks for.
    without_port: bool,
}

/// An instance whose endpoint lives and is in no slice, or was not a short time ago.
#[derive(Clone, Debug)]
struct TakenOut {
    /// As it was wanted before.
    wanted: Wanted,
    service: ObjectKey,
    since: Duration,
}

/// How long an instance stays at least whose endpoint is in no slice, from when Lictor has last seen a slice written.
const STAYS: Duration = Duration::from_secs(5);

/// How long it is remembered that an endpoint was in no slice.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How long Lictor may count what is gone: until the answer to a removal comes.
const UNANSWERED: Duration = Duration::from_secs(15);

/// How far back Lictor may have counted the instances of which a tenth may go: a minute, and what it has not read since.
const COUNTED: Duration = Duration::from_secs(120);

/// The uid of the pod that an instance stands for, by its ID; its address where it stands for none.
fn pod_of(instance: &Service) -> Option<&str> {
    instance.id.rsplit(':').nth(1)
}

/// An endpoint or a pod at an address.
#[derive(Clone, Debug)]
struct End {
    /// The uid of the pod, where there is one.
    uid: Option<Str>,
    /// It is ready or, on its way out, serves still.
    serves: bool,
    leaves: bool,
}

/// When a resource had its last instance under a name.
#[derive(Clone, Debug)]
struct Left {
    at: Duration,
    /// Somebody else has removed it, or the catalog still showed it: Lictor may not know.
    unheard: bool,
    /// For each removal under the name by Lictor, the last one or one before, whether it has the answer.
    answered: Vec<Arc<AtomicBool>>,
}

impl Left {
    /// Whether Lictor still waits for the answer to a removal.
    fn waits(&self) -> bool {
        self.answered.iter().any(|answered| !answered.load(Ordering::Relaxed))
    }
}

/// All kubelets were cut off.
#[derive(Clone, Debug)]
struct Cut {
    since: Duration,
    /// The instances that passed until then, by their IDs.
    passed: BTreeSet<String>,
    /// The life of Lictor that has made instances critical since, and which those are.
    life: Option<u32>,
    critical: BTreeSet<Place>,
    /// The instances that there were of late.
    owned: usize,
    /// Whether most of them were not ready at some time since.
    was_most: bool,
}

/// The namespace that an ID names: `cluster:namespace:resource:…`.
fn namespace_of(id: &str) -> &str {
    id.split(':').nth(1).unwrap_or_default()
}

/// How long those who had a name wait for those who have it next.
const HAND_OVER: Duration = Duration::from_secs(30);

/// Fewer instances than this say nothing of kubelets.
const LEAST: usize = 10;

/// A name that a resource was told to be its own.
#[derive(Clone, Debug)]
struct Holder {
    name: String,
    /// Since which position of the log its status says so.
    since: u64,
}

/// What the watches have told Lictor, and how much of that it has not taken in yet.
#[derive(Clone, Default)]
struct Inbox {
    sink: Option<mpsc::WeakSender<Event>>,
    /// How many events it was told of.
    told: usize,
    /// How far watches had told of the log, each after so many events.
    waiting: VecDeque<(usize, (Kind, Scope), u64)>,
}

/// What the continuous checks know.
#[derive(Clone, Default)]
pub struct Oracle {
    /// By seat, as all that is known of instances: the node that one stands on in the catalog may change.
    wanted: BTreeMap<Place, Wanted>,
    /// Instances whose endpoints the controller has taken out of a slice before it wrote the next one.
    taken_out: BTreeMap<Place, TakenOut>,
    /// Addresses of endpoints that live, of resources whose port is not to be found among these ports.
    held: BTreeMap<(ResourceKey, String), (Wanted, String)>,
    /// Resources that are being deleted and leave everything behind, since when.
    retained: BTreeMap<ResourceKey, u64>,
    /// Resources that are frozen, since when.
    paused: BTreeMap<ResourceKey, u64>,
    /// Resources that are being deleted, or given to another operator, and leave nothing behind, since when.
    leaving: BTreeMap<ResourceKey, u64>,
    /// At which time that began.
    leaving_at: BTreeMap<ResourceKey, Duration>,
    /// All kubelets are cut off, and most pods are not ready.
    cut: Option<Cut>,
    /// The names that resources have instances under, with the life of Lictor in which that began.
    names_in_use: BTreeMap<(ResourceKey, String), u32>,
    /// When resources last had instances under names that they have none under any more.
    names_left: BTreeMap<(ResourceKey, String), Left>,
    /// The removals by Lictor of which it may have no answer, under names that are still in use.
    removing: BTreeMap<(ResourceKey, String), Vec<Arc<AtomicBool>>>,
    /// Resources that ask for a name which their status calls accepted.
    holders: BTreeMap<ResourceKey, Holder>,
    /// Resources as they were when the definition of our kind was deleted, while it is not back: their instances stay.
    kept: BTreeMap<ResourceKey, Object>,
    /// How many instances of those Lictor may remove where it may not find out what became of the definition.
    spare: usize,
    /// How many instances there were of late, as far as Lictor may know.
    owned: VecDeque<(Duration, usize)>,
    /// When instances were last there, of those that Lictor may not know to be gone.
    last_there: BTreeMap<(String, String), Duration>,
    /// How far Lictor has taken in what each watch has told of the log; none before its first list is whole.
    seen: BTreeMap<(Kind, Scope), Option<u64>>,
    inbox: Inbox,
    /// When Lictor last sent bundles, and what it had seen then.
    launched: Option<(Instant, View)>,
    /// For each Consul node, what Lictor had seen at its last decision.
    decided: Arc<BTreeMap<String, View>>,
    foreign: BTreeSet<(String, String)>,
    foreign_nodes: BTreeSet<String>,
    /// Instances of ours that were edited by hand.
    touched: BTreeSet<(String, String)>,
    /// Likewise, that another cluster has taken over.
    disputed: BTreeSet<(String, String)>,
    /// How often the catalog was put back to an earlier state.
    restores: u64,
    /// The ports that resources were told to be in use, as long as their specs name none and have the same source.
    ports_told: BTreeMap<ResourceKey, (Str, Source, PortRef)>,
    /// All ports that each Service ever had at a time.
    ports_had: BTreeMap<ObjectKey, Vec<Vec<ServicePort>>>,
    /// Instances that the catalog has shown on the present agent's node since that is the present one.
    shown: BTreeSet<String>,
}

impl Oracle {
    /// Another life begins, which is told of events over this channel.
    pub fn sees_nothing(&mut self, sink: &mpsc::Sender<Event>) {
        self.seen.clear();
        self.launched = None;
        self.inbox = Inbox { sink: Some(sink.downgrade()), ..Inbox::default() };
    }

    /// Lictor was told of an event.
    pub fn was_told(&mut self) {
        self.inbox.told += 1;
    }

    /// Notes what Lictor has taken in of what it was told.
    fn takes_in(&mut self) {
        let sink = self.inbox.sink.as_ref().and_then(mpsc::WeakSender::upgrade);
        let waits = sink.map_or(0, |sink| sink.max_capacity() - sink.capacity());
        let taken = self.inbox.told.saturating_sub(waits);
        while self.inbox.waiting.front().is_some_and(|(told, _, _)| *told <= taken)
            && let Some((_, watch, position)) = self.inbox.waiting.pop_front()
        {
            self.seen.insert(watch, Some(position));
        }
    }

    /// The definition of our kind is about to be deleted, and all resources with it. Where nobody can tell, a tenth of what
    /// there was of late may go within a minute, and the definition is back within four.
    pub fn definition_goes(&mut self, cluster: &Cluster, can_tell: bool) {
        let stays = |object: &&Object| !object.deleting && object.deletion == DeletionPolicy::Deregister;
        let all = cluster.resources.values().filter(stays);
        self.kept = all.map(|object| (object.key.clone(), object.clone())).collect();
        let owned = self.owned.iter().map(|(_, owned)| *owned).max().unwrap_or_default();
        self.spare = if can_tell { 0 } else { owned / 10 * 4 };
    }

    /// It is installed again: nobody claims what is left of them.
    pub fn definition_returns(&mut self) {
        self.kept.clear();
    }

    pub fn begins_to_see(&mut self, watch: &(Kind, Scope)) {
        self.seen.entry(watch.clone()).or_default();
    }

    pub fn ends_to_see(&mut self, watch: &(Kind, Scope)) {
        self.seen.remove(watch);
        self.inbox.waiting.retain(|(_, of, _)| of != watch);
    }

    pub fn has_seen(&mut self, kind: Kind, scope: &Scope, position: u64) {
        self.inbox.waiting.push_back((self.inbox.told, (kind, scope.clone()), position));
    }

    pub fn decisions(&self) -> Arc<BTreeMap<String, View>> {
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
        self.restores += 1;
    }

    pub fn restores(&self) -> u64 {
        self.restores
    }

    /// Another agent is the present one.
    pub fn forget_shown(&mut self) {
        self.shown.clear();
    }

    /// The port that a resource was told to be in use, which it names nowhere else.
    pub fn port_told(&self, key: &ResourceKey) -> Option<&PortRef> {
        self.ports_told.get(key).map(|(_, _, port)| port)
    }

    pub fn dispute(&mut self, node: &str, id: &str) {
        self.disputed.insert((fold(node), fold(id)));
    }

    pub fn is_disputed(&self, node: &str, id: &str) -> bool {
        self.disputed.contains(&(fold(node), fold(id)))
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

impl Sent {
    /// How far Lictor had seen when it decided.
    fn view(&self, node: &str) -> View {
        self.decided.get(&fold(node)).cloned().unwrap_or_default()
    }

    /// Whether Lictor had seen all that these kinds tell up to a position of the log, when it decided.
    fn had_seen(&self, node: &str, kinds: &[Kind], since: u64) -> bool {
        let Some(view) = self.decided.get(&fold(node)) else { return false };
        kinds.iter().all(|kind| view.get(kind).is_none_or(|seen| since <= *seen))
    }
}

/// The kinds that tell what a resource wants.
fn kinds(object: &Object) -> Vec<Kind> {
    let needs = object.last_good.needs();
    let all = [
        (Kind::Resource, true),
        (Kind::Slice, needs.services),
        (Kind::Service, needs.services),
        (Kind::Pod, needs.pods),
        (Kind::Node, needs.nodes),
    ];
    all.into_iter().filter(|(_, needed)| *needed).map(|(kind, _)| kind).collect()
}

/// The name that a resource asks for, as names are compared.
pub fn asked(object: &Object) -> Option<String> {
    object.spec.as_ref().ok().filter(|_| !object.other_class).map(|spec| fold(&spec.service))
}

/// The name that a resource was told to be its own, by a status about its present spec.
fn name_told(object: &Object) -> Option<String> {
    if object.status.observed_generation != Some(object.generation) {
        return None;
    }
    let accepted = object.status.conditions.iter().any(|c| c.type_ == "Accepted" && c.status == "True");
    object.status.service_name.as_ref().filter(|_| accepted).map(|name| fold(name))
}

/// What is contradictory about a status.
fn contradictions(status: &ConsulServiceStatus) -> Vec<String> {
    let mut found = Vec::new();
    let counts = status.instances.unwrap_or_default();
    let is_true = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let mut holds = |what: &str, holds: bool| found.extend((!holds).then(|| format!("{what}: {status:?}")));
    holds("has states that do not add up", counts.passing + counts.warning + counts.critical == counts.registered);
    let all = ["Accepted", "Resolved", "Registered"].into_iter().all(is_true);
    holds("has a Ready that is not all others", is_true("Ready") == all);
    if is_true("Registered") {
        holds("is Registered, and some are missing", counts.registered == counts.desired);
        holds("is Registered, and has problems", status.problems.is_empty());
    }
    for condition in &status.conditions {
        let Some((said, _)) = condition.message.split_once(" instances are registered") else { continue };
        holds("has another number in words", said == format!("{} of {}", counts.registered, counts.desired));
    }
    found
}

/// The endpoint of an instance of a Service.
fn endpoint(place: &Place, expected: &Expected) -> Option<EndpointId> {
    let address = expected.service.address.parse().ok().filter(IpAddr::is_ipv4)?;
    let target = place.1.rsplit(':').nth(1)?;
    Some((address, (target != expected.service.address).then(|| target.into())))
}

/// Notes since when something holds of a resource.
fn since_when(known: &mut BTreeMap<ResourceKey, u64>, key: &ResourceKey, holds: bool, now: u64) {
    if holds {
        known.entry(key.clone()).or_insert(now);
    } else {
        known.remove(key);
    }
}

impl Sim {
    /// Changes Kubernetes, or tries to.
    pub fn change_cluster<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let before = state.cluster.position();
        let outcome = change(&mut state);
        let kills = std::mem::take(&mut state.kills_lictor);
        if state.cluster.position() != before {
            state.work_out_what_is_wanted();
        }
        drop(state);
        if kills {
            self.kill_lictor();
        }
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
        let kept = self.oracle.kept.iter();
        let kept = kept.map(|(key, object)| (key.clone(), Want::of(&self.cluster, self.setup.mode, object)));
        let wants: BTreeMap<ResourceKey, Want> = self.wants().into_iter().chain(kept).collect();
        for (key, want) in wants {
            let kept = self.oracle.kept.get(&key);
            let Some(object) = kept.or_else(|| self.cluster.resources.get(&key)) else { continue };
            let wish = (object.uid.clone(), object.generation);
            let kinds: Arc<[Kind]> = kinds(object).into();
            let keep = |known: Option<&Wanted>, ready: bool, endpoint: Option<EndpointId>| {
                let known = known.filter(|known| known.wish == wish);
                let since = known.map_or(now, |known| known.since);
                let ready_since = ready.then(|| known.and_then(|known| known.ready_since).unwrap_or(now));
                Wanted { wish: wish.clone(), since, ready_since, kinds: kinds.clone(), endpoint, without_port: false }
            };
            // While a spec is refused, what the one before wanted must not go.
            let want = match want {
                Want::Refused => Want::by(&self.cluster, self.setup.mode, object, &object.last_good),
                want => want,
            };
            match want {
                Want::Rows(Rows { rows, .. }) => {
                    for ((node, id), expected) in rows {
                        let is_ready = expected.readiness == Some("passing");
                        let seat = self.seat(&node, &id);
                        let endpoint = endpoint(&(node, id), &expected);
                        let now = keep(self.oracle.wanted.get(&seat), is_ready, endpoint);
                        wanted.insert(seat, now);
                    }
                }
                Want::Unclear { living, basis, .. } => {
                    for address in living {
                        let key = (key.clone(), address);
                        let known = self.oracle.held.get(&key).filter(|(_, known)| *known == basis);
                        let now = keep(known.map(|(held, _)| held), false, None);
                        held.insert(key, (now, basis.clone()));
                    }
                }
                Want::NoService | Want::Refused | Want::Paused | Want::Lost | Want::Deleting | Want::Elsewhere => {}
            }
            // What goes with the definition of our kind is kept as it was; one that was frozen may go on meanwhile.
            let present = self.cluster.resources.get(&key).unwrap_or(object);
            let is_frozen = present.paused && !present.other_class;
            since_when(&mut self.oracle.paused, &key, is_frozen, now);
            let retains = object.deletion == DeletionPolicy::Retain;
            let is_retained = object.deleting && retains && object.has_finalizer() && !object.other_class;
            since_when(&mut self.oracle.retained, &key, is_retained, now);
            let goes = object.deleting && !is_frozen || object.other_class && object.has_finalizer();
            since_when(&mut self.oracle.leaving, &key, goes && object.deletion == DeletionPolicy::Deregister, now);
            if self.oracle.leaving.contains_key(&key) {
                let at = self.now();
                self.oracle.leaving_at.entry(key.clone()).or_insert(at);
            }
            let name = name_told(object).filter(|name| asked(object).as_ref() == Some(name));
            match name {
                Some(name) if self.oracle.holders.get(&key).is_none_or(|known| known.name != name) => {
                    self.oracle.holders.insert(key, Holder { name, since: now });
                }
                Some(_) => {}
                None => _ = self.oracle.holders.remove(&key),
            }
        }
        let there = |key: &ResourceKey| self.cluster.resources.contains_key(key);
        self.oracle.retained.retain(|key, _| there(key));
        self.oracle.paused.retain(|key, _| there(key));
        self.oracle.leaving.retain(|key, _| there(key));
        let leaving = &self.oracle.leaving;
        self.oracle.leaving_at.retain(|key, _| leaving.contains_key(key));
        self.oracle.holders.retain(|key, _| there(key));
        self.keep_what_lives(&mut wanted);
        self.oracle.wanted = wanted;
        self.oracle.held = held;
        self.note_ports();
        self.note_cut();
    }

    /// All kubelets are about to be cut off; if they were so a short time ago, that goes on.
    pub fn kubelets_are_cut_off(&mut self) {
        let owned = self.oracle.owned.iter().map(|(_, owned)| *owned).max().unwrap_or_default();
        let is_ready = |(node, service): &(&str, &Arc<Service>)| {
            let check = self.consul.store.check(node, &format!("{}:readiness", service.id));
            check.is_some_and(|check| check.status == "passing")
        };
        let passed = self.instances().filter(is_ready).map(|(_, service)| service.id.clone()).collect();
        let since = self.now();
        let cut = Cut { since, passed, life: None, critical: BTreeSet::new(), owned, was_most: false };
        self.oracle.cut.get_or_insert(cut);
    }

    /// Notes when most instances are not ready any more that passed and are registered, and when that is over.
    fn note_cut(&mut self) {
        let Some(cut) = &self.oracle.cut else { return };
        let there: BTreeSet<&str> = self.instances().map(|(_, service)| service.id.as_str()).collect();
        let is_unready = |(seat, wanted): &(&Place, &Wanted)| {
            wanted.ready_since.is_none() && cut.passed.contains(&seat.1) && there.contains(seat.1.as_str())
        };
        let unready = self.oracle.wanted.iter().filter(is_unready).count();
        let Some(cut) = &mut self.oracle.cut else { return };
        let is_most = unready >= LEAST && unready * 2 > cut.owned;
        if cut.was_most && !is_most {
            self.oracle.cut = None;
        } else {
            cut.was_most = is_most;
        }
    }

    /// While most instances are not ready, and Lictor is to hold that, no more than half of them become critical, in the eyes of
    /// one life.
    fn judge_cut(&mut self, place: Place, sent: &Sent) {
        self.note_cut();
        let hold = self.setup.hold_mass_unready;
        let (now, owned) = (self.now(), self.oracle.last_there.len());
        let there: BTreeSet<Place> = self.instances().map(|(on, service)| self::place(on, &service.id)).collect();
        let Some(cut) = self.oracle.cut.as_mut().filter(|cut| now < cut.since + hold) else { return };
        if cut.life.replace(sent.life) != Some(sent.life) {
            cut.critical.clear();
            cut.owned = cut.owned.max(owned);
        }
        if !cut.passed.contains(&place.1) {
            return;
        }
        cut.critical.insert(place);
        // What went afterwards says nothing of the rest.
        let critical: Vec<&String> =
            cut.critical.iter().filter(|place| there.contains(*place)).map(|(_, id)| id).collect();
        let many = critical.len();
        // What one namespace's pods do alone holds up nobody, whichever one that is.
        let others = |namespace: &str, ids: &[&String]| ids.iter().filter(|id| namespace_of(id) != namespace).count();
        let (passed, there): (Vec<&String>, Vec<&String>) =
            (cut.passed.iter().collect(), there.iter().map(|(_, id)| id).collect());
        let is_of_several = NAMESPACES.iter().all(|namespace| {
            let all = others(namespace, &passed).max(others(namespace, &there));
            all == 0 || others(namespace, &critical) * 2 > all
        });
        if cut.was_most && is_of_several && !self.setup.elects && many >= LEAST && many > cut.owned / 2 {
            let what = format!("life {} has made {many} of {} critical since then", sent.life, cut.owned);
            self.violate("nothing lost: the kubelets are cut off", what);
        }
    }

    /// Notes which ports there are, and which ones resources were told to be in use.
    fn note_ports(&mut self) {
        for (key, service) in &self.cluster.services {
            let had = self.oracle.ports_had.entry(key.clone()).or_default();
            if !had.contains(&service.ports) {
                had.push(service.ports.clone());
            }
        }
        let resources = &self.cluster.resources;
        let wishes = |object: &Object, uid: &Str, source: &Source| {
            let spec = object.spec.as_ref().map_or(&object.last_good, |spec| spec);
            object.uid == *uid && spec.port.is_none() && spec.source == *source && !object.other_class
        };
        // A status has room for one port. One without its name tells that of the source which it goes on by, and nothing is
        // registered of the other one.
        let tells_of_another = |object: &Object, source: &Source| {
            object.status.port_in_use.as_ref().is_some_and(|port| port.source != source.to_string())
        };
        // Without a status it knows no more than anybody does.
        self.oracle.ports_told.retain(|key, (uid, source, _)| {
            let object = resources.get(key).filter(|object| object.status.observed_generation.is_some());
            object.is_some_and(|object| wishes(object, uid, source) && !tells_of_another(object, source))
        });
        for object in resources.values() {
            let Ok(spec) = &object.spec else { continue };
            if let Some(told) = told(object, spec) {
                let told = (object.uid.clone(), spec.source.clone(), told);
                self.oracle.ports_told.insert(object.key.clone(), told);
            }
        }
    }

    /// Instances are to stay though Kubernetes' slices do not tell for a while how or where they are: those that have no
    /// port yet and, for a time, those that are in no slice.
    fn keep_what_lives(&mut self, wanted: &mut BTreeMap<Place, Wanted>) {
        let (now, position) = (self.now(), self.cluster.position());
        let mut taken_out = std::mem::take(&mut self.oracle.taken_out);
        for (place, known) in &self.oracle.wanted {
            if wanted.contains_key(place) {
                continue;
            }
            let Some((object, spec)) = self.still_wishes(place, known) else { continue };
            let Some(id) = &known.endpoint else { continue };
            if lives_without_port(&self.cluster, object, spec, id.0, Some(&id.1)) {
                // Who has not seen that may take it away for another reason, as when it is not ready.
                let since = if known.without_port { known.since } else { position };
                let ready_since = known.ready_since.map(|ready| ready.max(since));
                wanted.insert(place.clone(), Wanted { since, ready_since, without_port: true, ..known.clone() });
            } else if let Some(service) = self.is_taken_out(object, spec, id) {
                taken_out.insert(place.clone(), TakenOut { wanted: known.clone(), service, since: now });
            }
        }
        taken_out.retain(|place, known| {
            let Some((object, spec)) = self.still_wishes(place, &known.wanted) else { return false };
            let id = known.wanted.endpoint.as_ref();
            let out = id.is_some_and(|id| self.is_taken_out(object, spec, id).is_some());
            // One that terminates may leave at once, also where it serves to its end for now.
            let mut pods = self.cluster.pods.values();
            let terminates = id.is_some_and(|id| pods.any(|pod| id.1.as_ref() == Some(&pod.uid) && pod.leaving));
            now < known.since + REMEMBERED && (out || wanted.contains_key(place) && !terminates)
        });
        self.oracle.taken_out = taken_out;
    }

    /// The resource that wanted an instance, and its spec, if it is what it was.
    fn still_wishes(&self, place: &Place, wanted: &Wanted) -> Option<(&Object, &Spec)> {
        let object = self.cluster.resources.get(&owner(&place.1)?)?;
        let same = (object.uid.clone(), object.generation) == wanted.wish && !object.deleting && !object.paused;
        Some((object, object.spec.as_deref().ok().filter(|_| same)?))
    }

    /// The Service that an endpoint lives in although it is in none of its slices.
    fn is_taken_out(&self, object: &Object, spec: &Spec, id: &EndpointId) -> Option<ObjectKey> {
        let Source::Service { name } = &spec.source else { return None };
        let service = ObjectKey { namespace: object.key.namespace.clone(), name: name.clone() };
        // Without a pod nobody can tell whether there is one at its address.
        let can_tell = id.1.is_some() || !spec.limits.verify_endpoints;
        let out = can_tell && self.cluster.taken_out(&service).iter().any(|endpoint| endpoint_id(endpoint) == *id);
        out.then_some(service)
    }

    /// Lictor has taken its finalizer off: it says that nothing of a resource is left.
    pub fn finalizer_was_removed(&mut self, key: &ResourceKey) {
        self.stats.count("resources let go");
        // What goes with the definition of our kind leaves its instances behind.
        if self.cluster.crd_deleted {
            return;
        }
        // An agent has yet to tell the catalog, and what it was sent may still land.
        if self.setup.mode == Mode::Agent || self.oracle.restores > 0 {
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

    /// No port in use is exchanged for another one which a Service has had all the time.
    fn judge_port_in_use(&mut self, object: &Object, before: &Object) {
        let Ok(spec) = &object.spec else { return };
        let Source::Service { name } = &spec.source else { return };
        let same = (&object.uid, object.generation) == (&before.uid, before.generation);
        let (Some(new), Some(old)) = (told(object, spec), told(before, spec).filter(|_| same)) else { return };
        let service = ObjectKey { namespace: object.key.namespace.clone(), name: name.clone() };
        let mut had = self.oracle.ports_had.get(&service).into_iter().flatten();
        // One that has got a name is the same one.
        let had_it = |ports: &Vec<ServicePort>| {
            let service =
                KubernetesService { family: None, selects: false, external_name: false, ports: ports.clone() };
            let (new, old) = (has_port(&service, &new), has_port(&service, &old));
            old.is_some() && old != new
        };
        if new != old && had.all(had_it) {
            self.violate("nothing lost", format!("{} exchanged its port {old:?} for {new:?}", object.key));
        }
    }

    /// No status may contradict its own counts.
    pub fn judge_status(&mut self, key: &ResourceKey, before: Option<&Object>) {
        let Some(object) = self.cluster.resources.get(key).cloned() else { return };
        if let Some(before) = before {
            self.judge_port_in_use(&object, before);
        }
        for what in contradictions(&object.status) {
            self.violate("nothing hidden", format!("the status of {key} {what}"));
        }
    }

    fn view(&self) -> View {
        let head = self.cluster.position();
        let mut view = View::new();
        for ((kind, scope), position) in &self.oracle.seen {
            let Some(position) = position else { continue };
            let far = self.cluster.next_change(*position, *kind, scope).map_or(head, |(next, _)| next - 1);
            view.entry(*kind).and_modify(|known| *known = far.min(*known)).or_insert(far);
        }
        view
    }

    /// Lictor is about to send bundles. They leave in this very moment, when it may have taken in more.
    pub fn launches(&mut self) {
        let now = Instant::now();
        self.oracle.takes_in();
        let listed: BTreeSet<Kind> =
            self.oracle.seen.iter().filter(|(_, seen)| seen.is_some()).map(|((kind, _), _)| *kind).collect();
        // Before a kind was listed nothing was decided that depends on it.
        let is_known = |(at, view): &(Instant, View)| *at == now && listed.iter().all(|kind| view.contains_key(kind));
        if !self.oracle.launched.as_ref().is_some_and(is_known) {
            self.oracle.launched = Some((now, self.view()));
        }
    }

    /// Lictor has decided on a bundle for a Consul node.
    pub fn decides(&mut self, node: &str) {
        self.launches();
        let view = self.oracle.launched.as_ref().map(|(_, view)| view.clone()).unwrap_or_default();
        Arc::make_mut(&mut self.oracle.decided).insert(fold(node), view);
    }

    /// The marker's index, in `catalog` mode.
    pub fn marker_index(&self) -> Option<u64> {
        self.consul.store.node(MARKER).map(|marker| marker.modify_index)
    }

    /// Looks at what has just been done in Consul.
    pub fn observe(&mut self, origin: &Origin) {
        self.note_names_in_use(origin);
        let mut changes = self.consul.store.take_changes();
        let shown = changes.iter().filter_map(|change| match &change.after {
            Some(Entity::Service { node, service }) if node == AGENT_NODE => Some(service.id.clone()),
            _ => None,
        });
        self.oracle.shown.extend(shown);
        for agent in self.consul.agent.iter_mut().chain(&mut self.consul.former) {
            changes.append(&mut agent.take_changes());
        }
        let Origin::Lictor(sent) = origin else { return };
        for change in &changes {
            if let Change { before: Some(Entity::Service { service, .. }), after: None } = change
                && let Some(owner) = owner(&service.id)
            {
                let removals = self.oracle.removing.entry((owner, fold(&service.service))).or_default();
                removals.retain(|answered| !answered.load(Ordering::Relaxed));
                removals.push(sent.heard.clone());
            }
        }
        let gone: BTreeSet<(String, String)> = changes
            .iter()
            .filter_map(|change| match change {
                Change { before: Some(Entity::Service { node, service }), after: None } => {
                    Some((fold(node), service.id.clone()))
                }
                _ => None,
            })
            .collect();
        // Names that a row goes from with this very request: what it registers under one of them takes the row's place.
        let left: BTreeSet<(Str, String)> = changes
            .iter()
            .filter_map(|change| match change {
                Change { before: Some(Entity::Service { service, .. }), after: None } if is_marked(service) => {
                    Some((owner(&service.id)?.namespace, fold(&service.service)))
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
                    let takes_a_place =
                        owner(&service.id).is_some_and(|of| left.contains(&(of.namespace, fold(&service.service))));
                    if !takes_a_place {
                        self.judge_name(node, before.map(|before| &**before), service, sent);
                    }
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
        if self.oracle.is_foreign_node(name) || !(name == MARKER || fold(name).starts_with("c1-")) {
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
        self.judge_pause(node, id, sent);
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
        let Some(key) = owner(id) else { return };
        let has_moved = self.stands_elsewhere(node, id) || self.was_touched_elsewhere(node, id);
        let wanted = self.oracle.wanted.get(&self.seat(node, id)).filter(|_| !has_moved);
        let wanted = wanted.filter(|wanted| sent.had_seen(node, &wanted.kinds, wanted.since));
        let held = self.oracle.held.get(&(key.clone(), before.address.clone()));
        let held = held.is_some_and(|(held, _)| sent.had_seen(node, &held.kinds, held.since));
        let leaves_nobody = after.is_none() && self.leaves_nobody(&key, node, before, sent);
        // With the definition of our kind goes what ends with its pod, too.
        let counts = wanted.is_some() || held || leaves_nobody;
        let spared = counts && self.oracle.kept.contains_key(&key) && self.oracle.spare > 0;
        if spared {
            self.oracle.spare -= 1;
        } else if let Some(wanted) = wanted
            && !self.is_contested(&key, &before.service)
            && !self.leaves_for_another(&key, node, before, &sent.view(node))
        {
            let (since, seen) = (wanted.since, sent.view(node));
            self.violate(
                "nothing lost",
                format!("{id} on {node} was taken by life {life}; it is wanted since {since}, and {seen:?} was seen"),
            );
        }
        if leaves_nobody && !spared {
            self.violate(
                "nothing lost",
                format!("{id} on {node} was removed by life {life} before another one passed"),
            );
        }
        if after.is_none()
            && let Some(next) = self.leaves_name_empty(&key, node, before, sent)
        {
            let what = format!("{id} on {node} was removed by life {life} before {next} passed");
            self.violate("nothing lost: nobody has the name", what);
        }
        self.judge_move(node, id, sent);
        self.judge_taken_out(node, &key, before, sent);
        // One that loses its name goes on by what its instances came from.
        let asked = self.cluster.resources.get(&key).and_then(asked);
        let may_lose = asked.is_some_and(|asked| self.is_contested(&key, &asked));
        let may_go =
            self.goes_on(&key, node, before, &sent.view(node)) || self.ends_with_pod(&key, before, &sent.view(node));
        if held && !spared && !may_lose && !may_go {
            self.violate("nothing lost", format!("{id} on {node} was taken by life {life} while nobody can tell"));
        }
        let retained = self.oracle.retained.get(&key);
        let retained = retained.is_some_and(|since| sent.had_seen(node, &[Kind::Resource], *since));
        if retained && after.is_none() && certain && !touched && self.oracle.restores == 0 {
            self.violate("nothing lost", format!("{id} on {node} was removed by life {life}; {key} retains it"));
        }
    }

    /// Whether an instance ends with its pod, which was seen terminating where the instance came from: among the pods, where it
    /// does not serve, or in the slices of its Service. What the resource asks for by now may still show its address as one that
    /// lives. A resource that goes on without its name follows what its instances came from, and that it does so cannot always
    /// be seen: one that was acted under a name has it until it is acted on under another one, also while it is paused, though
    /// no status about its present spec says so.
    fn ends_with_pod(&self, key: &ResourceKey, gone: &Service, view: &View) -> bool {
        let Some(source) = gone.meta.get("lictor-source") else { return false };
        let ends = |at| {
            let (pods, slices) = self.cluster.at(at);
            let mut pods = pods.into_iter().filter(|(pod, _)| source == "pods" && pod.namespace == key.namespace);
            let is_its_service = |slice: &Slice| source.strip_prefix("service/") == Some(&*slice.service);
            let slices = slices.into_iter().filter(|(slice, _)| slice.namespace == key.namespace);
            let slices = slices.filter(|(_, slice)| is_its_service(slice));
            let mut endpoints = slices.flat_map(|(_, slice)| &slice.endpoints);
            let is_its_pod = |endpoint: &Endpoint| endpoint.pod.as_ref().map(|pod| &*pod.uid) == pod_of(gone);
            pods.any(|(_, pod)| pod.leaving && !pod.ready && pod_of(gone) == Some(&*pod.uid))
                || endpoints.any(|endpoint| endpoint.terminating && is_its_pod(endpoint))
        };
        pod_of(gone).is_some() && self.since(view).any(ends)
    }

    /// Whether a port goes on, of several that the spec does not name: the one of another instance at this address, which
    /// is registered, that of one which is not registered since it is not ready, that of one whose pod is gone where pods are
    /// asked for, that of one beyond the limit, that of others which are registered and whose pods have it, unlike this one's,
    /// or that of one which is ready and registered, while this one is on its way out.
    fn goes_on(&self, key: &ResourceKey, node: &str, gone: &Service, view: &View) -> bool {
        let object = self.as_it_was(key).filter(|object| object.last_good.port.is_none());
        let Some(object) = object else { return false };
        let (spec, limits) = (&object.last_good, &object.last_good.limits);
        let stands = self.others(key, node, gone).any(|other| other.address == gone.address);
        let is_unready = |at| !self.ends_of(object, gone, at).iter().any(|end| end.serves);
        let has_no_pod = |at| {
            let mut pods = self.cluster.at(at).0.into_iter().filter(|(pod, _)| pod.namespace == key.namespace);
            !pods.any(|(_, pod)| pod.addresses.iter().any(|address| address.to_string() == gone.address))
        };
        let from_service = matches!(spec.source, Source::Service { .. });
        let lacks_port = |at| {
            let mut pods = self.cluster.at(at).0.into_iter().filter(|(pod, _)| pod.namespace == key.namespace);
            let is_at = |pod: &Pod| pod.addresses.iter().any(|address| address.to_string() == gone.address);
            pods.any(|(_, pod)| is_at(pod) && pod.ports.iter().all(|port| i64::from(port.number) != gone.port))
        };
        let is_asked = |other: &&Arc<Service>| is_marked(other) && fold(&other.service) == fold(&spec.service);
        stands
            || spec.readiness == Readiness::Deregister && self.since(view).any(is_unready)
            || limits.verify_endpoints && from_service && self.since(view).any(has_no_pod)
            || self.others(key, node, gone).filter(is_asked).count() >= limits.instances
            || !from_service
                && self.others(key, node, gone).any(|other| is_asked(&other))
                && self.since(view).any(lacks_port)
            || self.leaves_for_another(key, node, gone, view)
    }

    /// Whether an instance is on its way out and another one of its resource is ready, as far as Lictor had seen: it may go on
    /// with a port of several that the spec does not name, or Lictor may have seen a slice and not yet the end of a pod.
    fn leaves_for_another(&self, key: &ResourceKey, node: &str, gone: &Service, view: &View) -> bool {
        let Some(object) = self.as_it_was(key) else { return false };
        let leaves = |at| {
            let ends = self.ends_of(object, gone, at);
            !ends.is_empty() && ends.iter().all(|end| end.leaves)
        };
        let stays = |at| {
            let mut left = self.others(key, node, gone).flat_map(|other| self.ends_of(object, other, at));
            left.any(|end| end.serves && !end.leaves)
        };
        self.since(view).any(leaves) && self.since(view).any(stays)
    }

    /// The positions of the log that Lictor may have seen beyond this view, of one watch or another.
    fn since(&self, view: &View) -> impl Iterator<Item = u64> {
        let head = self.cluster.position();
        view.values().copied().min().unwrap_or(head)..=head
    }

    /// A resource as it is, or was when the definition of our kind was deleted.
    fn as_it_was(&self, key: &ResourceKey) -> Option<&Object> {
        self.oracle.kept.get(key).or_else(|| self.cluster.resources.get(key))
    }

    /// The instances of a resource besides this one.
    fn others<'a>(
        &'a self,
        key: &'a ResourceKey,
        node: &'a str,
        gone: &'a Service,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let is_other = move |(on, other): &(&str, &Arc<Service>)| {
            owner(&other.id).as_ref() == Some(key) && (fold(on) != fold(node) || other.id != gone.id)
        };
        self.instances().filter(is_other).map(|(_, other)| other)
    }

    /// What the source of a resource had of an instance at a position of the log: its pod or, where there is none, what has its
    /// address.
    fn ends_of(&self, object: &Object, instance: &Service, at: u64) -> Vec<End> {
        let (pods, slices) = self.cluster.at(at);
        let namespace = &object.key.namespace;
        let mut ends: Vec<End> = match &object.last_good.source {
            Source::Service { name } => {
                let of_it =
                    slices.into_iter().filter(|(key, slice)| key.namespace == *namespace && slice.service == *name);
                let end = |endpoint: &Endpoint| End {
                    uid: endpoint.pod.as_ref().map(|pod| pod.uid.clone()),
                    serves: if endpoint.terminating { endpoint.serving } else { endpoint.ready },
                    leaves: endpoint.terminating,
                };
                let endpoints = of_it.flat_map(|(_, slice)| &slice.endpoints);
                endpoints.filter(|endpoint| endpoint.address.to_string() == instance.address).map(end).collect()
            }
            Source::Pods { .. } => {
                let pods = pods.into_iter().filter(|(key, _)| key.namespace == *namespace);
                let has_it = |pod: &Pod| pod.addresses.iter().any(|own| own.to_string() == instance.address);
                let end = |pod: &Pod| End { uid: Some(pod.uid.clone()), serves: pod.ready, leaves: pod.leaving };
                pods.map(|(_, pod)| pod).filter(|pod| has_it(pod)).map(end).collect()
            }
            Source::Static { .. } => Vec::new(),
        };
        let target = pod_of(instance);
        if ends.iter().any(|end| end.uid.as_deref() == target) {
            ends.retain(|end| end.uid.as_deref() == target);
        }
        ends
    }

    /// Whether an instance that still serves goes while nobody of its resource passes, though Lictor knows of one that
    /// is to. What others do to Consul may bring that about, too.
    fn leaves_nobody(&self, key: &ResourceKey, node: &str, gone: &Service, sent: &Sent) -> bool {
        let object = self.cluster.resources.get(key);
        // Another pod at its address is another instance.
        let is_of_pod = |end: &End| end.uid.is_some() && end.uid.as_deref() == pod_of(gone);
        let ends = object.map(|object| self.ends_of(object, gone, self.cluster.position())).unwrap_or_default();
        let serves = ends.iter().any(|end| end.leaves && end.serves && is_of_pod(end));
        // Nor does it go by an edit before that. What goes on without its name follows the source from before.
        let source = object.map(|object| object.last_good.source.to_string());
        let is_edited = gone.meta.get("lictor-source") != source.as_ref();
        let asked = object.and_then(asked);
        let may_lose = asked.is_some_and(|asked| self.is_contested(key, &asked));
        let serves = serves || is_edited && !may_lose && !self.oracle.kept.contains_key(key);
        let is_ready = |(seat, wanted): (&Place, &Wanted)| {
            let since = wanted.ready_since.filter(|_| owner(&seat.1).as_ref() == Some(key));
            since.is_some_and(|since| sent.had_seen(node, &wanted.kinds, since))
        };
        let mut left = self.consul.store.services().filter(|(_, service)| owner(&service.id).as_ref() == Some(key));
        let passes = left.any(|(node, service)| {
            let check = self.consul.store.check(node, &format!("{}:readiness", service.id));
            is_marked(service) && check.is_none_or(|check| check.status == "passing")
        });
        let by_hand = self.oracle.touched.iter().any(|(_, id)| owner(id).as_ref() == Some(key));
        let certain = self.setup.mode == Mode::Catalog && !by_hand && self.oracle.restores == 0 && !self.agent_has_come;
        certain && serves && !passes && self.oracle.wanted.iter().any(is_ready)
    }

    /// The resource of another namespace that has a name next and could pass, where the last instance that passes under the
    /// name goes with the resource that had it.
    fn leaves_name_empty(&self, key: &ResourceKey, node: &str, gone: &Service, sent: &Sent) -> Option<ResourceKey> {
        let name = fold(&gone.service);
        let leaves = self.oracle.leaving.get(key).is_some_and(|since| sent.had_seen(node, &[Kind::Resource], *since));
        let in_time = self.oracle.leaving_at.get(key).is_some_and(|at| self.now() < *at + HAND_OVER);
        let certain = self.setup.mode == Mode::Catalog && self.oracle.restores == 0 && !self.agent_has_come;
        if !leaves || !in_time || !certain || self.setup.limits.shares_name {
            return None;
        }
        let mut left = self.consul.store.services().filter(|(_, service)| fold(&service.service) == name);
        let passes = left.any(|(node, service)| {
            let check = self.consul.store.check(node, &format!("{}:readiness", service.id));
            is_marked(service) && check.is_none_or(|check| check.status == "passing")
        });
        // Another one of its namespace has the name then, also one that is gone by now, for all that Lictor knows.
        // While a spec is refused, the one before holds.
        let held = |key: &ResourceKey| self.cluster.resources.get(key).map(|object| fold(&object.last_good.service));
        let uses = |other: &&Resource| {
            let asked = other.spec.as_ref().map_or_else(|_| held(&other.key), |spec| Some(fold(&spec.service)));
            let asks = other.ours && asked.as_ref() == Some(&name);
            let is_of_namespace = other.key.namespace == key.namespace && other.key != *key;
            is_of_namespace && (asks || self.oracle.names_in_use.contains_key(&(other.key.clone(), name.clone())))
        };
        let seen = sent.view(node).get(&Kind::Resource).copied().unwrap_or_else(|| self.cluster.position());
        if passes || self.cluster.resources_since(seen).iter().any(uses) {
            return None;
        }
        let is_next = |other: &&Object| {
            let is_able = !other.deleting && !other.paused && !other.other_class && other.spec.is_ok();
            let asks = asked(other).as_ref() == Some(&name) && self.setup.watches(&other.key.namespace);
            is_able && asks && other.key.namespace != key.namespace
        };
        // What Consul refuses is not waited for.
        let fails = |id: &str| {
            self.setup.failing.is_some_and(|failing| failing.includes(id)) || self.consul.denied.contains(id)
        };
        let is_ready = |other: &&Object| {
            let by_hand = [&self.oracle.touched, &self.oracle.disputed];
            let by_hand = by_hand.iter().any(|set| set.iter().any(|(_, id)| owner(id).as_ref() == Some(&other.key)));
            let mut rows =
                self.oracle.wanted.iter().filter(|((_, id), _)| owner(id).as_ref() == Some(&other.key) && !fails(id));
            !by_hand
                && rows.any(|(_, wanted)| {
                    let ready_since = wanted.ready_since.filter(|_| !wanted.without_port);
                    ready_since.is_some_and(|since| sent.had_seen(node, &wanted.kinds, since))
                })
        };
        self.cluster.resources.values().filter(is_next).find(is_ready).map(|next| next.key.clone())
    }

    /// What another agent holds goes only after the present one has had it.
    fn judge_move(&mut self, node: &str, id: &str, sent: &Sent) {
        let wanted = self.oracle.wanted.get(&self.seat(AGENT_NODE, id));
        let wanted = wanted.is_some_and(|wanted| sent.had_seen(node, &wanted.kinds, wanted.since));
        let by_hand = self.oracle.touched.contains(&(AGENT_NODE.to_owned(), fold(id)));
        // A snapshot that was restored may show it.
        let is_there = self.consul.store.service(AGENT_NODE, id).is_some_and(|there| is_marked(there));
        if node == FORMER_NODE && wanted && !by_hand && !is_there && !self.oracle.shown.contains(id) {
            self.violate(
                "nothing lost",
                format!("{id} was taken from {node} by life {}, and is nowhere else", sent.life),
            );
        }
    }

    /// No instance is taken away because its endpoint is in no slice for a moment.
    fn judge_taken_out(&mut self, node: &str, key: &ResourceKey, before: &Service, sent: &Sent) {
        let Some(out) = self.oracle.taken_out.get(&self.seat(node, &before.id)) else { return };
        if self.stands_elsewhere(node, &before.id) {
            return;
        }
        // What an earlier spec registered from elsewhere may be none of this Service's.
        let source = format!("service/{}", out.service.name);
        if before.meta.get("lictor-source").is_some_and(|from| *from != source) {
            return;
        }
        if !sent.had_seen(node, &out.wanted.kinds, out.wanted.since) || self.is_contested(key, &before.service) {
            return;
        }
        // Where two pods have one address, nobody can tell which of them lives.
        let is_twin = |e: &Endpoint| !e.terminating && e.address.to_string() == before.address;
        let has_port = |slice: &Slice| slice.ports.iter().any(|port| i64::from(port.number) == before.port);
        let end = |service: &Service| (service.address.clone(), service.port);
        if self.others(key, node, before).any(|other| end(other) == end(before)) {
            return;
        }
        if self.cluster.slices_of(&out.service).any(|(_, slice)| has_port(slice) && slice.endpoints.iter().any(is_twin))
        {
            return;
        }
        let is_out = !self.oracle.wanted.contains_key(&self.seat(node, &before.id));
        let was_just_written =
            is_out
                && self.cluster.written.get(&out.service).is_some_and(|(position, at)| {
                    sent.had_seen(node, &[Kind::Slice], *position) && at.elapsed() < STAYS
                });
        if self.now() < out.since + STAYS || was_just_written {
            let (id, life, ago) = (&before.id, sent.life, self.now().saturating_sub(out.since));
            let what = format!("{id} on {node} was taken by life {life}; its endpoint was in no slice for {ago:?}");
            self.violate("nothing lost", what);
        }
    }

    /// Where an instance is known under: in the catalog it may stand on this node or on that.
    fn seat(&self, node: &str, id: &str) -> Place {
        match self.setup.mode {
            Mode::Agent => place(node, id),
            Mode::Catalog => (String::new(), id.to_owned()),
        }
    }

    /// Whether an instance stands on another node of the catalog as well: it has moved.
    fn stands_elsewhere(&self, node: &str, id: &str) -> bool {
        if self.setup.mode == Mode::Agent {
            return false;
        }
        let mut others = self.consul.store.services().filter(|(on, there)| there.id == id && fold(on) != fold(node));
        others.any(|(_, there)| is_marked(there))
    }

    /// Whether somebody has had a hand in the same instance on another node of the catalog: deleted there since Lictor
    /// has read it, it has moved for all that Lictor knows.
    fn was_touched_elsewhere(&self, node: &str, id: &str) -> bool {
        let is_it = |(on, touched): &(String, String)| *touched == fold(id) && *on != fold(node);
        self.setup.mode == Mode::Catalog && self.oracle.touched.iter().any(is_it)
    }

    /// Whose a Consul node with a name like ours is: ours if it carries our mark, or if nobody has marked it and an
    /// instance of ours stands on it; never one that an agent stands behind.
    pub fn is_own_node(&self, node: &Node) -> bool {
        let of = |key: &str| node.meta.get(key).map(String::as_str).unwrap_or_default();
        let marks = (of("lictor-cluster"), of("lictor-cluster-uid"));
        let mut services = self.consul.store.services_on(&node.node);
        let has_rows = services.any(|service| is_marked(service) && owner(&service.id).is_some());
        let has_agent = self.consul.store.check(&node.node, "serfHealth").is_some();
        let has_name = fold(&node.node).starts_with("c1-");
        !has_agent && (marks == (CLUSTER, CLUSTER_UID) || marks == ("", "") && has_name && has_rows)
    }

    /// Nothing of a frozen resource is written or removed.
    fn judge_pause(&mut self, node: &str, id: &str, sent: &Sent) {
        let paused = owner(id).and_then(|key| self.oracle.paused.get(&key).map(|since| (key, *since)));
        if let Some((key, since)) = paused
            && sent.had_seen(node, &[Kind::Resource], since)
        {
            self.violate("paused", format!("{id} on {node} was written by life {}; {key} is paused", sent.life));
        }
    }

    /// No resource gets an instance under a name that another namespace's has.
    fn judge_name(&mut self, node: &str, before: Option<&Service>, after: &Service, sent: &Sent) {
        let is_it = |there: &Service| is_marked(there) && fold(&there.service) == fold(&after.service);
        // What an agent has lost or let go the catalog still shows: Lictor goes on with it.
        let is_shown = self.setup.mode == Mode::Agent
            && self.consul.store.service(node, &after.id).is_some_and(|there| is_it(there));
        // Somebody may have put another mark on it.
        let was_it = |there: &Service| {
            is_it(there) || fold(&there.service) == fold(&after.service) && self.is_remarked(node, there)
        };
        let is_new = !is_shown && !before.is_some_and(was_it);
        let Some(key) = owner(&after.id).filter(|_| is_new && is_marked(after)) else { return };
        let name = fold(&after.service);
        let own = self.cluster.resources.get(&key).and_then(name_told);
        if self.setup.limits.shares_name || self.has_others_under(&key, &name, node, &after.id) {
            return;
        }
        let others = self.oracle.holders.iter().filter(|(other, _)| other.namespace != key.namespace);
        let told =
            others.filter(|(_, holder)| holder.name == name && sent.had_seen(node, &[Kind::Resource], holder.since));
        // One that is being deleted gives the name up: once what it had is gone or, where nothing is to stay, at once.
        let has_it = |holder: &ResourceKey| {
            let deleting = self.cluster.resources.get(holder).is_some_and(|object| object.deleting);
            let leaves = self.oracle.leaving.get(holder);
            let leaves = leaves.is_some_and(|since| sent.had_seen(node, &[Kind::Resource], *since));
            // What is to stay has no mark any more once the present agent has taken it on. The copies that another agent
            // had are taken away after that, and stand for the same instances, which the name's next holder finds anyway.
            let mut rows = self.instances().filter(|(on, _)| *on != FORMER_NODE);
            let mut has_rows =
                || rows.any(|(_, there)| fold(&there.service) == name && owner(&there.id).as_ref() == Some(holder));
            !deleting || !leaves && has_rows()
        };
        let told = told.map(|(holder, _)| holder).find(|holder| has_it(holder)).cloned();
        let told = told.filter(|_| own.as_ref() != Some(&name));
        if let Some(holder) = told.or_else(|| self.holds_by_rows(&key, &name, node, sent)) {
            // What was removed just now may be there for all that Lictor knows: then it goes on with it, as long as the
            // other one has nothing. What Lictor has not heard of yet its whole namespace goes on with, and so it does while
            // there is no answer to the removal.
            let mut left = self.oracle.names_left.iter().filter(|((other, of), left)| {
                other.namespace == key.namespace && *of == name && self.now() < left.at + REMEMBERED
            });
            let has_none = || !self.oracle.names_in_use.contains_key(&(holder.clone(), name.clone()));
            if left.any(|((other, _), left)| left.unheard || (*other == key || left.waits()) && has_none()) {
                return;
            }
            let what = format!("{} on {node} was written by life {}; {holder} has the name", after.id, sent.life);
            self.violate("one name, one namespace", what);
        }
    }

    /// Whether the namespace of a resource has instances under a name besides this row: it goes on with them, and may move
    /// them to another node.
    fn has_others_under(&self, key: &ResourceKey, name: &str, node: &str, id: &str) -> bool {
        let of_namespace = |id: &str| owner(id).is_some_and(|owner| owner.namespace == key.namespace);
        // An agent may have let go what the catalog still shows.
        let shown = self.consul.store.services().filter(|(_, service)| is_marked(service));
        self.instances().chain(shown).any(|(on, service)| {
            let is_it = fold(on) == fold(node) && fold(&service.id) == fold(id);
            !is_it && fold(&service.service) == name && of_namespace(&service.id)
        })
    }

    /// The resource of another namespace that asks for a name and has had instances under it since before this life of
    /// Lictor, which has read them so.
    fn holds_by_rows(&self, key: &ResourceKey, name: &str, node: &str, sent: &Sent) -> Option<ResourceKey> {
        let in_use = self.oracle.names_in_use.iter();
        let others = in_use.filter(|((other, of), since)| {
            other.namespace != key.namespace
                && of == name
                && **since < sent.life
                && self.setup.watches(&other.namespace)
        });
        let holders = others.map(|((other, _), _)| other).filter(|other| {
            let object = self.cluster.resources.get(*other).filter(|object| !object.deleting);
            let wanted = self.oracle.wanted.iter().find(|((_, id), _)| owner(id).as_ref() == Some(*other));
            object.is_some_and(|object| asked(object).as_deref() == Some(name))
                && wanted.is_some_and(|(_, wanted)| sent.had_seen(node, &[Kind::Resource], wanted.since))
        });
        holders.min().cloned()
    }

    /// Instances of ours, with their nodes: those of the agent, where there is one, and of the one before.
    pub fn instances(&self) -> impl Iterator<Item = (&str, &Arc<Service>)> {
        let agent = &self.consul.agent;
        let of_agent = agent.iter().flat_map(LocalAgent::services).map(|service| (AGENT_NODE, service));
        let of_catalog = self.consul.store.services().filter(|(node, _)| agent.is_none() || *node == FORMER_NODE);
        of_agent.chain(of_catalog).filter(|(node, service)| is_marked(service) || self.is_remarked(node, service))
    }

    /// Whether an instance is ours although somebody has put another mark on it: it stands on a node of ours.
    fn is_remarked(&self, node: &str, service: &Service) -> bool {
        let can_be = self.setup.mode == Mode::Catalog && has_owner(service) && owner(&service.id).is_some();
        let node = self.consul.store.node(node).filter(|_| can_be);
        node.is_some_and(|node| self.is_own_node(node))
    }

    fn note_names_in_use(&mut self, origin: &Origin) {
        let life = match origin {
            Origin::Lictor(sent) if !sent.abandoned => sent.life,
            // Whether this life has seen what others did, and what landed late, is not known.
            Origin::Lictor(_) | Origin::Agent | Origin::Others => u32::MAX,
        };
        let names = self.instances().filter_map(|(_, service)| Some((owner(&service.id)?, fold(&service.service))));
        let names: BTreeSet<(ResourceKey, String)> = names.collect();
        let now = self.now();
        // With an agent one stays ours whose mark somebody has changed.
        let agents = self.consul.agent.iter().flat_map(LocalAgent::services).map(|service| (AGENT_NODE, service));
        let all = agents.chain(self.consul.store.services());
        let all = all.filter(|(node, service)| {
            let may_be_ours = is_marked(service) || !self.oracle.is_foreign(node, &service.id);
            has_owner(service) && owner(&service.id).is_some() && may_be_ours
        });
        let there: Vec<(String, String)> = all.map(|(node, service)| (fold(node), service.id.clone())).collect();
        self.oracle.last_there.extend(there.into_iter().map(|row| (row, now)));
        self.oracle.last_there.retain(|_, at| now < *at + UNANSWERED);
        self.oracle.owned.push_back((now, self.oracle.last_there.len()));
        self.oracle.owned.retain(|(at, _)| now < *at + COUNTED);
        let known = std::mem::take(&mut self.oracle.names_in_use);
        let since = |name: &(ResourceKey, String)| known.get(name).copied().unwrap_or(life);
        let answered = match origin {
            Origin::Lictor(sent) => Some(sent.heard.clone()),
            Origin::Agent | Origin::Others => None,
        };
        // What an agent has let go Lictor goes on with for as long as the catalog shows it.
        let shown =
            self.consul.store.services().filter(|(_, there)| self.setup.mode == Mode::Agent && is_marked(there));
        let shown = shown.filter_map(|(_, there)| Some((owner(&there.id)?, fold(&there.service))));
        let shown: BTreeSet<(ResourceKey, String)> = shown.collect();
        let left: Vec<(ResourceKey, String)> = known.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in left {
            let unheard = answered.is_none() || shown.contains(&name);
            let mut answered: Vec<_> = answered.iter().cloned().collect();
            answered.extend(self.oracle.removing.remove(&name).unwrap_or_default());
            self.oracle.names_left.insert(name, Left { at: now, unheard, answered });
        }
        self.oracle.names_in_use = names.into_iter().map(|name| (name.clone(), since(&name))).collect();
    }

    /// Whether another namespace's resource wants or has the name that a resource has instances under: then it may
    /// have lost it.
    fn is_contested(&self, key: &ResourceKey, name: &str) -> bool {
        let claims = |object: &&Object| {
            [asked(object), name_told(object)].into_iter().flatten().any(|asked| asked == fold(name))
        };
        let mut others = self.cluster.resources.values().filter(|other| other.key.namespace != key.namespace);
        !self.setup.limits.shares_name && others.any(|other| claims(&other))
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
        self.judge_pause(node, &check.service_id, sent);
        // What is new takes nothing from anybody.
        let worse = check.status == "critical" && before.is_some_and(|before| before.status == "passing");
        if worse {
            self.judge_cut(place(node, &check.service_id), sent);
        }
        let wanted = self.oracle.wanted.get(&self.seat(node, &check.service_id));
        let ready = wanted.and_then(|wanted| Some((wanted, wanted.ready_since?)));
        if worse && ready.is_some_and(|(wanted, since)| sent.had_seen(node, &wanted.kinds, since)) {
            self.violate("nothing lost", format!("{id} on {node} was made critical by life {}", sent.life));
        }
    }
}

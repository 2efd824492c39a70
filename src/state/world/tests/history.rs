//! Random histories of a cluster, told by watches that lag, repeat themselves, break off, list anew, and come and go
//! as they are wanted; and of resources that are acted on, whose status is written, and of restarts.

use std::cell::RefCell;
use std::collections::VecDeque;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::model::registration::NameInUse;
use crate::model::resolve::{Before, Resolution, resolve};
use crate::model::resource::Needs;
use crate::state::world::entry::GrantedBy;

const KINDS: [Kind; 5] = [Kind::Resource, Kind::Slice, Kind::Service, Kind::Pod, Kind::Node];
const ANNOTATIONS: [&str; 2] = ["x", "y"];

/// Something that is there, whole.
#[derive(Clone, Debug, PartialEq)]
enum Object {
    Resource(SeenResource),
    Slice(Slice),
    Service(Service),
    Pod(Pod),
    Node(Node),
}

impl Object {
    fn kind(&self) -> Kind {
        match self {
            Self::Resource(_) => Kind::Resource,
            Self::Slice(_) => Kind::Slice,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::Node(_) => Kind::Node,
        }
    }

    /// As a watch that keeps just this of pods sees it.
    fn kept(&self, keys: &BTreeSet<PodKey>) -> Self {
        let Self::Pod(pod) = self else { return self.clone() };
        let keys = KeysOfPods::of(keys);
        let labels = keys.labels(|key| pod.labels.get(key).cloned());
        let annotations = keys.annotations(|key| pod.annotations.get(key).cloned());
        Self::Pod(Pod { labels, annotations, ..pod.clone() })
    }
}

/// A step of a watch of any kind.
#[derive(Clone, Debug)]
enum Said {
    Init,
    InitApply(ObjectKey, Object),
    InitDone,
    Apply(ObjectKey, Object),
    Delete(ObjectKey),
}

fn change(kind: Kind, said: Said) -> Change {
    fn step<T>(said: Said, take: impl Fn(Object) -> Option<T>) -> Step<T> {
        let take = |object| take(object).unwrap();
        match said {
            Said::Init => Step::Init,
            Said::InitApply(key, object) => Step::InitApply(key, take(object)),
            Said::InitDone => Step::InitDone,
            Said::Apply(key, object) => Step::Apply(key, take(object)),
            Said::Delete(key) => Step::Delete(key),
        }
    }
    match kind {
        Kind::Resource => Change::Resource(step(said, |o| if let Object::Resource(o) = o { Some(o) } else { None })),
        Kind::Slice => Change::Slice(step(said, |o| if let Object::Slice(o) = o { Some(o) } else { None })),
        Kind::Service => Change::Service(step(said, |o| if let Object::Service(o) = o { Some(o) } else { None })),
        Kind::Pod => Change::Pod(step(said, |o| if let Object::Pod(o) = o { Some(o) } else { None })),
        Kind::Node => Change::Node(step(said, |o| if let Object::Node(o) = o { Some(o) } else { None })),
        Kind::Namespace => unreachable!("it is none of KINDS"),
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    /// An object is created, edited or, with another uid, replaced.
    Put(ObjectKey, Object),
    Delete(Kind, ObjectKey),
    /// A watch sends up to so many steps on their way.
    Tell(Index, u8),
    /// A watch says the last thing again.
    Repeat(Index),
    /// A watch loses its place and lists anew, whatever it was doing.
    Relist(Index),
    /// Up to so many steps arrive.
    Hear(u8),
    /// A resource is acted on, if it may be.
    Act(Index),
    /// The status of a resource is written.
    Tend(Index),
    /// Consul turns out to have rows of a resource, or none.
    Rows(ObjectKey, BTreeSet<NameInUse>),
    /// A resource that is deleted or gone is known to have ended.
    End(ObjectKey),
    /// Everything that was remembered is forgotten.
    Restart,
}

fn place() -> impl Strategy<Value = (&'static str, u8)> {
    (0..NAMESPACES.len(), 0..3_u8).prop_map(|(namespace, n)| (NAMESPACES[namespace], n))
}

fn a_resource_key() -> impl Strategy<Value = ObjectKey> {
    place().prop_map(|(namespace, n)| key(namespace, &format!("r{n}")))
}

fn name_in_use() -> impl Strategy<Value = NameInUse> {
    let source = prop_oneof![Just("service/s0"), Just("service/s1"), Just("pods")];
    let name = prop_oneof![Just("name0"), Just("Name0"), Just("Name1")];
    (name, source).prop_map(|(name, source)| NameInUse { service: name.into(), source: Some(source.into()) })
}

fn a_spec() -> impl Strategy<Value = Spec> {
    let source = prop_oneof![
        3 => (0..3_u8).prop_map(|n| spec(&format!("s{n}"))),
        2 => (0..2_u8).prop_map(|n| pods_of(&format!("app{n}"))),
        1 => any::<bool>().prop_map(|is_there| {
            let tier = "tier".into();
            let asks = if is_there { Requirement::Exists(tier) } else { Requirement::DoesNotExist(tier) };
            from(Source::Pods { selector: Selector(vec![asks]) })
        }),
        1 => Just(from(Source::Static { addresses: Vec::new() })),
    ];
    let tag = prop_oneof![
        4 => Just("plain"),
        1 => Just("${pod.labels['app']}"),
        1 => Just("${pod.annotations['x']}"),
        1 => Just("${pod.annotations['x']} ${pod.annotations['y']}"),
        2 => Just("${node.zone}"),
    ];
    (source, tag, 0..2_u8, prop::bool::weighted(0.2)).prop_map(|(spec, tag, name, verify_endpoints)| {
        let limits = Limits { verify_endpoints, ..Limits::default() };
        Spec { limits, ..named(&format!("Name{name}"), tagged(tag, spec)) }
    })
}

fn a_resource() -> impl Strategy<Value = (ObjectKey, Object)> {
    let state = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let uid = prop_oneof![6 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    (place(), uid, 1..4_i64, prop::option::weighted(0.85, a_spec()), state).prop_map(
        |((namespace, n), uid, generation, spec, (deleting, paused, other_class))| {
            let key = key(namespace, &format!("r{n}"));
            let spec = spec.filter(|_| !other_class).ok_or_else(|| undecodable().unwrap_err());
            let mut seen = seen(&key, &format!("u{uid}"), generation, spec);
            let resource = &mut seen.resource;
            (resource.deleting, resource.paused, resource.ours) = (deleting, paused, !other_class);
            resource.created = i64::from(n + uid + u8::from(namespace == NAMESPACES[0])) % 3;
            (key, Object::Resource(seen))
        },
    )
}

fn a_slice() -> impl Strategy<Value = (ObjectKey, Object)> {
    let endpoints = vec((0..4_u8, prop::option::weighted(0.7, 0..4_u8)), 0..3);
    (place(), 0..3_u8, endpoints).prop_map(|((namespace, n), service, endpoints)| {
        // There is no Node `n2`.
        let endpoints = endpoints.into_iter().map(|(at, pod)| Endpoint {
            node: (at > 0).then(|| format!("n{}", at - 1).into()),
            ..endpoint(at, pod.map(|n| format!("p{n}")).as_deref())
        });
        (key(namespace, &format!("e{n}")), Object::Slice(slice(&format!("s{service}"), endpoints.collect())))
    })
}

fn a_pod() -> impl Strategy<Value = (ObjectKey, Object)> {
    let annotations = btree_set(0..ANNOTATIONS.len(), 0..=2);
    (place(), btree_set(0..4_u8, 0..2), 0..3_u8, any::<(bool, bool)>(), annotations).prop_map(
        |((namespace, n), at, app, (ready, tier), annotations)| {
            let name = format!("p{n}");
            let mut pod = pod(&name, 0, &format!("app{app}"));
            pod.addresses = at.into_iter().map(address).collect();
            pod.ready = ready;
            pod.node = Some(format!("n{app}").into());
            let there: BTreeSet<Str> = annotations.into_iter().map(|n| ANNOTATIONS[n].into()).collect();
            pod.annotations = Attributes::look_for(&Arc::new(there), |_| Some("v".into()));
            let tier = tier.then(|| ("tier".into(), "1".into()));
            pod.labels = [("app".into(), format!("app{app}").into())].into_iter().chain(tier).collect();
            (key(namespace, &name), Object::Pod(pod))
        },
    )
}

fn happening() -> impl Strategy<Value = Happening> {
    let services = (place(), 80..82_u16)
        .prop_map(|((namespace, n), port)| (key(namespace, &format!("s{n}")), Object::Service(service(port))));
    let nodes =
        (0..2_u8, 1..3_u8).prop_map(|(n, zone)| (key("", &format!("n{n}")), Object::Node(node(&format!("z{zone}")))));
    let objects = prop_oneof![5 => a_resource(), 3 => a_slice(), 3 => a_pod(), 1 => services, 1 => nodes];
    let delete = (0..KINDS.len(), place()).prop_map(|(kind, (namespace, n))| {
        let (prefix, namespace) = match KINDS[kind] {
            Kind::Resource => ("r", namespace),
            Kind::Slice => ("e", namespace),
            Kind::Service => ("s", namespace),
            Kind::Pod => ("p", namespace),
            Kind::Node => ("n", ""),
            Kind::Namespace => unreachable!("it is none of KINDS"),
        };
        Happening::Delete(KINDS[kind], key(namespace, &format!("{prefix}{n}")))
    });
    prop_oneof![
        40 => objects.prop_map(|(key, object)| Happening::Put(key, object)),
        10 => delete,
        40 => (any::<Index>(), 1..6_u8).prop_map(|(watch, steps)| Happening::Tell(watch, steps)),
        3 => any::<Index>().prop_map(Happening::Repeat),
        6 => any::<Index>().prop_map(Happening::Relist),
        40 => (1..8_u8).prop_map(Happening::Hear),
        16 => any::<Index>().prop_map(Happening::Act),
        8 => any::<Index>().prop_map(Happening::Tend),
        8 => (a_resource_key(), btree_set(name_in_use(), 0..3)).prop_map(|(key, names)| Happening::Rows(key, names)),
        2 => a_resource_key().prop_map(Happening::End),
        1 => Just(Happening::Restart),
    ]
}

/// A watch: what it has yet to say, in order.
#[derive(Debug)]
struct Watch {
    time: u64,
    of_pods: BTreeSet<PodKey>,
    pending: VecDeque<Said>,
    last: Option<Said>,
    listing: bool,
    began: bool,
}

impl Watch {
    fn new(time: u64, of_pods: BTreeSet<PodKey>) -> Self {
        Self { time, of_pods, pending: VecDeque::new(), last: None, listing: false, began: false }
    }
}

/// Counts how often the histories had what they are for.
#[derive(Debug, Default)]
struct Statistics {
    histories: u32,
    events: u32,
    relists: u32,
    aborted_relists: u32,
    repeated: u32,
    replaced_under_the_same_name: u32,
    slices_moved_to_another_service: u32,
    last_good_specs_kept: u32,
    swept: u32,
    watches_that_ended: u32,
    watches_wanted_again: u32,
    lists_for_more_of_pods: u32,
    words_of_ended_watches: u32,
    names_acted_under: u32,
    name_conflicts: u32,
    names_taken_over: u32,
    changes_of_rows: u32,
    rows_that_outweighed: u32,
    names_gone_on_under: u32,
    restarts: u32,
}

/// Holds what a decision about a resource goes by.
#[derive(Clone, Debug, PartialEq)]
struct Inputs {
    /// The resource without bookkeeping.
    substance: Resource,
    in_force: InForce,
    waits_for: Option<Kind>,
    /// The facts of the source that it asks for.
    facts: Vec<Fact>,
    /// The facts of the source that it goes on by meanwhile.
    facts_meanwhile: Vec<Fact>,
}

/// The spec that is acted by, and whose the name is.
#[derive(Clone, Debug, PartialEq)]
struct InForce {
    spec: Option<Arc<Spec>>,
    rival: Option<ResourceKey>,
}

#[derive(Clone, Debug, PartialEq)]
enum Fact {
    Service(Option<Service>),
    Slice(Slice),
    Pod(Option<Pod>),
    Place(Str, Option<Str>, Option<Str>),
    /// Says whether a name counts as a Node's, where that decides where instances go.
    IsNode(Str, bool),
}

struct History<'a> {
    scopes: Vec<Scope>,
    /// True if Nodes are watched whatever resources need.
    nodes: bool,
    truth: BTreeMap<(Kind, ObjectKey), Object>,
    watches: BTreeMap<(Kind, Scope), Watch>,
    /// The events that the watches have said and the World has not heard yet, each with its watch.
    on_the_way: VecDeque<(Event, u64)>,
    world: World,
    wanted: Wanted,
    /// The watches that were wanted at any time since the start.
    ever_wanted: BTreeSet<(Kind, Scope)>,
    /// The resources that were last acted on under a name that is still what they ask for, each with its uid.
    holders: BTreeMap<ResourceKey, (Str, Str)>,
    statistics: &'a RefCell<Statistics>,
}

impl<'a> History<'a> {
    fn new(scopes: &[Scope], nodes: bool, statistics: &'a RefCell<Statistics>) -> Self {
        let world = World::new(scopes.iter().cloned(), nodes);
        statistics.borrow_mut().histories += 1;
        let mut history = Self {
            scopes: scopes.to_vec(),
            nodes,
            truth: BTreeMap::new(),
            watches: BTreeMap::new(),
            on_the_way: VecDeque::new(),
            wanted: world.wanted(),
            world,
            ever_wanted: BTreeSet::new(),
            holders: BTreeMap::new(),
            statistics,
        };
        history.watch_what_is_wanted();
        history
    }

    /// Ends and starts watches, as the product does.
    fn watch_what_is_wanted(&mut self) {
        let wanted = &self.wanted;
        let asked = |(kind, scope): &(Kind, Scope)| match scope {
            Scope::Namespace(namespace) if *kind == Kind::Pod => {
                wanted.of_pods.get(namespace).cloned().unwrap_or_default()
            }
            _ => BTreeSet::new(),
        };
        let mut statistics = self.statistics.borrow_mut();
        self.watches.retain(|watch, running| {
            let stays = wanted.watches.get(watch) == Some(&running.time);
            statistics.watches_that_ended += u32::from(!stays);
            stays
        });
        let mut to_list = Vec::new();
        for (watch, time) in &wanted.watches {
            let asked = asked(watch);
            let running = self.watches.entry(watch.clone()).or_insert_with(|| {
                statistics.watches_wanted_again += u32::from(!self.ever_wanted.insert(watch.clone()));
                Watch::new(*time, asked.clone())
            });
            if !running.of_pods.is_superset(&asked) {
                running.of_pods.extend(asked);
                to_list.extend(running.began.then(|| watch.clone()));
            }
        }
        statistics.lists_for_more_of_pods += u32::try_from(to_list.len()).unwrap();
        drop(statistics);
        for watch in &to_list {
            self.list_beside(watch);
        }
    }

    /// Lists what a watch tells of behind all that it has yet to say.
    fn list_beside(&mut self, watch: &(Kind, Scope)) {
        let listed = self.listed(watch);
        self.watches.get_mut(watch).unwrap().pending.extend(listed);
    }

    fn listed(&self, (kind, scope): &(Kind, Scope)) -> Vec<Said> {
        let own = self.truth.iter().filter(|((of, key), _)| of == kind && scope.covers(&key.namespace));
        let listed = own.map(|((_, key), object)| Said::InitApply(key.clone(), object.clone()));
        [Said::Init].into_iter().chain(listed).chain([Said::InitDone]).collect()
    }

    fn tell_watches(&mut self, kind: Kind, key: &ObjectKey, said: &Said) {
        for ((of, scope), watch) in &mut self.watches {
            if watch.began && *of == kind && scope.covers(&key.namespace) {
                watch.pending.push_back(said.clone());
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Put(key, object) => self.put(key, object),
            Happening::Delete(kind, key) => {
                if self.truth.remove(&(kind, key.clone())).is_some() {
                    self.tell_watches(kind, &key.clone(), &Said::Delete(key));
                }
            }
            Happening::Tell(watch, steps) => {
                let watch = self.nth_watch(watch);
                if !self.watches[&watch].began {
                    self.relist(&watch);
                }
                for _ in 0..steps {
                    self.say_next(&watch);
                }
            }
            Happening::Repeat(watch) => {
                let watch = self.nth_watch(watch);
                if let Some(last) = self.watches[&watch].last.clone() {
                    self.statistics.borrow_mut().repeated += 1;
                    self.say(&watch, last);
                }
            }
            Happening::Relist(watch) => self.relist(&self.nth_watch(watch)),
            Happening::Hear(steps) => (0..steps).for_each(|_| self.hear_next()),
            Happening::Act(resource) => {
                if let Some(key) = self.nth_resource(resource) {
                    self.act(&key);
                }
            }
            Happening::Tend(resource) => {
                if let Some(key) = self.nth_resource(resource) {
                    self.tend(key);
                }
            }
            Happening::Rows(key, names) => {
                let had = self.world.rows.get(&key).cloned().unwrap_or_default();
                self.statistics.borrow_mut().changes_of_rows += u32::from(had != names);
                self.told_alone(|world| world.note_rows(&key, names));
            }
            Happening::End(key) => self.told_alone(|world| world.ends(&key)),
            Happening::Restart => self.restart(),
        }
    }

    /// Something that is no event: it concerns those that go by something else after it.
    fn told_alone(&mut self, happen: impl FnOnce(&mut World) -> Vec<Dirtied>) {
        let before = self.decisions();
        let dirt = happen(&mut self.world);
        let told = as_map(dirt);
        let mut expected = changed(&before, &self.decisions(), Cause::Observed, &told);
        expected.retain(|_, cause| cause.is_some());
        assert_eq!(told, expected);
        self.check();
    }

    fn nth_watch(&self, nth: Index) -> (Kind, Scope) {
        self.watches.keys().nth(nth.index(self.watches.len())).unwrap().clone()
    }

    fn nth_resource(&self, nth: Index) -> Option<ResourceKey> {
        let all: Vec<&ResourceKey> = self.world.keys().collect();
        (!all.is_empty()).then(|| all[nth.index(all.len())].clone())
    }

    fn put(&mut self, key: ObjectKey, mut object: Object) {
        let kind = object.kind();
        let old = self.truth.get(&(kind, key.clone())).cloned();
        match (&old, &mut object) {
            (Some(Object::Resource(old)), Object::Resource(new)) if old.resource.uid == new.resource.uid => {
                new.resource.status = old.resource.status.clone();
                // Kubernetes takes no deletion back.
                new.resource.deleting |= old.resource.deleting;
                new.resource.generation = old.resource.generation + i64::from(old.resource.spec != new.resource.spec);
            }
            (Some(Object::Resource(_)), Object::Resource(_)) => {
                self.statistics.borrow_mut().replaced_under_the_same_name += 1;
                self.tell_watches(kind, &key, &Said::Delete(key.clone()));
            }
            (Some(Object::Slice(old)), Object::Slice(new)) if old.service != new.service => {
                self.statistics.borrow_mut().slices_moved_to_another_service += 1;
            }
            _ => {}
        }
        self.truth.insert((kind, key.clone()), object.clone());
        self.tell_watches(kind, &key.clone(), &Said::Apply(key, object));
    }

    fn relist(&mut self, watch: &(Kind, Scope)) {
        let pending = self.listed(watch).into();
        let watch = self.watches.get_mut(watch).unwrap();
        let mut statistics = self.statistics.borrow_mut();
        statistics.aborted_relists += u32::from(watch.listing);
        statistics.relists += u32::from(watch.began);
        (watch.began, watch.listing, watch.pending) = (true, true, pending);
    }

    fn say_next(&mut self, at: &(Kind, Scope)) {
        let watch = self.watches.get_mut(at).unwrap();
        if let Some(said) = watch.pending.pop_front() {
            watch.listing &= !matches!(said, Said::InitDone);
            watch.last = Some(said.clone());
            self.say(at, said);
        }
    }

    /// Sends a step on its way.
    fn say(&mut self, at: &(Kind, Scope), said: Said) {
        let watch = &self.watches[at];
        let said = match said {
            Said::InitApply(key, object) => Said::InitApply(key, object.kept(&watch.of_pods)),
            Said::Apply(key, object) => Said::Apply(key, object.kept(&watch.of_pods)),
            said => said,
        };
        self.on_the_way.push_back((event(&at.1, change(at.0, said)), watch.time));
    }

    /// Hands an event to the World, and holds what it says is concerned against what is.
    fn hear_next(&mut self) {
        let Some((event, time)) = self.on_the_way.pop_front() else { return };
        let (kind, scope) = (event.change.kind(), event.scope.clone());
        let cause = match event.change {
            Change::Resource(Step::Apply(..) | Step::Delete(_))
            | Change::Slice(Step::Apply(..) | Step::Delete(_))
            | Change::Service(Step::Apply(..) | Step::Delete(_))
            | Change::Pod(Step::Apply(..) | Step::Delete(_))
            | Change::Node(Step::Apply(..) | Step::Delete(_)) => Cause::Observed,
            _ => Cause::Inferred,
        };
        let resyncs = event.change.completes_a_list();
        let (was_listed, before, objects) = (self.world.is_listed(kind, &scope), self.decisions(), self.objects());
        let needed: BTreeSet<ResourceKey> = self
            .world
            .keys()
            .filter(|key| self.world.always_needs(kind) || self.world.needs(key, kind))
            .cloned()
            .collect();
        let waited = self.world.waiting_for_labels();
        let dirt = self.world.apply(event, Instant::now());
        let after = self.decisions();
        {
            let mut statistics = self.statistics.borrow_mut();
            statistics.events += 1;
            let late = self.watches.get(&(kind, scope.clone())).is_none_or(|watch| watch.time != time);
            statistics.words_of_ended_watches += u32::from(late);
            let swept = if resyncs { objects.saturating_sub(self.objects()) } else { 0 };
            statistics.swept += u32::try_from(swept).unwrap();
            let refused = self.world.entries().filter(|entry| entry.resource.spec.is_err());
            statistics.last_good_specs_kept +=
                u32::try_from(refused.filter(|entry| entry.last_good.is_some()).count()).unwrap();
        }
        let told = as_map(dirt);
        let mut expected = changed(&before, &after, cause, &told);
        if self.world.is_listed(kind, &scope) && !was_listed {
            let everywhere = kind == Kind::Resource && self.world.knows_all_resources();
            let concerned = after.keys().filter(|key| everywhere || scope.covers(&key.namespace));
            expected.extend(
                concerned
                    .filter(|key| kind == Kind::Resource || needed.contains(*key))
                    .map(|key| (key.clone(), Some(Cause::Inferred))),
            );
        }
        if kind == Kind::Pod && was_listed {
            // Whether it may have its name depends on it, too.
            let waits = self.world.waiting_for_labels();
            for key in waited.symmetric_difference(&waits) {
                expected.entry(key.clone()).or_insert(Some(cause));
            }
        }
        assert_eq!(told, expected);
        self.check();
    }

    /// For each resource what a decision about it goes by, and its bookkeeping.
    fn decisions(&self) -> BTreeMap<ResourceKey, (Inputs, Entry)> {
        self.world
            .keys()
            .map(|key| (key.clone(), (inputs(&self.world, key), self.world.resource(key).unwrap().clone())))
            .collect()
    }

    fn objects(&self) -> usize {
        KINDS.into_iter().map(|kind| held(&self.world, kind).len()).sum()
    }

    fn act(&mut self, key: &ResourceKey) {
        if !self.world.is_whole(&key.namespace) || self.world.waits_for(key).is_some() {
            return;
        }
        self.told_alone(|world| world.act(key));
        let entry = self.world.resource(key).unwrap();
        let is_its_own = self.world.rival(key).is_none();
        let is_acted = is_its_own && entry.granted.as_ref().is_some_and(|granted| granted.by == GrantedBy::Act);
        if let Some(name) = entry.asked().filter(|asked| is_acted && entry.granted_name() == Some(asked)) {
            self.statistics.borrow_mut().names_acted_under += 1;
            self.holders.insert(key.clone(), (name, entry.resource.uid.clone()));
        }
    }

    /// Writes the status of a resource as the engine would.
    fn tend(&mut self, key: ResourceKey) {
        let entry = self.world.resource(&key).unwrap();
        let Some(Object::Resource(there)) = self.truth.get(&(Kind::Resource, key.clone())) else { return };
        if there.resource.uid != entry.resource.uid || !entry.resource.ours {
            return;
        }
        let accepted = entry.resource.spec.is_ok() && self.world.rival(&key).is_none();
        let name = self.world.acted_name(&key).unwrap_or_default();
        let truth = if accepted { Truth::True } else { Truth::False };
        let mut seen = there.clone();
        seen.resource.status = told(entry.resource.generation, &name, truth);
        self.put(key, Object::Resource(seen));
    }

    fn restart(&mut self) {
        self.statistics.borrow_mut().restarts += 1;
        self.world = World::new(self.scopes.iter().cloned(), self.nodes);
        self.wanted = self.world.wanted();
        self.watches.clear();
        self.ever_wanted.clear();
        self.on_the_way.clear();
        // What was acted on under a name and not told is not known any more.
        self.holders.clear();
        self.watch_what_is_wanted();
        self.check();
    }

    /// Checks all that must hold at any time, and follows what is wanted.
    fn check(&mut self) {
        check_indexes(&self.world);
        match self.world.wanted_anew() {
            None => assert_eq!(self.world.wanted(), self.wanted, "nobody says that it has changed"),
            Some(wanted) => {
                // A resource may begin to need what is watched all the time.
                assert!(self.nodes || wanted != self.wanted, "it has not changed");
                self.wanted = wanted;
                self.watch_what_is_wanted();
            }
        }
        assert_eq!(self.world.wanted(), self.wanted);
        self.check_names();
    }

    /// Nobody has a name beside another namespace's resource, and whoever was acted on under one keeps it.
    fn check_names(&mut self) {
        let world = &self.world;
        let mut namespaces: BTreeMap<Str, BTreeSet<&Str>> = BTreeMap::new();
        for key in world.keys() {
            let entry = world.resource(key).unwrap();
            let asked = entry.asked();
            let spec = world.effective_spec(key).filter(|_| world.rival(key).is_none());
            assert!(spec.is_none_or(|spec| Some(compared(&spec.service)) == asked || asked.is_none()));
            // Whoever cannot be registered may ask beside others.
            if let Some(name) = asked.filter(|_| world.rival(key).is_none() && could_be_registered(world, key, entry)) {
                namespaces.entry(name).or_default().insert(&key.namespace);
            }
        }
        assert!(namespaces.values().all(|namespaces| namespaces.len() == 1), "{namespaces:?}");
        for (key, spec) in &world.without_name {
            let name = compared(&spec.service);
            let others = || holder(world, &name).filter(|holder| holder.namespace != key.namespace);
            assert!(
                has_rows(world, key, &name) || others().is_none(),
                "{key} goes on under the name of {:?}",
                others()
            );
        }
        let mut statistics = self.statistics.borrow_mut();
        statistics.name_conflicts += u32::try_from(world.rivals.len()).unwrap();
        let was = self.holders.len();
        self.holders.retain(|key, (name, uid)| {
            let entry = world.resource(key).filter(|entry| entry.resource.uid == *uid && !entry.resource.deleting);
            entry.is_some_and(|entry| entry.asked().as_ref() == Some(name) && entry.granted_name() == Some(name))
        });
        statistics.names_taken_over += u32::from(self.holders.len() < was && !world.rivals.is_empty());
        statistics.names_gone_on_under += u32::try_from(world.without_name.len()).unwrap();
        // Only to somebody who has rows under it, and then for good: that one is acted on under it in its place.
        self.holders.retain(|key, (name, _)| {
            let Some(rival) = world.rival(key) else { return true };
            assert!(has_rows(world, rival, name), "{key} was acted on under its name");
            statistics.rows_that_outweighed += 1;
            false
        });
    }

    /// Lets every watch say all that it has to say.
    fn settle(&mut self) {
        loop {
            while !self.on_the_way.is_empty() {
                self.hear_next();
            }
            let talks =
                |watch: &&(Kind, Scope)| !self.watches[*watch].began || !self.watches[*watch].pending.is_empty();
            let Some(watch) = self.watches.keys().find(talks).cloned() else { return };
            if !self.watches[&watch].began {
                self.relist(&watch);
            }
            self.say_next(&watch);
        }
    }

    /// Holds the World against what is there, and against one that was built from lists alone.
    fn compare(&mut self) {
        for kind in KINDS {
            let watches = self.watches.iter().filter(|((of, _), _)| *of == kind);
            let watches: Vec<(&Scope, &Watch)> = watches.map(|((_, scope), watch)| (scope, watch)).collect();
            let there = self.truth.iter().filter(|((of, _), _)| *of == kind).filter_map(|((_, key), object)| {
                let (_, watch) = watches.iter().find(|(scope, _)| scope.covers(&key.namespace))?;
                Some((key.clone(), object.kept(&watch.of_pods)))
            });
            assert_eq!(held(&self.world, kind), there.collect(), "{kind}");
        }
        let mut fresh = World::new(self.scopes.iter().cloned(), self.nodes);
        for scope in self.scopes.clone() {
            self.list(&mut fresh, Kind::Resource, &scope);
        }
        fresh.remember(&self.world);
        // A list may decide whose a name is, and so what else is needed.
        let mut listed: BTreeSet<(Kind, Scope)> =
            self.scopes.iter().map(|scope| (Kind::Resource, scope.clone())).collect();
        while let Some(watch) = fresh.wanted().watches.into_keys().find(|watch| !listed.contains(watch)) {
            self.list(&mut fresh, watch.0, &watch.1);
            listed.insert(watch);
        }
        check_indexes(&fresh);
        let kinds = |world: &World| (world.wanted().watches.into_keys().collect::<Vec<_>>(), world.wanted().of_pods);
        assert_eq!(kinds(&fresh), kinds(&self.world));
        for key in self.world.keys() {
            assert_eq!(inputs(&fresh, key), inputs(&self.world, key));
        }
        assert_eq!(fresh.keys().count(), self.world.keys().count());
    }

    fn list(&self, world: &mut World, kind: Kind, scope: &Scope) {
        let of_pods = match self.watches.get(&(kind, scope.clone())) {
            Some(watch) => watch.of_pods.clone(),
            None => BTreeSet::new(),
        };
        let own = self.truth.iter().filter(|((of, key), _)| *of == kind && scope.covers(&key.namespace));
        let listed = own.map(|((_, key), object)| Said::InitApply(key.clone(), object.kept(&of_pods)));
        for said in [Said::Init].into_iter().chain(listed).chain([Said::InitDone]) {
            world.apply(event(scope, change(kind, said)), Instant::now());
        }
    }
}

fn as_map(dirt: Vec<Dirtied>) -> BTreeMap<ResourceKey, Option<Cause>> {
    dirt.into_iter().map(|Dirtied { key, cause }| (key, cause)).collect()
}

/// Says which resources should be called dirty, and why, after an event that was observed or inferred.
fn changed(
    before: &BTreeMap<ResourceKey, (Inputs, Entry)>,
    after: &BTreeMap<ResourceKey, (Inputs, Entry)>,
    cause: Cause,
    told: &BTreeMap<ResourceKey, Option<Cause>>,
) -> BTreeMap<ResourceKey, Option<Cause>> {
    let mut expected = BTreeMap::new();
    for key in before.keys().chain(after.keys()) {
        let (was, is) = (before.get(key), after.get(key));
        let of = |side: Option<&(Inputs, Entry)>| side.map(|(inputs, _)| inputs.clone());
        let (of_before, of_after) = (of(was), of(is));
        if of_before != of_after {
            // That a name was lost or won is seen in what was said of another resource.
            let (only_in_force, with_facts) = of_before.zip(of_after).map_or((false, false), |(before, after)| {
                let moved = before.substance == after.substance && before.in_force != after.in_force;
                (moved && before.facts == after.facts, moved && before.facts != after.facts)
            });
            let expects = if only_in_force { Cause::Observed } else { cause };
            // Another spec in force has other facts: these may not have changed themselves. A list that decides about names may
            // also concern the resource by what it needs only from then on: inferred is the more careful of the two.
            let either = told.get(key).copied().flatten().filter(|told| match told {
                Cause::Observed => with_facts,
                Cause::Inferred => only_in_force && cause == Cause::Inferred,
            });
            expected.insert(key.clone(), Some(either.unwrap_or(expects)));
        } else if was.map(|(_, entry)| &entry.resource) != is.map(|(_, entry)| &entry.resource) {
            expected.insert(key.clone(), None);
        }
    }
    expected
}

/// Says what a decision about a resource goes by, worked out with no index.
fn inputs(world: &World, key: &ResourceKey) -> Inputs {
    let Entry { resource, .. } = world.resource(key).unwrap();
    let mut substance = resource.clone();
    (substance.status, substance.finalizers) = (Arc::default(), Vec::new());
    let spec = world.effective_spec(key).filter(|_| resource.ours);
    let in_force = InForce { spec: spec.cloned(), rival: world.rival(key).cloned() };
    let asked = world.resource(key).and_then(|entry| entry.last_good.as_ref()).filter(|_| resource.ours);
    let here = |other: &ObjectKey| other.namespace == key.namespace;
    let pods = || world.pods.iter().filter(|(pod, _)| here(pod));
    // What is watched for the one tells of the other, too.
    let needs = all_needs(asked.into_iter().chain(world.without_name.get(key)));
    let facts_of = |spec: &Arc<Spec>| {
        let mut facts = Vec::new();
        match &spec.source {
            Source::Service { name } => {
                let service = ObjectKey { namespace: key.namespace.clone(), name: name.clone() };
                facts.push(Fact::Service(world.services.get(&service).cloned()));
                let slices = world.slices.iter().filter(|(slice, of)| here(slice) && of.service == *name);
                for (_, slice) in slices {
                    facts.push(Fact::Slice(slice.clone()));
                    for endpoint in slice.endpoints.iter().filter(|_| needs.pods) {
                        facts.extend(
                            pods()
                                .filter(|(key, pod)| match &endpoint.pod {
                                    Some(of) => key.name == of.name,
                                    None => pod.addresses.contains(&endpoint.address),
                                })
                                .map(|(_, pod)| Fact::Pod(Some(pod.clone()))),
                        );
                    }
                }
            }
            Source::Pods { selector } => {
                let picked = pods().filter(|(_, pod)| picks(selector, pod) == Some(true));
                facts.extend(picked.map(|(_, pod)| Fact::Pod(Some(pod.clone()))));
            }
            Source::Static { .. } => {}
        }
        let on_node = |name: &Str| {
            let node = world.node(name).filter(|_| needs.nodes)?;
            Some(Fact::Place(name.clone(), node.zone.clone(), node.region.clone()))
        };
        let named = nodes(world, key, spec);
        facts.extend(named.iter().filter_map(on_node));
        let placed = named.into_iter().filter(|_| world.always_needs(Kind::Node));
        facts.extend(placed.map(|name| Fact::IsNode(name.clone(), world.is_node(&name))));
        facts
    };
    // What it asks for decides on whose the name is; what it goes on by meanwhile, on what is registered.
    let facts = asked.map(facts_of).unwrap_or_default();
    let facts_meanwhile = world.without_name.get(key).map(facts_of).unwrap_or_default();
    Inputs { substance, in_force, waits_for: world.waits_for(key), facts, facts_meanwhile }
}

/// Lists the Nodes that the endpoints or pods of a resource are on.
fn nodes(world: &World, key: &ResourceKey, spec: &Spec) -> BTreeSet<Str> {
    let here = |other: &ObjectKey| other.namespace == key.namespace;
    match &spec.source {
        Source::Service { name } => {
            let slices = world.slices.iter().filter(|(slice, of)| here(slice) && of.service == *name);
            slices.flat_map(|(_, slice)| &slice.endpoints).filter_map(|endpoint| endpoint.node.clone()).collect()
        }
        Source::Pods { selector } => {
            let picked = world.pods.iter().filter(|(pod, of)| here(pod) && picks(selector, of) == Some(true));
            picked.filter_map(|(_, pod)| pod.node.clone()).collect()
        }
        Source::Static { .. } => BTreeSet::new(),
    }
}

impl World {
    /// Lists the resources of which nobody can tell yet which pods they select.
    fn waiting_for_labels(&self) -> BTreeSet<ResourceKey> {
        self.unsure.keys().filter(|key| self.is_unsure(key)).cloned().collect()
    }
}

/// Says whether a selector picks a pod; none while it asks for labels that were not looked for.
fn picks(selector: &Selector, pod: &Pod) -> Option<bool> {
    let is_known = selector.keys().all(|key| pod.labels.knows(key));
    is_known.then(|| selector.matches(|key| pod.labels.get(key)))
}

fn all_needs<'a>(specs: impl Iterator<Item = &'a Arc<Spec>>) -> Needs {
    specs.map(|spec| spec.needs()).fold(Needs::default(), |one, other| Needs {
        services: one.services || other.services,
        pods: one.pods || other.pods,
        nodes: one.nodes || other.nodes,
        of_pods: &one.of_pods | &other.of_pods,
    })
}

/// Says what the World holds of a kind, without what it remembers of the past.
fn held(world: &World, kind: Kind) -> BTreeMap<ObjectKey, Object> {
    fn all<T: PartialEq + Clone>(table: &Table<T>, object: impl Fn(T) -> Object) -> BTreeMap<ObjectKey, Object> {
        table.iter().map(|(key, there)| (key.clone(), object(there.clone()))).collect()
    }
    match kind {
        Kind::Resource => {
            all(&world.resources, |Entry { resource, since, .. }| Object::Resource(SeenResource { resource, since }))
        }
        Kind::Slice => all(&world.slices, Object::Slice),
        Kind::Service => all(&world.services, Object::Service),
        Kind::Pod => all(&world.pods, Object::Pod),
        Kind::Node => all(&world.nodes, Object::Node),
        Kind::Namespace => unreachable!("it is none of KINDS"),
    }
}

/// Works out afresh everything that the World keeps besides the objects.
fn check_indexes(world: &World) {
    let group = |pairs: Vec<(ObjectKey, ObjectKey)>| {
        let mut index = BTreeMap::<ObjectKey, BTreeSet<ObjectKey>>::new();
        for (group, member) in pairs {
            index.entry(group).or_default().insert(member);
        }
        index
    };
    let at = |namespace: &Str, name: &Str| ObjectKey { namespace: namespace.clone(), name: name.clone() };
    let slices = world.slices.iter().map(|(key, slice)| (at(&key.namespace, &slice.service), key.clone()));
    assert_eq!(world.slices_of, group(slices.collect()));

    let mut wants = Wants::default();
    let (mut users, mut selecting) = (Vec::new(), BTreeMap::<_, BTreeSet<_>>::new());
    let mut follows_nodes = world.always_needs(Kind::Node);
    let (mut picked, mut unsure) = (BTreeMap::new(), BTreeMap::new());
    for (key, _) in world.resources.iter().filter(|(_, entry)| entry.resource.ours) {
        let asked = world.resource(key).and_then(|entry| entry.last_good.as_ref());
        let all = asked.into_iter().chain(world.without_name.get(key));
        let needs = all_needs(all.clone());
        wants.add(&key.namespace, &needs, world.scopes.iter().filter(|scope| scope.covers(&key.namespace)));
        follows_nodes |= needs.nodes;
        for spec in all {
            match &spec.source {
                Source::Service { name } => users.push((at(&key.namespace, name), key.clone())),
                Source::Pods { selector } => {
                    selecting.entry(key.namespace.clone()).or_default().insert(key.clone());
                    let pods = || world.pods.iter().filter(|(pod, _)| pod.namespace == key.namespace);
                    let names = |is: Option<bool>| {
                        let such = pods().filter(|(_, pod)| picks(selector, pod) == is);
                        such.map(|(pod, _)| pod.name.clone()).collect::<BTreeSet<_>>()
                    };
                    picked.insert(key.clone(), names(Some(true)));
                    unsure.insert(key.clone(), names(None));
                }
                Source::Static { .. } => {}
            }
        }
    }
    assert_eq!(world.users_of, group(users));
    assert_eq!((&world.selecting, &world.matching, &world.unsure), (&selecting, &picked, &unsure));
    let wanted = wants.wanted();
    assert_eq!(
        world.wants.wanted().watches.into_keys().collect::<Vec<_>>(),
        wanted.watches.into_keys().collect::<Vec<_>>()
    );
    assert_eq!(world.wants.wanted().of_pods, wanted.of_pods);

    // What nobody wants is not held.
    for kind in KINDS {
        for key in held(world, kind).into_keys() {
            let covered = |(of, scope): &(Kind, Scope)| *of == kind && scope.covers(&key.namespace);
            assert!(world.wanted().watches.keys().any(covered), "{kind} {key} is held and not wanted");
        }
    }

    let mut pods_at = BTreeMap::<(Str, IpAddr), BTreeSet<Str>>::new();
    for (key, pod) in world.pods.iter() {
        for address in &pod.addresses {
            pods_at.entry((key.namespace.clone(), *address)).or_default().insert(key.name.clone());
        }
    }
    assert_eq!(world.pods_at, pods_at);
    let mut slices_with = BTreeMap::<EndpointTarget, BTreeSet<ObjectKey>>::new();
    for (key, slice) in world.slices.iter().filter(|_| world.watches_pods()) {
        for endpoint in &slice.endpoints {
            slices_with.entry(EndpointTarget::of(&key.namespace, endpoint)).or_default().insert(key.clone());
        }
    }
    assert_eq!(world.slices_with, slices_with);
    let mut on_nodes = OnNodes::default();
    for (key, slice) in world.slices.iter().filter(|_| follows_nodes) {
        for node in slice.endpoints.iter().filter_map(|endpoint| endpoint.node.clone()) {
            on_nodes.slices.entry(node).or_default().insert(key.clone());
        }
    }
    for (key, pod) in world.pods.iter().filter(|_| follows_nodes) {
        if let Some(node) = pod.node.clone() {
            on_nodes.pods.entry(node).or_default().insert(key.clone());
        }
    }
    assert_eq!(world.on_nodes, on_nodes);

    let mut rivals = BTreeMap::new();
    for (key, entry) in world.resources.iter() {
        if let Some(holder) = entry.asked().and_then(|asked| holder(world, &asked))
            && holder.namespace != key.namespace
        {
            rivals.insert(key.clone(), holder);
        }
    }
    assert_eq!(world.rivals, rivals);
}

fn has_rows(world: &World, key: &ResourceKey, name: &Str) -> bool {
    world.rows.get(key).is_some_and(|names| names.iter().any(|in_use| in_use.service.to_lowercase() == **name))
}

fn comes_to(world: &World, key: &ResourceKey, entry: &Entry, spec: &Spec) -> Resolution {
    resolve(spec, &world.facts(key), &Before::of(Some(&entry.resource), std::iter::empty()))
}

fn could_be_registered(world: &World, key: &ResourceKey, entry: &Entry) -> bool {
    let resource = &entry.resource;
    let source_is_found = |spec: &Arc<Spec>| comes_to(world, key, entry, spec).unresolved.is_none();
    resource.ours
        && !resource.deleting
        && !resource.paused
        && resource
            .spec
            .as_ref()
            .is_ok_and(|spec| world.lacks_list(key, &spec.needs()).is_some() || source_is_found(spec))
}

/// Says whose a name is, worked out from all resources and rows.
fn holder(world: &World, name: &Str) -> Option<ResourceKey> {
    let all: BTreeSet<&ResourceKey> = world.keys().chain(world.rows.keys()).collect();
    let mut best = None;
    for key in all {
        let entry = world.resource(key);
        let resource = entry.map(|entry| &entry.resource);
        let asks = entry.is_some_and(|entry| entry.asked().as_ref() == Some(name) && !entry.resource.deleting);
        let ends = resource.is_none_or(|resource| resource.ours && resource.deleting && !resource.paused)
            && world.ending.contains(key);
        let renamed = entry.is_some_and(|entry| {
            let Some(spec) = entry.last_good.as_ref().filter(|_| entry.resource.ours && !entry.resource.paused) else {
                return false;
            };
            let (asked, found) = (compared(&spec.service), comes_to(world, key, entry, spec));
            let is_nothing = found.unresolved.is_none() && found.instances.is_empty();
            !entry.resource.deleting
                && asked != *name
                && entry.granted_name() == Some(&asked)
                && (has_rows(world, key, &asked) || is_nothing && world.lacks_list(key, &spec.needs()).is_none())
        });
        let goes_on_otherwise = !asks && world.rows.contains_key(key);
        let granted = entry.and_then(|entry| entry.granted.as_ref());
        let granted = granted.filter(|granted| granted.name == *name && !goes_on_otherwise);
        let rank = match (has_rows(world, key, name), granted) {
            (true, _) if ends || renamed => continue,
            (true, Some(granted)) if asks => granted.by as u8,
            (true, _) => 3 + u8::from(!asks),
            (false, Some(granted)) if !resource.is_some_and(|resource| resource.deleting) => 5 + granted.by as u8,
            (false, _) if asks && entry.is_some_and(|entry| could_be_registered(world, key, entry)) => 8,
            (false, _) => continue,
        };
        let claim = (rank, resource.map_or(i64::MAX, |resource| resource.created), key.clone());
        best = best.into_iter().chain([claim]).min();
    }
    best.map(|(_, _, key)| key)
}

#[test]
fn any_history_ends_in_what_is_there_and_every_change_on_the_way_is_told() {
    let statistics = RefCell::new(Statistics::default());
    let scopes = prop_oneof![
        Just(vec![Scope::All]),
        Just(NAMESPACES.map(|namespace| Scope::Namespace(namespace.into())).to_vec()),
    ];
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    runner
        .run(&(scopes, any::<bool>(), vec(happening(), 1..200)), |(scopes, nodes, happenings)| {
            let mut history = History::new(&scopes, nodes, &statistics);
            for happening in happenings {
                history.happen(happening);
            }
            history.settle();
            history.compare();
            prop_assert!(history.world.is_synced());
            Ok(())
        })
        .unwrap();
    println!("{:#?}", statistics.borrow());
}

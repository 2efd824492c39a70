use std::cell::RefCell;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::model::facts::{Endpoint, Family, ServicePort, SlicePort};
use crate::model::registration::Weights;
use crate::model::resource::{DeletionPolicy, FINALIZER, Readiness, Refusal};
use crate::model::status::Status;

const NAMESPACES: [&str; 2] = ["a", "b"];

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

fn spec(service: &str) -> Arc<Spec> {
    Arc::new(Spec {
        service: "user".into(),
        source: Source::Service { name: service.into() },
        port: None,
        tags: Arc::from([]),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        readiness: Readiness::Mirror,
        checks: Vec::new(),
    })
}

fn seen(key: &ObjectKey, uid: &str, generation: i64, spec: Result<Arc<Spec>, Refusal>) -> SeenResource {
    let resource = Resource {
        key: key.clone(),
        uid: uid.into(),
        generation,
        resource_version: "1".into(),
        finalizers: Vec::new(),
        deleting: false,
        ours: true,
        finalizer: FINALIZER.into(),
        deletion: Some(DeletionPolicy::Deregister),
        spec,
        status: Arc::default(),
    };
    SeenResource { resource, since: Transitions::default() }
}

fn undecodable() -> Result<Arc<Spec>, Refusal> {
    Err(Refusal { reason: "Undecodable", message: "what?".to_owned() })
}

fn slice(service: &str, endpoints: u8) -> Slice {
    let endpoint = |last| Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        ready: true,
        terminating: false,
        node: None,
        pod: None,
    };
    Slice {
        service: service.into(),
        family: Family::V4,
        ports: vec![SlicePort { name: "http".into(), number: 80 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
    }
}

fn service(port: u16) -> Service {
    let ports = vec![ServicePort { name: "http".into(), number: port }];
    Service { family: Some(Family::V4), external_name: false, ports }
}

fn event(scope: &Scope, change: Change) -> Event {
    Event { scope: scope.clone(), change }
}

/// A World of one namespace that was listed, with resource `a/r` from Service `a/s`.
fn listed() -> (World, Scope, ObjectKey) {
    let scope = Scope::All;
    let mut world = World::new([scope.clone()], false);
    let r = key("a", "r");
    for change in [
        Change::Resource(Step::Init),
        Change::Resource(Step::InitApply(r.clone(), seen(&r, "u", 1, Ok(spec("s"))))),
        Change::Resource(Step::InitDone),
        Change::Slice(Step::Init),
        Change::Slice(Step::InitApply(key("a", "s-1"), slice("s", 1))),
        Change::Slice(Step::InitDone),
        Change::Service(Step::Init),
        Change::Service(Step::InitApply(key("a", "s"), service(80))),
        Change::Service(Step::InitDone),
    ] {
        world.apply(event(&scope, change));
    }
    (world, scope, r)
}

fn dirtied(key: &ObjectKey, cause: Option<Cause>) -> Vec<Dirtied> {
    vec![Dirtied { key: key.clone(), cause }]
}

#[test]
fn absence_means_something_only_after_every_list_of_every_scope() {
    let scopes = NAMESPACES.map(|namespace| Scope::Namespace(namespace.into()));
    let mut world = World::new(scopes.clone(), true);
    let mut lists = Vec::new();
    for scope in &scopes {
        lists.push((scope, Change::Resource(Step::Init), Change::Resource(Step::InitDone)));
        lists.push((scope, Change::Slice(Step::Init), Change::Slice(Step::InitDone)));
        lists.push((scope, Change::Service(Step::Init), Change::Service(Step::InitDone)));
    }
    lists.insert(3, (&Scope::All, Change::Node(Step::Init), Change::Node(Step::InitDone)));
    for (n, (scope, begin, done)) in lists.into_iter().enumerate() {
        assert_eq!((world.is_whole("a"), world.is_synced()), (n >= 4, false), "after {n} lists");
        world.apply(event(scope, done.clone()));
        assert_eq!(world.is_whole("a"), n >= 4, "a list that never began is not done");
        world.apply(event(scope, begin));
        world.apply(event(scope, done));
    }
    assert!(world.is_whole("a") && world.is_whole("b") && world.is_synced());
    assert!(!world.is_whole("c") && !world.watches("c"));
}

#[test]
fn what_a_watch_says_is_observed_and_what_a_list_lacks_is_inferred() {
    let (mut world, scope, r) = listed();
    let mut apply = |change| world.apply(event(&scope, change));
    assert_eq!(apply(Change::Slice(Step::Apply(key("a", "s-1"), slice("s", 2)))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(apply(Change::Slice(Step::Apply(key("a", "s-1"), slice("s", 2)))), []);
    assert_eq!(apply(Change::Slice(Step::Apply(key("a", "t-1"), slice("t", 2)))), []);
    assert_eq!(apply(Change::Slice(Step::Init)), []);
    assert_eq!(apply(Change::Slice(Step::InitApply(key("a", "t-1"), slice("t", 2)))), []);
    assert_eq!(apply(Change::Slice(Step::InitDone)), dirtied(&r, Some(Cause::Inferred)));
    assert_eq!(apply(Change::Service(Step::Delete(key("a", "s")))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(apply(Change::Resource(Step::Delete(r.clone()))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(apply(Change::Resource(Step::Delete(r.clone()))), []);
}

#[test]
fn a_list_that_is_begun_again_forgets_none_of_the_deletions() {
    let (mut world, scope, r) = listed();
    let mut apply = |step| world.apply(event(&scope, Change::Slice(step)));
    apply(Step::Init);
    apply(Step::InitApply(key("a", "s-1"), slice("s", 1)));
    assert_eq!(apply(Step::Init), [], "nothing goes by a list that is not done");
    assert_eq!(apply(Step::InitDone), dirtied(&r, Some(Cause::Inferred)), "what only the void list had is gone");
    assert_eq!(world.slices(&"a".into(), &"s".into()).count(), 0);
}

#[test]
fn our_own_writes_to_status_and_finalizers_are_only_bookkeeping() {
    let (mut world, scope, r) = listed();
    let mut written = seen(&r, "u", 1, Ok(spec("s")));
    written.resource.resource_version = "2".into();
    written.resource.status = Arc::new(Status { service_name: "user".to_owned(), ..Status::default() });
    let mut apply = |seen: SeenResource| world.apply(event(&scope, Change::Resource(Step::Apply(r.clone(), seen))));
    assert_eq!(apply(written.clone()), dirtied(&r, None));
    written.resource.generation = 2;
    assert_eq!(apply(written), dirtied(&r, Some(Cause::Observed)));
}

#[test]
fn the_last_good_spec_stays_in_force_for_the_very_same_resource() {
    let (mut world, scope, r) = listed();
    let mut apply = |seen| {
        let dirt = world.apply(event(&scope, Change::Resource(Step::Apply(r.clone(), seen))));
        (dirt, world.resource(&r).unwrap().effective_spec().cloned())
    };
    let (dirt, effective) = apply(seen(&r, "u", 2, undecodable()));
    assert_eq!((dirt, effective), (dirtied(&r, Some(Cause::Observed)), Some(spec("s"))));
    let (_, effective) = apply(seen(&r, "another", 1, undecodable()));
    assert_eq!(effective, None);
    assert_eq!(world.apply(event(&scope, Change::Service(Step::Apply(key("a", "s"), service(81))))), []);
}

// Random histories of a cluster, told by watches that lag, repeat themselves, break off and list anew.

/// What one watch covers; it tells its World of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Resource,
    Slice,
    Service,
    Node,
}

const KINDS: [Kind; 4] = [Kind::Resource, Kind::Slice, Kind::Service, Kind::Node];

#[derive(Clone, Debug, PartialEq)]
enum Object {
    Resource(SeenResource),
    Slice(Slice),
    Service(Service),
    Node(Node),
}

impl Object {
    fn kind(&self) -> Kind {
        match self {
            Self::Resource(_) => Kind::Resource,
            Self::Slice(_) => Kind::Slice,
            Self::Service(_) => Kind::Service,
            Self::Node(_) => Kind::Node,
        }
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
        Kind::Node => Change::Node(step(said, |o| if let Object::Node(o) = o { Some(o) } else { None })),
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    /// An object is created, edited or, with another uid, replaced.
    Put(ObjectKey, Object),
    Delete(Kind, ObjectKey),
    /// A watch hands over up to so many steps.
    Tell(Index, u8),
    /// A watch says the last thing again.
    Repeat(Index),
    /// A watch loses its place and lists anew, whatever it was doing.
    Relist(Index),
}

fn happening() -> impl Strategy<Value = Happening> {
    let place = || (0..2_usize, 0..3_u8).prop_map(|(namespace, n)| (NAMESPACES[namespace], n));
    let resource =
        (place(), 0..3_u8, 1..3_i64, 0..3_u8, prop::bool::weighted(0.15), any::<bool>(), prop::bool::weighted(0.1));
    let resource = resource.prop_map(|((namespace, n), uid, generation, service, broken, noted, deleting)| {
        let key = key(namespace, &format!("r{n}"));
        let spec = if broken { undecodable() } else { Ok(spec(&format!("s{service}"))) };
        let mut seen = seen(&key, &format!("u{uid}"), generation, spec);
        seen.resource.deleting = deleting;
        if noted {
            seen.resource.status = Arc::new(Status { observed_generation: generation, ..Status::default() });
            seen.resource.finalizers = vec!["f".into()];
        }
        Happening::Put(key, Object::Resource(seen))
    });
    let slices = (place(), 0..3_u8, 0..3_u8).prop_map(|((namespace, n), service, endpoints)| {
        Happening::Put(key(namespace, &format!("e{n}")), Object::Slice(slice(&format!("s{service}"), endpoints)))
    });
    let services = (place(), 80..82_u16).prop_map(|((namespace, n), port)| {
        Happening::Put(key(namespace, &format!("s{n}")), Object::Service(service(port)))
    });
    let nodes = (0..3_u8, 1..3_u8).prop_map(|(n, last)| {
        let address = Some(IpAddr::from([192, 0, 2, last]));
        Happening::Put(key("", &format!("n{n}")), Object::Node(Node { address }))
    });
    let delete = (0..4_usize, place()).prop_map(|(kind, (namespace, n))| match KINDS[kind] {
        Kind::Resource => Happening::Delete(Kind::Resource, key(namespace, &format!("r{n}"))),
        Kind::Slice => Happening::Delete(Kind::Slice, key(namespace, &format!("e{n}"))),
        Kind::Service => Happening::Delete(Kind::Service, key(namespace, &format!("s{n}"))),
        Kind::Node => Happening::Delete(Kind::Node, key("", &format!("n{n}"))),
    });
    prop_oneof![
        4 => resource,
        4 => slices,
        2 => services,
        1 => nodes,
        3 => delete,
        8 => (any::<Index>(), 1..5_u8).prop_map(|(watch, steps)| Happening::Tell(watch, steps)),
        1 => any::<Index>().prop_map(Happening::Repeat),
        2 => any::<Index>().prop_map(Happening::Relist),
    ]
}

/// A watch: what it has yet to say, in order.
#[derive(Debug)]
struct Watch {
    kind: Kind,
    scope: Scope,
    pending: Vec<Said>,
    last: Option<Said>,
    listing: bool,
    began: bool,
}

/// How often the histories had what they are for.
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
}

struct History<'a> {
    truth: BTreeMap<(Kind, ObjectKey), Object>,
    watches: Vec<Watch>,
    world: World,
    statistics: &'a RefCell<Statistics>,
}

impl<'a> History<'a> {
    fn new(scopes: &[Scope], statistics: &'a RefCell<Statistics>) -> Self {
        let watch = |kind, scope: &Scope| Watch {
            kind,
            scope: scope.clone(),
            pending: Vec::new(),
            last: None,
            listing: false,
            began: false,
        };
        let namespaced = [Kind::Resource, Kind::Slice, Kind::Service];
        let mut watches: Vec<_> = scopes.iter().flat_map(|scope| namespaced.map(|kind| watch(kind, scope))).collect();
        watches.push(watch(Kind::Node, &Scope::All));
        let world = World::new(scopes.iter().cloned(), true);
        statistics.borrow_mut().histories += 1;
        Self { truth: BTreeMap::new(), watches, world, statistics }
    }

    fn tell_watches(&mut self, kind: Kind, key: &ObjectKey, said: &Said) {
        for watch in &mut self.watches {
            if watch.began && watch.kind == kind && watch.scope.covers(&key.namespace) {
                watch.pending.push(said.clone());
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Put(key, object) => {
                let kind = object.kind();
                let old = self.truth.insert((kind, key.clone()), object.clone());
                match (&old, &object) {
                    (Some(Object::Resource(old)), Object::Resource(new)) if old.resource.uid != new.resource.uid => {
                        self.statistics.borrow_mut().replaced_under_the_same_name += 1;
                        self.tell_watches(kind, &key, &Said::Delete(key.clone()));
                    }
                    (Some(Object::Slice(old)), Object::Slice(new)) if old.service != new.service => {
                        self.statistics.borrow_mut().slices_moved_to_another_service += 1;
                    }
                    _ => {}
                }
                self.tell_watches(kind, &key.clone(), &Said::Apply(key, object));
            }
            Happening::Delete(kind, key) => {
                if self.truth.remove(&(kind, key.clone())).is_some() {
                    self.tell_watches(kind, &key.clone(), &Said::Delete(key));
                }
            }
            Happening::Tell(watch, steps) => {
                let at = watch.index(self.watches.len());
                if !self.watches[at].began {
                    self.relist(at);
                }
                for _ in 0..steps {
                    self.say_next(at);
                }
            }
            Happening::Repeat(watch) => {
                let at = watch.index(self.watches.len());
                if let Some(last) = self.watches[at].last.clone() {
                    self.statistics.borrow_mut().repeated += 1;
                    self.say(at, last);
                }
            }
            Happening::Relist(watch) => self.relist(watch.index(self.watches.len())),
        }
    }

    fn relist(&mut self, at: usize) {
        let watch = &mut self.watches[at];
        let mut statistics = self.statistics.borrow_mut();
        statistics.aborted_relists += u32::from(watch.listing);
        statistics.relists += u32::from(watch.began);
        (watch.began, watch.listing) = (true, true);
        let own =
            self.truth.iter().filter(|((kind, key), _)| *kind == watch.kind && watch.scope.covers(&key.namespace));
        let listed = own.map(|((_, key), object)| Said::InitApply(key.clone(), object.clone()));
        watch.pending = [Said::Init].into_iter().chain(listed).chain([Said::InitDone]).collect();
    }

    fn say_next(&mut self, at: usize) {
        let watch = &mut self.watches[at];
        if watch.pending.is_empty() {
            return;
        }
        let said = watch.pending.remove(0);
        watch.listing &= !matches!(said, Said::InitDone);
        watch.last = Some(said.clone());
        self.say(at, said);
    }

    /// Hands an event to the World, and holds what it says is concerned against what is.
    fn say(&mut self, at: usize, said: Said) {
        let Watch { kind, scope, .. } = &self.watches[at];
        let cause = if matches!(said, Said::Apply(..) | Said::Delete(_)) { Cause::Observed } else { Cause::Inferred };
        let (was_synced, before) = (self.lists_done(), self.decisions());
        let swept = if matches!(said, Said::InitDone) { self.objects() } else { 0 };
        let dirt = self.world.apply(event(scope, change(*kind, said)));
        let after = self.decisions();
        let mut statistics = self.statistics.borrow_mut();
        statistics.events += 1;
        statistics.swept += u32::try_from(swept.saturating_sub(self.objects())).unwrap();
        let kept = self.world.keys().filter_map(|k| self.world.resource(k)).filter(|e| e.resource.spec.is_err());
        statistics.last_good_specs_kept += u32::try_from(kept.filter(|e| e.last_good.is_some()).count()).unwrap();
        drop(statistics);

        let mut expected = BTreeMap::new();
        for key in before.keys().chain(after.keys()) {
            let (was, is) = (before.get(key), after.get(key));
            if was.map(|(inputs, _)| inputs) != is.map(|(inputs, _)| inputs) {
                expected.insert(key.clone(), Some(cause));
            } else if was != is {
                expected.insert(key.clone(), None);
            }
        }
        if self.lists_done() != was_synced {
            for key in after.keys().filter(|key| scope.covers(&key.namespace)) {
                expected.insert(key.clone(), Some(Cause::Inferred));
            }
        }
        let dirt: BTreeMap<_, _> = dirt.into_iter().map(|Dirtied { key, cause }| (key, cause)).collect();
        assert_eq!(dirt, expected);
        self.check_indexes();
    }

    /// Which first lists are done.
    fn lists_done(&self) -> Vec<bool> {
        let done = |watch: &Watch| match watch.kind {
            Kind::Resource => self.world.resources.is_listed(&watch.scope),
            Kind::Slice => self.world.slices.is_listed(&watch.scope),
            Kind::Service => self.world.services.is_listed(&watch.scope),
            Kind::Node => self.world.nodes.is_listed(&watch.scope),
        };
        self.watches.iter().map(done).collect()
    }

    fn objects(&self) -> usize {
        let world = &self.world;
        world.keys().count() + world.slices.keys().count() + world.services.keys().count() + world.nodes.keys().count()
    }

    /// For each resource what a decision about it goes by, and its bookkeeping.
    fn decisions(&self) -> BTreeMap<ResourceKey, (Inputs, Entry)> {
        let of = |key: &ResourceKey| {
            let entry = self.world.resource(key).unwrap().clone();
            let mut substance = entry.resource.clone();
            (substance.status, substance.finalizers) = (Arc::default(), Vec::new());
            let source = entry.effective_spec().map(|spec| {
                let Source::Service { name } = &spec.source;
                let slices = self.world.slices(&key.namespace, name).cloned().collect();
                (spec.clone(), self.world.service(&key.namespace, name).cloned(), slices)
            });
            ((substance, source), entry)
        };
        self.world.keys().map(|key| (key.clone(), of(key))).collect()
    }

    fn check_indexes(&self) {
        let (mut slices_of, mut users_of) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::<_, BTreeSet<_>>::new());
        for key in self.world.slices.keys() {
            let service = self.world.slices.get(key).unwrap().service.clone();
            slices_of
                .entry(ObjectKey { namespace: key.namespace.clone(), name: service })
                .or_default()
                .insert(key.clone());
        }
        for key in self.world.keys() {
            if let Some(service) = self.world.resource(key).unwrap().service() {
                users_of.entry(service).or_default().insert(key.clone());
            }
        }
        assert_eq!((&self.world.slices_of, &self.world.users_of), (&slices_of, &users_of));
    }

    /// Lets every watch say all that it has to say.
    fn settle(&mut self) {
        for at in 0..self.watches.len() {
            if !self.watches[at].began {
                self.relist(at);
            }
            while !self.watches[at].pending.is_empty() {
                self.say_next(at);
            }
        }
    }

    /// What the World holds, without what it remembers of the past.
    fn content(&self) -> BTreeMap<(Kind, ObjectKey), Object> {
        let world = &self.world;
        let resources = world.resources.keys().map(|key| {
            let Entry { resource, since, .. } = world.resource(key).unwrap().clone();
            ((Kind::Resource, key.clone()), Object::Resource(SeenResource { resource, since }))
        });
        let of = |kind, key: &ObjectKey, object| ((kind, key.clone()), object);
        let slices =
            world.slices.keys().map(|k| of(Kind::Slice, k, Object::Slice(world.slices.get(k).unwrap().clone())));
        let services = world
            .services
            .keys()
            .map(|k| of(Kind::Service, k, Object::Service(world.service(&k.namespace, &k.name).unwrap().clone())));
        let nodes = world.nodes.keys().map(|k| of(Kind::Node, k, Object::Node(world.node(&k.name).unwrap().clone())));
        resources.chain(slices).chain(services).chain(nodes).collect()
    }
}

type Inputs = (Resource, Option<(Arc<Spec>, Option<Service>, Vec<Slice>)>);

#[test]
fn any_history_ends_in_what_is_there_and_every_change_on_the_way_is_told() {
    let statistics = RefCell::new(Statistics::default());
    let scopes = prop_oneof![
        Just(vec![Scope::All]),
        Just(NAMESPACES.map(|namespace| Scope::Namespace(namespace.into())).to_vec()),
    ];
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    runner
        .run(&(scopes, vec(happening(), 1..120)), |(scopes, happenings)| {
            let mut history = History::new(&scopes, &statistics);
            for happening in happenings {
                history.happen(happening);
            }
            history.settle();
            prop_assert_eq!(&history.content(), &history.truth);
            prop_assert!(history.world.is_synced());
            Ok(())
        })
        .unwrap();
    println!("{:#?}", statistics.borrow());
}

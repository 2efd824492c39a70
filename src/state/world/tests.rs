use std::net::IpAddr;

use super::entry::compared;
use super::*;
use crate::model::facts::{
    Attributes, ContainerKind, ContainerPort, Endpoint, Family, KeysOfPods, PodKey, PodRef, Protocol, ServicePort,
    SlicePort,
};
use crate::model::reasons::{Counts, Refusal};
use crate::model::registration::Weights;
use crate::model::resource::{DeletionPolicy, FINALIZER, Limits, Readiness, Resource, Source};
use crate::model::selector::{Requirement, Selector};
use crate::model::status::{Condition, ConditionKind, Status, Truth};
use crate::model::template::Template;
use crate::state::event::Transitions;

mod demand;
mod history;
mod missing;
mod names;
mod on_nodes;
mod policed;

const NAMESPACES: [&str; 2] = ["a", "b"];

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

/// A spec from Service `service`.
fn spec(service: &str) -> Spec {
    from(Source::Service { name: service.into() })
}

fn from(source: Source) -> Spec {
    Spec {
        service: "user".into(),
        source,
        port: None,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        dual_stack: false,
        readiness: Readiness::Mirror,
        checks: Vec::new(),
        limits: Limits::default(),
    }
}

/// A spec from the pods of an app.
fn pods_of(app: &str) -> Spec {
    from(Source::Pods { selector: Selector(vec![Requirement::In("app".into(), [app.into()].into())]) })
}

/// Gives the same spec under this name.
fn named(name: &str, spec: Spec) -> Spec {
    Spec { service: name.into(), ..spec }
}

/// Gives the same spec with this tag.
fn tagged(tag: &str, spec: Spec) -> Spec {
    Spec { tags: vec![Template::parse(tag).unwrap()], ..spec }
}

fn seen(key: &ObjectKey, uid: &str, generation: i64, spec: Result<Spec, Refusal>) -> SeenResource {
    let resource = Resource {
        key: key.clone(),
        uid: uid.into(),
        created: 0,
        generation,
        resource_version: "1".into(),
        finalizers: Vec::new(),
        deleting: false,
        ours: true,
        finalizer: FINALIZER.into(),
        paused: false,
        deletion: Some(DeletionPolicy::Deregister),
        bytes: 0,
        spec: spec.map(Arc::new),
        status: Arc::default(),
    };
    SeenResource { resource, since: Transitions::default() }
}

fn undecodable() -> Result<Spec, Refusal> {
    Err(Refusal { reason: "Undecodable", message: "what?".to_owned() })
}

/// A status as Lictor writes it.
fn told(generation: i64, name: &str, accepted: Truth) -> Arc<Status> {
    let accepted = Condition {
        kind: ConditionKind::Accepted,
        truth: accepted,
        reason: "Because".to_owned(),
        message: String::new(),
        observed_generation: generation,
    };
    Arc::new(Status {
        observed_generation: generation,
        service_name: name.to_owned(),
        port_in_use: None,
        retains: false,
        instances: Counts::default(),
        problems: Vec::new(),
        conditions: vec![accepted],
    })
}

/// Rows under names, and from sources.
fn in_use(names: &[(&str, &str)]) -> BTreeSet<NameInUse> {
    names.iter().map(|(name, source)| NameInUse { service: (*name).into(), source: Some((*source).into()) }).collect()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn endpoint(last: u8, pod: Option<&str>) -> Endpoint {
    Endpoint {
        address: address(last),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: pod.map(|name| PodRef { name: name.into(), uid: format!("uid-{name}").into() }),
    }
}

fn slice(service: &str, endpoints: Vec<Endpoint>) -> Slice {
    let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: 80 }];
    Slice { service: service.into(), family: Family::V4, ports, endpoints }
}

fn service(port: u16) -> Service {
    let ports = vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, number: port }];
    Service { family: Some(Family::V4), selects: false, external_name: false, ports }
}

fn pod(name: &str, last: u8, app: &str) -> Pod {
    Pod {
        uid: format!("uid-{name}").into(),
        addresses: vec![address(last)],
        ready: true,
        leaving: false,
        node: Some("n0".into()),
        ports: vec![ContainerPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            number: 8080,
            of: ContainerKind::Own,
        }],
        labels: [("app".into(), app.into())].into_iter().collect(),
        annotations: Attributes::default(),
    }
}

fn node(zone: &str) -> Node {
    Node { address: Some(IpAddr::from([192, 0, 2, 1])), zone: Some(zone.into()), region: None }
}

fn event(scope: &Scope, change: Change) -> Event {
    Event { scope: scope.clone(), change }
}

/// Slices, Services and pods are watched by their namespaces; the steps of their lists are about all of them, those of pods
/// about the first one.
fn scopes_of(change: &Change) -> Vec<Scope> {
    let namespace = |namespace: &str| Scope::Namespace(namespace.into());
    match change {
        Change::Pod(Step::InitApply(key, _) | Step::Apply(key, _) | Step::Delete(key))
        | Change::Slice(Step::InitApply(key, _) | Step::Apply(key, _) | Step::Delete(key))
        | Change::Service(Step::InitApply(key, _) | Step::Apply(key, _) | Step::Delete(key)) => {
            vec![namespace(&key.namespace)]
        }
        Change::Pod(Step::Init | Step::InitDone) => vec![namespace(NAMESPACES[0])],
        Change::Slice(_) | Change::Service(_) => NAMESPACES.map(namespace).into(),
        Change::Resource(_) | Change::Node(_) | Change::Namespace(_) => vec![Scope::All],
    }
}

fn begins(kind: Kind) -> Change {
    match kind {
        Kind::Resource => Change::Resource(Step::Init),
        Kind::Slice => Change::Slice(Step::Init),
        Kind::Service => Change::Service(Step::Init),
        Kind::Pod => Change::Pod(Step::Init),
        Kind::Node => Change::Node(Step::Init),
        Kind::Namespace => Change::Namespace(Step::Init),
    }
}

fn is_done(kind: Kind) -> Change {
    match kind {
        Kind::Resource => Change::Resource(Step::InitDone),
        Kind::Slice => Change::Slice(Step::InitDone),
        Kind::Service => Change::Service(Step::InitDone),
        Kind::Pod => Change::Pod(Step::InitDone),
        Kind::Node => Change::Node(Step::InitDone),
        Kind::Namespace => Change::Namespace(Step::InitDone),
    }
}

impl World {
    /// A World of the whole cluster whose resources were listed.
    fn of(resources: impl IntoIterator<Item = SeenResource>) -> Self {
        let mut world = Self::new([Scope::All], false);
        world.on_event(begins(Kind::Resource));
        for seen in resources {
            world.on_event(Change::Resource(Step::InitApply(seen.resource.key.clone(), seen)));
        }
        world.on_event(is_done(Kind::Resource));
        world
    }

    fn on_event(&mut self, change: Change) -> Vec<Dirtied> {
        self.on_event_at(change, Instant::now())
    }

    #[allow(clippy::needless_pass_by_value, reason = "an event is made where it is told")]
    fn on_event_at(&mut self, change: Change, now: Instant) -> Vec<Dirtied> {
        scopes_of(&change).iter().flat_map(|scope| self.apply(event(scope, change.clone()), now)).collect()
    }

    fn edits(&mut self, seen: SeenResource) -> Vec<Dirtied> {
        self.on_event(Change::Resource(Step::Apply(seen.resource.key.clone(), seen)))
    }

    fn deletes(&mut self, key: &ObjectKey) -> Vec<Dirtied> {
        self.on_event(Change::Resource(Step::Delete(key.clone())))
    }

    /// Says whether something of this kind, namespace and name is held.
    fn holds(&self, kind: Kind, key: &ObjectKey) -> bool {
        match kind {
            Kind::Resource => self.resources.get(key).is_some(),
            Kind::Slice => self.slices.get(key).is_some(),
            Kind::Service => self.services.get(key).is_some(),
            Kind::Pod => self.pods.get(key).is_some(),
            Kind::Node => self.nodes.get(key).is_some(),
            Kind::Namespace => self.namespaces.get(key).is_some(),
        }
    }
}

/// A World that was listed, with resource `a/r` from Service `a/s`, which has one slice with a pod in it.
fn listed(spec: Spec) -> (World, ObjectKey) {
    let r = key("a", "r");
    let mut world = World::of([seen(&r, "u", 1, Ok(spec))]);
    for change in [
        Change::Slice(Step::Init),
        Change::Slice(Step::InitApply(key("a", "s-1"), slice("s", vec![endpoint(1, Some("p"))]))),
        Change::Slice(Step::InitDone),
        Change::Service(Step::Init),
        Change::Service(Step::InitApply(key("a", "s"), service(80))),
        Change::Service(Step::InitDone),
        Change::Pod(Step::Init),
        Change::Pod(Step::InitApply(key("a", "p"), pod("p", 1, "s"))),
        Change::Pod(Step::InitDone),
        Change::Node(Step::Init),
        Change::Node(Step::InitApply(key("", "n0"), node("z1"))),
        Change::Node(Step::InitDone),
    ] {
        world.on_event(change);
    }
    (world, r)
}

fn dirtied(key: &ObjectKey, cause: Option<Cause>) -> Vec<Dirtied> {
    vec![Dirtied { key: key.clone(), cause }]
}

#[test]
fn absence_means_something_only_after_every_list_of_every_scope() {
    let scopes = NAMESPACES.map(|namespace| Scope::Namespace(namespace.into()));
    let mut world = World::new(scopes.clone(), true);
    let lists = scopes.iter().map(|scope| (scope, Kind::Resource)).chain([(&Scope::All, Kind::Node)]);
    for (n, (scope, kind)) in lists.enumerate() {
        world.apply(event(scope, is_done(kind)), Instant::now());
        assert!(!world.is_whole("a") && !world.is_synced(), "after {n} lists; one that never began is not done");
        world.apply(event(scope, begins(kind)), Instant::now());
        world.apply(event(scope, is_done(kind)), Instant::now());
    }
    assert!(world.is_whole("a") && world.is_whole("b") && world.is_synced());
    assert!(!world.is_whole("c") && !world.watches("c"));
}

#[test]
fn nodes_are_waited_for_unless_it_goes_without_them() {
    for nodes in [true, false] {
        let mut world = World::new([Scope::All], nodes);
        assert!(!world.knows_nodes(), "before the list of resources");
        for change in [begins(Kind::Resource), is_done(Kind::Resource)] {
            world.apply(event(&Scope::All, change), Instant::now());
        }
        assert!(world.is_synced() != nodes && world.knows_nodes() != nodes, "with Nodes: {nodes}");
    }
}

#[test]
fn what_a_watch_says_is_observed_and_what_a_list_lacks_is_inferred() {
    let (mut world, r) = listed(spec("s"));
    let mut on_event = |change| world.on_event(change);
    let two = || slice("s", vec![endpoint(1, None), endpoint(2, None)]);
    assert_eq!(on_event(Change::Slice(Step::Apply(key("a", "s-1"), two()))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(on_event(Change::Slice(Step::Apply(key("a", "s-1"), two()))), []);
    assert_eq!(on_event(Change::Slice(Step::Apply(key("a", "t-1"), slice("t", Vec::new())))), []);
    assert_eq!(on_event(Change::Slice(Step::Init)), []);
    assert_eq!(on_event(Change::Slice(Step::InitApply(key("a", "t-1"), slice("t", Vec::new())))), []);
    assert_eq!(on_event(Change::Slice(Step::InitDone)), dirtied(&r, Some(Cause::Inferred)));
    assert_eq!(on_event(Change::Service(Step::Delete(key("a", "s")))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(on_event(Change::Resource(Step::Delete(r.clone()))), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(on_event(Change::Resource(Step::Delete(r.clone()))), []);
}

#[test]
fn a_list_that_is_begun_again_forgets_none_of_the_deletions() {
    let (mut world, r) = listed(spec("s"));
    let mut on_event = |step| world.on_event(Change::Slice(step));
    on_event(Step::Init);
    on_event(Step::InitApply(key("a", "s-1"), slice("s", vec![endpoint(1, Some("p"))])));
    assert_eq!(on_event(Step::Init), [], "nothing goes by a list that is not done");
    assert_eq!(on_event(Step::InitDone), dirtied(&r, Some(Cause::Inferred)), "what only the void list had is gone");
    assert_eq!(world.facts(&r).slices("s").count(), 0);
}

#[test]
fn our_own_writes_to_status_and_finalizers_are_only_bookkeeping() {
    let (mut world, r) = listed(spec("s"));
    let mut written = seen(&r, "u", 1, Ok(spec("s")));
    written.resource.resource_version = "2".into();
    written.resource.status = told(1, "user", Truth::True);
    assert_eq!(world.edits(written.clone()), dirtied(&r, None));
    written.resource.generation = 2;
    assert_eq!(world.edits(written.clone()), dirtied(&r, Some(Cause::Observed)));
    written.resource.paused = true;
    assert_eq!(world.edits(written), dirtied(&r, Some(Cause::Observed)), "an annotation is no edit of the spec");
}

#[test]
fn the_last_good_spec_stays_in_force_for_the_very_same_resource() {
    let (mut world, r) = listed(spec("s"));
    assert_eq!(world.edits(seen(&r, "u", 2, undecodable())), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(world.effective_spec(&r).map(|spec| (**spec).clone()), Some(spec("s")));
    world.edits(seen(&r, "another", 1, undecodable()));
    assert_eq!(world.effective_spec(&r), None);
    assert!(!world.holds(Kind::Service, &key("a", "s")), "nobody needs it any more");
}

#[test]
fn a_second_look_remembers_what_only_time_tells() {
    let (mut world, r) = listed(spec("s"));
    world.act(&r);
    world.edits(seen(&r, "u", 2, undecodable()));
    let mut fresh = World::of([seen(&r, "u", 2, undecodable()), seen(&key("a", "new"), "v", 1, undecodable())]);
    assert_eq!(fresh.effective_spec(&r), None);
    fresh.remember(&world);
    assert_eq!(fresh.effective_spec(&r), world.effective_spec(&r));
    assert_eq!(fresh.waits_for(&r), Some(Kind::Service), "what it needs was not read with the rest");
    let mut another = World::of([seen(&r, "another", 2, undecodable())]);
    another.remember(&world);
    assert_eq!(another.effective_spec(&r), None, "another resource of that name");
}

#[test]
fn a_pod_concerns_those_who_pick_it_or_hold_values_of_it() {
    let moved = |app: &str| Change::Pod(Step::Apply(key("a", "p"), pod("p", 2, app)));
    let (mut world, _) = listed(spec("s"));
    assert_eq!(world.on_event(moved("s")), [], "what is registered by a slice alone has nothing to do with it");
    for spec in [tagged("${pod.labels['app']}", spec("s")), Spec { limits: verified(), ..spec("s") }, pods_of("s")] {
        let (mut world, r) = listed(spec);
        assert_eq!(world.on_event(moved("s")), dirtied(&r, Some(Cause::Observed)));
        assert_eq!(world.on_event(moved("s")), [], "nothing has changed");
        world.on_event(Change::Pod(Step::Apply(key("b", "p"), pod("p", 1, "s"))));
        assert_eq!(world.on_event(Change::Pod(Step::Delete(key("b", "p")))), [], "of another namespace");
        assert_eq!(world.on_event(Change::Pod(Step::Delete(key("a", "p")))), dirtied(&r, Some(Cause::Observed)));
    }
    let (mut world, r) = listed(pods_of("s"));
    assert_eq!(world.on_event(moved("t")), dirtied(&r, Some(Cause::Observed)), "it is picked no more");
    assert_eq!(world.on_event(Change::Pod(Step::Delete(key("a", "p")))), []);
}

fn verified() -> Limits {
    Limits { verify_endpoints: true, ..Limits::default() }
}

#[test]
fn a_pod_that_comes_to_an_address_concerns_endpoints_that_name_no_pod() {
    let (mut world, r) = listed(Spec { limits: verified(), ..spec("s") });
    world.on_event(Change::Slice(Step::Apply(key("a", "s-1"), slice("s", vec![endpoint(7, None)]))));
    let q = |last| Change::Pod(Step::Apply(key("a", "q"), pod("q", last, "t")));
    assert_eq!(world.on_event(q(6)), []);
    assert!(!world.facts(&r).has_pod_at(address(7)));
    assert_eq!(world.on_event(q(7)), dirtied(&r, Some(Cause::Observed)));
    assert!(world.facts(&r).has_pod_at(address(7)));
    assert!(!world.facts(&key("b", "r")).has_pod_at(address(7)), "of another namespace");
    assert_eq!(world.on_event(q(6)), dirtied(&r, Some(Cause::Observed)));
    assert!(!world.facts(&r).has_pod_at(address(7)));
}

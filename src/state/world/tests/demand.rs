//! A kind is watched while a resource needs it, and held no longer.

use super::*;

fn wanted(world: &mut World) -> Option<BTreeSet<Kind>> {
    world.wanted_anew().map(|wanted| wanted.watches.into_keys().map(|(kind, _)| kind).collect())
}

#[test]
fn what_a_resource_needs_is_wanted_as_long_as_it_needs_it() {
    let (one, other) = (key("a", "r"), key("b", "r"));
    let edit = |key: &ObjectKey, generation, spec| seen(key, &key.namespace, generation, Ok(spec));
    let mut world = World::of([]);
    assert_eq!(wanted(&mut world), None);
    let steps = [
        (edit(&one, 1, spec("s")), Some(&[Kind::Resource, Kind::Slice, Kind::Service][..])),
        (edit(&one, 2, spec("t")), None),
        // Another namespace has watches of its own.
        (edit(&other, 1, named("other", spec("s"))), Some(&[Kind::Resource, Kind::Slice, Kind::Service])),
        (
            edit(&one, 3, tagged("${pod.labels['app']}", spec("t"))),
            Some(&[Kind::Resource, Kind::Slice, Kind::Service, Kind::Pod]),
        ),
        (edit(&other, 2, named("other", pods_of("s"))), Some(&[Kind::Resource, Kind::Slice, Kind::Service, Kind::Pod])),
        (edit(&one, 4, tagged("${node.zone}", pods_of("s"))), Some(&[Kind::Resource, Kind::Pod, Kind::Node])),
        (
            edit(&one, 5, tagged("${node.zone}", from(Source::Static { addresses: Vec::new() }))),
            Some(&[Kind::Resource, Kind::Pod]),
        ),
    ];
    for (n, (seen, expected)) in steps.into_iter().enumerate() {
        world.edits(seen);
        assert_eq!(wanted(&mut world), expected.map(|kinds| kinds.iter().copied().collect()), "step {n}");
    }
    world.deletes(&other);
    assert_eq!(wanted(&mut world), Some([Kind::Resource].into()));
}

#[test]
fn what_nobody_needs_is_neither_taken_in_nor_kept() {
    let (mut world, r) = listed(tagged("${node.zone}", pods_of("s")));
    assert!(world.holds(Kind::Pod, &key("a", "p")) && world.holds(Kind::Node, &key("", "n0")));
    assert!(!world.holds(Kind::Service, &key("a", "s")) && !world.holds(Kind::Slice, &key("a", "s-1")));
    world.deletes(&r);
    assert!(!world.holds(Kind::Pod, &key("a", "p")) && !world.holds(Kind::Node, &key("", "n0")));
    world.on_event(Change::Pod(Step::Apply(key("a", "p"), pod("p", 1, "s"))));
    assert!(!world.holds(Kind::Pod, &key("a", "p")), "a late word of a watch that ended");
}

#[test]
fn what_is_in_namespaces_without_resources_is_not_held() {
    let (mut world, r) = listed(spec("s"));
    let other = key("b", "r");
    let foreign = || Change::Slice(Step::Apply(key("b", "s-1"), slice("s", vec![endpoint(9, None)])));
    world.on_event(foreign());
    world.on_event(Change::Service(Step::Apply(key("b", "s"), service(80))));
    assert!(!world.holds(Kind::Slice, &key("b", "s-1")) && !world.holds(Kind::Service, &key("b", "s")));
    // The first resource of a namespace waits for its lists, and the others go on.
    world.edits(seen(&other, "w", 1, Ok(named("other", spec("s")))));
    assert_eq!((world.waits_for(&other), world.waits_for(&r)), (Some(Kind::Service), None));
    world.apply(event(&Scope::Namespace("b".into()), begins(Kind::Slice)), Instant::now());
    world.on_event(foreign());
    assert!(world.holds(Kind::Slice, &key("b", "s-1")));
    world.deletes(&other);
    assert!(!world.holds(Kind::Slice, &key("b", "s-1")) && world.holds(Kind::Slice, &key("a", "s-1")));
    assert_eq!(world.waits_for(&r), None);
}

#[test]
fn a_watch_that_is_wanted_again_is_another_one_and_waited_for() {
    let (mut world, r) = listed(pods_of("s"));
    let pods = (Kind::Pod, Scope::Namespace("a".into()));
    let first = world.wanted().watches[&pods];
    assert_eq!(world.waits_for(&r), None);
    world.edits(seen(&r, "u", 2, Ok(spec("s"))));
    assert_eq!(world.waits_for(&r), Some(Kind::Service));
    let dirt = world.edits(seen(&r, "u", 3, Ok(pods_of("s"))));
    assert_eq!(dirt, dirtied(&r, Some(Cause::Observed)));
    assert_ne!(world.wanted().watches[&pods], first);
    assert_eq!(world.waits_for(&r), Some(Kind::Pod), "what was there before may have gone");
    // The last words of the first one mean nothing.
    world.on_event(Change::Pod(Step::Apply(key("a", "p"), pod("p", 1, "s"))));
    world.on_event(Change::Pod(Step::InitDone));
    assert_eq!(world.waits_for(&r), Some(Kind::Pod));
    world.on_event(Change::Pod(Step::Init));
    assert_eq!(world.on_event(Change::Pod(Step::InitDone)), dirtied(&r, Some(Cause::Inferred)));
    assert_eq!(world.waits_for(&r), None);
    assert_eq!(world.facts(&r).matching().count(), 0);
}

#[test]
fn an_edit_that_changes_nothing_about_a_need_drops_nothing() {
    let (mut world, r) = listed(spec("s"));
    world.act(&r);
    world.edits(seen(&key("b", "holder"), "w", 1, Ok(named("taken", spec("s")))));
    for kind in [Kind::Service, Kind::Slice] {
        world.on_event(begins(kind));
        if kind == Kind::Service {
            world.on_event(Change::Service(Step::InitApply(key("a", "s"), service(80))));
            world.on_event(Change::Service(Step::InitApply(key("b", "s"), service(80))));
        }
        world.on_event(is_done(kind));
    }
    world.act(&key("b", "holder"));
    world.note_rows(&r, in_use(&[("user", "service/s")]));
    world.wanted_anew();
    // It loses, so that the source in force stays the one that it was; whether it could have the name, pods tell.
    world.edits(seen(&r, "u", 2, Ok(named("taken", pods_of("s")))));
    assert_eq!(world.rival(&r), Some(&key("b", "holder")));
    assert!(world.holds(Kind::Service, &key("a", "s")));
    assert_eq!(wanted(&mut world), Some([Kind::Resource, Kind::Slice, Kind::Service, Kind::Pod].into()));
    world.deletes(&key("b", "holder"));
    assert_eq!(wanted(&mut world), Some([Kind::Resource, Kind::Pod].into()));
}

#[test]
fn a_resource_waits_only_for_what_it_needs() {
    let r = key("a", "r");
    let mut world = World::new([Scope::All], false);
    world.on_event(begins(Kind::Resource));
    world.on_event(Change::Resource(Step::InitApply(
        r.clone(),
        seen(&r, "u", 1, Ok(tagged("${node.zone}", spec("s")))),
    )));
    assert_eq!(world.waits_for(&r), Some(Kind::Resource), "whose the name is only all resources tell");
    assert_eq!(world.on_event(is_done(Kind::Resource)), dirtied(&r, Some(Cause::Inferred)));
    for (kind, next) in [(Kind::Service, Some(Kind::Slice)), (Kind::Slice, Some(Kind::Node)), (Kind::Node, None)] {
        assert_eq!(world.waits_for(&r), Some(kind));
        world.on_event(begins(kind));
        assert_eq!(world.on_event(is_done(kind)), dirtied(&r, Some(Cause::Inferred)));
        assert_eq!(world.waits_for(&r), next);
    }
    assert!(world.is_synced() && world.is_whole("a"));
    world.edits(SeenResource {
        resource: Resource { deleting: true, ..seen(&r, "u", 2, Ok(pods_of("s"))).resource },
        since: Transitions::default(),
    });
    assert_eq!(world.waits_for(&r), None, "to leave it needs nothing");
}

#[test]
fn the_labels_and_annotations_that_selectors_and_texts_name_are_wanted() {
    let r = key("a", "r");
    let of = |tag: &str| tagged(tag, pods_of("s"));
    let mut world = World::of([seen(&r, "u", 1, Ok(of("${pod.annotations['x']}${pod.annotations['y']}")))]);
    let keys = |world: &mut World| {
        let name = |key: PodKey| match key {
            PodKey::Label(key) => format!("label-{key}"),
            PodKey::Annotation(key) => key.to_string(),
        };
        let shown = world.wanted_anew()?.of_pods.into_iter().map(|(namespace, keys)| {
            format!("{namespace}: {}", keys.into_iter().map(name).collect::<Vec<_>>().join(" "))
        });
        Some(shown.collect::<Vec<_>>())
    };
    assert_eq!(keys(&mut world).unwrap(), ["a: label-app x y"]);
    let more = |name: &str, tag: &str| seen(&key("a", name), name, 1, Ok(of(tag)));
    world.edits(more("s", "${pod.annotations['y']}"));
    assert_eq!(keys(&mut world), None, "another resource of the namespace names it");
    world.edits(seen(&key("b", "r"), "v", 1, Ok(named("other", of("${pod.annotations['y']}")))));
    assert_eq!(
        keys(&mut world).unwrap(),
        ["a: label-app x y", "b: label-app y"],
        "each namespace asks for its own pods"
    );
    world.edits(seen(&r, "u", 2, Ok(of("${pod.annotations['z']}"))));
    let watches = world.wanted().watches;
    assert_eq!(keys(&mut world).unwrap(), ["a: label-app y z", "b: label-app y"]);
    world.deletes(&key("a", "s"));
    assert_eq!(keys(&mut world).unwrap(), ["a: label-app z", "b: label-app y"]);
    assert_eq!(world.wanted().watches, watches, "the pods are watched all along");
    world.deletes(&key("b", "r"));
    assert_eq!(keys(&mut world).unwrap(), ["a: label-app z"]);
}

#[test]
fn pods_whose_labels_were_not_looked_for_are_waited_for() {
    let (mut world, r) = listed(pods_of("s"));
    let app = |name: &str, app: &str| (key("a", name), pod(name, 1, app));
    let with_tier = |(key, pod): (ObjectKey, Pod)| {
        let labels = pod.labels.iter().cloned().chain([("tier".into(), "1".into())]).collect();
        (key, Pod { labels, ..pod })
    };
    let applies = |(key, pod): (ObjectKey, Pod)| Change::Pod(Step::Apply(key, pod));
    let picked = |world: &World| world.facts(&r).matching().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    world.on_event(applies(app("p", "s")));
    world.on_event(applies(app("q", "s")));
    assert_eq!((picked(&world), world.waits_for(&r)), (vec!["p".to_owned(), "q".to_owned()], None));
    // Nobody knows which pods have a label that nobody asked for before.
    let tier = Selector(vec![Requirement::Exists("tier".into())]);
    world.edits(seen(&r, "u", 2, Ok(from(Source::Pods { selector: tier }))));
    assert_eq!(world.waits_for(&r), Some(Kind::Pod));
    world.on_event(Change::Pod(Step::Init));
    let (p, pod) = with_tier(app("p", "s"));
    world.on_event(Change::Pod(Step::InitApply(p, pod)));
    assert_eq!(world.waits_for(&r), Some(Kind::Pod), "the other one may have it, too");
    // The other one is gone: the list does not have it.
    let dirt = world.on_event(Change::Pod(Step::InitDone));
    assert_eq!(dirt, dirtied(&r, Some(Cause::Inferred)));
    assert_eq!((picked(&world), world.waits_for(&r)), (vec!["p".to_owned()], None));
}

#[test]
fn each_namespace_is_watched_for_itself_and_nodes_once() {
    let scopes = NAMESPACES.map(|namespace| Scope::Namespace(namespace.into()));
    let mut world = World::new(scopes.clone(), false);
    for scope in &scopes {
        world.apply(event(scope, begins(Kind::Resource)), Instant::now());
        world.apply(event(scope, is_done(Kind::Resource)), Instant::now());
    }
    let r = key("b", "r");
    let seen = seen(&r, "u", 1, Ok(tagged("${node.zone}", pods_of("s"))));
    world.apply(event(&scopes[1], Change::Resource(Step::Apply(r.clone(), seen))), Instant::now());
    let watches: Vec<(Kind, Scope)> = world.wanted().watches.into_keys().collect();
    let [a, b] = scopes;
    let all =
        [(Kind::Resource, a.clone()), (Kind::Resource, b.clone()), (Kind::Pod, b.clone()), (Kind::Node, Scope::All)];
    assert_eq!(watches, all);
    world.apply(event(&a, Change::Pod(Step::Apply(key("a", "p"), pod("p", 1, "s")))), Instant::now());
    world.apply(event(&b, Change::Pod(Step::Apply(key("b", "p"), pod("p", 1, "s")))), Instant::now());
    assert!(!world.holds(Kind::Pod, &key("a", "p")) && world.holds(Kind::Pod, &key("b", "p")));
}

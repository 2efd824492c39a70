//! A Node concerns the resources that hold values of Nodes and have something on it.

use std::time::Duration;

use super::*;

const ZONE: &str = "${node.zone}";

const KINDS: [Kind; 4] = [Kind::Slice, Kind::Service, Kind::Pod, Kind::Node];

fn on(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint { node: Some(node.into()), ..endpoint }
}

/// Gives the names of the resources that an event of a Node concerns.
fn concerned(world: &mut World, step: Step<Node>) -> Vec<String> {
    world.on_event(Change::Node(step)).into_iter().map(|dirtied| dirtied.key.name.to_string()).collect()
}

fn put(name: &str, node: Node) -> Step<Node> {
    Step::Apply(key("", name), node)
}

/// A World that was listed, of resources with their specs, and of Services that each have a slice with one endpoint on a
/// Node.
fn world(resources: Vec<(String, Spec)>, services: impl IntoIterator<Item = (String, &'static str)>) -> World {
    let resource = |(name, spec): (String, Spec)| seen(&key("a", &name), "u", 1, Ok(named(&name, spec)));
    let mut world = World::of(resources.into_iter().map(resource));
    for kind in KINDS {
        world.on_event(begins(kind));
    }
    for (name, node) in services {
        world.on_event(Change::Service(Step::InitApply(key("a", &name), service(80))));
        let slice = slice(&name, vec![on(node, endpoint(1, None))]);
        world.on_event(Change::Slice(Step::InitApply(key("a", &format!("{name}-1")), slice)));
    }
    for name in ["n0", "n1"] {
        world.on_event(Change::Node(Step::InitApply(key("", name), node("z1"))));
    }
    for kind in KINDS {
        world.on_event(is_done(kind));
    }
    world
}

#[test]
fn of_a_thousand_resources_a_node_concerns_those_with_an_endpoint_on_it() {
    let name = |number: usize| format!("r{number:03}");
    let node_of = |number: usize| if number.is_multiple_of(100) { "n1" } else { "n0" };
    let resources = (0..1000).map(|number| (name(number), tagged(ZONE, spec(&name(number))))).collect();
    let mut world = world(resources, (0..1000).map(|number| (name(number), node_of(number))));
    let there: Vec<String> = (0..1000).step_by(100).map(name).collect();
    for (what, step) in [
        ("it changes its zone", put("n1", node("z2"))),
        ("it changes its region", put("n1", Node { region: Some("r".into()), ..node("z2") })),
        ("it goes", Step::Delete(key("", "n1"))),
        ("it joins", put("n1", node("z2"))),
    ] {
        assert_eq!(concerned(&mut world, step), there, "{what}");
    }
    for (what, step) in [
        ("its address is no value", put("n1", Node { address: None, ..node("z2") })),
        ("a Node joins that nothing names", put("n2", node("z1"))),
        ("it goes again", Step::Delete(key("", "n2"))),
    ] {
        assert_eq!(concerned(&mut world, step), [""; 0], "{what}");
    }
}

#[test]
fn a_node_concerns_a_resource_by_what_the_resource_has_on_it() {
    let both = slice("s", vec![on("n0", endpoint(1, None)), on("n1", endpoint(2, None))]);
    let moves = || Change::Slice(Step::Apply(key("a", "s-1"), slice("s", vec![on("n1", endpoint(1, None))])));
    let goes = || Change::Slice(Step::Delete(key("a", "s-1")));
    let pod = |name: &str, node: &str, app: &str| {
        Change::Pod(Step::Apply(key("a", name), Pod { node: Some(node.into()), ..pod(name, 1, app) }))
    };
    for (what, spec, changes, expected) in [
        ("an endpoint", tagged(ZONE, spec("s")), vec![], true),
        ("no values of Nodes", spec("s"), vec![], false),
        ("an endpoint that moved away", tagged(ZONE, spec("s")), vec![moves()], false),
        ("one that is gone", tagged(ZONE, spec("s")), vec![goes()], false),
        ("one of several", tagged(ZONE, spec("s")), vec![Change::Slice(Step::Apply(key("a", "s-1"), both))], true),
        ("another Service's endpoint", tagged(ZONE, spec("t")), vec![], false),
        ("a pod", tagged(ZONE, pods_of("s")), vec![pod("p", "n0", "s")], true),
        ("a pod elsewhere", tagged(ZONE, pods_of("s")), vec![pod("p", "n1", "s")], false),
        ("a pod that moved", tagged(ZONE, pods_of("s")), vec![pod("p", "n0", "s"), pod("p", "n1", "s")], false),
        ("a pod that is not selected", tagged(ZONE, pods_of("s")), vec![pod("p", "n0", "t")], false),
        ("a pod behind no endpoint", tagged(ZONE, spec("t")), vec![pod("p", "n0", "s")], false),
    ] {
        let mut world = world(vec![("r".to_owned(), spec)], [("s".to_owned(), "n0")]);
        for change in changes {
            world.on_event(change);
        }
        let found = concerned(&mut world, put("n0", node("z2")));
        assert_eq!(found, if expected { vec!["r"] } else { vec![] }, "{what}");
    }
}

#[test]
fn what_is_on_nodes_is_known_from_the_first_resource_that_holds_values_of_them() {
    let mut world = world(vec![("r".to_owned(), spec("s"))], [("s".to_owned(), "n0")]);
    assert_eq!(world.on_nodes, OnNodes::default());
    let edited = |generation, spec| seen(&key("a", "r"), "u", generation, Ok(named("r", spec)));
    world.edits(edited(2, tagged(ZONE, spec("s"))));
    // From now on they are watched.
    for step in [Step::Init, Step::InitApply(key("", "n0"), node("z1")), Step::InitDone] {
        world.on_event(Change::Node(step));
    }
    assert_eq!(concerned(&mut world, put("n0", node("z2"))), ["r"]);
    world.edits(edited(3, spec("s")));
    assert_eq!(world.on_nodes, OnNodes::default());
}

#[test]
fn where_nodes_say_where_instances_go_a_node_that_comes_concerns_all_that_name_it() {
    let mut world = World::new([Scope::All], true);
    let r = key("a", "r");
    for change in [begins(Kind::Resource), is_done(Kind::Resource), begins(Kind::Node), is_done(Kind::Node)] {
        world.on_event(change);
    }
    world.edits(seen(&r, "u", 1, Ok(named("r", spec("s")))));
    for kind in [Kind::Slice, Kind::Service] {
        world.on_event(begins(kind));
        world.on_event(is_done(kind));
    }
    world.on_event(Change::Slice(Step::Apply(key("a", "s-1"), slice("s", vec![on("n0", endpoint(1, None))]))));
    assert!(!world.is_node("n0"), "nobody has registered it");
    let goes = |name: &str| Step::Delete(key("", name));
    for (what, step, concerns, is_node) in [
        ("another one joins", put("n1", node("z1")), false, false),
        ("it joins", put("n0", node("z1")), true, true),
        ("no template holds its zone", put("n0", node("z2")), false, true),
        ("it goes, and may come back", goes("n0"), false, true),
        ("it is back", put("n0", node("z1")), false, true),
        ("it goes again", goes("n0"), false, true),
    ] {
        assert_eq!(!concerned(&mut world, step).is_empty(), concerns, "{what}");
        assert_eq!(world.is_node("n0"), is_node, "{what}");
    }

    // It counts for as long as something names it, and a minute at least.
    let later = |world: &mut World, step: Step<Node>, seconds| {
        let event = event(&Scope::All, Change::Node(step));
        world.apply(event, Instant::now() + Duration::from_secs(seconds));
    };
    later(&mut world, goes("n1"), 300);
    assert!(world.is_node("n0") && world.is_node("n1"), "one is named, the other one went just now");
    world.on_event(Change::Slice(Step::Delete(key("a", "s-1"))));
    later(&mut world, put("n2", node("z1")), 330);
    assert!(!world.is_node("n0") && world.is_node("n1"));
    later(&mut world, goes("n2"), 361);
    assert!(!world.is_node("n1"), "nothing names it");

    let mut fresh = World::new([Scope::All], true);
    assert!(!fresh.is_node("n2"));
    fresh.remember(&world);
    assert!(fresh.is_node("n2"));
}

//! How a World holds its resources to a policy.

use super::*;
use crate::model::pattern::Pattern;
use crate::model::policy::{Budget, LEAST_BYTES, Rule};
use crate::model::selector::{Labels, Requirement, Selector};
use crate::state::world::policed::LABELS;

/// A policy with one rule for all namespaces, which allows these names and this many resources in each.
fn policy(names: &[&str], resources: Option<usize>) -> Arc<Policy> {
    let pattern = |text: &&str| Pattern::parse(text).unwrap();
    let rule = Rule {
        name: "all".into(),
        namespaces: vec![pattern(&"*")],
        names: Some(names.iter().map(pattern).collect()),
        budget: Budget { resources, ..Budget::default() },
        ..Rule::default()
    };
    Arc::new(Policy { rules: Some(vec![rule]), ..Policy::default() })
}

fn at_age(created: i64, key: &ObjectKey, name: &str) -> SeenResource {
    let mut seen = seen(key, &format!("uid-{}", key.name), 1, Ok(named(name, spec("s"))));
    seen.resource.created = created;
    seen
}

fn refused(world: &World) -> Vec<Str> {
    let entries = world.entries().filter(|entry| entry.resource.spec.is_err());
    entries.map(|entry| entry.resource.key.name.clone()).collect()
}

#[test]
fn a_tightened_policy_leaves_the_spec_in_force_that_was_allowed() {
    let (mut world, r) = listed(named("old", spec("s")));
    assert_eq!(world.follow(policy(&["old"], None)), [], "nothing changes for it");
    assert_eq!(world.follow(policy(&["other"], None)), dirtied(&r, Some(Cause::Observed)));
    assert!(world.resource(&r).unwrap().resource.spec.is_err());
    assert_eq!(world.effective_spec(&r).map(|spec| (**spec).clone()), Some(named("old", spec("s"))));
    // An edit of what is not allowed does not get through by that.
    world.edits(seen(&r, "u", 2, Ok(tagged("evil", named("old", spec("s"))))));
    assert!(world.effective_spec(&r).unwrap().tags.is_empty());
    assert_eq!(world.follow(policy(&["*"], None)), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(world.effective_spec(&r).unwrap().tags.len(), 1);
}

#[test]
fn after_a_restart_what_is_not_allowed_only_keeps_what_it_has() {
    let r = key("a", "r");
    let mut world = World::of([]);
    world.follow(policy(&["other"], None));
    world.edits(seen(&r, "u", 1, Ok(spec("s"))));
    let kept = world.effective_spec(&r).cloned().unwrap();
    assert!(kept.limits.only_keeps && world.resource(&r).unwrap().resource.spec.is_err());
    assert!(world.watches_for(&r).contains(&(Kind::Slice, Scope::Namespace("a".into()))), "to see who dies");
    // Who may not have the name does not keep others from it.
    world.note_rows(&r, BTreeSet::new());
    world.know_rows(true);
    world.edits(seen(&key("b", "r"), "v", 1, Ok(spec("s"))));
    world.follow(Arc::default());
    assert!(!world.effective_spec(&r).unwrap().limits.only_keeps);
}

#[test]
fn a_fresh_list_goes_by_what_was_allowed_before() {
    let (mut world, r) = listed(spec("s"));
    world.follow(policy(&["other"], None));
    let mut fresh = World::of([]).under(policy(&["other"], None));
    fresh.edits(seen(&r, "u", 1, Ok(spec("s"))));
    assert!(fresh.effective_spec(&r).unwrap().limits.only_keeps);
    fresh.remember(&world);
    assert_eq!(fresh.effective_spec(&r), world.effective_spec(&r));
}

/// A policy with one rule for all namespaces, which says this of `Retain`.
fn on_retain(retain: bool) -> Arc<Policy> {
    let rule = Rule { retain: Some(retain), names: None, ..policy(&[], None).rules.clone().unwrap().remove(0) };
    Arc::new(Policy { rules: Some(vec![rule]), ..Policy::default() })
}

#[test]
fn the_last_wish_about_a_deletion_counts_that_was_allowed() {
    use DeletionPolicy::{Deregister, Retain};
    let r = key("a", "r");
    let wants = |generation, deletion, is_readable: bool| {
        let refusal = || Refusal { reason: "Invalid", message: "no".to_owned() };
        let mut seen = seen(&r, "u", generation, if is_readable { Ok(spec("s")) } else { Err(refusal()) });
        seen.resource.deletion = deletion;
        seen
    };
    // What a policy says of Retain, what its author wrote then, whether the rest can be read, and what counts.
    for (case, steps) in [
        ("as it is written", &[(true, Some(Deregister), true, Deregister), (true, Some(Retain), true, Retain)][..]),
        ("what cannot be read", &[(true, None, true, Retain)]),
        ("by an edit", &[(false, Some(Deregister), true, Deregister), (false, Some(Retain), true, Deregister)]),
        (
            "by an edit that cannot be read",
            &[(false, Some(Deregister), true, Deregister), (false, None, true, Deregister)],
        ),
        (
            "by a spec that cannot be read",
            &[(false, Some(Retain), false, Deregister), (true, Some(Retain), false, Retain)],
        ),
        ("not seen before", &[(false, Some(Retain), true, Deregister), (true, Some(Retain), true, Retain)]),
        ("a tightened policy", &[(true, Some(Retain), true, Retain), (false, Some(Retain), true, Retain)]),
        (
            "and an edit",
            &[
                (true, Some(Retain), true, Retain),
                (false, Some(Deregister), true, Deregister),
                (false, Some(Retain), true, Deregister),
            ],
        ),
    ] {
        let mut world = World::of([]);
        for (generation, (may_retain, written, is_readable, expected)) in (1..).zip(steps) {
            world.follow(on_retain(*may_retain));
            world.edits(wants(generation, *written, *is_readable));
            assert_eq!(world.resource(&r).unwrap().deletion(), Some(*expected), "{case}, step {generation}");
        }
        // A list that confirms removals goes by the same.
        let mut fresh = World::of([]).under(on_retain(false));
        fresh.edits(wants(9, Some(Retain), true));
        fresh.remember(&world);
        assert_eq!(fresh.resource(&r).unwrap().deletion(), world.resource(&r).unwrap().deletion(), "{case}");
    }
}

#[test]
fn what_a_status_tells_of_a_deletion_counts_after_a_restart() {
    use DeletionPolicy::{Deregister, Retain};
    let r = key("a", "r");
    // Whether the status tells of `Retain`, the generation that it accepts, what the author wrote, and what counts where the
    // policy forbids `Retain`.
    for (case, retains, accepted, written, expected) in [
        ("it was allowed", true, None, Some(Retain), Retain),
        ("it was allowed, and an edit came since", true, Some(1), Some(Retain), Retain),
        ("it was allowed, and cannot be read", true, None, None, Retain),
        ("the author has thought better of it", true, None, Some(Deregister), Deregister),
        ("an earlier version accepted it", false, Some(2), Some(Retain), Retain),
        ("an earlier version accepted the spec before", false, Some(1), Some(Retain), Deregister),
        ("it was not allowed", false, None, Some(Retain), Deregister),
    ] {
        let mut seen = seen(&r, "u", 2, Ok(spec("s")));
        seen.resource.deletion = written;
        let truth = if accepted.is_some() { Truth::True } else { Truth::False };
        seen.resource.status = Arc::new(Status { retains, ..(*told(accepted.unwrap_or(2), "s", truth)).clone() });
        let mut world = World::of([]).under(on_retain(false));
        world.edits(seen.clone());
        assert_eq!(world.resource(&r).unwrap().deletion(), Some(expected), "{case}");

        // What this process was asked for itself outweighs a status that may be late.
        let mut knows = World::of([]).under(on_retain(false));
        let mut before = seen.clone();
        (before.resource.deletion, before.resource.generation) = (Some(Deregister), 1);
        knows.edits(before);
        knows.edits(seen);
        assert_eq!(knows.resource(&r).unwrap().deletion(), Some(Deregister), "{case}, after an edit");
        world.remember(&knows);
        assert_eq!(world.resource(&r).unwrap().deletion(), Some(Deregister), "{case}, in a fresh list");
    }
}

#[test]
fn what_happens_at_a_deletion_waits_for_the_labels_that_decide() {
    let r = key("a", "r");
    let gold = Selector(vec![Requirement::In("tier".into(), ["gold".into()].into())]);
    let all = Pattern::parse("*").unwrap();
    let rule = Rule { name: "gold".into(), namespaces: vec![all], labels: Some(gold), ..Rule::default() };
    let policy = Arc::new(Policy { rules: Some(vec![rule]), ..Policy::default() });
    for (tier, expected) in [("gold", DeletionPolicy::Retain), ("none", DeletionPolicy::Deregister)] {
        let mut world = World::new([Scope::All], false).under(Arc::clone(&policy));
        world.on_event(begins(Kind::Namespace));
        world.on_event(is_done(Kind::Namespace));
        let mut seen = seen(&r, "u", 1, Ok(spec("s")));
        (seen.resource.deletion, seen.resource.deleting) = (Some(DeletionPolicy::Retain), true);
        world.edits(seen);
        assert_eq!(world.resource(&r).unwrap().deletion(), None, "the namespace was not seen yet");
        assert_eq!(world.on_event(labelled("a", tier)), dirtied(&r, Some(Cause::Observed)));
        assert_eq!(world.resource(&r).unwrap().deletion(), Some(expected), "{tier}");
    }
}

#[test]
fn a_changed_policy_concerns_what_is_to_stay() {
    let r = key("a", "r");
    let mut seen = seen(&r, "u", 1, Err(Refusal { reason: "Invalid", message: "no".to_owned() }));
    seen.resource.deletion = Some(DeletionPolicy::Retain);
    let mut world = World::of([]);
    world.follow(on_retain(false));
    world.edits(seen);
    assert_eq!(world.follow(on_retain(true)), dirtied(&r, Some(Cause::Observed)));
    assert_eq!(world.follow(on_retain(false)), [], "what was allowed counts");
}

#[test]
fn a_budget_has_room_for_the_oldest() {
    let keys = ["x", "y", "z"].map(|name| key("a", name));
    let ages = [3, 1, 2];
    let seen = |n: usize| at_age(ages[n], &keys[n], &format!("n{n}"));
    let mut world = World::of([seen(0), seen(1), at_age(9, &key("b", "other"), "o")]);
    world.follow(policy(&["*"], Some(2)));
    assert_eq!(refused(&world), []);
    // An older one comes, which was another operator's: it has to wait, since the newer one has its place.
    let of_another = SeenResource { resource: Resource { ours: false, ..seen(2).resource }, ..seen(2) };
    world.edits(of_another);
    world.edits(seen(2));
    assert_eq!(refused(&world), [Str::from("z")]);
    assert!(world.effective_spec(&keys[2]).unwrap().limits.only_keeps);
    // A newer one comes besides.
    world.edits(at_age(4, &key("a", "new"), "n4"));
    assert_eq!(refused(&world), [Str::from("new"), "z".into()]);
    assert!(world.effective_spec(&key("a", "new")).unwrap().limits.only_keeps);
    // A smaller budget refuses the newest that has a place, which keeps what it has.
    world.follow(policy(&["*"], Some(1)));
    assert_eq!(refused(&world), [Str::from("new"), "x".into(), "z".into()]);
    assert!(!world.effective_spec(&keys[0]).unwrap().limits.only_keeps);
    world.follow(policy(&["*"], Some(2)));
    // One goes: there is room for the next in age.
    world.deletes(&keys[1]);
    assert_eq!(refused(&world), [Str::from("new")]);
    assert_eq!(world.follow(policy(&["*"], None)), dirtied(&key("a", "new"), Some(Cause::Observed)));
    assert_eq!(refused(&world), []);
}

/// One of this age with so many checks, and a tag.
fn of_checks(created: i64, name: &str, checks: usize, tag: &str) -> SeenResource {
    let mut seen = at_age(created, &key("a", name), name);
    let mut asked = spec("s");
    let check = crate::model::check::Check {
        name: "alive".into(),
        probe: crate::model::check::Probe::Tcp { tls: None },
        interval: "10s".into(),
        timeout: "1s".into(),
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 0,
        notes: "".into(),
    };
    asked.checks = vec![crate::model::check::CheckSpec { port: None, check: Arc::new(check) }; checks];
    asked.tags = vec![crate::model::template::Template::parse(tag).unwrap()];
    seen.resource.spec = Ok(Arc::new(named(name, asked)));
    seen
}

fn of_budget(budget: Budget) -> Arc<Policy> {
    let rule = Rule {
        name: "all".into(),
        namespaces: vec![Pattern::parse("*").unwrap()],
        tags: Some(vec![Pattern::parse("v*").unwrap()]),
        budget,
        ..Rule::default()
    };
    Arc::new(Policy { rules: Some(vec![rule]), ..Policy::default() })
}

#[test]
fn the_checks_of_a_namespace_have_a_budget_and_the_oldest_have_them() {
    let mut world = World::of([of_checks(1, "x", 3, "v1"), of_checks(2, "y", 3, "v1"), of_checks(3, "none", 0, "v1")]);
    let most = |checks| of_budget(Budget { namespace_checks: Some(checks), ..Budget::default() });
    world.follow(most(6));
    assert_eq!(refused(&world), []);
    // A tighter one refuses the newest that has checks, which keeps them.
    world.follow(most(5));
    assert_eq!(refused(&world), [Str::from("y")]);
    assert_eq!(world.effective_spec(&key("a", "y")).unwrap().checks.len(), 3);
    let refusal = world.resource(&key("a", "y")).unwrap().resource.spec.clone().unwrap_err();
    assert!(
        refusal.message.contains("rule \"all\"")
            && refusal.message.contains("allows 5 checks (budget.namespaceChecks)"),
        "{}",
        refusal.message
    );
    // The older one keeps its checks by an edit that is refused: they count all the same.
    world.edits(of_checks(1, "x", 0, "x"));
    assert_eq!(refused(&world), [Str::from("x"), "y".into()]);
    // Once its edit is allowed, it has none, and there is room.
    world.edits(of_checks(1, "x", 0, "v2"));
    assert_eq!(refused(&world), []);
}

/// A World that saw these in a first list, under a budget of checks, and then how many checks Consul has of each.
fn restarted(most: usize, seen: &[SeenResource], in_consul: &[(&str, usize)]) -> World {
    let budget = of_budget(Budget { namespace_checks: Some(most), ..Budget::default() });
    let mut world = World::new([Scope::All], false).under(budget);
    world.on_event(begins(Kind::Resource));
    for seen in seen {
        world.on_event(Change::Resource(Step::InitApply(seen.resource.key.clone(), seen.clone())));
    }
    world.on_event(is_done(Kind::Resource));
    for (name, checks) in in_consul {
        world.note_rows(&key("a", name), in_use(&[(name, "service/s")]));
        world.note_checks(&key("a", name), *checks);
    }
    world.know_rows(true);
    world
}

/// The checks that a resource may have in Consul by what it goes on with.
fn checks_of(world: &World, name: &str) -> usize {
    let spec = world.effective_spec(&key("a", name)).filter(|spec| !spec.limits.only_keeps);
    spec.map_or(0, |spec| spec.checks.len())
}

#[test]
fn who_grows_beyond_the_budget_goes_on_with_what_it_had() {
    let edit = |created, name, generation, checks, tag| {
        let mut seen = of_checks(created, name, checks, tag);
        seen.resource.generation = generation;
        seen
    };
    let mut world = World::of([of_checks(1, "x", 1, "v1"), of_checks(2, "y", 1, "v1")]);
    let most = |checks| of_budget(Budget { namespace_checks: Some(checks), ..Budget::default() });
    world.follow(most(2));
    // The older one grows, and the newer one: neither takes from the other, and the refused edit is not followed.
    for (created, name) in [(1, "x"), (2, "y")] {
        world.edits(edit(created, name, 2, 2, "v2"));
        assert_eq!((refused(&world), checks_of(&world, name)), (vec![Str::from(name)], 1));
        assert_eq!(
            world.effective_spec(&key("a", name)).unwrap().tags[0].to_string(),
            "v1",
            "the edit as a whole waits"
        );
        world.edits(edit(created, name, 3, 1, "v1"));
        assert_eq!(refused(&world), []);
    }
    // One that has none gets none by an edit.
    world.edits(edit(3, "z", 1, 0, "v1"));
    world.edits(edit(3, "z", 2, 1, "v1"));
    assert_eq!((refused(&world), checks_of(&world, "z")), (vec![Str::from("z")], 0));
    // There is room once another one has fewer, and Consul has fewer of it as well.
    world.note_checks(&key("a", "x"), 1);
    world.know_rows(true);
    world.edits(edit(1, "x", 4, 0, "v1"));
    assert_eq!(refused(&world), [Str::from("z")], "Consul still has one of the first");
    assert_eq!(world.note_checks(&key("a", "x"), 0), dirtied(&key("a", "z"), Some(Cause::Observed)));
    assert_eq!((refused(&world), checks_of(&world, "z")), (vec![], 1));
    // By another policy that allows what was refused for another reason, nobody gets more.
    world.edits(edit(1, "x", 5, 1, "w"));
    let rule = |checks| Rule { tags: None, ..most(checks).rules.clone().unwrap().remove(0) };
    let policy = Policy { rules: Some(vec![rule(2)]), ..Policy::default() };
    world.follow(Arc::new(policy));
    assert_eq!((refused(&world), checks_of(&world, "x")), (vec![Str::from("x")], 0));
}

#[test]
fn a_resource_too_large_by_an_edit_goes_on_with_what_it_had() {
    let mut world = World::of([of_size(1, "x", 3)]);
    world.follow(Arc::new(Policy { namespace_bytes: 4 * LEAST_BYTES, ..Policy::default() }));
    let mut large = of_size(1, "x", 5);
    large.resource.spec = large.resource.spec.map(|spec| Arc::new(tagged("large", (*spec).clone())));
    world.edits(large);
    assert_eq!(refused(&world), [Str::from("x")]);
    assert!(world.effective_spec(&key("a", "x")).unwrap().tags.is_empty(), "no memory is held for the refused edit");
}

#[test]
fn a_restart_shares_a_budget_as_before() {
    use Truth::{False, True};
    type Case<'a> = (&'a str, [SeenResource; 2], &'a [(&'a str, usize)], &'a [&'a str]);
    let told_of = |mut seen: SeenResource, truth| {
        seen.resource.status = told(seen.resource.generation, &seen.resource.key.name.clone(), truth);
        seen
    };
    let (x, y) = (|checks| of_checks(1, "x", checks, "v1"), |checks| of_checks(2, "y", checks, "v1"));
    let cases: [Case<'_>; 6] = [
        ("both as they were", [told_of(x(1), True), told_of(y(1), True)], &[("x", 1), ("y", 1)], &[]),
        ("the older one was refused more", [told_of(x(2), False), told_of(y(1), True)], &[("x", 1), ("y", 1)], &["x"]),
        ("the older one was edited meanwhile", [x(2), told_of(y(1), True)], &[("x", 1), ("y", 1)], &["x"]),
        ("the status was not written, Consul has it", [x(2), y(1)], &[("x", 1), ("y", 1)], &["x"]),
        ("nothing was done yet", [x(2), y(1)], &[], &["y"]),
        ("checks of one that is gone are still there", [x(2), y(0)], &[("gone", 1)], &["x"]),
    ];
    for (case, seen, in_consul, expected) in cases {
        for order in [[0, 1], [1, 0]] {
            let world = restarted(2, &order.map(|number| seen[number].clone()), in_consul);
            assert_eq!(refused(&world), expected.iter().map(|name| Str::from(*name)).collect::<Vec<_>>(), "{case}");
            // Who is refused only keeps what it has.
            assert!(expected.iter().all(|name| checks_of(&world, name) == 0), "{case}");
            // A list that confirms removals goes by the same.
            let mut fresh = restarted(2, &seen, &[]);
            fresh.remember(&world);
            assert_eq!(refused(&fresh), refused(&world), "{case}");
        }
    }
    // When what is gone is gone in Consul as well, there is room.
    let mut world = restarted(2, &[x(2), y(0)], &[("gone", 1)]);
    assert_eq!(world.note_checks(&key("a", "gone"), 0), dirtied(&key("a", "x"), Some(Cause::Observed)));
    assert_eq!(refused(&world), []);
}

#[test]
fn the_bytes_of_a_namespace_have_a_budget_by_rule() {
    let mut world = World::of([of_size(1, "x", 3), of_size(2, "y", 2), of_size(3, "z", 1)]);
    let most = |kib: usize| of_budget(Budget { namespace_bytes: Some(kib * LEAST_BYTES), ..Budget::default() });
    world.follow(most(6));
    assert_eq!(refused(&world), []);
    world.follow(most(5));
    assert_eq!(refused(&world), [Str::from("z")]);
    // Who was given room keeps it, whoever grows: the older one waits, until one is gone.
    world.follow(most(6));
    world.edits(of_size(1, "x", 4));
    assert_eq!(refused(&world), [Str::from("x")]);
    world.deletes(&key("a", "z"));
    assert_eq!(refused(&world), []);
}

/// One of this age and size in KiB.
fn of_size(created: i64, name: &str, bytes: usize) -> SeenResource {
    let mut seen = at_age(created, &key("a", name), name);
    seen.resource.bytes = bytes * LEAST_BYTES;
    seen
}

#[test]
fn a_namespace_has_so_many_bytes_and_the_oldest_have_them() {
    let policy = Arc::new(Policy { namespace_bytes: 100 * LEAST_BYTES, ..Policy::default() });
    let resources = (Kind::Resource, Scope::All);
    let first = [of_size(3, "a", 60), of_size(1, "b", 30), of_size(2, "c", 50)];
    let mut world = World::new([Scope::All], false).under(policy);
    let list = |world: &mut World| {
        world.on_event(begins(Kind::Resource));
        for seen in &first {
            world.on_event(Change::Resource(Step::InitApply(seen.resource.key.clone(), seen.clone())));
        }
        world.on_event(is_done(Kind::Resource));
    };
    let dropped = |world: &World| -> Vec<Str> {
        let entries = world.entries().filter(|entry| entry.asked_spec.is_err());
        entries.map(|entry| entry.resource.key.name.clone()).collect()
    };
    // While it lists, nobody knows which are the oldest: what comes first is held, and the last is not.
    list(&mut world);
    assert_eq!(dropped(&world), ["a".into(), Str::from("c")], "no spec of the newest is held");
    assert_eq!(world.take_lists(), [resources.clone()].into(), "the older one has room, and has to be read again");
    list(&mut world);
    assert_eq!((dropped(&world), refused(&world)), (vec!["a".into()], vec![Str::from("a")]));
    assert_eq!(world.take_lists(), [].into());
    let refusal = world.resource(&key("a", "a")).unwrap().resource.spec.clone().unwrap_err();
    assert_eq!(refusal.reason, crate::model::policy::TOO_LARGE);
    // An older one grows: the next in age keeps the spec that is in force.
    world.edits(of_size(1, "b", 90));
    assert_eq!(refused(&world), ["a".into(), Str::from("c")]);
    assert!(world.effective_spec(&key("a", "c")).is_some() && world.effective_spec(&key("a", "a")).is_none());
    // It goes: there is room for both, which are read again.
    world.deletes(&key("a", "b"));
    assert_eq!(world.take_lists(), [resources].into());
    world.edits(of_size(2, "c", 20));
    world.edits(of_size(3, "a", 60));
    assert_eq!((dropped(&world), refused(&world)), (Vec::new(), Vec::new()));
}

#[test]
fn a_multitude_of_small_resources_counts_as_well() {
    let policy = Arc::new(Policy { namespace_bytes: 3 * LEAST_BYTES, ..Policy::default() });
    let small = (1..).zip(["a", "b", "c", "d"]).map(|(age, name)| of_size(age, name, 0));
    let mut world = World::of(small);
    world.follow(policy);
    assert_eq!(refused(&world), [Str::from("d")]);
}

/// A policy with a rule for namespaces of a label, which allows all, and one for others, which allows this name alone.
fn by_label(others: &str) -> Arc<Policy> {
    let gold = Requirement::In("tier".into(), ["gold".into()].into());
    let mut rules = policy(&[others], None).rules.clone().unwrap();
    let first = Rule { name: "gold".into(), labels: Some(Selector(vec![gold])), names: None, ..rules[0].clone() };
    rules.insert(0, first);
    Arc::new(Policy { rules: Some(rules), ..Policy::default() })
}

fn labelled(namespace: &str, tier: &str) -> Change {
    Change::Namespace(Step::Apply(key("", namespace), [("tier".into(), tier.into())].into()))
}

#[test]
fn nothing_is_whole_before_the_labels_are_known_that_the_policy_asks_for() {
    let r = key("a", "r");
    let mut world = World::new([Scope::All], false).under(by_label("other"));
    world.on_event(begins(Kind::Resource));
    world.on_event(Change::Resource(Step::InitApply(r.clone(), seen(&r, "u", 1, Ok(spec("s"))))));
    world.on_event(is_done(Kind::Resource));
    assert!(!world.is_whole("a") && !world.is_synced() && world.wanted().watches.contains_key(&LABELS));
    world.on_event(begins(Kind::Namespace));
    let gold: Labels = [("tier".into(), "gold".into())].into();
    world.on_event(Change::Namespace(Step::InitApply(key("", "a"), gold)));
    assert!(!world.is_whole("a"), "the list is not done");
    assert_eq!(world.on_event(is_done(Kind::Namespace)), dirtied(&r, Some(Cause::Inferred)));
    assert!(world.is_whole("a") && world.is_synced() && world.resource(&r).unwrap().resource.spec.is_ok());
    // Another label, and none.
    assert_eq!(world.on_event(labelled("a", "lead")), dirtied(&r, Some(Cause::Observed)));
    assert!(world.resource(&r).unwrap().resource.spec.is_err());
    assert_eq!(world.on_event(labelled("b", "gold")), [], "it concerns the resources of its own namespace");
    assert_eq!(world.on_event(labelled("a", "gold")), dirtied(&r, Some(Cause::Observed)));
    world.on_event(Change::Namespace(Step::Delete(key("", "a"))));
    assert!(world.resource(&r).unwrap().resource.spec.is_ok(), "its resources are going with it");
}

#[test]
fn a_policy_that_asks_for_labels_comes_into_force_when_they_are_known() {
    let (mut world, r) = listed(named("old", spec("s")));
    world.wanted_anew();
    assert_eq!(world.follow(by_label("other")), [], "the policy before goes on");
    assert!(world.is_whole("a") && world.wanted_anew().unwrap().watches.contains_key(&LABELS));
    world.on_event(begins(Kind::Namespace));
    assert_eq!(world.on_event(is_done(Kind::Namespace)), dirtied(&r, Some(Cause::Inferred)));
    let refusal = world.resource(&r).unwrap().resource.spec.clone().unwrap_err();
    assert_eq!(refusal.reason, "NotListed", "a namespace that was not seen yet may have any labels");
    world.on_event(labelled("a", "lead"));
    assert_eq!(world.resource(&r).unwrap().resource.spec.clone().unwrap_err().reason, "NotAllowed");
    // One that asks for none ends the watch.
    world.follow(policy(&["old"], None));
    assert!(!world.wanted_anew().unwrap().watches.contains_key(&LABELS) && !world.holds(LABELS.0, &key("", "a")));
    assert!(world.resource(&r).unwrap().resource.spec.is_ok());
}

/// A policy with one rule for all namespaces, under which nobody begins to use a name that others have.
fn of_nobody_else() -> Arc<Policy> {
    let namespaces = vec![Pattern::parse("*").unwrap()];
    let rule = Rule { name: "all".into(), namespaces, foreign_names: Some(false), ..Rule::default() };
    Arc::new(Policy { rules: Some(vec![rule]), ..Policy::default() })
}

#[test]
fn who_uses_a_name_keeps_it_whoever_else_has_it_and_nobody_begins_to() {
    let r = key("a", "r");
    let others = |names: &[&str]| Some(names.iter().map(|name| Str::from(*name)).collect());
    let asks = |generation, name: &str| seen(&r, "u", generation, Ok(named(name, spec("s"))));
    let told_so = || {
        let mut seen = asks(1, "user");
        seen.resource.status = told(1, "user", Truth::True);
        seen
    };
    let rows = || in_use(&[("User", "service/s")]);
    for (what, seen, rows, others, is_allowed) in [
        ("nobody else has it", asks(1, "user"), in_use(&[]), others(&["api"]), true),
        ("others have it", asks(1, "user"), in_use(&[]), others(&["User"]), false),
        (
            "others have it in other letters that are the same to Consul",
            asks(1, "pay_service"),
            in_use(&[]),
            others(&["pay_serv\u{130}ce"]),
            false,
        ),
        ("others have it, and it has instances", asks(1, "user"), rows(), others(&["user"]), true),
        ("others have it, and it was told that it may", told_so(), in_use(&[]), others(&["user"]), true),
        ("nobody can tell", asks(1, "user"), in_use(&[]), None, false),
        ("nobody can tell, and it has instances", asks(1, "user"), rows(), None, true),
    ] {
        let mut world = World::of([]);
        world.follow(of_nobody_else());
        world.edits(seen);
        world.know_others(others);
        world.note_rows(&r, rows);
        world.know_rows(true);
        assert_eq!(refused(&world).is_empty(), is_allowed, "{what}");
    }

    let mut world = World::of([]);
    world.follow(of_nobody_else());
    assert!(world.lacks_others());
    world.know_rows(true);
    world.know_others(others(&["api"]));
    world.edits(asks(1, "user"));
    assert_eq!(world.know_others(others(&["api", "user"])), [], "it uses the name already");
    world.edits(asks(2, "api"));
    assert_eq!(refused(&world).len(), 1);
    assert_eq!(&*world.effective_spec(&r).unwrap().service, "user", "it goes on under its name");
    assert_eq!(world.know_others(others(&["user"])), dirtied(&r, Some(Cause::Observed)), "the others are gone");
    assert_eq!(&*world.effective_spec(&r).unwrap().service, "api");

    // A list that confirms removals goes by the same.
    let mut fresh = World::of([asks(2, "api")]).under(of_nobody_else());
    fresh.remember(&world);
    assert!(refused(&fresh).is_empty());
    world.follow(Arc::default());
    assert!(!world.asks_for_others() && !world.lacks_others());
}

//! Whose a name is.

use super::*;

/// A resource of a namespace that asks for a name.
fn asks(namespace: &str, created: i64, generation: i64, name: &str) -> SeenResource {
    let mut seen =
        seen(&key(namespace, "r"), &format!("{namespace}-{created}"), generation, Ok(named(name, spec("s"))));
    seen.resource.created = created;
    seen
}

fn with(edit: impl FnOnce(&mut Resource), mut seen: SeenResource) -> SeenResource {
    edit(&mut seen.resource);
    seen
}

/// Who of `a/r` and `b/r` has a rival.
fn losers(world: &World) -> Vec<&'static str> {
    let other = |namespace: &str| key(if namespace == "a" { "b" } else { "a" }, "r");
    let loses = |namespace: &&str| {
        let rival = world.rival(&key(namespace, "r"));
        assert!(rival.is_none_or(|rival| *rival == other(namespace)), "the rival is the other one");
        rival.is_some()
    };
    NAMESPACES.into_iter().filter(loses).collect()
}

fn dirt_of(dirt: Vec<Dirtied>) -> Vec<(String, Option<Cause>)> {
    dirt.into_iter().map(|dirtied| (dirtied.key.to_string(), dirtied.cause)).collect()
}

#[test]
fn of_two_that_nobody_has_acted_on_the_older_one_has_the_name() {
    for (a, b, loser) in [(1, 2, "b"), (2, 1, "a"), (1, 1, "b")] {
        let world = World::of([asks("a", a, 1, "user"), asks("b", b, 1, "User")]);
        assert_eq!(losers(&world), [loser], "{a} {b}");
        assert_eq!(world.effective_spec(&key(loser, "r")), None);
        assert_eq!(world.waits_for(&key(loser, "r")), None);
    }
    assert!(losers(&World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "api")])).is_empty());
}

#[test]
fn one_namespace_shares_its_names_and_all_do_where_that_is_allowed() {
    let another = with(|r| (r.key, r.uid) = (key("a", "q"), "q".into()), asks("a", 2, 1, "user"));
    let world = World::of([asks("a", 1, 1, "user"), another.clone()]);
    assert_eq!(world.rival(&another.resource.key), None);
    let shares = |mut seen: SeenResource| {
        let mut spec = (**seen.resource.spec.as_ref().unwrap()).clone();
        spec.limits.shares_name = true;
        seen.resource.spec = Ok(Arc::new(spec));
        seen
    };
    assert!(losers(&World::of([shares(asks("a", 1, 1, "user")), shares(asks("b", 2, 1, "user"))])).is_empty());
}

#[test]
fn one_that_was_acted_under_a_name_keeps_it_against_an_older_one() {
    let mut world = World::of([asks("a", 2, 1, "user"), asks("b", 1, 1, "api")]);
    for namespace in NAMESPACES {
        assert_eq!(world.act(&key(namespace, "r")), [], "nobody else is concerned");
    }
    let dirt = world.edits(asks("b", 1, 2, "user"));
    assert_eq!((losers(&world), dirt_of(dirt)), (vec!["b"], vec![("b/r".to_owned(), Some(Cause::Observed))]));
    assert_eq!(&*world.effective_spec(&key("b", "r")).unwrap().service, "api", "it goes on under the name that it has");
    // Whoever wants that name meanwhile does not get it.
    world.edits(with(|r| r.key = key("a", "q"), asks("a", 0, 1, "api")));
    assert_eq!(world.rival(&key("a", "q")), Some(&key("b", "r")));
}

#[test]
fn a_name_is_taken_over_when_its_holder_is_gone_and_no_sooner() {
    let edits = |edit: &dyn Fn(&mut Resource)| with(edit, asks("a", 1, 2, "user"));
    let keeps: [SeenResource; 3] =
        [edits(&|r| r.deleting = true), edits(&|r| r.paused = true), edits(&|r| r.spec = undecodable().map(Arc::new))];
    let start = || {
        let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
        world.act(&key("a", "r"));
        world
    };
    for seen in keeps {
        let mut world = start();
        world.edits(seen);
        assert_eq!(losers(&world), ["b"]);
        let dirt = world.deletes(&key("a", "r"));
        let both = [("a/r".to_owned(), Some(Cause::Observed)), ("b/r".to_owned(), Some(Cause::Observed))];
        assert_eq!((losers(&world), dirt_of(dirt)), (Vec::new(), both.to_vec()));
    }
    let mut world = start();
    let dirt = world.edits(edits(&|r| (r.ours, r.spec) = (false, undecodable().map(Arc::new))));
    assert!(losers(&world).is_empty() && dirt.len() == 2, "another operator's");
    let mut world = start();
    let dirt = world.edits(asks("a", 7, 1, "user"));
    assert_eq!((losers(&world), dirt.len()), (vec!["a"], 2), "made anew, and younger now");
}

#[test]
fn a_rename_frees_the_old_name_once_it_is_acted_on() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    world.edits(asks("a", 1, 2, "api"));
    assert_eq!(losers(&world), ["b"], "what is registered is there under the old name still");
    assert_eq!(dirt_of(world.act(&key("a", "r"))), [("b/r".to_owned(), Some(Cause::Observed))]);
    assert!(losers(&world).is_empty());
    world.act(&key("b", "r"));
    world.edits(asks("a", 1, 3, "user"));
    assert_eq!(losers(&world), ["a"], "it has left the name to the other one");
}

#[test]
fn nobody_is_acted_on_who_may_not_be() {
    let refused: [SeenResource; 3] = [
        with(|r| r.deleting = true, asks("a", 2, 1, "user")),
        with(|r| r.paused = true, asks("a", 2, 1, "user")),
        with(|r| r.spec = undecodable().map(Arc::new), asks("a", 2, 1, "user")),
    ];
    for seen in refused {
        let mut world = World::of([seen]);
        world.act(&key("a", "r"));
        world.edits(asks("b", 1, 1, "user"));
        assert_eq!(world.rival(&key("b", "r")), None);
    }
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    assert_eq!(world.act(&key("b", "r")), []);
    assert_eq!(losers(&world), ["b"]);
}

#[test]
fn a_restart_forgets_nobodys_name() {
    let status = |generation, name: &str, truth| {
        let status = told(generation, name, truth);
        move |r: &mut Resource| r.status = status
    };
    // The younger one was acted on before the older one came by a rename.
    let younger = with(status(1, "user", Truth::True), asks("a", 2, 1, "user"));
    let older = with(status(2, "api", Truth::False), asks("b", 1, 2, "user"));
    assert_eq!(losers(&World::of([younger.clone(), older.clone()])), ["b"]);
    assert_eq!(losers(&World::of([older, younger])), ["b"], "in whatever order they are listed");
    // What was told of another name counts for that name.
    let renamed = with(status(1, "api", Truth::True), asks("a", 1, 2, "user"));
    let world = World::of([renamed, asks("b", 2, 1, "user")]);
    assert_eq!(losers(&world), ["b"], "neither was acted on under it, and it is the older one");
    let unread = with(status(1, "user", Truth::True), asks("a", 2, 2, "user"));
    let unread = with(|r| r.spec = undecodable().map(Arc::new), unread);
    assert_eq!(losers(&World::of([unread, asks("b", 1, 1, "user")])), ["b"], "what is registered for it stays");
}

#[test]
fn an_old_word_of_ones_own_does_not_win_a_name_back() {
    let accepted = |seen| with(|r| r.status = told(1, "user", Truth::True), seen);
    let mut world = World::of([accepted(asks("a", 1, 1, "user")), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    world.edits(accepted(asks("a", 1, 2, "api")));
    world.act(&key("a", "r"));
    world.act(&key("b", "r"));
    // The status has not been written since.
    world.edits(accepted(asks("a", 1, 3, "user")));
    assert_eq!(losers(&world), ["a"]);
}

#[test]
fn whoever_changed_hands_comes_back_as_a_newcomer() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    world.edits(with(|r| (r.ours, r.spec) = (false, undecodable().map(Arc::new)), asks("a", 1, 2, "user")));
    world.act(&key("b", "r"));
    world.edits(asks("a", 1, 3, "user"));
    assert_eq!(losers(&world), ["a"]);
}

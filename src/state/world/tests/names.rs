//! Whose a name is.

use super::*;
use crate::model::resolve::{Before, resolve};
use crate::state::world::claims::{Basis, Standing};
use crate::state::world::entry::GrantedBy;

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

/// Lists who of `a/r` and `b/r` has a rival.
fn losers(world: &World) -> Vec<&'static str> {
    let other = |namespace: &str| key(if namespace == "a" { "b" } else { "a" }, "r");
    let loses = |namespace: &&str| {
        let rival = world.rival(&key(namespace, "r"));
        assert!(rival.is_none_or(|rival| *rival == other(namespace)), "the rival is the other one");
        rival.is_some()
    };
    NAMESPACES.into_iter().filter(loses).collect()
}

#[test]
fn of_claims_the_one_that_rests_on_more_has_the_name() {
    use GrantedBy::{Act, EarlierAct, Status};
    let standing = Standing::default();
    let rows = Standing { has_rows: true, ..standing };
    let able = Standing { asks: true, is_able: true, ..standing };
    let granted = |by| Standing { granted: Some(by), ..able };
    let in_order = [
        (Standing { granted: Some(Act), asks: true, ..rows }, Some(Basis::RowsAndGrant(Act))),
        (Standing { granted: Some(EarlierAct), asks: true, ..rows }, Some(Basis::RowsAndGrant(EarlierAct))),
        (Standing { granted: Some(Status), asks: true, ..rows }, Some(Basis::RowsAndGrant(Status))),
        (Standing { asks: true, ..rows }, Some(Basis::RowsAndWish)),
        (rows, Some(Basis::Rows)),
        (granted(Act), Some(Basis::Granted(Act))),
        (granted(EarlierAct), Some(Basis::Granted(EarlierAct))),
        (granted(Status), Some(Basis::Granted(Status))),
        (able, Some(Basis::Wish)),
    ];
    for (standing, basis) in in_order {
        assert_eq!(standing.basis(), basis, "{standing:?}");
        assert_eq!(Standing { leaves: true, ..standing }.basis(), None, "it gives the name up");
    }
    assert!(in_order.is_sorted_by(|(_, one), (_, other)| one < other));
    let in_doubt = Standing { may_have_rows: true, ..standing };
    for (standing, basis) in [
        (Standing { granted: Some(Act), asks: true, ..in_doubt }, Some(Basis::RowsAndGrant(Act))),
        (Standing { granted: Some(EarlierAct), asks: true, ..in_doubt }, Some(Basis::RowsAndGrant(EarlierAct))),
        (Standing { granted: Some(Act), ..in_doubt }, Some(Basis::Granted(Act))),
        (Standing { asks: true, is_able: true, ..in_doubt }, Some(Basis::Rows)),
    ] {
        assert_eq!(standing.basis(), basis, "a registration has no answer: {standing:?}");
    }
    let unable = Standing { asks: true, ..standing };
    assert_eq!((unable.basis(), standing.basis()), (None, None), "one that cannot be registered reserves nothing");
    assert_eq!(Standing { is_able: false, ..granted(Act) }.basis(), Some(Basis::Granted(Act)), "what it has stays");
}

#[test]
fn who_has_rows_holds_the_name_whatever_else_is_said() {
    let rows = || in_use(&[("User", "service/s")]);
    let said = |r: &mut Resource| r.status = told(r.generation, "user", Truth::True);
    // The older one comes back from another class or from a restore, with an old status, with one that somebody wrote,
    // or with none.
    let others: [&dyn Fn(&mut Resource); 3] = [&|r| r.status = told(1, "user", Truth::True), &said, &|r| r.created = 2];
    for edit in others {
        let older = with(edit, asks("a", 1, 3, "user"));
        for seen in [[older.clone(), asks("b", 2, 1, "user")], [asks("b", 2, 1, "user"), older.clone()]] {
            let mut world = World::of(seen);
            world.note_rows(&key("b", "r"), rows());
            assert_eq!(losers(&world), ["a"]);
            assert_eq!(world.effective_spec(&key("a", "r")), None);
            world.act(&key("b", "r"));
            assert_eq!(losers(&world), ["a"]);
        }
    }
    // Rows that appear later, as of a request that lands late, take the name from nobody who has rows of it.
    for acts in [true, false] {
        let older = asks("a", 1, 3, "user");
        let holds = with(
            |r| {
                if !acts {
                    said(r);
                }
            },
            asks("b", 2, 1, "user"),
        );
        let mut world = World::of([older, holds]);
        world.note_rows(&key("b", "r"), rows());
        if acts {
            world.act(&key("b", "r"));
        }
        world.note_rows(&key("a", "r"), rows());
        assert_eq!(losers(&world), ["a"], "acted on: {acts}");
    }
    // A word of a status does not outweigh what this process did itself, though no rows are there now.
    let mut world = World::of([asks("a", 1, 1, "api"), asks("b", 2, 1, "user")]);
    world.act(&key("b", "r"));
    world.edits(with(said, asks("a", 1, 2, "user")));
    assert_eq!(losers(&world), ["a"]);
}

#[test]
fn a_newcomer_that_cannot_be_registered_reserves_nothing() {
    let lists = |world: &mut World| {
        for change in [
            Change::Slice(Step::Init),
            Change::Slice(Step::InitDone),
            Change::Service(Step::Init),
            Change::Service(Step::InitApply(key("b", "s"), service(80))),
            Change::Service(Step::InitDone),
        ] {
            world.on_event(change);
        }
    };
    let found = || Change::Service(Step::Apply(key("a", "s"), service(80)));
    // Until all was listed the older one may have the name; then it is known that its source is not there.
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    assert_eq!(losers(&world), ["b"]);
    lists(&mut world);
    assert_eq!(losers(&world), ["a"]);
    assert_eq!(world.act(&key("a", "r")), [], "it has nothing to hold a name by");
    assert_eq!(
        dirt_of(world.on_event(found())),
        [("a/r".to_owned(), Some(Cause::Observed)), ("b/r".to_owned(), Some(Cause::Observed))]
    );
    assert_eq!(losers(&world), ["b"], "nobody has been registered yet");
    world.note_rows(&key("b", "r"), in_use(&[("user", "service/s")]));
    assert_eq!(losers(&world), ["a"]);

    let edits: [&dyn Fn(&mut Resource); 3] =
        [&|r| r.paused = true, &|r| r.deleting = true, &|r| r.spec = undecodable().map(Arc::new)];
    for edit in edits {
        let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
        lists(&mut world);
        world.on_event(found());
        assert_eq!(losers(&world), ["b"]);
        world.edits(with(edit, asks("a", 1, 2, "user")));
        assert!(!losers(&world).contains(&"b"));
    }
    // One that was acted on keeps the name, though its Service goes.
    let mut world = World::of([asks("a", 2, 1, "user"), asks("b", 1, 1, "api")]);
    lists(&mut world);
    world.on_event(found());
    world.act(&key("a", "r"));
    world.on_event(Change::Service(Step::Delete(key("a", "s"))));
    world.edits(asks("b", 1, 2, "user"));
    assert_eq!(losers(&world), ["b"]);
}

#[test]
fn a_loser_with_rows_goes_on_with_them() {
    let goes_on = |rows: &[(&str, &str)], wanted: Spec| {
        let loser = with(|r| r.created = 2, seen(&key("b", "r"), "b-2", 2, Ok(wanted)));
        let mut world = World::of([asks("a", 1, 1, "user"), loser]);
        world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
        world.note_rows(&key("b", "r"), in_use(rows));
        assert_eq!(losers(&world), ["b"]);
        let frozen = usize::from(!rows.is_empty() && world.effective_spec(&key("b", "r")).is_none());
        assert_eq!(world.frozen(), Frozen { by_name: frozen, by_spec: 0 }, "{rows:?}");
        let goes_on =
            world.effective_spec(&key("b", "r")).map(|spec| (spec.service.to_string(), spec.source.to_string()));
        assert_eq!(goes_on.as_ref().map(|(name, _)| Str::from(&**name)), world.acted_name(&key("b", "r")));
        goes_on
    };
    let user = |spec| named("user", spec);
    let is = |name: &str, source: &str| Some((name.to_owned(), source.to_owned()));
    for (rows, wanted, expected) in [
        (&[("Api", "service/s")][..], user(spec("s")), is("Api", "service/s")),
        // Under the very name, as long as it has no other.
        (&[("User", "service/s")], user(spec("s")), is("User", "service/s")),
        (&[("user", "service/s"), ("api", "service/s")], user(spec("s")), is("api", "service/s")),
        // What another source has is not registered under the old name.
        (&[("api", "service/t")], user(spec("s")), is("api", "service/t")),
        (&[("api", "service/t"), ("api", "service/s")], user(spec("s")), is("api", "service/s")),
        (&[("api", "pods")], user(pods_of("app")), is("api", "pods")),
        // Which pods were asked for nobody knows; those that are registered are kept while they live.
        (&[("api", "pods")], user(spec("s")), is("api", "pods")),
        (&[("api", "pods"), ("api", "static")], user(spec("s")), is("api", "pods")),
        (&[("api", "pods"), ("api", "service/t")], user(spec("s")), is("api", "service/t")),
        (&[("api", "static")], user(spec("s")), None),
        (&[("api", "static")], user(pods_of("app")), None),
        (&[], user(spec("s")), None),
    ] {
        assert_eq!(goes_on(rows, wanted), expected, "{rows:?}");
    }
}

#[test]
fn a_loser_that_had_pods_goes_on_with_those_that_live() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    let b = key("b", "r");
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    let scope = Scope::Namespace("b".into());
    let are_watched = |world: &World| world.wanted().watches.contains_key(&(Kind::Pod, scope.clone()));
    assert!(!are_watched(&world));
    world.note_rows(&b, in_use(&[("api", "pods")]));
    assert!(are_watched(&world));
    assert_eq!(world.waits_for(&b), Some(Kind::Pod));
    for change in [
        Change::Pod(Step::Init),
        Change::Pod(Step::InitApply(key("b", "p1"), pod("p1", 1, "any"))),
        Change::Pod(Step::InitDone),
    ] {
        world.apply(event(&scope, change), Instant::now());
    }
    let spec = world.effective_spec(&b).unwrap();
    assert!(spec.limits.only_keeps && spec.variables().is_empty());
    let living = |world: &World| {
        let spec = world.effective_spec(&b).unwrap();
        resolve(spec, &world.facts(&b), &Before::nothing()).instances.len()
    };
    assert_eq!(living(&world), 1, "whatever its labels and its ports");
    let gone = Change::Pod(Step::Delete(key("b", "p1")));
    let dirt = world.apply(event(&scope, gone), Instant::now());
    assert_eq!((dirt_of(dirt), living(&world)), (vec![("b/r".to_owned(), Some(Cause::Observed))], 0));
}

#[test]
fn rows_without_a_spec_to_go_by_are_counted() {
    let refused = || Err(Refusal { reason: "Invalid", message: String::new() });
    let of = |generation, spec| seen(&key("a", "r"), "a-1", generation, spec);
    let by_spec = |world: &World| world.frozen().by_spec;
    let mut world = World::of([of(1, refused())]);
    assert_eq!(by_spec(&world), 0, "nothing of it is in Consul");
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    assert_eq!(by_spec(&world), 1);
    world.edits(with(|r| r.paused = true, of(2, refused())));
    assert_eq!(by_spec(&world), 0, "somebody wants it so");
    world.edits(of(3, Ok(spec("s"))));
    world.edits(of(4, refused()));
    assert_eq!(world.frozen(), Frozen::default(), "the last good spec is known");
}

#[test]
fn a_loser_comes_back_from_nothing_with_what_it_had() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "api")]);
    let b = key("b", "r");
    world.act(&key("a", "r"));
    world.act(&b);
    world.note_rows(&b, in_use(&[("api", "service/s")]));
    world.edits(seen(&b, "b-2", 2, Ok(named("user", spec("t")))));
    world.note_rows(&b, BTreeSet::new());
    let goes_on = world.effective_spec(&b).unwrap();
    assert_eq!((&*goes_on.service, goes_on.source.to_string()), ("api", "service/s".to_owned()));
}

#[test]
fn a_renamed_one_gives_its_name_up_once_it_has_the_other() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    let a = key("a", "r");
    world.act(&a);
    world.note_rows(&a, in_use(&[("user", "service/s")]));
    world.edits(asks("a", 1, 2, "api"));
    world.act(&a);
    let none = BTreeSet::new;
    assert_eq!((losers(&world), world.successors(&a, "user")), (vec!["b"], none()), "Consul may refuse the new one");
    let dirt = world.note_rows(&a, in_use(&[("user", "service/s"), ("api", "service/s")]));
    assert_eq!((losers(&world), dirt_of(dirt)), (Vec::new(), vec![("b/r".to_owned(), Some(Cause::Observed))]));
    assert_eq!(world.successors(&a, "user"), [key("b", "r")].into());
    assert_eq!(world.successors(&a, "api"), none());
    // Renamed back before the other one has come, it has its name still.
    world.edits(asks("a", 1, 3, "user"));
    assert_eq!((losers(&world), world.successors(&a, "user")), (vec!["b"], none()));
}

#[test]
fn all_that_share_a_name_come_after_the_one_that_leaves_it() {
    let of_b = |name: &str, asked: &str| with(|r| r.key = key("b", name), asks("b", 2, 1, asked));
    let mut world = World::of([asks("a", 1, 1, "user"), of_b("o", "user"), of_b("p", "User"), of_b("q", "api")]);
    let a = key("a", "r");
    world.act(&a);
    world.note_rows(&a, in_use(&[("user", "service/s")]));
    world.edits(with(|r| r.deleting = true, asks("a", 1, 2, "user")));
    assert_eq!(world.successors(&a, "user"), BTreeSet::new(), "nobody knows why it is deleted");
    let before = |world: &World, name: &str| world.predecessors(&key("b", name));
    assert_eq!(before(&world, "o"), []);
    world.ends(&a);
    assert_eq!(world.successors(&a, "user"), [key("b", "o"), key("b", "p")].into());
    assert_eq!((before(&world, "o"), before(&world, "q")), (vec![a.clone()], vec![]));
    // Where another one of its namespace has the name, it stays there.
    let mut world = World::of([asks("a", 1, 1, "user"), of_b("o", "user")]);
    world.edits(with(|r| r.key = key("a", "s"), asks("a", 0, 1, "user")));
    world.note_rows(&a, in_use(&[("user", "service/s")]));
    world.edits(with(|r| r.deleting = true, asks("a", 1, 2, "user")));
    world.ends(&a);
    assert_eq!(world.successors(&a, "user"), BTreeSet::new());
}

#[test]
fn one_that_goes_on_by_rows_of_another_name_does_not_keep_the_one_it_was_acted_under() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "api")]);
    let (a, b) = (key("a", "r"), key("b", "r"));
    world.act(&a);
    world.note_rows(&b, in_use(&[("api", "service/s")]));
    world.edits(asks("a", 1, 2, "api"));
    world.edits(with(|r| r.key = key("b", "o"), asks("b", 3, 1, "user")));
    assert_eq!(world.rival(&key("b", "o")), Some(&a), "it has no rows, and goes on under that name");
    // As where Consul is put back to an earlier state.
    world.note_rows(&a, in_use(&[("db", "service/s")]));
    assert_eq!((&*world.effective_spec(&a).unwrap().service, world.rival(&key("b", "o"))), ("db", None));
}

#[test]
fn rows_of_namespaces_that_are_not_watched_decide_nothing() {
    let mut world = World::new([Scope::Namespace("b".into())], false);
    let scope = Scope::Namespace("b".into());
    let b = asks("b", 1, 1, "user");
    for step in [Step::Init, Step::InitApply(b.resource.key.clone(), b), Step::InitDone] {
        world.apply(event(&scope, Change::Resource(step)), Instant::now());
    }
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    assert_eq!(world.rival(&key("b", "r")), None);
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
fn nobody_goes_on_without_rows_under_a_name_that_another_namespace_has() {
    let mut world = World::of([asks("a", 2, 1, "user"), asks("b", 1, 1, "api")]);
    for namespace in NAMESPACES {
        world.act(&key(namespace, "r"));
    }
    world.edits(asks("b", 1, 2, "user"));
    let goes_on = |world: &World| world.effective_spec(&key("b", "r")).map(|spec| spec.service.clone());
    assert_eq!(goes_on(&world).as_deref(), Some("api"));
    let changed = [("b/r".to_owned(), Some(Cause::Observed))];
    let dirt = world.note_rows(&key("a", "q"), in_use(&[("api", "service/s")]));
    assert_eq!((goes_on(&world), dirt_of(dirt)), (None, changed.to_vec()));
    let dirt = world.note_rows(&key("a", "q"), BTreeSet::new());
    assert_eq!((goes_on(&world).as_deref(), dirt_of(dirt)), (Some("api"), changed.to_vec()));
}

#[test]
fn without_rows_the_one_that_was_acted_on_last_keeps_the_name() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    assert_eq!(losers(&world), ["b"]);
    // Rows that others left behind give the name to `b`.
    world.note_rows(&key("b", "q"), in_use(&[("user", "service/s")]));
    assert_eq!(world.rival(&key("a", "r")), Some(&key("b", "q")));
    world.act(&key("b", "r"));
    world.note_rows(&key("b", "q"), BTreeSet::new());
    assert_eq!(losers(&world), ["a"], "what it registers is on its way");
    // An earlier act outweighs a wish all the same.
    world.edits(with(|r| r.key = key("b", "o"), asks("b", 0, 1, "user")));
    world.deletes(&key("b", "r"));
    assert_eq!(losers(&world), [] as [&str; 0]);
    assert_eq!(world.rival(&key("b", "o")), Some(&key("a", "r")));
}

#[test]
fn a_name_is_taken_over_when_its_holder_is_gone_and_no_sooner() {
    let edits = |edit: &dyn Fn(&mut Resource)| with(edit, asks("a", 1, 2, "user"));
    let keeps: [SeenResource; 3] =
        [edits(&|r| r.deleting = true), edits(&|r| r.paused = true), edits(&|r| r.spec = undecodable().map(Arc::new))];
    let start = || {
        let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
        world.act(&key("a", "r"));
        world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
        world
    };
    for seen in keeps {
        let mut world = start();
        world.edits(seen);
        assert_eq!(losers(&world), ["b"]);
        world.deletes(&key("a", "r"));
        assert_eq!(losers(&world), ["b"], "its rows are there, and nobody knows why it is gone");
        let dirt = world.ends(&key("a", "r"));
        assert_eq!((losers(&world), dirt_of(dirt)), (Vec::new(), vec![("b/r".to_owned(), Some(Cause::Observed))]));
        assert_eq!(world.successors(&key("a", "r"), "User"), [key("b", "r")].into(), "the next one comes first");
        assert_eq!(world.note_rows(&key("a", "r"), BTreeSet::new()), []);
        assert_eq!(world.successors(&key("a", "r"), "user"), BTreeSet::new());
    }
    // What has no rows has nothing that could be mixed up with another's.
    let mut world = start();
    world.note_rows(&key("a", "r"), BTreeSet::new());
    assert_eq!(losers(&world), ["b"]);
    world.edits(edits(&|r| r.deleting = true));
    assert!(!losers(&world).contains(&"b"));
    let mut world = start();
    let other_class = |r: &mut Resource| (r.ours, r.spec) = (false, undecodable().map(Arc::new));
    world.edits(edits(&other_class));
    assert_eq!(losers(&world), ["b"], "its rows are another operator's");
    let dirt = world.edits(with(|r| r.finalizers = vec![FINALIZER.into()], edits(&other_class)));
    assert_eq!((losers(&world), dirt.len()), (vec![], 2), "its rows are ours, and go");
    let mut world = start();
    world.edits(asks("a", 7, 1, "user"));
    assert_eq!(losers(&world), ["b"], "made anew, and its rows are there");
    world.note_rows(&key("a", "r"), BTreeSet::new());
    assert_eq!(losers(&world), ["a"], "made anew, and younger now");
}

#[test]
fn a_name_is_not_free_while_a_registration_of_its_holder_has_no_answer() {
    let in_doubt = || BTreeSet::from(["User".into()]);
    let start = || {
        let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
        world.act(&key("a", "r"));
        assert_eq!(world.note_doubt(&key("a", "r"), &in_doubt()), [], "it holds the name anyway");
        world
    };
    // It is deleted before the answer comes, and then gone.
    let mut world = start();
    world.edits(with(|r| r.deleting = true, asks("a", 1, 2, "user")));
    assert!(losers(&world).contains(&"b"));
    world.deletes(&key("a", "r"));
    assert_eq!(losers(&world), ["b"]);
    let dirt = world.note_doubt(&key("a", "r"), &BTreeSet::new());
    assert_eq!((losers(&world), dirt_of(dirt)), (Vec::new(), vec![("b/r".to_owned(), Some(Cause::Observed))]));
    // What is known to end gives the name up all the same, and so does what has another class by now.
    let mut world = start();
    world.deletes(&key("a", "r"));
    world.ends(&key("a", "r"));
    assert_eq!(losers(&world), [""; 0]);
    let mut world = start();
    let other_class = |r: &mut Resource| {
        (r.ours, r.spec) = (false, undecodable().map(Arc::new));
        r.finalizers = vec![FINALIZER.into()];
    };
    world.edits(with(other_class, asks("a", 1, 2, "user")));
    assert_eq!(losers(&world), [""; 0]);
    // Another name is not left for one that it may not get.
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    world.edits(asks("a", 1, 2, "api"));
    world.act(&key("a", "r"));
    world.note_doubt(&key("a", "r"), &BTreeSet::from(["api".into()]));
    assert_eq!(losers(&world), ["b"]);
}

/// The rows that somebody removed are missed while others of the resource are being registered. One that comes back has rows that
/// are just being removed.
#[test]
fn a_name_stays_with_whom_it_was_given_while_a_registration_has_no_answer() {
    let mut world = World::of([asks("a", 1, 1, "user"), asks("b", 2, 1, "user")]);
    world.act(&key("a", "r"));
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    let other_class = |r: &mut Resource| {
        (r.ours, r.spec) = (false, undecodable().map(Arc::new));
        r.finalizers = vec![FINALIZER.into()];
    };
    world.edits(with(other_class, asks("a", 1, 2, "user")));
    world.act(&key("b", "r"));
    world.note_rows(&key("b", "r"), in_use(&[("user", "service/s")]));
    world.note_doubt(&key("b", "r"), &BTreeSet::from(["user".into()]));
    world.edits(asks("a", 1, 3, "user"));
    assert_eq!(losers(&world), ["a"]);
    world.note_rows(&key("b", "r"), BTreeSet::new());
    assert_eq!(losers(&world), ["a"], "rows of it are on their way");
    world.note_doubt(&key("b", "r"), &BTreeSet::new());
    assert_eq!(losers(&world), ["b"], "only the other one has rows");
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
    let mut world = World::of([unread, asks("b", 1, 1, "user")]);
    assert!(losers(&world).is_empty(), "a status about another spec says nothing");
    world.note_rows(&key("a", "r"), in_use(&[("user", "service/s")]));
    assert_eq!(losers(&world), ["b"], "what is registered for it stays");
    // One that was told that a name is another's goes on under the one before, and claims only that.
    for (name, loser) in [("api", "b"), ("user", "a")] {
        let conflict = with(status(2, name, Truth::False), asks("a", 2, 2, "user"));
        let world = World::of([conflict, asks("b", 1, 1, name)]);
        assert_eq!(losers(&world), [loser], "{name}");
    }
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

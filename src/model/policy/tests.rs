use std::collections::BTreeMap;

use super::*;
use crate::model::check::{Check, CheckSpec, Probe};
use crate::model::registration::{TaggedAddress, Weights};
use crate::model::resource::{PerAddress, Readiness, StaticAddress, finalizer};
use crate::model::selector::Requirement;

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text).unwrap()).collect()
}

/// A rule for all namespaces that allows just what [`spec`] asks for.
fn rule() -> Rule {
    Rule {
        name: "shops".into(),
        namespaces: patterns(&["shop*"]),
        labels: None,
        names: Some(patterns(&["{namespace}-*"])),
        tags: Some(patterns(&["v*", "env=prod"])),
        meta_keys: Some(patterns(&["team"])),
        checks: Some(vec!["tcp".into()]),
        least_interval: Some(10_000),
        networks: Some(vec!["203.0.113.0/24".parse().unwrap()]),
        retain: Some(false),
        classes: Some(vec!["".into()]),
        shared_names: Some(false),
        foreign_names: Some(false),
        budget: Budget {
            resources: Some(2),
            instances: Some(10),
            checks: Some(1),
            bytes: Some(100),
            namespace_instances: Some(40),
            namespace_checks: Some(8),
            namespace_bytes: Some(4096),
        },
    }
}

fn check(probe: Probe, interval: &str) -> CheckSpec {
    let check = Check {
        name: "alive".into(),
        probe,
        interval: interval.into(),
        timeout: "1s".into(),
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 0,
        notes: "".into(),
    };
    CheckSpec { port: None, check: Arc::new(check) }
}

fn at(address: &str) -> StaticAddress {
    StaticAddress { address: address.parse().unwrap(), port: 80, own: Arc::default() }
}

fn text(text: &str) -> Template {
    Template::parse(text).unwrap()
}

fn spec() -> Spec {
    Spec {
        service: "shop-web".into(),
        source: Source::Static { addresses: vec![at("203.0.113.7")] },
        port: None,
        tags: vec![text("v${pod.labels['version']}"), text("env=prod")],
        meta: [("team".into(), text("any ${pod.name}"))].into(),
        weights: Weights::default(),
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        dual_stack: false,
        readiness: Readiness::Mirror,
        checks: vec![check(Probe::Tcp { tls: None }, "10s")],
        limits: Limits { shares_name: true, ..Limits::default() },
    }
}

fn resource() -> Resource {
    Resource {
        key: ResourceKey::new("shop", "web"),
        uid: "u".into(),
        created: 1,
        generation: 1,
        resource_version: "1".into(),
        finalizers: Vec::new(),
        deleting: false,
        ours: true,
        finalizer: finalizer(""),
        paused: false,
        deletion: Some(DeletionPolicy::Deregister),
        bytes: 100,
        spec: Ok(Arc::new(spec())),
        status: Arc::default(),
    }
}

fn judged(rules: Option<Vec<Rule>>, resource: &Resource, spec: Spec, place: Place) -> Result<Arc<Spec>, Refusal> {
    Policy { rules, ..Policy::default() }.judge(resource, None, &Arc::new(spec), place, Others::Nobody)
}

/// An attempt of an author, what a rule without that very limit is, and the words of the refusal.
type Attempt = (fn(&mut Resource, &mut Spec, &mut Place), fn(&mut Rule), &'static str);

/// Each limit of a rule, and what is only refused because of it.
const ATTEMPTS: [(&str, Attempt); 21] = [
    ("another name", (|_, s, _| s.service = "payments".into(), |r| r.names = None, "the name \"payments\"")),
    ("another case", (|_, s, _| s.service = "PAYMENTS".into(), |r| r.names = None, "the name \"PAYMENTS\"")),
    (
        "a tag",
        (|_, s, _| s.tags = vec![text("traefik.enable=true")], |r| r.tags = None, "the tag \"traefik.enable=true\""),
    ),
    ("a tag of a label", (|_, s, _| s.tags = vec![text("${pod.labels['t']}")], |r| r.tags = None, "falls to a *")),
    ("a tag with a value in it", (|_, s, _| s.tags = vec![text("env=${pod.name}")], |r| r.tags = None, "env=prod")),
    (
        "a tag of one address",
        (
            |_, s, _| {
                let own = PerAddress { tags: vec![text("x")], meta: BTreeMap::new() };
                s.source =
                    Source::Static { addresses: vec![StaticAddress { own: Arc::new(own), ..at("203.0.113.7") }] };
            },
            |r| r.tags = None,
            "the tag \"x\"",
        ),
    ),
    (
        "a meta key",
        (|_, s, _| s.meta = [("cost".into(), text("1"))].into(), |r| r.meta_keys = None, "the meta key \"cost\""),
    ),
    (
        "a meta key of one address",
        (
            |_, s, _| {
                let own = PerAddress { tags: Vec::new(), meta: [("cost".into(), text("1"))].into() };
                s.source =
                    Source::Static { addresses: vec![StaticAddress { own: Arc::new(own), ..at("203.0.113.7") }] };
            },
            |r| r.meta_keys = None,
            "the meta key \"cost\"",
        ),
    ),
    (
        "a kind of check",
        (|_, s, _| s.checks = vec![check(Probe::Udp, "10s")], |r| r.checks = None, "\"alive\" is of the kind udp"),
    ),
    (
        "a check too often",
        (
            |_, s, _| s.checks = vec![check(Probe::Tcp { tls: None }, "9s999ms")],
            |r| r.least_interval = None,
            "runs every 9s999ms",
        ),
    ),
    ("many checks", (|_, s, _| s.checks = vec![s.checks[0].clone(); 2], |r| r.budget.checks = None, "has 2 checks")),
    (
        "an address outside",
        (
            |_, s, _| s.source = Source::Static { addresses: vec![at("203.0.113.7"), at("198.51.100.1")] },
            |r| r.networks = Some(vec!["0.0.0.0/0".parse().unwrap()]),
            "198.51.100.1",
        ),
    ),
    (
        "a tagged address outside",
        (
            |_, s, _| {
                let wan = TaggedAddress { address: "198.51.100.1".into(), port: 80 };
                s.tagged_addresses = Arc::new([("wan".into(), wan)].into());
            },
            |r| r.networks = Some(vec!["0.0.0.0/0".parse().unwrap()]),
            "spec.taggedAddresses.wan",
        ),
    ),
    ("Retain", (|r, _, _| r.deletion = Some(DeletionPolicy::Retain), |r| r.retain = None, "deletionPolicy: Retain")),
    (
        "one resource more",
        (|_, _, fits| *fits = Place::TooMany, |r| r.budget.resources = None, "another ConsulService"),
    ),
    (
        "more checks of a namespace",
        (|_, _, fits| *fits = Place::TooManyChecks, |r| r.budget.namespace_checks = None, "no room for its checks"),
    ),
    (
        "more bytes of a namespace",
        (|_, _, fits| *fits = Place::TooManyBytes, |r| r.budget.namespace_bytes = None, "no room for its spec"),
    ),
    ("a byte more", (|r, _, _| r.bytes = 101, |r| r.budget.bytes = None, "101 bytes")),
    ("a name of Vault", (|_, s, _| s.service = "vault".into(), |r| r.names = Some(patterns(&["vault"])), "companions")),
    (
        "a name of Nomad",
        (|_, s, _| s.service = "Nomad-Client".into(), |r| r.names = Some(patterns(&["nomad-client"])), "companions"),
    ),
    (
        "another namespace",
        (
            |r, s, _| (r.key, s.service) = (ResourceKey::new("lab", "web"), "lab-web".into()),
            |r| r.namespaces = patterns(&["*"]),
            "no rule of the administrator's policy is for namespace lab",
        ),
    ),
];

#[test]
fn each_limit_refuses_what_nothing_else_does() {
    assert!(judged(Some(vec![rule()]), &resource(), spec(), Place::Fits).is_ok());
    for (attempt, (change, without, words)) in ATTEMPTS {
        let (mut resource, mut spec, mut place) = (resource(), spec(), Place::Fits);
        change(&mut resource, &mut spec, &mut place);
        let refusal = judged(Some(vec![rule()]), &resource, spec.clone(), place).unwrap_err();
        assert_eq!(refusal.reason, NOT_ALLOWED, "{attempt}");
        assert!(refusal.message.contains(words), "{attempt}: {}", refusal.message);
        let mut lenient = rule();
        without(&mut lenient);
        let answer = judged(Some(vec![lenient]), &resource, spec, place);
        assert!(answer.is_ok(), "{attempt}: {answer:?}");
    }
}

#[test]
fn a_namespace_has_so_many_bytes_with_a_policy_and_without() {
    for rules in [None, Some(vec![rule()])] {
        let refusal = judged(rules, &resource(), spec(), Place::TooLarge).unwrap_err();
        assert_eq!(refusal.reason, TOO_LARGE);
        assert!(refusal.message.contains("4194304 bytes") && refusal.message.contains("--max-namespace-bytes"));
    }
}

#[test]
fn a_name_that_others_have_is_refused_to_who_begins_to_use_it() {
    let judge = |foreign_names, others| {
        let policy = Policy { rules: Some(vec![Rule { foreign_names, ..rule() }]), ..Policy::default() };
        assert_eq!(policy.asks_for_others(), foreign_names == Some(false));
        policy.judge(&resource(), None, &Arc::new(spec()), Place::Fits, others).map(drop)
    };
    for (foreign_names, others, refused) in [
        (None, Others::Some, None),
        (None, Others::Unknown, None),
        (Some(true), Others::Some, None),
        (Some(true), Others::Unknown, None),
        (Some(false), Others::Nobody, None),
        (Some(false), Others::Some, Some((NOT_ALLOWED, "names that nobody else has"))),
        (Some(false), Others::Unknown, Some((NOT_LISTED, "cannot tell whether others have the name \"shop-web\""))),
    ] {
        let told = judge(foreign_names, others).err();
        assert_eq!(told.is_some(), refused.is_some(), "{foreign_names:?} {others:?}");
        if let (Some(told), Some((reason, words))) = (told, refused) {
            assert!(told.reason == reason && told.message.contains(words), "{told:?}");
            assert!(told.message.contains("rule \"shops\"") && told.message.contains("what is registered stays"));
        }
    }
}

#[test]
fn what_an_author_asks_for_at_a_deletion_is_allowed_or_not() {
    use DeletionPolicy::{Deregister, Retain};
    let gold = Selector(vec![Requirement::In("tier".into(), ["gold".into()].into())]);
    let rule = |retain, labels: Option<&Selector>| vec![Rule { retain, labels: labels.cloned(), ..rule() }];
    let labels = Labels::from([("tier".into(), "gold".into())]);
    for (case, rules, namespace, labels, expected) in [
        ("without a policy", None, "shop", None, Ok(true)),
        ("a rule that says nothing of it", Some(rule(None, None)), "shop", None, Ok(true)),
        ("a rule that allows it", Some(rule(Some(true), None)), "shop", None, Ok(true)),
        ("a rule that forbids it", Some(rule(Some(false), None)), "shop", None, Ok(false)),
        ("no rule", Some(rule(Some(true), None)), "lab", None, Ok(false)),
        ("a rule by labels", Some(rule(Some(true), Some(&gold))), "shop", Some(&labels), Ok(true)),
        ("labels that are not known yet", Some(rule(Some(true), Some(&gold))), "shop", None, Err(LabelsNotKnown)),
    ] {
        let policy = Policy { rules, ..Policy::default() };
        assert_eq!(policy.allows_deletion(Retain, namespace, labels), expected, "{case}");
        assert_eq!(policy.allows_deletion(Deregister, namespace, labels), Ok(true), "{case}");
    }
}

#[test]
fn a_refusal_names_its_rule() {
    let mut spec = spec();
    spec.tags = vec![text("x")];
    let message = judged(Some(vec![rule()]), &resource(), spec, Place::Fits).unwrap_err().message;
    assert_eq!(
        message,
        "the tag \"x\": rule \"shops\" of the administrator's policy allows the tags v*, env=prod; what is registered stays"
    );
}

#[test]
fn the_first_rule_that_is_for_the_namespace_decides() {
    let first = Rule { name: "first".into(), names: Some(patterns(&["a"])), ..rule() };
    let policy = Policy { rules: Some(vec![first, rule()]), ..Policy::default() };
    assert_eq!(&*policy.rule("shop-1", None).unwrap().unwrap().name, "first");
    assert!(policy.rule("lab", None).unwrap().is_none());
    assert_eq!(policy.budget("shop", None).resources, Some(2));
}

#[test]
fn labels_of_the_namespace_decide_and_nothing_is_guessed_without_them() {
    let is = |tier: &str| Selector(vec![Requirement::In("tier".into(), [tier.into()].into())]);
    let named = |name: &str, namespaces: &[&str], labels| Rule {
        name: name.into(),
        namespaces: patterns(namespaces),
        labels,
        ..rule()
    };
    let rules = vec![
        named("by name", &["lab"], None),
        named("gold", &["shop*"], Some(is("gold"))),
        named("others", &["*"], None),
    ];
    let policy = Policy { rules: Some(rules), ..Policy::default() };
    let labels = |tier: &str| Labels::from([("tier".into(), tier.into())]);
    let chosen = |namespace: &str, labels: Option<&Labels>| {
        policy.rule(namespace, labels).map(|rule| rule.map(|rule| rule.name.to_string()))
    };
    let name = |name: &str| Ok(Some(name.to_owned()));
    assert_eq!(chosen("shop", Some(&labels("gold"))), name("gold"));
    assert_eq!(chosen("shop", Some(&labels("lead"))), name("others"));
    assert_eq!(chosen("shop", Some(&Labels::new())), name("others"));
    assert_eq!(chosen("shop", None), Err(LabelsNotKnown), "the rule after it may allow more");
    assert_eq!(chosen("lab", None), name("by name"));
    assert_eq!(chosen("other", None), name("others"), "the name alone rules the second one out");
    let refusal = policy.judge(&resource(), None, &Arc::new(spec()), Place::Fits, Others::Nobody).unwrap_err();
    assert_eq!(refusal.reason, NOT_LISTED);
    assert!(policy.asks_for_labels() && !Policy::default().asks_for_labels());
}

/// The limits that narrow what a resource may do in place of refusing it, what a rule without that very limit is, and what is
/// left of it.
#[test]
fn each_limit_narrows_what_nothing_else_does() {
    type Case = (&'static str, fn(&mut Rule), fn(&Limits) -> bool);
    let asked = spec().limits;
    let cases: [Case; 3] = [
        ("sharedNames", |r| r.shared_names = None, |limits| limits.shares_name),
        ("budget.instances", |r| r.budget.instances = None, |limits| limits.instances > 10),
        ("budget.namespaceInstances", |r| r.budget.namespace_instances = None, |limits| limits.of_namespace.is_none()),
    ];
    for (limit, without, is_free) in cases {
        assert!(is_free(&asked), "{limit}");
        let narrowed = judged(Some(vec![rule()]), &resource(), spec(), Place::Fits).unwrap().limits.clone();
        assert!(!is_free(&narrowed), "{limit} narrows nothing");
        let mut lenient = rule();
        without(&mut lenient);
        let left = judged(Some(vec![lenient]), &resource(), spec(), Place::Fits).unwrap().limits.clone();
        assert!(is_free(&left), "something else than {limit} narrows it");
    }
}

#[test]
fn a_rule_lets_operators_of_its_classes_act() {
    let blue: Str = "blue".into();
    for (classes, class, is_allowed) in [
        (None, "", true),
        (None, "blue", true),
        (Some(vec![]), "", false),
        (Some(vec!["".into()]), "", true),
        (Some(vec!["".into()]), "blue", false),
        (Some(vec![blue.clone()]), "", false),
        (Some(vec!["".into(), blue]), "blue", true),
    ] {
        let rule = Rule { classes: classes.clone(), ..rule() };
        let policy = Policy { rules: Some(vec![rule]), class: class.into(), ..Policy::default() };
        let answer = policy.judge(&resource(), None, &Arc::new(spec()), Place::Fits, Others::Nobody);
        let refusal = answer.err().map(|refusal| refusal.message);
        assert_eq!(refusal.is_none(), is_allowed, "{classes:?} {class:?}");
        assert!(refusal.is_none_or(|message| message.contains(&format!("the class {class:?}"))));
    }
}

#[test]
fn a_rule_narrows_the_limits() {
    let limits = judged(Some(vec![rule()]), &resource(), spec(), Place::Fits).unwrap().limits.clone();
    assert_eq!(limits, Limits { instances: 10, of_namespace: Some(40), shares_name: false, ..Limits::default() });
    let budget = Budget { instances: Some(9_999), namespace_instances: None, ..rule().budget };
    let generous = Rule { budget, shared_names: None, ..rule() };
    let limits = judged(Some(vec![generous]), &resource(), spec(), Place::Fits).unwrap().limits.clone();
    assert_eq!(limits, Limits { shares_name: true, ..Limits::default() }, "a flag is the outer limit");
}

#[test]
fn without_a_policy_all_is_allowed_but_names_of_companions_and_addresses_outside() {
    let judge = |name: &str, source: Source, networks: &[&str]| {
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let spec = Spec { service: name.into(), source, ..spec() };
        Policy { networks, ..Policy::default() }.judge(&resource(), None, &Arc::new(spec), Place::Fits, Others::Nobody)
    };
    let service = || Source::Service { name: "web".into() };
    for name in ["web", "consul-api", "my-vault", "a-nomad"] {
        assert!(judge(name, service(), &[]).is_ok(), "{name}");
    }
    for name in ["consul-esm", "Consul-ESM", "nomad", "nomad-client", "vault", "VAULT", "lictor-doctor"] {
        assert!(judge(name, service(), &[]).unwrap_err().message.contains("companions"), "{name}");
    }
    let fixed = || Source::Static { addresses: vec![at("203.0.113.7")] };
    assert!(judge("web", fixed(), &["203.0.113.0/24"]).is_ok());
    let refusal = judge("web", fixed(), &["198.51.100.0/24"]).unwrap_err();
    assert!(refusal.message.contains("--allow-static"), "{}", refusal.message);
}

#[test]
fn who_holds_something_keeps_it_and_of_the_others_the_older_ones_go_first() {
    // What each asks for and holds, the oldest first; what is left of others; the budget; and who has room.
    type Case<'a> = (&'a str, &'a [(usize, usize)], usize, Option<usize>, &'a [bool]);
    let cases: [Case<'_>; 13] = [
        ("no budget", &[(9, 0), (9, 0)], 9, None, &[true, true]),
        ("new ones by age", &[(2, 0), (1, 0)], 0, Some(2), &[true, false]),
        ("a smaller one has room", &[(2, 0), (2, 0), (1, 0)], 0, Some(3), &[true, false, true]),
        ("who asks for nothing is never refused", &[(2, 2), (0, 0)], 0, Some(1), &[false, true]),
        ("an older one grows beside a newer one", &[(2, 1), (1, 1)], 0, Some(2), &[false, true]),
        ("as far as there is room", &[(2, 1), (1, 1)], 0, Some(3), &[true, true]),
        ("an older one comes late", &[(1, 0), (2, 2)], 0, Some(2), &[false, true]),
        ("a newer one grows", &[(1, 1), (2, 1)], 0, Some(2), &[true, false]),
        ("a smaller budget refuses the newest", &[(2, 2), (1, 1)], 0, Some(2), &[true, false]),
        ("who is refused holds what it had", &[(3, 2), (1, 0)], 0, Some(2), &[false, false]),
        ("who asks for less holds the rest until it is gone", &[(0, 2), (1, 0)], 0, Some(2), &[true, false]),
        ("what is left counts for who grows", &[(1, 0)], 2, Some(2), &[false]),
        ("and not for who holds it", &[(2, 2)], 1, Some(2), &[true]),
    ];
    for (case, claims, left, most, expected) in cases {
        let claims: Vec<Claim> = claims.iter().map(|&(asks, holds)| Claim { asks, holds }).collect();
        assert_eq!(granted(&claims, left, most), expected, "{case}");
    }
    assert_eq!(granted(&[Claim { asks: usize::MAX, holds: usize::MAX }; 2], usize::MAX, Some(1)), [false, false]);
}

#[test]
fn together_they_never_get_more_than_the_budget() {
    // All claims of three resources, as they begin within the budget.
    let (most, all) = (3, 0..4_usize);
    let pairs = || all.clone().flat_map(|asks| (0..4_usize).map(move |holds| Claim { asks, holds }));
    for first in pairs() {
        for second in pairs() {
            for third in pairs() {
                let claims = [first, second, third];
                if claims.iter().map(|claim| claim.holds).sum::<usize>() > most {
                    continue;
                }
                let fits = granted(&claims, 0, Some(most));
                let after = |(claim, fits): (&Claim, &bool)| {
                    // Until Consul has fewer, what was there counts.
                    let holds = if *fits { claim.asks.max(claim.holds) } else { claim.holds };
                    Claim { holds, ..*claim }
                };
                let after: Vec<Claim> = claims.iter().zip(&fits).map(after).collect();
                assert!(after.iter().map(|claim| claim.holds).sum::<usize>() <= most, "{claims:?}: {fits:?}");
                // Asked again, nobody loses it, and a restart changes nothing.
                assert_eq!(granted(&after, 0, Some(most)), fits, "{claims:?}");
            }
        }
    }
}

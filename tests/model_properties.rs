//! Properties of the pure core: applying what `diff` says to what Consul holds gives what is desired, a second
//! diff is empty, nothing foreign is touched, and an instance never loses its last registration before its
//! replacement is there.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says so by failing")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lictor::consul::Rows;
use lictor::consul::mirror::Mirror;
use lictor::model::check::Checks;
use lictor::model::desired::{Desired, Placement, desired};
use lictor::model::diff::{Op, diff};
use lictor::model::facts::PodRef;
use lictor::model::isolation::Isolation;
use lictor::model::names::{ClusterName, Identity, ResourceKey, Str, instance_id};
use lictor::model::plan::Plan;
use lictor::model::registration::{Ownership, Registration, Row, RowKey, TaggedAddress, Weights};
use lictor::model::resolve::{Hold, Instance, Resolution, limit};
use lictor::model::resource::{Limits, Readiness, Source, Spec};
use lictor::model::template::{Template, Values};
use proptest::prelude::*;

fn identity() -> Identity {
    Identity { cluster: ClusterName::new("c").expect("a label"), uid: "uid".into() }
}

fn owner() -> ResourceKey {
    ResourceKey::new("shop", "user")
}

fn spec() -> impl Strategy<Value = Spec> {
    let readiness = prop_oneof![Just(Readiness::Mirror), Just(Readiness::Deregister), Just(Readiness::Ignore)];
    (
        prop_oneof![Just("user"), Just("User"), Just("user_service")],
        prop::collection::vec("[a-c]", 0..3),
        prop::collection::btree_map("[k-m]", "[a-b]", 0..2),
        (1_u16..3, 0_u16..2),
        readiness,
        any::<bool>(),
        prop::option::of(1_u16..3),
    )
        .prop_map(|(service, tags, meta, (passing, warning), readiness, enable_tag_override, tagged)| Spec {
            service: service.into(),
            source: Source::Service { name: "web".into() },
            port: None,
            tags: tags.into_iter().map(|tag| Template::Plain(tag.into())).collect(),
            meta: meta.into_iter().map(|(k, v)| (k.into(), Template::Plain(v.into()))).collect(),
            weights: Weights { passing, warning },
            tagged_addresses: Arc::new(
                tagged
                    .map(|port| ("wan".into(), TaggedAddress { address: "198.51.100.1".into(), port }))
                    .into_iter()
                    .collect(),
            ),
            enable_tag_override,
            dual_stack: false,
            readiness,
            checks: Vec::new(),
            limits: Limits::default(),
        })
}

fn instances() -> impl Strategy<Value = Vec<Instance>> {
    let instance = (0_u8..6, 0_u8..2, 80_u16..82, any::<bool>(), prop::option::of(0_u8..3));
    prop::collection::vec(instance, 0..8).prop_map(|list| {
        let mut targets = BTreeSet::new();
        list.into_iter()
            .map(|(pod, generation, port, ready, node)| Instance {
                address: IpAddr::from([10, 0, generation, pod]),
                port,
                other_address: None,
                ready,
                node: node.map(|n| format!("n{n}").into()),
                pod: Some(PodRef { name: format!("p{pod}").into(), uid: format!("u{pod}-{generation}").into() }),
                check_ports: Vec::new(),
                values: Values::new(),
                own: None,
            })
            .filter(|instance| targets.insert((instance.target(), instance.port)))
            .collect()
    })
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        Just(Placement::Agent { node: "agent".into() }),
        Just(Placement::Catalog { cluster: identity().cluster }),
    ]
}

fn wants(spec: &Spec, instances: &[Instance], placement: &Placement) -> Desired {
    desired(&identity(), &owner(), &"owner-uid".into(), spec, instances, placement)
}

/// Rows of others: another resource's, another cluster's under an ID of ours, and a stranger's.
fn foreign(desired: &Desired, take: bool) -> Rows {
    let mut rows = Rows::new();
    let mut put = |key: RowKey, registration: Registration| {
        let ownership = Ownership::of(&identity(), &key.id, &registration.meta);
        let row = Row {
            health: lictor::model::registration::Health::Passing,
            shown: true,
            ownership,
            registration: Arc::new(registration),
        };
        rows.insert(key, row);
    };
    let theirs = |cluster_uid: &str| Registration {
        service: "user".into(),
        address: "10.9.9.9".into(),
        port: 1,
        tags: Arc::new([]),
        meta: [("managed-by", "lictor"), ("lictor-cluster", "c"), ("lictor-cluster-uid", cluster_uid)]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        weights: Weights::default(),
        enable_tag_override: false,
        tagged_addresses: Arc::default(),
        readiness: None,
        checks: Checks::default(),
    };
    put(RowKey { node: "agent".into(), id: "c:shop:other:user:x:1".into() }, theirs("uid"));
    put(RowKey { node: "agent".into(), id: "stranger".into() }, theirs("uid"));
    if let (true, Some(key)) = (take, desired.keys().next()) {
        put(key.clone(), theirs("another-uid"));
    }
    rows
}

/// Carries out what `diff` says, in bundles, until it says nothing more; the rounds that it took.
fn converge(mirror: &mut Mirror, desired: &Desired, on_op: &mut dyn FnMut(&Mirror, &Op)) -> usize {
    for round in 0.. {
        assert!(round < 4, "does not converge");
        let diff = diff(desired, |key| mirror.row(key), mirror.owned(&owner()), &Hold::Nothing, |_| false, |_| false);
        if diff.ops.is_empty() {
            assert!(diff.waiting.is_empty() || !diff.conflicts.is_empty(), "waits for what never comes");
            return round;
        }
        let mut plan = Plan::default();
        let count = diff.ops.len();
        plan.replace(&owner(), diff.ops);
        assert_eq!(plan.len(), count, "one operation for each instance");
        let next = |plan: &Plan| plan.nodes().next().cloned();
        while let Some(node) = next(&plan) {
            for planned in plan.take(&node, 3, &Isolation::default()) {
                assert_eq!(planned.op.key().node, node);
                on_op(mirror, &planned.op);
                mirror.acknowledge(&identity(), &planned.op, true);
            }
        }
    }
    unreachable!("the loop returns")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_leads_from_any_state_to_the_desired_one(
        before in (spec(), instances()),
        after in (spec(), instances()),
        placement in placement(),
        take in any::<bool>(),
    ) {
        let desired = wants(&after.0, &after.1, &placement);
        let mut mirror = Mirror::default();
        let others = foreign(&desired, take);
        mirror.take_over(others.clone(), 0, None);
        converge(&mut mirror, &wants(&before.0, &before.1, &placement), &mut |_, _| {});
        let taken: BTreeSet<&RowKey> = others.keys().collect();

        converge(&mut mirror, &desired, &mut |_, op| assert!(!taken.contains(op.key()), "touched {}", op.key()));

        for (key, row) in &others {
            prop_assert_eq!(mirror.row(key), Some(row), "a foreign row changed");
        }
        let ours: BTreeMap<&RowKey, &Row> = mirror.owned(&owner()).collect();
        let conflicted = desired.keys().any(|key| taken.contains(key));
        for (key, wanted) in desired.iter().filter(|(key, _)| !taken.contains(key)) {
            let row = ours.get(key).expect("every desired instance is there");
            prop_assert!(wanted.same_service(&row.registration));
            prop_assert_eq!(wanted.readiness, row.registration.readiness);
        }
        // What waits for an instance that somebody else holds the ID of stays, and nothing else.
        prop_assert!(conflicted || ours.len() == desired.len());
    }

    #[test]
    fn an_address_that_stays_is_never_without_a_registration(
        before in spec(),
        after in spec(),
        instances in instances(),
        placement in placement(),
    ) {
        let keep = |spec: Spec| Spec { readiness: Readiness::Mirror, ..spec };
        let (before, after) = (keep(before), keep(after));
        let mut mirror = Mirror::default();
        converge(&mut mirror, &wants(&before, &instances, &placement), &mut |_, _| {});
        let addresses: BTreeSet<Str> = instances.iter().map(|i| i.address.to_string().into()).collect();
        converge(&mut mirror, &wants(&after, &instances, &placement), &mut |mirror, op| {
            if op.removes() {
                let going = &mirror.row(op.key()).expect("what goes is there").registration.address;
                let others = mirror.owned(&owner()).filter(|(key, row)| *key != op.key() && row.registration.address == *going);
                assert!(!addresses.contains(going) || others.count() > 0, "{going} would be without a registration");
            }
        });
    }

    #[test]
    fn a_limit_never_takes_away_what_is_registered_and_desired(
        spec in spec(),
        before in instances(),
        after in instances(),
        placement in placement(),
        most in 1_usize..5,
    ) {
        let spec = Spec { limits: Limits { instances: most, ..Limits::default() }, ..spec };
        let mut mirror = Mirror::default();
        let limited = |instances: &[Instance], mirror: &Mirror| {
            let found = Resolution {
                instances: instances.to_vec(),
                left_out: Vec::new(),
                unresolved: None,
                hold: Hold::Nothing,
            };
            let id = |i: &Instance| instance_id(&identity().cluster, &owner(), &spec.service, &i.target(), i.port);
            let rows: Vec<(Str, Arc<Registration>)> =
                mirror.owned(&owner()).map(|(key, row)| (key.id.clone(), row.registration.clone())).collect();
            let left = limit(found, &spec, id, rows.iter().map(|(id, there)| (id, &**there)));
            wants(&spec, &left.instances, &placement)
        };
        let first = limited(&before, &mirror);
        let all = wants(&spec, &before, &placement);
        prop_assert_eq!(first.len(), all.len().min(most));
        let unready = |desired: &Desired| desired.values().filter(|there| there.readiness == Some(lictor::model::registration::Health::Critical)).count();
        let ready = all.len() - unready(&all);
        prop_assert_eq!(first.len() - unready(&first), ready.min(most), "ready ones come first");
        converge(&mut mirror, &first, &mut |_, _| {});
        prop_assert_eq!(&limited(&before, &mirror), &first, "what was chosen is chosen again");

        let (all, second) = (wants(&spec, &after, &placement), limited(&after, &mirror));
        let ids: BTreeSet<Str> = first.keys().map(|key| key.id.clone()).collect();
        for key in all.keys().filter(|key| ids.contains(&key.id)) {
            prop_assert!(second.contains_key(key), "{} was registered and is desired", key);
        }
        prop_assert_eq!(second.len(), all.len().min(most));
    }
}

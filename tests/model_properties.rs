//! Properties of the pure core: applying what `diff` says to what Consul holds gives what is desired, a second
//! diff is empty, nothing foreign is touched, and an instance never loses its last registration before its
//! replacement is there. And of every source: no status contradicts its own counts.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says so by failing")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lictor::model::desired::{Desired, Placement, desired};
use lictor::model::diff::{Op, count, diff};
use lictor::model::facts::{
    Endpoint, Facts, Family, Node, Pod, PodRef, Protocol, Service, ServicePort, Slice, SlicePort,
};
use lictor::model::ids::{ClusterName, Identity, ResourceKey, Str, instance_id};
use lictor::model::isolation::Isolation;
use lictor::model::plan::{Plan, Rank, Wanted};
use lictor::model::port::PortRef;
use lictor::model::reasons::ProblemReason;
use lictor::model::registration::{Ownership, Registration, Row, RowKey, TaggedAddress, Weights};
use lictor::model::resolve::{Before, Hold, Instance, Remains, Resolution, limit, resolve};
use lictor::model::resource::{Limits, Readiness, Source, Spec};
use lictor::model::status::{ConditionKind, Findings, Status, Truth, status};
use lictor::model::template::{Template, Values};
use lictor::ports::Rows;
use lictor::state::mirror::Mirror;
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
        Just(Placement::Catalog { cluster: identity().cluster, taken: Arc::default() }),
    ]
}

fn wants(spec: &Spec, instances: &[Instance], placement: &Placement) -> Desired {
    desired(&identity(), &owner(), &"owner-uid".into(), spec, instances, placement, |_| true)
}

/// Rows of others: another resource's, another cluster's under an ID of ours, and a stranger's.
fn foreign(desired: &Desired, take: bool) -> Rows {
    let mut rows = Rows::new();
    let mut put = |key: RowKey, registration: Registration| {
        let ownership = Ownership::of(&identity(), &key.id, &registration.meta, false);
        let row = Row {
            health: lictor::model::health::Health::Passing,
            shown: true,
            ownership,
            registration: Arc::new(registration),
        };
        rows.insert(key, row);
    };
    let theirs = |cluster_uid: &str| Registration {
        meta: [("managed-by", "lictor"), ("lictor-cluster", "c"), ("lictor-cluster-uid", cluster_uid)]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        ..Registration::plain("user", "10.9.9.9", 1)
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
        let diff = diff(
            desired,
            |key| mirror.row(key),
            mirror.owned(&owner()),
            &Hold::Nothing,
            |_| Remains::Nothing,
            |_| false,
        );
        if diff.ops.is_empty() {
            assert!(diff.waiting.is_empty() || !diff.conflicts.is_empty(), "waits for what never comes");
            return round;
        }
        let mut plan = Plan::default();
        let count = diff.ops.len();
        let there = |op: &Op| mirror.row(op.key()).map(|row| &*row.registration);
        let wanted = |op: Op| Wanted { rank: Rank::of(&op, there(&op)), op, why: "a property".into() };
        plan.replace(&owner(), diff.ops.into_iter().map(wanted).collect());
        assert_eq!(plan.len(), count, "one operation for each instance");
        let next = |plan: &Plan| plan.next_node(None, |_| true).map(|(node, _)| node.clone());
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

/// A Service and its slices.
#[derive(Clone, Debug)]
struct Web {
    namespace: Str,
    service: Service,
    slices: Vec<Slice>,
}

impl Facts for Web {
    fn namespace(&self) -> &Str {
        &self.namespace
    }

    fn service(&self, _: &str) -> Option<&Service> {
        Some(&self.service)
    }

    fn slices(&self, _: &str) -> impl Iterator<Item = &Slice> + Clone {
        self.slices.iter()
    }

    fn matching(&self) -> impl Iterator<Item = (&Str, &Pod)> + Clone {
        std::iter::empty()
    }

    fn pod(&self, _: &str) -> Option<&Pod> {
        None
    }

    fn has_pod_at(&self, address: IpAddr) -> bool {
        address != IpAddr::from([10, 0, 0, 0])
    }

    fn node(&self, _: &str) -> Option<&Node> {
        None
    }
}

fn port() -> impl Strategy<Value = (Str, Protocol, u16)> {
    let name = prop_oneof![Just("http"), Just("http"), Just("metrics"), Just("")];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Tcp), Just(Protocol::Udp)];
    (name, protocol, 80_u16..82).prop_map(|(name, protocol, number)| (name.into(), protocol, number))
}

fn slice() -> impl Strategy<Value = Slice> {
    let endpoint = (0_u8..4, any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(0_u8..4));
    (any::<bool>(), prop::collection::vec(port(), 0..3), prop::collection::vec(endpoint, 0..4)).prop_map(
        |(v4, ports, endpoints)| Slice {
            service: "web".into(),
            family: if v4 { Family::V4 } else { Family::V6 },
            ports: ports.into_iter().map(|(name, protocol, number)| SlicePort { name, protocol, number }).collect(),
            endpoints: endpoints
                .into_iter()
                .map(|(last, ready, serving, terminating, pod)| Endpoint {
                    address: if v4 {
                        IpAddr::from([10, 0, 0, last])
                    } else {
                        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
                    },
                    ready,
                    serving,
                    terminating,
                    node: None,
                    pod: pod.map(|pod| PodRef { name: format!("p{pod}").into(), uid: format!("u{pod}").into() }),
                })
                .collect(),
        },
    )
}

fn web() -> impl Strategy<Value = (Web, Spec)> {
    let port_ref = prop_oneof![
        Just(None),
        Just(Some(PortRef::Number(80))),
        Just(Some(PortRef::Name("http".into()))),
        Just(Some(PortRef::Name("metrics".into())))
    ];
    let family = prop_oneof![Just(None), Just(Some(Family::V4)), Just(Some(Family::V6))];
    let service = (family, prop::collection::vec(port(), 0..3));
    let limits = (any::<bool>(), prop_oneof![Just(3_usize), Just(5_000)]);
    (spec(), port_ref, service, prop::collection::vec(slice(), 0..4), limits).prop_map(
        |(spec, port, (family, ports), slices, (verify_endpoints, instances))| {
            let ports = ports.into_iter().map(|(name, protocol, number)| ServicePort { name, protocol, number });
            let service = Service { family, selects: false, external_name: false, ports: ports.collect() };
            let limits = Limits { verify_endpoints, instances, ..Limits::default() };
            (Web { namespace: "shop".into(), service, slices }, Spec { port, limits, ..spec })
        },
    )
}

/// What a status says where everything that is desired, but these, is in Consul.
fn status_of(spec: &Spec, resolution: &Resolution, placement: &Placement, missing: usize) -> Status {
    let desired = wants(spec, &resolution.instances, placement);
    let mut mirror = Mirror::default();
    let most = desired.len().saturating_sub(missing);
    converge(&mut mirror, &desired.into_iter().take(most).collect(), &mut |_, _| {});
    let desired = wants(spec, &resolution.instances, placement);
    status(Findings {
        generation: 1,
        service: Some(spec.service.clone()),
        refusal: None,
        resolved: Some(resolution.unresolved.as_ref().map_or(Ok(()), Err)),
        remarks: resolution.remarks.clone(),
        port_in_use: resolution.port_in_use.clone(),
        retains: false,
        paused: false,
        counts: count(&desired, |key| mirror.row(key)),
        in_progress: false,
        left_behind: 0,
        missing: None,
        connected: true,
        problems: resolution.left_out.clone(),
        outage: None,
        mass_unready: None,
    })
}

/// What is contradictory about a status.
fn contradictions(status: &Status) -> Vec<String> {
    let mut found = Vec::new();
    let mut holds = |what: &str, holds: bool| found.extend((!holds).then(|| what.to_owned()));
    let is_true = |kind| status.condition(kind).is_some_and(|condition| condition.truth == Truth::True);
    let counts = status.instances;
    holds("the states do not add up", counts.passing + counts.warning + counts.critical == counts.registered);
    holds("more are registered than desired", counts.registered <= counts.desired);
    let all = [ConditionKind::Accepted, ConditionKind::Resolved, ConditionKind::Registered].into_iter().all(is_true);
    holds("Ready is not all others", is_true(ConditionKind::Ready) == all);
    if is_true(ConditionKind::Registered) {
        holds("Registered, and some are missing", counts.registered == counts.desired);
        holds("Registered, and there are problems", status.problems.is_empty());
    } else if is_true(ConditionKind::Resolved) {
        holds(
            "nothing is wrong, and it is not Registered",
            counts.registered < counts.desired || !status.problems.is_empty(),
        );
    }
    found
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
        let others = foreign(&desired, take);
        let mut mirror = Mirror::of(others.clone());
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
                remarks: Vec::new(),
                unresolved: None,
                hold: Hold::Nothing,
                port_in_use: None,
            };
            let id = |i: &Instance| instance_id(&identity().cluster, &owner(), &spec.service, &i.target(), i.port);
            let rows: Vec<(Str, Arc<Registration>)> =
                mirror.owned(&owner()).map(|(key, row)| (key.id.clone(), row.registration.clone())).collect();
            let left = limit(found, &spec, 0, id, rows.iter().map(|(id, there)| (id, &**there)));
            wants(&spec, &left.instances, &placement)
        };
        let first = limited(&before, &mirror);
        let all = wants(&spec, &before, &placement);
        prop_assert_eq!(first.len(), all.len().min(most));
        let unready = |desired: &Desired| desired.values().filter(|there| there.readiness == Some(lictor::model::health::Health::Critical)).count();
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

    #[test]
    fn no_status_contradicts_its_own_counts(
        (web, spec) in web(),
        placement in placement(),
        missing in 0_usize..2,
    ) {
        let resolution = resolve(&spec, &web, &Before::nothing());
        let status = status_of(&spec, &resolution, &placement, missing);
        prop_assert_eq!(contradictions(&status), Vec::<String>::new(), "{:?} of {:?}", status, resolution);
        let registered: BTreeSet<String> = resolution.instances.iter().map(Instance::called).collect();
        for left in resolution.left_out.iter().filter(|left| left.reason == ProblemReason::PortNotFound) {
            prop_assert!(!registered.contains(&left.instance), "{} is left out, and registered", left.instance);
        }
        let targets: BTreeSet<(Str, u16)> = resolution.instances.iter().map(|i| (i.target(), i.port)).collect();
        prop_assert_eq!(targets.len(), resolution.instances.len(), "each once");
        prop_assert!(resolution.unresolved.is_none() || resolution.instances.is_empty());
    }
}

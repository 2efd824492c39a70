use serde_json::{Value, json};

use super::*;
use crate::model::facts::Attributes;
use crate::model::ids::Str;

fn fact<K: Watched>(object: Value) -> Option<K::Fact> {
    fact_with::<K>(object, &[])
}

/// Gives the fact of an object where these annotations of pods are kept.
fn fact_with<K: Watched>(object: Value, keys: &[PodKey]) -> Option<K::Fact> {
    let object: K = serde_json::from_value(object).unwrap();
    let mut decoder = Decoder::new(Arc::default());
    let key = decoder.key(object.meta());
    decoder.look_for(&[(key.namespace.clone(), keys.iter().cloned().collect())].into());
    object.fact(&key, &mut decoder)
}

fn slice(endpoints: &Value, ports: &Value) -> Slice {
    let object = json!({
        "metadata": { "name": "user-x", "namespace": "shop", "labels": { "kubernetes.io/service-name": "user" } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    });
    fact::<SliceObject>(object).unwrap()
}

const UID: &str = "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0b";

/// An endpoint whose target names no pod is an endpoint all the same, at its address.
#[test]
fn a_pod_is_only_what_may_be_one() {
    let long = "x".repeat(20_000);
    for (kind, name, uid) in [
        (json!("Pod"), json!("p1"), json!(long)),
        (json!("Pod"), json!(long), json!(UID)),
        (json!("Pod"), json!("p1"), json!("u:1")),
        (json!("Pod"), json!("P_1"), json!(UID)),
        (json!("Pod"), json!(""), json!("")),
        (json!("Pod"), json!("p1"), Value::Null),
        (json!("Pod"), Value::Null, json!(UID)),
        (Value::Null, json!("p1"), json!(UID)),
    ] {
        let target = json!({ "kind": kind, "name": name, "uid": uid });
        let endpoints = json!([{ "addresses": ["10.0.0.1"], "targetRef": target }]);
        let found = slice(&endpoints, &Value::Null).endpoints;
        assert_eq!((found.len(), &found[0].pod), (1, &None), "{kind} {name:.40} {uid:.40}");
    }
}

#[test]
fn an_endpoint_is_its_first_address_and_absent_means_ready() {
    let endpoints = json!([
        {
            "addresses": ["10.0.0.1", "10.0.0.2"],
            "nodeName": "n1",
            "targetRef": { "kind": "Pod", "name": "p1", "uid": UID },
            "conditions": { "ready": false, "serving": true, "terminating": true },
        },
        { "addresses": ["10.0.0.3"], "targetRef": { "kind": "VirtualMachine", "name": "v", "uid": "u" } },
        { "addresses": ["10.0.0.4"], "conditions": { "ready": true, "serving": false } },
        { "addresses": ["10.0.0.5"], "conditions": { "serving": false } },
        { "addresses": ["10.0.0.6"], "conditions": { "terminating": true } },
        { "addresses": [] },
        { "addresses": ["not an address", "10.0.0.5"] },
        {},
    ]);
    let endpoint = |last: u8, ready, serving, terminating| Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        ready,
        serving,
        terminating,
        node: None,
        pod: None,
    };
    let pod = PodRef { name: "p1".into(), uid: UID.into() };
    let first = Endpoint { node: Some("n1".into()), pod: Some(pod), ..endpoint(1, false, true, true) };
    let rest = [
        endpoint(3, true, true, false),
        // With publishNotReadyAddresses.
        endpoint(4, true, false, false),
        endpoint(5, true, false, false),
        endpoint(6, true, true, true),
    ];
    assert_eq!(slice(&endpoints, &Value::Null).endpoints, [&[first][..], &rest].concat());
}

#[test]
fn a_port_without_a_number_is_left_out() {
    let ports = json!([{ "name": "http", "port": 80 }, { "port": 81 }, { "name": "any" }, { "port": 0 }, { "port": 65536 }, { "port": null }]);
    let named = |name: &str, number| SlicePort { name: name.into(), protocol: Protocol::Tcp, number };
    assert_eq!(slice(&Value::Null, &ports).ports, [named("http", 80), named("", 81)]);
}

#[test]
fn a_port_is_of_tcp_where_nothing_is_said() {
    let ports = json!([
        { "name": "a", "port": 1 },
        { "name": "b", "port": 2, "protocol": "TCP" },
        { "name": "c", "port": 3, "protocol": "UDP" },
        { "name": "d", "port": 4, "protocol": "SCTP" },
        { "name": "e", "port": 5, "protocol": "QUIC" },
    ]);
    let found = slice(&Value::Null, &ports).ports;
    let found: Vec<(u16, Protocol)> = found.iter().map(|port| (port.number, port.protocol)).collect();
    // Of a protocol that this version does not know, nobody can tell who would be served.
    assert_eq!(found, [(1, Protocol::Tcp), (2, Protocol::Tcp), (3, Protocol::Udp), (4, Protocol::Sctp)]);
}

#[test]
fn a_slice_says_whose_it_is_and_of_what_family_or_is_none_of_ours() {
    let object =
        |labels: Value, family: &str| json!({ "metadata": { "name": "s", "labels": labels }, "addressType": family });
    let labels = json!({ "kubernetes.io/service-name": "user" });
    for (name, family) in [("IPv4", Family::V4), ("IPv6", Family::V6), ("FQDN", Family::Fqdn)] {
        let slice = fact::<SliceObject>(object(labels.clone(), name)).unwrap();
        assert_eq!((slice.family, slice.service), (family, "user".into()));
    }
    assert_eq!(fact::<SliceObject>(object(labels, "IPv7")), None);
    assert_eq!(fact::<SliceObject>(object(json!({ "app": "user" }), "IPv4")), None);
    assert_eq!(fact::<SliceObject>(object(Value::Null, "IPv4")), None);
}

#[test]
fn a_service_is_its_primary_family_type_and_ports() {
    let service = fact::<ServiceObject>(json!({
        "metadata": { "name": "user" },
        "spec": { "ipFamilies": ["IPv6", "IPv4"], "type": "ClusterIP", "selector": { "app": "user" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }, { "port": 81 }] },
    }));
    let port = |name: &str, number| ServicePort { name: name.into(), protocol: Protocol::Tcp, number };
    let expected = Service {
        family: Some(Family::V6),
        selects: true,
        external_name: false,
        ports: vec![port("http", 80), port("", 81)],
    };
    assert_eq!(service, Some(expected));
    let external = fact::<ServiceObject>(
        json!({ "metadata": {}, "spec": { "type": "ExternalName", "externalName": "example.com", "selector": {} } }),
    );
    assert_eq!(external, Some(Service { family: None, selects: false, external_name: true, ports: Vec::new() }));
}

#[test]
fn a_node_is_its_first_internal_address() {
    let addresses = json!([
        { "type": "Hostname", "address": "n1" },
        { "type": "ExternalIP", "address": "203.0.113.1" },
        { "type": "InternalIP", "address": "192.0.2.1" },
        { "type": "InternalIP", "address": "2001:db8::1" },
    ]);
    let node = fact::<NodeObject>(json!({ "metadata": { "name": "n1" }, "status": { "addresses": addresses } }));
    assert_eq!(node, Some(Node { address: Some(IpAddr::from([192, 0, 2, 1])), zone: None, region: None }));
    assert_eq!(fact::<NodeObject>(json!({ "metadata": {} })), Some(Node { address: None, zone: None, region: None }));
}

#[test]
fn a_node_is_in_a_zone_and_a_region_by_its_labels() {
    let labels = json!({
        "topology.kubernetes.io/zone": "eu-1a",
        "topology.kubernetes.io/region": "eu-1",
        "failure-domain.beta.kubernetes.io/zone": "old",
    });
    let node = fact::<NodeObject>(json!({ "metadata": { "name": "n1", "labels": labels } })).unwrap();
    assert_eq!(node, Node { address: None, zone: Some("eu-1a".into()), region: Some("eu-1".into()) });
}

#[expect(clippy::needless_pass_by_value, reason = "written in place as json!")]
fn pod(spec: Value, status: Value) -> Pod {
    fact::<PodObject>(json!({ "metadata": { "name": "p1", "uid": "u1" }, "spec": spec, "status": status })).unwrap()
}

#[test]
fn a_pod_is_what_an_instance_needs_of_it() {
    let object = json!({
        "metadata": { "name": "p1", "namespace": "shop", "uid": "u1", "labels": { "app": "user", "empty": "" } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "2001:db8::1" }],
            "conditions": [{ "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "True" }],
        },
    });
    let expected = Pod {
        uid: "u1".into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ready: true,
        leaving: false,
        node: Some("n1".into()),
        ports: vec![ContainerPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            number: 8080,
            of: ContainerKind::Own,
        }],
        labels: [("app".into(), "user".into()), ("empty".into(), "".into())].into_iter().collect(),
        annotations: Attributes::default(),
    };
    let keys = ["app", "empty"].map(|key| PodKey::Label(key.into()));
    assert_eq!(fact_with::<PodObject>(object, &keys), Some(expected));
    let nothing = Pod {
        uid: "".into(),
        addresses: Vec::new(),
        ready: false,
        leaving: false,
        node: None,
        ports: Vec::new(),
        labels: Attributes::default(),
        annotations: Attributes::default(),
    };
    assert_eq!(fact::<PodObject>(json!({ "metadata": {} })), Some(nothing), "every field may be absent");
}

#[test]
fn a_pod_leaves_when_it_has_ended_or_is_being_deleted() {
    let phases = [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true), ("Unknown", false)];
    for (phase, leaving) in phases {
        assert_eq!(pod(Value::Null, json!({ "phase": phase })).leaving, leaving, "{phase}");
    }
    let deleted = json!({
        "metadata": { "name": "p1", "deletionTimestamp": "2026-01-01T00:00:00Z" },
        "status": { "phase": "Running" },
    });
    assert!(fact::<PodObject>(deleted).unwrap().leaving);
}

#[test]
fn a_pod_is_ready_only_if_its_condition_says_so() {
    let table = [
        (json!([{ "type": "Ready", "status": "True" }]), true),
        (json!([{ "type": "Ready", "status": "False" }]), false),
        (json!([{ "type": "Ready", "status": "Unknown" }]), false),
        (json!([{ "type": "ContainersReady", "status": "True" }]), false),
        (json!([{ "type": "Ready" }]), false),
        (json!([]), false),
        (Value::Null, false),
    ];
    for (conditions, ready) in table {
        assert_eq!(pod(Value::Null, json!({ "conditions": conditions })).ready, ready, "{conditions}");
    }
}

#[test]
fn a_pods_addresses_are_its_ips_and_the_single_one_where_there_is_no_list() {
    let table = [
        (json!({ "podIP": "10.0.0.1" }), &["10.0.0.1"][..]),
        (json!({ "podIP": "10.0.0.1", "podIPs": [] }), &["10.0.0.1"]),
        (
            json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "2001:db8::1" }, { "ip": "10.0.0.1" }] }),
            &["2001:db8::1", "10.0.0.1"],
        ),
        (json!({ "podIPs": [{ "ip": "not an address" }, { "ip": "10.0.0.1" }, {}] }), &["10.0.0.1"]),
        (json!({ "podIP": "" }), &[]),
        (json!({}), &[]),
    ];
    for (status, expected) in table {
        let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(pod(Value::Null, status.clone()).addresses, expected, "{status}");
    }
}

#[test]
fn a_pods_ports_are_those_of_containers_that_stay() {
    let ports = |name: &str, ports: Value| json!({ "name": name, "ports": ports });
    let spec = json!({
        "containers": [
            ports("app", json!([{ "name": "http", "containerPort": 8080 }, { "containerPort": 8081 }])),
            ports("other", json!([{ "containerPort": 0 }, { "containerPort": 65536 }, { "containerPort": 8082 }, { "name": "none" }])),
            ports("istio-proxy", json!([{ "name": "http-envoy-prom", "containerPort": 15090 }])),
            { "name": "without" },
        ],
        "initContainers": [
            { "name": "sidecar", "restartPolicy": "Always", "ports": [{ "name": "admin", "containerPort": 9901 }] },
            { "name": "setup", "ports": [{ "name": "gone", "containerPort": 1 }] },
            { "name": "never", "restartPolicy": "Never", "ports": [{ "name": "gone", "containerPort": 2 }] },
        ],
    });
    let object = |annotations: Value| json!({ "metadata": { "name": "p1", "annotations": annotations }, "spec": spec });
    let ports = |annotations| fact::<PodObject>(object(annotations)).unwrap().ports;
    let expected = |app| {
        let all = [
            ("http", 8080, app),
            ("", 8081, app),
            ("", 8082, ContainerKind::Own),
            ("http-envoy-prom", 15090, ContainerKind::Beside),
            ("admin", 9901, ContainerKind::Beside),
        ];
        all.map(|(name, number, of)| ContainerPort { name: name.into(), protocol: Protocol::Tcp, number, of })
    };
    assert_eq!(ports(Value::Null), expected(ContainerKind::Own));
    assert_eq!(ports(json!({ "kubectl.kubernetes.io/default-container": "app" })), expected(ContainerKind::Main));
}

#[test]
fn of_a_pod_only_the_labels_and_annotations_that_are_wanted_are_kept() {
    let pairs = json!({ "team": "blue", "huge": "x" });
    let object = json!({ "metadata": { "name": "p1", "labels": pairs, "annotations": pairs } });
    let kept = |wanted: &[PodKey]| fact_with::<PodObject>(object.clone(), wanted).unwrap();
    let keys = |of: fn(Str) -> PodKey| ["team", "tier"].map(|key| of(key.into()));
    let (labels, annotations) = (kept(&keys(PodKey::Label)), kept(&keys(PodKey::Annotation)));
    for (found, other) in [(&labels.labels, &labels.annotations), (&annotations.annotations, &annotations.labels)] {
        assert_eq!(*other, Attributes::default());
        assert_eq!(found.get("team").map(|value| &**value), Some("blue"));
        assert_eq!((found.get("tier"), found.knows("tier")), (None, true), "what is not there was looked for");
        assert_eq!((found.get("huge"), found.knows("huge")), (None, false));
    }
    assert_eq!(kept(&[]).labels, Attributes::default());
}

#[test]
fn one_that_is_no_longer_of_interest_is_as_good_as_deleted() {
    let without_label = json!({ "metadata": { "name": "user", "namespace": "shop" }, "addressType": "IPv4" });
    let object: SliceObject = serde_json::from_value(without_label).unwrap();
    let mut decoder = Decoder::new(Arc::default());
    let gone = Change::Slice(Step::Delete(ObjectKey::new("shop", "user")));
    assert_eq!(decoder.decode(watcher::Event::Apply(object.clone())), Some(gone));
    assert_eq!(decoder.decode(watcher::Event::InitApply(object)), None, "a list that lacks it will resync it");
}

#[test]
fn strings_that_repeat_are_kept_once() {
    let object: SliceObject = serde_json::from_value(json!({
        "metadata": { "name": "s", "labels": { "kubernetes.io/service-name": "user" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.1"], "nodeName": "n1" }, { "addresses": ["10.0.0.2"], "nodeName": "n1" }],
    }))
    .unwrap();
    let slice = object.fact(&ObjectKey::new("shop", "s"), &mut Decoder::new(Arc::default())).unwrap();
    let node = |i: usize| -> &Str { slice.endpoints[i].node.as_ref().unwrap() };
    assert!(Arc::ptr_eq(node(0), node(1)));
}

use serde_json::json;

use super::*;
use crate::model::names::Str;

fn fact<K: Watched>(object: Value) -> Option<K::Fact> {
    let object: K = serde_json::from_value(object).unwrap();
    let mut decoder = Decoder::new(Arc::default());
    let key = decoder.key(object.meta());
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

#[test]
fn an_endpoint_is_its_first_address_and_absent_means_ready() {
    let endpoints = json!([
        {
            "addresses": ["10.0.0.1", "10.0.0.2"],
            "nodeName": "n1",
            "targetRef": { "kind": "Pod", "name": "p1", "uid": "u1" },
            "conditions": { "ready": false, "serving": true, "terminating": true },
        },
        { "addresses": ["10.0.0.3"], "targetRef": { "kind": "VirtualMachine", "name": "v", "uid": "u" } },
        { "addresses": ["10.0.0.4"], "conditions": { "ready": true, "serving": false } },
        { "addresses": [] },
        { "addresses": ["not an address", "10.0.0.5"] },
        {},
    ]);
    let endpoint = |last: u8, ready, terminating| Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        ready,
        terminating,
        node: None,
        pod: None,
    };
    let pod = PodRef { name: "p1".into(), uid: "u1".into() };
    let first = Endpoint { node: Some("n1".into()), pod: Some(pod), ..endpoint(1, false, true) };
    assert_eq!(slice(&endpoints, &Value::Null).endpoints, [first, endpoint(3, true, false), endpoint(4, false, false)]);
}

#[test]
fn a_port_without_a_number_is_left_out() {
    let ports = json!([{ "name": "http", "port": 80 }, { "port": 81 }, { "name": "any" }, { "port": 0 }, { "port": 65536 }, { "port": null }]);
    let named = |name: &str, number| SlicePort { name: name.into(), number };
    assert_eq!(slice(&Value::Null, &ports).ports, [named("http", 80), named("", 81)]);
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
        "spec": { "ipFamilies": ["IPv6", "IPv4"], "type": "ClusterIP", "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }, { "port": 81 }] },
    }));
    let port = |name: &str, number| ServicePort { name: name.into(), number };
    let expected =
        Service { family: Some(Family::V6), external_name: false, ports: vec![port("http", 80), port("", 81)] };
    assert_eq!(service, Some(expected));
    let external = fact::<ServiceObject>(
        json!({ "metadata": {}, "spec": { "type": "ExternalName", "externalName": "example.com" } }),
    );
    assert_eq!(external, Some(Service { family: None, external_name: true, ports: Vec::new() }));
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
    assert_eq!(node, Some(Node { address: Some(IpAddr::from([192, 0, 2, 1])) }));
    assert_eq!(fact::<NodeObject>(json!({ "metadata": {} })), Some(Node { address: None }));
}

#[test]
fn one_that_is_no_longer_of_interest_is_as_good_as_deleted() {
    let without_label = json!({ "metadata": { "name": "user", "namespace": "shop" }, "addressType": "IPv4" });
    let object: SliceObject = serde_json::from_value(without_label).unwrap();
    let mut decoder = Decoder::new(Arc::default());
    let gone = Change::Slice(Step::Delete(ObjectKey::new("shop", "user")));
    assert_eq!(decoder.decode(watcher::Event::Apply(object.clone())), Some(gone));
    assert_eq!(decoder.decode(watcher::Event::InitApply(object)), None, "a list that lacks it will sweep it");
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

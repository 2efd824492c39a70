use serde_json::json;

use super::*;
use crate::model::check::{Probe, Tls};

fn read_with(rules: &Rules, spec: &Value) -> SeenResource {
    let object = json!({
        "metadata": { "name": "user", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "7" },
        "spec": spec,
    });
    resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), rules)
}

fn read(spec: &Value) -> Result<Arc<Spec>, Refusal> {
    let allow_static = vec!["198.51.100.0/24".parse().unwrap(), "fe80::/10".parse().unwrap()];
    let rules = Rules { class: None, allow_static, runs_checks: true };
    read_with(&rules, spec).resource.spec
}

/// A spec from a Service with some more fields.
fn with(more: Value) -> Result<Arc<Spec>, Refusal> {
    let mut spec = json!({ "source": { "service": { "name": "user" } } });
    let Value::Object(more) = more else { panic!("fields") };
    spec.as_object_mut().unwrap().extend(more);
    read(&spec)
}

#[test]
fn the_smallest_spec_is_read_with_careful_defaults() {
    let spec = with(json!({})).unwrap();
    let expected = Spec {
        service: "user".into(),
        source: Source::Service { name: "user".into() },
        port: None,
        tags: Arc::from([]),
        meta: BTreeMap::new(),
        weights: Weights { passing: 1, warning: 1 },
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        readiness: Readiness::Mirror,
        checks: Vec::new(),
    };
    assert_eq!(*spec, expected);
}

#[test]
fn every_field_is_read() {
    let spec = with(json!({
        "name": "user_service",
        "port": "grpc",
        "tags": ["b", "a"],
        "meta": { "version": "1" },
        "weights": { "passing": 10, "warning": 0 },
        "taggedAddresses": { "wan": { "address": "198.51.100.1", "port": 443 } },
        "enableTagOverride": true,
        "readiness": "Deregister",
        "deletionPolicy": "Retain",
        "class": "",
    }));
    let wan = TaggedAddress { address: "198.51.100.1".into(), port: 443 };
    let expected = Spec {
        service: "user_service".into(),
        source: Source::Service { name: "user".into() },
        port: Some(PortRef::Name("grpc".into())),
        tags: Arc::from(["b".into(), "a".into()]),
        meta: BTreeMap::from([("version".into(), "1".into())]),
        weights: Weights { passing: 10, warning: 0 },
        tagged_addresses: Arc::new(BTreeMap::from([("wan".into(), wan)])),
        enable_tag_override: true,
        readiness: Readiness::Deregister,
        checks: Vec::new(),
    };
    assert_eq!(*spec.unwrap(), expected);
    assert_eq!(with(json!({ "port": 80 })).unwrap().port, Some(PortRef::Number(80)));
}

#[test]
fn what_cannot_be_acted_on_is_refused_with_its_reason() {
    let tagged = |address: &str| json!({ "taggedAddresses": { "wan": { "address": address, "port": 443 } } });
    let many: BTreeMap<String, &str> = (0..56).map(|i| (format!("k{i}"), "")).collect();
    let table = [
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "interval": "1ms" }] })), "Invalid", "1s or more"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "timeout": "1m" }] })), "Invalid", "at most the interval"),
        (with(json!({ "checks": [{ "name": "readiness", "tcp": {} }] })), "Invalid", "choose another"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "udp": {} }] })), "Invalid", "exactly one"),
        (with(json!({ "tags": ["a", "v-${pod.name}"] })), "NotSupported", "v-${pod.name}"),
        (with(json!({ "meta": { "v": "${pod.name}" } })), "NotSupported", "spec.meta"),
        (read(&json!({ "source": { "pods": { "matchLabels": { "a": "b" } } } })), "NotSupported", "spec.source.pods"),
        (
            read(&json!({ "source": { "static": [{ "address": "198.51.100.1", "port": 1 }] } })),
            "NotSupported",
            "spec.source.static",
        ),
        (read(&json!({ "source": {} })), "Invalid", "exactly one"),
        (read(&json!({ "source": { "service": { "name": "a" }, "pods": {} } })), "Invalid", "exactly one"),
        (read(&json!({ "source": 7 })), "Undecodable", "Source"),
        (with(json!({ "readiness": "Guess" })), "Undecodable", "Guess"),
        (with(json!({ "name": "Consul" })), "Invalid", "Consul"),
        (with(json!({ "name": "a\n" })), "Invalid", "control"),
        (with(json!({ "name": "a " })), "Invalid", "space"),
        (with(json!({ "name": "ä".repeat(128) })), "Invalid", "256 bytes"),
        (with(json!({ "port": 0 })), "Invalid", "spec.port"),
        (with(json!({ "weights": { "passing": 0 } })), "Invalid", "spec.weights.passing"),
        (with(json!({ "meta": { "v": "ä".repeat(257) } })), "Invalid", "514 bytes"),
        (with(json!({ "meta": many })), "Invalid", "room for 53"),
        (with(json!({ "meta": { "consul-x": "" } })), "Invalid", "consul-x"),
        (with(json!({ "meta": { "lictor-x": "" } })), "Invalid", "lictor-x"),
        (with(json!({ "meta": { "k8s-pod": "" } })), "Invalid", "k8s-pod"),
        (
            with(json!({ "taggedAddresses": { "consul-virtual": { "address": "198.51.100.1", "port": 1 } } })),
            "Invalid",
            "consul-",
        ),
        (with(tagged("example.com")), "Invalid", "not an IP address"),
        (with(tagged("203.0.113.1")), "NotAllowed", "--allow-static"),
        (with(tagged("fe80::1")), "NotAllowed", "link-local"),
        (with(tagged("::ffff:127.0.0.1")), "NotAllowed", "loopback"),
        (with(tagged("0.0.0.0")), "NotAllowed", "unspecified"),
        (with(tagged("ff02::1")), "NotAllowed", "multicast"),
    ];
    for (result, reason, part) in table {
        let refusal = result.expect_err(part);
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(part), "{:?} does not say {part:?}", refusal.message);
    }
}

#[test]
fn a_resource_of_another_class_is_not_judged() {
    let rules = |class: Option<&str>| Rules { class: class.map(ToOwned::to_owned), ..Rules::default() };
    let table = [
        (None, json!({}), true),
        (Some(""), json!({}), true),
        (None, json!({ "class": "" }), true),
        (None, json!({ "class": "b" }), false),
        (Some("b"), json!({}), false),
        (Some("b"), json!({ "class": "b" }), true),
        (Some("b"), json!({ "class": "b", "source": "cannot be read" }), true),
        (None, json!({ "class": "b", "source": "cannot be read" }), false),
    ];
    for (class, spec, ours) in table {
        let resource = read_with(&rules(class), &spec).resource;
        assert_eq!(resource.ours, ours, "{class:?} {spec}");
        assert_eq!(
            &*resource.finalizer,
            if class == Some("b") { "lictor.dev/deregister-b" } else { "lictor.dev/deregister" }
        );
        assert!(ours || resource.spec.is_err(), "nothing is done by a spec that is not ours");
    }
}

#[test]
fn the_deletion_policy_is_read_whatever_else_is_wrong() {
    let table = [
        (json!({}), Some(DeletionPolicy::Deregister)),
        (json!({ "deletionPolicy": "Deregister" }), Some(DeletionPolicy::Deregister)),
        (json!({ "deletionPolicy": "Retain", "source": 7 }), Some(DeletionPolicy::Retain)),
        (json!({ "deletionPolicy": "Later" }), None),
    ];
    for (spec, expected) in table {
        assert_eq!(read_with(&Rules::default(), &spec).resource.deletion, expected, "{spec}");
    }
}

#[test]
fn checks_are_read_and_refused_where_nothing_runs_them() {
    let checks = json!({ "source": { "service": { "name": "user" } }, "checks": [
        { "name": "http", "http": { "path": "/health", "scheme": "https", "tlsServerName": "user.shop" }, "port": "admin",
          "interval": "15s", "failuresBeforeCritical": 2 },
        { "name": "grpc", "grpc": { "service": "shop.User", "useTLS": false }, "interval": "1m30s", "timeout": "500ms" },
    ] });
    let spec = read(&checks).unwrap();
    let [http, grpc] = &spec.checks[..] else { panic!("two checks") };
    assert_eq!((&http.port, &*http.check.timeout), (&Some(PortRef::Name("admin".into())), "10000ms"));
    let tls = Some(Tls { skip_verify: false, server_name: Some("user.shop".into()) });
    assert!(matches!(&http.check.probe, Probe::Http { path, tls: t, .. } if &**path == "/health" && *t == tls));
    assert_eq!(grpc.check.probe, Probe::Grpc { service: "shop.User".into(), tls: None });
    assert_eq!((&*grpc.check.interval, &*grpc.check.timeout), ("1m30s", "500ms"));
    let nowhere = read_with(&Rules::default(), &checks).resource.spec.unwrap_err();
    assert_eq!(nowhere.reason, "NotSupported");
}

#[test]
fn metadata_is_read_and_a_status_that_cannot_be_read_is_as_none() {
    let object = json!({
        "metadata": {
            "uid": "u",
            "generation": 3,
            "resourceVersion": "7",
            "finalizers": ["b", "a"],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "status": "nonsense",
    });
    let seen = resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), &Rules::default());
    let Resource { key, uid, generation, resource_version, finalizers, deleting, spec, status, .. } = seen.resource;
    assert_eq!((key.to_string().as_str(), &*uid, generation, &*resource_version), ("shop/user", "u", 3, "7"));
    assert_eq!((finalizers, deleting), (vec!["b".into(), "a".into()], true));
    assert_eq!(spec.unwrap_err().reason, "Undecodable");
    assert_eq!(*status, crate::model::status::Status::default());
}

use serde_json::json;

use super::*;
use crate::model::check::{Probe, Tls};
use crate::model::registration::TaggedAddress;
use crate::model::resource::PerAddress;
use crate::model::selector::{Requirement, Selector};

fn read_with(rules: &Rules, spec: &Value) -> SeenResource {
    let object = json!({
        "metadata": { "name": "user", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "7" },
        "spec": spec,
    });
    resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), rules)
}

fn read(spec: &Value) -> Result<Arc<Spec>, Refusal> {
    let rules = Rules { class: None, checks: ChecksRunBy::Agent, limits: Limits::default() };
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
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights { passing: 1, warning: 1 },
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        dual_stack: false,
        readiness: Readiness::Mirror,
        checks: Vec::new(),
        limits: Limits::default(),
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
        tags: vec![Template::Plain("b".into()), Template::Plain("a".into())],
        meta: BTreeMap::from([("version".into(), Template::Plain("1".into()))]),
        weights: Weights { passing: 10, warning: 0 },
        tagged_addresses: Arc::new(BTreeMap::from([("wan".into(), wan)])),
        enable_tag_override: true,
        dual_stack: false,
        readiness: Readiness::Deregister,
        checks: Vec::new(),
        limits: Limits::default(),
    };
    assert_eq!(*spec.unwrap(), expected);
    assert_eq!(with(json!({ "port": 80 })).unwrap().port, Some(PortRef::Number(80)));
}

#[test]
fn what_cannot_be_acted_on_is_refused_with_its_reason() {
    let tagged = |address: &str| json!({ "taggedAddresses": { "wan": { "address": address, "port": 443 } } });
    let many: BTreeMap<String, &str> = (0..56).map(|i| (format!("k{i}"), "")).collect();
    let keys = |many: usize| (0..many).map(|i| format!("${{pod.annotations['k{i}']}}")).collect::<Vec<_>>().concat();
    assert!(with(json!({ "tags": [keys(64), keys(64)] })).is_ok(), "each key counts once");
    let table = [
        (with(json!({ "tags": [keys(64), "${pod.labels['k']}"] })), "TooLarge", "name 65 labels and annotations"),
        (with(json!({ "tags": ["x".repeat(600_000)] })), "TooLarge", "at most 524288"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "interval": "1ms" }] })), "Invalid", "1s or more"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "timeout": "1m" }] })), "Invalid", "at most the interval"),
        (with(json!({ "checks": [{ "name": "readiness", "tcp": {} }] })), "Invalid", "choose another"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {}, "udp": {} }] })), "Invalid", "exactly one"),
        (with(json!({ "checks": [{ "name": "a", "http": { "path": "@b:80/" } }] })), "Invalid", "begin with '/'"),
        (with(json!({ "tags": ["a", "v-${pod.ip}"] })), "InvalidTemplate", "pod.ip"),
        (with(json!({ "tags": ["${pod.name"] })), "InvalidTemplate", "spec.tags"),
        (with(json!({ "meta": { "v": "${pod.name" } })), "InvalidTemplate", "spec.meta"),
        (with(json!({ "namespace": "eng" })), "NotSupported", "spec.namespace \"eng\""),
        (with(json!({ "partition": "eng" })), "NotSupported", "Enterprise"),
        (read(&json!({ "source": {} })), "Invalid", "exactly one"),
        (read(&json!({ "source": { "service": { "name": "a" }, "pods": {} } })), "Invalid", "exactly one"),
        (read(&json!({ "source": 7 })), "Undecodable", "Source"),
        (with(json!({ "readiness": "Guess" })), "Undecodable", "Guess"),
        (with(json!({ "name": "Consul" })), "Invalid", "Consul"),
        (with(json!({ "name": "a\n" })), "Invalid", "printable ASCII"),
        (with(json!({ "name": "a " })), "Invalid", "space"),
        (with(json!({ "name": "a".repeat(256) })), "Invalid", "256 bytes"),
        (with(json!({ "name": "pay_serv\u{130}ce" })), "Invalid", "printable ASCII"),
        (
            with(
                json!({ "checks": [{ "name": "a", "http": { "headers": [{ "name": "x-Consul-Token", "value": "t" }] } }] }),
            ),
            "Invalid",
            "x-Consul-Token",
        ),
        (with(json!({ "port": 0 })), "Invalid", "spec.port"),
        (with(json!({ "weights": { "passing": 0 } })), "Invalid", "spec.weights.passing"),
        (with(json!({ "meta": { "v": "ä".repeat(257) } })), "Invalid", "514 bytes"),
        (with(json!({ "meta": many })), "Invalid", "room for 53"),
        (with(json!({ "meta": { "consul-x": "" } })), "Invalid", "consul-x"),
        (with(json!({ "meta": { "lictor-x": "" } })), "Invalid", "lictor-x"),
        (with(json!({ "meta": { "k8s-pod": "" } })), "Invalid", "k8s-pod"),
        (with(json!({ "meta": { "Managed-By": "" } })), "Invalid", "Managed-By"),
        (
            with(json!({ "taggedAddresses": { "consul-virtual": { "address": "198.51.100.1", "port": 1 } } })),
            "Invalid",
            "consul-",
        ),
        (
            with(json!({ "taggedAddresses": { "wan_ipv6": { "address": "198.51.100.1", "port": 1 } } })),
            "Invalid",
            "no IPv6 address",
        ),
        (with(tagged("example.com")), "Invalid", "spec.taggedAddresses.wan: \"example.com\" is not an IP address"),
        (with(tagged("127.0.0.1")), "NotAllowed", "loopback"),
    ];
    for (result, reason, part) in table {
        is_refused(result, reason, part);
    }
}

fn is_refused(result: Result<Arc<Spec>, Refusal>, reason: &str, part: &str) {
    let refusal = result.expect_err(part);
    assert_eq!(refusal.reason, reason, "{}", refusal.message);
    assert!(refusal.message.contains(part), "{:?} does not say {part:?}", refusal.message);
}

#[expect(clippy::needless_pass_by_value, reason = "written in place as json!")]
fn pods(selector: Value) -> Result<Source, Refusal> {
    read(&json!({ "source": { "pods": selector } })).map(|spec| spec.source.clone())
}

#[test]
fn a_selector_is_read_as_kubernetes_reads_it() {
    let values = |list: &[&str]| list.iter().map(|value| Str::from(*value)).collect();
    let selector = pods(json!({
        "matchLabels": { "app": "user" },
        "matchExpressions": [
            { "key": "tier", "operator": "In", "values": ["a", "b"] },
            { "key": "track", "operator": "NotIn", "values": ["canary"] },
            { "key": "version", "operator": "Exists" },
            { "key": "legacy", "operator": "DoesNotExist", "values": [] },
        ],
    }));
    let expected = Selector(vec![
        Requirement::In("app".into(), values(&["user"])),
        Requirement::In("tier".into(), values(&["a", "b"])),
        Requirement::NotIn("track".into(), values(&["canary"])),
        Requirement::Exists("version".into()),
        Requirement::DoesNotExist("legacy".into()),
    ]);
    assert_eq!(selector, Ok(Source::Pods { selector: expected }));
}

#[test]
fn a_selector_that_says_nothing_or_too_much_is_refused() {
    for empty in [json!({}), json!({ "matchLabels": {} }), json!({ "matchExpressions": [] })] {
        let refusal = pods(empty).unwrap_err();
        assert!(refusal.reason == "Invalid" && refusal.message.contains("every pod"), "{refusal:?}");
    }
    for (operator, values) in [
        ("In", json!([])),
        ("NotIn", Value::Null),
        ("Exists", json!(["a"])),
        ("DoesNotExist", json!(["a"])),
        ("in", json!(["a"])),
        ("Gt", json!(["1"])),
    ] {
        let expression = json!({ "key": "tier", "operator": operator, "values": values });
        let refusal = pods(json!({ "matchExpressions": [expression] })).unwrap_err();
        assert!(refusal.reason == "Invalid" && refusal.message.contains(operator), "{refusal:?}");
    }
}

/// A spec from these static addresses.
fn fixed(addresses: &Value) -> Result<Arc<Spec>, Refusal> {
    read(&json!({ "source": { "static": addresses } }))
}

#[test]
fn static_addresses_are_read_with_what_is_their_own() {
    let spec = fixed(&json!([
        { "address": "198.51.100.1", "port": 80, "tags": ["old", "${ports['a']}"], "meta": { "rack": "7" } },
        { "address": "198.51.100.1", "port": 81 },
        { "address": "::ffff:198.51.100.2", "port": 80 },
    ]));
    let own = PerAddress {
        tags: vec![Template::Plain("old".into()), Template::parse("${ports['a']}").unwrap()],
        meta: [("rack".into(), Template::Plain("7".into()))].into(),
    };
    let at = |last: u8, port, own: PerAddress| StaticAddress {
        address: [198, 51, 100, last].into(),
        port,
        own: Arc::new(own),
    };
    let addresses = vec![at(1, 80, own), at(1, 81, PerAddress::default()), at(2, 80, PerAddress::default())];
    assert_eq!(spec.unwrap().source, Source::Static { addresses });
}

#[test]
fn static_addresses_that_are_wrong_are_refused() {
    let one = |more: Value| {
        let mut address = json!({ "address": "198.51.100.1", "port": 80 });
        let Value::Object(more) = more else { panic!("fields") };
        address.as_object_mut().unwrap().extend(more);
        fixed(&json!([address]))
    };
    let twice = json!([{ "address": "198.51.100.1", "port": 80 }, { "address": "::ffff:198.51.100.1", "port": 80 }]);
    let table = [
        (one(json!({ "address": "vm.example.com" })), "Invalid", "not an IP address"),
        (one(json!({ "port": 0 })), "Invalid", "1 to 65535"),
        (one(json!({ "port": 65536 })), "Undecodable", "65536"),
        (fixed(&twice), "Invalid", "is given twice"),
        (one(json!({ "tags": ["${"] })), "InvalidTemplate", "spec.source.static"),
        (one(json!({ "meta": { "v": "${pod}" } })), "InvalidTemplate", "pod"),
        (one(json!({ "meta": { "lictor-owner": "me" } })), "Invalid", "lictor-owner"),
        (one(json!({ "meta": { "v": "x".repeat(513) } })), "Invalid", "513 bytes"),
        (one(json!({ "address": "169.254.1.1" })), "NotAllowed", "link-local"),
    ];
    for (result, reason, part) in table {
        is_refused(result, reason, part);
    }
}

#[test]
fn a_static_address_has_room_for_its_pairs_beside_those_of_all() {
    let pairs = |prefix: &str, count: usize| -> BTreeMap<String, &str> {
        (0..count).map(|n| (format!("{prefix}{n}"), "")).collect()
    };
    let spec = |own: BTreeMap<String, &str>| {
        let address = json!({ "address": "198.51.100.1", "port": 80, "meta": own });
        read(&json!({ "source": { "static": [address] }, "meta": pairs("k", 50) }))
    };
    assert!(spec(pairs("own", 3)).is_ok() && spec(pairs("k", 8)).is_ok(), "a pair that takes the place of another");
    is_refused(spec(pairs("own", 4)), "Invalid", "198.51.100.1 has 54 meta pairs");
}

#[test]
fn no_range_of_the_administrators_allows_what_is_nobodys_or_a_clouds() {
    let rules = Rules::default();
    let read = |address: &str| {
        let wan = json!({ "address": address, "port": 443 });
        let source = json!({ "static": [{ "address": address, "port": 443 }] });
        [
            read_with(&rules, &json!({ "source": source })).resource.spec,
            read_with(&rules, &json!({ "source": { "service": { "name": "a" } }, "taggedAddresses": { "wan": wan } }))
                .resource
                .spec,
        ]
    };
    for (address, part) in [
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "others cannot reach it"),
        ("fd00:ec2::254", "metadata service"),
        ("fd20:ce::254", "metadata service"),
        ("100.100.100.200", "metadata service"),
        ("168.63.129.16", "metadata service"),
        ("192.0.0.192", "metadata service"),
    ] {
        for spec in read(address) {
            is_refused(spec, "NotAllowed", part);
        }
    }
    for address in ["10.0.0.1", "203.0.113.7", "2001:db8::1", "100.100.100.201"] {
        assert!(read(address).iter().all(Result::is_ok), "{address}");
    }
}

#[test]
fn the_default_partition_and_namespace_are_the_ones_that_there_are() {
    let spec = with(json!({ "namespace": "default", "partition": "default" }));
    assert_eq!(spec, with(json!({})));
}

#[test]
fn values_are_read_where_they_are_meant_and_judged_when_they_are_known() {
    let long = format!("${{pod.name}}{}", "x".repeat(600));
    let spec =
        with(json!({ "tags": ["v${pod.labels['version']}", "$${plain}"], "meta": { "v": long }, "dualStack": true }));
    let spec = spec.unwrap();
    let [valued, plain] = &spec.tags[..] else { panic!("two tags") };
    assert!(matches!(valued, Template::Parts(_)) && *plain == Template::Plain("${plain}".into()));
    assert!(matches!(&spec.meta["v"], Template::Parts(_)));
    assert!(spec.dual_stack);
}

#[test]
fn what_the_administrator_allows_is_part_of_the_spec() {
    let limits = Limits {
        instances: 7,
        of_namespace: Some(9),
        shares_name: true,
        verify_endpoints: true,
        endpoint_networks: ["10.0.0.0/8".parse().unwrap()].into(),
        only_keeps: false,
    };
    let rules = Rules { limits: limits.clone(), ..Rules::default() };
    let spec = read_with(&rules, &json!({ "source": { "service": { "name": "user" } } })).resource.spec;
    assert_eq!(spec.unwrap().limits, limits);
}

#[test]
fn a_resource_is_paused_by_its_annotation_unless_that_says_false() {
    let table = [
        (json!({}), false),
        (json!({ "lictor.dev/paused": "true" }), true),
        (json!({ "lictor.dev/paused": "" }), true),
        (json!({ "lictor.dev/paused": "no" }), true),
        (json!({ "lictor.dev/paused": "false" }), false),
        (json!({ "lictor.dev/pause": "true" }), false),
    ];
    for (annotations, paused) in table {
        let object = json!({ "metadata": { "annotations": annotations }, "spec": {} });
        let seen = resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), &Rules::default());
        assert_eq!(seen.resource.paused, paused, "{annotations}");
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
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["b", "a"],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "status": "nonsense",
    });
    let seen = resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), &Rules::default());
    let Resource { key, uid, created, generation, resource_version, finalizers, deleting, spec, status, .. } =
        seen.resource;
    assert_eq!(created, 1_767_225_600);
    assert_eq!((key.to_string().as_str(), &*uid, generation, &*resource_version), ("shop/user", "u", 3, "7"));
    assert_eq!((finalizers, deleting), (vec!["b".into(), "a".into()], true));
    assert_eq!(spec.unwrap_err().reason, "Undecodable");
    assert_eq!(*status, crate::model::status::Status::default());
}

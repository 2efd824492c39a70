//! What the apiserver takes: what makes sense, with its defaults, up to the largest of everything.

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use crate::fixture::{self, Fixture};

/// Specs in YAML.
const ACCEPTED: &[&str] = &[
    "{}",
    r#"
name: user_service
port: grpc
tags: [user, "v-${pod.labels['app.kubernetes.io/version']}", ünïcödé]
meta: {version: "${pod.labels['app.kubernetes.io/version']}", A_b-9: ""}
weights: {passing: 10, warning: 0}
enableTagOverride: true
taggedAddresses: {wan: {address: 198.51.100.1, port: 443}, lan_ipv6: {address: "2001:db8::7", port: 1}}
readiness: Deregister
checks:
- {name: http, port: http, interval: 1m30s, timeout: 500ms, successBeforePassing: 1, failuresBeforeWarning: 1,
   failuresBeforeCritical: 3, notes: a note,
   http: {path: "/health?deep=100%&to=http://a/b", scheme: https, method: POST, body: "{}", tlsSkipVerify: true,
          tlsServerName: user.example.com, headers: [{name: X-Probe, value: a}, {name: X-Probe, value: "b\tc"}]}}
- {name: tcp, tcp: {}, interval: 10s, timeout: 10s}
- {name: tls, tcp: {useTLS: true, tlsServerName: user}}
- {name: grpc, grpc: {service: shop.v1.User, useTLS: true, tlsSkipVerify: true}, port: 9090}
- {name: udp, udp: {}}
- {name: h2, h2ping: {tlsSkipVerify: true}}
- {name: h2c, h2ping: {useTLS: false}}
deletionPolicy: Retain
class: second
"#,
    r#"{port: 65535, class: "", readiness: Ignore, dualStack: true, namespace: default, partition: default}"#,
    "{name: a.b}",
    "{name: consul-user}",
    "{name: 'A b'}",
    r#"tags: ["$5 {and} $", "$$", "$${pod.name", "${ pod.name }", "${pod.labels['}']}", '${ports["a}b"]}', "a${node.zone}$${b", "/$${1}"]"#,
    "source: {pods: {matchLabels: {app.kubernetes.io/name: user, tier: ''}}}",
    "source: {pods: {matchLabels: {app: a}, matchExpressions: [{key: app, operator: In, values: [a, b]}, {key: old, operator: DoesNotExist}, {key: tier, operator: NotIn, values: [x]}]}}\nport: grpc",
    "source: {static: [{address: 203.0.113.7, port: 80, tags: [a], meta: {zone: z}}]}",
    "source: {static: [{address: '64:ff9b::cb00:7107', port: 80}, {address: '64:ff9b:1::cb00:7107', port: 80}, {address: '64:ff9b:1:cb00:71:700::', port: 80}]}",
    "source: {static: [{address: 203.0.113.7, port: 80}, {address: 203.0.113.7, port: 81}, {address: '2001:db8::7', port: 80}]}\nchecks: [{name: a, tcp: {}, port: 81}]",
    "source: {static: [{address: 10.0.0.1, port: 80, meta: {a: '1', b: '2'}}]}\nmeta: {a: '3'}",
];

#[tokio::test]
async fn what_makes_sense_is_taken() -> Result<()> {
    let fixture = Fixture::make().await?;
    for yaml in ACCEPTED {
        fixture.accepts(&fixture::spec(yaml)).await?;
    }
    let other = fixture.create("consul", &fixture::spec("name: other")).await?;
    other.map_err(|status| anyhow!("a resource called consul with a name of its own: {}", status.message))?;
    fixture.clear_away().await;
    Ok(())
}

#[tokio::test]
async fn what_is_left_out_has_its_default() -> Result<()> {
    let fixture = Fixture::make().await?;
    let stored = fixture.accepts(&fixture::spec("{checks: [{name: a, http: {}}], weights: {}}")).await?;
    let defaults = json!({
        "source": { "service": { "name": "user" } },
        "weights": { "passing": 1, "warning": 1 },
        "readiness": "Mirror",
        "deletionPolicy": "Deregister",
        "checks": [{ "name": "a", "interval": "10s", "http": { "path": "/", "scheme": "http", "method": "GET" } }],
    });
    ensure!(stored == defaults, "the defaults that a user sees: {stored}");
    fixture.clear_away().await;
    Ok(())
}

/// The apiserver bounds what the rules of a resource may cost, and etcd how large it may be. At the largest of
/// everything both bounds must hold, or a user would meet them in place of a limit that is explained.
#[tokio::test]
async fn the_largest_resource_is_taken() -> Result<()> {
    let fixture = Fixture::make().await?;
    for (name, spec) in [("pods", largest_of_pods()), ("static", largest_of_static())] {
        let made = fixture.send("POST", &fixture.path(), &fixture::resource(name, &spec)).await?;
        made.map_err(|status| anyhow!("{name}: {}", status.message)).context("the largest resource")?;
    }
    fixture.clear_away().await;
    Ok(())
}

/// A text of `length`, different for each `i`.
fn long(i: usize, length: usize) -> String {
    format!("{i:0>3}{}", "x".repeat(length - 3))
}

/// Everything but the source, and `pairs` pairs of metadata.
fn largest(pairs: usize) -> Map<String, Value> {
    let address =
        |i: usize| json!({ "address": format!("2001:db8:1234:5678:9abc:def0:1234:{:x}", 0x1000 + i), "port": 65535 });
    let check = |i: usize| {
        json!({
            "name": long(i, 63),
            "http": {
                "path": format!("/{}", "x".repeat(1023)),
                "scheme": "https",
                "method": "M".repeat(16),
                "headers": vec![json!({ "name": "x".repeat(128), "value": "x".repeat(1024) }); 16],
                "body": "x".repeat(4096),
                "tlsSkipVerify": true,
                "tlsServerName": "x".repeat(253),
            },
            "interval": "00010h00010h00010h00010h",
            "timeout": "00010h00010h00010h00010h",
            "successBeforePassing": 100,
            "failuresBeforeWarning": 100,
            "failuresBeforeCritical": 100,
            "notes": "x".repeat(512),
        })
    };
    let spec = json!({
        "name": "x".repeat(255),
        "tags": (0..64).map(|i| long(i, 1024)).collect::<Vec<_>>(),
        "meta": (0..pairs).map(|i| (long(i, 128), json!("x".repeat(512)))).collect::<Map<_, _>>(),
        "weights": { "passing": 65535, "warning": 65535 },
        "enableTagOverride": true,
        "taggedAddresses": (0..16).map(|i| (long(i, 128), address(i))).collect::<Map<_, _>>(),
        "readiness": "Deregister",
        "checks": (0..16).map(check).collect::<Vec<_>>(),
        "deletionPolicy": "Deregister",
        "namespace": "x".repeat(64),
        "partition": "x".repeat(64),
        "class": "x".repeat(63),
    });
    let Value::Object(spec) = spec else { unreachable!("an object is written above") };
    spec
}

fn largest_of_pods() -> Value {
    let key = |i: usize| format!("{}/{}", long(i, 253), long(i, 63));
    let labels: Map<_, _> = (0..32).map(|i| (key(i), json!("x".repeat(63)))).collect();
    let values: Vec<_> = (0..64).map(|i| long(i, 63)).collect();
    let expression = |i: usize| json!({ "key": key(i), "operator": "NotIn", "values": values });
    let expressions: Vec<_> = (0..32).map(expression).collect();
    let mut spec = largest(48);
    spec.insert("source".into(), json!({ "pods": { "matchLabels": labels, "matchExpressions": expressions } }));
    spec.insert("port".into(), "x".repeat(63).into());
    spec.insert("dualStack".into(), true.into());
    Value::Object(spec)
}

/// As many addresses, and what they have of their own, as there may be: 1 KiB for each of 256.
fn largest_of_static() -> Value {
    let tags: Vec<_> = (0..8).map(|i| long(i, 64)).collect();
    let meta: Map<_, _> = (0..8).map(|i| (format!("own{}", long(i, 29)), json!("x".repeat(32)))).collect();
    let address = |i: usize| {
        let address = format!("2001:db8:1234:5678:9abc:def0:1234:{:x}", 0x1000 + i);
        json!({ "address": address, "port": 65535, "tags": tags, "meta": meta })
    };
    let addresses: Vec<_> = (0..256).map(address).collect();
    let mut spec = largest(40);
    spec.insert("source".into(), json!({ "static": addresses }));
    Value::Object(spec)
}

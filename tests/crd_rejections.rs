//! The resource's schema on a real apiserver: what it takes, what it refuses and in which words, and that
//! every field is explained.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{DynamicObject, PostParams};
use kube::{Api, CustomResourceExt};
use lictor::cluster::api::{self, ConsulService};
use lictor_testbed::{ControlPlane, TestNamespace, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// An apiserver that knows the resource.
struct Testbed {
    plane: ControlPlane,
    namespace: TestNamespace,
}

impl Testbed {
    async fn new() -> Result<Self> {
        let plane = ControlPlane::obtain().await?;
        let kubectl = plane.kubectl_program();
        kubectl.run_with_input(&["apply", "--server-side", "-f", "-"], &api::crd_yaml()).await?;
        let crd = format!("crd/{}", ConsulService::crd_name());
        kubectl.run(&["wait", "--for=condition=Established", "--timeout=20s", &crd]).await?;
        let namespace = TestNamespace::create(&plane, "crd").await?;
        let bed = Self { plane, namespace };
        // Established comes a moment before every handler knows it.
        wait::until("the resource can be made", SOON, || async { bed.create("user", smallest()).await.map(Some) })
            .await?;
        Ok(bed)
    }

    /// Makes a resource in a dry run and gives back what would be stored.
    async fn create(&self, name: &str, spec: Value) -> Result<Value> {
        let resource = ConsulService::api_resource();
        let api =
            Api::<DynamicObject>::namespaced_with(self.namespace.client().clone(), self.namespace.name(), &resource);
        let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        match api.create(&dry_run, &object).await {
            Ok(created) => Ok(created.data["spec"].clone()),
            Err(kube::Error::Api(status)) => bail!("{}", status.message),
            Err(error) => Err(error.into()),
        }
    }

    async fn accepts(&self, spec: Value) -> Result<Value> {
        self.create("user", spec.clone()).await.with_context(|| format!("refused: {spec}"))
    }

    async fn rejects(&self, name: &str, spec: Value, words: &str) -> Result<()> {
        match self.create(name, spec.clone()).await {
            Ok(_) => bail!("not refused: {name} {spec}"),
            Err(error) => {
                let message = error.to_string();
                ensure!(message.contains(words), "{name} {spec} is refused, but not with {words:?}:\n{message}");
                Ok(())
            }
        }
    }
}

fn smallest() -> Value {
    json!({ "source": { "service": { "name": "user" } } })
}

/// The smallest spec with some more fields, or with others in place of its own.
fn with(more: Value) -> Value {
    let mut spec = smallest();
    let Value::Object(more) = more else { panic!("fields") };
    spec.as_object_mut().unwrap().extend(more);
    spec
}

/// A spec with one check.
fn check(more: Value) -> Value {
    let mut check = json!({ "name": "a" });
    let Value::Object(more) = more else { panic!("fields") };
    check.as_object_mut().unwrap().extend(more);
    with(json!({ "checks": [check] }))
}

/// A spec with one static address.
fn fixed(more: Value) -> Value {
    let mut address = json!({ "address": "203.0.113.7", "port": 80 });
    let Value::Object(more) = more else { panic!("fields") };
    address.as_object_mut().unwrap().extend(more);
    json!({ "source": { "static": [address] } })
}

/// So many pairs of metadata.
fn pairs(n: usize) -> Value {
    (0..n).map(|i| (format!("key-{i}"), Value::from(""))).collect()
}

fn accepted() -> Vec<Value> {
    let all_checks = json!([
        { "name": "http", "http": { "path": "/health?deep=1", "scheme": "https", "method": "POST", "body": "{}", "tlsSkipVerify": true,
            "tlsServerName": "user.example.com", "headers": [{ "name": "X-Probe", "value": "a" }, { "name": "X-Probe", "value": "b" }] },
          "port": "http", "interval": "1m30s", "timeout": "500ms", "successBeforePassing": 1, "failuresBeforeWarning": 1,
          "failuresBeforeCritical": 3, "notes": "a note" },
        { "name": "tcp", "tcp": {}, "interval": "10s", "timeout": "10s" },
        { "name": "tls", "tcp": { "useTLS": true, "tlsServerName": "user" } },
        { "name": "grpc", "grpc": { "service": "shop.v1.User", "useTLS": true, "tlsSkipVerify": true }, "port": 9090 },
        { "name": "udp", "udp": {} },
        { "name": "h2", "h2ping": { "tlsSkipVerify": true } },
        { "name": "h2c", "h2ping": { "useTLS": false } },
    ]);
    vec![
        smallest(),
        with(json!({
            "name": "user_service",
            "port": "grpc",
            "tags": ["user", "v-${pod.labels['app.kubernetes.io/version']}", "ünïcödé"],
            "meta": { "version": "${pod.labels['app.kubernetes.io/version']}", "A_b-9": "" },
            "weights": { "passing": 10, "warning": 0 },
            "enableTagOverride": true,
            "taggedAddresses": { "wan": { "address": "198.51.100.1", "port": 443 }, "lan_ipv6": { "address": "2001:db8::7", "port": 1 } },
            "readiness": "Deregister",
            "checks": all_checks,
            "deletionPolicy": "Retain",
            "class": "second",
        })),
        with(json!({ "port": 65535, "class": "", "readiness": "Ignore" })),
        with(json!({ "name": "a.b", "meta": pairs(48) })),
        with(json!({ "name": "x".repeat(255) })),
        with(json!({ "name": "consul-user" })),
        json!({ "source": { "pods": { "matchLabels": { "app.kubernetes.io/name": "user", "tier": "" } } } }),
        json!({ "source": { "pods": { "matchExpressions": [
            { "key": "app", "operator": "In", "values": ["a", "b"] }, { "key": "old", "operator": "DoesNotExist" } ] } }, "port": "grpc" }),
        fixed(json!({ "tags": ["a"], "meta": { "zone": "z" } })),
        json!({ "source": { "static": [
            { "address": "203.0.113.7", "port": 80 }, { "address": "203.0.113.7", "port": 81 }, { "address": "2001:db8::7", "port": 80 } ] } }),
    ]
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn rejected() -> Vec<(Value, &'static str)> {
    let tagged = |key: &str, address: Value| with(json!({ "taggedAddresses": { key: address } }));
    let http = |more: Value| check(json!({ "http": more }));
    let header = |name: &str, value: &str| http(json!({ "headers": [{ "name": name, "value": value }] }));
    vec![
        // The source.
        (json!({}), "spec.source: Required value"),
        (json!({ "source": {} }), "set exactly one of service, pods, static"),
        (
            json!({ "source": { "service": { "name": "a" }, "pods": { "matchLabels": { "a": "b" } } } }),
            "set exactly one of",
        ),
        (json!({ "source": { "service": {} } }), "spec.source.service.name: Required value"),
        (json!({ "source": { "service": { "name": "User" } } }), "spec.source.service.name"),
        (json!({ "source": { "service": { "name": "x".repeat(64) } } }), "Too long: may not be more than 63"),
        (json!({ "source": { "pods": {} } }), "an empty selector would pick every pod of the namespace"),
        (
            json!({ "source": { "pods": { "matchLabels": {} } } }),
            "an empty selector would pick every pod of the namespace",
        ),
        (json!({ "source": { "pods": { "matchLabels": { "a b": "c" } } } }), "not a label's key"),
        (json!({ "source": { "pods": { "matchLabels": { "a": "b c" } } } }), "spec.source.pods.matchLabels.a"),
        (
            json!({ "source": { "pods": { "matchExpressions": [{ "key": "a", "operator": "In" }] } } }),
            "In and NotIn need values",
        ),
        (
            json!({ "source": { "pods": { "matchExpressions": [{ "key": "a", "operator": "Exists", "values": ["b"] }] } } }),
            "take none",
        ),
        (
            json!({ "source": { "pods": { "matchExpressions": [{ "key": "a", "operator": "Like" }] } } }),
            "Unsupported value: \"Like\"",
        ),
        (json!({ "source": { "static": [] } }), "spec.source.static"),
        (fixed(json!({ "address": "example.com" })), "names of hosts are not taken"),
        (fixed(json!({ "address": "2001:DB8::7" })), "write the IPv6 address in its short form, in lower case"),
        (fixed(json!({ "address": "127.0.0.1" })), "an address that others can reach"),
        (fixed(json!({ "address": "0.0.0.0" })), "an address that others can reach"),
        (fixed(json!({ "address": "fe80::1" })), "an address that others can reach"),
        (fixed(json!({ "address": "224.0.0.1" })), "an address that others can reach"),
        (fixed(json!({ "port": 0 })), "spec.source.static[0].port"),
        (fixed(json!({ "port": "http" })), "must be of type integer"),
        (fixed(json!({ "meta": { "lictor-owner": "a/b" } })), "Lictor itself sets"),
        (
            json!({ "source": { "static": [{ "address": "203.0.113.7", "port": 80 }, { "address": "203.0.113.7", "port": 80 }] } }),
            "Duplicate value",
        ),
        (
            json!({ "source": { "static": [{ "address": "203.0.113.7", "port": 80 }] }, "port": 80 }),
            "take spec.port away",
        ),
        (
            json!({ "source": { "static": [{ "address": "203.0.113.7", "port": 80 }] }, "checks": [{ "name": "a", "tcp": {}, "port": "http" }] }),
            "give the check's port as a number",
        ),
        // The name.
        (with(json!({ "name": "" })), "spec.name"),
        (with(json!({ "name": "x".repeat(256) })), "Too long: may not be more than 255"),
        (with(json!({ "name": "consul" })), "belongs to Consul's own servers"),
        (with(json!({ "name": "CONSUL" })), "belongs to Consul's own servers"),
        (with(json!({ "name": "a\nb" })), "no control characters or line breaks"),
        (with(json!({ "name": "a\u{7f}" })), "no control characters or line breaks"),
        (with(json!({ "name": " a" })), "neither begins nor ends with a space"),
        // The port.
        (with(json!({ "port": 0 })), "a port number is from 1 to 65535"),
        (with(json!({ "port": 65536 })), "a port number is from 1 to 65535"),
        (with(json!({ "port": "8080" })), "a port number is written without quotes"),
        (with(json!({ "port": "HTTP" })), "a port name holds lower-case letters"),
        (with(json!({ "port": "http-" })), "a port name holds lower-case letters"),
        (with(json!({ "port": "x".repeat(64) })), "Too long: may not be more than 63"),
        // What goes along.
        (with(json!({ "tags": ["a", "a"] })), "Duplicate value"),
        (with(json!({ "tags": [""] })), "spec.tags[0]"),
        (with(json!({ "tags": ["a\tb"] })), "no control characters or line breaks"),
        (with(json!({ "tags": (0..65).map(|i| i.to_string()).collect::<Vec<_>>() })), "must have at most 64 items"),
        (with(json!({ "meta": { "app.kubernetes.io/version": "1" } })), "write 'version' or 'app-version'"),
        (with(json!({ "meta": { "": "1" } })), "meta keys hold letters, digits"),
        (with(json!({ "meta": { "x".repeat(129): "1" } })), "at most 128"),
        (with(json!({ "meta": { "consul-x": "1" } })), "write the key without that beginning"),
        (with(json!({ "meta": { "lictor-x": "1" } })), "Lictor itself sets"),
        (with(json!({ "meta": { "managed-by": "me" } })), "leave them out, or write another key"),
        (with(json!({ "meta": { "external-source": "nomad" } })), "Lictor itself sets"),
        (with(json!({ "meta": { "k8s-namespace": "a" } })), "Lictor itself sets"),
        (with(json!({ "meta": { "k8s-pod": "a" } })), "Lictor itself sets"),
        (with(json!({ "meta": { "k8s-node": "a" } })), "Lictor itself sets"),
        (with(json!({ "meta": { "a": "x".repeat(513) } })), "Too long: may not be more than 512"),
        (with(json!({ "meta": pairs(49) })), "must have at most 48 items"),
        (with(json!({ "weights": { "passing": 0 } })), "greater than or equal to 1"),
        (with(json!({ "weights": { "warning": -1 } })), "greater than or equal to 0"),
        (with(json!({ "weights": { "passing": 65536 } })), "less than or equal to 65535"),
        (
            tagged("consul-virtual", json!({ "address": "198.51.100.1", "port": 1 })),
            "belong to Consul: choose another, such as 'wan'",
        ),
        (
            tagged("w.an", json!({ "address": "198.51.100.1", "port": 1 })),
            "names of tagged addresses hold letters, digits",
        ),
        (tagged("wan", json!({ "address": "example.com", "port": 1 })), "names of hosts are not taken"),
        (tagged("wan", json!({ "address": "127.0.0.1", "port": 1 })), "an address that others can reach"),
        (tagged("wan", json!({ "address": "198.51.100.1" })), "port: Required value"),
        (tagged("wan", json!({ "address": "198.51.100.1", "port": 0 })), "greater than or equal to 1"),
        (with(json!({ "readiness": "mirror" })), "supported values: \"Mirror\", \"Deregister\", \"Ignore\""),
        (with(json!({ "deletionPolicy": "Delete" })), "supported values: \"Deregister\", \"Retain\""),
        (with(json!({ "class": "Second" })), "spec.class"),
        // Checks.
        (check(json!({})), "set exactly one of http, tcp, grpc, udp, h2ping"),
        (check(json!({ "tcp": {}, "udp": {} })), "set exactly one of http, tcp, grpc, udp, h2ping"),
        (with(json!({ "checks": [{ "name": "a", "tcp": {} }, { "name": "a", "udp": {} }] })), "Duplicate value"),
        (
            with(
                json!({ "checks": (0..17).map(|i| json!({ "name": format!("a{i}"), "tcp": {} })).collect::<Vec<_>>() }),
            ),
            "must have at most 16 items",
        ),
        (with(json!({ "checks": [{ "tcp": {} }] })), "name: Required value"),
        (check(json!({ "name": "readiness", "tcp": {} })), "which spec.readiness is for"),
        (check(json!({ "name": "A", "tcp": {} })), "spec.checks[0].name"),
        (check(json!({ "tcp": {}, "port": "80" })), "a port number is written without quotes"),
        (check(json!({ "tcp": {}, "interval": "10" })), "spec.checks[0].interval"),
        (check(json!({ "tcp": {}, "interval": "999ms" })), "at most once a second: 1s or more"),
        (check(json!({ "tcp": {}, "timeout": "0s" })), "a timeout of nothing fails every run"),
        (check(json!({ "tcp": {}, "timeout": "11s" })), "a check ends before the next one begins"),
        (check(json!({ "tcp": {}, "interval": "5s", "timeout": "6s" })), "a check ends before the next one begins"),
        (check(json!({ "tcp": {}, "failuresBeforeWarning": 1 })), "it would be critical before it warns"),
        (check(json!({ "tcp": {}, "successBeforePassing": -1 })), "greater than or equal to 0"),
        (http(json!({ "path": "health" })), "a path begins with '/'"),
        (http(json!({ "path": "@example.com/" })), "host and port are the instance's own"),
        (http(json!({ "path": "/a b" })), "write %20 for a space"),
        (http(json!({ "path": "/a\r\nHost: b" })), "no spaces, line breaks"),
        (http(json!({ "scheme": "ftp" })), "supported values: \"http\", \"https\""),
        (http(json!({ "method": "get" })), "spec.checks[0].http.method"),
        (http(json!({ "tlsSkipVerify": true })), "need scheme: https"),
        (http(json!({ "tlsServerName": "a" })), "need scheme: https"),
        (header("X Probe", "a"), "no spaces or line breaks"),
        (header("X-Probe\r\n", "a"), "no spaces or line breaks"),
        (header("X-Probe", "a\nb"), "a header's value holds no line breaks"),
        (check(json!({ "tcp": { "tlsSkipVerify": true } })), "need useTLS: true"),
        (check(json!({ "grpc": { "tlsServerName": "a" } })), "need useTLS: true"),
        (check(json!({ "grpc": { "service": "a b" } })), "a gRPC service's name"),
        (check(json!({ "h2ping": { "useTLS": false, "tlsSkipVerify": true } })), "need useTLS: true"),
    ]
}

#[tokio::test]
async fn the_apiserver_takes_what_makes_sense_and_refuses_the_rest_in_plain_words() -> Result<()> {
    let bed = Testbed::new().await?;
    for spec in accepted() {
        bed.accepts(spec).await?;
    }
    for (spec, words) in rejected() {
        bed.rejects("user", spec, words).await?;
    }
    bed.rejects("consul", smallest(), "set spec.name to another, or rename the resource").await?;
    bed.create("consul", with(json!({ "name": "other" })))
        .await
        .context("a resource called consul with a name of its own")?;

    let stored = bed.accepts(check(json!({ "http": {} }))).await?;
    let defaults = json!({
        "source": { "service": { "name": "user" } },
        "readiness": "Mirror",
        "deletionPolicy": "Deregister",
        "checks": [{ "name": "a", "interval": "10s", "http": { "path": "/", "scheme": "http", "method": "GET" } }],
    });
    ensure!(stored == defaults, "the defaults that a user sees: {stored}");
    bed.namespace.delete().await;
    Ok(())
}

#[tokio::test]
async fn every_field_is_explained() -> Result<()> {
    let bed = Testbed::new().await?;
    // What `kubectl explain` reads.
    let read = || async {
        let text = bed.plane.kubectl(&["get", "--raw", "/openapi/v3/apis/lictor.dev/v1alpha1"]).await?;
        let document: Value = serde_json::from_str(&text)?;
        let schema = &document["components"]["schemas"]["dev.lictor.v1alpha1.ConsulService"]["properties"];
        Ok(schema.get("spec").is_some().then(|| schema.clone()))
    };
    let schema = wait::until("the resource is in the OpenAPI document", SOON, read).await?;
    let mut missing = Vec::new();
    for part in ["spec", "status"] {
        unexplained(part, &schema[part], &mut missing);
    }
    ensure!(missing.is_empty(), "fields without a description: {missing:#?}");

    let explained = bed.plane.kubectl(&["explain", "consulservices.spec.checks.http.path"]).await?;
    ensure!(explained.contains("it begins with '/'"), "{explained}");
    bed.namespace.delete().await;
    Ok(())
}

/// The paths of fields at and below `schema` that have no description.
fn unexplained(path: &str, schema: &Value, missing: &mut Vec<String>) {
    if schema["description"].as_str().is_none_or(str::is_empty) {
        missing.push(path.to_owned());
    }
    let below = [&schema["properties"], &schema["items"]["properties"], &schema["additionalProperties"]["properties"]];
    for (name, field) in below.into_iter().filter_map(Value::as_object).flatten() {
        unexplained(&format!("{path}.{name}"), field, missing);
    }
}

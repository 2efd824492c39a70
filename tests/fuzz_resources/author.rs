//! What somebody who writes a resource knows and its schema does not say: which Services, labels and ports there are,
//! what the rules ask for, how templates look. Mostly they get it right.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::schema::Generator;

/// Ports that there are: of Services, of containers, and of hand-made endpoints.
pub(crate) const PORTS: [u16; 6] = [80, 81, 8080, 9090, 443, 53];

/// The Services of [`crate::environment`], and one that is not there.
pub(crate) const SERVICES: [&str; 8] = ["web", "two", "headless", "hand", "six", "names", "empty", "absent"];

/// Labels that pods have, and values that they or others have.
pub(crate) const LABELS: [(&str, [&str; 2]); 4] = [
    ("app", ["web", "back"]),
    ("tier", ["", "front"]),
    ("app.kubernetes.io/version", ["1.2.3", "v_4"]),
    ("example.com/Team-A", ["A", "b"]),
];

/// Annotations that pods have.
pub(crate) const ANNOTATIONS: [&str; 4] = ["note", "example.com/long", "example.com/lines", "quote'd"];

/// Names of ports.
const PORT_NAMES: [&str; 5] = ["http", "grpc", "a", "b", "none-such"];

/// A DNS label, as a regular expression.
const LABEL: &str = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";

/// Networks from which this author may choose, as `--allow-static` has them.
pub(crate) const ALLOWED: &str = "192.0.2.0/24,203.0.113.0/24,2001:db8::/32";

/// How often, in a hundred, a field is there that need not be.
pub(crate) fn how_often(path: &str) -> u8 {
    match path {
        "namespace" | "partition" => 2,
        "class" => 6,
        "port" => 20,
        "source" => 100,
        "source.service" | "source.pods" => 50,
        "source.static" | "checks[].http" | "checks[].tcp" | "checks[].grpc" | "checks[].udp" | "checks[].h2ping" => 40,
        "checks[].successBeforePassing" | "checks[].failuresBeforeWarning" | "checks[].failuresBeforeCritical" => 15,
        _ => 33,
    }
}

/// A text for this place; none where the author has no mind of their own, or errs.
pub(crate) fn text(generator: &mut Generator, path: &str) -> Option<String> {
    if generator.errs(5) {
        return None;
    }
    let text: String = match path {
        "name" if generator.chance(15) => generator.pick(&["shop", "Shop", "user_service", "a.b", "two words"]).into(),
        "name" if generator.chance(2) => "N".repeat(255),
        "name" => format!("{}x", generator.any_text(0, 63).trim().replace(|c| !(' '..='~').contains(&c), "-")),
        "port" | "checks[].port" => generator.pick(&PORT_NAMES).into(),
        "tags[]" | "meta{}" | "source.static[].tags[]" | "source.static[].meta{}" => with_values(generator),
        "meta{key}" | "source.static[].meta{key}" | "taggedAddresses{key}" => key(generator),
        "source.service.name" if generator.chance(5) => generator.matching(LABEL),
        "source.service.name" => generator.pick(&SERVICES).into(),
        "source.pods.matchLabels{key}" | "source.pods.matchExpressions[].key" if generator.chance(5) => {
            generator.matching("([a-z]{1,9}([.][a-z]{1,9}){0,20}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
        }
        "source.pods.matchLabels{key}" | "source.pods.matchExpressions[].key" => label(generator).0.into(),
        "source.pods.matchLabels{}" | "source.pods.matchExpressions[].values[]" if generator.chance(5) => {
            generator.matching("([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
        }
        "source.pods.matchLabels{}" | "source.pods.matchExpressions[].values[]" => {
            let (_, values) = label(generator);
            generator.pick(&values).into()
        }
        "checks[].name" => generator.matching(LABEL),
        "source.static[].address" | "taggedAddresses{}.address" => address(generator),
        "checks[].interval" => generator.pick(&["1s", "2s", "10s", "1m30s", "1h", "1000ms", "99999h"]).into(),
        "checks[].timeout" => generator.pick(&["1s", "500ms", "1ms", "0s900ms"]).into(),
        "checks[].http.path" if generator.chance(3) => format!("/{}", "a".repeat(1_023)),
        "checks[].http.path" => {
            let rest = generator.any_text(0, 200).replace(|c: char| !c.is_ascii_graphic(), "%20");
            format!("/{}", rest.replace('#', "%23").replace('%', "%25"))
        }
        "checks[].http.method" => generator.matching("GET|HEAD|POST|PUT|DELETE|OPTIONS|[A-Z]{1,6}|[A-Z]{16}"),
        "checks[].http.tlsServerName"
        | "checks[].tcp.tlsServerName"
        | "checks[].grpc.tlsServerName"
        | "checks[].h2ping.tlsServerName" => generator.matching("[A-Za-z0-9]([-A-Za-z0-9._]{0,40}[A-Za-z0-9])?"),
        "checks[].http.headers[].name" => {
            generator.pick(&["Host", "host", "X-Probe", "Accept", "Content-Length", "Transfer-Encoding", "a|b"]).into()
        }
        "checks[].http.headers[].value" => generator.any_text(0, 1_024).replace(char::is_control, " "),
        "checks[].grpc.service" => generator.pick(&["", "shop.v1.User", "a/b", "!~"]).into(),
        "class" => generator.pick(&["", "", "other"]).into(),
        _ => return None,
    };
    Some(text)
}

fn label(generator: &mut Generator) -> (&'static str, [&'static str; 2]) {
    LABELS[generator.rng.usize(..LABELS.len())]
}

/// A text with values of the instance in it, mostly well written.
fn with_values(generator: &mut Generator) -> String {
    let mut text = generator.any_text(0, 20).replace(char::is_control, "-").replace("${", "{");
    for _ in 0..generator.rng.usize(..3) {
        let quote = generator.pick(&["'", "\""]);
        let value = match generator.rng.u8(..12) {
            0..=4 => generator
                .pick(&[
                    "${pod.name}",
                    "${pod.namespace}",
                    "${pod.uid}",
                    "${node.name}",
                    "${node.zone}",
                    "${node.region}",
                ])
                .to_owned(),
            5 | 6 => format!("${{pod.labels[{quote}{}{quote}]}}", label(generator).0),
            7 | 8 => format!("${{pod.annotations[\"{}\"]}}", generator.pick(&ANNOTATIONS)),
            9 => format!("${{ports[{quote}{}{quote}]}}", generator.pick(&PORT_NAMES)),
            10 if generator.errs(50) => generator.pick(&["${", "${pod.ip}", "${pod.labels['']}"]).to_owned(),
            _ => generator.pick(&["$${", "}", "${ pod.name }", "$"]).to_owned(),
        };
        text += &value;
    }
    if text.is_empty() { "x".to_owned() } else { text }
}

/// A key of metadata, or a name of a tagged address.
fn key(generator: &mut Generator) -> String {
    if generator.errs(10) {
        return generator.pick(&["consul-x", "Consul-x", "lictor-x", "k8s-pod", "managed-by", "a.b"]).into();
    }
    match generator.rng.u8(..20) {
        0..=2 => generator.pick(&["lan", "wan", "lan_ipv4", "lan_ipv6", "virtual", "wan_ipv4"]).into(),
        3 => "k".repeat(generator.rng.usize(1..=128)),
        _ => format!("{}-{}", generator.pick(&["version", "A_b", "0"]), generator.rng.u8(..100)),
    }
}

fn address(generator: &mut Generator) -> String {
    let last = generator.rng.u8(1..);
    if generator.errs(8) {
        let mapped = format!("::ffff:203.0.113.{last}");
        let odd =
            ["127.0.0.1", "::1", "2001:DB8::1", "0.0.0.0", "fe80::1", "example.com", "010.0.0.1", "169.254.169.254"];
        return generator.pick(&[&odd[..], &["198.51.100.1", &mapped]].concat()).into();
    }
    if generator.rng.bool() {
        format!("{}.{last}", generator.pick(&["192.0.2", "203.0.113"]))
    } else {
        format!("2001:db8::{last:x}")
    }
}

/// Puts right what the rules say about several fields, but for some authors.
pub(crate) fn mend(generator: &mut Generator, spec: &mut Value) {
    if generator.errs(15) {
        return;
    }
    let source = &mut spec["source"];
    keep_one(generator, source, &["service", "pods", "static"], || json!({ "name": "web" }));
    if let Some(pods) = source.get_mut("pods") {
        for expression in pods["matchExpressions"].as_array_mut().into_iter().flatten() {
            let takes_values = ["In", "NotIn"].iter().any(|operator| expression["operator"] == *operator);
            let has_values = expression["values"].as_array().is_some_and(|values| !values.is_empty());
            match (takes_values, has_values) {
                (true, false) => expression["values"] = json!(["web"]),
                (false, true) => remove(expression, "values"),
                _ => {}
            }
        }
        let labels = pods["matchLabels"].clone();
        if let Some(expressions) = pods["matchExpressions"].as_array_mut() {
            // Two requirements about one label may contradict each other.
            let mut seen = BTreeSet::new();
            let mut is_first = |key: &str| labels.get(key).is_none() && seen.insert(key.to_owned());
            expressions.retain(|expression| expression["key"].as_str().is_some_and(&mut is_first));
        }
        if ["matchLabels", "matchExpressions"].iter().all(|part| is_empty(&pods[*part])) {
            *pods = json!({ "matchLabels": { "app": "web" } });
        }
    }
    let is_static = source.get("static").is_some();
    if is_static {
        remove(spec, "port");
        remove(spec, "dualStack");
        if spec["meta"].as_object().is_some_and(|meta| meta.len() > 40) {
            remove(spec, "meta");
        }
    }
    for (name, tagged) in spec["taggedAddresses"].as_object_mut().into_iter().flatten() {
        match name.strip_prefix("lan_").or(name.strip_prefix("wan_")) {
            Some("ipv4") => tagged["address"] = json!("192.0.2.7"),
            Some("ipv6") => tagged["address"] = json!("2001:db8::7"),
            _ => {}
        }
    }
    for check in spec["checks"].as_array_mut().into_iter().flatten() {
        keep_one(generator, check, &["tcp", "http", "grpc", "udp", "h2ping"], || json!({}));
        if is_static && check["port"].is_string() {
            remove(check, "port");
        }
        if check["failuresBeforeWarning"].as_u64() > check["failuresBeforeCritical"].as_u64() {
            check["failuresBeforeCritical"] = check["failuresBeforeWarning"].clone();
        }
        for (kind, field, on) in [
            ("http", "scheme", json!("https")),
            ("tcp", "useTLS", json!(true)),
            ("grpc", "useTLS", json!(true)),
            ("h2ping", "useTLS", json!(true)),
        ] {
            let Some(probe) = check.get_mut(kind) else { continue };
            if probe.get("tlsSkipVerify").is_some() || probe.get("tlsServerName").is_some() {
                probe[field] = on;
            }
        }
    }
    // Reading a field of an object by index makes it, as null.
    drop_nulls(spec);
}

/// Leaves one of several fields, or makes the first where there is none.
fn keep_one(generator: &mut Generator, object: &mut Value, fields: &[&str], first: impl FnOnce() -> Value) {
    let mut there: Vec<&str> = fields.iter().copied().filter(|field| object.get(field).is_some()).collect();
    if there.is_empty() {
        object[fields[0]] = first();
        return;
    }
    there.swap_remove(generator.rng.usize(..there.len()));
    for field in there {
        remove(object, field);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

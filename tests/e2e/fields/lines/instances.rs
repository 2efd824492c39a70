//! What an instance says, how it stands, and what becomes of it.

use super::super::reading::Reading;
use super::{Line, at, both, line, refused};

pub(super) fn lines() -> Vec<Line> {
    let mut lines = texts();
    lines.extend(weights());
    lines.push(line(
        "spec.enableTagOverride",
        at("Service.EnableTagOverride"),
        [both("enableTagOverride: true", "true"), both("enableTagOverride: false", "false")],
    ));
    lines.extend(addresses());
    lines.push(line(
        "spec.readiness",
        Reading::Instances,
        [
            both("{source: {service: {name: web}}, readiness: Mirror}", "`web-0:8080` passing, `web-1:8080` critical"),
            both("{source: {service: {name: web}}, readiness: Deregister}", "`web-0:8080` passing"),
            both("{source: {service: {name: web}}, readiness: Ignore}", "`web-0:8080` passing, `web-1:8080` passing"),
        ],
    ));
    lines
}

fn texts() -> Vec<Line> {
    vec![
        line(
            "spec.tags",
            at("Service.Tags"),
            [
                both("{source: {service: {name: green}}, tags: [first, second]}", r#"["first","second"]"#),
                both(
                    "{source: {service: {name: green}}, tags: [second, \"v${pod.labels['version']}\"]}",
                    r#"["second","v2.0"]"#,
                ),
            ],
        ),
        line(
            "spec.meta",
            at("Service.Meta.place"),
            [
                both("{source: {service: {name: green}}, meta: {place: here}}", "here"),
                both("{source: {service: {name: green}}, meta: {place: \"in ${node.zone}\"}}", "in zone-1"),
                both("{source: {service: {name: green}}, meta: {other: here}}", "none"),
            ],
        ),
    ]
}

fn weights() -> Vec<Line> {
    vec![
        line(
            "spec.weights",
            at("Service.Weights"),
            [
                both("weights: {passing: 5, warning: 2}", r#"{"Passing":5,"Warning":2}"#),
                both("{}", r#"{"Passing":1,"Warning":1}"#),
            ],
        ),
        line(
            "spec.weights.passing",
            at("Service.Weights.Passing"),
            [both("weights: {passing: 5}", "5"), both("weights: {passing: 65535}", "65535")],
        ),
        line(
            "spec.weights.warning",
            at("Service.Weights.Warning"),
            [both("weights: {warning: 2}", "2"), both("weights: {warning: 0}", "0")],
        ),
    ]
}

fn addresses() -> Vec<Line> {
    vec![
        line(
            "spec.taggedAddresses",
            at("Service.TaggedAddresses.wan"),
            [
                both(
                    "taggedAddresses: {wan: {address: 198.51.100.1, port: 443}}",
                    r#"{"Address":"198.51.100.1","Port":443}"#,
                ),
                both("taggedAddresses: {spare: {address: 198.51.100.1, port: 443}}", "none"),
            ],
        ),
        line(
            "spec.taggedAddresses.*.address",
            at("Service.TaggedAddresses.wan.Address"),
            [
                both("taggedAddresses: {wan: {address: 198.51.100.1, port: 443}}", "198.51.100.1"),
                both("taggedAddresses: {wan: {address: '2001:db8::1', port: 443}}", "2001:db8::1"),
            ],
        ),
        line(
            "spec.taggedAddresses.*.port",
            at("Service.TaggedAddresses.wan.Port"),
            [
                both("taggedAddresses: {wan: {address: 198.51.100.1, port: 443}}", "443"),
                both("taggedAddresses: {wan: {address: 198.51.100.1, port: 8443}}", "8443"),
            ],
        ),
        line(
            "spec.dualStack",
            at("Service.TaggedAddresses.lan_ipv6"),
            [
                both("{source: {pods: {matchLabels: {app: green}}}, dualStack: false}", "none"),
                both(
                    "{source: {pods: {matchLabels: {app: green}}}, dualStack: true}",
                    r#"{"Address":"fd00:10:244::3","Port":8080}"#,
                ),
            ],
        ),
    ]
}

/// What is said of a place in Consul that only its Enterprise edition has.
macro_rules! enterprise {
    ($what:literal) => {
        concat!(
            "spec.",
            $what,
            " \"team-a\": Consul has ",
            $what,
            "s only in its Enterprise edition, and this version of Lictor ",
            "registers in the default one: remove the field"
        )
    };
}

/// Whose a resource is, and what it leaves.
pub(super) fn ends() -> Vec<Line> {
    const THERE: &str = "`198.51.100.7:8080` passing";
    vec![
        line(
            "spec.deletionPolicy",
            Reading::Left,
            [both("deletionPolicy: Retain", "none"), both("deletionPolicy: Deregister", "nothing")],
        ),
        line("spec.class", Reading::Instances, [both("class: ''", THERE), both("class: second", "nothing")]),
        line(
            "spec.namespace",
            Reading::Instances,
            [both("namespace: default", THERE), refused("namespace: team-a", enterprise!("namespace"))],
        ),
        line(
            "spec.partition",
            Reading::Instances,
            [both("partition: default", THERE), refused("partition: team-a", enterprise!("partition"))],
        ),
    ]
}

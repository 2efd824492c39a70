//! Under which name, where instances come from, and at which port.

use super::super::reading::Reading::Instances;
use super::{Line, at, both, line};

const WEB: &str = "`web-0:8080` passing, `web-1:8080` critical";
const GREEN: &str = "`green-0:8080` passing";
const ALL: &str = "`green-0:8080` passing, `web-0:8080` passing, `web-1:8080` critical";

pub(super) fn lines() -> Vec<Line> {
    let mut lines = vec![
        line(
            "spec.name",
            at("Service.Service"),
            [both("name: first_name", "first_name"), both("name: second_name", "second_name")],
        ),
        line(
            "spec.source",
            Instances,
            [
                both("source: {service: {name: web}}", WEB),
                both("source: {static: [{address: 198.51.100.7, port: 8080}]}", "`198.51.100.7:8080` passing"),
            ],
        ),
        line(
            "spec.source.service",
            Instances,
            [both("source: {pods: {matchLabels: {app: green}}}", GREEN), both("source: {service: {name: web}}", WEB)],
        ),
        line(
            "spec.source.service.name",
            Instances,
            [both("source: {service: {name: web}}", WEB), both("source: {service: {name: green}}", GREEN)],
        ),
    ];
    lines.extend(of_pods());
    lines.extend(of_addresses());
    lines.push(line(
        "spec.port",
        Instances,
        [
            both("{source: {service: {name: two}}, port: http}", GREEN),
            both("{source: {service: {name: two}}, port: 90}", "`green-0:9000` passing"),
        ],
    ));
    lines
}

/// A selector with these expressions.
macro_rules! matching {
    ($expressions:literal) => {
        concat!("source: {pods: {matchExpressions: [", $expressions, "]}}")
    };
}

fn of_pods() -> Vec<Line> {
    vec![
        line(
            "spec.source.pods",
            Instances,
            [both("source: {service: {name: green}}", GREEN), both("source: {pods: {matchLabels: {app: web}}}", WEB)],
        ),
        line(
            "spec.source.pods.matchLabels",
            Instances,
            [
                both("source: {pods: {matchLabels: {app: web}}}", WEB),
                both("source: {pods: {matchLabels: {app: web, canary: 'yes'}}}", "`web-1:8080` critical"),
            ],
        ),
        line(
            "spec.source.pods.matchExpressions",
            Instances,
            [
                both(matching!("{key: app, operator: Exists}"), ALL),
                both(
                    matching!("{key: app, operator: Exists}, {key: canary, operator: DoesNotExist}"),
                    "`green-0:8080` passing, `web-0:8080` passing",
                ),
            ],
        ),
        line(
            "spec.source.pods.matchExpressions[].key",
            Instances,
            [
                both(matching!("{key: canary, operator: Exists}"), "`web-1:8080` critical"),
                both(matching!("{key: app, operator: Exists}"), ALL),
            ],
        ),
        line(
            "spec.source.pods.matchExpressions[].operator",
            Instances,
            [
                both(matching!("{key: app, operator: In, values: [web]}"), WEB),
                both(matching!("{key: app, operator: NotIn, values: [web]}"), GREEN),
            ],
        ),
        line(
            "spec.source.pods.matchExpressions[].values",
            Instances,
            [
                both(matching!("{key: app, operator: In, values: [web]}"), WEB),
                both(matching!("{key: app, operator: In, values: [web, green]}"), ALL),
            ],
        ),
    ]
}

/// The addresses 198.51.100.7, with this besides.
macro_rules! with {
    ($more:literal) => {
        concat!("source: {static: [{address: 198.51.100.7, ", $more, "}]}")
    };
}

fn of_addresses() -> Vec<Line> {
    vec![
        line(
            "spec.source.static",
            Instances,
            [
                both(with!("port: 8080"), "`198.51.100.7:8080` passing"),
                both(
                    with!("port: 8080}, {address: 198.51.100.8, port: 8080"),
                    "`198.51.100.7:8080` passing, `198.51.100.8:8080` passing",
                ),
            ],
        ),
        line(
            "spec.source.static[].address",
            at("Service.Address"),
            [
                both("source: {static: [{address: 198.51.100.7, port: 8080}]}", "198.51.100.7"),
                both("source: {static: [{address: '2001:db8::7', port: 8080}]}", "2001:db8::7"),
            ],
        ),
        line(
            "spec.source.static[].port",
            at("Service.Port"),
            [both(with!("port: 8080"), "8080"), both(with!("port: 8081"), "8081")],
        ),
        line(
            "spec.source.static[].tags",
            at("Service.Tags"),
            [
                both(with!("port: 5432, tags: [primary]"), r#"["primary"]"#),
                both(with!("port: 5432, tags: [replica, old]"), r#"["replica","old"]"#),
            ],
        ),
        line(
            "spec.source.static[].meta",
            at("Service.Meta.rack"),
            [
                both(with!("port: 5432, meta: {rack: r1}"), "r1"),
                both(with!("port: 5432, meta: {rack: r2}"), "r2"),
                both(with!("port: 5432, meta: {row: '7'}"), "none"),
            ],
        ),
    ]
}

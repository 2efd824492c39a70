//! Which checks there are, where each asks, and what it says of itself.

use super::super::environment::{GRPC, H2, HTTP, TCP, UDP};
use super::super::reading::Reading;
use super::{Line, agents_only, at, both, check, each, every_second};

/// What consul-esm has not, and what to do.
pub(super) const NO_UDP: &str = "has no udp checks: choose http, tcp or grpc";
pub(super) const NO_H2PING: &str = "has no h2ping checks: choose http, tcp or grpc";

const A_CONNECTION: &str = "a connection, at the port OTHER";

pub(super) fn lines() -> Vec<Line> {
    let mut lines = vec![
        check(
            "spec.checks",
            &[TCP],
            at("Checks.Name"),
            [
                both("checks: [{name: one, tcp: {}}]", "one"),
                both("checks: [{name: one, tcp: {}}, {name: two, tcp: {}}]", "one, two"),
                both("checks: []", "none"),
            ],
        ),
        check(
            "spec.checks[].name",
            &[TCP],
            at("Checks.Name"),
            [both("checks: [{name: one, tcp: {}}]", "one"), both("checks: [{name: two, tcp: {}}]", "two")],
        ),
    ];
    lines.extend(kinds());
    lines.push(check(
        "spec.checks[].port",
        &[TCP, TCP],
        Reading::Asked { catalog: "Checks.Definition.TCP" },
        [
            each(every_second!("tcp: {}"), "a connection", "ADDRESS:PORT"),
            each(every_second!("tcp: {}, port: OTHER"), A_CONNECTION, "ADDRESS:OTHER"),
        ],
    ));
    lines.push(check(
        "spec.checks[].notes",
        &[TCP],
        at("Checks.Notes"),
        [
            both("checks: [{name: c, tcp: {}, notes: see the runbook}]", "see the runbook"),
            both("checks: [{name: c, tcp: {}, notes: 'on call: shop'}]", "on call: shop"),
        ],
    ));
    lines
}

fn kinds() -> Vec<Line> {
    const KIND: Reading = Reading::Asked { catalog: "Checks.Type" };
    let tcp = || each(every_second!("tcp: {}, port: OTHER"), A_CONNECTION, "tcp");
    vec![
        check("spec.checks[].http", &[HTTP, TCP], KIND, [each(every_second!("http: {}"), "`GET /`", "http"), tcp()]),
        check(
            "spec.checks[].tcp",
            &[TCP, HTTP],
            KIND,
            [
                each(every_second!("tcp: {}"), "a connection", "tcp"),
                each(every_second!("http: {}, port: OTHER"), "`GET /`, at the port OTHER", "http"),
            ],
        ),
        check(
            "spec.checks[].grpc",
            &[GRPC, TCP],
            KIND,
            [each(every_second!("grpc: {}"), "`/grpc.health.v1.Health/Check` of the server as a whole", "grpc"), tcp()],
        ),
        check(
            "spec.checks[].udp",
            &[UDP, TCP],
            KIND,
            [agents_only(every_second!("udp: {}"), "a datagram of 0 bytes", NO_UDP), tcp()],
        ),
        check(
            "spec.checks[].h2ping",
            &[H2, TCP],
            KIND,
            [agents_only(every_second!("h2ping: {useTLS: false}"), "a ping", NO_H2PING), tcp()],
        ),
    ]
}

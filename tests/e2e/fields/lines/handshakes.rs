//! How checks speak TLS. The servers' certificate is for `checks.example` and `other.example`.

use super::super::environment::{GRPC, GRPC_TLS, H2, H2_TLS, HTTPS, TCP, TLS};
use super::super::reading::Reading;
use super::checks::NO_H2PING;
use super::{Line, agents_only, check, each, every_second};

const NO_HANDSHAKE: &str = "makes no TLS handshake in a tcp check: remove tcp.useTLS";

const SKIP: Reading = Reading::Asked { catalog: "Checks.Definition.TLSSkipVerify" };
const NAME: Reading = Reading::Asked { catalog: "Checks.Definition.TLSServerName" };

/// What becomes of a check that asks for `stranger.example` and minds.
const STRANGER: &str = "critical, \"certificate is valid for checks.example, other.example, not stranger.example\"";

pub(super) fn lines() -> Vec<Line> {
    http().into_iter().chain(tcp()).chain(grpc()).chain(h2ping()).collect()
}

fn http() -> [Line; 2] {
    [
        check(
            "spec.checks[].http.tlsSkipVerify",
            &[HTTPS],
            SKIP,
            [
                each(
                    every_second!("http: {scheme: https, tlsServerName: stranger.example, tlsSkipVerify: true}"),
                    "`GET /`, over TLS, asking for `stranger.example`",
                    "true",
                ),
                each(
                    every_second!("http: {scheme: https, tlsServerName: stranger.example, tlsSkipVerify: false}"),
                    STRANGER,
                    "none",
                ),
            ],
        ),
        check(
            "spec.checks[].http.tlsServerName",
            &[HTTPS],
            NAME,
            [
                each(
                    every_second!("http: {scheme: https, tlsServerName: checks.example}"),
                    "`GET /`, over TLS, asking for `checks.example`",
                    "checks.example",
                ),
                each(
                    every_second!("http: {scheme: https, tlsServerName: other.example}"),
                    "`GET /`, over TLS, asking for `other.example`",
                    "other.example",
                ),
            ],
        ),
    ]
}

fn tcp() -> [Line; 3] {
    [
        check(
            "spec.checks[].tcp.useTLS",
            &[TCP, TLS],
            Reading::Asked { catalog: "Checks.Definition.TCP" },
            [
                each(every_second!("tcp: {useTLS: false}"), "a connection", "ADDRESS:PORT"),
                agents_only(
                    every_second!("tcp: {useTLS: true}, port: OTHER"),
                    "a connection, over TLS, asking for no name, at the port OTHER",
                    NO_HANDSHAKE,
                ),
            ],
        ),
        check(
            "spec.checks[].tcp.tlsSkipVerify",
            &[TLS],
            SKIP,
            [
                agents_only(
                    every_second!("tcp: {useTLS: true, tlsServerName: stranger.example, tlsSkipVerify: true}"),
                    "a connection, over TLS, asking for `stranger.example`",
                    NO_HANDSHAKE,
                ),
                agents_only(
                    every_second!("tcp: {useTLS: true, tlsServerName: stranger.example, tlsSkipVerify: false}"),
                    STRANGER,
                    NO_HANDSHAKE,
                ),
            ],
        ),
        check(
            "spec.checks[].tcp.tlsServerName",
            &[TLS],
            NAME,
            [
                agents_only(
                    every_second!("tcp: {useTLS: true, tlsServerName: checks.example}"),
                    "a connection, over TLS, asking for `checks.example`",
                    NO_HANDSHAKE,
                ),
                agents_only(
                    every_second!("tcp: {useTLS: true, tlsServerName: other.example}"),
                    "a connection, over TLS, asking for `other.example`",
                    NO_HANDSHAKE,
                ),
            ],
        ),
    ]
}

/// A call over TLS, asking for this name.
macro_rules! call {
    ($name:literal) => {
        concat!("`/grpc.health.v1.Health/Check` of the server as a whole, over TLS, asking for `", $name, "`")
    };
}

fn grpc() -> [Line; 3] {
    [
        check(
            "spec.checks[].grpc.useTLS",
            &[GRPC, GRPC_TLS],
            Reading::Asked { catalog: "Checks.Definition.GRPCUseTLS" },
            [
                each(
                    every_second!("grpc: {useTLS: false}"),
                    "`/grpc.health.v1.Health/Check` of the server as a whole",
                    "none",
                ),
                each(
                    every_second!("grpc: {useTLS: true, tlsServerName: checks.example}, port: OTHER"),
                    concat!(call!("checks.example"), ", at the port OTHER"),
                    "true",
                ),
            ],
        ),
        check(
            "spec.checks[].grpc.tlsSkipVerify",
            &[GRPC_TLS],
            SKIP,
            [
                each(
                    every_second!("grpc: {useTLS: true, tlsServerName: stranger.example, tlsSkipVerify: true}"),
                    call!("stranger.example"),
                    "true",
                ),
                each(
                    every_second!("grpc: {useTLS: true, tlsServerName: stranger.example, tlsSkipVerify: false}"),
                    STRANGER,
                    "none",
                ),
            ],
        ),
        check(
            "spec.checks[].grpc.tlsServerName",
            &[GRPC_TLS],
            NAME,
            [
                each(
                    every_second!("grpc: {useTLS: true, tlsServerName: checks.example}"),
                    call!("checks.example"),
                    "checks.example",
                ),
                each(
                    every_second!("grpc: {useTLS: true, tlsServerName: other.example}"),
                    call!("other.example"),
                    "other.example",
                ),
            ],
        ),
    ]
}

fn h2ping() -> [Line; 3] {
    [
        check(
            "spec.checks[].h2ping.useTLS",
            &[H2, H2_TLS],
            Reading::Asked { catalog: "Checks.Definition.H2PingUseTLS" },
            [
                agents_only(every_second!("h2ping: {useTLS: false}"), "a ping", NO_H2PING),
                agents_only(
                    every_second!("h2ping: {useTLS: true, tlsServerName: checks.example}, port: OTHER"),
                    "a ping, over TLS, asking for `checks.example`, at the port OTHER",
                    NO_H2PING,
                ),
            ],
        ),
        check(
            "spec.checks[].h2ping.tlsSkipVerify",
            &[H2_TLS],
            SKIP,
            [
                agents_only(
                    every_second!("h2ping: {tlsServerName: stranger.example, tlsSkipVerify: true}"),
                    "a ping, over TLS, asking for `stranger.example`",
                    NO_H2PING,
                ),
                agents_only(
                    every_second!("h2ping: {tlsServerName: stranger.example, tlsSkipVerify: false}"),
                    STRANGER,
                    NO_H2PING,
                ),
            ],
        ),
        check(
            "spec.checks[].h2ping.tlsServerName",
            &[H2_TLS],
            NAME,
            [
                agents_only(
                    every_second!("h2ping: {tlsServerName: checks.example}"),
                    "a ping, over TLS, asking for `checks.example`",
                    NO_H2PING,
                ),
                agents_only(
                    every_second!("h2ping: {tlsServerName: other.example}"),
                    "a ping, over TLS, asking for `other.example`",
                    NO_H2PING,
                ),
            ],
        ),
    ]
}

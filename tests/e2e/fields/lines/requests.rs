//! What checks ask for.

use super::super::environment::{GRPC, HTTP, HTTPS};
use super::super::reading::Reading;
use super::{Line, agents_only, check, each, every_second};

const URL: Reading = Reading::Asked { catalog: "Checks.Definition.HTTP" };

pub(super) fn lines() -> Vec<Line> {
    let mut lines = vec![
        check(
            "spec.checks[].http.path",
            &[HTTP],
            URL,
            [
                each(every_second!("http: {path: /health}"), "`GET /health`", "http://ADDRESS:PORT/health"),
                each(
                    every_second!("http: {path: '/ready?deep=1'}"),
                    "`GET /ready?deep=1`",
                    "http://ADDRESS:PORT/ready?deep=1",
                ),
            ],
        ),
        check(
            "spec.checks[].http.scheme",
            &[HTTP, HTTPS],
            URL,
            [
                each(every_second!("http: {scheme: http}"), "`GET /`", "http://ADDRESS:PORT/"),
                each(
                    every_second!("http: {scheme: https}, port: OTHER"),
                    "`GET /`, over TLS, asking for no name, at the port OTHER",
                    "https://ADDRESS:OTHER/",
                ),
            ],
        ),
        check(
            "spec.checks[].http.method",
            &[HTTP],
            Reading::Asked { catalog: "Checks.Definition.Method" },
            [
                each(every_second!("http: {method: HEAD}"), "`HEAD /`", "HEAD"),
                each(every_second!("http: {method: OPTIONS}"), "`OPTIONS /`", "OPTIONS"),
            ],
        ),
    ];
    lines.extend(headers());
    lines.push(body());
    lines.push(check(
        "spec.checks[].grpc.service",
        &[GRPC],
        Reading::Asked { catalog: "Checks.Definition.GRPC" },
        [
            each(
                every_second!("grpc: {service: shop.v1.User}"),
                "`/grpc.health.v1.Health/Check` of `shop.v1.User`",
                "ADDRESS:PORT/shop.v1.User",
            ),
            each(every_second!("grpc: {}"), "`/grpc.health.v1.Health/Check` of the server as a whole", "ADDRESS:PORT"),
        ],
    ));
    lines
}

fn headers() -> Vec<Line> {
    let headers = |field, edited| {
        let created = each(
            every_second!("http: {headers: [{name: X-Probe, value: one}]}"),
            "`GET /`, `x-probe: one`",
            r#"{"X-Probe":["one"]}"#,
        );
        check(field, &[HTTP], Reading::Asked { catalog: "Checks.Definition.Header" }, [created, edited])
    };
    vec![
        headers(
            "spec.checks[].http.headers",
            each(
                every_second!("http: {headers: [{name: X-Probe, value: one}, {name: X-Probe, value: two}]}"),
                "`GET /`, `x-probe: one`, `x-probe: two`",
                r#"{"X-Probe":["one","two"]}"#,
            ),
        ),
        headers(
            "spec.checks[].http.headers[].name",
            each(
                every_second!("http: {headers: [{name: Host, value: one}]}"),
                "`GET /`, `host: one`",
                r#"{"Host":["one"]}"#,
            ),
        ),
        headers(
            "spec.checks[].http.headers[].value",
            each(
                every_second!("http: {headers: [{name: X-Probe, value: 'one, two'}]}"),
                "`GET /`, `x-probe: one, two`",
                r#"{"X-Probe":["one, two"]}"#,
            ),
        ),
    ]
}

fn body() -> Line {
    const NO_BODY: &str = "sends no body: remove http.body";
    check(
        "spec.checks[].http.body",
        &[HTTP],
        Reading::Asked { catalog: "Checks.Definition.Body" },
        [
            agents_only(
                every_second!("http: {method: POST, body: are you well}"),
                "`POST /`, and then `are you well`",
                NO_BODY,
            ),
            agents_only(every_second!("http: {method: POST, body: and now}"), "`POST /`, and then `and now`", NO_BODY),
        ],
    )
}

//! Checks as Consul takes them: in a transaction, and in the registration of an instance with an agent.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::Serialize;

use super::{Check, to_json};
use crate::model::check::{PlacedCheck, Probe, Tls, fingerprint};
use crate::model::health::Health;
use crate::model::ids::{READINESS, Str, check_id};
use crate::model::registration::Registration;

/// The name of a readiness check.
const READINESS_NAME: &str = "Kubernetes readiness";

/// The notes of a readiness check, for people.
const READINESS_NOTES: &str = "Whether Kubernetes considers the pod ready. Kept by Lictor.";

/// The `Type` of a readiness check in the catalog; one that a newcomer finds by its name, and that nothing
/// but us runs.
const READINESS_TYPE: &str = "kubernetes-readiness";

/// The time that an agent waits for the next update before it makes the check critical: ten years, so that the check
/// stays as it is for as long as nobody tells it otherwise.
const READINESS_TTL: &str = "87600h";

/// The output of a readiness check: one text for each state, so that it never changes by itself.
fn readiness_output(readiness: Health) -> &'static str {
    match readiness {
        Health::Passing => "ready in Kubernetes",
        Health::Warning | Health::Critical => "not ready in Kubernetes",
    }
}

/// A check in an operation of a transaction. What is none or empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TxnCheck<'a> {
    /// The Consul node that it is on.
    pub node: &'a str,
    /// The check's ID, unique on its node.
    #[serde(rename = "CheckID")]
    pub id: String,
    /// The check's name, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The check's notes, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<&'a str>,
    /// The kind of check, such as `http`.
    #[serde(rename = "Type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'a str>,
    /// `passing`, `warning` or `critical`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'a str>,
    /// The check's last output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<&'a str>,
    /// The ID of the instance that it is of.
    #[serde(rename = "ServiceID")]
    pub service_id: &'a str,
    /// The name of the instance's service. Consul judges by it whether the token may write the check.
    pub service_name: &'a str,
    /// Holds what consul-esm has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Box<Definition<'a>>>,
    /// The Raft index to compare with; 0 stands for a check that is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modify_index: Option<u64>,
}

impl<'a> TxnCheck<'a> {
    /// A readiness check in this state.
    pub(super) fn readiness(node: &'a str, id: &'a str, service: &'a str, readiness: Health) -> Self {
        Self {
            name: Some(READINESS_NAME),
            notes: Some(READINESS_NOTES),
            kind: Some(READINESS_TYPE),
            status: Some(readiness.as_str()),
            output: Some(readiness_output(readiness)),
            ..Self::named(node, id, service, READINESS)
        }
    }

    /// A check for consul-esm to run. One that was `seen` keeps its status and output; a new one begins with what
    /// Kubernetes says.
    pub(super) fn for_esm(
        node: &'a str,
        id: &'a str,
        registration: &'a Registration,
        placed: &'a PlacedCheck,
        seen: Option<&'a Check>,
    ) -> Self {
        let check = &placed.check;
        let initial = registration.checks.initial().as_str();
        let definition =
            Definition { timeout: noticeable_timeout(placed), ..Definition::of(&registration.address, placed) };
        Self {
            name: Some(&check.name),
            notes: Some(&check.notes),
            kind: Some(check.probe.kind()),
            status: Some(seen.map_or(initial, |seen| seen.status.as_deref().unwrap_or_default())),
            output: Some(seen.and_then(|seen| seen.output.as_deref()).unwrap_or_default()),
            definition: Some(Box::new(definition)),
            modify_index: Some(seen.and_then(|seen| seen.modify_index).unwrap_or_default()),
            ..Self::named(node, id, &registration.service, &check.id_name())
        }
    }

    /// Identifies a check of an instance, and holds nothing else of it.
    pub(super) fn named(node: &'a str, id: &'a str, service: &'a str, name: &str) -> Self {
        Self { node, id: check_id(id, name), service_id: id, service_name: service, ..Self::default() }
    }
}

/// A readiness check in the body of `/v1/agent/service/register`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentReadiness {
    #[serde(rename = "CheckID")]
    id: String,
    name: &'static str,
    notes: &'static str,
    #[serde(rename = "TTL")]
    ttl: &'static str,
    status: &'static str,
}

impl AgentReadiness {
    pub(super) fn of(id: &str, readiness: Health) -> Self {
        Self {
            id: check_id(id, READINESS),
            name: READINESS_NAME,
            notes: READINESS_NOTES,
            ttl: READINESS_TTL,
            status: readiness.as_str(),
        }
    }
}

/// The body of `/v1/agent/check/update` for a readiness check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentUpdate {
    status: &'static str,
    output: &'static str,
}

impl AgentUpdate {
    /// Sets a readiness check to this state.
    #[must_use]
    pub fn of(readiness: Health) -> Self {
        Self { status: readiness.as_str(), output: readiness_output(readiness) }
    }

    /// The request's body.
    #[must_use]
    pub fn body(&self) -> Bytes {
        to_json(self).into()
    }
}

/// A check that an agent runs, in the body of `/v1/agent/service/register`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentCheck<'a> {
    #[serde(rename = "CheckID")]
    id: String,
    name: &'a str,
    notes: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    success_before_passing: u8,
    #[serde(skip_serializing_if = "is_zero")]
    failures_before_warning: u8,
    #[serde(skip_serializing_if = "is_zero")]
    failures_before_critical: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_redirects: Option<bool>,
    #[serde(flatten)]
    definition: Definition<'a>,
}

impl<'a> AgentCheck<'a> {
    pub(super) fn of(id: &str, registration: &'a Registration, placed: &'a PlacedCheck) -> Self {
        let check = &placed.check;
        let (body, disable_redirects) = match &check.probe {
            // A redirect would lead Consul to a host of somebody's choice.
            Probe::Http { body, .. } => (Some(&**body).filter(|body| !body.is_empty()), Some(true)),
            Probe::Tcp { .. } | Probe::Grpc { .. } | Probe::Udp | Probe::H2Ping { .. } => (None, None),
        };
        Self {
            id: check_id(id, &check.id_name()),
            name: &check.name,
            notes: &check.notes,
            status: registration.checks.initial().as_str(),
            success_before_passing: check.success_before_passing,
            failures_before_warning: check.failures_before_warning.unwrap_or_default(),
            failures_before_critical: check.failures_before_critical,
            body,
            disable_redirects,
            definition: Definition::of(&registration.address, placed),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(runs: &u8) -> bool {
    *runs == 0
}

/// Says what a check does, always against the instance's own address, as far as an agent and consul-esm have the same
/// words for it. A value that holds anyway is left out: a Consul that does not know a field yet refuses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Definition<'a> {
    interval: &'a str,
    timeout: Cow<'a, str>,
    #[serde(rename = "HTTP", skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<BTreeMap<String, Vec<&'a str>>>,
    #[serde(rename = "TCP", skip_serializing_if = "Option::is_none")]
    tcp: Option<String>,
    #[serde(rename = "TCPUseTLS", skip_serializing_if = "Option::is_none")]
    tcp_use_tls: Option<bool>,
    #[serde(rename = "GRPC", skip_serializing_if = "Option::is_none")]
    grpc: Option<String>,
    #[serde(rename = "GRPCUseTLS", skip_serializing_if = "Option::is_none")]
    grpc_use_tls: Option<bool>,
    #[serde(rename = "UDP", skip_serializing_if = "Option::is_none")]
    udp: Option<String>,
    #[serde(rename = "H2PING", skip_serializing_if = "Option::is_none")]
    h2ping: Option<String>,
    #[serde(rename = "H2PingUseTLS", skip_serializing_if = "Option::is_none")]
    h2ping_use_tls: Option<bool>,
    #[serde(rename = "TLSSkipVerify", skip_serializing_if = "Option::is_none")]
    tls_skip_verify: Option<bool>,
    #[serde(rename = "TLSServerName", skip_serializing_if = "Option::is_none")]
    tls_server_name: Option<&'a str>,
}

impl<'a> Definition<'a> {
    fn of(address: &str, placed: &'a PlacedCheck) -> Self {
        let PlacedCheck { check, port } = placed;
        let target = match address.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, *port).to_string(),
            Err(_) => format!("{address}:{port}"),
        };
        let definition = Self { interval: &check.interval, timeout: Cow::from(&*check.timeout), ..Self::default() };
        let with_tls = |tls: &Option<Tls>| tls.is_some().then_some(true);
        match &check.probe {
            Probe::Http { path, method, headers, body: _, tls } => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let (http, header) = (Some(format!("{scheme}://{target}{path}")), Some(by_name(headers)));
                Self { http, method: Some(method), header, ..definition }.with_tls(tls.as_ref())
            }
            Probe::Tcp { tls } => {
                Self { tcp: Some(target), tcp_use_tls: with_tls(tls), ..definition }.with_tls(tls.as_ref())
            }
            Probe::Grpc { service, tls } => {
                let service = if service.is_empty() { String::new() } else { format!("/{service}") };
                let grpc = Some(format!("{target}{service}"));
                Self { grpc, grpc_use_tls: with_tls(tls), ..definition }.with_tls(tls.as_ref())
            }
            Probe::Udp => Self { udp: Some(target), ..definition },
            Probe::H2Ping { tls } => {
                let h2ping_use_tls = Some(tls.is_some());
                Self { h2ping: Some(target), h2ping_use_tls, ..definition }.with_tls(tls.as_ref())
            }
        }
    }

    fn with_tls(self, tls: Option<&'a Tls>) -> Self {
        Self {
            tls_skip_verify: tls.map(|tls| tls.skip_verify),
            tls_server_name: tls.map(|tls| tls.server_name.as_deref().unwrap_or_default()),
            ..self
        }
    }
}

/// Headers as Consul takes them. It finds `Host`, `Accept` and `User-Agent` in this spelling only, and adds the
/// latter two a second time in any other.
fn by_name(headers: &[(Str, Str)]) -> BTreeMap<String, Vec<&str>> {
    let mut by_name: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, value) in headers {
        by_name.entry(canonical(name)).or_default().push(value);
    }
    by_name
}

/// A header's name as Go spells it (`http.CanonicalHeaderKey`): names are compared without case.
fn canonical(name: &str) -> String {
    let words: Vec<String> = name
        .split('-')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_ascii_uppercase() + &rest.to_ascii_lowercase()
        })
        .collect();
    words.join("-")
}

/// A check's time-out, longer by a part of a millisecond that stands for the headers of a request: consul-esm sees a
/// changed time-out, and goes on with the old headers where one was only added (`headersAlmostEqual`).
fn noticeable_timeout(placed: &PlacedCheck) -> Cow<'_, str> {
    let timeout = &*placed.check.timeout;
    match &placed.check.probe {
        Probe::Http { headers, .. } if !headers.is_empty() => {
            format!("{timeout}{}ns", fingerprint(headers) % 1_000_000).into()
        }
        _ => timeout.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_spelled_as_consul_looks_for_them() {
        for (given, spelled) in
            [("host", "Host"), ("X-PROBE", "X-Probe"), ("user-agent", "User-Agent"), ("a--b-", "A--B-")]
        {
            assert_eq!(canonical(given), spelled);
        }
        let headers = [("x-a".into(), "1".into()), ("X-A".into(), "2".into())];
        assert_eq!(by_name(&headers), [("X-A".to_owned(), vec!["1", "2"])].into());
    }
}

//! Checks in Consul's JSON: what they say of an instance, and the two ways of writing one that Consul runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::model::check::{PlacedCheck, Probe, Tls, fingerprint};
use crate::model::names::{READINESS, Str, check_id, check_name};
use crate::model::registration::{Health, Registration};

/// A check, as `/v1/agent/checks` and `/v1/health/node` show it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    /// Unique on its node.
    #[serde(rename = "CheckID")]
    pub id: Option<String>,
    /// `passing`, `warning`, `critical`.
    pub status: Option<String>,
    /// What it said last.
    pub output: Option<String>,
    /// Empty for a check of the node itself.
    #[serde(rename = "ServiceID")]
    pub service_id: Option<String>,
    /// What consul-esm is to do. An agent keeps this to itself.
    pub definition: Option<Definition>,
    /// The Raft index of its last change, in the catalog.
    pub modify_index: Option<u64>,
}

/// What of a check's definition consul-esm goes by.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
pub struct Definition {
    /// A URL.
    pub http: Option<String>,
    /// An address and port.
    pub tcp: Option<String>,
    /// An address and port, and a service.
    pub grpc: Option<String>,
}

impl Check {
    /// Whether consul-esm runs it where its node's meta says so.
    #[must_use]
    pub fn is_for_esm(&self) -> bool {
        let targets =
            self.definition.iter().flat_map(|definition| [&definition.http, &definition.tcp, &definition.grpc]);
        targets.flatten().any(|target| !target.is_empty())
    }

    /// Whether it is the check by which the servers watch a Consul agent: its node is the agent's
    /// (`structs.SerfCheckID`).
    #[must_use]
    pub fn is_of_agent(&self) -> bool {
        self.instance().is_none() && self.id.as_deref() == Some("serfHealth")
    }

    /// The instance that it is of; none for a check of the node itself.
    fn instance(&self) -> Option<&str> {
        self.service_id.as_deref().filter(|id| !id.is_empty())
    }

    /// What its ID calls it, where that is of our making.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        check_name(self.instance()?, self.id.as_deref()?)
    }
}

/// What the checks of one node say, by service ID.
#[derive(Debug, Default)]
pub struct Healths(BTreeMap<String, InstanceHealth>);

#[derive(Clone, Debug)]
struct InstanceHealth {
    worst: Health,
    readiness: Option<Health>,
    /// The names of our other checks.
    checks: BTreeSet<Str>,
}

impl Healths {
    /// Sorts the checks of a node by service; those of the node itself say nothing about an instance.
    #[must_use]
    pub fn new(checks: impl IntoIterator<Item = Check>) -> Self {
        let mut healths: BTreeMap<String, InstanceHealth> = BTreeMap::new();
        for check in checks {
            let status = Health::parse(check.status.as_deref().unwrap_or_default());
            let name = check.name().map(Str::from);
            let Some(service) = check.service_id.filter(|id| !id.is_empty()) else { continue };
            let none = InstanceHealth { worst: Health::Passing, readiness: None, checks: BTreeSet::new() };
            let health = healths.entry(service).or_insert(none);
            health.worst = health.worst.max(status);
            match name {
                Some(name) if *name == *READINESS => health.readiness = Some(status),
                Some(name) => {
                    health.checks.insert(name);
                }
                None => {}
            }
        }
        Self(healths)
    }

    /// The worst of an instance's checks; passing where it has none.
    #[must_use]
    pub fn worst(&self, id: &str) -> Health {
        self.0.get(id).map_or(Health::Passing, |health| health.worst)
    }

    /// What an instance's readiness check says, where it has one.
    #[must_use]
    pub fn readiness(&self, id: &str) -> Option<Health> {
        self.0.get(id)?.readiness
    }

    /// The names of our other checks of an instance.
    #[must_use]
    pub fn checks(&self, id: &str) -> BTreeSet<Str> {
        self.0.get(id).map_or_else(BTreeSet::new, |health| health.checks.clone())
    }
}

/// What a readiness check is called.
const READINESS_NAME: &str = "Kubernetes readiness";

/// What it is for.
const READINESS_NOTES: &str = "Whether Kubernetes considers the pod ready. Kept by Lictor.";

/// The `Type` of a readiness check in the catalog; one that a newcomer finds by its name, and that nothing
/// but us runs.
const READINESS_TYPE: &str = "kubernetes-readiness";

/// How long an agent waits for the next update before it makes the check critical: ten years, so that the
/// check stays as it is for as long as nobody tells it otherwise.
const READINESS_TTL: &str = "87600h";

/// The output of a readiness check: one text for each state, so that it never changes by itself.
fn readiness_output(readiness: Health) -> &'static str {
    match readiness {
        Health::Passing => "ready in Kubernetes",
        Health::Warning | Health::Critical => "not ready in Kubernetes",
    }
}

/// A readiness check in the body of `/v1/agent/service/register`.
pub(super) fn agent_readiness_check(id: &str, readiness: Health) -> Value {
    json!({
        "CheckID": check_id(id, READINESS),
        "Name": READINESS_NAME,
        "Notes": READINESS_NOTES,
        "TTL": READINESS_TTL,
        "Status": readiness.as_str(),
    })
}

/// The body of `/v1/agent/check/update` for a readiness check.
#[must_use]
pub fn agent_readiness(readiness: Health) -> String {
    json!({ "Status": readiness.as_str(), "Output": readiness_output(readiness) }).to_string()
}

/// A check that an agent runs, in the body of `/v1/agent/service/register`.
pub(super) fn agent_check(id: &str, registration: &Registration, placed: &PlacedCheck) -> Value {
    let check = &placed.check;
    let mut fields = definition(&registration.address, placed);
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    put("CheckID", json!(check_id(id, &check.id_name())));
    put("Name", json!(&*check.name));
    put("Notes", json!(&*check.notes));
    put("Status", json!(registration.checks.initial().as_str()));
    let thresholds = [
        ("SuccessBeforePassing", check.success_before_passing),
        ("FailuresBeforeWarning", check.failures_before_warning.unwrap_or_default()),
        ("FailuresBeforeCritical", check.failures_before_critical),
    ];
    for (name, runs) in thresholds.into_iter().filter(|(_, runs)| *runs > 0) {
        put(name, json!(runs));
    }
    if let Probe::Http { body, .. } = &check.probe {
        if !body.is_empty() {
            put("Body", json!(&**body));
        }
        // A redirect would lead Consul to a host of somebody's choice.
        put("DisableRedirects", json!(true));
    }
    Value::Object(fields)
}

/// What a check does, always against the instance's own address, as far as an agent and consul-esm have the same
/// words for it. What is as it would be anyway is left out: a Consul that does not know a field yet refuses it.
fn definition(address: &str, placed: &PlacedCheck) -> Map<String, Value> {
    let PlacedCheck { check, port } = placed;
    let target = match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, *port).to_string(),
        Err(_) => format!("{address}:{port}"),
    };
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    put("Interval", json!(&*check.interval));
    put("Timeout", json!(&*check.timeout));
    let tls = match &check.probe {
        Probe::Http { path, method, headers, body: _, tls } => {
            let scheme = if tls.is_some() { "https" } else { "http" };
            put("HTTP", json!(format!("{scheme}://{target}{path}")));
            put("Method", json!(&**method));
            put("Header", json!(by_name(headers)));
            tls
        }
        Probe::Tcp { tls } => {
            put("TCP", json!(target));
            if tls.is_some() {
                put("TCPUseTLS", json!(true));
            }
            tls
        }
        Probe::Grpc { service, tls } => {
            let service = if service.is_empty() { String::new() } else { format!("/{service}") };
            put("GRPC", json!(format!("{target}{service}")));
            if tls.is_some() {
                put("GRPCUseTLS", json!(true));
            }
            tls
        }
        Probe::Udp => {
            put("UDP", json!(target));
            &None
        }
        Probe::H2Ping { tls } => {
            put("H2PING", json!(target));
            put("H2PingUseTLS", json!(tls.is_some()));
            tls
        }
    };
    if let Some(Tls { skip_verify, server_name }) = tls {
        put("TLSSkipVerify", json!(skip_verify));
        put("TLSServerName", json!(server_name.as_deref().unwrap_or_default()));
    }
    fields
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

/// The operation of a transaction that sets a readiness check.
#[must_use]
pub fn txn_readiness_set(node: &str, id: &str, service: &str, readiness: Health) -> String {
    json!({ "Check": { "Verb": "set", "Check": {
        "Node": node,
        "CheckID": check_id(id, READINESS),
        "Name": READINESS_NAME,
        "Notes": READINESS_NOTES,
        "Type": READINESS_TYPE,
        "Status": readiness.as_str(),
        "Output": readiness_output(readiness),
        "ServiceID": id,
        "ServiceName": service,
    } } })
    .to_string()
}

/// The operation that sets a check for consul-esm to run. One that is there keeps what consul-esm says of it, if it
/// still is as it was `seen`; one that is not there begins with what Kubernetes says.
#[must_use]
pub fn txn_check_cas(
    node: &str,
    id: &str,
    registration: &Registration,
    placed: &PlacedCheck,
    seen: Option<&Check>,
) -> String {
    let check = &placed.check;
    let mut definition = definition(&registration.address, placed);
    definition.insert("Timeout".to_owned(), json!(noticeable_timeout(placed)));
    let initial = registration.checks.initial().as_str();
    json!({ "Check": { "Verb": "cas", "Check": {
        "Node": node,
        "CheckID": check_id(id, &check.id_name()),
        "Name": &*check.name,
        "Notes": &*check.notes,
        "Type": check.probe.kind(),
        "Status": seen.map_or(initial, |seen| seen.status.as_deref().unwrap_or_default()),
        "Output": seen.and_then(|seen| seen.output.as_deref()).unwrap_or_default(),
        "ServiceID": id,
        "ServiceName": &*registration.service,
        "Definition": definition,
        "ModifyIndex": seen.and_then(|seen| seen.modify_index).unwrap_or_default(),
    } } })
    .to_string()
}

/// A check's time-out, longer by a part of a millisecond that stands for the headers of a request: consul-esm sees a
/// changed time-out, and goes on with the old headers where one was only added (`headersAlmostEqual`).
fn noticeable_timeout(placed: &PlacedCheck) -> String {
    let timeout = &placed.check.timeout;
    match &placed.check.probe {
        Probe::Http { headers, .. } if !headers.is_empty() => {
            format!("{timeout}{}ns", fingerprint(headers) % 1_000_000)
        }
        _ => timeout.to_string(),
    }
}

/// The operation that deletes a check of ours; of one that is not there it does nothing.
#[must_use]
pub fn txn_check_delete(node: &str, id: &str, service: &str, name: &str) -> String {
    json!({ "Check": { "Verb": "delete", "Check": {
        "Node": node,
        "CheckID": check_id(id, name),
        "ServiceID": id,
        "ServiceName": service,
    } } })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_as_healthy_as_its_worst_check() {
        let check = |id: &str, service: &str, status: &str| Check {
            id: Some(id.to_owned()),
            service_id: Some(service.to_owned()),
            status: Some(status.to_owned()),
            ..Check::default()
        };
        let healths = Healths::new([
            check("serfHealth", "", "critical"),
            check("a:readiness", "a", "passing"),
            check("a:web:http", "a", "warning"),
            check("b:web:http", "b", "maintenance"),
        ]);
        assert_eq!((healths.worst("a"), healths.readiness("a")), (Health::Warning, Some(Health::Passing)));
        assert_eq!((healths.worst("b"), healths.readiness("b")), (Health::Critical, None));
        assert_eq!((healths.worst("c"), healths.readiness("c")), (Health::Passing, None));
        assert_eq!(healths.checks("a"), ["web:http".into()].into());
    }

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

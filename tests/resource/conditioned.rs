//! What the apiserver takes and Lictor answers with a condition. Each row stands in `docs/refusals.md`; add yours
//! here, and say how it is tested.

use lictor::cluster::convert::{self, ChecksRunBy, Rules};
use lictor::model::policy::{Others, Place, Policy};
use lictor::model::reasons::Refusal;
use lictor::state::event::ObjectKey;

use crate::fixture;

/// Something that gets a condition.
pub(crate) struct Row {
    /// What is wrong, in a few words.
    pub(crate) what: &'static str,
    /// Fields of the spec, beside a source where they have none.
    pub(crate) yaml: String,
    /// The flag of Lictor that matters.
    pub(crate) with: Option<&'static str>,
    /// Which condition is `False`.
    pub(crate) condition: &'static str,
    /// Its reason.
    pub(crate) reason: &'static str,
    /// Its message; of one that is tested end to end, an example.
    pub(crate) message: &'static str,
    /// How that is tested.
    pub(crate) how: How,
}

/// How a row is tested.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// Here: the spec alone decides, with what the administrator says.
    Conversion(Setup),
    /// By a scenario of `docs/scenarios.md`, such as `refusals::a_service_that_does_not_exist`.
    EndToEnd(&'static str),
}

/// What the administrator says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Nothing: `--registration=agent`.
    Agent,
    /// `--registration=catalog`.
    Catalog,
    /// `--registration=catalog --consul-esm`.
    Esm,
    /// That any address may be chosen.
    AnyStatic,
}

/// What the spec alone decides.
fn refused(what: &'static str, yaml: impl Into<String>, by: Setup, reason: &'static str, message: &'static str) -> Row {
    let with = match by {
        Setup::Agent => None,
        Setup::Catalog => Some("--registration=catalog"),
        Setup::Esm => Some("--registration=catalog --consul-esm"),
        Setup::AnyStatic => Some("--allow-static=0.0.0.0/0,::/0"),
    };
    Row { what, yaml: yaml.into(), with, condition: "Accepted", reason, message, how: How::Conversion(by) }
}

/// What Lictor says of a row; none if it accepts it.
pub(crate) fn refusal(row: &Row, setup: Setup) -> Option<Refusal> {
    let any = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap());
    let networks = if setup == Setup::AnyStatic { any.to_vec() } else { Vec::new() };
    let checks = match setup {
        Setup::Agent | Setup::AnyStatic => ChecksRunBy::Agent,
        Setup::Catalog => ChecksRunBy::Nobody,
        Setup::Esm => ChecksRunBy::Esm,
    };
    let rules = Rules { checks, ..Rules::default() };
    let object = serde_json::from_value(fixture::resource("user", &fixture::spec(&row.yaml))).unwrap();
    let resource = convert::resource(ObjectKey::new("shop", "user"), object, &rules).resource;
    let policy = Policy { networks, ..Policy::default() };
    resource
        .spec
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|spec| policy.judge(&resource, None, spec, Place::Fits, Others::Nobody))
        .err()
}

/// All rows.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = templates();
    rows.extend(addresses());
    rows.extend(not_supported());
    rows.extend(sources());
    rows
}

/// What is said of a value that there is not.
macro_rules! no_value {
    ($field:literal, $value:literal) => {
        concat!(
            $field,
            ": ${",
            $value,
            "} does not exist: use pod.name, pod.namespace, pod.uid, pod.labels['key'], ",
            "pod.annotations['key'], node.name, node.zone, node.region or ports['name'], or write $${",
            $value,
            "} for the literal text"
        )
    };
}

fn templates() -> Vec<Row> {
    vec![
        refused(
            "a value that there is not, in a tag",
            "tags: [\"${pod.ip}\"]",
            Setup::Agent,
            "InvalidTemplate",
            no_value!("spec.tags", "pod.ip"),
        ),
        refused(
            "a value that there is not, in meta",
            "meta: {zone: \"${node.labels['topology.kubernetes.io/zone']}\"}",
            Setup::Agent,
            "InvalidTemplate",
            no_value!("spec.meta, key \"zone\"", "node.labels['topology.kubernetes.io/zone']"),
        ),
        refused(
            "a label without its key",
            "meta: {version: \"${pod.labels}\"}",
            Setup::Agent,
            "InvalidTemplate",
            no_value!("spec.meta, key \"version\"", "pod.labels"),
        ),
        refused(
            "a value that there is not, of a static address",
            "source: {static: [{address: 203.0.113.7, port: 80, tags: [\"${address}\"]}]}",
            Setup::AnyStatic,
            "InvalidTemplate",
            no_value!("spec.source.static", "address"),
        ),
    ]
}

fn addresses() -> Vec<Row> {
    let fixed = |address: &str| format!("source: {{static: [{{address: {address}, port: 80}}]}}");
    vec![
        refused(
            "a static address that is not allowed",
            fixed("203.0.113.7"),
            Setup::Agent,
            "NotAllowed",
            "spec.source.static: 203.0.113.7 is not in a range that is allowed: ask the administrator of Lictor to add one with --allow-static",
        ),
        refused(
            "a tagged address that is not allowed",
            "taggedAddresses: {wan: {address: 198.51.100.1, port: 443}}",
            Setup::Agent,
            "NotAllowed",
            "spec.taggedAddresses.wan: 198.51.100.1 is not in a range that is allowed: ask the administrator of Lictor to add one with --allow-static",
        ),
    ]
}

fn not_supported() -> Vec<Row> {
    vec![
        refused(
            "a namespace of Consul Enterprise",
            "namespace: team-a",
            Setup::Agent,
            "NotSupported",
            "spec.namespace \"team-a\": Consul has namespaces only in its Enterprise edition, and this version of Lictor registers in the default one: remove the field",
        ),
        refused(
            "a partition of Consul Enterprise",
            "partition: team-a",
            Setup::Agent,
            "NotSupported",
            "spec.partition \"team-a\": Consul has partitions only in its Enterprise edition, and this version of Lictor registers in the default one: remove the field",
        ),
        refused(
            "checks where nothing runs them",
            "checks: [{name: alive, tcp: {}}]",
            Setup::Catalog,
            "NotSupported",
            "spec.checks with --registration=catalog, where nothing runs them (readiness works; remove the checks, or have the administrator run consul-esm and start Lictor with --consul-esm): not supported by this version of Lictor",
        ),
        refused(
            "a kind of check that consul-esm does not run",
            "checks: [{name: alive, udp: {}}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, has no udp checks: choose http, tcp or grpc",
        ),
        refused(
            "the other kind of check that consul-esm does not run",
            "checks: [{name: alive, h2ping: {}}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, has no h2ping checks: choose http, tcp or grpc",
        ),
        refused(
            "a body that consul-esm does not send",
            "checks: [{name: alive, http: {method: POST, body: are you well}}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, sends no body: remove http.body",
        ),
        refused(
            "a handshake that consul-esm does not make",
            "checks: [{name: alive, tcp: {useTLS: true}}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, makes no TLS handshake in a tcp check: remove tcp.useTLS",
        ),
        refused(
            "successes that consul-esm does not count for a check",
            "checks: [{name: alive, tcp: {}, successBeforePassing: 2}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, has one passing_threshold for all checks: remove successBeforePassing",
        ),
        refused(
            "failures that consul-esm does not count for a check",
            "checks: [{name: alive, tcp: {}, failuresBeforeCritical: 2}]",
            Setup::Esm,
            "NotSupported",
            "spec.checks \"alive\": consul-esm, which runs the checks here, has one critical_threshold for all checks: remove failuresBeforeWarning and failuresBeforeCritical",
        ),
    ]
}

/// What depends on what else there is in Kubernetes.
fn sources() -> Vec<Row> {
    vec![
        Row {
            what: "a Service that does not exist",
            yaml: "source: {service: {name: nope}}".to_owned(),
            with: None,
            condition: "Resolved",
            reason: "ServiceNotFound",
            message: "Service \"nope\" does not exist in this namespace",
            how: How::EndToEnd("refusals::a_service_that_does_not_exist"),
        },
        Row {
            what: "a port that the Service has not",
            yaml: "port: 8080".to_owned(),
            with: None,
            condition: "Resolved",
            reason: "PortNotFound",
            message: "Service \"user\" has no port 8080 (the Service's own number, not the pod's); its ports: 80 (http)",
            how: How::EndToEnd("ports::a_port_that_does_not_match"),
        },
    ]
}

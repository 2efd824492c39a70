//! `examples/access/admission-policy.yaml` on a real apiserver: it refuses what the rule of `policy.yaml` refuses, as far
//! as CEL can see.

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams};
use lictor::cluster::convert::{self, ChecksRunBy, Rules};
use lictor::model::policy::{Others, Place, Policy};
use lictor::state::event::ObjectKey;
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::file;
use crate::fixture::{self, Fixture, SOON};

const EXAMPLE: &str = "examples/access/admission-policy.yaml";

/// Stands for the namespace in the rows.
const NAMESPACE: &str = "NAMESPACE";

/// What both allow.
const ALLOWED: [&str; 8] = [
    "name: NAMESPACE_cards",
    "name: NAMESPACE_Cards",
    "{name: NAMESPACE_a, tags: [v1, env=prod, \"v${pod.labels['version']}\"]}",
    "{name: NAMESPACE_a, meta: {team: a, version: b}}",
    "{name: NAMESPACE_a, checks: [{name: a, tcp: {}}, {name: b, http: {}, interval: 1m30s}]}",
    "{name: NAMESPACE_a, source: {static: [{address: 203.0.113.7, port: 80, tags: [v2], meta: {team: b}}]}}",
    "{name: NAMESPACE_a, taggedAddresses: {wan: {address: 203.0.113.8, port: 443}}}",
    "{name: NAMESPACE_a, class: \"\", deletionPolicy: Deregister}",
];

/// What both refuse, each because of one rule alone, and the words of the admission policy.
const REFUSED: [(&str, &str); 13] = [
    ("name: cards", "spec.name: cards does not begin with NAMESPACE_"),
    ("name: NAMESPACE-cards", "spec.name: NAMESPACE-cards does not begin with NAMESPACE_"),
    ("{}", "spec.name: user does not begin with NAMESPACE_"),
    ("{name: NAMESPACE_a, tags: [v1, traefik.enable=true]}", "spec.tags: each tag"),
    ("{name: NAMESPACE_a, tags: [\"${pod.name}\"]}", "spec.tags: each tag"),
    (
        "{name: NAMESPACE_a, source: {static: [{address: 203.0.113.7, port: 80, tags: [urlprefix-/]}]}}",
        "spec.tags: each tag",
    ),
    ("{name: NAMESPACE_a, meta: {owner: me}}", "spec.meta: the keys"),
    (
        "{name: NAMESPACE_a, source: {static: [{address: 203.0.113.7, port: 80, meta: {zone: z}}]}}",
        "spec.meta: the keys",
    ),
    ("{name: NAMESPACE_a, checks: [{name: a, udp: {}}]}", "each check is http or tcp"),
    ("{name: NAMESPACE_a, checks: [{name: a, tcp: {}, interval: 9s, timeout: 1s}]}", "each interval is at least 10s"),
    (
        "{name: NAMESPACE_a, checks: [{name: a, tcp: {}}, {name: b, tcp: {}}, {name: c, tcp: {}}, {name: d, tcp: {}}, {name: e, tcp: {}}]}",
        "at most 4 checks",
    ),
    ("{name: NAMESPACE_a, source: {static: [{address: 198.51.100.7, port: 80}]}}", "each address is in 203.0.113.0/24"),
    (
        "{name: NAMESPACE_a, taggedAddresses: {wan: {address: 198.51.100.7, port: 1}}}",
        "each address is in 203.0.113.0/24",
    ),
];

/// As [`REFUSED`], of single fields that have no row of their own above.
const REFUSED_TOO: [(&str, &str); 2] = [
    ("{name: NAMESPACE_a, deletionPolicy: Retain}", "Retain is not allowed"),
    ("{name: NAMESPACE_a, class: blue}", "only the default class"),
];

/// Says whether the rule of `policy.yaml` allows a spec.
fn is_allowed(policy: &Policy, namespace: &str, yaml: &str) -> Result<bool> {
    let spec = fixture::spec(&yaml.replace(NAMESPACE, namespace));
    let class = spec["class"].as_str().map(ToOwned::to_owned);
    let policy = Policy { class: class.clone().unwrap_or_default().into(), ..policy.clone() };
    let rules = Rules { checks: ChecksRunBy::Agent, class, ..Rules::default() };
    let object = serde_json::from_value(fixture::resource("user", &spec))?;
    let resource = convert::resource(ObjectKey::new(namespace, "user"), object, &rules).resource;
    let asked = resource.spec.as_ref().map_err(|refusal| anyhow!("{yaml}: {}", refusal.message))?;
    Ok(policy.judge(&resource, None, asked, Place::Fits, Others::Nobody).is_ok())
}

/// The rows that are refused.
fn refused() -> impl Iterator<Item = (&'static str, &'static str)> {
    REFUSED.into_iter().chain(REFUSED_TOO)
}

#[test]
fn lictors_own_rule_says_the_same() -> Result<()> {
    let text = std::fs::read_to_string(file("examples/access/policy.yaml"))?;
    let policy = Policy { rules: Some(lictor::policy::parse(&text)?), ..Policy::default() };
    for yaml in ALLOWED {
        ensure!(is_allowed(&policy, "pay-eu", yaml)?, "Lictor refuses {yaml}");
    }
    for (yaml, _) in refused() {
        ensure!(!is_allowed(&policy, "pay-eu", yaml)?, "Lictor allows {yaml}");
    }
    Ok(())
}

#[tokio::test]
async fn the_apiserver_refuses_what_the_example_says() -> Result<()> {
    let fixture = Fixture::make().await?;
    let namespace = fixture.namespace().to_owned();
    // Made before there was a policy, as it no longer may be.
    fixture.apply("old", &fixture::spec("tags: [old]"), "").await?.map_err(|status| anyhow!("{status}"))?;
    let labels = json!({ "metadata": { "labels": { "consul-policy": "payments" } } });
    let namespaces: Api<Namespace> = Api::all(fixture.client().clone());
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&labels)).await?;
    let path = file(EXAMPLE);
    fixture.plane.kubectl(&["apply", "--filename", path.to_str().context("a path")?]).await?;
    // The apiserver reads policies anew after a moment.
    wait::until("the admission policy is in force", SOON, || async {
        Ok(fixture.create("user", &fixture::smallest()).await?.is_err().then_some(()))
    })
    .await?;

    for yaml in ALLOWED {
        fixture.accepts(&fixture::spec(&yaml.replace(NAMESPACE, &namespace))).await?;
    }
    for (yaml, words) in refused() {
        let spec = fixture::spec(&yaml.replace(NAMESPACE, &namespace));
        let Err(status) = fixture.create("user", &spec).await? else { anyhow::bail!("the apiserver takes {yaml}") };
        let words = words.replace(NAMESPACE, &namespace);
        ensure!(
            status.message.contains(&words) && status.message.contains("consulservices-payments"),
            "{yaml}: {status:?}"
        );
        // Each because of one rule alone: without that rule it would be taken.
        ensure!(status.message.matches("denied request").count() == 1, "{yaml}: {status:?}");
    }
    every_rule_is_tried()?;

    // The older resource keeps what it has, loses and gets finalizers, and cannot be edited to another spec but a right one.
    let url = format!("{}/old", fixture.path());
    let merged = async |patch: Value| fixture.merge(&url, &patch).await;
    let finalizers = |names: &[&str]| json!({ "metadata": { "finalizers": names } });
    merged(finalizers(&["lictor.dev/deregister"])).await?.map_err(|status| anyhow!("{status}"))?;
    merged(finalizers(&[])).await?.map_err(|status| anyhow!("{status}"))?;
    ensure!(merged(json!({ "spec": { "tags": ["older"] } })).await?.is_err(), "an edit that is not allowed is taken");
    let right = json!({ "spec": { "tags": ["v1"], "name": format!("{namespace}_old") } });
    merged(right).await?.map_err(|status| anyhow!("{status}"))?;
    fixture.plane.kubectl(&["delete", "--filename", path.to_str().context("a path")?]).await?;
    fixture.clear_away().await;
    Ok(())
}

/// Each validation of the example has a row that it alone refuses.
fn every_rule_is_tried() -> Result<()> {
    let text = std::fs::read_to_string(file(EXAMPLE))?;
    let messages = text.lines().filter_map(|line| line.trim().strip_prefix("message")).count();
    let tried = |words: &str| refused().any(|(_, row)| words.contains(row));
    let untried: Vec<&str> =
        text.lines().map(str::trim).filter(|line| line.starts_with("message:") && !tried(line)).collect();
    ensure!(messages == 9 && untried.is_empty(), "{messages} messages, and no row tries {untried:?}");
    Ok(())
}

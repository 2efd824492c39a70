//! What people run by hand beside the operator: `plan`, `doctor`, `release`.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LICTOR, Mode, SOON, arg};

/// Runs a subcommand, which may be two words, with the flags of the fixture's operator, and with `more` in place of those of
/// the same name.
fn lictor(fixture: &Fixture, subcommand: &str, more: &[&str]) -> Result<Output> {
    let consul = fixture.consul_address();
    let own = [
        ["--registration", fixture.mode.as_str()],
        ["--cluster-name", &fixture.cluster],
        ["--namespace", fixture.namespace.name()],
        ["--consul-address", &consul],
        ["--kubeconfig", arg(&fixture.kubeconfig)?],
    ];
    let own = own.iter().filter(|[flag, _]| !more.contains(flag)).flatten();
    Ok(Command::new(LICTOR).args(subcommand.split(' ')).args(own).args(more).output()?)
}

/// What a subcommand says, which ends with this code.
pub(crate) fn says(fixture: &Fixture, subcommand: &str, more: &[&str], code: i32) -> Result<String> {
    let output = lictor(fixture, subcommand, more)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{subcommand} {more:?} ended with {}:\n{out}{err}", output.status);
    Ok(format!("{out}{err}"))
}

/// The Consul nodes that bear our cluster's name.
async fn nodes_of_ours(fixture: &Fixture) -> Result<Vec<String>> {
    let nodes = fixture.consul().get("/v1/catalog/nodes").await?;
    let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str());
    Ok(names.filter(|name| name.contains(&fixture.cluster)).map(str::to_owned).collect())
}

pub(crate) fn plan(fixture: &Fixture, code: i32) -> Result<Value> {
    plan_with(fixture, &[], code)
}

/// The plan with more flags.
pub(crate) fn plan_with(fixture: &Fixture, more: &[&str], code: i32) -> Result<Value> {
    let text = says(fixture, "plan", &[&["--output", "json"], more].concat(), code)?;
    serde_json::from_str(&text).with_context(|| text)
}

pub(crate) async fn a_plan_is_what_would_be_done(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({ "tags": ["a"] })).await?;
    // Kubernetes' own controllers take a moment.
    let both =
        || async { Ok(plan(fixture, 1).ok().filter(|found| found["steps"].as_array().map(Vec::len) == Some(2))) };
    let found = wait::until("a plan for two endpoints", SOON, both).await?;
    let steps = found["steps"].as_array().context("steps")?;
    ensure!(steps.iter().all(|step| step["action"] == "create"), "{found:#}");
    ensure!(says(fixture, "plan", &[], 1)?.contains("2 to create, 0 to update"));
    ensure!(fixture.instances().await?.is_empty(), "a plan wrote to Consul");
    ensure!(nodes_of_ours(fixture).await?.is_empty(), "a plan made a node");

    let operator = fixture.operate().await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    fixture.wait_ready("web").await?;
    let found = plan(fixture, 0)?;
    ensure!(found["steps"] == json!([]), "{found:#}");
    ensure!(operator.get("/readyz").await?.starts_with("ok"), "a plan got in the operator's way");
    operator.terminate(SOON).await?;

    fixture.apply_web(json!({ "tags": ["b"], "weights": { "passing": 3 } })).await?;
    fixture.apply("other", &fixture.spec(json!({ "name": "consul_esm", "partition": "a" }))).await?;
    let found = plan(fixture, 1)?;
    let differences = json!(["tags: a → b", "weights: 1/1 → 3/1"]);
    let steps = found["steps"].as_array().context("steps")?;
    ensure!(steps.len() == 2, "{found:#}");
    ensure!(steps.iter().all(|step| step["action"] == "update" && step["differences"] == differences), "{found:#}");
    ensure!(found["notes"][0]["reason"] == "NotSupported", "{found:#}");

    let output = lictor(fixture, "plan", &["--consul-token-file", "/nowhere"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

pub(crate) async fn a_doctor_says_what_is_missing(fixture: &Fixture) -> Result<()> {
    let well = says(fixture, "doctor", &[], 0)?;
    ensure!(!well.contains("FAIL") && well.contains("was registered and deregistered"), "{well}");
    let left = fixture.consul().instances("lictor-doctor").await?;
    ensure!(left.iter().all(|i| !i.id.contains(&fixture.cluster)), "{left:?}");
    let ill = says(fixture, "doctor", &["--consul-address", "http://127.0.0.1:1"], 1)?;
    ensure!(ill.contains("FAIL  Consul answers: Consul at http://127.0.0.1:1"), "{ill}");
    if fixture.mode == Mode::Catalog {
        let both = format!("http://127.0.0.1:1,{}", fixture.consul_address());
        let ill = says(fixture, "doctor", &["--consul-address", &both], 1)?;
        let rest = ["FAIL  Consul answers at http://127.0.0.1:1: ", "ok    Consul can be written"];
        ensure!(rest.iter().all(|words| ill.contains(words)), "{ill}");
        ensure!(ill.contains(&format!("ok    Consul answers at {}", fixture.consul_address())), "{ill}");
    }
    Ok(())
}

pub(crate) async fn detaching_leaves_nothing_behind(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let election = ["--leader-election", "--lease-namespace", fixture.namespace.name()];
    let launch = fixture.operator().switch("--leader-election").flag("--lease-namespace", fixture.namespace.name());
    let operator = launch.ready().await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    fixture.wait_ready("web").await?;

    // With an operator that runs: it stands by from then on, and does not put the finalizer back.
    // Consul and the way to it may be gone already.
    let gone = ["--consul-ca-cert", "/nowhere"];
    let told = says(fixture, "detach", &[&election[..], &gone].concat(), 0)?;
    ensure!(told.contains("1 finalizers removed"), "{told}");
    ensure!(fixture.resources().get("web").await?.metadata.finalizers.is_none(), "the finalizer is still there");
    ensure!(operator.get("/readyz").await?.contains("standing by"));
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;

    let told = says(fixture, "detach", &[&election[..], &["--deregister"]].concat(), 0)?;
    ensure!(told.contains("2 instances deregistered"), "{told}");
    ensure!(fixture.instances().await?.is_empty());
    if fixture.mode == Mode::Catalog {
        let left = nodes_of_ours(fixture).await?;
        ensure!(left.is_empty(), "nodes of ours are left: {left:?}");
    }
    Ok(())
}

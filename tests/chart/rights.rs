//! The rights that the chart gives, and those in Consul that the docs ask for, are what the program needs.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulOptions, Process, TestNamespace, WorkDir, ports, wait};
use serde_json::json;

use crate::helm::RELEASE;
use crate::installed::{Installed, LICTOR, SOON, register};
use crate::manifests::{Servers, servers};
use crate::read;

/// With nothing but a Role in each namespace: `helm test` is content, the operator does its work, and the hook lets go
/// while it runs.
#[tokio::test]
async fn roles_in_its_namespaces_are_enough() -> Result<()> {
    let servers = servers().await?;
    let namespace = servers.namespace("roles").await?;
    let set = format!("watchNamespaces={{{}}},rbac.aggregateToUserRoles=false", namespace.name());
    let installed = Installed::make(servers.kubeconfig(), &servers.consul, &namespace, &set).await?;
    let worked = work(servers, &namespace, &installed).await.with_context(|| installed.log());
    installed.end(&namespace).await?;
    worked
}

async fn work(servers: &Servers, namespace: &TestNamespace, installed: &Installed) -> Result<()> {
    let said = installed.run("doctor", &[])?;
    ensure!(said.contains("ok    permissions") && !said.contains("FAIL"), "{said}");
    // Nobody else's Lease.
    let account = format!("--as=system:serviceaccount:{}:{RELEASE}", namespace.name());
    namespace.kubectl(&["auth", "can-i", "update", "leases/lictor", &account]).await?;
    let other = namespace.kubectl(&["auth", "can-i", "update", "leases/other", &account]).await;
    ensure!(other.is_err(), "it may update every Lease");

    let _lictor = installed.operate()?;
    register(namespace).await?;
    // Deleted means gone from Consul.
    namespace.kubectl(&["delete", "csvc/web"]).await?;
    let instances = servers.consul.api().instances(namespace.name()).await?;
    ensure!(instances.is_empty(), "{instances:?}");

    register(namespace).await?;
    let finalizers = || namespace.kubectl(&["get", "csvc/web", "--output=jsonpath={.metadata.finalizers}"]);
    ensure!(!finalizers().await?.is_empty(), "no finalizer, and so nothing to detach");
    let said = installed.run("detach", &[])?;
    ensure!(said.contains("1 finalizers removed"), "{said}");
    ensure!(finalizers().await?.is_empty(), "the finalizer is still there");
    let instances = servers.consul.api().instances(namespace.name()).await?;
    ensure!(instances.len() == 1, "{instances:?}");

    // A pod's address is that of no Node, in Consul as little as here.
    let nodes = servers.consul.api().get("/v1/catalog/nodes").await?;
    let ours = nodes.as_array().into_iter().flatten();
    let ours = ours.filter(|node| node["Node"].as_str().is_some_and(|name| name.starts_with(namespace.name())));
    let addresses: Vec<_> = ours.map(|node| &node["Address"]).collect();
    ensure!(addresses == ["192.0.2.1"], "{nodes:#}");
    ensure!(!installed.log().contains("forbidden"), "a right is missing");
    Ok(())
}

/// Whether Nodes are read or not, the roles have just what the flags ask for.
#[tokio::test]
async fn nodes_are_read_as_the_values_say() -> Result<()> {
    let servers = servers().await?;
    for nodes in [true, false] {
        let namespace = servers.namespace("nodes").await?;
        // The other way round than `auto`.
        let more = if nodes { format!(",watchNamespaces={{{}}}", namespace.name()) } else { String::new() };
        let set = format!("watchNodes={nodes}{more}");
        let installed = Installed::make(servers.kubeconfig(), &servers.consul, &namespace, &set).await?;
        let said = installed.run("doctor", &[]);
        installed.end(&namespace).await?;
        let said = said.with_context(|| set.clone())?;
        ensure!(said.contains("ok    permissions") && !said.contains("FAIL"), "{set}: {said}");
    }
    Ok(())
}

/// A policy of Consul that people are told to give, and what it is for.
struct Policy {
    registration: &'static str,
    cluster: &'static str,
    service: &'static str,
    rules: String,
}

/// Those of the docs, and of `examples/access`.
fn policies() -> Result<Vec<Policy>> {
    let page = read("docs/install.md");
    let mut of_docs = page.split("```hcl\n").skip(1).filter_map(|rest| Some(rest.split("```").next()?.to_owned()));
    let mut policies = Vec::new();
    for registration in ["catalog", "agent"] {
        let rules = of_docs.next().with_context(|| format!("docs/install.md has no policy for {registration}"))?;
        policies.push(Policy { registration, cluster: "prod-1", service: "lictor-doctor", rules });
        let rules = read(&format!("examples/access/consul-{registration}.hcl"));
        policies.push(Policy { registration, cluster: "demo", service: "user_service", rules });
    }
    Ok(policies)
}

/// With them `lictor doctor` is content, and an operator gets its session.
#[tokio::test]
async fn the_policies_of_the_docs_are_enough() -> Result<()> {
    let servers = servers().await?;
    let namespace = servers.namespace("policies").await?;
    let options = ConsulOptions { acl: true, ..ConsulOptions::default() };
    let consul = Consul::start(&servers.programs, options).await?;
    for policy in policies()? {
        let what = format!("{} of {}", policy.registration, policy.cluster);
        suffices(servers, &namespace, &consul, &policy).await.context(what)?;
    }
    namespace.delete().await;
    Ok(())
}

async fn suffices(servers: &Servers, namespace: &TestNamespace, consul: &Consul, policy: &Policy) -> Result<()> {
    let Policy { registration, cluster, service, rules } = policy;
    let name = format!("{registration}-{cluster}");
    consul.api().put("/v1/acl/policy", &json!({ "Name": name, "Rules": rules })).await?;
    let token = consul.api().put("/v1/acl/token", &json!({ "Policies": [{ "Name": name }] })).await?;
    let token = token["SecretID"].as_str().context("a token")?;
    let lictor = |subcommand: &str| {
        let mut command = Command::new(LICTOR);
        command.args([subcommand, "--registration", registration, "--cluster-name", cluster]);
        command.args(["--namespace", namespace.name(), "--consul-address", &consul.http_addr()]);
        command.env("KUBECONFIG", servers.kubeconfig()).env("CONSUL_HTTP_TOKEN", token);
        command
    };

    let doctor = lictor("doctor").args(["--service", service]).output()?;
    ensure!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));

    let (folder, admin) = (WorkDir::create("policy")?, format!("127.0.0.1:{}", ports::free()?));
    let mut run = lictor("run");
    run.args(["--admin-address", &admin]);
    let operator = Process::spawn("lictor", run, &folder.join("lictor.log"))?;
    let ready = || async {
        operator.ensure_running()?;
        let answer = reqwest::get(format!("http://{admin}/readyz")).await?.text().await?;
        ensure!(answer.starts_with("ok\n"), "{answer}");
        Ok(Some(()))
    };
    wait::until("the operator is ready", SOON, ready).await
}

//! The rights that the chart gives are what the program needs.

use anyhow::{Context, Result, ensure};
use lictor_testbed::TestNamespace;

use crate::installed::{Installed, register};
use crate::manifests::{Servers, servers};

/// With nothing but a Role in each namespace: `helm test` is content, the operator does its work, and the hook lets go
/// while it runs.
#[tokio::test]
async fn roles_in_its_namespaces_are_enough() -> Result<()> {
    let servers = servers().await?;
    let namespace = servers.namespace("roles").await?;
    let set = format!("watchNamespaces={{{}}},rbac.aggregateToUserRoles=false", namespace.name());
    let installed = Installed::make(servers, &namespace, &set).await?;
    let worked = work(servers, &namespace, &installed).await.with_context(|| installed.log());
    installed.end(&namespace).await?;
    worked
}

async fn work(servers: &Servers, namespace: &TestNamespace, installed: &Installed) -> Result<()> {
    let said = installed.run("doctor")?;
    ensure!(said.contains("ok    permissions") && !said.contains("FAIL"), "{said}");

    let _lictor = installed.operate()?;
    register(namespace).await?;
    // Deleted means gone from Consul.
    namespace.kubectl(&["delete", "csvc/web"]).await?;
    let instances = servers.consul.api().instances(namespace.name()).await?;
    ensure!(instances.is_empty(), "{instances:?}");

    register(namespace).await?;
    let finalizers = || namespace.kubectl(&["get", "csvc/web", "--output=jsonpath={.metadata.finalizers}"]);
    ensure!(!finalizers().await?.is_empty(), "no finalizer, and so nothing to release");
    let said = installed.run("release")?;
    ensure!(said.contains("1 resources released"), "{said}");
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

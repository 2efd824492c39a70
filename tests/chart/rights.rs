//! The rights that the chart gives, and those in Consul that the docs ask for, are what the program needs.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulOptions, Process, TestNamespace, WorkDir, ports, wait};
use serde_json::json;

use crate::helm::RELEASE;
use crate::installed::{Installed, LICTOR, SOON, register};
use crate::manifests::{Servers, servers};
use crate::{check_file, read};

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

/// A policy of Consul, as the program prints it.
struct Policy {
    registration: &'static str,
    cluster: &'static str,
    service: &'static str,
    rules: String,
}

impl Policy {
    /// The least one for these flags, and this service besides others.
    fn least(registration: &'static str, cluster: &'static str, services: &[&'static str]) -> Result<Self> {
        let mut command = Command::new(LICTOR);
        command.args(["policy", "consul", "--registration", registration, "--cluster-name", cluster]);
        let output = command.args(["--service", &services.join(",")]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let service = services.last().context("a service")?;
        Ok(Self { registration, cluster, service, rules: String::from_utf8(output.stdout)? })
    }
}

/// Those that people are told to give, in the docs and in `examples/access`, which are written by the program.
fn policies() -> Result<Vec<Policy>> {
    let page = read("docs/install.md");
    let mut of_docs = page.split("```hcl\n").skip(1).filter_map(|rest| Some(rest.split("```").next()?.to_owned()));
    let mut policies = Vec::new();
    for registration in ["catalog", "agent"] {
        let policy = Policy::least(registration, "prod-1", &["user_service", "lictor-doctor"])?;
        let rules = of_docs.next().with_context(|| format!("docs/install.md has no policy for {registration}"))?;
        ensure!(rules == policy.rules, "docs/install.md, with {registration}: it should be\n{}", policy.rules);
        policies.push(policy);
        let policy = Policy::least(registration, "demo", &["web", "user_service"])?;
        let head = format!(
            "# What Lictor needs of Consul, as printed by\n# lictor policy consul --registration={registration} \
             --cluster-name=demo --service=web,user_service\n\n"
        );
        check_file(&format!("examples/access/consul-{registration}.hcl"), &format!("{head}{}", policy.rules));
        policies.push(policy);
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

/// With a rule of them less, something does not work, and that is told.
#[tokio::test]
async fn each_rule_for_the_catalog_is_needed() -> Result<()> {
    let read = "FAIL  Consul can be read: the Consul token may not read everything";
    each_is_needed(
        "catalog",
        &[
            ("node_prefix \"\"", read),
            ("service_prefix \"\"", read),
            ("node_prefix \"prod-1-\"", "FAIL  Consul can be written: "),
            ("node \"lictor-prod-1\"", "the marker node lictor-prod-1 cannot be written"),
            ("service \"lictor-doctor\"", "FAIL  Consul can be written: "),
        ],
    )
    .await
}

/// Likewise.
#[tokio::test]
async fn each_rule_for_an_agent_is_needed() -> Result<()> {
    let read = "FAIL  Consul can be read: ";
    each_is_needed(
        "agent",
        &[
            ("agent_prefix \"\"", read),
            ("node_prefix \"\"", read),
            ("service_prefix \"\"", read),
            ("service \"lictor-doctor\"", "FAIL  Consul can be written: "),
        ],
    )
    .await
}

/// What is said without each of these rules.
async fn each_is_needed(registration: &'static str, expected: &[(&str, &str)]) -> Result<()> {
    let servers = servers().await?;
    let namespace = servers.namespace("least").await?;
    let options = ConsulOptions { acl: true, ..ConsulOptions::default() };
    let consul = Consul::start(&servers.programs, options).await?;
    let whole = Policy::least(registration, "prod-1", &["lictor-doctor"])?;
    // Somebody else has an instance on a node of ours, as anybody may who can write the node.
    let uid = ["get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}"];
    let mark = json!({ "managed-by": "lictor", "lictor-cluster": "prod-1",
                       "lictor-cluster-uid": namespace.kubectl(&uid).await?.trim() });
    let other =
        json!({ "Node": "prod-1-a", "Address": "192.0.2.7", "NodeMeta": mark, "Service": { "Service": "other" } });
    consul.api().put("/v1/catalog/register", &other).await?;
    let lines = whole.rules.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let rules: Vec<&str> = lines.split_inclusive("}\n").map(str::trim).filter(|rule| !rule.is_empty()).collect();
    ensure!(rules.len() == expected.len(), "other rules than are expected: {rules:#?}");
    for (number, (rule, words)) in expected.iter().enumerate() {
        let rest: Vec<&str> = rules.iter().filter(|other| !other.starts_with(&format!("{rule} "))).copied().collect();
        ensure!(rest.len() + 1 == rules.len(), "there is no rule {rule}: {rules:#?}");
        let name = format!("{registration}-without-{number}");
        let token = token(&consul, &name, &rest.join("\n")).await?;
        let lictor = Lictor { servers, namespace: &namespace, consul: &consul, policy: &whole, token };
        let doctor = lictor.command("doctor").output()?;
        let mut said = String::from_utf8(doctor.stdout)?;
        if doctor.status.success() {
            said = lictor.is_not_ready().await.with_context(|| format!("without {rule}: {said}"))?;
        }
        ensure!(said.contains(words), "without {rule}: {said}");
    }
    namespace.delete().await;
    Ok(())
}

/// Makes a token with these rules.
async fn token(consul: &Consul, name: &str, rules: &str) -> Result<String> {
    consul.api().put("/v1/acl/policy", &json!({ "Name": name, "Rules": rules })).await?;
    let token = consul.api().put("/v1/acl/token", &json!({ "Policies": [{ "Name": name }] })).await?;
    Ok(token["SecretID"].as_str().context("a token")?.to_owned())
}

/// The program, with the flags of a policy and a token.
struct Lictor<'a> {
    servers: &'a Servers,
    namespace: &'a TestNamespace,
    consul: &'a Consul,
    policy: &'a Policy,
    token: String,
}

impl Lictor<'_> {
    fn command(&self, subcommand: &str) -> Command {
        let Policy { registration, cluster, service, .. } = self.policy;
        let mut command = Command::new(LICTOR);
        command.args([subcommand, "--registration", registration, "--cluster-name", cluster]);
        command.args(["--namespace", self.namespace.name(), "--consul-address", &self.consul.http_addr()]);
        command.env("KUBECONFIG", self.servers.kubeconfig()).env("CONSUL_HTTP_TOKEN", &self.token);
        if subcommand == "doctor" {
            command.args(["--service", service]);
        }
        command
    }

    /// Runs an operator until `/readyz` answers as wanted.
    async fn readyz(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> Result<String> {
        let (folder, admin) = (WorkDir::create("policy")?, format!("127.0.0.1:{}", ports::free()?));
        let mut run = self.command("run");
        run.args(["--admin-address", &admin]);
        let operator = Process::spawn("lictor", run, &folder.join("lictor.log"))?;
        wait::until(what, SOON, || async {
            operator.ensure_running()?;
            let answer = reqwest::get(format!("http://{admin}/readyz")).await?.text().await?;
            ensure!(is_wanted(&answer), "{answer}");
            Ok(Some(answer))
        })
        .await
    }

    async fn is_not_ready(&self) -> Result<String> {
        self.readyz("the operator has something against Consul", |answer| answer.contains("Consul: ")).await
    }
}

async fn suffices(servers: &Servers, namespace: &TestNamespace, consul: &Consul, policy: &Policy) -> Result<()> {
    let name = format!("{}-{}", policy.registration, policy.cluster);
    let token = token(consul, &name, &policy.rules).await?;
    let lictor = Lictor { servers, namespace, consul, policy, token };
    let doctor = lictor.command("doctor").output()?;
    ensure!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
    lictor.readyz("the operator is ready", |answer| answer.starts_with("ok\n")).await.map(drop)
}

/// A move needs what each of its two places needs, and no rule twice.
#[test]
fn a_move_needs_the_rules_of_both_places() -> Result<()> {
    let printed = |args: &[&str]| -> Result<String> {
        let output = Command::new(LICTOR).args(["policy", "consul", "--service=web"]).args(args).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let rules = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.ends_with('{')).map(ToOwned::to_owned).collect()
    };
    let (catalog, previous) = (["--registration=catalog", "--cluster-name=new"], "--previous-registration=agent");
    let agent = rules(&printed(&["--registration=agent"])?);
    let both = rules(&printed(&[&catalog[..], &[previous]].concat())?);
    let wanted: BTreeSet<String> = rules(&printed(&catalog)?).into_iter().chain(agent).collect();
    ensure!(both.len() == wanted.len() && both.iter().all(|rule| wanted.contains(rule)), "{both:?}");
    let renamed = rules(&printed(&[&catalog[..], &["--previous-cluster-name=old"]].concat())?);
    for rule in ["node \"lictor-new\" {", "node \"lictor-old\" {", "node_prefix \"old-\" {"] {
        ensure!(renamed.iter().filter(|found| *found == rule).count() == 1, "{rule}: {renamed:?}");
    }
    Ok(())
}

//! The chart on a real apiserver: what stays and what goes as it is installed, upgraded and uninstalled.
//!
//! There is no node, so pods are only wanted, and hooks do not end.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, Programs, TestNamespace, WorkDir, init_tls, wait};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::helm::{Helm, chart};
use crate::installed::{Installed, LICTOR, register};
use crate::older_chart::{is_current, older_chart};
use crate::read;

const SOON: Duration = Duration::from_secs(30);
const CRD: &str = "crd/consulservices.lictor.dev";

/// A cluster of which a test may remove what belongs to all: one test after the other has it to itself.
struct Cluster {
    plane: MutexGuard<'static, ControlPlane>,
    helm: Helm,
}

impl Cluster {
    async fn take() -> Result<Self> {
        static PLANE: OnceCell<Mutex<ControlPlane>> = OnceCell::const_new();
        let start = || async { anyhow::Ok(Mutex::new(ControlPlane::start(&Programs::ensure().await?).await?)) };
        let plane = PLANE.get_or_try_init(start).await?.lock().await;
        let helm = Helm::on(plane.kubeconfig()).await?;
        let cluster = Self { plane, helm };
        // What the test before has left.
        for release in cluster.helm.run(["list", "--short", "--namespace=lictor"]).await?.lines() {
            cluster.helm.run(["uninstall", release, "--namespace=lictor", "--no-hooks"]).await?;
        }
        cluster.kubectl(&["delete", CRD, "--ignore-not-found"]).await?;
        cluster.kubectl(&["delete", "jobs,pods", "--all", "--namespace=lictor"]).await?;
        Ok(cluster)
    }

    /// Helm on the release `lictor` of the namespace `lictor`, without hooks.
    async fn helm(&self, verb: &str, chart: Option<&Path>, more: &[&str]) -> Result<String> {
        let mut args = vec![verb, "lictor"];
        if let Some(chart) = chart {
            args.push(chart.to_str().context("a path")?);
            args.push("--create-namespace");
        }
        if verb == "upgrade" {
            args.retain(|arg| *arg != "--create-namespace");
        }
        args.extend(["--namespace", "lictor", "--no-hooks"]);
        args.extend(more);
        self.helm.run(args).await
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.plane.kubectl(args).await
    }

    /// What Helm has made for releases of this name, but for the CRD.
    async fn made(&self, release: &str) -> Result<Vec<String>> {
        let kinds = "deployments,serviceaccounts,services,poddisruptionbudgets,configmaps,roles,rolebindings,clusterroles,\
                     clusterrolebindings,networkpolicies,jobs,pods";
        let label = format!("app.kubernetes.io/instance={release},app.kubernetes.io/managed-by=Helm");
        let names = self.kubectl(&["get", kinds, "-A", "-l", &label, "--output=name"]).await?;
        Ok(names.lines().map(ToOwned::to_owned).collect())
    }

    /// Installs the CRD without the chart.
    async fn define(&self) -> Result<()> {
        self.plane.install_crd(&read("crds/consulservices.lictor.dev.yaml")).await
    }

    /// A resource of a user.
    async fn make_resource(&self) -> Result<()> {
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", CRD]).await?;
        let yaml = read("examples/user-service.yaml");
        let resource =
            yaml.split("---\n").find(|document| document.contains("kind: ConsulService")).context("examples")?;
        let apply = || async {
            let args = ["apply", "--namespace=default", "-f", "-"];
            Ok(Some(self.plane.kubectl_program().run_with_input(&args, resource).await?))
        };
        wait::until("the resource is served", SOON, apply).await.map(drop)
    }

    /// Its identity and version: none where there is none.
    async fn resource(&self) -> Result<String> {
        let fields = "jsonpath={.items[*].metadata.uid} {.items[*].metadata.resourceVersion}";
        self.kubectl(&["get", "csvc", "--namespace=default", "--output", fields]).await
    }

    async fn crd(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", CRD, "--output=json"]).await?)?)
    }
}

#[tokio::test]
async fn it_comes_changes_and_goes() -> Result<()> {
    let (cluster, folder, chart) = (Cluster::take().await?, WorkDir::create("older-chart")?, chart());
    let older = older_chart(&chart, folder.join("lictor"))?;

    let notes = cluster.helm("install", Some(&older), &[]).await?;
    ensure!(notes.contains("Uninstalling deregisters nothing"), "{notes}");
    ensure!(!is_current(&cluster.crd().await?), "the older chart is not older");
    cluster.make_resource().await?;
    let resource = cluster.resource().await?;
    let replicas = ["get", "deployment/lictor", "--namespace=lictor", "--output=jsonpath={.spec.replicas}"];
    ensure!(cluster.kubectl(&replicas).await? == "2");

    // The CRD goes along with the chart, and what is of that kind is not touched.
    cluster.helm("upgrade", Some(&chart), &["--set", "metrics.dashboard.enabled=true"]).await?;
    ensure!(is_current(&cluster.crd().await?), "the CRD is still the older one");
    ensure!(cluster.resource().await? == resource, "the resource was touched");
    ensure!(cluster.made("lictor").await?.contains(&"configmap/lictor-dashboard".to_owned()));

    // What an upgrade does not make any more goes; but not the CRD.
    cluster.helm("upgrade", Some(&chart), &["--set", "crds.install=false"]).await?;
    ensure!(!cluster.made("lictor").await?.contains(&"configmap/lictor-dashboard".to_owned()));
    ensure!(cluster.resource().await? == resource, "the CRD went with crds.install");
    cluster.helm("upgrade", Some(&chart), &[]).await?;

    cluster.helm("uninstall", None, &[]).await?;
    let left = cluster.made("lictor").await?;
    ensure!(left.is_empty(), "{left:?}");
    ensure!(cluster.resource().await? == resource, "the CRD did not stay");

    cluster.helm("install", Some(&chart), &[]).await.context("again")?;
    ensure!(cluster.resource().await? == resource);

    // Unless it is to go.
    cluster.helm("upgrade", Some(&chart), &["--set", "crds.keep=false"]).await?;
    cluster.helm("uninstall", None, &[]).await?;
    let gone = || async { Ok(cluster.kubectl(&["get", CRD]).await.is_err().then_some(())) };
    wait::until("the CRD is gone", SOON, gone).await?;
    // Where somebody took it away, nothing keeps the hook from ending well.
    let mut release = Command::new(LICTOR);
    release.args(["detach", "--leader-election", "--lease-namespace=lictor"]);
    let release = release.env("KUBECONFIG", cluster.plane.kubeconfig()).output()?;
    ensure!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    ensure!(String::from_utf8_lossy(&release.stdout).contains("there are no resources"));
    Ok(())
}

/// Without the definition there is nothing to detach, for one who may not look at it either; and what is in Consul can
/// still be deregistered.
#[tokio::test]
async fn it_lets_go_although_the_definition_is_gone() -> Result<()> {
    init_tls();
    let cluster = Cluster::take().await?;
    let consul = Consul::start(&Programs::ensure().await?, ConsulOptions::default()).await?;
    let namespace = TestNamespace::create(&cluster.plane, "letting-go").await?;
    cluster.define().await?;
    let set = format!("watchNamespaces={{{}}},rbac.aggregateToUserRoles=false", namespace.name());
    let installed = Installed::make(cluster.plane.kubeconfig(), &consul, &namespace, &set).await?;
    let lictor = installed.operate()?;
    register(&namespace).await.with_context(|| installed.log())?;
    drop(lictor);
    installed.run("detach", &[])?;
    cluster.kubectl(&["delete", CRD]).await?;

    let said = installed.run("detach", &[])?;
    ensure!(said.contains("there are no resources") && said.contains("0 finalizers removed"), "{said}");
    ensure!(consul.api().instances(namespace.name()).await?.len() == 1, "it was deregistered unasked");
    let said = installed.run("detach", &["--deregister"])?;
    ensure!(said.contains("1 instances deregistered") && said.contains("there are no resources"), "{said}");
    let left = consul.api().instances(namespace.name()).await?;
    ensure!(left.is_empty(), "{left:?}");
    installed.end(&namespace).await
}

#[tokio::test]
async fn a_hook_that_fails_uninstalls_nothing() -> Result<()> {
    let cluster = Cluster::take().await?;
    cluster.helm("install", Some(&chart()), &[]).await?;
    let made = cluster.made("lictor").await?;
    // No node runs the hook.
    let failed = cluster.helm.run(["uninstall", "lictor", "--namespace=lictor", "--timeout=3s"]).await;
    let failed = failed.expect_err("the hook has ended without a node");
    let mut left = cluster.made("lictor").await?;
    let job = "job.batch/lictor-detach".to_owned();
    ensure!(left.contains(&job), "no hook: {left:?}\n{failed:#}");
    left.retain(|name| *name != job && !name.starts_with("pod/lictor-detach"));
    ensure!(left == made, "{left:?} of {made:?}\n{failed:#}");
    // As the README has it.
    cluster.helm("uninstall", None, &[]).await?;
    ensure!(cluster.made("lictor").await?.iter().all(|name| name.contains("lictor-detach")));
    Ok(())
}

#[tokio::test]
async fn a_hook_that_cannot_run_ends_at_its_deadline() -> Result<()> {
    let cluster = Cluster::take().await?;
    cluster.helm("install", Some(&chart()), &["--set", "uninstall.deadlineSeconds=10"]).await?;
    // No node runs the hook: it would wait for ever.
    let failed = cluster.helm.run(["uninstall", "lictor", "--namespace=lictor", "--timeout=5m"]).await;
    let failed = failed.expect_err("the hook has ended without a node");
    ensure!(format!("{failed:#}").contains("lictor-detach"), "{failed:#}");
    let reasons = "--output=jsonpath={.status.conditions[*].reason}";
    let reasons = cluster.kubectl(&["get", "job", "lictor-detach", "--namespace=lictor", reasons]).await?;
    ensure!(reasons.contains("DeadlineExceeded"), "{reasons}");
    cluster.helm("uninstall", None, &[]).await.map(drop)
}

/// The way out of docs/install.md where the image cannot run any more.
#[tokio::test]
async fn finalizers_are_removed_without_lictor() -> Result<()> {
    let cluster = Cluster::take().await?;
    cluster.define().await?;
    cluster.make_resource().await?;
    let finalizers = "jsonpath={.items[*].metadata.finalizers}";
    let finalizers = ["get", "csvc", "--namespace=default", "--output", finalizers];
    let patch = r#"--patch={"metadata":{"finalizers":["lictor.dev/deregister"]}}"#;
    let names = cluster.kubectl(&["get", "csvc", "--namespace=default", "--output=name"]).await?;
    for name in names.lines() {
        cluster.kubectl(&["patch", name, "--namespace=default", "--type=merge", patch]).await?;
    }
    ensure!(cluster.kubectl(&finalizers).await?.contains("lictor.dev/deregister"));

    let page = read("docs/install.md");
    let (_, block) = page.split_once("$ kubectl get csvc --all-namespaces --no-headers").context("no such command")?;
    let (command, _) = block.split_once("```").context("an open block")?;
    let kubectl = Programs::ensure_kubectl().await?;
    let script = format!(
        "kubectl() {{ {} \"$@\"; }}\nkubectl get csvc --all-namespaces --no-headers{command}",
        kubectl.display()
    );
    let mut bash = Command::new("bash");
    bash.args(["-eo", "pipefail", "-c", &script]).env("KUBECONFIG", cluster.plane.kubeconfig());
    let ended = bash.output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ensure!(cluster.kubectl(&finalizers).await?.trim().is_empty());
    Ok(())
}

#[tokio::test]
async fn the_pod_of_helm_test_stays() -> Result<()> {
    let cluster = Cluster::take().await?;
    cluster.helm("install", Some(&chart()), &[]).await?;
    // No node runs it.
    cluster.helm.run(["test", "lictor", "--namespace=lictor", "--timeout=3s"]).await.expect_err("it has run");
    cluster.helm("uninstall", None, &[]).await?;
    let doctor = "app.kubernetes.io/component=doctor";
    let left = cluster.kubectl(&["get", "pods", "--namespace=lictor", "-l", doctor, "--output=name"]).await?;
    ensure!(left.trim() == "pod/lictor-doctor", "{left}");
    Ok(())
}

#[tokio::test]
async fn a_crd_of_somebody_else_is_not_taken_unasked() -> Result<()> {
    let (cluster, chart) = (Cluster::take().await?, chart());
    cluster.define().await?;
    cluster.make_resource().await?;
    let resource = cluster.resource().await?;

    let refused = cluster.helm("install", Some(&chart), &[]).await.expect_err("it was taken");
    ensure!(format!("{refused:#}").contains("invalid ownership metadata"), "{refused:#}");
    let left = cluster.made("lictor").await?;
    ensure!(left.is_empty(), "{left:?}");

    cluster.helm("install", Some(&chart), &["--set", "crds.install=false"]).await?;
    cluster.helm("uninstall", None, &[]).await?;
    ensure!(cluster.resource().await? == resource);

    cluster.helm("install", Some(&chart), &["--take-ownership", "--force-conflicts"]).await?;
    ensure!(cluster.crd().await?["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm");
    cluster.helm("uninstall", None, &[]).await?;
    ensure!(cluster.resource().await? == resource);
    Ok(())
}

/// Helm 4 has the server apply its objects, and meets there whoever else has set a field; the oldest Helm does not.
#[tokio::test]
async fn every_helm_leaves_the_replicas_to_whoever_scales() -> Result<()> {
    let (cluster, chart) = (Cluster::take().await?, chart());
    let chart = chart.to_str().context("a path")?;
    let oldest = Helm::oldest_on(cluster.plane.kubeconfig()).await?;
    let at = ["lictor", chart, "--namespace=lictor", "--create-namespace", "--no-hooks"];
    let replicas = ["get", "deployment/lictor", "--namespace=lictor", "--output=jsonpath={.spec.replicas}"];
    let scale = ["scale", "deployment/lictor", "--namespace=lictor", "--replicas=3"];
    for (helm, meets_others) in [(&cluster.helm, true), (&oldest, false)] {
        let with = |verb, more: &'static [&str]| helm.run([verb].into_iter().chain(at).chain(more.iter().copied()));
        with("install", &[]).await?;
        cluster.kubectl(&scale).await?;
        let upgraded = with("upgrade", &["--install", "--set", "statusRate=30"]).await;
        if meets_others {
            let refused = format!("{:#}", upgraded.expect_err("it took the replicas back"));
            ensure!(refused.contains("conflict") && refused.contains(".spec.replicas"), "{refused}");
        } else {
            upgraded?;
            ensure!(cluster.kubectl(&replicas).await? == "2", "it has left them");
            cluster.kubectl(&scale).await?;
        }
        // From now on they are somebody else's.
        with("upgrade", &["--install", "--set", "statusRate=30,replicaCount=null"]).await?;
        ensure!(meets_others == (cluster.kubectl(&replicas).await? == "3"));
        cluster.kubectl(&scale).await?;
        with("upgrade", &["--install", "--set", "statusRate=40,replicaCount=null"]).await?;
        ensure!(cluster.kubectl(&replicas).await? == "3", "an upgrade scales");
        helm.run(["uninstall", "lictor", "--namespace=lictor", "--no-hooks"]).await?;
        ensure!(cluster.made("lictor").await?.is_empty());
    }
    Ok(())
}

/// A parent chart with a resource of its own: Helm looks up the kinds of all objects before it makes the first one, so the
/// definition has to be there before.
#[tokio::test]
async fn a_parent_chart_has_a_resource() -> Result<()> {
    let (cluster, folder) = (Cluster::take().await?, WorkDir::create("parent-chart")?);
    folder.write(
        "Chart.yaml",
        "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies: [{ name: lictor, version: '*', condition: lictor.enabled }]\n",
    )?;
    std::fs::create_dir_all(folder.join("charts"))?;
    std::os::unix::fs::symlink(chart(), folder.join("charts/lictor"))?;
    std::fs::create_dir_all(folder.join("templates"))?;
    folder.write(
        "templates/web.yaml",
        "apiVersion: lictor.dev/v1alpha1\nkind: ConsulService\nmetadata: { name: web }\nspec: { source: { service: { name: web } } }\n",
    )?;
    let parent = folder.path();
    let refused = cluster.helm("install", Some(parent), &[]).await.expect_err("it is installed");
    ensure!(format!("{refused:#}").contains("no matches for kind \"ConsulService\""), "{refused:#}");
    ensure!(cluster.made("lictor").await?.is_empty());

    cluster.define().await?;
    cluster
        .helm("install", Some(parent), &["--set", "lictor.crds.install=false,global.imageRegistry=example.com"])
        .await?;
    cluster.kubectl(&["get", "csvc/web", "--namespace=lictor"]).await?;
    let image = "jsonpath={.items[*].spec.template.spec.containers[0].image}";
    let image = cluster.kubectl(&["get", "deployments", "--namespace=lictor", "--output", image]).await?;
    ensure!(image.starts_with("example.com/lictor-dev/lictor:"), "{image}");
    // Without Lictor.
    cluster.helm("upgrade", Some(parent), &["--set", "lictor.enabled=false"]).await?;
    ensure!(cluster.made("lictor").await?.is_empty());
    cluster.helm("uninstall", None, &[]).await.map(drop)
}

#[tokio::test]
async fn two_releases_share_a_namespace() -> Result<()> {
    let (cluster, chart) = (Cluster::take().await?, chart());
    cluster.helm("install", Some(&chart), &[]).await?;
    let first = cluster.made("lictor").await?;
    let chart = chart.to_str().context("a path")?;
    let more = ["--namespace=lictor", "--no-hooks", "--set", "class=blue,crds.install=false,clusterName=blue"];
    cluster.helm.run(["install", "blue", chart].into_iter().chain(more)).await?;
    let second = cluster.made("blue").await?;
    ensure!(second.len() == first.len() && !first.iter().any(|name| second.contains(name)), "{first:?} {second:?}");
    // Each has a Lease of its own.
    let args = "jsonpath={range .items[*]}{.spec.template.spec.containers[0].args}{end}";
    let args = cluster.kubectl(&["get", "deployments", "--namespace=lictor", "--output", args]).await?;
    ensure!(args.contains("--lease-name=lictor\"") && args.contains("--lease-name=blue-lictor\""), "{args}");
    cluster.helm.run(["uninstall", "blue", "--namespace=lictor", "--no-hooks"]).await?;
    ensure!(cluster.made("lictor").await? == first);
    Ok(())
}

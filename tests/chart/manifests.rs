//! The apiserver takes what the chart makes, in a namespace that enforces Pod Security `restricted`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use lictor_testbed::programs::tools::prometheus_operator_definitions;
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, Programs, Shared, TestNamespace, init_tls};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::helm::{Helm, all_values, with};
use crate::read;

/// The servers of this process.
pub(crate) struct Servers {
    pub(crate) programs: Programs,
    pub(crate) plane: ControlPlane,
    pub(crate) consul: Consul,
}

/// The servers, started by whoever asks first.
pub(crate) async fn servers() -> Result<&'static Servers> {
    static SERVERS: Shared<Servers> = Shared::new();
    SERVERS.get("the servers", Servers::start).await
}

/// Namespaces of others that the values in `charts/lictor/ci` name.
const NAMESPACES: [&str; 3] = ["lictor", "shop", "orders"];

impl Servers {
    async fn start() -> Result<Self> {
        init_tls();
        let programs = Programs::ensure().await?;
        let (plane, consul) =
            tokio::try_join!(ControlPlane::start(&programs), Consul::start(&programs, ConsulOptions::default()))?;
        let definitions = prometheus_operator_definitions().await?;
        for kind in ["servicemonitors", "prometheusrules"] {
            let file = definitions.join(format!("monitoring.coreos.com_{kind}.yaml"));
            plane.kubectl(&["apply", "--server-side", "-f", file.to_str().context("a path")?]).await?;
            let crd = format!("crd/{kind}.monitoring.coreos.com");
            plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &crd]).await?;
        }
        plane.install_crd(&read("crds/consulservices.lictor.dev.yaml")).await?;
        for name in NAMESPACES {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            }}});
            plane.kubectl_program().run_with_input(&["apply", "-f", "-"], &namespace.to_string()).await?;
        }
        Ok(Self { programs, plane, consul })
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        self.plane.kubeconfig()
    }

    /// A namespace for one test.
    pub(crate) async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        TestNamespace::create(&self.plane, prefix).await
    }

    /// What the apiserver answers.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.plane.client().await?.request_text(request).await?)
    }

    /// What the server makes of an object in a dry run; fails with what it refuses or warns of.
    async fn accepts(&self, object: &Value) -> Result<Value> {
        let mut child = Command::new(&self.programs.kubectl)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"])
            .arg("--output=json")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(object.to_string().as_bytes()).await?;
        let output = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        ensure!(output.status.success() && said.is_empty(), "{name}: {said}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

#[tokio::test]
async fn the_apiserver_takes_everything() -> Result<()> {
    let (servers, helm) = (servers().await?, Helm::new().await?);
    let mut wrong = Vec::new();
    for file in all_values() {
        for object in helm.objects(&with(&file)).await? {
            let pod = pod_of(&object);
            let objects = [Some(&object).filter(|object| object["kind"] != "Pod"), pod.as_ref()];
            for object in objects.into_iter().flatten() {
                if let Err(error) = servers.accepts(object).await {
                    wrong.push(format!("{}: {error:#}", name(&file)));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Argo CD compares what is rendered with what the server has. Of fields in a map that only the server has it thinks
/// nothing; but an item of a list with such a field is another item, and the application is out of sync for ever. Only
/// containers are found by their names.
///
/// <https://argo-cd.readthedocs.io/en/stable/user-guide/diffing/>
#[tokio::test]
async fn the_server_adds_nothing_within_lists() -> Result<()> {
    let (servers, helm) = (servers().await?, Helm::new().await?);
    let (mut compared, mut wrong) = (0, Vec::new());
    for file in all_values() {
        for object in helm.objects(&with(&file)).await? {
            if object["kind"] == "Pod" {
                continue;
            }
            let made = servers.accepts(&object).await?;
            compared += 1;
            added("", &object, &made, &mut wrong, &name(&file));
        }
    }
    ensure!(compared > 10, "{compared} objects: is this test blind?");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Where a list holds anything else than what was rendered.
fn added(at: &str, rendered: &Value, made: &Value, wrong: &mut Vec<String>, file: &str) {
    match (rendered, made) {
        (Value::Object(fields), _) => {
            for (name, field) in fields {
                added(&format!("{at}/{name}"), field, &made[name], wrong, file);
            }
        }
        (Value::Array(items), Value::Array(others)) if at.ends_with("ontainers") && items.len() == others.len() => {
            for (item, other) in items.iter().zip(others) {
                added(&format!("{at}/{}", item["name"]), item, other, wrong, file);
            }
        }
        (Value::Array(_), _) if rendered != made => wrong.push(format!("{file}: {at}: {rendered} became {made}")),
        _ => {}
    }
}

/// The guard guards: what is not `restricted` is refused, so that the test above sees something.
#[tokio::test]
async fn a_namespace_that_enforces_refuses() -> Result<()> {
    let (servers, helm) = (servers().await?, Helm::new().await?);
    let loose = ["--set", "securityContext.allowPrivilegeEscalation=true", "-s", "templates/deployment.yaml"];
    let objects = helm.objects(&loose).await?;
    let deployment = objects.first().context("a Deployment")?;
    let warned = servers.accepts(deployment).await.expect_err("no warning");
    ensure!(format!("{warned:#}").contains("would violate PodSecurity \"restricted"), "{warned:#}");
    let refused = servers.accepts(&pod_of(deployment).context("a pod")?).await.expect_err("it is taken");
    ensure!(format!("{refused:#}").contains("violates PodSecurity \"restricted"), "{refused:#}");
    Ok(())
}

/// The pod itself, or the one that a controller would make: the namespace refuses pods, and of their templates it
/// only warns.
fn pod_of(object: &Value) -> Option<Value> {
    let template = if object["kind"] == "Pod" { object } else { object["spec"].get("template")? };
    let mut pod = template.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
    pod["metadata"]["name"] = object["metadata"]["name"].clone();
    // Whether the account is there is asked when a pod is made, dry or not.
    pod["spec"]["serviceAccountName"] = "default".into();
    pod["spec"]["priorityClassName"] = Value::Null;
    Some(pod)
}

fn name(file: &Path) -> String {
    PathBuf::from(file.file_name().unwrap_or_default()).display().to_string()
}

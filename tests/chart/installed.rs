//! The chart in a namespace, and its programs beside the cluster as they would run inside: with the arguments of their
//! pods, and as their service account.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, NewEndpoint, Process, TestNamespace, WorkDir, ports};
use serde_json::{Value, json};

use crate::helm::{Helm, RELEASE, arguments, chart, documents};

pub(crate) const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");
/// For anything that should come within moments, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What the values say of the address where the operator serves; the port is [`Installed::admin`].
const ADMIN: &str = "127.0.0.1";

pub(crate) struct Installed {
    helm: Helm,
    pub(crate) folder: WorkDir,
    pub(crate) admin: u16,
    objects: Vec<Value>,
    kubeconfig: PathBuf,
}

impl Installed {
    /// Installs it with these values in the cluster of a kubeconfig, beside those that it needs here: its class keeps the
    /// operators of other tests off.
    pub(crate) async fn make(kubernetes: &Path, consul: &Consul, namespace: &TestNamespace, set: &str) -> Result<Self> {
        let helm = Helm::on(kubernetes).await?;
        let (folder, admin, name) = (WorkDir::create("installed")?, ports::free()?, namespace.name());
        let set = format!(
            "crds.install=false,class={name},clusterName={name},consul.address={},admin.address={ADMIN},admin.port={admin},\
             resyncInterval=1s,{set}",
            consul.http_addr()
        );
        let chart = chart();
        let chart = chart.to_str().context("a path")?;
        helm.run(["install", RELEASE, chart, "--namespace", name, "--no-hooks", "--set", &set]).await?;

        let made = helm.run(["get", "manifest", RELEASE, "--namespace", name]).await?;
        let hooks = helm.run(["get", "hooks", RELEASE, "--namespace", name]).await?;
        let objects = documents(&format!("{made}\n{hooks}"))?;
        let mut kubeconfig: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubernetes)?)?;
        let token = namespace.kubectl(&["create", "token", RELEASE]).await?;
        kubeconfig["users"][0]["user"] = json!({ "token": token.trim() });
        // Where a pod finds itself, too.
        kubeconfig["contexts"][0]["context"]["namespace"] = name.into();
        let kubeconfig = folder.write("kubeconfig", kubeconfig.to_string())?;
        Ok(Self { helm, folder, admin, objects, kubeconfig })
    }

    /// Takes it away again.
    pub(crate) async fn end(&self, namespace: &TestNamespace) -> Result<()> {
        self.helm.run(["uninstall", RELEASE, "--namespace", namespace.name(), "--no-hooks"]).await?;
        namespace.delete().await;
        Ok(())
    }

    fn command(&self, subcommand: &str) -> Result<Command> {
        let args = arguments(&self.objects, subcommand).with_context(|| format!("no container has {subcommand:?}"))?;
        let mut command = Command::new(LICTOR);
        command.args(args).env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    /// What a hook prints, which succeeds with more flags than the chart's own.
    pub(crate) fn run(&self, subcommand: &str, more: &[&str]) -> Result<String> {
        let output = self.command(subcommand)?.args(more).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{subcommand}: {}\n{out}{err}", output.status);
        Ok(out.into_owned())
    }

    /// Starts the operator.
    pub(crate) fn operate(&self) -> Result<Process> {
        Process::spawn("lictor", self.command("run")?, &self.log_file())
    }

    /// What the operator logs.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join(Path::new("lictor.log"))
    }
}

/// A resource with an instance, under the namespace's name in Consul.
pub(crate) async fn register(namespace: &TestNamespace) -> Result<()> {
    namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    namespace.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new([198, 18, 77, 1].into())]).await?;
    let resource = json!({
        "apiVersion": "lictor.dev/v1alpha1",
        "kind": "ConsulService",
        "metadata": { "name": "web" },
        "spec": {
            "class": namespace.name(),
            "name": namespace.name(),
            "source": { "service": { "name": "web" } },
        },
    });
    namespace.apply_yaml(&resource.to_string()).await?;
    namespace.wait_for_condition("csvc/web", "Ready", "True", SOON).await
}

//! What runs: a cluster, a Consul, the operator. And how all of it ends.
//!
//! What the demo starts ends with it. What it makes in a cluster that was there already, it removes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, ControlPlane, Mode, Operator, Programs, TestNamespace};
use tokio::sync::oneshot;

use crate::cluster::{Cluster, Way};
use crate::show;

/// How the cluster calls itself in Consul.
const CLUSTER: &str = "demo";

const CRD: &str = "crd/consulservices.lictor.dev";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);

/// Everything that runs.
pub struct Stage {
    pub cluster: Cluster,
    pub consul: Consul,
    pub registration: Mode,
    lictor: PathBuf,
    programs: Programs,
    operator: Option<Operator>,
    namespace: Option<TestNamespace>,
    crd_is_ours: bool,
}

impl Stage {
    /// Brings up Consul and Kubernetes, with `nodes` if it can be, or takes what `KUBECONFIG` names.
    pub async fn start(lictor: PathBuf, registration: Mode, nodes: bool) -> Result<Self> {
        let way = Way::choose(nodes).await?;
        let programs = way.programs().await?;
        show::say(way.announcement());
        let begun = Instant::now();
        let options = ConsulOptions { ui: true, node_name: Some("consul-0".to_owned()), ..ConsulOptions::default() };
        let consul = Consul::start(&programs, options).await?;
        let cluster = way.start(&programs, &consul).await?;
        show::say(&format!("Up after {}.", show::time(begun.elapsed())));
        Ok(Self {
            cluster,
            consul,
            registration,
            lictor,
            programs,
            operator: None,
            namespace: None,
            crd_is_ours: false,
        })
    }

    /// Kubernetes.
    pub fn plane(&self) -> &ControlPlane {
        self.cluster.plane()
    }

    /// Consul's API.
    pub fn api(&self) -> ConsulApi {
        self.consul.api()
    }

    /// Consul's name server.
    pub fn dns(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.consul.dns_port()))
    }

    /// The folders of `kubectl` and `consul`, as `PATH` lists them.
    pub fn path(&self) -> String {
        let folders =
            [&self.programs.kubectl, &self.programs.consul].map(|program| program.parent().unwrap_or(program));
        folders.map(|folder| folder.display().to_string()).join(":")
    }

    /// Makes the namespace of the story.
    pub async fn make_namespace(&mut self) -> Result<()> {
        self.namespace = Some(TestNamespace::create(self.plane(), "demo").await?);
        Ok(())
    }

    /// The namespace of the story.
    pub fn namespace(&self) -> Result<&TestNamespace> {
        self.namespace.as_ref().context("there is no namespace yet")
    }

    /// Installs the CRD, unless the cluster has it.
    pub async fn install_crd(&mut self) -> Result<()> {
        if self.plane().kubectl(&["get", CRD]).await.is_ok() {
            show::say("The cluster has the CustomResourceDefinition already; it is left as it is.");
            return Ok(());
        }
        let crd = Command::new(&self.lictor).arg("crd").output().context("running lictor crd")?;
        let crd = String::from_utf8(crd.stdout)?;
        // Before it is: should we be stopped in the middle, it is removed.
        self.crd_is_ours = true;
        let applied = self.plane().kubectl_program().run_with_input(&["apply", "-f", "-"], &crd).await?;
        self.plane().kubectl(&["wait", CRD, "--for=condition=Established", "--timeout=30s"]).await?;
        show::command("lictor crd | kubectl apply -f -", &applied);
        Ok(())
    }

    /// Starts the operator and waits until it is ready. Its command line, as a user would type it.
    pub async fn start_operator(&mut self) -> Result<String> {
        let mut args = vec!["--cluster-name", CLUSTER, "--registration", self.registration.as_str()];
        // Whatever else is in a cluster that was there already is none of our business.
        if !self.cluster.is_ours() {
            args.extend(["--namespace", self.namespace()?.name()]);
        }
        let (kubeconfig, consul) = (self.plane().kubeconfig().display().to_string(), self.consul.http_addr());
        let envs = [("KUBECONFIG", kubeconfig.as_str()), ("CONSUL_HTTP_ADDR", consul.as_str())];
        let operator = Operator::start(&self.lictor, &args, &envs)?;
        let line = format!("CONSUL_HTTP_ADDR={consul} lictor run {}", args.join(" "));
        self.operator.insert(operator).wait_ready(START).await?;
        Ok(line)
    }

    /// Kills the operator as a crash would.
    pub fn kill_operator(&mut self) -> Result<()> {
        self.operator.take().context("the operator does not run")?.kill()?;
        Ok(())
    }

    /// The operator.
    pub fn operator(&self) -> Result<&Operator> {
        self.operator.as_ref().context("the operator does not run")
    }

    /// The end of the operator's log.
    pub fn operator_log(&self, lines: usize) -> String {
        self.operator
            .as_ref()
            .map_or_else(|| "(it does not run)".to_owned(), |operator| operator.process().log_tail(lines))
    }

    /// Runs `kubectl` in the namespace of the story and shows it.
    pub async fn kubectl(&self, args: &[&str]) -> Result<()> {
        let namespace = self.namespace()?;
        let output = namespace.kubectl(args).await?;
        show::command(&format!("kubectl -n {} {}", namespace.name(), args.join(" ")), &output);
        Ok(())
    }

    /// Runs `consul` and shows it.
    pub async fn consul(&self, args: &[&str]) -> Result<()> {
        let mut command = tokio::process::Command::new(&self.programs.consul);
        command.args(args).env("CONSUL_HTTP_ADDR", self.consul.http_addr()).kill_on_drop(true);
        let output = command.output().await?;
        anyhow::ensure!(output.status.success(), "consul: {}", String::from_utf8_lossy(&output.stderr).trim());
        show::command(&format!("consul {}", args.join(" ")), &String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Ends everything that runs, and removes what was made in a cluster that stays.
    pub async fn end(mut self) {
        show::say("Stopping what was started …");
        if !self.cluster.is_ours()
            && let Err(error) = self.clean().await
        {
            eprintln!("not everything could be removed from the cluster: {error:#}");
        }
        if let Some(operator) = self.operator.take() {
            // If it does not end by itself in time, it is killed.
            let _ = operator.terminate(STOP).await;
        }
        // Nodes take some seconds. Whoever is told to stop at once does not wait for this thread, nor does the process
        // when it ends: what is left then ends as after a crash.
        let (ended, end) = oneshot::channel();
        std::thread::spawn(move || {
            drop(self);
            let _ = ended.send(());
        });
        let _ = end.await;
    }

    async fn clean(&self) -> Result<()> {
        if let Some(namespace) = &self.namespace {
            // The operator removes what belongs to them from Consul and then lets go of them.
            let deleted = namespace.kubectl(&["delete", "csvc", "--all", "--timeout=20s"]).await;
            if deleted.is_err() && self.plane().kubectl(&["get", CRD]).await.is_ok() {
                let list = ["get", "csvc", "-o", "name"];
                for name in namespace.kubectl(&list).await?.lines() {
                    let patch = r#"{"metadata":{"finalizers":null}}"#;
                    namespace.kubectl(&["patch", name, "--type=merge", "-p", patch]).await?;
                }
            }
            namespace.delete().await;
            let namespace = format!("namespace/{}", namespace.name());
            self.plane().kubectl(&["wait", &namespace, "--for=delete", "--timeout=60s"]).await?;
        }
        if self.crd_is_ours {
            let left = self.plane().kubectl(&["get", "csvc", "--all-namespaces", "-o", "name"]).await?;
            if left.trim().is_empty() {
                self.plane().kubectl(&["delete", CRD]).await?;
            } else {
                eprintln!("{CRD} stays: somebody else uses it by now");
            }
        }
        Ok(())
    }
}

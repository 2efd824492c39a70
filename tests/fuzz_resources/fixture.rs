//! The servers, and the operator between them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kube::Api;
use kube::CustomResourceExt;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use lictor::cluster::api::ConsulService;
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, Operator, Programs, init_tls, wait};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::author::ALLOWED;
use crate::environment::Environment;

const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");

/// For anything that should come within moments, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Where registrations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Agent,
    Catalog,
}

impl Mode {
    /// As the flag has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Catalog => "catalog",
        }
    }
}

/// What one run stands on.
pub(crate) struct Fixture {
    pub(crate) mode: Mode,
    /// The cluster's name in Consul.
    pub(crate) cluster: String,
    pub(crate) grounds: Vec<Environment>,
    pub(crate) consul: Consul,
    pub(crate) operator: Operator,
}

/// The apiserver of this process, which knows the resource.
async fn plane() -> Result<&'static ControlPlane> {
    static PLANE: OnceCell<Result<ControlPlane, String>> = OnceCell::const_new();
    let start = || async {
        init_tls();
        let plane = ControlPlane::obtain().await?;
        let printed = std::process::Command::new(LICTOR).arg("crd").output()?;
        ensure!(printed.status.success(), "lictor crd: {}", String::from_utf8_lossy(&printed.stderr));
        let crd = String::from_utf8(printed.stdout)?;
        plane.kubectl_program().run_with_input(&["apply", "--server-side", "-f", "-"], &crd).await?;
        // Established comes a moment before every handler knows it.
        let listed = || async { Ok(Some(plane.kubectl(&["get", "csvc", "--all-namespaces"]).await?)) };
        wait::until("the resource is served", SOON, listed).await?;
        anyhow::Ok(plane)
    };
    let started = PLANE.get_or_init(|| async { start().await.map_err(|error| format!("{error:#}")) }).await;
    started.as_ref().map_err(|error| anyhow!("no apiserver: {error}"))
}

impl Fixture {
    pub(crate) async fn make(mode: Mode) -> Result<Self> {
        let plane = plane().await?;
        let consul = Consul::start(&Programs::ensure().await?, ConsulOptions::default()).await?;
        let mut grounds = Vec::new();
        for number in 0..3 {
            grounds.push(Environment::make(plane, &format!("fuzz-{}-{number}", mode.as_str())).await?);
        }
        let cluster = format!("fuzz-{}", mode.as_str());
        let (address, kubeconfig) = (consul.http_addr(), plane.kubeconfig().display().to_string());
        let mut args = vec!["--registration", mode.as_str(), "--cluster-name", &cluster];
        args.extend(["--consul-address", &address, "--kubeconfig", &kubeconfig]);
        args.extend(["--allow-static", ALLOWED, "--resync-interval", "2s"]);
        // Nothing runs the checks; they are written as if.
        args.extend((mode == Mode::Catalog).then_some("--consul-esm"));
        args.extend(grounds.iter().flat_map(|environment| ["--namespace", environment.namespace.name()]));
        let operator = Operator::start(Path::new(LICTOR), &args, &[])?;
        operator.wait_ready(SOON).await?;
        Ok(Self { mode, cluster, grounds, consul, operator })
    }

    /// The API of the resources of a namespace.
    pub(crate) fn resources(&self, environment: usize) -> Api<DynamicObject> {
        let namespace = &self.grounds[environment].namespace;
        Api::namespaced_with(namespace.client().clone(), namespace.name(), &kind())
    }

    /// That the operator lives, is ready, and has not stumbled.
    pub(crate) async fn ensure_alive(&self) -> Result<()> {
        self.operator.process().ensure_running()?;
        let ready = || async { self.operator.get("/readyz").await.map(Some) };
        wait::until("/readyz", SOON, ready).await.context("the operator is not ready")?;
        let log = self.operator.log();
        match log.find("panicked") {
            None => Ok(()),
            Some(at) => {
                Err(anyhow!("the operator panicked: {}", log[at..].lines().take(20).collect::<Vec<_>>().join("\n")))
            }
        }
    }

    /// Leaves nothing behind in a cluster that stays. What fails here may have been what failed before.
    pub(crate) async fn clear_away(&self) {
        let _ = self.operator.kill();
        for (number, environment) in self.grounds.iter().enumerate() {
            let resources = self.resources(number);
            let list = resources.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
            for name in list.iter().filter_map(|resource| resource.metadata.name.as_deref()) {
                let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
                let _ = resources.patch(name, &PatchParams::default(), &without).await;
            }
            environment.namespace.delete().await;
        }
    }
}

/// The kind of the resources.
pub(crate) fn kind() -> ApiResource {
    ConsulService::api_resource()
}

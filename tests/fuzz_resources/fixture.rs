//! The servers, and the operator between them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::Api;
use kube::CustomResourceExt;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use lictor::cluster::api::{self, ConsulService};
pub(crate) use lictor_testbed::Mode;
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, Launch, Operator, Programs, Shared, init_tls, wait};
use serde_json::json;

use crate::author::ALLOWED;
use crate::environment::Environment;

const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");

/// For anything that should come within moments, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// What one run stands on.
pub(crate) struct Fixture {
    pub(crate) mode: Mode,
    /// The cluster's name in Consul.
    pub(crate) cluster: String,
    pub(crate) environments: Vec<Environment>,
    pub(crate) consul: Consul,
    pub(crate) operator: Operator,
}

/// The apiserver of this process, which knows the resource.
async fn plane() -> Result<&'static ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    let start = || async {
        init_tls();
        let plane = ControlPlane::obtain().await?;
        plane.install_crd(&api::crd_yaml()).await?;
        Ok(plane)
    };
    PLANE.get("the apiserver", start).await
}

impl Fixture {
    pub(crate) async fn make(mode: Mode) -> Result<Self> {
        let plane = plane().await?;
        let consul = Consul::start(&Programs::ensure().await?, ConsulOptions::default()).await?;
        let mut environments = Vec::new();
        for number in 0..3 {
            environments.push(Environment::make(plane, &format!("fuzz-{}-{number}", mode.as_str())).await?);
        }
        let cluster = format!("fuzz-{}", mode.as_str());
        let mut launch = Launch::new(mode, &cluster, plane.kubeconfig(), &consul.http_addr())
            .flag("--allow-static", ALLOWED)
            .flag("--resync-interval", "2s");
        if mode == Mode::Catalog {
            // Nothing runs the checks; they are written as if.
            launch = launch.switch("--consul-esm");
        }
        for environment in &environments {
            launch = launch.flag("--namespace", environment.namespace.name());
        }
        let operator = launch.start(Path::new(LICTOR))?;
        operator.wait_ready(SOON).await?;
        Ok(Self { mode, cluster, environments, consul, operator })
    }

    /// The API of the resources of a namespace.
    pub(crate) fn resources(&self, environment: usize) -> Api<DynamicObject> {
        let namespace = &self.environments[environment].namespace;
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
        for (number, environment) in self.environments.iter().enumerate() {
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

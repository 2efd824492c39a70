//! A Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
//!
//! Or a cluster that is there already. How the programs are started is in `components`.

mod components;

use std::env;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use self::components::{Apiserver, Components, Files};
use crate::work_dir::WorkDir;
use crate::{Kubectl, Programs, init_tls, ports, wait};

const START: Duration = Duration::from_secs(60);

/// The definition of `ConsulService`, as kubectl names it.
const CRD: &str = "crd/consulservices.lictor.dev";

/// What may differ from one control plane to the next.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneOptions {
    /// Put after our own arguments of kube-apiserver; of a flag given twice, the last one counts.
    pub apiserver_extra_args: Vec<String>,
    /// Likewise, of kube-controller-manager.
    pub controller_manager_extra_args: Vec<String>,
    /// The address of this machine at which nodes with a kubelet reach it. Without one there are no
    /// kubelets: it answers at the loopback interface, and leaves nodes alone that nobody speaks for.
    pub address: Option<Ipv4Addr>,
}

/// A control plane that we started, or a cluster that was there already.
#[derive(Debug)]
pub struct ControlPlane {
    /// None for a cluster that was there already.
    ours: Option<Components>,
    /// Likewise.
    files: Option<Files>,
    kubeconfig: PathBuf,
    kubectl: Kubectl,
    work_dir: WorkDir,
}

impl ControlPlane {
    /// The cluster of the one file that `KUBECONFIG` names, or else one of our own.
    pub async fn obtain() -> Result<Self> {
        match env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => Self::given(Path::new(&path)).await,
            None => Self::start(&Programs::ensure().await?).await,
        }
    }

    /// Uses a cluster that is already there. Nothing of it is started or stopped.
    pub async fn given(kubeconfig: &Path) -> Result<Self> {
        eprintln!("using the cluster of {}", kubeconfig.display());
        Ok(Self {
            ours: None,
            files: None,
            kubectl: Kubectl::new(&Programs::ensure_kubectl().await?, kubeconfig),
            kubeconfig: kubeconfig.to_owned(),
            work_dir: WorkDir::create("cluster")?,
        })
    }

    /// Starts one as it comes.
    pub async fn start(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, &ControlPlaneOptions::default()).await
    }

    /// Starts one. It is ready for pods when this returns.
    pub async fn start_with(programs: &Programs, options: &ControlPlaneOptions) -> Result<Self> {
        ports::retry(|| Self::try_start(programs, options)).await
    }

    async fn try_start(programs: &Programs, options: &ControlPlaneOptions) -> Result<Self> {
        let work_dir = WorkDir::create("control-plane")?;
        let files = Files::write(&work_dir, ports::free()?, options)?;
        let components = Components::start(programs, &work_dir, &files, options)?;
        let plane = Self {
            ours: Some(components),
            kubectl: Kubectl::new(&programs.kubectl, &files.admin),
            kubeconfig: files.admin.clone(),
            files: Some(files),
            work_dir,
        };
        plane.wait_apiserver().await?;
        plane.start_controllers(programs, options)?;
        plane.wait_controllers().await?;
        Ok(plane)
    }

    fn start_controllers(&self, programs: &Programs, options: &ControlPlaneOptions) -> Result<()> {
        self.ours()?.start_controllers(programs, &self.work_dir, self.files()?, options)
    }

    /// Kills the controllers, whatever they are doing, and starts them again with these options.
    pub fn restart_controllers(&self, programs: &Programs, options: &ControlPlaneOptions) -> Result<()> {
        self.ours()?.kill_controllers()?;
        self.start_controllers(programs, options)
    }

    /// A kubeconfig file of an administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The content of a kubeconfig file of the user `user` in the group `group`.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<String> {
        self.files()?.kubeconfig_for(&self.work_dir, user, group)
    }

    /// The certificate of the authority that signs for its clients and for itself.
    pub fn client_authority(&self) -> Result<&Path> {
        Ok(&self.files()?.ca)
    }

    fn files(&self) -> Result<&Files> {
        self.files.as_ref().context("this cluster's authority is not ours")
    }

    /// A new client. Make one for each test: a client belongs to the runtime that first used it.
    pub async fn client(&self) -> Result<Client> {
        init_tls();
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::try_from(config)?)
    }

    /// Runs `kubectl` and gives what it prints.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl.run(args).await
    }

    /// `kubectl` on this cluster, to keep.
    #[must_use]
    pub fn kubectl_program(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Installs the `CustomResourceDefinition` of `ConsulService`, and waits until it is served.
    pub async fn install_crd(&self, crd: &str) -> Result<()> {
        let apply = ["apply", "--server-side", "--force-conflicts", "--filename", "-"];
        self.kubectl.run_with_input(&apply, crd).await?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", CRD]).await?;
        // Established comes a moment before every handler knows it.
        let listed =
            || async { Ok(Some(self.kubectl(&["get", "consulservices.lictor.dev", "--all-namespaces"]).await?)) };
        wait::until("ConsulServices are served", START, listed).await.map(drop)
    }

    /// Logs, keys and data; removed with this value.
    #[must_use]
    pub fn work_dir(&self) -> &Path {
        self.work_dir.path()
    }

    /// Stops the apiserver alone, at once: everything else runs on and sees it gone. What it has
    /// acknowledged is in etcd.
    pub fn stop_apiserver(&self) -> Result<()> {
        self.apiserver()?.stop()
    }

    /// Starts the apiserver again, at the same address, and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        self.apiserver()?.start()?;
        self.wait_apiserver().await
    }

    fn apiserver(&self) -> Result<&Apiserver> {
        Ok(&self.ours()?.apiserver)
    }

    fn ours(&self) -> Result<&Components> {
        self.ours.as_ref().context("this cluster is not ours to start or stop")
    }

    /// Its own word for it, which includes the roles without which the controllers give up.
    async fn wait_apiserver(&self) -> Result<()> {
        let client = self.client().await?;
        let ready = wait::until("/readyz of the apiserver", START, || async {
            let readyz = http::Request::get("/readyz").body(Vec::new())?;
            Ok(Some(client.request_text(readyz).await?))
        });
        self.unless_one_ends(ready).await.map(drop)
    }

    /// The controller manager works when it has made the service account without which no pod is
    /// admitted.
    async fn wait_controllers(&self) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        let made =
            wait::until("the default service account", START, || async { Ok(accounts.get_opt("default").await?) });
        self.unless_one_ends(made).await.map(drop)
    }

    async fn unless_one_ends<T>(&self, ready: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            ready = ready => ready,
            ended = self.component_end() => Err(ended),
        }
    }

    /// Waits until a component ends, which none should, and gives its last words.
    async fn component_end(&self) -> anyhow::Error {
        loop {
            if let Some(Err(ended)) = self.ours.as_ref().map(Components::ensure_running) {
                return ended;
            }
            tokio::time::sleep(wait::PAUSE).await;
        }
    }
}

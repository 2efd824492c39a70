//! A cluster whose pods really run: a control plane, and nodes that are machines within this machine.
//!
//! Each node is a `Machine` of Linux namespaces with a containerd, a kubelet and a kube-proxy of its own, at an
//! address of its own; this machine reaches nodes and pods directly. Several clusters may be up side by side (`Site`).
//! Nothing of the real machine is changed but for one interface and the routes over it, and cgroups; all of it is gone
//! with the [`NodeCluster`] or, should the process be killed first, soon after it.
//!
//! It needs Linux, root, and a few Debian packages, which it installs. [`prepare`] says why it cannot be, if so.

mod dns;
mod docker;
mod image;
mod kubelet;
mod machine;
mod network;
mod runtime;
mod site;
pub mod suite;
mod tools;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;

use self::dns::Dns;
pub use self::docker::{Docker, From, LICTOR_IMAGE};
use self::image::pause_image;
pub use self::image::{APP_IMAGE, CONSUL_IMAGE, Contents, Image, PAUSE_IMAGE, app_image, consul_image, contents_of};
use self::kubelet::About;
use self::machine::{Machine, Network};
use self::network::Switch;
use self::runtime::Runtime;
use self::site::{MAX_NODES, Site};
use crate::process::Process;
use crate::work_dir::WorkDir;
use crate::{ControlPlane, ControlPlaneOptions, NodePrograms, Programs, wait};

const READY: Duration = Duration::from_secs(90);

/// The port of every node at which Consul's DNS is looked for, unless it is said where it is: that of a Service of type
/// `NodePort`.
pub const CONSUL_DNS_NODE_PORT: u16 = 30_053;

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct NodeClusterOptions {
    /// How many nodes: `node-1`, `node-2`, ..., in the zones `zone-1`, `zone-2`, ...
    pub nodes: u8,
    /// Where names that end in `consul` are looked up; [`CONSUL_DNS_NODE_PORT`] of every node where empty.
    pub consul_dns: Vec<SocketAddr>,
    /// Put after our own arguments of kube-apiserver.
    pub apiserver_extra_args: Vec<String>,
}

impl Default for NodeClusterOptions {
    fn default() -> Self {
        Self { nodes: 1, consul_dns: Vec::new(), apiserver_extra_args: Vec::new() }
    }
}

/// A running cluster. Everything ends, in this order, when it is dropped.
#[derive(Debug)]
pub struct NodeCluster {
    _dns: Dns,
    nodes: Vec<Node>,
    plane: ControlPlane,
    _switch: Switch,
    work_dir: WorkDir,
    site: Site,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    zone: String,
    address: Ipv4Addr,
    programs: NodePrograms,
    kubelet: Mutex<Option<Process>>,
    proxy: Process,
    runtime: Runtime,
    machine: Machine,
}

/// Installs what a cluster needs of the system. Fails, in words for whoever reads why tests are skipped, where this
/// machine cannot have one.
pub fn prepare() -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this is not Linux");
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ensure!(uids.split_whitespace().nth(1) == Some("0"), "this is not root");
    tools::ensure()?;
    let mut namespaces = std::process::Command::new("unshare");
    namespaces.args(["--fork", "--pid", "--mount-proc", "--mount", "--net", "--uts", "--ipc", "true"]);
    tools::run(&mut namespaces).context("no namespaces may be made here")?;
    Ok(())
}

impl NodeCluster {
    /// Starts one. Its nodes are ready when this returns, with the images of the testbed's own programs.
    pub async fn start(options: &NodeClusterOptions) -> Result<Self> {
        ensure!((1..=MAX_NODES).contains(&options.nodes), "from 1 to {MAX_NODES} nodes, not {}", options.nodes);
        tokio::task::spawn_blocking(prepare).await??;
        let (programs, node_programs) = (Programs::ensure().await?, NodePrograms::ensure().await?);

        let site = Site::claim()?;
        let work_dir = WorkDir::create("nodes")?;
        let switch = Switch::start(&site, &work_dir)?;

        let plane_options = ControlPlaneOptions {
            apiserver_extra_args: options.apiserver_extra_args.clone(),
            address: Some(site.gateway()),
            ..ControlPlaneOptions::default()
        };
        let plane = ControlPlane::start_with(&programs, &plane_options);
        let machines = try_join_all((1..=options.nodes).map(|index| start_machine(index, &site, &work_dir, &switch)));
        let (plane, machines) = tokio::try_join!(plane, machines)?;
        for (from, machine) in (1..=options.nodes).zip(&machines) {
            for to in (1..=options.nodes).filter(|to| *to != from) {
                network::route(&site, machine, to)?;
            }
        }

        let archives = [pause_image(&node_programs.app, &work_dir)?, app_image(&node_programs.app, &work_dir)?];
        let nodes = machines.into_iter().zip(1..).map(|(machine, index)| {
            Node::start(machine, index, site.node(index), site.pods(index), &plane, &node_programs, &archives)
        });
        let consul_dns = if options.consul_dns.is_empty() {
            (1..=options.nodes).map(|index| (site.node(index), CONSUL_DNS_NODE_PORT).into()).collect()
        } else {
            options.consul_dns.clone()
        };
        let (nodes, dns) = tokio::try_join!(
            try_join_all(nodes),
            Dns::start(&plane, &node_programs, &work_dir, site.gateway(), &consul_dns)
        )?;
        let cluster = Self { _dns: dns, nodes, plane, _switch: switch, work_dir, site };
        for node in &cluster.nodes {
            cluster.wait_ready(node, true).await?;
        }
        Ok(cluster)
    }

    /// Its control plane.
    #[must_use]
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// This machine's address, as pods see it.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        self.site.gateway()
    }

    /// A folder that goes with the cluster.
    #[must_use]
    pub fn work_dir(&self) -> &WorkDir {
        &self.work_dir
    }

    /// Loads the images of an archive into every node.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        try_join_all(self.nodes.iter().map(|node| node.runtime.import(archive))).await.map(drop)
    }

    /// Loads [`CONSUL_IMAGE`] of this program.
    pub async fn load_consul(&self, consul: &Path) -> Result<()> {
        self.load(&consul_image(consul, &self.work_dir)?).await
    }

    /// Waits until the cluster holds a node for ready, or for not.
    pub async fn wait_ready(&self, node: &Node, ready: bool) -> Result<()> {
        let objects: Api<NodeObject> = Api::all(self.plane.client().await?);
        let what = format!("{} is {}ready", node.name, if ready { "" } else { "not " });
        let waited = wait::until(what, READY, || async {
            if let Err(ended) = node.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            let object = objects.get(&node.name).await?;
            let conditions = object.status.and_then(|status| status.conditions).unwrap_or_default();
            let condition = conditions.iter().find(|condition| condition.type_ == "Ready").context("no condition")?;
            ensure!((condition.status == "True") == ready, "{condition:?}");
            Ok(Some(Ok(())))
        });
        waited.await?
    }
}

impl Node {
    async fn start(
        machine: Machine,
        index: u8,
        address: Ipv4Addr,
        pods: String,
        plane: &ControlPlane,
        programs: &NodePrograms,
        archives: &[PathBuf],
    ) -> Result<Self> {
        let (name, zone) = (node_name(index), format!("zone-{index}"));
        let runtime = Runtime::start(&machine, programs, &pods).await?;
        for archive in archives {
            runtime.import(archive).await?;
        }
        let endpoint = runtime.endpoint();
        let about = About { machine: &machine, name: &name, address, zone: &zone, runtime: &endpoint };
        kubelet::configure_kubelet(&about, plane)?;
        let kubelet = Mutex::new(Some(kubelet::start_kubelet(&about, programs)?));
        let proxy = kubelet::start_proxy(&about, plane, programs)?;
        Ok(Self { name, zone, address, programs: programs.clone(), kubelet, proxy, runtime, machine })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Stops its kubelet, at once. Its pods run on, and nobody speaks for them.
    pub fn stop_kubelet(&self) -> Result<()> {
        self.kubelet().take().context("its kubelet is not running")?.kill().map(drop)
    }

    /// Starts its kubelet again.
    pub fn start_kubelet(&self) -> Result<()> {
        let mut kubelet = self.kubelet();
        ensure!(kubelet.is_none(), "its kubelet is running");
        let about = About {
            machine: &self.machine,
            name: &self.name,
            address: self.address,
            zone: &self.zone,
            runtime: &self.runtime.endpoint(),
        };
        *kubelet = Some(kubelet::start_kubelet(&about, &self.programs)?);
        Ok(())
    }

    /// Fails with the last words of a program of it that has ended by itself.
    fn ensure_running(&self) -> Result<()> {
        self.runtime.ensure_running()?;
        self.proxy.ensure_running()?;
        self.kubelet().as_ref().map_or(Ok(()), Process::ensure_running)
    }

    fn kubelet(&self) -> MutexGuard<'_, Option<Process>> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_name(index: u8) -> String {
    format!("node-{index}")
}

async fn start_machine(index: u8, site: &Site, work_dir: &WorkDir, switch: &Switch) -> Result<Machine> {
    let machine = Machine::start(&node_name(index), Network::Own, work_dir).await?;
    switch.connect(site, index, &machine)?;
    Ok(machine)
}

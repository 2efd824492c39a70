//! The four programs of a control plane, their flags, and the files that they read.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ControlPlaneOptions;
use crate::certificates::{Authority, Pair, key_pair};
use crate::process::Process;
use crate::work_dir::WorkDir;
use crate::{Programs, ports};

/// Both families, so that tests may ask for dual-stack Services.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
const FIRST_SERVICE_ADDRESS: &str = "10.96.0.1";

/// No kubelet confirms a heartbeat, a start or an end here: the controllers that act on a kubelet's
/// silence would remove the tests' nodes and pods.
const WITHOUT_KUBELETS: &str = "*,-node-lifecycle-controller,-pod-garbage-collector-controller";

/// After how many seconds of silence a node is not ready, and its pods are told to go after how many
/// more. By default it is about a minute, and five more, which nobody wants to watch.
const NODE_GRACE: u32 = 12;
const POD_GRACE: u32 = 5;

/// The running programs. They end in this order: nothing outlives what it needs.
#[derive(Debug)]
pub(super) struct Components {
    /// Those that need an apiserver that answers; they give up otherwise.
    controllers: Mutex<Vec<Process>>,
    pub(super) apiserver: Apiserver,
    etcd: Process,
}

impl Components {
    /// Starts the apiserver and what it stores into.
    pub(super) fn start(
        programs: &Programs,
        work_dir: &WorkDir,
        files: &Files,
        options: &ControlPlaneOptions,
    ) -> Result<Self> {
        let etcd_url = format!("http://127.0.0.1:{}", ports::free()?);
        let etcd = start_etcd(programs, work_dir, &etcd_url)?;
        let mut args = apiserver_args(files, work_dir, &etcd_url, options);
        args.extend_from_slice(&options.apiserver_extra_args);
        let apiserver = Apiserver {
            running: Mutex::default(),
            program: programs.kube_apiserver.clone(),
            args,
            log: work_dir.join("kube-apiserver.log"),
        };
        apiserver.start()?;
        Ok(Self { controllers: Mutex::default(), apiserver, etcd })
    }

    /// Starts the rest, once the apiserver is ready.
    pub(super) fn start_controllers(
        &self,
        programs: &Programs,
        work_dir: &WorkDir,
        files: &Files,
        options: &ControlPlaneOptions,
    ) -> Result<()> {
        *self.controllers() = vec![
            start_scheduler(programs, work_dir, files)?,
            start_controller_manager(programs, work_dir, files, options)?,
        ];
        Ok(())
    }

    /// Kills the scheduler and the controller manager.
    pub(super) fn kill_controllers(&self) -> Result<()> {
        self.controllers().drain(..).try_for_each(|controller| controller.kill().map(drop))
    }

    fn controllers(&self) -> MutexGuard<'_, Vec<Process>> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails with the last words of a program that has ended by itself.
    pub(super) fn ensure_running(&self) -> Result<()> {
        self.etcd.ensure_running()?;
        self.apiserver.ensure_running()?;
        self.controllers().iter().try_for_each(Process::ensure_running)
    }
}

/// The apiserver, and what it takes to start it again just as it was.
#[derive(Debug)]
pub(super) struct Apiserver {
    running: Mutex<Option<Process>>,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
}

impl Apiserver {
    pub(super) fn start(&self) -> Result<()> {
        let mut running = self.running();
        ensure!(running.is_none(), "the apiserver is running already");
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        *running = Some(Process::spawn("kube-apiserver", command, &self.log)?);
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<()> {
        // Killed: in an orderly end it would wait a minute for every watch to end first.
        let process = self.running().take().context("the apiserver is not running")?;
        process.kill()?;
        Ok(())
    }

    fn ensure_running(&self) -> Result<()> {
        self.running().as_ref().map_or(Ok(()), Process::ensure_running)
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Certificates, keys and kubeconfig files.
#[derive(Debug)]
pub(super) struct Files {
    authority: Authority,
    address: Ipv4Addr,
    apiserver_port: u16,
    pub(super) ca: PathBuf,
    server: PairFiles,
    /// With which the apiserver goes to kubelets.
    kubelet_client: PairFiles,
    service_accounts: PairFiles,
    pub(super) admin: PathBuf,
    controller_manager: PathBuf,
    scheduler: PathBuf,
}

#[derive(Debug)]
struct PairFiles {
    public: PathBuf,
    private: PathBuf,
}

impl Files {
    pub(super) fn write(work_dir: &WorkDir, apiserver_port: u16, options: &ControlPlaneOptions) -> Result<Self> {
        let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let authority = Authority::new("lictor-testbed")?;
        let ca = work_dir.write("ca.crt", authority.certificate())?;
        let names = [
            "localhost",
            &address.to_string(),
            &own_address().to_string(),
            FIRST_SERVICE_ADDRESS,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let server = authority.server(names.map(str::to_owned).to_vec())?;

        let url = format!("https://{address}:{apiserver_port}");
        let kubeconfig = |name: &str, user: &str, group: Option<&str>| {
            let client = write_pair(work_dir, name, &authority.client(user, group)?)?;
            work_dir.write(&format!("{name}.kubeconfig"), kubeconfig(&url, &ca, &client))
        };
        let kubelet_client = authority.client("kube-apiserver-kubelet-client", Some("system:masters"))?;
        Ok(Self {
            address,
            apiserver_port,
            kubelet_client: write_pair(work_dir, "apiserver-kubelet-client", &kubelet_client)?,
            server: write_pair(work_dir, "apiserver", &server)?,
            service_accounts: write_pair(work_dir, "service-accounts", &key_pair()?)?,
            admin: kubeconfig("admin", "admin", Some("system:masters"))?,
            controller_manager: kubeconfig("controller-manager", "system:kube-controller-manager", None)?,
            scheduler: kubeconfig("scheduler", "system:kube-scheduler", None)?,
            ca,
            authority,
        })
    }

    pub(super) fn kubeconfig_for(&self, work_dir: &WorkDir, user: &str, group: Option<&str>) -> Result<String> {
        let name = user.replace(':', "-");
        let client = write_pair(work_dir, &name, &self.authority.client(user, group)?)?;
        Ok(kubeconfig(&format!("https://{}:{}", self.address, self.apiserver_port), &self.ca, &client))
    }
}

fn write_pair(work_dir: &WorkDir, name: &str, pair: &Pair) -> Result<PairFiles> {
    Ok(PairFiles {
        public: work_dir.write(&format!("{name}.crt"), &pair.public)?,
        private: work_dir.write(&format!("{name}.key"), &pair.private)?,
    })
}

fn kubeconfig(url: &str, ca: &Path, client: &PairFiles) -> String {
    let path = |path: &Path| path.display().to_string();
    // JSON is YAML.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "testbed",
            "cluster": { "server": url, "certificate-authority": path(ca) },
        }],
        "users": [{
            "name": "testbed",
            "user": {
                "client-certificate": path(&client.public),
                "client-key": path(&client.private),
            },
        }],
        "contexts": [{
            "name": "testbed",
            "context": { "cluster": "testbed", "user": "testbed" },
        }],
        "current-context": "testbed",
    });
    format!("{kubeconfig:#}\n")
}

/// The address that this machine's traffic to the outside has. The apiserver puts it into the
/// `kubernetes` Service, whose `EndpointSlice` takes no loopback address.
fn own_address() -> Ipv4Addr {
    // Connecting a UDP socket sends nothing; it only looks up the route.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let local = socket.and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match local.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) => address,
        // No network at all: an address for documentation does as well, since nothing calls it.
        _ => Ipv4Addr::new(192, 0, 2, 1),
    }
}

/// A flag with a path.
fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

fn start_etcd(programs: &Programs, work_dir: &WorkDir, url: &str) -> Result<Process> {
    let peer_url = format!("http://127.0.0.1:{}", ports::free()?);
    let mut command = Command::new(&programs.etcd);
    command.args([
        "--name=testbed",
        &flag("data-dir", &work_dir.join("etcd")),
        &format!("--listen-client-urls={url}"),
        &format!("--advertise-client-urls={url}"),
        &format!("--listen-peer-urls={peer_url}"),
        &format!("--initial-advertise-peer-urls={peer_url}"),
        &format!("--initial-cluster=testbed={peer_url}"),
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]);
    Process::spawn("etcd", command, &work_dir.join("etcd.log"))
}

fn apiserver_args(files: &Files, work_dir: &WorkDir, etcd_url: &str, options: &ControlPlaneOptions) -> Vec<String> {
    let mut args = vec![
        format!("--etcd-servers={etcd_url}"),
        format!("--bind-address={}", files.address),
        format!("--secure-port={}", files.apiserver_port),
        format!("--advertise-address={}", options.address.unwrap_or_else(own_address)),
        flag("cert-dir", work_dir.path()),
        flag("tls-cert-file", &files.server.public),
        flag("tls-private-key-file", &files.server.private),
        flag("client-ca-file", &files.ca),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        flag("service-account-key-file", &files.service_accounts.public),
        flag("service-account-signing-key-file", &files.service_accounts.private),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        flag("kubelet-client-certificate", &files.kubelet_client.public),
        flag("kubelet-client-key", &files.kubelet_client.private),
    ];
    if options.address.is_some() {
        args.push(format!("--default-not-ready-toleration-seconds={POD_GRACE}"));
        args.push(format!("--default-unreachable-toleration-seconds={POD_GRACE}"));
    }
    args
}

fn start_controller_manager(
    programs: &Programs,
    work_dir: &WorkDir,
    files: &Files,
    options: &ControlPlaneOptions,
) -> Result<Process> {
    let mut command = Command::new(&programs.kube_controller_manager);
    command.args(client_flags(&files.controller_manager)).args([
        &flag("root-ca-file", &files.ca),
        &flag("service-account-private-key-file", &files.service_accounts.private),
        "--use-service-account-credentials",
        // The default of 20 requests a second would be the bottleneck of every larger test; what it hides is tested
        // with the default, which comes in by the extra arguments.
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        &format!("--secure-port={}", ports::free()?),
    ]);
    if options.address.is_some() {
        command.args(["--node-monitor-period=1s", &format!("--node-monitor-grace-period={NODE_GRACE}s")]);
    } else {
        command.arg(format!("--controllers={WITHOUT_KUBELETS}"));
    }
    command.args(&options.controller_manager_extra_args);
    let log = work_dir.join("kube-controller-manager.log");
    Process::spawn("kube-controller-manager", command, &log)
}

fn start_scheduler(programs: &Programs, work_dir: &WorkDir, files: &Files) -> Result<Process> {
    let mut command = Command::new(&programs.kube_scheduler);
    command.args(client_flags(&files.scheduler)).arg(format!("--secure-port={}", ports::free()?));
    Process::spawn("kube-scheduler", command, &work_dir.join("kube-scheduler.log"))
}

/// What the two clients of the apiserver have in common.
fn client_flags(kubeconfig: &Path) -> [String; 3] {
    [
        flag("kubeconfig", kubeconfig),
        "--bind-address=127.0.0.1".to_owned(),
        // There is just one of each, which may then start without waiting for anything.
        "--leader-elect=false".to_owned(),
    ]
}

//! What runs a node's containers: containerd, with runc and the CNI plugins of the system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::PAUSE_IMAGE;
use super::machine::Machine;
use super::tools;
use crate::process::Process;
use crate::programs::NodePrograms;
use crate::wait;

const START: Duration = Duration::from_secs(30);

/// A running containerd.
#[derive(Debug)]
pub(super) struct Runtime {
    process: Process,
    socket: PathBuf,
    ctr: PathBuf,
}

impl Runtime {
    /// Starts it on a machine; `pods` is the range of its pods' addresses.
    pub(super) async fn start(machine: &Machine, programs: &NodePrograms, pods: &str) -> Result<Self> {
        let plugins = tools::cni_plugins().context("no CNI plugins")?;
        std::fs::create_dir(machine.path("cni"))?;
        machine.write("cni/10-lictor.conflist", &cni_config(pods))?;
        let socket = machine.path("containerd.sock");
        let config = machine.write("containerd.toml", &config(machine, &socket, plugins)?)?;

        let mut command = machine.command(&programs.containerd);
        command.arg("--config").arg(config).env("PATH", path_with(&programs.containerd_shim_runc_v2)?);
        let process = machine.spawn("containerd", command)?;
        let runtime = Self { process, socket, ctr: programs.ctr.clone() };
        let ready = wait::until("containerd", START, || async {
            if let Err(ended) = runtime.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            tokio::net::UnixStream::connect(&runtime.socket).await?;
            Ok(Some(Ok(())))
        });
        ready.await.with_context(|| runtime.process.log_tail(20))??;
        Ok(runtime)
    }

    /// Its socket, as a URL.
    pub(super) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Takes in the images of a tar archive, in Docker's or OCI's layout.
    pub(super) async fn import(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let imported = tokio::task::spawn_blocking(move || tools::run(&mut command)).await?;
        imported.with_context(|| format!("importing {}", archive.display())).map(drop)
    }

    pub(super) fn ensure_running(&self) -> Result<()> {
        self.process.ensure_running()
    }
}

/// The shim's own folder first: another containerd's may be on `PATH`.
fn path_with(shim: &Path) -> Result<OsString> {
    let folder = shim.parent().context("a program without a folder")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    Ok(std::env::join_paths(std::iter::once(folder.to_owned()).chain(path))?)
}

/// Each pod has a cable of its own to its node, with no bridge between: so all that pods send each other passes the
/// node's packet filter, in which the addresses of Services are replaced.
fn cni_config(pods: &str) -> String {
    let config = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lictor",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{ "subnet": pods }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    format!("{config:#}\n")
}

/// `restrict_oom_score_adj`: a machine that may not lower the score that its processes are killed by, when memory runs
/// out, can start no sandbox otherwise.
fn config(machine: &Machine, socket: &Path, plugins: &Path) -> Result<String> {
    let runc = tools::find("runc").context("no runc")?;
    Ok(format!(
        r#"version = 3
root = "{root}"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{socket}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{cni}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
        root = machine.path("disk/containerd").display(),
        socket = socket.display(),
        plugins = plugins.display(),
        cni = machine.path("cni").display(),
        runc = runc.display(),
    ))
}

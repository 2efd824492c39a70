//! A machine within this machine: processes, mounts, network and name of its own.
//!
//! It is made of Linux namespaces, and its first process holds them. When that one is killed, the kernel ends every
//! other process in it, whatever its group or session, and with them go its mounts, its network and its packet
//! filter. So nothing that a kubelet does to a machine is ever done to the real one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tools;
use crate::process::Process;
use crate::wait;
use crate::watchdog::Watchdog;
use crate::work_dir::{WorkDir, random_suffix};

const START: Duration = Duration::from_secs(20);
const CGROUPS: &str = "/sys/fs/cgroup";

/// The first process.
///
/// What is written below `/var` and `/run` by programs that let nobody say where stays in the machine. Where the
/// folder given cannot be the upper part of an overlay, which is what images are unpacked into, memory takes its
/// place. A kubelet sets certain variables of the kernel, for all of the real machine, unless it finds them as it
/// wants them: so it does.
const INIT: &str = r#"
set -eu
dir=$1
echo "$2" > /proc/sys/kernel/hostname
mount --make-rshared /
over() {
  mkdir -p "$dir/disk/upper$1" "$dir/disk/work$1"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$dir/disk/upper$1,workdir=$dir/disk/work$1" "$1"
}
mkdir -p "$dir/disk"
if ! over /var/lib; then
  mount -t tmpfs tmpfs "$dir/disk"
  over /var/lib
fi
over /var/log
mount -t tmpfs tmpfs /run
found() {
  if [ -e "/proc/sys/$1" ]; then
    mkdir -p "/run/sysctl/$1"
    echo "$2" > "/run/sysctl/$1/value"
    mount --bind "/run/sysctl/$1/value" "/proc/sys/$1"
  fi
}
found vm/overcommit_memory 1
found vm/panic_on_oom 0
found kernel/panic 10
found kernel/panic_on_oops 1
found kernel/keys/root_maxkeys 1000000
found kernel/keys/root_maxbytes 25000000
if [ "$3" = own ]; then
  ip link set lo up
  echo 1 > /proc/sys/net/ipv4/ip_forward
fi
: > "$dir/up"
while :; do
  sleep 3600 &
  wait $!
done
"#;

/// Which network a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// One of its own, which leads nowhere as yet.
    Own,
    /// That of the real machine.
    Real,
}

impl Network {
    /// The flags, of `unshare` and `nsenter` alike, for all namespaces that are a machine's own, but for its processes.
    fn namespaces(self) -> &'static [&'static str] {
        match self {
            Self::Own => &["--mount", "--uts", "--ipc", "--net"],
            Self::Real => &["--mount", "--uts", "--ipc"],
        }
    }
}

/// A machine; it goes, with all that runs in it, when it is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    name: String,
    network: Network,
    process: Process,
    init: u32,
    cgroup: Cgroup,
    dir: PathBuf,
}

impl Machine {
    /// Makes one that calls itself `name` and keeps what it writes in a folder of that name in `work_dir`.
    pub(super) async fn start(name: &str, network: Network, work_dir: &WorkDir) -> Result<Self> {
        let dir = work_dir.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let cgroup = Cgroup::create(&format!("lictor-{name}-{}", random_suffix()))?;
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount-proc"]).args(network.namespaces());
        let own = if network == Network::Own { "own" } else { "real" };
        command.args(["--", "sh", "-c", INIT, "sh"]).arg(&dir).args([name, own]);
        let process = Process::spawn(&format!("machine {name}"), command, &dir.join("machine.log"))?;

        let up = dir.join("up");
        let started = wait::until(format!("machine {name}"), START, || async {
            if let Err(ended) = process.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            Ok(up.exists().then_some(Ok(())))
        });
        started.await.with_context(|| process.log_tail(20))??;
        let init = only_child(process.pid())?;
        Ok(Self { name: name.to_owned(), network, process, init, cgroup, dir })
    }

    /// The number, here, of its first process.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// A path in its folder, which has the same name on either side.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file into its folder and gives its path.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The cgroup that is its root.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup.name
    }

    /// A program that will run in it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--pid"]).args(self.network.namespaces()).arg("--");
        command.arg(program);
        command
    }

    /// Starts a program in it, with its log in its folder.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(&format!("{name} of {}", self.name), command, &self.path(&format!("{name}.log")))
    }

    /// Ends everything in it and waits until that is done.
    fn end(&self) -> Result<()> {
        let mut kill = Command::new("sh");
        kill.args(["-c", r#"kill -s KILL "$1""#, "sh", &self.init.to_string()]);
        tools::run(&mut kill)?;
        // It is told of the end only when the last process of the machine is gone.
        for _ in 0..1_000 {
            if self.process.exited()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("machine {} does not end", self.name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// A name that is a cgroup of its own in every hierarchy there is.
#[derive(Debug)]
struct Cgroup {
    name: String,
}

impl Cgroup {
    fn create(name: &str) -> Result<Self> {
        Watchdog::global()?.watch_cgroup(name)?;
        for hierarchy in hierarchies()? {
            let cgroup = hierarchy.join(name);
            std::fs::create_dir(&cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
        }
        Ok(Self { name: name.to_owned() })
    }

    fn remove(&self) -> Result<()> {
        for hierarchy in hierarchies()? {
            remove_tree(&hierarchy.join(&self.name))?;
        }
        Watchdog::global()?.forget_cgroup(&self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The watchdog tries again when this process ends.
        let _ = self.remove();
    }
}

/// The roots of all hierarchies: one in version 2, one for each controller in version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("reading {CGROUPS}"))? {
        let entry = entry?;
        // `cpu` and `cpuacct` are often links to one folder of both.
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    ensure!(!found.is_empty(), "no cgroups are mounted at {CGROUPS}");
    Ok(found)
}

/// Removes a cgroup and those in it. Its files are not to be removed, and go with it.
fn remove_tree(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup).with_context(|| format!("removing {}", cgroup.display()))
}

fn only_child(parent: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let mut children = children.split_whitespace();
    let child = children.next().context("no first process")?.parse()?;
    ensure!(children.next().is_none(), "more than one child of unshare");
    Ok(child)
}

//! The programs that make up the testbed: found, or built once from pinned Go modules.
//!
//! The pins are the `go.mod` and `go.sum` files in `programs/`. What is built goes to
//! `${LICTOR_CACHE:-${XDG_CACHE_HOME:-~/.cache}/lictor}/programs`, into a folder whose name holds a
//! hash of all that decides what comes out, so that a changed pin is another folder.

use std::env;
use std::fs::{self, File};
use std::hash::Hasher;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::watchdog::Watchdog;

pub mod tools;

/// Where each program of the testbed is.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each field is the program of its name")]
pub struct Programs {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
    pub kubectl: PathBuf,
    pub consul: PathBuf,
}

impl Programs {
    /// Finds all programs, and builds those that are not found. The first build takes about a quarter
    /// of an hour on two cores; it says on stderr what it does.
    pub async fn ensure() -> Result<Self> {
        tokio::task::spawn_blocking(|| {
            Ok(Self {
                etcd: ETCD.ensure()?,
                consul: CONSUL.ensure()?,
                kube_apiserver: KUBE_APISERVER.ensure()?,
                kube_controller_manager: KUBE_CONTROLLER_MANAGER.ensure()?,
                kube_scheduler: KUBE_SCHEDULER.ensure()?,
                kubectl: KUBECTL.ensure()?,
            })
        })
        .await?
    }

    /// Finds or builds `kubectl` alone, which is all that a cluster that is already there needs.
    pub async fn ensure_kubectl() -> Result<PathBuf> {
        tokio::task::spawn_blocking(|| KUBECTL.ensure()).await?
    }

    /// Finds or builds Consul alone.
    pub async fn ensure_consul() -> Result<PathBuf> {
        tokio::task::spawn_blocking(|| CONSUL.ensure()).await?
    }

    /// Finds or builds CoreDNS alone.
    pub async fn ensure_coredns() -> Result<PathBuf> {
        tokio::task::spawn_blocking(|| COREDNS.ensure()).await?
    }

    /// Builds what reads Consul in Go: a program that asks as Go programs do, and consul-template.
    pub async fn ensure_readers() -> Result<(PathBuf, PathBuf)> {
        tokio::task::spawn_blocking(|| Ok((READER.ensure()?, CONSUL_TEMPLATE.ensure()?))).await?
    }

    /// Names and paths, in the order in which they are built.
    #[must_use]
    pub fn list(&self) -> [(&'static str, &Path); 6] {
        [
            (ETCD.name, &self.etcd),
            (CONSUL.name, &self.consul),
            (KUBE_APISERVER.name, &self.kube_apiserver),
            (KUBE_CONTROLLER_MANAGER.name, &self.kube_controller_manager),
            (KUBE_SCHEDULER.name, &self.kube_scheduler),
            (KUBECTL.name, &self.kubectl),
        ]
    }
}

/// Where the programs are that make a node of this machine, beside those of [`Programs`].
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each field is the program of its name")]
pub struct NodePrograms {
    pub containerd: PathBuf,
    pub containerd_shim_runc_v2: PathBuf,
    pub ctr: PathBuf,
    pub kubelet: PathBuf,
    pub kube_proxy: PathBuf,
    pub coredns: PathBuf,
    /// What runs in pods: see `programs/app/main.go`.
    pub app: PathBuf,
}

impl NodePrograms {
    /// Finds all of them, and builds those that are not found.
    pub async fn ensure() -> Result<Self> {
        tokio::task::spawn_blocking(|| {
            Ok(Self {
                containerd: CONTAINERD.ensure()?,
                containerd_shim_runc_v2: CONTAINERD_SHIM.ensure()?,
                ctr: CTR.ensure()?,
                kubelet: KUBELET.ensure()?,
                kube_proxy: KUBE_PROXY.ensure()?,
                coredns: COREDNS.ensure()?,
                app: APP.ensure()?,
            })
        })
        .await?
    }

    /// Builds what runs in pods alone.
    pub async fn ensure_app() -> Result<PathBuf> {
        tokio::task::spawn_blocking(|| APP.ensure()).await?
    }

    /// Names and paths, in the order in which they are built.
    #[must_use]
    pub fn list(&self) -> [(&'static str, &Path); 7] {
        [
            (CONTAINERD.name, &self.containerd),
            (CONTAINERD_SHIM.name, &self.containerd_shim_runc_v2),
            (CTR.name, &self.ctr),
            (KUBELET.name, &self.kubelet),
            (KUBE_PROXY.name, &self.kube_proxy),
            (COREDNS.name, &self.coredns),
            (APP.name, &self.app),
        ]
    }
}

/// One program, and how to come by it.
struct Program {
    name: &'static str,
    /// The folder of its pins in `programs/`.
    pins: &'static str,
    /// The pinned module that gives it its version; empty for a program of our own, whose source is
    /// beside its pins.
    module: &'static str,
    package: &'static str,
    /// How long a first build takes on two cores, for whoever waits.
    takes: &'static str,
    /// Whether the folder of `KUBEBUILDER_ASSETS` has it by convention.
    kubebuilder_asset: bool,
    /// How a program of this name on `PATH` tells its version, and which (major, minor) will do.
    /// None where only our own will.
    on_path: Option<OnPath>,
}

struct OnPath {
    version: &'static [&'static str],
    will_do: fn(found: (u32, u32), ours: (u32, u32)) -> bool,
}

const ETCD: Program = Program {
    name: "etcd",
    pins: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    package: "go.etcd.io/etcd/server/v3",
    takes: "1 min",
    kubebuilder_asset: true,
    on_path: None,
};

const CONSUL: Program = Program {
    name: "consul",
    pins: "consul",
    module: "github.com/hashicorp/consul",
    package: "github.com/hashicorp/consul",
    takes: "4 min",
    kubebuilder_asset: false,
    on_path: Some(OnPath { version: &["version"], will_do: |found, _| found >= (1, 20) }),
};

const KUBE_APISERVER: Program =
    Program { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver", takes: "5 min", ..KUBERNETES };

const KUBE_CONTROLLER_MANAGER: Program = Program {
    name: "kube-controller-manager",
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    takes: "2 min",
    kubebuilder_asset: false,
    ..KUBERNETES
};

const KUBE_SCHEDULER: Program = Program {
    name: "kube-scheduler",
    package: "k8s.io/kubernetes/cmd/kube-scheduler",
    kubebuilder_asset: false,
    ..KUBERNETES
};

const KUBECTL: Program = Program {
    name: "kubectl",
    package: "k8s.io/kubernetes/cmd/kubectl",
    // Kubernetes supports a kubectl one minor version away from the apiserver, no further.
    on_path: Some(OnPath {
        version: &["version", "--client"],
        will_do: |found, ours| found.0 == ours.0 && found.1.abs_diff(ours.1) <= 1,
    }),
    ..KUBERNETES
};

const KUBELET: Program =
    Program { name: "kubelet", package: "k8s.io/kubernetes/cmd/kubelet", kubebuilder_asset: false, ..KUBERNETES };

const KUBE_PROXY: Program =
    Program { name: "kube-proxy", package: "k8s.io/kubernetes/cmd/kube-proxy", kubebuilder_asset: false, ..KUBERNETES };

/// What the programs of one module have in common.
const KUBERNETES: Program = Program {
    name: "",
    pins: "kubernetes",
    module: "k8s.io/kubernetes",
    package: "",
    takes: "1 min",
    kubebuilder_asset: true,
    on_path: None,
};

const CTR: Program =
    Program { name: "ctr", package: "github.com/containerd/containerd/v2/cmd/ctr", takes: "10 s", ..CONTAINERD };

const CONTAINERD_SHIM: Program = Program {
    name: "containerd-shim-runc-v2",
    package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    takes: "10 s",
    ..CONTAINERD
};

const CONTAINERD: Program = Program {
    name: "containerd",
    pins: "containerd",
    module: "github.com/containerd/containerd/v2",
    package: "github.com/containerd/containerd/v2/cmd/containerd",
    takes: "2 min",
    kubebuilder_asset: false,
    on_path: None,
};

const COREDNS: Program = Program {
    name: "coredns",
    pins: "coredns",
    module: "github.com/coredns/coredns",
    package: "github.com/coredns/coredns",
    takes: "3 min",
    kubebuilder_asset: false,
    on_path: None,
};

const APP: Program = Program {
    name: "app",
    pins: "app",
    module: "",
    package: ".",
    takes: "1 min",
    kubebuilder_asset: false,
    on_path: None,
};

const READER: Program = Program { name: "reader", pins: "reader", takes: "10 s", ..APP };

const CONSUL_TEMPLATE: Program = Program {
    name: "consul-template",
    pins: "consul-template",
    module: "github.com/hashicorp/consul-template",
    package: "github.com/hashicorp/consul-template",
    takes: "1 min",
    kubebuilder_asset: false,
    on_path: None,
};

impl Program {
    fn ensure(&self) -> Result<PathBuf> {
        let pins = Pins::read(self)?;
        if let Some(found) = self.in_kubebuilder_assets() {
            return Ok(found);
        }
        if let Some(found) = self.on_path(&pins).filter(|_| version_asked_for(self.pins).is_none()) {
            return Ok(found);
        }
        let folder = cache()?.join(format!("{}-{:016x}", self.name, pins.hash(self)));
        let program = folder.join(self.name);
        if program.is_file() {
            return Ok(program);
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        // Test programs run side by side: one builds, the others wait here. The lock goes with the
        // open file, hence also when its holder is killed.
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        if !program.is_file() {
            self.build(&pins, &program)?;
        }
        Ok(program)
    }

    /// Build tags: Prometheus comes without the clients of all clouds, in which it would look for targets.
    fn tags(&self) -> &'static str {
        if self.pins == "prometheus" { "remove_all_sd" } else { "" }
    }

    fn in_kubebuilder_assets(&self) -> Option<PathBuf> {
        let will_do = self.kubebuilder_asset && version_asked_for(self.pins).is_none();
        let folder = env::var_os("KUBEBUILDER_ASSETS").filter(|_| will_do)?;
        let program = Path::new(&folder).join(self.name);
        program.is_file().then_some(program)
    }

    fn on_path(&self, pins: &Pins) -> Option<PathBuf> {
        let OnPath { version, will_do } = self.on_path.as_ref()?;
        let program = env::split_paths(&env::var_os("PATH")?)
            .map(|folder| folder.join(self.name))
            .find(|program| program.is_file())?;
        let output = Command::new(&program).args(*version).output().ok()?;
        let found = major_minor(&String::from_utf8_lossy(&output.stdout))?;
        let ours = major_minor(&pins.version)?;
        (output.status.success() && will_do(found, ours)).then_some(program)
    }

    fn build(&self, pins: &Pins, program: &Path) -> Result<()> {
        ensure!(
            Command::new("go").arg("version").output().is_ok(),
            "{} has to be built, and there is no `go` (1.21 or later) on PATH. Install Go, or set \
             KUBEBUILDER_ASSETS, or put a fitting program on PATH",
            self.name
        );
        let begun = Instant::now();
        let title = format!("building {} {}", self.name, pins.version);
        eprintln!("{title} (about {} the first time) …", self.takes);

        // Another name until it is whole: what is there is complete.
        let unfinished = program.with_extension("unfinished");
        let child = Command::new("go")
            .current_dir(&pins.folder)
            .args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"])
            .args(["-ldflags", &ldflags(&pins.version), "-tags", self.tags(), "-o"])
            .arg(&unfinished)
            .arg(self.package)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting go")?;
        let group = child.id();
        Watchdog::global()?.watch_group(group)?;
        let output = child.wait_with_output()?;
        Watchdog::global()?.forget_group(group)?;
        ensure!(
            output.status.success(),
            "{title}: go build failed:\n{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        fs::rename(&unfinished, program)?;
        eprintln!("{title} … done in {}", minutes(begun.elapsed()));
        Ok(())
    }
}

/// What is pinned for one program.
struct Pins {
    folder: PathBuf,
    /// `go.mod` and `go.sum`; for a program of our own, its source too.
    files: Vec<String>,
    /// The version of the program's module, such as `v1.37.2`.
    version: String,
}

impl Pins {
    fn read(program: &Program) -> Result<Self> {
        let pins = version_asked_for(program.pins);
        let pins = pins.map_or_else(|| program.pins.to_owned(), |version| format!("{}-{version}", program.pins));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(pins);
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("reading {}", folder.display()))?;
        paths.sort();
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        let files = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(Self { version: version(program, &files)?, folder, files })
    }

    /// A fingerprint of all that decides what is built. Not a defence against anybody.
    fn hash(&self, program: &Program) -> u64 {
        let mut hasher = Fnv1a::default();
        let ldflags = ldflags(&self.version);
        let others = [ldflags.as_str(), program.package, env::consts::OS, env::consts::ARCH];
        for part in self.files.iter().map(String::as_str).chain(others) {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
        hasher.write(program.tags().as_bytes());
        hasher.finish()
    }
}

/// The version of a program's module, which one of its `files` pins.
fn version(program: &Program, files: &[String]) -> Result<String> {
    if program.module.is_empty() {
        return Ok("v0.0.0".to_owned());
    }
    let lines = files.iter().flat_map(|file| file.lines());
    let version = lines
        .map(|line| line.trim().trim_start_matches("require "))
        .find_map(|line| line.strip_prefix(program.module)?.strip_prefix(' '))
        .and_then(|rest| rest.split_whitespace().next())
        .filter(|version| version.starts_with('v'));
    Ok(version.with_context(|| format!("{} is not in {}/go.mod", program.module, program.pins))?.to_owned())
}

/// The version, such as `1.31`, that is asked for in place of the newest of these pins: by `LICTOR_TEST_KUBERNETES` or
/// `LICTOR_TEST_CONSUL`. Its pins are in a folder beside them.
fn version_asked_for(pins: &str) -> Option<String> {
    env::var(format!("LICTOR_TEST_{}", pins.to_uppercase())).ok().filter(|version| !version.is_empty())
}

/// The Kubernetes programs are told their version by the linker, and `kubectl version` fails without.
/// To the others these variables are unknown, which the linker does not mind.
fn ldflags(version: &str) -> String {
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    packages.iter().fold("-s -w".to_owned(), |flags, package| format!("{flags} -X {package}.gitVersion={version}"))
}

/// The folder of all programs.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let lictor = if let Some(cache) = set("LICTOR_CACHE") {
        cache
    } else if let Some(cache) = set("XDG_CACHE_HOME") {
        cache.join("lictor")
    } else if let Some(home) = set("HOME") {
        home.join(".cache/lictor")
    } else {
        bail!("none of LICTOR_CACHE, XDG_CACHE_HOME and HOME is set: no place for programs");
    };
    Ok(std::path::absolute(lictor)?.join("programs"))
}

/// The first `vX.Y.` in a text.
fn major_minor(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.strip_prefix('v')?.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

/// FNV-1a: the standard library's hashes may change with its version, and a cache's keys must not.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(major_minor("Consul v1.22.7\nRevision x"), Some((1, 22)));
        assert_eq!(major_minor("Client Version: v1.37.2"), Some((1, 37)));
        assert_eq!(major_minor("v1.32.4-dispatcher"), Some((1, 32)));
        assert_eq!(major_minor("no version at all"), None);
    }

    #[test]
    fn every_program_is_pinned() -> Result<()> {
        for program in [ETCD, CONSUL, KUBE_APISERVER, KUBECTL, CONTAINERD, COREDNS] {
            let pins = Pins::read(&program)?;
            assert!(major_minor(&pins.version).is_some(), "{}", pins.version);
        }
        Ok(())
    }

    #[test]
    fn a_changed_pin_is_another_folder() -> Result<()> {
        let pins = Pins::read(&ETCD)?;
        let mut changed = Pins::read(&ETCD)?;
        changed.files[1].push('\n');
        assert_ne!(pins.hash(&ETCD), changed.hash(&ETCD));
        assert_eq!(pins.hash(&ETCD), Pins::read(&ETCD)?.hash(&ETCD));
        Ok(())
    }
}

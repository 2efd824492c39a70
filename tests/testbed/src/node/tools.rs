//! The programs that come from the system, and how they come there.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// (What is looked for, the Debian package that has it.)
const TOOLS: &[(&str, &str)] = &[
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("runc", "runc"),
];

/// Where CNI plugins are: Debian's place, and everybody else's.
const CNI: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const CNI_PLUGINS: [&str; 4] = ["ptp", "host-local", "portmap", "loopback"];
const CNI_PACKAGE: &str = "containernetworking-plugins";

/// Runs a program to its end and gives what it prints.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program of the system, also where an ordinary user's `PATH` does not lead.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|program| program.is_file())
}

/// The folder of the CNI plugins.
pub(super) fn cni_plugins() -> Option<&'static Path> {
    CNI.iter().map(Path::new).find(|folder| CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file()))
}

/// Installs what is missing, where that can be done. Fails with what is missing.
pub(super) fn ensure() -> Result<()> {
    if !missing().is_empty() {
        // One at a time; whoever waited looks again.
        let lock = File::create(env::temp_dir().join("lictor-testbed-packages.lock"))?;
        lock.lock()?;
        let missing = missing();
        if !missing.is_empty() {
            install(&missing).with_context(|| format!("these packages are missing: {}", missing.join(" ")))?;
        }
    }
    let missing = missing();
    ensure!(missing.is_empty(), "these packages are missing: {}", missing.join(" "));
    Ok(())
}

/// The Debian packages that are missing, each once.
fn missing() -> Vec<&'static str> {
    let tools = TOOLS.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package);
    let mut missing: Vec<_> = tools.chain(cni_plugins().is_none().then_some(CNI_PACKAGE)).collect();
    missing.dedup();
    missing
}

/// Installs Debian packages, without what they only recommend.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {} …", packages.join(" "));
    let install = [&["install", "--yes", "--quiet", "--no-install-recommends"], packages].concat();
    // The lists of packages may be missing, or older than what they name.
    if apt(&install).is_err() {
        update()?;
        apt(&install)?;
    }
    Ok(())
}

/// Has apt read anew which packages there are.
pub(super) fn update() -> Result<()> {
    apt(&["update", "--quiet"])
}

fn apt(args: &[&str]) -> Result<()> {
    let apt = find("apt-get").context("there is no apt-get here")?;
    run(Command::new(apt).args(args).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

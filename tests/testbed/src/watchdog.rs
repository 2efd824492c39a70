//! Nothing that a test starts outlives it: not after a panic, a Ctrl-C or a SIGKILL.
//!
//! A small shell script runs beside us and reads from a pipe that only we hold open. We tell it what
//! we start; when the pipe ends, we are gone, and it ends and removes what is left. A pipe is the one
//! thing that the kernel closes for us in every case.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};

/// Lines are `pid N` (a process group), `dir PATH`, `cgroup NAME` (in every hierarchy) and
/// `addr IP/BITS` (on the loopback interface); `gone LINE` takes one back. Addresses and processes are taken back because the same number may
/// belong to somebody else later; a folder's name is never used twice.
///
/// awk keeps them, since a test run tells thousands of lines, and a shell takes longer for each the more there are.
///
/// `kill -s NAME` is the one way to signal a process group that every `sh` understands.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
held=$(awk '
  /^gone / { line = substr($0, 6); if (line in held && --held[line] < 1) delete held[line]; next }
  { held[$0]++ }
  END { for (line in held) print line }')
each() {
  printf '%s\n' "$held" | while IFS= read -r line; do
    case $line in "$1 "*) printf '%s\n' "${line#* }" ;; esac
  done
}
alive() {
  for pid in $pids; do kill -s 0 -- "-$pid" && return 0; done
  return 1
}
pids=$(each pid)
for pid in $pids; do kill -s TERM -- "-$pid"; done
tries=0
while [ $tries -lt 30 ] && alive; do sleep 0.1; tries=$((tries + 1)); done
for pid in $pids; do kill -s KILL -- "-$pid"; done
tries=0
while [ $tries -lt 100 ] && alive; do sleep 0.1; tries=$((tries + 1)); done
for name in $(each cgroup); do
  for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    tries=0
    while [ $tries -lt 50 ] && [ -d "$root/$name" ]; do
      find "$root/$name" -depth -type d -exec rmdir '{}' ';'
      [ -d "$root/$name" ] && sleep 0.1
      tries=$((tries + 1))
    done
  done
done
each dir | while IFS= read -r dir; do rm -rf -- "$dir"; done
for addr in $(each addr); do ip addr del "$addr" dev lo; done
"#;

/// The one watchdog of this process.
#[derive(Debug)]
pub struct Watchdog {
    pipe: Mutex<ChildStdin>,
}

impl Watchdog {
    /// The watchdog of this process, started on the first call.
    pub fn global() -> Result<&'static Self> {
        static GLOBAL: OnceLock<Result<Watchdog>> = OnceLock::new();
        GLOBAL
            .get_or_init(Self::start)
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the watchdog did not start: {error:#}"))
    }

    fn start() -> Result<Self> {
        // A process group of its own keeps a terminal's Ctrl-C away from it. It holds none of our
        // output either: a harness that reads our output to its end must not wait for it.
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        let pipe = child.stdin.take().context("sh has no stdin")?;
        Ok(Self { pipe: Mutex::new(pipe) })
    }

    /// Ends this process group, should it still be there at our end.
    pub fn watch_group(&self, group: u32) -> Result<()> {
        self.tell(&format!("pid {group}"))
    }

    /// This process group has ended.
    pub fn forget_group(&self, group: u32) -> Result<()> {
        self.tell(&format!("gone pid {group}"))
    }

    /// Removes this folder and all in it at our end.
    pub fn watch_dir(&self, dir: &Path) -> Result<()> {
        self.tell(&format!("dir {}", dir.display()))
    }

    /// Removes this address from the loopback interface at our end.
    pub fn watch_address(&self, address: IpAddr) -> Result<()> {
        self.tell(&format!("addr {}", with_bits(address)))
    }

    /// This address has been removed.
    pub fn forget_address(&self, address: IpAddr) -> Result<()> {
        self.tell(&format!("gone addr {}", with_bits(address)))
    }

    /// Removes the cgroup of this name at our end, once its processes are gone.
    pub fn watch_cgroup(&self, name: &str) -> Result<()> {
        self.tell(&format!("cgroup {name}"))
    }

    /// This cgroup has been removed.
    pub fn forget_cgroup(&self, name: &str) -> Result<()> {
        self.tell(&format!("gone cgroup {name}"))
    }

    fn tell(&self, line: &str) -> Result<()> {
        ensure!(!line.contains('\n'), "a line break in {line:?}");
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        // One write for the whole line: half a line must never be read.
        pipe.write_all(format!("{line}\n").as_bytes()).context("telling the watchdog")
    }
}

/// An address in the notation of `ip addr`, as a network of one.
#[must_use]
pub fn with_bits(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{bits}")
}

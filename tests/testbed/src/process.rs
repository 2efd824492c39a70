//! One program that we run: started, watched, signalled, and gone when dropped.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;
use crate::watchdog::Watchdog;

/// A running program in a process group of its own. Dropping it kills it.
///
/// It does not hang on a tokio runtime, so it may be shared between tests that have one each.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs appended to the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let watchdog = Watchdog::global()?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let process = Self { name: name.to_owned(), pid: child.id(), child: Mutex::new(child), log: log.to_owned() };
        watchdog.watch_group(process.pid)?;
        Ok(process)
    }

    /// Its process id, which is its process group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal, such as `TERM` or `STOP`, to its process group.
    pub fn signal(&self, signal: &str) -> Result<()> {
        // A process that has been waited for must not be signalled: its number may be another's.
        ensure!(self.exited()?.is_none(), "{} has ended", self.name);
        // The shell's own `kill` is there where the program is not.
        let status = Command::new("sh")
            .args(["-c", r#"kill -s "$1" -- "-$2""#, "sh", signal])
            .arg(self.pid.to_string())
            .status()
            .context("running sh")?;
        ensure!(status.success(), "signal {signal} to {}: {status}", self.name);
        Ok(())
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Result<Option<ExitStatus>> {
        let status = self.child().try_wait()?;
        if status.is_some() {
            Watchdog::global()?.forget_group(self.pid)?;
        }
        Ok(status)
    }

    /// Fails with the end of its log if it has ended.
    pub fn ensure_running(&self) -> Result<()> {
        if let Some(status) = self.exited()? {
            anyhow::bail!("{} ended ({status}):\n{}", self.name, self.log_tail(30));
        }
        Ok(())
    }

    /// Kills it (`SIGKILL`) and waits for its end.
    pub fn kill(&self) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.signal("KILL")?;
        let status = self.child().wait()?;
        Watchdog::global()?.forget_group(self.pid)?;
        Ok(status)
    }

    /// Asks it to end (`SIGTERM`) and waits; fails, after killing it, if that takes longer than `timeout`.
    pub async fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.signal("TERM")?;
        let ended = wait::until(format!("the end of {}", self.name), timeout, || async { self.exited() }).await;
        if ended.is_err() {
            self.kill()?;
        }
        ended.with_context(|| self.log_tail(30))
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines of its output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The last `lines` lines of a file; nothing where there is none.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    let content = std::fs::read(file).unwrap_or_default();
    let content = String::from_utf8_lossy(&content);
    let all: Vec<&str> = content.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program and gives what it prints on stdout; fails with all that it says.
pub async fn run(command: &mut tokio::process::Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = output.await.with_context(|| format!("starting {}", command.as_std().get_program().display()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{:?}\n{}: {out}{err}", command.as_std().get_args(), output.status);
    Ok(out.into_owned())
}

//! `kubectl` on one cluster: what a user would type.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::watchdog::Watchdog;

/// The program, and the cluster that it talks to.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// Pairs a program with a kubeconfig file.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    /// A command that is yet to be started, for one that runs on.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    /// Runs it and gives what it prints; fails with what it complains about.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with_input(args, "").await
    }

    /// Runs it with `input` on its stdin, as for `apply -f -`.
    pub async fn run_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::from(self.command(args))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let _watched = Watched::new(child.id().context("kubectl has ended already")?)?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without having read its input; its own words say why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A process group that ends with us while it is watched.
struct Watched(u32);

impl Watched {
    fn new(group: u32) -> Result<Self> {
        Watchdog::global()?.watch_group(group)?;
        Ok(Self(group))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Ok(watchdog) = Watchdog::global() {
            let _ = watchdog.forget_group(self.0);
        }
    }
}

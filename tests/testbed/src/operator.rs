//! The operator under test, as a process: `lictor run`.

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::mode::Mode;
use crate::process::Process;
use crate::work_dir::WorkDir;
use crate::{init_tls, ports, wait};

/// An operator that is to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Flags, with their values where they have one.
    args: Vec<(String, Option<String>)>,
    envs: Vec<(String, String)>,
}

impl Launch {
    /// One for a cluster's name, between the Kubernetes of a kubeconfig and the Consul at an address.
    #[must_use]
    pub fn new(mode: Mode, cluster: &str, kubeconfig: &Path, consul: &str) -> Self {
        Self { args: Vec::new(), envs: Vec::new() }
            .flag("--registration", mode.as_str())
            .flag("--cluster-name", cluster)
            .flag("--kubeconfig", &kubeconfig.to_string_lossy())
            .flag("--consul-address", consul)
    }

    /// Adds a flag with a value, beside the same flag with others.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.args.push((name.to_owned(), Some(value.to_owned())));
        self
    }

    /// Gives a flag this value in place of all that it had.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.args.retain(|(known, _)| known != name);
        self.flag(name, value)
    }

    /// Adds a flag without a value.
    #[must_use]
    pub fn switch(mut self, name: &str) -> Self {
        self.args.push((name.to_owned(), None));
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it.
    pub fn start(&self, binary: &Path) -> Result<Operator> {
        let flags = self.args.iter().flat_map(|(name, value)| [Some(&**name), value.as_deref()]);
        let envs: Vec<(&str, &str)> = self.envs.iter().map(|(name, value)| (&**name, &**value)).collect();
        Operator::start(binary, &flags.flatten().collect::<Vec<_>>(), &envs)
    }
}

/// A running operator. It is killed when it is dropped.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    admin: String,
    work_dir: WorkDir,
}

impl Operator {
    /// Starts `BINARY run --admin-address 127.0.0.1:PORT ARGS`, with `envs` added to our own
    /// environment.
    pub fn start(binary: &Path, args: &[&str], envs: &[(&str, &str)]) -> Result<Self> {
        init_tls();
        let work_dir = WorkDir::create("operator")?;
        let admin = format!("127.0.0.1:{}", ports::free()?);
        let mut command = Command::new(binary);
        command.args(["run", "--admin-address", &admin]).args(args).envs(envs.iter().copied());
        let process = Process::spawn("lictor", command, &work_dir.join("lictor.log"))?;
        Ok(Self { process, admin, work_dir })
    }

    /// Waits until `/readyz` is 200. Fails with the end of the log on a time-out or an early end.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let ready = wait::until("/readyz of lictor", timeout, || async {
            if let Err(ended) = self.process.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            self.get("/readyz").await?;
            Ok(Some(Ok(())))
        });
        ready.await.with_context(|| self.process.log_tail(30))?
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        self.get("/metrics").await
    }

    /// GET on its admin server; anything but a 2xx is an error.
    pub async fn get(&self, path: &str) -> Result<String> {
        let response = reqwest::get(format!("http://{}{path}", self.admin)).await?;
        Ok(response.error_for_status()?.text().await?)
    }

    /// The address of its admin server, `127.0.0.1:PORT`.
    #[must_use]
    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    /// The process: its id, signals such as `STOP` and `CONT`, whether it has ended.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Asks it to end (`SIGTERM`) and waits.
    pub async fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        self.process.terminate(timeout).await
    }

    /// Kills it (`SIGKILL`).
    pub fn kill(&self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// All that it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.work_dir.join("lictor.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

//! A Consul agent: a server of its own, or a client of another one.
//!
//! What it holds is read and written through [`ConsulApi`].

mod api;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub use self::api::{Check, ConsulApi, Instance};
use crate::process::{Process, tail};
use crate::work_dir::{WorkDir, random_suffix};
use crate::{Programs, ports, wait};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);

/// The initial management token where [`ConsulOptions::acl`] is set. It opens one test's Consul.
pub const MANAGEMENT_TOKEN: &str = "11111111-2222-3333-4444-555555555555";

/// How an agent is to be.
#[derive(Debug, Clone)]
pub struct ConsulOptions {
    /// ACLs, with a default of deny, and [`MANAGEMENT_TOKEN`] as the token that may do everything.
    pub acl: bool,
    /// Keeps its data over [`Consul::start_again`]. Otherwise it is in memory (`-dev`), and empty then.
    pub persistent: bool,
    /// Serves the web UI at `/ui`.
    pub ui: bool,
    /// The domain of its DNS answers.
    pub domain: String,
    /// Its name in the catalog; a random one where it is None.
    pub node_name: Option<String>,
    /// The address that it binds and advertises. Any of `127.0.0.0/8` will do, so that several
    /// agents may have the same port.
    pub address: IpAddr,
    /// The port of its HTTP API; a free one where it is None.
    pub http_port: Option<u16>,
    /// The `address:port` of another agent's [`Consul::serf_addr`]: makes this one a client agent
    /// with its data on disk, whatever `persistent` says.
    pub join: Option<String>,
    /// The certificate, as PEM, of the authority that it trusts when it runs checks over TLS.
    pub trust: Option<String>,
    /// More configuration, in Consul's own language.
    pub extra_hcl: String,
}

impl Default for ConsulOptions {
    fn default() -> Self {
        Self {
            acl: false,
            persistent: false,
            ui: false,
            domain: "consul".to_owned(),
            node_name: None,
            address: Ipv4Addr::LOCALHOST.into(),
            http_port: None,
            join: None,
            trust: None,
            extra_hcl: String::new(),
        }
    }
}

/// An agent. It ends when it is dropped.
#[derive(Debug)]
pub struct Consul {
    running: Mutex<Option<Process>>,
    program: PathBuf,
    node_name: String,
    address: IpAddr,
    http_port: u16,
    dns_port: u16,
    serf_port: u16,
    dev: bool,
    token: Option<&'static str>,
    work_dir: WorkDir,
}

impl Consul {
    /// Starts an agent and waits until it has a leader and is in the catalog itself.
    pub async fn start(programs: &Programs, options: ConsulOptions) -> Result<Self> {
        ports::retry(|| Self::try_start(programs, &options)).await
    }

    async fn try_start(programs: &Programs, options: &ConsulOptions) -> Result<Self> {
        let consul = Self {
            running: Mutex::default(),
            program: programs.consul.clone(),
            node_name: match &options.node_name {
                Some(name) => name.clone(),
                None => format!("consul-{}", random_suffix()),
            },
            address: options.address,
            http_port: match options.http_port {
                Some(port) => port,
                None => ports::free()?,
            },
            dns_port: ports::free()?,
            serf_port: ports::free()?,
            dev: !options.persistent && options.join.is_none(),
            token: options.acl.then_some(MANAGEMENT_TOKEN),
            work_dir: WorkDir::create("consul")?,
        };
        let config = serde_json::to_vec_pretty(&consul.config(options)?)?;
        consul.work_dir.write("agent.json", config)?;
        consul.work_dir.write("extra.hcl", &options.extra_hcl)?;
        consul.start_again().await?;
        Ok(consul)
    }

    fn config(&self, options: &ConsulOptions) -> Result<Value> {
        let mut config = json!({
            "node_name": self.node_name,
            "bind_addr": self.address,
            "advertise_addr": self.address,
            "client_addr": self.address.to_string(),
            "domain": options.domain,
            "ports": {
                "http": self.http_port,
                "dns": self.dns_port,
                "grpc": -1,
                "grpc_tls": -1,
                "serf_lan": self.serf_port,
                "serf_wan": ports::free()?,
                "server": ports::free()?,
            },
            "log_level": "warn",
            "disable_update_check": true,
            "disable_remote_exec": true,
            "ui_config": { "enabled": options.ui },
            // All tests and their operator are one client address, and blocking queries are many.
            "limits": { "http_max_conns_per_client": 2_000 },
            // The timing of a server with a machine of its own: a leader in a second or two.
            "performance": { "raft_multiplier": 1 },
        });
        if let Some(certificate) = &options.trust {
            let file = self.work_dir.write("trust.pem", certificate)?;
            config["enable_agent_tls_for_checks"] = json!(true);
            config["tls"] = json!({ "internal_rpc": { "ca_file": file.display().to_string() } });
        }
        if !self.dev {
            config["data_dir"] = json!(self.work_dir.join("data").display().to_string());
        }
        if let Some(server) = &options.join {
            config["server"] = json!(false);
            config["retry_join"] = json!([server]);
            config["retry_interval"] = json!("1s");
        } else if !self.dev {
            config["server"] = json!(true);
            config["bootstrap_expect"] = json!(1);
        }
        if let Some(token) = self.token {
            config["acl"] = json!({
                "enabled": true,
                "default_policy": "deny",
                "enable_token_persistence": true,
                "tokens": { "initial_management": token, "agent": token },
            });
        }
        Ok(config)
    }

    /// Starts it after [`stop`](Self::stop) or [`kill`](Self::kill), on the very same ports. A
    /// persistent one has its data again; another one is empty.
    pub async fn start_again(&self) -> Result<()> {
        {
            let mut running = self.running();
            ensure!(running.is_none(), "{} is running already", self.node_name);
            let mut command = Command::new(&self.program);
            command.arg("agent");
            if self.dev {
                command.arg("-dev");
            }
            for file in ["agent.json", "extra.hcl"] {
                command.arg("-config-file").arg(self.work_dir.join(file));
            }
            *running = Some(Process::spawn("consul", command, &self.log_file())?);
        }
        let ready = self.wait_ready().await;
        if ready.is_err() {
            self.kill()?;
        }
        ready
    }

    async fn wait_ready(&self) -> Result<()> {
        let api = self.api();
        let own_health = format!("/v1/health/node/{}", self.node_name);
        let ready = wait::until("Consul", START, || async {
            if let Err(ended) = self.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            let leader = api.get("/v1/status/leader").await?;
            let checks = api.get(&own_health).await?;
            let alive = checks.as_array().is_some_and(|checks| {
                checks.iter().any(|check| check["CheckID"] == "serfHealth" && check["Status"] == "passing")
            });
            Ok((leader.as_str() != Some("") && alive).then_some(Ok(())))
        });
        ready.await.with_context(|| self.log_tail(20))?
    }

    /// Stops it in an orderly way (`SIGTERM`). It stays in the catalog, and ends with 1, since it has
    /// not left its cluster.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.take()?.terminate(STOP).await
    }

    /// Kills it (`SIGKILL`).
    pub fn kill(&self) -> Result<ExitStatus> {
        self.take()?.kill()
    }

    /// The base of its HTTP API, `http://ADDRESS:PORT`.
    #[must_use]
    pub fn http_addr(&self) -> String {
        format!("http://{}:{}", self.address, self.http_port)
    }

    /// The port of its DNS, for TCP and UDP.
    #[must_use]
    pub fn dns_port(&self) -> u16 {
        self.dns_port
    }

    /// Where other agents may join it.
    #[must_use]
    pub fn serf_addr(&self) -> String {
        format!("{}:{}", self.address, self.serf_port)
    }

    /// Its own node in the catalog.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The token that may do everything, where it has ACLs.
    #[must_use]
    pub fn management_token(&self) -> Option<&str> {
        self.token
    }

    /// Its API, with the token that may do everything.
    #[must_use]
    pub fn api(&self) -> ConsulApi {
        self.api_with_token(self.token)
    }

    /// Its API with another token, or none.
    #[must_use]
    pub fn api_with_token(&self, token: Option<&str>) -> ConsulApi {
        ConsulApi::new(&self.http_addr(), token)
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Process::pid)
    }

    /// Sends it a signal: `STOP` and `CONT` make a Consul that hangs.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let running = self.running();
        running.as_ref().context("Consul is not running")?.signal(signal)
    }

    /// The last lines of its log, from before any restart too.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_file(), lines)
    }

    fn log_file(&self) -> PathBuf {
        self.work_dir.join("consul.log")
    }

    fn ensure_running(&self) -> Result<()> {
        match &*self.running() {
            Some(process) => process.ensure_running(),
            None => bail!("Consul has been stopped"),
        }
    }

    fn take(&self) -> Result<Process> {
        self.running().take().context("Consul is not running")
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! One program at work against a Consul of its own, and what both cost.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, ControlPlane, Launch, Mode, Operator, Programs, wait};
use serde_json::{Value, json};

use crate::load::{Endpoint, Load, name};

/// The time that a start, or anything else that touches all instances, may take.
const ALL: Duration = Duration::from_secs(300);

/// How often Consul is asked how far the program is.
const LOOK: Duration = Duration::from_millis(20);

/// The clock ticks of `/proc` in a second, which Linux has fixed for programs.
const TICKS: f64 = 100.0;

/// Lets Consul count the requests that it answers.
const COUNTS: &str = r#"telemetry { prometheus_retention_time = "24h" disable_hostname = true }"#;

/// What the bench itself asks of Consul, as Consul's metrics name it.
const OWN_READS: [&str; 5] =
    ["v1_operator_usage", "v1_agent_self", "v1_agent_metrics", "v1_health_checks_", "v1_catalog_service_"];

/// A program that is measured.
#[derive(Clone)]
pub(crate) struct Tested {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
}

impl Tested {
    pub(crate) const BARE: &str = "bare";

    pub(crate) fn new(name: &'static str, path: PathBuf) -> Result<Self> {
        ensure!(path.is_file(), "{} is not there: `make bench` builds it", path.display());
        Ok(Self { name, path })
    }

    pub(crate) fn is_bare(&self) -> bool {
        self.name == Self::BARE
    }
}

pub(crate) struct Trial {
    pub(crate) consul: Consul,
    pub(crate) operator: Operator,
    pub(crate) tested: Tested,
    launch: Launch,
    begun: Instant,
    /// What Consul had spent when the program was started.
    pub(crate) consul_before: ConsulSpent,
    instances: usize,
}

/// What the program has spent so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// Turns of its loop that took longer than 50 ms.
    pub(crate) long_turns: f64,
}

/// What Consul has spent so far.
#[derive(Clone, Copy)]
pub(crate) struct ConsulSpent {
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// Entries of the Raft log.
    pub(crate) raft: f64,
    /// Requests that write.
    pub(crate) writes: f64,
    /// Requests that read, without those of the bench.
    pub(crate) reads: f64,
}

impl Trial {
    /// Starts the program against an empty Consul; with `limited`, with a token that may not write the first service.
    pub(crate) async fn start(
        programs: &Programs,
        plane: &ControlPlane,
        load: &Load,
        tested: &Tested,
        mode: Mode,
        limited: bool,
    ) -> Result<Self> {
        let options = ConsulOptions { acl: limited, extra_hcl: COUNTS.into(), ..ConsulOptions::default() };
        let consul = Consul::start(programs, options).await?;
        let mut launch = Launch::new(mode, "bench", plane.kubeconfig(), &consul.http_addr());
        if limited {
            launch = launch.env("CONSUL_HTTP_TOKEN", &limited_token(&consul.api()).await?);
        }
        let consul_before = consul_spent(&consul).await?;
        let begun = Instant::now();
        let operator = launch.start(&tested.path)?;
        let instances = load.size.instances;
        Ok(Self { consul, operator, tested: tested.clone(), launch, begun, consul_before, instances })
    }

    /// Kills the program and starts it again; the time until it is ready.
    pub(crate) async fn restart(&mut self) -> Result<Duration> {
        self.operator.kill()?;
        let begun = Instant::now();
        self.operator = self.launch.start(&self.tested.path)?;
        self.operator.wait_ready(ALL).await?;
        Ok(begun.elapsed())
    }

    /// The instances that there are in the end.
    pub(crate) fn instances(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "far less than 2^52")]
        let instances = self.instances as f64;
        instances
    }

    /// Waits until Consul holds all instances; the time since the start.
    pub(crate) async fn all_there(&self) -> Result<Duration> {
        self.wait_for_count("all instances in Consul", |count| count >= self.instances).await?;
        Ok(self.begun.elapsed())
    }

    /// Waits until Consul holds just so many instances.
    pub(crate) async fn wait_for_exactly(&self, instances: usize) -> Result<()> {
        self.wait_for_count(&format!("{instances} instances in Consul"), |count| count == instances).await
    }

    async fn wait_for_count(&self, what: &str, enough: impl Fn(usize) -> bool) -> Result<()> {
        let api = self.consul.api();
        let waited = wait::until_every(LOOK, what, ALL, || async {
            if let Err(ended) = self.operator.process().ensure_running() {
                return Ok(Some(Err(ended)));
            }
            let usage = api.get("/v1/operator/usage").await?;
            let found = usage.pointer("/Usage/dc1/ServiceInstances").and_then(Value::as_u64).unwrap_or_default();
            // Consul counts itself.
            Ok(enough(usize::try_from(found)?.saturating_sub(1)).then_some(Ok(())))
        });
        waited.await.with_context(|| self.operator.process().log_tail(30))?
    }

    /// Waits until Consul shows no instance of a service whose address begins with this byte.
    pub(crate) async fn wait_replaced(&self, service: usize, byte: u8) -> Result<()> {
        let api = self.consul.api();
        // ServiceAddress matches "^BYTE[.]"
        let filter = format!("ServiceAddress%20matches%20%22%5E{byte}%5B.%5D%22");
        let path = format!("/v1/catalog/service/{}?filter={filter}", name(service));
        wait::until_every(LOOK, &path, ALL, || async {
            Ok(api.get(&path).await?.as_array().is_some_and(Vec::is_empty).then_some(()))
        })
        .await
    }

    /// What the program has spent so far.
    pub(crate) async fn spent(&self) -> Result<Spent> {
        Ok(Spent { cpu: self.cpu()?, long_turns: self.long_turns().await? })
    }

    /// What Consul has spent so far.
    pub(crate) async fn consul_spent(&self) -> Result<ConsulSpent> {
        consul_spent(&self.consul).await
    }

    /// CPU seconds of the program so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_of(self.operator.process().pid())
    }

    async fn long_turns(&self) -> Result<f64> {
        if self.tested.is_bare() {
            return Ok(0.0);
        }
        let metrics = self.operator.metrics().await?;
        let count = |name: &str| {
            let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            // A program of before has no such metric.
            found.unwrap_or_default()
        };
        Ok(count("lictor_loop_turn_seconds_count") - count("lictor_loop_turn_seconds_bucket{le=\"0.05\"}"))
    }

    /// Resident memory of the operator in megabytes: now, and at most so far.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.operator.process().pid()))?;
        let megabytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
            let kilobytes: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
            anyhow::Ok(kilobytes / 1024.0)
        };
        Ok((megabytes("VmRSS")?, megabytes("VmHWM")?))
    }

    /// Waits until an endpoint has this readiness; Consul says so by itself.
    pub(crate) async fn wait_for(&self, load: &Load, endpoint: Endpoint, ready: bool) -> Result<()> {
        let (api, deadline) = (self.consul.api(), Instant::now() + Duration::from_secs(60));
        let (node, address) = load.place(endpoint);
        let (address, wanted) = (format!(":{address}:"), if ready { "passing" } else { "critical" });
        // Of a service with many instances, the checks of one node are fewer.
        let path = match load.size.slices() {
            1 => format!("/v1/health/checks/{}", name(endpoint.service())),
            _ => format!("/v1/health/node/bench-{node}"),
        };
        let mut index = 0;
        loop {
            let (checks, next) = api.get_with_index(&format!("{path}?index={index}&wait=20s")).await?;
            let its_own = |check: &&Value| check["ServiceID"].as_str().is_some_and(|id| id.contains(&address));
            if checks.as_array().into_iter().flatten().find(its_own).is_some_and(|check| check["Status"] == wanted) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{address} is not {wanted} in {path}");
            index = next;
        }
    }
}

async fn consul_spent(consul: &Consul) -> Result<ConsulSpent> {
    let cpu = cpu_of(consul.pid().context("Consul has ended")?)?;
    let agent = consul.api().get("/v1/agent/self").await?;
    let raft = agent.pointer("/Stats/raft/last_log_index").and_then(Value::as_str).context("no Raft index")?;
    let metrics = format!("{}/v1/agent/metrics?format=prometheus", consul.http_addr());
    let token = consul.management_token().unwrap_or_default();
    let request = reqwest::Client::new().get(metrics).header("X-Consul-Token", token);
    let metrics = request.send().await?.error_for_status()?.text().await?;
    let (writes, reads) = requests(&metrics)?;
    Ok(ConsulSpent { cpu, raft: raft.parse()?, writes, reads })
}

/// The requests that Consul's metrics have counted: writes, and reads but those of the bench.
fn requests(metrics: &str) -> Result<(f64, f64)> {
    let (mut writes, mut reads) = (0.0, 0.0);
    for line in metrics.lines().filter_map(|line| line.strip_prefix("consul_api_http_count{")) {
        let (labels, count) = line.rsplit_once(' ').context("a metric without a value")?;
        let count: f64 = count.parse()?;
        if !labels.contains("method=\"GET\"") {
            writes += count;
        } else if !OWN_READS.iter().any(|path| labels.contains(&format!("path=\"{path}\""))) {
            reads += count;
        }
    }
    Ok((writes, reads))
}

/// User and system time of a process in seconds.
fn cpu_of(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; user and system time are the 14th and 15th fields of all.
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}

/// A token that may do everything but write the first service.
async fn limited_token(api: &ConsulApi) -> Result<String> {
    let rules = format!(
        r#"node_prefix "" {{ policy = "write" }} service_prefix "" {{ policy = "write" }} service "{}" {{ policy = "read" }} agent_prefix "" {{ policy = "read" }} operator = "read""#,
        name(0)
    );
    api.put("/v1/acl/policy", &json!({ "Name": "limited", "Rules": rules })).await?;
    let token = api.put("/v1/acl/token", &json!({ "Policies": [{ "Name": "limited" }] })).await?;
    Ok(token["SecretID"].as_str().context("a token")?.to_owned())
}

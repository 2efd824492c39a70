//! What has been spent so far: by the program, by Consul, and by everything else on the machine.

use std::fs;
use std::process;

use anyhow::{Context, Result};
use lictor_testbed::{Consul, Operator};
use serde_json::Value;

use crate::measures::Figures;

/// The clock ticks of `/proc` in a second, which Linux has fixed for programs.
const TICKS: f64 = 100.0;

/// Lets Consul count the requests that it answers.
pub(crate) const COUNTS: &str = r#"telemetry { prometheus_retention_time = "24h" disable_hostname = true }"#;

/// What the bench itself asks of Consul, as Consul's metrics name it.
const OWN_READS: [&str; 5] =
    ["v1_operator_usage", "v1_agent_self", "v1_agent_metrics", "v1_health_checks_", "v1_catalog_service_"];

/// All since the start of each. Times are CPU seconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    program: f64,
    consul: f64,
    kubernetes: f64,
    bench: f64,
    machine: f64,
    /// Entries of Consul's Raft log.
    raft: f64,
    /// Requests that write to Consul.
    writes: f64,
    /// Requests that read from Consul, without those of the bench.
    reads: f64,
    /// Turns of the program's loop that took longer than 50 ms.
    long_turns: f64,
}

impl Spent {
    /// Looks at a Consul, and at a program beside it if there is one already.
    pub(crate) async fn so_far(consul: &Consul, program: Option<&Operator>) -> Result<Self> {
        let consul_pid = consul.pid().context("Consul has ended")?;
        let program_pid = program.map(|program| program.process().pid());
        let agent = consul.api().get("/v1/agent/self").await?;
        let raft = agent.pointer("/Stats/raft/last_log_index").and_then(Value::as_str).context("no Raft index")?;
        let (writes, reads) = requests(consul).await?;
        // Of all that the bench has started, the rest is Kubernetes.
        let is_other = |pid: &u32| *pid != consul_pid && Some(*pid) != program_pid;
        Ok(Self {
            program: program_pid.map_or(Ok(0.0), cpu_of)?,
            consul: cpu_of(consul_pid)?,
            // One that has ended meanwhile was none of those.
            kubernetes: children()?.into_iter().filter(is_other).filter_map(|pid| cpu_of(pid).ok()).sum(),
            bench: cpu_of(process::id())?,
            machine: cpu_of_machine()?,
            raft: raft.parse()?,
            writes,
            reads,
            long_turns: 0.0,
        })
    }

    /// Adds what the program's own metrics say.
    pub(crate) async fn with_metrics_of(self, program: &Operator) -> Result<Self> {
        let metrics = program.metrics().await?;
        let count = |name: &str| {
            let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            // A program of before has no such metric.
            found.unwrap_or_default()
        };
        let all = count("lictor_loop_turn_seconds_count");
        Ok(Self { long_turns: all - count("lictor_loop_turn_seconds_bucket{le=\"0.05\"}"), ..self })
    }

    /// Leaves out reads of the bench that look like those of a program.
    pub(crate) fn without_reads(self, reads: u32) -> Self {
        Self { reads: self.reads - f64::from(reads), ..self }
    }

    /// As it is for a program that has just been started.
    pub(crate) fn without_program(self) -> Self {
        Self { program: 0.0, long_turns: 0.0, ..self }
    }

    /// What was spent since `before`.
    pub(crate) fn since(self, before: Self) -> Figures {
        let [program, consul, kubernetes, bench] = [
            self.program - before.program,
            self.consul - before.consul,
            self.kubernetes - before.kubernetes,
            self.bench - before.bench,
        ];
        let others = self.machine - before.machine - program - consul - kubernetes - bench;
        vec![
            ("CPU, s", program),
            ("CPU of Consul, s", consul),
            ("CPU of Kubernetes, s", kubernetes),
            ("CPU of the bench, s", bench),
            // Processes that end between two looks, and rounding.
            ("CPU of other work, s", others.max(0.0)),
            ("Raft entries", self.raft - before.raft),
            ("writes to Consul", self.writes - before.writes),
            ("reads of Consul", self.reads - before.reads),
            ("turns over 50 ms", self.long_turns - before.long_turns),
        ]
    }
}

/// User and system time of a process in seconds.
pub(crate) fn cpu_of(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = after_name(&stat)?;
    // User and system time are the 14th and 15th fields of all.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}

/// The fields of a `stat` behind the name, which is in parentheses and may hold spaces.
fn after_name(stat: &str) -> Result<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    Ok(rest.split_whitespace().collect())
}

/// The processes that the bench has started.
fn children() -> Result<Vec<u32>> {
    let own = process::id().to_string();
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        after_name(&stat).is_ok_and(|fields| fields.get(1) == Some(&&*own))
    };
    Ok(pids.filter(is_child).collect())
}

/// The time that the machine's processors were busy for.
fn cpu_of_machine() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu")).context("no line of all processors")?;
    let ticks: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq; what comes after them is in these or of other machines.
    let busy = ticks.iter().take(7).enumerate().filter(|(place, _)| ![3, 4].contains(place));
    Ok(busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS)
}

/// The requests that Consul has counted: writes, and reads but those of the bench.
async fn requests(consul: &Consul) -> Result<(f64, f64)> {
    let metrics = format!("{}/v1/agent/metrics?format=prometheus", consul.http_addr());
    let token = consul.management_token().unwrap_or_default();
    let request = reqwest::Client::new().get(metrics).header("X-Consul-Token", token);
    let metrics = request.send().await?.error_for_status()?.text().await?;
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

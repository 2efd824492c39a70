//! One program at work against a Consul of its own, and what both cost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, ControlPlane, Launch, Mode, Operator, Programs, wait};
use serde_json::{Value, json};

use crate::load::{Load, name};
use crate::measures::Measure;

/// How long a start may take.
const START: Duration = Duration::from_secs(300);

/// How often Consul is asked how far a start is.
const LOOK: Duration = Duration::from_millis(20);

/// The clock ticks of `/proc` in a second, which Linux has fixed for programs.
const TICKS: f64 = 100.0;

pub(crate) struct Trial {
    pub(crate) consul: Consul,
    pub(crate) operator: Operator,
    begun: Instant,
    instances: usize,
}

/// CPU seconds of the operator and of Consul.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) lictor: f64,
    pub(crate) consul: f64,
}

impl Trial {
    /// Starts the program against an empty Consul.
    pub(crate) async fn start(
        programs: &Programs,
        plane: &ControlPlane,
        load: &Load,
        lictor: &Path,
        measure: Measure,
    ) -> Result<Self> {
        let acl = measure == Measure::Refused;
        let options = ConsulOptions {
            acl,
            extra_hcl: "limits { http_max_conns_per_client = 2000 }".into(),
            ..ConsulOptions::default()
        };
        let consul = Consul::start(programs, options).await?;
        let token = if acl { Some(limited_token(&consul.api()).await?) } else { None };
        let mut launch = Launch::new(Mode::Catalog, "bench", plane.kubeconfig(), &consul.http_addr());
        if let Some(token) = &token {
            launch = launch.env("CONSUL_HTTP_TOKEN", token);
        }
        let begun = Instant::now();
        let operator = launch.start(lictor)?;
        Ok(Self { consul, operator, begun, instances: load.size.instances })
    }

    /// Waits until Consul holds all instances; the time since the start.
    pub(crate) async fn all_there(&self) -> Result<Duration> {
        let api = self.consul.api();
        wait::until_every(LOOK, "all instances in Consul", START, || async {
            let usage = api.get("/v1/operator/usage").await?;
            // Consul counts itself.
            let found = usage.pointer("/Usage/dc1/ServiceInstances").and_then(Value::as_u64).unwrap_or_default();
            Ok((found > self.instances as u64).then_some(()))
        })
        .await
        .with_context(|| self.operator.log())?;
        Ok(self.begun.elapsed())
    }

    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let consul = self.consul.pid().context("Consul has ended")?;
        Ok(Cpu { lictor: cpu_of(self.operator.process().pid())?, consul: cpu_of(consul)? })
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

    /// Waits until the first instance of a service has this state; Consul says so by itself.
    pub(crate) async fn wait_for(&self, service: usize, ready: bool) -> Result<()> {
        let (api, deadline) = (self.consul.api(), Instant::now() + Duration::from_secs(60));
        let mut index = 0;
        loop {
            let path = format!("/v1/health/checks/{}?index={index}&wait=20s", name(service));
            let (checks, next) = api.get_with_index(&path).await?;
            let critical = checks.as_array().into_iter().flatten().filter(|check| check["Status"] != "passing").count();
            if (critical == 0) == ready {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "{} is not seen: {checks}", name(service));
            index = next;
        }
    }
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

//! One program at work against a Consul of its own, and what both cost.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, ControlPlane, Launch, Mode, Operator, Programs, wait};
use serde_json::{Value, json};

use crate::load::{Endpoint, Load, name};
use crate::spent::{COUNTS, Spent, cpu_of};

/// The time that a start, or anything else that touches all instances, may take.
const ALL: Duration = Duration::from_secs(300);

/// How often Consul is asked how far the program is.
const LOOK: Duration = Duration::from_millis(20);

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
    consul: Consul,
    /// One for all questions: a client of its own for each would cost more than the question.
    api: ConsulApi,
    pub(crate) operator: Operator,
    pub(crate) tested: Tested,
    launch: Launch,
    begun: Instant,
    /// What had been spent when the program was started.
    pub(crate) before: Spent,
    instances: usize,
    /// Questions of the bench that Consul counts among those of the program.
    asked: AtomicU32,
    /// Consul as it was when the program was started.
    empty: Bytes,
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
        let empty = snapshot(&consul).await?;
        let before = Spent::so_far(&consul, None).await?;
        let begun = Instant::now();
        let operator = launch.start(&tested.path)?;
        let instances = load.size.instances;
        Ok(Self {
            api: consul.api(),
            consul,
            operator,
            tested: tested.clone(),
            launch,
            begun,
            before,
            instances,
            asked: AtomicU32::new(0),
            empty,
        })
    }

    /// Kills the program and starts it again; the time until it is ready.
    pub(crate) async fn restart(&mut self) -> Result<Duration> {
        self.operator.kill()?;
        let begun = Instant::now();
        self.operator = self.launch.start(&self.tested.path)?;
        self.operator.wait_ready(ALL).await?;
        Ok(begun.elapsed())
    }

    /// The way to its Consul.
    pub(crate) fn api(&self) -> &ConsulApi {
        &self.api
    }

    /// Consul as it was when nothing was in it.
    pub(crate) fn empty(&self) -> &Bytes {
        &self.empty
    }

    /// Consul as it is.
    pub(crate) async fn snapshot(&self) -> Result<Bytes> {
        snapshot(&self.consul).await
    }

    /// Makes Consul what it was.
    pub(crate) async fn restore(&self, snapshot: &Bytes) -> Result<()> {
        let request = reqwest::Client::new().put(snapshot_url(&self.consul)).body(snapshot.clone());
        request.send().await?.error_for_status()?;
        Ok(())
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
        let api = &self.api;
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
        let api = &self.api;
        // ServiceAddress matches "^BYTE[.]"
        let filter = format!("ServiceAddress%20matches%20%22%5E{byte}%5B.%5D%22");
        let path = format!("/v1/catalog/service/{}?filter={filter}", name(service));
        wait::until_every(LOOK, &path, ALL, || async {
            Ok(api.get(&path).await?.as_array().is_some_and(Vec::is_empty).then_some(()))
        })
        .await
    }

    /// What has been spent so far.
    pub(crate) async fn spent(&self) -> Result<Spent> {
        let spent = Spent::so_far(&self.consul, Some(&self.operator)).await?;
        let spent = spent.without_reads(self.asked.load(Ordering::Relaxed));
        if self.tested.is_bare() { Ok(spent) } else { spent.with_metrics_of(&self.operator).await }
    }

    /// CPU seconds of the program so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_of(self.operator.process().pid())
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
        let (api, deadline) = (&self.api, Instant::now() + Duration::from_secs(60));
        let (node, address) = load.place(endpoint);
        let (address, wanted) = (format!(":{address}:"), if ready { "passing" } else { "critical" });
        // Of a service with many instances, the checks of one node are fewer.
        let path = match load.size.slices() {
            1 => format!("/v1/health/checks/{}", name(endpoint.service())),
            _ => format!("/v1/health/node/bench-{node}"),
        };
        let mut index = 0;
        loop {
            self.asked.fetch_add(u32::from(path.contains("/node/")), Ordering::Relaxed);
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

async fn snapshot(consul: &Consul) -> Result<Bytes> {
    let request = reqwest::Client::new().get(snapshot_url(consul));
    let request = request.header("X-Consul-Token", consul.management_token().unwrap_or_default());
    Ok(request.send().await?.error_for_status()?.bytes().await?)
}

fn snapshot_url(consul: &Consul) -> String {
    format!("{}/v1/snapshot", consul.http_addr())
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

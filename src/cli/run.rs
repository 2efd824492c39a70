//! `lictor run`: builds the rooms and joins them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use crate::admin::Admin;
use crate::cluster::kubernetes::ApiServer;
use crate::cluster::watch::{self, Anew, WatchHealth};
use crate::cluster::world::World;
use crate::cluster::{connect, kubernetes};
use crate::consul::Registry;
use crate::consul::agent::Agent;
use crate::consul::catalog::Catalog;
use crate::consul::transport::{Http, Transport};
use crate::engine::metrics::Metrics;
use crate::engine::{Config, Engine};
use crate::model::names::{ClusterName, Identity, Str};
use crate::settings::{LogFormat, Registration, RunArgs, Settings};

/// How many events of the watches may wait for the engine.
const EVENTS: usize = 16_384;

/// How long between tries to reach Kubernetes at the start.
const RETRY: Duration = Duration::from_secs(2);

/// Runs the operator until it is told to stop.
pub(super) fn run(args: RunArgs) -> anyhow::Result<()> {
    let settings = Settings::new(args)?;
    start_logging(&settings)?;
    // One provider of cryptography for both servers; only a second call could fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let done = runtime.block_on(operate(settings));
    // What is still open then are connections and watches, which nobody waits for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log_level).context("--log-level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn operate(settings: Settings) -> anyhow::Result<()> {
    let mut metrics_registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::new(&mut metrics_registry);
    let admin = Admin::new(metrics_registry);
    let listener = TcpListener::bind(settings.admin_address)
        .await
        .with_context(|| format!("--admin-address {}", settings.admin_address))?;
    tokio::spawn(admin.clone().serve(listener));

    let transport: Arc<dyn Transport> = Arc::new(Http::new(&settings.consul).context("reaching Consul")?);
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let mut stop = std::pin::pin!(stop_signal()?);
    let identity = tokio::select! {
        identity = identity(&client, settings.cluster_name, &admin) => identity?,
        () = &mut stop => return Ok(()),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = %identity.cluster,
        uid = %identity.uid,
        registration = ?settings.registration,
        consul = %settings.consul.address,
        "lictor runs"
    );

    let watches_nodes = settings.registration == Registration::Catalog;
    let registry: Arc<dyn Registry> = match settings.registration {
        Registration::Agent => Arc::new(Agent::new(identity.clone(), transport)),
        Registration::Catalog => Arc::new(Catalog::new(identity.clone(), transport)),
    };
    let rules = Arc::new(settings.rules);
    let (sink, events) = mpsc::channel(EVENTS);
    let (ask, questions) = mpsc::channel(16);
    let (health, anew) = (WatchHealth::default(), Anew::default());
    let watches = watch::watch(
        client.clone(),
        settings.scopes.clone(),
        watches_nodes,
        Arc::clone(&rules),
        sink,
        health.clone(),
        anew.clone(),
    );
    tokio::spawn(watches);
    admin.runs(ask, health);

    let world = World::new(settings.scopes.clone(), watches_nodes);
    let kubernetes = ApiServer::new(client, settings.scopes, watches_nodes, rules, anew);
    let config = Config {
        identity,
        sweep_interval: settings.sweep_interval,
        concurrency: settings.concurrency,
        grace: settings.grace_period,
    };
    let engine = Engine::new(config, world, registry, Arc::new(kubernetes), fastrand::Rng::new(), metrics);
    engine.run(events, questions, stop).await;
    tracing::info!("lictor stops; registrations stay");
    Ok(())
}

/// Who we are, as soon as Kubernetes says so.
async fn identity(client: &Client, name: Option<ClusterName>, admin: &Admin) -> anyhow::Result<Identity> {
    let mut told = String::new();
    let uid = loop {
        match kubernetes::cluster_uid(client).await {
            Ok(uid) => break uid,
            Err(error) => {
                let why = error.to_string();
                if why != told {
                    tracing::warn!("waiting for Kubernetes: {why}");
                    admin.waits_for(format!("waiting for Kubernetes: {why}"));
                    told = why;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let cluster = match name {
        Some(name) => name,
        None => ClusterName::new(&uid)
            .context("the uid of kube-system cannot stand for the cluster: give --cluster-name")?,
    };
    Ok(Identity { cluster, uid: Str::clone(&uid) })
}

/// Ready when the process is told to stop.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}

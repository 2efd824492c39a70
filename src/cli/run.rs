//! `lictor run`: builds the rooms and joins them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{PreviousAway, identify, prepare, registry, stop_signal, write_lease};
use crate::admin::{self, Admin};
use crate::cluster::connect;
use crate::cluster::definition::{self, Definition};
use crate::cluster::kubernetes::{ApiServer, UidError};
use crate::cluster::lease::{Candidate, ElectionFailure, LeaseSettings};
use crate::cluster::watch::{self, Orders, WatchHealth};
use crate::consul::transport::{BadSettings, ConsulSettings, Http, Transport};
use crate::engine::metrics::Metrics;
use crate::engine::{Config, Engine, TURN};
use crate::model::ids::Identity;
use crate::ports::Leads;
use crate::settings::{Election, RunArgs, Settings};
use crate::state::world::World;

/// The most events of the watches that may wait for the engine.
const EVENTS: usize = 16_384;

/// The time between two questions whether the CRD is there.
const DEFINITION: Duration = Duration::from_secs(60);

/// The time between two attempts, at the start, at what is not there yet.
const RETRY: Duration = Duration::from_secs(2);

/// Runs the operator until it is told to stop.
pub(super) fn run(args: RunArgs) -> anyhow::Result<()> {
    let settings = Settings::new(args)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let logins = settings.consul.logins.clone();
    let done = runtime.block_on(async {
        let done = Box::pin(operate(settings)).await;
        // After the last write, and after the next replica may begin.
        logins.end().await;
        done
    });
    // What is still open then are connections and watches, which nobody waits for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

async fn operate(settings: Settings) -> anyhow::Result<()> {
    let policy = settings.policy.read()?;
    let mut metrics_registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::new(&mut metrics_registry);
    let policies = settings.policy.clone().follow(Arc::clone(&policy));
    let warnings = exposures(&settings);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let admin = Admin::new(metrics_registry).following(policies.failure, settings.consul.logins.trouble());
    let admin = admin.warning(warnings);
    let listener = listener("--admin-address", settings.admin_address).await?;
    let for_metrics = match settings.metrics_address {
        Some(address) => Some(self::listener("--metrics-address", address).await?),
        None => None,
    };
    tokio::spawn(admin.clone().serve(listener, for_metrics));

    let mut stop = std::pin::pin!(stop_signal()?);
    let http = tokio::select! {
        http = consul(&settings, &admin) => http?,
        () = &mut stop => return Ok(()),
    };
    // One that stands by is logged in as well: it acts at once when its time comes, and says beforehand if it could not.
    http.begin_login();
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let identity = tokio::select! {
        identity = identity(&client, &settings, &admin) => identity?,
        () = &mut stop => return Ok(()),
    };
    // Not before: the Lease is only for who can act.
    let election = settings.election.as_ref().map(|election| Elected::begin(&client, election));
    let write_lease = election.as_ref().map(|elected| write_lease(&settings, elected.leads.clone(), elected.margin));
    admin.tells_of(http.credential_health());
    let http = Arc::new(match &write_lease {
        None => http,
        Some(write_lease) => http.with_write_lease(write_lease.clone()),
    });
    tokio::spawn(Arc::clone(&http).follow_files());
    let transport: Arc<dyn Transport> = http;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = %identity.cluster,
        uid = %identity.uid,
        registration = ?settings.registration,
        consul = %settings.consul.addresses.join(","),
        "Lictor started"
    );

    tokio::spawn(mind_the_definition(client.clone(), admin.clone()));
    let registry = registry(&settings, &identity, transport, write_lease.as_ref(), PreviousAway::GoesOn)?;
    let rules = Arc::new(settings.rules);
    let (sink, events) = mpsc::channel(EVENTS);
    let (ask, questions) = mpsc::channel(16);
    let (health, orders) = (WatchHealth::default(), Orders::default());
    let watches = watch::watch(client.clone(), Arc::clone(&rules), sink, health.clone(), orders.clone());
    tokio::spawn(watches);
    let failure = election.as_ref().map(|elected| elected.failure.clone()).unwrap_or_default();
    admin.runs(ask, health, failure);

    let world = World::new(settings.scopes.clone(), settings.nodes).under(policy);
    let kubernetes =
        ApiServer::new(client, settings.scopes, settings.nodes, rules, orders).under(policies.policy.clone());
    let config = Config {
        identity,
        resync_interval: settings.resync_interval,
        hold_mass_unready: settings.hold_mass_unready,
        status_rate: settings.status_rate,
        grace: settings.grace_period,
        turn: TURN,
    };
    let mut engine = Engine::new(config, world, registry, Arc::new(kubernetes), fastrand::Rng::new(), metrics);
    engine = engine.under(policies.policy);
    if let Some(elected) = &election {
        engine = engine.led_by(elected.leads.clone());
    }
    engine.run(events, questions, stop).await;
    if let Some(elected) = election {
        elected.end().await;
    }
    tracing::info!("stopping; registrations stay in Consul");
    Ok(())
}

async fn listener(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    admin::listen(address).await.with_context(|| format!("{flag} {address}"))
}

/// Takes part in an election while the operator runs.
struct Elected {
    leads: Leads,
    failure: ElectionFailure,
    margin: Duration,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Elected {
    fn begin(client: &Client, election: &Election) -> Self {
        let Election { lease, namespace, duration, identity } = election.clone();
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let settings = LeaseSettings { namespace, name: lease, identity, duration };
        let margin = settings.margin();
        let (candidate, leads) = Candidate::new(client.clone(), settings);
        let failure = candidate.failure();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(candidate.run(async {
            // Whoever could stop it is gone: likewise.
            let _ = stopped.await;
        }));
        Self { leads, failure, margin, stop, task }
    }

    /// Lets the next replica begin, now that nothing is under way any more.
    async fn end(self) {
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the leader election ended unexpectedly");
        }
    }
}

/// Gives what an attempt gives, as soon as one succeeds. Until then the log and `/readyz` say what is waited for. An error that
/// does not pass by itself ends it.
async fn wait_for<T>(
    admin: &Admin,
    whom: &str,
    passes: impl Fn(&anyhow::Error) -> bool,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut told = String::new();
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                let why = format!("waiting for {whom}: {error}");
                if why != told {
                    tracing::warn!("{why}");
                    admin.waits_for(why.clone());
                    told = why;
                }
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

/// The way to Consul, as soon as all files for it are there.
async fn consul(settings: &Settings, admin: &Admin) -> anyhow::Result<Http> {
    let passes = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(BadSettings::NotYet(_)));
    let http = wait_for(admin, "a Consul credential file", passes, async || Ok(Http::new(&settings.consul)?));
    http.await.context("reaching Consul")
}

/// Says what others on the way to Consul may read or change, also on the way to where instances were before.
fn exposures(settings: &Settings) -> Vec<&'static str> {
    let agents = ConsulSettings { addresses: settings.previous_agents.clone(), ..settings.consul.clone() };
    let previous = settings.previous.iter().map(|previous| &previous.consul);
    let ways = [&settings.consul, &agents].into_iter().chain(previous);
    let all: BTreeSet<&'static str> = ways.flat_map(ConsulSettings::exposures).collect();
    all.into_iter().collect()
}

/// Reads the identity of this cluster, as soon as Kubernetes gives it. What the flags say will not change by itself.
async fn identity(client: &Client, settings: &Settings, admin: &Admin) -> anyhow::Result<Identity> {
    wait_for(admin, "Kubernetes", anyhow::Error::is::<UidError>, async || identify(client, settings).await).await
}

/// Says so for as long as the cluster's `CustomResourceDefinition` is older than what this version reads and writes.
async fn mind_the_definition(client: Client, admin: Admin) {
    let mut told = None;
    loop {
        let found = definition::look(&client).await;
        let advice = found.advice();
        if !matches!(found, Definition::Unknown(_)) && advice != told {
            let words = advice.as_deref().unwrap_or("the CustomResourceDefinition fits this version of Lictor");
            tracing::warn!("{words}");
            admin.remarks(advice.clone());
            told = advice;
        }
        tokio::time::sleep(DEFINITION).await;
    }
}

//! `/healthz` (the loop turns), `/readyz` (synced, and Consul answers) and `/metrics`.
//!
//! Requests ask the engine how things stand, all of them together once a second at most.

mod serve;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

pub use self::serve::listen;
use crate::cluster::lease::ElectionFailure;
use crate::cluster::watch::WatchHealth;
use crate::consul::transport::{Credential, CredentialHealth};
use crate::engine::metrics::Metrics;
use crate::engine::{Question, Snapshot};
use crate::state::event::Kind;

/// The warning in `/readyz` while Lictor cannot read which names others have.
const OTHERS_UNKNOWN: &str = "Lictor cannot read the names that others have in Consul; new resources wait where the policy has \
                              foreignNames: false; the log says why";

/// The longest time that the engine may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time for which an answer of the engine serves all requests.
const FRESH: Duration = Duration::from_secs(1);

/// Whom the endpoints ask.
#[derive(Clone)]
pub struct Admin {
    metrics: Arc<Registry>,
    stage: Arc<Mutex<Stage>>,
    /// Says what is not right, but in nobody's way.
    remark: Arc<Mutex<Option<String>>>,
    /// Says what of the settings is not right, in nobody's way either.
    warnings: Arc<[&'static str]>,
    /// Says why the policy file as it is cannot be used.
    policy_failure: watch::Receiver<Option<String>>,
    /// Says how it stands with what Consul is reached with.
    credentials: Arc<OnceLock<CredentialHealth>>,
    /// Says why there is no login to Consul, or why it cannot be renewed.
    login_trouble: watch::Receiver<Option<String>>,
}

/// Says how far the operator has come.
#[derive(Clone)]
enum Stage {
    /// Names what it waits for before the engine can run.
    Starting(String),
    /// The engine runs.
    Running(Engine, WatchHealth, ElectionFailure),
}

/// The way to the engine.
#[derive(Clone)]
struct Engine {
    questions: mpsc::Sender<Question>,
    last: LastAnswer,
}

impl Admin {
    /// Endpoints over these counters, for an operator that is only starting.
    #[must_use]
    pub fn new(metrics: Registry) -> Self {
        let stage = Stage::Starting("starting".to_owned());
        Self {
            metrics: Arc::new(metrics),
            stage: Arc::new(Mutex::new(stage)),
            remark: Arc::default(),
            warnings: Arc::default(),
            policy_failure: watch::channel(None).1,
            credentials: Arc::default(),
            login_trouble: watch::channel(None).1,
        }
    }

    /// Has the endpoints also tell why the policy file as it is cannot be used, and why there is no login to Consul, or
    /// why it cannot be renewed.
    #[must_use]
    pub fn following(
        self,
        policy_failure: watch::Receiver<Option<String>>,
        login_trouble: watch::Receiver<Option<String>>,
    ) -> Self {
        Self { policy_failure, login_trouble, ..self }
    }

    /// Has the endpoints also say these sentences beside the `ok` of `/readyz`.
    #[must_use]
    pub fn warning(mut self, warnings: Vec<&'static str>) -> Self {
        self.warnings = warnings.into();
        self
    }

    /// Notes what is not right although all works, to be said beside the `ok` of `/readyz`; none if nothing is.
    pub fn remarks(&self, what: Option<String>) {
        *self.remark.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Has the endpoints also tell of the certificates and the token for Consul.
    pub fn tells_of(&self, credentials: CredentialHealth) {
        // There is one client for Consul, and so nothing to set twice.
        let _ = self.credentials.set(credentials);
    }

    /// Notes what the start waits for.
    pub fn waits_for(&self, what: String) {
        self.set(Stage::Starting(what));
    }

    /// From here on the engine answers.
    pub fn runs(&self, questions: mpsc::Sender<Question>, watches: WatchHealth, election: ElectionFailure) {
        self.set(Stage::Running(Engine { questions, last: LastAnswer::default() }, watches, election));
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves until the process ends: the metrics at a listener of their own, where there is one.
    pub async fn serve(self, listener: TcpListener, for_metrics: Option<TcpListener>) {
        let probes = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
        let of_metrics = Router::new().route("/metrics", get(metrics));
        match for_metrics {
            None => serve::serve(listener, probes.merge(of_metrics).with_state(self)).await,
            Some(for_metrics) => {
                let of_metrics = serve::serve(for_metrics, of_metrics.with_state(self.clone()));
                tokio::join!(serve::serve(listener, probes.with_state(self)), of_metrics);
            }
        }
    }
}

/// The engine's last answer, and when it came. Whoever holds the lock asks, and all who wait for it share the answer.
type LastAnswer = Arc<tokio::sync::Mutex<Option<(Instant, Snapshot)>>>;

/// Gives the state of the engine, at most a second old. An error if the engine does not answer in time: that shows that its loop does
/// not turn. These endpoints are open to everybody who can reach them, so the engine is asked once a second at most.
async fn ask(engine: &Engine) -> Result<Snapshot, &'static str> {
    const STUCK: &str = "the engine does not answer";
    let answer = async {
        let mut last = engine.last.lock().await;
        if let Some((at, snapshot)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            let age = snapshot.resync_age.map(|age| age + at.elapsed());
            return Some(Snapshot { resync_age: age, ..snapshot.clone() });
        }
        let (reply, answer) = oneshot::channel();
        engine.questions.send(Question::Snapshot(reply)).await.ok()?;
        let snapshot = answer.await.ok()?;
        *last = Some((Instant::now(), snapshot.clone()));
        Some(snapshot)
    };
    timeout(PATIENCE, answer).await.ok().flatten().ok_or(STUCK)
}

async fn healthz(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.stage() {
        Stage::Starting(_) => (StatusCode::OK, "ok\n".to_owned()),
        Stage::Running(engine, ..) => match ask(&engine).await {
            Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
    }
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let (mut but, mut standby) = (Vec::new(), false);
    let not_ready: Vec<String> = match admin.stage() {
        Stage::Starting(what) => vec![what],
        Stage::Running(engine, watches, election) => {
            let engine = match ask(&engine).await {
                Ok(snapshot) => {
                    standby = !snapshot.leads;
                    but.extend(snapshot.mass_unready_message);
                    but.extend(snapshot.others_unknown.then(|| OTHERS_UNKNOWN.to_owned()));
                    snapshot.not_ready
                }
                Err(why) => Some(why.to_owned()),
            };
            // Pods and Nodes are watched where single resources ask for them: only those wait then. Where all do,
            // the engine says so.
            let (some, all): (Vec<_>, Vec<_>) =
                watches.failing().into_iter().partition(|(kind, _)| matches!(kind, Kind::Pod | Kind::Node));
            but.extend(some.into_iter().map(|(_, why)| why));
            but.extend(watches.silent());
            // One that leads has the Lease, whatever it heard last.
            let election = election.get().filter(|_| standby);
            all.into_iter().map(|(_, why)| why).chain(engine).chain(election).collect()
        }
    };
    but.extend(admin.warnings.iter().map(|warning| (*warning).to_owned()));
    but.extend(admin.policy_failure.borrow().clone());
    but.extend(admin.credentials.get().into_iter().flat_map(|credentials| credentials.remarks(Timestamp::now())));
    but.extend(admin.login_trouble.borrow().clone());
    but.extend(admin.remark.lock().unwrap_or_else(PoisonError::into_inner).clone());
    if not_ready.is_empty() {
        let ok = if standby { "ok, standing by" } else { "ok" }.to_owned();
        let lines = std::iter::once(ok).chain(but.into_iter().map(|why| format!("but {why}")));
        (StatusCode::OK, lines.collect::<Vec<_>>().join("\n") + "\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, not_ready.join("\n") + "\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let (snapshot, ages) = match admin.stage() {
        Stage::Starting(_) => (None, BTreeMap::new()),
        Stage::Running(engine, watches, _) => (ask(&engine).await.ok(), watches.ages()),
    };
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &admin.metrics)
        .and_then(|()| encode_registry(&mut text, &policy_gauge(admin.policy_failure.borrow().is_some())))
        .and_then(|()| encode_registry(&mut text, &watch_gauges(&ages)))
        .and_then(|()| match admin.credentials.get() {
            Some(credentials) => encode_registry(&mut text, &credential_gauges(credentials)),
            None => Ok(()),
        })
        .and_then(|()| snapshot.map_or(Ok(()), |snapshot| encode_registry(&mut text, &gauges(&snapshot))))
        .and_then(|()| encode_eof(&mut text));
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match encoded {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

/// The text of `/metrics` with each metric in it once: for the page that lists them.
///
/// # Errors
///
/// Fails if a metric cannot be encoded.
pub fn example() -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    Metrics::new(&mut registry).touch();
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    let snapshot = Snapshot {
        resync_age: Some(Duration::ZERO),
        resources: [(("True", "Ready".to_owned()), 1)].into(),
        ..Snapshot::default()
    };
    encode_registry(&mut text, &gauges(&snapshot))?;
    encode_registry(&mut text, &policy_gauge(false))?;
    encode_registry(&mut text, &watch_gauges(&[(Kind::Pod, Duration::ZERO)].into()))?;
    encode_registry(&mut text, &credential_gauges(&CredentialHealth::default()))?;
    Ok(text)
}

/// Gives how it stands with the certificates and the token for Consul.
fn credential_gauges(health: &CredentialHealth) -> Registry {
    let mut registry = Registry::default();
    let now = Timestamp::now();
    let labels = |credential: Credential| vec![("credential".to_owned(), credential.as_str().to_owned())];
    let remaining = Family::<Vec<(String, String)>, Gauge<f64, AtomicU64>>::default();
    let ends_soon = Family::<Vec<(String, String)>, Gauge>::default();
    let stale = Family::<Vec<(String, String)>, Gauge>::default();
    for credential in Credential::ALL {
        let validity = health.validity(credential);
        let left = validity.as_ref().map_or(f64::INFINITY, |validity| validity.remaining(now).as_secs_f64());
        remaining.get_or_create(&labels(credential)).set(left);
        let is_soon = validity.is_some_and(|validity| validity.ends_soon(now));
        ends_soon.get_or_create(&labels(credential)).set(is_soon.into());
        stale.get_or_create(&labels(credential)).set(health.is_stale(credential).into());
    }
    registry.register(
        "lictor_credential_remaining_seconds",
        "Time until the CA certificates, the client certificate or the token for Consul expire; negative after that, infinite \
         if it never expires or is not used",
        remaining,
    );
    registry.register(
        "lictor_credential_ends_soon",
        "1 if the certificate or the token expires in less than a week, and in less than a fifth of its lifetime",
        ends_soon,
    );
    registry.register(
        "lictor_credential_stale",
        "1 if the file does not work, so that its previous content stays in use",
        stale,
    );
    registry
}

/// Gives the time since each kind that is watched was last heard of.
fn watch_gauges(ages: &BTreeMap<Kind, Duration>) -> Registry {
    let mut registry = Registry::default();
    let by_kind = Family::<Vec<(String, String)>, Gauge<f64, AtomicU64>>::default();
    for (kind, age) in ages {
        by_kind.get_or_create(&vec![("kind".to_owned(), kind.to_string())]).set(age.as_secs_f64());
    }
    registry.register(
        "lictor_watch_age_seconds",
        "Time since the last event of the watches of a kind; with several watches, the longest such time",
        by_kind,
    );
    registry
}

/// Gives whether the last good policy is in force in place of the file as it is.
fn policy_gauge(is_stale: bool) -> Registry {
    let mut registry = Registry::default();
    let gauge = <Gauge>::default();
    gauge.set(is_stale.into());
    registry.register(
        "lictor_policy_stale",
        "1 if the policy file has an error, so that the last good policy stays in force",
        gauge,
    );
    registry
}

/// Gives what the engine holds at this moment, as gauges.
fn gauges(snapshot: &Snapshot) -> Registry {
    let mut registry = Registry::default();
    let mut gauge = |name: &str, help: &str, value: usize| {
        let gauge = <Gauge>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("lictor_ready", "1 if all watches are synced and Consul answers", snapshot.not_ready.is_none().into());
    gauge("lictor_leader", "1 if this replica is the leader", snapshot.leads.into());
    gauge(
        "lictor_consul_unavailable",
        "1 if this replica is not ready, and an outage of Consul is the only cause",
        snapshot.outage.is_some().into(),
    );
    gauge(
        "lictor_consul_refuses",
        "1 if Consul refuses the requests of Lictor: it does not know the token, or the token lacks a permission",
        snapshot.is_refused().into(),
    );
    gauge("lictor_dirty_resources", "Number of resources that wait to be reconciled", snapshot.dirty);
    gauge("lictor_outstanding_writes", "Number of writes to Consul that wait or are under way", snapshot.outstanding);
    gauge("lictor_refused_instances", "Number of instances that Consul refuses", snapshot.refused);
    gauge(
        "lictor_refused_widely",
        "1 if Consul refuses instances of more than one resource in five, in two namespaces or in the only one",
        snapshot.refused_widely.into(),
    );
    gauge(
        "lictor_unread_nodes",
        "Number of Consul nodes that Lictor cannot read, although it can read others",
        snapshot.unread_nodes,
    );
    gauge(
        "lictor_instances_on_other_agents",
        "Number of instances of this cluster that another Consul agent holds",
        snapshot.elsewhere,
    );
    gauge(
        "lictor_previous_instances",
        "Number of instances of this cluster that are left at the previous place (--previous-...)",
        snapshot.left_behind,
    );
    gauge(
        "lictor_held_resources",
        "Number of resources with removals that await confirmation by Kubernetes",
        snapshot.held,
    );
    gauge(
        "lictor_mass_unready_instances",
        "Number of instances that stopped being ready at the same time as most others, while their endpoints stay",
        snapshot.mass_unready,
    );
    let by_cause = Family::<Vec<(String, String)>, Gauge>::default();
    for (cause, count) in [("name", snapshot.frozen_by_name), ("spec", snapshot.frozen_by_spec)] {
        let label = vec![("cause".to_owned(), cause.to_owned())];
        by_cause.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let help = "Number of resources whose instances do not follow their endpoints. Cause name: the name belongs to another namespace. \
                Cause spec: the spec is refused, and no earlier good spec is known";
    registry.register("lictor_frozen_resources", help, by_cause);
    let by_ready = Family::<Vec<(String, String)>, Gauge>::default();
    for ((ready, reason), count) in &snapshot.resources {
        let labels = vec![("ready".to_owned(), (*ready).to_owned()), ("reason".to_owned(), reason.clone())];
        by_ready.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    let help = "Number of ConsulService resources, by the status and the reason of their condition Ready";
    registry.register("lictor_resources", help, by_ready);
    let by_state = Family::<Vec<(String, String)>, Gauge>::default();
    let states = [("passing", snapshot.passing), ("warning", snapshot.warning), ("critical", snapshot.critical)];
    for (state, count) in states {
        let label = vec![("state".to_owned(), state.to_owned())];
        by_state.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register(
        "lictor_instances",
        "Number of instances of this cluster in Consul, by the worst of their checks",
        by_state,
    );
    if let Some(age) = snapshot.resync_age {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(age.as_secs_f64());
        registry.register(
            "lictor_resync_age_seconds",
            "Time since the start of the last resync that read every Consul node of this cluster, or since Consul last said that nothing has changed",
            gauge,
        );
    }
    registry
}

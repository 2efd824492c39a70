//! A cluster behind a proxy of our own that knows what an operator listens to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, StreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lictor_testbed::WorkDir;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The longest request that an operator has for an apiserver.
const LONGEST: usize = 4 << 20;

/// The proxy. It ends with this value.
pub(crate) struct Listening {
    /// A kubeconfig that leads through it.
    pub(crate) kubeconfig: PathBuf,
    log: Arc<Mutex<Vec<Look>>>,
    writes: Arc<Mutex<Vec<String>>>,
    rule: Arc<Mutex<Option<Rule>>>,
    _serving: JoinSet<()>,
    _work_dir: WorkDir,
}

/// A look at a kind: a list, or a watch.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// When it came.
    pub(crate) at: Instant,
    /// The kind's plural, such as `pods`.
    pub(crate) kind: String,
    pub(crate) is_watch: bool,
    /// Whether the answer is still under way.
    open: bool,
}

/// What becomes of a request on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The apiserver gets it after so long.
    Late(Duration),
    /// The body of its answer comes after so long.
    LateBody(Duration),
    /// The apiserver does not get it: too many requests, again after so many seconds, as its own priority and fairness
    /// answers.
    TooMany(u32),
}

/// Decides what becomes of a look, or of another request, for which there is none; nothing unusual if it has no answer.
pub(crate) type Rule = Arc<dyn Fn(Option<&Look>) -> Option<Way> + Send + Sync>;

#[derive(Clone)]
struct Shared {
    upstream: Client,
    log: Arc<Mutex<Vec<Look>>>,
    writes: Arc<Mutex<Vec<String>>>,
    rule: Arc<Mutex<Option<Rule>>>,
}

impl Listening {
    /// One in front of the cluster of a kubeconfig.
    pub(crate) async fn to(kubeconfig: &Path) -> Result<Self> {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
        let shared = Shared {
            upstream: Client::try_from(config)?,
            log: Arc::default(),
            writes: Arc::default(),
            rule: Arc::default(),
        };
        let (log, writes, rule) = (Arc::clone(&shared.log), Arc::clone(&shared.writes), Arc::clone(&shared.rule));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let server = format!("http://{}", listener.local_addr()?);
        let mut serving = JoinSet::new();
        let router = Router::new().fallback(forward).with_state(shared);
        serving.spawn(async move {
            // It serves until it is dropped.
            let _ = axum::serve(listener, router).await;
        });
        let work_dir = WorkDir::create("listening")?;
        // Who comes through here is who we are: the kubeconfig needs no user.
        let through = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "proxy", "cluster": { "server": server } }],
            "users": [{ "name": "proxy", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "proxy" } }],
            "current-context": "proxy",
        });
        let kubeconfig = work_dir.write("kubeconfig", through.to_string())?;
        Ok(Self { kubeconfig, log, writes, rule, _serving: serving, _work_dir: work_dir })
    }

    /// From now on this becomes of requests.
    pub(crate) fn rule(&self, rule: impl Fn(Option<&Look>) -> Option<Way> + Send + Sync + 'static) {
        *locked(&self.rule) = Some(Arc::new(rule));
    }

    /// Every look so far.
    pub(crate) fn looks(&self) -> Vec<Look> {
        locked(&self.log).clone()
    }

    /// The paths of all writes so far, in the order in which they came.
    pub(crate) fn writes(&self) -> Vec<String> {
        locked(&self.writes).clone()
    }

    /// The kinds that are watched at this moment.
    pub(crate) fn watched(&self) -> BTreeSet<String> {
        let log = locked(&self.log);
        log.iter().filter(|look| look.is_watch && look.open).map(|look| look.kind.clone()).collect()
    }

    /// How often a kind has been listed or watched so far.
    pub(crate) fn looks_at(&self, kind: &str) -> usize {
        locked(&self.log).iter().filter(|look| look.kind == kind).count()
    }
}

async fn forward(State(shared): State<Shared>, request: Request) -> Response {
    match answer(&shared, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn answer(shared: &Shared, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    let body = to_bytes(body, LONGEST).await?;
    let path = head.uri.path_and_query().context("a request without a path")?.clone();
    let look = (head.method == Method::GET).then(|| Look {
        at: Instant::now(),
        kind: path.path().rsplit('/').next().unwrap_or_default().to_owned(),
        is_watch: path.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true")),
        open: true,
    });
    if look.is_none() {
        locked(&shared.writes).push(path.path().to_owned());
    }
    let rule = locked(&shared.rule).clone();
    let way = rule.and_then(|rule| rule(look.as_ref()));
    let open = look.map(|look| Open::note(&shared.log, look));
    match way {
        Some(Way::Late(time)) => tokio::time::sleep(time).await,
        Some(Way::TooMany(seconds)) => {
            let again = [(header::RETRY_AFTER, seconds.to_string())];
            let words = "Too many requests, please try again later.\n";
            return Ok((StatusCode::TOO_MANY_REQUESTS, again, words).into_response());
        }
        Some(Way::LateBody(_)) | None => {}
    }
    head.headers.remove("host");
    head.headers.remove("connection");
    head.uri = path.into();
    let response = shared.upstream.send(http::Request::from_parts(head, body.into())).await?;
    let (mut head, body) = response.into_parts();
    for of_one_connection in ["connection", "content-length", "transfer-encoding"] {
        head.headers.remove(of_one_connection);
    }
    // What was noted ends with the body, however that one ends.
    let stream = Body::new(body).into_data_stream().inspect(move |_| _ = &open);
    let late = async move {
        if let Some(Way::LateBody(time)) = way {
            tokio::time::sleep(time).await;
        }
    };
    let stream = late.map(|()| stream).flatten_stream();
    Ok(Response::from_parts(head, Body::from_stream(stream)))
}

/// A look whose answer is under way.
struct Open {
    log: Arc<Mutex<Vec<Look>>>,
    number: usize,
}

impl Open {
    fn note(log: &Arc<Mutex<Vec<Look>>>, look: Look) -> Self {
        let mut looks = locked(log);
        looks.push(look);
        Self { log: Arc::clone(log), number: looks.len() - 1 }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        locked(&self.log)[self.number].open = false;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

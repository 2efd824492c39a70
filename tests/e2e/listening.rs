//! A cluster behind a proxy of our own that knows what an operator listens to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
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
    _serving: JoinSet<()>,
    _work_dir: WorkDir,
}

/// A look at a kind: a list, or a watch.
#[derive(Clone, Debug)]
struct Look {
    /// The kind's plural, such as `pods`.
    kind: String,
    is_watch: bool,
    /// Whether the answer is still under way.
    open: bool,
}

#[derive(Clone)]
struct Shared {
    upstream: Client,
    log: Arc<Mutex<Vec<Look>>>,
}

impl Listening {
    /// One in front of the cluster of a kubeconfig.
    pub(crate) async fn to(kubeconfig: &Path) -> Result<Self> {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
        let log = Arc::new(Mutex::default());
        let shared = Shared { upstream: Client::try_from(config)?, log: Arc::clone(&log) };
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
        Ok(Self { kubeconfig, log, _serving: serving, _work_dir: work_dir })
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
        kind: path.path().rsplit('/').next().unwrap_or_default().to_owned(),
        is_watch: path.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true")),
        open: true,
    });
    let open = look.map(|look| Open::note(&shared.log, look));
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

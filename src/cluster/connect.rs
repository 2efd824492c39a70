//! The way to the cluster: where it is and who we are to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use kube::client::{ClientBuilder, DynBody};
use kube::config::{AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedCluster};
use kube::core::Status;
use kube::{Client, Config};
use secrecy::ExposeSecret;
use serde_json::json;
use tower::BoxError;
use tower::util::ThenLayer;

use super::list::chain;
use super::proxy::{self, BadProxy};
use crate::certificates::{Credentials, Fault, Source};

/// A connection on which nothing comes for so long is dead. More than the time for which the apiserver
/// keeps a silent watch open.
const READ_TIMEOUT: Duration = Duration::from_secs(75);

/// The longest body of a failure that is read.
const LONGEST_FAILURE: usize = 1 << 20;

/// Says why there is no cluster to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No kubeconfig that can be used, and not in a pod either.
    #[error("no Kubernetes cluster is configured: {0}")]
    Config(String),
    /// The client cannot be made of what the configuration says.
    #[error("the configuration of the Kubernetes cluster cannot be used: {0}")]
    Client(String),
    /// A certificate or a key that cannot be used.
    #[error(transparent)]
    Certificate(#[from] Fault),
    /// A proxy that cannot be used.
    #[error(transparent)]
    Proxy(#[from] BadProxy),
}

/// The configuration by `kubectl`'s rules: `kubeconfig` if given, else `$KUBECONFIG`, else
/// `~/.kube/config`, else the pod's own; `context` picks another than the current context.
pub async fn config(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, ConnectError> {
    let options = KubeConfigOptions { context: context.map(ToOwned::to_owned), ..KubeConfigOptions::default() };
    let config_error = |error: &dyn std::error::Error| ConnectError::Config(chain(error));
    let mut config = match (kubeconfig, context) {
        (Some(path), _) => {
            let read = Kubeconfig::read_from(path).map_err(|e| config_error(&e))?;
            Config::from_custom_kubeconfig(read, &options).await.map_err(|e| config_error(&e))?
        }
        (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|e| config_error(&e))?,
        (None, None) => Config::infer().await.map_err(|e| config_error(&e))?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Whoever asks knows best whether and when to ask again, and says meanwhile what is wrong.
    config.default_retry = false;
    Ok(config)
}

/// A client for the cluster that [`config`] finds.
pub async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, ConnectError> {
    let (mut credentials, own_proxy) = read(kubeconfig, context)?;
    let mut config = config(kubeconfig, context).await?;
    let mut proxy = None;
    if let Some(path) = &config.root_cert_file {
        // A pod's own: nothing but its token shows who it is. The cluster's own network leads to the server.
        credentials = Credentials::new(file(path).as_ref(), None)?;
    } else {
        proxy = proxy::find(own_proxy.as_deref(), &config.cluster_url, |name| std::env::var(name).ok())?;
    }
    config.proxy_url = proxy.as_ref().map(|proxy| proxy.url.clone());
    let proxy: Option<Arc<str>> = proxy.map(|proxy| proxy.to_string().into());
    if let Some(proxy) = &proxy {
        tracing::info!(%proxy, "requests to Kubernetes go through a proxy");
    }
    if let Some(fault) = credentials.fault_at(Timestamp::now()) {
        tracing::warn!("{fault}");
    }
    let credentials = Arc::new(credentials);
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))?;
    let layer = ThenLayer::new(move |answer| explained(answer, Arc::clone(&credentials), proxy.clone()));
    Ok(builder.with_layer(&layer).build())
}

/// Reads what a kubeconfig has of certificates and keys, which is judged before it is used, and its proxy. What cannot be
/// read of it is left to kube, which says so.
fn read(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<(Credentials, Option<String>), Fault> {
    let (read, place) = match kubeconfig {
        Some(path) => (Kubeconfig::read_from(path), format!("the kubeconfig {}", path.display())),
        None => (Kubeconfig::read(), "the kubeconfig".to_owned()),
    };
    let Ok(read) = read else { return Ok(Default::default()) };
    let (_, cluster) = named(&read, context);
    let proxy = cluster.and_then(|named| named.cluster.as_ref()?.proxy_url.clone());
    Ok((credentials_of(&read, context, &place)?, proxy))
}

/// The context of a kubeconfig, and its cluster.
fn named<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> (Option<&'a Context>, Option<&'a NamedCluster>) {
    let name = context.or(kubeconfig.current_context.as_deref());
    let context = kubeconfig.contexts.iter().find(|named| Some(&*named.name) == name);
    let context = context.and_then(|named| named.context.as_ref());
    let cluster = context.and_then(|of| kubeconfig.clusters.iter().find(|named| named.name == of.cluster));
    (context, cluster)
}

fn credentials_of(kubeconfig: &Kubeconfig, context: Option<&str>, place: &str) -> Result<Credentials, Fault> {
    let (Some(context), cluster) = named(kubeconfig, context) else { return Ok(Credentials::default()) };
    let user = kubeconfig.auth_infos.iter().find(|named| Some(&named.name) == context.user.as_ref());

    let mut authorities = None;
    if let Some((name, cluster)) = cluster.and_then(|named| Some((&named.name, named.cluster.as_ref()?))) {
        let Cluster { certificate_authority_data: data, certificate_authority: path, .. } = cluster;
        if cluster.insecure_skip_tls_verify != Some(true) {
            let what = format!("certificate-authority-data of the cluster {name:?} in {place}");
            authorities = source(data.as_deref(), path.as_deref(), what)?;
        }
    }
    let mut identity = None;
    if let Some((name, user)) = user.and_then(|named| Some((&named.name, named.auth_info.as_ref()?))) {
        let AuthInfo { client_certificate_data, client_certificate, client_key_data, client_key, .. } = user;
        let what = |data: &str| format!("{data} of the user {name:?} in {place}");
        let certificate = what("client-certificate-data");
        let certificate = source(client_certificate_data.as_deref(), client_certificate.as_deref(), certificate)?;
        let data = client_key_data.as_ref().map(ExposeSecret::expose_secret);
        let key = source(data, client_key.as_deref(), what("client-key-data"))?;
        identity = certificate.zip(key);
    }
    Credentials::new(authorities.as_ref(), identity.as_ref().map(|(certificate, key)| (certificate, key)))
}

/// Reads data from the kubeconfig itself, which `what` names, or else from a file.
fn source(data: Option<&str>, path: Option<&str>, what: String) -> Result<Option<Source>, Fault> {
    let Some(data) = data else { return Ok(path.and_then(|path| file(Path::new(path)))) };
    match STANDARD.decode(data) {
        Ok(text) => Ok(Some(Source { from: what, text })),
        Err(_) => Err(Fault::NotBase64(what)),
    }
}

/// A file that can be read.
fn file(path: &Path) -> Option<Source> {
    let text = std::fs::read(path).ok()?;
    Some(Source { from: path.display().to_string(), text })
}

/// Says more of a failure than kube does, where that is a matter of certificates or of time, or of a proxy.
async fn explained(
    answer: Result<Response<Box<DynBody>>, BoxError>,
    credentials: Arc<Credentials>,
    proxy: Option<Arc<str>>,
) -> Result<Response<Box<DynBody>>, BoxError> {
    let now = Timestamp::now();
    let response = answer.map_err(|error| match (credentials.explain(&*error, now), proxy) {
        (Some(why), _) => format!("{}; {why}", chain(&*error)).into(),
        (None, Some(proxy)) => format!("{}; requests go through the proxy {proxy}", chain(&*error)).into(),
        (None, None) => error,
    })?;
    // The apiserver takes any certificate for a connection, and refuses a bad one by each answer.
    match credentials.fault_at(now) {
        Some(fault) if response.status() == StatusCode::UNAUTHORIZED => {
            let status = Status::failure(&format!("Unauthorized: {fault}"), "Unauthorized").with_code(401);
            Err(kube::Error::Api(status.boxed()).into())
        }
        _ => keep_retry_after(response).await,
    }
}

/// Puts the header `Retry-After` into the answer's status, which is all that kube keeps of a failure. The apiserver's
/// priority and fairness answers with that header and a line of text.
async fn keep_retry_after(response: Response<Box<DynBody>>) -> Result<Response<Box<DynBody>>, BoxError> {
    let code = response.status();
    let Some(seconds) = retry_after(response.headers()).filter(|_| code.is_client_error() || code.is_server_error())
    else {
        return Ok(response);
    };
    let (mut incoming, mut body) = (response.into_body(), Vec::new());
    while let Some(frame) = incoming.frame().await {
        body.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
        if body.len() > LONGEST_FAILURE {
            break;
        }
    }
    Err(kube::Error::Api(limited(code.as_u16(), seconds, &body)?.boxed()).into())
}

fn retry_after(headers: &HeaderMap) -> Option<u32> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()
}

/// The status of a failure, with what its header said.
fn limited(code: u16, seconds: u32, body: &[u8]) -> serde_json::Result<Status> {
    let mut status = match serde_json::from_slice(body) {
        Ok(status) => status,
        Err(_) => Status::failure(String::from_utf8_lossy(body).trim(), "").with_code(code),
    };
    let mut details = status.details.take().map_or_else(|| Ok(json!({})), serde_json::to_value)?;
    details["retryAfterSeconds"] = json!(seconds);
    status.details = serde_json::from_value(details)?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_goes_into_the_status() {
        let text = limited(429, 7, b"Too many requests, please try again later.\n").unwrap();
        assert_eq!((text.code, &*text.message), (429, "Too many requests, please try again later."));
        assert_eq!(text.details.unwrap().retry_after_seconds, 7);
        let body = json!({ "kind": "Status", "status": "Failure", "code": 504, "message": "slow", "reason": "Timeout",
            "details": { "kind": "pods", "name": "x" } });
        let status = limited(504, 1, body.to_string().as_bytes()).unwrap();
        assert_eq!((status.code, &*status.message), (504, "slow"));
        let details = status.details.unwrap();
        assert_eq!((&*details.kind, &*details.name, details.retry_after_seconds), ("pods", "x", 1));
    }

    #[test]
    fn only_whole_seconds_are_taken() {
        for (value, seconds) in [("1", Some(1)), ("300", Some(300)), ("soon", None), ("-1", None), ("1.5", None)] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, http::HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), seconds, "{value}");
        }
    }
}

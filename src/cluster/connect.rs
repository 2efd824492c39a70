//! The way to the cluster: where it is and who we are to it.

use std::path::Path;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use kube::client::{ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde_json::json;
use tower::BoxError;
use tower::util::AndThenLayer;

use super::list::chain;

/// A connection on which nothing comes for so long is dead. More than the time for which the apiserver
/// keeps a silent watch open.
const READ_TIMEOUT: Duration = Duration::from_secs(75);

/// Why there is no cluster to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No kubeconfig that can be used, and not in a pod either.
    #[error("no Kubernetes cluster is configured: {0}")]
    Config(String),
    /// The client cannot be made of what the configuration says.
    #[error("the configuration of the Kubernetes cluster cannot be used: {0}")]
    Client(String),
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
    let config = config(kubeconfig, context).await?;
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))?;
    Ok(builder.with_layer(&AndThenLayer::new(keep_retry_after)).build())
}

/// Puts the header `Retry-After` into the answer's status, which is all that kube keeps of a failure. The apiserver's
/// priority and fairness answers with that header and a line of text.
async fn keep_retry_after(response: Response<Box<DynBody>>) -> Result<Response<Box<DynBody>>, BoxError> {
    let code = response.status();
    let Some(seconds) = retry_after(response.headers()).filter(|_| code.is_client_error() || code.is_server_error())
    else {
        return Ok(response);
    };
    let body = response.into_body().collect().await?.to_bytes();
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

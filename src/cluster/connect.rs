//! The way to the cluster: where it is and who we are to it.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

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
    Client::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))
}

//! Consul's HTTP API, as far as a test wants to look into it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::{Client, Method};
use serde::Deserialize;
use serde_json::Value;

use crate::{init_tls, wait};

/// One address of the API and one token. Anything that is not a 2xx is an error with Consul's words.
#[derive(Debug, Clone)]
pub struct ConsulApi {
    base: String,
    token: Option<String>,
    client: Client,
}

/// One instance of a service, as `/v1/health/service` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The service's ID.
    pub id: String,
    /// The name of the Consul node that it is on.
    pub node: String,
    /// The service's own address.
    pub address: String,
    /// Its port; 0 for none.
    pub port: u16,
    /// In Consul's order.
    pub tags: Vec<String>,
    /// Service meta.
    pub meta: BTreeMap<String, String>,
    /// The worst of its checks, the node's among them: what `?passing` and DNS go by.
    pub status: String,
    /// The service's checks and those of its node.
    pub checks: Vec<Check>,
    /// (passing, warning)
    pub weights: (u32, u32),
    /// The index of the last write to the service.
    pub service_modify_index: u64,
    /// Whether the catalog may change its tags.
    pub enable_tag_override: bool,
    /// (address, port) by name.
    pub tagged_addresses: BTreeMap<String, (String, u16)>,
}

/// One check of an instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Check {
    /// Its ID, unique on its node.
    #[serde(rename = "CheckID")]
    pub id: String,
    /// Its name for people.
    #[serde(rename = "Name")]
    pub name: String,
    /// `passing`, `warning` or `critical`.
    #[serde(rename = "Status")]
    pub status: String,
    /// `http`, `ttl`, and so on; empty where whoever registered it did not say.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What the check said last.
    #[serde(rename = "Output")]
    pub output: String,
    /// The service's ID; empty for a check of the node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
}

impl ConsulApi {
    /// The API at `base`, such as `http://127.0.0.1:8500`.
    #[must_use]
    pub fn new(base: &str, token: Option<&str>) -> Self {
        init_tls();
        Self {
            base: base.trim_end_matches('/').to_owned(),
            token: token.map(str::to_owned),
            // A connection kept for later would belong to the runtime of the test that made it.
            client: Client::builder().pool_max_idle_per_host(0).build().unwrap_or_default(),
        }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.get_with_index(path).await?.0)
    }

    /// GET, with the answer's `X-Consul-Index` (0 where there is none).
    pub async fn get_with_index(&self, path: &str) -> Result<(Value, u64)> {
        self.call(Method::GET, path, None).await
    }

    /// PUT with a JSON body; `Value::Null` is no body, a string is itself.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        Ok(self.call(Method::PUT, path, Some(body)).await?.0)
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        Ok(self.call(Method::DELETE, path, None).await?.0)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(Value, u64)> {
        let what = format!("{method} {path}");
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        request = match body {
            None | Some(Value::Null) => request,
            Some(Value::String(text)) => request.body(text.clone()),
            Some(body) => request.body(serde_json::to_vec(body)?),
        };
        let response = request.send().await.with_context(|| what.clone())?;
        let status = response.status();
        let index =
            response.headers().get("X-Consul-Index").and_then(|index| index.to_str().ok()?.parse().ok()).unwrap_or(0);
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{what}: {status}: {}", text.trim());
        }
        if text.trim().is_empty() {
            return Ok((Value::Null, index));
        }
        let value = serde_json::from_str(&text).with_context(|| format!("{what}: {text}"))?;
        Ok((value, index))
    }

    /// `/v1/health/service/NAME` as it is.
    pub async fn services(&self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/health/service/{name}")).await
    }

    /// The instances of a service, ordered by node and ID.
    pub async fn instances(&self, name: &str) -> Result<Vec<Instance>> {
        let entries: Vec<wire::Entry> = serde_json::from_value(self.services(name).await?)?;
        let mut instances: Vec<Instance> = entries.into_iter().map(Instance::from).collect();
        instances.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
        Ok(instances)
    }

    /// Waits until the instances of a service are as wanted, and gives them. On a time-out it fails
    /// with `description` and what Consul holds instead.
    pub async fn wait_for(
        &self,
        name: &str,
        description: &str,
        predicate: impl Fn(&[Instance]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Instance>> {
        let what = format!("{name:?} in Consul: {description}");
        let waited = wait::until(&what, timeout, || async {
            let instances = self.instances(name).await?;
            Ok(predicate(&instances).then_some(instances))
        });
        match waited.await {
            Ok(instances) => Ok(instances),
            // What was waited for comes first: what Consul holds may be long.
            Err(error) => Err(anyhow!("{error:#}\n{}", self.dump(name).await)),
        }
    }

    /// All that Consul holds of a service, and the names of its other services, for failure messages.
    pub async fn dump(&self, name: &str) -> String {
        let instances = match self.instances(name).await {
            Ok(instances) => format!("{} instances {instances:#?}", instances.len()),
            Err(error) => format!("{error:#}"),
        };
        let names = match self.get("/v1/catalog/services").await {
            Ok(names) => names.to_string(),
            Err(error) => format!("{error:#}"),
        };
        format!("Consul holds of {name:?}: {instances}\nall its services: {names}")
    }
}

/// The shapes of Consul's answers.
mod wire {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::Check;

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Entry {
        pub(super) node: Node,
        pub(super) service: Service,
        pub(super) checks: Vec<Check>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Node {
        pub(super) node: String,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Service {
        #[serde(rename = "ID")]
        pub(super) id: String,
        pub(super) address: String,
        pub(super) port: u16,
        // Consul writes what is empty as null as often as not.
        pub(super) tags: Option<Vec<String>>,
        pub(super) meta: Option<BTreeMap<String, String>>,
        pub(super) weights: Weights,
        pub(super) modify_index: u64,
        pub(super) enable_tag_override: bool,
        pub(super) tagged_addresses: Option<BTreeMap<String, Address>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Weights {
        pub(super) passing: u32,
        pub(super) warning: u32,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Address {
        pub(super) address: String,
        pub(super) port: u16,
    }
}

impl From<wire::Entry> for Instance {
    fn from(entry: wire::Entry) -> Self {
        let wire::Entry { node, service, checks } = entry;
        let tagged = service.tagged_addresses.unwrap_or_default().into_iter();
        Self {
            id: service.id,
            node: node.node,
            address: service.address,
            port: service.port,
            tags: service.tags.unwrap_or_default(),
            meta: service.meta.unwrap_or_default(),
            status: worst(&checks).to_owned(),
            checks,
            weights: (service.weights.passing, service.weights.warning),
            service_modify_index: service.modify_index,
            enable_tag_override: service.enable_tag_override,
            tagged_addresses: tagged.map(|(name, tagged)| (name, (tagged.address, tagged.port))).collect(),
        }
    }
}

/// Consul's own order; an instance without checks is passing.
fn worst(checks: &[Check]) -> &str {
    let rank = |status: &str| match status {
        "passing" => 0,
        "warning" => 1,
        _ => 2,
    };
    checks.iter().map(|check| check.status.as_str()).max_by_key(|status| rank(status)).unwrap_or("passing")
}

//! Asks both sides, with the rights of whoever asks, and keeps apart what each of them said.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use kube::Client;

use super::asked::Asked;
use super::explain::concerned;
use super::seen::{Away, Cluster, Seen};
use crate::cluster::convert::ChecksRunBy;
use crate::cluster::kubernetes::ApiServer;
use crate::cluster::watch::Orders;
use crate::cluster::{connect, look, permissions};
use crate::consul::client::Client as ConsulClient;
use crate::consul::instances::{Shown, names, of_service};
use crate::consul::transport::{Http, Transport};
use crate::model::ids::{ClusterName, meta};
use crate::model::reasons::OutageKind;
use crate::ports::{Kubernetes, ReadError, Unavailable};
use crate::settings::Settings;
use crate::state::event::Scope;

/// Asks Kubernetes, and then Consul about what Kubernetes told.
pub(super) async fn ask(mut settings: Settings, asked: &Asked, everywhere: bool) -> anyhow::Result<Seen> {
    let http = Http::new(&settings.consul).map_err(|error| error.to_string());
    let connected = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref()).await;
    let client = connected.map_err(|error| error.to_string());
    // Without a namespace it is that of the kubeconfig, as with kubectl.
    if let (Ok(client), false) = (&client, everywhere || settings.scopes != [Scope::All]) {
        settings.scopes = vec![Scope::Namespace(client.default_namespace().into())];
    }
    let place = settings.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let scopes = settings.scopes.clone();
    let mut kubernetes = match client {
        Ok(client) => kubernetes(client, settings, asked).await?,
        Err(words) => Err(Away { words, lacking: Vec::new() }),
    };
    let consul = match http {
        Ok(http) => {
            let transport: Arc<dyn Transport> = Arc::new(http);
            consul(&ConsulClient::new(transport), asked, kubernetes.as_ref().ok(), &scopes).await
        }
        Err(words) => Err(words),
    };
    if let Ok(cluster) = &mut kubernetes {
        cluster.know(consul.as_deref().unwrap_or_default());
    }
    Ok(Seen { place, kubernetes, consul })
}

async fn kubernetes(client: Client, settings: Settings, asked: &Asked) -> anyhow::Result<Result<Cluster, Away>> {
    let name = match settings.cluster_name.clone() {
        Some(name) => name,
        None => ClusterName::new("unknown").context("--cluster-name")?,
    };
    let scopes = settings.scopes.clone();
    let mut reads = Reads::default();
    let mut asks = Vec::new();
    for scope in &scopes {
        match look::resources(&client, scope).await {
            Ok(found) => asks.extend(found),
            Err(error) => return Ok(Err(with_rights(&client, &scopes, error).await)),
        }
    }
    let world = match lenient(settings)?.read(client.clone()).await {
        Ok(world) => world,
        Err(error) => return Ok(Err(with_rights(&client, &scopes, error).await)),
    };
    let fields = match asked {
        Asked::Pod(name) => Some(format!("metadata.name={name}")),
        Asked::Address(address) => Some(format!("status.podIP={address}")),
        Asked::Resource(_) | Asked::Service(_) => None,
    };
    let (mut pods, mut services) = (Ok(Vec::new()), Ok(Vec::new()));
    for scope in scopes.iter().filter(|_| fields.is_some()) {
        let fields = fields.as_deref().unwrap_or_default();
        reads.add(&mut pods, look::pods(&client, scope, fields).await);
        reads.add(&mut services, look::services(&client, scope).await);
    }
    let waits = world.keys().find_map(|key| world.waits_for(key));
    let mut lacking = Vec::new();
    if reads.failed || waits.is_some() {
        let of_nodes = world.keys().any(|key| world.effective_spec(key).is_some_and(|spec| spec.needs().nodes));
        lacking = rights(&client, &scopes, of_nodes).await;
    }
    let asks = asks.into_iter().collect();
    Ok(Ok(Cluster { world, asks, pods, services, lacking, name }))
}

/// Lists that were asked for one by one.
#[derive(Default)]
struct Reads {
    failed: bool,
}

impl Reads {
    fn add<T>(&mut self, all: &mut Result<Vec<T>, String>, answer: Result<Vec<T>, ReadError>) {
        match (all.as_mut(), answer) {
            (Ok(all), Ok(more)) => all.extend(more),
            (Err(_), Ok(_)) => {}
            (_, Err(error)) => {
                self.failed = true;
                *all = Err(error.to_string());
            }
        }
    }
}

/// A way to read the World by rules that refuse nothing that an administrator may allow: whether it is, the conditions say.
struct Lenient(Settings);

fn lenient(mut settings: Settings) -> anyhow::Result<Lenient> {
    settings.rules.checks = ChecksRunBy::Agent;
    if settings.policy.path.is_none() {
        settings.policy.without.networks =
            ["0.0.0.0/0", "::/0"].into_iter().map(str::parse::<IpNet>).collect::<Result<_, _>>()?;
        settings.policy.without.namespace_bytes = usize::MAX;
    }
    Ok(Lenient(settings))
}

impl Lenient {
    async fn read(self, client: Client) -> Result<crate::state::world::World, ReadError> {
        let Self(settings) = self;
        let policy = settings.policy.read().map_err(|error| ReadError {
            what: "the policy".to_owned(),
            reason: format!("{error:#}"),
            code: None,
        })?;
        let policy = tokio::sync::watch::channel(policy).1;
        // Where instances go is Lictor's business: no Nodes.
        let api = ApiServer::new(client, settings.scopes, false, Arc::new(settings.rules), Orders::default());
        api.under(policy).read_again().await
    }
}

/// A failure, with the rights that are missing where that is why.
async fn with_rights(client: &Client, scopes: &[Scope], error: ReadError) -> Away {
    let lacking = if error.code == Some(403) { rights(client, scopes, false).await } else { Vec::new() };
    Away { words: error.to_string(), lacking }
}

/// The rights that are missing; none where Kubernetes does not say.
async fn rights(client: &Client, scopes: &[Scope], nodes: bool) -> Vec<String> {
    let lacking = permissions::lacking(client, permissions::needs_to_ask(scopes, nodes)).await.unwrap_or_default();
    lacking.iter().map(ToString::to_string).collect()
}

/// Reads what the catalog shows of the services in question.
async fn consul(
    client: &ConsulClient,
    asked: &Asked,
    cluster: Option<&Cluster>,
    scopes: &[Scope],
) -> Result<Vec<Shown>, String> {
    client.may_conclude().await.map_err(|error| refused(&error, None))?;
    let concerned = cluster.map(|cluster| (cluster, concerned(asked, cluster)));
    let mut wanted: BTreeSet<String> = match asked {
        Asked::Service(name) => BTreeSet::from([name.clone()]),
        _ => BTreeSet::new(),
    };
    for (cluster, key) in concerned.iter().flat_map(|(cluster, keys)| keys.iter().map(move |key| (cluster, key))) {
        let names = cluster.names(key);
        let is_asked = |name: &String| match asked {
            Asked::Service(service) => name.eq_ignore_ascii_case(service) || *key.name == **service,
            _ => true,
        };
        if names.iter().any(is_asked) {
            wanted.extend(names);
        }
    }
    if wanted.is_empty()
        && let Some(filter) = filter(asked, scopes)
    {
        wanted.extend(names(client, &filter).await.map_err(|error| refused(&error, None))?);
    }
    let mut shown = Vec::new();
    for name in wanted {
        shown.extend(of_service(client, &name).await.map_err(|error| refused(&error, Some(&name)))?);
    }
    Ok(shown)
}

/// A filter for the services that may have somebody of whom no resource tells. Names of pods and of namespaces have no
/// letter that means something in one.
fn filter(asked: &Asked, scopes: &[Scope]) -> Option<String> {
    let within = match scopes {
        [Scope::Namespace(namespace)] => format!(" and ServiceMeta[\"{}\"] == \"{namespace}\"", meta::NAMESPACE),
        _ => String::new(),
    };
    match asked {
        Asked::Pod(name) => Some(format!("ServiceMeta[\"{}\"] == \"{name}\"{within}", meta::POD)),
        Asked::Address(address) => Some(format!("ServiceAddress == \"{address}\"")),
        Asked::Resource(name) => match scopes {
            [Scope::Namespace(namespace)] => {
                Some(format!("ServiceMeta[\"{}\"] == \"{namespace}/{name}\"", meta::OWNER))
            }
            _ => None,
        },
        Asked::Service(_) => None,
    }
}

/// Says why Consul did not answer, with the rules that the token needs where that is why.
fn refused(error: &Unavailable, service: Option<&str>) -> String {
    if error.kind != OutageKind::Refused {
        return error.to_string();
    }
    let rule = match service {
        Some(name) => format!("service {name:?} {{ policy = \"read\" }}"),
        None => "service_prefix \"\" { policy = \"read\" }".to_owned(),
    };
    format!("{error}; missing rights of the token, or one of them: {rule}, node_prefix \"\" {{ policy = \"read\" }}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_what_was_asked_for() {
        let shop = [Scope::Namespace("shop".into())];
        for (asked, scopes, expected) in [
            ("pod/a", &shop[..], Some(r#"ServiceMeta["k8s-pod"] == "a" and ServiceMeta["k8s-namespace"] == "shop""#)),
            ("pod/a", &[Scope::All], Some(r#"ServiceMeta["k8s-pod"] == "a""#)),
            ("10.0.0.1", &shop, Some(r#"ServiceAddress == "10.0.0.1""#)),
            ("csvc/web", &shop, Some(r#"ServiceMeta["lictor-owner"] == "shop/web""#)),
            ("web", &shop, None),
        ] {
            assert_eq!(filter(&asked.parse().unwrap(), scopes).as_deref(), expected, "{asked}");
        }
    }
}

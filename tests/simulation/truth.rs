//! What Consul should hold, worked out afresh from the model of Kubernetes: nothing of the product's own
//! resolving, naming or comparing is used here.

use std::collections::{BTreeMap, BTreeSet};

use lictor::model::facts::{Endpoint, Family, Service, Slice};
use lictor::model::names::ResourceKey;
use lictor::model::resource::{PortRef, Readiness, Source, Spec};

use crate::cluster::{Cluster, Object};
use crate::consul::store::{self, Address};
use crate::setup::{AGENT_NODE, CLUSTER, CLUSTER_UID, Mode, PREFIX};

/// Where an instance stands: its Consul node, all shards being one, and its ID.
pub type Place = (String, String);

/// The shards, as places have them.
const SHARD: &str = "c1-shard";

/// A place as the catalog's own names make it.
pub fn place(node: &str, id: &str) -> Place {
    let shard = node.strip_prefix("c1-shard-").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()));
    (if shard { SHARD.to_owned() } else { node.to_lowercase() }, id.to_owned())
}

/// Whose an ID of ours is.
pub fn owner(id: &str) -> Option<ResourceKey> {
    let parts: Vec<&str> = id.strip_prefix(PREFIX)?.split(':').collect();
    (parts.len() == 5).then(|| ResourceKey::new(parts[0], parts[1]))
}

/// What a resource wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// Just these.
    Rows(BTreeMap<Place, Expected>),
    /// Nothing: its Service is not there. What an earlier spec registered may stay where this one never found it.
    NoService,
    /// What is there of these addresses stays: the port is not to be found.
    NoPort {
        living: BTreeSet<String>,
        /// The ports of the Service and of its slices. While these change nobody who sees the two out of step can
        /// tell which endpoint has the port.
        ports: String,
    },
    /// All that is there stays: the spec is refused.
    Refused,
    /// Nothing, since it is being deleted.
    Deleting,
}

/// An instance as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Without indexes.
    pub service: store::Service,
    /// The status of the readiness check, if there is to be one.
    pub readiness: Option<&'static str>,
}

impl Want {
    pub fn of(cluster: &Cluster, mode: Mode, object: &Object) -> Self {
        if object.deleting {
            return Self::Deleting;
        }
        let Ok(spec) = &object.spec else { return Self::Refused };
        let Source::Service { name } = &spec.source;
        let source = ResourceKey { namespace: object.key.namespace.clone(), name: name.clone() };
        let Some(service) = cluster.services.get(&source) else { return Self::NoService };
        let slices: Vec<&Slice> = cluster
            .slices
            .iter()
            .filter(|(key, slice)| key.namespace == source.namespace && slice.service == source.name)
            .map(|(_, slice)| slice)
            .filter(|slice| service.family.is_none_or(|family| family == slice.family))
            .collect();
        let living = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| !endpoint.terminating);
        let slice_ports: Vec<_> = slices.iter().map(|slice| &slice.ports).collect();
        let living = Self::NoPort {
            living: living.map(|endpoint| endpoint.address.to_string()).collect(),
            ports: format!("{:?} {slice_ports:?}", service.ports),
        };
        let Some(port) = port(spec, service) else { return living };
        let mut found: BTreeMap<String, (&Endpoint, u16, bool)> = BTreeMap::new();
        let mut without = false;
        for slice in slices.iter().filter(|slice| slice.family != Family::Fqdn) {
            let number = slice.ports.iter().find(|candidate| *candidate.name == port).map(|port| port.number);
            for endpoint in slice.endpoints.iter().filter(|endpoint| !endpoint.terminating) {
                let target = endpoint.pod.as_ref().map_or(endpoint.address.to_string(), |pod| pod.uid.to_string());
                match number {
                    Some(number) => found.entry(target).or_insert((endpoint, number, false)).2 |= endpoint.ready,
                    None => without = true,
                }
            }
        }
        if found.is_empty() && without {
            return living;
        }
        let kept = found.into_iter().filter(|(_, (_, _, ready))| *ready || spec.readiness != Readiness::Deregister);
        Self::Rows(
            kept.map(|(target, (endpoint, port, ready))| expected(mode, object, spec, &target, endpoint, port, ready))
                .collect(),
        )
    }

    pub fn rows(&self) -> Option<&BTreeMap<Place, Expected>> {
        match self {
            Self::Rows(rows) => Some(rows),
            _ => None,
        }
    }
}

/// The name of the Service's port that a spec means.
fn port(spec: &Spec, service: &Service) -> Option<String> {
    let mut all = service.ports.iter();
    let port = match &spec.port {
        None if service.ports.len() == 1 => all.next(),
        None => None,
        Some(PortRef::Name(name)) => all.find(|port| port.name == *name),
        Some(PortRef::Number(number)) => all.find(|port| port.number == *number),
    };
    port.map(|port| port.name.to_string())
}

fn expected(
    mode: Mode,
    object: &Object,
    spec: &Spec,
    target: &str,
    endpoint: &Endpoint,
    port: u16,
    ready: bool,
) -> (Place, Expected) {
    let ResourceKey { namespace, name } = &object.key;
    let id = format!("{CLUSTER}:{namespace}:{name}:{}:{target}:{port}", spec.service.to_lowercase());
    let node = match (mode, &endpoint.node) {
        (Mode::Agent, _) => AGENT_NODE.to_owned(),
        (Mode::Catalog, Some(node)) => format!("{CLUSTER}-{node}"),
        (Mode::Catalog, None) => SHARD.to_owned(),
    };
    let Source::Service { name: source } = &spec.source;
    let mut meta: BTreeMap<String, String> = [
        ("managed-by", "lictor"),
        ("lictor-cluster", CLUSTER),
        ("lictor-cluster-uid", CLUSTER_UID),
        ("lictor-owner", &format!("{namespace}/{name}")),
        ("lictor-owner-uid", &object.uid),
        ("lictor-source", &format!("service/{source}")),
        ("k8s-namespace", namespace),
        ("external-source", "kubernetes"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    meta.extend(spec.meta.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    meta.extend(endpoint.pod.iter().map(|pod| ("k8s-pod".to_owned(), pod.name.to_string())));
    meta.extend(endpoint.node.iter().map(|node| ("k8s-node".to_owned(), node.to_string())));
    let address = endpoint.address.to_string();
    let tagged = spec.tagged_addresses.iter();
    let mut tagged: BTreeMap<String, Address> = tagged
        .map(|(tag, there)| {
            (tag.to_string(), Address { address: there.address.to_string(), port: i64::from(there.port) })
        })
        .collect();
    if mode == Mode::Agent {
        for tag in ["lan_ipv4", "wan_ipv4"] {
            let own = Address { address: address.clone(), port: i64::from(port) };
            tagged.entry(tag.to_owned()).or_insert(own);
        }
    }
    let service = store::Service {
        id: id.clone(),
        service: spec.service.to_string(),
        tags: spec.tags.iter().map(ToString::to_string).collect(),
        address,
        port: i64::from(port),
        meta,
        weights: store::Weights { passing: spec.weights.passing.into(), warning: spec.weights.warning.into() },
        enable_tag_override: spec.enable_tag_override,
        tagged_addresses: tagged,
        create_index: 0,
        modify_index: 0,
    };
    let readiness = (spec.readiness == Readiness::Mirror).then_some(if ready { "passing" } else { "critical" });
    ((node, id), Expected { service, readiness })
}

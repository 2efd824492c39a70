//! What Consul should hold, worked out afresh from the model of Kubernetes: nothing of the product's own
//! resolving, naming, filling in or comparing is used here.

mod found;
mod texts;

use std::collections::{BTreeMap, BTreeSet};

use lictor::model::ids::ResourceKey;
use lictor::model::resource::{Readiness, Source, Spec};
use lictor::state::event::ObjectKey;

use crate::cluster::{Cluster, Object};
use crate::consul::store::{self, Address};
use crate::setup::{AGENT_NODE, CLUSTER, CLUSTER_UID, Mode, PREFIX};
use found::{Found, Instance, instances};
pub use found::{could_go_on, has_port, lives_without_port, told};

/// Where an instance stands: its Consul node, all shards being one, and its ID.
pub type Place = (String, String);

/// The shards, as places have them.
pub const SHARD: &str = "c1-shard";

/// A place as the catalog's own names make it.
pub fn place(node: &str, id: &str) -> Place {
    let shard = node.strip_prefix("c1-shard-").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()));
    (if shard { SHARD.to_owned() } else { node.to_lowercase() }, id.to_owned())
}

/// Whose an ID of ours is.
pub fn owner(id: &str) -> Option<ResourceKey> {
    let parts: Vec<&str> = id.strip_prefix(PREFIX)?.split(':').collect();
    // An IPv6 address has colons of its own.
    (parts.len() >= 5).then(|| ResourceKey::new(parts[0], parts[1]))
}

/// What a resource wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// Just these.
    Rows(Rows),
    /// Nothing: its Service is not there. What an earlier spec registered may stay where this one never found it.
    NoService,
    /// What is there of these addresses stays: how it is to be registered cannot be told.
    Unclear {
        /// As the status says it.
        reason: &'static str,
        living: BTreeSet<String>,
        /// What it depends on besides. While this changes nobody who sees one thing later than another can tell.
        basis: String,
    },
    /// All that is there stays: the spec is refused.
    Refused,
    /// All that is there stays: the resource is frozen.
    Paused,
    /// The name is another namespace's. What is there under another name stays. Whose a name is depends on what was
    /// before: only the verdict says so, of a resource that was told so.
    Lost,
    /// Nothing, since it is being deleted.
    Deleting,
    /// Nothing, since it is another operator's; what was not marked as ours to remove stays.
    Elsewhere,
}

/// What is to be registered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub rows: BTreeMap<Place, Expected>,
    /// Why something that lives is not among them, as the status says it.
    pub left_out: BTreeSet<&'static str>,
    /// Whether a text lacks a value.
    pub blanks: bool,
    /// Whether an endpoint is passed over for its family.
    pub passed_over: bool,
    /// Whether a port goes on of several, which the spec does not name.
    pub not_named: bool,
    /// So many of them count, where there are more: which ones depends on what was registered before.
    pub most: Option<usize>,
    /// Whether one that is not ready is not to be registered.
    pub only_ready: bool,
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
        if object.other_class {
            return Self::Elsewhere;
        }
        if object.paused {
            return Self::Paused;
        }
        if object.deleting {
            return Self::Deleting;
        }
        match &object.spec {
            Ok(spec) => Self::by(cluster, mode, object, spec),
            Err(_) => Self::Refused,
        }
    }

    /// What a resource wants by this spec.
    pub fn by(cluster: &Cluster, mode: Mode, object: &Object, spec: &Spec) -> Self {
        let (found, left_out, passed_over, not_named) = match instances(cluster, object, spec) {
            Found::Instances { all, left_out, passed_over, not_named } => (all, left_out, passed_over, not_named),
            Found::Nothing => return Self::NoService,
            Found::Unclear { reason, living, basis } => return Self::Unclear { reason, living, basis },
        };
        let only_ready = spec.readiness == Readiness::Deregister;
        let mut wanted = Rows { left_out, passed_over, not_named, only_ready, ..Rows::default() };
        for instance in &found {
            let (expected, blank) = expected(mode, object, spec, instance);
            wanted.blanks |= blank;
            if instance.ready || !only_ready {
                wanted.rows.insert((node(cluster, mode, instance), expected.service.id.clone()), expected);
            }
        }
        let most = spec.limits.instances;
        wanted.most = (wanted.rows.len() > most).then_some(most);
        Self::Rows(wanted)
    }

    /// The rows, where more are wanted than are allowed.
    pub fn limited(&self) -> Option<&Rows> {
        match self {
            Self::Rows(wanted) => Some(wanted).filter(|wanted| wanted.most.is_some()),
            _ => None,
        }
    }

    pub fn rows(&self) -> Option<&BTreeMap<Place, Expected>> {
        match self {
            Self::Rows(wanted) => Some(&wanted.rows),
            _ => None,
        }
    }
}

/// Where an instance goes: to the node of its Node, also of one that has gone. Other names are anybody's invention.
fn node(cluster: &Cluster, mode: Mode, instance: &Instance) -> String {
    match (mode, &instance.node) {
        (Mode::Agent, _) => AGENT_NODE.to_owned(),
        (Mode::Catalog, Some(node)) if cluster.nodes.contains_key(&ObjectKey::new("", node)) => node_of(node),
        (Mode::Catalog, Some(node)) if cluster.gone_nodes.contains(node) => node_of(node),
        (Mode::Catalog, _) => SHARD.to_owned(),
    }
}

/// The Consul node that stands for a Kubernetes node: at most 63 characters, of a longer name the first 46 and the
/// FNV-1a hash of all of it.
pub fn node_of(kubernetes_node: &str) -> String {
    let full = format!("{CLUSTER}-{kubernetes_node}");
    if full.len() <= 63 {
        return full;
    }
    let mut hash: u64 = 14_695_981_039_346_656_037;
    for byte in full.as_bytes() {
        hash ^= u64::from(*byte);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    format!("{}-{hash:016x}", full[..46].trim_end_matches(['-', '.']))
}

/// An instance as it should be, and whether a text of it lacks a value.
fn expected(mode: Mode, object: &Object, spec: &Spec, instance: &Instance) -> (Expected, bool) {
    let ResourceKey { namespace, name } = &object.key;
    let Instance { port, .. } = instance;
    let id = format!("{CLUSTER}:{namespace}:{name}:{}:{}:{port}", spec.service.to_lowercase(), instance.target());
    let source = match &spec.source {
        Source::Service { name } => format!("service/{name}"),
        Source::Pods { .. } => "pods".to_owned(),
        Source::Static { .. } => "static".to_owned(),
    };
    let (tags, mut meta, blank) = texts::filled(spec, instance);
    let ours = [
        ("managed-by", "lictor"),
        ("lictor-cluster", CLUSTER),
        ("lictor-cluster-uid", CLUSTER_UID),
        ("lictor-owner", &format!("{namespace}/{name}")),
        ("lictor-owner-uid", &object.uid),
        ("lictor-source", &source),
        ("k8s-namespace", namespace),
        ("external-source", "kubernetes"),
    ];
    meta.extend(ours.map(|(key, value)| (key.to_owned(), value.to_owned())));
    meta.extend(instance.pod.iter().map(|(name, _)| ("k8s-pod".to_owned(), name.to_string())));
    meta.extend(instance.node.iter().map(|node| ("k8s-node".to_owned(), node.to_string())));
    let address = instance.address.to_string();
    let tagged = spec.tagged_addresses.iter();
    let mut tagged: BTreeMap<String, Address> = tagged
        .map(|(tag, there)| {
            (tag.to_string(), Address { address: there.address.to_string(), port: i64::from(there.port) })
        })
        .collect();
    let at = |address: &str| Address { address: address.to_owned(), port: i64::from(*port) };
    if let Some(second) = instance.second.filter(|_| spec.dual_stack) {
        let name = if second.is_ipv4() { "lan_ipv4" } else { "lan_ipv6" };
        tagged.entry(name.to_owned()).or_insert(at(&second.to_string()));
    }
    if mode == Mode::Agent {
        let own = if instance.address.is_ipv4() { ["lan_ipv4", "wan_ipv4"] } else { ["lan_ipv6", "wan_ipv6"] };
        for tag in own {
            tagged.entry(tag.to_owned()).or_insert(at(&address));
        }
    }
    let service = store::Service {
        id,
        service: spec.service.to_string(),
        tags,
        address,
        port: i64::from(*port),
        meta,
        weights: store::Weights { passing: spec.weights.passing.into(), warning: spec.weights.warning.into() },
        enable_tag_override: spec.enable_tag_override,
        tagged_addresses: tagged,
        create_index: 0,
        modify_index: 0,
    };
    let mirrors = spec.readiness == Readiness::Mirror && !matches!(spec.source, Source::Static { .. });
    let readiness = mirrors.then_some(if instance.ready { "passing" } else { "critical" });
    (Expected { service, readiness }, blank)
}

//! What should be registered for one resource: a pure function of its spec and its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::check::{Checks, PlacedCheck};
use super::health::Health;
use super::ids::{ClusterName, Identity, ResourceKey, Str, instance_id, meta};
use super::nodes::{SHARDS, node_name, shard_name, shard_of};
use super::registration::{Registration, RowKey, TaggedAddress};
use super::render;
use super::resolve::Instance;
use super::resource::{Readiness, Source, Spec};
use super::template::Template;

/// Says which Consul node an instance goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// To the one agent, which is the Consul node of this name.
    Agent {
        /// The agent's node name.
        node: Str,
    },
    /// Into the catalog: a Consul node for each Kubernetes node, shards for what has none.
    Catalog {
        /// The beginning of the nodes' names.
        cluster: ClusterName,
        /// The names that are somebody else's nodes, in lower case: instances that would go there go to a shard.
        taken: Arc<BTreeSet<Str>>,
    },
}

impl Placement {
    /// The Consul node for an instance. Names that are no nodes of Kubernetes are anybody's invention: whoever may write
    /// EndpointSlices could make any number of Consul nodes by them, and those of another cluster's name.
    #[must_use]
    pub fn node(&self, instance: &Instance, is_node: impl Fn(&str) -> bool) -> Str {
        match self {
            Self::Agent { node } => node.clone(),
            Self::Catalog { cluster, taken } => {
                let own = instance.node.as_deref().filter(|node| is_node(node)).and_then(|node| self.node_for(node));
                own.unwrap_or_else(|| shard(cluster, taken, &instance.target()))
            }
        }
    }

    /// Says whether a Consul node is that of another agent than the one that instances go to.
    #[must_use]
    pub fn is_another_agent(&self, consul_node: &str) -> bool {
        matches!(self, Self::Agent { node } if **node != *consul_node)
    }

    /// The Consul node that stands for a Kubernetes node; none in `agent` mode, and where it is somebody else's.
    #[must_use]
    pub fn node_for(&self, kubernetes_node: &str) -> Option<Str> {
        match self {
            Self::Agent { .. } => None,
            Self::Catalog { cluster, taken } => {
                Some(node_name(cluster, kubernetes_node)).filter(|name| !taken.contains(name))
            }
        }
    }
}

/// The shard for what has no node of its own: the next one where somebody else has it.
fn shard(cluster: &ClusterName, taken: &BTreeSet<Str>, target: &str) -> Str {
    let first = shard_of(target);
    let all = (0..SHARDS).map(|n| shard_name(cluster, (first + n) % SHARDS));
    let mut free = all.filter(|name| !taken.contains(name));
    free.next().unwrap_or_else(|| shard_name(cluster, first))
}

/// The registrations of a resource.
pub type Desired = BTreeMap<RowKey, Arc<Registration>>;

/// Works out what should be registered for the resource `owner` with these instances. `is_node` says whether a name is
/// that of a Kubernetes node.
#[must_use]
pub fn desired(
    identity: &Identity,
    owner: &ResourceKey,
    owner_uid: &Str,
    spec: &Spec,
    instances: &[Instance],
    placement: &Placement,
    is_node: impl Fn(&str) -> bool,
) -> Desired {
    // What is the same for all instances is one for all of them.
    let same =
        spec.tags.iter().all(|tag| matches!(tag, Template::Plain(_))) && !matches!(spec.source, Source::Static { .. });
    let mut tags: Option<Arc<[Str]>> = None;
    instances
        .iter()
        .filter(|instance| spec.readiness.registers(instance.ready))
        .map(|instance| {
            let id = instance_id(&identity.cluster, owner, &spec.service, &instance.target(), instance.port);
            let key = RowKey { node: placement.node(instance, &is_node), id };
            let checks = placed_checks(spec, instance);
            let tags = match &tags {
                Some(tags) if same => tags.clone(),
                _ => tags.insert(render::tags(spec, instance, drop).into()).clone(),
            };
            let registration = Registration {
                service: spec.service.clone(),
                address: instance.address.to_string().into(),
                port: instance.port,
                tags,
                meta: all_meta(identity, owner, owner_uid, spec, instance, &checks),
                weights: spec.weights,
                enable_tag_override: spec.enable_tag_override,
                tagged_addresses: tagged_addresses(spec, instance, placement),
                readiness: match spec.readiness {
                    // Of what runs elsewhere Kubernetes has nothing to say.
                    _ if matches!(spec.source, Source::Static { .. }) => None,
                    Readiness::Mirror if instance.ready => Some(Health::Passing),
                    Readiness::Mirror => Some(Health::Critical),
                    Readiness::Deregister | Readiness::Ignore => None,
                },
                checks,
            };
            (key, Arc::new(registration))
        })
        .collect()
}

/// The author's, and the address of the other family under Consul's own name for it. The one of the primary family
/// an agent adds itself, named or not, and without an agent the instance's own address stands for it.
fn tagged_addresses(spec: &Spec, instance: &Instance, placement: &Placement) -> Arc<BTreeMap<Str, TaggedAddress>> {
    let by_agent = matches!(placement, Placement::Agent { .. });
    let address = instance.address.to_string();
    let is_own = |name: &Str, there: &TaggedAddress| by_agent && there.is_agents_own(name, &address, instance.port);
    if instance.other_address.is_none() && !spec.tagged_addresses.iter().any(|(name, there)| is_own(name, there)) {
        return spec.tagged_addresses.clone();
    }
    let mut all = (*spec.tagged_addresses).clone();
    all.retain(|name, there| !is_own(name, there));
    if let Some(other) = instance.other_address {
        let name = if other.is_ipv4() { "lan_ipv4" } else { "lan_ipv6" };
        let of_pod = TaggedAddress { address: other.to_string().into(), port: instance.port };
        all.entry(name.into()).or_insert(of_pod);
    }
    Arc::new(all)
}

/// The checks of one instance: those whose port it has.
fn placed_checks(spec: &Spec, instance: &Instance) -> Checks {
    let ports = spec.checks.iter().zip(&instance.check_ports);
    let placed = ports.filter_map(|(check, port)| Some(PlacedCheck { check: check.check.clone(), port: (*port)? }));
    Checks::new(placed.collect(), if instance.ready { Health::Passing } else { Health::Critical })
}

/// The author's pairs and ours.
fn all_meta(
    identity: &Identity,
    owner: &ResourceKey,
    owner_uid: &Str,
    spec: &Spec,
    instance: &Instance,
    checks: &Checks,
) -> BTreeMap<Str, Str> {
    let mut all = render::pairs(spec, instance, drop);
    let mut put = |key: &str, value: Str| all.insert(key.into(), value);
    put(meta::MANAGED_BY, meta::LICTOR.into());
    put(meta::CLUSTER, identity.cluster.as_str().into());
    put(meta::CLUSTER_UID, identity.uid.clone());
    put(meta::OWNER, owner.to_string().into());
    put(meta::OWNER_UID, owner_uid.clone());
    put(meta::SOURCE, spec.source.to_string().into());
    put(meta::NAMESPACE, owner.namespace.clone());
    put(meta::EXTERNAL_SOURCE, meta::KUBERNETES.into());
    if let Some(digest) = checks.digest() {
        put(meta::CHECKS, digest);
    }
    if let Some(pod) = &instance.pod {
        put(meta::POD, pod.name.clone());
    }
    if let Some(node) = &instance.node {
        put(meta::NODE, node.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::template::Values;

    fn instance(node: Option<&str>) -> Instance {
        Instance {
            address: IpAddr::from([10, 0, 0, 1]),
            other_address: None,
            port: 80,
            ready: true,
            node: node.map(Str::from),
            pod: None,
            check_ports: Vec::new(),
            values: Values::default(),
            own: None,
        }
    }

    #[test]
    fn an_instance_goes_to_its_own_node_or_to_a_shard_that_is_free() {
        let placed = |taken: &[&str], node: Option<&str>| {
            let taken = Arc::new(taken.iter().map(|name| Str::from(*name)).collect());
            let placement = Placement::Catalog { cluster: ClusterName::new("c").unwrap(), taken };
            placement.node(&instance(node), |node| node != "invented").to_string()
        };
        let own = placed(&[], None);
        let (cluster, number) = own.rsplit_once('-').unwrap();
        let next = format!("{cluster}-{}", (number.parse::<u32>().unwrap() + 1) % SHARDS);
        let all: Vec<String> = (0..SHARDS).map(|n| format!("c-shard-{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        for (taken, node, goes_to) in [
            (&[][..], Some("n0"), "c-n0"),
            (&["c-n1"], Some("n0"), "c-n0"),
            (&[], Some("invented"), &own),
            (&["c-n0"], Some("n0"), &own),
            (&["c-n0", &own], Some("n0"), &next),
            (&[&own], None, &next),
            // There Consul's own words tell why.
            (&all, None, &own),
        ] {
            assert_eq!(placed(taken, node), goes_to, "{taken:?} {node:?}");
        }
    }
}

//! What should be registered for one resource: a pure function of its spec and its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::check::{Checks, PlacedCheck};
use super::health::Health;
use super::ids::{ClusterName, Identity, InstanceIds, PREVIOUS, ResourceKey, Str, meta};
use super::nodes::{SHARDS, node_name, shard_name, shard_of};
use super::pairs::{Pairs, SharedPairs};
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
        !consul_node.starts_with(PREVIOUS) && matches!(self, Self::Agent { node } if **node != *consul_node)
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
    let mut common = Common::new(identity, owner, owner_uid, spec, placement, is_node);
    instances
        .iter()
        .filter(|instance| spec.readiness.registers(instance.ready))
        .map(|instance| common.registration(instance))
        .collect()
}

/// Checks, and the digest of what they do; none where there are none.
type Digested = (Checks, Option<Str>);

/// The common part of the registrations of one resource: it is worked out once, and held once.
struct Common<'a, N> {
    spec: &'a Spec,
    placement: &'a Placement,
    ids: InstanceIds,
    /// The pairs of ours that all instances have.
    ours: Vec<(&'static str, Str)>,
    /// True if the author's tags and pairs hold nothing of an instance.
    is_plain: bool,
    tags: BTreeSet<Arc<[Str]>>,
    plain_tags: Option<Arc<[Str]>>,
    pairs: SharedPairs,
    /// By the digest of the checks.
    plain_pairs: BTreeMap<Option<Str>, Pairs>,
    /// By the ports that they go to and the readiness of the instance.
    checks: BTreeMap<(&'a [Option<u16>], bool), Digested>,
    /// The Consul nodes that stand for Kubernetes nodes; none where instances go to another one.
    nodes: BTreeMap<&'a str, Option<Str>>,
    is_node: N,
}

impl<'a, N: Fn(&str) -> bool> Common<'a, N> {
    fn new(
        identity: &Identity,
        owner: &ResourceKey,
        owner_uid: &Str,
        spec: &'a Spec,
        placement: &'a Placement,
        is_node: N,
    ) -> Self {
        let mut texts = spec.tags.iter().chain(spec.meta.values());
        let is_plain = texts.all(|text| matches!(text, Template::Plain(_)));
        Self {
            spec,
            placement,
            ids: InstanceIds::new(&identity.cluster, owner, &spec.service),
            ours: vec![
                (meta::MANAGED_BY, meta::LICTOR.into()),
                (meta::CLUSTER, identity.cluster.as_str().into()),
                (meta::CLUSTER_UID, identity.uid.clone()),
                (meta::OWNER, owner.to_string().into()),
                (meta::OWNER_UID, owner_uid.clone()),
                (meta::SOURCE, spec.source.to_string().into()),
                (meta::NAMESPACE, owner.namespace.clone()),
                (meta::EXTERNAL_SOURCE, meta::KUBERNETES.into()),
            ],
            // Static addresses have tags and pairs of their own.
            is_plain: is_plain && !matches!(spec.source, Source::Static { .. }),
            tags: BTreeSet::new(),
            plain_tags: None,
            pairs: SharedPairs::default(),
            plain_pairs: BTreeMap::new(),
            checks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            is_node,
        }
    }

    fn registration(&mut self, instance: &'a Instance) -> (RowKey, Arc<Registration>) {
        let spec = self.spec;
        let address: Str = instance.address.to_string().into();
        let id = self.ids.id(instance.pod.as_ref().map_or(&address, |pod| &pod.uid), instance.port);
        let key = RowKey { node: self.node(instance), id };
        let (checks, digest) = self.checks(instance);
        let registration = Registration {
            service: spec.service.clone(),
            port: instance.port,
            tags: self.tags(instance),
            meta: self.meta(instance, digest),
            weights: spec.weights,
            enable_tag_override: spec.enable_tag_override,
            tagged_addresses: tagged_addresses(spec, instance, &address, self.placement),
            readiness: match spec.readiness {
                // Of what runs elsewhere Kubernetes has nothing to say.
                _ if matches!(spec.source, Source::Static { .. }) => None,
                Readiness::Mirror if instance.ready => Some(Health::Passing),
                Readiness::Mirror => Some(Health::Critical),
                Readiness::Deregister | Readiness::Ignore => None,
            },
            checks,
            address,
        };
        (key, Arc::new(registration))
    }

    fn node(&mut self, instance: &'a Instance) -> Str {
        let (placement, is_node) = (self.placement, &self.is_node);
        let own = instance.node.as_deref().and_then(|name| {
            let place = || Some(name).filter(|name| is_node(name)).and_then(|name| placement.node_for(name));
            self.nodes.entry(name).or_insert_with(place).clone()
        });
        own.unwrap_or_else(|| placement.node(instance, is_node))
    }

    fn tags(&mut self, instance: &Instance) -> Arc<[Str]> {
        if let Some(tags) = &self.plain_tags {
            return Arc::clone(tags);
        }
        let tags: Arc<[Str]> = render::tags(self.spec, instance, drop).into();
        if self.is_plain {
            self.plain_tags = Some(Arc::clone(&tags));
        }
        if let Some(known) = self.tags.get(&tags) {
            return Arc::clone(known);
        }
        self.tags.insert(Arc::clone(&tags));
        tags
    }

    /// The author's pairs and ours.
    fn meta(&mut self, instance: &Instance, checks: Option<Str>) -> Pairs {
        let plain = self.plain_pairs.get(&checks).cloned();
        let mut all = plain.unwrap_or_else(|| self.common_pairs(instance, checks));
        if let Some(pod) = &instance.pod {
            all.insert(meta::POD.into(), pod.name.clone());
        }
        if let Some(node) = &instance.node {
            all.insert(meta::NODE.into(), node.clone());
        }
        all
    }

    /// The pairs of an instance but those that are its own in any case.
    fn common_pairs(&mut self, instance: &Instance, checks: Option<Str>) -> Pairs {
        let ours = self.ours.iter().map(|(key, value)| ((*key).into(), value.clone()));
        let digest = checks.iter().map(|digest| (meta::CHECKS.into(), digest.clone()));
        let all = render::pairs(self.spec, instance, drop).into_iter().chain(ours).chain(digest);
        let all = self.pairs.share(all.collect());
        if self.is_plain {
            self.plain_pairs.insert(checks, all.clone());
        }
        all
    }

    /// The checks of one instance: those whose port it has.
    fn checks(&mut self, instance: &'a Instance) -> Digested {
        let placed = self.checks.entry((&instance.check_ports, instance.ready)).or_insert_with(|| {
            let ports = self.spec.checks.iter().zip(&instance.check_ports);
            let placed =
                ports.filter_map(|(check, port)| Some(PlacedCheck { check: check.check.clone(), port: (*port)? }));
            let initial = if instance.ready { Health::Passing } else { Health::Critical };
            let checks = Checks::new(placed.collect(), initial);
            let digest = checks.digest();
            (checks, digest)
        });
        placed.clone()
    }
}

/// The author's, and the address of the other family under Consul's own name for it. The one of the primary family
/// an agent adds itself, named or not, and without an agent the instance's own address stands for it.
fn tagged_addresses(
    spec: &Spec,
    instance: &Instance,
    address: &str,
    placement: &Placement,
) -> Arc<BTreeMap<Str, TaggedAddress>> {
    let by_agent = matches!(placement, Placement::Agent { .. });
    let is_own = |name: &Str, there: &TaggedAddress| by_agent && there.is_agents_own(name, address, instance.port);
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

//! Consul's JSON, as far as we read and write it.
//!
//! In: answers, in which anything may be missing, null or new. Out: rows; and the other way round the bodies
//! that register what we want.

mod check_body;
mod checks;
mod fault;
mod login;
mod service_body;
mod txn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::check_body::{AgentUpdate, TxnCheck};
pub use self::checks::{Check, Healths};
pub use self::fault::Fault;
pub use self::login::{LoginAnswer, LoginBody, LoginFault};
pub use self::service_body::AgentService;
pub use self::txn::{TxnAnswer, TxnError, TxnOp, Verb, txn_body};
use crate::model::check::Checks;
use crate::model::ids::{Identity, Str, meta, owner_of_id};
use crate::model::pairs::SharedPairs;
use crate::model::registration::{Registration, TaggedAddress, Weights};

/// A service instance, as `/v1/agent/services` and `/v1/catalog/node-services` show it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(clippy::struct_field_names, reason = "the names are those of Consul's JSON")]
pub struct Service {
    /// Unique on its node.
    #[serde(rename = "ID")]
    pub id: Option<String>,
    /// The service's name.
    pub service: Option<String>,
    /// The tags, in order.
    pub tags: Option<Vec<String>>,
    /// The address of the instance itself.
    pub address: Option<String>,
    /// 0 for none.
    pub port: Option<i64>,
    /// The meta pairs.
    pub meta: Option<BTreeMap<String, String>>,
    /// Absent in very old registrations.
    pub weights: Option<WireWeights>,
    /// True if tags belong to whoever edits them in the catalog.
    pub enable_tag_override: Option<bool>,
    /// The tagged addresses, by name.
    pub tagged_addresses: Option<BTreeMap<String, WireAddress>>,
}

/// Weights in DNS.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WireWeights {
    /// The weight while the instance passes.
    pub passing: Option<i64>,
    /// The weight while the instance warns.
    pub warning: Option<i64>,
}

/// A tagged address of a service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WireAddress {
    /// An IP address or host name.
    pub address: Option<String>,
    /// 0 for none.
    pub port: Option<i64>,
}

/// A node of the catalog: what is read of it, and what is written of one that is to be like this. What is none is not
/// written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(clippy::struct_field_names, reason = "the names are those of Consul's JSON")]
pub struct Node {
    /// Its ID; empty for those of our making.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The node's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Other addresses, by tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tagged_addresses: Option<BTreeMap<String, String>>,
    /// The node's meta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    /// The Raft index of its last change; 0 stands for a node that is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modify_index: Option<u64>,
}

impl Node {
    /// A meta value; empty where there is none.
    #[must_use]
    pub fn meta(&self, key: &str) -> &str {
        self.meta.as_ref().and_then(|meta| meta.get(key)).map_or("", String::as_str)
    }
}

/// The answer of `/v1/catalog/node-services`. Both fields are null for a node that is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeServices {
    /// The node, if it is there.
    pub node: Option<Node>,
    /// All on it.
    pub services: Option<Vec<Service>>,
}

/// An instance, as `/v1/health/service` shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthEntry {
    /// The node that the instance is on.
    pub node: Node,
    /// The instance itself.
    pub service: Service,
    /// Its checks, and those of its node.
    pub checks: Vec<Check>,
}

/// Holds what we read of `/v1/agent/self`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentSelf {
    /// The agent's configuration.
    pub config: AgentConfig,
    /// More of it.
    pub debug_config: DebugConfig,
}

/// Says what an agent has configured about its ACLs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DebugConfig {
    /// True if the agent has ACLs.
    #[serde(rename = "ACLsEnabled")]
    pub enabled: bool,
    /// Says how ACLs are resolved.
    #[serde(rename = "ACLResolverSettings")]
    pub resolver: AclResolver,
    /// Its version, such as `1.22.7`.
    #[serde(rename = "Version")]
    pub version: String,
    /// The domain of its DNS, with a dot at the end.
    #[serde(rename = "DNSDomain")]
    pub dns_domain: String,
}

/// Says how an agent resolves ACLs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AclResolver {
    /// `allow` or `deny`.
    #[serde(rename = "ACLDefaultPolicy")]
    pub default_policy: String,
}

/// Says which agent it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentConfig {
    /// Its node in the catalog.
    pub node_name: Option<String>,
    /// Drawn anew by an agent that has lost its data.
    #[serde(rename = "NodeID")]
    pub node_id: Option<String>,
    /// The datacenter that it is in.
    pub datacenter: Option<String>,
}

/// Strings, tags and tagged addresses that were seen before: what the instances of a resource have in common
/// is in memory once.
#[derive(Debug, Default)]
pub struct Pool {
    strings: BTreeSet<Str>,
    tags: BTreeSet<Arc<[Str]>>,
    tagged_addresses: BTreeSet<Arc<BTreeMap<Str, TaggedAddress>>>,
    pairs: SharedPairs,
}

impl Pool {
    /// The one copy of a string.
    pub fn string(&mut self, text: &str) -> Str {
        if let Some(known) = self.strings.get(text) {
            return Arc::clone(known);
        }
        let new: Str = text.into();
        self.strings.insert(Arc::clone(&new));
        new
    }

    fn tags(&mut self, tags: &[String]) -> Arc<[Str]> {
        let tags: Arc<[Str]> = tags.iter().map(|tag| self.string(tag)).collect();
        if let Some(known) = self.tags.get(&tags) {
            return Arc::clone(known);
        }
        self.tags.insert(Arc::clone(&tags));
        tags
    }

    fn tagged_addresses(&mut self, addresses: BTreeMap<Str, TaggedAddress>) -> Arc<BTreeMap<Str, TaggedAddress>> {
        if let Some(known) = self.tagged_addresses.get(&addresses) {
            return Arc::clone(known);
        }
        let new = Arc::new(addresses);
        self.tagged_addresses.insert(Arc::clone(&new));
        new
    }
}

/// Says who adds what to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An agent adds tagged addresses: `lan_ipv4` and `wan_ipv4`, or those for IPv6, with the instance's own
    /// address and port where these are absent.
    Agent,
    /// The catalog adds nothing.
    Catalog,
}

impl Service {
    /// Gives the registration as it stands, with what its checks say.
    #[must_use]
    pub fn registration(&self, by: By, healths: &Healths, pool: &mut Pool) -> Registration {
        let id = self.id.as_deref().unwrap_or_default();
        let address = self.address.as_deref().unwrap_or_default();
        let port = number(self.port);
        let mut tagged = BTreeMap::new();
        for (name, tagged_address) in self.tagged_addresses.iter().flatten() {
            let there = TaggedAddress {
                address: pool.string(tagged_address.address.as_deref().unwrap_or_default()),
                port: number(tagged_address.port),
            };
            if by == By::Catalog || !there.is_agents_own(name, address, port) {
                tagged.insert(pool.string(name), there);
            }
        }
        let weights = self.weights.as_ref().map_or(Weights::default(), |weights| Weights {
            passing: number(weights.passing),
            warning: number(weights.warning),
        });
        let meta = self.meta.iter().flatten().map(|(key, value)| (pool.string(key), pool.string(value))).collect();
        let meta = pool.pairs.share(meta);
        Registration {
            service: pool.string(self.service.as_deref().unwrap_or_default()),
            address: pool.string(address),
            port,
            tags: pool.tags(self.tags.as_deref().unwrap_or_default()),
            meta,
            weights,
            enable_tag_override: self.enable_tag_override.unwrap_or_default(),
            tagged_addresses: pool.tagged_addresses(tagged),
            readiness: healths.readiness(id),
            checks: Checks::read(healths.checks(id)),
        }
    }

    /// Says whether it is this cluster's, by its ID and its mark.
    #[must_use]
    pub fn is_ours(&self, identity: &Identity) -> bool {
        let has_id = self.id.as_deref().is_some_and(|id| owner_of_id(&identity.cluster, id).is_some());
        has_id
            && self.has_meta(meta::CLUSTER, identity.cluster.as_str())
            && self.has_meta(meta::CLUSTER_UID, &identity.uid)
    }

    /// Says whether a meta pair is there.
    #[must_use]
    pub fn has_meta(&self, key: &str, value: &str) -> bool {
        self.meta.as_ref().and_then(|meta| meta.get(key)).is_some_and(|there| there == value)
    }
}

/// A port or a weight; 0 for what is missing or out of range.
fn number(value: Option<i64>) -> u16 {
    value.and_then(|value| u16::try_from(value).ok()).unwrap_or_default()
}

/// Writes what we send. All keys are strings, and so there is nothing that JSON cannot hold.
pub(super) fn to_json(body: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::health::Health;
    use crate::model::ids::{READINESS, check_id};

    fn text() -> impl Strategy<Value = Str> {
        "[ -~äé\\n\"]{0,12}".prop_map(|text| text.as_str().into())
    }

    fn tagged() -> impl Strategy<Value = TaggedAddress> {
        (text(), 1..=u16::MAX).prop_map(|(address, port)| TaggedAddress { address, port })
    }

    fn registration() -> impl Strategy<Value = Registration> {
        (
            (text(), text(), 1..=u16::MAX, proptest::collection::vec(text(), 0..4)),
            proptest::collection::btree_map(prop_oneof![text(), Just("k8s-pod".into())], text(), 0..6),
            (1..=u16::MAX, any::<u16>(), any::<bool>()),
            proptest::collection::btree_map(prop_oneof![text(), Just("wan".into())], tagged(), 0..3),
            proptest::option::of(prop_oneof![Just(Health::Passing), Just(Health::Critical)]),
        )
            .prop_map(
                |((service, address, port, tags), meta, (passing, warning, enable), tagged, readiness)| Registration {
                    service,
                    address,
                    port,
                    tags: tags.into(),
                    meta: meta.into_iter().collect(),
                    weights: Weights { passing, warning },
                    enable_tag_override: enable,
                    tagged_addresses: Arc::new(tagged),
                    readiness,
                    checks: Checks::default(),
                },
            )
    }

    /// The checks of the instance `id`.
    fn healths(readiness: Option<Health>) -> Healths {
        Healths::new(readiness.map(|readiness| Check {
            id: Some(check_id("id", READINESS)),
            status: Some(readiness.as_str().to_owned()),
            service_id: Some("id".to_owned()),
            ..Check::default()
        }))
    }

    proptest! {
        #[test]
        fn what_is_written_to_the_catalog_is_read_back_equal(wanted in registration()) {
            let written: Value = serde_json::to_value(TxnOp::service_set("n", "id", &wanted)).unwrap();
            let service: Service = serde_json::from_value(written["Service"]["Service"].clone()).unwrap();
            prop_assert_eq!(service.registration(By::Catalog, &healths(wanted.readiness), &mut Pool::default()), wanted);
        }

        #[test]
        fn what_is_written_to_an_agent_is_read_back_equal(wanted in registration()) {
            let mut written: Value = serde_json::to_value(AgentService::with_checks("id", &wanted)).unwrap();
            written["Service"] = written["Name"].take();
            for own in ["lan_ipv4", "wan_ipv4"] {
                written["TaggedAddresses"][own] = json!({ "Address": &*wanted.address, "Port": wanted.port });
            }
            let service: Service = serde_json::from_value(written).unwrap();
            prop_assert_eq!(service.registration(By::Agent, &healths(wanted.readiness), &mut Pool::default()), wanted);
        }
    }

    #[test]
    fn anything_may_be_missing_or_null() {
        let service: Service = serde_json::from_str(
            r#"{"ID":null,"Tags":null,"Meta":null,"Weights":null,"TaggedAddresses":null,"Port":-1,"New":{}}"#,
        )
        .unwrap();
        let read = service.registration(By::Agent, &Healths::default(), &mut Pool::default());
        assert_eq!((read.port, read.weights), (0, Weights::default()));
        assert!(serde_json::from_str::<NodeServices>(r#"{"Node":null,"Services":null}"#).unwrap().node.is_none());
    }

    #[test]
    fn only_what_an_agent_adds_is_taken_away() {
        let text = r#"{"Address":"10.0.0.1","Port":80,"TaggedAddresses":{
            "lan_ipv4":{"Address":"10.0.0.1","Port":80},"wan_ipv4":{"Address":"198.51.100.1","Port":80},
            "wan":{"Address":"10.0.0.1","Port":80}}}"#;
        let service: Service = serde_json::from_str(text).unwrap();
        let names = |by| {
            let read = service.registration(by, &Healths::default(), &mut Pool::default());
            read.tagged_addresses.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(By::Agent), ["wan", "wan_ipv4"]);
        assert_eq!(names(By::Catalog), ["lan_ipv4", "wan", "wan_ipv4"]);
    }
}

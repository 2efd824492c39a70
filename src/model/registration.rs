//! A registration as Consul holds it, and what we know of one that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::check::Checks;
use super::health::Health;
use super::ids::{Identity, READINESS, ResourceKey, Str, meta, owner_of_id};
use super::pairs::Pairs;

/// Identifies a registration in Consul: IDs are unique per Consul node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The Consul node.
    pub node: Str,
    /// The service instance's ID.
    pub id: Str,
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.id, self.node)
    }
}

/// One instance, as it is or should be in Consul. Parts that all instances of a resource share are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The service's name.
    pub service: Str,
    /// An IP address.
    pub address: Str,
    /// 1 to 65535.
    pub port: u16,
    /// Tags, in order.
    pub tags: Arc<[Str]>,
    /// All meta pairs, ours among them.
    pub meta: Pairs,
    /// DNS and load-balancing weights.
    pub weights: Weights,
    /// True if tags belong to whoever edits them in Consul.
    pub enable_tag_override: bool,
    /// Other addresses, by tag.
    pub tagged_addresses: Arc<BTreeMap<Str, TaggedAddress>>,
    /// The state of the readiness check; none where there is no such check.
    pub readiness: Option<Health>,
    /// The checks that Consul runs.
    pub checks: Checks,
}

impl Registration {
    /// An instance with nothing but a name and a place: no tags, no pairs, no checks.
    #[must_use]
    pub fn plain(service: &str, address: &str, port: u16) -> Self {
        Self {
            service: service.into(),
            address: address.into(),
            port,
            tags: [].into(),
            meta: Pairs::default(),
            weights: Weights::default(),
            enable_tag_override: false,
            tagged_addresses: Arc::default(),
            readiness: None,
            checks: Checks::default(),
        }
    }

    /// Says whether everything but the checks is the same. Where tags belong to Consul's users they are not compared.
    #[must_use]
    pub fn same_service(&self, other: &Self) -> bool {
        self.service == other.service
            && self.address == other.address
            && self.port == other.port
            && (self.enable_tag_override || self.tags == other.tags)
            && self.meta == other.meta
            && self.weights == other.weights
            && self.enable_tag_override == other.enable_tag_override
            && self.tagged_addresses == other.tagged_addresses
    }

    /// The names of all checks of ours.
    #[must_use]
    pub fn check_names(&self) -> BTreeSet<&str> {
        let readiness = self.readiness.map(|_| READINESS);
        self.checks.names().iter().map(|name| &**name).chain(readiness).collect()
    }

    /// Gives the registration without our mark, as Retain leaves it behind.
    #[must_use]
    pub fn disowned(&self) -> Self {
        let mut disowned = self.clone();
        for key in meta::OWNERSHIP {
            disowned.meta.remove(key);
        }
        disowned
    }
}

/// Weights in DNS SRV answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// While passing, 1 to 65535. (Consul turns a 0 into 1 for both without a word.)
    pub passing: u16,
    /// While warning, 0 to 65535.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// Another address of an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaggedAddress {
    /// An IP address or host name.
    pub address: Str,
    /// 1 to 65535.
    pub port: u16,
}

impl TaggedAddress {
    /// Says whether an agent adds it by itself to an instance at this address and port: it gives the instance's own
    /// another name or two, after its family. So there is no telling whether the author has named it.
    #[must_use]
    pub fn is_agents_own(&self, name: &str, address: &str, port: u16) -> bool {
        const NAMES: [&str; 4] = ["lan_ipv4", "lan_ipv6", "wan_ipv4", "wan_ipv6"];
        *self.address == *address && self.port == port && NAMES.contains(&name)
    }
}

/// A registration that Consul holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The registration itself.
    pub registration: Arc<Registration>,
    /// Says whose it is.
    pub ownership: Ownership,
    /// The worst of all checks of this instance, those that Consul runs included.
    pub health: Health,
    /// True if the catalog shows it. An agent may hold what its token may not write to the catalog: then it is not
    /// registered yet, whatever the agent answered.
    pub shown: bool,
}

impl Row {
    /// Says whether it is this cluster's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.ownership, Ownership::Ours(_))
    }
}

/// Says what rows of a resource are registered under: the name that they take in Consul, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameInUse {
    /// The service's name, as it is written.
    pub service: Str,
    /// The source that the spec had, as in meta `lictor-source`; none where that was edited away.
    pub source: Option<Str>,
}

impl From<&Registration> for NameInUse {
    fn from(registration: &Registration) -> Self {
        Self { service: registration.service.clone(), source: registration.meta.get(meta::SOURCE).cloned() }
    }
}

/// Says whose a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This cluster's, for this resource.
    Ours(ResourceKey),
    /// Under an ID of ours, without anyone's mark: Retain left it, or somebody made it by hand.
    Unowned,
    /// Under an ID of ours, with somebody else's mark: never touched. Holds who, for the user.
    Other(String),
}

impl Ownership {
    /// Reads off a row whose it is: ours is what has an ID of ours *and* this cluster's mark. The owner is
    /// taken from the ID, which no edit of meta by hand changes.
    ///
    /// `known` says that a row with this ID can only be ours, whatever mark was put on it since: it stands on a node
    /// that carries our mark, or this process knew it as ours before. One without any mark stays nobody's: Retain
    /// leaves such.
    #[must_use]
    pub fn of(identity: &Identity, id: &str, meta_pairs: &Pairs, known: bool) -> Self {
        let get = |key: &str| meta_pairs.get(key).map(|v| &**v);
        let marked =
            get(meta::CLUSTER) == Some(identity.cluster.as_str()) && get(meta::CLUSTER_UID) == Some(&identity.uid);
        let unmarked = [meta::CLUSTER, meta::CLUSTER_UID, meta::OWNER].iter().all(|key| get(key).is_none());
        if let (true, Some(owner)) = (marked || known && !unmarked, owner_of_id(&identity.cluster, id)) {
            return Self::Ours(owner);
        }
        if unmarked {
            return Self::Unowned;
        }
        Self::Other(format!(
            "cluster {:?} (uid {:?}), resource {:?}",
            get(meta::CLUSTER).unwrap_or_default(),
            get(meta::CLUSTER_UID).unwrap_or_default(),
            get(meta::OWNER).unwrap_or_default()
        ))
    }
}

/// The rows that Consul holds of ours, by key.
pub type Rows = BTreeMap<RowKey, Row>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::ClusterName;

    fn pairs(list: &[(&str, &str)]) -> Pairs {
        list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn ours_is_what_has_both_our_id_and_our_mark() {
        let identity = Identity { cluster: ClusterName::new("c").unwrap(), uid: "u".into() };
        let mark = [("managed-by", "lictor"), ("lictor-cluster", "c"), ("lictor-cluster-uid", "u")];
        let of = |id: &str, list: &[(&str, &str)]| Ownership::of(&identity, id, &pairs(list), false);
        assert_eq!(of("c:ns:r:s:t:1", &mark), Ownership::Ours(ResourceKey::new("ns", "r")));
        assert!(matches!(of("theirs", &mark), Ownership::Other(_)), "our mark copied onto a foreign ID");
        assert!(matches!(of("cc:ns:r:s:t:1", &mark), Ownership::Other(_)), "a longer cluster name");
        assert_eq!(of("c:ns:r:s:t:1", &[("version", "2")]), Ownership::Unowned);
        let other_uid = [("managed-by", "lictor"), ("lictor-cluster", "c"), ("lictor-cluster-uid", "v")];
        assert!(matches!(of("c:ns:r:s:t:1", &other_uid), Ownership::Other(_)), "a second cluster of our name");
    }

    #[test]
    fn what_is_known_to_be_ours_stays_ours_under_another_mark() {
        let identity = Identity { cluster: ClusterName::new("c").unwrap(), uid: "u".into() };
        let of = |id: &str, list: &[(&str, &str)]| Ownership::of(&identity, id, &pairs(list), true);
        let ours = Ownership::Ours(ResourceKey::new("ns", "r"));
        for changed in [
            &[("lictor-cluster", "c"), ("lictor-cluster-uid", "v")][..],
            &[("lictor-cluster", "d"), ("lictor-cluster-uid", "u"), ("lictor-owner", "ns/r")],
            &[("lictor-cluster-uid", "u")],
            &[("lictor-owner", "ns/r")],
        ] {
            assert_eq!(of("c:ns:r:s:t:1", changed), ours, "{changed:?}");
            assert!(matches!(of("d:ns:r:s:t:1", changed), Ownership::Other(_)), "an ID that is not of our making");
        }
        assert_eq!(of("c:ns:r:s:t:1", &[("version", "2")]), Ownership::Unowned, "what Retain leaves");
    }
}

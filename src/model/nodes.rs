//! The Consul nodes of the catalog mode: how they are called, and whose a node is.
//!
//! In: a cluster's name, the names of Kubernetes nodes, what a Consul node shows of itself. Out: names of at most 63
//! characters, and whether instances may stand on a node.

use std::collections::BTreeMap;

use super::ids::{ClusterName, Identity, Str, meta};

/// The most characters in the name of a node. A node's meta is in SRV answers, as TXT records under the node's name;
/// where that is no DNS label (RFC 1035: 63 characters), Consul sends no SRV answer at all, over TCP either
/// (`tests/e2e/names.rs`, Consul 1.22.7).
pub const NODE_NAME_MAX: usize = 63;

/// The length of the hash in a shortened name: 64 bits in hexadecimal digits.
const HASH_DIGITS: usize = 16;

/// The number of characters of a name that is too long that are kept before the hash and its hyphen.
const HEAD: usize = NODE_NAME_MAX - HASH_DIGITS - 1;

/// The number of Consul nodes that take the instances that have no node of their own. It is bounded, so that they do
/// not become thousands of nodes; it is more than one, since Consul's cost of a write grows with its node.
pub(super) const SHARDS: u32 = 64;

/// The Consul node that marks a cluster.
#[must_use]
pub fn marker_name(cluster: &ClusterName) -> Str {
    format!("lictor-{cluster}").into()
}

/// The Consul node that stands for a Kubernetes node.
#[must_use]
pub fn node_name(cluster: &ClusterName, kubernetes_node: &str) -> Str {
    shortened(&format!("{cluster}-{kubernetes_node}"))
}

/// The shard of this number.
#[must_use]
pub(super) fn shard_name(cluster: &ClusterName, number: u32) -> Str {
    shortened(&format!("{cluster}-shard-{number}"))
}

/// The number of the shard for an instance, by what it stands for.
#[must_use]
pub(super) fn shard_of(target: &str) -> u32 {
    // FNV-1a, 32 bits.
    target.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) % SHARDS
}

/// Gives the beginning of the names of all nodes of a cluster, in lower case. Others may have names that begin so too.
#[must_use]
pub fn node_prefix(cluster: &ClusterName) -> String {
    if cluster.as_str().len() < HEAD {
        return format!("{cluster}-");
    }
    // Of a longer one, no more may be left in a shortened name.
    head(cluster.as_str()).trim_end_matches('-').to_owned()
}

/// A name as it is where it fits; a longer one as its head and a hash of the whole. It is the same in every version:
/// another one would move all instances of such nodes.
fn shortened(name: &str) -> Str {
    if name.len() <= NODE_NAME_MAX {
        return name.into();
    }
    // FNV-1a, 64 bits: two names of one head that share it do not come about by chance. If they did, their instances
    // would share a node, each under an ID of its own.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let head = head(name).trim_end_matches(['-', '.']);
    format!("{head}-{hash:016x}").into()
}

fn head(name: &str) -> &str {
    let end = (0..=HEAD.min(name.len())).rev().find(|&end| name.is_char_boundary(end)).unwrap_or_default();
    &name[..end]
}

/// Says whose mark is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeMark {
    /// This cluster's, by name and uid.
    Ours,
    /// Nobody's, or what is left of ours.
    None,
    /// The mark is another cluster's.
    Others,
}

impl NodeMark {
    /// Reads it from a node's meta.
    #[must_use]
    pub fn of(identity: &Identity, pairs: Option<&BTreeMap<String, String>>) -> Self {
        let get =
            |key: &str| pairs.and_then(|pairs| pairs.get(key)).map(String::as_str).filter(|text| !text.is_empty());
        let ours = [(meta::CLUSTER, identity.cluster.as_str()), (meta::CLUSTER_UID, &*identity.uid)];
        let found = ours.map(|(key, own)| get(key).map(|there| there == own));
        match found {
            [Some(true), Some(true)] => Self::Ours,
            found if found.contains(&Some(false)) => Self::Others,
            _ => Self::None,
        }
    }
}

/// Says whose a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeOwner {
    /// The node is this cluster's.
    Ours,
    /// This cluster's, though a registration of somebody else has overwritten its mark: the mark is to be restored.
    OursUnmarked,
    /// A Consul agent's: what the agent does not know on it, the agent deletes.
    Agent,
    /// The node is somebody else's.
    Others,
}

impl NodeOwner {
    /// Decides it for a node of which the mark is known, whether a Consul agent stands behind it, and whether a row
    /// stands on it that carries this cluster's ID and mark.
    #[must_use]
    pub fn of(mark: NodeMark, has_agent: bool, has_our_rows: bool) -> Self {
        match mark {
            _ if has_agent => Self::Agent,
            NodeMark::Ours => Self::Ours,
            NodeMark::None if has_our_rows => Self::OursUnmarked,
            NodeMark::None | NodeMark::Others => Self::Others,
        }
    }

    /// Says whether instances may stand on it.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursUnmarked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    #[test]
    fn names_that_fit_stay_and_longer_ones_are_shortened() {
        let uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let aks = "aks-nodepool1-12345678-vmss000000";
        let long = "x".repeat(253);
        for (of, node, name) in [
            ("c", "n0", "c-n0"),
            ("c", "ip-10-0-0-1.ec2.internal", "c-ip-10-0-0-1.ec2.internal"),
            // 63 characters, and one more.
            (uid, "abcdefghijklmnopqrstuvwxyz", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0-abcdefghijklmnopqrstuvwxyz"),
            (uid, "abcdefghijklmnopqrstuvwxyz0", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0-abcdefghi-a2f77966d14e513d"),
            (uid, aks, "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0-aks-nodep-fba2c56763bb772c"),
            // What the head would end in is left out.
            (uid, "aks-pool-.-12345678-vmss000000", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0-aks-pool-18727adf7c47d8b8"),
        ] {
            let found = node_name(&cluster(of), node);
            assert_eq!(&*found, name, "{of} {node}");
            assert!(found.len() <= NODE_NAME_MAX);
        }
        for of in ["c", uid, &"y".repeat(63)] {
            let of = cluster(of);
            for name in [node_name(&of, &long), node_name(&of, &"é".repeat(99)), shard_name(&of, 63)] {
                assert!(name.len() <= NODE_NAME_MAX && name.starts_with(&node_prefix(&of)), "{name}");
            }
            assert_ne!(node_name(&of, &format!("{long}a")), node_name(&of, &format!("{long}b")));
        }
    }

    #[test]
    fn a_node_is_ours_by_its_mark_or_by_our_rows_where_nobody_has_marked_it() {
        use NodeMark::{None, Others, Ours};
        for (mark, has_agent, has_our_rows, owner) in [
            (Ours, false, false, NodeOwner::Ours),
            (Ours, false, true, NodeOwner::Ours),
            (None, false, true, NodeOwner::OursUnmarked),
            (None, false, false, NodeOwner::Others),
            (Others, false, true, NodeOwner::Others),
            (Others, false, false, NodeOwner::Others),
            (Ours, true, true, NodeOwner::Agent),
            (None, true, true, NodeOwner::Agent),
            (None, true, false, NodeOwner::Agent),
        ] {
            assert_eq!(NodeOwner::of(mark, has_agent, has_our_rows), owner, "{mark:?} {has_agent} {has_our_rows}");
        }
    }

    #[test]
    fn a_mark_is_ours_nobodys_or_anothers() {
        let identity = Identity { cluster: cluster("c"), uid: "u".into() };
        for (pairs, mark) in [
            (&[("lictor-cluster", "c"), ("lictor-cluster-uid", "u"), ("rack", "7")][..], NodeMark::Ours),
            (&[("lictor-cluster", "c"), ("lictor-cluster-uid", "v")], NodeMark::Others),
            (&[("lictor-cluster", "c-b"), ("lictor-cluster-uid", "u")], NodeMark::Others),
            (&[("lictor-cluster-uid", "v")], NodeMark::Others),
            (&[("lictor-cluster", "c")], NodeMark::None),
            (&[("lictor-cluster", ""), ("lictor-cluster-uid", "u")], NodeMark::None),
            (&[("managed-by", "terraform")], NodeMark::None),
            (&[], NodeMark::None),
        ] {
            let pairs: BTreeMap<String, String> =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(NodeMark::of(&identity, Some(&pairs)), mark, "{pairs:?}");
        }
        assert_eq!(NodeMark::of(&identity, Option::None), NodeMark::None);
    }
}

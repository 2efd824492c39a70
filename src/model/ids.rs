//! Who we are, whose a registration is, and how an instance is called in Consul.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// A string shared by many values: cheap to clone, compared by content.
pub type Str = Arc<str>;

/// The cluster's name as it stands in Consul IDs, node names and meta: a DNS label, so that it can neither
/// be mistaken for another part of an ID nor break a node name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Str);

/// Says why a cluster name was refused.
#[derive(Debug, thiserror::Error)]
#[error("cluster name {0:?} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'")]
pub struct BadClusterName(String);

impl ClusterName {
    /// Takes a DNS label (RFC 1123): 1 to 63 characters of `a-z0-9-`, not beginning or ending in `-`.
    pub fn new(name: &str) -> Result<Self, BadClusterName> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits =
            (1..=63).contains(&name.len()) && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-');
        if fits { Ok(Self(name.into())) } else { Err(BadClusterName(name.to_owned())) }
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says whether a text has the form of the uids that Kubernetes gives: a UUID (RFC 4122).
#[must_use]
pub fn is_uid(text: &str) -> bool {
    let fits = |(index, byte): (usize, u8)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

/// Says whether a text has the form of a pod's name: a DNS subdomain, as Kubernetes checks it (RFC 1123, 253
/// characters, its labels of any length).
#[must_use]
pub fn is_pod_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits =
        |part: &str| !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    text.len() <= 253 && text.split('.').all(fits)
}

/// Says which cluster we act for. The name may be chosen; the uid (of the namespace `kube-system`) tells two clusters
/// of one name apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// As in Consul IDs and in meta `lictor-cluster`.
    pub cluster: ClusterName,
    /// As in meta `lictor-cluster-uid`.
    pub uid: Str,
}

/// The `namespace/name` of a `ConsulService`: the owner of registrations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its Kubernetes namespace.
    pub namespace: Str,
    /// Its name in that namespace.
    pub name: Str,
}

impl ResourceKey {
    /// A key from its two parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `namespace/name` as it stands in meta `lictor-owner`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Self::new(namespace, name))
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The meta keys that mark a registration as ours.
pub mod meta {
    /// The key whose value is always `lictor`.
    pub const MANAGED_BY: &str = "managed-by";
    /// The value of [`MANAGED_BY`].
    pub const LICTOR: &str = "lictor";
    /// The cluster's name.
    pub const CLUSTER: &str = "lictor-cluster";
    /// The uid of the cluster's `kube-system` namespace.
    pub const CLUSTER_UID: &str = "lictor-cluster-uid";
    /// `namespace/name` of the `ConsulService`.
    pub const OWNER: &str = "lictor-owner";
    /// The uid of the `ConsulService`.
    pub const OWNER_UID: &str = "lictor-owner-uid";
    /// The source that the resource had the instance from, such as `service/web`: it tells what a spec registered
    /// itself from what an earlier spec did, also after a crash.
    pub const SOURCE: &str = "lictor-source";
    /// A digest of what the checks do that Consul runs against the instance, where it has any.
    pub const CHECKS: &str = "lictor-checks";
    /// The Kubernetes namespace of the instance.
    pub const NAMESPACE: &str = "k8s-namespace";
    /// The pod behind the instance, where there is one.
    pub const POD: &str = "k8s-pod";
    /// The Kubernetes node of the instance, where it is known.
    pub const NODE: &str = "k8s-node";
    /// Consul's own convention: its UI shows the Kubernetes mark for it.
    pub const EXTERNAL_SOURCE: &str = "external-source";
    /// The value of [`EXTERNAL_SOURCE`].
    pub const KUBERNETES: &str = "kubernetes";
    /// The keys that Retain takes off: with these gone, no resync of ours removes the entry.
    pub const OWNERSHIP: [&str; 7] = [MANAGED_BY, CLUSTER, CLUSTER_UID, OWNER, OWNER_UID, SOURCE, CHECKS];
}

/// The beginning of the names that Consul nodes of the previous place have here, while a move is under way.
pub const PREVIOUS: &str = "previous: ";

/// Gives the beginning of every ID of a cluster.
#[must_use]
pub fn id_prefix(cluster: &ClusterName) -> String {
    format!("{cluster}:")
}

/// Makes the IDs of the instances of one resource: `cluster:namespace:resource:consul-name:target:port`.
///
/// The target is the pod's UID, so that a recreated `StatefulSet` pod does not inherit its predecessor's
/// health (an agent keeps the status of a check whose service is registered again). The Consul name is in
/// it because a rename under one ID does not wake blocking queries on the old name; it is in lower case
/// because Consul compares IDs without case, and two IDs that differ by case would be one. What others choose in it
/// is written in printable ASCII: IDs stand in paths, and Consul answers no path with a character in it that it
/// calls unprintable.
#[derive(Debug)]
pub struct InstanceIds {
    /// All but the target and the port.
    head: String,
}

impl InstanceIds {
    /// Makes IDs for a resource of this cluster that registers under this name.
    #[must_use]
    pub fn new(cluster: &ClusterName, owner: &ResourceKey, service: &str) -> Self {
        let service = printable(&service.to_lowercase()).into_owned();
        Self { head: format!("{cluster}:{}:{}:{service}:", owner.namespace, owner.name) }
    }

    /// Gives the ID of an instance.
    #[must_use]
    pub fn id(&self, target: &str, port: u16) -> Str {
        format!("{}{}:{port}", self.head, printable(target)).into()
    }
}

/// Gives the ID of one instance, as [`InstanceIds`] makes it.
#[must_use]
pub fn instance_id(cluster: &ClusterName, owner: &ResourceKey, service: &str, target: &str, port: u16) -> Str {
    InstanceIds::new(cluster, owner, service).id(target, port)
}

/// A text as itself, but for `%` and all that is not printable ASCII: those as their bytes, such as `%c3%a9`.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c.is_ascii_graphic() && c != '%') {
        return text.into();
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_graphic() && c != '%' {
            printable.push(c);
        } else {
            let mut bytes = [0; 4];
            // Writing to a string cannot fail.
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| _ = write!(printable, "%{byte:02x}"));
        }
    }
    printable.into()
}

/// Says whose an instance of this ID is; none where the ID is not of our making.
#[must_use]
pub fn owner_of_id(cluster: &ClusterName, id: &str) -> Option<ResourceKey> {
    let mut parts = id.strip_prefix(cluster.as_str())?.strip_prefix(':')?.splitn(3, ':');
    let key = ResourceKey::new(parts.next()?, parts.next()?);
    parts.next().map(|_| key)
}

/// The name of the check that holds an instance's readiness; no other check has it.
pub const READINESS: &str = "readiness";

/// The ID of a check of an instance.
#[must_use]
pub fn check_id(instance: &str, name: &str) -> String {
    format!("{instance}:{name}")
}

/// The name of a check of an instance; none where its ID is not of our making.
#[must_use]
pub fn check_name<'a>(instance: &str, check_id: &'a str) -> Option<&'a str> {
    check_id.strip_prefix(instance)?.strip_prefix(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_called_as_kubernetes_calls_one() {
        let long = "a".repeat(253);
        for name in ["p", "web-0", "7", "a.b-c.d", &long] {
            assert!(is_pod_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", ".a", "A", "a_b", "a:b", "a b", "\u{e9}", &format!("{long}a")] {
            assert!(!is_pod_name(name), "{name}");
        }
        assert!(is_uid("0b4f2a6e-9c1d-4E3f-8a7b-5c6d7e8f9a0b"));
        for uid in [
            "",
            "u1",
            "0b4f2a6e9c1d4e3f8a7b5c6d7e8f9a0b",
            "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0",
            "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0b0",
            "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0g",
            "0b4f2a6e:9c1d:4e3f:8a7b:5c6d7e8f9a0b",
            &"x".repeat(20_000),
        ] {
            assert!(!is_uid(uid), "{uid}");
        }
    }

    #[test]
    fn cluster_names_are_dns_labels() {
        for good in ["a", "prod-1", "0", &"x".repeat(63)] {
            assert!(ClusterName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a:b", "ä", &"x".repeat(64)] {
            assert!(ClusterName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_is_printable_ascii_and_of_one_instance() {
        let cluster = ClusterName::new("c").unwrap();
        let id = |service, target| instance_id(&cluster, &ResourceKey::new("shop", "user"), service, target, 80);
        assert_eq!(&*id("User_Service", "2001:db8::1"), "c:shop:user:user_service:2001:db8::1:80");
        assert_eq!(&*id("ÜN 1%", "u\u{200b}"), "c:shop:user:%c3%bcn%201%25:u%e2%80%8b:80");
        assert_ne!(id("a b", "u"), id("a%20b", "u"));
        assert_eq!(owner_of_id(&cluster, &id("ü:b", "u")), Some(ResourceKey::new("shop", "user")));
    }

    #[test]
    fn an_owner_is_read_back_as_written() {
        let key = ResourceKey::new("shop", "user");
        assert_eq!(ResourceKey::parse(&key.to_string()), Some(key));
        for bad in ["", "shop", "/user", "shop/", "a/b/c"] {
            assert_eq!(ResourceKey::parse(bad), None, "{bad}");
        }
    }
}

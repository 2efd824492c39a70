//! What `bare` writes: the rows that Lictor registers for the load, with the same pairs and texts, so that Consul has the same work.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;

/// Stands for the uids that Lictor writes, of the cluster and of the resource.
const UID: &str = "00000000-0000-4000-8000-000000000000";

/// The address of the nodes (RFC 5737).
const NODE_ADDRESS: &str = "192.0.2.1";

/// An endpoint.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    /// The Consul node.
    pub(crate) node: String,
    kubernetes_node: String,
    zone: String,
    cluster: String,
    namespace: String,
    service: String,
    address: String,
    port: i32,
    ready: bool,
}

impl Instance {
    /// Says whether everything but the readiness is the same.
    pub(crate) fn but_for_readiness(&self, other: &Self) -> bool {
        Self { ready: other.ready, ..self.clone() } == *other
    }
}

/// The instances of a slice by their IDs.
pub(crate) fn instances(cluster: &str, slice: &EndpointSlice) -> BTreeMap<String, Instance> {
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    let service = label.cloned().unwrap_or_default();
    let port = slice.ports.iter().flatten().find_map(|port| port.port).unwrap_or_default();
    let instance = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let kubernetes_node = endpoint.node_name.clone().unwrap_or_default();
        let address = endpoint.addresses.first().cloned().unwrap_or_default();
        let id = format!("{cluster}:{namespace}:{service}:{service}:{address}:{port}");
        let instance = Instance {
            node: format!("{cluster}-{kubernetes_node}"),
            kubernetes_node,
            zone: endpoint.zone.clone().unwrap_or_default(),
            cluster: cluster.to_owned(),
            namespace: namespace.clone(),
            service: service.clone(),
            address,
            port,
            ready: endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true),
        };
        (id, instance)
    };
    slice.endpoints.iter().flatten().map(instance).collect()
}

/// The body of a transaction.
pub(crate) fn body(ops: &[Op<'_>]) -> Result<String> {
    Ok(serde_json::to_string(ops)?)
}

/// An operation of a transaction.
#[derive(Serialize)]
#[serde(rename_all_fields = "PascalCase")]
pub(crate) enum Op<'a> {
    Node { verb: &'static str, node: Node<'a> },
    Service { verb: &'static str, node: &'a str, service: Service<'a> },
    Check { verb: &'static str, check: Check<'a> },
}

impl<'a> Op<'a> {
    /// Makes the node of an instance.
    pub(crate) fn node(instance: &'a Instance) -> Self {
        let meta = BTreeMap::from([
            ("managed-by", "lictor"),
            ("lictor-cluster", &instance.cluster),
            ("lictor-cluster-uid", UID),
        ]);
        Self::Node { verb: "set", node: Node { node: &instance.node, address: NODE_ADDRESS, meta } }
    }

    /// Registers an instance.
    pub(crate) fn service(id: &'a str, instance: &'a Instance) -> Self {
        let body = Body {
            tags: ["round-0"],
            address: &instance.address,
            port: instance.port,
            meta: Meta::of(instance),
            weights: Weights { passing: 1, warning: 1 },
            enable_tag_override: false,
            tagged_addresses: BTreeMap::new(),
        };
        let service = Service { id, service: &instance.service, body: Some(body) };
        Self::Service { verb: "set", node: &instance.node, service }
    }

    /// Deletes an instance and its check.
    pub(crate) fn delete(id: &'a str, instance: &'a Instance) -> Self {
        let service = Service { id, service: &instance.service, body: None };
        Self::Service { verb: "delete", node: &instance.node, service }
    }

    /// Sets the readiness check of an instance.
    pub(crate) fn check(id: &'a str, instance: &'a Instance) -> Self {
        let (status, output) =
            if instance.ready { ("passing", "ready in Kubernetes") } else { ("critical", "not ready in Kubernetes") };
        let check = Check {
            node: &instance.node,
            id: format!("{id}:readiness"),
            name: "Kubernetes readiness",
            notes: "Whether Kubernetes considers the pod ready. Kept by Lictor.",
            kind: "kubernetes-readiness",
            status,
            output,
            service_id: id,
            service_name: &instance.service,
        };
        Self::Check { verb: "set", check }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(clippy::struct_field_names, reason = "the names are those of Consul's JSON")]
pub(crate) struct Node<'a> {
    node: &'a str,
    address: &'static str,
    meta: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(clippy::struct_field_names, reason = "the names are those of Consul's JSON")]
pub(crate) struct Service<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    body: Option<Body<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    tags: [&'static str; 1],
    address: &'a str,
    port: i32,
    meta: Meta<'a>,
    weights: Weights,
    enable_tag_override: bool,
    tagged_addresses: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
    warning: u16,
}

/// The pairs of an instance.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Meta<'a> {
    zone: &'a str,
    managed_by: &'static str,
    lictor_cluster: &'a str,
    lictor_cluster_uid: &'static str,
    lictor_owner: String,
    lictor_owner_uid: &'static str,
    lictor_source: String,
    k8s_namespace: &'a str,
    k8s_node: &'a str,
    external_source: &'static str,
}

impl<'a> Meta<'a> {
    fn of(instance: &'a Instance) -> Self {
        let Instance { namespace, service, .. } = instance;
        Self {
            zone: &instance.zone,
            managed_by: "lictor",
            lictor_cluster: &instance.cluster,
            lictor_cluster_uid: UID,
            lictor_owner: format!("{namespace}/{service}"),
            lictor_owner_uid: UID,
            lictor_source: format!("service/{service}"),
            k8s_namespace: namespace,
            k8s_node: &instance.kubernetes_node,
            external_source: "kubernetes",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Check<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    id: String,
    name: &'static str,
    notes: &'static str,
    #[serde(rename = "Type")]
    kind: &'static str,
    status: &'static str,
    output: &'static str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
}

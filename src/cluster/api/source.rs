//! Where a resource's instances come from.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// The source of the instances: exactly one of `service`, `pods` and `static`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.service), has(self.pods), has(self.static)].exists_one(x, x)")
        .message("set exactly one of service, pods, static")
)]
pub struct Source {
    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSource>,

    /// The pods of this namespace that match a label selector. No Service is needed. A pod with an address is an instance
    /// until it terminates. If no other pod is ready, a terminating pod stays while it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_selector")]
    pub pods: Option<LabelSelector>,

    /// Addresses outside the cluster, at most 256. Each is an instance. They pass, unless one of `spec.checks` fails. The
    /// administrator of Lictor sets the allowed networks (`--allow-static`); by default there are none.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "port"])
    )]
    #[x_kube(validation = schema::own_in_all())]
    pub static_addresses: Option<Vec<StaticAddress>>,
}

/// The endpoints of a Service of this namespace. An endpoint is an instance until it terminates. If no other endpoint is
/// ready, a terminating endpoint stays while it serves. The Service may be headless. It may also have no selector, if
/// somebody else writes its `EndpointSlices`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ServiceSource {
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = schema::dns_label("a Service's name"))]
    pub name: String,
}

/// Each has an address and a port, and may have tags and metadata of its own.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// An IP address that others can reach, not the name of a host.
    #[schemars(schema_with = "schema::ip_address")]
    pub address: String,

    /// The port at that address.
    #[schemars(range(min = 1))]
    pub port: u16,

    /// Tags of this instance alone, at most 8, in addition to those of the resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::own_tags")]
    pub tags: Vec<String>,

    /// Metadata of this instance alone, at most 8 pairs, in addition to that of the resource. If both have a key, this
    /// value counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::own_meta")]
    pub meta: BTreeMap<String, String>,
}

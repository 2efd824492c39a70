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

    /// The pods of this namespace that a selector matches, with no Service needed. Each that has an address is an
    /// instance until it begins to terminate. Where no other pod is ready, one that terminates stays while it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_selector")]
    pub pods: Option<LabelSelector>,

    /// Addresses of what runs elsewhere, at most 256, each of them an instance. They are there and pass, unless one of
    /// `spec.checks` finds otherwise. The administrator of Lictor says which addresses are allowed (`--allow-static`);
    /// none is by default.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "port"])
    )]
    #[x_kube(validation = schema::own_in_all())]
    pub static_addresses: Option<Vec<StaticAddress>>,
}

/// The endpoints of a Service of this namespace, each until it begins to terminate. Where no other endpoint is ready, one
/// that terminates stays while it serves. The Service may also be headless, or have no selector and hand-made
/// `EndpointSlices`.
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

    /// Tags of this instance alone, at most 8, besides those of the resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::own_tags")]
    pub tags: Vec<String>,

    /// Metadata of this instance alone, at most 8 pairs, besides that of the resource; where both have a key, this
    /// one counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::own_meta")]
    pub meta: BTreeMap<String, String>,
}

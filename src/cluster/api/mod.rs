//! `ConsulService`, the resource that users write.
//!
//! These types are the wire format, no more: what a field means is decided where it becomes the model's
//! `Spec`. The CRD in `crds/` is generated from them, so doc comments here are what `kubectl explain`
//! shows, written for users. Defaults stand both in the schema and in serde, so that a file that never saw
//! an apiserver reads the same.

mod check;
mod port;
mod schema;
mod source;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::{Check, GrpcCheck, H2PingCheck, Header, HttpCheck, Scheme, TcpCheck, TlsOptions, UdpCheck};
pub use port::PortRef;
pub use source::{ServiceSource, Source, StaticAddress};
pub use status::{CONDITION_TYPES, ConsulServiceStatus, InstanceCounts, MAX_PROBLEMS, PortInUse, Problem};

/// A service to register in Consul, with its instances and checks.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "lictor.dev",
    version = "v1alpha1",
    kind = "ConsulService",
    plural = "consulservices",
    shortname = "csvc",
    category = "lictor",
    namespaced,
    status = "ConsulServiceStatus",
    derive = "PartialEq",
    doc = "A service in Consul, kept equal to what runs in Kubernetes: each endpoint of the source is an instance \
           there, with its health. The smallest one has just a source.",
    validation = Rule::new("has(self.spec.name) || self.metadata.name != 'consul'")
        .message("the name 'consul' belongs to Consul's own servers: set spec.name to another, or rename the resource")
        .field_path(".spec.name"),
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".status.serviceName",
        description = "The service's name in Consul"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".status.instances.desired",
        description = "Instances that should be in Consul"
    ),
    printcolumn(
        name = "Registered",
        type_ = "integer",
        json_path = ".status.instances.registered",
        description = "Instances that are in Consul as they should be"
    ),
    printcolumn(
        name = "Passing",
        type_ = "integer",
        json_path = ".status.instances.passing",
        description = "Instances whose checks all pass"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether Consul holds what this resource asks for; it says nothing about the instances' health"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "Why it is ready or not",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.source.static) || !has(self.port)")
        .message("each static address has its own port: remove spec.port"),
    validation = Rule::new("!has(self.source.static) || !has(self.checks) || self.checks.all(c, !has(c.port) || type(c.port) == int)")
        .message("static addresses have no named ports: give the check's port as a number, or leave it out to use the address's own"),
    validation = Rule::new("!has(self.source.static) || !has(self.dualStack) || !self.dualStack")
        .message("dualStack is for pods, which may have two addresses: write each static address by itself"),
    validation = schema::meta_in_all()
)]
pub struct ConsulServiceSpec {
    /// Name of the service in Consul. By default the name of this resource. At most 255 printable ASCII characters; Consul
    /// compares names without case.
    ///
    /// The name is shared: virtual machines, other clusters and other resources of this namespace may register instances
    /// of the same service. Among resources of different namespaces only the first has the name, unless the administrator
    /// of Lictor allows shared names.
    ///
    /// Consul's DNS answers names with underscores. It never answers a name with a dot; the HTTP API does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("self.lowerAscii() != 'consul'")
            .message("the name 'consul' belongs to Consul's own servers: choose another"),
        validation = Rule::new("self.matches('^[ -~]*$')")
            .message("a name has only printable ASCII characters: Consul compares names in lower case, and could take two other names for the same one"),
        validation = Rule::new("self.trim() == self").message("a name neither begins nor ends with a space")
    )]
    pub name: Option<String>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    pub source: Source,

    /// The port to register: a name, or a number from 1 to 65535. For a Service, it is one of the Service's own ports, not
    /// the pod's. For pods, it is a container port by name, or any number. You may leave it out if there is only one port.
    /// If the source gets more ports later, Lictor keeps the registered port, and the condition `Resolved` asks you to set
    /// `port` (`PortNotNamed`). Not allowed with static addresses, because each of them has its own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,

    /// Tags of each instance, at most 64 of at most 1024 bytes.
    ///
    /// A tag may contain values of the instance: `${pod.name}`, `${pod.namespace}`, `${pod.uid}`,
    /// `${pod.labels['key']}`, `${pod.annotations['key']}`, `${node.name}`, `${node.zone}`, `${node.region}`, and
    /// `${ports['name']}`, the number of another named port. If a value is missing, it is empty. Lictor leaves out a tag
    /// that becomes empty. The condition `Resolved` says so. Write `$${` for a literal `${`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::tags")]
    pub tags: Vec<String>,

    /// Metadata of each instance, at most 48 pairs. A key has at most 128 letters, digits, '-' and '_'. A value has at most
    /// 512 bytes. Like tags, it may contain values of the instance, such as `${pod.labels['app.kubernetes.io/version']}`.
    /// Lictor adds its own keys, for example `k8s-namespace`, `k8s-pod` and `k8s-node`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::meta")]
    pub meta: BTreeMap<String, String>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,

    /// Let others edit the tags in Consul. Lictor then sets the tags once and does not change them back. By default Lictor
    /// restores the tags that are given here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub enable_tag_override: bool,

    /// More addresses of each instance by name, such as `wan`. Consul gives them to clients that ask for that kind of
    /// address. At most 16, the same for every instance. The administrator of Lictor sets the allowed networks
    /// (`--allow-static`); by default there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "x-kubernetes-map-type" = "atomic"))]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^[A-Za-z0-9_-]{1,128}$'))")
            .message("names of tagged addresses hold letters, digits, '-' and '_', at most 128 of them"),
        validation = Rule::new("self.all(k, !k.lowerAscii().startsWith('consul-'))")
            .message("names of tagged addresses that begin with 'consul-' belong to Consul: choose another, such as 'wan'"),
        validation = Rule::new("['lan_ipv4', 'wan_ipv4'].all(k, !(k in self) || !self[k].address.contains(':')) && \
             ['lan_ipv6', 'wan_ipv6'].all(k, !(k in self) || self[k].address.contains(':'))")
            .message("lan_ipv4 and wan_ipv4 are IPv4 addresses, lan_ipv6 and wan_ipv6 IPv6 ones: Consul takes no others")
    )]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,

    /// Also publish the other address of pods that have an IPv4 and an IPv6 address, as Consul's tagged address
    /// `lan_ipv4` or `lan_ipv6`. A Service must have both families too (`ipFamilyPolicy`), because otherwise it has no
    /// endpoints of the other family. This changes what Consul's DNS answers to SRV queries. By default an instance has
    /// only the address that comes first in Kubernetes. Not allowed with static addresses.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dual_stack: bool,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default)]
    pub readiness: Readiness,

    /// Checks that Consul runs in addition to the readiness, at most 16. By default none. They go to the instance's own
    /// address.
    ///
    /// With `--registration=agent` the agent runs them. With `--registration=catalog` consul-esm runs them, if the
    /// administrator sets `--consul-esm`: `http`, `tcp` and `grpc`, with the fields that consul-esm supports. Lictor does
    /// not accept a resource with a check that nobody would run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub checks: Vec<Check>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// The namespace of Consul Enterprise to register in. This version of Lictor accepts only `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub namespace: Option<String>,

    /// The admin partition of Consul Enterprise to register in. This version of Lictor accepts only `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub partition: Option<String>,

    /// The operator that manages this resource, if several run, each for its own Consul: the operator that runs with
    /// `--class` and this value. If it is empty or left out, the operator without a class manages the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$')")
        .message("a class holds lower-case letters, digits and '-', and neither begins nor ends with '-'"))]
    pub class: Option<String>,
}

/// The share of the traffic that an instance gets from clients that use weights, such as clients of DNS SRV. By default
/// 1 and 1, as in Consul.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Weights {
    /// Weight while all checks pass, at least 1. By default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub passing: u16,

    /// Weight while a check warns. By default 1. With 0 the instance gets no traffic while a check warns.
    #[serde(default = "one")]
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: one(), warning: one() }
    }
}

/// Each has an address and a port.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TaggedAddress {
    /// An IP address that others can reach, not the name of a host.
    #[schemars(schema_with = "schema::ip_address")]
    pub address: String,

    /// The port at that address.
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// Selects what Lictor does with a pod that is not ready. `Mirror`, the default: it is in Consul, as critical. `Deregister`: it is
/// not in Consul. `Ignore`: it is in Consul, as passing. Static addresses have no readiness.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// A pod that is not ready is critical.
    #[default]
    Mirror,
    /// A pod that is not ready is not registered.
    Deregister,
    /// A pod that is not ready is passing.
    Ignore,
}

/// Selects what happens to the instances when you delete this resource. `Deregister`, the default: Lictor deregisters them.
/// `Retain`: they stay as they are, without Lictor's mark. A new resource of the same name manages them again.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Lictor deregisters the instances.
    #[default]
    Deregister,
    /// The instances stay, without Lictor's mark.
    Retain,
}

/// The `CustomResourceDefinition` of [`ConsulService`].
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut crd = ConsulService::crd();
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut());
        root.into_iter().for_each(schema::tidy);
    }
    crd
}

/// [`crd`] as the YAML file that is applied to a cluster: the same text each time.
#[must_use]
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "no input reaches it: the CRD is a constant, and a test writes it out"
)]
pub fn crd_yaml() -> String {
    let mut crd = serde_json::to_value(crd()).expect("the CRD is JSON");
    schema::whole_numbers(&mut crd);
    let yaml = serde_saphyr::to_string(&crd).expect("JSON is YAML");
    format!("# generated by `lictor crd`; do not edit\n{yaml}")
}

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests;

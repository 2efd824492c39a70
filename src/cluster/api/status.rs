//! What Lictor says back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DeletionPolicy, PortRef, port, schema};

/// Most problems that a status lists: it stays small however many instances there are.
pub const MAX_PROBLEMS: usize = 10;

/// The conditions of a `ConsulService`, in the order in which a status lists them. `Ready` is the other
/// three together.
pub const CONDITION_TYPES: [&str; 4] = ["Ready", "Accepted", "Resolved", "Registered"];

/// The state of this resource, as Lictor sees it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConsulServiceStatus {
    /// The generation of the resource that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Name of the service in Consul.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_in_use: Option<PortInUse>,

    /// `Retain` if the instances stay in Consul when you delete this resource: the last `spec.deletionPolicy` that Lictor
    /// allowed. Left out if Lictor deregisters them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::deletion_in_force")]
    pub deletion_policy: Option<DeletionPolicy>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<InstanceCounts>,

    /// Problems of single instances, at most ten of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub problems: Vec<Problem>,

    /// `Accepted`: the spec is valid and allowed. `Resolved`: the source was found; it may have no endpoints.
    /// `Registered`: Consul has every desired instance. `Ready`: all three are true. `Ready` says nothing about the health
    /// of the instances; `instances` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The port that Lictor registers if `spec.port` is left out. Lictor keeps it when the source gets more ports.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct PortInUse {
    /// The source that has it, such as `service/web`.
    pub source: String,

    /// Its name, or its number where it has no name.
    #[schemars(schema_with = "port::of_status")]
    pub port: PortRef,
}

/// Counts of the instances. The results of checks that Consul runs are those of the last resync.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    /// Instances that should be in Consul.
    #[serde(default)]
    pub desired: u32,

    /// Desired instances that are in Consul with the desired content.
    #[serde(default)]
    pub registered: u32,

    /// Registered instances whose checks all pass.
    #[serde(default)]
    pub passing: u32,

    /// Registered instances of which a check warns and none is critical.
    #[serde(default)]
    pub warning: u32,

    /// Registered instances of which a check is critical.
    #[serde(default)]
    pub critical: u32,
}

/// Each is about one instance.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The instance's ID in Consul.
    pub instance: String,

    /// The kind of problem, in one word.
    pub reason: String,

    /// A sentence that says what happened, with Consul's own error if there is one.
    pub message: String,
}

//! From a `ConsulService` as it stands on the wire to the model's spec, or to the reason why it cannot be
//! acted on.
//!
//! The schema refuses most of what is wrong before it gets here. What is checked again is what the schema
//! cannot see (bytes, the administrator's rules) and what would do harm if an older CRD let it through.

mod checks;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::api::{self, ConsulServiceSpec, ConsulServiceStatus};
use super::decode::ResourceObject;
use super::event::{ObjectKey, SeenResource};
use super::status;
use crate::model::names::{Str, meta};
use crate::model::registration::{TaggedAddress, Weights};
use crate::model::resource::{DeletionPolicy, PortRef, Readiness, Refusal, Resource, Source, Spec, finalizer};

/// What the administrator says about resources.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The class of the resources that are ours; none and empty is the default class.
    pub class: Option<String>,
    /// Where addresses may be that a resource's author chooses.
    pub allow_static: Vec<IpNet>,
    /// Whether something runs the checks of registrations: an agent does, the catalog alone does not.
    pub runs_checks: bool,
}

/// Consul's limit for a name, in bytes.
const MAX_NAME: usize = 255;
/// Consul's limit for a value of metadata, in bytes.
const MAX_META_VALUE: usize = 512;
/// Consul's limit for an instance's pairs of metadata.
const MAX_META_PAIRS: usize = 64;

/// The pairs that are ours to set.
const OUR_META: [&str; 11] = [
    meta::MANAGED_BY,
    meta::CLUSTER,
    meta::CLUSTER_UID,
    meta::OWNER,
    meta::OWNER_UID,
    meta::SOURCE,
    meta::CHECKS,
    meta::NAMESPACE,
    meta::POD,
    meta::NODE,
    meta::EXTERNAL_SOURCE,
];

/// Reads a resource. Nothing of the spec is read of one of another class: it is not ours to judge.
#[must_use]
pub fn resource(key: ObjectKey, object: ResourceObject, rules: &Rules) -> SeenResource {
    let ResourceObject { metadata, spec, status } = object;
    let our_class = class(rules.class.as_deref());
    let ours = class(spec.get("class").and_then(Value::as_str)) == our_class;
    let deletion = match spec.get("deletionPolicy").and_then(Value::as_str) {
        None | Some("Deregister") => Some(DeletionPolicy::Deregister),
        Some("Retain") => Some(DeletionPolicy::Retain),
        Some(_) => None,
    };
    let spec = match serde_json::from_value::<ConsulServiceSpec>(spec) {
        _ if !ours => refuse("OtherClass", "another class: not ours"),
        Ok(spec) => self::spec(spec, &key.name, rules).map(Arc::new),
        Err(error) => refuse("Undecodable", format!("this version of Lictor cannot read the spec: {error}")),
    };
    // A status that cannot be read is one that we replace.
    let status = serde_json::from_value::<Option<ConsulServiceStatus>>(status).unwrap_or_default();
    let (status, since) = status::read(status.unwrap_or_default());
    let resource = Resource {
        key,
        uid: metadata.uid.unwrap_or_default().into(),
        generation: metadata.generation.unwrap_or_default(),
        resource_version: metadata.resource_version.unwrap_or_default().into(),
        finalizers: metadata.finalizers.unwrap_or_default().into_iter().map(Str::from).collect(),
        deleting: metadata.deletion_timestamp.is_some(),
        ours,
        finalizer: finalizer(our_class),
        deletion,
        spec,
        status: Arc::new(status),
    };
    SeenResource { resource, since }
}

fn class(name: Option<&str>) -> &str {
    name.unwrap_or_default()
}

fn refuse<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Refusal> {
    refuse("Invalid", message)
}

fn not_supported<T>(what: &str) -> Result<T, Refusal> {
    refuse("NotSupported", format!("{what}: not supported by this version of Lictor"))
}

/// The spec of the resource `name`, in the model's own types.
fn spec(spec: ConsulServiceSpec, name: &str, rules: &Rules) -> Result<Spec, Refusal> {
    Ok(Spec {
        service: service_name(spec.name.as_deref().unwrap_or(name))?,
        source: source(spec.source)?,
        port: spec.port.map(port).transpose()?,
        tags: tags(&spec.tags)?,
        meta: pairs(&spec.meta)?,
        weights: weights(spec.weights.unwrap_or_default())?,
        tagged_addresses: tagged_addresses(&spec.tagged_addresses, rules)?,
        enable_tag_override: spec.enable_tag_override,
        readiness: match spec.readiness {
            api::Readiness::Mirror => Readiness::Mirror,
            api::Readiness::Deregister => Readiness::Deregister,
            api::Readiness::Ignore => Readiness::Ignore,
        },
        checks: checks::checks(spec.checks, rules)?,
    })
}

fn service_name(name: &str) -> Result<Str, Refusal> {
    if name.is_empty() || name.len() > MAX_NAME {
        return invalid(format!("the name in Consul has {} bytes: it must have 1 to {MAX_NAME}", name.len()));
    }
    if name.chars().any(char::is_control) || name.trim() != name {
        return invalid(format!(
            "the name in Consul, {name:?}, holds a control character, or begins or ends with a space"
        ));
    }
    // A token without any rights to it may register into this one: Consul's transactions do not ask about it.
    if name.eq_ignore_ascii_case("consul") {
        return invalid(format!("the name {name:?} belongs to Consul's own servers: set spec.name to another"));
    }
    Ok(name.into())
}

fn source(source: api::Source) -> Result<Source, Refusal> {
    match source {
        api::Source { service: Some(service), pods: None, static_addresses: None } => {
            Ok(Source::Service { name: service.name.into() })
        }
        api::Source { service: None, pods: Some(_), static_addresses: None } => not_supported("spec.source.pods"),
        api::Source { service: None, pods: None, static_addresses: Some(_) } => not_supported("spec.source.static"),
        _ => invalid("spec.source: set exactly one of service, pods, static"),
    }
}

fn port(port: api::PortRef) -> Result<PortRef, Refusal> {
    match port {
        api::PortRef::Number(0) => invalid("spec.port: a port number is from 1 to 65535"),
        api::PortRef::Number(number) => Ok(PortRef::Number(number)),
        api::PortRef::Name(name) => Ok(PortRef::Name(name.into())),
    }
}

fn tags(tags: &[String]) -> Result<Arc<[Str]>, Refusal> {
    match tags.iter().find(|tag| is_template(tag)) {
        Some(tag) => not_supported(&format!("the template in tag {tag:?}")),
        None => Ok(tags.iter().map(|tag| Str::from(&**tag)).collect()),
    }
}

fn pairs(author: &BTreeMap<String, String>) -> Result<BTreeMap<Str, Str>, Refusal> {
    let most = MAX_META_PAIRS - OUR_META.len();
    if author.len() > most {
        return invalid(format!("spec.meta has {} pairs: Consul and Lictor's own leave room for {most}", author.len()));
    }
    for (key, value) in author {
        if is_reserved(key) {
            return invalid(format!(
                "spec.meta has the key {key:?}, which Consul or Lictor itself sets: choose another"
            ));
        }
        if value.len() > MAX_META_VALUE {
            return invalid(format!(
                "spec.meta: the value of {key:?} has {} bytes: at most {MAX_META_VALUE}",
                value.len()
            ));
        }
        if is_template(value) {
            return not_supported(&format!("the template in spec.meta, key {key:?}"));
        }
    }
    Ok(author.iter().map(|(key, value)| (Str::from(&**key), Str::from(&**value))).collect())
}

fn is_reserved(key: &str) -> bool {
    key.starts_with("consul-") || key.starts_with("lictor-") || OUR_META.contains(&key)
}

fn is_template(text: &str) -> bool {
    text.contains("${")
}

fn weights(weights: api::Weights) -> Result<Weights, Refusal> {
    match weights {
        api::Weights { passing: 0, .. } => {
            invalid("spec.weights.passing: at least 1; Consul turns 0 into 1 for both weights")
        }
        api::Weights { passing, warning } => Ok(Weights { passing, warning }),
    }
}

type TaggedAddresses = Arc<BTreeMap<Str, TaggedAddress>>;

fn tagged_addresses(author: &BTreeMap<String, api::TaggedAddress>, rules: &Rules) -> Result<TaggedAddresses, Refusal> {
    let mut tagged = BTreeMap::new();
    for (tag, given) in author {
        let field = format!("spec.taggedAddresses.{tag}");
        if tag.to_ascii_lowercase().starts_with("consul-") {
            return invalid(format!("{field}: names that begin with 'consul-' belong to Consul: choose another"));
        }
        if given.port == 0 {
            return invalid(format!("{field}.port: a port number is from 1 to 65535"));
        }
        let address = allowed(&format!("{field}.address"), &given.address, rules)?;
        tagged.insert(tag.as_str().into(), TaggedAddress { address: address.to_string().into(), port: given.port });
    }
    Ok(Arc::new(tagged))
}

/// An address that the author of a resource chose, if the administrator lets them.
fn allowed(field: &str, address: &str, rules: &Rules) -> Result<IpAddr, Refusal> {
    let Ok(address) = address.parse::<IpAddr>() else {
        return invalid(format!("{field}: {address:?} is not an IP address"));
    };
    if is_nobodys(address.to_canonical()) {
        let message = format!(
            "{field}: {address} is a loopback, link-local, multicast or unspecified address: others cannot reach it"
        );
        return refuse("NotAllowed", message);
    }
    if !rules.allow_static.iter().any(|net| net.contains(&address)) {
        let message = format!(
            "{field}: {address} is not in a range that is allowed: ask the administrator of Lictor to add one with --allow-static"
        );
        return refuse("NotAllowed", message);
    }
    Ok(address)
}

/// Whether an address means another host to each who uses it, or none.
fn is_nobodys(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

#[cfg(test)]
mod tests;

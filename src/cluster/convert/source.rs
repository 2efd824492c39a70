//! Where instances come from, and the addresses that a resource's author chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::{invalid, pairs, refuse, tags};
use crate::cluster::api;
use crate::model::address::forbidden;
use crate::model::ids::Str;
use crate::model::policy::NOT_ALLOWED;
use crate::model::reasons::Refusal;
use crate::model::registration::TaggedAddress;
use crate::model::resource::{PerAddress, Source, StaticAddress};
use crate::model::selector::{Requirement, Selector};

pub(super) fn source(source: api::Source) -> Result<Source, Refusal> {
    match source {
        api::Source { service: Some(service), pods: None, static_addresses: None } => {
            Ok(Source::Service { name: service.name.into() })
        }
        api::Source { service: None, pods: Some(selector), static_addresses: None } => {
            Ok(Source::Pods { selector: self::selector(selector)? })
        }
        api::Source { service: None, pods: None, static_addresses: Some(given) } => {
            Ok(Source::Static { addresses: static_addresses(given)? })
        }
        _ => invalid("spec.source: set exactly one of service, pods, static"),
    }
}

fn selector(given: LabelSelector) -> Result<Selector, Refusal> {
    let labels = given.match_labels.unwrap_or_default().into_iter();
    let labels = labels.map(|(key, value)| Ok(Requirement::In(key.into(), [value.into()].into())));
    let expressions = given.match_expressions.unwrap_or_default().into_iter().map(requirement);
    let requirements: Vec<_> = labels.chain(expressions).collect::<Result<_, Refusal>>()?;
    if requirements.is_empty() {
        return invalid("spec.source.pods: an empty selector would match every pod of the namespace");
    }
    Ok(Selector(requirements))
}

fn requirement(given: LabelSelectorRequirement) -> Result<Requirement, Refusal> {
    let LabelSelectorRequirement { key, operator, values } = given;
    let values: BTreeSet<Str> = values.unwrap_or_default().into_iter().map(Str::from).collect();
    match (operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key.into(), values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key.into(), values)),
        ("Exists", true) => Ok(Requirement::Exists(key.into())),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key.into())),
        _ => invalid(format!(
            "spec.source.pods.matchExpressions: {key} {operator}: In and NotIn need values, Exists and DoesNotExist take none"
        )),
    }
}

fn static_addresses(given: Vec<api::StaticAddress>) -> Result<Vec<StaticAddress>, Refusal> {
    let mut seen = BTreeSet::new();
    given
        .into_iter()
        .map(|given| {
            let field = "spec.source.static";
            let port = port(field, given.port)?;
            let address = address(field, &given.address)?;
            if !seen.insert((address, port)) {
                return invalid(format!("{field}: {address} port {port} is given twice"));
            }
            let own = PerAddress { tags: tags(field, &given.tags)?, meta: pairs(field, &given.meta)? };
            Ok(StaticAddress { address, port, own: Arc::new(own) })
        })
        .collect()
}

pub(super) fn tagged_addresses(
    author: &BTreeMap<String, api::TaggedAddress>,
) -> Result<BTreeMap<Str, TaggedAddress>, Refusal> {
    let mut tagged = BTreeMap::new();
    for (tag, given) in author {
        let field = format!("spec.taggedAddresses.{tag}");
        if tag.to_ascii_lowercase().starts_with("consul-") {
            return invalid(format!("{field}: names that begin with 'consul-' belong to Consul: choose another"));
        }
        let port = port(&field, given.port)?;
        let address = address(&field, &given.address)?;
        // An agent refuses such a registration.
        if let Some((_, family)) = OF_ONE_FAMILY.iter().find(|(name, v4)| name == tag && *v4 != address.is_ipv4()) {
            let family = if *family { "IPv4" } else { "IPv6" };
            return invalid(format!(
                "{field}: {address} is no {family} address: Consul takes no other under this name"
            ));
        }
        tagged.insert(tag.as_str().into(), TaggedAddress { address: address.to_string().into(), port });
    }
    Ok(tagged)
}

fn port(field: &str, port: u16) -> Result<u16, Refusal> {
    if port == 0 { invalid(format!("{field}: a port number is from 1 to 65535")) } else { Ok(port) }
}

/// Names of tagged addresses that Consul keeps to one family, and whether that is IPv4.
const OF_ONE_FAMILY: [(&str, bool); 4] =
    [("lan_ipv4", true), ("wan_ipv4", true), ("lan_ipv6", false), ("wan_ipv6", false)];

/// An address that the author of a resource chose. Whether it is in a network that the administrator allows, the policy
/// tells.
fn address(field: &str, address: &str) -> Result<IpAddr, Refusal> {
    let Ok(address) = address.parse::<IpAddr>() else {
        return invalid(format!("{field}: {address:?} is not an IP address"));
    };
    // An IPv4 address that is written as IPv6 is that very address.
    let address = address.to_canonical();
    match forbidden(address) {
        Some(why) => refuse(NOT_ALLOWED, format!("{field}: {address} {why}")),
        None => Ok(address),
    }
}

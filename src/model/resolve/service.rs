//! The endpoints of a Service: its slices, the port of each, one instance per endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Found, Hold, Instance, Resolution, Wanted, text, unresolved};
use crate::model::check::CheckSpec;
use crate::model::facts::{Endpoint, Facts, Family, Pod, Service, Slice};
use crate::model::names::Str;
use crate::model::reasons::{ProblemReason, Unresolved};
use crate::model::resource::{PortRef, Source, Spec};

/// Resolves the Service `name`.
///
/// Where it does not exist, what was registered from that very Service goes, since its endpoints are gone with
/// it; what an earlier spec registered from another one stays, since this one may simply be mistyped.
pub(super) fn resolve(name: &str, spec: &Spec, facts: &impl Facts) -> Resolution {
    let gone = |reason, message| Resolution {
        instances: Vec::new(),
        left_out: Vec::new(),
        unresolved: Some(Unresolved { reason, message }),
        hold: Hold::OtherSources(Source::Service { name: name.into() }.to_string().into()),
    };
    let Some(service) = facts.service(name) else {
        return gone("ServiceNotFound", format!("Service {name:?} does not exist in this namespace"));
    };
    if service.external_name {
        let message = format!("Service {name:?} is of type ExternalName, which has no endpoints to register");
        return gone("ExternalName", message);
    }
    let slices = facts.slices(name).filter(|s| s.family != Family::Fqdn);
    let primary = slices.clone().filter(|s| service.family.is_none_or(|family| s.family == family));
    let unresolved = |why| unresolved(why, living(primary.clone()).map(|e| text(e.address)).collect());
    let port_name = match port_name(name, spec.port.as_ref(), service) {
        Ok(port_name) => port_name,
        Err(error) => return unresolved(error),
    };
    let check_ports = match check_ports(name, &spec.checks, service) {
        Ok(check_ports) => check_ports,
        Err(error) => return unresolved(error),
    };
    let others = if spec.dual_stack { other_addresses(slices.clone(), service.family) } else { BTreeMap::new() };
    let wanted = Wanted::by(spec);
    let mut found = Found::default();
    for slice in primary.clone() {
        let number_of = |name: &Str| slice.ports.iter().find(|p| p.name == *name).map(|p| p.number);
        let number = number_of(&port_name);
        let targets: Vec<Option<u16>> = check_ports
            .iter()
            .map(|port| match port {
                CheckPort::Own => number,
                CheckPort::Named(name) => number_of(name),
                CheckPort::Number(number) => Some(*number),
            })
            .collect();
        for endpoint in slice.endpoints.iter().filter(|e| !e.terminating) {
            let called = || endpoint.pod.as_ref().map_or_else(|| endpoint.address.to_string(), |p| p.name.to_string());
            let Some(port) = number else {
                found.leave_out_without_port(called(), &format!("{port_name:?}"));
                continue;
            };
            if spec.limits.verify_endpoints && !is_verified(endpoint, facts) {
                let message = format!("no pod of this namespace has the address {}", endpoint.address);
                found.leave_out(called(), ProblemReason::NotVerified, message);
                continue;
            }
            let pod = endpoint.pod.as_ref().and_then(|of| facts.pod(&of.name).filter(|pod| pod.uid == of.uid));
            if wanted.of_pod && endpoint.pod.is_some() && !pod.is_some_and(|pod| wanted.knows(pod)) {
                found.held.insert(text(endpoint.address));
                let message = "its pod, of which tags or meta hold values, has not been seen yet".to_owned();
                found.leave_out(called(), ProblemReason::PodNotSeen, message);
                continue;
            }
            let (reference, node) = (endpoint.pod.as_ref(), endpoint.node.as_ref());
            found.unite(Instance {
                address: endpoint.address,
                port,
                other_address: reference.and_then(|pod| others.get(&pod.uid).copied()).filter(|other| {
                    !spec.limits.verify_endpoints || pod.is_some_and(|pod| pod.addresses.contains(other))
                }),
                ready: endpoint.ready,
                node: endpoint.node.clone(),
                pod: endpoint.pod.clone(),
                check_ports: targets.clone(),
                values: wanted.values(reference, pod, node, number_of, facts),
                own: None,
            });
        }
    }
    if found.instances.is_empty() && found.without_port > 0 {
        let endpoints = found.without_port;
        return unresolved(Unresolved {
            reason: "PortNotFound",
            message: format!("none of the {endpoints} endpoints of Service {name:?} has its port {port_name:?}"),
        });
    }
    if found.instances.is_empty() && facts.slices(name).any(|s| s.family == Family::Fqdn) {
        let message = format!("Service {name:?} has endpoint slices of host names (FQDN), which are not registered");
        return unresolved(Unresolved { reason: "FQDNSlices", message });
    }
    found.resolution()
}

/// Whether there is a pod behind an endpoint: the one that it names or, where it names none, any.
fn is_verified(endpoint: &Endpoint, facts: &impl Facts) -> bool {
    match &endpoint.pod {
        Some(of) => {
            let is_at = |pod: &Pod| pod.uid == of.uid && pod.addresses.contains(&endpoint.address);
            facts.pod(&of.name).is_some_and(is_at)
        }
        None => facts.has_pod_at(endpoint.address),
    }
}

/// The addresses of pods that are not of the Service's primary family.
fn other_addresses<'a>(slices: impl Iterator<Item = &'a Slice>, primary: Option<Family>) -> BTreeMap<Str, IpAddr> {
    let others = slices.filter(|slice| primary.is_some_and(|primary| slice.family != primary));
    let endpoints = others.flat_map(|slice| &slice.endpoints).filter(|endpoint| !endpoint.terminating);
    endpoints.filter_map(|endpoint| Some((endpoint.pod.as_ref()?.uid.clone(), endpoint.address))).collect()
}

/// The name of the Service's port that `port` picks.
fn port_name(service_name: &str, port: Option<&PortRef>, service: &Service) -> Result<Str, Unresolved> {
    let has = || {
        let list: Vec<String> = service
            .ports
            .iter()
            .map(|p| if p.name.is_empty() { p.number.to_string() } else { format!("{} ({})", p.number, p.name) })
            .collect();
        if list.is_empty() { "none".to_owned() } else { list.join(", ") }
    };
    let found = match port {
        Some(PortRef::Name(name)) => service.ports.iter().find(|p| p.name == *name),
        Some(PortRef::Number(number)) => service.ports.iter().find(|p| p.number == *number),
        None => match &service.ports[..] {
            [only] => Some(only),
            _ => None,
        },
    };
    found.map(|p| p.name.clone()).ok_or_else(|| {
        let asked = match port {
            Some(PortRef::Name(name)) => format!("has no port named {name:?}"),
            Some(PortRef::Number(number)) => format!("has no port {number} (the Service's own number, not the pod's)"),
            None if service.ports.is_empty() => "has no ports".to_owned(),
            None => "has several ports: set spec.port to one of them".to_owned(),
        };
        Unresolved {
            reason: "PortNotFound",
            message: format!("Service {service_name:?} {asked}; its ports: {}", has()),
        }
    })
}

/// Where a check goes.
enum CheckPort {
    /// To the instance's own port.
    Own,
    /// To the port behind a name of the Service's.
    Named(Str),
    /// To this port of the instance.
    Number(u16),
}

fn check_ports(service_name: &str, checks: &[CheckSpec], service: &Service) -> Result<Vec<CheckPort>, Unresolved> {
    let of = |check: &CheckSpec| match &check.port {
        None => Ok(CheckPort::Own),
        Some(PortRef::Number(number)) => Ok(CheckPort::Number(*number)),
        Some(by_name @ PortRef::Name(_)) => {
            let found = port_name(service_name, Some(by_name), service);
            found.map(CheckPort::Named).map_err(|error| Unresolved {
                message: format!("check {:?}: {}", check.check.name, error.message),
                ..error
            })
        }
    };
    checks.iter().map(of).collect()
}

/// All endpoints that stay.
fn living<'a>(slices: impl Iterator<Item = &'a Slice>) -> impl Iterator<Item = &'a Endpoint> {
    slices.flat_map(|s| &s.endpoints).filter(|e| !e.terminating)
}

//! The endpoints of a Service: its slices, the port of each, one instance per endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::endpoints::{Endpoints, Listed};
use super::families;
use super::ports::{CheckPort, PortKey, check_ports, not_named, port};
use super::{Before, Found, Hold, Instance, Resolution, Wanted, before, text, unresolved};
use crate::model::facts::{Endpoint, Facts, Pod};
use crate::model::ids::Str;
use crate::model::reasons::{ProblemReason, Unresolved};
use crate::model::registration::Registration;
use crate::model::resource::Spec;

/// Resolves the Service `name`.
///
/// Where it does not exist, what was registered from that very Service goes, since its endpoints are gone with
/// it; what an earlier spec registered from another one stays, since this one may simply be mistyped.
pub(super) fn resolve<'a>(
    name: &str,
    spec: &Spec,
    facts: &impl Facts,
    before: &Before<'a, impl Iterator<Item = &'a Registration> + Clone>,
) -> Resolution {
    let gone = |reason, message| Resolution {
        instances: Vec::new(),
        left_out: Vec::new(),
        remarks: Vec::new(),
        unresolved: Some(Unresolved { reason, message }),
        hold: Hold::OtherSources(spec.source.to_string().into()),
        port_in_use: None,
    };
    let Some(service) = facts.service(name) else {
        return gone("ServiceNotFound", format!("Service {name:?} does not exist in this namespace"));
    };
    if service.external_name {
        let message = format!("Service {name:?} is of type ExternalName, which has no endpoints to register");
        return gone("ExternalName", message);
    }
    let choice = families::choose(facts.slices(name), service);
    // What has no pod is not to be held, where endpoints need one.
    let is_real = |endpoint: &&Endpoint| !spec.limits.verify_endpoints || is_verified(endpoint, facts);
    let held = || living(&choice.endpoints).filter(is_real).map(|endpoint| text(endpoint.address)).collect();
    let unresolved = |why| unresolved(why, held());
    let goes_on = || {
        let goes_on = before.port_of_service(&spec.source, service, facts.slices(name));
        goes_on.filter(|_| spec.port.is_none()).map(|port| (port, Some(not_named(name, service, port))))
    };
    let (port, not_named) = match port(name, spec.port.as_ref(), service) {
        Ok(port) => (port, None),
        Err(error) => match goes_on() {
            Some(found) => found,
            None => return unresolved(error),
        },
    };
    let port_key = PortKey::of(port);
    let port_in_use = spec.port.is_none().then(|| before::of_service(&spec.source, port));
    let check_ports = match check_ports(name, &spec.checks, service) {
        Ok(check_ports) => check_ports,
        Err(error) => return unresolved(error),
    };
    let port_name = &port_key.name;
    let (checks, wanted) = (&check_ports[..], Wanted::by(spec));
    let search = Search { spec, facts, port: &port_key, checks, others: &choice.others, wanted };
    let remarks = choice.remarks(service.family).into_iter().chain(not_named).collect();
    let mut found = Found { remarks, port_in_use, ..Found::default() };
    let all = || choice.endpoints.iter().copied();
    let endpoints = Endpoints::new(all().filter(|listed| !listed.endpoint.terminating));
    for listed in endpoints.iter() {
        match search.instance(&endpoints, listed) {
            Ok(Some(instance)) => found.unite(instance),
            Ok(None) => {}
            Err(lack) => lack.note(listed, port_name, &mut found),
        }
    }
    if !found.has_ready() {
        // As kube-proxy does, where nothing else is ready (`CategorizeEndpoints` in pkg/proxy/topology.go).
        let endpoints = Endpoints::new(all().filter(|listed| listed.endpoint.terminating && listed.endpoint.serving));
        let there: BTreeSet<(IpAddr, u16)> =
            found.instances.values().map(|there| (there.address, there.port)).collect();
        for listed in endpoints.iter() {
            match search.instance(&endpoints, listed) {
                // What has its address by now is another one.
                Ok(Some(instance)) if !there.contains(&(instance.address, instance.port)) => found.unite(instance),
                Err(Lack::PodNotSeen) => _ = found.held.insert(text(listed.endpoint.address)),
                Ok(_) | Err(Lack::Port | Lack::NotVerified) => {}
            }
        }
    }
    if found.instances.is_empty() && found.without_port > 0 {
        let endpoints = found.without_port;
        return unresolved(Unresolved {
            reason: "PortNotFound",
            message: format!("none of the {endpoints} endpoints of Service {name:?} has its port {port_name:?}"),
        });
    }
    if found.instances.is_empty() && choice.host_names > 0 {
        let message = format!("Service {name:?} has endpoint slices of host names (FQDN), which are not registered");
        return unresolved(Unresolved { reason: "FQDNSlices", message });
    }
    found.resolution()
}

/// Makes instances of endpoints.
struct Search<'a, F> {
    spec: &'a Spec,
    facts: &'a F,
    port: &'a PortKey,
    checks: &'a [CheckPort],
    /// The addresses of pods in the other family.
    others: &'a BTreeMap<&'a Str, IpAddr>,
    wanted: Wanted<'a>,
}

/// Says why an endpoint is no instance.
enum Lack {
    Port,
    NotVerified,
    PodNotSeen,
}

impl Lack {
    fn note(&self, of: Listed<'_>, port_name: &str, found: &mut Found) {
        let called = of.called();
        match self {
            Self::Port => {
                // It lives: its slice may be one that has not followed a change of the Service's ports yet.
                found.held.insert(text(of.endpoint.address));
                let message = format!("its EndpointSlice has no port {port_name:?}; a registered instance stays");
                found.leave_out_without_port(called, message);
            }
            Self::NotVerified => {
                let message = format!("no pod of this namespace has the address {}", of.endpoint.address);
                found.leave_out(called, ProblemReason::NotVerified, message);
            }
            Self::PodNotSeen => {
                found.held.insert(text(of.endpoint.address));
                let message = "tags or meta use values of its pod, which Lictor has not seen yet".to_owned();
                found.leave_out(called, ProblemReason::PodNotSeen, message);
            }
        }
    }
}

impl<F: Facts> Search<'_, F> {
    /// The instance that one slice makes of an endpoint; none where another slice does.
    fn instance(&self, endpoints: &Endpoints<'_>, listed: Listed<'_>) -> Result<Option<Instance>, Lack> {
        let Self { spec, facts, wanted, .. } = self;
        let endpoint = listed.endpoint;
        let is_unverified = || spec.limits.verify_endpoints && !is_verified(endpoint, *facts);
        let Some(port) = self.port.number_in(listed.slice) else {
            return match endpoints.number(listed, self.port) {
                Some(_) => Ok(None),
                // What has no pod is not to be held either.
                None if is_unverified() => Err(Lack::NotVerified),
                None => Err(Lack::Port),
            };
        };
        if endpoints.names_its_pod(listed, self.port) {
            return Ok(None);
        }
        if is_unverified() {
            return Err(Lack::NotVerified);
        }
        let pod = endpoint.pod.as_ref().and_then(|of| facts.pod(&of.name).filter(|pod| pod.uid == of.uid));
        if wanted.of_pod && endpoint.pod.is_some() && !pod.is_some_and(|pod| wanted.knows(pod)) {
            return Err(Lack::PodNotSeen);
        }
        let check_port = |asked: &CheckPort| match asked {
            CheckPort::Own => Some(port),
            CheckPort::Of(key) => endpoints.number(listed, key),
            CheckPort::Number(number) => Some(*number),
        };
        let (reference, node) = (endpoint.pod.as_ref(), endpoint.node.as_ref());
        Ok(Some(Instance {
            address: endpoint.address,
            port,
            other_address: reference
                .filter(|_| spec.dual_stack)
                .and_then(|pod| self.others.get(&pod.uid).copied())
                .filter(|other| !spec.limits.verify_endpoints || pod.is_some_and(|pod| pod.addresses.contains(other))),
            ready: if endpoint.terminating { endpoint.serving } else { endpoint.ready },
            node: endpoint.node.clone(),
            pod: endpoint.pod.clone(),
            check_ports: self.checks.iter().map(check_port).collect(),
            values: wanted.values(reference, pod, node, |name| endpoints.named(listed, name), *facts),
            own: None,
        }))
    }
}

/// Says whether there is a pod behind an endpoint: the one that it names or, where it names none, any.
fn is_verified(endpoint: &Endpoint, facts: &impl Facts) -> bool {
    match &endpoint.pod {
        Some(of) => {
            let is_at = |pod: &Pod| pod.uid == of.uid && pod.addresses.contains(&endpoint.address);
            facts.pod(&of.name).is_some_and(is_at)
        }
        None => facts.has_pod_at(endpoint.address),
    }
}

/// The endpoints that stay, and those that serve to their end where none of these is ready.
fn living<'a>(all: &[Listed<'a>]) -> impl Iterator<Item = &'a Endpoint> {
    let all = all.iter().map(|listed| listed.endpoint);
    let has_ready = all.clone().any(|endpoint| endpoint.ready && !endpoint.terminating);
    all.filter(move |endpoint| !endpoint.terminating || (endpoint.serving && !has_ready))
}

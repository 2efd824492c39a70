//! From a source's facts to instances: which slices count, which port, which endpoints, once each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::check::CheckSpec;
use super::facts::{Endpoint, Family, PodRef, Service, Slice};
use super::names::{Str, meta};
use super::registration::Registration;
use super::resource::{PortRef, Source};

/// One endpoint of a resource, resolved to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it answers.
    pub address: IpAddr,
    /// 1 to 65535.
    pub port: u16,
    /// Whether Kubernetes calls it ready.
    pub ready: bool,
    /// The Kubernetes node that it runs on.
    pub node: Option<Str>,
    /// The pod behind it.
    pub pod: Option<PodRef>,
    /// The port that each check of the spec goes to, in their order; none where this endpoint has no such port.
    pub check_ports: Vec<Option<u16>>,
}

impl Instance {
    /// What stands for this instance in its ID: the pod's uid, or the address where there is no pod.
    #[must_use]
    pub fn target(&self) -> Str {
        self.pod.as_ref().map_or_else(|| self.address.to_string().into(), |pod| pod.uid.clone())
    }
}

/// What a source came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The instances, each once, in the order of their targets.
    pub instances: Vec<Instance>,
    /// Why the source could not be resolved; none where it could, be it to nothing.
    pub unresolved: Option<Unresolved>,
    /// What of the registrations made earlier stays although `instances` does not have it.
    pub hold: Hold,
}

/// Why a source could not be resolved: `Resolved=False`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The condition's reason.
    pub reason: &'static str,
    /// What is missing, and what is there instead.
    pub message: String,
}

/// Registrations that stay until the new state is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// None: the instances are the whole truth.
    Nothing,
    /// Those that came from another source than this one: an earlier spec registered them, and nothing is
    /// known of this spec's source. Those of this very source went with it.
    OtherSources(Str),
    /// Those at these addresses: the endpoint lives, only how to register it is not known.
    Addresses(BTreeSet<Str>),
}

impl Hold {
    /// Whether a registration stays.
    #[must_use]
    pub fn holds(&self, registration: &Registration) -> bool {
        match self {
            Self::Nothing => false,
            Self::OtherSources(source) => registration.meta.get(meta::SOURCE) != Some(source),
            Self::Addresses(addresses) => addresses.contains(&registration.address),
        }
    }
}

/// Resolves the Service `name`.
///
/// `service` is none where it does not exist. What was registered from that very Service goes then, since its
/// endpoints are gone with it; what an earlier spec registered from another one stays, since this one may
/// simply be mistyped.
pub fn resolve_service<'a>(
    name: &str,
    port: Option<&PortRef>,
    checks: &[CheckSpec],
    service: Option<&Service>,
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Resolution {
    let gone = |reason, message| Resolution {
        instances: Vec::new(),
        unresolved: Some(Unresolved { reason, message }),
        hold: Hold::OtherSources(Source::Service { name: name.into() }.to_string().into()),
    };
    let Some(service) = service else {
        return gone("ServiceNotFound", format!("Service {name:?} does not exist in this namespace"));
    };
    if service.external_name {
        let message = format!("Service {name:?} is of type ExternalName, which has no endpoints to register");
        return gone("ExternalName", message);
    }
    let slices = slices.filter(|s| service.family.is_none_or(|family| s.family == family));
    let unresolved = |unresolved| Resolution {
        instances: Vec::new(),
        unresolved: Some(unresolved),
        hold: Hold::Addresses(living(slices.clone()).map(|e| Str::from(e.address.to_string())).collect()),
    };
    let port_name = match port_name(name, port, service) {
        Ok(port_name) => port_name,
        Err(error) => return unresolved(error),
    };
    let check_ports = match check_ports(name, checks, service) {
        Ok(check_ports) => check_ports,
        Err(error) => return unresolved(error),
    };
    let (mut instances, mut without_port) = (BTreeMap::new(), 0_usize);
    for slice in slices.clone().filter(|s| s.family != Family::Fqdn) {
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
            let Some(port) = number else {
                without_port += 1;
                continue;
            };
            unite(&mut instances, endpoint, port, &targets);
        }
    }
    if instances.is_empty() && without_port > 0 {
        return unresolved(Unresolved {
            reason: "PortNotFound",
            message: format!("none of the {without_port} endpoints of Service {name:?} has its port {port_name:?}"),
        });
    }
    if slices.clone().any(|s| s.family == Family::Fqdn) && instances.is_empty() {
        let message = format!("Service {name:?} has endpoint slices of host names (FQDN), which are not registered");
        return unresolved(Unresolved { reason: "FQDNSlices", message });
    }
    Resolution { instances: instances.into_values().collect(), unresolved: None, hold: Hold::Nothing }
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

/// Adds an endpoint, or joins it with its copy of another slice: while endpoints move between slices they
/// stand in both, and the newer one says ready first.
fn unite(instances: &mut BTreeMap<(Str, u16), Instance>, endpoint: &Endpoint, port: u16, check_ports: &[Option<u16>]) {
    let instance = Instance {
        address: endpoint.address,
        port,
        ready: endpoint.ready,
        node: endpoint.node.clone(),
        pod: endpoint.pod.clone(),
        check_ports: check_ports.to_vec(),
    };
    instances.entry((instance.target(), port)).and_modify(|known| known.ready |= instance.ready).or_insert(instance);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::{ServicePort, SlicePort};

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 0, 0, last]),
            ready: true,
            terminating: false,
            node: None,
            pod: Some(PodRef { name: format!("p{last}").into(), uid: format!("u{last}").into() }),
        }
    }

    fn slice(port: (&str, u16), endpoints: Vec<Endpoint>) -> Slice {
        Slice {
            service: "web".into(),
            family: Family::V4,
            ports: vec![SlicePort { name: port.0.into(), number: port.1 }],
            endpoints,
        }
    }

    fn service(ports: &[(&str, u16)]) -> Service {
        let ports = ports.iter().map(|(name, number)| ServicePort { name: (*name).into(), number: *number }).collect();
        Service { family: Some(Family::V4), external_name: false, ports }
    }

    fn resolve(port: Option<&PortRef>, service: Option<&Service>, slices: &[Slice]) -> Resolution {
        resolve_service("web", port, &[], service, slices.iter())
    }

    fn found(resolution: &Resolution) -> Vec<(String, u16, bool)> {
        resolution.instances.iter().map(|i| (i.target().to_string(), i.port, i.ready)).collect()
    }

    #[test]
    fn slices_are_united_and_each_endpoint_counts_once() {
        let web = service(&[("http", 80)]);
        let unready = Endpoint { ready: false, ..endpoint(2) };
        let slices = [
            slice(("http", 8080), vec![endpoint(1), unready]),
            slice(("http", 9090), vec![endpoint(3)]),
            slice(("http", 8080), vec![endpoint(2)]),
        ];
        let resolution = resolve(None, Some(&web), &slices);
        assert_eq!(resolution.unresolved, None);
        let expected = [("u1", 8080, true), ("u2", 8080, true), ("u3", 9090, true)];
        assert_eq!(found(&resolution), expected.map(|(t, p, r)| (t.to_owned(), p, r)));
    }

    #[test]
    fn a_terminating_endpoint_leaves_whatever_ready_says() {
        let web = service(&[("", 80)]);
        let leaving = Endpoint { terminating: true, ..endpoint(1) };
        let resolution = resolve(None, Some(&web), &[slice(("", 8080), vec![leaving])]);
        assert_eq!((found(&resolution), resolution.unresolved, resolution.hold), (vec![], None, Hold::Nothing));
    }

    #[test]
    fn a_port_is_found_by_name_by_the_services_number_or_alone() {
        let two = service(&[("http", 80), ("grpc", 90)]);
        let slices = [slice(("grpc", 9000), vec![endpoint(1)])];
        for port in [PortRef::Name("grpc".into()), PortRef::Number(90)] {
            assert_eq!(found(&resolve(Some(&port), Some(&two), &slices)), [("u1".to_owned(), 9000, true)]);
        }
        for port in [None, Some(PortRef::Number(9000)), Some(PortRef::Name("web".into()))] {
            let resolution = resolve(port.as_ref(), Some(&two), &slices);
            assert_eq!(resolution.unresolved.unwrap().reason, "PortNotFound");
            assert!(resolution.hold.holds(&row("10.0.0.1", "service/web")), "a living endpoint stays as it was");
            assert!(!resolution.hold.holds(&row("10.0.0.2", "service/web")), "a dead one does not");
        }
    }

    /// A registration as far as a hold looks at it.
    fn row(address: &str, source: &str) -> Registration {
        Registration {
            service: "s".into(),
            address: address.into(),
            port: 80,
            tags: [].into(),
            meta: [(meta::SOURCE.into(), source.into())].into(),
            weights: crate::model::registration::Weights::default(),
            enable_tag_override: false,
            tagged_addresses: std::sync::Arc::default(),
            readiness: None,
            checks: crate::model::check::Checks::default(),
        }
    }

    #[test]
    fn without_its_service_a_spec_keeps_what_another_one_registered() {
        let resolution = resolve(None, None, &[]);
        assert_eq!(resolution.unresolved.unwrap().reason, "ServiceNotFound");
        assert!(!resolution.hold.holds(&row("10.0.0.1", "service/web")), "went with its Service");
        assert!(resolution.hold.holds(&row("10.0.0.1", "service/other")), "the new name may be mistyped");
    }

    #[test]
    fn only_the_primary_family_counts() {
        let web = service(&[("http", 80)]);
        let six = Slice { family: Family::V6, ..slice(("http", 80), vec![endpoint(1)]) };
        assert!(found(&resolve(None, Some(&web), &[six])).is_empty());
    }
}

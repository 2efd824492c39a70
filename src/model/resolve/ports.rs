//! Which port of a Service is meant.

use crate::model::check::CheckSpec;
use crate::model::facts::{Protocol, Service, ServicePort, Slice};
use crate::model::names::Str;
use crate::model::reasons::Unresolved;
use crate::model::resource::PortRef;

/// What finds a Service's port in its slices, as kube-proxy has it (`ServicePortName` in pkg/proxy/types.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortKey {
    /// Empty where the Service has one unnamed port.
    pub(super) name: Str,
    protocol: Protocol,
}

impl PortKey {
    fn of(port: &ServicePort) -> Self {
        Self { name: port.name.clone(), protocol: port.protocol }
    }

    /// Its number in a slice.
    pub(super) fn number_in(&self, slice: &Slice) -> Option<u16> {
        let found = slice.ports.iter().find(|port| port.name == self.name && port.protocol == self.protocol);
        found.map(|port| port.number)
    }
}

/// The Service's port that `port` picks.
pub(super) fn port(service_name: &str, port: Option<&PortRef>, service: &Service) -> Result<PortKey, Unresolved> {
    let ports = || service.ports.iter();
    let found = match port {
        // No two ports of a Service have one name.
        Some(PortRef::Name(name)) => ports().find(|p| p.name == *name),
        Some(PortRef::Number(number)) => by_number(&ports().filter(|p| p.number == *number).collect::<Vec<_>>()),
        None => match &service.ports[..] {
            [only] => Some(only),
            _ => None,
        },
    };
    found.map(PortKey::of).ok_or_else(|| {
        let asked = match port {
            Some(PortRef::Name(name)) => format!("has no port named {name:?}"),
            Some(PortRef::Number(number)) if ports().any(|p| p.number == *number) => {
                format!("has several ports {number}, none of them of TCP: set spec.port to the name of one")
            }
            Some(PortRef::Number(number)) => format!("has no port {number} (the Service's own number, not the pod's)"),
            None if service.ports.is_empty() => "has no ports".to_owned(),
            None => "has several ports: set spec.port to one of them".to_owned(),
        };
        let has = listed(ports().map(|p| (&p.name, p.protocol, p.number)));
        Unresolved { reason: "PortNotFound", message: format!("Service {service_name:?} {asked}; its ports: {has}") }
    })
}

/// One number may stand for a port of each protocol, as 443 does for HTTP/3 beside HTTP/2: TCP before others.
fn by_number<'a>(found: &[&'a ServicePort]) -> Option<&'a ServicePort> {
    match found {
        [only] => Some(only),
        several => several.iter().find(|port| port.protocol == Protocol::Tcp).copied(),
    }
}

/// Ports as a message lists them: `80 (http), 443/UDP (quic)`.
pub(super) fn listed<'a>(ports: impl Iterator<Item = (&'a Str, Protocol, u16)>) -> String {
    let list: Vec<String> = ports
        .map(|(name, protocol, number)| {
            let protocol = if protocol == Protocol::Tcp { String::new() } else { format!("/{}", protocol.as_str()) };
            if name.is_empty() { format!("{number}{protocol}") } else { format!("{number}{protocol} ({name})") }
        })
        .collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

/// Where a check goes.
pub(super) enum CheckPort {
    /// To the instance's own port.
    Own,
    /// To this port of the Service.
    Of(PortKey),
    /// To this port of the instance.
    Number(u16),
}

/// Where each check of a spec goes, in their order.
pub(super) fn check_ports(
    service_name: &str,
    checks: &[CheckSpec],
    service: &Service,
) -> Result<Vec<CheckPort>, Unresolved> {
    let of = |check: &CheckSpec| match &check.port {
        None => Ok(CheckPort::Own),
        Some(PortRef::Number(number)) => Ok(CheckPort::Number(*number)),
        Some(by_name @ PortRef::Name(_)) => {
            port(service_name, Some(by_name), service).map(CheckPort::Of).map_err(|error| Unresolved {
                message: format!("check {:?}: {}", check.check.name, error.message),
                ..error
            })
        }
    };
    checks.iter().map(of).collect()
}

//! Which port of a Service is meant.

use crate::model::check::CheckSpec;
use crate::model::facts::{Protocol, Service, ServicePort, Slice};
use crate::model::ids::Str;
use crate::model::port::PortRef;
use crate::model::reasons::{Remark, Unresolved};

/// Identifies a Service's port in its slices, as kube-proxy has it (`ServicePortName` in pkg/proxy/types.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortKey {
    /// Empty where the Service has one unnamed port.
    pub(super) name: Str,
    protocol: Protocol,
}

impl PortKey {
    pub(super) fn of(port: &ServicePort) -> Self {
        Self { name: port.name.clone(), protocol: port.protocol }
    }

    /// Its number in a slice.
    pub(super) fn number_in(&self, slice: &Slice) -> Option<u16> {
        let found = slice.ports.iter().find(|port| port.name == self.name && port.protocol == self.protocol);
        found.map(|port| port.number)
    }
}

/// The Service's port that `port` picks.
pub(super) fn port<'a>(
    service_name: &str,
    port: Option<&PortRef>,
    service: &'a Service,
) -> Result<&'a ServicePort, Unresolved> {
    let ports = || service.ports.iter();
    let found = match port {
        Some(port) => find(service, port),
        None => match &service.ports[..] {
            [only] => Some(only),
            _ => None,
        },
    };
    found.ok_or_else(|| {
        let asked = match port {
            Some(PortRef::Name(name)) => format!("has no port named {name:?}"),
            Some(PortRef::Number(number)) if ports().any(|p| p.number == *number) => {
                format!("has several ports {number}, none of them for TCP: set spec.port to the name of a port")
            }
            Some(PortRef::Number(number)) => format!("has no port {number} (the Service's own number, not the pod's)"),
            None if service.ports.is_empty() => "has no ports".to_owned(),
            None => "has several ports: set spec.port to one of them".to_owned(),
        };
        let has = listed(ports().map(|p| (&p.name, p.protocol, p.number)));
        Unresolved { reason: "PortNotFound", message: format!("Service {service_name:?} {asked}; its ports: {has}") }
    })
}

/// The Service's port of a name, which no two have, or of a number. One number may stand for a port of each protocol, as
/// 443 does for HTTP/3 beside HTTP/2: TCP before others.
pub(super) fn find<'a>(service: &'a Service, port: &PortRef) -> Option<&'a ServicePort> {
    let mut ports = service.ports.iter();
    match port {
        PortRef::Name(name) => ports.find(|port| port.name == *name),
        PortRef::Number(number) => match &ports.filter(|port| port.number == *number).collect::<Vec<_>>()[..] {
            [only] => Some(*only),
            several => several.iter().find(|port| port.protocol == Protocol::Tcp).copied(),
        },
    }
}

/// That a port of a Service goes on which the spec does not name.
pub(super) fn not_named(service_name: &str, service: &Service, goes_on: &ServicePort) -> Remark {
    let (ours, others): (Vec<_>, Vec<_>) = service.ports.iter().partition(|port| *port == goes_on);
    let list = |ports: Vec<&ServicePort>| listed(ports.iter().map(|port| (&port.name, port.protocol, port.number)));
    Remark {
        reason: "PortNotNamed",
        message: format!(
            "Service {service_name:?} has several ports, and spec.port names none: Lictor keeps {}, which it registered before; \
             other ports: {}; set spec.port to one of them",
            list(ours),
            list(others)
        ),
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

/// Says where a check goes.
pub(super) enum CheckPort {
    /// To the instance's own port.
    Own,
    /// To this port of the Service.
    Of(PortKey),
    /// To this port of the instance.
    Number(u16),
}

/// Says where each check of a spec goes, in their order.
pub(super) fn check_ports(
    service_name: &str,
    checks: &[CheckSpec],
    service: &Service,
) -> Result<Vec<CheckPort>, Unresolved> {
    let of = |check: &CheckSpec| match &check.port {
        None => Ok(CheckPort::Own),
        Some(PortRef::Number(number)) => Ok(CheckPort::Number(*number)),
        Some(by_name @ PortRef::Name(_)) => {
            port(service_name, Some(by_name), service).map(|port| CheckPort::Of(PortKey::of(port))).map_err(|error| {
                Unresolved { message: format!("check {:?}: {}", check.check.name, error.message), ..error }
            })
        }
    };
    checks.iter().map(of).collect()
}

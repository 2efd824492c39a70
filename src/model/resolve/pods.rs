//! The pods that a selector matches, with no Service between.

use std::cell::OnceCell;

use super::before::{by_votes, of_container};
use super::ports::listed;
use super::{Before, Found, Instance, Resolution, Wanted, text, unresolved};
use crate::model::facts::{ContainerKind, ContainerPort, Facts, Pod, PodRef};
use crate::model::ids::Str;
use crate::model::port::{PortInUse, PortRef};
use crate::model::reasons::{ProblemReason, Remark, Unresolved};
use crate::model::registration::Registration;
use crate::model::resource::Spec;

/// Resolves the pods that the spec's selector matches: those that have an address, have not ended and are not being
/// deleted, as a Service of the same selector would have them; and where none of these is ready, those that are ready to
/// their end.
pub(super) fn resolve<'a>(
    spec: &Spec,
    facts: &impl Facts,
    before: &Before<'a, impl Iterator<Item = &'a Registration> + Clone>,
) -> Resolution {
    let there = facts.matching().filter(|(_, pod)| !pod.addresses.is_empty());
    // Seldom is there more than one port.
    let going_on = OnceCell::new();
    let port = |pod: &Pod| match &spec.port {
        Some(asked) => asked_port(pod, asked).map(Port::Clear),
        None => own_port(pod, || {
            going_on.get_or_init(|| before.ports_of_pods(&spec.source, there.clone().map(|(_, pod)| pod)))
        }),
    };
    let has_ready = there.clone().any(|(_, pod)| pod.ready && !pod.leaving && port(pod).is_some());
    let living = there.clone().filter(|(_, pod)| !pod.leaving || (pod.ready && !has_ready));
    let wanted = Wanted::by(spec);
    let mut found = Found::default();
    let (mut in_use, mut not_named_pods) = (Vec::new(), Vec::new());
    for (name, pod) in living.clone() {
        let &[address, ref more @ ..] = &pod.addresses[..] else { continue };
        if !wanted.knows(pod) {
            found.held.insert(text(address));
            let message = "its labels or annotations, which tags or meta use, have not been read yet".to_owned();
            found.leave_out(name.to_string(), ProblemReason::PodNotSeen, message);
            continue;
        }
        let Some(port) = port(pod) else {
            if pod.leaving {
                continue;
            }
            let asked = match &spec.port {
                Some(PortRef::Name(port)) => format!("named {port:?}"),
                _ => "that could be the only one (set spec.port)".to_owned(),
            };
            let message = format!("it has no port {asked}, so it is not registered; its ports: {}", ports_of(pod));
            found.leave_out_without_port(name.to_string(), message);
            continue;
        };
        if let Port::GoesOn(number) = port {
            not_named_pods.push((name, pod, number));
        }
        let port = port.number();
        in_use.extend(pod.ports.iter().find(|there| there.number == port).map(of_container));
        let check_port = |asked: &Option<PortRef>| match asked {
            None => Some(port),
            Some(PortRef::Number(number)) => Some(*number),
            Some(PortRef::Name(name)) => named(pod, name),
        };
        let reference = PodRef { name: name.clone(), uid: pod.uid.clone() };
        let values = wanted.values(Some(&reference), Some(pod), pod.node.as_ref(), |port| named(pod, port), facts);
        found.unite(Instance {
            address,
            port,
            other_address: more.first().copied().filter(|_| spec.dual_stack),
            ready: pod.ready,
            node: pod.node.clone(),
            pod: Some(reference),
            check_ports: spec.checks.iter().map(|check| check_port(&check.port)).collect(),
            values,
            own: None,
        });
    }
    if found.instances.is_empty()
        && found.without_port > 0
        && let Some(first) = found.left_out.values().find(|problem| problem.reason == ProblemReason::PortNotFound)
    {
        let message = format!(
            "none of the {} pods that the selector matches has the port; pod {:?}: {}",
            found.without_port, first.instance, first.message
        );
        let addresses = living.filter_map(|(_, pod)| pod.addresses.first().copied().map(text)).collect();
        return unresolved(Unresolved { reason: "PortNotFound", message }, addresses);
    }
    if spec.port.is_none() {
        let port = by_votes(in_use.into_iter()).into_iter().next();
        found.port_in_use = port.map(|port| PortInUse { source: spec.source.to_string().into(), port });
        found.remarks.extend(not_named(&not_named_pods));
    }
    found.resolution()
}

/// The port of a pod where a spec names none.
#[derive(Clone, Copy)]
enum Port {
    /// There is no doubt which one it is.
    Clear(u16),
    /// The one of several that was registered before.
    GoesOn(u16),
}

impl Port {
    fn number(self) -> u16 {
        let (Self::Clear(number) | Self::GoesOn(number)) = self;
        number
    }
}

/// The port that a spec asks for: a container's by name, or the pod's own number.
fn asked_port(pod: &Pod, asked: &PortRef) -> Option<u16> {
    match asked {
        PortRef::Name(name) => named(pod, name),
        PortRef::Number(number) => Some(*number),
    }
}

/// The port of a pod where a spec names none: the only one, or the first that was registered before. Otherwise the only
/// one of the app's own, since nobody means what a mesh injects; then the only one of the container that the pod itself
/// names as its main one.
fn own_port<'a>(pod: &Pod, going_on: impl FnOnce() -> &'a Vec<PortRef>) -> Option<Port> {
    let only = |counts: fn(ContainerKind) -> bool| {
        let mut numbers = pod.ports.iter().filter(|port| counts(port.of)).map(|port| port.number);
        let first = numbers.next()?;
        numbers.all(|number| number == first).then_some(first)
    };
    if let Some(only) = only(|_| true) {
        return Some(Port::Clear(only));
    }
    let of_app = only(|of| of != ContainerKind::Beside).or_else(|| only(|of| of == ContainerKind::Main));
    let has = |port: &PortRef| match port {
        PortRef::Name(name) => named(pod, name),
        PortRef::Number(number) => pod.ports.iter().any(|port| port.number == *number).then_some(*number),
    };
    match going_on().iter().find_map(has) {
        Some(number) if of_app != Some(number) => Some(Port::GoesOn(number)),
        _ => of_app.map(Port::Clear),
    }
}

/// That a port of pods goes on which the spec does not name.
fn not_named(all: &[(&Str, &Pod, u16)]) -> Option<Remark> {
    let (name, pod, number) = all.first()?;
    let (ours, others): (Vec<_>, Vec<_>) = pod.ports.iter().partition(|port| port.number == *number);
    let list = |ports: Vec<&ContainerPort>| listed(ports.iter().map(|port| (&port.name, port.protocol, port.number)));
    Some(Remark {
        reason: "PortNotNamed",
        message: format!(
            "{} of the pods have several ports, and spec.port names none: Lictor keeps {}, which it registered before; \
             other ports of pod {name:?}: {}; set spec.port to one of them",
            all.len(),
            list(ours),
            list(others)
        ),
    })
}

/// Two containers may have ports of one name; of several protocols TCP comes first.
fn named(pod: &Pod, name: &Str) -> Option<u16> {
    let named = pod.ports.iter().filter(|port| port.name == *name);
    named.min_by_key(|port| port.protocol).map(|port| port.number)
}

fn ports_of(pod: &Pod) -> String {
    listed(pod.ports.iter().map(|port| (&port.name, port.protocol, port.number)))
}

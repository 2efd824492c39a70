//! The pods that a selector picks, with no Service between.

use super::ports::listed;
use super::{Found, Instance, Resolution, Wanted, text, unresolved};
use crate::model::facts::{Facts, Pod, PodRef};
use crate::model::names::Str;
use crate::model::reasons::{ProblemReason, Unresolved};
use crate::model::resource::{PortRef, Spec};

/// Resolves the pods that the spec's selector picks: those that have an address, have not ended and are not being
/// deleted, as a Service of the same selector would have them; and where none of these is ready, those that are ready to
/// their end.
pub(super) fn resolve(spec: &Spec, facts: &impl Facts) -> Resolution {
    let there = facts.picked().filter(|(_, pod)| !pod.addresses.is_empty());
    let has_ready = there.clone().any(|(_, pod)| pod.ready && !pod.leaving && port(pod, spec.port.as_ref()).is_some());
    let living = there.filter(|(_, pod)| !pod.leaving || (pod.ready && !has_ready));
    let wanted = Wanted::by(spec);
    let mut found = Found::default();
    for (name, pod) in living.clone() {
        let &[address, ref more @ ..] = &pod.addresses[..] else { continue };
        if !wanted.knows(pod) {
            found.held.insert(text(address));
            let message = "its annotations, which tags or meta hold, have not been read yet".to_owned();
            found.leave_out(name.to_string(), ProblemReason::PodNotSeen, message);
            continue;
        }
        let Some(port) = port(pod, spec.port.as_ref()) else {
            if pod.leaving {
                continue;
            }
            let asked = match &spec.port {
                Some(PortRef::Name(port)) => format!("named {port:?}"),
                _ => "that could be the only one (set spec.port)".to_owned(),
            };
            let message = format!("it has no port {asked}; its ports: {}, and is not registered", ports_of(pod));
            found.leave_out_without_port(name.to_string(), message);
            continue;
        };
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
            "none of the {} pods that the selector picks has the port; pod {:?}: {}",
            found.without_port, first.instance, first.message
        );
        let addresses = living.filter_map(|(_, pod)| pod.addresses.first().copied().map(text)).collect();
        return unresolved(Unresolved { reason: "PortNotFound", message }, addresses);
    }
    found.resolution()
}

/// The port of a pod that is registered: by name, by the pod's own number, or the only one that it has.
fn port(pod: &Pod, asked: Option<&PortRef>) -> Option<u16> {
    match asked {
        Some(PortRef::Name(name)) => named(pod, name),
        Some(PortRef::Number(number)) => Some(*number),
        None => {
            let mut numbers = pod.ports.iter().map(|port| port.number);
            let first = numbers.next()?;
            numbers.all(|number| number == first).then_some(first)
        }
    }
}

/// Two containers may have ports of one name; of several protocols TCP comes first.
fn named(pod: &Pod, name: &Str) -> Option<u16> {
    let named = pod.ports.iter().filter(|port| port.name == *name);
    named.min_by_key(|port| port.protocol).map(|port| port.number)
}

fn ports_of(pod: &Pod) -> String {
    listed(pod.ports.iter().map(|port| (&port.name, port.protocol, port.number)))
}

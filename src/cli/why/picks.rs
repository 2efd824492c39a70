//! Whether a resource picks a pod or an address, and if not, what keeps it from that.

use std::net::IpAddr;

use super::seen::{Cluster, Subject};
use crate::model::facts::{Endpoint, Facts, Slice};
use crate::model::ids::{ResourceKey, Str};
use crate::model::resource::Source;
use crate::model::selector::{Labels, Requirement, Selector};

/// The answer of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// It picks it, and how.
    Yes(String),
    /// It does not, and why.
    No(String),
    /// Nobody can tell, and why.
    Unknown(String),
}

/// Says whether a resource picks somebody.
pub(super) fn pick(cluster: &Cluster, key: &ResourceKey, subject: &Subject) -> Pick {
    if subject.namespace.as_ref().is_some_and(|namespace| *namespace != key.namespace) {
        return Pick::No("it is in another namespace".to_owned());
    }
    let spec = cluster.world.effective_spec(key).map(|spec| spec.source.clone());
    let Some(source) = spec.or_else(|| cluster.asks.get(key)?.source.clone()) else {
        return Pick::Unknown("its source cannot be read".to_owned());
    };
    let facts = cluster.world.facts(key);
    match &source {
        Source::Service { name } => by_service(cluster, &facts, name, subject),
        Source::Pods { selector } => by_labels(selector, &facts, subject),
        Source::Static { addresses } => {
            let is_given = |address: &IpAddr| addresses.iter().any(|given| given.address == *address);
            if subject.address.as_ref().is_some_and(is_given) {
                Pick::Yes("spec.source.static has it".to_owned())
            } else {
                Pick::No("it has addresses that its author gives (spec.source.static)".to_owned())
            }
        }
    }
}

fn by_service(cluster: &Cluster, facts: &impl Facts, name: &Str, subject: &Subject) -> Pick {
    let mut at = facts.slices(name).flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)));
    if let Some((slice, endpoint)) = at.find(|(_, endpoint)| is_at(endpoint, subject)) {
        return Pick::Yes(format!("an EndpointSlice of Service {name:?} has it: {}", shown(slice, endpoint)));
    }
    let services = match &cluster.services {
        Ok(services) => services,
        Err(why) => return Pick::Unknown(why.clone()),
    };
    let service = services.iter().find(|of| of.key.name == *name && of.key.namespace == *facts.namespace());
    let Some(service) = service else { return Pick::No(format!("its Service {name:?} does not exist")) };
    let Some(selector) = &service.selector else {
        return Pick::No(format!(
            "its Service {name:?} has no selector, and none of the Service's EndpointSlices has {}",
            subject.called()
        ));
    };
    let Some(pod) = &subject.pod else {
        return Pick::No(format!("no EndpointSlice of its Service {name:?} has {}", subject.called()));
    };
    match lacks(selector, &pod.labels) {
        Some(why) => Pick::No(format!("its Service {name:?} does not select the pod: {why}")),
        None => Pick::Yes(format!("its Service {name:?} selects it, but no EndpointSlice has it")),
    }
}

/// Says whether an endpoint stands for somebody.
fn is_at(endpoint: &Endpoint, subject: &Subject) -> bool {
    let by_name = |name: &Str| endpoint.pod.as_ref().is_some_and(|of| of.name == *name);
    match (&subject.pod, &subject.name) {
        (Some(pod), _) => match &endpoint.pod {
            Some(of) => of.uid == pod.uid,
            None => pod.addresses.contains(&endpoint.address),
        },
        (None, Some(name)) => by_name(name),
        (None, None) => subject.address == Some(endpoint.address),
    }
}

/// An endpoint in words: where it is, its ports, and what its slice says of it.
fn shown(slice: &Slice, endpoint: &Endpoint) -> String {
    let ports = slice.ports.iter().map(|port| match &*port.name {
        "" => port.number.to_string(),
        name => format!("{} ({name})", port.number),
    });
    let ports: Vec<String> = ports.collect();
    let ports = if ports.is_empty() { "no port".to_owned() } else { format!("port {}", ports.join(", ")) };
    let state = match (endpoint.terminating, endpoint.serving, endpoint.ready) {
        (true, true, _) => "terminating, and serving until then",
        (true, false, _) => "terminating",
        (false, _, true) => "ready",
        (false, _, false) => "not ready",
    };
    format!("{}, {ports}, {state}", endpoint.address)
}

fn by_labels(selector: &Selector, facts: &impl Facts, subject: &Subject) -> Pick {
    let Some(pod) = &subject.pod else {
        let is_it = |name: &Str, addresses: &[IpAddr]| match (&subject.name, subject.address) {
            (Some(asked), _) => asked == name,
            (None, address) => address.is_some_and(|address| addresses.contains(&address)),
        };
        let found = facts.matching().find(|(name, pod)| is_it(name, &pod.addresses));
        return match found {
            Some((name, _)) => Pick::Yes(format!("its selector matches pod {name:?}")),
            None => Pick::No(format!("no pod that its selector matches is {}", subject.called())),
        };
    };
    let failing = selector.0.iter().find(|asked| {
        let alone = Selector(vec![(*asked).clone()]);
        !alone.matches(|key| pod.labels.get(key))
    });
    match failing {
        None => Pick::Yes("its selector matches the labels of the pod".to_owned()),
        Some(asked) => {
            let (key, wants) = in_words(asked);
            Pick::No(format!("its selector does not match the pod: it asks for {wants}, and {}", has(&pod.labels, key)))
        }
    }
}

/// A requirement in words, with the key of the label that it is about.
fn in_words(requirement: &Requirement) -> (&Str, String) {
    let list =
        |values: &std::collections::BTreeSet<Str>| values.iter().map(|value| &**value).collect::<Vec<_>>().join(", ");
    match requirement {
        Requirement::In(key, values) if values.len() == 1 => (key, format!("{key}={}", list(values))),
        Requirement::In(key, values) => (key, format!("{key} in ({})", list(values))),
        Requirement::NotIn(key, values) => (key, format!("{key} not in ({})", list(values))),
        Requirement::Exists(key) => (key, format!("the label {key}")),
        Requirement::DoesNotExist(key) => (key, format!("no label {key}")),
    }
}

/// What a pod has under the key of a label.
fn has(labels: &Labels, key: &Str) -> String {
    match labels.get(key) {
        Some(value) => format!("the pod has {key}={value}"),
        None => format!("the pod has no label {key}"),
    }
}

/// The first label of a Service's selector that a pod does not have so.
fn lacks(selector: &Labels, labels: &Labels) -> Option<String> {
    let (key, value) = selector.iter().find(|(key, value)| labels.get(*key) != Some(value))?;
    Some(format!("it selects {key}={value}, and {}", has(labels, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_selector_from_a_pod_is_said_by_its_first_label() {
        let labels: Labels = [("app".into(), "web".into())].into();
        for (selector, expected) in [
            (&[("app", "web")][..], None),
            (&[("app", "wbe")], Some("it selects app=wbe, and the pod has app=web")),
            (&[("app", "web"), ("tier", "a")], Some("it selects tier=a, and the pod has no label tier")),
        ] {
            let selector: Labels = selector.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            assert_eq!(lacks(&selector, &labels).as_deref(), expected, "{selector:?}");
        }
    }

    #[test]
    fn a_requirement_is_said_as_kubectl_writes_it() {
        let values = |list: &[&str]| list.iter().map(|value| Str::from(*value)).collect();
        for (requirement, expected) in [
            (Requirement::In("app".into(), values(&["a"])), "app=a"),
            (Requirement::In("app".into(), values(&["a", "b"])), "app in (a, b)"),
            (Requirement::NotIn("app".into(), values(&["a"])), "app not in (a)"),
            (Requirement::Exists("app".into()), "the label app"),
            (Requirement::DoesNotExist("app".into()), "no label app"),
        ] {
            assert_eq!(in_words(&requirement).1, expected);
        }
    }
}

//! The instances of a source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lictor::cluster::event::ObjectKey;
use lictor::model::facts::{Endpoint, Family, Node, Pod, Service, Slice};
use lictor::model::names::Str;
use lictor::model::resource::{Own, PortRef, Source, Spec};
use lictor::model::selector::{Requirement, Selector};
use lictor::model::template::Variable;

use super::texts;
use crate::cluster::Cluster;

/// What a source comes to.
pub(super) enum Found {
    /// These, and why others that live are not among them.
    Instances { all: Vec<Instance>, left_out: BTreeSet<&'static str> },
    /// The Service is not there.
    Nothing,
    /// It cannot be told what of it is to be registered.
    Unclear { reason: &'static str, living: BTreeSet<String>, basis: String },
}

/// An instance, with all that texts may say of it.
pub(super) struct Instance {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) ready: bool,
    pub(super) second: Option<IpAddr>,
    pub(super) node: Option<Str>,
    /// The name and uid of its pod.
    pub(super) pod: Option<(Str, Str)>,
    pub(super) namespace: Str,
    pub(super) facts: Option<Pod>,
    pub(super) place: Option<Node>,
    pub(super) named_ports: BTreeMap<String, u16>,
    pub(super) own: Option<Own>,
}

impl Instance {
    pub(super) fn target(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.address.to_string(), |(_, uid)| uid.to_string())
    }
}

pub(super) fn instances(cluster: &Cluster, namespace: &Str, spec: &Spec) -> Found {
    match &spec.source {
        Source::Service { name } => {
            of_service(cluster, &ObjectKey { namespace: namespace.clone(), name: name.clone() }, spec)
        }
        Source::Pods { selector } => of_pods(cluster, namespace, selector, spec),
        Source::Static { addresses } => {
            let all = addresses.iter().map(|given| Instance {
                address: given.address,
                port: given.port,
                ready: true,
                second: None,
                node: None,
                pod: None,
                namespace: namespace.clone(),
                facts: None,
                place: None,
                named_ports: BTreeMap::new(),
                own: Some((*given.own).clone()),
            });
            Found::Instances { all: all.collect(), left_out: BTreeSet::new() }
        }
    }
}

fn place(cluster: &Cluster, node: Option<&Str>) -> Option<Node> {
    cluster.nodes.get(&ObjectKey { namespace: "".into(), name: node?.clone() }).cloned()
}

fn of_service(cluster: &Cluster, source: &ObjectKey, spec: &Spec) -> Found {
    let Some(service) = cluster.services.get(source) else { return Found::Nothing };
    let slices: Vec<&Slice> = cluster
        .slices
        .iter()
        .filter(|(key, slice)| key.namespace == source.namespace && slice.service == source.name)
        .map(|(_, slice)| slice)
        .filter(|slice| service.family.is_none_or(|family| family == slice.family) && slice.family != Family::Fqdn)
        .collect();
    let living = |endpoint: &&Endpoint| !endpoint.terminating;
    let unclear = || {
        let living = slices.iter().flat_map(|slice| &slice.endpoints).filter(living);
        let slice_ports: Vec<_> = slices.iter().map(|slice| &slice.ports).collect();
        Found::Unclear {
            reason: "PortNotFound",
            living: living.map(|endpoint| endpoint.address.to_string()).collect(),
            basis: format!("{:?} {slice_ports:?}", service.ports),
        }
    };
    let Some(port) = service_port(spec, service) else { return unclear() };
    let pod = |endpoint: &Endpoint| {
        let of = endpoint.pod.as_ref()?;
        let key = ObjectKey { namespace: source.namespace.clone(), name: of.name.clone() };
        cluster.pods.get(&key).filter(|pod| pod.uid == of.uid)
    };
    let is_verified = |endpoint: &Endpoint| match &endpoint.pod {
        Some(_) => pod(endpoint).is_some_and(|pod| pod.addresses.contains(&endpoint.address)),
        None => cluster
            .pods
            .iter()
            .any(|(key, pod)| key.namespace == source.namespace && pod.addresses.contains(&endpoint.address)),
    };
    let of_pod = texts::variables(spec).any(|v| matches!(v, Variable::Label(_) | Variable::Annotation(_)));
    let mut found: BTreeMap<String, Instance> = BTreeMap::new();
    let (mut left_out, mut without) = (BTreeSet::new(), false);
    for slice in &slices {
        let named_ports: BTreeMap<String, u16> = slice.ports.iter().map(|p| (p.name.to_string(), p.number)).collect();
        for endpoint in slice.endpoints.iter().filter(living) {
            let Some(number) = named_ports.get(&port) else {
                without = true;
                left_out.insert("PortNotFound");
                continue;
            };
            if spec.limits.verify_endpoints && !is_verified(endpoint) {
                left_out.insert("NotVerified");
                continue;
            }
            if of_pod && endpoint.pod.is_some() && pod(endpoint).is_none() {
                left_out.insert("PodNotSeen");
                continue;
            }
            let instance = Instance {
                address: endpoint.address,
                port: *number,
                ready: endpoint.ready,
                second: None,
                node: endpoint.node.clone(),
                pod: endpoint.pod.as_ref().map(|pod| (pod.name.clone(), pod.uid.clone())),
                namespace: source.namespace.clone(),
                facts: pod(endpoint).cloned(),
                place: place(cluster, endpoint.node.as_ref()),
                named_ports: named_ports.clone(),
                own: None,
            };
            found.entry(instance.target()).and_modify(|known| known.ready |= endpoint.ready).or_insert(instance);
        }
    }
    if found.is_empty() && without {
        return unclear();
    }
    Found::Instances { all: found.into_values().collect(), left_out }
}

/// The name of the Service's port that a spec means.
fn service_port(spec: &Spec, service: &Service) -> Option<String> {
    let mut all = service.ports.iter();
    let port = match &spec.port {
        None if service.ports.len() == 1 => all.next(),
        None => None,
        Some(PortRef::Name(name)) => all.find(|port| port.name == *name),
        Some(PortRef::Number(number)) => all.find(|port| port.number == *number),
    };
    port.map(|port| port.name.to_string())
}

fn of_pods(cluster: &Cluster, namespace: &Str, selector: &Selector, spec: &Spec) -> Found {
    let living = cluster.pods.iter().filter(|(key, pod)| {
        key.namespace == *namespace && picks(selector, pod) && !pod.leaving && !pod.addresses.is_empty()
    });
    let (mut all, mut left_out) = (Vec::new(), BTreeSet::new());
    for (key, pod) in living.clone() {
        let mut named_ports = BTreeMap::new();
        for port in &pod.ports {
            named_ports.entry(port.name.to_string()).or_insert(port.number);
        }
        let port = match &spec.port {
            Some(PortRef::Name(name)) => named_ports.get(&**name).copied(),
            Some(PortRef::Number(number)) => Some(*number),
            None => match &pod.ports[..] {
                [only] => Some(only.number),
                _ => None,
            },
        };
        let Some(port) = port else {
            left_out.insert("PortNotFound");
            continue;
        };
        all.push(Instance {
            address: pod.addresses[0],
            port,
            ready: pod.ready,
            second: pod.addresses.get(1).copied(),
            node: pod.node.clone(),
            pod: Some((key.name.clone(), pod.uid.clone())),
            namespace: namespace.clone(),
            facts: Some(pod.clone()),
            place: place(cluster, pod.node.as_ref()),
            named_ports,
            own: None,
        });
    }
    if all.is_empty() && !left_out.is_empty() {
        let addresses = living.map(|(_, pod)| pod.addresses[0].to_string()).collect();
        return Found::Unclear { reason: "PortNotFound", living: addresses, basis: format!("{:?}", spec.port) };
    }
    Found::Instances { all, left_out }
}

fn picks(selector: &Selector, pod: &Pod) -> bool {
    selector.0.iter().all(|requirement| match requirement {
        Requirement::In(key, values) => pod.labels.get(key).is_some_and(|value| values.contains(value)),
        Requirement::NotIn(key, values) => pod.labels.get(key).is_none_or(|value| !values.contains(value)),
        Requirement::Exists(key) => pod.labels.contains_key(key),
        Requirement::DoesNotExist(key) => !pod.labels.contains_key(key),
    })
}

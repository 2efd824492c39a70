//! The instances of a source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lictor::cluster::api;
use lictor::model::facts::{ContainerKind, Endpoint, Family, Node, Pod, Protocol, Service, ServicePort, Slice};
use lictor::model::ids::Str;
use lictor::model::port::PortRef;
use lictor::model::resource::{PerAddress, Source, Spec};
use lictor::model::selector::{Requirement, Selector};
use lictor::model::template::Variable;
use lictor::state::event::ObjectKey;

use super::texts;
use crate::cluster::{Cluster, Object};

/// What a source comes to.
pub(super) enum Found {
    /// These, and why others that live are not among them.
    Instances { all: Vec<Instance>, left_out: BTreeSet<&'static str>, passed_over: bool, not_named: bool },
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
    pub(super) own: Option<PerAddress>,
}

/// Instances by target and port.
type Instances = BTreeMap<(String, u16), Instance>;

impl Instance {
    pub(super) fn target(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.address.to_string(), |(_, uid)| uid.to_string())
    }

    /// What a status calls it.
    fn called(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.address.to_string(), |(name, _)| name.to_string())
    }
}

pub(super) fn instances(cluster: &Cluster, object: &Object, spec: &Spec) -> Found {
    let namespace = &object.key.namespace;
    match &spec.source {
        Source::Service { name } => {
            of_service(cluster, object, &ObjectKey { namespace: namespace.clone(), name: name.clone() }, spec)
        }
        Source::Pods { selector } => of_pods(cluster, object, selector, spec),
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
            Found::Instances { all: all.collect(), left_out: BTreeSet::new(), passed_over: false, not_named: false }
        }
    }
}

fn place(cluster: &Cluster, node: Option<&Str>) -> Option<Node> {
    cluster.nodes.get(&ObjectKey { namespace: "".into(), name: node?.clone() }).cloned()
}

fn of_service(cluster: &Cluster, object: &Object, source: &ObjectKey, spec: &Spec) -> Found {
    let Some(service) = cluster.services.get(source) else { return Found::Nothing };
    let slices: Vec<&Slice> = cluster
        .slices
        .iter()
        .filter(|(key, slice)| key.namespace == source.namespace && slice.service == source.name)
        .map(|(_, slice)| slice)
        .filter(|slice| slice.family != Family::Fqdn)
        .collect();
    let is_first = |slice: &Slice| service.family.is_none_or(|family| family == slice.family);
    let of_first_family: Vec<&Endpoint> =
        slices.iter().filter(|slice| is_first(slice)).flat_map(|slice| &slice.endpoints).collect();
    let uid = |endpoint: &Endpoint| endpoint.pod.as_ref().map(|pod| pod.uid.clone());
    // What somebody writes by hand for a Service with a selector counts as what the controller writes.
    let counts = |(slice, endpoint): &(&Slice, &Endpoint)| {
        let has_twin = of_first_family.iter().any(|other| uid(other) == uid(endpoint));
        let is_due = endpoint.terminating || endpoint.ready || !service.selects;
        is_first(slice) || if endpoint.pod.is_some() { !has_twin && is_due } else { of_first_family.is_empty() }
    };
    let all_of_both = || slices.iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| (*slice, endpoint)));
    let passed_over = all_of_both()
        .any(|(slice, endpoint)| !counts(&(slice, endpoint)) && endpoint.pod.is_none() && !endpoint.terminating);
    let every = || {
        // Of a pod that stands at two addresses the first one counts.
        let mut all: Vec<(&Slice, &Endpoint)> = all_of_both().filter(counts).collect();
        all.sort_by_key(|(_, endpoint)| endpoint.address);
        all.into_iter()
    };
    let leaving: Vec<(&Slice, &Endpoint)> = every().filter(|(_, endpoint)| endpoint.terminating).collect();
    let all: Vec<(&Slice, &Endpoint)> = every().filter(|(_, endpoint)| !endpoint.terminating).collect();
    let unclear = || {
        let serve = leaving.iter().filter(|(_, leaving)| leaving.serving && !all.iter().any(|(_, other)| other.ready));
        let is_real = |endpoint: &&Endpoint| !spec.limits.verify_endpoints || is_verified(cluster, source, endpoint);
        let living = all.iter().chain(serve).map(|(_, endpoint)| *endpoint).filter(is_real);
        let slice_ports: Vec<_> = slices.iter().map(|slice| &slice.ports).collect();
        Found::Unclear {
            reason: "PortNotFound",
            living: living.map(|endpoint| endpoint.address.to_string()).collect(),
            basis: format!("{:?} {slice_ports:?}", service.ports),
        }
    };
    let (port, not_named) = match service_port(spec, service) {
        Some(port) => (port, false),
        None => match told_port(object, spec, service) {
            Some(port) => (port, true),
            None => return unclear(),
        },
    };
    let search = Search { cluster, source, spec, port };
    let (mut found, mut left_out, lacking) = search.instances(&all);
    if !found.values().any(|instance| instance.ready) {
        let serve: Vec<(&Slice, &Endpoint)> = leaving.iter().filter(|(_, leaving)| leaving.serving).copied().collect();
        for (key, instance) in search.instances(&serve).0 {
            let is_taken = found.values().any(|there| (there.address, there.port) == (instance.address, instance.port));
            if !is_taken {
                found.entry(key).or_insert(Instance { ready: true, ..instance });
            }
        }
    }
    if found.is_empty() && !lacking.is_empty() {
        return unclear();
    }
    // A pod that is registered at one of its addresses does not lack the port at another one.
    if lacking.iter().any(|called| !found.values().any(|instance| instance.called() == *called)) {
        left_out.insert("PortNotFound");
    }
    Found::Instances { all: found.into_values().collect(), left_out, passed_over, not_named }
}

struct Search<'a> {
    cluster: &'a Cluster,
    source: &'a ObjectKey,
    spec: &'a Spec,
    port: &'a ServicePort,
}

impl Search<'_> {
    fn pod(&self, endpoint: &Endpoint) -> Option<&Pod> {
        pod_of(self.cluster, self.source, endpoint)
    }

    fn is_verified(&self, endpoint: &Endpoint) -> bool {
        is_verified(self.cluster, self.source, endpoint)
    }

    /// Where the slices of the Service's second family have the pod of an endpoint that counts in the first one.
    fn second(&self, slice: &Slice, endpoint: &Endpoint) -> Option<IpAddr> {
        let family = self.cluster.services.get(self.source).and_then(|service| service.family)?;
        let uid = &endpoint.pod.as_ref().filter(|_| slice.family == family)?.uid;
        let of_service = self.cluster.slices.iter().filter(|(key, other)| {
            key.namespace == self.source.namespace && other.service == self.source.name && other.family != family
        });
        let there =
            of_service.filter(|(_, other)| other.family != Family::Fqdn).flat_map(|(_, other)| &other.endpoints);
        let serves = |other: &&Endpoint| !other.terminating || other.serving;
        let has_uid = |other: &&Endpoint| other.pod.as_ref().is_some_and(|pod| pod.uid == *uid);
        let address = there.filter(has_uid).rfind(serves)?.address;
        let has_it = self.pod(endpoint).is_some_and(|pod| pod.addresses.contains(&address));
        (!self.spec.limits.verify_endpoints || has_it).then_some(address)
    }

    /// The instances that these endpoints make, why others are left out, and which have not the port.
    fn instances(&self, all: &[(&Slice, &Endpoint)]) -> (Instances, BTreeSet<&'static str>, BTreeSet<String>) {
        let of_pod = texts::variables(self.spec).any(|v| matches!(v, Variable::Label(_) | Variable::Annotation(_)));
        let (mut found, mut left_out, mut lacking) = (Instances::new(), BTreeSet::new(), BTreeSet::new());
        for (slice, endpoint) in all {
            // The slice itself comes first.
            let copies: Vec<_> = all.iter().filter(|(_, other)| is_copy(endpoint, other)).collect();
            let others = copies.iter().map(|(other, _)| *other).filter(|other| !std::ptr::eq(*other, *slice));
            let with_it: Vec<&Slice> = [*slice].into_iter().chain(others).collect();
            let is_unverified = || self.spec.limits.verify_endpoints && !self.is_verified(endpoint);
            if with_it.iter().all(|slice| number_in(slice, self.port).is_none()) {
                if is_unverified() {
                    left_out.insert("NotVerified");
                    continue;
                }
                let pod = endpoint.pod.as_ref();
                lacking.insert(pod.map_or_else(|| endpoint.address.to_string(), |pod| pod.name.to_string()));
                continue;
            }
            let Some(number) = number_in(slice, self.port) else { continue };
            let mut named = copies.iter().filter(|(_, copy)| copy.pod.is_some());
            if endpoint.pod.is_none() && named.any(|(other, _)| number_in(other, self.port) == Some(number)) {
                continue;
            }
            if is_unverified() {
                left_out.insert("NotVerified");
                continue;
            }
            if of_pod && endpoint.pod.is_some() && self.pod(endpoint).is_none() {
                left_out.insert("PodNotSeen");
                continue;
            }
            let mut named_ports = BTreeMap::new();
            for slice in with_it {
                let mut ports = slice.ports.clone();
                ports.sort_by_key(|port| port.protocol);
                for port in ports {
                    named_ports.entry(port.name.to_string()).or_insert(port.number);
                }
            }
            let instance = Instance {
                address: endpoint.address,
                port: number,
                ready: endpoint.ready,
                second: self.second(slice, endpoint),
                node: endpoint.node.clone(),
                pod: endpoint.pod.as_ref().map(|pod| (pod.name.clone(), pod.uid.clone())),
                namespace: self.source.namespace.clone(),
                facts: self.pod(endpoint).cloned(),
                place: place(self.cluster, endpoint.node.as_ref()),
                named_ports,
                own: None,
            };
            let key = (instance.target(), number);
            found.entry(key).and_modify(|known| known.ready |= endpoint.ready).or_insert(instance);
        }
        (found, left_out, lacking)
    }
}

/// The pod that an endpoint of a Service names.
fn pod_of<'a>(cluster: &'a Cluster, service: &ObjectKey, endpoint: &Endpoint) -> Option<&'a Pod> {
    let of = endpoint.pod.as_ref()?;
    let key = ObjectKey { namespace: service.namespace.clone(), name: of.name.clone() };
    cluster.pods.get(&key).filter(|pod| pod.uid == of.uid)
}

/// Whether there is a pod behind an endpoint of a Service.
fn is_verified(cluster: &Cluster, service: &ObjectKey, endpoint: &Endpoint) -> bool {
    let has = |pod: &Pod| pod.addresses.contains(&endpoint.address);
    if endpoint.pod.is_some() {
        return pod_of(cluster, service, endpoint).is_some_and(has);
    }
    let mut pods = cluster.pods.iter();
    pods.any(|(key, pod)| key.namespace == service.namespace && has(pod))
}

/// Whether two slices speak of one endpoint.
fn is_copy(one: &Endpoint, other: &Endpoint) -> bool {
    let uid = |endpoint: &Endpoint| endpoint.pod.as_ref().map(|pod| pod.uid.clone());
    one.address == other.address && uid(one).zip(uid(other)).is_none_or(|(one, other)| one == other)
}

/// Whether a living endpoint of a resource's Service has no port of the one that is asked for: what is registered of it is
/// to stay.
pub fn lives_without_port(
    cluster: &Cluster,
    object: &Object,
    spec: &Spec,
    address: IpAddr,
    uid: Option<&Option<Str>>,
) -> bool {
    let Source::Service { name } = &spec.source else { return false };
    let source = ObjectKey { namespace: object.key.namespace.clone(), name: name.clone() };
    let Some(service) = cluster.services.get(&source) else { return false };
    let uid_of = |endpoint: &Endpoint| endpoint.pod.as_ref().map(|pod| pod.uid.clone());
    let is_there = |endpoint: &&Endpoint| endpoint.address == address && !endpoint.terminating;
    let has_it = |slice: &Slice| slice.endpoints.iter().any(|endpoint| is_there(&endpoint));
    let port = service_port(spec, service).or_else(|| told_port(object, spec, service));
    let stand: Vec<&Slice> = cluster.slices_of(&source).map(|(_, slice)| slice).filter(|slice| has_it(slice)).collect();
    let there: Vec<&Endpoint> = stand.iter().flat_map(|slice| &slice.endpoints).filter(is_there).collect();
    let is_it = uid.is_none_or(|uid| there.iter().any(|endpoint| uid_of(endpoint) == *uid));
    let search = port.map(|port| Search { cluster, source: &source, spec, port });
    let is_verified = !spec.limits.verify_endpoints
        || search.is_some_and(|search| there.iter().all(|endpoint| search.is_verified(endpoint)));
    let lacks_port = stand.iter().all(|slice| port.is_none_or(|port| number_in(slice, port).is_none()));
    !stand.is_empty() && is_it && is_verified && lacks_port
}

/// What a slice has of a Service's port.
fn number_in(slice: &Slice, port: &ServicePort) -> Option<u16> {
    let mut ports = slice.ports.iter();
    ports.find(|there| there.name == port.name && there.protocol == port.protocol).map(|there| there.number)
}

/// The port that a resource was told to be in use, of the source that it has, where its spec names none.
pub fn told(object: &Object, spec: &Spec) -> Option<PortRef> {
    let source = match &spec.source {
        Source::Service { name } => format!("service/{name}"),
        Source::Pods { .. } => "pods".to_owned(),
        Source::Static { .. } => return None,
    };
    let is_present = object.status.observed_generation == Some(object.generation);
    let told = object.status.port_in_use.as_ref().filter(|_| is_present && spec.port.is_none())?;
    let port = match &told.port {
        api::PortRef::Name(name) => PortRef::Name(name.as_str().into()),
        api::PortRef::Number(number) => PortRef::Number(*number),
    };
    (told.source == source).then_some(port)
}

/// The port of a Service that goes on, where the spec names none of several: the one that the resource was told.
fn told_port<'a>(object: &Object, spec: &Spec, service: &'a Service) -> Option<&'a ServicePort> {
    has_port(service, &told(object, spec)?)
}

/// A port of a Service as a spec would name it.
pub fn has_port<'a>(service: &'a Service, port: &PortRef) -> Option<&'a ServicePort> {
    picked(Some(port), service)
}

/// Of a resource that does not go on with the port that is registered, a port that it could go on with: what stands at the
/// address of one of its instances under the same number.
pub fn could_go_on(cluster: &Cluster, object: &Object, rows: &[(IpAddr, u16)]) -> Option<String> {
    let spec = object.spec.as_deref().ok().filter(|spec| spec.port.is_none())?;
    let namespace = &object.key.namespace;
    match &spec.source {
        Source::Service { name } => {
            let source = ObjectKey { namespace: namespace.clone(), name: name.clone() };
            let service = cluster.services.get(&source)?;
            let is_of_service = |slice: &Slice, at: &(IpAddr, u16)| {
                slice.endpoints.iter().any(|endpoint| endpoint.address == at.0)
                    && service.ports.iter().any(|port| number_in(slice, port) == Some(at.1))
            };
            let row = rows.iter().find(|row| cluster.slices_of(&source).any(|(_, slice)| is_of_service(slice, row)))?;
            told_port(object, spec, service).is_none().then(|| format!("{row:?}"))
        }
        Source::Pods { selector } => {
            let is_there = |pod: &Pod, at: &(IpAddr, u16)| {
                pod.addresses.contains(&at.0) && pod.ports.iter().any(|port| port.number == at.1)
            };
            let mut picked =
                cluster.pods.iter().filter(|(key, pod)| key.namespace == *namespace && matches(selector, pod));
            let left_out = |pod: &Pod| !pod.leaving && pod_port(object, spec, pod).is_none();
            picked.find_map(|(key, pod)| {
                let row = rows.iter().find(|row| left_out(pod) && is_there(pod, row))?;
                Some(format!("{row:?} of {key}"))
            })
        }
        Source::Static { .. } => None,
    }
}

/// The Service's port that a spec means.
fn service_port<'a>(spec: &Spec, service: &'a Service) -> Option<&'a ServicePort> {
    picked(spec.port.as_ref(), service)
}

fn picked<'a>(port: Option<&PortRef>, service: &'a Service) -> Option<&'a ServicePort> {
    let mut all: Vec<&ServicePort> = service.ports.iter().collect();
    match port {
        None => {}
        Some(PortRef::Name(name)) => all.retain(|port| port.name == *name),
        Some(PortRef::Number(number)) => {
            all.retain(|port| port.number == *number);
            if all.len() > 1 {
                all.retain(|port| port.protocol == Protocol::Tcp);
            }
        }
    }
    if let [only] = all[..] { Some(only) } else { None }
}

fn of_pods(cluster: &Cluster, object: &Object, selector: &Selector, spec: &Spec) -> Found {
    let namespace = &object.key.namespace;
    let picked = cluster
        .pods
        .iter()
        .filter(|(key, pod)| key.namespace == *namespace && matches(selector, pod) && !pod.addresses.is_empty());
    let mut first_ready = picked.clone().filter(|(_, pod)| pod.ready && !pod.leaving);
    let is_served = first_ready.any(|(_, pod)| pod_port(object, spec, pod).is_some());
    let living = picked.filter(|(_, pod)| !pod.leaving || (pod.ready && !is_served));
    let (mut all, mut left_out, mut not_named) = (Vec::new(), BTreeSet::new(), false);
    for (key, pod) in living.clone() {
        let named_ports = pod_ports(pod);
        let Some((port, goes_on)) = pod_port(object, spec, pod) else {
            if !pod.leaving {
                left_out.insert("PortNotFound");
            }
            continue;
        };
        not_named |= goes_on;
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
    Found::Instances { all, left_out, passed_over: false, not_named }
}

fn pod_ports(pod: &Pod) -> BTreeMap<String, u16> {
    let mut named_ports = BTreeMap::new();
    for port in &pod.ports {
        named_ports.entry(port.name.to_string()).or_insert(port.number);
    }
    named_ports
}

/// The port of a pod that a spec means, and whether it is one that goes on, which the spec should name.
fn pod_port(object: &Object, spec: &Spec, pod: &Pod) -> Option<(u16, bool)> {
    use ContainerKind::{Beside, Main, Own};
    let clear = |number| (number, false);
    match &spec.port {
        Some(PortRef::Name(name)) => return pod_ports(pod).get(&**name).copied().map(clear),
        Some(PortRef::Number(number)) => return Some((*number, false)),
        None => {}
    }
    let the_one = |kinds: &[ContainerKind]| {
        let numbers: BTreeSet<u16> =
            pod.ports.iter().filter(|port| kinds.contains(&port.of)).map(|port| port.number).collect();
        numbers.first().copied().filter(|_| numbers.len() == 1)
    };
    let apps = the_one(&[Main, Own]).or_else(|| the_one(&[Main]));
    let told = told(object, spec).and_then(|told| match told {
        PortRef::Name(name) => pod_ports(pod).get(&*name).copied(),
        PortRef::Number(number) => pod.ports.iter().map(|port| port.number).find(|there| *there == number),
    });
    let goes_on = told.filter(|told| apps != Some(*told)).map(|told| (told, true));
    the_one(&[Main, Own, Beside]).map(clear).or(goes_on).or(apps.map(clear))
}

fn matches(selector: &Selector, pod: &Pod) -> bool {
    selector.0.iter().all(|requirement| match requirement {
        Requirement::In(key, values) => pod.labels.get(key).is_some_and(|value| values.contains(value)),
        Requirement::NotIn(key, values) => pod.labels.get(key).is_none_or(|value| !values.contains(value)),
        Requirement::Exists(key) => pod.labels.get(key).is_some(),
        Requirement::DoesNotExist(key) => pod.labels.get(key).is_none(),
    })
}

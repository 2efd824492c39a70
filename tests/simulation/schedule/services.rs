//! Services and their slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lictor::model::facts::{Endpoint, Family, PodRef, Protocol, Service, ServicePort, Slice, SlicePort};
use lictor::model::ids::Str;
use lictor::state::event::ObjectKey;

use super::pods::{JOB, app_of};
use super::{Consequences, Later};
use crate::cluster::{EndpointId, Rewriting, endpoint_id};
use crate::setup::NAMESPACES;
use crate::sim::State;

pub const SERVICES: [&str; 2] = ["web", "api"];
/// A port that no Service has, in slices that somebody writes by hand.
pub const OTHER_PORT: u16 = 9999;

/// Whether the controller may write to a slice: not to those of other ports, which somebody writes by hand.
pub(super) fn is_of_controller(slice: &Slice) -> bool {
    slice.family == Family::V4 && !slice.ports.iter().any(|port| port.number == OTHER_PORT)
}

impl State {
    pub(super) fn edit_slice(&mut self, key: &ObjectKey, edit: impl FnOnce(&mut Slice)) {
        if let Some(slice) = self.cluster.slices.get(key) {
            let mut slice = slice.clone();
            edit(&mut slice);
            self.cluster.put_slice(key, slice);
            // Several edits may come at once, and each is seen by itself.
            self.work_out_what_is_wanted();
        }
    }

    /// A Service that is not there.
    pub(super) fn service_to_be(&mut self) -> Option<ObjectKey> {
        let all = NAMESPACES.iter().flat_map(|namespace| SERVICES.iter().map(|name| ObjectKey::new(namespace, name)));
        let free: Vec<ObjectKey> = all.filter(|key| !self.cluster.services.contains_key(key)).collect();
        self.pick(&free)
    }

    fn draw_ports(&mut self) -> Vec<ServicePort> {
        let port = |name: &str, number| ServicePort { name: name.into(), protocol: Protocol::Tcp, number };
        let of = |protocol, port: ServicePort| ServicePort { protocol, ..port };
        match self.random.script.u8(..10) {
            0 => vec![port("", 80)],
            1..5 => vec![port("http", 80)],
            5..7 => vec![of(Protocol::Udp, port("quic", 80)), port("http", 80)],
            7 => vec![of(Protocol::Udp, port("http", 80)), of(Protocol::Sctp, port("grpc", 80))],
            _ => vec![port("http", 80), port("grpc", 90)],
        }
    }

    pub(super) fn make_service(&mut self, key: &ObjectKey) {
        let ports = self.draw_ports();
        let family = if self.random.script.u8(..4) == 0 { None } else { Some(Family::V4) };
        if self.chance(15) {
            self.cluster.publishing.insert(key.clone());
        } else {
            self.cluster.publishing.remove(key);
        }
        let selects = self.chance(60);
        self.service_returns(key, Service { family, selects, external_name: false, ports });
    }

    /// A Service is made; the pods that it selects are its endpoints.
    pub(super) fn service_returns(&mut self, key: &ObjectKey, service: Service) {
        if self.cluster.services.contains_key(key) {
            return;
        }
        self.cluster.put_service(key, service);
        if self.slices_of(key).is_empty() {
            self.make_slice(key);
        } else {
            self.ports_follow(key);
        }
        let own =
            self.cluster.pods.iter().filter(|(pod, of)| pod.namespace == key.namespace && *app_of(of) == key.name);
        let own: Vec<(ObjectKey, Str)> = own.map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
        for (pod, uid) in own {
            self.endpoint_follows(&pod, &uid);
        }
    }

    pub(super) fn slices_of(&self, service: &ObjectKey) -> Vec<ObjectKey> {
        self.cluster.slices_of(service).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn slices_of_controller(&self, service: &ObjectKey) -> Vec<ObjectKey> {
        let slices = self.cluster.slices_of(service).filter(|(_, slice)| is_of_controller(slice));
        slices.map(|(key, _)| key.clone()).collect()
    }

    fn slice_ports(&self, service: &ObjectKey) -> Vec<SlicePort> {
        let ports = self.cluster.services.get(service).map(|service| service.ports.clone()).unwrap_or_default();
        let number = |port: &ServicePort| port.number + if port.protocol == Protocol::Tcp { 8000 } else { 8400 };
        let follow = |port: ServicePort| SlicePort { number: number(&port), name: port.name, protocol: port.protocol };
        ports.into_iter().map(follow).collect()
    }

    pub(super) fn make_slice(&mut self, service: &ObjectKey) -> ObjectKey {
        let unique = self.cluster.new_uid();
        let key = ObjectKey::new(&service.namespace, &format!("{}-{unique}", service.name));
        let ports = self.slice_ports(service);
        let slice = Slice { service: service.name.clone(), family: Family::V4, ports, endpoints: Vec::new() };
        self.cluster.put_slice(&key, slice);
        key
    }

    /// Somebody writes an endpoint of the other family by hand, which names a pod or none.
    pub(super) fn add_ipv6_endpoint(&mut self, service: &ObjectKey) -> Consequences {
        let address = IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, self.random.script.u16(1..100)]);
        let mut endpoints = self.cluster.slices.values().flat_map(|slice| &slice.endpoints);
        if endpoints.any(|endpoint| endpoint.address == address) {
            return Vec::new();
        }
        let pods = self.cluster.pods.iter().filter(|(key, pod)| key.namespace == service.namespace && !pod.leaving);
        let pods: Vec<PodRef> =
            pods.map(|(key, pod)| PodRef { name: key.name.clone(), uid: pod.uid.clone() }).collect();
        let pod = self.pick(&pods).filter(|_| self.random.script.bool());
        let endpoint = Endpoint {
            address,
            ready: self.chance(70),
            serving: self.chance(70),
            terminating: false,
            node: self.node_for_pod(),
            pod,
        };
        let slice = self.make_slice(service);
        self.edit_slice(&slice, |slice| (slice.family, slice.endpoints) = (Family::V6, vec![endpoint]));
        self.stats.count("endpoints of the other family");
        if self.chance(50) {
            vec![(self.while_of(60), Later::EndpointGoes { service: service.clone(), slice, address })]
        } else {
            Vec::new()
        }
    }

    /// Somebody writes an endpoint by hand, which names no pod; there may be one at its address all the same.
    pub(super) fn add_endpoint(&mut self, service: &ObjectKey) -> Consequences {
        let jobs = self.cluster.pods.iter().filter(|(key, pod)| {
            key.namespace == service.namespace && **app_of(pod) == *JOB && !pod.leaving && !pod.addresses.is_empty()
        });
        let jobs: Vec<_> = jobs.map(|(_, pod)| pod.addresses[0]).collect();
        let taken = |address| {
            let mut endpoints = self.cluster.slices.values().flat_map(|slice| &slice.endpoints);
            endpoints.any(|endpoint| endpoint.address == address)
        };
        let free: Vec<_> = jobs.into_iter().filter(|address| !taken(*address)).collect();
        let address = match self.pick(&free) {
            Some(address) if self.random.script.bool() => address,
            _ => self.address(),
        };
        let mut slices = self.slices_of(service);
        slices.retain(|slice| self.cluster.slices[slice].family == Family::V4);
        let slice = self.pick(&slices).unwrap_or_else(|| self.make_slice(service));
        let endpoint = Endpoint {
            address,
            ready: self.chance(70),
            serving: self.chance(70),
            terminating: false,
            node: self.node_for_pod(),
            pod: None,
        };
        self.edit_slice(&slice, |slice| slice.endpoints.push(endpoint.clone()));
        let mut slices = vec![slice];
        if self.random.script.bool() {
            // Its other ports stand in another slice, as those of a second subset do.
            let slice = self.make_slice(service);
            let ports = vec![SlicePort { name: "metrics".into(), protocol: Protocol::Tcp, number: OTHER_PORT }];
            self.edit_slice(&slice, |slice| (slice.ports, slice.endpoints) = (ports, vec![endpoint]));
            self.stats.count("endpoints of two slices with different ports");
            slices.push(slice);
        }
        let goes = self.chance(if slices.len() > 1 { 30 } else { 70 });
        let mut go = |slice| (self.while_of(60), Later::EndpointGoes { service: service.clone(), slice, address });
        if goes { slices.into_iter().map(&mut go).collect() } else { Vec::new() }
    }

    /// The controller moves an endpoint to another slice: for a while it stands in both.
    pub(super) fn move_between_slices(&mut self, pod: &ObjectKey) -> Consequences {
        let uid = self.cluster.pods[pod].uid.clone();
        let has = |slice: &Slice| slice.endpoints.iter().any(|e| e.pod.as_ref().is_some_and(|pod| pod.uid == uid));
        let stands = self.cluster.slices.iter().filter(|(key, slice)| key.namespace == pod.namespace && has(slice));
        let stands: Vec<(ObjectKey, Str)> = stands.map(|(key, slice)| (key.clone(), slice.service.clone())).collect();
        let [(slice, service)] = &stands[..] else { return Vec::new() };
        let service = ObjectKey { namespace: pod.namespace.clone(), name: service.clone() };
        let mut others = self.slices_of(&service);
        others.retain(|other| other != slice && self.cluster.slices[other].family == Family::V4);
        let other = if others.is_empty() || self.chance(30) { self.make_slice(&service) } else { others[0].clone() };
        let endpoint =
            self.cluster.slices[slice].endpoints.iter().find(|e| e.pod.as_ref().is_some_and(|p| p.uid == uid));
        if let Some(endpoint) = endpoint.cloned() {
            self.edit_slice(&other, |slice| slice.endpoints.push(endpoint));
        }
        vec![(self.while_of(3), Later::LeavesSlice { slice: slice.clone(), uid })]
    }

    pub(super) fn leaves_slice(&mut self, slice: &ObjectKey, uid: &Str) {
        let Some(service) = self.cluster.slices.get(slice).map(|there| there.service.clone()) else { return };
        let is_it = |e: &Endpoint| e.pod.as_ref().is_some_and(|pod| pod.uid == *uid);
        let service = ObjectKey { namespace: slice.namespace.clone(), name: service };
        let copies = self.slices_of(&service).into_iter();
        let copies = copies.filter(|key| self.cluster.slices[key].endpoints.iter().any(is_it)).count();
        if copies > 1 {
            self.edit_slice(slice, |slice| slice.endpoints.retain(|e| !is_it(e)));
        }
    }

    pub(super) fn delete_service(&mut self, service: &ObjectKey) -> Consequences {
        self.stats.count("Services deleted");
        let ports = self.cluster.services[service].clone();
        self.cluster.delete_service(service);
        let mut consequences = vec![(self.while_of(5), Later::SlicesGo { service: service.clone() })];
        if self.chance(70) {
            let returns = Later::ServiceReturns { service: service.clone(), ports };
            consequences.push((Duration::from_secs(5) + self.while_of(40), returns));
        }
        consequences
    }

    /// What the team of an app makes of the ports of its Service: others, or one more, with other numbers or the same.
    pub(super) fn other_ports(&mut self, mut ports: Vec<ServicePort>) -> Vec<ServicePort> {
        if self.chance(40) {
            return self.draw_ports();
        }
        ports.retain(|port| &*port.name != "metrics");
        if self.chance(80) {
            // Of several, each has a name.
            ports.iter_mut().filter(|port| port.name.is_empty()).for_each(|port| port.name = "http".into());
            let mut free = (95..100).chain(80..95).filter(|number| ports.iter().all(|port| port.number != *number));
            let number = free.next().unwrap_or(79);
            let metrics = ServicePort { name: "metrics".into(), protocol: Protocol::Tcp, number };
            let place = self.random.script.usize(..=ports.len());
            ports.insert(place, metrics);
            self.stats.count("ports added");
        }
        if self.chance(30) {
            // What the pods listen on goes by these.
            for port in &mut ports {
                port.number = 80 + (port.number + 7) % 20;
            }
        }
        ports
    }

    pub(super) fn edit_ports(&mut self, service: &ObjectKey) -> Consequences {
        let there = self.cluster.services[service].clone();
        let ports = self.other_ports(there.ports.clone());
        if there.ports == ports {
            return Vec::new();
        }
        self.cluster.put_service(service, Service { ports, ..there });
        let service = service.clone();
        let follows =
            if self.chance(70) { Later::SlicesAreRewritten { service } } else { Later::PortsFollow { service } };
        vec![(self.while_of(5), follows)]
    }

    /// An endpoint that somebody wrote by hand goes from this slice or, if the controller has moved it, from all.
    pub(super) fn endpoint_goes(&mut self, service: &ObjectKey, slice: &ObjectKey, address: IpAddr) {
        let stays = |endpoint: &Endpoint| endpoint.address != address;
        if self.cluster.slices.get(slice).is_some_and(|slice| !slice.endpoints.iter().all(stays)) {
            self.edit_slice(slice, |slice| slice.endpoints.retain(stays));
            return;
        }
        let stays = |endpoint: &Endpoint| endpoint.pod.is_some() || endpoint.address != address;
        if let Some(rewriting) = self.cluster.rewriting.get_mut(service) {
            rewriting.taken_out.retain(stays);
        }
        for slice in self.slices_of(service) {
            if !self.cluster.slices[&slice].endpoints.iter().all(stays) {
                self.edit_slice(&slice, |slice| slice.endpoints.retain(stays));
            }
        }
    }

    /// The controller spreads the endpoints of a Service over its slices anew, in random order.
    pub(super) fn rewrite_slices(&mut self, service: &ObjectKey) -> Consequences {
        if !self.cluster.services.contains_key(service) {
            return Vec::new();
        }
        let mut slices = self.slices_of_controller(service);
        while slices.len() < 2 || self.chance(20) {
            let unique = self.cluster.new_uid();
            slices.push(ObjectKey::new(&service.namespace, &format!("{}-{unique}", service.name)));
        }
        self.begin_to_rewrite(service, slices);
        self.stats.count("slices rewritten one by one");
        self.write_next_slice(service)
    }

    /// Somebody deletes all slices of a Service; the controller makes them again.
    pub(super) fn lose_slices(&mut self, service: &ObjectKey) -> Consequences {
        let slices = self.slices_of_controller(service);
        let out = slices.iter().flat_map(|slice| &self.cluster.slices[slice].endpoints).cloned();
        let out: Vec<Endpoint> = out.filter(|endpoint| !endpoint.terminating).collect();
        self.stats.count("slices all deleted");
        self.begin_to_rewrite(service, slices.clone());
        self.cluster.rewriting.entry(service.clone()).or_default().taken_out.extend(out);
        for slice in slices {
            self.cluster.delete_slice(&slice);
            self.work_out_what_is_wanted();
        }
        vec![(Duration::from_secs(1) + self.while_of(1), Later::NextSlice { service: service.clone() })]
    }

    /// Notes which slice each endpoint is to stand in, and in which order they are written.
    pub(super) fn begin_to_rewrite(&mut self, service: &ObjectKey, mut slices: Vec<ObjectKey>) {
        let out = self.cluster.taken_out(service);
        let there = self.cluster.slices_of(service).filter(|(_, slice)| is_of_controller(slice));
        let there = there.flat_map(|(_, slice)| &slice.endpoints);
        let all: Vec<EndpointId> = there.chain(&out).map(endpoint_id).collect();
        let assigned = all.into_iter().filter_map(|id| Some((id, self.pick(&slices)?))).collect();
        self.random.script.shuffle(&mut slices);
        self.cluster.was_rewritten = true;
        self.cluster.rewriting.insert(service.clone(), Rewriting { assigned, todo: slices, taken_out: out });
    }

    pub(super) fn write_next_slice(&mut self, service: &ObjectKey) -> Consequences {
        let out = self.cluster.taken_out(service);
        let Some(rewriting) = self.cluster.rewriting.get_mut(service) else { return Vec::new() };
        let Some(key) = rewriting.todo.pop() else {
            self.cluster.rewriting.remove(service);
            return Vec::new();
        };
        let (assigned, is_last) = (rewriting.assigned.clone(), rewriting.todo.is_empty());
        let is_elsewhere = |id: &EndpointId| assigned.get(id).is_some_and(|slice| *slice != key);
        let there = self.cluster.slices.get(&key).map(|slice| slice.endpoints.clone()).unwrap_or_default();
        let (leave, stay): (Vec<Endpoint>, Vec<Endpoint>) =
            there.into_iter().partition(|endpoint| !endpoint.terminating && is_elsewhere(&endpoint_id(endpoint)));
        let others = self.cluster.slices_of(service).filter(|(other, slice)| **other != key && is_of_controller(slice));
        let others = others.flat_map(|(_, slice)| &slice.endpoints).filter(|endpoint| !endpoint.terminating).cloned();
        let mut endpoints: BTreeMap<EndpointId, Endpoint> = BTreeMap::new();
        for endpoint in others.chain(out.clone()).filter(|endpoint| assigned.get(&endpoint_id(endpoint)) == Some(&key))
        {
            if let Some(endpoint) = self.cluster.as_it_is(service, &endpoint) {
                endpoints.insert(endpoint_id(&endpoint), endpoint);
            }
        }
        endpoints.extend(stay.into_iter().map(|endpoint| (endpoint_id(&endpoint), endpoint)));
        let slice = Slice {
            service: service.name.clone(),
            family: Family::V4,
            ports: self.slice_ports(service),
            endpoints: endpoints.into_values().collect(),
        };
        if let Some(rewriting) = self.cluster.rewriting.get_mut(service) {
            rewriting.taken_out.extend(leave);
        }
        self.cluster.put_slice(&key, slice);
        self.work_out_what_is_wanted();
        if is_last {
            self.cluster.rewriting.remove(service);
            // Those of the other family follow as well.
            let ports = self.slice_ports(service);
            for slice in self.slices_of(service) {
                let there = &self.cluster.slices[&slice];
                if there.family == Family::V6 && there.ports != ports {
                    let ports = ports.clone();
                    self.edit_slice(&slice, |slice| slice.ports = ports);
                }
            }
            return Vec::new();
        }
        let pause = if self.chance(70) { self.random.script.u64(10..300) } else { self.random.script.u64(10..2_500) };
        vec![(Duration::from_millis(pause), Later::NextSlice { service: service.clone() })]
    }

    pub(super) fn ports_follow(&mut self, service: &ObjectKey) {
        let ports = self.slice_ports(service);
        if !self.cluster.services.contains_key(service) {
            return;
        }
        for key in self.slices_of(service) {
            let ports = ports.clone();
            self.edit_slice(&key, |slice| slice.ports = ports);
        }
    }
}

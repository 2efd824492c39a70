//! Pods, and the endpoints that follow them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use lictor::model::facts::{Attributes, ContainerKind, ContainerPort, Endpoint, Family, Pod, Protocol};
use lictor::model::ids::Str;
use lictor::state::event::ObjectKey;

use super::services::{SERVICES, is_of_controller};
use super::{Consequences, INVENTED_NODE, Later, NODES};
use crate::cluster::endpoint_of;
use crate::setup::NAMESPACES;
use crate::sim::State;

/// The label by which Services and resources pick pods.
pub const APP: &str = "app";
/// Pods that no Service has.
pub const JOB: &str = "job";
/// A label that templates hold.
pub const VERSION: &str = "version";
/// The app that a pod is of.
pub fn app_of(pod: &Pod) -> &Str {
    pod.labels.get(APP).expect("each pod is of an app")
}

/// Annotations that templates hold.
pub const ANNOTATIONS: [&str; 2] = ["team", "tier"];

/// The most pods that live at once, and the most of one app.
const MOST: usize = 40;
const MOST_OF_ONE: usize = 8;

/// The annotations of a pod that has these values, of all that templates hold.
fn with(values: &[(Str, Option<Str>)]) -> Attributes {
    let keys = Arc::new(values.iter().map(|(key, _)| key.clone()).collect());
    Attributes::look_for(&keys, |key| values.iter().find(|(of, _)| of == key).and_then(|(_, value)| value.clone()))
}

impl State {
    pub(super) fn on_a_pod(&mut self, act: impl FnOnce(&mut Self, &ObjectKey) -> Consequences) -> Consequences {
        let all: Vec<ObjectKey> =
            self.cluster.pods.iter().filter(|(_, pod)| !pod.leaving).map(|(key, _)| key.clone()).collect();
        self.pick(&all).map(|pod| act(self, &pod)).unwrap_or_default()
    }

    /// A pod of a Service, or of none.
    pub(super) fn add_some_pod(&mut self) -> Consequences {
        if self.chance(25) {
            let Some(namespace) = self.pick(&NAMESPACES) else { return Vec::new() };
            return self.add_pod(&ObjectKey::new(namespace, JOB));
        }
        self.on_a_service(Self::add_pod)
    }

    /// A pod of the app that is called as the Service.
    pub(super) fn add_pod(&mut self, app: &ObjectKey) -> Consequences {
        let living = self.cluster.pods.iter().filter(|(_, pod)| !pod.leaving);
        let of_app = living.clone().filter(|(key, pod)| key.namespace == app.namespace && *app_of(pod) == app.name);
        if of_app.count() >= MOST_OF_ONE || living.count() >= MOST {
            return Vec::new();
        }
        let uid = self.cluster.new_uid();
        let key = ObjectKey::new(&app.namespace, &format!("{}-{uid}", app.name));
        let starts = self.chance(85);
        let pod = Pod {
            uid: uid.clone(),
            addresses: if starts { self.addresses() } else { Vec::new() },
            ready: starts && self.chance(70),
            leaving: false,
            node: self.node_for_pod(),
            ports: self.container_ports(),
            labels: self.labels(&app.name),
            annotations: self.annotations(),
        };
        let mut consequences = self.put_pod(&key, pod);
        if !starts {
            consequences.push((self.while_of(10), Later::Starts { pod: key, uid }));
        }
        consequences
    }

    fn labels(&mut self, app: &Str) -> Attributes {
        let version = self.pick(&["1", "2"]).unwrap_or_default();
        let versions = self.chance(80).then(|| (VERSION.into(), version.into()));
        [(APP.into(), app.clone())].into_iter().chain(versions).collect()
    }

    /// All that templates hold; of each a value with some luck.
    fn annotations(&mut self) -> Attributes {
        let values = ANNOTATIONS.map(|key| (Str::from(key), self.annotation()));
        with(&values)
    }

    fn annotation(&mut self) -> Option<Str> {
        let value = self.pick(&["blue", "green"]).map(Str::from);
        value.filter(|_| self.chance(80))
    }

    fn container_ports(&mut self) -> Vec<ContainerPort> {
        let of = |of, name: &str, number| ContainerPort { name: name.into(), protocol: Protocol::Tcp, number, of };
        let port = |name: &str, number| of(ContainerKind::Own, name, number);
        match self.random.script.u8(..12) {
            0 => Vec::new(),
            1 => vec![port("", 8080)],
            2..7 => vec![port("http", 8080)],
            7 => vec![of(ContainerKind::Main, "http", 8080), port("grpc", 8090)],
            8 => vec![port("http", 8080), of(ContainerKind::Beside, "admin", 8091)],
            _ => vec![port("grpc", 8090), port("http", 8080)],
        }
    }

    /// Addresses that nothing living has; some that were used before come again.
    fn addresses(&mut self) -> Vec<IpAddr> {
        let address = self.address();
        let IpAddr::V4(v4) = address else { return vec![address] };
        let second = Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(v4.octets()[3])]);
        if self.chance(20) { vec![address, second.into()] } else { vec![address] }
    }

    pub(super) fn address(&mut self) -> IpAddr {
        let pods = self.cluster.pods.values().filter(|pod| !pod.leaving).flat_map(|pod| &pod.addresses);
        let taken_out = self.cluster.rewriting.values().flat_map(|rewriting| &rewriting.taken_out);
        let endpoints = self.cluster.slices.values().flat_map(|slice| &slice.endpoints).chain(taken_out);
        let endpoints = endpoints.filter(|endpoint| !endpoint.terminating).map(|endpoint| &endpoint.address);
        let used: BTreeSet<IpAddr> = pods.chain(endpoints).copied().collect();
        loop {
            let address = IpAddr::from([10, 0, 0, self.random.script.u8(1..100)]);
            if !used.contains(&address) {
                return address;
            }
        }
    }

    /// Mostly a node; now and then none, or a name that is no Node's.
    pub(super) fn node_for_pod(&mut self) -> Option<Str> {
        let node = self.pick(&NODES)?;
        match self.random.script.u8(..100) {
            0..12 => None,
            12..18 => Some(INVENTED_NODE.into()),
            _ => Some(node.into()),
        }
    }

    /// Changes a pod; its endpoint follows at once or a little later.
    fn put_pod(&mut self, key: &ObjectKey, pod: Pod) -> Consequences {
        let uid = pod.uid.clone();
        self.cluster.put_pod(key, pod);
        self.work_out_what_is_wanted();
        self.have_endpoint_follow(key, uid)
    }

    fn have_endpoint_follow(&mut self, key: &ObjectKey, uid: Str) -> Consequences {
        if self.chance(60) {
            self.endpoint_follows(key, &uid);
            return Vec::new();
        }
        vec![(self.while_of(5), Later::EndpointFollows { pod: key.clone(), uid })]
    }

    pub(super) fn edit_pod(&mut self, key: &ObjectKey, edit: impl FnOnce(&mut Pod)) -> Consequences {
        let mut pod = self.cluster.pods[key].clone();
        edit(&mut pod);
        self.put_pod(key, pod)
    }

    pub(super) fn flip_ready(&mut self, key: &ObjectKey) -> Consequences {
        if self.cluster.pods[key].addresses.is_empty() {
            return Vec::new();
        }
        self.edit_pod(key, |pod| pod.ready ^= true)
    }

    pub(super) fn start_pod(&mut self, key: &ObjectKey, uid: &Str) -> Consequences {
        let waits = |pod: &Pod| pod.uid == *uid && pod.addresses.is_empty() && !pod.leaving;
        if !self.cluster.pods.get(key).is_some_and(waits) {
            return Vec::new();
        }
        let (addresses, ready) = (self.addresses(), self.random.script.bool());
        self.edit_pod(key, |pod| (pod.addresses, pod.ready) = (addresses, ready))
    }

    /// A pod is on its way out, or gone at once.
    pub(super) fn remove_pod(&mut self, key: &ObjectKey) -> Consequences {
        let uid = self.cluster.pods[key].uid.clone();
        if self.chance(30) {
            return self.forget_pod(key, &uid);
        }
        self.end_pod(key)
    }

    pub(super) fn end_pod(&mut self, key: &ObjectKey) -> Consequences {
        let uid = self.cluster.pods[key].uid.clone();
        let still_ready = self.random.script.bool();
        let mut consequences = self.edit_pod(key, |pod| {
            pod.leaving = true;
            pod.ready &= still_ready;
        });
        consequences.push((self.while_of(30), Later::Gone { pod: key.clone(), uid }));
        consequences
    }

    /// All pods of an app are on their way out at once, and serve until they are gone; another one comes meanwhile.
    pub(super) fn drain(&mut self, app: &ObjectKey) -> Consequences {
        let of_app = |(key, pod): &(&ObjectKey, &Pod)| {
            key.namespace == app.namespace && *app_of(pod) == app.name && !pod.leaving
        };
        let all: Vec<(ObjectKey, Str)> =
            self.cluster.pods.iter().filter(of_app).map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
        let mut consequences = vec![(self.while_of(15), Later::Joins { app: app.clone() })];
        for (key, uid) in all {
            self.stats.count("pods that serve to their end");
            consequences.extend(self.edit_pod(&key, |pod| pod.leaving = true));
            consequences.push((Duration::from_secs(5) + self.while_of(30), Later::Gone { pod: key, uid }));
        }
        consequences
    }

    pub(super) fn forget_pod(&mut self, key: &ObjectKey, uid: &Str) -> Consequences {
        if self.cluster.pods.get(key).is_none_or(|pod| pod.uid != *uid) {
            return Vec::new();
        }
        self.cluster.delete_pod(key);
        self.work_out_what_is_wanted();
        self.have_endpoint_follow(key, uid.clone())
    }

    /// A pod of a `StatefulSet` comes back: the same name, another uid, perhaps another address and node.
    pub(super) fn replace_pod(&mut self, key: &ObjectKey) -> Consequences {
        let mut pod = self.cluster.pods[key].clone();
        self.stats.count("same-name replacements");
        let mut consequences = self.forget_pod(key, &pod.uid.clone());
        pod.uid = self.cluster.new_uid();
        pod.ready = self.random.script.bool() && !pod.addresses.is_empty();
        if self.random.script.bool() {
            pod.addresses = self.addresses();
        }
        if self.random.script.bool() {
            pod.node = self.node_for_pod();
        }
        let uid = pod.uid.clone();
        let starts = !pod.addresses.is_empty();
        consequences.extend(self.put_pod(key, pod));
        if !starts {
            consequences.push((self.while_of(10), Later::Starts { pod: key.clone(), uid }));
        }
        consequences
    }

    /// Somebody edits a pod's labels or annotations.
    pub(super) fn label_anew(&mut self, key: &ObjectKey) -> Consequences {
        let mut pod = self.cluster.pods[key].clone();
        let app = app_of(&pod).clone();
        match self.random.script.u8(..4) {
            0 => {
                // Others have it now.
                let app = self.pick(&[SERVICES[0], SERVICES[1], JOB]).unwrap_or_default();
                let others = pod.labels.iter().filter(|(key, _)| **key != *APP).cloned();
                pod.labels = others.chain([(APP.into(), app.into())]).collect();
            }
            1 | 2 => pod.labels = self.labels(&app),
            _ => {
                let Some(annotation) = self.pick(&ANNOTATIONS) else { return Vec::new() };
                let value = |key: &str| pod.annotations.get(key).cloned();
                let edited = self.annotation();
                let values =
                    ANNOTATIONS.map(|key| (key.into(), if key == annotation { edited.clone() } else { value(key) }));
                pod.annotations = with(&values);
            }
        }
        self.stats.count("pods labelled anew");
        self.put_pod(key, pod)
    }

    /// Brings the endpoints in line with a pod as it is now, as the controller of slices does.
    pub(super) fn endpoint_follows(&mut self, key: &ObjectKey, uid: &Str) {
        let is_it = |endpoint: &Endpoint| endpoint.pod.as_ref().is_some_and(|pod| pod.uid == *uid);
        let pod = self.cluster.pods.get(key).filter(|pod| pod.uid == *uid && !pod.addresses.is_empty()).cloned();
        let service = pod.as_ref().map(|pod| ObjectKey { namespace: key.namespace.clone(), name: app_of(pod).clone() });
        let service = service.filter(|service| self.cluster.services.contains_key(service));
        let here = self.cluster.slices.iter().filter(|(slice, _)| slice.namespace == key.namespace);
        let stands = here.filter(|(_, slice)| slice.endpoints.iter().any(is_it));
        let stands: Vec<(ObjectKey, Str)> = stands.map(|(key, slice)| (key.clone(), slice.service.clone())).collect();
        let mut stays = false;
        let published = service.as_ref().is_some_and(|service| self.cluster.publishing.contains(service));
        let endpoint = |pod: &Pod| endpoint_of(key, pod, published);
        for (slice, of) in stands {
            match (&pod, &service) {
                (Some(pod), Some(service)) if service.name == of => {
                    // What somebody wrote by hand keeps its address of the other family, and is no endpoint of the controller's.
                    let by_hand = self.cluster.slices[&slice].family == Family::V6;
                    stays |= !by_hand;
                    self.edit_slice(&slice, |slice| {
                        for there in slice.endpoints.iter_mut().filter(|e| is_it(e)) {
                            let address = by_hand.then_some(there.address);
                            let follows = endpoint(pod);
                            *there = Endpoint { address: address.unwrap_or(follows.address), ..follows };
                        }
                    });
                }
                _ => self.edit_slice(&slice, |slice| slice.endpoints.retain(|e| !is_it(e))),
            }
        }
        if let (Some(pod), Some(service), false) = (pod.filter(|pod| !pod.leaving), service, stays) {
            let mut slices = self.slices_of(&service);
            // Those of other ports are not the controller's.
            slices.retain(|slice| is_of_controller(&self.cluster.slices[slice]));
            let slice = self.pick(&slices).unwrap_or_else(|| self.make_slice(&service));
            self.edit_slice(&slice, |slice| slice.endpoints.push(endpoint(&pod)));
        }
    }
}

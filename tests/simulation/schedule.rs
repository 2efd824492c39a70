//! What users, controllers and kubelets do to Kubernetes while Lictor runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lictor::cluster::event::ObjectKey;
use lictor::model::facts::{Endpoint, Family, Node, PodRef, Service, ServicePort, Slice, SlicePort};
use lictor::model::names::{ResourceKey, Str};
use lictor::model::registration::{TaggedAddress, Weights};
use lictor::model::resource::{DeletionPolicy, PortRef, Readiness, Refusal, Source, Spec};

use crate::setup::NAMESPACES;
use crate::sim::State;

/// The Kubernetes nodes; the last one's Consul node would be that of another cluster's node.
pub const NODES: [&str; 4] = ["n0", "n1", "n2", "b-x"];
const SERVICES: [&str; 2] = ["web", "api"];
const RESOURCES: [&str; 3] = ["r0", "r1", "r2"];

/// Something that happens later, as a consequence.
#[derive(Clone, Debug)]
pub enum Later {
    /// An endpoint that was on its way out is gone.
    Gone { service: ObjectKey, uid: Str },
    /// The slices of a Service go after it.
    SlicesGo { service: ObjectKey },
    /// A Service comes back, with the endpoints that its slices had.
    ServiceReturns { service: ObjectKey, ports: Service, slices: Vec<Slice> },
    /// An endpoint that stands in two slices leaves the one that it was in before.
    LeavesSlice { slice: ObjectKey, uid: Str },
    /// A spec that was refused is mended.
    Mended { key: ResourceKey, spec: Arc<Spec> },
    /// A resource is made again.
    Recreated { key: ResourceKey, spec: Arc<Spec> },
    /// Somebody else's finalizer comes off.
    OtherFinalizerGoes { key: ResourceKey },
    /// A Service's slices follow a change of its ports.
    PortsFollow { service: ObjectKey },
}

/// Consequences, with how long they take.
pub type Consequences = Vec<(Duration, Later)>;

/// A finalizer that is not ours.
const OTHERS_FINALIZER: &str = "example.com/protect";

impl State {
    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.script.usize(..from.len())].clone())
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.random.script.u8(..100) < percent
    }

    /// Up to this many seconds, often less.
    fn while_of(&mut self, most: u64) -> Duration {
        let most = if self.random.script.bool() { most * 1000 } else { most * 100 };
        Duration::from_millis(self.random.script.u64(0..most.max(1)))
    }

    /// What is there when everything begins.
    pub fn furnish(&mut self) {
        for (nth, name) in NODES.iter().enumerate() {
            self.cluster
                .put_node(name, Node { address: Some(IpAddr::from([10, 9, 0, u8::try_from(nth).unwrap_or(0)])) });
        }
        for _ in 0..self.random.script.u8(1..=3) {
            let Some(service) = self.service_to_be() else { break };
            self.make_service(&service);
            for _ in 0..self.random.script.u8(0..6) {
                self.add_pod(&service);
            }
        }
        for _ in 0..self.random.script.u8(1..=3) {
            self.create_resource();
        }
    }

    /// Something happens to Kubernetes.
    pub fn turn(&mut self) -> Consequences {
        let what = self.random.script.u8(..100);
        match what {
            0..16 => self.on_a_service(|state, service| {
                state.add_pod(service);
                Vec::new()
            }),
            16..34 => self.on_a_pod(Self::flip_ready),
            34..46 => self.on_a_pod(Self::remove_pod),
            46..54 => self.on_a_pod(Self::replace_pod),
            54..60 => self.on_a_pod(Self::move_between_slices),
            60..68 => self.create_resource(),
            68..79 => self.on_a_resource(Self::edit_resource),
            79..86 => self.on_a_resource(Self::delete_resource),
            86..88 => self.on_a_resource(Self::force_away),
            88..91 => self.on_a_service(Self::delete_service),
            91..93 => self.on_a_service(Self::edit_ports),
            93..95 => {
                if let Some(service) = self.service_to_be() {
                    self.make_service(&service);
                }
                Vec::new()
            }
            95..97 => self.change_node(),
            97..98 => self.delete_namespace(),
            _ => self.on_a_resource(Self::refuse_spec),
        }
    }

    fn on_a_service(&mut self, act: impl FnOnce(&mut Self, &ObjectKey) -> Consequences) -> Consequences {
        let all: Vec<ObjectKey> = self.cluster.services.keys().cloned().collect();
        self.pick(&all).map(|service| act(self, &service)).unwrap_or_default()
    }

    fn on_a_resource(&mut self, act: impl FnOnce(&mut Self, &ResourceKey) -> Consequences) -> Consequences {
        let live = self.cluster.resources.values().filter(|object| !object.deleting);
        let all: Vec<ResourceKey> = live.map(|object| object.key.clone()).collect();
        self.pick(&all).map(|key| act(self, &key)).unwrap_or_default()
    }

    fn on_a_pod(&mut self, act: impl FnOnce(&mut Self, &ObjectKey, usize) -> Consequences) -> Consequences {
        let endpoints = self.cluster.slices.iter().flat_map(|(key, slice)| {
            let living = slice.endpoints.iter().enumerate().filter(|(_, endpoint)| !endpoint.terminating);
            living.map(|(nth, _)| (key.clone(), nth))
        });
        let all: Vec<(ObjectKey, usize)> = endpoints.collect();
        self.pick(&all).map(|(slice, nth)| act(self, &slice, nth)).unwrap_or_default()
    }

    fn edit_slice(&mut self, key: &ObjectKey, edit: impl FnOnce(&mut Slice)) {
        if let Some(slice) = self.cluster.slices.get(key) {
            let mut slice = slice.clone();
            edit(&mut slice);
            self.cluster.put_slice(key, slice);
            // Several edits may come at once, and each is seen by itself.
            self.work_out_what_is_wanted();
        }
    }

    /// A Service that is not there.
    fn service_to_be(&mut self) -> Option<ObjectKey> {
        let all = NAMESPACES.iter().flat_map(|namespace| SERVICES.iter().map(|name| ObjectKey::new(namespace, name)));
        let free: Vec<ObjectKey> = all.filter(|key| !self.cluster.services.contains_key(key)).collect();
        self.pick(&free)
    }

    fn draw_ports(&mut self) -> Vec<ServicePort> {
        let port = |name: &str, number| ServicePort { name: name.into(), number };
        match self.random.script.u8(..5) {
            0 => vec![port("", 80)],
            1 | 2 => vec![port("http", 80)],
            _ => vec![port("http", 80), port("grpc", 90)],
        }
    }

    fn make_service(&mut self, key: &ObjectKey) {
        let ports = self.draw_ports();
        let family = if self.random.script.u8(..4) == 0 { None } else { Some(Family::V4) };
        self.cluster.put_service(key, Service { family, external_name: false, ports });
        if self.slices_of(key).is_empty() {
            self.make_slice(key);
        }
    }

    fn slices_of(&self, service: &ObjectKey) -> Vec<ObjectKey> {
        let own = self
            .cluster
            .slices
            .iter()
            .filter(|(key, slice)| key.namespace == service.namespace && slice.service == service.name);
        own.map(|(key, _)| key.clone()).collect()
    }

    fn slice_ports(&self, service: &ObjectKey) -> Vec<SlicePort> {
        let ports = self.cluster.services.get(service).map(|service| service.ports.clone()).unwrap_or_default();
        ports.into_iter().map(|port| SlicePort { name: port.name, number: port.number + 8000 }).collect()
    }

    fn make_slice(&mut self, service: &ObjectKey) -> ObjectKey {
        let unique = self.cluster.new_uid();
        let key = ObjectKey::new(&service.namespace, &format!("{}-{unique}", service.name));
        let ports = self.slice_ports(service);
        let slice = Slice { service: service.name.clone(), family: Family::V4, ports, endpoints: Vec::new() };
        self.cluster.put_slice(&key, slice);
        key
    }

    /// An address that no living endpoint has; one that was used before may come again.
    fn address(&mut self) -> IpAddr {
        let living = self.cluster.slices.values().flat_map(|slice| &slice.endpoints).filter(|e| !e.terminating);
        let used: Vec<IpAddr> = living.map(|endpoint| endpoint.address).collect();
        loop {
            let address = IpAddr::from([10, 0, 0, self.random.script.u8(1..60)]);
            if !used.contains(&address) {
                return address;
            }
        }
    }

    fn node_for_pod(&mut self) -> Option<Str> {
        let node = self.pick(&NODES)?;
        (!self.chance(12)).then(|| node.into())
    }

    fn add_pod(&mut self, service: &ObjectKey) {
        let slices = self.slices_of(service);
        let living = slices.iter().map(|slice| self.cluster.slices[slice].endpoints.len()).sum::<usize>();
        if living >= 8 {
            return;
        }
        let slice = self.pick(&slices).unwrap_or_else(|| self.make_slice(service));
        let uid = self.cluster.new_uid();
        let pod = (!self.chance(8)).then(|| PodRef { name: format!("{}-{uid}", service.name).into(), uid });
        let endpoint = Endpoint {
            address: self.address(),
            ready: self.chance(70),
            terminating: false,
            node: self.node_for_pod(),
            pod,
        };
        self.edit_slice(&slice, |slice| slice.endpoints.push(endpoint));
    }

    fn flip_ready(&mut self, slice: &ObjectKey, nth: usize) -> Consequences {
        self.edit_slice(slice, |slice| slice.endpoints[nth].ready ^= true);
        Vec::new()
    }

    fn remove_pod(&mut self, slice: &ObjectKey, nth: usize) -> Consequences {
        let there = &self.cluster.slices[slice];
        let service = ObjectKey { namespace: slice.namespace.clone(), name: there.service.clone() };
        let uid = there.endpoints[nth].pod.as_ref().map(|pod| pod.uid.clone());
        match uid {
            Some(uid) if self.chance(70) => {
                let still_ready = self.random.script.bool();
                self.each_copy(&service, &uid, |endpoint| {
                    endpoint.terminating = true;
                    endpoint.ready &= still_ready;
                });
                vec![(self.while_of(30), Later::Gone { service, uid })]
            }
            Some(uid) => {
                self.forget_pod(&service, &uid);
                Vec::new()
            }
            None => {
                self.edit_slice(slice, |slice| {
                    slice.endpoints.remove(nth);
                });
                Vec::new()
            }
        }
    }

    fn each_copy(&mut self, service: &ObjectKey, uid: &Str, edit: impl Fn(&mut Endpoint)) {
        for key in self.slices_of(service) {
            let has = |endpoint: &Endpoint| endpoint.pod.as_ref().is_some_and(|pod| pod.uid == *uid);
            if self.cluster.slices[&key].endpoints.iter().any(has) {
                self.edit_slice(&key, |slice| slice.endpoints.iter_mut().filter(|e| has(e)).for_each(&edit));
            }
        }
    }

    fn forget_pod(&mut self, service: &ObjectKey, uid: &Str) {
        for key in self.slices_of(service) {
            self.forget_in_slice(&key, uid);
        }
    }

    fn forget_in_slice(&mut self, key: &ObjectKey, uid: &Str) {
        let has = |endpoint: &Endpoint| endpoint.pod.as_ref().is_some_and(|pod| pod.uid == *uid);
        if self.cluster.slices.get(key).is_some_and(|slice| slice.endpoints.iter().any(has)) {
            self.edit_slice(key, |slice| slice.endpoints.retain(|endpoint| !has(endpoint)));
        }
    }

    /// A pod of a `StatefulSet` comes back: the same name, another uid, perhaps another address and node.
    fn replace_pod(&mut self, slice: &ObjectKey, nth: usize) -> Consequences {
        let there = &self.cluster.slices[slice];
        let service = ObjectKey { namespace: slice.namespace.clone(), name: there.service.clone() };
        let mut endpoint = there.endpoints[nth].clone();
        let Some(old) = endpoint.pod.clone() else { return Vec::new() };
        self.stats.count("same-name replacements");
        endpoint.pod = Some(PodRef { name: old.name, uid: self.cluster.new_uid() });
        endpoint.ready = self.random.script.bool();
        if self.random.script.bool() {
            endpoint.address = self.address();
        }
        if self.random.script.bool() {
            endpoint.node = self.node_for_pod();
        }
        self.forget_pod(&service, &old.uid);
        self.edit_slice(slice, |slice| slice.endpoints.push(endpoint));
        Vec::new()
    }

    /// The controller moves an endpoint to another slice: for a while it stands in both.
    fn move_between_slices(&mut self, slice: &ObjectKey, nth: usize) -> Consequences {
        let there = &self.cluster.slices[slice];
        let service = ObjectKey { namespace: slice.namespace.clone(), name: there.service.clone() };
        let endpoint = there.endpoints[nth].clone();
        let Some(pod) = &endpoint.pod else { return Vec::new() };
        let uid = pod.uid.clone();
        let mut others = self.slices_of(&service);
        others.retain(|other| other != slice);
        let other = if others.is_empty() || self.chance(30) { self.make_slice(&service) } else { others[0].clone() };
        let has = |slice: &Slice| slice.endpoints.iter().any(|e| e.pod.as_ref().is_some_and(|pod| pod.uid == uid));
        if has(&self.cluster.slices[&other]) {
            return Vec::new();
        }
        self.edit_slice(&other, |slice| slice.endpoints.push(endpoint));
        vec![(self.while_of(3), Later::LeavesSlice { slice: slice.clone(), uid })]
    }

    fn draw_spec(&mut self, namespace: &Str) -> Arc<Spec> {
        let text = |text: &str| -> Str { text.into() };
        let existing: Vec<Str> = self
            .cluster
            .services
            .keys()
            .filter(|key| key.namespace == *namespace)
            .map(|key| key.name.clone())
            .collect();
        let source = if self.chance(88) { self.pick(&existing) } else { None };
        let service = self.pick(&["user", "User", "api", "db_1"]).unwrap_or_default();
        let source = Source::Service { name: source.unwrap_or_else(|| text("web")) };
        let port = match self.random.script.u8(..6) {
            0 => None,
            1 => Some(PortRef::Number(80)),
            2 => Some(PortRef::Name("grpc".into())),
            3 => Some(PortRef::Number(90)),
            _ => Some(PortRef::Name("http".into())),
        };
        let tags: Vec<Str> =
            ["blue", "green", "v1"].into_iter().filter(|_| self.random.script.bool()).map(text).collect();
        let mut meta = BTreeMap::new();
        if self.random.script.bool() {
            meta.insert(text("version"), self.pick(&["1", "2"]).unwrap_or_default().into());
        }
        let mut tagged = BTreeMap::new();
        if self.chance(15) {
            tagged.insert(text("wan"), TaggedAddress { address: "198.51.100.1".into(), port: 443 });
        }
        let weights = if self.chance(20) { Weights { passing: 10, warning: 2 } } else { Weights::default() };
        Arc::new(Spec {
            service: service.into(),
            source,
            port,
            tags: tags.into(),
            meta,
            weights,
            tagged_addresses: Arc::new(tagged),
            enable_tag_override: self.chance(10),
            readiness: match self.random.script.u8(..5) {
                0 => Readiness::Deregister,
                1 => Readiness::Ignore,
                _ => Readiness::Mirror,
            },
            checks: Vec::new(),
        })
    }

    fn create_resource(&mut self) -> Consequences {
        let all =
            NAMESPACES.iter().flat_map(|namespace| RESOURCES.iter().map(|name| ResourceKey::new(namespace, name)));
        let free: Vec<ResourceKey> = all.filter(|key| !self.cluster.resources.contains_key(key)).collect();
        if self.cluster.resources.len() < 4
            && let Some(key) = self.pick(&free)
        {
            let spec = self.draw_spec(&key.namespace);
            let deletion = if self.chance(20) { DeletionPolicy::Retain } else { DeletionPolicy::Deregister };
            self.cluster.create(&key, spec, deletion);
            if self.chance(10) {
                self.cluster.set_finalizers(&key, vec![OTHERS_FINALIZER.into()]);
            }
        }
        Vec::new()
    }

    fn edit_resource(&mut self, key: &ResourceKey) -> Consequences {
        let drawn = self.draw_spec(&key.namespace);
        let Ok(before) = self.cluster.resources[key].spec.clone() else { return Vec::new() };
        let mut spec = (*before).clone();
        match self.random.script.u8(..8) {
            0 | 1 => {
                if spec.service != drawn.service {
                    self.stats.count("renames");
                }
                spec.service.clone_from(&drawn.service);
            }
            2 => spec.port.clone_from(&drawn.port),
            3 => spec.tags = drawn.tags.clone(),
            4 => spec.meta = drawn.meta.clone(),
            5 => spec.readiness = drawn.readiness,
            6 => spec.source = drawn.source.clone(),
            _ => spec = (*drawn).clone(),
        }
        if spec != *before {
            self.cluster.edit(key, Ok(Arc::new(spec)));
        }
        Vec::new()
    }

    fn delete_resource(&mut self, key: &ResourceKey) -> Consequences {
        let object = self.cluster.resources[key].clone();
        self.cluster.delete(key);
        let mut consequences = Vec::new();
        if object.finalizers.iter().any(|finalizer| &**finalizer == OTHERS_FINALIZER) {
            consequences.push((self.while_of(40), Later::OtherFinalizerGoes { key: key.clone() }));
        }
        if self.random.script.bool() {
            let spec = match object.spec {
                Ok(spec) if self.random.script.bool() => spec,
                _ => self.draw_spec(&key.namespace),
            };
            consequences.push((self.while_of(30), Later::Recreated { key: key.clone(), spec }));
        }
        consequences
    }

    /// Somebody takes all finalizers off and deletes it: Lictor is not waited for.
    fn force_away(&mut self, key: &ResourceKey) -> Consequences {
        self.stats.count("resources forced away");
        self.cluster.delete(key);
        if self.cluster.resources.contains_key(key) {
            self.cluster.set_finalizers(key, Vec::new());
        }
        Vec::new()
    }

    fn delete_service(&mut self, service: &ObjectKey) -> Consequences {
        self.stats.count("Services deleted");
        let there = self.cluster.services[service].clone();
        let slices = self.slices_of(service).iter().map(|key| self.cluster.slices[key].clone()).collect();
        self.cluster.delete_service(service);
        let mut consequences = vec![(self.while_of(5), Later::SlicesGo { service: service.clone() })];
        if self.chance(70) {
            let returns = Later::ServiceReturns { service: service.clone(), ports: there, slices };
            consequences.push((Duration::from_secs(5) + self.while_of(40), returns));
        }
        consequences
    }

    fn edit_ports(&mut self, service: &ObjectKey) -> Consequences {
        let ports = self.draw_ports();
        let there = self.cluster.services[service].clone();
        if there.ports == ports {
            return Vec::new();
        }
        self.cluster.put_service(service, Service { ports, ..there });
        vec![(self.while_of(5), Later::PortsFollow { service: service.clone() })]
    }

    fn change_node(&mut self) -> Consequences {
        let Some(name) = self.pick(&NODES) else { return Vec::new() };
        let key = ObjectKey::new("", name);
        if self.cluster.nodes.contains_key(&key) && self.chance(40) {
            self.cluster.delete_node(name);
        } else {
            let address = IpAddr::from([10, 9, 1, self.random.script.u8(..)]);
            self.cluster.put_node(name, Node { address: Some(address) });
        }
        Vec::new()
    }

    fn delete_namespace(&mut self) -> Consequences {
        self.stats.count("namespaces deleted");
        let Some(namespace) = self.pick(&NAMESPACES) else { return Vec::new() };
        let resources: Vec<ResourceKey> =
            self.cluster.resources.keys().filter(|key| &*key.namespace == namespace).cloned().collect();
        let services: Vec<ObjectKey> =
            self.cluster.services.keys().filter(|key| &*key.namespace == namespace).cloned().collect();
        let mut consequences = Vec::new();
        for key in resources {
            self.cluster.delete(&key);
            if self.cluster.resources.contains_key(&key) {
                consequences.push((self.while_of(10), Later::OtherFinalizerGoes { key }));
            }
        }
        for service in services {
            self.cluster.delete_service(&service);
            consequences.push((self.while_of(5), Later::SlicesGo { service }));
        }
        consequences
    }

    fn refuse_spec(&mut self, key: &ResourceKey) -> Consequences {
        let Ok(spec) = self.cluster.resources[key].spec.clone() else { return Vec::new() };
        self.stats.count("specs refused");
        let refusal = Refusal { reason: "NotSupported", message: "not supported yet".to_owned() };
        self.cluster.edit(key, Err(refusal));
        if self.chance(80) { vec![(self.while_of(30), Later::Mended { key: key.clone(), spec })] } else { Vec::new() }
    }

    /// A consequence comes about.
    pub fn follow(&mut self, later: Later) {
        match later {
            Later::Gone { service, uid } => self.forget_pod(&service, &uid),
            Later::SlicesGo { service } => {
                if !self.cluster.services.contains_key(&service) {
                    for slice in self.slices_of(&service) {
                        self.cluster.delete_slice(&slice);
                    }
                }
            }
            Later::ServiceReturns { service, ports, slices } => {
                if self.cluster.services.contains_key(&service) || !self.slices_of(&service).is_empty() {
                    return;
                }
                self.cluster.put_service(&service, ports);
                let living = self.living();
                for mut slice in slices {
                    // An address may be in use again, and a pod in another slice.
                    slice.endpoints.retain(|endpoint| !endpoint.terminating && !living.contains(&endpoint.address));
                    let key = self.make_slice(&service);
                    self.edit_slice(&key, |new| new.endpoints = slice.endpoints);
                }
            }
            Later::LeavesSlice { slice, uid } => {
                let service = self
                    .cluster
                    .slices
                    .get(&slice)
                    .map(|there| ObjectKey { namespace: slice.namespace.clone(), name: there.service.clone() });
                let copies = service.iter().flat_map(|service| self.slices_of(service)).filter(|key| {
                    let has = |e: &Endpoint| e.pod.as_ref().is_some_and(|pod| pod.uid == uid);
                    self.cluster.slices[key].endpoints.iter().any(has)
                });
                if copies.count() > 1 {
                    self.forget_in_slice(&slice, &uid);
                }
            }
            Later::Mended { key, spec } => {
                if self.cluster.resources.get(&key).is_some_and(|object| object.spec.is_err() && !object.deleting) {
                    self.cluster.edit(&key, Ok(spec));
                }
            }
            Later::Recreated { key, spec } => {
                if !self.cluster.resources.contains_key(&key) {
                    self.stats.count("resources made again");
                    self.cluster.create(&key, spec, DeletionPolicy::Deregister);
                }
            }
            Later::OtherFinalizerGoes { key } => {
                if let Some(object) = self.cluster.resources.get(&key) {
                    let mut finalizers = object.finalizers.clone();
                    finalizers.retain(|finalizer| &**finalizer != OTHERS_FINALIZER);
                    if finalizers.len() < object.finalizers.len() {
                        self.cluster.set_finalizers(&key, finalizers);
                    }
                }
            }
            Later::PortsFollow { service } => {
                let ports = self.slice_ports(&service);
                if !self.cluster.services.contains_key(&service) {
                    return;
                }
                for key in self.slices_of(&service) {
                    let ports = ports.clone();
                    self.edit_slice(&key, |slice| slice.ports = ports);
                }
            }
        }
    }

    fn living(&self) -> Vec<IpAddr> {
        let all = self.cluster.slices.values().flat_map(|slice| &slice.endpoints);
        all.filter(|endpoint| !endpoint.terminating).map(|endpoint| endpoint.address).collect()
    }

    /// How things go between Lictor and the servers from now on.
    pub fn change_weather(&mut self) {
        use crate::sim::Weather;
        if !self.setup.faults || self.random.script.u8(..5) < 2 {
            self.weather = Weather::FINE;
            return;
        }
        let random = &mut self.random.script;
        let share = |random: &mut fastrand::Rng, most: u8| if random.bool() { 0 } else { random.u8(..most) };
        self.weather = Weather {
            slow: *random.choice(&[3, 50, 500, 3_000, 12_000]).unwrap_or(&3),
            refused: if random.u8(..10) == 0 { 100 } else { share(random, 30) },
            lost: share(random, 30),
            trouble: if random.u8(..10) == 0 { 100 } else { share(random, 30) },
            watch_slow: *random.choice(&[5, 100, 1_000, 15_000]).unwrap_or(&5),
            kubernetes_fails: share(random, 50),
        };
        let weather = self.weather;
        self.trace(|| format!("weather: {weather:?}"));
    }
}

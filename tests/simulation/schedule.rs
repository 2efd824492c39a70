//! What users, controllers and kubelets do to Kubernetes while Lictor runs.

mod incidents;
mod pods;
mod services;
mod specs;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lictor::model::facts::{Node, Service};
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::reasons::Refusal;
use lictor::model::resource::{DeletionPolicy, Spec};
use lictor::state::event::ObjectKey;

pub use services::OTHER_PORT;

use crate::setup::{CrdRights, NAMESPACES};
use crate::sim::State;

/// The Kubernetes nodes: the Consul node of `b-x` would be that of another cluster's node, and the last one's would
/// have too long a name.
pub const NODES: [&str; 5] = ["n0", "n1", "n2", "b-x", LONG_NODE];
/// The name that endpoints and pods give now and then, and that is no Node's.
pub const INVENTED_NODE: &str = "invented";
pub const LONG_NODE: &str = "gke-production-europe-west4-default-pool-2024-07-5f3c9d1e-x7k2.internal";
const RESOURCES: [&str; 3] = ["r0", "r1", "r2"];

/// Something that happens later, as a consequence.
#[derive(Clone, Debug)]
pub enum Later {
    /// A pod gets its address.
    Starts { pod: ObjectKey, uid: Str },
    /// A pod that was on its way out is gone.
    Gone { pod: ObjectKey, uid: Str },
    /// A pod joins the others of an app.
    Joins { app: ObjectKey },
    /// The controller of slices sees how a pod is.
    EndpointFollows { pod: ObjectKey, uid: Str },
    /// An endpoint of nobody's in particular goes.
    EndpointGoes { service: ObjectKey, slice: ObjectKey, address: IpAddr },
    /// The slices of a Service go after it.
    SlicesGo { service: ObjectKey },
    /// A Service comes back, with the pods that there are.
    ServiceReturns { service: ObjectKey, ports: Service },
    /// An endpoint that stands in two slices leaves the one that it was in before.
    LeavesSlice { slice: ObjectKey, uid: Str },
    /// A spec that was refused is mended.
    Mended { key: ResourceKey, spec: Arc<Spec> },
    /// A resource is made again.
    Recreated { key: ResourceKey, spec: Arc<Spec> },
    /// A resource that was given to another operator comes back.
    ClassReturns { key: ResourceKey },
    /// A resource that was frozen goes on.
    Resumed { key: ResourceKey },
    /// Somebody else's finalizer comes off.
    OtherFinalizerGoes { key: ResourceKey },
    /// The definition of our kind is installed again, once all resources are gone; somebody helps after so many tries.
    CrdReturns { tries: u32 },
    /// A Service's slices follow a change of its ports.
    PortsFollow { service: ObjectKey },
    /// The controller begins to rewrite a Service's slices.
    SlicesAreRewritten { service: ObjectKey },
    /// The controller overwrites the next slice of those that it rewrites.
    NextSlice { service: ObjectKey },
    /// Something happens that takes several steps.
    Incident,
    /// A Service that was just deleted is made again.
    MadeAnew { service: ObjectKey, made: Service },
    /// An app that another namespace has by now is taken down.
    MovedAway { key: ResourceKey },
    /// The kubelets are cut off from the API server.
    KubeletsGo,
    /// They are back, and say that these pods are ready.
    KubeletsReturn { ready: Vec<(ObjectKey, Str)> },
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
    pub fn furnish(&mut self) -> Consequences {
        let mut consequences = Vec::new();
        for (nth, name) in NODES.iter().enumerate() {
            let address = Some(IpAddr::from([10, 9, 0, u8::try_from(nth).unwrap_or(0)]));
            let node = self.draw_node(address);
            self.cluster.put_node(name, node);
        }
        for _ in 0..self.random.script.u8(1..=3) {
            let Some(service) = self.service_to_be() else { break };
            self.make_service(&service);
            for _ in 0..self.random.script.u8(0..6) {
                consequences.extend(self.add_pod(&service));
            }
        }
        for _ in 0..self.random.script.u8(0..4) {
            consequences.extend(self.add_some_pod());
        }
        for _ in 0..self.random.script.u8(1..=3) {
            self.create_resource();
        }
        consequences.extend(self.incidents_to_come());
        consequences
    }

    /// Something happens to Kubernetes.
    pub fn turn(&mut self) -> Consequences {
        let what = self.random.script.u8(..137);
        match what {
            0..14 => self.add_some_pod(),
            14..30 => self.on_a_pod(Self::flip_ready),
            30..41 => self.on_a_pod(Self::remove_pod),
            41..48 => self.on_a_pod(Self::replace_pod),
            48..53 => self.on_a_pod(Self::move_between_slices),
            53..58 => self.on_a_pod(Self::label_anew),
            58..61 => self.on_a_service(Self::add_endpoint),
            61..69 => self.create_resource(),
            69..81 => self.on_a_resource(Self::edit_resource),
            81..88 => self.on_a_resource(Self::delete_resource),
            88..90 => self.on_a_resource(Self::force_away),
            90..93 => self.on_a_service(Self::delete_service),
            93..95 => self.on_a_service(Self::edit_ports),
            95..97 => {
                if let Some(service) = self.service_to_be() {
                    self.make_service(&service);
                }
                Vec::new()
            }
            97..100 => self.change_node(),
            100..101 => self.delete_namespace(),
            101..108 => self.on_a_resource(Self::pause_or_resume),
            108..112 => self.on_a_resource(Self::refuse_spec),
            112 => self.delete_crd(),
            113..118 => self.on_a_service(Self::drain),
            118..121 => self.on_a_service(Self::add_ipv6_endpoint),
            121..126 => self.on_a_resource(Self::change_class),
            126..129 => self.restore_resources(),
            129..135 => self.on_a_service(Self::rewrite_slices),
            _ => self.on_a_service(Self::lose_slices),
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

    fn create_resource(&mut self) -> Consequences {
        let all =
            NAMESPACES.iter().flat_map(|namespace| RESOURCES.iter().map(|name| ResourceKey::new(namespace, name)));
        let free: Vec<ResourceKey> = all.filter(|key| !self.cluster.resources.contains_key(key)).collect();
        if self.cluster.resources.len() < 4
            && !self.cluster.crd_deleted
            && let Some(key) = self.pick(&free)
        {
            let spec = self.draw_spec(&key.namespace);
            let stays = self.chance(20) && !self.setup.forbids_retain;
            let deletion = if stays { DeletionPolicy::Retain } else { DeletionPolicy::Deregister };
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
        match self.random.script.u8(..10) {
            0 | 1 => {
                if spec.service != drawn.service {
                    self.stats.count("renames");
                }
                spec.service.clone_from(&drawn.service);
            }
            2 => spec.port.clone_from(&drawn.port),
            3 => spec.tags.clone_from(&drawn.tags),
            4 => spec.meta = drawn.meta.clone(),
            5 => spec.readiness = drawn.readiness,
            6 | 7 => spec.source = drawn.source.clone(),
            8 => spec.dual_stack ^= true,
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
        if object.paused {
            consequences.push((self.while_of(60), Later::Resumed { key: key.clone() }));
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

    fn pause_or_resume(&mut self, key: &ResourceKey) -> Consequences {
        let paused = !self.cluster.resources[key].paused;
        self.cluster.pause(key, paused);
        if !paused {
            return Vec::new();
        }
        self.stats.count("resources paused");
        if self.chance(85) { vec![(self.while_of(60), Later::Resumed { key: key.clone() })] } else { Vec::new() }
    }

    /// A resource of another namespace wants the name that one has: one that is there, or a new one.
    fn make_rival(&mut self) {
        let all: Vec<ResourceKey> = self.cluster.resources.keys().cloned().collect();
        let is_free = |state: &Self, key: &ResourceKey| {
            let there = state.cluster.resources.get(key);
            there.is_none_or(|object| !object.deleting && !object.other_class && object.spec.is_ok())
        };
        let Some(holder) = self.pick(&all).filter(|key| is_free(self, key)) else { return };
        let Ok(spec) = self.cluster.resources[&holder].spec.clone() else { return };
        let others = NAMESPACES.iter().filter(|namespace| holder.namespace != (**namespace).into());
        let keys: Vec<ResourceKey> =
            others.flat_map(|namespace| RESOURCES.iter().map(|name| ResourceKey::new(namespace, name))).collect();
        let Some(rival) = self.pick(&keys).filter(|key| is_free(self, key)) else { return };
        self.stats.count("rivals");
        let drawn = self.draw_spec(&rival.namespace);
        let spec = Spec { service: spec.service.clone(), ..(*drawn).clone() };
        if self.cluster.resources.contains_key(&rival) {
            self.cluster.edit(&rival, Ok(Arc::new(spec)));
        } else {
            self.cluster.create(&rival, Arc::new(spec), DeletionPolicy::Deregister);
        }
    }

    fn change_class(&mut self, key: &ResourceKey) -> Consequences {
        if self.chance(40) {
            self.make_rival();
        }
        let leaves = !self.cluster.resources[key].other_class;
        self.cluster.set_class(key, leaves);
        if !leaves {
            return Vec::new();
        }
        self.stats.count("classes changed");
        if self.chance(85) { vec![(self.while_of(60), Later::ClassReturns { key: key.clone() })] } else { Vec::new() }
    }

    fn restore_resources(&mut self) -> Consequences {
        self.stats.count("resources restored");
        self.make_rival();
        // Mostly Lictor is not there meanwhile.
        self.kills_lictor = self.setup.faults && self.chance(75);
        let with_finalizers = self.random.script.bool();
        self.cluster.restore_resources(with_finalizers);
        Vec::new()
    }

    fn draw_node(&mut self, address: Option<IpAddr>) -> Node {
        let zone = self.pick(&["z1", "z2"]).map(Str::from);
        Node { address, zone: zone.filter(|_| self.chance(85)), region: Some("r".into()).filter(|_| self.chance(50)) }
    }

    fn change_node(&mut self) -> Consequences {
        let Some(name) = self.pick(&NODES) else { return Vec::new() };
        let known = self.cluster.nodes.get(&ObjectKey::new("", name)).map(|node| node.address);
        match known {
            Some(_) if self.chance(30) => self.cluster.delete_node(name),
            Some(address) if self.chance(50) => {
                let node = self.draw_node(address);
                self.cluster.put_node(name, node);
            }
            _ => {
                let address = Some(IpAddr::from([10, 9, 1, self.random.script.u8(..)]));
                let node = self.draw_node(address);
                self.cluster.put_node(name, node);
            }
        }
        Vec::new()
    }

    fn delete_namespace(&mut self) -> Consequences {
        self.stats.count("namespaces deleted");
        let Some(namespace) = self.pick(&NAMESPACES) else { return Vec::new() };
        let of = |key: &&ResourceKey| &*key.namespace == namespace;
        let resources: Vec<ResourceKey> = self.cluster.resources.keys().filter(of).cloned().collect();
        let services: Vec<ObjectKey> = self.cluster.services.keys().filter(of).cloned().collect();
        let pods: Vec<ObjectKey> = self.cluster.pods.keys().filter(of).cloned().collect();
        let mut consequences = Vec::new();
        for key in resources {
            self.cluster.delete(&key);
            if let Some(object) = self.cluster.resources.get(&key) {
                if object.paused {
                    consequences.push((self.while_of(20), Later::Resumed { key: key.clone() }));
                }
                consequences.push((self.while_of(10), Later::OtherFinalizerGoes { key }));
            }
        }
        for service in services {
            self.cluster.delete_service(&service);
            consequences.push((self.while_of(5), Later::SlicesGo { service }));
        }
        for pod in pods {
            consequences.extend(self.end_pod(&pod));
        }
        consequences
    }

    /// Somebody deletes the definition of our kind: all resources are deleted, and nobody means their instances.
    fn delete_crd(&mut self) -> Consequences {
        if self.cluster.crd_deleted {
            return Vec::new();
        }
        self.stats.count("definitions deleted");
        self.trace(|| "the definition is deleted");
        self.cluster.crd_deleted = true;
        let can_tell = self.setup.crd_rights != CrdRights::None;
        self.oracle.definition_goes(&self.cluster, can_tell);
        let mut consequences = vec![(self.while_of(60), Later::CrdReturns { tries: 0 })];
        let all: Vec<ResourceKey> = self.cluster.resources.keys().cloned().collect();
        for key in all {
            self.cluster.delete(&key);
            if self.cluster.resources.contains_key(&key) {
                consequences.push((self.while_of(10), Later::OtherFinalizerGoes { key }));
            }
        }
        consequences
    }

    fn crd_returns(&mut self, tries: u32) -> Consequences {
        if !self.cluster.resources.is_empty() && tries < 20 {
            return vec![(Duration::from_secs(5), Later::CrdReturns { tries: tries + 1 })];
        }
        let left: Vec<ResourceKey> = self.cluster.resources.keys().cloned().collect();
        for key in left {
            self.stats.count("resources forced away");
            self.cluster.set_finalizers(&key, Vec::new());
        }
        self.trace(|| "the definition is back");
        self.cluster.crd_deleted = false;
        self.oracle.definition_returns();
        self.work_out_what_is_wanted();
        Vec::new()
    }

    fn refuse_spec(&mut self, key: &ResourceKey) -> Consequences {
        let Ok(spec) = self.cluster.resources[key].spec.clone() else { return Vec::new() };
        self.stats.count("specs refused");
        let refusal = Refusal { reason: "NotSupported", message: "not supported yet".to_owned() };
        self.cluster.edit(key, Err(refusal));
        if self.chance(80) { vec![(self.while_of(30), Later::Mended { key: key.clone(), spec })] } else { Vec::new() }
    }

    /// A consequence comes about.
    pub fn follow(&mut self, later: Later) -> Consequences {
        match later {
            Later::Starts { pod, uid } => return self.start_pod(&pod, &uid),
            Later::Gone { pod, uid } => return self.forget_pod(&pod, &uid),
            Later::Joins { app } => return self.add_pod(&app),
            Later::EndpointFollows { pod, uid } => self.endpoint_follows(&pod, &uid),
            Later::EndpointGoes { service, slice, address } => self.endpoint_goes(&service, &slice, address),
            Later::SlicesGo { service } => {
                if !self.cluster.services.contains_key(&service) {
                    for slice in self.slices_of(&service) {
                        self.cluster.delete_slice(&slice);
                    }
                }
            }
            Later::ServiceReturns { service, ports } => self.service_returns(&service, ports),
            Later::LeavesSlice { slice, uid } => self.leaves_slice(&slice, &uid),
            Later::Mended { key, spec } => {
                if self.cluster.resources.get(&key).is_some_and(|object| object.spec.is_err() && !object.deleting) {
                    self.cluster.edit(&key, Ok(spec));
                }
            }
            Later::Recreated { key, spec } => {
                if !self.cluster.resources.contains_key(&key) && !self.cluster.crd_deleted {
                    self.stats.count("resources made again");
                    self.cluster.create(&key, spec, DeletionPolicy::Deregister);
                }
            }
            Later::ClassReturns { key } => {
                if self.cluster.resources.get(&key).is_some_and(|object| object.other_class && !object.deleting) {
                    self.cluster.set_class(&key, false);
                }
            }
            Later::Resumed { key } => {
                if self.cluster.resources.get(&key).is_some_and(|object| object.paused) {
                    self.cluster.pause(&key, false);
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
            Later::CrdReturns { tries } => return self.crd_returns(tries),
            Later::PortsFollow { service } => self.ports_follow(&service),
            Later::SlicesAreRewritten { service } => return self.rewrite_slices(&service),
            Later::NextSlice { service } => return self.write_next_slice(&service),
            Later::Incident => return self.incident(),
            Later::MadeAnew { service, made } => return self.is_made_anew(&service, made),
            Later::MovedAway { key } => return self.moves_away(&key),
            Later::KubeletsGo => return self.kubelets_go(),
            Later::KubeletsReturn { ready } => return self.kubelets_return(ready),
        }
        Vec::new()
    }

    /// How things go between Lictor and the servers from now on.
    pub fn change_weather(&mut self) {
        use crate::sim::NetworkFaults;
        if !self.setup.faults || self.random.script.u8(..5) < 2 {
            self.network_faults = NetworkFaults::FINE;
            return;
        }
        let random = &mut self.random.script;
        let share = |random: &mut fastrand::Rng, most: u8| if random.bool() { 0 } else { random.u8(..most) };
        self.network_faults = NetworkFaults {
            slow: *random.choice(&[3, 50, 500, 3_000, 12_000]).unwrap_or(&3),
            refused: if random.u8(..10) == 0 { 100 } else { share(random, 30) },
            lost: share(random, 30),
            outage: if random.u8(..10) == 0 { 100 } else { share(random, 30) },
            watch_slow: *random.choice(&[5, 100, 1_000, 15_000]).unwrap_or(&5),
            kubernetes_fails: share(random, 50),
        };
        let network_faults = self.network_faults;
        self.trace(|| format!("network_faults: {network_faults:?}"));
    }
}

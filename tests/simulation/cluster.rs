//! A model of Kubernetes: the objects that Lictor watches, their versions, finalizers and deletion, and a log of
//! all changes for the watches to read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use lictor::cluster::api::ConsulServiceStatus;
use lictor::cluster::status;
use lictor::model::facts::{Endpoint, Node, Pod, PodRef, Service, Slice};
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::reasons::Refusal;
use lictor::model::resource::{DeletionPolicy, FINALIZER, Resource, Spec};
use lictor::ports::{Finalizers, Write, WriteError};
use lictor::state::event::{Change, Kind, ObjectKey, Scope, SeenResource, Step};
use tokio::time::Instant;

/// A `ConsulService`.
#[derive(Clone, Debug)]
pub struct Object {
    pub key: ResourceKey,
    pub uid: Str,
    /// Several may be made in the same second.
    pub created: i64,
    pub generation: i64,
    pub version: u64,
    pub finalizers: Vec<Str>,
    pub deleting: bool,
    pub paused: bool,
    /// Whether it is for another operator than ours.
    pub other_class: bool,
    pub deletion: DeletionPolicy,
    /// Whether its author asks for `Retain` at its deletion although the policy does not allow it.
    pub asks_to_stay: bool,
    pub spec: Result<Arc<Spec>, Refusal>,
    /// What stays in force while the spec is refused.
    pub last_good: Arc<Spec>,
    pub status: ConsulServiceStatus,
}

impl Object {
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| &**finalizer == FINALIZER)
    }

    fn seen(&self) -> SeenResource {
        let (status, since) = status::read(self.status.clone());
        let resource = Resource {
            key: self.key.clone(),
            uid: self.uid.clone(),
            created: self.created,
            generation: self.generation,
            resource_version: self.version.to_string().into(),
            finalizers: self.finalizers.clone(),
            deleting: self.deleting,
            ours: !self.other_class,
            finalizer: FINALIZER.into(),
            paused: self.paused,
            deletion: Some(if self.asks_to_stay { DeletionPolicy::Retain } else { self.deletion }),
            bytes: 0,
            spec: if self.other_class { Err(other_class()) } else { self.spec.clone() },
            status: Arc::new(status),
        };
        SeenResource { resource, since }
    }
}

fn other_class() -> Refusal {
    Refusal { reason: "OtherClass", message: "another class: not ours".to_owned() }
}

/// A change, as a watch tells of it.
#[derive(Clone, Debug)]
pub struct Logged {
    pub kind: Kind,
    pub namespace: Str,
    pub change: Change,
}

/// Slices of a Service that are overwritten one after the other.
#[derive(Clone, Debug, Default)]
pub struct Rewriting {
    /// Which slice each endpoint is to stand in.
    pub assigned: BTreeMap<EndpointId, ObjectKey>,
    /// The slices that are still to be written, the next one last.
    pub todo: Vec<ObjectKey>,
    /// Endpoints that were taken out of a slice before the one was written that they are to stand in. Some may have ended
    /// since, or stand in a slice again.
    pub taken_out: Vec<Endpoint>,
}

/// An address, and the uid of the pod behind it.
pub type EndpointId = (IpAddr, Option<Str>);

pub fn endpoint_id(endpoint: &Endpoint) -> EndpointId {
    (endpoint.address, endpoint.pod.as_ref().map(|pod| pod.uid.clone()))
}

/// As the controller makes it (`podToEndpoint` in Kubernetes' staging/src/k8s.io/endpointslice/utils.go).
pub fn endpoint_of(key: &ObjectKey, pod: &Pod, published: bool) -> Endpoint {
    Endpoint {
        address: pod.addresses[0],
        ready: published || (pod.ready && !pod.leaving),
        serving: pod.ready,
        terminating: pod.leaving,
        node: pod.node.clone(),
        pod: Some(PodRef { name: key.name.clone(), uid: pod.uid.clone() }),
    }
}

/// The cluster.
#[derive(Default)]
pub struct Cluster {
    pub resources: BTreeMap<ResourceKey, Object>,
    pub services: BTreeMap<ObjectKey, Service>,
    /// Those with `publishNotReadyAddresses`.
    pub publishing: BTreeSet<ObjectKey>,
    pub slices: BTreeMap<ObjectKey, Slice>,
    /// With all of their annotations.
    pub pods: BTreeMap<ObjectKey, Pod>,
    pub nodes: BTreeMap<ObjectKey, Node>,
    /// The names of all Nodes that were deleted.
    pub gone_nodes: BTreeSet<Str>,
    /// Whether whoever deletes a resource asks for `Retain`, which the policy forbids.
    pub forbids_retain: bool,
    /// The definition of our kind is being deleted or gone: no resource can be made.
    pub crd_deleted: bool,
    /// Slices that the controller is just rewriting, by Service.
    pub rewriting: BTreeMap<ObjectKey, Rewriting>,
    /// Whether any ever were.
    pub was_rewritten: bool,
    /// When a slice of each Service was last written: at which position of the log, and when.
    pub written: BTreeMap<ObjectKey, (u64, Instant)>,
    /// All changes, in order. A position in it is the number of changes before it.
    log: Vec<Logged>,
    uids: u64,
}

impl Cluster {
    /// An empty one. `forbids_retain` says whether the policy forbids what whoever deletes a resource asks for.
    pub fn new(forbids_retain: bool) -> Self {
        Self { forbids_retain, ..Self::default() }
    }

    /// How many changes there have been.
    pub fn position(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn new_uid(&mut self) -> Str {
        self.uids += 1;
        format!("u{}", self.uids).into()
    }

    /// The first change at or after a position that a watch sees, and the position after it.
    pub fn next_change(&self, from: u64, kind: Kind, scope: &Scope) -> Option<(u64, &Change)> {
        let start = usize::try_from(from).expect("positions are small");
        let later = self.log[start..].iter().zip(from + 1..);
        later
            .filter(|(logged, _)| logged.kind == kind && scope.covers(&logged.namespace))
            .map(|(logged, position)| (position, &logged.change))
            .next()
    }

    /// A slice as it was at a position.
    pub fn slice_at(&self, position: u64, key: &ObjectKey) -> Option<&Slice> {
        let before = &self.log[..usize::try_from(position).expect("positions are small")];
        before.iter().rev().find_map(|logged| match &logged.change {
            Change::Slice(Step::Apply(of, slice)) if of == key => Some(Some(slice)),
            Change::Slice(Step::Delete(of)) if of == key => Some(None),
            _ => None,
        })?
    }

    /// The pods and slices as they were at a position.
    pub fn at(&self, position: u64) -> (BTreeMap<&ObjectKey, &Pod>, BTreeMap<&ObjectKey, &Slice>) {
        let (mut pods, mut slices) = (BTreeMap::new(), BTreeMap::new());
        for logged in &self.log[..usize::try_from(position).expect("positions are small")] {
            match &logged.change {
                Change::Pod(Step::Apply(key, pod)) => _ = pods.insert(key, pod),
                Change::Pod(Step::Delete(key)) => _ = pods.remove(key),
                Change::Slice(Step::Apply(key, slice)) => _ = slices.insert(key, slice),
                Change::Slice(Step::Delete(key)) => _ = slices.remove(key),
                _ => {}
            }
        }
        (pods, slices)
    }

    /// The resources as they were at a position, and as they have been since.
    pub fn resources_since(&self, position: u64) -> Vec<&Resource> {
        let (before, since) = self.log.split_at(usize::try_from(position).expect("positions are small"));
        let mut all = BTreeMap::new();
        for logged in before {
            match &logged.change {
                Change::Resource(Step::Apply(key, seen)) => _ = all.insert(key, &seen.resource),
                Change::Resource(Step::Delete(key)) => _ = all.remove(key),
                _ => {}
            }
        }
        let since = since.iter().filter_map(|logged| match &logged.change {
            Change::Resource(Step::Apply(_, seen)) => Some(&seen.resource),
            _ => None,
        });
        all.into_values().chain(since).collect()
    }

    /// What a list of a kind has, in no particular order of a change.
    pub fn list(&self, kind: Kind, scope: &Scope) -> Vec<Change> {
        fn all<T: Clone>(
            objects: &BTreeMap<ObjectKey, T>,
            scope: &Scope,
            change: impl Fn(ObjectKey, T) -> Change,
        ) -> Vec<Change> {
            let covered = objects.iter().filter(|(key, _)| scope.covers(&key.namespace));
            covered.map(|(key, object)| change(key.clone(), object.clone())).collect()
        }
        match kind {
            Kind::Resource => {
                all(&self.resources, scope, |key, object| Change::Resource(Step::InitApply(key, object.seen())))
            }
            Kind::Service => all(&self.services, scope, |key, service| Change::Service(Step::InitApply(key, service))),
            Kind::Slice => all(&self.slices, scope, |key, slice| Change::Slice(Step::InitApply(key, slice))),
            Kind::Pod => all(&self.pods, scope, |key, pod| Change::Pod(Step::InitApply(key, pod))),
            Kind::Node => all(&self.nodes, scope, |key, node| Change::Node(Step::InitApply(key, node))),
            // No policy of the simulation asks for labels.
            Kind::Namespace => Vec::new(),
        }
    }

    /// What a list of a kind had at a position.
    pub fn list_at(&self, position: u64, kind: Kind, scope: &Scope) -> Vec<Change> {
        fn listed<T: Clone>(step: &Step<T>) -> Option<(ObjectKey, Option<Step<T>>)> {
            match step {
                Step::Apply(key, object) => Some((key.clone(), Some(Step::InitApply(key.clone(), object.clone())))),
                Step::Delete(key) => Some((key.clone(), None)),
                Step::Init | Step::InitApply(..) | Step::InitDone => None,
            }
        }
        let before = &self.log[..usize::try_from(position).expect("positions are small")];
        let mut there = BTreeMap::new();
        for logged in before.iter().filter(|logged| logged.kind == kind && scope.covers(&logged.namespace)) {
            let change = match &logged.change {
                Change::Resource(step) => listed(step).map(|(key, step)| (key, step.map(Change::Resource))),
                Change::Slice(step) => listed(step).map(|(key, step)| (key, step.map(Change::Slice))),
                Change::Service(step) => listed(step).map(|(key, step)| (key, step.map(Change::Service))),
                Change::Pod(step) => listed(step).map(|(key, step)| (key, step.map(Change::Pod))),
                Change::Node(step) => listed(step).map(|(key, step)| (key, step.map(Change::Node))),
                Change::Namespace(_) => None,
            };
            there.extend(change);
        }
        there.into_values().flatten().collect()
    }

    fn log(&mut self, kind: Kind, namespace: &Str, change: Change) {
        self.log.push(Logged { kind, namespace: namespace.clone(), change });
    }

    pub fn put_service(&mut self, key: &ObjectKey, service: Service) {
        self.services.insert(key.clone(), service.clone());
        self.log(Kind::Service, &key.namespace, Change::Service(Step::Apply(key.clone(), service)));
    }

    pub fn delete_service(&mut self, key: &ObjectKey) {
        self.rewriting.remove(key);
        if self.services.remove(key).is_some() {
            self.log(Kind::Service, &key.namespace, Change::Service(Step::Delete(key.clone())));
        }
    }

    pub fn put_slice(&mut self, key: &ObjectKey, slice: Slice) {
        let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
        self.slices.insert(key.clone(), slice.clone());
        self.written.insert(service, (self.position() + 1, Instant::now()));
        self.log(Kind::Slice, &key.namespace, Change::Slice(Step::Apply(key.clone(), slice)));
    }

    pub fn delete_slice(&mut self, key: &ObjectKey) {
        if let Some(slice) = self.slices.remove(key) {
            let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service };
            self.written.insert(service, (self.position() + 1, Instant::now()));
            self.log(Kind::Slice, &key.namespace, Change::Slice(Step::Delete(key.clone())));
        }
    }

    /// The slices of a Service.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = (&ObjectKey, &Slice)> {
        let of_it = |slice: &Slice| slice.service == service.name;
        self.slices.iter().filter(move |(key, slice)| key.namespace == service.namespace && of_it(slice))
    }

    /// Endpoints of a Service that live and are in none of its slices, since these are being rewritten; all that live, where
    /// it is just being made anew.
    pub fn taken_out(&self, service: &ObjectKey) -> Vec<Endpoint> {
        let Some(rewriting) = self.rewriting.get(service) else { return Vec::new() };
        let is_there = self.services.contains_key(service);
        let stand = self.slices_of(service).filter(|_| is_there).flat_map(|(_, slice)| &slice.endpoints);
        let there: Vec<EndpointId> = stand.map(endpoint_id).collect();
        let out = rewriting.taken_out.iter().filter(|endpoint| !there.contains(&endpoint_id(endpoint)));
        out.filter_map(|endpoint| self.as_it_is(service, endpoint)).filter(|endpoint| !endpoint.terminating).collect()
    }

    /// An endpoint as its pod is now; none where the pod has ended, or is not the Service's any more.
    pub fn as_it_is(&self, service: &ObjectKey, endpoint: &Endpoint) -> Option<Endpoint> {
        let Some(of) = &endpoint.pod else { return Some(endpoint.clone()) };
        let key = ObjectKey { namespace: service.namespace.clone(), name: of.name.clone() };
        let pod =
            self.pods.get(&key).filter(|pod| pod.uid == of.uid && pod.addresses.first() == Some(&endpoint.address))?;
        (pod.labels.get("app") == Some(&service.name))
            .then(|| endpoint_of(&key, pod, self.publishing.contains(service)))
    }

    pub fn put_pod(&mut self, key: &ObjectKey, pod: Pod) {
        self.pods.insert(key.clone(), pod.clone());
        self.log(Kind::Pod, &key.namespace, Change::Pod(Step::Apply(key.clone(), pod)));
    }

    pub fn delete_pod(&mut self, key: &ObjectKey) {
        if self.pods.remove(key).is_some() {
            self.log(Kind::Pod, &key.namespace, Change::Pod(Step::Delete(key.clone())));
        }
    }

    pub fn put_node(&mut self, name: &str, node: Node) {
        let key = ObjectKey { namespace: "".into(), name: name.into() };
        self.nodes.insert(key.clone(), node.clone());
        self.log(Kind::Node, &key.namespace, Change::Node(Step::Apply(key.clone(), node)));
    }

    pub fn delete_node(&mut self, name: &str) {
        let key = ObjectKey { namespace: "".into(), name: name.into() };
        if self.nodes.remove(&key).is_some() {
            self.gone_nodes.insert(key.name.clone());
            self.log(Kind::Node, &key.namespace, Change::Node(Step::Delete(key.clone())));
        }
    }

    pub fn create(&mut self, key: &ResourceKey, spec: Arc<Spec>, deletion: DeletionPolicy) {
        let object = Object {
            key: key.clone(),
            uid: self.new_uid(),
            created: i64::try_from(self.position() / 20).expect("positions are small"),
            generation: 1,
            version: 0,
            finalizers: Vec::new(),
            deleting: false,
            paused: false,
            other_class: false,
            deletion,
            asks_to_stay: false,
            spec: Ok(spec.clone()),
            last_good: spec,
            status: ConsulServiceStatus::default(),
        };
        self.put_resource(object);
    }

    pub fn edit(&mut self, key: &ResourceKey, spec: Result<Arc<Spec>, Refusal>) {
        let mut object = self.resources[key].clone();
        if let Ok(good) = &spec {
            object.last_good = good.clone();
        }
        object.spec = spec;
        object.generation += 1;
        self.put_resource(object);
    }

    /// An annotation: it makes no new generation.
    pub fn pause(&mut self, key: &ResourceKey, paused: bool) {
        let object = Object { paused, ..self.resources[key].clone() };
        self.put_resource(object);
    }

    /// The class is part of the spec.
    pub fn set_class(&mut self, key: &ResourceKey, other_class: bool) {
        let mut object = self.resources[key].clone();
        object.other_class = other_class;
        object.generation += 1;
        self.put_resource(object);
    }

    /// All resources are made anew at once from a backup: without status, and all in the same second. A backup may have
    /// kept finalizers.
    pub fn restore_resources(&mut self, with_finalizers: bool) {
        let created = i64::try_from(self.position() / 20).expect("positions are small");
        let there: Vec<Object> = self.resources.values().filter(|object| !object.deleting).cloned().collect();
        for mut object in there {
            object.uid = self.new_uid();
            (object.created, object.generation, object.status) = (created, 1, ConsulServiceStatus::default());
            if !with_finalizers {
                object.finalizers.clear();
            }
            self.put_resource(object);
        }
    }

    /// Asks for a deletion: it is done once no finalizer is left.
    pub fn delete(&mut self, key: &ResourceKey) {
        let Some(object) = self.resources.get(key).filter(|object| !object.deleting) else { return };
        let mut object = object.clone();
        object.deleting = true;
        object.asks_to_stay = self.forbids_retain;
        // The apiserver counts the deletion as a new generation.
        object.generation += 1;
        self.put_resource(object);
    }

    pub fn set_finalizers(&mut self, key: &ResourceKey, finalizers: Vec<Str>) {
        let mut object = self.resources[key].clone();
        object.finalizers = finalizers;
        self.put_resource(object);
    }

    fn put_resource(&mut self, mut object: Object) {
        let key = object.key.clone();
        object.version = self.position() + 1;
        if object.deleting && object.finalizers.is_empty() {
            self.resources.remove(&key);
            self.log(Kind::Resource, &key.namespace, Change::Resource(Step::Delete(key.clone())));
            return;
        }
        let seen = object.seen();
        self.resources.insert(key.clone(), object);
        self.log(Kind::Resource, &key.namespace, Change::Resource(Step::Apply(key.clone(), seen)));
    }

    /// Makes a write of Lictor's.
    pub fn write(&mut self, write: &Write, now: Timestamp) -> Result<(), WriteError> {
        match write {
            Write::AddFinalizer(seen) => {
                let all = seen.finalizers.iter().cloned().chain([FINALIZER.into()]).collect();
                self.write_finalizers(seen, all)
            }
            Write::RemoveFinalizer(seen) => {
                let others = seen.finalizers.iter().filter(|finalizer| &***finalizer != FINALIZER);
                self.write_finalizers(seen, others.cloned().collect())
            }
            Write::Status { key, uid, status, since } => {
                let there = self.resources.get(key).ok_or(WriteError::Gone)?;
                if there.uid != *uid {
                    // The patch's test of the uid fails.
                    return Err(WriteError::Refused(
                        "the server rejected our request due to an error in our request".to_owned(),
                    ));
                }
                let status = status::to_api(status, since, now);
                if there.status != status {
                    let object = Object { status, ..there.clone() };
                    self.put_resource(object);
                }
                Ok(())
            }
            Write::ForgetStatus { key, uid, observed_generation } => {
                let there = self.resources.get(key).ok_or(WriteError::Gone)?;
                if there.uid != *uid || there.status.observed_generation != Some(*observed_generation) {
                    return Err(WriteError::Gone);
                }
                let object = Object { status: ConsulServiceStatus::default(), ..there.clone() };
                self.put_resource(object);
                Ok(())
            }
            Write::Event { .. } => Ok(()),
        }
    }

    fn write_finalizers(&mut self, seen: &Finalizers, finalizers: Vec<Str>) -> Result<(), WriteError> {
        let there = self.resources.get(&seen.key).ok_or(WriteError::Gone)?;
        if there.uid != seen.uid || there.version.to_string() != *seen.resource_version {
            return Err(WriteError::Conflict);
        }
        if there.deleting && finalizers.iter().any(|finalizer| !there.finalizers.contains(finalizer)) {
            return Err(WriteError::Refused(
                "no new finalizers can be added if the object is being deleted".to_owned(),
            ));
        }
        self.set_finalizers(&seen.key.clone(), finalizers);
        Ok(())
    }
}

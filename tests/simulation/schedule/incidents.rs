//! What happens seldom, and in several steps: a Service is deleted and made anew at once, an app moves to another
//! namespace under its name, all kubelets are cut off.

use std::sync::Arc;
use std::time::Duration;

use lictor::model::facts::{Endpoint, Service};
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::resource::{DeletionPolicy, Readiness, Source, Spec};
use lictor::state::event::ObjectKey;

use super::pods::app_of;
use super::{Consequences, Later, RESOURCES};
use crate::cluster::Rewriting;
use crate::setup::NAMESPACES;
use crate::sim::State;

/// How many pods each app gets before its kubelets are cut off.
const MANY: u8 = 8;

impl State {
    /// When something of this kind happens, in the seeds that draw it.
    pub(super) fn incidents_to_come(&mut self) -> Consequences {
        if !self.setup.incidents {
            return Vec::new();
        }
        let length = self.setup.length.as_secs();
        (0..self.random.script.u8(1..=4)).map(|_| (self.while_of(length), Later::Incident)).collect()
    }

    pub(super) fn incident(&mut self) -> Consequences {
        match self.random.script.u8(..5) {
            0 | 1 => self.on_a_service(Self::make_anew),
            2 | 3 => self.on_a_resource(Self::move_app),
            _ => self.fill_up(),
        }
    }

    /// Somebody deletes a Service and makes it again within a second, as `kubectl replace --force` does. The slices of the
    /// old one go, now or later, and the controller makes new ones.
    fn make_anew(&mut self, service: &ObjectKey) -> Consequences {
        self.stats.count("Services made anew within a second");
        let there = self.cluster.services[service].clone();
        let slices = self.slices_of_controller(service);
        let endpoints = slices.iter().flat_map(|slice| &self.cluster.slices[slice].endpoints);
        let taken_out = endpoints.filter(|endpoint| !endpoint.terminating).cloned().collect();
        self.cluster.delete_service(service);
        self.cluster.was_rewritten = true;
        self.cluster.rewriting.insert(service.clone(), Rewriting { taken_out, ..Rewriting::default() });
        self.work_out_what_is_wanted();
        for slice in slices {
            if self.random.script.bool() {
                self.cluster.delete_slice(&slice);
                self.work_out_what_is_wanted();
            }
        }
        let ports = if self.chance(20) { self.other_ports(there.ports.clone()) } else { there.ports.clone() };
        let made = Later::MadeAnew { service: service.clone(), made: Service { ports, ..there } };
        vec![(Duration::from_millis(self.random.script.u64(0..1_000)), made)]
    }

    pub(super) fn is_made_anew(&mut self, service: &ObjectKey, made: Service) -> Consequences {
        if self.cluster.services.contains_key(service) {
            return Vec::new();
        }
        self.cluster.put_service(service, made);
        let old = self.slices_of_controller(service);
        let endpoints = old.iter().flat_map(|slice| &self.cluster.slices[slice].endpoints);
        let out: Vec<Endpoint> = endpoints.filter(|endpoint| !endpoint.terminating).cloned().collect();
        let mut new = Vec::new();
        while new.is_empty() || self.chance(40) {
            let unique = self.cluster.new_uid();
            new.push(ObjectKey::new(&service.namespace, &format!("{}-{unique}", service.name)));
        }
        self.begin_to_rewrite(service, new);
        self.cluster.rewriting.entry(service.clone()).or_default().taken_out.extend(out);
        for slice in old {
            self.cluster.delete_slice(&slice);
            self.work_out_what_is_wanted();
        }
        let mut consequences = vec![(self.while_of(1), Later::NextSlice { service: service.clone() })];
        // What has changed meanwhile the controller sees then.
        let own = self
            .cluster
            .pods
            .iter()
            .filter(|(pod, of)| pod.namespace == service.namespace && *app_of(of) == service.name);
        let own: Vec<(ObjectKey, Str)> = own.map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
        for (pod, uid) in own {
            consequences.push((self.while_of(5), Later::EndpointFollows { pod, uid }));
        }
        consequences
    }

    /// An app is set up in another namespace as well, under the same name in Consul, and then taken down where it was.
    fn move_app(&mut self, key: &ResourceKey) -> Consequences {
        let object = self.cluster.resources[key].clone();
        let (Ok(spec), Source::Service { name }) = (&object.spec, &object.last_good.source) else { return Vec::new() };
        let others = NAMESPACES.iter().filter(|namespace| **namespace != &*key.namespace);
        let all = others.flat_map(|namespace| RESOURCES.iter().map(|name| ResourceKey::new(namespace, name)));
        let free: Vec<ResourceKey> = all.filter(|key| !self.cluster.resources.contains_key(key)).collect();
        let Some(next) =
            self.pick(&free).filter(|_| !object.paused && !object.other_class && !self.cluster.crd_deleted)
        else {
            return Vec::new();
        };
        self.stats.count("apps moved to another namespace");
        let service = ObjectKey::new(&next.namespace, name);
        if !self.cluster.services.contains_key(&service) {
            let there = ObjectKey { namespace: key.namespace.clone(), name: name.clone() };
            if let Some(like) = self.cluster.services.get(&there).cloned() {
                self.service_returns(&service, like);
            }
        }
        let mut consequences = Vec::new();
        for _ in 0..self.random.script.u8(1..4) {
            consequences.extend(self.add_pod(&service));
        }
        self.cluster.create(&next, Arc::clone(spec), DeletionPolicy::Deregister);
        consequences.push((Duration::from_secs(1) + self.while_of(20), Later::MovedAway { key: key.clone() }));
        consequences
    }

    pub(super) fn moves_away(&mut self, key: &ResourceKey) -> Consequences {
        if self.cluster.resources.get(key).is_none_or(|object| object.deleting || object.paused) {
            return Vec::new();
        }
        self.cluster.delete(key);
        Vec::new()
    }

    /// Every app gets many pods that are ready, and a resource that says so, so that it shows when most of them are not.
    fn fill_up(&mut self) -> Consequences {
        let mut consequences = vec![(Duration::from_secs(10) + self.while_of(20), Later::KubeletsGo)];
        let all: Vec<ObjectKey> = self.cluster.services.keys().cloned().collect();
        for service in &all {
            for _ in 0..MANY {
                consequences.extend(self.add_pod(service));
            }
            let free = RESOURCES.iter().map(|name| ResourceKey::new(&service.namespace, name));
            let free: Vec<ResourceKey> = free.filter(|key| !self.cluster.resources.contains_key(key)).collect();
            if let Some(key) = self.pick(&free).filter(|_| !self.cluster.crd_deleted) {
                let source = Source::Service { name: service.name.clone() };
                let drawn = (*self.draw_spec(&key.namespace)).clone();
                let spec = Spec { source, port: None, readiness: Readiness::Mirror, ..drawn };
                self.cluster.create(&key, Arc::new(spec), DeletionPolicy::Deregister);
            }
        }
        let unready =
            self.cluster.pods.iter().filter(|(_, pod)| !pod.ready && !pod.leaving && !pod.addresses.is_empty());
        let unready: Vec<ObjectKey> = unready.map(|(key, _)| key.clone()).collect();
        for pod in unready {
            consequences.extend(self.edit_pod(&pod, |pod| pod.ready = true));
        }
        consequences
    }

    /// The kubelets are cut off from the API server: every pod counts as not ready, whatever it does.
    pub(super) fn kubelets_go(&mut self) -> Consequences {
        self.stats.count("kubelets cut off");
        self.trace(|| "all kubelets are cut off");
        let ready = self.cluster.pods.iter().filter(|(_, pod)| pod.ready && !pod.leaving);
        let ready: Vec<(ObjectKey, Str)> = ready.map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
        self.kubelets_are_cut_off();
        let mut consequences = Vec::new();
        for (pod, _) in &ready {
            consequences.extend(self.edit_pod(pod, |pod| pod.ready = false));
        }
        consequences.push((Duration::from_secs(5) + self.while_of(60), Later::KubeletsReturn { ready }));
        consequences
    }

    pub(super) fn kubelets_return(&mut self, ready: Vec<(ObjectKey, Str)>) -> Consequences {
        self.trace(|| "the kubelets are back");
        let mut consequences = Vec::new();
        for (key, uid) in ready {
            if self.cluster.pods.get(&key).is_some_and(|pod| pod.uid == uid && !pod.leaving) {
                consequences.extend(self.edit_pod(&key, |pod| pod.ready = true));
            }
        }
        consequences
    }
}

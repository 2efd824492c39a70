//! What was found on both sides, as far as it could be asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::cluster::look::{Asks, SeenPod, SeenService};
use crate::consul::instances::Shown;
use crate::model::ids::{ClusterName, Identity, ResourceKey, Str, meta};
use crate::model::registration::{NameInUse, Registration};
use crate::state::world::{Entry, World};

/// Both sides.
#[derive(Debug)]
pub(super) struct Seen {
    /// The part of Kubernetes that was looked at, such as `namespace shop`.
    pub(super) place: String,
    /// What Kubernetes has, or why it could not be asked.
    pub(super) kubernetes: Result<Cluster, Away>,
    /// What the catalog shows of the services in question, or why it could not be asked.
    pub(super) consul: Result<Vec<Shown>, String>,
}

/// Why Kubernetes could not be asked.
#[derive(Debug)]
pub(super) struct Away {
    /// Its own words.
    pub(super) words: String,
    /// The rights that whoever asks lacks, as `kubectl auth can-i` names them.
    pub(super) lacking: Vec<String>,
}

/// What Kubernetes has.
#[derive(Debug)]
pub(super) struct Cluster {
    /// The resources and what their sources are made of.
    pub(super) world: World,
    /// What each resource asks for.
    pub(super) asks: BTreeMap<ResourceKey, Asks>,
    /// The pods that are asked about, or why they could not be listed.
    pub(super) pods: Result<Vec<SeenPod>, String>,
    /// The Services, or why they could not be listed.
    pub(super) services: Result<Vec<SeenService>, String>,
    /// The rights that whoever asks lacks, as `kubectl auth can-i` names them.
    pub(super) lacking: Vec<String>,
    /// The name that the cluster has in Consul where nothing there tells it.
    pub(super) name: ClusterName,
}

impl Cluster {
    /// The resources of a namespace; all of them without one.
    pub(super) fn resources<'a>(&'a self, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Entry> {
        self.world.entries().filter(move |entry| namespace.is_none_or(|of| *entry.resource.key.namespace == *of))
    }

    /// The names in Consul that a resource asks for or has.
    pub(super) fn names(&self, key: &ResourceKey) -> BTreeSet<String> {
        let entry = self.world.resource(key);
        let asked = entry.and_then(|entry| entry.resource.spec.as_ref().ok()).map(|spec| spec.service.to_string());
        let in_force = self.world.effective_spec(key).map(|spec| spec.service.to_string());
        let told = entry.map(|entry| entry.resource.status.service_name.clone()).filter(|name| !name.is_empty());
        asked.into_iter().chain(in_force).chain(told).collect()
    }

    /// Has the resources know what Consul has of them.
    pub(super) fn know(&mut self, shown: &[Shown]) {
        for key in self.world.keys().cloned().collect::<Vec<_>>() {
            let names: BTreeSet<NameInUse> = self.of(&key, shown).map(|of| NameInUse::from(&of.registration)).collect();
            if !names.is_empty() {
                self.world.note_rows(&key, names);
            }
        }
        self.world.know_rows(true);
        if self.world.asks_for_others() {
            // Whose a name is among others, its status tells.
            self.world.know_others(Some(BTreeSet::new()));
        }
    }

    /// The instances of a resource.
    pub(super) fn of<'a>(
        &self,
        key: &ResourceKey,
        shown: &'a [Shown],
    ) -> impl Iterator<Item = &'a Shown> + Clone + use<'a> {
        let uid = self.world.resource(key).map(|entry| entry.resource.uid.clone());
        let owner = key.to_string();
        shown.iter().filter(move |of| {
            let has = |key: &str, value: &str| of.registration.meta.get(key).is_some_and(|there| **there == *value);
            has(meta::OWNER, &owner) && uid.as_deref().is_some_and(|uid| has(meta::OWNER_UID, uid))
        })
    }

    /// The cluster, as the instances of a resource have it.
    pub(super) fn identity<'a>(&self, mut instances: impl Iterator<Item = &'a Shown>) -> Identity {
        let first = instances.next().map(|of| &of.registration.meta);
        let get = |key: &str| first.and_then(|meta| meta.get(key));
        let cluster = get(meta::CLUSTER).and_then(|name| ClusterName::new(name).ok());
        Identity {
            cluster: cluster.unwrap_or_else(|| self.name.clone()),
            uid: get(meta::CLUSTER_UID).cloned().unwrap_or_else(|| Str::from("")),
        }
    }
}

/// The one that is asked about: a pod, or what answers at an address.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The namespace, where it is known.
    pub(super) namespace: Option<Str>,
    /// The pod's name.
    pub(super) name: Option<Str>,
    /// The pod, where it could be read.
    pub(super) pod: Option<SeenPod>,
    /// The address that was asked for.
    pub(super) address: Option<IpAddr>,
}

impl Subject {
    /// A pod that was read.
    pub(super) fn of_pod(pod: SeenPod) -> Self {
        Self {
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            pod: Some(pod),
            address: None,
        }
    }

    /// A pod of which only the name is known.
    pub(super) fn named(name: &str) -> Self {
        Self { namespace: None, name: Some(name.into()), pod: None, address: None }
    }

    /// What answers at an address, with no pod there.
    pub(super) fn at(address: IpAddr) -> Self {
        Self { namespace: None, name: None, pod: None, address: Some(address) }
    }

    /// As it is called in a line.
    pub(super) fn called(&self) -> String {
        match (&self.namespace, &self.name, self.address) {
            (Some(namespace), Some(name), _) => format!("pod {namespace}/{name}"),
            (None, Some(name), _) => format!("pod {name}"),
            (_, None, Some(address)) => format!("address {address}"),
            (_, None, None) => "it".to_owned(),
        }
    }

    /// Says whether an instance with this ID stands for it.
    pub(super) fn is(&self, id: &str, registration: &Registration) -> bool {
        match (&self.pod, &self.name, self.address) {
            (Some(pod), ..) => {
                let at = |address: &IpAddr| address.to_string() == *registration.address;
                let of_pod = id.contains(&format!(":{}:", pod.uid));
                of_pod || registration.meta.get(meta::POD).is_none() && pod.addresses.iter().any(at)
            }
            (None, Some(name), _) => registration.meta.get(meta::POD) == Some(name),
            (None, None, address) => address.is_some_and(|address| address.to_string() == *registration.address),
        }
    }

    /// Says whether a problem with something called so is its own.
    pub(super) fn is_called(&self, instance: &str) -> bool {
        let at = |address: &IpAddr| address.to_string() == instance;
        self.name.as_deref() == Some(instance)
            || self.address.as_ref().is_some_and(at)
            || self.pod.as_ref().is_some_and(|pod| {
                pod.addresses.iter().any(at) || !pod.uid.is_empty() && instance.contains(&format!(":{}:", pod.uid))
            })
    }
}

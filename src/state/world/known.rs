//! What a World knows of one resource's namespace, as the model asks for it.

use std::net::IpAddr;

use super::World;
use crate::model::facts::{Facts, Node, Pod, Service, Slice};
use crate::model::ids::{ResourceKey, Str};
use crate::state::event::ObjectKey;

/// Holds what a World knows of a resource's namespace.
pub(super) struct Known<'a> {
    pub(super) world: &'a World,
    pub(super) key: &'a ResourceKey,
}

impl Known<'_> {
    fn object(&self, name: &str) -> ObjectKey {
        ObjectKey { namespace: self.key.namespace.clone(), name: name.into() }
    }
}

impl Facts for Known<'_> {
    fn namespace(&self) -> &Str {
        &self.key.namespace
    }

    fn service(&self, name: &str) -> Option<&Service> {
        self.world.services.get(&self.object(name))
    }

    fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> + Clone {
        let slices = self.world.slices_of.get(&self.object(service));
        slices.into_iter().flatten().filter_map(|key| self.world.slices.get(key))
    }

    fn matching(&self) -> impl Iterator<Item = (&Str, &Pod)> + Clone {
        let names = self.world.matching.get(self.key).into_iter().flatten();
        names.filter_map(|name| Some((name, self.world.pods.get(&self.object(name))?)))
    }

    fn pod(&self, name: &str) -> Option<&Pod> {
        self.world.pods.get(&self.object(name))
    }

    fn has_pod_at(&self, address: IpAddr) -> bool {
        self.world.pods_at.contains_key(&(self.key.namespace.clone(), address))
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.world.node(name)
    }
}

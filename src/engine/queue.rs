//! Resources that wait for something, in the order in which they came, each once.

use std::collections::{BTreeSet, VecDeque};

use crate::model::ids::ResourceKey;

/// Resources in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// May hold resources that were removed.
    order: VecDeque<ResourceKey>,
    members: BTreeSet<ResourceKey>,
}

impl Queue {
    /// Lets a resource wait, after those that wait already. One that waits keeps its place.
    pub(super) fn push(&mut self, key: ResourceKey) {
        if self.members.insert(key.clone()) {
            self.order.push_back(key);
        }
    }

    /// Takes the one that has waited longest.
    pub(super) fn pop(&mut self) -> Option<ResourceKey> {
        while let Some(key) = self.order.pop_front() {
            if self.members.remove(&key) {
                return Some(key);
            }
        }
        None
    }

    /// Lets a resource wait no more.
    pub(super) fn remove(&mut self, key: &ResourceKey) {
        if self.members.remove(key) {
            self.order.retain(|other| other != key);
        }
    }

    /// Says whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

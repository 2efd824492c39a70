//! Resources that wait for something, in the order in which they came, each once.

use std::collections::{BTreeSet, VecDeque};

use crate::model::ids::ResourceKey;

/// The places of removed resources that are kept in any case.
const SPARE: usize = 16;

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
        // Its place is given up later, with those of others, so that one removal does not walk the whole queue.
        if self.members.remove(key) && self.order.len() > 2 * self.members.len() + SPARE {
            self.order.retain(|other| self.members.contains(other));
        }
    }

    /// Says whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("shop", name)
    }

    #[test]
    fn each_waits_once_and_who_came_first_goes_first() {
        let mut queue = Queue::default();
        for name in ["b", "a", "b", "c"] {
            queue.push(key(name));
        }
        queue.remove(&key("a"));
        queue.remove(&key("a"));
        let taken: Vec<ResourceKey> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(taken, [key("b"), key("c")]);
        assert!(queue.is_empty());
    }

    #[test]
    fn resources_that_come_and_go_leave_nothing_behind() {
        let mut queue = Queue::default();
        queue.push(key("stays"));
        for number in 0..10_000 {
            let key = key(&number.to_string());
            queue.push(key.clone());
            queue.remove(&key);
        }
        assert!(queue.order.len() <= 2 + SPARE + 1, "{}", queue.order.len());
        assert_eq!((queue.pop(), queue.pop()), (Some(key("stays")), None));
    }
}

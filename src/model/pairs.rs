//! The meta pairs of a registration.
//!
//! Most pairs are the same for all instances of a resource, and there may be 100,000 of those. So what is the same is held
//! once, and each instance holds what is its own: the pod, and the Kubernetes node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ids::{Str, meta};

/// All meta pairs of a registration. Compared by content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// All but those that have a field here.
    shared: Arc<BTreeMap<Str, Str>>,
    /// The value of [`meta::POD`].
    pod: Option<Str>,
    /// The value of [`meta::NODE`].
    node: Option<Str>,
}

impl Pairs {
    /// Gives the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Str> {
        match key {
            meta::POD => self.pod.as_ref(),
            meta::NODE => self.node.as_ref(),
            _ => self.shared.get(key),
        }
    }

    /// Gives all pairs, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Str)> {
        let own = [(meta::POD, &self.pod), (meta::NODE, &self.node)];
        let own = own.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        self.shared.iter().map(|(key, value)| (&**key, value)).chain(own)
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: Str, value: Str) {
        match &*key {
            meta::POD => self.pod = Some(value),
            meta::NODE => self.node = Some(value),
            _ => _ = Arc::make_mut(&mut self.shared).insert(key, value),
        }
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, key: &str) {
        match key {
            meta::POD => self.pod = None,
            meta::NODE => self.node = None,
            _ if self.shared.contains_key(key) => _ = Arc::make_mut(&mut self.shared).remove(key),
            _ => {}
        }
    }
}

impl FromIterator<(Str, Str)> for Pairs {
    fn from_iter<T: IntoIterator<Item = (Str, Str)>>(pairs: T) -> Self {
        let mut shared: BTreeMap<Str, Str> = pairs.into_iter().collect();
        let (pod, node) = (shared.remove(meta::POD), shared.remove(meta::NODE));
        Self { shared: Arc::new(shared), pod, node }
    }
}

impl<const N: usize> From<[(Str, Str); N]> for Pairs {
    fn from(pairs: [(Str, Str); N]) -> Self {
        pairs.into_iter().collect()
    }
}

/// Holds what is the same in several [`Pairs`] once.
#[derive(Debug, Default)]
pub struct SharedPairs(BTreeSet<Arc<BTreeMap<Str, Str>>>);

impl SharedPairs {
    /// Gives equal pairs, of which the shared part is held once among all that were given here.
    pub fn share(&mut self, pairs: Pairs) -> Pairs {
        if let Some(known) = self.0.get(&pairs.shared) {
            return Pairs { shared: Arc::clone(known), ..pairs };
        }
        self.0.insert(Arc::clone(&pairs.shared));
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Pairs {
        list.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn all(pairs: &Pairs) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect()
    }

    #[test]
    fn pairs_are_as_a_map_whatever_is_shared() {
        let mut made = pairs(&[("k8s-pod", "p"), ("version", "2")]);
        let mut map = all(&made);
        for (key, value) in [("k8s-node", "n"), ("k8s-pod", "q"), ("version", "3"), ("zone", "a")] {
            made.insert(key.into(), value.into());
            map.insert(key.to_owned(), value.to_owned());
        }
        assert_eq!(all(&made), map);
        for key in ["k8s-pod", "zone", "never", "k8s-node"] {
            made.remove(key);
            map.remove(key);
            assert_eq!((all(&made), made.get(key)), (map.clone(), None));
        }
        assert_eq!(made, pairs(&[("version", "3")]));
        assert_ne!(made, pairs(&[("version", "3"), ("k8s-node", "n")]));
    }

    #[test]
    fn what_is_the_same_is_held_once_and_an_edit_is_of_one_alone() {
        let mut shared = SharedPairs::default();
        let mut first = shared.share(pairs(&[("k8s-pod", "p"), ("version", "2")]));
        let second = shared.share(pairs(&[("k8s-pod", "q"), ("version", "2")]));
        assert!(Arc::ptr_eq(&first.shared, &second.shared));
        first.insert("version".into(), "3".into());
        assert_eq!((&*first.get("version").unwrap().clone(), &**second.get("version").unwrap()), ("3", "2"));
    }
}

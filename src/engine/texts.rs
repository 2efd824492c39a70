//! The bytes of the texts that instances hold for themselves, by namespace: a tag with a pod's name in it is another one for
//! each pod, and a resource of a few bytes may so have many of them.
//!
//! In: what each decision about a resource comes to. Out: what is held besides a resource, and which others have room now.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Texts;
use crate::model::ids::{ResourceKey, Str};

/// The texts of all resources.
#[derive(Debug, Default)]
pub(super) struct AllTexts(BTreeMap<Str, OfNamespace>);

#[derive(Debug, Default)]
struct OfNamespace {
    /// The sum of `held`.
    bytes: usize,
    held: BTreeMap<ResourceKey, usize>,
    /// The resources for whose texts there was no room.
    refused: BTreeSet<ResourceKey>,
}

impl AllTexts {
    /// The bytes that the other resources of a namespace hold.
    pub(super) fn of_others(&self, key: &ResourceKey) -> usize {
        let of_namespace = self.0.get(&key.namespace);
        of_namespace.map_or(0, |all| all.bytes - all.held.get(key).copied().unwrap_or_default())
    }

    /// Notes what a decision about a resource comes to. Gives the resources that may have room now.
    pub(super) fn note(&mut self, key: &ResourceKey, texts: Texts) -> BTreeSet<ResourceKey> {
        if texts == Texts::default() && !self.0.contains_key(&key.namespace) {
            return BTreeSet::new();
        }
        let all = self.0.entry(key.namespace.clone()).or_default();
        let before = all.held.remove(key).unwrap_or_default();
        all.bytes = all.bytes - before + texts.bytes;
        if texts.bytes > 0 {
            all.held.insert(key.clone(), texts.bytes);
        }
        all.refused.remove(key);
        let has_room = if texts.bytes < before { std::mem::take(&mut all.refused) } else { BTreeSet::new() };
        if texts.are_too_large {
            all.refused.insert(key.clone());
        }
        if all.held.is_empty() && all.refused.is_empty() {
            self.0.remove(&key.namespace);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_so_many_and_who_was_refused_hears_of_room() {
        let key = |name: &str| ResourceKey::new("shop", name);
        let held = |bytes| Texts { bytes, are_too_large: false };
        let refused = Texts { bytes: 0, are_too_large: true };
        let mut texts = AllTexts::default();
        for (name, now, of_others, has_room) in [
            ("a", held(5), 0, &[][..]),
            ("b", held(3), 5, &[]),
            ("c", refused, 8, &[]),
            ("a", held(7), 3, &[]),
            ("a", held(2), 3, &["c"]),
            ("c", refused, 5, &[]),
            ("b", refused, 2, &["c"]),
            ("b", refused, 2, &[]),
            ("c", Texts::default(), 2, &[]),
            ("a", Texts::default(), 0, &["b"]),
        ] {
            assert_eq!(texts.of_others(&key(name)), of_others, "{name}");
            assert_eq!(texts.of_others(&ResourceKey::new("lab", name)), 0);
            assert_eq!(texts.note(&key(name), now), has_room.iter().map(|name| key(name)).collect(), "{name}");
        }
        assert!(texts.0.is_empty(), "nothing is held of what is gone: {texts:?}");
    }
}

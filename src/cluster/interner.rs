//! One copy of a string that many objects hold: names of namespaces, nodes, Services and ports.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::ids::Str;

/// Hands out shared strings and forgets those that nobody holds any more.
#[derive(Debug, Default)]
pub(super) struct Interner {
    known: HashSet<Str>,
    clean_at: usize,
}

/// Below this many strings it is not worth looking for those that nobody holds.
const FEW: usize = 1024;

impl Interner {
    pub(super) fn get(&mut self, text: &str) -> Str {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.clean_at.max(FEW) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.clean_at = self.known.len() * 2;
        }
        let new: Str = text.into();
        self.known.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let first = interner.get("node-1");
        assert!(Arc::ptr_eq(&first, &interner.get("node-1")));
        for i in 0..10 * FEW {
            interner.get(&i.to_string());
        }
        assert!(interner.known.len() <= FEW, "{} are kept", interner.known.len());
        assert!(Arc::ptr_eq(&first, &interner.get("node-1")), "one in use is never forgotten");
    }
}

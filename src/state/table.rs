//! Objects of one kind, kept by mark and resync over the lists of any number of scopes.

use std::collections::BTreeMap;

use super::event::{ObjectKey, Scope, Step};
use crate::model::cause::Cause;
use crate::model::ids::Str;

/// The objects of one kind.
///
/// Each list of a scope is an epoch and marks what it has; when it is done, what it did not mark goes. A
/// list that is begun again before it is done is a new epoch: what only the void one had marked counts as
/// unmarked, so nothing that was deleted meanwhile stays. Until a list is done the state from before stays
/// in force.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: BTreeMap<ObjectKey, Row<T>>,
    lists: BTreeMap<Scope, List>,
}

#[derive(Debug)]
struct Row<T> {
    value: T,
    /// The list of its scope that had it last, or during which it was last told of.
    epoch: u64,
}

#[derive(Debug, Default)]
struct List {
    epoch: u64,
    under_way: bool,
    done_once: bool,
}

/// An object that is not what it was.
#[derive(Debug)]
pub(super) struct Moved<T> {
    pub(super) key: ObjectKey,
    /// The object as it was; the table has it as it is.
    pub(super) old: Option<T>,
    pub(super) cause: Cause,
}

/// Says what a step came to.
#[derive(Debug)]
pub(super) struct Outcome<T> {
    pub(super) moved: Vec<Moved<T>>,
    /// True if it completed the first list of its scope.
    pub(super) first_list_done: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), lists: BTreeMap::new() }
    }
}

impl<T: PartialEq> Table<T> {
    pub(super) fn apply(&mut self, scope: &Scope, step: Step<T>) -> Outcome<T> {
        let list = self.lists.entry(scope.clone()).or_default();
        let mut outcome = Outcome { moved: Vec::new(), first_list_done: false };
        match step {
            Step::Init => {
                list.epoch += 1;
                list.under_way = true;
            }
            Step::InitApply(key, value) => {
                let epoch = list.epoch;
                outcome.moved.extend(self.put(key, value, epoch, Cause::Inferred));
            }
            Step::Apply(key, value) => {
                let epoch = list.epoch;
                outcome.moved.extend(self.put(key, value, epoch, Cause::Observed));
            }
            Step::Delete(key) => {
                let old = self.rows.remove(&key).map(|row| row.value);
                outcome.moved.extend(old.map(|old| Moved { key, old: Some(old), cause: Cause::Observed }));
            }
            Step::InitDone if list.under_way => {
                list.under_way = false;
                outcome.first_list_done = !list.done_once;
                list.done_once = true;
                let epoch = list.epoch;
                outcome.moved = self.resync(scope, epoch);
            }
            Step::InitDone => {}
        }
        outcome
    }

    fn put(&mut self, key: ObjectKey, value: T, epoch: u64, cause: Cause) -> Option<Moved<T>> {
        if let Some(row) = self.rows.get_mut(&key) {
            row.epoch = epoch;
            if row.value == value {
                return None;
            }
            let old = Some(std::mem::replace(&mut row.value, value));
            return Some(Moved { key, old, cause });
        }
        self.rows.insert(key.clone(), Row { value, epoch });
        Some(Moved { key, old: None, cause })
    }

    fn resync(&mut self, scope: &Scope, epoch: u64) -> Vec<Moved<T>> {
        let unmarked: Vec<ObjectKey> = match scope {
            Scope::All => self.rows.iter().filter(|(_, row)| row.epoch != epoch).map(|(key, _)| key.clone()).collect(),
            Scope::Namespace(namespace) => {
                let first = ObjectKey { namespace: namespace.clone(), name: Str::from("") };
                let own = self.rows.range(first..).take_while(|(key, _)| key.namespace == *namespace);
                own.filter(|(_, row)| row.epoch != epoch).map(|(key, _)| key.clone()).collect()
            }
        };
        let gone = |key: ObjectKey| {
            let old = self.rows.remove(&key).map(|row| row.value);
            Moved { key, old, cause: Cause::Inferred }
        };
        unmarked.into_iter().map(gone).collect()
    }

    /// Forgets everything of a scope, which is not watched any more, and gives what that was.
    pub(super) fn take(&mut self, scope: &Scope) -> Vec<(ObjectKey, T)> {
        self.lists.remove(scope);
        let keys: Vec<ObjectKey> = match scope {
            Scope::All => self.rows.keys().cloned().collect(),
            Scope::Namespace(namespace) => self.of_namespace(namespace).map(|(key, _)| key.clone()).collect(),
        };
        let taken = keys.into_iter().filter_map(|key| self.rows.remove_entry(&key));
        taken.map(|(key, row)| (key, row.value)).collect()
    }

    /// Forgets everything of a scope: it is not watched any more.
    pub(super) fn forget(&mut self, scope: &Scope) {
        self.lists.remove(scope);
        self.rows.retain(|key, _| !scope.covers(&key.namespace));
    }

    /// The objects of a namespace, in the order of their names.
    pub(super) fn of_namespace(&self, namespace: &Str) -> impl Iterator<Item = (&ObjectKey, &T)> + use<'_, T> {
        let first = ObjectKey { namespace: namespace.clone(), name: Str::from("") };
        let namespace = namespace.clone();
        let own = self.rows.range(first..).take_while(move |(key, _)| key.namespace == namespace);
        own.map(|(key, row)| (key, &row.value))
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<&T> {
        self.rows.get(key).map(|row| &row.value)
    }

    pub(super) fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut T> {
        self.rows.get_mut(key).map(|row| &mut row.value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.rows.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &T)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// Says whether a list of this scope was ever completed.
    pub(super) fn is_listed(&self, scope: &Scope) -> bool {
        self.lists.get(scope).is_some_and(|list| list.done_once)
    }
}

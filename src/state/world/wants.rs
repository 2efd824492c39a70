//! Which kinds must be watched where: a kind is only while a resource needs it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::facts::PodKey;
use crate::model::ids::Str;
use crate::model::resource::Needs;
use crate::state::event::{Kind, Scope};

/// Says what is to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These kinds, each in one scope, with a number that tells one time from an earlier one: a watch that ended and
    /// is wanted again begins anew.
    pub watches: BTreeMap<(Kind, Scope), u64>,
    /// The labels and annotations of pods to keep, by the namespace whose resources ask for them.
    pub of_pods: BTreeMap<Str, BTreeSet<PodKey>>,
}

/// Counts how many resources need what.
#[derive(Debug, Default)]
pub(super) struct Wants {
    watches: BTreeMap<(Kind, Scope), Count>,
    /// Counts how often a watch has begun.
    begun: u64,
    /// Counts the resources of a namespace that ask for something of pods.
    of_pods: BTreeMap<Str, BTreeMap<PodKey, usize>>,
    news: bool,
}

#[derive(Debug)]
struct Count {
    users: usize,
    /// Counts which beginning it was.
    time: u64,
}

impl Wants {
    /// Counts what a resource of a namespace needs; `scopes` are those that cover it.
    pub(super) fn add<'a>(&mut self, namespace: &Str, needs: &Needs, scopes: impl Iterator<Item = &'a Scope>) {
        for watch in watches(namespace, needs, scopes) {
            let count = self.watches.entry(watch).or_insert_with(|| {
                self.news = true;
                self.begun += 1;
                Count { users: 0, time: self.begun }
            });
            count.users += 1;
        }
        if needs.of_pods.is_empty() {
            return;
        }
        let of_namespace = self.of_pods.entry(namespace.clone()).or_default();
        for key in &needs.of_pods {
            *of_namespace.entry(key.clone()).or_insert_with(|| {
                self.news = true;
                0
            }) += 1;
        }
    }

    /// Takes back what was counted; gives the watches that nobody needs any more.
    pub(super) fn take<'a>(
        &mut self,
        namespace: &Str,
        needs: &Needs,
        scopes: impl Iterator<Item = &'a Scope>,
    ) -> Vec<(Kind, Scope)> {
        self.take_of_pods(namespace, needs);
        let mut ended = Vec::new();
        for watch in watches(namespace, needs, scopes) {
            if let Some(count) = self.watches.get_mut(&watch) {
                count.users -= 1;
                if count.users == 0 {
                    self.watches.remove(&watch);
                    self.news = true;
                    ended.push(watch);
                }
            }
        }
        ended
    }

    fn take_of_pods(&mut self, namespace: &Str, needs: &Needs) {
        let Some(of_namespace) = self.of_pods.get_mut(namespace) else { return };
        for key in &needs.of_pods {
            if let Some(users) = of_namespace.get_mut(key) {
                *users -= 1;
                if *users == 0 {
                    of_namespace.remove(key);
                    self.news = true;
                }
            }
        }
        if of_namespace.is_empty() {
            self.of_pods.remove(namespace);
        }
    }

    pub(super) fn has(&self, watch: &(Kind, Scope)) -> bool {
        self.watches.contains_key(watch)
    }

    pub(super) fn has_kind(&self, kind: Kind) -> bool {
        self.watches.keys().any(|(wanted, _)| *wanted == kind)
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            watches: self.watches.iter().map(|(watch, count)| (watch.clone(), count.time)).collect(),
            of_pods: self
                .of_pods
                .iter()
                .map(|(namespace, keys)| (namespace.clone(), keys.keys().cloned().collect()))
                .collect(),
        }
    }

    /// Notes that something is wanted now that was not, or the other way round, whatever resources need.
    pub(super) fn note_news(&mut self) {
        self.news = true;
    }

    /// Says whether anything is wanted now that was not, or the other way round, since this was last asked.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

/// Lists the watches that a resource of a namespace needs. Of what others may make in any number, slices, Services and pods,
/// only those of its own namespace are: whoever uses no Lictor fills no memory of it.
fn watches<'a>(
    namespace: &Str,
    needs: &Needs,
    mut scopes: impl Iterator<Item = &'a Scope>,
) -> impl Iterator<Item = (Kind, Scope)> {
    let is_watched = scopes.next().is_some();
    let kinds = [(Kind::Slice, needs.services), (Kind::Service, needs.services), (Kind::Pod, needs.pods)];
    let needed = kinds.into_iter().filter(move |(_, is_needed)| *is_needed && is_watched);
    let namespace = Scope::Namespace(namespace.clone());
    let nodes = needs.nodes.then_some((Kind::Node, Scope::All));
    needed.map(move |(kind, _)| (kind, namespace.clone())).chain(nodes)
}

//! Which kinds must be watched where: a kind is only while a resource needs it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ids::Str;
use crate::model::resource::Needs;
use crate::state::event::{Kind, Scope};

/// Says what is to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These kinds, each in one scope, with a number that tells one time from an earlier one: a watch that ended and
    /// is wanted again begins anew.
    pub watches: BTreeMap<(Kind, Scope), u64>,
    /// The annotations of pods that are kept.
    pub annotations: BTreeSet<Str>,
}

/// Counts how many resources need what.
#[derive(Debug, Default)]
pub(super) struct Wants {
    watches: BTreeMap<(Kind, Scope), Count>,
    /// Counts how often a watch has begun.
    begun: u64,
    annotations: BTreeMap<Str, usize>,
    news: bool,
}

#[derive(Debug)]
struct Count {
    users: usize,
    /// Counts which beginning it was.
    time: u64,
}

impl Wants {
    /// Counts what a resource needs of these scopes, which are those that cover its namespace.
    pub(super) fn add<'a>(&mut self, needs: &Needs, scopes: impl Iterator<Item = &'a Scope>) {
        for watch in watches(needs, scopes) {
            let count = self.watches.entry(watch).or_insert_with(|| {
                self.news = true;
                self.begun += 1;
                Count { users: 0, time: self.begun }
            });
            count.users += 1;
        }
        for annotation in &needs.annotations {
            *self.annotations.entry(annotation.clone()).or_insert_with(|| {
                self.news = true;
                0
            }) += 1;
        }
    }

    /// Takes back what was counted; gives the watches that nobody needs any more.
    pub(super) fn take<'a>(&mut self, needs: &Needs, scopes: impl Iterator<Item = &'a Scope>) -> Vec<(Kind, Scope)> {
        for annotation in &needs.annotations {
            if let Some(users) = self.annotations.get_mut(annotation) {
                *users -= 1;
                if *users == 0 {
                    self.annotations.remove(annotation);
                    self.news = true;
                }
            }
        }
        let mut ended = Vec::new();
        for watch in watches(needs, scopes) {
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

    pub(super) fn has(&self, watch: &(Kind, Scope)) -> bool {
        self.watches.contains_key(watch)
    }

    pub(super) fn has_kind(&self, kind: Kind) -> bool {
        self.watches.keys().any(|(wanted, _)| *wanted == kind)
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            watches: self.watches.iter().map(|(watch, count)| (watch.clone(), count.time)).collect(),
            annotations: self.annotations.keys().cloned().collect(),
        }
    }

    /// Says whether anything is wanted now that was not, or the other way round, since this was last asked.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

fn watches<'a>(needs: &Needs, scopes: impl Iterator<Item = &'a Scope>) -> Vec<(Kind, Scope)> {
    let kinds = [(Kind::Slice, needs.services), (Kind::Service, needs.services), (Kind::Pod, needs.pods)];
    let in_scope = |scope: &Scope| {
        kinds.into_iter().filter(|(_, needed)| *needed).map(|(kind, _)| (kind, scope.clone())).collect::<Vec<_>>()
    };
    let nodes = needs.nodes.then_some((Kind::Node, Scope::All));
    scopes.flat_map(in_scope).chain(nodes).collect()
}

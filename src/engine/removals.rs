//! Which removals wait for Kubernetes to confirm them.
//!
//! What a user deleted while Lictor watched goes at once. What is only *not there* (an empty list, a resource that a new
//! list did not have, an orphan of a crash) is a conclusion: when many instances go by it, Kubernetes is asked for a
//! fresh list first. And before the instances of a deleted resource go, Kubernetes is asked whether all resources are
//! being deleted together with their `CustomResourceDefinition`: nobody means to say that of the services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::resources::Dirty;
use crate::model::cause::CrdState;
use crate::model::ids::{ResourceKey, Str};

/// The share of what this cluster owns, in percent, that may go by inference without a confirmation.
const SHARE_PERCENT: usize = 10;

/// Removals that wait for a confirmation, and what was confirmed.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Resources with removals by inference that were not weighed yet.
    pub(super) inferred: BTreeMap<ResourceKey, Inferred>,
    /// Resources with removals by inference that are too many: a fresh list confirms them.
    pub(super) relist: Confirmation,
    /// Deleted resources: they are confirmed when the definition stays.
    pub(super) definition: Confirmation,
    /// The removals by inference that went without a confirmation.
    pub(super) budget: Budget,
    /// Deleted resources of which it is known that they were deleted by themselves, with their uids; none for one that was
    /// gone by then.
    confirmed: BTreeMap<ResourceKey, Option<Str>>,
    /// Deleted resources of which nobody can tell.
    undecided: BTreeSet<ResourceKey>,
    /// True if the definition was being deleted when that was last asked.
    definition_goes: bool,
    /// The number of times in a row that a fresh list could not tell or contradicted.
    failures: u32,
}

/// The removals of one resource by inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inferred {
    /// The number of these removals.
    pub(super) removals: usize,
    /// The time at which the change arrived that led to them.
    pub(super) since: Instant,
}

/// Says what happens to the instances of a deleted resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// They are deregistered.
    Deregister,
    /// They stay, and the finalizer is removed.
    Detach,
    /// They stay until Kubernetes can be asked. Whether nobody has been told of that.
    Wait {
        /// True if this is the first time for this resource.
        is_new: bool,
    },
}

impl Removals {
    /// Says whether the instances of a deleted resource may go. `uid` is none where it is gone: of another one under its name
    /// nothing is known.
    pub(super) fn is_confirmed(&self, key: &ResourceKey, uid: Option<&Str>) -> bool {
        self.confirmed.get(key).is_some_and(|confirmed| uid.is_none() || confirmed.as_ref() == uid)
    }

    /// Notes that a resource is not deleted, or has nothing to remove any more.
    pub(super) fn forget_deletion(&mut self, key: &ResourceKey) {
        self.confirmed.remove(key);
        self.undecided.remove(key);
    }

    /// Notes that the instances of a deleted resource are gone.
    pub(super) fn done(&mut self, key: &ResourceKey) {
        self.confirmed.remove(key);
    }

    /// Says whether something of a resource waits for a confirmation.
    pub(super) fn has(&self, key: &ResourceKey) -> bool {
        self.inferred.contains_key(key) || self.relist.has(key) || self.definition.has(key)
    }

    /// Counts the resources that wait for a fresh list, or for somebody who can tell whether the definition goes.
    pub(super) fn len(&self) -> usize {
        self.relist.waiting.len() + self.undecided.len()
    }

    /// Notes whether the definition is being deleted. Answers whether that is news.
    pub(super) fn note_definition(&mut self, state: CrdState) -> bool {
        let goes = state == CrdState::Goes;
        !std::mem::replace(&mut self.definition_goes, goes) && goes
    }

    /// Decides about a deleted resource that has `instances` of the `owned` instances of this cluster; `uid` is none where it
    /// is gone.
    pub(super) fn delete(
        &mut self,
        key: &ResourceKey,
        uid: Option<&Str>,
        state: CrdState,
        instances: usize,
        owned: usize,
        now: Instant,
    ) -> Deletion {
        match state {
            CrdState::Goes => {
                self.forget_deletion(key);
                Deletion::Detach
            }
            // Where nobody can tell, few may go.
            CrdState::Unknown if !self.budget.takes(instances, owned, now) => {
                Deletion::Wait { is_new: self.undecided.insert(key.clone()) }
            }
            CrdState::Stays | CrdState::Unknown => {
                self.undecided.remove(key);
                self.confirmed.insert(key.clone(), uid.cloned());
                Deletion::Deregister
            }
        }
    }

    /// Notes whether a fresh list confirmed everything that it was asked about.
    pub(super) fn relisted(&mut self, confirmed: bool) {
        self.failures = if confirmed { 0 } else { self.failures.saturating_add(1) };
    }

    /// Counts the times in a row that a fresh list did not confirm everything.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets what waits and what was confirmed: it concerned what was known of Consul before. An answer that is under
    /// way stays expected.
    pub(super) fn reset(&mut self) {
        self.inferred.clear();
        self.relist.waiting.clear();
        self.definition.waiting.clear();
        self.confirmed.clear();
        self.undecided.clear();
    }
}

/// Resources that wait for an answer of Kubernetes.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
    waiting: BTreeMap<ResourceKey, Dirty>,
    /// Those that the question under way is about: it says nothing of what came to wait later.
    asked: Option<BTreeSet<ResourceKey>>,
}

impl Confirmation {
    /// Lets a resource wait.
    pub(super) fn wait(&mut self, key: ResourceKey, dirty: Dirty) {
        self.waiting.insert(key, dirty);
    }

    /// Lets a resource wait no more. Should it come to wait again, the question under way is not about it.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.waiting.remove(key);
        if let Some(asked) = &mut self.asked {
            asked.remove(key);
        }
    }

    /// Says whether a resource waits.
    pub(super) fn has(&self, key: &ResourceKey) -> bool {
        self.waiting.contains_key(key)
    }

    /// Says whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The resources that wait.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ResourceKey> {
        self.waiting.keys()
    }

    /// Begins to ask about all that wait, unless somebody asks already or nothing waits. Answers whether it does.
    pub(super) fn ask(&mut self) -> bool {
        let asks = self.asked.is_none() && !self.waiting.is_empty();
        if asks {
            self.asked = Some(self.waiting.keys().cloned().collect());
        }
        asks
    }

    /// Takes those that an answer is about: those that waited when it was asked for and still do. An answer to a question
    /// of an earlier session is about none.
    pub(super) fn answered(&mut self, is_current: bool) -> BTreeMap<ResourceKey, Dirty> {
        let asked = self.asked.take().filter(|_| is_current).unwrap_or_default();
        asked.into_iter().filter_map(|key| self.waiting.remove_entry(&key)).collect()
    }
}

/// The removals that went without a confirmation, within a while: many small ones are a large one.
#[derive(Debug, Default)]
pub(super) struct Budget {
    since: Option<Instant>,
    removals: usize,
    owned: usize,
}

impl Budget {
    const WHILE: Duration = Duration::from_secs(60);

    /// Says whether so many more instances may go, of those that are owned now. Counts them if they may.
    pub(super) fn takes(&mut self, removals: usize, owned: usize, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > Self::WHILE) {
            *self = Self { since: Some(now), removals: 0, owned };
        }
        if exceeds_share(self.removals + removals, self.owned.max(owned)) {
            return false;
        }
        self.removals += removals;
        true
    }
}

/// Says whether removing `inferred` of `owned` instances by inference wants a confirmation.
fn exceeds_share(inferred: usize, owned: usize) -> bool {
    inferred * 100 > owned * SHARE_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cause::Cause;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("shop", name)
    }

    fn dirty() -> Dirty {
        Dirty { cause: Cause::Inferred, since: Instant::now() }
    }

    #[test]
    fn more_than_a_share_wants_a_confirmation() {
        for (inferred, owned, expected) in
            [(0, 0, false), (1, 1, true), (1, 10, false), (2, 10, true), (100, 1000, false)]
        {
            assert_eq!(exceeds_share(inferred, owned), expected, "{inferred} of {owned}");
        }
    }

    #[test]
    fn many_small_removals_are_a_large_one() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        for (after, removals, owned, passes) in
            [(0, 6, 100, true), (10, 5, 94, false), (20, 4, 94, true), (30, 1, 90, false), (61, 9, 90, true)]
        {
            assert_eq!(budget.takes(removals, owned, start + Duration::from_secs(after)), passes, "after {after} s");
        }
    }

    #[test]
    fn a_deleted_resource_goes_unless_its_definition_does_or_may() {
        let few = (1, 100);
        let many = (50, 100);
        for (state, (instances, owned), expected) in [
            (CrdState::Stays, many, Deletion::Deregister),
            (CrdState::Goes, few, Deletion::Detach),
            (CrdState::Unknown, few, Deletion::Deregister),
            (CrdState::Unknown, many, Deletion::Wait { is_new: true }),
        ] {
            let mut removals = Removals::default();
            let found = removals.delete(&key("a"), Some(&"1".into()), state, instances, owned, Instant::now());
            assert_eq!(found, expected, "{state:?}, {instances} of {owned}");
            let is_confirmed = removals.is_confirmed(&key("a"), Some(&"1".into()));
            assert_eq!(is_confirmed, expected == Deletion::Deregister, "{state:?}");
        }
    }

    #[test]
    fn of_another_resource_under_the_name_of_a_deleted_one_nothing_is_confirmed() {
        let uid = |uid: &str| Some(Str::from(uid));
        for (deleted, now, expected) in [
            (uid("1"), uid("1"), true),
            (uid("1"), None, true),
            (None, None, true),
            (uid("1"), uid("2"), false),
            (None, uid("2"), false),
        ] {
            let mut removals = Removals::default();
            removals.delete(&key("a"), deleted.as_ref(), CrdState::Stays, 1, 100, Instant::now());
            assert_eq!(removals.is_confirmed(&key("a"), now.as_ref()), expected, "{deleted:?}, then {now:?}");
            removals.delete(&key("a"), now.as_ref(), CrdState::Goes, 1, 100, Instant::now());
            assert!(!removals.is_confirmed(&key("a"), None), "the last answer counts");
        }
    }

    #[test]
    fn that_nobody_can_tell_is_news_once() {
        let mut removals = Removals::default();
        let mut wait = || removals.delete(&key("a"), None, CrdState::Unknown, 50, 100, Instant::now());
        assert_eq!(wait(), Deletion::Wait { is_new: true });
        assert_eq!(wait(), Deletion::Wait { is_new: false });
        assert_eq!(removals.len(), 1);
        let states = [CrdState::Goes, CrdState::Goes, CrdState::Stays, CrdState::Goes];
        assert_eq!(states.map(|state| removals.note_definition(state)), [true, false, false, true]);
    }

    #[test]
    fn an_answer_is_about_those_that_waited_when_it_was_asked_for() {
        let mut relist = Confirmation::default();
        assert!(!relist.ask(), "nothing waits");
        relist.wait(key("a"), dirty());
        relist.wait(key("b"), dirty());
        assert!(relist.ask() && !relist.ask(), "once at a time");
        relist.wait(key("c"), dirty());
        relist.forget(&key("b"));
        relist.wait(key("b"), dirty());
        assert_eq!(relist.answered(true).into_keys().collect::<Vec<_>>(), [key("a")]);
        assert_eq!(relist.keys().collect::<Vec<_>>(), [&key("b"), &key("c")]);
        relist.forget(&key("b"));
        assert!(relist.ask());
        assert!(relist.answered(false).is_empty(), "it was asked in an earlier session");
        assert!(relist.has(&key("c")));
    }
}

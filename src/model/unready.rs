//! Whether most instances stop passing at once although none of them goes.
//!
//! One pod that is not ready says something of that pod. When most of them turn at once, and their endpoints stay, it
//! is likelier that Kubernetes has lost sight of its nodes: the kubelets are cut off, and the pods serve on. Those of one
//! namespace alone are their owner's affair, and hold up nobody else. In: what
//! each decision makes of a resource's instances, and the time, in milliseconds from some fixed moment. Out: when such
//! an episode begins and ends, and what it is about. Each call costs as much as the change that it is about.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ids::{ResourceKey, Str};
use super::registration::RowKey;

/// The longest time between instances that stop passing and still count together, in milliseconds.
const WITHIN: u64 = 60_000;

/// Fewer than this many say nothing, whatever their share.
pub const LEAST: usize = 10;

/// For how long one measure of how many pass stands, in milliseconds.
const MEASURE: u64 = 5_000;

/// Says whether so many that stop passing, of so many that passed, are an episode.
#[must_use]
fn is_most(stopped: usize, passed: usize) -> bool {
    stopped >= LEAST && stopped * 2 > passed
}

/// Says what has become of an instance that stopped passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// Its endpoint is there and not ready.
    Unready,
    /// It is to pass.
    Ready,
    /// Nobody asks for it any more: its endpoint went, or its resource was edited or deleted.
    Gone,
}

/// Says what a decision changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// An episode begins. These resources have instances in it.
    Begins(BTreeSet<ResourceKey>),
    /// It is over: half of the instances that stopped passing and are not gone pass again. These resources had some in it.
    Ends(BTreeSet<ResourceKey>),
}

/// An episode in which most instances stop passing at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// The time when it began.
    pub since: u64,
    /// The number of instances that passed before.
    pub passed: usize,
    /// The most instances that were in it at a time, without those that are gone since.
    most: usize,
    /// True if Kubernetes was asked again and says the same.
    pub confirmed: bool,
}

/// The instances that stopped passing of late while their endpoints stay.
#[derive(Debug, Default)]
pub struct MassUnready {
    stopped: BTreeMap<ResourceKey, BTreeMap<RowKey, Stopped>>,
    count: usize,
    /// Counts the instances of `stopped` by namespace.
    by_namespace: BTreeMap<Str, usize>,
    /// The instances of `stopped` by age; one that is not in `stopped` at that time any more is passed over.
    order: VecDeque<(u64, ResourceKey, RowKey)>,
    /// The most instances that passed, measure by measure.
    passed: VecDeque<(u64, usize)>,
    episode: Option<Episode>,
}

#[derive(Debug)]
struct Stopped {
    at: u64,
    address: Str,
}

impl MassUnready {
    /// Notes a decision about a resource. `passing` is how many instances of all resources pass in Consul before it, and
    /// `passing_besides` how many of them are not of a namespace. `stops` are those that it makes stop passing although
    /// their endpoints stay, with their addresses; `now_of` answers of one that stopped before what has become of it.
    pub fn decided(
        &mut self,
        owner: &ResourceKey,
        stops: impl Iterator<Item = (RowKey, Str)>,
        now_of: impl Fn(&RowKey, &str) -> Now,
        passing: usize,
        passing_besides: impl Fn(&Str) -> usize,
        now: u64,
    ) -> Option<Turn> {
        self.measure(passing, now);
        let (mut gone, count) = (0, self.count);
        if let Some(known) = self.stopped.get_mut(owner) {
            let before = known.len();
            known.retain(|key, stopped| {
                let now = now_of(key, &stopped.address);
                gone += usize::from(now == Now::Gone);
                now == Now::Unready
            });
            self.count -= before - known.len();
        }
        for (key, address) in stops {
            let known = self.stopped.entry(owner.clone()).or_default();
            if !known.contains_key(&key) {
                known.insert(key.clone(), Stopped { at: now, address });
                self.count += 1;
                self.order.push_back((now, owner.clone(), key));
            }
        }
        if self.stopped.get(owner).is_some_and(BTreeMap::is_empty) {
            self.stopped.remove(owner);
        }
        self.recount(&owner.namespace, count);
        match &mut self.episode {
            None => {
                self.forget_older(now);
                let passed = self.passed.iter().map(|(_, passed)| *passed).max().unwrap_or_default();
                (is_most(self.count, passed) && self.is_of_several(passing_besides)).then(|| {
                    self.episode = Some(Episode { since: now, passed, most: self.count, confirmed: false });
                    Turn::Begins(self.stopped.keys().cloned().collect())
                })
            }
            Some(episode) => {
                // What is gone says nothing of the rest.
                episode.most = episode.most.saturating_sub(gone).max(self.count);
                if self.count * 2 > episode.most {
                    return None;
                }
                let mut resources: BTreeSet<ResourceKey> = self.stopped.keys().cloned().collect();
                resources.insert(owner.clone());
                *self = Self { passed: std::mem::take(&mut self.passed), ..Self::default() };
                Some(Turn::Ends(resources))
            }
        }
    }

    /// Says whether those that stopped are not those of one namespace alone, whose fault that may be: of the others, more
    /// stopped than half of what passes there. Where no other namespace has any that passed, nobody else is concerned.
    fn is_of_several(&self, passing_besides: impl Fn(&Str) -> usize) -> bool {
        let Some((most, of_it)) = self.by_namespace.iter().max_by_key(|(_, count)| **count) else { return false };
        let (stopped, passing) = (self.count - of_it, passing_besides(most));
        passing == 0 || stopped * 2 > passing
    }

    /// Notes that instances of a namespace have changed the count, which was `before`.
    fn recount(&mut self, namespace: &Str, before: usize) {
        let known = self.by_namespace.entry(namespace.clone()).or_default();
        *known = (*known + self.count).saturating_sub(before);
        if *known == 0 {
            self.by_namespace.remove(namespace);
        }
    }

    /// The episode, while there is one.
    #[must_use]
    pub fn episode(&self) -> Option<Episode> {
        self.episode
    }

    /// Notes that Kubernetes was asked again and says the same.
    pub fn confirm(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.confirmed = true;
        }
    }

    /// Counts the instances in the episode; 0 without one.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.episode.is_some() { self.count } else { 0 }
    }

    /// Says whether a resource has instances in the episode.
    #[must_use]
    pub fn concerns(&self, owner: &ResourceKey) -> bool {
        self.episode.is_some() && self.stopped.contains_key(owner)
    }

    /// Says whether an instance is in the episode.
    #[must_use]
    pub fn has(&self, owner: &ResourceKey, key: &RowKey) -> bool {
        self.episode.is_some() && self.stopped.get(owner).is_some_and(|known| known.contains_key(key))
    }

    /// The resources with instances in the episode.
    pub fn resources(&self) -> impl Iterator<Item = &ResourceKey> {
        self.stopped.keys().filter(|_| self.episode.is_some())
    }

    fn measure(&mut self, passing: usize, now: u64) {
        while self.passed.front().is_some_and(|(at, _)| at + WITHIN < now) {
            self.passed.pop_front();
        }
        match self.passed.back_mut() {
            Some((at, passed)) if *at + MEASURE > now => *passed = passing.max(*passed),
            _ => self.passed.push_back((now, passing)),
        }
    }

    /// Forgets what stopped too long ago to count together with what stops now.
    fn forget_older(&mut self, now: u64) {
        while self.order.front().is_some_and(|(at, ..)| at + WITHIN < now)
            && let Some((at, owner, key)) = self.order.pop_front()
        {
            let Some(known) = self.stopped.get_mut(&owner) else { continue };
            if known.get(&key).is_some_and(|stopped| stopped.at == at) {
                known.remove(&key);
                if known.is_empty() {
                    self.stopped.remove(&owner);
                }
                self.count -= 1;
                self.recount(&owner.namespace, self.count + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_and_at_least_ten() {
        for (stopped, passed, expected) in [
            (0, 0, false),
            (9, 9, false),
            (10, 10, true),
            (10, 19, true),
            (10, 20, false),
            (300, 600, false),
            (301, 600, true),
        ] {
            assert_eq!(is_most(stopped, passed), expected, "{stopped} of {passed}");
        }
    }

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("shop", name)
    }

    fn row(number: usize) -> RowKey {
        RowKey { node: "n".into(), id: format!("i{number}").into() }
    }

    const fn unready(_: &RowKey, _: &str) -> Now {
        Now::Unready
    }

    /// Instances by number that stop passing, as (when, of which resource, which, how many pass before it).
    type Step<'a> = (u64, &'a str, std::ops::Range<usize>, usize);

    /// At which steps an episode begins, and whether one lasts at the end.
    fn run(steps: &[Step<'_>]) -> (Vec<usize>, usize) {
        let mut machine = MassUnready::default();
        let mut begun = Vec::new();
        for (number, (at, owner, instances, passing)) in steps.iter().enumerate() {
            let stopped = instances.clone().map(|number| (row(number), "10.0.0.1".into()));
            let turn = machine.decided(&key(owner), stopped, unready, *passing, |_| 0, *at);
            if matches!(turn, Some(Turn::Begins(_))) {
                begun.push(number);
            }
        }
        (begun, machine.len())
    }

    #[test]
    fn an_episode_is_much_at_once() {
        let cases: [(&str, &[Step<'_>], &[usize], usize); 6] = [
            ("one of many", &[(0, "a", 0..1, 20)], &[], 0),
            ("all of one resource", &[(0, "a", 0..20, 20)], &[0], 20),
            ("two resources together", &[(0, "a", 0..8, 30), (9_000, "b", 8..16, 22)], &[1], 16),
            ("the rest joins it", &[(0, "a", 0..16, 30), (90_000, "b", 16..20, 14)], &[0], 20),
            ("too far apart", &[(0, "a", 0..8, 30), (61_000, "b", 8..16, 22)], &[], 0),
            ("one that is decided twice counts once", &[(0, "a", 0..8, 30), (10, "a", 0..8, 30)], &[], 0),
        ];
        for (case, steps, begun, lasts) in cases {
            assert_eq!(run(steps), (begun.to_vec(), lasts), "{case}");
        }
    }

    #[test]
    fn one_namespace_alone_is_no_episode_of_all() {
        // Instances that stop and that pass in Consul, by namespace, in the order in which they stop.
        for (case, stops, passing, begins) in [
            ("the only namespace", &[("shop", 12)][..], &[("shop", 20)][..], true),
            ("others have none that pass", &[("shop", 12)], &[("shop", 12), ("lab", 0)], true),
            ("one that has most of all", &[("shop", 40)], &[("shop", 40), ("lab", 10)], false),
            ("and one of another", &[("shop", 40), ("lab", 1)], &[("shop", 40), ("lab", 10)], false),
            ("half of the others'", &[("shop", 40), ("lab", 5)], &[("shop", 40), ("lab", 10)], false),
            ("most of the others'", &[("shop", 40), ("lab", 6)], &[("shop", 40), ("lab", 10)], true),
            ("the smaller one first", &[("lab", 6), ("shop", 40)], &[("shop", 40), ("lab", 10)], true),
            ("of three", &[("shop", 40), ("lab", 2), ("pay", 4)], &[("shop", 40), ("lab", 5), ("pay", 5)], true),
            ("one that is large", &[("shop", 4), ("lab", 80)], &[("shop", 4), ("lab", 90)], true),
        ] {
            let mut machine = MassUnready::default();
            let all = passing.iter().map(|(_, count)| count).sum();
            let besides = |namespace: &Str| {
                passing.iter().filter(|(name, _)| *name != &**namespace).map(|(_, count)| count).sum()
            };
            let mut begun = false;
            for (number, (namespace, count)) in stops.iter().enumerate() {
                let rows = (0..*count).map(|row_number| (row(number * 100 + row_number), "10.0.0.1".into()));
                let turn = machine.decided(&ResourceKey::new(namespace, "web"), rows, unready, all, besides, 0);
                begun |= matches!(turn, Some(Turn::Begins(_)));
            }
            assert_eq!(begun, begins, "{case}");
        }
    }

    #[test]
    fn what_stopped_earlier_counts_for_no_namespace() {
        let mut machine = MassUnready::default();
        let rows = |from: usize, count: usize| (from..from + count).map(|number| (row(number), Str::from("10.0.0.1")));
        let besides = |namespace: &Str| if &**namespace == "lab" { 40 } else { 10 };
        let lab = ResourceKey::new("lab", "web");
        assert_eq!(machine.decided(&lab, rows(0, 6), unready, 50, besides, 0), None);
        assert_eq!(machine.decided(&key("a"), rows(10, 40), unready, 50, besides, WITHIN + 1), None);
        assert!(machine.decided(&lab, rows(50, 6), unready, 50, besides, WITHIN + 2).is_some());
    }

    #[test]
    fn it_ends_when_half_of_them_pass_again_or_are_gone() {
        let mut machine = MassUnready::default();
        let stops = (0..20).map(|number| (row(number), format!("10.0.0.{number}").into()));
        let begins = machine.decided(&key("a"), stops, unready, 20, |_| 0, 0);
        assert_eq!(begins, Some(Turn::Begins([key("a")].into())));
        assert!(machine.concerns(&key("a")) && machine.has(&key("a"), &row(3)) && !machine.concerns(&key("b")));
        machine.confirm();
        assert!(machine.episode().is_some_and(|episode| episode.confirmed && episode.passed == 20));
        let still = |first: usize| {
            move |key: &RowKey, _: &str| {
                if (first..20).any(|number| row(number) == *key) { Now::Unready } else { Now::Ready }
            }
        };
        assert_eq!(machine.decided(&key("a"), std::iter::empty(), still(9), 9, |_| 0, 200_000), None);
        assert_eq!(machine.len(), 11);
        let ends = machine.decided(&key("a"), std::iter::empty(), still(10), 10, |_| 0, 200_001);
        assert_eq!(ends, Some(Turn::Ends([key("a")].into())));
        assert!(machine.len() == 0 && machine.episode().is_none());
    }

    #[test]
    fn what_is_gone_says_nothing_of_the_rest() {
        let stops = |numbers: std::ops::Range<usize>| {
            numbers.map(|number| (row(number), Str::from(format!("10.0.0.{number}"))))
        };
        // Eleven of twenty stop passing, and seven more join them. Then so many are gone, and so many of the rest pass again.
        for (gone, again, ends) in [
            (1, 0, false),
            (8, 0, false),
            (17, 0, false),
            (18, 0, true),
            (0, 8, false),
            (0, 9, true),
            (8, 4, false),
            (8, 5, true),
        ] {
            let now_of = move |key: &RowKey, _: &str| match (0..18).find(|number| row(*number) == *key) {
                Some(number) if number < gone => Now::Gone,
                Some(number) if number < gone + again => Now::Ready,
                _ => Now::Unready,
            };
            let mut machine = MassUnready::default();
            assert!(machine.decided(&key("a"), stops(0..11), unready, 20, |_| 0, 0).is_some());
            assert_eq!(machine.decided(&key("a"), stops(11..18), unready, 9, |_| 0, 1), None);
            let turn = machine.decided(&key("a"), std::iter::empty(), now_of, 2, |_| 0, 2);
            assert_eq!(turn.is_some(), ends, "{gone} are gone, and {again} pass again");
        }
    }
}

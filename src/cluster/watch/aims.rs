//! Which watches there are, and what each tells of.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::facts::PodKey;
use crate::model::ids::Str;
use crate::state::event::{Kind, Scope};
use crate::state::world::Wanted;

/// So many namespaces have a watch of their own of each kind that is watched by namespaces: slices, Services and pods. Where
/// more need a kind, one watch of all namespaces tells of the rest: each watch holds a connection, and a watch of all
/// brings every change of every object.
pub(in crate::cluster) const OWN_WATCHES: usize = 8;

/// A namespace forgets keys that nobody asks for any more once it keeps so many more than twice those that are asked for.
const SPARE: usize = 64;

/// The scopes that a watch tells of, each for itself.
pub(super) type Aims = BTreeMap<Scope, Aim>;

/// Says what is asked of a watch about one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Aim {
    /// Tells one time that it was wanted from an earlier one.
    pub(super) time: u64,
    /// The labels and annotations of pods to keep.
    pub(super) of_pods: BTreeSet<PodKey>,
}

/// Divides what is wanted among watches. A namespace stays with the watch that it has for as long as the kind is needed
/// there, so that nothing is handed over.
#[derive(Debug, Default)]
pub(super) struct Division {
    /// The kinds and scopes that have a watch of their own.
    own: BTreeSet<(Kind, Scope)>,
    /// Those that share one with others of the kind.
    shared: BTreeSet<(Kind, Scope)>,
}

impl Division {
    /// Gives the watches that should be, and what each tells of.
    pub(super) fn of(&mut self, wanted: &Wanted) -> BTreeMap<(Kind, Scope), Aims> {
        self.divide(wanted);
        let mut watches: BTreeMap<(Kind, Scope), Aims> = BTreeMap::new();
        for ((kind, scope), time) in &wanted.watches {
            let is_shared = self.shared.contains(&(*kind, scope.clone()));
            let watch = (*kind, if is_shared { Scope::All } else { scope.clone() });
            let of_pods = match scope {
                Scope::Namespace(namespace) if *kind == Kind::Pod => wanted.of_pods.get(namespace).cloned(),
                _ => None,
            };
            let aim = Aim { time: *time, of_pods: of_pods.unwrap_or_default() };
            watches.entry(watch).or_default().insert(scope.clone(), aim);
        }
        watches
    }

    fn divide(&mut self, wanted: &Wanted) {
        self.own.retain(|watch| wanted.watches.contains_key(watch));
        self.shared.retain(|watch| wanted.watches.contains_key(watch));
        // Whoever may watch single namespaces only has a Role in each, and no right to watch all of them.
        let may_share = wanted.watches.contains_key(&(Kind::Resource, Scope::All));
        for watch in wanted.watches.keys().filter(|(kind, scope)| is_by_namespace(*kind) && *scope != Scope::All) {
            if self.own.contains(watch) || self.shared.contains(watch) {
                continue;
            }
            let of_kind = self.own.iter().filter(|(kind, _)| *kind == watch.0).count();
            let side = if !may_share || of_kind < OWN_WATCHES { &mut self.own } else { &mut self.shared };
            side.insert(watch.clone());
        }
    }
}

/// Says whether a kind is watched in single namespaces although all may be watched.
pub(in crate::cluster) fn is_by_namespace(kind: Kind) -> bool {
    match kind {
        Kind::Slice | Kind::Service | Kind::Pod => true,
        Kind::Resource | Kind::Node | Kind::Namespace => false,
    }
}

/// Holds what a watch goes by: the scopes that it tells of, and what it keeps of pods.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<Scope, KeptScope>);

#[derive(Debug)]
struct KeptScope {
    time: u64,
    of_pods: BTreeSet<PodKey>,
}

impl Kept {
    /// Goes by these aims from now on. Gives the scopes that have to be listed, since objects were told without what is
    /// asked for now.
    pub(super) fn follow(&mut self, aims: &Aims) -> BTreeSet<Scope> {
        self.0.retain(|scope, _| aims.contains_key(scope));
        let mut to_list = BTreeSet::new();
        for (scope, aim) in aims {
            let known = self.0.get(scope).filter(|known| known.time == aim.time);
            let of_pods = match known {
                Some(known) if known.of_pods.is_superset(&aim.of_pods) => continue,
                Some(known) => grown(&known.of_pods, &aim.of_pods),
                None => aim.of_pods.clone(),
            };
            self.0.insert(scope.clone(), KeptScope { time: aim.time, of_pods });
            to_list.insert(scope.clone());
        }
        to_list
    }

    /// The scope of which an object of this namespace is told; none where nobody asks for it.
    pub(super) fn scope_of(&self, namespace: &str) -> Option<&Scope> {
        // At most one covers a namespace, and most watches have just one.
        match self.0.len() {
            1 => self.0.keys().next().filter(|scope| scope.covers(namespace)),
            _ => self.0.get_key_value(&Scope::Namespace(namespace.into())).map(|(scope, _)| scope),
        }
    }

    /// The scopes that the watch tells of.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        self.0.keys().cloned().collect()
    }

    /// The labels and annotations of pods that it keeps, by namespace.
    pub(super) fn of_pods(&self) -> BTreeMap<Str, BTreeSet<PodKey>> {
        let of_namespace = |(scope, kept): (&Scope, &KeptScope)| match scope {
            Scope::Namespace(namespace) => Some((namespace.clone(), kept.of_pods.clone())),
            Scope::All => None,
        };
        self.0.iter().filter_map(of_namespace).collect()
    }
}

/// Keys that are not asked for any more stay, so that an author who takes one away and puts it back has nothing listed. A
/// multitude of them goes.
fn grown(kept: &BTreeSet<PodKey>, asked: &BTreeSet<PodKey>) -> BTreeSet<PodKey> {
    let all: BTreeSet<PodKey> = kept.union(asked).cloned().collect();
    if all.len() > 2 * asked.len() + SPARE { asked.clone() } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: impl Into<Str>) -> Scope {
        Scope::Namespace(name.into())
    }

    /// Pods of these namespaces, and slices of the first two.
    fn wanted(everywhere: bool, namespaces: &[usize]) -> Wanted {
        let resources = if everywhere { Scope::All } else { namespace("n-0") };
        let of = |kind| move |n: &usize| ((kind, namespace(format!("n-{n}"))), 1);
        let slices = namespaces.iter().take(2).map(of(Kind::Slice));
        let pods = namespaces.iter().map(of(Kind::Pod)).chain(slices);
        Wanted { watches: [((Kind::Resource, resources), 0)].into_iter().chain(pods).collect(), ..Wanted::default() }
    }

    /// The namespaces that have a watch of their own, and those that share one.
    fn divided(division: &mut Division, wanted: &Wanted) -> (Vec<Scope>, Vec<Scope>) {
        let watches = division.of(wanted);
        let slices = watches.iter().filter(|((kind, _), _)| *kind == Kind::Slice);
        assert!(slices.into_iter().all(|((_, scope), aims)| *scope != Scope::All && aims.len() == 1), "few of a kind");
        let pods = watches.iter().filter(|((kind, _), _)| *kind == Kind::Pod);
        let (shared, own): (Vec<_>, Vec<_>) = pods.partition(|((_, scope), _)| *scope == Scope::All);
        let scopes = |watches: Vec<(&(Kind, Scope), &Aims)>| {
            watches.into_iter().flat_map(|(_, aims)| aims.keys().cloned()).collect()
        };
        (scopes(own), scopes(shared))
    }

    #[test]
    fn few_namespaces_have_a_watch_each_and_none_moves() {
        let all: Vec<usize> = (0..OWN_WATCHES + 2).collect();
        let mut division = Division::default();
        let (own, shared) = divided(&mut division, &wanted(true, &all[..OWN_WATCHES]));
        assert_eq!((own.len(), shared.len()), (OWN_WATCHES, 0));
        let (still, shared) = divided(&mut division, &wanted(true, &all));
        assert_eq!(still, own);
        assert_eq!(shared.len(), 2);
        // One of the first goes: its place is for the next one, and the others stay where they are.
        let (own, still) = divided(&mut division, &wanted(true, &all[1..]));
        assert_eq!((own.len(), &still), (OWN_WATCHES - 1, &shared));
        let (own, still) = divided(&mut division, &wanted(true, &all));
        assert_eq!((own.len(), &still), (OWN_WATCHES, &shared));
        let (own, shared) = divided(&mut Division::default(), &wanted(false, &all));
        assert_eq!((own.len(), shared.len()), (all.len(), 0), "there is no right to watch all pods");
    }

    /// A label is another key than an annotation of the same name.
    fn keys(names: &[&str]) -> BTreeSet<PodKey> {
        let key = |name: &&str| match name.strip_prefix('l') {
            Some(_) => PodKey::Label((*name).into()),
            None => PodKey::Annotation((*name).into()),
        };
        names.iter().map(key).collect()
    }

    fn aims(list: &[(&str, u64, &[&str])]) -> Aims {
        list.iter().map(|(name, time, names)| (namespace(*name), Aim { time: *time, of_pods: keys(names) })).collect()
    }

    #[test]
    fn a_scope_is_listed_when_something_is_asked_for_that_was_not_told() {
        type Asked<'a> = &'a [(&'a str, u64, &'a [&'a str])];
        let table: [(Asked<'_>, &[&str]); 9] = [
            (&[("a", 1, &["x"]), ("b", 2, &[])], &["a", "b"]),
            (&[("a", 1, &["x"]), ("b", 2, &[])], &[]),
            (&[("a", 1, &["x", "y"]), ("b", 2, &[])], &["a"]),
            (&[("a", 1, &["x", "y", "label"]), ("b", 2, &[])], &["a"]),
            // What is not asked for any more is kept on.
            (&[("a", 1, &["y"]), ("b", 2, &[])], &[]),
            (&[("a", 1, &["x"]), ("b", 2, &[])], &[]),
            (&[("a", 1, &["x"])], &[]),
            (&[("a", 1, &["x"]), ("b", 3, &[])], &["b"]),
            (&[("a", 4, &["x"]), ("b", 3, &[])], &["a"]),
        ];
        let mut kept = Kept::default();
        for (n, (asked, listed)) in table.into_iter().enumerate() {
            let expected: BTreeSet<Scope> = listed.iter().map(|name| namespace(*name)).collect();
            assert_eq!(kept.follow(&aims(asked)), expected, "step {n}");
        }
        assert_eq!(kept.scope_of("b"), Some(&namespace("b")));
        assert_eq!(kept.scope_of("c"), None);
    }

    #[test]
    fn one_scope_covers_what_it_covers() {
        let mut kept = Kept::default();
        kept.follow(&[(Scope::All, Aim::default())].into());
        assert_eq!(kept.scope_of("a"), Some(&Scope::All));
        kept.follow(&aims(&[("a", 1, &[])]));
        assert_eq!((kept.scope_of("a"), kept.scope_of("b")), (Some(&namespace("a")), None));
    }

    #[test]
    fn an_author_who_asks_for_ever_new_keys_fills_nothing() {
        let mut kept = Kept::default();
        for n in 0..1_000 {
            let key = format!("key-{n}");
            assert_eq!(kept.follow(&aims(&[("a", 1, &[&key])])).len(), 1);
            let held = kept.of_pods()["a"].clone();
            assert!(
                held.contains(&PodKey::Annotation(key.into())) && held.len() <= SPARE + 2,
                "{} are kept",
                held.len()
            );
        }
    }
}

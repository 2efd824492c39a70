//! Which pods a label selector matches.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::Str;

/// The labels of an object.
pub type Labels = BTreeMap<Str, Str>;

/// A label selector: all of its requirements must be met. One without any picks everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub Vec<Requirement>);

/// Says what a selector asks of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// It has one of these values.
    In(Str, BTreeSet<Str>),
    /// It is absent, or has none of these values.
    NotIn(Str, BTreeSet<Str>),
    /// It is there.
    Exists(Str),
    /// It is absent.
    DoesNotExist(Str),
}

impl Selector {
    /// Says whether it picks an object of which `label` gives the labels by their keys.
    #[must_use]
    pub fn matches<'a>(&self, label: impl Fn(&Str) -> Option<&'a Str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
        })
    }

    /// The keys of the labels that it asks for.
    pub fn keys(&self) -> impl Iterator<Item = &Str> {
        self.0.iter().map(|requirement| match requirement {
            Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key) => key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_picks_as_kubernetes_does() {
        let labels: Labels = [("app".into(), "web".into()), ("tier".into(), "".into())].into();
        let values = |list: &[&str]| list.iter().map(|value| Str::from(*value)).collect();
        let table = [
            (Requirement::In("app".into(), values(&["api", "web"])), true),
            (Requirement::In("app".into(), values(&["api"])), false),
            (Requirement::In("zone".into(), values(&["a"])), false),
            (Requirement::NotIn("app".into(), values(&["api"])), true),
            (Requirement::NotIn("app".into(), values(&["web"])), false),
            (Requirement::NotIn("zone".into(), values(&["a"])), true),
            (Requirement::Exists("tier".into()), true),
            (Requirement::Exists("zone".into()), false),
            (Requirement::DoesNotExist("zone".into()), true),
            (Requirement::DoesNotExist("tier".into()), false),
        ];
        for (requirement, expected) in table {
            let selector = Selector(vec![requirement.clone()]);
            assert_eq!(selector.matches(|key| labels.get(key)), expected, "{requirement:?}");
        }
        assert!(Selector(Vec::new()).matches(|key| labels.get(key)));
    }
}

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
    /// Says whether it picks an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
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
            assert_eq!(Selector(vec![requirement.clone()]).matches(&labels), expected, "{requirement:?}");
        }
        assert!(Selector(Vec::new()).matches(&labels));
    }
}

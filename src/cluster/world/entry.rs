//! A resource as the World holds it.

use std::sync::Arc;

use super::claims::compared;
use crate::cluster::event::SeenResource;
use crate::cluster::status::Transitions;
use crate::model::names::Str;
use crate::model::resource::{Resource, Spec};
use crate::model::status::{ConditionKind, Truth};

/// A resource, and what is to be remembered of it beyond its last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As last seen.
    pub resource: Resource,
    /// The last spec that could be acted on, of this very resource.
    pub last_good: Option<Arc<Spec>>,
    /// Since when its conditions have held.
    pub since: Transitions,
    /// The name that it was last acted under, as names are compared; after a start, what its status tells.
    pub(super) granted: Option<Str>,
    /// The spec that it was last acted by.
    pub(super) acted: Option<Arc<Spec>>,
}

impl Entry {
    pub(super) fn new(seen: SeenResource, previous: Option<&Self>) -> Self {
        let SeenResource { resource, since } = seen;
        let previous = previous.filter(|previous| previous.resource.uid == resource.uid);
        let last_good = match &resource.spec {
            Ok(spec) => Some(spec.clone()),
            Err(_) => previous.and_then(|previous| previous.last_good.clone()),
        };
        let acted = previous.and_then(|previous| previous.acted.clone());
        let mut entry = Self { resource, last_good, since, granted: None, acted };
        let told = told_as_accepted(&entry.resource);
        // One that is about an earlier spec tells nothing of this one.
        let is_current = entry.resource.status.observed_generation == entry.resource.generation;
        let told_of_this = told.is_some() && is_current && told == entry.asked();
        if !entry.resource.ours {
            // What changes hands is let go, and comes back as a newcomer.
            entry.acted = None;
        } else if told_of_this {
            // At the start, or another replica has acted on it meanwhile: by this very spec.
            entry.granted = told;
            entry.acted.clone_from(&entry.last_good);
        } else {
            entry.granted = previous.map_or(told, |previous| previous.granted.clone());
        }
        entry
    }

    /// The spec to go by: the last one that could be acted on or, while the name that it asks for is another's, the
    /// last one that was.
    pub(super) fn effective(&self, has_rival: bool) -> Option<&Arc<Spec>> {
        if !has_rival {
            return self.last_good.as_ref();
        }
        // Only under a name that is still its own.
        self.acted.as_ref().filter(|acted| self.granted.as_ref() == Some(&compared(&acted.service)))
    }

    /// The name that it was last acted under, as its author wrote it.
    pub(super) fn acted_name(&self) -> Option<Str> {
        let granted = self.granted.as_ref()?;
        let written = [&self.last_good, &self.acted].into_iter().flatten().map(|spec| &spec.service);
        let told = Str::from(&*self.resource.status.service_name);
        written.chain([&told]).find(|name| compared(name) == *granted).cloned().or_else(|| Some(granted.clone()))
    }

    /// The name that it asks for, as names are compared.
    pub(super) fn asked(&self) -> Option<Str> {
        let spec = self.last_good.as_ref().filter(|_| self.resource.ours)?;
        Some(compared(&spec.service))
    }
}

/// The name of a resource whose status says that it was accepted.
fn told_as_accepted(resource: &Resource) -> Option<Str> {
    let accepted = resource.status.condition(ConditionKind::Accepted)?;
    let name = &resource.status.service_name;
    (resource.ours && accepted.truth == Truth::True && !name.is_empty()).then(|| compared(name))
}

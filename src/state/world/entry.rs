//! A resource as the World holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::ids::{ResourceKey, Str};
use crate::model::policy::{Claim, LEAST_BYTES, Others, Place, Policy};
use crate::model::reasons::Refusal;
use crate::model::registration::NameInUse;
use crate::model::resource::{DeletionPolicy, Resource, Spec};
use crate::model::selector::Labels;
use crate::model::status::{ConditionKind, Truth};
use crate::state::event::SeenResource;
use crate::state::event::Transitions;

/// A resource, and what is to be remembered of it beyond its last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As last seen. Its spec is the one that the administrator's policy allows, or why it does not.
    pub resource: Resource,
    /// The spec as its author wrote it.
    pub(super) asked_spec: Result<Arc<Spec>, Refusal>,
    /// Its place among the resources of its namespace.
    pub(super) place: Place,
    /// True if its spec is not held, as its namespace has too many bytes of them: only a list tells it again.
    pub(super) is_dropped: bool,
    /// The last spec that could be acted on, of this very resource.
    pub last_good: Option<Arc<Spec>>,
    /// What it was given of the budgets of its namespace; none where nothing was since this process began.
    given: Option<Given>,
    /// The last wish of its author about its deletion that the policy allowed; none where none was seen.
    last_deletion: Option<DeletionPolicy>,
    /// True if the policy cannot say yet whether it allows what its author asks for at its deletion.
    deletion_is_open: bool,
    /// Says since when its conditions have held.
    pub since: Transitions,
    /// The name that it was last acted under.
    pub(super) granted: Option<Granted>,
}

/// What a resource takes of the budgets of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    bytes: usize,
    checks: usize,
}

/// What a budget of a namespace counts a resource by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claims {
    pub(super) resources: Claim,
    pub(super) bytes: Claim,
    pub(super) checks: Claim,
}

/// A name that a resource was acted under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    /// As names are compared.
    pub(super) name: Str,
    pub(super) by: GrantedBy,
}

/// Holds what is known of the names in Consul.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    /// The names that others have, as names are compared; none while nobody can tell.
    pub(super) others: Option<&'a BTreeSet<Str>>,
    /// The names of the rows that resources have; none before all were read.
    pub(super) rows: Option<&'a BTreeMap<ResourceKey, BTreeSet<NameInUse>>>,
}

/// Says who granted a name. What this process did itself outweighs a status, which others may have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GrantedBy {
    /// This process acted on the resource under the name, and since then on none of another namespace.
    Act,
    /// This process acted on the resource under the name, and later on one of another namespace.
    EarlierAct,
    Status,
}

impl Entry {
    /// `newcomer` is the place of one that was not there before.
    pub(super) fn new(
        seen: SeenResource,
        previous: Option<&Self>,
        newcomer: Place,
        policy: &Policy,
        labels: Option<&Labels>,
        names: Names<'_>,
    ) -> Self {
        let SeenResource { resource, since } = seen;
        let previous = previous.filter(|previous| previous.resource.uid == resource.uid);
        // One that was another operator's has nothing of this one's.
        let known = previous.filter(|previous| previous.resource.ours || !resource.ours);
        let mut entry = Self {
            asked_spec: resource.spec.clone(),
            place: newcomer,
            is_dropped: false,
            last_good: known.and_then(|previous| previous.last_good.clone()),
            given: known.and_then(|previous| previous.given),
            last_deletion: previous.and_then(|previous| previous.last_deletion),
            deletion_is_open: false,
            resource,
            since,
            granted: None,
        };
        entry.place = match known {
            None => previous.map_or(newcomer, |_| Place::Unknown),
            Some(known) if known.place == Place::Fits && entry.asks_for_more(known) => Place::Open,
            Some(known) => known.place,
        };
        entry.judge(policy, labels, names);
        if entry.resource.ours {
            entry.granted = entry.granted_after(previous);
        }
        entry
    }

    /// Asks a policy about what its author wrote. What the policy does not allow leaves the last spec in force that it did;
    /// without one, what is registered is kept, and nothing more.
    pub(super) fn judge(&mut self, policy: &Policy, labels: Option<&Labels>, names: Names<'_>) {
        // It counts even where the rest cannot be read. What nobody can read is taken for the milder wish.
        let asked_deletion = self.resource.deletion.unwrap_or(DeletionPolicy::Retain);
        let is_allowed = policy.allows_deletion(asked_deletion, &self.resource.key.namespace, labels);
        self.deletion_is_open = is_allowed.is_err();
        if is_allowed == Ok(true) {
            self.last_deletion = Some(asked_deletion);
        }
        let Ok(asked) = &self.asked_spec else {
            // What the author wrote cannot be read, whatever the policy says.
            return;
        };
        let judged = policy.judge(&self.resource, labels, asked, self.place, self.others(asked, names));
        if let (Place::TooLarge, Err(refusal)) = (self.place, &judged) {
            // What is registered stays as it is. The memory goes.
            self.asked_spec = Err(refusal.clone());
            self.is_dropped = true;
            self.resource.spec = judged;
            return;
        }
        match &judged {
            // It is acted by when its place is known.
            Ok(_) if self.place == Place::Open => {}
            Ok(allowed) => {
                self.last_good = Some(Arc::clone(allowed));
                self.given = Some(self.asks());
            }
            Err(_) if !self.was_allowed() => self.last_good = Some(Arc::new(asked.only_kept())),
            Err(_) => {}
        }
        self.resource.spec = judged;
    }

    /// Says what happens to its registrations when it is deleted: what its author asked for last that was allowed, since this
    /// process began or, by the status, before. An author who may not have instances stay does not have them stay by an edit
    /// that is refused. None while nobody can tell.
    #[must_use]
    pub fn deletion(&self) -> Option<DeletionPolicy> {
        let told = self.was_told_to_stay().then_some(DeletionPolicy::Retain);
        self.last_deletion.or(told).or((!self.deletion_is_open).then_some(DeletionPolicy::Deregister))
    }

    /// Says whether its status tells that its registrations were allowed to stay. One that an earlier version wrote tells it by
    /// the spec that it accepts.
    fn was_told_to_stay(&self) -> bool {
        let asks = self.resource.deletion == Some(DeletionPolicy::Retain);
        self.resource.status.retains || asks && self.was_told()
    }

    /// Takes over what `other`, which was seen for longer, knows of the same resource.
    pub(super) fn remember(&mut self, other: &Self) {
        if !self.was_allowed() && other.last_good.is_some() {
            self.last_good.clone_from(&other.last_good);
        }
        self.given = other.given;
        self.last_deletion = self.last_deletion.or(other.last_deletion);
        self.granted.clone_from(&other.granted);
    }

    /// Says who else has the name that it asks for. Of a name that it uses already that does not matter: otherwise whoever
    /// may register in Consul could stop it.
    fn others(&self, asked: &Spec, names: Names<'_>) -> Others {
        let name = compared(&asked.service);
        let in_force = self.last_good.iter().any(|spec| self.was_allowed() && compared(&spec.service) == name);
        let was_told = self.was_told() && compared(&self.resource.status.service_name) == name;
        let mut rows = names.rows.and_then(|rows| rows.get(&self.resource.key)).into_iter().flatten();
        if in_force || was_told || rows.any(|row| compared(&row.service) == name) {
            return Others::Nobody;
        }
        match names.others.filter(|_| names.rows.is_some()) {
            None => Others::Unknown,
            Some(others) if others.contains(&name) => Others::Some,
            Some(_) => Others::Nobody,
        }
    }

    /// Says whether its status tells that what it asks for was allowed.
    fn was_told(&self) -> bool {
        let status = &self.resource.status;
        status.observed_generation == self.resource.generation
            && status.condition(ConditionKind::Accepted).is_some_and(|accepted| accepted.truth == Truth::True)
    }

    /// What it asks of the budgets of its namespace. Of checks that nobody can read it asks for none.
    fn asks(&self) -> Given {
        Given {
            bytes: self.resource.bytes.max(LEAST_BYTES),
            checks: self.asked_spec.as_ref().map_or(0, |spec| spec.checks.len()),
        }
    }

    fn asks_for_more(&self, previous: &Self) -> bool {
        let (now, before) = (self.asks(), previous.asks());
        now.bytes > before.bytes || now.checks > before.checks
    }

    /// What the budgets of its namespace count it by. What it was given stays its own while an edit is refused; after a restart
    /// its status tells, and what Consul has of it.
    pub(super) fn claims(&self, in_consul: Option<usize>) -> Claims {
        let asks = self.asks();
        let given = self.given.or(self.was_told().then_some(asks));
        let least = Given { bytes: LEAST_BYTES, checks: 0 };
        let holds = given.or(in_consul.map(|_| least)).unwrap_or(Given { bytes: 0, checks: 0 });
        let checks = holds.checks.max(in_consul.unwrap_or_default());
        Claims {
            resources: Claim { asks: 1, holds: usize::from(holds.bytes > 0) },
            bytes: Claim { asks: asks.bytes, holds: holds.bytes },
            checks: Claim { asks: asks.checks, holds: checks },
        }
    }

    /// Forgets a spec that was never acted by.
    pub(super) fn forget_spec(&mut self) {
        (self.last_good, self.given) = (None, None);
    }

    /// Forgets what was allowed before anything was acted by. What its status tells of was acted by before.
    pub(super) fn forget_decision(&mut self) {
        if self.resource.spec.is_ok() && !self.was_told() {
            self.forget_spec();
        }
    }

    /// Says whether a spec is in force that was allowed.
    pub(super) fn was_allowed(&self) -> bool {
        self.last_good.as_ref().is_some_and(|spec| !spec.limits.only_keeps)
    }

    /// Carries over the granted name. A resource that changes hands comes back as a newcomer: of another class,
    /// nothing is granted.
    fn granted_after(&self, previous: Option<&Self>) -> Option<Granted> {
        let by_status = self.name_in_status();
        let Some(previous) = previous.filter(|previous| previous.resource.ours) else {
            return by_status.map(|name| Granted { name, by: GrantedBy::Status });
        };
        // Another replica has acted on it by this very spec. What else a status says may be late.
        let news = by_status
            .filter(|name| self.asked().as_ref() == Some(name) && previous.granted_name() != Some(name))
            .map(|name| Granted { name, by: GrantedBy::Status });
        news.or_else(|| previous.granted.clone())
    }

    /// The name that its status says it was acted under. A status about an earlier spec says nothing: what it asked
    /// for meanwhile, and whose class it was of, nobody knows. One that says that the name is another's does not claim
    /// it; it goes on under the name it had before, if it names that.
    fn name_in_status(&self) -> Option<Str> {
        let Resource { status, generation, .. } = &self.resource;
        if status.observed_generation != *generation || status.service_name.is_empty() {
            return None;
        }
        let name = compared(&status.service_name);
        let is_accepted =
            status.condition(ConditionKind::Accepted).is_some_and(|accepted| accepted.truth == Truth::True);
        (is_accepted || self.asked().is_some_and(|asked| asked != name)).then_some(name)
    }

    pub(super) fn granted_name(&self) -> Option<&Str> {
        self.granted.as_ref().map(|granted| &granted.name)
    }

    /// A name that it was acted under, as its author wrote it.
    pub(super) fn as_written(&self, name: &Str) -> Str {
        let told = Str::from(&*self.resource.status.service_name);
        let written = self.last_good.iter().map(|spec| &spec.service);
        written.chain([&told]).find(|written| compared(written) == *name).unwrap_or(name).clone()
    }

    /// The name that it asks for, as names are compared.
    pub(super) fn asked(&self) -> Option<Str> {
        let spec = self.last_good.as_ref().filter(|_| self.resource.ours)?;
        Some(compared(&spec.service))
    }
}

/// Gives a name as names are compared: Consul takes no notice of case. It takes each letter by itself, as Go does: a dotted
/// capital I (U+0130) is an i, and a sigma at the end of a word is one as any other.
pub(super) fn compared(name: &str) -> Str {
    let lower = |letter: char| letter.to_lowercase().next().unwrap_or(letter);
    name.chars().map(lower).collect::<String>().into()
}

//! What the administrator lets the authors of resources ask for.
//!
//! A policy is a list of rules; the first one that is for a resource's namespace decides. Where no rule is, nothing is
//! allowed. Without a policy everything is but the names of Consul's own companions.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::check::milliseconds;
use super::ids::{ResourceKey, Str};
use super::pattern::Pattern;
use super::reasons::Refusal;
use super::resource::{DeletionPolicy, Limits, Resource, Source, Spec};
use super::selector::{Labels, Selector};
use super::status::NOT_LISTED;
use super::template::Template;

/// The reason of `Accepted=False` where the administrator does not allow what a resource asks for.
pub const NOT_ALLOWED: &str = "NotAllowed";

/// The reason of `Accepted=False` where a resource takes more memory of Lictor than it may.
pub const TOO_LARGE: &str = "TooLarge";

/// Names that companions of Consul register themselves under (consul-esm, Nomad's agents, Vault's servers) and that
/// readers trust for it, and the one that `lictor doctor` tries. A rule may allow one by writing it out.
const RESERVED: [&str; 4] = ["consul", "consul-esm", "vault", "lictor-doctor"];

/// The beginning of the names that Nomad's agents register themselves under: `nomad`, `nomad-client`.
const NOMAD: &str = "nomad";

/// The rules of the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The rules, in order; none without a policy.
    pub rules: Option<Vec<Rule>>,
    /// The networks in which addresses may be that an author chooses, where no rule says it.
    pub networks: Vec<IpNet>,
    /// The class of the resources that this operator acts on; empty for the default class.
    pub class: Str,
    /// The most bytes of specs, in JSON, that the resources of a namespace may have together.
    pub namespace_bytes: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { rules: None, networks: Vec::new(), class: "".into(), namespace_bytes: NAMESPACE_BYTES }
    }
}

/// The most bytes of specs of a namespace where the administrator says nothing: some thousand resources as they usually are,
/// or ten of the largest that the schema takes.
pub const NAMESPACE_BYTES: usize = 4 * 1024 * 1024;

/// Says whether a resource has a place among those of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The resources of the namespace are not all known yet, so nobody can tell.
    Unknown,
    /// It had a place. Whether it has one for all that it asks for is still to be found out.
    Open,
    /// There is room for the resource.
    Fits,
    /// Others are as many as there may be.
    TooMany,
    /// Older ones leave it too few bytes of the memory of Lictor.
    TooLarge,
    /// Others leave it too few of the checks that the rule allows the namespace.
    TooManyChecks,
    /// Others leave it too few of the bytes that the rule allows the namespace.
    TooManyBytes,
}

/// The texts of a namespace's instances may hold so many times the bytes of its specs.
const OWN_BYTES: usize = 8;

/// A resource counts as at least so many bytes, however small its spec is: so much is held of it.
pub const LEAST_BYTES: usize = 1024;

/// Says whether others than this Lictor have instances in Consul under the name that a resource begins to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nobody else has, or the resource uses the name already.
    Nobody,
    /// Others have the name.
    Some,
    /// Consul has not told yet, or does not tell all.
    Unknown,
}

/// A rule. A field that is `None` allows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The name that messages call it by.
    pub name: Str,
    /// The namespaces that it is for, by their names.
    pub namespaces: Vec<Pattern>,
    /// The labels that these namespaces have; none for any.
    pub labels: Option<Selector>,
    /// The names in Consul.
    pub names: Option<Vec<Pattern>>,
    /// The tags that are allowed.
    pub tags: Option<Vec<Pattern>>,
    /// The keys of meta pairs.
    pub meta_keys: Option<Vec<Pattern>>,
    /// The kinds of checks, by Consul's words.
    pub checks: Option<Vec<Str>>,
    /// The least time between two runs of a check, in milliseconds.
    pub least_interval: Option<u64>,
    /// The networks in which addresses may be that an author chooses.
    pub networks: Option<Vec<IpNet>>,
    /// Says whether `deletionPolicy: Retain` may be asked for.
    pub retain: Option<bool>,
    /// The classes of operators; empty for the default class.
    pub classes: Option<Vec<Str>>,
    /// Says whether a name may also be that of another namespace's resource.
    pub shared_names: Option<bool>,
    /// Says whether a resource may begin to use a name that others than this Lictor have in Consul.
    pub foreign_names: Option<bool>,
    /// The budget of the namespace.
    pub budget: Budget,
}

/// The most that a namespace or a resource may have; none for no limit of the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// The resources of the namespace.
    pub resources: Option<usize>,
    /// The instances of one resource.
    pub instances: Option<usize>,
    /// The checks of one resource.
    pub checks: Option<usize>,
    /// The bytes of one resource's spec.
    pub bytes: Option<usize>,
    /// The instances of all resources of the namespace together.
    pub namespace_instances: Option<usize>,
    /// The checks of all resources of the namespace together.
    pub namespace_checks: Option<usize>,
    /// The bytes of the specs of all resources of the namespace together.
    pub namespace_bytes: Option<usize>,
}

impl Budget {
    /// Says whether it limits what the resources of a namespace have together.
    fn is_of_namespace(&self) -> bool {
        self.resources.is_some() || self.namespace_checks.is_some() || self.namespace_bytes.is_some()
    }
}

/// What one resource takes of a budget of its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// What it asks for.
    pub asks: usize,
    /// What it has already, whatever becomes of what it asks for.
    pub holds: usize,
}

/// Says which of these resources, the oldest first, a budget has room for. Beside them, `left` is held by what is no resource
/// any more.
///
/// An older one goes before a newer one. But what is held stays, so whoever asks for more than before, or comes anew, has what
/// is left beside all that others hold: together they never get more than the budget. Only a budget that is made smaller leaves
/// more than that.
#[must_use]
pub fn granted(claims: &[Claim], left: usize, most: Option<usize>) -> Vec<bool> {
    let Some(most) = most else { return vec![true; claims.len()] };
    let (mut before, mut held_after) =
        (0_usize, claims.iter().fold(left, |sum, claim| sum.saturating_add(claim.holds)));
    let one = |claim: &Claim| {
        held_after = held_after.saturating_sub(claim.holds);
        let others = if claim.asks > claim.holds { before.saturating_add(held_after) } else { before };
        let fits = claim.asks == 0 || others.saturating_add(claim.asks) <= most;
        before = before.saturating_add(if fits { claim.asks.max(claim.holds) } else { claim.holds });
        fits
    };
    claims.iter().map(one).collect()
}

/// Says that a rule cannot be chosen, because it depends on labels of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule of the administrator's policy depends on them, and what is registered stays")]
pub struct LabelsNotKnown;

impl Policy {
    /// The most bytes that the texts of all instances of a namespace may hold of values of their own.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        self.namespace_bytes.saturating_mul(OWN_BYTES)
    }

    /// Says whether a rule asks for labels of namespaces.
    #[must_use]
    pub fn asks_for_labels(&self) -> bool {
        self.rules.iter().flatten().any(|rule| rule.labels.is_some())
    }

    /// Says whether a rule asks for the names that others have in Consul.
    #[must_use]
    pub fn asks_for_others(&self) -> bool {
        self.rules.iter().flatten().any(|rule| rule.foreign_names == Some(false))
    }

    /// Says whether a rule limits what the resources of a namespace have together.
    #[must_use]
    pub fn has_budgets(&self) -> bool {
        self.rules.iter().flatten().any(|rule| rule.budget.is_of_namespace())
    }

    /// Says whether it depends on what Consul has of each resource, since a rule limits what those of a namespace have together.
    #[must_use]
    pub fn counts_rows(&self) -> bool {
        let limits_instances = |rule: &Rule| rule.budget.namespace_instances.is_some();
        self.has_budgets() || self.rules.iter().flatten().any(limits_instances)
    }

    /// The rule that decides about resources of a namespace with these labels; none where no rule is for it.
    ///
    /// # Errors
    ///
    /// Fails if that depends on labels that are not known.
    pub fn rule(&self, namespace: &str, labels: Option<&Labels>) -> Result<Option<&Rule>, LabelsNotKnown> {
        let by_name = |rule: &&Rule| rule.namespaces.iter().any(|pattern| pattern.matches(namespace, namespace));
        for rule in self.rules.iter().flatten().filter(by_name) {
            match (&rule.labels, labels) {
                (None, _) => return Ok(Some(rule)),
                (Some(selector), Some(labels)) if selector.matches(|key| labels.get(key)) => return Ok(Some(rule)),
                (Some(_), Some(_)) => {}
                (Some(_), None) => return Err(LabelsNotKnown),
            }
        }
        Ok(None)
    }

    /// Gives the budget of a namespace with these labels; one without limits where no rule is, and while nobody can tell.
    #[must_use]
    pub fn budget(&self, namespace: &str, labels: Option<&Labels>) -> Budget {
        self.rule(namespace, labels).ok().flatten().map(|rule| rule.budget).unwrap_or_default()
    }

    /// Says whether what an author asks for at the deletion of a resource is allowed in a namespace with these labels.
    ///
    /// # Errors
    ///
    /// If that depends on labels of the namespace that are not known yet.
    pub fn allows_deletion(
        &self,
        asked: DeletionPolicy,
        namespace: &str,
        labels: Option<&Labels>,
    ) -> Result<bool, LabelsNotKnown> {
        if asked == DeletionPolicy::Deregister {
            return Ok(true);
        }
        let rule = self.rule(namespace, labels)?;
        Ok(rule.map_or(self.rules.is_none(), |rule| rule.retain != Some(false)))
    }

    /// Gives the spec that a resource may have: what it asks for, within the limits of its rule. `labels` are those of its
    /// namespace, as far as they are known, `place` is its place among the resources of its namespace, and `others` says who else
    /// has its name in Consul.
    ///
    /// # Errors
    ///
    /// Fails with the rule, and what it does not allow.
    pub fn judge(
        &self,
        resource: &Resource,
        labels: Option<&Labels>,
        asked: &Arc<Spec>,
        place: Place,
        others: Others,
    ) -> Result<Arc<Spec>, Refusal> {
        let namespace = &*resource.key.namespace;
        if place == Place::TooLarge {
            let most = self.namespace_bytes;
            let message = format!(
                "the specs of the ConsulServices of namespace {namespace} have more than {most} bytes together, each counted \
                 as at least {LEAST_BYTES}, and this is one of the newest: delete or shorten some, or ask the administrator of \
                 Lictor for more (--max-namespace-bytes)"
            );
            return Err(Refusal { reason: TOO_LARGE, message });
        }
        let rule = match (&self.rules, self.rule(namespace, labels)) {
            (None, _) => &Rule::default(),
            (Some(_), Ok(Some(rule))) => rule,
            (Some(_), Err(LabelsNotKnown)) => {
                let message = format!("the labels of namespace {namespace} are not known yet: {LabelsNotKnown}");
                return Err(Refusal { reason: NOT_LISTED, message });
            }
            (Some(_), Ok(None)) => {
                let message = format!(
                    "no rule of the administrator's policy is for namespace {namespace}: ask the administrator of Lictor \
                     for one"
                );
                return Err(Refusal { reason: NOT_ALLOWED, message });
            }
        };
        let judgement = Judgement { rule, policy: self, key: &resource.key };
        judgement.name(&asked.service)?;
        judgement.others(&asked.service, others)?;
        judgement.texts(asked)?;
        judgement.checks(asked)?;
        judgement.addresses(asked)?;
        judgement.deletion(resource.deletion)?;
        judgement.class()?;
        judgement.budget(asked, resource.bytes, place)?;
        let limits = Limits {
            instances: rule.budget.instances.map_or(asked.limits.instances, |most| most.min(asked.limits.instances)),
            of_namespace: rule.budget.namespace_instances,
            shares_name: rule.shared_names.unwrap_or(asked.limits.shares_name),
            ..asked.limits.clone()
        };
        if limits == asked.limits { Ok(Arc::clone(asked)) } else { Ok(Arc::new(Spec { limits, ..(**asked).clone() })) }
    }
}

/// A rule, and the resource that it is asked about.
struct Judgement<'a> {
    rule: &'a Rule,
    policy: &'a Policy,
    key: &'a ResourceKey,
}

impl Judgement<'_> {
    /// Refuses something. Without a policy there is no rule to name.
    fn refuse(&self, what: &str, allowed: &str) -> Refusal {
        let message = format!(
            "{what}: rule {:?} of the administrator's policy allows {allowed}; what is registered stays",
            &*self.rule.name
        );
        Refusal { reason: NOT_ALLOWED, message }
    }

    fn name(&self, name: &str) -> Result<(), Refusal> {
        let names = self.rule.names.as_deref();
        // Consul compares names without case.
        let lower = name.to_ascii_lowercase();
        let is_reserved = RESERVED.contains(&&*lower) || lower.starts_with(NOMAD);
        let is_written_out = names.into_iter().flatten().any(|pattern| pattern.is_literally(&lower));
        if is_reserved && !is_written_out {
            let message = format!(
                "the name {name:?} is one that Consul's own companions register under: set spec.name to another, or ask \
                 the administrator of Lictor for a rule that names it"
            );
            return Err(Refusal { reason: NOT_ALLOWED, message });
        }
        match names {
            Some(names) if !names.iter().any(|pattern| pattern.matches(&lower, &self.key.namespace)) => {
                Err(self.refuse(&format!("the name {name:?} in Consul"), &listed("the names", names)))
            }
            _ => Ok(()),
        }
    }

    fn others(&self, name: &str, others: Others) -> Result<(), Refusal> {
        match others {
            _ if self.rule.foreign_names != Some(false) => Ok(()),
            Others::Nobody => Ok(()),
            Others::Some => Err(self.refuse(
                &format!("the name {name:?} has instances in Consul that others have registered"),
                "names that nobody else has",
            )),
            Others::Unknown => Err(Refusal {
                reason: NOT_LISTED,
                message: format!(
                    "Lictor cannot tell whether others have the name {name:?} in Consul, and rule {:?} of the \
                     administrator's policy depends on it; what is registered stays. Lictor's log says why",
                    &*self.rule.name
                ),
            }),
        }
    }

    fn texts(&self, spec: &Spec) -> Result<(), Refusal> {
        let own = match &spec.source {
            Source::Static { addresses } => &addresses[..],
            Source::Service { .. } | Source::Pods { .. } => &[],
        };
        if let Some(patterns) = &self.rule.tags {
            let fits = |tag: &&Template| patterns.iter().any(|p| p.matches_template(tag, &self.key.namespace));
            let mut tags = spec.tags.iter().chain(own.iter().flat_map(|address| &address.own.tags));
            if let Some(tag) = tags.find(|tag| !fits(tag)) {
                let values = match tag {
                    Template::Plain(_) => "",
                    Template::Parts(_) => ", where a ${…} as a whole falls to a *",
                };
                return Err(
                    self.refuse(&format!("the tag {:?}", tag.to_string()), &(listed("the tags", patterns) + values))
                );
            }
        }
        if let Some(patterns) = &self.rule.meta_keys {
            let fits = |key: &&Str| patterns.iter().any(|pattern| pattern.matches(key, &self.key.namespace));
            let mut keys = spec.meta.keys().chain(own.iter().flat_map(|address| address.own.meta.keys()));
            if let Some(key) = keys.find(|key| !fits(key)) {
                return Err(self.refuse(&format!("the meta key {:?}", &**key), &listed("the keys", patterns)));
            }
        }
        Ok(())
    }

    fn checks(&self, spec: &Spec) -> Result<(), Refusal> {
        for check in &spec.checks {
            let (name, kind) = (&*check.check.name, check.check.probe.kind());
            if let Some(kinds) =
                self.rule.checks.as_ref().filter(|kinds| !kinds.iter().any(|allowed| **allowed == *kind))
            {
                let allowed =
                    if kinds.is_empty() { "no checks".to_owned() } else { format!("the kinds {}", kinds.join(", ")) };
                return Err(self.refuse(&format!("the check {name:?} is of the kind {kind}"), &allowed));
            }
            let interval = milliseconds(&check.check.interval).unwrap_or_default();
            if let Some(least) = self.rule.least_interval.filter(|least| interval < *least) {
                let what = format!("the check {name:?} runs every {}", &*check.check.interval);
                return Err(self.refuse(&what, &format!("one run in {least} ms")));
            }
        }
        Ok(())
    }

    fn addresses(&self, spec: &Spec) -> Result<(), Refusal> {
        let own = match &spec.source {
            Source::Static { addresses } => &addresses[..],
            Source::Service { .. } | Source::Pods { .. } => &[],
        };
        let own = own.iter().map(|address| ("spec.source.static".to_owned(), address.address));
        let tagged = spec.tagged_addresses.iter();
        let tagged =
            tagged.filter_map(|(tag, at)| Some((format!("spec.taggedAddresses.{tag}"), at.address.parse().ok()?)));
        let networks = self.rule.networks.as_ref().unwrap_or(&self.policy.networks);
        let is_outside = |(_, address): &(String, IpAddr)| !networks.iter().any(|network| network.contains(address));
        let Some((field, address)) = own.chain(tagged).find(is_outside) else { return Ok(()) };
        if self.rule.networks.is_none() {
            let message = format!(
                "{field}: {address} is not in a range that is allowed: ask the administrator of Lictor to add one with \
                 --allow-static"
            );
            return Err(Refusal { reason: NOT_ALLOWED, message });
        }
        let all: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let allowed =
            if all.is_empty() { "no such addresses".to_owned() } else { format!("the networks {}", all.join(", ")) };
        Err(self.refuse(&format!("{field}: {address}"), &allowed))
    }

    fn deletion(&self, deletion: Option<DeletionPolicy>) -> Result<(), Refusal> {
        match deletion {
            Some(DeletionPolicy::Retain) if self.rule.retain == Some(false) => {
                Err(self.refuse("deletionPolicy: Retain", "Deregister alone"))
            }
            _ => Ok(()),
        }
    }

    fn class(&self) -> Result<(), Refusal> {
        let class = &*self.policy.class;
        match &self.rule.classes {
            Some(classes) if !classes.iter().any(|allowed| **allowed == *class) => {
                let all: Vec<String> = classes.iter().map(|class| format!("{:?}", &**class)).collect();
                Err(self.refuse(&format!("the class {class:?}"), &format!("the classes {}", all.join(", "))))
            }
            _ => Ok(()),
        }
    }

    fn budget(&self, spec: &Spec, bytes: usize, place: Place) -> Result<(), Refusal> {
        let budget = &self.rule.budget;
        let together = [
            (Place::TooMany, budget.resources, "another ConsulService", "ConsulServices (budget.resources)"),
            (Place::TooManyChecks, budget.namespace_checks, "its checks", "checks (budget.namespaceChecks)"),
            (Place::TooManyBytes, budget.namespace_bytes, "its spec", "bytes of specs (budget.namespaceBytes)"),
        ];
        for (of, most, what, which) in together {
            if let Some(most) = most.filter(|_| place == of || matches!(place, Place::Unknown | Place::Open)) {
                let namespace = &self.key.namespace;
                let what = format!(
                    "namespace {namespace} has no room for {what}: older ConsulServices, and those that are registered, \
                     come first. Delete some, or have them ask for less, or ask the administrator of Lictor for more"
                );
                return Err(self.refuse(&what, &format!("{most} {which} in the namespace")));
            }
        }
        if let Some(most) = budget.checks.filter(|most| spec.checks.len() > *most) {
            return Err(self.refuse(&format!("the resource has {} checks", spec.checks.len()), &format!("{most}")));
        }
        match budget.bytes.filter(|most| bytes > *most) {
            Some(most) => Err(self.refuse(&format!("the spec has {bytes} bytes"), &format!("{most}"))),
            None => Ok(()),
        }
    }
}

/// Says what patterns allow.
fn listed(what: &str, patterns: &[Pattern]) -> String {
    if patterns.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
    format!("{what} {}", all.join(", "))
}

#[cfg(test)]
mod tests;

//! What to tell the user about a resource: counts, conditions, and at most a few problems, in their words.
//!
//! Pure and without time: when a condition last changed is added where the status is written.

use super::ids::Str;
use super::port::PortInUse;
use super::reasons::{Counts, OutageKind, Problem, Refusal, Remark, Unresolved};

/// The most problems that a status lists.
pub const MAX_PROBLEMS: usize = 10;

/// The longest message of a condition or problem, in characters: Consul's own words may be long.
const MAX_MESSAGE: usize = 1024;

/// The status of a `ConsulService`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The generation of the spec that this is about.
    pub observed_generation: i64,
    /// The service's name in Consul.
    pub service_name: String,
    /// The port of the source that is registered, where the spec names none.
    pub port_in_use: Option<PortInUse>,
    /// True if its instances stay in Consul when the resource is deleted.
    pub retains: bool,
    /// Counts how many instances are wanted, there, and in which state.
    pub instances: Counts,
    /// The problems of single instances, at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// `Ready`, `Accepted`, `Resolved`, `Registered`, in this order.
    pub conditions: Vec<Condition>,
}

/// A condition, as `metav1.Condition` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The condition's type.
    pub kind: ConditionKind,
    /// `True`, `False` or `Unknown`.
    pub truth: Truth,
    /// In CamelCase, for programs.
    pub reason: String,
    /// The message for people.
    pub message: String,
    /// The generation that it is about.
    pub observed_generation: i64,
}

/// The conditions of a `ConsulService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionKind {
    /// All of the others.
    Ready,
    /// The spec makes sense and is allowed.
    Accepted,
    /// Its source was found; no endpoints is found.
    Resolved,
    /// Consul's catalog holds what is desired, and nothing else of this resource.
    Registered,
}

impl ConditionKind {
    /// As it stands in `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Accepted => "Accepted",
            Self::Resolved => "Resolved",
            Self::Registered => "Registered",
        }
    }

    /// Reads a `type`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ready, Self::Accepted, Self::Resolved, Self::Registered].into_iter().find(|k| k.as_str() == text)
    }
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// The condition holds.
    True,
    /// It does not hold.
    False,
    /// Not known yet.
    Unknown,
}

impl Truth {
    /// As it stands in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }

    /// Reads `status`; what is neither true nor false is unknown.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }
}

impl Status {
    /// The condition of a kind, where the status has it.
    #[must_use]
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }
}

/// The reason of `Accepted=True` where Consul's DNS does not answer the name.
pub const NOT_IN_DNS: &str = "NotInDNS";

/// The most bytes of a label of a name in DNS (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// The reason of `Registered=False` while writes are under way.
pub const PENDING: &str = "Pending";

/// The reason of `Registered=False` while instances stay although their endpoints are missing.
pub const ENDPOINTS_MISSING: &str = "EndpointsMissing";

/// The reason of `Resolved=Unknown` until everything that the source is made of was listed.
pub const NOT_LISTED: &str = "NotListed";

/// The reason of `Registered` where instances stopped being ready at once with most others of the cluster.
const MASS_UNREADY: &str = "MassUnready";

/// The text after the kind of an outage. Consul's own error is not in it, since it may differ from one request to the next.
const ASK_THE_ADMINISTRATOR: &str =
    "writes wait until Consul is available again; the administrator of Lictor finds details in /readyz and in the log";

const MOST_UNREADY: &str =
    "most instances of the cluster stopped being ready within a minute while their endpoints stay";
const CUT_OFF: &str = "the kubelets may be cut off from the API server";

/// Holds what a status is made of.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Findings<'a> {
    /// The spec's generation.
    pub generation: i64,
    /// The service's name in Consul; none where nothing was acted on yet.
    pub service: Option<Str>,
    /// Says why the spec was refused.
    pub refusal: Option<&'a Refusal>,
    /// Says what the source came to; none where there is no spec to resolve.
    pub resolved: Option<Result<(), &'a Unresolved>>,
    /// The remarks about a source that was found.
    pub remarks: Vec<Remark>,
    /// The port of the source that is registered, where the spec names none.
    pub port_in_use: Option<PortInUse>,
    /// True if its instances stay in Consul when the resource is deleted.
    pub retains: bool,
    /// True if the resource is frozen.
    pub paused: bool,
    /// Set if instances of it stopped being ready at once with most others of the cluster: true if they are kept
    /// passing.
    pub mass_unready: Option<bool>,
    /// Counts how many are wanted and there.
    pub counts: Counts,
    /// True if writes of this resource wait or are under way.
    pub in_progress: bool,
    /// Counts the instances that are left at the previous place.
    pub left_behind: usize,
    /// Says which instances stay although their endpoints are missing.
    pub missing: Option<String>,
    /// True if it is known what Consul holds; if not, the counts are those of before.
    pub connected: bool,
    /// The problems of single instances.
    pub problems: Vec<Problem>,
    /// Says why Consul cannot be written to at all just now.
    pub outage: Option<OutageKind>,
}

/// The status that says so.
#[must_use]
pub fn status(findings: Findings<'_>) -> Status {
    let generation = findings.generation;
    let condition = |kind, truth, reason: &str, message: String| Condition {
        kind,
        truth,
        reason: reason.to_owned(),
        message: shorten(&message),
        observed_generation: generation,
    };
    let accepted = match findings.refusal {
        None => match findings.service.as_deref().and_then(not_in_dns) {
            Some(why) => condition(ConditionKind::Accepted, Truth::True, NOT_IN_DNS, why),
            None => condition(ConditionKind::Accepted, Truth::True, "Accepted", "the spec is accepted".to_owned()),
        },
        Some(refusal) => condition(ConditionKind::Accepted, Truth::False, refusal.reason, refusal.message.clone()),
    };
    let resolved = match findings.resolved {
        None => {
            condition(ConditionKind::Resolved, Truth::Unknown, "NotAccepted", "the spec is not accepted".to_owned())
        }
        Some(Ok(())) => match &findings.remarks[..] {
            [] => condition(ConditionKind::Resolved, Truth::True, "Resolved", "the source was found".to_owned()),
            [first, ..] => {
                let all: Vec<&str> = findings.remarks.iter().map(|remark| remark.message.as_str()).collect();
                condition(ConditionKind::Resolved, Truth::True, first.reason, all.join("; "))
            }
        },
        Some(Err(why)) if why.reason == NOT_LISTED => {
            condition(ConditionKind::Resolved, Truth::Unknown, NOT_LISTED, why.message.clone())
        }
        Some(Err(why)) => condition(ConditionKind::Resolved, Truth::False, why.reason, why.message.clone()),
    };
    let (truth, reason, message) = registered(&findings);
    let registered = condition(ConditionKind::Registered, truth, reason, message);
    let ready = match [&accepted, &resolved, &registered].into_iter().find(|c| c.truth != Truth::True) {
        None => condition(ConditionKind::Ready, Truth::True, "Ready", "Consul holds what is desired".to_owned()),
        Some(first) => condition(ConditionKind::Ready, Truth::False, &first.reason.clone(), first.message.clone()),
    };
    let mut problems = findings.problems;
    problems.truncate(MAX_PROBLEMS);
    for problem in &mut problems {
        problem.message = shorten(&problem.message);
    }
    Status {
        observed_generation: generation,
        service_name: findings.service.map(|name| name.to_string()).unwrap_or_default(),
        port_in_use: findings.port_in_use,
        retains: findings.retains,
        instances: findings.counts,
        problems,
        conditions: vec![ready, accepted, resolved, registered],
    }
}

/// Says why a service's name in Consul is one that DNS does not answer, if it is.
///
/// Consul 1.22.7 answers NXDOMAIN where the name holds a dot, a space, a quote, a parenthesis, `;`, `@` or `\\`. It answers
/// other marks, but resolvers do not ask for them: glibc takes letters, digits, hyphens and underscores alone, and no
/// hyphen at the start.
fn not_in_dns(name: &str) -> Option<String> {
    let is_answered = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let why = match name.chars().find(|c| !is_answered(*c)) {
        Some(c) => format!("it holds {c:?}"),
        None if name.starts_with('-') => "it begins with a hyphen".to_owned(),
        None if name.len() > MAX_LABEL => format!("it has {} bytes, more than {MAX_LABEL}", name.len()),
        None => return None,
    };
    let right = "letters, digits, hyphens and underscores, at most 63";
    Some(format!(
        "the spec is accepted, but Consul's DNS does not answer the name {name:?}: {why}; for DNS use {right}"
    ))
}

fn registered(findings: &Findings<'_>) -> (Truth, &'static str, String) {
    let Counts { desired, registered, .. } = findings.counts;
    let left_out = findings.problems.iter().filter(|problem| problem.reason.leaves_out()).count();
    let held = || {
        // Those are not among the desired ones.
        let besides = if left_out == 0 { String::new() } else { format!(", {left_out} more are left out") };
        format!("{registered} of {desired} instances are registered{besides}")
    };
    if findings.paused {
        let message =
            "the annotation lictor.dev/paused pauses this resource: remove the annotation to continue".to_owned();
        return (Truth::Unknown, "Paused", message);
    }
    if findings.resolved.is_none() {
        return (Truth::Unknown, "NotAccepted", "the spec is not accepted; what was registered stays".to_owned());
    }
    if !findings.connected {
        let why = match findings.outage {
            Some(outage) => format!("{}; {ASK_THE_ADMINISTRATOR}", outage.as_str()),
            None => "Consul has not been read yet".to_owned(),
        };
        return (Truth::Unknown, "ConsulUnavailable", why);
    }
    if findings.resolved.is_some_and(|resolved| resolved.is_err()) && desired == 0 && !findings.in_progress {
        return (Truth::Unknown, "NotResolved", "the source was not found".to_owned());
    }
    if let Some(first) = findings.problems.first() {
        let message = format!("{}; {}: {}", held(), first.instance, first.message);
        return (Truth::False, first.reason.as_str(), message);
    }
    if desired == registered && findings.left_behind > 0 {
        let message =
            format!("Consul holds every desired instance; {} are left at the previous place", findings.left_behind);
        return (Truth::False, PENDING, message);
    }
    if desired == registered && !findings.in_progress {
        if let Some(missing) = &findings.missing {
            return (Truth::False, ENDPOINTS_MISSING, missing.clone());
        }
        match findings.mass_unready {
            Some(false) => return (Truth::True, MASS_UNREADY, format!("{MOST_UNREADY}: {CUT_OFF}")),
            Some(true) => {
                let kept = "Lictor keeps the instances of this resource passing until a fresh list from Kubernetes confirms it";
                return (Truth::False, MASS_UNREADY, format!("{MOST_UNREADY}; {kept}: {CUT_OFF}"));
            }
            None => {}
        }
        return (Truth::True, "Registered", "Consul holds every desired instance".to_owned());
    }
    if let Some(outage) = findings.outage {
        return (Truth::False, "ConsulUnavailable", format!("{}; {ASK_THE_ADMINISTRATOR}", outage.as_str()));
    }
    if !findings.in_progress && registered < desired {
        let message = format!(
            "{}; the Consul agent has the others, but Consul's catalog does not show them: \
             its token may lack service:write, or the agent has not told the servers yet",
            held()
        );
        return (Truth::False, "NotInCatalog", message);
    }
    (Truth::False, PENDING, "writes to Consul are under way".to_owned())
}

/// Cuts a message at [`MAX_MESSAGE`] characters.
fn shorten(message: &str) -> String {
    if message.chars().count() <= MAX_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(MAX_MESSAGE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_dns_does_not_answer() {
        let long = "x".repeat(MAX_LABEL);
        for name in ["web", "WEB-1", "a_b", "_a", "a-", "9", &long] {
            assert_eq!(not_in_dns(name), None, "{name}");
        }
        let longer = long + "x";
        let cases = [
            ("my.dotted.name", "it holds '.'"),
            ("a/b", "it holds '/'"),
            ("a b", "it holds ' '"),
            ("-a", "it begins with a hyphen"),
            (&*longer, "it has 64 bytes, more than 63"),
        ];
        for (name, why) in cases {
            assert!(not_in_dns(name).is_some_and(|told| told.contains(why)), "{name}");
        }
    }
}

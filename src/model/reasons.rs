//! What the steps of a decision have to say to the user, in types that all of them share.

use super::health::Health;

/// The reason of `Resolved=False` where a source has more instances than are allowed.
pub const TOO_MANY_INSTANCES: &str = "TooManyInstances";

/// Says why a spec cannot be acted on: `Accepted=False`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The condition's reason, in CamelCase: `NotSupported`, `Invalid`, `NotAllowed`.
    pub reason: &'static str,
    /// Says what is wrong and what to write instead.
    pub message: String,
}

/// Says why a source could not be resolved: `Resolved=False`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The condition's reason.
    pub reason: &'static str,
    /// Says what is missing, and what is there instead.
    pub message: String,
}

/// Says what is to be known of a source that was found: `Resolved=True`, with another reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The condition's reason.
    pub reason: &'static str,
    /// Says what is so, and what to do about it.
    pub message: String,
}

/// Says what is wrong with one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its ID in Consul, or what it would have been made of: a pod's name, an address.
    pub instance: String,
    /// In a word.
    pub reason: ProblemReason,
    /// Consul's own words, or who holds the ID.
    pub message: String,
}

/// Says what may be wrong with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemReason {
    /// Consul refuses it.
    Refused,
    /// Somebody else holds its ID.
    IdTaken,
    /// It is registered with another Consul agent than the one that is to hold it.
    OnAnotherAgent,
    /// It has not the port that a check goes to: it is registered without that check.
    CheckPortNotFound,
    /// It has not the port that is to be registered.
    PortNotFound,
    /// There is no pod behind the endpoint.
    NotVerified,
    /// No instance may have its address, or the administrator does not allow it.
    NotAllowed,
    /// The pod of the endpoint has not been seen yet, and the texts hold values of it.
    PodNotSeen,
}

impl ProblemReason {
    /// As it stands in the status, and as the reason of `Registered=False`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::IdTaken => "IdTaken",
            Self::OnAnotherAgent => "OnAnotherAgent",
            Self::CheckPortNotFound => "CheckPortNotFound",
            Self::PortNotFound => "PortNotFound",
            Self::NotVerified => "NotVerified",
            Self::NotAllowed => "NotAllowed",
            Self::PodNotSeen => "PodNotSeen",
        }
    }

    /// Says whether an endpoint that lives is not among the desired instances for it.
    #[must_use]
    pub(super) fn leaves_out(self) -> bool {
        matches!(self, Self::PortNotFound | Self::NotVerified | Self::NotAllowed | Self::PodNotSeen)
    }

    /// Reads it; what a later version wrote is a refusal to this one, until it writes the status anew.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let all = [
            Self::Refused,
            Self::IdTaken,
            Self::OnAnotherAgent,
            Self::CheckPortNotFound,
            Self::PortNotFound,
            Self::NotVerified,
            Self::NotAllowed,
            Self::PodNotSeen,
        ];
        all.into_iter().find(|reason| reason.as_str() == text).unwrap_or(Self::Refused)
    }
}

/// Counts of instances by state, for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of instances that should be there.
    pub desired: usize,
    /// The number of instances of it that Consul's catalog shows.
    pub registered: usize,
    /// The number of those registered whose checks all pass.
    pub passing: usize,
    /// The number of those registered of which a check warns and none is critical.
    pub warning: usize,
    /// The number of those registered of which a check is critical.
    pub critical: usize,
}

impl Counts {
    /// Adds an instance that is registered.
    pub fn add(&mut self, health: Health) {
        self.registered += 1;
        match health {
            Health::Passing => self.passing += 1,
            Health::Warning => self.warning += 1,
            Health::Critical => self.critical += 1,
        }
    }
}

/// The kind of an outage of Consul: what the authors of resources are told of it. The words, which may differ from one
/// request to the next, are for whoever runs Lictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageKind {
    /// No connection can be made, or no answer comes in time.
    Unreachable,
    /// The servers have no leader.
    NoLeader,
    /// Consul limits requests.
    RateLimited,
    /// Consul refuses requests: the token is not known, or may not do what is needed.
    Refused,
    /// Consul, or a proxy before it, answers with errors.
    Failing,
    /// The settings of Lictor do not fit this Consul: another cluster has the name, or several agents answer.
    NotSetUp,
    /// Consul was emptied, restored or replaced, or another Lictor took over: it is read again.
    Replaced,
    /// Consul fails in another way.
    Other,
}

impl OutageKind {
    /// Says it in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "Consul cannot be reached",
            Self::NoLeader => "the servers of Consul have no leader",
            Self::RateLimited => "Consul limits the requests of Lictor",
            Self::Refused => "Consul refuses the requests of Lictor",
            Self::Failing => "Consul answers with errors",
            Self::NotSetUp => "Lictor is not set up for this Consul",
            Self::Replaced => "Consul was emptied, restored or replaced, or another Lictor took over",
            Self::Other => "Consul cannot be used",
        }
    }
}

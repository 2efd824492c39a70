//! Which removals want a second look before they are made.
//!
//! What a user deleted while we watched goes at once. What is only *not there* (an empty list, a resource
//! that a relist did not have, an orphan of a crash) is a conclusion: when many go by it, Kubernetes is asked
//! again first.

/// How a removal came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A watch told of the change itself: a deletion, an edit, an endpoint that left.
    Observed,
    /// Concluded from a list, or from a row in Consul that nobody claims.
    Inferred,
}

/// The share of what we own, in percent, that may go by inference without a second look.
pub const SHARE_PERCENT: usize = 10;

/// Whether removing `inferred` of `owned` rows by inference wants a second look.
#[must_use]
pub fn wants_confirmation(inferred: usize, owned: usize) -> bool {
    inferred * 100 > owned * SHARE_PERCENT
}

/// What Kubernetes says of the `CustomResourceDefinition` of our kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdState {
    /// It stays: a resource that ends was deleted itself.
    Stays,
    /// It is being deleted or gone, and all resources with it: nobody asked to deregister anything.
    Goes,
    /// Lictor may not ask.
    Unknown,
}

/// What becomes of the instances of a resource that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// They are deregistered.
    Deregister,
    /// They stay, and the finalizer is removed.
    Detach,
    /// They stay until Kubernetes can be asked.
    Wait,
}

/// What becomes of the instances of a resource that ended. `few` answers whether they are within the share of what we
/// own that may go by inference; it is asked only where the state is not known.
pub fn ending(crd: CrdState, few: impl FnOnce() -> bool) -> Ending {
    match crd {
        CrdState::Stays => Ending::Deregister,
        CrdState::Goes => Ending::Detach,
        CrdState::Unknown if few() => Ending::Deregister,
        CrdState::Unknown => Ending::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_goes_unless_the_definition_does_or_may() {
        for (crd, few, expected) in [
            (CrdState::Stays, false, Ending::Deregister),
            (CrdState::Goes, true, Ending::Detach),
            (CrdState::Unknown, true, Ending::Deregister),
            (CrdState::Unknown, false, Ending::Wait),
        ] {
            assert_eq!(ending(crd, || few), expected, "{crd:?}, few: {few}");
        }
    }

    #[test]
    fn more_than_a_share_wants_a_second_look() {
        for (inferred, owned, expected) in
            [(0, 0, false), (1, 1, true), (1, 10, false), (2, 10, true), (100, 1000, false)]
        {
            assert_eq!(wants_confirmation(inferred, owned), expected, "{inferred} of {owned}");
        }
    }
}

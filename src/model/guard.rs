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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_share_wants_a_second_look() {
        for (inferred, owned, expected) in
            [(0, 0, false), (1, 1, true), (1, 10, false), (2, 10, true), (100, 1000, false)]
        {
            assert_eq!(wants_confirmation(inferred, owned), expected, "{inferred} of {owned}");
        }
    }
}

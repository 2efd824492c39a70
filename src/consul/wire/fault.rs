//! What Consul's error texts mean. Consul has no error codes: the text is all there is to tell faults apart.

use crate::model::reasons::OutageKind;

/// The kind of fault that an error text of Consul describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A compare-and-set was refused, because the entry has changed since it was read.
    StaleIndex,
    /// The token lacks a permission for this operation.
    PermissionDenied,
    /// The node that an operation needs is not in the catalog.
    MissingNode,
    /// The service instance that a check belongs to is not in the catalog.
    MissingService,
    /// The entry that an operation reads is not in the catalog.
    Gone,
    /// The servers have no leader, so nothing was written.
    NoLeader,
    /// Consul limits requests and did not carry this one out.
    RateLimited,
    /// Consul does not know the token, for example because it has expired.
    UnknownToken,
    /// Namespaces and partitions are for Consul Enterprise.
    NotEnterprise,
    /// Consul knows no way to the datacenter that a request is for.
    UnknownDatacenter,
    /// The text describes a fault that needs no decision of its own.
    Other,
}

/// The part of an error text that identifies each fault. The first that matches counts: in a refusal by the ACLs
/// Consul quotes names without escaping them, so a name could hold any of the other texts.
const TEXTS: [(&str, Fault); 11] = [
    ("Permission denied", Fault::PermissionDenied),
    ("ACL not found", Fault::UnknownToken),
    ("index is stale", Fault::StaleIndex),
    ("doesn't exist", Fault::Gone),
    ("Missing node registration", Fault::MissingNode),
    ("Missing service registration", Fault::MissingService),
    ("No cluster leader", Fault::NoLeader),
    ("node is not the leader", Fault::NoLeader),
    ("rate limit exceeded", Fault::RateLimited),
    ("are a Consul Enterprise feature", Fault::NotEnterprise),
    ("No path to datacenter", Fault::UnknownDatacenter),
];

impl Fault {
    /// Finds out which fault a text describes. An agent puts prefixes such as `rpc error making call: ` before the
    /// text of a server, so the text may stand anywhere outside quotes.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let text = without_quoted(text);
        TEXTS.iter().find(|(part, _)| text.contains(part)).map_or(Self::Other, |(_, fault)| *fault)
    }

    /// Says of which kind the outage is, where Consul answered with this fault and a status that is no success, and no single
    /// registration is to blame.
    #[must_use]
    pub fn outage(self, status: u16) -> OutageKind {
        match (status, self) {
            (429, _) | (_, Self::RateLimited) => OutageKind::RateLimited,
            (_, Self::NoLeader) => OutageKind::NoLeader,
            (_, Self::NotEnterprise | Self::UnknownDatacenter) => OutageKind::NotSetUp,
            (400..=499, _) | (_, Self::PermissionDenied | Self::UnknownToken) => OutageKind::Refused,
            _ => OutageKind::Failing,
        }
    }

    /// Says whether Consul surely did not carry out a write that it answered with this fault and a status of the 500s.
    /// Every other such write may have been carried out: the answer may be a proxy's time-out, or "leadership lost
    /// while committing log".
    #[must_use]
    pub fn is_before_the_write(self) -> bool {
        match self {
            Self::NoLeader | Self::RateLimited | Self::UnknownToken | Self::NotEnterprise | Self::UnknownDatacenter => {
                true
            }
            Self::StaleIndex
            | Self::PermissionDenied
            | Self::MissingNode
            | Self::MissingService
            | Self::Gone
            | Self::Other => false,
        }
    }
}

/// Removes what stands in double quotes, as Go's `%q` writes them: names that somebody chose, which may read like a
/// fault themselves.
fn without_quoted(text: &str) -> String {
    let (mut kept, mut quoted, mut escaped) = (String::with_capacity(text.len()), false, false);
    for character in text.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            other => kept.push(other),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of Consul 1.22.7, each with how it was provoked there. Those that say "source" are taken from
    /// Consul's source, because they need a failure at one certain moment.
    const SEEN: &[(&str, Fault)] = &[
        // `PUT /v1/txn`: a Node, Service or Check operation "cas" or "delete-cas" with a wrong ModifyIndex.
        (r#"failed to set node "n", index is stale"#, Fault::StaleIndex),
        (r#"failed to delete node "n", index is stale"#, Fault::StaleIndex),
        (r#"failed to set check "c" on node "n", index is stale"#, Fault::StaleIndex),
        // `PUT /v1/txn`: "get" of a service or node that is not there.
        (r#"service "x" on node "n" doesn't exist"#, Fault::Gone),
        (r#"node "zz" doesn't exist"#, Fault::Gone),
        // `PUT /v1/txn`: "set" of a service or a check on a node that is not there.
        ("Missing node registration", Fault::MissingNode),
        // `PUT /v1/txn`: "set" of a check whose ServiceID is not on the node.
        ("Missing service registration", Fault::MissingService),
        // `PUT /v1/txn` without a token, `acl.default_policy = "deny"`.
        (
            "Permission denied: anonymous token lacks permission 'node:write' on \"n\". The anonymous token is used \
             implicitly when a request does not specify a token.",
            Fault::PermissionDenied,
        ),
        // The same for a service whose name somebody has chosen for this.
        (
            "Permission denied: anonymous token lacks permission 'service:write' on \"a, index is stale\". The \
             anonymous token is used implicitly when a request does not specify a token.",
            Fault::PermissionDenied,
        ),
        // Any request with a token that does not exist; through a client agent with the prefix.
        ("ACL not found", Fault::UnknownToken),
        ("rpc error making call: ACL not found", Fault::UnknownToken),
        // Any request to one server of three that has not found the others.
        ("No cluster leader", Fault::NoLeader),
        // Source: `raft.ErrNotLeader`, of a leader that has just lost its office.
        ("node is not the leader", Fault::NoLeader),
        // Source: `rate.ErrRetryLater` (429) and `rate.ErrRetryElsewhere` (503), `limits.request_limits`; and
        // `structs.ErrRPCRateExceeded`, `limits.rpc_rate`.
        ("rate limit exceeded, try again later", Fault::RateLimited),
        ("rate limit exceeded, try again later or against a different server", Fault::RateLimited),
        ("RPC rate limit exceeded", Fault::RateLimited),
        // Source: `raft.ErrLeadershipLost`. The write may still be carried out.
        ("leadership lost while committing log", Fault::Other),
        // `PUT /v1/agent/service/deregister/none`.
        (r#"Unknown service ID "none". Ensure that the service ID is passed, not the service name."#, Fault::Other),
        // `PUT /v1/txn?ns=a` and `?partition=a`; the header, whose text is from the source.
        (r#"Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature"#, Fault::NotEnterprise),
        (r#"Invalid query parameter: "partition" - Partitions are a Consul Enterprise feature"#, Fault::NotEnterprise),
        // `GET /v1/catalog/nodes?dc=other`.
        ("No path to datacenter", Fault::UnknownDatacenter),
        // A proxy before Consul.
        ("upstream request timeout", Fault::Other),
        ("", Fault::Other),
    ];

    #[test]
    fn each_text_of_consul_is_one_fault() {
        for (text, expected) in SEEN {
            assert_eq!(Fault::of(text), *expected, "{text}");
        }
    }

    #[test]
    fn a_name_is_no_fault() {
        for (text, expected) in [
            (r#"failed to set service "Permission denied" on node "n", index is stale"#, Fault::StaleIndex),
            (r#"service "a\" No cluster leader \"" on node "n" doesn't exist"#, Fault::Gone),
            (r#"invalid name "ACL not found"#, Fault::Other),
        ] {
            assert_eq!(Fault::of(text), expected, "{text}");
        }
    }

    #[test]
    fn only_some_faults_come_before_the_write() {
        for (fault, before) in [
            (Fault::NoLeader, true),
            (Fault::RateLimited, true),
            (Fault::UnknownToken, true),
            (Fault::NotEnterprise, true),
            (Fault::UnknownDatacenter, true),
            (Fault::PermissionDenied, false),
            (Fault::StaleIndex, false),
            (Fault::Gone, false),
            (Fault::MissingNode, false),
            (Fault::MissingService, false),
            (Fault::Other, false),
        ] {
            assert_eq!(fault.is_before_the_write(), before, "{fault:?}");
        }
    }
}

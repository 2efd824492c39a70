//! Logging in by an auth method: what is sent, what is answered, and what the texts of a refusal mean.
//!
//! Consul answers with 500 whatever goes wrong while it asks Kubernetes about the bearer token, so only the text tells a
//! token that is refused from an outage.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/acl/login`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LoginBody<'a> {
    /// The name of the auth method.
    pub auth_method: &'a str,
    /// The token that the auth method judges.
    pub bearer_token: &'a str,
    /// Pairs that stand in the description of the token that Consul makes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: &'a BTreeMap<String, String>,
}

/// The answer: the token that Consul has made.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LoginAnswer {
    /// The ID of the token, which is no secret.
    #[serde(rename = "AccessorID")]
    pub accessor: String,
    /// The token itself.
    #[serde(rename = "SecretID")]
    pub secret: String,
    /// The time at which it was made, by Consul's clock.
    create_time: String,
    /// The time at which it ends; absent where the auth method has no `MaxTokenTTL`.
    expiration_time: Option<String>,
    /// The roles that it is bound to.
    #[serde(default)]
    roles: Option<Vec<Link>>,
    /// The policies that it is bound to.
    #[serde(default)]
    policies: Option<Vec<Link>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Link {
    #[serde(default)]
    name: String,
}

impl LoginAnswer {
    /// The time for which the token lives, by Consul's clock alone; none if it lives until it is logged out. An error if
    /// that cannot be told.
    pub fn lifetime(&self) -> Result<Option<Duration>, String> {
        let Some(ends) = &self.expiration_time else { return Ok(None) };
        let time = |text: &str| text.parse::<Timestamp>().map_err(|error| format!("{text:?}: {error}"));
        let lifetime = time(ends)?.duration_since(time(&self.create_time)?);
        Duration::try_from(lifetime).map(Some).map_err(|_| format!("it ends at {ends}, before it begins"))
    }

    /// Names the roles and policies that the token is bound to.
    pub fn bound_to(&self) -> Vec<String> {
        let names = |kind: &str, links: &Option<Vec<Link>>| -> Vec<String> {
            links.iter().flatten().map(|link| format!("{kind} {}", link.name)).collect()
        };
        [names("role", &self.roles), names("policy", &self.policies)].concat()
    }
}

/// The kind of a refusal to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFault {
    /// There is no auth method of this name.
    UnknownMethod,
    /// No binding rule selects the service account.
    NoBindingRule,
    /// The bearer token is not for the audience of the API server.
    Audience,
    /// Kubernetes does not have the service account of the bearer token, or its pod, any more.
    ServiceAccountGone,
    /// Kubernetes does not accept the bearer token.
    BearerToken,
    /// The auth method's own service account may not read service accounts.
    MayNotReadServiceAccounts,
    /// The auth method's own service account may not review tokens.
    MayNotReviewTokens,
    /// Kubernetes does not accept the auth method's own token.
    MethodsToken,
    /// Consul cannot reach the API server that the auth method names.
    KubernetesUnreachable,
    /// Consul has no ACLs.
    AclsDisabled,
    /// Namespaces and partitions are for Consul Enterprise.
    NotEnterprise,
    /// Consul knows no way to the datacenter.
    UnknownDatacenter,
}

impl LoginFault {
    /// Finds out what an answer other than a success says about the login; none if it says nothing: an outage, or
    /// something that is not known.
    #[must_use]
    pub fn of(status: u16, text: &str) -> Option<Self> {
        let has = |part: &str| text.contains(part);
        match status {
            401 if has("ACL support disabled") => return Some(Self::AclsDisabled),
            403 if has("ACL not found") => return Some(Self::UnknownMethod),
            403 if has("Permission denied") => return Some(Self::NoBindingRule),
            400 if has("Enterprise") => return Some(Self::NotEnterprise),
            500 => {}
            _ => return None,
        }
        let is_gone = || has("not found") || has("has been deleted") || has("does not match claim");
        if has("No path to datacenter") {
            Some(Self::UnknownDatacenter)
        } else if has("for the target audiences") {
            Some(Self::Audience)
        } else if has("annotation lookup failed") && has("forbidden") {
            Some(Self::MayNotReadServiceAccounts)
        } else if has("tokenreviews") && has("forbidden") {
            Some(Self::MayNotReviewTokens)
        } else if has("lookup failed: ") && is_gone() {
            Some(Self::ServiceAccountGone)
        } else if text.split(": ").last().is_some_and(|last| last.trim() == "Unauthorized") {
            Some(Self::MethodsToken)
        } else if has("lookup failed: Post \"https://")
            || has("lookup failed: Get \"https://")
            || has("/tokenreviews\"")
        {
            Some(Self::KubernetesUnreachable)
        } else if has("lookup failed: ") || has("failed to parse and validate JWT") {
            Some(Self::BearerToken)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of Consul 1.22.7 with Kubernetes 1.37.2, each with how it was provoked (`tests/e2e/login.rs`). Those that
    /// say "source" are taken from the source of Consul or of Kubernetes.
    const SEEN: &[(u16, &str, Option<LoginFault>)] = &[
        // An auth method that there is not, or that was deleted.
        (403, "ACL not found: auth method \"lictor\" not found", Some(LoginFault::UnknownMethod)),
        // No binding rule, or a role that there is not.
        (403, "Permission denied", Some(LoginFault::NoBindingRule)),
        // `kubectl create token lictor --audience=consul`.
        (
            500,
            "lookup failed: [invalid bearer token, token audiences [\"consul\"] is invalid for the target audiences \
             [\"https://kubernetes.default.svc.cluster.local\"]]",
            Some(LoginFault::Audience),
        ),
        // A text that is no token, and a token whose signature is not right.
        (
            500,
            "failed to parse and validate JWT: go-jose/go-jose: compact JWS format must have three parts",
            Some(LoginFault::BearerToken),
        ),
        (500, "lookup failed: invalid bearer token", Some(LoginFault::BearerToken)),
        // Source of Kubernetes, `pkg/serviceaccount/claims.go`.
        (
            500,
            "lookup failed: [invalid bearer token, service account token has expired]",
            Some(LoginFault::BearerToken),
        ),
        // The service account of the token is deleted; made anew; gone between the two questions (source).
        (
            500,
            "lookup failed: [invalid bearer token, serviceaccounts \"leaver\" not found]",
            Some(LoginFault::ServiceAccountGone),
        ),
        (
            500,
            "lookup failed: [invalid bearer token, service account UID (a) does not match claim (b)]",
            Some(LoginFault::ServiceAccountGone),
        ),
        (500, "annotation lookup failed: serviceaccounts \"lictor\" not found", Some(LoginFault::ServiceAccountGone)),
        // Without `get` on serviceaccounts; without system:auth-delegator.
        (
            500,
            "annotation lookup failed: serviceaccounts \"lictor\" is forbidden: User \
             \"system:serviceaccount:consul:consul-auth-method\" cannot get resource \"serviceaccounts\" in API group \"\" in \
             the namespace \"lictor\"",
            Some(LoginFault::MayNotReadServiceAccounts),
        ),
        (
            500,
            "tokenreviews.authentication.k8s.io is forbidden: User \"system:serviceaccount:consul:consul-auth-method\" \
             cannot create resource \"tokenreviews\" in API group \"authentication.k8s.io\" at the cluster scope",
            Some(LoginFault::MayNotReviewTokens),
        ),
        // A ServiceAccountJWT that nobody has signed.
        (500, "Unauthorized", Some(LoginFault::MethodsToken)),
        (500, "annotation lookup failed: Unauthorized", Some(LoginFault::MethodsToken)),
        // A Host at which nothing answers; a CACert of another authority.
        (
            500,
            "Post \"https://127.0.0.1:1/apis/authentication.k8s.io/v1/tokenreviews\": dial tcp 127.0.0.1:1: connect: \
             connection refused",
            Some(LoginFault::KubernetesUnreachable),
        ),
        (
            500,
            "Post \"https://127.0.0.1:6443/apis/authentication.k8s.io/v1/tokenreviews\": tls: failed to verify \
             certificate: x509: certificate signed by unknown authority",
            Some(LoginFault::KubernetesUnreachable),
        ),
        (
            500,
            "annotation lookup failed: Get \"https://127.0.0.1:1/api/v1/namespaces/lictor/serviceaccounts/lictor\": dial \
             tcp 127.0.0.1:1: connect: connection refused",
            Some(LoginFault::KubernetesUnreachable),
        ),
        // A Consul without ACLs; one that is no Enterprise, with `?ns=` and `?partition=`; `?dc=` of nobody.
        (401, "ACL support disabled", Some(LoginFault::AclsDisabled)),
        (
            400,
            "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature",
            Some(LoginFault::NotEnterprise),
        ),
        (
            400,
            "Invalid query parameter: \"partition\" - Partitions are a Consul Enterprise feature",
            Some(LoginFault::NotEnterprise),
        ),
        (500, "No path to datacenter", Some(LoginFault::UnknownDatacenter)),
        // Outages, and what a proxy before Consul says.
        (500, "No cluster leader", None),
        (429, "rate limit exceeded, try again later", None),
        (503, "upstream request timeout", None),
        (404, "404 page not found", None),
        (400, "bad request", None),
    ];

    #[test]
    fn each_answer_to_a_login_is_one_fault_or_an_outage() {
        for (status, text, expected) in SEEN {
            assert_eq!(LoginFault::of(*status, text), *expected, "{status} {text}");
            // An agent puts this before the text of a server.
            let forwarded = format!("rpc error making call: {text}\n");
            assert_eq!(LoginFault::of(*status, &forwarded), *expected, "{status} {forwarded}");
        }
    }

    #[test]
    fn the_life_of_a_token_is_told_by_consuls_clock() {
        let answer = |times: &str| {
            let text = format!("{{\"AccessorID\":\"a\",\"SecretID\":\"s\",\"Roles\":[{{\"Name\":\"r\"}}],{times}}}");
            serde_json::from_str::<LoginAnswer>(&text).unwrap()
        };
        let made = "\"CreateTime\":\"2026-01-01T10:00:00.5+02:00\"";
        for (ends, expected) in [
            ("", Ok(None)),
            (",\"ExpirationTime\":null", Ok(None)),
            (",\"ExpirationTime\":\"2026-01-01T08:01:00.5Z\"", Ok(Some(Duration::from_secs(60)))),
            (",\"ExpirationTime\":\"2026-01-01T07:00:00Z\"", Err("before it begins")),
            (",\"ExpirationTime\":\"soon\"", Err("soon")),
        ] {
            match (answer(&format!("{made}{ends}")).lifetime(), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{ends}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (found, _) => panic!("{ends}: {found:?}"),
            }
        }
        assert_eq!(answer(made).bound_to(), ["role r"]);
    }
}

//! Logging in to Consul by an auth method: what is known of the token, what to do next, and what a refusal means.
//!
//! In: the time, and how an attempt to log in ended. Out: the token that requests carry now, or why there is none, and
//! when to log in next. Nothing here sends anything: `transport::login` does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::wire::{Fault, LoginFault};
use crate::model::reasons::OutageKind;
use crate::ports::Backoff;

/// The path of the token of a pod's service account.
pub const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Says how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginSettings {
    /// The name of the auth method in Consul.
    pub method: String,
    /// The file with the token of a service account; it is read at each login.
    pub bearer_token_file: PathBuf,
    /// The datacenter in which the token is made, where that is not the one of Consul's address.
    pub datacenter: Option<String>,
    /// The namespace of the auth method, in Consul Enterprise.
    pub namespace: Option<String>,
    /// Its partition, likewise.
    pub partition: Option<String>,
    /// Pairs for the description of the token.
    pub meta: BTreeMap<String, String>,
}

/// Says why there is no login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct NotLoggedIn {
    /// The kind of the outage that this is.
    pub kind: OutageKind,
    /// Says what to change, or what Consul answered.
    pub words: String,
}

impl NotLoggedIn {
    /// Explains an answer to the login that is no success.
    #[must_use]
    pub fn answered(status: u16, words: &str, settings: &LoginSettings) -> Self {
        let answer = format!("Consul answered {status}: {words}");
        match LoginFault::of(status, words) {
            Some(fault) => Self { kind: kind(fault), words: format!("{}; {answer}", advice(fault, settings)) },
            None => Self {
                kind: Fault::of(words).outage(status),
                words: format!("cannot log in to Consul by the auth method {:?}: {answer}", settings.method),
            },
        }
    }
}

fn kind(fault: LoginFault) -> OutageKind {
    match fault {
        LoginFault::KubernetesUnreachable => OutageKind::Failing,
        LoginFault::UnknownMethod
        | LoginFault::NoBindingRule
        | LoginFault::Audience
        | LoginFault::ServiceAccountGone
        | LoginFault::BearerToken
        | LoginFault::MayNotReadServiceAccounts
        | LoginFault::MayNotReviewTokens
        | LoginFault::MethodsToken
        | LoginFault::AclsDisabled
        | LoginFault::NotEnterprise
        | LoginFault::UnknownDatacenter => OutageKind::Refused,
    }
}

/// Says what is wrong and what to change, in one sentence.
fn advice(fault: LoginFault, settings: &LoginSettings) -> String {
    let (method, file) = (&settings.method, settings.bearer_token_file.display());
    match fault {
        LoginFault::UnknownMethod => {
            format!("Consul has no auth method {method:?}: create it, or correct --consul-auth-method")
        }
        LoginFault::NoBindingRule => format!(
            "no binding rule of Consul's auth method {method:?} gives this service account anything: add a rule that \
             selects it, with a role or policy that exists"
        ),
        LoginFault::Audience => format!(
            "the service account's token in {file} is not for the audience of the API server: give one that is by \
             --consul-auth-bearer-token-file"
        ),
        LoginFault::ServiceAccountGone => format!(
            "Kubernetes does not have the service account or the pod of the token in {file} any more: create the \
             service account again, then restart the pod"
        ),
        LoginFault::BearerToken => format!(
            "Kubernetes does not accept the service account's token in {file}: give a token of this cluster that has \
             not expired by --consul-auth-bearer-token-file"
        ),
        LoginFault::MayNotReadServiceAccounts => format!(
            "Consul's auth method {method:?} may not read service accounts: grant `get` on serviceaccounts to the \
             service account of its ServiceAccountJWT"
        ),
        LoginFault::MayNotReviewTokens => format!(
            "Consul's auth method {method:?} may not review tokens: bind the ClusterRole system:auth-delegator to the \
             service account of its ServiceAccountJWT"
        ),
        LoginFault::MethodsToken => format!(
            "Kubernetes does not accept the ServiceAccountJWT of Consul's auth method {method:?}: give it a token that \
             is valid"
        ),
        LoginFault::KubernetesUnreachable => format!(
            "Consul cannot ask Kubernetes about the service account's token: its servers have to reach the Host of the \
             auth method {method:?}, and its CACert has to be that of the API server"
        ),
        LoginFault::AclsDisabled => {
            "Consul has no ACLs, so nobody can log in: enable them, or leave out --consul-auth-method".to_owned()
        }
        LoginFault::NotEnterprise => {
            "this Consul is no Enterprise and has neither namespaces nor partitions: leave out \
                                      --consul-auth-namespace and --consul-auth-partition"
                .to_owned()
        }
        LoginFault::UnknownDatacenter => format!(
            "Consul knows no way to the datacenter {:?}: correct --consul-auth-datacenter or --consul-datacenter",
            settings.datacenter.as_deref().unwrap_or_default()
        ),
    }
}

/// A token ends this much earlier for us: a request that carries it has to arrive first.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// A token that Consul does not know so soon after its login counts as a failure: the next one may fare alike. After the
/// second in a row there is a wait.
const YOUNG: Duration = Duration::from_secs(5);

/// Holds the state of the login; `T` is the token.
#[derive(Debug)]
pub(super) struct Login<T> {
    /// The token that requests carry.
    held: Option<Held<T>>,
    /// The last attempt, if it failed.
    failure: Option<Failure>,
    /// Counts how often in a row it failed.
    failures: u32,
    /// True if there shall be no further attempt.
    ended: bool,
}

/// A token that Consul has given.
#[derive(Debug)]
struct Held<T> {
    token: T,
    since: Instant,
    /// Counts how often in a row it failed before.
    failures_before: u32,
    /// The time from which on it is not used any more.
    ends: Option<Instant>,
    /// The time at which another one is to be had.
    renews: Option<Instant>,
}

#[derive(Debug)]
struct Failure {
    why: NotLoggedIn,
    /// The time of the next attempt.
    until: Instant,
}

/// Says what requests carry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carry<T> {
    /// The login has given this token.
    Token(T),
    /// Nothing: they wait for a login that is under way or due.
    Wait,
    /// Nothing: they fail.
    Fail(NotLoggedIn),
}

/// Says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Log in now.
    LogIn,
    /// Look again at this time.
    At(Instant),
    /// Nothing, unless something happens.
    Nothing,
}

impl<T> Default for Login<T> {
    fn default() -> Self {
        Self { held: None, failure: None, failures: 0, ended: false }
    }
}

impl<T: Clone + PartialEq> Login<T> {
    /// Says what a request carries that is sent now.
    pub(super) fn carry(&self, now: Instant) -> Carry<T> {
        if let Some(held) = self.held.as_ref().filter(|held| held.ends.is_none_or(|ends| now < ends)) {
            return Carry::Token(held.token.clone());
        }
        if self.ended {
            let words = "Lictor has logged out of Consul".to_owned();
            return Carry::Fail(NotLoggedIn { kind: OutageKind::Other, words });
        }
        match &self.failure {
            Some(failure) if now < failure.until => Carry::Fail(failure.why.clone()),
            _ => Carry::Wait,
        }
    }

    /// Says what to do about the login.
    pub(super) fn next(&self, now: Instant) -> Next {
        let due = match &self.held {
            _ if self.ended => return Next::Nothing,
            None => now,
            Some(held) => match held.renews {
                None => return Next::Nothing,
                Some(renews) => renews,
            },
        };
        let due = self.failure.as_ref().map_or(due, |failure| due.max(failure.until));
        if due <= now { Next::LogIn } else { Next::At(due) }
    }

    /// Takes a token that Consul has given at a request of the time `asked`, and gives the one before, which is to be
    /// logged out.
    pub(super) fn logged_in(&mut self, token: T, lifetime: Option<Duration>, asked: Instant) -> Option<T> {
        self.failure = None;
        let failures_before = std::mem::take(&mut self.failures);
        let ends = lifetime.map(|lifetime| asked + lifetime.saturating_sub(BEFORE_THE_END));
        let renews = lifetime.map(|lifetime| asked + lifetime / 2);
        self.held.replace(Held { token, since: asked, failures_before, ends, renews }).map(|before| before.token)
    }

    /// Notes that an attempt failed.
    pub(super) fn failed(&mut self, why: NotLoggedIn, now: Instant, random: &mut fastrand::Rng) {
        self.failures += 1;
        self.failure = Some(Failure { why, until: now + Backoff::LOGIN.wait(self.failures, random) });
    }

    /// Notes that Consul does not know a token; false if it is not the present one any more.
    pub(super) fn unknown(&mut self, token: &T, now: Instant, random: &mut fastrand::Rng) -> bool {
        let Some(held) = self.held.take_if(|held| held.token == *token) else { return false };
        // What failed before was about the same login, and may be over.
        (self.failure, self.failures) = (None, 0);
        let is_young = now < held.since + YOUNG;
        if is_young && held.failures_before == 0 {
            self.failures = 1;
        } else if is_young {
            self.failures = held.failures_before;
            let words = "the token of the login is not known to Consul".to_owned();
            self.failed(NotLoggedIn { kind: OutageKind::Refused, words }, now, random);
        }
        true
    }

    /// Says why there is no token, or no new one while the present one still serves.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        let why = &self.failure.as_ref()?.why;
        let Some(ends) = self.held.as_ref().and_then(|held| held.ends) else { return Some(why.to_string()) };
        let left = ends.saturating_duration_since(now).as_secs();
        Some(format!("the login to Consul cannot be renewed, and ends in {left} s: {why}"))
    }

    /// Ends it: gives the token that is to be logged out.
    pub(super) fn end(&mut self) -> Option<T> {
        self.ended = true;
        self.held.take().map(|held| held.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn why(words: &str) -> NotLoggedIn {
        NotLoggedIn { kind: OutageKind::Refused, words: words.to_owned() }
    }

    /// The test asks half a second later whether an attempt is due; the longest first wait is one second.
    fn wait_is_between(login: &Login<&str>, now: Instant, least: f64, most: f64) {
        let Next::At(due) = login.next(now) else { panic!("{:?}", login.next(now)) };
        let wait = (due - now).as_secs_f64();
        assert!((least..=most).contains(&wait), "{wait} is not from {least} to {most}");
    }

    #[test]
    fn a_token_is_renewed_at_half_of_its_life_and_used_until_shortly_before_its_end() {
        let start = Instant::now();
        let at = |after| start + seconds(after);
        let mut login = Login::default();
        assert_eq!((login.carry(start), login.next(start)), (Carry::Wait, Next::LogIn));
        assert_eq!(login.logged_in("one", Some(seconds(60)), start), None);
        for (now, carry, next) in [
            (0, Carry::Token("one"), Next::At(at(30))),
            (29, Carry::Token("one"), Next::At(at(30))),
            (30, Carry::Token("one"), Next::LogIn),
            (57, Carry::Token("one"), Next::LogIn),
            (58, Carry::Wait, Next::LogIn),
        ] {
            assert_eq!((login.carry(at(now)), login.next(at(now))), (carry, next), "{now}");
        }
        assert_eq!(login.logged_in("two", None, at(30)), Some("one"));
        assert_eq!((login.carry(at(99_999)), login.next(at(99_999))), (Carry::Token("two"), Next::Nothing));
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_and_the_token_serves_on() {
        let start = Instant::now();
        let at = |after| start + seconds(after);
        let mut random = fastrand::Rng::with_seed(1);
        let mut login = Login::default();
        login.logged_in("one", Some(seconds(60)), start);
        assert_eq!(login.trouble(at(30)), None);
        login.failed(why("no"), at(30), &mut random);
        assert_eq!(login.carry(at(30)), Carry::Token("one"));
        assert_eq!(
            login.trouble(at(30)).as_deref(),
            Some("the login to Consul cannot be renewed, and ends in 28 s: no")
        );
        wait_is_between(&login, at(30), 0.5, 1.0);
        login.failed(why("no"), at(31), &mut random);
        wait_is_between(&login, at(31), 1.0, 2.0);
        for _ in 0..20 {
            login.failed(why("no"), at(40), &mut random);
        }
        wait_is_between(&login, at(40), 7.5, 15.0);
        // At the end of the token requests fail, until an attempt is due.
        login.failed(why("still no"), at(57), &mut random);
        assert_eq!(login.carry(at(58)), Carry::Fail(why("still no")));
        assert_eq!((login.carry(at(73)), login.next(at(73))), (Carry::Wait, Next::LogIn));
        login.logged_in("two", Some(seconds(60)), at(73));
        assert_eq!((login.carry(at(73)), login.trouble(at(73))), (Carry::Token("two"), None));
        login.failed(why("no"), at(103), &mut random);
        wait_is_between(&login, at(103), 0.5, 1.0);
    }

    #[test]
    fn a_token_that_is_not_known_any_more_is_replaced_at_once_unless_it_is_young() {
        let start = Instant::now();
        let at = |after| start + seconds(after);
        let mut random = fastrand::Rng::with_seed(1);
        let mut login = Login::default();
        login.logged_in("one", None, start);
        assert!(!login.unknown(&"another", at(10), &mut random), "it is not the present one");
        assert!(login.unknown(&"one", at(10), &mut random));
        assert!(!login.unknown(&"one", at(10), &mut random), "of many requests the first one tells");
        assert_eq!((login.carry(at(10)), login.next(at(10))), (Carry::Wait, Next::LogIn));
        // One after the other that is not known: from the second on there are waits, and they grow.
        login.logged_in("first", None, at(10));
        assert!(login.unknown(&"first", at(10), &mut random));
        assert_eq!((login.carry(at(10)), login.next(at(10))), (Carry::Wait, Next::LogIn));
        for (least, most) in [(1.0, 2.0), (2.0, 4.0), (4.0, 8.0)] {
            login.logged_in("next", None, at(10));
            assert!(login.unknown(&"next", at(10), &mut random));
            wait_is_between(&login, at(10), least, most);
            assert!(matches!(login.carry(at(10)), Carry::Fail(_)));
        }
        login.logged_in("last", None, at(20));
        assert!(login.unknown(&"last", at(30), &mut random));
        assert_eq!(login.next(at(30)), Next::LogIn);
    }

    #[test]
    fn after_the_end_nothing_is_carried_and_what_comes_late_is_given_back() {
        let now = Instant::now();
        let mut login = Login::default();
        login.logged_in("one", None, now);
        assert_eq!(login.end(), Some("one"));
        assert!(matches!(login.carry(now), Carry::Fail(_)));
        assert_eq!(login.next(now), Next::Nothing);
        login.logged_in("late", None, now);
        assert_eq!((login.end(), login.end()), (Some("late"), None));
    }

    #[test]
    fn a_refusal_says_what_to_change_before_it_says_what_consul_said() {
        let settings = LoginSettings {
            method: "kube".to_owned(),
            bearer_token_file: POD_TOKEN.into(),
            datacenter: Some("dc9".to_owned()),
            namespace: None,
            partition: None,
            meta: BTreeMap::new(),
        };
        let mut said = std::collections::BTreeSet::new();
        for (status, words, kind, part) in [
            (403, "ACL not found", OutageKind::Refused, "--consul-auth-method"),
            (403, "Permission denied", OutageKind::Refused, "add a rule"),
            (500, "lookup failed: x for the target audiences", OutageKind::Refused, "audience of the API server"),
            (500, "lookup failed: serviceaccounts not found", OutageKind::Refused, "create the service account again"),
            (500, "lookup failed: x", OutageKind::Refused, "has not expired"),
            (500, "annotation lookup failed: forbidden", OutageKind::Refused, "grant `get` on serviceaccounts"),
            (500, "tokenreviews is forbidden", OutageKind::Refused, "system:auth-delegator"),
            (500, "Unauthorized", OutageKind::Refused, "give it a token that is valid"),
            (500, "Post \"https://x/tokenreviews\": refused", OutageKind::Failing, "have to reach the Host"),
            (401, "ACL support disabled", OutageKind::Refused, "enable them"),
            (400, "Consul Enterprise", OutageKind::Refused, "leave out --consul-auth-namespace"),
            (500, "No path to datacenter", OutageKind::Refused, "\"dc9\": correct --consul-auth-datacenter"),
            (500, "No cluster leader", OutageKind::NoLeader, "cannot log in to Consul by the auth method \"kube\""),
            (429, "slow down", OutageKind::RateLimited, "cannot log in"),
            (502, "Bad Gateway", OutageKind::Failing, "cannot log in"),
        ] {
            let found = NotLoggedIn::answered(status, words, &settings);
            assert_eq!(found.kind, kind, "{found}");
            assert!(found.words.contains(part) && found.words.ends_with(&format!("Consul answered {status}: {words}")));
            assert!(found.words.find(part) < found.words.find("Consul answered"), "{found}");
            assert!(said.insert(found.words.clone()), "said twice: {found}");
        }
    }
}

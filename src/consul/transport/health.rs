//! How it stands with the certificates and the token: when they end, and whether what their files hold now is in use.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::certificates::Validity;

/// Something by which Consul knows Lictor, or Lictor knows Consul.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Credential {
    /// The certificates of the authorities that vouch for Consul.
    Authorities,
    /// The certificate that is shown to Consul, with its key.
    Certificate,
    /// The ACL token.
    Token,
}

impl Credential {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Authorities, Self::Certificate, Self::Token];

    /// As a label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorities => "authorities",
            Self::Certificate => "certificate",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorities => "the authorities",
            Self::Certificate => "the certificate",
            Self::Token => "the token",
        })
    }
}

/// Says when each credential ends, and which files hold something that is not in use. It is cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CredentialHealth(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    used: BTreeMap<Credential, Validity>,
    faults: BTreeMap<Credential, String>,
    /// The time when the log last said that one ends soon.
    warned: BTreeMap<Credential, Timestamp>,
}

/// The time between two lines in the log that something ends soon.
const WARNED: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

impl CredentialHealth {
    /// The time in which a credential is of use; none where it has no end that is known, or is not used.
    #[must_use]
    pub fn validity(&self, credential: Credential) -> Option<Validity> {
        self.known().used.get(&credential).cloned()
    }

    /// Says of which credentials the file holds something that is not in use, since it does not work.
    #[must_use]
    pub fn is_stale(&self, credential: Credential) -> bool {
        self.known().faults.contains_key(&credential)
    }

    /// Says what is to be known of the credentials, in sentences without what is secret.
    #[must_use]
    pub fn remarks(&self, now: Timestamp) -> Vec<String> {
        let known = self.known();
        let ending = known.used.values().filter_map(|validity| ending(validity, now));
        known.faults.iter().map(|(credential, why)| stale(*credential, why)).chain(ending).collect()
    }

    /// Notes the time of the credential that is in use; none where it has no end that is known.
    pub(super) fn uses(&self, credential: Credential, validity: Option<&Validity>, now: Timestamp) {
        let mut known = self.known();
        match validity {
            Some(validity) => known.used.insert(credential, validity.clone()),
            None => known.used.remove(&credential),
        };
        let Some(words) = validity.and_then(|validity| ending(validity, now)) else {
            known.warned.remove(&credential);
            return;
        };
        if known.warned.get(&credential).is_none_or(|last| now.duration_since(*last) >= WARNED) {
            known.warned.insert(credential, now);
            tracing::warn!("{words}");
        }
    }

    /// Notes why what the file of a credential holds now is not in use; none if it is.
    pub(super) fn fails(&self, credential: Credential, why: Option<&str>) {
        let mut known = self.known();
        let Some(why) = why else {
            if known.faults.remove(&credential).is_some() {
                tracing::info!("{credential} for Consul: the file works again");
            }
            return;
        };
        if known.faults.get(&credential).map(String::as_str) != Some(why) {
            tracing::warn!("{}", stale(credential, why));
            known.faults.insert(credential, why.to_owned());
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stale(credential: Credential, why: &str) -> String {
    format!("{credential} for Consul: the file does not work ({why}); Lictor still uses its previous content")
}

/// Says that something ends soon, or has ended.
fn ending(validity: &Validity, now: Timestamp) -> Option<String> {
    if !validity.ends_soon(now) {
        return None;
    }
    let Validity { from, not_after, .. } = validity;
    let verb = if now > *not_after { "ended" } else { "ends" };
    Some(format!("{from} {verb} at {not_after}: renew it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(moment: &str) -> Timestamp {
        moment.parse().unwrap()
    }

    #[test]
    fn what_ends_soon_and_what_does_not_work_is_said() {
        let health = CredentialHealth::default();
        let now = at("2026-01-01T00:00:00Z");
        let of = |from: &str, until: &str| Validity {
            from: from.to_owned(),
            not_before: at("2025-01-01T00:00:00Z"),
            not_after: at(until),
        };
        health.uses(Credential::Authorities, Some(&of("CA", "2027-01-01T00:00:00Z")), now);
        health.uses(Credential::Token, None, now);
        assert!(health.remarks(now).is_empty());
        health.uses(Credential::Certificate, Some(&of("C", "2026-01-03T00:00:00Z")), now);
        assert_eq!(health.remarks(now), ["C ends at 2026-01-03T00:00:00Z: renew it"]);
        assert_eq!(health.remarks(at("2026-01-04T00:00:00Z")), ["C ended at 2026-01-03T00:00:00Z: renew it"]);
        health.uses(Credential::Certificate, Some(&of("C", "2026-06-01T00:00:00Z")), now);
        assert!(health.remarks(now).is_empty());
        health.fails(Credential::Token, Some("Consul does not know it"));
        assert_eq!(
            health.remarks(now),
            ["the token for Consul: the file does not work (Consul does not know it); Lictor still uses \
              its previous content"]
        );
        assert!(health.is_stale(Credential::Token) && !health.is_stale(Credential::Certificate));
        health.fails(Credential::Token, None);
        assert!(health.remarks(now).is_empty());
    }
}

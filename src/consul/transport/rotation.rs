//! Reads certificates, keys and the token again when their files change.
//!
//! What is new is tried beside what is in use, and takes its place once Consul answers to it. What is under way goes on
//! over the connections that it began on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderValue;
use tokio::time::{Instant, sleep};

use super::connections::{Blueprint, Connections};
use super::files::Files;
use super::followed::Followed;
use super::health::Credential;
use super::settings::chain;
use super::token::{TokenFile, TokenSource};
use super::{ALL_BODIES, Http, body};
use crate::certificates::Validity;

/// The time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// The longest time that a trial may take.
const TRIAL: Duration = Duration::from_secs(5);

/// The time between two questions when the token ends, and after one that had no answer.
const ASK_AGAIN: Duration = Duration::from_secs(300);
const ASK_SOON: Duration = Duration::from_secs(15);

/// A path that every Consul answers, whatever the token may do.
const ANYTHING: &str = "/v1/status/leader";

/// Shows the token of the request itself.
const OWN_TOKEN: &str = "/v1/acl/token/self";

/// The result of a trial.
enum Trial {
    Works,
    /// It does not, and why.
    Fails(String),
    /// Nobody can tell, as while Consul is away.
    Untold,
}

/// Consul's answer about a token.
enum Asked {
    /// It knows the token, and whether and when it ends.
    Known(Option<Validity>),
    /// It does not know the token.
    Unknown(String),
    /// It has no ACLs, or does not tell.
    NotSaid,
    /// It did not answer.
    NoAnswer,
}

/// Follows the files of one client.
struct Follower {
    http: Arc<Http>,
    certificates: Followed<Files>,
    token: Option<Followed<HeaderValue>>,
    /// The time of the next question to Consul when the token ends.
    ask_at: Instant,
    token_validity: Option<Validity>,
}

impl Http {
    /// Reads certificates, keys and the token again when their files change, for as long as this is polled.
    pub async fn follow_files(self: Arc<Self>) {
        let mut follower = Follower {
            certificates: Followed::new(self.files.clone()),
            token: None,
            ask_at: Instant::now(),
            token_validity: None,
            http: self,
        };
        loop {
            follower.look().await;
            sleep(LOOK).await;
        }
    }

    /// Asks Consul for something over these connections, whoever leads: nothing is written. Gives the status and the
    /// body.
    async fn ask(
        &self,
        connections: &Connections,
        path: &str,
        token: Option<HeaderValue>,
    ) -> Result<(u16, Vec<u8>), reqwest::Error> {
        let mut request = connections.client.get(format!("{}{path}", connections.base)).timeout(TRIAL);
        if let Some(token) = token {
            request = request.header("X-Consul-Token", token);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        // What is too long, or broken off, is no answer to anything that is asked here.
        let text = body(answer, ALL_BODIES, &self.bodies).await.map(|text| text.to_vec()).unwrap_or_default();
        Ok((status, text))
    }

    /// Has requests go over connections with what these files hold, if Consul answers over such.
    async fn try_files(&self, files: &Files) -> Trial {
        let former = self.connections();
        let made = Blueprint::new(&self.settings, files)
            .and_then(|blueprint| blueprint.in_place_of(&former).map(|connections| (blueprint, connections)));
        let (blueprint, connections) = match made {
            Ok(made) => made,
            Err(error) => return Trial::Fails(error.to_string()),
        };
        if let Err(error) = self.ask(&connections, ANYTHING, None).await {
            let error = error.without_url();
            let why = chain(&error);
            return match connections.credentials.explain(&error, Timestamp::now()) {
                Some(explained) => Trial::Fails(format!("{explained}; {why}")),
                // Where Consul is away, that tells nothing of the files.
                None if self.ask(&former, ANYTHING, None).await.is_err() => Trial::Untold,
                None => Trial::Fails(why),
            };
        }
        self.go_over(blueprint, connections);
        tracing::info!("new certificates for Consul are in use");
        Trial::Works
    }

    async fn try_token(&self, token: &HeaderValue) -> Trial {
        match self.ask_about(token.clone()).await {
            Asked::Known(_) | Asked::NotSaid => Trial::Works,
            Asked::Unknown(why) => Trial::Fails(why),
            Asked::NoAnswer => Trial::Untold,
        }
    }

    /// Asks Consul about a token.
    async fn ask_about(&self, token: HeaderValue) -> Asked {
        match self.ask(&self.connections(), OWN_TOKEN, Some(token)).await {
            Ok((200, text)) => Asked::Known(validity_of_token(&text)),
            Ok((403, text)) => Asked::Unknown(format!("Consul refuses it: {}", String::from_utf8_lossy(&text).trim())),
            Ok((400..=499, _)) => Asked::NotSaid,
            Ok(_) | Err(_) => Asked::NoAnswer,
        }
    }
}

/// Reads out of Consul's answer when a token ends; none if it does not.
fn validity_of_token(text: &[u8]) -> Option<Validity> {
    let answer: serde_json::Value = serde_json::from_slice(text).ok()?;
    let moment = |field: &str| answer[field].as_str()?.parse::<Timestamp>().ok();
    let not_after = moment("ExpirationTime")?;
    Some(Validity { from: "the token for Consul".to_owned(), not_before: moment("CreateTime")?, not_after })
}

impl Follower {
    async fn look(&mut self) {
        self.look_at_certificates().await;
        self.look_at_token().await;
        self.ask_when_the_token_ends().await;
        self.note();
    }

    async fn look_at_certificates(&mut self) {
        if self.http.files == Files::default() {
            return;
        }
        let settings = self.http.settings.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || Files::read(&settings)).await else { return };
        let now = Instant::now();
        if let Some(candidate) = self.certificates.look(found.map_err(|error| error.to_string()), now) {
            match self.http.try_files(&candidate).await {
                Trial::Works => self.certificates.works(candidate),
                Trial::Fails(why) => self.certificates.fails(Some(why), now),
                Trial::Untold => self.certificates.fails(None, now),
            }
        }
        // One of the two is told of: the trial does not say which of them is at fault.
        let of = if self.http.files.identity.is_some() { Credential::Certificate } else { Credential::Authorities };
        self.http.health.fails(of, self.certificates.fault());
    }

    async fn look_at_token(&mut self) {
        let Some(file) = self.http.token_file() else { return };
        let Some(held) = file.held() else { return };
        let found = file.read().await;
        let now = Instant::now();
        let followed = self.token.get_or_insert_with(|| Followed::new(held));
        if let Some(candidate) = followed.look(found, now) {
            match self.http.try_token(&candidate).await {
                Trial::Works => {
                    file.hold(candidate.clone());
                    followed.works(candidate);
                    self.ask_at = now;
                    tracing::info!("a new token for Consul is in use");
                }
                Trial::Fails(why) => followed.fails(Some(why), now),
                Trial::Untold => followed.fails(None, now),
            }
        }
        self.http.health.fails(Credential::Token, followed.fault());
    }

    async fn ask_when_the_token_ends(&mut self) {
        let now = Instant::now();
        if now < self.ask_at || !self.http.has_lasting_token() {
            return;
        }
        let Some(token) = self.http.present_token().await else { return };
        let answered = self.http.ask_about(token).await;
        self.ask_at = now + if matches!(answered, Asked::NoAnswer) { ASK_SOON } else { ASK_AGAIN };
        // One that Consul does not know any more has ended, as was known before.
        if let Asked::Known(validity) = answered {
            self.token_validity = validity;
        }
    }

    /// Notes what is in use.
    fn note(&self) {
        let Http { health, .. } = &*self.http;
        let now = Timestamp::now();
        let connections = self.http.connections();
        let credentials = &connections.credentials;
        health.uses(Credential::Authorities, credentials.authorities(), now);
        health.uses(Credential::Certificate, credentials.identity(), now);
        health.uses(Credential::Token, self.token_validity.as_ref(), now);
    }
}

impl Http {
    /// The file that the token comes from, where it comes from one.
    fn token_file(&self) -> Option<&TokenFile> {
        if let Some(TokenSource::File(file)) = &self.token { Some(file) } else { None }
    }

    /// Says whether there is a token that somebody else made, and renews.
    fn has_lasting_token(&self) -> bool {
        matches!(self.token, Some(TokenSource::File(_) | TokenSource::Value(_)))
    }

    async fn present_token(&self) -> Option<HeaderValue> {
        self.token.as_ref()?.header().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Consul 1.22.7 answers `GET /v1/acl/token/self`, cut down.
    #[test]
    fn the_end_of_a_token_is_read() {
        let lasting = r#"{"AccessorID":"a","SecretID":"s","Local":false,"CreateTime":"2026-11-29T14:00:00.5Z"}"#;
        assert_eq!(validity_of_token(lasting.as_bytes()), None);
        let ending = r#"{"SecretID":"s","ExpirationTTL":"1h0m0s","ExpirationTime":"2026-11-29T15:00:00.5Z",
                         "CreateTime":"2026-11-29T14:00:00.5Z"}"#;
        let validity = validity_of_token(ending.as_bytes()).unwrap();
        assert_eq!(validity.not_after.to_string(), "2026-11-29T15:00:00.5Z");
        assert_eq!(validity.not_before.to_string(), "2026-11-29T14:00:00.5Z");
        assert_eq!(validity_of_token(b"<html>"), None);
    }
}

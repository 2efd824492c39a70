//! Requests and answers with their meaning: JSON in, JSON out, and what a refusal says about its effect.
//!
//! In: paths and bodies. Out: decoded answers, [`Unavailable`] where a read did not work, [`Failed`] where a
//! write did not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

pub use super::path::path;
use super::tenancy::Tenancy;
use super::transport::{Method, Request, Response, Transport, TransportError};
use super::wire::{AgentSelf, Fault};
use crate::model::reasons::OutageKind;
use crate::ports::Unavailable;

/// The longest time that an answer may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Consul's API over some transport.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

/// A decoded answer to a read.
#[derive(Debug)]
pub struct Answer<T> {
    /// The value that was asked for.
    pub value: T,
    /// `X-Consul-Index`; 0 where there is none.
    pub index: u64,
}

/// The outcome of a write that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It surely had no effect, and not by its own fault.
    NotTried(Unavailable),
    /// No answer came: it may have been carried out, or may still be.
    NoAnswer(Unavailable),
    /// Consul answered that something went wrong in it: it may have been carried out.
    Stumbled(Unavailable),
    /// Consul refuses this very request.
    Refused {
        /// The HTTP status, of the 400s.
        status: u16,
        /// Consul's own words.
        words: String,
        /// The answer as it is.
        body: Bytes,
    },
}

impl Client {
    /// A client over a transport.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    /// The part of Consul that requests are for.
    pub fn tenancy(&self) -> &Tenancy {
        self.transport.tenancy()
    }

    /// Reads. An answer that ACLs have cut short is an error, as is everything but success: nothing may ever
    /// be concluded from what is not in such an answer.
    pub async fn get<T: DeserializeOwned>(&self, path: String) -> Result<Answer<T>, Unavailable> {
        self.read(get(path, REQUEST_TIMEOUT)).await
    }

    /// Asks at which Raft index what a path shows changed last. The body of the answer is not looked at: ask for what there
    /// is little of.
    pub async fn index(&self, path: String) -> Result<u64, Unavailable> {
        let answer = self.get::<serde::de::IgnoredAny>(path).await?;
        match answer.index {
            0 => Err(Unavailable::transient("Consul does not say at which index it stands (X-Consul-Index)")),
            index => Ok(index),
        }
    }

    /// Reads by a query that waits at most `wait` for something newer than `index`, in whole seconds.
    pub async fn wait<T: DeserializeOwned>(
        &self,
        path: String,
        index: u64,
        wait: Duration,
    ) -> Result<Answer<T>, Unavailable> {
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{mark}index={index}&wait={}s", wait.as_secs().max(1));
        self.read(get(path, wait + REQUEST_TIMEOUT)).await
    }

    /// Reads over a connection that nothing is sent over afterwards.
    pub async fn get_once<T: DeserializeOwned>(&self, path: String) -> Result<Answer<T>, Unavailable> {
        self.read(Request { last_of_connection: true, ..get(path, REQUEST_TIMEOUT) }).await
    }

    /// Reads what may not be there, for a write: it fails as that would.
    pub async fn get_if_there<T: DeserializeOwned>(&self, path: String) -> Result<Option<T>, Failed> {
        let response = self.send(get(path, REQUEST_TIMEOUT)).await.map_err(not_answered)?;
        match response.status {
            200 => decode(&response).map(|answer| Some(answer.value)).map_err(Failed::Stumbled),
            404 => Ok(None),
            status => Err(failed(status, &response)),
        }
    }

    /// Writes, and answers with the body.
    pub async fn put(&self, path: String, body: Option<Bytes>) -> Result<Bytes, Failed> {
        let request = Request { method: Method::Put, path, body, timeout: REQUEST_TIMEOUT, last_of_connection: false };
        let response = self.send(request).await.map_err(not_answered)?;
        match response.status {
            200..=299 => Ok(response.body),
            status => Err(failed(status, &response)),
        }
    }

    /// Carries out a transaction, whose operations the body holds.
    pub async fn transact(&self, body: Bytes) -> Result<Bytes, Failed> {
        self.put(path(&["txn"], &[]), Some(self.tenancy().of_transaction(body))).await
    }

    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<Answer<T>, Unavailable> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..LIMITED_TRIES {
            let response = self.send(request.clone()).await.map_err(|error| unreachable(&error))?;
            if response.status != 429 {
                return decode(&response);
            }
            // One of many reads that Consul holds back must not have all of them begin again.
            tokio::time::sleep(response.retry_after.unwrap_or(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let response = self.send(request).await.map_err(|error| unreachable(&error))?;
        decode(&response)
    }

    /// Makes sure that what lists do not show is not there. Consul says when ACLs have cut an answer short, but
    /// not to whom comes without a token.
    pub async fn may_conclude(&self) -> Result<(), Unavailable> {
        if self.transport.has_token() {
            return Ok(());
        }
        let acl = self.get::<AgentSelf>(path(&["agent", "self"], &[])).await?.value.debug_config;
        if acl.enabled && acl.resolver.default_policy == "deny" {
            return Err(Unavailable::said(
                OutageKind::Refused,
                "Consul has ACLs that deny by default, and no token is given: what it shows may not be all there is; \
                 set CONSUL_HTTP_TOKEN or --consul-token-file",
            ));
        }
        Ok(())
    }

    /// Sends a request; where there are several addresses, to one after the other until one does better.
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let request = Request { path: self.transport.tenancy().of_path(request.path), ..request };
        for _ in 1..self.transport.addresses() {
            let answer = self.transport.send(request.clone()).await;
            if !may_be_sent_again(request.method, &answer) {
                return answer;
            }
        }
        self.transport.send(request).await
    }
}

/// Says whether a request that ended so may go to another server: it should fare better there, and has surely had no
/// effect here.
fn may_be_sent_again(method: Method, answer: &Result<Response, TransportError>) -> bool {
    match answer {
        // The login has been tried at all addresses.
        Err(TransportError::Unsendable(_) | TransportError::NotLoggedIn(_)) => false,
        Err(TransportError::NotSent(_)) => true,
        Err(TransportError::NoAnswer(_)) => method == Method::Get,
        Ok(response) if response.status == 429 => true,
        Ok(response) => {
            response.status >= 500 && (method == Method::Get || Fault::of(&words(response)).is_before_the_write())
        }
    }
}

fn unreachable(error: &TransportError) -> Unavailable {
    let kind = match error {
        TransportError::NotLoggedIn(why) => why.kind,
        TransportError::NotSent(_) | TransportError::Unsendable(_) | TransportError::NoAnswer(_) => {
            OutageKind::Unreachable
        }
    };
    Unavailable::said(kind, &error.to_string())
}

fn not_answered(error: TransportError) -> Failed {
    match error {
        TransportError::NotSent(_) | TransportError::NotLoggedIn(_) => Failed::NotTried(unreachable(&error)),
        TransportError::NoAnswer(_) => Failed::NoAnswer(unreachable(&error)),
        // As Consul refuses a bad one.
        TransportError::Unsendable(words) => Failed::Refused { status: 400, words, body: Bytes::new() },
    }
}

/// The most times that a read that Consul limits (429) is tried again before it fails.
const LIMITED_TRIES: u32 = 6;
/// The time to wait before that, where Consul does not say: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

fn get(path: String, timeout: Duration) -> Request {
    Request { method: Method::Get, path, body: None, timeout, last_of_connection: false }
}

fn decode<T: DeserializeOwned>(response: &Response) -> Result<Answer<T>, Unavailable> {
    if response.status != 200 {
        return Err(outage(response.status, response));
    }
    if response.filtered {
        return Err(Unavailable::said(
            OutageKind::Refused,
            "the Consul token may not read everything, so that nothing can be concluded from what Consul shows: \
             it needs read on node_prefix \"\" and service_prefix \"\"",
        ));
    }
    match serde_json::from_slice(&response.body) {
        Ok(value) => Ok(Answer { value, index: response.index.unwrap_or_default() }),
        Err(error) => {
            let advice = if is_page(&words(response)) { ", but a page of HTML: correct --consul-address" } else { "" };
            Err(Unavailable::said(
                OutageKind::Failing,
                &format!("Consul's answer is not understood: it is not the JSON of Consul's API{advice} ({error})"),
            ))
        }
    }
}

fn words(response: &Response) -> String {
    String::from_utf8_lossy(&response.body).trim().to_owned()
}

/// Says whether an answer is a page for browsers.
fn is_page(words: &str) -> bool {
    words.starts_with('<')
}

/// Describes an answer that is no success, where no single registration is to blame.
fn outage(status: u16, response: &Response) -> Unavailable {
    let words = words(response);
    let fault = Fault::of(&words);
    let message = match status {
        403 if fault == Fault::UnknownToken => "the token is not known to Consul".to_owned(),
        400 if fault == Fault::NotEnterprise => {
            "this Consul is no Enterprise and has neither namespaces nor partitions: \
             leave out --consul-namespace and --consul-partition"
                .to_owned()
        }
        500 if fault == Fault::UnknownDatacenter => {
            format!(
                "Consul knows no way to the datacenter of --consul-datacenter: correct it, or join the datacenters ({words})"
            )
        }
        429 => format!("Consul limits our requests: {words}"),
        // Go's server says so.
        400 if words.contains("HTTP request to an HTTPS server") => {
            format!("Consul's port wants TLS: write https:// in --consul-address; Consul answered {status}: {words}")
        }
        // Lists of Consul are never missing, and never elsewhere.
        300..=399 | 404 => format!(
            "what answers at Consul's address is not Consul's API: correct --consul-address; it answered {status}: {}",
            if is_page(&words) { "a page of HTML" } else { &words }
        ),
        _ => format!("Consul answered {status}: {words}"),
    };
    Unavailable { retry_after: response.retry_after, ..Unavailable::said(fault.outage(status), &message) }
}

fn failed(status: u16, response: &Response) -> Failed {
    let words = words(response);
    let fault = Fault::of(&words);
    let outage = outage(status, response);
    match status {
        401 | 407 | 429 => Failed::NotTried(outage),
        400 if fault == Fault::NotEnterprise => Failed::NotTried(outage),
        403 if fault == Fault::UnknownToken => Failed::NotTried(outage),
        400..=499 => Failed::Refused { status, words, body: response.body.clone() },
        _ if fault.is_before_the_write() => Failed::NotTried(outage),
        _ => Failed::Stumbled(outage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::login::NotLoggedIn;

    #[test]
    fn what_another_server_may_be_asked() {
        let answer = |status: u16, words: &'static str| {
            let body = Bytes::from_static(words.as_bytes());
            Ok(Response { status, index: None, filtered: false, retry_after: None, body })
        };
        let (none, unsent) =
            (|| Err(TransportError::NoAnswer(String::new())), || Err(TransportError::NotSent(String::new())));
        let not_logged_in = NotLoggedIn { kind: OutageKind::Refused, words: String::new() };
        let table = [
            (answer(200, "{}"), false, false),
            (answer(404, ""), false, false),
            (answer(409, "{}"), false, false),
            (answer(429, "rate limit exceeded, try again later"), true, true),
            (answer(500, "No cluster leader"), true, true),
            (answer(500, "leadership lost while committing log"), true, false),
            (answer(502, "Bad Gateway"), true, false),
            (none(), true, false),
            (unsent(), true, true),
            (Err(TransportError::Unsendable(String::new())), false, false),
            (Err(TransportError::NotLoggedIn(not_logged_in)), false, false),
        ];
        for (answer, reads, writes) in table {
            assert_eq!(may_be_sent_again(Method::Get, &answer), reads, "reading: {answer:?}");
            assert_eq!(may_be_sent_again(Method::Put, &answer), writes, "writing: {answer:?}");
        }
    }

    #[test]
    fn what_a_refusal_says_about_its_effect() {
        let answer = |status: u16, words: &'static str| {
            let body = Bytes::from_static(words.as_bytes());
            failed(status, &Response { status, index: None, filtered: false, retry_after: None, body })
        };
        let not_tried = |failed: Failed| matches!(failed, Failed::NotTried(_));
        assert!(not_tried(answer(429, "rate limit exceeded, try again later")));
        assert!(not_tried(answer(503, "rate limit exceeded, try again later or against a different server")));
        assert!(not_tried(answer(500, "No cluster leader")));
        assert!(not_tried(answer(403, "rpc error making call: ACL not found")));
        assert!(matches!(answer(403, "Permission denied"), Failed::Refused { status: 403, .. }));
        assert!(matches!(answer(409, "{}"), Failed::Refused { status: 409, .. }));
        assert!(matches!(answer(500, "leadership lost while committing log"), Failed::Stumbled(_)));
        assert!(matches!(answer(502, "Bad Gateway"), Failed::Stumbled(_)));
        assert!(matches!(answer(503, "upstream reset"), Failed::Stumbled(_)));
    }
}

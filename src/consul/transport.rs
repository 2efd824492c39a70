//! One request to Consul and its answer, and nothing of what they mean.
//!
//! In: a [`Request`]. Out: a [`Response`] of whatever status, or whether the request may have had an effect
//! all the same. [`Http`] is the real one; the simulation has its own.
//!
//! - `settings`: what the user says of Consul, and what is wrong with it.
//! - `files`: the files of certificates and keys.
//! - `connections`: the connections to one of Consul's addresses.
//! - `token`: the ACL token.
//! - `login`: the ACL token of a login, which is renewed.
//! - `rotation`: reads files again that change; `followed` says when what they hold takes its place.
//! - `health`: when certificates and token end.

mod connections;
mod files;
mod followed;
mod health;
mod login;
mod rotation;
mod settings;
mod token;

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use jiff::Timestamp;
use reqwest::RequestBuilder;
use reqwest::header::{CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use self::connections::{Blueprint, Connections};
use self::files::Files;
pub use self::health::{Credential, CredentialHealth};
use self::login::is_unknown_token;
pub use self::login::{LoggedIn, Logins};
pub use self::settings::{BadSettings, ConsulSettings};
use self::settings::{chain, read};
use self::token::TokenSource;
use crate::consul::login::NotLoggedIn;
use crate::consul::tenancy::Tenancy;

/// Says what a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The request reads.
    Get,
    /// The request writes.
    Put,
    /// The request logs in or out.
    Post,
}

/// A request to Consul's HTTP API.
#[derive(Clone, Debug)]
pub struct Request {
    /// Says whether it reads or writes.
    pub method: Method,
    /// Path and query, percent-encoded, beginning with `/v1/`.
    pub path: String,
    /// The body, as JSON.
    pub body: Option<Bytes>,
    /// For all of it, the wait for a connection included.
    pub timeout: Duration,
    /// True if the connection is closed after it, so that the next such request makes one of its own: what answers
    /// there may be another agent behind the same address.
    pub last_of_connection: bool,
}

/// An answer, of any status.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The header `X-Consul-Index`.
    pub index: Option<u64>,
    /// `X-Consul-Results-Filtered-By-ACLs`: the answer is only what the token may see.
    pub filtered: bool,
    /// `Retry-After`, where it is in seconds.
    pub retry_after: Option<Duration>,
    /// The body, whole.
    pub body: Bytes,
}

/// Says why there is no answer. The text is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request never left: it surely had no effect.
    #[error("{0}")]
    NotSent(String),
    /// Nothing can carry this very request, such as one whose URL is too long: it never left, and never will.
    #[error("{0}")]
    Unsendable(String),
    /// It was sent, or may have been: it may have been carried out, or still be.
    #[error("{0}")]
    NoAnswer(String),
    /// It never left, because Lictor is not logged in.
    #[error(transparent)]
    NotLoggedIn(NotLoggedIn),
}

/// Carries requests to Consul.
pub trait Transport: Send + Sync {
    /// Sends a request and waits for its answer.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>>;

    /// Counts the addresses that are tried in turn. After a request that fared ill the next one goes to the next
    /// address.
    fn addresses(&self) -> usize;

    /// Says whether requests carry a token. To those without one Consul does not say what it leaves out.
    fn has_token(&self) -> bool;

    /// Names the part of Consul that requests are for. Whoever makes a request puts it in.
    fn tenancy(&self) -> &Tenancy;
}

/// Says whether requests may be made: for as long as someone else grants it.
#[derive(Clone, Debug)]
pub struct WriteLease {
    /// The time until which a request may begin; none if it may not at all.
    until: watch::Receiver<Option<Instant>>,
    /// The longest time that one may take after that; none where a fence in Consul keeps out what comes later.
    margin: Option<Duration>,
}

impl WriteLease {
    /// Requests may begin until then. What is under way a margin later is given up; where the lease is renewed meanwhile,
    /// a margin after its new end.
    #[must_use]
    pub fn new(until: watch::Receiver<Option<Instant>>, margin: Duration) -> Self {
        Self { until, margin: Some(margin) }
    }

    /// Requests may begin until then. A write that is under way goes on: each begins with a fence, so it cannot land once
    /// another one writes.
    #[must_use]
    pub fn fenced(until: watch::Receiver<Option<Instant>>) -> Self {
        Self { until, margin: None }
    }

    fn may_begin(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Carries a request on for as long as that may be; none if it was given up.
    async fn carry_on<T>(&self, exchange: impl Future<Output = T>) -> Option<T> {
        let Some(margin) = self.margin else { return Some(exchange.await) };
        let mut exchange = std::pin::pin!(exchange);
        let may_go_on = || self.until.borrow().is_some_and(|until| Instant::now() < until + margin);
        // Looked at before anything moves: a process that wakes late goes no further.
        let exchange =
            poll_fn(|context| if may_go_on() { exchange.as_mut().poll(context).map(Some) } else { Poll::Ready(None) });
        tokio::select! {
            biased;
            answered = exchange => answered,
            () = self.ended(margin) => None,
        }
    }

    /// Ready a margin after the end of the lease, however often it is renewed until then.
    async fn ended(&self, margin: Duration) {
        let mut until = self.until.clone();
        loop {
            let Some(ends) = until.borrow_and_update().map(|until| until + margin) else { return };
            tokio::select! {
                biased;
                Ok(()) = until.changed() => {}
                () = sleep_until(ends) => return,
            }
        }
    }
}

/// The most requests under way at once. Consul serves 200 connections for one client address by default
/// (`limits.http_max_conns_per_client`), and we may not be the only one behind ours.
const CONNECTIONS: usize = 64;

/// This is said of a request that may not be made.
const NOT_LEADING: &str = "this replica does not lead any more";

/// The longest that we wait because we were told to: a proxy may say anything.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The most bytes of answers that are read at a time, all of them together, and so the longest one. A row of ours takes about
/// 1 KiB, and one answer holds at most those of a whole agent; what answers at Consul's address may send anything, to as
/// many requests as there may be at once.
const ALL_BODIES: usize = 128 << 20;

/// The longest answer to a write or a login. That to a transaction repeats what was written, which is at most 512 KiB.
const LONGEST_OF_WRITE: usize = 8 << 20;

impl Method {
    /// The longest body of an answer that is read.
    fn longest_body(self) -> usize {
        match self {
            Self::Get => ALL_BODIES,
            Self::Put | Self::Post => LONGEST_OF_WRITE,
        }
    }
}

/// Says why an answer did not come to its end.
enum Interrupted {
    /// The connection or the protocol failed.
    Failed(reqwest::Error),
    /// Its body is longer than it may be.
    TooLong(usize),
    /// The bodies that are being read are longer than they may be together.
    TooLongTogether,
}

/// Counts the bytes of all answers that are being read.
#[derive(Clone, Debug, Default)]
struct Bodies(Arc<AtomicUsize>);

/// The bytes of one of them, until it is read.
struct OneBody<'a> {
    all: &'a Bodies,
    bytes: usize,
}

impl OneBody<'_> {
    /// Counts so many more; not where that would be too many together.
    fn grow(&mut self, bytes: usize) -> bool {
        let has_room = |all: usize| all.checked_add(bytes).filter(|all| *all <= ALL_BODIES);
        let grows = self.all.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room).is_ok();
        self.bytes += if grows { bytes } else { 0 };
        grows
    }
}

impl Drop for OneBody<'_> {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a body, up to a limit of its own and one of all together.
async fn body(mut incoming: reqwest::Response, longest: usize, all: &Bodies) -> Result<Bytes, Interrupted> {
    let mut read = OneBody { all, bytes: 0 };
    let mut body = BytesMut::new();
    while let Some(chunk) = incoming.chunk().await.map_err(Interrupted::Failed)? {
        if body.len() + chunk.len() > longest {
            return Err(Interrupted::TooLong(longest));
        }
        if !read.grow(chunk.len()) {
            return Err(Interrupted::TooLongTogether);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The connections that requests go over now, and what further ones are made of.
struct Present {
    blueprint: Arc<Blueprint>,
    connections: Connections,
}

/// Consul over HTTP/1.1.
pub struct Http {
    settings: ConsulSettings,
    /// The content of the files at the start.
    files: Files,
    present: Arc<Lock<Present>>,
    token: Option<TokenSource>,
    health: CredentialHealth,
    slots: Semaphore,
    bodies: Bodies,
    write_lease: Option<WriteLease>,
}

impl Http {
    /// Sets up a client. Connections are made when they are needed. The process's TLS provider must have
    /// been installed.
    pub fn new(settings: &ConsulSettings) -> Result<Self, BadSettings> {
        let files = Files::read(settings)?;
        let of_token = settings.login.as_ref().map(|login| &login.bearer_token_file).or(settings.token_file.as_ref());
        if let Some(file) = of_token {
            // Read again when it is needed; but a name that leads nowhere is a mistake.
            read(file)?;
        }
        let blueprint = Blueprint::new(settings, &files)?;
        if let Some(fault) = blueprint.credentials().fault_at(Timestamp::now()) {
            tracing::warn!("{fault}");
        }
        let connections = blueprint.connections(0)?;
        let http = Self {
            settings: settings.clone(),
            files,
            present: Arc::new(Lock::new(Present { blueprint: Arc::new(blueprint), connections })),
            token: None,
            health: CredentialHealth::default(),
            slots: Semaphore::new(CONNECTIONS),
            bodies: Bodies::default(),
            write_lease: None,
        };
        Ok(Self { token: TokenSource::new(settings, &http), ..http })
    }

    /// A client that goes over the same connections, and adds no token to what it sends.
    fn without_token(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            files: self.files.clone(),
            present: Arc::clone(&self.present),
            token: None,
            health: self.health.clone(),
            slots: Semaphore::new(CONNECTIONS),
            bodies: self.bodies.clone(),
            write_lease: None,
        }
    }

    /// Says how it stands with certificates and token, once their files are followed.
    #[must_use]
    pub fn credential_health(&self) -> CredentialHealth {
        self.health.clone()
    }

    /// Makes requests only while the write lease holds.
    #[must_use]
    pub fn with_write_lease(self, write_lease: WriteLease) -> Self {
        Self { write_lease: Some(write_lease), ..self }
    }

    /// Begins to keep a login, where the settings say so, before the first request needs it.
    pub fn begin_login(&self) {
        if let Some(TokenSource::Login(keeper)) = &self.token {
            keeper.begin();
        }
    }

    /// Logs in, where the settings say so, and says what may be said of it.
    pub async fn log_in(&self) -> Result<Option<LoggedIn>, TransportError> {
        match &self.token {
            Some(TokenSource::Login(keeper)) => keeper.logged_in().await.map(Some),
            _ => Ok(None),
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> Connections {
        self.present().connections.clone()
    }

    /// Has requests from here on go over new connections, after one fared ill over these: to the next address, or
    /// the next one of those that its name has now. A server that has lost its leader keeps its connections open,
    /// and only another server knows better.
    fn move_on(&self, from: &Connections) {
        let mut present = self.present();
        if present.connections.turn != from.turn {
            // After another request.
            return;
        }
        match present.blueprint.connections(from.turn.wrapping_add(1)) {
            Ok(next) => {
                if next.address != from.address {
                    tracing::debug!(from = %from.address, to = %next.address, "asking Consul at its next address");
                }
                present.connections = next;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot open new connections to Consul; Lictor uses the existing ones");
            }
        }
    }

    /// Has requests from here on go over these connections.
    fn go_over(&self, blueprint: Blueprint, connections: Connections) {
        *self.present() = Present { blueprint: Arc::new(blueprint), connections };
    }

    /// Sends a request with the token as it is now; and once more with another one, where Consul has not carried it out
    /// because it does not know the token any more, and Lictor can log in again.
    async fn deliver(&self, request: Request) -> Result<Response, TransportError> {
        let Some(source) = &self.token else { return self.exchange(request, None).await };
        let begun = Instant::now();
        let left = || request.timeout.saturating_sub(begun.elapsed());
        let token = source.token(left()).await?;
        let answered = self.exchange(Request { timeout: left(), ..request.clone() }, Some(token.header())).await?;
        if !is_unknown_token(&answered) || !source.unknown(&token) {
            return Ok(answered);
        }
        drop(token);
        let token = source.token(left()).await?;
        self.exchange(Request { timeout: left(), ..request.clone() }, Some(token.header())).await
    }

    /// Sends a request with this token, and waits for its answer.
    async fn exchange(&self, request: Request, token: Option<&HeaderValue>) -> Result<Response, TransportError> {
        let connections = self.connections();
        let begun = Instant::now();
        let (longest, longest_body) = (request.timeout, request.method.longest_body());
        let Ok(Ok(_slot)) = tokio::time::timeout(longest, self.slots.acquire()).await else {
            return Err(not_sent(&connections, "too many requests wait for their answers"));
        };
        let outgoing = outgoing(&connections, request, token).timeout(longest.saturating_sub(begun.elapsed()));
        // The last moment before it leaves; a process may have been stopped anywhere before.
        if self.write_lease.as_ref().is_some_and(|lease| !lease.may_begin()) {
            return Err(TransportError::NotSent(NOT_LEADING.to_owned()));
        }
        let exchange = async {
            let incoming = outgoing.send().await.map_err(Interrupted::Failed)?;
            let (status, headers) = (incoming.status().as_u16(), incoming.headers().clone());
            Ok((status, headers, body(incoming, longest_body, &self.bodies).await?))
        };
        let answered = match &self.write_lease {
            None => Some(exchange.await),
            Some(write_lease) => write_lease.carry_on(exchange).await,
        };
        let Some(answered) = answered else {
            return Err(TransportError::NoAnswer(NOT_LEADING.to_owned()));
        };
        let answered = answered.map_err(|why| match why {
            Interrupted::Failed(error) => failure(&connections, error),
            Interrupted::TooLong(longest) => TransportError::NoAnswer(format!(
                "Consul at {}: the answer is longer than {} MiB",
                connections.address,
                longest >> 20
            )),
            Interrupted::TooLongTogether => TransportError::NoAnswer(format!(
                "Consul at {}: the answers under way are longer than {} MiB together",
                connections.address,
                ALL_BODIES >> 20
            )),
        });
        if fared_ill(answered.as_ref().map(|(status, ..)| *status)) {
            self.move_on(&connections);
        }
        let (status, headers, body) = answered?;
        Ok(Response {
            status,
            index: text(&headers, "X-Consul-Index").and_then(|index| index.parse().ok()),
            filtered: text(&headers, "X-Consul-Results-Filtered-By-ACLs") == Some("true"),
            retry_after: retry_after(&headers),
            body,
        })
    }
}

/// Says why a request has no answer.
fn failure(connections: &Connections, error: reqwest::Error) -> TransportError {
    // The URL has our filters in it, which tell a user nothing.
    let error = error.without_url();
    let mut why = chain(&error);
    if let Some(explained) = connections.credentials.explain(&error, Timestamp::now()) {
        // What to do comes first: long words are cut.
        why = format!("{explained}; {why}");
    }
    if error.is_builder() {
        TransportError::Unsendable(format!("the request to Consul cannot be made: {why}"))
    } else if error.is_connect() {
        not_sent(connections, &why)
    } else {
        TransportError::NoAnswer(format!("Consul at {}: {why}", connections.address))
    }
}

/// Builds a request, with this token.
fn outgoing(connections: &Connections, request: Request, token: Option<&HeaderValue>) -> RequestBuilder {
    let method = match request.method {
        Method::Get => reqwest::Method::GET,
        Method::Put => reqwest::Method::PUT,
        Method::Post => reqwest::Method::POST,
    };
    let mut outgoing = connections.client.request(method, format!("{}{}", connections.base, request.path));
    if let Some(token) = token {
        outgoing = outgoing.header("X-Consul-Token", token);
    }
    if request.last_of_connection {
        outgoing = outgoing.header(CONNECTION, "close");
    }
    if let Some(body) = request.body {
        outgoing = outgoing.header("Content-Type", "application/json").body(body);
    }
    outgoing
}

/// A header's value that no log shows.
fn sensitive(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let mut value = HeaderValue::from_str(token).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

fn not_sent(connections: &Connections, why: &str) -> TransportError {
    TransportError::NotSent(format!("Consul at {}: {why}", connections.address))
}

impl Transport for Http {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        Box::pin(self.deliver(request))
    }

    fn addresses(&self) -> usize {
        self.present().blueprint.addresses()
    }

    fn has_token(&self) -> bool {
        self.token.is_some()
    }

    fn tenancy(&self) -> &Tenancy {
        &self.settings.tenancy
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

/// Says whether a request that ended so might have fared better over another connection, perhaps to another server.
fn fared_ill(ended: Result<u16, &TransportError>) -> bool {
    match ended {
        // Consul answers 429 where it limits requests to this server, and 500 where it has no leader.
        Ok(status) => status == 429 || status >= 500,
        Err(TransportError::NotSent(_) | TransportError::NoAnswer(_)) => true,
        Err(TransportError::Unsendable(_) | TransportError::NotLoggedIn(_)) => false,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use reqwest::header::HeaderValue;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_wait_that_is_asked_for_is_heeded_up_to_a_limit() {
        for (value, heeded) in [("1", Some(1)), ("30", Some(30)), ("300", Some(30)), ("soon", None)] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), heeded.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn what_may_fare_better_over_another_connection() {
        let (lost, unsent) = (TransportError::NoAnswer(String::new()), TransportError::NotSent(String::new()));
        for ended in [Ok(429), Ok(500), Ok(502), Ok(503), Err(&lost), Err(&unsent)] {
            assert!(fared_ill(ended), "{ended:?}");
        }
        let unsendable = TransportError::Unsendable(String::new());
        for ended in [Ok(200), Ok(400), Ok(403), Ok(404), Ok(409), Ok(413), Err(&unsendable)] {
            assert!(!fared_ill(ended), "{ended:?}");
        }
    }

    fn a_get(path: String) -> Request {
        let timeout = Duration::from_secs(5);
        Request { method: Method::Get, path, body: None, timeout, last_of_connection: false }
    }

    fn set_up(addresses: &[String]) -> Http {
        // Another test may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = ConsulSettings { addresses: addresses.to_vec(), ..ConsulSettings::new("x:1") };
        Http::new(&settings).unwrap()
    }

    /// A server that answers every request over every connection so, and what it was asked over how many connections.
    async fn server(answer: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while stream.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                        if seen.ends_with(b"\r\n\r\n") {
                            seen.clear();
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (address, accepted)
    }

    const WELL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LEADERLESS: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 17\r\n\r\nNo cluster leader";

    #[tokio::test]
    async fn a_url_that_is_too_long_is_the_requests_own_fault() {
        let http = set_up(&["http://127.0.0.1:1".to_owned()]);
        let error = http.send(a_get(format!("/v1/{}", "x".repeat(70_000)))).await.unwrap_err();
        assert!(matches!(&error, TransportError::Unsendable(why) if why.contains("cannot be made")), "{error:?}");
        let error = http.send(a_get("/v1/agent/self".to_owned())).await.unwrap_err();
        assert!(matches!(error, TransportError::NotSent(_)), "{error:?}");
    }

    #[tokio::test]
    async fn connections_are_kept_while_all_is_well_and_given_up_after_trouble() {
        let (well, accepted) = server(WELL).await;
        let http = set_up(&[well]);
        for _ in 0..3 {
            assert_eq!(http.send(a_get("/v1/x".to_owned())).await.unwrap().status, 200);
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
        let (leaderless, accepted) = server(LEADERLESS).await;
        let http = set_up(&[leaderless]);
        for _ in 0..3 {
            assert_eq!(http.send(a_get("/v1/x".to_owned())).await.unwrap().status, 500);
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_a_limit() {
        let (address, _) = server(LEADERLESS).await;
        let client = set_up(std::slice::from_ref(&address)).connections().client.clone();
        for (limit, is_read) in [(16, false), (17, true)] {
            let incoming = client.get(&address).send().await.unwrap();
            let body = body(incoming, limit, &Bodies::default()).await;
            assert_eq!(body.is_ok_and(|body| body == "No cluster leader"), is_read, "{limit}");
        }
    }

    #[tokio::test]
    async fn addresses_are_tried_in_turn() {
        let ((sick, _), (well, accepted)) = (server(LEADERLESS).await, server(WELL).await);
        let http = set_up(&[sick, "http://127.0.0.1:1".to_owned(), well]);
        assert_eq!(http.addresses(), 3);
        assert_eq!(http.send(a_get("/v1/x".to_owned())).await.unwrap().status, 500);
        assert!(matches!(http.send(a_get("/v1/x".to_owned())).await, Err(TransportError::NotSent(_))));
        for _ in 0..5 {
            assert_eq!(http.send(a_get("/v1/x".to_owned())).await.unwrap().status, 200);
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "one that is well is stayed with");
    }

    #[test]
    fn answers_have_a_limit_together() {
        let all = Bodies::default();
        let mut first = OneBody { all: &all, bytes: 0 };
        assert!(first.grow(ALL_BODIES - 10));
        let mut second = OneBody { all: &all, bytes: 0 };
        assert!(second.grow(7) && !second.grow(4) && second.grow(3));
        drop(first);
        assert!(second.grow(ALL_BODIES - 10) && !second.grow(1) && !second.grow(usize::MAX));
        drop(second);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
        assert!(Method::Put.longest_body() < Method::Get.longest_body());
    }

    /// However many requests fail at once, no address is passed over.
    #[tokio::test]
    async fn requests_that_fail_together_are_one_turn() {
        let ((sick, _), (well, _)) = (server(LEADERLESS).await, server(WELL).await);
        let http = set_up(&[sick, well]);
        let first = http.connections().clone();
        http.move_on(&first);
        http.move_on(&first);
        assert_eq!(http.connections().turn, 1);
        assert_eq!(http.send(a_get("/v1/x".to_owned())).await.unwrap().status, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_goes_on_for_as_long_as_the_lease_is_renewed() {
        let seconds = |seconds| Duration::from_secs(seconds);
        // The lease ends after 3 s at first, with a margin of 1 s; a write takes 5 s.
        for (renewed, fenced, expected) in [
            (Some(Some(6)), false, Some(5)),
            (Some(Some(3)), false, None),
            (None, false, None),
            (Some(None), false, None),
            (None, true, Some(5)),
            (Some(None), true, Some(5)),
        ] {
            let start = Instant::now();
            let leads = watch::Sender::new(Some(start + seconds(3)));
            let lease = if fenced {
                WriteLease::fenced(leads.subscribe())
            } else {
                WriteLease::new(leads.subscribe(), seconds(1))
            };
            assert!(lease.may_begin());
            let exchange = async {
                tokio::time::sleep(seconds(5)).await;
                start.elapsed().as_secs()
            };
            let renewal = async {
                tokio::time::sleep(seconds(2)).await;
                if let Some(until) = renewed {
                    leads.send_replace(until.map(|until| start + seconds(until)));
                }
            };
            let (answered, ()) = tokio::join!(lease.carry_on(exchange), renewal);
            assert_eq!(answered, expected, "{renewed:?} {fenced}");
            assert!(!lease.may_begin() || renewed == Some(Some(6)));
        }
    }
}

//! One request to Consul and its answer, and nothing of what they mean.
//!
//! In: a [`Request`]. Out: a [`Response`] of whatever status, or whether the request may have had an effect
//! all the same. [`Http`] is the real one; the simulation has its own.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Identity, Url, redirect};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;

use crate::certificates::{Credentials, Fault, Source};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Writes.
    Put,
}

/// A request to Consul's HTTP API.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether it reads or writes.
    pub method: Method,
    /// Path and query, percent-encoded, beginning with `/v1/`.
    pub path: String,
    /// JSON.
    pub body: Option<Bytes>,
    /// For all of it, the wait for a connection included.
    pub timeout: Duration,
    /// Whether the connection is closed after it, so that the next such request makes one of its own: what
    /// answers there may be another agent behind the same address.
    pub last_of_connection: bool,
}

/// An answer, of any status.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// `X-Consul-Index`.
    pub index: Option<u64>,
    /// `X-Consul-Results-Filtered-By-ACLs`: the answer is only what the token may see.
    pub filtered: bool,
    /// `Retry-After`, where it is in seconds.
    pub retry_after: Option<Duration>,
    /// The body, whole.
    pub body: Bytes,
}

/// Why there is no answer. The text is for the user.
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
}

/// What carries requests to Consul.
pub trait Transport: Send + Sync {
    /// Sends a request and waits for its answer.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>>;

    /// How many addresses are tried in turn. After a request that fared ill the next one goes to the next address.
    fn addresses(&self) -> usize;

    /// Whether requests carry a token. To those without one Consul does not say what it leaves out.
    fn has_token(&self) -> bool;
}

/// Whether requests may be made: for as long as someone else grants it.
#[derive(Clone, Debug)]
pub struct Leave {
    /// Until when a request may begin; none if not at all.
    until: watch::Receiver<Option<Instant>>,
    /// How long one may take after that at most.
    margin: Duration,
}

impl Leave {
    /// Requests may begin until then, and writes may take no longer than `margin`. What is under way a margin later is
    /// given up.
    #[must_use]
    pub fn new(until: watch::Receiver<Option<Instant>>, margin: Duration) -> Self {
        Self { until, margin }
    }

    fn may_begin(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn may_go_on(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until + self.margin)
    }

    fn longest(&self, request: &Request) -> Duration {
        match request.method {
            Method::Get => request.timeout,
            Method::Put => request.timeout.min(self.margin),
        }
    }
}

/// Where Consul is and how to be let in.
#[derive(Clone)]
pub struct ConsulSettings {
    /// Each `http://host:port`, `https://host:port`, or `host:port` for plain HTTP; tried in turn.
    pub addresses: Vec<String>,
    /// The ACL token.
    pub token: Option<String>,
    /// A file that holds it, which is read again when it changes. It goes before `token`, as with Consul's
    /// own tools.
    pub token_file: Option<PathBuf>,
    /// A file of PEM certificates to trust in place of the system's.
    pub ca_cert: Option<PathBuf>,
    /// A PEM certificate to show to Consul.
    pub client_cert: Option<PathBuf>,
    /// The key for it.
    pub client_key: Option<PathBuf>,
    /// Whether Consul's certificate is checked.
    pub ssl_verify: bool,
    /// The name that Consul's certificate has to be for, where that is not the host in the address.
    pub tls_server_name: Option<String>,
}

impl ConsulSettings {
    /// An address with everything else as Consul's own tools have it by default.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            addresses: vec![address.into()],
            token: None,
            token_file: None,
            ca_cert: None,
            client_cert: None,
            client_key: None,
            ssl_verify: true,
            tls_server_name: None,
        }
    }
}

impl fmt::Debug for ConsulSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings are logged, and neither a token nor a password may be.
        let addresses: &[String] = if hold_a_user(&self.addresses) { &[] } else { &self.addresses };
        f.debug_struct("ConsulSettings")
            .field("addresses", &addresses)
            .field("token", &self.token.as_ref().map(|_| ".."))
            .field("token_file", &self.token_file)
            .field("ca_cert", &self.ca_cert)
            .field("client_cert", &self.client_cert)
            .field("client_key", &self.client_key)
            .field("ssl_verify", &self.ssl_verify)
            .field("tls_server_name", &self.tls_server_name)
            .finish()
    }
}

/// Why there can be no [`Http`] with these settings.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// Consul over a unix socket.
    #[error("Consul's address {0:?} is a unix socket, which is not supported: use http:// or https://")]
    UnixSocket(String),
    /// None at all.
    #[error("no address is given for Consul")]
    NoAddress,
    /// One with a user, and perhaps a password, which is not to be shown.
    #[error("Consul's address may not hold a user or a password; a token is given by --consul-token-file")]
    UserInAddress,
    /// Not an address.
    #[error("Consul's address {address:?} is not of the form http://HOST:PORT or https://HOST:PORT: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file that is missing or of the wrong content.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate or a key that cannot be used.
    #[error(transparent)]
    Certificate(#[from] Fault),
    /// A file that is not there, in a folder that is: what comes from a Secret may come later.
    #[error("{}: there is no such file yet", .0.display())]
    NotYet(PathBuf),
    /// A certificate without its key, or a key without its certificate.
    #[error("a client certificate for Consul needs both its certificate and its key")]
    HalfAPair,
    /// Something in what the TLS or HTTP library makes of all this.
    #[error("Consul's client could not be set up: {0}")]
    Client(String),
}

/// The most requests under way at once. Consul serves 200 connections for one client address by default
/// (`limits.http_max_conns_per_client`), and we may not be the only one behind ours.
const CONNECTIONS: usize = 64;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is said of a request that may not be made.
const NOT_LEADING: &str = "this replica does not lead any more";

/// The longest that we wait because we were told to: a proxy may say anything.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How often the token's file is looked at.
const TOKEN_CHECK: Duration = Duration::from_secs(1);

/// Consul over HTTP/1.1.
pub struct Http {
    blueprint: Blueprint,
    connections: Lock<Connections>,
    token: Option<TokenSource>,
    credentials: Credentials,
    slots: Semaphore,
    leave: Option<Leave>,
}

/// The connections that requests go over: to one server, as far as its address leads to one.
#[derive(Clone)]
struct Connections {
    /// How often they were given up for new ones.
    turn: usize,
    base: Arc<str>,
    client: reqwest::Client,
}

/// What connections are made of.
struct Blueprint {
    servers: Vec<Server>,
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    ssl_verify: bool,
}

/// One of Consul's addresses.
struct Server {
    /// What requests begin with.
    base: Arc<str>,
    /// The host that the address leads to, where the URL has another name in its place.
    host: Option<Arc<str>>,
}

impl Server {
    fn new(address: &str, tls_server_name: Option<&str>) -> Result<Self, BadSettings> {
        let mut url = parse_address(address)?;
        let mut host = None;
        if let Some(name) = tls_server_name {
            // The library checks the certificate against the host of the URL: so that host is the name, and
            // what it resolves to is the real one's address.
            host = Some(url.host_str().unwrap_or_default().trim_matches(['[', ']']).into());
            url.set_host(Some(name))
                .map_err(|error| BadSettings::Address { address: name.to_owned(), why: error.to_string() })?;
        }
        Ok(Self { base: url.as_str().trim_end_matches('/').into(), host })
    }
}

impl Blueprint {
    fn new(settings: &ConsulSettings) -> Result<Self, BadSettings> {
        if hold_a_user(&settings.addresses) {
            return Err(BadSettings::UserInAddress);
        }
        let name = settings.tls_server_name.as_deref();
        let servers: Vec<Server> =
            settings.addresses.iter().map(|address| Server::new(address, name)).collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(BadSettings::NoAddress);
        }
        let authorities = settings.ca_cert.as_deref().map(certificates).transpose()?;
        let identity = match (&settings.client_cert, &settings.client_key) {
            (Some(certificate), Some(key)) => {
                let mut pem = read(certificate)?;
                pem.push(b'\n');
                pem.extend(read(key)?);
                Some(Identity::from_pem(&pem).map_err(|error| bad_file(certificate, &error))?)
            }
            (None, None) => None,
            _ => return Err(BadSettings::HalfAPair),
        };
        Ok(Self { servers, authorities, identity, ssl_verify: settings.ssl_verify })
    }

    /// Connections of their own, to the address whose turn it is.
    fn connections(&self, turn: usize) -> Result<Connections, BadSettings> {
        let server = &self.servers[turn % self.servers.len()];
        let resolver = Resolver { host: server.host.clone(), turn: turn / self.servers.len() };
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("lictor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(CONNECTIONS)
            .dns_resolver(Arc::new(resolver))
            .tls_danger_accept_invalid_certs(!self.ssl_verify);
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        let client = builder.build().map_err(|error| BadSettings::Client(chain(&error)))?;
        Ok(Connections { turn, base: Arc::clone(&server.base), client })
    }
}

impl Http {
    /// Sets up a client. Connections are made when they are needed. The process's TLS provider must have
    /// been installed.
    pub fn new(settings: &ConsulSettings) -> Result<Self, BadSettings> {
        let credentials = credentials(settings)?;
        if let Some(fault) = credentials.fault_at(Timestamp::now()) {
            tracing::warn!("{fault}");
        }
        let blueprint = Blueprint::new(settings)?;
        if let Some(file) = &settings.token_file {
            // Read again when it is needed; but a name that leads nowhere is a mistake.
            read(file)?;
        }
        Ok(Self {
            connections: Lock::new(blueprint.connections(0)?),
            blueprint,
            token: TokenSource::new(settings),
            credentials,
            slots: Semaphore::new(CONNECTIONS),
            leave: None,
        })
    }

    /// The same, which makes requests only with leave.
    #[must_use]
    pub fn with_leave(self, leave: Leave) -> Self {
        Self { leave: Some(leave), ..self }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has requests from here on go over new connections, after one fared ill over these: to the next address, or
    /// the next one of those that its name has now. A server that has lost its leader keeps its connections open,
    /// and only another server knows better.
    fn move_on(&self, from: &Connections) {
        let mut present = self.connections();
        if present.turn != from.turn {
            // After another request.
            return;
        }
        match self.blueprint.connections(from.turn.wrapping_add(1)) {
            Ok(next) => {
                if next.base != from.base {
                    tracing::debug!(from = %from.base, to = %next.base, "asking Consul at its next address");
                }
                *present = next;
            }
            Err(error) => tracing::warn!(%error, "Consul is asked over the connections that there are"),
        }
    }

    async fn deliver(&self, request: Request) -> Result<Response, TransportError> {
        let connections = self.connections().clone();
        let base = &*connections.base;
        let not_sent = |why: &str| TransportError::NotSent(format!("Consul at {base}: {why}"));
        let begun = Instant::now();
        let longest = self.leave.as_ref().map_or(request.timeout, |leave| leave.longest(&request));
        let waited = tokio::time::timeout(longest, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = waited else {
            return Err(not_sent("too many requests wait for their answers"));
        };
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Put => reqwest::Method::PUT,
        };
        let mut outgoing = connections
            .client
            .request(method, format!("{base}{}", request.path))
            .timeout(longest.saturating_sub(begun.elapsed()));
        if let Some(token) = &self.token {
            let token = token.header().await.map_err(TransportError::NotSent)?;
            outgoing = outgoing.header("X-Consul-Token", token);
        }
        if request.last_of_connection {
            outgoing = outgoing.header(CONNECTION, "close");
        }
        if let Some(body) = request.body {
            outgoing = outgoing.header("Content-Type", "application/json").body(body);
        }
        let failed = |error: reqwest::Error| {
            // The URL has our filters in it, which tell a user nothing.
            let error = error.without_url();
            let mut why = chain(&error);
            if let Some(explained) = self.credentials.explain(&error, Timestamp::now()) {
                why = format!("{why}; {explained}");
            }
            if error.is_builder() {
                TransportError::Unsendable(format!("the request to Consul cannot be made: {why}"))
            } else if error.is_connect() {
                not_sent(&why)
            } else if error.is_timeout() && longest < request.timeout {
                TransportError::NoAnswer(format!(
                    "Consul at {base}: no answer within {} ms, a quarter of --lease-duration",
                    longest.as_millis()
                ))
            } else {
                TransportError::NoAnswer(format!("Consul at {base}: {why}"))
            }
        };
        // The last moment before it leaves; a process may have been stopped anywhere before.
        if self.leave.as_ref().is_some_and(|leave| !leave.may_begin()) {
            return Err(TransportError::NotSent(NOT_LEADING.to_owned()));
        }
        let exchange = async {
            let incoming = outgoing.send().await?;
            let (status, headers) = (incoming.status().as_u16(), incoming.headers().clone());
            Ok((status, headers, incoming.bytes().await?))
        };
        let mut exchange = std::pin::pin!(exchange);
        let answered = poll_fn(|context| match &self.leave {
            // Looked at before anything moves: a process that wakes late goes no further.
            Some(leave) if !leave.may_go_on() => Poll::Ready(None),
            _ => exchange.as_mut().poll(context).map(Some),
        });
        let Some(answered) = answered.await else {
            return Err(TransportError::NoAnswer(NOT_LEADING.to_owned()));
        };
        let answered = answered.map_err(failed);
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

impl Transport for Http {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        Box::pin(self.deliver(request))
    }

    fn addresses(&self) -> usize {
        self.blueprint.servers.len()
    }

    fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

/// Whether a request that ended so might have fared better over another connection, perhaps to another server.
fn fared_ill(ended: Result<u16, &TransportError>) -> bool {
    match ended {
        // Consul answers 429 where it limits requests to this server, and 500 where it has no leader.
        Ok(status) => status == 429 || status >= 500,
        Err(TransportError::NotSent(_) | TransportError::NoAnswer(_)) => true,
        Err(TransportError::Unsendable(_)) => false,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An error with all its causes: the library's own text says only "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    text
}

/// Whether one of these addresses holds a user. There may be a password beside it, and a comma in that has cut the
/// address in two.
fn hold_a_user(addresses: &[String]) -> bool {
    addresses.iter().any(|address| address.contains('@'))
}

fn parse_address(address: &str) -> Result<Url, BadSettings> {
    let bad = |why: &str| BadSettings::Address { address: address.to_owned(), why: why.to_owned() };
    let trimmed = address.trim();
    if trimmed.starts_with("unix://") {
        return Err(BadSettings::UnixSocket(address.to_owned()));
    }
    let whole = if trimmed.contains("://") { trimmed.to_owned() } else { format!("http://{trimmed}") };
    let url = Url::parse(&whole).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("its scheme is neither http nor https"));
    }
    if !url.has_host() {
        return Err(bad("it has no host"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it may not hold a query or a fragment"));
    }
    Ok(url)
}

fn read(file: &Path) -> Result<Vec<u8>, BadSettings> {
    std::fs::read(file).map_err(|error| {
        let may_come = error.kind() == io::ErrorKind::NotFound && file.parent().is_some_and(Path::is_dir);
        if may_come { BadSettings::NotYet(file.to_owned()) } else { bad_file(file, &error) }
    })
}

fn bad_file(path: &Path, error: &dyn std::error::Error) -> BadSettings {
    BadSettings::File { path: path.to_owned(), why: chain(error) }
}

/// What the files of certificates hold, judged before they are used.
fn credentials(settings: &ConsulSettings) -> Result<Credentials, BadSettings> {
    let source = |file: &PathBuf| {
        let text = read(file)?;
        Ok::<_, BadSettings>(Source { from: file.display().to_string(), text })
    };
    // Whoever checks nothing needs nobody to trust.
    let authorities = settings.ca_cert.as_ref().filter(|_| settings.ssl_verify).map(source).transpose()?;
    let identity = match (&settings.client_cert, &settings.client_key) {
        (Some(certificate), Some(key)) => Some((source(certificate)?, source(key)?)),
        _ => None,
    };
    Ok(Credentials::new(authorities.as_ref(), identity.as_ref().map(|(certificate, key)| (certificate, key)))?)
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, BadSettings> {
    let found = Certificate::from_pem_bundle(&read(file)?).map_err(|error| bad_file(file, &error))?;
    if found.is_empty() {
        return Err(BadSettings::File { path: file.to_owned(), why: "no PEM certificate in it".to_owned() });
    }
    Ok(found)
}

/// Looks up where a name leads each time that a connection is made.
struct Resolver {
    /// The host that is looked up in place of the name.
    host: Option<Arc<str>>,
    /// How often the name has had its turn: it begins with another one of its addresses each time.
    turn: usize,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = self.host.clone().unwrap_or_else(|| name.as_str().into());
        let turn = self.turn;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            Ok(Box::new(beginning_with(found, turn).into_iter()) as Addrs)
        })
    }
}

/// The same, beginning with another one each turn.
fn beginning_with<T>(mut all: Vec<T>, turn: usize) -> Vec<T> {
    let first = turn.checked_rem(all.len()).unwrap_or_default();
    all.rotate_left(first);
    all
}

/// Where the token comes from, and the last one that did.
enum TokenSource {
    Value(String),
    File { path: PathBuf, last: Mutex<Option<Seen>> },
}

/// What was in the token's file, and when.
struct Seen {
    looked: Instant,
    changed: (SystemTime, u64),
    token: HeaderValue,
}

impl TokenSource {
    fn new(settings: &ConsulSettings) -> Option<Self> {
        match (&settings.token_file, &settings.token) {
            (Some(path), _) => Some(Self::File { path: path.clone(), last: Mutex::default() }),
            (None, Some(value)) => Some(Self::Value(value.clone())),
            (None, None) => None,
        }
    }

    /// The token as it is now; an error is for the user, and never holds the token.
    async fn header(&self) -> Result<HeaderValue, String> {
        match self {
            Self::Value(value) => sensitive(value).ok_or_else(|| "the Consul token is not plain text".to_owned()),
            Self::File { path, last } => {
                let mut last = last.lock().await;
                if let Some(seen) = last.as_ref().filter(|seen| seen.looked.elapsed() < TOKEN_CHECK) {
                    return Ok(seen.token.clone());
                }
                let unreadable = |error: io::Error| {
                    format!("the file {} of the Consul token is unreadable: {error}", path.display())
                };
                let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
                let changed = (metadata.modified().map_err(unreadable)?, metadata.len());
                let token = match last.as_ref().filter(|seen| seen.changed == changed) {
                    Some(seen) => seen.token.clone(),
                    None => sensitive(&tokio::fs::read_to_string(path).await.map_err(unreadable)?)
                        .ok_or_else(|| format!("the file {} holds no Consul token", path.display()))?,
                };
                *last = Some(Seen { looked: Instant::now(), changed, token: token.clone() });
                Ok(token)
            }
        }
    }
}

/// A header's value that no log shows.
fn sensitive(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let mut value = HeaderValue::from_str(token).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_are_what_consuls_own_tools_take() {
        for (given, base) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500/"),
            ("consul.example:8500", "http://consul.example:8500/"),
            ("http://[::1]:8500", "http://[::1]:8500/"),
            ("https://consul.example:8501", "https://consul.example:8501/"),
            ("https://gate.example/consul", "https://gate.example/consul"),
        ] {
            assert_eq!(parse_address(given).unwrap().as_str(), base, "{given}");
        }
        for bad in ["", "http://", "ftp://x:1", "http://x:1?a=b", "unix:///run/consul.sock"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_that_is_asked_for_is_heeded_up_to_a_limit() {
        for (value, heeded) in [("1", Some(1)), ("30", Some(30)), ("300", Some(30)), ("soon", None)] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), heeded.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn a_password_in_an_address_never_shows() {
        for given in [
            "http://u:secret@x:1",
            "u:secret@x:1",
            "http://u:secret@secret@x:1/p",
            "unix://u:secret@/run/consul.sock",
            "ftp://u:secret@x:1",
            "http://u:secret@",
            "http://u:secret,secret@x:1",
        ] {
            let addresses = given.split(',').map(str::to_owned).collect();
            let settings = ConsulSettings { addresses, ..ConsulSettings::new("x:1") };
            let error = Http::new(&settings).err().unwrap();
            assert!(matches!(error, BadSettings::UserInAddress), "{given}: {error}");
            assert!(!format!("{error} {settings:?}").contains("secret"), "{given}");
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

    #[test]
    fn each_turn_begins_with_another_address() {
        let all = || vec!["a", "b", "c"];
        for (turn, first) in [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (usize::MAX, "a")] {
            assert_eq!(beginning_with(all(), turn).first(), Some(&first), "{turn}");
            assert_eq!(beginning_with(all(), turn).len(), 3);
        }
        assert!(beginning_with(Vec::<&str>::new(), 7).is_empty());
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

    #[test]
    fn a_token_never_shows() {
        let settings = ConsulSettings { token: Some("secret".to_owned()), ..ConsulSettings::new("x:1") };
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(!format!("{:?}", sensitive("secret")).contains("secret"));
        assert!(sensitive(" \n").is_none() && sensitive("a\nb").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tokens_file_is_read_again_when_it_changes() {
        let path = std::env::temp_dir().join(format!("lictor-token-{}", std::process::id()));
        let settings = ConsulSettings { token_file: Some(path.clone()), ..ConsulSettings::new("x:1") };
        let source = TokenSource::new(&settings).unwrap();
        assert!(source.header().await.unwrap_err().contains("unreadable"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one");
        std::fs::write(&path, "another\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one", "looked at once a second");
        tokio::time::advance(TOKEN_CHECK).await;
        assert_eq!(source.header().await.unwrap(), "another");
        std::fs::remove_file(&path).unwrap();
    }

    /// A Secret that is mounted may come later; a path that leads nowhere is a mistake.
    #[test]
    fn a_file_may_come_later_only_where_its_folder_is() {
        let folder = std::env::temp_dir();
        let absent = format!("lictor-not-there-{}", std::process::id());
        for (file, later) in [(folder.join(&absent), true), (folder.join(&absent).join("token"), false)] {
            let by_token = ConsulSettings { token_file: Some(file.clone()), ..ConsulSettings::new("x:1") };
            let by_authority = ConsulSettings { ca_cert: Some(file.clone()), ..ConsulSettings::new("x:1") };
            for settings in [by_token, by_authority] {
                let error = Http::new(&settings).err().unwrap();
                assert_eq!(matches!(error, BadSettings::NotYet(_)), later, "{error}");
                assert!(error.to_string().contains(&file.display().to_string()), "{error}");
            }
        }
    }
}

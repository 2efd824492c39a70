//! One request to Consul and its answer, and nothing of what they mean.
//!
//! In: a [`Request`]. Out: a [`Response`] of whatever status, or whether the request may have had an effect
//! all the same. [`Http`] is the real one; the simulation has its own.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// It was sent, or may have been: it may have been carried out, or still be.
    #[error("{0}")]
    NoAnswer(String),
}

/// What carries requests to Consul.
pub trait Transport: Send + Sync {
    /// Sends a request and waits for its answer.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>>;

    /// Whether requests carry a token. To those without one Consul does not say what it leaves out.
    fn has_token(&self) -> bool {
        true
    }
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
    /// `http://host:port`, `https://host:port`, or `host:port` for plain HTTP.
    pub address: String,
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
            address: address.into(),
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
        // Settings are logged, and the token may not be.
        f.debug_struct("ConsulSettings")
            .field("address", &self.address)
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
    base: String,
    client: reqwest::Client,
    token: Option<TokenSource>,
    credentials: Credentials,
    slots: Semaphore,
    leave: Option<Leave>,
}

impl Http {
    /// Sets up a client. Connections are made when they are needed. The process's TLS provider must have
    /// been installed.
    pub fn new(settings: &ConsulSettings) -> Result<Self, BadSettings> {
        let credentials = credentials(settings)?;
        if let Some(fault) = credentials.fault_at(Timestamp::now()) {
            tracing::warn!("{fault}");
        }
        let mut url = parse_address(&settings.address)?;
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("lictor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(CONNECTIONS)
            .tls_danger_accept_invalid_certs(!settings.ssl_verify);
        if let Some(file) = &settings.ca_cert {
            builder = builder.tls_certs_only(certificates(file)?);
        }
        match (&settings.client_cert, &settings.client_key) {
            (Some(certificate), Some(key)) => {
                let mut pem = read(certificate)?;
                pem.push(b'\n');
                pem.extend(read(key)?);
                let identity = Identity::from_pem(&pem).map_err(|error| bad_file(certificate, &error))?;
                builder = builder.identity(identity);
            }
            (None, None) => {}
            _ => return Err(BadSettings::HalfAPair),
        }
        if let Some(name) = &settings.tls_server_name {
            // The library checks the certificate against the host of the URL: so that host is the name, and
            // what it resolves to is the real one's address.
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            url.set_host(Some(name))
                .map_err(|error| BadSettings::Address { address: name.clone(), why: error.to_string() })?;
            builder = builder.dns_resolver(Arc::new(InPlaceOf(host.into())));
        }
        if let Some(file) = &settings.token_file {
            // Read again when it is needed; but a name that leads nowhere is a mistake.
            read(file)?;
        }
        let client = builder.build().map_err(|error| BadSettings::Client(chain(&error)))?;
        Ok(Self {
            base: url.as_str().trim_end_matches('/').to_owned(),
            client,
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

    async fn deliver(&self, request: Request) -> Result<Response, TransportError> {
        let not_sent = |why: &str| TransportError::NotSent(format!("Consul at {}: {why}", self.base));
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
        let mut outgoing = self
            .client
            .request(method, format!("{}{}", self.base, request.path))
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
            if error.is_connect() || error.is_builder() {
                not_sent(&why)
            } else if error.is_timeout() && longest < request.timeout {
                TransportError::NoAnswer(format!(
                    "Consul at {}: no answer within {} ms, a quarter of --lease-duration",
                    self.base,
                    longest.as_millis()
                ))
            } else {
                TransportError::NoAnswer(format!("Consul at {}: {why}", self.base))
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
        let (status, headers, body) = answered.map_err(failed)?;
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

    fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
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
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it may not hold a user or a password"));
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

/// Resolves every name to the addresses of one host.
struct InPlaceOf(Arc<str>);

impl Resolve for InPlaceOf {
    fn resolve(&self, _: Name) -> Resolving {
        let host = Arc::clone(&self.0);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
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
        for bad in ["", "http://", "ftp://x:1", "http://u:p@x:1", "http://x:1?a=b", "unix:///run/consul.sock"] {
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

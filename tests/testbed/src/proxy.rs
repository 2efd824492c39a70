//! A proxy in front of Consul that writes down every request, and fails on demand.
//!
//! The operator under test talks to it instead of to Consul. So a test can count writes, and can make
//! Consul refuse, fail, dawdle, or do a thing and lose the answer.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::init_tls;

/// One request that came in.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it had come in whole.
    pub at: Instant,
    /// Who sent it.
    pub from: IpAddr,
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query, without the `?`; empty where there is none.
    pub query: String,
    /// Its body.
    pub body: Bytes,
    /// The status of the answer; None while there is none, and for ever where a fault ate it.
    pub status: Option<u16>,
}

impl Record {
    /// The length of the request's body in bytes.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Whether it asks for a change. A transaction (`/v1/txn`) of nothing but reads does not.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self.method {
            Method::GET | Method::HEAD => false,
            Method::PUT if self.path == "/v1/txn" => !only_reads(&self.body),
            _ => true,
        }
    }
}

/// What is to go wrong.
#[derive(Clone, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The connection is closed; Consul sees nothing.
    Refuse,
    /// This answer (status, body, headers); Consul sees nothing.
    Status(u16, String, Vec<(&'static str, String)>),
    /// Consul gets the request only after this time.
    Delay(Duration),
    /// Consul gets the request only once this is released.
    Hold(Hold),
    /// Consul does it, and the connection is closed without the answer.
    DropAnswer,
    /// Decides for each request; None is [`Fault::None`].
    Rule(Rule),
}

/// What requests wait for, until it is released for good.
#[derive(Clone, Debug)]
pub struct Hold(Arc<Semaphore>);

impl Default for Hold {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Hold {
    /// Lets through all that wait and all that come.
    pub fn release(&self) {
        self.0.close();
    }

    async fn over(&self) {
        // It has no permits, and ends the wait when it is closed.
        let _ = self.0.acquire().await;
    }
}

/// What changes a request on its way to Consul, after it was written down.
pub type Rewrite = Arc<dyn Fn(&mut Record) + Send + Sync>;

/// What decides for one request at a time.
pub type Rule = Arc<dyn Fn(&Record) -> Option<Fault> + Send + Sync>;

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Refuse => f.write_str("Refuse"),
            Self::Status(status, body, _) => write!(f, "Status({status}, {body:?})"),
            Self::Delay(time) => write!(f, "Delay({time:?})"),
            Self::Hold(_) => f.write_str("Hold(..)"),
            Self::DropAnswer => f.write_str("DropAnswer"),
            Self::Rule(_) => f.write_str("Rule(..)"),
        }
    }
}

/// A proxy that runs until it is dropped, or until the runtime that started it ends.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    upstream: String,
    rewrite: Option<Rewrite>,
    client: reqwest::Client,
    log: Mutex<Log>,
    fault: Mutex<Fault>,
}

#[derive(Debug, Default)]
struct Log {
    records: Vec<Record>,
    /// How many records have been cleared: what the first one's number is.
    cleared: usize,
}

impl Proxy {
    /// Starts one on a free port, in front of `upstream`, such as `http://127.0.0.1:8500`.
    pub async fn start(upstream: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, upstream).await
    }

    /// The same at another address of this machine.
    pub async fn start_at(address: Ipv4Addr, upstream: &str) -> Result<Self> {
        Self::begin(address, upstream, None).await
    }

    /// Starts one that changes each request on its way, as a gateway may.
    pub async fn start_with(upstream: &str, rewrite: Rewrite) -> Result<Self> {
        Self::begin(Ipv4Addr::LOCALHOST, upstream, Some(rewrite)).await
    }

    async fn begin(address: Ipv4Addr, upstream: &str, rewrite: Option<Rewrite>) -> Result<Self> {
        init_tls();
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            rewrite,
            client: reqwest::Client::builder().no_proxy().build()?,
            log: Mutex::default(),
            fault: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { address, shared, accepting })
    }

    /// Its base address, `http://ADDRESS:PORT`.
    #[must_use]
    pub fn addr(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests since the start or the last [`clear`](Self::clear), in the order of their coming.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.shared.log().records.clone()
    }

    /// Those that ask for a change.
    #[must_use]
    pub fn writes(&self) -> Vec<Record> {
        self.shared.log().records.iter().filter(|record| record.is_write()).cloned().collect()
    }

    /// Forgets all requests so far.
    pub fn clear(&self) {
        let mut log = self.shared.log();
        log.cleared += log.records.len();
        log.records.clear();
    }

    /// From now on this goes wrong, until something else is set. Requests under way are not touched.
    pub fn set_fault(&self, fault: Fault) {
        *self.shared.fault() = fault;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self) -> MutexGuard<'_, Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault for this request, rules applied.
    fn fault_for(&self, record: &Record) -> Fault {
        let mut fault = self.fault().clone();
        while let Fault::Rule(rule) = &fault {
            fault = rule(record).unwrap_or_default();
        }
        fault
    }

    /// Answers one request. An error closes the connection without an answer.
    async fn answer(&self, from: IpAddr, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let record = Record {
            at: Instant::now(),
            from,
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body: body.collect().await?.to_bytes(),
            status: None,
        };
        let number = {
            let mut log = self.log();
            log.records.push(record.clone());
            log.cleared + log.records.len() - 1
        };
        let response = match self.fault_for(&record) {
            Fault::None | Fault::Rule(_) => self.forward(&record, head.headers).await?,
            Fault::Refuse => return Err(anyhow!("refused on demand")),
            Fault::Status(status, body, headers) => {
                let mut response = Response::new(Full::from(body));
                *response.status_mut() = StatusCode::from_u16(status)?;
                for (name, value) in headers {
                    let name = HeaderName::try_from(name)?;
                    response.headers_mut().insert(name, HeaderValue::try_from(value)?);
                }
                response
            }
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                self.forward(&record, head.headers).await?
            }
            Fault::Hold(hold) => {
                hold.over().await;
                self.forward(&record, head.headers).await?
            }
            Fault::DropAnswer => {
                self.forward(&record, head.headers).await?;
                return Err(anyhow!("answer dropped on demand"));
            }
        };
        let mut log = self.log();
        if let Some(index) = number.checked_sub(log.cleared) {
            log.records[index].status = Some(response.status().as_u16());
        }
        Ok(response)
    }

    async fn forward(&self, record: &Record, headers: HeaderMap) -> Result<Response<Full<Bytes>>> {
        let mut record = record.clone();
        if let Some(rewrite) = &self.rewrite {
            rewrite(&mut record);
        }
        let mut url = format!("{}{}", self.upstream, record.path);
        if !record.query.is_empty() {
            url = format!("{url}?{}", record.query);
        }
        let answer = self
            .client
            .request(record.method.clone(), url)
            .headers(end_to_end(headers))
            .body(record.body.clone())
            .send()
            .await?;
        let status = answer.status();
        let headers = end_to_end(answer.headers().clone());
        let mut response = Response::new(Full::from(answer.bytes().await?));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections end with the proxy, since this set is dropped with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, peer)) = accepted {
                    connections.spawn(serve(stream, peer.ip(), Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, from: IpAddr, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(from, request).await }
    });
    // Its errors are those that were asked for, or a client's that went away.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Without the headers that belong to one connection; the length is set anew from the body.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

/// Whether a transaction is a list of operations whose verbs all read.
fn only_reads(transaction: &[u8]) -> bool {
    let Ok(Value::Array(operations)) = serde_json::from_slice(transaction) else {
        return false;
    };
    let verbs = |operation: &Value| -> Vec<String> {
        let kinds = operation.as_object().into_iter().flatten();
        kinds.filter_map(|(_, body)| Some(body["Verb"].as_str()?.to_owned())).collect()
    };
    operations.iter().all(|operation| {
        let verbs = verbs(operation);
        // `get`, and for keys also `get-tree`.
        !verbs.is_empty() && verbs.iter().all(|verb| verb.starts_with("get"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_a_read_only_if_all_of_it_is() {
        let get = br#"[{"Node":{"Verb":"get","Node":{"Node":"a"}}},{"KV":{"Verb":"get-tree"}}]"#;
        let mixed = br#"[{"Node":{"Verb":"get"}},{"Service":{"Verb":"set"}}]"#;
        assert!(only_reads(get));
        assert!(!only_reads(mixed));
        assert!(!only_reads(br#"[{"Node":{}}]"#));
        assert!(!only_reads(b"not JSON"));
    }
}

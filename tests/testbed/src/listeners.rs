//! Servers for Consul's checks to ask: real ones, each with a record of what reached it.
//!
//! They share a thread of their own: a check that Consul runs must not wait for what a test does meanwhile.
//!
//! One is well or ill as a test says. A well one answers as the kind of check expects; an ill one answers that it
//! is not, where the kind has words for it, and otherwise is not there at all.

mod grpc;
mod h2ping;
mod http;
mod words;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Pair;
use crate::{init_tls, ports, wait};

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// Nothing: that a connection is made is all.
    Tcp,
    /// The standard gRPC health service.
    Grpc,
    /// HTTP/2, as far as pings.
    H2Ping,
    /// Datagrams, which it sends back.
    Udp,
}

/// Something that reached a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What it was.
    pub what: Message,
    /// How it came.
    pub over: Over,
}

/// What a connection is made over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// TCP, or UDP, alone.
    Plain,
    /// TLS.
    Tls {
        /// The name that was asked for.
        sni: Option<String>,
    },
}

/// What a check sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request over HTTP.
    Request {
        /// The method.
        method: String,
        /// Path and query.
        target: String,
        /// In the order of their names, which are in lower case.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// A connection, its handshake included.
    Connection,
    /// A call over gRPC.
    Call {
        /// The method's path.
        path: String,
        /// The service that is asked about.
        service: String,
    },
    /// An HTTP/2 ping.
    Ping,
    /// A datagram.
    Datagram(Vec<u8>),
}

/// A server. It ends when it is dropped.
#[derive(Debug)]
pub struct Listener {
    protocol: Protocol,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    record: Record,
    serving: Option<JoinHandle<()>>,
}

/// What the tasks of a listener share.
#[derive(Debug, Clone, Default)]
struct Record {
    heard: Arc<Mutex<Vec<Heard>>>,
    /// The status of HTTP's answers; what else there is counts anything but 200 as ill.
    status: Arc<AtomicU16>,
    /// Where somebody else answers for HTTP meanwhile: with a status for each request.
    answerer: Arc<Mutex<Option<mpsc::UnboundedSender<Waiting>>>>,
}

/// A request that waits for the status of its answer.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    answer: oneshot::Sender<u16>,
}

impl Record {
    fn heard(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, what: Message, over: &Over) {
        self.heard().push(Heard { what, over: over.clone() });
    }

    fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst)
    }

    fn answerer(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Waiting>>> {
        self.answerer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status of the next answer over HTTP, once it is known.
    async fn answer(&self) -> u16 {
        let waiting = self.answerer().as_ref().and_then(|answerer| {
            let (sender, answer) = oneshot::channel();
            answerer.send(Waiting { since: Instant::now(), answer: sender }).ok().map(|()| answer)
        });
        match waiting {
            Some(answer) => answer.await.unwrap_or_else(|_| self.status()),
            None => self.status(),
        }
    }
}

impl Listener {
    /// Starts one on a free port of an address, well; over TLS where there is a certificate.
    pub async fn start(protocol: Protocol, address: IpAddr, certificate: Option<&Pair>) -> Result<Self> {
        let tls = certificate.map(|pair| server_config(pair, protocol)).transpose()?;
        ports::retry(|| async {
            let address = SocketAddr::new(address, ports::free()?);
            let mut listener = Self { protocol, address, tls: tls.clone(), record: Record::default(), serving: None };
            listener.set_status(200).await?;
            Ok(listener)
        })
        .await
    }

    /// Where it is.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// All that has reached it so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.record.heard().clone()
    }

    /// Waits until something has reached it, and gives the first of it.
    ///
    /// A check of a TCP port passes as soon as the kernel has connected, which may be before the listener takes the connection.
    pub async fn first(&self, timeout: Duration) -> Result<Heard> {
        let look = || async { Ok(self.record.heard().first().cloned()) };
        wait::until("something to reach the listener", timeout, look).await
    }

    /// Waits until something that fits has reached it since this call, and gives it.
    pub async fn next(&self, what: &str, fits: impl Fn(&Heard) -> bool, timeout: Duration) -> Result<Heard> {
        let before = self.record.heard().len();
        let look = || async { Ok(self.record.heard()[before..].iter().find(|heard| fits(heard)).cloned()) };
        let waited = wait::until(format!("{what} to reach the listener"), timeout, look).await;
        waited.with_context(|| format!("what did reach it: {:?}", self.heard()))
    }

    /// Makes it well.
    pub async fn recover(&mut self) -> Result<()> {
        self.set_status(200).await
    }

    /// Makes it ill.
    pub async fn fail(&mut self) -> Result<()> {
        self.set_status(500).await
    }

    /// Makes it answer with a status, over HTTP; 200 is well and everything else ill to all other protocols.
    pub async fn set_status(&mut self, status: u16) -> Result<()> {
        self.record.status.store(status, Ordering::SeqCst);
        let has_words = matches!(self.protocol, Protocol::Http | Protocol::Grpc);
        if status == 200 || has_words {
            if self.serving.is_none() {
                self.serving = Some(self.serve()?);
            }
        } else if let Some(serving) = self.serving.take() {
            serving.abort();
            // Its socket is open until it has ended.
            let _ = serving.await;
        }
        Ok(())
    }

    /// Counts how many answers with a status it takes, over HTTP, until somebody who asks again and again has `turned`.
    /// From then on this is the status of all answers.
    ///
    /// Each request waits for its answer until `turned` was looked at. Whoever sends it has taken in all answers before it and
    /// none after them, so the count is exact. None if a request may have given up: if it waited for longer than `patience`.
    pub async fn answers_until(
        &mut self,
        status: u16,
        turned: impl AsyncFn() -> Result<bool>,
        patience: Duration,
        timeout: Duration,
    ) -> Result<Option<usize>> {
        let (answerer, mut asked) = mpsc::unbounded_channel::<Waiting>();
        *self.record.answerer() = Some(answerer);
        let count = async {
            let mut answers = 0;
            while let Some(waiting) = asked.recv().await {
                let turned = turned().await?;
                if waiting.since.elapsed() > patience {
                    break;
                }
                if turned {
                    return Ok(Some(answers));
                }
                if waiting.answer.send(status).is_err() {
                    break;
                }
                answers += 1;
            }
            Ok(None)
        };
        let counted = tokio::time::timeout(timeout, count).await;
        self.record.answerer().take();
        self.set_status(status).await?;
        counted.with_context(|| format!("answers of {status} changed nothing within {timeout:?}"))?
    }

    fn serve(&self) -> Result<JoinHandle<()>> {
        let what = || format!("listening on {}", self.address);
        let record = self.record.clone();
        let serving = serving()?;
        let _entered = serving.enter();
        if self.protocol == Protocol::Udp {
            let socket = std::net::UdpSocket::bind(self.address).with_context(what)?;
            socket.set_nonblocking(true)?;
            return Ok(serving.spawn(echo(UdpSocket::from_std(socket)?, record)));
        }
        let listener = std::net::TcpListener::bind(self.address).with_context(what)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (protocol, tls) = (self.protocol, self.tls.clone().map(TlsAcceptor::from));
        Ok(serving.spawn(async move {
            // Ends what is under way when it ends itself.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, record) = (tls.clone(), record.clone());
                connections.spawn(async move { converse(protocol, stream, tls, record).await });
            }
        }))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// What all listeners of this process are served by.
fn serving() -> Result<&'static Runtime> {
    static SERVING: LazyLock<io::Result<Runtime>> =
        LazyLock::new(|| runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build());
    SERVING.as_ref().map_err(|error| anyhow!("no thread for listeners: {error}"))
}

fn server_config(pair: &Pair, protocol: Protocol) -> Result<Arc<ServerConfig>> {
    init_tls();
    let certificate = CertificateDer::from_pem_slice(pair.public.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.private.as_bytes())?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    if matches!(protocol, Protocol::Grpc | Protocol::H2Ping) {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(Arc::new(config))
}

/// A connection. That the other side ends it in the middle of something is none of a listener's concern.
async fn converse(protocol: Protocol, stream: TcpStream, tls: Option<TlsAcceptor>, record: Record) -> Result<()> {
    match tls {
        None => speak(protocol, stream, Over::Plain, record).await,
        Some(tls) => {
            let stream = tls.accept(stream).await?;
            let sni = stream.get_ref().1.server_name().map(str::to_owned);
            speak(protocol, stream, Over::Tls { sni }, record).await
        }
    }
}

async fn speak<S>(protocol: Protocol, mut stream: S, over: Over, record: Record) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match protocol {
        Protocol::Http => http::speak(stream, over, record).await,
        Protocol::Grpc => grpc::speak(stream, over, record).await,
        Protocol::H2Ping => h2ping::speak(stream, over, record).await,
        Protocol::Tcp => {
            record.add(Message::Connection, &over);
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            Ok(())
        }
        Protocol::Udp => Ok(()),
    }
}

async fn echo(socket: UdpSocket, record: Record) {
    let mut buffer = [0; 1024];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        record.add(Message::Datagram(buffer[..length].to_vec()), &Over::Plain);
        // Consul's are empty, and so would be their echo, which passes for no answer.
        let _ = socket.send_to(b"here", from).await;
    }
}

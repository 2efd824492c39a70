//! Connections to the endpoints: whoever reaches the port may open them, so their number and their time are limited.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The most connections at once; others wait to be accepted.
const CONNECTIONS: usize = 256;

/// The longest time that the headers of a request may take.
const HEADERS: Duration = Duration::from_secs(5);

/// The longest time that a connection may take, its one answer included. Longer than the engine may take to answer.
const LONGEST: Duration = Duration::from_secs(30);

/// The time to wait after a connection could not be accepted, as where the process has too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens at an address. Where that is all addresses of IPv6 and the machine has no IPv6, at all of IPv4.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && has_no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Says whether an address of IPv6 could not be used for what it is: `EAFNOSUPPORT` where the kernel does without it
/// (`ipv6.disable=1`), `EADDRNOTAVAIL` where it is switched off (`net.ipv6.conf.all.disable_ipv6`).
fn has_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Linux' number, on all of its architectures that Lictor is built for.
const EAFNOSUPPORT: i32 = 97;

/// Answers requests by a router until the process ends: one for each connection.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    serve_at_once(listener, router, CONNECTIONS).await;
}

/// Answers requests by a router, over so many connections at once, until the process ends.
async fn serve_at_once(listener: TcpListener, router: Router, most: usize) {
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = answer(stream, router.clone(), HEADERS);
                tokio::spawn(async move {
                    // What fails here is the business of whoever asked.
                    let _ = timeout(LONGEST, answering).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the admin port");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router, headers: Duration) -> hyper::Result<()> {
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(headers).keep_alive(false);
    http.serve_connection(TokioIo::new(stream), service).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Sends a text and gives the answer, up to the end of the connection.
    async fn ask(sent: &str) -> String {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/healthz", axum::routing::get(async || "ok\n"));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, router, Duration::from_millis(50)).await
        });
        // IPv4 reaches what listens to all addresses of IPv6.
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut came = String::new();
        // A connection that is cut while something was sent may be reset.
        let _ = stream.read_to_string(&mut came).await;
        came
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_their_turn() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/healthz", axum::routing::get(async || "ok\n"));
        tokio::spawn(serve_at_once(listener, router, 2));
        let first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut came = String::new();
        let early = timeout(Duration::from_millis(200), third.read_to_string(&mut came)).await;
        assert!(early.is_err(), "two idle connections are all that there may be, and a third was answered: {came}");
        drop(first);
        timeout(HEADERS, third.read_to_string(&mut came)).await.unwrap().unwrap();
        assert!(came.starts_with("HTTP/1.1 200 OK"), "{came}");
    }

    #[tokio::test]
    async fn who_asks_by_ipv6_is_answered() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        if address.is_ipv4() {
            // This machine has no IPv6: what listens falls back to IPv4.
            return;
        }
        let router = Router::new().route("/healthz", axum::routing::get(async || "ok\n"));
        tokio::spawn(serve(listener, router));
        let mut stream = TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut came = String::new();
        stream.read_to_string(&mut came).await.unwrap();
        assert!(came.starts_with("HTTP/1.1 200 OK") && came.ends_with("ok\n"), "{came}");
    }

    #[tokio::test]
    async fn one_request_is_answered_and_headers_without_end_are_not_waited_for() {
        let came = ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(came.starts_with("HTTP/1.1 200 OK") && came.ends_with("ok\n"), "{came}");
        assert!(!ask("GET /healthz HTTP/1.1\r\nHost: x\r\n").await.contains("200 OK"));
        assert!(!ask("").await.contains("200 OK"));
    }
}

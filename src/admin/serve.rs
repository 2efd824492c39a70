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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
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
    async fn one_request_is_answered_and_headers_without_end_are_not_waited_for() {
        let came = ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(came.starts_with("HTTP/1.1 200 OK") && came.ends_with("ok\n"), "{came}");
        assert!(!ask("GET /healthz HTTP/1.1\r\nHost: x\r\n").await.contains("200 OK"));
        assert!(!ask("").await.contains("200 OK"));
    }
}

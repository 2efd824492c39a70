//! What answers at the addresses of pods that do not run: as their image would, as far as the story goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use lictor_testbed::LocalAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::pods::Port;

/// A server at an address of its own.
pub struct Server {
    task: JoinHandle<()>,
    _address: LocalAddress,
}

impl Server {
    /// Adds the address to this machine, and answers there in the name of a pod.
    pub async fn start(pod: &'static str, port: Port, address: SocketAddr) -> Result<Self> {
        let local = LocalAddress::add(&address.ip().to_string())?;
        let listener = TcpListener::bind(address).await?;
        let healthy = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // That connections are taken is all that is asked of gRPC.
                if port == Port::Http {
                    let healthy = Arc::clone(&healthy);
                    // A client that goes away in the middle is its own affair.
                    tokio::spawn(async move { drop(answer(client, pod, &healthy).await) });
                }
            }
        });
        Ok(Self { task, _address: local })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut client: TcpStream, pod: &str, healthy: &AtomicBool) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < 8192 {
        request.push(client.read_u8().await?);
    }
    let request = String::from_utf8_lossy(&request);
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("PUT"), Some(path)) => {
            healthy.store(path != "/health?ok=false", Ordering::Relaxed);
            ("200 OK", String::new())
        }
        (_, Some("/health")) if !healthy.load(Ordering::Relaxed) => {
            ("503 Service Unavailable", "told to fail\n".to_owned())
        }
        (_, Some("/health")) => ("200 OK", "ok\n".to_owned()),
        _ => ("200 OK", format!("{pod}\n")),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
    client.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await?;
    client.shutdown().await
}

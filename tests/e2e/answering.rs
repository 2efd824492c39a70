//! Somebody who answers at an address that a slice may hold.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Servers of HTTP, at this machine's own address, on a port each. They end with this value.
pub(crate) struct Answering {
    ip: IpAddr,
    ports: [u16; 2],
    _serving: JoinSet<()>,
}

impl Answering {
    pub(crate) async fn on_two_ports() -> Result<Self> {
        let ip = own_address()?;
        let mut serving = JoinSet::new();
        let mut ports = [0; 2];
        for port in &mut ports {
            let listener = TcpListener::bind((ip, 0)).await?;
            *port = listener.local_addr()?.port();
            let router = Router::new().route("/", get(|| async { "here" }));
            serving.spawn(async move {
                // It serves until it is dropped.
                let _ = axum::serve(listener, router).await;
            });
        }
        Ok(Self { ip, ports, _serving: serving })
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    pub(crate) fn ports(&self) -> [u16; 2] {
        self.ports
    }
}

/// This machine's own address towards others: a slice may hold no loopback address.
pub(crate) fn own_address() -> Result<IpAddr> {
    // Connecting a UDP socket sends nothing.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

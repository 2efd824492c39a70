//! Somebody who answers at an address that a slice may hold.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;
use lictor_testbed::{Listener, Protocol};

/// Servers of HTTP, at this machine's own address, on a port each. They end with this value.
pub(crate) struct Answering {
    ip: IpAddr,
    servers: [Listener; 2],
}

impl Answering {
    pub(crate) async fn on_two_ports() -> Result<Self> {
        let ip = own_address()?;
        let start = || Listener::start(Protocol::Http, ip, None);
        Ok(Self { ip, servers: [start().await?, start().await?] })
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    pub(crate) fn ports(&self) -> [u16; 2] {
        self.servers.each_ref().map(Listener::port)
    }
}

/// This machine's own address towards others: a slice may hold no loopback address.
pub(crate) fn own_address() -> Result<IpAddr> {
    // Connecting a UDP socket sends nothing.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

//! Free ports.
//!
//! They come from below the kernel's range for outgoing connections: a port of that range can be taken
//! by any connection between our look at it and the program's start. A port is never handed out twice
//! by one process; between processes there is chance, and [`retry`].

use std::collections::HashSet;
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Result, bail};

/// Below Linux' 32768 for outgoing connections and Kubernetes' 30000 for node ports.
const RANGE: Range<u16> = 15_000..30_000;

/// A port of 127.0.0.1 that is free for TCP and UDP.
pub fn free() -> Result<u16> {
    static GIVEN: OnceLock<Mutex<HashSet<u16>>> = OnceLock::new();
    let mut given = GIVEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1_000 {
        let port = fastrand::u16(RANGE);
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free && given.insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port in {RANGE:?}");
}

/// Starts something anew, on other ports, where it failed because somebody else was faster.
pub async fn retry<T, F: Future<Output = Result<T>>>(start: impl Fn() -> F) -> Result<T> {
    for _ in 0..2 {
        match start().await {
            Err(error) if format!("{error:#}").contains("address already in use") => {}
            result => return result,
        }
    }
    start().await
}

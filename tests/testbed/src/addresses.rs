//! Addresses of our own on the loopback interface, for servers that stand in for pods.
//!
//! An `EndpointSlice` may not hold `127.0.0.0/8`, so a server that is to answer at an endpoint's
//! address needs another one. `198.18.0.0/15` is set aside for tests like these (RFC 2544).

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::watchdog::{Watchdog, with_bits};

/// An address on the loopback interface for as long as this value lives. Needs root and `ip`.
#[derive(Debug)]
pub struct LocalAddress {
    address: IpAddr,
}

impl LocalAddress {
    /// Adds the address. Fails where that is not permitted, or where it exists already.
    pub fn add(address: &str) -> Result<Self> {
        let address: IpAddr = address.parse().with_context(|| format!("{address:?} is not an address"))?;
        ip("add", address)?;
        let added = Self { address };
        Watchdog::global()?.watch_address(address)?;
        Ok(added)
    }

    /// The address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address
    }
}

impl Drop for LocalAddress {
    fn drop(&mut self) {
        if ip("del", self.address).is_ok()
            && let Ok(watchdog) = Watchdog::global()
        {
            let _ = watchdog.forget_address(self.address);
        }
    }
}

fn ip(verb: &str, address: IpAddr) -> Result<()> {
    let output = Command::new("ip")
        .args(["addr", verb, &with_bits(address), "dev", "lo"])
        .output()
        .context("running ip (package iproute2)")?;
    ensure!(
        output.status.success(),
        "ip addr {verb} {address}: {} (this needs root)",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

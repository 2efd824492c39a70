//! A part of this machine's network for one cluster, so that several may be up side by side.
//!
//! All of it is in 198.19.0.0/16, which is set aside for tests like these (RFC 2544) and in use nowhere. A site
//! is sixteen /24 of it: the first one joins this machine and the nodes, each other one is a node's pods.

use std::fs::{File, TryLockError};
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Where the locks are. It is the same for everybody: the network is too.
const LOCKS: &str = "/run/lictor-testbed";
const SITES: u8 = 16;
const NETWORKS: u8 = 16;

/// The most nodes that a site has room for.
pub(super) const MAX_NODES: u8 = NETWORKS - 1;

/// A site that is ours while this value lives.
#[derive(Debug)]
pub(super) struct Site {
    number: u8,
    /// Goes with the open file, hence also when its holder is killed.
    _lock: File,
}

impl Site {
    /// Takes a free one.
    pub(super) fn claim() -> Result<Self> {
        std::fs::create_dir_all(LOCKS).with_context(|| format!("making {LOCKS}"))?;
        for number in 0..SITES {
            let lock = File::create(Path::new(LOCKS).join(format!("site-{number}")))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error).context("locking a site"),
            }
            let site = Self { number, _lock: lock };
            // Its last holder was killed, and is still being cleared away.
            if !Path::new("/sys/class/net").join(site.interface()).exists() {
                return Ok(site);
            }
        }
        bail!("all {SITES} sites are taken: as many testbeds with nodes are up");
    }

    /// The interface of this machine that leads to the nodes.
    pub(super) fn interface(&self) -> String {
        format!("lictor{}", self.number)
    }

    /// This machine, as the nodes and their pods see it.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// A node's own address; `index` counts from 1.
    pub(super) fn node(&self, index: u8) -> Ipv4Addr {
        self.address(0, 10 + index)
    }

    /// The range of a node's pods, as `ADDRESS/BITS`.
    pub(super) fn pods(&self, index: u8) -> String {
        format!("{}/24", self.address(index, 0))
    }

    fn address(&self, network: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.number * NETWORKS + network, host)
    }
}

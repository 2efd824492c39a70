//! CoreDNS between a reader and Consul, with the block that the page gives.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use lictor_testbed::dns::{self, Kind};
use lictor_testbed::{Process, WorkDir, ports, wait};

use crate::steps::SOON;

/// Where the block has the port of the cluster's DNS, and Consul's address.
const PORT: &str = ":53";
const CONSUL: &str = "198.51.100.10:8600";

/// What the page asks for.
pub(crate) const BLOCK: &str = "\
consul:53 {
  errors
  forward . 198.51.100.10:8600 {
    force_tcp
  }
}
";

/// A running CoreDNS.
pub(crate) struct CoreDns {
    pub(crate) port: u16,
    _process: Process,
    _folder: WorkDir,
}

impl CoreDns {
    pub(crate) async fn start(program: &Path, consul: SocketAddr) -> Result<Self> {
        ports::retry(|| Self::try_start(program, consul)).await
    }

    async fn try_start(program: &Path, consul: SocketAddr) -> Result<Self> {
        let port = ports::free()?;
        let folder = WorkDir::create("coredns")?;
        let block = BLOCK.replace(PORT, &format!(":{port}")).replace(CONSUL, &consul.to_string());
        let mut command = Command::new(program);
        command.arg("-conf").arg(folder.write("Corefile", block)?);
        let process = Process::spawn("coredns", command, &folder.join("log"))?;
        let answers = wait::until("CoreDNS to answer", SOON, || async {
            if let Err(ended) = process.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            dns::ask((Ipv4Addr::LOCALHOST, port).into(), "consul.service.consul", Kind::A).await?;
            Ok(Some(Ok(())))
        });
        answers.await.with_context(|| process.log_tail(20))??;
        Ok(Self { port, _process: process, _folder: folder })
    }
}

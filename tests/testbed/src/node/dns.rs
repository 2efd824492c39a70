//! The cluster's DNS: CoreDNS, with a stub domain for Consul.
//!
//! It runs on this machine rather than in a pod, so that it is there before the first pod is, and whatever a test does
//! to a node. To pods it is what it is in every cluster: the address of the Service `kube-dns`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::process::Process;
use crate::programs::NodePrograms;
use crate::work_dir::WorkDir;
use crate::{ControlPlane, ports, wait};

/// The address of the Service `kube-dns`.
pub(super) const SERVICE_ADDRESS: &str = "10.96.0.10";
pub(super) const CLUSTER_DOMAIN: &str = "cluster.local";

const START: Duration = Duration::from_secs(20);

/// A running CoreDNS.
#[derive(Debug)]
pub(super) struct Dns {
    _process: Process,
}

impl Dns {
    /// Starts it at `address`. Names that end in `consul` are asked of the servers in `consul`.
    pub(super) async fn start(
        plane: &ControlPlane,
        programs: &NodePrograms,
        work_dir: &WorkDir,
        address: Ipv4Addr,
        consul: &[SocketAddr],
    ) -> Result<Self> {
        ports::retry(|| Self::try_start(plane, programs, work_dir, address, consul)).await
    }

    async fn try_start(
        plane: &ControlPlane,
        programs: &NodePrograms,
        work_dir: &WorkDir,
        address: Ipv4Addr,
        consul: &[SocketAddr],
    ) -> Result<Self> {
        let kubeconfig =
            work_dir.write("coredns.kubeconfig", plane.kubeconfig_for("admin", Some("system:masters"))?)?;
        let (port, ready) = (ports::free()?, ports::free()?);
        let consul: Vec<String> = consul.iter().map(SocketAddr::to_string).collect();
        let config = format!(
            "{CLUSTER_DOMAIN}:{port} {{
    bind {address}
    errors
    kubernetes {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
    ready {address}:{ready}
}}
consul:{port} {{
    bind {address}
    errors
    forward . {consul}
}}
",
            kubeconfig = kubeconfig.display(),
            consul = consul.join(" "),
        );
        let config = work_dir.write("Corefile", config)?;
        let mut command = Command::new(&programs.coredns);
        command.arg("-conf").arg(config);
        let process = Process::spawn("coredns", command, &work_dir.join("coredns.log"))?;
        let url = format!("http://{address}:{ready}/ready");
        let started = wait::until("CoreDNS", START, || async {
            if let Err(ended) = process.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            reqwest::get(&url).await?.error_for_status()?;
            Ok(Some(Ok(())))
        });
        started.await.with_context(|| process.log_tail(20))??;
        publish(plane, address, port).await?;
        Ok(Self { _process: process })
    }
}

/// Makes the Service, and the slice that leads to where it really is.
async fn publish(plane: &ControlPlane, address: Ipv4Addr, port: u16) -> Result<()> {
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system" },
            "spec": {
                "clusterIP": SERVICE_ADDRESS,
                "ports": ports.map(|(name, protocol)| json!({ "name": name, "protocol": protocol, "port": 53 })),
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": "lictor-testbed",
                },
            },
            "addressType": "IPv4",
            "ports": ports.map(|(name, protocol)| json!({ "name": name, "protocol": protocol, "port": port })),
            "endpoints": [{ "addresses": [address] }],
        },
    ]});
    plane.kubectl_program().run_with_input(&["apply", "-f", "-"], &list.to_string()).await.map(drop)
}

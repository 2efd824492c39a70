//! What makes a machine a node: its kubelet, and kube-proxy.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::dns;
use super::machine::Machine;
use crate::ControlPlane;
use crate::process::Process;
use crate::programs::NodePrograms;

/// How a node tells that it lives: it renews its lease four times in this.
const LEASE: Duration = Duration::from_secs(8);

/// What kubelet and kube-proxy are told about their node.
pub(super) struct About<'a> {
    pub(super) machine: &'a Machine,
    pub(super) name: &'a str,
    pub(super) address: Ipv4Addr,
    pub(super) zone: &'a str,
    /// The runtime's socket, as a URL.
    pub(super) runtime: &'a str,
}

/// Writes what a kubelet reads.
pub(super) fn configure_kubelet(about: &About<'_>, plane: &ControlPlane) -> Result<()> {
    let machine = about.machine;
    // This machine's own may name a server that pods cannot reach, such as one of the loopback interface.
    let resolv_conf = machine.write("resolv.conf", "options ndots:1\n")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": about.address,
        "authentication": { "x509": { "clientCAFile": plane.client_authority()? } },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", machine.cgroup()),
        "clusterDNS": [dns::SERVICE_ADDRESS],
        "clusterDomain": dns::CLUSTER_DOMAIN,
        "containerRuntimeEndpoint": about.runtime,
        "enforceNodeAllocatable": [],
        // The disk is everybody's: how full it is, is none of a test's business.
        "evictionHard": { "imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%" },
        "imageGCHighThresholdPercent": 100,
        "failCgroupV1": false,
        "failSwapOn": false,
        "maxPods": 200,
        "nodeLeaseDurationSeconds": LEASE.as_secs(),
        "nodeStatusUpdateFrequency": "2s",
        "oomScoreAdj": 0,
        "podLogsDir": machine.path("disk/pod-logs"),
        "resolvConf": resolv_conf,
        "serializeImagePulls": false,
        "syncFrequency": "10s",
    });
    machine.write("kubelet.yaml", &format!("{config:#}\n"))?;
    let kubeconfig = plane.kubeconfig_for(&format!("system:node:{}", about.name), Some("system:nodes"))?;
    machine.write("kubelet.kubeconfig", &kubeconfig)?;
    Ok(())
}

/// Starts a kubelet as it has been configured, for the first time or again.
pub(super) fn start_kubelet(about: &About<'_>, programs: &NodePrograms) -> Result<Process> {
    let machine = about.machine;
    let mut command = machine.command(&programs.kubelet);
    command.args([
        flag("config", &machine.path("kubelet.yaml")),
        flag("kubeconfig", &machine.path("kubelet.kubeconfig")),
        flag("root-dir", &machine.path("disk/kubelet")),
        flag("cert-dir", &machine.path("disk/kubelet-certificates")),
        format!("--hostname-override={}", about.name),
        format!("--node-ip={}", about.address),
        format!("--node-labels=topology.kubernetes.io/zone={},topology.kubernetes.io/region=testbed", about.zone),
    ]);
    machine.spawn("kubelet", command)
}

/// Starts kube-proxy, which makes the addresses of Services work on this node.
pub(super) fn start_proxy(about: &About<'_>, plane: &ControlPlane, programs: &NodePrograms) -> Result<Process> {
    let machine = about.machine;
    let kubeconfig = plane.kubeconfig_for("system:kube-proxy", None)?;
    let kubeconfig = machine.write("kube-proxy.kubeconfig", &kubeconfig)?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig },
        // Nothing of the real machine: these limits are not a network namespace's own.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "hostnameOverride": about.name,
        "mode": "iptables",
        "oomScoreAdj": 0,
    });
    let config = machine.write("kube-proxy.yaml", &format!("{config:#}\n"))?;
    let mut command = machine.command(&programs.kube_proxy);
    command.arg(flag("config", &config));
    machine.spawn("kube-proxy", command)
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

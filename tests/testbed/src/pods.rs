//! Pods without a kubelet: a pod is created on a node, and a test writes the status that a kubelet would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::TestNamespace;

/// A pod to be made; by default it is ready and has an address of its own.
#[derive(Debug, Clone)]
pub struct NewPod {
    name: String,
    node: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    ports: Vec<(String, u16)>,
    /// Containers beside its own, and native sidecars.
    containers: [Vec<Value>; 2],
    ips: Vec<IpAddr>,
    host_network: bool,
    state: State,
}

/// What the kubelet of a new pod would have reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    NotReady,
    /// Nothing yet: the pod has no address either.
    Unreported,
}

/// A pod that has been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestPod {
    /// Its name.
    pub name: String,
    /// What tells it from the next pod of the same name.
    pub uid: String,
    /// Its first address, also where nobody has reported it yet.
    pub ip: IpAddr,
    /// Its node's name.
    pub node: String,
}

impl NewPod {
    /// Begins with a name and the name of its node, which need not exist.
    #[must_use]
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: node.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            containers: [Vec::new(), Vec::new()],
            ips: Vec::new(),
            host_network: false,
            state: State::Ready,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a named port to its container.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    /// Adds a container of this name, with a named port, beside its own.
    #[must_use]
    pub fn container(mut self, name: &str, port: (&str, u16)) -> Self {
        self.containers[0].push(container(name, &[(port.0.to_owned(), port.1)]));
        self
    }

    /// Likewise a native sidecar: an init container that stays.
    #[must_use]
    pub fn native_sidecar(mut self, name: &str, port: (&str, u16)) -> Self {
        let mut sidecar = container(name, &[(port.0.to_owned(), port.1)]);
        sidecar["restartPolicy"] = json!("Always");
        self.containers[1].push(sidecar);
        self
    }

    /// Gives it this address instead of one of [`next_pod_ip`]; a second one is of the other family.
    #[must_use]
    pub fn ip(mut self, ip: IpAddr) -> Self {
        self.ips.push(ip);
        self
    }

    /// Has it not ready from the start.
    #[must_use]
    pub fn not_ready(mut self) -> Self {
        self.state = State::NotReady;
        self
    }

    /// Has it without an address or any other report, as before its kubelet has seen it.
    #[must_use]
    pub fn unreported(mut self) -> Self {
        self.state = State::Unreported;
        self
    }

    /// Has it share its node's network: its address is the node's, which [`ip`](Self::ip) has to say.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    fn object(&self) -> Result<Pod> {
        let [beside, sidecars] = &self.containers;
        let containers = [&[container("main", &self.ports)], &beside[..]].concat();
        Ok(serde_json::from_value(json!({
            "metadata": {
                "name": self.name,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "automountServiceAccountToken": false,
                "containers": containers,
                "initContainers": sidecars,
            },
        }))?)
    }
}

/// A container; nobody pulls its image.
fn container(name: &str, ports: &[(String, u16)]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
    json!({ "name": name, "image": "none.invalid/none", "ports": ports })
}

/// An address of 10.244.0.0/16 that this process has not given out before.
#[must_use]
pub fn next_pod_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // 250 to a /24 keeps clear of .0 and .255; after 64,000 addresses they come round again.
    let third = (number / 250) % 256;
    let octet = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 244, octet(third), octet(number % 250 + 1)).into()
}

impl TestNamespace {
    /// Makes a pod and has it run.
    pub async fn create_pod(&self, pod: NewPod) -> Result<TestPod> {
        let created = self.pods().create(&PostParams::default(), &pod.object()?).await?;
        let ips = if pod.ips.is_empty() { vec![next_pod_ip()] } else { pod.ips };
        if pod.state != State::Unreported {
            self.report(&pod.name, &ips, pod.state == State::Ready).await?;
        }
        Ok(TestPod {
            name: pod.name,
            uid: created.metadata.uid.context("a pod without a uid")?,
            ip: ips[0],
            node: pod.node,
        })
    }

    /// Has a pod run at these addresses.
    pub async fn report(&self, pod: &str, ips: &[IpAddr], ready: bool) -> Result<()> {
        let listed: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let first = ips.first();
        let conditions = conditions(ready);
        let running = json!({ "phase": "Running", "podIP": first, "podIPs": listed, "conditions": conditions });
        self.patch_pod_status(pod, &running).await
    }

    /// Gives a pod this label, or takes it off.
    pub async fn label_pod(&self, pod: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_pod(pod, &json!({ "labels": { key: value } })).await
    }

    /// Gives a pod this annotation, or takes it off.
    pub async fn annotate_pod(&self, pod: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_pod(pod, &json!({ "annotations": { key: value } })).await
    }

    async fn patch_pod(&self, pod: &str, metadata: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        self.pods().patch(pod, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Makes a pod ready or not ready, as its readiness probe would.
    pub async fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        self.patch_pod_status(pod, &json!({ "conditions": conditions(ready) })).await
    }

    /// Has a pod end: `Succeeded` or `Failed`. It keeps its address, as real ones do.
    pub async fn set_phase(&self, pod: &str, phase: &str) -> Result<()> {
        let ready = phase == "Running";
        self.patch_pod_status(pod, &json!({ "phase": phase, "conditions": conditions(ready) })).await
    }

    /// Begins to delete a pod. With a grace above 0 it stays, terminating, until
    /// [`force_delete`](Self::force_delete): no kubelet confirms its end.
    pub async fn delete_pod(&self, pod: &str, grace_seconds: u32) -> Result<()> {
        let params = DeleteParams::default().grace_period(grace_seconds);
        self.pods().delete(pod, &params).await?;
        Ok(())
    }

    /// Removes a pod at once, as a kubelet does that has seen it end.
    pub async fn force_delete(&self, pod: &str) -> Result<()> {
        self.delete_pod(pod, 0).await
    }

    /// Merges into a pod's status whatever else a test wants there.
    pub async fn patch_pod_status(&self, pod: &str, status: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "status": status }));
        self.pods().patch_status(pod, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The API of this namespace's pods.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client().clone(), self.name())
    }
}

/// What a kubelet reports of a pod that is up.
fn conditions(ready: bool) -> Value {
    let status = |yes| if yes { "True" } else { "False" };
    json!([
        { "type": "PodScheduled", "status": "True" },
        { "type": "Initialized", "status": "True" },
        { "type": "ContainersReady", "status": status(ready) },
        { "type": "Ready", "status": status(ready) },
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pod_addresses_differ() {
        let many: HashSet<IpAddr> = std::iter::repeat_with(next_pod_ip).take(1_000).collect();
        assert_eq!(many.len(), 1_000);
    }
}

//! What a test makes in the cluster: a namespace of its own, and Services, nodes and slices in it.
//!
//! Pods are in [`crate::pods`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Node, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::work_dir::random_suffix;
use crate::{ControlPlane, Kubectl, wait};

const FIELD_MANAGER: &str = "lictor-testbed";
const READY: Duration = Duration::from_secs(20);

/// A namespace for one test, and the cluster as seen from there.
pub struct TestNamespace {
    name: String,
    client: Client,
    kubectl: Kubectl,
}

/// One endpoint of an `EndpointSlice` made by hand.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// None leaves the field out, which means ready.
    pub ready: Option<bool>,
    /// None leaves the field out.
    pub serving: Option<bool>,
    /// None leaves the field out.
    pub terminating: Option<bool>,
    /// The name of its node.
    pub node: Option<String>,
    /// The pod behind it: (name, uid).
    pub pod: Option<(String, String)>,
}

impl NewEndpoint {
    /// A ready endpoint with nothing but its address.
    #[must_use]
    pub fn new(ip: IpAddr) -> Self {
        Self { ip, ready: Some(true), serving: None, terminating: None, node: None, pod: None }
    }

    fn value(&self) -> Value {
        let target = self.pod.as_ref().map(|(name, uid)| json!({ "kind": "Pod", "name": name, "uid": uid }));
        json!({
            "addresses": [self.ip],
            "conditions": {
                "ready": self.ready,
                "serving": self.serving,
                "terminating": self.terminating,
            },
            "nodeName": self.node,
            "targetRef": target,
        })
    }
}

impl TestNamespace {
    /// Makes a namespace with a name of its own that begins with `prefix`, ready for pods.
    pub async fn create(plane: &ControlPlane, prefix: &str) -> Result<Self> {
        let client = plane.client().await?;
        let name = format!("{prefix}-{}", random_suffix());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        namespaces.create(&PostParams::default(), &namespace).await?;

        // Without it no pod is admitted.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
        wait::until("the default service account", READY, || async { Ok(accounts.get_opt("default").await?) }).await?;
        Ok(Self { name, client, kubectl: plane.kubectl_program().clone() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's client, of the runtime that made this namespace.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Removes the namespace, with the nodes made through it, as far as the cluster goes along. It
    /// does not wait for the end.
    pub async fn delete(&self) {
        // Pods wait for a kubelet that is not there.
        let at_once = DeleteParams::default().grace_period(0);
        let _ = self.pods().delete_collection(&at_once, &ListParams::default()).await;
        let ours = ListParams::default().labels(&format!("{FIELD_MANAGER}={}", self.name));
        let _ = self.nodes().delete_collection(&DeleteParams::default(), &ours).await;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let _ = namespaces.delete(&self.name, &DeleteParams::default()).await;
    }

    /// Makes a Service, or changes it: `ports` are (name, port, target port's name or number). An
    /// empty selector is none at all: the slices are then made by hand.
    pub async fn apply_service(
        &self,
        name: &str,
        selector: &[(&str, &str)],
        ports: &[(&str, u16, &str)],
    ) -> Result<Service> {
        let selector: BTreeMap<_, _> = selector.iter().copied().collect();
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, target)| {
                let target = target.parse::<u16>().map_or(json!(target), |number| json!(number));
                json!({ "name": name, "port": port, "targetPort": target })
            })
            .collect();
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": { "selector": selector, "ports": ports },
        });
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.name);
        Ok(services.patch(name, &apply(), &Patch::Apply(service)).await?)
    }

    /// Makes a node that is ready and goes with this namespace. Its name is `NAMESPACE-NAME`, since
    /// nodes have no namespaces; the whole name is returned.
    pub async fn create_node(&self, name: &str, ip: IpAddr, zone: &str) -> Result<String> {
        let name = format!("{}-{name}", self.name);
        let node = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "labels": {
                    FIELD_MANAGER: self.name,
                    "kubernetes.io/hostname": name,
                    "topology.kubernetes.io/zone": zone,
                    "topology.kubernetes.io/region": "testbed",
                },
            },
        }))?;
        self.nodes().create(&PostParams::default(), &node).await?;
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        self.nodes().patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(name)
    }

    /// Gives a node, by its whole name, this label, or takes it off.
    pub async fn label_node(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { key: value } } }));
        self.nodes().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Removes a node by its whole name.
    pub async fn delete_node(&self, name: &str) -> Result<()> {
        self.nodes().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Makes an `EndpointSlice` of a Service by hand, or replaces what is in it. The real controller
    /// leaves it alone, since it says that somebody else manages it.
    pub async fn apply_slice(
        &self,
        name: &str,
        service: &str,
        ports: &[(&str, u16)],
        endpoints: &[NewEndpoint],
    ) -> Result<EndpointSlice> {
        let ipv6 = endpoints.first().is_some_and(|endpoint| endpoint.ip.is_ipv6());
        let ports: Vec<Value> = ports.iter().map(|(name, port)| json!({ "name": name, "port": port })).collect();
        let endpoints: Vec<Value> = endpoints.iter().map(NewEndpoint::value).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/service-name": service,
                    "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER,
                },
            },
            "addressType": if ipv6 { "IPv6" } else { "IPv4" },
            "ports": ports,
            "endpoints": endpoints,
        });
        Ok(self.slices().patch(name, &apply(), &Patch::Apply(slice)).await?)
    }

    /// Removes an `EndpointSlice`.
    pub async fn delete_slice(&self, name: &str) -> Result<()> {
        self.slices().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until the slices of a Service, taken together, have what `predicate` wants.
    pub async fn wait_for_slices(
        &self,
        service: &str,
        description: &str,
        predicate: impl Fn(&[EndpointSlice]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<EndpointSlice>> {
        let labels = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let what = format!("the slices of {service}: {description}");
        let waited = wait::until(what, timeout, || async {
            let slices = self.slices().list(&labels).await?.items;
            Ok(predicate(&slices).then_some(slices))
        });
        self.explained(waited.await).await
    }

    /// `kubectl apply` of one or more objects, into this namespace where they name none.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<String> {
        self.kubectl_input(&["apply", "-f", "-"], yaml).await
    }

    /// `kubectl` in this namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_input(args, "").await
    }

    async fn kubectl_input(&self, args: &[&str], input: &str) -> Result<String> {
        let args = [&["--namespace", self.name.as_str()], args].concat();
        self.kubectl.run_with_input(&args, input).await
    }

    /// Waits for a condition of an object, such as `("csvc/user", "Ready", "True")`. On a time-out it
    /// fails with all that is in the namespace.
    pub async fn wait_for_condition(
        &self,
        object: &str,
        condition: &str,
        status: &str,
        timeout: Duration,
    ) -> Result<()> {
        let condition = format!("--for=condition={condition}={status}");
        let timeout = format!("--timeout={}ms", timeout.as_millis());
        let waited = self.kubectl(&["wait", object, &condition, &timeout]).await;
        self.explained(waited).await.map(drop)
    }

    async fn explained<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(error).context(self.dump().await),
        }
    }

    /// What is in the namespace, as YAML, for failure messages.
    pub async fn dump(&self) -> String {
        let mut dump = format!("namespace {}:\n", self.name);
        // One at a time: a kind that the cluster does not know must not hide the others.
        for kind in ["csvc", "services", "endpointslices", "pods", "events"] {
            let got = self.kubectl(&["get", kind, "-o", "yaml"]).await;
            let got = got.unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = write!(dump, "--- {kind}\n{got}");
        }
        dump
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &self.name)
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

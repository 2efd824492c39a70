//! What is in Kubernetes: Services whose slices are written by hand, on Nodes without a kubelet, and a resource for each.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lictor_testbed::{ControlPlane, TestNamespace};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Requests to Kubernetes at once.
const AT_ONCE: usize = 32;

/// The endpoints that Kubernetes puts into a slice at most.
const OF_A_SLICE: usize = 100;

/// The values of a template that one tag has room for.
const OF_A_TAG: usize = 35;

/// How much there is.
#[derive(Clone, Copy, Args)]
pub(crate) struct Size {
    /// Endpoints of all Services together.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) instances: usize,
    /// Services, each with a resource.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) services: usize,
    /// Nodes.
    #[arg(long, default_value_t = 50)]
    pub(crate) nodes: usize,
    /// Pods in the namespace of the resources, of which the one that selects pods asks.
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// Pods in a namespace without a resource.
    #[arg(long, default_value_t = 0)]
    pods_of_others: usize,
    /// Annotations that the templates of a resource name that selects pods, and has none; no such resource without them.
    #[arg(long, default_value_t = 0)]
    keys: usize,
}

/// The load, in a namespace of its own.
pub(crate) struct Load {
    pub(crate) size: Size,
    pub(crate) namespace: TestNamespace,
    others: TestNamespace,
    nodes: Vec<String>,
}

impl Load {
    pub(crate) async fn make(plane: &ControlPlane, size: Size) -> Result<Self> {
        plane.install_crd(include_str!("../../crds/consulservices.lictor.dev.yaml")).await?;
        let namespace = TestNamespace::create(plane, "bench").await?;
        let others = TestNamespace::create(plane, "others").await?;
        let node = |number: usize| {
            let namespace = &namespace;
            async move { namespace.create_node(&format!("n{number}"), address(172, number), &zone(number)).await }
        };
        let nodes = stream::iter(0..size.nodes).map(node).buffered(AT_ONCE).try_collect().await?;
        let load = Self { size, namespace, others, nodes };
        let each = |number: usize| {
            let load = &load;
            async move { load.make_service(number).await }
        };
        stream::iter(0..size.services).map(each).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        for (namespace, many) in [(&load.namespace, size.pods), (&load.others, size.pods_of_others)] {
            let pods: Api<Pod> = Api::namespaced(namespace.client().clone(), namespace.name());
            let pod = |number: usize| {
                let (pods, node) = (&pods, &load.nodes[number % load.nodes.len()]);
                async move { make_pod(pods, number, node).await }
            };
            stream::iter(0..many).map(pod).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        if size.keys > 0 {
            load.make_asking(size.keys).await?;
        }
        Ok(load)
    }

    /// A resource that selects no pod, and whose tags name so many annotations of pods.
    async fn make_asking(&self, keys: usize) -> Result<()> {
        let keys: Vec<String> = (0..keys).map(|key| format!("${{pod.annotations['k{key}']}}")).collect();
        let tags: Vec<String> = keys.chunks(OF_A_TAG).map(<[String]>::concat).collect();
        let resource = json!({
            "apiVersion": "lictor.dev/v1alpha1",
            "kind": "ConsulService",
            "metadata": { "name": "asking" },
            "spec": { "source": { "pods": { "matchLabels": { "app": "nobody" } } }, "tags": tags },
        });
        create(&self.resources(), resource).await
    }

    async fn make_service(&self, number: usize) -> Result<()> {
        let name = name(number);
        let service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "name": "http", "port": 80 }] } });
        create(&self.api::<Service>(), service).await?;
        let endpoints: Vec<usize> = (number..self.size.instances).step_by(self.size.services).collect();
        for (slice, endpoints) in endpoints.chunks(OF_A_SLICE).enumerate() {
            let endpoints: Vec<Value> = endpoints
                .iter()
                .map(|&endpoint| {
                    json!({
                        "addresses": [address(10, endpoint)],
                        "conditions": { "ready": true, "serving": true, "terminating": false },
                        "nodeName": self.nodes[endpoint / self.size.services % self.nodes.len()],
                    })
                })
                .collect();
            let slice = json!({
                "metadata": {
                    "name": format!("{name}-{slice}"),
                    "labels": { "kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "bench" },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 8080 }],
                "endpoints": endpoints,
            });
            create(&self.api::<EndpointSlice>(), slice).await?;
        }
        let resource = json!({
            "apiVersion": "lictor.dev/v1alpha1",
            "kind": "ConsulService",
            "metadata": { "name": name },
            "spec": {
                "source": { "service": { "name": name } },
                "tags": ["round-0"],
                "meta": { "zone": "${node.zone}" },
            },
        });
        create(&self.resources(), resource).await
    }

    /// Gives an endpoint, the first of its Service's first slice, another readiness.
    pub(crate) async fn set_ready(&self, service: usize, ready: bool) -> Result<()> {
        let patch = json!([{ "op": "replace", "path": "/endpoints/0/conditions/ready", "value": ready }]);
        let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
        let slices = self.api::<EndpointSlice>();
        slices.patch(&format!("{}-0", name(service)), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Gives all resources but the first another tag.
    pub(crate) async fn edit_tags(&self, tag: &str) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": { "tags": [tag] } }));
        let (resources, patch) = (self.resources(), &patch);
        let edit = |number: usize| {
            let resources = &resources;
            async move { resources.patch(&name(number), &PatchParams::default(), patch).await.map(drop) }
        };
        stream::iter(1..self.size.services).map(edit).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(())
    }

    /// Lets a Node without endpoints join, and takes it away.
    pub(crate) async fn node_joins_and_goes(&self) -> Result<()> {
        let node = self.namespace.create_node("guest", address(172, self.size.nodes), "zone-9").await?;
        self.namespace.delete_node(&node).await
    }

    /// Removes what other programs would take for theirs.
    pub(crate) async fn delete(&self) {
        self.namespace.delete().await;
        self.others.delete().await;
    }

    fn client(&self) -> Client {
        self.namespace.client().clone()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), self.namespace.name())
    }

    fn resources(&self) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("lictor.dev", "v1alpha1", "ConsulService"));
        Api::namespaced_with(self.client(), self.namespace.name(), &kind)
    }
}

/// The name of a Service, of its resource, and of what it is in Consul.
pub(crate) fn name(service: usize) -> String {
    format!("s-{service}")
}

fn zone(node: usize) -> String {
    format!("zone-{}", node % 3)
}

/// The address with a number under a first byte.
fn address(first: u8, number: usize) -> IpAddr {
    let [_, b, c, d] = u32::try_from(number + 1).unwrap_or(u32::MAX).to_be_bytes();
    Ipv4Addr::new(first, b, c, d).into()
}

/// A pod as a deployment makes it, on a Node without a kubelet.
async fn make_pod(pods: &Api<Pod>, number: usize, node: &str) -> Result<()> {
    let pod = json!({
        "metadata": {
            "name": format!("app-{}-{number}", number % 50),
            "labels": { "app": format!("app-{}", number % 50), "version": "1.2.3", "pod-template-hash": format!("h{number}") },
            "annotations": { "team": "blue", "prometheus.io/scrape": "true" },
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{ "name": "app", "image": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
    });
    create(pods, pod).await
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + DeserializeOwned,
{
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

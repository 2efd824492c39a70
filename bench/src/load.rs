//! What is in Kubernetes: Services whose slices are written by hand, on Nodes without a kubelet, and a resource for each.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, Client};
use lictor_testbed::{ControlPlane, TestNamespace, wait};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Requests to Kubernetes at once.
pub(crate) const AT_ONCE: usize = 32;

/// The time that Kubernetes may take for removing all of a kind.
const REMOVAL: Duration = Duration::from_secs(300);

/// The first bytes that the addresses of endpoints have in turn.
const FIRST_BYTES: [u8; 2] = [10, 11];

/// The endpoints that Kubernetes puts into a slice at most.
const OF_A_SLICE: usize = 100;

/// The values of a template that one tag has room for.
const OF_A_TAG: usize = 35;

/// The addresses of a large resource, as many as the schema takes.
const LARGE_ADDRESSES: usize = 256;

/// How much there is.
#[derive(Clone, Copy, Args, Serialize)]
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
    /// Resources of 290 KB each, which ask for static addresses that are not allowed: they have no instances.
    #[arg(long, default_value_t = 0)]
    large: usize,
}

impl Size {
    /// So many of each, and nothing else.
    pub(crate) const fn of(instances: usize, services: usize, nodes: usize) -> Self {
        Self { instances, services, nodes, pods: 0, pods_of_others: 0, keys: 0, large: 0 }
    }

    /// The slices of each Service.
    pub(crate) fn slices(&self) -> usize {
        self.instances.div_ceil(self.services).div_ceil(OF_A_SLICE).max(1)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instances, services, nodes, .. } = self;
        write!(f, "{instances} instances of {services} Services on {nodes} nodes")
    }
}

/// The load, in a namespace of its own.
pub(crate) struct Load {
    pub(crate) size: Size,
    pub(crate) namespace: TestNamespace,
    nodes: Vec<String>,
    /// The first byte of all endpoints' addresses.
    first_byte: u8,
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
        let load = Self { size, namespace, nodes, first_byte: FIRST_BYTES[0] };
        stream::iter(0..size.services)
            .map(|number| load.make_service(number))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        load.make_slices().await?;
        load.make_resources().await?;
        for (namespace, many) in [(&load.namespace, size.pods), (&others, size.pods_of_others)] {
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
        let large = |number: usize| load.make_large(number);
        stream::iter(0..size.large).map(large).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(load)
    }

    /// A resource of [`LARGE_ADDRESSES`] addresses with texts of their own.
    async fn make_large(&self, number: usize) -> Result<()> {
        let addresses = (0..LARGE_ADDRESSES).map(|at| {
            let tags: Vec<String> = (0..8).map(|tag| format!("{number}-{at}-{tag}-{:x>120}", "")).collect();
            json!({ "address": address(203, at), "port": 80, "tags": tags })
        });
        let resource = json!({
            "apiVersion": "lictor.dev/v1alpha1",
            "kind": "ConsulService",
            "metadata": { "name": format!("large-{number}") },
            "spec": { "source": { "static": addresses.collect::<Vec<_>>() } },
        });
        create(&self.resources(), resource).await
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
        let service =
            json!({ "metadata": { "name": name(number) }, "spec": { "ports": [{ "name": "http", "port": 80 }] } });
        create(&self.api::<Service>(), service).await
    }

    /// Makes all slices.
    pub(crate) async fn make_slices(&self) -> Result<()> {
        stream::iter(self.all_slices())
            .map(|slice| self.make_slice(slice))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Makes all resources.
    pub(crate) async fn make_resources(&self) -> Result<()> {
        let all = stream::iter(0..self.size.services).map(|number| self.make_resource(number));
        all.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn make_slice(&self, slice: Slice) -> Result<()> {
        let object = json!({
            "metadata": {
                "name": slice.name(),
                "labels": {
                    "kubernetes.io/service-name": name(slice.service),
                    "endpointslice.kubernetes.io/managed-by": "bench",
                },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": self.endpoints(slice),
        });
        create(&self.api::<EndpointSlice>(), object).await
    }

    /// The endpoints of a slice, all of them ready.
    fn endpoints(&self, slice: Slice) -> Value {
        let endpoint = |number: usize| {
            let node = self.node_number(number);
            json!({
                "addresses": [address(self.first_byte, number)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": self.nodes[node],
                "zone": zone(node),
            })
        };
        let of_service = (slice.service..self.size.instances).step_by(self.size.services);
        of_service.skip(slice.number * OF_A_SLICE).take(OF_A_SLICE).map(endpoint).collect()
    }

    async fn make_resource(&self, number: usize) -> Result<()> {
        let name = name(number);
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

    /// All slices, the first one of each Service first.
    fn all_slices(&self) -> impl Iterator<Item = Slice> + use<> {
        let Size { services, .. } = self.size;
        let all = services * self.size.slices();
        (0..all).map(move |number| Slice { service: number % services, number: number / services })
    }

    /// The endpoint whose readiness is changed as the one with this number: the first ones of all slices, then the second ones, and so
    /// on. So each is changed once, and none too fast to be seen.
    pub(crate) fn endpoint(&self, number: usize) -> Endpoint {
        let Size { instances, services, .. } = self.size;
        let number = number % instances;
        let slices = services * self.size.slices();
        let slice = Slice { service: number % services, number: number % slices / services };
        let place = number / slices;
        Endpoint { slice, place, number: slice.service + services * (slice.number * OF_A_SLICE + place) }
    }

    /// The endpoints of a Service are on nodes in turn, from another one on for each Service: all nodes have as many.
    fn node_number(&self, endpoint: usize) -> usize {
        (endpoint % self.size.services + endpoint / self.size.services) % self.nodes.len()
    }

    /// The Kubernetes node of an endpoint, and its address.
    pub(crate) fn place(&self, endpoint: Endpoint) -> (&str, IpAddr) {
        (&self.nodes[self.node_number(endpoint.number)], address(self.first_byte, endpoint.number))
    }

    /// Gives an endpoint another readiness.
    pub(crate) async fn set_ready(&self, endpoint: Endpoint, ready: bool) -> Result<()> {
        let path = format!("/endpoints/{}/conditions/ready", endpoint.place);
        self.patch_slice(endpoint.slice, json!([{ "op": "replace", "path": path, "value": ready }])).await
    }

    async fn patch_slice(&self, slice: Slice, patch: Value) -> Result<()> {
        let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
        self.api::<EndpointSlice>().patch(&slice.name(), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Gives all endpoints the addresses that they will have after the next replacement, and says what the addresses from
    /// before begin with.
    pub(crate) fn next_addresses(&mut self) -> u8 {
        let [one, other] = FIRST_BYTES;
        let next = if self.first_byte == one { other } else { one };
        std::mem::replace(&mut self.first_byte, next)
    }

    /// Replaces the endpoints of all slices, so many slices at once.
    pub(crate) async fn replace_endpoints(&self, at_once: usize) -> Result<()> {
        let replace = |slice: Slice| {
            self.patch_slice(slice, json!([{ "op": "replace", "path": "/endpoints", "value": self.endpoints(slice) }]))
        };
        stream::iter(self.all_slices()).map(replace).buffer_unordered(at_once).try_collect().await
    }

    /// Deletes all resources, and waits until they are gone.
    pub(crate) async fn delete_resources(&self) -> Result<()> {
        let resources = self.resources();
        resources.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        wait::until("the end of all resources", REMOVAL, || async {
            Ok(resources.list(&ListParams::default().limit(1)).await?.items.is_empty().then_some(()))
        })
        .await
    }

    /// Deletes all slices.
    pub(crate) async fn delete_slices(&self) -> Result<()> {
        let slices = self.api::<EndpointSlice>();
        slices.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
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

/// A slice: of which Service, and which one of its slices.
#[derive(Clone, Copy)]
struct Slice {
    service: usize,
    number: usize,
}

impl Slice {
    fn name(self) -> String {
        format!("{}-{}", name(self.service), self.number)
    }
}

/// An endpoint of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint {
    slice: Slice,
    /// Its place in the slice.
    place: usize,
    /// Its number among all.
    number: usize,
}

impl Endpoint {
    /// The number of its Service.
    pub(crate) fn service(self) -> usize {
        self.slice.service
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

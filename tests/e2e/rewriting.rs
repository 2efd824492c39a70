//! Slices that Kubernetes' own controller rewrites one after the other, at its default rate, while a reader asks Consul
//! all the time who is there.
//!
//! Sixty slices: the controller writes 30 at once and then 20 a second, so that a gap shows. By default they are small;
//! `LICTOR_ENDPOINTS=600` makes them as large as in a real cluster, which takes minutes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lictor_testbed::{
    ConsulOptions, ControlPlane, ControlPlaneOptions, NewPod, Programs, Reader, Seen, Shared, TestNamespace, TestPod,
};
use serde_json::json;

use crate::fixture::{Fixture, LARGE, apply, install_crd, resources};

const SLICES: usize = 60;

/// How long Kubernetes and Lictor may take for a step.
const STEP: Duration = Duration::from_secs(120);

/// How many requests a test has under way at once.
const AT_ONCE: usize = 16;

/// How many endpoints there are.
fn endpoints() -> usize {
    let given = std::env::var(LARGE).ok();
    given.and_then(|given| given.parse().ok()).filter(|given| *given >= SLICES).unwrap_or(2 * SLICES)
}

/// Controllers that write at their default rate.
fn gradually() -> ControlPlaneOptions {
    let per_slice = format!("--max-endpoints-per-slice={}", endpoints().div_ceil(SLICES));
    ControlPlaneOptions {
        controller_manager_extra_args: vec!["--kube-api-qps=20".into(), "--kube-api-burst=30".into(), per_slice],
        ..ControlPlaneOptions::default()
    }
}

/// A control plane with such controllers, for whoever asks.
async fn gradual(programs: &Programs) -> Result<&'static ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    let start = || async {
        let plane = ControlPlane::start_with(programs, &gradually()).await?;
        install_crd(&plane).await?;
        Ok(plane)
    };
    PLANE.get("the control plane", start).await
}

/// A Service of many pods on two nodes, with a resource.
struct Shop<'a> {
    fixture: &'a Fixture,
    namespace: TestNamespace,
    pods: Vec<TestPod>,
    made: usize,
    /// What readers have seen, by step.
    seen: Vec<(String, Seen)>,
}

impl<'a> Shop<'a> {
    /// Makes so many pods, and has an operator register them.
    async fn open(fixture: &'a Fixture, plane: &ControlPlane, many: usize) -> Result<Self> {
        fixture.own_consul(ConsulOptions::default()).await?;
        let namespace = TestNamespace::create(plane, &format!("shop-{}", fixture.mode.as_str())).await?;
        for (name, address) in [("a", "192.0.2.10"), ("b", "192.0.2.11")] {
            namespace.create_node(name, address.parse()?, "zone-1").await?;
        }
        let mut shop = Self { fixture, namespace, pods: Vec::new(), made: 0, seen: Vec::new() };
        shop.ports(&[("http", 80, "8080")]).await?;
        shop.grow(many).await?;
        let operator = fixture.operator().kubeconfig(plane.kubeconfig()).namespace(shop.namespace.name());
        operator.ready().await?;
        apply(&resources(&shop.namespace), "web", &fixture.spec(json!({ "port": 80 }))).await?;
        shop.settle(&[("http", 8080)]).await?;
        Ok(shop)
    }

    /// Fails where a reader missed one that lived.
    async fn close(self) -> Result<()> {
        for (step, seen) in &self.seen {
            ensure!(seen.is_whole(), "{step}: {seen}");
        }
        self.namespace.delete().await;
        Ok(())
    }

    async fn ports(&self, ports: &[(&str, u16, &str)]) -> Result<()> {
        self.namespace.apply_service("web", &[("app", "web")], ports).await.map(drop)
    }

    /// Makes so many ready pods.
    async fn grow(&mut self, many: usize) -> Result<()> {
        let numbers = self.made..self.made + many;
        self.made += many;
        let namespace = &self.namespace;
        let made = stream::iter(numbers).map(|number| {
            let node = format!("{}-{}", namespace.name(), if number % 2 == 0 { "a" } else { "b" });
            let pod = NewPod::new(&format!("web-{number}"), &node).label("app", "web").port("http", 8080);
            namespace.create_pod(pod)
        });
        self.pods.extend(made.buffered(AT_ONCE).try_collect::<Vec<_>>().await?);
        Ok(())
    }

    /// Has the first pods terminate, as the kubelet lets them, and then be gone.
    async fn shrink(&mut self, many: usize) -> Result<()> {
        let namespace = &self.namespace;
        let leaving: Vec<TestPod> = self.pods.drain(..many).collect();
        for grace in [30, 0] {
            let deleted = stream::iter(&leaving).map(|pod| namespace.delete_pod(&pod.name, grace));
            deleted.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            // The controller sees them terminate before they are gone.
            let all_but = |slices: &[EndpointSlice]| ready_in(slices) == self.pods.len();
            namespace.wait_for_slices("web", "those that stay, ready", all_but, STEP).await?;
        }
        Ok(())
    }

    /// Waits until Kubernetes' slices have all endpoints with these ports, and Consul has just these.
    async fn settle(&self, ports: &[(&str, u16)]) -> Result<()> {
        let many = self.pods.len();
        let followed = |slices: &[EndpointSlice]| {
            ready_in(slices) == many
                && slices.iter().filter(|slice| ready_in(&[(*slice).clone()]) > 0).all(|slice| has_ports(slice, ports))
        };
        self.namespace.wait_for_slices("web", &format!("{many} endpoints with {ports:?}"), followed, STEP).await?;
        let just_these = |found: &[lictor_testbed::Instance]| found.len() == many;
        let consul = self.fixture.consul();
        consul.wait_for(&self.fixture.service, &format!("{many} instances"), just_these, STEP).await?;
        self.namespace.wait_for_condition("csvc/web", "Ready", "True", STEP).await
    }

    fn reader(&self, living: &[TestPod]) -> Reader {
        let living = living.iter().map(|pod| pod.ip.to_string());
        Reader::begin(&self.fixture.consul_address(), &self.fixture.service, living)
    }

    async fn note(&mut self, step: &str, reader: Reader) -> Result<()> {
        let seen = reader.end().await?;
        println!("{}: {step}: {seen}", self.fixture.mode.as_str());
        self.seen.push((step.to_owned(), seen));
        Ok(())
    }
}

fn ready_in(slices: &[EndpointSlice]) -> usize {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|it| it.ready == Some(true)));
    ready.count()
}

fn has_ports(slice: &EndpointSlice, ports: &[(&str, u16)]) -> bool {
    let has = |(name, number): &(&str, u16)| {
        let mut all = slice.ports.iter().flatten();
        all.any(|port| port.name.as_deref() == Some(*name) && port.port == Some(i32::from(*number)))
    };
    slice.ports.iter().flatten().count() == ports.len() && ports.iter().all(has)
}

pub(crate) async fn slices_are_rewritten_one_by_one(fixture: &Fixture) -> Result<()> {
    let many = endpoints();
    let mut shop = Shop::open(fixture, gradual(fixture.programs).await?, many).await?;

    for (step, ports, numbers) in [
        (
            "a port is added",
            &[("http", 80, "8080"), ("metrics", 90, "9090")][..],
            &[("http", 8080), ("metrics", 9090)][..],
        ),
        ("a port is renamed", &[("web", 80, "8080"), ("metrics", 90, "9090")], &[("web", 8080), ("metrics", 9090)]),
        (
            "the targetPort is changed",
            &[("web", 80, "8081"), ("metrics", 90, "9090")],
            &[("web", 8081), ("metrics", 9090)],
        ),
    ] {
        let reader = shop.reader(&shop.pods);
        shop.ports(ports).await?;
        shop.settle(numbers).await?;
        shop.note(step, reader).await?;
    }
    let ports = [("web", 8081), ("metrics", 9090)];

    let reader = shop.reader(&shop.pods[many / 2..]);
    shop.shrink(many / 2).await?;
    shop.settle(&ports).await?;
    shop.grow(many / 2).await?;
    shop.settle(&ports).await?;
    shop.note("scaled to half and back", reader).await?;

    let surge = many / 4;
    for batch in 1..=4 {
        let reader = shop.reader(&shop.pods[surge..]);
        shop.grow(surge).await?;
        shop.settle(&ports).await?;
        shop.shrink(surge).await?;
        shop.settle(&ports).await?;
        shop.note(&format!("a rollout with surge, batch {batch} of 4"), reader).await?;
    }

    let node = format!("{}-a", shop.namespace.name());
    // The controller looks at Nodes when it looks at a Service.
    let touched = shop.pods.iter().find(|pod| pod.node != node).context("a pod on the other node")?.clone();
    let others: Vec<TestPod> = shop.pods.iter().filter(|pod| pod.name != touched.name).cloned().collect();
    let reader = shop.reader(&others);
    shop.namespace.delete_node(&node).await?;
    shop.namespace.set_ready(&touched.name, false).await?;
    let half = |slices: &[EndpointSlice]| ready_in(slices) <= many - many / 2;
    shop.namespace.wait_for_slices("web", "no endpoints of the Node", half, STEP).await?;
    shop.namespace.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    shop.namespace.set_ready(&touched.name, true).await?;
    shop.settle(&ports).await?;
    shop.note("a Node is deleted and back", reader).await?;

    shop.close().await
}

/// What takes slices away as a whole: somebody deletes all of them, the Service is deleted and made anew, its Node is away for
/// a moment; and the controller ends in the middle of writing them.
pub(crate) async fn all_slices_go_and_come_back(fixture: &Fixture) -> Result<()> {
    let options = gradually();
    let plane = ControlPlane::start_with(fixture.programs, &options).await?;
    install_crd(&plane).await?;
    let mut shop = Shop::open(fixture, &plane, endpoints()).await?;
    let ports = [("http", 8080)];
    let (http, metrics) = (("http", 80, "8080"), ("metrics", 90, "9090"));

    let reader = shop.reader(&shop.pods);
    shop.namespace.kubectl(&["delete", "endpointslices", "--selector=kubernetes.io/service-name=web"]).await?;
    shop.settle(&ports).await?;
    shop.note("all slices are deleted at once", reader).await?;

    let reader = shop.reader(&shop.pods);
    shop.namespace.kubectl(&["delete", "service", "web"]).await?;
    shop.ports(&[http]).await?;
    let uid = shop.namespace.kubectl(&["get", "service", "web", "--output=jsonpath={.metadata.uid}"]).await?;
    // Those of the old one are collected some time later.
    let are_its_own = |slices: &[EndpointSlice]| {
        let mut owners = slices.iter().flat_map(|slice| slice.metadata.owner_references.iter().flatten());
        !slices.is_empty() && owners.all(|owner| owner.uid == uid)
    };
    shop.namespace.wait_for_slices("web", "none but the new Service's", are_its_own, STEP).await?;
    shop.settle(&ports).await?;
    shop.note("the Service is deleted and made anew", reader).await?;

    let reader = shop.reader(&shop.pods);
    shop.ports(&[http, metrics]).await?;
    let begun = |slices: &[EndpointSlice]| {
        let follow = |slice: &EndpointSlice| has_ports(slice, &[("http", 8080), ("metrics", 9090)]);
        slices.iter().any(follow)
    };
    shop.namespace.wait_for_slices("web", "some that follow", begun, STEP).await?;
    plane.restart_controllers(fixture.programs, &options)?;
    let ports = [("http", 8080), ("metrics", 9090)];
    shop.settle(&ports).await?;
    shop.note("the controller starts anew in the middle of its writes", reader).await?;

    let (node, many) = (format!("{}-a", shop.namespace.name()), shop.pods.len());
    let touched = shop.pods.iter().find(|pod| pod.node != node).context("a pod on the other node")?.clone();
    let others: Vec<TestPod> = shop.pods.iter().filter(|pod| pod.name != touched.name).cloned().collect();
    let reader = shop.reader(&others);
    shop.namespace.delete_node(&node).await?;
    shop.namespace.set_ready(&touched.name, false).await?;
    let fewer = |slices: &[EndpointSlice]| ready_in(slices) < many - 1;
    shop.namespace.wait_for_slices("web", "fewer than live", fewer, STEP).await?;
    shop.namespace.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    // The controller looks for the Node again by itself.
    let back = |slices: &[EndpointSlice]| ready_in(slices) == many - 1;
    shop.namespace.wait_for_slices("web", "all that live", back, STEP).await?;
    shop.namespace.set_ready(&touched.name, true).await?;
    shop.settle(&ports).await?;
    shop.note("a Node is deleted and registered again at once", reader).await?;
    shop.close().await
}

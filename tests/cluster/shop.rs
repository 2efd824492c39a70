//! An app whose pods run, and what Consul says of them.

use lictor_testbed::Mode;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use lictor_testbed::node::APP_IMAGE;
use lictor_testbed::{ConsulApi, Instance, TestNamespace, wait};
use serde_json::{Value, json};

use crate::environment::{Cluster, LONELY, SOON, until};
use crate::release::Release;

/// How an app is to be.
pub(crate) struct App {
    pub(crate) replicas: u32,
    /// Arguments of the server; see `programs/app/serve.go`.
    pub(crate) args: &'static [&'static str],
    /// Checks that Consul runs, where somebody runs them.
    pub(crate) checks: bool,
    /// How long a pod goes on serving after it was told to end, in seconds.
    pub(crate) pre_stop: u32,
    /// On the node that is not for everybody, besides.
    pub(crate) lonely: bool,
    /// A `StatefulSet` rather than a Deployment.
    pub(crate) stateful: bool,
}

impl Default for App {
    fn default() -> Self {
        Self { replicas: 3, args: &[], checks: false, pre_stop: 0, lonely: false, stateful: false }
    }
}

/// A namespace with the app `user`, its Service, and its resource.
pub(crate) struct Shop<'a> {
    cluster: &'a Cluster,
    pub(crate) namespace: TestNamespace,
    /// Its name in Consul.
    pub(crate) service: String,
    /// The types of the checks that each of its instances has.
    kinds: BTreeSet<&'static str>,
    mode: Mode,
}

impl<'a> Shop<'a> {
    /// Makes one, for this release to register.
    pub(crate) async fn open(release: &Release<'a>, prefix: &str, app: &App) -> Result<Self> {
        let namespace = release.cluster.namespace(&format!("{prefix}-{}", release.mode.as_str())).await?;
        let service = format!("user-{}", namespace.name());
        let checks = app.checks && (release.mode == Mode::Agent || release.cluster.own().is_ok());
        let mut kinds = BTreeSet::from([if release.mode == Mode::Agent { "ttl" } else { "kubernetes-readiness" }]);
        if checks {
            kinds.extend(["http", "tcp", "grpc"]);
        }
        let shop = Self { cluster: release.cluster, namespace, service, kinds, mode: release.mode };
        let items = [workload(app), kubernetes_service(), shop.resource("user", &shop.service, &release.name, checks)];
        let opened = shop.apply(&items).await;
        shop.explain(opened).await?;
        Ok(shop)
    }

    /// Closes it, if `result` is one; else adds to it what is in it.
    pub(crate) async fn close<T>(&self, result: Result<T>) -> Result<T> {
        let result = self.explain(result).await;
        self.namespace.delete().await;
        result
    }

    async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let dump = self.namespace.dump().await;
        let held = self.consul().dump(&self.service).await;
        Err(anyhow!("{error:#}\n{dump}\n{held}"))
    }

    pub(crate) async fn apply(&self, items: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.namespace.apply_yaml(&list.to_string()).await.map(drop)
    }

    /// A resource over the Service `user`.
    pub(crate) fn resource(&self, name: &str, service: &str, class: &str, checks: bool) -> Value {
        let mut spec = json!({
            "name": service,
            "class": class,
            "source": { "service": { "name": "user" } },
            "port": "http",
        });
        if checks {
            spec["checks"] = json!([
                { "name": "http", "http": { "path": "/health" }, "interval": "1s" },
                { "name": "tcp", "tcp": {}, "port": "tcp", "interval": "1s" },
                { "name": "grpc", "grpc": {}, "port": "grpc", "interval": "1s" },
            ]);
        }
        json!({
            "apiVersion": "lictor.dev/v1alpha1",
            "kind": "ConsulService",
            "metadata": { "name": name, "namespace": self.namespace.name() },
            "spec": spec,
        })
    }

    pub(crate) fn consul(&self) -> ConsulApi {
        self.cluster.consul()
    }

    pub(crate) async fn instances(&self) -> Result<Vec<Instance>> {
        self.consul().instances(&self.service).await
    }

    /// Waits until what Consul has of it is as wanted.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl Fn(&[Instance]) -> bool) -> Result<Vec<Instance>> {
        self.consul().wait_for(&self.service, what, wanted, SOON).await
    }

    /// Waits until Consul has just the pods that are ready and not told to end, each passing by all of its checks.
    pub(crate) async fn wait_for_all(&self, number: usize) -> Result<Vec<Instance>> {
        let what = format!("{number} instances, each passing by {:?}, at the pods' addresses", self.kinds);
        let found = wait::until(&what, SOON, || async {
            let pods: BTreeSet<String> = self.pods().await?.into_iter().map(|pod| pod.address).collect();
            let found = self.instances().await?;
            let addresses: BTreeSet<String> = found.iter().map(|instance| instance.address.clone()).collect();
            ensure!(found.len() == number, "there are {}", found.len());
            ensure!(addresses == pods, "they are at {addresses:?}, and the pods at {pods:?}");
            let failing = found.iter().find(|instance| !self.passes(instance));
            ensure!(failing.is_none(), "one does not pass: {failing:?}");
            Ok(Some(found))
        });
        found.await
    }

    /// Whether it has all of its checks, and they pass.
    pub(crate) fn passes(&self, instance: &Instance) -> bool {
        passing(instance) == self.kinds && instance.status == "passing"
    }

    /// Whether it has all of its checks, and those and no others fail.
    pub(crate) fn fails_by(&self, instance: &Instance, failing: &[&str]) -> bool {
        let failing = failing.iter().copied().collect();
        passing(instance) == self.kinds.difference(&failing).copied().collect() && instance.status == "critical"
    }

    /// The type of the check that is readiness in Kubernetes.
    pub(crate) fn readiness(&self) -> &'static str {
        if self.mode == Mode::Agent { "ttl" } else { "kubernetes-readiness" }
    }

    /// The types of the checks that Consul runs.
    pub(crate) fn has_checks(&self) -> bool {
        self.kinds.len() > 1
    }

    /// Its pods that have an address and were not told to end.
    pub(crate) async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<PodObject> = Api::namespaced(self.namespace.client().clone(), self.namespace.name());
        let pods = pods.list(&ListParams::default().labels("app=user")).await?.items;
        let live = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let known = live.filter_map(|pod| {
            Some(Pod {
                name: pod.metadata.name?,
                uid: pod.metadata.uid?,
                address: pod.status?.pod_ip?,
                node: pod.spec?.node_name?,
            })
        });
        Ok(known.collect())
    }

    /// The API of its resources.
    pub(crate) fn resources(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("lictor.dev", "v1alpha1", "ConsulService");
        let kind = ApiResource::from_gvk_with_plural(&kind, "consulservices");
        Api::namespaced_with(self.namespace.client().clone(), self.namespace.name(), &kind)
    }

    /// Tells a pod's server something, such as `/ready?ok=false`.
    pub(crate) async fn tell(&self, pod: &str, what: &str) -> Result<()> {
        let url = format!("http://127.0.0.1:8080{what}");
        self.namespace.kubectl(&["exec", pod, "--", "/app", "put", &url]).await.map(drop)
    }

    /// Waits until a pod finds these addresses by Consul's DNS.
    pub(crate) async fn wait_for_names(&self, pod: &str, wanted: &BTreeSet<String>) -> Result<()> {
        let name = format!("{}.service.consul", self.service);
        let server = self.cluster.consul_names().await?.map(|server| format!("-server={server}"));
        let lookup: Vec<&str> =
            ["exec", pod, "--", "/app", "lookup"].into_iter().chain(server.as_deref()).chain([name.as_str()]).collect();
        until(format!("{wanted:?} for {name}"), || async {
            let found = self.namespace.kubectl(&lookup).await?;
            let found: BTreeSet<String> = found.lines().map(str::to_owned).collect();
            ensure!(found == *wanted, "it is {found:?}");
            Ok(Some(()))
        })
        .await
    }

    /// What in Consul only a write of ours moves: of each instance its row's and its readiness' index.
    pub(crate) async fn indices(&self) -> Result<Vec<(String, u64, u64)>> {
        let services = self.consul().services(&self.service).await?;
        let mut found = Vec::new();
        for entry in services.as_array().context("no list")? {
            let service = &entry["Service"];
            let mut checks = entry["Checks"].as_array().into_iter().flatten();
            let readiness = checks.find(|check| check["Type"] == self.readiness()).context("no readiness")?;
            let index = |value: &Value| value["ModifyIndex"].as_u64().context("no index");
            let id = service["ID"].as_str().context("no ID")?.to_owned();
            found.push((id, index(service)?, index(readiness)?));
        }
        found.sort();
        Ok(found)
    }
}

/// A pod of the app.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) address: String,
    pub(crate) node: String,
}

/// Looks all the time whether at least so many instances pass.
pub(crate) struct Watch {
    ended: AtomicBool,
    looks: AtomicUsize,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { ended: AtomicBool::new(false), looks: AtomicUsize::new(0) }
    }

    /// Looks until it is ended; fails at the first moment with fewer than `least` instances that pass.
    pub(crate) async fn look(&self, shop: &Shop<'_>, least: usize) -> Result<()> {
        let api = shop.consul();
        while !self.ended.load(Ordering::SeqCst) {
            let found = api.instances(&shop.service).await?;
            let passing = found.iter().filter(|instance| instance.status == "passing").count();
            ensure!(passing >= least, "a moment with {passing} of {least} passing: {found:#?}");
            self.looks.fetch_add(1, Ordering::SeqCst);
            // The pace of the looks, not a wait for anything.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends it, and gives how often it has looked.
    pub(crate) fn end(&self) -> usize {
        self.ended.store(true, Ordering::SeqCst);
        self.looks.load(Ordering::SeqCst)
    }

    /// Looks while something else is done, which gives what this gives.
    pub(crate) async fn during<T>(
        &self,
        shop: &Shop<'_>,
        least: usize,
        done: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let done = async {
            let value = done.await?;
            ensure!(self.end() > 10, "hardly a look");
            Ok(value)
        };
        tokio::try_join!(self.look(shop, least), done).map(|((), done)| done)
    }
}

/// The types of an instance's own checks that pass.
fn passing(instance: &Instance) -> BTreeSet<&str> {
    let own = instance.checks.iter().filter(|check| !check.service_id.is_empty());
    own.filter(|check| check.status == "passing").map(|check| check.kind.as_str()).collect()
}

/// What runs the pods.
pub(crate) fn workload(app: &App) -> Value {
    let args: Vec<&str> = std::iter::once("serve").chain(app.args.iter().copied()).collect();
    let mut container = json!({
        "name": "app",
        "image": APP_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "ports": [
            { "name": "http", "containerPort": 8080 },
            { "name": "grpc", "containerPort": 9090 },
            { "name": "tcp", "containerPort": 7070 },
        ],
        "readinessProbe": {
            "httpGet": { "path": "/ready", "port": "http" },
            "periodSeconds": 1,
            "failureThreshold": 1,
            // A busy machine is not a pod that says no.
            "timeoutSeconds": 20,
        },
    });
    if app.pre_stop > 0 {
        container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": app.pre_stop } } });
    }
    let mut pod =
        json!({ "enableServiceLinks": false, "terminationGracePeriodSeconds": 30, "containers": [container] });
    if app.lonely {
        pod["nodeSelector"] = json!({ (LONELY): "" });
        pod["tolerations"] = json!([{ "key": LONELY, "operator": "Exists" }]);
    }
    let mut spec = json!({
        "replicas": app.replicas,
        "selector": { "matchLabels": { "app": "user" } },
        "template": { "metadata": { "labels": { "app": "user" } }, "spec": pod },
    });
    if app.stateful {
        spec["serviceName"] = "user".into();
        spec["podManagementPolicy"] = "Parallel".into();
    } else {
        spec["strategy"] = json!({ "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    }
    let kind = if app.stateful { "StatefulSet" } else { "Deployment" };
    json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": "user" }, "spec": spec })
}

fn kubernetes_service() -> Value {
    let ports = [("http", 80), ("grpc", 9090), ("tcp", 7070)];
    let ports = ports.map(|(name, port)| json!({ "name": name, "port": port, "targetPort": name }));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "user" },
        "spec": { "selector": { "app": "user" }, "ports": ports },
    })
}

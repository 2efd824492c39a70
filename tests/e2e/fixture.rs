//! What a scenario stands on: a namespace, a cluster name and a Consul name of its own, on servers that all share.
//!
//! Whatever becomes of the scenario, nothing of it is left; and if it fails, it says what Kubernetes and Consul hold
//! and what the operators had to say.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use lictor::model::ids::ClusterName;
use lictor::model::nodes::node_name;
pub(crate) use lictor_testbed::Mode;
use lictor_testbed::dns::{self, Kind};
use lictor_testbed::{
    Consul, ConsulApi, ConsulOptions, ControlPlane, Esm, Instance, NewPod, Operator, Programs, Shared, TestNamespace,
    TestPod, init_tls, wait,
};
use serde_json::{Value, json};

use crate::launch::Launch;

/// The program under test.
pub(crate) const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");

/// For anything that should come within moments, on a machine that is busy with all other scenarios.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// For a whole scenario: one that hangs says so.
const SCENARIO: Duration = Duration::from_secs(150);

/// Likewise, where [`LARGE`] is set.
const LARGE_SCENARIO: Duration = Duration::from_secs(1800);

/// How many endpoints there are in the scenario of a large Service, where there are to be many.
pub(crate) const LARGE: &str = "LICTOR_ENDPOINTS";

/// For how many minutes tokens of one minute are used, besides 20 s; one by default.
pub(crate) const LOGIN_MINUTES: &str = "LICTOR_LOGIN_MINUTES";

/// How often each fault of three Consul servers is made; once by default.
pub(crate) const SERVER_FAULTS: &str = "LICTOR_SERVER_FAULTS";

/// The servers of this process.
pub(crate) struct Servers {
    pub(crate) programs: Programs,
    pub(crate) plane: ControlPlane,
    consul: Consul,
}

impl Servers {
    /// The servers, started by whoever asks first. They end with this process.
    pub(crate) async fn shared() -> Result<&'static Self> {
        static SERVERS: Shared<Servers> = Shared::new();
        SERVERS.get("the servers", Self::start).await
    }

    async fn start() -> Result<Self> {
        init_tls();
        let programs = Programs::ensure().await?;
        let (plane, consul) =
            tokio::try_join!(ControlPlane::obtain(), Consul::start(&programs, ConsulOptions::default()))?;
        install_crd(&plane).await?;
        Ok(Self { programs, plane, consul })
    }
}

/// Installs the CRD that the program prints.
pub(crate) async fn install_crd(plane: &ControlPlane) -> Result<()> {
    let printed = std::process::Command::new(LICTOR).arg("crd").output()?;
    ensure!(printed.status.success(), "lictor crd: {}", String::from_utf8_lossy(&printed.stderr));
    plane.install_crd(&String::from_utf8(printed.stdout)?).await
}

/// One scenario's own part of the world.
pub(crate) struct Fixture {
    pub(crate) mode: Mode,
    pub(crate) namespace: TestNamespace,
    /// The cluster's name in Consul: this scenario's alone.
    pub(crate) cluster: String,
    /// The service's name in Consul, likewise.
    pub(crate) service: String,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) programs: &'static Programs,
    plane: &'static ControlPlane,
    shared_consul: &'static Consul,
    own_consul: OnceLock<Consul>,
    operators: Mutex<Vec<Arc<Operator>>>,
    /// Other names in Consul that this scenario uses.
    names: Mutex<Vec<String>>,
    /// Other namespaces that it made.
    others: Mutex<Vec<Arc<TestNamespace>>>,
}

/// A scenario.
pub(crate) type Scenario = for<'a> fn(&'a Fixture) -> LocalBoxFuture<'a, Result<()>>;

/// Runs a scenario on a fixture of its own.
pub(crate) fn run(name: &str, mode: Mode, scenario: Scenario) {
    block_on(async {
        let fixture = match Fixture::make(name, mode).await {
            Ok(fixture) => fixture,
            Err(error) => panic!("there is no fixture for {name}: {error:#}"),
        };
        let minutes = std::env::var(LOGIN_MINUTES).ok().and_then(|minutes| minutes.parse::<u32>().ok());
        let faults = std::env::var(SERVER_FAULTS).ok().and_then(|rounds| rounds.parse::<u32>().ok());
        let limit = if std::env::var_os(LARGE).is_some() { LARGE_SCENARIO } else { SCENARIO };
        let minutes = minutes.unwrap_or_default() + 6 * faults.unwrap_or_default();
        let limit = limit + Duration::from_secs(60) * minutes;
        let ended = tokio::time::timeout(limit, AssertUnwindSafe(scenario(&fixture)).catch_unwind()).await;
        let failure = match ended {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            Ok(Err(_)) => Some("it panicked, see above".to_owned()),
            Err(_) => Some(format!("it took longer than {limit:?}")),
        };
        if failure.is_some() {
            eprintln!("{}", fixture.dump().await);
        }
        fixture.clear_away().await;
        if let Some(failure) = failure {
            panic!("{name} in mode {}: {failure}", mode.as_str());
        }
    });
}

/// Runs a future on a runtime of its own.
pub(crate) fn block_on(future: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("no runtime: {error}"),
    }
}

impl Fixture {
    async fn make(name: &str, mode: Mode) -> Result<Self> {
        let servers = Servers::shared().await?;
        // The namespace's name is the cluster's too: a DNS label, with its random end.
        let mut short = name.replace('_', "-");
        short.truncate(30);
        let prefix = format!("{}-{}", short.trim_end_matches('-'), mode.as_str());
        let namespace = TestNamespace::create(&servers.plane, &prefix).await?;
        Ok(Self {
            mode,
            cluster: namespace.name().to_owned(),
            service: format!("web_{}", namespace.name()),
            kubeconfig: servers.plane.kubeconfig().to_owned(),
            programs: &servers.programs,
            plane: &servers.plane,
            shared_consul: &servers.consul,
            own_consul: OnceLock::new(),
            operators: Mutex::default(),
            names: Mutex::default(),
            others: Mutex::default(),
            namespace,
        })
    }

    // Operators.

    /// An operator to be started, for this scenario's namespace and cluster.
    pub(crate) fn operator(&self) -> Launch<'_> {
        Launch::new(self)
    }

    /// Starts an operator as it comes and waits until it is ready.
    pub(crate) async fn operate(&self) -> Result<Arc<Operator>> {
        self.operator().ready().await
    }

    /// Keeps an operator until the end of the scenario, for its log.
    pub(crate) fn keep(&self, operator: Operator) -> Arc<Operator> {
        let operator = Arc::new(operator);
        locked(&self.operators).push(Arc::clone(&operator));
        operator
    }

    /// Waits until an operator has looked at Consul anew: a look that ends after another one has ended now began
    /// after now.
    pub(crate) async fn wait_for_a_look(&self, operator: &Operator) -> Result<()> {
        for _ in 0..2 {
            let now = Instant::now();
            wait::until("the end of a look at Consul", SOON, || async {
                let age = metric(&operator.metrics().await?, "lictor_resync_age_seconds")?;
                Ok((age < now.elapsed().as_secs_f64()).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    // Consul.

    /// Starts a Consul for this scenario alone, which from now on is the scenario's Consul.
    pub(crate) async fn own_consul(&self, options: ConsulOptions) -> Result<&Consul> {
        let consul = Consul::start(self.programs, options).await?;
        self.own_consul.set(consul).map_err(|_| anyhow!("this scenario has its own Consul already"))?;
        self.own_consul.get().context("it was just set")
    }

    fn consul_server(&self) -> &Consul {
        self.own_consul.get().unwrap_or(self.shared_consul)
    }

    /// The API of the scenario's Consul, with a token that may do everything.
    pub(crate) fn consul(&self) -> ConsulApi {
        self.consul_server().api()
    }

    /// Its address.
    pub(crate) fn consul_address(&self) -> String {
        self.consul_server().http_addr()
    }

    /// The name of its own node.
    pub(crate) fn consul_node(&self) -> &str {
        self.consul_server().node_name()
    }

    /// The Consul node that stands for a Kubernetes node in the catalog.
    pub(crate) fn consul_node_of(&self, kubernetes_node: &str) -> Result<String> {
        Ok(node_name(&ClusterName::new(&self.cluster)?, kubernetes_node).to_string())
    }

    /// Where its DNS answers.
    pub(crate) fn dns_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.consul_server().dns_port()))
    }

    /// What runs the checks of instances that no agent has.
    pub(crate) fn esm(&self) -> Option<Esm> {
        (self.mode == Mode::Catalog).then(|| Esm::start(self.consul()))
    }

    /// Another name for a service in Consul that is this scenario's alone.
    pub(crate) fn service_named(&self, name: &str) -> String {
        let name = format!("{name}_{}", self.cluster);
        let mut names = locked(&self.names);
        if !names.contains(&name) {
            names.push(name.clone());
        }
        name
    }

    /// What Consul has of the scenario's service.
    pub(crate) async fn instances(&self) -> Result<Vec<Instance>> {
        self.consul().instances(&self.service).await
    }

    /// Waits until the instances of the scenario's service are as wanted.
    pub(crate) async fn wait_for(
        &self,
        description: &str,
        predicate: impl Fn(&[Instance]) -> bool,
    ) -> Result<Vec<Instance>> {
        self.consul().wait_for(&self.service, description, predicate, SOON).await
    }

    /// Waits until Consul has just these pods, ready, of the scenario's service.
    pub(crate) async fn wait_for_pods(&self, pods: &[&TestPod]) -> Result<Vec<Instance>> {
        let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        self.wait_for(&format!("just {names:?}, passing"), |found| {
            found.len() == pods.len()
                && pods.iter().all(|pod| found.iter().any(|i| i.address == pod.ip.to_string() && i.status == "passing"))
        })
        .await
    }

    /// Waits until Consul's DNS answers just these addresses for a service, and nothing else.
    pub(crate) async fn wait_for_dns(&self, service: &str, kind: Kind, addresses: &[IpAddr]) -> Result<()> {
        let server = self.dns_address();
        let name = format!("{service}.service.consul");
        let wanted: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        wait::until(format!("{kind:?} records {wanted:?} of {name}"), SOON, || async {
            let found: BTreeSet<IpAddr> = dns::ask(server, &name, kind).await?.addresses.into_iter().collect();
            ensure!(found == wanted, "they are {found:?}");
            Ok(Some(()))
        })
        .await
    }

    // Kubernetes.

    /// Another namespace, which goes with this scenario.
    pub(crate) async fn other_namespace(&self, name: &str) -> Result<Arc<TestNamespace>> {
        let other = Arc::new(TestNamespace::create(self.plane, &format!("{}-{name}", self.cluster)).await?);
        locked(&self.others).push(Arc::clone(&other));
        Ok(other)
    }

    /// Makes the Service `web`, whose port `http` is 80 in front of the pods' 8080, and ready pods `web-0`,
    /// `web-1`, ... behind it, in turn on the nodes `a` and `b`.
    pub(crate) async fn web(&self, pods: usize) -> Result<Vec<TestPod>> {
        self.nodes().await?;
        self.namespace.apply_service("web", &[("app", "web")], &[("http", 80, "8080")]).await?;
        let mut made = Vec::new();
        for number in 0..pods {
            made.push(self.web_pod(&format!("web-{number}"), if number % 2 == 0 { "a" } else { "b" }).await?);
        }
        Ok(made)
    }

    /// Makes the nodes `a` and `b`, of `zone-1`.
    pub(crate) async fn nodes(&self) -> Result<()> {
        for (name, address) in [("a", "192.0.2.10"), ("b", "192.0.2.11")] {
            self.namespace.create_node(name, address.parse::<IpAddr>()?, "zone-1").await?;
        }
        Ok(())
    }

    /// Makes a ready pod of the Service `web`.
    pub(crate) async fn web_pod(&self, name: &str, node: &str) -> Result<TestPod> {
        self.namespace.create_pod(self.new_web_pod(name, node)).await
    }

    /// A pod of the Service `web` on the node `a` or `b`, to be made: its one port, `http`, is 8080.
    pub(crate) fn new_web_pod(&self, name: &str, node: &str) -> NewPod {
        let node = format!("{}-{node}", self.namespace.name());
        NewPod::new(name, &node).label("app", "web").port("http", 8080)
    }

    /// The spec of a resource for the Service `web` under the scenario's name in Consul, with `more` in it.
    pub(crate) fn spec(&self, more: Value) -> Value {
        merged(json!({ "name": self.service, "source": { "service": { "name": "web" } } }), more)
    }

    /// Makes a resource, or gives it another spec.
    pub(crate) async fn apply(&self, name: &str, spec: &Value) -> Result<()> {
        apply(&self.resources(), name, spec).await
    }

    /// Makes the resource `web` over the Service `web`.
    pub(crate) async fn apply_web(&self, more: Value) -> Result<()> {
        self.apply("web", &self.spec(more)).await
    }

    /// Gives a resource this annotation, or takes it off.
    pub(crate) async fn annotate(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        self.resources().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Begins to delete a resource.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        self.resources().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a resource is gone from Kubernetes.
    pub(crate) async fn wait_gone(&self, name: &str) -> Result<()> {
        let resources = self.resources();
        wait::until(format!("the end of resource {name}"), SOON, || async {
            Ok(resources.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    /// The API of this namespace's resources.
    pub(crate) fn resources(&self) -> Api<DynamicObject> {
        resources(&self.namespace)
    }

    /// Waits until a resource has `condition` as `status` for `reason`, about its present spec, and gives the message.
    pub(crate) async fn wait_for_condition(
        &self,
        name: &str,
        condition: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        wait_for_condition(&self.resources(), name, condition, status, reason).await
    }

    /// Waits until a condition of a resource says these words, and gives the whole message.
    pub(crate) async fn wait_for_words(&self, name: &str, condition: &str, words: &str) -> Result<String> {
        let resources = self.resources();
        wait::until(format!("{words:?} in condition {condition} of resource {name}"), SOON, || async {
            let resource = resources.get(name).await?;
            let found = conditions(&resource).find(|found| found["type"] == condition);
            let message = found.and_then(|found| found["message"].as_str()).context("no such condition")?;
            ensure!(message.contains(words), "it says {message:?}");
            Ok(Some(message.to_owned()))
        })
        .await
    }

    /// Waits until a resource is ready as it is specified now.
    pub(crate) async fn wait_ready(&self, name: &str) -> Result<()> {
        self.wait_for_condition(name, "Ready", "True", "Ready").await.map(drop)
    }

    /// Waits until a resource's status counts (desired, registered, passing, critical) so.
    pub(crate) async fn wait_for_counts(&self, name: &str, counts: [u64; 4]) -> Result<()> {
        let resources = self.resources();
        wait::until(format!("counts {counts:?} of resource {name}"), SOON, || async {
            let status = &resources.get(name).await?.data["status"]["instances"];
            let found = ["desired", "registered", "passing", "critical"].map(|count| status[count].as_u64());
            ensure!(found == counts.map(Some), "they are {status}");
            Ok(Some(()))
        })
        .await
    }

    /// Waits until the status of a resource tells of this problem with an instance, and gives its message.
    pub(crate) async fn wait_for_problem(&self, name: &str, instance: &str, reason: &str) -> Result<String> {
        let resources = self.resources();
        wait::until(format!("problem {reason} of {instance} in resource {name}"), SOON, || async {
            let problems = &resources.get(name).await?.data["status"]["problems"];
            let found = problems.as_array().into_iter().flatten();
            let mut found = found.filter(|problem| problem["instance"] == instance && problem["reason"] == reason);
            let found = found.next().with_context(|| format!("they are {problems}"))?;
            Ok(found["message"].as_str().map(str::to_owned))
        })
        .await
    }

    /// Waits until a resource is ready, and nothing is wrong with any instance.
    pub(crate) async fn wait_flawless(&self, name: &str) -> Result<()> {
        self.wait_ready(name).await?;
        let resources = self.resources();
        wait::until(format!("no problems of resource {name}"), SOON, || async {
            let status = &resources.get(name).await?.data["status"];
            ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "it is {status}");
            Ok(Some(()))
        })
        .await
    }

    /// Waits for an Event about a resource with this reason, and gives its message.
    pub(crate) async fn wait_for_event(&self, name: &str, reason: &str) -> Result<String> {
        wait::until(format!("an Event {reason} about resource {name}"), SOON, || async {
            let found = self.events(name, reason).await?.into_iter().next();
            Ok(found.map(|event| event.message.unwrap_or_default()))
        })
        .await
    }

    /// The Events about a resource with this reason.
    pub(crate) async fn events(&self, name: &str, reason: &str) -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.namespace.client().clone(), self.namespace.name());
        let about = ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}"));
        Ok(events.list(&about).await?.items)
    }

    // The end.

    /// What everybody holds and has said.
    async fn dump(&self) -> String {
        let mut dump = self.namespace.dump().await;
        let others = locked(&self.others).clone();
        for other in others {
            dump += &other.dump().await;
        }
        let names = [std::slice::from_ref(&self.service), &locked(&self.names)[..]].concat();
        for name in names {
            let _ = writeln!(dump, "{}", self.consul().dump(&name).await);
        }
        let operators = locked(&self.operators).clone();
        for (number, operator) in operators.iter().enumerate() {
            let tail = operator.process().log_tail(if number + 1 == operators.len() { 60 } else { 10 });
            let _ = writeln!(dump, "--- operator {number}\n{tail}");
        }
        dump
    }

    /// Leaves nothing behind. What fails here may have been what failed in the scenario.
    async fn clear_away(&self) {
        for operator in locked(&self.operators).drain(..) {
            let _ = operator.kill();
        }
        let others = locked(&self.others).clone();
        for namespace in others.iter().map(AsRef::as_ref).chain([&self.namespace]) {
            release(namespace).await;
            namespace.delete().await;
        }
        if self.own_consul.get().is_none() {
            let _ = self.clear_consul().await;
        }
    }

    /// What is left in the Consul that all share makes it slower for the others.
    async fn clear_consul(&self) -> Result<()> {
        let consul = self.consul();
        let names = [std::slice::from_ref(&self.service), &locked(&self.names)[..]].concat();
        for name in names {
            for instance in consul.instances(&name).await? {
                if instance.node == self.consul_node() {
                    let id = path_segment(&instance.id);
                    consul.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null).await?;
                }
            }
        }
        for node in consul.get("/v1/catalog/nodes").await?.as_array().into_iter().flatten() {
            if let Some(name) = node["Node"].as_str().filter(|name| name.contains(&self.cluster)) {
                consul.put("/v1/catalog/deregister", &json!({ "Node": name })).await?;
            }
        }
        Ok(())
    }
}

/// The API of a namespace's resources.
pub(crate) fn resources(namespace: &TestNamespace) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("lictor.dev", "v1alpha1", "ConsulService");
    let kind = ApiResource::from_gvk_with_plural(&kind, "consulservices");
    Api::namespaced_with(namespace.client().clone(), namespace.name(), &kind)
}

/// Makes a resource, or gives it another spec.
pub(crate) async fn apply(resources: &Api<DynamicObject>, name: &str, spec: &Value) -> Result<()> {
    let resource = json!({
        "apiVersion": "lictor.dev/v1alpha1",
        "kind": "ConsulService",
        "metadata": { "name": name },
        "spec": spec,
    });
    resources.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(resource)).await?;
    Ok(())
}

/// Waits until a resource has `condition` as `status` for `reason`, about its present spec, and gives the message.
pub(crate) async fn wait_for_condition(
    resources: &Api<DynamicObject>,
    name: &str,
    condition: &str,
    status: &str,
    reason: &str,
) -> Result<String> {
    wait::until(format!("{condition}={status} ({reason}) of resource {name}"), SOON, || async {
        let resource = resources.get(name).await?;
        let found = conditions(&resource).find(|found| found["type"] == condition);
        let found = found.context("no such condition")?;
        let as_wanted = found["status"] == status
            && found["reason"] == reason
            && found["observedGeneration"].as_i64() == resource.metadata.generation;
        ensure!(as_wanted, "it is {found}");
        Ok(found["message"].as_str().map(str::to_owned))
    })
    .await
}

/// Takes the finalizers off all resources of a namespace, which would wait for an operator that is gone.
pub(crate) async fn release(namespace: &TestNamespace) {
    let resources = resources(namespace);
    let Ok(list) = resources.list(&ListParams::default()).await else { return };
    for resource in list.items.iter().filter_map(|resource| resource.metadata.name.as_deref()) {
        let without = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let _ = resources.patch(resource, &PatchParams::default(), &without).await;
    }
}

/// The conditions in a resource's status.
pub(crate) fn conditions(resource: &DynamicObject) -> impl Iterator<Item = &Value> {
    resource.data["status"]["conditions"].as_array().into_iter().flatten()
}

/// An object with the fields of `more` in place of its own.
pub(crate) fn merged(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// A pair of an instance's meta.
pub(crate) fn pair<'a>(instance: &'a Instance, key: &str) -> Option<&'a str> {
    instance.meta.get(key).map(String::as_str)
}

/// A part of a URL's path.
pub(crate) fn path_segment(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F").replace(' ', "%20")
}

/// Waits until a metric is as `holds` says: `/metrics` shows what was so at most a second ago.
pub(crate) async fn wait_for_metric(operator: &Operator, name: &str, holds: impl Fn(f64) -> bool) -> Result<()> {
    wait::until(&format!("{name} to be right"), SOON, || async {
        Ok(holds(metric(&operator.metrics().await?, name)?).then_some(()))
    })
    .await
}

/// The value of a metric in the text of `/metrics`.
pub(crate) fn metric(metrics: &str, name: &str) -> Result<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name} in {metrics}"))?.parse()?)
}

/// The path of a file, as an argument.
pub(crate) fn arg(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{} is not UTF-8", path.display()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

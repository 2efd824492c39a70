//! The watches and the writes, against a real apiserver: what they say when all is well, and when it is not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use lictor::cluster::convert::Rules;
use lictor::cluster::kubernetes::ApiServer;
use lictor::cluster::watch::{Orders, WatchHealth, watch};
use lictor::cluster::{api, connect};
use lictor::model::facts::Facts;
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::port::{PortInUse, PortRef};
use lictor::model::reasons::{Counts, Problem, ProblemReason};
use lictor::model::status::{Condition, ConditionKind, Status, Truth};
use lictor::ports::{Finalizers, Kubernetes, Write, WriteError};
use lictor::state::event::{Kind, Scope};
use lictor::state::world::{Entry, World};
use lictor_testbed::{ControlPlane, NewPod, Programs, TestNamespace, wait};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(30);

/// A World that follows a cluster.
struct Following {
    world: Arc<Mutex<World>>,
    health: WatchHealth,
    orders: Orders,
    watches: JoinHandle<()>,
    pump: JoinHandle<()>,
}

impl Following {
    fn begin(client: kube::Client, scope: &Scope) -> Self {
        let world = World::new([scope.clone()], true);
        let (health, orders) = (WatchHealth::default(), Orders::default());
        let (sink, mut events) = mpsc::channel(16);
        let watches = watch(client, Arc::default(), sink, health.clone(), orders.clone());
        orders.want(&world.wanted());
        let world = Arc::new(Mutex::new(world));
        let (told, ordered) = (Arc::clone(&world), orders.clone());
        let pump = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let mut world = told.lock().unwrap();
                world.apply(event, Instant::now());
                if let Some(wanted) = world.wanted_anew() {
                    ordered.want(&wanted);
                }
            }
        });
        Self { world, health, orders, watches: tokio::spawn(watches), pump }
    }

    async fn until(&self, what: &str, look: impl Fn(&World) -> bool) -> Result<()> {
        wait::until(what, SOON, || async { Ok(look(&self.world.lock().unwrap()).then_some(())) }).await
    }

    async fn until_health(&self, what: &str, look: impl Fn(&[String]) -> bool) -> Result<()> {
        let look = || async {
            let failing: Vec<String> = self.health.failing().into_iter().map(|(_, why)| why).collect();
            ensure!(look(&failing), "{failing:#?}");
            Ok(Some(()))
        };
        wait::until(what, SOON, look).await
    }

    fn entry(&self, key: &ResourceKey) -> Entry {
        self.world.lock().unwrap().resource(key).cloned().expect("the resource")
    }

    /// The watches end when nobody listens any more.
    async fn end(self) -> Result<()> {
        self.pump.abort();
        Ok(timeout(Duration::from_secs(5), self.watches).await??)
    }
}

fn finalizers(entry: &Entry) -> Finalizers {
    let resource = &entry.resource;
    Finalizers {
        key: resource.key.clone(),
        uid: resource.uid.clone(),
        resource_version: resource.resource_version.clone(),
        finalizers: resource.finalizers.clone(),
        ours: resource.finalizer.clone(),
    }
}

fn status(ready: Truth, problems: Vec<Problem>) -> Status {
    let condition = |kind, truth| Condition {
        kind,
        truth,
        reason: "Because".to_owned(),
        message: "of this".to_owned(),
        observed_generation: 1,
    };
    Status {
        observed_generation: 1,
        service_name: "user".to_owned(),
        port_in_use: Some(PortInUse { source: "service/user".into(), port: PortRef::Name("http".into()) }),
        retains: true,
        instances: Counts { desired: 3, registered: 2, passing: 1, warning: 0, critical: 1 },
        problems,
        conditions: vec![condition(ConditionKind::Ready, ready), condition(ConditionKind::Accepted, Truth::True)],
    }
}

async fn install_crd(plane: &ControlPlane) -> Result<String> {
    plane.kubectl_program().run_with_input(&["apply", "--server-side", "-f", "-"], &api::crd_yaml()).await
}

/// Makes the resource `user`, as soon as the apiserver takes it.
async fn make_user(namespace: &TestNamespace, spec: &str) -> Result<()> {
    let yaml = format!(
        "{{apiVersion: lictor.dev/v1alpha1, kind: ConsulService, metadata: {{name: user}}, spec: {{source: {spec}}}}}"
    );
    wait::until("the resource is made", SOON, || async { namespace.apply_yaml(&yaml).await.map(Some) }).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_told_through_every_trouble() -> Result<()> {
    let plane = ControlPlane::start(&Programs::ensure().await?).await?;
    let client = connect::client(Some(plane.kubeconfig()), None).await?;
    let following = Following::begin(client.clone(), &Scope::All);

    let advised = |failing: &[String]| failing.iter().any(|line| line.contains("`lictor crd | kubectl apply -f -`"));
    following.until_health("it says how to install the CRD", advised).await?;
    ensure!(!following.world.lock().unwrap().is_synced());
    install_crd(&plane).await?;
    following.until("all is listed", World::is_synced).await?;
    following.until_health("all is well", <[String]>::is_empty).await?;

    let shop = TestNamespace::create(&plane, "shop").await?;
    let key = ResourceKey::new(shop.name(), "user");
    let node = shop.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    shop.apply_service("user", &[("app", "user")], &[("grpc", 80, "grpc")]).await?;
    make_user(&shop, "{service: {name: user}}").await?;
    shop.create_pod(NewPod::new("user-1", &node).label("app", "user").port("grpc", 8080)).await?;
    let ready = |ready: bool| {
        let key = &key;
        move |world: &World| world.facts(key).slices("user").flat_map(|s| &s.endpoints).any(|e| e.ready == ready)
    };
    following.until("the endpoint is ready", ready(true)).await?;
    following.until("the node is known", |world| world.node(&node).is_some_and(|node| node.address.is_some())).await?;

    plane.stop_apiserver()?;
    following.until_health("every watch says that it fails", |failing| failing.len() == 4).await?;
    ensure!(ready(true)(&following.world.lock().unwrap()), "what was there stays in force");
    let again = ApiServer::new(client.clone(), vec![Scope::All], true, Arc::default(), following.orders.clone());
    ensure!(again.read_again().await.is_err(), "nothing may be concluded");
    plane.start_apiserver().await?;
    shop.set_ready("user-1", false).await?;
    following.until("the endpoint is not ready", ready(false)).await?;
    following.until_health("all is well again", <[String]>::is_empty).await?;

    let second = again.read_again().await?;
    ensure!(second.is_synced());
    {
        let first = following.world.lock().unwrap();
        ensure!(second.resource(&key).map(|e| &e.resource) == first.resource(&key).map(|e| &e.resource));
        ensure!(second.facts(&key).slices("user").eq(first.facts(&key).slices("user")));
    }

    // As an older CRD might: it takes anything. The last good spec stays in force.
    let anything = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    plane.kubectl(&["patch", "crd", "consulservices.lictor.dev", "--type=json", "-p", anything]).await?;
    make_user(&shop, "7").await?;
    let undecodable = |world: &World| world.resource(&key).is_some_and(|entry| entry.resource.spec.is_err());
    following.until("it cannot be decoded", undecodable).await?;
    ensure!(following.world.lock().unwrap().effective_spec(&key).is_some());
    shop.kubectl(&["delete", "csvc", "user"]).await?;
    following.until("it is gone", |world| world.resource(&key).is_none()).await?;

    let mut nobody = connect::config(Some(plane.kubeconfig()), None).await?;
    nobody.auth_info.impersonate = Some("nobody".to_owned());
    let forbidden = Following::begin(nobody.try_into()?, &Scope::Namespace(shop.name().into()));
    let granted = |line: &String| line.contains("must grant get, list and watch");
    let all_forbidden = |failing: &[String]| failing.len() == 2 && failing.iter().all(granted);
    forbidden.until_health("it says which rights it wants", all_forbidden).await?;

    forbidden.end().await?;
    following.end().await
}

/// More namespaces than have a watch of their own: what each asks for is told, and lists are of one namespace.
#[tokio::test(flavor = "multi_thread")]
async fn many_namespaces_share_a_watch_of_pods() -> Result<()> {
    let plane = ControlPlane::start(&Programs::ensure().await?).await?;
    install_crd(&plane).await?;
    let client = connect::client(Some(plane.kubeconfig()), None).await?;
    let following = Following::begin(client.clone(), &Scope::All);
    let resource = |name: &str, tag: &str| {
        format!(
            "{{apiVersion: lictor.dev/v1alpha1, kind: ConsulService, metadata: {{name: user}}, spec: {{name: {name}, \
             source: {{pods: {{matchLabels: {{app: user}}}}}}, tags: [\"{tag}\"]}}}}"
        )
    };
    let mut namespaces = Vec::new();
    for number in 0..11 {
        let namespace = TestNamespace::create(&plane, &format!("n{number}")).await?;
        let node = namespace.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
        let pod = NewPod::new("user-1", &node).label("app", "user").annotation("team", "blue").port("grpc", 8080);
        namespace.create_pod(pod).await?;
        let yaml = resource(&format!("user-{number}"), "plain");
        wait::until("the resource is made", SOON, || async { namespace.apply_yaml(&yaml).await.map(Some) }).await?;
        namespaces.push(namespace);
    }
    let keys: Vec<ResourceKey> = namespaces.iter().map(|own| ResourceKey::new(own.name(), "user")).collect();
    let pods = |world: &World, key: &ResourceKey| world.facts(key).matching().count();
    let all_have = |count: usize| {
        let keys = &keys;
        move |world: &World| keys.iter().all(|key| world.waits_for(key).is_none() && pods(world, key) == count)
    };
    following.until("the pods of all", all_have(1)).await?;
    let again = ApiServer::new(client, vec![Scope::All], true, Arc::default(), following.orders.clone());
    ensure!(all_have(1)(&again.read_again().await?), "one list tells of all namespaces");

    // The first has a watch of its own, and the last shares one.
    for (number, namespace) in namespaces.iter().enumerate() {
        namespace.apply_yaml(&resource(&format!("user-{number}"), "${pod.annotations['team']}")).await?;
        let team = |world: &World| {
            let facts = world.facts(&keys[number]);
            let team = facts.matching().next().and_then(|(_, pod)| pod.annotations.get("team").cloned());
            team.as_deref() == Some("blue")
        };
        following.until("the annotation", team).await?;
        // One that the watch tells of after the list.
        namespace.force_delete("user-1").await?;
        following.until("no pod", |world| pods(world, &keys[number]) == 0).await?;
    }
    ensure!(following.health.failing().is_empty() && following.health.ages().contains_key(&Kind::Pod));
    following.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_for_the_resource_that_was_seen_and_no_other() -> Result<()> {
    let plane = ControlPlane::start(&Programs::ensure().await?).await?;
    install_crd(&plane).await?;
    let client = connect::client(Some(plane.kubeconfig()), None).await?;
    let following = Following::begin(client.clone(), &Scope::All);
    let kubernetes = ApiServer::new(client, vec![Scope::All], true, Arc::new(Rules::default()), Orders::default());
    let shop = TestNamespace::create(&plane, "shop").await?;
    make_user(&shop, "{service: {name: user}}").await?;
    let key = ResourceKey::new(shop.name(), "user");
    following.until("the resource is seen", |world| world.resource(&key).is_some()).await?;

    // Finalizers: nothing is overwritten that was not seen.
    let seen = following.entry(&key);
    kubernetes.write(Write::AddFinalizer(finalizers(&seen))).await?;
    let stale = kubernetes.write(Write::RemoveFinalizer(finalizers(&seen))).await;
    ensure!(matches!(stale, Err(WriteError::Conflict)), "{stale:?}");
    let absent = Finalizers { key: ResourceKey::new(shop.name(), "nobody"), ..finalizers(&seen) };
    let absent = kubernetes.write(Write::RemoveFinalizer(absent)).await;
    ensure!(matches!(absent, Err(WriteError::Gone)), "{absent:?}");
    let has_finalizer = |world: &World| world.resource(&key).is_some_and(|entry| entry.resource.has_finalizer());
    following.until("the finalizer is seen", has_finalizer).await?;

    // Status: replaced as a whole, and only of the resource with this uid.
    let seen = following.entry(&key);
    let write = |uid: &Str, status: &Status, entry: &Entry| {
        let (key, uid, status) = (key.clone(), uid.clone(), Arc::new(status.clone()));
        kubernetes.write(Write::Status { key, uid, status, since: entry.since.clone() })
    };
    let problem = Problem { instance: "user-1".into(), reason: ProblemReason::Refused, message: "no".into() };
    let (before, after) = (status(Truth::False, vec![problem]), status(Truth::True, Vec::new()));
    let another = write(&"another".into(), &before, &seen).await;
    ensure!(matches!(another, Err(WriteError::Gone)), "{another:?}");
    for status in [&before, &after] {
        write(&seen.resource.uid, status, &following.entry(&key)).await?;
        let is_seen = |world: &World| world.resource(&key).is_some_and(|entry| *entry.resource.status == *status);
        following.until("the status is seen as it was written", is_seen).await?;
    }
    let invalid =
        Status { conditions: vec![Condition { reason: "no word".into(), ..before.conditions[0].clone() }], ..before };
    let invalid = write(&seen.resource.uid, &invalid, &following.entry(&key)).await;
    ensure!(matches!(&invalid, Err(WriteError::Refused(why)) if why.contains("reason")), "{invalid:?}");
    let columns = shop.kubectl(&["get", "csvc", "user", "--no-headers"]).await?;
    let columns: Vec<&str> = columns.split_whitespace().collect();
    ensure!(columns[..6] == ["user", "user", "3", "2", "1", "True"], "{columns:?}");

    // Events: many of a kind are one, and a long message is cut.
    for _ in 0..3 {
        let (reason, action, message) = ("Refused".into(), "Register".into(), "ä".repeat(900));
        let (key, uid) = (key.clone(), seen.resource.uid.clone());
        kubernetes.write(Write::Event { key, uid, warning: true, reason, action, message }).await?;
    }
    let described = shop.kubectl(&["describe", "csvc", "user"]).await?;
    ensure!(described.lines().any(|l| l.contains("Warning  Refused") && l.contains("(x3 over")), "{described}");

    // Gone.
    shop.kubectl(&["delete", "csvc", "user", "--wait=false"]).await?;
    following.until("it is being deleted", |world| world.resource(&key).is_some_and(|e| e.resource.deleting)).await?;
    kubernetes.write(Write::RemoveFinalizer(finalizers(&following.entry(&key)))).await?;
    following.until("it is gone", |world| world.resource(&key).is_none()).await?;
    let gone = write(&seen.resource.uid, &after, &seen).await;
    ensure!(matches!(gone, Err(WriteError::Gone)), "{gone:?}");
    following.end().await
}

//! Somebody is not there: the operator, Consul, Kubernetes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::config::Kubeconfig;
use lictor_testbed::certificates::Authority;
use lictor_testbed::{
    Consul, ConsulOptions, ControlPlane, Fault, Hold, Instance, NewEndpoint, Operator, Proxy, TestNamespace, TestPod,
    WorkDir, ports, wait,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, Mode, SOON, apply, arg, install_crd, merged, metric, resources};
use crate::listening::{Listening, Way};
use crate::rows::{fingerprint, remove};

/// How often the operator is killed.
const KILLS: usize = 8;

pub(crate) async fn killed_in_a_loop_under_change(fixture: &Fixture) -> Result<()> {
    let mut pods = fixture.web(4).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2], &pods[3]]).await?;
    operator.kill()?;

    let stable = pods[0].ip.to_string();
    let names: Vec<String> = (0..KILLS).map(|round| fixture.service_named(&format!("extra-{round}"))).collect();
    let churn = async {
        for (round, name) in names.iter().enumerate() {
            proxy.clear();
            let operator = fixture.operator().consul(&proxy.addr()).start()?;
            fixture.namespace.set_ready("web-1", round % 2 == 0).await?;
            fixture.namespace.force_delete("web-2").await?;
            pods[2] = fixture.web_pod("web-2", if round % 2 == 0 { "b" } else { "a" }).await?;
            fixture.apply_web(json!({ "tags": [format!("round-{round}")] })).await?;
            fixture.apply(&format!("extra-{round}"), &fixture.spec(json!({ "name": name }))).await?;
            if round > 0 {
                fixture.delete(&format!("extra-{}", round - 1)).await?;
            }
            // Each time at another point: looks at Consul make sure that it comes.
            let requests = 3 + 3 * round;
            wait::until(format!("{requests} requests"), SOON, || async {
                Ok((proxy.records().len() >= requests).then_some(()))
            })
            .await?;
            operator.kill()?;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::select! {
        done = churn => done?,
        gone = missing(fixture, &stable) => bail!("{stable}, ready all the time, was {}", gone?),
    }

    fixture.operate().await?;
    fixture.namespace.set_ready("web-1", true).await?;
    let last = format!("round-{}", KILLS - 1);
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2], &pods[3]]).await?;
    let as_last = |found: &[Instance]| found.iter().all(|instance| instance.tags == [last.clone()]);
    fixture.wait_for("all as specified last", as_last).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_ready(&format!("extra-{}", KILLS - 1)).await?;
    for (round, name) in names.iter().enumerate() {
        let wanted = if round + 1 == KILLS { 4 } else { 0 };
        fixture.consul().wait_for(name, &format!("{wanted} instances"), |found| found.len() == wanted, SOON).await?;
        if wanted == 0 {
            fixture.wait_gone(&format!("extra-{round}")).await?;
        }
    }
    Ok(())
}

/// Looks all the time, and ends when no passing instance at this address is there.
async fn missing(fixture: &Fixture, address: &str) -> Result<String> {
    loop {
        let found = fixture.instances().await?;
        match found.iter().find(|instance| instance.address == address) {
            Some(instance) if instance.status == "passing" => {}
            Some(instance) => return Ok(format!("{}: {instance:?}", instance.status)),
            None => return Ok(format!("missing from {found:?}")),
        }
    }
}

pub(crate) async fn consul_absent_at_start(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let port = ports::free()?;
    let operator = fixture.operator().consul(&format!("http://127.0.0.1:{port}")).start()?;
    fixture.apply_web(json!({})).await?;
    let message = fixture.wait_for_condition("web", "Ready", "False", "ConsulUnavailable").await?;
    ensure!(message.starts_with("Consul cannot be reached; "), "{message}");
    fixture.wait_for_event("web", "ConsulUnavailable").await?;
    wait_not_ready(&operator, &format!("Consul at http://127.0.0.1:{port}")).await?;
    operator.get("/healthz").await?;

    fixture.own_consul(ConsulOptions { http_port: Some(port), ..ConsulOptions::default() }).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    operator.wait_ready(SOON).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn an_outage_is_told_once_however_it_is_worded(fixture: &Fixture) -> Result<()> {
    fixture.web(2).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).ready().await?;
    let other = fixture.service_named("other");
    fixture.apply_web(json!({})).await?;
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_ready("other").await?;

    // As a proxy before Consul words it, each time with another port and another ID.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    proxy.set_fault(Fault::Rule(Arc::new(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let words = format!(
            "upstream connect error (request 8f14e45f-ceea-467f-ab3e-{number:012x}): dial tcp \
             10.0.0.7:{}->10.0.0.1:8300: connect: connection refused {}",
            20_000 + number,
            "and so on ".repeat(50)
        );
        Some(Fault::Status(503, words, Vec::new()))
    })));
    wait_not_ready(&operator, "connection refused").await?;
    fixture.namespace.set_ready("web-1", false).await?;
    let mut before = Vec::new();
    for name in ["web", "other"] {
        let message = fixture.wait_for_condition(name, "Ready", "False", "ConsulUnavailable").await?;
        ensure!(message.starts_with("Consul answers with errors; "), "{message}");
        fixture.wait_for_event(name, "ConsulUnavailable").await?;
        before.push(fixture.resources().get(name).await?.metadata.resource_version);
    }
    let first = asked.load(Ordering::SeqCst);
    wait::until("more requests", SOON, || async { Ok((asked.load(Ordering::SeqCst) >= first + 6).then_some(())) })
        .await?;
    let words = wait_not_ready(&operator, "connection refused").await?;
    ensure!(words.trim().chars().count() <= "Consul: ".len() + 300, "{} characters: {words}", words.chars().count());
    ensure!(!words.contains("ceea") && words.contains("10.0.0.7->10.0.0.1: connect"), "{words}");
    for (name, before) in ["web", "other"].into_iter().zip(before) {
        let now = fixture.resources().get(name).await?.metadata.resource_version;
        ensure!(now == before, "resource {name} was written to again for other words");
        let events = fixture.events(name, "ConsulUnavailable").await?;
        ensure!(matches!(&events[..], [one] if one.series.is_none()), "{events:?}");
    }
    let told = operator.log().lines().filter(|line| line.contains("Consul is unavailable")).count();
    ensure!(told == 1, "the log tells it {told} times");

    proxy.set_fault(Fault::None);
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    fixture.wait_ready("other").await
}

pub(crate) async fn one_server_of_three_is_cut_off(fixture: &Fixture) -> Result<()> {
    let mut pods = fixture.web(3).await?;
    let one = fixture.own_consul(ConsulOptions { persistent: true, ..ConsulOptions::default() }).await?;
    let joins = format!("bootstrap_expect = 0\nretry_join = [\"{}\"]\nretry_interval = \"1s\"", one.serf_addr());
    let joining = || ConsulOptions { persistent: true, extra_hcl: joins.clone(), ..ConsulOptions::default() };
    let (two, three) =
        tokio::try_join!(Consul::start(fixture.programs, joining()), Consul::start(fixture.programs, joining()))?;
    let peers = || async {
        let raft = one.api().get("/v1/operator/raft/configuration").await?;
        Ok::<Vec<Value>, anyhow::Error>(raft["Servers"].as_array().cloned().unwrap_or_default())
    };
    let all_vote = || async {
        let servers = peers().await?;
        Ok((servers.len() == 3 && servers.iter().all(|server| server["Voter"] == true)).then_some(()))
    };
    wait::until("three servers that vote", SOON, all_vote).await?;

    let all = [&two, &three, one].map(Consul::http_addr).join(",");
    let operator = fixture.operator().consul(&all).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;

    two.kill()?;
    fixture.namespace.force_delete("web-2").await?;
    pods[2] = fixture.web_pod("web-2", "a").await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    ensure!(operator.log().contains(&format!("to={}", three.http_addr())), "it did not go on with the second");
    two.start_again().await?;
    wait::until("three servers that vote again", SOON, all_vote).await?;

    // The others do not talk to it any more, until the leader looks at its members again within a minute.
    let servers = peers().await?;
    let cut_off = servers.iter().find(|server| server["Node"] == three.node_name()).context("the third server")?;
    let id = cut_off["ID"].as_str().context("its ID")?;
    one.api().delete(&format!("/v1/operator/raft/peer?id={id}")).await?;
    wait::until("one without a leader", SOON, || async {
        let leader = three.api().get("/v1/status/leader").await?;
        Ok((leader == "").then_some(()))
    })
    .await?;
    fixture.namespace.force_delete("web-1").await?;
    pods[1] = fixture.web_pod("web-1", "b").await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await?;
    ensure!(operator.log().contains(&format!("to={}", one.http_addr())), "it did not go on with the third");
    ensure!(!operator.log().contains("the session with Consul was reset"), "it began anew between the servers");
    Ok(())
}

pub(crate) async fn a_node_that_cannot_be_read(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let of = |pod: &TestPod| found.iter().find(|i| i.address == pod.ip.to_string()).context("its instance");
    let (readable, unreadable) = (of(&pods[0])?, of(&pods[1])?);
    ensure!(readable.node != unreadable.node, "they are on one node");

    let node = format!("/{}", unreadable.node);
    let fault = Fault::Status(500, "this node cannot be read".to_owned(), Vec::new());
    proxy.set_fault(Fault::Rule(Arc::new(move |record| {
        (!record.is_write() && record.path.ends_with(&node)).then(|| fault.clone())
    })));
    remove(fixture, readable).await?;
    remove(fixture, unreadable).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    wait::until("a node that cannot be read", SOON, || async {
        let unread = metric(&operator.metrics().await?, "lictor_unread_nodes")?;
        Ok((unread > 0.0).then_some(()))
    })
    .await?;
    ensure!(operator.log().contains("cannot read a Consul node"), "the log does not say so");

    // Others are written and repaired, again and again.
    let more = fixture.web_pod("web-9", "a").await?;
    fixture.wait_for_pods(&[&pods[0], &more]).await?;
    for instance in fixture.instances().await? {
        remove(fixture, &instance).await?;
    }
    fixture.wait_for_pods(&[&pods[0], &more]).await?;
    operator.wait_ready(SOON).await?;
    ensure!(!operator.log().contains("writes are paused"), "one node paused all writes");

    proxy.set_fault(Fault::None);
    fixture.wait_for_pods(&[&pods[0], &pods[1], &more]).await?;
    fixture.wait_ready("web").await?;
    ensure!(operator.log().contains("Lictor can read the Consul node again"), "the log does not say that it is over");
    Ok(())
}

pub(crate) async fn sigterm_and_not_one_request_more(fixture: &Fixture) -> Result<()> {
    /// More than one bundle holds.
    const MANY: u8 = 150;
    let node = fixture.namespace.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let endpoint =
        |octet| NewEndpoint { node: Some(node.clone()), ..NewEndpoint::new(Ipv4Addr::new(10, 1, 1, octet).into()) };
    let endpoints: Vec<NewEndpoint> = (1..=MANY).map(endpoint).collect();
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).without_resyncs().ready().await?;
    let hold = Hold::default();
    let fault = Fault::Hold(hold.clone());
    proxy.set_fault(Fault::Rule(Arc::new(move |record| record.is_write().then(|| fault.clone()))));
    proxy.clear();
    fixture.apply_web(json!({})).await?;
    wait::until("a write under way", SOON, || async { Ok((!proxy.writes().is_empty()).then_some(())) }).await?;

    // Nothing else begins: that write waits for its answer until the signal has arrived.
    let before = proxy.records().len();
    operator.process().signal("TERM")?;
    wait::until("the signal", SOON, || async { Ok(operator.log().contains("SIGTERM").then_some(())) }).await?;
    hold.release();
    let end = wait::until("its end", SOON, || async { operator.process().exited() }).await?;
    ensure!(end.success(), "it ended with {end}");
    let records = proxy.records();
    let more = &records[before..];
    // An agent is told of an instance and then of its check: that much completes what was under way.
    let allowed = match fixture.mode {
        Mode::Agent => 1,
        Mode::Catalog => 0,
    };
    ensure!(more.len() <= allowed, "{} requests more: {more:?}", more.len());
    ensure!(records.iter().all(|record| record.status == Some(200)), "a write was given up: {records:?}");
    let left = fixture.wait_for("what was written stays, and is passing", |found| {
        !found.is_empty() && found.iter().all(|i| i.status == "passing")
    });
    ensure!(left.await?.len() < usize::from(MANY), "there was nothing left to do: this shows nothing");

    fixture.operate().await?;
    fixture.wait_for("all of them", |found| found.len() == usize::from(MANY)).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn kubernetes_absent_at_start(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.apply_web(json!({})).await?;
    let gate = Gate::to(&fixture.kubeconfig).await?;
    let operator = fixture.operator().kubeconfig(&gate.kubeconfig).start()?;
    wait_not_ready(&operator, "waiting for Kubernetes").await?;
    ensure!(operator.log().contains("waiting for Kubernetes"), "not in its log");
    operator.get("/healthz").await?;
    let _open = gate.open().await?;
    operator.wait_ready(SOON).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn kubernetes_goes_away(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(3).await?;
    let gate = Gate::to(&fixture.kubeconfig).await?;
    let open = gate.open().await?;
    let operator = fixture.operator().kubeconfig(&gate.kubeconfig).ready().await?;
    fixture.apply_web(json!({})).await?;
    let other = fixture.service_named("other");
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_ready("other").await?;

    drop(open);
    fixture.delete("other").await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.namespace.set_ready("web-1", false).await?;
    // What was true last is kept up meanwhile, and nothing is taken away.
    remove(fixture, &found[2]).await?;
    fixture
        .wait_for("the last true state", |now| {
            now.len() == 3
                && now.iter().any(|i| i.id == found[2].id && i.service_modify_index > found[2].service_modify_index)
        })
        .await?;
    wait_not_ready(&operator, "").await?;
    fixture.wait_for_a_look(&operator).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    ensure!(fixture.consul().instances(&other).await?.len() == 3, "a resource's instances went without Kubernetes");

    let _open = gate.open().await?;
    fixture.wait_gone("other").await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    ensure!(fixture.consul().instances(&other).await?.is_empty(), "the deletion was missed");
    let address = pods[1].ip.to_string();
    fixture
        .wait_for("web-1 critical, web-2 passing", |now| {
            now.len() == 2 && now.iter().all(|i| (i.status == "critical") == (i.address == address))
        })
        .await?;
    operator.wait_ready(SOON).await
}

pub(crate) async fn a_permission_is_taken_away(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let kubeconfig = limited(fixture).await?;
    let gate = Gate::to(&kubeconfig.join("kubeconfig")).await?;
    let open = gate.open().await?;
    let operator = fixture.operator().kubeconfig(&gate.kubeconfig).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;

    // A watch is not ended for it: the connection is.
    fixture.namespace.kubectl(&["delete", "rolebinding", "lictor"]).await?;
    drop(open);
    let _open = gate.open().await?;
    wait_not_ready(&operator, "forbidden").await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for_a_look(&operator).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    bind(fixture).await?;
    fixture.wait_for_pods(&[&pods[1]]).await?;
    operator.wait_ready(SOON).await
}

pub(crate) async fn kubernetes_limits_requests(fixture: &Fixture) -> Result<()> {
    /// More than the first pauses that Lictor makes of its own accord, together.
    const AFTER: u32 = 4;
    let pods = fixture.web(1).await?;
    fixture.apply_web(json!({})).await?;
    let listening = Listening::to(&fixture.kubeconfig).await?;
    let limited = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&limited);
    listening.rule(move |look| {
        let list = look.is_some_and(|look| !look.is_watch && look.kind == "consulservices");
        (list && count.fetch_add(1, Ordering::SeqCst) < 2).then_some(Way::TooMany(AFTER))
    });
    let operator = fixture.operator().kubeconfig(&listening.kubeconfig).start()?;
    wait_not_ready(&operator, "Too many requests").await?;
    operator.wait_ready(SOON).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    let lists: Vec<_> =
        listening.looks().into_iter().filter(|look| !look.is_watch && look.kind == "consulservices").collect();
    ensure!(lists.len() == 3, "{lists:?}");
    for pair in lists.windows(2) {
        let pause = pair[1].at.duration_since(pair[0].at);
        ensure!(pause >= Duration::from_secs(AFTER.into()), "it asked again after {pause:?}");
    }
    Ok(())
}

/// A kubeconfig, `kubeconfig` in this folder, of a user who may do in this namespace what the operator does, and no
/// more. What is outside of the namespace goes with it.
async fn limited(fixture: &Fixture) -> Result<WorkDir> {
    let namespace = fixture.namespace.name();
    let namespaces: Api<Namespace> = Api::all(fixture.namespace.client().clone());
    let uid = namespaces.get(namespace).await?.metadata.uid;
    let owner = json!([{ "apiVersion": "v1", "kind": "Namespace", "name": namespace, "uid": uid }]);
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({ "apiGroups": groups, "resources": resources, "verbs": verbs });
    let rbac = |kind: &str| json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind });
    let outside =
        |kind: &str| merged(rbac(kind), json!({ "metadata": { "name": namespace, "ownerReferences": owner } }));
    let of = |kind: &str, name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
    let items = [
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "lictor" } }),
        merged(
            rbac("Role"),
            json!({ "metadata": { "name": "lictor" }, "rules": [
            rule(&["lictor.dev"], &["consulservices"], &["get", "list", "watch", "patch"]),
            rule(&["lictor.dev"], &["consulservices/status"], &["patch"]),
            rule(&["discovery.k8s.io"], &["endpointslices"], &["get", "list", "watch"]),
            rule(&[""], &["services"], &["get", "list", "watch"]),
            rule(&["events.k8s.io"], &["events"], &["create", "patch"]),
        ] }),
        ),
        merged(
            outside("ClusterRole"),
            json!({ "rules": [
            rule(&[""], &["namespaces"], &["get"]),
            rule(&[""], &["nodes"], &["get", "list", "watch"]),
        ] }),
        ),
        merged(
            outside("ClusterRoleBinding"),
            json!({
                "roleRef": of("ClusterRole", namespace),
                "subjects": [{ "kind": "ServiceAccount", "name": "lictor", "namespace": namespace }],
            }),
        ),
    ];
    fixture.namespace.apply_yaml(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await?;
    bind(fixture).await?;
    let token = fixture.namespace.kubectl(&["create", "token", "lictor"]).await?;
    let mut kubeconfig = Kubeconfig::read_from(&fixture.kubeconfig)?;
    for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        *user = serde_json::from_value(json!({ "token": token.trim() }))?;
    }
    let work_dir = WorkDir::create("limited")?;
    work_dir.write("kubeconfig", serde_json::to_string(&kubeconfig)?)?;
    Ok(work_dir)
}

/// Lets that user do it.
async fn bind(fixture: &Fixture) -> Result<()> {
    let account = format!("--serviceaccount={}:lictor", fixture.namespace.name());
    fixture.namespace.kubectl(&["create", "rolebinding", "lictor", "--role=lictor", &account]).await.map(drop)
}

/// A cluster's address behind a port of our own, at which somebody answers only while it is [open](Self::open).
struct Gate {
    kubeconfig: PathBuf,
    port: u16,
    upstream: SocketAddr,
    _work_dir: WorkDir,
}

impl Gate {
    /// A closed gate to the cluster of a kubeconfig.
    async fn to(kubeconfig: &Path) -> Result<Self> {
        let port = ports::free()?;
        let mut kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let cluster = kubeconfig.clusters.first_mut().and_then(|named| named.cluster.as_mut()).context("no cluster")?;
        let server: http::Uri = cluster.server.take().context("no server")?.parse()?;
        let (host, upstream) = (server.host().context("no host")?, server.port_u16().unwrap_or(443));
        cluster.server = Some(format!("https://127.0.0.1:{port}"));
        cluster.tls_server_name = Some(host.to_owned());
        let upstream = tokio::net::lookup_host((host, upstream)).await?.next().context("no address")?;
        let work_dir = WorkDir::create("gate")?;
        let kubeconfig = work_dir.write("kubeconfig", serde_json::to_string(&kubeconfig)?)?;
        Ok(Self { kubeconfig, port, upstream, _work_dir: work_dir })
    }

    /// Carries connections until what it returns is dropped; then they all end.
    async fn open(&self) -> Result<JoinSet<()>> {
        let upstream = self.upstream;
        let listener = wait::until("the gate's port", SOON, || async {
            Ok(Some(TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await?))
        })
        .await?;
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(upstream).await {
                        // Its errors are those of a connection that ends.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Ok(accepting)
    }
}

pub(crate) async fn consul_hangs(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let consul = fixture.own_consul(ConsulOptions::default()).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    consul.signal("STOP")?;
    fixture.namespace.force_delete("web-0").await?;
    let new = fixture.web_pod("web-2", "a").await?;
    wait_not_ready(&operator, "Consul").await?;
    consul.signal("CONT")?;
    fixture.wait_for_pods(&[&pods[1], &new]).await?;
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await
}

pub(crate) async fn answers_are_lost(fixture: &Fixture) -> Result<()> {
    let mut pods = fixture.web(3).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).ready().await?;
    // Of the next writes every other one is carried out without an answer, or answered without being carried out.
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    proxy.set_fault(Fault::Rule(Arc::new(move |record| {
        let number = if record.is_write() { counter.fetch_add(1, Ordering::SeqCst) } else { 0 };
        match number {
            1 | 5 | 9 => Some(Fault::DropAnswer),
            3 | 7 => Some(Fault::Status(500, "no leader just now".to_owned(), Vec::new())),
            11 => Some(Fault::Refuse),
            _ => None,
        }
    })));
    fixture.apply_web(json!({})).await?;
    // Rounds until every one of these has happened: how many changes one write takes in is a matter of time.
    let mut round = 0;
    while round < 3 || seen.load(Ordering::SeqCst) <= 11 {
        fixture.apply_web(json!({ "tags": [format!("round-{round}")] })).await?;
        fixture.namespace.set_ready("web-1", round % 2 == 0).await?;
        fixture.namespace.force_delete("web-2").await?;
        pods[2] = fixture.web_pod("web-2", "b").await?;
        fixture
            .wait_for("this round's truth", |found| {
                found.len() == 3
                    && found.iter().all(|i| {
                        let critical = round % 2 == 1 && i.address == pods[1].ip.to_string();
                        i.tags == [format!("round-{round}")]
                            && pods.iter().any(|pod| pod.ip.to_string() == i.address)
                            && i.status == if critical { "critical" } else { "passing" }
                    })
            })
            .await?;
        round += 1;
    }
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await
}

pub(crate) async fn the_crd_comes_later(fixture: &Fixture) -> Result<()> {
    let plane = ControlPlane::start(fixture.programs).await?;
    let shop = TestNamespace::create(&plane, "shop").await?;
    let operator = fixture.operator().kubeconfig(plane.kubeconfig()).namespace(shop.name()).start()?;
    wait_not_ready(&operator, "lictor crd | kubectl apply").await?;
    ensure!(operator.log().contains("lictor crd | kubectl apply"), "how to install it is not in its log");

    install_crd(&plane).await?;
    operator.wait_ready(SOON).await?;
    shop.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    shop.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new("10.1.0.1".parse()?)]).await?;
    apply(&resources(&shop), "web", &fixture.spec(json!({ "tags": ["good"] }))).await?;
    fixture.wait_for("registered", |found| found.len() == 1).await?;
    shop.wait_for_condition("csvc/web", "Ready", "True", SOON).await?;
    let before = fingerprint(fixture, &fixture.service).await?;

    // A CRD that lets anything through, and a spec that this version cannot read.
    let crd = plane.kubectl(&["get", "crd", "consulservices.lictor.dev", "-o", "json"]).await?;
    let mut crd: Value = serde_json::from_str(&crd)?;
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    plane.kubectl_program().run_with_input(&["replace", "-f", "-"], &crd.to_string()).await?;
    wait::until("the spec that nobody can read", SOON, || async {
        apply(&resources(&shop), "web", &fixture.spec(json!({ "tags": "bad" }))).await.map(Some)
    })
    .await?;
    shop.wait_for_condition("csvc/web", "Accepted", "False", SOON).await?;
    let resource = resources(&shop).get("web").await?;
    let reason =
        crate::fixture::conditions(&resource).find(|found| found["type"] == "Accepted").map(|found| &found["reason"]);
    ensure!(reason == Some(&json!("Undecodable")), "{resource:?}");
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");
    apply(&resources(&shop), "web", &fixture.spec(json!({ "tags": ["better"] }))).await?;
    fixture.wait_for("read again", |found| matches!(found, [one] if one.tags == ["better"])).await?;

    // Whoever uninstalls takes the CRD away, and with it every resource: that is nobody's wish to deregister.
    plane.kubectl(&["delete", "crd", "consulservices.lictor.dev", "--timeout=60s"]).await?;
    wait_not_ready(&operator, "lictor crd | kubectl apply").await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(fixture.instances().await?.len() == 1, "an instance went with the CRD");
    Ok(())
}

pub(crate) async fn the_crd_goes_where_it_may_not_be_read(fixture: &Fixture) -> Result<()> {
    let plane = ControlPlane::start(fixture.programs).await?;
    install_crd(&plane).await?;
    let shop = TestNamespace::create(&plane, "shop").await?;
    let kubeconfig = bounded(&plane, &shop).await?;
    let mut operator = fixture.operator().kubeconfig(&kubeconfig.path().join("kubeconfig")).namespace(shop.name());
    operator = operator.flag("--cluster-uid", "5f0c");
    if fixture.mode == Mode::Catalog {
        operator = operator.switch("--without-nodes");
    }
    let operator = operator.ready().await?;
    for (name, address) in [("web", "10.1.0.1"), ("api", "10.1.0.2"), ("job", "10.1.0.3")] {
        shop.apply_service(name, &[], &[("http", 80, "8080")]).await?;
        let endpoints = [NewEndpoint::new(address.parse()?)];
        shop.apply_slice(&format!("{name}-1"), name, &[("http", 8080)], &endpoints).await?;
        let spec = json!({ "name": fixture.service, "source": { "service": { "name": name } } });
        apply(&resources(&shop), name, &spec).await?;
        shop.wait_for_condition(&format!("csvc/{name}"), "Ready", "True", SOON).await?;
    }
    fixture.wait_for("all three", |found| found.len() == 3).await?;

    // A user deletes one, and it goes.
    shop.kubectl(&["delete", "csvc", "job", "--timeout=30s"]).await?;
    fixture.wait_for("two", |found| found.len() == 2).await?;

    // Where not even discovery may be asked, nobody can tell what that means: of many, all stay.
    let role = plane.kubectl(&["get", "clusterrolebinding", "system:discovery", "-o", "json"]).await?;
    plane.kubectl(&["delete", "clusterrolebinding", "system:discovery"]).await?;
    shop.kubectl(&["delete", "csvc", "api", "--wait=false"]).await?;
    wait::until("a resource is held", SOON, || async {
        let held = metric(&operator.metrics().await?, "lictor_held_resources")?;
        Ok((held > 0.0).then_some(()))
    })
    .await?;
    ensure!(operator.log().contains("nor discovery"), "why is not in its log");
    fixture.wait_for_a_look(&operator).await?;
    ensure!(fixture.instances().await?.len() == 2, "an instance went although nobody could tell");
    let mut role: Value = serde_json::from_str(&role)?;
    role["metadata"] = json!({ "name": role["metadata"]["name"] });
    plane.kubectl_program().run_with_input(&["apply", "-f", "-"], &role.to_string()).await?;
    fixture.wait_for("one", |found| found.len() == 1).await?;
    shop.kubectl(&["wait", "csvc/api", "--for=delete", "--timeout=30s"]).await?;

    plane.kubectl(&["delete", "crd", "consulservices.lictor.dev", "--timeout=60s"]).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(fixture.instances().await?.len() == 1, "an instance went with the CRD");
    ensure!(operator.log().contains("the CRD is being deleted"), "{}", operator.log());
    Ok(())
}

/// A kubeconfig, `kubeconfig` in this folder, of a user with no more rights than the chart's Role in one namespace.
async fn bounded(plane: &ControlPlane, namespace: &TestNamespace) -> Result<WorkDir> {
    let user = "bounded";
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({ "apiGroups": groups, "resources": resources, "verbs": verbs });
    let rbac = |kind: &str, more: Value| {
        merged(
            json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": user } }),
            more,
        )
    };
    let read = ["get", "list", "watch"];
    let items = [
        rbac(
            "Role",
            json!({ "rules": [
                rule(&["lictor.dev"], &["consulservices"], &["get", "list", "watch", "patch"]),
                rule(&["lictor.dev"], &["consulservices/status"], &["patch"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], &read),
                rule(&[""], &["services", "pods"], &read),
                rule(&["events.k8s.io"], &["events"], &["create", "patch"]),
            ] }),
        ),
        rbac(
            "RoleBinding",
            json!({
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
            }),
        ),
    ];
    namespace.apply_yaml(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await?;
    let work_dir = WorkDir::create("bounded")?;
    work_dir.write("kubeconfig", plane.kubeconfig_for(user, None)?)?;
    Ok(work_dir)
}

/// Waits until `/readyz` is not ready for a reason that holds `words`, and gives it.
pub(crate) async fn wait_not_ready(operator: &Operator, words: &str) -> Result<String> {
    wait::until(format!("/readyz says {words:?}"), SOON, || async {
        let (status, text) = readyz(operator).await?;
        ensure!(status == 503 && text.contains(words), "it is {status}: {text}");
        Ok(Some(text))
    })
    .await
}

/// Answers every request so, and says where.
async fn answers_always(answer: &'static str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0)
                {
                }
                // Whoever asked may be gone.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(address)
}

/// A page for browsers, where nothing is; the way to one; and one with a login.
const NO_CONSUL: [(&str, &str); 3] = [
    (
        "HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\nConnection: close\r\n\r\n<html>no</html>     ",
        "is not Consul's API: correct --consul-address; it answered 404: a page of HTML",
    ),
    (
        "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "is not Consul's API: correct --consul-address; it answered 302",
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n<html>login</html>  ",
        "but a page of HTML: correct --consul-address",
    ),
];

pub(crate) async fn what_answers_is_no_consul(fixture: &Fixture) -> Result<()> {
    let files = WorkDir::create("addresses")?;
    let server = Authority::new("consul")?.server(vec!["127.0.0.1".to_owned()])?;
    let (cert, key) = (files.write("server.crt", &server.public)?, files.write("server.key", &server.private)?);
    let https = ports::free()?;
    let (cert, key) = (arg(&cert)?, arg(&key)?);
    let extra_hcl =
        format!("ports {{ https = {https} }}\ntls {{ https {{ cert_file = {cert:?}, key_file = {key:?} }} }}");
    fixture.own_consul(ConsulOptions { extra_hcl, ..ConsulOptions::default() }).await?;
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let operator = fixture.operate().await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    operator.terminate(SOON).await?;

    let mut wrong = vec![
        (format!("http://127.0.0.1:{https}"), "Consul's port wants TLS: write https:// in --consul-address"),
        (fixture.consul_address().replace("http://", "https://"), "does not speak TLS at this port: write http://"),
    ];
    for (answer, words) in NO_CONSUL {
        wrong.push((answers_always(answer).await?, words));
    }
    for (address, words) in &wrong {
        let operator = fixture.operator().consul(address).start()?;
        wait_not_ready(&operator, words).await.with_context(|| address.clone())?;
        ensure!(fixture.instances().await?.len() == 2, "they stay");
        operator.terminate(SOON).await?;
    }
    // Consul says in its catalog of which version its servers are. An agent is of a version of its own.
    let old = json!({
        "Node": "old-server",
        "Address": "192.0.2.9",
        "Service": { "ID": "consul", "Service": "consul", "Port": 8300, "Meta": { "version": "1.9.17" } },
    });
    fixture.consul().put("/v1/catalog/register", &old).await?;
    let operator = fixture.operator().start()?;
    if fixture.mode == Mode::Catalog {
        wait_not_ready(&operator, "the Consul server old-server is 1.9.17, which does not say when ACLs").await?;
    }
    let said = crate::commands::says(fixture, "doctor", &[], 1)?;
    ensure!(said.contains("FAIL  Consul's version: the Consul server old-server is 1.9.17"), "{said}");
    ensure!(fixture.instances().await?.len() == 2, "they stay");
    fixture.consul().put("/v1/catalog/deregister", &json!({ "Node": "old-server" })).await?;
    operator.wait_ready(SOON).await?;
    fixture.wait_ready("web").await
}

/// Status and text of `/readyz`.
async fn readyz(operator: &Operator) -> Result<(u16, String)> {
    let answer = reqwest::get(format!("http://{}/readyz", operator.admin_address())).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

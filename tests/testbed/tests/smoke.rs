//! The testbed itself: what the other tests take for granted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use lictor_testbed::{
    Consul, ConsulOptions, ControlPlane, Fault, LocalAddress, NewEndpoint, NewPod, Operator, Programs, Proxy,
    TestNamespace, wait,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

fn endpoints(slices: &[EndpointSlice]) -> Vec<&Endpoint> {
    let lists = slices.iter().filter_map(|slice| slice.endpoints.as_ref());
    lists.flatten().collect()
}

/// How many endpoints (are ready, are terminating).
fn counts(slices: &[EndpointSlice]) -> (usize, usize) {
    let all = endpoints(slices);
    let conditions = || all.iter().filter_map(|endpoint| endpoint.conditions.as_ref());
    (
        conditions().filter(|conditions| conditions.ready == Some(true)).count(),
        conditions().filter(|conditions| conditions.terminating == Some(true)).count(),
    )
}

#[tokio::test]
async fn pods_become_endpoints() -> Result<()> {
    let programs = Programs::ensure().await?;
    let begun = Instant::now();
    let plane = ControlPlane::start(&programs).await?;
    println!("control plane: {:?}", begun.elapsed());

    let shop = TestNamespace::create(&plane, "shop").await?;
    let node = shop.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    shop.apply_service("user", &[("app", "user")], &[("grpc", 80, "grpc")]).await?;
    for name in ["user-1", "user-2"] {
        shop.create_pod(NewPod::new(name, &node).label("app", "user").port("grpc", 8080)).await?;
    }
    let ready = |n| move |slices: &[EndpointSlice]| counts(slices) == (n, 0);
    let slices = shop.wait_for_slices("user", "two are ready", ready(2), SOON).await?;
    let endpoint = endpoints(&slices)[0];
    ensure!(endpoint.node_name.as_deref() == Some(&node), "{endpoint:?}");
    ensure!(endpoint.zone.as_deref() == Some("zone-1"), "{endpoint:?}");
    let port = slices[0].ports.as_ref().and_then(|ports| ports.first()?.port);
    ensure!(port == Some(8080), "the named port is not resolved: {port:?}");

    shop.set_ready("user-1", false).await?;
    shop.wait_for_slices("user", "one is ready", ready(1), SOON).await?;
    shop.wait_for_condition("pod/user-2", "Ready", "True", SOON).await?;

    // No kubelet confirms the end: it stays, terminating.
    shop.delete_pod("user-2", 30).await?;
    let leaving = |slices: &[EndpointSlice]| counts(slices) == (0, 1);
    shop.wait_for_slices("user", "the other one terminates", leaving, SOON).await?;
    shop.force_delete("user-2").await?;
    let one = |slices: &[EndpointSlice]| endpoints(slices).len() == 1;
    shop.wait_for_slices("user", "it is gone", one, SOON).await?;

    // Made by hand, and left alone by the real controller.
    shop.apply_service("static", &[], &[("http", 80, "8080")]).await?;
    let by_hand = [NewEndpoint::new("198.18.0.11".parse()?)];
    shop.apply_slice("static-1", "static", &[("http", 8080)], &by_hand).await?;
    shop.wait_for_slices("static", "one by hand", ready(1), SOON).await?;

    // Everybody survives an apiserver that is away for a while.
    plane.stop_apiserver()?;
    ensure!(shop.kubectl(&["get", "pods"]).await.is_err(), "the apiserver still answers");
    plane.start_apiserver().await?;
    shop.set_ready("user-1", true).await?;
    shop.wait_for_slices("user", "it is ready again", ready(1), Duration::from_secs(60)).await?;

    let dump = shop.dump().await;
    ensure!(dump.contains("user-1") && dump.contains("static-1"), "{dump}");
    shop.delete().await;
    wait::until("the end of the namespace", SOON, || async {
        Ok(plane.kubectl(&["get", "namespace", shop.name()]).await.is_err().then_some(()))
    })
    .await
}

#[tokio::test]
async fn consul_keeps_what_it_should() -> Result<()> {
    let programs = Programs::ensure().await?;
    let begun = Instant::now();
    let dev = Consul::start(&programs, ConsulOptions::default()).await?;
    println!("consul -dev: {:?}", begun.elapsed());
    let service = json!({
        "ID": "user-1", "Name": "user", "Address": "192.0.2.1", "Port": 80, "Tags": ["v1"],
        "Meta": { "k": "v" }, "Check": { "CheckID": "c", "Name": "ready", "TTL": "1h" },
    });
    dev.api().put("/v1/agent/service/register", &service).await?;
    let found = dev.api().wait_for("user", "one", |found| found.len() == 1, SOON).await?;
    ensure!(found[0].node == dev.node_name() && found[0].status == "critical", "{found:?}");
    ensure!((found[0].port, found[0].weights) == (80, (1, 1)), "{found:?}");
    ensure!(found[0].checks.iter().any(|check| check.kind == "ttl"), "{found:?}");
    let api = dev.api();
    let never = api.wait_for("user", "none", <[_]>::is_empty, Duration::from_millis(100)).await;
    let failure = format!("{:#}", never.expect_err("it is there"));
    ensure!(failure.contains("none") && failure.contains("192.0.2.1"), "{failure}");
    dev.kill()?;
    dev.start_again().await?;
    ensure!(dev.api().instances("user").await?.is_empty(), "memory outlived the process");

    let options = ConsulOptions { persistent: true, acl: true, ..ConsulOptions::default() };
    let begun = Instant::now();
    let kept = Consul::start(&programs, options).await?;
    println!("consul, persistent, ACLs: {:?}", begun.elapsed());
    let anonymous = kept.api_with_token(None);
    ensure!(anonymous.put("/v1/agent/service/register", &service).await.is_err(), "no ACLs");
    kept.api().put("/v1/agent/service/register", &service).await?;
    kept.api().wait_for("user", "one", |found| found.len() == 1, SOON).await?;
    let (leaving, address) = (kept.stop().await?, kept.http_addr());
    println!("consul stopped: {leaving}");
    kept.start_again().await?;
    ensure!(kept.http_addr() == address, "another address");
    kept.api().wait_for("user", "still one", |found| found.len() == 1, SOON).await?;
    kept.kill()?;
    kept.start_again().await?;
    kept.api().wait_for("user", "still one", |found| found.len() == 1, SOON).await?;

    // A client agent, on another address and the same port as its server would have.
    let options =
        ConsulOptions { join: Some(dev.serf_addr()), address: "127.0.0.2".parse()?, ..ConsulOptions::default() };
    let client = Consul::start(&programs, options).await?;
    let nodes = dev.api().get("/v1/catalog/nodes").await?;
    ensure!(nodes.as_array().is_some_and(|nodes| nodes.len() == 2), "{nodes}");
    client.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_proxy_records_and_fails_on_demand() -> Result<()> {
    let programs = Programs::ensure().await?;
    let consul = Consul::start(&programs, ConsulOptions::default()).await?;
    let proxy = Proxy::start(&consul.http_addr()).await?;
    let through = lictor_testbed::ConsulApi::new(&proxy.addr(), None);

    through.put("/v1/kv/a?flags=1", &json!("x")).await?;
    let (value, index) = through.get_with_index("/v1/kv/a").await?;
    ensure!(value[0]["Flags"] == 1 && index > 0, "{value} {index}");
    through.put("/v1/txn", &json!([{ "KV": { "Verb": "get", "Key": "a" } }])).await?;
    let records = proxy.records();
    ensure!(records.len() == 3 && records.iter().all(|r| r.status == Some(200)), "{records:?}");
    let writes = proxy.writes();
    ensure!(writes.len() == 1 && writes[0].query == "flags=1", "{writes:?}");
    ensure!(writes[0].body_len() == 1, "{writes:?}");
    proxy.clear();
    ensure!(proxy.records().is_empty(), "not cleared");

    proxy.set_fault(Fault::DropAnswer);
    ensure!(through.put("/v1/kv/b", &json!("y")).await.is_err(), "there was an answer");
    ensure!(proxy.writes()[0].status.is_none(), "{:?}", proxy.writes());
    ensure!(consul.api().get("/v1/kv/b").await.is_ok(), "the write was not done");
    proxy.set_fault(Fault::Refuse);
    ensure!(through.put("/v1/kv/c", &json!("z")).await.is_err(), "there was an answer");
    ensure!(consul.api().get("/v1/kv/c").await.is_err(), "a refused write was done");
    let retry = vec![("Retry-After", "1".to_owned())];
    let limited = Fault::Status(429, "slowly".to_owned(), retry);
    proxy.set_fault(Fault::Rule(std::sync::Arc::new(move |record| record.is_write().then(|| limited.clone()))));
    let error = through.put("/v1/kv/d", &json!("z")).await.expect_err("429").to_string();
    ensure!(error.contains("429") && error.contains("slowly"), "{error}");
    ensure!(through.get("/v1/kv/b").await?[0]["Key"] == "b", "reads are let through");
    proxy.set_fault(Fault::Delay(Duration::from_millis(300)));
    let begun = Instant::now();
    through.get("/v1/status/leader").await?;
    ensure!(begun.elapsed() >= Duration::from_millis(300), "no delay");
    Ok(())
}

#[tokio::test]
async fn nothing_outlives_a_killed_process() -> Result<()> {
    Programs::ensure().await?;
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_testbed")).arg("up").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let value = |name: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        word.with_context(|| format!("no {name} in {line:?}"))
    };
    let kubeconfig = value("KUBECONFIG=")?;
    let work_dir = Path::new(kubeconfig).parent().context("a folder")?;
    let children = children(child.id())?;
    ensure!(children.len() == 6, "four components, Consul and the watchdog: {children:?}");

    child.kill()?;
    child.wait()?;
    wait::until("the end of its children", SOON, || async {
        let left = children.iter().filter(|pid| runs(pid)).count();
        Ok((left == 0 && !work_dir.exists()).then_some(()))
    })
    .await
}

/// The processes that a process has started.
fn children(parent: u32) -> Result<Vec<String>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{parent}/task"))? {
        let listed = std::fs::read_to_string(task?.path().join("children"))?;
        children.extend(listed.split_whitespace().map(str::to_owned));
    }
    Ok(children)
}

/// Whether a process is there and is more than a zombie that nobody has waited for.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

#[tokio::test]
async fn an_operator_that_ends_is_not_waited_for() -> Result<()> {
    // Any program that takes our arguments and ends.
    let operator = Operator::start(Path::new("echo"), &["--dry-run"], &[("A", "b")])?;
    let failure = operator.wait_ready(SOON).await.expect_err("echo is not an operator");
    let failure = format!("{failure:#}");
    ensure!(failure.contains("--admin-address 127.0.0.1:"), "its words are missing: {failure}");
    ensure!(operator.log().contains("run --admin-address"), "{}", operator.log());
    ensure!(operator.terminate(SOON).await?.success(), "echo failed");
    Ok(())
}

#[test]
fn a_local_address_comes_and_goes() -> Result<()> {
    let Ok(added) = LocalAddress::add("198.18.77.7") else {
        println!("not permitted here");
        return Ok(());
    };
    std::net::TcpListener::bind((added.ip(), 0))?;
    let ip = added.ip();
    drop(added);
    ensure!(std::net::TcpListener::bind((ip, 0)).is_err(), "it is still there");
    Ok(())
}

//! The Consul nodes that stand for Kubernetes nodes: whose they are, and how they are called.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor_testbed::{Consul, ConsulOptions, Instance, NewEndpoint, NewPod, TestPod, wait};
use serde_json::json;

use crate::commands::says;
use crate::fixture::{Fixture, Mode, SOON};
use crate::moves::Reader;

/// So many endpoints name a Node that nobody has registered, each another one.
const INVENTED: u8 = 60;

pub(crate) async fn names_that_are_no_nodes(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    let node = |name: &str| format!("{}-{name}", fixture.namespace.name());
    let address = |last: u8| IpAddr::from([10, 1, 0, last]);
    let real = NewEndpoint { node: Some(node("a")), ..NewEndpoint::new(address(INVENTED + 1)) };
    let invented = (1..=INVENTED)
        .map(|last| NewEndpoint { node: Some(node(&format!("i{last}"))), ..NewEndpoint::new(address(last)) });
    let endpoints: Vec<NewEndpoint> = invented.chain([real]).collect();
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await?;
    let [first, real] = [fixture.consul_node_of(&node("i1"))?, fixture.consul_node_of(&node("a"))?];
    let shared = format!("{}-shard-", fixture.cluster);
    let is_shared = |node: &str| node.starts_with(&shared);
    // Whether all are there once, and on which nodes: the first one, those in between, and the last one.
    let stand = |found: &[Instance], first: &dyn Fn(&str) -> bool, others: &dyn Fn(&str) -> bool| {
        let node_of = |last: u8| found.iter().find(|i| i.address == address(last).to_string()).map(|i| &*i.node);
        found.len() == usize::from(INVENTED) + 1
            && node_of(1).is_some_and(first)
            && (2..=INVENTED).all(|last| node_of(last).is_some_and(others))
            && node_of(INVENTED + 1) == Some(&real)
    };
    let all_shared = |found: &[Instance]| stand(found, &is_shared, &is_shared);
    let first_on_its_own = |found: &[Instance]| stand(found, &|node| node == first, &is_shared);

    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("all but one on shared nodes", all_shared).await?;
    fixture.wait_ready("web").await?;
    let own = fixture.consul().get("/v1/catalog/nodes").await?;
    let own = own.as_array().into_iter().flatten().filter(|node| node["Meta"]["lictor-cluster"] == fixture.cluster);
    let own: BTreeSet<&str> = own.filter_map(|node| node["Node"].as_str()).collect();
    let marker = format!("lictor-{}", fixture.cluster);
    ensure!(own.iter().all(|node| is_shared(node) || [&*real, &marker].contains(node)), "{own:?}");

    // A Node of such a name joins, goes and is gone when Lictor starts anew.
    let all: Vec<String> = (1..=INVENTED + 1).map(|last| address(last).to_string()).collect();
    let reader = Reader::begin(fixture.consul(), &fixture.service, &all);
    let joined = fixture.namespace.create_node("i1", "192.0.2.20".parse()?, "zone-1").await?;
    fixture.wait_for("the first one on its own node", first_on_its_own).await?;
    fixture.namespace.delete_node(&joined).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(first_on_its_own(&fixture.instances().await?), "its Node may come back");
    operator.terminate(SOON).await?;
    let operator = fixture.operate().await?;
    fixture.wait_for("all but one on shared nodes again", all_shared).await?;
    operator.terminate(SOON).await?;

    // What a Lictor has registered that knows nothing of Nodes.
    let operator = fixture.operator().switch("--without-nodes").ready().await?;
    fixture
        .wait_for("each on its own node", |found| stand(found, &|node| node == first, &|node| !is_shared(node)))
        .await?;
    operator.terminate(SOON).await?;
    fixture.operate().await?;
    fixture.wait_for("all but one on shared nodes in the end", all_shared).await?;
    fixture.wait_ready("web").await?;
    let fewest = reader.end().await?;
    ensure!(fewest == all.len(), "a reader found {fewest} of {}", all.len());
    Ok(())
}

/// As AKS calls its nodes, shorter by what the testbed puts before it.
const LONG: &str = "aks-vmss000000";

fn stands_on(found: &[Instance], pod: &TestPod, node: impl Fn(&str) -> bool) -> bool {
    found.iter().any(|i| i.address == pod.ip.to_string() && i.status == "passing" && node(&i.node))
}

pub(crate) async fn an_agent_with_our_nodes_name(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let [first, second] = [fixture.consul_node_of(&pods[0].node)?, fixture.consul_node_of(&pods[1].node)?];
    let consul =
        fixture.own_consul(ConsulOptions { node_name: Some(first.clone()), ..ConsulOptions::default() }).await?;
    let told = says(fixture, "doctor", &[], 0)?;
    ensure!(told.contains("note  names of Consul nodes") && told.contains(&pods[0].node), "{told}");

    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let is_shared = |node: &str| node != first && node != second;
    fixture
        .wait_for("one on a shared node, one on its own", |found| {
            found.len() == 2
                && stands_on(found, &pods[0], is_shared)
                && stands_on(found, &pods[1], |node| node == second)
        })
        .await?;
    fixture.wait_ready("web").await?;
    wait::until("a word about the name", SOON, || async {
        Ok(operator.log().contains("the Consul node of this name belongs to").then_some(()))
    })
    .await?;

    // An agent joins under the name of a node that is ours by now: it takes away what it does not know.
    let joins = ConsulOptions {
        node_name: Some(second.clone()),
        join: Some(consul.serf_addr()),
        address: "127.0.0.2".parse()?,
        ..ConsulOptions::default()
    };
    let _agent = Consul::start(fixture.programs, joins).await?;
    fixture
        .wait_for("both on shared nodes", |found| {
            found.len() == 2 && pods.iter().all(|pod| stands_on(found, pod, is_shared))
        })
        .await?;
    fixture.wait_ready("web").await?;
    fixture.namespace.force_delete("web-1").await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for_pods(&[]).await.map(drop)
}

/// What the doctor says about SRV answers, which it asks for over TCP: over UDP without EDNS Consul leaves out what
/// does not fit, and answers.
fn dns(fixture: &Fixture, code: i32) -> Result<String> {
    says(fixture, "doctor", &["--dns-address", &fixture.dns_address().to_string()], code)
}

pub(crate) async fn dns_leaves_instances_out(fixture: &Fixture) -> Result<()> {
    const SHORT: &str = "note  Consul's DNS over UDP: SRV answers leave out instances of";
    let consul = fixture.own_consul(ConsulOptions::default()).await?;
    let pods = fixture.web(4).await?;
    let _operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    let told = dns(fixture, 0)?;
    ensure!(told.contains(&format!("{SHORT} {}, and do not say so", fixture.service)), "{told}");
    ensure!(told.contains("set enable_truncate = true"), "{told}");
    let advises_meta = told.contains("enable_additional_node_meta_txt = false");
    ensure!(advises_meta == (fixture.mode == Mode::Catalog), "{told}");

    // An agent that is set as advised says that there is more.
    let advised = ConsulOptions {
        join: Some(consul.serf_addr()),
        address: "127.0.0.2".parse()?,
        extra_hcl: "dns_config {\n  enable_truncate = true\n  enable_additional_node_meta_txt = false\n}".to_owned(),
        ..ConsulOptions::default()
    };
    let agent = Consul::start(fixture.programs, advised).await?;
    let told = says(fixture, "doctor", &["--dns-address", &format!("127.0.0.2:{}", agent.dns_port())], 0)?;
    ensure!(told.contains("ok    Consul's DNS") && !told.contains(SHORT), "{told}");
    Ok(())
}

pub(crate) async fn long_names_answer_srv(fixture: &Fixture) -> Result<()> {
    let node = fixture.namespace.create_node(LONG, "192.0.2.10".parse()?, "zone-1").await?;
    fixture.namespace.apply_service("web", &[("app", "web")], &[("http", 80, "8080")]).await?;
    let mut pods = Vec::new();
    for number in 0..2 {
        let pod = NewPod::new(&format!("web-{number}"), &node).label("app", "web").port("http", 8080);
        pods.push(fixture.namespace.create_pod(pod).await?);
    }
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let short = fixture.consul_node_of(&node)?;
    ensure!(short.len() <= 63, "{short}");
    ensure!(found.iter().all(|i| i.node == short && i.meta.get("k8s-node") == Some(&node)), "{found:?}");
    let shown = fixture.consul().get(&format!("/v1/catalog/node-services/{short}")).await?;
    ensure!(shown["Node"]["Address"] == "192.0.2.10", "{shown}");
    let told = dns(fixture, 0)?;
    ensure!(told.contains("ok    Consul's DNS"), "{told}");

    // As a Lictor left it that knew nothing of this.
    operator.kill()?;
    let long = format!("{}-{node}", fixture.cluster);
    ensure!(long.len() > 63, "{long}");
    for instance in &found {
        let check = instance.checks.iter().find(|check| check.service_id == instance.id).context("no check")?;
        let row = json!({
            "Node": long,
            "Address": "192.0.2.10",
            "NodeMeta": shown["Node"]["Meta"],
            "Service": {
                "ID": instance.id,
                "Service": fixture.service,
                "Address": instance.address,
                "Port": instance.port,
                "Meta": instance.meta,
            },
            "Check": {
                "CheckID": check.id,
                "Name": check.name,
                "Type": check.kind,
                "Status": "passing",
                "ServiceID": instance.id,
            },
        });
        fixture.consul().put("/v1/catalog/register", &row).await?;
    }
    fixture.consul().put("/v1/catalog/deregister", &json!({ "Node": short })).await?;
    let told = dns(fixture, 1)?;
    ensure!(told.contains("FAIL  Consul's DNS") && told.contains("sends no SRV answer"), "{told}");

    let moved = async {
        fixture.operate().await?;
        fixture
            .wait_for("both on the shorter name alone", |found| {
                found.len() == 2 && found.iter().all(|i| i.node == short)
            })
            .await
    };
    let fewest = async {
        let (mut fewest, mut looks) = (usize::MAX, 0);
        loop {
            let passing = fixture.instances().await?.into_iter().filter(|i| i.status == "passing");
            let addresses: BTreeSet<String> = passing.map(|i| i.address).collect();
            fewest = fewest.min(addresses.len());
            looks += 1;
            ensure!(fewest == 2, "after {looks} looks a reader finds {addresses:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        moved = moved => moved.map(drop)?,
        missed = fewest => return missed,
    }
    fixture.wait_ready("web").await?;
    let told = dns(fixture, 0)?;
    ensure!(told.contains("ok    Consul's DNS"), "{told}");
    Ok(())
}

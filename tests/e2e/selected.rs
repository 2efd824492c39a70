//! Instances straight from the pods that a selector matches, with no Service between.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use lictor_testbed::{Instance, NewPod, Reader, TestPod};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, pair};

/// The source of the pods that are `web`, whose tier is one of two, and that are no canaries.
fn source() -> Value {
    json!({ "source": { "pods": {
        "matchLabels": { "app": "web" },
        "matchExpressions": [
            { "key": "tier", "operator": "In", "values": ["front", "edge"] },
            { "key": "tier", "operator": "Exists" },
            { "key": "track", "operator": "NotIn", "values": ["nightly"] },
            { "key": "canary", "operator": "DoesNotExist" },
        ],
    } } })
}

/// Makes the two nodes, and a pod for each of these: its name, its node, its tier.
async fn pods(fixture: &Fixture, tiers: [(&str, &str, &str); 4]) -> Result<[TestPod; 4]> {
    fixture.nodes().await?;
    let make = async |(name, node, tier)| {
        fixture.namespace.create_pod(fixture.new_web_pod(name, node).label("tier", tier)).await
    };
    let [a, b, c, d] = tiers;
    Ok([make(a).await?, make(b).await?, make(c).await?, make(d).await?])
}

pub(crate) async fn pods_are_picked(fixture: &Fixture) -> Result<()> {
    let [front, edge, back, canary] = pods(
        fixture,
        [("web-0", "a", "front"), ("web-1", "b", "edge"), ("back", "a", "back"), ("canary", "b", "front")],
    )
    .await?;
    fixture.namespace.label_pod("canary", "canary", Some("yes")).await?;
    fixture.operate().await?;
    fixture.apply_web(source()).await?;
    let found = fixture.wait_for_pods(&[&front, &edge]).await?;
    let services: Api<Service> = Api::namespaced(fixture.namespace.client().clone(), fixture.namespace.name());
    ensure!(services.list(&ListParams::default()).await?.items.is_empty(), "there is a Service");
    for pod in [&front, &edge] {
        let node = match fixture.mode {
            Mode::Agent => fixture.consul_node().to_owned(),
            Mode::Catalog => fixture.consul_node_of(&pod.node)?,
        };
        let id = format!("{}:{}:web:{}:{}:8080", fixture.cluster, fixture.namespace.name(), fixture.service, pod.uid);
        let is = |i: &Instance| i.id == id && i.port == 8080 && i.node == node;
        let of_pod = |i: &Instance| pair(i, "k8s-pod") == Some(&pod.name) && pair(i, "k8s-node") == Some(&pod.node);
        ensure!(found.iter().any(|i| is(i) && of_pod(i)), "no {id} on {node}: {found:?}");
    }
    fixture.wait_flawless("web").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;

    // An edit of its labels makes a pod one that is picked, or one that is not.
    fixture.namespace.label_pod("back", "tier", Some("front")).await?;
    fixture.wait_for_pods(&[&front, &edge, &back]).await?;
    fixture.namespace.label_pod("web-0", "app", Some("other")).await?;
    fixture.namespace.label_pod("web-1", "track", Some("nightly")).await?;
    fixture.wait_for_pods(&[&back]).await?;
    fixture.namespace.label_pod("canary", "canary", None).await?;
    fixture.wait_for_pods(&[&back, &canary]).await?;
    // And so does an edit of the selector.
    fixture.apply_web(json!({ "source": { "pods": { "matchLabels": { "app": "other" } } } })).await?;
    fixture.wait_for_pods(&[&front]).await?;
    fixture.wait_flawless("web").await?;
    fixture.wait_for_counts("web", [1, 1, 1, 0]).await
}

pub(crate) async fn another_label_is_asked_for(fixture: &Fixture) -> Result<()> {
    let [first, second, third, fourth] = pods(
        fixture,
        [("web-0", "a", "front"), ("web-1", "b", "front"), ("web-2", "a", "edge"), ("back", "b", "back")],
    )
    .await?;
    fixture.namespace.label_pod("back", "app", Some("other")).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "source": { "pods": { "matchLabels": { "app": "web" } } } })).await?;
    fixture.wait_for_pods(&[&first, &second, &third]).await?;

    // Nobody has asked for these labels before: Lictor does not know which pods have them.
    let living = [&first, &second].map(|pod| pod.ip.to_string());
    let reader = Reader::begin(&fixture.consul_address(), &fixture.service, living);
    let front = json!({ "source": { "pods": { "matchLabels": { "tier": "front" } } } });
    fixture.apply_web(front.clone()).await?;
    fixture.wait_for_pods(&[&first, &second]).await?;
    let without = [json!({ "key": "canary", "operator": "DoesNotExist" })];
    fixture.apply_web(json!({ "source": { "pods": { "matchExpressions": without } } })).await?;
    fixture.wait_for_pods(&[&first, &second, &third, &fourth]).await?;
    fixture.apply_web(crate::fixture::merged(front, json!({ "tags": ["${pod.labels['app']}"] }))).await?;
    fixture.wait_for_pods(&[&first, &second]).await?;
    let as_labelled = |found: &[Instance]| found.len() == 2 && found.iter().all(|instance| instance.tags == ["web"]);
    fixture.wait_for("the label is the tag", as_labelled).await?;
    let seen = reader.end().await?;
    ensure!(seen.is_whole(), "{seen:?}");
    fixture.wait_flawless("web").await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn pods_live_and_die(fixture: &Fixture) -> Result<()> {
    let [first, second, third, fourth] = pods(
        fixture,
        [("web-0", "a", "front"), ("web-1", "b", "front"), ("web-2", "a", "edge"), ("web-3", "b", "edge")],
    )
    .await?;
    fixture.operate().await?;
    fixture.apply_web(source()).await?;
    fixture.wait_for_pods(&[&first, &second, &third, &fourth]).await?;

    fixture.namespace.set_ready("web-0", false).await?;
    let address = first.ip.to_string();
    fixture
        .wait_for("web-0 is critical, the others are passing", |found| {
            found.len() == 4 && found.iter().all(|i| (i.status == "critical") == (i.address == address))
        })
        .await?;
    fixture.wait_for_counts("web", [4, 4, 3, 1]).await?;
    fixture.namespace.set_ready("web-0", true).await?;
    fixture.wait_for_pods(&[&first, &second, &third, &fourth]).await?;

    // One terminates: no kubelet confirms its end, so that it stays, and is ready. Two have ended, and keep their
    // address.
    fixture.namespace.delete_pod("web-0", 300).await?;
    fixture.wait_for_pods(&[&second, &third, &fourth]).await?;
    ensure!(
        fixture.namespace.pods().get("web-0").await?.metadata.deletion_timestamp.is_some(),
        "it does not terminate"
    );
    fixture.namespace.set_phase("web-1", "Succeeded").await?;
    fixture.namespace.set_phase("web-2", "Failed").await?;
    fixture.wait_for_pods(&[&fourth]).await?;
    for ended in ["web-1", "web-2"] {
        let status = fixture.namespace.pods().get(ended).await?.status;
        ensure!(status.is_some_and(|status| status.pod_ip.is_some()), "{ended} has no address any more");
    }
    // Where no other one is left, the one that terminates and is ready still serves.
    fixture.namespace.force_delete("web-3").await?;
    fixture.wait_for_pods(&[&first]).await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for_pods(&[]).await?;
    // No pod is a truth, not an error; and one that comes back under its name is another one.
    fixture.wait_flawless("web").await?;
    fixture.wait_for_counts("web", [0, 0, 0, 0]).await?;
    let again = fixture.namespace.create_pod(fixture.new_web_pod("web-3", "a").label("tier", "edge")).await?;
    let found = fixture.wait_for_pods(&[&again]).await?;
    ensure!(found[0].id.contains(&again.uid) && !found[0].id.contains(&fourth.uid), "{found:?}");
    Ok(())
}

pub(crate) async fn pods_without_what_it_takes(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    let new = |name: &str| fixture.new_web_pod(name, "a");
    let plain = fixture.namespace.create_pod(new("plain")).await?;
    let late = fixture.namespace.create_pod(new("late").unreported()).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "source": { "pods": { "matchLabels": { "app": "web" } } }, "port": "http" })).await?;
    fixture.wait_for_pods(&[&plain]).await?;
    fixture.wait_flawless("web").await?;
    // It has its address as soon as its kubelet has seen it.
    fixture.namespace.report("late", &[late.ip], true).await?;
    fixture.wait_for_pods(&[&plain, &late]).await?;

    // Two in the network of their node: one address, two ports. And one without any port of that name.
    let node: IpAddr = "192.0.2.10".parse()?;
    let host = |name: &str, port| {
        let node_name = format!("{}-a", fixture.namespace.name());
        lictor_testbed::NewPod::new(name, &node_name).label("app", "web").port("http", port).ip(node).host_network()
    };
    fixture.namespace.create_pod(host("host-1", 9001)).await?;
    fixture.namespace.create_pod(host("host-2", 9002)).await?;
    let other = lictor_testbed::NewPod::new("other", &format!("{}-a", fixture.namespace.name()));
    let other = fixture.namespace.create_pod(other.label("app", "web").port("grpc", 9000)).await?;
    let found =
        fixture.wait_for("four", |found| found.len() == 4 && found.iter().all(|i| i.status == "passing")).await?;
    let has = |address: IpAddr, port| found.iter().any(|i| i.address == address.to_string() && i.port == port);
    ensure!(has(node, 9001) && has(node, 9002) && has(plain.ip, 8080) && has(late.ip, 8080), "{found:?}");
    let message = fixture.wait_for_problem("web", "other", "PortNotFound").await?;
    ensure!(message.contains("http") && message.contains("9000 (grpc)"), "{message}");
    fixture.wait_for_condition("web", "Ready", "False", "PortNotFound").await?;
    ensure!(
        !fixture.instances().await?.iter().any(|i| i.address == other.ip.to_string()),
        "it is registered all the same"
    );

    // By number it needs no name.
    fixture.apply_web(json!({ "source": { "pods": { "matchLabels": { "app": "web" } } }, "port": 7000 })).await?;
    fixture.wait_for("all five at 7000", |found| found.len() == 5 && found.iter().all(|i| i.port == 7000)).await?;
    fixture.wait_flawless("web").await
}

pub(crate) async fn containers_are_added_by_somebody_else(fixture: &Fixture) -> Result<()> {
    let spec = json!({ "source": { "pods": { "matchLabels": { "app": "web" } } } });
    let new = |name: &str, node: &str| fixture.new_web_pod(name, node);
    fixture.nodes().await?;
    let old = [
        fixture.namespace.create_pod(new("web-0", "a")).await?,
        fixture.namespace.create_pod(new("web-1", "b")).await?,
    ];
    let operator = fixture.operate().await?;
    fixture.apply_web(spec.clone()).await?;
    fixture.wait_for_pods(&[&old[0], &old[1]]).await?;
    fixture.wait_flawless("web").await?;

    // Nobody means the port of a mesh's container, or of a native sidecar.
    let reader = Reader::begin(&fixture.consul_address(), &fixture.service, []);
    let meshed = [
        new("web-2", "a").container("istio-proxy", ("http-envoy-prom", 15090)),
        new("web-3", "b").native_sidecar("proxy", ("admin", 9901)),
    ];
    let meshed = roll_out(fixture, &old, meshed).await?;
    fixture.wait_for_condition("web", "Resolved", "True", "Resolved").await?;
    fixture.wait_flawless("web").await?;
    // Of a container that nobody knows that cannot be told: what is registered goes on, and it is said.
    let added = ["web-4", "web-5"].map(|name| new(name, "a").container("exporter", ("metrics", 9102)));
    let [_, other] = roll_out(fixture, &meshed, added).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "True", "PortNotNamed").await?;
    ensure!(message.contains("Lictor keeps 8080 (http)") && message.contains("9102 (metrics)"), "{message}");
    fixture.wait_flawless("web").await?;
    let seen = reader.end().await?;
    println!("{}: {seen}", fixture.mode.as_str());
    ensure!(seen.looks > 10 && seen.fewest_of_all == 2, "{seen}");

    // Nor is it forgotten over a restart, or while nothing is registered.
    operator.terminate(SOON).await?;
    fixture.namespace.force_delete("web-4").await?;
    fixture.operate().await?;
    fixture.wait_for_pods(&[&other]).await?;
    fixture.namespace.force_delete("web-5").await?;
    fixture.wait_for_pods(&[]).await?;
    let last = fixture.namespace.create_pod(new("web-6", "b").container("exporter", ("metrics", 9102))).await?;
    let found = fixture.wait_for_pods(&[&last]).await?;
    ensure!(found[0].port == 8080, "{found:?}");

    // The pod itself may say which one is the app.
    let main = new("main", "a").label("app", "other").annotation("kubectl.kubernetes.io/default-container", "main");
    let main = fixture.namespace.create_pod(main.container("exporter", ("metrics", 9102))).await?;
    let unclear = new("unclear", "a").label("app", "unclear").container("exporter", ("metrics", 9102));
    fixture.namespace.create_pod(unclear).await?;
    for app in ["other", "unclear"] {
        let source = json!({ "source": { "pods": { "matchLabels": { "app": app } } } });
        let service = json!({ "name": fixture.service_named(app) });
        fixture.apply(app, &crate::fixture::merged(fixture.spec(service), source)).await?;
    }
    let just =
        |found: &[Instance]| found.len() == 1 && found[0].address == main.ip.to_string() && found[0].port == 8080;
    fixture.consul().wait_for(&fixture.service_named("other"), "the port of its main container", just, SOON).await?;
    fixture.wait_for_condition("other", "Resolved", "True", "Resolved").await?;
    let message = fixture.wait_for_condition("unclear", "Resolved", "False", "PortNotFound").await?;
    ensure!(message.contains("8080 (http), 9102 (metrics)"), "{message}");
    Ok(())
}

/// Makes new pods, and has the old ones go when the new ones are in Consul.
async fn roll_out(fixture: &Fixture, old: &[TestPod; 2], new: [NewPod; 2]) -> Result<[TestPod; 2]> {
    let [first, second] = new;
    let new = [fixture.namespace.create_pod(first).await?, fixture.namespace.create_pod(second).await?];
    fixture.wait_for_pods(&[&old[0], &old[1], &new[0], &new[1]]).await?;
    for pod in old {
        fixture.namespace.force_delete(&pod.name).await?;
    }
    let found = fixture.wait_for_pods(&[&new[0], &new[1]]).await?;
    ensure!(found.iter().all(|instance| instance.port == 8080), "{found:?}");
    Ok(new)
}

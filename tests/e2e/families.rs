//! Addresses of both families, and host names.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lictor_testbed::dns::Kind;
use lictor_testbed::{Instance, TestPod};
use serde_json::{Value, json};

use crate::fixture::{Fixture, SOON, merged};

/// The second addresses of the pods.
const V6: [&str; 2] = ["fd00:10:244::1", "fd00:10:244::2"];

/// Makes two pods with an address of each family, and a Service in front of them that has these.
async fn pods(fixture: &Fixture, families: &[&str]) -> Result<[TestPod; 2]> {
    fixture.nodes().await?;
    service(fixture, "web", families).await?;
    let pod = async |name, node, v6: &str| {
        let new = fixture.new_web_pod(name, node).ip(lictor_testbed::pods::next_pod_ip()).ip(v6.parse()?);
        fixture.namespace.create_pod(new).await
    };
    Ok([pod("web-0", "a", V6[0]).await?, pod("web-1", "b", V6[1]).await?])
}

async fn service(fixture: &Fixture, name: &str, families: &[&str]) -> Result<()> {
    let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": {
            "ipFamilyPolicy": policy,
            "ipFamilies": families,
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
        },
    });
    fixture.namespace.apply_yaml(&service.to_string()).await.map(drop)
}

/// Whether these are just the instances at these addresses, each with its tagged address of this name, or with none of
/// that name; the one of its own family an agent adds itself.
fn are(found: &[Instance], wanted: &[(IpAddr, &str, Option<IpAddr>)]) -> bool {
    found.len() == wanted.len()
        && wanted.iter().all(|(address, name, other)| {
            let instance = found.iter().find(|i| i.address == address.to_string() && i.status == "passing");
            let tagged = instance.map(|i| i.tagged_addresses.get(*name).cloned());
            tagged == Some(other.map(|other| (other.to_string(), 8080)))
        })
}

pub(crate) async fn both_families(fixture: &Fixture) -> Result<()> {
    let pods = pods(fixture, &["IPv4", "IPv6"]).await?;
    let v4 = pods.each_ref().map(|pod| pod.ip);
    let v6: [IpAddr; 2] = [V6[0].parse()?, V6[1].parse()?];
    // The Service's other family is there too: were it looked at, there would be four instances.
    fixture
        .namespace
        .wait_for_slices(
            "web",
            "both families",
            |slices| slices.len() == 2 && slices.iter().all(|s| s.endpoints.as_ref().is_some_and(|e| e.len() == 2)),
            SOON,
        )
        .await?;
    service(fixture, "six", &["IPv6", "IPv4"]).await?;
    fixture.operate().await?;

    // One instance for each pod, at its address of the Service's primary family.
    let (six, picked) = (fixture.service_named("six"), fixture.service_named("picked"));
    let of_six = |more| merged(fixture.spec(json!({ "name": six, "source": { "service": { "name": "six" } } })), more);
    let of_pods = |more| {
        let source = json!({ "name": picked, "source": { "pods": { "matchLabels": { "app": "web" } } } });
        merged(fixture.spec(source), more)
    };
    let apply = async |more: Value| -> Result<()> {
        fixture.apply_web(more.clone()).await?;
        fixture.apply("six", &of_six(more.clone())).await?;
        fixture.apply("picked", &of_pods(more)).await
    };
    let wait = async |dual: bool| -> Result<()> {
        let other = |other: IpAddr| dual.then_some(other);
        let plain = [(v4[0], "lan_ipv6", other(v6[0])), (v4[1], "lan_ipv6", other(v6[1]))];
        let turned = [(v6[0], "lan_ipv4", other(v4[0])), (v6[1], "lan_ipv4", other(v4[1]))];
        for (service, wanted) in [(&fixture.service, plain), (&picked, plain), (&six, turned)] {
            let description = format!("one instance for each pod, dualStack: {dual}");
            fixture.consul().wait_for(service, &description, |found| are(found, &wanted), SOON).await?;
        }
        Ok(())
    };
    apply(json!({})).await?;
    wait(false).await?;
    for service in [&fixture.service, &picked] {
        fixture.wait_for_dns(service, Kind::A, &v4).await?;
        fixture.wait_for_dns(service, Kind::Aaaa, &[]).await?;
    }
    fixture.wait_for_dns(&six, Kind::Aaaa, &v6).await?;
    fixture.wait_for_dns(&six, Kind::A, &[]).await?;
    for name in ["web", "six", "picked"] {
        fixture.wait_flawless(name).await?;
        fixture.wait_for_counts(name, [2, 2, 2, 0]).await?;
    }

    // Where asked for, the other one is there as well.
    apply(json!({ "dualStack": true })).await?;
    wait(true).await?;
    for service in [&fixture.service, &picked, &six] {
        fixture.wait_for_dns(service, Kind::A, &v4).await?;
        fixture.wait_for_dns(service, Kind::Aaaa, &v6).await?;
    }
    apply(json!({})).await?;
    wait(false).await?;
    fixture.wait_for_dns(&fixture.service, Kind::Aaaa, &[]).await
}

pub(crate) async fn ipv6_alone(fixture: &Fixture) -> Result<()> {
    let pods = pods(fixture, &["IPv6"]).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for("both by IPv6", |found| {
        found.len() == 2 && V6.iter().all(|v6| found.iter().any(|i| i.address == **v6 && i.status == "passing"))
    });
    let found = found.await?;
    let first = found.iter().find(|i| i.address == V6[0]).context("it was just there")?;
    ensure!(first.port == 8080 && first.meta["k8s-pod"] == pods[0].name, "{first:?}");
    fixture.wait_for_dns(&fixture.service, Kind::Aaaa, &[V6[0].parse()?, V6[1].parse()?]).await?;
    fixture.wait_for_dns(&fixture.service, Kind::A, &[]).await?;
    fixture.wait_flawless("web").await?;

    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for("one critical", |found| found.iter().filter(|i| i.status == "critical").count() == 1).await?;
    fixture.wait_for_dns(&fixture.service, Kind::Aaaa, &[V6[1].parse()?]).await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for("the other alone", |found| matches!(found, [one] if one.address == V6[1])).await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "gone from Kubernetes, but not from Consul");
    Ok(())
}

pub(crate) async fn the_other_family_alone(fixture: &Fixture) -> Result<()> {
    // Without a selector it is of both families, whatever the cluster has.
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    });
    fixture.namespace.apply_yaml(&service.to_string()).await?;
    let families =
        fixture.namespace.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ipFamilies[*]}"]).await?;
    ensure!(families == "IPv4 IPv6", "this is not the case that this is about: {families}");
    let endpoint = |address: &str| -> Result<lictor_testbed::NewEndpoint> {
        Ok(lictor_testbed::NewEndpoint::new(address.parse()?))
    };
    let http = [("http", 8080)];
    let sixes = [endpoint(V6[0])?, endpoint(V6[1])?];
    fixture.namespace.apply_slice("web-six", "web", &http, &sixes).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let addresses = |found: &[Instance]| {
        let mut addresses: Vec<String> = found.iter().map(|i| i.address.clone()).collect();
        addresses.sort();
        addresses
    };
    fixture.wait_for("both by IPv6", |found| addresses(found) == V6).await?;
    fixture.wait_for_dns(&fixture.service, Kind::Aaaa, &[V6[0].parse()?, V6[1].parse()?]).await?;
    fixture.wait_flawless("web").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;

    // Beside one of the first family nobody can tell which is which: they are passed over, and said.
    fixture.namespace.apply_slice("web-four", "web", &http, &[endpoint("10.1.0.1")?]).await?;
    fixture.wait_for("the one of the first family", |found| addresses(found) == ["10.1.0.1"]).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "True", "EndpointsPassedOver").await?;
    ensure!(message.starts_with("2 IPv6 endpoints are skipped"), "{message}");
    fixture.wait_flawless("web").await?;

    // With a pod each is an instance of its own.
    let pod = fixture.namespace.create_pod(fixture.new_web_pod("web-0", "a").ip(V6[0].parse()?)).await?;
    let of_pod = lictor_testbed::NewEndpoint { pod: Some((pod.name.clone(), pod.uid.clone())), ..endpoint(V6[0])? };
    fixture.namespace.apply_slice("web-six", "web", &http, &[of_pod]).await?;
    fixture.wait_for("one of each family", |found| addresses(found) == ["10.1.0.1", V6[0]]).await?;
    fixture.wait_for_condition("web", "Resolved", "True", "Resolved").await?;
    fixture.wait_flawless("web").await?;
    fixture.namespace.delete_slice("web-four").await?;
    fixture.wait_for("the pod", |found| addresses(found) == [V6[0]]).await?;
    fixture.wait_flawless("web").await
}

pub(crate) async fn host_names_are_no_addresses(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "web-names", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "FQDN",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": [{ "addresses": ["web.example.com"] }],
    });
    fixture.namespace.apply_yaml(&slice.to_string()).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "False", "FQDNSlices").await?;
    ensure!(message.contains("\"web\"") && message.contains("host names"), "{message}");
    fixture.wait_for_condition("web", "Ready", "False", "FQDNSlices").await?;
    fixture.wait_for_event("web", "FQDNSlices").await?;
    ensure!(fixture.instances().await?.is_empty(), "a host name is registered");

    // Beside addresses they are passed over.
    let endpoint = [lictor_testbed::NewEndpoint::new("10.1.0.1".parse()?)];
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoint).await?;
    fixture.wait_for("the address", |found| matches!(found, [one] if one.address == "10.1.0.1")).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "True", "EndpointsPassedOver").await?;
    ensure!(message.contains("1 slices of host names (FQDN)"), "{message}");
    fixture.wait_flawless("web").await
}

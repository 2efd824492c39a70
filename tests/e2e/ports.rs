//! Which port of the Service an instance is registered with.

use anyhow::{Result, ensure};
use lictor_testbed::{Instance, NewEndpoint, Reader};
use serde_json::{Value, json};

use crate::commands::plan;
use crate::fixture::{Fixture, SOON};
use crate::rows::fingerprint;

/// Address and port of each instance.
fn ends(found: &[Instance]) -> Vec<(String, u16)> {
    let mut ends: Vec<_> = found.iter().map(|i| (i.address.clone(), i.port)).collect();
    ends.sort();
    ends
}

fn end(address: &str, port: u16) -> (String, u16) {
    (address.to_owned(), port)
}

pub(crate) async fn a_port_is_picked(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080"), ("grpc", 90, "9000")]).await?;
    let endpoint = [NewEndpoint::new("10.1.0.1".parse()?)];
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080), ("grpc", 9000)], &endpoint).await?;
    fixture.namespace.apply_service("single", &[], &[("only", 70, "7000")]).await?;
    fixture.namespace.apply_slice("single-1", "single", &[("only", 7000)], &endpoint).await?;
    fixture.operate().await?;
    for (name, spec, port) in [
        ("by-name", json!({ "port": "grpc" }), 9000),
        ("by-number", json!({ "port": 80 }), 8080),
        ("alone", json!({ "source": { "service": { "name": "single" } } }), 7000),
    ] {
        let service = fixture.service_named(name);
        fixture.apply(name, &crate::fixture::merged(fixture.spec(json!({ "name": service })), spec)).await?;
        let wanted = [end("10.1.0.1", port)];
        fixture.consul().wait_for(&service, &format!("port {port}"), |found| ends(found) == wanted, SOON).await?;
        fixture.wait_ready(name).await?;
    }
    // An edit of the port alone: the new number, and the old one gone.
    let service = fixture.service_named("by-name");
    fixture.apply("by-name", &fixture.spec(json!({ "name": service, "port": "http" }))).await?;
    fixture
        .consul()
        .wait_for(&service, "port 8080 alone", |found| ends(found) == [end("10.1.0.1", 8080)], SOON)
        .await?;
    fixture.wait_ready("by-name").await
}

pub(crate) async fn numbers_differ_behind_one_name(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "http")]).await?;
    for (slice, address, port) in [("web-1", "10.1.0.1", 8080), ("web-2", "10.1.0.2", 8081)] {
        fixture.namespace.apply_slice(slice, "web", &[("http", port)], &[NewEndpoint::new(address.parse()?)]).await?;
    }
    fixture.operate().await?;
    fixture.apply_web(json!({ "port": "http" })).await?;
    let both = [end("10.1.0.1", 8080), end("10.1.0.2", 8081)];
    fixture.wait_for("each with its own number", |found| ends(found) == both).await?;

    // A number that changes under a living endpoint.
    fixture.namespace.apply_slice("web-2", "web", &[("http", 8082)], &[NewEndpoint::new("10.1.0.2".parse()?)]).await?;
    let both = [end("10.1.0.1", 8080), end("10.1.0.2", 8082)];
    fixture.wait_for("the new number alone", |found| ends(found) == both).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn a_renamed_port_is_followed_slice_by_slice(fixture: &Fixture) -> Result<()> {
    let slice = async |slice: &str, address: &str, port: &str| -> Result<()> {
        let endpoint = [NewEndpoint::new(address.parse()?)];
        fixture.namespace.apply_slice(slice, "web", &[(port, 8080)], &endpoint).await.map(drop)
    };
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    slice("web-1", "10.1.0.1", "http").await?;
    slice("web-2", "10.1.0.2", "http").await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let both = [end("10.1.0.1", 8080), end("10.1.0.2", 8080)];
    fixture.wait_for("both", |found| ends(found) == both).await?;
    fixture.wait_ready("web").await?;

    let reader = Reader::begin(&fixture.consul_address(), &fixture.service, both.clone().map(|(address, _)| address));
    fixture.namespace.apply_service("web", &[], &[("web", 80, "8080")]).await?;
    slice("web-1", "10.1.0.1", "web").await?;
    // The other one takes its time. What lives and has no port yet stays, and the resource says so.
    let message = fixture.wait_for_condition("web", "Registered", "False", "PortNotFound").await?;
    ensure!(message.contains("10.1.0.2") && message.contains("stays"), "{message}");
    // One that is new in it is not registered.
    let endpoints = ["10.1.0.2", "10.1.0.3"].map(|address| address.parse().map(NewEndpoint::new));
    let endpoints = endpoints.into_iter().collect::<Result<Vec<_>, _>>()?;
    fixture.namespace.apply_slice("web-2", "web", &[("http", 8080)], &endpoints).await?;
    fixture.wait_for_problem("web", "10.1.0.3", "PortNotFound").await?;
    let found = fixture.instances().await?;
    ensure!(ends(&found) == both, "{found:#?}");
    slice("web-2", "10.1.0.2", "web").await?;
    fixture.wait_flawless("web").await?;
    let seen = reader.end().await?;
    ensure!(seen.is_whole() && seen.most_others == 0, "{seen}");
    Ok(())
}

/// The port that the status of `web` names.
async fn port_in_use(fixture: &Fixture) -> Result<Value> {
    Ok(fixture.resources().get("web").await?.data["status"]["portInUse"]["port"].clone())
}

pub(crate) async fn a_port_is_added_by_somebody_else(fixture: &Fixture) -> Result<()> {
    let ports = async |ports: &[(&str, u16, &str)]| -> Result<()> {
        fixture.namespace.apply_service("web", &[("app", "web")], ports).await.map(drop)
    };
    fixture.nodes().await?;
    // As long as it is the only one it needs no name.
    ports(&[("", 80, "8080")]).await?;
    let (old, old_too) = (fixture.web_pod("web-0", "a").await?, fixture.web_pod("web-1", "b").await?);
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&old, &old_too]).await?;
    fixture.wait_flawless("web").await?;
    ensure!(port_in_use(fixture).await? == 80, "{}", port_in_use(fixture).await?);

    let reader = Reader::begin(&fixture.consul_address(), &fixture.service, []);
    ports(&[("metrics", 90, "9090"), ("http", 80, "8080")]).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "True", "PortNotNamed").await?;
    ensure!(message.contains("Lictor keeps 80 (http)") && message.contains("90 (metrics); set spec.port"), "{message}");
    fixture.wait_flawless("web").await?;
    ensure!(port_in_use(fixture).await? == "http", "{}", port_in_use(fixture).await?);
    let (new, new_too) = (fixture.web_pod("web-2", "a").await?, fixture.web_pod("web-3", "b").await?);
    fixture.wait_for_pods(&[&old, &old_too, &new, &new_too]).await?;
    for gone in ["web-0", "web-1"] {
        fixture.namespace.force_delete(gone).await?;
    }
    let found = fixture.wait_for_pods(&[&new, &new_too]).await?;
    ensure!(found.iter().all(|instance| instance.port == 8080), "{found:?}");
    fixture.wait_flawless("web").await?;
    let seen = reader.end().await?;
    println!("{}: {seen}", fixture.mode.as_str());
    ensure!(seen.fewest_of_all == 2, "{seen}");

    // While Lictor is away everything changes but the port's name.
    operator.terminate(SOON).await?;
    ports(&[("metrics", 90, "8080"), ("http", 81, "9090")]).await?;
    for gone in ["web-2", "web-3"] {
        fixture.namespace.force_delete(gone).await?;
    }
    let last = fixture.web_pod("web-4", "a").await?;
    ensure!(plan(fixture, 1)?["notes"].to_string().contains("PortNotNamed"), "a plan does not say it");
    fixture.operate().await?;
    let just = |found: &[Instance]| ends(found) == [end(&last.ip.to_string(), 9090)];
    fixture.wait_for("web-4 alone at the other number", just).await?;
    fixture.wait_for_condition("web", "Resolved", "True", "PortNotNamed").await?;
    fixture.wait_flawless("web").await?;

    // Nor is it forgotten while nothing is registered.
    fixture.namespace.force_delete("web-4").await?;
    fixture.wait_for_pods(&[]).await?;
    let again = fixture.web_pod("web-5", "a").await?;
    let just = |found: &[Instance]| ends(found) == [end(&again.ip.to_string(), 9090)];
    fixture.wait_for("web-5 alone", just).await?;

    // Of a resource that never had one, the author chooses.
    let other = fixture.service_named("other");
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    let message = fixture.wait_for_condition("other", "Resolved", "False", "PortNotFound").await?;
    ensure!(message.ends_with("its ports: 90 (metrics), 81 (http)"), "{message}");
    ensure!(fixture.consul().instances(&other).await?.is_empty(), "one of them was taken");

    fixture.apply_web(json!({ "port": "http" })).await?;
    fixture.wait_for_condition("web", "Resolved", "True", "Resolved").await?;
    fixture.wait_flawless("web").await?;
    ensure!(port_in_use(fixture).await?.is_null(), "{}", port_in_use(fixture).await?);
    Ok(())
}

pub(crate) async fn a_port_that_does_not_match(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    let other = fixture.service_named("other");
    fixture.apply_web(json!({ "port": "http" })).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("web").await?;
    let before = fingerprint(fixture, &fixture.service).await?;

    fixture.apply_web(json!({ "port": "grpc" })).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "False", "PortNotFound").await?;
    ensure!(message.contains("grpc") && message.contains("80 (http)"), "{message}");
    fixture.wait_for_condition("web", "Ready", "False", "PortNotFound").await?;
    let told = fixture.wait_for_event("web", "PortNotFound").await?;
    ensure!(told == message, "{told}");
    // Others are served meanwhile, so it has been looked at.
    fixture.apply("other", &fixture.spec(json!({ "name": other }))).await?;
    fixture.wait_ready("other").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");

    // A pod that dies meanwhile does leave.
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for_pods(&[&pods[1]]).await?;
    fixture.apply_web(json!({ "port": 80 })).await?;
    fixture.wait_for_pods(&[&pods[1]]).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn one_number_of_two_protocols(fixture: &Fixture) -> Result<()> {
    let port = |name: &str, protocol: &str, port: u16, target: u16| json!({ "name": name, "protocol": protocol, "port": port, "targetPort": target });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": {
            "selector": { "app": "web" },
            "ports": [
                port("quic", "UDP", 443, 8843),
                port("https", "TCP", 443, 8443),
                port("dns", "UDP", 53, 5353),
                port("dns-sctp", "SCTP", 53, 5354),
            ],
        },
    });
    fixture.nodes().await?;
    fixture.namespace.apply_yaml(&service.to_string()).await?;
    let pod = fixture.web_pod("web-0", "a").await?;
    fixture.operate().await?;
    for (name, asked, number) in
        [("by-number", json!(443), 8443), ("quic", json!("quic"), 8843), ("sctp", json!("dns-sctp"), 5354)]
    {
        let service = fixture.service_named(name);
        fixture.apply(name, &fixture.spec(json!({ "name": service, "port": asked }))).await?;
        let wanted = [end(&pod.ip.to_string(), number)];
        fixture.consul().wait_for(&service, &format!("port {number}"), |found| ends(found) == wanted, SOON).await?;
        fixture.wait_flawless(name).await?;
    }
    // Neither is of TCP: the names to choose from are said.
    fixture.apply_web(json!({ "port": 53 })).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "False", "PortNotFound").await?;
    ensure!(message.contains("53/UDP (dns)") && message.contains("53/SCTP (dns-sctp)"), "{message}");
    ensure!(fixture.instances().await?.is_empty(), "one of them was taken");
    fixture.apply_web(json!({ "port": "dns" })).await?;
    fixture.wait_for("port 5353", |found| ends(found) == [end(&pod.ip.to_string(), 5353)]).await?;
    fixture.wait_flawless("web").await
}

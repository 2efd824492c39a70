//! Which endpoints count: those with a pod behind them (`--verify-endpoints`), and those at addresses that an instance may
//! have (`--endpoint-networks`).

use anyhow::{Result, ensure};
use lictor_testbed::{Instance, NewEndpoint, NewPod};
use serde_json::json;

use crate::fixture::Fixture;

fn addresses(found: &[Instance]) -> Vec<&str> {
    let mut addresses: Vec<_> = found.iter().map(|i| i.address.as_str()).collect();
    addresses.sort_unstable();
    addresses
}

pub(crate) async fn endpoints_need_a_pod(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let pod = |name: &str, ip| NewPod::new(name, "nowhere").ip(ip);
    let (there, later, wrong) = ("10.1.0.1".parse()?, "10.1.0.2".parse()?, "10.1.0.3".parse()?);
    let real = fixture.namespace.create_pod(pod("real", there)).await?;
    // The second has no pod. The third names one that has another address.
    let endpoints = [
        NewEndpoint::new(there),
        NewEndpoint::new(later),
        NewEndpoint { pod: Some((real.name.clone(), real.uid.clone())), ..NewEndpoint::new(wrong) },
    ];
    fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await?;
    let operator = fixture.operator().switch("--verify-endpoints").ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("the one with a pod", |found| addresses(found) == ["10.1.0.1"]).await?;
    for (instance, address) in [("10.1.0.2", "10.1.0.2"), ("real", "10.1.0.3")] {
        let message = fixture.wait_for_problem("web", instance, "NotVerified").await?;
        ensure!(message.contains(address), "{message}");
    }
    fixture.wait_for_condition("web", "Ready", "False", "NotVerified").await?;
    fixture.wait_for_counts("web", [1, 1, 1, 0]).await?;

    // It counts once there is a pod, and no longer than there is one. A pod of another namespace is not one of it.
    let elsewhere = fixture.other_namespace("elsewhere").await?;
    elsewhere.create_pod(pod("web-2", later)).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(addresses(&fixture.instances().await?) == ["10.1.0.1"], "a pod of another namespace counts");
    fixture.namespace.create_pod(pod("web-2", later)).await?;
    fixture.wait_for("both", |found| addresses(found) == ["10.1.0.1", "10.1.0.2"]).await?;
    fixture.namespace.force_delete("web-2").await?;
    fixture.wait_for("the first alone", |found| addresses(found) == ["10.1.0.1"]).await?;
    fixture.wait_for_problem("web", "10.1.0.2", "NotVerified").await?;

    // Without the flag, slices are trusted as kube-proxy trusts them; with it again, what has no pod goes.
    operator.terminate(crate::fixture::SOON).await?;
    let trusting = fixture.operate().await?;
    fixture.wait_for("all three", |found| addresses(found) == ["10.1.0.1", "10.1.0.2", "10.1.0.3"]).await?;
    fixture.wait_flawless("web").await?;
    trusting.terminate(crate::fixture::SOON).await?;
    fixture.operator().switch("--verify-endpoints").ready().await?;
    fixture.wait_for("the first alone", |found| addresses(found) == ["10.1.0.1"]).await?;
    Ok(())
}

/// What Kubernetes takes as addresses of endpoints although no instance may have them.
const NOBODYS: [&str; 5] = ["100.100.100.200", "168.63.129.16", "192.0.0.192", "239.255.255.250", "255.255.255.255"];

pub(crate) async fn addresses_of_nobody_and_of_clouds(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slice = async |all: &[&str]| {
        let endpoints: Vec<_> = all.iter().map(|ip| Ok(NewEndpoint::new(ip.parse()?))).collect::<Result<_>>()?;
        fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await
    };
    let all: Vec<&str> = ["10.1.0.1", "10.9.0.1"].into_iter().chain(NOBODYS).collect();
    slice(&all).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("the others", |found| addresses(found) == ["10.1.0.1", "10.9.0.1"]).await?;
    for address in NOBODYS {
        fixture.wait_for_problem("web", address, "NotAllowed").await?;
    }
    fixture.wait_for_condition("web", "Ready", "False", "NotAllowed").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;

    // In fewer networks: nothing new outside of them, and what is there stays.
    operator.terminate(crate::fixture::SOON).await?;
    slice(&["10.1.0.1", "10.1.0.2", "10.9.0.1", "10.9.0.2"]).await?;
    let operator = fixture.operator().flag("--endpoint-networks", "10.1.0.0/24,fd00::/64").ready().await?;
    fixture.wait_for("one more", |found| addresses(found) == ["10.1.0.1", "10.1.0.2", "10.9.0.1"]).await?;
    for address in ["10.9.0.1", "10.9.0.2"] {
        let message = fixture.wait_for_problem("web", address, "NotAllowed").await?;
        ensure!(message.contains("--endpoint-networks"), "{message}");
    }
    fixture.wait_for_a_look(&operator).await?;
    ensure!(addresses(&fixture.instances().await?) == ["10.1.0.1", "10.1.0.2", "10.9.0.1"]);
    // It goes when its endpoint does.
    slice(&["10.1.0.1", "10.1.0.2", "10.9.0.2"]).await?;
    fixture.wait_for("those within", |found| addresses(found) == ["10.1.0.1", "10.1.0.2"]).await?;
    Ok(())
}

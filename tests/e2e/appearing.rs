//! Instances come and go with the endpoints behind a Service.

use anyhow::{Context, Result, ensure};
use lictor_testbed::{NewEndpoint, TestPod};
use serde_json::json;

use crate::bed::{Bed, Mode};

pub(crate) async fn pods_appear(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    let found = bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let resource = bed.resources().get("web").await?;
    let owner_uid = resource.metadata.uid.context("a resource without uid")?;
    for pod in &pods {
        let instance = found.iter().find(|i| i.address == pod.ip.to_string()).context("it was just there")?;
        ensure!(instance.port == 8080, "{instance:?}");
        let node = match bed.mode {
            Mode::Agent => bed.consul_node().to_owned(),
            Mode::Catalog => format!("{}-{}", bed.cluster, pod.node),
        };
        ensure!(instance.node == node, "not on {node}: {instance:?}");
        let id = format!("{}:{}:web:{}:{}:8080", bed.cluster, bed.namespace.name(), bed.service, pod.uid);
        ensure!(instance.id == id, "not {id}: {instance:?}");
        let owner = format!("{}/web", bed.namespace.name());
        let expected = [
            ("managed-by", "lictor"),
            ("lictor-cluster", &bed.cluster),
            ("lictor-owner", &owner),
            ("lictor-owner-uid", &owner_uid),
            ("k8s-namespace", bed.namespace.name()),
            ("k8s-pod", &pod.name),
            ("k8s-node", &pod.node),
            ("external-source", "kubernetes"),
        ];
        for (key, value) in expected {
            ensure!(instance.meta.get(key).is_some_and(|there| there == value), "{key} is not {value}: {instance:?}");
        }
        ensure!(instance.meta.get("lictor-cluster-uid").is_some_and(|uid| uid.len() == 36), "{instance:?}");
        ensure!(instance.weights == (1, 1) && instance.tags.is_empty(), "{instance:?}");
    }
    bed.wait_ready("web").await?;
    bed.wait_for_counts("web", [2, 2, 2, 0]).await?;
    let resource = bed.resources().get("web").await?;
    ensure!(resource.data["status"]["serviceName"] == json!(bed.service), "{:?}", resource.data);
    ensure!(
        resource.metadata.finalizers.is_some_and(|finalizers| finalizers == ["lictor.dev/deregister"]),
        "no finalizer on what is registered"
    );
    Ok(())
}

pub(crate) async fn readiness_goes_both_ways(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    bed.namespace.set_ready("web-0", false).await?;
    let address = pods[0].ip.to_string();
    bed.wait_for("web-0 is critical, web-1 passing", |found| {
        found.len() == 2 && found.iter().all(|i| i.status == if i.address == address { "critical" } else { "passing" })
    })
    .await?;
    bed.wait_for_counts("web", [2, 2, 1, 1]).await?;
    // Whether instances are healthy is not what Ready says.
    bed.wait_ready("web").await?;

    bed.namespace.set_ready("web-0", true).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    bed.wait_for_counts("web", [2, 2, 2, 0]).await
}

pub(crate) async fn readiness_by_policy(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    let ignoring = bed.service_named("ignoring");
    bed.apply_web(json!({ "readiness": "Deregister" })).await?;
    bed.apply("ignoring", &bed.spec(json!({ "name": ignoring, "readiness": "Ignore" }))).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    bed.wait_ready("ignoring").await?;

    bed.namespace.set_ready("web-0", false).await?;
    let left = bed.wait_for_pods(&[&pods[1]]).await?;
    ensure!(left[0].checks.iter().all(|check| check.service_id.is_empty()), "a readiness check: {left:?}");
    let ignored = bed.consul().instances(&ignoring).await?;
    ensure!(ignored.len() == 2 && ignored.iter().all(|i| i.status == "passing"), "{ignored:?}");
    bed.wait_for_counts("web", [1, 1, 1, 0]).await?;

    bed.namespace.set_ready("web-0", true).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    // From one policy to another: the check comes and goes with it.
    bed.namespace.set_ready("web-1", false).await?;
    bed.apply("ignoring", &bed.spec(json!({ "name": ignoring }))).await?;
    let wanted = |found: &[lictor_testbed::Instance]| {
        let of = |pod: &TestPod| found.iter().find(|i| i.address == pod.ip.to_string()).map(|i| i.status.clone());
        of(&pods[0]).as_deref() == Some("passing") && of(&pods[1]).as_deref() == Some("critical")
    };
    bed.consul().wait_for(&ignoring, "readiness is mirrored now", wanted, crate::bed::SOON).await?;
    bed.apply("ignoring", &bed.spec(json!({ "name": ignoring, "readiness": "Ignore" }))).await?;
    let passing = |found: &[lictor_testbed::Instance]| {
        found.len() == 2
            && found.iter().all(|i| i.status == "passing" && i.checks.iter().all(|c| c.service_id.is_empty()))
    };
    bed.consul().wait_for(&ignoring, "no readiness check any more", passing, crate::bed::SOON).await?;
    Ok(())
}

pub(crate) async fn slices_are_united(bed: &Bed) -> Result<()> {
    bed.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slices =
        [("web-x", ["10.1.0.1", "10.1.0.2"]), ("web-y", ["10.1.0.2", "10.1.0.3"]), ("web-z", ["10.1.0.4", "10.1.0.5"])];
    for (slice, addresses) in slices {
        let endpoints = addresses.map(str::parse).into_iter().map(|ip| ip.map(NewEndpoint::new));
        let endpoints: Vec<NewEndpoint> = endpoints.collect::<Result<_, _>>()?;
        bed.namespace.apply_slice(slice, "web", &[("http", 8080)], &endpoints).await?;
    }
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    let addresses = |found: &[lictor_testbed::Instance]| {
        let mut addresses: Vec<String> = found.iter().map(|i| i.address.clone()).collect();
        addresses.sort();
        addresses
    };
    let all = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"];
    bed.wait_for("five, what is in two slices once", |found| addresses(found) == all).await?;

    bed.namespace.delete_slice("web-y").await?;
    let rest = ["10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.5"];
    bed.wait_for("only what was in no other slice is gone", |found| addresses(found) == rest).await?;
    bed.wait_ready("web").await?;
    bed.wait_for_counts("web", [4, 4, 4, 0]).await
}

pub(crate) async fn zero_and_back(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    for pod in &pods {
        bed.namespace.force_delete(&pod.name).await?;
    }
    bed.wait_for_pods(&[]).await?;
    bed.wait_for_counts("web", [0, 0, 0, 0]).await?;
    bed.wait_ready("web").await?;
    let back = bed.web_pod("web-9", "b").await?;
    bed.wait_for_pods(&[&back]).await?;
    bed.wait_for_counts("web", [1, 1, 1, 0]).await
}

pub(crate) async fn a_terminating_pod_leaves_at_once(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    // No kubelet confirms its end: it stays, terminating, and ready.
    bed.namespace.delete_pod("web-0", 300).await?;
    bed.wait_for_pods(&[&pods[1]]).await?;
    let pod = bed.namespace.pods().get("web-0").await?;
    ensure!(pod.metadata.deletion_timestamp.is_some(), "it does not terminate");
    Ok(())
}

pub(crate) async fn same_pod_name_new_address(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({})).await?;
    let before = bed.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    bed.namespace.force_delete("web-0").await?;
    let again = bed.web_pod("web-0", "b").await?;
    ensure!(again.uid != pods[0].uid && again.ip != pods[0].ip, "it is the same pod");
    let after = bed.wait_for_pods(&[&again, &pods[1]]).await?;
    let id = |found: &[lictor_testbed::Instance], pod: &TestPod| {
        found.iter().find(|i| i.address == pod.ip.to_string()).map(|i| i.id.clone())
    };
    ensure!(id(&after, &again) != id(&before, &pods[0]), "it has its predecessor's ID: {after:?}");
    ensure!(id(&after, &pods[1]) == id(&before, &pods[1]), "the other one changed: {after:?}");
    Ok(())
}

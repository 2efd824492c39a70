//! Instances come and go with the endpoints behind a Service.

use anyhow::{Context, Result, ensure};
use lictor_testbed::{NewEndpoint, TestPod};
use serde_json::json;

use crate::fixture::{Fixture, Mode, SOON};
use crate::reader::watched;

pub(crate) async fn pods_appear(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let resource = fixture.resources().get("web").await?;
    let owner_uid = resource.metadata.uid.context("a resource without uid")?;
    for pod in &pods {
        let instance = found.iter().find(|i| i.address == pod.ip.to_string()).context("it was just there")?;
        ensure!(instance.port == 8080, "{instance:?}");
        let node = match fixture.mode {
            Mode::Agent => fixture.consul_node().to_owned(),
            Mode::Catalog => fixture.consul_node_of(&pod.node)?,
        };
        ensure!(instance.node == node, "not on {node}: {instance:?}");
        let id = format!("{}:{}:web:{}:{}:8080", fixture.cluster, fixture.namespace.name(), fixture.service, pod.uid);
        ensure!(instance.id == id, "not {id}: {instance:?}");
        let owner = format!("{}/web", fixture.namespace.name());
        let expected = [
            ("managed-by", "lictor"),
            ("lictor-cluster", &fixture.cluster),
            ("lictor-owner", &owner),
            ("lictor-owner-uid", &owner_uid),
            ("k8s-namespace", fixture.namespace.name()),
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
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;
    let resource = fixture.resources().get("web").await?;
    ensure!(resource.data["status"]["serviceName"] == json!(fixture.service), "{:?}", resource.data);
    ensure!(
        resource.metadata.finalizers.is_some_and(|finalizers| finalizers == ["lictor.dev/deregister"]),
        "no finalizer on what is registered"
    );
    Ok(())
}

pub(crate) async fn readiness_goes_both_ways(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    fixture.namespace.set_ready("web-0", false).await?;
    let address = pods[0].ip.to_string();
    fixture
        .wait_for("web-0 is critical, web-1 passing", |found| {
            found.len() == 2
                && found.iter().all(|i| i.status == if i.address == address { "critical" } else { "passing" })
        })
        .await?;
    fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
    // Whether instances are healthy is not what Ready says.
    fixture.wait_ready("web").await?;

    fixture.namespace.set_ready("web-0", true).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await
}

pub(crate) async fn readiness_by_policy(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    let ignoring = fixture.service_named("ignoring");
    fixture.apply_web(json!({ "readiness": "Deregister" })).await?;
    fixture.apply("ignoring", &fixture.spec(json!({ "name": ignoring, "readiness": "Ignore" }))).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.wait_ready("ignoring").await?;

    fixture.namespace.set_ready("web-0", false).await?;
    let left = fixture.wait_for_pods(&[&pods[1]]).await?;
    ensure!(left[0].checks.iter().all(|check| check.service_id.is_empty()), "a readiness check: {left:?}");
    let ignored = fixture.consul().instances(&ignoring).await?;
    ensure!(ignored.len() == 2 && ignored.iter().all(|i| i.status == "passing"), "{ignored:?}");
    fixture.wait_for_counts("web", [1, 1, 1, 0]).await?;

    fixture.namespace.set_ready("web-0", true).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;

    // From one policy to another: the check comes and goes with it.
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.apply("ignoring", &fixture.spec(json!({ "name": ignoring }))).await?;
    let wanted = |found: &[lictor_testbed::Instance]| {
        let of = |pod: &TestPod| found.iter().find(|i| i.address == pod.ip.to_string()).map(|i| i.status.clone());
        of(&pods[0]).as_deref() == Some("passing") && of(&pods[1]).as_deref() == Some("critical")
    };
    fixture.consul().wait_for(&ignoring, "readiness is mirrored now", wanted, crate::fixture::SOON).await?;
    fixture.apply("ignoring", &fixture.spec(json!({ "name": ignoring, "readiness": "Ignore" }))).await?;
    let passing = |found: &[lictor_testbed::Instance]| {
        found.len() == 2
            && found.iter().all(|i| i.status == "passing" && i.checks.iter().all(|c| c.service_id.is_empty()))
    };
    fixture.consul().wait_for(&ignoring, "no readiness check any more", passing, crate::fixture::SOON).await?;
    Ok(())
}

pub(crate) async fn slices_are_united(fixture: &Fixture) -> Result<()> {
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slices =
        [("web-x", ["10.1.0.1", "10.1.0.2"]), ("web-y", ["10.1.0.2", "10.1.0.3"]), ("web-z", ["10.1.0.4", "10.1.0.5"])];
    for (slice, addresses) in slices {
        let endpoints = addresses.map(str::parse).into_iter().map(|ip| ip.map(NewEndpoint::new));
        let endpoints: Vec<NewEndpoint> = endpoints.collect::<Result<_, _>>()?;
        fixture.namespace.apply_slice(slice, "web", &[("http", 8080)], &endpoints).await?;
    }
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let addresses = |found: &[lictor_testbed::Instance]| {
        let mut addresses: Vec<String> = found.iter().map(|i| i.address.clone()).collect();
        addresses.sort();
        addresses
    };
    let all = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"];
    fixture.wait_for("five, what is in two slices once", |found| addresses(found) == all).await?;

    fixture.namespace.delete_slice("web-y").await?;
    let rest = ["10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.5"];
    fixture.wait_for("only what was in no other slice is gone", |found| addresses(found) == rest).await?;
    fixture.wait_ready("web").await?;
    fixture.wait_for_counts("web", [4, 4, 4, 0]).await
}

pub(crate) async fn zero_and_back(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    for pod in &pods {
        fixture.namespace.force_delete(&pod.name).await?;
    }
    fixture.wait_for_pods(&[]).await?;
    fixture.wait_for_counts("web", [0, 0, 0, 0]).await?;
    fixture.wait_ready("web").await?;
    let back = fixture.web_pod("web-9", "b").await?;
    fixture.wait_for_pods(&[&back]).await?;
    fixture.wait_for_counts("web", [1, 1, 1, 0]).await
}

pub(crate) async fn a_terminating_pod_leaves_at_once(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    // No kubelet confirms its end: it stays, terminating, and ready.
    fixture.namespace.delete_pod("web-0", 300).await?;
    fixture.wait_for_pods(&[&pods[1]]).await?;
    let pod = fixture.namespace.pods().get("web-0").await?;
    ensure!(pod.metadata.deletion_timestamp.is_some(), "it does not terminate");
    Ok(())
}

pub(crate) async fn same_pod_name_new_address(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let before = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    fixture.namespace.force_delete("web-0").await?;
    let again = fixture.web_pod("web-0", "b").await?;
    ensure!(again.uid != pods[0].uid && again.ip != pods[0].ip, "it is the same pod");
    let after = fixture.wait_for_pods(&[&again, &pods[1]]).await?;
    let id = |found: &[lictor_testbed::Instance], pod: &TestPod| {
        found.iter().find(|i| i.address == pod.ip.to_string()).map(|i| i.id.clone())
    };
    ensure!(id(&after, &again) != id(&before, &pods[0]), "it has its predecessor's ID: {after:?}");
    ensure!(id(&after, &pods[1]) == id(&before, &pods[1]), "the other one changed: {after:?}");
    Ok(())
}

pub(crate) async fn the_last_one_serves_to_its_end(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    let slices = async |description: &str, terminating: usize, serving: usize| {
        let count = |slices: &[k8s_openapi::api::discovery::v1::EndpointSlice]| {
            let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
            let conditions: Vec<_> = endpoints.filter_map(|endpoint| endpoint.conditions.as_ref()).collect();
            conditions.iter().filter(|c| c.terminating == Some(true)).count() == terminating
                && conditions.iter().filter(|c| c.serving == Some(true)).count() == serving
        };
        fixture.namespace.wait_for_slices("web", description, count, SOON).await.map(drop)
    };
    // Drained: it terminates, and serves. What is to take over starts on another node, and takes its time.
    let handed_over = async {
        fixture.namespace.delete_pod("web-0", 300).await?;
        slices("the last one terminates and serves", 1, 1).await?;
        let next = fixture.namespace.create_pod(fixture.new_web_pod("web-1", "b").not_ready()).await?;
        fixture
            .wait_for("both, the new one critical", |found| {
                let status = |pod: &TestPod| found.iter().find(|i| i.address == pod.ip.to_string()).map(|i| &*i.status);
                found.len() == 2 && status(&pods[0]) == Some("passing") && status(&next) == Some("critical")
            })
            .await?;
        fixture.wait_for_counts("web", [2, 2, 1, 1]).await?;
        fixture.wait_ready("web").await?;
        fixture.namespace.set_ready("web-1", true).await?;
        fixture.wait_for_pods(&[&next]).await.map(drop)
    };
    watched(fixture, 1, Box::pin(handed_over)).await?;
    // One that stops serving leaves, though it is the last one.
    fixture.namespace.delete_pod("web-1", 300).await?;
    slices("the next one terminates and serves", 2, 2).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for_pods(&[]).await?;
    fixture.wait_for_counts("web", [0, 0, 0, 0]).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn peers_find_each_other_before_they_are_ready(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    });
    fixture.namespace.apply_yaml(&service.to_string()).await?;
    let first = fixture.namespace.create_pod(fixture.new_web_pod("web-0", "a").not_ready()).await?;
    let second = fixture.namespace.create_pod(fixture.new_web_pod("web-1", "b").not_ready()).await?;
    fixture.operate().await?;
    let deregistering = fixture.service_named("deregistering");
    fixture.apply_web(json!({})).await?;
    fixture.apply("deregistering", &fixture.spec(json!({ "name": deregistering, "readiness": "Deregister" }))).await?;
    fixture.wait_for_pods(&[&first, &second]).await?;
    fixture.consul().wait_for(&deregistering, "both are there", |found| found.len() == 2, SOON).await?;
    fixture.wait_for_counts("web", [2, 2, 2, 0]).await?;
    // On its way out it is no peer any more.
    fixture.namespace.delete_pod("web-0", 300).await?;
    fixture.wait_for_pods(&[&second]).await?;
    fixture.wait_ready("web").await
}

/// Slices as people and other controllers write them.
pub(crate) async fn slices_by_hand(fixture: &Fixture) -> Result<()> {
    let address = |last: u8| format!("10.1.0.{last}");
    let endpoint = |last: u8| -> Result<NewEndpoint> { Ok(NewEndpoint::new(address(last).parse()?)) };
    for name in ["web", "more"] {
        fixture.namespace.apply_service(name, &[], &[("http", 80, "8080"), ("metrics", 90, "9999")]).await?;
    }
    let (http, metrics) = ([("http", 8080)], [("metrics", 9999)]);
    // One address in two slices, each with another port.
    fixture.namespace.apply_slice("web-a", "web", &http, &[endpoint(1)?]).await?;
    fixture.namespace.apply_slice("web-b", "web", &metrics, &[endpoint(1)?]).await?;
    // A node that does not exist, and one address at two numbers.
    let nowhere = NewEndpoint { node: Some("no-such-node".to_owned()), ..endpoint(2)? };
    fixture.namespace.apply_slice("web-c", "web", &http, &[nowhere]).await?;
    fixture.namespace.apply_slice("web-d", "web", &[("http", 8081)], &[endpoint(2)?]).await?;
    // One pod behind two Services.
    fixture.nodes().await?;
    let pod = fixture.web_pod("web-0", "a").await?;
    let of_pod = NewEndpoint { pod: Some((pod.name.clone(), pod.uid.clone())), ..NewEndpoint::new(pod.ip) };
    fixture.namespace.apply_slice("web-e", "web", &http, std::slice::from_ref(&of_pod)).await?;
    fixture.namespace.apply_slice("more-a", "more", &http, &[of_pod]).await?;
    fixture.operate().await?;
    let by_name = json!({ "port": "http", "tags": ["m-${ports['metrics']}"] });
    fixture.apply_web(by_name.clone()).await?;
    let more = json!({ "source": { "service": { "name": "more" } } });
    fixture.apply("more", &crate::fixture::merged(fixture.spec(by_name), more)).await?;

    let ends = |found: &[lictor_testbed::Instance]| {
        let mut ends: Vec<_> = found.iter().map(|i| (i.address.clone(), i.port)).collect();
        ends.sort();
        ends
    };
    let pods = pod.ip.to_string();
    let all: Vec<(String, u16)> =
        [(&address(1), 8080), (&address(2), 8080), (&address(2), 8081), (&pods, 8080), (&pods, 8080)]
            .map(|(address, port)| (address.clone(), port))
            .into();
    let found =
        fixture.wait_for("each address and number, and the pod for each Service", |found| ends(found) == all).await?;
    let first = found.iter().find(|i| i.address == address(1)).context("it was just there")?;
    ensure!(first.tags == ["m-9999"], "the port of the other slice is not known: {first:?}");
    for (name, count) in [("web", 4), ("more", 1)] {
        fixture.wait_flawless(name).await?;
        fixture.wait_for_counts(name, [count, count, count, 0]).await?;
    }
    // Without the other port's slice it is the same instance, and with it alone it stays as it was: it lives.
    fixture.namespace.delete_slice("web-b").await?;
    fixture.wait_for("a tag less", |found| found.iter().all(|i| i.tags == ["m-"])).await?;
    fixture.namespace.apply_slice("web-a", "web", &metrics, &[endpoint(1)?]).await?;
    let message = fixture.wait_for_condition("web", "Registered", "False", "PortNotFound").await?;
    ensure!(message.starts_with("3 of 3 instances are registered, 1 more are left out; 10.1.0.1: "), "{message}");
    // One of two that have a pod leaves with it.
    fixture.delete("more").await?;
    fixture.wait_gone("more").await?;
    fixture.wait_for("the pod once", |found| ends(found) == all[..4]).await.map(drop)
}

//! What is not ours stays as it is.

use anyhow::{Context, Result, ensure};
use lictor_testbed::{NewEndpoint, Proxy, wait};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, apply, resources};
use crate::outages::wait_not_ready;
use crate::rows::{Row, fingerprint};

const OTHER_UID: &str = "99999999-9999-9999-9999-999999999999";

pub(crate) async fn instances_of_others_are_untouched(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let machine = Row::of_a_machine(fixture);
    machine.put_in_catalog(fixture).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let with_others = |ours: usize, others: usize| {
        move |found: &[lictor_testbed::Instance]| {
            let marked = found.iter().filter(|i| i.meta.get("lictor-cluster").is_some_and(|c| *c == fixture.cluster));
            marked.count() == ours && found.len() == ours + others
        }
    };
    let found = fixture.wait_for("two of ours beside the machine", with_others(2, 1)).await?;
    let ours = found.iter().find(|i| i.address == pods[0].ip.to_string()).context("it was just there")?;

    // Beside ours on the very same Consul node: nobody's, and another cluster's.
    let nobodys = Row { id: "by-hand".to_owned(), node: ours.node.clone(), ..machine };
    nobodys.put(fixture).await?;
    let mut theirs =
        Row::of(fixture, ours).with_meta("lictor-cluster", "other").with_meta("lictor-cluster-uid", OTHER_UID);
    theirs.id = format!("other:{}:web:{}:1:8080", fixture.namespace.name(), fixture.service);
    theirs.put(fixture).await?;
    // Under an ID like ours, but with nobody's mark: as Retain leaves it.
    let mut retained = Row::of(fixture, ours);
    retained.id = format!("{}:{}:web:{}:1:8080", fixture.cluster, fixture.namespace.name(), fixture.service);
    retained.meta.clear();
    retained.put(fixture).await?;
    fixture.wait_for("all of them", with_others(2, 4)).await?;
    let others = async |fixture: &Fixture| -> Result<std::collections::BTreeMap<String, Value>> {
        let mut prints = fingerprint(fixture, &fixture.service).await?;
        prints.retain(|_, print| print["service"]["Meta"]["lictor-cluster"] != json!(fixture.cluster));
        Ok(prints)
    };
    let before = others(fixture).await?;
    ensure!(before.len() == 4, "{before:?}");

    // All that can happen to ours, and a restart.
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.apply_web(json!({ "tags": ["edited"] })).await?;
    fixture.namespace.force_delete("web-1").await?;
    fixture.wait_for("one of ours", with_others(1, 4)).await?;
    operator.kill()?;
    fixture.operate().await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for("none of ours", with_others(0, 4)).await?;
    let after = others(fixture).await?;
    ensure!(after == before, "others were touched:\n{before:#?}\n{after:#?}");
    Ok(())
}

pub(crate) async fn a_cluster_of_our_name_on_the_same_node(fixture: &Fixture) -> Result<()> {
    let node = fixture.namespace.create_node("a", "192.0.2.10".parse()?, "zone-1").await?;
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slice = async |addresses: &[&str]| -> Result<()> {
        let endpoints = addresses
            .iter()
            .map(|address| Ok(NewEndpoint { node: Some(node.clone()), ..NewEndpoint::new(address.parse()?) }));
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await.map(drop)
    };
    slice(&["10.1.0.1"]).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let ours = fixture.wait_for("one", |found| found.len() == 1).await?.remove(0);

    let mut theirs = Row::of(fixture, &ours).with_meta("lictor-cluster-uid", OTHER_UID);
    theirs.id = ours.id.replace("10.1.0.1", "10.1.0.2");
    "10.9.0.2".clone_into(&mut theirs.address);
    theirs.put(fixture).await?;
    fixture.wait_for("theirs beside ours", |found| found.len() == 2).await?;
    let of_them = async || -> Result<Option<Value>> {
        let prints = fingerprint(fixture, &fixture.service).await?;
        Ok(prints.into_iter().find(|(key, _)| key.contains(&theirs.id)).map(|(_, print)| print))
    };
    let before = of_them().await?;
    ensure!(before.is_some(), "it was just there");
    fixture.wait_for_a_look(&operator).await?;

    slice(&["10.1.0.1", "10.1.0.2", "10.1.0.3"]).await?;
    fixture.wait_for("the third one", |found| found.iter().any(|i| i.address == "10.1.0.3")).await?;
    let message = fixture.wait_for_condition("web", "Registered", "False", "IdTaken").await?;
    ensure!(message.contains(OTHER_UID), "it does not say whose it is: {message}");
    fixture.wait_for_event("web", "IdTaken").await?;
    ensure!(of_them().await? == before, "theirs was touched");
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for("theirs alone", |found| matches!(found, [one] if one.id == theirs.id)).await?;
    ensure!(of_them().await? == before, "theirs was touched");
    Ok(())
}

pub(crate) async fn a_row_whose_mark_was_changed(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let ours = fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let ours = ours.into_iter().find(|i| i.address == pods[0].ip.to_string()).context("it was just there")?;
    let theirs = Row::of(fixture, &ours).with_meta("lictor-cluster-uid", OTHER_UID);
    let changed = async || -> Result<()> {
        theirs.put(fixture).await?;
        fixture.wait_for_a_look(&operator).await
    };
    changed().await?;
    let right = |found: &[lictor_testbed::Instance]| {
        let of = found.iter().find(|i| i.id == ours.id);
        of.is_some_and(|i| {
            i.meta == ours.meta && i.status == "passing" && i.service_modify_index > ours.service_modify_index
        })
    };
    fixture.wait_for("our mark on it again", right).await?;
    fixture.wait_ready("web").await?;

    // What is changed and then dies is gone all the same.
    theirs.put(fixture).await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for_pods(&[&pods[1]]).await?;
    if fixture.mode == Mode::Catalog {
        // Here who did not write it knows it as well, by its node.
        let alive = fixture.instances().await?.into_iter().next().context("one lives")?;
        operator.kill()?;
        Row::of(fixture, &alive).with_meta("lictor-cluster-uid", OTHER_UID).put(fixture).await?;
        fixture.delete("web").await?;
        fixture.operate().await?;
    } else {
        fixture.delete("web").await?;
    }
    fixture.wait_gone("web").await?;
    fixture.wait_for_pods(&[]).await.map(drop)
}

pub(crate) async fn a_registration_that_empties_our_node(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let node = fixture.consul_node_of(&pods[0].node)?;
    let theirs = fixture.service_named("theirs");
    // As Consul's documentation registers an external service: the node becomes what this says.
    let plain = json!({
        "Node": node,
        "Address": "198.51.100.9",
        "NodeMeta": { "rack": "7" },
        "Service": { "ID": theirs, "Service": theirs, "Address": "198.51.100.9", "Port": 9 },
    });
    let put = async || fixture.consul().put("/v1/catalog/register", &plain).await;
    let marked = async || {
        wait::until("our mark and address on the node, beside what is theirs", SOON, || async {
            let found = fixture.consul().get(&format!("/v1/catalog/node-services/{node}")).await?;
            let (meta, address) = (&found["Node"]["Meta"], &found["Node"]["Address"]);
            let is = meta["lictor-cluster"] == json!(fixture.cluster) && meta["managed-by"] == "lictor";
            Ok((is && meta["rack"] == "7" && address == "192.0.2.10").then_some(()))
        })
        .await
    };
    put().await?;
    marked().await?;
    let new = fixture.web_pod("web-2", "a").await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &new]).await?;

    // What dies while the node is without its mark, and nobody looks.
    operator.kill()?;
    put().await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.operate().await?;
    fixture.wait_for_pods(&[&pods[1], &new]).await?;
    marked().await?;
    fixture.wait_ready("web").await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for_pods(&[]).await?;
    let left = fixture.consul().instances(&theirs).await?;
    ensure!(matches!(&left[..], [one] if one.node == node), "theirs was touched: {left:?}");
    Ok(())
}

pub(crate) async fn a_cluster_of_our_name_in_the_catalog(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let marker = format!("lictor-{}", fixture.cluster);
    let theirs = json!({
        "Node": marker,
        "Address": "192.0.2.1",
        "NodeMeta": {
            "managed-by": "lictor",
            "lictor-cluster": fixture.cluster,
            "lictor-cluster-uid": OTHER_UID,
            "lictor-term": "3",
        },
    });
    fixture.consul().put("/v1/catalog/register", &theirs).await?;
    let before = fixture.consul().get(&format!("/v1/catalog/node/{marker}")).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = fixture.operator().consul(&proxy.addr()).start()?;
    fixture.apply_web(json!({})).await?;
    let why = wait_not_ready(&operator, "--cluster-name").await?;
    ensure!(why.contains(OTHER_UID), "it does not say who has the name: {why}");
    let message = fixture.wait_for_condition("web", "Ready", "False", "ConsulUnavailable").await?;
    ensure!(message.contains("not set up for this Consul"), "{message}");
    ensure!(proxy.writes().is_empty(), "it wrote all the same: {:?}", proxy.writes());
    let after = fixture.consul().get(&format!("/v1/catalog/node/{marker}")).await?;
    ensure!(before == after, "their marker was touched: {before} {after}");

    // The other cluster gives the name up.
    fixture.consul().put("/v1/catalog/deregister", &json!({ "Node": marker })).await?;
    operator.wait_ready(SOON).await?;
    fixture.wait_ready("web").await
}

pub(crate) async fn other_namespaces_are_untouched(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let other = fixture.other_namespace("other").await?;
    other.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    other.apply_slice("web-1", "web", &[("http", 8080)], &[NewEndpoint::new("10.1.0.1".parse()?)]).await?;
    let elsewhere = fixture.service_named("elsewhere");
    apply(&resources(&other), "web", &fixture.spec(json!({ "name": elsewhere }))).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    let ours = fixture.wait_for_pods(&[&pods[0]]).await?.remove(0);

    // Our cluster's, of an owner in a namespace that this operator does not watch: another operator's of this
    // cluster. And one of a namespace that it does watch, which shows that it has looked.
    let row = |namespace: &str| {
        let mut row = Row::of(fixture, &ours).with_meta("lictor-owner", &format!("{namespace}/ghost"));
        row.id = format!("{}:{namespace}:ghost:{}:1:8080", fixture.cluster, fixture.service);
        "10.1.0.99".clone_into(&mut row.address);
        row
    };
    let (theirs, orphan) = (row(other.name()), row(fixture.namespace.name()));
    theirs.put(fixture).await?;
    orphan.put(fixture).await?;
    let ids = |found: &[lictor_testbed::Instance]| found.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    fixture.wait_for("our orphan is gone", |found| !ids(found).contains(&orphan.id) && found.len() == 2).await?;
    fixture.namespace.force_delete("web-0").await?;
    fixture.wait_for("the other operator's alone", |found| ids(found) == [theirs.id.clone()]).await?;
    let untouched = resources(&other).get("web").await?;
    ensure!(
        untouched.metadata.finalizers.is_none() && untouched.data.get("status").is_none(),
        "it acted on a resource of another namespace: {untouched:?}"
    );
    ensure!(fixture.consul().instances(&elsewhere).await?.is_empty(), "it registered for another namespace");
    if fixture.mode == Mode::Agent {
        ensure!(ids(&fixture.instances().await?) == [theirs.id.clone()], "it went after all");
    }
    Ok(())
}

pub(crate) async fn other_classes_are_untouched(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operator().flag("--class", "blue").ready().await?;
    let of_nobody = fixture.service_named("classless");
    fixture.apply("classless", &fixture.spec(json!({ "name": of_nobody }))).await?;
    let of_others = fixture.service_named("green");
    fixture.apply("green", &fixture.spec(json!({ "name": of_others, "class": "green" }))).await?;
    fixture.apply_web(json!({ "class": "blue" })).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    for (name, service) in [("classless", of_nobody), ("green", of_others)] {
        let resource = fixture.resources().get(name).await?;
        ensure!(
            resource.metadata.finalizers.is_none() && resource.data.get("status").is_none(),
            "it acted on a resource of another class: {resource:?}"
        );
        ensure!(fixture.consul().instances(&service).await?.is_empty(), "it registered {name}");
    }
    // One that is given away is let go by the operator that had it.
    fixture.apply_web(json!({ "class": "green" })).await?;
    fixture.wait_for_pods(&[]).await?;
    wait::until("the finalizer is off, and the status with it", SOON, || async {
        let resource = fixture.resources().get("web").await?;
        let is_let_go = resource.metadata.finalizers.is_none_or(|left| left.is_empty());
        Ok((is_let_go && resource.data.get("status").is_none()).then_some(()))
    })
    .await
}

//! Tags and meta that hold values of the instance.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lictor_testbed::{Instance, NewPod, TestPod};
use serde_json::{Value, json};

use crate::bed::{Bed, SOON, merged, pair};
use crate::rows::fingerprint;

const VERSION: &str = "app.kubernetes.io/version";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A pod of the Service `web` with all that texts may hold.
fn telling(bed: &Bed, name: &str, node: &str, version: &str) -> NewPod {
    bed.new_web_pod(name, node).port("metrics", 9100).label(VERSION, version).annotation("shop.example/team", "user")
}

/// Every value that there is.
fn texts() -> Value {
    json!({
        "port": "http",
        "tags": ["plain", "v${pod.labels['app.kubernetes.io/version']}", "on-${ node.name }", "$${as.it.is}"],
        "meta": {
            "pod": "${pod.name}",
            "namespace": "${pod.namespace}",
            "uid": "${pod.uid}",
            "version": "${pod.labels[\"app.kubernetes.io/version\"]}",
            "team": "${pod.annotations['shop.example/team']}",
            "node": "${node.name}",
            "zone": "${node.zone}",
            "region": "${node.region}",
            "metrics": "http://${pod.name}.${node.zone}:${ports['metrics']}/",
        },
    })
}

/// What they come to.
fn expected(
    bed: &Bed,
    pod: &TestPod,
    version: &str,
    team: &str,
    zone: &str,
) -> (Vec<String>, BTreeMap<String, String>) {
    let tags = vec!["plain".to_owned(), format!("v{version}"), format!("on-{}", pod.node), "${as.it.is}".to_owned()];
    let pairs = [
        ("pod", pod.name.clone()),
        ("namespace", bed.namespace.name().to_owned()),
        ("uid", pod.uid.clone()),
        ("version", version.to_owned()),
        ("team", team.to_owned()),
        ("node", pod.node.clone()),
        ("zone", zone.to_owned()),
        ("region", "testbed".to_owned()),
        ("metrics", format!("http://{}.{zone}:9100/", pod.name)),
    ];
    (tags, pairs.map(|(key, value)| (key.to_owned(), value)).into())
}

/// Waits until an instance of a service is as expected.
async fn wait_for(
    bed: &Bed,
    service: &str,
    pod: &TestPod,
    expected: (Vec<String>, BTreeMap<String, String>),
) -> Result<()> {
    let (tags, pairs) = expected;
    let description = format!("{} with tags {tags:?} and meta {pairs:?}", pod.name);
    let is = |i: &Instance| {
        i.address == pod.ip.to_string()
            && i.status == "passing"
            && i.tags == tags
            && pairs.iter().all(|(key, value)| i.meta.get(key) == Some(value))
    };
    bed.consul().wait_for(service, &description, |found| found.iter().any(is), SOON).await.map(drop)
}

pub(crate) async fn values_of_pods_and_nodes(bed: &Bed) -> Result<()> {
    bed.nodes().await?;
    bed.namespace
        .apply_service("web", &[("app", "web")], &[("http", 80, "http"), ("metrics", 9100, "metrics")])
        .await?;
    let first = bed.namespace.create_pod(telling(bed, "web-0", "a", "1.0")).await?;
    let second = bed.namespace.create_pod(telling(bed, "web-1", "b", "2.0")).await?;
    bed.operate().await?;
    let picked = bed.service_named("picked");
    bed.apply_web(texts()).await?;
    let source = json!({ "name": picked, "source": { "pods": { "matchLabels": { "app": "web" } } } });
    bed.apply("picked", &merged(bed.spec(source), texts())).await?;
    for service in [&bed.service, &picked] {
        wait_for(bed, service, &first, expected(bed, &first, "1.0", "user", "zone-1")).await?;
        wait_for(bed, service, &second, expected(bed, &second, "2.0", "user", "zone-1")).await?;
    }
    bed.wait_flawless("web").await?;
    bed.wait_for_condition("web", "Resolved", "True", "Resolved").await?;

    // What is edited later is followed, one by one, and nothing else moves.
    let untouched = fingerprint(bed, &picked).await?.into_iter().filter(|(key, _)| key.contains(&second.uid));
    let untouched: BTreeMap<String, Value> = untouched.collect();
    bed.namespace.label_pod("web-0", VERSION, Some("1.1")).await?;
    for service in [&bed.service, &picked] {
        wait_for(bed, service, &first, expected(bed, &first, "1.1", "user", "zone-1")).await?;
    }
    bed.namespace.annotate_pod("web-0", "shop.example/team", Some("shop & user")).await?;
    bed.namespace.label_node(&first.node, ZONE, Some("zone-9")).await?;
    for service in [&bed.service, &picked] {
        wait_for(bed, service, &first, expected(bed, &first, "1.1", "shop & user", "zone-9")).await?;
    }
    let now = fingerprint(bed, &picked).await?;
    ensure!(untouched.len() == 1 && untouched.iter().all(|(key, print)| now.get(key) == Some(print)), "{now:#?}");

    // An annotation that no text held so far.
    bed.namespace.annotate_pod("web-1", "late", Some("known")).await?;
    bed.apply_web(json!({ "port": "http", "meta": { "late": "${pod.annotations['late']}" } })).await?;
    let of = |found: &[Instance], pod: &TestPod| {
        found.iter().find(|i| i.address == pod.ip.to_string()).and_then(|i| pair(i, "late").map(str::to_owned))
    };
    bed.wait_for("the annotation of the one that has it", |found| {
        of(found, &first).as_deref() == Some("") && of(found, &second).as_deref() == Some("known")
    })
    .await?;
    bed.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await.map(drop)
}

pub(crate) async fn values_that_are_not_there(bed: &Bed) -> Result<()> {
    let pods = bed.web(2).await?;
    bed.operate().await?;
    bed.apply_web(json!({
        "tags": ["${pod.labels['version']}", "v${pod.labels['version']}", "${pod.annotations['note']}"],
        "meta": { "version": "${pod.labels['version']}", "note": "-${pod.annotations['note']}-", "port": "${ports['admin']}" },
    }))
    .await?;
    let of = |found: &[Instance], pod: &TestPod| found.iter().find(|i| i.address == pod.ip.to_string()).cloned();
    let is = |instance: Option<Instance>, tags: &[&str], [version, note, port]: [&str; 3]| {
        instance.is_some_and(|i| {
            i.tags == tags
                && pair(&i, "version") == Some(version)
                && pair(&i, "note") == Some(note)
                && pair(&i, "port") == Some(port)
        })
    };
    // A tag that comes out empty is left out, a pair stays, with what is left of it.
    bed.wait_for("nothing but what is there", |found| {
        found.len() == 2 && pods.iter().all(|pod| is(of(found, pod), &["v"], ["", "--", ""]))
    })
    .await?;
    let message = bed.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await?;
    ensure!(message.contains("2 of 2 instances") && message.contains("is not there"), "{message}");
    bed.wait_flawless("web").await?;

    bed.namespace.label_pod("web-0", "version", Some("3")).await?;
    bed.wait_for("the label of one", |found| {
        is(of(found, &pods[0]), &["3", "v3"], ["3", "--", ""]) && is(of(found, &pods[1]), &["v"], ["", "--", ""])
    })
    .await?;
    // Too long for Consul, and nothing that Consul could show: each is as if it were not there, and said.
    let long = "x".repeat(511);
    bed.apply_web(
        json!({ "tags": ["t${pod.annotations['note']}"], "meta": { "note": "-${pod.annotations['note']}-" } }),
    )
    .await?;
    for (note, words) in [(long.as_str(), "513 bytes"), ("one\ntwo", "line break")] {
        bed.namespace.annotate_pod("web-0", "note", Some(note)).await?;
        bed.namespace.annotate_pod("web-1", "note", Some("short")).await?;
        let wanted = |found: &[Instance]| {
            let note = |pod: &TestPod| of(found, pod).and_then(|i| i.meta.get("note").cloned());
            let tags = |pod: &TestPod| of(found, pod).map(|i| i.tags);
            note(&pods[0]).as_deref() == Some("")
                && tags(&pods[0]).is_some_and(|tags| tags.is_empty())
                && note(&pods[1]).as_deref() == Some("-short-")
                && tags(&pods[1]).is_some_and(|tags| tags == ["tshort"])
        };
        bed.wait_for(&format!("nothing in place of a value that has {words}"), wanted).await?;
        let message = bed.wait_for_words("web", "Resolved", words).await?;
        ensure!(message.contains("1 of 2 instances") && message.contains("web-0"), "{message}");
        bed.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await?;
    }
    // As long as Consul takes it.
    bed.namespace.annotate_pod("web-0", "note", Some(&long[..510])).await?;
    bed.wait_for("512 bytes", |found| {
        of(found, &pods[0]).is_some_and(|i| pair(&i, "note").is_some_and(|note| note.len() == 512))
    })
    .await?;
    bed.namespace.annotate_pod("web-0", "note", Some("fine")).await?;
    bed.wait_for_condition("web", "Resolved", "True", "Resolved").await.map(drop)
}

pub(crate) async fn texts_that_cannot_be_read(bed: &Bed) -> Result<()> {
    let pods = bed.web(1).await?;
    bed.operate().await?;
    bed.apply_web(json!({ "tags": ["good"] })).await?;
    bed.wait_for_pods(&[&pods[0]]).await?;
    bed.wait_ready("web").await?;
    let before = fingerprint(bed, &bed.service).await?;

    let bad = [
        ("unknown", json!({ "tags": ["${pod.ip}"] }), "${pod.ip} is not a value"),
        ("bare-key", json!({ "meta": { "a": "${pod.labels[version]}" } }), "${pod.labels[version]} is not a value"),
        ("no-key", json!({ "meta": { "key-of-it": "${pod.labels}" } }), "key-of-it"),
    ];
    for (name, more, words) in bad {
        let service = bed.service_named(name);
        bed.apply(name, &merged(bed.spec(json!({ "name": service })), more)).await?;
        let message = bed.wait_for_condition(name, "Accepted", "False", "InvalidTemplate").await?;
        ensure!(message.contains(words), "{name}: {message}");
        bed.wait_for_condition(name, "Ready", "False", "InvalidTemplate").await?;
        ensure!(bed.consul().instances(&service).await?.is_empty(), "{name} is registered all the same");
    }
    bed.wait_for_event("unknown", "InvalidTemplate").await?;
    bed.apply_web(json!({ "tags": ["${pod.nmae}"] })).await?;
    bed.wait_for_condition("web", "Accepted", "False", "InvalidTemplate").await?;
    let after = fingerprint(bed, &bed.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");

    // It still follows the pods, and so do others.
    let more = bed.web_pod("web-1", "b").await?;
    bed.wait_for("both, tagged as before", |found| found.len() == 2 && found.iter().all(|i| i.tags == ["good"]))
        .await?;
    bed.apply_web(json!({ "tags": ["${pod.name}"] })).await?;
    bed.wait_for("each with its name", |found| {
        let tagged =
            |pod: &TestPod| found.iter().any(|i| i.address == pod.ip.to_string() && i.tags == [pod.name.clone()]);
        found.len() == 2 && tagged(&pods[0]) && tagged(&more)
    })
    .await?;
    bed.wait_flawless("web").await
}

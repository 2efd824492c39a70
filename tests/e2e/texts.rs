//! Tags and meta that hold values of the instance.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lictor_testbed::{Instance, NewPod, TestPod};
use serde_json::{Value, json};

use crate::fixture::{Fixture, SOON, merged, pair};
use crate::rows::fingerprint;

const VERSION: &str = "app.kubernetes.io/version";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A pod of the Service `web` with all that texts may hold.
fn telling(fixture: &Fixture, name: &str, node: &str, version: &str) -> NewPod {
    fixture
        .new_web_pod(name, node)
        .port("metrics", 9100)
        .label(VERSION, version)
        .annotation("shop.example/team", "user")
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
    fixture: &Fixture,
    pod: &TestPod,
    version: &str,
    team: &str,
    zone: &str,
) -> (Vec<String>, BTreeMap<String, String>) {
    let tags = vec!["plain".to_owned(), format!("v{version}"), format!("on-{}", pod.node), "${as.it.is}".to_owned()];
    let pairs = [
        ("pod", pod.name.clone()),
        ("namespace", fixture.namespace.name().to_owned()),
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
    fixture: &Fixture,
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
    fixture.consul().wait_for(service, &description, |found| found.iter().any(is), SOON).await.map(drop)
}

pub(crate) async fn values_of_pods_and_nodes(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    fixture
        .namespace
        .apply_service("web", &[("app", "web")], &[("http", 80, "http"), ("metrics", 9100, "metrics")])
        .await?;
    let first = fixture.namespace.create_pod(telling(fixture, "web-0", "a", "1.0")).await?;
    let second = fixture.namespace.create_pod(telling(fixture, "web-1", "b", "2.0")).await?;
    fixture.operate().await?;
    let picked = fixture.service_named("picked");
    fixture.apply_web(texts()).await?;
    let source = json!({ "name": picked, "source": { "pods": { "matchLabels": { "app": "web" } } } });
    fixture.apply("picked", &merged(fixture.spec(source), texts())).await?;
    for service in [&fixture.service, &picked] {
        wait_for(fixture, service, &first, expected(fixture, &first, "1.0", "user", "zone-1")).await?;
        wait_for(fixture, service, &second, expected(fixture, &second, "2.0", "user", "zone-1")).await?;
    }
    fixture.wait_flawless("web").await?;
    fixture.wait_for_condition("web", "Resolved", "True", "Resolved").await?;

    // What is edited later is followed, one by one, and nothing else moves.
    let untouched = fingerprint(fixture, &picked).await?.into_iter().filter(|(key, _)| key.contains(&second.uid));
    let untouched: BTreeMap<String, Value> = untouched.collect();
    fixture.namespace.label_pod("web-0", VERSION, Some("1.1")).await?;
    for service in [&fixture.service, &picked] {
        wait_for(fixture, service, &first, expected(fixture, &first, "1.1", "user", "zone-1")).await?;
    }
    fixture.namespace.annotate_pod("web-0", "shop.example/team", Some("shop & user")).await?;
    fixture.namespace.label_node(&first.node, ZONE, Some("zone-9")).await?;
    for service in [&fixture.service, &picked] {
        wait_for(fixture, service, &first, expected(fixture, &first, "1.1", "shop & user", "zone-9")).await?;
    }
    let now = fingerprint(fixture, &picked).await?;
    ensure!(untouched.len() == 1 && untouched.iter().all(|(key, print)| now.get(key) == Some(print)), "{now:#?}");

    // An annotation that no text held so far.
    fixture.namespace.annotate_pod("web-1", "late", Some("known")).await?;
    fixture.apply_web(json!({ "port": "http", "meta": { "late": "${pod.annotations['late']}" } })).await?;
    let of = |found: &[Instance], pod: &TestPod| {
        found.iter().find(|i| i.address == pod.ip.to_string()).and_then(|i| pair(i, "late").map(str::to_owned))
    };
    fixture
        .wait_for("the annotation of the one that has it", |found| {
            of(found, &first).as_deref() == Some("") && of(found, &second).as_deref() == Some("known")
        })
        .await?;
    fixture.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await.map(drop)
}

pub(crate) async fn values_that_are_not_there(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({
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
    fixture
        .wait_for("nothing but what is there", |found| {
            found.len() == 2 && pods.iter().all(|pod| is(of(found, pod), &["v"], ["", "--", ""]))
        })
        .await?;
    let message = fixture.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await?;
    ensure!(message.contains("2 of 2 instances") && message.contains("is not there"), "{message}");
    fixture.wait_flawless("web").await?;

    fixture.namespace.label_pod("web-0", "version", Some("3")).await?;
    fixture
        .wait_for("the label of one", |found| {
            is(of(found, &pods[0]), &["3", "v3"], ["3", "--", ""]) && is(of(found, &pods[1]), &["v"], ["", "--", ""])
        })
        .await?;
    // Too long for Consul, and nothing that Consul could show: each is as if it were not there, and said.
    let long = "x".repeat(1024);
    fixture
        .apply_web(
            json!({ "tags": ["t${pod.annotations['note']}"], "meta": { "note": "-${pod.annotations['note']}-" } }),
        )
        .await?;
    for (note, words) in [(long.as_str(), "1026 bytes"), ("one\ntwo", "line break")] {
        fixture.namespace.annotate_pod("web-0", "note", Some(note)).await?;
        fixture.namespace.annotate_pod("web-1", "note", Some("short")).await?;
        let wanted = |found: &[Instance]| {
            let note = |pod: &TestPod| of(found, pod).and_then(|i| i.meta.get("note").cloned());
            let tags = |pod: &TestPod| of(found, pod).map(|i| i.tags);
            note(&pods[0]).as_deref() == Some("")
                && tags(&pods[0]).is_some_and(|tags| tags.is_empty())
                && note(&pods[1]).as_deref() == Some("-short-")
                && tags(&pods[1]).is_some_and(|tags| tags == ["tshort"])
        };
        fixture.wait_for(&format!("nothing in place of a value that has {words}"), wanted).await?;
        let message = fixture.wait_for_words("web", "Resolved", words).await?;
        ensure!(message.contains("1 of 2 instances") && message.contains("web-0"), "{message}");
        fixture.wait_for_condition("web", "Resolved", "True", "ValuesMissing").await?;
    }
    // As long as each may be: a tag of 1,024 bytes beside a pair that is too long, then a pair of 512 bytes.
    for (length, tag, pair_of) in [(1023, 1024, 0), (510, 511, 512)] {
        fixture.namespace.annotate_pod("web-0", "note", Some(&long[..length])).await?;
        fixture
            .wait_for(&format!("a tag of {tag} bytes"), |found| {
                let Some(found) = of(found, &pods[0]) else { return false };
                let note = pair(&found, "note").map(str::len);
                found.tags.iter().map(String::len).eq([tag]) && note == Some(pair_of)
            })
            .await?;
    }
    fixture.namespace.annotate_pod("web-0", "note", Some("fine")).await?;
    fixture.wait_for_condition("web", "Resolved", "True", "Resolved").await.map(drop)
}

pub(crate) async fn texts_that_cannot_be_read(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operate().await?;
    fixture.apply_web(json!({ "tags": ["good"] })).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    let before = fingerprint(fixture, &fixture.service).await?;

    let bad = [
        ("unknown", json!({ "tags": ["${pod.ip}"] }), "${pod.ip} does not exist"),
        (
            "bare-key",
            json!({ "meta": { "a": "${pod.labels.version}" } }),
            "write $${pod.labels.version} for the literal text",
        ),
        ("no-key", json!({ "meta": { "key-of-it": "${pod.labels}" } }), "key-of-it"),
    ];
    for (name, more, words) in bad {
        let service = fixture.service_named(name);
        fixture.apply(name, &merged(fixture.spec(json!({ "name": service })), more)).await?;
        let message = fixture.wait_for_condition(name, "Accepted", "False", "InvalidTemplate").await?;
        ensure!(message.contains(words), "{name}: {message}");
        fixture.wait_for_condition(name, "Ready", "False", "InvalidTemplate").await?;
        ensure!(fixture.consul().instances(&service).await?.is_empty(), "{name} is registered all the same");
    }
    fixture.wait_for_event("unknown", "InvalidTemplate").await?;
    fixture.apply_web(json!({ "tags": ["${pod.nmae}"] })).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "InvalidTemplate").await?;
    let after = fingerprint(fixture, &fixture.service).await?;
    ensure!(after == before, "what was registered did not stay:\n{before:?}\n{after:?}");

    // It still follows the pods, and so do others.
    let more = fixture.web_pod("web-1", "b").await?;
    fixture
        .wait_for("both, tagged as before", |found| found.len() == 2 && found.iter().all(|i| i.tags == ["good"]))
        .await?;
    fixture.apply_web(json!({ "tags": ["${pod.name}"] })).await?;
    fixture
        .wait_for("each with its name", |found| {
            let tagged =
                |pod: &TestPod| found.iter().any(|i| i.address == pod.ip.to_string() && i.tags == [pod.name.clone()]);
            found.len() == 2 && tagged(&pods[0]) && tagged(&more)
        })
        .await?;
    fixture.wait_flawless("web").await
}

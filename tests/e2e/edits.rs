//! Every edit of a resource, while somebody asks Consul all the time: at each moment there is all of the old truth, or
//! all of the new.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::{join_all, try_join_all};
use lictor_testbed::{Fault, Instance, NewEndpoint, Proxy, Record};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::answering::Answering;
use crate::fixture::{Fixture, SOON, merged, pair};
use crate::launch::Launch;
use crate::reader::looked;

/// How often Consul is asked.
const EVERY: Duration = Duration::from_millis(10);

/// How long Consul takes for a write that brings something, in turn: no two nodes are done at the same time, each state on
/// the way lasts for longer than it takes to see it, and a removal that did not wait for what comes in its place would be
/// there first.
const SLOWLY: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(15), Duration::from_millis(45)];

const ALLOWED: &str = "198.51.100.0/24";

/// An edit, from one side to the other; both ways are taken.
struct Edit {
    name: &'static str,
    sides: [Side; 2],
}

/// A spec, and what it comes to in Consul.
struct Side {
    /// Whether it is under another name than the edit's own.
    renamed: bool,
    spec: Value,
    ends: Vec<End>,
    /// What tells its instances from those of the other side, besides name and end.
    is: fn(&Instance) -> bool,
}

/// Where an instance answers.
type End = (String, u16);

/// What all edits stand on.
struct Environment {
    web: Vec<End>,
    web_grpc: Vec<End>,
    green: Vec<End>,
    answering: Answering,
}

impl Environment {
    /// Pods `web` and `green`, each with two ports and an address of each family, on two nodes. The Services `web` and
    /// `twin` have the former, `green` has the latter. Behind `checked` somebody answers.
    async fn lay(fixture: &Fixture) -> Result<Self> {
        fixture.nodes().await?;
        for (name, app) in [("web", "web"), ("twin", "web"), ("green", "green")] {
            let service = json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name },
                "spec": {
                    "ipFamilyPolicy": "PreferDualStack",
                    "ipFamilies": ["IPv4"],
                    "selector": { "app": app },
                    "ports": [
                        { "name": "http", "port": 80, "targetPort": "http" },
                        { "name": "grpc", "port": 90, "targetPort": "grpc" },
                    ],
                },
            });
            fixture.namespace.apply_yaml(&service.to_string()).await?;
        }
        let pods = [("web", 0), ("web", 1), ("green", 2), ("green", 3)].map(async |(app, number)| {
            let node = format!("{}-{}", fixture.namespace.name(), if number % 2 == 0 { "a" } else { "b" });
            let v6: IpAddr = format!("fd00:10:244::{}", number + 1).parse()?;
            let pod = lictor_testbed::NewPod::new(&format!("{app}-{number}"), &node)
                .label("app", app)
                .port("http", 8080)
                .port("grpc", 9000)
                .ip(lictor_testbed::pods::next_pod_ip())
                .ip(v6);
            fixture.namespace.create_pod(pod).await
        });
        let pods = try_join_all(pods).await?;
        let ends = |pods: &[lictor_testbed::TestPod], port| pods.iter().map(|pod| (pod.ip.to_string(), port)).collect();
        let answering = Answering::on_two_ports().await?;
        fixture.namespace.apply_service("checked", &[], &[("http", 80, "8080")]).await?;
        for (number, port) in answering.ports().into_iter().enumerate() {
            let endpoint = [NewEndpoint::new(answering.ip())];
            fixture
                .namespace
                .apply_slice(&format!("checked-{number}"), "checked", &[("http", port)], &endpoint)
                .await?;
        }
        Ok(Self {
            web: ends(&pods[..2], 8080),
            web_grpc: ends(&pods[..2], 9000),
            green: ends(&pods[2..], 8080),
            answering,
        })
    }

    /// Instances of the Service `web`, told by what is in their rows.
    fn web(&self, spec: Value, is: fn(&Instance) -> bool) -> Side {
        self.side(service("web", spec), &self.web, is)
    }

    /// The instances that somebody answers for, with these checks.
    #[expect(clippy::needless_pass_by_value, reason = "written in place as json!")]
    fn checked(&self, checks: Value, is: fn(&Instance) -> bool) -> Side {
        let ip = self.answering.ip().to_string();
        let ends: Vec<End> = self.answering.ports().into_iter().map(|port| (ip.clone(), port)).collect();
        self.side(service("checked", json!({ "checks": checks })), &ends, is)
    }

    #[expect(clippy::unused_self, reason = "it reads as what the others do")]
    fn side(&self, spec: Value, ends: &[End], is: fn(&Instance) -> bool) -> Side {
        Side { renamed: false, spec, ends: ends.to_vec(), is }
    }
}

/// The Service of this name as source, at its port `http` unless `more` says otherwise.
fn service(name: &str, more: Value) -> Value {
    merged(json!({ "source": { "service": { "name": name } }, "port": "http" }), more)
}

fn pods(app: &str) -> Value {
    json!({ "source": { "pods": { "matchLabels": { "app": app } } }, "port": "http" })
}

fn elsewhere(octets: [u8; 2]) -> (Value, Vec<End>) {
    let ends: Vec<End> = octets.map(|octet| (format!("198.51.100.{octet}"), 8080)).into();
    let addresses: Vec<Value> =
        ends.iter().map(|(address, port)| json!({ "address": address, "port": port })).collect();
    (json!({ "source": { "static": addresses } }), ends)
}

fn any(_: &Instance) -> bool {
    true
}

/// The kinds of an instance's own checks.
fn kinds(instance: &Instance) -> BTreeSet<&str> {
    let own = instance.checks.iter().filter(|check| check.service_id == instance.id);
    own.map(|check| check.kind.as_str()).collect()
}

fn source_of(instance: &Instance) -> &str {
    instance.meta.get("lictor-source").map_or("", String::as_str)
}

/// All edits.
fn edits(given: &Environment) -> Vec<Edit> {
    let plain = || given.web(json!({}), any);
    let edit = |name, from, to| Edit { name, sides: [from, to] };
    let (here, here_ends) = elsewhere([1, 2]);
    let (there, there_ends) = elsewhere([3, 4]);
    let tcp = json!({ "name": "open", "tcp": {}, "interval": "1s" });
    let http = json!({ "name": "page", "http": { "path": "/" }, "interval": "1s" });
    vec![
        edit("name", plain(), Side { renamed: true, ..plain() }),
        edit("port", plain(), given.side(service("web", json!({ "port": "grpc" })), &given.web_grpc, any)),
        edit(
            "service-to-pods",
            given.web(json!({}), |i| source_of(i) == "service/web"),
            given.side(pods("web"), &given.web, |i| source_of(i) == "pods"),
        ),
        edit(
            "service-of-same-pods",
            given.web(json!({}), |i| source_of(i) == "service/web"),
            given.side(service("twin", json!({})), &given.web, |i| source_of(i) == "service/twin"),
        ),
        edit("service-of-others", plain(), given.side(service("green", json!({})), &given.green, any)),
        edit("selector", given.side(pods("web"), &given.web, any), given.side(pods("green"), &given.green, any)),
        edit("service-to-static", plain(), given.side(here.clone(), &here_ends, any)),
        edit("static", given.side(here, &here_ends, any), given.side(there, &there_ends, any)),
        edit(
            "tags",
            given.web(json!({ "tags": ["a", "b"] }), |i| i.tags == ["a", "b"]),
            given.web(json!({ "tags": ["b", "c"] }), |i| i.tags == ["b", "c"]),
        ),
        edit(
            "values",
            given.web(json!({ "meta": { "app": "plain" } }), |i| pair(i, "app") == Some("plain")),
            given.web(json!({ "meta": { "app": "${pod.labels['app']}/${node.zone}" } }), |i| {
                pair(i, "app") == Some("web/zone-1")
            }),
        ),
        edit(
            "meta",
            given.web(json!({ "meta": { "version": "1", "old": "yes" } }), |i| i.meta.contains_key("old")),
            given.web(json!({ "meta": { "version": "2" } }), |i| {
                pair(i, "version") == Some("2") && !i.meta.contains_key("old")
            }),
        ),
        edit(
            "weights",
            given.web(json!({ "weights": { "passing": 5, "warning": 2 } }), |i| i.weights == (5, 2)),
            given.web(json!({}), |i| i.weights == (1, 1)),
        ),
        edit(
            "override",
            given.web(json!({}), |i| !i.enable_tag_override),
            given.web(json!({ "enableTagOverride": true }), |i| i.enable_tag_override),
        ),
        edit(
            "tagged",
            given.web(json!({}), |i| !i.tagged_addresses.contains_key("wan")),
            given.web(json!({ "taggedAddresses": { "wan": { "address": "198.51.100.9", "port": 443 } } }), |i| {
                i.tagged_addresses.get("wan").is_some_and(|(_, port)| *port == 443)
            }),
        ),
        edit(
            "dual-stack",
            given.web(json!({}), |i| !i.tagged_addresses.contains_key("lan_ipv6")),
            given.web(json!({ "dualStack": true }), |i| i.tagged_addresses.contains_key("lan_ipv6")),
        ),
        edit(
            "mirror-to-ignore",
            given.web(json!({}), |i| kinds(i).len() == 1),
            given.web(json!({ "readiness": "Ignore" }), |i| kinds(i).is_empty()),
        ),
        edit(
            "deregister-to-mirror",
            given.web(json!({ "readiness": "Deregister" }), |i| kinds(i).is_empty()),
            given.web(json!({ "readiness": "Mirror" }), |i| kinds(i).len() == 1),
        ),
        edit(
            "all-at-once",
            plain(),
            Side {
                renamed: true,
                ..given.side(
                    merged(pods("green"), json!({ "port": "grpc", "tags": ["new"], "readiness": "Ignore" })),
                    &given.green.iter().map(|(address, _)| (address.clone(), 9000)).collect::<Vec<End>>(),
                    |i| i.tags == ["new"],
                )
            },
        ),
        edit(
            "checks-added",
            given.checked(json!([]), |i| kinds(i).len() == 1),
            given.checked(json!([tcp, http]), |i| kinds(i).is_superset(&BTreeSet::from(["tcp", "http"]))),
        ),
        edit(
            "checks-changed",
            given.checked(json!([tcp]), |i| kinds(i).contains("tcp")),
            given.checked(json!([{ "name": "open", "http": { "path": "/" }, "interval": "2s" }]), |i| {
                kinds(i).contains("http") && !kinds(i).contains("tcp")
            }),
        ),
    ]
}

impl Edit {
    /// The name in Consul of a side.
    fn service(&self, fixture: &Fixture, side: usize) -> String {
        fixture.service_named(&format!("{}{}", self.name, if self.sides[side].renamed { "-renamed" } else { "" }))
    }

    async fn apply(&self, fixture: &Fixture, side: usize) -> Result<()> {
        let spec = merged(self.sides[side].spec.clone(), json!({ "name": self.service(fixture, side) }));
        fixture.apply(self.name, &spec).await
    }

    /// What a side is in Consul: its ends, each under its name.
    fn truth(&self, fixture: &Fixture, side: usize) -> BTreeSet<(String, End)> {
        let service = self.service(fixture, side);
        self.sides[side].ends.iter().map(|end| (service.clone(), end.clone())).collect()
    }

    /// Waits until Consul has a side and nothing else.
    async fn wait_for(&self, fixture: &Fixture, side: usize) -> Result<()> {
        let (here, there) = (self.service(fixture, side), self.service(fixture, 1 - side));
        let Side { ends, is, .. } = &self.sides[side];
        let wanted: BTreeSet<&End> = ends.iter().collect();
        let arrived = |found: &[Instance]| {
            let ends: BTreeSet<End> = found.iter().map(|i| (i.address.clone(), i.port)).collect();
            found.len() == wanted.len()
                && ends.iter().collect::<BTreeSet<_>>() == wanted
                && found.iter().all(|i| i.status == "passing" && is(i))
        };
        let description = format!("side {side} of the edit {:?}", self.name);
        fixture.consul().wait_for(&here, &description, arrived, SOON).await?;
        if here != there {
            fixture.consul().wait_for(&there, "nothing under the other name", <[_]>::is_empty, SOON).await?;
        }
        Ok(())
    }

    /// Asks Consul, every few milliseconds, for what is passing, and ends with a moment at which that is neither all
    /// that it was nor all that it will be. Counts how often it asked.
    async fn gap(&self, fixture: &Fixture, from: usize, looks: &Cell<usize>) -> Result<String> {
        let (before, after) = (self.truth(fixture, from), self.truth(fixture, 1 - from));
        // In this order: what has left the one name must have been under the other one before.
        let mut names = vec![self.service(fixture, from), self.service(fixture, 1 - from)];
        names.dedup();
        let consul = fixture.consul_address();
        let client = reqwest::Client::new();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut found = BTreeSet::new();
            for name in &names {
                let answer = client.get(format!("{consul}/v1/health/service/{name}?passing")).send().await?;
                let answer: Value = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
                for service in answer.as_array().context("not a list")?.iter().map(|entry| &entry["Service"]) {
                    let address = service["Address"].as_str().context("no address")?.to_owned();
                    let port = service["Port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("no port")?;
                    found.insert((name.clone(), (address, port)));
                }
            }
            looks.set(looks.get() + 1);
            if !before.is_subset(&found) && !after.is_subset(&found) {
                return Ok(format!(
                    "at look {} of the edit {:?} from side {from} there was neither all of {before:#?} nor all of {after:#?}, but {found:#?}",
                    looks.get(),
                    self.name
                ));
            }
        }
    }

    /// Does something that leads to the other side, and waits for it, while Consul is asked.
    async fn watched(&self, fixture: &Fixture, from: usize, act: impl Future<Output = Result<()>>) -> Result<()> {
        let looks = Cell::new(0);
        let through = async {
            act.await?;
            self.wait_for(fixture, 1 - from).await?;
            looked(&looks).await
        };
        tokio::select! {
            done = through => done,
            gap = self.gap(fixture, from, &looks) => bail!(gap?),
        }
    }
}

/// Has what comes through a proxy take its time from now on, and what only goes not.
fn slow_down(proxy: &Proxy) {
    let turn = AtomicUsize::new(0);
    let slowly = move || Fault::Delay(SLOWLY[turn.fetch_add(1, Ordering::Relaxed) % SLOWLY.len()]);
    proxy.set_fault(Fault::Rule(Arc::new(move |record| brings(record).then(&slowly))));
}

/// Whether a write makes or changes an instance.
fn brings(record: &Record) -> bool {
    let sets = || String::from_utf8_lossy(&record.body).contains("\"Verb\":\"set\"");
    record.is_write() && !record.path.contains("/deregister") && (record.path != "/v1/txn" || sets())
}

fn operator<'a>(fixture: &'a Fixture, proxy: &Proxy) -> Launch<'a> {
    fixture.operator().consul(&proxy.addr()).flag("--allow-static", ALLOWED).with_checks()
}

pub(crate) async fn every_edit(fixture: &Fixture) -> Result<()> {
    let environment = Environment::lay(fixture).await?;
    let _esm = fixture.esm();
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    operator(fixture, &proxy).ready().await?;
    let edits = edits(&environment);
    try_join_all(edits.iter().map(async |edit| {
        edit.apply(fixture, 0).await?;
        edit.wait_for(fixture, 0).await
    }))
    .await?;
    slow_down(&proxy);
    for edit in &edits {
        for from in [0, 1] {
            edit.watched(fixture, from, edit.apply(fixture, 1 - from)).await?;
        }
    }
    Ok(())
}

pub(crate) async fn every_edit_while_down(fixture: &Fixture) -> Result<()> {
    let environment = Environment::lay(fixture).await?;
    let _esm = fixture.esm();
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let mut running = operator(fixture, &proxy).ready().await?;
    let edits = edits(&environment);
    try_join_all(edits.iter().map(async |edit| {
        edit.apply(fixture, 0).await?;
        edit.wait_for(fixture, 0).await
    }))
    .await?;
    slow_down(&proxy);
    // Not all at once: so many readers would be all that Consul has to do.
    for edits in edits.chunks(5) {
        for from in [0, 1] {
            running.kill()?;
            try_join_all(edits.iter().map(|edit| edit.apply(fixture, 1 - from))).await?;
            let watched = join_all(edits.iter().map(|edit| edit.watched(fixture, from, async { Ok(()) })));
            let (started, watched) = tokio::join!(operator(fixture, &proxy).ready(), watched);
            running = started?;
            watched.into_iter().collect::<Result<()>>()?;
        }
    }
    Ok(())
}

pub(crate) async fn an_endpoint_changes_its_node(fixture: &Fixture) -> Result<()> {
    fixture.nodes().await?;
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    let slice = async |node: &str| -> Result<()> {
        let endpoints = ["10.1.0.1", "10.1.0.2", "10.1.0.3"].into_iter().map(|address| {
            let node = Some(format!("{}-{node}", fixture.namespace.name()));
            Ok(NewEndpoint { node, ..NewEndpoint::new(address.parse()?) })
        });
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        fixture.namespace.apply_slice("web-1", "web", &[("http", 8080)], &endpoints).await.map(drop)
    };
    slice("a").await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let running = operator(fixture, &proxy).ready().await?;
    let ends: Vec<End> = ["10.1.0.1", "10.1.0.2", "10.1.0.3"].map(|address| (address.to_owned(), 8080)).into();
    let on = |is| Side { renamed: false, spec: service("web", json!({})), ends: ends.clone(), is };
    let edit = Edit {
        name: "node",
        sides: [
            on(|i| pair(i, "k8s-node").is_some_and(|node| node.ends_with("-a"))),
            on(|i| pair(i, "k8s-node").is_some_and(|node| node.ends_with("-b"))),
        ],
    };
    edit.apply(fixture, 0).await?;
    edit.wait_for(fixture, 0).await?;
    slow_down(&proxy);
    edit.watched(fixture, 0, slice("b")).await?;
    // And while nobody is there.
    running.kill()?;
    slice("a").await?;
    let started = async { operator(fixture, &proxy).ready().await.map(drop) };
    edit.watched(fixture, 1, started).await?;
    let left = timeout(SOON, fixture.wait_ready("node")).await;
    left?
}

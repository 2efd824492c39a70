//! Edits without a gap: an instance that passes never shows as anything else because of a write, and one that is
//! critical does not pass because of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lictor::cluster::convert::ChecksRunBy;
use lictor::model::check::Checks;
use lictor::model::health::Health;
use lictor::model::ids::Str;
use lictor::model::registration::{Registration, RowKey, TaggedAddress, Weights};
use lictor::ports::Registry;
use lictor_testbed::{Consul, ConsulOptions, Esm, Listener, Protocol};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::fixture::{checks, edit, health, instance, with_checks};
use crate::registries::{SOON, agent, catalog, connect, consul, key, put, write};

/// Looks at an instance all the time, and remembers what is not as it should be.
struct Watcher {
    ended: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    task: JoinHandle<Vec<String>>,
}

impl Watcher {
    fn start(consul: &Consul, id: Str, wanted: &'static str) -> Self {
        let url = format!("{}/v1/health/service/user_service", consul.http_addr());
        let (ended, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (end, count) = (Arc::clone(&ended), Arc::clone(&looks));
        let client = reqwest::Client::new();
        let task = tokio::spawn(async move {
            let mut wrong = Vec::new();
            while !end.load(Ordering::SeqCst) {
                let body = client.get(&url).send().await.unwrap().bytes().await.unwrap();
                let all: Vec<Value> = serde_json::from_slice(&body).unwrap();
                let own: Vec<&Value> = all.iter().filter(|one| one["Service"]["ID"] == *id).collect();
                let states: Vec<&str> = own
                    .iter()
                    .flat_map(|one| one["Checks"].as_array().unwrap())
                    .map(|check| check["Status"].as_str().unwrap())
                    .collect();
                let state = if states.iter().all(|state| *state == "passing") { "passing" } else { "critical" };
                if own.len() != 1 || state != wanted {
                    wrong.push(own.into_iter().cloned().collect::<Value>().to_string());
                }
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            wrong
        });
        Self { ended, looks, task }
    }

    /// Ends it, and holds that nothing was wrong.
    async fn end(self) {
        self.ended.store(true, Ordering::SeqCst);
        let wrong = self.task.await.unwrap();
        let looks = self.looks.load(Ordering::SeqCst);
        assert!(wrong.is_empty(), "{} of {looks} looks were wrong: {:#?}", wrong.len(), wrong.first());
    }
}

/// The servers behind an instance, on every address of this machine.
struct Servers {
    http: Listener,
    grpc: Listener,
}

impl Servers {
    async fn start() -> Self {
        let everywhere = "0.0.0.0".parse().unwrap();
        Self {
            http: Listener::start(Protocol::Http, everywhere, None).await.unwrap(),
            grpc: Listener::start(Protocol::Grpc, everywhere, None).await.unwrap(),
        }
    }
}

/// An instance and everything that is done to it, one after the other.
fn edits(servers: &Servers, by: ChecksRunBy) -> Vec<(&'static str, Registration)> {
    let (http, grpc) = (servers.http.port(), servers.grpc.port());
    let of = |yaml: &str| checks(&format!("[{yaml}]"), by, http, Health::Passing).unwrap();
    let base = Registration {
        readiness: Some(Health::Passing),
        ..instance("127.0.0.1".parse().unwrap(), http, of("{ name: web, interval: 1s, http: {} }"))
    };
    let mut all = vec![("as it begins", base)];
    let mut next = |what, change: &dyn Fn(Registration) -> Registration| {
        all.push((what, change(all[all.len() - 1].1.clone())));
    };
    let checked = |checks: Checks| move |now: Registration| with_checks(&now, checks.clone());
    next("another path", &checked(of("{ name: web, interval: 1s, http: { path: /other } }")));
    next("another interval", &checked(of("{ name: web, interval: 2s, http: { path: /other } }")));
    let two =
        format!("{{ name: web, interval: 1s, http: {{}} }}, {{ name: rpc, interval: 1s, grpc: {{}}, port: {grpc} }}");
    next("one more check", &checked(of(&two)));
    next("another kind", &checked(of("{ name: web, interval: 1s, http: {} }, { name: rpc, interval: 1s, tcp: {} }")));
    next("one check less", &checked(of("{ name: web, interval: 1s, http: {} }")));
    next("tags", &|now| Registration { tags: ["v2".into(), "new".into()].into(), ..now });
    next("meta", &|mut now| {
        now.meta.insert("version".into(), "2".into());
        now
    });
    next("weights", &|now| Registration { weights: Weights { passing: 3, warning: 2 }, ..now });
    next("address", &|now| Registration { address: "127.0.0.2".into(), ..now });
    next("tagged address", &|now| {
        let wan = TaggedAddress { address: "198.51.100.8".into(), port: 80 };
        Registration { tagged_addresses: Arc::new([("wan".into(), wan)].into()), ..now }
    });
    next("no readiness", &|now| Registration { readiness: None, ..now });
    next("readiness again", &|now| Registration { readiness: Some(Health::Passing), ..now });
    next("no checks", &checked(Checks::default()));
    next("checks again", &checked(of("{ name: web, interval: 1s, http: {} }")));
    all
}

/// Makes the edits, each after the checks have been run.
async fn make(
    registry: &dyn Registry,
    servers: &Servers,
    key: &RowKey,
    edits: &[(&'static str, Registration)],
    state: Health,
) {
    for pair in edits.windows(2) {
        let (from, (what, to)) = (&pair[0].1, &pair[1]);
        write(registry, &key.node, vec![edit(key, from, to)]).await;
        if !to.checks.placed().is_empty() {
            servers.http.next(&format!("a check after: {what}"), |_| true, SOON).await.unwrap();
        }
        let row = health(registry, key, state).await;
        assert_eq!(*row.registration, *to, "{what}");
    }
}

async fn without_a_gap(consul: &Consul, registry: &dyn Registry, by: ChecksRunBy) {
    let node = connect(registry).await;
    let mut servers = Servers::start().await;
    let key = key(&node, "a");
    let edits = edits(&servers, by);
    write(registry, &node, vec![put(&key, &edits[0].1)]).await;
    servers.http.next("a check", |_| true, SOON).await.unwrap();
    health(registry, &key, Health::Passing).await;
    let watcher = Watcher::start(consul, key.id.clone(), "passing");
    make(registry, &servers, &key, &edits, Health::Passing).await;
    watcher.end().await;

    // The other way round: a check that fails goes on failing, whatever is edited around it.
    let last = edits[edits.len() - 1].1.clone();
    write(registry, &node, vec![edit(&key, &last, &edits[0].1)]).await;
    servers.http.fail().await.unwrap();
    health(registry, &key, Health::Critical).await;
    let watcher = Watcher::start(consul, key.id.clone(), "critical");
    let has_it = |edit: &&(&str, Registration)| edit.1.checks.names().contains("web:http");
    let kept: Vec<_> = edits.iter().take_while(has_it).cloned().collect();
    make(registry, &servers, &key, &kept, Health::Critical).await;
    watcher.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_leave_no_gap_in_agent_mode() {
    let consul = consul(ConsulOptions::default()).await;
    without_a_gap(&consul, &agent(&consul.http_addr(), None), ChecksRunBy::Agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_leave_no_gap_in_catalog_mode() {
    let consul = consul(ConsulOptions::default()).await;
    let _esm = Esm::start(consul.api());
    without_a_gap(&consul, &catalog(&consul.http_addr(), None), ChecksRunBy::Esm).await;
}

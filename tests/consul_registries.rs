//! The registries against a real Consul: what is written is read back, and what goes wrong is told apart.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

#[path = "consul_registries/groups.rs"]
mod groups;
#[path = "support/registries.rs"]
mod registries;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use lictor::cluster::convert::{self, Rules};
use lictor::consul::agent::Agent;
use lictor::consul::agent::takeover::AgentTakeover;
use lictor::consul::catalog::Catalog;
use lictor::consul::catalog::takeover::CatalogTakeover;
use lictor::consul::takeover::{Taken, Takeover};
use lictor::consul::tenancy::Tenancy;
use lictor::consul::transport::{ConsulSettings, Http, Request, Response, Transport, TransportError};
use lictor::model::check::{Check, Checks, PlacedCheck, Probe};
use lictor::model::desired::{Placement, desired};
use lictor::model::diff::Op;
use lictor::model::facts::PodRef;
use lictor::model::health::Health;
use lictor::model::ids::{ClusterName, Identity, ResourceKey, Str};
use lictor::model::registration::{Ownership, Registration, Row, RowKey, TaggedAddress, Weights};
use lictor::model::resolve::Instance;
use lictor::model::template::Values;
use lictor::ports::{Outcome, Registry, Rows, Unavailable};
use lictor::state::event::ObjectKey;
use lictor_testbed::certificates::Authority;
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, Fault, Hold, Proxy, Record, WorkDir, ports, wait};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::registries::{
    SOON, WRITTEN, agent, apply, catalog, connect, consul, full, http, identity, key, put, remove, settled,
    settled_within, write,
};

fn readiness(key: &RowKey, registration: &Registration, state: Health) -> Op {
    let registration = Registration { readiness: Some(state), ..registration.clone() };
    Op::Readiness { key: key.clone(), registration: Arc::new(registration) }
}

fn registrations(rows: &Rows) -> BTreeMap<RowKey, Registration> {
    rows.iter().map(|(key, row)| (key.clone(), (*row.registration).clone())).collect()
}

fn rows_of(list: &[(&RowKey, &Registration)]) -> BTreeMap<RowKey, Registration> {
    list.iter().map(|(key, registration)| ((*key).clone(), (*registration).clone())).collect()
}

fn trouble(outcome: &Outcome) -> &Unavailable {
    match outcome {
        Outcome::NotTried(trouble) | Outcome::Unknown(trouble) => trouble,
        Outcome::Written { .. } | Outcome::Refused(_) => panic!("no trouble: {outcome:?}"),
    }
}

/// The life of instances, the same in both modes.
async fn a_whole_life(consul: &Consul, registry: &dyn Registry) {
    let node = connect(registry).await;
    let (ready, unready, plain) = (key(&node, "ready"), key(&node, "unready"), key(&node, "plain"));
    let up = full("10.0.0.1", Some(Health::Passing));
    let down = full("10.0.0.2", Some(Health::Critical));
    let six = full("fd00::3", None);

    write(registry, &node, vec![put(&ready, &up), put(&unready, &down), put(&plain, &six)]).await;
    let rows = settled(registry).await;
    assert_eq!(registrations(&rows), rows_of(&[(&ready, &up), (&unready, &down), (&plain, &six)]));
    assert_eq!(registrations(&registry.read_node(&node).await.unwrap()), registrations(&rows));
    assert!(rows.values().all(|row| row.ownership == Ownership::Ours(ResourceKey::new("shop", "user"))));
    let healths: Vec<Health> = [&ready, &unready, &plain].iter().map(|key| rows[*key].health).collect();
    assert_eq!(healths, [Health::Passing, Health::Critical, Health::Passing]);

    // Readiness moves both ways, and nothing else with it.
    let (up, down) = (down_of(&up), up_of(&down));
    write(registry, &node, vec![readiness(&ready, &up, Health::Critical), readiness(&unready, &down, Health::Passing)])
        .await;
    let rows = settled(registry).await;
    assert_eq!(registrations(&rows), rows_of(&[(&ready, &up), (&unready, &down), (&plain, &six)]));
    assert_eq!((rows[&ready].health, rows[&unready].health), (Health::Critical, Health::Passing));

    // An edit of everything but the name; the check's own status is the new one too.
    let mut edited = Registration { tags: ["v2".into()].into(), port: 9090, weights: Weights::default(), ..up_of(&up) };
    edited.meta.remove("version");
    edited.tagged_addresses = Arc::default();
    write(registry, &node, vec![put(&ready, &edited)]).await;
    assert_eq!(*settled(registry).await[&ready].registration, edited);

    // The check goes, somebody else's on the same instance stays and counts.
    if *node == *consul.node_name() {
        let check =
            json!({ "Name": "by hand", "ID": "by-hand", "ServiceID": &*unready.id, "TTL": "1h", "Status": "warning" });
        consul.api().put("/v1/agent/check/register", &check).await.unwrap();
    } else {
        let check = json!({ "Name": "by hand", "CheckID": "by-hand", "ServiceID": &*unready.id, "Status": "warning" });
        let entry = json!({ "Node": &*node, "SkipNodeUpdate": true, "Check": check });
        consul.api().put("/v1/catalog/register", &entry).await.unwrap();
    }
    wait::until("the check made by hand to count", SOON, || async {
        Ok((registry.read().await?[&unready].health == Health::Warning).then_some(()))
    })
    .await
    .unwrap();
    let bare = Registration { readiness: None, ..down.clone() };
    let drop = Op::Register {
        key: unready.clone(),
        registration: Arc::new(bare.clone()),
        drop_checks: vec!["readiness".into()],
    };
    write(registry, &node, vec![drop.clone()]).await;
    write(registry, &node, vec![drop]).await;
    let row = &settled(registry).await[&unready];
    assert_eq!((&*row.registration, row.health), (&bare, Health::Warning));

    // Released: it stays, nobody's; and can be taken up again.
    let released = edited.disowned();
    write(registry, &node, vec![Op::Disown { key: ready.clone(), registration: Arc::new(released.clone()) }]).await;
    let rows = settled(registry).await;
    assert_eq!((&*rows[&ready].registration, &rows[&ready].ownership), (&released, &Ownership::Unowned));
    write(registry, &node, vec![put(&ready, &edited)]).await;
    assert_eq!(settled(registry).await[&ready].ownership, Ownership::Ours(ResourceKey::new("shop", "user")));

    // Gone, and gone again; a readiness for what is gone brings it back, a release does not.
    write(registry, &node, vec![remove(&ready), remove(&unready), remove(&plain), remove(&key(&node, "never"))]).await;
    assert_eq!(settled(registry).await, Rows::new());
    write(registry, &node, vec![remove(&ready)]).await;
    write(registry, &node, vec![Op::Disown { key: ready.clone(), registration: Arc::new(released) }]).await;
    assert_eq!(settled(registry).await, Rows::new());
    write(registry, &node, vec![readiness(&ready, &edited, Health::Critical)]).await;
    assert_eq!(*settled(registry).await[&ready].registration, down_of(&edited));
    wait::until("the catalog to forget the removed", SOON, || async {
        Ok((consul.api().instances("user_service").await?.len() == 1).then_some(()))
    })
    .await
    .unwrap();
}

fn up_of(registration: &Registration) -> Registration {
    Registration { readiness: Some(Health::Passing), ..registration.clone() }
}

fn down_of(registration: &Registration) -> Registration {
    Registration { readiness: Some(Health::Critical), ..registration.clone() }
}

#[tokio::test]
async fn instances_live_and_die_in_agent_mode() {
    let consul = consul(ConsulOptions::default()).await;
    a_whole_life(&consul, &agent(&consul.http_addr(), None)).await;
}

#[tokio::test]
async fn instances_live_and_die_in_catalog_mode() {
    let consul = consul(ConsulOptions::default()).await;
    a_whole_life(&consul, &catalog(&consul.http_addr(), None)).await;
}

/// Registrations within what the resource allows.
fn arbitrary() -> impl Strategy<Value = Registration> {
    let text = || "[ -~äé日]{0,20}".prop_map(|text| Str::from(text.as_str()));
    let name = || "[a-z][A-Za-z0-9_-]{0,20}".prop_map(|text| Str::from(text.as_str()));
    let address = prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::from), any::<Ipv6Addr>().prop_map(IpAddr::from)];
    let usable = |address: &IpAddr| !address.is_unspecified();
    let tagged = ("[a-z0-9.]{1,9}", 1..=u16::MAX);
    (
        (name(), address.prop_filter("an address", usable), 1..=u16::MAX, vec(text(), 0..5)),
        btree_map(name(), text(), 0..8),
        (1..=u16::MAX, any::<u16>(), any::<bool>()),
        btree_map(name(), tagged, 0..3),
        option::of(prop_oneof![Just(Health::Passing), Just(Health::Critical)]),
    )
        .prop_map(
            |((service, address, port, tags), meta, (passing, warning, enable_tag_override), tagged, readiness)| {
                let tagged = tagged
                    .into_iter()
                    .map(|(name, (address, port))| (name, TaggedAddress { address: address.as_str().into(), port }));
                Registration {
                    service,
                    address: address.to_string().into(),
                    port,
                    tags: tags.into(),
                    meta: meta.into_iter().collect(),
                    weights: Weights { passing, warning },
                    enable_tag_override,
                    tagged_addresses: Arc::new(tagged.collect()),
                    readiness,
                    checks: Checks::default(),
                }
            },
        )
}

#[tokio::test]
async fn whatever_is_written_is_read_back_equal() {
    let consul = consul(ConsulOptions::default()).await;
    let mut runner = TestRunner::deterministic();
    for registry in [&agent(&consul.http_addr(), None) as &dyn Registry, &catalog(&consul.http_addr(), None)] {
        let node = connect(registry).await;
        let wanted: BTreeMap<RowKey, Registration> = (0..200)
            .map(|number| (key(&node, &format!("{number}")), arbitrary().new_tree(&mut runner).unwrap().current()))
            .collect();
        write(registry, &node, wanted.iter().map(|(key, registration)| put(key, registration)).collect()).await;
        let found = registrations(&settled(registry).await);
        for (key, registration) in &wanted {
            assert_eq!(found.get(key), Some(registration), "{key}");
        }
    }
}

/// What is desired of one instance of a resource with these tagged addresses.
fn desired_with(tagged: &Value, address: &str, other: Option<&str>, placement: &Placement) -> (RowKey, Registration) {
    let object = json!({
        "metadata": { "name": "user", "namespace": "shop" },
        "spec": { "source": { "service": { "name": "user" } }, "taggedAddresses": tagged },
    });
    let rules = Rules::default();
    let read = convert::resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), &rules);
    let instance = Instance {
        address: address.parse().unwrap(),
        port: 8080,
        other_address: other.map(|other| other.parse().unwrap()),
        ready: true,
        node: Some("worker".into()),
        pod: Some(PodRef { name: "user-1".into(), uid: "uid-of-pod".into() }),
        check_ports: Vec::new(),
        values: Values::default(),
        own: None,
    };
    let spec = read.resource.spec.unwrap();
    let owner = ResourceKey::new("shop", "user");
    let mut all = desired(&identity(), &owner, &"owner-uid".into(), &spec, &[instance], placement, |_| true);
    let (key, registration) = all.pop_first().unwrap();
    (key, (*registration).clone())
}

#[tokio::test]
async fn tagged_addresses_are_read_back_as_they_are_desired() {
    let consul = consul(ConsulOptions::default()).await;
    for registry in [&agent(&consul.http_addr(), None) as &dyn Registry, &catalog(&consul.http_addr(), None)] {
        let placement = registry.connect().await.unwrap();
        let at = |address: &str, port: u16| json!({ "address": address, "port": port });
        for (tagged, address, other, names) in [
            (json!({}), "10.0.0.1", Some("fd00::1"), vec!["lan_ipv6"]),
            (json!({}), "10.0.0.2", Some("fd00::2"), vec!["lan_ipv6"]),
            (json!({}), "fd00::3", Some("10.0.0.3"), vec!["lan_ipv4"]),
            (json!({}), "10.0.0.3", None, vec![]),
            (
                json!({ "lan_ipv4": at("10.9.9.9", 80), "wan": at("10.0.0.4", 8080) }),
                "10.0.0.4",
                None,
                vec!["lan_ipv4", "wan"],
            ),
            (json!({ "lan_ipv4": at("10.9.9.9", 80) }), "fd00::4", Some("10.0.0.4"), vec!["lan_ipv4"]),
            (json!({ "wan_ipv4": at("10.0.0.5", 443) }), "10.0.0.5", None, vec!["wan_ipv4"]),
            // Named or not, an agent adds it.
            (json!({ "lan_ipv4": at("10.0.0.6", 8080) }), "10.0.0.6", Some("fd00::6"), vec!["lan_ipv4", "lan_ipv6"]),
            (json!({ "lan_ipv4": at("10.0.0.6", 8080) }), "10.0.0.7", Some("fd00::7"), vec!["lan_ipv4", "lan_ipv6"]),
        ] {
            let (key, wanted) = desired_with(&tagged, address, other, &placement);
            write(registry, &key.node, vec![put(&key, &wanted)]).await;
            assert_eq!(*settled(registry).await[&key].registration, wanted, "{tagged} {address}");
            let there = consul.api().instances("user").await.unwrap();
            let there = there.iter().find(|instance| instance.node == *key.node).unwrap();
            for name in names {
                assert!(there.tagged_addresses.contains_key(name), "{name}: {there:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let consul = consul(ConsulOptions::default()).await;
    let api = consul.api();
    for registry in [&agent(&consul.http_addr(), None) as &dyn Registry, &catalog(&consul.http_addr(), None)] {
        let node = connect(registry).await;
        let (ours, theirs) = (key(&node, "ours"), key(&node, "theirs"));
        write(registry, &node, vec![put(&ours, &full("10.0.0.1", None))]).await;
        let mut foreign = vec![json!({ "ID": "plain", "Name": "user_service", "Port": 1 })];
        foreign.push(json!({ "ID": &*theirs.id, "Name": "user_service", "Port": 1, "Meta": { "lictor-cluster": "test", "lictor-cluster-uid": "other" } }));
        foreign.push(json!({ "ID": "test-2:shop:user:user_service:x:1", "Name": "user_service", "Port": 1, "Meta": { "lictor-cluster": "test-2" } }));
        for service in &foreign {
            if *node == *consul.node_name() {
                api.put("/v1/agent/service/register", service).await.unwrap();
            } else {
                let mut entry = json!({ "Node": &*node, "SkipNodeUpdate": true, "Service": service });
                let fields = entry["Service"].as_object_mut().unwrap();
                let name = fields.remove("Name").unwrap();
                fields.insert("Service".to_owned(), name);
                api.put("/v1/catalog/register", &entry).await.unwrap();
            }
        }
        let rows = settled(registry).await;
        assert_eq!(rows.keys().collect::<Vec<_>>(), [&ours, &theirs]);
        // A node of ours nobody else makes such a row on; an agent's node may be another cluster's, too.
        let on_agent = *node == *consul.node_name();
        assert_eq!(matches!(rows[&theirs].ownership, Ownership::Other(_)), on_agent, "{rows:?}");
        write(registry, &node, vec![remove(&ours)]).await;
        registry.tidy(&BTreeMap::new()).await.unwrap();
        let left = |instances: &[lictor_testbed::Instance]| instances.iter().filter(|i| i.node == *node).count() == 3;
        api.wait_for("user_service", "the three that are not ours", left, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_operation_takes_no_other_along() {
    let consul = consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await;
    let policy = r#"
        agent_prefix "" { policy = "read" }
        node_prefix "" { policy = "write" }
        service_prefix "" { policy = "read" }
        service "user_service" { policy = "write" }
    "#;
    let token = token(&consul, policy).await;
    for registry in
        [&agent(&consul.http_addr(), Some(&token)) as &dyn Registry, &catalog(&consul.http_addr(), Some(&token))]
    {
        let node = connect(registry).await;
        let good = full("10.0.0.1", Some(Health::Passing));
        let forbidden = Registration { service: "forbidden".into(), ..good.clone() };
        let mut invalid = good.clone();
        invalid.meta.insert("not.allowed".into(), "x".into());
        let keys: Vec<RowKey> = ["a", "b", "c", "d"].iter().map(|target| key(&node, target)).collect();
        let ops = vec![put(&keys[0], &good), put(&keys[1], &forbidden), put(&keys[2], &invalid), put(&keys[3], &good)];
        let outcomes = apply(registry, &node, ops).await;
        assert_eq!((&outcomes[0], &outcomes[3]), (&WRITTEN, &WRITTEN), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Outcome::Refused(words) if words.contains("Permission denied")), "{outcomes:?}");
        assert!(
            matches!(&outcomes[2], Outcome::Refused(words) if words.contains("invalid characters")),
            "{outcomes:?}"
        );
        let rows = settled(registry).await;
        assert_eq!(registrations(&rows), rows_of(&[(&keys[0], &good), (&keys[3], &good)]));
    }
}

/// Makes an older one of a Consul: there was a time before each kind of check.
struct WithoutH2Ping(Arc<Http>);

impl Transport for WithoutH2Ping {
    fn send(&self, mut request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        request.body = request.body.map(|body| String::from_utf8_lossy(&body).replace("H2PING", "FUTURE").into());
        self.0.send(request)
    }

    fn addresses(&self) -> usize {
        1
    }

    fn has_token(&self) -> bool {
        true
    }

    fn tenancy(&self) -> &Tenancy {
        &Tenancy::DEFAULT
    }
}

#[tokio::test]
async fn a_check_that_consul_refuses_takes_no_other_instance_along() {
    let consul = consul(ConsulOptions::default()).await;
    let http = http(&consul.http_addr(), None);
    let registries: [(Box<dyn Registry>, Probe, &str); 3] = [
        (Box::new(Agent::new(identity(), Arc::clone(&http) as Arc<dyn Transport>)), tcp(), "invalid duration"),
        (Box::new(Agent::new(identity(), Arc::new(WithoutH2Ping(Arc::clone(&http))))), h2ping(), "unknown field"),
        (Box::new(Catalog::new(identity(), http, 4)), tcp(), "invalid duration"),
    ];
    for (registry, probe, words) in registries {
        let node = connect(&*registry).await;
        let good = full("10.0.0.1", Some(Health::Passing));
        let interval = if words == "invalid duration" { "soon" } else { "1s" };
        let checks = Checks::new(vec![placed(probe, interval)], Health::Passing);
        let bad = Registration { checks, ..good.clone() };
        let keys: Vec<RowKey> = (0..5).map(|number| key(&node, &number.to_string())).collect();
        let ops =
            keys.iter().enumerate().map(|(number, key)| put(key, if number == 2 { &bad } else { &good })).collect();
        let outcomes = apply(&*registry, &node, ops).await;
        for (number, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Refused(said) if number == 2 => assert!(said.contains(words), "{said}"),
                outcome => assert!(number != 2 && *outcome == WRITTEN, "{number}: {outcome:?}"),
            }
        }
        let rows = settled(&*registry).await;
        assert_eq!(rows.keys().collect::<Vec<_>>(), [&keys[0], &keys[1], &keys[3], &keys[4]]);
        write(&*registry, &node, keys.iter().map(remove).collect()).await;
    }
}

/// Whoever runs checks has something to say of an instance's each time that a transaction is about it.
struct WithAnEagerEsm {
    http: Arc<Http>,
    api: ConsulApi,
    instance: RowKey,
    turns: AtomicUsize,
}

impl WithAnEagerEsm {
    async fn speak(&self) {
        let turn = self.turns.fetch_add(1, Ordering::SeqCst);
        let checks = self.api.get(&format!("/v1/health/node/{}", self.instance.node)).await.unwrap();
        let of_instance = |check: &&Value| check["ServiceID"] == *self.instance.id && check["Type"] == "tcp";
        for check in checks.as_array().unwrap().iter().filter(of_instance) {
            let mut check = check.clone();
            check["Output"] = json!(format!("turn {turn}"));
            let entry = json!({ "Node": &*self.instance.node, "SkipNodeUpdate": true, "Check": check });
            self.api.put("/v1/catalog/register", &entry).await.unwrap();
        }
    }
}

impl Transport for WithAnEagerEsm {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        Box::pin(async move {
            let body = String::from_utf8_lossy(request.body.as_deref().unwrap_or_default()).into_owned();
            if body.contains(&*self.instance.id) {
                self.speak().await;
            }
            self.http.send(request).await
        })
    }

    fn addresses(&self) -> usize {
        1
    }

    fn has_token(&self) -> bool {
        true
    }

    fn tenancy(&self) -> &Tenancy {
        &Tenancy::DEFAULT
    }
}

#[tokio::test]
async fn conflicts_without_end_are_one_instances_own() {
    let consul = consul(ConsulOptions::default()).await;
    let node = Str::from("test-worker");
    let keys: Vec<RowKey> = (0..5).map(|number| key(&node, &number.to_string())).collect();
    let with_check = |interval: &str| Registration {
        checks: Checks::new(vec![placed(tcp(), interval)], Health::Passing),
        ..full("10.0.0.1", None)
    };
    let quiet = catalog(&consul.http_addr(), None);
    connect(&quiet).await;
    write(&quiet, &node, vec![put(&keys[2], &with_check("10s"))]).await;

    let http = http(&consul.http_addr(), None);
    let turns = AtomicUsize::new(0);
    let esm = Arc::new(WithAnEagerEsm { http, api: consul.api(), instance: keys[2].clone(), turns });
    let registry = Catalog::new(identity(), Arc::clone(&esm) as Arc<dyn Transport>, 4);
    connect(&registry).await;
    let ops = keys.iter().map(|key| put(key, &with_check("20s"))).collect();
    for (number, outcome) in apply(&registry, &node, ops).await.iter().enumerate() {
        match outcome {
            Outcome::Refused(said) if number == 2 => assert!(said.contains("somebody else"), "{said}"),
            outcome => assert!(number != 2 && *outcome == WRITTEN, "{number}: {outcome:?}"),
        }
    }
    assert!(esm.turns.load(Ordering::SeqCst) > 6, "it was tried again");
    connect(&quiet).await;
    write(&quiet, &node, vec![put(&keys[2], &with_check("20s"))]).await;
}

/// What Consul, or what stands before it, refuses as a whole: one transaction by itself is taken apart, all of them are
/// an outage.
#[tokio::test]
async fn a_transaction_that_is_refused_as_a_whole_is_taken_apart_only_where_others_pass() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    let registry = catalog(&proxy.addr(), None);
    let node = connect(&registry).await;
    let keys: Vec<RowKey> = (0..9).map(|number| key(&node, &number.to_string())).collect();
    let ops = || keys.iter().map(|key| put(key, &full("10.0.0.1", None))).collect::<Vec<_>>();
    for (status, words) in [(400, "Failed to parse body"), (403, "not through here"), (409, "{}"), (413, "too large")] {
        let bad = keys[6].id.clone();
        let answer = Fault::Status(status, words.to_owned(), Vec::new());
        let one = answer.clone();
        proxy.set_fault(Fault::Rule(Arc::new(move |record| {
            String::from_utf8_lossy(&record.body).contains(&*bad).then(|| one.clone())
        })));
        for (number, outcome) in apply(&registry, &node, ops()).await.iter().enumerate() {
            match outcome {
                Outcome::Refused(said) if number == 6 => assert!(said.contains(words), "{said}"),
                outcome => assert!(number != 6 && *outcome == WRITTEN, "{status}, {number}: {outcome:?}"),
            }
        }
        proxy.clear();
        proxy.set_fault(Fault::Rule(Arc::new(move |record| record.is_write().then(|| answer.clone()))));
        for outcome in apply(&registry, &node, ops()).await {
            assert!(matches!(&outcome, Outcome::NotTried(trouble) if trouble.message.contains(words)), "{outcome:?}");
        }
        assert!(proxy.writes().len() <= 2, "one try, and a look whether others pass: {:?}", proxy.writes());
        proxy.set_fault(Fault::None);
        write(&registry, &node, keys.iter().map(remove).collect()).await;
    }
}

/// Whether writes are carried out is found out without a change.
#[tokio::test]
async fn a_write_that_changes_nothing_tells_whether_others_pass() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    let registries: [Box<dyn Registry>; 2] =
        [Box::new(agent(&proxy.addr(), None)), Box::new(catalog(&proxy.addr(), None))];
    // A Consul agent adds its own addresses to its node some time after it has started.
    let own_addresses = wait::until("Consul to complete its own node", Duration::from_secs(30), || async {
        let nodes = consul.api().get("/v1/catalog/nodes").await?;
        Ok((!nodes[0]["TaggedAddresses"].is_null()).then_some(()))
    });
    own_addresses.await.unwrap();
    for registry in registries {
        connect(&*registry).await;
        let before = consul.api().get("/v1/catalog/nodes").await.unwrap();
        registry.check_writes().await.unwrap();
        assert_eq!(consul.api().get("/v1/catalog/nodes").await.unwrap(), before);
        let none = Fault::Status(500, "No cluster leader".to_owned(), Vec::new());
        for fault in [Fault::Refuse, none] {
            proxy.set_fault(fault);
            let trouble = registry.check_writes().await.unwrap_err();
            assert!(!trouble.session_lost, "{trouble}");
        }
        proxy.set_fault(Fault::None);
        registry.check_writes().await.unwrap();
    }
}

fn tcp() -> Probe {
    Probe::Tcp { tls: None }
}

fn h2ping() -> Probe {
    Probe::H2Ping { tls: None }
}

fn placed(probe: Probe, interval: &str) -> PlacedCheck {
    let check = Check {
        name: "c".into(),
        probe,
        interval: interval.into(),
        timeout: "1s".into(),
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 0,
        notes: "".into(),
    };
    PlacedCheck { check: Arc::new(check), port: 8080 }
}

#[tokio::test]
async fn tokens_that_see_too_little_or_are_unknown_are_nobodys_fault() {
    let consul = consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await;
    let blind = r#"
        agent_prefix "" { policy = "read" }
        node_prefix "" { policy = "write" }
        service "user_service" { policy = "write" }
    "#;
    let blind = token(&consul, blind).await;
    let unknown = "99999999-2222-3333-4444-555555555555";
    for of in [
        |address: &str, token: &str| Box::new(agent(address, Some(token))) as Box<dyn Registry>,
        |address: &str, token: &str| Box::new(catalog(address, Some(token))) as Box<dyn Registry>,
    ] {
        let stranger = of(&consul.http_addr(), unknown).connect().await.unwrap_err();
        assert!(stranger.message.contains("not known to Consul") && !stranger.session_lost, "{stranger}");

        let able = of(&consul.http_addr(), consul.management_token().unwrap());
        let node = connect(&*able).await;
        let hidden = Registration { service: "hidden".into(), ..full("10.0.0.9", None) };
        write(&*able, &node, vec![put(&key(&node, "hidden"), &hidden)]).await;
        // An agent shows itself to such a token. The catalog does not show its servers.
        let registry = of(&consul.http_addr(), &blind);
        let filtered = async {
            registry.connect().await.map(drop)?;
            registry.read().await.map(drop)
        };
        let filtered = filtered.await.unwrap_err();
        assert!(filtered.message.contains("may not read everything"), "{filtered}");
    }
}

#[tokio::test]
async fn the_names_of_others_are_told_whole_or_not_at_all() {
    let consul = consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await;
    let blind =
        token(&consul, "node_prefix \"\" { policy = \"write\" }\nagent_prefix \"\" { policy = \"read\" }").await;
    let instance = |id: &str, name: &str, meta: Value| {
        json!({ "Node": "machine", "Address": "192.0.2.1",
            "Service": { "ID": id, "Service": name, "Port": 80, "Meta": meta } })
    };
    let (ours, another) = (identity().cluster, "another");
    for row in [
        instance("Web", "Web", json!({})),
        instance("another:shop:api:api:10.0.0.1:80", "api", json!({ "lictor-cluster": another })),
        // Ours: by its mark, by its ID when a resource has left it behind, and by its ID with another mark.
        instance("x", "marked", json!({ "lictor-cluster": ours.as_str() })),
        instance(&format!("{ours}:shop:left:left:10.0.0.1:80"), "left", json!({})),
        instance(&format!("{ours}:shop:edited:edited:10.0.0.1:80"), "edited", json!({ "lictor-cluster": another })),
    ] {
        consul.api().put("/v1/catalog/register", &row).await.unwrap();
    }
    for of in [
        |address: &str, token: &str| Box::new(agent(address, Some(token))) as Box<dyn Registry>,
        |address: &str, token: &str| Box::new(catalog(address, Some(token))) as Box<dyn Registry>,
    ] {
        let names = of(&consul.http_addr(), consul.management_token().unwrap()).names_of_others().await.unwrap();
        assert_eq!(names, ["Web", "api", "consul"].map(Str::from).into());
        let filtered = of(&consul.http_addr(), &blind).names_of_others().await.unwrap_err();
        assert!(filtered.message.contains("may not read everything"), "{filtered}");
    }
}

async fn token(consul: &Consul, policy: &str) -> String {
    let api = consul.api();
    let name = format!("policy-{}", policy.len());
    api.put("/v1/acl/policy", &json!({ "Name": name, "Rules": policy })).await.unwrap();
    let made = api.put("/v1/acl/token", &json!({ "Policies": [{ "Name": name }] })).await.unwrap();
    made["SecretID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_deleted_behind_the_agent_is_seen_in_the_catalog() {
    let consul = consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await;
    let policy = r#"
        agent_prefix "" { policy = "read" }
        node_prefix "" { policy = "read" }
        service_prefix "" { policy = "write" }
    "#;
    let short_lived = token(&consul, policy).await;
    let first = agent(&consul.http_addr(), Some(&short_lived));
    let node = connect(&first).await;
    let instance = key(&node, "a");
    let registration = full("10.0.0.1", Some(Health::Passing));
    write(&first, &node, vec![put(&instance, &registration)]).await;

    let accessor = consul.api_with_token(Some(&short_lived)).get("/v1/acl/token/self").await.unwrap();
    let path = format!("/v1/acl/token/{}", accessor["AccessorID"].as_str().unwrap());
    consul.api().delete(&path).await.unwrap();
    let second = agent(&consul.http_addr(), consul.management_token());
    connect(&second).await;
    write(&second, &node, vec![readiness(&instance, &registration, Health::Critical)]).await;
    wait::until("the row to be held, but not shown", SOON, || async {
        let rows = second.read().await?;
        let row = &rows[&instance];
        Ok((!row.shown && row.registration.readiness == Some(Health::Critical)).then_some(()))
    })
    .await
    .unwrap();
    write(&second, &node, vec![put(&instance, &down_of(&registration))]).await;
    // A registration that only brings a new token waits for the agent's next full sync, once a minute.
    assert_eq!(settled_within(&second, Duration::from_mins(3)).await[&instance].health, Health::Critical);
}

#[tokio::test]
async fn an_agent_keeps_readiness_over_its_restart() {
    let consul = consul(ConsulOptions { persistent: true, ..ConsulOptions::default() }).await;
    let registry = agent(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let (up, down, moved) = (key(&node, "up"), key(&node, "down"), key(&node, "moved"));
    let registration = full("10.0.0.1", Some(Health::Passing));
    let ops = vec![put(&up, &registration), put(&down, &down_of(&registration)), put(&moved, &registration)];
    write(&registry, &node, ops).await;
    // A Put of what the agent knows already has to move the check too.
    write(&registry, &node, vec![put(&moved, &down_of(&registration))]).await;
    let before = settled(&registry).await;
    consul.kill().unwrap();
    let unreachable = registry.read().await.unwrap_err();
    assert!(!unreachable.session_lost, "{unreachable}");
    let outcomes = apply(&registry, &node, vec![remove(&up), remove(&down)]).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::NotTried(_))), "{outcomes:?}");
    consul.start_again().await.unwrap();
    assert_eq!(settled(&registry).await, before);
}

#[tokio::test]
async fn another_agent_is_not_taken_for_the_one_we_knew() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = agent(&consul.http_addr(), None);
    let node = connect(&registry).await;
    write(&registry, &node, vec![put(&key(&node, "a"), &full("10.0.0.1", None))]).await;
    // In memory: it comes back empty, as another one.
    consul.kill().unwrap();
    consul.start_again().await.unwrap();
    assert!(registry.read().await.unwrap_err().session_lost);
    connect(&registry).await;
    assert_eq!(registry.read().await.unwrap(), Rows::new());
}

#[tokio::test]
async fn an_earlier_lictor_writes_no_more() {
    let consul = consul(ConsulOptions::default()).await;
    let (first, second) = (catalog(&consul.http_addr(), None), catalog(&consul.http_addr(), None));
    let node = connect(&first).await;
    let (a, b) = (key(&node, "a"), key(&node, "b"));
    let registration = full("10.0.0.1", Some(Health::Passing));
    write(&first, &node, vec![put(&a, &registration)]).await;
    connect(&second).await;
    let outcomes = apply(&first, &node, vec![put(&b, &registration), remove(&a)]).await;
    for outcome in &outcomes {
        assert!(matches!(outcome, Outcome::NotTried(_)), "{outcome:?}");
        assert!(trouble(outcome).session_lost && trouble(outcome).retry_after.is_some());
    }
    assert!(first.read().await.unwrap_err().session_lost);
    assert_eq!(second.read().await.unwrap().keys().collect::<Vec<_>>(), [&a]);
    write(&second, &node, vec![put(&b, &registration)]).await;
    // Fences alone leave the marker as it is.
    let marker = marker(&consul).await;
    assert_eq!(marker["Meta"]["lictor-term"], "2");
    assert_eq!(marker["ModifyIndex"], marker_after(&second, &node, &consul).await["ModifyIndex"]);
}

async fn marker(consul: &Consul) -> Value {
    consul.api().get("/v1/catalog/node-services/lictor-test").await.unwrap()["Node"].clone()
}

async fn marker_after(registry: &dyn Registry, node: &Str, consul: &Consul) -> Value {
    write(registry, node, vec![remove(&key(node, "b"))]).await;
    marker(consul).await
}

#[tokio::test]
async fn an_emptied_consul_is_noticed() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let instance = key(&node, "a");
    let registration = full("10.0.0.1", None);
    write(&registry, &node, vec![put(&instance, &registration)]).await;
    consul.kill().unwrap();
    consul.start_again().await.unwrap();
    assert!(registry.read().await.unwrap_err().session_lost);
    let outcome = apply(&registry, &node, vec![put(&instance, &registration)]).await.remove(0);
    assert!(trouble(&outcome).session_lost, "{outcome:?}");
    connect(&registry).await;
    assert_eq!(registry.read().await.unwrap(), Rows::new());
    write(&registry, &node, vec![put(&instance, &registration)]).await;
}

/// What changes in the catalog shows in the indexes, whoever changes it, and nothing else does: where they stay, nothing is read.
#[tokio::test]
async fn indexes_move_with_each_change_and_with_nothing_else() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let api = consul.api();
    let (one, two) = (key(&node, "one"), key(&node, "two"));
    let up = full("10.0.0.1", Some(Health::Passing));
    write(&registry, &node, vec![put(&one, &up), put(&two, &up)]).await;
    // A new server still writes its own node for a moment.
    let mut before = wait::until("the server to have written its own node", SOON, || async {
        let before = registry.indexes().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((registry.indexes().await? == before).then_some(before))
    })
    .await
    .unwrap();

    let edited = json!({ "ID": &*one.id, "Service": "user_service", "Address": "10.0.0.9", "Port": 1 });
    let critical = json!({ "Node": &*node, "CheckID": format!("{}:readiness", one.id), "ServiceID": &*one.id, "Status": "critical" });
    let elsewhere = json!({ "Node": "other", "Address": "10.9.9.9", "Service": { "Service": "other" } });
    let node_alone = json!({ "Node": &*node, "Address": "10.9.9.8", "SkipNodeUpdate": false });
    let by_hand = [
        (
            "an instance is edited",
            "register",
            json!({ "Node": &*node, "SkipNodeUpdate": true, "Service": edited }),
            true,
            false,
        ),
        (
            "a check is edited",
            "register",
            json!({ "Node": &*node, "SkipNodeUpdate": true, "Check": critical }),
            false,
            true,
        ),
        ("a service of others comes", "register", elsewhere, true, false),
        ("a node is edited", "register", node_alone, true, false),
        ("an instance is deleted", "deregister", json!({ "Node": &*node, "ServiceID": &*one.id }), true, true),
        ("a node is deleted", "deregister", json!({ "Node": "other" }), true, true),
    ];
    let mut rows = Vec::new();
    for (what, how, body, instances, checks) in by_hand {
        api.put(&format!("/v1/catalog/{how}"), &body).await.unwrap();
        rows.push((what, instances, checks));
        let after = registry.indexes().await.unwrap();
        assert_eq!((after.instances != before.instances, after.checks != before.checks), (instances, checks), "{what}");
        before = after;
    }
    registry.check_writes().await.unwrap();
    assert_eq!(registry.indexes().await.unwrap(), before, "a write that changes nothing");
    write(&registry, &node, vec![put(&two, &up)]).await;
    assert_eq!(registry.indexes().await.unwrap().checks, before.checks, "what is there already");
    write(&registry, &node, vec![readiness(&two, &up, Health::Critical)]).await;
    let after = registry.indexes().await.unwrap();
    assert_eq!(
        (after.instances == before.instances, after.checks == before.checks),
        (true, false),
        "our own readiness"
    );
    consul.kill().unwrap();
    consul.start_again().await.unwrap();
    assert!(registry.indexes().await.unwrap_err().session_lost, "an emptied Consul");
}

#[tokio::test]
async fn a_plain_registration_takes_neither_a_node_nor_the_marker_from_us() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let instance = key(&node, "a");
    write(&registry, &node, vec![put(&instance, &full("10.0.0.1", Some(Health::Passing)))]).await;
    let node_of = async |name: &str| consul.api().get(&format!("/v1/catalog/node-services/{name}")).await.unwrap();
    let theirs = |name: &str| json!({ "Node": name, "Address": "10.9.9.9", "NodeMeta": { "rack": "7" }, "Service": { "Service": "theirs" } });

    // In another case, as Consul takes it.
    consul.api().put("/v1/catalog/register", &theirs(&node.to_uppercase())).await.unwrap();
    let rows = registry.read().await.unwrap();
    assert_eq!(rows.keys().collect::<Vec<_>>(), [&instance]);
    assert_eq!(rows[&instance].ownership, Ownership::Ours(ResourceKey::new("shop", "user")));
    assert!(registry.placement().unwrap().node_for("worker").is_some(), "it is still where instances go");
    registry.tidy(&BTreeMap::new()).await.unwrap();
    let there = node_of(&node).await;
    assert_eq!(there["Node"]["Node"], json!(*node));
    let marked =
        json!({ "managed-by": "lictor", "lictor-cluster": "test", "lictor-cluster-uid": "uid-1", "rack": "7" });
    assert_eq!(there["Node"]["Meta"], marked);
    // A write restores the mark as well, without a look before it.
    consul.api().put("/v1/catalog/register", &theirs(&node)).await.unwrap();
    registry.read_node(&node).await.unwrap();
    write(&registry, &node, vec![put(&key(&node, "b"), &full("10.0.0.2", None))]).await;
    assert_eq!(node_of(&node).await["Node"]["Meta"], marked);

    // The marker: what was written before is not known to have landed, so that we begin anew, above our last term.
    consul.api().put("/v1/catalog/register", &theirs("lictor-test")).await.unwrap();
    let trouble = registry.read().await.unwrap_err();
    assert!(trouble.session_lost && trouble.message.contains("lost its mark"), "{trouble}");
    connect(&registry).await;
    assert_eq!(marker(&consul).await["Meta"]["lictor-term"], "2");
    consul.api().put("/v1/catalog/register", &theirs("lictor-test")).await.unwrap();
    let next = catalog(&consul.http_addr(), None);
    connect(&next).await;
    assert_eq!(next.read().await.unwrap().len(), 2);
    // Without a node of ours it may be anybody's.
    write(&next, &node, vec![remove(&instance), remove(&key(&node, "b"))]).await;
    consul.api().put("/v1/catalog/deregister", &json!({ "Node": &*node })).await.unwrap();
    consul.api().put("/v1/catalog/register", &theirs("lictor-test")).await.unwrap();
    let refused = catalog(&consul.http_addr(), None).connect().await.unwrap_err();
    assert!(refused.message.contains("somebody else's node"), "{refused}");
    let services = node_of("lictor-test").await["Services"].as_array().map(Vec::len);
    next.connect().await.unwrap();
    next.dismantle().await.unwrap();
    assert_eq!(
        node_of("lictor-test").await["Services"].as_array().map(Vec::len),
        services,
        "theirs went with the marker"
    );
}

#[tokio::test]
async fn a_row_whose_mark_was_changed_is_still_ours_where_nobody_else_makes_such() {
    let consul = consul(ConsulOptions::default()).await;
    for registry in [&agent(&consul.http_addr(), None) as &dyn Registry, &catalog(&consul.http_addr(), None)] {
        let node = connect(registry).await;
        let instance = key(&node, "a");
        let ours = full("10.0.0.1", Some(Health::Passing));
        write(registry, &node, vec![put(&instance, &ours)]).await;
        let mut changed = ours.clone();
        changed.meta.insert("lictor-cluster-uid".into(), "other".into());
        let service = json!({ "ID": &*instance.id, "Address": "10.0.0.1", "Port": 8080, "Meta": changed.meta.iter().map(|(k, v)| (k.to_string(), json!(**v))).collect::<serde_json::Map<_, _>>() });
        let on_agent = *node == *consul.node_name();
        let put_theirs = async || {
            let mut service = service.clone();
            let (path, body) = if on_agent {
                service["Name"] = json!("user_service");
                ("/v1/agent/service/register", service)
            } else {
                service["Service"] = json!("user_service");
                ("/v1/catalog/register", json!({ "Node": &*node, "SkipNodeUpdate": true, "Service": service }))
            };
            consul.api().put(path, &body).await.unwrap();
        };
        put_theirs().await;
        let row = &registry.read().await.unwrap()[&instance];
        assert_eq!(row.ownership, Ownership::Ours(ResourceKey::new("shop", "user")), "{node}");
        assert_eq!(&**row.registration.meta.get("lictor-cluster-uid").unwrap(), "other");
        // Who comes later knows it by its node only.
        let later: Box<dyn Registry> = if on_agent {
            Box::new(agent(&consul.http_addr(), None))
        } else {
            Box::new(catalog(&consul.http_addr(), None))
        };
        later.connect().await.unwrap();
        let row = &later.read().await.unwrap()[&instance];
        assert_eq!(matches!(row.ownership, Ownership::Other(_)), on_agent, "{node}: {:?}", row.ownership);
        // What was taken away, and made by somebody else since, is not ours.
        if on_agent {
            write(registry, &node, vec![remove(&instance)]).await;
            put_theirs().await;
            let row = &registry.read().await.unwrap()[&instance];
            assert!(matches!(row.ownership, Ownership::Other(_)), "{:?}", row.ownership);
        }
    }
}

#[tokio::test]
async fn instances_go_elsewhere_where_an_agent_has_their_node() {
    let name = "test-worker";
    let consul = consul(ConsulOptions { node_name: Some(name.to_owned()), ..ConsulOptions::default() }).await;
    let node = Str::from(name);
    let registry = catalog(&consul.http_addr(), None);
    registry.connect().await.unwrap();
    // Before anything was read, the write finds out.
    let outcomes = apply(&registry, &node, vec![put(&key(&node, "a"), &full("10.0.0.1", None))]).await;
    assert!(matches!(&outcomes[0], Outcome::Refused(words) if words.contains("agent's own")), "{outcomes:?}");
    assert_eq!(registry.placement().unwrap().node_for("worker"), None);
    let next = catalog(&consul.http_addr(), None);
    next.connect().await.unwrap();
    assert_eq!(next.read().await.unwrap(), Rows::new());
    assert_eq!(next.placement().unwrap().node_for("worker"), None);
    assert_eq!(next.placement().unwrap().node_for("other").as_deref(), Some("test-other"));
    let (placement, _) = catalog(&consul.http_addr(), None).survey().await.unwrap();
    assert_eq!(placement.node_for("worker"), None);
}

#[tokio::test]
async fn a_marker_that_is_not_as_we_left_it_is_noticed() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let touched = json!({ "Node": "lictor-test", "Address": "10.9.9.9", "NodeMeta": marker(&consul).await["Meta"] });
    consul.api().put("/v1/catalog/register", &touched).await.unwrap();
    let outcome = apply(&registry, &node, vec![remove(&key(&node, "a"))]).await.remove(0);
    assert!(trouble(&outcome).session_lost && trouble(&outcome).retry_after.is_none(), "{outcome:?}");
    connect(&registry).await;
    write(&registry, &node, vec![remove(&key(&node, "a"))]).await;
}

#[tokio::test]
async fn what_is_under_way_while_the_fence_is_raised_is_sent_again() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    let registry = catalog(&proxy.addr(), None);
    let node = connect(&registry).await;
    let registration = full("10.0.0.1", None);
    let slow_ones = AtomicUsize::new(0);
    let hold = Hold::default();
    let fault = Fault::Hold(hold.clone());
    proxy.set_fault(Fault::Rule(Arc::new(move |record| {
        let body = String::from_utf8_lossy(&record.body);
        if body.contains("lost") {
            return Some(Fault::DropAnswer);
        }
        (body.contains("slow") && slow_ones.fetch_add(1, Ordering::SeqCst) == 0).then(|| fault.clone())
    })));
    let sent = || proxy.writes().iter().filter(|write| String::from_utf8_lossy(&write.body).contains("slow")).count();
    let slow_node = Str::from("test-slow");
    let slow = key(&slow_node, "a");
    let others = async {
        wait::until("the slow one is under way", SOON, || async { Ok((sent() > 0).then_some(())) }).await.unwrap();
        let outcome = apply(&registry, &node, vec![put(&key(&node, "lost"), &registration)]).await.remove(0);
        assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
        write(&registry, &node, vec![put(&key(&node, "a"), &registration)]).await;
        hold.release();
    };
    tokio::join!(write(&registry, &slow_node, vec![put(&slow, &registration)]), others);
    assert_eq!(sent(), 2, "once under the old fence, once under the new one");
    assert_eq!(registry.read().await.unwrap().len(), 3);
}

/// Agents that answer in turn.
struct InTurn {
    agents: Vec<Arc<Http>>,
    requests: AtomicUsize,
    turns: AtomicBool,
}

impl Transport for InTurn {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        let number = self.requests.fetch_add(usize::from(self.turns.load(Ordering::SeqCst)), Ordering::SeqCst);
        self.agents[number % self.agents.len()].send(request)
    }

    fn addresses(&self) -> usize {
        1
    }

    fn has_token(&self) -> bool {
        true
    }

    fn tenancy(&self) -> &Tenancy {
        &Tenancy::DEFAULT
    }
}

#[tokio::test]
async fn agents_that_answer_in_turn_are_found_out() {
    let (one, other) = (consul(ConsulOptions::default()).await, consul(ConsulOptions::default()).await);
    let agents = vec![http(&one.http_addr(), None), http(&other.http_addr(), None)];
    let transport = Arc::new(InTurn { agents, requests: AtomicUsize::new(0), turns: AtomicBool::new(true) });
    let registry = Agent::new(identity(), Arc::clone(&transport) as Arc<dyn Transport>);
    let several = registry.connect().await.unwrap_err();
    assert!(several.message.contains("several agents"), "{several}");

    // By chance the same one answered each time; later the other one does, and then the first again.
    transport.turns.store(false, Ordering::SeqCst);
    connect(&registry).await;
    registry.read().await.unwrap();
    transport.requests.fetch_add(1, Ordering::SeqCst);
    let replaced = registry.read().await.unwrap_err();
    assert!(replaced.session_lost && replaced.message.contains("replaced"), "{replaced}");
    connect(&registry).await;
    transport.requests.fetch_add(1, Ordering::SeqCst);
    let several = registry.read().await.unwrap_err();
    assert!(several.session_lost && several.message.contains("several agents"), "{several}");
}

#[tokio::test]
async fn a_second_cluster_of_the_same_name_is_found_out() {
    let consul = consul(ConsulOptions::default()).await;
    connect(&catalog(&consul.http_addr(), None)).await;
    let other = Identity { uid: "uid-2".into(), ..identity() };
    let refused = Catalog::new(other, http(&consul.http_addr(), None), 4).connect().await.unwrap_err();
    assert!(refused.message.contains("uid-1") && refused.message.contains("--cluster-name"), "{refused}");
    assert_eq!(marker(&consul).await["Meta"]["lictor-term"], "1");
}

#[tokio::test]
async fn a_cluster_whose_nodes_could_be_those_of_another_does_not_begin() {
    let consul = consul(ConsulOptions::default()).await;
    catalog(&consul.http_addr(), None).connect().await.unwrap();
    let named = |name: &str| {
        let identity = Identity { cluster: ClusterName::new(name).unwrap(), uid: format!("uid-{name}").into() };
        Catalog::new(identity, http(&consul.http_addr(), None), 4)
    };
    let refused = named("test-eu").connect().await.unwrap_err();
    assert!(refused.message.contains("--cluster-name") && refused.message.contains("test-eu"), "{refused}");
    named("tes").connect().await.unwrap();
    // One that has been here before goes on.
    let meta = json!({ "managed-by": "lictor", "lictor-cluster": "test-us", "lictor-cluster-uid": "uid-test-us" });
    let there = json!({ "Node": "test-us-a", "Address": "10.9.9.9", "NodeMeta": meta });
    consul.api().put("/v1/catalog/register", &there).await.unwrap();
    named("test-us").connect().await.unwrap();
}

#[tokio::test]
async fn a_foreign_node_of_our_name_is_left_alone() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let foreign = json!({ "Node": &*node, "Address": "10.9.9.9", "NodeMeta": { "who": "somebody" } });
    consul.api().put("/v1/catalog/register", &foreign).await.unwrap();
    let ops = vec![put(&key(&node, "a"), &full("10.0.0.1", None)), remove(&key(&node, "b"))];
    let outcomes = apply(&registry, &node, ops).await;
    assert!(
        matches!(&outcomes[0], Outcome::Refused(words) if words.contains("does not belong to this cluster")),
        "{outcomes:?}"
    );
    assert_eq!(outcomes[1], WRITTEN);
    let there = consul.api().get(&format!("/v1/catalog/node-services/{node}")).await.unwrap();
    assert_eq!(there["Node"]["Meta"], json!({ "who": "somebody" }));
    let marker = Str::from("lictor-test");
    let outcomes = apply(&registry, &marker, vec![put(&key(&marker, "a"), &full("10.0.0.1", None))]).await;
    assert!(matches!(&outcomes[0], Outcome::Refused(words) if words.contains("marker")), "{outcomes:?}");
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_then_found_out() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    for registry in [&agent(&proxy.addr(), None) as &dyn Registry, &catalog(&proxy.addr(), None)] {
        let node = connect(registry).await;
        let (a, b) = (key(&node, "a"), key(&node, "b"));
        let registration = full("10.0.0.1", None);
        proxy.set_fault(Fault::DropAnswer);
        let outcomes = apply(registry, &node, vec![put(&a, &registration)]).await;
        assert!(matches!(outcomes[0], Outcome::Unknown(_)), "{outcomes:?}");
        proxy.set_fault(Fault::None);
        assert_eq!(registrations(&settled(registry).await), rows_of(&[(&a, &registration)]));
        write(registry, &node, vec![put(&b, &registration)]).await;
    }
    // The fence was raised after the doubt: what had not landed by then never would have.
    assert_eq!(marker(&consul).await["Meta"]["lictor-term"], "2");

    // Twice in a row, the second time at raising the fence: nobody else took over, so nobody is waited for.
    let registry = catalog(&proxy.addr(), None);
    let node = connect(&registry).await;
    proxy.set_fault(Fault::DropAnswer);
    for _ in 0..2 {
        let outcome = apply(&registry, &node, vec![remove(&key(&node, "a"))]).await.remove(0);
        assert!(!trouble(&outcome).session_lost, "{outcome:?}");
    }
    proxy.set_fault(Fault::None);
    let confused = registry.read().await.unwrap_err();
    assert!(confused.session_lost && confused.retry_after.is_none(), "{confused:?}");
    connect(&registry).await;
    assert!(!registry.read().await.unwrap().contains_key(&key(&node, "a")));
}

#[tokio::test]
async fn consul_asking_for_a_pause_is_heard() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    for registry in [&agent(&proxy.addr(), None) as &dyn Registry, &catalog(&proxy.addr(), None)] {
        let node = connect(registry).await;
        let limits = vec![("Retry-After", "7".to_owned())];
        proxy.set_fault(Fault::Status(429, "rate limit exceeded".to_owned(), limits));
        let ops = vec![put(&key(&node, "a"), &full("10.0.0.1", None)), remove(&key(&node, "b"))];
        for outcome in apply(registry, &node, ops).await {
            assert!(matches!(outcome, Outcome::NotTried(_)), "{outcome:?}");
            assert_eq!(trouble(&outcome).retry_after, Some(Duration::from_secs(7)));
        }
        proxy.set_fault(Fault::Status(500, "leadership lost while committing log".to_owned(), vec![]));
        let outcomes = apply(registry, &node, vec![remove(&key(&node, "b"))]).await;
        assert!(matches!(outcomes[0], Outcome::Unknown(_)), "{outcomes:?}");
        proxy.set_fault(Fault::None);
        assert_eq!(registry.read().await.unwrap(), Rows::new());
    }
}

#[tokio::test]
async fn more_than_a_transaction_holds_is_cut() {
    let consul = consul(ConsulOptions {
        extra_hcl: "limits { txn_max_req_len = 60000 kv_max_value_size = 60000 }".to_owned(),
        ..ConsulOptions::default()
    })
    .await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let registration = full("10.0.0.1", Some(Health::Passing));
    let ops = (0..150).map(|number| put(&key(&node, &number.to_string()), &registration)).collect();
    write(&registry, &node, ops).await;
    let rows = registry.read().await.unwrap();
    assert_eq!(rows.len(), 150);
    assert!(rows.values().all(|row| *row.registration == registration));
}

#[tokio::test]
async fn nodes_are_made_moved_and_taken_away() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = catalog(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let instance = key(&node, "a");
    let address_of = || async {
        let found = consul.api().get(&format!("/v1/catalog/node-services/{node}")).await.unwrap();
        found["Node"]["Address"].as_str().map(str::to_owned)
    };
    write(&registry, &node, vec![put(&instance, &full("10.0.0.1", None))]).await;
    assert_eq!(address_of().await.as_deref(), Some("192.0.2.1"));
    let addresses: BTreeMap<Str, IpAddr> = [("worker".into(), "10.1.1.1".parse().unwrap())].into();
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await.as_deref(), Some("10.1.1.1"));
    let rows = registry.read().await.unwrap();
    assert!(rows.contains_key(&instance), "a move leaves what is on the node");

    // A node that goes behind our back is made again.
    let gone = json!({ "Node": &*node });
    consul.api().put("/v1/catalog/deregister", &gone).await.unwrap();
    let back = readiness(&instance, &full("10.0.0.1", None), Health::Passing);
    write(&registry, &node, vec![back]).await;
    assert!(registry.read().await.unwrap().contains_key(&instance));

    // Empty for a minute, and not sooner, it goes. The clock is ours; Consul's runs on.
    write(&registry, &node, vec![remove(&instance)]).await;
    registry.tidy(&addresses).await.unwrap();
    pass(Duration::from_secs(50)).await;
    registry.tidy(&addresses).await.unwrap();
    assert!(address_of().await.is_some());
    let foreign = json!({ "Node": &*node, "SkipNodeUpdate": true, "Service": { "Service": "theirs" } });
    consul.api().put("/v1/catalog/register", &foreign).await.unwrap();
    pass(Duration::from_secs(20)).await;
    registry.tidy(&addresses).await.unwrap();
    assert!(address_of().await.is_some(), "somebody else uses it");
    let foreign = json!({ "Node": &*node, "ServiceID": "theirs" });
    consul.api().put("/v1/catalog/deregister", &foreign).await.unwrap();
    registry.read().await.unwrap();
    registry.tidy(&addresses).await.unwrap();
    pass(Duration::from_secs(70)).await;
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await, None);
    assert!(!marker(&consul).await.is_null());
    write(&registry, &node, vec![put(&instance, &full("10.0.0.1", None))]).await;
}

/// If a change of a node does not reach Consul, nothing changes there, so no index tells to read the node again.
#[tokio::test]
async fn a_change_of_a_node_that_never_arrived_is_made_again() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    let registry = catalog(&proxy.addr(), None);
    let node = connect(&registry).await;
    let instance = key(&node, "a");
    let address_of = || async {
        let found = consul.api().get(&format!("/v1/catalog/node-services/{node}")).await.unwrap();
        found["Node"]["Address"].as_str().map(str::to_owned)
    };
    let fails = |part: &'static str| {
        let is_meant = move |record: &Record| String::from_utf8_lossy(&record.body).contains(part);
        let fault = Fault::Status(500, "No cluster leader".to_owned(), Vec::new());
        Fault::Rule(Arc::new(move |record| is_meant(record).then(|| fault.clone())))
    };
    write(&registry, &node, vec![put(&instance, &full("10.0.0.1", None))]).await;

    let addresses: BTreeMap<Str, IpAddr> = [("worker".into(), "10.1.1.1".parse().unwrap())].into();
    proxy.set_fault(fails("10.1.1.1"));
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await.as_deref(), Some("192.0.2.1"));
    proxy.set_fault(Fault::None);
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await.as_deref(), Some("10.1.1.1"));

    write(&registry, &node, vec![remove(&instance)]).await;
    registry.tidy(&addresses).await.unwrap();
    pass(Duration::from_secs(70)).await;
    proxy.set_fault(fails("delete-cas"));
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await.as_deref(), Some("10.1.1.1"));
    proxy.set_fault(Fault::None);
    registry.tidy(&addresses).await.unwrap();
    assert!(address_of().await.is_some(), "it is empty since the read, as far as is known");
    pass(Duration::from_secs(70)).await;
    registry.tidy(&addresses).await.unwrap();
    assert_eq!(address_of().await, None);
}

/// Lets time pass for the registry, and none for whoever else looks at a clock.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Lets so many requests through; whoever sends the next one dies before it leaves, or with its answer on the way.
struct Dying {
    inner: Arc<Http>,
    left: AtomicUsize,
    last_arrives: bool,
}

impl Transport for Dying {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        Box::pin(async move {
            let left = self.left.load(Ordering::SeqCst);
            if left > 0 {
                self.left.store(left - 1, Ordering::SeqCst);
                return self.inner.send(request).await;
            }
            if self.last_arrives {
                let _ = self.inner.send(request).await;
            }
            Err(TransportError::NoAnswer("dead".to_owned()))
        })
    }

    fn addresses(&self) -> usize {
        1
    }

    fn has_token(&self) -> bool {
        true
    }

    fn tenancy(&self) -> &Tenancy {
        &Tenancy::DEFAULT
    }
}

const HEIR: &str = "uid-2";

fn registry_of(identity: Identity, transport: Arc<dyn Transport>, in_catalog: bool) -> Box<dyn Registry> {
    if in_catalog { Box::new(Catalog::new(identity, transport, 4)) } else { Box::new(Agent::new(identity, transport)) }
}

/// The way from the cluster of the tests to one of its name with another uid.
fn takeover(transport: &Arc<dyn Transport>, in_catalog: bool) -> Box<dyn Takeover> {
    let heir = Identity { uid: HEIR.into(), ..identity() };
    if in_catalog {
        Box::new(CatalogTakeover::new(Catalog::new(heir, Arc::clone(transport), 1), &identity().uid))
    } else {
        Box::new(AgentTakeover::new(Agent::new(heir, Arc::clone(transport)), &identity().uid))
    }
}

/// All of it, but for the time that a sign of life may take.
async fn take_over(takeover: &dyn Takeover) -> Result<Taken, Unavailable> {
    if takeover.survey().await?.is_empty() {
        return Ok(Taken::default());
    }
    takeover.challenge().await?;
    assert!(!takeover.is_answered().await?, "nobody lives");
    takeover.take().await
}

#[tokio::test]
async fn a_takeover_that_dies_anywhere_is_finished_by_the_next() {
    for (in_catalog, last_arrives) in [(false, false), (false, true), (true, false), (true, true)] {
        let consul = consul(ConsulOptions::default()).await;
        let http = http(&consul.http_addr(), None);
        let old = registry_of(identity(), http.clone(), in_catalog);
        let node = connect(&*old).await;
        let other = if in_catalog { Str::from("test-other") } else { Arc::clone(&node) };
        let (up, down) = (full("10.0.0.1", Some(Health::Passing)), full("10.0.0.2", Some(Health::Critical)));
        let keys = [key(&node, "a"), key(&node, "b"), key(&other, "c")];
        write(&*old, &node, vec![put(&keys[0], &up), put(&keys[1], &down)]).await;
        write(&*old, &other, vec![put(&keys[2], &up)]).await;
        settled(&*old).await;

        let mut deaths = 0;
        loop {
            let dying = Dying { inner: Arc::clone(&http), left: AtomicUsize::new(deaths), last_arrives };
            let transport: Arc<dyn Transport> = Arc::new(dying);
            if take_over(&*takeover(&transport, in_catalog)).await.is_ok() {
                break;
            }
            deaths += 1;
            assert!(deaths < 200, "it never gets to its end");
        }
        assert!(deaths > 5, "{deaths} deaths show nothing");

        let new = registry_of(Identity { uid: HEIR.into(), ..identity() }, http.clone(), in_catalog);
        connect(&*new).await;
        let rows = settled(&*new).await;
        let of_heir = |registration: &Registration| {
            let mut of_heir = registration.clone();
            of_heir.meta.insert("lictor-cluster-uid".into(), HEIR.into());
            of_heir
        };
        let (up, down) = (of_heir(&up), of_heir(&down));
        assert_eq!(registrations(&rows), rows_of(&[(&keys[0], &up), (&keys[1], &down), (&keys[2], &up)]));
        assert!(rows.values().all(Row::is_ours), "{rows:?}");
        write(&*new, &node, vec![remove(&keys[0])]).await;
        write(&*new, &other, vec![put(&key(&other, "d"), &up)]).await;
        if in_catalog {
            let outcome = apply(&*old, &node, vec![put(&keys[0], &full("10.0.0.1", None))]).await.remove(0);
            assert!(matches!(outcome, Outcome::NotTried(_)), "the old one still writes: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_taken_over_from_who_lives() {
    let consul = consul(ConsulOptions::default()).await;
    let transport: Arc<dyn Transport> = http(&consul.http_addr(), None);
    for in_catalog in [false, true] {
        let old = registry_of(identity(), Arc::clone(&transport), in_catalog);
        let node = connect(&*old).await;
        let (one, up) = (key(&node, "one"), full("10.0.0.1", Some(Health::Passing)));
        write(&*old, &node, vec![put(&one, &up)]).await;
        let before = registrations(&settled(&*old).await);

        let takeover = takeover(&transport, in_catalog);
        assert!(takeover.challenge().await.unwrap(), "there is somebody to wait for");
        assert!(!takeover.is_answered().await.unwrap(), "nobody has looked yet");
        if in_catalog {
            let lost = old.read().await.unwrap_err();
            assert!(lost.session_lost && lost.retry_after.is_none(), "{lost:?}");
            connect(&*old).await;
        } else {
            let changed = registrations(&old.read().await.unwrap());
            assert!(changed != before, "a whole look does not see it");
            write(&*old, &node, vec![put(&one, &up)]).await;
        }
        assert!(takeover.is_answered().await.unwrap(), "nobody sees that it lives");
        let refused = takeover.take().await.unwrap_err();
        assert!(refused.message.contains("still writes"), "{refused}");
        assert_eq!(registrations(&settled(&*old).await), before);
        write(&*old, &node, vec![put(&one, &up)]).await;
    }
}

#[tokio::test]
async fn winding_down_leaves_the_rest_untried() {
    let consul = consul(ConsulOptions::default()).await;
    for registry in [&agent(&consul.http_addr(), None) as &dyn Registry, &catalog(&consul.http_addr(), None)] {
        let node = connect(registry).await;
        registry.wind_down();
        let outcomes = apply(registry, &node, vec![put(&key(&node, "a"), &full("10.0.0.1", None))]).await;
        assert!(matches!(outcomes[0], Outcome::NotTried(_)), "{outcomes:?}");
        assert_eq!(registry.read().await.unwrap(), Rows::new());
    }
}

#[tokio::test]
async fn tls_lets_in_whom_it_should() {
    let files = WorkDir::create("tls").unwrap();
    let (authority, stranger) = (Authority::new("consul").unwrap(), Authority::new("stranger").unwrap());
    let server = authority.server(vec!["server.dc1.consul".to_owned()]).unwrap();
    let client = authority.client("lictor", None).unwrap();
    let file = |name: &str, content: &str| files.write(name, content).unwrap();
    let ca = file("ca.pem", authority.certificate());
    let (cert, key) = (file("server.pem", &server.public), file("server.key", &server.private));
    let https = ports::free().unwrap();
    let extra_hcl = format!(
        "ports {{ https = {https} }}
         tls {{ https {{ ca_file = {ca:?}, cert_file = {cert:?}, key_file = {key:?}, verify_incoming = true }} }}"
    );
    let _consul = consul(ConsulOptions { extra_hcl, ..ConsulOptions::default() }).await;
    let good = ConsulSettings {
        ca_cert: Some(ca),
        client_cert: Some(file("client.pem", &client.public)),
        client_key: Some(file("client.key", &client.private)),
        tls_server_name: Some("server.dc1.consul".to_owned()),
        ..ConsulSettings::new(format!("https://127.0.0.1:{https}"))
    };
    lictor_testbed::init_tls();
    let connect = |settings: ConsulSettings| async move {
        Agent::new(identity(), Arc::new(Http::new(&settings).unwrap())).connect().await
    };
    connect(good.clone()).await.unwrap();
    connect(ConsulSettings { ca_cert: None, ssl_verify: false, tls_server_name: None, ..good.clone() }).await.unwrap();
    let other_ca = Some(file("other.pem", stranger.certificate()));
    for (bad, why) in [
        (ConsulSettings { tls_server_name: None, ..good.clone() }, "not valid for name"),
        (ConsulSettings { ca_cert: other_ca, ..good.clone() }, "other.pem has issued the server's certificate"),
        (
            ConsulSettings { client_cert: None, client_key: None, ..good.clone() },
            "the server asks for a client certificate",
        ),
    ] {
        let refused = connect(bad).await.unwrap_err();
        assert!(refused.message.contains(why), "{refused}");
    }
    let half = ConsulSettings { client_key: None, ..good };
    assert!(Http::new(&half).is_err());
}

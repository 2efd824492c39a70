//! Bundles that go to Consul in one transaction: what becomes of each, whatever becomes of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::{join, join_all};
use lictor::consul::catalog::Catalog;
use lictor::consul::transport::Transport;
use lictor::model::diff::Op;
use lictor::model::health::Health;
use lictor::model::ids::Str;
use lictor::model::registration::{Registration, RowKey};
use lictor::ports::{Bundle, Outcome, Registry};
use lictor_testbed::{Consul, ConsulOptions, Fault, Hold, Proxy, wait};
use serde_json::Value;

use crate::registries::{SOON, WRITTEN, connect, consul, full, http, identity, key, put};
use crate::{marker, trouble};

/// The most operations and bytes that Consul takes in a transaction by default.
const MOST_OPS: usize = 128;
const MOST_BYTES: usize = 512 * 1024;

/// A catalog that has one transaction under way at once, over a proxy to a Consul.
struct OneByOne {
    consul: Consul,
    proxy: Proxy,
    registry: Catalog,
}

impl OneByOne {
    async fn start(options: ConsulOptions) -> Self {
        let consul = consul(options).await;
        let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
        let registry = Catalog::new(identity(), http(&proxy.addr(), None) as Arc<dyn Transport>, 1);
        connect(&registry).await;
        Self { consul, proxy, registry }
    }

    /// Has bundles wait behind one that is under way until `meanwhile` is over, with these faults for all but the first.
    /// Answers what became of each; what was sent is in the proxy, the first one apart.
    async fn wait_behind_one(
        &self,
        bundles: &[Bundle],
        fault: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
        meanwhile: impl Future<Output = ()>,
    ) -> Vec<Vec<Outcome>> {
        let (hold, is_held) = (Hold::default(), AtomicBool::new(false));
        let gate = hold.clone();
        self.proxy.clear();
        self.proxy.set_fault(Fault::Rule(Arc::new(move |record| {
            if !record.is_write() {
                return None;
            }
            if is_held.swap(true, Ordering::SeqCst) {
                return fault(&String::from_utf8_lossy(&record.body));
            }
            Some(Fault::Hold(gate.clone()))
        })));
        let first = bundle("first", 1, &full("10.0.0.9", None));
        let all = join_all([&first].into_iter().chain(bundles).map(|bundle| self.registry.apply(bundle)));
        let release = async {
            wait::until("the first one is under way", SOON, || async {
                Ok((!self.proxy.writes().is_empty()).then_some(()))
            })
            .await
            .unwrap();
            meanwhile.await;
            hold.release();
        };
        let (mut outcomes, ()) = join(all, release).await;
        self.proxy.set_fault(Fault::None);
        outcomes.split_off(1)
    }

    /// What was sent after the first one: the instances of each transaction, by their targets.
    fn sent(&self) -> Vec<Vec<String>> {
        let targets = |body: &[u8]| {
            let ops: Value = serde_json::from_slice(body).unwrap();
            let ids = ops.as_array().unwrap().iter().filter_map(|op| op["Service"]["Service"]["ID"].as_str());
            ids.map(|id| id.split(':').nth(4).unwrap().to_owned()).collect()
        };
        self.proxy.writes().iter().skip(1).map(|write| targets(&write.body)).collect()
    }

    async fn targets(&self) -> Vec<String> {
        let rows = self.registry.read().await.unwrap();
        let mut targets: Vec<String> = rows.keys().map(|key| key.id.split(':').nth(4).unwrap().to_owned()).collect();
        targets.sort_unstable();
        targets
    }
}

/// Registers so many instances on a node of their own.
fn bundle(name: &str, instances: usize, registration: &Registration) -> Bundle {
    let node = Str::from(format!("test-{name}"));
    let put = |number: usize| put(&key(&node, &format!("{name}-{number}")), registration);
    Bundle { address: None, ops: (0..instances).map(put).collect(), alone: false, node }
}

fn bundles(names: &[&str]) -> Vec<Bundle> {
    names.iter().map(|name| bundle(name, 1, &full("10.0.0.1", Some(Health::Passing)))).collect()
}

/// Has Consul refuse a bundle's instance: it does not take the name of a pair of its meta.
fn spoil(bundle: &mut Bundle) {
    let [Op::Register { registration, .. }] = &mut bundle.ops[..] else { panic!("not one instance") };
    Arc::make_mut(registration).meta.insert("not.allowed".into(), "x".into());
}

fn is_refused(outcomes: &[Outcome], words: &str) -> bool {
    outcomes.iter().all(|outcome| matches!(outcome, Outcome::Refused(said) if said.contains(words)))
}

const NOTHING: fn(&str) -> Option<Fault> = |_| None;

#[tokio::test]
async fn what_waits_goes_in_one_transaction() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let mut all = bundles(&["a", "b", "c", "d", "e"]);
    all[1].alone = true;
    for outcomes in catalog.wait_behind_one(&all, NOTHING, async {}).await {
        assert_eq!(outcomes, [WRITTEN]);
    }
    let mut sent = catalog.sent();
    sent.sort_unstable();
    assert_eq!(sent, [vec!["a-0", "c-0", "d-0", "e-0"], vec!["b-0"]], "one of them goes alone");
    assert_eq!(catalog.targets().await, ["a-0", "b-0", "c-0", "d-0", "e-0", "first-0"]);
}

#[tokio::test]
async fn one_that_consul_refuses_costs_the_others_one_try() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let mut all = bundles(&["a", "bad", "c", "d"]);
    spoil(&mut all[1]);
    let outcomes = catalog.wait_behind_one(&all, NOTHING, async {}).await;
    assert!(is_refused(&outcomes[1], "invalid characters"), "{outcomes:?}");
    assert_eq!([&outcomes[0], &outcomes[2], &outcomes[3]], [&[WRITTEN]; 3]);
    assert_eq!(catalog.sent(), [vec!["a-0", "bad-0", "c-0", "d-0"], vec!["a-0", "c-0", "d-0"]]);
    assert_eq!(catalog.targets().await, ["a-0", "c-0", "d-0", "first-0"]);
}

/// Of several instances of a bundle one is refused, and each transaction shows one of two culprits more: no other bundle
/// waits for that.
#[tokio::test]
async fn one_that_fails_again_and_again_does_so_alone() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let mut all = bundles(&["a", "c"]);
    let mut bad = bundle("bad", 3, &full("10.0.0.1", None));
    // A node that Consul has, and that is not known to be there: the first try fails for it, the second one for an instance.
    let there = serde_json::json!({ "Node": "test-bad", "Address": "192.0.2.1", "NodeMeta": {
        "managed-by": "lictor", "lictor-cluster": "test", "lictor-cluster-uid": "uid-1",
    }});
    catalog.consul.api().put("/v1/catalog/register", &there).await.unwrap();
    let Op::Register { registration, .. } = &mut bad.ops[1] else { panic!("not an instance") };
    Arc::make_mut(registration).meta.insert("not.allowed".into(), "x".into());
    all.insert(1, bad);
    let outcomes = catalog.wait_behind_one(&all, NOTHING, async {}).await;
    assert_eq!((&outcomes[1][0], &outcomes[1][2]), (&WRITTEN, &WRITTEN), "{outcomes:?}");
    assert!(is_refused(&outcomes[1][1..2], "invalid characters"), "{outcomes:?}");
    assert_eq!([&outcomes[0], &outcomes[2]], [&[WRITTEN]; 2]);
    let with_a = catalog.sent().into_iter().filter(|targets| targets.contains(&"a-0".to_owned())).count();
    assert_eq!(with_a, 2, "rolled back once: {:?}", catalog.sent());
    assert_eq!(catalog.targets().await, ["a-0", "bad-0", "bad-2", "c-0", "first-0"]);
}

/// Consul, or what stands before it, refuses the transaction as a whole and does not say because of which operation.
#[tokio::test]
async fn one_that_is_refused_as_a_whole_is_found_among_the_others() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    for (status, words) in [(400, "Failed to parse body"), (403, "not through here"), (413, "too large")] {
        let answer = Fault::Status(status, words.to_owned(), Vec::new());
        let bad = move |body: &str| body.contains(":bad-0:").then(|| answer.clone());
        let outcomes = catalog.wait_behind_one(&bundles(&["a", "bad", "c"]), bad, async {}).await;
        assert!(is_refused(&outcomes[1], words), "{status}: {outcomes:?}");
        assert_eq!([&outcomes[0], &outcomes[2]], [&[WRITTEN]; 2]);
        let tries = |target: &str| catalog.sent().iter().filter(|sent| sent.iter().any(|one| one == target)).count();
        assert_eq!((tries("a-0"), tries("bad-0"), tries("c-0")), (2, 2, 2), "together, then alone");
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_is_lost_for_all() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let lost = |body: &str| body.contains(":c-0:").then_some(Fault::DropAnswer);
    for outcomes in catalog.wait_behind_one(&bundles(&["a", "b", "c"]), lost, async {}).await {
        assert!(matches!(&outcomes[..], [Outcome::Unknown(_)]), "{outcomes:?}");
    }
    assert_eq!(catalog.sent().len(), 1, "nothing is sent again whose outcome is not known");
    assert_eq!(catalog.targets().await, ["a-0", "b-0", "c-0", "first-0"], "reading tells");
    assert_eq!(marker(&catalog.consul).await["Meta"]["lictor-term"], "2", "the fence is raised once");
}

#[tokio::test]
async fn none_of_those_who_wait_is_written_once_another_lictor_acts() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let all = bundles(&["a", "b", "c"]);
    let other = Catalog::new(identity(), http(&catalog.consul.http_addr(), None) as Arc<dyn Transport>, 1);
    for outcomes in catalog.wait_behind_one(&all, NOTHING, async { _ = connect(&other).await }).await {
        assert!(trouble(&outcomes[0]).session_lost, "{outcomes:?}");
    }
    assert!(catalog.sent().len() <= 1, "no more than one finds that out: {:?}", catalog.sent());
    assert!(other.read().await.unwrap().is_empty());
}

/// Where Consul takes nothing, those who wait need not find that out one after the other.
#[tokio::test]
async fn all_who_wait_hear_of_an_outage_at_once() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let full_ones: Vec<Bundle> =
        ["a", "b", "c", "d"].iter().map(|name| bundle(name, 60, &full("10.0.0.1", Some(Health::Passing)))).collect();
    let limited = |_: &str| Some(Fault::Status(429, "rate limit exceeded".to_owned(), Vec::new()));
    for outcomes in catalog.wait_behind_one(&full_ones, limited, async {}).await {
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::NotTried(_))), "{outcomes:?}");
    }
    assert_eq!(catalog.sent().len(), 1);
    assert_eq!(catalog.targets().await, ["first-0"]);
}

#[tokio::test]
async fn winding_down_stops_those_who_wait() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let stop = async { catalog.registry.wind_down() };
    for outcomes in catalog.wait_behind_one(&bundles(&["a", "b"]), NOTHING, stop).await {
        assert!(matches!(&outcomes[..], [Outcome::NotTried(_)]), "{outcomes:?}");
    }
    assert_eq!(catalog.sent(), Vec::<Vec<String>>::new());
}

/// Who waits and is given up is not sent.
#[tokio::test]
async fn nothing_is_sent_for_who_waits_no_more() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let (given_up, all) = (bundle("gone", 1, &full("10.0.0.1", None)), bundles(&["a", "b"]));
    let mut gone = Some(catalog.registry.apply(&given_up));
    let first = catalog.wait_behind_one(&all, NOTHING, async {
        // It waits, and is dropped before its turn comes.
        let waits = futures::poll!(gone.as_mut().unwrap());
        assert!(waits.is_pending());
        drop(gone.take());
    });
    assert_eq!(first.await, [[WRITTEN], [WRITTEN]]);
    assert_eq!(catalog.sent(), [["a-0", "b-0"]]);
}

/// Bundles that are large in operations or in bytes: each transaction is one that Consul takes.
#[tokio::test]
async fn no_transaction_is_more_than_consul_takes() {
    let catalog = OneByOne::start(ConsulOptions::default()).await;
    let mut large = full("10.0.0.1", Some(Health::Passing));
    for number in 0..50 {
        large.meta.insert(format!("k{number}").into(), "x".repeat(500).into());
    }
    let small = full("10.0.0.1", Some(Health::Passing));
    let sizes =
        [("a", 6, &large), ("b", 60, &small), ("c", 6, &large), ("d", 1, &small), ("e", 6, &large), ("f", 9, &small)];
    let all: Vec<Bundle> =
        sizes.iter().map(|(name, instances, registration)| bundle(name, *instances, registration)).collect();
    for outcomes in catalog.wait_behind_one(&all, NOTHING, async {}).await {
        assert!(outcomes.iter().all(|outcome| *outcome == WRITTEN), "{outcomes:?}");
    }
    let writes = catalog.proxy.writes();
    assert!(writes.len() < 1 + sizes.len(), "some go together: {:?}", catalog.sent());
    for write in writes {
        let ops: Value = serde_json::from_slice(&write.body).unwrap();
        let (ops, bytes) = (ops.as_array().unwrap().len(), write.body_len());
        assert!(ops <= MOST_OPS && bytes <= MOST_BYTES, "{ops} operations, {bytes} bytes");
    }
    assert_eq!(catalog.targets().await.len(), 6 + 60 + 6 + 1 + 6 + 9 + 1);
}

/// A Consul that was set to take less: what is too much together goes alone.
#[tokio::test]
async fn a_consul_that_takes_less_gets_less() {
    let options = ConsulOptions {
        extra_hcl: "limits { txn_max_req_len = 20000 kv_max_value_size = 20000 }".to_owned(),
        ..ConsulOptions::default()
    };
    let catalog = OneByOne::start(options).await;
    let all: Vec<Bundle> =
        ["a", "b", "c"].iter().map(|name| bundle(name, 15, &full("10.0.0.1", Some(Health::Passing)))).collect();
    for outcomes in catalog.wait_behind_one(&all, NOTHING, async {}).await {
        assert!(outcomes.iter().all(|outcome| *outcome == WRITTEN), "{outcomes:?}");
    }
    let expected: Vec<RowKey> = all.iter().flat_map(|bundle| bundle.ops.iter().map(|op| op.key().clone())).collect();
    let rows = catalog.registry.read().await.unwrap();
    assert!(expected.iter().all(|key| rows.contains_key(key)));
}

//! What the tests of the registries share: a real Consul, and an instance to register in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lictor::consul::agent::Agent;
use lictor::consul::catalog::Catalog;
use lictor::consul::transport::{ConsulSettings, Http};
use lictor::model::check::Checks;
use lictor::model::desired::Placement;
use lictor::model::diff::Op;
use lictor::model::health::Health;
use lictor::model::ids::{ClusterName, Identity, Str, meta};
use lictor::model::registration::{Registration, RowKey, TaggedAddress, Weights};
use lictor::ports::{Bundle, Outcome, Registry, Rows};
use lictor_testbed::{Consul, ConsulOptions, Programs, wait};

pub(crate) const WRITTEN: Outcome = Outcome::Written { shown: true };
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// A Consul; nothing else of the testbed is needed here.
pub(crate) async fn consul(options: ConsulOptions) -> Consul {
    let consul = Programs::ensure_consul().await.unwrap();
    let none = PathBuf::new;
    let programs = Programs {
        consul,
        etcd: none(),
        kube_apiserver: none(),
        kube_controller_manager: none(),
        kube_scheduler: none(),
        kubectl: none(),
    };
    Consul::start(&programs, options).await.unwrap()
}

pub(crate) fn identity() -> Identity {
    Identity { cluster: ClusterName::new("test").unwrap(), uid: "uid-1".into() }
}

pub(crate) fn http(address: &str, token: Option<&str>) -> Arc<Http> {
    lictor_testbed::init_tls();
    let settings = ConsulSettings { token: token.map(str::to_owned), ..ConsulSettings::new(address) };
    Arc::new(Http::new(&settings).unwrap())
}

pub(crate) fn agent(address: &str, token: Option<&str>) -> Agent {
    Agent::new(identity(), http(address, token))
}

pub(crate) fn catalog(address: &str, token: Option<&str>) -> Catalog {
    Catalog::new(identity(), http(address, token), 4)
}

/// Connects, and answers the Consul node that instances of the Kubernetes node `worker` go to.
pub(crate) async fn connect(registry: &dyn Registry) -> Str {
    match registry.connect().await.unwrap() {
        Placement::Agent { node } => node,
        Placement::Catalog { cluster, .. } => format!("{cluster}-worker").into(),
    }
}

pub(crate) fn id(target: &str) -> String {
    format!("test:shop:user:user_service:{target}:8080")
}

pub(crate) fn key(node: &Str, target: &str) -> RowKey {
    RowKey { node: Arc::clone(node), id: id(target).into() }
}

/// A registration with something in every field.
pub(crate) fn full(address: &str, readiness: Option<Health>) -> Registration {
    let pairs = [
        (meta::MANAGED_BY, meta::LICTOR),
        (meta::CLUSTER, "test"),
        (meta::CLUSTER_UID, "uid-1"),
        (meta::OWNER, "shop/user"),
        (meta::OWNER_UID, "owner-uid"),
        ("version", "ä \"2\" / 3"),
    ];
    let wan = TaggedAddress { address: "198.51.100.7".into(), port: 443 };
    Registration {
        service: "user_service".into(),
        address: address.into(),
        port: 8080,
        tags: ["user".into(), "grpc".into(), "a b,c".into()].into(),
        meta: pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        weights: Weights { passing: 10, warning: 0 },
        enable_tag_override: false,
        tagged_addresses: Arc::new([("wan".into(), wan)].into()),
        readiness,
        checks: Checks::default(),
    }
}

pub(crate) fn put(key: &RowKey, registration: &Registration) -> Op {
    Op::Register { key: key.clone(), registration: Arc::new(registration.clone()), drop_checks: Vec::new() }
}

pub(crate) fn remove(key: &RowKey) -> Op {
    Op::Deregister { key: key.clone(), service: "user_service".into() }
}

pub(crate) async fn apply(registry: &dyn Registry, node: &Str, ops: Vec<Op>) -> Vec<Outcome> {
    registry.apply(&Bundle { node: Arc::clone(node), address: None, ops, alone: false }).await
}

/// Applies what has to work.
pub(crate) async fn write(registry: &dyn Registry, node: &Str, ops: Vec<Op>) {
    let expected = vec![WRITTEN; ops.len()];
    assert_eq!(apply(registry, node, ops).await, expected);
}

/// Reads until the catalog shows all that is held: an agent is a moment ahead of it.
pub(crate) async fn settled(registry: &dyn Registry) -> Rows {
    settled_within(registry, SOON).await
}

pub(crate) async fn settled_within(registry: &dyn Registry, timeout: Duration) -> Rows {
    let look = || async {
        let rows = registry.read().await?;
        Ok(rows.values().all(|row| row.shown).then_some(rows))
    };
    wait::until("the catalog to show what the agent holds", timeout, look).await.unwrap()
}

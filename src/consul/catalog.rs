//! Registering in the servers' catalog, on Consul nodes of our own making.
//!
//! In: bundles, each for one Consul node. Out: what became of them, by transactions that begin with a fence.
//!
//! The fence is a compare-and-set of the *marker node* `lictor-<cluster>` that changes nothing: it holds the
//! cluster's uid and a term that every Lictor raises when it begins. So nothing that an earlier one sent can
//! land any more, a second cluster of our name is found out, and an emptied or restored Consul shows itself.
//!
//! - `attempt`: writes a bundle.
//! - `group`: puts bundles together in one transaction.
//! - `marker`: keeps the fence.
//! - `nodes`: keeps the nodes of our making in order.
//! - `read`: reads what is there of ours.
//! - `takeover`: takes over what another cluster of our name has left.
//! - `transaction`: which operation of a bundle each operation of a transaction belongs to.

mod attempt;
mod group;
mod marker;
mod nodes;
mod read;
pub mod takeover;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::RwLock;
use tokio::time::Instant;

use self::group::Groups;
use self::marker::{Fence, RaisedPerhaps};
use self::nodes::KnownNode;
use super::client::{Client, Failed, path};
use super::indexes::indexes;
use super::others::names_of_others;
use super::servers::{judge, servers};
use super::transport::Transport;
use super::wire::{Check, Node, NodeServices, Service, TxnAnswer, TxnError};
use crate::model::desired::Placement;
use crate::model::ids::{Identity, Str, meta};
use crate::model::nodes::{NodeMark, NodeOwner, marker_name};
use crate::model::plan::BUNDLE_INSTANCES;
use crate::ports::{Bundle, Indexes, Outcome, Registry, Rows, Unavailable};

/// The address of a node that stands for no machine (RFC 5737): DNS answers with the instances' own.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The most bundles under way for each transaction. Those beyond the first wait, and go together in the next transaction.
const TOGETHER: usize = 16;

/// The catalog of a datacenter.
pub struct Catalog {
    client: Client,
    identity: Identity,
    marker: String,
    state: Mutex<State>,
    /// Held while the marker is raised, so that it is raised once.
    raising: tokio::sync::Mutex<()>,
    /// Bundles hold it together; who deletes a node holds it alone, since what a bundle puts there in the
    /// meantime would go with the node, and who turns consul-esm away from a node, since it might be needed again.
    deleting: RwLock<()>,
    winding_down: AtomicBool,
    groups: Groups,
    transactions: usize,
}

/// Holds what we know of the catalog besides its rows.
struct State {
    fence: FenceState,
    /// Our nodes that are there.
    nodes: BTreeMap<Str, KnownNode>,
    /// Those of them that may have nothing on them, and since when that is known.
    empty: BTreeMap<Str, Option<Instant>>,
    /// The nodes that a change of ours was sent to and did not certainly reach: each is read again before the next changes.
    unsure: BTreeSet<Str>,
    /// Names that begin as ours do and are somebody else's nodes, in lower case as Consul compares them.
    taken: Arc<BTreeSet<Str>>,
    /// The Kubernetes nodes of which it was said that somebody else has their node.
    told: BTreeSet<Str>,
    /// The highest term that the marker is known to have had.
    term: u64,
    /// The terms that we may have raised it to without an answer.
    raised_perhaps: RaisedPerhaps,
}

/// Says where we stand with the marker.
enum FenceState {
    /// Writes may be made under this fence.
    Firm(Fence),
    /// A write under this fence was not answered: before the next one it has to be raised, and then that one
    /// has landed or never will.
    Stale(Fence),
    /// Nothing may be written before we connect again.
    Lost(Unavailable),
}

/// Consul's answer to a transaction.
#[derive(Clone, Debug)]
enum TxnResult {
    /// Carried out; the nodes that it touched.
    Done(Vec<Node>),
    /// Rolled back, by these errors.
    Conflict(Vec<TxnError>),
    /// It is too large, or otherwise refused as a whole.
    Rejected(String),
    /// Surely not carried out.
    NotTried(Unavailable),
    /// Perhaps carried out, and perhaps only later.
    Unknown(Unavailable),
}

/// Says how to go on after a transaction that was rolled back.
enum Recovery {
    /// Try again, with what is known now.
    Again,
    /// These operations are to blame, each with Consul's words.
    Blame(BTreeMap<usize, String>),
    /// The node cannot be had: all that would need it is refused.
    NoNode(String),
    /// One of them is to blame, and Consul does not say which.
    Split(String),
    /// Nothing can be written now.
    Stop(Unavailable),
}

impl Catalog {
    /// The catalog that a transport leads to. At most so many transactions are under way at once.
    #[must_use]
    pub fn new(identity: Identity, transport: Arc<dyn Transport>, transactions: usize) -> Self {
        let marker = marker_name(&identity.cluster).to_string();
        Self {
            client: Client::new(transport),
            state: Mutex::new(State {
                fence: FenceState::Lost(Unavailable::session_lost("not connected to Consul yet")),
                nodes: BTreeMap::new(),
                empty: BTreeMap::new(),
                unsure: BTreeSet::new(),
                taken: Arc::new([marker.as_str().into()].into()),
                told: BTreeSet::new(),
                term: 0,
                raised_perhaps: RaisedPerhaps::default(),
            }),
            marker,
            identity,
            raising: tokio::sync::Mutex::default(),
            deleting: RwLock::default(),
            winding_down: AtomicBool::new(false),
            groups: Groups::new(transactions),
            transactions,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn where_to(&self) -> Placement {
        Placement::Catalog { cluster: self.identity.cluster.clone(), taken: Arc::clone(&self.state().taken) }
    }

    /// The meta of a node of ours.
    fn node_meta(&self) -> BTreeMap<String, String> {
        let pairs = [
            (meta::MANAGED_BY, meta::LICTOR),
            (meta::CLUSTER, self.identity.cluster.as_str()),
            (meta::CLUSTER_UID, &self.identity.uid),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn mark(&self, node: &Node) -> NodeMark {
        NodeMark::of(&self.identity, node.meta.as_ref())
    }

    /// Says whether a node carries our mark.
    fn is_ours(&self, node: &Node) -> bool {
        self.mark(node) == NodeMark::Ours
    }

    /// Says whose a node is, by what is on it.
    fn owner(&self, node: &Node, services: &[Service], checks: &[Check]) -> NodeOwner {
        let is_ours = |service: &Service| service.is_ours(&self.identity);
        NodeOwner::of(self.mark(node), checks.iter().any(Check::is_of_agent), services.iter().any(is_ours))
    }

    async fn node_services(&self, node: &str) -> Result<NodeServices, Unavailable> {
        let path = path(&["catalog", "node-services", node], &[("consistent", "")]);
        Ok(self.client.get(path).await?.value)
    }

    /// Sends a transaction of these operations.
    async fn transact(&self, body: Bytes) -> TxnResult {
        let decode = |body: &[u8]| serde_json::from_slice::<TxnAnswer>(body);
        match self.client.transact(body).await {
            Ok(answer) => match decode(&answer) {
                Ok(answer) => {
                    TxnResult::Done(answer.results.into_iter().flatten().filter_map(|result| result.node).collect())
                }
                Err(error) => {
                    TxnResult::Unknown(Unavailable::transient(format!("Consul's answer is not understood: {error}")))
                }
            },
            Err(Failed::Refused { status: 409, words, body }) => {
                let errors = decode(&body).ok().and_then(|answer| answer.errors).unwrap_or_default();
                if errors.is_empty() {
                    TxnResult::Rejected(format!("Consul rolled a transaction back: {words}"))
                } else {
                    TxnResult::Conflict(errors)
                }
            }
            Err(Failed::Refused { status: 400 | 413, words, .. }) => TxnResult::Rejected(words),
            Err(Failed::Refused { status, words, .. }) => {
                TxnResult::Rejected(format!("Consul answered {status}: {words}"))
            }
            Err(Failed::NotTried(outage)) => TxnResult::NotTried(outage),
            Err(Failed::NoAnswer(outage) | Failed::Stumbled(outage)) => TxnResult::Unknown(outage),
        }
    }

    /// Makes sure that what lists do not show is not there.
    async fn may_conclude(&self) -> Result<(), Unavailable> {
        judge(&servers(&self.client).await?).accept()?;
        self.client.may_conclude().await
    }
}

/// Describes a transaction whose errors we can make nothing of.
fn unexplained(errors: &[TxnError]) -> String {
    let words = errors.first().map_or("no reason", |error| &error.what);
    format!("Consul rolled a transaction back: {words}")
}

impl Registry for Catalog {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Unavailable>> {
        Box::pin(async move {
            self.may_conclude().await?;
            self.raise_fence().await?;
            Ok(self.where_to())
        })
    }

    fn resume(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(async {
            match self.confirm_standing().await {
                Ok(()) => Ok(true),
                Err(outage) if outage.session_lost => Ok(false),
                Err(outage) => Err(outage),
            }
        })
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Unavailable>> {
        Box::pin(async move {
            self.may_conclude().await?;
            self.find_marker().await?;
            let rows = self.read_rows().await?;
            Ok((self.where_to(), rows))
        })
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.where_to())
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Unavailable>> {
        Box::pin(self.rows())
    }

    fn indexes(&self) -> BoxFuture<'_, Result<Indexes, Unavailable>> {
        Box::pin(async {
            self.confirm_standing().await?;
            indexes(&self.client).await
        })
    }

    fn nodes(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(async {
            self.confirm_standing().await?;
            self.list_nodes().await
        })
    }

    fn names_of_others(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(names_of_others(&self.client, &self.identity))
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Unavailable>> {
        Box::pin(self.rows_of(node))
    }

    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(self.carry_out(bundle))
    }

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        Box::pin(self.transact_nothing())
    }

    fn tidy<'a>(&'a self, addresses: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(self.tidy_nodes(addresses))
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        Box::pin(self.dismantle_nodes())
    }

    fn wind_down(&self) {
        self.winding_down.store(true, Ordering::SeqCst);
    }

    fn bundle_size(&self) -> usize {
        BUNDLE_INSTANCES
    }

    fn bundles(&self) -> usize {
        self.transactions.saturating_mul(TOGETHER)
    }
}

//! Registering in the servers' catalog, on Consul nodes of our own making.
//!
//! In: bundles, each for one Consul node. Out: what became of them, by transactions that begin with a fence.
//!
//! The fence is a compare-and-set of the *marker node* `lictor-<cluster>` that changes nothing: it holds the
//! cluster's uid and a term that every Lictor raises when it begins. So nothing that an earlier one sent can
//! land any more, a second cluster of our name is found out, and an emptied or restored Consul shows itself.

mod marker;
mod nodes;
pub mod takeover;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream, try_join};
use tokio::sync::RwLock;
use tokio::time::Instant;

use self::marker::Fence;
use self::nodes::KnownNode;
use self::transaction::{Part, SeenChecks, Transaction, writes_checks};
use super::client::{Client, Failed, path};
use super::transport::Transport;
use super::wire::{By, Check, Fault, Healths, Node, NodeServices, Pool, Service, TxnAnswer, TxnError};
use super::{Bundle, Outcome, Registry, Rows, Trouble, WINDING_DOWN};
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::names::{Identity, Str, id_prefix, meta};
use crate::model::nodes::{NodeMark, NodeOwner, node_prefix};
use crate::model::plan::BUNDLE_INSTANCES;
use crate::model::registration::{Ownership, Row, RowKey};

/// The address of a node that stands for no machine (RFC 5737): DNS answers with the instances' own.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How many nodes are read at once.
const READS: usize = 8;

/// How often a transaction is mended and tried again before we give up on finding out what Consul means.
/// Taking out an operation that Consul refuses does not count.
const REPAIRS: usize = 6;

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
}

/// What we know of the catalog besides its rows.
struct State {
    footing: Footing,
    /// Our nodes that are there.
    nodes: BTreeMap<Str, KnownNode>,
    /// Those of them that may have nothing on them, and since when that is known.
    empty: BTreeMap<Str, Option<Instant>>,
    /// Names that begin as ours do and are somebody else's nodes, in lower case as Consul compares them.
    taken: Arc<BTreeSet<Str>>,
    /// The Kubernetes nodes of which it was said that somebody else has their node.
    told: BTreeSet<Str>,
    /// The highest term that the marker is known to have had.
    term: u64,
}

/// Where we stand with the marker.
enum Footing {
    /// Writes may be made under this fence.
    Firm(Fence),
    /// A write under this fence was not answered: before the next one it has to be raised, and then that one
    /// has landed or never will.
    Stale {
        /// As it was.
        fence: Fence,
        /// Whether raising it was not answered either: then a term that is higher by one may be our own doing.
        raised_perhaps: bool,
    },
    /// Nothing may be written before we connect again.
    Lost(Trouble),
}

/// A bundle on its way.
struct Journey<'a> {
    bundle: &'a Bundle,
    /// What became of each operation, as far as is known.
    outcomes: Vec<Option<Outcome>>,
    /// The places of those whose instance was found not to be there.
    unregistered: BTreeSet<usize>,
    /// The checks on the node, where they were needed: what consul-esm says of those that are there has to stay.
    seen: Option<SeenChecks>,
    /// The most operations in a transaction: fewer after one that Consul refused as a whole.
    most: usize,
    /// Whether Consul was seen to carry out others since it refused one as a whole.
    others_pass: bool,
}

impl Journey<'_> {
    /// The places of the operations that nothing has become of yet.
    fn pending(&self) -> Vec<usize> {
        (0..self.outcomes.len()).filter(|&index| self.outcomes[index].is_none()).collect()
    }

    /// Whether an operation is in vain without its node.
    fn needs_node(&self, index: usize) -> bool {
        matches!(self.bundle.ops[index], Op::Put { .. }) || self.unregistered.contains(&index)
    }

    /// Has the operations of a transaction that Consul refused as a whole tried in smaller ones; the only one is refused.
    fn split(&mut self, ops: &[usize], words: String) {
        match ops {
            [only] => {
                self.outcomes[*only] = Some(Outcome::Refused(words));
                self.most = usize::MAX;
            }
            several => self.most = several.len().div_ceil(2),
        }
    }

    /// Whether an operation writes checks for consul-esm to run.
    fn writes_checks(&self, index: usize) -> bool {
        writes_checks(&self.bundle.ops[index], self.unregistered.contains(&index))
    }
}

/// What Consul said to a transaction.
enum Verdict {
    /// Carried out; the nodes that it touched.
    Done(Vec<Node>),
    /// Rolled back, by these errors.
    Conflict(Vec<TxnError>),
    /// It is too large, or otherwise refused as a whole.
    Rejected(String),
    /// Surely not carried out.
    NotTried(Trouble),
    /// Perhaps carried out, and perhaps only later.
    Unknown(Trouble),
}

/// How to go on after a transaction that was rolled back.
enum Remedy {
    /// Try again, with what is known now.
    Again,
    /// These operations are to blame, each with Consul's words.
    Blame(BTreeMap<usize, String>),
    /// The node cannot be had: all that would need it is refused.
    NoNode(String),
    /// One of them is to blame, and Consul does not say which.
    Split(String),
    /// Nothing can be written now.
    Stop(Trouble),
}

impl Catalog {
    /// The catalog that a transport leads to.
    #[must_use]
    pub fn new(identity: Identity, transport: Arc<dyn Transport>) -> Self {
        let marker = format!("lictor-{}", identity.cluster);
        Self {
            client: Client::new(transport),
            state: Mutex::new(State {
                footing: Footing::Lost(Trouble::lost_footing("not connected to Consul yet")),
                nodes: BTreeMap::new(),
                empty: BTreeMap::new(),
                taken: Arc::new([marker.as_str().into()].into()),
                told: BTreeSet::new(),
                term: 0,
            }),
            marker,
            identity,
            raising: tokio::sync::Mutex::default(),
            deleting: RwLock::default(),
            winding_down: AtomicBool::new(false),
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

    /// Whether a node carries our mark.
    fn is_ours(&self, node: &Node) -> bool {
        self.mark(node) == NodeMark::Ours
    }

    /// Whose a node is, by what is on it.
    fn owner(&self, node: &Node, services: &[Service], checks: &[Check]) -> NodeOwner {
        let is_ours = |service: &Service| service.is_ours(&self.identity);
        NodeOwner::of(self.mark(node), checks.iter().any(Check::is_of_agent), services.iter().any(is_ours))
    }

    async fn node_services(&self, node: &str) -> Result<NodeServices, Trouble> {
        let path = path(&["catalog", "node-services", node], &[("consistent", "")]);
        Ok(self.client.get(path).await?.value)
    }

    /// Sends a transaction of these operations.
    async fn transact(&self, body: Bytes) -> Verdict {
        let decode = |body: &[u8]| serde_json::from_slice::<TxnAnswer>(body);
        match self.client.put(path(&["txn"], &[]), Some(body)).await {
            Ok(answer) => match decode(&answer) {
                Ok(answer) => {
                    Verdict::Done(answer.results.into_iter().flatten().filter_map(|result| result.node).collect())
                }
                Err(error) => Verdict::Unknown(Trouble::passing(format!("Consul's answer is not understood: {error}"))),
            },
            Err(Failed::Refused { status: 409, words, body }) => {
                let errors = decode(&body).ok().and_then(|answer| answer.errors).unwrap_or_default();
                if errors.is_empty() {
                    Verdict::Rejected(format!("Consul rolled a transaction back: {words}"))
                } else {
                    Verdict::Conflict(errors)
                }
            }
            Err(Failed::Refused { status: 400 | 413, words, .. }) => Verdict::Rejected(words),
            Err(Failed::Refused { status, words, .. }) => {
                Verdict::Rejected(format!("Consul answered {status}: {words}"))
            }
            Err(Failed::NotTried(trouble)) => Verdict::NotTried(trouble),
            Err(Failed::NoAnswer(trouble) | Failed::Stumbled(trouble)) => Verdict::Unknown(trouble),
        }
    }

    // Writing.

    async fn carry_out(&self, bundle: &Bundle) -> Vec<Outcome> {
        if *bundle.node == *self.marker {
            let words = format!("the Consul node {} is Lictor's own marker: set another --cluster-name", self.marker);
            return vec![Outcome::Refused(words); bundle.ops.len()];
        }
        let _deletions_wait = self.deleting.read().await;
        let outcomes = vec![None; bundle.ops.len()];
        let mut journey = Journey {
            bundle,
            outcomes,
            unregistered: BTreeSet::new(),
            seen: None,
            most: usize::MAX,
            others_pass: false,
        };
        let end = self.travel(&mut journey).await;
        let trouble = end.unwrap_or_else(|| Trouble::passing("not reached"));
        let outcome = |outcome: Option<Outcome>| outcome.unwrap_or_else(|| Outcome::NotTried(trouble.clone()));
        journey.outcomes.into_iter().map(outcome).collect()
    }

    /// Sends transactions until something has become of every operation, or nothing more can be done: then says why.
    async fn travel(&self, journey: &mut Journey<'_>) -> Option<Trouble> {
        let mut repairs = 0;
        loop {
            let pending = journey.pending();
            if pending.is_empty() {
                return None;
            }
            if self.winding_down.load(Ordering::SeqCst) {
                return Some(Trouble::passing(WINDING_DOWN));
            }
            if journey.seen.is_none() && pending.iter().any(|&index| journey.writes_checks(index)) {
                match self.seen_checks(&journey.bundle.node).await {
                    Ok(seen) => journey.seen = Some(seen),
                    Err(trouble) => return Some(trouble),
                }
            }
            let fence = match self.standing().await {
                Ok(fence) => fence,
                Err(trouble) => return Some(trouble),
            };
            let transaction = self.compose(journey, &pending[..pending.len().min(journey.most)], fence);
            match self.transact(transaction.body()).await {
                Verdict::Done(nodes) => {
                    self.note_written(journey, &transaction, &nodes);
                    for index in transaction.ops() {
                        journey.outcomes[index] = Some(Outcome::Written { shown: true });
                    }
                }
                Verdict::NotTried(trouble) => return Some(trouble),
                Verdict::Unknown(trouble) => {
                    self.doubt(fence);
                    for index in transaction.ops() {
                        journey.outcomes[index] = Some(Outcome::Unknown(trouble.clone()));
                    }
                    return Some(trouble);
                }
                Verdict::Rejected(words) => {
                    if let Err(trouble) = self.reject(journey, &transaction, words).await {
                        return Some(trouble);
                    }
                }
                Verdict::Conflict(errors) => match self.remedy(journey, &transaction, &errors, fence).await {
                    Remedy::Again if repairs < REPAIRS => repairs += 1,
                    Remedy::Again => {
                        let refused = in_conflict(journey, &transaction, &errors);
                        if refused.is_empty() {
                            return Some(Trouble::passing(bewildered(&errors)));
                        }
                        repairs = 0;
                        for (index, words) in refused {
                            journey.outcomes[index] = Some(Outcome::Refused(words));
                        }
                    }
                    Remedy::Split(words) => {
                        if let Err(trouble) = self.reject(journey, &transaction, words).await {
                            return Some(trouble);
                        }
                    }
                    Remedy::Blame(culprits) => {
                        for (index, words) in culprits {
                            journey.outcomes[index] = Some(Outcome::Refused(words));
                        }
                    }
                    Remedy::NoNode(words) => {
                        for index in pending {
                            if journey.needs_node(index) {
                                journey.outcomes[index] = Some(Outcome::Refused(words.clone()));
                            }
                        }
                    }
                    Remedy::Stop(trouble) => return Some(trouble),
                },
            }
        }
    }

    /// Finds the operation for which Consul refuses a transaction as a whole, unless Consul refuses every one: then
    /// says so.
    async fn reject(&self, journey: &mut Journey<'_>, transaction: &Transaction, words: String) -> Result<(), Trouble> {
        if !journey.others_pass {
            self.transact_nothing().await?;
            journey.others_pass = true;
        }
        journey.split(&transaction.ops(), words);
        Ok(())
    }

    /// A transaction of as many of these operations as fit, behind the fence and, where it has to be made or
    /// changed, their node.
    fn compose(&self, journey: &Journey<'_>, pending: &[usize], fence: Fence) -> Transaction {
        let bundle = journey.bundle;
        let mut transaction = Transaction::new(&self.fence_op(fence));
        if pending.iter().any(|&index| journey.needs_node(index)) {
            let is_for_esm = pending.iter().any(|&index| journey.writes_checks(index));
            let node = self.node_for(&bundle.node, bundle.address.unwrap_or(NO_ADDRESS), is_for_esm);
            if let Some(node) = node {
                transaction.make_node(&node);
            }
        }
        let nothing_seen = SeenChecks::new();
        let seen = journey.seen.as_ref().unwrap_or(&nothing_seen);
        for &index in pending {
            if !transaction.add(index, &bundle.ops[index], journey.unregistered.contains(&index), seen) {
                break;
            }
        }
        transaction
    }

    fn note_written(&self, journey: &Journey<'_>, transaction: &Transaction, nodes: &[Node]) {
        let bundle = journey.bundle;
        self.know_all(nodes);
        let mut state = self.state();
        for index in transaction.ops() {
            if journey.writes_checks(index) {
                state.note_checks_written(&bundle.node);
            }
            match &bundle.ops[index] {
                Op::Remove { .. } => {
                    if state.nodes.contains_key(&bundle.node) {
                        state.empty.entry(Arc::clone(&bundle.node)).or_default();
                    }
                }
                Op::Put { .. } | Op::Readiness { .. } | Op::Release { .. } => {
                    state.empty.remove(&bundle.node);
                }
            }
        }
    }

    /// Finds out why a transaction was rolled back.
    async fn remedy(
        &self,
        journey: &mut Journey<'_>,
        transaction: &Transaction,
        errors: &[TxnError],
        fence: Fence,
    ) -> Remedy {
        let node = &journey.bundle.node;
        let of = |wanted: Part| errors.iter().find(|error| transaction.part(error.op_index) == Some(wanted));
        if let Some(error) = of(Part::Fence) {
            return self.fence_failed(fence, error.fault, &error.what).await;
        }
        if let Some(error) = of(Part::Node) {
            return self.node_failed(node, error).await;
        }
        if errors.iter().any(|error| error.fault == Fault::MissingNode) {
            self.state().nodes.remove(node);
        }
        let (mut blame, mut mended) = (BTreeMap::new(), false);
        for error in errors {
            let Some(part) = transaction.part(error.op_index) else { continue };
            match (part, error.fault) {
                // It is gone: nothing of ours is left to take off it.
                (Part::Look(index), Fault::Gone) => {
                    journey.outcomes[index] = Some(Outcome::Written { shown: true });
                    mended = true;
                }
                // consul-esm had something to say in the meantime.
                (Part::Check(_), Fault::StaleIndex) => {
                    journey.seen = None;
                    mended = true;
                }
                (Part::Look(index) | Part::Service(index) | Part::Check(index), fault) => {
                    let is_missing = matches!(fault, Fault::MissingNode | Fault::MissingService);
                    let only_check = matches!(journey.bundle.ops[index], Op::Readiness { .. })
                        && !journey.unregistered.contains(&index);
                    if only_check && is_missing {
                        journey.unregistered.insert(index);
                        mended = true;
                    } else if fault == Fault::MissingNode {
                        mended = true;
                    } else {
                        // The first is the cause, those after it hang on it.
                        blame.entry(index).or_insert_with(|| error.what.clone());
                    }
                }
                (Part::Fence | Part::Node, _) => {}
            }
        }
        match (blame.is_empty(), mended) {
            (false, _) => Remedy::Blame(blame),
            (true, true) => Remedy::Again,
            (true, false) => Remedy::Split(bewildered(errors)),
        }
    }

    async fn fence_failed(&self, fence: Fence, fault: Fault, words: &str) -> Remedy {
        if fault == Fault::PermissionDenied {
            return Remedy::Stop(Trouble::passing(format!(
                "the Consul token may not write the node {}: it needs node:write on it ({words})",
                self.marker
            )));
        }
        match self.stand_again(fence).await {
            Ok(()) => Remedy::Again,
            Err(trouble) => Remedy::Stop(trouble),
        }
    }

    /// Making or changing the node failed: it is not as we knew it, or may not be.
    async fn node_failed(&self, name: &Str, error: &TxnError) -> Remedy {
        if error.fault != Fault::StaleIndex {
            return Remedy::NoNode(format!("the Consul node {name} cannot be written: {}", error.what));
        }
        let (found, checks) = match self.read_services(name).await {
            Ok(found) => found,
            Err(trouble) => return Remedy::Stop(trouble),
        };
        let Some(node) = found.node else {
            self.state().nodes.remove(name);
            return Remedy::Again;
        };
        let services = found.services.unwrap_or_default();
        match self.owner(&node, &services, &checks) {
            NodeOwner::Ours | NodeOwner::OursUnmarked => {
                self.state().know(&self.marker, name, &node);
                Remedy::Again
            }
            owner @ (NodeOwner::Agent | NodeOwner::Others) => {
                self.state().give_up(name);
                Remedy::NoNode(not_ours(name, &node, owner))
            }
        }
    }

    // Reading.

    async fn rows(&self) -> Result<Rows, Trouble> {
        self.confirm_standing().await?;
        self.read_rows().await
    }

    /// Reads the rows on all nodes that carry our mark or have a name like ours. A plain registration of somebody else
    /// empties a node's meta, so that the mark alone does not find them all.
    async fn read_rows(&self) -> Result<Rows, Trouble> {
        let cluster = &self.identity.cluster;
        let filter =
            format!("Meta[\"{}\"] == \"{cluster}\" or Node matches \"(?i)^{}\"", meta::CLUSTER, node_prefix(cluster));
        let query = path(&["catalog", "nodes"], &[("consistent", ""), ("filter", &filter)]);
        let found: Option<Vec<Node>> = self.client.get(query).await?.value;
        let (mut marked, mut unmarked, mut taken) = (Vec::new(), Vec::new(), vec![Str::from(&*self.marker)]);
        for node in found.into_iter().flatten() {
            let Some(name) = node.node.as_deref().map(|name| self.own_spelling(name)) else { continue };
            match self.mark(&node) {
                _ if *name == *self.marker => {}
                NodeMark::Ours => marked.push((name, node)),
                NodeMark::None => unmarked.push(name),
                NodeMark::Others => taken.push(name),
            }
        }
        {
            // What was made since the list was is not in it: it is found again when it is needed.
            let mut state = self.state();
            state.nodes.clear();
            for (name, node) in &marked {
                state.know(&self.marker, name, node);
            }
            let State { nodes, empty, .. } = &mut *state;
            empty.retain(|node, _| nodes.contains_key(node));
        }
        let marked = marked.into_iter().map(|(name, _)| (name, true));
        let unmarked = unmarked.into_iter().map(|name| (name, false));
        let mut reads = stream::iter(marked.chain(unmarked))
            .map(|(name, is_marked)| async move {
                // Most of those without a mark have nothing to do with us.
                if is_marked || self.has_our_ids(&name).await? {
                    self.read_services(&name).await.map(|found| (name, Some(found)))
                } else {
                    Ok((name, None))
                }
            })
            .buffered(READS);
        let (mut rows, mut pool) = (Rows::new(), Pool::default());
        while let Some((name, found)) = reads.try_next().await? {
            let owner = match found {
                Some((found, checks)) => self.collect(&name, found, checks, &mut pool, &mut rows),
                None => Some(NodeOwner::Others),
            };
            if owner.is_some_and(|owner| !owner.is_ours()) {
                taken.push(name);
            }
        }
        let taken = taken.into_iter().collect();
        let mut state = self.state();
        if *state.taken != taken {
            state.taken = Arc::new(taken);
        }
        Ok(rows)
    }

    async fn rows_of(&self, node: &Str) -> Result<Rows, Trouble> {
        self.confirm_standing().await?;
        let (services, checks) = self.read_services(node).await?;
        let mut rows = Rows::new();
        let owner = self.collect(node, services, checks, &mut Pool::default(), &mut rows);
        if owner.is_some_and(|owner| !owner.is_ours()) {
            self.state().give_up(node);
        }
        Ok(rows)
    }

    /// A node's name as we write it: Consul compares names without case, and shows them as who wrote last did.
    fn own_spelling(&self, name: &str) -> Str {
        let lower = name.to_lowercase();
        if lower.starts_with(&node_prefix(&self.identity.cluster)) { lower.into() } else { name.into() }
    }

    /// Whether a row with an ID like ours is on a node.
    async fn has_our_ids(&self, node: &str) -> Result<bool, Trouble> {
        let filter = format!("ID matches \"^{}\"", id_prefix(&self.identity.cluster));
        let query = path(&["catalog", "node-services", node], &[("consistent", ""), ("filter", &filter)]);
        let found: NodeServices = self.client.get(query).await?.value;
        Ok(found.services.is_some_and(|services| !services.is_empty()))
    }

    async fn read_services(&self, node: &str) -> Result<(NodeServices, Vec<Check>), Trouble> {
        try_join!(self.node_services(node), self.read_checks(node))
    }

    async fn read_checks(&self, node: &str) -> Result<Vec<Check>, Trouble> {
        let path = path(&["health", "node", node], &[("consistent", "")]);
        Ok(self.client.get::<Option<Vec<Check>>>(path).await?.value.unwrap_or_default())
    }

    async fn seen_checks(&self, node: &str) -> Result<SeenChecks, Trouble> {
        let checks = self.read_checks(node).await?;
        Ok(checks.into_iter().filter_map(|check| Some((check.id.clone()?, check))).collect())
    }

    /// Picks out what has an ID or a mark of ours, and answers whose the node is, if it is there.
    fn collect(
        &self,
        node: &Str,
        found: NodeServices,
        checks: Vec<Check>,
        pool: &mut Pool,
        rows: &mut Rows,
    ) -> Option<NodeOwner> {
        let services = found.services.unwrap_or_default();
        let owner = found.node.as_ref().map(|node| self.owner(node, &services, &checks));
        {
            let mut state = self.state();
            match (found.node, owner) {
                (Some(row), Some(NodeOwner::OursUnmarked)) => state.know(&self.marker, node, &row),
                (_, Some(NodeOwner::Agent | NodeOwner::Others)) => state.forget(node),
                _ => {}
            }
            if services.is_empty() && state.nodes.contains_key(node) {
                state.empty.entry(Arc::clone(node)).or_default();
            }
        }
        self.note_checks(node, &checks);
        // On a node of ours nobody else makes rows with our IDs: another mark on one was put there by hand.
        let known = owner.is_some_and(NodeOwner::is_ours);
        let healths = Healths::new(checks);
        let prefix = id_prefix(&self.identity.cluster);
        for service in services {
            let Some(id) = service.id.as_deref().filter(|id| !id.is_empty()) else { continue };
            if !id.starts_with(&prefix) && !service.has_meta(meta::CLUSTER, self.identity.cluster.as_str()) {
                continue;
            }
            let registration = service.registration(By::Catalog, &healths, pool);
            let row = Row {
                ownership: Ownership::of(&self.identity, id, &registration.meta, known),
                health: healths.worst(id),
                registration: Arc::new(registration),
                shown: true,
            };
            rows.insert(RowKey { node: Arc::clone(node), id: id.into() }, row);
        }
        owner
    }
}

/// The operations that run into the changes of somebody else each time, with what to say of each: those that these
/// errors are about, or where it is their node that changes, those that need it.
fn in_conflict(journey: &Journey<'_>, transaction: &Transaction, errors: &[TxnError]) -> BTreeMap<usize, String> {
    let mut found = BTreeMap::new();
    for error in errors {
        let ops = match transaction.part(error.op_index) {
            Some(Part::Look(index) | Part::Service(index) | Part::Check(index)) => vec![index],
            Some(Part::Node) => transaction.ops().into_iter().filter(|&index| journey.needs_node(index)).collect(),
            Some(Part::Fence) | None => Vec::new(),
        };
        for index in ops {
            found.entry(index).or_insert_with(|| {
                format!("somebody else changes the same entry again and again while it is written: {}", error.what)
            });
        }
    }
    found
}

/// What to say where somebody else has a node.
fn not_ours(name: &str, node: &Node, owner: NodeOwner) -> String {
    if owner == NodeOwner::Agent {
        return format!("the Consul node {name} is a Consul agent's own");
    }
    format!(
        "the Consul node {name} exists and is not ours (managed-by {:?}, cluster {:?}, uid {:?})",
        node.meta(meta::MANAGED_BY),
        node.meta(meta::CLUSTER),
        node.meta(meta::CLUSTER_UID)
    )
}

/// What to say of a transaction whose errors we can make nothing of.
fn bewildered(errors: &[TxnError]) -> String {
    let words = errors.first().map_or("no reason", |error| &error.what);
    format!("Consul rolled a transaction back: {words}")
}

impl Registry for Catalog {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Trouble>> {
        Box::pin(async move {
            self.client.may_conclude().await?;
            self.take_footing().await?;
            Ok(self.where_to())
        })
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Trouble>> {
        Box::pin(async move {
            self.client.may_conclude().await?;
            self.find_marker().await?;
            let rows = self.read_rows().await?;
            Ok((self.where_to(), rows))
        })
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.where_to())
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Trouble>> {
        Box::pin(self.rows())
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Trouble>> {
        Box::pin(self.rows_of(node))
    }

    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(self.carry_out(bundle))
    }

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(self.transact_nothing())
    }

    fn tidy<'a>(&'a self, addresses: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Trouble>> {
        Box::pin(self.tidy_nodes(addresses))
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(self.dismantle_nodes())
    }

    fn wind_down(&self) {
        self.winding_down.store(true, Ordering::SeqCst);
    }

    fn bundle_size(&self) -> usize {
        BUNDLE_INSTANCES
    }
}

//! A move: registrations go to one place, and leave another one as soon as they are there.
//!
//! In: the registry where instances go, and the one where they were: of another mode, in another Consul, or under another
//! name of the cluster. Out: one registry of both. What is registered at the previous place stands on nodes of its own
//! ([`PREVIOUS`]), under the IDs that it would have now. No instance is desired there, so the engine removes each as it
//! removes one on another Consul node: once the same instance is registered where it goes.
//!
//! The previous place holds up nothing but its own rows: while it is away, they are not known or not removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::join;
use tokio::time::{Instant, timeout};

use super::client::Client;
use super::servers::{ids, servers};
use super::transport::Transport;
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::ids::{ClusterName, PREVIOUS, Str, id_prefix, meta};
use crate::model::registration::{Registration, RowKey};
use crate::ports::{Bundle, Indexes, Outcome, Registry, Rows, Unavailable};

/// The longest wait for the previous place where the present one waits as well.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time between two tries to reach the previous place.
const RETRY: Duration = Duration::from_secs(5);

/// Where registrations were.
pub struct PreviousPlace {
    /// The registry of that place.
    pub registry: Arc<dyn Registry>,
    /// The way to Consul there.
    pub transport: Arc<dyn Transport>,
    /// The name that the cluster had there.
    pub cluster: ClusterName,
    /// True if the mode is another one than the present one.
    pub is_of_another_mode: bool,
    /// True if nothing is to be done while that place is away: for commands that answer once.
    pub is_needed: bool,
}

/// The registry where instances go, with the one where they were.
pub struct Moving {
    current: Arc<dyn Registry>,
    transport: Arc<dyn Transport>,
    cluster: ClusterName,
    previous: PreviousPlace,
    state: Mutex<State>,
}

/// What is known of the previous place.
#[derive(Default)]
struct State {
    /// True if the registry there is connected.
    is_connected: bool,
    /// How the two places stand to each other.
    relation: Relation,
    /// The Consul nodes that the present registry reads by itself, as far as they could be the same: what is registered there
    /// is left to it.
    own: BTreeSet<Str>,
    /// True if nothing was left at the previous place, and what was made there besides is gone: nothing is asked of it any more
    /// in this session. To connect would make its marker again.
    is_over: bool,
    /// The last trouble, and when there was one.
    trouble: Option<(Instant, Unavailable)>,
    /// The instances that are left there, by node; none before they were read.
    left: Option<BTreeMap<RowKey, Str>>,
}

/// How two places stand to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Relation {
    /// Nobody knows yet.
    #[default]
    Unknown,
    /// They are the same: nothing may be done then.
    Same,
    /// They are two places in one Consul.
    OneConsul,
    /// They are in two Consuls.
    TwoConsuls,
}

impl Moving {
    /// Joins the registry where instances go, the way to Consul there, and the cluster's name, with where they were.
    #[must_use]
    pub fn new(
        current: Arc<dyn Registry>,
        transport: Arc<dyn Transport>,
        cluster: ClusterName,
        previous: PreviousPlace,
    ) -> Self {
        Self { current, transport, cluster, previous, state: Mutex::default() }
    }

    fn names(&self) -> Names<'_> {
        Names { now: &self.cluster, there: &self.previous.cluster }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the two places are two. Of one mode and one name in one Consul, they would be the same rows: Lictor
    /// would remove what it registers.
    async fn tell_apart(&self) -> Result<(), Unavailable> {
        let client = |transport: &Arc<dyn Transport>| Client::new(Arc::clone(transport));
        let (here, there) = (client(&self.transport), client(&self.previous.transport));
        let (here, there) = join!(servers(&here), servers(&there));
        let (here, there) = (ids(here?), ids(there?));
        if here.is_empty() || there.is_empty() {
            return Err(Unavailable::transient(
                "Consul does not show its servers, by which Lictor tells two Consuls apart",
            ));
        }
        let is_alike = !self.previous.is_of_another_mode && self.previous.cluster == self.cluster;
        let relation = match (here.is_disjoint(&there), is_alike) {
            (true, _) => Relation::TwoConsuls,
            (false, true) => Relation::Same,
            (false, false) => Relation::OneConsul,
        };
        self.state().relation = relation;
        if relation == Relation::Same {
            return Err(Unavailable::not_set_up(
                "the flags --previous-... name the place where Lictor registers now: leave them out, or correct them (for \
                 another agent of the same Consul there is --previous-agent)",
            ));
        }
        Ok(())
    }

    /// Asks something of the previous place, after connecting to it where that is not done yet; the default once the move is
    /// over.
    async fn ask<'a, T: Default>(
        &'a self,
        question: impl FnOnce(&'a dyn Registry) -> BoxFuture<'a, Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        if self.state().is_over {
            return Ok(T::default());
        }
        self.reach().await?;
        self.noted(question(&*self.previous.registry).await)
    }

    /// Connects to the previous place, where that is not done yet.
    async fn reach(&self) -> Result<(), Unavailable> {
        {
            let state = self.state();
            if state.is_connected {
                return Ok(());
            }
            if let Some((_, trouble)) = state.trouble.as_ref().filter(|(at, _)| at.elapsed() < RETRY) {
                return Err(trouble.clone());
            }
        }
        let connect = async {
            self.tell_apart().await?;
            self.previous.registry.connect().await
        };
        self.noted(connect.await)?;
        self.state().is_connected = true;
        Ok(())
    }

    /// Notes how it stands with the previous place; what was asked of it came to this.
    fn noted<T>(&self, result: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let mut state = self.state();
        match result {
            Ok(value) => {
                if state.trouble.take().is_some() {
                    tracing::info!("Consul answers again at the previous place");
                }
                Ok(value)
            }
            Err(outage) => {
                // What is wrong there is never a reason to begin the session here anew.
                let outage = Unavailable { session_lost: false, ..outage.clone() };
                if state.trouble.as_ref().is_none_or(|(_, before)| before.message != outage.message) {
                    tracing::warn!(%outage, "Consul cannot be used at the previous place; what is registered there stays");
                }
                state.trouble = Some((Instant::now(), outage.clone()));
                state.is_connected = false;
                Err(outage)
            }
        }
    }

    /// Reads what is left at the previous place.
    async fn rows_there(&self) -> Result<Rows, Unavailable> {
        if !self.state().is_over {
            // By now it is known whether there is one Consul.
            self.reach().await?;
        }
        if self.state().relation == Relation::OneConsul {
            let nodes = self.current.nodes().await?;
            self.note_own(&nodes);
        }
        let there = self.ask(Registry::read).await?;
        let rows = self.as_of_now(there);
        self.note_left(&rows, None);
        Ok(rows)
    }

    /// Notes which nodes the present registry reads by itself.
    fn note_own(&self, nodes: &BTreeSet<Str>) {
        let mut state = self.state();
        // Under another name its IDs are other ones, so that it sees others on the same node.
        let can_be_same = state.relation == Relation::OneConsul && self.previous.cluster == self.cluster;
        state.own = if can_be_same { nodes.clone() } else { BTreeSet::new() };
    }

    /// Gives rows of the previous place the keys that they have here.
    fn as_of_now(&self, there: Rows) -> Rows {
        let state = self.state();
        let only_there = there.into_iter().filter(|(key, _)| !state.own.contains(&key.node));
        only_there.map(|(key, row)| (self.names().key_now(&key), row)).collect()
    }

    /// Notes what is left at the previous place: on one node, or on all.
    fn note_left(&self, rows: &Rows, node: Option<&Str>) {
        let mut state = self.state();
        let before = state.left.take();
        let count_before = before.as_ref().map(BTreeMap::len);
        let mut left = before.unwrap_or_default();
        left.retain(|key, _| node.is_some_and(|node| key.node != *node));
        let ours = rows.iter().filter(|(_, row)| row.is_ours());
        left.extend(ours.map(|(key, row)| (key.clone(), Arc::clone(&row.registration.service))));
        tell(count_before, left.len());
        state.left = Some(left);
    }

    /// Notes that these are not left any more.
    fn note_gone<'a>(&self, keys: impl Iterator<Item = &'a RowKey>) {
        let mut state = self.state();
        let Some(left) = &mut state.left else { return };
        let before = left.len();
        keys.for_each(|key| _ = left.remove(key));
        tell(Some(before), left.len());
    }

    async fn apply_there(&self, bundle: &Bundle) -> Vec<Outcome> {
        let refused = |outage: &Unavailable| Outcome::Refused(format!("the previous place: {outage}"));
        if let Err(outage) = self.reach().await {
            return vec![refused(&outage); bundle.ops.len()];
        }
        let names = self.names();
        let ops = bundle.ops.iter().map(|op| names.op_there(op)).collect();
        let node = bundle.node.strip_prefix(PREVIOUS).unwrap_or(&bundle.node).into();
        let outcomes = self.previous.registry.apply(&Bundle { node, address: None, ops, alone: bundle.alone }).await;
        let trouble = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::NotTried(outage) | Outcome::Unknown(outage) => Some(outage.clone()),
            Outcome::Written { .. } | Outcome::Refused(_) => None,
        });
        // What went wrong is about these instances alone: nothing else waits for the previous place.
        _ = self.noted(trouble.map_or(Ok(()), Err));
        let written = bundle.ops.iter().zip(&outcomes).filter(|(op, outcome)| {
            matches!((op, outcome), (Op::Deregister { .. } | Op::Disown { .. }, Outcome::Written { .. }))
        });
        self.note_gone(written.map(|(op, _)| op.key()));
        let alone = |outcome| match outcome {
            Outcome::NotTried(outage) | Outcome::Unknown(outage) => refused(&outage),
            Outcome::Written { .. } | Outcome::Refused(_) => outcome,
        };
        outcomes.into_iter().map(alone).collect()
    }

    /// Gives what was asked of the previous place; the default where that is away and not needed.
    fn if_there<T: Default>(&self, result: Result<T, Unavailable>) -> Result<T, Unavailable> {
        match result {
            Err(outage) if self.previous.is_needed || self.state().relation == Relation::Same => Err(outage),
            result => Ok(result.unwrap_or_default()),
        }
    }
}

/// The names that the cluster has now, and at the previous place.
#[derive(Clone, Copy)]
struct Names<'a> {
    now: &'a ClusterName,
    there: &'a ClusterName,
}

impl Names<'_> {
    fn key_now(&self, key: &RowKey) -> RowKey {
        RowKey { node: format!("{PREVIOUS}{}", key.node).into(), id: with_prefix(&key.id, self.there, self.now) }
    }

    fn key_there(&self, key: &RowKey) -> RowKey {
        let node = key.node.strip_prefix(PREVIOUS).unwrap_or(&key.node).into();
        RowKey { node, id: with_prefix(&key.id, self.now, self.there) }
    }

    /// An operation as the previous place takes it.
    fn op_there(&self, op: &Op) -> Op {
        let key = self.key_there(op.key());
        let marked = |registration: &Arc<Registration>| {
            let has_mark = registration.meta.get(meta::CLUSTER).is_some();
            let mut registration = (**registration).clone();
            if has_mark {
                registration.meta.insert(meta::CLUSTER.into(), self.there.as_str().into());
            }
            Arc::new(registration)
        };
        match op {
            Op::Register { registration, drop_checks, .. } => {
                Op::Register { key, registration: marked(registration), drop_checks: drop_checks.clone() }
            }
            Op::Readiness { registration, .. } => Op::Readiness { key, registration: marked(registration) },
            Op::Disown { registration, .. } => Op::Disown { key, registration: marked(registration) },
            Op::Deregister { service, .. } => Op::Deregister { key, service: Arc::clone(service) },
        }
    }
}

/// Says how a move goes on, where something has changed.
fn tell(before: Option<usize>, left: usize) {
    if before == Some(left) {
        return;
    }
    match (before, left) {
        (None | Some(_), 0) => {
            tracing::info!("nothing of this cluster is left at the previous place: leave out the flags --previous-...");
        }
        (None, left) => tracing::info!(left, "instances are registered at the previous place"),
        (Some(_), left) => tracing::debug!(left, "instances are left at the previous place"),
    }
}

/// An ID with the name of another cluster at its beginning.
fn with_prefix(id: &Str, from: &ClusterName, to: &ClusterName) -> Str {
    match id.strip_prefix(&*id_prefix(from)) {
        Some(rest) if from != to => format!("{}{rest}", id_prefix(to)).into(),
        _ => Arc::clone(id),
    }
}

impl Registry for Moving {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Unavailable>> {
        Box::pin(async move {
            {
                let mut state = self.state();
                (state.is_connected, state.trouble, state.left) = (false, None, None);
                state.is_over = false;
            }
            // Before anything is written: the marker of the one place may be that of the other.
            let told_apart = timeout(PATIENCE, self.tell_apart()).await;
            self.if_there(told_apart.unwrap_or(Ok(())))?;
            self.current.connect().await
        })
    }

    fn resume(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        self.state().is_connected = false;
        self.current.resume()
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Unavailable>> {
        Box::pin(async move {
            self.tell_apart().await?;
            let (placement, mut rows) = self.current.survey().await?;
            // Only who is connected may ask for nodes; those that have rows are all that counts here.
            self.note_own(&rows.keys().map(|key| Arc::clone(&key.node)).collect());
            let (_, there) = self.previous.registry.survey().await?;
            rows.extend(self.as_of_now(there));
            Ok((placement, rows))
        })
    }

    fn placement(&self) -> Option<Placement> {
        self.current.placement()
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Unavailable>> {
        Box::pin(async move {
            let mut rows = self.current.read().await?;
            rows.extend(self.if_there(self.rows_there().await)?);
            Ok(rows)
        })
    }

    fn indexes(&self) -> BoxFuture<'_, Result<Indexes, Unavailable>> {
        Box::pin(async move {
            let there = self.ask(|registry| Box::pin(async { registry.indexes().await.map(Some) }));
            let (here, there) = join!(self.current.indexes(), timeout(PATIENCE, there));
            let here = here?;
            let there = there.ok().and_then(Result::ok).flatten();
            // Both only grow: the sum stays if and only if both stay. Once the previous place answers again, it differs.
            let sum = |of: fn(&Indexes) -> u64| of(&here).wrapping_add(there.as_ref().map_or(0, of));
            Ok(Indexes { instances: sum(|indexes| indexes.instances), checks: sum(|indexes| indexes.checks) })
        })
    }

    fn nodes(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(async move {
            let mut nodes = self.current.nodes().await?;
            let there = self.if_there(self.ask(Registry::nodes).await)?;
            self.note_own(&nodes);
            let state = self.state();
            let there = there.into_iter().filter(|node| !state.own.contains(node));
            nodes.extend(there.map(|node| format!("{PREVIOUS}{node}").into()));
            Ok(nodes)
        })
    }

    fn names_of_others(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        Box::pin(async move {
            let mut names = self.current.names_of_others().await?;
            // What this cluster has registered at the previous place may look like another cluster's.
            if let Some(left) = &self.state().left {
                for service in left.values() {
                    names.remove(service);
                }
            }
            Ok(names)
        })
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Unavailable>> {
        let Some(there) = node.strip_prefix(PREVIOUS) else { return self.current.read_node(node) };
        Box::pin(async move {
            let there: Str = there.into();
            let found = self.ask(|registry| Box::pin(async move { registry.read_node(&there).await })).await?;
            let rows = self.as_of_now(found);
            self.note_left(&rows, Some(node));
            Ok(rows)
        })
    }

    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>> {
        if bundle.node.starts_with(PREVIOUS) {
            return Box::pin(self.apply_there(bundle));
        }
        self.current.apply(bundle)
    }

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        self.current.check_writes()
    }

    fn tidy<'a>(&'a self, addresses: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(async move {
            self.current.tidy(addresses).await?;
            let there = async {
                self.ask(|registry| registry.tidy(addresses)).await?;
                // Once the last registration is gone there, so are the nodes that were made for them.
                let is_empty = self.state().left.as_ref().is_some_and(BTreeMap::is_empty);
                if is_empty {
                    self.ask(Registry::dismantle).await?;
                    self.state().is_over = true;
                }
                Ok(())
            };
            self.if_there(there.await)
        })
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        Box::pin(async move {
            self.current.dismantle().await?;
            self.if_there(self.ask(Registry::dismantle).await)
        })
    }

    fn wind_down(&self) {
        self.current.wind_down();
        self.previous.registry.wind_down();
    }

    fn bundle_size(&self) -> usize {
        self.current.bundle_size().min(self.previous.registry.bundle_size())
    }

    fn bundles(&self) -> usize {
        self.current.bundles().min(self.previous.registry.bundles())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_previous_place_has_a_node_of_its_own_and_the_id_of_now() {
        let name = |name: &str| ClusterName::new(name).unwrap();
        let (prod, lab) = (name("prod"), name("lab"));
        for (there, id_there, id_now) in [
            (&lab, "lab:shop:user:user:u1:80", "prod:shop:user:user:u1:80"),
            (&prod, "prod:shop:user:user:u1:80", "prod:shop:user:user:u1:80"),
            (&lab, "lab-2:shop:user:user:u1:80", "lab-2:shop:user:user:u1:80"),
        ] {
            let names = Names { now: &prod, there };
            let row = RowKey { node: "dev".into(), id: id_there.into() };
            let now = names.key_now(&row);
            assert_eq!(now, RowKey { node: "previous: dev".into(), id: id_now.into() });
            assert_eq!(names.key_there(&now), row);
        }
    }

    #[test]
    fn an_operation_goes_to_the_previous_place_under_its_name_there() {
        let (prod, lab) = (ClusterName::new("prod").unwrap(), ClusterName::new("lab").unwrap());
        let names = Names { now: &prod, there: &lab };
        let key = RowKey { node: "previous: dev".into(), id: "prod:shop:user:user:u1:80".into() };
        let there = RowKey { node: "dev".into(), id: "lab:shop:user:user:u1:80".into() };
        let unmarked = Arc::new(Registration::plain("user", "10.0.0.1", 80));
        let mut marked = (*unmarked).clone();
        marked.meta.insert(meta::CLUSTER.into(), "prod".into());
        let marked = Arc::new(marked);
        let mark = |op: &Op| op.registration().and_then(|of| of.meta.get(meta::CLUSTER).map(ToString::to_string));
        let table = [
            (Op::Deregister { key: key.clone(), service: "user".into() }, None),
            (Op::Disown { key: key.clone(), registration: unmarked }, None),
            (Op::Readiness { key: key.clone(), registration: Arc::clone(&marked) }, Some("lab")),
            (Op::Register { key, registration: marked, drop_checks: vec!["tcp".into()] }, Some("lab")),
        ];
        for (op, expected) in table {
            let op = names.op_there(&op);
            assert_eq!((op.key(), mark(&op).as_deref()), (&there, expected));
        }
    }
}

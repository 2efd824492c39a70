//! Faults that the product does not have, planted at its seams: the simulation has to catch each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lictor::model::desired::Placement;
use lictor::model::diff::Op;
use lictor::model::ids::Str;
use lictor::model::registration::{Ownership, Row, RowKey};
use lictor::ports::{Bundle, Indexes, Outcome, Registry, Rows, Unavailable};
use tokio::time::sleep;

use crate::expected::owner;
use crate::moves::FORMER_NODE;
use crate::setup::{AGENT_NODE, CLUSTER_UID, Mode};
use crate::sim::Sim;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedFault {
    /// Whatever has an ID like ours counts as ours, whoever's mark it carries.
    NoOwnershipCheck,
    /// A list counts as whole before it is, and so does the fresh list.
    EarlyResync,
    /// Writes to one node overtake each other.
    SwappedLanes,
    /// Now and then an answer says that something was written that was not.
    FalseAnswers,
    /// Nobody minds whose a name is.
    NoRivals,
    /// Nobody minds that a resource is paused.
    NoPause,
    /// An endpoint that stands in a slice of other ports is taken for another one.
    OneSliceEach,
    /// What is not of the first family is not looked at.
    OneFamily,
    /// Every port is taken for one of TCP.
    NoProtocols,
    /// What is in a slice that has not followed its Service's ports is taken for gone.
    NoLaggards,
    /// What terminates is gone, whether it serves or not.
    NoLastOnes,
    /// `ready` is what the pod says, also where it is to be found before that.
    NoEarlyOnes,
    /// The names of the instances that Consul has are misread, and so decide nothing.
    RowsMisread,
    /// A watch that ended and is wanted again does not begin again.
    DeadWatch,
    /// Whoever asks is told that the definition of our kind stays: what ends with it was deleted by a user.
    CrdStays,
    /// What another agent holds is not read.
    NoElsewhere,
    /// What another agent holds counts as held by the present one.
    HastyMove,
    /// An endpoint that leaves a slice was seen terminating before, whether it did or not.
    FalseEnds,
    /// Of a slice only the first endpoints count, whatever is registered.
    BlindLimit,
    /// A write that fails is always taken for an outage.
    AlwaysAnOutage,
    /// Instances are never sent elsewhere than to their own node, whoever has it.
    NoDiversion,
    /// Every name that an endpoint gives is taken for that of a Node.
    AnyNode,
    /// Nodes are found by their mark alone.
    NodesByMark,
    /// A row is ours by its mark alone, on a node of ours too.
    RowsByMark,
    /// The port in use is not read from a status.
    PortsForgotten,
    /// Of a Service's ports the first one is taken for the only one.
    FirstPort,
    /// It is not known that another replica leads, and nothing holds requests back.
    LeadIgnored,
    /// A lead is taken to last until its loss is told.
    LeadWithoutEnd,
    /// The lead is given back while writes are under way.
    LeadGivenBackEarly,
    /// After another replica has led, what was known of Consul before still counts.
    SessionKept,
    /// What stands under names that are too long is not looked at.
    NoLongNames,
    /// What the cluster has left that was there before under its name is not taken over.
    NoTakeover,
    /// A registration is told to be there before it is.
    AnswersAhead,
    /// Instances that stop being ready at once are not held.
    NoHold,
}

/// The limit that a [`PlantedFault::BlindLimit`] takes for itself.
pub const BLIND_LIMIT: usize = 2;

/// How far ahead [`PlantedFault::AnswersAhead`] answers.
const AHEAD: Duration = Duration::from_secs(3);

/// A registry, watched for when Lictor decides, with a fault planted in it or none.
pub struct Watched {
    sim: Sim,
    inner: Arc<dyn Registry>,
    planted: Option<PlantedFault>,
    /// What was held back, to be overtaken by what comes next.
    held_back: Mutex<BTreeMap<Str, Vec<Op>>>,
}

impl Watched {
    pub fn new(sim: Sim, inner: Arc<dyn Registry>, planted: Option<PlantedFault>) -> Self {
        Self { sim, inner, planted, held_back: Mutex::default() }
    }

    fn claimed(&self, mut rows: Rows) -> Rows {
        match self.planted {
            Some(PlantedFault::NoElsewhere) => rows.retain(|key, _| *key.node != *FORMER_NODE),
            Some(PlantedFault::HastyMove) => {
                let elsewhere: Rows = rows.clone().into_iter().filter(|(key, _)| *key.node == *FORMER_NODE).collect();
                for (key, row) in elsewhere {
                    rows.entry(RowKey { node: AGENT_NODE.into(), ..key }).or_insert(row);
                }
            }
            Some(PlantedFault::NoLongNames) => rows.retain(|key, _| key.node.len() <= 63),
            Some(PlantedFault::RowsByMark) => {
                for row in rows.values_mut().filter(|row| !has_our_mark(row)) {
                    row.ownership = Ownership::Other("somebody".to_owned());
                }
            }
            _ => {}
        }
        if self.planted == Some(PlantedFault::NoOwnershipCheck) {
            for (key, row) in &mut rows {
                if let Some(owner) = owner(&key.id) {
                    row.ownership = Ownership::Ours(owner);
                }
            }
        }
        if self.planted == Some(PlantedFault::RowsMisread) {
            for row in rows.values_mut() {
                let service = format!("{}-misread", row.registration.service).into();
                Arc::make_mut(&mut row.registration).service = service;
            }
        }
        rows
    }

    /// Carries out only what was held back before, and holds this bundle back.
    async fn overtake(&self, bundle: &Bundle) -> Vec<Outcome> {
        let before = self.held_back.lock().expect("no panics").insert(bundle.node.clone(), bundle.ops.clone());
        let mut outcomes = vec![Outcome::Written { shown: true }; bundle.ops.len()];
        if let Some(before) = before {
            self.held_back.lock().expect("no panics").remove(&bundle.node);
            outcomes = self.inner.apply(bundle).await;
            let late = Bundle { ops: before, ..bundle.clone() };
            self.inner.apply(&late).await;
        }
        outcomes
    }

    /// In the catalog Lictor steps back from another one only where there is another one.
    fn judge_outage(&self, outage: &Unavailable) {
        let mut state = self.sim.state();
        let steps_back = state.setup.mode == Mode::Catalog && outage.session_lost && outage.retry_after.is_some();
        if steps_back && !state.leadership.another_led {
            state.violate("one leader", format!("Lictor takes itself for another one: {outage}"));
        }
    }

    fn judged<T>(&self, answer: Result<T, Unavailable>) -> Result<T, Unavailable> {
        answer.inspect_err(|outage| self.judge_outage(outage))
    }

    async fn carry_out(&self, bundle: &Bundle) -> Vec<Outcome> {
        let outcomes = self.inner.apply(bundle).await;
        for outcome in &outcomes {
            if let Outcome::NotTried(outage) | Outcome::Unknown(outage) = outcome {
                self.judge_outage(outage);
            }
        }
        outcomes
    }

    /// Carries out what registers after it has been answered.
    async fn answer_ahead(&self, bundle: &Bundle) -> Vec<Outcome> {
        if !bundle.ops.iter().all(|op| matches!(op, Op::Register { .. })) {
            return self.carry_out(bundle).await;
        }
        let (inner, bundle) = (self.inner.clone(), bundle.clone());
        let answers = vec![Outcome::Written { shown: true }; bundle.ops.len()];
        tokio::spawn(async move {
            sleep(AHEAD).await;
            inner.apply(&bundle).await
        });
        answers
    }

    async fn lie(&self, bundle: &Bundle) -> Vec<Outcome> {
        let lies = self.sim.state().random.lives.u8(..4) == 0;
        if lies { vec![Outcome::Written { shown: true }; bundle.ops.len()] } else { self.inner.apply(bundle).await }
    }
}

fn has_our_mark(row: &Row) -> bool {
    row.registration.meta.get("lictor-cluster-uid").is_none_or(|uid| **uid == *CLUSTER_UID)
}

impl Registry for Watched {
    fn connect(&self) -> BoxFuture<'_, Result<Placement, Unavailable>> {
        self.inner.connect()
    }

    fn resume(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        async move {
            let resumed = self.inner.resume().await?;
            let (kept, forgotten) =
                ("sessions kept over a loss of the lead", "sessions begun anew after a loss of the lead");
            self.sim.state().stats.count(if resumed { kept } else { forgotten });
            Ok(resumed || self.planted == Some(PlantedFault::SessionKept))
        }
        .boxed()
    }

    fn survey(&self) -> BoxFuture<'_, Result<(Placement, Rows), Unavailable>> {
        self.inner.survey()
    }

    fn placement(&self) -> Option<Placement> {
        // Without an answer the engine goes by what `connect` has said.
        self.inner.placement().filter(|_| self.planted != Some(PlantedFault::NoDiversion))
    }

    fn read(&self) -> BoxFuture<'_, Result<Rows, Unavailable>> {
        async move { self.judged(self.inner.read().await).map(|rows| self.claimed(rows)) }.boxed()
    }

    fn indexes(&self) -> BoxFuture<'_, Result<Indexes, Unavailable>> {
        async move { self.judged(self.inner.indexes().await) }.boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        async move { self.judged(self.inner.nodes().await) }.boxed()
    }

    fn names_of_others(&self) -> BoxFuture<'_, Result<BTreeSet<Str>, Unavailable>> {
        self.inner.names_of_others()
    }

    fn read_node<'a>(&'a self, node: &'a Str) -> BoxFuture<'a, Result<Rows, Unavailable>> {
        async move { self.judged(self.inner.read_node(node).await).map(|rows| self.claimed(rows)) }.boxed()
    }

    fn apply<'a>(&'a self, bundle: &'a Bundle) -> BoxFuture<'a, Vec<Outcome>> {
        self.sim.state().decides(&bundle.node);
        match self.planted {
            Some(PlantedFault::SwappedLanes) => self.overtake(bundle).boxed(),
            Some(PlantedFault::FalseAnswers) => self.lie(bundle).boxed(),
            Some(PlantedFault::AnswersAhead) => self.answer_ahead(bundle).boxed(),
            _ => self.carry_out(bundle).boxed(),
        }
    }

    fn check_writes(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        if self.planted == Some(PlantedFault::AlwaysAnOutage) {
            let trouble = Unavailable::transient("a write failed");
            return std::future::ready(Err(trouble)).boxed();
        }
        async move { self.judged(self.inner.check_writes().await) }.boxed()
    }

    fn tidy<'a>(&'a self, addresses: &'a BTreeMap<Str, IpAddr>) -> BoxFuture<'a, Result<(), Unavailable>> {
        self.inner.tidy(addresses)
    }

    fn dismantle(&self) -> BoxFuture<'_, Result<(), Unavailable>> {
        self.inner.dismantle()
    }

    fn wind_down(&self) {
        self.inner.wind_down();
    }

    fn bundle_size(&self) -> usize {
        // It asks just before it takes a bundle.
        self.sim.state().launches();
        self.inner.bundle_size()
    }

    fn bundles(&self) -> usize {
        self.inner.bundles()
    }
}

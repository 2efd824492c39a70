//! Writing a bundle: transactions are sent, and what they are rolled back for is mended, until each operation has an
//! outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::group::Sent;
use super::marker::Fence;
use super::transaction::{Part, Parts, SeenChecks, Transaction, writes_checks};
use super::{Catalog, NO_ADDRESS, Recovery, TxnResult, unexplained};
use crate::consul::WINDING_DOWN;
use crate::consul::wire::{Fault, Node, TxnError};
use crate::model::diff::Op;
use crate::model::ids::{Str, meta};
use crate::model::nodes::NodeOwner;
use crate::ports::{Bundle, Outcome, Unavailable};

/// The most times that a transaction is mended and tried again before we give up on finding out what Consul means.
/// Taking out an operation that Consul refuses does not count.
const REPAIRS: usize = 6;

/// The number of times that others may have a bundle's transaction rolled back. After that it goes alone.
const SPOILED: usize = 2;

/// A bundle on its way.
struct Attempt<'a> {
    bundle: &'a Bundle,
    /// The outcome of each operation, as far as it is known.
    outcomes: Vec<Option<Outcome>>,
    /// The places of those whose instance was found not to be there.
    unregistered: BTreeSet<usize>,
    /// The checks on the node, where they were needed: what consul-esm says of those that are there has to stay.
    seen: Option<SeenChecks>,
    /// The most operations in a transaction: fewer after one that Consul refused as a whole.
    most: usize,
    /// True if Consul was seen to carry out others since it refused one as a whole.
    others_pass: bool,
    /// Counts how often nothing was carried out because of what others had in the transaction.
    spoiled: usize,
    /// True if its transactions go without those of others.
    alone: bool,
    /// Counts how often a transaction was mended since the last operation was refused.
    repairs: usize,
}

impl Attempt<'_> {
    /// The places of the operations that nothing has become of yet.
    fn pending(&self) -> Vec<usize> {
        (0..self.outcomes.len()).filter(|&index| self.outcomes[index].is_none()).collect()
    }

    /// Gives operations an outcome.
    fn set(&mut self, ops: Vec<usize>, outcome: &Outcome) {
        for index in ops {
            self.outcomes[index] = Some(outcome.clone());
        }
    }

    /// Notes that operations are refused, each with Consul's text.
    fn refuse(&mut self, refused: BTreeMap<usize, String>) {
        for (index, words) in refused {
            self.outcomes[index] = Some(Outcome::Refused(words));
        }
    }

    /// Says whether an operation is in vain without its node.
    fn needs_node(&self, index: usize) -> bool {
        matches!(self.bundle.ops[index], Op::Register { .. }) || self.unregistered.contains(&index)
    }

    /// Takes into account what a fault says of the operation at this place, and answers whether the next transaction may
    /// fare better.
    fn mend(&mut self, part: Part, index: usize, fault: Fault) -> bool {
        let only_check = matches!(self.bundle.ops[index], Op::Readiness { .. }) && !self.unregistered.contains(&index);
        match (part, fault) {
            // It is gone: nothing of ours is left to take off it.
            (Part::Look(_), Fault::Gone) => self.outcomes[index] = Some(Outcome::Written { shown: true }),
            // consul-esm had something to say in the meantime.
            (Part::Check(_), Fault::StaleIndex) => self.seen = None,
            (_, Fault::MissingNode | Fault::MissingService) if only_check => _ = self.unregistered.insert(index),
            // The next transaction makes the node.
            (_, Fault::MissingNode) => {}
            _ => return false,
        }
        true
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

    /// Says whether an operation writes checks for consul-esm to run.
    fn writes_checks(&self, index: usize) -> bool {
        writes_checks(&self.bundle.ops[index], self.unregistered.contains(&index))
    }
}

impl Catalog {
    pub(super) async fn carry_out(&self, bundle: &Bundle) -> Vec<Outcome> {
        if *bundle.node == *self.marker {
            let words = format!("the Consul node {} is Lictor's own marker: set another --cluster-name", self.marker);
            return vec![Outcome::Refused(words); bundle.ops.len()];
        }
        let _deletions_wait = self.deleting.read().await;
        let outcomes = vec![None; bundle.ops.len()];
        let mut attempt = Attempt {
            bundle,
            outcomes,
            unregistered: BTreeSet::new(),
            seen: None,
            most: usize::MAX,
            others_pass: false,
            spoiled: 0,
            alone: bundle.alone,
            repairs: 0,
        };
        let end = self.run(&mut attempt).await;
        let outage = end.err().unwrap_or_else(|| Unavailable::transient("not reached"));
        let outcome = |outcome: Option<Outcome>| outcome.unwrap_or_else(|| Outcome::NotTried(outage.clone()));
        attempt.outcomes.into_iter().map(outcome).collect()
    }

    /// Sends transactions until each operation has an outcome, or nothing more can be done: then says why.
    async fn run(&self, attempt: &mut Attempt<'_>) -> Result<(), Unavailable> {
        loop {
            let pending = attempt.pending();
            if pending.is_empty() {
                return Ok(());
            }
            if self.winding_down.load(Ordering::SeqCst) {
                return Err(Unavailable::transient(WINDING_DOWN));
            }
            if attempt.seen.is_none() && pending.iter().any(|&index| attempt.writes_checks(index)) {
                attempt.seen = Some(self.seen_checks(&attempt.bundle.node).await?);
            }
            let transaction = self.compose(attempt, &pending[..pending.len().min(attempt.most)]);
            let parts = transaction.parts().clone();
            let (fence, result) = match self.send(transaction, attempt.alone).await {
                Sent::Under(fence, result) => (fence, result),
                Sent::RolledBack => {
                    attempt.spoiled += 1;
                    attempt.alone |= attempt.spoiled >= SPOILED;
                    continue;
                }
                Sent::RejectedTogether => {
                    attempt.alone = true;
                    continue;
                }
                Sent::Stopped(outage) => return Err(outage),
                Sent::Lost => {
                    let outage = Unavailable::transient("whoever has sent it has not told what became of it");
                    self.doubt_all();
                    attempt.set(parts.ops(), &Outcome::Unknown(outage.clone()));
                    return Err(outage);
                }
            };
            match result {
                TxnResult::Done(_) => {
                    self.note_written(attempt, &parts);
                    attempt.set(parts.ops(), &Outcome::Written { shown: true });
                }
                TxnResult::NotTried(outage) => return Err(outage),
                TxnResult::Unknown(outage) => {
                    self.doubt(fence);
                    attempt.set(parts.ops(), &Outcome::Unknown(outage.clone()));
                    return Err(outage);
                }
                TxnResult::Rejected(words) => self.reject(attempt, &parts, words).await?,
                TxnResult::Conflict(errors) => {
                    // What fails again takes no others along.
                    attempt.alone |= errors.iter().any(|error| parts.part(error.op_index) != Some(Part::Fence));
                    self.recover(attempt, &pending, &parts, &errors, fence).await?;
                }
            }
        }
    }

    /// Goes on after a transaction that was rolled back by these errors.
    async fn recover(
        &self,
        attempt: &mut Attempt<'_>,
        pending: &[usize],
        parts: &Parts,
        errors: &[TxnError],
        fence: Fence,
    ) -> Result<(), Unavailable> {
        match self.recovery(attempt, parts, errors, fence).await {
            Recovery::Again if attempt.repairs < REPAIRS => attempt.repairs += 1,
            Recovery::Again => {
                let refused = in_conflict(attempt, parts, errors);
                if refused.is_empty() {
                    return Err(Unavailable::transient(unexplained(errors)));
                }
                attempt.repairs = 0;
                attempt.refuse(refused);
            }
            Recovery::Split(words) => self.reject(attempt, parts, words).await?,
            Recovery::Blame(culprits) => attempt.refuse(culprits),
            Recovery::NoNode(words) => {
                let in_vain = pending.iter().copied().filter(|&index| attempt.needs_node(index)).collect();
                attempt.set(in_vain, &Outcome::Refused(words));
            }
            Recovery::Stop(outage) => return Err(outage),
        }
        Ok(())
    }

    /// Finds the operation for which Consul refuses a transaction as a whole, unless Consul refuses every one: then
    /// says so.
    async fn reject(&self, attempt: &mut Attempt<'_>, parts: &Parts, words: String) -> Result<(), Unavailable> {
        if !attempt.others_pass {
            self.transact_nothing().await?;
            attempt.others_pass = true;
        }
        attempt.split(&parts.ops(), words);
        Ok(())
    }

    /// A transaction of as many of these operations as fit, behind their node where it has to be made or changed.
    fn compose(&self, attempt: &Attempt<'_>, pending: &[usize]) -> Transaction {
        let bundle = attempt.bundle;
        let mut transaction = Transaction::new();
        if pending.iter().any(|&index| attempt.needs_node(index)) {
            let is_for_esm = pending.iter().any(|&index| attempt.writes_checks(index));
            let node = self.node_for(&bundle.node, bundle.address.unwrap_or(NO_ADDRESS), is_for_esm);
            if let Some(node) = node {
                transaction.make_node(&node);
            }
        }
        let nothing_seen = SeenChecks::new();
        let seen = attempt.seen.as_ref().unwrap_or(&nothing_seen);
        for &index in pending {
            if !transaction.add(index, &bundle.ops[index], attempt.unregistered.contains(&index), seen) {
                break;
            }
        }
        transaction
    }

    fn note_written(&self, attempt: &Attempt<'_>, parts: &Parts) {
        let bundle = attempt.bundle;
        let mut state = self.state();
        for index in parts.ops() {
            if attempt.writes_checks(index) {
                state.note_checks_written(&bundle.node);
            }
            match &bundle.ops[index] {
                Op::Deregister { .. } => {
                    if state.nodes.contains_key(&bundle.node) {
                        state.empty.entry(Arc::clone(&bundle.node)).or_default();
                    }
                }
                Op::Register { .. } | Op::Readiness { .. } | Op::Disown { .. } => {
                    state.empty.remove(&bundle.node);
                }
            }
        }
    }

    /// Finds out why a transaction was rolled back.
    async fn recovery(&self, attempt: &mut Attempt<'_>, parts: &Parts, errors: &[TxnError], fence: Fence) -> Recovery {
        let node = &attempt.bundle.node;
        let of = |wanted: Part| errors.iter().find(|error| parts.part(error.op_index) == Some(wanted));
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
            match parts.part(error.op_index) {
                Some(part @ (Part::Look(index) | Part::Service(index) | Part::Check(index))) => {
                    if attempt.mend(part, index, error.fault) {
                        mended = true;
                    } else {
                        // The first is the cause, those after it hang on it.
                        blame.entry(index).or_insert_with(|| error.what.clone());
                    }
                }
                Some(Part::Fence | Part::Node) | None => {}
            }
        }
        match (blame.is_empty(), mended) {
            (false, _) => Recovery::Blame(blame),
            (true, true) => Recovery::Again,
            (true, false) => Recovery::Split(unexplained(errors)),
        }
    }

    pub(super) async fn fence_failed(&self, fence: Fence, fault: Fault, words: &str) -> Recovery {
        if fault == Fault::PermissionDenied {
            return Recovery::Stop(Unavailable::transient(format!(
                "the Consul token may not write the node {}: it needs node:write on it ({words})",
                self.marker
            )));
        }
        match self.stand_again(fence).await {
            Ok(()) => Recovery::Again,
            Err(outage) => Recovery::Stop(outage),
        }
    }

    /// Making or changing the node failed: it is not as we knew it, or may not be.
    async fn node_failed(&self, name: &Str, error: &TxnError) -> Recovery {
        if error.fault != Fault::StaleIndex {
            return Recovery::NoNode(format!("the Consul node {name} cannot be written: {}", error.what));
        }
        let (found, checks) = match self.read_services(name).await {
            Ok(found) => found,
            Err(outage) => return Recovery::Stop(outage),
        };
        let Some(node) = found.node else {
            self.state().nodes.remove(name);
            return Recovery::Again;
        };
        let services = found.services.unwrap_or_default();
        match self.owner(&node, &services, &checks) {
            NodeOwner::Ours | NodeOwner::OursUnmarked => {
                self.state().know(&self.marker, name, &node);
                Recovery::Again
            }
            owner @ (NodeOwner::Agent | NodeOwner::Others) => {
                self.state().give_up(name);
                Recovery::NoNode(not_ours(name, &node, owner))
            }
        }
    }
}

/// The operations that run into the changes of somebody else each time, with what to say of each: those that these
/// errors are about, or where it is their node that changes, those that need it.
fn in_conflict(attempt: &Attempt<'_>, parts: &Parts, errors: &[TxnError]) -> BTreeMap<usize, String> {
    let mut found = BTreeMap::new();
    for error in errors {
        let ops = match parts.part(error.op_index) {
            Some(Part::Look(index) | Part::Service(index) | Part::Check(index)) => vec![index],
            Some(Part::Node) => parts.ops().into_iter().filter(|&index| attempt.needs_node(index)).collect(),
            Some(Part::Fence) | None => Vec::new(),
        };
        for index in ops {
            found.entry(index).or_insert_with(|| {
                format!("somebody else changes the entry each time when Lictor writes it: {}", error.what)
            });
        }
    }
    found
}

/// Says to the user whose a node is that is not ours.
fn not_ours(name: &str, node: &Node, owner: NodeOwner) -> String {
    if owner == NodeOwner::Agent {
        return format!("the Consul node {name} is a Consul agent's own");
    }
    format!(
        "the Consul node {name} exists, but does not belong to this cluster (managed-by {:?}, cluster {:?}, uid {:?})",
        node.meta(meta::MANAGED_BY),
        node.meta(meta::CLUSTER),
        node.meta(meta::CLUSTER_UID)
    )
}

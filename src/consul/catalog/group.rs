//! Transactions of several nodes: bundles that wait for their turn go together, as far as they fit.
//!
//! In: the operations of one bundle, without a fence. Out: what became of them. Consul carries out one transaction at a time,
//! and each costs it an entry in its log, however little is in it. So only some are under way at once, and whatever comes
//! meanwhile waits and then goes in the next one. A bundle that finds a turn free goes at once and alone.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::marker::Fence;
use super::transaction::{Transaction, body, errors_of, fits};
use super::{Catalog, TxnResult};
use crate::consul::WINDING_DOWN;
use crate::ports::Unavailable;

/// The outcome of sending the operations of a bundle.
#[derive(Debug)]
pub(super) enum Sent {
    /// They were sent under this fence, with this result.
    Under(Fence, TxnResult),
    /// Consul carried out nothing, because of what others had in the transaction.
    RolledBack,
    /// Consul refused the transaction as a whole, and others had something in it.
    RejectedTogether,
    /// They were surely not sent.
    Stopped(Unavailable),
    /// Whoever sent them has not told.
    Lost,
}

/// The bundles that wait.
pub(super) struct Groups {
    /// One for each transaction that may be under way.
    turns: Semaphore,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    transaction: Transaction,
    tell: oneshot::Sender<Sent>,
}

impl Groups {
    /// At most so many transactions are under way at once.
    pub(super) fn new(transactions: usize) -> Self {
        Self { turns: Semaphore::new(transactions.max(1)), queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits that nothing can be sent: each would find that out by itself otherwise, one after the other.
    fn stop(&self, outage: &Unavailable) {
        for waiting in std::mem::take(&mut self.queue().waiting) {
            waiting.tell(Sent::Stopped(outage.clone()));
        }
    }
}

impl Waiting {
    /// Tells what became of it. Who waited may have gone.
    fn tell(self, sent: Sent) {
        let _ = self.tell.send(sent);
    }
}

impl Queue {
    fn put(&mut self, transaction: Transaction) -> (u64, oneshot::Receiver<Sent>) {
        let (tell, told) = oneshot::channel();
        self.next += 1;
        self.waiting.push_back(Waiting { number: self.next, transaction, tell });
        (self.next, told)
    }

    /// Takes the transaction of this number and, after it, the others that fit beside it; nothing where it was taken already.
    fn take(&mut self, number: u64) -> Vec<Waiting> {
        // Nobody would learn what became of these.
        self.waiting.retain(|waiting| !waiting.tell.is_closed());
        let Some(place) = self.waiting.iter().position(|waiting| waiting.number == number) else { return Vec::new() };
        let mut group: Vec<Waiting> = self.waiting.remove(place).into_iter().collect();
        let (mut ops, mut bytes) = (0, 0);
        for waiting in &group {
            (ops, bytes) = (ops + waiting.transaction.len(), bytes + waiting.transaction.bytes());
        }
        for waiting in std::mem::take(&mut self.waiting) {
            let with = (ops + waiting.transaction.len(), bytes + waiting.transaction.bytes());
            if fits(with.0, with.1) {
                (ops, bytes) = with;
                group.push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        group
    }
}

impl Catalog {
    /// Sends a transaction: with others that wait, unless it goes `alone`.
    pub(super) async fn send(&self, transaction: Transaction, alone: bool) -> Sent {
        if alone {
            let turn = self.groups.turns.acquire().await;
            let sent = self.send_group(&[&transaction]).await.pop();
            drop(turn);
            return sent.unwrap_or(Sent::Lost);
        }
        let (number, mut told) = self.groups.queue().put(transaction);
        let turn = tokio::select! {
            biased;
            sent = &mut told => return sent.unwrap_or(Sent::Lost),
            turn = self.groups.turns.acquire() => turn,
        };
        // It may have gone with another one since: then that one tells.
        let group = self.groups.queue().take(number);
        if !group.is_empty() {
            let transactions: Vec<&Transaction> = group.iter().map(|waiting| &waiting.transaction).collect();
            let sent = self.send_group(&transactions).await;
            for (waiting, sent) in group.into_iter().zip(sent) {
                waiting.tell(sent);
            }
        }
        drop(turn);
        told.await.unwrap_or(Sent::Lost)
    }

    /// Sends transactions as one, and says for each what became of it.
    async fn send_group(&self, group: &[&Transaction]) -> Vec<Sent> {
        let sent = self.try_group(group).await;
        match sent {
            Ok((fence, result)) => shares(group, fence, result),
            Err(outage) => {
                self.groups.stop(&outage);
                group.iter().map(|_| Sent::Stopped(outage.clone())).collect()
            }
        }
    }

    /// Sends transactions as one, unless nothing can be sent.
    async fn try_group(&self, group: &[&Transaction]) -> Result<(Fence, TxnResult), Unavailable> {
        if self.winding_down.load(Ordering::SeqCst) {
            return Err(Unavailable::transient(WINDING_DOWN));
        }
        let fence = self.current_fence().await?;
        match self.transact(body(&self.fence_op(fence), group.iter().copied())).await {
            TxnResult::NotTried(outage) => Err(outage),
            TxnResult::Done(nodes) => {
                self.know_all(&nodes);
                Ok((fence, TxnResult::Done(Vec::new())))
            }
            result => Ok((fence, result)),
        }
    }
}

/// Divides the result of transactions that went together among them, in their order.
fn shares(group: &[&Transaction], fence: Fence, result: TxnResult) -> Vec<Sent> {
    if group.len() == 1 {
        return vec![Sent::Under(fence, result)];
    }
    let mut first = 1;
    let share = |transaction: &&Transaction| match &result {
        TxnResult::Rejected(_) => Sent::RejectedTogether,
        TxnResult::Conflict(errors) => {
            let own = errors_of(transaction, first, errors);
            first += transaction.len();
            if own.is_empty() { Sent::RolledBack } else { Sent::Under(fence, TxnResult::Conflict(own)) }
        }
        other => Sent::Under(fence, other.clone()),
    };
    group.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::transaction::{Part, SeenChecks};
    use super::*;
    use crate::consul::wire::{Fault, TxnError};
    use crate::model::diff::Op;
    use crate::model::registration::RowKey;

    fn transaction(ops: usize) -> Transaction {
        with_ids(ops, 1)
    }

    /// One of so many operations for instances with IDs of so many characters.
    fn with_ids(ops: usize, length: usize) -> Transaction {
        let mut transaction = Transaction::new();
        for index in 0..ops {
            let key = RowKey { node: "n".into(), id: "x".repeat(length).into() };
            transaction.add(index, &Op::Deregister { key, service: "s".into() }, false, &SeenChecks::new());
        }
        transaction
    }

    /// The sizes of those that are taken with the one of this number.
    fn take(queue: &mut Queue, number: u64) -> Vec<usize> {
        queue.take(number).iter().map(|waiting| waiting.transaction.len()).collect()
    }

    #[test]
    fn what_waits_goes_along_as_far_as_it_fits_and_the_rest_keeps_its_order() {
        let mut queue = Queue::default();
        let told: Vec<_> = [1, 100, 60, 20, 70, 6].into_iter().map(|ops| queue.put(transaction(ops))).collect();
        assert_eq!(take(&mut queue, 2), [100, 1, 20, 6], "its own first, then whatever waits");
        assert_eq!(take(&mut queue, 1), Vec::<usize>::new(), "it has gone");
        assert_eq!(take(&mut queue, 5), [70], "127 at most, the fence apart");
        assert_eq!(take(&mut queue, 3), [60]);
        drop(told);
    }

    #[test]
    fn nothing_is_sent_for_who_has_gone() {
        let mut queue = Queue::default();
        let (first, _first) = queue.put(transaction(1));
        let (gone, told) = queue.put(transaction(2));
        let (_, _third) = queue.put(transaction(3));
        drop(told);
        assert_eq!(take(&mut queue, gone), Vec::<usize>::new());
        assert_eq!(take(&mut queue, first), [1, 3]);
    }

    #[test]
    fn all_who_wait_hear_of_what_stops_one() {
        let groups = Groups::new(1);
        let told: Vec<_> = [1, 2].into_iter().map(|ops| groups.queue().put(transaction(ops)).1).collect();
        groups.stop(&Unavailable::transient("no leader"));
        for mut told in told {
            let Ok(Sent::Stopped(outage)) = told.try_recv() else { panic!("it was told otherwise") };
            assert_eq!(outage.message, "no leader");
        }
        assert!(groups.queue().waiting.is_empty());
    }

    fn error(op_index: usize) -> TxnError {
        TxnError { op_index, what: op_index.to_string(), fault: Fault::Other }
    }

    /// Says in short what became of each of transactions with so many operations.
    fn told(sizes: &[usize], result: TxnResult) -> Vec<String> {
        let all: Vec<Transaction> = sizes.iter().map(|ops| transaction(*ops)).collect();
        let all: Vec<&Transaction> = all.iter().collect();
        let places = |errors: &[TxnError]| errors.iter().map(|error| error.op_index.to_string()).collect::<Vec<_>>();
        let short = |sent| match sent {
            Sent::Under(_, TxnResult::Done(_)) => "done".to_owned(),
            Sent::Under(_, TxnResult::Conflict(errors)) => format!("conflict {}", places(&errors).join(" ")),
            Sent::Under(_, TxnResult::Rejected(words)) => format!("rejected {words}"),
            Sent::Under(_, TxnResult::Unknown(outage)) => format!("unknown {}", outage.message),
            Sent::RolledBack => "again".to_owned(),
            Sent::RejectedTogether => "alone".to_owned(),
            sent => format!("{sent:?}"),
        };
        shares(&all, Fence::default(), result).into_iter().map(short).collect()
    }

    #[test]
    fn each_of_a_group_learns_what_concerns_it() {
        let conflict = |places: &[usize]| TxnResult::Conflict(places.iter().copied().map(error).collect());
        for (sizes, result, expected) in [
            (&[2, 1][..], TxnResult::Done(Vec::new()), &["done", "done"][..]),
            (&[2, 1], TxnResult::Unknown(Unavailable::transient("no answer")), &["unknown no answer"; 2]),
            (&[2, 1], TxnResult::Rejected("too large".into()), &["alone", "alone"]),
            (&[2], TxnResult::Rejected("too large".into()), &["rejected too large"]),
            // The fence concerns all of them.
            (&[2, 1], conflict(&[0]), &["conflict 0", "conflict 0"]),
            (&[2, 1], conflict(&[0, 3]), &["conflict 0", "conflict 0 1"]),
            (&[2, 1, 3], conflict(&[2, 4, 6]), &["conflict 2", "again", "conflict 1 3"]),
            (&[2, 1, 3], conflict(&[3]), &["again", "conflict 1", "again"]),
            // What Consul says of an operation that there is not concerns nobody, unless there is just one.
            (&[2, 1], conflict(&[4]), &["again", "again"]),
            (&[2], conflict(&[4]), &["conflict 4"]),
        ] {
            assert_eq!(told(sizes, result.clone()), expected, "{sizes:?} {result:?}");
        }
    }

    proptest! {
        /// Each error comes to whose operation failed and to nobody else, at the place that it has there.
        #[test]
        fn no_error_is_lost_or_strays(sizes in vec(1_usize..6, 2..9), failed in vec(0_usize..40, 1..6)) {
            let all: Vec<Transaction> = sizes.iter().map(|ops| transaction(*ops)).collect();
            let all: Vec<&Transaction> = all.iter().collect();
            let owners: Vec<(usize, usize)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(member, ops)| (1..=*ops).map(move |place| (member, place)))
                .collect();
            let sent = shares(&all, Fence::default(), TxnResult::Conflict(failed.iter().copied().map(error).collect()));
            prop_assert_eq!(sent.len(), sizes.len());
            for (member, sent) in sent.iter().enumerate() {
                let expected: Vec<(usize, String)> = failed
                    .iter()
                    .filter_map(|&at| match at.checked_sub(1) {
                        None => Some((0, at.to_string())),
                        Some(at) => {
                            let (owner, place) = *owners.get(at)?;
                            (owner == member).then(|| (place, (at + 1).to_string()))
                        }
                    })
                    .collect();
                match sent {
                    Sent::RolledBack => prop_assert!(expected.is_empty()),
                    Sent::Under(_, TxnResult::Conflict(errors)) => {
                        let told: Vec<_> = errors.iter().map(|error| (error.op_index, error.what.clone())).collect();
                        prop_assert_eq!(told, expected);
                        let parts = all[member].parts();
                        prop_assert!(errors.iter().all(|error| parts.part(error.op_index).is_some_and(
                            |part| (part == Part::Fence) == (error.op_index == 0)
                        )));
                    }
                    sent => prop_assert!(false, "{:?}", sent),
                }
            }
        }

        /// Whoever takes, and in which order: each goes once, with no more beside it than Consul takes.
        #[test]
        fn each_that_waits_goes_once_in_a_transaction_that_consul_takes(
            waiting in vec((1_usize..126, prop_oneof![4 => 1_usize..50, 1 => 1_000_usize..4_000]), 1..12),
            order in vec(any::<prop::sample::Index>(), 12),
        ) {
            let mut queue = Queue::default();
            let told: Vec<_> = waiting.iter().map(|(ops, length)| queue.put(with_ids(*ops, *length))).collect();
            let mut gone: Vec<u64> = Vec::new();
            let takers = order.iter().map(|index| told[index.index(told.len())].0).chain(told.iter().map(|one| one.0));
            for number in takers {
                let group = queue.take(number);
                let numbers: Vec<u64> = group.iter().map(|waiting| waiting.number).collect();
                prop_assert_eq!(numbers.first().copied(), (!gone.contains(&number)).then_some(number));
                let ops = group.iter().map(|waiting| waiting.transaction.len()).sum();
                let bytes = group.iter().map(|waiting| waiting.transaction.bytes()).sum();
                prop_assert!(group.len() < 2 || fits(ops, bytes), "{} {}", ops, bytes);
                gone.extend(numbers);
            }
            gone.sort_unstable();
            prop_assert_eq!(gone, told.iter().map(|one| one.0).collect::<Vec<_>>());
        }
    }
}

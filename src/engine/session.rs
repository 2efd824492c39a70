//! The session with Consul: connected, loaded, ready; outages, and answers that came too late.
//!
//! In: what Consul answered. Out: what to ask of it next, and whether an answer still counts. A session begins anew
//! when nothing that was known of Consul holds any more; what was asked in an earlier one is not believed.

use tokio::time::Instant;

use crate::model::desired::Placement;
use crate::model::reasons::OutageKind;
use crate::ports::{Backoff, Unavailable};

/// The session with Consul.
#[derive(Debug, Default)]
pub(super) struct Session {
    state: State,
    /// Rises with each reset.
    generation: u64,
    outage: Option<Outage>,
    /// The number of failures of Consul in a row. That it can be read does not show that it can be written.
    failures: u32,
}

/// The progress of a session.
#[derive(Debug, Default)]
enum State {
    #[default]
    Disconnected,
    Connecting,
    /// Everything of this cluster is to be read, or is being read.
    Loading(Placement),
    /// The mirror is whole.
    Ready(Placement),
    /// It was whole when another replica began to act, or might have.
    Suspended(Placement),
    /// It is being asked whether it still counts.
    Resuming(Placement),
}

/// Consul is unavailable.
#[derive(Debug)]
struct Outage {
    /// The kind of the outage, for the authors of resources.
    kind: OutageKind,
    /// The error text, for the administrator.
    message: String,
    /// True if a write failed: then a read of its node tells all that there is to know.
    of_a_write: bool,
    /// Nothing is asked of Consul before; none once that time has come.
    until: Option<Instant>,
}

/// The consequences of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// True if nobody has been told of an outage of this kind yet.
    pub(super) is_new: bool,
    /// The time when Consul is asked again.
    pub(super) resumes: Instant,
}

/// An answer, with the session in which it was asked for.
#[derive(Debug)]
pub(super) struct Stamped<T> {
    generation: u64,
    answer: T,
}

/// The session in which something is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// Stamps an answer.
    pub(super) fn on<T>(self, answer: T) -> Stamped<T> {
        Stamped { generation: self.0, answer }
    }
}

impl Session {
    /// The stamp for what is asked now.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.generation)
    }

    /// Gives the answer, unless it was asked for in an earlier session.
    pub(super) fn accept<T>(&self, stamped: Stamped<T>) -> Option<T> {
        let (answer, is_current) = self.open(stamped);
        is_current.then_some(answer)
    }

    /// Gives the answer, and whether it was asked for in this session.
    pub(super) fn open<T>(&self, stamped: Stamped<T>) -> (T, bool) {
        (stamped.answer, stamped.generation == self.generation)
    }

    /// Says where instances go; none while the mirror is not whole.
    pub(super) fn placement(&self) -> Option<&Placement> {
        match &self.state {
            State::Ready(placement) => Some(placement),
            State::Disconnected | State::Connecting | State::Loading(_) | State::Suspended(_) | State::Resuming(_) => {
                None
            }
        }
    }

    /// Says whether the mirror is whole.
    pub(super) fn is_ready(&self) -> bool {
        self.placement().is_some()
    }

    /// Says whether something was asked or learned in this session.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.state, State::Disconnected)
    }

    /// Says whether nothing may be asked of Consul for now.
    pub(super) fn is_paused(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.until.is_some())
    }

    /// Says why Consul is unavailable; none if it is not.
    pub(super) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| &*outage.message)
    }

    /// Gives the kind of the outage of Consul; none if there is none.
    pub(super) fn outage_kind(&self) -> Option<OutageKind> {
        self.outage.as_ref().map(|outage| outage.kind)
    }

    /// Says whether the nodes of Consul may be read now.
    pub(super) fn may_read(&self) -> bool {
        matches!(self.state, State::Loading(_) | State::Ready(_)) && !self.is_paused()
    }

    /// Says whether Consul is to be connected now; asked once.
    pub(super) fn begin_connecting(&mut self) -> bool {
        let begins = matches!(self.state, State::Disconnected) && !self.is_paused();
        if begins {
            self.state = State::Connecting;
        }
        begins
    }

    /// Says whether to ask Consul now if what was known before still counts; asked once.
    pub(super) fn begin_resuming(&mut self) -> bool {
        if self.is_paused() {
            return false;
        }
        match std::mem::take(&mut self.state) {
            State::Suspended(placement) => {
                self.state = State::Resuming(placement);
                true
            }
            state => {
                self.state = state;
                false
            }
        }
    }

    /// Notes that what was known before counts, or that nobody could say so yet.
    pub(super) fn resumed(&mut self, counts: bool) {
        self.state = match std::mem::take(&mut self.state) {
            State::Resuming(placement) if counts => State::Ready(placement),
            State::Resuming(placement) => State::Suspended(placement),
            state => state,
        };
    }

    /// Says whether something is kept that may not count any more.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(self.state, State::Suspended(_))
    }

    /// Notes whether Consul could be connected.
    pub(super) fn connected(&mut self, placement: Option<Placement>) {
        self.state = placement.map_or(State::Disconnected, State::Loading);
    }

    /// Notes that everything was read. Answers whether that was the first time in this session.
    pub(super) fn loaded(&mut self) -> bool {
        match std::mem::take(&mut self.state) {
            State::Loading(placement) => {
                self.state = State::Ready(placement);
                true
            }
            state => {
                self.state = state;
                false
            }
        }
    }

    /// Follows the registry where it has found that instances go elsewhere. Answers whether that is so.
    pub(super) fn follow(&mut self, placement: Option<Placement>) -> bool {
        match (&mut self.state, placement) {
            (State::Ready(known), Some(now)) if *known != now => {
                *known = now;
                true
            }
            _ => false,
        }
    }

    /// Notes that Consul failed: nothing is asked of it for a while. Several answers of one outage count once.
    pub(super) fn failed(
        &mut self,
        outage: &Unavailable,
        of_a_write: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> Failed {
        if !self.is_paused() {
            self.failures = self.failures.saturating_add(1);
        }
        let is_new = self.outage_kind() != Some(outage.kind);
        let wait = Backoff::CONSUL.wait(self.failures, random).max(outage.retry_after.unwrap_or_default());
        let resumes = now + wait;
        let Unavailable { kind, message, .. } = outage.clone();
        self.outage = Some(Outage { kind, message, of_a_write, until: Some(resumes) });
        Failed { is_new, resumes }
    }

    /// Lets Consul be asked again if the time has come. Answers whether everything is to be read: what was lost
    /// meanwhile, only a read can tell.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        let Some(outage) = self.outage.as_mut().filter(|outage| outage.until.is_some_and(|until| until <= now)) else {
            return false;
        };
        outage.until = None;
        !outage.of_a_write
    }

    /// Notes that Consul answers. Answers whether it was unavailable before.
    pub(super) fn answered(&mut self) -> bool {
        self.outage.take().is_some()
    }

    /// Notes that Consul carried out a write, or refused it by itself: it can be written.
    pub(super) fn wrote(&mut self) {
        self.failures = 0;
    }

    /// Forgets an outage: another replica acts, and this one asks nothing.
    pub(super) fn stand_by(&mut self) {
        (self.outage, self.failures) = (None, 0);
    }

    /// Holds on to what is known, if it was whole: another replica may act from now on. Answers to what was asked before do
    /// not count. Answers whether anything is held on to.
    pub(super) fn suspend(&mut self) -> bool {
        self.generation += 1;
        self.state = match std::mem::take(&mut self.state) {
            State::Ready(placement) | State::Suspended(placement) | State::Resuming(placement) => {
                State::Suspended(placement)
            }
            State::Disconnected | State::Connecting | State::Loading(_) => State::Disconnected,
        };
        self.is_suspended()
    }

    /// Begins anew: answers to what was asked before do not count.
    pub(super) fn reset(&mut self) {
        self.generation += 1;
        self.state = State::Disconnected;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn placement(node: &str) -> Placement {
        Placement::Agent { node: node.into() }
    }

    #[test]
    fn a_session_connects_then_reads_then_is_ready() {
        let mut session = Session::default();
        assert!(!session.may_read() && session.begin_connecting());
        assert!(!session.begin_connecting(), "it is being connected");
        session.connected(Some(placement("a")));
        assert!(session.may_read() && !session.is_ready());
        assert!(session.loaded(), "for the first time");
        assert_eq!((session.begin_connecting(), session.placement()), (false, Some(&placement("a"))));
        assert!(!session.loaded(), "the mirror was whole before");
        assert!(session.follow(Some(placement("b"))) && !session.follow(Some(placement("b"))));
        assert!(!session.follow(None));
    }

    #[test]
    fn what_could_not_be_connected_is_asked_again() {
        let mut session = Session::default();
        session.begin_connecting();
        session.connected(None);
        assert!(session.begin_connecting());
    }

    #[test]
    fn a_session_that_was_whole_is_resumed_and_no_other() {
        let mut session = Session::default();
        session.begin_connecting();
        assert!(!session.suspend() && session.begin_connecting(), "nothing was known");
        session.connected(Some(placement("a")));
        assert!(!session.suspend() && session.begin_connecting(), "not everything had been read");
        session.connected(Some(placement("a")));
        session.loaded();
        let before = session.stamp();
        assert!(session.suspend() && session.is_suspended() && !session.is_ready() && !session.may_read());
        assert_eq!(session.accept(before.on("answer")), None);
        assert!(session.begin_resuming() && !session.begin_resuming(), "once");
        session.resumed(false);
        assert!(session.begin_resuming(), "nobody could say so yet");
        session.suspend();
        assert!(session.begin_resuming() && !session.begin_connecting());
        session.resumed(true);
        assert_eq!(session.placement(), Some(&placement("a")));
    }

    #[test]
    fn an_answer_of_an_earlier_session_does_not_count() {
        let mut session = Session::default();
        let before = session.stamp();
        assert_eq!(session.accept(before.on("answer")), Some("answer"));
        session.reset();
        assert_eq!(session.accept(before.on("answer")), None);
        assert_eq!(session.open(before.on("answer")), ("answer", false));
        assert_eq!(session.accept(session.stamp().on("answer")), Some("answer"));
    }

    #[test]
    fn an_outage_pauses_counts_once_and_ends_with_an_answer() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut session, now) = (Session::default(), Instant::now());
        let away = Unavailable::transient("connection refused");
        let first = session.failed(&away, false, now, &mut random);
        assert!(first.is_new && session.is_paused() && !session.begin_connecting());
        let again = session.failed(&away, false, now, &mut random);
        assert!(!again.is_new);
        let reworded = Unavailable::said(OutageKind::Unreachable, "connection refused by 10.0.0.2");
        let (first, second) = (session.failed(&reworded, false, now, &mut random).is_new, {
            let reworded = Unavailable::said(OutageKind::Unreachable, "timed out");
            session.failed(&reworded, false, now, &mut random).is_new
        });
        assert!(first && !second, "another kind is news, and other words are none");
        assert_eq!((session.outage(), session.outage_kind()), (Some("timed out"), Some(OutageKind::Unreachable)));
        assert_eq!(session.failures, 1, "two answers of one outage");
        assert!(session.failed(&Unavailable::said(OutageKind::NoLeader, "no leader"), true, now, &mut random).is_new);
        assert!(!session.resume(now), "it is too early");
        let later = now + Duration::from_secs(60);
        assert!(!session.resume(later), "of a write, its node tells");
        assert!(!session.is_paused());
        session.failed(&away, false, later, &mut random);
        assert!(session.resume(later + Duration::from_secs(60)), "everything is read again");
        assert_eq!(session.outage(), Some("connection refused"));
        assert!(session.answered() && !session.answered());
        session.wrote();
        assert_eq!((session.failures, session.outage()), (0, None));
    }

    #[test]
    fn consul_says_how_long_to_wait() {
        let mut random = fastrand::Rng::with_seed(7);
        let now = Instant::now();
        let asked = Unavailable { retry_after: Some(Duration::from_secs(20)), ..Unavailable::transient("slow down") };
        assert_eq!(Session::default().failed(&asked, false, now, &mut random).resumes, now + Duration::from_secs(20));
    }
}

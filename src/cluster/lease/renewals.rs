//! When a Lease that was taken is to be renewed, and until when that makes its holder lead.
//!
//! Pure: what was sent, what came of it, and the time go in. A renewal counts from before it was sent, as others may
//! count from when it came through, and only ever forward.

use std::time::Duration;

use tokio::time::Instant;

use super::LeaseSettings;

/// The requests that keep a Lease, from its taking on.
#[derive(Debug)]
pub(super) struct Renewals {
    settings: LeaseSettings,
    /// The time when the Lease was asked for.
    begun: Instant,
    /// The time when the first answer came that said the Lease is ours.
    confirmed: Option<Instant>,
    /// The time when the newest of the requests was sent that came through.
    renewed: Option<Instant>,
    /// The time when the newest request was sent, and what came of it.
    newest: (Instant, Fate),
    /// The time that the newest answer took.
    took: Duration,
}

/// Says what came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    CameThrough,
    Failed,
}

impl Renewals {
    /// Gives those of a Lease that is asked for at `begun`, where the request before it took so long.
    pub(super) fn begin(settings: LeaseSettings, begun: Instant, took: Duration) -> Self {
        Self { settings, begun, confirmed: None, renewed: None, newest: (begun, Fate::Unknown), took }
    }

    /// Says until when this replica leads; none while no answer says that the Lease is ours.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|sent| sent + self.settings.lasts())
    }

    /// Says when the lead is over, or can begin no more.
    pub(super) fn ends(&self) -> Instant {
        self.leads_until().unwrap_or(self.begun + self.settings.lasts())
    }

    /// Says when the next renewal is due.
    pub(super) fn due(&self) -> Instant {
        let (sent, fate) = self.newest;
        sent + match fate {
            Fate::CameThrough => self.apart(),
            // One that is silent for twice as long as the one before it may be lost.
            Fate::Unknown => self.apart().min(self.settings.patience().max(2 * self.took)),
            Fate::Failed => self.settings.look(),
        }
    }

    /// Says how far renewals are apart: so far that they do not overlap, as writes of one object hold one another up in the
    /// apiserver and in etcd; and not so far that one is answered only when the lead of the one before it is over.
    fn apart(&self) -> Duration {
        let alone = self.took.max(self.settings.renewal());
        self.settings.slowest().saturating_sub(self.took).min(alone).max(self.settings.look())
    }

    /// Notes that a renewal leaves.
    pub(super) fn sent(&mut self, now: Instant) {
        self.newest = (now, Fate::Unknown);
    }

    /// Notes that a request which was sent then came through and is answered now, and says until when this replica
    /// leads; none where the request took too long for a lead that begins with it to be kept.
    pub(super) fn came_through(&mut self, sent: Instant, now: Instant) -> Option<Instant> {
        let took = now.saturating_duration_since(sent);
        if self.confirmed.is_none() && took >= self.settings.slowest() {
            return None;
        }
        self.confirmed.get_or_insert(now);
        if self.renewed.is_none_or(|renewed| renewed < sent) {
            (self.renewed, self.took) = (Some(sent), took);
        }
        self.is(sent, Fate::CameThrough);
        self.leads_until()
    }

    /// Notes that a renewal which was sent then found the Lease to be another's, and says whether it is: one that was
    /// sent before the Lease was known to be ours may have overtaken the taking.
    pub(super) fn found_another(&mut self, sent: Instant) -> bool {
        self.is(sent, Fate::Failed);
        self.confirmed.is_some_and(|confirmed| confirmed <= sent)
    }

    /// Notes that a renewal which was sent then failed, and says whether that matters: a later one may have come
    /// through.
    pub(super) fn failed(&mut self, sent: Instant) -> bool {
        self.is(sent, Fate::Failed);
        self.renewed.is_none_or(|renewed| renewed < sent)
    }

    fn is(&mut self, sent: Instant, fate: Fate) {
        // A taking may be sent several times, and the newest request is all that came before it, too.
        if self.newest.0 <= sent {
            self.newest.1 = fate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn settings() -> LeaseSettings {
        LeaseSettings {
            namespace: "lictor".to_owned(),
            name: "lictor".to_owned(),
            identity: "a".to_owned(),
            duration: seconds(12.0),
        }
    }

    /// An event of a Lease of 12 s, with its second.
    enum Event {
        Sent(f64),
        /// The request that was sent then came through, and the answer is here.
        Through(f64, f64),
        Failed(f64),
        Another(f64),
    }
    use Event::{Another, Failed, Sent, Through};

    /// A case: how long the request before took; what happens; then until when it leads, and when the next renewal is due.
    type Row = (&'static str, f64, Vec<Event>, Option<f64>, f64);

    #[test]
    fn answers_say_until_when_it_leads_and_when_the_next_renewal_is_due() {
        let table: [Row; 17] = [
            ("silent for a sixth of the duration", 0.0, vec![], None, 2.0),
            ("silent where all is slow", 7.8, vec![], None, 1.0),
            ("quick", 0.0, vec![Through(0.0, 0.1)], Some(9.0), 3.0),
            ("a quarter", 0.0, vec![Through(0.0, 3.0)], Some(9.0), 3.0),
            ("alone, as soon as it is answered", 0.0, vec![Through(0.0, 4.0)], Some(9.0), 4.0),
            ("overlapping", 0.0, vec![Through(0.0, 4.5)], Some(9.0), 3.5),
            ("half", 0.0, vec![Through(0.0, 6.0)], Some(9.0), 2.0),
            ("the slowest", 0.0, vec![Through(0.0, 7.9)], Some(9.0), 1.0),
            ("too slow to begin with", 0.0, vec![Through(0.0, 8.0)], None, 2.0),
            ("renewed", 0.0, vec![Through(0.0, 0.1), Sent(3.0), Through(3.0, 3.1)], Some(12.0), 6.0),
            ("silent", 0.0, vec![Through(0.0, 0.1), Sent(3.0)], Some(9.0), 5.0),
            ("silent for twice as long as before", 1.0, vec![Through(0.0, 1.3), Sent(3.0)], Some(9.0), 5.6),
            ("failed", 0.0, vec![Through(0.0, 0.1), Sent(3.0), Failed(3.0)], Some(9.0), 4.0),
            (
                "the later one first",
                0.0,
                vec![Through(0.0, 0.1), Sent(3.0), Sent(5.0), Through(5.0, 5.1), Through(3.0, 8.0)],
                Some(14.0),
                8.0,
            ),
            ("a renewal says that the taking came through", 7.0, vec![Sent(1.0), Through(1.0, 6.0)], Some(10.0), 4.0),
            ("slower while it leads", 7.0, vec![Through(0.0, 7.0), Sent(1.0), Through(1.0, 9.5)], Some(10.0), 2.0),
            ("it overtook the taking", 7.0, vec![Sent(1.0), Another(1.0), Through(0.0, 6.0)], Some(9.0), 2.0),
        ];
        let begun = Instant::now();
        let at = |second: f64| begun + seconds(second);
        for (what, before, events, leads, due) in table {
            let mut renewals = Renewals::begin(settings(), begun, seconds(before));
            for event in events {
                match event {
                    Sent(sent) => renewals.sent(at(sent)),
                    Through(sent, now) => _ = renewals.came_through(at(sent), at(now)),
                    Failed(sent) => _ = renewals.failed(at(sent)),
                    Another(sent) => assert!(!renewals.found_another(at(sent)), "{what}"),
                }
            }
            let since = |time: Instant| (time - begun).as_secs_f64();
            let found = (renewals.leads_until().map(since), since(renewals.due()), since(renewals.ends()));
            assert_eq!(found, (leads, due, leads.unwrap_or(9.0)), "{what}");
        }
    }

    #[test]
    fn only_a_renewal_of_what_is_known_to_be_ours_finds_it_another_s() {
        let begun = Instant::now();
        let mut renewals = Renewals::begin(settings(), begun, Duration::ZERO);
        assert!(!renewals.found_another(begun + seconds(1.0)));
        renewals.came_through(begun, begun + seconds(2.0));
        assert!(!renewals.found_another(begun + seconds(1.5)));
        assert!(renewals.found_another(begun + seconds(2.0)));
    }

    #[test]
    fn the_failure_of_a_renewal_that_was_overtaken_does_not_matter() {
        let begun = Instant::now();
        let mut renewals = Renewals::begin(settings(), begun, Duration::ZERO);
        renewals.came_through(begun, begun);
        renewals.sent(begun + seconds(3.0));
        renewals.sent(begun + seconds(5.0));
        assert!(renewals.failed(begun + seconds(3.0)));
        renewals.came_through(begun + seconds(5.0), begun + seconds(6.0));
        assert!(!renewals.failed(begun + seconds(3.0)));
        assert_eq!(renewals.due(), begun + seconds(8.0));
    }
}

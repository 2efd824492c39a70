//! Who of several replicas acts: a `Lease`, by the protocol of client-go's leader election.
//!
//! In: the Lease as the apiserver shows it. Out: until when this replica may begin requests, on this machine's own
//! monotonic clock. Clocks of different machines are never compared: a candidate counts from the moment when it
//! last saw the Lease change, and the holder from the moment before it asked for the renewal. A process that was
//! stopped and wakes later finds its time over by itself.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::list::{Failure, in_words};

/// How a replica takes part.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Where the Lease is.
    pub namespace: String,
    /// What it is called.
    pub name: String,
    /// Who we are: different for each process.
    pub identity: String,
    /// How long the Lease holds without a renewal, in whole seconds, at least 2.
    pub duration: Duration,
}

impl LeaseSettings {
    /// How long before the Lease's end no request may begin any more, and so how long one may take at most.
    #[must_use]
    pub fn margin(&self) -> Duration {
        self.duration / 4
    }

    /// Between two renewals.
    fn renewal(&self) -> Duration {
        self.duration / 4
    }

    /// Between two looks of a candidate, and between two tries after a failure.
    fn look(&self) -> Duration {
        self.duration / 12
    }
}

/// Until when this replica may begin requests; none while another one leads.
pub type Leads = watch::Receiver<Option<Instant>>;

/// Leads for ever: where there is just one replica.
#[must_use]
pub fn alone() -> Leads {
    // As good as never: what tokio itself takes for far away.
    watch::Sender::new(Some(Instant::now() + Duration::from_secs(86_400 * 365 * 30))).subscribe()
}

/// The Lease as last seen.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    /// When it was first seen to be so.
    since: Instant,
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is ours: renew it.
    Renew,
    /// It is nobody's, or its time is over: take it.
    Take,
    /// Another one has it, until then if nothing changes.
    Wait(Instant),
}

impl Seen {
    fn step(&self, identity: &str, now: Instant) -> Step {
        let spec = self.lease.spec.clone().unwrap_or_default();
        match spec.holder_identity.as_deref() {
            None | Some("") => Step::Take,
            Some(holder) if holder == identity => Step::Renew,
            Some(_) => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
                let ends = self.since + Duration::from_secs(seconds);
                if ends <= now { Step::Take } else { Step::Wait(ends) }
            }
        }
    }

    /// The Lease as it will be with us as its holder.
    fn held_by(&self, settings: &LeaseSettings, now: Timestamp) -> Lease {
        let before = self.lease.spec.clone().unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(&settings.identity);
        let spec = LeaseSpec {
            holder_identity: Some(settings.identity.clone()),
            lease_duration_seconds: i32::try_from(settings.duration.as_secs()).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..before
        };
        Lease { spec: Some(spec), ..self.lease.clone() }
    }
}

/// A replica that takes part.
pub struct Candidate {
    settings: LeaseSettings,
    leases: Api<Lease>,
    seen: Option<Seen>,
    leads: watch::Sender<Option<Instant>>,
    trouble: ElectionTrouble,
}

/// Why a replica cannot take part, in words; none if it can.
#[derive(Clone, Debug, Default)]
pub struct ElectionTrouble(Arc<Mutex<Option<String>>>);

impl ElectionTrouble {
    /// What it is.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what it is now, and gives what it was.
    fn set(&self, why: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), why)
    }
}

impl Candidate {
    /// A replica that does not lead yet, and where to read whether it does.
    #[must_use]
    pub fn new(client: Client, settings: LeaseSettings) -> (Self, Leads) {
        let (leads, reader) = watch::channel(None);
        let leases = Api::namespaced(client, &settings.namespace);
        (Self { settings, leases, seen: None, leads, trouble: ElectionTrouble::default() }, reader)
    }

    /// Where to read why it cannot take part.
    #[must_use]
    pub fn trouble(&self) -> ElectionTrouble {
        self.trouble.clone()
    }

    /// Takes part until `stop` is ready, then gives the Lease back if it is ours.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            // Not cut short: what is given back has to be known.
            let next = self.once(Instant::now()).await;
            // Should no renewal come through, the time is over by itself.
            let over = *self.leads.borrow();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = sleep_until(next) => {}
                () = async { sleep_until(over.unwrap_or(next)).await }, if over.is_some_and(|over| over < next) => {}
            }
            if self.leads.borrow().is_some_and(|until| until <= Instant::now()) {
                self.follow("the Lease could not be renewed in time");
            }
        }
        self.give_back().await;
    }

    /// Looks at the Lease, takes or renews it where that is due, and says when to do so again.
    async fn once(&mut self, begun: Instant) -> Instant {
        match timeout(self.settings.renewal(), self.advance(begun)).await {
            Ok(Ok(next)) => {
                if self.trouble.set(None).is_some() {
                    tracing::info!("the Lease can be read and written again");
                }
                next
            }
            Ok(Err(failure)) => self.fails(&failure, begun),
            Err(_) => self.fails(&Failure::NoAnswer, begun),
        }
    }

    fn fails(&mut self, failure: &Failure, begun: Instant) -> Instant {
        // What is there now has to be read.
        if failure.code() == Some(409) {
            self.seen = None;
            return begun;
        }
        let why = match failure.code() {
            Some(403) => {
                format!("forbidden: the Role of Lictor must grant get, create and update on leases ({failure})")
            }
            _ => failure.to_string(),
        };
        let LeaseSettings { namespace, name, .. } = &self.settings;
        let why = format!("cannot take part in the election for the Lease {namespace}/{name}: {why}");
        if self.trouble.set(Some(why.clone())).as_ref() != Some(&why) {
            tracing::warn!("{why}");
        }
        begun + self.settings.look()
    }

    async fn advance(&mut self, begun: Instant) -> Result<Instant, Failure> {
        let leads = self.leads.borrow().is_some();
        // The holder knows what is there, as long as its writes say so.
        if !leads || self.seen.is_none() {
            self.look().await?;
        }
        let Some(seen) = &self.seen else {
            return Ok(begun);
        };
        match seen.step(&self.settings.identity, Instant::now()) {
            Step::Wait(ends) => {
                if leads {
                    self.follow("another replica has the Lease");
                }
                Ok(ends.min(begun + self.settings.look()))
            }
            Step::Renew | Step::Take => {
                let wanted = seen.held_by(&self.settings, Timestamp::now());
                let lease = self.leases.replace(&self.settings.name, &PostParams::default(), &wanted).await?;
                self.see(lease);
                self.lead(begun);
                Ok(begun + self.settings.renewal())
            }
        }
    }

    /// Reads the Lease, or makes one that is nobody's.
    async fn look(&mut self) -> Result<(), Failure> {
        let found = self.leases.get_opt(&self.settings.name).await?;
        let lease = if let Some(lease) = found {
            lease
        } else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.settings.name.clone());
            self.leases.create(&PostParams::default(), &lease).await?
        };
        self.see(lease);
        Ok(())
    }

    fn see(&mut self, lease: Lease) {
        let same = self.seen.as_ref().is_some_and(|seen| seen.lease.spec == lease.spec);
        match &mut self.seen {
            Some(seen) if same => seen.lease = lease,
            seen => *seen = Some(Seen { lease, since: Instant::now() }),
        }
    }

    fn lead(&mut self, begun: Instant) {
        let until = begun + self.settings.duration - self.settings.margin();
        if self.leads.send_replace(Some(until)).is_none() {
            tracing::info!(identity = %self.settings.identity, "leads");
        }
    }

    fn follow(&mut self, why: &str) {
        self.seen = None;
        if self.leads.send_replace(None).is_some() {
            tracing::warn!(identity = %self.settings.identity, "leads no more: {why}");
        }
    }

    /// Lets the next one begin at once.
    async fn give_back(mut self) {
        if self.leads.send_replace(None).is_none() {
            return;
        }
        let Some(Seen { mut lease, .. }) = self.seen.take() else { return };
        let before = lease.spec.unwrap_or_default();
        // As client-go does it: nobody's, and valid for no longer than it must.
        lease.spec =
            Some(LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..before });
        let (name, params) = (&self.settings.name, PostParams::default());
        match timeout(self.settings.margin(), self.leases.replace(name, &params, &lease)).await {
            Ok(Ok(_)) => tracing::info!("gave the Lease back"),
            Ok(Err(error)) => tracing::warn!("did not give the Lease back: {}", in_words(&error)),
            Err(_) => tracing::warn!("did not give the Lease back in time"),
        }
    }
}

/// Takes a Lease away from whoever has it, for as long as `settings` say, and waits until that one has surely noticed:
/// until the time is over that it had.
///
/// For what must not run beside an operator. Gives the candidate that has it now, to be run for as long as it takes;
/// if that one is dropped the Lease is not given back, and ends by itself. Who took it so before has done what it took
/// it for, and is not waited for.
pub async fn seize(client: Client, settings: LeaseSettings) -> Result<(Candidate, Leads), String> {
    let identity = format!("{SEIZED}{}", settings.identity);
    let (mut candidate, leads) = Candidate::new(client, LeaseSettings { identity, ..settings });
    for _ in 0..SEIZURES {
        let words = |failure: Failure| failure.to_string();
        candidate.look().await.map_err(words)?;
        let Some(seen) = &candidate.seen else { continue };
        let before = seen.lease.spec.clone().unwrap_or_default();
        let seconds = before.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let before_that = Duration::from_secs(seconds.unwrap_or(0).min(LONGEST));
        // It has to outlast the wait below.
        candidate.settings.duration = candidate.settings.duration.max(2 * before_that);
        let wanted = seen.held_by(&candidate.settings, Timestamp::now());
        let name = candidate.settings.name.clone();
        match candidate.leases.replace(&name, &PostParams::default(), &wanted).await.map_err(Failure::from) {
            Ok(_) => {
                let held =
                    before.holder_identity.is_some_and(|holder| !holder.is_empty() && !holder.starts_with(SEIZED));
                if held {
                    tokio::time::sleep(before_that).await;
                }
                return Ok((candidate, leads));
            }
            // It was renewed at this very moment.
            Err(failure) if failure.code() == Some(409) => {}
            Err(failure) => return Err(words(failure)),
        }
    }
    Err("the Lease changes all the time".to_owned())
}

/// What the identity of who took a Lease away begins with.
const SEIZED: &str = "release_";
/// How often a Lease that is renewed at the same moment is tried again.
const SEIZURES: usize = 20;
/// The longest time of a Lease that is waited for, in seconds: as long as one of ours may be.
const LONGEST: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LeaseSettings {
        LeaseSettings {
            namespace: "lictor".to_owned(),
            name: "lictor".to_owned(),
            identity: "a".to_owned(),
            duration: Duration::from_secs(4),
        }
    }

    fn seen(holder: Option<&str>, seconds: Option<i32>, ago: Duration) -> Seen {
        let spec = LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: seconds,
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        let lease = Lease { spec: Some(spec), ..Lease::default() };
        Seen { lease, since: Instant::now() - ago }
    }

    #[test]
    fn a_lease_is_taken_only_from_nobody_or_after_its_time() {
        let second = Duration::from_secs(1);
        let table = [
            (seen(None, None, second), Some(Step::Take)),
            (seen(Some(""), Some(1), Duration::ZERO), Some(Step::Take)),
            (seen(Some("a"), Some(4), 9 * second), Some(Step::Renew)),
            (seen(Some("b"), Some(4), 3 * second), None),
            (seen(Some("b"), Some(4), 4 * second), Some(Step::Take)),
            (seen(Some("b"), Some(15), 9 * second), None),
        ];
        for (seen, expected) in table {
            let step = seen.step("a", Instant::now());
            match expected {
                Some(expected) => assert_eq!(step, expected, "{seen:?}"),
                None => assert!(matches!(step, Step::Wait(ends) if ends > Instant::now()), "{seen:?}: {step:?}"),
            }
        }
    }

    #[test]
    fn a_take_counts_as_a_transition_and_a_renewal_does_not() {
        let now = Timestamp::now();
        let transitions = |holder| {
            let spec = seen(Some(holder), Some(4), Duration::ZERO).held_by(&settings(), now).spec.unwrap();
            assert_eq!(spec.holder_identity.as_deref(), Some("a"));
            (spec.lease_transitions, spec.acquire_time.is_some())
        };
        assert_eq!((transitions("b"), transitions("a")), ((Some(4), true), (Some(3), false)));
    }

    #[test]
    fn work_ends_a_margin_before_the_lease_does() {
        let settings = settings();
        assert_eq!((settings.margin(), settings.renewal()), (Duration::from_secs(1), Duration::from_secs(1)));
    }
}

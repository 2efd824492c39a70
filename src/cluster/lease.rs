//! Who of several replicas acts: a `Lease`, by the protocol of client-go's leader election.
//!
//! In: the Lease as the apiserver shows it. Out: until when this replica may begin requests, on this machine's own
//! monotonic clock. Clocks of different machines are never compared: a candidate counts from the moment when it
//! last saw the Lease change, and the holder from the moment before it asked for the renewal. A process that was
//! stopped and wakes later finds its time over by itself.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::list::Failure;

/// Says how a replica takes part.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// The identity of this replica: it is different for each process.
    pub identity: String,
    /// The time that the Lease holds without a renewal, in whole seconds, at least 2.
    pub duration: Duration,
}

impl LeaseSettings {
    /// Says how long before the Lease's end no request may begin any more, and so how long one may take at most.
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

    /// Says how long a request may be silent before it is sent once more: two that are lost in a row cost no lead.
    fn patience(&self) -> Duration {
        self.duration / 6
    }

    /// The longest that each request may take for a lead to be kept. A renewal begins only when the one before it is
    /// answered, which names the version that the next one replaces; and it has to be answered within the time that
    /// the one before it has gained, counted from when that one began.
    fn slowest(&self) -> Duration {
        self.duration.saturating_sub(self.margin()) / 2
    }
}

/// The time until which this replica may begin requests; none while another one leads.
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
    /// The time when it was first seen to be so.
    since: Instant,
}

/// Says what to do about a Lease.
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

/// Says why a replica does not have the Lease.
#[derive(Debug, thiserror::Error)]
enum Unable {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("Kubernetes did not answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    #[error(
        "Kubernetes took {} ms to answer a request, and to keep a Lease of {} s each must take less than {} ms: raise \
         --lease-duration",
        .took.as_millis(), .settings.duration.as_secs(), .settings.slowest().as_millis()
    )]
    Slow { took: Duration, settings: LeaseSettings },
}

impl From<kube::Error> for Unable {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl Unable {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Failed(failure) => failure.code(),
            Self::NoAnswer(_) | Self::Slow { .. } => None,
        }
    }
}

/// A replica that takes part.
pub struct Candidate {
    settings: LeaseSettings,
    leases: Api<Lease>,
    seen: Option<Seen>,
    /// True if the Lease may name this replica, as far as is known.
    named: bool,
    leads: watch::Sender<Option<Instant>>,
    trouble: ElectionTrouble,
}

/// Says why a replica cannot take part, in words; none if it can.
#[derive(Clone, Debug, Default)]
pub struct ElectionTrouble(Arc<Mutex<Option<String>>>);

impl ElectionTrouble {
    /// Gives the reason as it is now.
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
        (Self { settings, leases, seen: None, named: false, leads, trouble: ElectionTrouble::default() }, reader)
    }

    /// Gives the place where to read why it cannot take part.
    #[must_use]
    pub fn trouble(&self) -> ElectionTrouble {
        self.trouble.clone()
    }

    /// Takes part until `stop` is ready, then gives the Lease back if it is ours.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let stop = stop.shared();
        loop {
            let margin = self.settings.margin();
            // What is under way at the end may yet be answered, but not for ever.
            let next = tokio::select! {
                next = self.once(Instant::now()) => next,
                () = stop.clone().then(|()| sleep(margin)) => break,
            };
            // Should no renewal come through, the time is over by itself.
            let over = *self.leads.borrow();
            tokio::select! {
                biased;
                () = stop.clone() => break,
                () = sleep_until(next) => {}
                () = async { sleep_until(over.unwrap_or(next)).await }, if over.is_some_and(|over| over < next) => {}
            }
            if self.leads.borrow().is_some_and(|until| until <= Instant::now()) {
                self.follow("the Lease could not be renewed in time");
            }
        }
        self.leads.send_replace(None);
        match timeout(self.settings.slowest(), self.give_back()).await {
            Ok(Ok(true)) => tracing::info!("gave the Lease back"),
            Ok(Ok(false)) => {}
            Ok(Err(why)) => tracing::warn!("did not give the Lease back: {why}"),
            Err(_) => tracing::warn!("did not give the Lease back in time"),
        }
    }

    /// Looks at the Lease, takes or renews it where that is due, and says when to do so again.
    async fn once(&mut self, begun: Instant) -> Instant {
        match self.advance(begun).await {
            Ok(next) => {
                if self.trouble.set(None).is_some() {
                    tracing::info!("the Lease can be read and written again");
                }
                next
            }
            Err(why) => self.fails(&why, begun),
        }
    }

    fn fails(&mut self, why: &Unable, begun: Instant) -> Instant {
        // What is there now has to be read.
        if why.code() == Some(409) {
            self.seen = None;
            return begun;
        }
        let why = match why.code() {
            Some(403) => format!("forbidden: the Role of Lictor must grant get, create and update on leases ({why})"),
            _ => why.to_string(),
        };
        let LeaseSettings { namespace, name, .. } = &self.settings;
        let why = format!("cannot take part in the election for the Lease {namespace}/{name}: {why}");
        if self.trouble.set(Some(why.clone())).as_ref() != Some(&why) {
            tracing::warn!("{why}");
        }
        begun + self.settings.look()
    }

    async fn advance(&mut self, begun: Instant) -> Result<Instant, Unable> {
        let leads = self.leads.borrow().is_some();
        // The holder knows what is there, as long as its writes say so.
        if !leads || self.seen.is_none() {
            self.look().await?;
        }
        let Some(seen) = &self.seen else {
            return Ok(begun);
        };
        if let Step::Wait(ends) = seen.step(&self.settings.identity, Instant::now()) {
            if leads {
                self.follow("another replica has the Lease");
            }
            return Ok(ends.min(begun + self.settings.look()));
        }
        let wanted = seen.held_by(&self.settings, Timestamp::now());
        if !leads {
            self.can_keep(begun).await?;
        }
        self.named = true;
        let (sent, lease) = self.replace(&wanted).await?;
        self.see(lease);
        if !leads {
            self.can_keep(sent).await?;
        }
        self.lead(sent);
        Ok(sent + self.settings.renewal())
    }

    /// Takes no Lease that could not be kept, by a request that began then and is answered now; and has none that names
    /// a replica which does not act.
    async fn can_keep(&mut self, begun: Instant) -> Result<(), Unable> {
        let took = begun.elapsed();
        if took < self.settings.slowest() {
            return Ok(());
        }
        self.give_back().await?;
        Err(Unable::Slow { took, settings: self.settings.clone() })
    }

    /// Reads the Lease, or makes one that is nobody's.
    async fn look(&mut self) -> Result<(), Unable> {
        let (leases, name) = (&self.leases, &self.settings.name);
        let (_, found) = self.answer(|| leases.get_opt(name)).await?;
        let lease = if let Some(lease) = found {
            lease
        } else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name.clone());
            let params = PostParams::default();
            self.answer(|| leases.create(&params, &lease)).await?.1
        };
        self.see(lease);
        Ok(())
    }

    /// Writes the Lease, and says since when it has been so at the earliest.
    async fn replace(&self, wanted: &Lease) -> Result<(Instant, Lease), Unable> {
        let params = PostParams::default();
        self.answer(|| self.leases.replace(&self.settings.name, &params, wanted)).await
    }

    /// The answer to a request, and when that request was sent. Nobody waits for it longer than a lead lasts that
    /// depends on it.
    async fn answer<T, R: Future<Output = kube::Result<T>>>(
        &self,
        request: impl Fn() -> R,
    ) -> Result<(Instant, T), Unable> {
        let leads = *self.leads.borrow();
        let longest = leads.map_or(self.settings.duration, |until| until.saturating_duration_since(Instant::now()));
        let answer = timeout(longest, first_answer(self.settings.patience(), request)).await;
        Ok(answer.map_err(|_| Unable::NoAnswer(longest))??)
    }

    fn see(&mut self, lease: Lease) {
        let same = self.seen.as_ref().is_some_and(|seen| seen.lease.spec == lease.spec);
        match &mut self.seen {
            Some(seen) if same => seen.lease = lease,
            seen => *seen = Some(Seen { lease, since: Instant::now() }),
        }
        self.named |= self.is_ours();
    }

    /// Says whether the Lease, as last seen, names this replica.
    fn is_ours(&self) -> bool {
        let spec = self.seen.as_ref().and_then(|seen| seen.lease.spec.as_ref());
        spec.is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.settings.identity))
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

    /// Lets the next one begin at once, where the Lease names this replica. Whether it did.
    async fn give_back(&mut self) -> Result<bool, Unable> {
        while self.named {
            // A write of which no answer came may have changed what was seen.
            if !self.is_ours() {
                self.look().await?;
                self.named = self.is_ours();
                continue;
            }
            let Some(Seen { mut lease, .. }) = self.seen.take() else { continue };
            let before = lease.spec.unwrap_or_default();
            // As client-go does it: nobody's, and valid for no longer than it must.
            lease.spec =
                Some(LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..before });
            match self.replace(&lease).await {
                Ok((_, lease)) => {
                    self.see(lease);
                    self.named = false;
                    return Ok(true);
                }
                Err(why) if why.code() == Some(409) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(false)
    }
}

/// The answer to a request, and when the one was sent that is answered. While none comes it is sent again and again:
/// the connection may be dead, and the server may only be slow. The first success counts, else the last failure: what
/// one of these requests has changed, the next one finds changed.
async fn first_answer<T, R: Future<Output = kube::Result<T>>>(
    patience: Duration,
    request: impl Fn() -> R,
) -> kube::Result<(Instant, T)> {
    let send = || {
        let sent = Instant::now();
        request().map(move |answer| answer.map(|answer| (sent, answer)))
    };
    let mut under_way = FuturesUnordered::from_iter([send()]);
    loop {
        tokio::select! {
            Some(answer) = under_way.next() => if answer.is_ok() || under_way.is_empty() { return answer },
            () = sleep(patience) => under_way.push(send()),
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
        let words = |why: Unable| why.to_string();
        candidate.look().await.map_err(words)?;
        let Some(seen) = &candidate.seen else { continue };
        let before = seen.lease.spec.clone().unwrap_or_default();
        let seconds = before.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let before_that = Duration::from_secs(seconds.unwrap_or(0).min(LONGEST));
        // It has to outlast the wait below.
        candidate.settings.duration = candidate.settings.duration.max(2 * before_that);
        let wanted = seen.held_by(&candidate.settings, Timestamp::now());
        match candidate.replace(&wanted).await {
            Ok(_) => {
                let held =
                    before.holder_identity.is_some_and(|holder| !holder.is_empty() && !holder.starts_with(SEIZED));
                if held {
                    tokio::time::sleep(before_that).await;
                }
                return Ok((candidate, leads));
            }
            // It was renewed at this very moment.
            Err(why) if why.code() == Some(409) => {}
            Err(why) => return Err(words(why)),
        }
    }
    Err("the Lease changes all the time".to_owned())
}

/// The beginning of the identity of whoever took a Lease away.
const SEIZED: &str = "release_";
/// The most times that a Lease that is renewed at the same moment is tried again.
const SEIZURES: usize = 20;
/// The longest time of a Lease that is waited for, in seconds: as long as one of ours may be.
const LONGEST: u64 = 300;

#[cfg(test)]
mod tests;

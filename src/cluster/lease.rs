//! Who of several replicas acts: a `Lease`, by the protocol of client-go's leader election.
//!
//! In: the Lease as the apiserver shows it. Out: until when this replica may begin requests, on this machine's own
//! monotonic clock. Clocks of different machines are never compared: a candidate counts from the moment when it
//! last saw the Lease change, and the holder from the moment before it asked for the renewal. A process that was
//! stopped and wakes later finds its time over by itself.
//!
//! Taking the Lease replaces the version that was read. A renewal names no version: it is a patch which tests that the
//! Lease still bears this replica and this taking. So renewals overlap, and none makes another one fail.

use crate::ports::Leads;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::Shared;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::renewals::Renewals;
use super::list::Failure;

mod renewals;

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

    /// The time for which a replica leads, from when the request was sent that made it lead.
    fn lasts(&self) -> Duration {
        self.duration.saturating_sub(self.margin())
    }

    /// Between two renewals, while requests are quick.
    fn renewal(&self) -> Duration {
        self.duration / 4
    }

    /// Between two looks of a candidate, between two tries after a failure, and the least between two renewals.
    fn look(&self) -> Duration {
        self.duration / 12
    }

    /// Says how long a request may be silent, where requests are quick, before another one is sent: two that are lost in a
    /// row cost no lead.
    fn patience(&self) -> Duration {
        self.duration / 6
    }

    /// The longest that each request may take for a lead to be kept: a renewal has to be answered before the lead ends
    /// that an earlier one made, and that one was sent as long before as two renewals are apart at least.
    fn slowest(&self) -> Duration {
        self.lasts().saturating_sub(self.look())
    }

    /// The Lease's spec has to say this for a patch to change it. A patch that comes through late fails where somebody
    /// has taken the Lease meanwhile, be it this replica once more.
    fn tests(&self, taken: &MicroTime) -> [Value; 2] {
        [
            json!({ "op": "test", "path": "/spec/holderIdentity", "value": self.identity }),
            json!({ "op": "test", "path": "/spec/acquireTime", "value": taken }),
        ]
    }

    /// The patch that renews the Lease which was taken then.
    fn renews(&self, taken: &MicroTime, now: &MicroTime) -> Value {
        let [holder, term] = self.tests(taken);
        json!([
            holder,
            term,
            { "op": "add", "path": "/spec/renewTime", "value": now },
            { "op": "add", "path": "/spec/leaseDurationSeconds", "value": self.duration.as_secs() },
        ])
    }

    /// The patch that gives the Lease back which was taken then. As client-go does it: nobody's, and valid for no longer
    /// than it must.
    fn gives_back(&self, taken: &MicroTime) -> Value {
        let [holder, term] = self.tests(taken);
        json!([
            holder,
            term,
            { "op": "add", "path": "/spec/holderIdentity", "value": "" },
            { "op": "add", "path": "/spec/leaseDurationSeconds", "value": 1 },
        ])
    }
}

/// The Lease as last seen.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    /// The time when it was first seen to be so.
    since: Instant,
}

/// Says what a candidate does about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is nobody's, its time is over, or it is ours from an earlier lead: take it.
    Take,
    /// Another one has it, until then if nothing changes.
    Wait(Instant),
}

impl Seen {
    fn step(&self, identity: &str, now: Instant) -> Step {
        let spec = self.lease.spec.clone().unwrap_or_default();
        match spec.holder_identity.as_deref() {
            None | Some("") => Step::Take,
            Some(holder) if holder == identity => Step::Take,
            Some(_) => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
                let ends = self.since + Duration::from_secs(seconds);
                if ends <= now { Step::Take } else { Step::Wait(ends) }
            }
        }
    }

    /// The Lease as it is once we have taken it.
    fn taken_by(&self, settings: &LeaseSettings, now: &MicroTime) -> Lease {
        let before = self.lease.spec.clone().unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(&settings.identity);
        let spec = LeaseSpec {
            holder_identity: Some(settings.identity.clone()),
            lease_duration_seconds: i32::try_from(settings.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now.clone()),
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
    /// The time when this replica took the Lease, where the Lease may bear it.
    taken: Option<MicroTime>,
    /// The last time that this replica wrote.
    stamp: Timestamp,
    /// True if Kubernetes lets it renew the Lease, as far as is known.
    may_renew: bool,
    leads: watch::Sender<Option<Instant>>,
    failure: ElectionFailure,
}

/// Says what a candidate found.
enum Found {
    /// A Lease to be taken, and how long the answer that showed it took.
    Free(Box<Seen>, Duration),
    /// Another one's; to be looked at again then.
    Taken(Instant),
}

/// Renewals that may be under way at once, the taking counted as one: as many as fit into the slowest request.
const MOST: usize = 8;

/// Says why a replica cannot take part, in words; none if it can.
#[derive(Clone, Debug, Default)]
pub struct ElectionFailure(Arc<Mutex<Option<String>>>);

impl ElectionFailure {
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
        let candidate = Self {
            settings,
            leases,
            seen: None,
            taken: None,
            stamp: Timestamp::UNIX_EPOCH,
            may_renew: false,
            leads,
            failure: ElectionFailure::default(),
        };
        (candidate, reader)
    }

    /// Gives the place where to read why it cannot take part.
    #[must_use]
    pub fn failure(&self) -> ElectionFailure {
        self.failure.clone()
    }

    /// Takes part until `stop` is ready, then gives the Lease back if it is ours.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let stop = stop.shared();
        loop {
            let begun = Instant::now();
            let found = tokio::select! {
                biased;
                () = stop.clone() => break,
                found = self.find(begun) => found,
            };
            let next = match found {
                Ok(Found::Taken(again)) => {
                    self.works();
                    Ok(again)
                }
                Ok(Found::Free(seen, took)) => self.hold(&seen, took, &stop).await.map(|()| Instant::now()),
                Err(why) => Err(why),
            };
            let next = match next {
                // What is there now has to be read.
                Err(why) if why.code() == Some(409) => Instant::now(),
                Err(why) => {
                    self.fails(&why);
                    begun + self.settings.look()
                }
                Ok(next) => next,
            };
            tokio::select! {
                biased;
                () = stop.clone() => break,
                () = sleep_until(next) => {}
            }
        }
        self.leads.send_replace(None);
        match timeout(self.settings.slowest(), self.give_back()).await {
            Ok(Ok(true)) => tracing::info!("gave the Lease back"),
            Ok(Ok(false)) => {}
            Ok(Err(why)) => tracing::warn!("cannot give the Lease back; the next leader starts when it expires: {why}"),
            Err(_) => {
                tracing::warn!("cannot give the Lease back: no answer in time; the next leader starts when it expires");
            }
        }
    }

    fn works(&self) {
        if self.failure.set(None).is_some() {
            tracing::info!("the Lease can be read and written again");
        }
    }

    fn fails(&self, why: &Unable) {
        let why = match why.code() {
            Some(403) => {
                format!("forbidden: the Role of Lictor must grant get, create, update and patch on leases ({why})")
            }
            _ => why.to_string(),
        };
        let LeaseSettings { namespace, name, .. } = &self.settings;
        let why = format!("cannot take part in the election for the Lease {namespace}/{name}: {why}");
        if self.failure.set(Some(why.clone())).as_ref() != Some(&why) {
            tracing::warn!("{why}");
        }
    }

    /// Looks at the Lease. Finds none free that could not be kept, and leaves none that names a replica which does not
    /// act.
    async fn find(&mut self, begun: Instant) -> Result<Found, Unable> {
        if !self.may_renew {
            self.try_to_renew().await?;
        }
        let (seen, took) = self.look().await?;
        if let Step::Wait(ends) = seen.step(&self.settings.identity, Instant::now()) {
            return Ok(Found::Taken(ends.min(begun + self.settings.look())));
        }
        if took >= self.settings.slowest() {
            return self.too_slow(took).await;
        }
        Ok(Found::Free(Box::new(seen), took))
    }

    /// Asks for a renewal that changes nothing, as no Lease was taken at this very time. Who may not renew would take the
    /// Lease and lose it, again and again.
    async fn try_to_renew(&mut self) -> Result<(), Unable> {
        let never = self.now();
        let renewal = self.settings.renews(&never, &never);
        self.answer(|| patch(&self.leases, &self.settings.name, &renewal)).await?;
        self.may_renew = true;
        Ok(())
    }

    async fn too_slow<T>(&mut self, took: Duration) -> Result<T, Unable> {
        self.give_back().await?;
        Err(Unable::Slow { took, settings: self.settings.clone() })
    }

    /// Takes the Lease and renews it until it is lost, or until `stop` is ready. A request took so long before.
    ///
    /// Renewals follow the taking before it is answered: one that comes through says that the taking did.
    async fn hold(
        &mut self,
        seen: &Seen,
        took: Duration,
        stop: &Shared<impl Future<Output = ()>>,
    ) -> Result<(), Unable> {
        let (settings, leases) = (self.settings.clone(), self.leases.clone());
        let (name, params) = (&settings.name, PostParams::default());
        let taken = self.now();
        self.taken = Some(taken.clone());
        let wanted = seen.taken_by(&settings, &taken);
        let mut renewals = Renewals::begin(settings.clone(), Instant::now(), took);
        let take = first_answer(settings.patience(), || leases.replace(name, &params, &wanted));
        let take = take.map(|answer| (None, answer.map(|(sent, _)| (sent, true)).map_err(Unable::from)));
        let mut answers = FuturesUnordered::from_iter([take.boxed()]);
        loop {
            tokio::select! {
                biased;
                // A taking that is under way is waited for, so that it can be given back.
                () = stop.clone(), if renewals.leads_until().is_some() => return Ok(()),
                () = sleep_until(renewals.ends()) => break,
                Some((renewal, answer)) = answers.next() => match answer {
                    Ok((sent, true)) => {
                        if let Some(until) = renewals.came_through(sent, Instant::now()) {
                            self.lead(until);
                            self.works();
                        } else {
                            return self.too_slow(sent.elapsed()).await;
                        }
                    }
                    Ok((sent, false)) => if renewals.found_another(sent) {
                        self.taken = None;
                        self.follow("the Lease does not name this replica any more");
                        return Ok(());
                    },
                    Err(why) => {
                        self.may_renew &= why.code() != Some(403);
                        match renewal {
                            None if renewals.leads_until().is_none() => return Err(why),
                            Some(sent) if renewals.failed(sent) => self.fails(&why),
                            _ => {}
                        }
                    }
                },
                () = sleep_until(renewals.due()), if answers.len() < MOST => {
                    let (sent, now) = (Instant::now(), self.now());
                    renewals.sent(sent);
                    let (leases, settings, renewal) = (&leases, &settings, settings.renews(&taken, &now));
                    answers.push(async move {
                        // An answer that comes later says of no time that is still to come.
                        let longest = settings.lasts();
                        let answer = timeout(longest, patch(leases, &settings.name, &renewal)).await;
                        let answer = answer.map_err(|_| Unable::NoAnswer(longest));
                        (Some(sent), answer.and_then(|done| Ok((sent, done?))))
                    }.boxed());
                }
            }
        }
        if renewals.leads_until().is_none() {
            return Err(Unable::NoAnswer(settings.lasts()));
        }
        self.follow("the Lease could not be renewed in time");
        Ok(())
    }

    /// Reads the Lease, or makes one that is nobody's; and says how long that took.
    async fn look(&mut self) -> Result<(Seen, Duration), Unable> {
        let (leases, name) = (&self.leases, &self.settings.name);
        let (sent, found) = self.answer(|| leases.get_opt(name)).await?;
        let (sent, lease) = if let Some(lease) = found {
            (sent, lease)
        } else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name.clone());
            let params = PostParams::default();
            self.answer(|| leases.create(&params, &lease)).await?
        };
        Ok((self.see(lease), sent.elapsed()))
    }

    /// Takes the Lease from its holder, who may renew it at the same moment, and says whether that one still had it.
    async fn take_from(&self, holder: Option<&str>, wanted: &Lease) -> Result<bool, Unable> {
        let (leases, name) = (&self.leases, &self.settings.name);
        let Some(holder) = holder else {
            let params = PostParams::default();
            return self.answer(|| leases.replace(name, &params, wanted)).await.map(|_| true);
        };
        let change = json!([
            { "op": "test", "path": "/spec/holderIdentity", "value": holder },
            { "op": "replace", "path": "/spec", "value": wanted.spec },
        ]);
        Ok(self.answer(|| patch(leases, name, &change)).await?.1)
    }

    /// The answer to a request, and when that request was sent.
    async fn answer<T, R: Future<Output = kube::Result<T>>>(
        &self,
        request: impl Fn() -> R,
    ) -> Result<(Instant, T), Unable> {
        let longest = self.settings.duration;
        let answer = timeout(longest, first_answer(self.settings.patience(), request)).await;
        Ok(answer.map_err(|_| Unable::NoAnswer(longest))??)
    }

    /// Notes how the Lease stands. Any change of it counts: its version is what a taking names.
    fn see(&mut self, lease: Lease) -> Seen {
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        let before = self.seen.take().filter(|seen| version(&seen.lease) == version(&lease));
        let seen = before.unwrap_or_else(|| Seen { lease, since: Instant::now() });
        let spec = seen.lease.spec.as_ref();
        if let Some(spec) = spec.filter(|spec| spec.holder_identity.as_ref() == Some(&self.settings.identity)) {
            self.taken.clone_from(&spec.acquire_time);
        }
        self.seen = Some(seen.clone());
        seen
    }

    /// Gives the time to write, never the same one twice: others see a renewal by what it changes, and Kubernetes writes
    /// nothing where nothing changes.
    fn now(&mut self) -> MicroTime {
        let next = self.stamp.saturating_add(jiff::SignedDuration::from_micros(1)).unwrap_or(self.stamp);
        self.stamp = Timestamp::now().max(next);
        MicroTime(self.stamp)
    }

    fn lead(&mut self, until: Instant) {
        if self.leads.send_replace(Some(until)).is_none() {
            tracing::info!(identity = %self.settings.identity, "became the leader");
        }
    }

    fn follow(&mut self, why: &str) {
        self.seen = None;
        if self.leads.send_replace(None).is_some() {
            tracing::warn!(identity = %self.settings.identity, "lost leadership: {why}");
        }
    }

    /// Lets the next one begin at once, where the Lease bears this replica, and says whether it did.
    ///
    /// A renewal that comes through later changes nothing, as it finds nobody's Lease.
    async fn give_back(&mut self) -> Result<bool, Unable> {
        let Some(taken) = &self.taken else { return Ok(false) };
        let change = self.settings.gives_back(taken);
        let (_, done) = self.answer(|| patch(&self.leases, &self.settings.name, &change)).await?;
        (self.taken, self.seen) = (None, None);
        Ok(done)
    }
}

/// Changes the Lease where the patch's tests hold, and says whether they did.
async fn patch(leases: &Api<Lease>, name: &str, operations: &Value) -> kube::Result<bool> {
    let operations = serde_json::from_value(operations.clone()).map_err(kube::Error::SerdeError)?;
    match leases.patch(name, &PatchParams::default(), &Patch::Json::<()>(operations)).await {
        Ok(_) => Ok(true),
        // An apiserver answers 422 where a test of a JSON patch fails (applyJSPatch in its endpoints/handlers/patch.go).
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => Ok(false),
        Err(error) => Err(error),
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
        let (seen, _) = candidate.look().await.map_err(words)?;
        let before = seen.lease.spec.clone().unwrap_or_default();
        let seconds = before.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let before_that = Duration::from_secs(seconds.unwrap_or(0).min(LONGEST));
        // It has to outlast the wait below.
        candidate.settings.duration = candidate.settings.duration.max(2 * before_that);
        let taken = candidate.now();
        let wanted = seen.taken_by(&candidate.settings, &taken);
        let holder = before.holder_identity.filter(|holder| !holder.is_empty());
        match candidate.take_from(holder.as_deref(), &wanted).await {
            Ok(true) => {
                candidate.taken = Some(taken);
                if holder.is_some_and(|holder| !holder.starts_with(SEIZED)) {
                    tokio::time::sleep(before_that).await;
                }
                return Ok((candidate, leads));
            }
            // Another one has taken it at this very moment.
            Ok(false) => {}
            Err(why) if why.code() == Some(409) => {}
            Err(why) => return Err(words(why)),
        }
    }
    Err("the Lease changes all the time".to_owned())
}

/// The beginning of the identity of whoever took a Lease away.
const SEIZED: &str = "detach_";
/// The most times that a Lease that changes hands at the same moment is tried again.
const SEIZURES: usize = 20;
/// The longest time of a Lease that is waited for, in seconds: as long as one of ours may be.
const LONGEST: u64 = 300;

#[cfg(test)]
mod tests;

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

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

/// An apiserver with one Lease.
#[derive(Clone, Default)]
struct Apiserver(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    lease: Option<Value>,
    version: u64,
    /// The time that a request is on its way to the Lease, and the time that its answer is on its way back.
    there: Duration,
    back: Duration,
    /// So many of the next requests are never heard of again.
    lost: usize,
    requests: usize,
}

impl Apiserver {
    fn stored(&self) -> std::sync::MutexGuard<'_, Stored> {
        self.0.lock().unwrap()
    }

    /// Has every request take so long, half of it on the way back.
    fn takes(&self, time: Duration) {
        let mut stored = self.stored();
        (stored.there, stored.back) = (time / 2, time / 2);
    }

    fn holder(&self) -> String {
        let stored = self.stored();
        let lease = stored.lease.as_ref();
        lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str()).unwrap_or_default().to_owned()
    }

    fn client(&self) -> Client {
        let api = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move { api.answer(request).await }
            }),
            "lictor",
        )
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (head, body) = request.into_parts();
        let wanted: Option<Value> = serde_json::from_slice(&body.collect_bytes().await.unwrap()).ok();
        let (there, back, lost) = {
            let mut stored = self.stored();
            stored.requests += 1;
            let lost = stored.lost > 0;
            stored.lost = stored.lost.saturating_sub(1);
            (stored.there, stored.back, lost)
        };
        if lost {
            std::future::pending::<()>().await;
        }
        sleep(there).await;
        let (status, body) = self.stored().done(&head.method, wanted);
        sleep(back).await;
        Ok(Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap())
    }

    fn candidate(
        &self,
        identity: &str,
        duration: Duration,
    ) -> (Leads, JoinHandle<()>, tokio::sync::oneshot::Sender<()>) {
        let settings = LeaseSettings { identity: identity.to_owned(), duration, ..settings() };
        let (candidate, leads) = Candidate::new(self.client(), settings);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(candidate.run(async {
            let _ = stopped.await;
        }));
        (leads, task, stop)
    }
}

impl Stored {
    fn done(&mut self, method: &Method, wanted: Option<Value>) -> (u16, Value) {
        let failure = |code: u16, reason: &str| {
            (code, json!({ "kind": "Status", "status": "Failure", "message": reason, "reason": reason, "code": code }))
        };
        let there = self.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        let mut lease = match (method.as_str(), wanted, there) {
            ("GET", _, None) => return failure(404, "NotFound"),
            ("GET", ..) => return (200, self.lease.clone().unwrap()),
            ("POST", Some(wanted), None) => wanted,
            ("PUT", Some(wanted), Some(version)) if wanted["metadata"]["resourceVersion"] == version => wanted,
            _ => return failure(409, "Conflict"),
        };
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        (200, lease)
    }
}

fn acts(leads: &Leads) -> bool {
    leads.borrow().is_some_and(|until| Instant::now() < until)
}

/// For how long of `time`, at most, `holds` held without a break.
async fn longest(time: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let (end, mut longest, mut since) = (Instant::now() + time, Duration::ZERO, None);
    while Instant::now() < end {
        since = if holds() { since.or(Some(Instant::now())) } else { None };
        longest = longest.max(since.map_or(Duration::ZERO, |since: Instant| since.elapsed()));
        sleep(Duration::from_millis(20)).await;
    }
    longest
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < patience, "{what} does not come");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_apiserver_is_led_as_long_as_a_lead_can_be_kept() {
    for (seconds, request) in [(2, 600), (2, 740), (4, 600), (4, 1400), (15, 600), (15, 5500)] {
        let (api, duration) = (Apiserver::default(), Duration::from_secs(seconds));
        api.takes(Duration::from_millis(request));
        let (leads, _task, _stop) = api.candidate("a", duration);
        until("the lead", || acts(&leads)).await;
        let without = longest(20 * duration, || !acts(&leads)).await;
        assert_eq!(without, Duration::ZERO, "a Lease of {seconds} s, {request} ms a request");
        assert_eq!(api.holder(), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_lead_cannot_be_kept_the_lease_is_left_alone() {
    for (seconds, request) in [(2, 800), (2, 1600), (4, 1600), (4, 3500), (4, 60_000), (15, 6000)] {
        let (api, duration) = (Apiserver::default(), Duration::from_secs(seconds));
        api.takes(Duration::from_millis(request));
        let (candidate, leads) = Candidate::new(api.client(), LeaseSettings { duration, ..settings() });
        let trouble = candidate.trouble();
        tokio::spawn(candidate.run(std::future::pending()));
        let (acted, named) = (longest(20 * duration, || acts(&leads)).await, api.holder());
        assert_eq!((acted, named), (Duration::ZERO, String::new()), "a Lease of {seconds} s, {request} ms a request");
        let why = trouble.get().unwrap_or_default();
        assert!(why.contains("Kubernetes "), "{seconds} {request} {why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_kept_any_more_is_given_back() {
    for request in [1600, 2500, 3500] {
        let api = Apiserver::default();
        let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
        until("the lead", || acts(&leads)).await;
        api.takes(Duration::from_millis(request));
        until("the end of the lead", || !acts(&leads)).await;
        until("the end of the name", || api.holder().is_empty()).await;
        let named = longest(Duration::from_secs(60), || !api.holder().is_empty() && !acts(&leads)).await;
        assert_eq!(named, Duration::ZERO, "{request} ms a request");
        api.takes(Duration::from_millis(10));
        until("the lead", || acts(&leads)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_nobody_answers_cost_no_lead() {
    let api = Apiserver::default();
    api.takes(Duration::from_millis(10));
    let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
    until("the lead", || acts(&leads)).await;
    for lost in [1, 2, 1, 2] {
        api.stored().lost = lost;
        let without = longest(Duration::from_secs(20), || !acts(&leads)).await;
        assert_eq!((without, api.stored().lost), (Duration::ZERO, 0), "{lost} lost in a row");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_is_not_named_any_more() {
    for (request, early) in [(10, 0), (600, 0), (600, 300), (600, 900), (600, 1500)] {
        let api = Apiserver::default();
        api.takes(Duration::from_millis(request));
        let (leads, task, stop) = api.candidate("a", Duration::from_secs(4));
        if early == 0 {
            until("the lead", || acts(&leads)).await;
        } else {
            // Before it leads: one of the requests that it needs for this is under way.
            sleep(Duration::from_millis(early)).await;
        }
        stop.send(()).unwrap();
        task.await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(api.holder(), "", "{request} ms a request, stopped after {early} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn never_do_two_lead() {
    for seed in 0..10 {
        let (api, mut random) = (Apiserver::default(), fastrand::Rng::with_seed(seed));
        let (a, _task_a, _stop_a) = api.candidate("a", Duration::from_secs(4));
        let (b, _task_b, _stop_b) = api.candidate("b", Duration::from_secs(4));
        let mut acted = [0, 0];
        for _ in 0..200 {
            let time = if random.bool() { 10 } else { random.u64(0..4000) };
            let there = random.u64(0..=time);
            {
                let mut stored = api.stored();
                stored.there = Duration::from_millis(there);
                stored.back = Duration::from_millis(time - there);
                stored.lost = if random.u8(0..4) == 0 { random.usize(1..4) } else { 0 };
            }
            let both = longest(Duration::from_millis(random.u64(100..3000)), || acts(&a) && acts(&b)).await;
            assert_eq!(both, Duration::ZERO, "seed {seed}");
            acted = [acted[0] + usize::from(acts(&a)), acted[1] + usize::from(acts(&b))];
        }
        assert!(acted.iter().sum::<usize>() > 20, "seed {seed}: {acted:?}");
    }
}

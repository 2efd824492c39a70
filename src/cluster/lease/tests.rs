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
        (seen(Some("a"), Some(4), second), Some(Step::Take)),
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
fn a_lease_counts_its_holders_and_knows_each_taking() {
    let now = MicroTime(Timestamp::now());
    let taken = |holder| {
        let spec = seen(Some(holder), Some(4), Duration::ZERO).taken_by(&settings(), &now).spec.unwrap();
        (spec.holder_identity.as_deref() == Some("a"), spec.lease_transitions, spec.acquire_time.as_ref() == Some(&now))
    };
    assert_eq!((taken("b"), taken("a")), ((true, Some(4), true), (true, Some(3), true)));
}

#[tokio::test]
async fn a_change_begins_the_wait_anew_whatever_it_changes() {
    let (mut candidate, _leads) = Candidate::new(Apiserver::default().client(), settings());
    let lease = |version: &str| {
        let mut lease = seen(Some("b"), Some(4), Duration::ZERO).lease;
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    };
    let first = candidate.see(lease("1")).since;
    assert_eq!(candidate.see(lease("1")).since, first);
    assert!(candidate.see(lease("2")).since > first);
}

#[tokio::test]
async fn no_time_is_written_twice() {
    let (mut candidate, _leads) = Candidate::new(Apiserver::default().client(), settings());
    let mut before = String::new();
    for _ in 0..1000 {
        let now = json!(candidate.now()).to_string();
        assert!(now > before, "{now} after {before}");
        before = now;
    }
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
    /// So many of the next answers are never heard of, though their requests come through.
    unheard: usize,
    /// Renewals in turn take so long on their way, in place of `there`.
    odd: Option<Duration>,
    /// Patches are forbidden.
    no_patch: bool,
    patches: usize,
    under_way: usize,
    most_under_way: usize,
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
        let (there, back, lost, unheard) = {
            let mut stored = self.stored();
            let lost = stored.lost > 0;
            stored.lost = stored.lost.saturating_sub(1);
            let unheard = !lost && stored.unheard > 0;
            stored.unheard -= usize::from(unheard);
            stored.patches += usize::from(head.method == Method::PATCH);
            let odd = stored.odd.filter(|_| head.method == Method::PATCH && stored.patches % 2 == 1);
            (odd.unwrap_or(stored.there), stored.back, lost, unheard)
        };
        if lost {
            std::future::pending::<()>().await;
        }
        let _under_way = UnderWay::begin(self);
        sleep(there).await;
        let (status, body) = self.stored().done(&head.method, wanted);
        if unheard {
            std::future::pending::<()>().await;
        }
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

/// Counts a request until it is answered or given up.
struct UnderWay(Apiserver);

impl UnderWay {
    fn begin(api: &Apiserver) -> Self {
        let mut stored = api.stored();
        stored.under_way += 1;
        stored.most_under_way = stored.most_under_way.max(stored.under_way);
        Self(api.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.stored().under_way -= 1;
    }
}

/// A Lease as a JSON patch leaves it; none where one of its tests fails.
fn patched(lease: &Value, operations: &Value) -> Option<Value> {
    let mut lease = lease.clone();
    for operation in operations.as_array().unwrap() {
        let path = operation["path"].as_str().unwrap();
        if operation["op"] == "test" {
            if lease.pointer(path) != Some(&operation["value"]) {
                return None;
            }
        } else {
            let (parent, name) = path.rsplit_once('/').unwrap();
            lease.pointer_mut(parent)?[name] = operation["value"].clone();
        }
    }
    Some(lease)
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
            ("PATCH", ..) if self.no_patch => return failure(403, "Forbidden"),
            ("PATCH", _, None) => return failure(404, "NotFound"),
            ("PATCH", Some(operations), Some(_)) => match patched(self.lease.as_ref().unwrap(), &operations) {
                None => return failure(422, "Invalid"),
                // As it is with a real one: what changes nothing makes no version.
                same if same == self.lease => return (200, same.unwrap()),
                Some(patched) => patched,
            },
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
    let table =
        [(2, 600), (2, 1300), (4, 0), (4, 600), (4, 1400), (4, 2000), (4, 2600), (15, 600), (15, 5500), (15, 9900)];
    for (seconds, request) in table {
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
async fn renewals_overlap_only_where_they_have_to() {
    // Those of one minute with a Lease of 4 s.
    for (request, renewals, together) in [(10, 60, 1), (600, 60, 1), (1300, 46, 1), (2000, 90, 3), (2600, 180, 8)] {
        let api = Apiserver::default();
        api.takes(Duration::from_millis(request));
        let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
        until("the lead", || acts(&leads)).await;
        sleep(Duration::from_secs(10)).await;
        {
            let mut stored = api.stored();
            (stored.patches, stored.most_under_way) = (0, 0);
        }
        sleep(Duration::from_secs(60)).await;
        let stored = api.stored();
        assert!(stored.patches.abs_diff(renewals) <= 1, "{request} ms a request: {} renewals", stored.patches);
        assert!(stored.most_under_way <= together, "{request} ms a request: {} together", stored.most_under_way);
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_lead_cannot_be_kept_the_lease_is_left_alone() {
    for (seconds, request) in [(2, 1400), (2, 1600), (4, 2700), (4, 3100), (4, 3500), (4, 60_000), (15, 10_100)] {
        let (api, duration) = (Apiserver::default(), Duration::from_secs(seconds));
        api.takes(Duration::from_millis(request));
        let (candidate, leads) = Candidate::new(api.client(), LeaseSettings { duration, ..settings() });
        let failure = candidate.failure();
        tokio::spawn(candidate.run(std::future::pending()));
        let (acted, named) = (longest(20 * duration, || acts(&leads)).await, api.holder());
        assert_eq!((acted, named), (Duration::ZERO, String::new()), "a Lease of {seconds} s, {request} ms a request");
        let why = failure.get().unwrap_or_default();
        assert!(why.contains("Kubernetes "), "{seconds} {request} {why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_kept_any_more_is_given_back() {
    for request in [2800, 3100, 3500] {
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

/// A taking whose answer comes too late is given back.
#[tokio::test(start_paused = true)]
async fn a_taking_that_becomes_slow_is_given_back() {
    let api = Apiserver::default();
    api.takes(Duration::from_millis(500));
    let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
    // One answer says whether it may renew, two find that there is none and make one.
    sleep(Duration::from_millis(1510)).await;
    assert_eq!((acts(&leads), api.holder()), (false, String::new()));
    {
        let mut stored = api.stored();
        stored.back = Duration::from_millis(3500);
    }
    until("the name", || api.holder() == "a").await;
    until("the end of the name", || api.holder().is_empty()).await;
    let named = longest(Duration::from_secs(60), || acts(&leads) || !api.holder().is_empty()).await;
    assert_eq!(named, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_lease_slows_down_and_speeds_up_without_a_loss() {
    for request in [600, 1000, 1400, 1900] {
        let api = Apiserver::default();
        api.takes(Duration::from_millis(10));
        let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
        until("the lead", || acts(&leads)).await;
        for time in [request, 10, request] {
            api.takes(Duration::from_millis(time));
            let without = longest(Duration::from_secs(30), || !acts(&leads)).await;
            assert_eq!(without, Duration::ZERO, "{time} ms a request");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_out_of_order_cost_no_lead() {
    let api = Apiserver::default();
    api.takes(Duration::from_millis(1900));
    let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
    until("the lead", || acts(&leads)).await;
    api.stored().odd = Some(Duration::from_millis(10));
    let without = longest(Duration::from_secs(60), || !acts(&leads)).await;
    assert_eq!((without, api.holder()), (Duration::ZERO, "a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_taking_whose_answer_is_lost_is_known_by_its_renewals() {
    let api = Apiserver::default();
    api.takes(Duration::from_millis(100));
    let (leads, _task, _stop) = api.candidate("a", Duration::from_secs(4));
    sleep(Duration::from_millis(310)).await;
    api.stored().unheard = 1;
    until("the name", || api.holder() == "a").await;
    let waited = longest(Duration::from_secs(2), || !acts(&leads)).await;
    assert!(waited < Duration::from_millis(900), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_may_not_renew_takes_nothing_and_says_so() {
    let api = Apiserver::default();
    api.stored().no_patch = true;
    let (candidate, leads) = Candidate::new(api.client(), settings());
    let failure = candidate.failure();
    tokio::spawn(candidate.run(std::future::pending()));
    let acted = longest(Duration::from_secs(30), || acts(&leads) || !api.holder().is_empty()).await;
    let why = failure.get().unwrap_or_default();
    assert_eq!(acted, Duration::ZERO);
    assert!(why.contains("must grant get, create, update and patch on leases"), "{why}");
    api.stored().no_patch = false;
    until("the lead", || acts(&leads)).await;
    // The right is taken away later.
    api.stored().no_patch = true;
    until("the end of the lead", || !acts(&leads)).await;
    let acted = longest(Duration::from_secs(30), || acts(&leads)).await;
    let why = failure.get().unwrap_or_default();
    assert_eq!((acted, why.contains("patch on leases")), (Duration::ZERO, true), "{why}");
}

/// A request of an earlier lead that comes through late changes nothing.
#[tokio::test(start_paused = true)]
async fn what_comes_through_late_changes_nothing() {
    let api = Apiserver::default();
    let (mut candidate, _leads) = Candidate::new(api.client(), settings());
    let (seen, _) = candidate.look().await.unwrap();
    let mut take = async |seen: Seen| {
        let taken = candidate.now();
        let wanted = seen.taken_by(&settings(), &taken);
        candidate.leases.replace("lictor", &PostParams::default(), &wanted).await.unwrap();
        (taken, candidate.look().await.unwrap().0)
    };
    let (first, seen) = take(seen).await;
    let (second, _) = take(seen).await;
    let leases: Api<Lease> = Api::namespaced(api.client(), "lictor");
    let late = MicroTime(Timestamp::now());
    for change in [settings().gives_back(&first), settings().renews(&first, &late)] {
        assert!(!patch(&leases, "lictor", &change).await.unwrap(), "{change}");
        assert_eq!(api.holder(), "a");
    }
    // A renewal that comes through after the Lease was given back.
    assert!(patch(&leases, "lictor", &settings().gives_back(&second)).await.unwrap());
    assert!(!patch(&leases, "lictor", &settings().renews(&second, &late)).await.unwrap());
    assert_eq!(api.holder(), "");
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
    let table = [(10, 0), (600, 0), (600, 300), (600, 900), (600, 1500), (600, 2100), (2600, 0), (2600, 8000)];
    for (request, early) in table {
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
                stored.unheard = if random.u8(0..4) == 0 { random.usize(1..4) } else { 0 };
                stored.odd = random.bool().then(|| Duration::from_millis(random.u64(0..4000)));
            }
            let both = longest(Duration::from_millis(random.u64(100..3000)), || acts(&a) && acts(&b)).await;
            assert_eq!(both, Duration::ZERO, "seed {seed}");
            acted = [acted[0] + usize::from(acts(&a)), acted[1] + usize::from(acts(&b))];
        }
        assert!(acted.iter().sum::<usize>() > 20, "seed {seed}: {acted:?}");
    }
}

//! The way to Consul: requests and answers that take their time, get lost, come late, or are refused.
//!
//! A request that was sent is on its own: it arrives whether or not whoever sent it still waits or lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use lictor::consul::tenancy::Tenancy;
use lictor::consul::transport::{Method, Request, Response, Transport, TransportError};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::consul::{Reply, Url};
use crate::oracle::{Origin, Sent};
use crate::setup::{By, PREFIX};
use crate::sim::{Sim, State};
use crate::{leadership, takeover};

/// How Lictor of one life reaches Consul.
pub struct Network {
    sim: Sim,
    life: u32,
    /// To the agent that was there before.
    to_former: bool,
}

impl Network {
    pub fn new(sim: Sim, life: u32) -> Self {
        Self { sim, life, to_former: false }
    }

    pub fn to_former(sim: Sim, life: u32) -> Self {
        Self { to_former: true, ..Self::new(sim, life) }
    }
}

/// What becomes of a request.
enum Fate {
    /// It arrives, and so does the answer.
    Answered,
    /// The connection is refused.
    NotSent,
    /// It is lost on its way there.
    RequestLost,
    /// It arrives, perhaps long after nobody waits any more, and the answer is lost.
    AnswerLost { late: Duration },
    /// Something before Consul's state answers in its place.
    Instead(Reply),
    /// Consul does it, and answers that something went wrong.
    Stumbles,
    /// Nothing can carry it.
    Unsendable,
}

/// Says, when it is dropped, that nobody waits for the answer any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Transport for Network {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response, TransportError>> {
        Box::pin(async move {
            self.begin(&request)?;
            tokio::select! {
                biased;
                answer = self.deliver(request) => answer,
                () = leadership::gives_up(&self.sim), if self.life != takeover::LIFE => Err(no_answer("this replica does not lead any more")),
            }
        })
    }

    fn addresses(&self) -> usize {
        1
    }

    fn has_token(&self) -> bool {
        true
    }

    fn tenancy(&self) -> &Tenancy {
        &Tenancy::DEFAULT
    }
}

impl Network {
    async fn deliver(&self, request: Request) -> Result<Response, TransportError> {
        let is_write = request.method == Method::Put;
        let abandoned = Arc::new(AtomicBool::new(false));
        let _waiting = Waiting(abandoned.clone());
        let (fate, there, back, sent) = {
            let mut state = self.sim.state();
            let fate = match failure_of(&state, &request) {
                Some(by) => failing(&mut state, by),
                None => draw_fate(&mut state, is_write),
            };
            let (there, back) = (way(&mut state), way(&mut state));
            let decided = state.oracle.decisions();
            let (marker, epoch, restores) = (state.marker_index(), state.consul_epoch, state.oracle.restores());
            let heard = Arc::default();
            (fate, there, back, Sent { life: self.life, decided, abandoned: false, marker, epoch, restores, heard })
        };
        let heard = sent.heard.clone();
        if self.sim.state().is_traced() {
            self.trace(&request, &fate);
        }
        let late = match fate {
            Fate::NotSent => {
                sleep(there).await;
                return Err(TransportError::NotSent("Consul: connection refused".to_owned()));
            }
            Fate::Unsendable => return Err(TransportError::Unsendable("the request cannot be made".to_owned())),
            Fate::RequestLost => {
                sleep(there).await;
                return Err(no_answer("connection reset"));
            }
            Fate::Instead(reply) => {
                sleep(there + back).await;
                return Ok(response(reply));
            }
            Fate::AnswerLost { late } => Some(late),
            Fate::Answered | Fate::Stumbles => None,
        };
        let (answered, answer) = oneshot::channel();
        let (sim, to_former) = (self.sim.clone(), self.to_former);
        let journey = Journey { sim, to_former, sent, abandoned, request: request.clone() };
        let under_way = is_write.then(|| self.sim.state().leadership.under_way.clone());
        tokio::spawn(async move {
            sleep(there + late.unwrap_or_default()).await;
            let reply = journey.arrive().await;
            drop(under_way);
            sleep(back).await;
            // Whoever asked may have gone.
            let _ = answered.send(reply);
        });
        if late.is_some() {
            sleep(there + back).await;
            return Err(no_answer("connection reset while waiting for the answer"));
        }
        match timeout(request.timeout, answer).await {
            Ok(Ok(None)) => Err(no_answer("connection reset")),
            Ok(Ok(Some(_))) if matches!(fate, Fate::Stumbles) => {
                Ok(response(Reply::text(500, "leadership lost while committing log")))
            }
            Ok(Ok(Some(reply))) => {
                heard.store(true, Ordering::Relaxed);
                Ok(response(reply))
            }
            Ok(Err(_)) => panic!("the model of Consul panicked at {} {}", request.path, body_text(&request)),
            Err(_) => Err(no_answer("operation timed out")),
        }
    }

    /// Lets a request begin while this life leads, as the product's own way to Consul does.
    fn begin(&self, request: &Request) -> Result<(), TransportError> {
        let mut state = self.sim.state();
        let is_write = request.method == Method::Put;
        // A command needs no lead.
        if self.life == takeover::LIFE {
            return Ok(());
        }
        if !state.leads() {
            if !state.has_no_write_lease() {
                state.stats.count("requests held back without the lead");
                return Err(TransportError::NotSent("this replica does not lead any more".to_owned()));
            }
            if is_write {
                state.violate("one leader", format!("life {} sent {} without the lead", self.life, request.path));
            }
        }
        if request.path.starts_with("/v1/agent/services") {
            state.leadership.is_unread = false;
        }
        // In the catalog the fence tells.
        if is_write && state.leadership.is_unread && state.consul.agent.is_some() {
            let what = format!("life {} sent {} by what it knew before another one led", self.life, request.path);
            state.violate("one leader", what);
        }
        Ok(())
    }

    fn trace(&self, request: &Request, fate: &Fate) {
        let what = match fate {
            Fate::Answered => String::new(),
            Fate::NotSent => " (refused)".to_owned(),
            Fate::RequestLost => " (request lost)".to_owned(),
            Fate::AnswerLost { late } => format!(" (answer lost, {} ms late)", late.as_millis()),
            Fate::Instead(reply) => format!(" (answered {})", reply.status),
            Fate::Stumbles => " (done, answered 500)".to_owned(),
            Fate::Unsendable => " (cannot be made)".to_owned(),
        };
        if request.method == Method::Put || !what.is_empty() {
            let life = self.life;
            self.sim.state().trace(|| {
                format!("life {life} sends {:?} {}{what} {}", request.method, request.path, body_text(request))
            });
        }
    }
}

fn no_answer(why: &str) -> TransportError {
    TransportError::NoAnswer(format!("Consul: {why}"))
}

/// A request on its way.
struct Journey {
    sim: Sim,
    to_former: bool,
    sent: Sent,
    abandoned: Arc<AtomicBool>,
    request: Request,
}

impl Journey {
    /// The answer; none where there is no server any more that the request was for.
    async fn arrive(mut self) -> Option<Reply> {
        let url = Url::parse(&self.request.path);
        if let Some((node, index)) = url.waits_for() {
            let until = Instant::now() + Duration::from_secs(url.wait());
            loop {
                let mut moved = std::pin::pin!(self.sim.consul_moved().notified());
                moved.as_mut().enable();
                if self.sim.state().consul.store.index_of(node) != index {
                    break;
                }
                if tokio::time::timeout_at(until, moved).await.is_err() {
                    break;
                }
            }
        }
        let writes = self.request.method == Method::Put;
        let body = self.request.body.as_deref().unwrap_or_default();
        self.sent.abandoned = self.abandoned.load(Ordering::Relaxed);
        let mut state = self.sim.state();
        if self.sent.epoch != state.consul_epoch {
            return None;
        }
        if self.sent.abandoned && writes {
            state.stats.count("requests that landed late");
        }
        let marker = state.marker_index();
        let reply = if self.to_former {
            state.consul.answer_of_former(writes, &url, body)?
        } else {
            state.consul.answer(writes, &url, body)
        };
        if writes {
            if url.segments.iter().any(|segment| segment == "txn") && nodes_of(body) > 1 {
                let went = "transactions for several nodes";
                state.stats.count(if reply.status == 200 {
                    went
                } else {
                    "transactions for several nodes rolled back"
                });
            }
            // What Consul refuses is tried again now and then.
            state.consul_writes += u64::from(reply.status == 200);
            state.trace(|| {
                let text = String::from_utf8_lossy(&reply.body).chars().take(300).collect::<String>();
                format!("Consul answers life {} {} {text}", self.sent.life, reply.status)
            });
            // A restored marker may be just as whoever sent this had left it.
            let can_tell = state.consul.agent.is_none() && self.sent.restores == state.oracle.restores();
            if can_tell && reply.status == 200 && marker != self.sent.marker {
                let life = self.sent.life;
                state.violate("fence", format!("a write of life {life} landed although the marker had moved"));
            }
            state.observe(&Origin::Lictor(self.sent));
            drop(state);
            self.sim.consul_has_moved();
        }
        Some(reply)
    }
}

/// How a request has to fail, since it is about an instance of which each write fails.
fn failure_of(state: &State, request: &Request) -> Option<By> {
    let failing = state.setup.failing?;
    let mut texts = Url::parse(&request.path).segments;
    texts.push(String::from_utf8_lossy(request.body.as_deref().unwrap_or_default()).into_owned());
    let of_an_id = |c: char| c.is_ascii_alphanumeric() || ":-._".contains(c);
    let mut ids = texts.iter().flat_map(|text| text.split(|c| !of_an_id(c))).filter(|word| word.starts_with(PREFIX));
    let hit = ids.any(|id| {
        // An address of IPv6 has colons of its own.
        let instance = id.strip_suffix(":readiness").unwrap_or(id);
        instance.split(':').count() >= 6 && failing.includes(instance)
    });
    hit.then_some(failing.by)
}

fn failing(state: &mut State, by: By) -> Fate {
    state.stats.count("requests that fail each time");
    state.failing_requests += 1;
    match by {
        By::Loss => Fate::RequestLost,
        By::Length => Fate::Unsendable,
        By::Status(status) => Fate::Instead(Reply::text(status, "this one cannot be")),
    }
}

fn draw_fate(state: &mut State, writes: bool) -> Fate {
    let network_faults = state.network_faults;
    if state.strikes(network_faults.refused) {
        state.stats.count("connections refused");
        return Fate::NotSent;
    }
    if state.strikes(network_faults.lost) {
        if !writes || state.random.network.u8(..3) == 0 {
            state.stats.count("requests lost");
            return Fate::RequestLost;
        }
        state.stats.count("answers lost");
        let late = if state.random.network.bool() { state.random.network.u64(1..20_000) } else { 0 };
        return Fate::AnswerLost { late: Duration::from_millis(late) };
    }
    if state.strikes(network_faults.outage) {
        state.stats.count("answers of an outage");
        return match state.random.network.u8(..6) {
            0 => Fate::Instead(Reply::text(429, "rate limit exceeded, try again later")),
            1 => Fate::Instead(Reply::text(503, "rate limit exceeded, try again later or against a different server")),
            2 => Fate::Instead(Reply::text(500, "No cluster leader")),
            3 => Fate::Instead(Reply::text(403, "rpc error making call: ACL not found")),
            4 => Fate::Instead(Reply::text(502, "Bad Gateway")),
            _ => Fate::Stumbles,
        };
    }
    Fate::Answered
}

/// How long one way takes: mostly little, sometimes the longest.
fn way(state: &mut State) -> Duration {
    let slow = if state.calm { 3 } else { state.network_faults.slow };
    let slow = if state.random.network.u8(..4) == 0 { slow } else { slow.min(20) };
    Duration::from_millis(state.random.network.u64(1..=slow.max(1)))
}

fn response(reply: Reply) -> Response {
    let Reply { status, index, filtered, body } = reply;
    let retry_after = (status == 429).then_some(Duration::from_secs(1));
    Response { status, index, filtered, retry_after, body: body.into() }
}

/// Counts the nodes that a transaction writes something on, where it has operations.
fn nodes_of(body: &[u8]) -> usize {
    let ops: Value = serde_json::from_slice(body).unwrap_or_default();
    let node = |op: &Value| {
        let name = op["Service"]["Node"].as_str().or_else(|| op["Check"]["Check"]["Node"].as_str());
        name.map(str::to_owned)
    };
    ops.as_array().into_iter().flatten().filter_map(node).collect::<BTreeSet<_>>().len()
}

fn body_text(request: &Request) -> String {
    let text = String::from_utf8_lossy(request.body.as_deref().unwrap_or_default());
    let short: BTreeMap<&str, &str> = BTreeMap::from([
        ("\"Meta\":{\"lictor-cluster\":\"c1\",\"lictor-cluster-uid\":\"uid-1\",\"managed-by\":\"lictor\"}", "OURS"),
        ("\"Notes\":\"Whether Kubernetes considers the pod ready. Kept by Lictor.\",", ""),
    ]);
    short.into_iter().fold(text.into_owned(), |text, (long, short)| text.replace(long, short))
}

//! One seed: Lictor lives, dies and lives again while everything changes around it; then calm, and the verdict.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use lictor::consul::agent::Agent;
use lictor::consul::catalog::Catalog;
use lictor::consul::transport::Transport;
use lictor::engine::metrics::Metrics;
use lictor::engine::{Config, Engine, Question, Snapshot};
use lictor::ports::Registry;
use lictor::state::event::Event;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::actors::Ends;
use crate::apiserver::ApiServer;
use crate::consul::agent::Agent as LocalAgent;
use crate::leadership;
use crate::network::Network;
use crate::oracle::Origin;
use crate::planted_faults::{PlantedFault, Watched};
use crate::schedule::{Consequences, Later};
use crate::setup::{Mode, Setup};
use crate::sim::{Sim, State, Stats};
use crate::{takeover, verdict};

/// How often Lictor looks at everything in Consul.
const RESYNC: Duration = Duration::from_secs(30);
/// How long things may take to settle once nothing changes any more.
const SETTLING: Duration = Duration::from_secs(240);
/// How long nothing may be written after that.
const QUIET: Duration = Duration::from_secs(60);

/// How often what fails each time may be tried in that time, with all that it takes to find out what fails.
const NOW_AND_THEN: u64 = 100;

/// How a seed went.
pub struct Outcome {
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    pub stats: Stats,
}

/// Runs one seed.
pub fn run(setup: Setup, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async {
        let sim = Sim::new(setup, traced);
        {
            let mut state = sim.state();
            state.set_up_consul();
            state.observe(&Origin::Others);
        }
        let begun = sim.change_cluster(State::furnish);
        if sim.state().setup.rebuilt {
            sim.state().leave_behind();
        }
        let (ask, questions) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        {
            let sim = sim.clone();
            tasks.spawn(async move {
                tokio::join!(script(&sim, begun), network_faults(&sim), meddling(&sim));
                settle(&sim, &ask).await;
            });
        }
        tasks.spawn(lives(sim.clone(), questions));
        tasks.spawn(agent_syncs(sim.clone()));
        // The first one that ends is the world's, or one that has panicked.
        if let Some(Err(error)) = tasks.join_next().await
            && let Ok(panic) = error.try_into_panic()
        {
            resume_unwind(panic);
        }
        let state = sim.state();
        Outcome {
            violations: state.violations().to_vec(),
            trace: state.trace_lines().cloned().collect(),
            stats: state.stats.clone(),
        }
    })
}

/// Changes Kubernetes until the end, and then lets what has begun come to its end.
async fn script(sim: &Sim, begun: Consequences) {
    let (end, pace) = {
        let state = sim.state();
        (Instant::now() + state.setup.length, state.setup.pace)
    };
    let numbered = begun.into_iter().zip(0_u64..);
    let mut due: BTreeMap<(Instant, u64), Later> =
        numbered.map(|((after, later), number)| ((Instant::now() + after, number), later)).collect();
    let mut numbers = 1_000;
    let mut next = Instant::now();
    while next < end || !due.is_empty() {
        let first = due.first_key_value().map(|((at, _), _)| *at);
        let at = first.filter(|first| *first <= next || next >= end).unwrap_or(next);
        sleep_until(at).await;
        let consequences = sim.change_cluster(|state| {
            state.stats.count("changes");
            match due.pop_first() {
                Some((_, later)) if first == Some(at) => {
                    state.trace(|| format!("change: {later:?}"));
                    state.follow(later)
                }
                other => {
                    due.extend(other);
                    state.trace(|| "change");
                    next = at + Duration::from_millis(random_wait(&mut state.random.script, pace));
                    state.turn()
                }
            }
        });
        for (after, later) in consequences {
            numbers += 1;
            due.insert((at + after, numbers), later);
        }
    }
}

fn random_wait(random: &mut fastrand::Rng, mean: Duration) -> u64 {
    let mean = u64::try_from(mean.as_millis()).unwrap_or(u64::MAX);
    // Now and then several changes come at once.
    if random.u8(..4) == 0 { random.u64(0..5) } else { random.u64(0..2 * mean) }
}

async fn network_faults(sim: &Sim) {
    let end = Instant::now() + sim.state().setup.length;
    while Instant::now() < end {
        sim.state().change_weather();
        let wait = sim.state().random.script.u64(2_000..25_000);
        sleep(Duration::from_millis(wait)).await;
    }
}

async fn meddling(sim: &Sim) {
    let end = Instant::now() + sim.state().setup.length;
    if !sim.state().setup.faults {
        return;
    }
    let mut ending: Vec<(Instant, Ends)> = Vec::new();
    while Instant::now() < end {
        let wait = Duration::from_millis(sim.state().random.script.u64(100..25_000));
        sleep(wait).await;
        let mut state = sim.state();
        let now = Instant::now();
        ending.retain(|(at, ends)| {
            let over = *at <= now;
            if over {
                state.ends(*ends);
            }
            !over
        });
        let begun = state.meddle();
        ending.extend(begun.map(|(length, ends)| (now + length, ends)));
        drop(state);
        sim.consul_has_moved();
    }
    for (_, ends) in ending {
        sim.state().ends(ends);
    }
}

/// Nothing changes any more: everything settles, then stays as it is.
async fn settle(sim: &Sim, ask: &mpsc::Sender<Question>) {
    {
        let mut state = sim.state();
        state.calm = true;
        state.network_faults = crate::sim::NetworkFaults::FINE;
        state.trace(|| "calm");
    }
    sim.cluster_has_moved();
    sim.consul_has_moved();
    sleep(SETTLING).await;
    let snapshot = snapshot(sim, ask).await;
    let (writes, failing, contents) = {
        let mut state = sim.state();
        state.trace(|| "verdict");
        verdict::check(&mut state, snapshot.as_ref());
        ((state.consul_writes, state.cluster_writes), state.failing_requests, state.consul.store.contents())
    };
    sleep(QUIET).await;
    let mut state = sim.state();
    let failing = state.failing_requests - failing;
    if failing > NOW_AND_THEN {
        state.violate("nothing wasted", format!("what fails each time was tried {failing} times in {QUIET:?}"));
    }
    let now = (state.consul_writes, state.cluster_writes);
    // After what fails each time Consul is asked whether it carries out anything, by writes.
    let asks = state.setup.failing.is_some() && state.setup.mode == Mode::Catalog;
    if asks {
        return;
    }
    if now != writes {
        let (consul, cluster) = (now.0 - writes.0, now.1 - writes.1);
        state.violate(
            "nothing wasted",
            format!("{consul} writes to Consul and {cluster} to Kubernetes without a change"),
        );
    }
    if state.consul.store.contents() != contents {
        state.violate("nothing wasted", "Consul moved without a change");
    }
}

async fn snapshot(sim: &Sim, ask: &mpsc::Sender<Question>) -> Option<Snapshot> {
    let (reply, answer) = oneshot::channel();
    let answered = async {
        ask.send(Question::Snapshot(reply)).await.ok()?;
        answer.await.ok()
    };
    let snapshot = timeout(Duration::from_secs(1), answered).await.ok().flatten();
    if snapshot.is_none() {
        sim.state().violate("the loop turns", "no answer to a question within a second");
    }
    snapshot
}

/// The agent's own work, where there is one.
async fn agent_syncs(sim: Sim) {
    if sim.state().setup.mode != Mode::Agent {
        return std::future::pending().await;
    }
    let mut compare = Instant::now() + Duration::from_secs(60);
    loop {
        let mut moved = std::pin::pin!(sim.consul_moved().notified());
        moved.as_mut().enable();
        let (in_sync, fails) = {
            let state = sim.state();
            let mut agents = state.consul.agent.iter().chain(&state.consul.former);
            let in_sync = agents.all(LocalAgent::is_in_sync);
            (in_sync, state.consul.sync_fails)
        };
        if in_sync {
            tokio::select! {
                biased;
                () = moved => continue,
                () = sleep_until(compare) => {}
            }
        }
        if Instant::now() >= compare {
            sim.state().agent_compares();
            compare = Instant::now() + Duration::from_millis(sim.state().random.network.u64(50_000..70_000));
        }
        let wait = {
            let mut state = sim.state();
            if fails {
                15_000
            } else if state.random.network.u8(..10) == 0 {
                state.random.network.u64(1..2_000)
            } else {
                state.random.network.u64(1..30)
            }
        };
        sleep(Duration::from_millis(wait)).await;
        let mut state = sim.state();
        if !state.consul.sync_fails {
            state.agent_syncs();
        }
        drop(state);
        sim.consul_has_moved();
    }
}

/// How a life ends.
enum End {
    /// Never, as far as the seed is concerned.
    Never,
    /// At a time: the process is killed.
    Killed(Duration),
    /// After this many steps, wherever it is then.
    Steps(u64),
    /// At a time: it is told to stop, and may finish what is under way.
    Stopped(Duration),
}

/// One life after the other.
async fn lives(sim: Sim, questions: mpsc::Receiver<Question>) {
    let questions = Arc::new(tokio::sync::Mutex::new(questions));
    takeover::take_over(&sim).await;
    for life in 1.. {
        let end = draw_end(&sim);
        live(&sim, life, end, &questions).await;
        let down = {
            let mut state = sim.state();
            state.stats.count("crashes and stops");
            if state.random.lives.u8(..4) == 0 {
                state.move_to_long_names();
            }
            let calm = state.calm;
            let down = state.random.lives.u64(0..if calm { 100 } else { 20_000 });
            state.trace(|| format!("life {life} is over; down for {down} ms"));
            if state.random.lives.bool() { down } else { down / 100 }
        };
        sleep(Duration::from_millis(down)).await;
    }
}

fn draw_end(sim: &Sim) -> End {
    let mut state = sim.state();
    if state.calm || !state.setup.faults {
        return End::Never;
    }
    let random = &mut state.random.lives;
    match random.u8(..10) {
        0..3 => End::Never,
        3..6 => End::Killed(Duration::from_millis(random.u64(0..60_000))),
        6..9 => {
            let most = *random.choice(&[50, 500, 3_000]).unwrap_or(&50);
            End::Steps(random.u64(1..most))
        }
        _ => End::Stopped(Duration::from_millis(random.u64(0..60_000))),
    }
}

async fn live(sim: &Sim, life: u32, end: End, questions: &Arc<tokio::sync::Mutex<mpsc::Receiver<Question>>>) {
    let setup = sim.state().setup.clone();
    let (sink, events) = mpsc::channel(1024);
    let lead = watch::Sender::new(None);
    sim.state().begin_life();
    let mut engine = engine(sim, &setup, life, sink);
    if setup.elects && setup.planted != Some(PlantedFault::LeadIgnored) {
        engine = engine.led_by(lead.subscribe());
    }
    let (ask, own_questions) = mpsc::channel(1);
    let forward = async {
        let mut questions = questions.lock().await;
        while let Some(question) = questions.recv().await {
            // An engine that does not listen is found out by whoever waits for the answer.
            let _ = ask.send(question).await;
        }
        std::future::pending::<()>().await;
    };
    let at = |after: Duration| {
        let sim = sim.clone();
        async move {
            sleep(after).await;
            if sim.state().calm {
                std::future::pending::<()>().await;
            }
        }
    };
    let never = Duration::from_secs(100_000);
    let (stop, kill, steps) = match end {
        End::Never => (never, never, u64::MAX),
        End::Killed(after) => (never, after, u64::MAX),
        End::Steps(steps) => (never, never, steps),
        End::Stopped(after) => (after, never, u64::MAX),
    };
    let (stop, kill) = (at(stop), at(kill));
    let stop = {
        let sim = sim.clone();
        async move {
            stop.await;
            if setup.planted == Some(PlantedFault::LeadGivenBackEarly) {
                sim.state().nobody_leads();
            }
        }
    };
    let running = engine.run(events, own_questions, stop);
    let running = Stepped { sim: sim.clone(), inner: Box::pin(running), left: steps };
    tokio::select! {
        biased;
        () = sim.lictor_killed().notified() => {}
        () = kill => {}
        () = running => {}
        () = leadership::lead(sim, &lead) => {}
        () = forward => {}
    }
}

fn engine(sim: &Sim, setup: &Setup, life: u32, sink: mpsc::Sender<Event>) -> Engine {
    let identity = Setup::identity();
    let transport = Arc::new(Network::new(sim.clone(), life));
    let registry: Arc<dyn Registry> = match setup.mode {
        Mode::Agent => {
            let former: Arc<dyn Transport> = Arc::new(Network::to_former(sim.clone(), life));
            let former = setup.former_named.then(|| ("former".to_owned(), former));
            Arc::new(Agent::new(identity.clone(), transport).with_previous(former))
        }
        Mode::Catalog => Arc::new(Catalog::new(identity.clone(), transport, setup.transactions)),
    };
    let registry = Arc::new(Watched::new(sim.clone(), registry, setup.planted));
    let config = Config {
        identity,
        resync_interval: RESYNC,
        hold_mass_unready: if setup.planted == Some(PlantedFault::NoHold) {
            Duration::ZERO
        } else {
            setup.hold_mass_unready
        },
        status_rate: 20,
        grace: Duration::from_secs(5),
        turn: setup.turn,
    };
    let world = setup.world();
    let kubernetes = Arc::new(ApiServer::new(sim.clone(), life, sink));
    let random = fastrand::Rng::with_seed(sim.state().random.lives.u64(..));
    let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
    Engine::new(config, world, registry, kubernetes, random, metrics)
}

/// A future that is over after so many polls, wherever it is: what a crash leaves behind.
struct Stepped {
    sim: Sim,
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
    left: u64,
}

impl Future for Stepped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.left -= 1;
        if self.left == 0 && !self.sim.state().calm {
            return Poll::Ready(());
        }
        self.left = self.left.max(1);
        self.inner.as_mut().poll(context)
    }
}

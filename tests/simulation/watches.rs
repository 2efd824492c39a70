//! What Lictor sees of Kubernetes: each watch in order, but late and not in step with the others, with lists that
//! are begun again, and what happened between two lists missed. And the writes, and the second look.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lictor::cluster::event::{Change, Event, Kind, Scope, Step};
use lictor::cluster::world::World;
use lictor::cluster::{Kubernetes, ReadError, Write, WriteError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::plants::Plant;
use crate::setup::{Mode, Setup};
use crate::sim::{Sim, State};

/// All watches of a setup.
pub fn all(setup: &Setup) -> Vec<(Kind, Scope)> {
    let mut all = Vec::new();
    for scope in &setup.scopes {
        all.extend([Kind::Resource, Kind::Slice, Kind::Service].map(|kind| (kind, scope.clone())));
    }
    if setup.mode == Mode::Catalog {
        all.push((Kind::Node, Scope::All));
    }
    all
}

/// Starts all watches of one life. They end when the set is dropped.
pub fn start(sim: &Sim, sink: &mpsc::Sender<Event>) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let setup = sim.state().setup.clone();
    sim.state().oracle.sees_nothing(all(&setup));
    for (kind, scope) in all(&setup) {
        let watch =
            Watch { sim: sim.clone(), kind, scope, sink: sink.clone(), early: setup.plant == Some(Plant::EarlySweep) };
        watches.spawn(watch.run().map(|_| ()));
    }
    watches
}

/// One watch.
struct Watch {
    sim: Sim,
    kind: Kind,
    scope: Scope,
    sink: mpsc::Sender<Event>,
    /// The planted fault: a list counts as whole before it is.
    early: bool,
}

/// Nobody listens any more.
struct Ended;

impl Watch {
    async fn run(self) -> Result<(), Ended> {
        loop {
            let position = self.list().await?;
            self.follow(position).await?;
        }
    }

    /// A list, begun anew as often as it is cut off.
    async fn list(&self) -> Result<u64, Ended> {
        loop {
            self.pause().await;
            let (objects, position) = {
                let mut state = self.sim.state();
                state.stats.count("lists");
                (state.cluster.list(self.kind, &self.scope), state.cluster.position())
            };
            self.tell(step(self.kind, Step::Init)).await?;
            let cut = {
                let mut state = self.sim.state();
                state.strikes(15).then(|| state.random.kubernetes.usize(..=objects.len()))
            };
            let early = self.early.then_some(objects.len() / 2);
            for (nth, object) in objects.into_iter().enumerate() {
                if Some(nth) == early {
                    self.tell(step(self.kind, Step::InitDone)).await?;
                    // The next page takes its time.
                    sleep(Duration::from_secs(10)).await;
                }
                if Some(nth) == cut {
                    break;
                }
                if self.sim.state().random.kubernetes.u8(..4) == 0 {
                    self.pause().await;
                }
                self.tell(object).await?;
            }
            if cut.is_some() {
                self.sim.state().stats.count("lists cut off");
                continue;
            }
            self.tell(step(self.kind, Step::InitDone)).await?;
            self.has_seen(position);
            return Ok(position);
        }
    }

    /// Tells of changes until it is time for another list.
    async fn follow(&self, mut position: u64) -> Result<(), Ended> {
        let until = Instant::now() + Duration::from_millis(self.sim.state().random.kubernetes.u64(15_000..150_000));
        loop {
            let next = {
                let state = self.sim.state();
                state.cluster.next_change(position, self.kind, &self.scope).map(|(at, change)| (at, change.clone()))
            };
            let Some((at, change)) = next else {
                let mut moved = std::pin::pin!(self.sim.cluster_moved().notified());
                moved.as_mut().enable();
                if self.sim.state().cluster.next_change(position, self.kind, &self.scope).is_some() {
                    continue;
                }
                tokio::select! {
                    biased;
                    () = moved => continue,
                    () = sleep_until(until) => return Ok(()),
                }
            };
            if self.sim.state().strikes(3) {
                self.sim.state().stats.count("watches lost");
                return Ok(());
            }
            self.pause().await;
            let twice = self.sim.state().strikes(5) && !matches!(&change, Change::Resource(Step::Delete(_)));
            self.tell(change.clone()).await?;
            if twice {
                self.tell(change).await?;
            }
            position = at;
            self.has_seen(position);
        }
    }

    fn has_seen(&self, position: u64) {
        self.sim.state().oracle.has_seen(self.kind, &self.scope, position);
    }

    async fn tell(&self, change: Change) -> Result<(), Ended> {
        self.sim.state().trace(|| format!("tells {} of {}: {}", self.kind, self.scope, summary(&change)));
        self.sink.send(Event { scope: self.scope.clone(), change }).await.map_err(|_| Ended)
    }

    async fn pause(&self) {
        let wait = pause(&mut self.sim.state());
        sleep(wait).await;
    }
}

fn pause(state: &mut State) -> Duration {
    let slow = if state.calm { 5 } else { state.weather.watch_slow };
    let slow = if state.random.kubernetes.u8(..3) == 0 { slow } else { slow.min(30) };
    Duration::from_millis(state.random.kubernetes.u64(0..=slow))
}

fn step(kind: Kind, step: Step<std::convert::Infallible>) -> Change {
    match kind {
        Kind::Resource => Change::Resource(step.map(|_, never| match never {})),
        Kind::Slice => Change::Slice(step.map(|_, never| match never {})),
        Kind::Service => Change::Service(step.map(|_, never| match never {})),
        Kind::Node => Change::Node(step.map(|_, never| match never {})),
    }
}

fn summary(change: &Change) -> String {
    fn of<T>(step: &Step<T>, more: impl Fn(&T) -> String) -> String {
        match step {
            Step::Init => "Init".to_owned(),
            Step::InitDone => "InitDone".to_owned(),
            Step::InitApply(key, object) => format!("InitApply {key} {}", more(object)),
            Step::Apply(key, object) => format!("Apply {key} {}", more(object)),
            Step::Delete(key) => format!("Delete {key}"),
        }
    }
    match change {
        Change::Resource(step) => of(step, |seen| {
            let resource = &seen.resource;
            let service = resource.spec.as_ref().map_or("refused", |spec| &*spec.service);
            let (uid, generation, version) = (&resource.uid, resource.generation, &resource.resource_version);
            let deleting = if resource.deleting { " deleting" } else { "" };
            format!("uid {uid} generation {generation} version {version} {service}{deleting}")
        }),
        Change::Slice(step) => of(step, |slice| {
            let endpoint = |e: &lictor::model::facts::Endpoint| {
                let uid = e.pod.as_ref().map_or("-", |pod| &*pod.uid);
                format!(
                    "{uid}@{}{}{}",
                    e.address,
                    if e.ready { "" } else { " unready" },
                    if e.terminating { " leaving" } else { "" }
                )
            };
            slice.endpoints.iter().map(endpoint).collect::<Vec<_>>().join(", ")
        }),
        Change::Service(step) => of(step, |service| format!("{:?}", service.ports)),
        Change::Node(step) => of(step, |node| format!("{:?}", node.address)),
    }
}

/// Kubernetes' API, for one life of Lictor.
pub struct ApiServer {
    sim: Sim,
    life: u32,
}

impl ApiServer {
    pub fn new(sim: Sim, life: u32) -> Self {
        Self { sim, life }
    }

    async fn send(&self, write: Write) -> Result<(), WriteError> {
        let lost = |why: &str| WriteError::Unavailable(why.to_owned());
        let (there, back, fails, lands) = {
            let mut state = self.sim.state();
            let fails = state.weather.kubernetes_fails;
            let fails = state.strikes(fails);
            (pause(&mut state), pause(&mut state), fails, state.random.kubernetes.bool())
        };
        if fails && !lands {
            sleep(there).await;
            return Err(lost("the apiserver is not reachable"));
        }
        let (sim, life) = (self.sim.clone(), self.life);
        let (answered, answer) = oneshot::channel();
        tokio::spawn(async move {
            sleep(there).await;
            let answer = sim.change_cluster(|state| {
                let now = Timestamp::UNIX_EPOCH + state.now();
                state.cluster_writes += 1;
                let answer = state.cluster.write(&write, now);
                if let Write::RemoveFinalizer(seen) = &write
                    && answer.is_ok()
                {
                    state.finalizer_was_removed(&seen.key);
                }
                if matches!(answer, Err(WriteError::Conflict)) {
                    state.stats.count("conflicts in Kubernetes");
                }
                state.trace(|| format!("Kubernetes answers life {life} {answer:?} to {}", told(&write)));
                answer
            });
            sleep(back).await;
            let _ = answered.send(answer);
        });
        if fails {
            sleep(there + back).await;
            return Err(lost("the answer was lost"));
        }
        answer.await.expect("the model of Kubernetes answers")
    }

    async fn look(&self) -> Result<World, ReadError> {
        let setup = self.sim.state().setup.clone();
        self.sim.state().stats.count("second looks");
        let mut world = World::new(setup.scopes.iter().cloned(), setup.mode == Mode::Catalog);
        for (kind, scope) in all(&setup) {
            let (wait, fails) = {
                let mut state = self.sim.state();
                let fails = state.weather.kubernetes_fails;
                (pause(&mut state), state.strikes(fails))
            };
            sleep(wait).await;
            if fails {
                return Err(ReadError { what: format!("{kind} of {scope}"), reason: "unavailable".to_owned() });
            }
            let mut objects = self.sim.state().cluster.list(kind, &scope);
            if setup.plant == Some(Plant::EarlySweep) {
                objects.truncate(objects.len() / 2);
            }
            let steps = [step(kind, Step::Init)].into_iter().chain(objects).chain([step(kind, Step::InitDone)]);
            for change in steps {
                world.apply(Event { scope: scope.clone(), change });
            }
        }
        Ok(world)
    }
}

fn told(write: &Write) -> String {
    match write {
        Write::AddFinalizer(seen) => format!("finalizer on {} at {}", seen.key, seen.resource_version),
        Write::RemoveFinalizer(seen) => format!("finalizer off {} at {}", seen.key, seen.resource_version),
        Write::Status { key, status, .. } => {
            let ready =
                status.conditions.first().map(|ready| (ready.truth, ready.reason.as_str(), ready.message.as_str()));
            format!("status of {key}: {:?} {ready:?}", status.instances)
        }
        Write::Event { key, reason, message, .. } => format!("Event on {key}: {reason} {message}"),
    }
}

impl Kubernetes for ApiServer {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<(), WriteError>> {
        self.send(write).boxed()
    }

    fn read_again(&self) -> BoxFuture<'_, Result<World, ReadError>> {
        self.look().boxed()
    }
}

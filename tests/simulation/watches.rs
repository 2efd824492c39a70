//! What Lictor sees of Kubernetes: the watches that it wants, each in order, but late and not in step with the
//! others, with lists that are begun again, and what happened between two lists missed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use lictor::model::facts::{Endpoint, Family, KeysOfPods, Pod, PodKey, Protocol};
use lictor::state::event::{Change, Event, Kind, ObjectKey, Scope, Step};
use lictor::state::world::Wanted;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::{EndpointId, endpoint_id};
use crate::planted_faults::{BLIND_LIMIT, PlantedFault};
use crate::schedule::OTHER_PORT;
use crate::sim::{Sim, State};

/// The watches of one life: those that are wanted. They end when this is dropped.
pub struct Watches {
    sim: Sim,
    sink: mpsc::Sender<Event>,
    running: Mutex<BTreeMap<(Kind, Scope), Running>>,
    /// The watches that were begun at any time of this life.
    begun: Mutex<BTreeSet<(Kind, Scope)>>,
    anew: Arc<Anew>,
}

/// That lists are asked for. It wakes the watches in the order in which they wait: tokio's channel `watch` does so in one
/// that is different each time.
#[derive(Default)]
struct Anew {
    asked: Mutex<BTreeMap<(Kind, Scope), u64>>,
    bell: Notify,
}

impl Anew {
    fn asked(&self, watch: &(Kind, Scope)) -> u64 {
        self.asked.lock().expect("no panics").get(watch).copied().unwrap_or_default()
    }
}

/// A watch under way.
struct Running {
    task: AbortHandle,
    /// Which of the times it is that it was wanted.
    time: u64,
    /// What it keeps of pods.
    asked: Arc<Mutex<AskedOfPods>>,
}

/// The labels and annotations of pods that a watch looks for.
#[derive(Default)]
struct AskedOfPods {
    keys: BTreeSet<PodKey>,
    /// True if some were told of without a key that came later.
    have_grown: bool,
}

impl AskedOfPods {
    /// Looks for these, too.
    fn grow(&mut self, keys: &BTreeSet<PodKey>) -> bool {
        let grows = !self.keys.is_superset(keys);
        self.keys.extend(keys.iter().cloned());
        self.have_grown |= grows;
        grows
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watches {
    pub fn new(sim: Sim, sink: mpsc::Sender<Event>) -> Self {
        sim.state().oracle.sees_nothing(&sink);
        Self { sim, sink, running: Mutex::default(), begun: Mutex::default(), anew: Arc::default() }
    }

    /// Ends what is not wanted any more, and begins what is wanted now.
    pub fn want(&self, wanted: &Wanted) {
        let mut running = self.running.lock().expect("no panics");
        let mut state = self.sim.state();
        running.retain(|watch, running| {
            let is_wanted = wanted.watches.get(watch) == Some(&running.time);
            if !is_wanted {
                state.stats.count("watches ended");
                state.oracle.ends_to_see(watch);
            }
            is_wanted
        });
        for (watch, time) in &wanted.watches {
            let keys = keys_of(wanted, watch);
            if let Some(running) = running.get(watch) {
                if running.asked.lock().expect("no panics").grow(&keys) {
                    state.stats.count("lists for more annotations");
                    self.anew.bell.notify_waiters();
                }
                continue;
            }
            let is_again = !self.begun.lock().expect("no panics").insert(watch.clone());
            state.oracle.begins_to_see(watch);
            if is_again {
                state.stats.count("watches begun again");
            }
            if is_again && state.setup.planted == Some(PlantedFault::DeadWatch) {
                continue;
            }
            running.insert(watch.clone(), self.begin(watch, *time, keys));
        }
    }

    fn begin(&self, (kind, scope): &(Kind, Scope), time: u64, keys: BTreeSet<PodKey>) -> Running {
        let asked = Arc::new(Mutex::new(AskedOfPods { keys, have_grown: false }));
        let watch = Watch {
            sim: self.sim.clone(),
            kind: *kind,
            scope: scope.clone(),
            of_pods: asked.clone(),
            sink: self.sink.clone(),
            anew: self.anew.clone(),
            asked: self.anew.asked(&(*kind, scope.clone())),
        };
        let task = tokio::spawn(watch.run().map(|_| ())).abort_handle();
        Running { task, time, asked }
    }

    /// What is watched.
    pub fn wanted(&self) -> Wanted {
        let running = self.running.lock().expect("no panics");
        let of_pods = running.iter().filter_map(|((_, scope), running)| match scope {
            Scope::Namespace(namespace) => {
                Some((namespace.clone(), running.asked.lock().expect("no panics").keys.clone()))
            }
            Scope::All => None,
        });
        let mut wanted = Wanted {
            watches: running.iter().map(|(watch, running)| (watch.clone(), running.time)).collect(),
            ..Wanted::default()
        };
        for (namespace, keys) in of_pods {
            wanted.of_pods.entry(namespace).or_default().extend(keys);
        }
        wanted
    }

    pub fn list_anew(&self, watches: &BTreeSet<(Kind, Scope)>) {
        let mut asked = self.anew.asked.lock().expect("no panics");
        for watch in watches {
            *asked.entry(watch.clone()).or_default() += 1;
        }
        drop(asked);
        self.sim.state().stats.count("lists asked for anew");
        self.anew.bell.notify_waiters();
    }
}

/// One watch.
struct Watch {
    sim: Sim,
    kind: Kind,
    scope: Scope,
    of_pods: Arc<Mutex<AskedOfPods>>,
    sink: mpsc::Sender<Event>,
    /// Changes when a list is asked for.
    anew: Arc<Anew>,
    /// How often one had been asked for when it last began.
    asked: u64,
}

/// A list that is made while a watch goes on.
struct Beside {
    steps: VecDeque<Change>,
    /// What the watch has told of since it began.
    told: BTreeSet<ObjectKey>,
    is_cut: bool,
}

impl Beside {
    /// The next step that is not about what the watch has told of.
    fn next(&mut self) -> Option<Change> {
        while let Some(step) = self.steps.pop_front() {
            if key_of(&step).is_none_or(|key| !self.told.contains(key)) {
                return Some(step);
            }
        }
        None
    }
}

/// Nobody listens any more.
struct Ended;

impl Watch {
    async fn run(mut self) -> Result<(), Ended> {
        loop {
            let position = self.list().await?;
            self.follow(position).await?;
        }
    }

    /// A list, begun anew as often as it is cut off.
    async fn list(&self) -> Result<u64, Ended> {
        loop {
            self.pause().await;
            self.of_pods.lock().expect("no panics").have_grown = false;
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
            let early = self.sim.state().setup.planted == Some(PlantedFault::EarlyResync);
            let early = early.then_some(objects.len() / 2);
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

    /// Tells of changes until it is time for another list. A list that is asked for is made beside.
    async fn follow(&mut self, mut position: u64) -> Result<(), Ended> {
        let until = Instant::now() + Duration::from_millis(self.sim.state().random.kubernetes.u64(15_000..150_000));
        let mut beside: Option<Beside> = None;
        loop {
            if self.is_asked() {
                beside = Some(self.list_beside(position).await?);
            }
            let next = {
                let state = self.sim.state();
                state.cluster.next_change(position, self.kind, &self.scope).map(|(at, change)| (at, change.clone()))
            };
            if let Some(list) = &mut beside
                && (next.is_none() || self.sim.state().random.kubernetes.u8(..3) == 0)
            {
                match list.next() {
                    Some(step) => {
                        self.pause().await;
                        self.tell(step).await?;
                    }
                    None if list.is_cut => beside = Some(self.list_beside(position).await?),
                    None => beside = None,
                }
                continue;
            }
            let Some((at, change)) = next else {
                let lists = self.anew.clone();
                let mut anew = std::pin::pin!(lists.bell.notified());
                anew.as_mut().enable();
                let mut moved = std::pin::pin!(self.sim.cluster_moved().notified());
                moved.as_mut().enable();
                let has_moved = self.sim.state().cluster.next_change(position, self.kind, &self.scope).is_some();
                if has_moved || self.would_be_asked() {
                    continue;
                }
                tokio::select! {
                    biased;
                    () = anew => continue,
                    () = moved => continue,
                    () = sleep_until(until) => return Ok(()),
                }
            };
            if let Some(list) = &mut beside {
                list.told.extend(key_of(&change).cloned());
            }
            if self.sim.state().strikes(3) {
                self.sim.state().stats.count("watches lost");
                return Ok(());
            }
            self.pause().await;
            if self.sim.state().setup.planted == Some(PlantedFault::FalseEnds) {
                self.tell_of_false_end(position, &change).await?;
            }
            let twice = self.sim.state().strikes(5) && !matches!(&change, Change::Resource(Step::Delete(_)));
            self.tell(change.clone()).await?;
            if twice {
                self.tell(change).await?;
            }
            position = at;
            self.has_seen(position);
        }
    }

    fn would_be_asked(&self) -> bool {
        let has_grown = self.of_pods.lock().expect("no panics").have_grown;
        has_grown || self.anew.asked(&(self.kind, self.scope.clone())) != self.asked
    }

    /// Whether a list is asked for since this was last asked.
    fn is_asked(&mut self) -> bool {
        let is_asked = self.would_be_asked();
        self.of_pods.lock().expect("no panics").have_grown = false;
        self.asked = self.anew.asked(&(self.kind, self.scope.clone()));
        is_asked
    }

    /// A list of what there was where the watch stands. It is begun before the watch tells more: Lictor takes what is told
    /// after that for newer than the list.
    async fn list_beside(&self, position: u64) -> Result<Beside, Ended> {
        self.tell(step(self.kind, Step::Init)).await?;
        let mut state = self.sim.state();
        state.stats.count("lists beside a watch");
        let mut steps: VecDeque<Change> = state.cluster.list_at(position, self.kind, &self.scope).into();
        let is_cut = state.strikes(15);
        if is_cut {
            let length = state.random.kubernetes.usize(..=steps.len());
            steps.truncate(length);
        } else {
            steps.push_back(step(self.kind, Step::InitDone));
        }
        Ok(Beside { steps, told: BTreeSet::new(), is_cut })
    }

    /// Has the endpoints terminate that are about to leave a slice.
    async fn tell_of_false_end(&self, position: u64, change: &Change) -> Result<(), Ended> {
        let Change::Slice(Step::Apply(key, _) | Step::Delete(key)) = change else { return Ok(()) };
        let Some(mut before) = self.sim.state().cluster.slice_at(position, key).cloned() else { return Ok(()) };
        if let Change::Slice(Step::Apply(_, after)) = change {
            let there: Vec<EndpointId> = after.endpoints.iter().map(endpoint_id).collect();
            let leaves = |endpoint: &&mut Endpoint| !there.contains(&endpoint_id(endpoint));
            before.endpoints.iter_mut().filter(leaves).for_each(|endpoint| endpoint.terminating = true);
        } else {
            before.endpoints.iter_mut().for_each(|endpoint| endpoint.terminating = true);
        }
        self.tell(Change::Slice(Step::Apply(key.clone(), before))).await
    }

    /// Has the endpoints end that are in a slice without any of its Service's ports.
    fn without_laggards(&self, change: Change) -> Change {
        let Change::Slice(step) = change else { return change };
        let state = self.sim.state();
        Change::Slice(step.map(|key, mut slice| {
            let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
            let follows = state.cluster.services.get(&service).is_none_or(|service| {
                let mut ports = service.ports.iter();
                ports.any(|port| slice.ports.iter().any(|there| there.name == port.name))
            });
            if !follows {
                slice.endpoints.iter_mut().for_each(|e| (e.terminating, e.serving) = (true, false));
            }
            slice
        }))
    }

    fn has_seen(&self, position: u64) {
        self.sim.state().oracle.has_seen(self.kind, &self.scope, position);
    }

    async fn tell(&self, change: Change) -> Result<(), Ended> {
        let of_pods = self.of_pods.lock().expect("no panics").keys.clone();
        let planted = self.sim.state().setup.planted;
        let change = if planted == Some(PlantedFault::NoLaggards) { self.without_laggards(change) } else { change };
        let change = seen(change, &of_pods, planted);
        self.sim.state().trace(|| format!("tells {} of {}: {}", self.kind, self.scope, summary(&change)));
        self.sink.send(Event { scope: self.scope.clone(), change }).await.map_err(|_| Ended)?;
        self.sim.state().oracle.was_told();
        Ok(())
    }

    async fn pause(&self) {
        let wait = pause(&mut self.sim.state());
        sleep(wait).await;
    }
}

/// A change as Lictor gets it: of a pod only the labels and annotations that it asks for.
pub fn seen(change: Change, of_pods: &BTreeSet<PodKey>, planted: Option<PlantedFault>) -> Change {
    match change {
        Change::Pod(step) => Change::Pod(step.map(|_, pod| {
            let keys = KeysOfPods::of(of_pods);
            let labels = keys.labels(|key| pod.labels.get(key).cloned());
            let annotations = keys.annotations(|key| pod.annotations.get(key).cloned());
            Pod { labels, annotations, ..pod }
        })),
        Change::Resource(step) => Change::Resource(step.map(|_, mut seen| {
            match (planted, &mut seen.resource.spec) {
                (Some(PlantedFault::NoRivals), Ok(spec)) => Arc::make_mut(spec).limits.shares_name = true,
                (Some(PlantedFault::NoPause), _) => seen.resource.paused = false,
                (Some(PlantedFault::PortsForgotten), _) => Arc::make_mut(&mut seen.resource.status).port_in_use = None,
                _ => {}
            }
            seen
        })),
        Change::Slice(step) => Change::Slice(step.map(|_, mut slice| {
            match planted {
                Some(PlantedFault::OneSliceEach) if slice.ports.iter().all(|port| port.number == OTHER_PORT) => {
                    slice.endpoints.iter_mut().for_each(|e| e.address = IpAddr::from([10, 1, 0, 1]));
                }
                Some(PlantedFault::BlindLimit) => {
                    slice.endpoints.sort_by_key(|endpoint| endpoint.pod.as_ref().map(|pod| pod.uid.clone()));
                    slice.endpoints.truncate(BLIND_LIMIT);
                }
                Some(PlantedFault::OneFamily) if slice.family == Family::V6 => slice.endpoints.clear(),
                Some(PlantedFault::NoProtocols) => {
                    slice.ports.iter_mut().for_each(|port| port.protocol = Protocol::Tcp);
                }
                Some(PlantedFault::NoLastOnes) => slice.endpoints.iter_mut().for_each(|e| e.serving &= !e.terminating),
                Some(PlantedFault::NoEarlyOnes) => slice.endpoints.iter_mut().for_each(|e| e.ready &= e.serving),
                _ => {}
            }
            slice
        })),
        Change::Service(step) => Change::Service(step.map(|_, mut service| {
            if planted == Some(PlantedFault::NoProtocols) {
                service.ports.iter_mut().for_each(|port| port.protocol = Protocol::Tcp);
            }
            if planted == Some(PlantedFault::FirstPort) {
                service.ports.truncate(1);
            }
            service
        })),
        Change::Node(_) | Change::Namespace(_) => change,
    }
}

/// What is wanted of pods of a watch.
pub fn keys_of(wanted: &Wanted, (kind, scope): &(Kind, Scope)) -> BTreeSet<PodKey> {
    match scope {
        Scope::Namespace(namespace) if *kind == Kind::Pod => wanted.of_pods.get(namespace).cloned().unwrap_or_default(),
        _ => BTreeSet::new(),
    }
}

/// The object that a step is about.
fn key_of(change: &Change) -> Option<&ObjectKey> {
    fn of<T>(step: &Step<T>) -> Option<&ObjectKey> {
        match step {
            Step::InitApply(key, _) | Step::Apply(key, _) | Step::Delete(key) => Some(key),
            Step::Init | Step::InitDone => None,
        }
    }
    match change {
        Change::Resource(step) => of(step),
        Change::Slice(step) => of(step),
        Change::Service(step) => of(step),
        Change::Pod(step) => of(step),
        Change::Node(step) => of(step),
        Change::Namespace(step) => of(step),
    }
}

/// How long something takes between Lictor and Kubernetes.
pub fn pause(state: &mut State) -> Duration {
    let slow = if state.calm { 5 } else { state.network_faults.watch_slow };
    let slow = if state.random.kubernetes.u8(..3) == 0 { slow } else { slow.min(30) };
    Duration::from_millis(state.random.kubernetes.u64(0..=slow))
}

/// A step of a list of a kind.
pub fn step(kind: Kind, step: Step<std::convert::Infallible>) -> Change {
    match kind {
        Kind::Resource => Change::Resource(step.map(|_, never| match never {})),
        Kind::Slice => Change::Slice(step.map(|_, never| match never {})),
        Kind::Service => Change::Service(step.map(|_, never| match never {})),
        Kind::Pod => Change::Pod(step.map(|_, never| match never {})),
        Kind::Node => Change::Node(step.map(|_, never| match never {})),
        Kind::Namespace => Change::Namespace(step.map(|_, never| match never {})),
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
            let paused = if resource.paused { " paused" } else { "" };
            format!("uid {uid} generation {generation} version {version} {service}{deleting}{paused}")
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
        Change::Pod(step) => of(step, |pod| {
            let leaving = if pod.leaving { " leaving" } else { "" };
            format!(
                "{}@{:?} ready {}{leaving} {:?} {:?}",
                pod.uid, pod.addresses, pod.ready, pod.labels, pod.annotations
            )
        }),
        Change::Node(step) => of(step, |node| format!("{:?} {:?}", node.address, node.zone)),
        Change::Namespace(step) => of(step, |labels| format!("{labels:?}")),
    }
}

//! Lictor's own program under a stream of resources that come, change and go.
//!
//! After each batch every resource must have been told what became of it, and an ordinary one must be registered
//! and deregistered as if nothing had been. In the end nothing may be left.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{FutureExt, StreamExt, stream};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use lictor::cluster::api::CONDITION_TYPES;
use lictor::model::ids::{ClusterName, meta, owner_of_id};
use lictor::model::resource::{FINALIZER, PAUSED};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::environment::WEB_PODS;
use crate::fixture::{Fixture, Mode, SOON, kind};
use crate::resources::{Draft, Resources, is_paused};

/// How many requests are under way at once.
const AT_ONCE: usize = 16;

/// How many new resources are tried in a round.
const ROUND: u64 = 40;

/// Rounds to a batch: what a round makes, the next one edits before Lictor is done with it.
const ROUNDS: u64 = 2;

/// How many resources may be there when a batch begins.
const MOST: usize = 100;

/// How long a Consul node stays after the last instance is gone from it, and then some.
const NODES_GO: Duration = Duration::from_secs(240);

pub(crate) fn run(mode: Mode, seed: u64, many: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let fixture = Fixture::make(mode).await.unwrap_or_else(|error| panic!("there is no fixture: {error:#}"));
        let mut field = Field::new(fixture, Resources::new(seed.wrapping_mul(2) + u64::from(mode == Mode::Catalog)));
        let ended = AssertUnwindSafe(field.fuzz(many)).catch_unwind().await;
        println!("mode {}, seed {seed}: {:#?}", mode.as_str(), field.tally);
        let failure = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some("it panicked, see above".to_owned()),
        };
        if failure.is_some() {
            eprintln!("--- the operator\n{}", field.fixture.operator.process().log_tail(60));
            let metrics = field.fixture.operator.metrics().await.unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("--- its metrics\n{metrics}");
        }
        field.fixture.clear_away().await;
        if let Some(failure) = failure {
            panic!("mode {}, seed {seed}: {failure}", mode.as_str());
        }
    });
}

/// A resource that Kubernetes took, as it was last written.
#[derive(Clone, Debug)]
struct Known {
    environment: usize,
    draft: Draft,
    edits: u64,
    leaving: bool,
    /// Whether its instances may stay in Consul when it goes.
    retains: bool,
}

/// A request.
#[derive(Clone, Debug)]
enum Request {
    Create(Draft),
    Edit(Draft),
    Unpause,
    Delete,
}

/// What Kubernetes said.
enum Answer {
    Taken,
    Refused(Vec<String>),
    Gone,
}

/// What happened so far.
#[derive(Debug, Default)]
struct Tally {
    created: u64,
    edited: u64,
    deleted: u64,
    refused: u64,
    /// By rule.
    refusals: BTreeMap<String, u64>,
    /// By the reason of `Ready`, at the end of each batch.
    told: BTreeMap<String, u64>,
    /// Those that tell of something odd, with one message of each.
    odd: BTreeMap<String, (u64, String)>,
    requests_took: Duration,
    telling_took: Duration,
    slowest_telling: Duration,
    slowest_probe: Duration,
    the_end_took: Duration,
}

struct Field {
    fixture: Fixture,
    resources: Resources,
    known: BTreeMap<u64, Known>,
    next: u64,
    /// `namespace/name` of those whose instances may be left in Consul.
    retained: BTreeSet<String>,
    tally: Tally,
}

impl Field {
    fn new(fixture: Fixture, resources: Resources) -> Self {
        let (known, retained) = (BTreeMap::new(), BTreeSet::new());
        Self { fixture, resources, known, next: 0, retained, tally: Tally::default() }
    }

    async fn fuzz(&mut self, many: u64) -> Result<()> {
        let mut batch = 0;
        while self.tally.created < many {
            self.batch(batch).await.with_context(|| format!("batch {batch}"))?;
            batch += 1;
        }
        let begun = Instant::now();
        self.end().await.context("the end")?;
        self.tally.the_end_took = begun.elapsed();
        let odd = &self.tally.odd;
        ensure!(odd.is_empty(), "resources that Kubernetes took and we or Consul did not: {odd:#?}");
        Ok(())
    }

    async fn batch(&mut self, batch: u64) -> Result<()> {
        let mut chance = self.resources.chance(u64::MAX - batch);
        for round in 0..ROUNDS {
            let environment = chance.rng.usize(..self.fixture.environments.len());
            self.fixture.environments[environment].stir(&mut chance).await?;
            let mut requests = Vec::new();
            let surplus = if round == 0 { self.known.len().saturating_sub(MOST) } else { 0 };
            for (number, known) in &self.known {
                let request = match chance.rng.u8(..100) {
                    _ if requests.len() < surplus && !known.leaving => Request::Delete,
                    0..30 => Request::Edit(self.resources.draw(*number, known.edits + 1)),
                    30..42 if !known.leaving => Request::Delete,
                    42..60 if is_paused(&known.draft.annotations) => Request::Unpause,
                    _ => continue,
                };
                requests.push((*number, known.environment, known.draft.name.clone(), request));
            }
            for number in self.next..self.next + ROUND {
                let draft = self.resources.draw(number, 0);
                let environment = chance.rng.usize(..self.fixture.environments.len());
                requests.push((number, environment, draft.name.clone(), Request::Create(draft)));
            }
            self.next += ROUND;
            self.make(requests).await?;
        }
        self.settle().await?;
        self.probe(batch).await?;
        self.clear_retained().await?;
        self.fixture.ensure_alive().await
    }

    /// Makes requests side by side.
    async fn make(&mut self, requests: Vec<(u64, usize, String, Request)>) -> Result<()> {
        let begun = Instant::now();
        let fixture = &self.fixture;
        let answers = stream::iter(requests).map(|(number, environment, name, request)| async move {
            let answer = ask(fixture, environment, &name, &request).await;
            (number, environment, request, answer)
        });
        let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        self.tally.requests_took += begun.elapsed();
        for (number, environment, request, answer) in answers {
            let what = || format!("resource {number}: {request:#?}");
            match answer.with_context(what)? {
                Answer::Taken => self.note(number, environment, request),
                Answer::Refused(causes) => self.note_refusal(&causes).with_context(what)?,
                Answer::Gone => {
                    ensure!(self.known.get(&number).is_some_and(|known| known.leaving), "{} is gone", what());
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, number: u64, environment: usize, request: Request) {
        match request {
            Request::Create(draft) => {
                self.tally.created += 1;
                let retains = retains(&draft);
                self.known.insert(number, Known { environment, draft, edits: 0, leaving: false, retains });
            }
            Request::Edit(draft) => {
                self.tally.edited += 1;
                if let Some(known) = self.known.get_mut(&number) {
                    // Which of two specs a resource ends with that is edited while it goes is not for us to say.
                    known.retains = retains(&draft) || known.leaving && known.retains;
                    known.draft = draft;
                    known.edits += 1;
                }
            }
            Request::Unpause => {
                if let Some(annotations) =
                    self.known.get_mut(&number).and_then(|known| known.draft.annotations.as_object_mut())
                {
                    annotations.remove(PAUSED);
                }
            }
            Request::Delete => {
                self.tally.deleted += 1;
                if let Some(known) = self.known.get_mut(&number) {
                    known.leaving = true;
                }
            }
        }
    }

    /// Kubernetes may refuse what breaks a rule; what breaks the schema itself the generator must not make.
    fn note_refusal(&mut self, causes: &[String]) -> Result<()> {
        self.tally.refused += 1;
        for cause in causes {
            let rule = self.resources.rules.iter().find(|rule| cause.contains(rule.as_str()));
            let rule = rule.with_context(|| format!("Kubernetes refuses it by no rule of ours: {cause}"))?;
            *self.tally.refusals.entry(rule.clone()).or_default() += 1;
        }
        ensure!(!causes.is_empty(), "Kubernetes refuses it without a cause");
        Ok(())
    }

    /// Waits until each resource was told of its present spec, or is gone if it was deleted. However many there are,
    /// one more has to be done with soon.
    async fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut most = usize::MAX;
        let found = loop {
            let (found, waiting) = wait::until("one more resource knows what became of it", SOON, || async {
                let found = self.list().await?;
                let waiting = self.waiting(&found);
                ensure!(waiting.len() < most, "{} of {} wait, among them {}", most, self.known.len(), waiting[0]);
                Ok(Some((found, waiting.len())))
            })
            .await?;
            if waiting == 0 {
                break found;
            }
            most = waiting;
        };
        let took = begun.elapsed();
        self.tally.telling_took += took;
        self.tally.slowest_telling = self.tally.slowest_telling.max(took);
        for object in found.values() {
            self.tally.tell(object);
        }
        let is_there = |known: &Known| found.contains_key(&(known.environment, known.draft.name.clone()));
        for known in self.known.values().filter(|known| known.retains && !is_there(known)) {
            self.retained.insert(format!(
                "{}/{}",
                self.fixture.environments[known.environment].namespace.name(),
                known.draft.name
            ));
        }
        self.known.retain(|_, known| is_there(known));
        Ok(())
    }

    /// What is to be said of each resource that is not as it should be.
    fn waiting(&self, found: &BTreeMap<(usize, String), DynamicObject>) -> Vec<String> {
        let mut waiting = Vec::new();
        for (number, known) in &self.known {
            let object = found.get(&(known.environment, known.draft.name.clone()));
            if let Err(error) = judge(known, object) {
                waiting.push(format!("resource {number}: {error:#}; {:#?}", object.map(|object| &object.data)));
            }
        }
        waiting
    }

    /// All resources, by namespace and name.
    async fn list(&self) -> Result<BTreeMap<(usize, String), DynamicObject>> {
        let mut found = BTreeMap::new();
        for environment in 0..self.fixture.environments.len() {
            for object in self.fixture.resources(environment).list(&ListParams::default()).await? {
                found.insert((environment, object.metadata.name.clone().unwrap_or_default()), object);
            }
        }
        Ok(found)
    }

    /// That an ordinary resource is served as ever.
    async fn probe(&mut self, batch: u64) -> Result<()> {
        let begun = Instant::now();
        let service = format!("probe_{batch}");
        let name = format!("probe-{batch}");
        let environment = usize::try_from(batch)? % self.fixture.environments.len();
        let resources = self.fixture.resources(environment);
        let spec = json!({ "name": service, "source": { "service": { "name": "web" } } });
        let probe = DynamicObject::new(&name, &kind()).data(json!({ "spec": spec }));
        resources.create(&PostParams::default(), &probe).await?;
        let consul = self.fixture.consul.api();
        consul.wait_for(&service, "the probe's instances", |found| found.len() == WEB_PODS, SOON).await?;
        // Only then is the finalizer surely on it, for which the deletion waits.
        wait::until("the probe is ready", SOON, || async {
            Ok((ready(&resources.get(&name).await?).is_some_and(|ready| ready["status"] == "True")).then_some(()))
        })
        .await?;
        resources.delete(&name, &DeleteParams::default()).await?;
        wait::until("the end of the probe", SOON, || async {
            Ok(resources.get_opt(&name).await?.is_none().then_some(()))
        })
        .await?;
        let left = consul.instances(&service).await?;
        ensure!(left.is_empty(), "the probe is gone, and its instances are not: {left:#?}");
        self.tally.slowest_probe = self.tally.slowest_probe.max(begun.elapsed());
        Ok(())
    }

    /// Deletes everything and looks for what is left of it.
    async fn end(&mut self) -> Result<()> {
        let all = |request: &dyn Fn(&Known) -> Option<Request>| -> Vec<_> {
            let each = self.known.iter();
            each.filter_map(|(number, known)| {
                Some((*number, known.environment, known.draft.name.clone(), request(known)?))
            })
            .collect()
        };
        let deletions = all(&|known| (!known.leaving).then_some(Request::Delete));
        let unpausings = all(&|known| is_paused(&known.draft.annotations).then_some(Request::Unpause));
        self.make(deletions).await?;
        self.make(unpausings).await?;
        self.settle().await?;
        let left = self.list().await?;
        ensure!(left.is_empty(), "Kubernetes has {:?} still", left.keys());
        self.fixture.ensure_alive().await?;
        self.ensure_empty().await?;
        let ended = self.fixture.operator.terminate(Duration::from_secs(20)).await?;
        ensure!(ended.success(), "the operator ended with {ended}");
        Ok(())
    }

    /// What is in Consul and not Consul's own: each instance with its Consul node.
    async fn instances(&self) -> Result<Vec<(String, Value)>> {
        let consul = self.fixture.consul.api();
        let own_node = self.fixture.consul.node_name();
        if self.fixture.mode == Mode::Agent {
            let services = consul.get("/v1/agent/services").await?;
            let services = services.as_object().into_iter().flat_map(|services| services.values());
            return Ok(services.map(|service| (own_node.to_owned(), service.clone())).collect());
        }
        let mut instances = Vec::new();
        for node in self.nodes().await?.into_iter().filter(|node| node != own_node) {
            let services = consul.get(&format!("/v1/catalog/node-services/{node}")).await?["Services"].take();
            instances.extend(services.as_array().into_iter().flatten().map(|service| (node.clone(), service.clone())));
        }
        Ok(instances)
    }

    async fn nodes(&self) -> Result<BTreeSet<String>> {
        let nodes = self.fixture.consul.api().get("/v1/catalog/nodes").await?;
        let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Removes, as a user would, what Retain left: instances of a resource that is gone, without anybody's mark.
    async fn clear_retained(&self) -> Result<()> {
        let consul = self.fixture.consul.api();
        let cluster = ClusterName::new(&self.fixture.cluster)?;
        for (node, service) in self.instances().await? {
            let id = service["ID"].as_str().unwrap_or_default();
            let retained = owner_of_id(&cluster, id).is_some_and(|owner| self.retained.contains(&owner.to_string()));
            if !retained || meta::OWNERSHIP.iter().any(|key| service["Meta"].get(key).is_some()) {
                continue;
            }
            let (path, body) = match self.fixture.mode {
                Mode::Agent => (format!("/v1/agent/service/deregister/{}", path_segment(id)), Value::Null),
                Mode::Catalog => ("/v1/catalog/deregister".to_owned(), json!({ "Node": node, "ServiceID": id })),
            };
            consul.put(&path, &body).await?;
        }
        Ok(())
    }

    /// That nothing is left of anything, but for what Retain leaves.
    async fn ensure_empty(&self) -> Result<()> {
        let consul = self.fixture.consul.api();
        let own_node = self.fixture.consul.node_name().to_owned();
        let mut nodes = BTreeSet::from([own_node.clone()]);
        if self.fixture.mode == Mode::Catalog {
            nodes.insert(format!("lictor-{}", self.fixture.cluster));
        }
        wait::until("nothing in Consul", NODES_GO, || async {
            self.clear_retained().await?;
            let left = self.instances().await?;
            ensure!(left.is_empty(), "it has {left:#?}");
            let services = consul.get("/v1/catalog/services").await?;
            ensure!(services == json!({ "consul": [] }), "the catalog has {services:#}");
            let checks = consul.get(&format!("/v1/health/node/{own_node}")).await?;
            let own =
                checks.as_array().is_some_and(|checks| checks.iter().all(|check| check["CheckID"] == "serfHealth"));
            ensure!(own, "its own node has the checks {checks:#}");
            let found = self.nodes().await?;
            ensure!(found == nodes, "it has the nodes {found:?}");
            Ok(Some(()))
        })
        .await
    }
}

/// What somebody ought to look at, when a resource that the schema takes is told of it.
const ODD: [&str; 4] = ["Refused", "IdTaken", "Undecodable", "Invalid"];

impl Tally {
    fn tell(&mut self, object: &DynamicObject) {
        let Some(ready) = ready(object) else { return };
        let reason = ready["reason"].as_str().unwrap_or_default().to_owned();
        if ODD.contains(&reason.as_str()) {
            let message = ready["message"].as_str().unwrap_or_default();
            let odd = self.odd.entry(reason.clone()).or_insert_with(|| (0, message.to_owned()));
            odd.0 += 1;
        }
        *self.told.entry(reason).or_default() += 1;
    }
}

/// The condition that sums up the others.
fn ready(object: &DynamicObject) -> Option<&Value> {
    let mut conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == "Ready")
}

/// Asks Kubernetes for something.
async fn ask(fixture: &Fixture, environment: usize, name: &str, request: &Request) -> Result<Answer> {
    let resources = fixture.resources(environment);
    let asked = match request {
        Request::Create(draft) => {
            let object: DynamicObject = serde_json::from_value(draft.object())?;
            resources.create(&PostParams::default(), &object).await.map(drop)
        }
        Request::Edit(draft) => {
            let patch = json!([
                { "op": "add", "path": "/spec", "value": draft.spec },
                { "op": "add", "path": "/metadata/annotations", "value": draft.annotations },
            ]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
            resources.patch(name, &PatchParams::default(), &patch).await.map(drop)
        }
        Request::Unpause => {
            let patch = Patch::Merge(json!({ "metadata": { "annotations": { PAUSED: null } } }));
            resources.patch(name, &PatchParams::default(), &patch).await.map(drop)
        }
        Request::Delete => resources.delete(name, &DeleteParams::default()).await.map(drop),
    };
    match asked {
        Ok(()) => Ok(Answer::Taken),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Answer::Gone),
        Err(kube::Error::Api(status)) if status.code == 422 => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            Ok(Answer::Refused(causes.map(|cause| cause.message.clone()).collect()))
        }
        Err(error) => bail!("{name}: {error}"),
    }
}

/// What is told only for a while.
const PASSING: [&str; 5] = ["Pending", "NotListed", "PodNotSeen", "ConsulUnavailable", "NotInCatalog"];

/// Whether a resource was told what there is to tell.
fn judge(known: &Known, object: Option<&DynamicObject>) -> Result<()> {
    let paused = is_paused(&known.draft.annotations);
    let Some(object) = object else {
        ensure!(known.leaving, "it is gone");
        return Ok(());
    };
    ensure!(!known.leaving || paused, "it was deleted, and is there still");
    let ours = known.draft.spec["class"].as_str().is_none_or(str::is_empty);
    if !ours {
        let held = object.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        ensure!(!held || paused, "it is another's, and has our finalizer still");
        return Ok(());
    }
    let status = &object.data["status"];
    let generation = Value::from(object.metadata.generation);
    ensure!(status["observedGeneration"] == generation, "its status is not about its generation {generation}");
    for kind in CONDITION_TYPES {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let condition = conditions.filter(|condition| condition["type"] == kind).collect::<Vec<_>>();
        let [condition] = condition[..] else { bail!("it has not one condition {kind}") };
        ensure!(condition["observedGeneration"] == generation, "{kind} is not about its generation {generation}");
        ensure!(PASSING.iter().all(|reason| condition["reason"] != *reason), "{kind} waits");
    }
    Ok(())
}

fn retains(draft: &Draft) -> bool {
    draft.spec["deletionPolicy"] == "Retain"
}

/// A part of a URL's path.
fn path_segment(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

//! Kubernetes' API: the writes, and the fresh list.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lictor::model::cause::CrdState;
use lictor::ports::{Kubernetes, ReadError, Write, WriteError};
use lictor::state::event::{Change, Event, Kind, Scope, Step};
use lictor::state::world::{Wanted, World};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::planted_faults::PlantedFault;
use crate::setup::CrdRights;
use crate::sim::Sim;
use crate::watches::{Watches, keys_of, pause, seen, step};

/// Kubernetes' API, for one life of Lictor.
pub struct ApiServer {
    sim: Sim,
    life: u32,
    watches: Watches,
}

impl ApiServer {
    pub fn new(sim: Sim, life: u32, sink: mpsc::Sender<Event>) -> Self {
        let watches = Watches::new(sim.clone(), sink);
        Self { sim, life, watches }
    }

    async fn send(&self, write: Write) -> Result<(), WriteError> {
        let lost = |why: &str| WriteError::Unavailable(why.to_owned());
        {
            let mut state = self.sim.state();
            if !state.may_write() {
                state.violate("one leader", format!("life {} sent {} without the lead", self.life, told(&write)));
            }
        }
        let (there, back, fails, lands) = {
            let mut state = self.sim.state();
            let fails = state.network_faults.kubernetes_fails;
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
                let before = match &write {
                    Write::Status { key, .. } => state.cluster.resources.get(key).cloned(),
                    _ => None,
                };
                let answer = state.cluster.write(&write, now);
                if let Write::RemoveFinalizer(seen) = &write
                    && answer.is_ok()
                {
                    state.finalizer_was_removed(&seen.key);
                }
                if let Write::Status { key, .. } = &write
                    && answer.is_ok()
                {
                    state.judge_status(key, before.as_ref());
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

    /// Whether the definition stays, as the API server or, a moment later, discovery has it.
    async fn ask_for_definition(&self) -> Result<CrdState, ReadError> {
        let (there, back, fails, rights, planted) = {
            let mut state = self.sim.state();
            let fails = state.network_faults.kubernetes_fails;
            // Whoever notices that a right is missing gives it in the end.
            let rights = if state.calm { CrdRights::Discovers } else { state.setup.crd_rights };
            let planted = state.setup.planted;
            (pause(&mut state), pause(&mut state), state.strikes(fails), rights, planted)
        };
        sleep(there).await;
        if fails {
            self.sim.state().stats.count("asked for the definition: no answer");
            return Err(ReadError { what: "the definition".to_owned(), reason: "unavailable".to_owned(), code: None });
        }
        if rights == CrdRights::Discovers {
            sleep(Duration::from_secs(1)).await;
        }
        let answer = {
            let mut state = self.sim.state();
            let answer = match rights {
                _ if planted == Some(PlantedFault::CrdStays) => CrdState::Stays,
                CrdRights::None => CrdState::Unknown,
                _ if state.cluster.crd_deleted => CrdState::Goes,
                CrdRights::Reads | CrdRights::Discovers => CrdState::Stays,
            };
            state.stats.count(match answer {
                CrdState::Stays => "asked for the definition: it stays",
                CrdState::Goes => "asked for the definition: it goes",
                CrdState::Unknown => "asked for the definition: nobody can tell",
            });
            state.trace(|| format!("life {} asks for the definition: {answer:?}", self.life));
            answer
        };
        sleep(back).await;
        Ok(answer)
    }

    async fn look(&self) -> Result<World, ReadError> {
        let setup = self.sim.state().setup.clone();
        self.sim.state().stats.count("fresh lists");
        let mut world = setup.world().wanting(self.watches.wanted());
        for scope in &setup.scopes {
            self.read(Kind::Resource, scope, &mut world).await?;
        }
        for (kind, scope) in world.wanted().watches.into_keys().filter(|(kind, _)| *kind != Kind::Resource) {
            self.read(kind, &scope, &mut world).await?;
        }
        Ok(world)
    }

    async fn read(&self, kind: Kind, scope: &Scope, world: &mut World) -> Result<(), ReadError> {
        let (wait, fails, cut) = {
            let mut state = self.sim.state();
            let fails = state.network_faults.kubernetes_fails;
            (pause(&mut state), state.strikes(fails), state.setup.planted == Some(PlantedFault::EarlyResync))
        };
        sleep(wait).await;
        if fails {
            return Err(ReadError { what: format!("{kind} of {scope}"), reason: "unavailable".to_owned(), code: None });
        }
        let objects = self.sim.state().cluster.list(kind, scope);
        let of_pods = keys_of(&world.wanted(), &(kind, scope.clone()));
        let planted = self.sim.state().setup.planted;
        let mut objects: Vec<Change> = objects.into_iter().map(|object| seen(object, &of_pods, planted)).collect();
        if cut {
            objects.truncate(objects.len() / 2);
        }
        let steps = [step(kind, Step::Init)].into_iter().chain(objects).chain([step(kind, Step::InitDone)]);
        for change in steps {
            world.apply(Event { scope: scope.clone(), change }, Instant::now());
        }
        Ok(())
    }
}

fn told(write: &Write) -> String {
    match write {
        Write::AddFinalizer(seen) => format!("finalizer on {} at {}", seen.key, seen.resource_version),
        Write::RemoveFinalizer(seen) => format!("finalizer off {} at {}", seen.key, seen.resource_version),
        Write::Status { key, status, .. } => {
            let ready =
                status.conditions.first().map(|ready| (ready.truth, ready.reason.as_str(), ready.message.as_str()));
            let port = status.port_in_use.as_ref().map(|of| (&of.source, &of.port));
            format!("status of {key}: {:?} {ready:?}, port {port:?}", status.instances)
        }
        Write::ForgetStatus { key, observed_generation, .. } => format!("no status of {key} at {observed_generation}"),
        Write::Event { key, reason, message, .. } => format!("Event on {key}: {reason} {message}"),
    }
}

impl Kubernetes for ApiServer {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<(), WriteError>> {
        self.send(write).boxed()
    }

    fn definition_goes(&self) -> BoxFuture<'_, Result<CrdState, ReadError>> {
        self.ask_for_definition().boxed()
    }

    fn list_anew(&self, watches: &BTreeSet<(Kind, Scope)>) {
        self.watches.list_anew(watches);
    }

    fn want(&self, wanted: &Wanted) {
        self.watches.want(wanted);
    }

    fn read_again(&self) -> BoxFuture<'_, Result<World, ReadError>> {
        self.look().boxed()
    }
}

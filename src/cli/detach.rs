//! `lictor detach`: detaches Lictor from the cluster before Lictor is uninstalled.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use kube::Client;
use tokio::task::JoinHandle;

use super::{PreviousAway, identify, logged_out, prepare, write_lease};
use crate::cluster::connect;
use crate::cluster::kubernetes::ApiServer;
use crate::cluster::lease::{self, LeaseSettings};
use crate::cluster::watch::Orders;
use crate::consul::transport::{Http, Transport, WriteLease};
use crate::model::diff::Op;
use crate::model::ids::Str;
use crate::model::registration::Ownership;
use crate::ports::{Bundle, Outcome, Registry};
use crate::ports::{Finalizers, Kubernetes, ReadError, Write, WriteError};
use crate::settings::{Election, RunArgs, Settings};
use crate::state::world::World;

/// The flags of `lictor detach`: those of `run`, and what becomes of the registrations.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Also deregister everything that Lictor has registered for this cluster.
    #[arg(long)]
    deregister: bool,

    #[command(flatten)]
    run: RunArgs,
}

/// The time for which replicas that still run are kept from acting, after all is done.
const HOLD: Duration = Duration::from_secs(60);

/// The number of attempts at a resource that changes meanwhile.
const ROUNDS: usize = 10;

/// Takes our finalizers off all resources and, where asked, everything of ours out of Consul.
pub(super) fn detach(args: DetachArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args.run)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(logged_out(settings.consul.clone(), detach_all(settings, args.deregister)))?;
    Ok(ExitCode::SUCCESS)
}

async fn detach_all(settings: Settings, deregister: bool) -> anyhow::Result<()> {
    // Its token and certificates may be gone already, and this alone needs them.
    let http = deregister.then(|| Http::new(&settings.consul)).transpose().context("reaching Consul")?;
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let mut lead = None;
    if let Some(election) = &settings.election {
        lead = Some(Lead::take(&client, &settings, election).await?);
    } else {
        println!("without --leader-election, a Lictor that still runs would undo this: stop it first");
    }
    let mut registry = None;
    if let Some(http) = http {
        let identity = identify(&client, &settings).await?;
        let transport: Arc<dyn Transport> = match &lead {
            Some(lead) => Arc::new(http.with_write_lease(lead.write_lease.clone())),
            None => Arc::new(http),
        };
        let write_lease = lead.as_ref().map(|lead| &lead.write_lease);
        registry = Some(super::registry(&settings, &identity, transport, write_lease, PreviousAway::Fails)?);
    }
    let scopes = settings.scopes.clone();
    let kubernetes = ApiServer::new(client, settings.scopes, false, Arc::new(settings.rules), Orders::default());
    let mut refused = None;
    if let Some(registry) = registry {
        let world = read(&kubernetes).await?.unwrap_or_else(|| World::new(scopes, false));
        let (removed, words) = remove_all(&*registry, &world).await?;
        println!("{removed} instances deregistered");
        refused = words;
    }
    let detached = remove_finalizers(&kubernetes).await?;
    println!("{detached} finalizers removed");
    match refused {
        None => Ok(()),
        Some(words) => bail!("not all instances are deregistered: {words}"),
    }
}

/// The Lease, held for as long as this lives and a while longer: every replica stands by.
struct Lead {
    write_lease: WriteLease,
    task: JoinHandle<()>,
}

impl Lead {
    async fn take(client: &Client, settings: &Settings, election: &Election) -> anyhow::Result<Self> {
        let lease = LeaseSettings {
            namespace: election.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned()),
            name: election.lease.clone(),
            identity: election.identity.clone(),
            duration: HOLD,
        };
        let (called, margin) = (format!("{}/{}", lease.namespace, lease.name), lease.margin());
        let taken = lease::seize(client.clone(), lease).await;
        let (candidate, mut leads) = taken.map_err(|why| anyhow::anyhow!("taking the Lease {called}: {why}"))?;
        let task = tokio::spawn(candidate.run(std::future::pending()));
        let held = tokio::time::timeout(HOLD, leads.wait_for(Option::is_some)).await;
        if !held.is_ok_and(|held| held.is_ok()) {
            bail!("the Lease {called} was taken, and lost again");
        }
        Ok(Self { write_lease: write_lease(settings, leads, margin), task })
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Not given back: replicas that still run are kept from beginning again.
        self.task.abort();
    }
}

/// Reads what there is; none where Kubernetes does not know our kind. The definition itself may not be looked at by
/// everybody.
async fn read(kubernetes: &ApiServer) -> Result<Option<World>, ReadError> {
    match kubernetes.read_again().await {
        Err(ReadError { code: Some(404), .. }) => Ok(None),
        read => read.map(Some),
    }
}

/// Deregisters all that is ours to judge: of resources of our class, and of those that are not there any more. Gives how
/// many, and what Consul said of the first one that it refused.
async fn remove_all(registry: &dyn Registry, world: &World) -> anyhow::Result<(usize, Option<String>)> {
    registry.connect().await?;
    let mut by_node: BTreeMap<Str, Vec<Op>> = BTreeMap::new();
    for (key, row) in registry.read().await? {
        let Ownership::Ours(owner) = &row.ownership else { continue };
        let ours = world.resource(owner).is_none_or(|entry| entry.resource.ours);
        if ours && world.watches(&owner.namespace) {
            let service = row.registration.service.clone();
            by_node.entry(key.node.clone()).or_default().push(Op::Deregister { key, service });
        }
    }
    let (mut removed, mut refused) = (0, None);
    for (node, ops) in by_node {
        for ops in ops.chunks(registry.bundle_size()) {
            let bundle = Bundle { node: node.clone(), address: None, ops: ops.to_vec(), alone: false };
            for (op, outcome) in bundle.ops.iter().zip(registry.apply(&bundle).await) {
                match outcome {
                    Outcome::Written { .. } => removed += 1,
                    Outcome::Refused(words) => _ = refused.get_or_insert_with(|| format!("{}: {words}", op.key())),
                    Outcome::NotTried(outage) | Outcome::Unknown(outage) => {
                        bail!("deregistering {}: {outage}; run it again", op.key())
                    }
                }
            }
        }
    }
    registry.dismantle().await?;
    Ok((removed, refused))
}

/// Takes our finalizer off all resources that have it.
async fn remove_finalizers(kubernetes: &ApiServer) -> anyhow::Result<usize> {
    let mut detached = 0;
    for _ in 0..ROUNDS {
        let Some(world) = read(kubernetes).await? else {
            println!("there are no resources: the CustomResourceDefinition is not there");
            return Ok(detached);
        };
        let mut left = 0;
        for entry in world.entries() {
            let resource = &entry.resource;
            if !resource.has_finalizer() {
                continue;
            }
            let seen = Finalizers {
                key: resource.key.clone(),
                uid: resource.uid.clone(),
                resource_version: resource.resource_version.clone(),
                finalizers: resource.finalizers.clone(),
                ours: resource.finalizer.clone(),
            };
            match kubernetes.write(Write::RemoveFinalizer(seen)).await {
                Ok(()) | Err(WriteError::Gone) => detached += 1,
                Err(WriteError::Conflict) => left += 1,
                Err(error) => bail!("removing the finalizer of {}: {error}", resource.key),
            }
        }
        if left == 0 {
            return Ok(detached);
        }
    }
    bail!("resources change all the time: stop what changes them, and run it again")
}

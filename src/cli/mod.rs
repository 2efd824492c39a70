//! The command line: one file for each subcommand.
//!
//! A wrong flag or an unreadable file is one line on stderr and exit code 2. What can pass by itself (no
//! Kubernetes, no Consul) is not an error of the command line: `run` waits for it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cluster::kubernetes;
use crate::consul::agent::Agent;
use crate::consul::catalog::Catalog;
use crate::consul::moving::{Moving, PreviousPlace};
use crate::consul::transport::{BadSettings, ConsulSettings, Http, Transport, WriteLease};
use crate::model::ids::{ClusterName, Identity, ResourceKey, Str};
use crate::model::registration::Ownership;
use crate::ports::{Leads, Registry};
use crate::settings::{LogFormat, Mode, RunArgs, Settings};

mod crd;
mod detach;
mod doctor;
mod plan;
mod policy;
mod preview;
mod run;
mod takeover;
mod why;

/// Registers the endpoints of Kubernetes Services in Consul, and keeps the registrations up to date.
#[derive(Debug, Parser)]
#[command(name = "lictor", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<RunArgs>),
    /// Print what `run` would write with the same flags. Changes nothing. Exits with 0 if there is nothing to write, with
    /// 1 if there is something, and with 2 if it cannot find out.
    Plan(Box<plan::PlanArgs>),
    /// Explain why a pod, an address or a service is in Consul as it is, or why it is not: each step of its way, what holds it
    /// up, and what to do. Reads only. Exits with 0 if it is in Consul as desired and not critical, with 1 if not, and with 2
    /// if Kubernetes or Consul could not be asked.
    Why(Box<why::WhyArgs>),
    /// Check what `run` needs, with the same flags: permissions, the CRD, Consul and the token. Registers and deregisters a
    /// test instance. Exits with 0 if all checks pass, and with 1 if one fails.
    Doctor(Box<doctor::DoctorArgs>),
    /// Remove the finalizers of Lictor from all resources, before you uninstall Lictor. Registrations stay in Consul, unless
    /// you give --deregister. With --leader-election the command first takes the Lease from a running operator.
    Detach(Box<detach::DetachArgs>),
    /// Print what an old cluster of the same name has left in Consul, after the cluster was built again. With --yes, take it
    /// over: `run` then treats it as its own. Takes nothing while a Lictor of the old cluster still writes.
    Takeover(Box<takeover::TakeoverArgs>),
    /// Check the administrator's policy, or print the ACL policy for Consul.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Print the `CustomResourceDefinition` of `ConsulService`, for `kubectl apply -f -`.
    Crd,
}

/// The exit code for bad input: above 1, which is kept for "something to say" as in diff.
const BAD_INPUT: u8 = 2;

/// The exit code of a plan that is not empty.
const DIFFERS: u8 = 1;

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    let done = match command {
        Command::Run(args) => run::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Plan(args) => plan::plan(*args),
        Command::Why(args) => why::why(*args),
        Command::Doctor(args) => doctor::doctor(*args),
        Command::Detach(args) => detach::detach(*args),
        Command::Takeover(args) => takeover::takeover(*args),
        Command::Policy(command) => policy::policy(command),
        Command::Crd => crd::print().map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lictor: {error:#}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

/// Flags and subcommands that had another name before, with the present one, as clap quotes them.
const RENAMED: [(&str, &str); 2] = [("--sweep-interval", "--resync-interval"), ("'release'", "'detach'")];

/// Prints help and version as they are, and a mistake as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe is the reader's choice.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("lictor: a subcommand is missing; see 'lictor --help'");
        return ExitCode::from(BAD_INPUT);
    }
    let text = error.to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let words = words.join(" ");
    let is_unknown = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
    let renamed = RENAMED.iter().find(|(old, _)| is_unknown && words.contains(old));
    let now = renamed.map_or(String::new(), |(old, new)| format!("; {old} is now {new}"));
    eprintln!("lictor: {}{now}; see 'lictor --help'", words.trim_start_matches("error: "));
    ExitCode::from(BAD_INPUT)
}

/// Sets up what every subcommand needs: logs, which go to stderr, and cryptography.
fn prepare(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log_level).context("--log-level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    // One provider of cryptography for both servers; only a second call could fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(())
}

/// Reads the identity of this cluster from the flags, or else from the cluster.
async fn identify(client: &Client, settings: &Settings) -> anyhow::Result<Identity> {
    let uid = match &settings.cluster_uid {
        Some(uid) => uid.clone(),
        None => kubernetes::cluster_uid(client).await?,
    };
    identity_of(uid, settings.cluster_name.clone())
}

/// Makes the identity of the cluster with this uid.
fn identity_of(uid: Str, name: Option<ClusterName>) -> anyhow::Result<Identity> {
    let cluster = match name {
        Some(name) => name,
        None => ClusterName::new(&uid)
            .context("the uid of kube-system cannot be the cluster's name: give --cluster-name")?,
    };
    Ok(Identity { cluster, uid })
}

/// Does some work with Consul and logs out afterwards, however it ends: also where somebody stops it.
async fn logged_out<T>(consul: ConsulSettings, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    if consul.login.is_none() {
        return work.await;
    }
    let stopped = async {
        match stop_signal() {
            Ok(stop) => stop.await,
            Err(error) => {
                tracing::warn!("{error:#}");
                std::future::pending::<()>().await;
            }
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = stopped => Err(anyhow::anyhow!("stopped")),
    };
    consul.logins.end().await;
    done
}

/// Ready when the process is told to stop.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}

/// Makes requests depend on the lead. In the catalog a fence keeps out a write that comes late.
fn write_lease(settings: &Settings, leads: Leads, margin: Duration) -> WriteLease {
    let was_agent = settings.previous.as_ref().is_some_and(|previous| previous.registration == Mode::Agent);
    match settings.registration {
        Mode::Catalog if !was_agent => WriteLease::fenced(leads),
        Mode::Agent | Mode::Catalog => WriteLease::new(leads, margin),
    }
}

/// Says what becomes of a command while the place of before, in a move, is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PreviousAway {
    /// It goes on without.
    GoesOn,
    /// It fails.
    Fails,
}

/// Makes the registry of the mode; in a move, together with the one of before. Of several replicas only the one with the
/// write lease writes.
fn registry(
    settings: &Settings,
    identity: &Identity,
    transport: Arc<dyn Transport>,
    write_lease: Option<&WriteLease>,
    previous_away: PreviousAway,
) -> anyhow::Result<Arc<dyn Registry>> {
    let current: Arc<dyn Registry> = match settings.registration {
        Mode::Agent => Arc::new(agent(settings, identity, Arc::clone(&transport), write_lease)?),
        Mode::Catalog => Arc::new(Catalog::new(identity.clone(), Arc::clone(&transport), settings.concurrency)),
    };
    let Some(previous) = &settings.previous else { return Ok(current) };
    let way = way_to(&previous.consul, write_lease).context("the Consul of before (--previous-consul-address)")?;
    let cluster = previous.cluster_name.clone().unwrap_or_else(|| identity.cluster.clone());
    let before = Identity { cluster: cluster.clone(), ..identity.clone() };
    let registry: Arc<dyn Registry> = match previous.registration {
        Mode::Agent => Arc::new(Agent::new(before, Arc::clone(&way))),
        Mode::Catalog => Arc::new(Catalog::new(before, Arc::clone(&way), settings.concurrency)),
    };
    let previous = PreviousPlace {
        registry,
        transport: way,
        cluster,
        is_of_another_mode: previous.registration != settings.registration,
        is_needed: previous_away == PreviousAway::Fails,
    };
    Ok(Arc::new(Moving::new(current, transport, identity.cluster.clone(), previous)))
}

/// Counts, by resource, what this cluster has registered in the same Consul by the other mode, unless a move from there is
/// under way. What cannot be read counts as nothing.
async fn in_other_mode(
    settings: &Settings,
    identity: &Identity,
    transport: &Arc<dyn Transport>,
) -> (Mode, BTreeMap<ResourceKey, usize>) {
    let (mode, registry): (Mode, Box<dyn Registry>) = match settings.registration {
        Mode::Agent => (Mode::Catalog, Box::new(Catalog::new(identity.clone(), Arc::clone(transport), 1))),
        Mode::Catalog => (Mode::Agent, Box::new(Agent::new(identity.clone(), Arc::clone(transport)))),
    };
    let mut counts = BTreeMap::new();
    if settings.previous.is_some() {
        return (mode, counts);
    }
    let rows = registry.survey().await.map(|(_, rows)| rows).unwrap_or_default();
    for row in rows.into_values() {
        if let Ownership::Ours(owner) = row.ownership {
            *counts.entry(owner).or_default() += 1;
        }
    }
    (mode, counts)
}

/// A way to Consul that follows the files of its settings.
fn way_to(consul: &ConsulSettings, write_lease: Option<&WriteLease>) -> Result<Arc<dyn Transport>, BadSettings> {
    let http = Http::new(consul)?;
    let http = Arc::new(match write_lease {
        None => http,
        Some(write_lease) => http.with_write_lease(write_lease.clone()),
    });
    tokio::spawn(Arc::clone(&http).follow_files());
    Ok(http)
}

/// The agent that registrations go to, with those that they went to before.
fn agent(
    settings: &Settings,
    identity: &Identity,
    transport: Arc<dyn Transport>,
    write_lease: Option<&WriteLease>,
) -> anyhow::Result<Agent> {
    let previous = settings.previous_agents.iter().map(|address| {
        let consul = ConsulSettings { addresses: vec![address.clone()], ..settings.consul.clone() };
        Ok((address.clone(), way_to(&consul, write_lease).context("--previous-agent")?))
    });
    let previous = previous.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Agent::new(identity.clone(), transport).with_previous(previous))
}

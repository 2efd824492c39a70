//! `make demo`: Lictor at work between a real Kubernetes and a real Consul, told step by step.
//!
//! In: the operator's program as the one argument; `KUBECONFIG` for a cluster that is there already, `DEMO_NODES=0` for
//! one whose pods do not run, `DEMO_REGISTRATION=catalog` for the other mode, `DEMO_ONCE=1` to end after the last step.
//! Out: each step as the command that a user would type, its output, and what it shows.
//!
//! - [`story`]: the steps, in order
//! - [`stage`]: what runs, and how all of it ends
//! - [`cluster`]: which Kubernetes it is
//! - [`pods`]: the pods that the story is about
//! - [`servers`]: what answers at their addresses, where they do not run
//! - [`look`]: what is asked of Consul on the way, through its DNS too
//! - [`show`]: how it is printed

mod cluster;
mod look;
mod pods;
mod servers;
mod show;
mod stage;
mod story;

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use lictor_testbed::Mode;
use tokio::signal::unix::{SignalKind, signal};

use stage::Stage;

/// Shows Lictor at work. Ctrl-C ends it, a second one at once.
#[derive(Parser)]
struct Args {
    /// The operator's program.
    lictor: PathBuf,
    /// Where registrations go.
    #[arg(long, value_enum, default_value_t = Mode::Agent, env = "DEMO_REGISTRATION")]
    registration: Mode,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if !args.lictor.is_file() {
        bail!("{} is not there: build it with `make build`", args.lictor.display());
    }
    let (once, nodes) = (said("DEMO_ONCE").unwrap_or(false), said("DEMO_NODES").unwrap_or(true));
    let mut stop = std::pin::pin!(stop_signal()?);

    let mut stage = tokio::select! {
        stage = Stage::start(args.lictor, args.registration, nodes) => stage?,
        () = &mut stop => return Ok(()),
    };
    let told = tokio::select! {
        told = story::tell(&mut stage, once) => told,
        () = &mut stop => Ok(()),
    };
    if told.is_err() {
        eprintln!("\nLictor's last words:\n{}", stage.operator_log(20));
    }
    let mut at_once = std::pin::pin!(stop_signal()?);
    tokio::select! {
        () = stage.end() => {}
        () = &mut at_once => {}
    }
    told
}

/// Ready when the demo is told to stop.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!();
    })
}

/// What a variable says, if anything: everything is yes but `0` and `false`.
fn said(variable: &str) -> Option<bool> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    Some(value != "0" && value != "false")
}

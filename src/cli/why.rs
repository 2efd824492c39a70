//! `lictor why`: the way of a pod, an address or a service from Kubernetes to Consul, and what holds it up.
//!
//! - `asked`: what is typed.
//! - `ask`: asks both sides.
//! - `seen`: what was found.
//! - `picks`: which resource picks somebody.
//! - `explain`: from what was found to the lines of the answer.
//! - `way`: these lines, and the cause.
//! - `advice`: what to do.

mod advice;
mod ask;
mod asked;
mod explain;
mod picks;
mod seen;
mod way;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, Args};

use self::asked::Asked;
use self::way::Ending;
use super::{BAD_INPUT, DIFFERS, logged_out, prepare};
use crate::settings::{LOG_LEVEL, RunArgs, Settings};

/// The flags of `lictor why`: what is asked for, where, and those of `run` that say how to get there.
#[derive(Debug, Args)]
#[command(mut_args(shown))]
pub struct WhyArgs {
    /// What to explain: pod/NAME, csvc/NAME, an IP address, or the name of a service in Consul or of a `ConsulService`.
    #[arg(value_name = "pod/NAME|ADDRESS|SERVICE")]
    asked: Asked,

    /// Look into all namespaces.
    #[arg(long, short = 'A', conflicts_with = "namespaces")]
    all_namespaces: bool,

    #[command(flatten)]
    run: RunArgs,
}

/// The flags of `run` that are listed in the help. The others are taken as well, so that the same environment serves both.
const LISTED: [&str; 13] = [
    "asked",
    "all_namespaces",
    "kubeconfig",
    "context",
    "cluster_name",
    "consul_address",
    "consul_datacenter",
    "consul_token_file",
    "consul_ca_cert",
    "consul_client_cert",
    "consul_client_key",
    "consul_tls_server_name",
    "class",
];

fn shown(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "namespaces" => arg
            .short('n')
            .help("The namespace to look into. Default: that of the kubeconfig's context.")
            .long_help(None),
        id if LISTED.contains(&id) => arg,
        _ => arg.hide(true),
    }
}

/// Prints the way; 0 if all is as desired, 1 if something is not, 2 if not everybody could be asked.
pub(super) fn why(args: WhyArgs) -> anyhow::Result<ExitCode> {
    let mut run = args.run;
    // What goes wrong is said in the answer.
    if run.log_level == LOG_LEVEL {
        "error,kube_client=off".clone_into(&mut run.log_level);
    }
    let settings = Settings::new(run)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let consul = settings.consul.clone();
    let seen = runtime.block_on(logged_out(consul, ask::ask(settings, &args.asked, args.all_namespaces)))?;
    let way = explain::explain(&args.asked, &seen);
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(way.text().as_bytes());
    Ok(match way.ending() {
        Ending::AsDesired => ExitCode::SUCCESS,
        Ending::NotAsDesired => ExitCode::from(DIFFERS),
        Ending::Unknown => ExitCode::from(BAD_INPUT),
    })
}

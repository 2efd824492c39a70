//! The testbed by hand: builds its programs, or runs a control plane and a Consul until told to stop.

use std::io;

use anyhow::Result;
use clap::Parser;
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, Programs};
use tokio::sync::oneshot;

#[derive(Parser)]
#[command(about)]
enum Command {
    /// Builds what is missing, and prints where each program is.
    Programs,
    /// Starts a control plane and a Consul, and prints the environment that leads to them.
    Up,
}

#[tokio::main]
async fn main() -> Result<()> {
    let command = Command::parse();
    let programs = Programs::ensure().await?;
    match command {
        Command::Programs => {
            for (name, path) in programs.list() {
                println!("{name}\t{}", path.display());
            }
            Ok(())
        }
        Command::Up => up(&programs).await,
    }
}

async fn up(programs: &Programs) -> Result<()> {
    let options = ConsulOptions { ui: true, ..ConsulOptions::default() };
    let (plane, consul) = tokio::try_join!(ControlPlane::start(programs), Consul::start(programs, options))?;
    println!("export KUBECONFIG={} CONSUL_HTTP_ADDR={}", plane.kubeconfig().display(), consul.http_addr());
    eprintln!("running until Ctrl-C or the end of stdin …");

    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        ended = end_of_stdin() => ended?,
    }
    Ok(())
}

/// Reads on a thread of its own: a read of stdin cannot be interrupted, and tokio would wait for its
/// threads at the end, while this one just goes.
async fn end_of_stdin() -> Result<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let copied = io::copy(&mut io::stdin(), &mut io::sink());
        // Nobody listens any more after a Ctrl-C.
        let _ = ended.send(copied);
    });
    end.await??;
    Ok(())
}

//! The testbed by hand: builds its programs, or runs a control plane and a Consul until told to stop.

use std::io;

use anyhow::Result;
use clap::Parser;
use lictor_testbed::programs::tools::Tool;
use lictor_testbed::{Consul, ConsulOptions, ControlPlane, NodeCluster, NodeClusterOptions, NodePrograms, Programs};
use tokio::sync::oneshot;

#[derive(Parser)]
#[command(about)]
enum Command {
    /// Builds what is missing, and prints where each program is.
    Programs {
        /// Those of a node, too.
        #[arg(long)]
        nodes: bool,
    },
    /// Builds a program that works on the chart if it is missing, and prints where it is.
    Tool {
        /// Which.
        #[arg(value_enum)]
        tool: Tool,
    },
    /// Starts a control plane and a Consul, and prints the environment that leads to them.
    Up {
        /// So many nodes that run pods; without, pods are objects that nobody runs. Needs Linux and root.
        #[arg(long, default_value_t = 0)]
        nodes: u8,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse() {
        Command::Programs { nodes } => {
            let programs = Programs::ensure().await?;
            let of_nodes = if nodes { Some(NodePrograms::ensure().await?) } else { None };
            for (name, path) in programs.list().into_iter().chain(of_nodes.iter().flat_map(NodePrograms::list)) {
                println!("{name}\t{}", path.display());
            }
            Ok(())
        }
        Command::Tool { tool } => {
            println!("{}", tool.ensure().await?.display());
            Ok(())
        }
        Command::Up { nodes: 0 } => up(&Programs::ensure().await?).await,
        Command::Up { nodes } => up_with_nodes(&Programs::ensure().await?, nodes).await,
    }
}

async fn up(programs: &Programs) -> Result<()> {
    let options = ConsulOptions { ui: true, ..ConsulOptions::default() };
    let (plane, consul) = tokio::try_join!(ControlPlane::start(programs), Consul::start(programs, options))?;
    println!("export KUBECONFIG={} CONSUL_HTTP_ADDR={}", plane.kubeconfig().display(), consul.http_addr());
    told_to_end().await
}

async fn up_with_nodes(programs: &Programs, nodes: u8) -> Result<()> {
    let cluster = NodeCluster::start(&NodeClusterOptions { nodes, ..NodeClusterOptions::default() }).await?;
    cluster.load_consul(&programs.consul).await?;
    println!("export KUBECONFIG={}", cluster.plane().kubeconfig().display());
    told_to_end().await
}

async fn told_to_end() -> Result<()> {
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

//! The cluster of the story, in one of three ways: ours, with pods that run; ours, with pods that are written only; or
//! one that was there already.

use std::path::PathBuf;

use anyhow::Result;
use lictor_testbed::node::{self, suite::given_cluster};
use lictor_testbed::{Consul, ControlPlane, NodeCluster, NodeClusterOptions, NodePrograms, Programs};

const NODES: u8 = 2;

/// Which way it is to be.
pub enum Way {
    Nodes,
    Objects {
        /// Why no pods run.
        why: String,
    },
    /// That of this kubeconfig.
    Given(PathBuf),
}

/// The cluster, up.
pub enum Cluster {
    Nodes(Box<NodeCluster>),
    Objects {
        plane: Box<ControlPlane>,
        /// Why no pods run.
        why: String,
    },
    Given(Box<ControlPlane>),
}

impl Way {
    /// The one that `KUBECONFIG` names; or else nodes, if they are wanted and this machine can have them.
    pub async fn choose(nodes: bool) -> Result<Self> {
        if let Some(kubeconfig) = given_cluster() {
            return Ok(Self::Given(kubeconfig));
        }
        if !nodes {
            return Ok(Self::Objects { why: "DEMO_NODES=0 does without".to_owned() });
        }
        let prepared = tokio::task::spawn_blocking(node::prepare).await?;
        Ok(match prepared {
            Ok(()) => Self::Nodes,
            Err(error) => Self::Objects { why: error.to_string() },
        })
    }

    /// Finds or builds what it needs, and Consul.
    pub async fn programs(&self) -> Result<Programs> {
        match self {
            Self::Nodes => {
                let programs = Programs::ensure().await?;
                NodePrograms::ensure().await?;
                Ok(programs)
            }
            Self::Objects { .. } => Programs::ensure().await,
            Self::Given(_) => Ok(Programs {
                consul: Programs::ensure_consul().await?,
                kubectl: Programs::ensure_kubectl().await?,
                etcd: PathBuf::new(),
                kube_apiserver: PathBuf::new(),
                kube_controller_manager: PathBuf::new(),
                kube_scheduler: PathBuf::new(),
            }),
        }
    }

    /// What is about to be started.
    pub fn announcement(&self) -> &'static str {
        match self {
            Self::Nodes => "Starting Consul, and Kubernetes with two nodes …",
            Self::Objects { .. } => "Starting Consul and Kubernetes …",
            Self::Given(_) => "Starting Consul …",
        }
    }

    /// Brings it up. Nodes that do not come up are done without.
    pub async fn start(self, programs: &Programs, consul: &Consul) -> Result<Cluster> {
        let why = match self {
            Self::Given(kubeconfig) => {
                return Ok(Cluster::Given(Box::new(ControlPlane::given(&kubeconfig).await?)));
            }
            Self::Objects { why } => why,
            Self::Nodes => {
                let consul_dns = vec![([127, 0, 0, 1], consul.dns_port()).into()];
                let options = NodeClusterOptions { nodes: NODES, consul_dns, ..NodeClusterOptions::default() };
                match NodeCluster::start(&options).await {
                    Ok(nodes) => return Ok(Cluster::Nodes(Box::new(nodes))),
                    Err(error) => {
                        eprintln!("The nodes did not start, so it goes on without them: {error:#}\n");
                        "the nodes did not start, as said above".to_owned()
                    }
                }
            }
        };
        Ok(Cluster::Objects { plane: Box::new(ControlPlane::start(programs).await?), why })
    }
}

impl Cluster {
    /// How to reach it.
    pub fn plane(&self) -> &ControlPlane {
        match self {
            Self::Nodes(nodes) => nodes.plane(),
            Self::Objects { plane, .. } | Self::Given(plane) => plane,
        }
    }

    /// Whether it goes with the demo.
    pub fn is_ours(&self) -> bool {
        !matches!(self, Self::Given(_))
    }
}

//! The pods of the story.
//!
//! On nodes of our own they run, and kubelets speak for them. In a cluster of our own without nodes, a pod is an object
//! made by hand, whose status the demo writes as a kubelet would. Of both, Kubernetes' own controllers make
//! `EndpointSlices`. In a cluster that was there already, whose nodes are none of our business, the demo writes the
//! `EndpointSlices` itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use lictor_testbed::node::APP_IMAGE;
use lictor_testbed::{NewEndpoint, NewPod, TestNamespace};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::servers::Server;
use crate::show;

const START: Duration = Duration::from_secs(60);

/// What a pod is.
#[derive(Debug)]
pub struct Role {
    pub name: &'static str,
    pub app: &'static str,
    /// Which of the nodes it is on.
    node: usize,
    port: Port,
    /// Where it is, unless it really runs: then it is given an address.
    address: [u8; 4],
}

/// What it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Grpc,
    Http,
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Grpc => 9090,
            Self::Http => 8080,
        }
    }
}

impl Role {
    const fn user(name: &'static str, node: usize, last: u8) -> Self {
        Self { name, app: "user", node, port: Port::Grpc, address: [198, 18, 0, last] }
    }

    const fn web(name: &'static str, node: usize, last: u8) -> Self {
        Self { name, app: "web", node, port: Port::Http, address: [198, 18, 0, last] }
    }

    /// A pod that runs.
    fn object(&self, node: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": self.name, "labels": { "app": self.app } },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": node },
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main",
                    "image": APP_IMAGE,
                    "imagePullPolicy": "Never",
                    "args": ["serve"],
                    "ports": [{ "name": self.port.name(), "containerPort": self.port.number() }],
                    "readinessProbe": {
                        "httpGet": { "path": "/ready", "port": Port::Http.number() },
                        "periodSeconds": 1,
                        "failureThreshold": 1,
                    },
                }],
            },
        })
    }
}

/// Who is there from the start.
pub const FIRST: [Role; 5] = [
    Role::user("user-0", 0, 11),
    Role::user("user-1", 1, 12),
    Role::user("user-2", 0, 13),
    Role::web("web-0", 0, 21),
    Role::web("web-1", 1, 22),
];

/// Who takes the place of `user-1`.
pub const SUCCESSOR: Role = Role::user("user-3", 1, 14);

/// The nodes where they are objects only, with addresses that nobody connects to.
const NODES: [(&str, [u8; 4]); 2] = [("node-a", [198, 18, 0, 1]), ("node-b", [198, 18, 0, 2])];

/// The pods that are there.
pub struct Pods {
    how: How,
    addresses: BTreeMap<&'static str, IpAddr>,
    servers: BTreeMap<&'static str, Server>,
    /// Why there are no servers at the pods' addresses.
    pub no_servers: Option<String>,
}

/// How pods come to be endpoints.
enum How {
    /// They run on these nodes.
    Run { nodes: Vec<String> },
    /// They are objects on these nodes.
    Objects { nodes: Vec<String> },
    /// There are none: their slices are written by the demo.
    Slices,
}

impl Pods {
    /// No pods yet; their nodes, where these are objects only.
    pub async fn new(namespace: &TestNamespace, cluster: &Cluster) -> Result<Self> {
        let how = match cluster {
            Cluster::Nodes(cluster) => {
                How::Run { nodes: cluster.nodes().iter().map(|node| node.name().to_owned()).collect() }
            }
            Cluster::Objects { .. } => {
                let mut nodes = Vec::new();
                for (name, address) in NODES {
                    nodes.push(namespace.create_node(name, IpAddr::from(address), name).await?);
                }
                How::Objects { nodes }
            }
            Cluster::Given(_) => How::Slices,
        };
        Ok(Self { how, addresses: BTreeMap::new(), servers: BTreeMap::new(), no_servers: None })
    }

    /// Whether they are objects of the kind Pod.
    pub fn are_pods(&self) -> bool {
        !matches!(self.how, How::Slices)
    }

    /// Whether there is more of them than objects.
    pub fn really_run(&self) -> bool {
        matches!(self.how, How::Run { .. })
    }

    /// Where one answers that is there.
    pub fn address(&self, role: &Role) -> Result<SocketAddr> {
        let ip = self.addresses.get(role.name).with_context(|| format!("{} is not there", role.name))?;
        Ok(SocketAddr::new(*ip, role.port.number()))
    }

    /// The URL of one of its switches: what is put there has a path fail or not.
    pub fn switch(&self, role: &Role, path: &str, ok: bool) -> Result<String> {
        let server = SocketAddr::new(self.address(role)?.ip(), Port::Http.number());
        Ok(format!("http://{server}{path}?ok={ok}"))
    }

    /// Has pods begin; they are ready when this returns.
    pub async fn begin(&mut self, namespace: &TestNamespace, roles: &'static [Role]) -> Result<()> {
        if let How::Run { nodes } = &self.how {
            let objects: Vec<Value> = roles.iter().map(|role| role.object(&nodes[role.node])).collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            namespace.apply_yaml(&list.to_string()).await?;
        }
        for role in roles {
            match self.how {
                How::Run { .. } => self.wait_ready(namespace, role).await?,
                How::Objects { .. } | How::Slices => self.write(namespace, role).await?,
            }
        }
        Ok(())
    }

    /// Waits until a pod that was made runs, and is ready.
    async fn wait_ready(&mut self, namespace: &TestNamespace, role: &Role) -> Result<()> {
        namespace.wait_for_condition(&format!("pod/{}", role.name), "Ready", "True", START).await?;
        let status = namespace.pods().get(role.name).await?.status;
        let ip = status.and_then(|status| status.pod_ip).context("a ready pod without an address")?;
        self.addresses.insert(role.name, ip.parse()?);
        Ok(())
    }

    /// Writes what there would be of a pod that runs, with a server at its address.
    async fn write(&mut self, namespace: &TestNamespace, role: &'static Role) -> Result<()> {
        self.addresses.insert(role.name, IpAddr::from(role.address));
        let address = self.address(role)?;
        if self.no_servers.is_none() {
            match Server::start(role.name, role.port, address).await {
                Ok(server) => drop(self.servers.insert(role.name, server)),
                Err(error) => self.no_servers = Some(format!("{error:#}")),
            }
        }
        if let How::Objects { nodes } = &self.how {
            let pod = NewPod::new(role.name, &nodes[role.node])
                .label("app", role.app)
                .port(role.port.name(), role.port.number())
                .ip(address.ip());
            namespace.create_pod(pod).await?;
            show_container(namespace, role, true).await
        } else {
            write_slice(namespace, role, address, true).await
        }
    }

    /// Makes a pod ready or not: as its readiness probe would, or so that its probe finds it out.
    pub async fn set_ready(&self, namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
        match self.how {
            How::Run { .. } => put(&self.switch(role, "/ready", ready)?).await,
            How::Objects { .. } => namespace.set_ready(role.name, ready).await,
            How::Slices => write_slice(namespace, role, self.address(role)?, ready).await,
        }
    }

    /// Who says so then.
    pub fn who_says(&self) -> &'static str {
        match self.how {
            How::Run { .. } => "Its kubelet, which asks for /ready every second, finds out",
            How::Objects { .. } => "The demo writes into the pod's status what a kubelet writes after a probe",
            How::Slices => "The demo writes it into the EndpointSlice",
        }
    }

    /// Has `kubectl get pods` say what [`set_ready`](Self::set_ready) has done: what is registered does
    /// not depend on it.
    pub async fn show_ready(&self, namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
        match self.how {
            How::Objects { .. } => show_container(namespace, role, ready).await,
            How::Run { .. } | How::Slices => Ok(()),
        }
    }

    /// Has its `/health` fail or not.
    pub async fn set_healthy(&self, role: &Role, healthy: bool) -> Result<()> {
        put(&self.switch(role, "/health", healthy)?).await
    }

    /// Ends a pod and its server.
    pub async fn end(&mut self, namespace: &TestNamespace, role: &Role) -> Result<()> {
        self.servers.remove(role.name);
        self.addresses.remove(role.name);
        match self.how {
            How::Run { .. } => {
                let words = namespace.kubectl(&["delete", "pod", role.name]).await?;
                show::command(&format!("kubectl -n {} delete pod {}", namespace.name(), role.name), &words);
                Ok(())
            }
            How::Objects { .. } => namespace.force_delete(role.name).await,
            How::Slices => namespace.delete_slice(role.name).await,
        }
    }
}

/// An empty PUT, shown.
async fn put(url: &str) -> Result<()> {
    reqwest::Client::new().put(url).send().await?.error_for_status()?;
    show::command(&format!("curl -X PUT '{url}'"), "");
    Ok(())
}

/// The column READY of `kubectl get pods` counts containers.
async fn show_container(namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
    let container = json!({
        "name": "main",
        "image": "none",
        "imageID": "none",
        "ready": ready,
        "started": true,
        "restartCount": 0,
        "state": { "running": {} },
    });
    namespace.patch_pod_status(role.name, &json!({ "containerStatuses": [container] })).await
}

async fn write_slice(namespace: &TestNamespace, role: &Role, address: SocketAddr, ready: bool) -> Result<()> {
    let endpoint = NewEndpoint { ready: Some(ready), ..NewEndpoint::new(address.ip()) };
    namespace.apply_slice(role.name, role.app, &[(role.port.name(), address.port())], &[endpoint]).await?;
    Ok(())
}

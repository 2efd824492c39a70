//! The pods of the story, and servers that answer at their addresses.
//!
//! In the testbed's own cluster a pod is an object made by hand, whose status the demo writes as a
//! kubelet would; Kubernetes' own controllers make `EndpointSlices` of them. In a cluster that was there
//! already, whose nodes are none of our business, the demo writes the `EndpointSlices` itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use lictor_testbed::{LocalAddress, NewEndpoint, NewPod, TestNamespace};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a pod is.
#[derive(Debug)]
pub struct Role {
    pub name: &'static str,
    pub app: &'static str,
    node: &'static str,
    address: [u8; 4],
    port: Port,
}

/// What it speaks.
#[derive(Debug, Clone, Copy)]
enum Port {
    /// One line of text to whoever connects; it stands in for gRPC.
    Grpc,
    /// Likewise to whoever asks for a page; `/health` is 500 after `/break` and until `/mend`.
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
    const fn user(name: &'static str, node: &'static str, last: u8) -> Self {
        Self { name, app: "user", node, address: [198, 18, 0, last], port: Port::Grpc }
    }

    const fn web(name: &'static str, node: &'static str, last: u8) -> Self {
        Self { name, app: "web", node, address: [198, 18, 0, last], port: Port::Http }
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.address), self.port.number())
    }
}

/// Who is there from the start.
pub const FIRST: [Role; 5] = [
    Role::user("user-0", "node-a", 11),
    Role::user("user-1", "node-b", 12),
    Role::user("user-2", "node-a", 13),
    Role::web("web-0", "node-a", 21),
    Role::web("web-1", "node-b", 22),
];

/// Who takes the place of `user-1`.
pub const SUCCESSOR: Role = Role::user("user-3", "node-b", 14);

/// The nodes, with addresses that nobody connects to.
const NODES: [(&str, [u8; 4]); 2] = [("node-a", [198, 18, 0, 1]), ("node-b", [198, 18, 0, 2])];

/// The pods that are there.
pub struct Pods {
    how: How,
    servers: BTreeMap<&'static str, Server>,
    /// Why there are no servers at the pods' addresses.
    pub no_servers: Option<String>,
}

/// How pods come to be endpoints.
enum How {
    /// As pods on these nodes, by Kubernetes' controllers.
    Pods { nodes: BTreeMap<&'static str, String> },
    /// Written by the demo.
    Slices,
}

impl Pods {
    /// No pods yet; their nodes, where the cluster is ours.
    pub async fn new(namespace: &TestNamespace, cluster_is_ours: bool) -> Result<Self> {
        let how = if cluster_is_ours {
            let mut nodes = BTreeMap::new();
            for (name, address) in NODES {
                nodes.insert(name, namespace.create_node(name, IpAddr::from(address), name).await?);
            }
            How::Pods { nodes }
        } else {
            How::Slices
        };
        Ok(Self { how, servers: BTreeMap::new(), no_servers: None })
    }

    /// Whether they are objects of the kind Pod.
    pub fn are_pods(&self) -> bool {
        matches!(self.how, How::Pods { .. })
    }

    /// Has a pod run, ready.
    pub async fn run(&mut self, namespace: &TestNamespace, role: &'static Role) -> Result<()> {
        if self.no_servers.is_none() {
            match Server::start(role).await {
                Ok(server) => drop(self.servers.insert(role.name, server)),
                Err(error) => self.no_servers = Some(format!("{error:#}")),
            }
        }
        match &self.how {
            How::Pods { nodes } => {
                let node = nodes.get(role.node).context("a pod without a node")?;
                let pod = NewPod::new(role.name, node)
                    .label("app", role.app)
                    .port(role.port.name(), role.port.number())
                    .ip(role.address().ip());
                namespace.create_pod(pod).await?;
                show_container(namespace, role, true).await
            }
            How::Slices => write_slice(namespace, role, true).await,
        }
    }

    /// Makes a pod ready or not, as its readiness probe would.
    pub async fn set_ready(&self, namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
        match self.how {
            How::Pods { .. } => namespace.set_ready(role.name, ready).await,
            How::Slices => write_slice(namespace, role, ready).await,
        }
    }

    /// Has `kubectl get pods` say what [`set_ready`](Self::set_ready) has done: what is registered does
    /// not depend on it.
    pub async fn show_ready(&self, namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
        match self.how {
            How::Pods { .. } => show_container(namespace, role, ready).await,
            How::Slices => Ok(()),
        }
    }

    /// Ends a pod and its server.
    pub async fn end(&mut self, namespace: &TestNamespace, role: &Role) -> Result<()> {
        self.servers.remove(role.name);
        match self.how {
            How::Pods { .. } => namespace.force_delete(role.name).await,
            How::Slices => namespace.delete_slice(role.name).await,
        }
    }
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

async fn write_slice(namespace: &TestNamespace, role: &Role, ready: bool) -> Result<()> {
    let endpoint = NewEndpoint { ready: Some(ready), ..NewEndpoint::new(role.address().ip()) };
    let port = (role.port.name(), role.port.number());
    namespace.apply_slice(role.name, role.app, &[port], &[endpoint]).await?;
    Ok(())
}

/// What answers at a pod's address.
struct Server {
    task: JoinHandle<()>,
    _address: LocalAddress,
}

impl Server {
    async fn start(role: &'static Role) -> Result<Self> {
        let address = LocalAddress::add(&role.address().ip().to_string())?;
        let listener = TcpListener::bind(role.address()).await?;
        let broken = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let broken = Arc::clone(&broken);
                // A client that goes away in the middle is its own affair.
                tokio::spawn(async move { drop(answer(client, role, &broken).await) });
            }
        });
        Ok(Self { task, _address: address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut client: TcpStream, role: &Role, broken: &AtomicBool) -> std::io::Result<()> {
    let words = format!("this is {}, at {}\n", role.name, role.address());
    let answer = match role.port {
        Port::Grpc => words,
        Port::Http => {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && request.len() < 8192 {
                request.push(client.read_u8().await?);
            }
            let request = String::from_utf8_lossy(&request);
            let (status, words) = match request.split(' ').nth(1) {
                Some("/health") if broken.load(Ordering::Relaxed) => {
                    ("500 Internal Server Error", "the database is gone\n")
                }
                Some("/health") => ("200 OK", "fine\n"),
                Some(path @ ("/break" | "/mend")) => {
                    broken.store(path == "/break", Ordering::Relaxed);
                    ("200 OK", "done\n")
                }
                _ => ("200 OK", words.as_str()),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", words.len());
            format!("{head}Connection: close\r\n\r\n{words}")
        }
    };
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

//! A real Kubernetes control plane and a real Consul, for tests, the demo and benchmarks.
//!
//! Nothing here is a mock. The programs are built once from pinned Go modules ([`programs`]) and run
//! as ordinary processes on free ports of the loopback interface. There is no kubelet: nodes and pods
//! are objects whose status a test writes, and the real controllers turn them into `EndpointSlices`.
//! Where pods are to run, [`node`] adds real nodes, on Linux and as root.
//!
//! - what runs: [`control_plane`], [`node`], [`consul`], [`proxy`] (in front of Consul), [`operator`], [`listeners`] (for
//!   Consul's checks to ask), [`esm`] (a stand-in of consul-esm)
//! - what is asked of Consul's DNS: [`dns`]; who asks Consul all the time: [`reader`]
//! - what tests make in the cluster: [`cluster`], [`pods`]; what they share: [`shared`], [`mode`]
//! - what all of it stands on: [`programs`], [`process`], [`watchdog`], [`work_dir`], [`ports`],
//!   [`certificates`], [`addresses`], [`kubectl`], [`helm`], [`wait`]
//!
//! Whatever is started ends with the process that started it, however that one ends ([`watchdog`]).

pub mod addresses;
pub mod certificates;
pub mod cluster;
pub mod consul;
pub mod control_plane;
pub mod dns;
pub mod esm;
pub mod helm;
pub mod kubectl;
pub mod listeners;
pub mod mode;
pub mod node;
pub mod operator;
pub mod pods;
pub mod ports;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod reader;
pub mod shared;
pub mod wait;
pub mod watchdog;
pub mod work_dir;

pub use addresses::LocalAddress;
pub use cluster::{NewEndpoint, TestNamespace};
pub use consul::{Check, Consul, ConsulApi, ConsulOptions, Instance};
pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use esm::Esm;
pub use helm::Helm;
pub use kubectl::Kubectl;
pub use listeners::{Heard, Listener, Message, Over, Protocol};
pub use mode::Mode;
pub use node::{NodeCluster, NodeClusterOptions};
pub use operator::{Launch, Operator};
pub use pods::{NewPod, TestPod};
pub use process::Process;
pub use programs::{NodePrograms, Programs};
pub use proxy::{Fault, Hold, Proxy, Record};
pub use reader::{Reader, Seen};
pub use shared::Shared;
pub use watchdog::Watchdog;
pub use work_dir::WorkDir;

/// Chooses the TLS implementation for this process. Call it before making a client of any kind;
/// calling it again changes nothing.
pub fn init_tls() {
    // An error only says that a provider has been chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

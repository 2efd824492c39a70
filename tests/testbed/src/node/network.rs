//! What joins this machine and the nodes: a bridge in a network namespace of its own, where nobody's packet filter
//! sees what goes over it, and a cable to each.

use std::process::Command;

use anyhow::{Result, ensure};

use super::machine::Machine;
use super::site::Site;
use super::tools;
use crate::process::Process;
use crate::work_dir::WorkDir;

/// The bridge. All its cables go with it.
#[derive(Debug)]
pub(super) struct Switch {
    process: Process,
}

impl Switch {
    /// Makes it, with a cable to this machine.
    pub(super) fn start(site: &Site, work_dir: &WorkDir) -> Result<Self> {
        // A network namespace lives as long as a process in it.
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sleep", "infinity"]);
        let switch = Self { process: Process::spawn("the switch", command, &work_dir.join("switch.log"))? };
        let there = switch.process.pid();
        wait_for_own_network(there)?;
        in_network(there, "link add bridge0 type bridge")?;
        in_network(there, "link set bridge0 up")?;

        let here = site.interface();
        ip(&format!("link add {here} type veth peer name uplink netns {there}"))?;
        in_network(there, "link set uplink master bridge0 up")?;
        ip(&format!("addr add {}/24 dev {here}", site.gateway()))?;
        ip(&format!("link set {here} up"))?;
        Ok(switch)
    }

    /// Lays a cable to a node, and this machine's way to its pods.
    pub(super) fn connect(&self, site: &Site, index: u8, machine: &Machine) -> Result<()> {
        let (there, node) = (self.process.pid(), machine.init());
        let port = format!("port{index}");
        in_network(there, &format!("link add {port} type veth peer name eth0 netns {node}"))?;
        in_network(there, &format!("link set {port} master bridge0 up"))?;
        in_network(node, &format!("addr add {}/24 dev eth0", site.node(index)))?;
        in_network(node, "link set eth0 up")?;
        in_network(node, &format!("route add default via {}", site.gateway()))?;
        ip(&format!("route add {} via {}", site.pods(index), site.node(index)))
    }
}

/// Tells a node the way to another one's pods.
pub(super) fn route(site: &Site, from: &Machine, to: u8) -> Result<()> {
    in_network(from.init(), &format!("route add {} via {}", site.pods(to), site.node(to)))
}

/// `unshare` needs a moment: until then its network is ours.
fn wait_for_own_network(pid: u32) -> Result<()> {
    let own = std::fs::read_link("/proc/self/ns/net")?;
    for _ in 0..1_000 {
        if std::fs::read_link(format!("/proc/{pid}/ns/net"))? != own {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    anyhow::bail!("unshare did not make a network namespace")
}

fn ip(args: &str) -> Result<()> {
    tools::run(Command::new("ip").args(args.split(' '))).map(drop)
}

fn in_network(pid: u32, args: &str) -> Result<()> {
    ensure!(pid != 0, "no process");
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--", "ip"]).args(args.split(' '));
    tools::run(&mut command).map(drop)
}

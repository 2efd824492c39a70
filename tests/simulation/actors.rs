//! What others do to Consul while Lictor runs: people, other tools, other clusters, and faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::consul::agent::Agent;
use crate::consul::store::{CatalogRegistration, Check, Node, Service, Store};
use crate::expected::{node_of, owner};
use crate::moves::FORMER_NODE;
use crate::oracle::{Origin, is_marked};
use crate::schedule::{LONG_NODE, NODES};
use crate::setup::{AGENT_NODE, CLUSTER, CLUSTER_UID, MARKER, Mode, UNWATCHED};
use crate::sim::State;
use crate::takeover::FORMER_UID;

/// A copy of the catalog, with what of it is foreign.
#[derive(Clone)]
pub struct Snapshot {
    store: Store,
    foreign: (BTreeSet<(String, String)>, BTreeSet<String>),
}

/// What ends after a while.
#[derive(Clone, Copy, Debug)]
pub enum Ends {
    DeniedWrites,
    FilteredReads,
    FailedSync,
}

/// The uid of another cluster that has our name.
const SECOND_UID: &str = "uid-2";

/// A node of nobody's in particular.
const OTHERS_NODE: &str = "vm-1";

impl State {
    /// Consul as it is before Lictor comes.
    pub fn set_up_consul(&mut self) {
        if self.setup.mode == Mode::Agent {
            self.consul.agent = Some(Agent::new(AGENT_NODE, "agent-id-1".to_owned()));
            self.agent_syncs();
        } else {
            // Another cluster, whose name begins with ours: its node x is our node b-x.
            if self.random.script.u8(..3) == 0 {
                self.make_node("c1-b-x", &[("managed-by", "lictor"), ("lictor-cluster", "c1-b")], true);
            }
            if self.setup.name_taken {
                let meta = [
                    ("managed-by", "lictor"),
                    ("lictor-cluster", CLUSTER),
                    ("lictor-cluster-uid", SECOND_UID),
                    ("lictor-term", "3"),
                ];
                self.make_node(MARKER, &meta, true);
            }
        }
        self.make_node(OTHERS_NODE, &[], true);
        for _ in 0..self.random.script.u8(..4) {
            self.add_foreign();
        }
        if !self.setup.watches(UNWATCHED) {
            self.add_unwatched();
        }
        self.observe(&Origin::Others);
    }

    fn make_node(&mut self, name: &str, meta: &[(&str, &str)], foreign: bool) {
        let meta = meta.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.consul.store.index += 1;
        self.consul.store.set_node(Node {
            node: name.to_owned(),
            address: "10.7.0.1".to_owned(),
            meta,
            ..Node::default()
        });
        if foreign {
            self.oracle.make_foreign_node(name);
        }
    }

    /// Somebody does something to Consul. What it leads to ends later.
    pub fn meddle(&mut self) -> Option<(Duration, Ends)> {
        let moves = self.setup.mode == Mode::Agent && self.random.script.u8(..12) == 0 && !self.taking_over;
        let what = self.random.script.u8(..100);
        let ends = match what {
            _ if moves => {
                if self.consul.former.is_some() {
                    self.end_former_agent();
                } else {
                    self.change_agent();
                }
                None
            }
            0..16 => self.on_ours(Self::delete_by_hand),
            16..32 => self.on_ours(Self::edit_by_hand),
            32..46 => self.on_ours(Self::flip_by_hand),
            46..54 => self.on_ours(Self::add_check),
            54..64 => {
                self.add_foreign();
                None
            }
            64..66 => self.on_ours(Self::usurp),
            66..68 => self.agent_takes_a_name(),
            68..72 => self.restart_consul(),
            72..77 => self.restore(),
            77..82 => self.restart_agent(),
            82..88 => {
                self.stats.count("denied writes");
                self.consul.denies_writes = true;
                Some(Ends::DeniedWrites)
            }
            88..95 => {
                self.stats.count("filtered reads");
                self.consul.filters_reads = true;
                Some(Ends::FilteredReads)
            }
            _ => {
                self.consul.sync_fails = true;
                Some(Ends::FailedSync)
            }
        };
        self.observe(&Origin::Others);
        let length = Duration::from_millis(self.random.script.u64(500..40_000));
        ends.map(|ends| (length, ends))
    }

    pub fn ends(&mut self, ends: Ends) {
        match ends {
            Ends::DeniedWrites => self.consul.denies_writes = false,
            Ends::FilteredReads => self.consul.filters_reads = false,
            Ends::FailedSync => self.consul.sync_fails = false,
        }
    }

    /// Another replica writes instances of ours, by a view of its own.
    pub fn change_ours(&mut self) {
        match self.random.leadership.u8(..3) {
            0 => self.on_ours(Self::delete_by_hand),
            1 => self.on_ours(Self::edit_by_hand),
            _ => self.on_ours(Self::flip_by_hand),
        };
    }

    /// The agent carries on what it has.
    pub fn agent_syncs(&mut self) {
        for agent in self.consul.agent.iter_mut().chain(&mut self.consul.former) {
            agent.sync(&mut self.consul.store);
        }
        self.observe(&Origin::Agent);
    }

    /// The agent compares all that it has with the catalog.
    pub fn agent_compares(&mut self) {
        for agent in self.consul.agent.iter_mut().chain(&mut self.consul.former) {
            agent.compare(&self.consul.store);
        }
    }

    /// Picks an instance of ours.
    fn on_ours(&mut self, act: impl FnOnce(&mut Self, &str, &Arc<Service>)) -> Option<Ends> {
        let ours = self.consul.store.services().filter(|(node, service)| {
            is_marked(service)
                && owner(&service.id).is_some()
                && !self.oracle.is_foreign(node, &service.id)
                && *node != FORMER_NODE
        });
        let all: Vec<(String, Arc<Service>)> = ours.map(|(node, service)| (node.to_owned(), service.clone())).collect();
        if let Some((node, service)) = self.random.script.choice(all) {
            self.stats.count("edits by hand");
            self.oracle.touch(&node, &service.id);
            self.trace(|| format!("by hand: {} on {node}", service.id));
            act(self, &node, &service);
        }
        None
    }

    fn delete_by_hand(&mut self, node: &str, service: &Arc<Service>) {
        let through_agent = self.random.script.bool();
        match &mut self.consul.agent {
            Some(agent) if through_agent => {
                agent.deregister(&service.id);
            }
            _ => {
                self.consul.store.index += 1;
                self.consul.store.delete_service(node, &service.id);
            }
        }
    }

    fn edit_by_hand(&mut self, node: &str, service: &Arc<Service>) {
        let mut edited = (**service).clone();
        match self.random.script.u8(..5) {
            0 => edited.tags.push("by-hand".to_owned()),
            1 => edited.port += 1,
            2 => edited.meta.retain(|key, _| key == "version"),
            3 => {
                edited.meta.remove("lictor-owner");
            }
            _ => edited.weights.passing = 7,
        }
        self.put_by_hand(node, edited);
    }

    fn put_by_hand(&mut self, node: &str, service: Service) {
        let through_agent = self.random.script.bool() || self.setup.mode == Mode::Agent;
        match &mut self.consul.agent {
            Some(agent) if through_agent => agent.register(service, None),
            _ => {
                self.consul.store.index += 1;
                // Its node may have gone with a restart.
                let _ = self.consul.store.set_service(node, service);
            }
        }
    }

    fn flip_by_hand(&mut self, node: &str, service: &Arc<Service>) {
        let id = format!("{}:readiness", service.id);
        let Some(check) = self.consul.store.check(node, &id) else { return };
        let mut check = (**check).clone();
        let flipped = if check.status == "passing" { "critical" } else { "passing" };
        flipped.clone_into(&mut check.status);
        if let Some(agent) = &mut self.consul.agent {
            agent.update(&id, flipped, "by hand");
        } else {
            self.consul.store.index += 1;
            self.consul.store.set_check(check).expect("its service is there");
        }
    }

    /// Somebody else's check on an instance of ours.
    fn add_check(&mut self, node: &str, service: &Arc<Service>) {
        let check = Check {
            node: self.consul.store.node(node).map_or_else(|| node.to_owned(), |node| node.node.clone()),
            check_id: format!("theirs:{}", service.id),
            name: "theirs".to_owned(),
            status: self.random.script.choice(["passing", "warning", "critical"]).unwrap_or_default().to_owned(),
            service_id: service.id.clone(),
            service_name: service.service.clone(),
            service_tags: service.tags.clone(),
            ..Check::default()
        };
        match &mut self.consul.agent {
            Some(agent) if agent.service(&service.id).is_some() => agent.add_check(check),
            Some(_) => {}
            None => {
                self.consul.store.index += 1;
                self.consul.store.set_check(check).expect("its service is there");
            }
        }
    }

    /// An instance that is none of ours, though it may look like one.
    fn add_foreign(&mut self) {
        let nth = self.random.script.u8(..6);
        let name = self.random.script.choice(["user", "api", "db_1"]).unwrap_or_default();
        let mark = |cluster: &str, uid: &str, owner: &str| -> BTreeMap<String, String> {
            [
                ("managed-by", "lictor"),
                ("lictor-cluster", cluster),
                ("lictor-cluster-uid", uid),
                ("lictor-owner", owner),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
        };
        let (id, meta) = match self.random.script.u8(..5) {
            0 => (format!("{name}-{nth}"), BTreeMap::new()),
            // Another cluster of our name.
            1 => (format!("c1:shop:r0:{name}:x{nth}:8080"), mark(CLUSTER, SECOND_UID, "shop/r0")),
            // Another cluster, whose name begins with ours.
            2 => (format!("c1-b:shop:r0:{name}:x{nth}:8080"), mark("c1-b", "uid-3", "shop/r0")),
            // Our mark, copied onto another ID.
            3 => (format!("copy-{nth}"), mark(CLUSTER, CLUSTER_UID, "shop/r0")),
            // An ID like ours, and nobody's.
            _ => (format!("c1:shop:r0:{name}:y{nth}:8080"), BTreeMap::new()),
        };
        self.put_foreign(&id, name, meta);
    }

    /// An instance of a Lictor like us that watches another namespace.
    fn add_unwatched(&mut self) {
        let owner = format!("{UNWATCHED}/r0");
        let meta = [
            ("managed-by", "lictor"),
            ("lictor-cluster", CLUSTER),
            ("lictor-cluster-uid", CLUSTER_UID),
            ("lictor-owner", &owner),
        ];
        let meta = meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        self.put_foreign(&format!("c1:{UNWATCHED}:r0:user:z1:8080"), "user", meta);
    }

    fn put_foreign(&mut self, id: &str, name: &str, meta: BTreeMap<String, String>) {
        let service = Service {
            id: id.to_owned(),
            service: name.to_owned(),
            tags: vec!["theirs".to_owned()],
            address: "10.8.0.1".to_owned(),
            port: 9000,
            meta,
            ..Service::default()
        };
        // None that is empty: between Lictor's last look at such a node and its deletion nothing can be done.
        let in_use =
            self.consul.store.nodes().filter(|node| self.consul.store.services_on(&node.node).next().is_some());
        let nodes: Vec<String> = in_use.map(|node| node.node.clone()).collect();
        let node = if self.consul.agent.is_some() && self.random.script.bool() {
            AGENT_NODE.to_owned()
        } else {
            let node = self.random.script.choice(nodes).unwrap_or_else(|| OTHERS_NODE.to_owned());
            if [AGENT_NODE, FORMER_NODE].contains(&&*node) { OTHERS_NODE.to_owned() } else { node }
        };
        if self.consul.store.service(&node, id).is_some() {
            return;
        }
        // What others register with an ID like ours on a node of ours counts as a change by hand.
        let is_own = self.consul.store.node(&node).is_some_and(|node| self.is_own_node(node));
        let is_left = |node: &Arc<Node>| node.meta.get("lictor-cluster-uid").is_some_and(|uid| uid == FORMER_UID);
        let will_be_own = is_own || self.consul.store.node(&node).is_some_and(is_left);
        let is_second = service.meta.get("lictor-cluster-uid").is_some_and(|uid| uid == SECOND_UID);
        if self.setup.mode == Mode::Catalog && will_be_own && is_second && owner(id).is_some() {
            self.stats.count("strange marks on nodes of ours");
            self.oracle.dispute(&node, id);
        } else {
            self.stats.count("foreign instances");
            self.oracle.make_foreign(&node, id);
        }
        match &mut self.consul.agent {
            Some(agent) if node == AGENT_NODE => agent.register(service, None),
            _ => {
                self.consul.store.index += 1;
                if self.consul.store.node(&node).is_none() {
                    self.make_node(&node, &[], true);
                }
                if is_own && self.random.script.u8(..3) == 0 {
                    self.register_plainly(&node, service);
                } else {
                    self.consul.store.set_service(&node, service).expect("its node is there");
                }
            }
        }
    }

    /// Registers as Consul's documentation shows it: the node becomes what the registration says, and loses its meta.
    fn register_plainly(&mut self, node: &str, service: Service) {
        self.stats.count("nodes emptied of their meta");
        self.trace(|| format!("a plain registration on {node}"));
        let node = if self.random.script.u8(..4) == 0 { node.to_uppercase() } else { node.to_owned() };
        let rack = ("rack".to_owned(), "7".to_owned());
        let wanted = CatalogRegistration {
            node,
            address: "10.8.0.9".to_owned(),
            node_meta: self.random.script.bool().then_some(rack).into_iter().collect(),
            skip_node_update: false,
            service: Some(service),
        };
        self.consul.store.register(wanted).expect("its node is there");
    }

    /// A Consul agent joins under the name of a node of ours, or of one that we have yet to make: it deletes what it
    /// does not know there, and puts its own meta on the node.
    fn agent_takes_a_name(&mut self) -> Option<Ends> {
        if self.setup.mode == Mode::Agent || std::mem::replace(&mut self.agent_has_come, true) {
            return None;
        }
        let node = node_of(self.random.script.choice(NODES)?);
        if self.oracle.is_foreign_node(&node) {
            return None;
        }
        self.stats.count("agents under a name of ours");
        self.trace(|| format!("an agent joins as {node}"));
        self.oracle.make_foreign_node(&node);
        self.make_node(&node, &[("consul-version", "1.22.7")], true);
        let store = &mut self.consul.store;
        let unknown: Vec<String> = store.services_on(&node).map(|service| service.id.clone()).collect();
        for id in unknown {
            store.delete_service(&node, &id);
        }
        let check = Check { node, check_id: "serfHealth".to_owned(), status: "passing".to_owned(), ..Check::default() };
        store.set_check(check).expect("its node is there");
        None
    }

    /// While no Lictor lives: all on a node of ours stands where one put it that knew nothing of long names. It raised the
    /// term before it wrote, so that nothing lands late that another one had sent.
    pub fn move_to_long_names(&mut self) {
        let node = node_of(LONG_NODE);
        let Some(there) = self.consul.store.node(&node).filter(|there| self.is_own_node(there)).cloned() else {
            return;
        };
        self.stats.count("nodes with long names");
        self.raise_term();
        let long = format!("{CLUSTER}-{LONG_NODE}");
        self.trace(|| format!("all of {node} stands on {long}"));
        let services: Vec<Arc<Service>> = self.consul.store.services_on(&node).cloned().collect();
        let checks: Vec<Arc<Check>> = self.consul.store.checks_on(&node).cloned().collect();
        let store = &mut self.consul.store;
        store.index += 1;
        store.set_node(Node { node: long.clone(), ..(*there).clone() });
        for service in &services {
            store.set_service(&long, (**service).clone()).expect("its node is there");
        }
        for check in checks {
            store.set_check(Check { node: long.clone(), ..(*check).clone() }).expect("its service is there");
        }
        for service in services {
            self.consul.store.delete_service(&node, &service.id);
            if self.oracle.is_foreign(&node, &service.id) {
                self.oracle.make_foreign(&long, &service.id);
            }
        }
        self.observe(&Origin::Others);
    }

    /// Another cluster takes an instance of ours over. On a node of ours that is an edit by hand as others are.
    fn usurp(&mut self, node: &str, service: &Arc<Service>) {
        self.stats.count("instances usurped");
        if self.setup.mode == Mode::Catalog && !self.consul.store.node(node).is_some_and(|node| self.is_own_node(node))
        {
            return;
        }
        let mut theirs = (**service).clone();
        theirs.meta.insert("lictor-cluster-uid".to_owned(), SECOND_UID.to_owned());
        let lost = self.consul.agent.as_ref().is_some_and(|agent| agent.service(&service.id).is_none());
        if !lost {
            if self.setup.mode == Mode::Agent {
                // Whoever of the two writes last has it, until Lictor sees whose it is.
                self.oracle.dispute(node, &service.id);
            }
            self.put_by_hand(node, theirs);
        }
    }

    /// A server in memory restarts: everything is gone.
    fn restart_consul(&mut self) -> Option<Ends> {
        if self.setup.name_taken {
            return None;
        }
        self.stats.count("Consul emptied");
        self.trace(|| "Consul is emptied");
        // What is on its way to a server dies with it.
        self.consul_epoch += 1;
        // Its Raft log begins anew, though hardly just so that the marker comes to stand where it stood.
        self.consul.store = Store::default();
        self.consul.store.index = self.consul_epoch * 1_000;
        self.oracle.set_foreign(Default::default());
        self.snapshot = None;
        self.consul.former = None;
        self.new_agent();
        None
    }

    fn new_agent(&mut self) {
        if self.consul.agent.is_some() {
            let id = format!("agent-id-{}", self.random.script.u32(..));
            self.consul.agent = Some(Agent::new(AGENT_NODE, id));
        }
    }

    /// Puts the catalog back to an earlier state, or keeps this one for later.
    fn restore(&mut self) -> Option<Ends> {
        if self.taking_over {
            return None;
        }
        match self.snapshot.take() {
            Some(snapshot) if self.random.script.u8(..3) > 0 => {
                self.stats.count("snapshots restored");
                self.trace(|| "an older snapshot is restored");
                self.oracle.forget_retained();
                let index = self.consul.store.index;
                self.consul.store = snapshot.store;
                self.consul.store.index = index + 1;
                let of_agent = |node: &str| [AGENT_NODE, FORMER_NODE].contains(&node);
                let mut foreign = snapshot.foreign;
                // What is with the agent stays what it is.
                let with_agent = self.oracle.foreign().0.into_iter().filter(|(node, _)| of_agent(node));
                foreign.0.extend(with_agent);
                self.oracle.set_foreign(foreign);
                self.find_former_agent_dead();
            }
            _ => {
                let mut store = self.consul.store.clone();
                store.take_changes();
                self.snapshot = Some(Snapshot { store, foreign: self.oracle.foreign() });
            }
        }
        None
    }

    fn restart_agent(&mut self) -> Option<Ends> {
        if self.setup.mode == Mode::Agent {
            self.stats.count("agents restarted");
            self.trace(|| "the agent restarts");
            if self.random.script.u8(..4) == 0 {
                let foreign = self.oracle.foreign();
                let (with_agent, elsewhere): (BTreeSet<_>, BTreeSet<_>) =
                    foreign.0.into_iter().partition(|(node, _)| node == AGENT_NODE);
                drop(with_agent);
                self.oracle.set_foreign((elsewhere, foreign.1));
                self.new_agent();
            } else if let Some(agent) = &mut self.consul.agent {
                agent.restart();
            }
        }
        None
    }
}

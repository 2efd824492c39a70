//! What a seed decides once, for the whole of its run.

use std::sync::Arc;
use std::time::Duration;

use lictor::engine::TURN;
use lictor::model::ids::{ClusterName, Identity};
use lictor::model::pattern::Pattern;
use lictor::model::policy::{Policy, Rule};
use lictor::model::resource::Limits;
use lictor::state::event::Scope;
use lictor::state::world::World;

use crate::planted_faults::PlantedFault;

/// The cluster that Lictor acts for.
pub const CLUSTER: &str = "c1";
pub const CLUSTER_UID: &str = "uid-1";
/// What every ID of ours begins with.
pub const PREFIX: &str = "c1:";
/// The marker node, in `catalog` mode.
pub const MARKER: &str = "lictor-c1";
/// The agent's node, in `agent` mode.
pub const AGENT_NODE: &str = "agent-1";

/// Namespaces that resources are made in.
pub const NAMESPACES: [&str; 2] = ["shop", "team"];
/// A namespace that is not watched where Lictor watches namespaces and not the whole cluster.
pub const UNWATCHED: &str = "apart";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Agent,
    Catalog,
}

/// What Lictor may ask about the definition of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdRights {
    /// The definition itself.
    Reads,
    /// Discovery.
    Discovers,
    /// Nothing.
    None,
}

/// Writes of some instances fail whenever they are tried, and those of others do not.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// One of so many instances, by its ID.
    share: u8,
    pub by: By,
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// It is lost on its way.
    Loss,
    /// No request can be made of it.
    Length,
    /// This status.
    Status(u16),
}

impl By {
    const ALL: [Self; 6] =
        [Self::Loss, Self::Length, Self::Status(500), Self::Status(403), Self::Status(413), Self::Status(502)];
}

impl Failing {
    /// Whether it is about this instance.
    pub fn includes(self, id: &str) -> bool {
        id.bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte)) % self.share == 0
    }
}

/// The outline of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub mode: Mode,
    pub scopes: Vec<Scope>,
    /// How long things go on changing.
    pub length: Duration,
    /// The mean time between changes.
    pub pace: Duration,
    /// Whether anything goes wrong besides.
    pub faults: bool,
    /// Whether another cluster has our name, in `catalog` mode: then nothing of ours may be written.
    pub name_taken: bool,
    /// Whether Lictor is told of the agent that was there before, should it be led to another one.
    pub former_named: bool,
    /// What the administrator allows resources.
    pub limits: Limits,
    /// How Lictor may find out whether the definition of its kind is being deleted.
    pub crd_rights: CrdRights,
    /// How the writes of some instances fail, always and by themselves.
    pub failing: Option<Failing>,
    /// How long Lictor keeps most instances passing that stop being ready at once.
    pub hold_mass_unready: Duration,
    /// Whether Lictor acts only while it leads.
    pub elects: bool,
    /// How many instances each part of a turn of the engine's loop takes on.
    pub turn: usize,
    /// Whether things happen that take several steps.
    pub incidents: bool,
    /// Whether the cluster was built anew under its name, and what the one before has left in Consul is taken over.
    pub rebuilt: bool,
    /// Whether the policy forbids `Retain`. Whoever deletes a resource asks for it then.
    pub forbids_retain: bool,
    /// How many transactions Consul gets at once, in the catalog.
    pub transactions: usize,
    /// A fault of the product's that is to be caught.
    pub planted: Option<PlantedFault>,
}

impl Setup {
    /// The policy: addresses of every network are allowed.
    pub fn policy(&self) -> Arc<Policy> {
        let networks = ["0.0.0.0/0", "::/0"].map(|network| network.parse().expect("a network")).into();
        let all = Pattern::parse("*").expect("a pattern");
        let rule = Rule { name: "all".into(), namespaces: vec![all], retain: Some(false), ..Rule::default() };
        Arc::new(Policy { networks, rules: self.forbids_retain.then(|| vec![rule]), ..Policy::default() })
    }

    /// What Lictor knows at first. In the catalog, Nodes say where instances go.
    pub fn world(&self) -> World {
        let nodes = self.mode == Mode::Catalog && self.planted != Some(PlantedFault::AnyNode);
        World::new(self.scopes.iter().cloned(), nodes).under(self.policy())
    }

    pub fn draw(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // A source of its own: other seeds go as they went before.
        let mut seldom = fastrand::Rng::with_seed(!seed);
        let mode = if random.bool() { Mode::Agent } else { Mode::Catalog };
        let scopes = if random.u8(..3) == 0 {
            NAMESPACES.iter().map(|namespace| Scope::Namespace((*namespace).into())).collect()
        } else {
            vec![Scope::All]
        };
        let limits = Limits {
            instances: if random.u8(..6) == 0 { random.usize(2..6) } else { 5_000 },
            shares_name: random.u8(..3) == 0,
            verify_endpoints: random.u8(..4) == 0,
            only_keeps: false,
            ..Limits::default()
        };
        let mut setup = Self {
            seed,
            mode,
            scopes,
            limits,
            length: Duration::from_secs(random.u64(30..180)),
            pace: Duration::from_millis(random.u64(500..5_000)),
            faults: random.u8(..8) > 0,
            name_taken: mode == Mode::Catalog && random.u8(..40) == 0,
            crd_rights: match random.u8(..6) {
                0..3 => CrdRights::Reads,
                3..5 => CrdRights::Discovers,
                _ => CrdRights::None,
            },
            failing: (random.u8(..6) == 0)
                .then(|| Failing { share: random.u8(2..6), by: *random.choice(&By::ALL).expect("some") }),
            former_named: random.bool(),
            hold_mass_unready: Duration::from_secs(if random.bool() { 0 } else { random.u64(1..40) }),
            elects: random.u8(..3) == 0,
            turn: if random.bool() { random.usize(1..6) } else { TURN },
            incidents: seldom.u8(..4) == 0,
            rebuilt: false,
            forbids_retain: false,
            transactions: 4,
            planted: None,
        };
        if seldom.u8(..20) == 0 {
            setup.is_rebuilt();
        }
        setup.forbids_retain = seldom.u8(..10) == 0;
        setup.transactions = seldom.usize(1..=4);
        setup
    }

    /// Has the cluster built anew, unless what is left of the one before could not be taken over.
    pub fn is_rebuilt(&mut self) {
        self.rebuilt = !self.name_taken && self.failing.is_none();
    }

    pub fn identity() -> Identity {
        let cluster = ClusterName::new(CLUSTER).expect("a DNS label");
        Identity { cluster, uid: CLUSTER_UID.into() }
    }

    /// Whether Lictor watches this namespace.
    pub fn watches(&self, namespace: &str) -> bool {
        self.scopes.iter().any(|scope| scope.covers(namespace))
    }
}

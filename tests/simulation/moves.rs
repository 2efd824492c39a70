//! The agent's address leads to another agent, while the one before lives on with what was registered with it, or dies.

use crate::consul::agent::Agent;
use crate::consul::store::Check;
use crate::expected::owner;
use crate::oracle::is_marked;
use crate::setup::AGENT_NODE;
use crate::sim::State;

/// The node of the agent that was there before.
pub const FORMER_NODE: &str = "agent-0";

impl State {
    /// Somebody leads Lictor to another agent. The one before keeps all that it has, and its node another name: so the
    /// present one is always called the same.
    pub fn change_agent(&mut self) {
        let never = self.consul.former.is_none() && self.consul.store.node(FORMER_NODE).is_none();
        let Some(agent) = self.consul.agent.take_if(|_| never) else { return };
        self.stats.count("agents changed for another one");
        self.trace(|| "another agent");
        let mut former = agent.renamed(FORMER_NODE);
        self.consul.store.index += 1;
        self.consul.store.delete_node(AGENT_NODE);
        former.sync(&mut self.consul.store);
        self.consul.former = Some(former);
        let (foreign, nodes) = self.oracle.foreign();
        let moved = |(node, id): (String, String)| (if node == AGENT_NODE { FORMER_NODE.to_owned() } else { node }, id);
        self.oracle.set_foreign((foreign.into_iter().map(moved).collect(), nodes));
        self.oracle.forget_shown();
        let id = format!("agent-id-{}", self.random.script.u32(..));
        self.consul.agent = Some(Agent::new(AGENT_NODE, id));
    }

    /// The one before ends for good: Consul's servers find that out.
    pub fn end_former_agent(&mut self) {
        if self.consul.former.take().is_some() {
            self.stats.count("agents of before that died");
            self.trace(|| "the agent of before dies");
        }
        self.find_former_agent_dead();
    }

    /// What the servers make of an agent that does not answer.
    pub fn find_former_agent_dead(&mut self) {
        if self.consul.former.is_none() && self.consul.store.node(FORMER_NODE).is_some() {
            let dead = Check {
                node: FORMER_NODE.to_owned(),
                check_id: "serfHealth".to_owned(),
                name: "Serf Health Status".to_owned(),
                status: "critical".to_owned(),
                ..Check::default()
            };
            self.consul.store.index += 1;
            self.consul.store.set_check(dead).expect("its node is there");
        }
    }

    /// Whether what the agent of before holds can only be told of: it lives, and nobody has named it.
    pub fn former_is_out_of_reach(&self) -> bool {
        self.consul.former.is_some() && !self.setup.former_named
    }

    /// Whether the agent of before holds instances of a resource.
    pub fn former_holds(&self, key: &lictor::model::ids::ResourceKey) -> bool {
        let held = self.consul.store.services_on(FORMER_NODE);
        held.into_iter().any(|service| {
            let ours = is_marked(service) && !self.oracle.is_foreign(FORMER_NODE, &service.id);
            ours && owner(&service.id).as_ref() == Some(key)
        })
    }
}

//! What this cluster has registered with other agents, as after a change of the agent's address.
//!
//! In: the catalog. Out: our rows on other agents' nodes, and what became of operations on them. An agent owns its node
//! and brings back what somebody else deletes there, so it has to deregister an instance itself. Which agents are asked
//! is the administrator's decision: a request carries our token, and whoever may write a node to the catalog chooses the
//! address that stands there.

use super::write::{OpResult, op_result};
use super::{Agent, name_and_id};
use crate::consul::client::path;
use crate::consul::marked::marked_rows;
use crate::consul::wire::{AgentSelf, By, Check, TxnOp, txn_body};
use crate::model::diff::Op;
use crate::model::health::Health;
use crate::model::ids::{Str, meta};
use crate::model::registration::RowKey;
use crate::ports::{Bundle, Outcome, Rows, Unavailable};

/// The check by which Consul's servers tell whether the agent of a node lives.
const SERF_HEALTH: &str = "serfHealth";

/// Says how the instances on another node are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through its agent, which the administrator has named; its place among those.
    Agent(usize),
    /// In the catalog, where no living agent brings them back.
    Catalog,
    /// Through its agent, which lives and which nobody has named.
    Unnamed,
}

/// Decides how to change what is on a node. `named` is the agent of that node, `serf` is what the servers say of it; a
/// node without that check has no agent.
fn way(named: Option<usize>, serf: Option<Health>) -> Way {
    match (named, serf) {
        (Some(place), _) => Way::Agent(place),
        (None, Some(Health::Passing | Health::Warning)) => Way::Unnamed,
        (None, Some(Health::Critical) | None) => Way::Catalog,
    }
}

impl Agent {
    /// The node, where it is another one than that of the agent that we talk to.
    pub(super) fn is_elsewhere(&self, node: &str) -> bool {
        let known = self.known();
        known.current.as_ref().and_then(name_and_id).is_some_and(|(own, _)| own != node)
    }

    /// Reads what carries our mark on other nodes than the agent's own. Nodes of our own making are left out: those
    /// are of the other mode. `only` limits it to one node.
    pub(super) async fn rows_elsewhere(&self, own: &Str, only: Option<&Str>) -> Result<Rows, Unavailable> {
        let cluster = self.identity.cluster.as_str();
        let mut filter = format!("NodeMeta[\"{}\"] != \"{cluster}\"", meta::CLUSTER);
        // Consul takes any name for a node, and a filter has no quotes within quotes.
        let can_be_quoted = |name: &Str| !name.contains(['"', '\\']);
        if let Some(only) = only.filter(|only| can_be_quoted(only)) {
            filter = format!("{filter} and Node == \"{only}\"");
        } else if can_be_quoted(own) {
            filter = format!("{filter} and Node != \"{own}\"");
        }
        let found = marked_rows(&self.client, &self.identity, By::Agent, Some(&filter)).await?.into_iter();
        let elsewhere = found
            .filter(|(node, key, _)| key.node != *own && node.meta(meta::CLUSTER) != cluster)
            .filter(|(_, key, _)| only.is_none_or(|only| key.node == *only));
        Ok(elsewhere.map(|(_, key, row)| (key, row)).collect())
    }

    /// Carries out a bundle for the node of another agent. What goes wrong there is about these instances and not about
    /// Consul: nothing else waits for it.
    pub(super) async fn carry_out_elsewhere(&self, bundle: &Bundle) -> Vec<Outcome> {
        let all = |outcome: Outcome| vec![outcome; bundle.ops.len()];
        let (named, mut silent) = self.named(&bundle.node).await;
        let health = match self.serf_health(&bundle.node).await {
            Ok(health) => health,
            Err(outage) => return all(Outcome::NotTried(outage)),
        };
        match way(named, health) {
            Way::Agent(place) => {
                let (address, agent) = &self.previous[place];
                let outcomes = agent.carry_out(bundle).await.into_iter();
                outcomes.map(|outcome| alone(outcome, &format!("the Consul agent at {address}"))).collect()
            }
            Way::Catalog => {
                let mut outcomes = Vec::with_capacity(bundle.ops.len());
                for op in &bundle.ops {
                    match self.change_catalog(op).await {
                        OpResult::Done { .. } => outcomes.push(Outcome::Written { shown: true }),
                        OpResult::Refused(words) => outcomes.push(Outcome::Refused(words)),
                        OpResult::Doubtful(outage) => outcomes.push(Outcome::Unknown(outage)),
                        OpResult::Lost(outage) => {
                            outcomes.push(Outcome::Unknown(outage.clone()));
                            outcomes.resize(bundle.ops.len(), Outcome::NotTried(outage));
                            break;
                        }
                        OpResult::Stop(outage) => {
                            outcomes.resize(bundle.ops.len(), Outcome::NotTried(outage));
                            break;
                        }
                    }
                }
                outcomes
            }
            Way::Unnamed => {
                silent.insert(
                    0,
                    format!(
                        "the Consul agent {} holds this instance, and only that agent can deregister it",
                        bundle.node
                    ),
                );
                let why = silent.join("; ");
                let remedy = |op: &Op| {
                    let id = &op.key().id;
                    format!(
                        "{why}: start Lictor with --previous-agent and that agent's address, or run \"consul services \
                         deregister -id={id}\" on its machine"
                    )
                };
                bundle.ops.iter().map(|op| Outcome::Refused(remedy(op))).collect()
            }
        }
    }

    /// Finds which of the agents that were named is this node's, and says what is wrong with those that do not answer.
    async fn named(&self, node: &str) -> (Option<usize>, Vec<String>) {
        let mut silent = Vec::new();
        for (place, (address, agent)) in self.previous.iter().enumerate() {
            match agent.client.get::<AgentSelf>(path(&["agent", "self"], &[])).await {
                Ok(answer) if answer.value.config.node_name.as_deref() == Some(node) => return (Some(place), silent),
                Ok(_) => {}
                Err(outage) => silent.push(format!("the one at {address} does not answer: {outage}")),
            }
        }
        (None, silent)
    }

    async fn serf_health(&self, node: &str) -> Result<Option<Health>, Unavailable> {
        let checks = self.client.get::<Option<Vec<Check>>>(path(&["health", "node", node], &[])).await?.value;
        let found = checks.into_iter().flatten().find(|check| check.id.as_deref() == Some(SERF_HEALTH));
        Ok(found.map(|check| Health::parse(check.status.as_deref().unwrap_or_default())))
    }

    /// Changes an instance that no agent holds.
    async fn change_catalog(&self, op: &Op) -> OpResult {
        let RowKey { node, id } = op.key();
        let body = match op {
            Op::Deregister { service, .. } => txn_body(&[TxnOp::service_delete(node, id, service)]),
            // Of one that is gone the first fails.
            Op::Register { registration, .. }
            | Op::Readiness { registration, .. }
            | Op::Disown { registration, .. } => {
                txn_body(&[TxnOp::service_get(node, id), TxnOp::service_set(node, id, registration)])
            }
        };
        op_result(self.client.transact(body).await.map(drop))
    }
}

/// Gives the outcome of an operation that failed for a reason of its own. A second attempt does no harm, and until
/// then the row counts as it was read last.
fn alone(outcome: Outcome, who: &str) -> Outcome {
    match outcome {
        Outcome::NotTried(outage) | Outcome::Unknown(outage) => Outcome::Refused(format!("{who}: {outage}")),
        Outcome::Written { .. } | Outcome::Refused(_) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_agent_has_to_be_asked_itself() {
        for (named, serf, expected) in [
            (None, Some(Health::Passing), Way::Unnamed),
            (None, Some(Health::Warning), Way::Unnamed),
            (None, Some(Health::Critical), Way::Catalog),
            (None, None, Way::Catalog),
            (Some(1), Some(Health::Passing), Way::Agent(1)),
            (Some(0), Some(Health::Critical), Way::Agent(0)),
            (Some(0), None, Way::Agent(0)),
        ] {
            assert_eq!(way(named, serf), expected, "{named:?} {serf:?}");
        }
    }
}

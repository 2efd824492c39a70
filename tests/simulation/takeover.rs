//! The cluster is built anew under its name: what the one before has left in Consul, some of it alive and some not, is taken
//! over before Lictor begins.

use std::sync::Arc;
use std::time::Duration;

use lictor::consul::agent::Agent;
use lictor::consul::agent::takeover::AgentTakeover;
use lictor::consul::catalog::Catalog;
use lictor::consul::catalog::takeover::CatalogTakeover;
use lictor::consul::takeover::Takeover;
use lictor::ports::Unavailable;
use tokio::time::sleep;

use crate::consul::store::{Check, Node, Service};
use crate::expected::Expected;
use crate::network::Network;
use crate::oracle::Origin;
use crate::planted_faults::PlantedFault;
use crate::setup::{CLUSTER, MARKER, Mode, Setup};
use crate::sim::{Sim, State};

/// The life that the command counts as: before all lives of Lictor.
pub const LIFE: u32 = 0;

/// The uid of the cluster that was there before.
pub const FORMER_UID: &str = "uid-0";

/// How long the command watches for a Lictor of the cluster before.
const WATCHES: Duration = Duration::from_secs(5);

/// Takes over what is left, again and again until all of it is taken.
pub async fn take_over(sim: &Sim) {
    let setup = sim.state().setup.clone();
    if !setup.rebuilt || setup.planted == Some(PlantedFault::NoTakeover) {
        return;
    }
    loop {
        let network = Arc::new(Network::new(sim.clone(), LIFE));
        let identity = Setup::identity();
        let takeover: Box<dyn Takeover> = match setup.mode {
            Mode::Agent => Box::new(AgentTakeover::new(Agent::new(identity, network), &FORMER_UID.into())),
            Mode::Catalog => Box::new(CatalogTakeover::new(Catalog::new(identity, network, 1), &FORMER_UID.into())),
        };
        match attempt(&*takeover).await {
            Ok(true) => break,
            Ok(false) => sim.state().stats.count("takeovers that left something"),
            Err(words) => {
                sim.state().stats.count("takeovers that failed");
                sim.state().trace(|| format!("the takeover failed: {words}"));
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
    sim.state().taking_over = false;
}

/// Answers whether nothing is left.
async fn attempt(takeover: &dyn Takeover) -> Result<bool, Unavailable> {
    if takeover.survey().await?.is_empty() {
        return Ok(true);
    }
    if takeover.challenge().await? {
        sleep(WATCHES).await;
        if takeover.is_answered().await? {
            return Ok(false);
        }
    }
    takeover.take().await?;
    Ok(false)
}

impl State {
    /// Some of what the resources want stands there by the hand of the cluster before; beside some, one that is gone.
    pub fn leave_behind(&mut self) {
        self.stats.count("clusters built anew");
        let wants = self.wants();
        let all: Vec<((String, String), Expected)> = wants
            .values()
            .filter_map(crate::expected::Want::rows)
            .flatten()
            .map(|(place, expected)| (place.clone(), expected.clone()))
            .collect();
        for ((node, _), expected) in all {
            let mut gone = expected.clone();
            let target = expected.service.id.rsplit(':').nth(1).unwrap_or_default().to_owned();
            gone.service.id = expected.service.id.replace(&format!(":{target}:"), &format!(":gone-{target}:"));
            "10.99.0.1".clone_into(&mut gone.service.address);
            for left in [expected, gone] {
                if self.random.script.bool() {
                    self.leave(&node, left);
                }
            }
        }
        if self.setup.mode == Mode::Catalog {
            self.leave_node(MARKER, &[("lictor-term", "7")]);
        }
        self.agent_syncs();
        self.observe(&Origin::Others);
    }

    fn leave_node(&mut self, name: &str, more: &[(&str, &str)]) {
        let mark = [("managed-by", "lictor"), ("lictor-cluster", CLUSTER), ("lictor-cluster-uid", FORMER_UID)];
        let meta = mark.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.consul.store.index += 1;
        self.consul.store.set_node(Node {
            node: name.to_owned(),
            address: "10.9.9.9".to_owned(),
            meta,
            ..Node::default()
        });
    }

    fn leave(&mut self, node: &str, Expected { mut service, readiness }: Expected) {
        service.meta.insert("lictor-cluster-uid".to_owned(), FORMER_UID.to_owned());
        let check = |node: &str, service: &Service| Check {
            node: node.to_owned(),
            check_id: format!("{}:readiness", service.id),
            name: "Kubernetes readiness".to_owned(),
            status: "passing".to_owned(),
            kind: "kubernetes-readiness".to_owned(),
            service_id: service.id.clone(),
            service_name: service.service.clone(),
            service_tags: service.tags.clone(),
            ..Check::default()
        };
        if let Some(agent) = &mut self.consul.agent {
            let check = readiness.map(|_| Check { kind: "ttl".to_owned(), ..check(node, &service) });
            agent.register(service, check);
            return;
        }
        let node = if node == crate::expected::SHARD { format!("{node}-7") } else { node.to_owned() };
        if self.consul.store.node(&node).is_none() {
            self.leave_node(&node, &[]);
        }
        if self.oracle.is_foreign_node(&node) {
            return;
        }
        let check = readiness.map(|_| check(&node, &service));
        self.consul.store.set_service(&node, service).expect("its node is there");
        if let Some(check) = check {
            self.consul.store.set_check(check).expect("its service is there");
        }
    }
}

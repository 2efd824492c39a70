//! Checks as Consul's JSON shows them, and what they say of an instance.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::model::health::Health;
use crate::model::ids::{READINESS, Str, check_name};

/// A check, as `/v1/agent/checks` and `/v1/health/node` show it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    /// Unique on its node.
    #[serde(rename = "CheckID")]
    pub id: Option<String>,
    /// `passing`, `warning`, `critical`.
    pub status: Option<String>,
    /// The check's last output.
    pub output: Option<String>,
    /// Empty for a check of the node itself.
    #[serde(rename = "ServiceID")]
    pub service_id: Option<String>,
    /// Says what consul-esm is to do. An agent keeps this to itself.
    pub definition: Option<Definition>,
    /// The Raft index of its last change, in the catalog.
    pub modify_index: Option<u64>,
}

/// Holds what consul-esm goes by of a check's definition.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
pub struct Definition {
    /// The URL of an HTTP check.
    pub http: Option<String>,
    /// An address and port.
    pub tcp: Option<String>,
    /// An address and port, and a service.
    pub grpc: Option<String>,
}

impl Check {
    /// Says whether consul-esm runs it where its node's meta says so.
    #[must_use]
    pub fn is_for_esm(&self) -> bool {
        let targets =
            self.definition.iter().flat_map(|definition| [&definition.http, &definition.tcp, &definition.grpc]);
        targets.flatten().any(|target| !target.is_empty())
    }

    /// Says whether it is the check by which the servers watch a Consul agent: its node is the agent's
    /// (`structs.SerfCheckID`).
    #[must_use]
    pub fn is_of_agent(&self) -> bool {
        self.instance().is_none() && self.id.as_deref() == Some("serfHealth")
    }

    /// The instance that it is of; none for a check of the node itself.
    fn instance(&self) -> Option<&str> {
        self.service_id.as_deref().filter(|id| !id.is_empty())
    }

    /// Gives the check's name from its ID, if the ID is of our making.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        check_name(self.instance()?, self.id.as_deref()?)
    }
}

/// Holds what the checks of one node say, by service ID.
#[derive(Debug, Default)]
pub struct Healths(BTreeMap<String, InstanceHealth>);

#[derive(Clone, Debug)]
struct InstanceHealth {
    worst: Health,
    readiness: Option<Health>,
    /// The names of our other checks.
    checks: BTreeSet<Str>,
}

impl Healths {
    /// Sorts the checks of a node by service; those of the node itself say nothing about an instance.
    #[must_use]
    pub fn new(checks: impl IntoIterator<Item = Check>) -> Self {
        let mut healths: BTreeMap<String, InstanceHealth> = BTreeMap::new();
        for check in checks {
            let status = Health::parse(check.status.as_deref().unwrap_or_default());
            let name = check.name().map(Str::from);
            let Some(service) = check.service_id.filter(|id| !id.is_empty()) else { continue };
            let none = InstanceHealth { worst: Health::Passing, readiness: None, checks: BTreeSet::new() };
            let health = healths.entry(service).or_insert(none);
            health.worst = health.worst.max(status);
            match name {
                Some(name) if *name == *READINESS => health.readiness = Some(status),
                Some(name) => {
                    health.checks.insert(name);
                }
                None => {}
            }
        }
        Self(healths)
    }

    /// The worst of an instance's checks; passing where it has none.
    #[must_use]
    pub fn worst(&self, id: &str) -> Health {
        self.0.get(id).map_or(Health::Passing, |health| health.worst)
    }

    /// Gives the state of an instance's readiness check, if it has one.
    #[must_use]
    pub fn readiness(&self, id: &str) -> Option<Health> {
        self.0.get(id)?.readiness
    }

    /// The names of our other checks of an instance.
    #[must_use]
    pub fn checks(&self, id: &str) -> BTreeSet<Str> {
        self.0.get(id).map_or_else(BTreeSet::new, |health| health.checks.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_as_healthy_as_its_worst_check() {
        let check = |id: &str, service: &str, status: &str| Check {
            id: Some(id.to_owned()),
            service_id: Some(service.to_owned()),
            status: Some(status.to_owned()),
            ..Check::default()
        };
        let healths = Healths::new([
            check("serfHealth", "", "critical"),
            check("a:readiness", "a", "passing"),
            check("a:web:http", "a", "warning"),
            check("b:web:http", "b", "maintenance"),
        ]);
        assert_eq!((healths.worst("a"), healths.readiness("a")), (Health::Warning, Some(Health::Passing)));
        assert_eq!((healths.worst("b"), healths.readiness("b")), (Health::Critical, None));
        assert_eq!((healths.worst("c"), healths.readiness("c")), (Health::Passing, None));
        assert_eq!(healths.checks("a"), ["web:http".into()].into());
    }
}

//! The instances of one service as everybody may read them, with what each check says.
//!
//! In: a name, or a filter in Consul's language. Out: what the catalog shows, whoever registered it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::client::{Client, path};
use super::wire::{By, Check, Healths, Node, Pool, Service};
use crate::model::health::Health;
use crate::model::ids::{Str, check_name};
use crate::model::registration::Registration;
use crate::ports::Unavailable;

/// An instance that the catalog shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The Consul node that it is on.
    pub node: Str,
    /// Its ID.
    pub id: Str,
    /// The registration, without what an agent adds to it.
    pub registration: Registration,
    /// Its checks and those of its node, in Consul's order.
    pub checks: Vec<ShownCheck>,
    /// The Raft index of the last change of the registration.
    pub modify_index: u64,
}

/// A check of an instance or of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownCheck {
    /// The name that its resource gives it, or that whoever else made it does.
    pub name: String,
    /// What it says.
    pub health: Health,
    /// The text of its last run.
    pub output: String,
    /// True if it is a check of the Consul node, which counts for all instances on it.
    pub of_node: bool,
}

impl Shown {
    /// The worst of its checks and of those of its node: Consul's DNS goes by that.
    #[must_use]
    pub fn health(&self) -> Health {
        self.checks.iter().map(|check| check.health).max().unwrap_or(Health::Passing)
    }
}

/// An entry of `/v1/health/service`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    node: Node,
    service: Written,
    checks: Vec<Said>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    #[serde(flatten)]
    service: Service,
    #[serde(rename = "ModifyIndex")]
    modify_index: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Said {
    #[serde(rename = "CheckID")]
    id: Option<String>,
    name: Option<String>,
    status: Option<String>,
    output: Option<String>,
    #[serde(rename = "ServiceID")]
    service_id: Option<String>,
}

impl Said {
    fn shown(&self, instance: &str) -> ShownCheck {
        let id = self.id.as_deref().unwrap_or_default();
        // An ID of our making ends with the kind.
        let ours = check_name(instance, id).map(|name| name.rsplit_once(':').map_or(name, |(name, _)| name));
        let name = ours.or(self.name.as_deref()).filter(|name| !name.is_empty()).unwrap_or(id);
        ShownCheck {
            name: name.to_owned(),
            health: Health::parse(self.status.as_deref().unwrap_or_default()),
            output: self.output.as_deref().unwrap_or_default().trim().to_owned(),
            of_node: self.service_id.as_deref().unwrap_or_default().is_empty(),
        }
    }

    fn wire(self) -> Check {
        Check { id: self.id, status: self.status, service_id: self.service_id, ..Check::default() }
    }
}

impl Entry {
    fn shown(self, pool: &mut Pool) -> Option<Shown> {
        let Self { node, service: Written { service, modify_index }, checks } = self;
        let (node, id) = (node.node?, service.id.clone()?);
        let shown = checks.iter().map(|check| check.shown(&id)).collect();
        let healths = Healths::new(checks.into_iter().map(Said::wire));
        let registration = service.registration(By::Agent, &healths, pool);
        Some(Shown { node: node.into(), id: id.into(), registration, checks: shown, modify_index })
    }
}

/// Reads all instances of a service.
///
/// # Errors
///
/// Fails if Consul cannot be asked, or does not show everything to this token.
pub async fn of_service(client: &Client, name: &str) -> Result<Vec<Shown>, Unavailable> {
    let entries: Vec<Entry> = client.get(path(&["health", "service", name], &[])).await?.value;
    let mut pool = Pool::default();
    Ok(entries.into_iter().filter_map(|entry| entry.shown(&mut pool)).collect())
}

/// Names the services that have an instance which a filter picks.
///
/// # Errors
///
/// As [`of_service`].
pub async fn names(client: &Client, filter: &str) -> Result<Vec<String>, Unavailable> {
    let query = path(&["catalog", "services"], &[("filter", filter)]);
    let names: BTreeMap<String, Option<Vec<String>>> = client.get(query).await?.value;
    Ok(names.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_as_healthy_as_its_checks_and_those_of_its_node() {
        let text = r#"{"Node":{"Node":"n"},
            "Service":{"ID":"c:shop:web:web:u:80","Service":"web","Address":"10.0.0.1","Port":80,"ModifyIndex":7,
                       "TaggedAddresses":{"lan_ipv4":{"Address":"10.0.0.1","Port":80}}},
            "Checks":[
                {"CheckID":"serfHealth","Name":"Serf Health Status","Status":"warning","ServiceID":""},
                {"CheckID":"c:shop:web:web:u:80:readiness","Name":"Kubernetes","Status":"passing","ServiceID":"c:shop:web:web:u:80"},
                {"CheckID":"c:shop:web:web:u:80:live:http","Status":"critical","Output":" refused\n","ServiceID":"c:shop:web:web:u:80"},
                {"CheckID":"other","Name":"theirs","Status":"passing","Output":null,"ServiceID":"c:shop:web:web:u:80"}]}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        let shown = entry.shown(&mut Pool::default()).unwrap();
        assert_eq!((&*shown.node, shown.modify_index, shown.health()), ("n", 7, Health::Critical));
        let said: Vec<_> = shown.checks.iter().map(|check| (&*check.name, check.health, check.of_node)).collect();
        let expected = [
            ("Serf Health Status", Health::Warning, true),
            ("readiness", Health::Passing, false),
            ("live", Health::Critical, false),
            ("theirs", Health::Passing, false),
        ];
        assert_eq!(said, expected);
        assert_eq!(shown.checks[2].output, "refused");
        assert!(shown.registration.tagged_addresses.is_empty(), "an agent adds it");
        assert_eq!(shown.registration.readiness, Some(Health::Passing));
    }
}

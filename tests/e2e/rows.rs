//! What is in Consul by another hand than Lictor's: rows that a test plants, edits and removes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lictor_testbed::Instance;
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, path_segment};

/// An instance to be put into Consul.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) service: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) tags: Vec<String>,
    pub(crate) meta: BTreeMap<String, String>,
}

impl Row {
    /// One that nobody but a test could have made: a virtual machine on a node of its own.
    pub(crate) fn of_a_machine(fixture: &Fixture) -> Self {
        Self {
            node: format!("vm-{}", fixture.cluster),
            id: "vm-1".to_owned(),
            service: fixture.service.clone(),
            address: "198.51.100.77".to_owned(),
            port: 9090,
            tags: vec!["vm".to_owned()],
            meta: BTreeMap::from([("rack".to_owned(), "7".to_owned())]),
        }
    }

    /// A copy of what is there.
    pub(crate) fn of(fixture: &Fixture, instance: &Instance) -> Self {
        Self {
            node: instance.node.clone(),
            id: instance.id.clone(),
            service: fixture.service.clone(),
            address: instance.address.clone(),
            port: instance.port,
            tags: instance.tags.clone(),
            meta: instance.meta.clone(),
        }
    }

    /// The same with another value in its meta.
    pub(crate) fn with_meta(mut self, key: &str, value: &str) -> Self {
        self.meta.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Writes it through the catalog, whatever its node.
    pub(crate) async fn put_in_catalog(&self, fixture: &Fixture) -> Result<()> {
        self.write_to_catalog(fixture, false).await
    }

    /// Likewise, as a user does whom `EnableTagOverride` lets edit the tags.
    pub(crate) async fn put_in_catalog_overriding(&self, fixture: &Fixture) -> Result<()> {
        self.write_to_catalog(fixture, true).await
    }

    async fn write_to_catalog(&self, fixture: &Fixture, enable_tag_override: bool) -> Result<()> {
        let body = json!({
            "Node": self.node,
            "Address": "192.0.2.77",
            "SkipNodeUpdate": true,
            "Service": {
                "ID": self.id,
                "Service": self.service,
                "Address": self.address,
                "Port": self.port,
                "Tags": self.tags,
                "Meta": self.meta,
                "EnableTagOverride": enable_tag_override,
            },
        });
        fixture.consul().put("/v1/catalog/register", &body).await.map(drop)
    }

    /// Writes it through the shared agent, whose node it is then on.
    pub(crate) async fn put_on_agent(&self, fixture: &Fixture) -> Result<()> {
        let body = json!({
            "ID": self.id,
            "Name": self.service,
            "Address": self.address,
            "Port": self.port,
            "Tags": self.tags,
            "Meta": self.meta,
        });
        fixture.consul().put("/v1/agent/service/register", &body).await.map(drop)
    }

    /// Writes it where the mode's own rows are written.
    pub(crate) async fn put(&self, fixture: &Fixture) -> Result<()> {
        match fixture.mode {
            Mode::Agent => self.put_on_agent(fixture).await,
            Mode::Catalog => self.put_in_catalog(fixture).await,
        }
    }
}

/// Removes an instance by hand, where the mode's own rows are.
pub(crate) async fn remove(fixture: &Fixture, instance: &Instance) -> Result<()> {
    let consul = fixture.consul();
    match fixture.mode {
        Mode::Agent => {
            let path = format!("/v1/agent/service/deregister/{}", path_segment(&instance.id));
            consul.put(&path, &Value::Null).await?;
        }
        Mode::Catalog => {
            let body = json!({ "Node": instance.node, "ServiceID": instance.id });
            consul.put("/v1/catalog/deregister", &body).await?;
        }
    }
    Ok(())
}

/// Sets the readiness check of an instance by hand, where the mode's own checks are.
pub(crate) async fn set_readiness(fixture: &Fixture, instance: &Instance, status: &str) -> Result<()> {
    let check = instance.checks.iter().find(|check| check.service_id == instance.id).context("no check")?;
    let consul = fixture.consul();
    match fixture.mode {
        Mode::Agent => {
            let path = format!("/v1/agent/check/update/{}", path_segment(&check.id));
            consul.put(&path, &json!({ "Status": status })).await?;
        }
        Mode::Catalog => {
            let body = json!({
                "Node": instance.node,
                "Address": "192.0.2.77",
                "SkipNodeUpdate": true,
                "Check": {
                    "CheckID": check.id,
                    "Name": check.name,
                    "ServiceID": instance.id,
                    "Status": status,
                    "Type": check.kind,
                },
            });
            consul.put("/v1/catalog/register", &body).await?;
        }
    }
    Ok(())
}

/// The services and their checks of one name in Consul, to the letter, with the index of each one's last write, by
/// node and ID.
pub(crate) async fn fingerprint(fixture: &Fixture, service: &str) -> Result<BTreeMap<String, Value>> {
    let mut prints = BTreeMap::new();
    for entry in fixture.consul().services(service).await?.as_array().into_iter().flatten() {
        let of_the_service = |check: &&Value| check["ServiceID"].as_str().is_some_and(|id| !id.is_empty());
        let checks: Vec<&Value> = entry["Checks"].as_array().into_iter().flatten().filter(of_the_service).collect();
        let key = format!("{} on {}", entry["Service"]["ID"], entry["Node"]["Node"]);
        prints.insert(key, json!({ "service": entry["Service"], "checks": checks }));
    }
    Ok(prints)
}

//! Instances as Consul takes them: in a transaction, and by an agent.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::check_body::{AgentCheck, AgentReadiness};
use super::to_json;
use crate::model::registration::Registration;

/// Holds what both ways of registering an instance have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceBody<'a> {
    tags: Vec<&'a str>,
    address: &'a str,
    port: u16,
    meta: BTreeMap<&'a str, &'a str>,
    weights: WeightsBody,
    enable_tag_override: bool,
    tagged_addresses: BTreeMap<&'a str, AddressBody<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct WeightsBody {
    passing: u16,
    warning: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AddressBody<'a> {
    address: &'a str,
    port: u16,
}

impl<'a> From<&'a Registration> for ServiceBody<'a> {
    fn from(registration: &'a Registration) -> Self {
        let tagged = registration.tagged_addresses.iter();
        Self {
            tags: registration.tags.iter().map(|tag| &**tag).collect(),
            address: &registration.address,
            port: registration.port,
            meta: registration.meta.iter().map(|(key, value)| (key, &**value)).collect(),
            weights: WeightsBody { passing: registration.weights.passing, warning: registration.weights.warning },
            enable_tag_override: registration.enable_tag_override,
            tagged_addresses: tagged
                .map(|(name, there)| (&**name, AddressBody { address: &there.address, port: there.port }))
                .collect(),
        }
    }
}

/// An instance in an operation of a transaction. What is none is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TxnService<'a> {
    /// The instance's ID, unique on its node.
    #[serde(rename = "ID")]
    pub id: &'a str,
    /// The name of its service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    /// Everything else, where it is written.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub body: Option<ServiceBody<'a>>,
}

/// The body of `/v1/agent/service/register`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentService<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    #[serde(flatten)]
    body: ServiceBody<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<AgentReadiness>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<AgentCheck<'a>>,
}

impl<'a> AgentService<'a> {
    /// Registers an instance without its checks.
    #[must_use]
    pub fn without_checks(id: &'a str, registration: &'a Registration) -> Self {
        let name = &registration.service;
        Self { id, name, body: registration.into(), check: None, checks: Vec::new() }
    }

    /// Registers an instance and its checks.
    #[must_use]
    pub fn with_checks(id: &'a str, registration: &'a Registration) -> Self {
        let placed = registration.checks.placed().iter();
        Self {
            check: registration.readiness.map(|readiness| AgentReadiness::of(id, readiness)),
            checks: placed.map(|placed| AgentCheck::of(id, registration, placed)).collect(),
            ..Self::without_checks(id, registration)
        }
    }

    /// The request's body.
    #[must_use]
    pub fn body(&self) -> Bytes {
        to_json(self).into()
    }
}

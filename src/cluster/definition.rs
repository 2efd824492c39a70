//! Our `CustomResourceDefinition` as the cluster has it: whether it is there, and has all that this version writes
//! and reads.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::{Api, Client, CustomResourceExt, Resource};
use tokio::time::timeout;

use super::api::{ConsulService, crd};
use super::list::describe;
use crate::model::cause::CrdState;

/// Says what the cluster's definition is to this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// It has everything.
    Fits,
    /// It is there and lacks these fields: it is older.
    Lacks(Vec<String>),
    /// There is none.
    Missing,
    /// It may not be read, or could not be: nothing is known.
    Unknown(String),
}

impl Definition {
    /// Says what is wrong with it and what to do; none if nothing is.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        let name = ConsulService::crd_name();
        match self {
            Self::Fits | Self::Unknown(_) => None,
            Self::Missing => Some(format!(
                "the CustomResourceDefinition {name} is not there: install it with `lictor crd | kubectl apply --server-side -f -`"
            )),
            Self::Lacks(fields) => Some(format!(
                "the CustomResourceDefinition {name} is older than this version of Lictor and lacks {}: upgrade it with \
                 `lictor crd | kubectl apply --server-side -f -`",
                fields.join(", ")
            )),
        }
    }
}

/// Looks at the cluster's definition.
pub async fn look(client: &Client) -> Definition {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    match timeout(Duration::from_secs(10), definitions.get_opt(ConsulService::crd_name())).await {
        Ok(Ok(None)) => Definition::Missing,
        Ok(Ok(Some(found))) => match lacks(&found) {
            fields if fields.is_empty() => Definition::Fits,
            fields => Definition::Lacks(fields),
        },
        Ok(Err(error)) => Definition::Unknown(describe(&error)),
        Err(_) => Definition::Unknown("no answer in time".to_owned()),
    }
}

/// Gives the path at which discovery tells of our kind: `/apis/lictor.dev/v1alpha1`.
#[must_use]
pub fn discovery_path() -> String {
    format!("/apis/{}", ConsulService::api_version(&()))
}

/// Reads what discovery says of our definition. The API server takes the verbs `create`, `update` and `patch` away from
/// a kind whose definition has the condition `Terminating`, and sets that condition before it deletes the first
/// resource (apiextensions-apiserver, `customresource_discovery_controller.go` and `crd_finalizer.go`).
pub(super) fn state(group: &APIResourceList) -> CrdState {
    let plural = ConsulService::plural(&());
    let ours = group.resources.iter().find(|resource| resource.name == plural);
    let is_served = ours.is_some_and(|resource| resource.verbs.iter().any(|verb| verb == "create"));
    if is_served { CrdState::Stays } else { CrdState::Goes }
}

/// The most fields that are told.
const MOST: usize = 5;

/// Fields that ours has and `there` has not, the outermost of each.
fn lacks(there: &CustomResourceDefinition) -> Vec<String> {
    let (Some(ours), Some(theirs)) = (schema(&crd(), None), schema(there, Some("v1alpha1"))) else {
        return vec!["the version v1alpha1".to_owned()];
    };
    let mut missing = Vec::new();
    compare(&ours, &theirs, "", &mut missing);
    missing.truncate(MOST);
    missing
}

fn schema(crd: &CustomResourceDefinition, version: Option<&str>) -> Option<JSONSchemaProps> {
    let mut versions = crd.spec.versions.iter();
    let found = versions.find(|found| version.is_none_or(|version| found.name == version) && found.served)?;
    found.schema.as_ref()?.open_api_v3_schema.clone()
}

fn compare(ours: &JSONSchemaProps, theirs: &JSONSchemaProps, at: &str, missing: &mut Vec<String>) {
    let none = std::collections::BTreeMap::new();
    let known = theirs.properties.as_ref().unwrap_or(&none);
    for (name, field) in ours.properties.iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match known.get(name) {
            None => missing.push(path),
            Some(there) => compare(field, there, &path, missing),
        }
    }
    if let (Some(JSONSchemaPropsOrArray::Schema(ours)), Some(JSONSchemaPropsOrArray::Schema(theirs))) =
        (&ours.items, &theirs.items)
    {
        compare(ours, theirs, &format!("{at}[]"), missing);
    }
    if let (Some(JSONSchemaPropsOrBool::Schema(ours)), Some(JSONSchemaPropsOrBool::Schema(theirs))) =
        (&ours.additional_properties, &theirs.additional_properties)
    {
        compare(ours, theirs, &format!("{at}.*"), missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our definition without some field of the spec.
    fn without(field: &str) -> CustomResourceDefinition {
        let mut crd = crd();
        let root = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        root.properties.as_mut().unwrap().get_mut("spec").unwrap().properties.as_mut().unwrap().remove(field).unwrap();
        crd
    }

    #[test]
    fn discovery_tells_that_the_definition_goes() {
        let group = |resources: &[(&str, &[&str])]| {
            let resources = resources.iter().map(|(name, verbs)| {
                serde_json::json!({
                    "name": name, "singularName": "", "namespaced": true, "kind": "ConsulService", "verbs": verbs,
                })
            });
            let resources: Vec<_> = resources.collect();
            serde_json::from_value(serde_json::json!({ "groupVersion": "lictor.dev/v1alpha1", "resources": resources }))
                .unwrap()
        };
        let all: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
        let terminating: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];
        let status = ("consulservices/status", &["get", "patch", "update"][..]);
        for (resources, expected) in [
            (&[("consulservices", all), status][..], CrdState::Stays),
            (&[status, ("consulservices", terminating)], CrdState::Goes),
            (&[("others", all), status], CrdState::Goes),
            (&[], CrdState::Goes),
        ] {
            assert_eq!(state(&group(resources)), expected, "{resources:?}");
        }
        assert_eq!(discovery_path(), "/apis/lictor.dev/v1alpha1");
    }

    #[test]
    fn an_older_definition_lacks_what_came_later() {
        assert!(lacks(&crd()).is_empty());
        assert_eq!(lacks(&without("checks")), ["spec.checks"]);
        let mut other = crd();
        other.spec.versions[0].name = "v1".to_owned();
        assert_eq!(lacks(&other), ["the version v1alpha1"]);
        assert!(Definition::Lacks(lacks(&without("checks"))).advice().unwrap().contains("lacks spec.checks"));
    }
}

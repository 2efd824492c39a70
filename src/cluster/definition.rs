//! Our `CustomResourceDefinition` as the cluster has it: whether it is there, and has all that this version writes
//! and reads.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::{Api, Client, CustomResourceExt};
use tokio::time::timeout;

use super::api::{ConsulService, crd};
use super::list::in_words;

/// What the cluster's definition is to this version.
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
    /// What is wrong with it and what to do; none if nothing is.
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
        Ok(Err(error)) => Definition::Unknown(in_words(&error)),
        Err(_) => Definition::Unknown("no answer in time".to_owned()),
    }
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
    fn an_older_definition_lacks_what_came_later() {
        assert!(lacks(&crd()).is_empty());
        assert_eq!(lacks(&without("checks")), ["spec.checks"]);
        let mut other = crd();
        other.spec.versions[0].name = "v1".to_owned();
        assert_eq!(lacks(&other), ["the version v1alpha1"]);
        assert!(Definition::Lacks(lacks(&without("checks"))).advice().unwrap().contains("lacks spec.checks"));
    }
}

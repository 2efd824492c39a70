//! What Lictor may do in the cluster, by the apiserver's own word.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client, CustomResourceExt};
use tokio::time::timeout;

use super::api::ConsulService;
use super::definition::discovery_path;
use super::list::describe;
use crate::state::event::Scope;

/// One thing that must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    /// Empty for all namespaces, or for what has none.
    namespace: String,
    name: String,
    /// A path that is no resource's; then all but the verb is empty.
    path: String,
}

impl Need {
    const fn all(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self {
            verb,
            group,
            resource,
            subresource: "",
            namespace: String::new(),
            name: String::new(),
            path: String::new(),
        }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.verb, self.resource, self.path)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in namespace {}", self.namespace)?;
        }
        Ok(())
    }
}

/// Lists what an operator of these scopes needs: with `nodes`, Nodes too; with `uid`, the cluster's uid; with a Lease
/// (namespace and name), that one.
#[must_use]
pub fn needs(scopes: &[Scope], nodes: bool, uid: bool, lease: Option<(&str, &str)>) -> Vec<Need> {
    let in_scopes = [
        Need::all("list", "lictor.dev", "consulservices"),
        Need::all("watch", "lictor.dev", "consulservices"),
        Need::all("patch", "lictor.dev", "consulservices"),
        Need { subresource: "status", ..Need::all("patch", "lictor.dev", "consulservices") },
        Need::all("list", "discovery.k8s.io", "endpointslices"),
        Need::all("watch", "discovery.k8s.io", "endpointslices"),
        Need::all("list", "", "services"),
        Need::all("watch", "", "services"),
        Need::all("list", "", "pods"),
        Need::all("watch", "", "pods"),
        Need::all("create", "events.k8s.io", "events"),
        Need::all("patch", "events.k8s.io", "events"),
    ];
    let mut all = Vec::new();
    for scope in scopes {
        let namespace = match scope {
            Scope::All => String::new(),
            Scope::Namespace(namespace) => namespace.to_string(),
        };
        all.extend(in_scopes.iter().map(|need| Need { namespace: namespace.clone(), ..need.clone() }));
    }
    if nodes {
        all.extend([Need::all("list", "", "nodes"), Need::all("watch", "", "nodes")]);
    }
    if uid {
        all.push(Need { name: "kube-system".to_owned(), ..Need::all("get", "", "namespaces") });
    }
    if scopes.contains(&Scope::All) {
        let name = ConsulService::crd_name().to_owned();
        all.push(Need { name, ..Need::all("get", "apiextensions.k8s.io", "customresourcedefinitions") });
    } else {
        // Without it nobody tells a deleted resource from a deleted definition.
        all.push(Need { path: discovery_path(), ..Need::all("get", "", "") });
    }
    if let Some((namespace, lease)) = lease {
        // What is created has no name to the apiserver's rules yet.
        let verbs = [("get", lease), ("create", ""), ("update", lease), ("patch", lease)];
        all.extend(verbs.map(|(verb, name)| Need {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Need::all(verb, "coordination.k8s.io", "leases")
        }));
    }
    all
}

/// Lists what somebody needs who asks about the resources of these scopes and changes nothing; with `nodes`, whose resources
/// name values of Nodes.
#[must_use]
pub fn needs_to_ask(scopes: &[Scope], nodes: bool) -> Vec<Need> {
    let in_scopes = [
        Need::all("list", "lictor.dev", "consulservices"),
        Need::all("list", "", "pods"),
        Need::all("list", "", "services"),
        Need::all("list", "discovery.k8s.io", "endpointslices"),
    ];
    let of_scope = |scope: &Scope| {
        let namespace = match scope {
            Scope::All => String::new(),
            Scope::Namespace(namespace) => namespace.to_string(),
        };
        in_scopes.clone().map(|need| Need { namespace: namespace.clone(), ..need })
    };
    let nodes = nodes.then(|| Need::all("list", "", "nodes"));
    scopes.iter().flat_map(of_scope).chain(nodes).collect()
}

/// Those of `needs` that are not allowed.
///
/// Fails if the apiserver does not say.
pub async fn lacking(client: &Client, needs: Vec<Need>) -> Result<Vec<Need>, String> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut lacking = Vec::new();
    for need in needs {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let attributes = ResourceAttributes {
            verb: text(need.verb),
            group: text(need.group),
            resource: text(need.resource),
            subresource: text(need.subresource),
            namespace: text(&need.namespace),
            name: text(&need.name),
            ..ResourceAttributes::default()
        };
        let spec = if need.path.is_empty() {
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() }
        } else {
            let attributes = NonResourceAttributes { path: text(&need.path), verb: text(need.verb) };
            SelfSubjectAccessReviewSpec { non_resource_attributes: Some(attributes), ..Default::default() }
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let params = PostParams::default();
        let answer = timeout(Duration::from_secs(10), reviews.create(&params, &review)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|error| describe(&error))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            lacking.push(need);
        }
    }
    Ok(lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_is_said_as_kubectl_asks_for_it() {
        let needs = needs(&[Scope::Namespace("shop".into())], false, false, Some(("lictor", "lease")));
        let said: Vec<String> = needs.iter().map(ToString::to_string).collect();
        assert!(said.contains(&"patch consulservices/status.lictor.dev in namespace shop".to_owned()), "{said:#?}");
        for verb in ["get", "update", "patch"] {
            let need = format!("{verb} leases.coordination.k8s.io lease in namespace lictor");
            assert!(said.contains(&need), "{said:#?}");
        }
        assert!(said.contains(&"get /apis/lictor.dev/v1alpha1".to_owned()), "{said:#?}");
        assert!(!said.iter().any(|need| need.contains("nodes") || need.contains("kube-system")), "{said:#?}");
    }
}

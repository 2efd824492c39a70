//! The rights that the chart gives are those that are used, no more and no fewer: by the apiserver's own record of all
//! that the other tests had Lictor do.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lictor_testbed::node::suite::is_partial;
use serde_json::Value;

use crate::environment::Environment;

/// A right: by which kind of role, API group, resource, verb and, where the role names one, object.
pub(crate) type Right = (String, String, String, String, String);

/// What is asked for without a right to it, and why that is as it should be: (release, resource, verb).
const TOLD_NO: &[(&str, &str, &str)] = &[
    // With `watchNamespaces` there is no ClusterRole, and whether the CRD fits is not known.
    ("lictor-picks-agent", "customresourcedefinitions", "get"),
];

/// The release that is installed without any rights first, and must say so.
const WITHOUT: &str = "lictor-rights";

pub(crate) async fn are_just_those_that_are_used(environment: &Environment) -> Result<()> {
    let cluster = environment.cluster().await?;
    let by_release = cluster.granted();
    let granted: BTreeSet<Right> = by_release.values().flatten().cloned().collect();
    ensure!(is_partial() || granted.len() > 10, "hardly a right: {granted:#?}");

    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in cluster.audit_log()?.lines() {
        // The last line may be written just now.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        // The account's namespace is the release's name.
        let account = event["user"]["username"].as_str().unwrap_or_default();
        let account = account.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
        let Some((release, _)) = account.filter(|(release, _)| release.starts_with("lictor-")) else { continue };
        let reason = event["annotations"]["authorization.k8s.io/reason"].as_str().unwrap_or_default();
        // What everybody may: discovery, and to ask what one may do.
        if event["objectRef"].is_null() || reason.contains("Binding \"system:") {
            continue;
        }
        let own = by_release.get(release).cloned().unwrap_or_default();
        if event["annotations"]["authorization.k8s.io/decision"] == "allow" {
            used.insert(right_of(&event, reason, &own));
            continue;
        }
        // A role may be not there yet when a pod starts, and gone before it ends: it is enough that the release has it.
        let (_, group, resource, verb, _) = right_of(&event, reason, &own);
        let given = own.iter().any(|right| (&right.1, &right.2, &right.3) == (&group, &resource, &verb));
        let told_no = TOLD_NO.contains(&(release, resource.as_str(), verb.as_str()));
        if !given && !told_no && release != WITHOUT {
            refused.insert((release.to_owned(), group, resource, verb));
        }
    }
    ensure!(refused.is_empty(), "used, and not granted: {refused:#?}");
    let foreign: Vec<_> = used.difference(&granted).collect();
    ensure!(foreign.is_empty(), "used by other roles than the chart's: {foreign:#?}");
    let idle: Vec<_> = granted.difference(&used).collect();
    println!("{} rights are granted, {} of them were used", granted.len(), granted.len() - idle.len());
    ensure!(is_partial() || idle.is_empty(), "granted, and not used by any test: {idle:#?}");
    Ok(())
}

/// The rights that the roles in a manifest give to the operator.
pub(crate) fn given_by(manifest: &str) -> Result<Vec<Right>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifest)?;
    let mut rights = Vec::new();
    for kind in ["Role", "ClusterRole"] {
        for role in objects.iter().filter(|object| object["kind"] == kind && is_of_the_operator(object)) {
            rights.extend(rights_of(kind, role));
        }
    }
    Ok(rights)
}

/// Whether a role is the chart's for the operator, rather than for users.
fn is_of_the_operator(role: &Value) -> bool {
    let labels = &role["metadata"]["labels"];
    let aggregated = labels.as_object().into_iter().flatten().any(|(label, _)| label.contains("aggregate-to-"));
    labels["app.kubernetes.io/name"] == "lictor" && !aggregated
}

fn rights_of(kind: &str, role: &Value) -> Vec<Right> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    for name in &names {
                        // Each release's own Lease.
                        let name = if resource == "leases" && !name.is_empty() { "(the lease)" } else { name };
                        rights.push((kind.to_owned(), group.clone(), resource.clone(), verb.clone(), name.to_owned()));
                    }
                }
            }
        }
    }
    rights
}

/// The right that a request made use of; by which kind of role, the apiserver says in its reason.
fn right_of(event: &Value, reason: &str, granted: &BTreeSet<Right>) -> Right {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let kind = if reason.contains("of ClusterRole ") { "ClusterRole" } else { "Role" };
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{}/{part}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    let right = |name: String| -> Right {
        (kind.to_owned(), text(&object["apiGroup"]), resource.clone(), text(&event["verb"]), name)
    };
    let name = if resource == "leases" { "(the lease)".to_owned() } else { text(&object["name"]) };
    let named = right(name);
    if granted.contains(&named) { named } else { right(String::new()) }
}

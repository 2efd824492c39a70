//! The status: from the wire to the model's own type and back, and since when its conditions have held.
//!
//! The model knows no time. When a condition's truth last changed is kept beside it as it was read, and
//! added again where the status is written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as ApiCondition, Time};
use serde_json::{Value, json};

use super::api::{self, ConsulServiceStatus, DeletionPolicy, InstanceCounts, Problem as ApiProblem};
use crate::model::port::{PortInUse, PortRef};
use crate::model::reasons::{Counts, Problem, ProblemReason};
use crate::model::status::{Condition, ConditionKind, Status, Truth};
use crate::state::event::Transitions;

/// Reads a status. Conditions of other kinds than ours are left out.
#[must_use]
pub fn read(status: ConsulServiceStatus) -> (Status, Transitions) {
    let count = |n: u32| n as usize;
    let counts = status.instances.unwrap_or_default();
    let (mut conditions, mut since) = (Vec::new(), BTreeMap::new());
    for condition in status.conditions {
        let Some(kind) = ConditionKind::parse(&condition.type_) else { continue };
        let truth = Truth::parse(&condition.status);
        since.insert(kind, (truth, condition.last_transition_time.0));
        conditions.push(Condition {
            kind,
            truth,
            reason: condition.reason,
            message: condition.message,
            observed_generation: condition.observed_generation.unwrap_or_default(),
        });
    }
    let status = Status {
        observed_generation: status.observed_generation.unwrap_or_default(),
        service_name: status.service_name.unwrap_or_default(),
        port_in_use: status.port_in_use.map(|of| PortInUse {
            source: of.source.into(),
            port: match of.port {
                api::PortRef::Number(number) => PortRef::Number(number),
                api::PortRef::Name(name) => PortRef::Name(name.into()),
            },
        }),
        retains: status.deletion_policy == Some(DeletionPolicy::Retain),
        instances: Counts {
            desired: count(counts.desired),
            registered: count(counts.registered),
            passing: count(counts.passing),
            warning: count(counts.warning),
            critical: count(counts.critical),
        },
        problems: status
            .problems
            .into_iter()
            .map(|p| Problem { instance: p.instance, reason: ProblemReason::parse(&p.reason), message: p.message })
            .collect(),
        conditions,
    };
    (status, Transitions(since))
}

/// The status as it stands on the wire, `now` for the conditions whose truth has changed.
#[must_use]
pub fn to_api(status: &Status, since: &Transitions, now: Timestamp) -> ConsulServiceStatus {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let counts = &status.instances;
    ConsulServiceStatus {
        observed_generation: Some(status.observed_generation),
        service_name: Some(status.service_name.clone()).filter(|name| !name.is_empty()),
        port_in_use: status.port_in_use.as_ref().map(|of| api::PortInUse {
            source: of.source.to_string(),
            port: match &of.port {
                PortRef::Number(number) => api::PortRef::Number(*number),
                PortRef::Name(name) => api::PortRef::Name(name.to_string()),
            },
        }),
        deletion_policy: status.retains.then_some(DeletionPolicy::Retain),
        instances: Some(InstanceCounts {
            desired: count(counts.desired),
            registered: count(counts.registered),
            passing: count(counts.passing),
            warning: count(counts.warning),
            critical: count(counts.critical),
        }),
        problems: status.problems.iter().map(problem).collect(),
        conditions: status
            .conditions
            .iter()
            .map(|condition| ApiCondition {
                type_: condition.kind.as_str().to_owned(),
                status: condition.truth.as_str().to_owned(),
                observed_generation: Some(condition.observed_generation),
                last_transition_time: Time(since.since(condition.kind, condition.truth, now)),
                reason: condition.reason.clone(),
                message: condition.message.clone(),
            })
            .collect(),
    }
}

fn problem(problem: &Problem) -> ApiProblem {
    ApiProblem {
        instance: problem.instance.clone(),
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
    }
}

/// The JSON patch that replaces the status of the resource with this uid, and of no other. A merge patch
/// would keep what the new status leaves out, and the apiserver does not hold a uid in it against the
/// object.
#[must_use]
pub fn patch(uid: &str, status: &ConsulServiceStatus) -> Value {
    json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "add", "path": "/status", "value": status },
    ])
}

/// The JSON patch that takes away the status of the resource with this uid, if it is about this generation.
#[must_use]
pub fn forget(uid: &str, observed_generation: i64) -> Value {
    json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "test", "path": "/status/observedGeneration", "value": observed_generation },
        { "op": "remove", "path": "/status" },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status() -> Status {
        let condition = |kind, truth| Condition {
            kind,
            truth,
            reason: "Because".to_owned(),
            message: "of this".to_owned(),
            observed_generation: 3,
        };
        Status {
            observed_generation: 3,
            service_name: "user".to_owned(),
            port_in_use: Some(PortInUse { source: "service/user".into(), port: PortRef::Name("80".into()) }),
            retains: true,
            instances: Counts { desired: 3, registered: 2, passing: 1, warning: 0, critical: 1 },
            problems: vec![Problem {
                instance: "i".to_owned(),
                reason: ProblemReason::Refused,
                message: "no".to_owned(),
            }],
            conditions: vec![
                condition(ConditionKind::Ready, Truth::False),
                condition(ConditionKind::Accepted, Truth::True),
            ],
        }
    }

    fn through_the_wire(status: &Status, since: &Transitions, now: Timestamp) -> (Status, Transitions) {
        let wire = serde_json::to_string(&to_api(status, since, now)).unwrap();
        read(serde_json::from_str(&wire).unwrap())
    }

    #[test]
    fn a_status_is_read_back_as_it_was_written() {
        for status in [status(), Status::default()] {
            assert_eq!(through_the_wire(&status, &Transitions::default(), at(1)).0, status);
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_truth_changes() {
        let mut status = status();
        let (_, since) = through_the_wire(&status, &Transitions::default(), at(1));
        status.conditions[0].truth = Truth::True;
        status.conditions[1].message = "of that".to_owned();
        let (_, since) = through_the_wire(&status, &since, at(2));
        assert_eq!(since.since(ConditionKind::Ready, Truth::True, at(3)), at(2));
        assert_eq!(since.since(ConditionKind::Accepted, Truth::True, at(3)), at(1));
        assert_eq!(since.since(ConditionKind::Accepted, Truth::Unknown, at(3)), at(3));
        assert_eq!(since.since(ConditionKind::Resolved, Truth::True, at(3)), at(3));
    }

    #[test]
    fn a_patch_is_for_one_uid_and_leaves_nothing_of_the_status_before() {
        let patch = patch("u", &to_api(&Status::default(), &Transitions::default(), at(1)));
        assert_eq!(patch[0], json!({ "op": "test", "path": "/metadata/uid", "value": "u" }));
        assert_eq!((&patch[1]["op"], &patch[1]["path"]), (&json!("add"), &json!("/status")));
    }
}

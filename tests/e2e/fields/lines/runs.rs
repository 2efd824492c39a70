//! How often checks run, how long they may take, and how many runs it takes.

use super::super::environment::{HTTP, TCP};
use super::super::reading::Reading::{self, Runs};
use super::{Line, agents_only, both, check};

const NO_SUCCESSES: &str = "has one passing_threshold for all checks: remove successBeforePassing";
const NO_FAILURES: &str =
    "has one critical_threshold for all checks: remove failuresBeforeWarning and failuresBeforeCritical";

/// A check with a threshold. It waits as long for an answer as it waits between two runs.
macro_rules! counting {
    ($threshold:literal) => {
        concat!("checks: [{name: c, http: {}, interval: 3s, ", $threshold, "}]")
    };
}

/// Of an agent's check, the catalog shows another interval or time-out only with the next change of something else
/// (`IsSame` in Consul's `agent/structs/structs.go`).
pub(super) fn lines() -> Vec<Line> {
    vec![
        check(
            "spec.checks[].interval",
            &[TCP],
            Reading::Shown { agent: "Agent.Interval", catalog: "Checks.Definition.Interval" },
            [
                both("checks: [{name: c, tcp: {}, interval: 1m30s}]", "1m30s"),
                both("checks: [{name: c, tcp: {}}]", "10s"),
            ],
        ),
        check(
            "spec.checks[].timeout",
            &[TCP],
            Reading::Shown { agent: "Agent.Timeout", catalog: "Checks.Definition.Timeout" },
            [
                both("checks: [{name: c, tcp: {}, timeout: 500ms}]", "500ms"),
                both("checks: [{name: c, tcp: {}}]", "10s"),
            ],
        ),
        check(
            "spec.checks[].successBeforePassing",
            &[HTTP],
            Runs("passing"),
            [
                agents_only(
                    counting!("successBeforePassing: 2"),
                    "passing with success number 2 in a row",
                    NO_SUCCESSES,
                ),
                agents_only(
                    counting!("successBeforePassing: 3"),
                    "passing with success number 3 in a row",
                    NO_SUCCESSES,
                ),
            ],
        ),
        check(
            "spec.checks[].failuresBeforeWarning",
            &[HTTP],
            Runs("warning"),
            [
                agents_only(
                    counting!("failuresBeforeWarning: 2, failuresBeforeCritical: 99"),
                    "warning with failure number 2 in a row",
                    NO_FAILURES,
                ),
                agents_only(
                    counting!("failuresBeforeWarning: 3, failuresBeforeCritical: 99"),
                    "warning with failure number 3 in a row",
                    NO_FAILURES,
                ),
            ],
        ),
        check(
            "spec.checks[].failuresBeforeCritical",
            &[HTTP],
            Runs("critical"),
            [
                agents_only(
                    counting!("failuresBeforeCritical: 2"),
                    "critical with failure number 2 in a row",
                    NO_FAILURES,
                ),
                agents_only(
                    counting!("failuresBeforeCritical: 3"),
                    "critical with failure number 3 in a row",
                    NO_FAILURES,
                ),
            ],
        ),
    ]
}

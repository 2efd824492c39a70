//! The one list of fields: what a resource is made with, what it is edited to, and what Consul is to show of it.
//!
//! Add a line for a field that you add, with at least one edit.

mod checks;
mod handshakes;
mod instances;
mod requests;
mod runs;
mod sources;

use super::environment::Server;
use super::reading::Reading;
use crate::fixture::Mode;

/// A field.
pub(crate) struct Line {
    /// Its path, as the CRD has it.
    pub(crate) field: &'static str,
    /// Who answers where its checks ask: the first at the instance's own port, the second at another one, which is
    /// `OTHER` in what is written.
    pub(crate) servers: &'static [Server],
    /// How it is read back.
    pub(crate) reading: Reading,
    /// The resource as it is made, and then each edit.
    pub(crate) steps: Vec<Step>,
}

/// What is applied, and what is to be read back.
pub(crate) struct Step {
    /// Fields of the spec, beside a static address where they have no source.
    pub(crate) yaml: &'static str,
    pub(crate) agent: Wanted,
    pub(crate) catalog: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What Consul shows.
    Shown(&'static str),
    /// What Lictor answers in place of acting.
    Refused(String),
}

impl Line {
    /// What a step is called.
    pub(crate) fn step_name(&self, number: usize) -> String {
        let done = if number == 0 { "created" } else { "edited" };
        if self.reading == Reading::Left { format!("{done}, then deleted") } else { done.to_owned() }
    }
}

impl Step {
    pub(crate) fn wanted(&self, mode: Mode) -> &Wanted {
        match mode {
            Mode::Agent => &self.agent,
            Mode::Catalog => &self.catalog,
        }
    }
}

/// All fields, in the order in which one reads about them.
pub(crate) fn lines() -> Vec<Line> {
    let parts = [
        sources::lines(),
        instances::lines(),
        checks::lines(),
        requests::lines(),
        handshakes::lines(),
        runs::lines(),
        instances::ends(),
    ];
    parts.into_iter().flatten().collect()
}

/// A line of a resource without checks.
fn line<const N: usize>(field: &'static str, reading: Reading, steps: [Step; N]) -> Line {
    check(field, &[], reading, steps)
}

/// A line of a resource with checks.
fn check<const N: usize>(field: &'static str, servers: &'static [Server], reading: Reading, steps: [Step; N]) -> Line {
    Line { field, servers, reading, steps: steps.into() }
}

/// Shown at this path in both modes.
const fn at(path: &'static str) -> Reading {
    Reading::Shown { agent: path, catalog: path }
}

/// Shown as the same in both modes.
fn both(yaml: &'static str, shown: &'static str) -> Step {
    each(yaml, shown, shown)
}

/// Shown in each mode as what it is there.
fn each(yaml: &'static str, agent: &'static str, catalog: &'static str) -> Step {
    Step { yaml, agent: Wanted::Shown(agent), catalog: Wanted::Shown(catalog) }
}

/// Refused where consul-esm runs the checks.
fn agents_only(yaml: &'static str, agent: &'static str, why: &str) -> Step {
    let why = format!("spec.checks \"c\": consul-esm, which runs the checks here, {why}");
    Step { yaml, agent: Wanted::Shown(agent), catalog: Wanted::Refused(why) }
}

/// Refused in both modes.
fn refused(yaml: &'static str, why: &str) -> Step {
    Step { yaml, agent: Wanted::Refused(why.to_owned()), catalog: Wanted::Refused(why.to_owned()) }
}

/// The check `c` that runs as often as Consul allows.
macro_rules! every_second {
    ($check:literal) => {
        concat!("checks: [{name: c, ", $check, ", interval: 1s}]")
    };
}
use every_second;

//! Random resources that are valid by the definition's own schema: none makes Lictor crash, hang, hide what became
//! of it, or leave anything behind.
//!
//! - `schema`: random values of a schema; `author`: what a schema does not say, such as which Services there are;
//!   `resources`: whole resources out of both.
//! - `inside`: in this process, from a resource to its registrations.
//! - `outside`: Lictor's own program between a real apiserver and a real Consul, in both modes; `environment`: what is
//!   there to be found; `fixture`: the servers.
//!
//! A seed makes the resources, whatever becomes of the earlier ones; how they meet in time differs from run to run.
//!
//! ```text
//! cargo test --test fuzz_resources -- --nocapture                      # with statistics
//! LICTOR_FUZZ_SEED=7 LICTOR_FUZZ_RESOURCES=10000 cargo test --test fuzz_resources
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

mod author;
mod environment;
mod fixture;
mod inside;
mod outside;
mod resources;
mod schema;

/// How many resources Kubernetes takes, both modes together, before it is enough.
const RESOURCES: u64 = 400;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    number("LICTOR_FUZZ_SEED", 1)
}

fn how_many() -> u64 {
    number("LICTOR_FUZZ_RESOURCES", RESOURCES)
}

#[test]
fn what_the_schema_lets_through_becomes_registrations_within_consuls_limits() {
    inside::run(seed());
}

#[test]
fn an_agent_is_left_as_it_was_found() {
    outside::run(fixture::Mode::Agent, seed(), how_many().div_ceil(2));
}

#[test]
fn a_catalog_is_left_as_it_was_found() {
    outside::run(fixture::Mode::Catalog, seed(), how_many().div_ceil(2));
}

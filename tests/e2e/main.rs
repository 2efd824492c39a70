//! The whole of Lictor, end to end: its own program, a real apiserver and a real Consul.
//!
//! Each scenario is written once, in a room of its own kind, and run in both modes of registration; the list is in
//! [`scenarios`], that of the resource's fields in [`fields`]. A blank in `docs/scenarios.md` is a test that is ignored,
//! with the same reason. What a scenario stands on is its [`fixture::Fixture`].
//!
//! Nearly all of the time is waiting: `cargo test --test e2e -- --test-threads 8`.

mod answering;
mod fixture;
mod launch;
mod listening;
mod reader;
mod rows;
#[path = "../support/fields.rs"]
mod schema;
mod table;

mod appearing;
mod attacks;
mod bad_input;
mod commands;
mod content;
mod credentials;
mod drift;
mod edits;
mod elsewhere;
mod ending;
mod families;
mod fields;
mod foreign;
mod handover;
mod left;
mod limits;
mod login;
mod moves;
mod names;
mod nodes;
mod outages;
mod pausing;
mod policies;
mod ports;
mod proxies;
mod quiet;
mod refusals;
mod replicas;
mod reports;
mod rewriting;
mod rotation;
mod scenarios;
mod selected;
mod servers;
mod texts;
mod unready;
mod verified;
mod watches;
mod why;

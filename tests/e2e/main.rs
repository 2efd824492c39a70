//! The whole of Lictor, end to end: its own program, a real apiserver and a real Consul.
//!
//! Each scenario is written once, in a room of its own kind, and run in both modes of registration; the list is in
//! [`scenarios`]. A blank in `docs/scenarios.md` is a test that is ignored, with the same reason. What a scenario
//! stands on is its [`bed::Bed`].
//!
//! Nearly all of the time is waiting: `cargo test --test e2e -- --test-threads 8`.

mod bed;
mod launch;
mod rows;
mod table;

mod appearing;
mod bad_input;
mod content;
mod drift;
mod ending;
mod foreign;
mod outages;
mod ports;
mod quiet;
mod refusals;
mod reports;
mod scenarios;

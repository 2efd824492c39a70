//! The checks that Consul runs: what the author of a resource writes, and what arrives at a real server, by a real
//! agent and by a stand-in of consul-esm.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

mod edits;
mod esm;
mod fixture;
mod kinds;
#[path = "../support/registries.rs"]
mod registries;
mod table;

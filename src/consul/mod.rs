//! Consul: how it is reached, what it holds of ours, and the two ways of writing to it.
//!
//! In: bundles of [`Op`](crate::model::diff::Op)s, each for one Consul node. Out: what became of each, and, when read, every
//! row that carries an ID or a mark of ours. [`agent`] and [`catalog`] implement [`Registry`](crate::ports::Registry), above a
//! [`transport`] that the simulation replaces.

pub mod agent;
pub mod catalog;
pub(crate) mod client;
mod indexes;
pub(crate) mod instances;
pub mod login;
mod marked;
pub mod moving;
mod others;
mod path;
pub mod rights;
pub mod servers;
pub mod takeover;
pub mod tenancy;
pub mod transport;
pub(crate) mod wire;

/// This is said of operations that were left for [`Registry::wind_down`](crate::ports::Registry::wind_down).
const WINDING_DOWN: &str = "Lictor is on its way out";

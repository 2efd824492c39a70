//! What is known of both sides: pure, and changed by the engine's loop alone.
//!
//! [`world`] holds what decisions need of Kubernetes, as [`event`]s bring it. [`mirror`] holds what Consul has of ours.

pub mod event;
pub mod mirror;
mod table;
pub mod world;

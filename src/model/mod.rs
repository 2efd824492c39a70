//! What Lictor thinks, with no Kubernetes, no HTTP, no clock and no runtime in it.
//!
//! In: resources and the facts about their endpoints, as the `cluster` room decoded them, and rows of
//! Consul, as the `consul` room read them. Out: what should be registered ([`desired`]), how that differs
//! from what is there ([`diff`]), in which order and in which bundles to write it ([`plan`]), whether a
//! removal was observed or inferred ([`cause`]), whether most instances stop passing at once (`unready`), which write
//! is at fault where one fails ([`isolation`]), and what to tell the user ([`status`]). What the administrator lets
//! authors ask for is in [`policy`].
//!
//! The whole product can be understood from this folder. A test holds it to depending on nothing else.

pub(crate) mod address;
pub mod cause;
pub mod check;
pub mod desired;
pub mod diff;
pub mod facts;
pub mod health;
pub mod ids;
pub mod isolation;
pub mod nodes;
pub mod pairs;
pub mod pattern;
pub mod plan;
pub mod policy;
pub mod port;
pub mod reasons;
pub mod registration;
pub(crate) mod render;
pub mod resolve;
pub mod resource;
pub mod selector;
pub mod status;
pub mod template;
pub(crate) mod unready;
pub(crate) mod words;

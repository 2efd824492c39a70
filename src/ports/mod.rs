//! The seams of the engine: [`Kubernetes`], [`Registry`] and [`Leads`], with the types that go over them.
//!
//! `cluster` and `consul` implement them for the real servers, the simulation for its models. The engine knows nothing
//! else of either side. All of them wait by the same back-off.

pub(crate) mod backoff;
pub mod kubernetes;
pub mod leadership;
pub mod registry;

pub(crate) use backoff::Backoff;
pub use kubernetes::{Finalizers, Kubernetes, ReadError, Write, WriteError};
pub use leadership::{Leads, always};
pub use registry::{Bundle, Indexes, Outcome, Registry, Rows, Unavailable};

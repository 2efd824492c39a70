//! Kubernetes: what users ask for and what is running.
//!
//! In come the watched objects. Out go [`Event`](crate::state::event::Event)s in the model's own types, and, through
//! [`Kubernetes`](crate::ports::Kubernetes), status, finalizers and Events of Kubernetes. Nothing of Kubernetes' API leaves this room.

pub mod api;
pub mod connect;
mod containers;
pub mod convert;
pub mod decode;
pub(crate) mod definition;
mod interner;
pub mod kubernetes;
pub(crate) mod lease;
mod list;
pub(crate) mod look;
pub(crate) mod permissions;
mod proxy;
pub mod status;
pub mod watch;

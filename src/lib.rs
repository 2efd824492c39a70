//! Lictor keeps what Consul says about your pods true.
//!
//! ```text
//!  Kubernetes watches ──► World ──► desired ──► diff ──► plan ──► lanes ──► Consul
//!  (ConsulService,        compact    pure        pure     pure     batched,     │
//!   EndpointSlice,        index,                          guard,   ordered      │
//!   Service, Node)        dirty set                       bundles  per node     │
//!                            ▲                   ▲                              │
//!                            │                   └──── mirror ◄── reads, resync ─┘
//!                            └──────────── outcomes ──► status, Events, metrics
//! ```
//!
//! One direction, one owner for each piece of state. A room knows only the rooms to its right:
//! `cli → engine → {cluster, consul} → model`.
//!
//! - [`model`]: what we think; pure.
//! - [`cluster`]: Kubernetes: the resource, watches, the World, status and Events.
//! - [`consul`]: Consul: transport, client, the mirror, and the registries.
//! - [`engine`]: the loop from what changed to what was written.
//! - [`certificates`]: whether certificates and keys can be used; pure, and known to `cluster` and `consul`.
//! - [`admin`]: `/healthz`, `/readyz`, `/metrics`.
//! - [`settings`]: flags and environment, parsed once.
//! - [`cli`]: one file for each subcommand.

pub mod admin;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod consul;
pub mod engine;
pub mod model;
pub mod settings;

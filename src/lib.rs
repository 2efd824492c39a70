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
//! One direction, one owner for each piece of state. A room knows only the rooms to its right, and of the three in the
//! middle none knows another: `cli → {cluster, consul, engine} → ports → state → model`.
//!
//! - [`model`]: what we think; pure.
//! - [`state`]: what is known of both sides: the World of Kubernetes, the mirror of Consul; pure.
//! - [`ports`]: the seams of the engine, with the types that go over them.
//! - [`cluster`]: Kubernetes: the resource, watches, status and Events.
//! - [`consul`]: Consul: transport, client, and the registries.
//! - [`engine`]: the loop from what changed to what was written.
//! - [`certificates`]: whether certificates and keys can be used; pure, and known to `cluster` and `consul`.
//! - [`admin`]: `/healthz`, `/readyz`, `/metrics`.
//! - [`policy`]: the file with the administrator's policy, read again when it changes.
//! - [`settings`]: flags and environment, parsed once.
//! - [`cli`]: one file for each subcommand.

pub mod admin;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod consul;
pub mod engine;
pub mod model;
pub mod policy;
pub mod ports;
pub mod settings;
pub mod state;

//! `lictor crd`.

use std::io::{ErrorKind, Write};

use crate::cluster::api;

/// Prints the CRD as YAML.
pub(super) fn print() -> anyhow::Result<()> {
    match std::io::stdout().write_all(api::crd_yaml().as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

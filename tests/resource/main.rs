//! The resource as its users meet it: on a real apiserver, and in the pages about it.
//!
//! - [`accepted`]: what the apiserver takes, defaults and the largest resource there can be included
//! - [`refused`]: what it refuses; [`conditioned`]: what Lictor answers with a condition. Both are in
//!   `docs/refusals.md`, which [`refusals`] writes and checks
//! - [`admission`]: the example of a policy of the apiserver refuses what Lictor's own refuses
//! - [`edited`]: what may be made may also be edited to
//! - [`examples`]: one of each field, for `docs/reference.md`, which [`reference`] makes of the CRD
//! - [`explained`]: `kubectl explain` has words for every field
//! - [`operated`]: `docs/flags.md` and `docs/metrics.md`, made of the code
//! - [`links`]: the links between the pages lead somewhere
//!
//! `LICTOR_UPDATE=1 cargo test --test resource` writes the pages anew.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

mod fixture;

mod accepted;
mod admission;
mod conditioned;
mod edited;
mod examples;
mod explained;
mod links;
mod operated;
mod reference;
mod refusals;
mod refused;
#[path = "../support/fields.rs"]
mod schema;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares a generated page with the one in the repository, or writes it.
fn check_page(path: &str, wanted: &str) {
    if std::env::var_os("LICTOR_UPDATE").is_some() {
        std::fs::write(file(path), wanted).unwrap();
    }
    let there = std::fs::read_to_string(file(path)).unwrap_or_default();
    let differ = there.lines().zip(wanted.lines()).find(|(there, wanted)| there != wanted);
    assert!(
        there == wanted,
        "{path} is not current: run this test with LICTOR_UPDATE=1\nthe first lines that differ: {differ:#?}"
    );
}

/// Text for the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Code for the cell of a table.
fn code(text: &str) -> String {
    // GitHub and mdBook take a `|` in code of a table for a column, but for this.
    format!("`{}`", cell(text))
}

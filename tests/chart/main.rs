//! The chart, as those meet it who install it: Helm renders it, a real apiserver takes it or refuses it, a real
//! Prometheus reads what its alerts and its dashboard ask for.
//!
//! - [`lint`]: Helm's own opinion, and the suites in `charts/lictor/tests`
//! - [`drift`]: what in the chart follows from other files; `LICTOR_UPDATE=1 cargo test --test chart` writes it anew
//! - [`schema`]: which values are refused, and in which words
//! - [`manifests`]: the apiserver takes all that the values in `charts/lictor/ci` make, with Pod Security `restricted`
//! - [`kubeconform`]: kubeconform takes it too, with the schemas that this apiserver publishes
//! - [`lifecycle`]: installed, upgraded, uninstalled
//! - [`rights`]: the roles are enough for what the program does
//! - [`monitoring`]: alerts, dashboard and runbooks
//! - [`gitops`]: the examples for Argo CD and Flux
//! - [`workflows`]: what runs on GitHub
//!
//! Nodes and running pods are the business of another test. All servers here are our own, whatever `KUBECONFIG` says:
//! definitions come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

mod drift;
mod gitops;
mod helm;
mod installed;
mod kubeconform;
mod lifecycle;
mod lint;
mod manifests;
mod monitoring;
#[path = "../support/older_chart.rs"]
mod older_chart;
mod rights;
mod schema;
mod workflows;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares a generated file with the one in the repository, or writes it.
fn check_file(path: &str, wanted: &str) {
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

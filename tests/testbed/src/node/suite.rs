//! A test target whose tests need pods that run: where this machine cannot have them, its tests are counted as ignored,
//! and it says why.

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// How many tests run side by side, if the command line does not say: they wait for pods more than they compute, and each
/// has pods of its own.
const SIDE_BY_SIDE: usize = 5;

/// Asks for the tests to be run, so that a machine that cannot run them is an error.
const REQUIRE: &str = "REQUIRE_E2E";

/// What a test gives.
pub type Tested<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A test on what all tests of the target share.
pub struct Test<T> {
    /// Its name.
    pub name: &'static str,
    /// Whether it does to nodes, or sees of the control plane, what only a cluster of our own allows.
    pub own_cluster: bool,
    /// What it does.
    pub run: for<'a> fn(&'a T) -> Tested<'a>,
}

/// Has the tests run on the cluster of `KUBECONFIG`. That variable alone does not: it may name a cluster that somebody
/// needs, and these tests change what belongs to all of it.
const GIVEN: &str = "E2E_ON_KUBECONFIG";

/// The kubeconfig of the cluster that is to be used in place of one of our own.
#[must_use]
pub fn given_cluster() -> Option<std::path::PathBuf> {
    let asked_for = std::env::var_os(GIVEN).is_some_and(|value| value == "1");
    std::env::var_os("KUBECONFIG").filter(|path| asked_for && !path.is_empty()).map(Into::into)
}

/// Whether the command line asks for some of the tests only.
#[must_use]
pub fn is_partial() -> bool {
    let arguments = Arguments::from_args();
    arguments.filter.is_some() || !arguments.skip.is_empty()
}

/// Runs the tests that the command line asks for, in the manner of Rust's own test harness: those of one stage side by
/// side, and one stage after the other. What they share is dropped, and so cleared away, before this returns.
pub fn run<T: Send + Sync + 'static>(shared: T, stages: Vec<Vec<Test<T>>>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    let given = given_cluster().is_some();
    let reason = if arguments.list || given { None } else { super::prepare().err() };
    if let Some(reason) = &reason {
        if required {
            eprintln!("{REQUIRE}=1, and no pods can run here: {reason:#}");
            return ExitCode::FAILURE;
        }
        eprintln!("ignored, since no pods can run here: {reason:#}");
    }

    let shared = Arc::new(shared);
    let mut failed = false;
    for stage in stages {
        let trials = stage.into_iter().map(|test| {
            let shared = Arc::clone(&shared);
            let ignored = reason.is_some() || (given && test.own_cluster);
            if given && test.own_cluster {
                eprintln!("{} is ignored: it needs a cluster of our own, not that of KUBECONFIG", test.name);
            }
            Trial::test(test.name, move || block_on((test.run)(&shared))).with_ignored_flag(ignored)
        });
        failed |= libtest_mimic::run(&arguments, trials.collect()).has_failed();
    }
    drop(shared);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn block_on(test: Tested<'_>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test).map_err(|error| format!("{error:#}").into())
}

//! A test target whose tests need pods that run: where this machine cannot have them, its tests are counted as ignored,
//! and it says why.

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// Asks for the tests to be run, so that a machine that cannot run them is an error.
const REQUIRE: &str = "REQUIRE_E2E";

/// What a test gives.
pub type Tested<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A test on what all tests of the target share.
pub type Test<T> = (&'static str, for<'a> fn(&'a T) -> Tested<'a>);

/// Runs the tests that the command line asks for, in the manner of Rust's own test harness. What they share is dropped,
/// and so cleared away, before this returns.
pub fn run<T: Send + Sync + 'static>(shared: T, tests: Vec<Test<T>>) -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    let reason = if arguments.list { None } else { super::prepare().err() };
    if let Some(reason) = &reason {
        if required {
            eprintln!("{REQUIRE}=1, and no pods can run here: {reason:#}");
            return ExitCode::FAILURE;
        }
        eprintln!("ignored, since no pods can run here: {reason:#}");
    }

    let shared = Arc::new(shared);
    let trials = tests.into_iter().map(|(name, test)| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || block_on(test(&shared))).with_ignored_flag(reason.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn block_on(test: Tested<'_>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test).map_err(|error| format!("{error:#}").into())
}

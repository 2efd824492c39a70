//! What programs that read Consul see of what Lictor writes, in both modes; `docs/readers.md` is made of it.
//!
//! Lictor's own registries write to a real Consul, and each reader is a real program or library, pinned, that is asked like any
//! user's: with three instances, one of them not ready, after a rollout, with IPv6, and with a hundred. Readers that use DNS are
//! also asked beside a Consul with the settings that the page asks for. What is missing on a machine (Python, Node, their
//! registries) is counted as ignored; `REQUIRE_E2E=1` makes that an error.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

mod coredns;
mod install;
mod page;
mod readers;
#[path = "../support/registries.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod registries;
mod setting;
mod steps;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

use crate::install::Installed;
use crate::readers::READERS;
use crate::setting::{SETTINGS, Setting};
use crate::steps::{Seen, Side};

/// What each reader saw in each setting, by its place in the list.
type Results = BTreeMap<usize, BTreeMap<Setting, Seen>>;

/// How many readers are asked side by side, if the command line does not say: they wait for their programs more than they compute.
const SIDE_BY_SIDE: usize = 4;

/// What all tests share; the first of them makes it, so that a list of the tests, or a filter that names none, starts nothing.
struct Shared {
    begun: OnceLock<(Installed, Vec<Side>)>,
    results: Mutex<Results>,
    runtime: Runtime,
}

impl Shared {
    fn begun(&self) -> &(Installed, Vec<Side>) {
        self.begun.get_or_init(|| {
            self.runtime.block_on(async {
                let mut sides = Vec::new();
                for setting in SETTINGS {
                    sides.push(Side::begin(setting).await);
                }
                (install::everything().await, sides)
            })
        })
    }

    fn ask(&self, number: usize, setting: Setting) -> Result<Completion, Failed> {
        let (installed, sides) = self.begun();
        let reader = &READERS[number];
        let runs = match installed.command(reader.with) {
            Ok(runs) => runs,
            Err(reason) if std::env::var_os("REQUIRE_E2E").is_some_and(|value| value == "1") => {
                return Err(reason.into());
            }
            Err(reason) => return Ok(Completion::ignored_with(reason)),
        };
        let side = sides.iter().find(|side| side.setting == setting).ok_or("no Consul for this setting")?;
        let seen = self.runtime.block_on(steps::walk(reader, &runs, side));
        let seen = seen.map_err(|error| format!("{error:#}"))?;
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let results = results.entry(number).or_default();
        results.insert(setting, seen);
        if reader.was_asked_everywhere(results) {
            page::check_row(reader, results).map_err(|error| format!("{error:#}"))?;
        }
        Ok(Completion::Completed)
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let shared = Arc::new(Shared { begun: OnceLock::new(), results: Mutex::default(), runtime });
    let mut trials = Vec::new();
    for (number, reader) in READERS.iter().enumerate() {
        for setting in SETTINGS.into_iter().filter(|setting| reader.is_asked_in(*setting)) {
            let shared = Arc::clone(&shared);
            let name = format!("{} ({})", reader.id, setting.as_str());
            trials.push(Trial::ignorable_test(name, move || shared.ask(number, setting)));
        }
    }
    let mut failed = libtest_mimic::run(&arguments, trials).has_failed();
    let results = std::mem::take(&mut *shared.results.lock().unwrap());
    let page = Trial::ignorable_test("the_page_is_current", move || page::check(&results));
    failed |= libtest_mimic::run(&arguments, vec![page]).has_failed();
    drop(shared);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

//! `make demo` is the first thing that a newcomer runs: it has to come to its end.

#![allow(clippy::expect_used, reason = "a test says so by failing")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_demo_comes_to_its_end() {
    let demo = Path::new(env!("CARGO_BIN_EXE_demo"));
    let lictor = demo.with_file_name("lictor");
    assert!(lictor.exists(), "{} is not built: run cargo build, or cargo test --workspace", lictor.display());
    let mut limited = Command::new("timeout");
    let output = limited.arg("300").arg(demo).arg(&lictor).env("DEMO_ONCE", "1").output().expect("timeout runs");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the demo ended with {}:\n{said}\n{errors}", output.status);
}

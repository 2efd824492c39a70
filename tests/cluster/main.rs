//! Lictor where it is meant to be: in a cluster, from its image, with pods that run and a Consul whose own checks reach
//! them.
//!
//! The cluster is made of nodes within this machine, or it is the one of `KUBECONFIG`; see [`ground`]. Where no pods
//! can run, all of this is ignored, and `REQUIRE_E2E=1` makes that an error.

mod checks;
mod ground;

use std::process::ExitCode;

use lictor_testbed::node::suite;

use crate::ground::Ground;

fn main() -> ExitCode {
    let tests: Vec<suite::Test<Ground>> =
        vec![("checks::reach_the_pods", |ground| Box::pin(checks::reach_the_pods(ground)))];
    suite::run(Ground::default(), tests)
}

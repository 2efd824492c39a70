//! Lictor where it is meant to be: in a cluster, installed by its chart from its image, with pods that run and a Consul
//! whose own checks reach them.
//!
//! The cluster is made of nodes within this machine, or it is the one of `KUBECONFIG`; see [`environment`]. Where no pods
//! can run, all of this is ignored, and `REQUIRE_E2E=1` makes that an error.
//!
//! - [`image`]: what the Dockerfile makes
//! - [`lifecycle`]: installed, upgraded, uninstalled, installed again
//! - [`checks`]: Consul's checks against pods
//! - [`pods`], [`rolling`]: what happens to pods
//! - [`replicas`]: what happens to Lictor
//! - [`trouble`]: what goes wrong at an installation
//! - [`rights`]: which rights were used in all of that

mod checks;
mod environment;
mod image;
mod lifecycle;
#[path = "../support/older_chart.rs"]
mod older_chart;
mod pods;
mod release;
mod replicas;
mod rights;
mod rolling;
mod shop;
mod trouble;

use std::process::ExitCode;

use lictor_testbed::Mode::{Agent, Catalog};
use lictor_testbed::node::suite::{self, Test, Tested};

use crate::environment::Environment;

/// Tests, each once, or in each mode; where the cluster has to be our own, they say so.
macro_rules! stage {
    ($($room:ident::$name:ident $(($mode:ident))? $([$own:ident])?,)+) => {
        vec![$(stage!(@ $room $name ($($mode)?) ($($own)?)),)+]
    };
    (@ own) => {
        true
    };
    (@) => {
        false
    };
    (@ $room:ident $name:ident ($($mode:ident)?) ($($own:ident)?)) => {
        Test {
            name: concat!(stringify!($room), "::", stringify!($name) $(, " (", stringify!($mode), ")")?),
            own_cluster: stage!(@ $($own)?),
            run: {
                fn run(environment: &Environment) -> Tested<'_> {
                    Box::pin($room::$name(environment $(, $mode)?))
                }
                run
            },
        }
    };
}

fn main() -> ExitCode {
    // What changes the CRD, which is everybody's, comes first; what measures has the machine almost to itself; what
    // looks back on all others comes last.
    let first = stage![lifecycle::the_crd_goes_along,];
    let all = stage![
        lifecycle::nothing_moves_until_it_is_told(Agent),
        lifecycle::nothing_moves_until_it_is_told(Catalog),
        checks::reach_the_pods(Agent),
        checks::reach_the_pods(Catalog),
        pods::scaled_up_and_down(Agent),
        pods::scaled_up_and_down(Catalog),
        pods::killed(Agent),
        pods::killed(Catalog),
        pods::crash_looping(Agent),
        pods::crash_looping(Catalog),
        pods::of_a_stateful_set(Agent),
        pods::of_a_stateful_set(Catalog),
        pods::with_their_namespace(Agent),
        pods::with_their_namespace(Catalog),
        pods::picked_by_labels(Agent),
        pods::picked_by_labels(Catalog),
        pods::of_a_node_that_falls_silent(Agent)[own],
        pods::of_a_node_that_falls_silent(Catalog)[own],
        image::holds_what_it_needs[own],
        trouble::a_wrong_value,
        trouble::a_missing_secret,
        trouble::an_unreachable_consul,
        trouble::no_permission,
    ];
    let quiet = [
        stage![replicas::killed_in_turn(Agent)[own], replicas::killed_in_turn(Catalog)[own],],
        stage![replicas::told_to_stop(Agent), replicas::told_to_stop(Catalog),],
        stage![replicas::asleep_past_its_time(Agent)[own], replicas::asleep_past_its_time(Catalog)[own],],
        stage![rolling::loses_nothing_that_waits(Agent), rolling::loses_nothing_that_waits(Catalog),],
    ];
    let last = stage![rights::are_just_those_that_are_used[own],];
    suite::run(Environment::default(), [first, all].into_iter().chain(quiet).chain([last]).collect())
}

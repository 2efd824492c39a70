//! `make bench`: what Lictor costs and how fast it is, between a real Kubernetes and a real Consul, in `catalog` mode.
//!
//! In: what to measure, how much load, and one program or two. Out: a table with the median of each figure, and with two programs the
//! ratio of the first to the second. Two programs take turns, each against a Consul of its own that is empty at first, so that what else
//! the machine does strikes both.
//!
//! - [`load`]: what is in Kubernetes
//! - [`trial`]: one program at work, and what it costs
//! - [`measures`]: what is measured

mod load;
mod measures;
mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use lictor_testbed::{ControlPlane, Programs, init_tls};

use load::{Load, Size};
use measures::{Measure, Pace};
use trial::Trial;

/// Measures `lictor run`, one program or two in turn.
#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(value_enum)]
    measure: Measure,
    /// The program. With two, figures of the first are divided by those of the second.
    #[arg(required = true, num_args = 1..=2)]
    lictor: Vec<PathBuf>,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    pace: Pace,
    /// How often each program is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    for lictor in &args.lictor {
        ensure!(lictor.is_file(), "{} is not there: build it with `make build`", lictor.display());
    }
    init_tls();
    let programs = Programs::ensure().await?;
    let plane = ControlPlane::start(&programs).await?;
    let load = Load::make(&plane, args.size).await?;
    // The first start gives the resources their finalizers and a status.
    Trial::start(&programs, &plane, &load, &args.lictor[0], Measure::Cold).await?.all_there().await?;

    let mut figures = vec![BTreeMap::<&str, Vec<f64>>::new(); args.lictor.len()];
    for round in 1..=args.rounds {
        for (number, lictor) in args.lictor.iter().enumerate() {
            let trial = Trial::start(&programs, &plane, &load, lictor, args.measure).await?;
            let measured = args.measure.run(trial, &load, args.pace).await?;
            let told: Vec<String> = measured.iter().map(|(name, figure)| format!("{name} {figure:.3}")).collect();
            println!("round {round}, {}: {}", lictor.display(), told.join(", "));
            for (name, figure) in measured {
                figures[number].entry(name).or_default().push(figure);
            }
        }
    }
    for (name, first) in &figures[0] {
        let first = median(first);
        match figures.get(1).and_then(|second| second.get(name)).map(|second| median(second)) {
            None => println!("{name:32} {first:10.3}"),
            Some(second) => println!("{name:32} {first:10.3} {second:10.3}   ratio {:.2}", first / second),
        }
    }
    load.delete().await;
    Ok(())
}

fn median(figures: &[f64]) -> f64 {
    percentile(figures, 50)
}

/// The value that `percent` of the figures do not exceed; NaN where there are none.
fn percentile(figures: &[f64], percent: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

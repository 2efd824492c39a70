//! `make bench`: what Lictor costs and how fast it is, between a real Kubernetes and a real Consul.
//!
//! In: the programs, and what to measure if not everything. Out: a table with the median and the spread of each figure, and the ratio of
//! the first program to each other one; the values as JSON. The programs take turns, each against a Consul of its own that is empty at
//! first, so that what else the machine does strikes all.
//!
//! - [`scenarios`]: what is measured when nothing is named
//! - [`load`]: what is in Kubernetes
//! - [`trial`]: one program at work
//! - [`spent`]: what it costs
//! - [`measures`]: how each thing is measured; [`drift`]: what somebody else changes in Consul
//! - [`report`], [`plot`]: what is told of it
//!
//! `bare` is a program of its own: the least one that does the same work.

mod drift;
mod load;
mod measures;
mod plot;
mod report;
mod scenarios;
mod spent;
mod trial;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use lictor_testbed::{ControlPlane, Programs, init_tls};
use tokio::time::timeout;

use load::{Load, Size};
use measures::{Measure, Pace};
use report::Report;
use scenarios::Scenario;
use trial::{Tested, Trial};

/// Measures `lictor run` beside other programs, in turn.
#[derive(Parser)]
struct Args {
    /// What to measure of the load that the other flags say; without it, all scenarios.
    #[arg(value_enum)]
    measure: Option<Measure>,
    /// The scenarios, by name, in place of all.
    #[arg(long, value_delimiter = ',', conflicts_with = "measure")]
    only: Vec<String>,
    /// The program. Its figures are divided by those of the others.
    #[arg(long)]
    lictor: PathBuf,
    /// Another build of it.
    #[arg(long)]
    base: Option<PathBuf>,
    /// The least program.
    #[arg(long)]
    bare: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    pace: Pace,
    /// How often each program is measured, in place of what the scenario says.
    #[arg(long)]
    rounds: Option<usize>,
    /// The file that all values are written to.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The folder that plots are written to.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// The commit of the program, for the table.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let tested = args.tested()?;
    init_tls();
    let programs = Programs::ensure().await?;
    let mut report = Report::new(&args.commit, tested.iter().map(|tested| tested.name).collect());
    for scenario in args.scenarios()? {
        report.begin(&scenario);
        if let Err(error) = run(&programs, &scenario, &tested, &mut report).await {
            report.tell(&format!("{} has ended early: {error:#}", scenario.name));
        }
        if let Some(file) = &args.json {
            report.write(file)?;
        }
        if let Some(folder) = &args.plots {
            report.plot(folder)?;
        }
    }
    println!("{}", report.table());
    Ok(())
}

impl Args {
    fn tested(&self) -> Result<Vec<Tested>> {
        let others = [("base", &self.base), (Tested::BARE, &self.bare)];
        let others = others.into_iter().filter_map(|(name, path)| Some((name, path.clone()?)));
        [("lictor", self.lictor.clone())]
            .into_iter()
            .chain(others)
            .map(|(name, path)| Tested::new(name, path))
            .collect()
    }

    fn scenarios(&self) -> Result<Vec<Scenario>> {
        let mut scenarios = match self.measure {
            Some(measure) => vec![Scenario::of_one(measure, self.size, self.pace, 3)],
            None => scenarios::all(),
        };
        for name in &self.only {
            scenarios.iter().find(|scenario| scenario.name == name).with_context(|| format!("no scenario {name}"))?;
        }
        scenarios.retain(|scenario| self.only.is_empty() || self.only.iter().any(|name| name == scenario.name));
        for scenario in &mut scenarios {
            scenario.rounds = self.rounds.unwrap_or(scenario.rounds);
        }
        Ok(scenarios)
    }
}

/// Lets all programs go through a scenario in turn.
async fn run(programs: &Programs, scenario: &Scenario, tested: &[Tested], report: &mut Report) -> Result<()> {
    let plane = ControlPlane::start(programs).await?;
    let mut load = Load::make(&plane, scenario.size).await?;
    report.tell("  the load is in Kubernetes");
    let limited = scenario.is_limited();
    if !scenario.fresh && !limited {
        // The first start gives the resources their finalizers and statuses.
        let trial = Trial::start(programs, &plane, &load, &tested[0], scenario.mode, false).await?;
        trial.all_there().await?;
        measures::settled(&trial).await?;
        report.tell("  the resources have finalizers and statuses");
    }
    let tested = || tested.iter().filter(|tested| scenario.has_bare() || !tested.is_bare());
    for round in 1..=scenario.rounds {
        for tested in tested() {
            report.tell(&format!("  round {round} of {}, {}", scenario.rounds, tested.name));
            let mut trial = Trial::start(programs, &plane, &load, tested, scenario.mode, limited).await?;
            for &step in &scenario.steps {
                if tested.is_bare() && !step.is_for_bare() {
                    continue;
                }
                let taken = timeout(step.limit(), step.take(&mut trial, &mut load)).await;
                let figures = taken.with_context(|| format!("{step} takes longer than {:?}", step.limit()))?;
                report.add(tested.name, step, figures.with_context(|| format!("{}, {step}", tested.name))?);
            }
        }
    }
    Ok(())
}

//! What `make bench` measures when nothing is named: loads, and what happens to each.

use lictor_testbed::Mode;

use crate::load::Size;
use crate::measures::{Measure, Pace, Step};

/// A load, and the steps that each program goes through with it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) size: Size,
    pub(crate) mode: Mode,
    /// The resources have neither finalizers nor statuses at the start of a trial.
    pub(crate) fresh: bool,
    /// It is one of those that differ by their size alone.
    pub(crate) plotted: bool,
    /// How often each program is measured.
    pub(crate) rounds: usize,
    pub(crate) steps: Vec<Step>,
}

impl Scenario {
    fn new(name: &'static str, size: Size, rounds: usize, steps: &[(Measure, u32, u32)]) -> Self {
        let step = |&(measure, rate, seconds): &(Measure, u32, u32)| Step { measure, pace: Pace { rate, seconds } };
        Self {
            name,
            size,
            mode: Mode::Catalog,
            fresh: false,
            plotted: false,
            rounds,
            steps: steps.iter().map(step).collect(),
        }
    }

    /// One measure of one load.
    pub(crate) fn of_one(measure: Measure, size: Size, pace: Pace, rounds: usize) -> Self {
        let mut steps = vec![Step { measure: Measure::Cold, pace }];
        match measure {
            Measure::Cold => {}
            // There never are all instances.
            Measure::Refused => steps = vec![Step { measure, pace }],
            _ => steps.push(Step { measure, pace }),
        }
        Self { name: "one", size, mode: Mode::Catalog, fresh: measure == Measure::Wipe, plotted: false, rounds, steps }
    }

    /// The token may not write the first service.
    pub(crate) fn is_limited(&self) -> bool {
        self.steps.iter().any(|step| step.measure == Measure::Refused)
    }

    /// Says whether `bare` can do this: it writes to the catalog alone.
    pub(crate) fn has_bare(&self) -> bool {
        self.mode == Mode::Catalog
    }
}

/// All of them, the longest last.
pub(crate) fn all() -> Vec<Scenario> {
    use Measure::{Cold, Drift, Flips, Idle, Nodes, Restart, Rollout, Storm, Wipe};
    let (one, ten) = (Size::of(1_000, 100, 10), Size::of(10_000, 1_000, 50));
    let (cold, flips, idle, restart) = ((Cold, 0, 0), (Flips, 20, 10), (Idle, 0, 60), (Restart, 0, 0));
    let plotted = |scenario| Scenario { plotted: true, ..scenario };
    vec![
        plotted(Scenario::new("1k", one, 1, &[cold, idle, flips, restart])),
        plotted(Scenario::new("10k", ten, 3, &[cold, idle, flips, (Flips, 200, 10), (Storm, 0, 0), restart])),
        Scenario { fresh: true, ..Scenario::new("fresh", ten, 3, &[cold, (Wipe, 0, 0)]) },
        Scenario::new("one-service", Size::of(5_000, 1, 1_000), 3, &[cold, flips, (Rollout, 0, 0)]),
        Scenario::new("zones", Size::of(20_000, 2_000, 100), 2, &[cold, (Nodes, 0, 10)]),
        Scenario { mode: Mode::Agent, ..Scenario::new("agent", one, 3, &[cold, flips]) },
        Scenario::new("drift-1k", one, 1, &[cold, (Drift, 20, 0)]),
        Scenario::new("drift-10k", ten, 1, &[cold, (Drift, 20, 0)]),
        plotted(Scenario::new("100k", Size::of(100_000, 10_000, 1_000), 1, &[cold, idle, flips, restart])),
    ]
}

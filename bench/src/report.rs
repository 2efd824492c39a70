//! What was measured: as lines while it goes on, as a table, and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use crate::load::Size;
use crate::measures::{Figures, Step};
use crate::plot::{self, Series};
use crate::scenarios::Scenario;

/// What is plotted: the file, the title, the step and the figure.
const PLOTS: [(&str, &str, &str, &str); 4] = [
    ("cold", "cold start to all there, ms", "cold", "start to all there, ms"),
    ("flips", "readiness at 20/s, p99, ms", "flips, 20/s for 10 s", "p99, ms"),
    ("idle", "CPU of an idle minute, s", "idle, 60 s", "CPU, s"),
    ("rss", "RSS after the cold start, MB", "cold", "RSS, MB"),
];

/// All figures so far.
pub(crate) struct Report {
    commit: String,
    begun: Instant,
    programs: Vec<&'static str>,
    scenarios: Vec<Measured>,
}

struct Measured {
    name: &'static str,
    title: String,
    size: Size,
    /// It differs from others that are so by its size alone.
    plotted: bool,
    figures: Vec<Row>,
}

/// A figure: the step and its name, and for each program one value a round.
struct Row {
    step: String,
    name: &'static str,
    values: BTreeMap<&'static str, Vec<f64>>,
}

impl Report {
    pub(crate) fn new(commit: &str, programs: Vec<&'static str>) -> Self {
        Self { commit: commit.to_owned(), begun: Instant::now(), programs, scenarios: Vec::new() }
    }

    /// Says what is going on.
    pub(crate) fn tell(&self, what: &str) {
        eprintln!("[{:5.0} s] {what}", self.begun.elapsed().as_secs_f64());
    }

    pub(crate) fn begin(&mut self, scenario: &Scenario) {
        let title = format!("{}, `{}` mode", scenario.size, scenario.mode.as_str());
        self.tell(&format!("{}: {title}", scenario.name));
        let Scenario { name, size, plotted, .. } = *scenario;
        self.scenarios.push(Measured { name, title, size, plotted, figures: Vec::new() });
    }

    /// Takes the figures of a program's step in the scenario that has begun.
    pub(crate) fn add(&mut self, program: &'static str, step: Step, figures: Figures) {
        let step = step.to_string();
        let told: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {}", round(*value))).collect();
        self.tell(&format!("  {program}, {step}: {}", told.join("; ")));
        let Some(scenario) = self.scenarios.last_mut() else { return };
        for (name, value) in figures {
            let rows = &mut scenario.figures;
            let place = rows.iter().position(|row| row.step == step && row.name == name).unwrap_or_else(|| {
                rows.push(Row { step: step.clone(), name, values: BTreeMap::new() });
                rows.len() - 1
            });
            rows[place].values.entry(program).or_default().push(value);
        }
    }

    /// A table for each scenario: the median of each figure with the least and the greatest, and the ratio of the first program to
    /// each other one. What is 0 throughout is left out.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![format!("commit {}, {}", self.commit, machine()["text"].as_str().unwrap_or_default())];
        for scenario in &self.scenarios {
            let others = &self.programs[1..];
            let ratios = others.iter().map(|other| format!(" to {other} |"));
            lines.push(format!("\n**{}**: {}\n", scenario.name, scenario.title));
            lines.push(format!("| step | figure | {} |{}", self.programs.join(" | "), ratios.collect::<String>()));
            lines.push(format!("| --- | --- |{}", " --- |".repeat(self.programs.len() + others.len())));
            for row in scenario.figures.iter().filter(|row| row.says_something()) {
                let cells =
                    self.programs.iter().map(|program| row.values.get(program).map_or("–".into(), |all| spread(all)));
                let ratios = others.iter().map(|other| row.ratio(self.programs[0], other));
                let cells: Vec<String> = cells.chain(ratios).collect();
                lines.push(format!("| {} | {} | {} |", row.step, row.name, cells.join(" | ")));
            }
        }
        lines.join("\n")
    }

    /// Writes all values.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let scenario = |scenario: &Measured| {
            let figures = scenario
                .figures
                .iter()
                .map(|row| json!({ "step": row.step, "figure": row.name, "values": row.values }));
            json!({ "name": scenario.name, "load": scenario.size, "figures": figures.collect::<Vec<_>>() })
        };
        let report = json!({
            "commit": self.commit,
            "machine": machine(),
            "unix_time": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            "scenarios": self.scenarios.iter().map(scenario).collect::<Vec<_>>(),
        });
        Ok(fs::write(file, serde_json::to_vec_pretty(&report)?)?)
    }

    /// Writes a plot of each figure that is plotted into a folder.
    pub(crate) fn plot(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (file, title, step, name) in PLOTS {
            let points = |program: &&'static str| {
                let scenarios = self.scenarios.iter().filter(|scenario| scenario.plotted);
                let mut points: Vec<(f64, f64)> =
                    scenarios.filter_map(|scenario| scenario.point(program, step, name)).collect();
                points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
                Series { name: program, points }
            };
            if let Some(svg) = plot::svg(title, self.programs.iter().map(points).collect()) {
                fs::write(folder.join(format!("{file}.svg")), svg)?;
            }
        }
        Ok(())
    }
}

impl Measured {
    /// The number of instances, and the median of a program's figure.
    fn point(&self, program: &str, step: &str, name: &str) -> Option<(f64, f64)> {
        let row = self.figures.iter().find(|row| row.step == step && row.name == name)?;
        let instances = u32::try_from(self.size.instances).ok()?;
        Some((instances.into(), percentile(row.values.get(program)?, 50)))
    }
}

impl Row {
    fn says_something(&self) -> bool {
        self.values.values().flatten().any(|value| *value != 0.0)
    }

    /// The median of the rounds' ratios: what else the machine did in a round struck both programs.
    fn ratio(&self, first: &str, other: &str) -> String {
        let (Some(first), Some(other)) = (self.values.get(first), self.values.get(other)) else { return "–".into() };
        let ratios: Vec<f64> = first.iter().zip(other).map(|(first, other)| first / other).collect();
        let ratio = percentile(&ratios, 50);
        if ratio.is_finite() { format!("{ratio:.2}") } else { "–".into() }
    }
}

/// The median, and between which values all are.
fn spread(values: &[f64]) -> String {
    let [least, median, greatest] = [0, 50, 100].map(|percent| round(percentile(values, percent)));
    if least == greatest { median } else { format!("{median} ({least} to {greatest})") }
}

/// Three digits are as many as mean anything.
fn round(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value that `percent` of the figures do not exceed; NaN where there are none.
pub(crate) fn percentile(figures: &[f64], percent: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What it was measured on.
fn machine() -> Value {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
        line.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (processor, memory) = (field("/proc/cpuinfo", "model name"), field("/proc/meminfo", "MemTotal"));
    let text = format!("{cores} cores ({processor}), {memory} of memory");
    json!({ "text": text, "cores": cores, "processor": processor, "memory": memory })
}

//! What was measured: as lines while it goes on, as a table, and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use crate::measures::{Figures, Step};
use crate::scenarios::Scenario;

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
    size: Value,
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
        let size = json!(scenario.size);
        self.scenarios.push(Measured { name: scenario.name, title, size, figures: Vec::new() });
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
    /// each other one.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![format!("commit {}, {}", self.commit, machine()["text"].as_str().unwrap_or_default())];
        for scenario in &self.scenarios {
            let others = &self.programs[1..];
            let ratios = others.iter().map(|other| format!(" to {other} |"));
            lines.push(format!("\n**{}**: {}\n", scenario.name, scenario.title));
            lines.push(format!("| step | figure | {} |{}", self.programs.join(" | "), ratios.collect::<String>()));
            lines.push(format!("| --- | --- |{}", " --- |".repeat(self.programs.len() + others.len())));
            for row in &scenario.figures {
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
}

impl Row {
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

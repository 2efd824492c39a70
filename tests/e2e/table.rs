//! The table of scenarios in `docs/scenarios.md`, generated from the tests themselves.

use std::fmt::Write as _;
use std::path::Path;

/// One scenario, as it stands in the table.
pub(crate) struct Line {
    /// The test's own name.
    pub(crate) name: &'static str,
    /// The room that it is in.
    pub(crate) room: &'static str,
    /// What it shows.
    pub(crate) says: &'static [&'static str],
    /// Whether it is run, by mode.
    pub(crate) cells: Cells,
}

/// Where a scenario is run.
pub(crate) enum Cells {
    /// In each mode, or not, for a reason.
    ByMode { agent: Cell, catalog: Cell },
    /// Once: no registration is made in it.
    Once,
}

/// A scenario in a mode.
pub(crate) enum Cell {
    Runs,
    MissingValue(&'static str),
}

/// The whole document.
pub(crate) fn document(lines: &[Line]) -> String {
    let mut text = String::from(
        "<!-- generated from the tests' own names; `LICTOR_UPDATE=1 cargo test --test e2e the_table_is_current` \
         writes it anew -->\n\
         # Scenarios\n\n\
         These tests run the operator's own program between a real Kubernetes API server with its controllers and a real \
         Consul, in each mode of registration. If a scenario does not run in a mode, the cell links to the reason below.\n\n\
         | scenario | what it shows | agent | catalog |\n| --- | --- | --- | --- |\n",
    );
    let mut blanks = Vec::new();
    for line in lines {
        let mut cell = |cell: &Cell| match cell {
            Cell::Runs => "yes".to_owned(),
            Cell::MissingValue(reason) => {
                let known = blanks.iter().position(|known| known == reason);
                let number = known.unwrap_or_else(|| {
                    blanks.push(*reason);
                    blanks.len() - 1
                });
                format!("[{}](#blanks)", number + 1)
            }
        };
        let (agent, catalog) = match &line.cells {
            Cells::ByMode { agent, catalog } => (cell(agent), cell(catalog)),
            Cells::Once => ("once".to_owned(), "once".to_owned()),
        };
        let says: Vec<&str> = line.says.iter().map(|line| line.trim()).collect();
        let _ = writeln!(text, "| `{}::{}` | {} | {agent} | {catalog} |", line.room, line.name, says.join(" "));
    }
    text.push_str("\n## Blanks\n\n");
    for (number, reason) in blanks.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}", number + 1);
    }
    let runs = |cell: &Cell| usize::from(matches!(cell, Cell::Runs));
    let tests: usize = lines
        .iter()
        .map(|line| match &line.cells {
            Cells::ByMode { agent, catalog } => runs(agent) + runs(catalog),
            Cells::Once => 1,
        })
        .sum();
    let _ = writeln!(text, "\n{} scenarios, {tests} tests.", lines.len());
    text
}

/// Compares a generated page with the one in the repository, or writes it.
pub(crate) fn check_page(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("LICTOR_UPDATE").is_some() {
        let written =
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, wanted));
        if let Err(error) = written {
            panic!("{}: {error}", path.display());
        }
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == wanted, "{} is not current: run this test with LICTOR_UPDATE=1", path.display());
}

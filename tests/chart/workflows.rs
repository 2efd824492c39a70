//! What runs on GitHub.

use anyhow::{Context, Result, ensure};
use lictor_testbed::programs::tools::Tool;

use crate::helm::say;
use crate::{file, read};

/// The workflows.
fn workflows() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(file(".github/workflows"))?;
    let names = entries.map(|entry| Ok(format!(".github/workflows/{}", entry?.file_name().display())));
    names.collect()
}

#[tokio::test]
async fn actionlint_has_nothing_to_say() -> Result<()> {
    let workflows = workflows()?;
    ensure!(workflows.len() >= 2, "{workflows:?}");
    // Its optional helpers differ from machine to machine.
    let args = ["-no-color", "-shellcheck=", "-pyflakes="].map(ToOwned::to_owned);
    let files = workflows.iter().map(|name| file(name).display().to_string());
    say(&Tool::Actionlint.ensure().await?, args.into_iter().chain(files)).await.map(drop)
}

/// What they do is what people do: the Makefile knows each target that they name.
#[test]
fn they_call_targets_that_there_are() -> Result<()> {
    let makefile = read("Makefile");
    let mut targets = 0;
    for name in workflows()? {
        for line in read(&name).lines() {
            let Some((_, rest)) = line.split_once("make ") else { continue };
            if line.trim_start().starts_with('#') {
                continue;
            }
            let target = rest.split_whitespace().find(|word| !word.contains('=')).context("a target")?;
            let there = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            ensure!(there, "{name}: the Makefile has no {target}");
            targets += 1;
        }
    }
    ensure!(targets > 3, "{targets} targets were found: is this test blind?");
    Ok(())
}

/// Actions run with our rights: each is pinned to what cannot be moved, and no job has more rights than it needs.
#[test]
fn they_trust_little() -> Result<()> {
    for name in workflows()? {
        let text = read(&name);
        ensure!(text.contains("\npermissions: {}\n"), "{name}: begin without rights");
        for line in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")) {
            if line.starts_with("./") {
                continue;
            }
            let (_, version) = line.split_once('@').with_context(|| line.to_owned())?;
            let sha = version.split_whitespace().next().unwrap_or_default();
            let pinned = sha.len() == 40 && sha.chars().all(|c| c.is_ascii_hexdigit()) && line.contains(" # v");
            ensure!(pinned, "{name}: {line} is not pinned to a commit, with its version beside it");
        }
        ensure!(!text.contains("pull_request_target"), "{name}: runs code of others with our rights");
    }
    Ok(())
}

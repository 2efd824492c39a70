//! What runs on GitHub.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lictor_testbed::WorkDir;
use lictor_testbed::programs::tools::Tool;
use serde_json::Value;

use crate::drift::kubernetes_versions;
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
    ensure!(workflows.len() >= 3, "{workflows:?}");
    // Its optional helpers differ from machine to machine.
    let args = ["-no-color", "-shellcheck=", "-pyflakes="].map(ToOwned::to_owned);
    let files = workflows.iter().map(|name| file(name).display().to_string());
    say(&Tool::Actionlint.ensure().await?, args.into_iter().chain(files)).await.map(drop)
}

/// What they do is what people do: the Makefile knows each target that they name, and `make help` tells of it.
#[test]
fn they_call_targets_that_there_are() -> Result<()> {
    let makefile = read("Makefile");
    let mut targets = BTreeSet::new();
    for name in workflows()? {
        for line in read(&name).lines().filter(|line| !line.trim_start().starts_with('#')) {
            let Some((_, rest)) = line.split_once("make ") else { continue };
            // Up to what the shell takes for the end of a command.
            let words = rest.split(['&', '|', ';', ')']).next().unwrap_or_default().split_whitespace();
            targets.extend(words.filter(|word| !word.starts_with('-') && !word.contains('=')).map(ToOwned::to_owned));
        }
    }
    for target in &targets {
        let rule = makefile.lines().find(|line| line.starts_with(&format!("{target}:")));
        let rule = rule.with_context(|| format!("the Makefile has no {target}"))?;
        ensure!(rule.contains(" ## "), "{rule}: not in `make help`");
    }
    for target in ["advisories", "chart", "e2e", "image", "lint", "sbom", "test", "version"] {
        ensure!(targets.contains(target), "nothing runs {target}: {targets:?}");
    }
    Ok(())
}

/// A release has a section in the changelog, or ends before anything is pushed.
#[test]
fn a_release_has_its_notes() -> Result<()> {
    let workflow: Value = serde_saphyr::from_str(&read(".github/workflows/release.yaml"))?;
    let steps = workflow.pointer("/jobs/version/steps").and_then(Value::as_array).context("steps")?;
    let script = steps.iter().find(|step| step["id"] == "notes").and_then(|step| step["run"].as_str());
    let script = script.context("no step finds the notes")?;
    let notes = |changelog: &str| -> Result<Option<String>> {
        let folder = WorkDir::create("notes")?;
        folder.write("CHANGELOG.md", changelog)?;
        let output = folder.join("output");
        // As GitHub runs `shell: bash`.
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]).current_dir(folder.path());
        let ended = bash.env("VERSION", "0.1.0").env("GITHUB_OUTPUT", &output).output()?;
        let said = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.success() != said.contains("::error::"), "{said}");
        Ok(ended.status.success().then(|| std::fs::read_to_string(&output)).transpose()?)
    };
    let told = notes("# Changelog\n\n## [0.1.1]\n\nLater.\n\n## [0.1.0] - 2026-01-02\n\nNew.\n\n## [0.0.9]\n\nOld.\n")?;
    assert_eq!(told.as_deref(), Some("notes<<END-OF-NOTES\n\nNew.\n\nEND-OF-NOTES\n"));
    assert_eq!(notes("## [0.1.0]\n\n## [0.0.9]\n\nOld.\n")?, None);
    assert_eq!(notes("## [Unreleased]\n\nNew.\n")?, None);

    let jobs = workflow["jobs"].as_object().context("jobs")?;
    for (name, job) in jobs {
        let mut writes = job["permissions"].as_object().into_iter().flat_map(|rights| rights.values());
        let mut needs = job["needs"].as_array().into_iter().flatten();
        let waits = !writes.any(|right| right == "write") || needs.any(|needed| needed == "version");
        ensure!(waits, "{name} may push before the version is looked at");
    }
    Ok(())
}

/// What they set for the tests, the tests read.
#[test]
fn what_they_set_is_read() -> Result<()> {
    let mut sources = String::new();
    for folder in ["tests/cluster", "tests/testbed/src/node"] {
        for entry in std::fs::read_dir(file(folder))? {
            let path = entry?.path();
            if path.is_file() {
                sources.push_str(&std::fs::read_to_string(path)?);
            }
        }
    }
    let mut names = BTreeSet::new();
    for name in workflows()? {
        let text = read(&name);
        let keys = text.lines().filter_map(|line| Some(line.split_once(": ")?.0.trim().to_owned()));
        names.extend(keys.filter(|key| key.starts_with("LICTOR_") || key == "REQUIRE_E2E"));
    }
    ensure!(names.len() == 3, "{names:?}");
    for name in names {
        ensure!(sources.contains(&format!("\"{name}\"")), "no test reads {name}");
    }
    Ok(())
}

/// What needs pods that run is not ignored here, where nobody would see it.
#[test]
fn they_ignore_no_tests() -> Result<()> {
    let workflow: Value = serde_saphyr::from_str(&read(".github/workflows/ci.yaml"))?;
    ensure!(workflow["env"]["REQUIRE_E2E"] == "1", "no test is required");
    let jobs = workflow["jobs"].as_object().context("jobs")?;
    let steps = jobs.values().filter_map(|job| job["steps"].as_array()).flatten();
    let runs = steps.filter_map(|step| step["run"].as_str());
    let tests: Vec<_> = runs.filter(|run| run.contains("make test") || run.contains("make e2e")).collect();
    ensure!(tests.len() == 3, "{tests:#?}");
    for run in tests {
        // Only root can have pods run, and is told.
        ensure!(run.starts_with("sudo --preserve-env "), "{run}");
    }
    Ok(())
}

/// The cluster tests run on the oldest Kubernetes that the chart allows and on the newest that all others run on; and
/// what is linted is built with the same Rust as the image.
#[test]
fn they_use_the_versions_that_we_name() -> Result<()> {
    let workflow: Value = serde_saphyr::from_str(&read(".github/workflows/ci.yaml"))?;
    let matrix = workflow.pointer("/jobs/e2e/strategy/matrix/include").and_then(Value::as_array).context("a matrix")?;
    let versions: Vec<_> = matrix.iter().filter_map(|one| one["version"].as_str()).collect();
    let (oldest, newest) = kubernetes_versions()?;
    ensure!(versions == [&*oldest, &*newest], "{versions:?}, and not {oldest} and {newest}");
    for one in matrix {
        let (version, node) = (one["version"].as_str().context("a version")?, one["node"].as_str().context("a node")?);
        ensure!(node.starts_with(&format!("kindest/node:v{version}.")) && node.contains("@sha256:"), "{node}");
    }

    let rust = read("Dockerfile");
    let rust = rust.lines().find_map(|line| line.strip_prefix("FROM docker.io/library/rust:")).context("rust")?;
    for name in [".github/workflows/ci.yaml", ".github/workflows/advisories.yaml"] {
        let workflow: Value = serde_saphyr::from_str(&read(name))?;
        let used = workflow["env"]["RUSTUP_TOOLCHAIN"].as_str().context("a toolchain")?;
        ensure!(rust.starts_with(&format!("{used}-")), "{name}: {rust} and {used}");
    }
    Ok(())
}

/// Each program of the tests has its updates, but for the oldest versions that are supported: these stay as old as the
/// names of their folders say.
#[test]
fn no_program_is_forgotten() -> Result<()> {
    let updates: Value = serde_saphyr::from_str(&read(".github/dependabot.yml"))?;
    let updates = updates["updates"].as_array().context("updates")?;
    let updates = updates.iter().find(|one| one["package-ecosystem"] == "gomod").context("nothing for Go modules")?;
    let list = |name: &str| updates[name].as_array().into_iter().flatten();
    let allowed: BTreeSet<_> = list("allow").filter_map(|one| one["dependency-name"].as_str()).collect();
    let directories: BTreeSet<_> = list("directories").filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    let (mut wanted, mut old) = (BTreeSet::new(), 0);
    for entry in std::fs::read_dir(file("tests/testbed/programs"))? {
        let folder = entry?.path();
        // A program of our own has nothing to be updated.
        if !folder.join("go.sum").is_file() {
            continue;
        }
        let name = folder.file_name().context("a name")?.to_string_lossy().into_owned();
        let pins = std::fs::read_to_string(folder.join("go.mod"))?;
        let modules = pins.lines().filter_map(|line| line.trim().trim_start_matches("require ").split_once(" v"));
        if let Some((program, version)) = oldest(&name) {
            let mut versions = modules.filter(|(module, _)| module.split('/').any(|part| part == program));
            ensure!(
                versions.any(|(_, pinned)| pinned.starts_with(&format!("{version}."))),
                "{name}: not pinned to {version}"
            );
            old += 1;
        } else {
            let mut named = modules.filter(|(module, _)| allowed.contains(*module));
            ensure!(named.next().is_some(), "{name}: no update");
            wanted.insert(format!("/tests/testbed/programs/{name}"));
        }
    }
    assert_eq!(directories, wanted);
    ensure!(old > 0, "no program of an old version: is this test blind?");
    Ok(())
}

/// The program and the version in the name of a folder: `consul` and `1.20` of `consul-1.20`.
fn oldest(name: &str) -> Option<(&str, &str)> {
    let (program, version) = name.rsplit_once('-')?;
    let (major, minor) = version.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(major) && is_number(minor)).then_some((program, version))
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

/// What the image begins with is pinned as actions are.
#[test]
fn base_images_cannot_be_moved() -> Result<()> {
    let dockerfile = read("Dockerfile");
    let begins = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split_whitespace().next());
    // A stage of the file's own has neither a registry nor a folder in its name.
    let bases: Vec<_> = begins.filter(|image| image.contains('/')).collect();
    ensure!(bases.len() == 2, "{bases:?}");
    for base in bases {
        let pinned = base.split_once("@sha256:").is_some_and(|(image, digest)| {
            let named = image.rsplit('/').next().is_some_and(|name| name.contains(':'));
            named && digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit())
        });
        ensure!(pinned, "{base}: not pinned to a digest, with its tag beside it");
    }
    Ok(())
}

/// A job of a workflow: what it may write, and what it does.
struct Job {
    name: String,
    writes: BTreeSet<String>,
    runs: String,
    uses: Vec<String>,
}

fn jobs(workflow: &str) -> Result<Vec<Job>> {
    let parsed: Value = serde_saphyr::from_str(&read(workflow))?;
    let jobs = parsed["jobs"].as_object().context("jobs")?.iter().map(|(name, job)| {
        let rights = job["permissions"].as_object().into_iter().flatten();
        let steps = job["steps"].as_array().into_iter().flatten();
        let texts = |key: &str| steps.clone().filter_map(|step| step[key].as_str().map(ToOwned::to_owned)).collect();
        let runs: Vec<String> = texts("run");
        Job {
            name: format!("{workflow}: {name}"),
            writes: rights.filter(|(_, right)| *right == "write").map(|(name, _)| name.clone()).collect(),
            runs: runs.join("\n"),
            uses: texts("uses"),
        }
    });
    Ok(jobs.collect())
}

/// What builds runs code of others, and may write nothing. What may write has nothing of the repository to run, and what
/// signs pushes nothing.
#[test]
fn who_builds_may_not_write() -> Result<()> {
    let (mut builds, mut writes, mut signs) = (0, 0, 0);
    for job in workflows()?.iter().map(|name| jobs(name)).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        let name = &job.name;
        let words: BTreeSet<_> = job.runs.split_whitespace().collect();
        let runs_code = ["make", "cargo", "build"].iter().any(|word| words.contains(word));
        let has_code = runs_code || job.uses.iter().any(|action| action.starts_with("actions/checkout@"));
        if has_code {
            ensure!(job.writes.is_empty(), "{name}: runs code of others and may write {:?}", job.writes);
            builds += usize::from(runs_code);
        }
        writes += usize::from(!job.writes.is_empty());
        let pushes = job.runs.contains(" push ") || job.runs.contains("imagetools create");
        let may_sign = job.writes.contains("id-token");
        ensure!(may_sign == job.runs.contains("cosign sign"), "{name}: a signature needs the right to an identity");
        ensure!(!(may_sign && pushes), "{name}: signs and pushes");
        signs += usize::from(may_sign);
    }
    ensure!(
        builds >= 8 && writes == 4 && signs == 1,
        "{builds} build, {writes} write, {signs} sign: is this test blind?"
    );

    let release = jobs(".github/workflows/release.yaml")?;
    let sign = release.iter().find(|job| job.writes.contains("id-token")).context("no job signs")?;
    for subject in [
        "cosign sign --yes --recursive \"$IMAGE@",
        "cosign sign --yes \"$CHARTS/",
        "cosign attest --yes --type cyclonedx",
    ] {
        ensure!(sign.runs.contains(subject), "nothing does {subject}");
    }
    let provenance = sign.uses.iter().filter(|action| action.starts_with("actions/attest-build-provenance@"));
    ensure!(provenance.count() == 2, "the image and the chart have provenance");
    Ok(())
}

/// What is known to be bad is looked for every day, and before anything is built for a release.
#[test]
fn advisories_are_read_daily_and_before_a_release() -> Result<()> {
    let daily: Value = serde_saphyr::from_str(&read(".github/workflows/advisories.yaml"))?;
    let cron = daily.pointer("/on/schedule/0/cron").and_then(Value::as_str).context("a schedule")?;
    ensure!(cron.split(' ').skip(2).all(|field| field == "*"), "{cron} is not every day");
    let jobs = jobs(".github/workflows/advisories.yaml")?;
    ensure!(jobs.iter().any(|job| job.runs.contains("make advisories")), "nobody reads advisories of crates");
    ensure!(
        jobs.iter().flat_map(|job| &job.uses).any(|action| action.starts_with("anchore/scan-action@")),
        "nobody scans the image"
    );
    let release: Value = serde_saphyr::from_str(&read(".github/workflows/release.yaml"))?;
    ensure!(release["jobs"]["advisories"]["uses"] == "./.github/workflows/advisories.yaml", "a release reads none");
    let waits = release.pointer("/jobs/build/needs").and_then(Value::as_array).context("needs")?;
    ensure!(waits.iter().any(|job| job == "advisories"), "{waits:?}");
    Ok(())
}

/// A release's chart runs the image that was released with it, unless the values name another one.
#[tokio::test]
async fn a_released_chart_is_bound_to_its_image() -> Result<()> {
    let (folder, version) = (WorkDir::create("chart")?, env!("CARGO_PKG_VERSION"));
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let helm = Tool::Helm.ensure().await?;
    let path = std::env::join_paths(
        helm.parent().map(Into::into).into_iter().chain(std::env::split_paths(&std::env::var("PATH")?)),
    )?;
    let mut make = Command::new("make");
    make.args(["--silent", "chart", &format!("DIGEST={digest}")]).current_dir(file(".")).env("PATH", path);
    let output = make.env("CARGO_TARGET_DIR", folder.path()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let chart = folder.join(format!("chart/lictor-{version}.tgz")).display().to_string();
    let cases: [(&[&str], &str); 5] = [
        (&[], &format!("ghcr.io/lictor-dev/lictor:{version}@{digest}")),
        (&["image.tag=9"], "ghcr.io/lictor-dev/lictor:9"),
        (&["image.repository=registry.example.com/lictor"], &format!("registry.example.com/lictor:{version}")),
        (&["global.imageRegistry=registry.example.com"], &format!("registry.example.com/lictor-dev/lictor:{version}")),
        (
            &["image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000"],
            "ghcr.io/lictor-dev/lictor@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ),
    ];
    for (set, image) in cases {
        let set = set.iter().flat_map(|value| ["--set", value]);
        let args = ["template", "lictor", &chart, "--set", "clusterName=lab"].into_iter().chain(set);
        let rendered = say(&helm, args).await?;
        ensure!(rendered.contains(&format!("image: {image}\n")), "{image}: {rendered}");
    }
    Ok(())
}

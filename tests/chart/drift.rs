//! What in the chart follows from other files of the repository.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser};
use lictor::settings::{RunArgs, Settings};
use lictor_testbed::programs::tools::Tool;
use serde_json::{Value, json};

use crate::helm::{Helm, all_values, arguments, chart, documents, one, say, values, with};
use crate::installed::LICTOR;
use crate::{check_file, file, read};

#[test]
fn the_crd_is_that_of_the_code() {
    check_file("charts/lictor/files/consulservices.lictor.dev.yaml", &read("crds/consulservices.lictor.dev.yaml"));
}

#[tokio::test]
async fn the_readme_is_made_of_the_values() -> Result<()> {
    let chart = chart();
    let readme = say(
        &Tool::HelmDocs.ensure().await?,
        ["--dry-run", "--log-level=error", "--sort-values-order=file", "--chart-search-root"]
            .map(AsRef::as_ref)
            .into_iter()
            .chain([chart.as_os_str()]),
    )
    .await?;
    // The program ends what it prints with a line of its own.
    check_file("charts/lictor/README.md", &format!("{}\n", readme.trim_end()));
    let bare: Vec<_> = readme.lines().filter(|line| line.starts_with('|') && line.ends_with("|  |")).collect();
    assert!(bare.is_empty(), "values without a word: {bare:#?}");
    Ok(())
}

#[test]
fn there_is_one_version() -> Result<()> {
    let chart: Value = serde_saphyr::from_str(&read("charts/lictor/Chart.yaml"))?;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    let made = Command::new("make").args(["--silent", "version"]).current_dir(file(".")).output()?;
    assert_eq!(String::from_utf8_lossy(&made.stdout).trim(), version);
    let images = chart["annotations"]["artifacthub.io/images"].as_str().context("images")?;
    ensure!(images.contains(&format!("ghcr.io/lictor-dev/lictor:{version}\n")), "{images}");
    let examples = chart["annotations"]["artifacthub.io/crdsExamples"].as_str().context("examples")?;
    let examples: Vec<lictor::cluster::api::ConsulService> = serde_saphyr::from_str(examples)?;
    ensure!(examples.len() == 1);
    Ok(())
}

/// The oldest Kubernetes that the chart allows, and the one that the tests run on, as major.minor.
pub(crate) fn kubernetes_versions() -> Result<(String, String)> {
    let chart: Value = serde_saphyr::from_str(&read("charts/lictor/Chart.yaml"))?;
    let allowed = chart["kubeVersion"].as_str().context("kubeVersion")?;
    let oldest = allowed.trim_start_matches(">=").trim_end_matches(".0-0").to_owned();
    let newest = pinned("kubernetes", "k8s.io/kubernetes")?;
    let newest = newest.rsplit_once('.').context("a version")?.0.to_owned();
    Ok((oldest, newest))
}

/// The version of a module that is pinned for a program.
fn pinned(program: &str, module: &str) -> Result<String> {
    let pins = read(&format!("tests/testbed/programs/{program}/go.mod"));
    let mut lines = pins.lines().map(|line| line.trim().trim_start_matches("require "));
    let version = lines.find_map(|line| line.strip_prefix(module)?.strip_prefix(" v"));
    Ok(version.and_then(|rest| rest.split_whitespace().next()).with_context(|| format!("no {module}"))?.to_owned())
}

#[test]
fn the_docs_name_the_versions_that_are_tested() -> Result<()> {
    let page = read("docs/install.md");
    let programs = [
        ("Kubernetes", "kubernetes", "1.31", "k8s.io/kubernetes"),
        ("Consul", "consul", "1.20", "github.com/hashicorp/consul"),
    ];
    for (name, program, oldest, module) in programs {
        let (newest, tested) = (pinned(program, module)?, pinned(&format!("{program}-{oldest}"), module)?);
        let words =
            format!("{name} {oldest} or later. Each change is tested on {newest}; {tested} is part of the long runs.");
        ensure!(page.contains(&words), "docs/install.md: {words}");
    }
    ensure!(pinned("helm-3.14", "helm.sh/helm/v3")?.starts_with("3.14."), "the oldest Helm is another one");
    for page in [&page, &read("charts/lictor/README.md.gotmpl")] {
        ensure!(page.contains("3.14 or later"), "the oldest Helm that is tested");
    }
    ensure!(kubernetes_versions()?.0 == "1.31", "the chart allows another one than the oldest that is tested");
    Ok(())
}

#[derive(Parser)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

/// What the pods are told is what the program understands.
#[tokio::test]
async fn the_flags_are_those_of_the_program() -> Result<()> {
    let helm = Helm::new().await?;
    for file in all_values() {
        let objects = helm.objects(&with(&file)).await?;
        let args = arguments(&objects, "run").context("run")?;
        let parsed = Run::try_parse_from(&args).with_context(|| format!("{}", file.display()))?;
        Settings::new(parsed.args).with_context(|| format!("{}", file.display()))?;
        for subcommand in ["detach", "doctor"] {
            // Help is given only if all that stands before it is understood.
            let Some(args) = arguments(&objects, subcommand) else { continue };
            let output = Command::new(LICTOR).args(&args).arg("--help").output()?;
            ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// What the chart does not set, and why not.
const NOT_SET: [(&str, &str); 8] = [
    ("identity", "different for each replica: the pod's name is in it by default"),
    ("kubeconfig", "in a pod it is the service account's"),
    ("context", "likewise"),
    ("previous-agent", "for the time of a move from one agent to another: extraArgs has it for so long"),
    ("previous-registration", "for the time of a move, likewise"),
    ("previous-consul-address", "likewise"),
    ("previous-cluster-name", "likewise"),
    ("previous-consul-token-file", "likewise"),
];

#[tokio::test]
async fn every_setting_has_a_value() -> Result<()> {
    let helm = Helm::new().await?;
    // Both, since some exclude one another.
    let mut set = BTreeSet::new();
    for name in ["everything", "namespaced"] {
        let args = arguments(&helm.objects(&with(&values(name))).await?, "run").context("run")?;
        set.extend(args.iter().filter_map(|arg| Some(arg.strip_prefix("--")?.split('=').next()?.to_owned())));
    }
    let command = RunArgs::augment_args(clap::Command::new("run"));
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        let excepted = NOT_SET.iter().any(|(name, _)| *name == flag);
        ensure!(excepted || set.contains(flag), "the chart has no value for --{flag}");
    }
    Ok(())
}

/// A rule for each verb: (group, resource, name, verb).
type Rights = BTreeSet<[String; 4]>;

fn rights(role: &Value) -> Rights {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(ToOwned::to_owned)).collect()
    };
    let mut rights = Rights::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut names = list(rule, "resourceNames");
        if names.is_empty() {
            names.push(String::new());
        }
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                for name in &names {
                    for verb in list(rule, "verbs") {
                        rights.insert([group.clone(), resource.clone(), name.clone(), verb]);
                    }
                }
            }
        }
    }
    rights
}

#[tokio::test]
async fn the_rights_are_those_of_the_example() -> Result<()> {
    let example = documents(&read("examples/access/kubernetes.yaml"))?;
    let helm = Helm::new().await?;
    let none: [&str; 0] = [];
    let ours = helm.objects(&["-s", "templates/role.yaml", "-s", "templates/lease-role.yaml"]).await?;
    assert_eq!(rights(one(&ours, "ClusterRole")), rights(one(&example, "ClusterRole")));
    assert_eq!(rights(one(&ours, "Role")), rights(one(&example, "Role")));

    // In single namespaces the same, but for what is in none.
    let everywhere = rights(one(&example, "ClusterRole"));
    let in_none = ["nodes", "namespaces", "customresourcedefinitions"];
    let expected: Rights = everywhere.into_iter().filter(|right| !in_none.contains(&right[1].as_str())).collect();
    let ours = helm.objects(&with(&values("namespaced"))).await?;
    let cluster_wide = ours.iter().filter(|object| object["metadata"]["namespace"].is_null());
    assert_eq!(cluster_wide.count(), 0, "something is in no namespace");
    for namespace in ["shop", "orders"] {
        let roles: Vec<_> =
            ours.iter().filter(|object| object["metadata"]["namespace"] == namespace).cloned().collect();
        assert_eq!(rights(one(&roles, "Role")), expected, "{namespace}");
        assert_eq!(one(&roles, "RoleBinding")["subjects"][0]["namespace"], "lictor");
    }
    let all = helm.objects(&none).await?;
    ensure!(all.iter().any(|object| object["metadata"]["namespace"].is_null()), "this test is blind");
    Ok(())
}

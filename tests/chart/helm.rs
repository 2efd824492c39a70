//! Running Helm and the programs around it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::file;

/// The release's name and namespace wherever they do not matter.
pub(crate) const RELEASE: &str = "lictor";

/// The chart.
pub(crate) fn chart() -> PathBuf {
    file("charts/lictor")
}

/// The values files that stand for the ways in which the chart is installed.
pub(crate) fn all_values() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(chart().join("ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
}

/// One of them.
pub(crate) fn values(name: &str) -> PathBuf {
    chart().join("ci").join(name).with_extension("yaml")
}

/// Runs a program and gives what it prints on stdout; fails with all that it says.
pub(crate) async fn say<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> Result<String> {
    lictor_testbed::process::run(Command::new(program).args(args)).await
}

/// Helm, and what it makes of the chart.
pub(crate) struct Helm(lictor_testbed::Helm);

impl Helm {
    /// Helm without a cluster.
    pub(crate) async fn new() -> Result<Self> {
        Ok(Self(lictor_testbed::Helm::new().await?))
    }

    /// Helm on a cluster.
    pub(crate) async fn on(kubeconfig: &Path) -> Result<Self> {
        Ok(Self(lictor_testbed::Helm::on(kubeconfig).await?))
    }

    /// The oldest Helm that is supported, without a cluster.
    pub(crate) async fn oldest() -> Result<Self> {
        Ok(Self(lictor_testbed::Helm::oldest().await?))
    }

    /// The oldest Helm that is supported, on a cluster.
    pub(crate) async fn oldest_on(kubeconfig: &Path) -> Result<Self> {
        Ok(Self(lictor_testbed::Helm::oldest_on(kubeconfig).await?))
    }

    /// Runs it.
    pub(crate) async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.0.run(args).await
    }

    /// What the chart makes of these arguments, such as `-f FILE` or `--set KEY=VALUE`.
    pub(crate) async fn template<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String> {
        let chart = chart();
        let begin = [OsStr::new("template"), OsStr::new(RELEASE), chart.as_os_str(), OsStr::new("--namespace=lictor")];
        self.run(begin.into_iter().chain(args.iter().map(AsRef::as_ref))).await
    }

    /// The same as objects.
    pub(crate) async fn objects<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Vec<Value>> {
        documents(&self.template(args).await?)
    }

    /// Why the chart is not rendered with these arguments.
    pub(crate) async fn refusal<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String> {
        match self.template(args).await {
            Ok(_) => bail!("it is rendered"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }
}

/// The objects of a YAML stream.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one object of this kind.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "there are several of {kind}");
    first
}

/// The arguments of the container that runs this subcommand.
pub(crate) fn arguments(objects: &[Value], subcommand: &str) -> Option<Vec<String>> {
    let specs = objects.iter().flat_map(|object| [&object["spec"], &object["spec"]["template"]["spec"]]);
    let containers = specs.filter_map(|spec| spec["containers"].as_array()).flatten();
    let args = containers.filter_map(|container| serde_json::from_value::<Vec<String>>(container["args"].clone()).ok());
    args.into_iter().find(|args| args.first().is_some_and(|first| first == subcommand))
}

/// `-f FILE`.
pub(crate) fn with(values: &Path) -> [&OsStr; 2] {
    [OsStr::new("-f"), values.as_os_str()]
}

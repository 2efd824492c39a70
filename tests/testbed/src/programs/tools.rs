//! What works on the chart, its alerts and the workflows: programs that no server needs, each built when a test
//! asks for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use super::Program;

/// One of these programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "each is the program of its name")]
pub enum Tool {
    Helm,
    OldestHelm,
    HelmUnittest,
    HelmDocs,
    Promtool,
    Prometheus,
    Actionlint,
    Glua,
    Kubeconform,
}

impl Tool {
    /// Builds it if it is not there yet.
    pub async fn ensure(self) -> Result<PathBuf> {
        tokio::task::spawn_blocking(move || self.program().ensure()).await?
    }

    fn program(self) -> Program {
        match self {
            Self::Helm => Program {
                name: "helm",
                pins: "helm",
                module: "helm.sh/helm/v4",
                package: "helm.sh/helm/v4/cmd/helm",
                takes: "3 min",
                ..ALONE
            },
            Self::OldestHelm => Program {
                name: "helm",
                pins: "helm-3.14",
                module: "helm.sh/helm/v3",
                package: "helm.sh/helm/v3/cmd/helm",
                takes: "2 min",
                ..ALONE
            },
            Self::HelmUnittest => Program {
                name: "helm-unittest",
                pins: "helm-unittest",
                module: "github.com/helm-unittest/helm-unittest",
                package: "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
                takes: "2 min",
                ..ALONE
            },
            Self::HelmDocs => Program {
                name: "helm-docs",
                pins: "helm-docs",
                module: "github.com/norwoodj/helm-docs",
                package: "github.com/norwoodj/helm-docs/cmd/helm-docs",
                takes: "20 s",
                ..ALONE
            },
            Self::Promtool => {
                Program { name: "promtool", package: "github.com/prometheus/prometheus/cmd/promtool", ..PROMETHEUS }
            }
            Self::Prometheus => PROMETHEUS,
            Self::Glua => Program {
                name: "glua",
                pins: "glua",
                module: "github.com/yuin/gopher-lua",
                package: "github.com/yuin/gopher-lua/cmd/glua",
                takes: "10 s",
                ..ALONE
            },
            Self::Kubeconform => Program {
                name: "kubeconform",
                pins: "kubeconform",
                module: "github.com/yannh/kubeconform",
                package: "github.com/yannh/kubeconform/cmd/kubeconform",
                takes: "15 s",
                ..ALONE
            },
            Self::Actionlint => Program {
                name: "actionlint",
                pins: "actionlint",
                module: "github.com/rhysd/actionlint",
                package: "github.com/rhysd/actionlint/cmd/actionlint",
                takes: "10 s",
                ..ALONE
            },
        }
    }
}

const PROMETHEUS: Program = Program {
    name: "prometheus",
    pins: "prometheus",
    module: "github.com/prometheus/prometheus",
    package: "github.com/prometheus/prometheus/cmd/prometheus",
    takes: "2 min",
    ..ALONE
};

/// Only our own will do: what these print is compared.
const ALONE: Program =
    Program { name: "", pins: "", module: "", package: "", takes: "", kubebuilder_asset: false, on_path: None };

/// The folder with the Prometheus operator's `CustomResourceDefinition`s, in Go's cache of modules.
pub async fn prometheus_operator_definitions() -> Result<PathBuf> {
    const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Downloaded {
        dir: PathBuf,
    }

    let download = || {
        let pins = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/prometheus-operator");
        let output = Command::new("go")
            .current_dir(pins)
            .args(["mod", "download", "-json", MODULE])
            .env("GOWORK", "off")
            .output()
            .context("starting go")?;
        ensure!(output.status.success(), "go mod download: {}", String::from_utf8_lossy(&output.stderr).trim());
        let downloaded: Downloaded = serde_json::from_slice(&output.stdout)?;
        Ok(downloaded.dir.join("example/prometheus-operator-crd"))
    };
    tokio::task::spawn_blocking(download).await?
}

#[cfg(test)]
mod tests {
    use super::super::{Pins, major_minor};
    use super::*;

    #[test]
    fn every_tool_is_pinned() -> Result<()> {
        for tool in Tool::value_variants() {
            let pins = Pins::read(&tool.program())?;
            assert!(major_minor(&pins.version).is_some(), "{tool:?}: {}", pins.version);
        }
        Ok(())
    }
}

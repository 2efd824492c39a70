//! Helm: what a user would type.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::process::Command;

use crate::WorkDir;
use crate::process;
use crate::programs::tools::Tool;

/// Helm, with a home of its own: nobody's plug-ins or settings.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    home: WorkDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// Helm without a cluster; built if it is not there yet.
    pub async fn new() -> Result<Self> {
        Ok(Self { program: Tool::Helm.ensure().await?, home: WorkDir::create("helm")?, kubeconfig: None })
    }

    /// Helm on a cluster.
    pub async fn on(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { kubeconfig: Some(kubeconfig.to_owned()), ..Self::new().await? })
    }

    /// The oldest Helm that is supported, without a cluster. It applies objects by itself, where Helm 4 has the server do it.
    pub async fn oldest() -> Result<Self> {
        Ok(Self { program: Tool::OldestHelm.ensure().await?, ..Self::new().await? })
    }

    /// The oldest Helm that is supported, on a cluster.
    pub async fn oldest_on(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { kubeconfig: Some(kubeconfig.to_owned()), ..Self::oldest().await? })
    }

    /// Runs it and gives what it prints on stdout; fails with all that it says.
    pub async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new(&self.program);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.home.path());
        }
        // Where there is no cluster, none is to be found either.
        command.env("KUBECONFIG", self.kubeconfig.as_deref().unwrap_or(Path::new("/dev/null")));
        process::run(command.args(args)).await
    }
}

//! Temporary folders that do not outlive the process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::watchdog::Watchdog;

/// A folder of our own under the system's temporary folder. It goes when this value is dropped or,
/// should the process be killed first, by the hand of the [`Watchdog`].
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes a folder whose name begins with `lictor-` and `name`.
    pub fn create(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("lictor-{name}-{}-{}", std::process::id(), random_suffix()));
        Watchdog::global()?.watch_dir(&path)?;
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file into it and gives its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // The watchdog tries once more when the process ends.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Six lowercase letters or digits: enough to keep names apart, valid in any Kubernetes name.
#[must_use]
pub fn random_suffix() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(6).map(|letter| letter.to_ascii_lowercase()).collect()
}

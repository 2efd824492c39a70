//! The policy file while Lictor runs: it is read again when it changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::file::parse;
use crate::model::policy::Policy;

/// The time between two looks at the file. Kubelet brings a changed `ConfigMap` within about a minute.
const LOOK: Duration = Duration::from_secs(2);

/// A policy file, and what is in force without the rules in it.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// The path of the file; none without a policy.
    pub path: Option<PathBuf>,
    /// The networks and the class that count besides the rules.
    pub without: Policy,
}

/// Holds what followers of a file are told.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The last policy that could be used.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The reason why the present file cannot be used; none while it is in force.
    pub failure: watch::Receiver<Option<String>>,
}

impl PolicyFile {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// Fails in one line if it cannot be read or used.
    pub fn read(&self) -> anyhow::Result<Arc<Policy>> {
        let Some(path) = &self.path else { return Ok(Arc::new(self.without.clone())) };
        let text = std::fs::read_to_string(path).with_context(|| format!("--policy {}", path.display()))?;
        self.policy(&text)
    }

    fn policy(&self, text: &str) -> anyhow::Result<Arc<Policy>> {
        let path = self.path.as_deref().unwrap_or(std::path::Path::new(""));
        let rules = parse(text).with_context(|| format!("--policy {}", path.display()))?;
        Ok(Arc::new(Policy { rules: Some(rules), ..self.without.clone() }))
    }

    /// Follows the file from now on, beginning with `first`. A file that cannot be used leaves the last policy in force.
    #[must_use]
    pub fn follow(self, first: Arc<Policy>) -> Followed {
        let (policies, policy) = watch::channel(first);
        let (failures, failure) = watch::channel(None);
        if self.path.is_some() {
            tokio::spawn(async move {
                while !policies.is_closed() {
                    tokio::time::sleep(LOOK).await;
                    self.look(&policies, &failures).await;
                }
            });
        } else {
            // Nobody will send anything: the channels stay as they are.
            tokio::spawn(async move { policies.closed().await });
        }
        Followed { policy, failure }
    }

    async fn look(&self, policies: &watch::Sender<Arc<Policy>>, failures: &watch::Sender<Option<String>>) {
        let Some(path) = &self.path else { return };
        let read = tokio::fs::read_to_string(path).await.with_context(|| format!("--policy {}", path.display()));
        match read.and_then(|text| self.policy(&text)) {
            Ok(now) => {
                if failures.send_replace(None).is_some() {
                    tracing::info!("the policy file works again");
                }
                let is_news = policies.send_if_modified(|known| {
                    let differs = *known != now;
                    known.clone_from(&now);
                    differs
                });
                if is_news {
                    tracing::info!(rules = now.rules.as_ref().map_or(0, Vec::len), "a new policy is in force");
                }
            }
            Err(error) => {
                let why = format!("the last good policy stays in force: {error:#}");
                let is_news = failures.send_if_modified(|known| known.replace(why.clone()).as_ref() != Some(&why));
                if is_news {
                    tracing::warn!("{why}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_cannot_be_used_leaves_the_last_policy_in_force() {
        let path = std::env::temp_dir().join(format!("lictor-policy-{}", std::process::id()));
        std::fs::write(&path, "rules: [{name: a, namespaces: ['*']}]").unwrap();
        let file = PolicyFile { path: Some(path.clone()), without: Policy::default() };
        let first = file.read().unwrap();
        let (policies, policy) = watch::channel(Arc::clone(&first));
        let (failures, failure) = watch::channel(None);
        std::fs::write(&path, "rules: [").unwrap();
        file.look(&policies, &failures).await;
        assert_eq!(*policy.borrow(), first);
        assert!(failure.borrow().as_ref().unwrap().contains("stays in force"));
        assert!(file.read().unwrap_err().to_string().contains("--policy"));
        std::fs::write(&path, "rules: [{name: b, namespaces: ['*']}]").unwrap();
        file.look(&policies, &failures).await;
        assert_eq!(&*policy.borrow().rules.as_ref().unwrap()[0].name, "b");
        assert_eq!(*failure.borrow(), None);
        std::fs::remove_file(&path).unwrap();
        file.look(&policies, &failures).await;
        assert!(failure.borrow().is_some() && policy.borrow().rules.is_some());
    }
}

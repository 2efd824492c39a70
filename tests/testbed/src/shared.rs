//! What the tests of a process share: the test that comes first starts it, and it ends with the process.

use std::fmt::Display;

use anyhow::{Result, anyhow};
use tokio::sync::OnceCell;

/// Something that is started once. If the start fails, every test learns why.
#[derive(Debug)]
pub struct Shared<T>(OnceCell<Result<T, String>>);

impl<T> Shared<T> {
    /// Makes one that is not started yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceCell::const_new())
    }

    /// Gives it, after the one start that there is. `what` names it in the error.
    pub async fn get<F>(&self, what: impl Display, start: impl FnOnce() -> F) -> Result<&T>
    where
        F: Future<Output = Result<T>>,
    {
        // On the heap: a start is a large future, and each test holds one.
        let start = || Box::pin(async move { start().await.map_err(|error| format!("{error:#}")) });
        self.0.get_or_init(start).await.as_ref().map_err(|error| anyhow!("{what} did not start: {error}"))
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

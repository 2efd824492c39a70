//! Consistent lists, page by page.

use std::time::Duration;

use kube::Api;
use kube::api::{ListParams, VersionMatch};
use tokio::time::timeout;

use super::decode::Watched;

/// Objects in one page.
const PAGE: u32 = 500;
/// The longest that a page may take: kube has no limit of its own.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that we wait because we were told to: a proxy may say anything.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A list under way.
pub(super) struct Pages<K> {
    api: Api<K>,
    next: Option<ListParams>,
    version: Option<String>,
}

/// Says why a request to Kubernetes came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer in time")]
    NoAnswer,
    #[error("a list came without its resourceVersion")]
    NoVersion,
    #[error("{}", describe(.0))]
    Kube(#[from] kube::Error),
}

impl Failure {
    /// The HTTP status of the answer, if there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Says how long Kubernetes asks to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Kube(kube::Error::Api(status)) => retry_after(status),
            _ => Duration::ZERO,
        }
    }
}

/// Says how long Kubernetes asks, with an answer, to be left alone, as far as that is heeded.
pub(super) fn retry_after(status: &kube::core::Status) -> Duration {
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.into()).min(LONGEST_RETRY_AFTER)
}

impl<K: Watched> Pages<K> {
    /// A list of what is there now. Its resource version is left unset, so that what it has is what is stored, and not
    /// what a cache still has.
    pub(super) fn of(api: Api<K>) -> Self {
        Self::by(api, ListParams::default())
    }

    /// A list of what was there at a version.
    pub(super) fn at(api: Api<K>, version: &str) -> Self {
        Self::by(api, ListParams::default().at(version).matching(VersionMatch::Exact))
    }

    fn by(api: Api<K>, params: ListParams) -> Self {
        let first = ListParams { label_selector: K::LABELS.map(ToOwned::to_owned), ..params.limit(PAGE) };
        Self { api, next: Some(first), version: None }
    }

    /// The next page; none after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<K>>, Failure> {
        let Some(mut params) = self.next.take() else { return Ok(None) };
        let page = timeout(PAGE_TIMEOUT, self.api.list(&params)).await.map_err(|_| Failure::NoAnswer)??;
        self.version = page.metadata.resource_version.filter(|version| !version.is_empty());
        let more = page.metadata.continue_.filter(|token| !token.is_empty());
        self.next = more.map(|token| {
            params.continue_token = Some(token);
            params
        });
        Ok(Some(page.items))
    }

    /// From where a watch takes over what the list began.
    pub(super) fn version(self) -> Result<String, Failure> {
        self.version.ok_or(Failure::NoVersion)
    }
}

/// Says what went wrong, without kube's own words around it.
pub(super) fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.trim().to_owned(),
        kube::Error::Service(cause) => chain(&**cause),
        _ => chain(error),
    }
}

/// An error and its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

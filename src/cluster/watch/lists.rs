//! The lists that a watch makes while it goes on.
//!
//! A list begins where the watch stands: it reads what there was at exactly that version, so it and what the watch tells
//! afterwards fit together. What the watch has told since then is newer than the list, and is left out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Api;
use tokio::time::{Instant, sleep_until};

use super::super::decode::Watched;
use super::super::list::{Failure, Pages};
use crate::state::event::{ObjectKey, Scope};

/// The shortest time between two lists of one scope.
const PAUSE: Duration = Duration::from_secs(1);

/// Says when a scope is to be listed. One author who asks for ever new things costs at most half of the time.
#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<Scope, Instant>,
    not_before: BTreeMap<Scope, Instant>,
}

impl Schedule {
    fn ask(&mut self, scope: Scope, now: Instant) {
        self.not_before.retain(|_, at| *at > now);
        let at = self.not_before.get(&scope).copied().unwrap_or(now);
        self.due.entry(scope).or_insert(at);
    }

    /// Notes that a list of the scope ended, and how long it took.
    fn ended(&mut self, scope: &Scope, took: Duration, now: Instant) {
        let at = now + took.max(PAUSE);
        self.not_before.insert(scope.clone(), at);
        if let Some(due) = self.due.get_mut(scope) {
            *due = at.max(*due);
        }
    }

    fn next(&self) -> Option<(Instant, Scope)> {
        self.due.iter().map(|(scope, at)| (*at, scope.clone())).min()
    }
}

/// The lists of one watch, one after the other.
pub(super) struct Lists<K> {
    schedule: Schedule,
    under_way: Option<UnderWay<K>>,
    /// The scopes of which the last list failed.
    failing: BTreeSet<Scope>,
}

struct UnderWay<K> {
    scope: Scope,
    begun: Instant,
    /// Lists what the watch has told of since the list began.
    told: BTreeSet<ObjectKey>,
    page: BoxFuture<'static, Answer<K>>,
}

type Answer<K> = (Pages<K>, Result<Option<Vec<K>>, Failure>);

/// Says what a list comes to next.
pub(super) enum Next<K> {
    /// It is time to begin one of this scope.
    Due(Scope),
    /// Objects of which the watch has not told since.
    Page(Scope, Vec<K>),
    Done(Scope),
    Failed(Scope, Failure),
}

impl<K: Watched> Default for Lists<K> {
    fn default() -> Self {
        Self { schedule: Schedule::default(), under_way: None, failing: BTreeSet::new() }
    }
}

impl<K: Watched> Lists<K> {
    /// Has a scope listed, at once or when enough time has passed since the last time.
    pub(super) fn ask(&mut self, scope: Scope) {
        self.schedule.ask(scope, Instant::now());
    }

    /// Nobody asks for this scope any more.
    pub(super) fn forget(&mut self, scope: &Scope) {
        self.schedule.due.remove(scope);
        self.failing.remove(scope);
        self.under_way.take_if(|under_way| under_way.scope == *scope);
    }

    /// Begins the list of a scope at a version, which is where the watch stands.
    pub(super) fn begin(&mut self, scope: Scope, api: Api<K>, version: &str) {
        self.schedule.due.remove(&scope);
        let page = page(Pages::at(api, version));
        self.under_way = Some(UnderWay { scope, begun: Instant::now(), told: BTreeSet::new(), page });
    }

    /// Notes that the watch tells of an object.
    pub(super) fn tells(&mut self, scope: &Scope, object: impl FnOnce() -> ObjectKey) {
        if let Some(under_way) = self.under_way.as_mut().filter(|under_way| under_way.scope == *scope) {
            under_way.told.insert(object());
        }
    }

    /// Says whether the last list of a scope failed.
    pub(super) fn is_failing(&self, scope: &Scope) -> bool {
        self.failing.contains(scope)
    }

    /// Waits for what comes next. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Next<K> {
        let Some(under_way) = &mut self.under_way else {
            let Some((at, scope)) = self.schedule.next() else { return std::future::pending().await };
            sleep_until(at).await;
            return Next::Due(scope);
        };
        let (pages, answer) = (&mut under_way.page).await;
        let scope = under_way.scope.clone();
        match answer {
            Ok(Some(objects)) => {
                under_way.page = page(pages);
                let told = &under_way.told;
                let is_news = |object: &K| !told.contains(&key_of(object));
                Next::Page(scope, objects.into_iter().filter(is_news).collect())
            }
            Ok(None) => {
                self.end();
                self.failing.remove(&scope);
                Next::Done(scope)
            }
            Err(failure) => {
                self.end();
                self.failing.insert(scope.clone());
                Next::Failed(scope, failure)
            }
        }
    }

    /// Has a scope listed again after a time.
    pub(super) fn ask_later(&mut self, scope: Scope, after: Duration) {
        self.schedule.due.insert(scope, Instant::now() + after);
    }

    fn end(&mut self) {
        if let Some(UnderWay { scope, begun, .. }) = self.under_way.take() {
            self.schedule.ended(&scope, begun.elapsed(), Instant::now());
        }
    }
}

fn page<K: Watched>(mut pages: Pages<K>) -> BoxFuture<'static, Answer<K>> {
    async move {
        let page = pages.next().await;
        (pages, page)
    }
    .boxed()
}

pub(super) fn key_of<K: Watched>(object: &K) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_listed_at_once_and_then_at_most_half_of_the_time() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let (noisy, other) = (Scope::Namespace("noisy".into()), Scope::Namespace("other".into()));
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(), None);
        schedule.ask(noisy.clone(), now);
        schedule.ask(noisy.clone(), now + second);
        assert_eq!(schedule.next(), Some((now, noisy.clone())), "what is due stays due");
        schedule.due.clear();
        schedule.ask(noisy.clone(), now + second);
        schedule.ended(&noisy, 4 * second, now + 4 * second);
        assert_eq!(schedule.next(), Some((now + 8 * second, noisy.clone())), "asked for while it was under way");
        schedule.ask(other.clone(), now + 5 * second);
        assert_eq!(schedule.next(), Some((now + 5 * second, other)), "another author waits for nobody");
        schedule.due.clear();
        schedule.ended(&noisy, second / 10, now + 10 * second);
        schedule.ask(noisy.clone(), now + 10 * second);
        assert_eq!(schedule.next(), Some((now + 11 * second, noisy.clone())), "the shortest pause");
        schedule.due.clear();
        schedule.ask(noisy.clone(), now + 20 * second);
        assert_eq!(schedule.next(), Some((now + 20 * second, noisy)));
    }
}

//! Who asks Consul for a service all the time: what a client sees while something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::init_tls;

/// The pause between two looks; a look that takes longer is followed by the next one after the same pause.
pub const EVERY: Duration = Duration::from_millis(10);

/// So many looks at least show something.
pub const LEAST: usize = 12;

/// A client that asks `/v1/health/service/NAME?passing` all the time. It ends with [`end`](Self::end), or when it is
/// dropped.
#[derive(Debug)]
pub struct Reader {
    stop: oneshot::Sender<()>,
    reading: JoinHandle<Result<Seen>>,
}

/// What a [`Reader`] has seen of the addresses that lived all the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How often it asked.
    pub looks: usize,
    /// How long it asked.
    pub took: Duration,
    /// How many addresses live.
    pub living: usize,
    /// The fewest of them that passed at one look.
    pub fewest: usize,
    /// The fewest addresses that passed at one look, whichever they were.
    pub fewest_of_all: usize,
    /// The longest time in which one of them was missing, from the first look without it to the next one with it.
    pub longest_gap: Duration,
    /// The most addresses beside them that passed at one look.
    pub most_others: usize,
}

impl Seen {
    /// Whether all of them were there at every look.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.looks > 0 && self.fewest == self.living
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { looks, took, living, fewest, fewest_of_all, longest_gap, most_others } = self;
        write!(
            f,
            "fewest living {fewest} of {living}, fewest of all {fewest_of_all}, longest gap {:.2} s, most others {most_others} \
             ({looks} looks in {:.1} s)",
            longest_gap.as_secs_f64(),
            took.as_secs_f64()
        )
    }
}

impl Reader {
    /// Begins to ask the Consul at `base`, such as `http://127.0.0.1:8500`, for `service`, of which the addresses
    /// `living` are to pass at every moment.
    #[must_use]
    pub fn begin(base: &str, service: &str, living: impl IntoIterator<Item = String>) -> Self {
        init_tls();
        let url = format!("{}/v1/health/service/{service}?passing", base.trim_end_matches('/'));
        let (stop, stopped) = oneshot::channel();
        let living = living.into_iter().collect();
        Self { stop, reading: tokio::spawn(read(url, living, stopped)) }
    }

    /// Ends it after one more look, and not before it has looked [`LEAST`] times; gives what it has seen.
    pub async fn end(self) -> Result<Seen> {
        // One that has failed is not listening any more.
        let _ = self.stop.send(());
        self.reading.await.context("the reader panicked")?
    }
}

/// An instance, as far as a reader wants to know.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Service")]
    service: Service,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "Address")]
    address: String,
}

async fn read(url: String, living: BTreeSet<String>, mut stopped: oneshot::Receiver<()>) -> Result<Seen> {
    let client = Client::new();
    let begun = Instant::now();
    let mut missing: BTreeMap<String, Instant> = BTreeMap::new();
    let mut seen = Seen {
        looks: 0,
        took: Duration::ZERO,
        living: living.len(),
        fewest: living.len(),
        fewest_of_all: usize::MAX,
        longest_gap: Duration::ZERO,
        most_others: 0,
    };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let is_last =
            seen.looks + 1 >= LEAST && !matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        let answer = client.get(&url).send().await?.error_for_status()?.bytes().await?;
        let entries: Vec<Entry> = serde_json::from_slice(&answer).context("what Consul answered")?;
        let now = Instant::now();
        let found: BTreeSet<String> = entries.into_iter().map(|entry| entry.service.address).collect();
        let there = living.intersection(&found).count();
        seen.looks += 1;
        seen.took = begun.elapsed();
        seen.fewest = seen.fewest.min(there);
        seen.fewest_of_all = seen.fewest_of_all.min(found.len());
        seen.most_others = seen.most_others.max(found.len() - there);
        for address in living.difference(&found) {
            missing.entry(address.clone()).or_insert(now);
        }
        missing.retain(|address, since| {
            // One that is missing at the end has been missing for so long.
            let over = is_last || found.contains(address);
            if over {
                seen.longest_gap = seen.longest_gap.max(now - *since);
            }
            !over
        });
        if is_last {
            return Ok(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_gap_is_counted_and_so_is_who_is_there_besides() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let looks = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&looks);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        let look = counter.fetch_add(1, Ordering::SeqCst);
                        let there = if (3..5).contains(&look) { "10.0.0.9" } else { "10.0.0.2" };
                        let body =
                            ["10.0.0.1", there].map(|at| format!(r#"{{"Service":{{"Address":"{at}"}}}}"#)).join(",");
                        let body = format!("[{body}]");
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let reader = Reader::begin(&base, "web", ["10.0.0.1", "10.0.0.2"].map(str::to_owned));
        crate::wait::until("ten looks", Duration::from_secs(10), || async {
            Ok((looks.load(Ordering::SeqCst) > 10).then_some(()))
        })
        .await?;
        let seen = reader.end().await?;
        assert_eq!((seen.living, seen.fewest, seen.fewest_of_all, seen.most_others), (2, 1, 2, 1), "{seen}");
        assert!(!seen.is_whole() && seen.longest_gap >= EVERY, "{seen}");
        Ok(())
    }
}

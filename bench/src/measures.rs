//! What is measured. Times are in milliseconds unless the name says otherwise, memory is in megabytes, CPU in seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use futures::future::{join, try_join};
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::load::Load;
use crate::percentile;
use crate::trial::Trial;

/// The figures of one trial by their names.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// From the start to all instances in an empty Consul, and the memory then.
    Cold,
    /// From a readiness in Kubernetes to the same in Consul.
    Flips,
    /// What a time costs in which nothing happens.
    Idle,
    /// Readiness, while all resources get another tag.
    Rewrite,
    /// What a service costs that the token may not write: give it all instances with `--services 1`.
    Refused,
    /// Readiness, while /readyz and /metrics are asked for without a pause.
    Scraped,
    /// What Nodes cost that join and go, without an endpoint on them.
    Nodes,
}

/// How long and how fast.
#[derive(Clone, Copy, Args)]
pub(crate) struct Pace {
    /// Changes in a second.
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Seconds in which changes are made, or in which costs are counted.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

impl Measure {
    pub(crate) async fn run(self, trial: Trial, load: &Load, pace: Pace) -> Result<Figures> {
        if self == Self::Refused {
            sleep(Duration::from_secs(10)).await;
            return refused(&trial, pace).await;
        }
        let cold = trial.all_there().await?;
        let (rss, peak) = trial.memory()?;
        if self == Self::Cold {
            return Ok([
                ("cold start", millis(cold)),
                ("RSS", rss),
                ("RSS, most", peak),
                ("CPU", trial.cpu()?.lictor),
                ("turns over 50 ms", long_turns(&trial).await?),
            ]
            .into());
        }
        trial.operator.wait_ready(Duration::from_secs(60)).await?;
        // Until statuses are written, which is slow on purpose.
        settled(&trial).await?;
        let (before, long) = (trial.cpu()?, long_turns(&trial).await?);
        let mut figures = match self {
            Self::Cold | Self::Refused => Figures::new(),
            Self::Flips => flips(&trial, load, pace, 0).await?,
            Self::Idle => {
                sleep(Duration::from_secs(pace.seconds.into())).await;
                Figures::new()
            }
            Self::Rewrite => rewrite(&trial, load, pace).await?,
            Self::Scraped => scraped(&trial, load, pace).await?,
            Self::Nodes => nodes(load, pace).await?,
        };
        let after = trial.cpu()?;
        figures.insert("CPU", after.lictor - before.lictor);
        figures.insert("CPU of Consul", after.consul - before.consul);
        figures.insert("turns over 50 ms", long_turns(&trial).await? - long);
        figures.insert("RSS", trial.memory()?.0);
        Ok(figures)
    }
}

/// Counts the turns of the program's loop so far that took longer than 50 ms.
async fn long_turns(trial: &Trial) -> Result<f64> {
    let metrics = trial.operator.metrics().await?;
    let count = |name: &str| {
        let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        // A program of before has no such metric.
        found.unwrap_or_default()
    };
    Ok(count("lictor_loop_turn_seconds_count") - count("lictor_loop_turn_seconds_bucket{le=\"0.05\"}"))
}

/// Waits until the program uses little CPU.
async fn settled(trial: &Trial) -> Result<()> {
    for _ in 0..120 {
        let before = trial.cpu()?.lictor;
        sleep(Duration::from_secs(1)).await;
        if trial.cpu()?.lictor - before <= 0.03 {
            break;
        }
    }
    Ok(())
}

/// Changes of readiness in turn over all services from the one with the number `first` on.
async fn flips(trial: &Trial, load: &Load, pace: Pace, first: usize) -> Result<Figures> {
    let flip = |number: u32| async move {
        let service = first + number as usize % (load.size.services - first);
        let ready = number as usize / (load.size.services - first) % 2 == 1;
        let begun = Instant::now();
        let seen = async {
            trial.wait_for(service, ready).await?;
            anyhow::Ok(millis(begun.elapsed()))
        };
        Ok::<_, anyhow::Error>(try_join(load.set_ready(service, ready), seen).await?.1)
    };
    let mut ticks = interval(Duration::from_secs(1) / pace.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut under_way, mut latencies) = (FuturesUnordered::new(), Vec::new());
    let all = pace.rate * pace.seconds;
    let mut number = 0;
    while number < all || !under_way.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if number < all => {
                under_way.push(flip(number));
                number += 1;
            }
            Some(latency) = under_way.next(), if !under_way.is_empty() => latencies.push(latency?),
        }
    }
    // For the next program, as it was.
    let back = |service| load.set_ready(service, true);
    let touched = (number as usize).min(load.size.services - first);
    stream::iter(first..first + touched).map(back).buffer_unordered(16).try_collect::<()>().await?;
    Ok(Figures::from([
        ("flip, p50", percentile(&latencies, 50)),
        ("flip, p99", percentile(&latencies, 99)),
        ("flip, most", percentile(&latencies, 100)),
    ]))
}

async fn rewrite(trial: &Trial, load: &Load, pace: Pace) -> Result<Figures> {
    let tag = format!("round-{}", fastrand::u32(..));
    let one = async {
        sleep(Duration::from_secs(1)).await;
        let (there, first) = flip(trial, load, false).await?;
        let (_, back) = flip(trial, load, true).await?;
        anyhow::Ok([("flip in a rewrite", first), ("of which Kubernetes", there), ("flip back in a rewrite", back)])
    };
    let edits = async {
        let begun = Instant::now();
        load.edit_tags(&tag).await?;
        Ok(millis(begun.elapsed()))
    };
    let (figures, edited) = try_join(one, edits).await?;
    let mut figures = Figures::from(figures);
    figures.insert("edits", edited);
    sleep(Duration::from_secs(pace.seconds.into())).await;
    Ok(figures)
}

/// The time until Kubernetes has taken the readiness of the first service's first instance, and until Consul shows it.
async fn flip(trial: &Trial, load: &Load, ready: bool) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let time = || Ok::<_, anyhow::Error>(millis(begun.elapsed()));
    let taken = async {
        load.set_ready(0, ready).await?;
        time()
    };
    let seen = async {
        trial.wait_for(0, ready).await?;
        time()
    };
    try_join(taken, seen).await
}

async fn refused(trial: &Trial, pace: Pace) -> Result<Figures> {
    let lines = || trial.operator.log().lines().count();
    let (before, logged) = (trial.cpu()?, lines());
    sleep(Duration::from_secs(pace.seconds.into())).await;
    let after = trial.cpu()?;
    #[allow(clippy::cast_precision_loss, reason = "a count of lines")]
    let logged = (lines() - logged) as f64;
    Ok(Figures::from([
        ("log lines", logged),
        ("CPU", after.lictor - before.lictor),
        ("CPU of Consul", after.consul - before.consul),
        ("RSS", trial.memory()?.0),
    ]))
}

async fn scraped(trial: &Trial, load: &Load, pace: Pace) -> Result<Figures> {
    let over = AtomicBool::new(false);
    let scrape = async {
        let mut times = Vec::new();
        while !over.load(Ordering::Relaxed) {
            for path in ["/readyz", "/metrics"] {
                let begun = Instant::now();
                // An answer that something is wrong is an answer.
                let _ = trial.operator.get(path).await;
                times.push(millis(begun.elapsed()));
            }
        }
        times
    };
    let flips = async {
        let figures = flips(trial, load, pace, 0).await;
        over.store(true, Ordering::Relaxed);
        figures
    };
    let (figures, times) = join(flips, scrape).await;
    let mut figures = figures?;
    figures.insert("scrape, p50", percentile(&times, 50));
    figures.insert("scrape, p99", percentile(&times, 99));
    Ok(figures)
}

async fn nodes(load: &Load, pace: Pace) -> Result<Figures> {
    let mut ticks = interval(Duration::from_secs(1));
    for _ in 0..pace.seconds {
        ticks.tick().await;
        load.node_joins_and_goes().await?;
    }
    Ok(Figures::new())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

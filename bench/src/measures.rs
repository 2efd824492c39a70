//! What is measured. Times are in milliseconds, memory is in megabytes, and CPU in seconds.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use futures::future::{join, try_join};
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::drift::drift;
use crate::load::{AT_ONCE, Load};
use crate::report::percentile;
use crate::trial::Trial;

/// The figures of a step by their names.
pub(crate) type Figures = Vec<(&'static str, f64)>;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// From the start to all instances in an empty Consul.
    Cold,
    /// From a readiness in Kubernetes to the same in Consul.
    Flips,
    /// What a time costs in which nothing happens.
    Idle,
    /// From a kill until the program is ready again, with a Consul that holds everything.
    Restart,
    /// All endpoints of all Services are replaced at once.
    Storm,
    /// All endpoints of all Services are replaced, one slice after the other.
    Rollout,
    /// All resources are deleted: until Consul holds nothing.
    Wipe,
    /// Readiness, while all resources get another tag.
    Rewrite,
    /// What a service costs that the token may not write: give it all instances with `--services 1`.
    Refused,
    /// Readiness, while /readyz and /metrics are asked for without a pause.
    Scraped,
    /// What Nodes cost that join and go, without an endpoint on them.
    Nodes,
    /// The time until Consul is true again once somebody else has changed it; `--rate` says how often each kind is tried.
    Drift,
}

/// How long and how fast.
#[derive(Clone, Copy, Args)]
pub(crate) struct Pace {
    /// Changes in a second.
    #[arg(long, default_value_t = 20)]
    pub(crate) rate: u32,
    /// Seconds in which changes are made, or in which costs are counted.
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u32,
}

impl Pace {
    fn changes(self) -> usize {
        (self.rate * self.seconds) as usize
    }
}

/// A measure at a pace.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) measure: Measure,
    pub(crate) pace: Pace,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pace { rate, seconds } = self.pace;
        match self.measure {
            Measure::Cold => f.write_str("cold"),
            Measure::Flips => write!(f, "flips, {rate}/s for {seconds} s"),
            Measure::Idle => write!(f, "idle, {seconds} s"),
            Measure::Restart => f.write_str("restart"),
            Measure::Storm => f.write_str("storm"),
            Measure::Rollout => f.write_str("rollout"),
            Measure::Wipe => f.write_str("wipe"),
            Measure::Rewrite => f.write_str("rewrite"),
            Measure::Refused => write!(f, "refused, {seconds} s"),
            Measure::Scraped => write!(f, "scraped, {rate}/s for {seconds} s"),
            Measure::Nodes => write!(f, "nodes, {seconds} join and go"),
            Measure::Drift => write!(f, "drift, {rate} tries"),
        }
    }
}

impl Step {
    /// Says whether `bare` can do it: it writes all anew when it is started again.
    pub(crate) fn is_for_bare(self) -> bool {
        use Measure::{Drift, Refused, Restart, Rewrite, Scraped};
        !matches!(self.measure, Restart | Rewrite | Refused | Scraped | Drift)
    }

    /// The time that it may take.
    pub(crate) fn limit(self) -> Duration {
        Duration::from_secs(if self.measure == Measure::Drift { 1800 } else { 600 })
    }

    /// Takes the measure. But for the first, what is spent is counted from a moment on at which the program is quiet.
    pub(crate) async fn take(self, trial: &mut Trial, load: &mut Load) -> Result<Figures> {
        let pace = self.pace;
        let before = match self.measure {
            Measure::Cold => trial.before,
            Measure::Refused => {
                sleep(Duration::from_secs(10)).await;
                trial.spent().await?
            }
            Measure::Idle => {
                settled(trial).await?;
                compared(trial).await?;
                trial.spent().await?
            }
            _ => {
                settled(trial).await?;
                trial.spent().await?
            }
        };
        let mut figures = match self.measure {
            Measure::Cold => cold(trial).await?,
            Measure::Flips => flips(trial, load, pace).await?,
            Measure::Idle => pause(pace).await,
            Measure::Restart => {
                let ready = millis(trial.restart().await?);
                settled(trial).await?;
                vec![("until ready, ms", ready)]
            }
            Measure::Storm => replaced(trial, load, AT_ONCE).await?,
            Measure::Rollout => replaced(trial, load, 1).await?,
            Measure::Wipe => wipe(trial, load).await?,
            Measure::Rewrite => rewrite(trial, load, pace).await?,
            Measure::Refused => refused(trial, pace).await?,
            Measure::Scraped => scraped(trial, load, pace).await?,
            Measure::Nodes => nodes(load, pace).await?,
            Measure::Drift => drift(trial, load, pace.rate).await?,
        };
        let before = if self.measure == Measure::Restart { before.without_program() } else { before };
        figures.extend(trial.spent().await?.since(before));
        let (rss, peak) = trial.memory()?;
        figures.extend([("RSS, MB", rss), ("RSS so far at most, MB", peak)]);
        // As it was, for the next step and the next program.
        match self.measure {
            Measure::Wipe => restore(trial, load).await?,
            Measure::Flips | Measure::Scraped => flip_back(load, pace).await?,
            _ => {}
        }
        Ok(figures)
    }
}

async fn cold(trial: &Trial) -> Result<Figures> {
    let time = trial.all_there().await?;
    Ok(vec![("start to all there, ms", millis(time)), ("instances a second", trial.instances() / time.as_secs_f64())])
}

async fn pause(pace: Pace) -> Figures {
    sleep(Duration::from_secs(pace.seconds.into())).await;
    Figures::new()
}

/// Waits until the program is ready and has used little CPU for a second, but not for longer than two minutes: statuses are written
/// slowly on purpose.
pub(crate) async fn settled(trial: &Trial) -> Result<()> {
    if !trial.tested.is_bare() {
        trial.operator.wait_ready(Duration::from_secs(60)).await?;
    }
    for _ in 0..120 {
        let before = trial.cpu()?;
        sleep(Duration::from_secs(1)).await;
        if trial.cpu()? - before <= 0.03 {
            break;
        }
    }
    Ok(())
}

/// Waits until the program has compared Consul with what it wrote last, and reads nothing but whether something has changed, but not
/// for longer than two minutes.
async fn compared(trial: &Trial) -> Result<()> {
    if trial.tested.is_bare() {
        return Ok(());
    }
    let mut quiet = 0;
    for _ in 0..120 {
        sleep(Duration::from_secs(1)).await;
        let metrics = trial.operator.metrics().await?;
        let age = metrics
            .lines()
            .find_map(|line| line.strip_prefix("lictor_resync_age_seconds ")?.trim().parse::<f64>().ok());
        quiet = if age.is_some_and(|age| age < 2.5) { quiet + 1 } else { 0 };
        if quiet == 5 {
            break;
        }
    }
    Ok(())
}

/// Endpoints that are ready no more, in turn over all slices.
async fn flips(trial: &Trial, load: &Load, pace: Pace) -> Result<Figures> {
    let flip = |number: usize| async move {
        let (begun, endpoint) = (Instant::now(), load.endpoint(number));
        let seen = async {
            trial.wait_for(load, endpoint, false).await?;
            anyhow::Ok(millis(begun.elapsed()))
        };
        anyhow::Ok(try_join(load.set_ready(endpoint, false), seen).await?.1)
    };
    let mut ticks = interval(Duration::from_secs(1) / pace.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut under_way, mut latencies) = (FuturesUnordered::new(), Vec::new());
    let mut number = 0;
    while number < pace.changes() || !under_way.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if number < pace.changes() => {
                under_way.push(flip(number));
                number += 1;
            }
            Some(latency) = under_way.next(), if !under_way.is_empty() => latencies.push(latency?),
        }
    }
    Ok(vec![
        ("p50, ms", percentile(&latencies, 50)),
        ("p99, ms", percentile(&latencies, 99)),
        ("most, ms", percentile(&latencies, 100)),
    ])
}

/// Makes ready again what flips have changed.
async fn flip_back(load: &Load, pace: Pace) -> Result<()> {
    let back = |number| load.set_ready(load.endpoint(number), true);
    stream::iter(0..pace.changes()).map(back).buffer_unordered(AT_ONCE).try_collect().await
}

/// The time until Consul holds the new endpoints, and none of those from before.
async fn replaced(trial: &Trial, load: &mut Load, at_once: usize) -> Result<Figures> {
    let before = load.next_addresses();
    let begun = Instant::now();
    let written = async {
        load.replace_endpoints(at_once).await?;
        Ok(millis(begun.elapsed()))
    };
    let seen = async {
        // All of them have to be so in the end: it does not matter in which order they are looked at.
        for service in 0..load.size.services {
            trial.wait_replaced(service, before).await?;
        }
        trial.wait_for_exactly(load.size.instances).await?;
        Ok::<_, anyhow::Error>(millis(begun.elapsed()))
    };
    let (written, seen) = try_join(written, seen).await?;
    Ok(vec![("until all are replaced, ms", seen), ("of which Kubernetes, ms", written)])
}

/// The time until nothing is left in Consul. `bare` knows of no resources, and so it loses the slices.
async fn wipe(trial: &Trial, load: &Load) -> Result<Figures> {
    let begun = Instant::now();
    let deleted = async {
        if trial.tested.is_bare() {
            load.delete_slices().await?;
        } else {
            load.delete_resources().await?;
        }
        Ok(millis(begun.elapsed()))
    };
    let seen = async {
        trial.wait_for_exactly(0).await?;
        Ok::<_, anyhow::Error>(millis(begun.elapsed()))
    };
    let (deleted, seen) = try_join(deleted, seen).await?;
    Ok(vec![("until nothing is left, ms", seen), ("until Kubernetes has deleted, ms", deleted)])
}

/// Makes what a wipe has deleted.
async fn restore(trial: &Trial, load: &Load) -> Result<()> {
    trial.operator.kill()?;
    if trial.tested.is_bare() { load.make_slices().await } else { load.make_resources().await }
}

async fn rewrite(trial: &Trial, load: &Load, pace: Pace) -> Result<Figures> {
    let tag = format!("round-{}", fastrand::u32(..));
    let one = async {
        sleep(Duration::from_secs(1)).await;
        let (there, first) = flip(trial, load, false).await?;
        let (_, back) = flip(trial, load, true).await?;
        anyhow::Ok(vec![("flip, ms", first), ("of which Kubernetes, ms", there), ("flip back, ms", back)])
    };
    let edits = async {
        let begun = Instant::now();
        load.edit_tags(&tag).await?;
        Ok(millis(begun.elapsed()))
    };
    let (mut figures, edited) = try_join(one, edits).await?;
    figures.push(("all edits, ms", edited));
    sleep(Duration::from_secs(pace.seconds.into())).await;
    Ok(figures)
}

/// The time until Kubernetes has taken the readiness of the first service's first instance, and until Consul shows it.
async fn flip(trial: &Trial, load: &Load, ready: bool) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let time = || Ok::<_, anyhow::Error>(millis(begun.elapsed()));
    let taken = async {
        load.set_ready(load.endpoint(0), ready).await?;
        time()
    };
    let seen = async {
        trial.wait_for(load, load.endpoint(0), ready).await?;
        time()
    };
    try_join(taken, seen).await
}

async fn refused(trial: &Trial, pace: Pace) -> Result<Figures> {
    let lines = || trial.operator.log().lines().count();
    let logged = lines();
    sleep(Duration::from_secs(pace.seconds.into())).await;
    #[allow(clippy::cast_precision_loss, reason = "a count of lines")]
    let logged = (lines() - logged) as f64;
    Ok(vec![("log lines", logged)])
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
        let figures = flips(trial, load, pace).await;
        over.store(true, Ordering::Relaxed);
        figures
    };
    let (figures, times) = join(flips, scrape).await;
    let mut figures = figures?;
    figures.extend([("scrape, p50, ms", percentile(&times, 50)), ("scrape, p99, ms", percentile(&times, 99))]);
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

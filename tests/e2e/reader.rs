//! A program that asks Consul every 10 ms for what passes, as its users do.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lictor_testbed::wait;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::fixture::{Fixture, SOON};

const EVERY: Duration = Duration::from_millis(10);

/// Asks while `act` goes on, and fails where fewer than `least` addresses pass at any moment. Answers how often it asked.
pub(crate) async fn watched(fixture: &Fixture, least: usize, act: impl Future<Output = Result<()>>) -> Result<usize> {
    let looks = Cell::new(0);
    let act = async {
        act.await?;
        looked(&looks).await
    };
    tokio::select! {
        done = act => done?,
        failure = too_few(fixture, least, &looks) => bail!(failure?),
    }
    Ok(looks.get())
}

/// Waits until somebody has looked often enough for it to show something.
pub(crate) async fn looked(looks: &Cell<usize>) -> Result<()> {
    wait::until("enough looks", SOON, || async { Ok((looks.get() > 4).then_some(())) }).await
}

/// Ends with a moment at which fewer pass.
async fn too_few(fixture: &Fixture, least: usize, looks: &Cell<usize>) -> Result<String> {
    let url = format!("{}/v1/health/service/{}?passing", fixture.consul_address(), fixture.service);
    let client = reqwest::Client::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = client.get(&url).send().await?;
        let answer: Value = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
        let entries = answer.as_array().context("not a list")?;
        let passing: BTreeSet<&str> = entries.iter().filter_map(|entry| entry["Service"]["Address"].as_str()).collect();
        looks.set(looks.get() + 1);
        if passing.len() < least {
            return Ok(format!("at look {} only {passing:?} passed, and not {least}", looks.get()));
        }
    }
}

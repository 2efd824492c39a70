//! What a check does: Consul's own `agent/checks`, as far as consul-esm uses it. TLS is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpStream;

/// A check's definition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Definition {
    probe: Probe,
    pub(super) interval: Duration,
    timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
enum Probe {
    Http { url: String, method: String, headers: BTreeMap<String, Vec<String>> },
    Tcp { target: String },
    Grpc { target: String },
}

impl Definition {
    /// Reads it; none if nothing in it is for consul-esm.
    pub(super) fn read(given: &Value) -> Result<Option<Self>> {
        let text = |field: &str| given[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let probe = if let Some(url) = text("HTTP") {
            let headers = serde_json::from_value::<Option<_>>(given["Header"].clone())?.unwrap_or_default();
            Probe::Http { url, method: text("Method").unwrap_or_else(|| "GET".to_owned()), headers }
        } else if let Some(target) = text("TCP") {
            Probe::Tcp { target }
        } else if let Some(target) = text("GRPC") {
            Probe::Grpc { target }
        } else {
            return Ok(None);
        };
        let time = |field: &str| duration(given[field].as_str().unwrap_or_default());
        Ok(Some(Self { probe, interval: time("Interval")?, timeout: time("Timeout")? }))
    }

    /// Whether one that runs is not replaced by another. Its headers count only as far as it has them
    /// (`headersAlmostEqual`).
    pub(super) fn is_taken_for(&self, other: &Self) -> bool {
        let same = match (&self.probe, &other.probe) {
            (
                Probe::Http { url, method, headers },
                Probe::Http { url: other_url, method: other_method, headers: others },
            ) => {
                let known = headers.iter().filter(|(name, _)| !["User-Agent", "Accept"].contains(&name.as_str()));
                let same = known.into_iter().all(|(name, values)| others.get(name) == Some(values));
                (url, method) == (other_url, other_method) && same
            }
            (one, other) => one == other,
        };
        same && (self.interval, self.timeout) == (other.interval, other.timeout)
    }

    /// Does it, and says what its status and its output are.
    pub(super) async fn ask(&self) -> (&'static str, String) {
        let asked = async {
            match &self.probe {
                Probe::Http { url, method, headers } => http(url, method, headers).await,
                Probe::Tcp { target } => {
                    TcpStream::connect(target).await?;
                    Ok(("passing", format!("TCP connect {target}: Success")))
                }
                Probe::Grpc { target } => grpc(target).await,
            }
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => ("critical", format!("{error:#}")),
            Err(_) => ("critical", "no answer in time".to_owned()),
        }
    }
}

async fn http(url: &str, method: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<(&'static str, String)> {
    let mut request = reqwest::Client::new().request(method.parse()?, url);
    for (name, values) in headers {
        for value in values {
            request = request.header(name, value);
        }
    }
    let status = request.send().await?.status();
    let health = match status.as_u16() {
        200..=299 => "passing",
        429 => "warning",
        _ => "critical",
    };
    Ok((health, format!("HTTP {method} {url}: {status}")))
}

/// `HOST:PORT/SERVICE`, or only the first.
async fn grpc(target: &str) -> Result<(&'static str, String)> {
    let (address, service) = target.split_once('/').unwrap_or((target, ""));
    let (client, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut send) = client.ready().await?.send_request(request, false)?;
    send.send_data(question(service)?, true)?;
    let mut body = answer.await?.into_body();
    let answer = body.data().await.context("no answer")??;
    connection.abort();
    ensure!(answer.ends_with(&[0x08, 1]), "gRPC {target}: not serving");
    Ok(("passing", format!("gRPC check {target}: success")))
}

/// A `HealthCheckRequest` in its frame: one field, a string.
fn question(service: &str) -> Result<Bytes> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, u8::try_from(service.len())?]);
        message.extend(service.bytes());
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len())?];
    frame.extend(message);
    Ok(frame.into())
}

/// Reads Go's notation: `10s`, `1m30s`, `1.5s`.
fn duration(text: &str) -> Result<Duration> {
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').context("a number without a unit")?;
        let number: f64 = rest[..digits].parse()?;
        rest = &rest[digits..];
        let units = [("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let known = units.into_iter().find(|(unit, _)| rest.starts_with(unit));
        let (unit, seconds) = known.with_context(|| format!("{text:?} is not a duration"))?;
        sum += number * seconds;
        rest = &rest[unit.len()..];
    }
    Ok(Duration::from_secs_f64(sum))
}

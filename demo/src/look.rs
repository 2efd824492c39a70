//! What the story asks of Consul: its health API, in the words of `curl | jq`, and its DNS, in those of `dig`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lictor_testbed::dns::{self, Answer, Kind};
use lictor_testbed::{ConsulApi, Instance};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::show;

const PATIENCE: Duration = Duration::from_secs(30);

/// What `jq` makes of each instance.
const PER_INSTANCE: &str = r#".[] | "\(.Service.Address):\(.Service.Port) \(.Service.Tags) \([.Checks[] | select(.ServiceID != "") | "\(.Name): \(.Status)"] | join(", "))""#;

/// What `jq` makes of each check.
const PER_CHECK: &str =
    r#".[] | "\(.Service.Address) \(.Checks[] | select(.Name == "NAME") | "\(.Status) \(.Output | split("\n")[0])")""#;

/// Shows the instances of a service and their health.
pub async fn instances(api: &ConsulApi, name: &str) -> Result<()> {
    let found = api.services(name).await?;
    show::command(
        &format!("curl -s $CONSUL_HTTP_ADDR/v1/health/service/{name} | jq -r '{PER_INSTANCE}'"),
        &per_instance(&found)?,
    );
    Ok(())
}

fn per_instance(found: &Value) -> Result<String> {
    let mut lines = String::new();
    for entry in found.as_array().context("Consul's answer is not a list")? {
        let service = &entry["Service"];
        let address = service["Address"].as_str().unwrap_or_default();
        let states: Vec<String> = checks(entry)
            .filter(|check| check["ServiceID"] != "")
            .map(|check| format!("{}: {}", text(check, "Name"), text(check, "Status")))
            .collect();
        let _ = writeln!(lines, "{address}:{} {} {}", service["Port"], service["Tags"], states.join(", "));
    }
    Ok(lines)
}

/// Shows what the runs of one check say.
pub async fn check(api: &ConsulApi, service: &str, name: &str) -> Result<()> {
    let found = api.services(service).await?;
    let query = PER_CHECK.replace("NAME", name);
    show::command(
        &format!("curl -s $CONSUL_HTTP_ADDR/v1/health/service/{service} | jq -r '{query}'"),
        &per_check(&found, name)?,
    );
    Ok(())
}

fn per_check(found: &Value, name: &str) -> Result<String> {
    let mut lines = String::new();
    for entry in found.as_array().context("Consul's answer is not a list")? {
        let address = entry["Service"]["Address"].as_str().unwrap_or_default();
        for check in checks(entry).filter(|check| check["Name"] == name) {
            let output = text(check, "Output").split('\n').next().unwrap_or_default();
            let _ = writeln!(lines, "{address} {} {output}", text(check, "Status"));
        }
    }
    Ok(lines)
}

fn checks(entry: &Value) -> impl Iterator<Item = &Value> {
    entry["Checks"].as_array().into_iter().flatten()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// Shows what Consul's DNS has under a name.
pub async fn addresses(server: SocketAddr, name: &str, kind: Kind) -> Result<Answer> {
    let answer = dns::ask(server, name, kind).await?;
    let addresses = || answer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (word, mut lines) = match kind {
        Kind::A => ("A", addresses()),
        Kind::Aaaa => ("AAAA", addresses()),
        Kind::Srv => {
            let line = |srv: &dns::Srv| format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target);
            ("SRV", answer.srv.iter().map(line).collect())
        }
    };
    // Consul shuffles them; dig shows them as they come. In order they are easier to read.
    lines.sort();
    show::command(&format!("dig +short @{} -p {} {name} {word}", server.ip(), server.port()), &lines.join("\n"));
    Ok(answer)
}

/// Waits until Consul shows the instances of a service as wanted, by queries that Consul answers as soon
/// as something has changed.
pub async fn until(api: &ConsulApi, name: &str, what: &str, wanted: impl Fn(&[Instance]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut index = 0;
    loop {
        let query = format!("/v1/health/service/{name}?index={index}&wait=1s");
        let asked = async {
            let (_, index) = api.get_with_index(&query).await?;
            anyhow::Ok((api.instances(name).await?, index))
        };
        let (instances, now) = timeout_at(deadline, asked).await.with_context(|| too_late(name, what))??;
        if wanted(&instances) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, too_late(name, what));
        index = now;
    }
}

fn too_late(name: &str, what: &str) -> String {
    format!("Consul does not show within {} that {what} ({name})", show::time(PATIENCE))
}

/// The count and the sum, in seconds, of Lictor's own measurements of changes on their way to Consul.
pub fn latency(metrics: &str) -> Option<(u64, f64)> {
    let value = |suffix: &str| {
        let name = format!("lictor_endpoint_change_to_consul_seconds_{suffix} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name))
    };
    Some((value("count")?.parse().ok()?, value("sum")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_instance_is_a_line_and_so_is_a_check() -> Result<()> {
        let found = json!([{
            "Service": { "Address": "10.0.0.1", "Port": 80, "Tags": ["a", "b"] },
            "Checks": [
                { "Name": "Serf", "ServiceID": "", "Status": "passing", "Output": "alive" },
                { "Name": "ready", "ServiceID": "x", "Status": "passing", "Output": "" },
                { "Name": "http", "ServiceID": "x", "Status": "critical", "Output": "500\nOutput: no" },
            ],
        }]);
        assert_eq!(per_instance(&found)?, "10.0.0.1:80 [\"a\",\"b\"] ready: passing, http: critical\n");
        assert_eq!(per_check(&found, "http")?, "10.0.0.1 critical 500\n");
        Ok(())
    }

    #[test]
    fn latency_is_read_from_metrics() {
        let metrics =
            "lictor_endpoint_change_to_consul_seconds_sum 0.25\nlictor_endpoint_change_to_consul_seconds_count 2\n";
        assert_eq!(latency(metrics), Some((2, 0.25)));
        assert_eq!(latency(""), None);
    }
}

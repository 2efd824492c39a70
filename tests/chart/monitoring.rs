//! Alerts, dashboard and runbooks, by promtool and by a Prometheus that reads a real operator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lictor::engine::metrics::{Kind, Result as Outcome};
use lictor_testbed::programs::tools::Tool;
use lictor_testbed::{Process, TestNamespace, WorkDir, ports, wait};
use serde_json::{Value, json};

use crate::helm::{Helm, one, say};
use crate::installed::{Installed, SOON, register};
use crate::manifests::servers;
use crate::read;

/// The chart's rules with all alerts, as a file that Prometheus reads.
async fn rules(folder: &WorkDir, more: &[&str]) -> Result<(PathBuf, Vec<Value>)> {
    let on = ["--set", "metrics.prometheusRule.enabled=true", "-s", "templates/prometheusrule.yaml"];
    let objects = Helm::new().await?.objects(&[&on, more].concat()).await?;
    let spec = &one(&objects, "PrometheusRule")["spec"];
    let alerts = spec["groups"][0]["rules"].as_array().context("rules")?.clone();
    Ok((folder.write("rules.yaml", spec.to_string())?, alerts))
}

fn words(alerts: &[Value], field: &str) -> Vec<String> {
    alerts.iter().filter_map(|alert| Some(alert.pointer(field)?.as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn alerts_ring_when_they_should() -> Result<()> {
    let (promtool, folder) = (Tool::Promtool.ensure().await?, WorkDir::create("alerts")?);
    let (rules, alerts) = rules(&folder, &[]).await?;
    let said =
        say(&promtool, ["check", "rules", "--lint=all", "--lint-fatal"].map(Path::new).into_iter().chain([&*rules]));
    ensure!(said.await?.contains(&format!("{} rules found", alerts.len())));
    let tests = folder.write("alerts.yaml", read("tests/chart/alerts.yaml"))?;
    say(&promtool, ["test", "rules"].map(Path::new).into_iter().chain([&*tests])).await?;
    let tested = read("tests/chart/alerts.yaml");
    for name in words(&alerts, "/alert") {
        ensure!(
            tested.contains(&format!("docs/runbooks.md#{}\n", name.to_lowercase())),
            "{name} never rings in a test"
        );
    }
    Ok(())
}

/// Prometheus takes other releases' metrics for ours unless the selector says which are.
#[tokio::test]
async fn alerts_follow_the_values() -> Result<()> {
    let folder = WorkDir::create("alerts")?;
    let promtool = Tool::Promtool.ensure().await?;
    let set = ["--set-string", "metrics.prometheusRule.selector=job=\"lictor\"\\,cluster=~\"a|b\"", "--set"];
    let (file, alerts) = rules(&folder, &[&set[..], &["resyncInterval=1h30m"]].concat()).await?;
    say(&promtool, ["check", "rules"].map(Path::new).into_iter().chain([&*file])).await?;
    let exprs = words(&alerts, "/expr");
    ensure!(exprs.iter().all(|expr| expr.contains("{job=\"lictor\",cluster=~\"a|b\"") && !expr.contains("namespace=")));
    // Five resyncs.
    ensure!(
        exprs.iter().any(|expr| expr.contains("lictor_resync_age_seconds") && expr.ends_with("> 27000")),
        "{exprs:?}"
    );
    let fail = exprs.iter().find(|expr| expr.contains("lictor_consul_writes_total")).context("writes")?;
    ensure!(fail.contains(&format!("{:?}|{:?}", Outcome::not_tried, Outcome::unknown)), "{fail}");
    Ok(())
}

#[tokio::test]
async fn every_alert_has_its_runbook() -> Result<()> {
    let (_, alerts) = rules(&WorkDir::create("alerts")?, &[]).await?;
    let names: BTreeSet<String> = words(&alerts, "/alert").into_iter().collect();
    let runbooks = read("docs/runbooks.md");
    let sections = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).map(ToOwned::to_owned).collect();
    assert_eq!(names, sections, "alerts, and the sections of docs/runbooks.md");
    let page = "https://github.com/lictor-dev/lictor/blob/main/docs/runbooks.md";
    for alert in &alerts {
        let name = alert["alert"].as_str().context("a name")?;
        assert_eq!(alert["annotations"]["runbook_url"], format!("{page}#{}", name.to_lowercase()));
        ensure!(
            ["critical", "warning", "info"].contains(&alert["labels"]["severity"].as_str().unwrap_or_default()),
            "{alert}"
        );
    }
    let schema: Value = serde_json::from_str(&read("charts/lictor/values.schema.json"))?;
    let known = "/properties/metrics/properties/prometheusRule/properties/disabledAlerts/items/enum";
    let known: BTreeSet<String> = serde_json::from_value(schema.pointer(known).context("disabledAlerts")?.clone())?;
    assert_eq!(names, known, "alerts, and what disabledAlerts takes");
    Ok(())
}

/// The queries of the dashboard: (panel, query).
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    queries
}

/// The names in a query that are metrics of ours.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let names = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    names.filter(|name| name.starts_with("lictor_")).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn a_prometheus_finds_all_that_is_asked() -> Result<()> {
    let servers = servers().await?;
    let namespace = servers.namespace("metrics").await?;
    let all = ["serviceMonitor", "prometheusRule", "dashboard"].map(|kind| format!("metrics.{kind}.enabled=true"));
    let installed = Installed::make(servers.kubeconfig(), &servers.consul, &namespace, &all.join(",")).await?;
    let asked = ask(&installed, &namespace).await.with_context(|| installed.log());
    installed.end(&namespace).await?;
    asked
}

async fn ask(installed: &Installed, namespace: &TestNamespace) -> Result<()> {
    // What `helm test` would say: the rights that the chart gives are those that the program asks for.
    let said = installed.run("doctor", &[])?;
    ensure!(said.contains("ok    permissions"), "{said}");

    let _lictor = installed.operate()?;
    register(namespace).await?;
    let prometheus = Prometheus::start(&installed.folder, namespace.name(), installed.admin).await?;

    let dashboard: Value = serde_json::from_str(&read("charts/lictor/dashboards/lictor.json"))?;
    let queries = queries(&dashboard);
    ensure!(queries.len() > 10, "{queries:?}");
    for (panel, query) in &queries {
        let query = query
            .replace("$cluster", ".*")
            .replace("$namespace", namespace.name())
            .replace("$job", "lictor-metrics")
            .replace("$__rate_interval", "30s");
        let found = || async { Ok(Some(prometheus.query(&query).await?).filter(|found| !found.is_empty())) };
        wait::until(format!("an answer for the panel {panel:?}: {query}"), SOON, found).await?;
    }
    let there = prometheus.metrics().await?;
    let (_, alerts) = rules(&installed.folder, &[]).await?;
    let exprs = words(&alerts, "/expr");
    for query in queries.iter().map(|(_, query)| query).chain(&exprs) {
        let missing: Vec<_> = metrics_in(query).into_iter().filter(|name| !there.contains(name)).collect();
        ensure!(missing.is_empty(), "no such metrics: {missing:?}, of {there:?}\n{query}");
    }
    // And every one is of use somewhere.
    let all: BTreeSet<String> = queries.iter().flat_map(|(_, query)| metrics_in(query)).collect();
    let parts = ["_sum", "_count", "_created"];
    let unused: Vec<_> =
        there.iter().filter(|name| !all.contains(*name) && !parts.iter().any(|part| name.ends_with(part))).collect();
    ensure!(unused.is_empty(), "metrics that the dashboard does not show: {unused:?}");
    let (kind, outcome) = (Kind::register, Outcome::written);
    let query = format!("lictor_consul_writes_total{{kind=\"{kind:?}\",outcome=\"{outcome:?}\"}}");
    ensure!(!prometheus.query(&query).await?.is_empty(), "{query}");
    prometheus.rules_are_well(exprs.len()).await?;

    ensure!(!installed.log().contains("forbidden"), "a right is missing");
    Ok(())
}

/// A Prometheus that reads one operator.
struct Prometheus {
    address: String,
    _process: Process,
}

impl Prometheus {
    async fn start(folder: &WorkDir, namespace: &str, target: u16) -> Result<Self> {
        let (rules, _) = rules(folder, &[]).await?;
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            // As the ServiceMonitor would have it.
            "scrape_configs": [{
                "job_name": "lictor-metrics",
                "static_configs": [{
                    "targets": [format!("127.0.0.1:{target}")],
                    "labels": { "namespace": namespace },
                }],
            }],
        });
        let config = folder.write("prometheus.yaml", config.to_string())?;
        let address = format!("127.0.0.1:{}", ports::free()?);
        let mut command = Command::new(Tool::Prometheus.ensure().await?);
        command.arg("--config.file").arg(config).arg("--storage.tsdb.path").arg(folder.join("tsdb"));
        command.args(["--web.listen-address", &address]);
        let process = Process::spawn("prometheus", command, &folder.join("prometheus.log"))?;
        let prometheus = Self { address, _process: process };
        let up = || async { Ok(Some(prometheus.query("up == 1").await?).filter(|up| !up.is_empty())) };
        wait::until("Prometheus reads the operator", SOON, up).await?;
        Ok(prometheus)
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let mut url = reqwest::Url::parse(&format!("http://{}/api/v1/{path}", self.address))?;
        url.query_pairs_mut().extend_pairs(query);
        let answer: Value = serde_json::from_str(&reqwest::get(url).await?.text().await?)?;
        ensure!(answer["status"] == "success", "{answer}");
        Ok(answer["data"].clone())
    }

    async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let data = self.get("query", &[("query", query)]).await?;
        Ok(data["result"].as_array().context("a result")?.clone())
    }

    /// The names of the operator's metrics.
    async fn metrics(&self) -> Result<BTreeSet<String>> {
        let names: BTreeSet<String> = serde_json::from_value(self.get("label/__name__/values", &[]).await?)?;
        Ok(names.into_iter().filter(|name| name.starts_with("lictor_")).collect())
    }

    /// Prometheus evaluates all alerts without complaint.
    async fn rules_are_well(&self, number: usize) -> Result<()> {
        let evaluated = || async {
            let data = self.get("rules", &[]).await?;
            let rules = data["groups"][0]["rules"].as_array().context("rules")?.clone();
            let all = rules.len() == number && rules.iter().all(|rule| rule["health"] == "ok");
            ensure!(all, "{rules:#?}");
            Ok(Some(()))
        };
        wait::until("the rules are evaluated", SOON, evaluated).await
    }
}

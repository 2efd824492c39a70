//! How a field is read back from Consul, as text for the page.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use super::environment::{Environment, Subject};
use super::lines::Step;
use crate::fixture::{Fixture, Mode, SOON};

/// Where Consul shows a field. A path is one in what `/v1/health/service` answers of an instance; below `Agent` it is one
/// in what the agent says of its only check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// By which instances there are, and how they are.
    Instances,
    /// At a path, in each mode.
    Shown { agent: &'static str, catalog: &'static str },
    /// An agent does not: by what reaches the instance. In the catalog at a path.
    Asked { catalog: &'static str },
    /// An agent does not: by how many runs in a row it takes until the check is in this state.
    Runs(&'static str),
    /// By what is left when the resource has been deleted.
    Left,
}

impl Reading {
    /// Waits until the field is read back as wanted.
    pub(crate) async fn becomes(
        self,
        wanted: &str,
        step: &Step,
        environment: &Environment<'_>,
        subject: &mut Subject,
    ) -> Result<()> {
        if let Self::Runs(state) = self {
            environment.fixture.wait_ready(&subject.name).await?;
            let read = runs_until(state, environment.fixture, subject).await?;
            ensure!(read == wanted, "not {wanted:?}, but {read:?}");
            return Ok(());
        }
        let subject = &*subject;
        wait::until(format!("{wanted:?}"), SOON, || async {
            let read = self.read(step, environment, subject).await?;
            ensure!(read == wanted, "read back was {read:?}");
            Ok(Some(()))
        })
        .await
    }

    /// The path at which a mode shows it.
    pub(crate) fn path(self, mode: Mode) -> Option<&'static str> {
        match (self, mode) {
            (Self::Shown { agent: path, .. }, Mode::Agent)
            | (Self::Shown { catalog: path, .. } | Self::Asked { catalog: path }, Mode::Catalog) => Some(path),
            (Self::Left, _) => Some("Service.Meta.lictor-owner"),
            (Self::Instances | Self::Runs(_), _) | (Self::Asked { .. }, Mode::Agent) => None,
        }
    }

    async fn read(self, step: &Step, environment: &Environment<'_>, subject: &Subject) -> Result<String> {
        let instances = registered(environment.fixture, &subject.services).await?;
        match (instances.as_slice(), self.path(environment.fixture.mode)) {
            ([], _) => Ok(NOTHING.to_owned()),
            (_, None) if self == Self::Instances => Ok(listed(&instances, environment)),
            ([_], None) => asked(environment.fixture, step, subject).await,
            ([one], Some(path)) => match path.strip_prefix("Agent.") {
                None => Ok(subject.told(&at(one, path))),
                Some(field) => Ok(text(&agents_check(environment.fixture, &subject.services[0]).await?[field])),
            },
            _ => bail!("more than one instance: {instances:#?}"),
        }
    }
}

/// What is read back where there is no instance.
pub(crate) const NOTHING: &str = "nothing";

/// What Consul has under these names: each instance and its own checks.
pub(crate) async fn registered(fixture: &Fixture, services: &[String]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for service in services {
        let mut instances = fixture.consul().services(service).await?;
        for instance in instances.as_array_mut().context("not a list")? {
            let id = instance["Service"]["ID"].clone();
            let checks = instance["Checks"].as_array_mut().context("no checks")?;
            checks.retain(|check| check["ServiceID"] == id);
            all.push(json!({ "Service": instance["Service"], "Checks": instance["Checks"] }));
        }
    }
    all.sort_by_key(|instance| (text(&instance["Service"]["Address"]), instance["Service"]["Port"].as_u64()));
    Ok(all)
}

/// All instances and their states.
fn listed(instances: &[Value], environment: &Environment<'_>) -> String {
    let mut listed: Vec<String> =
        instances.iter().map(|instance| format!("{} {}", end(instance, environment), state(instance))).collect();
    listed.sort();
    listed.join(", ")
}

/// What reached the instance since the step began, or why nothing does. The catalog hears of another reason only much later.
async fn asked(fixture: &Fixture, step: &Step, subject: &Subject) -> Result<String> {
    let check = agents_check(fixture, &subject.services[0]).await?;
    let (status, output) = (text(&check["Status"]), text(&check["Output"]));
    if status == "passing" {
        let heard = subject.heard(step.yaml.contains("OTHER"));
        return heard.with_context(|| format!("nothing has reached it: {output}"));
    }
    let (_, reason) = output.split_once("x509: ").with_context(|| format!("it is {status}: {output}"))?;
    let reason = reason.split(['"', '\n']).next().unwrap_or_default();
    Ok(format!("{status}, \"{reason}\""))
}

/// How many runs in a row it takes to bring the check into a state.
async fn runs_until(wanted: &'static str, fixture: &Fixture, subject: &mut Subject) -> Result<String> {
    let run = if wanted == "passing" { "success" } else { "failure" };
    for _ in 0..ATTEMPTS {
        if let Some(runs) = count_runs(wanted, fixture, subject).await? {
            return Ok(format!("{wanted} with {run} number {runs} in a row"));
        }
    }
    bail!("{ATTEMPTS} times the check may have given up waiting: this machine is too busy to count its runs")
}

const ATTEMPTS: usize = 10;

/// Half of what the check waits for an answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Counts them once; none if the check may have given up waiting for an answer.
async fn count_runs(wanted: &'static str, fixture: &Fixture, subject: &mut Subject) -> Result<Option<usize>> {
    let (start, answers) = if wanted == "passing" { ("critical", [500, 200]) } else { ("passing", [200, 500]) };
    let service = &subject.services[0];
    let server = subject.servers.first_mut().context("nobody to ask")?;
    server.set_status(answers[0]).await?;
    // The first run of a check decides at once, whatever the thresholds.
    server.next("a run", |_| true, SOON).await?;
    let is = async |status: &str| Ok(agents_check(fixture, service).await?["Status"] == status);
    wait::until(format!("a check that is {start}"), SOON, || async { Ok(is(start).await?.then_some(())) }).await?;
    server.answers_until(answers[1], async || is(wanted).await, PATIENCE, SOON).await
}

/// The only check of an instance, as its agent has it.
async fn agents_check(fixture: &Fixture, service: &str) -> Result<Value> {
    let path = format!("/v1/agent/checks?filter=ServiceName%3D%3D%22{service}%22");
    let checks = fixture.consul().get(&path).await?;
    let check = checks.as_object().and_then(|checks| checks.values().next());
    Ok(check.context("there is no check")?.clone())
}

/// The worst of an instance's checks.
fn state(instance: &Value) -> &str {
    let states: Vec<&str> =
        instance["Checks"].as_array().into_iter().flatten().filter_map(|check| check["Status"].as_str()).collect();
    ["critical", "warning"].into_iter().find(|state| states.contains(state)).unwrap_or("passing")
}

/// Where an instance is.
fn end(instance: &Value, environment: &Environment<'_>) -> String {
    let service = &instance["Service"];
    format!("`{}:{}`", environment.name_of(&text(&service["Address"])), service["Port"])
}

/// The value at a path; of checks, of each.
fn at(instance: &Value, path: &str) -> String {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let pointer = format!("/{}", rest.replace('.', "/"));
    let value = |of: &Value| match of.pointer(&pointer) {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    match &instance[first] {
        Value::Array(each) if each.is_empty() => "none".to_owned(),
        Value::Array(each) => each.iter().map(value).collect::<Vec<_>>().join(", "),
        one => value(one),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

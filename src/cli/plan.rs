//! `lictor plan`: what `run` would do now, changing nothing.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::preview::{Note, Step, preview};
use super::{DIFFERS, PreviousAway, identify, in_other_mode, logged_out, prepare, registry};
use crate::cluster::connect;
use crate::cluster::kubernetes::ApiServer;
use crate::cluster::watch::Orders;
use crate::consul::transport::{Http, Transport};
use crate::model::status::NOT_LISTED;
use crate::ports::Kubernetes;
use crate::settings::{RunArgs, Settings};
use crate::state::world::World;

/// The flags of `lictor plan`: those of `run`, and how to print.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The format of the plan.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Table,
    /// One JSON object.
    Json,
}

/// Prints the plan; 0 if there is nothing to do, 1 if there is.
pub(super) fn plan(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let mut run = args.run;
    // What `run` logs of its work is no news here; what goes wrong is said at the end.
    if run.log_level == crate::settings::LOG_LEVEL {
        "error,kube_client=off".clone_into(&mut run.log_level);
    }
    let settings = Settings::new(run)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let (steps, notes) = runtime.block_on(logged_out(settings.consul.clone(), look(settings)))?;
    let text = match args.output {
        Output::Table => table(&steps, &notes),
        Output::Json => format!("{:#}\n", in_json(&steps, &notes)),
    };
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(note) = notes.iter().find(|note| note.reason == NOT_LISTED) {
        bail!("cannot find out everything: {}: {}", note.resource, note.message);
    }
    Ok(if steps.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

async fn look(settings: Settings) -> anyhow::Result<(Vec<Step>, Vec<Note>)> {
    let transport: Arc<dyn Transport> = Arc::new(Http::new(&settings.consul).context("reaching Consul")?);
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let identity = identify(&client, &settings).await?;
    let registry = registry(&settings, &identity, Arc::clone(&transport), None, PreviousAway::Fails)?;
    let (other, left) = in_other_mode(&settings, &identity, &transport).await;
    let mut world = read_world(client, settings, Orders::default()).await?;
    let (placement, rows) = registry.survey().await?;
    if world.asks_for_others() {
        world.know_others(Some(registry.names_of_others().await?));
    }
    let (steps, mut notes) = preview(world, rows, &identity, &placement, Instant::now());
    let other = other.as_str();
    notes.extend(left.into_iter().map(|(resource, count)| Note {
        resource,
        reason: "OtherRegistration".to_owned(),
        message: format!(
            "--registration={other} has registered {count} instances, which stay: --previous-registration={other} moves them"
        ),
    }));
    Ok((steps, notes))
}

/// Reads what Kubernetes has, once, under the policy of the settings.
pub(super) async fn read_world(client: Client, settings: Settings, orders: Orders) -> anyhow::Result<World> {
    let policy = tokio::sync::watch::channel(settings.policy.read()?).1;
    let kubernetes =
        ApiServer::new(client, settings.scopes, settings.nodes, Arc::new(settings.rules), orders).under(policy);
    Ok(kubernetes.read_again().await?)
}

pub(super) fn table(steps: &[Step], notes: &[Note]) -> String {
    let mut lines = vec![["ACTION", "RESOURCE", "SERVICE", "ADDRESS", "NODE", "DIFFERENCES"].map(str::to_owned)];
    lines.extend(steps.iter().map(|step| {
        [
            step.action.as_str().to_owned(),
            step.resource.to_string(),
            step.service.clone(),
            step.address.clone(),
            step.key.node.to_string(),
            step.differences.join("; "),
        ]
    }));
    let mut text = if steps.is_empty() { "nothing to do\n".to_owned() } else { columns(&lines) };
    if !steps.is_empty() {
        let count = |action: &str| steps.iter().filter(|step| step.action.as_str() == action).count();
        let counts =
            ["create", "update", "disown", "deregister"].map(|action| format!("{} to {action}", count(action)));
        text.extend([counts.join(", "), "\n".to_owned()]);
    }
    text.extend(
        notes.iter().map(|Note { resource, reason, message }| format!("note: {resource}: {reason}: {message}\n")),
    );
    text
}

/// Lines in columns that are as wide as they need to be.
pub(super) fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let padded = |line: &[String; N]| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(padded).collect()
}

fn in_json(steps: &[Step], notes: &[Note]) -> Value {
    let steps = steps.iter().map(|step| {
        json!({
            "action": step.action.as_str(),
            "resource": step.resource.to_string(),
            "service": step.service,
            "address": step.address,
            "node": &*step.key.node,
            "id": &*step.key.id,
            "differences": step.differences,
        })
    });
    let notes = notes
        .iter()
        .map(|note| json!({ "resource": note.resource.to_string(), "reason": note.reason, "message": note.message }));
    json!({ "steps": steps.collect::<Vec<_>>(), "notes": notes.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::preview::Action;
    use crate::model::ids::ResourceKey;
    use crate::model::registration::RowKey;

    fn step(action: Action, differences: &[&str]) -> Step {
        Step {
            resource: ResourceKey::new("shop", "user"),
            key: RowKey { node: "dev".into(), id: "c:shop:user:user:u1:80".into() },
            action,
            service: "user_service".to_owned(),
            address: "10.0.0.1:80".to_owned(),
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn a_plan_is_a_table_with_its_counts_and_notes() {
        let steps = [step(Action::Create, &[]), step(Action::Update, &["port: 80 → 81"])];
        let note =
            Note { resource: ResourceKey::new("shop", "a"), reason: "Paused".to_owned(), message: "why".to_owned() };
        let expected = "\
ACTION  RESOURCE   SERVICE       ADDRESS      NODE  DIFFERENCES
create  shop/user  user_service  10.0.0.1:80  dev
update  shop/user  user_service  10.0.0.1:80  dev   port: 80 → 81
1 to create, 1 to update, 0 to disown, 0 to deregister
note: shop/a: Paused: why
";
        assert_eq!(table(&steps, &[note]), expected);
        assert_eq!(table(&[], &[]), "nothing to do\n");
    }

    #[test]
    fn a_plan_is_json() {
        let json = in_json(&[step(Action::Deregister, &[])], &[]);
        assert_eq!(json["steps"][0]["action"], "deregister");
        assert_eq!(json["steps"][0]["id"], "c:shop:user:user:u1:80");
    }
}

//! `lictor takeover`: takes over what another cluster of our name has left in Consul.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio::time::{Instant, sleep};

use super::plan::table;
use super::preview::preview;
use super::{DIFFERS, agent, identify, logged_out, prepare};
use crate::cluster::connect;
use crate::cluster::kubernetes::ApiServer;
use crate::cluster::watch::Orders;
use crate::consul::agent::takeover::AgentTakeover;
use crate::consul::catalog::Catalog;
use crate::consul::catalog::takeover::CatalogTakeover;
use crate::consul::takeover::{Left, Takeover, taken};
use crate::consul::transport::{Http, Transport};
use crate::model::ids::{Identity, Str};
use crate::model::registration::Ownership;
use crate::ports::Kubernetes;
use crate::settings::{Mode, RunArgs, Settings, duration};
use crate::state::world::World;

/// The flags of `lictor takeover`: those of `run`, and from whom.
#[derive(Debug, Args)]
pub struct TakeoverArgs {
    /// The uid of the old cluster, as in the meta lictor-cluster-uid of its instances. The old cluster must have had the same
    /// --cluster-name.
    #[arg(long, value_name = "UID")]
    from_uid: String,

    /// Take over. Without this flag, the command only prints what it would take over.
    #[arg(long)]
    yes: bool,

    /// Wait for so long for a sign that a Lictor of the old cluster still runs, before anything is taken over. Must be longer
    /// than the --resync-interval of that Lictor.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    wait: Duration,

    #[command(flatten)]
    run: RunArgs,
}

/// The time between two looks for a sign of life.
const LOOKS: Duration = Duration::from_secs(1);

/// Prints what would be taken over, or takes it; 0 if nothing is left to take, 1 if there is something.
pub(super) fn takeover(args: TakeoverArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args.run)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let from = Str::from(args.from_uid);
    let consul = settings.consul.clone();
    runtime.block_on(logged_out(consul, take_over(settings, &from, args.yes.then_some(args.wait))))
}

async fn take_over(settings: Settings, from: &Str, wait: Option<Duration>) -> anyhow::Result<ExitCode> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ensure!((1..=64).contains(&from.len()) && from.chars().all(fits), "--from-uid {from:?} is not a uid");
    let transport: Arc<dyn Transport> = Arc::new(Http::new(&settings.consul).context("reaching Consul")?);
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let identity = identify(&client, &settings).await?;
    ensure!(identity.uid != *from, "--from-uid {from} is this cluster's own uid");
    let takeover: Box<dyn Takeover> = match settings.registration {
        Mode::Agent => Box::new(AgentTakeover::new(agent(&settings, &identity, transport, None)?, from)),
        Mode::Catalog => Box::new(CatalogTakeover::new(Catalog::new(identity.clone(), transport, 1), from)),
    };
    let left = takeover.survey().await?;
    if left.is_empty() {
        println!("Consul has nothing of a cluster {} with uid {from}", identity.cluster);
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", describe(&left, &identity, from));
    let Some(wait) = wait else {
        let kubernetes =
            ApiServer::new(client, settings.scopes, settings.nodes, Arc::new(settings.rules), Orders::default());
        let world = kubernetes.read_again().await?;
        println!("\nafter the takeover, `lictor run` of this cluster would do this:");
        print!("{}", afterwards(left, world, &identity));
        println!("\nnothing was changed; --yes takes it over, if no Lictor of that cluster still writes");
        return Ok(ExitCode::from(DIFFERS));
    };
    if takeover.challenge().await? {
        watch(&*takeover, wait).await?;
    }
    let taken = takeover.take().await?;
    println!("taken over: {} instances, {} Consul nodes", taken.instances, taken.nodes);
    match taken.refused {
        None => Ok(ExitCode::SUCCESS),
        Some(words) => bail!("not everything was taken over: {words}; correct this, then run the command again"),
    }
}

/// Waits, and fails as soon as a Lictor of the other cluster shows itself.
async fn watch(takeover: &dyn Takeover, wait: Duration) -> anyhow::Result<()> {
    println!("watching for a Lictor of that cluster that still writes, for {} s", wait.as_secs());
    let end = Instant::now() + wait;
    loop {
        if takeover.is_answered().await? {
            bail!("a Lictor of that cluster still writes to Consul: stop it first; nothing was taken over");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(LOOKS)).await;
    }
}

fn describe(left: &Left, identity: &Identity, from: &str) -> String {
    let mut text = format!("the cluster {} with uid {from} has in Consul:\n", identity.cluster);
    let mut services: BTreeMap<&str, usize> = BTreeMap::new();
    for row in left.rows.values() {
        *services.entry(&row.registration.service).or_default() += 1;
    }
    let instances = |count: usize| if count == 1 { "1 instance".to_owned() } else { format!("{count} instances") };
    text.extend(services.into_iter().map(|(service, count)| format!("  service {service}: {}\n", instances(count))));
    text.extend(left.nodes.iter().map(|node| format!("  node {node}\n")));
    text.extend(left.marker.iter().map(|marker| format!("  marker node {marker}\n")));
    text
}

/// Shows what `run` would do with what is left, as a table.
fn afterwards(left: Left, world: World, identity: &Identity) -> String {
    let Left { placement, rows, mut own, .. } = left;
    for (key, mut row) in rows {
        row.registration = Arc::new(taken(&row.registration, &identity.uid));
        row.ownership = Ownership::of(identity, &key.id, &row.registration.meta, false);
        own.insert(key, row);
    }
    let (steps, notes) = preview(world, own, identity, &placement, Instant::now());
    table(&steps, &notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::desired::Placement;
    use crate::model::ids::ClusterName;
    use crate::ports::Rows;

    #[test]
    fn what_is_left_is_told_by_name() {
        let cluster = ClusterName::new("prod").unwrap();
        let left = Left {
            placement: Placement::Catalog { cluster: cluster.clone(), taken: Arc::default() },
            rows: Rows::new(),
            own: Rows::new(),
            nodes: [Str::from("prod-a")].into(),
            marker: Some("lictor-prod".into()),
        };
        let identity = Identity { cluster, uid: "new".into() };
        let expected = "\
the cluster prod with uid old has in Consul:
  node prod-a
  marker node lictor-prod
";
        assert_eq!(describe(&left, &identity, "old"), expected);
    }
}

//! `lictor policy check`: what another policy would change for the resources of the cluster; and `lictor policy consul`: what
//! Lictor needs of Consul.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::plan::{columns, read_world};
use super::{DIFFERS, PreviousAway, identify, logged_out, prepare, registry};
use crate::cluster::connect;
use crate::cluster::watch::Orders;
use crate::consul::rights::{self, Rule, Services};
use crate::consul::transport::{Http, Transport};
use crate::model::ids::{ClusterName, ResourceKey, Str};
use crate::model::policy::Policy;
use crate::policy::PolicyFile;
use crate::settings::{Mode, RunArgs, Settings};
use crate::state::mirror::Mirror;
use crate::state::world::{Entry, LABELS, Wanted, World};

/// The subcommands of `lictor policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print what a policy file would change for the resources of the cluster, compared with the present flags of `run` (also
    /// --policy). Exits with 0 if nothing would change, with 1 if something would, and with 2 if it cannot find out.
    Check(Box<CheckArgs>),
    /// Print the smallest ACL policy with which `run` works, given its flags, for `consul acl policy create -rules -`. With
    /// --registration=catalog the command asks Kubernetes for the cluster's name, unless you give --cluster-name.
    Consul(Box<ConsulArgs>),
}

/// The flags of `lictor policy consul`: the services, and those of `run`.
#[derive(Debug, Args)]
pub struct ConsulArgs {
    /// A service in Consul that resources may register: a name, or a prefix followed by `*`. May be given several times, or
    /// with commas. Default: all services. `lictor doctor` uses the service `lictor-doctor`, unless you give it another one.
    #[arg(long = "service", value_name = "NAME,...", value_delimiter = ',')]
    services: Vec<String>,

    #[command(flatten)]
    run: RunArgs,
}

/// The flags of `lictor policy check`: the file, and those of `run`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The policy file to check.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    run: RunArgs,
}

/// Holds what a policy says of one resource, beside the present one.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    resource: ResourceKey,
    /// The name of the rule that would decide; none where no rule is for its namespace.
    rule: Option<String>,
    /// The reason why it is refused now.
    now: Option<String>,
    /// The reason why it would be refused.
    then: Option<String>,
    /// The limit of instances that would be another one, where that leaves some out or lets more in.
    moved: Option<Moved>,
}

/// A limit of instances that another policy sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// The most instances of the resource.
    Own(usize),
    /// The most instances of all resources of its namespace together; none where they have no budget.
    OfNamespace(Option<usize>),
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(most) => write!(f, "at most {most} instances; those that are registered stay"),
            Self::OfNamespace(Some(most)) => {
                write!(f, "at most {most} instances in the namespace; those that are registered stay")
            }
            Self::OfNamespace(None) => f.write_str("any number of instances in the namespace"),
        }
    }
}

impl Verdict {
    fn changes(&self) -> bool {
        self.now != self.then || self.moved.is_some()
    }
}

/// Holds what a World says of a resource.
struct Said {
    resource: ResourceKey,
    /// The reason why it is refused.
    refusal: Option<String>,
    /// The most instances that it may have; none while it is refused.
    most: Option<usize>,
    /// The most instances that all of its namespace may have; none without such a budget.
    most_of_namespace: Option<usize>,
    /// The number of its instances.
    instances: usize,
    /// The number of those of its namespace together.
    of_namespace: usize,
}

/// Counts instances as a budget does: those that a status shows as desired, and those that Consul has until they are gone.
struct Counted {
    of: BTreeMap<ResourceKey, usize>,
    of_namespace: BTreeMap<Str, usize>,
}

impl Counted {
    fn of(world: &World, there: &BTreeMap<ResourceKey, usize>) -> Self {
        let mut of = there.clone();
        for Entry { resource, .. } in world.entries().filter(|entry| entry.resource.ours) {
            let known = of.entry(resource.key.clone()).or_default();
            *known = resource.status.instances.desired.max(*known);
        }
        let mut of_namespace: BTreeMap<Str, usize> = BTreeMap::new();
        for (key, instances) in &of {
            *of_namespace.entry(key.namespace.clone()).or_default() += instances;
        }
        Self { of, of_namespace }
    }
}

impl Said {
    fn of(world: &World, entry: &Entry, counted: &Counted) -> Self {
        let resource = &entry.resource;
        let key = &resource.key;
        let conflict = || world.rival(&resource.key).map(|_| NAME_CONFLICT.to_owned());
        let refusal = resource.spec.as_ref().err().map(|why| why.message.clone());
        let limits = resource.spec.as_ref().ok().map(|spec| &spec.limits);
        Self {
            refusal: refusal.or_else(conflict),
            most: limits.map(|limits| limits.instances),
            most_of_namespace: limits.and_then(|limits| limits.of_namespace),
            instances: counted.of.get(key).copied().unwrap_or_default(),
            of_namespace: counted.of_namespace.get(&key.namespace).copied().unwrap_or_default(),
            resource: key.clone(),
        }
    }

    /// The limit that another policy sets, where it leaves some instances out that this one does not, or the other way round.
    fn moved(&self, then: &Self) -> Option<Moved> {
        let (now, most) = (self.most?, then.most?);
        if now != most && self.instances >= now.min(most) {
            return Some(Moved::Own(most));
        }
        let (now, most) = (self.most_of_namespace, then.most_of_namespace);
        let least = now.into_iter().chain(most).min()?;
        (now != most && self.of_namespace >= least).then_some(Moved::OfNamespace(most))
    }
}

/// The reason of a resource whose name would be another one's.
const NAME_CONFLICT: &str = "its name in Consul belongs to a resource of another namespace, and may not be shared";

pub(super) fn policy(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Check(args) => check(*args),
        PolicyCommand::Consul(args) => consul(*args),
    }
}

fn consul(args: ConsulArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args.run)?;
    prepare(&settings)?;
    let mut services = Vec::new();
    for name in &args.services {
        let Some(service) = Services::parse(name) else {
            bail!("--service {name:?}: give the name of a service, or a prefix followed by '*'");
        };
        services.push(service);
    }
    if services.is_empty() {
        services.push(Services::Prefix(String::new()));
    }
    let previous = settings.previous.as_ref();
    let modes = std::iter::once(settings.registration).chain(previous.map(|previous| previous.registration));
    let cluster = match &settings.cluster_name {
        // Only the catalog has nodes of that name.
        None if modes.clone().any(|mode| mode == Mode::Catalog) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
            Some(runtime.block_on(name(&settings))?)
        }
        known => known.clone(),
    };
    let before = previous.and_then(|previous| previous.cluster_name.clone()).or_else(|| cluster.clone());
    let mut rules: Vec<Rule> = Vec::new();
    for (mode, cluster) in modes.zip([cluster, before]) {
        let more = match cluster {
            Some(cluster) if mode == Mode::Catalog => rights::of_catalog(&cluster, &services),
            _ => rights::of_agent(&services),
        };
        // Of a move, those of both places; what both need stands there once.
        for rule in more {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(rights::hcl(&rules).as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// The cluster's name in Consul, by what Kubernetes says.
async fn name(settings: &Settings) -> anyhow::Result<ClusterName> {
    const ELSE: &str = "asking Kubernetes for the cluster's name; --cluster-name gives it without";
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref()).await.context(ELSE)?;
    Ok(identify(&client, settings).await.context(ELSE)?.cluster)
}

fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let mut run = args.run;
    if run.log_level == crate::settings::LOG_LEVEL {
        "error,kube_client=off".clone_into(&mut run.log_level);
    }
    let settings = Settings::new(run)?;
    prepare(&settings)?;
    let file = PolicyFile { path: Some(args.file), ..settings.policy.clone() };
    let then = file.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let (world, there) = runtime.block_on(logged_out(settings.consul.clone(), look(settings, &then)))?;
    let verdicts = verdicts(world, &there, &then);
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(table(&verdicts).as_bytes());
    let changes = verdicts.iter().any(Verdict::changes);
    Ok(if changes { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

/// The resources of the cluster, under the present policy, with the labels that the other one asks for; and how many instances
/// Consul has of each, where one of both depends on that.
async fn look(settings: Settings, then: &Policy) -> anyhow::Result<(World, BTreeMap<ResourceKey, usize>)> {
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref())
        .await
        .context("reaching Kubernetes")?;
    let orders = Orders::default();
    if then.asks_for_labels() {
        orders.want(&Wanted { watches: [(LABELS, 0)].into(), ..Wanted::default() });
    }
    let now = settings.policy.read()?;
    let asks_for_others = now.asks_for_others() || then.asks_for_others();
    let consul = if asks_for_others || now.counts_rows() || then.counts_rows() {
        let transport: Arc<dyn Transport> = Arc::new(Http::new(&settings.consul).context("reaching Consul")?);
        let identity = identify(&client, &settings).await?;
        let registry = registry(&settings, &identity, transport, None, PreviousAway::Fails)?;
        let mirror = Mirror::of(registry.survey().await?.1);
        Some((mirror, if asks_for_others { Some(registry.names_of_others().await?) } else { None }))
    } else {
        None
    };
    let mut world = read_world(client, settings, orders).await?;
    let Some((mirror, others)) = consul else { return Ok((world, BTreeMap::new())) };
    for owner in mirror.owners() {
        world.note_rows(owner, mirror.names(owner));
        world.note_checks(owner, mirror.most_checks(owner));
    }
    world.know_rows(true);
    if asks_for_others {
        world.know_others(others);
    }
    let there = mirror.owners().filter(|owner| world.watches(&owner.namespace));
    let there = there.map(|owner| (owner.clone(), mirror.owned_by(owner))).collect();
    Ok((world, there))
}

/// Compares the present policy of a World with another one. `there` says how many instances Consul has of each resource.
fn verdicts(mut world: World, there: &BTreeMap<ResourceKey, usize>, then: &Arc<Policy>) -> Vec<Verdict> {
    let counted = Counted::of(&world, there);
    let said = |world: &World| -> Vec<Said> {
        let ours = world.entries().filter(|entry| entry.resource.ours);
        ours.map(|entry| Said::of(world, entry, &counted)).collect()
    };
    let now = said(&world);
    world.follow(Arc::clone(then));
    let rule = |key: &ResourceKey| {
        let rule = then.rule(&key.namespace, world.labels_of(&key.namespace)).ok().flatten();
        rule.map(|rule| rule.name.to_string())
    };
    let both = now.into_iter().zip(said(&world));
    let verdict = |(now, then): (Said, Said)| {
        let (rule, moved) = (rule(&now.resource), now.moved(&then));
        Verdict { rule, resource: now.resource, now: now.refusal, then: then.refusal, moved }
    };
    both.map(verdict).collect()
}

fn table(verdicts: &[Verdict]) -> String {
    let mut lines = vec![["RESOURCE", "RULE", "NOW", "THEN", "WHY"].map(str::to_owned)];
    let word = |refusal: &Option<String>| if refusal.is_some() { "refused" } else { "allowed" }.to_owned();
    lines.extend(verdicts.iter().map(|verdict| {
        [
            verdict.resource.to_string(),
            verdict.rule.clone().unwrap_or_else(|| "none".to_owned()),
            word(&verdict.now),
            word(&verdict.then),
            verdict.then.clone().or_else(|| verdict.moved.map(|moved| moved.to_string())).unwrap_or_default(),
        ]
    }));
    let count = |fits: &dyn Fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| fits(verdict)).count();
    let refused = count(&|verdict| verdict.now.is_none() && verdict.then.is_some());
    let allowed = count(&|verdict| verdict.now.is_some() && verdict.then.is_none());
    let limited = count(&|verdict| verdict.moved.is_some());
    format!(
        "{}{} resources: {refused} allowed now would be refused (registrations stay), {allowed} refused now would be \
         allowed, {limited} would have another limit of instances\n",
        if verdicts.is_empty() { String::new() } else { columns(&lines) },
        verdicts.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_where_it_moves_instances() {
        let said = |most, most_of_namespace, instances, of_namespace| {
            let resource = ResourceKey::new("a", "r");
            Said { resource, refusal: None, most, most_of_namespace, instances, of_namespace }
        };
        for (now, then, instances, moved) in [
            (10, 5, 7, Some(Moved::Own(5))),
            (10, 5, 5, Some(Moved::Own(5))),
            (10, 5, 4, None),
            (5, 10, 5, Some(Moved::Own(10))),
            (5, 10, 4, None),
            (5, 5, 9, None),
        ] {
            let said = |most| said(Some(most), None, instances, instances);
            assert_eq!(said(now).moved(&said(then)), moved, "{now} {then} {instances}");
        }
        for (now, then, of_namespace, moved) in [
            (None, Some(5), 5, Some(Moved::OfNamespace(Some(5)))),
            (None, Some(5), 4, None),
            (Some(5), None, 5, Some(Moved::OfNamespace(None))),
            (Some(5), Some(9), 4, None),
            (Some(5), Some(9), 6, Some(Moved::OfNamespace(Some(9)))),
            (Some(5), Some(5), 9, None),
            (None, None, 9, None),
        ] {
            let said = |most_of_namespace| said(Some(99), most_of_namespace, 1, of_namespace);
            assert_eq!(said(now).moved(&said(then)), moved, "{now:?} {then:?} {of_namespace}");
        }
        assert_eq!(said(None, None, 9, 9).moved(&said(Some(5), Some(5), 9, 9)), None, "it is refused now");
    }

    #[test]
    fn a_table_says_what_would_change_and_why() {
        let verdict = |name: &str, now: Option<&str>, then: Option<&str>, moved| Verdict {
            resource: ResourceKey::new("shop", name),
            rule: Some("shops".to_owned()),
            now: now.map(str::to_owned),
            then: then.map(str::to_owned),
            moved,
        };
        let expected = "\
RESOURCE  RULE   NOW      THEN     WHY
shop/a    shops  allowed  refused  the tag \"x\"
shop/b    shops  refused  allowed
shop/c    shops  allowed  allowed  at most 3 instances; those that are registered stay
shop/d    shops  allowed  allowed  at most 9 instances in the namespace; those that are registered stay
shop/e    shops  allowed  allowed  any number of instances in the namespace
5 resources: 1 allowed now would be refused (registrations stay), 1 refused now would be allowed, 3 would have another limit of instances
";
        let verdicts = [
            verdict("a", None, Some("the tag \"x\""), None),
            verdict("b", Some("no"), None, None),
            verdict("c", None, None, Some(Moved::Own(3))),
            verdict("d", None, None, Some(Moved::OfNamespace(Some(9)))),
            verdict("e", None, None, Some(Moved::OfNamespace(None))),
        ];
        assert_eq!(table(&verdicts), expected);
        assert!(verdicts.iter().all(Verdict::changes) && !verdict("f", Some("no"), Some("no"), None).changes());
        assert!(table(&[]).starts_with("0 resources"));
    }
}

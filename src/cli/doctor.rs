//! `lictor doctor`: whether everything is there that `run` needs, line by line.
//!
//! - `probe`: registers a test instance and deregisters it.
//! - `dns`: asks Consul's DNS.

mod dns;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};

use self::probe::Way;
use super::{DIFFERS, PreviousAway, identify, in_other_mode, prepare, registry};
use crate::cluster::definition::{self, Definition};
use crate::cluster::{connect, permissions};
use crate::consul::client::Client as ConsulClient;
use crate::consul::servers::{Versions, judge, servers};
use crate::consul::transport::{ConsulSettings, Http, LoggedIn, Transport};
use crate::model::desired::Placement;
use crate::model::health::Health;
use crate::model::ids::{Identity, Str, meta};
use crate::model::registration::Row;
use crate::ports::Rows;
use crate::settings::{Mode, RunArgs, Settings};

/// The flags of `lictor doctor`: those of `run`, and what to register for a moment.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The Consul service of which the doctor registers and deregisters a test instance. The token needs `service:write`
    /// for it.
    #[arg(long, value_name = "NAME", default_value = "lictor-doctor")]
    service: String,

    /// The address of Consul's DNS over TCP. Default: port 8600 on the host of Consul's address; it is then no failure if
    /// nothing answers there.
    #[arg(long, value_name = "HOST:PORT")]
    dns_address: Option<String>,

    #[command(flatten)]
    run: RunArgs,
}

/// The list of what was checked, with the result of each.
#[derive(Default)]
struct Report {
    sick: bool,
}

impl Report {
    /// Says what is worth knowing, and no failure.
    #[allow(clippy::unused_self, reason = "a report is written in one place")]
    fn note(&mut self, what: &str, words: &str) {
        println!("note  {what}: {words}");
    }

    /// Says what was found; gives it if it is good.
    fn say<T>(&mut self, what: &str, found: Result<(T, String), String>) -> Option<T> {
        match found {
            Ok((value, well)) => {
                println!("ok    {what}: {well}");
                Some(value)
            }
            Err(ill) => {
                self.sick = true;
                println!("FAIL  {what}: {ill}");
                None
            }
        }
    }
}

/// Prints what is found; 0 if all is well, 1 if something is not.
pub(super) fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args.run)?;
    prepare(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let mut report = Report::default();
    runtime.block_on(async {
        let logins = settings.consul.logins.clone();
        examine(settings, &args.service, args.dns_address.as_deref(), &mut report).await;
        logins.end().await;
    });
    Ok(if report.sick { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

async fn examine(settings: Settings, service: &str, dns_address: Option<&str>, report: &mut Report) {
    let client = connect::client(settings.kubeconfig.as_deref(), settings.context.as_deref()).await;
    let client = report.say("Kubernetes is configured", found(client, |_| "yes".to_owned()));
    let identity = match &client {
        Some(client) => kubernetes_of(client, &settings, report).await,
        None => None,
    };
    let http = Http::new(&settings.consul);
    let Some(http) = report.say("Consul is configured", found(http, |_| settings.consul.addresses.join(", "))) else {
        return;
    };
    if !answers(&settings.consul, report).await || !is_let_in(&http, report).await {
        return;
    }
    let transport: Arc<dyn Transport> = Arc::new(http);
    versions(&transport, report).await;
    let Some(identity) = identity else { return };
    let registry = registry(&settings, &identity, Arc::clone(&transport), None, PreviousAway::Fails);
    let registry = match registry {
        Ok(registry) => registry,
        Err(error) => {
            report.say::<()>("the previous places are configured", Err(format!("{error:#}")));
            return;
        }
    };
    let survey = registry.survey().await;
    let survey = report
        .say("Consul can be read", found(survey, |(_, rows)| format!("{} instances of this cluster", rows.len())));
    if let Some((placement, rows)) = survey {
        say_where(&placement, &rows, report);
        let (other, left) = in_other_mode(&settings, &identity, &transport).await;
        let count: usize = left.values().sum();
        if count > 0 {
            let other = other.as_str();
            report.note(
                "the other mode",
                &format!(
                    "--registration={other} has registered {count} instances, which stay: --previous-registration={other} \
                     moves them"
                ),
            );
        }
        say_whose(&identity, &rows, report);
        if let Some(client) = client.filter(|_| settings.registration == Mode::Catalog) {
            names_of_nodes(&client, &placement, report).await;
        }
        names_in_dns(&settings, &transport, &rows, dns_address, report).await;
    }
    let way = match settings.registration {
        Mode::Agent => Way::Agent,
        Mode::Catalog => Way::Catalog(&identity.cluster),
    };
    // Whoever stops us now waits until what was registered is gone again.
    let _stops = [signal(SignalKind::terminate()), signal(SignalKind::interrupt())];
    let id = format!("lictor-doctor-{:016x}", fastrand::u64(..));
    let there = probe::register_and_deregister(transport, way, service, &id).await;
    report.say(
        "Consul can be written",
        found(there, |()| format!("a test instance of {service:?} was registered and deregistered")),
    );
}

/// Says which other agents hold instances of ours, where there are any.
fn say_where(placement: &Placement, rows: &Rows, report: &mut Report) {
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, _) in rows.iter().filter(|(key, _)| placement.is_another_agent(&key.node)) {
        *others.entry(&key.node).or_default() += 1;
    }
    if !others.is_empty() {
        let each: Vec<String> = others.iter().map(|(node, count)| format!("{count} of them with {node}")).collect();
        let what = format!(
            "other Consul agents hold instances of this cluster, {}; only those agents can deregister them: give their \
             addresses with --previous-agent",
            each.join(", ")
        );
        report.say::<()>("Consul agent", Err(what));
    }
}

/// Says which other clusters have instances under our name, where there are any.
fn say_whose(identity: &Identity, rows: &Rows, report: &mut Report) {
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows.values().filter(|row| !row.is_ours()) {
        let meta = |key: &str| row.registration.meta.get(key).map(|value| &**value);
        let uid = meta(meta::CLUSTER_UID).filter(|uid| *uid != &*identity.uid);
        if let Some(uid) = uid.filter(|_| meta(meta::CLUSTER) == Some(identity.cluster.as_str())) {
            *others.entry(uid).or_default() += 1;
        }
    }
    for (uid, count) in others {
        let what = format!(
            "{count} instances are of another cluster {} with uid {uid}: two clusters need two names; if that cluster is \
             gone for good and this one takes its place, run lictor takeover --from-uid={uid}",
            identity.cluster
        );
        report.say::<()>("the cluster's name in Consul", Err(what));
    }
}

/// Asks at each address who leads the servers; answers whether anybody said so.
async fn answers(settings: &ConsulSettings, report: &mut Report) -> bool {
    let mut leaders: Vec<String> = Vec::new();
    for address in &settings.addresses {
        let what = match settings.addresses.len() {
            1 => "Consul answers".to_owned(),
            _ => format!("Consul answers at {address}"),
        };
        let leader = match leader_at(settings, address).await {
            Ok(leader) if leaders.first().is_some_and(|first| *first != leader) => Err(format!(
                "its servers are led by {leader}, and those of another address by {}: all addresses have to be of one \
                 datacenter",
                leaders[0]
            )),
            answer => answer,
        };
        leaders.extend(report.say(&what, found(leader, |leader| format!("its servers are led by {leader}"))));
    }
    !leaders.is_empty()
}

/// Says whether the versions of Consul's servers are such that Lictor works with them.
async fn versions(transport: &Arc<dyn Transport>, report: &mut Report) {
    const WHAT: &str = "Consul's version";
    // Where they cannot be read, the next question says so.
    let Ok(servers) = servers(&ConsulClient::new(Arc::clone(transport))).await else { return };
    match judge(&servers) {
        Versions::Fine => {}
        Versions::Untested(why) => report.note(WHAT, &why),
        Versions::TooOld(why) => _ = report.say::<()>(WHAT, Err(why)),
    }
}

/// Logs in, where the flags say so; answers whether Consul can be asked further.
async fn is_let_in(http: &Http, report: &mut Report) -> bool {
    let logged_in = match http.log_in().await {
        Ok(None) => return true,
        Ok(Some(logged_in)) => Ok(logged_in),
        Err(error) => Err(error),
    };
    let what = "Consul lets Lictor log in";
    let words = |logged_in: &LoggedIn| {
        let lifetime = logged_in
            .lifetime
            .map_or("until it is logged out".to_owned(), |lifetime| format!("for {} s", lifetime.as_secs()));
        format!("a token {lifetime}, with {}", logged_in.bound_to.join(", "))
    };
    let Some(logged_in) = report.say(what, found(logged_in, words)) else { return false };
    if logged_in.lifetime.is_none() {
        report.note(
            "Consul's auth method",
            "it has no MaxTokenTTL: a replica that is killed leaves a token behind for ever; set one",
        );
    }
    true
}

async fn leader_at(settings: &ConsulSettings, address: &str) -> Result<String, String> {
    // Who leads is said to everybody.
    let alone = ConsulSettings { addresses: vec![address.to_owned()], login: None, ..settings.clone() };
    let http = Http::new(&alone).map_err(|error| error.to_string())?;
    probe::leader(Arc::new(http)).await.map_err(|error| error.to_string())
}

/// Says which Kubernetes nodes have no Consul node of their own, since somebody else has its name.
async fn names_of_nodes(client: &Client, placement: &Placement, report: &mut Report) {
    const WHAT: &str = "names of Consul nodes";
    const SHOWN: usize = 5;
    let nodes = match Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await {
        Ok(nodes) => nodes,
        Err(error) => return report.note(WHAT, &format!("cannot check: {error}")),
    };
    let names = nodes.iter().filter_map(|node| node.metadata.name.as_deref());
    let taken: Vec<&str> = names.filter(|name| placement.node_for(name).is_none()).collect();
    if taken.is_empty() {
        report.say::<()>(WHAT, Ok(((), format!("free for all {} Kubernetes nodes", nodes.items.len()))));
        return;
    }
    let (shown, more) = (taken[..taken.len().min(SHOWN)].join(", "), taken.len().saturating_sub(SHOWN));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    report.note(
        WHAT,
        &format!(
            "Consul agents or others use the Consul node names of {} Kubernetes nodes ({shown}{more}): Lictor registers \
             their instances on shared nodes; another --cluster-name avoids that",
            taken.len()
        ),
    );
}

/// Says whether Consul's DNS gives SRV answers for what is registered.
async fn names_in_dns(
    settings: &Settings,
    transport: &Arc<dyn Transport>,
    rows: &Rows,
    address: Option<&str>,
    report: &mut Report,
) {
    const WHAT: &str = "Consul's DNS";
    let is_up = |row: &&Row| row.is_ours() && row.health != Health::Critical;
    let services: BTreeSet<Str> = rows.values().filter(is_up).map(|row| row.registration.service.clone()).collect();
    if services.is_empty() {
        return report.note(WHAT, "not asked: no instance of this cluster is passing");
    }
    let host = settings
        .consul
        .addresses
        .first()
        .and_then(|address| address.parse::<http::Uri>().ok())
        .and_then(|uri| uri.host().map(str::to_owned));
    let guessed = host.map(|host| format!("{host}:8600"));
    let Some(server) = address.map(str::to_owned).or(guessed) else {
        return report.note(WHAT, "not asked: set --dns-address");
    };
    if address.is_none() && dns::ask(&server, "consul", dns::Kind::A).await.ok().flatten().is_none() {
        return report.note(WHAT, &format!("not asked: nothing answers at {server} (--dns-address)"));
    }
    let asked = probe::srv(Arc::clone(transport), &server, &services).await;
    let srv = report.say(
        WHAT,
        found(asked, |srv| format!("{server} answers SRV questions for {} services of this cluster", srv.asked)),
    );
    if let Some(words) = srv.as_ref().and_then(|srv| short_answers(&srv.short, settings)) {
        report.note("Consul's DNS over UDP", &words);
    }
}

/// What to set in Consul, if clients that ask over UDP do not learn of all instances of these services.
fn short_answers(services: &[Str], settings: &Settings) -> Option<String> {
    let first = services.first()?;
    let others = if services.len() > 1 { format!(" and {} more", services.len() - 1) } else { String::new() };
    // The nodes that Lictor makes have meta, of which Consul makes TXT records.
    let meta = match settings.registration {
        Mode::Agent => "",
        Mode::Catalog => " and enable_additional_node_meta_txt = false",
    };
    Some(format!(
        "SRV answers leave out instances of {first}{others}, and do not say so; in Consul's dns_config, set \
         enable_truncate = true{meta}"
    ))
}

async fn kubernetes_of(client: &Client, settings: &Settings, report: &mut Report) -> Option<Identity> {
    let version = client.apiserver_version().await;
    report.say("Kubernetes answers", found(version, |version| version.git_version.clone()))?;
    let definition = match definition::look(client).await {
        Definition::Unknown(why) => Ok(((), format!("cannot check: {why}"))),
        definition => definition.advice().map_or_else(|| Ok(((), "it fits this version".to_owned())), Err),
    };
    report.say("CustomResourceDefinition", definition);
    let lease = settings
        .election
        .as_ref()
        .map(|election| election.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned()));
    let lease = lease.as_deref().zip(settings.election.as_ref().map(|election| &*election.lease));
    let needs = permissions::needs(&settings.scopes, settings.nodes, settings.cluster_uid.is_none(), lease);
    let all = needs.len();
    let lacking = permissions::lacking(client, needs).await;
    let lacking = lacking.and_then(|lacking| {
        let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
        if lacking.is_empty() {
            Ok(((), format!("all {all}")))
        } else {
            Err(format!("missing: {}", lacking.join(", ")))
        }
    });
    report.say("permissions", lacking);
    let identity = identify(client, settings).await.map_err(|error| format!("{error:#}"));
    report.say("the cluster's name in Consul", found(identity, |identity| identity.cluster.to_string()))
}

/// A result with its good news in words.
fn found<T, E: std::fmt::Display>(
    result: Result<T, E>,
    words: impl FnOnce(&T) -> String,
) -> Result<(T, String), String> {
    match result {
        Ok(value) => {
            let words = words(&value);
            Ok((value, words))
        }
        Err(error) => Err(error.to_string()),
    }
}

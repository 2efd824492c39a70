//! Lictor that moves: to another Consul agent, mode, Consul or name, and to a cluster that was built anew under the same name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, NewEndpoint, Operator, wait};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::fixture::{Fixture, LARGE, Mode, SOON, wait_for_metric};
use crate::outages::wait_not_ready;

/// So many looks at least show something.
const LEAST: usize = 4;

/// How many of these instances are to be found as long as this lives: whoever asks every 10 ms keeps the fewest.
pub(crate) struct Reader {
    ends: Arc<AtomicBool>,
    task: JoinHandle<Result<usize>>,
}

impl Reader {
    /// Asks one Consul for the passing instances of a service at these addresses.
    pub(crate) fn begin(consul: ConsulApi, service: &str, addresses: &[String]) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (wanted, service, over) = (BTreeSet::from_iter(addresses.to_vec()), service.to_owned(), Arc::clone(&ends));
        let task = tokio::spawn(async move {
            let (mut fewest, mut looks) = (usize::MAX, 0);
            while looks < LEAST || !over.load(Ordering::Relaxed) {
                let found = consul.get(&format!("/v1/health/service/{service}?passing")).await?;
                let found =
                    found.as_array().into_iter().flatten().filter_map(|entry| entry["Service"]["Address"].as_str());
                let found: BTreeSet<&str> = found.filter(|address| wanted.contains(*address)).collect();
                fewest = fewest.min(found.len());
                looks += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(fewest)
        });
        Self { ends, task }
    }

    /// The fewest of them that were found at any moment.
    pub(crate) async fn end(self) -> Result<usize> {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// The addresses and Consul nodes of what is passing.
async fn passing(consul: &ConsulApi, service: &str) -> Result<BTreeSet<(String, String)>> {
    let found = consul.get(&format!("/v1/health/service/{service}?passing")).await?;
    let of = |entry: &Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some((text(&entry["Service"]["Address"])?, text(&entry["Node"]["Node"])?))
    };
    Ok(found.as_array().into_iter().flatten().filter_map(of).collect())
}

/// Waits until just these addresses pass, each on one of these nodes.
async fn wait_for_places(consul: &ConsulApi, service: &str, addresses: &[&str], nodes: &[&str]) -> Result<()> {
    let wanted: BTreeSet<(String, String)> =
        addresses.iter().flat_map(|at| nodes.iter().map(|node| ((*at).to_owned(), (*node).to_owned()))).collect();
    wait::until(format!("just {wanted:?}"), 2 * SOON, || async {
        let found = passing(consul, service).await?;
        ensure!(found == wanted, "they are {found:?}");
        Ok(Some(()))
    })
    .await
}

async fn another(fixture: &Fixture, server: &Consul, address: &str) -> Result<Consul> {
    let options =
        ConsulOptions { join: Some(server.serf_addr()), address: address.parse()?, ..ConsulOptions::default() };
    Consul::start(fixture.programs, options).await
}

pub(crate) async fn another_agent(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(3).await?;
    let first = fixture.own_consul(ConsulOptions::default()).await?;
    let second = another(fixture, first, "127.0.0.2").await?;
    let (api, nodes) = (first.api(), [first.node_name(), second.node_name()]);
    let addresses: Vec<String> = pods.iter().map(|pod| pod.ip.to_string()).collect();
    let [one, two, three] = [0, 1, 2].map(|nth| addresses[nth].as_str());
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    wait_for_places(&api, &fixture.service, &[one, two, three], &nodes[..1]).await?;
    fixture.wait_ready("web").await?;
    operator.terminate(SOON).await?;

    // Nobody has named the first agent: what it holds stays, and that is said everywhere.
    let says = |command| crate::commands::says(fixture, command, &["--consul-address", &second.http_addr()], 1);
    let operator = fixture.operator().consul(&second.http_addr()).start()?;
    let message = fixture.wait_for_condition("web", "Registered", "False", "OnAnotherAgent").await?;
    for part in ["3 of 3 instances", nodes[0], "--previous-agent", "consul services deregister -id="] {
        ensure!(message.contains(part), "it does not say {part:?}: {message}");
    }
    fixture.wait_for_event("web", "OnAnotherAgent").await?;
    wait_for_metric(&operator, "lictor_instances_on_other_agents", |count| count > 2.5).await?;
    let told = says("plan")?;
    ensure!(told.contains("3 to deregister") && told.contains("note:") && told.contains("--previous-agent"), "{told}");
    let told = says("doctor")?;
    ensure!(told.contains("FAIL") && told.contains(&format!("3 of them with {}", nodes[0])), "{told}");
    wait_for_places(&api, &fixture.service, &[one, two, three], &nodes).await?;

    // One of the pods goes: the first agent still has it.
    fixture.namespace.force_delete("web-2").await?;
    wait::until("the second agent to follow", SOON, || async {
        let found = passing(&api, &fixture.service).await?;
        let has = |node: &str| found.iter().filter(|(_, on)| on == node).count();
        Ok((has(nodes[1]) == 2 && has(nodes[0]) == 3).then_some(()))
    })
    .await?;
    operator.terminate(SOON).await?;

    // With its name it is asked, and only what lives is left.
    let reader = Reader::begin(first.api(), &fixture.service, &addresses[..2]);
    let operator =
        fixture.operator().consul(&second.http_addr()).flag("--previous-agent", &first.http_addr()).ready().await?;
    wait_for_places(&api, &fixture.service, &[one, two], &nodes[1..]).await?;
    fixture.wait_ready("web").await?;
    ensure!(reader.end().await? == 2, "one that lives was missing");
    wait_for_metric(&operator, "lictor_instances_on_other_agents", |left| left < 0.5).await?;
    let held = first.api().get("/v1/agent/services").await?;
    ensure!(held.as_object().is_some_and(serde_json::Map::is_empty), "the first agent still has {held}");
    operator.terminate(SOON).await?;

    // An agent that is gone for good cannot bring anything back: the catalog is enough.
    second.kill()?;
    let operator = fixture.operator().ready().await?;
    wait_for_places(&api, &fixture.service, &[one, two], &nodes[..1]).await?;
    wait::until("nothing of the agent that is gone", 2 * SOON, || async {
        let left = fixture.instances().await?;
        ensure!(left.iter().all(|instance| instance.node == nodes[0]), "there is {left:?}");
        Ok(Some(()))
    })
    .await?;
    fixture.wait_ready("web").await?;
    operator.terminate(SOON).await.map(drop).context("the last one")
}

/// The uid of the cluster that this one is built anew after.
const OLD_UID: &str = "11111111-0000-0000-0000-000000000000";

const TAKEOVER: [&str; 2] = ["--from-uid", OLD_UID];

/// What `lictor takeover` says with these flags, which ends with this code.
fn takeover(fixture: &Fixture, more: &[&str], code: i32) -> Result<String> {
    crate::commands::says(fixture, "takeover", &[&TAKEOVER, more].concat(), code)
}

/// Two pods and an endpoint by hand, registered by the old cluster: its operator, and the address by hand.
async fn an_old_cluster(fixture: &Fixture) -> Result<(Arc<Operator>, &'static str)> {
    let pods = fixture.web(2).await?;
    let by_hand = "10.1.0.1";
    let endpoint = NewEndpoint::new(by_hand.parse()?);
    fixture.namespace.apply_slice("web-by-hand", "web", &[("http", 8080)], &[endpoint]).await?;
    fixture.apply_web(json!({})).await?;
    let operator = fixture.operator().flag("--cluster-uid", OLD_UID).ready().await?;
    let wanted: BTreeSet<String> = pods.iter().map(|pod| pod.ip.to_string()).chain([by_hand.to_owned()]).collect();
    wait_for_addresses(fixture, &wanted).await?;
    fixture.wait_ready("web").await?;
    Ok((operator, by_hand))
}

/// Waits until just these addresses pass.
async fn wait_for_addresses(fixture: &Fixture, wanted: &BTreeSet<String>) -> Result<()> {
    wait::until(format!("just {wanted:?}, passing"), SOON, || async {
        let found = passing(&fixture.consul(), &fixture.service).await?.into_iter().map(|(address, _)| address);
        let found: BTreeSet<String> = found.collect();
        ensure!(found == *wanted, "they are {found:?}");
        Ok(Some(()))
    })
    .await
}

/// The pods of the old cluster are gone, and others run: their addresses, with the one by hand.
async fn new_pods(fixture: &Fixture, by_hand: &str) -> Result<BTreeSet<String>> {
    let mut living = BTreeSet::from([by_hand.to_owned()]);
    for (gone, new, node) in [("web-0", "web-2", "a"), ("web-1", "web-3", "b")] {
        fixture.namespace.force_delete(gone).await?;
        living.insert(fixture.web_pod(new, node).await?.ip.to_string());
    }
    Ok(living)
}

pub(crate) async fn a_cluster_built_anew(fixture: &Fixture) -> Result<()> {
    let (old, by_hand) = an_old_cluster(fixture).await?;
    // While the other one writes, nothing is taken; and it goes on.
    let told = takeover(fixture, &["--yes", "--wait", "20s"], 2)?;
    ensure!(told.contains("still writes"), "{told}");
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for_counts("web", [3, 3, 2, 1]).await?;
    fixture.namespace.set_ready("web-0", true).await?;
    fixture.wait_for_counts("web", [3, 3, 3, 0]).await?;
    old.kill()?;

    // The cluster is built anew: another uid, other pods, and what never was a pod.
    let living = new_pods(fixture, by_hand).await?;
    let reader = Reader::begin(fixture.consul(), &fixture.service, &[by_hand.to_owned()]);
    let operator = fixture.operator().start()?;
    match fixture.mode {
        Mode::Agent => {
            fixture.wait_for_condition("web", "Registered", "False", "IdTaken").await?;
            let told = crate::commands::says(fixture, "doctor", &[], 1)?;
            ensure!(told.contains(&format!("3 instances are of another cluster {}", fixture.cluster)), "{told}");
        }
        Mode::Catalog => {
            let why = wait_not_ready(&operator, "lictor takeover").await?;
            ensure!(why.contains(OLD_UID), "it does not say from whom: {why}");
        }
    }
    let told = takeover(fixture, &[], 1)?;
    ensure!(told.contains(&format!("service {}: 3 instances", fixture.service)), "{told}");
    ensure!(told.contains("2 to deregister") && told.contains("nothing was changed"), "{told}");
    let told = takeover(fixture, &["--yes", "--wait", "4s"], 0)?;
    ensure!(told.contains("taken over: 3 instances"), "{told}");
    wait_for_addresses(fixture, &living).await?;
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await?;
    ensure!(reader.end().await? == 1, "what lives in both was missing");
    let told = takeover(fixture, &[], 0)?;
    ensure!(told.contains("Consul has nothing of"), "{told}");

    // From here on it is followed as if it had never been otherwise.
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for("nothing", <[_]>::is_empty).await.map(drop)
}

pub(crate) async fn a_cluster_built_anew_and_the_marker_deleted(fixture: &Fixture) -> Result<()> {
    let (old, by_hand) = an_old_cluster(fixture).await?;
    old.kill()?;
    let living = new_pods(fixture, by_hand).await?;
    let marker = json!({ "Node": format!("lictor-{}", fixture.cluster) });
    fixture.consul().put("/v1/catalog/deregister", &marker).await?;
    let operator = fixture.operate().await?;
    let told = takeover(fixture, &["--yes", "--wait", "1s"], 0)?;
    ensure!(told.contains("taken over: 3 instances"), "{told}");
    wait_for_addresses(fixture, &living).await?;
    fixture.wait_ready("web").await?;
    operator.wait_ready(SOON).await
}

/// How many of these addresses pass in one Consul or the other as long as this lives: whoever asks every 10 ms keeps the
/// fewest. The old one is asked first, so that what moves meanwhile is found in the new one.
async fn fewest_of_both<T>(
    fixture: &Fixture,
    [old, new]: [&ConsulApi; 2],
    addresses: &[String],
    act: impl Future<Output = Result<T>>,
) -> Result<T> {
    let look = async {
        for looks in 0_usize.. {
            let mut found = passing(old, &fixture.service).await?;
            found.extend(passing(new, &fixture.service).await?);
            let missing = addresses.iter().find(|wanted| !found.iter().any(|(address, _)| address == *wanted));
            ensure!(missing.is_none(), "at look {looks} {missing:?} was missing: {found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    let look: LocalBoxFuture<'_, Result<()>> = Box::pin(look);
    tokio::select! {
        done = act => done,
        looked = look => Err(looked.err().context("it looked for ever")?),
    }
}

/// Three pods that are registered, and their addresses; whoever has registered them is gone.
async fn registered(fixture: &Fixture) -> Result<Vec<String>> {
    let pods = fixture.web(3).await?;
    let operator = fixture.operate().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_ready("web").await?;
    operator.terminate(SOON).await?;
    Ok(pods.iter().map(|pod| pod.ip.to_string()).collect())
}

/// Waits until a move is over: nothing is left at the old place, and everything says so.
async fn wait_for_the_end(fixture: &Fixture, operator: &Operator) -> Result<()> {
    wait_for_metric(operator, "lictor_previous_instances", |left| left < 0.5).await?;
    fixture.wait_ready("web").await?;
    wait::until("a line in the log", SOON, || async {
        Ok(operator.log().contains("nothing of this cluster is left at the previous place").then_some(()))
    })
    .await
}

const fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Agent => Mode::Catalog,
        Mode::Catalog => Mode::Agent,
    }
}

pub(crate) async fn to_another_mode(fixture: &Fixture) -> Result<()> {
    let addresses = registered(fixture).await?;
    let before = fixture.instances().await?;
    let flags = ["--registration", other(fixture.mode).as_str(), "--previous-registration", fixture.mode.as_str()];
    let launch = || {
        let launch = fixture.operator().set("--registration", other(fixture.mode).as_str());
        launch.flag("--previous-registration", fixture.mode.as_str())
    };
    let told = crate::commands::says(fixture, "plan", &flags, 1)?;
    ensure!(told.contains("3 to create, 0 to update, 0 to disown, 3 to deregister"), "{told}");
    // Without the last flag the old ones would stay, and that is said.
    let told = crate::commands::says(fixture, "plan", &flags[..2], 1)?;
    let remedy = format!("--previous-registration={} moves them", fixture.mode.as_str());
    ensure!(told.contains("3 to create, 0 to update, 0 to disown, 0 to deregister"), "{told}");
    ensure!(told.contains("OtherRegistration") && told.contains(&remedy), "{told}");
    let told = crate::commands::says(fixture, "doctor", &flags[..2], 0)?;
    ensure!(told.contains("has registered 3 instances") && told.contains(&remedy), "{told}");
    let consul = fixture.consul();
    let operator = fewest_of_both(fixture, [&consul, &consul], &addresses, async {
        // The first one dies somewhere on the way.
        launch().start()?.kill()?;
        let operator = launch().ready().await?;
        wait_for_the_end(fixture, &operator).await?;
        Ok(operator)
    })
    .await?;
    // What is registered is followed as ever.
    fixture.namespace.force_delete("web-2").await?;
    let after = fixture.wait_for("two of them", |found| found.len() == 2).await?;
    ensure!(after.iter().all(|new| before.iter().all(|old| old.node != new.node)), "{after:?}");
    operator.terminate(SOON).await?;
    // Without the flags there is nothing to do.
    crate::commands::says(fixture, "plan", &flags[..2], 0).map(drop)
}

/// A step of a chain of moves: where to, and the flags that say from where.
struct Step<'a> {
    registration: Mode,
    consul: &'a Consul,
    name: &'a str,
    previous: Vec<(&'static str, String)>,
}

pub(crate) async fn a_chain_of_moves(fixture: &Fixture) -> Result<()> {
    let many = std::env::var(LARGE).ok().and_then(|many| many.parse().ok()).unwrap_or(100_u16);
    let old = fixture.own_consul(ConsulOptions::default()).await?;
    let new = Consul::start(fixture.programs, ConsulOptions::default()).await?;
    let (address, name) = (old.http_addr(), format!("moved-{}", fixture.cluster));
    let at = |[high, low]: [u8; 2]| NewEndpoint::new([10, 1, high, low].into());
    let endpoints: Vec<NewEndpoint> = (0..many).map(|number| at(number.to_be_bytes())).collect();
    fixture.namespace.apply_service("web", &[], &[("http", 80, "8080")]).await?;
    for (number, slice) in endpoints.chunks(100).enumerate() {
        fixture.namespace.apply_slice(&format!("web-{number}"), "web", &[("http", 8080)], slice).await?;
    }
    let addresses: Vec<String> = endpoints.iter().map(|endpoint| endpoint.ip.to_string()).collect();
    fixture.apply_web(json!({})).await?;
    let step = |registration, consul, name, previous| Step { registration, consul, name, previous };
    let (agent, catalog) = (Mode::Agent, Mode::Catalog);
    let of_mode = |mode: Mode| vec![("--previous-registration", mode.as_str().to_owned())];
    let steps = [
        step(catalog, old, &fixture.cluster, of_mode(agent)),
        step(catalog, &new, &fixture.cluster, vec![("--previous-consul-address", address)]),
        step(catalog, &new, &name, vec![("--previous-cluster-name", fixture.cluster.clone())]),
        step(agent, &new, &name, of_mode(catalog)),
    ];
    let launch = |step: &Step<'_>| {
        let launch = fixture.operator().set("--registration", step.registration.as_str());
        launch.set("--cluster-name", step.name).consul(&step.consul.http_addr())
    };
    let operator = launch(&step(agent, old, &fixture.cluster, Vec::new())).ready().await?;
    wait::until("all of them", 2 * SOON, || async {
        Ok((passing(&old.api(), &fixture.service).await?.len() == addresses.len()).then_some(()))
    })
    .await?;
    operator.terminate(SOON).await?;
    fewest_of_both(fixture, [&old.api(), &new.api()], &addresses, async {
        for step in &steps {
            let begun = Instant::now();
            let with_flags = step.previous.iter().fold(launch(step), |launch, (flag, value)| launch.flag(flag, value));
            let operator = with_flags.ready().await?;
            wait_for_the_end(fixture, &operator).await?;
            println!("{many} instances moved in {:.1?}: {:?}", begun.elapsed(), step.previous);
            operator.terminate(SOON).await?;
        }
        Ok(())
    })
    .await?;
    ensure!(old.api().instances(&fixture.service).await?.is_empty(), "something is left in the old Consul");
    let found = new.api().instances(&fixture.service).await?;
    ensure!(found.len() == addresses.len(), "there are {} in the new one", found.len());
    ensure!(found.iter().all(|instance| instance.node == new.node_name()), "not all are with the agent");
    Ok(())
}

pub(crate) async fn to_another_consul(fixture: &Fixture) -> Result<()> {
    let old = fixture.own_consul(ConsulOptions::default()).await?;
    let addresses = registered(fixture).await?;
    let new = Consul::start(fixture.programs, ConsulOptions::default()).await?;
    let launch = || fixture.operator().consul(&new.http_addr()).flag("--previous-consul-address", &old.http_addr());
    let operator = fewest_of_both(fixture, [&old.api(), &new.api()], &addresses, async {
        let operator = launch().ready().await?;
        wait_for_the_end(fixture, &operator).await?;
        Ok(operator)
    })
    .await?;
    ensure!(passing(&old.api(), &fixture.service).await?.is_empty(), "something is left in the old Consul");
    ensure!(passing(&new.api(), &fixture.service).await?.len() == 3, "not all are in the new one");
    if fixture.mode == Mode::Catalog {
        wait::until("no node of ours in the old Consul", SOON, || async {
            let nodes = old.api().get("/v1/catalog/nodes").await?;
            let mut names = nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str());
            Ok(names.all(|node| !node.contains(&fixture.cluster)).then_some(()))
        })
        .await?;
    }
    // And nothing is made there again: the place that is left is not asked any more.
    fixture.wait_for_a_look(&operator).await?;
    fixture.wait_for_a_look(&operator).await?;
    let left = old.api().get("/v1/catalog/nodes").await?.to_string();
    ensure!(fixture.mode == Mode::Agent || !left.contains(&fixture.cluster), "{left}");
    ensure!(!operator.log().contains("cannot be used at the previous place"), "{}", operator.log());
    // A resource that goes takes its instances along, as ever.
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(passing(&new.api(), &fixture.service).await?.is_empty(), "something is left in the new Consul");
    operator.terminate(SOON).await.map(drop)
}

pub(crate) async fn to_another_name(fixture: &Fixture) -> Result<()> {
    let addresses = registered(fixture).await?;
    let name = format!("moved-{}", fixture.cluster);
    let launch = || fixture.operator().set("--cluster-name", &name).flag("--previous-cluster-name", &fixture.cluster);
    let consul = fixture.consul();
    let operator = fewest_of_both(fixture, [&consul, &consul], &addresses, async {
        let operator = launch().ready().await?;
        wait_for_the_end(fixture, &operator).await?;
        Ok(operator)
    })
    .await?;
    let found = fixture.instances().await?;
    let is_new = |id: &str| id.starts_with(&format!("{name}:"));
    ensure!(found.len() == 3 && found.iter().all(|instance| is_new(&instance.id)), "{found:?}");
    operator.terminate(SOON).await.map(drop)
}

pub(crate) async fn the_old_consul_is_away(fixture: &Fixture) -> Result<()> {
    let old = fixture.own_consul(ConsulOptions { persistent: true, ..ConsulOptions::default() }).await?;
    registered(fixture).await?;
    old.kill()?;
    let new = Consul::start(fixture.programs, ConsulOptions::default()).await?;
    // Nothing waits for the old one: instances are registered and followed in the new one.
    let launch = fixture.operator().consul(&new.http_addr()).flag("--previous-consul-address", &old.http_addr());
    let operator = launch.ready().await?;
    fixture.wait_ready("web").await?;
    fixture.namespace.set_ready("web-0", false).await?;
    fixture.wait_for_counts("web", [3, 3, 2, 1]).await?;
    // It comes back, with what was registered there.
    old.start_again().await?;
    wait::until("nothing in the old Consul", 2 * SOON, || async {
        let left = old.api().instances(&fixture.service).await?;
        ensure!(left.is_empty(), "there is {left:?}");
        Ok(Some(()))
    })
    .await?;
    wait_for_the_end(fixture, &operator).await?;
    ensure!(new.api().instances(&fixture.service).await?.len() == 3, "the new ones stay");
    operator.terminate(SOON).await.map(drop)
}

pub(crate) async fn the_same_place_is_no_move(fixture: &Fixture) -> Result<()> {
    registered(fixture).await?;
    // The same Consul, by another name.
    let again = fixture.consul_address().replace("127.0.0.1", "localhost");
    let operator = fixture.operator().flag("--previous-consul-address", &again).start()?;
    wait_not_ready(&operator, "name the place where Lictor registers now").await?;
    ensure!(fixture.instances().await?.len() == 3, "they stay");
    crate::commands::says(fixture, "plan", &["--previous-consul-address", &again], 2).map(drop)
}

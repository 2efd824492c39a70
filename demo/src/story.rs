//! The steps of the demo, in order.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lictor_testbed::dns::Kind;
use lictor_testbed::{Instance, Mode};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::pods::{FIRST, Pods, Role, SUCCESSOR};
use crate::stage::Stage;
use crate::{look, show};

const USER: &str = "user_service";
const WEB: &str = "web";
const INDENT: &str = "            ";

/// Tells all of it, and then waits to be told to stop, unless `once`.
pub async fn tell(stage: &mut Stage, once: bool) -> Result<()> {
    opening(stage).await?;
    operator(stage).await?;
    let mut pods = endpoints(stage).await?;
    let checks = Checks::of(stage, &pods);
    examples(stage, &checks).await?;
    discovery(stage, &pods).await?;
    readiness(stage, &pods).await?;
    consuls_checks(stage, &pods, &checks).await?;
    crash(stage, &mut pods, &checks).await?;
    deletion(stage, &checks).await?;
    closing(stage, &pods, &checks, once)?;
    if once {
        return Ok(());
    }
    // The pods answer as long as they are held here.
    std::future::pending().await
}

/// The folder with the examples.
fn folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    folder.canonicalize().with_context(|| folder.display().to_string())
}

/// Whether Consul runs the checks of the examples.
enum Checks {
    Run,
    /// They are taken out of the examples, for this reason.
    LeftOut(&'static str),
}

impl Checks {
    fn of(stage: &Stage, pods: &Pods) -> Self {
        match stage.registration {
            Mode::Catalog => Self::LeftOut("In the catalog nobody runs checks but consul-esm, which is not here"),
            Mode::Agent if pods.no_servers.is_some() => {
                Self::LeftOut("Nobody answers at the pods' addresses, so Consul's own checks would all fail")
            }
            Mode::Agent => Self::Run,
        }
    }

    fn run(&self) -> bool {
        matches!(self, Self::Run)
    }

    /// Applies the examples, or one of them, as far as these checks go, and shows it.
    async fn apply(&self, stage: &Stage, example: &str) -> Result<()> {
        let namespace = stage.namespace()?;
        let path = folder()?.join(example).display().to_string();
        let apply = format!("kubectl -n {} apply -f", namespace.name());
        let (line, applied) = match self {
            Self::Run => (format!("{apply} examples/{example}"), namespace.kubectl(&["apply", "-f", &path]).await?),
            Self::LeftOut(_) => {
                let read = namespace.kubectl(&["apply", "--dry-run=client", "-o", "json", "-f", &path]).await?;
                let mut objects: serde_json::Value = serde_json::from_str(&read)?;
                for object in objects["items"].as_array_mut().into_iter().flatten() {
                    if let Some(spec) = object["spec"].as_object_mut() {
                        spec.remove("checks");
                    }
                }
                let line = format!(
                    "{apply} examples/{example} --dry-run=client -o json | jq 'del(.items[].spec.checks)' | {apply} -"
                );
                (line, namespace.apply_yaml(&objects.to_string()).await?)
            }
        };
        show::command(&line, &applied);
        Ok(())
    }
}

async fn opening(stage: &Stage) -> Result<()> {
    let version = stage.plane().kubectl(&["version", "-o", "json"]).await?;
    let version: serde_json::Value = serde_json::from_str(&version)?;
    let kubernetes = version["serverVersion"]["gitVersion"].as_str().unwrap_or("of unknown version");
    let agent = stage.api().get("/v1/agent/self").await?;
    let consul = agent["Config"]["Version"].as_str().unwrap_or("of unknown version");

    let all = "and all that they say to each other";
    let without_nodes = format!("Kubernetes {kubernetes}, Consul {consul}, Lictor, {all}.");
    let (real, simulated) = match &stage.cluster {
        Cluster::Nodes(_) => (
            format!(
                "Kubernetes {kubernetes} with two nodes and the pods that run there, Consul {consul}, Lictor,\n{all}."
            ),
            "machines. The two nodes are namespaces of this one's Linux, with a kubelet and a containerd each.\n\
             What runs in the pods is a small server of the demo's, that can be told to fail."
                .to_owned(),
        ),
        Cluster::Objects { why, .. } => (
            without_nodes,
            format!(
                "nodes and pods. No kubelet runs here: the demo writes the status that one would.\n\
                 Where it may add addresses to this machine, small servers of its own answer at the pods'.\n\
                 Pods would run, on nodes within this machine, but {why}."
            ),
        ),
        Cluster::Given(_) => (
            without_nodes,
            "pods. Your nodes are left alone: the demo writes EndpointSlices, in a namespace of its own.\n\
             Where it may add addresses to this machine, small servers of its own answer at the pods'."
                .to_owned(),
        ),
    };
    let indented = |text: String| text.replace('\n', &format!("\n{INDENT}"));
    show::heading("What is real here, and what is not");
    show::say(&format!(
        "Real:       {}\n\
         Simulated:  {}\n\
         By proxy:   dig and curl are shown as you would type them; the demo itself asks just that.",
        indented(real),
        indented(simulated)
    ));
    Ok(())
}

async fn operator(stage: &mut Stage) -> Result<()> {
    show::heading("1. The operator");
    stage.make_namespace().await?;
    stage.install_crd().await?;
    let begun = Instant::now();
    let line = stage.start_operator().await?;
    show::command(&line, "");
    let place = match stage.registration {
        Mode::Agent => "with the one Consul agent at CONSUL_HTTP_ADDR",
        Mode::Catalog => "in the servers' catalog, on a Consul node for each Kubernetes node",
    };
    show::say(&format!("It was ready after {}. It registers {place}.", show::time(begun.elapsed())));
    Ok(())
}

async fn endpoints(stage: &Stage) -> Result<Pods> {
    show::heading("2. Five pods");
    let namespace = stage.namespace()?;
    let mut pods = Pods::new(namespace, &stage.cluster).await?;
    pods.begin(namespace, &FIRST).await?;
    if pods.are_pods() {
        let columns = "custom-columns=NAME:.metadata.name,IP:.status.podIP,\
                       READY:.status.containerStatuses[0].ready,NODE:.spec.nodeName";
        stage.kubectl(&["get", "pods", "-o", columns]).await?;
    } else {
        stage.kubectl(&["get", "endpointslices"]).await?;
    }
    match &pods.no_servers {
        None if pods.really_run() => show::say(
            "Each runs in a container, and a kubelet asks for its /ready every second. Consul reaches these addresses from\n\
             outside the cluster, and so can you.",
        ),
        None => show::say("Each address is a real one of this machine, and a small server answers there."),
        Some(why) => show::say(&format!(
            "Nobody answers at these addresses, since they could not be added here: {why}.\nEverything else works without."
        )),
    }
    Ok(pods)
}

async fn examples(stage: &Stage, checks: &Checks) -> Result<()> {
    show::heading("3. kubectl apply");
    let namespace = stage.namespace()?;
    if let Checks::LeftOut(why) = checks {
        show::say(&format!("{why}: the examples are applied without them."));
    }
    checks.apply(stage, "").await?;
    let applied_at = Instant::now();
    let api = stage.api();
    look::until(&api, USER, "three instances pass", |found| passing(found) == 3).await?;
    look::until(&api, WEB, "two instances pass", |found| passing(found) == 2).await?;
    show::say(&format!("Consul had all five instances {} after kubectl was done.", show::time(applied_at.elapsed())));
    for resource in ["csvc/user", "csvc/web"] {
        namespace.wait_for_condition(resource, "Ready", "True", Duration::from_secs(10)).await?;
    }
    stage.kubectl(&["get", "csvc"]).await?;
    show::say("Ready: Consul holds what the resource asks for. Passing: how many of its instances are healthy.");
    Ok(())
}

async fn discovery(stage: &Stage, pods: &Pods) -> Result<()> {
    show::heading("4. Found through Consul, without knowing Kubernetes");
    stage.consul(&["catalog", "services", "-tags"]).await?;
    look::instances(&stage.api(), USER).await?;
    look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    look::addresses(stage.dns(), "grpc.user_service.service.consul", Kind::Srv).await?;
    show::say("The second name asks for the tag grpc; SRV answers carry the port.");
    if pods.no_servers.is_some() {
        return Ok(());
    }
    let answer = look::addresses(stage.dns(), "web.service.consul", Kind::Srv).await?;
    let srv = answer.srv.first().context("no SRV record")?;
    let address = answer.along.get(&srv.target).context("an SRV record without its address")?;
    let url = format!("http://{address}:{}/", srv.port);
    let words = reqwest::get(&url).await?.error_for_status()?.text().await?;
    show::command(&format!("curl {url}"), &words);
    show::say("Whoever can ask Consul and reach the pods' addresses finds them: a VM, a Nomad job, Envoy, Prometheus.");
    if pods.really_run() {
        let [.., web_1] = &FIRST;
        stage.kubectl(&["exec", web_1.name, "--", "/app", "lookup", "user_service.service.consul"]).await?;
        show::say("Pods do, too: this cluster's DNS passes names that end in consul on to Consul.");
    }
    Ok(())
}

async fn readiness(stage: &Stage, pods: &Pods) -> Result<()> {
    let [.., user_2, _, _] = &FIRST;
    show::heading(&format!("5. {} is not ready for a while", user_2.name));
    move_readiness(stage, pods, user_2, false).await?;
    await_counts(stage, "critical", 1).await?;
    stage.kubectl(&["get", "csvc"]).await?;
    look::instances(&stage.api(), USER).await?;
    look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    show::say("It stays registered, as critical, where everybody can see it; DNS leaves it out.");
    move_readiness(stage, pods, user_2, true).await?;
    await_counts(stage, "critical", 0).await?;
    look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    Ok(())
}

/// Makes a pod ready or not, and says how long it took until Consul showed it.
async fn move_readiness(stage: &Stage, pods: &Pods, role: &Role, ready: bool) -> Result<()> {
    let (namespace, api) = (stage.namespace()?, stage.api());
    let address = pods.address(role)?.ip().to_string();
    let (wanted, word) = if ready { ("passing", "passing again") } else { ("critical", "critical") };
    let before = look::latency(&stage.operator()?.metrics().await?);
    let begun = Instant::now();
    pods.set_ready(namespace, role, ready).await?;
    look::until(&api, USER, &format!("{address} is {wanted}"), |found| {
        found.iter().any(|instance| instance.address == address && instance.status == wanted)
    })
    .await?;
    let all = begun.elapsed();
    pods.show_ready(namespace, role, ready).await?;
    let mut line = format!(
        "{}: {}ready.\nIn all it took {} until it was {word} in Consul",
        pods.who_says(),
        if ready { "" } else { "not " },
        show::time(all)
    );
    // Exactly one change has come through since, or it is not known whose time it was.
    let after = look::latency(&stage.operator()?.metrics().await?);
    if let (Some((count, sum)), Some((count_after, sum_after))) = (before, after)
        && count_after == count + 1
    {
        let own = show::time(Duration::from_secs_f64((sum_after - sum).max(0.0)));
        let _ = write!(line, ", {own} of it between Lictor's hearing of it and Consul's answer");
    }
    show::say(&format!("{line}."));
    Ok(())
}

/// What Kubernetes does not see, a check of Consul's own does.
async fn consuls_checks(stage: &Stage, pods: &Pods, checks: &Checks) -> Result<()> {
    let [.., web_1] = &FIRST;
    show::heading(&format!("6. {} is ready, and broken", web_1.name));
    if let Checks::LeftOut(why) = checks {
        show::say(&format!("{why}: this step is left out."));
        return Ok(());
    }
    break_or_mend(stage, pods, web_1, false).await?;
    look::check(&stage.api(), WEB, "health").await?;
    look::addresses(stage.dns(), "web.service.consul", Kind::A).await?;
    show::say(
        "Kubernetes does not know of it: the pod is as ready as before. Consul asks each instance for /health every 10 s,\n\
         as examples/web.yaml has it, and leaves out what does not answer well.",
    );
    break_or_mend(stage, pods, web_1, true).await?;
    look::addresses(stage.dns(), "web.service.consul", Kind::A).await?;
    Ok(())
}

/// Has a pod's server fail or not, and says how long it took until Consul had found out.
async fn break_or_mend(stage: &Stage, pods: &Pods, role: &Role, healthy: bool) -> Result<()> {
    let wanted = if healthy { "passing" } else { "critical" };
    let begun = Instant::now();
    pods.set_healthy(role, healthy).await?;
    let address = pods.address(role)?.ip().to_string();
    look::until(&stage.api(), WEB, &format!("{address} is {wanted}"), |found| {
        found.iter().any(|instance| instance.address == address && instance.status == wanted)
    })
    .await?;
    show::say(&format!("Consul's check of {} was {wanted} {} later.", role.name, show::time(begun.elapsed())));
    Ok(())
}

async fn crash(stage: &mut Stage, pods: &mut Pods, checks: &Checks) -> Result<()> {
    let [_, user_1, ..] = &FIRST;
    show::heading("7. The operator dies");
    let before = versions(stage).await?;
    stage.kill_operator()?;
    let namespace = stage.namespace()?;
    show::command("kill -KILL $(pidof lictor)", "");
    let gone = pods.address(user_1)?.ip();
    pods.end(namespace, user_1).await?;
    pods.begin(namespace, std::slice::from_ref(&SUCCESSOR)).await?;
    let new = pods.address(&SUCCESSOR)?.ip();
    show::say(&format!(
        "While it is away, {} ends and {} begins, at another address: {new}, not {gone}.",
        user_1.name, SUCCESSOR.name
    ));
    let answer = look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    show::say("Consul keeps the last state that was true: nothing expires because Lictor is not there.");
    if checks.run() {
        let fails = if answer.addresses.contains(&gone) { "will fail within 10 s" } else { "has failed by now" };
        show::say(&format!(
            "(Its own check of {} {fails}, and DNS leaves out what fails; of {} only Lictor tells it.)",
            user_1.name, SUCCESSOR.name
        ));
    }
    let begun = Instant::now();
    let line = stage.start_operator().await?;
    show::command(&line, "");
    let gone = gone.to_string();
    look::until(&stage.api(), USER, &format!("{new} has taken the place of {gone}"), |found| {
        passing(found) == 3 && found.iter().all(|instance| instance.address != gone)
    })
    .await?;
    let took = show::time(begun.elapsed());
    await_counts(stage, "passing", 3).await?;
    let after = versions(stage).await?;
    let stayed: Vec<_> = before.iter().filter_map(|(id, version)| Some((version, after.get(id)?))).collect();
    let rewritten = stayed.iter().filter(|(version, now)| version != now).count();
    show::say(&format!(
        "Consul was true again {took} after the start. Of the {} instances that stayed, {rewritten} were written again.",
        stayed.len()
    ));
    look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    Ok(())
}

/// At which index of Consul each instance of both services was last written, by its ID.
async fn versions(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    let api = stage.api();
    let all = api.instances(USER).await?.into_iter().chain(api.instances(WEB).await?);
    Ok(all.map(|instance| (instance.id, instance.service_modify_index)).collect())
}

async fn deletion(stage: &Stage, checks: &Checks) -> Result<()> {
    show::heading("8. A deletion");
    let begun = Instant::now();
    stage.kubectl(&["delete", "csvc", "user"]).await?;
    let took = show::time(begun.elapsed());
    let answer = look::addresses(stage.dns(), "user_service.service.consul", Kind::A).await?;
    let left = stage.api().instances(USER).await?.len();
    anyhow::ensure!(left == 0 && answer.addresses.is_empty(), "{left} instances are left in Consul");
    let word = if answer.no_such_name { "NXDOMAIN" } else { "no records" };
    show::say(&format!(
        "DNS says {word}. kubectl returned after {took}, and by then nothing of it was left in Consul:\n\
         a finalizer makes \"deleted\" mean \"gone from Consul\"."
    ));
    stage.consul(&["catalog", "services", "-tags"]).await?;
    let begun = Instant::now();
    checks.apply(stage, "user-service.yaml").await?;
    look::until(&stage.api(), USER, "three instances pass", |found| passing(found) == 3).await?;
    show::say(&format!("And it was back {} after kubectl had begun.", show::time(begun.elapsed())));
    Ok(())
}

fn closing(stage: &Stage, pods: &Pods, checks: &Checks, once: bool) -> Result<()> {
    if once {
        return Ok(());
    }
    let namespace = stage.namespace()?.name();
    let (dns, consul) = (stage.dns(), stage.consul.http_addr());
    let (kubeconfig, admin) = (stage.plane().kubeconfig().display(), stage.operator()?.admin_address());
    show::heading("It stays up: look around, in another terminal");
    let mut places = format!(
        "  export KUBECONFIG={kubeconfig} CONSUL_HTTP_ADDR={consul}\n\
         \x20 export PATH=$PATH:{}\n\n\
         \x20 Consul's web UI     {consul}/ui\n\
         \x20 Consul's DNS        dig @{} -p {} user_service.service.consul SRV\n\
         \x20 Lictor's metrics    http://{admin}/metrics\n\
         \x20 A resource          kubectl -n {namespace} edit csvc user\n",
        stage.path(),
        dns.ip(),
        dns.port()
    );
    let [user_0, .., web_1] = &FIRST;
    if pods.really_run() {
        let url = pods.switch(user_0, "/ready", false)?;
        let _ = writeln!(places, "  An unready pod      curl -X PUT '{url}', and then ok=true");
    } else if pods.are_pods() {
        let patch = r#"{"status":{"conditions":[{"type":"Ready","status":"False"}]}}"#;
        let _ = writeln!(
            places,
            "  An unready pod      kubectl -n {namespace} patch pod {} --subresource=status --type=merge -p '{patch}'",
            user_0.name
        );
    }
    if checks.run() {
        let url = pods.switch(web_1, "/health", false)?;
        let _ = writeln!(places, "  A broken pod        curl -X PUT '{url}', and then ok=true");
    }
    show::say(places.trim_end());
    show::say("Ctrl-C stops everything and leaves nothing behind.");
    Ok(())
}

fn passing(instances: &[Instance]) -> usize {
    instances.iter().filter(|instance| instance.status == "passing").count()
}

/// Waits until the status of `user` counts so many instances of a kind.
async fn await_counts(stage: &Stage, kind: &str, count: usize) -> Result<()> {
    let wanted = format!("--for=jsonpath={{.status.instances.{kind}}}={count}");
    stage.namespace()?.kubectl(&["wait", "csvc/user", &wanted, "--timeout=20s"]).await?;
    Ok(())
}

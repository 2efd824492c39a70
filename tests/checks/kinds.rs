//! Each kind of check, run by a real agent against a real server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use lictor::cluster::convert::ChecksRunBy;
use lictor::model::health::Health;
use lictor::model::ids::Str;
use lictor::model::registration::{Registration, RowKey};
use lictor::ports::Registry;
use lictor_testbed::certificates::{Authority, Pair};
use lictor_testbed::{Consul, ConsulApi, ConsulOptions, Listener, LocalAddress, Message, Protocol, wait};

use crate::fixture::{HERE, checks, edit, health, instance, with_checks};
use crate::registries::{SOON, agent, connect, consul, key, put, settled, write};
use crate::table::{self, Effect, Line};

/// The name in the listeners' certificates, besides their address.
const NAME: &str = "checks.example";

/// A Consul whose agent trusts an authority when it runs checks.
async fn trusting(authority: &Authority) -> Consul {
    let trust = Some(authority.certificate().to_owned());
    consul(ConsulOptions { trust, ..ConsulOptions::default() }).await
}

/// A check with its listener and its instance.
struct Case {
    yaml: &'static str,
    listener: Listener,
    key: RowKey,
}

const CASES: [(&str, Protocol, bool); 20] = [
    ("http: {}", Protocol::Http, false),
    ("http: { path: /health?deep=1 }", Protocol::Http, false),
    ("http: { method: HEAD }", Protocol::Http, false),
    ("http: { method: POST, body: are you well }", Protocol::Http, false),
    (
        "http: { headers: [{ name: x-probe, value: one }, { name: X-Probe, value: two }, { name: host, value: user.example }] }",
        Protocol::Http,
        false,
    ),
    ("http: { scheme: https }", Protocol::Http, true),
    ("http: { scheme: https, tlsServerName: checks.example }", Protocol::Http, true),
    ("http: { scheme: https, tlsSkipVerify: true, tlsServerName: other.example }", Protocol::Http, true),
    ("tcp: {}", Protocol::Tcp, false),
    ("tcp: { useTLS: true }", Protocol::Tcp, true),
    ("tcp: { useTLS: true, tlsServerName: checks.example }", Protocol::Tcp, true),
    ("tcp: { useTLS: true, tlsSkipVerify: true, tlsServerName: other.example }", Protocol::Tcp, true),
    ("grpc: {}", Protocol::Grpc, false),
    ("grpc: { service: user.v1.User }", Protocol::Grpc, false),
    ("grpc: { useTLS: true, tlsServerName: checks.example }", Protocol::Grpc, true),
    ("grpc: { useTLS: true, tlsSkipVerify: true, tlsServerName: other.example }", Protocol::Grpc, true),
    ("udp: {}", Protocol::Udp, false),
    ("h2ping: { useTLS: false }", Protocol::H2Ping, false),
    ("h2ping: { tlsServerName: checks.example }", Protocol::H2Ping, true),
    ("h2ping: { tlsSkipVerify: true, tlsServerName: other.example }", Protocol::H2Ping, true),
];

/// The check `c` that runs as often as Consul allows.
fn often(yaml: &str) -> String {
    format!("[{{ name: c, interval: 1s, {yaml} }}]")
}

/// Registers an instance with a listener behind it for each of these, critical until the first run.
async fn register(
    registry: &dyn Registry,
    node: &Str,
    address: IpAddr,
    certificate: &Pair,
    cases: &[(&'static str, Protocol, bool)],
) -> Vec<Case> {
    let mut all = Vec::new();
    let mut ops = Vec::new();
    for (number, (yaml, protocol, tls)) in cases.iter().enumerate() {
        let listener = Listener::start(*protocol, address, tls.then_some(certificate)).await.unwrap();
        let key = key(node, &number.to_string());
        let checks = checks(&often(yaml), ChecksRunBy::Agent, listener.port(), Health::Critical).unwrap();
        ops.push(put(&key, &instance(address, listener.port(), checks)));
        all.push(Case { yaml, listener, key });
    }
    write(registry, node, ops).await;
    all
}

/// What the agent says of the only check of an instance.
async fn status(api: &ConsulApi, key: &RowKey) -> anyhow::Result<String> {
    let checks = api.get("/v1/agent/checks").await?;
    let check = checks.as_object().into_iter().flatten().find(|(_, check)| check["ServiceID"] == *key.id);
    Ok(check.map(|(_, check)| check["Status"].as_str().unwrap_or_default().to_owned()).unwrap_or_default())
}

async fn becomes(api: &ConsulApi, key: &RowKey, what: &str, wanted: &str) {
    let look = || async { Ok((status(api, key).await? == wanted).then_some(())) };
    if let Err(error) = wait::until(format!("{what} to be {wanted}"), SOON, look).await {
        panic!("{error:#}; all checks: {:#}", api.get("/v1/agent/checks").await.unwrap());
    }
}

/// Passes, goes critical and comes back, and answers what arrived.
async fn is_run(api: &ConsulApi, address: IpAddr, case: &mut Case) -> String {
    let Case { yaml, listener, key } = case;
    becomes(api, key, yaml, "passing").await;
    let heard = listener.first(SOON).await.unwrap();
    listener.fail().await.unwrap();
    becomes(api, key, yaml, "critical").await;
    listener.recover().await.unwrap();
    becomes(api, key, yaml, "passing").await;
    heard.in_words(SocketAddr::new(address, listener.port()))
}

#[tokio::test]
async fn every_kind_asks_what_the_resource_says() {
    let authority = Authority::new("checks").unwrap();
    let certificate = authority.server(vec![HERE.to_string(), NAME.to_owned()]).unwrap();
    let consul = trusting(&authority).await;
    let (registry, api) = (agent(&consul.http_addr(), None), consul.api());
    let node = connect(&registry).await;
    let mut cases = register(&registry, &node, HERE, &certificate, &CASES).await;
    let heard = join_all(cases.iter_mut().map(|case| is_run(&api, HERE, case))).await;
    let lines: Vec<Line> = cases
        .iter()
        .zip(heard)
        .map(|(case, heard)| {
            let refused = checks(&often(case.yaml), ChecksRunBy::Esm, 1, Health::Critical).err();
            let refused_by_esm = refused.map(|why| why.rsplit_once("here, ").unwrap().1.to_owned());
            Line { check: case.yaml.to_owned(), heard, refused_by_esm }
        })
        .collect();
    let (answers, fields) = (answers(&registry, &node, &api).await, fields(&registry, &node, &api).await);
    table::check(&table::document(&lines, &answers, &fields));
}

/// What an answer over HTTP makes of the check.
async fn answers(registry: &dyn Registry, node: &Str, api: &ConsulApi) -> Vec<Effect> {
    let mut listener = Listener::start(Protocol::Http, HERE, None).await.unwrap();
    let key = key(node, "answers");
    let checks = checks(&often("http: {}"), ChecksRunBy::Agent, listener.port(), Health::Critical).unwrap();
    write(registry, node, vec![put(&key, &instance(HERE, listener.port(), checks))]).await;
    let mut effects = Vec::new();
    // Each differs from the one before it.
    for (answer, state) in [(204, "passing"), (429, "warning"), (302, "critical"), (200, "passing"), (500, "critical")]
    {
        listener.set_status(answer).await.unwrap();
        becomes(api, &key, &format!("an answer of {answer}"), state).await;
        effects.push(Effect { of: answer.to_string(), seen: state.to_owned() });
    }
    effects
}

/// What the fields that all kinds share make an agent do.
async fn fields(registry: &dyn Registry, node: &Str, api: &ConsulApi) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut effect = |of: &str, seen: String| effects.push(Effect { of: of.to_owned(), seen });

    // Where it goes, and how it is shown.
    let (own, other) = (
        Listener::start(Protocol::Tcp, HERE, None).await.unwrap(),
        Listener::start(Protocol::Tcp, HERE, None).await.unwrap(),
    );
    let shown = key(node, "shown");
    let yaml = format!(
        "[{{ name: other, tcp: {{}}, port: {}, interval: 1s, notes: see the runbook }}, \
          {{ name: slow, tcp: {{}}, interval: 1m30s, timeout: 500ms }}, {{ name: default, tcp: {{}} }}]",
        other.port()
    );
    let checks_shown = checks(&yaml, ChecksRunBy::Agent, own.port(), Health::Passing).unwrap();
    write(registry, node, vec![put(&shown, &instance(HERE, own.port(), checks_shown))]).await;
    other.next("a connection", |heard| heard.what == Message::Connection, SOON).await.unwrap();
    let all = api.get("/v1/agent/checks").await.unwrap();
    let of = |name: &str| all[format!("{}:{name}:tcp", shown.id)].clone();
    let text = |check: &str, field: &str| of(check)[field].as_str().unwrap().to_owned();
    effect("name: other", format!("shown as `{}`, its ID `INSTANCE:other:tcp`", text("other", "Name")));
    effect("port: 8443", "goes to that port of the instance".to_owned());
    effect("notes: see the runbook", format!("shown as `{}`", text("other", "Notes")));
    effect("interval: 1m30s", format!("shown as `{}`", text("slow", "Interval")));
    effect("timeout: 500ms", format!("shown as `{}`", text("slow", "Timeout")));
    let (interval, timeout) = (text("default", "Interval"), text("default", "Timeout"));
    effect("(neither)", format!("an interval of `{interval}` and a timeout of `{timeout}`"));

    // How many runs it takes.
    let counts = [
        ("http: {}", "passing", "critical"),
        ("http: {}, failuresBeforeCritical: 3", "passing", "critical"),
        ("http: {}, failuresBeforeWarning: 2, failuresBeforeCritical: 3", "passing", "warning"),
        ("http: {}", "critical", "passing"),
        ("http: {}, successBeforePassing: 3", "critical", "passing"),
    ];
    let counted = join_all(counts.map(|(yaml, from, to)| runs_until(registry, node, api, yaml, from, to))).await;
    for ((yaml, _, to), runs) in counts.into_iter().zip(counted) {
        let field = yaml.strip_prefix("http: {}, ").unwrap_or("(no threshold)");
        let run = if to == "passing" { "success" } else { "failure" };
        effect(field, format!("{to} with {run} number {runs} in a row"));
    }
    effects
}

/// How many runs in a row it takes to bring a check into another state.
async fn runs_until(registry: &dyn Registry, node: &Str, api: &ConsulApi, yaml: &str, from: &str, to: &str) -> usize {
    let mut listener = Listener::start(Protocol::Http, HERE, None).await.unwrap();
    let key = key(node, &format!("runs-{}", listener.port()));
    let (initial, answers) =
        if from == "critical" { (Health::Passing, [500, 200]) } else { (Health::Critical, [200, 500]) };
    listener.set_status(answers[0]).await.unwrap();
    // It waits as long for an answer as it waits between two runs.
    let yaml = format!("[{{ name: c, interval: 3s, {yaml} }}]");
    let checks = checks(&yaml, ChecksRunBy::Agent, listener.port(), initial).unwrap();
    write(registry, node, vec![put(&key, &instance(HERE, listener.port(), checks))]).await;
    for _ in 0..ATTEMPTS {
        becomes(api, &key, &yaml, from).await;
        let has_turned = async || Ok(status(api, &key).await? == to);
        if let Some(runs) = listener.answers_until(answers[1], has_turned, PATIENCE, SOON).await.unwrap() {
            return runs;
        }
        listener.set_status(answers[0]).await.unwrap();
        listener.next("a run", |_| true, SOON).await.unwrap();
    }
    panic!("{ATTEMPTS} times the check may have given up waiting: this machine is too busy to count its runs");
}

const ATTEMPTS: usize = 10;

/// Half of what the check waits for an answer.
const PATIENCE: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_certificate_for_another_name_is_critical() {
    let authority = Authority::new("checks").unwrap();
    let certificate = authority.server(vec![NAME.to_owned()]).unwrap();
    let consul = trusting(&authority).await;
    let (registry, api) = (agent(&consul.http_addr(), None), consul.api());
    let node = connect(&registry).await;
    let cases = [
        ("http: { scheme: https, tlsServerName: other.example }", Protocol::Http, true),
        ("tcp: { useTLS: true }", Protocol::Tcp, true),
        ("grpc: { useTLS: true, tlsServerName: other.example }", Protocol::Grpc, true),
        ("h2ping: { tlsServerName: other.example }", Protocol::H2Ping, true),
    ];
    let cases = register(&registry, &node, HERE, &certificate, &cases).await;
    for case in &cases {
        let look = || async {
            let checks = api.get("/v1/agent/checks").await?;
            let output =
                checks[format!("{}:c:{}", case.key.id, case.yaml.split_once(':').unwrap().0)]["Output"].clone();
            Ok(output.as_str().is_some_and(|output| output.contains("certificate")).then_some(()))
        };
        wait::until(format!("{} to be critical for its certificate", case.yaml), SOON, look).await.unwrap();
        assert_eq!(status(&api, &case.key).await.unwrap(), "critical");
        assert_eq!(case.listener.heard(), [], "nothing is asked of a stranger");
    }
}

#[tokio::test]
async fn ipv6_instances_are_asked_at_their_address() {
    // Without the right to add an address there is at least this one.
    let own = LocalAddress::add("fd00:6c69:6374:6f72::7").ok();
    let address = own.as_ref().map_or_else(|| "::1".parse().unwrap(), LocalAddress::ip);
    let authority = Authority::new("checks").unwrap();
    let certificate = authority.server(vec![address.to_string()]).unwrap();
    let consul = trusting(&authority).await;
    let (registry, api) = (agent(&consul.http_addr(), None), consul.api());
    let node = connect(&registry).await;
    let cases = [
        ("http: {}", Protocol::Http, false),
        ("http: { scheme: https }", Protocol::Http, true),
        ("tcp: {}", Protocol::Tcp, false),
        ("tcp: { useTLS: true }", Protocol::Tcp, true),
        ("grpc: { service: user }", Protocol::Grpc, false),
        ("udp: {}", Protocol::Udp, false),
        ("h2ping: {}", Protocol::H2Ping, true),
    ];
    let mut cases = register(&registry, &node, address, &certificate, &cases).await;
    let heard = join_all(cases.iter_mut().map(|case| is_run(&api, address, case))).await;
    assert_eq!(heard[0], "`GET /`", "with the address as its host");
    let rows = settled(&registry).await;
    for case in &cases {
        let registration = &rows[&case.key].registration;
        assert_eq!((&*registration.address, registration.port), (&*address.to_string(), case.listener.port()));
    }
}

/// An agent goes on with the old kind where another one comes under the same ID; so it is another ID.
#[tokio::test]
async fn a_check_of_another_kind_takes_the_place_of_the_old_one() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = agent(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let (http, tcp) = (
        Listener::start(Protocol::Http, HERE, None).await.unwrap(),
        Listener::start(Protocol::Tcp, HERE, None).await.unwrap(),
    );
    let key = key(&node, "a");
    let of = |yaml: &str, port| checks(&often(yaml), ChecksRunBy::Agent, port, Health::Passing).unwrap();
    let before = instance(HERE, http.port(), of("http: {}", http.port()));
    write(&registry, &node, vec![put(&key, &before)]).await;
    http.next("a request", |_| true, SOON).await.unwrap();
    let after = with_checks(&before, of("tcp: {}", tcp.port()));
    write(&registry, &node, vec![edit(&key, &before, &after)]).await;
    assert_eq!(settled(&registry).await[&key].registration.check_names(), ["c:tcp"].into());
    let requests = http.heard().len();
    for _ in 0..2 {
        tcp.next("a connection", |_| true, SOON).await.unwrap();
    }
    assert_eq!(http.heard().len(), requests, "the old check is run no more");
    health(&registry, &key, Health::Passing).await;
}

/// An agent takes the first run of a check as it comes, and an edit of anything of its instance makes it begin anew.
#[tokio::test]
async fn the_first_run_decides_whatever_the_thresholds() {
    let consul = consul(ConsulOptions::default()).await;
    let (registry, api) = (agent(&consul.http_addr(), None), consul.api());
    let node = connect(&registry).await;
    let mut listener = Listener::start(Protocol::Http, HERE, None).await.unwrap();
    listener.fail().await.unwrap();
    let key = key(&node, "a");
    let yaml = "[{ name: c, interval: 3s, http: {}, failuresBeforeCritical: 3 }]";
    let checks = checks(yaml, ChecksRunBy::Agent, listener.port(), Health::Passing).unwrap();
    let before = instance(HERE, listener.port(), checks);
    write(&registry, &node, vec![put(&key, &before)]).await;
    becomes(&api, &key, yaml, "critical").await;
    assert_eq!(listener.heard().len(), 1, "of a new check");

    listener.recover().await.unwrap();
    becomes(&api, &key, yaml, "passing").await;
    let heard = listener.heard().len();
    let after = Registration { tags: ["edited".into()].into(), ..before.clone() };
    listener.fail().await.unwrap();
    write(&registry, &node, vec![edit(&key, &before, &after)]).await;
    becomes(&api, &key, yaml, "critical").await;
    assert_eq!(listener.heard().len() - heard, 1, "of one whose instance was edited");
}

/// Consul waits for an answer to its datagram without end, and asks no more.
#[tokio::test]
async fn a_udp_server_that_never_answers_is_asked_once() {
    let consul = consul(ConsulOptions::default()).await;
    let registry = agent(&consul.http_addr(), None);
    let node = connect(&registry).await;
    let silent = tokio::net::UdpSocket::bind((HERE, 0)).await.unwrap();
    let answering = Listener::start(Protocol::Udp, HERE, None).await.unwrap();
    let of = |port| instance(HERE, port, checks(&often("udp: {}"), ChecksRunBy::Agent, port, Health::Passing).unwrap());
    let (quiet, lively) = (key(&node, "quiet"), key(&node, "lively"));
    let port = silent.local_addr().unwrap().port();
    write(&registry, &node, vec![put(&quiet, &of(port)), put(&lively, &of(answering.port()))]).await;
    let mut buffer = [0; 8];
    tokio::time::timeout(SOON, silent.recv_from(&mut buffer)).await.unwrap().unwrap();
    for _ in 0..3 {
        answering.next("a datagram", |_| true, SOON).await.unwrap();
    }
    let more = tokio::time::timeout(Duration::ZERO, silent.recv_from(&mut buffer)).await;
    assert!(more.is_err(), "asked again: the documents may say so now");
}

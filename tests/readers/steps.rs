//! What is written for a reader, and what it has to see of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor::model::health::Health;
use lictor::model::ids::Str;
use lictor::model::registration::{Registration, RowKey};
use lictor::ports::Registry;
use lictor_testbed::dns::{self, Kind};
use lictor_testbed::process::run;
use lictor_testbed::{Consul, ConsulOptions, Mode, WorkDir, ports, wait};

use crate::coredns::CoreDns;
use crate::install::Runs;
use crate::readers::{Reader, With};
use crate::registries::{self, WRITTEN, agent, apply, catalog, connect, full, put, remove};
use crate::setting::Setting;

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A program is run for each look.
const PAUSE: Duration = Duration::from_millis(200);

/// How many writes one bundle takes.
const BUNDLE: usize = 16;

/// What a reader made of what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// It hands out an instance that is not ready.
    pub(crate) unready: bool,
    /// It hands out an instance with a warning.
    pub(crate) warning: bool,
    /// How an IPv6 address looks to it.
    pub(crate) six: String,
    /// How many of a hundred instances it sees.
    pub(crate) hundred: usize,
}

/// The instances of one reader.
struct Ground<'a> {
    reader: &'a Reader,
    runs: &'a Runs,
    setting: Setting,
    consul: &'a Consul,
    registry: &'a dyn Registry,
    node: Str,
    /// How many instances the reader gets of a few.
    most: usize,
    /// The port of instances that share one.
    port: u16,
    /// What stands between the reader and Consul's DNS.
    coredns: Option<CoreDns>,
}

/// A Consul, and Lictor's registry of it: one for all readers, since a second Lictor takes over from the first.
pub(crate) struct Side {
    pub(crate) setting: Setting,
    consul: Consul,
    registry: Box<dyn Registry>,
    node: Str,
}

impl Side {
    pub(crate) async fn begin(setting: Setting) -> Self {
        let extra_hcl = setting.dns().to_owned();
        let consul = registries::consul(ConsulOptions { extra_hcl, ..Default::default() }).await;
        let registry: Box<dyn Registry> = match setting.mode() {
            Mode::Agent => Box::new(agent(&consul.http_addr(), None)),
            Mode::Catalog => Box::new(catalog(&consul.http_addr(), None)),
        };
        let node = connect(&*registry).await;
        Self { setting, consul, registry, node }
    }
}

/// An instance's place.
type Place = (IpAddr, u16);

/// Writes and asks, step by step.
pub(crate) async fn walk(reader: &Reader, runs: &Runs, side: &Side) -> Result<Seen> {
    let Side { setting, consul, registry, node } = side;
    let setting = *setting;
    let node = match setting.mode() {
        Mode::Agent => Arc::clone(node),
        Mode::Catalog => format!("test-{}", reader.id.replace('_', "-")).into(),
    };
    let most = if reader.crowded && setting == Setting::Catalog { 2 } else { usize::MAX };
    let dns = SocketAddr::from((Ipv4Addr::LOCALHOST, consul.dns_port()));
    let coredns = match &runs.coredns {
        Some(program) => Some(CoreDns::start(program, dns).await?),
        None => None,
    };
    let port = ports::free()?;
    Ground { most, reader, runs, setting, consul, registry: &**registry, node, port, coredns }.walk().await
}

impl Ground<'_> {
    async fn walk(&self) -> Result<Seen> {
        let service = format!("user_{}", self.reader.id);
        let first: Vec<Place> = (1..=3).map(|number| self.place(number)).collect();
        self.register(&service, &first, Health::Passing).await?;
        self.wait_for(&service, &first).await?;

        // One of them is not ready.
        self.register(&service, &first[..1], Health::Critical).await?;
        self.wait_until_written(&service, "?filter=Checks.Status==critical", 1).await?;
        if self.coredns.is_some() {
            let found: BTreeSet<String> = self.ask(&service, Kind::A).await?.into_iter().collect();
            ensure!(found == self.shown(&first[1..]), "CoreDNS keeps an answer: {found:?}");
        }
        let unready = self.reader.argument == "api-default";
        self.wait_for(&service, if unready { &first } else { &first[1..] }).await?;

        // A warning, which to DNS is good enough; and ready again.
        self.register(&service, &first[..1], Health::Warning).await?;
        self.wait_until_written(&service, "?filter=Checks.Status==warning", 1).await?;
        let warning = unready || self.reader.dns;
        self.wait_for(&service, if warning { &first } else { &first[1..] }).await?;
        self.register(&service, &first[..1], Health::Passing).await?;
        self.wait_for(&service, &first).await?;

        // A rollout: each instance is replaced, the new one first.
        let second: Vec<Place> = (4..=6).map(|number| self.place(number)).collect();
        for (old, new) in first.iter().zip(&second) {
            self.register(&service, &[*new], Health::Passing).await?;
            self.deregister(&service, &[*old]).await?;
        }
        self.wait_for(&service, &second).await?;
        self.deregister(&service, &second).await?;

        Ok(Seen { unready, warning, six: self.six(&service).await?, hundred: self.hundred().await? })
    }

    async fn six(&self, service: &str) -> Result<String> {
        let address = if self.reader.calls() { "::1" } else { "fd00::1" };
        let six = [(address.parse::<IpAddr>()?, self.port)];
        self.register(service, &six, Health::Passing).await?;
        let mut seen = String::new();
        wait::until_every(PAUSE, "the instance with IPv6", SOON, || async {
            let found = self.ask(service, Kind::Aaaa).await?;
            ensure!(found.len() == 1, "{found:?}");
            Ok(found.into_iter().next())
        })
        .await
        .map(|found| seen = found.replace(&self.port.to_string(), "PORT"))?;
        Ok(format!("`{seen}`"))
    }

    async fn hundred(&self) -> Result<usize> {
        let service = format!("many_{}", self.reader.id);
        let all: Vec<Place> = (1..=100).map(|number| self.place(number)).collect();
        self.register(&service, &all, Health::Passing).await?;
        // All of them are in Consul; how many come is the reader's matter, and the same at every look.
        self.wait_until_written(&service, "?passing=1", all.len()).await?;
        let found: BTreeSet<String> = self.ask(&service, Kind::A).await?.into_iter().collect();
        let wanted = self.shown(&all);
        ensure!(found.is_subset(&wanted), "{found:?} has others than {wanted:?}");
        if let With::Dns(kind, _) = self.reader.with {
            let answer = dns::ask(self.dns(), &format!("{service}.service.consul"), kind).await?;
            ensure!(
                answer.truncated == (self.setting == Setting::Whole),
                "the answer says it is whole: {}",
                !answer.truncated
            );
        }
        Ok(found.len())
    }

    /// Waits until Consul has so many instances of which `query` is true.
    async fn wait_until_written(&self, service: &str, query: &str, number: usize) -> Result<()> {
        let path = format!("/v1/health/service/{service}{query}");
        wait::until(format!("{number} instances at {path}"), SOON, || async {
            let there = self.consul.api().get(&path).await?;
            Ok((there.as_array().is_some_and(|there| there.len() == number)).then_some(()))
        })
        .await
    }

    /// An address of this machine's own loopback network, with a port of its own where the reader learns ports.
    fn place(&self, number: u8) -> Place {
        let port = if self.reader.ports { self.port + u16::from(number) } else { self.port };
        (Ipv4Addr::new(127, 0, 1, number).into(), port)
    }

    fn key(&self, service: &str, (address, port): Place) -> RowKey {
        RowKey { node: Arc::clone(&self.node), id: format!("test:shop:user:{service}:{address}:{port}").into() }
    }

    async fn register(&self, service: &str, places: &[Place], readiness: Health) -> Result<()> {
        for places in places.chunks(BUNDLE) {
            let ops = places.iter().map(|place| {
                let plain = full(&place.0.to_string(), Some(readiness));
                let tags = ["grpc".into()].into();
                put(&self.key(service, *place), &Registration { service: service.into(), port: place.1, tags, ..plain })
            });
            self.write(ops.collect()).await?;
        }
        Ok(())
    }

    async fn deregister(&self, service: &str, places: &[Place]) -> Result<()> {
        let of = |place: &Place| match remove(&self.key(service, *place)) {
            lictor::model::diff::Op::Deregister { key, .. } => {
                lictor::model::diff::Op::Deregister { key, service: service.into() }
            }
            other => other,
        };
        self.write(places.iter().map(of).collect()).await
    }

    async fn write(&self, ops: Vec<lictor::model::diff::Op>) -> Result<()> {
        let outcomes = apply(self.registry, &self.node, ops).await;
        ensure!(outcomes.iter().all(|outcome| *outcome == WRITTEN), "Consul did not take it: {outcomes:?}");
        Ok(())
    }

    /// These places as the reader names them.
    fn shown(&self, places: &[Place]) -> BTreeSet<String> {
        let named = |&(address, port): &Place| {
            if self.reader.ports || self.reader.calls() {
                SocketAddr::from((address, port)).to_string()
            } else {
                address.to_string()
            }
        };
        places.iter().map(named).collect()
    }

    async fn wait_for(&self, service: &str, places: &[Place]) -> Result<()> {
        let wanted = self.shown(places);
        wait::until_every(PAUSE, format!("{} to see {wanted:?}", self.reader.title), SOON, || async {
            let found: BTreeSet<String> = self.ask(service, Kind::A).await?.into_iter().collect();
            let all = found.len() == wanted.len().min(self.most);
            ensure!(all && found.is_subset(&wanted), "it sees {found:?}");
            Ok(Some(()))
        })
        .await
    }

    /// What the reader sees now; `kind` is the kind of address where it asks for one.
    async fn ask(&self, service: &str, kind: Kind) -> Result<Vec<String>> {
        match self.reader.with {
            With::Dns(Kind::Srv, formal) => self.ask_srv(service, formal).await,
            With::Dns(..) => {
                let answer = dns::ask(self.dns(), &format!("{service}.service.consul"), kind).await?;
                Ok(answer.addresses.iter().map(ToString::to_string).collect())
            }
            With::Template => self.ask_template(service).await,
            _ => self.ask_program(service).await,
        }
    }

    fn dns(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.consul.dns_port()))
    }

    async fn ask_srv(&self, service: &str, formal: bool) -> Result<Vec<String>> {
        let name =
            if formal { format!("_{service}._grpc.service.consul") } else { format!("{service}.service.consul") };
        let answer = dns::ask(self.dns(), &name, Kind::Srv).await?;
        let pair = |record: &dns::Srv| {
            // `full` gives each instance this weight, and 0 with a warning.
            ensure!([10, 0].contains(&record.weight), "the weight is {}", record.weight);
            let address = answer.along.get(&record.target).context("an SRV record without its address")?;
            Ok(SocketAddr::from((*address, record.port)).to_string())
        };
        answer.srv.iter().map(pair).collect()
    }

    async fn ask_template(&self, service: &str) -> Result<Vec<String>> {
        let folder = WorkDir::create("template")?;
        let template =
            format!(r#"{{{{range service "{service}"}}}}{{{{.Address}}}} {{{{.Port}}}}{{{{"\n"}}}}{{{{end}}}}"#);
        let (from, to) = (folder.write("in", template)?, folder.join("out"));
        let mut command = tokio::process::Command::new(&self.runs.program);
        let pair = format!("{}:{}", from.display(), to.display());
        let http = self.consul.http_addr();
        run(command.arg("-once").arg(format!("-consul-addr={http}")).args(["-template", &pair])).await?;
        let written = std::fs::read_to_string(to)?;
        let place = |line: &str| {
            let (address, port) = line.split_once(' ').context("a line without a port")?;
            Ok(SocketAddr::from((address.parse::<IpAddr>()?, port.parse()?)).to_string())
        };
        written.lines().map(place).collect()
    }

    async fn ask_program(&self, service: &str) -> Result<Vec<String>> {
        let mut command = tokio::process::Command::new(&self.runs.program);
        command.args(&self.runs.first).arg(self.reader.argument).arg(self.consul.http_addr());
        let dns = self.coredns.as_ref().map_or_else(|| self.consul.dns_port(), |coredns| coredns.port);
        command.arg(dns.to_string()).arg(service);
        if let Some(packages) = &self.runs.packages {
            command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
        }
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY"]
        {
            command.env_remove(proxy);
        }
        Ok(serde_json::from_str(&run(&mut command).await?)?)
    }
}

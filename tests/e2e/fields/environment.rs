//! What the resources stand on: pods and Services for all of them, servers for each that has checks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use lictor_testbed::certificates::{Authority, Pair};
use lictor_testbed::{ConsulOptions, Heard, Listener, Protocol};
use serde_json::{Value, json};

use super::lines::Line;
use crate::answering::own_address;
use crate::fixture::{Fixture, merged};

/// Where static addresses may be, besides this machine's own.
const ELSEWHERE: &str = "198.51.100.0/24,2001:db8::/32";

/// The names in the servers' certificate.
const NAMES: [&str; 2] = ["checks.example", "other.example"];

/// A server that checks ask, and whether by TLS.
#[derive(Clone, Copy)]
pub(crate) struct Server(Protocol, bool);

pub(crate) const HTTP: Server = Server(Protocol::Http, false);
pub(crate) const HTTPS: Server = Server(Protocol::Http, true);
pub(crate) const TCP: Server = Server(Protocol::Tcp, false);
pub(crate) const TLS: Server = Server(Protocol::Tcp, true);
pub(crate) const GRPC: Server = Server(Protocol::Grpc, false);
pub(crate) const GRPC_TLS: Server = Server(Protocol::Grpc, true);
pub(crate) const UDP: Server = Server(Protocol::Udp, false);
pub(crate) const H2: Server = Server(Protocol::H2Ping, false);
pub(crate) const H2_TLS: Server = Server(Protocol::H2Ping, true);

/// What all lines have in common.
pub(crate) struct Environment<'a> {
    pub(crate) fixture: &'a Fixture,
    /// The pods' names by their addresses.
    pods: BTreeMap<String, String>,
    /// This machine's.
    address: IpAddr,
    certificate: Pair,
}

impl<'a> Environment<'a> {
    /// Three pods with an address of each family: `web-0` is ready, `web-1` is not, and both are behind the Service `web`;
    /// `green-0` is ready, behind `green` and, with two ports, behind `two`. And a Consul that trusts the servers.
    pub(crate) async fn lay(fixture: &'a Fixture) -> Result<Self> {
        let authority = Authority::new("fields")?;
        fixture
            .own_consul(ConsulOptions { trust: Some(authority.certificate().to_owned()), ..ConsulOptions::default() })
            .await?;
        fixture.nodes().await?;
        let (http, grpc) = (("http", 80, "8080"), ("grpc", 90, "9000"));
        fixture.namespace.apply_service("web", &[("app", "web")], &[http]).await?;
        fixture.namespace.apply_service("green", &[("app", "green")], &[http]).await?;
        fixture.namespace.apply_service("two", &[("app", "green")], &[http, grpc]).await?;
        let mut pods = BTreeMap::new();
        for (name, app, version, v6) in [
            ("web-0", "web", "1.0", "fd00:10:244::1"),
            ("web-1", "web", "1.1", "fd00:10:244::2"),
            ("green-0", "green", "2.0", "fd00:10:244::3"),
        ] {
            let pod = fixture.new_web_pod(name, "a").label("app", app).label("version", version);
            let pod = pod.ip(lictor_testbed::pods::next_pod_ip()).ip(v6.parse()?);
            let pod = if name == "web-1" { pod.label("canary", "yes").not_ready() } else { pod };
            let made = fixture.namespace.create_pod(pod).await?;
            pods.insert(made.ip.to_string(), made.name);
        }
        let address = own_address()?;
        let names = NAMES.map(str::to_owned).into_iter().chain([address.to_string()]);
        Ok(Self { fixture, pods, address, certificate: authority.server(names.collect())? })
    }

    /// What `--allow-static` is to be.
    pub(crate) fn allowed(&self) -> String {
        format!("{ELSEWHERE},{}/32", self.address)
    }

    /// What the page calls an address: the pod's name, where it is a pod's.
    pub(crate) fn name_of<'b>(&'b self, address: &'b str) -> &'b str {
        self.pods.get(address).map_or(address, String::as_str)
    }
}

/// The resource of a line, with what stands behind its instance.
pub(crate) struct Subject {
    /// Its name.
    pub(crate) name: String,
    /// The names that it has in Consul, one after the other.
    pub(crate) services: Vec<String>,
    /// The one at the instance's own address and port, and one at another port.
    pub(crate) servers: Vec<Listener>,
    address: IpAddr,
    /// How much each server had heard when the last step began.
    heard: Vec<usize>,
}

impl Subject {
    pub(crate) async fn make(line: &Line, environment: &Environment<'_>) -> Result<Self> {
        let mut servers = Vec::new();
        for Server(protocol, tls) in line.servers {
            let certificate = tls.then_some(&environment.certificate);
            servers.push(Listener::start(*protocol, environment.address, certificate).await?);
        }
        let name = line.field.trim_start_matches("spec.").to_lowercase();
        let name: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
        let mut subject = Self {
            name: name.join("-"),
            services: Vec::new(),
            servers,
            address: environment.address,
            heard: Vec::new(),
        };
        for step in &line.steps {
            let service = subject.spec(step.yaml)?["name"].as_str().unwrap_or(&subject.name).to_owned();
            if !subject.services.contains(&service) {
                subject.services.push(service);
            }
        }
        Ok(subject)
    }

    /// The whole spec of a step. One without a source has an address at which its own server is, or else one elsewhere.
    pub(crate) fn spec(&self, yaml: &str) -> Result<Value> {
        let other = self.servers.get(1).map(|other| other.port().to_string()).unwrap_or_default();
        let given: Value = serde_saphyr::from_str(&yaml.replace("OTHER", &other)).with_context(|| yaml.to_owned())?;
        let instance = match self.servers.first() {
            Some(own) => json!({ "address": self.address, "port": own.port() }),
            None => json!({ "address": "198.51.100.7", "port": 8080 }),
        };
        Ok(merged(json!({ "source": { "static": [instance] } }), given))
    }

    /// A text with the page's names for what is another one each time.
    pub(crate) fn told(&self, text: &str) -> String {
        let names = ["ADDRESS:PORT", "ADDRESS:OTHER"];
        self.servers
            .iter()
            .zip(names)
            .fold(text.to_owned(), |text, (server, name)| text.replace(&self.at(server).to_string(), name))
    }

    fn at(&self, server: &Listener) -> SocketAddr {
        SocketAddr::new(self.address, server.port())
    }

    /// From now on, what its servers hear counts.
    pub(crate) fn listen(&mut self) {
        self.heard = self.servers.iter().map(|server| server.heard().len()).collect();
    }

    /// In words, what the server at the instance's own port has heard last, or the one at the other port.
    pub(crate) fn heard(&self, other: bool) -> Option<String> {
        let number = usize::from(other);
        let server = self.servers.get(number)?;
        let heard: Vec<Heard> = server.heard();
        let last = heard.get(self.heard[number]..)?.last()?;
        let place = if other { ", at the port OTHER" } else { "" };
        Some(last.in_words(self.at(server)) + place)
    }
}

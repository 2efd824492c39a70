//! The connections to one of Consul's addresses, and what they are made of.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Identity, Proxy, Url, redirect};

use super::CONNECTIONS;
use super::files::Files;
use super::settings::{Address, BadSettings, ConsulSettings, chain, hold_a_user, parse_address, proxy};
use crate::certificates::{Credentials, Source};

/// The longest time that a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections that requests go over: to one server, as far as its address leads to one.
#[derive(Clone)]
pub(super) struct Connections {
    /// Counts how often they were given up for new ones.
    pub(super) turn: usize,
    /// The beginning of each request's URL.
    pub(super) base: Arc<str>,
    /// The address, for people.
    pub(super) address: Arc<str>,
    pub(super) client: reqwest::Client,
    /// The credentials of the connections, which explain their failures.
    pub(super) credentials: Arc<Credentials>,
}

/// Holds what connections are made of.
pub(super) struct Blueprint {
    servers: Vec<Server>,
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    ssl_verify: bool,
    proxy: Option<Url>,
    credentials: Arc<Credentials>,
}

/// One of Consul's addresses.
struct Server {
    /// The beginning of each request's URL.
    base: Arc<str>,
    /// The address, for people.
    address: Arc<str>,
    /// The host that the address leads to, where the URL has another name in its place.
    host: Option<Arc<str>>,
    /// The unix socket that it leads to, if it is one.
    socket: Option<Arc<Path>>,
}

impl Server {
    fn new(address: &str, tls_server_name: Option<&str>) -> Result<Self, BadSettings> {
        let mut url = match parse_address(address)? {
            Address::Url(url) => url,
            Address::Socket(path) => {
                let address = format!("unix://{}", path.display()).into();
                // Of the URL only the path counts then.
                return Ok(Self { base: "http://localhost".into(), address, host: None, socket: Some(path.into()) });
            }
        };
        let mut host = None;
        if let Some(name) = tls_server_name {
            // The library checks the certificate against the host of the URL: so that host is the name, and
            // what it resolves to is the real one's address.
            host = Some(url.host_str().unwrap_or_default().trim_matches(['[', ']']).into());
            url.set_host(Some(name))
                .map_err(|error| BadSettings::Address { address: name.to_owned(), why: error.to_string() })?;
        }
        let base: Arc<str> = url.as_str().trim_end_matches('/').into();
        Ok(Self { address: Arc::clone(&base), base, host, socket: None })
    }
}

impl Blueprint {
    pub(super) fn new(settings: &ConsulSettings, files: &Files) -> Result<Self, BadSettings> {
        if hold_a_user(&settings.addresses) {
            return Err(BadSettings::UserInAddress);
        }
        let credentials = Arc::new(files.credentials(settings)?);
        let name = settings.tls_server_name.as_deref();
        let servers: Vec<Server> =
            settings.addresses.iter().map(|address| Server::new(address, name)).collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(BadSettings::NoAddress);
        }
        let proxy = proxy(settings)?;
        if proxy.is_some() && servers.iter().any(|server| server.socket.is_some()) {
            return Err(BadSettings::ProxyToSocket);
        }
        let authorities = files.authorities.as_ref().map(certificates).transpose()?;
        let identity = files.identity.as_ref().map(|(certificate, key)| {
            let pem = [&*certificate.text, b"\n", &*key.text].concat();
            Identity::from_pem(&pem).map_err(|error| unusable(certificate, &error))
        });
        let (identity, ssl_verify) = (identity.transpose()?, settings.ssl_verify);
        Ok(Self { servers, authorities, identity, ssl_verify, proxy, credentials })
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Counts the addresses.
    pub(super) fn addresses(&self) -> usize {
        self.servers.len()
    }

    /// Sets up connections to the address whose turn it is.
    pub(super) fn connections(&self, turn: usize) -> Result<Connections, BadSettings> {
        let server = &self.servers[turn % self.servers.len()];
        let resolver = Resolver { host: server.host.clone(), turn: turn / self.servers.len() };
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("lictor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(CONNECTIONS)
            .dns_resolver(Arc::new(resolver))
            .tls_danger_accept_invalid_certs(!self.ssl_verify);
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(Proxy::all(proxy.as_str()).map_err(|error| BadSettings::Client(chain(&error)))?);
        }
        if let Some(socket) = &server.socket {
            builder = builder.unix_socket(&**socket);
        }
        let client = builder.build().map_err(|error| BadSettings::Client(chain(&error)))?;
        let (base, address) = (Arc::clone(&server.base), Arc::clone(&server.address));
        Ok(Connections { turn, base, address, client, credentials: Arc::clone(&self.credentials) })
    }

    /// Sets up connections that follow on these, to the same address.
    pub(super) fn in_place_of(&self, former: &Connections) -> Result<Connections, BadSettings> {
        self.connections(former.turn.wrapping_add(self.servers.len()))
    }
}

fn certificates(source: &Source) -> Result<Vec<Certificate>, BadSettings> {
    let found = Certificate::from_pem_bundle(&source.text).map_err(|error| unusable(source, &error))?;
    if found.is_empty() {
        return Err(BadSettings::File { path: (&source.from).into(), why: "no PEM certificate in it".to_owned() });
    }
    Ok(found)
}

fn unusable(source: &Source, error: &dyn std::error::Error) -> BadSettings {
    BadSettings::File { path: (&source.from).into(), why: chain(error) }
}

/// Looks up where a name leads each time that a connection is made.
struct Resolver {
    /// The host that is looked up in place of the name.
    host: Option<Arc<str>>,
    /// Counts how often the name has had its turn: it begins with another one of its addresses each time.
    turn: usize,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = self.host.clone().unwrap_or_else(|| name.as_str().into());
        let turn = self.turn;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            Ok(Box::new(beginning_with(found, turn).into_iter()) as Addrs)
        })
    }
}

/// Turns a list, so that it begins with another one each turn.
fn beginning_with<T>(mut all: Vec<T>, turn: usize) -> Vec<T> {
    let first = turn.checked_rem(all.len()).unwrap_or_default();
    all.rotate_left(first);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_turn_begins_with_another_address() {
        let all = || vec!["a", "b", "c"];
        for (turn, first) in [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (usize::MAX, "a")] {
            assert_eq!(beginning_with(all(), turn).first(), Some(&first), "{turn}");
            assert_eq!(beginning_with(all(), turn).len(), 3);
        }
        assert!(beginning_with(Vec::<&str>::new(), 7).is_empty());
    }
}

//! What the user says of Consul: where it is, and how to be let in.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use reqwest::Url;

use super::login::Logins;
use crate::certificates::Fault;
use crate::consul::login::LoginSettings;
use crate::consul::tenancy::Tenancy;

/// Says where Consul is and how to be let in.
#[derive(Clone)]
pub struct ConsulSettings {
    /// Each `http://host:port`, `https://host:port`, `host:port` for plain HTTP, or `unix:///path`; tried in turn.
    pub addresses: Vec<String>,
    /// The ACL token.
    pub token: Option<String>,
    /// A file that holds it, which is read again when it changes. It goes before `token`, as with Consul's
    /// own tools.
    pub token_file: Option<PathBuf>,
    /// Says how to log in for a token, in place of both.
    pub login: Option<LoginSettings>,
    /// The logins that were made with these settings and their clones.
    pub logins: Logins,
    /// A file of PEM certificates to trust in place of the system's.
    pub ca_cert: Option<PathBuf>,
    /// A PEM certificate to show to Consul.
    pub client_cert: Option<PathBuf>,
    /// The key for it.
    pub client_key: Option<PathBuf>,
    /// True if Consul's certificate is checked.
    pub ssl_verify: bool,
    /// The name that Consul's certificate has to be for, where that is not the host in the address.
    pub tls_server_name: Option<String>,
    /// The part of Consul that requests are for.
    pub tenancy: Tenancy,
    /// An HTTP proxy on the way, such as `http://proxy.example:3128`.
    pub proxy: Option<String>,
}

impl ConsulSettings {
    /// An address with everything else as Consul's own tools have it by default.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            addresses: vec![address.into()],
            token: None,
            token_file: None,
            login: None,
            logins: Logins::default(),
            ca_cert: None,
            client_cert: None,
            client_key: None,
            ssl_verify: true,
            tls_server_name: None,
            tenancy: Tenancy::default(),
            proxy: None,
        }
    }
}

impl ConsulSettings {
    /// Says what others on the way to Consul may read or change, in sentences without addresses: everybody may read them.
    #[must_use]
    pub fn exposures(&self) -> Vec<&'static str> {
        let urls: Vec<Url> = self.addresses.iter().filter_map(|address| url(address)).collect();
        let has_token = self.token.is_some() || self.token_file.is_some() || self.login.is_some();
        let mut exposures = Vec::new();
        if has_token && urls.iter().any(|url| url.scheme() == "http" && !is_loopback(url)) {
            exposures.push(
                "the token goes to Consul over plain HTTP, where others on the network can read it: \
                 use an address with https://",
            );
        }
        if !self.ssl_verify && urls.iter().any(|url| url.scheme() == "https") {
            exposures.push(
                "the certificate of Consul is not verified, so that others on the network can pass for Consul: \
                 set --consul-ca-cert in place of --consul-ssl-verify=false",
            );
        }
        exposures
    }
}

/// The URL of an address that has one.
fn url(address: &str) -> Option<Url> {
    match parse_address(address) {
        Ok(Address::Url(url)) => Some(url),
        Ok(Address::Socket(_)) | Err(_) => None,
    }
}

/// Says whether an address leads to this very machine, or to its pod.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Debug for ConsulSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings are logged, and neither a token nor a password may be.
        let addresses: &[String] = if hold_a_user(&self.addresses) { &[] } else { &self.addresses };
        f.debug_struct("ConsulSettings")
            .field("addresses", &addresses)
            .field("token", &self.token.as_ref().map(|_| ".."))
            .field("token_file", &self.token_file)
            .field("login", &self.login)
            .field("ca_cert", &self.ca_cert)
            .field("client_cert", &self.client_cert)
            .field("client_key", &self.client_key)
            .field("ssl_verify", &self.ssl_verify)
            .field("tls_server_name", &self.tls_server_name)
            .field("tenancy", &self.tenancy)
            .finish_non_exhaustive()
    }
}

/// Says why there can be no [`Http`](super::Http) with these settings.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// A unix socket without an absolute path.
    #[error("Consul's address {0:?} is not of the form unix:///PATH")]
    UnixSocket(String),
    /// A proxy that cannot be used.
    #[error("the proxy {proxy:?} is not of the form http://HOST:PORT or https://HOST:PORT: {why}")]
    Proxy {
        /// The proxy as it was given.
        proxy: String,
        /// Says what is wrong with it.
        why: String,
    },
    /// A proxy on the way to a unix socket.
    #[error("no proxy leads to a unix socket: leave out --consul-proxy, or give an address with http:// or https://")]
    ProxyToSocket,
    /// A proxy with a user, and perhaps a password, which is not to be shown.
    #[error("the proxy for Consul may not hold a user or a password")]
    UserInProxy,
    /// None at all.
    #[error("no address is given for Consul")]
    NoAddress,
    /// One with a user, and perhaps a password, which is not to be shown.
    #[error("Consul's address may not hold a user or a password; a token is given by --consul-token-file")]
    UserInAddress,
    /// Not an address.
    #[error("Consul's address {address:?} is not of the form http://HOST:PORT or https://HOST:PORT: {why}")]
    Address {
        /// The address as it was given.
        address: String,
        /// Says what is wrong with the address.
        why: String,
    },
    /// A file that is missing or of the wrong content.
    #[error("{path}: {why}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// Says what is wrong with the file.
        why: String,
    },
    /// A certificate or a key that cannot be used.
    #[error(transparent)]
    Certificate(#[from] Fault),
    /// A file that is not there, in a folder that is: what comes from a Secret may come later.
    #[error("{}: there is no such file yet", .0.display())]
    NotYet(PathBuf),
    /// A certificate without its key, or a key without its certificate.
    #[error("a client certificate for Consul needs both its certificate and its key")]
    HalfAPair,
    /// Something in what the TLS or HTTP library makes of all this.
    #[error("Consul's client could not be set up: {0}")]
    Client(String),
}

/// Says whether one of these addresses holds a user. There may be a password beside it, and a comma in that has cut
/// the address in two.
pub(super) fn hold_a_user(addresses: &[String]) -> bool {
    addresses.iter().any(|address| address.contains('@'))
}

/// One of Consul's addresses.
#[derive(Debug)]
pub(super) enum Address {
    /// A host and a port.
    Url(Url),
    /// A unix socket; plain HTTP goes over it.
    Socket(PathBuf),
}

/// Reads the proxy of the settings, if there is one.
pub(super) fn proxy(settings: &ConsulSettings) -> Result<Option<Url>, BadSettings> {
    let Some(given) = &settings.proxy else { return Ok(None) };
    if given.contains('@') {
        return Err(BadSettings::UserInProxy);
    }
    let bad = |why: &str| BadSettings::Proxy { proxy: given.clone(), why: why.to_owned() };
    match parse_address(given) {
        Ok(Address::Url(url)) if url.path() == "/" => Ok(Some(url)),
        Ok(Address::Url(_)) => Err(bad("it may not hold a path")),
        Ok(Address::Socket(_)) => Err(bad("its scheme is neither http nor https")),
        Err(BadSettings::Address { why, .. }) => Err(bad(&why)),
        Err(error) => Err(error),
    }
}

pub(super) fn parse_address(address: &str) -> Result<Address, BadSettings> {
    let bad = |why: &str| BadSettings::Address { address: address.to_owned(), why: why.to_owned() };
    let trimmed = address.trim();
    if let Some(path) = trimmed.strip_prefix("unix://") {
        let path = PathBuf::from(path);
        let is_path = path.is_absolute() && path.file_name().is_some();
        return if is_path { Ok(Address::Socket(path)) } else { Err(BadSettings::UnixSocket(address.to_owned())) };
    }
    let whole = if trimmed.contains("://") { trimmed.to_owned() } else { format!("http://{trimmed}") };
    let url = Url::parse(&whole).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("its scheme is neither http nor https"));
    }
    if !url.has_host() {
        return Err(bad("it has no host"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it may not hold a query or a fragment"));
    }
    Ok(Address::Url(url))
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, BadSettings> {
    std::fs::read(file).map_err(|error| {
        let may_come = error.kind() == io::ErrorKind::NotFound && file.parent().is_some_and(Path::is_dir);
        if may_come { BadSettings::NotYet(file.to_owned()) } else { bad_file(file, &error) }
    })
}

pub(super) fn bad_file(path: &Path, error: &dyn std::error::Error) -> BadSettings {
    BadSettings::File { path: path.to_owned(), why: chain(error) }
}

/// An error with all its causes: the library's own text says only "error sending request".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::transport::Http;

    #[test]
    fn addresses_are_what_consuls_own_tools_take() {
        for (given, base) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500/"),
            ("consul.example:8500", "http://consul.example:8500/"),
            ("http://[::1]:8500", "http://[::1]:8500/"),
            ("https://consul.example:8501", "https://consul.example:8501/"),
            ("https://gate.example/consul", "https://gate.example/consul"),
        ] {
            assert_eq!(url(given).unwrap().as_str(), base, "{given}");
        }
        for given in ["unix:///run/consul.sock", " unix:///run/consul.sock"] {
            let address = parse_address(given).unwrap();
            assert!(matches!(&address, Address::Socket(path) if path == Path::new("/run/consul.sock")), "{address:?}");
        }
        for bad in ["", "http://", "ftp://x:1", "http://x:1?a=b", "unix://", "unix://run/consul.sock", "unix:///"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (address, proxy, words) in [
            ("http://x:1", "http://proxy:3128", ""),
            ("https://x:1", "proxy:3128", ""),
            ("http://x:1", "https://proxy:3128/", ""),
            ("http://x:1", "http://proxy:3128/consul", "may not hold a path"),
            ("http://x:1", "socks5://proxy:1080", "neither http nor https"),
            ("http://x:1", "unix:///run/proxy.sock", "neither http nor https"),
            ("http://x:1", "http://u:secret@proxy:3128", "may not hold a user"),
            ("unix:///run/consul.sock", "http://proxy:3128", "no proxy leads to a unix socket"),
        ] {
            let settings = ConsulSettings { proxy: Some(proxy.to_owned()), ..ConsulSettings::new(address) };
            let said = Http::new(&settings).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{proxy}: {said}");
            assert!(!format!("{said} {settings:?}").contains("secret"), "{proxy}");
        }
    }

    #[test]
    fn what_others_can_read_on_the_way_is_said() {
        for (address, token, verify, words) in [
            ("http://127.0.0.1:8500", true, true, ""),
            ("localhost:8500", true, true, ""),
            ("http://[::1]:8500", true, true, ""),
            ("http://consul:8500", false, true, ""),
            ("consul:8500", true, true, "plain HTTP"),
            ("http://10.0.0.7:8500", true, false, "plain HTTP"),
            ("https://consul:8501", true, true, ""),
            ("https://consul:8501", false, false, "not verified"),
            ("https://127.0.0.1:8501", true, false, "not verified"),
        ] {
            let token = token.then(|| "secret".to_owned());
            let settings = ConsulSettings { token, ssl_verify: verify, ..ConsulSettings::new(address) };
            let said = settings.exposures();
            assert_eq!(said.len(), usize::from(!words.is_empty()), "{address}: {said:?}");
            assert!(said.iter().all(|said| said.contains(words) && !said.contains("consul:")), "{said:?}");
        }
    }

    #[test]
    fn a_password_in_an_address_never_shows() {
        for given in [
            "http://u:secret@x:1",
            "u:secret@x:1",
            "http://u:secret@secret@x:1/p",
            "unix://u:secret@/run/consul.sock",
            "ftp://u:secret@x:1",
            "http://u:secret@",
            "http://u:secret,secret@x:1",
        ] {
            let addresses = given.split(',').map(str::to_owned).collect();
            let settings = ConsulSettings { addresses, ..ConsulSettings::new("x:1") };
            let error = Http::new(&settings).err().unwrap();
            assert!(matches!(error, BadSettings::UserInAddress), "{given}: {error}");
            assert!(!format!("{error} {settings:?}").contains("secret"), "{given}");
        }
    }

    /// A Secret that is mounted may come later; a path that leads nowhere is a mistake.
    #[test]
    fn a_file_may_come_later_only_where_its_folder_is() {
        let folder = std::env::temp_dir();
        let absent = format!("lictor-not-there-{}", std::process::id());
        for (file, later) in [(folder.join(&absent), true), (folder.join(&absent).join("token"), false)] {
            let by_token = ConsulSettings { token_file: Some(file.clone()), ..ConsulSettings::new("x:1") };
            let by_authority = ConsulSettings { ca_cert: Some(file.clone()), ..ConsulSettings::new("x:1") };
            for settings in [by_token, by_authority] {
                let error = Http::new(&settings).err().unwrap();
                assert_eq!(matches!(error, BadSettings::NotYet(_)), later, "{error}");
                assert!(error.to_string().contains(&file.display().to_string()), "{error}");
            }
        }
    }
}

//! The proxy on the way to the API server, as kubectl finds it.
//!
//! In: a kubeconfig's `proxy-url`, the environment, the API server's URL. Out: the proxy, if requests go through one.

use std::fmt;
use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// A proxy, and who says that requests go through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Its URL, which may hold a password.
    pub(super) url: Uri,
    /// A kubeconfig or a variable.
    from: &'static str,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.scheme_str().unwrap_or("http");
        let host = self.url.host().unwrap_or_default();
        match self.url.port_u16() {
            Some(port) => write!(f, "{scheme}://{host}:{port} ({})", self.from),
            None => write!(f, "{scheme}://{host} ({})", self.from),
        }
    }
}

/// Says why a proxy cannot be used, without its URL, which may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proxy of {0} is not of the form http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")]
pub struct BadProxy(&'static str);

/// Finds the proxy for requests to `server`.
///
/// A kubeconfig's own goes first and is always used. That of the environment is not, where `NO_PROXY` covers the server
/// or the server is on this machine (`ProxyFunc` in golang.org/x/net/http/httpproxy). kube itself (5.0) holds
/// `NO_PROXY` against the address of the proxy in place of the server's.
pub(super) fn find(
    of_kubeconfig: Option<&str>,
    server: &Uri,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, BadProxy> {
    let variable = |names: [&'static str; 2]| {
        let mut set = names.into_iter().filter_map(|name| Some((environment(name)?, name)));
        set.find(|(value, _)| !value.trim().is_empty())
    };
    if let Some(url) = of_kubeconfig.filter(|url| !url.is_empty()) {
        return parse(url, "proxy-url of the kubeconfig").map(Some);
    }
    let is_tls = server.scheme_str() == Some("https");
    let names = if is_tls { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let Some((url, from)) = variable(names).filter(|_| !is_here(server)) else { return Ok(None) };
    let proxy = parse(&url, from)?;
    let exceptions = variable(["NO_PROXY", "no_proxy"]).map(|(value, _)| value).unwrap_or_default();
    let hosts: Vec<&str> = exceptions.split(',').filter_map(|entry| host_of(entry, server)).collect();
    let exceptions = hosts.join(",");
    let matcher = Matcher::builder().all("http://proxy.invalid").no(exceptions).build();
    Ok(matcher.intercept(server).map(|_| proxy))
}

/// The host of an entry of `NO_PROXY`; none where it is for another port than the server's.
fn host_of<'a>(entry: &'a str, server: &Uri) -> Option<&'a str> {
    let entry = entry.trim();
    let is_host = |host: &str| !host.contains(':') || host.starts_with('[') && host.ends_with(']');
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) if is_host(host) => (host, Some(port)),
        // Of IPv6 without a port, or without any colon.
        _ => (entry, None),
    };
    let own = server.port_u16().unwrap_or(if server.scheme_str() == Some("https") { 443 } else { 80 });
    let is_for_it = port.is_none_or(|port| port.parse() == Ok(own));
    is_for_it.then(|| host.trim_matches(['[', ']']))
}

fn parse(url: &str, from: &'static str) -> Result<Proxy, BadProxy> {
    let url = url.trim();
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let url = whole.parse::<Uri>().map_err(|_| BadProxy(from))?;
    let is_known = matches!(url.scheme_str(), Some("http" | "https" | "socks5"));
    if is_known && url.host().is_some_and(|host| !host.is_empty()) {
        Ok(Proxy { url, from })
    } else {
        Err(BadProxy(from))
    }
}

fn is_here(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kubeconfig: Option<&str>, server: &str, set: &[(&str, &str)]) -> Result<Option<String>, BadProxy> {
        let environment =
            |name: &str| set.iter().find(|(there, _)| *there == name).map(|(_, value)| (*value).to_owned());
        find(kubeconfig, &server.parse().unwrap(), environment).map(|found| found.map(|proxy| proxy.to_string()))
    }

    #[test]
    fn the_proxy_is_the_one_that_kubectl_uses() {
        const SERVER: &str = "https://api.example.com:6443";
        let by = |name: &str| Ok(Some(format!("http://proxy:3128 ({name})")));
        let https = ("HTTPS_PROXY", "http://proxy:3128");
        for (server, set, expected) in [
            (SERVER, &[][..], Ok(None)),
            (SERVER, &[https], by("HTTPS_PROXY")),
            (SERVER, &[("HTTPS_PROXY", ""), ("https_proxy", "proxy:3128")], by("https_proxy")),
            (SERVER, &[("HTTP_PROXY", "http://proxy:3128")], Ok(None)),
            ("http://api.example.com", &[("HTTP_PROXY", "http://proxy:3128")], by("HTTP_PROXY")),
            (SERVER, &[https, ("NO_PROXY", "api.example.com")], Ok(None)),
            (SERVER, &[https, ("NO_PROXY", "other.example.com, .example.com")], Ok(None)),
            (SERVER, &[https, ("no_proxy", "*")], Ok(None)),
            (SERVER, &[https, ("NO_PROXY", "proxy")], by("HTTPS_PROXY")),
            ("https://10.96.0.1", &[https, ("NO_PROXY", "10.0.0.0/8")], Ok(None)),
            ("https://10.96.0.1", &[https, ("NO_PROXY", "192.168.0.0/16,")], by("HTTPS_PROXY")),
            ("https://10.96.0.1", &[https, ("NO_PROXY", "10.96.0.1:443")], Ok(None)),
            ("https://10.96.0.1:443", &[https, ("NO_PROXY", "a:80, 10.96.0.1:443")], Ok(None)),
            ("https://10.96.0.1:443", &[https, ("NO_PROXY", "10.96.0.1:6443")], by("HTTPS_PROXY")),
            ("https://[fd00::1]:443", &[https, ("NO_PROXY", "[fd00::1]:443")], Ok(None)),
            ("https://[fd00::1]:443", &[https, ("NO_PROXY", "fd00::1")], Ok(None)),
            ("https://[fd00::1]:443", &[https, ("NO_PROXY", "[fd00::1]:6443")], by("HTTPS_PROXY")),
            (SERVER, &[https, ("NO_PROXY", ".example.com:6443")], Ok(None)),
            (SERVER, &[https, ("NO_PROXY", "api.example.com:443")], by("HTTPS_PROXY")),
            ("https://127.0.0.1:6443", &[https], Ok(None)),
            ("https://[::1]:6443", &[https], Ok(None)),
            ("https://localhost:6443", &[https], Ok(None)),
            (SERVER, &[("HTTPS_PROXY", "ftp://user:secret@proxy")], Err(BadProxy("HTTPS_PROXY"))),
            (SERVER, &[("HTTPS_PROXY", "http://user:secret@proxy:3128")], by("HTTPS_PROXY")),
        ] {
            assert_eq!(found(None, server, set), expected, "{server} {set:?}");
        }
        let own = found(Some("socks5://user:secret@own:1080"), "https://127.0.0.1:6443", &[https, ("NO_PROXY", "*")]);
        assert_eq!(own, Ok(Some("socks5://own:1080 (proxy-url of the kubeconfig)".to_owned())));
    }
}

//! Checks that Consul runs, besides the readiness that Lictor reports.
//!
//! There is no host in them, on purpose: a check goes to the instance's own address, so that a resource
//! cannot turn Consul into a port scanner.

use kube::{KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::DURATION;
use super::{PortRef, is_false, port, schema};

/// Each has a name and exactly one of `http`, `tcp`, `grpc`, `udp` and `h2ping`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.http), has(self.tcp), has(self.grpc), has(self.udp), has(self.h2ping)].exists_one(x, x)")
        .message("set exactly one of http, tcp, grpc, udp, h2ping"),
    validation = Rule::new(format!(
        "!has(self.timeout) || !self.timeout.matches('{DURATION}') || !self.interval.matches('{DURATION}') || \
         duration(self.timeout) <= duration(self.interval)"
    ))
    .message("timeout is longer than interval: a check ends before the next one begins"),
    validation = Rule::new("!has(self.failuresBeforeWarning) || self.failuresBeforeWarning <= (has(self.failuresBeforeCritical) ? self.failuresBeforeCritical : 0)")
        .message("failuresBeforeWarning is more than failuresBeforeCritical: it would be critical before it warns")
)]
pub struct Check {
    /// Name of the check, unique in this resource: lower-case letters, digits and '-'.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = schema::dns_label("a check's name"),
        validation = Rule::new("self != 'readiness'")
            .message("Lictor itself makes the check 'readiness' (see spec.readiness): choose another name")
    )]
    pub name: String,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpCheck>,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub h2ping: Option<H2PingCheck>,

    /// The port to check: the name of another port of the Service, or a port number of the instance itself (not of the
    /// Service). By default the port that is registered. A name has lower-case letters, digits and '-', with at least one
    /// letter, and neither begins nor ends with '-'. Write a number without quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port::of_check")]
    pub port: Option<PortRef>,

    /// The time between two runs of the check, such as `5s` or `1m30s`; at least `1s`. By default `10s`.
    #[serde(default = "default_interval")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new(format!("!self.matches('{DURATION}') || duration(self) >= duration('1s')"))
        .message("Consul runs a check at most once a second: 1s or more"))]
    pub interval: String,

    /// The longest time that one run may take, at most the interval. By default the interval, but at most `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new(format!("!self.matches('{DURATION}') || duration(self) > duration('0s')"))
        .message("a timeout of 0 fails every run: remove it, or set a longer one, such as 1s"))]
    pub timeout: Option<String>,

    /// The number of runs in a row that must succeed before the check passes, at most 100. By default 0: the first
    /// success is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub success_before_passing: Option<u8>,

    /// The number of runs in a row that must fail before the check warns, at most `failuresBeforeCritical`. By default
    /// the same number: the check then becomes critical without a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub failures_before_warning: Option<u8>,

    /// The number of runs in a row that must fail before the check is critical, at most 100. By default 0: the first
    /// failure is enough. The very first run of a check always decides at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub failures_before_critical: Option<u8>,

    /// A note for people, shown beside the check in Consul. At most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = schema::bytes(512))]
    pub notes: Option<String>,
}

/// Sends an HTTP request: 2xx passes, 429 warns, everything else is critical. An agent does not follow redirects;
/// consul-esm does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[x_kube(
    validation = Rule::new("self.scheme == 'https' || !((has(self.tlsSkipVerify) && self.tlsSkipVerify) || has(self.tlsServerName))")
        .message("tlsSkipVerify and tlsServerName need scheme: https")
)]
pub struct HttpCheck {
    /// Path, and query if there is one; it begins with '/'. By default `/`.
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')")
            .message("a path begins with '/': scheme, host and port are always those of the instance"),
        validation = Rule::new("self.matches('^[!-~]*$')")
            .message("a path holds no spaces, line breaks, control characters or letters beyond ASCII: write %20 for a space"),
        validation = Rule::new("!self.contains('#')")
            .message("what follows a '#' is never sent: leave it out, or write %23 for '#' itself"),
        validation = Rule::new("self.matches('^([^%?]|%[0-9A-Fa-f]{2})*([?].*)?$')")
            .message("a '%' in a path is followed by two hexadecimal digits: write %25 for '%' itself")
    )]
    pub path: String,

    #[allow(missing_docs, reason = "the type's own words are what `kubectl explain` shows")]
    #[serde(default)]
    pub scheme: Scheme,

    /// The request's method, in capital letters. By default `GET`.
    #[serde(default = "default_method")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z]+$') && self != 'CONNECT'")
        .message("a method is written in capital letters, such as GET, HEAD or POST; CONNECT is not allowed"))]
    pub method: String,

    /// The request's headers, at most 16. A name may come more than once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub headers: Vec<Header>,

    /// The request's body, at most 4096 bytes. By default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    #[x_kube(validation = schema::bytes(4096))]
    pub body: Option<String>,

    #[allow(missing_docs, reason = "its fields stand here in its place")]
    #[serde(flatten)]
    pub tls: TlsOptions,
}

/// `http`, the default, or `https`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Sends requests in plain text.
    #[default]
    Http,
    /// Sends requests over TLS.
    Https,
}

/// Each has a name and a value.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header's name.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-!#$%&*+.^_`|~0-9A-Za-z]+$')")
            .message("a header's name holds letters, digits and '-', no spaces or line breaks"),
        validation = Rule::new("!self.lowerAscii().startsWith('x-consul-')")
            .message("headers that begin with X-Consul- belong to Consul's own API: remove the header")
    )]
    pub name: String,

    /// The header's value. Do not put secrets here: everybody who may read this resource or Consul's checks sees it.
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new(r"!self.matches('[\\x00-\\x08\\x0a-\\x1f\\x7f]')")
            .message("a header's value holds no line breaks or control characters"),
        validation = schema::bytes(1024)
    )]
    pub value: String,
}

/// Opens a connection. The check passes if the connection opens.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[x_kube(validation = tls_options_need_tls())]
pub struct TcpCheck {
    /// Also require a TLS handshake. By default off.
    #[serde(default, rename = "useTLS", skip_serializing_if = "is_false")]
    pub use_tls: bool,

    #[allow(missing_docs, reason = "its fields stand here in its place")]
    #[serde(flatten)]
    pub tls: TlsOptions,
}

/// Calls the standard gRPC health service: `SERVING` passes, everything else is critical.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[x_kube(validation = tls_options_need_tls())]
pub struct GrpcCheck {
    /// The service to ask about, such as `shop.v1.User`. By default the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]*$')")
        .message("a gRPC service's name holds no spaces, line breaks or letters beyond ASCII"))]
    pub service: Option<String>,

    /// Use TLS. By default off.
    #[serde(default, rename = "useTLS", skip_serializing_if = "is_false")]
    pub use_tls: bool,

    #[allow(missing_docs, reason = "its fields stand here in its place")]
    #[serde(flatten)]
    pub tls: TlsOptions,
}

/// Sends a datagram. Use it only for servers that answer: any answer passes, a refusal is critical. If a server never
/// answers, Consul asks only once, and the check stays as it was.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCheck {}

/// Sends an HTTP/2 ping: an answer passes, everything else is critical.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[x_kube(validation = tls_options_need_tls())]
pub struct H2PingCheck {
    /// Use TLS. By default on.
    #[serde(default = "yes", rename = "useTLS")]
    pub use_tls: bool,

    #[allow(missing_docs, reason = "its fields stand here in its place")]
    #[serde(flatten)]
    pub tls: TlsOptions,
}

/// Settings of a check over TLS: which certificates it trusts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TlsOptions {
    /// Over TLS: accept any certificate. By default off.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tls_skip_verify: bool,

    /// Over TLS: the name that the certificate must be for, also sent as SNI. By default the instance's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$')")
        .message("the name of a server holds letters, digits, '-', '_' and '.', such as 'user.example.com'"))]
    pub tls_server_name: Option<String>,
}

fn tls_options_need_tls() -> Rule {
    Rule::new("(has(self.useTLS) && self.useTLS) || !((has(self.tlsSkipVerify) && self.tlsSkipVerify) || has(self.tlsServerName))")
        .message("tlsSkipVerify and tlsServerName need useTLS: true")
}

fn default_interval() -> String {
    "10s".to_owned()
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_method() -> String {
    "GET".to_owned()
}

fn yes() -> bool {
    true
}

//! What the operator is told: flags and environment, parsed once into values that are known to be good.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::cluster::convert::Rules;
use crate::cluster::event::Scope;
use crate::consul::transport::ConsulSettings;
use crate::model::names::ClusterName;

/// The flags of `lictor run`. Consul's are also read from the environment, under the names that Consul's own
/// tools use.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where registrations go: "agent" is the one agent at --consul-address (development, small set-ups);
    /// "catalog" is the servers' catalog, a Consul node for each Kubernetes node.
    #[arg(long, value_enum, default_value_t = Registration::Agent, env = "LICTOR_REGISTRATION")]
    pub registration: Registration,

    /// The cluster's name in Consul: a DNS label, unique among the clusters that share the Consul. Default: the
    /// uid of the namespace kube-system. What was registered under another name, or by another --registration,
    /// stays in Consul when it is changed.
    #[arg(long, value_name = "NAME", env = "LICTOR_CLUSTER_NAME")]
    pub cluster_name: Option<String>,

    /// Watch this namespace only. May be given several times; default: all namespaces. Several operators for
    /// one Consul need a --cluster-name each, also where they watch different namespaces.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,

    /// Act on the resources of this spec.class; default: on those without a class.
    #[arg(long, value_name = "CLASS", env = "LICTOR_CLASS")]
    pub class: Option<String>,

    /// Networks in which a resource may choose addresses (spec.taggedAddresses), separated by commas. May be
    /// given several times; default: none.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', env = "LICTOR_ALLOW_STATIC")]
    pub allow_static: Vec<String>,

    /// Consul's HTTP address, such as `http://127.0.0.1:8500`.
    #[arg(long, value_name = "URL", default_value = CONSUL_ADDRESS, env = "CONSUL_HTTP_ADDR")]
    pub consul_address: String,

    /// A file with the token for Consul; it is read again when it changes. A token may also stand in
    /// `CONSUL_HTTP_TOKEN`; there is no flag for it, since other users of a machine can see flags.
    #[arg(long, value_name = "FILE", env = "CONSUL_HTTP_TOKEN_FILE")]
    pub consul_token_file: Option<PathBuf>,

    /// A PEM file with the authorities that may vouch for Consul's certificate.
    #[arg(long, value_name = "FILE", env = "CONSUL_CACERT")]
    pub consul_ca_cert: Option<PathBuf>,

    /// A PEM file with our certificate for Consul.
    #[arg(long, value_name = "FILE", env = "CONSUL_CLIENT_CERT", requires = "consul_client_key")]
    pub consul_client_cert: Option<PathBuf>,

    /// A PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", env = "CONSUL_CLIENT_KEY", requires = "consul_client_cert")]
    pub consul_client_key: Option<PathBuf>,

    /// Whether Consul's certificate is verified.
    #[arg(long, value_name = "BOOL", default_value = "true", env = "CONSUL_HTTP_SSL_VERIFY")]
    pub consul_ssl_verify: String,

    /// The name that Consul's certificate must be for, where it is not that of the address.
    #[arg(long, value_name = "NAME", env = "CONSUL_TLS_SERVER_NAME")]
    pub consul_tls_server_name: Option<String>,

    /// A kubeconfig; default: `KUBECONFIG`, `~/.kube/config`, or the service account in a cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig; default: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9808", env = "LICTOR_ADMIN_ADDRESS")]
    pub admin_address: SocketAddr,

    /// How long between whole looks at what Consul holds.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub sweep_interval: Duration,

    /// How many Consul nodes are written to side by side, 1 to 64.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub concurrency: u8,

    /// How long writes under way may take after the order to stop.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub grace_period: Duration,

    /// How logs look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "LICTOR_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// What is logged: a level (error, warn, info, debug, trace) or tracing's filter directives. By default
    /// without the Kubernetes client's own words, which ours repeat.
    #[arg(long, value_name = "LEVEL", default_value = "info,kube_client=off", env = "LICTOR_LOG")]
    pub log_level: String,
}

impl RunArgs {
    /// Takes empty values for absent ones.
    fn drop_empty(&mut self) {
        for text in [&mut self.cluster_name, &mut self.class, &mut self.consul_tls_server_name, &mut self.context] {
            text.take_if(|text| text.is_empty());
        }
        for path in [
            &mut self.consul_token_file,
            &mut self.consul_ca_cert,
            &mut self.consul_client_cert,
            &mut self.consul_client_key,
            &mut self.kubeconfig,
        ] {
            path.take_if(|path| path.as_os_str().is_empty());
        }
        if self.consul_address.is_empty() {
            CONSUL_ADDRESS.clone_into(&mut self.consul_address);
        }
    }
}

/// Where Consul's own tools look for it.
const CONSUL_ADDRESS: &str = "http://127.0.0.1:8500";

/// Where registrations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Registration {
    /// The one agent at the address given.
    Agent,
    /// The servers' catalog.
    Catalog,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings that are known to be good.
#[derive(Debug)]
pub struct Settings {
    /// Where registrations go.
    pub registration: Registration,
    /// The cluster's name, where one is given.
    pub cluster_name: Option<ClusterName>,
    /// What is watched; never empty.
    pub scopes: Vec<Scope>,
    /// How resources are judged.
    pub rules: Rules,
    /// How Consul is reached.
    pub consul: ConsulSettings,
    /// Where the kubeconfig is, where one is given.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, likewise.
    pub context: Option<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub admin_address: SocketAddr,
    /// Between whole looks at Consul; at least a second.
    pub sweep_interval: Duration,
    /// Consul nodes written to side by side, 1 to 64.
    pub concurrency: usize,
    /// For writes under way after the order to stop.
    pub grace_period: Duration,
    /// How logs look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
}

impl Settings {
    /// Checks flags and environment; files are checked where they are read. An empty value is an absent one, as
    /// Consul's own tools have it.
    pub fn new(mut args: RunArgs) -> anyhow::Result<Self> {
        args.drop_empty();
        let cluster_name = args.cluster_name.as_deref().map(ClusterName::new).transpose().context("--cluster-name")?;
        for namespace in &args.namespaces {
            ClusterName::new(namespace)
                .map_err(|_| anyhow::anyhow!("--namespace {namespace:?} is not the name of a namespace"))?;
        }
        let scopes = if args.namespaces.is_empty() {
            vec![Scope::All]
        } else {
            // One watch for each, however often it is named.
            let names: BTreeSet<&str> = args.namespaces.iter().map(String::as_str).collect();
            names.into_iter().map(|namespace| Scope::Namespace(namespace.into())).collect()
        };
        let sweeps = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        ensure!(sweeps.contains(&args.sweep_interval), "--sweep-interval must be from 1s to 24h");
        if let Some(class) = &args.class {
            ClusterName::new(class).map_err(|_| anyhow::anyhow!("--class {class:?} is not a DNS label"))?;
        }
        let allow_static: Vec<IpNet> = args
            .allow_static
            .iter()
            .filter(|net| !net.is_empty())
            .map(|net| {
                net.parse().with_context(|| format!("--allow-static {net:?} is not a network like 203.0.113.0/24"))
            })
            .collect::<anyhow::Result<_>>()?;
        let ssl_verify = match args.consul_ssl_verify.to_ascii_lowercase().as_str() {
            "" | "true" | "1" | "t" => true,
            "false" | "0" | "f" => false,
            other => bail!("--consul-ssl-verify {other:?}: write true or false"),
        };
        let token = std::env::var("CONSUL_HTTP_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self {
            registration: args.registration,
            cluster_name,
            scopes,
            rules: Rules { class: args.class, allow_static, runs_checks: args.registration == Registration::Agent },
            consul: ConsulSettings {
                address: args.consul_address,
                token,
                token_file: args.consul_token_file,
                ca_cert: args.consul_ca_cert,
                client_cert: args.consul_client_cert,
                client_key: args.consul_client_key,
                ssl_verify,
                tls_server_name: args.consul_tls_server_name,
            },
            kubeconfig: args.kubeconfig,
            context: args.context,
            admin_address: args.admin_address,
            sweep_interval: args.sweep_interval,
            concurrency: usize::from(args.concurrency),
            grace_period: args.grace_period,
            log_format: args.log_format,
            log_level: args.log_level,
        })
    }
}

/// Reads `30s`, `1m30s`, `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write it like 30s, 1m30s or 250ms".to_owned())?;
    Duration::try_from(span).map_err(|_| "a duration cannot be negative".to_owned())
}

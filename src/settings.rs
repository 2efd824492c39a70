//! What the operator is told: flags and environment, parsed once into values that are known to be good.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::cluster::convert::{ChecksRunBy, Rules};
use crate::consul::login::{LoginSettings, POD_TOKEN};
use crate::consul::tenancy::Tenancy;
use crate::consul::transport::{ConsulSettings, Logins};
use crate::model::ids::{ClusterName, Str};
use crate::model::policy::Policy;
use crate::model::resource::Limits;
use crate::policy::PolicyFile;
use crate::state::event::Scope;

/// The flags of `lictor run`. Consul's are also read from the environment, under the names that Consul's own
/// tools use.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct RunArgs {
    /// Where Lictor registers instances. "agent": with the one Consul agent at --consul-address, for development and
    /// small set-ups. "catalog": in the catalog of Consul's servers, with a Consul node for each Kubernetes node.
    #[arg(long, value_enum, default_value_t = Mode::Agent, env = "LICTOR_REGISTRATION")]
    pub registration: Mode,

    /// The cluster's name in Consul: a DNS label, unique among the clusters that share this Consul. Default: the uid of
    /// the namespace kube-system. If you change the name or --registration, the old registrations stay in Consul,
    /// unless a --previous flag says where they are.
    #[arg(long, value_name = "NAME", env = "LICTOR_CLUSTER_NAME")]
    pub cluster_name: Option<String>,

    /// An ID that distinguishes this cluster from another one of the same name: 1 to 64 of a-z, A-Z, 0-9 and '-'. Use
    /// it if Lictor may not read the namespace kube-system, whose uid is the default. Needs --cluster-name. If you
    /// change it, Lictor treats the old registrations as those of another cluster.
    #[arg(long, value_name = "UID", env = "LICTOR_CLUSTER_UID")]
    pub cluster_uid: Option<String>,

    /// Watch only this namespace. May be given several times. Default: all namespaces. If several operators share one
    /// Consul, each needs its own --cluster-name, even if they watch different namespaces.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,

    /// Manage the resources with this spec.class. Default: the resources without a class.
    #[arg(long, value_name = "CLASS", env = "LICTOR_CLASS")]
    pub class: Option<String>,

    /// Networks in which a resource may choose addresses (spec.source.static, spec.taggedAddresses), separated by
    /// commas. May be given several times. Default: none.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', env = "LICTOR_ALLOW_STATIC")]
    pub allow_static: Vec<String>,

    /// A file that says, by namespace, what resources may ask for: names, tags, checks, addresses, budgets. Lictor
    /// reads it again when it changes. Default: everything is allowed, except the names of Consul's companions.
    #[arg(long, value_name = "FILE", env = "LICTOR_POLICY")]
    pub policy: Option<PathBuf>,

    /// Let resources of different namespaces register under one name in Consul. By default the resource that
    /// has the name keeps it, and the other one gets the reason `NameConflict`.
    #[arg(long, env = "LICTOR_ALLOW_SHARED_NAMES")]
    pub allow_shared_names: bool,

    /// Register an endpoint of a Service only if a pod of its namespace has the address. Lictor then watches pods. By
    /// default Lictor trusts EndpointSlices, as kube-proxy does.
    #[arg(long, env = "LICTOR_VERIFY_ENDPOINTS")]
    pub verify_endpoints: bool,

    /// Networks in which endpoints of Services and pods must have their addresses, such as the ranges of the pods and
    /// of the nodes, separated by commas. May be given several times. Default: all networks. Lictor never registers
    /// loopback, link-local, multicast or cloud metadata addresses. Instances outside these networks that are already
    /// registered stay.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', env = "LICTOR_ENDPOINT_NETWORKS")]
    pub endpoint_networks: Vec<String>,

    /// The maximum number of instances of one resource, 1 to 100000. If the source has more, registered instances stay,
    /// then ready ones come first. The status says how many are left out.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 5_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        env = "LICTOR_MAX_INSTANCES"
    )]
    pub max_instances: u32,

    /// The maximum size of the specs of all resources of a namespace together, in bytes of JSON, 64 KiB to 1 GiB. Each
    /// resource counts as at least 1 KiB. It limits the memory of Lictor. The older resources come first. A resource that
    /// does not fit is not accepted, with the reason `TooLarge`; its registrations stay.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 4_194_304,
        value_parser = clap::value_parser!(u32).range(65_536..=1_073_741_824),
        env = "LICTOR_MAX_NAMESPACE_BYTES"
    )]
    pub max_namespace_bytes: u32,

    /// How long to keep instances passing if most stop being ready at once, 0s to 1h. This applies if more than half of
    /// all passing instances, and at least ten, stop being ready within a minute while their endpoints stay, and not
    /// those of one namespace alone: the kubelets may be cut off from the API server while the pods still serve. After
    /// this time Lictor reads a fresh list from Kubernetes. 0s keeps nothing. In any case, /readyz, the metric
    /// `lictor_mass_unready_instances` and the conditions report it.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, env = "LICTOR_HOLD_MASS_UNREADY")]
    pub hold_mass_unready: Duration,

    /// With --registration=catalog: consul-esm runs beside Consul, for nodes with the meta external-node=true.
    /// Resources may then have checks of the kinds http, tcp and grpc. Note that consul-esm follows HTTP redirects,
    /// also to other hosts; an agent does not.
    #[arg(long, env = "LICTOR_CONSUL_ESM")]
    pub consul_esm: bool,

    /// With --registration=catalog: do not read Nodes. Use it if Lictor may not read them, because they belong to no
    /// namespace. The Consul nodes then have no address of a machine. Lictor creates a Consul node for every node name
    /// that an endpoint gives, because it cannot check whether such a Node exists.
    #[arg(long, env = "LICTOR_WITHOUT_NODES")]
    pub without_nodes: bool,

    /// Consul's HTTP address, such as `http://127.0.0.1:8500`, `https://gate.example/consul` or
    /// `unix:///run/consul.sock`. With --registration=catalog, several servers of one datacenter may be given, separated
    /// by commas; Lictor tries them in turn. If `CONSUL_HTTP_SSL` is true, Lictor uses `https://` also for `http://`, as
    /// Consul's own tools do.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        default_value = CONSUL_ADDRESS,
        env = "CONSUL_HTTP_ADDR",
        hide_env_values = true
    )]
    pub consul_address: Vec<String>,

    /// The datacenter to register in. With --registration=catalog, Consul at --consul-address forwards all requests to
    /// it; default: the datacenter of that Consul. With --registration=agent, the agent must be in this datacenter.
    #[arg(long, value_name = "NAME", env = "LICTOR_CONSUL_DATACENTER")]
    pub consul_datacenter: Option<String>,

    /// The namespace to register in, in Consul Enterprise. Default: the namespace of the token, or `default`.
    #[arg(long, value_name = "NAME", env = "CONSUL_NAMESPACE")]
    pub consul_namespace: Option<String>,

    /// The partition to register in, in Consul Enterprise. Default: the partition of the agent at --consul-address.
    #[arg(long, value_name = "NAME", env = "CONSUL_PARTITION")]
    pub consul_partition: Option<String>,

    /// An HTTP proxy for the requests to Consul, such as `http://proxy.example:3128`. Default: none. Lictor ignores variables
    /// such as `HTTP_PROXY` for Consul.
    #[arg(long, value_name = "URL", env = "LICTOR_CONSUL_PROXY", hide_env_values = true)]
    pub consul_proxy: Option<String>,

    /// With --registration=agent: an agent with which this cluster registered before, such as `http://10.0.0.7:8500`.
    /// Lictor deregisters each instance there as soon as the present agent has it. Lictor sends it the same token as to
    /// --consul-address, so name only agents that you trust. Several are separated by commas.
    #[arg(
        long = "previous-agent",
        value_name = "URL,...",
        value_delimiter = ',',
        env = "LICTOR_PREVIOUS_AGENT",
        hide_env_values = true
    )]
    pub previous_agents: Vec<String>,

    /// For a move: the previous --registration. Lictor deregisters each instance there as soon as the same instance is
    /// registered at the present place. Keep this flag, or one of the other --previous flags, until nothing is left
    /// there.
    #[arg(long, value_enum, value_name = "REGISTRATION", env = "LICTOR_PREVIOUS_REGISTRATION")]
    pub previous_registration: Option<Mode>,

    /// For a move: the previous --consul-address. Lictor sends it the same token as to --consul-address, unless
    /// --previous-consul-token-file is given. Default: --consul-address.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        env = "LICTOR_PREVIOUS_CONSUL_ADDRESS",
        hide_env_values = true
    )]
    pub previous_consul_address: Vec<String>,

    /// For a move: the previous --cluster-name. Default: --cluster-name.
    #[arg(long, value_name = "NAME", env = "LICTOR_PREVIOUS_CLUSTER_NAME")]
    pub previous_cluster_name: Option<String>,

    /// For a move: a file with the token for the previous Consul. Default: the token for --consul-address.
    #[arg(long, value_name = "FILE", env = "LICTOR_PREVIOUS_CONSUL_TOKEN_FILE")]
    pub previous_consul_token_file: Option<PathBuf>,

    /// A file with the token for Consul. Lictor reads it again when it changes, and uses the old token until Consul
    /// knows the new one. You may give the token in `CONSUL_HTTP_TOKEN` instead. There is no flag for the token itself,
    /// because other users of a machine can see flags.
    #[arg(long, value_name = "FILE", env = "CONSUL_HTTP_TOKEN_FILE")]
    pub consul_token_file: Option<PathBuf>,

    /// With --registration=catalog: log in to Consul with this auth method, of the type kubernetes, instead of a given
    /// token. Each replica has its own token, renews it after half of the method's `MaxTokenTTL`, and logs out when it
    /// stops.
    #[arg(long, value_name = "NAME", env = "CONSUL_LOGIN_AUTH_METHOD")]
    pub consul_auth_method: Option<String>,

    /// A file with the service account's token for the login. Lictor reads it at each login. The token must be for the
    /// audience of the API server. Default: the token of the pod's service account.
    #[arg(long, value_name = "FILE", env = "CONSUL_LOGIN_BEARER_TOKEN_FILE")]
    pub consul_auth_bearer_token_file: Option<PathBuf>,

    /// The datacenter to log in to, if the auth method is in another datacenter than the instances, such as the primary.
    /// The method must then create global tokens (`TokenLocality`). Default: --consul-datacenter.
    #[arg(long, value_name = "NAME", env = "CONSUL_LOGIN_DATACENTER")]
    pub consul_auth_datacenter: Option<String>,

    /// The namespace of the auth method, in Consul Enterprise.
    #[arg(long, value_name = "NAME", env = "CONSUL_LOGIN_NAMESPACE")]
    pub consul_auth_namespace: Option<String>,

    /// The partition of the auth method, in Consul Enterprise. Default: --consul-partition.
    #[arg(long, value_name = "NAME", env = "CONSUL_LOGIN_PARTITION")]
    pub consul_auth_partition: Option<String>,

    /// Pairs that Consul shows in the description of the tokens, such as `pod=lictor/lictor-0`, separated by commas.
    /// May be given several times. Default: none.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', env = "CONSUL_LOGIN_META")]
    pub consul_auth_meta: Vec<String>,

    /// A PEM file with the CA certificates for Consul. Lictor reads it again when it changes.
    #[arg(long, value_name = "FILE", env = "CONSUL_CACERT")]
    pub consul_ca_cert: Option<PathBuf>,

    /// A PEM file with the client certificate of Lictor for Consul. Lictor reads it again when it changes.
    #[arg(long, value_name = "FILE", env = "CONSUL_CLIENT_CERT", requires = "consul_client_key")]
    pub consul_client_cert: Option<PathBuf>,

    /// A PEM file with the private key of that certificate. Lictor reads it again when it changes.
    #[arg(long, value_name = "FILE", env = "CONSUL_CLIENT_KEY", requires = "consul_client_cert")]
    pub consul_client_key: Option<PathBuf>,

    /// Verify Consul's certificate: true or false.
    #[arg(long, value_name = "BOOL", default_value = "true", env = "CONSUL_HTTP_SSL_VERIFY")]
    pub consul_ssl_verify: String,

    /// The name in Consul's certificate, if it differs from the host of the address.
    #[arg(long, value_name = "NAME", env = "CONSUL_TLS_SERVER_NAME")]
    pub consul_tls_server_name: Option<String>,

    /// Take part in a leader election among several replicas. The leader acts; the other replicas are standbys.
    #[arg(long, env = "LICTOR_LEADER_ELECTION")]
    pub leader_election: bool,

    /// The name of the Lease that the replicas share. Default: `lictor`, or `lictor-CLASS` with a class.
    #[arg(long, value_name = "NAME", env = "LICTOR_LEASE_NAME")]
    pub lease_name: Option<String>,

    /// The namespace of the Lease. Default: the namespace of the service account or of the kubeconfig.
    #[arg(long, value_name = "NAMESPACE", env = "LICTOR_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How long the Lease is valid without a renewal, in whole seconds, 2s to 5m. If the leader dies, the next leader
    /// starts after about this time. The leader starts no request to Consul in the last quarter of the Lease.
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = duration, env = "LICTOR_LEASE_DURATION")]
    pub lease_duration: Duration,

    /// The name of this replica in the Lease. Lictor adds a random part. Default: the host's name.
    #[arg(long, value_name = "NAME", env = "LICTOR_IDENTITY")]
    pub identity: Option<String>,

    /// A kubeconfig file. Default: `KUBECONFIG`, `~/.kube/config`, or the service account in a cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig. Default: its current context.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// The address of /healthz, /readyz and /metrics. `[::]` means every address of the machine, IPv4 included, even if
    /// the machine has no IPv6.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:9808", env = "LICTOR_ADMIN_ADDRESS")]
    pub admin_address: SocketAddr,

    /// A separate address for /metrics, such as `[::]:9809`. --admin-address then does not serve the metrics. Default:
    /// none.
    #[arg(long, value_name = "ADDRESS:PORT", env = "LICTOR_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,

    /// The maximum time to read everything of this cluster from Consul and to compare it, after something has changed
    /// in Consul. Lictor asks 30 times in this interval whether something has changed, at most 4 times a second.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub resync_interval: Duration,

    /// How many transactions Lictor sends to Consul at the same time in `catalog` mode, 1 to 64.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub concurrency: u8,

    /// The average number of status and Event writes to Kubernetes per second, 1 to 1000. After a quiet time, a burst
    /// may have 2.5 times as many. Finalizers do not count.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..=1_000),
        env = "LICTOR_STATUS_RATE"
    )]
    pub status_rate: u32,

    /// How long Lictor waits at shutdown for writes that are under way.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub grace_period: Duration,

    /// The log format.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "LICTOR_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// The log level: error, warn, info, debug, trace, or filter directives of the Rust crate tracing. The default
    /// leaves out the log lines of the Kubernetes client, because Lictor logs the same errors itself.
    #[arg(long, value_name = "LEVEL", default_value = LOG_LEVEL, env = "LICTOR_LOG")]
    pub log_level: String,
}

impl RunArgs {
    /// Takes empty values for absent ones.
    fn drop_empty(&mut self) {
        for text in [
            &mut self.cluster_name,
            &mut self.previous_cluster_name,
            &mut self.cluster_uid,
            &mut self.class,
            &mut self.consul_tls_server_name,
            &mut self.consul_datacenter,
            &mut self.consul_namespace,
            &mut self.consul_partition,
            &mut self.consul_proxy,
            &mut self.consul_auth_method,
            &mut self.consul_auth_datacenter,
            &mut self.consul_auth_namespace,
            &mut self.consul_auth_partition,
            &mut self.context,
            &mut self.lease_name,
            &mut self.lease_namespace,
            &mut self.identity,
        ] {
            text.take_if(|text| text.is_empty());
        }
        for path in [
            &mut self.consul_token_file,
            &mut self.previous_consul_token_file,
            &mut self.consul_auth_bearer_token_file,
            &mut self.consul_ca_cert,
            &mut self.consul_client_cert,
            &mut self.consul_client_key,
            &mut self.policy,
            &mut self.kubeconfig,
        ] {
            path.take_if(|path| path.as_os_str().is_empty());
        }
        self.consul_auth_meta.retain(|pair| !pair.trim().is_empty());
        self.consul_address.retain(|address| !address.trim().is_empty());
        self.previous_consul_address.retain(|address| !address.trim().is_empty());
        if self.consul_address.is_empty() {
            self.consul_address.push(CONSUL_ADDRESS.to_owned());
        }
    }
}

/// The default of `--log-level`.
pub const LOG_LEVEL: &str = "info,kube_client=off";

/// The address at which Consul's own tools look for it.
const CONSUL_ADDRESS: &str = "http://127.0.0.1:8500";

/// The place of registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The one agent at the address given.
    Agent,
    /// The servers' catalog.
    Catalog,
}

impl Mode {
    /// As it is written in a flag.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Catalog => "catalog",
        }
    }
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings that are known to be good.
#[derive(Debug)]
pub struct Settings {
    /// The place of registrations.
    pub registration: Mode,
    /// The cluster's name, where one is given.
    pub cluster_name: Option<ClusterName>,
    /// The text in place of the cluster's uid, where that is given.
    pub cluster_uid: Option<Str>,
    /// The scopes that are watched; never empty.
    pub scopes: Vec<Scope>,
    /// True if Nodes are watched, whatever resources need.
    pub nodes: bool,
    /// The rules that resources have to keep.
    pub rules: Rules,
    /// Says what the administrator lets resources ask for.
    pub policy: PolicyFile,
    /// The way to Consul.
    pub consul: ConsulSettings,
    /// The addresses of agents that were registered with before, in `agent` mode.
    pub previous_agents: Vec<String>,
    /// Where registrations were before a move, if one is under way.
    pub previous: Option<Previous>,
    /// The election in which this replica takes part, if it does.
    pub election: Option<Election>,
    /// The path of the kubeconfig, where one is given.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, likewise.
    pub context: Option<String>,
    /// The address at which `/healthz`, `/readyz` and `/metrics` are served.
    pub admin_address: SocketAddr,
    /// The address at which `/metrics` is served in place of that, where one is given.
    pub metrics_address: Option<SocketAddr>,
    /// The time for which instances are kept passing when most stop being ready at once; 0 for not at all.
    pub hold_mass_unready: Duration,
    /// Between whole looks at Consul; at least a second.
    pub resync_interval: Duration,
    /// Transactions under way at once in the catalog, 1 to 64.
    pub concurrency: usize,
    /// The number of writes of status and Events that Kubernetes gets a second.
    pub status_rate: u32,
    /// For writes under way after the order to stop.
    pub grace_period: Duration,
    /// The format of the log.
    pub log_format: LogFormat,
    /// The filter of the log.
    pub log_level: String,
}

impl Settings {
    /// Checks flags and environment; files are checked where they are read. An empty value is an absent one, as
    /// Consul's own tools have it.
    pub fn new(mut args: RunArgs) -> anyhow::Result<Self> {
        args.drop_empty();
        let cluster_name = args.cluster_name.as_deref().map(ClusterName::new).transpose().context("--cluster-name")?;
        ensure!(
            args.cluster_name.as_deref() != Some("lictor"),
            "--cluster-name lictor: this name is reserved, because marker nodes are called lictor-NAME; choose another"
        );
        if let Some(uid) = &args.cluster_uid {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
            ensure!(
                uid.len() <= 64 && uid.chars().all(fits),
                "--cluster-uid {uid:?}: 1 to 64 of a-z, A-Z, 0-9 and '-'"
            );
            ensure!(cluster_name.is_some(), "--cluster-uid needs --cluster-name");
        }
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
        let resyncs = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        ensure!(resyncs.contains(&args.resync_interval), "--resync-interval must be from 1s to 24h");
        let holds = Duration::ZERO..=Duration::from_secs(3600);
        ensure!(holds.contains(&args.hold_mass_unready), "--hold-mass-unready must be from 0s to 1h");
        if let Some(class) = &args.class {
            ClusterName::new(class).map_err(|_| anyhow::anyhow!("--class {class:?} is not a DNS label"))?;
        }
        let without = Policy {
            rules: None,
            networks: networks("--allow-static", &args.allow_static)?,
            class: args.class.as_deref().unwrap_or("").into(),
            namespace_bytes: args.max_namespace_bytes as usize,
        };
        let policy = PolicyFile { path: args.policy.clone(), without };
        let checks = match (args.registration, args.consul_esm) {
            (Mode::Agent, true) => {
                bail!("--consul-esm is for --registration=catalog: an agent runs checks itself")
            }
            (Mode::Agent, false) => ChecksRunBy::Agent,
            (Mode::Catalog, true) => ChecksRunBy::Esm,
            (Mode::Catalog, false) => ChecksRunBy::Nobody,
        };
        args.previous_agents.retain(|address| !address.is_empty());
        ensure!(
            args.registration == Mode::Agent || args.previous_agents.is_empty(),
            "--previous-agent is for --registration=agent"
        );
        // What was registered with one agent is deregistered with that one.
        ensure!(
            args.registration == Mode::Catalog || args.consul_address.len() == 1,
            "--consul-address: {} addresses, which are for the servers of --registration=catalog; an agent has one",
            args.consul_address.len()
        );
        let election = args.leader_election.then(|| election(&args)).transpose()?;
        let consul = consul(&mut args)?;
        // Measured on Consul 1.22.7: what an agent registered with a token that is gone no longer reaches the catalog.
        ensure!(
            args.registration == Mode::Catalog || consul.login.is_none(),
            "--consul-auth-method is for --registration=catalog: an agent keeps the token that an instance was registered with, \
             and the token of a login ends; give one by --consul-token-file"
        );
        let previous = previous(&mut args, &consul, cluster_name.as_ref())?;
        Ok(Self {
            registration: args.registration,
            cluster_name,
            cluster_uid: args.cluster_uid.map(Str::from),
            scopes,
            nodes: args.registration == Mode::Catalog && !args.without_nodes,
            rules: Rules {
                class: args.class,
                checks,
                limits: Limits {
                    instances: args.max_instances as usize,
                    of_namespace: None,
                    shares_name: args.allow_shared_names,
                    verify_endpoints: args.verify_endpoints,
                    endpoint_networks: networks("--endpoint-networks", &args.endpoint_networks)?.into(),
                    only_keeps: false,
                },
            },
            policy,
            consul,
            previous_agents: args.previous_agents,
            previous,
            election,
            kubeconfig: args.kubeconfig,
            context: args.context,
            admin_address: args.admin_address,
            metrics_address: args.metrics_address,
            hold_mass_unready: args.hold_mass_unready,
            resync_interval: args.resync_interval,
            concurrency: usize::from(args.concurrency),
            status_rate: args.status_rate,
            grace_period: args.grace_period,
            log_format: args.log_format,
            log_level: args.log_level,
        })
    }
}

/// Where registrations were before a move.
#[derive(Clone, Debug)]
pub struct Previous {
    /// The place of registrations.
    pub registration: Mode,
    /// The way to Consul.
    pub consul: ConsulSettings,
    /// The cluster's name, where it was another one.
    pub cluster_name: Option<ClusterName>,
}

/// Where registrations were, where a flag says so. Takes what it needs of the flags.
fn previous(
    args: &mut RunArgs,
    consul: &ConsulSettings,
    cluster_name: Option<&ClusterName>,
) -> anyhow::Result<Option<Previous>> {
    let name = args.previous_cluster_name.take();
    let name = name.as_deref().map(ClusterName::new).transpose().context("--previous-cluster-name")?;
    let (addresses, token_file) =
        (std::mem::take(&mut args.previous_consul_address), args.previous_consul_token_file.take());
    let registration = args.previous_registration.unwrap_or(args.registration);
    if args.previous_registration.is_none() && addresses.is_empty() && name.is_none() {
        ensure!(token_file.is_none(), "--previous-consul-token-file needs --previous-consul-address");
        return Ok(None);
    }
    let is_same_name = name.as_ref().is_none_or(|name| Some(name) == cluster_name);
    ensure!(
        registration != args.registration || !addresses.is_empty() || !is_same_name,
        "the flags --previous-... name the place where Lictor registers now: give the --registration, the address or the \
         cluster name of before"
    );
    let mut consul = consul.clone();
    if !addresses.is_empty() {
        consul.addresses = addresses;
    }
    if token_file.is_some() {
        (consul.token, consul.token_file, consul.login) = (None, token_file, None);
    }
    ensure!(
        registration == Mode::Catalog || consul.addresses.len() == 1,
        "--previous-registration=agent: give the address of the one agent by --previous-consul-address"
    );
    ensure!(
        registration == Mode::Catalog || consul.login.is_none(),
        "--previous-registration=agent with --consul-auth-method: give a token for the agent by --previous-consul-token-file"
    );
    Ok(Some(Previous { registration, consul, cluster_name: name }))
}

/// Variables by which Consul's own tools would go to Consul otherwise than Lictor does. Who sets those for gRPC expects
/// that Lictor uses Consul's gRPC port, which it does not.
const NOT_HONOURED: [&str; 5] =
    ["CONSUL_CAPATH", "CONSUL_HTTP_AUTH", "CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT", "CONSUL_GRPC_CAPATH"];

/// The way to Consul, by flags and by the environment. Takes what it needs of the flags.
fn consul(args: &mut RunArgs) -> anyhow::Result<ConsulSettings> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(name) = NOT_HONOURED.into_iter().find(|name| environment(name).is_some()) {
        bail!("the environment variable {name} is not supported: unset it");
    }
    if boolean("CONSUL_HTTP_SSL", &environment("CONSUL_HTTP_SSL").unwrap_or_default(), false)? {
        for address in
            args.consul_address.iter_mut().chain(&mut args.previous_agents).chain(&mut args.previous_consul_address)
        {
            *address = over_tls(address);
        }
    }
    let token = environment("CONSUL_HTTP_TOKEN");
    let tenancy = tenancy(args)?;
    let login = login(args, &tenancy)?;
    let given = [(token.is_some(), "CONSUL_HTTP_TOKEN"), (args.consul_token_file.is_some(), "--consul-token-file")];
    if let Some((_, given)) = given.iter().find(|(is_given, _)| *is_given && login.is_some()) {
        bail!("--consul-auth-method and {given} are two ways to a token for Consul: leave out one of them");
    }
    Ok(ConsulSettings {
        addresses: std::mem::take(&mut args.consul_address),
        token,
        token_file: args.consul_token_file.take(),
        login,
        logins: Logins::default(),
        ca_cert: args.consul_ca_cert.take(),
        client_cert: args.consul_client_cert.take(),
        client_key: args.consul_client_key.take(),
        ssl_verify: boolean("--consul-ssl-verify", &args.consul_ssl_verify, true)?,
        tls_server_name: args.consul_tls_server_name.take(),
        tenancy,
        proxy: args.consul_proxy.take(),
    })
}

/// The part of Consul to register in. Takes what it needs of the flags.
fn tenancy(args: &mut RunArgs) -> anyhow::Result<Tenancy> {
    // Consul's own rule for datacenters; those of namespaces and partitions are narrower, and Consul says so.
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name = |flag: &str, name: Option<String>| match name {
        Some(name) if name.len() > 64 || !name.chars().all(fits) => {
            bail!("{flag} {name:?}: 1 to 64 of a-z, A-Z, 0-9, '-' and '_'")
        }
        name => Ok(name),
    };
    Ok(Tenancy {
        datacenter: name("--consul-datacenter", args.consul_datacenter.take())?,
        namespace: name("--consul-namespace", args.consul_namespace.take())?,
        partition: name("--consul-partition", args.consul_partition.take())?,
    })
}

/// Reads how to log in, if the flags ask for a login. Takes what it needs of the flags.
fn login(args: &mut RunArgs, tenancy: &Tenancy) -> anyhow::Result<Option<LoginSettings>> {
    let Some(method) = args.consul_auth_method.take() else {
        let others = [
            (args.consul_auth_bearer_token_file.is_some(), "--consul-auth-bearer-token-file"),
            (args.consul_auth_datacenter.is_some(), "--consul-auth-datacenter"),
            (args.consul_auth_namespace.is_some(), "--consul-auth-namespace"),
            (args.consul_auth_partition.is_some(), "--consul-auth-partition"),
            (!args.consul_auth_meta.is_empty(), "--consul-auth-meta"),
        ];
        let other = others.iter().find(|(is_given, _)| *is_given);
        return other.map_or(Ok(None), |(_, flag)| bail!("{flag} needs --consul-auth-method"));
    };
    // As Consul has it.
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        method.len() <= 128 && method.chars().all(fits),
        "--consul-auth-method {method:?}: 1 to 128 of a-z, A-Z, 0-9, '-' and '_'"
    );
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    let pairs = args.consul_auth_meta.iter().map(|text| {
        pair(text).with_context(|| format!("--consul-auth-meta {text:?}: write it like pod=lictor/lictor-0"))
    });
    Ok(Some(LoginSettings {
        method,
        bearer_token_file: args.consul_auth_bearer_token_file.take().unwrap_or_else(|| PathBuf::from(POD_TOKEN)),
        datacenter: args.consul_auth_datacenter.take().or_else(|| tenancy.datacenter.clone()),
        namespace: args.consul_auth_namespace.take(),
        partition: args.consul_auth_partition.take().or_else(|| tenancy.partition.clone()),
        meta: pairs.collect::<anyhow::Result<_>>()?,
    }))
}

/// Reads true and false as Consul's own tools do.
fn boolean(name: &str, text: &str, default: bool) -> anyhow::Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(default),
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => bail!("{name} {text:?}: write true or false"),
    }
}

/// An address as `CONSUL_HTTP_SSL` wants it. With it, Consul's own tools use TLS also where the address begins with
/// `http://` (`NewClient` in `api/api.go` of Consul).
fn over_tls(address: &str) -> String {
    let address = address.trim();
    match address.strip_prefix("http://").or_else(|| (!address.contains("://")).then_some(address)) {
        Some(rest) => format!("https://{rest}"),
        None => address.to_owned(),
    }
}

/// The networks that a flag gives.
fn networks(flag: &str, given: &[String]) -> anyhow::Result<Vec<IpNet>> {
    let given = given.iter().filter(|network| !network.is_empty());
    let network =
        |text: &String| text.parse().with_context(|| format!("{flag} {text:?} is not a network like 203.0.113.0/24"));
    given.map(network).collect()
}

/// The settings of an election.
#[derive(Clone, Debug)]
pub struct Election {
    /// The Lease's name.
    pub lease: String,
    /// Its namespace; none for the client's own.
    pub namespace: Option<String>,
    /// The time for which the Lease holds: whole seconds, at least 2.
    pub duration: Duration,
    /// The name of this replica.
    pub identity: String,
}

fn election(args: &RunArgs) -> anyhow::Result<Election> {
    let durations = Duration::from_secs(2)..=Duration::from_secs(300);
    let duration = args.lease_duration;
    ensure!(
        durations.contains(&duration) && duration.subsec_nanos() == 0,
        "--lease-duration must be from 2s to 5m, in whole seconds"
    );
    if let Some(namespace) = &args.lease_namespace {
        ClusterName::new(namespace)
            .map_err(|_| anyhow::anyhow!("--lease-namespace {namespace:?} is not the name of a namespace"))?;
    }
    let lease = match (&args.lease_name, &args.class) {
        (Some(name), _) => name.clone(),
        (None, Some(class)) => format!("lictor-{class}"),
        (None, None) => "lictor".to_owned(),
    };
    let subdomain = |part: &str| ClusterName::new(part).is_ok();
    ensure!(lease.len() <= 253 && lease.split('.').all(subdomain), "--lease-name {lease:?} is not a DNS name");
    // Two of one name would both take the Lease for theirs.
    let identity = format!("{}_{:016x}", args.identity.clone().unwrap_or_else(host_name), fastrand::u64(..));
    Ok(Election { lease, namespace: args.lease_namespace.clone(), duration, identity })
}

/// The name of this host, which in a pod is the pod's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "lictor".to_owned() } else { name.trim().to_owned() }
}

/// Reads `30s`, `1m30s`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write it like 30s, 1m30s or 250ms".to_owned())?;
    Duration::try_from(span).map_err(|_| "a duration cannot be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Run {
        #[command(flatten)]
        args: RunArgs,
    }

    #[test]
    fn a_login_is_asked_for_by_a_method_and_takes_no_other_token() {
        let file = "--consul-auth-bearer-token-file=/t";
        for (flags, expected) in [
            (vec![], Ok(None)),
            (vec!["--consul-auth-method="], Ok(None)),
            (vec!["--consul-auth-method=kube"], Ok(Some((POD_TOKEN, 0)))),
            (vec!["--consul-auth-method=kube", file, "--consul-auth-meta=a=b,c=d=e"], Ok(Some(("/t", 2)))),
            (vec![file], Err("--consul-auth-bearer-token-file needs --consul-auth-method")),
            (vec!["--consul-auth-meta=a=b"], Err("--consul-auth-meta needs")),
            (vec!["--consul-auth-method=a b"], Err("1 to 128")),
            (vec!["--consul-auth-method=kube", "--consul-auth-meta=a"], Err("write it like pod=")),
            (vec!["--consul-auth-method=kube", "--consul-token-file=/x"], Err("are two ways to a token")),
            (vec!["--registration=agent", "--consul-auth-method=kube"], Err("is for --registration=catalog")),
        ] {
            let mode = if flags.contains(&"--registration=agent") { None } else { Some(&"--registration=catalog") };
            let all = std::iter::once(&"lictor").chain(mode).chain(&flags);
            let run = <Run as clap::Parser>::try_parse_from(all).unwrap();
            let found = Settings::new(run.args).map(|settings| settings.consul.login);
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    let found = found.map(|login| (login.bearer_token_file, login.meta.len()));
                    assert_eq!(found, expected.map(|(file, pairs)| (PathBuf::from(file), pairs)), "{flags:?}");
                }
                (Err(error), Err(words)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains(words) && !error.contains('\n'), "{flags:?}: {error}");
                }
                (found, _) => panic!("{flags:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_move_is_from_somewhere_else() {
        let (agent, catalog) = ("--registration=agent", "--registration=catalog");
        for (flags, expected) in [
            (vec![agent], Ok(None)),
            (vec![agent, "--previous-consul-address="], Ok(None)),
            (vec![catalog, "--previous-registration=agent"], Ok(Some((Mode::Agent, CONSUL_ADDRESS, None)))),
            (vec![agent, "--previous-consul-address=http://old:1"], Ok(Some((Mode::Agent, "http://old:1", None)))),
            (vec![agent, "--previous-cluster-name=old"], Ok(Some((Mode::Agent, CONSUL_ADDRESS, Some("old"))))),
            (vec![agent, "--previous-registration=agent"], Err("name the place where Lictor registers now")),
            (
                vec![agent, "--cluster-name=one", "--previous-cluster-name=one"],
                Err("name the place where Lictor registers now"),
            ),
            (vec![agent, "--previous-cluster-name=O"], Err("--previous-cluster-name")),
            (
                vec![catalog, "--consul-address=http://a:1,http://b:1", "--previous-registration=agent"],
                Err("give the address of the one agent"),
            ),
            (vec![agent, "--previous-consul-token-file=/t"], Err("needs --previous-consul-address")),
            (
                vec![catalog, "--consul-auth-method=kube", "--previous-registration=agent"],
                Err("give a token for the agent by --previous-consul-token-file"),
            ),
        ] {
            let run = <Run as clap::Parser>::try_parse_from(std::iter::once(&"lictor").chain(&flags)).unwrap();
            match (Settings::new(run.args).map(|settings| settings.previous), expected) {
                (Ok(found), Ok(expected)) => {
                    let found = found.map(|found| (found.registration, found.consul.addresses, found.cluster_name));
                    let expected = expected.map(|(mode, address, name)| {
                        (mode, vec![address.to_owned()], name.map(|name| ClusterName::new(name).unwrap()))
                    });
                    assert_eq!(found, expected, "{flags:?}");
                }
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{flags:?}: {error:#}"),
                (found, expected) => panic!("{flags:?}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_tenancy_is_given_by_names() {
        let some = |text: &str| Some(text.to_owned());
        for (flags, expected) in [
            (vec![], Ok(Tenancy::DEFAULT)),
            (vec!["--consul-namespace="], Ok(Tenancy::DEFAULT)),
            (vec!["--consul-datacenter=dc_2"], Ok(Tenancy { datacenter: some("dc_2"), ..Tenancy::DEFAULT })),
            (
                vec!["--consul-namespace=shop", "--consul-partition=eu"],
                Ok(Tenancy { datacenter: None, namespace: some("shop"), partition: some("eu") }),
            ),
            (vec!["--consul-datacenter=a b"], Err("--consul-datacenter \"a b\": 1 to 64")),
            (vec!["--consul-namespace=*"], Err("--consul-namespace \"*\": 1 to 64")),
            (vec!["--consul-partition=a&b"], Err("--consul-partition \"a&b\": 1 to 64")),
        ] {
            let run = <Run as clap::Parser>::try_parse_from(std::iter::once(&"lictor").chain(&flags)).unwrap();
            match (Settings::new(run.args).map(|settings| settings.consul.tenancy), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{flags:?}"),
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{flags:?}: {error:#}"),
                (found, expected) => panic!("{flags:?}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn tls_is_asked_for_as_consuls_own_tools_have_it() {
        for (address, expected) in [
            ("consul:8500", "https://consul:8500"),
            (" http://consul:8500", "https://consul:8500"),
            ("https://consul:8501", "https://consul:8501"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(over_tls(address), expected);
        }
        for (text, expected) in [("", Some(true)), ("TRUE", Some(true)), ("0", Some(false)), ("maybe", None)] {
            assert_eq!(boolean("it", text, true).ok(), expected, "{text}");
        }
    }
}

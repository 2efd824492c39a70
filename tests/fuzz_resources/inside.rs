//! From a resource to its registrations, in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lictor::cluster::convert::{self, ChecksRunBy, ResourceObject, Rules};
use lictor::model::check::Probe;
use lictor::model::desired::{Placement, desired};
use lictor::model::facts::{
    Attributes, ContainerKind, ContainerPort, Endpoint, Facts, Family, Node, Pod, PodRef, Protocol, Service,
    ServicePort, Slice, SlicePort,
};
use lictor::model::ids::{ClusterName, Identity, ResourceKey, Str};
use lictor::model::registration::Registration;
use lictor::model::resolve::{Before, resolve};
use lictor::model::resource::{Limits, Source, Spec};

use crate::author::{ANNOTATIONS, LABELS, PORTS, SERVICES};
use crate::resources::{Draft, Resources};
use crate::schema::Generator;

const SPECS: u64 = 10_000;

/// What must not have happened to any spec: a panic, or a registration that Consul would not take.
pub(crate) fn run(seed: u64) {
    let resources = Resources::new(seed);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for number in 0..SPECS {
        // What breaks the schema's rules need not fit Consul, but must not make us panic either.
        let careful = number % 4 != 0;
        let draft = if careful { resources.draw_carefully(number) } else { resources.draw(number, 0) };
        let mut generator = resources.chance(number);
        let tried = catch_unwind(AssertUnwindSafe(|| try_one(&draft, careful, &mut generator, &mut counts)));
        let failure = match tried {
            Ok(Ok(())) => continue,
            Ok(Err(wrong)) => wrong,
            Err(_) => "it panicked, see above".to_owned(),
        };
        panic!("seed {seed}, resource {number}: {failure}\n{:#}", draft.object());
    }
    println!("{SPECS} specs, by what became of them: {counts:#?}");
    let count = |what| counts.get(what).copied().unwrap_or_default();
    assert!(count("accepted") > SPECS / 2 && count("registrations") > SPECS / 3, "too little is tried: {counts:?}");
}

fn try_one(
    draft: &Draft,
    careful: bool,
    generator: &mut Generator,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Result<(), String> {
    let rules = rules(generator);
    let mut object = draft.object();
    object["metadata"]["generation"] = 1.into();
    let object: ResourceObject = serde_json::from_value(object).map_err(|error| error.to_string())?;
    let key = ResourceKey::new("shop", &draft.name);
    let seen = convert::resource(key.clone(), object, &rules);
    let spec = match &seen.resource.spec {
        Ok(spec) => spec,
        // The schema is as strict as we are.
        Err(refusal) if careful && ["Undecodable", "Invalid"].contains(&refusal.reason) => {
            return Err(refusal.message.clone());
        }
        Err(refusal) => {
            *counts.entry(refusal.reason).or_default() += 1;
            return Ok(());
        }
    };
    *counts.entry("accepted").or_default() += 1;
    let picture = Picture::new(generator, spec);
    let resolution = resolve(spec, &picture, &Before::nothing());
    let identity = Identity { cluster: ClusterName::new("fuzz").expect("a label"), uid: "uid".into() };
    let placement = if generator.rng.bool() {
        Placement::Agent { node: "agent".into() }
    } else {
        Placement::Catalog { cluster: identity.cluster.clone(), taken: std::sync::Arc::default() }
    };
    let desired = desired(&identity, &key, &"owner".into(), spec, &resolution.instances, &placement, |_| true);
    let asked_for = resolution.instances.iter().map(|instance| (instance.target(), instance.port));
    let asked_for: BTreeSet<_> = asked_for.collect();
    if asked_for.len() != resolution.instances.len() {
        return Err(format!("instances that share an ID: {:?}", resolution.instances));
    }
    *counts.entry("registrations").or_default() += desired.len() as u64;
    for (row, registration) in desired.iter().filter(|_| careful) {
        within_limits(registration).map_err(|wrong| format!("{row}: {wrong}: {registration:?}"))?;
    }
    Ok(())
}

fn rules(generator: &mut Generator) -> Rules {
    Rules {
        class: None,
        checks: [ChecksRunBy::Agent, ChecksRunBy::Esm, ChecksRunBy::Nobody][generator.rng.usize(..3)],
        limits: Limits { verify_endpoints: generator.chance(20), ..Limits::default() },
    }
}

/// Consul's limits, and ours where it has none.
fn within_limits(registration: &Registration) -> Result<(), String> {
    let holds = |what: &str, fine: bool| if fine { Ok(()) } else { Err(what.to_owned()) };
    let plain = |text: &str| !text.chars().any(char::is_control);
    let named = |key: &str| {
        (1..=128).contains(&key.len()) && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    let reserved = |key: &str| key.to_ascii_lowercase().starts_with("consul-");
    let service = &*registration.service;
    holds(
        "its name",
        (1..=255).contains(&service.len()) && service.is_ascii() && plain(service) && service.trim() == service,
    )?;
    holds("Consul's own name", !service.eq_ignore_ascii_case("consul"))?;
    holds("its address", registration.address.parse::<IpAddr>().is_ok())?;
    holds("its port", registration.port > 0)?;
    holds("its weights", registration.weights.passing > 0)?;
    let tags: BTreeSet<&str> = registration.tags.iter().map(|tag| &**tag).collect();
    holds("a tag that comes twice", tags.len() == registration.tags.len())?;
    for tag in tags {
        holds("a tag", (1..=1024).contains(&tag.len()) && plain(tag))?;
    }
    holds("its number of pairs", registration.meta.iter().count() <= 64)?;
    for (key, value) in registration.meta.iter() {
        holds("a key of its metadata", named(key) && !reserved(key))?;
        holds("a value of its metadata", value.len() <= 512)?;
    }
    for (key, tagged) in &*registration.tagged_addresses {
        let of_one_family = key.strip_prefix("lan_ipv").or_else(|| key.strip_prefix("wan_ipv"));
        let family = if tagged.address.contains(':') { "6" } else { "4" };
        holds("an address of the wrong family", of_one_family.is_none_or(|digit| digit == family))?;
        holds("the name of a tagged address", named(key) && !reserved(key))?;
        holds("a tagged address", tagged.address.parse::<IpAddr>().is_ok() && tagged.port > 0)?;
    }
    let placed = registration.checks.placed();
    holds("two checks of one name", registration.checks.names().len() == placed.len())?;
    for placed in placed {
        holds("the port of a check", placed.port > 0)?;
        if let Probe::Http { path, headers, .. } = &placed.check.probe {
            holds("the path of a check", path.starts_with('/'))?;
            holds("a header of a check", headers.iter().all(|(name, _)| !name.is_empty()))?;
        }
    }
    Ok(())
}

/// What is there to be found.
struct Picture {
    namespace: Str,
    services: BTreeMap<Str, Service>,
    slices: BTreeMap<Str, Vec<Slice>>,
    pods: BTreeMap<Str, Pod>,
    picked: BTreeSet<Str>,
    nodes: BTreeMap<Str, Node>,
}

impl Picture {
    fn new(generator: &mut Generator, spec: &Spec) -> Self {
        let pods: BTreeMap<Str, Pod> =
            (0..generator.rng.u8(..8)).map(|number| (format!("pod-{number}").into(), pod(generator, number))).collect();
        let mut services = BTreeMap::new();
        let mut slices: BTreeMap<Str, Vec<Slice>> = BTreeMap::new();
        for name in SERVICES {
            if generator.chance(20) {
                continue;
            }
            let service = service(generator);
            let many = generator.rng.usize(..4);
            slices.insert(name.into(), (0..many).map(|_| slice(generator, name, &service.ports, &pods)).collect());
            services.insert(name.into(), service);
        }
        let matches = |pod: &Pod| match &spec.source {
            Source::Pods { selector } => selector.matches(|key| pod.labels.get(key)),
            Source::Service { .. } | Source::Static { .. } => false,
        };
        let picked = pods.iter().filter(|(_, pod)| matches(pod)).map(|(name, _)| name.clone()).collect();
        let node = Node { address: None, zone: Some("zone-1".into()), region: None };
        Self { namespace: "shop".into(), services, slices, pods, picked, nodes: [("node-0".into(), node)].into() }
    }
}

fn port_name(generator: &mut Generator) -> Str {
    generator.pick(&["", "http", "grpc", "a", "b"]).into()
}

fn port(generator: &mut Generator) -> u16 {
    PORTS[generator.rng.usize(..PORTS.len())]
}

fn protocol(generator: &mut Generator) -> Protocol {
    [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp][generator.rng.usize(..4)]
}

fn service(generator: &mut Generator) -> Service {
    let many = *generator.pick(&[&0, &1, &1, &1, &2, &3]);
    Service {
        family: [None, Some(Family::V4), Some(Family::V6)][generator.rng.usize(..3)],
        selects: generator.rng.bool(),
        external_name: generator.chance(5),
        ports: (0..many)
            .map(|_| ServicePort { name: port_name(generator), protocol: protocol(generator), number: port(generator) })
            .collect(),
    }
}

fn slice(generator: &mut Generator, service: &str, ports: &[ServicePort], pods: &BTreeMap<Str, Pod>) -> Slice {
    let family = [Family::V4, Family::V4, Family::V4, Family::V6, Family::V6, Family::Fqdn][generator.rng.usize(..6)];
    let mut endpoints = Vec::new();
    for (name, pod) in pods {
        let of_family = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
        let Some(address) = pod.addresses.iter().find(of_family) else { continue };
        endpoints.push(Endpoint {
            address: *address,
            ready: generator.chance(80),
            serving: generator.chance(80),
            terminating: generator.chance(10),
            node: pod.node.clone(),
            pod: generator.chance(80).then(|| PodRef { name: name.clone(), uid: pod.uid.clone() }),
        });
    }
    let has = |_: &&ServicePort| generator.chance(90);
    let ports = ports.iter().filter(has).cloned().collect::<Vec<_>>();
    let ports = ports.into_iter().map(|ServicePort { name, protocol, .. }| SlicePort {
        name,
        protocol,
        number: port(generator),
    });
    let ports = ports.collect();
    Slice { service: service.into(), family, ports, endpoints }
}

fn pod(generator: &mut Generator, number: u8) -> Pod {
    let mut addresses: Vec<IpAddr> = vec![format!("10.0.0.{number}").parse().expect("an address")];
    if generator.rng.bool() {
        addresses.push(format!("2001:db8::{number:x}").parse().expect("an address"));
    }
    generator.rng.shuffle(&mut addresses);
    addresses.truncate(*generator.pick(&[&0, &1, &1, &2, &2]));
    let many = *generator.pick(&[&0, &1, &1, &1, &2, &3]);
    let mut labels = BTreeMap::<Str, Str>::new();
    for (key, values) in LABELS {
        if generator.chance(70) {
            labels.insert(key.into(), generator.pick(&values).into());
        }
    }
    let labels =
        Attributes::look_for(&Arc::new(LABELS.map(|(key, _)| key.into()).into()), |key| labels.get(key).cloned());
    let (mut looked_for, mut there) = (BTreeSet::<Str>::new(), BTreeMap::<Str, Str>::new());
    for key in ANNOTATIONS {
        let length = *generator.pick(&[&3, &200, &600]);
        if generator.chance(80) {
            there.insert(key.into(), generator.any_text(0, length).into());
        }
        if generator.chance(90) {
            looked_for.insert(key.into());
        }
    }
    let annotations = Attributes::look_for(&Arc::new(looked_for), |key| there.get(key).cloned());
    Pod {
        uid: format!("uid-{number}").into(),
        addresses,
        ready: generator.chance(80),
        leaving: generator.chance(10),
        node: generator.chance(80).then(|| format!("node-{}", number % 2).into()),
        ports: (0..many)
            .map(|_| ContainerPort {
                name: port_name(generator),
                protocol: protocol(generator),
                number: port(generator),
                of: *generator.pick(&[&ContainerKind::Main, &ContainerKind::Own, &ContainerKind::Beside]),
            })
            .collect(),
        labels,
        annotations,
    }
}

impl Facts for Picture {
    fn namespace(&self) -> &Str {
        &self.namespace
    }

    fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> + Clone {
        self.slices.get(service).into_iter().flatten()
    }

    fn matching(&self) -> impl Iterator<Item = (&Str, &Pod)> + Clone {
        self.picked.iter().filter_map(|name| self.pods.get_key_value(name))
    }

    fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.get(name)
    }

    fn has_pod_at(&self, address: IpAddr) -> bool {
        self.pods.values().any(|pod| pod.addresses.contains(&address))
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }
}

use super::resolve as resolve_after;
use super::*;
use crate::model::check::{Check, CheckSpec, Probe};
use crate::model::facts::{
    Attributes, ContainerKind, ContainerPort, Endpoint, Family, Node, PodKey, Protocol, Service, ServicePort, Slice,
    SlicePort,
};
use crate::model::registration::Weights;
use crate::model::resource::{Limits, Readiness};
use crate::model::selector::Selector;
use crate::model::template::Template;

/// A namespace, by hand.
#[derive(Default)]
struct Known {
    namespace: Option<Str>,
    services: BTreeMap<Str, Service>,
    slices: Vec<Slice>,
    pods: BTreeMap<Str, Pod>,
    nodes: BTreeMap<Str, Node>,
}

impl Facts for Known {
    fn namespace(&self) -> &Str {
        self.namespace.as_ref().unwrap()
    }

    fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> + Clone {
        let service = service.to_owned();
        self.slices.iter().filter(move |slice| *slice.service == *service)
    }

    fn matching(&self) -> impl Iterator<Item = (&Str, &Pod)> + Clone {
        self.pods.iter()
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

/// Resolves for a resource of which nothing is known yet.
fn resolve(spec: &Spec, facts: &Known) -> Resolution {
    resolve_after(spec, facts, &Before::nothing())
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn six(last: u8) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        address: address(last),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".into()),
        pod: Some(PodRef { name: format!("p{last}").into(), uid: format!("u{last}").into() }),
    }
}

fn slice(port: (&str, u16), endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        service: "web".into(),
        family: Family::V4,
        ports: vec![SlicePort { name: port.0.into(), protocol: Protocol::Tcp, number: port.1 }],
        endpoints,
    }
}

fn service(ports: &[(&str, u16)]) -> Service {
    let ports = ports
        .iter()
        .map(|(name, number)| ServicePort { name: (*name).into(), protocol: Protocol::Tcp, number: *number })
        .collect();
    Service { family: Some(Family::V4), selects: false, external_name: false, ports }
}

fn pod(last: u8, ports: &[(&str, u16)]) -> (Str, Pod) {
    let ports = ports
        .iter()
        .map(|(name, number)| ContainerPort {
            name: (*name).into(),
            protocol: Protocol::Tcp,
            number: *number,
            of: ContainerKind::Own,
        })
        .collect();
    let pod = Pod {
        uid: format!("u{last}").into(),
        addresses: vec![address(last), six(last)],
        ready: true,
        leaving: false,
        node: Some("n1".into()),
        ports,
        labels: [("version".into(), format!("{last}.0").into())].into_iter().collect(),
        annotations: Attributes::default(),
    };
    (format!("p{last}").into(), pod)
}

pub(super) fn web() -> Spec {
    from(Source::Service { name: "web".into() })
}

fn from(source: Source) -> Spec {
    Spec {
        service: "web".into(),
        source,
        port: None,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        tagged_addresses: Arc::default(),
        enable_tag_override: false,
        dual_stack: false,
        readiness: Readiness::Mirror,
        checks: Vec::new(),
        limits: Limits::default(),
    }
}

fn known(service: Service, slices: Vec<Slice>) -> Known {
    Known { namespace: Some("shop".into()), services: [("web".into(), service)].into(), slices, ..Known::default() }
}

fn found(resolution: &Resolution) -> Vec<(String, u16, bool)> {
    resolution.instances.iter().map(|i| (i.target().to_string(), i.port, i.ready)).collect()
}

fn left_out(resolution: &Resolution) -> Vec<(&str, ProblemReason)> {
    resolution.left_out.iter().map(|problem| (problem.instance.as_str(), problem.reason)).collect()
}

/// A registration as far as a hold looks at it.
fn row(address: &str, source: &str) -> Registration {
    Registration { meta: [(meta::SOURCE.into(), source.into())].into(), ..Registration::plain("s", address, 80) }
}

#[test]
fn slices_are_united_and_each_endpoint_counts_once() {
    let unready = Endpoint { ready: false, ..endpoint(2) };
    let slices = vec![
        slice(("http", 8080), vec![endpoint(1), unready]),
        slice(("http", 9090), vec![endpoint(3)]),
        slice(("http", 8080), vec![endpoint(2)]),
    ];
    let resolution = resolve(&web(), &known(service(&[("http", 80)]), slices));
    assert_eq!(resolution.unresolved, None);
    let expected = [("u1", 8080, true), ("u2", 8080, true), ("u3", 9090, true)];
    assert_eq!(found(&resolution), expected.map(|(t, p, r)| (t.to_owned(), p, r)));
}

#[test]
fn a_terminating_endpoint_leaves_at_once_unless_it_serves_and_none_is_ready() {
    let leaving = |last, serving| Endpoint { ready: false, serving, terminating: true, ..endpoint(last) };
    // With publishNotReadyAddresses, `ready` says nothing of one that terminates either.
    let published = |last, serving| Endpoint { ready: true, ..leaving(last, serving) };
    let unready = |last| Endpoint { ready: false, serving: false, ..endpoint(last) };
    let instance = |last: u8, ready| (format!("u{last}"), 8080, ready);
    for (endpoints, expected) in [
        (vec![leaving(1, true)], vec![instance(1, true)]),
        (vec![leaving(1, false)], vec![]),
        (vec![published(1, false)], vec![]),
        (vec![leaving(1, true), leaving(2, true), leaving(3, false)], vec![instance(1, true), instance(2, true)]),
        (vec![leaving(1, true), endpoint(2)], vec![instance(2, true)]),
        (vec![published(1, true), endpoint(2)], vec![instance(2, true)]),
        (vec![leaving(1, true), unready(2)], vec![instance(1, true), instance(2, false)]),
        // Its address is another one's already.
        (vec![leaving(1, true), Endpoint { pod: endpoint(2).pod, ..unready(1) }], vec![instance(2, false)]),
    ] {
        let known = known(service(&[("http", 80)]), vec![slice(("http", 8080), endpoints.clone())]);
        let resolution = resolve(&web(), &known);
        assert_eq!(found(&resolution), expected, "{endpoints:?}");
        assert_eq!((resolution.unresolved, resolution.hold), (None, Hold::Nothing));
        // While the port is not clear, the same ones stay as they are.
        let unclear = resolve(&Spec { port: Some(PortRef::Number(1)), ..web() }, &known);
        for last in 1..4 {
            let held = unclear.hold.holds(&row(&address(last).to_string(), "service/web"));
            let is_there = endpoints.iter().any(|endpoint| {
                endpoint.address == address(last) && (!endpoint.terminating || expected.contains(&instance(last, true)))
            });
            assert_eq!(held, is_there, "{last} of {endpoints:?}");
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.terminating) {
            let left = remains(&web(), &row(&endpoint.address.to_string(), "service/web"), &known);
            let expected = if endpoint.serving { Remains::Serving } else { Remains::Nothing };
            assert_eq!(left, expected, "{endpoint:?}");
        }
    }
}

#[test]
fn one_that_serves_and_has_not_the_ready_ones_port_stays() {
    let leaving = Endpoint { ready: false, terminating: true, ..endpoint(1) };
    let slices = vec![slice(("http", 8080), vec![leaving]), slice(("other", 8080), vec![endpoint(2)])];
    let resolution = resolve(&web(), &known(service(&[("http", 80)]), slices));
    assert_eq!(found(&resolution), [("u1".to_owned(), 8080, true)]);
    assert_eq!(left_out(&resolution), [("p2", ProblemReason::PortNotFound)]);
}

#[test]
fn ready_is_as_the_slice_says_it() {
    let endpoints = vec![Endpoint { serving: false, ..endpoint(1) }, Endpoint { ready: false, ..endpoint(2) }];
    let resolution = resolve(&web(), &known(service(&[("http", 80)]), vec![slice(("http", 8080), endpoints)]));
    assert_eq!(found(&resolution), [("u1".to_owned(), 8080, true), ("u2".to_owned(), 8080, false)]);
}

#[test]
fn a_port_is_found_by_name_by_the_services_number_or_alone() {
    let known = known(service(&[("http", 80), ("grpc", 90)]), vec![slice(("grpc", 9000), vec![endpoint(1)])]);
    for port in [PortRef::Name("grpc".into()), PortRef::Number(90)] {
        let spec = Spec { port: Some(port), ..web() };
        assert_eq!(found(&resolve(&spec, &known)), [("u1".to_owned(), 9000, true)]);
    }
    for port in [None, Some(PortRef::Number(9000)), Some(PortRef::Name("web".into()))] {
        let resolution = resolve(&Spec { port, ..web() }, &known);
        assert_eq!(resolution.unresolved.unwrap().reason, "PortNotFound");
        assert!(resolution.hold.holds(&row("10.0.0.1", "service/web")), "a living endpoint stays as it was");
        assert!(!resolution.hold.holds(&row("10.0.0.2", "service/web")), "a dead one does not");
    }
}

#[test]
fn an_endpoint_whose_slice_lacks_the_port_stays_as_registered() {
    let leaving = Endpoint { terminating: true, ..endpoint(3) };
    let slices = vec![slice(("web", 8080), vec![endpoint(1)]), slice(("http", 8080), vec![endpoint(2), leaving])];
    // The Service's port was renamed, and one slice has followed.
    let resolution = resolve(&web(), &known(service(&[("web", 80)]), slices));
    assert_eq!(found(&resolution), [("u1".to_owned(), 8080, true)]);
    assert_eq!(left_out(&resolution), [("p2", ProblemReason::PortNotFound)]);
    assert!(resolution.hold.holds(&row("10.0.0.2", "service/web")), "it lives");
    assert!(!resolution.hold.holds(&row("10.0.0.3", "service/web")), "it terminates");
}

/// A port of a Service, and the same as a slice has it.
fn port_of(name: &str, protocol: Protocol, number: u16, target: u16) -> (ServicePort, SlicePort) {
    let service = ServicePort { name: name.into(), protocol, number };
    (service, SlicePort { name: name.into(), protocol, number: target })
}

#[test]
fn of_one_number_tcp_is_meant_and_otherwise_a_name() {
    use Protocol::{Sctp, Tcp, Udp};
    let resolve_with = |ports: &[(ServicePort, SlicePort)], port| {
        let (of_service, of_slice) = ports.iter().cloned().unzip();
        let slices = vec![Slice { ports: of_slice, ..slice(("", 0), vec![endpoint(1)]) }];
        let known = known(Service { ports: of_service, ..service(&[]) }, slices);
        resolve(&Spec { port: Some(port), ..web() }, &known)
    };
    let (quic, https) = (port_of("quic", Udp, 443, 8843), port_of("https", Tcp, 443, 8443));
    let (a, b) = (port_of("a", Udp, 53, 5353), port_of("b", Sctp, 53, 5354));
    let by = |name: &str| PortRef::Name(name.into());
    for (ports, port, number) in [
        (&[quic.clone(), https.clone()][..], PortRef::Number(443), 8443),
        (&[quic.clone(), https], by("quic"), 8843),
        (&[quic], PortRef::Number(443), 8843),
        (&[a.clone(), b.clone()], by("b"), 5354),
    ] {
        assert_eq!(found(&resolve_with(ports, port)), [("u1".to_owned(), number, true)]);
    }
    let unclear = resolve_with(&[a.clone(), b], PortRef::Number(53));
    let why = unclear.unresolved.unwrap();
    assert_eq!(why.reason, "PortNotFound");
    assert!(why.message.ends_with("its ports: 53/UDP (a), 53/SCTP (b)"), "{}", why.message);
    assert!(unclear.hold.holds(&row("10.0.0.1", "service/web")));

    // A slice's port of that name and another protocol is another port.
    let other = (a.0, SlicePort { protocol: Tcp, ..a.1 });
    assert_eq!(resolve_with(&[other], by("a")).unresolved.unwrap().reason, "PortNotFound");
}

/// A Service's ports, and the ports and the last parts of the addresses of a slice, as in `http 80, metrics 90`,
/// `http 8080 @ 1 2`.
fn web_with(ports: &str, in_slice: &str) -> Known {
    let parse = |ports: &str| -> Vec<(ServicePort, SlicePort)> {
        let each = ports.split(", ").filter_map(|port| port.split_once(' '));
        let number = |number: &str| number.parse().unwrap();
        each.map(|(name, n)| port_of(name, Protocol::Tcp, number(n), number(n))).collect()
    };
    let (of_slice, addresses) = in_slice.split_once(" @ ").unwrap();
    let of_slice = parse(of_slice).into_iter().map(|(_, port)| port).collect();
    let endpoints = addresses.split(' ').map(|last| endpoint(last.parse().unwrap())).collect();
    let of_service = parse(ports).into_iter().map(|(port, _)| port).collect();
    let service = Service { ports: of_service, ..service(&[]) };
    known(service, vec![Slice { ports: of_slice, ..slice(("", 0), endpoints) }])
}

#[test]
fn a_port_that_is_registered_goes_on_by_its_name() {
    let two = "http 80, metrics 90";
    // A slice of the Service, what is registered, what the status says, and where it goes on.
    for (case, ports, in_slice, registered, told, expected) in [
        ("nothing is known", two, "http 8080, metrics 9090 @ 1 2", "", "", ""),
        ("it is said", two, "http 8080, metrics 9090 @ 3 4", "", "http", "8080 http"),
        ("also by an old status", two, "http 8080, metrics 9090 @ 3", "", "old http", "8080 http"),
        ("its number changed", two, "http 1, metrics 2 @ 3", "1:8080", "http", "1 http"),
        ("numbers are exchanged", two, "http 9090, metrics 8080 @ 1", "1:8080", "http", "9090 http"),
        ("it had no name", two, "http 8080, metrics 9090 @ 3", "", "#80", "8080 http"),
        ("it is registered", two, "http 8080, metrics 9090 @ 1 2", "1:8080", "", "8080 http"),
        ("no slice has followed", two, "http 8080 @ 1", "1:8080", "", "8080 http"),
        ("it is not what an old status says", two, "http 8080, metrics 9090 @ 1", "1:9090", "old http", "9090 metrics"),
        ("but what the present one says", two, "http 8080, metrics 9090 @ 1", "1:9090", "http", "8080 http"),
        ("most are", two, "http 8080, metrics 9090 @ 1 2 3", "1:8080 2:9090 3:9090", "", "9090 metrics"),
        ("as many, and it is the first", two, "http 8080, metrics 9090 @ 1 2", "1:9090 2:8080", "", "8080 http"),
        ("all addresses are new", two, "http 8080, metrics 9090 @ 3 4", "1:9090 2:9090", "", "9090 metrics"),
        ("and so is the number", two, "http 8080, metrics 9090 @ 3 4", "1:7070", "", ""),
        ("it was renamed", "web 1, metrics 90", "web 8080, metrics 9090 @ 1", "1:8080", "http", "8080 web"),
        (
            "and no slice has followed",
            "web 1, metrics 90",
            "http 8080, metrics 9090 @ 1",
            "1:8080",
            "http",
            "none http",
        ),
        ("it is there no more", "a 1, b 2", "a 11, b 12 @ 3", "1:8080", "http", "none http"),
    ] {
        let in_use = |text: &str| PortInUse {
            source: "service/web".into(),
            port: match text.strip_prefix('#') {
                Some(number) => PortRef::Number(number.parse().unwrap()),
                None => PortRef::Name(text.into()),
            },
        };
        let registration = |text: &str| {
            let (last, port) = text.split_once(':').unwrap();
            Registration { port: port.parse().unwrap(), ..row(&format!("10.0.0.{last}"), "service/web") }
        };
        let rows: Vec<Registration> = registered.split_terminator(' ').map(registration).collect();
        let is_present = !told.starts_with("old ");
        let told = Some(told.trim_start_matches("old ")).filter(|told| !told.is_empty()).map(in_use);
        let known = web_with(ports, in_slice);
        let before = Before { told: told.as_ref(), is_present, registered: rows.iter(), noted: None };
        let resolution = resolve_after(&web(), &known, &before);
        let (port, name) = expected.split_once(' ').unwrap_or_default();
        assert_eq!(resolution.port_in_use, Some(name).filter(|name| !name.is_empty()).map(in_use), "{case}");
        if let Ok(port) = port.parse::<u16>() {
            let all: Vec<u16> = resolution.instances.iter().map(|instance| instance.port).collect();
            assert_eq!(all, vec![port; known.slices[0].endpoints.len()], "{case}");
            let reasons: Vec<&str> = resolution.remarks.iter().map(|remark| remark.reason).collect();
            assert_eq!(reasons, ["PortNotNamed"], "{case}");
        } else {
            assert_eq!(resolution.unresolved.map(|why| why.reason), Some("PortNotFound"), "{case}");
        }
    }
}

#[test]
fn what_a_status_says_of_a_port_is_of_one_source_and_a_spec_that_names_none() {
    let known = web_with("http 80, metrics 90", "http 8080, metrics 9090 @ 1");
    let told = |source: &str| PortInUse { source: source.into(), port: PortRef::Name("http".into()) };
    let after = |spec: &Spec, known: &Known, told: &PortInUse| {
        resolve_after(spec, known, &Before { told: Some(told), is_present: true, ..Before::nothing() })
    };
    assert!(after(&web(), &known, &told("service/api")).unresolved.is_some());
    let named = Spec { port: Some(PortRef::Name("metrics".into())), ..web() };
    let resolution = after(&named, &known, &told("service/web"));
    assert_eq!(found(&resolution), [("u1".to_owned(), 9090, true)]);
    assert_eq!((resolution.port_in_use, resolution.remarks), (None, Vec::new()));

    // The only port is the one in use, whatever was before; without a Service it stays known.
    let only = web_with("metrics 90", "metrics 9090 @ 1");
    let resolution = after(&web(), &only, &told("service/web"));
    let metrics = PortInUse { port: PortRef::Name("metrics".into()), ..told("service/web") };
    assert_eq!((resolution.port_in_use, resolution.remarks), (Some(metrics), Vec::new()));
    assert_eq!(after(&web(), &Known::default(), &told("service/web")).port_in_use, Some(told("service/web")));

    // What was registered of another source tells by its address alone.
    let row = |last: u8| Registration { port: 9090, ..row(&address(last).to_string(), "pods") };
    let registered = |row: &Registration| {
        let before = Before { told: None, is_present: false, registered: std::iter::once(row), noted: None };
        found(&resolve_after(&web(), &known, &before))
    };
    assert_eq!(registered(&row(1)), [("u1".to_owned(), 9090, true)]);
    assert_eq!(registered(&row(2)), []);
}

#[test]
fn a_port_that_goes_on_is_said_with_the_others() {
    let known = web_with("http 80, metrics 90, admin 91", "http 8080 @ 1");
    let told = PortInUse { source: "service/web".into(), port: PortRef::Name("http".into()) };
    let before = Before { told: Some(&told), is_present: true, ..Before::nothing() };
    let remarks = resolve_after(&web(), &known, &before).remarks;
    assert_eq!(
        remarks[0].message,
        "Service \"web\" has several ports, and spec.port names none: Lictor keeps 80 (http), which it registered before; \
         other ports: 90 (metrics), 91 (admin); set spec.port to one of them"
    );
}

#[test]
fn the_ports_of_an_endpoint_are_those_of_all_its_slices() {
    let by_hand = |last| Endpoint { pod: None, ..endpoint(last) };
    let spec = Spec {
        port: Some(PortRef::Name("http".into())),
        tags: vec![Template::parse("${ports['metrics']}").unwrap()],
        ..web()
    };
    let resolve_with = |slices| resolve(&spec, &known(service(&[("http", 80), ("metrics", 90)]), slices));
    let (http, metrics) = (("http", 8080), ("metrics", 9999));
    for (one, other, target) in [
        (by_hand(1), by_hand(1), "10.0.0.1"),
        (endpoint(1), endpoint(1), "u1"),
        (endpoint(1), by_hand(1), "u1"),
        (by_hand(1), endpoint(1), "10.0.0.1"),
    ] {
        for slices in [
            vec![slice(http, vec![one.clone()]), slice(metrics, vec![other.clone()])],
            vec![slice(metrics, vec![other.clone()]), slice(http, vec![one.clone()])],
        ] {
            let resolution = resolve_with(slices);
            assert_eq!(found(&resolution), [(target.to_owned(), 8080, true)]);
            assert_eq!((left_out(&resolution), &resolution.unresolved), (vec![], &None));
            assert_eq!(&*spec.tags[0].render(&resolution.instances[0].values), "9999");
        }
    }

    // Two pods in their node's network are two endpoints: neither has the other's ports.
    let second = Endpoint { pod: endpoint(2).pod, ..endpoint(1) };
    let resolution = resolve_with(vec![slice(http, vec![endpoint(1)]), slice(metrics, vec![second])]);
    assert_eq!(found(&resolution), [("u1".to_owned(), 8080, true)]);
    assert_eq!(left_out(&resolution), [("p2", ProblemReason::PortNotFound)]);
}

#[test]
fn one_address_with_two_numbers_is_two_instances_and_its_pod_counts_once() {
    let by_hand = Endpoint { pod: None, ..endpoint(1) };
    let resolve_with = |slices| found(&resolve(&web(), &known(service(&[("http", 80)]), slices)));
    let two = vec![slice(("http", 8080), vec![by_hand.clone()]), slice(("http", 9090), vec![by_hand.clone()])];
    assert_eq!(resolve_with(two), [("10.0.0.1".to_owned(), 8080, true), ("10.0.0.1".to_owned(), 9090, true)]);
    let one = vec![slice(("http", 8080), vec![by_hand]), slice(("http", 8080), vec![endpoint(1)])];
    assert_eq!(resolve_with(one), [("u1".to_owned(), 8080, true)]);
}

#[test]
fn without_its_service_a_spec_keeps_what_another_one_registered() {
    let resolution = resolve(&web(), &Known::default());
    assert_eq!(resolution.unresolved.unwrap().reason, "ServiceNotFound");
    assert!(!resolution.hold.holds(&row("10.0.0.1", "service/web")), "went with its Service");
    assert!(resolution.hold.holds(&row("10.0.0.1", "service/other")), "the new name may be mistyped");
}

#[test]
fn the_primary_family_counts_and_the_other_only_beside_it() {
    let ours = slice(("http", 80), vec![endpoint(1), endpoint(2)]);
    let other = Endpoint { address: six(1), ..endpoint(1) };
    let theirs = Slice { family: Family::V6, ..slice(("http", 80), vec![other]) };
    let known = known(service(&[("http", 80)]), vec![theirs, ours]);
    let others = |spec: &Spec| resolve(spec, &known).instances.iter().map(|i| i.other_address).collect::<Vec<_>>();
    assert_eq!(others(&web()), [None, None]);
    assert_eq!(others(&Spec { dual_stack: true, ..web() }), [Some(six(1)), None]);
}

#[test]
fn the_other_family_counts_where_nothing_else_stands_for_it() {
    let of_six = |last, pod: Option<PodRef>| Endpoint { address: six(last), pod, ..endpoint(last) };
    let sixes = |endpoints| Slice { family: Family::V6, ..slice(("http", 80), endpoints) };
    let unready = |endpoint| Endpoint { ready: false, serving: false, ..endpoint };
    let leaving = |endpoint| Endpoint { ready: false, terminating: true, ..endpoint };
    let by_hand = |last| Endpoint { pod: None, ..endpoint(last) };
    let six_of = |last: u8| of_six(last, endpoint(last).pod);
    for (selects, v4, v6, expected, said) in [
        // A hand-made IPv6 slice of a headless Service, which has both families by default.
        (false, vec![], vec![of_six(1, None), six_of(2)], vec!["fd00::1", "u2"], None),
        // The same pod in both is one instance, at its address of the first family.
        (true, vec![endpoint(1)], vec![six_of(1)], vec!["u1"], None),
        (true, vec![endpoint(1)], vec![six_of(1), six_of(2)], vec!["u1", "u2"], None),
        // Its slice of the first family is about to be written.
        (true, vec![endpoint(1)], vec![six_of(1), unready(six_of(2))], vec!["u1"], None),
        (false, vec![endpoint(1)], vec![six_of(1), unready(six_of(2))], vec!["u1", "u2"], None),
        // It leaves: its other address does not take its place.
        (true, vec![leaving(endpoint(1)), endpoint(2)], vec![six_of(1), six_of(2)], vec!["u2"], None),
        (false, vec![by_hand(1)], vec![of_six(1, None), of_six(2, None)], vec!["10.0.0.1"], Some("2 IPv6 endpoints")),
        (false, vec![leaving(by_hand(1))], vec![of_six(1, None)], vec!["10.0.0.1"], Some("1 IPv6 endpoints")),
    ] {
        let service = Service { selects, ..service(&[("http", 80)]) };
        let slices = vec![sixes(v6.clone()), slice(("http", 80), v4.clone())];
        let resolution = resolve(&web(), &known(service, slices));
        let targets: Vec<String> = found(&resolution).into_iter().map(|(target, ..)| target).collect();
        assert_eq!(targets, expected, "{v4:?} {v6:?}");
        let remarks: Vec<(&str, bool)> =
            resolution.remarks.iter().map(|r| (r.reason, r.message.starts_with(said.unwrap_or("?")))).collect();
        assert_eq!(remarks, said.map(|_| ("EndpointsPassedOver", true)).into_iter().collect::<Vec<_>>());
        let addresses: Vec<IpAddr> = resolution.instances.iter().map(|i| i.address).collect();
        if expected == ["u1", "u2"] {
            assert_eq!(addresses, [address(1), six(2)]);
        }
    }
}

#[test]
fn slices_of_host_names_are_told_of() {
    let names = Slice { family: Family::Fqdn, ..slice(("http", 80), Vec::new()) };
    let resolution = resolve(&web(), &known(service(&[("http", 80)]), vec![names.clone()]));
    assert_eq!(resolution.unresolved.unwrap().reason, "FQDNSlices");
    let beside = vec![names, slice(("http", 80), vec![endpoint(1)])];
    let resolution = resolve(&web(), &known(service(&[("http", 80)]), beside));
    assert_eq!((found(&resolution).len(), resolution.unresolved), (1, None));
    assert_eq!(resolution.remarks[0].reason, "EndpointsPassedOver");
}

#[test]
fn a_verified_endpoint_has_a_pod_at_its_address() {
    let by_hand = |last| Endpoint { pod: None, ..endpoint(last) };
    let elsewhere = Endpoint { address: address(9), ..endpoint(1) };
    let endpoints = vec![endpoint(1), endpoint(3), by_hand(2), by_hand(4), elsewhere];
    let pods = [pod(1, &[]), pod(2, &[])].into();
    // One has not the port either.
    let slices = vec![slice(("http", 8080), endpoints), slice(("metrics", 9000), vec![by_hand(6)])];
    let known = Known { pods, ..known(service(&[("http", 80)]), slices) };
    let spec = Spec { limits: Limits { verify_endpoints: true, ..Limits::default() }, ..web() };
    assert!(spec.needs().pods);
    let resolution = resolve(&spec, &known);
    let targets: Vec<String> = found(&resolution).into_iter().map(|(target, ..)| target).collect();
    assert_eq!(targets, ["10.0.0.2", "u1"]);
    let not = ProblemReason::NotVerified;
    assert_eq!(left_out(&resolution), [("10.0.0.4", not), ("10.0.0.6", not), ("p1", not), ("p3", not)]);
    assert_eq!(resolution.hold, Hold::Nothing, "what is not verified goes");
}

#[test]
fn what_has_no_pod_is_not_held_while_the_port_is_unclear() {
    let by_hand = |last| Endpoint { pod: None, ..endpoint(last) };
    let all = || vec![endpoint(1), endpoint(3), by_hand(2), by_hand(4)];
    let check = Check {
        name: "admin".into(),
        probe: Probe::Tcp { tls: None },
        interval: "10s".into(),
        timeout: "1s".into(),
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 0,
        notes: "".into(),
    };
    let check = CheckSpec { port: Some(PortRef::Name("admin".into())), check: Arc::new(check) };
    for (case, ports, asked, checks) in [
        ("the Service has not the port", &[("web", 80)][..], Some("http"), Vec::new()),
        ("the Service has several", &[("http", 80), ("metrics", 90)], None, Vec::new()),
        ("no slice has the port", &[("admin", 90)], Some("admin"), Vec::new()),
        ("the Service has not the port of a check", &[("http", 80)], Some("http"), vec![check]),
    ] {
        for (verify_endpoints, held) in [(false, &[1, 2, 3, 4][..]), (true, &[1, 2])] {
            let pods = [pod(1, &[]), pod(2, &[])].into();
            let known = Known { pods, ..known(service(ports), vec![slice(("http", 8080), all())]) };
            let limits = Limits { verify_endpoints, ..Limits::default() };
            let port = asked.map(|name| PortRef::Name(name.into()));
            let spec = Spec { limits, port, checks: checks.clone(), ..web() };
            let resolution = resolve(&spec, &known);
            assert_eq!(resolution.unresolved.map(|why| why.reason), Some("PortNotFound"), "{case}");
            let held = held.iter().map(|last| text(address(*last))).collect();
            assert_eq!(resolution.hold, Hold::Addresses(held), "{case}, {verify_endpoints}");
        }
    }
}

#[test]
fn values_come_with_the_pod_or_the_endpoint_waits_for_it() {
    let tag = Template::parse("${pod.labels['version']}-${pod.namespace}-${node.zone}-${ports['http']}").unwrap();
    let spec = Spec { tags: vec![tag.clone()], ..web() };
    let needs = spec.needs();
    assert!(needs.services && needs.pods && needs.nodes);
    let node = Node { address: None, zone: Some("z1".into()), region: None };
    let slices = vec![slice(("http", 8080), vec![endpoint(1), endpoint(2)])];
    let known = Known {
        pods: [pod(1, &[])].into(),
        nodes: [("n1".into(), node)].into(),
        ..known(service(&[("http", 80)]), slices)
    };
    let resolution = resolve(&spec, &known);
    let tags: Vec<Str> = resolution.instances.iter().map(|instance| tag.render(&instance.values)).collect();
    assert_eq!(tags, ["1.0-shop-z1-8080".into()]);
    assert_eq!(left_out(&resolution), [("p2", ProblemReason::PodNotSeen)]);
    assert!(resolution.hold.holds(&row("10.0.0.2", "service/web")), "as it was until its pod is seen");
    assert!(!resolution.hold.holds(&row("10.0.0.3", "service/web")));
}

#[test]
fn pods_are_picked_with_no_service() {
    let spec = from(Source::Pods { selector: Selector(Vec::new()) });
    let (ended, mut without) = (pod(3, &[("http", 80)]), pod(4, &[("http", 80)]));
    without.1.addresses.clear();
    let mut unready = pod(2, &[("http", 8080), ("", 8080)]);
    unready.1.ready = false;
    let ended = (ended.0, Pod { leaving: true, ready: false, ..ended.1 });
    let pods = [pod(1, &[("http", 80)]), unready, ended, without, pod(5, &[])].into();
    let known = Known { pods, ..Known::default() };
    let resolution = resolve(&spec, &known);
    assert_eq!(found(&resolution), [("u1".to_owned(), 80, true), ("u2".to_owned(), 8080, false)]);
    assert_eq!(left_out(&resolution), [("p5", ProblemReason::PortNotFound)]);

    let numbered = resolve(&Spec { port: Some(PortRef::Number(7)), ..spec.clone() }, &known);
    assert_eq!(found(&numbered).len(), 3, "a number needs no declared port");
    let dual = resolve(&Spec { dual_stack: true, ..spec.clone() }, &known);
    assert_eq!(dual.instances[0].other_address, Some(six(1)));

    let nowhere = resolve(&Spec { port: Some(PortRef::Name("grpc".into())), ..spec }, &known);
    assert_eq!(nowhere.unresolved.unwrap().reason, "PortNotFound");
    assert!(nowhere.hold.holds(&row("10.0.0.1", "pods")) && !nowhere.hold.holds(&row("10.0.0.3", "pods")));
}

#[test]
fn a_port_of_pods_goes_on_and_what_is_injected_is_not_meant() {
    // A pod's ports, those of its main container with `!` and those beside the app with `~`; what is registered at its
    // address 1 and elsewhere, what the status says, and where it goes on: with `?` where it should be named.
    for (case, ports, registered, told, expected) in [
        ("one port", "http 8080", "", "", "8080 http"),
        ("whatever the status says", "http 8080", "", "admin", "8080 http"),
        ("a mesh has ports of its own", "http 8080, ~prom 15090", "", "", "8080 http"),
        ("and the app is known", "http 8080, ~prom 15090", "1:8080", "http", "8080 http"),
        ("the app's is another one by now", "web 9000, ~prom 15090", "2:8080", "http", "9000 web"),
        ("all is beside the app", "~a 1, ~b 2", "", "", ""),
        ("the only one is beside the app", "~a 1", "", "", "1 a"),
        ("it stays although the app has one by now", "~a 1, b 2", "", "a", "1 a ?"),
        ("a sidecar that nobody knows", "http 8080, prom 9102", "", "", ""),
        ("and the status tells", "http 8080, prom 9102", "", "http", "8080 http ?"),
        ("of an earlier spec, too", "http 8080, prom 9102", "", "old http", "8080 http ?"),
        ("it had no name", "http 8080, prom 9102", "", "#8080", "8080 http ?"),
        ("it is registered", "http 8080, prom 9102", "1:9102", "", "9102 prom ?"),
        ("which tells more than an old status", "http 8080, prom 9102", "1:9102", "old http", "9102 prom ?"),
        ("and less than the present one", "http 8080, prom 9102", "1:9102", "http", "8080 http ?"),
        ("another pod is", "http 8080, prom 9102", "2:9102", "", "9102 prom ?"),
        ("it was renamed", "web 8080, prom 9102", "2:8080", "http", "8080 web ?"),
        ("another pod is at none of them", "http 8080, prom 9102", "2:7070", "", ""),
        ("the pod says which one is the app", "!http 8080, prom 9102", "", "", "8080 http"),
        ("which has several", "!http 8080, !admin 8081, prom 9102", "", "", ""),
        ("but what is registered goes on", "!http 8080, prom 9102", "", "prom", "9102 prom ?"),
    ] {
        let in_use = |text: &str| PortInUse {
            source: "pods".into(),
            port: match text.strip_prefix('#') {
                Some(number) => PortRef::Number(number.parse().unwrap()),
                None => PortRef::Name(text.into()),
            },
        };
        let container_port = |text: &str| {
            let (name, number) = text.split_once(' ').unwrap();
            let of = match name.as_bytes()[0] {
                b'!' => ContainerKind::Main,
                b'~' => ContainerKind::Beside,
                _ => ContainerKind::Own,
            };
            let name = name.trim_start_matches(['!', '~']).into();
            ContainerPort { name, protocol: Protocol::Tcp, number: number.parse().unwrap(), of }
        };
        let registration = |text: &str| {
            let (last, port) = text.split_once(':').unwrap();
            Registration { port: port.parse().unwrap(), ..row(&format!("10.0.0.{last}"), "pods") }
        };
        let rows: Vec<Registration> = registered.split_terminator(' ').map(registration).collect();
        let is_present = !told.starts_with("old ");
        let told = Some(told.trim_start_matches("old ")).filter(|told| !told.is_empty()).map(in_use);
        let (name, pod) = pod(1, &[]);
        let pod = Pod { ports: ports.split(", ").map(container_port).collect(), ..pod };
        let known = Known { pods: [(name, pod)].into(), ..Known::default() };
        let before = Before { told: told.as_ref(), is_present, registered: rows.iter(), noted: None };
        let resolution = resolve_after(&from(Source::Pods { selector: Selector(Vec::new()) }), &known, &before);
        let goes_on: Vec<&str> = expected.split_terminator(' ').collect();
        let found: Vec<String> = resolution.instances.iter().map(|instance| instance.port.to_string()).collect();
        assert_eq!(found, goes_on.first().copied().into_iter().collect::<Vec<_>>(), "{case}");
        let reasons: Vec<&str> = resolution.remarks.iter().map(|remark| remark.reason).collect();
        assert_eq!(reasons, goes_on.get(2).map(|_| "PortNotNamed").into_iter().collect::<Vec<_>>(), "{case}");
        assert_eq!(resolution.port_in_use, goes_on.get(1).map(|name| in_use(name)), "{case}");
        assert_eq!(resolution.unresolved.is_some(), goes_on.is_empty(), "{case}");
    }
}

#[test]
fn a_port_of_pods_that_goes_on_is_said_with_the_others() {
    let pods = [pod(1, &[("http", 8080)]), pod(2, &[("http", 8080), ("admin", 8081), ("", 9102)])].into();
    let known = Known { pods, ..Known::default() };
    let rows = [Registration { port: 8080, ..row("10.0.0.1", "pods") }];
    let before = Before { told: None, is_present: false, registered: rows.iter(), noted: None };
    let resolution = resolve_after(&from(Source::Pods { selector: Selector(Vec::new()) }), &known, &before);
    assert_eq!(found(&resolution), [("u1".to_owned(), 8080, true), ("u2".to_owned(), 8080, true)]);
    assert_eq!(
        resolution.remarks[0].message,
        "1 of the pods have several ports, and spec.port names none: Lictor keeps 8080 (http), which it registered before; \
         other ports of pod \"p2\": 8081 (admin), 9102; set spec.port to one of them"
    );
}

#[test]
fn the_last_pods_count_while_they_are_ready() {
    let spec = from(Source::Pods { selector: Selector(Vec::new()) });
    let of = |last, ready, leaving| {
        let (name, pod) = pod(last, &[("http", 80)]);
        (name, Pod { ready, leaving, ..pod })
    };
    let instance = |last: u8, ready| (format!("u{last}"), 80, ready);
    for (pods, expected) in [
        (vec![of(1, true, true)], vec![instance(1, true)]),
        (vec![of(1, false, true)], vec![]),
        (vec![of(1, true, true), of(2, false, false)], vec![instance(1, true), instance(2, false)]),
        (vec![of(1, true, true), of(2, true, false)], vec![instance(2, true)]),
    ] {
        let known = Known { pods: pods.into_iter().collect(), ..Known::default() };
        let resolution = resolve(&spec, &known);
        assert_eq!((found(&resolution), left_out(&resolution)), (expected, vec![]));
    }
    let mut there = row("10.0.0.1", "pods");
    there.meta.insert(meta::POD.into(), "p1".into());
    for (pod, left) in [
        (of(1, true, true), Remains::Serving),
        (of(1, false, true), Remains::Nothing),
        (of(1, false, false), Remains::Living),
        (of(2, true, true), Remains::Nothing),
    ] {
        let known = Known { pods: [pod.clone()].into(), ..Known::default() };
        assert_eq!(remains(&spec, &there, &known), left, "{pod:?}");
    }
}

#[test]
fn what_was_not_looked_for_in_a_pod_is_waited_for() {
    let of: [(&str, PodKey); 2] = [
        ("${pod.annotations['team']}", PodKey::Annotation("team".into())),
        ("${pod.labels['team']}", PodKey::Label("team".into())),
    ];
    for (text, key) in of {
        let tag = Template::parse(text).unwrap();
        let spec = Spec { tags: vec![tag.clone()], ..from(Source::Pods { selector: Selector(Vec::new()) }) };
        assert_eq!(spec.needs().of_pods, [key.clone()].into());
        let (name, unread) = pod(1, &[("http", 80)]);
        let resolve_with = |of: Attributes| {
            let pod = match key {
                PodKey::Label(_) => Pod { labels: of, ..unread.clone() },
                PodKey::Annotation(_) => Pod { annotations: of, ..unread.clone() },
            };
            resolve(&spec, &Known { pods: [(name.clone(), pod)].into(), ..Known::default() })
        };
        let looked_for =
            |value: Option<&str>| Attributes::look_for(&Arc::new(["team".into()].into()), |_| value.map(Str::from));
        let waits = resolve_with(Attributes::default());
        assert_eq!((left_out(&waits), found(&waits).len()), (vec![("p1", ProblemReason::PodNotSeen)], 0), "{text}");
        assert!(waits.hold.holds(&row("10.0.0.1", "pods")));
        assert_eq!(found(&resolve_with(looked_for(None))).len(), 1, "it has none");
        let has = resolve_with(looked_for(Some("a")));
        assert_eq!(&*tag.render(&has.instances[0].values), "a");
    }
}

#[test]
fn what_runs_elsewhere_is_where_the_author_says() {
    let given = StaticAddress { address: address(7), port: 443, own: Arc::default() };
    let resolution = resolve(&from(Source::Static { addresses: vec![given] }), &Known::default());
    assert_eq!(found(&resolution), [("10.0.0.7".to_owned(), 443, true)]);
}

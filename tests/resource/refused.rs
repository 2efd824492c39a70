//! What the apiserver refuses. Each row is tested there, and stands in `docs/refusals.md` with the answer.

/// Something that the apiserver refuses.
pub(crate) struct Row {
    /// What is wrong, in a few words.
    pub(crate) what: &'static str,
    /// The name of the resource.
    pub(crate) resource: &'static str,
    /// Fields of the spec, beside a source where they have none.
    pub(crate) yaml: String,
    /// The whole of the spec is in `yaml`.
    pub(crate) whole: bool,
    /// What stands in the page instead of the fields, where those are long.
    pub(crate) shown: Option<String>,
    /// Words of the answer.
    pub(crate) words: &'static str,
}

fn row(what: &'static str, yaml: impl Into<String>, words: &'static str) -> Row {
    Row { what, resource: "user", yaml: yaml.into(), whole: false, shown: None, words }
}

impl Row {
    fn shown(self, shown: impl Into<String>) -> Self {
        Self { shown: Some(shown.into()), ..self }
    }

    fn named(self, resource: &'static str) -> Self {
        Self { resource, ..self }
    }

    fn whole(self) -> Self {
        Self { whole: true, ..self }
    }
}

/// All rows, by what they are about.
pub(crate) fn sections() -> Vec<(&'static str, Vec<Row>)> {
    vec![
        ("The source", source()),
        ("Pods by a selector", pods()),
        ("Static addresses", fixed()),
        ("The name", name()),
        ("The port", port()),
        ("Tags", tags()),
        ("Metadata", meta()),
        ("Weights, tagged addresses and choices", choices()),
        ("Checks", checks()),
        ("Checks over HTTP", http()),
        ("Other checks", other_checks()),
    ]
}

fn source() -> Vec<Row> {
    vec![
        row("no source", "{}", "spec.source: Required value").whole(),
        row("an empty source", "source: {}", "set exactly one of service, pods, static"),
        row(
            "two sources",
            "source: {service: {name: user}, pods: {matchLabels: {app: user}}}",
            "set exactly one of service, pods, static",
        ),
        row("a Service without a name", "source: {service: {}}", "spec.source.service.name: Required value"),
        row(
            "a Service's name that none has",
            "source: {service: {name: User}}",
            "a Service's name holds lower-case letters",
        ),
        row(
            "a Service of another namespace",
            "source: {service: {name: user, namespace: shop}}",
            "unknown field \"spec.source.service.namespace\"",
        ),
        row(
            "a Service's name that is too long",
            format!("source: {{service: {{name: {}}}}}", "x".repeat(64)),
            "may not be more than 63",
        ),
        row("a field that there is not", "prot: 80", "unknown field \"spec.prot\""),
    ]
}

fn pods() -> Vec<Row> {
    let expression = |text: &str| format!("source: {{pods: {{matchExpressions: [{text}]}}}}");
    vec![
        row("no selector", "source: {pods: {}}", "an empty selector would match every pod of the namespace"),
        row(
            "an empty selector",
            "source: {pods: {matchLabels: {}, matchExpressions: []}}",
            "an empty selector would match every pod of the namespace",
        ),
        row("not a label's key", "source: {pods: {matchLabels: {a b: user}}}", "must be a label's key"),
        row(
            "a label's key with an empty part",
            "source: {pods: {matchLabels: {example..com/app: user}}}",
            "must be a label's key",
        ),
        row("not a label's value", "source: {pods: {matchLabels: {app: a user}}}", "a label's value holds letters"),
        row("In without values", expression("{key: app, operator: In}"), "In and NotIn need values"),
        row("Exists with values", expression("{key: app, operator: Exists, values: [user]}"), "take none"),
        row(
            "an operator that there is not",
            expression("{key: app, operator: Like, values: [user]}"),
            "Unsupported value: \"Like\"",
        ),
        row(
            "a label that is to be there and not",
            expression("{key: app, operator: Exists}, {key: app, operator: DoesNotExist}"),
            "no pod can match: DoesNotExist",
        ),
        row(
            "a label with two values",
            "source: {pods: {matchLabels: {app: user}, matchExpressions: [{key: app, operator: In, values: [web]}]}}",
            "no pod can match: matchLabels",
        ),
    ]
}

fn fixed() -> Vec<Row> {
    let address = |text: &str| format!("source: {{static: [{{address: {text}, port: 80}}]}}");
    let one = "source: {static: [{address: 203.0.113.7, port: 80}]}";
    let own = |more: &str| format!("source: {{static: [{{address: 203.0.113.7, port: 80, {more}}}]}}");
    let keys = |name: &str, n: usize| (0..n).map(|i| format!("{name}{i}: \"\"")).collect::<Vec<_>>().join(", ");
    let tags = (0..8).map(|i| format!("{i}{}", "x".repeat(199))).collect::<Vec<_>>().join(", ");
    let large = (1..=256).map(|port| format!("{{address: 203.0.113.7, port: {port}, tags: [{tags}]}}"));
    vec![
        row("no address", "source: {static: []}", "should have at least 1 items"),
        row("a host's name", address("db.example.com"), "no host names"),
        row("an address that is none", address("203.0.113.256"), "an IP address, such as 203.0.113.7"),
        row("an address with a zone", address("\"fe80::1%eth0\""), "no zones (%eth0)"),
        row("IPv6 in a long form", address("\"2001:DB8:0:0:0:0:0:7\""), "write the IPv6 address in its short form"),
        row("IPv4 in the form of IPv6", address("\"::ffff:203.0.113.7\""), "no IPv4 addresses in the form of IPv6"),
        row("loopback", address("127.0.0.1"), "an address that others can reach"),
        row("loopback of IPv6", address("\"::1\""), "an address that others can reach"),
        row("unspecified", address("0.0.0.0"), "an address that others can reach"),
        row("link-local", address("\"fe80::1\""), "an address that others can reach"),
        row("multicast", address("224.0.0.1"), "an address that others can reach"),
        row("broadcast", address("255.255.255.255"), "an address that others can reach"),
        row("a cloud's metadata, link-local", address("169.254.169.254"), "an address that others can reach"),
        row("metadata of AWS", address("\"fd00:ec2::254\""), "the address of a cloud's metadata service"),
        row("credentials of pods on AWS", address("\"fd00:ec2::23\""), "the address of a cloud's metadata service"),
        row(
            "metadata of Oracle's cloud by IPv6",
            address("\"fd00:c1::a9fe:a9fe\""),
            "the address of a cloud's metadata service",
        ),
        row("metadata of Scaleway", address("\"fd00:42::42\""), "the address of a cloud's metadata service"),
        row(
            "metadata of Akamai's cloud",
            address("\"fd00:a9fe:a9fe::1\""),
            "the address of a cloud's metadata service",
        ),
        row(
            "metadata of Alibaba's cloud by IPv6",
            address("\"fd00:100::100:200\""),
            "the address of a cloud's metadata service",
        ),
        row("metadata of Google's cloud", address("\"fd20:ce::254\""), "the address of a cloud's metadata service"),
        row("metadata of Alibaba's cloud", address("100.100.100.200"), "the address of a cloud's metadata service"),
        row("link-local behind a NAT64", address("\"64:ff9b::a9fe:a9fe\""), "behind a NAT64"),
        row("loopback behind a NAT64", address("\"64:ff9b::7f00:1\""), "behind a NAT64"),
        row("multicast behind a NAT64", address("\"64:ff9b::e000:1\""), "behind a NAT64"),
        row("broadcast behind a NAT64", address("\"64:ff9b::ffff:ffff\""), "behind a NAT64"),
        row("unspecified behind a NAT64", address("\"64:ff9b::\""), "behind a NAT64"),
        row("metadata of Alibaba's cloud behind a NAT64", address("\"64:ff9b::6464:64c8\""), "behind a NAT64"),
        row("metadata of Azure behind a NAT64", address("\"64:ff9b::a83f:8110\""), "behind a NAT64"),
        row("metadata of Oracle's cloud behind a NAT64", address("\"64:ff9b::c000:c0\""), "behind a NAT64"),
        row("link-local behind a NAT64 of one's own", address("\"64:ff9b:1::a9fe:a9fe\""), "behind a NAT64"),
        row("unspecified behind a NAT64 of one's own", address("\"64:ff9b:1::\""), "behind a NAT64"),
        row("loopback behind a NAT64 of one's own", address("\"64:ff9b:1:2:3:4:7f00:1\""), "behind a NAT64"),
        row("metadata of Azure", address("168.63.129.16"), "the address of a cloud's metadata service"),
        row("metadata of Oracle's cloud", address("192.0.0.192"), "the address of a cloud's metadata service"),
        row("no port", "source: {static: [{address: 203.0.113.7}]}", "spec.source.static[0].port: Required value"),
        row(
            "a port out of range",
            "source: {static: [{address: 203.0.113.7, port: 0}]}",
            "should be greater than or equal to 1",
        ),
        row(
            "a port by name",
            "source: {static: [{address: 203.0.113.7, port: http}]}",
            "must be of type integer: \"string\"",
        ),
        row(
            "an address and port twice",
            "source: {static: [{address: 203.0.113.7, port: 80}, {address: 203.0.113.7, port: 80}]}",
            "Duplicate value",
        ),
        row("a port for all of them", format!("{one}\nport: 80"), "remove spec.port"),
        row(
            "a check of a named port",
            format!("{one}\nchecks: [{{name: admin, tcp: {{}}, port: admin}}]"),
            "give the check's port as a number",
        ),
        row("both families of one address", format!("{one}\ndualStack: true"), "write each static address by itself"),
        row("Lictor's own keys", own("meta: {lictor-owner: shop/user}"), "Lictor itself sets"),
        row("too many tags of its own", own("tags: [a, b, c, d, e, f, g, h, i]"), "must have at most 8 items"),
        row(
            "too many pairs together with the resource's",
            format!("{}\nmeta: {{{}}}", own(&format!("meta: {{{}}}", keys("own-", 8))), keys("key-", 41)),
            "more than 48 keys together",
        )
        .shown("source: {static: [{address: 203.0.113.7, port: 80, meta: {own-0: \"\", …}}]}  meta: {key-0: \"\", …}"),
        row(
            "more than an object may hold",
            format!("source: {{static: [{}]}}", large.collect::<Vec<_>>().join(", ")),
            "split the addresses among several resources",
        )
        .shown("source: {static: [{address: 203.0.113.7, port: 1, tags: […]}, …]}"),
    ]
}

fn name() -> Vec<Row> {
    vec![
        row("empty", "name: \"\"", "should be at least 1 chars long"),
        row("Consul's own", "name: consul", "the name 'consul' belongs to Consul's own servers: choose another"),
        row("Consul's own, in capitals", "name: CONSUL", "the name 'consul' belongs to Consul's own servers"),
        row("Consul's own, by the resource's name", "{}", "set spec.name to another, or rename the resource")
            .named("consul")
            .shown("metadata: {name: consul}"),
        row("too long", format!("name: {}", "x".repeat(256)), "may not be more than 255"),
        row("a line break", "name: \"user\\nservice\"", "a name has only printable ASCII characters"),
        row(
            "a letter that is another one in lower case",
            "name: \"pay_serv\\u0130ce\"",
            "a name has only printable ASCII characters",
        ),
        row("a space before it", "name: \" user\"", "a name neither begins nor ends with a space"),
    ]
}

fn port() -> Vec<Row> {
    vec![
        row("zero", "port: 0", "a port number is from 1 to 65535"),
        row("too high", "port: 65536", "a port number is from 1 to 65535"),
        row("a number in quotes", "port: \"8080\"", "a port number is written without quotes"),
        row("capitals", "port: HTTP", "a port name holds lower-case letters"),
        row("'-' at its end", "port: http-", "neither begins nor ends with '-'"),
        row("too long", format!("port: {}", "x".repeat(64)), "may not be more than 63"),
        row("neither number nor name", "port: [80]", "spec.port"),
    ]
}

fn tags() -> Vec<Row> {
    let many = (0..65).map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(", ");
    vec![
        row("one tag twice", "tags: [grpc, grpc]", "Duplicate value: \"grpc\""),
        row("an empty tag", "tags: [\"\"]", "should be at least 1 chars long"),
        row("a line break", "tags: [\"user\\n\"]", "a tag holds no control characters or line breaks"),
        row("too long", format!("tags: [{}]", "x".repeat(1025)), "may not be more than 1024"),
        row("too long in bytes", format!("tags: [{}]", "ü".repeat(513)), "at most 1024 bytes; a letter beyond ASCII"),
        row("too many", format!("tags: [{many}]"), "must have at most 64 items").shown("tags: [\"0\", …, \"64\"]"),
        row("a ${ that is not closed", "tags: [\"v-${pod.name\"]", "'${' must begin a value"),
        row("a quote that is not closed", "tags: [\"${pod.labels['app}\"]", "'${' must begin a value"),
        row("the group of a regular expression", "tags: [\"path=/api/(.*) /${1}\"]", "as in $${1}"),
        row("a key without quotes", "tags: [\"${pod.labels[app]}\"]", "'${' must begin a value"),
        row("an empty key", "tags: [\"${ports['']}\"]", "'${' must begin a value"),
        row("nothing between the braces", "tags: [\"${}\"]", "'${' must begin a value"),
        row("a number", "tags: [1]", "must be of type string: \"integer\""),
    ]
}

fn meta() -> Vec<Row> {
    let many = (0..49).map(|i| format!("k{i}: \"\"")).collect::<Vec<_>>().join(", ");
    let ours = |key: &str| format!("meta: {{{key}: mine}}");
    vec![
        row(
            "a key with dots and slashes",
            "meta: {app.kubernetes.io/version: \"1\"}",
            "write 'version' or 'app-version'",
        ),
        row("an empty key", "meta: {\"\": \"1\"}", "meta keys hold letters, digits"),
        row("a key that is too long", format!("meta: {{{}: \"1\"}}", "x".repeat(129)), "at most 128 of them"),
        row("Consul's keys", ours("consul-version"), "write the key without that beginning"),
        row("Consul's keys in capitals", ours("Consul-Version"), "write the key without that beginning"),
        row("Lictor's keys", ours("lictor-cluster"), "Lictor itself sets"),
        row("Lictor's keys in capitals", ours("Lictor-Cluster"), "Lictor itself sets"),
        row("managed-by", ours("managed-by"), "leave them out, or write another key"),
        row("external-source", ours("external-source"), "Lictor itself sets"),
        row("k8s-namespace", ours("k8s-namespace"), "Lictor itself sets"),
        row("k8s-pod", ours("k8s-pod"), "Lictor itself sets"),
        row("k8s-node", ours("k8s-node"), "Lictor itself sets"),
        row("a value that is too long", format!("meta: {{a: {}}}", "x".repeat(513)), "may not be more than 512"),
        row(
            "a value that is too long in bytes",
            format!("meta: {{a: {}}}", "ü".repeat(257)),
            "at most 512 bytes; a letter beyond ASCII",
        ),
        row("a value that is a number", "meta: {version: 1.2}", "must be of type string: \"number\""),
        row("a ${ that is not closed", "meta: {version: \"${pod.labels['version']\"}", "'${' must begin a value"),
        row("too many pairs", format!("meta: {{{many}}}"), "must have at most 48 items")
            .shown("meta: {k0: \"\", …, k48: \"\"}"),
    ]
}

fn choices() -> Vec<Row> {
    let tagged = |key: &str, address: &str| format!("taggedAddresses: {{{key}: {{address: {address}, port: 443}}}}");
    vec![
        row("no weight", "weights: {passing: 0}", "should be greater than or equal to 1"),
        row("a negative weight", "weights: {warning: -1}", "should be greater than or equal to 0"),
        row("a weight that is too high", "weights: {passing: 65536}", "should be less than or equal to 65535"),
        row("a tagged address of Consul's", tagged("consul-virtual", "198.51.100.1"), "choose another, such as 'wan'"),
        row("the name of a tagged address", tagged("w.an", "198.51.100.1"), "names of tagged addresses hold letters"),
        row(
            "a tagged address of the other family",
            tagged("wan_ipv6", "198.51.100.1"),
            "lan_ipv4 and wan_ipv4 are IPv4 addresses",
        ),
        row("a tagged address by name", tagged("wan", "lb.example.com"), "no host names"),
        row("a tagged address of loopback", tagged("wan", "127.0.0.1"), "an address that others can reach"),
        row(
            "a tagged address of a cloud's metadata",
            tagged("wan", "168.63.129.16"),
            "the address of a cloud's metadata service",
        ),
        row(
            "a tagged address without a port",
            "taggedAddresses: {wan: {address: 198.51.100.1}}",
            "spec.taggedAddresses.wan.port: Required value",
        ),
        row("a choice in lower case", "readiness: mirror", "supported values: \"Mirror\", \"Deregister\", \"Ignore\""),
        row("a policy that there is not", "deletionPolicy: Delete", "supported values: \"Deregister\", \"Retain\""),
        row("a class in capitals", "class: Second", "a class holds lower-case letters"),
        row("yes for true", "enableTagOverride: \"yes\"", "must be of type boolean: \"string\""),
        row("an empty namespace of Consul", "namespace: \"\"", "should be at least 1 chars long"),
        row("a partition's name that is too long", format!("partition: {}", "x".repeat(65)), "may not be more than 64"),
    ]
}

fn check(more: &str) -> String {
    format!("checks: [{{name: a, {more}}}]")
}

fn checks() -> Vec<Row> {
    let many = (0..17).map(|i| format!("{{name: a{i}, tcp: {{}}}}")).collect::<Vec<_>>().join(", ");
    vec![
        row("no kind", "checks: [{name: a}]", "set exactly one of http, tcp, grpc, udp, h2ping"),
        row("two kinds", check("tcp: {}, udp: {}"), "set exactly one of http, tcp, grpc, udp, h2ping"),
        row("a kind that there is not", check("script: {}"), "unknown field \"spec.checks[0].script\""),
        row("a host of its own", check("tcp: {host: db.example.com}"), "unknown field \"spec.checks[0].tcp.host\""),
        row("no name", "checks: [{tcp: {}}]", "spec.checks[0].name: Required value"),
        row("two checks of one name", "checks: [{name: a, tcp: {}}, {name: a, udp: {}}]", "Duplicate value"),
        row(
            "the name of Lictor's own check",
            "checks: [{name: readiness, tcp: {}}]",
            "(see spec.readiness): choose another name",
        ),
        row("a name in capitals", "checks: [{name: Alive, tcp: {}}]", "a check's name holds lower-case letters"),
        row("too many", format!("checks: [{many}]"), "must have at most 16 items")
            .shown("checks: [{name: a0, tcp: {}}, …, {name: a16, tcp: {}}]"),
        row("a port in quotes", check("tcp: {}, port: \"80\""), "should match '^([a-z]|[0-9][-0-9]*[a-z])("),
        row("a port in capitals", check("tcp: {}, port: HTTP"), "should match '^([a-z]|[0-9][-0-9]*[a-z])("),
        row("a port out of range", check("tcp: {}, port: 65536"), "a port number is from 1 to 65535"),
        row("an interval without a unit", check("tcp: {}, interval: \"10\""), "such as 10s, 1m30s or 500ms"),
        row("a number as interval", check("tcp: {}, interval: 10"), "must be of type string: \"integer\""),
        row("an interval with a fraction", check("tcp: {}, interval: 1.5h"), "such as 10s, 1m30s or 500ms"),
        row("a negative interval", check("tcp: {}, interval: -10s"), "such as 10s, 1m30s or 500ms"),
        row("an interval under a second", check("tcp: {}, interval: 999ms"), "at most once a second: 1s or more"),
        row("no interval at all", check("tcp: {}, interval: 0s"), "at most once a second: 1s or more"),
        row("no time for a run", check("tcp: {}, timeout: 0s"), "a timeout of 0 fails every run"),
        row("a timeout with a fraction", check("tcp: {}, timeout: 0.5s"), "such as 10s, 1m30s or 500ms"),
        row("a timeout over the default interval", check("tcp: {}, timeout: 11s"), "ends before the next one begins"),
        row(
            "a timeout over the interval",
            check("tcp: {}, interval: 5s, timeout: 5001ms"),
            "ends before the next one begins",
        ),
        row(
            "a warning after it is critical",
            check("tcp: {}, failuresBeforeWarning: 3, failuresBeforeCritical: 2"),
            "it would be critical before it warns",
        ),
        row("a warning with nothing after it", check("tcp: {}, failuresBeforeWarning: 1"), "before it warns"),
        row("a negative count", check("tcp: {}, successBeforePassing: -1"), "should be greater than or equal to 0"),
        row("a count that is too high", check("tcp: {}, failuresBeforeCritical: 101"), "less than or equal to 100"),
        row(
            "notes that are too long in bytes",
            check(&format!("tcp: {{}}, notes: {}", "ü".repeat(257))),
            "at most 512 bytes; a letter beyond ASCII",
        ),
    ]
}

fn http() -> Vec<Row> {
    let http = |more: &str| check(&format!("http: {{{more}}}"));
    let header = |name: &str, value: &str| http(&format!("headers: [{{name: {name}, value: {value}}}]"));
    vec![
        row("a path without '/'", http("path: health"), "a path begins with '/'"),
        row("a URL", http("path: \"http://db.example.com/\""), "always those of the instance"),
        row("a host in the path", http("path: \"@db.example.com/\""), "always those of the instance"),
        row("a space in the path", http("path: \"/a b\""), "write %20 for a space"),
        row("a line break in the path", http("path: \"/a\\r\\nHost: b\""), "a path holds no spaces, line breaks"),
        row("letters beyond ASCII in the path", http("path: /zustände"), "letters beyond ASCII"),
        row("a fragment", http("path: \"/a#b\""), "what follows a '#' is never sent"),
        row("a '%' by itself", http("path: /100%"), "write %25 for '%' itself"),
        row("another scheme", http("scheme: ftp"), "supported values: \"http\", \"https\""),
        row("a method in lower case", http("method: get"), "a method is written in capital letters"),
        row("a method that asks for no page", http("method: CONNECT"), "CONNECT is not allowed"),
        row("a header of Consul's API", header("x-consul-token", "a"), "headers that begin with X-Consul-"),
        row("a space in a header's name", header("X Probe", "a"), "a header's name holds letters"),
        row("a line break in a header's name", header("\"X-Probe\\r\\n\"", "a"), "no spaces or line breaks"),
        row(
            "a line break in a header's value",
            header("X-Probe", "\"a\\nb\""),
            "a header's value holds no line breaks",
        ),
        row("a header without a value", http("headers: [{name: X-Probe}]"), "value: Required value"),
        row("TLS options without TLS", http("tlsSkipVerify: true"), "need scheme: https"),
        row("a server's name without TLS", http("tlsServerName: user.example.com"), "need scheme: https"),
        row(
            "not a server's name",
            http("scheme: https, tlsServerName: \"https://user\""),
            "the name of a server holds letters",
        ),
        row("a body that is too long", http(&format!("body: {}", "x".repeat(4097))), "may not be more than 4096"),
    ]
}

fn other_checks() -> Vec<Row> {
    vec![
        row("TLS options of TCP without TLS", check("tcp: {tlsSkipVerify: true}"), "need useTLS: true"),
        row("TLS options of gRPC without TLS", check("grpc: {tlsServerName: user}"), "need useTLS: true"),
        row(
            "TLS options of an HTTP/2 ping without TLS",
            check("h2ping: {useTLS: false, tlsSkipVerify: true}"),
            "need useTLS: true",
        ),
        row("a space in a gRPC service's name", check("grpc: {service: shop User}"), "a gRPC service's name holds no"),
    ]
}

//! The readers, how they are asked, and what is known of them besides what the test sees.

use std::collections::BTreeMap;

use lictor_testbed::dns::Kind;

use crate::setting::{SETTINGS, Setting};

/// What answers for a reader.
#[derive(Clone, Copy)]
pub(crate) enum With {
    /// Consul's DNS, asked by the testbed over UDP without EDNS; `true` with a name of RFC 2782.
    Dns(Kind, bool),
    /// `ask.py`, with the packages of `python.txt`.
    Python,
    /// `ask.py`, with those of `python-consul.txt`: both have a module of the same name.
    PythonConsul,
    /// The same as `Python`, which asks a CoreDNS that asks Consul.
    CoreDns,
    /// `ask.js`.
    Node,
    /// The testbed's program `reader`.
    Go,
    /// consul-template.
    Template,
}

/// A reader of Consul.
pub(crate) struct Reader {
    /// Its name in Consul's names and in the test's.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// The package whose pinned version is the reader's, or the version in words.
    pub(crate) version: &'static str,
    pub(crate) with: With,
    /// How the program that answers calls it.
    pub(crate) argument: &'static str,
    /// It learns the port with each address.
    pub(crate) ports: bool,
    /// It asks Consul's DNS.
    pub(crate) dns: bool,
    /// It gets no more than two SRV records by UDP of instances on catalog nodes: the meta of their nodes, as TXT records, takes the place.
    pub(crate) crowded: bool,
    /// What to set or to know.
    pub(crate) note: &'static str,
}

const TRUNCATED: &str = "set `enable_truncate = true` in Consul: then it asks again over TCP";

impl Reader {
    /// Consul's DNS settings matter to those alone that use it.
    pub(crate) fn is_asked_in(&self, setting: Setting) -> bool {
        setting != Setting::Whole || self.dns
    }

    /// All that it can be asked is in `seen`.
    pub(crate) fn was_asked_everywhere<T>(&self, seen: &BTreeMap<Setting, T>) -> bool {
        SETTINGS.iter().all(|setting| seen.contains_key(setting) == self.is_asked_in(*setting))
    }

    /// It calls the instances, so that they have to be servers on this machine, all at one port.
    pub(crate) fn calls(&self) -> bool {
        self.argument.starts_with("grpc")
    }
}

const fn reader(id: &'static str, title: &'static str, version: &'static str, with: With) -> Reader {
    Reader { id, title, version, with, argument: id, ports: false, dns: false, crowded: false, note: "" }
}

pub(crate) const READERS: [Reader; 19] = [
    Reader {
        dns: true,
        note: "over UDP without EDNS, Consul answers three of many. With `enable_truncate = true` it says so",
        ..reader("dns_a", "Consul's DNS, `A` and `AAAA`", "consul", With::Dns(Kind::A, false))
    },
    Reader {
        dns: true,
        ports: true,
        crowded: true,
        note: "pair each SRV record with the additional record of its name: an answer to `A` has another order. In `catalog` mode, set `enable_additional_node_meta_txt = false` in Consul",
        ..reader("dns_srv", "Consul's DNS, `SRV`", "consul", With::Dns(Kind::Srv, false))
    },
    Reader {
        dns: true,
        ports: true,
        crowded: true,
        note: "a tag that has a dot cannot be asked for in this way",
        ..reader("dns_rfc2782", "Consul's DNS, `_NAME._TAG.service.consul`", "consul", With::Dns(Kind::Srv, true))
    },
    Reader {
        dns: true,
        argument: "dnspython",
        note: TRUNCATED,
        ..reader("dnspython", "dnspython as it comes", "dnspython", With::Python)
    },
    Reader {
        dns: true,
        argument: "dnspython-edns",
        note: "`use_edns(0, 0, 8192)`",
        ..reader("dnspython_edns", "dnspython with EDNS", "dnspython", With::Python)
    },
    Reader {
        dns: true,
        argument: "dnspython-tcp",
        note: "`resolve(…, tcp=True)`",
        ..reader("dnspython_tcp", "dnspython over TCP", "dnspython", With::Python)
    },
    Reader {
        dns: true,
        argument: "dnspython-srv",
        ports: true,
        note: "`resolve(…, 'SRV', tcp=True)`, with the addresses of `response.additional`",
        ..reader("dnspython_srv", "dnspython, `SRV` over TCP", "dnspython", With::Python)
    },
    Reader {
        dns: true,
        argument: "dnspython",
        note: "dnspython asks it. It needs no setting in Consul",
        ..reader(
            "coredns",
            "CoreDNS with [this block](#dns-of-the-cluster)",
            "github.com/coredns/coredns",
            With::CoreDns,
        )
    },
    Reader {
        dns: true,
        argument: "grpc-dns",
        note: "all instances need the same port. `round_robin` shares the calls over the instances that it sees. Set `enable_truncate = true` in Consul",
        ..reader("grpc_dns", "gRPC for Python, `dns:`", "grpcio", With::Python)
    },
    Reader {
        argument: "grpc-api",
        note: "addresses from the API, as `ipv4:A,B,C` or `ipv6:[A],[B]`. When they change, make a new channel",
        ..reader("grpc_api", "gRPC for Python, addresses of py-consul", "grpcio", With::Python)
    },
    Reader {
        argument: "api",
        ports: true,
        note: "`health.service(…, passing=True)`",
        ..reader("py_consul", "py-consul", "py-consul", With::Python)
    },
    Reader {
        argument: "api",
        ports: true,
        note: "`health.service(…, passing=True)`. Its module has the same name as py-consul's: install only one of them",
        ..reader("python_consul", "python-consul", "python-consul", With::PythonConsul)
    },
    Reader {
        argument: "api",
        ports: true,
        note: "`passing: true`",
        ..reader("node_consul", "npm `consul` with `passing: true`", "npm consul", With::Node)
    },
    Reader {
        argument: "api-default",
        ports: true,
        note: "set `passing: true` in the client, or `readiness: Deregister` in the resource",
        ..reader("node_consul_default", "npm `consul` as it comes", "npm consul", With::Node)
    },
    Reader {
        dns: true,
        argument: "resolve",
        note: TRUNCATED,
        ..reader("node_resolve", "Node `dns.resolve4`, `resolve6`", "Node's own", With::Node)
    },
    Reader {
        dns: true,
        argument: "srv",
        ports: true,
        crowded: true,
        note: TRUNCATED,
        ..reader("node_srv", "Node `dns.resolveSrv`", "Node's own", With::Node)
    },
    Reader {
        argument: "api",
        ports: true,
        note: "`Health().Service(name, tag, true, …)`",
        ..reader("go_api", "Go, Consul's own client", "github.com/hashicorp/consul/api", With::Go)
    },
    Reader {
        dns: true,
        argument: "host",
        note: "asks with EDNS for 1232 bytes. For more, set `enable_truncate = true` in Consul: then it asks again over TCP",
        ..reader("go_host", "Go `net.Resolver`, `LookupHost`", "Go's own", With::Go)
    },
    Reader {
        ports: true,
        note: "to have instances with a warning, too: `service \"NAME\\|passing,warning\"`",
        ..reader("consul_template", "consul-template", "github.com/hashicorp/consul-template", With::Template)
    },
];

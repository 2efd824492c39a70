"""Asks Consul for a service as a Python program does, and prints what it sees as a JSON array of "ADDRESS:PORT".

Arguments: the reader, Consul's HTTP address, the port of its DNS, the service. Addresses stand alone where the way of asking knows no
ports.
"""

import json
import sys
import time
from concurrent import futures
from urllib.parse import urlsplit


def place(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def api(http, service):
    import consul  # py-consul and python-consul have this name both: each is in a folder of its own.

    at = urlsplit(http)
    _, nodes = consul.Consul(host=at.hostname, port=at.port).health.service(service, passing=True)
    return [place(node["Service"]["Address"], node["Service"]["Port"]) for node in nodes]


def resolver(port):
    import dns.resolver

    made = dns.resolver.Resolver(configure=False)
    made.nameservers = ["127.0.0.1"]
    made.port = port
    made.lifetime = 10
    return made


def lookup(port, service, kind, payload=None, tcp=False):
    import dns.resolver

    asking = resolver(port)
    if payload:
        asking.use_edns(0, 0, payload)
    try:
        return asking.resolve(f"{service}.service.consul.", kind, tcp=tcp)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []


def addresses(port, service, payload=None, tcp=False):
    return [str(record) for kind in ("A", "AAAA") for record in lookup(port, service, kind, payload, tcp)]


def pairs(port, service):
    """SRV records and the addresses that come with them: the ports belong to the addresses of the same name."""
    answer = lookup(port, service, "SRV", tcp=True)
    if not answer:
        return []
    along = {rrset.name: str(rrset[0]) for rrset in answer.response.additional if rrset.rdtype in (1, 28)}
    return [place(along[record.target], record.port) for record in answer]


def grpc_calls(targets, http, port, service):
    """Serves on every address that is registered, calls through one channel, and says which servers were called."""
    import grpc

    class Where(grpc.GenericRpcHandler):
        def __init__(self, at):
            self.at = at

        def service(self, _):
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self.at.encode())

    servers = []
    for at in targets:
        server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Where(at)], options=[("grpc.so_reuseport", 0)])
        server.add_insecure_port(at)
        server.start()
        servers.append(server)
    options = [("grpc.lb_policy_name", "round_robin"), ("grpc.enable_http_proxy", 0)]
    number = targets[0].rsplit(":", 1)[1]
    passing = api(http, service)
    if port:
        target = f"dns://127.0.0.1:{port}/{service}.service.consul:{number}"
    else:
        target = ("ipv6:" if passing[0].startswith("[") else "ipv4:") + ",".join(passing)
    with grpc.insecure_channel(target, options) as channel:
        call = channel.unary_unary("/readers.Where/Ask")
        called, alike = set(), 0
        # Connections come one after the other, and nobody knows how many there will be.
        end = time.monotonic() + 30
        while time.monotonic() < end and alike < (100 if called >= set(passing) else 3000):
            before = len(called)
            called.add(call(b"", wait_for_ready=True, timeout=20).decode())
            alike = alike + 1 if len(called) == before else 0
    for server in servers:
        server.stop(None)
    return sorted(called)


def every_instance(http, service):
    import consul

    at = urlsplit(http)
    _, nodes = consul.Consul(host=at.hostname, port=at.port).health.service(service)
    return [place(node["Service"]["Address"], node["Service"]["Port"]) for node in nodes]


def main(reader, http, port, service):
    port = int(port)
    readers = {
        "api": lambda: api(http, service),
        "dnspython": lambda: addresses(port, service),
        "dnspython-edns": lambda: addresses(port, service, payload=8192),
        "dnspython-tcp": lambda: addresses(port, service, tcp=True),
        "dnspython-srv": lambda: pairs(port, service),
        "grpc-dns": lambda: grpc_calls(every_instance(http, service), http, port, service),
        "grpc-api": lambda: grpc_calls(every_instance(http, service), http, None, service),
    }
    print(json.dumps(readers[reader]()))


main(*sys.argv[1:])

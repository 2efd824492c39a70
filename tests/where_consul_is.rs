//! The ways to a real Consul: over a unix socket, behind a path, through a proxy, in another datacenter; and the
//! tenancy that each request names.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

#[path = "support/registries.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod registries;

use std::sync::Arc;

use lictor::consul::agent::Agent;
use lictor::consul::catalog::Catalog;
use lictor::consul::tenancy::Tenancy;
use lictor::consul::transport::{ConsulSettings, Http};
use lictor::model::health::Health;
use lictor::model::reasons::OutageKind;
use lictor::ports::{Outcome, Registry, Unavailable};
use lictor_testbed::{Consul, ConsulOptions, Proxy, Record, WorkDir, ports, wait};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::registries::{SOON, apply, connect, consul, full, identity, key, put, remove, settled, write};

/// Both registries with these settings.
fn both(settings: &ConsulSettings) -> [Box<dyn Registry>; 2] {
    lictor_testbed::init_tls();
    let http = || Arc::new(Http::new(settings).unwrap());
    [Box::new(Agent::new(identity(), http())), Box::new(Catalog::new(identity(), http(), 4))]
}

/// Registers an instance, reads it back, and removes it.
async fn lives(registry: &dyn Registry) {
    let node = connect(registry).await;
    let one = key(&node, "one");
    write(registry, &node, vec![put(&one, &full("10.0.0.1", Some(Health::Passing)))]).await;
    assert!(settled(registry).await.contains_key(&one));
    write(registry, &node, vec![remove(&one)]).await;
    assert!(!settled(registry).await.contains_key(&one));
}

#[tokio::test]
async fn over_a_unix_socket() {
    let folder = WorkDir::create("socket").unwrap();
    let socket = folder.join("consul.sock");
    let extra_hcl = format!("addresses {{ http = \"127.0.0.1 unix://{}\" }}", socket.display());
    let consul = consul(ConsulOptions { extra_hcl, ..ConsulOptions::default() }).await;
    let settings = ConsulSettings::new(format!("unix://{}", socket.display()));
    for registry in both(&settings) {
        lives(&*registry).await;
    }
    // What it says of a Consul that is away names the socket; and Lictor finds the one that comes after.
    let [agent, _] = both(&settings);
    let node = connect(&*agent).await;
    consul.kill().unwrap();
    let away = agent.read().await.unwrap_err();
    assert!(away.message.contains(&format!("unix://{}", socket.display())), "{away}");
    assert_eq!(away.kind, OutageKind::Unreachable);
    consul.start_again().await.unwrap();
    connect(&*agent).await;
    assert!(agent.read_node(&node).await.is_ok());
}

#[tokio::test]
async fn behind_a_path() {
    let consul = consul(ConsulOptions::default()).await;
    let strip = |record: &mut Record| record.path = record.path.strip_prefix("/platform/consul").unwrap().to_owned();
    let gate = Proxy::start_with(&consul.http_addr(), Arc::new(strip)).await.unwrap();
    for address in [format!("{}/platform/consul", gate.addr()), format!("{}/platform/consul/", gate.addr())] {
        for registry in both(&ConsulSettings::new(&address)) {
            lives(&*registry).await;
        }
    }
    assert!(gate.records().iter().all(|record| record.path.starts_with("/platform/consul/v1/")));
}

#[tokio::test]
async fn through_a_proxy() {
    let consul = consul(ConsulOptions::default()).await;
    let proxy = Proxy::start(&consul.http_addr()).await.unwrap();
    // Only the proxy knows where this is.
    let consul_elsewhere = "http://consul.invalid:8500";
    let settings = ConsulSettings { proxy: Some(proxy.addr()), ..ConsulSettings::new(consul_elsewhere) };
    for registry in both(&settings) {
        lives(&*registry).await;
    }
    assert!(!proxy.writes().is_empty());
    // A proxy that is away is one reason more why Consul is.
    let settings = ConsulSettings { proxy: Some("http://127.0.0.1:1".to_owned()), ..settings };
    for registry in both(&settings) {
        let away = registry.connect().await.unwrap_err();
        assert!(matches!(away, Unavailable { kind: OutageKind::Unreachable, .. }), "{away}");
    }
}

/// A proxy that opens tunnels to one address, whatever name it is asked for; it answers where it listens.
async fn tunnels_to(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let mut stream = BufStream::new(stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    match line.trim_end() {
                        "" => break,
                        line => lines.push(line.to_owned()),
                    }
                }
                assert!(lines[0].starts_with("CONNECT server.dc1.consul:"), "{lines:?}");
                let mut onward = TcpStream::connect(&target).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                stream.flush().await.unwrap();
                // Ends when one of them closes it.
                let _ = copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn through_a_tunnel_of_a_proxy() {
    let files = WorkDir::create("tunnel").unwrap();
    let authority = lictor_testbed::certificates::Authority::new("consul").unwrap();
    let server = authority.server(vec!["server.dc1.consul".to_owned()]).unwrap();
    let file = |name: &str, content: &str| files.write(name, content).unwrap();
    let ca = file("ca.pem", authority.certificate());
    let (cert, key) = (file("server.pem", &server.public), file("server.key", &server.private));
    let https = ports::free().unwrap();
    let extra_hcl = format!(
        "ports {{ https = {https} }}
         tls {{ https {{ cert_file = {cert:?}, key_file = {key:?} }} }}"
    );
    let _consul = consul(ConsulOptions { extra_hcl, ..ConsulOptions::default() }).await;
    let settings = ConsulSettings {
        ca_cert: Some(ca),
        proxy: Some(tunnels_to(format!("127.0.0.1:{https}")).await),
        ..ConsulSettings::new(format!("https://server.dc1.consul:{https}"))
    };
    for registry in both(&settings) {
        lives(&*registry).await;
    }
}

/// Two servers of two datacenters that know each other.
async fn two_datacenters() -> (Consul, Consul) {
    let wan = ports::free().unwrap();
    let primary = ConsulOptions { extra_hcl: format!("ports {{ serf_wan = {wan} }}"), ..ConsulOptions::default() };
    let primary = consul(primary).await;
    let extra_hcl =
        format!("datacenter = \"dc2\"\nretry_join_wan = [\"127.0.0.1:{wan}\"]\nretry_interval_wan = \"1s\"");
    let secondary = consul(ConsulOptions { extra_hcl, ..ConsulOptions::default() }).await;
    let url = format!("{}/v1/catalog/nodes?dc=dc2", primary.http_addr());
    wait::until("a way to dc2", SOON, || async { Ok(reqwest::get(&url).await?.status().is_success().then_some(())) })
        .await
        .unwrap();
    (primary, secondary)
}

fn in_datacenter(consul: &Consul, datacenter: &str) -> ConsulSettings {
    let tenancy = Tenancy { datacenter: Some(datacenter.to_owned()), ..Tenancy::DEFAULT };
    ConsulSettings { tenancy, ..ConsulSettings::new(consul.http_addr()) }
}

#[tokio::test]
async fn in_another_datacenter() {
    let (primary, secondary) = two_datacenters().await;
    let [_, catalog] = both(&in_datacenter(&primary, "dc2"));
    lives(&*catalog).await;
    let node = connect(&*catalog).await;
    let one = key(&node, "one");
    write(&*catalog, &node, vec![put(&one, &full("10.0.0.1", None))]).await;
    let names = |consul: &Consul| {
        let url = format!("{}/v1/catalog/services", consul.http_addr());
        async move { reqwest::get(url).await.unwrap().text().await.unwrap() }
    };
    assert!(names(&secondary).await.contains("user_service"), "it is in dc2");
    assert!(!names(&primary).await.contains("user_service"), "and not in dc1");

    // An agent registers where it is. Consul does not care for the case of a datacenter's name.
    let [agent, _] = both(&in_datacenter(&secondary, "DC2"));
    assert!(agent.connect().await.is_ok());
    let [agent, catalog] = both(&in_datacenter(&primary, "dc2"));
    let refused = agent.connect().await.unwrap_err();
    assert!(refused.message.contains("is in the datacenter dc1, and --consul-datacenter says dc2"), "{refused}");
    assert_eq!(refused.kind, OutageKind::NotSetUp);

    // A datacenter that nobody knows, and one that went away.
    let [agent, unknown] = both(&in_datacenter(&primary, "dc3"));
    assert_eq!(agent.connect().await.unwrap_err().kind, OutageKind::NotSetUp);
    let refused = unknown.connect().await.unwrap_err();
    assert!(refused.message.contains("knows no way to the datacenter of --consul-datacenter"), "{refused}");
    assert_eq!(refused.kind, OutageKind::NotSetUp);
    connect(&*catalog).await;
    secondary.kill().unwrap();
    assert!(catalog.read().await.is_err());
    let outcomes = apply(&*catalog, &node, vec![remove(&one)]).await;
    assert!(!matches!(outcomes[0], Outcome::Written { .. } | Outcome::Refused(_)), "{outcomes:?}");
}

fn in_enterprise(address: String) -> ConsulSettings {
    let (namespace, partition) = (Some("shop".to_owned()), Some("eu".to_owned()));
    ConsulSettings { tenancy: Tenancy { datacenter: None, namespace, partition }, ..ConsulSettings::new(address) }
}

#[tokio::test]
async fn a_community_consul_has_neither_namespaces_nor_partitions() {
    let consul = consul(ConsulOptions::default()).await;
    let all = in_enterprise(consul.http_addr());
    let only = |namespace, partition| {
        let tenancy = Tenancy { datacenter: None, namespace, partition };
        ConsulSettings { tenancy, ..all.clone() }
    };
    for settings in [all.clone(), only(Some("shop".to_owned()), None), only(None, Some("eu".to_owned()))] {
        for registry in both(&settings) {
            let refused = match registry.connect().await {
                Err(refused) => refused,
                Ok(_) => registry.read().await.unwrap_err(),
            };
            assert!(refused.message.contains("leave out --consul-namespace and --consul-partition"), "{refused}");
            assert_eq!(refused.kind, OutageKind::NotSetUp);
        }
    }
}

/// Takes the tenancy out of a request, so that a community Consul takes it.
fn without_tenancy(record: &mut Record) {
    let parts = record.query.split('&').filter(|part| *part != "ns=shop" && *part != "partition=eu");
    record.query = parts.collect::<Vec<_>>().join("&");
}

#[tokio::test]
async fn each_request_names_the_tenancy() {
    let consul = consul(ConsulOptions::default()).await;
    let gate = Proxy::start_with(&consul.http_addr(), Arc::new(without_tenancy)).await.unwrap();
    let mut transactions = 0;
    for registry in both(&in_enterprise(gate.addr())) {
        lives(&*registry).await;
        registry.indexes().await.unwrap();
        registry.nodes().await.unwrap();
        registry.names_of_others().await.unwrap();
        registry.check_writes().await.unwrap();
        registry.dismantle().await.unwrap();
        for record in gate.records() {
            let named: Vec<&str> = record.query.split('&').collect();
            assert!(named.contains(&"ns=shop") && named.contains(&"partition=eu"), "{record:?}");
            if record.path == "/v1/txn" {
                let operations: Vec<Value> = serde_json::from_slice(&record.body).unwrap();
                for operation in &operations {
                    let (kind, of_kind) = operation.as_object().unwrap().iter().next().unwrap();
                    let entry = &of_kind[kind];
                    assert_eq!(entry["Partition"], "eu", "{operation}");
                    assert!(kind == "Node" || entry["Namespace"] == "shop", "{operation}");
                    transactions += 1;
                }
            }
        }
        gate.clear();
    }
    assert!(transactions > 5, "{transactions} operations: is this test blind?");
}

//! A namespace with what resources may find in it: Services of all kinds, slices, pods on nodes.

use std::net::IpAddr;

use anyhow::Result;
use lictor_testbed::{ControlPlane, NewEndpoint, NewPod, TestNamespace};

use crate::schema::Generator;

/// Services that the testbed has no words for.
const OTHER_SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: { name: headless }
spec: { clusterIP: None, selector: { app: web }, ports: [ { name: http, port: 80, targetPort: http } ] }
---
apiVersion: v1
kind: Service
metadata: { name: names }
spec: { type: ExternalName, externalName: www.example.com }
";

/// How many pods are behind the Service `web`, ready or not.
pub(crate) const WEB_PODS: usize = 3;

/// A namespace.
pub(crate) struct Environment {
    pub(crate) namespace: TestNamespace,
    nodes: [String; 2],
    /// The number of pods `back` so far: each has a name of its own.
    backs: usize,
}

impl Environment {
    pub(crate) async fn make(plane: &ControlPlane, prefix: &str) -> Result<Self> {
        let namespace = TestNamespace::create(plane, prefix).await?;
        let nodes = [
            namespace.create_node("a", "198.18.1.1".parse()?, "zone-1").await?,
            namespace.create_node("b", "198.18.1.2".parse()?, "zone-2").await?,
        ];
        namespace.apply_service("web", &[("app", "web")], &[("http", 80, "http")]).await?;
        namespace.apply_service("two", &[("app", "back")], &[("a", 80, "a"), ("b", 81, "b")]).await?;
        namespace.apply_service("empty", &[("app", "none")], &[("http", 80, "http")]).await?;
        namespace.apply_service("hand", &[], &[("http", 80, "80")]).await?;
        namespace.apply_service("six", &[], &[("http", 80, "80")]).await?;
        namespace.apply_yaml(OTHER_SERVICES).await?;
        let environment = Self { namespace, nodes, backs: 0 };
        for number in 0..WEB_PODS {
            let pod = environment.pod(&format!("web-{number}"), number).label("app", "web");
            environment.namespace.create_pod(pod.port("http", 8080).port("grpc", 9090)).await?;
        }
        environment.namespace.create_pod(environment.pod("bare", 0).label("tier", "front").not_ready()).await?;
        environment.hand("hand", &["203.0.113.1", "203.0.113.2"]).await?;
        environment.hand("six", &["2001:db8::1"]).await?;
        Ok(environment)
    }

    fn pod(&self, name: &str, node: usize) -> NewPod {
        NewPod::new(name, &self.nodes[node % self.nodes.len()])
            .label("app.kubernetes.io/version", "1.2.3")
            .label("example.com/Team-A", "A")
            .annotation("note", "short")
            .annotation("example.com/long", &"long ".repeat(120))
            .annotation("example.com/lines", "one\nanother")
    }

    /// Writes a slice of a Service that has no selector.
    async fn hand(&self, service: &str, addresses: &[&str]) -> Result<()> {
        let mut endpoints = Vec::new();
        for address in addresses {
            let address: IpAddr = address.parse()?;
            endpoints.push(NewEndpoint { node: Some(self.nodes[0].clone()), ..NewEndpoint::new(address) });
        }
        self.namespace.apply_slice(service, service, &[("http", 8080)], &endpoints).await?;
        Ok(())
    }

    /// Changes something of it.
    pub(crate) async fn stir(&mut self, generator: &mut Generator) -> Result<()> {
        match generator.rng.u8(..3) {
            0 => {
                let pod = format!("web-{}", generator.rng.usize(..WEB_PODS));
                self.namespace.set_ready(&pod, generator.rng.bool()).await
            }
            1 => {
                let many = generator.rng.usize(..4);
                let addresses = ["203.0.113.1", "203.0.113.2", "203.0.113.3"];
                self.hand("hand", &addresses[..many]).await
            }
            _ => {
                if self.backs > 0 {
                    self.namespace.force_delete(&format!("back-{}", self.backs)).await?;
                }
                self.backs += 1;
                let pod = self.pod(&format!("back-{}", self.backs), self.backs).label("app", "back");
                let address: IpAddr = format!("2001:db8:1::{:x}", self.backs).parse()?;
                let pod = pod.port("a", 80).port("b", 81).ip(lictor_testbed::pods::next_pod_ip()).ip(address);
                self.namespace.create_pod(pod).await.map(drop)
            }
        }
    }
}

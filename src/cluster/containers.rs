//! Which containers of a pod are the app's own.

use crate::model::facts::ContainerKind;

/// The annotation by which a pod names its main container, which `kubectl logs` and `kubectl exec` look at by default.
pub(super) const MAIN: &str = "kubectl.kubernetes.io/default-container";

/// The containers that meshes inject into pods with ports of their own. Names that apps have, too, are not among them,
/// such as `envoy` of AWS App Mesh and Open Service Mesh.
const INJECTED: [&str; 7] = [
    // Istio (`ProxyContainerName` in pkg/kube/inject of istio/istio).
    "istio-proxy",
    // Linkerd (`ProxyContainerName` in pkg/k8s/labels.go of linkerd/linkerd2).
    "linkerd-proxy",
    // Consul (`sidecarContainer` in control-plane/connect-inject/webhook of hashicorp/consul-k8s).
    CONSUL,
    // marin3r (`envoyContainerName` of 3scale-ops/marin3r).
    "envoy-sidecar",
    // Kuma and Kong Mesh (`KumaSidecarContainerName` in the injector of kumahq/kuma).
    "kuma-sidecar",
    // Dapr (`sidecarContainerName` of dapr/dapr and dapr/cli).
    "daprd",
    // Collectors as sidecars (`Container` in internal/naming of open-telemetry/opentelemetry-operator).
    "otc-container",
];

/// The name of Consul's own container. A pod with several services has one for each, with the service's name at the
/// end.
const CONSUL: &str = "consul-dataplane";

/// Says which kind a container is that is no init container.
pub(super) fn kind(name: Option<&str>, main: Option<&str>) -> ContainerKind {
    let name = name.unwrap_or_default();
    let of_consul = name.strip_prefix(CONSUL).is_some_and(|rest| rest.starts_with('-'));
    if of_consul || INJECTED.contains(&name) {
        ContainerKind::Beside
    } else if main == Some(name) {
        ContainerKind::Main
    } else {
        ContainerKind::Own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mesh_injects_is_beside_the_app() {
        for (name, main, expected) in [
            ("app", None, ContainerKind::Own),
            ("app", Some("app"), ContainerKind::Main),
            ("other", Some("app"), ContainerKind::Own),
            ("istio-proxy", Some("app"), ContainerKind::Beside),
            ("istio-proxy", Some("istio-proxy"), ContainerKind::Beside),
            ("consul-dataplane", None, ContainerKind::Beside),
            ("consul-dataplane-admin", None, ContainerKind::Beside),
            ("consul-dataplanes", None, ContainerKind::Own),
            ("envoy", None, ContainerKind::Own),
        ] {
            assert_eq!(kind(Some(name), main), expected, "{name} {main:?}");
        }
        assert_eq!(kind(None, Some("app")), ContainerKind::Own);
    }
}

#!/usr/bin/env bash
# Finding: kube's client of Kubernetes holds NO_PROXY against the proxy, not against the API server.
#
# Version: kube-client 5.0.0 (Rust), Config from a kubeconfig; Go 1.26's net/http, which kubectl uses, to compare.
#
# A good guess: NO_PROXY names the hosts that are asked without the proxy, as for curl, Go and Python. What happens: with a
# kubeconfig, a NO_PROXY that covers the API server changes nothing, and all requests go to the proxy; one that names the proxy
# itself turns the proxy off for every server. So the usual setting of a company's network (HTTPS_PROXY for the world outside,
# NO_PROXY for the cluster's addresses) leads operators and tools built on kube to a proxy that does not know the cluster.
#
# Seen:
#   kube, NO_PROXY is the API server                               through http://proxy.example.com:3128/
#   kube, NO_PROXY is the API server's network                     through http://proxy.example.com:3128/
#   kube, NO_PROXY is the proxy's host:port                        directly
#   Go, NO_PROXY is the API server                                 directly
#   Go, NO_PROXY is the API server's network                       directly
#   Go, NO_PROXY is the proxy's host:port                          through http://proxy.example.com:3128
#
# Needs: Rust 1.88 or later with cargo, Go 1.26 or later. Nothing is asked over the network but the package registries. Exit code
# 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

mkdir -p src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
kube-client = { version = "=5.0.0", default-features = false, features = ["client", "http-proxy"] }
k8s-openapi = { version = "=0.29.0", features = ["v1_33"] }
tokio = { version = "1", features = ["macros", "rt"] }
TOML
cat > src/main.rs <<'RUST'
use kube_client::Config;
use kube_client::config::{KubeConfigOptions, Kubeconfig};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let kubeconfig = Kubeconfig::from_yaml(include_str!("../kubeconfig.yaml")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    match config.proxy_url {
        Some(proxy) => println!("through {proxy}"),
        None => println!("directly"),
    }
}
RUST
cat > kubeconfig.yaml <<'YAML'
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
clusters: [{name: here, cluster: {server: "https://10.96.0.1:443"}}]
users: [{name: me, user: {token: none}}]
YAML
cat > main.go <<'GO'
package main

import (
	"fmt"
	"net/http"
)

func main() {
	request, err := http.NewRequest("GET", "https://10.96.0.1:443/version", nil)
	if err != nil {
		panic(err)
	}
	proxy, err := http.ProxyFromEnvironment(request)
	switch {
	case err != nil:
		panic(err)
	case proxy == nil:
		fmt.Println("directly")
	default:
		fmt.Println("through", proxy)
	}
}
GO
cat > go.mod <<'GO'
module finding

go 1.26.0
GO
{ cargo build --quiet --target-dir target && go build -o compared main.go; } > build.log 2>&1 || { cat build.log >&2; exit 1; }

expect() {
    printf '%-62s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

with() {
    env -u https_proxy -u no_proxy HTTPS_PROXY=http://proxy.example.com:3128 NO_PROXY="$1" "$2"
}

expect 'kube, NO_PROXY is the API server' 'through http://proxy.example.com:3128/' "$(with 10.96.0.1 target/debug/finding)"
expect 'kube, NO_PROXY is the API server'"'"'s network' 'through http://proxy.example.com:3128/' \
    "$(with 10.96.0.0/12 target/debug/finding)"
expect 'kube, NO_PROXY is the proxy'"'"'s host:port' 'directly' "$(with proxy.example.com:3128 target/debug/finding)"
expect 'Go, NO_PROXY is the API server' 'directly' "$(with 10.96.0.1 ./compared)"
expect 'Go, NO_PROXY is the API server'"'"'s network' 'directly' "$(with 10.96.0.0/12 ./compared)"
expect 'Go, NO_PROXY is the proxy'"'"'s host:port' 'through http://proxy.example.com:3128' "$(with proxy.example.com:3128 ./compared)"

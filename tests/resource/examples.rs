//! An example of each field, for the reference. A test holds that none is missing, another that the apiserver takes
//! them.

/// One field in use.
pub(crate) struct Example {
    /// Its path.
    pub(crate) path: &'static str,
    /// Fields of the spec, beside a source where they have none.
    pub(crate) yaml: &'static str,
}

/// The fields of `spec`, in the order in which one reads about them.
pub(crate) fn of_spec() -> Vec<Example> {
    let examples = SPEC.iter().map(|(path, yaml)| Example { path, yaml });
    examples.collect()
}

const SPEC: &[(&str, &str)] = &[
    ("spec.name", "name: user_service"),
    (
        "spec.source",
        "
source:
  service:
    name: user",
    ),
    (
        "spec.source.service",
        "
source:
  service:
    name: user",
    ),
    (
        "spec.source.service.name",
        "
source:
  service:
    name: user",
    ),
    (
        "spec.source.pods",
        "
source:
  pods:
    matchLabels:
      app.kubernetes.io/name: user
port: grpc      # a container port",
    ),
    (
        "spec.source.pods.matchLabels",
        "
source:
  pods:
    matchLabels:      # a pod has both
      app.kubernetes.io/name: user
      tier: backend",
    ),
    (
        "spec.source.pods.matchExpressions",
        "
source:
  pods:
    matchExpressions:      # both Deployments, but no canaries
    - { key: app.kubernetes.io/name, operator: In, values: [user, user-batch] }
    - { key: canary, operator: DoesNotExist }",
    ),
    (
        "spec.source.pods.matchExpressions[].key",
        "
source:
  pods:
    matchExpressions:
    - key: example.com/registered
      operator: Exists",
    ),
    (
        "spec.source.pods.matchExpressions[].operator",
        "
source:
  pods:
    matchLabels:
      app: user
    matchExpressions:
    - key: track
      operator: NotIn
      values: [canary]",
    ),
    (
        "spec.source.pods.matchExpressions[].values",
        "
source:
  pods:
    matchExpressions:
    - key: app
      operator: In
      values: [user, user-batch]",
    ),
    (
        "spec.source.static",
        "
source:
  static:      # allowed with --allow-static=203.0.113.0/24,2001:db8::/64
  - { address: 203.0.113.7, port: 8080 }
  - { address: \"2001:db8::7\", port: 8080 }",
    ),
    (
        "spec.source.static[].address",
        "
source:
  static:
  - address: 203.0.113.7
    port: 8080",
    ),
    (
        "spec.source.static[].port",
        "
source:
  static:      # two instances on one machine
  - { address: 203.0.113.7, port: 8080 }
  - { address: 203.0.113.7, port: 8081 }",
    ),
    (
        "spec.source.static[].tags",
        "
source:
  static:
  - { address: 203.0.113.7, port: 5432, tags: [primary] }
  - { address: 203.0.113.8, port: 5432, tags: [replica] }
tags: [postgres]      # both have this one",
    ),
    (
        "spec.source.static[].meta",
        "
source:
  static:
  - { address: 203.0.113.7, port: 5432, meta: { rack: r1 } }
  - { address: 203.0.113.8, port: 5432, meta: { rack: r2 } }",
    ),
    ("spec.port", "port: grpc      # or by number: 9090"),
    ("spec.tags", "tags: [user, \"version-${pod.labels['app.kubernetes.io/version']}\"]"),
    (
        "spec.meta",
        "
meta:
  team: shop
  version: ${pod.labels['app.kubernetes.io/version']}
  zone: ${node.zone}
  metrics-port: ${ports['metrics']}",
    ),
    (
        "spec.weights",
        "
weights:
  passing: 10
  warning: 1",
    ),
    (
        "spec.weights.passing",
        "
weights:
  passing: 10      # ten times as much as an instance of weight 1",
    ),
    (
        "spec.weights.warning",
        "
weights:
  passing: 10
  warning: 0      # nothing while a check warns",
    ),
    ("spec.enableTagOverride", "enableTagOverride: true"),
    (
        "spec.taggedAddresses",
        "
taggedAddresses:
  wan:      # for other datacenters: a load balancer in front of all instances
    address: 198.51.100.1
    port: 443",
    ),
    (
        "spec.taggedAddresses.*.address",
        "
taggedAddresses:
  wan: { address: 198.51.100.1, port: 443 }",
    ),
    (
        "spec.taggedAddresses.*.port",
        "
taggedAddresses:
  wan: { address: 198.51.100.1, port: 443 }",
    ),
    ("spec.dualStack", "dualStack: true"),
    ("spec.readiness", "readiness: Deregister"),
    (
        "spec.checks",
        "
checks:
- name: alive
  tcp: {}
- name: healthy
  http:
    path: /health
  interval: 30s",
    ),
    (
        "spec.checks[].name",
        "
checks:
- name: alive
  tcp: {}",
    ),
    (
        "spec.checks[].http",
        "
checks:
- name: healthy
  http:
    path: /health",
    ),
    (
        "spec.checks[].http.path",
        "
checks:
- name: healthy
  http:
    path: /health?deep=1",
    ),
    (
        "spec.checks[].http.scheme",
        "
checks:
- name: healthy
  http:
    scheme: https
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].http.method",
        "
checks:
- name: healthy
  http:
    path: /health
    method: HEAD",
    ),
    (
        "spec.checks[].http.headers",
        "
checks:
- name: healthy
  http:
    path: /health
    headers:
    - { name: Host, value: user.example.com }
    - { name: X-Probe, value: lictor }",
    ),
    (
        "spec.checks[].http.headers[].name",
        "
checks:
- name: healthy
  http:
    headers:
    - name: X-Probe
      value: lictor",
    ),
    (
        "spec.checks[].http.headers[].value",
        "
checks:
- name: healthy
  http:
    headers:
    - name: Accept
      value: application/json",
    ),
    (
        "spec.checks[].http.body",
        "
checks:
- name: answers
  http:
    path: /query
    method: POST
    headers:
    - { name: Content-Type, value: application/json }
    body: '{\"ping\": true}'",
    ),
    (
        "spec.checks[].http.tlsSkipVerify",
        "
checks:
- name: healthy
  http:
    scheme: https
    tlsSkipVerify: true      # certificates that the pods made themselves",
    ),
    (
        "spec.checks[].http.tlsServerName",
        "
checks:
- name: healthy
  http:
    scheme: https
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].tcp",
        "
checks:
- name: alive
  tcp: {}",
    ),
    (
        "spec.checks[].tcp.useTLS",
        "
checks:
- name: alive
  tcp:
    useTLS: true",
    ),
    (
        "spec.checks[].tcp.tlsSkipVerify",
        "
checks:
- name: alive
  tcp:
    useTLS: true
    tlsSkipVerify: true",
    ),
    (
        "spec.checks[].tcp.tlsServerName",
        "
checks:
- name: alive
  tcp:
    useTLS: true
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].grpc",
        "
checks:
- name: serving
  grpc: {}",
    ),
    (
        "spec.checks[].grpc.service",
        "
checks:
- name: serving
  grpc:
    service: shop.v1.User",
    ),
    (
        "spec.checks[].grpc.useTLS",
        "
checks:
- name: serving
  grpc:
    useTLS: true
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].grpc.tlsSkipVerify",
        "
checks:
- name: serving
  grpc:
    useTLS: true
    tlsSkipVerify: true",
    ),
    (
        "spec.checks[].grpc.tlsServerName",
        "
checks:
- name: serving
  grpc:
    useTLS: true
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].udp",
        "
checks:
- name: not-refused
  udp: {}
  port: syslog",
    ),
    (
        "spec.checks[].h2ping",
        "
checks:
- name: pinged
  h2ping:
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].h2ping.useTLS",
        "
checks:
- name: pinged
  h2ping:
    useTLS: false",
    ),
    (
        "spec.checks[].h2ping.tlsSkipVerify",
        "
checks:
- name: pinged
  h2ping:
    tlsSkipVerify: true",
    ),
    (
        "spec.checks[].h2ping.tlsServerName",
        "
checks:
- name: pinged
  h2ping:
    tlsServerName: user.example.com",
    ),
    (
        "spec.checks[].port",
        "
checks:
- name: healthy
  http:
    path: /health
  port: admin      # another port of the Service; or a number, such as 8081, at the instance itself",
    ),
    (
        "spec.checks[].interval",
        "
checks:
- name: alive
  tcp: {}
  interval: 1m30s",
    ),
    (
        "spec.checks[].timeout",
        "
checks:
- name: alive
  tcp: {}
  interval: 5s
  timeout: 500ms",
    ),
    (
        "spec.checks[].successBeforePassing",
        "
checks:
- name: alive
  tcp: {}
  successBeforePassing: 3      # passing at the third success in a row",
    ),
    (
        "spec.checks[].failuresBeforeWarning",
        "
checks:
- name: alive
  tcp: {}
  failuresBeforeWarning: 1
  failuresBeforeCritical: 3",
    ),
    (
        "spec.checks[].failuresBeforeCritical",
        "
checks:
- name: alive
  tcp: {}
  failuresBeforeCritical: 2      # one failure is forgiven",
    ),
    (
        "spec.checks[].notes",
        "
checks:
- name: alive
  tcp: {}
  notes: \"on call: team shop\"",
    ),
    ("spec.deletionPolicy", "deletionPolicy: Retain"),
    ("spec.class", "class: second      # the Lictor that runs with --class=second"),
    ("spec.namespace", "namespace: default      # the only one that this version knows"),
    ("spec.partition", "partition: default      # the only one that this version knows"),
];

/// A status with every field.
pub(crate) const STATUS: &str = r#"
observedGeneration: 3
serviceName: user_service
portInUse:
  source: service/user
  port: grpc
deletionPolicy: Retain
instances:
  desired: 3
  registered: 2
  passing: 1
  warning: 0
  critical: 1
problems:
- instance: prod-1:shop:user:user_service:0b5c7d8e-6f0c-4a51-9c3b-2d1f3a4b5c6d:9090
  reason: Refused
  message: "Permission denied: token lacks permission 'service:write' on \"user_service\""
conditions:
- type: Ready
  status: "False"
  reason: Refused
  message: "2 of 3 instances are registered; prod-1:shop:user:…: Permission denied: …"
  observedGeneration: 3
  lastTransitionTime: "2026-08-01T12:00:00Z"
- type: Accepted
  status: "True"
  reason: Accepted
  message: the spec is accepted
  observedGeneration: 3
  lastTransitionTime: "2026-08-01T11:00:00Z"
- type: Resolved
  status: "True"
  reason: Resolved
  message: the source was found
  observedGeneration: 3
  lastTransitionTime: "2026-08-01T11:00:00Z"
- type: Registered
  status: "False"
  reason: Refused
  message: "2 of 3 instances are registered; prod-1:shop:user:…: Permission denied: …"
  observedGeneration: 3
  lastTransitionTime: "2026-08-01T12:00:00Z"
"#;

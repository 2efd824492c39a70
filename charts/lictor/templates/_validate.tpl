{{/* What values.schema.json cannot say: how values go together. */}}

{{/* A duration such as 1m30s in seconds. */}}
{{- define "lictor.seconds" -}}
{{- $seconds := 0 }}
{{- range regexFindAll "[0-9]+[hms]" . -1 }}
{{- $number := regexFind "[0-9]+" . | int }}
{{- $seconds = add $seconds (mul $number (get (dict "h" 3600 "m" 60 "s" 1) (regexFind "[hms]" .))) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{- define "lictor.validate" -}}
{{- $values := .Values }}
{{- if not $values.enabled }}
{{- fail "enabled: it is for the condition of a parent chart, and does nothing here" }}
{{- end }}
{{- if and $values.watchNamespaces (not $values.clusterName) }}
{{- fail "clusterName: with watchNamespaces, Lictor may not read the uid of kube-system: give the cluster a name, unique among those that share the Consul" }}
{{- end }}
{{- /* The schema takes these, since its message would show them. */}}
{{- if contains "@" $values.consul.address }}
{{- fail "consul.address: it may not hold a user or a password; a token is given by consul.token.existingSecret" }}
{{- end }}
{{- if contains "@" $values.consul.proxy }}
{{- fail "consul.proxy: it may not hold a user or a password" }}
{{- end }}
{{- if eq $values.clusterName "lictor" }}
{{- fail "clusterName: what is Lictor's own in Consul begins with lictor; choose another name" }}
{{- end }}
{{- if and $values.clusterUid (not $values.clusterName) }}
{{- fail "clusterUid: it needs a clusterName" }}
{{- end }}
{{- $replicas := kindIs "invalid" $values.replicaCount | ternary 2 $values.replicaCount }}
{{- if and (gt (int $replicas) 1) (not $values.leaderElection.enabled) }}
{{- fail "replicaCount: without leaderElection.enabled there may be one replica only" }}
{{- end }}
{{- if and $values.uninstall.detach (not $values.leaderElection.enabled) }}
{{- fail "uninstall.detach: without leaderElection.enabled the replica that still runs would undo it; set uninstall.detach=false, and see to the finalizers yourself" }}
{{- end }}
{{- if and (ne $values.registration "catalog") (contains "," $values.consul.address) }}
{{- fail "consul.address: several addresses are for registration: catalog; with agent there is one agent" }}
{{- end }}
{{- if and $values.consul.proxy (contains "unix://" $values.consul.address) }}
{{- fail "consul.proxy: no proxy leads to a unix socket; leave it out, or give an address with http:// or https://" }}
{{- end }}
{{- if and $values.consul.esm (eq $values.registration "agent") }}
{{- fail "consul.esm: it is for registration: catalog; with agent, the agent itself runs the checks" }}
{{- end }}
{{- with $values.consul.authMethod }}
{{- if and .name $values.consul.token.existingSecret }}
{{- fail "consul.authMethod.name: give it or consul.token.existingSecret, not both" }}
{{- end }}
{{- if and .name (ne $values.registration "catalog") }}
{{- fail "consul.authMethod.name: it is for registration: catalog; an agent keeps the token that an instance was registered with, and that of a login ends" }}
{{- end }}
{{- if and (not .name) (or .audience .datacenter .namespace .partition .meta) }}
{{- fail "consul.authMethod: audience, datacenter, namespace, partition and meta need a name" }}
{{- end }}
{{- end }}
{{- with $values.consul.tls.ca }}
{{- if and .existingSecret .existingConfigMap }}
{{- fail "consul.tls.ca: give existingSecret or existingConfigMap, not both" }}
{{- end }}
{{- end }}
{{- if and (not $values.crds.keep) $values.crds.install (not $values.uninstall.detach) }}
{{- fail "crds.keep: without it and without uninstall.detach, resources would be stuck for ever when the chart is uninstalled: set one of them" }}
{{- end }}
{{- if and $values.uninstall.deregister (not $values.uninstall.detach) }}
{{- fail "uninstall.deregister: it needs uninstall.detach" }}
{{- end }}
{{- if and $values.metrics.serviceMonitor.enabled (not $values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled: it needs metrics.service.enabled" }}
{{- end }}
{{- if gt (include "lictor.seconds" $values.holdMassUnready | int) 3600 }}
{{- fail (printf "holdMassUnready: %s is not from 0s to 1h" $values.holdMassUnready) }}
{{- end }}
{{- $resync := include "lictor.seconds" $values.resyncInterval | int }}
{{- if or (lt $resync 1) (gt $resync 86400) }}
{{- fail (printf "resyncInterval: %s is not from 1s to 24h" $values.resyncInterval) }}
{{- end }}
{{- $lease := include "lictor.seconds" $values.leaderElection.leaseDuration | int }}
{{- if or (lt $lease 2) (gt $lease 300) }}
{{- fail (printf "leaderElection.leaseDuration: %s is not from 2s to 5m" $values.leaderElection.leaseDuration) }}
{{- end }}
{{- if ge (include "lictor.seconds" $values.gracePeriod | int) (int $values.terminationGracePeriodSeconds) }}
{{- fail "gracePeriod: it must be less than terminationGracePeriodSeconds, or a stop may cut writes short" }}
{{- end }}
{{- $within := include "lictor.seconds" $values.metrics.serviceMonitor.scrapeTimeout | int }}
{{- if gt $within (include "lictor.seconds" $values.metrics.serviceMonitor.interval | int) }}
{{- fail "metrics.serviceMonitor.scrapeTimeout: it may not be longer than the interval" }}
{{- end }}
{{- end }}

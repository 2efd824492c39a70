{{/* What picks this release's metrics. */}}
{{- define "lictor.metricsSelector" -}}
{{- default (printf "namespace=%q, job=%q" (include "lictor.namespace" .) (include "lictor.metricsServiceName" .)) .Values.metrics.prometheusRule.selector }}
{{- end }}

{{/*
The alerts. What only the replica that acts can know is asked of that one: a standby, or one that was it before, holds
an old answer. Labels of single replicas are left out where a change of replica must not begin the waiting anew.
*/}}
{{- define "lictor.alerts" -}}
{{- $s := include "lictor.metricsSelector" . }}
{{- $acts := printf "and on (namespace, instance) lictor_leader{%s} == 1" $s }}
{{- $stale := max 300 (mul 5 (include "lictor.seconds" .Values.resyncInterval)) }}
- alert: LictorDown
  expr: absent(lictor_leader{ {{- $s -}} })
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Prometheus has no metrics from any replica of Lictor.
    description: Registrations stay in Consul. If no replica runs, they are not updated.
- alert: LictorNoLeader
  expr: max by (namespace, job) (lictor_leader{ {{- $s -}} }) == 0
  for: 2m
  labels:
    severity: critical
  annotations:
    summary: No replica of Lictor is the leader.
    description: All replicas are standbys. Changes do not reach Consul.
- alert: LictorNotReady
  expr: max by (namespace, job) (lictor_ready{ {{- $s -}} } {{ $acts }}) == 0 unless on (namespace, job) max by (namespace, job) (lictor_consul_unavailable{ {{- $s -}} } {{ $acts }}) > 0
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: The leader of Lictor is not ready.
    description: It cannot read Kubernetes, or has not read Consul yet. Changes do not reach Consul. Its /readyz says why.
{{- range $severity, $for := dict "warning" "5m" "critical" "30m" }}
- alert: LictorConsulUnavailable
  expr: max by (namespace, job) (lictor_consul_unavailable{ {{- $s -}} } {{ $acts }}) > 0 unless on (namespace, job) max by (namespace, job) (lictor_consul_refuses{ {{- $s -}} } {{ $acts }}) > 0
  for: {{ $for }}
  labels:
    severity: {{ $severity }}
  annotations:
    summary: Consul is unavailable to Lictor.
    description: Changes do not reach Consul. Lictor tries again at least every 15 s. Its /readyz says why.
{{- end }}
- alert: LictorTokenRefused
  expr: max by (namespace, job) (lictor_consul_refuses{ {{- $s -}} } {{ $acts }}) > 0
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Consul refuses the requests of Lictor.
    description: Consul does not know the token, or the token lacks a permission. Changes do not reach Consul. The /readyz of the leader says why.
{{- range $severity, $left := dict "warning" "" "critical" 21600 }}
- alert: LictorCredentialEndsSoon
  expr: max by (namespace, job, credential) (lictor_credential_ends_soon{ {{- $s -}} }) > 0
  {{- with $left }} and on (namespace, job, credential) min by (namespace, job, credential) (lictor_credential_remaining_seconds{ {{- $s -}} }) < {{ . }}{{ end }}
  for: 15m
  labels:
    severity: {{ $severity }}
  annotations:
    summary: A certificate or the token for Consul expires soon.
    description: {{ `"Renew the {{ $labels.credential }} for Consul. Lictor reads the file again by itself. Its /readyz says when it expires."` }}
{{- end }}
- alert: LictorCredentialStale
  expr: max by (namespace, job, credential) (lictor_credential_stale{ {{- $s -}} }) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: A new certificate or token for Consul does not work.
    description: {{ `"The file of the {{ $labels.credential }} does not work. Lictor still uses the previous content. Its /readyz says why."` }}
- alert: LictorPolicyStale
  expr: max by (namespace, job) (lictor_policy_stale{ {{- $s -}} }) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: The policy file has an error.
    description: The last good policy stays in force. The /readyz of Lictor says what is wrong with the file.
- alert: LictorStandbyNotReady
  expr: lictor_ready{ {{- $s -}} } == 0 unless on (namespace, instance) lictor_leader{ {{- $s -}} } == 1
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: A standby replica of Lictor cannot take over.
    description: {{ `"{{ $labels.instance }} is a standby and is not ready. Its /readyz says why."` }}
- alert: LictorResyncOverdue
  expr: max by (namespace, job) (lictor_resync_age_seconds{ {{- $s -}} } {{ $acts }}) > {{ $stale }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The resync of Lictor is overdue.
    description: {{ `"The last complete resync began {{ $value | humanizeDuration }} ago. On at least one Consul node, Lictor does not see what others change."` }}
- alert: LictorWatchSilent
  expr: max by (namespace, job, kind) (lictor_watch_age_seconds{ {{- $s -}} }) > 60
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: A watch of Lictor delivers no events.
    description: {{ `"A watch of {{ $labels.kind }} has delivered no event for {{ $value | humanizeDuration }}. Changes since then are not in Consul. /readyz names the watch."` }}
- alert: LictorResourcesNotReady
  expr: sum by (namespace, job, reason) (lictor_resources{ {{- $s -}} , ready="False", reason!~"ConsulUnavailable|MassUnready|Refused"} {{ $acts }}) > 0
  for: 1h
  labels:
    severity: info
  annotations:
    summary: Resources are not ready for a reason that their authors can see.
    description: {{ `"{{ $value }} resources have not been ready for an hour. The reason {{ $labels.reason }} is explained in their conditions."` }}
{{- range $cause, $severity := dict "name" "warning" "spec" "info" }}
- alert: LictorResourcesFrozen
  expr: max by (namespace, job, cause) (lictor_frozen_resources{ {{- $s -}} , cause="{{ $cause }}"} {{ $acts }}) > 0
  for: 15m
  labels:
    severity: {{ $severity }}
  annotations:
    summary: Instances of resources do not follow their endpoints.
    description: {{ `"The instances of {{ $value }} resources do not follow their pods, because Lictor cannot act on the {{ $labels.cause }} of these resources. Their conditions say why."` }}
{{- end }}
- alert: LictorInstancesRefused
  expr: max by (namespace, job) (lictor_refused_instances{ {{- $s -}} } {{ $acts }}) > 0
  for: 10m
  labels:
    severity: info
  annotations:
    summary: Consul refuses instances.
    description: {{ `"Consul refuses {{ $value }} instances. The conditions of their resources say why."` }}
- alert: LictorInstancesRefused
  expr: sum by (namespace, job) (lictor_resources{ {{- $s -}} , reason="Refused"} {{ $acts }}) and on (namespace, job) max by (namespace, job) (lictor_refused_widely{ {{- $s -}} } {{ $acts }}) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Consul refuses instances of many resources.
    description: {{ `"Consul refuses instances of {{ $value }} resources, more than one in five in more than one namespace. Usually the token of Lictor lacks permissions."` }}
- alert: LictorRemovalsHeld
  expr: max by (namespace, job) (lictor_held_resources{ {{- $s -}} } {{ $acts }}) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Kubernetes does not confirm that instances are gone.
    description: {{ `"Removals of {{ $value }} resources await confirmation by a fresh list from Kubernetes. The instances stay in Consul."` }}
- alert: LictorMassUnready
  expr: max by (namespace, job) (lictor_mass_unready_instances{ {{- $s -}} } {{ $acts }}) > 0
  labels:
    severity: critical
  annotations:
    summary: Most instances stopped being ready at once.
    description: {{ `"{{ $value }} instances stopped being ready within a minute, but their endpoints still exist. The kubelets may be cut off from the API server."` }}
- alert: LictorWritesFail
  expr: sum by (namespace, job) (rate(lictor_consul_writes_total{ {{- $s -}} , outcome=~"not_tried|unknown"}[5m])) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Writes to Consul fail repeatedly.
    description: Consul does not answer writes, or is unavailable. Lictor retries them.
- alert: LictorBacklog
  expr: min by (namespace, job) (min_over_time(lictor_outstanding_writes{ {{- $s -}} }[15m]) {{ $acts }}) > 0
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Writes to Consul pile up.
    description: {{ `"At least {{ $value }} writes waited at every moment of the last 15 minutes."` }}
- alert: LictorSlow
  expr: histogram_quantile(0.99, sum by (namespace, job, le) (rate(lictor_endpoint_change_to_consul_seconds_bucket{ {{- $s -}} }[10m]))) > 10
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Changes reach Consul late.
    description: {{ `"One change in a hundred takes longer than {{ $value | humanizeDuration }} to reach Consul."` }}
{{- end }}

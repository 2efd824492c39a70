{{/* What picks this release's metrics. */}}
{{- define "lictor.metricsSelector" -}}
{{- default (printf "namespace=%q, job=%q" .Release.Namespace (include "lictor.metricsServiceName" .)) .Values.metrics.prometheusRule.selector }}
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
    summary: No replica of Lictor tells how it is.
    description: What is registered in Consul stays, and grows old.
- alert: LictorNoLeader
  expr: max by (namespace, job) (lictor_leader{ {{- $s -}} }) == 0
  for: 2m
  labels:
    severity: critical
  annotations:
    summary: No replica of Lictor acts.
    description: All replicas stand by, and nobody has the Lease. Changes do not reach Consul.
- alert: LictorNotReady
  expr: max by (namespace, job) (lictor_ready{ {{- $s -}} } {{ $acts }}) == 0
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: Lictor cannot do its work.
    description: It cannot read Kubernetes, or Consul does not answer. Changes do not reach Consul. Its /readyz says why.
- alert: LictorStandbyNotReady
  expr: lictor_ready{ {{- $s -}} } == 0 unless on (namespace, instance) lictor_leader{ {{- $s -}} } == 1
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: A replica of Lictor could not take over.
    description: {{ `"{{ $labels.instance }} stands by and is not ready. Its /readyz says why."` }}
- alert: LictorResyncOverdue
  expr: max by (namespace, job) (lictor_resync_age_seconds{ {{- $s -}} } {{ $acts }}) > {{ $stale }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Lictor has not looked at all of Consul for long.
    description: {{ `"Not every Consul node was read for {{ $value | humanizeDuration }}. What others change there is not seen."` }}
- alert: LictorInstancesRefused
  expr: max by (namespace, job) (lictor_refused_instances{ {{- $s -}} } {{ $acts }}) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Consul refuses instances.
    description: {{ `"Consul refuses {{ $value }} instances, mostly for want of rights of Lictor's token. The resources say why."` }}
- alert: LictorRemovalsHeld
  expr: max by (namespace, job) (lictor_held_resources{ {{- $s -}} } {{ $acts }}) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Kubernetes does not confirm that instances are gone.
    description: {{ `"Removals of {{ $value }} resources wait for Kubernetes to confirm them, which it does not."` }}
- alert: LictorMassUnready
  expr: max by (namespace, job) (lictor_mass_unready_instances{ {{- $s -}} } {{ $acts }}) > 0
  labels:
    severity: critical
  annotations:
    summary: Most instances stopped being ready at once.
    description: {{ `"{{ $value }} instances stopped being ready within a minute while their endpoints stay. The kubelets may be cut off from the API server."` }}
- alert: LictorWritesFail
  expr: sum by (namespace, job) (rate(lictor_consul_writes_total{ {{- $s -}} , outcome=~"not_tried|unknown"}[5m])) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Writes to Consul fail again and again.
    description: Consul does not answer writes, or is unavailable while they are made. They are tried again.
- alert: LictorBacklog
  expr: min by (namespace, job) (min_over_time(lictor_outstanding_writes{ {{- $s -}} }[15m]) {{ $acts }}) > 0
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Writes to Consul pile up.
    description: {{ `"At least {{ $value }} writes waited at any time of the last 15 minutes."` }}
- alert: LictorSlow
  expr: histogram_quantile(0.99, sum by (namespace, job, le) (rate(lictor_endpoint_change_to_consul_seconds_bucket{ {{- $s -}} }[10m]))) > 10
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Changes reach Consul late.
    description: {{ `"One change in a hundred takes longer than {{ $value | humanizeDuration }} to reach Consul."` }}
{{- end }}

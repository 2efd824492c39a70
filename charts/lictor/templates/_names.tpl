{{/* The chart's name in labels. */}}
{{- define "lictor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The release's name for what it makes. At most 50 characters, so that each suffix still fits into a DNS label. */}}
{{- define "lictor.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The namespace of all that the chart makes in one. */}}
{{- define "lictor.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* The name for what has no namespace: two releases of one name may be in two namespaces. */}}
{{- define "lictor.clusterName" -}}
{{- printf "%s:%s" (include "lictor.namespace" .) (include "lictor.fullname" .) }}
{{- end }}

{{- define "lictor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lictor.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The name of the port of /metrics. */}}
{{- define "lictor.metricsPortName" -}}
{{- ternary "metrics" "admin" (gt (int .Values.admin.metricsPort) 0) }}
{{- end }}

{{- define "lictor.metricsServiceName" -}}
{{- printf "%s-metrics" (include "lictor.fullname" .) }}
{{- end }}

{{- define "lictor.leaseName" -}}
{{- default (include "lictor.fullname" .) .Values.leaderElection.leaseName }}
{{- end }}

{{- define "lictor.leaseNamespace" -}}
{{- default (include "lictor.namespace" .) .Values.leaderElection.leaseNamespace }}
{{- end }}

{{/* What picks our pods, of all components. */}}
{{- define "lictor.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lictor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What our pods carry: nothing that changes with the chart's version alone, which would restart them. */}}
{{- define "lictor.podLabels" -}}
{{- with .Values.podLabels }}
{{- toYaml . }}
{{ end }}
{{- include "lictor.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels of a pod that runs once, with those that the values give to it alone. */}}
{{- define "lictor.oncePodLabels" -}}
{{- toYaml (merge (deepCopy .own) (include "lictor.podLabels" .root | fromYaml)) }}
{{- end }}

{{/* The annotations of a pod that runs once. */}}
{{- define "lictor.oncePodAnnotations" -}}
{{- with merge (deepCopy .own) .root.Values.podAnnotations }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "lictor.labels" -}}
{{ include "lictor.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: lictor
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
A registry for all images of a parent chart takes the place of the one in the repository, which is what stands before the
first slash and looks like a host: https://pkg.go.dev/github.com/distribution/reference.
*/}}
{{- define "lictor.image" -}}
{{- $repository := .Values.image.repository }}
{{- with (default dict .Values.global).imageRegistry }}
{{- $path := regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "" }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $path }}
{{- end }}
{{- $tag := .Values.image.tag }}
{{- if not (kindIs "string" $tag) }}
{{- $tag = int64 $tag | toString }}
{{- end }}
{{- /* A mirror may hold the image in another form, and so under another digest. */}}
{{- $released := index .Chart.Annotations "lictor.dev/image-digest" }}
{{- $asReleased := and (eq $repository "ghcr.io/lictor-dev/lictor") (not $tag) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else if and $released $asReleased }}
{{- printf "%s:%s@%s" $repository .Chart.AppVersion $released }}
{{- else }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion $tag) }}
{{- end }}
{{- end }}

{{/* The chart's labels, with those that the values give to one object, which come first: a Prometheus may pick by any. */}}
{{- define "lictor.labelsWith" -}}
{{- $ours := include "lictor.labels" .root | fromYaml }}
{{- toYaml (merge (deepCopy .labels) $ours) }}
{{- end }}

{{/* With the action that the Prometheus operator's definition sets by default: Argo CD sees a difference otherwise. */}}
{{- define "lictor.relabelings" -}}
{{- range . }}
- {{ toYaml (merge (deepCopy .) (dict "action" "replace")) | nindent 2 | trim }}
{{- end }}
{{- end }}

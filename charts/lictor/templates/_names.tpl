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

{{/* The name for what has no namespace: two releases of one name may be in two namespaces. */}}
{{- define "lictor.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "lictor.fullname" .) }}
{{- end }}

{{- define "lictor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lictor.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "lictor.metricsServiceName" -}}
{{- printf "%s-metrics" (include "lictor.fullname" .) }}
{{- end }}

{{- define "lictor.leaseName" -}}
{{- default (include "lictor.fullname" .) .Values.leaderElection.leaseName }}
{{- end }}

{{- define "lictor.leaseNamespace" -}}
{{- default .Release.Namespace .Values.leaderElection.leaseNamespace }}
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

{{- define "lictor.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

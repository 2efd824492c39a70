{{/* What the operator, the test and the hook have in common: the same flags, files and rights. */}}

{{/* The flags of `lictor run`, which the other subcommands take as well. */}}
{{- define "lictor.flags" -}}
- --registration={{ .Values.registration }}
{{- with .Values.clusterName }}
- --cluster-name={{ . }}
{{- end }}
{{- if .Values.clusterUid }}
- --cluster-uid={{ .Values.clusterUid }}
{{- else if .Values.watchNamespaces }}
- --cluster-uid={{ .Values.clusterName }}
{{- end }}
{{- range .Values.watchNamespaces }}
- --namespace={{ . }}
{{- end }}
{{- if and (eq .Values.registration "catalog") (not (include "lictor.watchesNodes" .)) }}
- --without-nodes
{{- end }}
{{- with .Values.class }}
- --class={{ . }}
{{- end }}
{{- with .Values.allowStatic }}
- --allow-static={{ join "," . }}
{{- end }}
{{- with .Values.endpointNetworks }}
- --endpoint-networks={{ join "," . }}
{{- end }}
{{- if .Values.policy.rules }}
- --policy=/etc/lictor/policy/policy.yaml
{{- end }}
{{- if .Values.allowSharedNames }}
- --allow-shared-names
{{- end }}
{{- if .Values.verifyEndpoints }}
- --verify-endpoints
{{- end }}
- --max-instances={{ int .Values.maxInstances }}
- --max-namespace-bytes={{ int .Values.maxNamespaceBytes }}
- --hold-mass-unready={{ .Values.holdMassUnready }}
{{- if .Values.consul.esm }}
- --consul-esm
{{- end }}
- --consul-address={{ .Values.consul.address }}
{{- with .Values.consul.datacenter }}
- --consul-datacenter={{ . }}
{{- end }}
{{- with .Values.consul.namespace }}
- --consul-namespace={{ . }}
{{- end }}
{{- with .Values.consul.partition }}
- --consul-partition={{ . }}
{{- end }}
{{- with .Values.consul.proxy }}
- --consul-proxy={{ . }}
{{- end }}
{{- if .Values.consul.token.existingSecret }}
- --consul-token-file=/etc/lictor/consul-token/token
{{- end }}
{{- with .Values.consul.authMethod }}
{{- if .name }}
- --consul-auth-method={{ .name }}
{{- if .audience }}
- --consul-auth-bearer-token-file=/etc/lictor/consul-auth/token
{{- end }}
{{- with .datacenter }}
- --consul-auth-datacenter={{ . }}
{{- end }}
{{- with .namespace }}
- --consul-auth-namespace={{ . }}
{{- end }}
{{- with .partition }}
- --consul-auth-partition={{ . }}
{{- end }}
{{- range $key, $value := .meta }}
- {{ printf "--consul-auth-meta=%s=%s" $key $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.consul.tls }}
{{- if or .ca.existingSecret .ca.existingConfigMap }}
- --consul-ca-cert=/etc/lictor/consul-ca/ca.crt
{{- end }}
{{- if .client.existingSecret }}
- --consul-client-cert=/etc/lictor/consul-client/tls.crt
- --consul-client-key=/etc/lictor/consul-client/tls.key
{{- end }}
- --consul-ssl-verify={{ .verify }}
{{- with .serverName }}
- --consul-tls-server-name={{ . }}
{{- end }}
{{- end }}
{{- if .Values.leaderElection.enabled }}
- --leader-election
- --lease-name={{ include "lictor.leaseName" . }}
- --lease-namespace={{ include "lictor.leaseNamespace" . }}
- --lease-duration={{ .Values.leaderElection.leaseDuration }}
{{- end }}
- --admin-address={{ .Values.admin.address }}:{{ int .Values.admin.port }}
{{- if .Values.admin.metricsPort }}
- --metrics-address={{ .Values.admin.address }}:{{ int .Values.admin.metricsPort }}
{{- end }}
- --resync-interval={{ .Values.resyncInterval }}
- --concurrency={{ int .Values.concurrency }}
- --status-rate={{ int .Values.statusRate }}
- --grace-period={{ .Values.gracePeriod }}
- --log-format={{ .Values.log.format }}
{{- with .Values.log.level }}
- {{ printf "--log-level=%s" . | quote }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The fields of a container that are not its name, its arguments or its probes. */}}
{{- define "lictor.container" -}}
image: {{ include "lictor.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- with include "lictor.volumeMounts" . | fromYamlArray }}
volumeMounts:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The fields of a pod that are not its containers or its place. */}}
{{- define "lictor.pod" -}}
serviceAccountName: {{ include "lictor.serviceAccountName" . }}
automountServiceAccountToken: true
# A Service called "lictor" would otherwise set variables that look like ours.
enableServiceLinks: false
{{- with include "lictor.imagePullSecrets" . | fromYamlArray }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
dnsPolicy: {{ .Values.dnsPolicy }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "lictor.volumes" . | fromYamlArray }}
volumes:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Those of the parent chart and ours, each once. A parent chart may give names alone. */}}
{{- define "lictor.imagePullSecrets" -}}
{{- $names := list }}
{{- range concat (default list (default dict .Values.global).imagePullSecrets) .Values.imagePullSecrets }}
{{- $names = append $names (kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "name")) }}
{{- end }}
{{- range uniq $names }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/*
All of ours are optional, so that a pod starts without them and says itself which is missing. The pod's user reads them
without an fsGroup, which OpenShift assigns itself.
*/}}
{{- define "lictor.volumes" -}}
{{- with .Values.consul.token }}
{{- if .existingSecret }}
- name: consul-token
  secret:
    secretName: {{ .existingSecret }}
    optional: true
    defaultMode: 0444
    items:
      - key: {{ .key }}
        path: token
{{- end }}
{{- end }}
{{- with .Values.consul.authMethod }}
{{- if and .name .audience }}
- name: consul-auth
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken:
          audience: {{ .audience | quote }}
          expirationSeconds: 3600
          path: token
{{- end }}
{{- end }}
{{- with .Values.consul.tls.ca }}
{{- if .existingSecret }}
- name: consul-ca
  secret:
    secretName: {{ .existingSecret }}
    optional: true
    defaultMode: 0444
    items:
      - key: {{ .key }}
        path: ca.crt
{{- else if .existingConfigMap }}
- name: consul-ca
  configMap:
    name: {{ .existingConfigMap }}
    optional: true
    defaultMode: 0444
    items:
      - key: {{ .key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- with .Values.consul.tls.client }}
{{- if .existingSecret }}
- name: consul-client
  secret:
    secretName: {{ .existingSecret }}
    optional: true
    defaultMode: 0444
    items:
      - key: {{ .certKey }}
        path: tls.crt
      - key: {{ .keyKey }}
        path: tls.key
{{- end }}
{{- end }}
{{- if .Values.policy.rules }}
- name: policy
  configMap:
    name: {{ include "lictor.fullname" . }}-policy
    defaultMode: 0444
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lictor.volumeMounts" -}}
{{- if .Values.consul.token.existingSecret }}
- name: consul-token
  mountPath: /etc/lictor/consul-token
  readOnly: true
{{- end }}
{{- if and .Values.consul.authMethod.name .Values.consul.authMethod.audience }}
- name: consul-auth
  mountPath: /etc/lictor/consul-auth
  readOnly: true
{{- end }}
{{- with .Values.consul.tls }}
{{- if or .ca.existingSecret .ca.existingConfigMap }}
- name: consul-ca
  mountPath: /etc/lictor/consul-ca
  readOnly: true
{{- end }}
{{- if .client.existingSecret }}
- name: consul-client
  mountPath: /etc/lictor/consul-client
  readOnly: true
{{- end }}
{{- end }}
{{- if .Values.policy.rules }}
- name: policy
  mountPath: /etc/lictor/policy
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

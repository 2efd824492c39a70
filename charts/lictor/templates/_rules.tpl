{{/* What Lictor does in each namespace that it watches. */}}
{{- define "lictor.rules" -}}
- apiGroups: [lictor.dev]
  resources: [consulservices]
  verbs: [list, watch, patch] # patch: the finalizer
- apiGroups: [lictor.dev]
  resources: [consulservices/status]
  verbs: [patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods] # while a resource selects pods or holds values of them, and with verifyEndpoints
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* Whether it may read Nodes: a word, or nothing. */}}
{{- define "lictor.watchesNodes" -}}
{{- $auto := eq (toString .Values.watchNodes) "auto" }}
{{- if ternary (not .Values.watchNamespaces) .Values.watchNodes $auto }}yes{{ end }}
{{- end }}

{{/* What it does in the whole cluster; nothing, where it is for single namespaces and without Nodes. */}}
{{- /* Says whether a rule of the policy asks for labels of namespaces. */ -}}
{{- define "lictor.watchesNamespaces" -}}
{{- range .Values.policy.rules }}{{ if .namespaceSelector }}yes{{ end }}{{ end }}
{{- end }}

{{- define "lictor.clusterRules" -}}
{{- if not .Values.watchNamespaces }}
{{- include "lictor.rules" . }}
- apiGroups: [""]
  resources: [namespaces] # its uid tells this cluster from others
  resourceNames: [kube-system]
  verbs: [get]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions] # whether it is being deleted, and all resources with it
  resourceNames: [consulservices.lictor.dev]
  verbs: [get]
{{- end }}
{{- if include "lictor.watchesNamespaces" . }}
- apiGroups: [""]
  resources: [namespaces] # a rule of the policy asks for their labels
  verbs: [list, watch]
{{- end }}
{{- if include "lictor.watchesNodes" . }}
- apiGroups: [""]
  resources: [nodes] # in catalog mode, and while a resource holds zones or regions
  verbs: [list, watch]
{{- end }}
{{- end }}

{{- define "lictor.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "lictor.serviceAccountName" . }}
    namespace: {{ include "lictor.namespace" . }}
{{- end }}

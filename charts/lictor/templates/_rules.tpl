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

{{/* What it reads besides that is in no namespace. */}}
{{- define "lictor.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes] # in catalog mode, and while a resource holds zones or regions
  verbs: [list, watch]
- apiGroups: [""]
  resources: [namespaces] # its uid tells this cluster from others
  resourceNames: [kube-system]
  verbs: [get]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions] # whether it is being deleted, and all resources with it
  resourceNames: [consulservices.lictor.dev]
  verbs: [get]
{{- end }}

{{- define "lictor.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "lictor.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

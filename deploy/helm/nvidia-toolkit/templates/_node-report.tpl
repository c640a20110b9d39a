{{/*
"true" where the pods report the state of their node to the API server; else empty.
Without a ValidatingAdmissionPolicy the right to do so would be one to every node: see docs/security.md.
*/}}
{{- define "nvidia-toolkit.reports" -}}
{{- $mode := .Values.nodeReport.enabled | toString -}}
{{- $hasPolicies := semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and (eq $mode "true") (not $hasPolicies) -}}
{{- fail (printf "nodeReport.enabled=true: Kubernetes %s has no ValidatingAdmissionPolicy, which restricts each pod to its own node; set nodeReport.enabled=false, or without-policy (docs/security.md says what that allows)" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $isOn := or (has $mode (list "true" "without-policy")) (and (eq $mode "auto") $hasPolicies .Values.rbac.create) -}}
{{- if and $isOn (or .Values.nodeReport.label .Values.nodeReport.condition .Values.nodeReport.events) -}}true{{- end -}}
{{- end -}}

{{/* "true" where the rights and policies for the report are created; else empty. */}}
{{- define "nvidia-toolkit.reportRights" -}}
{{- if and (include "nvidia-toolkit.reports" .) .Values.rbac.create -}}true{{- end -}}
{{- end -}}

{{/* "true" where policies restrict these rights to the pod's own node; else empty. */}}
{{- define "nvidia-toolkit.reportPolicies" -}}
{{- if and (include "nvidia-toolkit.reports" .) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}true{{- end -}}
{{- end -}}

{{- define "nvidia-toolkit.reportName" -}}
{{- printf "%s-node-report" (include "nvidia-toolkit.clusterName" .) -}}
{{- end -}}

{{- define "nvidia-toolkit.reportUser" -}}
system:serviceaccount:{{ include "nvidia-toolkit.namespace" . }}:{{ include "nvidia-toolkit.account" . }}
{{- end -}}

{{/* Metadata of the objects of the report. Kept on `helm uninstall`: the pods remove the label only afterwards. */}}
{{- define "nvidia-toolkit.reportMetadata" -}}
labels:
  {{- include "nvidia-toolkit.labels" . | nindent 2 }}
annotations:
  helm.sh/resource-policy: keep
{{- end -}}

{{/*
The scheduling of a RuntimeClass: only nodes with the label. Karpenter creates no node for a label that no NodePool
has, so there it has to be asked for.
*/}}
{{- define "nvidia-toolkit.scheduling" -}}
{{- $mode := .Values.nodeReport.scheduling | toString -}}
{{- $isOn := or (eq $mode "true") (and (eq $mode "auto") (not (.Capabilities.APIVersions.Has "karpenter.sh/v1"))) -}}
{{- if and $isOn .Values.nodeReport.label (include "nvidia-toolkit.reports" .) -}}
scheduling:
  nodeSelector:
    {{ .Values.nodeReport.label }}: "true"
{{- end -}}
{{- end -}}

{{/* The tolerations of the DaemonSet, as JSON: also of the taint of the rule in docs/kubernetes.md. */}}
{{- define "nvidia-toolkit.tolerations" -}}
{{- $own := list -}}
{{- if and (include "nvidia-toolkit.reports" .) .Values.nodeReport.condition -}}
{{- $own = list (dict "key" "readiness.k8s.io/nvidia-toolkit" "operator" "Exists") -}}
{{- end -}}
{{- concat .Values.daemonsets.tolerations $own | toJson -}}
{{- end -}}

{{/* The variables of the report. */}}
{{- define "nvidia-toolkit.reportVariables" -}}
{{- if include "nvidia-toolkit.reports" . -}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
{{- with .Values.nodeReport.label }}
- name: TOOLKIT_NODE_LABEL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.nodeReport.condition }}
- name: TOOLKIT_NODE_CONDITION
  value: {{ . | quote }}
{{- end }}
{{- if .Values.nodeReport.events }}
- name: TOOLKIT_EVENTS
  value: "true"
{{- end }}
{{- end -}}
{{- end -}}

{{/* The kinds of the objects outside of namespaces that `helm uninstall` keeps, as kubectl takes them. */}}
{{- define "nvidia-toolkit.reportKinds" -}}
{{- if include "nvidia-toolkit.reportRights" . -}},clusterrolebinding,clusterrole{{- end -}}
{{- if include "nvidia-toolkit.reportPolicies" . -}},validatingadmissionpolicybinding,validatingadmissionpolicy{{- end -}}
{{- end -}}

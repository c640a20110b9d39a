{{/*
"true" where the pods report the state of their node to the API server; else empty.
Without a ValidatingAdmissionPolicy the right to do so would be one to every node: see docs/security.md.
*/}}
{{- define "nvidia-toolkit.reports" -}}
{{- $mode := .Values.nodeReport.enabled | toString -}}
{{- $hasPolicies := semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and (eq $mode "true") (not $hasPolicies) -}}
{{- include "nvidia-toolkit.refuse" (printf "nodeReport.enabled=true: Kubernetes %s has no ValidatingAdmissionPolicy, which restricts each pod to its own node; set nodeReport.enabled=false, or without-policy (docs/security.md says what that allows)" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- /* The account `default` is that of every pod of the namespace, and the rights would be theirs as well. */ -}}
{{- $isShared := eq (include "nvidia-toolkit.account" .) "default" -}}
{{- if and $isShared (has $mode (list "true" "without-policy")) -}}
{{- include "nvidia-toolkit.refuse" (printf "nodeReport.enabled=%s: the account `default` is that of every pod in the namespace; name one in serviceAccount.name" $mode) -}}
{{- end -}}
{{- $isOn := or (has $mode (list "true" "without-policy")) (and (eq $mode "auto") $hasPolicies .Values.rbac.create (not $isShared)) -}}
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
  {{- include "nvidia-toolkit.keep" . | nindent 2 }}
{{- end -}}

{{/*
"true" where RuntimeClasses may select the label without keeping pods from nodes that have the handlers: the pods of
this release set the label already, or there are none yet, and all nodes with GPUs are theirs. A lookup that asked
no server is empty, and then nothing is known. Karpenter creates no node for a label that no NodePool has.
*/}}
{{- define "nvidia-toolkit.mayWait" -}}
{{- $isPool := or .Values.daemonsets.nodeSelector .Values.daemonsets.nodeAffinity -}}
{{- if and .Values.runtimeClasses.lookup (not $isPool) (include "nvidia-toolkit.reportRights" .) (not (.Capabilities.APIVersions.Has "karpenter.sh/v1")) -}}
  {{- if lookup "node.k8s.io/v1" "RuntimeClass" "" "" -}}
    {{- $daemonset := lookup "apps/v1" "DaemonSet" (include "nvidia-toolkit.namespace" .) (include "nvidia-toolkit.name" .) -}}
    {{- $sets := not $daemonset -}}
    {{- range dig "spec" "template" "spec" "containers" list $daemonset -}}
      {{- range .env -}}
        {{- if and (eq .name "TOOLKIT_NODE_LABEL") (eq (.value | default "") $.Values.nodeReport.label) -}}{{- $sets = true -}}{{- end -}}
      {{- end -}}
    {{- end -}}
    {{- if $sets -}}true{{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* The scheduling of a RuntimeClass: only nodes with the label. */}}
{{- define "nvidia-toolkit.scheduling" -}}
{{- $mode := .Values.nodeReport.scheduling | toString -}}
{{- $isOn := or (eq $mode "true") (and (eq $mode "auto") (include "nvidia-toolkit.mayWait" .)) -}}
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

{{/*
What `helm uninstall` keeps, as kubectl takes it. By name: a selector finds the cluster's objects of another release
with this name as well, which is in another namespace.
*/}}
{{- define "nvidia-toolkit.kept" -}}
{{- $name := include "nvidia-toolkit.name" . -}}
{{- $report := include "nvidia-toolkit.reportName" . -}}
{{- if .Values.rbac.create }} rolebinding/{{ $name }} role/{{ $name }}{{ end -}}
{{- if .Values.serviceAccount.create }} serviceaccount/{{ include "nvidia-toolkit.account" . }}{{ end -}}
{{- if include "nvidia-toolkit.reportRights" . }} clusterrolebinding/{{ $report }} clusterrole/{{ $report }}{{ end -}}
{{- if include "nvidia-toolkit.reportPolicies" . -}}
{{- range list $report (printf "%s-events" $report) }} validatingadmissionpolicybinding/{{ . }} validatingadmissionpolicy/{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

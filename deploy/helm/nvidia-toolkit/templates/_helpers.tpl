{{/* The name of the DaemonSet and of what belongs to it. At most 52 characters: a pod's name and a revision's have more. */}}
{{- define "nvidia-toolkit.name" -}}
{{- $chart := include "nvidia-toolkit.chartName" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "nvidia-toolkit.chartName" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- define "nvidia-toolkit.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* The name of an object outside of namespaces: two releases may have the same name in two namespaces. */}}
{{- define "nvidia-toolkit.clusterName" -}}
{{- $name := include "nvidia-toolkit.name" . -}}
{{- $namespace := include "nvidia-toolkit.namespace" . -}}
{{- ternary $name (printf "%s.%s" $namespace $name) (eq $name $namespace) -}}
{{- end -}}

{{- define "nvidia-toolkit.selector" -}}
app.kubernetes.io/name: {{ include "nvidia-toolkit.chartName" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Without the chart's version: a pod that is the same in two versions is not replaced. */}}
{{- define "nvidia-toolkit.podLabels" -}}
{{ include "nvidia-toolkit.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .Values.daemonsets.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "nvidia-toolkit.labels" -}}
{{ include "nvidia-toolkit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "nvidia-toolkit.account" -}}
{{- $own := ternary (include "nvidia-toolkit.name" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $own -}}
{{- end -}}

{{- define "nvidia-toolkit.image" -}}
{{- $repository := .Values.toolkit.repository -}}
{{- with (.Values.global | default dict).imageRegistry -}}
  {{- /* A first part with a dot or a port, or `localhost`, is a registry, as container runtimes take it. */ -}}
  {{- $repository = regexReplaceAll "^([^/]*[.:][^/]*|localhost)(/|$)" $repository "" -}}
  {{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository | trimSuffix "/" -}}
{{- end -}}
{{- $name := printf "%s/%s" $repository .Values.toolkit.image -}}
{{- if .Values.toolkit.digest -}}
{{- printf "%s@%s" $name .Values.toolkit.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.Values.toolkit.version | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The pull secrets of the pods as a list of objects, in YAML; empty without any. */}}
{{- define "nvidia-toolkit.pullSecrets" -}}
{{- $names := list -}}
{{- range concat ((.Values.global | default dict).imagePullSecrets | default list) (.Values.toolkit.imagePullSecrets | default list) -}}
  {{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- range uniq $names }}
- name: {{ . | quote }}
{{- end -}}
{{- end -}}

{{- define "nvidia-toolkit.priorityClass" -}}
{{- ternary (include "nvidia-toolkit.clusterName" .) .Values.daemonsets.priorityClassName .Values.priorityClass.create -}}
{{- end -}}

{{/* The value of the first of some variables that toolkit.env sets. */}}
{{- define "nvidia-toolkit.variable" -}}
{{- $found := "" -}}
{{- range $name := .names -}}
  {{- $value := "" -}}
  {{- range $.root.Values.toolkit.env -}}
    {{- if eq .name $name -}}{{- $value = .value | toString -}}{{- end -}}
  {{- end -}}
  {{- if not $found -}}{{- $found = $value -}}{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{/* "true" where the NRI plugin takes the place of the handlers. */}}
{{- define "nvidia-toolkit.nri" -}}
{{- $given := include "nvidia-toolkit.variable" (dict "root" . "names" (list "ENABLE_NRI_PLUGIN")) | lower -}}
{{- $is := ternary .Values.cdi.nriPluginEnabled (has $given (list "true" "t" "1" "yes" "on")) (eq $given "") -}}
{{- if $is -}}true{{- end -}}
{{- end -}}

{{/* The distribution's row of files/distributions.json. */}}
{{- define "nvidia-toolkit.row" -}}
{{- $rows := .Files.Get "files/distributions.json" | fromJson -}}
{{- $runtime := .Values.operator.defaultRuntime -}}
{{- $row := get $rows (.Values.operator.distribution | default $runtime) -}}
{{- if ne $row.runtime $runtime -}}
{{- include "nvidia-toolkit.refuse" (printf "operator.distribution: %s runs %s, but operator.defaultRuntime is %s; set operator.defaultRuntime=%s" .Values.operator.distribution $row.runtime $runtime $row.runtime) -}}
{{- end -}}
{{- $row | toJson -}}
{{- end -}}

{{- define "nvidia-toolkit.installDir" -}}
{{- include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_INSTALL_DIR" "ROOT")) | default .Values.toolkit.installDir | clean -}}
{{- end -}}

{{- define "nvidia-toolkit.gracePeriod" -}}
{{- $given := include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_GRACE_PERIOD")) -}}
{{- $given | default (.Values.toolkit.gracePeriodSeconds | toString) | trimSuffix "s" | float64 | ceil | int -}}
{{- end -}}

{{- define "nvidia-toolkit.runtimeClass" -}}
{{- /* The program's order: what is named after another runtime comes last. */ -}}
{{- $names := list "NVIDIA_RUNTIME_NAME" "CONTAINERD_RUNTIME_CLASS" "DOCKER_RUNTIME_NAME" -}}
{{- if eq .Values.operator.defaultRuntime "docker" -}}
{{- $names = list "NVIDIA_RUNTIME_NAME" "DOCKER_RUNTIME_NAME" "CONTAINERD_RUNTIME_CLASS" -}}
{{- end -}}
{{- $name := include "nvidia-toolkit.variable" (dict "root" . "names" $names) | default .Values.operator.runtimeClass -}}
{{- /* As the program takes them: these two are the names of the other handlers. */ -}}
{{- ternary "nvidia" $name (has $name (list "nvidia-cdi" "nvidia-legacy")) -}}
{{- end -}}

{{/* "true" where the pod asks the API server whether its DaemonSet is gone, else "false". */}}
{{- define "nvidia-toolkit.asks" -}}
{{- not (has (include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_ON_EXIT" "ON_EXIT"))) (list "keep" "revert")) -}}
{{- end -}}

{{/* "true" where the driver's CDI specification is made; else empty. */}}
{{- define "nvidia-toolkit.cdi" -}}
{{- $given := include "nvidia-toolkit.variable" (dict "root" . "names" (list "CDI_ENABLED" "ENABLE_CDI")) | lower -}}
{{- if ternary .Values.cdi.enabled (has $given (list "true" "t" "1" "yes" "on")) (eq $given "") -}}
true
{{- end -}}
{{- end -}}

{{/*
"true" where the container is privileged; else empty. By default it is where devices of the driver are made and
opened, which the control group of a container that is not privileged forbids.
*/}}
{{- define "nvidia-toolkit.privileged" -}}
{{- $given := .Values.toolkit.privileged | toString -}}
{{- if or (eq $given "true") (and (eq $given "auto") (include "nvidia-toolkit.cdi" .)) -}}
true
{{- end -}}
{{- end -}}

{{/*
The directories of the host that are seen at the same path in the container, as JSON: path to "rw" or "ro".
Written to are those of the root config, of the drop-in, of the toolkit and of what is remembered until the
next boot. A socket's directory is only looked into (a restart replaces the socket, so it alone will not do).
*/}}
{{- define "nvidia-toolkit.mounts" -}}
{{- $runtime := .Values.operator.defaultRuntime -}}
{{- $row := include "nvidia-toolkit.row" . | fromJson -}}
{{- $prefix := printf "%s_" (upper $runtime) -}}
{{- $config := include "nvidia-toolkit.variable" (dict "root" . "names" (list "RUNTIME_CONFIG" (printf "%sCONFIG" $prefix))) | default $row.config -}}
{{- $socket := include "nvidia-toolkit.variable" (dict "root" . "names" (list "RUNTIME_SOCKET" (printf "%sSOCKET" $prefix))) -}}
{{- $dropIn := include "nvidia-toolkit.variable" (dict "root" . "names" (list "RUNTIME_DROP_IN_CONFIG")) | default $row.dropIn -}}
{{- $pidFile := include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_PID_FILE" "PID_FILE")) | default "/run/nvidia/toolkit/toolkit.pid" -}}
{{- $writable := list (dir $config) (include "nvidia-toolkit.installDir" .) "/run/nvidia" (dir $pidFile) -}}
{{- if $dropIn -}}{{- $writable = append $writable (dir $dropIn) -}}{{- end -}}
{{- with include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_READINESS_FILE")) -}}{{- $writable = append $writable (dir .) -}}{{- end -}}
{{- if and (eq $runtime "crio") (eq (include "nvidia-toolkit.variable" (dict "root" . "names" (list "CRIO_CONFIG_MODE"))) "hook") -}}
{{- $writable = append $writable (include "nvidia-toolkit.variable" (dict "root" . "names" (list "CRIO_HOOKS_DIR")) | default "/usr/share/containers/oci/hooks.d") -}}
{{- end -}}
{{- if include "nvidia-toolkit.cdi" . -}}
{{- $writable = append $writable (include "nvidia-toolkit.variable" (dict "root" . "names" (list "CDI_OUTPUT_DIR")) | default "/var/run/cdi") -}}
{{- end -}}
{{- $readable := list -}}
{{- range (ternary (list $socket) $row.sockets (ne $socket "")) -}}{{- $readable = append $readable (dir .) -}}{{- end -}}
{{- if include "nvidia-toolkit.nri" . -}}
{{- $readable = append $readable (include "nvidia-toolkit.variable" (dict "root" . "names" (list "NRI_SOCKET")) | default "/var/run/nri/nri.sock" | dir) -}}
{{- end -}}
{{- range .Values.toolkit.extraMounts -}}
  {{- if .readOnly -}}{{- $readable = append $readable .path -}}{{- else -}}{{- $writable = append $writable .path -}}{{- end -}}
{{- end -}}
{{- $kept := dict -}}
{{- range $way, $paths := dict "ro" $readable "rw" $writable -}}
  {{- range $path := $paths -}}
    {{- /* /var/run is a link to /run, here as on the node: mounted at both, one would hide the other. */ -}}
    {{- $path = regexReplaceAll "^/var/run(/|$)" (clean $path) "/run$1" | clean -}}
    {{- $_ := set $kept $path $way -}}
  {{- end -}}
{{- end -}}
{{- $tops := list "/" "/bin" "/boot" "/dev" "/etc" "/home" "/lib" "/lib64" "/mnt" "/opt" "/proc" "/root" "/run" "/sbin" "/srv" "/sys" "/tmp" "/usr" "/usr/bin" "/usr/lib" "/usr/local" "/usr/sbin" "/usr/share" "/var" "/var/lib" -}}
{{- $mounts := dict -}}
{{- range $path := keys $kept | sortAlpha -}}
  {{- $way := get $kept $path -}}
  {{- if and (eq $way "rw") (has $path $tops) -}}
  {{- include "nvidia-toolkit.refuse" (printf "toolkit: something lies directly in %s, and that is never mounted writable: give it a directory of its own" $path) -}}
  {{- end -}}
  {{- if eq $path "/" -}}{{- include "nvidia-toolkit.refuse" "toolkit: a socket lies directly in /: give it a directory of its own" -}}{{- end -}}
  {{- $covered := false -}}
  {{- range $above := keys $kept -}}
    {{- if and (ne $above $path) (hasPrefix (printf "%s/" $above) $path) (or (eq (get $kept $above) "rw") (eq $way "ro")) -}}
      {{- $covered = true -}}
    {{- end -}}
  {{- end -}}
  {{- if not $covered -}}{{- $_ := set $mounts $path $way -}}{{- end -}}
{{- end -}}
{{- $mounts | toJson -}}
{{- end -}}

{{/* A volume's name out of a path. */}}
{{- define "nvidia-toolkit.volume" -}}
{{- regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trimAll "-" | trunc 50 | trimSuffix "-" -}}-{{ sha256sum . | trunc 6 }}
{{- end -}}

{{/* The handler that the pods themselves run through; empty for the runtime's default. */}}
{{- define "nvidia-toolkit.ownHandler" -}}
{{- $usual := ternary "runc" "none" (eq .Values.operator.defaultRuntime "containerd") -}}
{{- .Values.daemonsets.runtimeHandler | default $usual | replace "none" "" -}}
{{- end -}}

{{/* The RuntimeClass of the pods. A RuntimeClass's handler is immutable, so another handler needs another name. */}}
{{- define "nvidia-toolkit.ownClass" -}}
{{- include "nvidia-toolkit.clusterName" . }}-pod-{{ include "nvidia-toolkit.ownHandler" . }}
{{- end -}}

{{/*
The RuntimeClasses of the handlers, as JSON: `created` are the names of those that this release has, and `left` are
those of others, from the name to a text that says whose. A lookup that asked no server is empty.
*/}}
{{- define "nvidia-toolkit.runtimeClasses" -}}
{{- $created := list -}}
{{- $left := dict -}}
{{- if and .Values.runtimeClasses.create (not (include "nvidia-toolkit.nri" .)) -}}
  {{- $shipped := (include "nvidia-toolkit.row" . | fromJson).runtimeClasses -}}
  {{- $answer := dict -}}
  {{- if .Values.runtimeClasses.lookup -}}{{- $answer = lookup "node.k8s.io/v1" "RuntimeClass" "" "" -}}{{- end -}}
  {{- $there := dict -}}
  {{- range $answer.items -}}{{- $_ := set $there .metadata.name . -}}{{- end -}}
  {{- range $name := list (include "nvidia-toolkit.runtimeClass" .) "nvidia-cdi" "nvidia-legacy" -}}
    {{- $class := get $there $name -}}
    {{- if $class -}}
      {{- $annotations := $class.metadata.annotations | default dict -}}
      {{- $release := get $annotations "meta.helm.sh/release-name" -}}
      {{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
      {{- if and (eq $release $.Release.Name) (eq $namespace $.Release.Namespace) -}}
        {{- $created = append $created $name -}}
      {{- else -}}
        {{- $of := "was not created by helm" -}}
        {{- with $class.metadata.ownerReferences -}}{{- $of = printf "belongs to the %s %s" (first .).kind (first .).name -}}{{- end -}}
        {{- with $release -}}{{- $of = printf "belongs to the release %s/%s" $namespace . -}}{{- end -}}
        {{- if ne $class.handler $name -}}{{- $of = printf "%s and has the handler %s" $of $class.handler -}}{{- end -}}
        {{- $_ := set $left $name $of -}}
      {{- end -}}
    {{- else if and (not $answer) (has $name $shipped) -}}
      {{- $_ := set $left $name (printf "is shipped with %s" $.Values.operator.distribution) -}}
    {{- else -}}
      {{- $created = append $created $name -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- dict "created" $created "left" $left | toJson -}}
{{- end -}}

{{/* The update strategy of the DaemonSet, in YAML. */}}
{{- define "nvidia-toolkit.updateStrategy" -}}
{{- $given := .Values.daemonsets.updateStrategy | default "RollingUpdate" -}}
{{- $type := $given -}}
{{- $pace := .Values.daemonsets.rollingUpdate | default dict -}}
{{- if kindIs "map" $given -}}
  {{- $type = get $given "type" | default "RollingUpdate" -}}
  {{- $pace = get $given "rollingUpdate" | default $pace -}}
{{- end -}}
type: {{ $type }}
{{- if and (eq $type "RollingUpdate") $pace }}
rollingUpdate:
  {{- toYaml $pace | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The timing of a probe, in YAML. */}}
{{- define "nvidia-toolkit.probe" -}}
periodSeconds: {{ .periodSeconds }}
timeoutSeconds: {{ .timeoutSeconds }}
failureThreshold: {{ .failureThreshold }}
{{- end -}}

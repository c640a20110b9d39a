{{- define "nvidia-toolkit.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "nvidia-toolkit.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nvidia-toolkit.labels" -}}
{{ include "nvidia-toolkit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "nvidia-toolkit.account" -}}
{{- $own := ternary (include "nvidia-toolkit.name" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $own -}}
{{- end -}}

{{- define "nvidia-toolkit.image" -}}
{{- $name := printf "%s/%s" .Values.toolkit.repository .Values.toolkit.image -}}
{{- if .Values.toolkit.digest -}}
{{- printf "%s@%s" $name .Values.toolkit.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.Values.toolkit.version | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "nvidia-toolkit.priorityClass" -}}
{{- ternary (include "nvidia-toolkit.name" .) .Values.daemonsets.priorityClassName .Values.priorityClass.create -}}
{{- end -}}

{{/* The value of the first of some variables that toolkit.env sets; of a name that is there twice, the last. */}}
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
{{- fail (printf "operator.distribution: %s runs %s, but operator.defaultRuntime is %s" .Values.operator.distribution $row.runtime $runtime) -}}
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
{{- $names := dict "containerd" (list "NVIDIA_RUNTIME_NAME" "CONTAINERD_RUNTIME_CLASS") "docker" (list "NVIDIA_RUNTIME_NAME" "DOCKER_RUNTIME_NAME") "crio" (list "NVIDIA_RUNTIME_NAME") -}}
{{- $name := include "nvidia-toolkit.variable" (dict "root" . "names" (get $names .Values.operator.defaultRuntime)) | default .Values.operator.runtimeClass -}}
{{- /* As the program takes them: these two are the names of the other handlers. */ -}}
{{- ternary "nvidia" $name (has $name (list "nvidia-cdi" "nvidia-legacy")) -}}
{{- end -}}

{{/* "true" where the pod asks the API server whether its DaemonSet is gone, else "false". */}}
{{- define "nvidia-toolkit.asks" -}}
{{- not (has (include "nvidia-toolkit.variable" (dict "root" . "names" (list "TOOLKIT_ON_EXIT" "ON_EXIT"))) (list "keep" "revert")) -}}
{{- end -}}

{{/* "true" where the driver's CDI specification is made; else empty. */}}
{{- define "nvidia-toolkit.cdi" -}}
{{- if has (include "nvidia-toolkit.variable" (dict "root" . "names" (list "CDI_ENABLED" "ENABLE_CDI")) | lower) (list "true" "t" "1" "yes" "on") -}}
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
  {{- fail (printf "toolkit: something lies directly in %s, and that is never mounted writable: give it a directory of its own" $path) -}}
  {{- end -}}
  {{- if eq $path "/" -}}{{- fail "toolkit: a socket lies directly in /: give it a directory of its own" -}}{{- end -}}
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

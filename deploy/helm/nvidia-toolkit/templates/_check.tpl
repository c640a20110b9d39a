{{/*
Checks of the values that a JSON schema cannot express, or only with a message that does not help.

Helm checks values.schema.json before it renders anything, and its messages cannot be changed: an unknown variable
is answered by a list of all, and an unknown value without the one that was meant. So that file leaves unknown names
and choices to the template below, which reads the rules in files/values.strict.schema.json.
*/}}

{{- define "nvidia-toolkit.check" -}}
{{- $schema := .Files.Get "files/values.strict.schema.json" | fromJson -}}
{{- include "nvidia-toolkit.checkValue" (dict "schema" $schema "rule" $schema "value" .Values "path" "") -}}
{{- include "nvidia-toolkit.checkVariables" . -}}
{{- range $path, $value := dict "enabled" .Values.enabled "toolkit.enabled" .Values.toolkit.enabled -}}
{{- if eq (toString $value) "false" -}}
{{- include "nvidia-toolkit.refuse" (printf "%s=false: this chart installs nothing but the toolkit; leave the chart out, or run helm uninstall" $path) -}}
{{- end -}}
{{- end -}}
{{- if (.Values.daemonsets.podSecurityContext | default dict).runAsNonRoot -}}
{{- include "nvidia-toolkit.refuse" "daemonsets.podSecurityContext.runAsNonRoot=true: the installer writes files of the node's root; leave it out, and see docs/security.md for its four capabilities" -}}
{{- end -}}
{{- with .Values.daemonsets.updateStrategy -}}
  {{- if kindIs "map" . -}}
    {{- $surge := dig "rollingUpdate" "maxSurge" 0 . | toString -}}
    {{- if not (has $surge (list "0" "0%")) -}}
    {{- include "nvidia-toolkit.refuse" (printf "daemonsets.updateStrategy.rollingUpdate.maxSurge=%s: two pods would configure one node at a time; leave it out, and set maxUnavailable" $surge) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range list "label" "condition" -}}
{{- $given := get $.Values.nodeReport . -}}
{{- if regexMatch "^([^/]*[.])?(kubernetes|k8s)[.]io/" $given -}}
{{- include "nvidia-toolkit.refuse" (printf "nodeReport.%s: %s belongs to Kubernetes; use a prefix of your own, such as example.com/gpu" . $given) -}}
{{- end -}}
{{- end -}}
{{- range list "readinessProbe" "startupProbe" -}}
{{- if not (get $.Values.daemonsets .) -}}
{{- include "nvidia-toolkit.refuse" (printf "daemonsets.%s: without it a pod counts as ready before its node is set up; only daemonsets.livenessProbe can be null" .) -}}
{{- end -}}
{{- end -}}
{{- range $path, $labels := dict "commonLabels" .Values.commonLabels "daemonsets.labels" .Values.daemonsets.labels -}}
  {{- range $name, $_ := $labels -}}
    {{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: the chart itself sets %s; use another name (nameOverride changes app.kubernetes.io/name)" $path $name) -}}
    {{- end -}}
    {{- if and (eq $path "daemonsets.labels") (hasKey ($.Values.commonLabels | default dict) $name) -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: %s is in commonLabels already; set it in one place" $path $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/*
Fail with a message. `helm lint` lets `fail` pass, and so would every check; it does not let a template pass that
does not exist, and its complaint about that contains the message.
*/}}
{{- define "nvidia-toolkit.refuse" -}}
{{- fail . -}}
{{- include . "" -}}
{{- end -}}

{{/* Fail if a variable is given twice, is set by the chart, or ends the process that a DaemonSet keeps. */}}
{{- define "nvidia-toolkit.checkVariables" -}}
{{- $reasons := dict
    "RUNTIME" "set operator.defaultRuntime"
    "TOOLKIT_DAEMONSET" "the chart sets it; fullnameOverride changes the name"
    "NVIDIA_VISIBLE_DEVICES" "the chart sets it, so that the pod itself gets no GPU"
    "TOOLKIT_NODE_LABEL" "set nodeReport.label" "TOOLKIT_NODE_CONDITION" "set nodeReport.condition"
    "TOOLKIT_EVENTS" "set nodeReport.events" "POD_UID" "the chart sets it"
    "POD_NAME" "the chart sets it" "POD_NAMESPACE" "the chart sets it" "NODE_NAME" "the chart sets it" -}}
{{- if .Values.metrics.enabled -}}{{- $_ := set $reasons "TOOLKIT_METRICS_ADDRESS" "set metrics.host and metrics.port" -}}{{- end -}}
{{- if .Values.toolkit.waitForDriver -}}{{- $_ := set $reasons "WAIT_FOR_DRIVER" "toolkit.waitForDriver sets it" -}}{{- end -}}
{{- $seen := dict -}}
{{- range $place, $variables := dict "toolkit.env" .Values.toolkit.env "toolkit.extraEnv" .Values.toolkit.extraEnv -}}
  {{- range $index, $variable := $variables -}}
    {{- $path := printf "%s[%d]" $place $index -}}
    {{- with get $reasons .name -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: %s cannot be set here: %s" $path $variable.name .) -}}
    {{- end -}}
    {{- if and (eq $place "toolkit.extraEnv") (has .name (list "ROOT" "TOOLKIT_INSTALL_DIR" "TOOLKIT_GRACE_PERIOD")) -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: %s cannot be set here: set it in toolkit.env, from which the mounts and limits of the pod follow" $path .name) -}}
    {{- end -}}
    {{- if and (eq .name "NO_DAEMON") (has (get . "value" | toString | lower) (list "true" "t" "1" "yes" "on")) -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: NO_DAEMON=true ends the container, and a DaemonSet starts it again and again; leave it out, or run `nvidia-toolkit run --no-daemon` in a Job" $path) -}}
    {{- end -}}
    {{- with get $seen .name -}}
    {{- include "nvidia-toolkit.refuse" (printf "%s: %s is given twice, first in %s; keep one of them" $path $variable.name .) -}}
    {{- end -}}
    {{- $_ := set $seen .name $path -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Fail if a value, or one below it, has an unknown name or is not one of its choices. */}}
{{- define "nvidia-toolkit.checkValue" -}}
{{- $all := . -}}
{{- $rule := .rule -}}
{{- with get $rule "$ref" -}}{{- $rule = get (get $all.schema "$defs") (trimPrefix "#/$defs/" .) -}}{{- end -}}
{{- with get $rule "enum" -}}
{{- include "nvidia-toolkit.checkChoice" (dict "choices" . "value" $all.value "path" $all.path) -}}
{{- end -}}
{{- if kindIs "map" .value -}}
  {{- $known := get $rule "properties" | default dict -}}
  {{- range $name, $value := .value -}}
    {{- $path := printf "%s.%s" $all.path $name | trimPrefix "." -}}
    {{- if hasKey $known $name -}}
      {{- include "nvidia-toolkit.checkValue" (dict "schema" $all.schema "rule" (get $known $name) "value" $value "path" $path) -}}
    {{- else if eq (get $rule "additionalProperties" | toString) "false" -}}
      {{- include "nvidia-toolkit.unknown" (dict "schema" $all.schema "path" $path "above" $all.path "name" $name "names" (keys $known)) -}}
    {{- end -}}
  {{- end -}}
  {{- range get $rule "allOf" | default list -}}
    {{- $choices := dig "then" "properties" "value" "enum" list . -}}
    {{- if and $choices (has (get $all.value "name") (dig "if" "properties" "name" "enum" list .)) -}}
    {{- include "nvidia-toolkit.checkChoice" (dict "choices" $choices "value" (get $all.value "value") "path" (printf "%s: %s" $all.path $all.value.name)) -}}
    {{- end -}}
  {{- end -}}
{{- else if kindIs "slice" .value -}}
  {{- $items := get $rule "items" -}}
  {{- range $index, $value := .value -}}
    {{- if $items -}}
    {{- include "nvidia-toolkit.checkValue" (dict "schema" $all.schema "rule" $items "value" $value "path" (printf "%s[%d]" $all.path $index)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Fail if a value is none of its choices. `true` and "true" are the same choice, as --set and --set-string give them. */}}
{{- define "nvidia-toolkit.checkChoice" -}}
{{- $words := list -}}
{{- range .choices -}}{{- $words = append $words (toString .) -}}{{- end -}}
{{- $given := toString .value -}}
{{- if not (has $given $words) -}}
  {{- $way := printf "must be one of %s" (without $words "" | uniq | join ", ") -}}
  {{- if has "TRUE" $words -}}{{- $way = "must be true or false" -}}{{- end -}}
  {{- $closest := include "nvidia-toolkit.closest" (dict "word" $given "names" $words) -}}
  {{- $hint := $closest | empty | ternary "" (printf "; did you mean %s?" $closest) -}}
  {{- if gt (len (uniq $words)) 30 -}}
  {{- include "nvidia-toolkit.refuse" (printf "%s=%s: no setting of the program%s (docs/options.md lists them; other variables belong into toolkit.extraEnv)" .path $given $hint) -}}
  {{- end -}}
  {{- include "nvidia-toolkit.refuse" (printf "%s=%s: %s%s" .path $given $way $hint) -}}
{{- end -}}
{{- end -}}

{{/* Fail for an unknown name, with the closest known one. */}}
{{- define "nvidia-toolkit.unknown" -}}
{{- $usual := dict
    "affinity" "daemonsets.nodeAffinity"
    "cdi.default" "cdi.enabled"
    "image" "toolkit.repository, toolkit.image and toolkit.version"
    "imagePullSecrets" "toolkit.imagePullSecrets"
    "imageRegistry" "global.imageRegistry"
    "namespace" "namespaceOverride"
    "podAnnotations" "daemonsets.annotations"
    "podLabels" "daemonsets.labels"
    "runtimeClassName" "operator.runtimeClass"
    "securityContext" "toolkit.privileged"
    "serviceMonitor" "podMonitor"
    "toolkit.tag" "toolkit.version" -}}
{{- $hint := get $usual .path -}}
{{- if and (not .above) (has .name (list "ccManager" "dcgm" "dcgmExporter" "devicePlugin" "driver" "gdrcopy" "gds" "gfd" "kataManager" "mig" "migManager" "nfd" "node-feature-discovery" "nodeStatusExporter" "sandboxDevicePlugin" "sandboxWorkloads" "validator" "vfioManager" "vgpuDeviceManager" "vgpuManager")) -}}
{{- include "nvidia-toolkit.refuse" (printf "unknown value %s: it belongs to the GPU Operator; leave it out" .path) -}}
{{- end -}}
{{- if not $hint -}}
  {{- $elsewhere := list -}}
  {{- range include "nvidia-toolkit.paths" (dict "schema" .schema "rule" .schema "path" "") | fromJsonArray -}}
    {{- if hasSuffix (printf ".%s" $.name) . -}}{{- $elsewhere = append $elsewhere . -}}{{- end -}}
  {{- end -}}
  {{- if eq (len $elsewhere) 1 -}}{{- $hint = first $elsewhere -}}{{- end -}}
{{- end -}}
{{- if not $hint -}}
  {{- with include "nvidia-toolkit.closest" (dict "word" .name "names" .names) -}}
  {{- $hint = printf "%s.%s" $.above . | trimPrefix "." -}}
  {{- end -}}
{{- end -}}
{{- $hint = $hint | empty | ternary "`helm show values` lists all" (printf "did you mean %s?" $hint) -}}
{{- include "nvidia-toolkit.refuse" (printf "unknown value %s: %s" .path $hint) -}}
{{- end -}}

{{/* The paths of all values of a schema, as JSON. */}}
{{- define "nvidia-toolkit.paths" -}}
{{- $all := . -}}
{{- $paths := list -}}
{{- range $name, $rule := get .rule "properties" | default dict -}}
  {{- $path := printf "%s.%s" $all.path $name | trimPrefix "." -}}
  {{- $paths = append $paths $path -}}
  {{- $paths = concat $paths (include "nvidia-toolkit.paths" (dict "schema" $all.schema "rule" $rule "path" $path) | fromJsonArray) -}}
{{- end -}}
{{- toJson $paths -}}
{{- end -}}

{{/* The name that is closest to a word; empty if none is close. A name of which the word is an extension is close. */}}
{{- define "nvidia-toolkit.closest" -}}
{{- $word := lower .word -}}
{{- $limit := max 2 (div (len $word) 3) -}}
{{- $found := "" -}}
{{- range $name := sortAlpha .names -}}
  {{- $distance := include "nvidia-toolkit.distance" (dict "a" $word "b" (lower $name)) | int -}}
  {{- if and (ge (len $name) 3) (ge (len $word) 3) (or (hasPrefix (lower $name) $word) (hasPrefix $word (lower $name))) -}}{{- $distance = min $distance 2 -}}{{- end -}}
  {{- if and $name (le $distance $limit) -}}
    {{- $found = $name -}}
    {{- $limit = sub $distance 1 -}}
  {{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{/* How many characters have to be inserted, deleted or replaced to make `b` of `a`. */}}
{{- define "nvidia-toolkit.distance" -}}
{{- $b := splitList "" .b -}}
{{- $row := dict "0" 0 -}}
{{- range $j, $_ := $b -}}{{- $_ := set $row (add1 $j | toString) (add1 $j) -}}{{- end -}}
{{- range $i, $x := splitList "" .a -}}
  {{- $next := dict "0" (add1 $i) -}}
  {{- range $j, $y := $b -}}
    {{- $replaced := add (get $row (toString $j)) (ternary 0 1 (eq $x $y)) -}}
    {{- $here := add1 $j | toString -}}
    {{- $_ := set $next $here (min $replaced (add1 (get $row $here)) (add1 (get $next (toString $j)))) -}}
  {{- end -}}
  {{- $row = $next -}}
{{- end -}}
{{- get $row (len $b | toString) -}}
{{- end -}}

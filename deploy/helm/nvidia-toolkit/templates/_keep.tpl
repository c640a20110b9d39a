{{/*
The annotations of what must outlive the DaemonSet, since a pod asks for it only once it is ended: helm, Argo CD
(deletion of the Application, then pruning by a sync) and Flux leave these objects. Argo CD's pruning does not read
helm's annotation.
*/}}
{{- define "nvidia-toolkit.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Delete=false,Prune=false
kustomize.toolkit.fluxcd.io/prune: disabled
{{- end -}}

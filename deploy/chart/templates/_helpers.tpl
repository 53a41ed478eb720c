{{/* Names begin with that of the release, which so may be any. */}}
{{- define "lockstep.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{/* What finds the objects of a part again; never changes. */}}
{{- define "lockstep.selector" -}}
app.kubernetes.io/name: lockstep
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "lockstep.labels" -}}
{{ include "lockstep.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "lockstep.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* An address of this node, from $(HOST_IP). */}}
{{- define "lockstep.at" -}}
{{- if eq .root.Values.ipFamily "IPv6" }}[$(HOST_IP)]{{ else }}$(HOST_IP){{ end }}:{{ .port }}
{{- end }}

{{- define "lockstep.pools" -}}
{{- $all := list }}
{{- range .Values.pools }}
{{- $pool := printf "%s=%s" .name .path }}
{{- with .capacity }}{{ $pool = printf "%s,capacity=%s" $pool . }}{{ end }}
{{- with .reserve }}{{ $pool = printf "%s,reserve=%s" $pool . }}{{ end }}
{{- with .overcommit }}{{ $pool = printf "%s,overcommit=%s" $pool . }}{{ end }}
{{- $all = append $all $pool }}
{{- end }}
{{- join ";" $all }}
{{- end }}

{{- define "lockstep.snapshots" -}}
{{- $there := .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1" }}
{{- if or (eq .Values.snapshots.enabled "always") (and (eq .Values.snapshots.enabled "auto") $there) }}yes{{ end }}
{{- end }}

{{- define "lockstep.accounts" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:{{ include "lockstep.name" .root }}-{{ .part }}
{{- end }}

{{/* What no patch of the controller's changes of any object. */}}
{{- define "lockstep.kept" -}}
- expression: >-
    (has(object.metadata.finalizers) ? object.metadata.finalizers : []) ==
    (has(oldObject.metadata.finalizers) ? oldObject.metadata.finalizers : [])
  message: Lockstep's controller changes no finalizers of {{ . }}
- expression: >-
    (has(object.metadata.ownerReferences) ? object.metadata.ownerReferences : []) ==
    (has(oldObject.metadata.ownerReferences) ? oldObject.metadata.ownerReferences : [])
  message: Lockstep's controller changes no owners of {{ . }}
{{- end }}

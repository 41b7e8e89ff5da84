{{- define "tidegauge.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidegauge.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The agent's configuration; on a node its receivers are open to the other pods. */}}
{{- define "tidegauge.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if eq .Values.mode "daemonset" -}}
{{- $open := dict "receivers" (dict "grpc" (dict "endpoint" "0.0.0.0:4317") "http" (dict "endpoint" "0.0.0.0:4318")) -}}
{{- $config = merge $config $open -}}
{{- end -}}
{{- $guard := dict -}}
{{- if .Values.pages.tlsSecret -}}
{{- $_ := set $guard "tls" (dict "cert_file" "/etc/tidegauge-secrets/tls.crt" "key_file" "/etc/tidegauge-secrets/tls.key") -}}
{{- end -}}
{{- if .Values.pages.tokenSecret -}}
{{- $_ := set $guard "auth" (dict "bearer_token_file" "/etc/tidegauge-secrets/token") -}}
{{- end -}}
{{- $config = merge $config (dict "exporters" (dict "prometheus" $guard)) -}}
{{- toYaml $config -}}
{{- end }}

{{/* What a probe asks for. */}}
{{- define "tidegauge.asked" -}}
{{- $values := (index . 0).Values -}}
{path: {{ index . 1 }}, port: metrics{{ if $values.pages.tlsSecret }}, scheme: HTTPS{{ end }}}
{{- end }}

{{- define "tidegauge.container" -}}
name: tidegauge
image: {{ include "tidegauge.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if eq .Values.mode "native" }}
restartPolicy: Always
{{- end }}
args: [run, --config, /etc/tidegauge/agent.yaml]
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_UID
    valueFrom: {fieldRef: {fieldPath: metadata.uid}}
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME)
  {{- with .Values.collector.endpoint }}
  - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- if .Values.gpu.enabled }}
  - {name: NVIDIA_VISIBLE_DEVICES, value: all}
  - {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
  {{- end }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  {{- if eq .Values.mode "daemonset" }}
  - {name: otlp-grpc, containerPort: 4317}
  - {name: otlp-http, containerPort: 4318}
  {{- end }}
  - {name: metrics, containerPort: 9464}
startupProbe:
  httpGet: {{ include "tidegauge.asked" (list . "/readyz") }}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {{ include "tidegauge.asked" (list . "/healthz") }}
  periodSeconds: 15
  timeoutSeconds: 5
{{- if eq .Values.mode "plain" }}
lifecycle:
  preStop:
    exec: {command: [python, -IS, -c, "import time; time.sleep({{ .Values.lingerSeconds }})"]}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: tidegauge-config, mountPath: /etc/tidegauge, readOnly: true}
  - {name: tidegauge-state, mountPath: /var/lib/tidegauge}
  {{- if or .Values.pages.tlsSecret .Values.pages.tokenSecret }}
  - {name: tidegauge-secrets, mountPath: /etc/tidegauge-secrets, readOnly: true}
  {{- end }}
{{- end }}

{{/* A pod's metadata and spec: the agent, and the server beside it. */}}
{{- define "tidegauge.pod" -}}
metadata:
  labels:
    {{- include "tidegauge.labels" . | nindent 4 }}
    tidegauge/sidecar: "true"
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  securityContext:
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
  {{- if ne .Values.mode "daemonset" }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- end }}
  {{- if and .Values.gpu.enabled .Values.gpu.runtimeClassName }}
  runtimeClassName: {{ .Values.gpu.runtimeClassName }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.mode "native" }}
  initContainers:
    - {{ include "tidegauge.container" . | indent 6 | trim }}
  {{- end }}
  containers:
    {{- if ne .Values.mode "daemonset" }}
    - {{ include "tidegauge.server" . | indent 6 | trim }}
    {{- end }}
    {{- if ne .Values.mode "native" }}
    - {{ include "tidegauge.container" . | indent 6 | trim }}
    {{- end }}
  volumes:
    - name: tidegauge-config
      configMap: {name: {{ .Release.Name }}-tidegauge}
    - name: tidegauge-state
      emptyDir: {sizeLimit: {{ .Values.stateSize }}}
    {{- if or .Values.pages.tlsSecret .Values.pages.tokenSecret }}
    - name: tidegauge-secrets
      projected:
        sources:
          {{- with .Values.pages.tlsSecret }}
          - secret:
              name: {{ . }}
              items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
          {{- end }}
          {{- with .Values.pages.tokenSecret }}
          - secret:
              name: {{ . }}
              items: [{key: token, path: token}]
          {{- end }}
    {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with index $.Values $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}

{{/* The server, hardened where its values say nothing of it. */}}
{{- define "tidegauge.server" -}}
{{- $hard := dict "allowPrivilegeEscalation" false "capabilities" (dict "drop" (list "ALL")) -}}
{{- toYaml (merge (deepCopy .Values.server) (dict "name" "server" "securityContext" $hard)) -}}
{{- end }}

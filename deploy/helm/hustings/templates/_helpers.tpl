{{- define "hustings.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "hustings.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "hustings.secret" -}}
{{- .Values.secrets.existing | default (include "hustings.name" .) -}}
{{- end -}}

{{- define "hustings.claim" -}}
{{- .Values.storage.existingClaim | default (include "hustings.name" .) -}}
{{- end -}}


{{- /* What every process's pod has in common: (dict "root" $ "component" "serve") */ -}}
{{- define "hustings.pod" -}}
# Kubernetes' own HUSTINGS_… variables of the service would be taken for configuration.
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  # Else every start of a pod goes through all files of the volume first.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: data
    persistentVolumeClaim:
      claimName: {{ include "hustings.claim" .root }}
  - name: scratch
    emptyDir: {}
  # The engine's processes share memory there; the runtime's own 64 MiB are too few.
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: 1Gi}
  {{- /* 288 is 0440: for the group that fsGroup names. */}}
  {{- with .root.Values.kafkaSecurity.tls.secretName }}
  - name: kafka-tls
    secret: {secretName: {{ . }}, defaultMode: 288}
  {{- end }}
  {{- with .root.Values.kafkaSecurity.sasl.secretName }}
  - name: kafka-sasl
    secret: {secretName: {{ . }}, defaultMode: 288}
  {{- end }}
{{- end -}}

{{- define "hustings.kafka" -}}
{{- $security := .Values.kafkaSecurity -}}
- {name: HUSTINGS_KAFKA, value: {{ required "kafka: host:port of your Kafka" .Values.kafka | quote }}}
{{- with $security.protocol }}
- {name: HUSTINGS_KAFKA_PROTOCOL, value: {{ . | quote }}}
{{- end }}
{{- if $security.tls.secretName }}
- {name: HUSTINGS_KAFKA_SSL_CAFILE, value: /etc/hustings/kafka-tls/ca.crt}
{{- end }}
{{- if $security.tls.client }}
{{- $_ := required "kafkaSecurity.tls.secretName: a secret with ca.crt, tls.crt and tls.key" $security.tls.secretName }}
- {name: HUSTINGS_KAFKA_SSL_CERTFILE, value: /etc/hustings/kafka-tls/tls.crt}
- {name: HUSTINGS_KAFKA_SSL_KEYFILE, value: /etc/hustings/kafka-tls/tls.key}
{{- end }}
{{- with $security.sasl.mechanism }}
- {name: HUSTINGS_KAFKA_SASL_MECHANISM, value: {{ . | quote }}}
{{- end }}
{{- with $security.sasl.username }}
- {name: HUSTINGS_KAFKA_SASL_USERNAME, value: {{ . | quote }}}
{{- end }}
{{- if $security.sasl.secretName }}
- {name: HUSTINGS_KAFKA_SASL_PASSWORD_FILE, value: /etc/hustings/kafka-sasl/{{ $security.sasl.secretKey }}}
{{- end }}
{{- end -}}

{{- define "hustings.container" -}}
image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
env:
  - {name: HUSTINGS_DATA_DIR, value: /data}
  - {name: XDG_CACHE_HOME, value: /data/cache}
  {{- include "hustings.kafka" .root | nindent 2 }}
  {{- with .root.Values.model }}
  - {name: HUSTINGS_MODEL, value: {{ . | quote }}}
  {{- end }}
  - name: HUSTINGS_LEDGER_URL
    valueFrom:
      secretKeyRef:
        name: {{ required "ledger.secretName: a secret with the ledger's URL" .root.Values.ledger.secretName }}
        key: {{ .root.Values.ledger.secretKey }}
  - name: HUSTINGS_SECRET
    valueFrom: {secretKeyRef: {name: {{ include "hustings.secret" .root }}, key: voter-key}}
  - name: HUSTINGS_OPERATOR_TOKEN
    valueFrom: {secretKeyRef: {name: {{ include "hustings.secret" .root }}, key: operator-token}}
  {{- with .root.Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: scratch, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if .root.Values.kafkaSecurity.tls.secretName }}
  - {name: kafka-tls, mountPath: /etc/hustings/kafka-tls, readOnly: true}
  {{- end }}
  {{- if .root.Values.kafkaSecurity.sasl.secretName }}
  - {name: kafka-sasl, mountPath: /etc/hustings/kafka-sasl, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "hustings.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu -}}
{{- $limits := merge (dict "nvidia.com/gpu" .gpu) ($resources.limits | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "mdp.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of all objects. A release that has the chart's name in its own is called just that. */}}
{{- define "mdp.fullname" -}}
{{- $name := include "mdp.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "mdp.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "mdp.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "mdp.selectorLabels" -}}
{{- $usual := dict "app.kubernetes.io/name" (include "mdp.name" .) "app.kubernetes.io/instance" .Release.Name -}}
{{- toYaml (default $usual .Values.selectorLabelsOverride) -}}
{{- end -}}

{{- define "mdp.labels" -}}
app.kubernetes.io/name: {{ include "mdp.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "mdp.podLabels" -}}
{{- $labels := dict "app.kubernetes.io/name" (include "mdp.name" .) "app.kubernetes.io/instance" .Release.Name -}}
{{- if .Values.migManager.enabled -}}
{{- $_ := set $labels "app" "nvidia-device-plugin-daemonset" -}}
{{- end -}}
{{- /* The first that has a key wins: nothing may change what the DaemonSet selects by. */ -}}
{{- toYaml (merge (include "mdp.selectorLabels" . | fromYaml) (default dict .Values.podLabels) $labels) -}}
{{- end -}}

{{- define "mdp.nodeSelector" -}}
{{- $selector := deepCopy (default dict .Values.nodeSelector) -}}
{{- if .Values.migManager.enabled -}}
{{- $_ := set $selector .Values.migManager.nodeLabel "true" -}}
{{- end -}}
{{- if $selector }}{{ toYaml $selector }}{{ end -}}
{{- end -}}

{{/* A list, or a text with commas: as a text with commas. */}}
{{- define "mdp.joined" -}}
{{- if kindIs "slice" . }}{{ join "," . }}{{ else if not (kindIs "invalid" .) }}{{ toString . }}{{ end -}}
{{- end -}}

{{- define "mdp.configMapName" -}}
{{- if .Values.config.name -}}
{{- .Values.config.name -}}
{{- else if .Values.config.map -}}
{{- printf "%s-configs" (include "mdp.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Which of the named configurations is used; empty for none. */}}
{{- define "mdp.configKey" -}}
{{- $config := .Values.config -}}
{{- if or $config.name $config.map -}}
{{- if $config.default -}}
{{- $config.default -}}
{{- else if $config.map -}}
{{- $found := "" -}}
{{- range $config.fallbackStrategies -}}
{{- if $found -}}
{{- else if and (eq . "named") (hasKey $config.map "default") -}}
{{- $found = "default" -}}
{{- else if and (eq . "single") (eq (len $config.map) 1) -}}
{{- $found = first (keys $config.map) -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where a CDI strategy is chosen, or may be by a configuration that cannot be read here. */}}
{{- define "mdp.mayUseCdi" -}}
{{- $config := .Values.config -}}
{{- if .Values.deviceListStrategy -}}
{{- if contains "cdi-" (include "mdp.joined" .Values.deviceListStrategy) }}true{{ end -}}
{{- else if $config.name -}}
true
{{- else -}}
{{- if contains "cdi-" (values (default dict $config.map) | join " ") }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* "true" where MIG devices may be offered, as far as can be seen here: a ConfigMap may be edited later. */}}
{{- define "mdp.mayUseMig" -}}
{{- $names := list -}}
{{- range default list .Values.extraEnv }}{{ $names = append $names .name }}{{ end -}}
{{- if or (has "MIG_STRATEGY" $names) (has "CONFIG_FILE" $names) -}}
true
{{- else if .Values.migStrategy -}}
{{- if ne .Values.migStrategy "none" }}true{{ end -}}
{{- else if or .Values.config.name .Values.config.map -}}
true
{{- end -}}
{{- end -}}

{{/* "true" where volume-mounts is chosen. Toolkits that are set up for it give no device to an unprivileged container for
     NVIDIA_VISIBLE_DEVICES in its environment, and the plugin's own container asks with nothing else. */}}
{{- define "mdp.mayUseVolumeMounts" -}}
{{- if .Values.deviceListStrategy -}}
{{- if contains "volume-mounts" (include "mdp.joined" .Values.deviceListStrategy) }}true{{ end -}}
{{- else if contains "volume-mounts" (values (default dict .Values.config.map) | join " ") -}}
true
{{- end -}}
{{- end -}}

{{/* "true" where securityContext, which replaces the chart's own as a whole, has CAP_SYS_ADMIN. */}}
{{- define "mdp.ownSysAdmin" -}}
{{- $own := default dict .Values.securityContext -}}
{{- $added := get (default dict (get $own "capabilities")) "add" | default list -}}
{{- if or (get $own "privileged") (has "SYS_ADMIN" $added) (has "CAP_SYS_ADMIN" $added) (has "ALL" $added) }}true{{ end -}}
{{- end -}}

{{/* What migMonitor comes to: none, cdi or sysAdmin. */}}
{{- define "mdp.migMonitor" -}}
{{- $chosen := default "auto" .Values.migMonitor -}}
{{- if ne $chosen "auto" -}}
{{- $chosen -}}
{{- else if not (include "mdp.mayUseMig" .) -}}
none
{{- else if and .Values.securityContext (not (include "mdp.ownSysAdmin" .)) -}}
none
{{- else -}}
sysAdmin
{{- end -}}
{{- end -}}

{{/* The folder of the host in which the driver is; empty where none is mounted. */}}
{{- define "mdp.driverRoot" -}}
{{- if kindIs "invalid" .Values.nvidiaDriverRoot -}}
/
{{- else if .Values.nvidiaDriverRoot -}}
{{- clean .Values.nvidiaDriverRoot -}}
{{- end -}}
{{- end -}}

{{/* Whether answers name device nodes. Where nothing of the host is mounted, NVIDIA's runtime adds the nodes, and which of
them the host has cannot be seen from the pod; a configuration that may say otherwise is left to do so. */}}
{{- define "mdp.passDeviceSpecs" -}}
{{- if not (kindIs "invalid" .Values.compatWithCPUManager) -}}
{{- .Values.compatWithCPUManager -}}
{{- else if not (or (include "mdp.driverRoot" .) .Values.nvidiaDevRoot (include "mdp.configKey" .)) -}}
false
{{- end -}}
{{- end -}}

{{/* How a folder of the host below the root .root is mounted that is only read. */}}
{{- define "mdp.readOnly" -}}
readOnly: true
{{- if ne .root "/" }}
# What a driver's container mounts later shows up here.
mountPropagation: HostToContainer
{{- else if semverCompare ">=1.31-0" .kubeVersion }}
# What is mounted below the host's root is read-only too, where the container runtime can do that.
recursiveReadOnly: IfPossible
{{- end }}
{{- end -}}

{{- define "mdp.securityContext" -}}
{{- if .Values.securityContext -}}
{{- toYaml .Values.securityContext -}}
{{- else -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
{{- $forMig := eq (include "mdp.migMonitor" .) "sysAdmin" }}
{{- if or $forMig (include "mdp.mayUseVolumeMounts" .) }}
{{- if $forMig }}
# While a GPU has slices, the driver reports its errors only to a process with CAP_SYS_ADMIN or the capability mig/monitor.
{{- else }}
# With volume-mounts, NVIDIA's runtime gives devices for the environment below to privileged containers only.
{{- end }}
# Kubernetes counts a container with CAP_SYS_ADMIN as one that may escalate.
allowPrivilegeEscalation: true
capabilities:
  drop: [ALL]
  add: [SYS_ADMIN]
{{- else }}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The environment: one variable for each value that is set, in the order of values.yaml. YAML reads off as false. */}}
{{- define "mdp.env" -}}
{{- $values := .Values -}}
{{- $key := include "mdp.configKey" . -}}
{{- range list
  (list "MIG_STRATEGY" $values.migStrategy)
  (list "FAIL_ON_INIT_ERROR" $values.failOnInitError)
  (list "DEVICE_LIST_STRATEGY" $values.deviceListStrategy)
  (list "DEVICE_ID_STRATEGY" $values.deviceIDStrategy)
  (list "PASS_DEVICE_SPECS" (include "mdp.passDeviceSpecs" .))
  (list "NVIDIA_DRIVER_ROOT" (ternary "" (include "mdp.driverRoot" .) (empty $values.nvidiaDriverRoot)))
  (list "NVIDIA_DEV_ROOT" $values.nvidiaDevRoot)
  (list "DEV_ROOT_CTR_PATH" (ternary "/dev-root" "" (not (empty $values.nvidiaDevRoot))))
  (list "GDS_ENABLED" $values.gdsEnabled)
  (list "MOFED_ENABLED" $values.mofedEnabled)
  (list "GDRCOPY_ENABLED" $values.gdrcopyEnabled)
  (list "DEVICE_DISCOVERY_STRATEGY" $values.deviceDiscoveryStrategy)
  (list "RESCAN_INTERVAL" $values.rescanInterval)
  (list "REMOVAL_GRACE" $values.removalGrace)
  (list "LOST_GPU_RELEASE_AFTER" $values.lostGpuReleaseAfter)
  (list "HEALTH_RECOVERY" (ternary "off" $values.healthRecovery (eq (toString $values.healthRecovery) "false")))
  (list "HEALTH_RECOVERY_QUIET" $values.healthRecoveryQuiet)
  (list "HEALTH_UNKNOWN_XIDS" $values.healthUnknownXids)
  (list "DP_DISABLE_HEALTHCHECKS" $values.disableHealthchecks)
  (list "DP_ENABLE_HEALTHCHECKS" $values.enableHealthchecks)
  (list "LOG_FORMAT" $values.logFormat)
  (list "LOG_LEVEL" $values.logLevel)
  (list "CONFIG_FILE" (ternary (printf "/config/%s" $key) "" (not (empty $key))))
  (list "NVIDIA_CDI_HOOK_PATH" $values.cdi.nvidiaHookPath)
  (list "CDI_FEATURE_FLAGS" $values.cdi.featureFlags)
  (list "HTTP_ADDRESS" (ternary (printf ":%v" $values.httpPort) "" (not (empty $values.httpPort))))
-}}
{{- $text := include "mdp.joined" (last .) -}}
{{- if $text }}
- name: {{ first . }}
  value: {{ $text | quote }}
{{- end -}}
{{- end }}
{{- $monitor := include "mdp.migMonitor" . }}
{{- if eq $monitor "cdi" }}
# The host's management CDI device has every node of the driver's, that of mig/monitor among them.
- name: NVIDIA_VISIBLE_DEVICES
  value: management.nvidia.com/gpu=all
{{- else }}
# Where the runtime is NVIDIA's, this lets the plugin itself open the driver's nodes.
- name: NVIDIA_VISIBLE_DEVICES
  value: all
{{- end }}
- name: NVIDIA_DRIVER_CAPABILITIES
  value: utility
{{- if eq $monitor "sysAdmin" }}
# NVIDIA's runtime refuses to start a container with this variable and without CAP_SYS_ADMIN.
- name: NVIDIA_MIG_MONITOR_DEVICES
  value: all
{{- end }}
{{- end -}}

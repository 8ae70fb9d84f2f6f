//! Every metric there is, as data: what is written to scrapers and what `docs/metrics.md` says are made of it. A metric
//! that is added here is added to the groups of `reference.rs` too; a test finds it otherwise.

/// What comes before the name of each of them, but those of the process.
pub(crate) const PREFIX: &str = "mig_device_plugin";

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    /// Its name in the registry: without the prefix, and without `_total` or `_info`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    /// Without a full stop, which the library adds.
    pub(crate) help: &'static str,
    /// What the labels' values are, where that has to be said.
    pub(crate) values: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Always 1: what counts stands in the labels.
    Info,
}

impl Metric {
    const fn new(
        kind: Kind,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind, labels, help, values: "" }
    }

    const fn values(self, values: &'static str) -> Self {
        Self { values, ..self }
    }
}

use Kind::{Counter, Gauge, Histogram, Info};

const REASONS: &str = "`reason`: empty for healthy devices; of several reasons the first; the words are those of \
    [http.md](http.md#reasons)";

pub(crate) static DEVICES: Metric = Metric::new(
    Gauge,
    "devices",
    &["resource", "gpu", "profile", "health", "reason"],
    "Devices that the kubelet is told of",
)
.values(REASONS);
pub(crate) static CAPACITY: Metric =
    Metric::new(Gauge, "capacity", &["resource"], "Devices of a resource, healthy or not");
pub(crate) static ALLOCATABLE: Metric =
    Metric::new(Gauge, "allocatable", &["resource"], "Healthy devices of a resource");
pub(crate) static ALLOCATED: Metric =
    Metric::new(Gauge, "allocated", &["resource"], "Devices of a resource that pods hold")
        .values("only where `pod_resources_up` is 1");
pub(crate) static REGISTERED: Metric =
    Metric::new(Gauge, "registered", &["resource"], "Whether the resource is registered with the kubelet");
pub(crate) static WITHHELD: Metric = Metric::new(
    Gauge,
    "withheld_devices",
    &[],
    "Devices that exist and are not offered, by strategy or configuration",
);

pub(crate) static DEVICE_INFO: Metric = Metric::new(
    Info,
    "device",
    &["uuid", "index", "gpu", "gpu_uuid", "profile", "gi", "ci", "resource"],
    "A MIG device, or a GPU that is not in MIG mode",
)
.values("`resource`: empty where it is not offered; `profile`, `gi`, `ci`: empty for a GPU");
pub(crate) static DEVICE_MEMORY: Metric =
    Metric::new(Gauge, "device_memory_bytes", &["uuid"], "Memory of the device");
pub(crate) static DEVICE_HEALTHY: Metric =
    Metric::new(Gauge, "device_healthy", &["uuid"], "Whether the device is offered as healthy")
        .values("only devices that are offered");
pub(crate) static DEVICE_HOLDER: Metric = Metric::new(
    Info,
    "device_holder",
    &["uuid", "holder_namespace", "holder_pod", "holder_container", "namespace", "pod", "container"],
    "A container that holds the device",
)
.values(
    "`namespace`, `pod`, `container`: the same by their old names, which the next release no longer has, because \
     Prometheus uses them for the plugin's own pod; only where `pod_resources_up` is 1",
);
pub(crate) static POD_RESOURCES_UP: Metric = Metric::new(
    Gauge,
    "pod_resources_up",
    &[],
    "Whether the kubelet says which pods hold devices (--pod-resources-socket)",
);

pub(crate) static GPU_INFO: Metric =
    Metric::new(Info, "gpu", &["gpu", "gpu_uuid", "name", "pci_bus_id", "mig"], "A GPU of the node")
        .values("`mig`: `on`, `off`, `unsupported`");
pub(crate) static GPU_USABLE: Metric =
    Metric::new(Gauge, "gpu_usable", &["gpu"], "Whether the GPU could be read at the last look");
pub(crate) static RECOVERY_RULE: Metric = Metric::new(
    Gauge,
    "recovery_rule",
    &["gpu", "rule"],
    "The rule by which the GPU's devices get well, as 1",
)
.values("`rule`: `off`, `recovery_action`, `reset`");
pub(crate) static EVENT_ATTRIBUTION: Metric = Metric::new(
    Gauge,
    "event_attribution",
    &["gpu", "attribution"],
    "What the driver attributes the GPU's errors to, as 1",
)
.values(
    "`attribution`: `instance`; `none` (no errors of the GPU are heard); `unknown` (it has no instance, or what this \
     program may hear cannot be told)",
);
pub(crate) static EVENTS_HEARD: Metric = Metric::new(
    Gauge,
    "gpu_events_heard",
    &["gpu"],
    "Whether errors of the GPU are heard: not without CAP_SYS_ADMIN or mig/monitor while it has an instance",
)
.values("absent where what this program may hear cannot be told");
pub(crate) static RECOVERY_ACTION: Metric = Metric::new(
    Gauge,
    "recovery_action",
    &["gpu", "action"],
    "What the driver says that the GPU needs, as 1",
)
.values(
    "`action`: `none`, `reset`, `reboot`, `drain_p2p`, `drain_and_reset`, `recover_imex`, `other`; `reboot` and \
     `recover_imex` are the node's, and all its GPUs show them; absent where the driver does not tell",
);
pub(crate) static XIDS: Metric =
    Metric::new(Counter, "xids", &["gpu_uuid", "xid", "counted"], "Xids that the driver reported")
        .values("`counted`: whether the Xid makes devices sick; `xid`: `other` above 999");
pub(crate) static HEALTH_EVENTS: Metric =
    Metric::new(Counter, "health_events", &["kind"], "Events that the driver reported, Xids among them")
        .values("`kind`: `xid`, `double_bit_ecc`, `fatal_poison`, `gpu_unavailable`, `recovery_action`, `mig_config_change`");

pub(crate) static ALLOCATIONS: Metric =
    Metric::new(Counter, "allocations", &["resource", "result"], "Allocate calls by the kubelet")
        .values("`result`: `success`, `error`");
pub(crate) static ALLOCATION_ERRORS: Metric =
    Metric::new(Counter, "allocation_errors", &["resource", "reason"], "Allocate calls that were refused")
        .values("`reason`: `empty`, `unknown`, `unhealthy`, `gone`, `changed`, `several_replicas`, `channel_missing`, `node_missing`");
pub(crate) static ALLOCATION_DURATION: Metric =
    Metric::new(Histogram, "allocation_duration_seconds", &["resource"], "How long Allocate calls took");
pub(crate) static PREFERRED_ALLOCATIONS: Metric = Metric::new(
    Counter,
    "preferred_allocations",
    &["resource"],
    "GetPreferredAllocation calls by the kubelet",
);
pub(crate) static REGISTRATIONS: Metric =
    Metric::new(Counter, "registrations", &["resource", "reason"], "Registrations with the kubelet that succeeded")
        .values(
            "`reason`: `start`, `kubelet_restarted`, `kubelet_gone`, `socket_gone`, `no_stream`, `other_instance_left`",
        );
pub(crate) static REGISTRATION_ERRORS: Metric =
    Metric::new(Counter, "registration_errors", &["resource"], "Registrations with the kubelet that failed");
pub(crate) static KUBELET_RESTARTS: Metric = Metric::new(
    Counter,
    "kubelet_restarts",
    &[],
    "Times that the kubelet made a new socket while this program watched",
);

pub(crate) static DRIVER_UP: Metric =
    Metric::new(Gauge, "driver_up", &[], "Whether there is a driver to ask");
pub(crate) static DRIVER_INFO: Metric =
    Metric::new(Info, "driver", &["version", "cuda"], "The driver that was found");
pub(crate) static ON_HOLD: Metric =
    Metric::new(Gauge, "on_hold", &[], "Whether the driver is left alone (SIGUSR1)");
pub(crate) static NVML_CALLS: Metric =
    Metric::new(Counter, "nvml_calls", &["call", "result"], "Calls of NVML")
        .values("`result`: `ok`, or NVML's name of the error");
pub(crate) static NVML_SECONDS: Metric =
    Metric::new(Counter, "nvml_call_seconds", &["call"], "Time spent in calls of NVML")
        .values("`nvmlEventSetWait_v2` waits most of the time");
pub(crate) static NVML_HANGING: Metric =
    Metric::new(Gauge, "nvml_calls_hanging", &[], "Threads in a call of NVML that was given up");
pub(crate) static NVML_STALLED: Metric =
    Metric::new(Gauge, "nvml_stalled_seconds", &[], "For how long a call of NVML has let everything wait");

pub(crate) static BUILD: Metric = Metric::new(Info, "build", &["version"], "This program");
pub(crate) static STRATEGY: Metric =
    Metric::new(Info, "strategy", &["strategy"], "The MIG strategy in force")
        .values("`none`, `single`, `mixed`");
pub(crate) static CONFIG_RELOADS: Metric =
    Metric::new(Counter, "config_reloads", &["result"], "Times that the configuration was read again")
        .values("`result`: `success`, `error`");
pub(crate) static CONFIG_GOOD: Metric = Metric::new(
    Gauge,
    "config_last_reload_successful",
    &[],
    "Whether the configuration in force is the one that was read last (1), or an older one (0)",
);
pub(crate) static CONFIG_WARNINGS: Metric = Metric::new(
    Gauge,
    "config_warnings",
    &[],
    "Parts of the configuration that have no effect on this node, or cannot work as they are",
);

pub(crate) static CPU: Metric =
    Metric::new(Counter, "process_cpu_seconds", &[], "Total user and system CPU time spent in seconds");
pub(crate) static RESIDENT: Metric =
    Metric::new(Gauge, "process_resident_memory_bytes", &[], "Resident memory size in bytes");
pub(crate) static VIRTUAL: Metric =
    Metric::new(Gauge, "process_virtual_memory_bytes", &[], "Virtual memory size in bytes");
pub(crate) static START: Metric = Metric::new(
    Gauge,
    "process_start_time_seconds",
    &[],
    "Start time of the process since unix epoch in seconds",
);
pub(crate) static OPEN_FDS: Metric =
    Metric::new(Gauge, "process_open_fds", &[], "Number of open file descriptors");
pub(crate) static THREADS: Metric =
    Metric::new(Gauge, "process_threads", &[], "Number of threads of the process");

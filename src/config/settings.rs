//! Everything that can be set, one row each. The flags, the file's keys, what is allowed, what stands in the
//! reference page and what is suggested for a misspelled word all follow from this table.

use super::kind::{Kind, Words};

/// One thing that can be set. Empty text means "there is none".
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// In the file, from its top; `[]` stands for each item of a list.
    pub key: &'static str,
    /// On the command line, without the dashes.
    pub flag: &'static str,
    /// Other names of the flag.
    pub aliases: &'static [&'static str],
    /// Environment variables; the first that is set counts.
    pub variables: &'static [&'static str],
    /// What is allowed.
    pub kind: Kind,
    /// The value where none is given, as it would be given.
    pub default: &'static str,
    /// What it means, for people.
    pub help: &'static str,
    /// Whether commands other than serving take the flag too.
    pub global: bool,
}

impl Setting {
    /// The name that tells it from all others: the flag, or else the key.
    pub(super) const fn id(&self) -> &'static str {
        if self.flag.is_empty() { self.key } else { self.flag }
    }

    const fn new(flag: &'static str, key: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { key, flag, aliases: &[], variables: &[], kind, default: "", help, global: false }
    }

    const fn env(self, variables: &'static [&'static str]) -> Self {
        Self { variables, ..self }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn aka(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn everywhere(self) -> Self {
        Self { global: true, ..self }
    }
}

/// Settings that belong together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Above them, in the help and on the reference page.
    pub heading: &'static str,
    /// What is to be known about all of them.
    pub about: &'static str,
    /// The rows.
    pub settings: &'static [Setting],
}

/// All rows.
pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings)
}

/// The row of a flag, or of a key that has no flag.
pub(super) fn find(id: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.id() == id)
}

const fn words(allowed: &'static [&'static str]) -> Words {
    Words { allowed, refused: &[] }
}

const YES: &str = "true";
const NO: &str = "false";
const GFD: &str = "for NVIDIA's GPU feature discovery, which may read the same file; nothing here";
const MPS: &str = "MPS is not supported by this plugin: use sharing.timeSlicing, or MIG devices, which share a GPU \
                   with memory and faults kept apart";

/// The whole table.
pub(super) const GROUPS: &[Group] = &[
    Group {
        heading: "What is offered",
        about: "",
        settings: &[
            Setting::new(
                "mig-strategy",
                "flags.migStrategy",
                Kind::Choice(words(&["none", "single", "mixed"])),
                "how MIG devices are offered: none (whole GPUs as nvidia.com/gpu), single (MIG devices of one profile as \
                 nvidia.com/gpu), mixed (nvidia.com/mig-<profile>)",
            )
            .env(&["MIG_STRATEGY"])
            .or("none"),
            Setting::new(
                "withhold",
                "flags.plugin.withhold",
                Kind::Selectors,
                "devices that are not to be offered; a GPU stands for its slices too",
            )
            .env(&["WITHHOLD"]),
            Setting::new(
                "device-discovery-strategy",
                "flags.deviceDiscoveryStrategy",
                Kind::Choice(Words {
                    allowed: &["auto", "nvml"],
                    refused: &[
                        ("tegra", "this plugin finds devices through NVML only, and Tegra has no MIG"),
                        ("vfio", "this plugin finds devices through NVML only, not those given to virtual machines"),
                    ],
                }),
                "how devices are found; both words mean NVML",
            )
            .env(&["DEVICE_DISCOVERY_STRATEGY"])
            .or("auto"),
        ],
    },
    Group {
        heading: "What an Allocate answers",
        about: "",
        settings: &[
            Setting::new(
                "device-list-strategy",
                "flags.plugin.deviceListStrategy",
                Kind::Choices(words(&["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"])),
                "how the container runtime is told of devices; several may be given",
            )
            .env(&["DEVICE_LIST_STRATEGY"])
            .or("envvar"),
            Setting::new(
                "device-id-strategy",
                "flags.plugin.deviceIDStrategy",
                Kind::Choice(words(&["uuid", "index"])),
                "what devices are called towards the container: by UUID, or by index (6, and 0:3 for MIG device 3 of GPU 0)",
            )
            .env(&["DEVICE_ID_STRATEGY"])
            .or("uuid"),
            Setting::new(
                "pass-device-specs",
                "flags.plugin.passDeviceSpecs",
                Kind::Boolean,
                "whether device nodes are named; where it is not set, those that exist are, and a MIG device without the \
                 nodes that open it is unhealthy; true: any device that lacks one is; false: none, a container runtime \
                 adds them",
            )
            .env(&["PASS_DEVICE_SPECS"]),
            Setting::new(
                "variable-per-resource",
                "flags.plugin.variablePerResource",
                Kind::Boolean,
                "whether to set NVIDIA_VISIBLE_DEVICES_<RESOURCE> too, so that two resources in one container do not hide \
                 each other",
            )
            .env(&["VARIABLE_PER_RESOURCE"])
            .or(NO),
            Setting::new(
                "gdrcopy-enabled",
                "flags.gdrcopyEnabled",
                Kind::Boolean,
                "whether containers get GDRCopy (NVIDIA_GDRCOPY=enabled)",
            )
            .env(&["GDRCOPY_ENABLED"])
            .or(NO),
            Setting::new(
                "gds-enabled",
                "flags.gdsEnabled",
                Kind::Boolean,
                "whether containers get GPUDirect Storage (NVIDIA_GDS=enabled)",
            )
            .env(&["GDS_ENABLED"])
            .or(NO),
            Setting::new(
                "mofed-enabled",
                "flags.mofedEnabled",
                Kind::Boolean,
                "whether containers get MOFED (NVIDIA_MOFED=enabled)",
            )
            .env(&["MOFED_ENABLED"])
            .or(NO),
            Setting::new(
                "imex-channel-ids",
                "imex.channelIDs",
                Kind::Channels,
                "IMEX channels that every container gets; 0 is the only one there is",
            )
            .env(&["IMEX_CHANNEL_IDS"]),
            Setting::new(
                "imex-required",
                "imex.required",
                Kind::Boolean,
                "whether an IMEX channel that is not there is an error",
            )
            .env(&["IMEX_REQUIRED"])
            .or(NO),
            Setting::new(
                "shared-devices-allocation-policy",
                "flags.plugin.sharedDevicesAllocationPolicy",
                Kind::Choice(words(&["distributed", "packed"])),
                "which devices are preferred: distributed spreads over GPUs, and replicas over devices; packed fills what \
                 is used most; where it is not set, slices are packed and replicas distributed",
            )
            .env(&["SHARED_DEVICES_ALLOCATION_POLICY"]),
        ],
    },
    Group {
        heading: "CDI",
        about: "",
        settings: &[
            Setting::new(
                "cdi-annotation-prefix",
                "flags.plugin.cdiAnnotationPrefix",
                Kind::AnnotationPrefix,
                "in front of the annotation's key under cdi-annotations",
            )
            .env(&["CDI_ANNOTATION_PREFIX"])
            .or("cdi.k8s.io/"),
            Setting::new(
                "cdi-spec-dir",
                "flags.plugin.cdiSpecDir",
                Kind::Path,
                "where the CDI specification is written",
            )
            .env(&["CDI_SPEC_DIR"])
            .or("/var/run/cdi"),
            Setting::new(
                "nvidia-cdi-hook-path",
                "flags.plugin.nvidiaCTKPath",
                Kind::Path,
                "the hook program on the host that the CDI specification names; where it is not set, nvidia-cdi-hook or nvidia-ctk in /usr/bin, /usr/local/nvidia/toolkit or /usr/local/bin, if there is one",
            )
            .aka(&["nvidia-ctk-path"])
            .env(&["NVIDIA_CDI_HOOK_PATH", "NVIDIA_CTK_PATH"]),
            Setting::new(
                "cdi-feature-flags",
                "flags.plugin.cdiFeatureFlags",
                Kind::Choices(Words {
                    allowed: &[
                        "disable-ipc-discoverer",
                        "disable-multiple-csv-devices",
                        "disable-nvsandboxutils",
                        "no-additional-gids-for-device-nodes",
                    ],
                    refused: &[
                        ("enable-coherent-annotations", "this plugin writes no such annotations"),
                        ("enable-explicit-driver-libraries", "this plugin finds the driver's libraries itself"),
                    ],
                }),
                "what to leave out of the CDI specification",
            )
            .env(&["CDI_FEATURE_FLAGS"]),
            Setting::new(
                "cdi-disable-hooks",
                "flags.plugin.cdiDisableHooks",
                Kind::Choices(words(&[
                    "all",
                    "chmod",
                    "create-symlinks",
                    "disable-device-node-modification",
                    "enable-cuda-compat",
                    "update-application-profile",
                    "update-ldcache",
                ])),
                "hooks that the CDI specification leaves out",
            )
            .env(&["CDI_DISABLE_HOOKS"]),
        ],
    },
    Group {
        heading: "How it runs",
        about: "",
        settings: &[
            Setting::new(
                "fail-on-init-error",
                "flags.failOnInitError",
                Kind::Boolean,
                "whether to exit (code 1) when NVML cannot be loaded or initialised at start, rather than to wait for the \
                 driver; it counts at start only",
            )
            .env(&["FAIL_ON_INIT_ERROR"])
            .or(YES),
            Setting::new(
                "rescan-interval",
                "flags.plugin.rescanInterval",
                Kind::Duration,
                "how often to look for changes that no event told; 0 = never (SIGHUP still does)",
            )
            .env(&["RESCAN_INTERVAL"])
            .or("10s"),
            Setting::new(
                "lost-gpu-release-after",
                "flags.plugin.lostGpuReleaseAfter",
                Kind::Duration,
                "how long a GPU may stay lost or ask for a reset before NVML is closed and opened again without it, so \
                 that nvidia-smi -r is not refused because this program has it open; 0 = never",
            )
            .env(&["LOST_GPU_RELEASE_AFTER"])
            .or("5m"),
            Setting::new(
                "removal-grace",
                "flags.plugin.removalGrace",
                Kind::Duration,
                "how long at least a device that has gone or is no longer offered stays listed, as unhealthy, after it \
                 was last handed out",
            )
            .env(&["REMOVAL_GRACE"])
            .or("5s"),
            Setting::new(
                "http-address",
                "",
                Kind::Address,
                "where metrics, probes and a page about the node are served; empty: nowhere",
            )
            .env(&["HTTP_ADDRESS"])
            .or(":9413")
            .everywhere(),
            Setting::new(
                "mps-root",
                "flags.mpsRoot",
                Kind::OptionalPath,
                "accepted because NVIDIA's chart sets it; without sharing.mps it means nothing",
            )
            .env(&["MPS_ROOT"]),
        ],
    },
    Group {
        heading: "Health",
        about: "[health.md](health.md) says what makes a device sick and what makes it well.",
        settings: &[
            Setting::new(
                "disable-healthchecks",
                "flags.plugin.disableHealthchecks",
                Kind::Checks,
                "errors that make no device sick, besides Xids 13, 31, 43, 45, 68 and 109: Xids by number, xids for all of \
                 them, or all for other errors too",
            )
            .env(&["DP_DISABLE_HEALTHCHECKS"]),
            Setting::new(
                "enable-healthchecks",
                "flags.plugin.enableHealthchecks",
                Kind::Checks,
                "errors that make a device sick all the same: Xids by number, xids or all; it wins over \
                 --disable-healthchecks",
            )
            .env(&["DP_ENABLE_HEALTHCHECKS"]),
            Setting::new(
                "health-unknown-xids",
                "flags.plugin.healthUnknownXids",
                Kind::Choice(words(&["unhealthy", "ignore"])),
                "what an Xid does that this program's catalogue does not have",
            )
            .env(&["HEALTH_UNKNOWN_XIDS"])
            .or("unhealthy"),
            Setting::new(
                "health-recovery",
                "flags.plugin.healthRecovery",
                Kind::Choice(words(&["auto", "off"])),
                "whether a sick device gets well again when the driver says that its GPU needs nothing more; off: never, \
                 until a restart",
            )
            .env(&["HEALTH_RECOVERY"])
            .or("auto"),
            Setting::new(
                "health-recovery-quiet",
                "flags.plugin.healthRecoveryQuiet",
                Kind::Duration,
                "how long nothing may have happened to a device before it gets well; doubled with each relapse",
            )
            .env(&["HEALTH_RECOVERY_QUIET"])
            .or("10s"),
        ],
    },
    Group {
        heading: "On the host",
        about: "",
        settings: &[
            Setting::new(
                "nvidia-driver-root",
                "flags.nvidiaDriverRoot",
                Kind::Path,
                "the driver's root on the host, where device nodes in answers are",
            )
            .aka(&["driver-root"])
            .env(&["NVIDIA_DRIVER_ROOT"])
            .or("/"),
            Setting::new(
                "nvidia-dev-root",
                "flags.nvidiaDevRoot",
                Kind::OptionalPath,
                "in front of device nodes' paths in answers; where it is not set, --nvidia-driver-root",
            )
            .aka(&["dev-root"])
            .env(&["NVIDIA_DEV_ROOT"]),
        ],
    },
    Group {
        heading: "Where things are in this container",
        about: "One value sets both driver roots where they are the same: when --nvidia-driver-root is set, \
                --driver-root-ctr-path is not, /driver-root is no folder here and the first is one, it is used for both.",
        settings: &[
            Setting::new(
                "driver-root-ctr-path",
                "flags.plugin.containerDriverRoot",
                Kind::Path,
                "where the host's driver root is mounted; libnvidia-ml.so.1 is looked for there, then by the loader",
            )
            .aka(&["container-driver-root"])
            .env(&["DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"])
            .or("/driver-root")
            .everywhere(),
            Setting::new(
                "dev-root-ctr-path",
                "",
                Kind::OptionalPath,
                "where to look whether a device node exists; where it is not set, the driver root if it has a folder dev, \
                 else /",
            )
            .env(&["DEV_ROOT_CTR_PATH"])
            .everywhere(),
            Setting::new(
                "proc-root",
                "",
                Kind::OptionalPath,
                "where /proc is; where it is not set, proc below the driver root if the driver has files there, else /proc",
            )
            .env(&["PROC_ROOT"])
            .everywhere(),
            Setting::new(
                "sys-root",
                "",
                Kind::OptionalPath,
                "where /sys is; where it is not set, sys below the driver root if it lists PCI devices, else /sys",
            )
            .env(&["SYS_ROOT"])
            .everywhere(),
        ],
    },
    Group {
        heading: "The kubelet",
        about: "",
        settings: &[
            Setting::new(
                "kubelet-socket",
                "",
                Kind::Path,
                "the kubelet's registration socket; ours are made in the same folder",
            )
            .env(&["KUBELET_SOCKET"])
            .or("/var/lib/kubelet/device-plugins/kubelet.sock"),
            Setting::new(
                "pod-resources-socket",
                "flags.plugin.podResourcesSocket",
                Kind::Path,
                "where the kubelet tells which pods hold devices; its checkpoint, beside its registration socket, is read \
                 too",
            )
            .env(&["POD_RESOURCES_SOCKET"])
            .or("/var/lib/kubelet/pod-resources/kubelet.sock"),
            Setting::new(
                "allowed-uid",
                "flags.plugin.allowedUIDs",
                Kind::Users,
                "users besides root and our own that may connect to our sockets, by number",
            )
            .env(&["ALLOWED_UID"]),
        ],
    },
    Group {
        heading: "The config file",
        about: "",
        settings: &[
            Setting::new("config-file", "", Kind::File, "a config file, YAML or JSON")
                .env(&["CONFIG_FILE"])
                .everywhere(),
            Setting::new(
                "lenient-config",
                "",
                Kind::Boolean,
                "whether a key in the file that is not known is a warning rather than an error",
            )
            .env(&["LENIENT_CONFIG"])
            .or(NO)
            .everywhere(),
            Setting::new("", "version", Kind::Choice(words(&["v1"])), "the file's own version").or("v1"),
        ],
    },
    Group {
        heading: "Logging (to standard error)",
        about: "",
        settings: &[
            Setting::new(
                "log-format",
                "",
                Kind::Choice(words(&["text", "json"])),
                "text for people, json for machines",
            )
            .env(&["LOG_FORMAT"])
            .or("text")
            .everywhere(),
            Setting::new(
                "log-level",
                "",
                Kind::Level,
                "a level for this program, or a level per module, such as mig_device_plugin::kubelet=debug",
            )
            .env(&["LOG_LEVEL"])
            .or("info")
            .everywhere(),
        ],
    },
    Group {
        heading: "Names of resources",
        about: "The first pattern that matches counts, and `*` stands for any text. \
                A name without a domain gets `nvidia.com/` in front.",
        settings: &[
            Setting::new("", "resources.gpus[].pattern", Kind::Pattern, "a product name, such as NVIDIA H100*"),
            Setting::new("", "resources.gpus[].name", Kind::Name, "what such a GPU is offered as"),
            Setting::new("", "resources.mig[].pattern", Kind::ProfilePattern, "a MIG profile, such as 1g.10gb or 1g.*"),
            Setting::new("", "resources.mig[].name", Kind::Name, "what such a MIG device is offered as"),
        ],
    },
    Group {
        heading: "Sharing",
        about: "Several containers take turns on one device.",
        settings: &[
            Setting::new(
                "",
                "sharing.timeSlicing.renameByDefault",
                Kind::Boolean,
                "whether a shared resource without a rename is offered as <name>.shared",
            )
            .or(NO),
            Setting::new(
                "",
                "sharing.timeSlicing.failRequestsGreaterThanOne",
                Kind::Boolean,
                "whether an Allocate of more than one replica is refused",
            )
            .or(NO),
            Setting::new(
                "",
                "sharing.timeSlicing.resources[].name",
                Kind::Name,
                "the resource whose devices are shared; each once",
            ),
            Setting::new(
                "",
                "sharing.timeSlicing.resources[].rename",
                Kind::Name,
                "what the replicas are offered as instead",
            ),
            Setting::new(
                "",
                "sharing.timeSlicing.resources[].replicas",
                Kind::Replicas,
                "as how many replicas each device is offered",
            ),
            Setting::new(
                "",
                "sharing.timeSlicing.resources[].devices",
                Kind::Devices,
                "which devices are shared; the others stay whole under the first name. A number keeps to those that were \
                 shared before, and after a restart to what pods hold",
            )
            .or("all"),
            Setting::new("", "sharing.mps", Kind::Refused(MPS), "refused"),
        ],
    },
    Group {
        heading: "For another program",
        about: "These keys are checked and otherwise ignored.",
        settings: &[
            Setting::new("", "flags.useNodeFeatureAPI", Kind::Boolean, GFD),
            Setting::new("", "flags.gfd.oneshot", Kind::Boolean, GFD),
            Setting::new("", "flags.gfd.noTimestamp", Kind::Boolean, GFD),
            Setting::new("", "flags.gfd.sleepInterval", Kind::Text, GFD),
            Setting::new("", "flags.gfd.outputFile", Kind::Text, GFD),
            Setting::new("", "flags.gfd.machineTypeFile", Kind::Text, GFD),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_stands_for_two_settings() {
        let mut seen = HashSet::new();
        for setting in all() {
            let flags = setting.aliases.iter().chain([&setting.flag]).map(|flag| format!("--{flag}"));
            let others = setting.variables.iter().chain([&setting.key]).map(|name| (*name).to_owned());
            for name in flags.chain(others).filter(|name| !name.is_empty() && name != "--") {
                assert!(seen.insert(name.clone()), "{name}");
            }
        }
    }

    #[test]
    fn every_default_is_allowed() {
        for setting in all().filter(|setting| !setting.default.is_empty()) {
            assert_eq!(setting.kind.check(setting.default), Ok(()), "{}", setting.id());
        }
    }

    #[test]
    fn every_flag_has_a_variable_and_every_key_belongs_somewhere() {
        for setting in all() {
            assert_eq!(setting.flag.is_empty(), setting.variables.is_empty(), "{}", setting.id());
            assert!(!setting.id().is_empty() && !setting.help.is_empty(), "{setting:?}");
        }
    }
}

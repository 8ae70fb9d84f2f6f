//! The flags, as clap sees them. They are text here: [`Values`](super::Values) reads them, so that all
//! mistakes can be told at once.

use clap::Args;

/// Where the driver and its files are, as this process sees them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where things are in this container")]
pub struct RootFlags {
    /// Where the host's driver root is mounted; libnvidia-ml.so.1 is looked for there, then by the
    /// loader [default: /driver-root]
    #[arg(
        long,
        alias = "container-driver-root",
        value_name = "PATH",
        env = "DRIVER_ROOT_CTR_PATH",
        global = true
    )]
    driver_root_ctr_path: Option<String>,

    /// Where to look whether a device node exists [default: the driver root if it has a folder dev, else /]
    #[arg(long, value_name = "PATH", env = "DEV_ROOT_CTR_PATH", global = true)]
    dev_root_ctr_path: Option<String>,

    /// Where /proc is [default: proc below the driver root if the driver has files there, else /proc]
    #[arg(long, value_name = "PATH", env = "PROC_ROOT", global = true)]
    proc_root: Option<String>,

    /// Where /sys is [default: sys below the driver root if it lists PCI devices, else /sys]
    #[arg(long, value_name = "PATH", env = "SYS_ROOT", global = true)]
    sys_root: Option<String>,
}

/// How to log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging (to standard error)")]
pub struct LogFlags {
    /// text for people, json for machines [default: text]
    #[arg(long, value_name = "FORMAT", env = "LOG_FORMAT", global = true)]
    log_format: Option<String>,

    /// error, warn, info, debug or trace, or a level per module with commas between, such as
    /// `mig_device_plugin::kubelet=debug` [default: info]
    #[arg(long, value_name = "LEVEL", env = "LOG_LEVEL", global = true)]
    log_level: Option<String>,
}

/// What the daemon does.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// How MIG devices are offered: none (whole GPUs as nvidia.com/gpu), single (MIG devices of one
    /// profile as nvidia.com/gpu), mixed (nvidia.com/mig-PROFILE) [default: none]
    #[arg(long, value_name = "STRATEGY", env = "MIG_STRATEGY")]
    mig_strategy: Option<String>,

    /// Whether to exit (code 1) when NVML cannot be loaded or initialised at start, rather than to wait for the
    /// driver [default: true]
    #[arg(long, value_name = "BOOL", env = "FAIL_ON_INIT_ERROR", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fail_on_init_error: Option<String>,

    /// Whether an Allocate names device nodes. By default those that exist; true: a MIG device that lacks one is
    /// unhealthy; false: none, a container runtime adds them
    #[arg(long, value_name = "BOOL", env = "PASS_DEVICE_SPECS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pass_device_specs: Option<String>,

    /// How often to look for changes that no event told, e.g. 10s, 1m; 0 = never (SIGHUP still does) [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RESCAN_INTERVAL")]
    rescan_interval: Option<String>,

    /// How long a device that has gone stays listed, as unhealthy, after it was last handed out [default: 5s]
    #[arg(long, value_name = "DURATION", env = "REMOVAL_GRACE")]
    removal_grace: Option<String>,

    /// The driver's root on the host, where device nodes in answers are [default: /]
    #[arg(
        long,
        alias = "driver-root",
        value_name = "PATH",
        env = "NVIDIA_DRIVER_ROOT",
        help_heading = "On the host"
    )]
    nvidia_driver_root: Option<String>,

    /// In front of device nodes' paths in answers [default: the driver root on the host]
    #[arg(
        long,
        alias = "dev-root",
        value_name = "PATH",
        env = "NVIDIA_DEV_ROOT",
        help_heading = "On the host"
    )]
    nvidia_dev_root: Option<String>,

    /// The kubelet's registration socket; ours are made in the same folder
    /// [default: /var/lib/kubelet/device-plugins/kubelet.sock]
    #[arg(long, value_name = "PATH", env = "KUBELET_SOCKET", help_heading = "The kubelet")]
    kubelet_socket: Option<String>,

    /// Where the kubelet tells which pods hold devices
    /// [default: /var/lib/kubelet/pod-resources/kubelet.sock]
    #[arg(long, value_name = "PATH", env = "POD_RESOURCES_SOCKET", help_heading = "The kubelet")]
    pod_resources_socket: Option<String>,

    /// Users besides root and our own that may connect to our sockets, by number, with commas between
    #[arg(long, value_name = "UID", env = "ALLOWED_UID", help_heading = "The kubelet")]
    allowed_uid: Option<String>,
}

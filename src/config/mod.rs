//! Everything that a person can set, checked: the values of flags and environment variables become one
//! immutable [`Config`], or one report with every mistake in it.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::time::Duration;

mod flags;
mod values;

pub use flags::{Flags, LogFlags, RootFlags};
pub use values::Values;

use crate::kubelet::SocketNames;
use crate::nvml::Paths;
use crate::resource::allocate::Rules;
use crate::resource::policy::{
    AllocationPolicy, DeviceIdStrategy, DeviceListStrategy, Features, Imex, OfferPolicy,
};
use crate::resource::{DeviceSpecs, MigStrategy};
use crate::supervisor::Policy;
use crate::telemetry::LogFormat;

/// The environment's names for one value that NVIDIA's plugin knows under two, and clap under one.
const CONTAINER_DRIVER_ROOT: &str = "CONTAINER_DRIVER_ROOT";

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to look for the driver.
    pub paths: Paths,
    /// How often to look again without being told; `None`: never.
    pub rescan_interval: Option<Duration>,
    /// What is offered.
    pub policy: Policy,
    /// How answers are made.
    pub rules: Rules,
    /// The kubelet's registration socket.
    pub kubelet_socket: PathBuf,
    /// Names for our sockets beside it.
    pub socket_names: SocketNames,
    /// Users that may connect to our sockets.
    pub allowed_uids: HashSet<u32>,
}

/// How the program logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is logged.
    pub level: tracing_subscriber::filter::Targets,
}

/// Mistakes in the configuration: all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.mistakes.join("\n"))]
pub struct ConfigError {
    /// A sentence each: the flag or variable, the bad value, and what is allowed.
    pub mistakes: Vec<String>,
}

impl Config {
    /// Puts the configuration together. `values` knows which flags were given, or else their variables.
    pub fn new(mut values: Values, our_uid: u32) -> Result<Self, ConfigError> {
        let paths = paths(&mut values);
        let strategy = values.choice(
            "mig-strategy",
            &[("none", MigStrategy::None), ("single", MigStrategy::Single), ("mixed", MigStrategy::Mixed)],
            MigStrategy::default(),
        );
        let device_specs = match values.boolean("pass-device-specs") {
            None => DeviceSpecs::Existing,
            Some(true) => DeviceSpecs::Required,
            Some(false) => DeviceSpecs::Omitted,
        };
        let policy = Policy {
            offer: OfferPolicy { strategy, device_specs, ..OfferPolicy::default() },
            removal_grace: values.duration("removal-grace", Duration::from_secs(5)),
            pod_resources_socket: values
                .path("pod-resources-socket", "/var/lib/kubelet/pod-resources/kubelet.sock"),
            fail_on_init_error: values.boolean("fail-on-init-error").unwrap_or(true),
        };
        let driver_root = values.path("nvidia-driver-root", "/");
        let host_dev_root = values.optional_path("nvidia-dev-root").unwrap_or(driver_root);
        let rules = Rules {
            device_specs,
            host_dev_root,
            strategies: BTreeSet::from([DeviceListStrategy::Envvar]),
            ids: DeviceIdStrategy::Uuid,
            cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
            allocation: AllocationPolicy::default(),
            features: Features::default(),
            imex: Imex::default(),
            variable_per_resource: false,
        };
        let kubelet_socket = values.path("kubelet-socket", "/var/lib/kubelet/device-plugins/kubelet.sock");
        let rescan_interval = values.duration("rescan-interval", Duration::from_secs(10));
        let allowed_uids = values.numbers("allowed-uid").into_iter().chain([0, our_uid]).collect();
        let socket_names = match kubelet_socket.parent().map(SocketNames::new) {
            Some(Ok(names)) => Some(names),
            Some(Err(error)) => values.mistake("kubelet-socket", &error.to_string()),
            None => values.mistake("kubelet-socket", "it has to be a file's path"),
        };
        values.finish()?;
        let socket_names = socket_names.ok_or_else(|| ConfigError { mistakes: Vec::new() })?;
        Ok(Self {
            paths,
            rescan_interval: Some(rescan_interval).filter(|interval| !interval.is_zero()),
            policy,
            rules,
            kubelet_socket,
            socket_names,
            allowed_uids,
        })
    }
}

/// Where to look for the driver: all that the command `devices` needs.
pub fn paths(values: &mut Values) -> Paths {
    let legacy = std::env::var(CONTAINER_DRIVER_ROOT).ok().filter(|value| !value.is_empty());
    let fallback = legacy.unwrap_or_else(|| "/driver-root".to_owned());
    Paths {
        driver_root: values.path("driver-root-ctr-path", &fallback),
        dev_root: values.optional_path("dev-root-ctr-path"),
        proc_root: values.optional_path("proc-root"),
        sys_root: values.optional_path("sys-root"),
    }
}

/// How to log.
pub fn log(values: &mut Values) -> LogConfig {
    let format = values.choice(
        "log-format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        LogFormat::default(),
    );
    LogConfig { format, level: values.log_level("log-level") }
}

#[cfg(test)]
mod tests;

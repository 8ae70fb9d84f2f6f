//! Everything that a person can set, checked: flags, environment variables and the config file become one immutable
//! [`Config`], or one report with every mistake in it.
//!
//! ```text
//!   settings (the table: one row per thing that can be set) ──► flags (clap) ──► Values ──┐
//!          └──► kind (what is allowed)                          environment ──►    │      ├─► Config
//!                                     file: bytes ─► tree ─► file ─► offer ─► Values ─────┘
//! ```
//!
//! A flag wins over the environment, that over the file, and that over the default. What loses is checked too.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod command;
mod file;
mod flags;
mod kind;
mod mounted;
mod near;
mod offer;
mod reference;
mod settings;
mod show;
mod tree;
mod values;
mod watch;

pub use file::MAX_BYTES;
pub use flags::add_to;
pub use values::Values;
pub use watch::Changes;

use self::file::File;
use self::offer::Offer;
use self::values::{Given, Origin};
use self::watch::Seen;
use crate::cdi::CdiOptions;
use crate::health::{Checks, EventKind, HealthPolicy, Recovery};
use crate::kubelet::SocketNames;
use crate::nvml::{Paths, SessionOptions};
use crate::resource::allocate::Rules;
use crate::resource::policy::{
    AllocationPolicy, DeviceIdStrategy, DeviceListStrategy, Feature, Imex, OfferPolicy,
};
use crate::resource::variables::{clashes, variable_of};
use crate::resource::{DeviceSpecs, MigStrategy};
use crate::supervisor::Policy;
use crate::telemetry::LogFormat;

/// More mistakes than this are counted only: nobody reads them, and a file of the wrong kind has thousands.
const MAX_MISTAKES: usize = 100;

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to look for the driver.
    pub paths: Paths,
    /// How often to look without being told, and when to let go of a GPU that is lost.
    pub session: SessionOptions,
    /// What is offered.
    pub policy: Policy,
    /// How answers are made.
    pub rules: Rules,
    /// How CDI specifications are written.
    pub cdi: CdiOptions,
    /// The kubelet's registration socket.
    pub kubelet_socket: PathBuf,
    /// Names for our sockets beside it.
    pub socket_names: SocketNames,
    /// Users that may connect to our sockets.
    pub allowed_uids: HashSet<u32>,
    /// Where metrics are served, if they are; fixed at start.
    pub http_address: Option<SocketAddr>,
    /// What is dubious, a sentence each: for the log.
    pub warnings: Vec<String>,
    /// The config file as it was read, where there is one.
    file: Option<Seen>,
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
    /// A sentence each: the place, the bad value, and what is allowed.
    pub mistakes: Vec<String>,
}

impl ConfigError {
    fn of(mut mistakes: Vec<String>) -> Result<(), Self> {
        let more = mistakes.len().saturating_sub(MAX_MISTAKES);
        mistakes.truncate(MAX_MISTAKES);
        if more > 0 {
            mistakes.push(format!("and {more} more mistakes"));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Self { mistakes }) }
    }
}

/// All layers over each other.
struct Merged {
    values: Values,
    file: File,
    mistakes: Vec<String>,
}

/// Where configurations come from: the flags and the environment, which stay, and the file that they name.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    values: Values,
    our_uid: u32,
}

impl ConfigSource {
    /// A source with these flags and variables.
    pub fn new(values: Values, our_uid: u32) -> Self {
        Self { values, our_uid }
    }

    /// The configuration as it is now; the file is read anew.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::new(&self.values, self.our_uid)
    }

    /// Tells when the file is not any more what it was for `config`.
    pub fn watch(&self, config: &Config) -> Changes {
        Changes::new(config.file.clone())
    }
}

impl Config {
    /// Puts the configuration together: `values` are the flags and the environment, and the file that they name is
    /// read.
    pub fn new(values: &Values, our_uid: u32) -> Result<Self, ConfigError> {
        merge(values).config(our_uid)
    }

    /// Whether `new` differs in something that is fixed while the parts run: all but the policy and the rules.
    pub fn needs_restart(&self, new: &Self) -> bool {
        let fixed = |config: &Self| {
            let Self { paths, session, cdi, kubelet_socket, allowed_uids, .. } = config.clone();
            (paths, session, cdi, kubelet_socket, allowed_uids)
        };
        fixed(self) != fixed(new)
    }
}

/// Reads the file that `values` name, and lays `values` over it.
fn merge(values: &Values) -> Merged {
    let path = values.optional_path("config-file");
    let file = path.map(|path| File::read(&path, values.is("lenient-config"))).unwrap_or_default();
    let mut mistakes = values.mistakes(|_| true);
    mistakes.extend(file.mistakes.iter().cloned());
    let values = derived(values.over(&file.values), Path::is_dir);
    Merged { values, file, mistakes }
}

/// Values that follow from others, where they are not given. `is_dir` looks at this container.
fn derived(mut values: Values, is_dir: impl Fn(&Path) -> bool) -> Values {
    const HOST: &str = "nvidia-driver-root";
    let is_here = |path: &str| is_dir(Path::new(path));
    let host = values.text(HOST).to_owned();
    let mut follow = |flag: &str| {
        if let (None, Some(setting)) = (values.given(flag), settings::find(flag)) {
            values.set(setting, Given { text: host.clone(), origin: Origin::From(HOST) });
        }
    };
    follow("nvidia-dev-root");
    // NVIDIA's chart mounts the host's driver root at /driver-root; people who mount it where it is on the host
    // should not have to say so twice.
    if host != "/" && is_here(&host) && !is_here("/driver-root") {
        follow("driver-root-ctr-path");
    }
    values
}

impl Merged {
    fn config(mut self, our_uid: u32) -> Result<Config, ConfigError> {
        let values = &self.values;
        let kubelet_socket = values.path("kubelet-socket");
        let socket_names = match kubelet_socket.parent().map(SocketNames::new) {
            Some(Ok(names)) => Some(names),
            Some(Err(error)) => self.mistake("kubelet-socket", &error.to_string()),
            None => self.mistake("kubelet-socket", "it has to be a file's path"),
        };
        if self.values.text("device-list-strategy").trim().is_empty() {
            self.mistake::<()>(
                "device-list-strategy",
                "a container has to be told of its devices by at least one",
            );
        }
        let offer = offer(&self.values, &self.file.offer);
        if self.values.is("variable-per-resource") {
            for (one, other) in clashes(&offer) {
                let variable = variable_of(one.as_str());
                let why =
                    format!("{one} and {other} would both set {variable}: one of them needs another name");
                self.mistake::<()>("variable-per-resource", &why);
            }
        }
        let Self { values, file, mistakes } = self;
        ConfigError::of(mistakes)?;
        let socket_names = socket_names.ok_or_else(|| ConfigError { mistakes: Vec::new() })?;
        let policy = Policy {
            offer,
            health: health(&values),
            removal_grace: values.duration("removal-grace"),
            pod_resources_socket: values.path("pod-resources-socket"),
            fail_on_init_error: values.is("fail-on-init-error"),
        };
        let (paths, cdi) = (roots(&values), cdi(&values));
        let other_root = kubelet_socket
            .parent()
            .and_then(|folder| mounted::other_root(folder, &paths.driver_root, &cdi.host_driver_root));
        Ok(Config {
            paths,
            session: SessionOptions {
                rescan: unless_zero(values.duration("rescan-interval")),
                release_after: unless_zero(values.duration("lost-gpu-release-after")),
                release_for_reset: policy.health.checks.counts(EventKind::RecoveryAction),
            },
            policy,
            rules: rules(&values),
            cdi,
            kubelet_socket,
            socket_names,
            allowed_uids: values.list("allowed-uid", |uid| uid.parse().ok()).chain([0, our_uid]).collect(),
            http_address: kind::address(values.text("http-address")),
            file: file.seen,
            warnings: file.warnings.into_iter().chain(other_root).collect(),
        })
    }

    /// Notes a mistake in the value of `flag`, which is allowed in itself.
    fn mistake<T>(&mut self, flag: &str, why: &str) -> Option<T> {
        let text = self.values.text(flag);
        // A value that breaks its own rule has been told of.
        if settings::find(flag).is_some_and(|setting| setting.kind.check(text).is_ok()) {
            let text = values::shown(text);
            let origin =
                self.values.given(flag).map_or_else(|| format!("--{flag}"), |given| given.origin.to_string());
            self.mistakes.push(format!("{origin}: {text} cannot be used: {why}"));
        }
        None
    }
}

fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

fn offer(values: &Values, from_file: &Offer) -> OfferPolicy {
    // A CDI specification has the numbers of nodes that are not there yet.
    let only_cdi = strategies(values).iter().all(|strategy| strategy.is_cdi());
    let Offer { gpus, mig, time_slicing } = from_file.clone();
    OfferPolicy {
        strategy: match values.text("mig-strategy") {
            "single" => MigStrategy::Single,
            "mixed" => MigStrategy::Mixed,
            _ => MigStrategy::None,
        },
        device_specs: if only_cdi { DeviceSpecs::Omitted } else { device_specs(values) },
        gpus,
        mig,
        time_slicing,
        withhold: values.list("withhold", kind::selector).collect(),
    }
}

fn device_specs(values: &Values) -> DeviceSpecs {
    match values.boolean("pass-device-specs") {
        None => DeviceSpecs::Existing,
        Some(true) => DeviceSpecs::Required,
        Some(false) => DeviceSpecs::Omitted,
    }
}

fn strategies(values: &Values) -> BTreeSet<DeviceListStrategy> {
    let strategy = |word: &str| match word {
        "envvar" => Some(DeviceListStrategy::Envvar),
        "volume-mounts" => Some(DeviceListStrategy::VolumeMounts),
        "cdi-annotations" => Some(DeviceListStrategy::CdiAnnotations),
        "cdi-cri" => Some(DeviceListStrategy::CdiCri),
        _ => None,
    };
    values.list("device-list-strategy", strategy).collect()
}

fn rules(values: &Values) -> Rules {
    Rules {
        device_specs: device_specs(values),
        host_dev_root: values.path("nvidia-dev-root"),
        strategies: strategies(values),
        ids: match values.text("device-id-strategy") {
            "index" => DeviceIdStrategy::Index,
            _ => DeviceIdStrategy::Uuid,
        },
        cdi_annotation_prefix: values.text("cdi-annotation-prefix").to_owned(),
        features: features(values),
        cdi_spec_dir: values.path("cdi-spec-dir"),
        imex: Imex {
            channel_ids: values.list("imex-channel-ids", |id| id.parse().ok()).collect(),
            required: values.is("imex-required"),
        },
        variable_per_resource: values.is("variable-per-resource"),
        allocation: match values.text("shared-devices-allocation-policy") {
            "distributed" => AllocationPolicy::Distributed,
            "packed" => AllocationPolicy::Packed,
            _ => AllocationPolicy::Unset,
        },
    }
}

fn features(values: &Values) -> BTreeSet<Feature> {
    Feature::ALL.into_iter().filter(|feature| values.is(&format!("{}-enabled", feature.word()))).collect()
}

fn health(values: &Values) -> HealthPolicy {
    let checks = |id| values.list(id, |check| check.parse().ok()).collect::<Vec<_>>();
    let (disabled, enabled) = (checks("disable-healthchecks"), checks("enable-healthchecks"));
    HealthPolicy {
        checks: Checks::new(&disabled, &enabled, values.text("health-unknown-xids") == "unhealthy"),
        recovery: match values.text("health-recovery") {
            "off" => Recovery::Off,
            _ => Recovery::Auto { quiet: values.duration("health-recovery-quiet") },
        },
    }
}

fn cdi(values: &Values) -> CdiOptions {
    CdiOptions {
        spec_dir: values.path("cdi-spec-dir"),
        host_driver_root: values.path("nvidia-driver-root"),
        host_dev_root: values.path("nvidia-dev-root"),
        hook: values.optional_path("nvidia-cdi-hook-path"),
        disabled_hooks: values.list("cdi-disable-hooks", |hook| Some(hook.to_owned())).collect(),
        without_sockets: values
            .list("cdi-feature-flags", |flag| Some(flag == "disable-ipc-discoverer"))
            .any(|is| is),
        imex_channels: values.list("imex-channel-ids", |id| id.parse().ok()).collect(),
        features: features(values),
    }
}

fn roots(values: &Values) -> Paths {
    Paths {
        driver_root: values.path("driver-root-ctr-path"),
        dev_root: values.optional_path("dev-root-ctr-path"),
        proc_root: values.optional_path("proc-root"),
        sys_root: values.optional_path("sys-root"),
    }
}

/// Where to look for the driver: all that the command `devices` needs. Only mistakes that concern it are told.
pub fn paths(values: &Values) -> Result<Paths, ConfigError> {
    let merged = merge(values);
    ConfigError::of(values.mistakes(|setting| setting.global || setting.id() == "nvidia-driver-root"))?;
    ConfigError::of(merged.file.mistakes)?;
    Ok(roots(&merged.values))
}

/// Where a plugin with this configuration is to be found over HTTP.
pub fn http_address(values: &Values) -> Option<SocketAddr> {
    kind::address(merge(values).values.text("http-address"))
}

/// How to log. Mistakes are told by whatever reads the rest.
pub fn log(values: &Values) -> LogConfig {
    let format = if values.text("log-format") == "json" { LogFormat::Json } else { LogFormat::Text };
    LogConfig { format, level: values.log_level("log-level") }
}

#[cfg(test)]
mod tests;

//! What a configuration says about resources, as checked values. Parsing and checking is `config/`'s; what
//! follows from it is decided beside this file.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::sharing::SHARED;
use super::{DeviceSpecs, MigStrategy, ResourceName};
use crate::inventory::Profile;

/// What is offered, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OfferPolicy {
    /// `--mig-strategy`.
    pub strategy: MigStrategy,
    /// `--pass-device-specs`: a device whose nodes are not complete is unhealthy where they are required.
    pub device_specs: DeviceSpecs,
    /// `resources.gpus`: product names to resource names. Empty: every GPU is `nvidia.com/gpu`.
    pub gpus: Vec<Pattern>,
    /// `resources.mig`: profiles to resource names. Empty: every profile is `nvidia.com/mig-<profile>`.
    pub mig: Vec<Pattern>,
    /// `sharing.timeSlicing`.
    pub time_slicing: TimeSlicing,
    /// `--withhold`: devices that are not to be offered.
    pub withhold: Vec<Selector>,
}

/// A product name or profile with `*` as the only wildcard, matched as a whole, and the name it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// E.g. `NVIDIA H100*`, `1g.10gb`, `*`.
    pub pattern: String,
    /// What such a device is offered as.
    pub name: ResourceName,
}

/// `sharing.timeSlicing`: several containers take turns on one device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeSlicing {
    /// Offer a shared resource as `<name>.shared`, where it has no `rename`.
    pub rename_by_default: bool,
    /// Refuse an `Allocate` of more than one replica.
    pub fail_requests_greater_than_one: bool,
    /// What is shared; each name once.
    pub resources: Vec<SharedResource>,
}

/// One resource whose devices are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedResource {
    /// The name it would be offered under.
    pub name: ResourceName,
    /// The name it is offered under instead.
    pub rename: Option<ResourceName>,
    /// Which of its devices are shared; the others stay whole, under the first name.
    pub devices: DeviceSelection,
    /// How many replicas each is offered as; at least 2.
    pub replicas: u32,
}

/// Some devices of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceSelection {
    /// All of them.
    #[default]
    All,
    /// So many: those that were shared before, else the first.
    Count(usize),
    /// Those named.
    List(Vec<DeviceRef>),
}

/// How a person names one device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceRef {
    /// `GPU-…` or `MIG-…`.
    Uuid(String),
    /// `6`: a GPU by NVML index.
    Gpu(u32),
    /// `0:3`: a MIG device by GPU index and MIG index.
    Mig(u32, u32),
}

/// Devices that are meant together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// One device; a GPU stands for its slices too.
    Device(DeviceRef),
    /// All slices of a profile.
    Profile(Profile),
}

/// How a container is told which devices it may see (`--device-list-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceListStrategy {
    /// `NVIDIA_VISIBLE_DEVICES`.
    Envvar,
    /// Mounts below `/var/run/nvidia-container-devices`.
    VolumeMounts,
    /// CDI names in an annotation.
    CdiAnnotations,
    /// CDI names in the answer's own field.
    CdiCri,
}

/// What a device is called towards the container (`--device-id-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceIdStrategy {
    /// By UUID.
    #[default]
    Uuid,
    /// By index: `6`, `0:3`.
    Index,
}

/// How devices are chosen where the kubelet lets us (`--shared-devices-allocation-policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AllocationPolicy {
    /// Not set: slices packed on GPUs, so that whole GPUs stay free, and replicas spread over devices, as in NVIDIA's
    /// plugin, whose default for replicas is `distributed` and whose choice of slices is random.
    #[default]
    Unset,
    /// Spread over GPUs, and replicas over devices.
    Distributed,
    /// Fill what is already used most, and leave whole GPUs free.
    Packed,
}

/// A driver beside the GPU's that a container may want. The order is that of NVIDIA's plugin in its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// GDRCopy (`--gdrcopy-enabled`).
    Gdrcopy,
    /// GPUDirect Storage (`--gds-enabled`).
    Gds,
    /// NVIDIA's drivers for InfiniBand and Ethernet (`--mofed-enabled`).
    Mofed,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gdrcopy, Self::Gds, Self::Mofed];

    /// What flags and CDI kinds call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gdrcopy => "gdrcopy",
            Self::Gds => "gds",
            Self::Mofed => "mofed",
        }
    }

    /// The variable by which the NVIDIA container runtime knows that a container gets it.
    pub fn variable(self) -> String {
        format!("NVIDIA_{}", self.word().to_ascii_uppercase())
    }
}

/// `imex`: channels that every container gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imex {
    /// Their numbers, each once; only 0 is supported upstream.
    pub channel_ids: BTreeSet<u32>,
    /// Whether a channel that is not there is an error.
    pub required: bool,
}

/// The text names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no device: a UUID (GPU-… or MIG-…), an index (6), or GPU:MIG indices (0:3) would")]
pub struct InvalidDeviceRef(String);

impl FromStr for DeviceRef {
    type Err = InvalidDeviceRef;

    fn from_str(text: &str) -> Result<Self, InvalidDeviceRef> {
        let invalid = || InvalidDeviceRef(text.to_owned());
        let number = |part: &str| part.parse::<u32>().ok().ok_or_else(invalid);
        if text.starts_with("GPU-") || text.starts_with("MIG-") {
            return Ok(Self::Uuid(text.to_owned()));
        }
        match text.split_once(':') {
            Some((gpu, mig)) => Ok(Self::Mig(number(gpu)?, number(mig)?)),
            None => number(text).map(Self::Gpu),
        }
    }
}

impl DeviceListStrategy {
    /// Whether a container runtime is told by CDI names.
    pub fn is_cdi(self) -> bool {
        matches!(self, Self::CdiAnnotations | Self::CdiCri)
    }
}

impl OfferPolicy {
    /// Whether this configuration gives the name to some device on some node, or NVIDIA's plugin does by default.
    pub fn may_offer(&self, name: &ResourceName) -> bool {
        let whole = name.as_str();
        let plain = whole.strip_suffix(SHARED).unwrap_or(whole);
        let given = self.gpus.iter().chain(&self.mig).map(|pattern| &pattern.name);
        let shared =
            self.time_slicing.resources.iter().flat_map(|shared| shared.rename.iter().chain([&shared.name]));
        plain == ResourceName::gpu().as_str()
            || plain.starts_with("nvidia.com/mig-")
            || given.chain(shared).any(|given| given.as_str() == plain || given == name)
    }
}

impl Pattern {
    /// Whether the pattern matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let mut parts: Vec<_> = parts.collect();
        // Without a '*', nothing may be left; the part behind the last one has to end the text.
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => device.fmt(f),
            Self::Profile(profile) => profile.fmt(f),
        }
    }
}

impl fmt::Display for DeviceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => f.write_str(uuid),
            Self::Gpu(gpu) => write!(f, "{gpu}"),
            Self::Mig(gpu, mig) => write!(f, "{gpu}:{mig}"),
        }
    }
}

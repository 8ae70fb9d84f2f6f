//! What is advertised: from an [`Inventory`] to named resources and their
//! devices, and from a request to an answer. All of it is pure: values in, values out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;

use crate::health::EventKind;
use crate::inventory::{DeviceNode, Gpu, Inventory, MigDevice, RecoveryAction, Trouble, TroubleKind};

pub mod allocate;
pub mod cdi_name;
pub mod ledger;
mod name;
mod patterns;
pub mod policy;
pub mod preferred;
mod sharing;
mod strategy;
pub mod variables;

pub use name::{InvalidResourceName, ResourceName};
pub use sharing::Earlier;
pub use strategy::{MigStrategy, resolve, resolve_after};

/// One thing that a container can be given: a MIG device, or a GPU as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What the kubelet calls it: the UUID, or `<uuid>::<n>` for a replica.
    pub id: DeviceId,
    /// `GPU-…` or `MIG-…`; what the driver and a container call it.
    pub uuid: String,
    /// Which of several replicas of one device it is, where the device is shared.
    pub replica: Option<Replica>,
    /// The NVML index of its GPU.
    pub gpu_index: u32,
    /// The UUID of its GPU.
    pub gpu_uuid: String,
    /// What the driver said about the slice; `None` for a whole GPU.
    pub mig: Option<MigDevice>,
    /// NUMA node of its GPU.
    pub numa_node: Option<u32>,
    /// The nodes that are this device's own: the GPU's, and for a slice its two capabilities'.
    pub nodes: Vec<DeviceNode>,
    /// Why it is unhealthy; a device is healthy when there is no reason.
    pub reasons: Vec<Reason>,
}

impl Device {
    /// A device of which only the ID is known, and the NUMA node that it had when it was handed out: a pod has held it
    /// since before this program was started, and the driver may not have it.
    pub fn known_by_id(id: DeviceId, numa_node: Option<u32>) -> Self {
        let (uuid, replica) = match id.0.split_once("::") {
            Some((uuid, number)) => {
                (uuid, number.parse().ok().map(|number| Replica { number, alone: false }))
            }
            None => (id.as_str(), None),
        };
        Self {
            uuid: uuid.to_owned(),
            replica,
            gpu_index: u32::MAX,
            gpu_uuid: String::new(),
            mig: None,
            numa_node,
            nodes: Vec::new(),
            reasons: vec![Reason::Gone],
            id,
        }
    }

    /// What the driver has under this device's UUID, if anything, as a whole GPU's or a slice's.
    fn in_inventory(&self, inventory: &Inventory) -> Option<Self> {
        inventory.gpus.iter().find_map(|gpu| {
            if gpu.uuid == self.uuid {
                return Some(Self::of_gpu(gpu));
            }
            let mig = gpu.mig_devices.iter().find(|mig| mig.uuid == self.uuid)?;
            Some(Self::of_mig(gpu, mig))
        })
    }

    /// Whether nothing but its ID is known.
    pub fn is_known_by_id_only(&self) -> bool {
        self.gpu_uuid.is_empty()
    }

    /// Whether it may be handed out.
    pub fn is_healthy(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Whether it is a GPU as a whole, or a replica of one.
    pub fn is_whole_gpu(&self) -> bool {
        self.uuid == self.gpu_uuid
    }

    /// Whether `other` is this very device, rather than another one that came back under its UUID.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.is_same_hardware(other)
    }

    /// Whether `other` is this device or a replica of it.
    fn is_same_hardware(&self, other: &Self) -> bool {
        self.uuid == other.uuid
            && self.gpu_uuid == other.gpu_uuid
            && match (&self.mig, &other.mig) {
                (None, None) => {
                    self.nodes.first().map(|node| &node.path) == other.nodes.first().map(|n| &n.path)
                }
                (Some(a), Some(b)) => a.is_same(b),
                _ => false,
            }
    }

    /// `0` for a GPU, `0:3` for a MIG device: how people and logs name it besides the UUID.
    pub fn index(&self) -> String {
        match &self.mig {
            None if self.is_known_by_id_only() => "?".to_owned(),
            None => self.gpu_index.to_string(),
            Some(mig) => format!("{}:{}", self.gpu_index, mig.index),
        }
    }

    /// The capability file that vanishes with the slice.
    pub fn access_file(&self) -> Option<&Path> {
        self.mig.as_ref()?.access_file.as_deref()
    }

    /// The reasons in one line.
    pub fn reasons_text(&self) -> String {
        self.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn of_gpu(gpu: &Gpu) -> Self {
        Self {
            id: DeviceId(gpu.uuid.clone()),
            uuid: gpu.uuid.clone(),
            replica: None,
            gpu_index: gpu.index,
            gpu_uuid: gpu.uuid.clone(),
            mig: None,
            numa_node: gpu.numa_node,
            nodes: vec![gpu.node.clone()],
            reasons: gpu.problem.clone().map(Reason::from).into_iter().collect(),
        }
    }

    fn of_mig(gpu: &Gpu, mig: &MigDevice) -> Self {
        let caps = [&mig.gpu_instance_node, &mig.compute_instance_node];
        let problems = [&gpu.problem, &mig.problem];
        Self {
            id: DeviceId(mig.uuid.clone()),
            uuid: mig.uuid.clone(),
            replica: None,
            gpu_index: gpu.index,
            gpu_uuid: gpu.uuid.clone(),
            mig: Some(mig.clone()),
            numa_node: gpu.numa_node,
            nodes: std::iter::once(gpu.node.clone()).chain(caps.into_iter().flatten().cloned()).collect(),
            reasons: problems.into_iter().flatten().cloned().map(Reason::from).collect(),
        }
    }
}

/// One of several entries for a device that containers take turns on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// The `n` of `<uuid>::<n>`.
    pub number: u32,
    /// Whether an `Allocate` may ask for no other beside it (`failRequestsGreaterThanOne`).
    pub alone: bool,
}

/// What the kubelet calls a device: its UUID, `GPU-…` or `MIG-…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub String);

impl DeviceId {
    /// The ID as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a UUID as the driver gives them, or a replica's of one: `GPU-…`, `MIG-…`, or the old
    /// `MIG-GPU-…/gi/ci`, with `::n` behind a replica's.
    pub fn is_the_drivers(&self) -> bool {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (uuid, replica) = self.0.split_once("::").unwrap_or((&self.0, "0"));
        let gpu = |text: &str| text.strip_prefix("GPU-").is_some_and(is_uuid);
        let is_device = match uuid.strip_prefix("MIG-") {
            None => gpu(uuid),
            Some(rest) => {
                let parts: Vec<_> = rest.split('/').collect();
                is_uuid(rest) || matches!(parts[..], [of, gi, ci] if gpu(of) && number(gi) && number(ci))
            }
        };
        is_device && number(replica)
    }
}

/// Whether the text has the form of a UUID.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hexadecimal = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(hexadecimal)
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a device is unhealthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The driver no longer has it; it stays listed until nobody can be using the entry.
    Gone,
    /// The driver has it, and it is no longer offered under this name; it stays listed as one that has gone does.
    NotOffered,
    /// Something of its GPU that is not to be used beside it is still listed and may be held; the text says what.
    Blocked(String),
    /// Its GPU has fallen off the bus or needs a reset; the text has NVML's words.
    Lost(String),
    /// A call about it does not come back; the text says which.
    NoAnswer(String),
    /// The driver could not be asked about it; the text has NVML's words.
    Unreadable(String),
    /// The driver reported a critical error on it, or on its GPU as a whole.
    Event(EventKind, SystemTime),
    /// Its GPU cannot be used again before this was done.
    RecoveryAction(RecoveryAction),
    /// Somebody sent SIGUSR1: the driver is left alone until SIGUSR2.
    OnHold,
    /// There is no driver to ask; the text says why.
    NoDriver(String),
    /// Device nodes that a container needs are not there.
    NodesMissing {
        /// Which.
        nodes: Vec<PathBuf>,
        /// What makes those that open a slice, where it is known.
        command: Option<String>,
    },
    /// The configuration takes it out of use (`--withhold`); the text is the selector.
    WithheldByConfig(String),
    /// The CDI specification cannot describe it.
    Incomplete(String),
}

impl Reason {
    /// One word for metrics; there are few.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::NotOffered => "not_offered",
            Self::Blocked(_) => "blocked",
            Self::Lost(_) => "lost",
            Self::NoAnswer(_) => "no_answer",
            Self::Unreadable(_) => "unreadable",
            Self::Event(kind, _) => kind.word(),
            Self::RecoveryAction(_) => "recovery_action",
            Self::OnHold => "on_hold",
            Self::NoDriver(_) => "no_driver",
            Self::NodesMissing { .. } => "nodes_missing",
            Self::WithheldByConfig(_) => "withheld_by_config",
            Self::Incomplete(_) => "incomplete",
        }
    }
}

impl From<Trouble> for Reason {
    fn from(trouble: Trouble) -> Self {
        match trouble.kind {
            TroubleKind::Lost => Self::Lost(trouble.text),
            TroubleKind::NoAnswer => Self::NoAnswer(trouble.text),
            TroubleKind::Unreadable => Self::Unreadable(trouble.text),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the driver no longer has this device"),
            Self::NotOffered => {
                f.write_str("no longer offered under this name since the configuration or the layout changed")
            }
            Self::Blocked(why) => f.write_str(why),
            Self::Lost(why) => write!(f, "lost: {why}"),
            Self::NoAnswer(why) => write!(f, "does not answer: {why}"),
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Self::Event(kind, at) => write!(f, "{kind} at {}", format_rfc3339_seconds(*at)),
            Self::RecoveryAction(action) => write!(f, "the driver asks for {action}"),
            Self::OnHold => f.write_str("on hold: SIGUSR1 was sent, and SIGUSR2 goes on"),
            Self::NoDriver(why) => write!(f, "no driver: {why}"),
            Self::NodesMissing { nodes, command } => {
                let nodes: Vec<_> = nodes.iter().map(|node| node.display().to_string()).collect();
                write!(f, "missing device node {}", nodes.join(", "))?;
                match command {
                    Some(command) => write!(f, "; on the host, as root: {command}"),
                    None => Ok(()),
                }
            }
            Self::WithheldByConfig(selector) => write!(f, "withheld by the configuration: {selector}"),
            Self::Incomplete(why) => write!(f, "cannot be described to a container runtime: {why}"),
        }
    }
}

/// A device that exists and is not advertised, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// `0` or `0:3`.
    pub index: String,
    /// Its UUID.
    pub id: DeviceId,
    /// A sentence for people.
    pub reason: String,
}

/// What this node should offer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceSet {
    /// Devices by resource, each list ordered by GPU index, GPU instance and compute instance.
    pub resources: BTreeMap<ResourceName, Vec<Device>>,
    /// What is left out.
    pub withheld: Vec<Withheld>,
    /// What of the configuration has no effect on this node.
    pub warnings: Vec<String>,
}

impl ResourceSet {
    /// Adds what `reasons` says of each device, and nothing twice.
    pub fn mark(&mut self, reasons: impl Fn(&Device) -> Vec<Reason>) {
        for device in self.resources.values_mut().flatten() {
            for reason in reasons(device) {
                if !device.reasons.contains(&reason) {
                    device.reasons.push(reason);
                }
            }
        }
    }
}

/// Whether and which device nodes go into an answer (`--pass-device-specs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceSpecs {
    /// Those that exist (the default); but a slice is unhealthy without the nodes that open it, since no container could
    /// use it.
    #[default]
    Existing,
    /// All of a device's own nodes; a device that lacks one is unhealthy (`true`).
    Required,
    /// None; a container runtime adds them by the environment variable (`false`).
    Omitted,
}

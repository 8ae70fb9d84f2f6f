//! The domain's nouns: what the driver says is on the node, as plain owned data.
//!
//! An [`Inventory`] is made by `nvml/` and read by everything else. Nothing here calls the driver, reads a
//! file or knows the time, so tests write inventories as literals.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod links;
mod profile;
#[cfg(test)]
mod tests;

pub use links::{Link, Links, PciePath};
pub use profile::{InvalidProfile, Profile};

/// Everything that one look at the driver found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// The driver's version as NVML gives it, e.g. `580.95.05`.
    pub driver_version: String,
    /// What the kernel driver says of itself in `/proc/driver/nvidia/version`, where that can be read.
    #[serde(skip)]
    pub kernel_module: Option<String>,
    /// The newest CUDA version that the driver supports, e.g. `13.0`.
    pub cuda_version: Option<String>,
    /// The library file that was opened.
    pub library: PathBuf,
    /// The GPUs, ordered by NVML index.
    pub gpus: Vec<Gpu>,
    /// Control nodes that exist on this node, of `nvidiactl`, `nvidia-uvm`, `nvidia-uvm-tools` and
    /// `nvidia-modeset`, in that order.
    pub control_nodes: Vec<DeviceNode>,
    /// What could not be read, so that nothing is missing without a reason.
    pub problems: Vec<Problem>,
    /// Whether the driver lets this process list instances, which says where one lies; that takes mig/config or
    /// `CAP_SYS_ADMIN`, and has nothing to do with events. `None` while no GPU has an instance to ask about.
    #[serde(default)]
    pub sees_instances: Option<bool>,
    /// What entitled this process to events of GPUs that have instances when the library was opened; `None` where that
    /// could not be told.
    #[serde(default)]
    pub event_right: Option<EventRight>,
}

/// By which right a process hears of a GPU that has an instance. The kernel driver looks at it when it delivers an
/// event, and goes by what the process had at nvmlInit (`_gpuFilterSubDeviceEventInfo`, the same from 515 to 595).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventRight {
    /// `CAP_SYS_ADMIN` in the initial user namespace.
    Admin,
    /// The capability mig/monitor: `/dev/nvidia-caps/nvidia-cap2` can be opened.
    Monitor,
    /// None: it hears nothing of such a GPU.
    #[serde(rename = "none")]
    Nothing,
}

/// One GPU, in MIG mode or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// NVML index; not stable over reboots (nvml.h, `nvmlDeviceGetHandleByIndex_v2`).
    pub index: u32,
    /// `GPU-…`
    pub uuid: String,
    /// Product name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// PCI address as sysfs spells it, e.g. `0000:18:00.0`.
    pub pci_bus_id: String,
    /// The number in `/dev/nvidiaN`; not the index.
    pub minor: u32,
    /// NUMA node, or `None` where sysfs says -1 or nothing.
    pub numa_node: Option<u32>,
    /// Total memory in MiB, where the driver tells it.
    pub memory_mib: Option<u64>,
    /// How many memory slices the GPU has in MIG mode, where known: the width of its drawing.
    pub memory_slices: Option<u32>,
    /// `None` where the GPU has no MIG.
    pub mig_mode: Option<MigMode>,
    /// `/dev/nvidiaN`.
    pub node: DeviceNode,
    /// Its MIG devices, ordered by GPU instance, then compute instance.
    pub mig_devices: Vec<MigDevice>,
    /// GPU instances that have no compute instance: half-made, so nothing can run on them yet.
    pub empty_gpu_instances: Vec<u32>,
    /// Slices that `/proc` shows and NVML does not list, ordered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<HiddenSlice>,
    /// What the GPU needs before it can be used again; `None` where its driver does not tell (before 570 or so).
    #[serde(default)]
    pub recovery_action: Option<RecoveryAction>,
    /// Why this GPU's devices cannot be used at the moment, e.g. `GPU is lost`.
    pub problem: Option<Trouble>,
}

impl Gpu {
    /// Keeps what `old` knew of slices that NVML does not list any more and `/proc` still shows.
    fn keep_hidden(&mut self, old: &Self) {
        for slice in &self.hidden {
            let is_here = |device: &MigDevice| self.mig_devices.iter().any(|here| here.uuid == device.uuid);
            let known = old.mig_devices.iter().find(|device| slice.is(device) && !is_here(device));
            let kept = known.map(|device| MigDevice { problem: Some(slice.trouble()), ..device.clone() });
            self.mig_devices.extend(kept);
        }
        self.mig_devices.sort_by_key(|device| (device.gpu_instance, device.compute_instance));
    }

    /// GPU instances of which no MIG device is known: empty ones, and those that are hidden. They may be anywhere.
    pub fn instances_without_devices(&self) -> Vec<u32> {
        let hidden = self.hidden.iter().map(|slice| slice.gpu_instance);
        let is_known = |id: &u32| self.mig_devices.iter().any(|device| device.gpu_instance == *id);
        let mut ids: Vec<_> =
            self.empty_gpu_instances.iter().copied().chain(hidden.filter(|id| !is_known(id))).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether each slice that NVML does not list is among the MIG devices, as it was known before.
    pub fn knows_what_is_hidden(&self) -> bool {
        self.hidden.iter().all(|slice| self.mig_devices.iter().any(|device| slice.is(device)))
    }

    /// Whether MIG is in force now. A pending mode change does not count before it is activated.
    pub fn mig_enabled(&self) -> bool {
        self.mig_mode.is_some_and(|mode| mode.current)
    }
}

/// A slice that the driver shows in `/proc` and NVML does not list. It may be one that is being made: its file is there
/// before it is listed. If it stays so, this process lacks a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HiddenSlice {
    /// GPU instance ID.
    pub gpu_instance: u32,
    /// Compute instance ID within the GPU instance.
    pub compute_instance: u32,
    /// Whether it has been so for longer than it takes to make one.
    pub settled: bool,
}

impl HiddenSlice {
    /// What it means for the slice.
    pub fn trouble(self) -> Trouble {
        Trouble::unreadable(if self.settled {
            "hidden from this process: no access to mig/monitor?"
        } else {
            "NVML does not list it at the moment, though /proc shows it"
        })
    }

    fn is(self, device: &MigDevice) -> bool {
        (self.gpu_instance, self.compute_instance) == (device.gpu_instance, device.compute_instance)
    }
}

/// MIG mode: what is in force and what will be after the next reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigMode {
    /// In force now.
    pub current: bool,
    /// In force after the next GPU reset or reboot.
    pub pending: bool,
}

/// One MIG device: a compute instance in a GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigDevice {
    /// The `3` of `0:3`. Indices can have holes and move when instances come and go.
    pub index: u32,
    /// `MIG-…`; may come back for another device after a repartition.
    pub uuid: String,
    /// GPU instance ID.
    pub gpu_instance: u32,
    /// Compute instance ID within the GPU instance.
    pub compute_instance: u32,
    /// E.g. `2g.20gb`, as the driver spells it.
    pub profile: Profile,
    /// The GPU instance profile's ID on this GPU model, where the driver tells it.
    pub profile_id: Option<u32>,
    /// Where the GPU instance lies; `None` where the driver does not let us ask.
    pub placement: Option<Placement>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Multiprocessors.
    pub sm_count: u32,
    /// The GPU instance's capability node, and whether it exists.
    pub gpu_instance_node: Option<DeviceNode>,
    /// The compute instance's capability node, and whether it exists.
    pub compute_instance_node: Option<DeviceNode>,
    /// The capability file below the proc root that stands and falls with this device,
    /// `…/capabilities/gpu0/mig/gi7/ci0/access`. `None` where it was not there when the device was found.
    pub access_file: Option<PathBuf>,
    /// Which file that was, so that a later slice's under the same name is not taken for it.
    #[serde(skip)]
    pub access_stamp: Option<FileStamp>,
    /// Why this device cannot be used at the moment.
    pub problem: Option<Trouble>,
}

impl MigDevice {
    /// Whether `other` is this very device. The UUID alone does not tell: the driver derives it from the
    /// parent and the instance IDs, so a repartition can bring it back with another profile. What one side
    /// does not know (no permission to ask) does not count against it. The index is no part of it, since
    /// it moves when a neighbour goes.
    pub fn is_same(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        fn path(node: Option<&DeviceNode>) -> Option<&PathBuf> {
            node.map(|node| &node.path)
        }
        self.uuid == other.uuid
            && self.gpu_instance == other.gpu_instance
            && self.compute_instance == other.compute_instance
            && self.profile == other.profile
            && self.memory_mib == other.memory_mib
            && agree(self.profile_id.as_ref(), other.profile_id.as_ref())
            && agree(self.placement.as_ref(), other.placement.as_ref())
            && agree(path(self.gpu_instance_node.as_ref()), path(other.gpu_instance_node.as_ref()))
            && agree(path(self.compute_instance_node.as_ref()), path(other.compute_instance_node.as_ref()))
    }
}

/// Tells a file from a later one of the same name. The kernel gives a file of procfs a new time when it is first looked
/// at, and may give it a new time for no reason, so that a difference is a doubt and not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// The file system's number.
    pub device: u64,
    /// The inode's number, which a later file may get again.
    pub inode: u64,
    /// Last change of the inode, in ns since 1970; `None` where the kernel gives it a new time with every look.
    pub changed_ns: Option<i128>,
}

impl FileStamp {
    /// Whether both can be the same file.
    pub fn may_be(&self, other: &Self) -> bool {
        let times = self.changed_ns.zip(other.changed_ns);
        (self.device, self.inode) == (other.device, other.inode) && times.is_none_or(|(a, b)| a == b)
    }
}

/// What a GPU needs before it can be used again (nvml.h, `nvmlDeviceGpuRecoveryAction_t`, read as field 230).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecoveryAction {
    /// Nothing.
    None,
    /// A reset of the GPU.
    Reset,
    /// A reboot of the node: every GPU of it shows this.
    Reboot,
    /// An end of its peer-to-peer traffic.
    DrainP2p,
    /// An end of its work, then a reset.
    DrainAndReset,
    /// A recovery of the node's IMEX domain: every GPU of it shows this.
    RecoverImex,
    /// Something newer than this program.
    Other(u32),
}

impl RecoveryAction {
    /// The action that NVML means by this number.
    pub fn from_nvml(number: u64) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainP2p,
            4 => Self::DrainAndReset,
            5 => Self::RecoverImex,
            other => Self::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        }
    }
}

impl fmt::Display for RecoveryAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "nothing",
            Self::Reset => "a reset of the GPU",
            Self::Reboot => "a reboot of the node",
            Self::DrainP2p => "an end of its peer-to-peer traffic",
            Self::DrainAndReset => "an end of its work and then a reset of the GPU",
            Self::RecoverImex => "a recovery of the node's IMEX domain",
            Self::Other(number) => return write!(f, "recovery action {number}"),
        })
    }
}

/// Why something cannot be used or read at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What it means.
    pub kind: TroubleKind,
    /// What failed, with NVML's words.
    pub text: String,
}

/// The kinds of [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TroubleKind {
    /// The GPU has gone from the bus, or answers nothing until it is reset.
    Lost,
    /// A call about it does not come back.
    NoAnswer,
    /// A call about it failed.
    Unreadable,
}

impl Trouble {
    /// A failed call that says nothing more.
    pub fn unreadable(text: impl Into<String>) -> Self {
        Self { kind: TroubleKind::Unreadable, text: text.into() }
    }

    /// A lost GPU.
    pub fn lost(text: impl Into<String>) -> Self {
        Self { kind: TroubleKind::Lost, text: text.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The memory slices that a GPU instance holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}:{}", self.start, self.size)
    }
}

/// A device node as a container sees it, e.g. `/dev/nvidia-caps/nvidia-cap66`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute, without any root in front.
    pub path: PathBuf,
    /// Whether it was there, below the plugin's dev root.
    pub exists: bool,
}

/// What every container needs besides its device's own nodes, where it exists: CUDA opens the first two,
/// profilers the third, displays the last (NVIDIA's plugin passes the same four).
pub const CONTROL_NODES: [&str; 4] =
    ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// NVML index of the GPU.
    pub gpu: u32,
    /// Index of the MIG device within it; `None` where the whole GPU is meant.
    pub mig_device: Option<u32>,
    /// UUID of the GPU or MIG device, where the driver told it before something failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What failed.
    pub reason: Trouble,
    /// Whether the thing is left out of the inventory for it. Otherwise only a detail is missing.
    pub left_out: bool,
}

impl Problem {
    /// `GPU 0` or `MIG device 0:3`.
    pub fn subject(&self) -> String {
        match self.mig_device {
            None => format!("GPU {}", self.gpu),
            Some(mig) => format!("MIG device {}:{mig}", self.gpu),
        }
    }
}

impl Inventory {
    /// Whether the kernel driver is the one that `other` was read from, as far as it can be told. Another one has reset
    /// every GPU.
    pub fn is_of_same_driver(&self, other: &Self) -> bool {
        let modules = self.kernel_module.as_ref().zip(other.kernel_module.as_ref());
        self.driver_version == other.driver_version && modules.is_none_or(|(a, b)| a == b)
    }

    /// Whether every slice that is on the GPU is among its MIG devices: none is left out that could not be read, or that
    /// is hidden, and that nobody knew before. Such a slice may be any.
    pub fn knows_all_slices_of(&self, gpu: &Gpu) -> bool {
        let is_known = |index| gpu.mig_devices.iter().any(|mig| mig.index == index);
        let is_unknown = |problem: &Problem| problem.mig_device.is_some_and(|index| !is_known(index));
        let mut problems =
            self.problems.iter().filter(|problem| problem.left_out && problem.gpu == gpu.index);
        gpu.knows_what_is_hidden() && !problems.any(is_unknown)
    }

    /// Keeps what `previous` knew of GPUs and MIG devices that cannot be read this time, marked with the
    /// reason: a device that does not answer is sick, not gone.
    #[must_use]
    pub fn with_unreadable_from(mut self, previous: &Self) -> Self {
        let left_out: Vec<Problem> = self.problems.iter().filter(|p| p.left_out).cloned().collect();
        for problem in left_out {
            match problem.mig_device {
                None => self.keep_gpu(previous, problem),
                Some(index) => self.keep_mig_device(previous, index, problem),
            }
        }
        for gpu in &mut self.gpus {
            if let Some(old) = previous.gpus.iter().find(|old| old.uuid == gpu.uuid) {
                gpu.keep_hidden(old);
            }
        }
        self.gpus.sort_by_key(|gpu| gpu.index);
        self
    }

    fn keep_gpu(&mut self, previous: &Self, problem: Problem) {
        let by_uuid = |gpu: &&Gpu| problem.uuid.as_ref().is_none_or(|uuid| *uuid == gpu.uuid);
        let by_index = |gpu: &&Gpu| problem.uuid.is_some() || gpu.index == problem.gpu;
        let Some(old) = previous.gpus.iter().filter(by_uuid).find(by_index) else { return };
        if self.gpus.iter().all(|gpu| gpu.uuid != old.uuid) {
            self.gpus.push(Gpu { index: problem.gpu, problem: Some(problem.reason), ..old.clone() });
        }
    }

    /// By UUID where that is known, since indices move when instances come and go. Without it an index can only mean
    /// a device that is found nowhere else.
    fn keep_mig_device(&mut self, previous: &Self, index: u32, problem: Problem) {
        let Some(gpu) = self.gpus.iter_mut().find(|gpu| gpu.index == problem.gpu) else { return };
        let Some(old) = previous.gpus.iter().find(|old| old.uuid == gpu.uuid) else { return };
        let mut candidates = old.mig_devices.iter();
        let old = match &problem.uuid {
            Some(uuid) => candidates.find(|device| device.uuid == *uuid),
            None => candidates.find(|device| device.index == index),
        };
        let Some(old) = old else { return };
        if gpu.mig_devices.iter().all(|device| device.uuid != old.uuid && device.index != index) {
            gpu.mig_devices.push(MigDevice { index, problem: Some(problem.reason), ..old.clone() });
            gpu.mig_devices.sort_by_key(|device| (device.gpu_instance, device.compute_instance));
        }
    }
}

/// The path of `node` below `root`: what the plugin itself can look at, or what the host calls it.
pub fn below(root: &Path, node: &Path) -> PathBuf {
    root.join(node.strip_prefix("/").unwrap_or(node))
}

//! What an administrator should know about a node besides what is offered.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

use super::count;
use crate::inventory::{DeviceNode, Gpu, Inventory, MigMode, Profile};
use crate::resource::policy::OfferPolicy;
use crate::resource::{MigStrategy, ResourceName, ResourceSet};

/// One thing worth knowing. Its `Display` is a sentence with its subject; [`code`](Self::code) is for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Under none: a GPU in MIG mode is offered as a whole.
    MigOnUnderNone {
        /// Its index.
        gpu: u32,
    },
    /// MIG mode will be another one after the next reset.
    ModePending {
        /// Its index.
        gpu: u32,
        /// What it will be.
        enabled: bool,
    },
    /// A GPU in MIG mode has no slices.
    IdleGpu {
        /// Its index.
        gpu: u32,
    },
    /// Memory slices side by side that no GPU instance holds.
    FreeMemorySlices {
        /// Index of the GPU.
        gpu: u32,
        /// The first of them.
        first: u32,
        /// The last of them.
        last: u32,
        /// How many the GPU has.
        total: u32,
    },
    /// A GPU instance holds memory, and nothing can run on it.
    EmptyGpuInstance {
        /// Index of the GPU.
        gpu: u32,
        /// Its ID.
        gpu_instance: u32,
    },
    /// The driver, or a device node, does not let something be used.
    Unusable {
        /// Index of the GPU.
        gpu: u32,
        /// Index of the slice, if one is meant.
        mig_device: Option<u32>,
        /// What is wrong.
        reason: String,
    },
    /// Under single: slices have several profiles, and one of them is offered.
    SeveralProfiles {
        /// The one.
        offered: String,
        /// `3g.40gb x2` and so on: the others.
        others: Vec<String>,
    },
    /// A compute instance has not all of its GPU instance's compute slices.
    SmallerComputeInstance {
        /// Index of the GPU.
        gpu: u32,
        /// Index of the slice.
        mig_device: u32,
        /// Its profile.
        profile: String,
        /// The GPU instance's ID.
        gpu_instance: u32,
    },
    /// Under mixed: a profile leads to no resource name.
    NoResourceName {
        /// The profile.
        profile: String,
        /// Which GPUs have such slices.
        gpus: Vec<u32>,
        /// What is wrong with the name.
        reason: String,
    },
}

impl Warning {
    /// A word that stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MigOnUnderNone { .. } => "mig-on-under-none",
            Self::ModePending { .. } => "mode-pending",
            Self::IdleGpu { .. } => "idle-gpu",
            Self::FreeMemorySlices { .. } => "free-memory-slices",
            Self::EmptyGpuInstance { .. } => "empty-gpu-instance",
            Self::Unusable { .. } => "unusable",
            Self::SeveralProfiles { .. } => "several-profiles",
            Self::SmallerComputeInstance { .. } => "smaller-compute-instance",
            Self::NoResourceName { .. } => "no-resource-name",
        }
    }

    /// The GPUs that it is about; none where it is about the node.
    pub fn gpus(&self) -> Vec<u32> {
        match self {
            Self::MigOnUnderNone { gpu }
            | Self::ModePending { gpu, .. }
            | Self::IdleGpu { gpu }
            | Self::FreeMemorySlices { gpu, .. }
            | Self::EmptyGpuInstance { gpu, .. }
            | Self::Unusable { gpu, .. }
            | Self::SmallerComputeInstance { gpu, .. } => vec![*gpu],
            Self::SeveralProfiles { .. } => Vec::new(),
            Self::NoResourceName { gpus, .. } => gpus.clone(),
        }
    }

    /// The GPU or slice in question: a word for its kind, and its index.
    pub(super) fn subject(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Unusable { gpu, mig_device: Some(mig), .. }
            | Self::SmallerComputeInstance { gpu, mig_device: mig, .. } => {
                Some(("MIG device", format!("{gpu}:{mig}")))
            }
            Self::SeveralProfiles { .. } | Self::NoResourceName { .. } => None,
            _ => self.gpus().first().map(|gpu| ("GPU", gpu.to_string())),
        }
    }

    /// What there is to say about the subject, so that the same can be said of several at once.
    pub(super) fn statement(&self) -> String {
        match self {
            Self::MigOnUnderNone { .. } => {
                "MIG mode is on, so no CUDA program can use it as a whole, but as a whole is how it is offered: \
                 use single or mixed, or switch MIG mode off"
                    .to_owned()
            }
            Self::ModePending { enabled, .. } => {
                let mode = if *enabled { "on" } else { "off" };
                format!("MIG mode will be {mode} after the next GPU reset, and what is offered will change then")
            }
            Self::IdleGpu { .. } => {
                "MIG mode is on, and there are no slices: single and mixed offer nothing of it".to_owned()
            }
            Self::FreeMemorySlices { first, last, total, .. } if first == last => {
                format!("memory slice {first} of 0-{} is free: a slice more may fit", total - 1)
            }
            Self::FreeMemorySlices { first, last, total, .. } => {
                format!("memory slices {first}-{last} of 0-{} are free: more slices may fit", total - 1)
            }
            Self::EmptyGpuInstance { gpu_instance, .. } => {
                format!("GPU instance {gpu_instance} has no compute instance: nothing can run on it")
            }
            Self::Unusable { reason, .. } => reason.clone(),
            Self::SeveralProfiles { offered, others } => format!(
                "slices have several profiles, and only {offered} is offered, not {}",
                others.join(", ")
            ),
            Self::SmallerComputeInstance { profile, gpu_instance, .. } => format!(
                "{profile} is a part of GPU instance {gpu_instance}, whose memory it shares with its neighbours \
                 there, without protection from them"
            ),
            Self::NoResourceName { profile, reason, .. } => {
                format!("slices of the profile {profile} cannot be offered: {reason}")
            }
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((kind, index)) = self.subject() {
            write!(f, "{kind} {index}: ")?;
        }
        f.write_str(&self.statement())
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire {
            code: &'static str,
            gpus: Vec<u32>,
            message: String,
        }
        Wire { code: self.code(), gpus: self.gpus(), message: self.to_string() }.serialize(serializer)
    }
}

/// What holds whatever the strategy.
pub(super) fn of_node(inventory: &Inventory) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = inventory
        .problems
        .iter()
        .map(|problem| {
            let effect = if problem.left_out { "left out" } else { "incomplete" };
            let reason = format!("{effect}: {}", problem.reason);
            Warning::Unusable { gpu: problem.gpu, mig_device: problem.mig_device, reason }
        })
        .collect();
    for gpu in &inventory.gpus {
        let unread = inventory
            .problems
            .iter()
            .any(|problem| problem.gpu == gpu.index && problem.mig_device.is_some() && problem.left_out);
        warnings.extend(of_gpu(gpu, unread));
    }
    warnings
}

/// What holds under the strategy of `policy`, of which `set` has come.
pub(super) fn of_strategy(inventory: &Inventory, policy: &OfferPolicy, set: &ResourceSet) -> Vec<Warning> {
    match policy.strategy {
        MigStrategy::None => {
            let offered: BTreeSet<u32> =
                set.resources.values().flatten().map(|device| device.gpu_index).collect();
            let in_mig_mode = inventory.gpus.iter().filter(|gpu| gpu.mig_enabled());
            in_mig_mode
                .filter(|gpu| offered.contains(&gpu.index))
                .map(|gpu| Warning::MigOnUnderNone { gpu: gpu.index })
                .collect()
        }
        MigStrategy::Single => several_profiles(inventory, set).into_iter().collect(),
        MigStrategy::Mixed if policy.mig.is_empty() => no_resource_names(inventory),
        // Names come from the configuration, which was checked.
        MigStrategy::Mixed => Vec::new(),
    }
}

fn of_gpu(gpu: &Gpu, unread: bool) -> Vec<Warning> {
    let index = gpu.index;
    let mut warnings = Vec::new();
    if let Some(MigMode { current, pending }) = gpu.mig_mode
        && current != pending
    {
        warnings.push(Warning::ModePending { gpu: index, enabled: pending });
    }
    let unusable = |mig_device, reason| Warning::Unusable { gpu: index, mig_device, reason };
    warnings.extend(gpu.problem.iter().map(|why| unusable(None, format!("cannot be used: {why}"))));
    if !gpu.node.exists {
        warnings.push(unusable(None, missing(&gpu.node)));
    }
    for device in &gpu.mig_devices {
        let mig = Some(device.index);
        warnings.extend(device.problem.iter().map(|why| unusable(mig, format!("cannot be used: {why}"))));
        let nodes = [&device.gpu_instance_node, &device.compute_instance_node].into_iter().flatten();
        warnings.extend(nodes.filter(|node| !node.exists).map(|node| unusable(mig, missing(node))));
        if is_part(&device.profile) {
            warnings.push(Warning::SmallerComputeInstance {
                gpu: index,
                mig_device: device.index,
                profile: device.profile.to_string(),
                gpu_instance: device.gpu_instance,
            });
        }
    }
    if gpu.mig_enabled() {
        let unread = unread || !gpu.hidden.is_empty();
        if gpu.mig_devices.is_empty() && !unread {
            warnings.push(Warning::IdleGpu { gpu: index });
        } else if !unread {
            warnings.extend(free_memory_slices(gpu));
        }
        let empty = gpu.empty_gpu_instances.iter();
        warnings.extend(empty.map(|&gpu_instance| Warning::EmptyGpuInstance { gpu: index, gpu_instance }));
    }
    warnings
}

fn missing(node: &DeviceNode) -> String {
    format!("{} does not exist", node.path.display())
}

fn is_part(profile: &Profile) -> bool {
    profile.compute_slices() < profile.gpu_slices()
}

/// The gaps between GPU instances, where all of their places are known.
fn free_memory_slices(gpu: &Gpu) -> Vec<Warning> {
    let places: Option<BTreeSet<_>> = gpu.mig_devices.iter().map(|device| device.placement).collect();
    let (Some(places), Some(total), true) = (places, gpu.memory_slices, gpu.empty_gpu_instances.is_empty())
    else {
        return Vec::new();
    };
    let mut gaps = Vec::new();
    let mut next = 0;
    for place in places {
        if place.start > next {
            gaps.push((next, place.start - 1));
        }
        next = next.max(place.start.saturating_add(place.size));
    }
    if next < total {
        gaps.push((next, total - 1));
    }
    // GPUs with eight memory slices have seven compute slices, and none of their profiles begins at the last
    // memory slice: alone it is of no use to anybody.
    gaps.retain(|gap| !(total == 8 && *gap == (7, 7)) && gap.1 < total);
    gaps.into_iter()
        .map(|(first, last)| Warning::FreeMemorySlices { gpu: gpu.index, first, last, total })
        .collect()
}

fn several_profiles(inventory: &Inventory, set: &ResourceSet) -> Option<Warning> {
    let offered =
        set.resources.values().flatten().find_map(|device| device.mig.as_ref())?.profile.to_string();
    let enabled = inventory.gpus.iter().filter(|gpu| gpu.mig_enabled());
    let profiles = enabled.flat_map(|gpu| &gpu.mig_devices).map(|device| device.profile.to_string());
    let others: Vec<String> =
        count(profiles.filter(|profile| *profile != offered)).iter().map(ToString::to_string).collect();
    (!others.is_empty()).then_some(Warning::SeveralProfiles { offered, others })
}

fn no_resource_names(inventory: &Inventory) -> Vec<Warning> {
    let enabled: Vec<&Gpu> = inventory.gpus.iter().filter(|gpu| gpu.mig_enabled()).collect();
    let profiles: BTreeSet<&Profile> =
        enabled.iter().flat_map(|gpu| &gpu.mig_devices).map(|device| &device.profile).collect();
    let reasons =
        profiles.into_iter().filter_map(|profile| Some((profile, ResourceName::mig(profile).err()?)));
    reasons
        .map(|(profile, reason)| {
            let has_it = |gpu: &&&Gpu| gpu.mig_devices.iter().any(|device| device.profile == *profile);
            Warning::NoResourceName {
                profile: profile.to_string(),
                gpus: enabled.iter().filter(has_it).map(|gpu| gpu.index).collect(),
                reason: reason.to_string(),
            }
        })
        .collect()
}

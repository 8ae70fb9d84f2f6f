//! The strategies none, single and mixed: which device is offered under which name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::patterns::{gpu_name, mig_name, single_name, warn_of_idle_patterns, withhold};
use super::policy::OfferPolicy;
use super::sharing::{Earlier, share};
use super::{Device, DeviceSpecs, Reason, ResourceName, ResourceSet, Withheld};
use crate::inventory::{Gpu, Inventory, Profile};

/// How MIG devices are exposed (`--mig-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MigStrategy {
    /// Whole GPUs as `nvidia.com/gpu`, whatever their MIG mode.
    #[default]
    None,
    /// MIG devices of one profile as `nvidia.com/gpu`.
    Single,
    /// MIG devices as `nvidia.com/mig-<profile>`, other GPUs as `nvidia.com/gpu`.
    Mixed,
}

impl fmt::Display for MigStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Single => "single",
            Self::Mixed => "mixed",
        })
    }
}

/// What the node should offer under `policy`. No inventory is an error: what does not fit is withheld.
pub fn resolve(inventory: &Inventory, policy: &OfferPolicy) -> ResourceSet {
    resolve_after(inventory, policy, &Earlier::default())
}

/// The same where something was offered before, to which the policy may keep.
pub fn resolve_after(inventory: &Inventory, policy: &OfferPolicy, earlier: &Earlier) -> ResourceSet {
    let mut set = ResourceSet::default();
    match policy.strategy {
        MigStrategy::None => offer_gpus(&inventory.gpus, policy, &mut set),
        MigStrategy::Single => single(inventory, policy, &mut set),
        MigStrategy::Mixed => mixed(inventory, policy, &mut set),
    }
    if policy.device_specs != DeviceSpecs::Omitted {
        for device in set.resources.values_mut().flatten() {
            mark_missing_nodes(device, policy.device_specs);
        }
    }
    warn_of_pending_modes(&mut set, inventory);
    warn_of_idle_patterns(&mut set, policy, inventory);
    withhold(&mut set, &policy.withhold);
    share(&mut set, &policy.time_slicing, earlier);
    set
}

impl ResourceSet {
    fn offer(&mut self, name: ResourceName, device: Device) {
        self.resources.entry(name).or_default().push(device);
    }

    fn withhold(&mut self, device: &Device, reason: String) {
        self.withheld.push(Withheld { index: device.index(), id: device.id.clone(), reason });
    }
}

/// A mode that is still to come into force moves all devices of its GPU when it does.
fn warn_of_pending_modes(set: &mut ResourceSet, inventory: &Inventory) {
    for gpu in &inventory.gpus {
        if let Some(mode) = gpu.mig_mode.filter(|mode| mode.current != mode.pending) {
            let next = if mode.pending { "on" } else { "off" };
            set.warnings
                .push(format!("GPU {}: MIG mode will be {next} after the next reset or reboot", gpu.index));
        }
    }
}

fn slices(inventory: &Inventory) -> impl Iterator<Item = (&Profile, Device)> {
    let enabled = inventory.gpus.iter().filter(|gpu| gpu.mig_enabled());
    enabled.flat_map(|gpu| gpu.mig_devices.iter().map(|mig| (&mig.profile, Device::of_mig(gpu, mig))))
}

fn plain_gpus(inventory: &Inventory) -> impl Iterator<Item = &Gpu> {
    inventory.gpus.iter().filter(|gpu| !gpu.mig_enabled())
}

/// One profile can be offered as `nvidia.com/gpu`, since a pod cannot tell slices under one name apart. Where
/// there are several, the one with the most devices is it (ties: the larger), and the rest waits with a reason.
/// While any GPU is in MIG mode, whole GPUs are not offered, even when there is no slice yet: a node that
/// is being partitioned must not hand out whole GPUs for a moment.
fn single(inventory: &Inventory, policy: &OfferPolicy, set: &mut ResourceSet) {
    if !inventory.gpus.iter().any(Gpu::mig_enabled) {
        return offer_gpus(&inventory.gpus, policy, set);
    }
    let chosen = most_frequent(inventory).cloned();
    for (profile, device) in slices(inventory) {
        match &chosen {
            Some(chosen) if chosen == profile => set.offer(single_name(policy, profile), device),
            Some(chosen) => set.withhold(
                &device,
                format!(
                    "the strategy single offers one profile, and on this node that is {chosen}, not {profile}: \
                     use the strategy mixed, or partition all GPUs alike"
                ),
            ),
            None => {}
        }
    }
    for gpu in plain_gpus(inventory) {
        set.withhold(
            &Device::of_gpu(gpu),
            "the strategy single offers MIG devices only while a GPU is in MIG mode, and this GPU is not: use \
             the strategy mixed, or switch MIG mode on for all GPUs or none"
                .to_owned(),
        );
    }
}

fn most_frequent(inventory: &Inventory) -> Option<&Profile> {
    let mut ranks: BTreeMap<&Profile, (usize, u64, u32)> = BTreeMap::new();
    for mig in inventory.gpus.iter().filter(|gpu| gpu.mig_enabled()).flat_map(|gpu| &gpu.mig_devices) {
        let (count, memory_mib, sm_count) = ranks.entry(&mig.profile).or_default();
        *count += 1;
        *memory_mib = (*memory_mib).max(mig.memory_mib);
        *sm_count = (*sm_count).max(mig.sm_count);
    }
    ranks.into_iter().max_by_key(|(_, rank)| *rank).map(|(profile, _)| profile)
}

fn mixed(inventory: &Inventory, policy: &OfferPolicy, set: &mut ResourceSet) {
    for (profile, device) in slices(inventory) {
        match mig_name(policy, profile) {
            Ok(name) => set.offer(name, device),
            Err(error) => set.withhold(&device, error.to_string()),
        }
    }
    offer_gpus(plain_gpus(inventory), policy, set);
}

fn offer_gpus<'a>(gpus: impl IntoIterator<Item = &'a Gpu>, policy: &OfferPolicy, set: &mut ResourceSet) {
    for gpu in gpus {
        set.offer(gpu_name(policy, &gpu.name), Device::of_gpu(gpu));
    }
}

fn mark_missing_nodes(device: &mut Device, specs: DeviceSpecs) {
    let gpu_node = device.nodes.first();
    let mut nodes: Vec<PathBuf> = Vec::new();
    let mut files = String::new();
    if specs == DeviceSpecs::Required {
        nodes.extend(gpu_node.filter(|node| !node.exists).map(|node| node.path.clone()));
    } else if gpu_node.is_none_or(|node| !node.exists) {
        // These are not the host's nodes, so nothing is known of those.
        return;
    }
    if let Some(mig) = &device.mig {
        let (gi, ci) = (mig.gpu_instance, mig.compute_instance);
        let gi_file = format!("gi{gi}/access");
        let ci_file = format!("gi{gi}/ci{ci}/access");
        for (node, what, file) in [
            (&mig.gpu_instance_node, "GPU instance", gi_file),
            (&mig.compute_instance_node, "compute instance", ci_file),
        ] {
            match node {
                Some(node) if !node.exists => {
                    nodes.push(node.path.clone());
                    let minor = gpu_node.and_then(|node| minor(&node.path));
                    files.extend(minor.map(|minor| format!(" -f {CAPABILITIES}/gpu{minor}/mig/{file}")));
                }
                // Without an entry in mig-minors the node's name is not even known.
                None if specs == DeviceSpecs::Required => {
                    nodes.push(format!("of the {what} (no entry in mig-minors)").into());
                }
                _ => {}
            }
        }
    }
    if !nodes.is_empty() {
        let command = (!files.is_empty()).then(|| format!("nvidia-modprobe{files}"));
        device.reasons.push(Reason::NodesMissing { nodes, command });
    }
}

/// Where the driver has capability files, on the host.
const CAPABILITIES: &str = "/proc/driver/nvidia/capabilities";

/// The `0` of `/dev/nvidia0`.
fn minor(gpu_node: &Path) -> Option<u32> {
    gpu_node.file_name()?.to_str()?.strip_prefix("nvidia")?.parse().ok()
}

#[cfg(test)]
mod tests;

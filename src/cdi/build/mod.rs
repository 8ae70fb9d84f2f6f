//! What the files say, from what the driver says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::driver_files::DriverFiles;
use super::hooks;
use super::majors::Majors;
use super::spec::{CDI_VERSION, ContainerEdits, Device, DeviceNode, Spec, is_device_name};
use super::{CdiOptions, Incomplete};
use crate::inventory::{Gpu, Inventory, MigDevice, below};
use crate::resource::cdi_name::{ALL, GPU, IMEX_CHANNEL, kind};

/// Minors that are the same on every node.
const CONTROL_MINORS: [(&str, u32); 4] =
    [("nvidiactl", 255), ("nvidia-modeset", 254), ("nvidia-uvm", 0), ("nvidia-uvm-tools", 1)];

/// In the container anybody may open the node, and its device control group says who can. On the host a
/// capability node is read-only and a GPU's is not; NVIDIA's plugin copies that, and it makes no difference.
pub(super) const FILE_MODE: u32 = 0o666;

/// The specification of the GPUs and slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// `None` where there is no device, since CDI has no specification without.
    pub spec: Option<Spec>,
    /// What is not in it.
    pub incomplete: Vec<Incomplete>,
}

/// Builds the specification of the GPUs and slices: each by its UUID and by its index, and all together.
pub fn build(inventory: &Inventory, files: &DriverFiles, majors: &Majors, options: &CdiOptions) -> Built {
    let numbers = Numbers { majors, options };
    let mut devices = Devices::default();
    for gpu in &inventory.gpus {
        devices.add(
            &gpu.uuid,
            gpu.index.to_string(),
            gpu.problem.is_some(),
            numbers.gpu(gpu).map(|n| vec![n]),
        );
        for mig in &gpu.mig_devices {
            let index = format!("{}:{}", gpu.index, mig.index);
            let doubtful = gpu.problem.is_some() || mig.problem.is_some();
            devices.add(&mig.uuid, index, doubtful, numbers.mig(gpu, mig));
        }
    }
    let mut edits = hooks::edits(files, &inventory.driver_version, options);
    edits.device_nodes = numbers.control_nodes(inventory);
    devices.finish(edits)
}

/// Builds the specification of the IMEX channels that `exists` finds, each by its number.
pub fn build_imex(majors: &Majors, options: &CdiOptions, exists: impl Fn(&Path) -> bool) -> Built {
    let numbers = Numbers { majors, options };
    let mut built = Built { spec: None, incomplete: Vec::new() };
    let mut devices = Vec::new();
    for channel in &options.imex_channels {
        let path = PathBuf::from(format!("/dev/nvidia-caps-imex-channels/channel{channel}"));
        if exists(&path) {
            let node = numbers.node(path, majors.imex, Some(*channel));
            devices.push(Device { name: channel.to_string(), container_edits: only_nodes(vec![node]) });
        } else {
            let reason = format!("IMEX channel {channel} has no device node {}", path.display());
            built.incomplete.push(Incomplete { id: format!("channel{channel}"), reason });
        }
    }
    built.spec = spec(IMEX_CHANNEL, devices, ContainerEdits::default());
    built
}

pub(super) fn spec(class: &str, devices: Vec<Device>, container_edits: ContainerEdits) -> Option<Spec> {
    let spec = Spec { cdi_version: CDI_VERSION.to_owned(), kind: kind(class), devices, container_edits };
    (!spec.devices.is_empty()).then_some(spec)
}

pub(super) fn only_nodes(device_nodes: Vec<DeviceNode>) -> ContainerEdits {
    ContainerEdits { device_nodes, ..ContainerEdits::default() }
}

/// Devices by name, as they come.
#[derive(Default)]
struct Devices {
    certain: BTreeMap<String, Vec<DeviceNode>>,
    /// Of what cannot be read just now. It keeps what it was last seen to have, so that its containers can
    /// start again, but a name or index that another device has meanwhile is that one's.
    doubtful: BTreeMap<String, Vec<DeviceNode>>,
    incomplete: Vec<Incomplete>,
}

impl Devices {
    fn add(&mut self, uuid: &str, index: String, doubtful: bool, nodes: Result<Vec<DeviceNode>, String>) {
        let nodes = match nodes {
            Ok(nodes) if is_device_name(uuid) => nodes,
            Ok(_) => return self.leave_out(uuid, format!("{uuid:?} cannot be a CDI device's name")),
            Err(reason) => return self.leave_out(uuid, reason),
        };
        let names = if doubtful { &mut self.doubtful } else { &mut self.certain };
        names.entry(index).or_insert_with(|| nodes.clone());
        names.entry(uuid.to_owned()).or_insert(nodes);
    }

    fn leave_out(&mut self, uuid: &str, reason: String) {
        self.incomplete.push(Incomplete { id: uuid.to_owned(), reason });
    }

    fn finish(self, edits: ContainerEdits) -> Built {
        let mut names = self.doubtful;
        names.extend(self.certain);
        let all: BTreeSet<&PathBuf> = names.values().flatten().map(|node| &node.path).collect();
        let node = |path| names.values().flatten().find(|node| &node.path == path).cloned();
        let all: Vec<DeviceNode> = all.into_iter().filter_map(node).collect();
        if !all.is_empty() {
            names.insert(ALL.to_owned(), all);
        }
        let devices = names
            .into_iter()
            .map(|(name, nodes)| Device { name, container_edits: only_nodes(nodes) })
            .collect();
        Built { spec: spec(GPU, devices, edits), incomplete: self.incomplete }
    }
}

/// Gives nodes their numbers.
struct Numbers<'a> {
    majors: &'a Majors,
    options: &'a CdiOptions,
}

impl Numbers<'_> {
    /// With all numbers known the runtime needs no node on the host; without, it asks that one.
    fn node(&self, path: PathBuf, major: Option<u32>, minor: Option<u32>) -> DeviceNode {
        let numbers = major.zip(minor);
        DeviceNode {
            host_path: below(&self.options.host_dev_root, &path),
            path,
            device_type: numbers.map(|_| 'c'),
            major: numbers.map(|(major, _)| major),
            minor: numbers.map(|(_, minor)| minor),
            file_mode: Some(FILE_MODE),
            permissions: "rw".to_owned(),
        }
    }

    fn gpu(&self, gpu: &Gpu) -> Result<DeviceNode, String> {
        let major = self.majors.gpu.ok_or("the major number of nvidia is not in /proc/devices")?;
        Ok(self.node(gpu.node.path.clone(), Some(major), Some(gpu.minor)))
    }

    /// The GPU's node, and the two that let a process use this slice of it.
    fn mig(&self, gpu: &Gpu, mig: &MigDevice) -> Result<Vec<DeviceNode>, String> {
        let mut nodes = vec![self.gpu(gpu)?];
        let (gi, ci) = (mig.gpu_instance, mig.compute_instance);
        let capabilities = [
            (&mig.gpu_instance_node, format!("GPU instance {gi}")),
            (&mig.compute_instance_node, format!("compute instance {ci} of GPU instance {gi}")),
        ];
        for (node, owner) in capabilities {
            let node =
                node.as_ref().ok_or_else(|| format!("{owner} has no capability node in mig-minors"))?;
            let major = self.majors.caps.ok_or("the major number of nvidia-caps is not in /proc/devices")?;
            let minor = capability_minor(&node.path)
                .ok_or_else(|| format!("{} has no minor number in its name", node.path.display()))?;
            nodes.push(self.node(node.path.clone(), Some(major), Some(minor)));
        }
        Ok(nodes)
    }

    fn control_nodes(&self, inventory: &Inventory) -> Vec<DeviceNode> {
        let numbered = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            let minor = CONTROL_MINORS.iter().find(|(known, _)| *known == name)?.1;
            Some((if name.starts_with("nvidia-uvm") { self.majors.uvm } else { self.majors.gpu }, minor))
        };
        let present = inventory.control_nodes.iter().filter(|node| node.exists);
        present
            .map(|node| match numbered(&node.path) {
                Some((major, minor)) => self.node(node.path.clone(), major, Some(minor)),
                None => self.node(node.path.clone(), None, None),
            })
            .collect()
    }
}

/// The `66` of `/dev/nvidia-caps/nvidia-cap66`.
fn capability_minor(node: &Path) -> Option<u32> {
    node.file_name()?.to_str()?.strip_prefix("nvidia-cap")?.parse().ok()
}

#[cfg(test)]
mod tests;

//! What an `Allocate` answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::policy::{DeviceIdStrategy, DeviceListStrategy, Features, Imex};
use super::{Device, DeviceId, DeviceSpecs};
use crate::inventory::below;

/// The variable by which the NVIDIA container runtime and CUDA know what a container may see.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// What every container needs besides its device's own nodes, where it exists: CUDA opens the first two,
/// profilers the third, displays the last (NVIDIA's plugin passes the same four).
pub const CONTROL_NODES: [&str; 4] =
    ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// How answers are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Which device nodes are named.
    pub device_specs: DeviceSpecs,
    /// Put in front of a node's path to name it on the host (`--nvidia-dev-root`).
    pub host_dev_root: PathBuf,
    /// By which ways a container is told; at least one.
    pub strategies: BTreeSet<DeviceListStrategy>,
    /// What devices are called towards the container.
    pub ids: DeviceIdStrategy,
    /// In front of the CDI annotation's key; ends in a slash.
    pub cdi_annotation_prefix: String,
    /// Further drivers.
    pub features: Features,
    /// IMEX channels.
    pub imex: Imex,
    /// Also set `NVIDIA_VISIBLE_DEVICES_<RESOURCE>`, so that two resources in one container do not hide each other.
    pub variable_per_resource: bool,
}

/// What one container gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Environment variables.
    pub envs: Vec<(String, String)>,
    /// Device nodes.
    pub nodes: Vec<NodeSpec>,
}

/// A device node for a container, always read-write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// In the container.
    pub container_path: PathBuf,
    /// On the host.
    pub host_path: PathBuf,
}

/// Why a container gets nothing. Each names the ID, since the kubelet shows the text in the pod's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The request names no device.
    #[error("no device IDs in the request for {resource}")]
    Empty {
        /// The resource asked for.
        resource: String,
    },
    /// The ID is not in the list.
    #[error("unknown device: {id} is not one of {resource}")]
    Unknown {
        /// The ID asked for.
        id: String,
        /// The resource asked for.
        resource: String,
    },
    /// The device is listed as unhealthy.
    #[error("device {id} is unhealthy: {reason}")]
    Unhealthy {
        /// The ID asked for.
        id: DeviceId,
        /// Its reasons.
        reason: String,
    },
    /// The driver's capability file for the slice is not there any more.
    #[error("device {id} has gone: {} does not exist any more", access_file.display())]
    Gone {
        /// The ID asked for.
        id: DeviceId,
        /// The file that was looked at.
        access_file: PathBuf,
    },
    /// A node is missing that the configuration insists on.
    #[error("device {id} cannot be used: missing device node {}", node.display())]
    NodeMissing {
        /// The ID asked for.
        id: DeviceId,
        /// The node, below the plugin's own dev root.
        node: PathBuf,
    },
}

/// Answers a request for `ids` out of `devices`. Duplicates collapse, and the order is that of `devices`,
/// so that the same set always gets the same answer. `exists` looks at a file; device nodes are looked at
/// below `dev_root`.
pub fn allocate(
    resource: &str,
    devices: &[Device],
    ids: &[String],
    rules: &Rules,
    dev_root: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Answer, AllocateError> {
    let chosen = choose(resource, devices, ids)?;
    for device in &chosen {
        if !device.is_healthy() {
            return Err(AllocateError::Unhealthy { id: device.id.clone(), reason: device.reasons_text() });
        }
        if let Some(access_file) = device.access_file.as_ref().filter(|file| !exists(file)) {
            return Err(AllocateError::Gone { id: device.id.clone(), access_file: access_file.clone() });
        }
    }
    let visible: Vec<_> = chosen.iter().map(|device| device.id.as_str()).collect();
    Ok(Answer {
        envs: vec![(VISIBLE_DEVICES.to_owned(), visible.join(","))],
        nodes: nodes(&chosen, rules, dev_root, exists)?,
    })
}

fn choose<'a>(
    resource: &str,
    devices: &'a [Device],
    ids: &[String],
) -> Result<Vec<&'a Device>, AllocateError> {
    if ids.is_empty() {
        return Err(AllocateError::Empty { resource: resource.to_owned() });
    }
    let mut wanted: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let chosen = devices.iter().filter(|device| wanted.remove(device.id.as_str())).collect();
    match wanted.pop_first() {
        None => Ok(chosen),
        Some(id) => Err(AllocateError::Unknown { id: id.to_owned(), resource: resource.to_owned() }),
    }
}

/// Control nodes first, then each device's own, no node twice.
fn nodes(
    chosen: &[&Device],
    rules: &Rules,
    dev_root: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Vec<NodeSpec>, AllocateError> {
    let mut specs: Vec<NodeSpec> = Vec::new();
    if rules.device_specs == DeviceSpecs::Omitted {
        return Ok(specs);
    }
    let control = CONTROL_NODES.into_iter().map(|node| (None, Path::new(node)));
    let own =
        chosen.iter().flat_map(|device| device.nodes.iter().map(|node| (Some(*device), node.path.as_path())));
    for (device, node) in control.chain(own) {
        if specs.iter().any(|spec| spec.container_path == node) {
            continue;
        }
        let here = below(dev_root, node);
        if exists(&here) {
            specs.push(NodeSpec {
                container_path: node.to_owned(),
                host_path: below(&rules.host_dev_root, node),
            });
        } else if let (DeviceSpecs::Required, Some(device)) = (rules.device_specs, device) {
            return Err(AllocateError::NodeMissing { id: device.id.clone(), node: here });
        }
    }
    Ok(specs)
}

#[cfg(test)]
mod tests;

//! What an `Allocate` answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::policy::{AllocationPolicy, DeviceIdStrategy, DeviceListStrategy, Feature, Imex};
use super::variables::{VISIBLE_DEVICES, variable_of};
use super::{Device, DeviceId, DeviceSpecs, cdi_name};
use crate::inventory::{CONTROL_NODES, FileStamp, below};

/// What the variable says where mounts tell the devices, and below what they are mounted.
const MOUNT_ROOT: &str = "/var/run/nvidia-container-devices";

const IMEX_CHANNELS: &str = "NVIDIA_IMEX_CHANNELS";

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
    /// How devices are chosen where the kubelet lets us.
    pub allocation: AllocationPolicy,
    /// Further drivers.
    pub features: BTreeSet<Feature>,
    /// Where CDI specifications are (`--cdi-spec-dir`): a further driver without one is not named by CDI, since a
    /// container runtime refuses a container with a name that it cannot resolve.
    pub cdi_spec_dir: PathBuf,
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
    /// Mounts: the path on the host and in the container.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// Device nodes.
    pub nodes: Vec<NodeSpec>,
    /// Annotations for the container runtime.
    pub annotations: Vec<(String, String)>,
    /// CDI names for the answer's own field.
    pub cdi_devices: Vec<String>,
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
    /// The driver's capability file for the slice is not the one that was there when the slice was last looked at.
    #[error(
        "device {id} may be another one by now: {} has changed since the driver was last asked, and it did not say in \
         time that the device is the same",
        access_file.display()
    )]
    Changed {
        /// The ID asked for.
        id: DeviceId,
        /// The file that was looked at.
        access_file: PathBuf,
    },
    /// Several replicas are asked for, and the configuration allows one at a time.
    #[error(
        "at most one replica of a shared device can be asked for, and the request names {count} of {resource}"
    )]
    SeveralReplicas {
        /// How many.
        count: usize,
        /// The resource asked for.
        resource: String,
    },
    /// An IMEX channel is missing that the configuration insists on.
    #[error("IMEX channel {channel} is required and {} does not exist", node.display())]
    ChannelMissing {
        /// Its number.
        channel: u32,
        /// Its node, below the plugin's own dev root.
        node: PathBuf,
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

impl AllocateError {
    /// One word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "empty",
            Self::Unknown { .. } => "unknown",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Gone { .. } => "gone",
            Self::Changed { .. } => "changed",
            Self::SeveralReplicas { .. } => "several_replicas",
            Self::ChannelMissing { .. } => "channel_missing",
            Self::NodeMissing { .. } => "node_missing",
        }
    }
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
        if let Some(access_file) = device.access_file().filter(|file| !exists(file)) {
            return Err(AllocateError::Gone { id: device.id.clone(), access_file: access_file.to_owned() });
        }
    }
    let count = ids.iter().collect::<BTreeSet<_>>().len();
    if count > 1 && chosen.iter().any(|device| device.replica.is_some_and(|replica| replica.alone)) {
        return Err(AllocateError::SeveralReplicas { count, resource: resource.to_owned() });
    }
    let channels = channels(rules, dev_root, &exists)?;
    let names = names(&chosen, rules.ids);
    let mut answer = Answer::default();
    tell_by_cdi(&mut answer, resource, &names, &channels, rules, &exists);
    answer.envs.extend(rules.features.iter().map(|feature| (feature.variable(), "enabled".to_owned())));
    // Where CDI says all, a variable or a node would only say it twice.
    if rules.strategies.iter().any(|strategy| !strategy.is_cdi()) {
        tell_by_variable_and_mounts(&mut answer, resource, &names, &channels, rules);
        answer.nodes = nodes(&chosen, &channels, rules, dev_root, exists)?;
    }
    Ok(answer)
}

/// Refuses devices whose capability file is not the one that was seen with them: the driver gives the IDs of a slice
/// that was destroyed to the next one, and so the file's name too. `stamp` looks at a file.
pub fn unchanged(
    devices: &[Device],
    ids: &[String],
    stamp: impl Fn(&Path) -> Option<FileStamp>,
) -> Result<(), AllocateError> {
    for device in devices.iter().filter(|device| ids.iter().any(|id| id == device.id.as_str())) {
        let seen = device.mig.as_ref().and_then(|mig| mig.access_stamp);
        if let (Some(access_file), Some(seen)) = (device.access_file(), seen)
            && !stamp(access_file).is_some_and(|now| now.may_be(&seen))
        {
            return Err(AllocateError::Changed {
                id: device.id.clone(),
                access_file: access_file.to_owned(),
            });
        }
    }
    Ok(())
}

/// What the devices are called towards the container, each once: replicas collapse.
fn names(chosen: &[&Device], ids: DeviceIdStrategy) -> Vec<String> {
    let mut names = Vec::new();
    for device in chosen {
        let name = match ids {
            DeviceIdStrategy::Uuid => device.uuid.clone(),
            DeviceIdStrategy::Index => device.index(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn tell_by_cdi(
    answer: &mut Answer,
    resource: &str,
    names: &[String],
    channels: &[u32],
    rules: &Rules,
    exists: impl Fn(&Path) -> bool,
) {
    let gpus = names.iter().map(|name| cdi_name::qualified(cdi_name::GPU, name));
    let imex =
        channels.iter().map(|channel| cdi_name::qualified(cdi_name::IMEX_CHANNEL, &channel.to_string()));
    let further = rules.features.iter().map(|feature| feature.word());
    let further = further.filter(|class| exists(&rules.cdi_spec_dir.join(cdi_name::file_name(class))));
    let further = further.map(|class| cdi_name::qualified(class, cdi_name::ALL));
    let qualified: Vec<_> = gpus.chain(imex).chain(further).collect();
    if rules.strategies.contains(&DeviceListStrategy::CdiAnnotations) {
        let key = format!("{}nvidia-device-plugin_{}", rules.cdi_annotation_prefix, digest(resource, names));
        answer.annotations.push((key, qualified.join(",")));
    }
    if rules.strategies.contains(&DeviceListStrategy::CdiCri) {
        answer.cdi_devices = qualified;
    }
}

/// Two resources in one container need two keys; the same devices always have the same one. FNV-1a, 64 bits.
fn digest(resource: &str, names: &[String]) -> String {
    let bytes = std::iter::once(resource).chain(names.iter().map(String::as_str)).flat_map(str::bytes);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn tell_by_variable_and_mounts(
    answer: &mut Answer,
    resource: &str,
    names: &[String],
    channels: &[u32],
    rules: &Rules,
) {
    let mounts = rules.strategies.contains(&DeviceListStrategy::VolumeMounts);
    let visible = if mounts { MOUNT_ROOT.to_owned() } else { names.join(",") };
    answer.envs.push((VISIBLE_DEVICES.to_owned(), visible));
    if rules.variable_per_resource {
        answer.envs.push((variable_of(resource), names.join(",")));
    }
    let channels: Vec<_> = channels.iter().map(u32::to_string).collect();
    if rules.strategies.contains(&DeviceListStrategy::Envvar) && !channels.is_empty() {
        answer.envs.push((IMEX_CHANNELS.to_owned(), channels.join(",")));
    }
    if mounts {
        let root = Path::new(MOUNT_ROOT);
        let devices = names.iter().map(|name| root.join(name));
        let paths = devices.chain(channels.iter().map(|channel| root.join("imex").join(channel)));
        answer.mounts = paths.map(|path| (PathBuf::from("/dev/null"), path)).collect();
    }
}

/// The IMEX channels that are there.
fn channels(
    rules: &Rules,
    dev_root: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Vec<u32>, AllocateError> {
    let mut found = Vec::new();
    for channel in &rules.imex.channel_ids {
        let node = below(dev_root, &channel_node(*channel));
        if exists(&node) {
            found.push(*channel);
        } else if rules.imex.required {
            return Err(AllocateError::ChannelMissing { channel: *channel, node });
        }
    }
    Ok(found)
}

fn channel_node(channel: u32) -> PathBuf {
    format!("/dev/nvidia-caps-imex-channels/channel{channel}").into()
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

/// Control nodes first, then each device's own, then the channels', no node twice.
fn nodes(
    chosen: &[&Device],
    channels: &[u32],
    rules: &Rules,
    dev_root: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Vec<NodeSpec>, AllocateError> {
    let mut specs: Vec<NodeSpec> = Vec::new();
    if rules.device_specs == DeviceSpecs::Omitted {
        return Ok(specs);
    }
    let required = rules.device_specs == DeviceSpecs::Required;
    let control = CONTROL_NODES.into_iter().map(|node| (None, Path::new(node)));
    let own = chosen.iter().flat_map(|device| {
        // Behind the GPU's are those that open a slice, without which no container can use it. Where the GPU's is not
        // there, these are not the host's nodes.
        let gpu_node = device.nodes.first().is_some_and(|node| exists(&below(dev_root, &node.path)));
        let owner = move |at: usize| (required || at > 0 && gpu_node).then_some(*device);
        device.nodes.iter().enumerate().map(move |(at, node)| (owner(at), node.path.as_path()))
    });
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
        } else if let Some(device) = device {
            return Err(AllocateError::NodeMissing { id: device.id.clone(), node: here });
        }
    }
    specs.extend(channels.iter().map(|channel| NodeSpec {
        container_path: channel_node(*channel),
        host_path: below(&rules.host_dev_root, &channel_node(*channel)),
    }));
    Ok(specs)
}

#[cfg(test)]
mod tests;

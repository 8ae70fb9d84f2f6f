//! What a running plugin says of its node: `/devices`, and what the command `devices` adds to what the driver says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;

/// The inventory, and what a running plugin makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeState {
    /// What the driver said last.
    #[serde(flatten)]
    pub inventory: Inventory,
    /// `None` where no plugin was asked or none answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PluginState>,
}

impl From<Inventory> for NodeState {
    fn from(inventory: Inventory) -> Self {
        Self { inventory, plugin: None }
    }
}

/// What a running plugin knows and serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginState {
    /// The plugin's version.
    pub version: String,
    /// Where it looks for the driver, as it sees it.
    pub driver_root: PathBuf,
    /// Whether there is a driver. With any other answer than `present` the inventory is what was known last.
    pub driver: DriverState,
    /// Why there is none.
    pub no_driver: Option<String>,
    /// What holds while the driver is there and does not answer, as a sentence.
    #[serde(default)]
    pub no_answer: Option<String>,
    /// Whether the driver is left alone (SIGUSR1).
    pub on_hold: bool,
    /// `none`, `single` or `mixed`.
    pub strategy: String,
    /// Whether errors of GPUs that have slices are heard; `None` while there is none, or where it is not known.
    pub event_attribution: Option<Attribution>,
    /// By GPU, in the inventory's order.
    pub gpus: Vec<GpuState>,
    /// What is served.
    pub resources: Vec<ResourceState>,
    /// What exists and is not offered.
    pub withheld: Vec<WithheldState>,
    /// What of the configuration has no effect on this node.
    pub warnings: Vec<String>,
    /// Why it is not known which pods hold devices, where it is not.
    pub holders_unknown: Option<String>,
}

/// Whether there is a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriverState {
    /// It has not been asked yet.
    Unknown,
    /// There is one.
    Present,
    /// There is none.
    Absent,
}

/// What errors of a GPU that has slices are attributed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attribution {
    /// Single MIG devices.
    Instance,
    /// Nothing: they are not heard.
    None,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuState {
    /// Its UUID.
    pub uuid: String,
    /// How its devices get well.
    pub recovery: RecoveryRule,
    /// Why its errors are not heard of, where they are not.
    pub not_watched: Option<String>,
}

/// How a sick device gets well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecoveryRule {
    /// Not before the plugin starts again.
    Off,
    /// When the driver says that the GPU needs nothing.
    RecoveryAction,
    /// When the GPU was reset or the instance made anew.
    Reset,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceState {
    /// E.g. `nvidia.com/mig-2g.20gb`.
    pub name: String,
    /// Whether it is registered with the kubelet.
    pub registered: bool,
    /// Why it is not.
    pub not_registered: Option<String>,
    /// Its list, as the kubelet is told.
    pub devices: Vec<DeviceState>,
}

/// A device of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceState {
    /// What the kubelet calls it.
    pub id: String,
    /// What the driver calls it.
    pub uuid: String,
    /// `0` for a GPU, `0:3` for a MIG device, `?` for one that only a pod knows.
    pub index: String,
    /// Its profile; `None` for a GPU.
    pub profile: Option<String>,
    /// Whether it may be handed out.
    pub healthy: bool,
    /// Why it is not.
    pub reasons: Vec<ReasonState>,
    /// The containers that hold it.
    pub held_by: Vec<Holder>,
}

/// Why a device is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonState {
    /// One word, as in metrics.
    pub word: String,
    /// A sentence.
    pub text: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// A device that is not offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithheldState {
    /// `0` or `0:3`.
    pub index: String,
    /// Its UUID.
    pub uuid: String,
    /// A sentence.
    pub reason: String,
}

impl ResourceState {
    /// How many of its devices are healthy.
    pub fn allocatable(&self) -> usize {
        self.devices.iter().filter(|device| device.healthy).count()
    }

    /// How many of its devices pods hold.
    pub fn allocated(&self) -> usize {
        self.devices.iter().filter(|device| !device.held_by.is_empty()).count()
    }

    /// How many of its devices a pod could get now.
    pub fn free(&self) -> usize {
        self.devices.iter().filter(|device| device.healthy && device.held_by.is_empty()).count()
    }
}

impl PluginState {
    /// The entries for what the driver calls `uuid`: one, or several replicas, or none where it is not offered.
    pub fn devices<'a>(
        &'a self,
        uuid: &'a str,
    ) -> impl Iterator<Item = (&'a ResourceState, &'a DeviceState)> {
        self.resources.iter().flat_map(move |resource| {
            let its = resource.devices.iter().filter(move |device| device.uuid == uuid);
            its.map(move |device| (resource, device))
        })
    }

    /// The health of what the driver calls `uuid`, in one line; `None` where it is not offered.
    pub fn health(&self, uuid: &str) -> Option<String> {
        let (_, device) = self.devices(uuid).next()?;
        let reasons: Vec<_> = device.reasons.iter().map(|reason| reason.text.as_str()).collect();
        Some(if device.healthy { "healthy".to_owned() } else { reasons.join("; ") })
    }
}

//! What the command `explain` prints: what each strategy would make of a node, and whether a pod could run
//! there. Pure but for [`command`], which reads the files that it is given.
//!
//! Nothing is imitated: resources come from [`resolve`], devices from
//! [`preferred`](crate::resource::preferred), and what a container gets from
//! [`allocate`](crate::resource::allocate), as when the plugin serves.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::inventory::{Gpu, Inventory, MigMode};
use crate::resource::policy::OfferPolicy;
use crate::resource::{Device, MigStrategy, ResourceName, ResourceSet, Withheld, resolve};

pub mod command;
pub mod input;
pub mod pod;
mod render;
mod snippet;
mod text;
mod warning;

#[cfg(test)]
mod tests;

pub use render::{Format, RenderError, render};
pub use warning::Warning;

/// The strategies in the order in which they are shown.
pub const STRATEGIES: [MigStrategy; 3] = [MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed];

/// A node, and what each strategy makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The driver's version.
    pub driver_version: String,
    /// The newest CUDA version that the driver supports.
    pub cuda_version: Option<String>,
    /// The node's GPUs, by index.
    pub gpus: Vec<GpuView>,
    /// None, single and mixed, or those of them that were asked for.
    pub strategies: Vec<StrategyView>,
    /// What is worth knowing whatever the strategy.
    pub warnings: Vec<Warning>,
}

/// A GPU in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuView {
    /// NVML index.
    pub index: u32,
    /// `GPU-…`
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Whether MIG mode is on; `None` where the GPU has no MIG.
    pub mig_enabled: Option<bool>,
    /// Its slices by profile, in the order in which the driver lists them.
    pub slices: Vec<ProfileCount>,
}

/// How many slices have a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileCount {
    /// E.g. `1g.10gb`.
    pub profile: String,
    /// How many.
    pub count: usize,
}

impl fmt::Display for ProfileCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.profile)?;
        if self.count > 1 { write!(f, " x{}", self.count) } else { Ok(()) }
    }
}

/// What one strategy offers and withholds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrategyView {
    /// Which.
    #[serde(serialize_with = "in_words")]
    pub strategy: MigStrategy,
    /// Whether it is the one that is set.
    pub configured: bool,
    /// What is offered, by name.
    pub resources: Vec<ResourceView>,
    /// What is not, though it is there.
    pub withheld: Vec<WithheldView>,
    /// What is worth knowing under this strategy.
    pub warnings: Vec<Warning>,
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceView {
    /// What a pod asks for.
    pub name: String,
    /// How many there are.
    pub capacity: usize,
    /// How many of them can be handed out.
    pub allocatable: usize,
    /// Which.
    pub devices: Vec<DeviceView>,
    /// A Pod that asks for one, as YAML.
    pub pod: String,
}

/// A device as the kubelet would see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceView {
    /// Its ID.
    pub id: String,
    /// `0` or `0:3`.
    pub index: String,
    /// Index of its GPU.
    pub gpu: u32,
    /// Index of the slice on its GPU; `None` for a whole GPU.
    pub mig_device: Option<u32>,
    /// The slice's profile.
    pub profile: Option<String>,
    /// Why it cannot be handed out.
    pub unhealthy: Option<String>,
}

/// A device that is not offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WithheldView {
    /// Its UUID.
    pub id: String,
    /// `0` or `0:3`.
    pub index: String,
    /// Why.
    pub reason: String,
}

/// What each strategy would offer of `inventory`. All but the strategy is taken from `policy`, and its strategy is
/// marked as the one that is set.
pub fn explain(inventory: &Inventory, policy: &OfferPolicy) -> Explanation {
    let strategies = STRATEGIES.map(|strategy| {
        let policy = &with_strategy(policy, strategy);
        let set = resolve(inventory, policy);
        let warnings = warning::of_strategy(inventory, policy, &set);
        StrategyView::new(strategy, &set, warnings)
    });
    let strategies = strategies.into_iter().map(|mut view| {
        view.configured = view.strategy == policy.strategy;
        view
    });
    Explanation {
        driver_version: inventory.driver_version.clone(),
        cuda_version: inventory.cuda_version.clone(),
        gpus: inventory.gpus.iter().map(GpuView::new).collect(),
        strategies: strategies.collect(),
        warnings: warning::of_node(inventory),
    }
}

impl Explanation {
    /// The same with nothing but `strategy`.
    #[must_use]
    pub fn only(mut self, strategy: MigStrategy) -> Self {
        self.strategies.retain(|view| view.strategy == strategy);
        self
    }
}

fn with_strategy(policy: &OfferPolicy, strategy: MigStrategy) -> OfferPolicy {
    OfferPolicy { strategy, ..policy.clone() }
}

impl GpuView {
    fn new(gpu: &Gpu) -> Self {
        let profiles = gpu.mig_devices.iter().map(|device| device.profile.to_string());
        Self {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            name: gpu.name.clone(),
            mig_enabled: gpu.mig_mode.map(|MigMode { current, .. }| current),
            slices: count(profiles),
        }
    }
}

/// How often each occurs, in order of first occurrence.
fn count(profiles: impl Iterator<Item = String>) -> Vec<ProfileCount> {
    let mut counts: Vec<ProfileCount> = Vec::new();
    for profile in profiles {
        match counts.iter_mut().find(|known| known.profile == profile) {
            Some(known) => known.count += 1,
            None => counts.push(ProfileCount { profile, count: 1 }),
        }
    }
    counts
}

impl StrategyView {
    fn new(strategy: MigStrategy, set: &ResourceSet, warnings: Vec<Warning>) -> Self {
        let resources = set.resources.iter().map(|(name, devices)| ResourceView::new(name, devices));
        Self {
            strategy,
            configured: false,
            resources: resources.collect(),
            withheld: set.withheld.iter().map(WithheldView::new).collect(),
            warnings,
        }
    }
}

impl ResourceView {
    fn new(name: &ResourceName, devices: &[Device]) -> Self {
        Self {
            name: name.to_string(),
            capacity: devices.len(),
            allocatable: devices.iter().filter(|device| device.is_healthy()).count(),
            devices: devices.iter().map(DeviceView::new).collect(),
            pod: snippet::pod(name),
        }
    }
}

impl DeviceView {
    fn new(device: &Device) -> Self {
        Self {
            id: device.id.to_string(),
            index: device.index(),
            gpu: device.gpu_index,
            mig_device: device.mig.as_ref().map(|mig| mig.index),
            profile: device.mig.as_ref().map(|mig| mig.profile.to_string()),
            unhealthy: (!device.is_healthy()).then(|| device.reasons_text()),
        }
    }
}

impl WithheldView {
    fn new(withheld: &Withheld) -> Self {
        Self { id: withheld.id.to_string(), index: withheld.index.clone(), reason: withheld.reason.clone() }
    }
}

/// A strategy as it is written in a flag.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn in_words<S: Serializer>(strategy: &MigStrategy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(strategy)
}

//! Which devices each container would get, in the kubelet's order and with the plugin's own answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::demand::{Role, Step};
use super::{ContainerView, Obstacle};
use crate::explain::DeviceView;
use crate::inventory::{Inventory, Links};
use crate::resource::allocate::{Rules, allocate};
use crate::resource::policy::AllocationPolicy;
use crate::resource::preferred::preferred;
use crate::resource::{Device, ResourceName, ResourceSet};

/// What becomes of one resource's devices while containers are admitted.
struct Pool<'a> {
    devices: &'a [Device],
    used: BTreeSet<String>,
    /// What init containers had and leave to those behind them.
    reusable: BTreeSet<String>,
}

impl Pool<'_> {
    /// What the kubelet's device manager does: first what init containers left, then what the plugin prefers.
    fn take(&mut self, role: Role, count: usize, policy: AllocationPolicy) -> Vec<String> {
        let ids =
            || self.devices.iter().filter(|device| device.is_healthy()).map(|device| device.id.to_string());
        let reused: Vec<String> = ids().filter(|id| self.reusable.contains(id)).take(count).collect();
        let available: Vec<String> =
            ids().filter(|id| !self.used.contains(id) || reused.contains(id)).collect();
        let chosen = preferred(self.devices, &Links::default(), &available, &reused, count, policy);
        self.used.extend(chosen.iter().cloned());
        for id in &chosen {
            if role == Role::Init {
                self.reusable.insert(id.clone());
            } else {
                self.reusable.remove(id);
            }
        }
        chosen
    }
}

/// Gives every container what it asks for, on a node where nothing is in use.
pub(super) fn assign(
    inventory: &Inventory,
    set: &ResourceSet,
    rules: &Rules,
    steps: &[Step],
) -> Result<Vec<ContainerView>, Obstacle> {
    let there = nodes_that_are_there(inventory);
    let mut pools: BTreeMap<&str, (&ResourceName, Pool<'_>)> = set
        .resources
        .iter()
        .map(|(name, devices)| {
            let pool = Pool { devices, used: BTreeSet::new(), reusable: BTreeSet::new() };
            (name.as_str(), (name, pool))
        })
        .collect();
    let mut views = Vec::new();
    for step in steps {
        for (resource, count) in &step.amounts {
            let Some((name, pool)) = pools.get_mut(resource.as_str()) else { continue };
            let ids = pool.take(step.role, usize::try_from(*count).unwrap_or(usize::MAX), rules.allocation);
            // Paths in answers are asked about as they are in the inventory, so the root is `/`.
            let answer = allocate(name.as_str(), pool.devices, &ids, rules, Path::new("/"), |path| {
                there.contains(path) || pool.devices.iter().any(|device| device.access_file() == Some(path))
            });
            let answer = answer.map_err(|error| Obstacle::Refused {
                resource: resource.clone(),
                container: step.name.clone(),
                reason: error.to_string(),
            })?;
            let chosen = pool.devices.iter().filter(|device| ids.contains(&device.id.to_string()));
            views.push(ContainerView {
                name: step.name.clone(),
                resource: resource.clone(),
                devices: chosen.map(DeviceView::new).collect(),
                environment: answer.envs,
                nodes: answer.nodes.into_iter().map(|node| node.container_path).collect(),
                cdi_devices: answer.cdi_devices,
            });
        }
    }
    Ok(views)
}

/// What the look at the node found below `/dev`: the saved look at another node must not be mixed with this one.
fn nodes_that_are_there(inventory: &Inventory) -> BTreeSet<PathBuf> {
    let slices = inventory.gpus.iter().flat_map(|gpu| &gpu.mig_devices);
    let capabilities =
        slices.flat_map(|device| [&device.gpu_instance_node, &device.compute_instance_node]).flatten();
    let gpus = inventory.gpus.iter().map(|gpu| &gpu.node);
    let nodes = inventory.control_nodes.iter().chain(gpus).chain(capabilities);
    nodes.filter(|node| node.exists).map(|node| node.path.clone()).collect()
}

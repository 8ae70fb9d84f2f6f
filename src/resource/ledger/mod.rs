//! What is being served, and how it moves towards what should be.
//!
//! The kubelet crashes when a device vanishes from the list just after it was allocated, so a device leaves in
//! two steps: first it is listed as unhealthy, and only when nobody can be using its entry any more is it left
//! out.
//!
//! What comes in its place is listed meanwhile, as unhealthy with the reason [`Reason::Blocked`], so that capacity
//! changes once and people see what is waited for: a slice while its GPU is leaving as a whole, a whole GPU while a
//! slice of it is leaving, and a device that is leaving under another name or as replicas. Only under the very ID of a
//! device that is leaving nothing can be listed beside it: the driver can give the UUID of a destroyed slice to the
//! next one.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Device, DeviceId, Reason, ResourceName, ResourceSet};
use crate::inventory::Inventory;

mod blocked;

use blocked::Blockers;

/// The lists that are being served, by resource. A resource whose last device has left stays with an empty
/// list until it is told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    lists: BTreeMap<ResourceName, Vec<Device>>,
    /// What pods hold under names that this program does not serve.
    elsewhere: Vec<(String, Device)>,
}

/// One thing to do so that what is served becomes what the ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Serve a resource that was not served.
    Start(ResourceName, Vec<Device>),
    /// Send another list.
    Update(ResourceName, Vec<Device>),
    /// End a resource's server; its list was empty.
    Stop(ResourceName),
}

impl Ledger {
    /// The lists.
    pub fn lists(&self) -> &BTreeMap<ResourceName, Vec<Device>> {
        &self.lists
    }

    /// Devices that are listed only until they may leave.
    pub fn leaving(&self) -> impl Iterator<Item = (&ResourceName, &DeviceId)> {
        self.lists.iter().flat_map(|(name, list)| {
            list.iter().filter(|device| is_leaving(device)).map(move |device| (name, &device.id))
        })
    }

    /// Resources that have no device left, listed or waiting.
    pub fn empty(&self) -> impl Iterator<Item = &ResourceName> {
        self.lists.iter().filter(|(_, list)| list.is_empty()).map(|(name, _)| name)
    }

    /// Lists devices that pods hold and that are not wanted, on their way out: the kubelet must not find the device of
    /// a running pod missing, and pods outlive this program.
    pub fn keep_held(
        &mut self,
        held: impl IntoIterator<Item = (ResourceName, DeviceId, Option<u32>)>,
        wanted: &ResourceSet,
    ) {
        for (name, id, numa_node) in held {
            let has = |list: &Vec<Device>| list.iter().any(|device| device.id == id);
            if !wanted.resources.get(&name).is_some_and(has) && !self.lists.get(&name).is_some_and(has) {
                self.lists.entry(name).or_default().push(Device::known_by_id(id, numa_node));
            }
        }
    }

    /// Notes what pods hold of the driver's devices under names that are not served here: another plugin's, or those of
    /// an earlier configuration. It is not listed, and nothing is given out beside it.
    pub fn note_elsewhere(&mut self, held: impl IntoIterator<Item = (String, DeviceId)>) {
        let device = |(name, id)| (name, Device::known_by_id(id, None));
        self.elsewhere = held.into_iter().map(device).collect();
    }

    /// What pods hold under other names, where something may be waiting for it.
    pub fn awaited_elsewhere(&self) -> impl Iterator<Item = (&str, &DeviceId)> {
        let waits = self.lists.values().flatten().any(is_blocked);
        self.elsewhere.iter().filter(move |_| waits).map(|(name, device)| (name.as_str(), &device.id))
    }

    /// The next state on the way to `wanted`. A device that is no longer wanted is marked, and left out in a later step
    /// once `may_leave` says so. What is not to be used beside one that is leaving is not healthy until it has left.
    /// `inventory` is what the driver has, as far as it ever said.
    #[must_use]
    pub fn step(
        &self,
        wanted: &ResourceSet,
        inventory: Option<&Inventory>,
        may_leave: impl Fn(&ResourceName, &DeviceId) -> bool,
        may_stop: impl Fn(&ResourceName) -> bool,
    ) -> Self {
        let mut next = Self { lists: BTreeMap::new(), elsewhere: self.elsewhere.clone() };
        for (_, device) in &mut next.elsewhere {
            *device = on_its_way_out(device, inventory);
        }
        for (name, list) in &self.lists {
            let targets: HashMap<_, _> =
                wanted.resources.get(name).into_iter().flatten().map(|target| (&target.id, target)).collect();
            for device in list {
                let kept = match targets.get(&device.id) {
                    Some(target) if target.is_same(device) || device.is_known_by_id_only() => {
                        (*target).clone()
                    }
                    _ if is_leaving(device) && may_leave(name, &device.id) => continue,
                    _ => on_its_way_out(device, inventory),
                };
                next.lists.entry(name.clone()).or_default().push(kept);
            }
        }
        for (name, targets) in &wanted.resources {
            let listed = next.lists.get(name).map_or(&[][..], Vec::as_slice);
            let taken: HashSet<_> = listed.iter().map(|device| &device.id).collect();
            let new: Vec<_> = targets.iter().filter(|target| !taken.contains(&target.id)).cloned().collect();
            if !new.is_empty() {
                next.lists.entry(name.clone()).or_default().extend(new);
            }
        }
        next.block(inventory);
        for (name, list) in &self.lists {
            if wanted.resources.contains_key(name) || !list.is_empty() || !may_stop(name) {
                next.lists.entry(name.clone()).or_default();
            }
        }
        for list in next.lists.values_mut() {
            list.sort_by(|a, b| order(a).cmp(&order(b)));
        }
        next
    }

    /// Marks what has to wait for something that is leaving.
    fn block(&mut self, inventory: Option<&Inventory>) {
        let leaving = self.lists.iter().flat_map(|(name, list)| {
            list.iter().filter(|device| is_leaving(device)).map(|device| (name.as_str(), device))
        });
        let elsewhere = self.elsewhere.iter().map(|(name, device)| (name.as_str(), device));
        let blockers = Blockers::new(leaving.chain(elsewhere), inventory);
        for (name, list) in &mut self.lists {
            for device in list.iter_mut().filter(|device| !is_leaving(device)) {
                device.reasons.extend(blockers.reason(name.as_str(), device));
            }
        }
    }

    /// What has to be done to get from `self` to `next`.
    pub fn diff(&self, next: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, list) in &next.lists {
            match self.lists.get(name) {
                None => changes.push(Change::Start(name.clone(), list.clone())),
                Some(old) if old != list => changes.push(Change::Update(name.clone(), list.clone())),
                Some(_) => {}
            }
        }
        let gone = self.lists.keys().filter(|name| !next.lists.contains_key(*name));
        changes.extend(gone.map(|name| Change::Stop(name.clone())));
        changes
    }
}

fn is_leaving(device: &Device) -> bool {
    matches!(device.reasons[..], [Reason::Gone | Reason::NotOffered])
}

fn is_blocked(device: &Device) -> bool {
    device.reasons.iter().any(|reason| matches!(reason, Reason::Blocked(_)))
}

/// The device as it is listed until it may leave, with what the driver says of one that was known by its ID alone. Its
/// NUMA node stays the one that it was handed out with.
fn on_its_way_out(device: &Device, inventory: Option<&Inventory>) -> Device {
    let there = inventory.and_then(|inventory| device.in_inventory(inventory));
    let (device, reason) = match there {
        Some(there) if device.is_known_by_id_only() => {
            let numa_node = device.numa_node.or(there.numa_node);
            let known = Device { id: device.id.clone(), replica: device.replica, numa_node, ..there };
            (known, Reason::NotOffered)
        }
        Some(there) if there.is_same_hardware(device) => (device.clone(), Reason::NotOffered),
        _ => (device.clone(), Reason::Gone),
    };
    Device { reasons: vec![reason], ..device }
}

/// GPU index, GPU instance, compute instance, replica; the UUID keeps a leaving device in one place.
fn order(device: &Device) -> (u32, Option<(u32, u32)>, Option<u32>, &DeviceId) {
    let mig = device.mig.as_ref().map(|mig| (mig.gpu_instance, mig.compute_instance));
    (device.gpu_index, mig, device.replica.map(|replica| replica.number), &device.id)
}

#[cfg(test)]
mod tests;

//! What is being served, and how it moves towards what should be.
//!
//! The kubelet crashes when a device vanishes from the list just after it was allocated, so a device leaves in
//! two steps: first it is listed as unhealthy, and only when nobody can be using its entry any more is it left
//! out. While it is leaving, no other device may be listed under its ID: the driver can give the UUID of a
//! destroyed slice to the next one.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Device, DeviceId, Reason, ResourceName, ResourceSet};

/// The lists that are being served, by resource. A resource whose last device has left stays with an empty
/// list until it is told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    lists: BTreeMap<ResourceName, Vec<Device>>,
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
        held: impl IntoIterator<Item = (ResourceName, DeviceId)>,
        wanted: &ResourceSet,
    ) {
        for (name, id) in held {
            let is_wanted =
                wanted.resources.get(&name).is_some_and(|list| list.iter().any(|device| device.id == id));
            let list = self.lists.get(&name).map_or(&[][..], Vec::as_slice);
            if !is_wanted && list.iter().all(|device| device.id != id) {
                self.lists.entry(name).or_default().push(Device::known_by_id(id));
            }
        }
    }

    /// The next state on the way to `wanted`. A device that is no longer wanted is marked, and left out in a
    /// later step once `may_leave` says so; one that is wanted under an ID that is still leaving waits for it.
    #[must_use]
    pub fn step(
        &self,
        wanted: &ResourceSet,
        may_leave: impl Fn(&ResourceName, &DeviceId) -> bool,
        may_stop: impl Fn(&ResourceName) -> bool,
    ) -> Self {
        let mut next = Self::default();
        let mut taken: HashSet<&DeviceId> = HashSet::new();
        let mut leaving: HashSet<&str> = HashSet::new();
        for (name, list) in &self.lists {
            let targets: HashMap<_, _> =
                wanted.resources.get(name).into_iter().flatten().map(|target| (&target.id, target)).collect();
            for device in list {
                let kept = match targets.get(&device.id) {
                    Some(target) if target.is_same(device) || device.is_known_by_id_only() => {
                        (*target).clone()
                    }
                    _ if is_leaving(device) && may_leave(name, &device.id) => continue,
                    _ => Device { reasons: vec![Reason::Gone], ..device.clone() },
                };
                taken.insert(&device.id);
                if is_leaving(&kept) {
                    leaving.insert(&device.uuid);
                }
                next.lists.entry(name.clone()).or_default().push(kept);
            }
        }
        for (name, targets) in &wanted.resources {
            // Nor may replicas of a device be handed out while its whole is still held, or the other way round.
            let is_free = |target: &&Device| !taken.contains(&target.id) && !leaving.contains(&*target.uuid);
            let new: Vec<_> = targets.iter().filter(is_free).cloned().collect();
            if !new.is_empty() {
                next.lists.entry(name.clone()).or_default().extend(new);
            }
        }
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
    device.reasons == [Reason::Gone]
}

/// GPU index, GPU instance, compute instance, replica; the UUID keeps a leaving device in one place.
fn order(device: &Device) -> (u32, Option<(u32, u32)>, Option<u32>, &DeviceId) {
    let mig = device.mig.as_ref().map(|mig| (mig.gpu_instance, mig.compute_instance));
    (device.gpu_index, mig, device.replica.map(|replica| replica.number), &device.id)
}

#[cfg(test)]
mod tests;

//! Time slicing: one device offered as several replicas, `<uuid>::0`, `<uuid>::1`, …

use std::collections::BTreeSet;

use super::policy::{DeviceRef, DeviceSelection, SharedResource, TimeSlicing};
use super::{Device, DeviceId, Replica, ResourceName, ResourceSet};

/// Between a device's UUID and the number of its replica.
const REPLICA: &str = "::";

/// What `renameByDefault` puts behind a name.
pub(super) const SHARED: &str = ".shared";

/// How devices were offered so far, which `devices: <count>` keeps to: a slice that goes must not make a whole of a
/// neighbour whose replicas pods use, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Earlier {
    /// What was offered last.
    offered: BTreeSet<DeviceId>,
    /// What pods hold, also since before this program was started.
    held: BTreeSet<DeviceId>,
}

impl Earlier {
    /// Takes what is offered from now on.
    pub fn take_offer(&mut self, set: &ResourceSet) {
        self.offered = set.resources.values().flatten().map(|device| device.id.clone()).collect();
    }

    /// Takes what pods hold; whether that is something else than before.
    pub fn take_held(&mut self, held: BTreeSet<DeviceId>) -> bool {
        let before = std::mem::replace(&mut self.held, held);
        before != self.held
    }

    /// The lower, the rather a device is to be shared.
    fn rank(&self, device: &Device) -> u8 {
        let shared = |ids: &BTreeSet<DeviceId>| {
            let prefix = format!("{}{REPLICA}", device.uuid);
            let next = ids.range(DeviceId(prefix.clone())..).next();
            next.is_some_and(|id| id.as_str().starts_with(&prefix))
        };
        if shared(&self.held) {
            0
        } else if self.held.contains(&device.id) {
            4
        } else if shared(&self.offered) {
            1
        } else if self.offered.contains(&device.id) {
            3
        } else {
            2
        }
    }
}

/// Replaces the devices that `sharing` names by their replicas.
pub(super) fn share(set: &mut ResourceSet, sharing: &TimeSlicing, earlier: &Earlier) {
    for shared in &sharing.resources {
        // A node has only some of the resources that one file for all nodes names; but it may be a slip, too.
        let Some(devices) = set.resources.remove(&shared.name) else {
            set.warnings
                .push(format!("sharing.timeSlicing: {}: this node has no such resource", shared.name));
            continue;
        };
        let (chosen, whole) = select(devices, &shared.devices, earlier, |what| {
            set.warnings.push(format!("sharing.timeSlicing: {}: {what}", shared.name));
        });
        let name = shared_name(shared, sharing, &mut set.warnings);
        if name != shared.name && set.resources.contains_key(&name) {
            set.warnings.push(format!(
                "sharing.timeSlicing: {}: its replicas are offered as {name}, which other devices are offered as too: a \
                 pod cannot tell them apart",
                shared.name
            ));
        }
        let replicas = chosen.iter().flat_map(|device| {
            (0..shared.replicas).map(|number| replica(device, number, sharing.fail_requests_greater_than_one))
        });
        for (name, devices) in [(shared.name.clone(), whole), (name, replicas.collect())] {
            if !devices.is_empty() {
                set.resources.entry(name).or_default().extend(devices);
            }
        }
    }
}

fn replica(device: &Device, number: u32, alone: bool) -> Device {
    Device {
        id: DeviceId(format!("{}{REPLICA}{number}", device.uuid)),
        replica: Some(Replica { number, alone }),
        ..device.clone()
    }
}

/// The devices that are shared, and the others.
fn select(
    devices: Vec<Device>,
    selection: &DeviceSelection,
    earlier: &Earlier,
    mut warn: impl FnMut(String),
) -> (Vec<Device>, Vec<Device>) {
    match selection {
        DeviceSelection::All => (devices, Vec::new()),
        DeviceSelection::Count(count) => {
            if *count > devices.len() {
                warn(format!("{count} devices are to be shared, and there are {}", devices.len()));
            }
            // Stable: devices of one rank stay in their order.
            let mut ranked: Vec<&Device> = devices.iter().collect();
            ranked.sort_by_key(|device| earlier.rank(device));
            let chosen: BTreeSet<DeviceId> =
                ranked.into_iter().take(*count).map(|device| device.id.clone()).collect();
            devices.into_iter().partition(|device| chosen.contains(&device.id))
        }
        DeviceSelection::List(list) => {
            for name in list.iter().filter(|name| !devices.iter().any(|device| is_meant(device, name))) {
                warn(format!("device {name} is not one of its devices"));
            }
            devices.into_iter().partition(|device| list.iter().any(|name| is_meant(device, name)))
        }
    }
}

/// Whether `name` is this very device.
pub(super) fn is_meant(device: &Device, name: &DeviceRef) -> bool {
    match (name, &device.mig) {
        (DeviceRef::Uuid(uuid), _) => device.uuid == *uuid,
        (DeviceRef::Gpu(gpu), None) => device.gpu_index == *gpu,
        (DeviceRef::Mig(gpu, index), Some(mig)) => device.gpu_index == *gpu && mig.index == *index,
        _ => false,
    }
}

fn shared_name(shared: &SharedResource, sharing: &TimeSlicing, warnings: &mut Vec<String>) -> ResourceName {
    if let Some(rename) = &shared.rename {
        return rename.clone();
    }
    if !sharing.rename_by_default {
        return shared.name.clone();
    }
    format!("{}{SHARED}", shared.name).parse().unwrap_or_else(|error| {
        warnings
            .push(format!("sharing.timeSlicing: {}: renameByDefault has no effect: {error}", shared.name));
        shared.name.clone()
    })
}

#[cfg(test)]
mod tests;

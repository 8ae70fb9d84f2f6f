//! Time slicing: one device offered as several replicas, `<uuid>::0`, `<uuid>::1`, …

use super::policy::{DeviceRef, DeviceSelection, SharedResource, TimeSlicing};
use super::{Device, DeviceId, Replica, ResourceName, ResourceSet};

/// What `renameByDefault` puts behind a name.
pub(super) const SHARED: &str = ".shared";

/// Replaces the devices that `sharing` names by their replicas.
pub(super) fn share(set: &mut ResourceSet, sharing: &TimeSlicing) {
    for shared in &sharing.resources {
        // A node has only some of the resources that one file for all nodes names; but it may be a slip, too.
        let Some(devices) = set.resources.remove(&shared.name) else {
            set.warnings
                .push(format!("sharing.timeSlicing: {}: this node has no such resource", shared.name));
            continue;
        };
        let (chosen, whole) = select(devices, &shared.devices, |what| {
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
        id: DeviceId(format!("{}::{number}", device.uuid)),
        replica: Some(Replica { number, alone }),
        ..device.clone()
    }
}

/// The devices that are shared, and the others.
fn select(
    devices: Vec<Device>,
    selection: &DeviceSelection,
    mut warn: impl FnMut(String),
) -> (Vec<Device>, Vec<Device>) {
    match selection {
        DeviceSelection::All => (devices, Vec::new()),
        DeviceSelection::Count(count) => {
            if *count > devices.len() {
                warn(format!("{count} devices are to be shared, and there are {}", devices.len()));
            }
            let mut shared = devices;
            let whole = shared.split_off((*count).min(shared.len()));
            (shared, whole)
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

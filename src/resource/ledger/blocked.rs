//! What may not be given out beside something that may still be held.

use std::collections::HashMap;

use crate::inventory::Inventory;
use crate::resource::{Device, Reason};

/// Devices that are leaving, or are held under names that are not served here, by their GPU. Of several replicas of one
/// device there is one.
pub(super) struct Blockers(HashMap<String, Vec<(String, Device)>>);

impl Blockers {
    /// Those devices, with the name that each is listed or held under. A slice of which nothing but its ID is known may
    /// be on any GPU that `inventory` does not know all slices of; what else the driver does not have is on none.
    pub(super) fn new<'a>(
        devices: impl Iterator<Item = (&'a str, &'a Device)>,
        inventory: Option<&Inventory>,
    ) -> Self {
        let mut all: HashMap<_, Vec<(String, Device)>> = HashMap::new();
        let gpus = inventory.into_iter().flat_map(|known| {
            known.gpus.iter().filter(|gpu| !known.knows_all_slices_of(gpu)).map(|gpu| &gpu.uuid)
        });
        let in_part_unknown: Vec<_> = gpus.collect();
        for (name, device) in devices {
            let gpus = match device.is_known_by_id_only() {
                false => vec![&device.gpu_uuid],
                true if device.uuid.starts_with("MIG-") => in_part_unknown.clone(),
                true => Vec::new(),
            };
            let is_replica_of = |(other, first): &(String, Device)| {
                other == name
                    && first.is_same_hardware(device)
                    && first.replica.is_some() == device.replica.is_some()
            };
            for gpu in gpus {
                let here = all.entry(gpu.clone()).or_default();
                if !here.iter().any(is_replica_of) {
                    here.push((name.to_owned(), device.clone()));
                }
            }
        }
        Self(all)
    }

    /// Why `device` of the resource `name` has to wait, if it has to.
    pub(super) fn reason(&self, name: &str, device: &Device) -> Option<Reason> {
        let here = self.0.get(&device.gpu_uuid)?;
        here.iter().find_map(|(other, blocker)| {
            let why = conflict((name, device), (other, blocker))?;
            Some(Reason::Blocked(format!("{why}: waits until {} has left {other}", blocker.id)))
        })
    }
}

/// Why the first may not be used while the second may be.
fn conflict((name, device): (&str, &Device), (other, blocker): (&str, &Device)) -> Option<&'static str> {
    if device.uuid == blocker.uuid {
        let both_shared = device.replica.is_some() && blocker.replica.is_some();
        let are_replicas = name == other && both_shared && device.is_same_hardware(blocker);
        return (!are_replicas).then_some("it may still be in use as something else");
    }
    match (device.is_whole_gpu(), blocker.is_whole_gpu()) {
        (false, true) => Some("its GPU may still be in use as a whole"),
        (true, false) => Some("a slice of it may still be in use"),
        _ => None,
    }
}

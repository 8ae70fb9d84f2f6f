use std::time::{Duration, SystemTime};

use super::*;
use crate::fixtures::{gpu, mig_gpu, node};
use crate::inventory::{Gpu, Inventory, MigDevice, Trouble, TroubleKind};
use crate::resource::{Device, DeviceId, Reason};

mod actions;
mod attribution;
mod damping;
mod heard;
mod policy;
mod properties;
mod rules;

const QUIET: u64 = 10;

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

fn clock(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Two GPUs with three slices each, the IDs of whose GPU instances are 7, 8 and 9.
fn two_gpus() -> Inventory {
    let slices = ["1g.10gb", "1g.10gb", "2g.20gb"];
    node([mig_gpu(0, &slices), mig_gpu(1, &slices)])
}

/// The same, with a driver that does not tell what a GPU needs.
fn two_gpus_of_an_old_driver() -> Inventory {
    let mut inventory = two_gpus();
    inventory.gpus.iter_mut().for_each(|gpu| gpu.recovery_action = None);
    inventory
}

fn event(gpu: u32, instance: Option<u32>, kind: EventKind, seconds: u64) -> HealthEvent {
    HealthEvent {
        gpu_uuid: format!("GPU-{gpu}"),
        gpu_instance: instance,
        compute_instance: instance.map(|_| 0),
        kind,
        at: clock(seconds),
    }
}

fn xid(gpu: u32, instance: Option<u32>, number: u64, seconds: u64) -> HealthEvent {
    event(gpu, instance, EventKind::Xid(number), seconds)
}

fn device(gpu: &Gpu, mig: Option<&MigDevice>) -> Device {
    let uuid = mig.map_or(&gpu.uuid, |mig| &mig.uuid).clone();
    Device {
        id: DeviceId(uuid.clone()),
        uuid,
        replica: None,
        gpu_index: gpu.index,
        gpu_uuid: gpu.uuid.clone(),
        mig: mig.cloned(),
        numa_node: None,
        nodes: Vec::new(),
        reasons: Vec::new(),
    }
}

/// The MIG devices of a node.
fn slices(inventory: &Inventory) -> Vec<Device> {
    let of_gpu = |gpu| Gpu::clone(gpu).mig_devices.into_iter().map(move |mig| device(gpu, Some(&mig)));
    inventory.gpus.iter().flat_map(of_gpu).collect()
}

/// The indices of the MIG devices that are sick, e.g. `0:2`.
fn sick(health: &Health, inventory: &Inventory) -> Vec<String> {
    let sick = |device: &Device| !health.reasons_of(device).is_empty();
    slices(inventory).iter().filter(|device| sick(device)).map(Device::index).collect()
}

/// What stands against MIG device `slice` of a GPU, in words.
fn reasons(health: &Health, inventory: &Inventory, gpu: usize, slice: usize) -> Vec<String> {
    let gpu = &inventory.gpus[gpu];
    let reasons = health.reasons_of(&device(gpu, Some(&gpu.mig_devices[slice])));
    reasons.iter().map(ToString::to_string).collect()
}

/// Whether the event was taken as something that makes sick.
fn takes(health: &mut Health, event: &HealthEvent, inventory: &Inventory, seconds: u64) -> Option<bool> {
    match health.take_event(event, inventory, &HealthPolicy::default(), at(seconds)) {
        Outcome::Sick(sickness) => Some(sickness.news),
        Outcome::LookAgain | Outcome::Ignored => None,
    }
}

fn looks(health: &mut Health, inventory: &Inventory, seconds: u64) -> Findings {
    health.take_inventory(inventory, &HealthPolicy::default(), at(seconds))
}

fn next(health: &Health, seconds: u64) -> Option<u64> {
    health.next_look(&HealthPolicy::default(), at(seconds)).map(|time| time.as_secs())
}

fn with_trouble(inventory: &Inventory, gpu: usize, trouble: Trouble) -> Inventory {
    let mut inventory = inventory.clone();
    inventory.gpus[gpu].problem = Some(trouble);
    inventory
}

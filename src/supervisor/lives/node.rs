//! The node as it really is: GPUs, MIG mode, layouts, and what a look at the driver finds of them.

use crate::fixtures;
use crate::inventory::{
    FileStamp, Gpu, Inventory, MigDevice, MigMode, Placement, Problem, RecoveryAction, Trouble,
};

pub(super) const GPUS: u32 = 2;
/// Instances per GPU. Each lies in two memory slices of its own, and its UUID is always the same, as the driver derives
/// it from the instance IDs.
pub(super) const SLOTS: u32 = 3;

/// What can lie in a slot: profile, and where it begins in the slot.
pub(super) const KINDS: [(&str, u32); 3] = [("1g.10gb", 0), ("1g.10gb", 1), ("2g.20gb", 0)];

/// One instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    pub(super) kind: (&'static str, u32),
    /// Tells it from an earlier one in its slot.
    pub(super) made: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct SimGpu {
    pub(super) mig: bool,
    pub(super) slots: [Option<Slice>; SLOTS as usize],
    pub(super) lost: bool,
    pub(super) needs_reset: bool,
}

/// The truth.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) gpus: Vec<SimGpu>,
    /// Whether the kernel driver is loaded.
    pub(super) driver: bool,
    made: u64,
}

pub(super) fn gpu_uuid(gpu: u32) -> String {
    format!("GPU-{gpu:08x}-0000-5000-8000-000000000000")
}

fn mig_uuid(gpu: u32, slot: u32) -> String {
    format!("MIG-{gpu:08x}-0000-5000-8000-{slot:012x}")
}

impl Node {
    pub(super) fn new() -> Self {
        Self { gpus: vec![SimGpu::default(); GPUS as usize], driver: true, made: 0 }
    }

    /// Makes an instance of this kind in a slot of a GPU in MIG mode, or empties the slot.
    pub(super) fn set_slot(&mut self, gpu: usize, slot: usize, kind: Option<(&'static str, u32)>) {
        self.made += 1;
        if self.gpus[gpu].mig {
            self.gpus[gpu].slots[slot] = kind.map(|kind| Slice { kind, made: self.made });
        }
    }

    /// Sets MIG mode. All instances go with it.
    pub(super) fn set_mig(&mut self, gpu: usize, mig: bool) {
        self.gpus[gpu].mig = mig;
        self.gpus[gpu].slots = Default::default();
    }

    /// What a look finds.
    pub(super) fn look(&self) -> Inventory {
        let mut inventory = Inventory { driver_version: "580.95.05".to_owned(), ..Inventory::default() };
        for (gpu, index) in self.gpus.iter().zip(0..) {
            if gpu.lost {
                inventory.problems.push(Problem {
                    gpu: index,
                    mig_device: None,
                    uuid: Some(gpu_uuid(index)),
                    reason: Trouble::lost("GPU is lost"),
                    left_out: true,
                });
            } else {
                inventory.gpus.push(found(index, gpu));
            }
        }
        inventory
    }

    /// Whether the capability file of this slice is what it was when the slice was found, as an `Allocate` looks.
    pub(super) fn has(&self, slice: &MigDevice) -> bool {
        let inventory = self.look();
        let mut slices = inventory.gpus.iter().flat_map(|gpu| &gpu.mig_devices);
        slices.any(|there| there.uuid == slice.uuid && there.access_stamp == slice.access_stamp)
    }
}

/// What is found of a GPU that answers.
fn found(index: u32, gpu: &SimGpu) -> Gpu {
    let action = if gpu.needs_reset { RecoveryAction::Reset } else { RecoveryAction::None };
    let devices = gpu.slots.iter().zip(0..).filter_map(|(slice, slot)| {
        let Slice { kind: (profile, start), made } = (*slice)?;
        let stamp = FileStamp { device: 1, inode: made, changed_ns: Some(i128::from(made)) };
        let size = if profile.starts_with('1') { 1 } else { 2 };
        Some(MigDevice {
            uuid: mig_uuid(index, slot),
            placement: Some(Placement { start: 2 * slot + start, size }),
            access_stamp: Some(stamp),
            ..fixtures::mig_device(index, slot, profile)
        })
    });
    Gpu {
        uuid: gpu_uuid(index),
        // One node each, so that a device that has lost its own is seen.
        numa_node: Some(index),
        mig_mode: Some(MigMode { current: gpu.mig, pending: gpu.mig }),
        mig_devices: devices.collect(),
        recovery_action: Some(action),
        ..fixtures::gpu(index)
    }
}

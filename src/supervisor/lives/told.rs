//! What the supervisor has been told of the node.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::inventory::{Gpu, Inventory, RecoveryAction};
use crate::resource::Device;

#[derive(Debug, Default)]
pub(super) struct Told {
    /// What the last look found.
    pub(super) inventory: Option<Inventory>,
    pub(super) no_driver: bool,
    pub(super) on_hold: bool,
    /// Until when an error stands against a whole GPU, by its UUID.
    pub(super) errors: BTreeMap<String, Instant>,
}

impl Told {
    /// Takes a look at the driver; what cannot be read is as it was.
    pub(super) fn take(&mut self, inventory: Inventory) {
        self.on_hold = false;
        self.inventory = Some(match &self.inventory {
            Some(before) => inventory.with_unreadable_from(before),
            None => inventory,
        });
    }

    fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.inventory.iter().flat_map(|inventory| &inventory.gpus)
    }

    /// Whether a GPU is known: what is told of another is not kept until that one comes.
    pub(super) fn has_gpu(&self, uuid: &str) -> bool {
        self.gpus().any(|gpu| gpu.uuid == uuid)
    }

    pub(super) fn has_slice(&self, uuid: &str) -> bool {
        self.gpus().flat_map(|gpu| &gpu.mig_devices).any(|slice| slice.uuid == uuid)
    }

    /// Why a device must not be healthy, if it must not.
    pub(super) fn why_not(&self, device: &Device) -> Option<&'static str> {
        if self.no_driver {
            return Some("there is no driver");
        }
        if self.on_hold {
            return Some("the plugin is on hold");
        }
        let Some(gpu) = self.gpus().find(|gpu| gpu.uuid == device.gpu_uuid) else {
            return Some("no such GPU");
        };
        if gpu.problem.is_some() {
            return Some("its GPU is lost");
        }
        if gpu.recovery_action != Some(RecoveryAction::None) {
            return Some("its GPU needs a reset");
        }
        if self.errors.get(&gpu.uuid).is_some_and(|until| *until > Instant::now()) {
            return Some("its GPU has just had an error");
        }
        let is_there = |slice| gpu.mig_devices.iter().any(|there| there.is_same(slice));
        (!device.mig.as_ref().is_none_or(is_there)).then_some("the driver does not have it")
    }
}

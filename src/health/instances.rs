//! Which instances there are and have just been, so that an event about one that has gone is not taken for another's.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{HealthEvent, Moment};
use crate::inventory::Gpu;

/// How long after an instance was found to have gone an event may still be about it.
const REMEMBERED: Duration = Duration::from_mins(1);

/// By GPU, GPU instance and compute instance: which look was the first to miss it, where one has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Instances(BTreeMap<(String, u32, u32), Option<Moment>>);

impl Instances {
    /// A look that began at `began` has read this GPU.
    pub(super) fn look(&mut self, gpu: &Gpu, began: Moment) {
        for (_, missed) in self.0.iter_mut().filter(|((uuid, ..), _)| *uuid == gpu.uuid) {
            missed.get_or_insert(began);
        }
        for mig in &gpu.mig_devices {
            self.0.insert((gpu.uuid.clone(), mig.gpu_instance, mig.compute_instance), None);
        }
    }

    /// Whether what `event` names, and nobody has now, was there until a moment before it was heard.
    pub(super) fn had(&self, event: &HealthEvent, heard: Moment) -> bool {
        self.0.iter().any(|((uuid, gi, ci), missed)| {
            *uuid == event.gpu_uuid
                && event.gpu_instance == Some(*gi)
                && event.compute_instance.is_none_or(|compute| compute == *ci)
                && missed.is_none_or(|missed| heard.since(missed) < REMEMBERED)
        })
    }

    /// Drops what no event is about that was heard at `heard` or later.
    pub(super) fn prune(&mut self, heard: Moment) {
        self.0.retain(|_, missed| missed.is_none_or(|missed| heard.since(missed) < REMEMBERED));
    }
}

//! One GPU with its slices: what stands against each, and what a look at the driver makes of it.

use std::mem;
use std::time::Duration;

use super::record::Record;
use super::waiting::Waiting;
use super::{HealthEvent, Moment, Recovered};
use crate::inventory::{Gpu, Inventory, MigDevice, RecoveryAction, TroubleKind};

/// One GPU and its slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GpuHealth {
    /// What stands against the GPU as a whole, and so against every slice of it.
    pub(super) whole: Option<Record>,
    /// What stands against single slices.
    pub(super) slices: Vec<Slice>,
    /// What the driver said about the GPU last.
    pub(super) says: Says,
    /// Whether it had MIG devices when last seen.
    pub(super) had_slices: bool,
}

/// One slice that is or was sick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    /// What it was when it fell sick.
    pub(super) mig: MigDevice,
    pub(super) record: Record,
    /// The events after which no look has begun that saw the slice. Should it be gone, they may be about another that
    /// was made in its place.
    unseen: Waiting,
}

impl Slice {
    /// An event about it; whether it adds a reason. What was heard earlier may count as evidence of now.
    pub(super) fn event(&mut self, event: &HealthEvent, heard: Moment, now: Moment) -> bool {
        let event = HealthEvent { compute_instance: Some(self.mig.compute_instance), ..event.clone() };
        self.unseen.keep(&event, heard);
        self.record.event(event.kind, event.at, now)
    }
}

/// What the driver says about a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// The GPU is not there, or cannot be read.
    Nothing,
    /// It needs something.
    NeedsWork,
    /// It needs nothing.
    NeedsNothing,
    /// The driver is too old to tell.
    DoesNotTell,
}

impl Says {
    pub(super) fn about(gpu: &Gpu) -> Self {
        match gpu.recovery_action {
            _ if gpu.problem.is_some() => Self::Nothing,
            None => Self::DoesNotTell,
            Some(action) if concerns_use(gpu, action) => Self::NeedsWork,
            Some(_) => Self::NeedsNothing,
        }
    }

    /// Whether the driver, or a reset where it says nothing, allows `record` to end.
    pub(super) fn allows(self, record: &Record) -> bool {
        match self {
            Self::NeedsNothing => true,
            Self::DoesNotTell => record.reset_since(),
            Self::Nothing | Self::NeedsWork => false,
        }
    }
}

/// Whether a GPU that needs this can be given to nobody new. A GPU without IMEX works, but for memory of other nodes;
/// and a GPU in MIG mode has no peer-to-peer traffic that could be ended.
fn concerns_use(gpu: &Gpu, action: RecoveryAction) -> bool {
    match action {
        RecoveryAction::None | RecoveryAction::RecoverImex => false,
        RecoveryAction::DrainP2p => !gpu.mig_enabled(),
        RecoveryAction::Reset
        | RecoveryAction::Reboot
        | RecoveryAction::DrainAndReset
        | RecoveryAction::Other(_) => true,
    }
}

/// What the driver asks for without any of the GPU's devices being unhealthy for it, as a sentence.
pub fn caution(gpu: &Gpu) -> Option<String> {
    let action = gpu.recovery_action.filter(|action| gpu.problem.is_none() && !concerns_use(gpu, *action))?;
    let why = match action {
        RecoveryAction::None => return None,
        RecoveryAction::RecoverImex => "without which GPUs can be used",
        _ => "which MIG devices do not have",
    };
    Some(format!("the driver asks for {action}, {why}"))
}

/// The same for all GPUs. What the driver asks of the node every GPU shows, so that it is said once.
pub fn cautions(inventory: &Inventory) -> Vec<String> {
    let mut of_gpus = Vec::new();
    let mut of_node = None;
    for gpu in &inventory.gpus {
        match gpu.recovery_action {
            Some(RecoveryAction::RecoverImex) => of_node = of_node.or_else(|| caution(gpu)),
            _ => of_gpus.extend(caution(gpu).map(|caution| format!("{}: {caution}", gpu_name(gpu)))),
        }
    }
    of_gpus.extend(of_node);
    of_gpus
}

impl GpuHealth {
    /// What the GPU was found to need, where that still stands.
    pub(super) fn asks(&self) -> Option<RecoveryAction> {
        self.whole.as_ref().and_then(Record::asked)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.whole.iter().chain(self.slices.iter().map(|slice| &slice.record))
    }

    pub(super) fn records_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.whole.iter_mut().chain(self.slices.iter_mut().map(|slice| &mut slice.record))
    }

    pub(super) fn slice(&mut self, mig: &MigDevice) -> &mut Slice {
        let at = self.slices.iter().position(|slice| slice.mig.is_same(mig)).unwrap_or_else(|| {
            let (record, unseen) = (Record::default(), Waiting::default());
            self.slices.push(Slice { mig: mig.clone(), record, unseen });
            self.slices.len() - 1
        });
        &mut self.slices[at]
    }

    /// The kernel driver has gone, and all instances with it.
    pub(super) fn driver_unloaded(&mut self) {
        self.records_mut().for_each(Record::driver_unloaded);
        self.slices.iter_mut().for_each(|slice| slice.unseen = Waiting::default());
    }

    /// A look that began at `began` shows these slices: what was heard before is about no later one.
    pub(super) fn see(&mut self, gpu: &Gpu, began: Moment) {
        for mig in gpu.mig_devices.iter().filter(|mig| gpu.problem.is_none() && mig.problem.is_none()) {
            if let Some(slice) = self.slices.iter_mut().find(|slice| slice.mig.is_same(mig)) {
                slice.unseen.drop_before(began);
            }
        }
    }

    /// A look that has the GPU, read or as it was known. Gives the events that may be about what is there now, and when
    /// each was heard.
    pub(super) fn look(
        &mut self,
        gpu: &Gpu,
        inventory: &Inventory,
        began: Moment,
    ) -> Vec<(HealthEvent, Moment)> {
        self.says = Says::about(gpu);
        if let Some(problem) = &gpu.problem {
            if problem.kind == TroubleKind::Lost {
                self.records_mut().for_each(|record| record.was_reset(began));
            }
            return Vec::new();
        }
        let all_read = inventory.knows_all_slices_of(gpu);
        let is_here = |slice: &Slice| gpu.mig_devices.iter().any(|mig| mig.is_same(&slice.mig));
        let (here, gone): (Vec<_>, Vec<_>) =
            mem::take(&mut self.slices).into_iter().partition(|slice| !all_read || is_here(slice));
        self.slices = here;
        let empty = gpu.mig_devices.is_empty() && gpu.empty_gpu_instances.is_empty();
        if self.had_slices && all_read && empty && gpu.mig_enabled() {
            // A reset takes all instances with it; and where somebody took them, nothing that ran is left either.
            self.records_mut().for_each(|record| record.was_reset(began));
        }
        self.had_slices = !gpu.mig_devices.is_empty();
        let unseen = gone.into_iter().flat_map(|mut slice| slice.unseen.take());
        unseen.map(|kept| (kept.event, kept.last)).collect()
    }

    /// A look that does not have the GPU. Where everything was read, it has gone, and cannot come back as it was.
    pub(super) fn absent(&mut self, all_read: bool, began: Moment) {
        self.says = Says::Nothing;
        if all_read {
            self.records_mut().for_each(|record| record.was_reset(began));
        }
    }

    pub(super) fn recover(
        &mut self,
        gpu: &Gpu,
        quiet: Duration,
        began: Moment,
        recovered: &mut Vec<Recovered>,
    ) {
        let says = self.says;
        let may = |record: &Record| record.is_sick() && says.allows(record) && record.may_end(quiet, began);
        if let Some(record) = self.whole.as_mut().filter(|record| may(record)) {
            recovered.push(Recovered { what: gpu_name(gpu), reasons: record.recover(began) });
        }
        for mig in gpu.mig_devices.iter().filter(|mig| mig.problem.is_none()) {
            let slice = self.slices.iter_mut().find(|slice| slice.mig.is_same(mig));
            if let Some(slice) = slice.filter(|slice| may(&slice.record)) {
                recovered
                    .push(Recovered { what: slice_name(gpu, mig), reasons: slice.record.recover(began) });
            }
        }
    }

    /// Drops what is forgiven; whether anything is left.
    pub(super) fn prune(&mut self, now: Moment) -> bool {
        self.whole.take_if(|record| record.is_forgiven(now));
        self.slices.retain(|slice| !slice.record.is_forgiven(now));
        self.whole.is_some() || !self.slices.is_empty()
    }
}

pub(super) fn gpu_name(gpu: &Gpu) -> String {
    format!("GPU {} ({})", gpu.index, gpu.uuid)
}

pub(super) fn gpu_and_slices(gpu: &Gpu) -> String {
    match gpu.mig_devices.len() {
        0 => gpu_name(gpu),
        1 => format!("{} and its MIG device", gpu_name(gpu)),
        count => format!("{} and its {count} MIG devices", gpu_name(gpu)),
    }
}

/// What a reboot concerns.
pub(super) fn node_with(gpus: &[&Gpu]) -> String {
    let names = gpus.iter().map(|gpu| gpu_name(gpu)).collect::<Vec<_>>().join(", ");
    let whose = if gpus.len() == 1 { "its" } else { "their" };
    let with_slices = gpus.iter().any(|gpu| !gpu.mig_devices.is_empty());
    let slices = if with_slices { format!(" and all {whose} MIG devices") } else { String::new() };
    format!("the node with {names}{slices}")
}

pub(super) fn slice_name(gpu: &Gpu, mig: &MigDevice) -> String {
    format!("MIG device {}:{} ({})", gpu.index, mig.index, mig.uuid)
}

//! The reducer: events and looks at the driver in, what stands against each device out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::gpu::{GpuHealth, Says, Slice, gpu_and_slices, node_with, slice_name};
use super::instances::Instances;
use super::record::Record;
use super::waiting::{Kept, Waiting};
use super::{EventKind, HealthEvent, HealthPolicy, Moment, Recovery};
use crate::inventory::{Gpu, HiddenSlice, Inventory, MigDevice, RecoveryAction, Trouble, TroubleKind};
use crate::resource::{Device, Reason};

/// What stands against which GPU and slice. It holds no more than those that are sick or were within the hour, and the
/// IDs of the instances that there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// By UUID.
    gpus: BTreeMap<String, GpuHealth>,
    /// Events about instances that no inventory has shown yet.
    waiting: Waiting,
    /// The instances that there are or have just been.
    instances: Instances,
    /// When the last look at the driver began.
    looked: Moment,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It does not count.
    Ignored,
    /// Only another look at the driver tells what it means: something about the GPU has changed, or it is about an
    /// instance that is not known yet, and is kept until that look.
    LookAgain,
    /// It made something sick, or keeps it so.
    Sick(Sickness),
}

/// Something that is sick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sickness {
    /// E.g. `MIG device 0:3 (MIG-…)` or `GPU 0 (GPU-…) and its 7 MIG devices`.
    pub what: String,
    /// Why.
    pub reason: Reason,
    /// Whether it adds a reason to any device; otherwise it only lasts longer.
    pub news: bool,
}

/// Something that is well again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// As in [`Sickness`]; a GPU comes without its MIG devices, since each of them has to get well by itself.
    pub what: String,
    /// What no longer stands against it.
    pub reasons: Vec<Reason>,
}

/// What a look at the driver changed, for logs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// What is sick now for a reason that did not stand before.
    pub sick: Vec<Sickness>,
    /// What is well again.
    pub recovered: Vec<Recovered>,
    /// Events about instances that this look did not find either, and that nobody knows of: their GPUs were marked.
    pub of_gpu: Vec<HealthEvent>,
    /// Events about what has just gone, or about a GPU that is not there. Nothing was marked for them.
    pub unplaced: Vec<HealthEvent>,
    /// How many more events of that kind were forgotten since the last look, because there were too many or because
    /// the driver went.
    pub forgotten: usize,
}

impl Health {
    /// Takes what the driver told by itself. `inventory` says which devices there are.
    pub fn take_event(
        &mut self,
        event: &HealthEvent,
        inventory: &Inventory,
        policy: &HealthPolicy,
        now: Moment,
    ) -> Outcome {
        if matches!(event.kind, EventKind::RecoveryAction | EventKind::MigConfigChange) {
            return Outcome::LookAgain;
        }
        if !policy.checks.counts(event.kind) {
            return Outcome::Ignored;
        }
        if let Some(sickness) = self.mark(event, inventory, now, now) {
            return Outcome::Sick(sickness);
        }
        self.waiting.keep(event, now);
        Outcome::LookAgain
    }

    /// Takes a look at the driver that began at `began`, so that it says nothing of what happened after that. GPUs and
    /// slices that could not be read this time are in it as they were known, with their problem
    /// ([`Inventory::with_unreadable_from`]).
    pub fn take_inventory(
        &mut self,
        inventory: &Inventory,
        policy: &HealthPolicy,
        began: Moment,
    ) -> Findings {
        self.looked = self.looked.max(began);
        let mut findings =
            Findings { sick: self.take_states(inventory, policy, began), ..Findings::default() };
        let all_read = !inventory.problems.iter().any(|problem| {
            problem.left_out
                && problem.mig_device.is_none()
                && inventory.gpus.iter().all(|gpu| gpu.index != problem.gpu)
        });
        for (uuid, health) in &mut self.gpus {
            match inventory.gpus.iter().find(|gpu| gpu.uuid == *uuid) {
                Some(gpu) => {
                    for (event, heard) in health.look(gpu, inventory, began) {
                        self.waiting.keep(&event, heard);
                    }
                }
                None => health.absent(all_read, began),
            }
        }
        if let Recovery::Auto { quiet } = policy.recovery {
            for gpu in &inventory.gpus {
                if let Some(health) = self.gpus.get_mut(&gpu.uuid) {
                    health.recover(gpu, quiet, began, &mut findings.recovered);
                }
            }
        }
        self.gpus.retain(|_, health| health.prune(began));
        for gpu in inventory.gpus.iter().filter(|gpu| gpu.problem.is_none()) {
            self.instances.look(gpu, began);
        }
        self.place_waiting(inventory, began, &mut findings);
        self.instances.prune(self.waiting.oldest().unwrap_or(began).min(began));
        for gpu in &inventory.gpus {
            if let Some(health) = self.gpus.get_mut(&gpu.uuid) {
                health.see(gpu, began);
            }
        }
        findings
    }

    /// The driver as a whole cannot be used, so that nothing is known of any GPU. With `unloaded` the kernel driver
    /// itself has gone, or another one is found: when it comes back, every GPU has been reset. Without, a call may have failed
    /// once, and nothing may have happened to any GPU.
    pub fn driver_gone(&mut self, unloaded: bool) {
        for health in self.gpus.values_mut() {
            health.says = Says::Nothing;
        }
        if unloaded {
            self.waiting.forget();
            self.gpus.values_mut().for_each(GpuHealth::driver_unloaded);
        }
    }

    /// What stands against a device: a MIG device's own reasons and its GPU's; a whole GPU's own and, in MIG mode,
    /// those of its slices. Which slice it was is in the [`Outcome`], for the log.
    ///
    /// The reasons stay as they are while an illness lasts, also in the quiet period after the cause has ended. A GPU
    /// that is lost or cannot be read has the same reason in the inventory.
    pub fn reasons_of(&self, device: &Device) -> Vec<Reason> {
        let Some(health) = self.gpus.get(&device.gpu_uuid) else { return Vec::new() };
        let mut reasons = health.whole.as_ref().map(Record::reasons).unwrap_or_default();
        for Slice { mig: slice, record, .. } in &health.slices {
            if device.mig.as_ref().is_none_or(|mig| mig.is_same(slice)) {
                // An event that was about several slices is one reason.
                let more = record.reasons().into_iter().filter(|reason| !reasons.contains(reason));
                let more: Vec<_> = more.collect();
                reasons.extend(more);
            }
        }
        reasons
    }

    /// How long it is from `now` until a look at the driver could make something well. `None`: nothing waits for that,
    /// because nothing is sick, or because what is sick needs more than time, which the driver or the next regular
    /// look will tell.
    pub fn next_look(&self, policy: &HealthPolicy, now: Moment) -> Option<Duration> {
        let Recovery::Auto { quiet } = policy.recovery else { return None };
        let waits = |health: &GpuHealth, record: &Record| {
            // What could not be read just now does not get readable by being looked at more often.
            record.is_sick()
                && health.says.allows(record)
                && !record.may_end(quiet, self.looked)
                && !record.was_unreadable(self.looked)
        };
        let records =
            self.gpus.values().flat_map(|health| health.records().map(move |record| (health, record)));
        records
            .filter(|(health, record)| waits(health, record))
            .map(|(_, record)| record.due(quiet).since(now))
            .min()
    }

    /// How many GPUs, slices and events it remembers.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.waiting.len() + self.gpus.values().map(|health| health.records().count()).sum::<usize>()
    }

    /// What the state of each GPU says by itself. A reboot, which every GPU shows that can be read, is one finding.
    fn take_states(&mut self, inventory: &Inventory, policy: &HealthPolicy, began: Moment) -> Vec<Sickness> {
        let is_reboot = |action| action == RecoveryAction::Reboot;
        let known = self.gpus.values().any(|gpu| gpu.asks().is_some_and(is_reboot));
        let mut found = Vec::new();
        let mut to_reboot = Vec::new();
        let asking_counts = policy.checks.counts(EventKind::RecoveryAction);
        // Without recovery, what could not be read once would be lost for good.
        let counts = |trouble: &&Trouble| {
            trouble.kind == TroubleKind::Lost || matches!(policy.recovery, Recovery::Auto { .. })
        };
        for gpu in &inventory.gpus {
            // What a GPU needed when it could last be read is no evidence of today.
            let asks = gpu.recovery_action.filter(|_| asking_counts && Says::about(gpu) == Says::NeedsWork);
            if let Some(trouble) = gpu.problem.as_ref().filter(counts)
                && self.whole(gpu).trouble(trouble, began)
            {
                found.push((gpu_and_slices(gpu), Reason::from(trouble.clone())));
            }
            // Nor is what a slice was then.
            for mig in gpu.mig_devices.iter().filter(|_| gpu.problem.is_none()) {
                if let Some(trouble) = mig.problem.as_ref().filter(counts)
                    && self.gpu(gpu).slice(mig).record.trouble(trouble, began)
                {
                    found.push((slice_name(gpu, mig), Reason::from(trouble.clone())));
                }
            }
            if let Some(action) = asks
                && self.whole(gpu).asks(action, began)
            {
                match action {
                    RecoveryAction::Reboot => to_reboot.push(gpu),
                    _ => found.push((gpu_and_slices(gpu), Reason::RecoveryAction(action))),
                }
            }
        }
        let reason = Reason::RecoveryAction(RecoveryAction::Reboot);
        let reboot = (!known && !to_reboot.is_empty()).then(|| (node_with(&to_reboot), reason));
        let sickness = |(what, reason)| Sickness { what, reason, news: true };
        reboot.into_iter().chain(found).map(sickness).collect()
    }

    /// Marks what `event` is about; `None` where the inventory does not have it. It counts as evidence of `now`.
    fn mark(
        &mut self,
        event: &HealthEvent,
        inventory: &Inventory,
        heard: Moment,
        now: Moment,
    ) -> Option<Sickness> {
        let gpu = inventory.gpus.iter().find(|gpu| gpu.uuid == event.gpu_uuid)?;
        let Some(gpu_instance) = event.gpu_instance.filter(|_| !event.kind.is_of_whole_gpu()) else {
            return Some(self.mark_whole(event, gpu, now));
        };
        let named = |mig: &&MigDevice| {
            mig.gpu_instance == gpu_instance
                && event.compute_instance.is_none_or(|compute| compute == mig.compute_instance)
        };
        let named: Vec<_> = gpu.mig_devices.iter().filter(named).collect();
        if named.is_empty() {
            return None;
        }
        let health = self.gpu(gpu);
        let mut news = false;
        for mig in &named {
            news |= health.slice(mig).event(event, heard, now);
        }
        let what = named.iter().map(|mig| slice_name(gpu, mig)).collect::<Vec<_>>().join(", ");
        Some(Sickness { what, reason: Reason::Event(event.kind, event.at), news })
    }

    fn mark_whole(&mut self, event: &HealthEvent, gpu: &Gpu, now: Moment) -> Sickness {
        let news = self.whole(gpu).event(event.kind, event.at, now);
        Sickness { what: gpu_and_slices(gpu), reason: Reason::Event(event.kind, event.at), news }
    }

    /// Tries what was kept once more.
    fn place_waiting(&mut self, inventory: &Inventory, began: Moment, findings: &mut Findings) {
        findings.forgotten = self.waiting.take_forgotten();
        for kept in self.waiting.take() {
            let Kept { event, first, last } = &kept;
            // It counts as evidence of now: no device gets well by the very look that first shows it.
            let now = (*last).max(began);
            if let Some(sickness) = self.mark(event, inventory, *last, now) {
                findings.sick.extend(Some(sickness).filter(|sickness| sickness.news));
                continue;
            }
            let gpu = inventory.gpus.iter().find(|gpu| gpu.uuid == event.gpu_uuid);
            let hidden = gpu.and_then(|gpu| gpu.hidden.iter().find(|slice| names(event, slice)));
            let unread = gpu.is_some_and(|gpu| Says::about(gpu) == Says::Nothing);
            if began <= *first || unread || hidden.is_some_and(|slice| !slice.settled) {
                self.waiting.put(kept);
                continue;
            }
            // An instance that NVML does not list, or that has no compute instance, is nobody's device.
            let is_empty = |gpu: &Gpu| {
                hidden.is_some() || event.gpu_instance.is_some_and(|gi| gpu.empty_gpu_instances.contains(&gi))
            };
            let heard = if began > *last { *last } else { *first };
            match gpu {
                Some(gpu) if !self.instances.had(event, heard) && !is_empty(gpu) => {
                    let sickness = self.mark_whole(event, gpu, now);
                    findings.sick.extend(Some(sickness).filter(|sickness| sickness.news));
                    findings.of_gpu.push(event.clone());
                }
                _ => findings.unplaced.push(event.clone()),
            }
            if began <= *last {
                // What came after that may be about an instance that was made meanwhile.
                self.waiting.put(Kept { first: *last, ..kept });
            }
        }
    }

    fn gpu(&mut self, gpu: &Gpu) -> &mut GpuHealth {
        let health = self.gpus.entry(gpu.uuid.clone()).or_insert_with(|| GpuHealth {
            whole: None,
            slices: Vec::new(),
            says: Says::about(gpu),
            had_slices: false,
        });
        health.had_slices |= !gpu.mig_devices.is_empty();
        health
    }

    fn whole(&mut self, gpu: &Gpu) -> &mut Record {
        self.gpu(gpu).whole.get_or_insert_default()
    }
}

/// Whether the event is about that slice.
fn names(event: &HealthEvent, slice: &HiddenSlice) -> bool {
    event.gpu_instance == Some(slice.gpu_instance)
        && event.compute_instance.is_none_or(|compute| compute == slice.compute_instance)
}

//! What people are told in the log about the node, each thing once and again when it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::health::{Findings, HealthEvent, HealthPolicy, Recovered, Sickness, rule_for};
use crate::inventory::Inventory;
use crate::resource::{MigStrategy, ResourceSet};

/// The least time between two lines about events that make nothing sick.
const IGNORED_PAUSE: Duration = Duration::from_secs(1);

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Told {
    rules: Vec<String>,
    sees_instances: Option<bool>,
    nothing_to_offer: bool,
    ignored: Option<Instant>,
    /// Events about unknown instances that nobody was told of, and when somebody last was.
    unplaced: (usize, Option<Instant>),
}

impl Told {
    /// How devices get well, and how well errors are attributed.
    pub(super) fn of_health(&mut self, inventory: &Inventory, policy: &HealthPolicy) {
        let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for gpu in &inventory.gpus {
            rules.entry(rule_for(gpu, policy).to_string()).or_default().push(gpu.index.to_string());
        }
        let rules: Vec<_> =
            rules.into_iter().map(|(rule, gpus)| format!("GPU {}: {rule}", gpus.join(", "))).collect();
        for line in rules.iter().filter(|line| !self.rules.contains(line)) {
            info!("{line}");
        }
        self.rules = rules;
        match inventory.sees_instances.filter(|_| inventory.sees_instances != self.sees_instances) {
            None => return,
            Some(true) => info!("errors are attributed to single MIG devices"),
            Some(false) => warn!(
                "errors are attributed to whole GPUs only, since the driver does not let this process ask for single \
                 instances: that takes CAP_SYS_ADMIN, or access to its capability mig/monitor \
                 (/dev/nvidia-caps/nvidia-cap2)"
            ),
        }
        self.sees_instances = inventory.sees_instances;
    }

    /// What the strategy makes of the node, where it was another thing before.
    pub(super) fn of_offer(&mut self, old: &ResourceSet, new: &ResourceSet, strategy: MigStrategy) {
        for withheld in new.withheld.iter().filter(|withheld| !old.withheld.contains(withheld)) {
            warn!(index = withheld.index, device = %withheld.id, reason = withheld.reason, "withheld");
        }
        for warning in new.warnings.iter().filter(|warning| !old.warnings.contains(warning)) {
            warn!("{warning}");
        }
        let nothing = new.resources.is_empty();
        if nothing && !self.nothing_to_offer {
            warn!(%strategy, "this node has nothing to offer under this strategy");
        }
        self.nothing_to_offer = nothing;
    }

    /// Events that named instances which the driver does not have.
    pub(super) fn of_unplaced(&mut self, findings: &Findings) {
        let (untold, last) = &mut self.unplaced;
        *untold += findings.unplaced.len() + findings.forgotten;
        let quiet = last.is_none_or(|last| last.elapsed() >= IGNORED_PAUSE);
        if let (Some(event), true) = (findings.unplaced.last(), quiet) {
            let HealthEvent { gpu_uuid: gpu, kind, gpu_instance: gi, compute_instance: ci, .. } = event;
            let events = std::mem::take(untold);
            *last = Some(Instant::now());
            warn!(
                gpu, %kind, gi, ci, events,
                "an event named an instance that the driver does not have; nothing follows from it"
            );
        }
    }

    /// An event that does not count.
    pub(super) fn of_ignored(&mut self, event: &HealthEvent) {
        if self.ignored.is_none_or(|told| told.elapsed() >= IGNORED_PAUSE) {
            self.ignored = Some(Instant::now());
            let HealthEvent { gpu_uuid: gpu, kind, gpu_instance: gi, compute_instance: ci, .. } = event;
            info!(gpu, %kind, gi, ci, "ignored");
        }
    }
}

/// Something that is sick for another reason than before.
pub(super) fn sickness(Sickness { what, reason, .. }: &Sickness) {
    warn!(what, %reason, "sick");
}

/// What a look at the driver has changed in the health of devices.
pub(super) fn findings(findings: &Findings) {
    findings.sick.iter().filter(|sickness| sickness.news).for_each(sickness);
    for Recovered { what, reasons } in &findings.recovered {
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        info!(what, was = reasons.join("; "), "well again");
    }
}

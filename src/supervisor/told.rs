//! What people are told in the log about the node, each thing once and again when it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::health::{
    Findings, HealthEvent, HealthPolicy, NOT_HEARD, Recovered, Sickness, cautions, has_instances, is_heard,
    rule_for,
};
use crate::inventory::{EventRight, Inventory};
use crate::resource::{MigStrategy, ResourceSet};

/// The least time between two lines about events that make nothing sick.
const IGNORED_PAUSE: Duration = Duration::from_secs(1);

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Told {
    rules: Vec<String>,
    sees_instances: Option<bool>,
    /// What was said of GPUs with instances: the right to hear of them, in a word.
    heard: &'static str,
    nothing_to_offer: bool,
    ignored: Option<Instant>,
    cautions: Vec<String>,
    /// Events about unknown instances that were taken for their GPUs'.
    of_gpu: Unsaid,
    /// The same of which nothing follows.
    unplaced: Unsaid,
}

/// Events that no line was written of, and when one last was.
#[derive(Debug, Default)]
struct Unsaid {
    events: usize,
    last: Option<Instant>,
}

impl Unsaid {
    /// Takes more of them; how many the line is about that is due now, if one is.
    fn take(&mut self, more: usize) -> Option<usize> {
        self.events += more;
        let due = self.events > 0 && self.last.is_none_or(|last| last.elapsed() >= IGNORED_PAUSE);
        due.then(|| {
            self.last = Some(Instant::now());
            std::mem::take(&mut self.events)
        })
    }
}

impl Told {
    /// How devices get well, and of which GPUs errors are heard.
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
        if inventory.sees_instances == Some(false) && self.sees_instances != Some(false) {
            info!(
                "the driver does not tell this process where MIG devices lie: that takes CAP_SYS_ADMIN, or access to its \
                 capability mig/config (/dev/nvidia-caps/nvidia-cap1); nothing else depends on it"
            );
        }
        self.sees_instances = inventory.sees_instances.or(self.sees_instances);
        self.of_hearing(inventory, policy);
    }

    /// Whether errors of GPUs that have instances are heard, once there are such.
    fn of_hearing(&mut self, inventory: &Inventory, policy: &HealthPolicy) {
        let right = inventory.event_right;
        let with_instances: Vec<_> =
            inventory.gpus.iter().filter(|gpu| has_instances(gpu, inventory)).collect();
        let word = match right {
            Some(EventRight::Admin) => "admin",
            Some(EventRight::Monitor) => "monitor",
            Some(EventRight::Nothing) => "none",
            None => "unknown",
        };
        if with_instances.is_empty() || self.heard == word {
            return;
        }
        self.heard = word;
        let unheard = with_instances.iter().filter(|gpu| is_heard(gpu, inventory) == Some(false));
        let gpus = unheard.map(|gpu| gpu.index.to_string()).collect::<Vec<_>>().join(", ");
        match right {
            Some(EventRight::Admin | EventRight::Monitor) => {
                info!(right = word, "errors are heard, and attributed to single MIG devices");
            }
            // Nobody wants to hear them.
            Some(EventRight::Nothing) if policy.checks.none() => {
                info!(gpus, "no errors are heard on GPUs with slices: {NOT_HEARD}");
            }
            Some(EventRight::Nothing) => warn!(gpus, "no errors are heard on GPUs with slices: {NOT_HEARD}"),
            None => warn!(
                "whether errors are heard on GPUs with slices is not known: /proc/self/status does not tell what this \
                 process may do"
            ),
        }
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
    pub(super) fn of_unknown_instances(&mut self, findings: &Findings) {
        if let Some(event) = findings.of_gpu.last()
            && let Some(events) = self.of_gpu.take(findings.of_gpu.len())
        {
            let HealthEvent { gpu_uuid: gpu, kind, gpu_instance: gi, compute_instance: ci, .. } = event;
            warn!(gpu, %kind, gi, ci, events, "an event named an instance that does not exist: it is taken for the whole GPU's");
        }
        self.unplaced.events += findings.forgotten;
        if let Some(event) = findings.unplaced.last()
            && let Some(events) = self.unplaced.take(findings.unplaced.len())
        {
            let HealthEvent { gpu_uuid: gpu, kind, gpu_instance: gi, compute_instance: ci, .. } = event;
            warn!(gpu, %kind, gi, ci, events, "an event named an instance or a GPU that has gone; nothing follows from it");
        }
    }

    /// What the driver asks for without any device being unhealthy for it.
    pub(super) fn of_cautions(&mut self, inventory: &Inventory) {
        let cautions = cautions(inventory);
        for caution in cautions.iter().filter(|caution| !self.cautions.contains(caution)) {
            warn!("{caution}");
        }
        self.cautions = cautions;
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

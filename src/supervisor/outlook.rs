//! What should be offered: from what the driver says, the health of devices, and the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::Policy;
use super::told::{self, Told};
use crate::cdi::Cdi;
use crate::health::{Health, HealthEvent, Moment, Outcome, Rule, rule_for};
use crate::inventory::Inventory;
use crate::resource::{DeviceId, Earlier, Reason, ResourceSet, resolve_after};

/// How often the CDI specification is looked after, and how soon one that is not complete or could not be written:
/// what it consists of is in places that the driver's thread does not look at.
const CDI_LOOK: Duration = Duration::from_secs(10);
const CDI_AGAIN: Duration = Duration::from_secs(5);

/// The least time between two looks at the driver that are meant to find something well again.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What is known of the node and of its devices' health. It outlives a configuration.
#[derive(Debug)]
pub struct Knowledge {
    /// When time began for [`Health`].
    epoch: Instant,
    inventory: Option<Arc<Inventory>>,
    health: Health,
    earlier: Earlier,
}

impl Default for Knowledge {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            inventory: None,
            health: Health::default(),
            earlier: Earlier::default(),
        }
    }
}

/// Why the driver is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// It is.
    No,
    /// SIGUSR1 came.
    Yes,
    /// SIGUSR2 came then, and no look that began after it has ended.
    Ending(Instant),
}

/// All that follows from it for what should be offered.
pub(super) struct Outlook {
    policy: Policy,
    cdi: Cdi,
    by_cdi: bool,
    /// When the specification is looked after again, where there is one.
    cdi_again: Option<Instant>,
    known: Knowledge,
    /// Why there is no driver, while there is none.
    no_driver: Option<String>,
    /// Why nothing can be asked of a driver that is there, while that is so.
    no_answer: Option<String>,
    hold: Hold,
    /// Whether the session has said anything: what is known from another one may not be true any more.
    heard: bool,
    /// When the driver was last asked whether something is well again.
    looked: Option<Instant>,
    /// What the strategy makes of the node.
    resolved: ResourceSet,
    /// The same, with what stands against devices.
    wanted: ResourceSet,
    /// Whether something can be shown that was not shown.
    changed: bool,
    told: Told,
}

impl Outlook {
    pub(super) fn new(policy: Policy, cdi: Cdi, by_cdi: bool, known: Knowledge) -> Self {
        let mut outlook = Self {
            policy,
            cdi,
            by_cdi,
            cdi_again: None,
            known,
            no_driver: None,
            no_answer: None,
            hold: Hold::No,
            heard: false,
            looked: None,
            resolved: ResourceSet::default(),
            wanted: ResourceSet::default(),
            changed: true,
            told: Told::default(),
        };
        outlook.resolve();
        outlook
    }

    pub(super) fn into_knowledge(self) -> Knowledge {
        self.known
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn wanted(&self) -> &ResourceSet {
        &self.wanted
    }

    pub(super) fn inventory(&self) -> Option<Arc<Inventory>> {
        self.known.inventory.clone()
    }

    pub(super) fn no_driver(&self) -> Option<&str> {
        self.no_driver.as_deref()
    }

    pub(super) fn no_answer(&self) -> Option<&str> {
        self.no_answer.as_deref()
    }

    /// Whether the driver was there when last heard of; by this session, since another one may have ended long ago.
    pub(super) fn has_driver(&self) -> bool {
        self.heard && self.is_known() && self.no_driver.is_none()
    }

    pub(super) fn is_on_hold(&self) -> bool {
        self.hold != Hold::No
    }

    /// Whether something has changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// How each GPU's devices get well.
    pub(super) fn recovery_rules(&self) -> BTreeMap<String, Rule> {
        let gpus = self.known.inventory.iter().flat_map(|inventory| &inventory.gpus);
        gpus.map(|gpu| (gpu.uuid.clone(), rule_for(gpu, &self.policy.health))).collect()
    }

    /// Whether it is known how things are with the driver at the moment.
    pub(super) fn is_heard(&self) -> bool {
        self.heard
    }

    /// Whether the driver has ever said what there is.
    pub(super) fn is_known(&self) -> bool {
        self.known.inventory.is_some()
    }

    /// Takes another configuration.
    pub(super) fn set_policy(&mut self, policy: Policy, by_cdi: bool) {
        self.policy = policy;
        self.by_cdi = by_cdi;
        self.resolve();
    }

    /// Takes a look at the driver that began at `began`.
    pub(super) fn take_inventory(&mut self, inventory: Inventory, began: Instant) {
        self.heard = true;
        let previous = self.known.inventory.take();
        let first = previous.is_none();
        if previous.as_ref().is_some_and(|previous| !previous.is_of_same_driver(&inventory)) {
            info!(driver = inventory.driver_version, "another kernel driver: every GPU has been reset");
            self.known.health.driver_gone(true);
        }
        let inventory = match &previous {
            Some(previous) => inventory.with_unreadable_from(previous),
            None => inventory,
        };
        let looked = began;
        let began = Moment(began.saturating_duration_since(self.known.epoch));
        let findings = self.known.health.take_inventory(&inventory, &self.policy.health, began);
        told::findings(&findings);
        self.told.of_unknown_instances(&findings);
        self.told.of_cautions(&inventory);
        let changed = previous.as_deref() != Some(&inventory) || self.no_driver.is_some();
        self.known.inventory = Some(Arc::new(inventory));
        self.no_driver = None;
        self.changed |= self.no_answer.take().is_some();
        if matches!(self.hold, Hold::Ending(since) if looked >= since) {
            info!("the driver is in use again");
            self.hold = Hold::No;
            self.changed = true;
        }
        self.changed |= changed;
        if changed {
            self.resolve();
        } else {
            self.mark();
        }
        let Some(inventory) = &self.known.inventory else { return };
        self.told.of_health(inventory, &self.policy.health);
        if first {
            info!(
                driver = inventory.driver_version,
                gpus = inventory.gpus.len(),
                mig_devices = inventory.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum::<usize>(),
                strategy = %self.policy.offer.strategy,
                resources = self.wanted.resources.len(),
                "found"
            );
        }
    }

    /// Takes what the driver told by itself. Whether to look at the driver because of it.
    pub(super) fn take_event(&mut self, event: &HealthEvent) -> bool {
        let Some(inventory) = &self.known.inventory else { return true };
        let now = Moment(self.known.epoch.elapsed());
        let outcome = self.known.health.take_event(event, inventory, &self.policy.health, now);
        let (gpu, kind) = (&event.gpu_uuid, event.kind);
        match outcome {
            Outcome::Ignored => {
                self.told.of_ignored(event);
                false
            }
            Outcome::LookAgain => {
                debug!(gpu, %kind, gi = event.gpu_instance, ci = event.compute_instance, "looking at the driver");
                true
            }
            Outcome::Sick(sickness) => {
                if sickness.news {
                    told::sickness(&sickness);
                    self.mark();
                }
                sickness.news
            }
        }
    }

    /// There is no driver at the moment; with `unloaded`, because the kernel driver has gone.
    pub(super) fn take_no_driver(&mut self, why: String, unloaded: bool) {
        self.changed |= self.no_driver.as_ref() != Some(&why) || matches!(self.hold, Hold::Ending(_));
        self.heard = true;
        self.no_driver = Some(why);
        self.no_answer = None;
        if let Hold::Ending(_) = self.hold {
            self.hold = Hold::No;
        }
        self.known.health.driver_gone(unloaded);
        self.mark();
    }

    /// Nothing can be asked of the driver, since a call into its library does not come back. That may be about one GPU
    /// or none, and containers do not depend on this process: everything stays as it is.
    pub(super) fn take_no_answer(&mut self, why: String) {
        self.changed |= self.no_answer.as_ref() != Some(&why);
        self.no_answer = Some(why);
    }

    /// SIGUSR1.
    pub(super) fn hold(&mut self) {
        self.changed |= self.hold != Hold::Yes;
        self.hold = Hold::Yes;
        self.mark();
    }

    /// SIGUSR2. What was offered is offered again when the driver has said what there is.
    pub(super) fn end_hold(&mut self) {
        if self.hold == Hold::Yes {
            self.hold = Hold::Ending(Instant::now());
        }
    }

    /// Takes what pods hold: what is shared and what is not should not change under them.
    pub(super) fn take_held(&mut self, held: BTreeSet<DeviceId>) {
        if self.known.earlier.take_held(held) {
            self.resolve();
        }
    }

    /// How long nothing has to be done; `None`: for ever.
    pub(super) fn pause(&self) -> Option<Duration> {
        let cdi = self.cdi_again.map(|at| at.saturating_duration_since(Instant::now()));
        cdi.into_iter().chain(self.next_look()).min()
    }

    /// Does what is due. Whether to look at the driver.
    pub(super) fn tick(&mut self) -> bool {
        if self.cdi_again.is_some_and(|at| at <= Instant::now()) {
            self.resolve();
        }
        let due = self.next_look().is_some_and(|pause| pause.is_zero());
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    fn next_look(&self) -> Option<Duration> {
        if self.hold != Hold::No || self.no_driver.is_some() {
            return None;
        }
        let now = Moment(self.known.epoch.elapsed());
        let wait = self.known.health.next_look(&self.policy.health, now)?;
        let since = self.looked.map_or(LOOK_PAUSE, |looked| looked.elapsed());
        Some(wait.max(LOOK_PAUSE.saturating_sub(since)))
    }

    /// Works out what the strategy makes of the node. The CDI specification comes first: the kubelet must not hear of a
    /// device that a container runtime cannot resolve.
    fn resolve(&mut self) {
        let Some(inventory) = &self.known.inventory else { return };
        let mut resolved = resolve_after(inventory, &self.policy.offer, &self.known.earlier);
        let complete = !self.by_cdi || mark_incomplete(&mut resolved, &mut self.cdi, inventory);
        self.cdi_again = self.by_cdi.then(|| Instant::now() + if complete { CDI_LOOK } else { CDI_AGAIN });
        self.told.of_offer(&self.resolved, &resolved, self.policy.offer.strategy);
        self.known.earlier.take_offer(&resolved);
        self.resolved = resolved;
        self.mark();
    }

    /// Puts to each device what stands against it at the moment.
    fn mark(&mut self) {
        let mut wanted = self.resolved.clone();
        let for_all = match (&self.no_driver, self.hold) {
            (_, Hold::Yes | Hold::Ending(_)) => Some(Reason::OnHold),
            (Some(why), Hold::No) => Some(Reason::NoDriver(why.clone())),
            (None, Hold::No) => None,
        };
        wanted.mark(|device| for_all.iter().cloned().chain(self.known.health.reasons_of(device)).collect());
        self.changed |= self.wanted != wanted;
        self.wanted = wanted;
    }
}

/// Brings the CDI specification up to date, and marks the devices that are not in it. Whether all of them are.
fn mark_incomplete(wanted: &mut ResourceSet, cdi: &mut Cdi, inventory: &Inventory) -> bool {
    let update = cdi.update(inventory);
    if let Ok(update) = &update
        && update.written
    {
        info!("wrote the CDI specification");
    }
    if let Ok(update) = &update {
        let libraries = "none of the driver's libraries is below the driver root: containers get device nodes by CDI, \
                         and have to bring the libraries along";
        wanted.warnings.extend(update.without_libraries.then(|| libraries.to_owned()));
        wanted.warnings.extend(update.hook_missing.clone());
        wanted.warnings.extend(update.absent.iter().map(|feature| {
            format!(
                "--{0}-enabled: this node has no device node of {0}, so containers do not get it by CDI",
                feature.word()
            )
        }));
    }
    wanted.mark(|device| {
        let reason = match &update {
            Ok(update) => {
                let incomplete = update.incomplete.iter().find(|incomplete| incomplete.id == device.uuid);
                incomplete.map(|incomplete| incomplete.reason.clone())
            }
            Err(error) => Some(error.to_string()),
        };
        reason.map(Reason::Incomplete).into_iter().collect()
    });
    update.is_ok_and(|update| update.incomplete.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{cdi_nowhere, gpu, node};
    use crate::health::HealthPolicy;
    use crate::resource::Device;
    use crate::resource::policy::OfferPolicy;

    /// In a round after one that ended with `known`.
    fn outlook(known: Knowledge) -> Outlook {
        let policy = Policy {
            offer: OfferPolicy::default(),
            health: HealthPolicy::default(),
            removal_grace: Duration::ZERO,
            pod_resources_socket: "/nonexistent".into(),
            fail_on_init_error: false,
        };
        Outlook::new(policy, cdi_nowhere(), false, known)
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_hangs_is_only_believed_to_be_as_it_was_by_who_has_seen_it() {
        let mut first = outlook(Knowledge::default());
        first.take_inventory(node([gpu(0)]), Instant::now());
        assert!(first.has_driver());
        let mut next = outlook(first.into_knowledge());
        assert!(!next.has_driver() && !next.is_heard(), "another session has seen it");
        // So the lists are served, with nothing that is healthy.
        next.take_no_driver("nvmlInit_v2 does not come back".to_owned(), false);
        let lists = &next.wanted().resources;
        assert!(next.is_heard() && lists.len() == 1);
        assert!(lists.values().flatten().all(|device| !device.is_healthy()));
        next.take_inventory(node([gpu(0)]), Instant::now());
        assert!(next.has_driver() && next.wanted().resources.values().flatten().all(Device::is_healthy));
    }
}

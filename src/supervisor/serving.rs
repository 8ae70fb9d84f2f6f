//! What is being served: an endpoint per resource, and the rules by which a device leaves its list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::endpoints::Kubelet;
use super::held::Held;
use super::snapshot::Served;
use crate::inventory::Inventory;
use crate::kubelet::{Claim, Look};
use crate::resource::ledger::{Change, Ledger};
use crate::resource::policy::OfferPolicy;
use crate::resource::{Device, DeviceId, ResourceName, ResourceSet};

/// How long a list that says `Unhealthy` stands before the device may be left out, so that the kubelet sees both.
const SEEN: Duration = Duration::from_millis(500);

/// How long an empty resource stays, since a repartition brings most of them back.
const LINGER: Duration = Duration::from_secs(5);

/// How often something that waits to leave is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long the first lists wait for a word on what pods hold; longer while a look has not ended, which has its own
/// bound: podresources may be slow, and the checkpoint is read after its answer.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// How long a kubelet whose socket's file is there and who does not answer is left alone.
const DEAD_KUBELET: Duration = Duration::from_secs(1);

/// Whether lists are served at all. The first ones have to have in them what pods hold: the kubelet crashes where a
/// device of a running pod is missing.
enum Gate {
    /// Nothing is known of what pods hold, and there is no kubelet to be told, as far as was tried before this moment.
    NoKubelet(Instant),
    /// What pods hold is looked for, until the look that is under way at this moment has ended.
    Asking(Instant),
    Open,
}

/// The lists, the kubelet's side that they are served to, and what is known of the pods that hold devices.
pub(super) struct Serving<K> {
    pub(super) kubelet: K,
    ledger: Ledger,
    leaving_since: HashMap<(ResourceName, DeviceId), Instant>,
    empty_since: HashMap<ResourceName, Instant>,
    held: Held,
    gate: Gate,
    /// Whether the endpoints of `ledger` were started.
    begun: bool,
    started: Instant,
    /// A device that was handed out less than this ago is not left out of the list.
    removal_grace: Duration,
}

impl<K: Kubelet> Serving<K> {
    /// Serves nothing yet, and begins with `ledger`: nothing, or what was served before a configuration that fixes other
    /// things.
    pub(super) fn new(kubelet: K, removal_grace: Duration, ledger: Ledger) -> Self {
        let started = Instant::now();
        Self {
            kubelet,
            ledger,
            leaving_since: HashMap::new(),
            empty_since: HashMap::new(),
            held: Held::default(),
            // The checkpoint may be there without a kubelet.
            gate: Gate::Asking(started + FIRST_ANSWER),
            begun: false,
            started,
            removal_grace,
        }
    }

    pub(super) fn set_removal_grace(&mut self, removal_grace: Duration) {
        self.removal_grace = removal_grace;
    }

    /// Whether the kubelet follows our lists.
    fn is_watched(&self) -> bool {
        self.ledger.lists().keys().any(|name| self.kubelet.is_watched(name))
    }

    /// How long nothing needs to be looked at; `None`: for ever.
    pub(super) fn pause(&self) -> Option<Duration> {
        let until = |moment: Instant| moment.saturating_duration_since(Instant::now());
        match self.gate {
            Gate::NoKubelet(_) if !self.kubelet.is_there() => None,
            Gate::NoKubelet(again) => Some(until(again)),
            Gate::Asking(_) if self.held.is_asking() => None,
            Gate::Asking(limit) => Some(until(limit).min(TICK)),
            Gate::Open => {
                let moves = !self.leaving_since.is_empty() || !self.empty_since.is_empty();
                let asks = self.held.is_awaited() && !self.ledger.lists().is_empty();
                let waits = self.ledger.awaited_elsewhere().next().is_some();
                (moves || asks || waits).then_some(TICK)
            }
        }
    }

    /// Whether nothing goes on before there is a kubelet.
    pub(super) fn waits_for_kubelet(&self) -> bool {
        matches!(self.gate, Gate::NoKubelet(_))
    }

    /// Whether what pods hold has to be looked at now: at the start, and when something waits for it.
    pub(super) fn has_a_question(&mut self) -> bool {
        let now = Instant::now();
        if let Gate::NoKubelet(again) = self.gate {
            if !self.kubelet.is_there() || again > now {
                return false;
            }
            self.gate = Gate::Asking(now + FIRST_ANSWER);
        }
        if let Gate::Asking(limit) = self.gate {
            if limit > now || self.held.is_asking() {
                return self.held.ask_soon();
            }
            self.gate = Gate::Open;
        }
        let others = self.ledger.awaited_elsewhere().next().map(|_| self.started);
        let first = (!self.held.is_known()).then_some(self.started);
        let newest = self.leaving_since.values().copied().chain(first).chain(others).max();
        newest.is_some_and(|newest| self.is_watched() && self.held.ask(newest))
    }

    /// Takes what a look at what pods hold has found.
    pub(super) fn take_look(&mut self, look: Look) {
        let alive = look.alive;
        let watched = self.is_watched();
        self.held.take(look, watched);
        if let Gate::Asking(_) = self.gate {
            if self.held.is_known() {
                self.gate = Gate::Open;
            } else if !alive {
                // It may have left its socket's file behind.
                self.gate = Gate::NoKubelet(Instant::now() + DEAD_KUBELET);
            }
        }
    }

    /// The devices that pods may hold.
    pub(super) fn held(&self) -> BTreeSet<DeviceId> {
        self.held.claims().map(|claim| claim.device.clone()).collect()
    }

    /// Why it cannot be known which devices are free, for people.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.held.trouble()
    }

    /// What is served, for people.
    pub(super) fn served(&self) -> BTreeMap<ResourceName, Served> {
        let lists = self.ledger.lists().iter();
        let served = lists.filter_map(|(name, devices)| {
            let endpoint = self.kubelet.status(name)?;
            Some((name.clone(), Served { devices: devices.clone(), endpoint }))
        });
        served.collect()
    }

    /// Moves what is served towards `wanted`; whether something changed. `inventory`: what the driver has, once it said
    /// so.
    pub(super) fn apply(
        &mut self,
        wanted: &ResourceSet,
        inventory: Option<&Inventory>,
        offer: &OfferPolicy,
    ) -> bool {
        let Gate::Open = self.gate else { return false };
        let mut before = self.ledger.clone();
        if inventory.is_some() {
            let (ours, others) = self.held_devices(offer);
            before.keep_held(ours, wanted);
            before.note_elsewhere(others);
        }
        let next = before.step(
            wanted,
            inventory,
            |name, id| self.may_leave(name, id),
            |name| self.empty_since.get(name).is_some_and(|since| since.elapsed() >= LINGER),
        );
        // What a former round has served has no endpoints in this one.
        let steps = if self.begun { self.ledger.diff(&next) } else { Ledger::default().diff(&next) };
        self.begun = true;
        let changed = !steps.is_empty();
        for change in steps {
            log(&change, &self.ledger);
            self.carry_out(change);
        }
        self.ledger = next;
        let now = Instant::now();
        let leaving = self.ledger.leaving().map(|(name, id)| (name.clone(), id.clone()));
        let since = |old: Option<Instant>| old.unwrap_or(now);
        self.leaving_since =
            leaving.map(|key| (key.clone(), since(self.leaving_since.get(&key).copied()))).collect();
        let empty = self.ledger.empty().cloned();
        self.empty_since =
            empty.map(|key| (key.clone(), since(self.empty_since.get(&key).copied()))).collect();
        self.send_again();
        changed
    }

    /// What pods hold: devices that this program, or NVIDIA's before it, has handed out, and others. The name of the
    /// former is one that they give, and the ID one of the driver's: other plugins share GPUs under IDs that only begin
    /// like that.
    #[expect(clippy::type_complexity, reason = "what the ledger takes")]
    fn held_devices(
        &self,
        offer: &OfferPolicy,
    ) -> (Vec<(ResourceName, DeviceId, Option<u32>)>, Vec<(String, DeviceId)>) {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for Claim { resource, device, numa_node } in
            self.held.claims().filter(|it| it.device.is_the_drivers())
        {
            let name = resource.parse::<ResourceName>().ok();
            let is_ours =
                |name: &ResourceName| offer.may_offer(name) || self.ledger.lists().contains_key(name);
            match name.filter(is_ours) {
                Some(name) => ours.push((name, device.clone(), *numa_node)),
                None => others.push((resource.clone(), device.clone())),
            }
        }
        (ours, others)
    }

    /// Sends a list again, where that shows whether a device is free. Any will do: the kubelet's checkpoint has all.
    fn send_again(&mut self) {
        let waits = |list: &[Device]| list.iter().any(|device| !device.is_healthy());
        let mut lists = self.ledger.lists().iter();
        let list = lists.find(|(name, list)| waits(list) && self.kubelet.is_watched(name));
        let Some(name) = list.map(|(name, _)| name.clone()) else { return };
        let leaving = self.leaving_since.iter().map(|((name, id), since)| (name.as_str(), id, *since));
        let elsewhere = self.ledger.awaited_elsewhere().map(|(name, id)| (name, id, self.started));
        if self.held.send_again(leaving.chain(elsewhere)) {
            self.kubelet.send_again(&name);
        }
    }

    /// The rules of the kubelet: it must have seen the device as unhealthy, must be done with an `Allocate` of
    /// it, and no pod may hold it.
    fn may_leave(&self, name: &ResourceName, id: &DeviceId) -> bool {
        let Some(since) = self.leaving_since.get(&(name.clone(), id.clone())) else { return false };
        // A kubelet that is away cannot be told, and crashes on the way back where a device of a running pod is missing.
        self.kubelet.is_watched(name)
            && since.elapsed() >= SEEN
            && self.kubelet.since_allocated(name, id).is_none_or(|ago| ago >= self.removal_grace)
            && self.held.lets_go(name.as_str(), id, *since)
    }

    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Start(name, devices) => self.kubelet.start(name, devices),
            Change::Update(name, devices) => self.kubelet.update(&name, devices),
            Change::Stop(name) => self.kubelet.stop(&name),
        }
    }

    /// What is listed, and who serves it.
    pub(super) fn into_parts(self) -> (K, Ledger) {
        (self.kubelet, self.ledger)
    }
}

/// One line per resource that changes, and one per device that turns unhealthy or well again.
fn log(change: &Change, before: &Ledger) {
    let (name, devices) = match change {
        Change::Start(name, devices) | Change::Update(name, devices) => (name, devices),
        Change::Stop(name) => {
            info!(resource = %name, "no device left; no longer served");
            return;
        }
    };
    let old = before.lists().get(name).map_or(&[][..], Vec::as_slice);
    // What is true of one replica is true of all.
    for device in devices.iter().filter(|device| device.replica.is_none_or(|replica| replica.number == 0)) {
        let before = old.iter().find(|other| other.id == device.id);
        let was_healthy = before.is_none_or(Device::is_healthy);
        if device.is_healthy() {
            if !was_healthy {
                info!(resource = %name, device = %device.uuid, index = device.index(), "healthy again");
            }
        } else if before.is_none_or(|before| before.reasons != device.reasons) {
            let reason = device.reasons_text();
            warn!(resource = %name, device = %device.uuid, index = device.index(), reason, "unhealthy");
        }
    }
    let told = |list: &[Device]| {
        list.iter().map(|device| (device.id.clone(), device.is_healthy())).collect::<Vec<_>>()
    };
    if told(old) != told(devices) {
        let healthy = devices.iter().filter(|device| device.is_healthy()).count();
        info!(resource = %name, devices = devices.len(), healthy, "list changed");
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::{mig_gpu, mixed, node};
    use crate::kubelet::{Checkpoint, CheckpointError, EndpointStatus, FileId, PodResourcesError};
    use crate::resource::allocate::Rules;

    /// A kubelet whose socket's file is there or not, and that does nothing.
    struct Silent {
        there: bool,
    }

    impl Kubelet for Silent {
        fn is_there(&self) -> bool {
            self.there
        }
        fn start(&mut self, _: ResourceName, _: Vec<Device>) {}
        fn update(&mut self, _: &ResourceName, _: Vec<Device>) {}
        fn send_again(&mut self, _: &ResourceName) {}
        fn stop(&mut self, _: &ResourceName) {}
        fn set_rules(&mut self, _: Rules) {}
        fn is_watched(&self, _: &ResourceName) -> bool {
            false
        }
        fn since_allocated(&self, _: &ResourceName, _: &DeviceId) -> Option<Duration> {
            None
        }
        fn status(&self, _: &ResourceName) -> Option<Arc<EndpointStatus>> {
            None
        }
    }

    fn serving(there: bool) -> Serving<Silent> {
        Serving::new(Silent { there }, Duration::ZERO, Ledger::default())
    }

    /// A look without an answer of podresources.
    fn look(checkpoint: Option<Checkpoint>, alive: bool) -> Look {
        let missing = CheckpointError::Unreadable {
            path: "/checkpoint".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        Look {
            listed: Err(PodResourcesError::new("/nonexistent".as_ref(), "nobody is there")),
            checkpoint: checkpoint.ok_or(missing),
            alive,
        }
    }

    /// How often the supervisor would wake in this time while nothing happens: the driver is not heard, and nobody
    /// answers.
    async fn wakes(serving: &mut Serving<Silent>, time: Duration, alive: bool) -> u32 {
        let end = Instant::now() + time;
        let mut wakes = 0;
        while Instant::now() < end {
            if serving.has_a_question() {
                serving.take_look(look(None, alive));
            }
            let Some(pause) = serving.pause() else { break };
            // The least that a timer waits.
            tokio::time::advance(pause.max(Duration::from_millis(1))).await;
            wakes += 1;
        }
        wakes
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_wakes_often_while_nobody_answers_and_the_driver_is_not_heard() {
        for (there, alive) in [(true, true), (true, false), (false, false)] {
            let wakes = wakes(&mut serving(there), Duration::from_mins(1), alive).await;
            assert!(wakes <= 4 * 60 + 10, "{wakes} times in a minute; there: {there}, alive: {alive}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_lists_wait_for_the_end_of_a_look_that_takes_long() {
        let mut serving = serving(true);
        let inventory = node([mig_gpu(0, &["1g.10gb"])]);
        let (wanted, offer) = (mixed(&inventory), OfferPolicy::default());
        assert!(serving.has_a_question());
        tokio::time::advance(4 * FIRST_ANSWER).await;
        assert!(!serving.has_a_question() && serving.pause().is_none());
        assert!(!serving.apply(&wanted, Some(&inventory), &offer), "the checkpoint has not been read");
        serving.take_look(look(None, true));
        assert!(!serving.has_a_question(), "nothing is to be known soon");
        assert!(serving.apply(&wanted, Some(&inventory), &offer));
    }

    #[tokio::test(start_paused = true)]
    async fn the_checkpoint_alone_opens_the_first_lists_and_is_in_them() {
        let mut serving = serving(false);
        let inventory = node([mig_gpu(0, &["1g.10gb"])]);
        let (wanted, offer) = (mixed(&inventory), OfferPolicy::default());
        assert!(!serving.apply(&wanted, Some(&inventory), &offer), "what pods hold is not known yet");
        assert!(serving.has_a_question());
        let device = DeviceId("MIG-00000000-0000-0000-0000-000000000000".to_owned());
        let resource = "nvidia.com/mig-1g.10gb".to_owned();
        let claims = vec![Claim { resource, device: device.clone(), numa_node: Some(3) }];
        serving.take_look(look(Some(Checkpoint { file: FileId::number(1), claims }), false));
        assert!(serving.apply(&wanted, Some(&inventory), &offer));
        let list = serving.ledger.lists().values().next().unwrap();
        let held = list.iter().find(|listed| listed.id == device).unwrap();
        assert!(list.len() == 2 && !held.is_healthy() && held.numa_node == Some(3));
    }
}

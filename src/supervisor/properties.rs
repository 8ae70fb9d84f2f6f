//! Random lives of a node, from what the driver says to what the kubelet is told: `resolve`, `Health` and `Ledger`
//! together, as the supervisor joins them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fixtures::{mig_device, mig_gpu, mixed, node};
use crate::health::{EventKind, Health, HealthEvent, HealthPolicy, Moment};
use crate::inventory::{Inventory, MigDevice, Placement, RecoveryAction, Trouble};
use crate::resource::ledger::Ledger;
use crate::resource::{Device, DeviceId, Reason, ResourceName, ResourceSet};

const GPUS: u32 = 2;
const SLOTS: u32 = 3;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A slot of a GPU is emptied, or gets a slice of this profile that begins at this memory slice. Its UUID is always
    /// the same, as the driver derives it from the instance IDs.
    Layout(u32, u32, Option<(&'static str, u32)>),
    /// An error on a GPU, or on the slice in a slot.
    Error(u32, Option<u32>),
    /// Whether a GPU answers.
    Lost(u32, bool),
    /// What a GPU needs.
    Needs(u32, RecoveryAction),
    /// The driver goes, or comes.
    Driver(bool),
    /// Whether devices may leave at the moment: what the kubelet and its pods allow.
    MayLeave(bool),
    /// The plugin starts again, and finds these slots' slices held.
    Restart(u32, u32),
    /// So many seconds pass.
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let slice = select(vec![None, Some(("1g.10gb", 0)), Some(("1g.10gb", 4)), Some(("2g.20gb", 0))]);
    let action = select(vec![RecoveryAction::None, RecoveryAction::None, RecoveryAction::Reset]);
    prop_oneof![
        4 => (0..GPUS, 0..SLOTS, slice).prop_map(|(gpu, slot, slice)| Step::Layout(gpu, slot, slice)),
        4 => (0..GPUS, prop::option::weighted(0.8, 0..SLOTS)).prop_map(|(gpu, slot)| Step::Error(gpu, slot)),
        2 => (0..GPUS, any::<bool>()).prop_map(|(gpu, lost)| Step::Lost(gpu, lost)),
        1 => (0..GPUS, action).prop_map(|(gpu, action)| Step::Needs(gpu, action)),
        1 => any::<bool>().prop_map(Step::Driver),
        2 => any::<bool>().prop_map(Step::MayLeave),
        1 => (0..GPUS, 0..SLOTS).prop_map(|(gpu, slot)| Step::Restart(gpu, slot)),
        3 => select(vec![0, 5, 11, 60, 700]).prop_map(Step::Wait),
    ]
}

/// The node, and what the supervisor would hold of it.
struct Life {
    now: Duration,
    truth: Inventory,
    lost: [bool; GPUS as usize],
    driver: bool,
    may_leave: bool,
    seen: Inventory,
    health: Health,
    ledger: Ledger,
}

impl Life {
    fn new() -> Self {
        let truth = node((0..GPUS).map(|index| mig_gpu(index, &["1g.10gb"; SLOTS as usize])));
        let mut life = Self {
            now: Duration::from_secs(1),
            seen: truth.clone(),
            truth,
            lost: [false; GPUS as usize],
            driver: true,
            may_leave: false,
            health: Health::default(),
            ledger: Ledger::default(),
        };
        life.look();
        life
    }

    fn wanted(&self) -> ResourceSet {
        let mut wanted = mixed(&self.seen);
        let gone = (!self.driver).then(|| Reason::NoDriver("unloaded".to_owned()));
        wanted.mark(|device| gone.iter().cloned().chain(self.health.reasons_of(device)).collect());
        wanted
    }

    /// A look at the driver, or what follows from there being none; then the lists.
    fn look(&mut self) {
        if self.driver {
            let mut now = self.truth.clone();
            for (gpu, lost) in now.gpus.iter_mut().zip(self.lost) {
                if lost {
                    gpu.clone_from(&self.seen.gpus[gpu.index as usize]);
                    gpu.problem = Some(Trouble::lost("it does not answer"));
                }
            }
            for gpu in now.gpus.iter_mut().zip(self.lost).filter(|(_, lost)| !lost).map(|(gpu, _)| gpu) {
                gpu.problem = None;
            }
            self.health.take_inventory(&now, &HealthPolicy::default(), Moment(self.now));
            self.seen = now;
        }
        self.ledger = self.step();
    }

    fn step(&self) -> Ledger {
        self.ledger.step(&self.wanted(), Some(&self.seen), |_, _| self.may_leave, |_| self.may_leave)
    }

    fn take(&mut self, step: &Step) {
        self.now += Duration::from_millis(1);
        match *step {
            Step::Layout(gpu, slot, slice) => {
                let slices = &mut self.truth.gpus[gpu as usize].mig_devices;
                slices.retain(|slice| slice.index != slot);
                slices.extend(slice.map(|(profile, start)| MigDevice {
                    placement: Some(Placement { start, size: 1 }),
                    ..mig_device(gpu, slot, profile)
                }));
                slices.sort_by_key(|slice| slice.gpu_instance);
            }
            Step::Error(gpu, slot) => {
                let event = HealthEvent {
                    gpu_uuid: format!("GPU-{gpu}"),
                    gpu_instance: slot.map(|slot| slot + 7),
                    compute_instance: slot.map(|_| 0),
                    kind: EventKind::Xid(94),
                    at: SystemTime::UNIX_EPOCH,
                };
                self.health.take_event(&event, &self.seen, &HealthPolicy::default(), Moment(self.now));
            }
            Step::Lost(gpu, lost) => self.lost[gpu as usize] = lost,
            Step::Needs(gpu, action) => self.truth.gpus[gpu as usize].recovery_action = Some(action),
            Step::Driver(there) => {
                self.driver = there;
                if !there {
                    self.health.driver_gone(true);
                }
            }
            Step::MayLeave(may) => self.may_leave = may,
            Step::Restart(gpu, slot) => {
                let id = DeviceId(mig_device(gpu, slot, "1g.10gb").uuid);
                let held =
                    self.ledger.lists().iter().find(|(_, list)| list.iter().any(|device| device.id == id));
                let held = held.map(|(name, _)| (name.clone(), id, None));
                self.ledger = Ledger::default();
                self.ledger.keep_held(held, &self.wanted());
            }
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
        }
        if !matches!(step, Step::Error(..)) {
            return self.look();
        }
        // An event shows before anybody looks.
        self.ledger = self.step();
    }

    /// What the kubelet is told.
    fn told(&self) -> BTreeMap<(ResourceName, DeviceId), bool> {
        let lists = self.ledger.lists().iter();
        lists
            .flat_map(|(name, list)| {
                list.iter().map(move |device| ((name.clone(), device.id.clone()), device.is_healthy()))
            })
            .collect()
    }
}

/// Whether the event may change what is told of this device.
fn is_named(device: &DeviceId, gpu: u32, slot: Option<u32>) -> bool {
    match slot {
        Some(slot) => device.as_str() == mig_device(gpu, slot, "1g.10gb").uuid,
        None => device.as_str().starts_with(&format!("MIG-{gpu}-")),
    }
}

fn is_leaving(device: &Device) -> bool {
    matches!(device.reasons[..], [Reason::Gone | Reason::NotOffered])
}

fn is_blocked(device: &Device) -> bool {
    device.reasons.iter().any(|reason| matches!(reason, Reason::Blocked(_)))
}

fn find<'a>(ledger: &'a Ledger, name: &ResourceName, id: &DeviceId) -> Option<&'a Device> {
    ledger.lists().get(name)?.iter().find(|device| device.id == *id)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn lists_follow_the_node_and_nothing_else(steps in vec(steps(), 1..14)) {
        let mut life = Life::new();
        let mut twin = Life::new();
        for step in &steps {
            let before = (life.ledger.clone(), life.told());
            life.take(step);
            twin.take(step);
            prop_assert_eq!(&life.ledger, &twin.ledger, "the same inputs, and other lists");

            for (name, list) in life.ledger.lists() {
                for device in list.iter().filter(|device| device.is_healthy()) {
                    prop_assert!(life.driver, "{} is healthy without a driver", device.id);
                    prop_assert_eq!(life.health.reasons_of(device), vec![]);
                    let gpu = &life.seen.gpus[device.gpu_index as usize];
                    prop_assert!(gpu.problem.is_none());
                    let mig = device.mig.as_ref().unwrap();
                    prop_assert!(gpu.mig_devices.iter().any(|there| there.is_same(mig)), "{} is not there", device.id);
                    let elsewhere = life.ledger.lists().iter().filter(|(other, _)| *other != name);
                    prop_assert!(elsewhere.flat_map(|(_, list)| list).all(|other| other.uuid != device.uuid));
                }
            }
            if let Step::Restart(..) = step {
                continue;
            }
            for (name, list) in before.0.lists() {
                for old in list {
                    match find(&life.ledger, name, &old.id) {
                        Some(new) if !old.is_known_by_id_only() => {
                            prop_assert!(new.is_same(old) || is_leaving(old), "{} changed", old.id);
                        }
                        Some(_) => {}
                        None => prop_assert!(!old.is_healthy() && life.may_leave, "{} left at once", old.id),
                    }
                }
            }
            if let Step::Error(gpu, slot) = step {
                let now = life.told();
                for (key, healthy) in &before.1 {
                    let changed = now.get(key).is_some_and(|now| now != healthy);
                    // One that was on its way out may have made room for its successor meanwhile.
                    let left = find(&before.0, &key.0, &key.1).is_some_and(|old| is_leaving(old) || is_blocked(old));
                    prop_assert!(!changed || left || is_named(&key.1, *gpu, *slot), "{} was not named", key.1);
                }
            }
        }
    }
}

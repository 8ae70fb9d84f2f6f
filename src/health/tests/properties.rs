//! Random lives of a node, checked against a simple model: a list of everything that was ever said against a GPU or a
//! slice, from which a look strikes out what it disproves.
//!
//! The model knows neither records nor relapses. It says who must be sick (what it cannot strike out by the shortest
//! quiet period) and who must be well (what it could strike out even by the longest).

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::fixtures::mig_device;
use crate::health::record::{FORGIVEN_AFTER, LONGEST_QUIET};
use crate::health::waiting::MAX_WAITING;
use crate::inventory::{Problem, RecoveryAction, TroubleKind};

const GPUS: u32 = 2;
const SLOTS: u32 = 3;

/// What happens to the node, or is done.
#[derive(Debug, Clone)]
enum Step {
    /// An event: GPU, GPU instance, compute instance, kind. Some instances never exist, and one GPU neither.
    Event(u32, Option<u32>, Option<u32>, EventKind),
    /// A look at the driver begins now and ends this much later, with these events in between.
    Look(u64, Vec<Step>),
    /// A slot of a GPU is emptied, or gets a slice of the first or the second profile. Its UUID stays the same.
    Layout(u32, u32, Option<bool>),
    /// All slices of a GPU are taken.
    Clear(u32),
    /// What the driver tells of a GPU's needs.
    Action(u32, Option<RecoveryAction>),
    /// Whether and how a GPU can be read.
    State(u32, State),
    /// A slice cannot be read, or can again.
    SliceTrouble(u32, u32, bool),
    /// The driver cannot be used, and can again before the next look; whether it was unloaded meanwhile.
    DriverGone(bool),
    /// Another configuration: whether Xids count, whether all checks are off, whether anything recovers.
    Policy(bool, bool, bool),
    /// So many seconds pass.
    Wait(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Fine,
    Trouble(TroubleKind),
    /// It is not among the GPUs, and no problem says why.
    Absent,
}

fn kinds() -> impl Strategy<Value = EventKind> {
    use EventKind::{DoubleBitEcc, GpuUnavailable, MigConfigChange, Xid};
    // Of these, 13 and 43 are ignored by default, 61 is in no catalogue, and 79 is about the whole GPU.
    select(vec![
        Xid(13),
        Xid(43),
        Xid(61),
        Xid(79),
        Xid(94),
        Xid(94),
        DoubleBitEcc,
        GpuUnavailable,
        MigConfigChange,
    ])
}

fn events() -> impl Strategy<Value = Step> {
    let compute = prop_oneof![3 => Just(Some(0)), 1 => Just(None), 1 => Just(Some(1))];
    let instances = prop_oneof![1 => Just(None), 3 => (7..7 + SLOTS + 1).prop_map(Some)];
    (0..=GPUS, instances, compute, kinds()).prop_map(|(gpu, instance, compute, kind)| {
        Step::Event(gpu, instance, compute.filter(|_| instance.is_some()), kind)
    })
}

fn steps() -> impl Strategy<Value = Step> {
    use RecoveryAction::{None as Nothing, Reboot, RecoverImex, Reset};
    let actions =
        select(vec![None, None, Some(Nothing), Some(Nothing), Some(RecoverImex), Some(Reset), Some(Reboot)]);
    let states = select(vec![
        State::Fine,
        State::Fine,
        State::Trouble(TroubleKind::Lost),
        State::Trouble(TroubleKind::NoAnswer),
        State::Trouble(TroubleKind::Unreadable),
        State::Absent,
    ]);
    let look = (0_u64..3, vec(events(), 0..2)).prop_map(|(takes, events)| Step::Look(takes, events));
    prop_oneof![
        6 => events(),
        9 => look,
        2 => (0..GPUS, 0..SLOTS, select(vec![None, Some(false), Some(true)]))
            .prop_map(|(gpu, slot, profile)| Step::Layout(gpu, slot, profile)),
        1 => (0..GPUS).prop_map(Step::Clear),
        2 => (0..GPUS, actions).prop_map(|(gpu, action)| Step::Action(gpu, action)),
        2 => (0..GPUS, states).prop_map(|(gpu, state)| Step::State(gpu, state)),
        1 => (0..GPUS, 0..SLOTS, any::<bool>()).prop_map(|(gpu, slot, bad)| Step::SliceTrouble(gpu, slot, bad)),
        2 => any::<bool>().prop_map(Step::DriverGone),
        1 => (any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(xids, all, recovers)| Step::Policy(xids, all, recovers)),
        6 => select(vec![0, 1, 5, 9, 10, 11, 30, 200, 700, 4000]).prop_map(Step::Wait),
    ]
}

/// What is true of the node, whoever looks.
#[derive(Clone)]
struct World {
    gpus: Vec<(Gpu, State)>,
    bad_slices: Vec<(u32, u32)>,
}

impl World {
    fn new() -> Self {
        Self {
            gpus: two_gpus().gpus.into_iter().map(|gpu| (gpu, State::Fine)).collect(),
            bad_slices: Vec::new(),
        }
    }

    /// What a look finds that knows of `previous`.
    fn seen(&self, previous: &Inventory) -> Inventory {
        let mut now = Inventory::default();
        for (gpu, state) in &self.gpus {
            let mut left_out = |mig_device, kind| {
                let reason = Trouble { kind, text: "it does not say".to_owned() };
                now.problems.push(Problem { gpu: gpu.index, mig_device, uuid: None, reason, left_out: true });
            };
            match state {
                State::Absent => {}
                State::Trouble(kind) => left_out(None, *kind),
                State::Fine => {
                    let mut gpu = gpu.clone();
                    gpu.mig_devices.retain(|mig| {
                        let bad = self.bad_slices.contains(&(gpu.index, mig.index));
                        if bad {
                            left_out(Some(mig.index), TroubleKind::Unreadable);
                        }
                        !bad
                    });
                    now.gpus.push(gpu);
                }
            }
        }
        now.with_unreadable_from(previous)
    }
}

/// Whom something stands against: a GPU by UUID, or one slice of it.
type Subject = (String, Option<MigDevice>);

/// Something that was said against it.
#[derive(Debug, Clone)]
struct Charge {
    subject: Subject,
    at: Moment,
    /// The event that said it of a slice, and when it was heard, until a look that began later has seen the slice.
    unseen: Option<(HealthEvent, Moment)>,
    /// Whether a reset was seen since.
    reset: bool,
    /// Whether even the longest quiet period was kept, so that it cannot stand any more.
    surely_over: bool,
    /// Whether the shortest was, so that it may stand no more.
    maybe_over: bool,
}

#[derive(Clone)]
struct Model {
    charges: Vec<Charge>,
    /// Which GPUs had MIG devices in the last look that read them.
    had_slices: Vec<String>,
    /// Events that nobody could be found for, and when each was heard.
    waiting: Vec<(HealthEvent, Moment)>,
    /// All looks that read a GPU.
    looks: Vec<SeenIds>,
}

/// A GPU's UUID, when a look at it began, and the IDs of the instances that it found.
type SeenIds = (String, Moment, Vec<(u32, u32)>);

/// Whether no device can be used while the driver asks for this.
fn is_needed(action: RecoveryAction) -> bool {
    !matches!(action, RecoveryAction::None | RecoveryAction::RecoverImex)
}

impl Model {
    fn charge(&mut self, subject: Subject, at: Moment, reset: bool) {
        // New evidence is against the reset that was seen before it, for all that stands against the same.
        for charge in self.charges.iter_mut().filter(|charge| same(&charge.subject, &subject)) {
            charge.reset &= reset;
        }
        let charge = Charge { subject, at, unseen: None, reset, surely_over: false, maybe_over: false };
        self.charges.push(charge);
    }

    /// It could not be read, which by itself needs no reset.
    fn unreadable(&mut self, subject: Subject, at: Moment) {
        let charge = Charge { subject, at, unseen: None, reset: true, surely_over: false, maybe_over: false };
        self.charges.push(charge);
    }

    /// Whom the event is about; nobody where it is not known.
    fn subjects(event: &HealthEvent, inventory: &Inventory) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for gpu in inventory.gpus.iter().filter(|gpu| gpu.uuid == event.gpu_uuid) {
            if event.gpu_instance.is_none() || event.kind == EventKind::Xid(79) {
                subjects.push((gpu.uuid.clone(), None));
                continue;
            }
            for mig in &gpu.mig_devices {
                let compute = event.compute_instance.unwrap_or(mig.compute_instance);
                if (event.gpu_instance, compute) == (Some(mig.gpu_instance), mig.compute_instance) {
                    subjects.push((gpu.uuid.clone(), Some(mig.clone())));
                }
            }
        }
        subjects
    }

    fn event(&mut self, event: &HealthEvent, inventory: &Inventory, heard: Moment, now: Moment) {
        let subjects = Self::subjects(event, inventory);
        if subjects.is_empty() {
            self.waiting.push((event.clone(), now));
        }
        for gpu in inventory.gpus.iter().filter(|gpu| gpu.uuid == event.gpu_uuid) {
            if !gpu.mig_devices.is_empty() && !subjects.is_empty() {
                self.had_slices.push(gpu.uuid.clone());
            }
        }
        for subject in subjects {
            let compute = subject.1.as_ref().map(|mig| mig.compute_instance);
            self.charge(subject, now, false);
            if let (Some(charge), Some(_)) = (self.charges.last_mut(), compute) {
                charge.unseen = Some((HealthEvent { compute_instance: compute, ..event.clone() }, heard));
            }
        }
    }

    fn look(&mut self, inventory: &Inventory, policy: &HealthPolicy, began: Moment) {
        let recovers = matches!(policy.recovery, Recovery::Auto { .. });
        for gpu in &inventory.gpus {
            for mig in gpu.mig_devices.iter().filter(|mig| recovers && mig.problem.is_some()) {
                if gpu.problem.is_none() {
                    self.unreadable((gpu.uuid.clone(), Some(mig.clone())), began);
                    self.note_slices(gpu);
                }
            }
            let whole = (gpu.uuid.clone(), None);
            match &gpu.problem {
                Some(problem) if problem.kind == TroubleKind::Lost => {
                    for charge in self.charges.iter_mut().filter(|charge| charge.subject.0 == gpu.uuid) {
                        charge.reset |= began > charge.at;
                    }
                    self.charge(whole, began, true);
                    self.note_slices(gpu);
                }
                Some(_) if recovers => {
                    self.unreadable(whole, began);
                    self.note_slices(gpu);
                }
                None if gpu.recovery_action.is_some_and(is_needed)
                    && policy.checks.counts(EventKind::RecoveryAction) =>
                {
                    self.charge(whole, began, false);
                    self.note_slices(gpu);
                }
                _ => {}
            }
        }
        let unknown_left_out = inventory.problems.iter().any(|problem| {
            problem.mig_device.is_none() && inventory.gpus.iter().all(|gpu| gpu.index != problem.gpu)
        });
        let waiting = &mut self.waiting;
        self.charges.retain_mut(|charge| {
            let (uuid, slice) = &charge.subject;
            let Some(gpu) = inventory.gpus.iter().find(|gpu| gpu.uuid == *uuid) else {
                charge.reset |= !unknown_left_out && began > charge.at;
                return true;
            };
            if gpu.problem.is_some() {
                return true;
            }
            let here = |mig: &&MigDevice| slice.as_ref().is_some_and(|slice| slice.is_same(mig));
            let found = gpu.mig_devices.iter().find(here);
            let hidden = inventory.problems.iter().any(|problem| {
                problem.gpu == gpu.index
                    && problem.mig_device.is_some_and(|n| gpu.mig_devices.iter().all(|mig| mig.index != n))
            });
            if slice.is_some() && found.is_none() && !hidden {
                waiting.extend(charge.unseen.take());
                return false;
            }
            let emptied = gpu.mig_devices.is_empty() && self.had_slices.contains(uuid) && !hidden;
            charge.reset |= emptied && began > charge.at;
            let readable = slice.is_none() || found.is_some_and(|mig| mig.problem.is_none());
            let allowed = match gpu.recovery_action {
                Some(action) => !is_needed(action),
                None => charge.reset,
            };
            if recovers && readable && allowed && began > charge.at {
                charge.maybe_over |= began >= charge.at.after(Duration::from_secs(QUIET));
                charge.surely_over |= began >= charge.at.after(LONGEST_QUIET);
            }
            true
        });
        for gpu in inventory.gpus.iter().filter(|gpu| gpu.problem.is_none()) {
            self.had_slices.retain(|uuid| *uuid != gpu.uuid);
            self.note_slices(gpu);
        }
        // Evidence is only struck out together: the latest keeps all before it alive.
        let standing: Vec<_> = self.charges.iter().filter(|charge| !charge.surely_over).cloned().collect();
        self.charges.retain(|charge| {
            !charge.surely_over || standing.iter().any(|other| same(&other.subject, &charge.subject))
        });
        for gpu in inventory.gpus.iter().filter(|gpu| gpu.problem.is_none()) {
            let ids = gpu.mig_devices.iter().map(|mig| (mig.gpu_instance, mig.compute_instance)).collect();
            self.looks.push((gpu.uuid.clone(), began, ids));
        }
        for (event, heard) in std::mem::take(&mut self.waiting) {
            let unreadable = inventory.gpus.iter().any(|g| g.uuid == event.gpu_uuid && g.problem.is_some());
            let placed = !Self::subjects(&event, inventory).is_empty();
            if placed {
                self.event(&event, inventory, heard, heard.max(began));
            } else if began <= heard || unreadable {
                self.waiting.push((event, heard));
            } else if let Some(gpu) = inventory.gpus.iter().find(|gpu| gpu.uuid == event.gpu_uuid)
                && !self.had(&event, heard)
            {
                self.charge((gpu.uuid.clone(), None), heard.max(began), false);
                self.note_slices(gpu);
            }
        }
        for charge in &mut self.charges {
            if is_read(&charge.subject, inventory) {
                charge.unseen.take_if(|(_, heard)| *heard < began);
            }
        }
    }

    /// Whether what the event names was there less than a minute before it was heard, going by the first look since
    /// that did not find it.
    fn had(&self, event: &HealthEvent, heard: Moment) -> bool {
        let looks: Vec<_> = self.looks.iter().filter(|(gpu, ..)| *gpu == event.gpu_uuid).collect();
        let named = |(gi, ci): &(u32, u32)| {
            event.gpu_instance == Some(*gi) && event.compute_instance.is_none_or(|compute| compute == *ci)
        };
        let mut ids: Vec<_> = looks.iter().flat_map(|(_, _, ids)| ids).filter(|ids| named(ids)).collect();
        ids.dedup();
        ids.into_iter().any(|ids| {
            let last = looks.iter().rposition(|(_, _, found)| found.contains(ids)).unwrap();
            let missed = looks.get(last + 1).map(|(_, began, _)| *began);
            missed.is_none_or(|missed| heard.since(missed) < Duration::from_mins(1))
        })
    }

    fn note_slices(&mut self, gpu: &Gpu) {
        if !gpu.mig_devices.is_empty() {
            self.had_slices.push(gpu.uuid.clone());
        }
    }

    fn concerns(charge: &Charge, device: &Device) -> bool {
        charge.subject.0 == device.gpu_uuid
            && match (&charge.subject.1, &device.mig) {
                (Some(slice), Some(mig)) => slice.is_same(mig),
                (None, _) | (Some(_), None) => true,
            }
    }
}

/// Whether the look could read it.
fn is_read((gpu, slice): &Subject, inventory: &Inventory) -> bool {
    inventory.gpus.iter().filter(|found| found.uuid == *gpu && found.problem.is_none()).any(|found| {
        let is_it = |mig: &MigDevice, slice: &MigDevice| mig.problem.is_none() && mig.is_same(slice);
        slice.as_ref().is_none_or(|slice| found.mig_devices.iter().any(|mig| is_it(mig, slice)))
    })
}

fn same(a: &Subject, b: &Subject) -> bool {
    a.0 == b.0
        && match (&a.1, &b.1) {
            (None, None) => true,
            (Some(a), Some(b)) => a.is_same(b),
            _ => false,
        }
}

/// A run of one sequence: the node, the reducer, a second one that gets the same, and the model.
struct Run {
    world: World,
    inventory: Inventory,
    devices: Vec<Device>,
    policy: HealthPolicy,
    health: Health,
    twin: Health,
    model: Model,
    now: u64,
}

impl Run {
    fn new() -> Self {
        let world = World::new();
        let inventory = world.seen(&Inventory::default());
        Self {
            devices: devices(&inventory),
            world,
            inventory,
            policy: HealthPolicy::default(),
            health: Health::default(),
            twin: Health::default(),
            model: Model {
                charges: Vec::new(),
                had_slices: Vec::new(),
                waiting: Vec::new(),
                looks: Vec::new(),
            },
            now: 1,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Event(gpu, instance, compute, kind) => {
                let event =
                    HealthEvent { compute_instance: *compute, ..event(*gpu, *instance, *kind, self.now) };
                self.event(&event);
            }
            Step::Look(takes, events) => {
                let (began, seen) = (self.now, self.world.seen(&self.inventory));
                for event in events {
                    self.step(event);
                }
                self.now += takes;
                self.look(seen, began);
            }
            Step::Layout(gpu, slot, profile) => {
                let slices = &mut self.world.gpus[*gpu as usize].0.mig_devices;
                slices.retain(|mig| mig.index != *slot);
                let profile = profile.map(|second| if second { "2g.20gb" } else { "1g.10gb" });
                slices.extend(profile.map(|profile| mig_device(*gpu, *slot, profile)));
                slices.sort_by_key(|mig| mig.index);
            }
            Step::Clear(gpu) => self.world.gpus[*gpu as usize].0.mig_devices.clear(),
            Step::Action(gpu, action) => self.world.gpus[*gpu as usize].0.recovery_action = *action,
            Step::State(gpu, state) => self.world.gpus[*gpu as usize].1 = *state,
            Step::SliceTrouble(gpu, slot, bad) => {
                self.world.bad_slices.retain(|slice| slice != &(*gpu, *slot));
                self.world.bad_slices.extend(bad.then_some((*gpu, *slot)));
            }
            Step::DriverGone(unloaded) => {
                self.health.driver_gone(*unloaded);
                self.twin.driver_gone(*unloaded);
                if *unloaded {
                    for charge in &mut self.model.charges {
                        (charge.reset, charge.unseen) = (true, None);
                    }
                    self.model.waiting.clear();
                }
            }
            Step::Policy(xids, all, recovers) => {
                let disabled = [Check::Xids, Check::All];
                let disabled: Vec<_> = disabled
                    .into_iter()
                    .zip([!*xids, *all])
                    .filter(|(_, off)| *off)
                    .map(|(check, _)| check)
                    .collect();
                self.policy.checks = Checks::new(&disabled, &[Check::Xid(94)], *xids);
                self.policy.recovery = if *recovers { Recovery::default() } else { Recovery::Off };
            }
            Step::Wait(seconds) => self.now += seconds,
        }
        self.check();
    }

    fn event(&mut self, event: &HealthEvent) {
        let before: Vec<_> = self.devices.iter().map(|device| self.health.reasons_of(device)).collect();
        let outcome = self.health.take_event(event, &self.inventory, &self.policy, at(self.now));
        assert_eq!(self.twin.take_event(event, &self.inventory, &self.policy, at(self.now)), outcome);
        let counts = self.policy.checks.counts(event.kind);
        let named = if counts { Model::subjects(event, &self.inventory) } else { Vec::new() };
        assert_eq!(matches!(outcome, Outcome::Sick(_)), !named.is_empty());
        if counts {
            self.model.event(event, &self.inventory, at(self.now), at(self.now));
        }
        for (device, before) in self.devices.iter().zip(before) {
            let is_named = named.iter().any(|(gpu, slice)| {
                *gpu == device.gpu_uuid
                    && match (slice, &device.mig) {
                        (Some(slice), Some(mig)) => slice.uuid == mig.uuid,
                        _ => true,
                    }
            });
            let after = self.health.reasons_of(device);
            if is_named {
                assert!(
                    before.iter().all(|reason| after.contains(reason)),
                    "a reason changed: {before:?}, {after:?}"
                );
            } else {
                assert_eq!(before, after, "{} is not named", device.uuid);
            }
        }
    }

    fn look(&mut self, seen: Inventory, began: u64) {
        let findings = self.health.take_inventory(&seen, &self.policy, at(began));
        assert_eq!(self.twin.take_inventory(&seen, &self.policy, at(began)), findings);
        self.model.look(&seen, &self.policy, at(began));
        self.devices = devices(&seen);
        self.inventory = seen;
        // What is well now and what was too many is not told twice.
        assert!(self.policy.recovery != Recovery::Off || findings.recovered.is_empty());
    }

    fn check(&self) {
        assert_eq!(self.health, self.twin);
        assert!(self.health.size() <= MAX_WAITING + (GPUS * (1 + 2 * SLOTS)) as usize);
        for device in &self.devices {
            let reasons = self.health.reasons_of(device);
            let mut charges =
                self.model.charges.iter().filter(|charge| Model::concerns(charge, device)).peekable();
            if charges.peek().is_none() {
                assert_eq!(reasons, [], "nothing stands against {}", device.uuid);
            } else if charges.any(|charge| !charge.maybe_over) {
                assert_ne!(reasons, [], "something stands against {}", device.uuid);
            }
        }
        if let Some(time) = self.health.next_look(&self.policy, at(self.now)) {
            assert!(time <= LONGEST_QUIET);
        }
    }

    /// Heals the node and lets time pass: all gets well, by looks at the times that the reducer itself names.
    fn end(&mut self) {
        self.policy = HealthPolicy::default();
        self.world.bad_slices.clear();
        for (gpu, state) in &mut self.world.gpus {
            *state = State::Fine;
            gpu.recovery_action = Some(RecoveryAction::None);
        }
        self.now += 1;
        let mut looks = 0;
        self.step(&Step::Look(0, Vec::new()));
        while let Some(time) = self.health.next_look(&self.policy, at(self.now)) {
            self.now += time.as_secs();
            self.step(&Step::Look(0, Vec::new()));
            looks += 1;
            assert!(looks <= GPUS * (1 + SLOTS), "it asks for looks that do nothing");
        }
        assert!(self.devices.iter().all(|device| self.health.reasons_of(device).is_empty()));
        self.now += FORGIVEN_AFTER.as_secs();
        self.step(&Step::Look(0, Vec::new()));
        assert_eq!(self.health.size(), 0);
    }
}

/// The MIG devices and the GPUs.
fn devices(inventory: &Inventory) -> Vec<Device> {
    slices(inventory).into_iter().chain(inventory.gpus.iter().map(|gpu| device(gpu, None))).collect()
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(10_000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_life_of_a_node_makes_a_sick_device_look_well_or_a_well_one_sick(steps in vec(steps(), 0..30)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.end();
    }
}

//! The thread "nvml-events", which waits for what the driver tells by itself.
//!
//! There is one set of events for the node. A GPU that cannot be listened to does not touch the others; a set that
//! fails is given up whole, and the session makes another one.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nvml_wrapper::Device;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::calls::{Caller, lock};
use super::error::CallError;
use super::raw::events::{self as raw, EventSet, RawEvent};
use super::session::{Asks, OpenDriver, Report};
use super::status::{Status, Watched};
use crate::health::{EventKind, HealthEvent};
use crate::inventory::Gpu;
use crate::throttle::Throttle;

/// One wait is at most this long, so that the thread hears when it is to end or to listen to another GPU.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// A driver whose waits end at once without an event is not asked again at once.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// An `nvmlEventType…` bit, and what such an event means by its data.
type Type = (u64, fn(u64) -> EventKind);

/// What is listened for, where a GPU offers it.
const TYPES: [Type; 6] = [
    (0x8, EventKind::Xid),
    (0x2, |_| EventKind::DoubleBitEcc),
    (MIG_CONFIG_CHANGE, |_| EventKind::MigConfigChange),
    (0x2000, |_| EventKind::FatalPoison),
    (0x4000, |_| EventKind::GpuUnavailable),
    (0x8000, |_| EventKind::RecoveryAction),
];

/// `nvmlEventTypeMigConfigChange`. Older drivers refuse it while MIG mode is off, and all that is registered by the same
/// call with it, so that it has a call of its own.
const MIG_CONFIG_CHANGE: u64 = 0x100;

/// What an event of this type and with this data means.
fn kind(bit: u64, data: u64) -> Option<EventKind> {
    TYPES.iter().find(|(known, _)| *known == bit).map(|(_, kind)| kind(data))
}

/// The words for the types in this mask.
fn words(mask: u64) -> Vec<&'static str> {
    TYPES.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, kind)| kind(0).word()).collect()
}

/// A GPU that is to be listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its NVML index. It is asked for by that, for a look-up by UUID may start other GPUs, and fails while any is lost.
    index: u32,
    /// Its UUID.
    pub(super) uuid: String,
    /// Whether it is in MIG mode.
    mig: bool,
}

impl From<&Gpu> for Wanted {
    fn from(gpu: &Gpu) -> Self {
        Self { index: gpu.index, uuid: gpu.uuid.clone(), mig: gpu.mig_enabled() }
    }
}

/// What the session and the thread share.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone)]
struct State {
    /// The GPUs to be listened to.
    wanted: Vec<Wanted>,
    /// UUIDs of those that were not among them for a while.
    were_away: HashSet<String>,
    /// Which of them is being registered.
    registering: Option<String>,
    stop: bool,
}

impl Control {
    /// Listens to these from now on.
    pub(super) fn want(&self, gpus: Vec<Wanted>) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.wanted, gpus);
        let stays = |uuid: &String| state.wanted.iter().any(|gpu| gpu.uuid == *uuid);
        let gone: Vec<String> = before.into_iter().map(|gpu| gpu.uuid).filter(|uuid| !stays(uuid)).collect();
        state.were_away.extend(gone);
        drop(state);
        self.changed.notify_all();
    }

    /// The GPU that the call under way is about, if it is about one.
    pub(super) fn registering(&self) -> Option<String> {
        lock(&self.state).registering.clone()
    }

    /// Ends the thread within [`LONGEST_WAIT`].
    pub(super) fn stop(&self) {
        lock(&self.state).stop = true;
        self.changed.notify_all();
    }

    /// Lets time pass, less of it when there is something new.
    fn pause(&self, time: Duration) {
        drop(self.changed.wait_timeout(lock(&self.state), time));
    }
}

/// Why a thread has ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// A GPU is back whose registration may not hold any more.
    Outdated,
    /// A call failed that is about the set as a whole.
    Failed(CallError),
    /// Nobody receives reports any more.
    NobodyListens,
}

/// The thread.
pub(super) struct Listener {
    pub(super) driver: Arc<OpenDriver>,
    pub(super) calls: Caller,
    pub(super) control: Arc<Control>,
    pub(super) status: Arc<Status>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) asks: Asks,
}

impl Listener {
    /// Listens until something ends it.
    pub(super) fn run(self) -> End {
        let nvml = self.driver.nvml();
        let set = match self.calls.ask("nvmlEventSetCreate", || EventSet::create(nvml)) {
            Ok(set) => set,
            Err(error) => return End::Failed(error),
        };
        let mut listening = Listening {
            listener: &self,
            set: &set,
            by_handle: HashMap::new(),
            refused: HashMap::new(),
            unknown: Throttle::default(),
        };
        let end = listening.run();
        // A thread that was given up on and has come back may call nothing else, but would leave the set behind.
        let freed = if self.calls.is_given_up() {
            set.free()
        } else {
            self.calls.ask("nvmlEventSetFree", || set.free())
        };
        if let Err(error) = freed {
            tracing::debug!(%error, "the event set is left to NVML's end");
        }
        end
    }
}

/// A thread that has its set.
struct Listening<'a, 'nvml> {
    listener: &'a Listener,
    set: &'a EventSet<'nvml>,
    /// The GPUs in the set.
    by_handle: HashMap<usize, Registered>,
    /// By UUID: those that could not be put into it.
    refused: HashMap<String, Refused>,
    unknown: Throttle,
}

/// A GPU in the set.
struct Registered {
    uuid: String,
    /// The types that it is registered for.
    mask: u64,
    /// Whether it was in MIG mode then.
    mig: bool,
}

impl Registered {
    /// Whether it is to be asked for changes of the MIG configuration once more, now that it is in MIG mode.
    fn lacks_changes(&self, gpu: &Wanted) -> bool {
        self.mask & MIG_CONFIG_CHANGE == 0 && gpu.mig && !self.mig
    }
}

/// A GPU that could not be put into the set.
#[derive(Default)]
struct Refused {
    backoff: Backoff,
    /// When it is tried again, if ever.
    again: Option<Instant>,
    /// Whether it was in MIG mode then.
    mig: bool,
}

impl Refused {
    fn is_due(&self, gpu: &Wanted) -> bool {
        self.again.is_some_and(|at| at <= Instant::now()) || gpu.mig && !self.mig
    }
}

impl<'nvml> Listening<'_, 'nvml> {
    fn run(&mut self) -> End {
        loop {
            let State { wanted, were_away, stop, .. } = lock(&self.listener.control.state).clone();
            if stop {
                return End::Stopped;
            }
            // A GPU that cannot be read stays in the set, for a new one would miss what happens to the others just then.
            // When it is back, what was registered before may not hold any more.
            let is_back = |gpu: &&Wanted| were_away.contains(&gpu.uuid);
            if wanted.iter().filter(is_back).any(|gpu| self.registered(gpu).is_some()) {
                return End::Outdated;
            }
            if let Err(error) = self.register_all(&wanted) {
                return End::Failed(error);
            }
            if self.by_handle.is_empty() {
                // Not every driver may wait on an empty set.
                self.listener.control.pause(LONGEST_WAIT);
                continue;
            }
            if let Err(end) = self.wait() {
                return end;
            }
        }
    }

    /// Puts those into the set that are not in it yet. What happened to them before was told to nobody, so they are to
    /// be looked at. An error means that the set cannot be used any more.
    fn register_all(&mut self, wanted: &[Wanted]) -> Result<(), CallError> {
        self.refused.retain(|uuid, _| wanted.iter().any(|gpu| gpu.uuid == *uuid));
        let mut new = false;
        for gpu in wanted {
            let is_done = match self.registered(gpu) {
                Some(registered) => !registered.lacks_changes(gpu),
                None => self.refused.get(&gpu.uuid).is_some_and(|refused| !refused.is_due(gpu)),
            };
            if is_done {
                continue;
            }
            lock(&self.listener.control.state).registering = Some(gpu.uuid.clone());
            let registered = self.register(gpu);
            lock(&self.listener.control.state).registering = None;
            let mut refused = self.refused.remove(&gpu.uuid).unwrap_or_default();
            refused.mig = gpu.mig;
            let watched = match registered {
                Ok(mask) => {
                    new = true;
                    Watched::Events(words(mask))
                }
                Err(Refusal::Set(error)) => return Err(error),
                Err(Refusal::ForGood(why)) => {
                    refused.again = None;
                    self.refused.insert(gpu.uuid.clone(), refused);
                    Watched::Nothing(why)
                }
                Err(Refusal::ForNow(why)) => {
                    refused.again = Some(Instant::now() + refused.backoff.next());
                    self.refused.insert(gpu.uuid.clone(), refused);
                    Watched::Nothing(why)
                }
            };
            if self.listener.status.set_watched(&gpu.uuid, watched.clone()) {
                let gpu = &gpu.uuid;
                match watched {
                    Watched::Events(events) => tracing::info!(gpu, ?events, "listening for events"),
                    Watched::Nothing(why) => tracing::warn!(gpu, why, "no events can be heard of this GPU"),
                }
            }
        }
        if new {
            self.listener.asks.look();
        }
        Ok(())
    }

    fn registered(&self, gpu: &Wanted) -> Option<&Registered> {
        self.by_handle.values().find(|registered| registered.uuid == gpu.uuid)
    }

    /// Puts one GPU into the set, or adds what it would not be listened to for before: all that it is listened to for.
    fn register(&mut self, gpu: &Wanted) -> Result<u64, Refusal> {
        let Listener { driver, calls, asks, .. } = self.listener;
        let Wanted { index, uuid, mig } = gpu;
        let nvml = driver.nvml();
        let device = calls.ask("nvmlDeviceGetHandleByIndex_v2", || nvml.device_by_index(*index))?;
        let found = calls.ask("nvmlDeviceGetUUID", || device.uuid())?;
        if found != *uuid {
            asks.look();
            return Err(Refusal::ForNow(format!("index {index} is another GPU's by now, {found}")));
        }
        let offered = calls.ask("nvmlDeviceGetSupportedEventTypes", || raw::supported(&device))?;
        let wanted = TYPES.iter().fold(0, |mask, (bit, _)| mask | bit) & offered;
        if wanted == 0 {
            return Err(Refusal::ForGood("its driver offers none of the events".to_owned()));
        }
        let mut mask = self.registered(gpu).map_or(0, |registered| registered.mask);
        if mask == 0 && wanted != MIG_CONFIG_CHANGE {
            mask = wanted & !MIG_CONFIG_CHANGE;
            self.add(&device, mask)?;
        }
        if wanted & MIG_CONFIG_CHANGE != 0 {
            match self.add(&device, MIG_CONFIG_CHANGE) {
                Ok(()) => mask |= MIG_CONFIG_CHANGE,
                Err(Refusal::ForGood(why)) if mask != 0 => {
                    tracing::debug!(gpu = uuid, why, "changes of its MIG configuration are not told");
                }
                Err(refusal) => return Err(refusal),
            }
        }
        self.by_handle.insert(raw::number(&device), Registered { uuid: uuid.clone(), mask, mig: *mig });
        Ok(mask)
    }

    /// Adds events of these types to the set.
    fn add(&self, device: &Device<'nvml>, mask: u64) -> Result<(), Refusal> {
        let registered =
            self.listener.calls.ask("nvmlDeviceRegisterEvents", || self.set.register(device, mask));
        registered.map_err(|error| {
            // nvml.h: after an unknown error the set is in no defined state.
            if error.is_unknown() { Refusal::Set(error) } else { error.into() }
        })
    }

    fn wait(&mut self) -> Result<(), End> {
        let began = Instant::now();
        let ms = u32::try_from(LONGEST_WAIT.as_millis()).unwrap_or(500);
        let set = self.set;
        match self.listener.calls.wait("nvmlEventSetWait_v2", || set.wait(ms)) {
            Ok(event) => self.tell(&event),
            Err(error) if error.is_timeout() => {
                if let Some(left) = SHORTEST_WAIT.checked_sub(began.elapsed()) {
                    self.listener.control.pause(left);
                }
                Ok(())
            }
            Err(error) => Err(End::Failed(error)),
        }
    }

    fn tell(&mut self, event: &RawEvent<'nvml>) -> Result<(), End> {
        let at = SystemTime::now();
        let Listener { calls, asks, reports, .. } = self.listener;
        let gpu_uuid = match self.by_handle.get(&raw::number(&event.gpu)) {
            Some(registered) => registered.uuid.clone(),
            None => match calls.ask("nvmlDeviceGetUUID", || event.gpu.uuid()) {
                Ok(uuid) => uuid,
                Err(error) => {
                    if self.unknown.ready() {
                        tracing::warn!(%error, "an event of a GPU that cannot be named; looking at all of them");
                    }
                    asks.look();
                    return Ok(());
                }
            },
        };
        let Some(kind) = kind(event.kind, event.data) else {
            tracing::debug!(gpu_uuid, bit = event.kind, "an event that was not asked for");
            return Ok(());
        };
        if kind == EventKind::MigConfigChange {
            asks.look();
        }
        // Beside the other types these numbers mean other things in the kernel, such as what the GPU needs.
        let is_xid = matches!(kind, EventKind::Xid(_));
        let event = HealthEvent {
            gpu_uuid,
            gpu_instance: event.gpu_instance.filter(|_| is_xid),
            compute_instance: event.compute_instance.filter(|_| is_xid),
            kind,
            at,
        };
        // A receiver that is slow makes this thread wait, and the driver keep what comes meanwhile.
        reports.blocking_send(Report::Event(event)).map_err(|_closed| End::NobodyListens)
    }
}

/// Why a GPU could not be put into the set.
enum Refusal {
    /// It can be tried again.
    ForNow(String),
    /// It or its driver has no events.
    ForGood(String),
    /// The set cannot be used any more.
    Set(CallError),
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        if error.driver_is_gone() {
            Self::Set(error)
        } else if error.is_refusal() {
            Self::ForGood(error.to_string())
        } else {
            Self::ForNow(error.to_string())
        }
    }
}

//! The thread "nvml-events", which waits for what the driver tells by itself.
//!
//! There is one set of events for the node. A GPU that cannot be listened to does not touch the others; a set that
//! fails is given up whole, and the session makes another one.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::calls::{Caller, lock};
use super::error::CallError;
use super::raw::events::{self as raw, EventSet, RawEvent};
use super::session::{Asks, OpenDriver, Report};
use super::status::{Status, Watched};
use super::throttle::Throttle;
use crate::health::{EventKind, HealthEvent};

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
    (0x100, |_| EventKind::MigConfigChange),
    (0x2000, |_| EventKind::FatalPoison),
    (0x4000, |_| EventKind::GpuUnavailable),
    (0x8000, |_| EventKind::RecoveryAction),
];

/// What an event of this type and with this data means.
fn kind(bit: u64, data: u64) -> Option<EventKind> {
    TYPES.iter().find(|(known, _)| *known == bit).map(|(_, kind)| kind(data))
}

/// What the session and the thread share.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone)]
struct State {
    /// UUIDs of the GPUs to be listened to.
    wanted: Vec<String>,
    /// Those that were not among them for a while.
    were_away: HashSet<String>,
    /// Which of them is being registered.
    registering: Option<String>,
    stop: bool,
}

impl Control {
    /// Listens to these from now on.
    pub(super) fn want(&self, gpus: Vec<String>) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.wanted, gpus);
        let gone: Vec<String> = before.into_iter().filter(|gpu| !state.wanted.contains(gpu)).collect();
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
    /// UUIDs of the GPUs in the set.
    by_handle: HashMap<usize, String>,
    /// Those that could not be put into it, and when they are tried again, if ever.
    refused: HashMap<String, (Backoff, Option<Instant>)>,
    unknown: Throttle,
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
            if self.by_handle.values().any(|gpu| were_away.contains(gpu) && wanted.contains(gpu)) {
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
    fn register_all(&mut self, wanted: &[String]) -> Result<(), CallError> {
        self.refused.retain(|gpu, _| wanted.contains(gpu));
        let mut new = false;
        for gpu in wanted {
            let in_set = self.by_handle.values().any(|known| known == gpu);
            let due = self.refused.get(gpu).is_none_or(|(_, at)| at.is_some_and(|at| at <= Instant::now()));
            if in_set || !due {
                continue;
            }
            lock(&self.listener.control.state).registering = Some(gpu.clone());
            let registered = self.register(gpu);
            lock(&self.listener.control.state).registering = None;
            let (mut backoff, _) = self.refused.remove(gpu).unwrap_or_default();
            let watched = match registered {
                Ok(kinds) => {
                    new = true;
                    Watched::Events(kinds)
                }
                Err(Refusal::Set(error)) => return Err(error),
                Err(Refusal::ForGood(why)) => {
                    self.refused.insert(gpu.clone(), (backoff, None));
                    Watched::Nothing(why)
                }
                Err(Refusal::ForNow(why)) => {
                    let again = Instant::now() + backoff.next();
                    self.refused.insert(gpu.clone(), (backoff, Some(again)));
                    Watched::Nothing(why)
                }
            };
            if self.listener.status.set_watched(gpu, watched.clone()) {
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

    /// Puts one GPU into the set: what it is listened to for.
    fn register(&mut self, uuid: &str) -> Result<Vec<&'static str>, Refusal> {
        let Listener { driver, calls, .. } = self.listener;
        let nvml = driver.nvml();
        let gpu = calls.ask("nvmlDeviceGetHandleByUUID", || nvml.device_by_uuid(uuid))?;
        let offered = calls.ask("nvmlDeviceGetSupportedEventTypes", || raw::supported(&gpu))?;
        let types: Vec<_> = TYPES.iter().filter(|(bit, _)| offered & bit != 0).collect();
        if types.is_empty() {
            return Err(Refusal::ForGood("its driver offers none of the events".to_owned()));
        }
        let mask = types.iter().fold(0, |mask, (bit, _)| mask | bit);
        match calls.ask("nvmlDeviceRegisterEvents", || self.set.register(&gpu, mask)) {
            Ok(()) => {}
            // nvml.h: after an unknown error the set is in no defined state.
            Err(error) if error.is_unknown() => return Err(Refusal::Set(error)),
            Err(error) => return Err(error.into()),
        }
        self.by_handle.insert(raw::number(&gpu), uuid.to_owned());
        Ok(types.iter().map(|(_, kind)| kind(0).word()).collect())
    }

    fn wait(&mut self) -> Result<(), End> {
        let began = Instant::now();
        let ms = u32::try_from(LONGEST_WAIT.as_millis()).unwrap_or(500);
        let set = self.set;
        match self.listener.calls.ask("nvmlEventSetWait_v2", || set.wait(ms)) {
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
            Some(uuid) => uuid.clone(),
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

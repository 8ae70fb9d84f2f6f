//! Event sets: what a client waits on to hear of errors and changes.
#![allow(non_snake_case, reason = "NVML's names")]

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    abi::{EventData, EventDataV1},
    call::{Call, Device, delay},
    exports,
    ffi::{Handle, Out},
    handles::Object,
    node,
};
use crate::{
    Code, UnprivilegedEvents,
    event::{self, MIG_CONFIG_CHANGE, NO_INSTANCE, Received},
    host::Watch,
    node::events_file,
    state::GpuState,
};

/// Every `nvmlEventType…` bit of nvml.h.
const ALL: u64 = 0xff9f;
/// Those of a GPU that knows no MIG: it has neither that change nor the newer events.
const WITHOUT_MIG: u64 = 0x9f;

/// How long a wait goes without looking, where changes cannot be watched for.
const UNWATCHED: Duration = Duration::from_millis(5);

/// The next set's handle: far from the other handles' numbers. None is used twice.
static NEXT: AtomicUsize = AtomicUsize::new(0x0fe7_0000_0000);
const STEP: usize = 16;

exports! { call call;
    fn nvmlDeviceGetSupportedEventTypes(device: Handle, types: Out<u64>) {
        types.put(supported(call.gpu(device)?))
    }
    fn nvmlEventSetCreate(set: Out<Handle>) {
        if set.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        let handle = Handle(NEXT.fetch_add(STEP, Ordering::Relaxed));
        sets().insert(handle.0, Arc::new(EventSet::new()));
        set.put(handle)
    }
    fn nvmlEventSetFree(set: Handle) {
        sets().remove(&set.0).map(drop).ok_or(Code::INVALID_ARGUMENT)
    }
    fn nvmlDeviceRegisterEvents(device: Handle, types: u64, set: Handle) {
        let set = find(set)?;
        // Only whole GPUs are reported on.
        let Device::Gpu(gpu) = call.device(device)? else { return Err(Code::NOT_SUPPORTED) };
        if types & !supported(gpu) != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        if types & MIG_CONFIG_CHANGE != 0 && call.state.mig_event_needs_mig && !gpu.mig_mode {
            return Err(Code::NOT_SUPPORTED);
        }
        set.register(gpu, types);
        Ok(())
    }
    fn nvmlEventSetWait(set: Handle, data: Out<EventDataV1>, timeout_ms: u32) {
        let event = wait(call, set, data.is_null(), timeout_ms)?;
        data.put(EventDataV1 { device: event.device, kind: event.kind, data: event.data })
    }
    fn nvmlEventSetWait_v2(set: Handle, data: Out<EventData>, timeout_ms: u32) {
        data.put(wait(call, set, data.is_null(), timeout_ms)?)
    }
}

/// A client's event set.
#[derive(Debug)]
struct EventSet {
    /// Sees events and edits. Without it, waits look again every few milliseconds.
    watch: Option<Watch>,
    heard: Mutex<Heard>,
}

/// What a set listens to, and how far it has heard.
#[derive(Debug)]
struct Heard {
    /// By GPU UUID: the types asked for, and from where on in the file.
    registered: HashMap<String, (u64, u64)>,
    /// How far the file was read: always at the start of a line.
    position: u64,
}

fn sets() -> MutexGuard<'static, HashMap<usize, Arc<EventSet>>> {
    static SETS: LazyLock<Mutex<HashMap<usize, Arc<EventSet>>>> = LazyLock::new(Mutex::default);
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(set: Handle) -> Result<Arc<EventSet>, Code> {
    sets().get(&set.0).map(Arc::clone).ok_or(Code::INVALID_ARGUMENT)
}

fn supported(gpu: &GpuState) -> u64 {
    match &gpu.events {
        Some(types) => types.iter().fold(0, |all, one| all | *one as u64),
        None if gpu.model.knows_mig() => ALL,
        None => WITHOUT_MIG,
    }
}

impl EventSet {
    fn new() -> Self {
        let watch = node::root().and_then(|root| Watch::new(&[&events_file(root), root]).ok());
        let heard = Heard { registered: HashMap::new(), position: events_length() };
        Self { watch, heard: Mutex::new(heard) }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, gpu: &GpuState, types: u64) {
        let since = events_length();
        let mut heard = self.heard();
        let entry = heard.registered.entry(gpu.uuid.clone()).or_insert((0, since));
        entry.0 |= types;
    }

    /// The next event that was asked for and that the client may hear of.
    fn next(&self, may_hear: impl Fn(&Received) -> bool) -> Option<Received> {
        let root = node::root()?;
        let mut heard = self.heard();
        let mut file = File::open(events_file(root)).ok()?;
        file.seek(SeekFrom::Start(heard.position)).ok()?;
        let mut lines = BufReader::new(file);
        let mut line = String::new();
        // A line without its end is still being written.
        while lines.read_line(&mut line).is_ok_and(|_| line.ends_with('\n')) {
            let at = heard.position;
            heard.position += line.len() as u64;
            let wanted = event::parse(&line).filter(|event| {
                let registered = heard.registered.get(&event.gpu);
                registered.is_some_and(|(types, since)| event.kind & types != 0 && at >= *since)
                    && may_hear(event)
            });
            if wanted.is_some() {
                return wanted;
            }
            line.clear();
        }
        None
    }
}

fn events_length() -> u64 {
    let file = node::root().map(events_file);
    file.and_then(|file| std::fs::metadata(file).ok()).map_or(0, |found| found.len())
}

/// Waits for an event. An edit that makes waits fail, or that takes the driver away, ends it.
fn wait(call: &Call, set: Handle, nowhere: bool, timeout_ms: u32) -> Result<EventData, Code> {
    let set = find(set)?;
    if nowhere {
        return Err(Code::INVALID_ARGUMENT);
    }
    for gpu in call.state.gpus.iter().filter(|gpu| set.heard().registered.contains_key(&gpu.uuid)) {
        delay(call.faults(Some(gpu.index), None).filter(|fault| fault.call == call.name));
    }
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        let state = node::state()?;
        node::check_driver(&state)?;
        if let Some(code) = failed(call, &set, &state) {
            return Err(code);
        }
        let hears_all = node::shared().hears_all;
        let hears_some = state.unprivileged_events == UnprivilegedEvents::AsDocumented;
        if let Some(event) = set.next(|event| hears_all || hears_some || !event.split) {
            // Who does not hear all hears of the whole GPU only.
            let instance = |id| if hears_all { id } else { NO_INSTANCE };
            return Ok(EventData {
                device: node::shared().handles.of(Object::Gpu(event.gpu)),
                kind: event.kind,
                data: event.data,
                gi: instance(event.gi),
                ci: instance(event.ci),
            });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Code::TIMEOUT);
        }
        let left = node::coming_in().map_or(left, |soon| left.min(soon));
        match &set.watch {
            Some(watch) => watch.wait(left),
            None => crate::host::pause(left.min(UNWATCHED)),
        }
    }
}

/// The code that a fault wants for this wait: one for all GPUs, or one that names the wait and a GPU that
/// the set listens to.
fn failed(call: &Call, set: &EventSet, state: &Arc<crate::NodeState>) -> Option<Code> {
    let now = call.at(Arc::clone(state));
    let heard = set.heard();
    let listened = state.gpus.iter().filter(|gpu| heard.registered.contains_key(&gpu.uuid));
    let mut named = listened.flat_map(|gpu| now.faults(Some(gpu.index), None));
    now.faults(None, None)
        .find_map(crate::Fault::code)
        .or_else(|| named.find_map(|fault| fault.code().filter(|_| fault.call == call.name)))
}

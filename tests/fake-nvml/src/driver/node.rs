//! The node that the loaded library plays: found once, read again whenever its description changed.

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{handles::Handles, rights};
use crate::{
    Client, Code, Description, DriverState, Event, EventType, Fault, Node, NodeError, Nodes, Right,
    clients::{self, OwnFile},
    counters::Counters,
    driver::CALLS,
    host,
    node::{DESCRIPTION, counters_file, error_file},
    state::{GpuState, NodeState},
    tree::{self, Written},
};

/// What the process shares. Held only for moments: never while a call waits or is delayed.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Clients that initialised and did not shut down.
    pub(super) clients: u32,
    /// What tells others about them, where this process may write it.
    own_file: Option<OwnFile>,
    pub(super) handles: Handles,
    /// Whether the driver tells this process of what happens on GPUs with instances: known at its first `nvmlInit`.
    pub(super) hears_all: bool,
    /// What the last good description means.
    state: Option<Arc<NodeState>>,
    /// Of the description that was read last, good or bad.
    stamp: Option<Stamp>,
    /// What an edit by hand means, and when NVML is to show it: the files are ahead.
    coming: Option<Coming>,
}

/// A state that NVML is about to show.
#[derive(Debug)]
struct Coming {
    due: Instant,
    state: Arc<NodeState>,
    /// What clients are told then.
    events: String,
}

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// The process's part in the node.
pub(super) fn shared() -> MutexGuard<'static, Shared> {
    static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node's folder: `FAKE_NVML_NODE`, or the first folder above the library with a description.
pub(super) fn root() -> Option<&'static Path> {
    static ROOT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        if let Some(root) = env::var_os("FAKE_NVML_NODE") {
            return Some(PathBuf::from(root));
        }
        let library = host::own_library()?;
        library.ancestors().skip(1).find(|folder| folder.join(DESCRIPTION).is_file()).map(Path::to_owned)
    });
    ROOT.as_deref()
}

/// Counts a call of the `index`-th function, where the node's table can be written.
pub(super) fn count(index: usize) {
    if let Some(counters) = counters() {
        counters.count(index);
    }
}

/// Notes what a client that initialises NVML may hear. To be called before it counts as one.
pub(super) fn note_rights(shared: &mut Shared, state: &NodeState) {
    if shared.clients == 0 {
        shared.hears_all = [Right::Admin, Right::Monitor].into_iter().any(|right| rights::has(state, right));
    }
}

/// The functions' counts.
fn counters() -> Option<&'static Counters> {
    static COUNTERS: LazyLock<Option<Counters>> =
        LazyLock::new(|| Counters::open(&counters_file(root()?), &CALLS).ok());
    COUNTERS.as_ref()
}

/// The node as it is now, whatever its driver's state.
pub(super) fn state() -> Result<Arc<NodeState>, Code> {
    // No node: as if the kernel driver were missing, for that is what the client can say about it.
    let root = root().ok_or(Code::DRIVER_NOT_LOADED)?;
    rights::check(root)?;
    let file = root.join(DESCRIPTION);
    let stamp = fs::metadata(&file).ok().map(|found| Stamp {
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
    });
    let mut shared = shared();
    if stamp.is_some() && stamp != shared.stamp {
        shared.stamp = stamp;
        let read = || Description::read(&file).and_then(|description| description.resolve());
        // Read while nobody writes, so that the files are not made as they were before. A node that this process may
        // not write plays on with the files it has.
        let written = tree::locked(root, || {
            let state = read()?;
            let written = tree::write(root, &state).unwrap_or_default();
            Ok((state, written))
        });
        let now = match written {
            Err(NodeError::Io { .. }) => read().map(|state| (state, Written::default())),
            other => other,
        };
        match now {
            Ok((state, written)) => {
                let waits = written.files_changed && shared.state.is_some();
                let gap = if waits { state.file_gap } else { Duration::ZERO };
                shared.coming = Some(Coming {
                    due: Instant::now() + gap,
                    state: Arc::new(state),
                    events: written.events,
                });
                report(root, "");
            }
            Err(error) => report(root, &format!("{error}\n")),
        }
    }
    if let Some(coming) = shared.coming.take_if(|coming| coming.due <= Instant::now()) {
        shared.handles.forget_gone(&coming.state);
        shared.state = Some(coming.state);
        // The driver tells of it when it is done.
        let _told = tree::append_events(root, &coming.events);
    }
    let state = shared.state.clone().ok_or(Code::UNKNOWN)?;
    // Statics are made anew whenever the library is loaded, and not when it only is opened again.
    OWN_VERSION.get_or_init(|| state.driver_version.clone());
    Ok(state)
}

/// How long it is until there is more to show; `None` where nothing is coming.
pub(super) fn coming_in() -> Option<Duration> {
    shared().coming.as_ref().map(|coming| coming.due.saturating_duration_since(Instant::now()))
}

/// Gives the driver's entries of `proc` another time of change, where the node's kernel does so.
pub(super) fn move_times(state: &NodeState) {
    let Some(root) = root().filter(|_| state.proc_times_move) else { return };
    // Files that go meanwhile have no time any more.
    let _moved = tree::move_times(&root.join("proc/driver"));
}

/// The version of this library: that of the driver when it was loaded.
static OWN_VERSION: OnceLock<String> = OnceLock::new();

/// Says why a description was refused, or that it no longer is.
pub(super) fn report(root: &Path, problem: &str) {
    let file = error_file(root);
    let said = fs::read_to_string(&file).unwrap_or_default();
    if said != problem {
        // Nowhere else to say it: a library has no output of its own.
        let _written = tree::replace(root, &file, problem.as_bytes());
    }
}

/// What the driver's state lets calls answer.
pub(super) fn check_driver(state: &NodeState) -> Result<(), Code> {
    match state.driver {
        DriverState::Loaded if OWN_VERSION.get().is_some_and(|own| *own != state.driver_version) => {
            Err(Code::LIB_RM_VERSION_MISMATCH)
        }
        DriverState::Loaded => Ok(()),
        DriverState::NotLoaded => Err(Code::DRIVER_NOT_LOADED),
        DriverState::VersionMismatch => Err(Code::LIB_RM_VERSION_MISMATCH),
    }
}

/// Makes the device nodes of capabilities that a client asks for, as NVIDIA's library does, where the node's
/// description leaves it to the library.
pub(super) fn make_nodes(state: &NodeState, minors: &[u32]) {
    if let (Nodes::OnUse, Some(root)) = (state.nodes, root()) {
        // Where this process may make none, there are none: the slice is shown all the same.
        let _made = minors.iter().try_for_each(|minor| tree::make_capability_node(root, *minor));
    }
}

/// Tells others that this process has NVML open, or no longer has.
pub(super) fn tell_clients(shared: &mut Shared) {
    if shared.clients == 0 {
        shared.own_file = None;
    } else if let (None, Some(root)) = (&shared.own_file, root()) {
        let created = tree::locked(root, || OwnFile::create(root).map_err(NodeError::io("make", root)));
        shared.own_file = created.ok();
    }
}

/// Opens a GPU, which takes a while where nobody has it open and persistence mode is off.
pub(super) fn open(gpu: &GpuState) {
    if shared().own_file.as_ref().is_some_and(|file| file.has(&gpu.uuid)) {
        return;
    }
    if let Some(start) = gpu.start
        && others().iter().all(|client| !client.gpus.contains(&gpu.uuid))
    {
        host::pause(start);
    }
    if let Some(file) = &mut shared().own_file {
        file.opens(&gpu.uuid);
    }
}

/// The other clients.
pub(super) fn others() -> Vec<Client> {
    let Some(root) = root() else { return Vec::new() };
    let all = tree::locked(root, || Ok(clients::all(root))).unwrap_or_default();
    let shared = shared();
    let own = |path: &Path| shared.own_file.as_ref().is_some_and(|file| file.is(path));
    all.into_iter().filter(|(path, _)| !own(path)).map(|(_, client)| client).collect()
}

/// Notes that a fault hit a call, and tells of an unavailable GPU when it has hit enough of them.
pub(super) fn note_hit(state: &NodeState, fault: &Fault, calls: u32, gpu: u32) {
    static HITS: Mutex<Vec<(Fault, u32)>> = Mutex::new(Vec::new());
    let mut hits = HITS.lock().unwrap_or_else(PoisonError::into_inner);
    // A fault that was taken out starts anew when it comes back.
    hits.retain(|(known, _)| state.faults.contains(known));
    let at = hits.iter().position(|(known, _)| known == fault).unwrap_or_else(|| {
        hits.push((fault.clone(), 0));
        hits.len() - 1
    });
    hits[at].1 = hits[at].1.saturating_add(1);
    if hits[at].1 == calls
        && let Some(root) = root()
    {
        let event = Event::other(EventType::GpuUnavailable as u64, 0).on_gpu(gpu);
        // A node that this process may not write has no events either.
        let _sent = Node::open(root).and_then(|node| node.send(&event));
    }
}

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
    Code, Description, DriverState, NodeError, Nodes, Right,
    counters::{CLIENTS, Counters},
    driver::CALLS,
    host,
    node::{DESCRIPTION, counters_file, error_file},
    state::NodeState,
    tree,
};

/// What the process shares. Held only for moments: never while a call waits or is delayed.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Clients that initialised and did not shut down.
    pub(super) clients: u32,
    pub(super) handles: Handles,
    /// Whether the driver tells this process of what happens on GPUs with instances: known at its first `nvmlInit`.
    pub(super) hears_all: bool,
    /// What the last good description means.
    state: Option<Arc<NodeState>>,
    /// Of the description that was read last, good or bad.
    stamp: Option<Stamp>,
    /// What an edit by hand means, and when NVML is to show it: the files are ahead.
    coming: Option<(Instant, Arc<NodeState>)>,
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

/// Counts a client that comes, or one that goes.
pub(super) fn count_client(comes: bool) {
    match counters() {
        Some(counters) if comes => counters.count(CALLS.len()),
        Some(counters) => counters.uncount(CALLS.len()),
        None => {}
    }
}

/// The functions' counts, then the clients'.
fn counters() -> Option<&'static Counters> {
    static COUNTERS: LazyLock<Option<Counters>> = LazyLock::new(|| {
        let names: Vec<&str> = CALLS.iter().copied().chain([CLIENTS]).collect();
        Counters::open(&counters_file(root()?), &names).ok()
    });
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
            let changed = tree::write(root, &state).unwrap_or(false);
            Ok((state, changed))
        });
        let now = match written {
            Err(NodeError::Io { .. }) => read().map(|state| (state, false)),
            other => other,
        };
        match now {
            Ok((state, changed)) => {
                let gap = if changed && shared.state.is_some() { state.file_gap } else { Duration::ZERO };
                shared.coming = Some((Instant::now() + gap, Arc::new(state)));
                report(root, "");
            }
            Err(error) => report(root, &format!("{error}\n")),
        }
    }
    if let Some((_, state)) = shared.coming.take_if(|(due, _)| *due <= Instant::now()) {
        shared.handles.forget_gone(&state);
        shared.state = Some(state);
    }
    let state = shared.state.clone().ok_or(Code::UNKNOWN)?;
    // Statics are made anew whenever the library is loaded, and not when it only is opened again.
    OWN_VERSION.get_or_init(|| state.driver_version.clone());
    Ok(state)
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

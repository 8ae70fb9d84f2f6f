//! The files of a node with NVIDIA's driver, below `proc`, `dev` and `sys`.
//!
//! Capability files come and go with the instances; their folders' times stand still, as in a real `/proc`.
//! Device nodes of instances are made when somebody asks for them, and nobody removes them. Only what the fake
//! makes is ever removed: in `dev` the names that start with `nvidia`, in `proc/driver` and
//! `sys/bus/pci/devices` everything.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{self as unix_fs, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    DriverState, NodeError, Right, Rights,
    changes::{self, Identities},
    device_file::{DeviceFile, make_device},
    host,
    layout::{LAST_CI, LAST_GI},
    node::events_file,
    state::{GpuInstanceState, GpuState, NodeState, ci_minor, gi_minor},
    times::{Times, files_below},
};

/// Character majors; the first is fixed in the kernel's list, the others are as real nodes have had them.
const NVIDIA_MAJOR: u32 = 195;
const UVM_MAJOR: u32 = 508;
const CAPS_MAJOR: u32 = 511;
/// Major versions of the driver that changed what is in `/proc`.
const FIRST_WITH_FABRIC: u32 = 525;
const FIRST_WITHOUT_FRONTEND: u32 = 545;
const FIRST_WITH_IMEX: u32 = 550;
/// The last capability minor: after those of 32 GPUs.
const IMEX_MINOR: u32 = 4323;
/// Where a client reads what it may do.
const PROC_SELF: &str = "proc/self";
/// GPU minors that have capability minors.
const GPUS: u32 = 32;

/// Where the capability files are.
const CAPABILITIES: &str = "proc/driver/nvidia/capabilities";

enum Entry {
    Folder,
    Text(String),
    Device(DeviceFile),
    Link(&'static str),
}

/// The folder of the fake's own files in a node.
pub(crate) fn control(root: &Path) -> PathBuf {
    root.join("fake-nvml")
}

/// Runs `work` while no other process changes the node.
pub(crate) fn locked<T>(root: &Path, work: impl FnOnce() -> Result<T, NodeError>) -> Result<T, NodeError> {
    let path = control(root).join("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(NodeError::io("open", &path))?;
    lock.lock().map_err(NodeError::io("lock", &path))?;
    work()
}

/// Writes a file in one step, so that nobody reads half of it.
pub(crate) fn replace(root: &Path, path: &Path, contents: &[u8]) -> Result<(), NodeError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = control(root).join(format!("new-{}-{name}", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(contents)?;
        // The kernel's own time stamps move in steps of milliseconds, within which two contents of the same
        // size could not be told apart.
        file.set_modified(SystemTime::now())
    });
    written.map_err(NodeError::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(NodeError::io("write", path))
}

/// What writing the tree did.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Whether capability files changed.
    pub(crate) files_changed: bool,
    /// What the driver tells of it, once NVML shows it: lines for the list of events.
    pub(crate) events: String,
}

/// Makes the tree as the state has it: writes what differs, removes what is gone. To be called `locked`.
pub(crate) fn write(root: &Path, state: &NodeState) -> Result<Written, NodeError> {
    let before = Times::of(&root.join(CAPABILITIES));
    let written = write_all(root, state)?;
    before.restore();
    Ok(written)
}

fn write_all(root: &Path, state: &NodeState) -> Result<Written, NodeError> {
    let wanted = entries(state);
    let capabilities = |path: &Path| path.starts_with(CAPABILITIES) && path.ends_with("access");
    let mut written = forget_replaced(root, state)?;
    written.files_changed |= files_below(&root.join(CAPABILITIES)).iter().any(|file| {
        file.strip_prefix(root).is_ok_and(|file| capabilities(file) && !wanted.contains_key(file))
    });
    for folder in ["proc/driver", "sys/bus/pci/devices"] {
        sweep(root, &root.join(folder), &wanted)?;
    }
    sweep_devices(root, &wanted)?;
    clear_the_way(root, &wanted)?;
    for (relative, entry) in &wanted {
        let path = root.join(relative);
        match entry {
            Entry::Folder => fs::create_dir_all(&path).map_err(NodeError::io("make", &path))?,
            Entry::Text(text) => {
                if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
                    continue;
                }
                written.files_changed |= capabilities(relative);
                make_parent(&path)?;
                replace(root, &path, text.as_bytes())?;
            }
            Entry::Device(device) => make_device(&path, *device)?,
            Entry::Link(target) if fs::read_link(&path).is_ok_and(|found| found == Path::new(target)) => {}
            Entry::Link(target) => {
                make_parent(&path)?;
                unix_fs::symlink(target, &path).map_err(NodeError::io("make", &path))?;
            }
        }
    }
    Ok(written)
}

/// Makes the device nodes of all instances, as what runs on a host does when it is told to. To be called `locked`.
pub(crate) fn make_capability_nodes(root: &Path, state: &NodeState) -> Result<(), NodeError> {
    let instances = state.gpus.iter().flat_map(|gpu| &gpu.instances);
    let minors = instances.flat_map(|instance| {
        [instance.minor].into_iter().chain(instance.compute.iter().map(|compute| compute.minor))
    });
    if state.driver == DriverState::NotLoaded {
        return Ok(());
    }
    minors.into_iter().try_for_each(|minor| make_capability_node(root, minor))
}

/// Makes the device node of one capability, if it is not there.
pub(crate) fn make_capability_node(root: &Path, minor: u32) -> Result<(), NodeError> {
    let (name, device) = capability_node(minor);
    make_device(&root.join(name), device)
}

/// Removes what no boot leaves: every device node. The next `write` makes those that the driver has at first.
pub(crate) fn forget_nodes(root: &Path) -> Result<(), NodeError> {
    sweep_devices(root, &BTreeMap::new())?;
    sweep(root, &root.join("dev/nvidia-caps"), &BTreeMap::new())
}

/// Adds lines to the list of events, in one write, so that lines of two senders do not mix.
pub(crate) fn append_events(root: &Path, lines: &str) -> Result<(), NodeError> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = events_file(root);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(lines.as_bytes())).map_err(NodeError::io("write", &path))
}

/// Removes the capability files of instances that are others than those they were written for, so that they are made
/// anew as the driver does it: another file under the same name. Answers whether there were any, and what the driver
/// tells of those that came and went.
fn forget_replaced(root: &Path, state: &NodeState) -> Result<Written, NodeError> {
    let file = control(root).join("instances");
    let before = fs::read_to_string(&file).unwrap_or_default();
    let now = identities(state);
    let mut text = String::new();
    for (path, identity) in &now {
        let _infallible = writeln!(text, "{path} {identity}");
    }
    if text == before {
        return Ok(Written::default());
    }
    let before = before.lines().filter_map(|line| line.split_once(' '));
    let before: Identities = before.map(|(path, identity)| (path.to_owned(), identity.to_owned())).collect();
    let mut removed = false;
    for (path, identity) in &before {
        let replaced = now.get(path).is_some_and(|now| now != identity);
        let file = root.join(path);
        if replaced && file.is_file() {
            fs::remove_file(&file).map_err(NodeError::io("remove", &file))?;
            removed = true;
        }
    }
    replace(root, &file, text.as_bytes())?;
    let lines = state.gpus.iter().map(|gpu| changes::lines(&gpu_folder(gpu), gpu, &before, &now));
    let events = if state.tells_changes() { lines.collect() } else { String::new() };
    Ok(Written { files_changed: removed, events })
}

/// By folder and capability file: which GPU or instance it belongs to.
fn identities(state: &NodeState) -> Identities {
    let mut identities = Identities::new();
    for gpu in &state.gpus {
        identities.insert(gpu_folder(gpu), changes::gpu_identity(gpu));
        for instance in &gpu.instances {
            let folder = instance_folder(gpu, instance);
            let place = instance.placement;
            let of_instance = format!("{}:{}:{}", instance.profile.id, place.start, instance.generation);
            for compute in &instance.compute {
                let uuid = gpu.mig.iter().find(|mig| mig.index == compute.index).map_or("", |mig| &mig.uuid);
                let of_part =
                    format!("{of_instance}:{}:{}:{uuid}", compute.placement.start, compute.placement.size);
                identities.insert(format!("{folder}/ci{}/access", compute.ci), of_part);
            }
            identities.insert(format!("{folder}/access"), of_instance);
        }
    }
    identities
}

fn gpu_folder(gpu: &GpuState) -> String {
    format!("proc/driver/nvidia/capabilities/gpu{}/mig", gpu.minor)
}

fn instance_folder(gpu: &GpuState, instance: &GpuInstanceState) -> String {
    format!("{}/gi{}", gpu_folder(gpu), instance.gi)
}

pub(crate) fn make_parent(path: &Path) -> Result<(), NodeError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(NodeError::io("make", parent)),
        None => Ok(()),
    }
}

/// Gives each file below the folder another time of change than it has.
pub(crate) fn move_times(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let before = fs::symlink_metadata(&path)?;
        if before.is_dir() {
            move_times(&path)?;
            continue;
        }
        let time = |found: &fs::Metadata| (found.ctime(), found.ctime_nsec());
        // The clock for files moves in steps of some milliseconds.
        while time(&fs::symlink_metadata(&path)?) == time(&before) {
            host::pause(Duration::from_millis(1));
            fs::set_permissions(&path, before.permissions())?;
        }
    }
    Ok(())
}

/// `proc/self` is a folder of the fake's or a link to the reader's own: removes the one that is not wanted.
fn clear_the_way(root: &Path, wanted: &BTreeMap<PathBuf, Entry>) -> Result<(), NodeError> {
    let path = root.join(PROC_SELF);
    let Ok(found) = fs::symlink_metadata(&path) else { return Ok(()) };
    let removed = match (wanted.contains_key(Path::new(PROC_SELF)), found.is_symlink()) {
        (true, false) => fs::remove_dir_all(&path),
        (false, true) => fs::remove_file(&path),
        _ => Ok(()),
    };
    removed.map_err(NodeError::io("remove", path))
}

/// Removes files below `folder` that are not wanted, and folders that this leaves empty.
fn sweep(root: &Path, folder: &Path, wanted: &BTreeMap<PathBuf, Entry>) -> Result<(), NodeError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(NodeError::io("read", folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(NodeError::io("read", folder))?.path();
        if path.is_dir() {
            sweep(root, &path, wanted)?;
            if path.strip_prefix(root).is_ok_and(|relative| wanted.contains_key(relative)) {
                continue;
            }
            let empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
            if empty {
                fs::remove_dir(&path).map_err(NodeError::io("remove", &path))?;
            }
        } else if path.strip_prefix(root).is_ok_and(|relative| !wanted.contains_key(relative)) {
            fs::remove_file(&path).map_err(NodeError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Removes the nodes of GPUs that are not there any more. What another driver has in `dev`, such as `nvidia-fs0`, stays.
fn sweep_devices(root: &Path, wanted: &BTreeMap<PathBuf, Entry>) -> Result<(), NodeError> {
    let Ok(entries) = fs::read_dir(root.join("dev")) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        let ours = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let gone = path.strip_prefix(root).is_ok_and(|relative| !wanted.contains_key(relative));
        if ours && gone && !path.is_dir() {
            fs::remove_file(&path).map_err(NodeError::io("remove", &path))?;
        }
    }
    Ok(())
}

fn entries(state: &NodeState) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut text = |path: String, text: String| {
        entries.insert(PathBuf::from(path), Entry::Text(text));
    };
    // The GPUs are on the bus whether or not a driver is loaded.
    for gpu in &state.gpus {
        let folder = format!("sys/bus/pci/devices/{}", gpu.pci);
        let id = gpu.model.pci_device_id;
        text(format!("{folder}/numa_node"), format!("{}\n", gpu.numa.map_or(-1, i64::from)));
        text(format!("{folder}/vendor"), format!("{:#06x}\n", id & 0xffff));
        text(format!("{folder}/device"), format!("{:#06x}\n", id >> 16));
        text(format!("{folder}/class"), "0x030200\n".to_owned());
    }
    if state.rights == Rights::OfProcess {
        entries.insert(PathBuf::from(PROC_SELF), Entry::Link("/proc/self"));
    } else {
        for (name, content) in process(state.rights.has(Right::Admin)) {
            entries.insert(PathBuf::from(format!("{PROC_SELF}/{name}")), Entry::Text(content));
        }
    }
    let mut text = |path: String, text: String| {
        entries.insert(PathBuf::from(path), Entry::Text(text));
    };
    let loaded = state.driver != DriverState::NotLoaded;
    let major = state.driver_version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    text("proc/devices".to_owned(), devices(loaded, major));
    if !loaded {
        return entries;
    }
    let version = &state.driver_version;
    text(
        "proc/driver/nvidia/version".to_owned(),
        format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  (fake-nvml)\n"),
    );
    text("proc/driver/nvidia-caps/mig-minors".to_owned(), mig_minors());
    text(format!("{CAPABILITIES}/mig/config"), capability(1, 256));
    text(format!("{CAPABILITIES}/mig/monitor"), capability(2, 292));
    if major >= FIRST_WITH_FABRIC {
        text("proc/driver/nvidia-caps/nvlink-minors".to_owned(), "fabric-mgmt 0\n".to_owned());
        text(format!("{CAPABILITIES}/fabric-mgmt"), capability(0, 256));
        let imex =
            if major >= FIRST_WITH_IMEX { format!("fabric-imex-mgmt {IMEX_MINOR}\n") } else { String::new() };
        text("proc/driver/nvidia-caps/sys-minors".to_owned(), imex);
    }
    if major >= FIRST_WITH_IMEX {
        text(format!("{CAPABILITIES}/fabric-imex-mgmt"), capability(IMEX_MINOR, 256));
    }
    for gpu in &state.gpus {
        text(format!("proc/driver/nvidia/gpus/{}/information", gpu.pci), information(gpu));
        for instance in &gpu.instances {
            let folder = instance_folder(gpu, instance);
            if !instance.access_file_gone {
                text(format!("{folder}/access"), capability(instance.minor, 292));
            }
            for compute in instance.compute.iter().filter(|compute| !compute.access_file_gone) {
                text(format!("{folder}/ci{}/access", compute.ci), capability(compute.minor, 292));
            }
        }
    }
    let folders = state.gpus.iter().map(|gpu| format!("{CAPABILITIES}/gpu{}/mig", gpu.minor));
    let folders =
        folders.flat_map(|mig| [PathBuf::from(&mig).parent().map(Path::to_owned), Some(mig.into())]);
    entries.extend(folders.flatten().map(|folder| (folder, Entry::Folder)));
    entries.extend(device_nodes(state));
    entries
}

fn device_nodes(state: &NodeState) -> BTreeMap<PathBuf, Entry> {
    let mut nodes = BTreeMap::new();
    let mut node = |name: String, major, minor| {
        let device = DeviceFile::Plain(major, minor);
        nodes.insert(PathBuf::from(format!("dev/{name}")), Entry::Device(device));
    };
    node("nvidiactl".to_owned(), NVIDIA_MAJOR, 255);
    node("nvidia-modeset".to_owned(), NVIDIA_MAJOR, 254);
    node("nvidia-uvm".to_owned(), UVM_MAJOR, 0);
    node("nvidia-uvm-tools".to_owned(), UVM_MAJOR, 1);
    for gpu in &state.gpus {
        node(format!("nvidia{}", gpu.minor), NVIDIA_MAJOR, gpu.minor);
    }
    for (minor, right) in [(1, Right::Config), (2, Right::Monitor)] {
        let opens = state.rights.has(right);
        let device = if opens { DeviceFile::Opens } else { DeviceFile::Refuses(CAPS_MAJOR, minor) };
        let path = PathBuf::from(format!("dev/nvidia-caps/nvidia-cap{minor}"));
        nodes.insert(path, Entry::Device(device));
    }
    nodes
}

fn capability_node(minor: u32) -> (PathBuf, DeviceFile) {
    (PathBuf::from(format!("dev/nvidia-caps/nvidia-cap{minor}")), DeviceFile::Plain(CAPS_MAJOR, minor))
}

/// What a client reads of itself: its capability set, which is root's or a container's usual one, and that it is in
/// the initial user namespace.
fn process(admin: bool) -> [(&'static str, String); 2] {
    let set = if admin { "000001ffffffffff" } else { "00000000a80425fb" };
    let status = format!(
        "Name:\tclient\nUid:\t0\t0\t0\t0\nCapInh:\t0000000000000000\nCapPrm:\t{set}\nCapEff:\t{set}\n\
         CapBnd:\t{set}\nCapAmb:\t0000000000000000\n"
    );
    [("status", status), ("uid_map", "         0          0 4294967295\n".to_owned())]
}

fn devices(loaded: bool, driver_major: u32) -> String {
    let mut text = "Character devices:\n  1 mem\n  5 /dev/tty\n".to_owned();
    if loaded {
        for (major, name) in [
            (NVIDIA_MAJOR, if driver_major < FIRST_WITHOUT_FRONTEND { "nvidia-frontend" } else { "nvidia" }),
            (NVIDIA_MAJOR, "nvidia-modeset"),
            (NVIDIA_MAJOR, "nvidiactl"),
            (UVM_MAJOR, "nvidia-uvm"),
            (CAPS_MAJOR, "nvidia-caps"),
        ] {
            let _infallible = writeln!(text, "{major:3} {name}");
        }
    }
    text.push_str("\nBlock devices:\n259 blkext\n");
    text
}

/// A capability file. The mode is decimal, as the driver writes it: 292 is 0444, 256 is 0400.
fn capability(minor: u32, mode: u32) -> String {
    format!("DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
}

fn information(gpu: &GpuState) -> String {
    format!(
        "Model: \t\t {}\nGPU UUID: \t {}\nBus Type: \t PCIe\nBus Location: \t {}\nDevice Minor: \t {}\n",
        gpu.name, gpu.uuid, gpu.pci, gpu.minor
    )
}

/// Every capability that could be, whatever GPUs there are.
fn mig_minors() -> String {
    let mut text = "config 1\nmonitor 2\n".to_owned();
    for gpu in 0..GPUS {
        for gi in 0..=LAST_GI {
            let _infallible = writeln!(text, "gpu{gpu}/gi{gi}/access {}", gi_minor(gpu, gi));
            for ci in 0..=LAST_CI {
                let _infallible = writeln!(text, "gpu{gpu}/gi{gi}/ci{ci}/access {}", ci_minor(gpu, gi, ci));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mig_minors_has_the_real_size_and_last_line() {
        let text = mig_minors();
        assert_eq!(text.lines().count(), 4322);
        assert_eq!(text.lines().last(), Some("gpu31/gi14/ci7/access 4322"));
        assert_eq!(text.lines().nth(2), Some("gpu0/gi0/access 3"));
    }
}

//! A node's folder: made, changed and watched from outside of the processes that loaded its library.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use crate::{
    Description, Event, Incident, NodeError, counters,
    description::{ComputeInstance, Gpu},
    host, library_file,
    state::{GpuState, NodeState},
    tree,
};

/// The description's file name.
pub(crate) const DESCRIPTION: &str = "node.yaml";

/// Whether clients are told of the instances that an edit makes and destroys.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tell {
    Clients,
    Nobody,
}

/// A node's folder. It stays when the value is dropped.
///
/// ```text
/// node.yaml                         the description; edit it, and the next call sees it
/// usr/lib64/libnvidia-ml.so.1       the library, a copy
/// proc/ dev/ sys/                   the driver's files
/// fake-nvml/events, counters, error what passes between the owner and the loaded library
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    root: PathBuf,
}

impl Node {
    /// Makes a node in this folder, which may be one already: it then gets this description.
    pub fn create(root: impl AsRef<Path>, description: &Description) -> Result<Self, NodeError> {
        let root = root.as_ref();
        let description = description.clone().expanded();
        let state = description.resolve()?;
        let control = tree::control(root);
        fs::create_dir_all(&control).map_err(NodeError::io("make", &control))?;
        let root = root.canonicalize().map_err(NodeError::io("find", root))?;
        let node = Self { root };
        tree::locked(&node.root, || {
            node.write_library()?;
            let counters = node.counters_file();
            counters::create(&counters).map_err(NodeError::io("make", &counters))?;
            let events = node.events_file();
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&events)
                .map_err(NodeError::io("make", &events))?;
            node.write(&description, &state, Tell::Clients)?;
            tree::make_capability_nodes(&node.root, &state)
        })?;
        Ok(node)
    }

    /// A node that is there already.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, NodeError> {
        let root = root.as_ref();
        if !root.join(DESCRIPTION).is_file() {
            return Err(NodeError::NotANode { path: root.to_owned() });
        }
        Ok(Self { root: root.canonicalize().map_err(NodeError::io("find", root))? })
    }

    /// The folder: what a device plugin takes for the driver's root. `proc`, `dev` and `sys` are in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The library that clients load.
    pub fn library(&self) -> PathBuf {
        self.root.join("usr/lib64/libnvidia-ml.so.1")
    }

    /// The description as it is now.
    pub fn description(&self) -> Result<Description, NodeError> {
        Description::read(self.description_file())
    }

    /// Changes the description, in one step for those that read it. Instances that are there keep their
    /// placement and their IDs, whatever happens to those before them in the layout. Capability files are changed
    /// first, and what NVML lists after the description's `fileGapMs`.
    ///
    /// When this returns, the files are changed and the next NVML call of any client sees the new state.
    pub fn update(&self, change: impl FnOnce(&mut Description)) -> Result<(), NodeError> {
        self.change(change).map(drop)
    }

    /// As [`Node::update`], for what the driver does not tell of: a reset, or instances that are brought back.
    pub fn update_untold(&self, change: impl FnOnce(&mut Description)) -> Result<(), NodeError> {
        self.change_telling(Tell::Nobody, change).map(drop)
    }

    /// As [`Node::update`], and answers what came of it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Description)) -> Result<NodeState, NodeError> {
        self.change_telling(Tell::Clients, change)
    }

    fn change_telling(
        &self,
        tell: Tell,
        change: impl FnOnce(&mut Description),
    ) -> Result<NodeState, NodeError> {
        self.try_change(tell, |description, _| {
            change(description);
            Ok(())
        })
    }

    /// As [`Node::change`], with what was there before, and for a change that may be refused.
    pub(crate) fn try_change(
        &self,
        tell: Tell,
        change: impl FnOnce(&mut Description, &NodeState) -> Result<(), NodeError>,
    ) -> Result<NodeState, NodeError> {
        tree::locked(&self.root, || {
            let mut description = self.description()?;
            let state = description.resolve()?;
            pin(&mut description, &state);
            let generation = last_generation(&description) + 1;
            change(&mut description, &state)?;
            let mut description = description.expanded();
            // All that were there have an ID by now.
            let instances = description.gpus.iter_mut().flat_map(|gpu| &mut gpu.layout);
            for new in instances.filter(|instance| instance.gi.is_none() && instance.generation == 0) {
                new.generation = generation;
            }
            let state = description.resolve()?;
            self.write(&description, &state, tell)?;
            Ok(state)
        })
    }

    /// Loads another version of the driver, and puts another file in the library's place. Clients that have the old
    /// one loaded hear `LIB_RM_VERSION_MISMATCH` from then on, until they load the library anew.
    pub fn upgrade_driver(&self, version: &str) -> Result<(), NodeError> {
        self.update(|description| version.clone_into(&mut description.driver_version))?;
        tree::locked(&self.root, || self.write_library())
    }

    fn write_library(&self) -> Result<(), NodeError> {
        let library = library_file()?;
        let contents = fs::read(&library).map_err(NodeError::io("read", &library))?;
        let copy = self.library();
        let folder = copy.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(NodeError::io("make", folder))?;
        // A copy, not a link: the loader tells libraries apart by inode, and two nodes are two.
        tree::replace(&self.root, &copy, &contents)
    }

    /// Makes the device nodes of all instances that are there, as `nvidia-modprobe` or `nvidia-ctk` do on a host.
    pub fn make_nodes(&self) -> Result<(), NodeError> {
        tree::locked(&self.root, || tree::make_capability_nodes(&self.root, &self.description()?.resolve()?))
    }

    /// The GPUs and their MIG devices as NVML shows them now, faults aside.
    pub fn gpus(&self) -> Result<Vec<GpuState>, NodeError> {
        Ok(self.description()?.resolve()?.gpus)
    }

    /// Tells every client that waits for such events.
    pub fn send(&self, event: &Event) -> Result<(), NodeError> {
        let gpus = self.gpus()?;
        let gpu = gpus.get(event.gpu as usize).ok_or_else(|| NodeError::Invalid {
            file: None,
            problems: vec![format!("event: gpu {} is none of the {} GPUs", event.gpu, gpus.len())],
        })?;
        tree::append_events(&self.root, &event.line(gpu))
    }

    /// Has an error of a whole GPU happen: tells clients, and changes the GPU.
    pub fn strike(&self, incident: &Incident) -> Result<(), NodeError> {
        let invalid = |problem| NodeError::Invalid { file: None, problems: vec![problem] };
        let state = self.description()?.resolve()?;
        let gpu = incident.gpu(&state).map_err(invalid)?;
        tree::append_events(&self.root, &incident.xids(gpu))?;
        self.update(|description| incident.change(description))?;
        tree::append_events(&self.root, &incident.aftermath(gpu))
    }

    /// How often each NVML function was called by any process, since the node was made or they were reset.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, NodeError> {
        let path = self.counters_file();
        counters::read(&path).map_err(NodeError::io("read", &path))
    }

    /// How many clients have NVML open, each counted once: the driver cannot be unloaded while there are any.
    pub fn clients(&self) -> Result<u64, NodeError> {
        Ok(self.client_list()?.len() as u64)
    }

    /// Sets every count to zero.
    pub fn reset_counters(&self) -> Result<(), NodeError> {
        let path = self.counters_file();
        counters::reset(&path).map_err(NodeError::io("write", &path))
    }

    /// Why the loaded library could not take the description over, if it could not: it then plays the last
    /// good one. Empty again with the next good one.
    pub fn error(&self) -> Result<Option<String>, NodeError> {
        let path = error_file(&self.root);
        match fs::read_to_string(&path) {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NodeError::io("read", path)(error)),
        }
    }

    /// The description's file, for edits by hand.
    pub fn description_file(&self) -> PathBuf {
        self.root.join(DESCRIPTION)
    }

    fn write(&self, description: &Description, state: &NodeState, tell: Tell) -> Result<(), NodeError> {
        let file = self.description_file();
        let yaml = description.to_yaml()?;
        // Files come before NVML lists an instance, and go before it stops to; then clients are told.
        let written = tree::write(&self.root, state)?;
        if written.files_changed && file.exists() {
            host::pause(state.file_gap);
        }
        tree::replace(&self.root, &file, yaml.as_bytes())?;
        match tell {
            Tell::Clients => tree::append_events(&self.root, &written.events),
            Tell::Nobody => Ok(()),
        }
    }

    fn counters_file(&self) -> PathBuf {
        counters_file(&self.root)
    }

    fn events_file(&self) -> PathBuf {
        events_file(&self.root)
    }
}

/// The table of calls.
pub(crate) fn counters_file(root: &Path) -> PathBuf {
    tree::control(root).join("counters")
}

/// The list of events.
pub(crate) fn events_file(root: &Path) -> PathBuf {
    tree::control(root).join("events")
}

/// Where the loaded library says why it refused a description.
pub(crate) fn error_file(root: &Path) -> PathBuf {
    tree::control(root).join("error")
}

fn last_generation(description: &Description) -> u32 {
    let instances = description.gpus.iter().flat_map(|gpu| &gpu.layout);
    instances.map(|instance| instance.generation).max().unwrap_or(0)
}

/// Writes what was decided into the description, so that a change to one instance moves no other.
fn pin(description: &mut Description, state: &NodeState) {
    for (gpu, state) in description.gpus.iter_mut().zip(&state.gpus) {
        pin_gpu(gpu, state);
    }
}

fn pin_gpu(gpu: &mut Gpu, state: &GpuState) {
    gpu.uuid = Some(state.uuid.clone());
    gpu.serial = Some(state.serial.clone());
    gpu.pci = Some(state.pci.clone());
    gpu.minor = Some(state.minor);
    gpu.placement_map = Some(state.placement_map);
    gpu.numa = Some(state.numa.and_then(|node| i32::try_from(node).ok()).unwrap_or(-1));
    for (instance, state) in gpu.layout.iter_mut().zip(&state.instances) {
        instance.start = Some(state.placement.start);
        instance.gi = Some(state.gi);
        let Some(compute) = &mut instance.compute else { continue };
        let pinned = compute.iter().zip(&state.compute).map(|(compute, state)| ComputeInstance {
            ci: Some(state.ci),
            start: Some(state.placement.start),
            ..compute.clone()
        });
        *compute = pinned.collect();
    }
}

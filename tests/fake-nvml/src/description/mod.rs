//! What people write: a node, in YAML or by builders that read as sentences.

mod fault;
mod instance;
mod options;
mod process;
mod rights;
mod situation;
mod topology;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

pub use fault::Fault;
pub use instance::{ComputeInstance, Instance, PlacementMap, UnknownProfile};
pub use options::{AfterReset, DriverState, Lost, MigOff, Nodes, RecoveryAction};
pub use process::Process;
pub use rights::{MigConfigChange, Right, Rights, UnopenableSlices, UnprivilegedEvents, UuidLookup};
pub use situation::Situation;
pub use topology::{Branch, NvLinks, NvSwitch, Preset, Topology};

use crate::{Code, EventType, NodeError, state::NodeState, suggest};

/// The capability minors that instances have, of GPU 0's first to GPU 31's last.
const FIRST_MINOR: u32 = 3;
const LAST_MINOR: u32 = 4322;

/// A node: its driver, its GPUs, and the faults that its driver plays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key that people write")]
pub struct Description {
    /// The driver's version, as `nvmlSystemGetDriverVersion` gives it.
    pub driver_version: String,
    /// The newest CUDA version that the driver serves, `major.minor`.
    pub cuda_version: String,
    /// Whether the kernel driver is there and fits the library.
    pub driver: DriverState,
    /// What clients may do, where `FAKE_NVML_RIGHTS` does not say it for a process.
    pub rights: Rights,
    /// Clients have none of the rights and can open no capability node.
    #[serde(skip_serializing_if = "is_false")]
    pub unprivileged: bool,
    /// A MIG device's handle names whatever is at its MIG index, also after the device was destroyed.
    #[serde(skip_serializing_if = "is_false")]
    pub handles_reused: bool,
    /// The entries of `proc` get another time of change with each call, as kernels before 4.17 give them one with each
    /// look.
    #[serde(skip_serializing_if = "is_false")]
    pub proc_times_move: bool,
    /// Minors of the capability nodes of instances that clients can open; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openable: Option<Vec<u32>>,
    /// What NVML shows of a slice whose nodes the client cannot open.
    pub unopenable_slices: UnopenableSlices,
    /// What clients without admin and monitor hear of a GPU that has an instance.
    pub unprivileged_events: UnprivilegedEvents,
    /// What a look-up by UUID does while a GPU is lost.
    pub uuid_lookup: UuidLookup,
    /// When clients hear of a `MigConfigChange`.
    pub mig_config_change: MigConfigChange,
    /// `MigConfigChange` can be registered only for GPUs in MIG mode.
    pub mig_event_needs_mig: bool,
    /// What the driver asks for to recover the whole node: every GPU shows it.
    pub recovery_action: RecoveryAction,
    /// Which versions of the GPU instance profile query the driver knows; an old one knows only 1.
    pub profile_info_versions: Vec<u32>,
    /// The GPUs, by NVML index.
    pub gpus: Vec<Gpu>,
    /// Who makes the device nodes of instances that come.
    pub nodes: Nodes,
    /// How long the capability file of an instance is there before NVML lists it, and gone before NVML stops to, in ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub file_gap_ms: u64,
    /// What switching MIG mode off does while there are instances.
    pub mig_off_with_instances: MigOff,
    /// What a reset makes of instances.
    pub instances_after_reset: AfterReset,
    /// Codes to answer in place of those that are expected, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub codes: BTreeMap<Situation, String>,
    /// How they are connected.
    #[serde(skip_serializing_if = "Topology::is_default")]
    pub topology: Topology,
    /// What goes wrong, first match first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Gpu {
    /// Key of a model in the catalogue.
    pub model: String,
    /// As many GPUs like this one; 0 is 1, so that a default is one GPU. They differ in what is derived: UUID,
    /// PCI address, minor.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u32,
    /// Product name, where the model's first is not wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `GPU-…`; derived from model and PCI address where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Board serial number; derived from the UUID where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// PCI address, `0000:18:00.0`; derived from the index where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// Minor number of `/dev/nvidiaN`; the index where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// NUMA node, -1 for none. Where absent: 0 for the first half of the GPUs, 1 for the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<i32>,
    /// Whole memory in MiB, where the model's is not wanted. Profiles keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Whether MIG mode is on.
    #[serde(default)]
    pub mig: bool,
    /// MIG mode after the next reset, where it is another than now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_pending: Option<bool>,
    /// Which parts of the chip the memory slices are; another one for each of three GPUs where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_map: Option<PlacementMap>,
    /// The GPU instances, in the order they were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layout: Vec<Instance>,
    /// Persistence mode is off: the GPU starts when it is opened and nobody else has it open, and this is how long
    /// that takes, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// Whether it has fallen off the bus.
    #[serde(default, skip_serializing_if = "Lost::is_no")]
    pub lost: Lost,
    /// Processes that use it or its instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// What the driver asks for to recover the GPU: NVML field 230.
    #[serde(default)]
    pub recovery_action: RecoveryAction,
    /// The types of events that clients can register; all that its model could have where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<EventType>>,
}

impl Gpu {
    /// One GPU of the model with this key, MIG mode off, all else left to the fake.
    #[must_use]
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), count: 1, ..Self::default() }
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_one(count: &u32) -> bool {
    *count <= 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Default for Description {
    fn default() -> Self {
        Self {
            driver_version: "580.95.05".to_owned(),
            cuda_version: "13.0".to_owned(),
            driver: DriverState::Loaded,
            rights: Rights::default(),
            unprivileged: false,
            handles_reused: false,
            proc_times_move: false,
            openable: None,
            unopenable_slices: UnopenableSlices::default(),
            unprivileged_events: UnprivilegedEvents::default(),
            uuid_lookup: UuidLookup::default(),
            mig_config_change: MigConfigChange::default(),
            mig_event_needs_mig: false,
            recovery_action: RecoveryAction::None,
            profile_info_versions: vec![1, 2, 3],
            gpus: Vec::new(),
            nodes: Nodes::default(),
            file_gap_ms: 0,
            mig_off_with_instances: MigOff::default(),
            instances_after_reset: AfterReset::default(),
            codes: BTreeMap::new(),
            topology: Topology::default(),
            faults: Vec::new(),
        }
    }
}

impl Description {
    /// A node with `count` GPUs of the model with this key, MIG mode off.
    #[must_use]
    pub fn of(model: &str, count: usize) -> Self {
        Self::default().and(model, count)
    }

    /// A node with `count` H100 80GB SXM5, MIG mode off.
    #[must_use]
    pub fn h100s(count: usize) -> Self {
        Self::of("h100-80gb-sxm5", count)
    }

    /// A node with `count` A100 40GB, MIG mode off.
    #[must_use]
    pub fn a100s(count: usize) -> Self {
        Self::of("a100-40gb", count)
    }

    /// `count` more GPUs, of the model with this key.
    #[must_use]
    pub fn and(mut self, model: &str, count: usize) -> Self {
        self.gpus.extend(std::iter::repeat_n(Gpu::new(model), count));
        self
    }

    /// Turns MIG mode on for a GPU and gives it these instances. See [`Description::set_mig`].
    #[must_use]
    pub fn with_mig<I: Clone + Into<Instance>>(mut self, gpu: usize, layout: &[I]) -> Self {
        self.set_mig(gpu, layout);
        self
    }

    /// Turns MIG mode of a GPU on, with no instances yet, or off. See [`Description::set_mig_mode`].
    #[must_use]
    pub fn with_mig_mode(mut self, gpu: usize, on: bool) -> Self {
        self.set_mig_mode(gpu, on);
        self
    }

    /// Gives clients these rights and no others.
    #[must_use]
    pub fn with_rights(mut self, rights: &[Right]) -> Self {
        self.rights = Rights::Held(rights.to_vec());
        self
    }

    /// With the GPUs connected in this way.
    #[must_use]
    pub fn with_topology(mut self, topology: impl Into<Topology>) -> Self {
        self.topology = topology.into();
        self
    }

    /// Adds faults.
    #[must_use]
    pub fn with_faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// Turns MIG mode on for a GPU and replaces its instances, by profile name or as [`Instance`]s.
    /// An index that no GPU has is reported when the description is used.
    pub fn set_mig<I: Clone + Into<Instance>>(&mut self, gpu: usize, layout: &[I]) {
        let gpu = self.gpu(gpu);
        gpu.mig = true;
        gpu.layout = layout.iter().cloned().map(Into::into).collect();
    }

    /// Turns MIG mode of a GPU on, with no instances yet, or off, which destroys all of them.
    pub fn set_mig_mode(&mut self, gpu: usize, on: bool) {
        let gpu = self.gpu(gpu);
        if gpu.mig != on {
            gpu.layout.clear();
        }
        gpu.mig = on;
    }

    /// The GPU of that index, to be changed. One that is not there is made without a model, so that the
    /// mistake is reported as any other when the description is used.
    pub fn gpu(&mut self, index: usize) -> &mut Gpu {
        while self.gpus.len() <= index {
            self.gpus.push(Gpu::new(""));
        }
        &mut self.gpus[index]
    }

    /// Reads a description, and refuses an impossible one.
    pub fn parse(yaml: &str) -> Result<Self, NodeError> {
        Self::parse_file(yaml, None)
    }

    /// Reads the description in a file, and refuses an impossible one.
    pub fn read(file: impl AsRef<Path>) -> Result<Self, NodeError> {
        let file = file.as_ref();
        let yaml = std::fs::read_to_string(file).map_err(NodeError::io("read", file))?;
        Self::parse_file(&yaml, Some(file))
    }

    fn parse_file(yaml: &str, file: Option<&Path>) -> Result<Self, NodeError> {
        // An editor that writes in place leaves the file empty for a moment: that is no node without GPUs.
        if yaml.trim().is_empty() {
            let message = "the description is empty; a node without GPUs is `gpus: []`".to_owned();
            return Err(NodeError::Parse { file: file.map(Path::to_owned), message });
        }
        let description: Self = serde_saphyr::from_str(yaml).map_err(|error| NodeError::Parse {
            file: file.map(Path::to_owned),
            message: error.to_string(),
        })?;
        let description = description.expanded();
        match description.resolve() {
            Ok(_) => Ok(description),
            Err(NodeError::Invalid { problems, .. }) => {
                Err(NodeError::Invalid { file: file.map(Path::to_owned), problems })
            }
            Err(error) => Err(error),
        }
    }

    /// The description as YAML: every GPU on its own, so that it can be edited.
    pub fn to_yaml(&self) -> Result<String, NodeError> {
        serde_saphyr::to_string(self)
            .map_err(|error| NodeError::Parse { file: None, message: error.to_string() })
    }

    /// What the description means, or all that is wrong with it.
    pub fn resolve(&self) -> Result<NodeState, NodeError> {
        NodeState::resolve(self)
    }

    /// Each `count` written out: that many GPUs, that many instances.
    pub(crate) fn expanded(mut self) -> Self {
        self.gpus = self
            .gpus
            .into_iter()
            .flat_map(|mut gpu| {
                let count = std::mem::replace(&mut gpu.count, 1);
                gpu.layout = gpu.layout.into_iter().flat_map(Instance::expanded).collect();
                std::iter::repeat_n(gpu, count.max(1) as usize)
            })
            .collect();
        self
    }

    pub(crate) fn codes(&self) -> BTreeMap<Situation, Code> {
        let codes = self.codes.iter();
        codes.filter_map(|(situation, name)| Some((*situation, Code::from_name(name)?))).collect()
    }

    /// The faults that are written, then those of lost GPUs.
    pub(crate) fn all_faults(&self) -> Vec<Fault> {
        let lost = (0..).zip(&self.gpus).flat_map(|(index, gpu)| Fault::of_lost(index, gpu.lost));
        self.faults.iter().cloned().chain(lost).collect()
    }

    /// What is wrong with everything but the GPUs.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.cuda().is_none() {
            problems.push(format!("cudaVersion: {:?} is not major.minor, as 13.0", self.cuda_version));
        }
        if self.driver_version.is_empty() || self.driver_version.len() > 79 {
            problems.push(format!("driverVersion: {:?} is not 1 to 79 characters", self.driver_version));
        }
        if let Some(version) = self.profile_info_versions.iter().find(|version| !(1..=3).contains(*version)) {
            problems.push(format!("profileInfoVersions: {version} is none; allowed: 1, 2, 3"));
        }
        if !self.recovery_action.is_of_node() {
            problems.push(
                "recoveryAction: the node's can be none, reboot or recoverImex; others are a GPU's"
                    .to_owned(),
            );
        }
        if self.unprivileged && (self.rights != Rights::default() || self.openable.is_some()) {
            problems
                .push("unprivileged: means no rights and no nodes; leave out rights and openable".to_owned());
        }
        let minors = self.openable.iter().flatten();
        if let Some(minor) = minors.copied().find(|minor| !(FIRST_MINOR..=LAST_MINOR).contains(minor)) {
            problems.push(format!(
                "openable: {minor} is no instance's capability minor; allowed: {FIRST_MINOR} to {LAST_MINOR}"
            ));
        }
        for (situation, name) in self.codes.iter().filter(|(_, name)| Code::from_name(name).is_none()) {
            let hint = suggest::allowed(name, Code::ALL.iter().map(|code| code.name()));
            problems.push(format!("codes: no code {name:?} for {situation:?}; {hint}"));
        }
        for (index, fault) in self.faults.iter().enumerate() {
            problems.extend(fault.problems(&format!("faults[{index}]"), self.gpus.len()));
        }
        problems
    }

    /// CUDA's version as NVML gives it: 1000 × major + 10 × minor.
    pub(crate) fn cuda(&self) -> Option<i32> {
        let (major, minor) = self.cuda_version.split_once('.')?;
        Some(major.parse::<i32>().ok()? * 1000 + minor.parse::<i32>().ok()? * 10)
    }
}

//! What a description means: every ID, placement, minor and UUID decided.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Code, DriverState, EventType, NodeError,
    catalogue::{self, Model, Profile},
    description::{
        Description, Fault, Gpu, MigConfigChange, MigOff, Nodes, PlacementMap, Process, RecoveryAction,
        Rights, Situation, UnopenableSlices, UnprivilegedEvents, UuidLookup,
    },
    layout,
    pci::parse_pci,
    suggest,
    taken::{LAST_GPU_MINOR, Written},
    topology::Connections,
    uuid::Chip,
};

/// More MIG devices than any GPU has.
const LAST_MIG_INDEX: u32 = 63;

/// A node with all decided.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The driver's version.
    pub driver_version: String,
    /// CUDA's version, 1000 × major + 10 × minor.
    pub cuda_version: i32,
    /// Whether the kernel driver is there.
    pub driver: DriverState,
    /// Whether a MIG device's handle names whatever is at its MIG index.
    pub handles_reused: bool,
    /// Whether entries of `proc` get another time of change with each call.
    pub proc_times_move: bool,
    /// What clients may do.
    pub rights: Rights,
    /// Minors of the capability nodes of instances that clients can open, where not all.
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
    /// Versions of the profile query that the driver knows.
    pub profile_info_versions: Vec<u32>,
    /// The GPUs, by index.
    pub gpus: Vec<GpuState>,
    /// Who makes the device nodes of instances that come.
    pub nodes: Nodes,
    /// How long capability files are ahead of what NVML lists.
    pub file_gap: Duration,
    /// What switching MIG mode off does while there are instances.
    pub mig_off_with_instances: MigOff,
    /// Codes that are answered in place of those that are expected.
    pub codes: BTreeMap<Situation, Code>,
    /// How they are connected.
    pub connections: Connections,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// A GPU with all decided.
#[derive(Clone, Debug)]
pub struct GpuState {
    /// NVML index.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Board serial number.
    pub serial: String,
    /// Product name.
    pub name: String,
    /// PCI address as sysfs writes it, `0000:18:00.0`.
    pub pci: String,
    /// Minor number of `/dev/nvidiaN`.
    pub minor: u32,
    /// NUMA node.
    pub numa: Option<u32>,
    /// Whole memory, in MiB.
    pub memory_mib: u64,
    /// Whether MIG mode is on.
    pub mig_mode: bool,
    /// Whether MIG mode will be on after the next reset.
    pub mig_mode_pending: bool,
    /// What the GPU needs before it can be used again.
    pub recovery_action: RecoveryAction,
    /// How long it takes to start, with persistence mode off.
    pub start: Option<Duration>,
    /// Processes that use it or its instances.
    pub processes: Vec<Process>,
    /// Which parts of the chip its memory slices are.
    pub placement_map: PlacementMap,
    /// The types of events that clients can register, where not all.
    pub events: Option<Vec<EventType>>,
    /// The MIG devices, by index, which can have holes.
    pub mig: Vec<MigState>,
    /// The GPU instances, in the order of the layout.
    pub instances: Vec<GpuInstanceState>,
    /// The model.
    pub model: &'static Model,
}

/// A MIG device: a compute instance, as NVML's MIG handles show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigState {
    /// MIG index on its GPU.
    pub index: u32,
    /// `MIG-…`.
    pub uuid: String,
    /// Full profile name, e.g. `1g.10gb+me` or `1c.3g.40gb`.
    pub profile: String,
    /// GPU instance ID.
    pub gi: u32,
    /// Compute instance ID.
    pub ci: u32,
    /// Placement of the GPU instance, in memory slices.
    pub placement: Placement,
    /// Memory of the GPU instance, in MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors of the compute instance.
    pub sm: u32,
    /// Capability minor of the GPU instance.
    pub gi_minor: u32,
    /// Capability minor of the compute instance.
    pub ci_minor: u32,
    /// Not shown by NVML, though its files are there.
    pub hidden: bool,
}

/// Where an instance lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First slice.
    pub start: u32,
    /// Number of slices.
    pub size: u32,
}

/// A GPU instance with all decided.
#[derive(Clone, Debug)]
pub struct GpuInstanceState {
    /// GPU instance ID.
    pub gi: u32,
    /// Profile, made up where the description says so.
    pub profile: Profile,
    /// Placement, in memory slices.
    pub placement: Placement,
    /// Capability minor.
    pub minor: u32,
    /// Tells it from one that had the same ID before.
    pub generation: u32,
    /// It has no capability file.
    pub access_file_gone: bool,
    /// Compute instances, in the order of the layout.
    pub compute: Vec<ComputeInstanceState>,
}

/// A compute instance with all decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeInstanceState {
    /// Compute instance ID.
    pub ci: u32,
    /// Placement, in compute slices of its GPU instance.
    pub placement: Placement,
    /// Streaming multiprocessors.
    pub sm: u32,
    /// Capability minor.
    pub minor: u32,
    /// MIG index of its MIG device.
    pub index: u32,
    /// It has no capability file.
    pub access_file_gone: bool,
}

impl NodeState {
    /// Decides all that a description leaves open, or lists all that is wrong with it.
    pub(crate) fn resolve(description: &Description) -> Result<Self, NodeError> {
        let description = &description.clone().expanded();
        let mut problems = description.problems();
        let mut gpus: Vec<GpuState> = Vec::new();
        let count = description.gpus.len();
        let mut written = Written::of(description);
        for (index, gpu) in description.gpus.iter().enumerate() {
            match resolve_gpu(index, count, gpu, &mut written) {
                Ok(mut state) => {
                    state.recovery_action = state.recovery_action.or(description.recovery_action);
                    problems.extend(gpus.iter().filter_map(|other| clash(&state, other)));
                    gpus.push(state);
                }
                Err(wrong) => {
                    problems.extend(wrong.into_iter().map(|problem| format!("gpus[{index}].{problem}")));
                }
            }
        }
        problems.extend(twice(&gpus));
        // Indices of GPUs are those of the description only where all of them are right.
        let connections = if gpus.len() == count {
            Connections::resolve(&description.topology, &gpus)
        } else {
            Ok(Connections::default())
        };
        let connections = connections.unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Connections::default()
        });
        if !problems.is_empty() {
            return Err(NodeError::Invalid { file: None, problems });
        }
        let none = description.unprivileged;
        Ok(Self {
            driver_version: description.driver_version.clone(),
            cuda_version: description.cuda().unwrap_or(0),
            driver: description.driver,
            handles_reused: description.handles_reused,
            proc_times_move: description.proc_times_move,
            rights: if none { Rights::Held(Vec::new()) } else { description.rights.clone() },
            openable: if none { Some(Vec::new()) } else { description.openable.clone() },
            unopenable_slices: description.unopenable_slices,
            unprivileged_events: description.unprivileged_events,
            uuid_lookup: description.uuid_lookup,
            mig_config_change: description.mig_config_change,
            mig_event_needs_mig: description.mig_event_needs_mig,
            profile_info_versions: description.profile_info_versions.clone(),
            gpus,
            nodes: description.nodes,
            file_gap: Duration::from_millis(description.file_gap_ms),
            mig_off_with_instances: description.mig_off_with_instances,
            codes: description.codes(),
            connections,
            faults: description.all_faults(),
        })
    }
}

impl NodeState {
    /// Whether there is a driver that tells clients of instances made and destroyed.
    pub(crate) fn tells_changes(&self) -> bool {
        self.driver == DriverState::Loaded && self.mig_config_change == MigConfigChange::OnChange
    }
}

impl GpuState {
    /// The GPU instance of that ID.
    pub fn instance(&self, gi: u32) -> Option<&GpuInstanceState> {
        self.instances.iter().find(|instance| instance.gi == gi)
    }
}

/// MIG UUIDs that two MIG devices have: one of them was written by hand.
fn twice(gpus: &[GpuState]) -> Vec<String> {
    let mut seen: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let mut problems = Vec::new();
    for gpu in gpus {
        for mig in &gpu.mig {
            if let Some((other, index)) = seen.insert(&mig.uuid, (gpu.index, mig.index)) {
                problems.push(format!(
                    "gpus[{}].layout: UUID {} of MIG device {} is that of device {index} of gpus[{other}] too",
                    gpu.index, mig.uuid, mig.index
                ));
            }
        }
    }
    problems
}

fn clash(a: &GpuState, b: &GpuState) -> Option<String> {
    [
        ("uuid", a.uuid == b.uuid, &a.uuid),
        ("pci", a.pci == b.pci, &a.pci),
        ("minor", a.minor == b.minor, &a.minor.to_string()),
    ]
    .into_iter()
    .find(|(_, same, _)| *same)
    .map(|(key, _, value)| format!("gpus[{}].{key}: {value} is that of gpus[{}] too", a.index, b.index))
}

/// Minor of a GPU instance's capability: 135 for each GPU, 9 for each instance, after `config` and `monitor`.
pub(crate) fn gi_minor(gpu_minor: u32, gi: u32) -> u32 {
    3 + 135 * gpu_minor + 9 * gi
}

/// Minor of a compute instance's capability: the ones that follow its GPU instance's.
pub(crate) fn ci_minor(gpu_minor: u32, gi: u32, ci: u32) -> u32 {
    gi_minor(gpu_minor, gi) + 1 + ci
}

fn resolve_gpu(
    index: usize,
    count: usize,
    gpu: &Gpu,
    written: &mut Written,
) -> Result<GpuState, Vec<String>> {
    let Some(model) = catalogue::model(&gpu.model) else {
        let keys = catalogue::models().iter().map(|model| model.key.as_str());
        return Err(vec![format!("model: no model {:?}; {}", gpu.model, suggest::allowed(&gpu.model, keys))]);
    };
    let mut problems = Vec::new();
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let minor = gpu.minor.unwrap_or_else(|| written.minor(index));
    if minor > LAST_GPU_MINOR {
        problems.push(format!("minor: {minor} is above {LAST_GPU_MINOR}"));
    }
    let pci = gpu.pci.as_ref().map_or_else(|| written.address(index), |pci| pci.to_lowercase());
    if parse_pci(&pci).is_none() {
        problems.push(format!("pci: {pci:?} is no address, as 0000:18:00.0"));
    }
    if gpu.mig && !model.knows_mig() {
        problems.push(format!("mig: {} knows no MIG", model.key));
    }
    if !gpu.mig && !gpu.layout.is_empty() {
        problems.push("layout: needs `mig: true`".to_owned());
    }
    let chip = Chip::at(model, &pci);
    let (chip, gpu_uuid) = match &gpu.uuid {
        Some(uuid) if *uuid != chip.gpu_uuid() => (Chip::known_as(model, uuid), uuid.clone()),
        _ => (chip, chip.gpu_uuid()),
    };
    let numa = match gpu.numa {
        Some(node) => u32::try_from(node).ok(),
        None => Some(u32::from(count > 1 && index as usize >= count.div_ceil(2))),
    };
    let mut state = GpuState {
        index,
        serial: gpu.serial.clone().unwrap_or_else(|| serial(&gpu_uuid)),
        uuid: gpu_uuid,
        name: gpu.name.clone().or_else(|| model.products.first().cloned()).unwrap_or_default(),
        pci,
        minor,
        numa,
        memory_mib: gpu.memory_mib.unwrap_or(model.memory_mib),
        mig_mode: gpu.mig,
        mig_mode_pending: gpu.mig_pending.unwrap_or(gpu.mig),
        recovery_action: gpu.recovery_action,
        start: gpu.start_ms.map(Duration::from_millis),
        processes: gpu.processes.clone(),
        placement_map: gpu.placement_map.unwrap_or_else(|| PlacementMap::usual(minor)),
        events: gpu.events.clone(),
        mig: Vec::new(),
        instances: Vec::new(),
        model,
    };
    if problems.is_empty()
        && let Err(more) = resolve_instances(&mut state, chip, gpu)
    {
        problems.extend(more);
    }
    if problems.is_empty() {
        let wrong = gpu.processes.iter().enumerate();
        problems.extend(wrong.filter_map(|(at, process)| {
            process.problem(&state).map(|problem| format!("processes[{at}].{problem}"))
        }));
    }
    if problems.is_empty() { Ok(state) } else { Err(problems) }
}

fn resolve_instances(state: &mut GpuState, chip: Chip, gpu: &Gpu) -> Result<(), Vec<String>> {
    let placed = layout::place(state.model, gpu, state.placement_map)?;
    let mut problems = Vec::new();
    let mut devices = Vec::new();
    for (at, (instance, placed)) in gpu.layout.iter().zip(placed).enumerate() {
        let (profile, first_engine) = (placed.profile, placed.engine);
        let compute = match layout::place_compute(instance, profile.g) {
            Ok(compute) => compute,
            Err(wrong) => {
                problems.extend(wrong.into_iter().map(|problem| format!("layout[{at}].{problem}")));
                continue;
            }
        };
        let placement = Placement { start: placed.start, size: profile.size };
        let hidden = instance.hidden;
        let mut instance = GpuInstanceState {
            gi: placed.gi,
            generation: instance.generation,
            access_file_gone: instance.access_file_gone,
            minor: gi_minor(state.minor, placed.gi),
            placement,
            compute: Vec::new(),
            profile,
        };
        for compute in compute {
            let profile = &instance.profile;
            let sm = profile.sm * compute.slices / profile.g;
            let minor = ci_minor(state.minor, instance.gi, compute.ci);
            instance.compute.push(ComputeInstanceState {
                ci: compute.ci,
                placement: Placement { start: compute.start, size: compute.slices },
                sm,
                minor,
                index: 0,
                access_file_gone: compute.access_file_gone,
            });
            devices.push((
                compute.index,
                MigState {
                    index: 0,
                    uuid: compute
                        .uuid
                        .unwrap_or_else(|| chip.mig_uuid(instance.gi, first_engine + compute.engine)),
                    profile: if compute.slices == profile.g {
                        profile.name.clone()
                    } else {
                        format!("{}c.{}", compute.slices, profile.name)
                    },
                    gi: instance.gi,
                    ci: compute.ci,
                    placement,
                    memory_mib: profile.memory_mib,
                    sm,
                    gi_minor: instance.minor,
                    ci_minor: minor,
                    hidden,
                },
            ));
        }
        state.instances.push(instance);
    }
    problems.extend(number(state, devices));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Gives MIG devices their indices: those that were written, then the first free ones in list order.
fn number(state: &mut GpuState, devices: Vec<(Option<u32>, MigState)>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut taken: Vec<u32> = Vec::new();
    for index in devices.iter().filter_map(|(index, _)| *index) {
        if index >= state.model.compute_slices {
            problems.push(format!("layout: MIG index {index} is above {}", state.model.compute_slices - 1));
        } else if taken.contains(&index) {
            problems.push(format!("layout: MIG index {index} is taken"));
        }
        taken.push(index);
    }
    for (wanted, mut device) in devices {
        let free = || (0..=LAST_MIG_INDEX).find(|index| !taken.contains(index)).unwrap_or(LAST_MIG_INDEX);
        device.index = wanted.unwrap_or_else(free);
        taken.push(device.index);
        for instance in state.instances.iter_mut().filter(|instance| instance.gi == device.gi) {
            for compute in instance.compute.iter_mut().filter(|compute| compute.ci == device.ci) {
                compute.index = device.index;
            }
        }
        state.mig.push(device);
    }
    state.mig.sort_by_key(|device| device.index);
    problems
}

/// Thirteen digits, as serial numbers have, from the UUID's.
fn serial(uuid: &str) -> String {
    let sum = uuid.bytes().fold(7u64, |sum, byte| (sum * 131 + u64::from(byte)) % 1_000_000_000_000);
    format!("1{sum:012}")
}

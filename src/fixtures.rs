//! Inventories as literals that read as sentences, for tests.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cdi::{Cdi, CdiOptions};
use crate::inventory::{DeviceNode, Gpu, Inventory, MigDevice, MigMode, Placement, RecoveryAction};
use crate::nvml::Paths;
use crate::resource::allocate::Rules;
use crate::resource::policy::{AllocationPolicy, DeviceIdStrategy, DeviceListStrategy, Imex, OfferPolicy};
use crate::resource::{DeviceSpecs, MigStrategy, ResourceSet, resolve};

/// A node with these GPUs.
pub(crate) fn node(gpus: impl IntoIterator<Item = Gpu>) -> Inventory {
    Inventory { gpus: gpus.into_iter().collect(), ..Inventory::default() }
}

/// What the strategy mixed offers of it, everything else being as by default.
pub(crate) fn mixed(inventory: &Inventory) -> ResourceSet {
    resolve(inventory, &OfferPolicy { strategy: MigStrategy::Mixed, ..OfferPolicy::default() })
}

/// How answers are made when nothing is configured.
pub(crate) fn rules() -> Rules {
    Rules {
        device_specs: DeviceSpecs::Existing,
        host_dev_root: "/".into(),
        strategies: [DeviceListStrategy::Envvar].into(),
        ids: DeviceIdStrategy::Uuid,
        cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
        allocation: AllocationPolicy::default(),
        features: BTreeSet::new(),
        cdi_spec_dir: "/var/run/cdi".into(),
        imex: Imex::default(),
        variable_per_resource: false,
    }
}

/// An H100 that is not in MIG mode. Its NUMA node is 0 for the first four indices, else 1.
pub(crate) fn gpu(index: u32) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        pci_bus_id: format!("0000:{:02x}:00.0", 0x18 + 8 * index),
        minor: index,
        numa_node: Some(index / 4),
        memory_mib: Some(81_559),
        memory_slices: Some(8),
        mig_mode: Some(MigMode { current: false, pending: false }),
        node: present(format!("/dev/nvidia{index}")),
        mig_devices: Vec::new(),
        empty_gpu_instances: Vec::new(),
        hidden: Vec::new(),
        recovery_action: Some(RecoveryAction::None),
        problem: None,
    }
}

/// An H100 in MIG mode with a slice for each of `profiles`, one after the other.
pub(crate) fn mig_gpu(index: u32, profiles: &[&str]) -> Gpu {
    let mode = MigMode { current: true, pending: true };
    let devices = profiles.iter().zip(0..).map(|(profile, n)| mig_device(index, n, profile));
    Gpu { mig_mode: Some(mode), mig_devices: devices.collect(), ..gpu(index) }
}

/// The `n`th slice of a GPU. GPU instance IDs begin at 7, so that nobody takes them for indices.
pub(crate) fn mig_device(gpu: u32, n: u32, profile: &str) -> MigDevice {
    let profile: crate::inventory::Profile = profile.parse().unwrap();
    let gpu_instance = n + 7;
    let cap = 3 + 135 * gpu + 9 * gpu_instance;
    MigDevice {
        index: n,
        uuid: format!("MIG-{gpu}-{gpu_instance}-0"),
        gpu_instance,
        compute_instance: 0,
        memory_mib: profile.memory_gb().unwrap_or(1) * 1000,
        sm_count: profile.compute_slices().unwrap_or(1) * 16,
        profile,
        profile_id: None,
        placement: Some(Placement { start: n, size: 1 }),
        gpu_instance_node: Some(present(format!("/dev/nvidia-caps/nvidia-cap{cap}"))),
        compute_instance_node: Some(present(format!("/dev/nvidia-caps/nvidia-cap{}", cap + 1))),
        access_file: Some(format!("/proc/gpu{gpu}/gi{gpu_instance}/ci0/access").into()),
        access_stamp: None,
        problem: None,
    }
}

/// A device node that is there.
pub(crate) fn present(path: impl Into<PathBuf>) -> DeviceNode {
    DeviceNode { path: path.into(), exists: true }
}

/// CDI specifications that nobody asks for.
pub(crate) fn cdi_nowhere() -> Cdi {
    let options = CdiOptions {
        spec_dir: "/nonexistent".into(),
        host_driver_root: "/".into(),
        host_dev_root: "/".into(),
        hook: None,
        disabled_hooks: BTreeSet::new(),
        without_sockets: true,
        imex_channels: BTreeSet::new(),
        features: BTreeSet::new(),
    };
    Cdi::new(options, Paths::below("/nonexistent"))
}

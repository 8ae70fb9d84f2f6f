use super::*;
use crate::inventory::{
    DeviceNode, Gpu, HiddenSlice, Inventory, MigDevice, MigMode, Placement, Problem, RecoveryAction,
};

fn node(path: String) -> DeviceNode {
    DeviceNode { path: path.into(), exists: true }
}

fn gpu(index: u32, name: &str, memory_mib: u64, memory_slices: u32) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-5e1f5a3c-1d2b-4a6e-9c3f-0000000000{index:02}"),
        name: name.to_owned(),
        pci_bus_id: format!("0000:{:02x}:00.0", 24 + index),
        minor: index,
        numa_node: Some(0),
        memory_mib: Some(memory_mib),
        memory_slices: Some(memory_slices),
        mig_mode: Some(MigMode { current: true, pending: true }),
        node: node(format!("/dev/nvidia{index}")),
        mig_devices: Vec::new(),
        empty_gpu_instances: Vec::new(),
        hidden: Vec::new(),
        recovery_action: None,
        problem: None,
    }
}

/// Adds a slice: profile, GPU instance, placement, memory in MiB, multiprocessors.
fn slice(
    gpu: &mut Gpu,
    profile: &str,
    gi: u32,
    placement: Option<(u32, u32)>,
    memory_mib: u64,
    sm_count: u32,
) {
    let index = u32::try_from(gpu.mig_devices.len()).unwrap();
    let ci = gpu.mig_devices.iter().filter(|device| device.gpu_instance == gi).count();
    let ci = u32::try_from(ci).unwrap();
    let cap = 3 + 9 * gi;
    gpu.mig_devices.push(MigDevice {
        index,
        uuid: format!("MIG-0b7c2d1e-6a5f-5b3c-8d9e-{:08}{gi:02}{ci:02}", gpu.index),
        gpu_instance: gi,
        compute_instance: ci,
        profile: profile.parse().unwrap(),
        profile_id: Some(19),
        placement: placement.map(|(start, size)| Placement { start, size }),
        memory_mib,
        sm_count,
        gpu_instance_node: Some(node(format!("/dev/nvidia-caps/nvidia-cap{cap}"))),
        compute_instance_node: Some(node(format!("/dev/nvidia-caps/nvidia-cap{}", cap + 1 + ci))),
        access_file: Some(format!("/proc/driver/nvidia/capabilities/gpu0/mig/gi{gi}/ci{ci}/access").into()),
        access_stamp: None,
        problem: None,
    });
}

fn node_with(gpus: Vec<Gpu>) -> Inventory {
    Inventory {
        driver_version: "580.95.05".to_owned(),
        kernel_module: None,
        cuda_version: Some("13.0".to_owned()),
        library: "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05".into(),
        gpus,
        control_nodes: vec![node("/dev/nvidiactl".to_owned()), node("/dev/nvidia-uvm".to_owned())],
        problems: Vec::new(),
        sees_instances: None,
        event_right: None,
    }
}

fn h100() -> Gpu {
    let mut gpu = gpu(0, "NVIDIA H100 80GB HBM3", 81559, 8);
    slice(&mut gpu, "3g.40gb", 1, Some((4, 4)), 40448, 60);
    slice(&mut gpu, "2g.20gb", 3, Some((0, 2)), 20096, 32);
    slice(&mut gpu, "1g.10gb+me", 9, Some((2, 1)), 9984, 16);
    gpu
}

fn table(inventory: &Inventory) -> String {
    let text = render(&inventory.clone().into(), Format::Table).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    text
}

#[test]
fn eight_memory_slices_are_drawn_in_order_of_placement() {
    assert_eq!(
        table(&node_with(vec![h100()])),
        "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05

GPU 0: NVIDIA H100 80GB HBM3, MIG on
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000000  PCI 0000:18:00.0  NUMA 0  /dev/nvidia0  81559 MiB

  INDEX  PROFILE     GI  CI  PLACEMENT    MiB  SMs  UUID
  0:0    3g.40gb      1   0  {4}:4      40448   60  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000100
  0:1    2g.20gb      3   0  {0}:2      20096   32  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000300
  0:2    1g.10gb+me   9   0  {2}:1       9984   16  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000900

  Memory slices
    0           1           2           3           4           5           6           7
  ┌───────────────────────┬───────────┬───────────┬───────────────────────────────────────────────┐
  │ 2g.20gb               │ 1g.10gb+me│ free      │ 3g.40gb                                       │
  │ GI 3                  │ GI 9      │           │ GI 1                                          │
  └───────────────────────┴───────────┴───────────┴───────────────────────────────────────────────┘
"
    );
}

#[test]
fn what_the_driver_asks_for_without_harm_is_noted() {
    let with = |action| table(&node_with(vec![Gpu { recovery_action: Some(action), ..h100() }]));
    let note =
        "  Note: the driver asks for an end of its peer-to-peer traffic, which MIG devices do not have\n";
    assert!(with(RecoveryAction::DrainP2p).contains(note));
    assert!(
        with(RecoveryAction::RecoverImex)
            .contains("  Note: the driver asks for a recovery of the node's IMEX")
    );
    for action in [RecoveryAction::None, RecoveryAction::Reboot] {
        assert!(!with(action).contains("Note"), "{action}");
    }
}

#[test]
fn twelve_memory_slices_fit() {
    let mut gpu = gpu(10, "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97887, 12);
    slice(&mut gpu, "1g.24gb+me.all", 3, Some((0, 3)), 24192, 46);
    slice(&mut gpu, "1g.24gb-me", 4, Some((3, 3)), 24192, 46);
    slice(&mut gpu, "2g.48gb", 1, Some((6, 6)), 48512, 94);
    assert_eq!(
        table(&node_with(vec![gpu])),
        "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05

GPU 10: NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, MIG on
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000010  PCI 0000:22:00.0  NUMA 0  /dev/nvidia10  97887 MiB

  INDEX  PROFILE         GI  CI  PLACEMENT    MiB  SMs  UUID
  10:0   1g.24gb+me.all   3   0  {0}:3      24192   46  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000100300
  10:1   1g.24gb-me       4   0  {3}:3      24192   46  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000100400
  10:2   2g.48gb          1   0  {6}:6      48512   94  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000100100

  Memory slices
    0       1       2       3       4       5       6       7       8       9       10      11
  ┌───────────────────────┬───────────────────────┬───────────────────────────────────────────────┐
  │ 1g.24gb+me.all        │ 1g.24gb-me            │ 2g.48gb                                       │
  │ GI 3                  │ GI 4                  │ GI 1                                          │
  └───────────────────────┴───────────────────────┴───────────────────────────────────────────────┘
"
    );
}

#[test]
fn four_memory_slices_are_not_stretched_and_a_pending_mode_is_said() {
    let mut gpu = gpu(0, "NVIDIA A30", 24258, 4);
    gpu.mig_mode = Some(MigMode { current: true, pending: false });
    gpu.numa_node = None;
    slice(&mut gpu, "1c.2g.12gb", 1, Some((0, 2)), 11968, 14);
    slice(&mut gpu, "1c.2g.12gb", 1, Some((0, 2)), 11968, 14);
    slice(&mut gpu, "1g.6gb", 3, Some((2, 1)), 5952, 14);
    gpu.empty_gpu_instances = vec![6];
    let mut hidden = gpu.clone();
    hidden.empty_gpu_instances.clear();
    hidden.hidden = vec![HiddenSlice { gpu_instance: 6, compute_instance: 0, settled: true }];
    let drawn = table(&node_with(vec![hidden]));
    assert!(drawn.contains("│ GI 3        │ GI 6        │"), "what is hidden is not free: {drawn}");
    assert_eq!(
        table(&node_with(vec![gpu])),
        "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05

GPU 0: NVIDIA A30, MIG on, off after the next reset
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000000  PCI 0000:18:00.0  /dev/nvidia0  24258 MiB

  INDEX  PROFILE     GI  CI  PLACEMENT    MiB  SMs  UUID
  0:0    1c.2g.12gb   1   0  {0}:2      11968   14  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000100
  0:1    1c.2g.12gb   1   1  {0}:2      11968   14  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000101
  0:2    1g.6gb       3   0  {2}:1       5952   14  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000300

  Memory slices
    0             1             2             3
  ┌───────────────────────────┬─────────────┬─────────────┐
  │ 1c.2g.12gb x2             │ 1g.6gb      │ free or     │
  │ GI 1, CI 0 1              │ GI 3        │ GI 6        │
  └───────────────────────────┴─────────────┴─────────────┘
  GPU instance 6 has no compute instance: nothing can run on it
"
    );
}

#[test]
fn seven_small_slices_leave_the_eighth_memory_slice_free() {
    let mut gpu = gpu(0, "NVIDIA H100 80GB HBM3", 81559, 8);
    for start in 0..7 {
        slice(&mut gpu, "1g.10gb", 7 + start, Some((start, 1)), 9984, 16);
    }
    assert_eq!(
        drawn(&gpu),
        "  Memory slices
    0           1           2           3           4           5           6           7
  ┌───────────┬───────────┬───────────┬───────────┬───────────┬───────────┬───────────┬───────────┐
  │ 1g.10gb   │ 1g.10gb   │ 1g.10gb   │ 1g.10gb   │ 1g.10gb   │ 1g.10gb   │ 1g.10gb   │ free      │
  │ GI 7      │ GI 8      │ GI 9      │ GI 10     │ GI 11     │ GI 12     │ GI 13     │           │
  └───────────┴───────────┴───────────┴───────────┴───────────┴───────────┴───────────┴───────────┘"
    );
}

/// The drawing alone.
fn drawn(gpu: &Gpu) -> String {
    drawing::lines(gpu, false).join("\n")
}

#[test]
fn an_unknown_placement_is_said_instead_of_drawn() {
    let mut gpu = gpu(0, "NVIDIA H100 80GB HBM3", 81559, 8);
    slice(&mut gpu, "3g.40gb", 1, None, 40448, 60);
    slice(&mut gpu, "3g.40gb", 2, None, 40448, 60);
    assert_eq!(drawn(&gpu), "  Placement of GPU instance 1 2: unknown, the driver did not tell");
    // One that is known is drawn, and the gaps may be the other's.
    gpu.mig_devices[0].placement = Some(Placement { start: 4, size: 4 });
    let text = drawn(&gpu);
    assert!(text.contains("│ free or ") && text.contains("│ GI 2 "), "{text}");
    // Nonsense is not drawn.
    gpu.mig_devices[1].placement = Some(Placement { start: 2, size: 4 });
    assert_eq!(drawn(&gpu), "  Memory slices: the driver's placements overlap, see the table");
    gpu.mig_devices[1].placement = Some(Placement { start: u32::MAX, size: 4 });
    assert_eq!(drawn(&gpu), "");
}

#[test]
fn a_gap_may_be_what_could_not_be_read() {
    let text = drawing::lines(&h100(), true).join("\n");
    assert!(text.contains("│ free or   │") && text.contains("│ unread    │"), "{text}");
}

#[test]
fn gpus_without_mig_have_no_slices_to_show() {
    let mut off = gpu(0, "NVIDIA A100-SXM4-40GB", 40960, 8);
    off.mig_mode = Some(MigMode { current: false, pending: true });
    let mut old = gpu(1, "Tesla T4", 15360, 8);
    old.mig_mode = None;
    let empty = gpu(2, "NVIDIA A30", 24258, 4);
    assert_eq!(
        table(&node_with(vec![off, old, empty])),
        "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05

GPU 0: NVIDIA A100-SXM4-40GB, MIG off, on after the next reset
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000000  PCI 0000:18:00.0  NUMA 0  /dev/nvidia0  40960 MiB

GPU 1: Tesla T4, no MIG
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000001  PCI 0000:19:00.0  NUMA 0  /dev/nvidia1  15360 MiB

GPU 2: NVIDIA A30, MIG on
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000002  PCI 0000:1a:00.0  NUMA 0  /dev/nvidia2  24258 MiB
  no MIG devices

  Memory slices
    0             1             2             3
  ┌───────────────────────────────────────────────────────┐
  │ free                                                  │
  │                                                       │
  └───────────────────────────────────────────────────────┘
"
    );
}

#[test]
fn problems_are_listed_at_the_end() {
    let mut sick = h100();
    sick.mig_devices[1].problem =
        Some(crate::inventory::Trouble::unreadable("nvmlDeviceGetUUID: timed out (NVML_ERROR_TIMEOUT)"));
    if let Some(node) = &mut sick.mig_devices[2].gpu_instance_node {
        node.exists = false;
    }
    let mut inventory = node_with(vec![sick]);
    let problem = |gpu, mig_device, reason: &str, left_out| Problem {
        gpu,
        mig_device,
        uuid: None,
        reason: crate::inventory::Trouble::unreadable(reason),
        left_out,
    };
    inventory.problems = vec![
        problem(3, None, "nvmlDeviceGetUUID: GPU is lost (NVML_ERROR_GPU_IS_LOST)", true),
        problem(0, Some(5), "nvmlDeviceGetAttributes_v2: no permission (NVML_ERROR_NO_PERMISSION)", false),
    ];
    let text = table(&inventory);
    let (_, problems) = text.split_once("\nProblems\n").unwrap();
    assert_eq!(
        problems,
        "  GPU 3, left out: nvmlDeviceGetUUID: GPU is lost (NVML_ERROR_GPU_IS_LOST)
  MIG device 0:5, incomplete: nvmlDeviceGetAttributes_v2: no permission (NVML_ERROR_NO_PERMISSION)
  MIG device 0:1, unusable: nvmlDeviceGetUUID: timed out (NVML_ERROR_TIMEOUT)
  MIG device 0:2: /dev/nvidia-caps/nvidia-cap84 does not exist
"
    );
}

#[test]
fn a_node_without_gpus_says_so() {
    let text = table(&node_with(Vec::new()));
    assert_eq!(
        text,
        "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05\n\n\
         No GPU could be read.\n"
    );
}

#[test]
fn wide_adds_numa_and_device_nodes() {
    let mut gpu = h100();
    gpu.mig_devices.truncate(2);
    gpu.mig_devices[1].compute_instance_node = None;
    if let Some(node) = &mut gpu.mig_devices[0].compute_instance_node {
        node.exists = false;
    }
    let text = render(&node_with(vec![gpu]).into(), Format::Wide).unwrap();
    assert_eq!(text.lines().take(8).collect::<Vec<_>>().join("\n"), "Driver 580.95.05, CUDA 13.0, /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05
Control nodes: /dev/nvidiactl, /dev/nvidia-uvm

GPU 0: NVIDIA H100 80GB HBM3, MIG on
  GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000000  PCI 0000:18:00.0  NUMA 0  /dev/nvidia0  81559 MiB

  INDEX  PROFILE  GI  CI  PLACEMENT    MiB  SMs  UUID                                      NUMA  NODES
  0:0    3g.40gb   1   0  {4}:4      40448   60  MIG-0b7c2d1e-6a5f-5b3c-8d9e-000000000100     0  /dev/nvidia0, nvidia-cap12, nvidia-cap13 (missing)");
}

#[test]
fn json_and_yaml_come_back_as_the_same_inventory() {
    let mut inventory = node_with(vec![h100()]);
    inventory.gpus[0].mig_devices[0].placement = None;
    inventory.problems.push(Problem {
        gpu: 1,
        mig_device: None,
        uuid: None,
        reason: crate::inventory::Trouble::unreadable("a: b # c"),
        left_out: true,
    });
    let json = render(&inventory.clone().into(), Format::Json).unwrap();
    assert_eq!(serde_json::from_str::<Inventory>(&json).unwrap(), inventory);
    let yaml = render(&inventory.clone().into(), Format::Yaml).unwrap();
    assert_eq!(serde_saphyr::from_str::<Inventory>(&yaml).unwrap(), inventory);
    assert!(json.ends_with("}\n") && yaml.ends_with('\n') && !yaml.ends_with("\n\n"));
}

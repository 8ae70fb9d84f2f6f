use super::super::tests::{majors, options};
use super::*;
use crate::fixtures::{gpu, mig_gpu, node, present};

fn names(built: &Built) -> Vec<&str> {
    let devices = built.spec.iter().flat_map(|spec| &spec.devices);
    devices.map(|device| device.name.as_str()).collect()
}

fn nodes<'a>(built: &'a Built, name: &str) -> Vec<&'a DeviceNode> {
    let spec = built.spec.as_ref().unwrap();
    let device = spec.devices.iter().find(|device| device.name == name).unwrap();
    device.container_edits.device_nodes.iter().collect()
}

fn paths<'a>(built: &'a Built, name: &str) -> Vec<&'a str> {
    nodes(built, name).into_iter().map(|node| node.path.to_str().unwrap()).collect()
}

fn numbers(nodes: &[&DeviceNode]) -> Vec<(u32, u32)> {
    nodes.iter().map(|node| (node.major.unwrap(), node.minor.unwrap())).collect()
}

fn built(inventory: &Inventory) -> Built {
    build(inventory, &DriverFiles::default(), &majors(), &options())
}

#[test]
fn gpus_and_slices_have_two_names_each_and_there_is_one_for_all() {
    let built = built(&node([mig_gpu(0, &["1g.10gb", "2g.20gb"]), gpu(1)]));
    let expected = ["0", "0:0", "0:1", "1", "GPU-0", "GPU-1", "MIG-0-7-0", "MIG-0-8-0", "all"];
    assert_eq!(names(&built), expected);
    assert_eq!(built.incomplete, []);
    assert_eq!(nodes(&built, "0:1"), nodes(&built, "MIG-0-8-0"));
}

#[test]
fn a_slice_gets_its_gpus_node_and_its_two_capabilities() {
    let built = built(&node([mig_gpu(0, &["1g.10gb"]), mig_gpu(1, &["1g.10gb"])]));
    let slice = nodes(&built, "1:0");
    let expected = ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap201", "/dev/nvidia-caps/nvidia-cap202"];
    assert_eq!(paths(&built, "1:0"), expected);
    assert_eq!(numbers(&slice), [(195, 1), (236, 201), (236, 202)]);
    assert_eq!(slice[1].host_path, Path::new("/run/nvidia/driver/dev/nvidia-caps/nvidia-cap201"));
    assert!(slice.iter().all(|n| n.device_type == Some('c') && n.permissions == "rw"));
}

#[test]
fn a_gpus_minor_is_not_its_index() {
    let mut odd = gpu(0);
    odd.minor = 6;
    odd.node = present("/dev/nvidia6");
    let built = built(&node([odd]));
    assert_eq!(paths(&built, "0"), ["/dev/nvidia6"]);
    assert_eq!(numbers(&nodes(&built, "GPU-0")), [(195, 6)]);
}

#[test]
fn all_has_every_node_once() {
    let built = built(&node([mig_gpu(0, &["1g.10gb", "1g.10gb"]), gpu(1)]));
    assert_eq!(
        paths(&built, "all"),
        [
            "/dev/nvidia-caps/nvidia-cap66",
            "/dev/nvidia-caps/nvidia-cap67",
            "/dev/nvidia-caps/nvidia-cap75",
            "/dev/nvidia-caps/nvidia-cap76",
            "/dev/nvidia0",
            "/dev/nvidia1",
        ]
    );
}

#[test]
fn a_slice_whose_nodes_are_not_known_is_left_out_with_the_reason() {
    let mut slices = mig_gpu(0, &["1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb"]);
    slices.mig_devices[0].gpu_instance_node = None;
    slices.mig_devices[1].compute_instance_node = None;
    slices.mig_devices[2].compute_instance_node = Some(present("/dev/nvidia-caps/odd"));
    let built = built(&node([slices]));
    assert_eq!(names(&built), ["0", "0:3", "GPU-0", "MIG-0-10-0", "all"]);
    let reasons: Vec<_> = built.incomplete.iter().map(|i| (i.id.as_str(), i.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            ("MIG-0-7-0", "GPU instance 7 has no capability node in mig-minors"),
            ("MIG-0-8-0", "compute instance 0 of GPU instance 8 has no capability node in mig-minors"),
            ("MIG-0-9-0", "/dev/nvidia-caps/odd has no minor number in its name"),
        ]
    );
}

#[test]
fn without_major_numbers_there_is_nothing_to_write() {
    let inventory = node([mig_gpu(0, &["1g.10gb"])]);
    let unknown = build(&inventory, &DriverFiles::default(), &Majors::default(), &options());
    assert_eq!(unknown.spec, None);
    assert_eq!(unknown.incomplete.len(), 2);
    let no_caps = Majors { caps: None, ..majors() };
    let no_caps = build(&inventory, &DriverFiles::default(), &no_caps, &options());
    assert_eq!(names(&no_caps), ["0", "GPU-0", "all"]);
    assert_eq!(no_caps.incomplete[0].reason, "the major number of nvidia-caps is not in /proc/devices");
}

#[test]
fn a_name_that_cdi_does_not_allow_does_not_spoil_the_file() {
    let mut legacy = mig_gpu(0, &["1g.10gb"]);
    legacy.mig_devices[0].uuid = "MIG-GPU-0/7/0".to_owned();
    let built = built(&node([legacy]));
    assert_eq!(names(&built), ["0", "GPU-0", "all"]);
    assert_eq!(built.incomplete[0].reason, "\"MIG-GPU-0/7/0\" cannot be a CDI device's name");
}

#[test]
fn what_cannot_be_read_keeps_its_name_unless_another_has_it_now() {
    let mut moved = mig_gpu(0, &["1g.10gb", "1g.10gb"]);
    moved.mig_devices[0].problem = Some(crate::inventory::Trouble::unreadable("unreadable"));
    moved.mig_devices[1].index = 0;
    let built = built(&node([moved]));
    assert_eq!(names(&built), ["0", "0:0", "GPU-0", "MIG-0-7-0", "MIG-0-8-0", "all"]);
    assert_eq!(nodes(&built, "0:0"), nodes(&built, "MIG-0-8-0"));
}

#[test]
fn control_nodes_are_for_every_container() {
    let mut inventory = node([gpu(0)]);
    inventory.control_nodes = [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-modeset",
        "/dev/nvidia-new",
    ]
    .map(present)
    .into();
    inventory
        .control_nodes
        .push(crate::inventory::DeviceNode { exists: false, ..present("/dev/nvidia-gone") });
    let with_all = built(&inventory).spec.unwrap().container_edits.device_nodes;
    let numbers: Vec<_> = with_all.iter().map(|node| node.major.zip(node.minor)).collect();
    let expected = [Some((195, 255)), Some((511, 0)), Some((511, 1)), Some((195, 254)), None];
    assert_eq!(numbers, expected);
    let types: Vec<_> = with_all.iter().map(|node| node.device_type).collect();
    assert_eq!(types, [Some('c'), Some('c'), Some('c'), Some('c'), None]);
}

#[test]
fn imex_channels_are_those_that_are_there() {
    let wanted = CdiOptions { imex_channels: [0, 7].into(), ..options() };
    let exists = |path: &Path| path == Path::new("/dev/nvidia-caps-imex-channels/channel0");
    let built = build_imex(&majors(), &wanted, exists);
    assert_eq!(names(&built), ["0"]);
    assert_eq!(numbers(&nodes(&built, "0")), [(234, 0)]);
    assert_eq!(built.incomplete[0].id, "channel7");
    assert_eq!(build_imex(&majors(), &wanted, |_| false).spec, None);
    let by_host = build_imex(&Majors::default(), &wanted, exists);
    assert_eq!(nodes(&by_host, "0")[0].major, None);
}

#[test]
fn it_is_always_the_same() {
    let inventory = node([mig_gpu(0, &["1g.10gb"; 7]), gpu(1), mig_gpu(2, &["3g.40gb"; 2])]);
    let text = |built: Built| serde_json::to_string(&built.spec).unwrap();
    assert_eq!(text(built(&inventory)), text(built(&inventory.clone())));
    assert_eq!(built(&Inventory::default()).spec, None);
}

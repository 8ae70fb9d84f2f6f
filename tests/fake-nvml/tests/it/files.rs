//! The files of `/proc` and `/dev`: who makes them, when, and which there are.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use fake_nvml::{ComputeInstance, Description, Fault, Instance, Node, Nodes};

use crate::{call, client::Client, node};

const CAPABILITIES: &str = "proc/driver/nvidia/capabilities";

fn capability(node: &Node, path: &str) -> PathBuf {
    node.root().join(CAPABILITIES).join(path)
}

fn cap_nodes(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.root().join("dev/nvidia-caps")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_node_is_made_when_a_client_asks_for_the_slice_and_never_removed() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["3g.40gb"]));
    let first = ["nvidia-cap1", "nvidia-cap12", "nvidia-cap13", "nvidia-cap2"];
    assert_eq!(cap_nodes(&node), first);
    node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap();
    assert_eq!(cap_nodes(&node), first);
    let client = Client::of(&node);
    assert_eq!(client.migs(client.gpu(0).unwrap()).len(), 1);
    let both = ["nvidia-cap1", "nvidia-cap12", "nvidia-cap13", "nvidia-cap2", "nvidia-cap66", "nvidia-cap67"];
    assert_eq!(cap_nodes(&node), both);
    node.update(|d| d.set_mig_mode(0, false)).unwrap();
    assert_eq!(cap_nodes(&node), both);
}

#[test]
fn by_hand_no_client_makes_a_node() {
    let (_folder, node) = node(&Description { nodes: Nodes::ByHand, ..Description::h100s(1) });
    node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap();
    let client = Client::of(&node);
    assert_eq!(client.migs(client.gpu(0).unwrap()).len(), 1);
    assert_eq!(cap_nodes(&node), ["nvidia-cap1", "nvidia-cap2"]);
    node.make_nodes().unwrap();
    assert_eq!(cap_nodes(&node), ["nvidia-cap1", "nvidia-cap2", "nvidia-cap66", "nvidia-cap67"]);
}

#[test]
fn folders_are_there_without_instances_and_their_times_stand_still() {
    let (_folder, node) = node(&Description::h100s(2));
    let folder = capability(&node, "gpu1/mig");
    let modified = || fs::metadata(&folder).unwrap().modified().unwrap();
    let before = modified();
    node.update(|d| d.set_mig(1, &["1g.10gb"; 2])).unwrap();
    let instance = fs::metadata(folder.join("gi11")).unwrap().modified().unwrap();
    node.update(|d| d.gpu(1).layout.truncate(1)).unwrap();
    assert_eq!(modified(), before);
    node.update(|d| d.gpu(1).layout[0].compute = Some(vec![])).unwrap();
    assert!(!folder.join("gi11/ci0").exists());
    assert_eq!(fs::metadata(folder.join("gi11")).unwrap().modified().unwrap(), instance);
    node.update(|d| d.set_mig_mode(1, false)).unwrap();
    assert!(folder.is_dir() && !folder.join("gi11").exists());
    assert_eq!(modified(), before);
}

/// How many MIG devices GPU 0 has, and whether the first one's file is there.
fn seen(client: &Client, node: &Node) -> (usize, bool) {
    (client.migs(client.gpu(0).unwrap()).len(), capability(node, "gpu0/mig/gi7/ci0/access").exists())
}

/// Each state after this first one once, in its order, until the last one.
fn states(client: &Client, node: &Node, first: (usize, bool), last: (usize, bool)) -> Vec<(usize, bool)> {
    let end = Instant::now() + Duration::from_mins(1);
    let mut states = vec![first];
    while states.last() != Some(&last) {
        assert!(Instant::now() < end, "{states:?}");
        // Between the two looks the file may come or go: look until nothing does.
        let now = seen(client, node);
        if seen(client, node) == now {
            states.push(now);
            states.dedup();
        }
    }
    states.split_off(1)
}

#[test]
fn files_are_first_at_both_ends() {
    let (_folder, node) =
        node(&Description { file_gap_ms: 2000, ..Description::h100s(1).with_mig_mode(0, true) });
    let client = Client::of(&node);
    assert_eq!(seen(&client, &node), (0, false));
    std::thread::scope(|scope| {
        scope.spawn(|| node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap());
        assert_eq!(states(&client, &node, (0, false), (1, true)), [(0, true), (1, true)]);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| node.update(|d| d.set_mig(0, &[] as &[&str])).unwrap());
        assert_eq!(states(&client, &node, (1, true), (0, false)), [(1, false), (0, false)]);
    });
}

#[test]
fn files_are_first_for_an_edit_by_hand_too() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    assert_eq!(seen(&client, &node), (0, false));
    let yaml = "fileGapMs: 2000\ngpus: [{ model: h100-80gb-sxm5, mig: true, layout: [1g.10gb] }]\n";
    fs::write(node.description_file(), yaml).unwrap();
    assert_eq!(states(&client, &node, (0, false), (1, true)), [(0, true), (1, true)]);
}

#[test]
fn a_destroy_that_fails_late_leaves_a_slice_without_its_file() {
    const UNKNOWN: u32 = 999;
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"; 2]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let mut instance = std::ptr::null_mut();
    call!(client, nvmlDeviceGetGpuInstanceById(gpu, 7, &raw mut instance)).unwrap();
    let mut compute = std::ptr::null_mut();
    call!(client, nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute)).unwrap();
    let fault = Fault::error("nvmlComputeInstanceDestroy", "UNKNOWN");
    node.update(|d| d.faults = vec![fault.clone()]).unwrap();
    assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Err(UNKNOWN));
    assert_eq!(seen(&client, &node), (2, true));
    node.update(|d| d.faults = vec![fault.late().on_mig(0, 0)]).unwrap();
    assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Err(UNKNOWN));
    assert_eq!(seen(&client, &node), (2, false));
    assert!(capability(&node, "gpu0/mig/gi7/access").exists());
    // Once more, and it works.
    node.update(|d| d.faults.clear()).unwrap();
    assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Ok(()));
    assert_eq!(seen(&client, &node), (1, false));
    node.update(|d| d.faults = vec![Fault::error("nvmlGpuInstanceDestroy", "UNKNOWN").late().on_gpu(0)])
        .unwrap();
    assert_eq!(call!(client, nvmlGpuInstanceDestroy(instance)), Err(UNKNOWN));
    assert!(!capability(&node, "gpu0/mig/gi7/access").exists());
    assert!(call!(client, nvmlDeviceGetGpuInstanceById(gpu, 7, &raw mut instance)).is_ok());
}

#[test]
fn files_can_be_gone_by_description() {
    let part = ComputeInstance { access_file_gone: true, ..ComputeInstance::new(1) };
    let half = Instance { compute: Some(vec![part, ComputeInstance::new(2)]), ..Instance::new("3g.40gb") };
    let gone = Instance { access_file_gone: true, ..Instance::new("1g.10gb") };
    let description = Description::h100s(1).with_mig(0, &[half, gone]);
    assert_eq!(Description::parse(&description.to_yaml().unwrap()).unwrap(), description);
    let (_folder, node) = node(&description);
    let there = |path: &str| capability(&node, path).exists();
    assert!(there("gpu0/mig/gi1/access") && there("gpu0/mig/gi1/ci1/access"));
    assert!(!there("gpu0/mig/gi1/ci0/access") && !there("gpu0/mig/gi7"));
    assert_eq!(node.gpus().unwrap()[0].mig.len(), 3);
}

#[test]
fn a_late_fault_is_one_of_a_destroy() {
    let late = Fault::error("nvmlDeviceGetUUID", "UNKNOWN").late();
    let reason = Description::h100s(1).with_faults([late]).resolve().unwrap_err().to_string();
    assert!(
        reason.contains("faults[0].late: needs error, and as call one of nvmlGpuInstanceDestroy"),
        "{reason}"
    );
}

#[test]
fn the_drivers_version_decides_what_else_is_in_proc() {
    let (_folder, node) = node(&Description::h100s(1));
    let read = |path: &str| fs::read_to_string(node.root().join("proc").join(path)).ok();
    assert_eq!(read("driver/nvidia-caps/nvlink-minors").as_deref(), Some("fabric-mgmt 0\n"));
    assert_eq!(read("driver/nvidia-caps/sys-minors").as_deref(), Some("fabric-imex-mgmt 4323\n"));
    assert!(capability(&node, "fabric-imex-mgmt").exists());
    assert!(read("devices").unwrap().contains("195 nvidia\n"));
    node.update(|d| d.driver_version = "535.129.03".to_owned()).unwrap();
    assert_eq!(read("driver/nvidia-caps/sys-minors").as_deref(), Some(""));
    assert!(!capability(&node, "fabric-imex-mgmt").exists() && capability(&node, "fabric-mgmt").exists());
    assert!(read("devices").unwrap().contains("195 nvidia-frontend\n"));
    node.update(|d| d.driver_version = "515.43.04".to_owned()).unwrap();
    assert_eq!(read("driver/nvidia-caps/nvlink-minors"), None);
    assert!(!capability(&node, "fabric-mgmt").exists());
}

//! What a loaded library makes of changes: layouts, files, handles, broken edits.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, Ordering},
};

use fake_nvml::{Description, DriverState, Gpu, Instance, Node};
use nvml_wrapper_sys::bindings::NvmlLib;

use crate::{call, client::Client, node};

const INVALID_ARGUMENT: u32 = 2;

fn access(node: &Node, path: &str) -> bool {
    node.root().join("proc/driver/nvidia/capabilities/gpu0/mig").join(path).join("access").is_file()
}

#[test]
fn removing_an_instance_moves_no_other() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"; 7]));
    let before = node.gpus().unwrap()[0].mig.clone();
    node.update(|d| drop(d.gpus[0].layout.drain(..3))).unwrap();
    let after = node.gpus().unwrap()[0].mig.clone();
    assert_eq!(after.len(), 4);
    for (old, new) in before[3..].iter().zip(&after) {
        assert_eq!((old.gi, &old.uuid, old.placement), (new.gi, &new.uuid, new.placement));
    }
    // The same place, another profile: the UUID comes back.
    node.update(|d| d.gpus[0].layout.push(Instance::new("1g.10gb+me").at(0))).unwrap();
    let reused = node.gpus().unwrap()[0].mig[4].clone();
    assert_eq!((reused.gi, &reused.uuid, reused.profile.as_str()), (7, &before[0].uuid, "1g.10gb+me"));
}

#[test]
fn handles_of_destroyed_instances_are_refused_and_never_come_back() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["3g.40gb", "1g.10gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let migs = client.migs(gpu);
    node.update(|d| drop(d.gpus[0].layout.remove(0))).unwrap();
    assert_eq!(client.uuid(migs[0]), Err(INVALID_ARGUMENT));
    assert_eq!(client.ids(migs[1]), Ok((11, 0)));
    // Made again: another one, even though its UUID is the same.
    node.update(|d| d.gpus[0].layout.push(Instance::new("3g.40gb"))).unwrap();
    assert_eq!(client.uuid(migs[0]), Err(INVALID_ARGUMENT));
    assert_eq!(client.migs(gpu).len(), 2);
    node.update(|d| d.set_mig_mode(0, false)).unwrap();
    assert_eq!(client.ids(migs[1]), Err(INVALID_ARGUMENT));
    assert_eq!(client.mig_mode(gpu), Ok((0, 0)));
}

#[test]
fn handles_that_are_used_again_name_what_is_at_their_index() {
    let mut description = Description::h100s(1).with_mig(0, &["3g.40gb"]);
    description.handles_reused = true;
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let mig = client.mig(gpu, 0).unwrap();
    let before = client.uuid(mig).unwrap();
    node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap();
    let now = node.gpus().unwrap()[0].mig[0].clone();
    assert_ne!(before, now.uuid);
    assert_eq!((client.uuid(mig), client.ids(mig)), (Ok(now.uuid), Ok((now.gi, now.ci))));
    node.update(|d| d.set_mig::<&str>(0, &[])).unwrap();
    assert_eq!(client.uuid(mig), Err(INVALID_ARGUMENT));
}

#[test]
fn times_of_procs_files_move_with_each_call_where_they_are_to() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"]));
    let client = Client::of(&node);
    let file = node.root().join("proc/driver/nvidia/version");
    let changed = || {
        let found = fs::metadata(&file).unwrap();
        (found.ino(), found.ctime(), found.ctime_nsec())
    };
    let before = changed();
    client.gpu(0).unwrap();
    assert_eq!(changed(), before);
    node.update(|d| d.proc_times_move = true).unwrap();
    for _ in 0..3 {
        let before = changed();
        client.gpu(0).unwrap();
        let after = changed();
        assert!(after.0 == before.0 && after != before, "{before:?} {after:?}");
    }
}

#[test]
fn handles_that_were_never_given_out_are_refused() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    for wild in [0usize, 1, 0x0fa4_0000_0008, 0x0fa4_0000_1000, usize::MAX] {
        assert_eq!(client.uuid(wild as *mut _), Err(INVALID_ARGUMENT));
    }
}

#[test]
fn files_come_and_go_with_the_instances() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["3g.40gb"]));
    let root = node.root().to_owned();
    assert!(access(&node, "gi1") && access(&node, "gi1/ci0"));
    let content = fs::read_to_string(root.join("proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access"));
    assert_eq!(content.unwrap(), "DeviceFileMinor: 13\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
    assert!(root.join("dev/nvidia-caps/nvidia-cap13").exists());
    let devices = fs::read_to_string(root.join("proc/devices")).unwrap();
    assert!(devices.contains("195 nvidia\n") && devices.contains(" nvidia-caps\n"));
    assert_eq!(fs::read_to_string(root.join("sys/bus/pci/devices/0000:18:00.0/numa_node")).unwrap(), "0\n");
    node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap();
    assert!(!access(&node, "gi1") && access(&node, "gi7/ci0"));
    // Nobody removes a node.
    assert!(root.join("dev/nvidia-caps/nvidia-cap13").exists());
    node.update(|d| d.driver = DriverState::NotLoaded).unwrap();
    assert!(!root.join("proc/driver/nvidia").exists() && !root.join("dev/nvidia0").exists());
}

#[test]
fn an_edit_by_hand_is_seen_by_the_next_call_files_and_all() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let yaml = "gpus: [{ model: h100-80gb-sxm5, mig: true, layout: [7g.80gb] }]\n";
    fs::write(node.description_file(), yaml).unwrap();
    assert_eq!(client.migs(gpu).len(), 1);
    assert!(access(&node, "gi0/ci0"));
}

#[test]
fn a_broken_edit_keeps_the_last_good_node_and_says_why() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["7g.80gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let good = fs::read_to_string(node.description_file()).unwrap();
    fs::write(node.description_file(), good.replace("7g.80gb", "8g.80gb")).unwrap();
    assert_eq!(client.migs(gpu).len(), 1);
    fs::write(node.description_file(), "").unwrap();
    assert_eq!(client.migs(gpu).len(), 1);
    fs::write(node.description_file(), good.replace("7g.80gb", "8g.80gb")).unwrap();
    assert_eq!(client.migs(gpu).len(), 1);
    let said = node.error().unwrap().unwrap();
    assert!(said.contains("gpus[0].layout[0]") && said.contains("7g.80gb"), "{said}");
    fs::write(node.description_file(), good).unwrap();
    assert_eq!(client.migs(gpu).len(), 1);
    assert_eq!(node.error().unwrap(), None);
}

#[test]
fn a_refused_update_changes_nothing() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["7g.80gb"]));
    assert!(node.update(|d| d.set_mig(0, &["4g.40gb", "4g.40gb"])).is_err());
    assert_eq!(node.gpus().unwrap()[0].mig[0].profile, "7g.80gb");
}

#[test]
fn two_nodes_in_one_process_are_two() {
    let (_one, first) = node(&Description::h100s(1));
    let (_two, second) = node(&Description::of("a30-24gb", 3));
    let count = |node: &Node| {
        let client = Client::of(node);
        let mut count = 0;
        call!(client, nvmlDeviceGetCount_v2(&raw mut count)).unwrap();
        count
    };
    assert_eq!((count(&first), count(&second)), (1, 3));
}

#[test]
fn a_lost_gpu_keeps_its_handle_and_can_come_back() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let gpu = client.gpu(1).unwrap();
    let description = node.description().unwrap();
    node.update(|d| drop(d.gpus.pop())).unwrap();
    assert_eq!(client.uuid(gpu), Err(15));
    node.update(|d| d.gpus.push(description.gpus[1].clone())).unwrap();
    assert_eq!(client.uuid(gpu), Ok(node.gpus().unwrap()[1].uuid.clone()));
}

/// Listing goes on in several threads while the layout changes: each call answers or refuses, none crashes.
#[test]
fn clients_in_several_threads_survive_changes() {
    let (_folder, node) = node(&Description::h100s(2).with_mig(0, &["1g.10gb"; 7]));
    let client = Client::of(&node);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let gpu = client.gpu(0).unwrap();
                    for mig in client.migs(gpu) {
                        let answer = client.uuid(mig);
                        assert!(answer.is_ok() || answer == Err(INVALID_ARGUMENT), "{answer:?}");
                    }
                }
            });
        }
        for _ in 0..10 {
            node.update(|d| d.set_mig(0, &["3g.40gb", "3g.40gb"])).unwrap();
            node.update(|d| d.set_mig(0, &["1g.10gb"; 7])).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_gpu_that_is_added_takes_nothing_from_those_that_stay() {
    let (_folder, node) = node(&Description::h100s(2));
    node.update(|d| {
        d.gpus.remove(0);
        d.gpus.push(Gpu::new("a30-24gb"));
    })
    .unwrap();
    let gpus = node.gpus().unwrap();
    let places: Vec<_> = gpus.iter().map(|gpu| (gpu.minor, gpu.pci.as_str())).collect();
    assert_eq!(places, [(1, "0000:20:00.0"), (2, "0000:28:00.0")]);
}

/// Which file a capability file is.
fn stamp(node: &Node, path: &str) -> (u64, i64, i64) {
    let file = node.root().join("proc/driver/nvidia/capabilities/gpu0/mig").join(path).join("access");
    let found = fs::metadata(file).unwrap();
    (found.ino(), found.ctime(), found.ctime_nsec())
}

#[test]
fn capability_files_are_others_when_the_instance_is_another_one() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb", "1g.10gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let before = (stamp(&node, "gi7"), stamp(&node, "gi7/ci0"), stamp(&node, "gi8/ci0"));
    let now = || (stamp(&node, "gi7"), stamp(&node, "gi7/ci0"), stamp(&node, "gi8/ci0"));
    node.update(|d| d.gpu(0).recovery_action = fake_nvml::RecoveryAction::Reset).unwrap();
    assert_eq!(client.migs(gpu).len(), 2);
    assert_eq!(now(), before);
    // Another profile at the same place.
    node.update(|d| d.gpu(0).layout[0] = Instance::new("1g.10gb+me").gi(7).at(0)).unwrap();
    let reused = now();
    assert!(reused.0 != before.0 && reused.1 != before.1 && reused.2 == before.2);
    // The same, destroyed and made again.
    let old = client.migs(gpu);
    node.update(|d| d.set_mig(0, &["1g.10gb+me", "1g.10gb"])).unwrap();
    let again = now();
    assert!(again.0 != reused.0 && again.1 != reused.1 && again.2 != reused.2);
    assert_eq!(client.uuid(old[0]), Err(INVALID_ARGUMENT));
    // Who reads the description later leaves the files alone.
    assert_eq!(client.migs(gpu).len(), 2);
    assert_eq!(now(), again);
}

#[test]
fn another_version_of_the_driver_needs_the_library_loaded_anew() {
    const MISMATCH: u32 = 18;
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(node.clients().unwrap(), 1);
    node.upgrade_driver("590.44.01").unwrap();
    assert_eq!(client.uuid(gpu), Err(MISMATCH));
    assert_eq!(call!(client, nvmlInit_v2()), Err(MISMATCH));
    assert_eq!(call!(client, nvmlShutdown()), Ok(()));
    assert_eq!(node.clients().unwrap(), 0);
    // As long as the old one is loaded, the loader gives it for the same path; another one is another file.
    let path = node.root().join("usr/lib64/libnvidia-ml.so.590.44.01");
    fs::copy(node.library(), &path).unwrap();
    // SAFETY: the library's initialisers do nothing.
    let lib = unsafe { NvmlLib::new(&path) }.unwrap();
    let client = Client { lib };
    assert_eq!(call!(client, nvmlInit_v2()), Ok(()));
    assert!(client.gpu(0).is_ok());
    node.reset_counters().unwrap();
    assert_eq!(node.clients().unwrap(), 1);
}

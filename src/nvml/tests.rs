//! The real loading and asking code, against a `libnvidia-ml.so.1` of our own.

use std::path::Path;
use std::time::Duration;

use fake_nvml::{Description, DriverState, Fault, Instance, Node, UnknownProfile, catalogue};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::inventory::{MigDevice, MigMode, Placement};

/// A node, and the folder that goes with it.
struct Fake {
    node: Node,
    _folder: TempDir,
}

impl Fake {
    fn new(description: &Description) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { node: Node::create(folder.path(), description).unwrap(), _folder: folder }
    }

    fn paths(&self) -> Paths {
        Paths::below(self.node.root())
    }

    fn discover(&self) -> Inventory {
        discover(&self.paths()).unwrap()
    }

    fn update(&self, change: impl FnOnce(&mut Description)) {
        self.node.update(change).unwrap();
    }

    fn calls(&self) -> u64 {
        self.node.counters().unwrap().values().sum()
    }
}

fn one_h100(layout: &[&str]) -> Description {
    Description::h100s(1).with_mig(0, layout)
}

fn profiles(inventory: &Inventory, gpu: usize) -> Vec<&str> {
    inventory.gpus[gpu].mig_devices.iter().map(|device| device.profile.as_str()).collect()
}

fn reasons(inventory: &Inventory) -> Vec<String> {
    inventory.problems.iter().map(|problem| format!("{}: {}", problem.subject(), problem.reason)).collect()
}

#[test]
fn all_that_the_node_has_is_found() {
    let fake = Fake::new(&Description::h100s(3).with_mig(1, &["3g.40gb", "2g.20gb", "1g.10gb+me"]));
    fake.update(|d| {
        d.gpu(1).minor = Some(7);
        d.gpu(1).pci = Some("0000:AB:00.0".to_owned());
        d.gpu(1).numa = Some(1);
        d.gpu(2).numa = Some(-1);
    });
    let found = fake.discover();
    assert_eq!(reasons(&found), Vec::<String>::new());
    assert_eq!(found.driver_version, "580.95.05");
    assert_eq!(found.cuda_version.as_deref(), Some("13.0"));
    assert_eq!(found.library, fake.node.library());
    assert_eq!(found.gpus.len(), 3);
    assert_eq!(found.gpus[2].numa_node, None);

    let states = fake.node.gpus().unwrap();
    let (gpu, state) = (&found.gpus[1], &states[1]);
    assert_eq!((gpu.index, &gpu.uuid, &gpu.name), (1, &state.uuid, &state.name));
    assert_eq!((gpu.minor, gpu.numa_node, gpu.memory_mib), (7, Some(1), Some(81559)));
    assert_eq!(gpu.pci_bus_id, "0000:ab:00.0");
    assert_eq!(gpu.node.path, Path::new("/dev/nvidia7"));
    assert!(gpu.node.exists);
    assert_eq!(gpu.memory_slices, Some(8));
    assert_eq!(gpu.mig_mode, Some(MigMode { current: true, pending: true }));
    assert_eq!(gpu.mig_devices.len(), 3);
    for device in &gpu.mig_devices {
        let state = state.mig.iter().find(|state| state.index == device.index).unwrap();
        assert_eq!(device.uuid, state.uuid);
        assert_eq!((device.gpu_instance, device.compute_instance), (state.gi, state.ci));
        assert_eq!(device.profile.as_str(), state.profile);
        assert_eq!((device.memory_mib, device.sm_count), (state.memory_mib, state.sm));
        let placement = Placement { start: state.placement.start, size: state.placement.size };
        assert_eq!(device.placement, Some(placement));
        let nodes =
            [(&device.gpu_instance_node, state.gi_minor), (&device.compute_instance_node, state.ci_minor)];
        for (node, minor) in nodes {
            let node = node.as_ref().unwrap();
            assert_eq!(node.path, Path::new(&format!("/dev/nvidia-caps/nvidia-cap{minor}")));
            assert!(node.exists);
        }
        assert!(device.access_file.as_ref().unwrap().is_file());
    }
    let order: Vec<u32> = gpu.mig_devices.iter().map(|device| device.gpu_instance).collect();
    assert!(order.is_sorted());
    assert!(found.control_nodes.iter().any(|node| node.path == Path::new("/dev/nvidiactl")));
}

#[test]
fn every_profile_of_the_catalogue_gets_its_name_from_each_source() {
    for model in catalogue::models().iter().filter(|model| model.knows_mig()) {
        let fake = Fake::new(&Description::of(&model.key, 1));
        for profile in &model.profiles {
            let name = || {
                let found = fake.discover();
                assert_eq!(reasons(&found), Vec::<String>::new());
                assert_eq!(found.gpus[0].memory_slices, Some(model.memory_slices), "{}", model.key);
                profiles(&found, 0).join(" ")
            };
            fake.update(|d| d.set_mig(0, &[profile.name.as_str()]));
            assert_eq!(name(), profile.name, "{}, from the device's name", model.key);
            fake.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetName", "NOT_SUPPORTED").on_mig(0, 0)]);
            assert_eq!(name(), profile.name, "{}, from the profile's name", model.key);
            fake.update(|d| d.profile_info_versions = vec![1]);
            if model.uncertain.is_empty() && profile.estimated.is_empty() {
                assert_eq!(name(), profile.name, "{}, by the rule", model.key);
            }
            fake.update(|d| {
                d.faults.clear();
                d.profile_info_versions = vec![1, 2, 3];
            });
        }
    }
}

#[test]
fn a_full_node_is_read_within_the_budget() {
    let mut description = Description::h100s(8);
    for gpu in 0..8 {
        description.set_mig(gpu, &["1g.10gb"; 7]);
    }
    let fake = Fake::new(&description);
    let mut driver = enumerate::Driver::open(&fake.paths()).unwrap();
    let found = driver.look(&fake.paths()).unwrap();
    assert_eq!(found.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum::<usize>(), 56);
    let first = fake.calls();
    // 8 per slice and 60 per GPU are allowed. These are 7 and 8, and 29 for the driver and the model.
    assert!(first <= 56 * 7 + 8 * 8 + 29, "{first} calls: {:?}", fake.node.counters());
    let counters = fake.node.counters().unwrap();
    let per_slice =
        ["MigDeviceHandleByIndex", "GpuInstanceId", "ComputeInstanceId", "Attributes_v2", "GpuInstanceById"];
    for call in per_slice {
        assert_eq!(counters[&format!("nvmlDeviceGet{call}")], 56, "{call}");
    }
    assert_eq!(counters["nvmlDeviceGetUUID"], 56 + 8);
    // Once for the GPUs, and once for the only kind of MIG device there is.
    assert_eq!(counters["nvmlDeviceGetName"], 8 + 1);
    driver.look(&fake.paths()).unwrap();
    let again = fake.calls() - first;
    assert!(again < first - 20, "{again} calls of {first}: the model's profiles were asked again");
}

#[test]
fn holes_and_several_compute_instances_are_no_trouble() {
    let layout = [
        Instance::new("3g.40gb").compute(&[1, 2]),
        Instance::new("2g.20gb").index(5),
        Instance::new("1g.10gb").compute(&[]),
    ];
    let fake = Fake::new(&Description::h100s(1).with_mig(0, &layout));
    let found = fake.discover();
    assert_eq!(reasons(&found), Vec::<String>::new());
    let mut names = profiles(&found, 0);
    names.sort_unstable();
    assert_eq!(names, ["1c.3g.40gb", "2c.3g.40gb", "2g.20gb"]);
    assert!(found.gpus[0].mig_devices.iter().any(|device| device.index == 5));
    assert_eq!(fake.node.counters().unwrap()["nvmlGpuInstanceGetInfo"], 2);
    let states = fake.node.gpus().unwrap();
    let empty = states[0].instances.iter().filter(|state| state.compute.is_empty());
    assert_eq!(found.gpus[0].empty_gpu_instances, empty.map(|state| state.gi).collect::<Vec<_>>());
    assert_eq!(found.gpus[0].empty_gpu_instances.len(), 1);
}

#[test]
fn a_part_of_an_instance_is_named_from_its_profile_too() {
    let fake = Fake::new(&Description::h100s(1).with_mig(0, &[Instance::new("3g.40gb").compute(&[1, 2])]));
    for versions in [vec![1, 2, 3], vec![1, 2], vec![1]] {
        fake.update(|d| {
            d.faults =
                (0..2).map(|mig| Fault::error("nvmlDeviceGetName", "UNKNOWN").on_mig(0, mig)).collect();
            d.profile_info_versions = versions;
        });
        let found = fake.discover();
        let mut names = profiles(&found, 0);
        names.sort_unstable();
        assert_eq!(names, ["1c.3g.40gb", "2c.3g.40gb"]);
    }
}

#[test]
fn a_lost_gpu_hides_no_other() {
    let description = Description::h100s(3).with_mig(0, &["7g.80gb"]).with_mig(2, &["7g.80gb"]);
    let fake = Fake::new(&description.with_faults([Fault::error("*", "GPU_IS_LOST").on_gpu(1)]));
    let found = fake.discover();
    assert_eq!(found.gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(found.problems.len(), 1);
    assert!(found.problems[0].left_out);
    assert_eq!((found.problems[0].gpu, found.problems[0].mig_device), (1, None));
    assert!(found.problems[0].reason.text.ends_with(": GPU is lost (NVML_ERROR_GPU_IS_LOST)"));
}

#[test]
fn a_gpu_that_is_lost_halfway_is_left_out_whole() {
    let description = one_h100(&["3g.40gb", "3g.40gb"]);
    let lost = Fault::error("nvmlDeviceGetAttributes_v2", "GPU_IS_LOST").on_mig(0, 1);
    let fake = Fake::new(&description.with_faults([lost]));
    let found = fake.discover();
    assert_eq!(found.gpus, Vec::new());
    let expected = "GPU 0: nvmlDeviceGetAttributes_v2: GPU is lost (NVML_ERROR_GPU_IS_LOST)";
    assert_eq!(reasons(&found), [expected]);
}

#[test]
fn a_mig_device_that_cannot_be_read_hides_no_other() {
    for call in ["nvmlDeviceGetUUID", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetAttributes_v2"] {
        let fault = Fault::error(call, "UNKNOWN").on_mig(0, 1);
        let fake = Fake::new(&one_h100(&["2g.20gb", "2g.20gb", "2g.20gb"]).with_faults([fault]));
        let found = fake.discover();
        let indices: Vec<u32> = found.gpus[0].mig_devices.iter().map(|device| device.index).collect();
        assert_eq!(indices, [0, 2], "{call}");
        let expected =
            format!("MIG device 0:1: {call}: an internal error of the driver's (NVML_ERROR_UNKNOWN)");
        assert_eq!(reasons(&found), [expected]);
        assert!(found.problems[0].left_out);
    }
}

#[test]
fn missing_privileges_only_cost_the_placement() {
    let mut description = one_h100(&["3g.40gb", "1g.10gb+me"]);
    description.unprivileged = true;
    let fake = Fake::new(&description);
    let found = fake.discover();
    assert_eq!(reasons(&found), Vec::<String>::new());
    let mut names = profiles(&found, 0);
    names.sort_unstable();
    assert_eq!(names, ["1g.10gb+me", "3g.40gb"]);
    assert!(found.gpus[0].mig_devices.iter().all(|device| device.placement.is_none()));
    // One "no permission" is enough.
    assert_eq!(fake.node.counters().unwrap()["nvmlDeviceGetGpuInstanceById"], 1);
    // Without a name from the driver, the sizes make one.
    fake.update(|d| {
        d.faults =
            (0..2).map(|mig| Fault::error("nvmlDeviceGetName", "NOT_SUPPORTED").on_mig(0, mig)).collect();
    });
    let found = fake.discover();
    let sizes: Vec<_> =
        found.gpus[0].mig_devices.iter().filter_map(|device| device.profile.gpu_slices()).collect();
    assert_eq!(sizes.len(), 2);
}

#[test]
fn with_privileges_and_without_it_is_the_same_device() {
    let fake = Fake::new(&one_h100(&["3g.40gb", "2g.20gb"]));
    let before = fake.discover();
    fake.update(|d| d.unprivileged = true);
    let after = fake.discover();
    for (one, other) in before.gpus[0].mig_devices.iter().zip(&after.gpus[0].mig_devices) {
        assert!(one.is_same(other), "{one:?} {other:?}");
    }
}

#[test]
fn an_unknown_profile_keeps_the_drivers_name() {
    let odd = UnknownProfile { id: 91, g: 2, size: 2, memory_mib: 20096, sm: 24 };
    let layout = [Instance::new("2g.20gb+new").unknown_profile(odd), Instance::new("1g.10gb")];
    let fake = Fake::new(&Description::h100s(1).with_mig(0, &layout));
    let found = fake.discover();
    assert_eq!(reasons(&found), Vec::<String>::new());
    let mut names = profiles(&found, 0);
    names.sort_unstable();
    assert_eq!(names, ["1g.10gb", "2g.20gb+new"]);
    fake.update(|d| d.faults.push(Fault::error("nvmlDeviceGetName", "NOT_SUPPORTED").on_mig(0, 0)));
    let found = fake.discover();
    assert!(profiles(&found, 0).contains(&"id91.24sm.20096mib"), "{:?}", profiles(&found, 0));
}

#[test]
fn mig_mode_is_what_holds_now() {
    let fake = Fake::new(&Description::h100s(1));
    fake.update(|d| d.gpu(0).mig_pending = Some(true));
    let found = fake.discover();
    assert_eq!(found.gpus[0].mig_mode, Some(MigMode { current: false, pending: true }));
    assert!(found.gpus[0].mig_devices.is_empty());
    fake.update(|d| {
        d.set_mig(0, &["7g.80gb"]);
        d.gpu(0).mig_pending = Some(false);
    });
    let found = fake.discover();
    assert_eq!(found.gpus[0].mig_mode, Some(MigMode { current: true, pending: false }));
    assert_eq!(profiles(&found, 0), ["7g.80gb"]);
    fake.update(|d| {
        d.set_mig_mode(0, false);
        d.gpu(0).mig_pending = None;
        d.faults = vec![Fault::error("nvmlDeviceGetMigMode", "NOT_SUPPORTED")];
    });
    assert_eq!(fake.discover().gpus[0].mig_mode, None);
}

#[test]
fn a_missing_detail_does_not_cost_the_device() {
    let faults = [
        Fault::error("nvmlDeviceGetName", "UNKNOWN").on_gpu(0),
        Fault::error("nvmlDeviceGetMemoryInfo", "NO_PERMISSION").on_gpu(0),
        Fault::error("nvmlDeviceGetGpuInstanceById", "NOT_FOUND").on_gpu(0),
        Fault::error("nvmlDeviceGetGpuInstancePossiblePlacements_v2", "NO_PERMISSION"),
    ];
    let fake = Fake::new(&one_h100(&["1g.10gb"]).with_faults(faults));
    let found = fake.discover();
    let gpu = &found.gpus[0];
    assert_eq!((gpu.name.as_str(), gpu.memory_mib, gpu.memory_slices), ("unknown", None, None));
    assert_eq!(gpu.mig_devices.len(), 1);
    assert_eq!(gpu.mig_devices[0].profile.as_str(), "1g.10gb");
    assert_eq!(
        reasons(&found),
        [
            "GPU 0: nvmlDeviceGetName: an internal error of the driver's (NVML_ERROR_UNKNOWN)",
            "MIG device 0:0: nvmlDeviceGetGpuInstanceById: not found (NVML_ERROR_NOT_FOUND)",
        ]
    );
    assert!(found.problems.iter().all(|problem| !problem.left_out));
}

#[test]
fn attributes_that_are_not_told_come_from_the_profile() {
    let fault = Fault::error("nvmlDeviceGetAttributes_v2", "NOT_SUPPORTED");
    let fake = Fake::new(&one_h100(&["2g.20gb"]).with_faults([fault]));
    let found = fake.discover();
    let MigDevice { memory_mib, sm_count, profile, .. } = &found.gpus[0].mig_devices[0];
    assert_eq!((*memory_mib, *sm_count, profile.as_str()), (20096, 32, "2g.20gb"));
    assert_eq!(found.problems.len(), 1);
}

#[test]
fn capability_nodes_follow_the_file_and_the_dev_root() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let empty = tempfile::tempdir().unwrap();
    let blind = Paths { proc_root: Some(empty.path().to_owned()), ..fake.paths() };
    let mut driver = enumerate::Driver::open(&fake.paths()).unwrap();
    let found = driver.look(&blind).unwrap();
    assert_eq!(found.gpus[0].mig_devices[0].gpu_instance_node, None);
    assert!(found.problems[0].reason.text.contains("mig-minors cannot be read"), "{:?}", found.problems);
    // The same session finds it once it is there.
    let paths = Paths { dev_root: Some(empty.path().to_owned()), ..fake.paths() };
    let found = driver.look(&paths).unwrap();
    assert_eq!(reasons(&found), Vec::<String>::new());
    assert!(!found.gpus[0].mig_devices[0].gpu_instance_node.as_ref().unwrap().exists);
    assert!(!found.gpus[0].node.exists);
    assert_eq!(found.control_nodes, Vec::new());
}

#[test]
fn a_driver_that_cannot_be_used_is_said_in_a_sentence() {
    let fake = Fake::new(&Description::h100s(1));
    fake.update(|d| d.driver = DriverState::NotLoaded);
    let error = discover(&fake.paths()).unwrap_err();
    assert!(matches!(error, DriverError::NotLoaded { .. }), "{error}");
    assert!(error.to_string().starts_with("the NVIDIA kernel driver is not loaded"), "{error}");
    fake.update(|d| d.driver = DriverState::VersionMismatch);
    let error = discover(&fake.paths()).unwrap_err();
    assert!(matches!(error, DriverError::VersionMismatch { .. }), "{error}");
    fake.update(|d| {
        d.driver = DriverState::Loaded;
        d.faults = vec![Fault::error("nvmlDeviceGetCount_v2", "UNKNOWN")];
    });
    let error = discover(&fake.paths()).unwrap_err();
    assert!(matches!(error, DriverError::Failed { .. }), "{error}");
}

/// A session and what it says.
struct Listener {
    session: Session,
    reports: mpsc::Receiver<Report>,
}

impl Listener {
    fn new(paths: Paths, rescan: Option<Duration>) -> Self {
        let (sender, reports) = mpsc::channel(1);
        Self { session: Session::spawn(paths, rescan, sender).unwrap(), reports }
    }

    async fn next(&mut self) -> Report {
        timeout(Duration::from_secs(20), self.reports.recv()).await.expect("no report").expect("thread ended")
    }

    async fn inventory(&mut self) -> Inventory {
        match self.next().await {
            Report::Inventory { inventory, .. } => inventory,
            report => panic!("{report:?}"),
        }
    }

    async fn no_driver(&mut self) -> DriverError {
        match self.next().await {
            Report::NoDriver(error) => error,
            report => panic!("{report:?}"),
        }
    }

    async fn expect_silence(&mut self, time: Duration) {
        let report = timeout(time, self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }
}

#[tokio::test]
async fn a_change_is_seen_by_the_next_look_and_only_a_change_is_reported() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), None);
    assert_eq!(profiles(&listener.inventory().await, 0), ["1g.10gb"]);
    let before = fake.calls();
    listener.session.rescan();
    let looked = async {
        while fake.calls() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), looked).await.expect("asked for a look, and there was none");
    listener.expect_silence(Duration::from_millis(100)).await;
    fake.update(|d| d.set_mig(0, &["3g.40gb", "3g.40gb"]));
    for _ in 0..100 {
        listener.session.rescan();
    }
    assert_eq!(profiles(&listener.inventory().await, 0), ["3g.40gb", "3g.40gb"]);
    listener.expect_silence(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn changes_are_seen_without_being_asked_when_there_is_an_interval() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    assert_eq!(profiles(&listener.inventory().await, 0), ["1g.10gb"]);
    fake.update(|d| d.set_mig(0, &["7g.80gb"]));
    assert_eq!(profiles(&listener.inventory().await, 0), ["7g.80gb"]);
}

#[tokio::test]
async fn a_driver_that_comes_later_is_found_without_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = Listener::new(Paths::below(folder.path()), None);
    assert!(matches!(listener.no_driver().await, DriverError::NotFound { .. }));
    let _node = Node::create(folder.path(), &one_h100(&["7g.80gb"])).unwrap();
    assert_eq!(profiles(&listener.inventory().await, 0), ["7g.80gb"]);
}

#[tokio::test]
async fn a_driver_that_goes_is_reported_once_and_found_again_on_request() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let mut listener = Listener::new(fake.paths(), None);
    let before = listener.inventory().await;
    fake.update(|d| d.driver = DriverState::NotLoaded);
    listener.session.rescan();
    assert!(matches!(listener.no_driver().await, DriverError::NotLoaded { .. }));
    fake.update(|d| d.driver = DriverState::Loaded);
    listener.session.rescan();
    assert_eq!(listener.inventory().await, before);
}

#[tokio::test]
async fn a_session_that_is_dropped_ends_its_thread() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let Listener { session, mut reports } = Listener::new(fake.paths(), None);
    timeout(Duration::from_secs(20), reports.recv()).await.unwrap().unwrap();
    drop(session);
    // The thread held the only sender.
    assert_eq!(timeout(Duration::from_secs(20), reports.recv()).await.unwrap(), None);
    assert_eq!(fake.node.counters().unwrap()["nvmlShutdown"], 1);
}

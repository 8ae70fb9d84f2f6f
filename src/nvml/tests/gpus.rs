//! One look: GPUs, and what is true of the node.

use std::path::Path;

use super::*;

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
fn a_full_node_is_read_within_the_budget() {
    let mut description = Description::h100s(8);
    for gpu in 0..8 {
        description.set_mig(gpu, &["1g.10gb"; 7]);
    }
    let fake = Fake::new(&description);
    let mut looks = Looks::new(&fake);
    let found = looks.look(&fake.paths());
    assert_eq!(found.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum::<usize>(), 56);
    let first = fake.calls();
    // 9 per slice and 60 per GPU are allowed. These are 9 and 9, and 29 for the driver and the model.
    assert!(first <= 56 * 9 + 8 * 9 + 29, "{first} calls: {:?}", fake.node.counters());
    let counters = fake.node.counters().unwrap();
    for call in ["MigDeviceHandleByIndex", "Attributes_v2", "GpuInstanceById"] {
        assert_eq!(counters[&format!("nvmlDeviceGet{call}")], 56, "{call}");
    }
    for call in ["GpuInstanceId", "ComputeInstanceId"] {
        assert_eq!(counters[&format!("nvmlDeviceGet{call}")], 2 * 56, "{call}: before and after all else");
    }
    assert_eq!(counters["nvmlDeviceGetUUID"], 56 + 8);
    // Once for the GPUs, and once for the only kind of MIG device there is.
    assert_eq!(counters["nvmlDeviceGetName"], 8 + 1);
    looks.look(&fake.paths());
    let again = fake.calls() - first;
    assert!(again < first - 20, "{again} calls of {first}: the model's profiles were asked again");
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
fn capability_nodes_follow_the_file_and_the_dev_root() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let empty = tempfile::tempdir().unwrap();
    let blind = Paths { proc_root: Some(empty.path().to_owned()), ..fake.paths() };
    let mut looks = Looks::new(&fake);
    let found = looks.look(&blind);
    assert_eq!(found.gpus[0].mig_devices[0].gpu_instance_node, None);
    assert!(found.problems[0].reason.text.contains("mig-minors cannot be read"), "{:?}", found.problems);
    // The same session finds it once it is there.
    let paths = Paths { dev_root: Some(empty.path().to_owned()), ..fake.paths() };
    let found = looks.look(&paths);
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

#[test]
fn the_recovery_action_is_told_or_unknown() {
    let mut description = Description::h100s(1).and("tesla-t4", 1);
    description.gpu(0).recovery_action = fake_nvml::RecoveryAction::DrainAndReset;
    let fake = Fake::new(&description);
    let found = fake.discover();
    assert_eq!(reasons(&found), Vec::<String>::new());
    let actions: Vec<_> = found.gpus.iter().map(|gpu| gpu.recovery_action).collect();
    assert_eq!(actions, [Some(RecoveryAction::DrainAndReset), None]);
    // What a driver may say that does not know the field, and trouble of the moment.
    for (error, problems) in
        [("INVALID_ARGUMENT", 0), ("NOT_SUPPORTED", 0), ("FUNCTION_NOT_FOUND", 0), ("UNKNOWN", 1)]
    {
        fake.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetFieldValues", error).on_gpu(0)]);
        let found = fake.discover();
        assert_eq!((found.gpus.len(), found.gpus[0].recovery_action), (2, None), "{error}");
        assert_eq!(found.problems.len(), problems, "{error}");
        assert!(found.problems.iter().all(|problem| !problem.left_out));
    }
}

#[test]
fn the_right_to_hear_is_admin_or_monitor_whoever_may_list() {
    use fake_nvml::Right::{Admin, Config, Monitor};
    for (rights, right) in [
        (vec![Admin], EventRight::Admin),
        (vec![Admin, Monitor], EventRight::Admin),
        (vec![Monitor], EventRight::Monitor),
        (vec![Config, Monitor], EventRight::Monitor),
        (vec![Config], EventRight::Nothing),
        (vec![], EventRight::Nothing),
    ] {
        let fake = Fake::new(&one_h100(&["1g.10gb"]).with_rights(&rights));
        let found = fake.discover();
        assert_eq!(found.event_right, Some(right), "{rights:?}");
        let lists = rights.contains(&Admin) || rights.contains(&Config);
        assert_eq!(found.sees_instances, Some(lists), "{rights:?}");
    }
}

#[test]
fn whether_instances_are_seen_is_known_once_there_is_one() {
    let fake = Fake::new(&Description::h100s(2));
    assert_eq!(fake.discover().sees_instances, None);
    fake.update(|d| d.set_mig(1, &["1g.10gb"]));
    assert_eq!(fake.discover().sees_instances, Some(true));
    fake.update(|d| d.unprivileged = true);
    assert_eq!(fake.discover().sees_instances, Some(false));
    fake.update(|d| {
        d.unprivileged = false;
        d.faults = vec![Fault::error("nvmlDeviceGetGpuInstanceById", "UNKNOWN")];
    });
    assert_eq!(fake.discover().sees_instances, None, "no answer is no refusal");
}

#[test]
fn a_lost_gpu_is_told_with_its_kind_and_the_uuid_that_it_told() {
    let fake = Fake::new(&Description::h100s(3).with_mig(2, &["7g.80gb"]));
    let before = fake.discover();
    for error in ["GPU_IS_LOST", "RESET_REQUIRED"] {
        fake.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetMigMode", error).on_gpu(1)]);
        let found = fake.discover();
        assert_eq!([&found.gpus[0], &found.gpus[1]], [&before.gpus[0], &before.gpus[2]]);
        assert_eq!(found.problems.len(), 1);
        assert_eq!(found.problems[0].reason.kind, TroubleKind::Lost);
        assert_eq!(found.problems[0].uuid.as_ref(), Some(&before.gpus[1].uuid));
    }
}

#[test]
fn a_gpu_that_has_told_its_mig_mode_is_not_read_without() {
    let fake = Fake::new(&Description::h100s(2).and("tesla-t4", 1).with_mig(1, &["3g.40gb"]));
    let mut looks = Looks::new(&fake);
    let before = looks.look(&fake.paths());
    assert_eq!((before.gpus.len(), before.gpus[2].mig_mode), (3, None));
    for error in ["NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND"] {
        fake.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetMigMode", error).on_gpu(1)]);
        let found = looks.look(&fake.paths());
        assert_eq!([&found.gpus[0], &found.gpus[1]], [&before.gpus[0], &before.gpus[2]], "{error}");
        let [problem] = &found.problems[..] else { panic!("{:?}", found.problems) };
        assert_eq!((problem.left_out, problem.reason.kind), (true, TroubleKind::Unreadable));
        assert_eq!(problem.uuid.as_ref(), Some(&before.gpus[1].uuid));
    }
    fake.update(|d| d.faults.clear());
    assert_eq!(looks.look(&fake.paths()), before);
}

#[test]
fn an_error_of_the_moment_leaves_the_recovery_action_that_was_told() {
    let mut description = Description::h100s(1);
    description.gpu(0).recovery_action = fake_nvml::RecoveryAction::DrainAndReset;
    let fake = Fake::new(&description);
    let mut looks = Looks::new(&fake);
    assert_eq!(looks.look(&fake.paths()).gpus[0].recovery_action, Some(RecoveryAction::DrainAndReset));
    for (error, problems, action) in [
        ("UNKNOWN", 1, Some(RecoveryAction::DrainAndReset)),
        ("NO_PERMISSION", 0, Some(RecoveryAction::DrainAndReset)),
        ("INVALID_ARGUMENT", 0, Some(RecoveryAction::DrainAndReset)),
        ("NOT_SUPPORTED", 0, None),
        ("UNKNOWN", 1, None),
    ] {
        fake.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetFieldValues", error)]);
        let found = looks.look(&fake.paths());
        assert_eq!((found.gpus[0].recovery_action, found.problems.len()), (action, problems), "{error}");
    }
    fake.update(|d| {
        d.faults.clear();
        d.gpu(0).recovery_action = fake_nvml::RecoveryAction::Reset;
    });
    assert_eq!(looks.look(&fake.paths()).gpus[0].recovery_action, Some(RecoveryAction::Reset));
}

//! One look: MIG devices.

use fake_nvml::{Instance, UnknownProfile, catalogue};

use super::*;

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
        let uuid = &fake.node.gpus().unwrap()[0].mig[1].uuid;
        let told = (call != "nvmlDeviceGetUUID").then_some(uuid);
        assert_eq!(found.problems[0].uuid.as_ref(), told, "{call}");
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
fn attributes_that_are_not_told_come_from_the_profile() {
    let fault = Fault::error("nvmlDeviceGetAttributes_v2", "NOT_SUPPORTED");
    let fake = Fake::new(&one_h100(&["2g.20gb"]).with_faults([fault]));
    let found = fake.discover();
    let MigDevice { memory_mib, sm_count, profile, .. } = &found.gpus[0].mig_devices[0];
    assert_eq!((*memory_mib, *sm_count, profile.as_str()), (20096, 32, "2g.20gb"));
    assert_eq!(found.problems.len(), 1);
}

#[test]
fn a_handle_that_becomes_another_devices_mixes_no_two() {
    // The IDs are read, and then the device is destroyed and another one made in its place.
    let slow = Fault::delay("nvmlDeviceGetComputeInstanceId", 600_000).on_mig(0, 0);
    let mut description = one_h100(&["3g.40gb"]).with_faults([slow]);
    description.handles_reused = true;
    let fake = Fake::new(&description);
    let paths = fake.paths();
    let look = std::thread::spawn(move || discover(&paths).unwrap());
    let since = Instant::now();
    while fake.count("nvmlDeviceGetComputeInstanceId") == 0 {
        assert!(since.elapsed() < LIMIT, "waited in vain for the look");
        std::thread::yield_now();
    }
    fake.update(|d| {
        d.faults.clear();
        d.set_mig(0, &["1g.10gb"]);
    });
    let found = look.join().unwrap();
    assert_eq!(reasons(&found), Vec::<String>::new());
    let now = &fake.node.gpus().unwrap()[0].mig[0];
    let found = &found.gpus[0].mig_devices[0];
    assert_eq!((&found.uuid, found.gpu_instance, found.profile.as_str()), (&now.uuid, now.gi, "1g.10gb"));
}

#[test]
fn capability_files_are_held_while_their_slices_are_there() {
    let fake = Fake::new(&one_h100(&["1g.10gb", "1g.10gb"]));
    let held = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let files = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
        files.filter(|file| file.starts_with(fake.node.root()) && file.ends_with("access")).count()
    };
    let mut looks = Looks::new(&fake);
    looks.look(&fake.paths());
    assert_eq!(held(), 2);
    fake.update(|d| drop(d.gpu(0).layout.pop()));
    looks.look(&fake.paths());
    assert_eq!(held(), 1);
    fake.update(|d| d.set_mig_mode(0, false));
    looks.look(&fake.paths());
    assert_eq!(held(), 0);
}

#[test]
fn where_times_of_proc_move_with_every_look_they_are_left_out() {
    let mut description = one_h100(&["1g.10gb"]);
    description.proc_times_move = true;
    let fake = Fake::new(&description);
    let found = fake.discover();
    let device = &found.gpus[0].mig_devices[0];
    let now = file_stamp(device.access_file.as_ref().unwrap()).unwrap();
    let seen = device.access_stamp.unwrap();
    assert_eq!((seen.changed_ns, seen.may_be(&now)), (None, true));
}

#[test]
fn a_slice_is_stamped_with_the_file_that_it_stands_and_falls_with() {
    let fake = Fake::new(&one_h100(&["1g.10gb", "1g.10gb"]));
    let stamps = |found: &Inventory| {
        let devices = found.gpus[0].mig_devices.iter();
        devices.map(|device| device.access_stamp.unwrap()).collect::<Vec<_>>()
    };
    let before = fake.discover();
    for device in &before.gpus[0].mig_devices {
        assert_eq!(file_stamp(device.access_file.as_ref().unwrap()), device.access_stamp);
    }
    assert_eq!(stamps(&fake.discover()), stamps(&before));
    // Another slice with the IDs and the UUID of the first.
    fake.update(|d| d.gpu(0).layout[0] = Instance::new("1g.10gb+me").gi(7).at(0));
    let after = fake.discover();
    assert_eq!(before.gpus[0].mig_devices[0].uuid, after.gpus[0].mig_devices[0].uuid);
    assert_ne!(stamps(&before)[0], stamps(&after)[0]);
    assert_eq!(stamps(&before)[1], stamps(&after)[1]);
    // The very same, destroyed and made again.
    fake.update(|d| d.set_mig(0, &["1g.10gb+me", "1g.10gb"]));
    let again = fake.discover();
    assert!(after.gpus[0].mig_devices[0].is_same(&again.gpus[0].mig_devices[0]));
    assert_ne!(stamps(&after)[0], stamps(&again)[0]);
}

use super::*;
use crate::fixtures::{mig_gpu, mixed, node};
use crate::resource::Reason;

const NAME: &str = "nvidia.com/mig-1g.10gb";

fn devices() -> Vec<Device> {
    let inventory = node([mig_gpu(0, &["1g.10gb"; 3]), mig_gpu(1, &["1g.10gb"; 2])]);
    let set = mixed(&inventory);
    set.resources.into_values().next().unwrap()
}

fn rules(device_specs: DeviceSpecs) -> Rules {
    Rules { device_specs, ..crate::fixtures::rules() }
}

fn ask(ids: &[&str], specs: DeviceSpecs, exists: impl Fn(&Path) -> bool) -> Result<Answer, AllocateError> {
    let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
    allocate(NAME, &devices(), &ids, &rules(specs), Path::new("/"), exists)
}

fn container_paths(answer: &Answer) -> Vec<&str> {
    answer.nodes.iter().map(|node| node.container_path.to_str().unwrap()).collect()
}

#[test]
fn a_slice_comes_with_its_variable_and_its_nodes() {
    let answer = ask(&["MIG-0-8-0"], DeviceSpecs::Existing, |_| true).unwrap();
    assert_eq!(answer.envs, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "MIG-0-8-0".to_owned())]);
    assert_eq!(
        container_paths(&answer),
        [
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-uvm-tools",
            "/dev/nvidia-modeset",
            "/dev/nvidia0",
            "/dev/nvidia-caps/nvidia-cap75",
            "/dev/nvidia-caps/nvidia-cap76",
        ]
    );
}

#[test]
fn several_slices_come_in_the_lists_order_and_no_node_twice() {
    let answer =
        ask(&["MIG-1-7-0", "MIG-0-9-0", "MIG-0-7-0", "MIG-0-9-0"], DeviceSpecs::Existing, |_| true).unwrap();
    assert_eq!(answer.envs[0].1, "MIG-0-7-0,MIG-0-9-0,MIG-1-7-0");
    let paths = container_paths(&answer);
    assert_eq!(paths.iter().filter(|path| **path == "/dev/nvidia0").count(), 1);
    assert_eq!(paths.len(), 4 + 2 + 6);
}

#[test]
fn nodes_are_looked_at_here_and_named_as_on_the_host() {
    let rules = Rules { host_dev_root: "/run/nvidia/driver".into(), ..rules(DeviceSpecs::Existing) };
    let ids = ["MIG-0-7-0".to_owned()];
    let here = |path: &Path| {
        path.starts_with("/driver-root/dev/nvidia0")
            || path.ends_with("nvidia-cap66")
            || path.ends_with("nvidia-cap67")
            || path.starts_with("/proc")
    };
    let answer = allocate(NAME, &devices(), &ids, &rules, Path::new("/driver-root"), here).unwrap();
    assert_eq!(
        container_paths(&answer),
        ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"]
    );
    assert_eq!(answer.nodes[0].host_path, Path::new("/run/nvidia/driver/dev/nvidia0"));
}

#[test]
fn no_nodes_are_named_where_none_are_wanted() {
    let answer = ask(&["MIG-0-7-0"], DeviceSpecs::Omitted, |_| true).unwrap();
    assert_eq!(answer.nodes, []);
    assert_eq!(answer.envs.len(), 1);
}

#[test]
fn what_cannot_be_given_is_refused_by_name() {
    let refused = |ids: &[&str]| ask(ids, DeviceSpecs::Existing, |_| true).unwrap_err().to_string();
    assert_eq!(refused(&[]), format!("no device IDs in the request for {NAME}"));
    assert_eq!(refused(&["MIG-0-7-0", "MIG-x"]), format!("unknown device: MIG-x is not one of {NAME}"));
}

#[test]
fn an_unhealthy_device_is_refused_with_its_reasons() {
    let mut devices = devices();
    devices[0].reasons = vec![Reason::Gone];
    let ids = ["MIG-0-7-0".to_owned(), "MIG-0-8-0".to_owned()];
    let rules = rules(DeviceSpecs::Existing);
    let error = allocate(NAME, &devices, &ids, &rules, Path::new("/"), |_| true).unwrap_err();
    assert_eq!(error.to_string(), "device MIG-0-7-0 is unhealthy: the driver no longer has this device");
}

#[test]
fn a_slice_whose_capability_file_has_gone_is_refused() {
    let gone = |path: &Path| path != Path::new("/proc/gpu0/gi8/ci0/access");
    let error = ask(&["MIG-0-7-0", "MIG-0-8-0"], DeviceSpecs::Omitted, gone).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device MIG-0-8-0 has gone: /proc/gpu0/gi8/ci0/access does not exist any more"
    );
    assert!(ask(&["MIG-0-7-0"], DeviceSpecs::Omitted, gone).is_ok());
}

#[test]
fn a_missing_node_is_left_out_or_refused_as_configured() {
    let ask = |specs, missing: &[&str]| {
        ask(&["MIG-0-7-0"], specs, |path: &Path| !missing.iter().any(|node| path.ends_with(node)))
    };
    let refused = |specs, missing: &[&str]| ask(specs, missing).unwrap_err().to_string();
    assert_eq!(ask(DeviceSpecs::Existing, &["nvidia-modeset"]).unwrap().nodes.len(), 6);
    assert_eq!(ask(DeviceSpecs::Required, &["nvidia-modeset"]).unwrap().nodes.len(), 6);
    for specs in [DeviceSpecs::Existing, DeviceSpecs::Required] {
        let error = refused(specs, &["nvidia-cap67"]);
        assert!(error.contains("missing device node /dev/nvidia-caps/nvidia-cap67"), "{error}");
    }
    // Without the GPU's node these are not the host's.
    let elsewhere = ["nvidia0", "nvidia-cap67"];
    assert_eq!(ask(DeviceSpecs::Existing, &elsewhere).unwrap().nodes.len(), 5);
    assert!(refused(DeviceSpecs::Required, &elsewhere).contains("missing device node /dev/nvidia0"));
    assert_eq!(ask(DeviceSpecs::Omitted, &elsewhere).unwrap().nodes.len(), 0);
}

fn answer(ids: &[&str], change: impl FnOnce(&mut Rules), exists: impl Fn(&Path) -> bool) -> Answer {
    let mut rules = rules(DeviceSpecs::Existing);
    change(&mut rules);
    let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
    allocate(NAME, &devices(), &ids, &rules, Path::new("/"), exists).unwrap()
}

fn env<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.envs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[test]
fn mounts_tell_the_devices_where_they_are_chosen_and_win_over_the_variable() {
    let both = [DeviceListStrategy::Envvar, DeviceListStrategy::VolumeMounts];
    let answer = answer(&["MIG-0-8-0", "MIG-0-7-0"], |rules| rules.strategies = both.into(), |_| true);
    assert_eq!(env(&answer, "NVIDIA_VISIBLE_DEVICES"), Some("/var/run/nvidia-container-devices"));
    let mount =
        |id: &str| (PathBuf::from("/dev/null"), Path::new("/var/run/nvidia-container-devices").join(id));
    assert_eq!(answer.mounts, [mount("MIG-0-7-0"), mount("MIG-0-8-0")]);
}

#[test]
fn cdi_names_stand_alone_where_nothing_else_is_chosen() {
    let only = [DeviceListStrategy::CdiAnnotations, DeviceListStrategy::CdiCri];
    let answer = answer(&["MIG-0-8-0", "MIG-0-7-0"], |rules| rules.strategies = only.into(), |_| true);
    let names = ["k8s.device-plugin.nvidia.com/gpu=MIG-0-7-0", "k8s.device-plugin.nvidia.com/gpu=MIG-0-8-0"];
    assert_eq!(answer.cdi_devices, names);
    let [(key, value)] = &answer.annotations[..] else { panic!("{:?}", answer.annotations) };
    assert!(key.starts_with("cdi.k8s.io/nvidia-device-plugin_"), "{key}");
    assert_eq!(value, &names.join(","));
    assert!(answer.envs.is_empty() && answer.nodes.is_empty() && answer.mounts.is_empty());
}

#[test]
fn the_annotations_key_differs_between_requests_and_not_between_repetitions() {
    let key = |ids: &[&str]| {
        let only = [DeviceListStrategy::CdiAnnotations];
        answer(ids, |rules| rules.strategies = only.into(), |_| true).annotations[0].0.clone()
    };
    assert_eq!(key(&["MIG-0-7-0", "MIG-0-8-0"]), key(&["MIG-0-8-0", "MIG-0-7-0"]));
    assert_ne!(key(&["MIG-0-7-0"]), key(&["MIG-0-8-0"]));
    // Kubernetes allows 63 characters behind the slash.
    assert!(key(&["MIG-0-7-0"]).split_once('/').unwrap().1.len() <= 63);
}

#[test]
fn a_container_can_be_told_indices() {
    let by_index = |rules: &mut Rules| {
        rules.ids = DeviceIdStrategy::Index;
        rules.strategies.insert(DeviceListStrategy::CdiCri);
    };
    let answer = answer(&["MIG-1-7-0", "MIG-0-9-0"], by_index, |_| true);
    assert_eq!(env(&answer, "NVIDIA_VISIBLE_DEVICES"), Some("0:2,1:0"));
    assert_eq!(answer.cdi_devices[1], "k8s.device-plugin.nvidia.com/gpu=1:0");
}

#[test]
fn further_drivers_and_channels_are_named() {
    let more = |rules: &mut Rules| {
        rules.features = Feature::ALL.into();
        rules.imex.channel_ids = [0, 5].into();
        rules.strategies.extend([DeviceListStrategy::VolumeMounts, DeviceListStrategy::CdiCri]);
    };
    let answer = answer(&["MIG-0-7-0"], more, |path| !path.ends_with("channel5"));
    for variable in ["NVIDIA_GDRCOPY", "NVIDIA_GDS", "NVIDIA_MOFED"] {
        assert_eq!(env(&answer, variable), Some("enabled"), "{variable}");
    }
    assert_eq!(env(&answer, "NVIDIA_IMEX_CHANNELS"), Some("0"));
    assert!(answer.mounts.iter().any(|(_, path)| path.ends_with("imex/0")));
    let further: Vec<_> =
        answer.cdi_devices[1..].iter().map(|name| name.rsplit('/').next().unwrap()).collect();
    assert_eq!(further, ["imex-channel=0", "gdrcopy=all", "gds=all", "mofed=all"]);
    assert!(container_paths(&answer).contains(&"/dev/nvidia-caps-imex-channels/channel0"));
}

#[test]
fn a_further_driver_that_no_specification_describes_is_not_named() {
    let more = |rules: &mut Rules| {
        rules.features = Feature::ALL.into();
        rules.cdi_spec_dir = "/cdi".into();
        rules.strategies = [DeviceListStrategy::CdiCri].into();
    };
    let gds = Path::new("/cdi/k8s.device-plugin.nvidia.com-gds.json");
    let answer = answer(&["MIG-0-7-0"], more, |path| !path.starts_with("/cdi") || path == gds);
    assert_eq!(answer.cdi_devices[1..], ["k8s.device-plugin.nvidia.com/gds=all"]);
    assert_eq!(env(&answer, "NVIDIA_MOFED"), Some("enabled"), "the NVIDIA runtime may know more");
}

#[test]
fn a_channel_that_is_required_has_to_be_there() {
    let mut rules = rules(DeviceSpecs::Existing);
    rules.imex = Imex { channel_ids: [3].into(), required: true };
    let ids = ["MIG-0-7-0".to_owned()];
    let missing = |path: &Path| !path.ends_with("channel3");
    let error = allocate(NAME, &devices(), &ids, &rules, Path::new("/"), missing).unwrap_err();
    assert!(error.to_string().contains("IMEX channel 3 is required"), "{error}");
}

#[test]
fn two_resources_can_have_a_variable_each() {
    let answer = answer(&["MIG-0-7-0"], |rules| rules.variable_per_resource = true, |_| true);
    assert_eq!(env(&answer, "NVIDIA_VISIBLE_DEVICES_MIG_1G_10GB"), Some("MIG-0-7-0"));
}

#[test]
fn replicas_of_one_device_collapse_and_can_be_limited_to_one() {
    let replicas = |alone| -> Vec<Device> {
        let replica = |number| Device {
            id: DeviceId(format!("MIG-0-7-0::{number}")),
            replica: Some(crate::resource::Replica { number, alone }),
            ..devices()[0].clone()
        };
        vec![replica(0), replica(1)]
    };
    let ids = ["MIG-0-7-0::1".to_owned(), "MIG-0-7-0::0".to_owned()];
    let rules = rules(DeviceSpecs::Existing);
    let answer = allocate(NAME, &replicas(false), &ids, &rules, Path::new("/"), |_| true).unwrap();
    assert_eq!(env(&answer, "NVIDIA_VISIBLE_DEVICES"), Some("MIG-0-7-0"));
    assert_eq!(answer.nodes.len(), 7);
    let error = allocate(NAME, &replicas(true), &ids, &rules, Path::new("/"), |_| true).unwrap_err();
    assert!(error.to_string().contains("at most one replica"), "{error}");
    assert!(allocate(NAME, &replicas(true), &ids[..1], &rules, Path::new("/"), |_| true).is_ok());
}

#[test]
fn a_capability_file_that_is_another_one_now_is_a_doubt() {
    let stamp = |changed_ns| FileStamp { device: 1, inode: 2, changed_ns: Some(changed_ns) };
    let mut devices = devices();
    for device in &mut devices {
        device.mig.as_mut().unwrap().access_stamp = Some(stamp(3));
    }
    let ids = ["MIG-0-8-0".to_owned()];
    assert_eq!(unchanged(&devices, &ids, |_| Some(stamp(3))), Ok(()));
    let error = unchanged(&devices, &ids, |_| Some(stamp(4))).unwrap_err().to_string();
    assert!(
        error.starts_with("device MIG-0-8-0 may be another one by now: /proc/gpu0/gi8/ci0/access"),
        "{error}"
    );
    assert!(unchanged(&devices, &ids, |_| None).is_err());
    // A neighbour's file is not looked at.
    let neighbour = |path: &Path| path.ends_with("gi8/ci0/access").then(|| stamp(3));
    assert_eq!(unchanged(&devices, &ids, neighbour), Ok(()));
    // Where the kernel gives it a new time with every look, the rest tells.
    let timeless = |inode| FileStamp { inode, changed_ns: None, ..stamp(0) };
    devices[1].mig.as_mut().unwrap().access_stamp = Some(timeless(2));
    assert_eq!(unchanged(&devices, &ids, |_| Some(stamp(4))), Ok(()));
    devices[1].mig.as_mut().unwrap().access_stamp = Some(timeless(3));
    assert!(unchanged(&devices, &ids, |_| Some(stamp(4))).is_err());
    devices[1].mig.as_mut().unwrap().access_stamp = None;
    assert_eq!(unchanged(&devices, &ids, |_| Some(stamp(4))), Ok(()), "nothing is known to compare with");
}

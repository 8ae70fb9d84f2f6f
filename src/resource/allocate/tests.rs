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
    Rules {
        device_specs,
        host_dev_root: "/".into(),
        strategies: [DeviceListStrategy::Envvar].into(),
        ids: DeviceIdStrategy::Uuid,
        cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
        allocation: AllocationPolicy::default(),
        features: Features::default(),
        imex: Imex::default(),
        variable_per_resource: false,
    }
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
            || path.starts_with("/proc")
    };
    let answer = allocate(NAME, &devices(), &ids, &rules, Path::new("/driver-root"), here).unwrap();
    assert_eq!(container_paths(&answer), ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap66"]);
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
    let missing = |path: &Path| !path.ends_with("nvidia-cap67") && !path.ends_with("nvidia-modeset");
    let answer = ask(&["MIG-0-7-0"], DeviceSpecs::Existing, missing).unwrap();
    assert_eq!(answer.nodes.len(), 5);
    let error = ask(&["MIG-0-7-0"], DeviceSpecs::Required, missing).unwrap_err();
    assert!(error.to_string().contains("missing device node /dev/nvidia-caps/nvidia-cap67"), "{error}");
}

use super::*;
use crate::fixtures::{gpu, mig_gpu, node};
use crate::resource::DeviceId;

/// Resource names with the indices of their devices.
fn offered(set: &ResourceSet) -> Vec<(String, Vec<String>)> {
    let lists = set.resources.iter();
    lists.map(|(name, list)| (name.to_string(), list.iter().map(Device::index).collect())).collect()
}

fn withheld(set: &ResourceSet) -> Vec<&str> {
    set.withheld.iter().map(|withheld| withheld.index.as_str()).collect()
}

fn list(name: &str, indices: &[&str]) -> (String, Vec<String>) {
    (name.to_owned(), indices.iter().map(|index| (*index).to_owned()).collect())
}

fn resolved(inventory: &Inventory, strategy: MigStrategy) -> ResourceSet {
    with_specs(inventory, strategy, DeviceSpecs::Existing)
}

fn with_specs(inventory: &Inventory, strategy: MigStrategy, device_specs: DeviceSpecs) -> ResourceSet {
    resolve(inventory, &OfferPolicy { strategy, device_specs, ..OfferPolicy::default() })
}

#[test]
fn none_offers_every_gpu_whatever_its_mode() {
    let set = resolved(&node([gpu(0), mig_gpu(1, &["1g.10gb"])]), MigStrategy::None);
    assert_eq!(offered(&set), [list("nvidia.com/gpu", &["0", "1"])]);
    assert_eq!(set.resources[&ResourceName::gpu()][1].id, DeviceId("GPU-1".to_owned()));
    assert!(set.withheld.is_empty());
}

#[test]
fn mixed_offers_slices_by_profile_and_the_other_gpus() {
    let inventory = node([
        mig_gpu(0, &["3g.40gb", "1g.10gb", "1g.10gb+me", "1c.3g.40gb"]),
        gpu(1),
        mig_gpu(2, &["1g.10gb"]),
        mig_gpu(3, &[]),
    ]);
    let set = resolved(&inventory, MigStrategy::Mixed);
    assert_eq!(
        offered(&set),
        [
            list("nvidia.com/gpu", &["1"]),
            list("nvidia.com/mig-1c.3g.40gb", &["0:3"]),
            list("nvidia.com/mig-1g.10gb", &["0:1", "2:0"]),
            list("nvidia.com/mig-1g.10gb.me", &["0:2"]),
            list("nvidia.com/mig-3g.40gb", &["0:0"]),
        ]
    );
    assert!(set.withheld.is_empty());
}

#[test]
fn mixed_withholds_only_what_cannot_be_named() {
    let long = "x".repeat(60);
    let set = resolved(&node([mig_gpu(0, &["1g.10gb", &long, "weird.profile"])]), MigStrategy::Mixed);
    assert_eq!(
        offered(&set),
        [list("nvidia.com/mig-1g.10gb", &["0:0"]), list("nvidia.com/mig-weird.profile", &["0:2"])]
    );
    assert_eq!(withheld(&set), ["0:1"]);
    assert!(set.withheld[0].reason.contains("63 characters"), "{}", set.withheld[0].reason);
}

#[test]
fn single_offers_slices_of_one_profile_as_gpus() {
    let set =
        resolved(&node([mig_gpu(0, &["1g.10gb"; 7]), mig_gpu(1, &["1g.10gb"; 7])]), MigStrategy::Single);
    assert_eq!(set.resources[&ResourceName::gpu()].len(), 14);
    assert!(set.withheld.is_empty());
}

#[test]
fn single_without_mig_offers_gpus() {
    let mut old = gpu(1);
    old.mig_mode = None;
    let set = resolved(&node([gpu(0), old]), MigStrategy::Single);
    assert_eq!(offered(&set), [list("nvidia.com/gpu", &["0", "1"])]);
}

#[test]
fn single_on_a_mixed_node_offers_the_most_frequent_profile() {
    let inventory = node([mig_gpu(0, &["1g.10gb", "1g.10gb", "3g.40gb"]), gpu(1), mig_gpu(2, &["2g.20gb"])]);
    let set = resolved(&inventory, MigStrategy::Single);
    assert_eq!(offered(&set), [list("nvidia.com/gpu", &["0:0", "0:1"])]);
    assert_eq!(withheld(&set), ["0:2", "2:0", "1"]);
    assert!(set.withheld.iter().all(|withheld| withheld.reason.contains("strategy mixed")));
}

#[test]
fn single_prefers_the_larger_profile_on_a_tie() {
    let set = resolved(&node([mig_gpu(0, &["1g.10gb", "3g.40gb"])]), MigStrategy::Single);
    assert_eq!(offered(&set), [list("nvidia.com/gpu", &["0:1"])]);
}

#[test]
fn single_hands_out_no_whole_gpu_while_another_is_being_partitioned() {
    let set = resolved(&node([gpu(0), mig_gpu(1, &[])]), MigStrategy::Single);
    assert!(set.resources.is_empty());
    assert_eq!(withheld(&set), ["0"]);
}

#[test]
fn an_empty_node_offers_nothing() {
    for strategy in [MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed] {
        assert_eq!(resolved(&Inventory::default(), strategy), ResourceSet::default());
        assert!(resolved(&node([mig_gpu(0, &[])]), MigStrategy::Mixed).resources.is_empty());
    }
}

#[test]
fn slices_of_a_gpu_that_is_no_longer_in_mig_mode_do_not_count() {
    let mut stale = mig_gpu(0, &["1g.10gb"]);
    stale.mig_mode = Some(crate::inventory::MigMode { current: false, pending: true });
    let set = resolved(&node([stale]), MigStrategy::Mixed);
    assert_eq!(offered(&set), [list("nvidia.com/gpu", &["0"])]);
}

#[test]
fn a_problem_makes_its_devices_unhealthy_and_no_others() {
    let mut sick = mig_gpu(0, &["1g.10gb", "1g.10gb"]);
    sick.mig_devices[1].problem = Some(crate::inventory::Trouble::unreadable("nvmlDeviceGetUUID: UNKNOWN"));
    let mut lost = mig_gpu(1, &["1g.10gb"]);
    lost.problem = Some(crate::inventory::Trouble::lost("GPU is lost"));
    let set = resolved(&node([sick, lost, mig_gpu(2, &["1g.10gb"])]), MigStrategy::Mixed);
    let healthy: Vec<_> = set.resources.values().flatten().map(Device::is_healthy).collect();
    assert_eq!(healthy, [true, false, false, true]);
}

#[test]
fn a_slice_is_unhealthy_without_the_nodes_that_open_it() {
    let mut gpu = mig_gpu(3, &["1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb"]);
    let [_, one, both, unnamed] = &mut gpu.mig_devices[..] else { panic!() };
    one.compute_instance_node.as_mut().unwrap().exists = false;
    both.compute_instance_node.as_mut().unwrap().exists = false;
    both.gpu_instance_node.as_mut().unwrap().exists = false;
    unnamed.gpu_instance_node = None;
    let inventory = node([gpu]);
    let reasons = |inventory: &Inventory, specs| {
        let set = with_specs(inventory, MigStrategy::Mixed, specs);
        set.resources.values().flatten().map(Device::reasons_text).collect::<Vec<_>>()
    };
    let file = |file: &str| format!(" -f /proc/driver/nvidia/capabilities/gpu3/mig/{file}/access");
    let command = "; on the host, as root: nvidia-modprobe";
    let of_one = format!("missing device node /dev/nvidia-caps/nvidia-cap481{command}{}", file("gi8/ci0"));
    let of_both = format!(
        "missing device node /dev/nvidia-caps/nvidia-cap489, /dev/nvidia-caps/nvidia-cap490{command}{}{}",
        file("gi9"),
        file("gi9/ci0")
    );
    let existing = reasons(&inventory, DeviceSpecs::Existing);
    assert_eq!(existing, ["", &of_one, &of_both, ""]);
    let required = reasons(&inventory, DeviceSpecs::Required);
    assert_eq!(required[..3], existing[..3]);
    assert!(required[3].contains("mig-minors"), "{}", required[3]);
    assert_eq!(reasons(&inventory, DeviceSpecs::Omitted), [""; 4]);
    // Without the GPU's node these are not the host's, and nothing is known of those.
    let mut elsewhere = inventory;
    elsewhere.gpus[0].node.exists = false;
    assert_eq!(reasons(&elsewhere, DeviceSpecs::Existing), [""; 4]);
    assert!(reasons(&elsewhere, DeviceSpecs::Required)[0].contains("missing device node /dev/nvidia3"));
}

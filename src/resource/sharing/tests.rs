use super::*;
use crate::fixtures::{gpu, mig_gpu, node};
use crate::resource::policy::OfferPolicy;
use crate::resource::{MigStrategy, resolve, resolve_after};

const SLICES: &str = "nvidia.com/mig-1g.10gb";

fn shared(name: &str, devices: DeviceSelection, replicas: u32) -> SharedResource {
    SharedResource { name: name.parse().unwrap(), rename: None, devices, replicas }
}

/// Two slices on GPU 0, and GPU 1 as a whole.
fn offered(time_slicing: TimeSlicing) -> ResourceSet {
    let inventory = node([mig_gpu(0, &["1g.10gb", "1g.10gb"]), gpu(1)]);
    let policy = OfferPolicy { strategy: MigStrategy::Mixed, time_slicing, ..OfferPolicy::default() };
    resolve(&inventory, &policy)
}

fn with(resources: Vec<SharedResource>) -> TimeSlicing {
    TimeSlicing { resources, ..TimeSlicing::default() }
}

fn lists(set: &ResourceSet) -> Vec<(&str, Vec<&str>)> {
    set.resources
        .iter()
        .map(|(name, list)| (name.as_str(), list.iter().map(|device| device.id.as_str()).collect()))
        .collect()
}

#[test]
fn every_device_is_offered_as_its_replicas() {
    let set = offered(with(vec![shared(SLICES, DeviceSelection::All, 2)]));
    assert_eq!(
        lists(&set),
        [
            ("nvidia.com/gpu", vec!["GPU-1"]),
            (SLICES, vec!["MIG-0-7-0::0", "MIG-0-7-0::1", "MIG-0-8-0::0", "MIG-0-8-0::1"]),
        ]
    );
    assert!(set.warnings.is_empty());
}

#[test]
fn shared_resources_are_renamed_as_configured() {
    let mut sharing = with(vec![shared(SLICES, DeviceSelection::All, 2)]);
    sharing.rename_by_default = true;
    let set = offered(sharing.clone());
    assert_eq!(set.resources.keys().nth(1).unwrap().as_str(), "nvidia.com/mig-1g.10gb.shared");
    sharing.resources[0].rename = Some("nvidia.com/turns".parse().unwrap());
    let set = offered(sharing);
    assert_eq!(set.resources.keys().nth(1).unwrap().as_str(), "nvidia.com/turns");
}

/// What is shared of four slices after those in `gone` have gone, while pods hold `held`.
fn shared_of(count: usize, gone: &[&str], earlier: &mut Earlier) -> Vec<String> {
    let mut gpu = mig_gpu(0, &["1g.10gb"; 4]);
    gpu.mig_devices.retain(|device| !gone.contains(&&*device.uuid));
    let policy = OfferPolicy {
        strategy: MigStrategy::Mixed,
        time_slicing: with(vec![shared(SLICES, DeviceSelection::Count(count), 2)]),
        ..OfferPolicy::default()
    };
    let set = resolve_after(&node([gpu]), &policy, earlier);
    earlier.take_offer(&set);
    let shared = set.resources.values().flatten().filter(|d| d.replica.is_some_and(|r| r.number == 0));
    shared.map(|device| device.uuid.clone()).collect()
}

const A: &str = "MIG-0-7-0";
const B: &str = "MIG-0-8-0";
const C: &str = "MIG-0-9-0";
const D: &str = "MIG-0-10-0";

#[test]
fn a_slice_that_goes_or_comes_changes_nothing_for_the_others() {
    let mut earlier = Earlier::default();
    assert_eq!(shared_of(2, &[], &mut earlier), [A, B]);
    assert_eq!(shared_of(2, &[C], &mut earlier), [A, B]);
    assert_eq!(shared_of(2, &[], &mut earlier), [A, B]);
    assert_eq!(shared_of(2, &[A], &mut earlier), [B, C], "so many are to be shared");
    assert_eq!(shared_of(2, &[], &mut earlier), [B, C], "who comes back takes nobody's place");
    assert_eq!(shared_of(1, &[], &mut earlier), [B]);
    assert_eq!(shared_of(2, &[], &mut earlier), [A, B]);
}

#[test]
fn what_pods_hold_says_how_it_was_offered_before_a_restart() {
    let held = |ids: &[&str]| {
        let mut earlier = Earlier::default();
        assert_eq!(shared_of(2, &[], &mut earlier), [A, B]);
        assert!(earlier.take_held(ids.iter().map(|id| DeviceId((*id).to_owned())).collect()));
        earlier
    };
    assert_eq!(shared_of(2, &[], &mut held(&["MIG-0-9-0::1"])), [A, C]);
    assert_eq!(shared_of(2, &[], &mut held(&["MIG-0-9-0::1", A])), [B, C], "a pod has A alone");
    assert_eq!(shared_of(2, &[B], &mut held(&[C])), [A, D], "of those that are whole, one that is free");
    assert_eq!(shared_of(2, &[A, B], &mut held(&[C])), [C, D], "there is no other");
}

#[test]
fn what_is_not_chosen_stays_whole_under_its_own_name() {
    let mut sharing = with(vec![shared(SLICES, DeviceSelection::Count(1), 2)]);
    sharing.resources[0].rename = Some("nvidia.com/turns".parse().unwrap());
    let set = offered(sharing);
    assert_eq!(
        lists(&set),
        [
            ("nvidia.com/gpu", vec!["GPU-1"]),
            (SLICES, vec!["MIG-0-8-0"]),
            ("nvidia.com/turns", vec!["MIG-0-7-0::0", "MIG-0-7-0::1"]),
        ]
    );
}

#[test]
fn devices_are_chosen_by_uuid_and_by_index() {
    for name in ["MIG-0-8-0", "0:1"] {
        let selection = DeviceSelection::List(vec![name.parse().unwrap()]);
        let set = offered(with(vec![shared(SLICES, selection, 2)]));
        assert_eq!(lists(&set)[1].1, ["MIG-0-7-0", "MIG-0-8-0::0", "MIG-0-8-0::1"], "{name}");
    }
    let selection = DeviceSelection::List(vec![DeviceRef::Gpu(1)]);
    let set = offered(with(vec![shared("nvidia.com/gpu", selection, 3)]));
    assert_eq!(lists(&set)[0].1, ["GPU-1::0", "GPU-1::1", "GPU-1::2"]);
}

#[test]
fn what_a_node_does_not_have_is_told_and_costs_nothing() {
    let absent = vec!["5:0".parse().unwrap(), DeviceRef::Uuid("MIG-x".to_owned())];
    let set = offered(with(vec![
        shared(SLICES, DeviceSelection::List(absent), 2),
        shared("nvidia.com/gpu", DeviceSelection::Count(4), 2),
        shared("nvidia.com/mig-7g.80gb", DeviceSelection::All, 2),
    ]));
    assert_eq!(
        lists(&set),
        [("nvidia.com/gpu", vec!["GPU-1::0", "GPU-1::1"]), (SLICES, vec!["MIG-0-7-0", "MIG-0-8-0"])]
    );
    assert_eq!(set.warnings.len(), 4, "{:?}", set.warnings);
    assert!(set.warnings[3].contains("mig-7g.80gb: this node has no such resource"));
    assert!(set.warnings[0].contains("5:0") && set.warnings[1].contains("MIG-x"));
    assert!(set.warnings[2].contains("4 devices") && set.warnings[2].contains("there are 1"));
}

#[test]
fn replicas_that_meet_other_devices_under_one_name_are_told() {
    let mut sharing = with(vec![shared(SLICES, DeviceSelection::All, 2)]);
    sharing.resources[0].rename = Some(ResourceName::gpu());
    let set = offered(sharing);
    assert!(set.warnings[0].contains("cannot tell them apart"), "{:?}", set.warnings);
}

#[test]
fn replicas_know_whether_they_may_be_asked_for_together() {
    let mut sharing = with(vec![shared(SLICES, DeviceSelection::All, 2)]);
    sharing.fail_requests_greater_than_one = true;
    let set = offered(sharing);
    assert!(set.resources[&SLICES.parse().unwrap()].iter().all(|device| device.replica.unwrap().alone));
}

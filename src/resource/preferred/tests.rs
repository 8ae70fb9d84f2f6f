use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;
use crate::fixtures::{gpu, mig_gpu, mixed, node};
use crate::inventory::Link;
use crate::resource::policy::{DeviceSelection, OfferPolicy, SharedResource, TimeSlicing};
use crate::resource::{DeviceId, MigStrategy, Reason, Replica, ResourceName, resolve};

/// A node whose GPUs have so many slices each.
fn devices(slices: &[usize]) -> Vec<Device> {
    let gpus = slices.iter().zip(0..).map(|(count, index)| mig_gpu(index, &vec!["1g.10gb"; *count]));
    let set = mixed(&node(gpus));
    set.resources.into_values().next().unwrap_or_default()
}

/// `0:3` is the fourth slice of the first GPU.
fn id(index: &str) -> String {
    let (gpu, n) = index.split_once(':').unwrap();
    format!("MIG-{gpu}-{}-0", n.parse::<u32>().unwrap() + 7)
}

fn ids(indices: &[&str]) -> Vec<String> {
    indices.iter().map(|index| id(index)).collect()
}

fn all_but(devices: &[Device], used: &[&str]) -> Vec<String> {
    let used = ids(used);
    devices.iter().map(|device| device.id.to_string()).filter(|id| !used.contains(id)).collect()
}

fn choose(slices: &[usize], used: &[&str], must_include: &[&str], size: usize) -> Vec<String> {
    let devices = devices(slices);
    preferred(
        &devices,
        &Links::default(),
        &all_but(&devices, used),
        &ids(must_include),
        size,
        AllocationPolicy::Unset,
    )
}

#[test]
fn the_fullest_gpu_that_has_room_comes_first() {
    assert_eq!(choose(&[7, 7], &["1:0", "1:1", "1:2"], &[], 2), ids(&["1:3", "1:4"]));
    assert_eq!(choose(&[7, 7], &["0:0", "0:1", "0:2"], &[], 2), ids(&["0:3", "0:4"]));
}

#[test]
fn one_gpu_is_better_than_a_fuller_pair() {
    assert_eq!(choose(&[7, 7], &["0:0", "0:1", "0:2", "0:3", "0:4"], &[], 3), ids(&["1:0", "1:1", "1:2"]));
}

#[test]
fn what_must_be_included_draws_the_rest_to_its_gpu() {
    let used = ["0:0", "0:1"];
    assert_eq!(choose(&[7, 7], &used, &["1:4"], 3), ids(&["1:4", "1:0", "1:1"]));
}

#[test]
fn what_must_be_included_draws_the_rest_to_its_numa_node() {
    // GPUs 0 to 3 are on NUMA node 0, 4 and 5 on node 1; GPU 4 has one slice left.
    let slices = [2, 2, 2, 2, 1, 2];
    assert_eq!(choose(&slices, &["0:0"], &["4:0"], 2), ids(&["4:0", "5:0"]));
}

#[test]
fn a_choice_stays_on_one_numa_node_where_that_costs_no_gpu() {
    // Four slices need two GPUs; 3 and 4 are the fullest, and on different NUMA nodes.
    let slices = [2, 2, 2, 3, 3, 2];
    let chosen = choose(&slices, &["3:0", "4:0"], &[], 4);
    assert_eq!(chosen, ids(&["3:1", "3:2", "0:0", "0:1"]));
}

#[test]
fn what_does_not_fit_is_answered_as_far_as_it_goes() {
    assert_eq!(choose(&[2], &["0:0"], &[], 5), ids(&["0:1"]));
    assert_eq!(choose(&[2], &[], &["0:0", "0:1"], 1), ids(&["0:0"]));
    assert_eq!(choose(&[2], &[], &[], 0), ids(&[]));
}

#[test]
fn unknown_and_unhealthy_devices_are_not_chosen() {
    let mut devices = devices(&[3]);
    devices[0].reasons = vec![Reason::Gone];
    let mut available = all_but(&devices, &[]);
    available.push("MIG-x".to_owned());
    assert_eq!(
        preferred(&devices, &Links::default(), &available, &[], 4, AllocationPolicy::Unset),
        ids(&["0:1", "0:2"])
    );
}

/// Three replicas of each slice, on GPUs with so many slices.
fn replicas(slices: &[usize]) -> Vec<Device> {
    let name = "nvidia.com/mig-1g.10gb".parse().unwrap();
    let shared = SharedResource { name, rename: None, devices: DeviceSelection::All, replicas: 3 };
    let policy = OfferPolicy {
        strategy: MigStrategy::Mixed,
        time_slicing: TimeSlicing { resources: vec![shared], ..TimeSlicing::default() },
        ..OfferPolicy::default()
    };
    let gpus = slices.iter().zip(0..).map(|(count, index)| mig_gpu(index, &vec!["1g.10gb"; *count]));
    resolve(&node(gpus), &policy).resources.into_values().next().unwrap_or_default()
}

/// Asks for replicas; `0:3::1` is the second replica of the fourth slice of the first GPU.
fn choose_replicas(
    slices: &[usize],
    used: &[&str],
    must_include: &[&str],
    size: usize,
    policy: AllocationPolicy,
) -> Vec<String> {
    let id = |index: &&str| {
        let (device, replica) = index.split_once("::").unwrap();
        format!("{}::{replica}", id(device))
    };
    let devices = replicas(slices);
    let used: Vec<_> = used.iter().map(id).collect();
    let must_include: Vec<_> = must_include.iter().map(id).collect();
    let all = devices.iter().map(|device| device.id.to_string());
    let available: Vec<_> = all.filter(|id| !used.contains(id)).collect();
    preferred(&devices, &Links::default(), &available, &must_include, size, policy)
}

fn replica_ids(indices: &[&str]) -> Vec<String> {
    let id = |index: &&str| {
        let (device, replica) = index.split_once("::").unwrap();
        format!("{}::{replica}", id(device))
    };
    indices.iter().map(id).collect()
}

#[test]
fn distributed_slices_go_to_the_gpus_that_are_used_least() {
    let spread = |used: &[&str], must: &[&str], size| {
        let devices = devices(&[7, 7, 7]);
        preferred(
            &devices,
            &Links::default(),
            &all_but(&devices, used),
            &ids(must),
            size,
            AllocationPolicy::Distributed,
        )
    };
    assert_eq!(spread(&["0:0", "0:1", "0:2"], &[], 2), ids(&["1:0", "2:0"]));
    assert_eq!(spread(&[], &[], 4), ids(&["0:0", "0:1", "1:0", "2:0"]));
    assert_eq!(spread(&[], &["0:5"], 2), ids(&["0:5", "1:0"]));
}

#[test]
fn replicas_of_one_request_land_on_different_devices_first() {
    for policy in [AllocationPolicy::Unset, AllocationPolicy::Packed, AllocationPolicy::Distributed] {
        let chosen = choose_replicas(&[2], &[], &[], 3, policy);
        assert_eq!(chosen, replica_ids(&["0:0::0", "0:1::0", "0:0::1"]), "{policy:?}");
        let chosen = choose_replicas(&[2], &[], &["0:0::2"], 2, policy);
        assert_eq!(chosen, replica_ids(&["0:0::2", "0:1::0"]), "{policy:?}");
    }
}

#[test]
fn packed_replicas_fill_the_device_that_is_used_most_and_distributed_ones_the_least() {
    let used = ["0:1::0"];
    let one = |policy| choose_replicas(&[3], &used, &[], 1, policy);
    assert_eq!(one(AllocationPolicy::Packed), replica_ids(&["0:1::1"]));
    assert_eq!(one(AllocationPolicy::Distributed), replica_ids(&["0:0::0"]));
    assert_eq!(one(AllocationPolicy::Unset), replica_ids(&["0:0::0"]));
}

#[test]
fn it_is_the_device_that_counts_for_replicas_and_not_its_gpu() {
    // GPU 0 has a slice that nobody uses beside one that is used; GPU 1's only slice is used by two.
    let used = ["0:0::0", "1:0::0", "1:0::1"];
    let one = |policy| choose_replicas(&[2, 1], &used, &[], 1, policy);
    assert_eq!(one(AllocationPolicy::Distributed), replica_ids(&["0:1::0"]));
    assert_eq!(one(AllocationPolicy::Unset), replica_ids(&["0:1::0"]));
    assert_eq!(one(AllocationPolicy::Packed), replica_ids(&["1:0::2"]));
}

#[test]
fn ten_thousand_replicas_are_chosen_from_without_trouble() {
    let name = ResourceName::gpu();
    let shared = SharedResource { name, rename: None, devices: DeviceSelection::All, replicas: 1_250 };
    let policy = OfferPolicy {
        time_slicing: TimeSlicing { resources: vec![shared], ..TimeSlicing::default() },
        ..OfferPolicy::default()
    };
    let devices = resolve(&node((0..8).map(gpu)), &policy).resources.into_values().next().unwrap();
    let available: Vec<_> = devices.iter().map(|device| device.id.to_string()).collect();
    for policy in [AllocationPolicy::Packed, AllocationPolicy::Distributed] {
        let chosen = preferred(&devices, &Links::default(), &available, &[], 9_999, policy);
        assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), 9_999);
    }
}

proptest! {
    #[test]
    fn an_answer_is_part_of_the_offer_and_as_large_as_can_be(
        slices in prop::collection::vec(0_usize..8, 1..9),
        available in prop::collection::vec(any::<bool>(), 64),
        must in prop::collection::vec(any::<bool>(), 64),
        size in 0_usize..20,
        turn in 0_usize..64,
        policy in prop::sample::select(vec![
            AllocationPolicy::Unset, AllocationPolicy::Packed, AllocationPolicy::Distributed,
        ]),
    ) {
        let devices = devices(&slices);
        let offered: Vec<String> = devices.iter().zip(&available)
            .filter(|(_, available)| **available).map(|(device, _)| device.id.to_string()).collect();
        let must: Vec<String> = offered.iter().zip(&must)
            .filter(|(_, must)| **must).map(|(id, _)| id.clone()).take(size).collect();
        let answer = preferred(&devices, &Links::default(), &offered, &must, size, policy);
        let distinct: HashSet<_> = answer.iter().collect();
        prop_assert_eq!(distinct.len(), answer.len());
        prop_assert!(answer.iter().all(|id| offered.contains(id)));
        prop_assert!(must.iter().all(|id| answer.contains(id)));
        prop_assert_eq!(answer.len(), size.min(offered.len()));

        // The kubelet offers IDs in any order.
        let mut shuffled = offered.clone();
        shuffled.rotate_left(turn % offered.len().max(1));
        prop_assert_eq!(preferred(&devices, &Links::default(), &shuffled, &must, size, policy), answer.clone());

        // No packed answer touches more GPUs than taking the largest ones would.
        if must.is_empty() && policy != AllocationPolicy::Distributed {
            let gpu_of = |id: &String| devices.iter().find(|device| device.id.as_str() == id).unwrap().gpu_index;
            let touched: BTreeSet<_> = answer.iter().map(gpu_of).collect();
            let mut room: BTreeMap<u32, usize> = BTreeMap::new();
            for id in &offered { *room.entry(gpu_of(id)).or_default() += 1; }
            let mut room: Vec<_> = room.into_values().collect();
            room.sort_unstable_by_key(|count| Reverse(*count));
            let mut left = answer.len();
            let least = room.iter().take_while(|count| {
                let needed = left > 0;
                left = left.saturating_sub(**count);
                needed
            }).count();
            prop_assert_eq!(touched.len(), least);
        }
    }
}

#[test]
fn linked_gpus_are_preferred_beside_what_is_listed_until_it_may_leave() {
    let gpus = mixed(&node((0..4).map(gpu))).resources.into_values().next().unwrap();
    let mut links = Links::default();
    links.insert("GPU-1", "GPU-3", Link { nvlinks: 4, pcie: None });
    let gone = |device: Device| Device { reasons: vec![Reason::NotOffered], ..device };
    let slice = gone(devices(&[1]).remove(0));
    let replica = gone(Device {
        id: DeviceId("GPU-0::0".to_owned()),
        replica: Some(Replica { number: 0, alone: false }),
        ..gpus[0].clone()
    });
    let available: Vec<_> = gpus.iter().map(|device| device.id.to_string()).collect();
    for leaving in [slice, replica] {
        let list = [gpus.clone(), vec![leaving]].concat();
        let chosen = preferred(&list, &links, &available, &[], 2, AllocationPolicy::Unset);
        assert_eq!(chosen, ["GPU-1", "GPU-3"]);
    }
}

use proptest::prelude::*;

use super::*;
use crate::fixtures::{mig_gpu, mixed, node};

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
    preferred(&devices, &all_but(&devices, used), &ids(must_include), size)
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
    devices[0].reasons = vec![crate::resource::Reason::Gone];
    let mut available = all_but(&devices, &[]);
    available.push("MIG-x".to_owned());
    assert_eq!(preferred(&devices, &available, &[], 4), ids(&["0:1", "0:2"]));
}

proptest! {
    #[test]
    fn an_answer_is_part_of_the_offer_and_as_large_as_can_be(
        slices in prop::collection::vec(0_usize..8, 1..9),
        available in prop::collection::vec(any::<bool>(), 64),
        must in prop::collection::vec(any::<bool>(), 64),
        size in 0_usize..20,
        turn in 0_usize..64,
    ) {
        let devices = devices(&slices);
        let offered: Vec<String> = devices.iter().zip(&available)
            .filter(|(_, available)| **available).map(|(device, _)| device.id.to_string()).collect();
        let must: Vec<String> = offered.iter().zip(&must)
            .filter(|(_, must)| **must).map(|(id, _)| id.clone()).take(size).collect();
        let answer = preferred(&devices, &offered, &must, size);
        let distinct: HashSet<_> = answer.iter().collect();
        prop_assert_eq!(distinct.len(), answer.len());
        prop_assert!(answer.iter().all(|id| offered.contains(id)));
        prop_assert!(must.iter().all(|id| answer.contains(id)));
        prop_assert_eq!(answer.len(), size.min(offered.len()));

        // The kubelet offers IDs in any order.
        let mut shuffled = offered.clone();
        shuffled.rotate_left(turn % offered.len().max(1));
        prop_assert_eq!(preferred(&devices, &shuffled, &must, size), answer.clone());

        // No answer touches more GPUs than taking the largest ones would.
        if must.is_empty() {
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

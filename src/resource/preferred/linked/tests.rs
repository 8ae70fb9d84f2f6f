use proptest::prelude::*;

use super::*;

/// Pairs of GPUs and their NVLinks; all else is what `path` says.
fn machine(count: usize, nvlinks: &[(usize, usize, u32)], path: impl Fn(usize, usize) -> PciePath) -> Worth {
    Worth::new(count, |a, b| {
        let is_it = |(x, y, _): &&(usize, usize, u32)| (*x, *y) == (a, b) || (*y, *x) == (a, b);
        let nvlinks = nvlinks.iter().find(is_it).map_or(0, |(_, _, count)| *count);
        worth(Some(Link { nvlinks, pcie: Some(path(a, b)) }), [None, None])
    })
}

/// Pairs behind a switch each, and the halves on a NUMA node each.
fn halves(a: usize, b: usize) -> PciePath {
    match (a, b) {
        _ if a / 2 == b / 2 => PciePath::Switch,
        _ if a / 4 == b / 4 => PciePath::Node,
        _ => PciePath::System,
    }
}

/// Eight V100s in a cube mesh of six NVLinks each (NVIDIA's DGX-1 system architecture white paper).
fn dgx1() -> Worth {
    let links = [
        (0, 1, 1),
        (0, 2, 1),
        (0, 3, 2),
        (0, 4, 2),
        (1, 2, 2),
        (1, 3, 1),
        (1, 5, 2),
        (2, 3, 2), //
        (2, 6, 1),
        (3, 7, 1),
        (4, 5, 1),
        (4, 6, 1),
        (4, 7, 2),
        (5, 6, 2),
        (5, 7, 1),
        (6, 7, 2),
    ];
    machine(8, &links, halves)
}

fn total(worth: &Worth, set: &[usize]) -> u32 {
    let pairs = set.iter().enumerate().flat_map(|(n, a)| set[n + 1..].iter().map(move |b| (*a, *b)));
    pairs.map(|(a, b)| worth.of(a, b)).sum()
}

#[test]
fn a_cube_mesh_is_divided_where_it_has_fewest_links() {
    let dgx1 = dgx1();
    assert_eq!(choose(&dgx1, &[], 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(choose(&dgx1, &[], 4), [0, 1, 2, 3]);
    assert_eq!(choose(&dgx1, &[5], 3), [4, 6, 7]);
    // Two NVLinks and a switch; and the other six make three pairs with two NVLinks each.
    assert_eq!(choose(&dgx1, &[], 2), [2, 3]);
    assert_eq!(choose(&dgx1, &[0], 1), [4], "3 has as many NVLinks, and is needed by 2");
}

#[test]
fn a_single_gpu_leaves_pairs_with_bridges_whole() {
    // The first GPU's partner is somebody else's already.
    let bridges = machine(5, &[(1, 2, 4), (3, 4, 4)], |_, _| PciePath::HostBridge);
    assert_eq!(choose(&bridges, &[], 1), [0]);
    assert_eq!(choose(&bridges, &[], 2), [1, 2]);
    assert_eq!(choose(&bridges, &[], 3), [0, 1, 2], "as good as any, and a pair is left");
    assert_eq!(choose(&bridges, &[4], 1), [3]);
    assert_eq!(choose(&bridges, &[4], 2), [0, 3], "of those that are alike the one whose pair is broken");
}

#[test]
fn without_nvlinks_the_way_over_pcie_counts() {
    let tree = machine(8, &[], halves);
    assert_eq!(choose(&tree, &[], 2), [0, 1]);
    assert_eq!(choose(&tree, &[3], 1), [2]);
    assert_eq!(choose(&tree, &[], 4), [0, 1, 2, 3]);
    assert_eq!(choose(&tree, &[4, 6], 2), [5, 7]);
}

#[test]
fn on_switches_all_are_equal_and_the_first_are_taken() {
    let all = (0..8).flat_map(|a| (a + 1..8).map(move |b| (a, b, 18)));
    let switches = machine(8, &all.collect::<Vec<_>>(), |_, _| PciePath::System);
    assert_eq!(choose(&switches, &[], 3), [0, 1, 2]);
    assert_eq!(choose(&switches, &[6], 2), [0, 1]);
}

#[test]
fn the_numa_node_counts_where_the_driver_tells_nothing() {
    assert_eq!(worth(None, [Some(0), Some(0)]), 20);
    assert_eq!(worth(None, [Some(0), Some(1)]), 10);
    assert_eq!(worth(None, [Some(0), None]), 0);
    let link = Link { nvlinks: 2, pcie: None };
    assert_eq!(worth(Some(link), [Some(1), Some(1)]), 220);
}

#[test]
fn many_gpus_are_taken_by_their_pairs() {
    let many = machine(64, &[(50, 63, 4), (50, 62, 2), (62, 63, 2)], halves);
    assert_eq!(choose(&many, &[], 2), [50, 63]);
    assert_eq!(choose(&many, &[], 3), [50, 62, 63]);
    assert_eq!(choose(&many, &[9], 3), [8, 10, 11]);
    assert_eq!(choose(&many, &[], 64).len(), 64);
}

#[test]
fn sixteen_gpus_are_divided_in_bounded_steps() {
    let racks = machine(16, &[(0, 15, 3), (1, 14, 3), (2, 13, 3)], halves);
    for size in 1..=16 {
        assert_eq!(choose(&racks, &[], size).len(), size);
    }
    assert_eq!(choose(&racks, &[], 2), [0, 15]);
}

/// NVIDIA's rule, straight: each division of all GPUs into sets of the size and one of what is left over, of which one
/// has all of `taken`. What the best one is worth, and the best set in it.
fn best_division(worth: &Worth, taken: &[usize], size: usize) -> (u32, u32) {
    fn divide(
        left: &[usize],
        size: usize,
        over: usize,
        sets: &mut Vec<Vec<usize>>,
        all: &mut Vec<Vec<Vec<usize>>>,
    ) {
        let Some((first, others)) = left.split_first() else { return all.push(sets.clone()) };
        for (part, over) in [(size, over), (over, 0)] {
            if part == 0 || part > left.len() {
                continue;
            }
            let mut subsets = Vec::new();
            each_subset(mask(0..others.len()), part - 1, 0, &mut |set| subsets.push(set));
            for subset in subsets {
                let inside = |at: usize| subset & (1 << at) != 0;
                let mut set = vec![*first];
                set.extend((0..others.len()).filter(|at| inside(*at)).map(|at| others[at]));
                let rest: Vec<_> = (0..others.len()).filter(|at| !inside(*at)).map(|at| others[at]).collect();
                sets.push(set);
                divide(&rest, size, over, sets, all);
                sets.pop();
            }
        }
    }
    let gpus: Vec<usize> = (0..worth.count).collect();
    let mut all = Vec::new();
    divide(&gpus, size, worth.count % size, &mut Vec::new(), &mut all);
    let divisions = all.iter().filter_map(|sets| {
        let able = sets.iter().filter(|set| set.len() == size && taken.iter().all(|gpu| set.contains(gpu)));
        let best = able.map(|set| total(worth, set)).max()?;
        Some((sets.iter().map(|set| total(worth, set)).sum::<u32>(), best))
    });
    divisions.max().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_choice_is_as_good_as_that_of_nvidias_plugin(
        count in 2_usize..8,
        pairs in prop::collection::vec(prop::sample::select(vec![0, 10, 20, 110, 210]), 49),
        size in 1_usize..8,
        taken in prop::collection::btree_set(0_usize..8, 0..3),
    ) {
        let worth = Worth::new(count, |a, b| pairs[a * 7 + b]);
        let taken: Vec<usize> = taken.into_iter().filter(|gpu| *gpu < count).collect();
        prop_assume!(size >= taken.len() && size <= count);
        let chosen = choose(&worth, &taken, size - taken.len());
        let set = [&taken[..], &chosen].concat();
        prop_assert_eq!(set.len(), size);
        prop_assert!(chosen.iter().all(|gpu| !taken.contains(gpu)));
        let (division, best) = best_division(&worth, &taken, size);
        // The set together with the best division of the rest is the best division, and it is its best set.
        prop_assert_eq!(best_division(&worth, &set, size).0, division);
        prop_assert_eq!(total(&worth, &set), best);
        prop_assert_eq!(choose(&worth, &taken, size - taken.len()), chosen);
    }
}

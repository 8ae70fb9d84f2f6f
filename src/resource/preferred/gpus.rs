//! From which GPUs to take how many devices.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// The devices of one GPU that can be taken.
#[derive(Debug, Clone)]
pub(super) struct GpuPool {
    index: u32,
    numa_node: Option<u32>,
    /// Positions of the devices, in the order in which they are taken.
    pub(super) free: Vec<usize>,
    /// How many devices or replicas others have.
    pub(super) used: usize,
    /// Whether the request has a device on it already, so that taking more of it touches no further GPU.
    pub(super) touched: bool,
}

impl GpuPool {
    pub(super) fn new(index: u32, numa_node: Option<u32>) -> Self {
        Self { index, numa_node, free: Vec::new(), used: 0, touched: false }
    }
}

/// GPUs, and how many devices of each.
type Choice = Vec<(GpuPool, usize)>;

/// Chooses `needed` devices of `pools`, those on `numa_nodes` first.
pub(super) fn choose_gpus(
    pools: Vec<GpuPool>,
    numa_nodes: &BTreeSet<u32>,
    needed: usize,
    spread: bool,
) -> Choice {
    let choose = if spread { spread_out } else { fewest };
    if !numa_nodes.is_empty() {
        let is_near = |pool: &GpuPool| pool.numa_node.is_some_and(|node| numa_nodes.contains(&node));
        let (near, far): (Vec<_>, Vec<_>) = pools.into_iter().partition(is_near);
        let total = room(&near);
        let mut chosen = choose(near, needed.min(total));
        chosen.extend(choose(far, needed.saturating_sub(total)));
        return chosen;
    }
    // Nothing ties the choice to a NUMA node yet: stay within one where that costs nothing.
    let anywhere = choose(pools.clone(), needed);
    let nodes: BTreeSet<_> = pools.iter().filter_map(|pool| pool.numa_node).collect();
    let within_one_node = nodes.into_iter().filter_map(|node| {
        let local: Vec<_> = pools.iter().filter(|pool| pool.numa_node == Some(node)).cloned().collect();
        (room(&local) >= needed).then(|| choose(local, needed))
    });
    let used = |choice: &Choice| choice.iter().map(|(pool, _)| pool.used).sum::<usize>();
    let first = |choice: &Choice| choice.first().map(|(pool, _)| pool.index);
    let best = if spread {
        // As many GPUs as anywhere, and no fuller ones.
        within_one_node
            .filter(|choice| choice.len() >= anywhere.len() && used(choice) <= used(&anywhere))
            .min_by_key(|choice| (used(choice), first(choice)))
    } else {
        within_one_node.filter(|choice| choice.len() <= anywhere.len()).max_by_key(|choice| {
            let free: usize = choice.iter().map(|(pool, _)| pool.free.len()).sum();
            (Reverse(choice.len()), used(choice), Reverse(free), Reverse(first(choice)))
        })
    };
    best.unwrap_or(anywhere)
}

fn room(pools: &[GpuPool]) -> usize {
    pools.iter().map(|pool| pool.free.len()).sum()
}

/// GPUs that are touched anyway first; then the largest until what is left fits on one, and for that the
/// fullest that it fits on.
fn fewest(mut pools: Vec<GpuPool>, mut needed: usize) -> Choice {
    let mut chosen = Vec::new();
    while needed > 0 {
        let best = pools.iter().enumerate().max_by_key(|(_, pool)| {
            let fits = pool.free.len() >= needed;
            let size = if fits { usize::MAX } else { pool.free.len() };
            (pool.touched, size, pool.used, Reverse(pool.free.len()), Reverse(pool.index))
        });
        let Some((position, _)) = best else { break };
        let pool = pools.remove(position);
        let count = needed.min(pool.free.len());
        needed -= count;
        chosen.push((pool, count));
    }
    chosen
}

/// One device at a time, each from a GPU that the request has least of, and of those the one that is used least.
fn spread_out(pools: Vec<GpuPool>, needed: usize) -> Choice {
    let mut chosen: Choice = pools.into_iter().map(|pool| (pool, 0)).collect();
    for _ in 0..needed {
        let best = chosen
            .iter_mut()
            .filter(|(pool, count)| pool.free.len() > *count)
            .min_by_key(|(pool, count)| (*count + usize::from(pool.touched), pool.used + *count, pool.index));
        match best {
            Some((_, count)) => *count += 1,
            None => break,
        }
    }
    chosen.retain(|(_, count)| *count > 0);
    chosen
}

//! Which devices to prefer when the kubelet lets us choose (`GetPreferredAllocation`).
//!
//! The rule: touch as few GPUs as possible, and of those that do, the fullest, so that whole GPUs stay free.
//! Devices on the NUMA node of those that must be included come first. The same question always gets the
//! same answer. An answer is only ever a part of what was offered: the kubelet ignores the rest silently.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Device;

/// Chooses `size` of `available`, `must_include` among them; fewer where fewer fit. `devices` is the whole list
/// of the resource in its order, from which is derived how full each GPU is.
pub fn preferred(
    devices: &[Device],
    available: &[String],
    must_include: &[String],
    size: usize,
) -> Vec<String> {
    let available: HashSet<&str> = available.iter().map(String::as_str).collect();
    let mut seen = HashSet::new();
    let mut answer: Vec<String> = must_include
        .iter()
        .filter(|id| available.contains(id.as_str()) && seen.insert(id.as_str()))
        .take(size)
        .cloned()
        .collect();
    let needed = size - answer.len();
    let mut numa_nodes = BTreeSet::new();
    let mut gpus: BTreeMap<u32, GpuPool<'_>> = BTreeMap::new();
    for device in devices {
        let pool = gpus.entry(device.gpu_index).or_insert_with(|| GpuPool::new(device));
        if seen.contains(device.id.as_str()) {
            pool.touched = true;
            numa_nodes.extend(device.numa_node);
        } else if available.contains(device.id.as_str()) && device.is_healthy() {
            pool.free.push(device.id.as_str());
        } else {
            pool.used += 1;
        }
    }
    let pools: Vec<_> = gpus.into_values().filter(|pool| !pool.free.is_empty()).collect();
    for (pool, count) in choose_gpus(pools, &numa_nodes, needed) {
        answer.extend(pool.free.into_iter().take(count).map(str::to_owned));
    }
    answer
}

/// The devices of one GPU.
#[derive(Debug, Clone)]
struct GpuPool<'a> {
    index: u32,
    numa_node: Option<u32>,
    free: Vec<&'a str>,
    used: usize,
    /// Whether a device that must be included is on it, so that taking more of it touches no further GPU.
    touched: bool,
}

impl<'a> GpuPool<'a> {
    fn new(device: &'a Device) -> Self {
        Self {
            index: device.gpu_index,
            numa_node: device.numa_node,
            free: Vec::new(),
            used: 0,
            touched: false,
        }
    }
}

/// Which GPUs to take how many devices of.
fn choose_gpus<'a>(
    pools: Vec<GpuPool<'a>>,
    numa_nodes: &BTreeSet<u32>,
    needed: usize,
) -> Vec<(GpuPool<'a>, usize)> {
    let is_near = |pool: &GpuPool<'a>| pool.numa_node.is_some_and(|node| numa_nodes.contains(&node));
    if !numa_nodes.is_empty() {
        let (near, far): (Vec<_>, Vec<_>) = pools.into_iter().partition(is_near);
        let near_total = near.iter().map(|pool| pool.free.len()).sum::<usize>();
        let mut chosen = fewest(near, needed.min(near_total));
        chosen.extend(fewest(far, needed.saturating_sub(near_total)));
        return chosen;
    }
    // Nothing ties the choice to a NUMA node yet: stay within one where that touches no more GPUs.
    let anywhere = fewest(pools.clone(), needed);
    let nodes: BTreeSet<_> = pools.iter().filter_map(|pool| pool.numa_node).collect();
    let within_one_node = nodes.into_iter().filter_map(|node| {
        let local: Vec<_> = pools.iter().filter(|pool| pool.numa_node == Some(node)).cloned().collect();
        let total: usize = local.iter().map(|pool| pool.free.len()).sum();
        (total >= needed).then(|| fewest(local, needed))
    });
    within_one_node
        .filter(|chosen| chosen.len() <= anywhere.len())
        .max_by_key(|chosen| {
            let used: usize = chosen.iter().map(|(pool, _)| pool.used).sum();
            (Reverse(chosen.len()), used, Reverse(chosen.first().map(|(pool, _)| pool.index)))
        })
        .unwrap_or(anywhere)
}

/// GPUs that are touched anyway first; then the largest until what is left fits on one, and for that the
/// fullest that it fits on.
fn fewest(mut pools: Vec<GpuPool<'_>>, mut needed: usize) -> Vec<(GpuPool<'_>, usize)> {
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

#[cfg(test)]
mod tests;

//! Which devices to prefer when the kubelet lets us choose (`GetPreferredAllocation`).
//!
//! - Replicas of one request land on different devices as long as there are any.
//! - Packed slices touch as few GPUs as possible, and of those that do, the fullest, so that whole GPUs stay free;
//!   distributed ones go to the GPU that is used least.
//! - Whole GPUs are taken together that have the best connections: NVLinks, then PCIe, then NUMA (`linked`).
//! - Packed replicas fill the device that is used most, distributed ones the one used least.
//! - Devices on the NUMA node of those that must be included come first; without any, the choice stays on one node
//!   where that costs nothing.
//!
//! What is in use is derived from what is offered: the kubelet offers everything else. The same question always
//! gets the same answer, and an answer is only ever a part of what was offered: the kubelet ignores the rest silently.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Device;
use super::policy::AllocationPolicy;
use crate::inventory::Links;

mod gpus;
mod linked;

use gpus::{GpuPool, choose_gpus};
use linked::Worth;

/// Chooses `size` of `available`, `must_include` among them; fewer where fewer fit. `devices` is the whole list
/// of the resource in its order, and `links` are what is known of how its GPUs are connected. O(n log n) in the number of devices for each replica of one device that is needed.
pub fn preferred(
    devices: &[Device],
    links: &Links,
    available: &[String],
    must_include: &[String],
    size: usize,
    policy: AllocationPolicy,
) -> Vec<String> {
    let available: HashSet<&str> = available.iter().map(String::as_str).collect();
    let mut seen = HashSet::new();
    let mut answer: Vec<String> = must_include
        .iter()
        .filter(|id| available.contains(id.as_str()) && seen.insert(id.as_str()))
        .take(size)
        .cloned()
        .collect();
    // What is listed until it may leave says nothing of what is offered.
    let is_offered = |device: &&Device| device.is_healthy() || seen.contains(device.id.as_str());
    let shared = devices.iter().filter(is_offered).any(|device| device.replica.is_some());
    let mut items = items(devices, &available, &seen);
    let numa_nodes: BTreeSet<u32> =
        items.iter().filter(|item| item.picked > 0).filter_map(|item| item.numa_node).collect();
    if !shared && devices.iter().filter(is_offered).all(|device| device.mig.is_none()) {
        let needed = size.saturating_sub(answer.len());
        answer.extend(whole_gpus(&items, links, needed));
        return answer;
    }
    // Each round takes at most one replica of each device.
    while answer.len() < size {
        let Some(least) = items.iter().filter(|item| !item.free.is_empty()).map(|item| item.picked).min()
        else {
            break;
        };
        let needed = size - answer.len();
        let chosen = if shared {
            shared_round(&items, least, &numa_nodes, needed, policy)
        } else {
            round(&items, least, &numa_nodes, needed, policy)
        };
        for position in chosen {
            let item = &mut items[position];
            item.picked += 1;
            answer.extend(item.free.pop().map(str::to_owned));
        }
    }
    answer
}

/// The IDs of `needed` whole GPUs.
fn whole_gpus(items: &[Item<'_>], links: &Links, needed: usize) -> Vec<String> {
    let able: Vec<_> = items.iter().filter(|item| item.picked > 0 || !item.free.is_empty()).collect();
    let taken: Vec<usize> = (0..able.len()).filter(|gpu| able[*gpu].picked > 0).collect();
    let worth = Worth::new(able.len(), |a, b| {
        let (a, b) = (able[a], able[b]);
        linked::worth(links.between(a.uuid, b.uuid), [a.numa_node, b.numa_node])
    });
    let chosen = linked::choose(&worth, &taken, needed);
    chosen.into_iter().filter_map(|gpu| able[gpu].free.last().map(|id| (*id).to_owned())).collect()
}

/// A device with its replicas; one that is not shared has a single one.
struct Item<'a> {
    uuid: &'a str,
    gpu: u32,
    numa_node: Option<u32>,
    /// Replicas that can be taken, the last one first.
    free: Vec<&'a str>,
    /// Replicas that somebody else has.
    used: usize,
    /// Replicas that this request gets.
    picked: usize,
}

fn items<'a>(devices: &'a [Device], available: &HashSet<&str>, included: &HashSet<&str>) -> Vec<Item<'a>> {
    let mut items: Vec<Item<'a>> = Vec::new();
    let mut positions: HashMap<&str, usize> = HashMap::new();
    for device in devices {
        let position = *positions.entry(device.uuid.as_str()).or_insert(items.len());
        if position == items.len() {
            items.push(Item {
                uuid: device.uuid.as_str(),
                gpu: device.gpu_index,
                numa_node: device.numa_node,
                free: Vec::new(),
                used: 0,
                picked: 0,
            });
        }
        let item = &mut items[position];
        if included.contains(device.id.as_str()) {
            item.picked += 1;
        } else if available.contains(device.id.as_str()) && device.is_healthy() {
            item.free.push(device.id.as_str());
        } else {
            item.used += 1;
        }
    }
    for item in &mut items {
        item.free.reverse();
    }
    items
}

/// The same where devices are shared: it is the device that counts, and its GPU only where devices are used alike.
fn shared_round(
    items: &[Item<'_>],
    picked: usize,
    numa_nodes: &BTreeSet<u32>,
    needed: usize,
    policy: AllocationPolicy,
) -> Vec<usize> {
    let mut gpus: HashMap<u32, usize> = HashMap::new();
    for item in items {
        *gpus.entry(item.gpu).or_default() += item.used + item.picked;
    }
    let is_far = |item: &Item<'_>| {
        !numa_nodes.is_empty() && !item.numa_node.is_some_and(|node| numa_nodes.contains(&node))
    };
    let pack = policy == AllocationPolicy::Packed;
    let rank = |used: usize| if pack { usize::MAX - used } else { used };
    let free = items.iter().enumerate().filter(|(_, item)| item.picked == picked && !item.free.is_empty());
    let mut positions: Vec<usize> = free.map(|(position, _)| position).collect();
    positions.sort_by_key(|position| {
        let item = &items[*position];
        (is_far(item), rank(item.used), rank(gpus[&item.gpu]), *position)
    });
    positions.truncate(needed);
    positions
}

/// The positions of up to `needed` devices of which this request has `picked` replicas so far.
fn round(
    items: &[Item<'_>],
    picked: usize,
    numa_nodes: &BTreeSet<u32>,
    needed: usize,
    policy: AllocationPolicy,
) -> Vec<usize> {
    let mut pools: BTreeMap<u32, GpuPool> = BTreeMap::new();
    for (position, item) in items.iter().enumerate() {
        let pool = pools.entry(item.gpu).or_insert_with(|| GpuPool::new(item.gpu, item.numa_node));
        pool.used += item.used;
        pool.touched |= item.picked > 0;
        if item.picked == picked && !item.free.is_empty() {
            pool.free.push(position);
        }
    }
    let pools: Vec<_> = pools.into_values().filter(|pool| !pool.free.is_empty()).collect();
    let spread = policy == AllocationPolicy::Distributed;
    let chosen = choose_gpus(pools, numa_nodes, needed, spread);
    chosen.into_iter().flat_map(|(pool, count)| pool.free.into_iter().take(count)).collect()
}

#[cfg(test)]
mod tests;

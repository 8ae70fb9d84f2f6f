//! The Topology Manager, as far as devices are concerned: hints, and whether a container may run.

use std::collections::{BTreeMap, BTreeSet};

use crate::view::Device;

/// `topologyManagerPolicy` in the kubelet's configuration; the scope is `container`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyPolicy {
    /// Devices are not aligned, and nobody looks at their NUMA nodes.
    #[default]
    None,
    /// Devices are aligned where that is possible.
    BestEffort,
    /// A container whose devices can't be aligned as well as their number allows is refused.
    Restricted,
    /// A container whose devices aren't all on one node is refused.
    SingleNumaNode,
}

/// A set of NUMA nodes, a bit each.
pub(crate) type Nodes = u64;

/// Where a container could get its devices. Nodes are missing where anything will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) nodes: Option<Nodes>,
    preferred: bool,
}

/// The hints for one resource. `None`: no device of the list is on a node that is known, so anything will do.
///
/// `already`: what the container holds, or else the devices that are free for it; `reusable` those of the init
/// containers before it, which it will get in any case.
pub(crate) fn hints(
    list: &BTreeMap<String, Device>,
    already: &BTreeSet<String>,
    reusable: &BTreeSet<String>,
    requested: usize,
) -> Option<Vec<Hint>> {
    let nodes_of = |id: &String| list.get(id).and_then(nodes_of).unwrap_or(0);
    let all = list.values().filter_map(self::nodes_of).reduce(|one, other| one | other)?;
    if already.union(reusable).count() < requested {
        return Some(Vec::new());
    }
    let mut smallest = all.count_ones();
    let mut hints = Vec::new();
    // Every set of the nodes that have devices, once.
    let sets = std::iter::successors(Some(all & all.wrapping_neg()), |mask| {
        Some(mask.wrapping_sub(all) & all).filter(|next| *next != 0)
    });
    for mask in sets {
        let inside = list.keys().filter(|id| nodes_of(id) & mask != 0).count();
        if inside >= requested {
            smallest = smallest.min(mask.count_ones());
        }
        let aligned = |id: &&String| nodes_of(id) & mask != 0;
        // Devices that will be given in any case have to be inside, unless their nodes are unknown.
        if reusable.iter().any(|id| nodes_of(id) != 0 && nodes_of(id) & mask == 0) {
            continue;
        }
        let matching =
            reusable.iter().filter(aligned).count() + already.difference(reusable).filter(aligned).count();
        if matching >= requested {
            hints.push(mask);
        }
    }
    let hint = |mask: Nodes| Hint { nodes: Some(mask), preferred: mask.count_ones() == smallest };
    Some(hints.into_iter().map(hint).collect())
}

/// The best hint over all resources of a container, where the policy lets it run.
pub(crate) fn merge(policy: TopologyPolicy, resources: &[Option<Vec<Hint>>]) -> Option<Hint> {
    let anything = Hint { nodes: None, preferred: true };
    let nothing = Hint { nodes: None, preferred: false };
    let mut merged = vec![anything];
    for hints in resources {
        let fits = |hint: &&Hint| {
            policy != TopologyPolicy::SingleNumaNode
                || hint.preferred && hint.nodes.is_none_or(Nodes::is_power_of_two)
        };
        let hints = match hints {
            None => vec![anything],
            Some(hints) if hints.is_empty() => vec![nothing],
            Some(hints) => hints.iter().filter(fits).copied().collect(),
        };
        merged = merged.iter().flat_map(|one| hints.iter().filter_map(|other| both(*one, *other))).collect();
        merged.sort_by_key(|hint| (!hint.preferred, hint.nodes.map_or(64, Nodes::count_ones), hint.nodes));
        merged.dedup();
    }
    let best = merged.first().copied().unwrap_or(nothing);
    let admits = best.preferred || matches!(policy, TopologyPolicy::None | TopologyPolicy::BestEffort);
    admits.then_some(best)
}

/// Preferred only where both are, and want the same.
fn both(one: Hint, other: Hint) -> Option<Hint> {
    let preferred = one.preferred && other.preferred;
    match (one.nodes, other.nodes) {
        (Some(a), Some(b)) if a & b == 0 => None,
        (Some(a), Some(b)) => Some(Hint { nodes: Some(a & b), preferred: preferred && a == b }),
        (a, b) => Some(Hint { nodes: a.or(b), preferred }),
    }
}

/// The NUMA nodes of a device, if they are known.
pub(crate) fn nodes_of(device: &Device) -> Option<Nodes> {
    device.numa.and_then(|node| u32::try_from(node).ok()).and_then(|node| 1_u64.checked_shl(node))
}

//! Which whole GPUs to take together: those with the best connections, so that what is left is well connected too.
//!
//! A pair is worth 100 for each NVLink, and 10 to 60 for its way over PCIe, the figures of NVIDIA's plugin. A set is
//! worth what its pairs are. As there, the free GPUs are thought to be divided into sets of the size that is asked for,
//! the best division counts, and of its sets the best one: a choice that is good for itself alone can spoil two.

use crate::inventory::{Link, PciePath};

/// Up to so many GPUs all divisions are looked at: some million steps. With more the set grows from its best pairs.
const MOST_EXACT: usize = 16;

/// What each pair of GPUs is worth, by their positions.
pub(super) struct Worth {
    count: usize,
    pairs: Vec<u32>,
}

impl Worth {
    /// Asks `of` for each pair of `count` GPUs.
    pub(super) fn new(count: usize, of: impl Fn(usize, usize) -> u32) -> Self {
        let pairs = (0..count * count).map(|n| (n / count, n % count));
        Self { count, pairs: pairs.map(|(a, b)| if a == b { 0 } else { of(a.min(b), a.max(b)) }).collect() }
    }

    fn of(&self, a: usize, b: usize) -> u32 {
        self.pairs[a * self.count + b]
    }

    fn is_the_same_for_all(&self) -> bool {
        let mut pairs = (0..self.count).flat_map(|a| (a + 1..self.count).map(move |b| self.of(a, b)));
        let first = pairs.next();
        pairs.all(|worth| Some(worth) == first)
    }
}

/// What a pair is worth. Where the driver does not tell the way over PCIe, the NUMA nodes do.
pub(super) fn worth(link: Option<Link>, numa_nodes: [Option<u32>; 2]) -> u32 {
    let Link { nvlinks, pcie } = link.unwrap_or_default();
    let path = pcie.or(match numa_nodes {
        [Some(a), Some(b)] if a == b => Some(PciePath::Node),
        [Some(_), Some(_)] => Some(PciePath::System),
        _ => None,
    });
    let path = match path {
        None => 0,
        Some(PciePath::System) => 10,
        Some(PciePath::Node) => 20,
        Some(PciePath::HostBridge) => 30,
        Some(PciePath::Switches) => 40,
        Some(PciePath::Switch) => 50,
        Some(PciePath::Board) => 60,
    };
    100 * nvlinks + path
}

/// Chooses `needed` GPUs, all others being in `worth`: those of `taken` are in the set already, and `needed` more come
/// from the others. Ties go to what leaves the best rest, then to the lower positions.
pub(super) fn choose(worth: &Worth, taken: &[usize], needed: usize) -> Vec<usize> {
    let free: Vec<usize> = (0..worth.count).filter(|gpu| !taken.contains(gpu)).collect();
    if needed >= free.len() || needed == 0 || worth.is_the_same_for_all() {
        return free.into_iter().take(needed).collect();
    }
    if worth.count > MOST_EXACT {
        return grow(worth, taken, &free, needed);
    }
    let mut sets = Sets::new(worth, taken.len() + needed);
    let all = mask(0..worth.count);
    let taken = mask(taken.iter().copied());
    let (mut best, mut best_key) = (taken, None);
    each_subset(all & !taken, needed, taken, &mut |set| {
        let rest = all & !set;
        let key = (sets.worth[set] + sets.divided(rest), sets.worth[set], sets.worth[rest]);
        if best_key.is_none_or(|best| key > best) {
            best_key = Some(key);
            best = set;
        }
    });
    let set = best & !taken;
    free.into_iter().filter(|gpu| set & (1 << gpu) != 0).collect()
}

/// Sets of GPUs as bits.
struct Sets {
    size: usize,
    /// What each set is worth.
    worth: Vec<u32>,
    /// What its best division is worth, where that is known.
    divided: Vec<Option<u32>>,
}

impl Sets {
    fn new(pairs: &Worth, size: usize) -> Self {
        let count = 1 << pairs.count;
        let mut worth = vec![0; count];
        for set in 1..count {
            let lowest = set.trailing_zeros() as usize;
            let rest = set & (set - 1);
            worth[set] = worth[rest] + bits(rest).map(|other| pairs.of(lowest, other)).sum::<u32>();
        }
        Self { size, worth, divided: vec![None; count] }
    }

    /// What the best division of `set` is worth: into sets of the size, and one of what is left over.
    fn divided(&mut self, set: usize) -> u32 {
        let count = set.count_ones() as usize;
        if count <= self.size {
            // Fewer than a set are together what is left over.
            return self.worth[set];
        }
        if let Some(known) = self.divided[set] {
            return known;
        }
        let lowest = set & set.wrapping_neg();
        let mut best = 0;
        for size in [self.size, count % self.size].into_iter().filter(|size| *size > 0) {
            let mut parts = Vec::new();
            each_subset(set & !lowest, size - 1, lowest, &mut |part| parts.push(part));
            for part in parts {
                let rest = set & !part;
                // With what is left over gone, the rest is divided without any.
                best = best.max(self.worth[part] + self.divided(rest));
            }
        }
        self.divided[set] = Some(best);
        best
    }
}

/// Calls `found` with `with` and `size` bits of `of`, in all ways, the lowest bits first.
fn each_subset(of: usize, size: usize, with: usize, found: &mut impl FnMut(usize)) {
    if size == 0 {
        return found(with);
    }
    let mut rest = of;
    while rest.count_ones() as usize >= size {
        let lowest = rest & rest.wrapping_neg();
        rest &= !lowest;
        each_subset(rest, size - 1, with | lowest, found);
    }
}

fn bits(set: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize).filter(move |bit| set & (1 << bit) != 0)
}

fn mask(gpus: impl Iterator<Item = usize>) -> usize {
    gpus.fold(0, |mask, gpu| mask | 1 << gpu)
}

/// The set that grows from `taken`, or from the GPU from which the best one grows, each time by the best connected.
fn grow(worth: &Worth, taken: &[usize], free: &[usize], needed: usize) -> Vec<usize> {
    let from = |first: &[usize]| {
        let mut set: Vec<usize> = [taken, first].concat();
        let mut total = 0;
        while set.len() < taken.len() + needed {
            let gain = |gpu: usize| set.iter().map(|other| worth.of(*other, gpu)).sum::<u32>();
            let others = free.iter().copied().filter(|gpu| !set.contains(gpu));
            let Some(best) = others.rev().max_by_key(|gpu| gain(*gpu)) else { break };
            total += gain(best);
            set.push(best);
        }
        let mut chosen = set.split_off(taken.len());
        chosen.sort_unstable();
        (total, chosen)
    };
    let grown: Vec<_> =
        if taken.is_empty() { free.iter().map(|gpu| from(&[*gpu])).collect() } else { vec![from(&[])] };
    grown.into_iter().rev().max_by_key(|(total, _)| *total).map(|(_, chosen)| chosen).unwrap_or_default()
}

#[cfg(test)]
mod tests;

//! "Did you mean": the offered name that is nearest to one that is not.

use std::cmp::Reverse;

/// Further apart than this, names have nothing to do with each other.
const FARTHEST: usize = 2;

/// Names are compared up to this length; resource names have at most 63 characters.
const LONGEST: usize = 128;

/// The nearest of `offered`, if any is near.
pub(super) fn nearest<'a>(wanted: &str, offered: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // What people copy from nvidia-smi.
    let wanted = wanted.to_lowercase().replace('+', ".");
    if wanted.len() > LONGEST {
        return None;
    }
    let rank = |name: &str| {
        let common = wanted.bytes().zip(name.bytes()).take_while(|(one, other)| one == other).count();
        (distance(wanted.as_bytes(), name.as_bytes()), Reverse(common))
    };
    offered
        .map(|name| (rank(name), name))
        .filter(|((far, _), _)| *far <= FARTHEST)
        .min()
        .map(|(_, name)| name)
}

/// Letters to be put in, left out or changed to get from one to the other.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, cell) in other.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = (diagonal + usize::from(a != b)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
    }
    // The first cell is never updated, so it says nothing about an empty `other`.
    if other.is_empty() { one.len() } else { row.last().copied().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    const OFFERED: [&str; 4] =
        ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.me", "nvidia.com/mig-2g.20gb"];

    fn nearest(wanted: &str) -> Option<&'static str> {
        super::nearest(wanted, OFFERED.into_iter())
    }

    #[test]
    fn near_misses_are_found() {
        assert_eq!(nearest("nvidia.com/mig-2g.10gb"), Some("nvidia.com/mig-2g.20gb"));
        assert_eq!(nearest("nvidia.com/mig-1g.5gb"), Some("nvidia.com/mig-1g.10gb"));
        assert_eq!(nearest("nvidia.com/mig-1g.10gb+me"), Some("nvidia.com/mig-1g.10gb.me"));
        assert_eq!(nearest("nvidia.com/GPU"), Some("nvidia.com/gpu"));
        assert_eq!(nearest("nvidia.com/gpus"), Some("nvidia.com/gpu"));
    }

    #[test]
    fn what_has_nothing_to_do_with_it_is_not_suggested() {
        assert_eq!(nearest("nvidia.com/mig-7g.141gb"), None);
        assert_eq!(nearest("intel.com/sriov"), None);
        assert_eq!(nearest(&"x".repeat(1000)), None);
        assert_eq!(super::nearest("ab", std::iter::once("")), Some(""));
    }
}

//! What a MIG device's profile is called. Pure.
//!
//! The driver's own name comes first: from the device's name, then from its profile's. Only where it gives
//! neither is the name worked out, by the rule that go-nvlib and with it NVIDIA's plugin follow.

use crate::inventory::Profile;

/// `1g.10gb` out of `NVIDIA H100 80GB HBM3 MIG 1g.10gb`. Old drivers name the GPU alone: then `None`.
pub(super) fn from_device_name(name: &str) -> Option<Profile> {
    let (_, profile) = name.rsplit_once(" MIG ")?;
    spelt_by_driver(profile)
}

/// `1g.10gb` out of a GPU instance profile's `MIG 1g.10gb`; for a compute instance that is smaller than
/// its GPU instance, `1c.3g.40gb` out of `MIG 3g.40gb`.
pub(super) fn from_profile_name(name: &str, slices: Slices) -> Option<Profile> {
    let name = name.trim();
    let profile = spelt_by_driver(name.strip_prefix("MIG ").unwrap_or(name))?;
    if slices.compute == slices.gpu {
        return Some(profile);
    }
    format!("{}c.{profile}", slices.compute).parse().ok()
}

/// The driver's word for it. Letters that a resource name cannot have are made such that can: nobody has
/// seen a driver use any, and a slice under a slightly different name is worth more than none.
fn spelt_by_driver(name: &str) -> Option<Profile> {
    let name = name.trim();
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-') => c,
        _ => '-',
    };
    name.parse().ok().or_else(|| name.chars().map(plain).collect::<String>().parse().ok())
}

/// Slice counts of a MIG device: those of its compute instance, and of the GPU instance around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slices {
    /// `1` of `1c.3g.40gb`.
    pub(super) compute: u32,
    /// `3` of `1c.3g.40gb`.
    pub(super) gpu: u32,
}

/// The name by the rule, where the driver gives none. `profile_index` is nvml.h's enum index of the GPU
/// instance profile, where known; the attribute follows from it.
///
/// `None` for an index that this table does not have: such a profile differs in some unknown way from the
/// plain one of its size, whose name it must not take.
pub(super) fn by_rule(
    profile_index: Option<u32>,
    slices: Slices,
    memory_mib: u64,
    total_mib: Option<u64>,
) -> Option<Profile> {
    let (gpu_slices, attribute) = match profile_index {
        None => (slices.gpu, ""),
        Some(index) => {
            let (_, slices, attribute) = ATTRIBUTES.iter().find(|(known, ..)| *known == index)?;
            (*slices, *attribute)
        }
    };
    if gpu_slices == 0 || slices.compute == 0 {
        return None;
    }
    Some(Profile::new(slices.compute, gpu_slices, memory_gb(memory_mib, total_mib), attribute))
}

/// nvml.h's `NVML_GPU_INSTANCE_PROFILE_*`: index, GPU slices, and what the name says beyond the sizes.
/// `REV2` (9) is the one with twice the memory, which needs no word.
const ATTRIBUTES: [(u32, u32, &str); 18] = [
    (0, 1, ""),
    (1, 2, ""),
    (2, 3, ""),
    (3, 4, ""),
    (4, 7, ""),
    (5, 8, ""),
    (6, 6, ""),
    (7, 1, "+me"),
    (8, 2, "+me"),
    (9, 1, ""),
    (10, 1, "+gfx"),
    (11, 2, "+gfx"),
    (12, 4, "+gfx"),
    (13, 1, "-me"),
    (14, 2, "-me"),
    (15, 1, "+me.all"),
    (16, 2, "+me.all"),
    (17, 3, "+gfx"),
];

/// The memory in a name: the instance's share of the GPU, rounded up to eighths, of the GPU's total,
/// rounded up to GiB; the product is rounded half away from zero (go-nvlib's rule, in whole numbers).
/// Without a total, the instance's own memory rounded up to GiB, which is at most a few GB off.
fn memory_gb(memory_mib: u64, total_mib: Option<u64>) -> u64 {
    match total_mib {
        Some(total_mib) if total_mib > 0 => {
            let eighths = memory_mib.saturating_mul(8).div_ceil(total_mib);
            let whole_gb = total_mib.div_ceil(1024);
            eighths.saturating_mul(whole_gb).saturating_add(4) / 8
        }
        _ => memory_mib.div_ceil(1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> Option<Profile> {
        name.parse().ok()
    }

    fn whole(gpu: u32) -> Slices {
        Slices { compute: gpu, gpu }
    }

    /// Per GPU: total MiB, and per profile its name, enum index and memory in MiB. As `nvidia-smi` shows
    /// them; the totals of the A100 80GB, the two H100 80GB and the RTX PRO 6000 were seen too, the others
    /// are from memory.
    type Board = (&'static str, u64, &'static [(&'static str, u32, u64)]);

    const BOARDS: &[Board] = &[
        (
            "A30",
            24258,
            &[
                ("1g.6gb", 0, 5952),
                ("1g.6gb+me", 7, 5952),
                ("2g.12gb", 1, 11968),
                ("2g.12gb+me", 8, 11968),
                ("4g.24gb", 3, 24064),
            ],
        ),
        (
            "A100 40GB",
            40536,
            &[
                ("1g.5gb", 0, 4864),
                ("1g.5gb+me", 7, 4864),
                ("1g.10gb", 9, 9856),
                ("2g.10gb", 1, 9856),
                ("3g.20gb", 2, 19968),
                ("4g.20gb", 3, 19968),
                ("7g.40gb", 4, 40192),
            ],
        ),
        (
            "A100 80GB",
            81920,
            &[
                ("1g.10gb", 0, 9728),
                ("1g.10gb+me", 7, 9728),
                ("1g.20gb", 9, 19968),
                ("2g.20gb", 1, 19968),
                ("3g.40gb", 2, 40192),
                ("4g.40gb", 3, 40192),
                ("7g.80gb", 4, 80896),
            ],
        ),
        (
            "H100 80GB, SXM5 and PCIe",
            81559,
            &[
                ("1g.10gb", 0, 9984),
                ("1g.10gb+me", 7, 9984),
                ("1g.20gb", 9, 20096),
                ("2g.20gb", 1, 20096),
                ("3g.40gb", 2, 40448),
                ("4g.40gb", 3, 40448),
                ("7g.80gb", 4, 81152),
            ],
        ),
        (
            "H100 NVL",
            95830,
            &[
                ("1g.12gb", 0, 11008),
                ("1g.12gb+me", 7, 11008),
                ("1g.24gb", 9, 22144),
                ("2g.24gb", 1, 22144),
                ("3g.47gb", 2, 47488),
                ("4g.47gb", 3, 47488),
                ("7g.94gb", 4, 95360),
            ],
        ),
        (
            "GH200 96GB",
            97871,
            &[
                ("1g.12gb", 0, 11264),
                ("1g.12gb+me", 7, 11264),
                ("1g.24gb", 9, 23552),
                ("2g.24gb", 1, 23552),
                ("3g.48gb", 2, 47616),
                ("4g.48gb", 3, 47616),
                ("7g.96gb", 4, 95232),
            ],
        ),
        (
            "H200",
            143_771,
            &[
                ("1g.18gb", 0, 16384),
                ("1g.18gb+me", 7, 16384),
                ("1g.35gb", 9, 33024),
                ("2g.35gb", 1, 33024),
                ("3g.71gb", 2, 71168),
                ("4g.71gb", 3, 71168),
                ("7g.141gb", 4, 143_104),
            ],
        ),
        (
            "B200",
            183_359,
            &[("1g.23gb", 0, 20992), ("1g.23gb+me", 7, 20992), ("1g.45gb", 9, 45312), ("2g.45gb", 1, 45312)],
        ),
        (
            "RTX PRO 6000 Blackwell",
            97887,
            &[
                ("1g.24gb", 0, 24192),
                ("1g.24gb+me", 7, 24192),
                ("1g.24gb+gfx", 10, 24192),
                ("1g.24gb+me.all", 15, 24192),
                ("1g.24gb-me", 13, 24192),
                ("2g.48gb", 1, 48512),
                ("2g.48gb+gfx", 11, 48512),
                ("2g.48gb+me.all", 16, 48512),
                ("2g.48gb-me", 14, 48512),
                ("4g.96gb", 3, 97408),
                ("4g.96gb+gfx", 12, 97408),
            ],
        ),
    ];

    #[test]
    fn the_rule_gives_the_drivers_names_on_every_board_of_known_size() {
        for (board, total, profiles) in BOARDS {
            for (name, index, memory) in *profiles {
                let slices = whole(profile(name).unwrap().gpu_slices().unwrap());
                let ruled = by_rule(Some(*index), slices, *memory, Some(*total));
                assert_eq!(ruled, profile(name), "{board}");
            }
        }
    }

    #[test]
    fn names_follow_the_total_that_the_driver_reports() {
        // Boards of one type were seen with both totals, and both names.
        assert_eq!(by_rule(Some(0), whole(1), 22528, Some(189_471)), profile("1g.23gb"));
        assert_eq!(by_rule(Some(0), whole(1), 22528, Some(193_000)), profile("1g.24gb"));
        assert_eq!(by_rule(Some(0), whole(1), 9984, None), profile("1g.10gb"));
    }

    #[test]
    fn a_device_name_ends_in_its_profile() {
        assert_eq!(from_device_name("NVIDIA B200 MIG 4g.90gb"), profile("4g.90gb"));
        assert_eq!(from_device_name("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb"), profile("1c.3g.40gb"));
        assert_eq!(from_device_name("Some MIG Board MIG 1g.24gb+me.all"), profile("1g.24gb+me.all"));
        assert_eq!(from_device_name("NVIDIA A100-SXM4-40GB"), None);
        assert_eq!(from_device_name("NVIDIA A100 MIG "), None);
    }

    #[test]
    fn an_unheard_of_name_is_kept_as_far_as_it_can_be_written() {
        assert_eq!(from_device_name("NVIDIA X900 MIG half.gpu-v2"), profile("half.gpu-v2"));
        assert_eq!(from_device_name("NVIDIA X900 MIG 1G.10GB (new)"), profile("1g.10gb--new-"));
        assert_eq!(from_device_name("NVIDIA X900 MIG (new)"), None);
    }

    #[test]
    fn a_profile_name_gets_the_compute_instances_size_in_front() {
        assert_eq!(from_profile_name("MIG 1g.10gb+me", whole(1)), profile("1g.10gb+me"));
        assert_eq!(from_profile_name("3g.40gb", whole(3)), profile("3g.40gb"));
        let part = Slices { compute: 2, gpu: 3 };
        assert_eq!(from_profile_name("MIG 3g.40gb", part), profile("2c.3g.40gb"));
        assert_eq!(by_rule(Some(2), part, 40448, Some(81559)), profile("2c.3g.40gb"));
        assert_eq!(from_profile_name("", whole(1)), None);
    }

    #[test]
    fn a_profile_outside_the_table_never_takes_a_known_ones_name() {
        assert_eq!(by_rule(Some(18), whole(1), 9984, Some(81559)), None);
        assert_eq!(by_rule(None, whole(1), 9984, Some(81559)), profile("1g.10gb"));
        assert_eq!(by_rule(None, Slices { compute: 0, gpu: 0 }, 0, None), None);
    }
}

//! MIG profile names, e.g. `2g.20gb`, `1c.3g.40gb`, `1g.10gb+me`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A MIG profile's name as the driver spells it.
///
/// Names of the known form `[<C>c.]<G>g.<GB>gb[+attribute|-attribute]` can be taken apart; a driver newer than this
/// program may use others, which are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Profile(String);

/// The text cannot be a profile's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no MIG profile name: lower-case letters, digits and '.', '+', '-' are allowed, e.g. 1g.10gb"
)]
pub struct InvalidProfile(String);

impl Profile {
    /// Puts a name together, in go-nvlib's order: `<C>c.` only where the compute instance is smaller than
    /// its GPU instance, then GPU slices, memory in GB, and the attribute with its sign (`+me`, `-me`,
    /// `+me.all`, `+gfx`, or nothing).
    pub fn new(compute_slices: u32, gpu_slices: u32, memory_gb: u64, attribute: &str) -> Self {
        let compute =
            if compute_slices == gpu_slices { String::new() } else { format!("{compute_slices}c.") };
        Self(format!("{compute}{gpu_slices}g.{memory_gb}gb{attribute}"))
    }

    /// A name for a profile that has none and of which only sizes are known, e.g. `id91.20sm.12032mib`. It
    /// is unlike any that the driver gives, so such devices do not pass for others.
    pub fn unnamed(profile_id: Option<u32>, sm_count: u32, memory_mib: u64) -> Self {
        let id = profile_id.map(|id| format!("id{id}.")).unwrap_or_default();
        Self(format!("{id}{sm_count}sm.{memory_mib}mib"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compute slices of the compute instance: 1 for `1c.3g.40gb`, 3 for `3g.40gb`.
    pub fn compute_slices(&self) -> Option<u32> {
        self.parts().map(|parts| parts.compute.unwrap_or(parts.gpu))
    }

    /// Compute slices of the GPU instance: 3 for `1c.3g.40gb`.
    pub fn gpu_slices(&self) -> Option<u32> {
        self.parts().map(|parts| parts.gpu)
    }

    /// The memory in the name, in GB.
    pub fn memory_gb(&self) -> Option<u64> {
        self.parts().map(|parts| parts.memory_gb)
    }

    fn parts(&self) -> Option<Parts> {
        let end = self.0.find(['+', '-']).unwrap_or(self.0.len());
        let mut fields = self.0[..end].split('.').rev();
        let memory_gb = fields.next()?.strip_suffix("gb")?.parse().ok()?;
        let gpu = fields.next()?.strip_suffix('g')?.parse().ok()?;
        let compute = match fields.next() {
            None => None,
            Some(field) => Some(field.strip_suffix('c')?.parse().ok()?),
        };
        fields.next().is_none().then_some(Parts { compute, gpu, memory_gb })
    }
}

struct Parts {
    compute: Option<u32>,
    gpu: u32,
    memory_gb: u64,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Profile {
    type Err = InvalidProfile;

    fn from_str(text: &str) -> Result<Self, InvalidProfile> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '+' | '-');
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidProfile(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Profile {
    type Error = InvalidProfile;

    fn try_from(text: String) -> Result<Self, InvalidProfile> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_read_from_every_known_form() {
        let parts = |name: &str| {
            let profile: Profile = name.parse().unwrap();
            (profile.compute_slices(), profile.gpu_slices(), profile.memory_gb())
        };
        assert_eq!(parts("2g.20gb"), (Some(2), Some(2), Some(20)));
        assert_eq!(parts("1c.3g.40gb"), (Some(1), Some(3), Some(40)));
        assert_eq!(parts("1g.10gb+me"), (Some(1), Some(1), Some(10)));
        assert_eq!(parts("1g.24gb+me.all"), (Some(1), Some(1), Some(24)));
        assert_eq!(parts("2g.48gb-me"), (Some(2), Some(2), Some(48)));
        assert_eq!(parts("half.a.gpu"), (None, None, None));
    }

    #[test]
    fn a_made_up_name_is_a_valid_one_without_parts() {
        for (id, name) in [(Some(91), "id91.20sm.12032mib"), (None, "20sm.12032mib")] {
            let profile = Profile::unnamed(id, 20, 12032);
            assert_eq!(name.parse(), Ok(profile.clone()));
            assert_eq!(profile.gpu_slices(), None);
        }
    }

    #[test]
    fn a_name_with_other_characters_is_refused() {
        for name in ["", "1g 10gb", "1G.10GB", "1g/10gb", "+me", "1g.10gb\n"] {
            assert_eq!(name.parse::<Profile>(), Err(InvalidProfile(name.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn a_built_name_comes_back_from_its_text(
            c in 1_u32..9, g in 1_u32..9, gb in 1_u64..400,
            attribute in prop::sample::select(vec!["", "+me", "-me", "+me.all", "+gfx"]),
        ) {
            let built = Profile::new(c, g, gb, attribute);
            let read: Profile = built.to_string().parse().unwrap();
            prop_assert_eq!(&read, &built);
            prop_assert_eq!(read.compute_slices(), Some(c));
            prop_assert_eq!(read.gpu_slices(), Some(g));
            prop_assert_eq!(read.memory_gb(), Some(gb));
        }
    }
}

//! GPU instances and compute instances, in their short and long forms.
//!
//! An instance is a profile name (`3g.40gb`), a profile with its compute instances (`3g.40gb: [1c, 2c]`),
//! or a map with all keys. A compute instance is a number of slices (`1c`) or a map with all keys.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A GPU instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Profile name, e.g. `3g.40gb`.
    pub profile: String,
    /// As many instances like this one; 0 is 1, so that a default is one instance.
    #[serde(skip_serializing_if = "is_one")]
    pub count: u32,
    /// First memory slice; where absent, the first that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
    /// GPU instance ID; where absent, the first that is free among those of its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gi: Option<u32>,
    /// MIG index of its only compute instance; where absent, the first that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// UUID of its only compute instance; where absent, derived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Compute instances: where absent, one that spans the GPU instance; empty for a half-made instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Vec<ComputeInstance>>,
    /// Another number says that it was destroyed and made again; [`Node::update`](crate::Node::update) gives new
    /// instances one of their own.
    #[serde(skip_serializing_if = "is_first")]
    pub generation: u32,
    /// It is there without its capability files, and its compute instances too: a destroy failed late.
    #[serde(skip_serializing_if = "super::is_false")]
    pub access_file_gone: bool,
    /// NVML does not show its MIG devices, though its files are there.
    #[serde(skip_serializing_if = "super::is_false")]
    pub hidden: bool,
    /// What the profile is, where the catalogue does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_profile: Option<UnknownProfile>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_first(generation: &u32) -> bool {
    *generation == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_one(count: &u32) -> bool {
    *count <= 1
}

/// A compute instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeInstance {
    /// Compute slices, written `1c`.
    #[serde(serialize_with = "write_slices")]
    pub slices: u32,
    /// Compute instance ID; where absent, the first that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci: Option<u32>,
    /// First compute slice of the GPU instance; where absent, the first that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
    /// MIG index; where absent, the first that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// UUID; where absent, derived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// It is there without its capability file: a destroy failed late.
    #[serde(skip_serializing_if = "super::is_false")]
    pub access_file_gone: bool,
    /// Which of its GPU instance's engines is its first, for the UUID; where absent, the one with its ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn write_slices<S: serde::Serializer>(slices: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{slices}c"))
}

/// Which parts of its chip a GPU's memory slices are: GPU instance IDs are those of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PlacementMap {
    /// In order: seven eighths are the IDs 7 to 13.
    Straight,
    /// The second half of the chip first: 11 to 14, then 7 to 9; there is no 10.
    HalvesSwapped,
    /// In each half the second quarter first: 9, 10, 7, 8, 13, 14, 11; there is no 12.
    QuartersSwapped,
}

impl PlacementMap {
    /// The usual one of the GPU with this minor.
    pub(crate) fn usual(minor: u32) -> Self {
        [Self::Straight, Self::HalvesSwapped, Self::QuartersSwapped][minor as usize % 3]
    }

    /// The part of the chip, of `parts` equal ones, that is at this place.
    pub(crate) fn part(self, place: u32, parts: u32) -> u32 {
        match self {
            Self::Straight => place,
            Self::HalvesSwapped => place ^ (parts / 2),
            Self::QuartersSwapped => place ^ (parts / 4),
        }
    }
}

/// A profile that is in no table: the driver lists instances of it, and no profile query answers with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UnknownProfile {
    /// Profile ID.
    pub id: u32,
    /// Compute slices.
    pub g: u32,
    /// Memory slices.
    pub size: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors.
    pub sm: u32,
}

impl Instance {
    /// One instance of this profile, all else left to the fake.
    #[must_use]
    pub fn new(profile: &str) -> Self {
        Self { profile: profile.to_owned(), count: 1, ..Self::default() }
    }

    /// At this memory slice.
    #[must_use]
    pub fn at(mut self, start: u32) -> Self {
        self.start = Some(start);
        self
    }

    /// With this GPU instance ID.
    #[must_use]
    pub fn gi(mut self, gi: u32) -> Self {
        self.gi = Some(gi);
        self
    }

    /// With this MIG index.
    #[must_use]
    pub fn index(mut self, index: u32) -> Self {
        self.index = Some(index);
        self
    }

    /// With this UUID.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// With compute instances of these sizes, in compute slices; none for a half-made instance.
    #[must_use]
    pub fn compute(mut self, slices: &[u32]) -> Self {
        self.compute = Some(slices.iter().map(|slices| ComputeInstance::new(*slices)).collect());
        self
    }

    /// Not shown by NVML.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// With a profile that is in no table.
    #[must_use]
    pub fn unknown_profile(mut self, profile: UnknownProfile) -> Self {
        self.unknown_profile = Some(profile);
        self
    }

    pub(super) fn expanded(mut self) -> impl Iterator<Item = Self> {
        let count = std::mem::replace(&mut self.count, 1);
        std::iter::repeat_n(self, count.max(1) as usize)
    }
}

impl ComputeInstance {
    /// One of this many compute slices, all else left to the fake.
    #[must_use]
    pub fn new(slices: u32) -> Self {
        Self { slices, ..Self::default() }
    }
}

impl From<&str> for Instance {
    fn from(profile: &str) -> Self {
        Self::new(profile)
    }
}

/// The long forms, and the keys that they have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LongInstance {
    profile: String,
    #[serde(default = "super::one")]
    count: u32,
    start: Option<u32>,
    gi: Option<u32>,
    index: Option<u32>,
    uuid: Option<String>,
    compute: Option<Vec<ComputeInstance>>,
    #[serde(default)]
    generation: u32,
    #[serde(default)]
    access_file_gone: bool,
    #[serde(default)]
    hidden: bool,
    unknown_profile: Option<UnknownProfile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LongComputeInstance {
    slices: String,
    ci: Option<u32>,
    start: Option<u32>,
    index: Option<u32>,
    uuid: Option<String>,
    #[serde(default)]
    access_file_gone: bool,
    engine: Option<u32>,
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Instance;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a profile (3g.40gb), a profile with compute instances (3g.40gb: [1c, 2c]), or keys (profile: 3g.40gb)")
            }

            fn visit_str<E: de::Error>(self, profile: &str) -> Result<Instance, E> {
                Ok(Instance::new(profile))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Instance, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::missing_field("profile"));
                };
                // A profile's name starts with a digit, a key with a letter.
                if key.starts_with(|first: char| first.is_ascii_digit()) {
                    let compute = map.next_value()?;
                    if let Some(second) = map.next_key::<String>()? {
                        return Err(de::Error::custom(format!(
                            "{key:?} takes no second key ({second:?}); write `profile: {key}` with `compute:`"
                        )));
                    }
                    return Ok(Instance { compute: Some(compute), ..Instance::new(&key) });
                }
                let long =
                    LongInstance::deserialize(MapAccessDeserializer::new(Unread { key: Some(key), map }))?;
                Ok(Instance {
                    profile: long.profile,
                    count: long.count,
                    start: long.start,
                    gi: long.gi,
                    index: long.index,
                    uuid: long.uuid,
                    compute: long.compute,
                    generation: long.generation,
                    access_file_gone: long.access_file_gone,
                    hidden: long.hidden,
                    unknown_profile: long.unknown_profile,
                })
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for ComputeInstance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = ComputeInstance;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("compute slices (1c), or keys (slices: 1c)")
            }

            fn visit_str<E: de::Error>(self, slices: &str) -> Result<ComputeInstance, E> {
                read_slices(slices).map(ComputeInstance::new)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ComputeInstance, A::Error> {
                let long = LongComputeInstance::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ComputeInstance {
                    slices: read_slices(&long.slices)?,
                    ci: long.ci,
                    start: long.start,
                    index: long.index,
                    uuid: long.uuid,
                    access_file_gone: long.access_file_gone,
                    engine: long.engine,
                })
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

fn read_slices<E: de::Error>(text: &str) -> Result<u32, E> {
    let slices = text.strip_suffix('c').and_then(|digits| digits.parse().ok());
    slices.ok_or_else(|| de::Error::custom(format!("{text:?} is no number of compute slices, as 1c or 2c")))
}

/// A map whose first key was read, to see which form it has.
struct Unread<A> {
    key: Option<String>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Unread<A> {
    type Error = A::Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        match self.key.take() {
            Some(key) => seed.deserialize(de::value::StringDeserializer::new(key)).map(Some),
            None => self.map.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

//! GPU models and their MIG profiles, as data: `catalogue.yaml`, compiled in.

use std::sync::LazyLock;

use serde::Deserialize;

/// A GPU model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What a description names it by, e.g. `h100-80gb-sxm5`.
    pub key: String,
    /// Product names as the driver gives them; the first is the default.
    pub products: Vec<String>,
    /// PCI device and vendor ID, e.g. `0x233010DE`.
    pub pci_device_id: u32,
    /// `ampere`, `hopper`, …
    pub architecture: Architecture,
    /// Major and minor, e.g. `9.0`.
    pub compute_capability: String,
    /// Compute slices of the whole GPU; 0 where the model knows no MIG.
    pub compute_slices: u32,
    /// Memory slices of the whole GPU; placements are in these.
    pub memory_slices: u32,
    /// Memory of the whole GPU, in MiB.
    pub memory_mib: u64,
    /// Fields above that no real output for this board was seen for.
    pub uncertain: Vec<String>,
    /// MIG profiles.
    pub profiles: Vec<Profile>,
}

/// A GPU's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Architecture {
    Volta,
    Turing,
    Ampere,
    Hopper,
    Blackwell,
}

/// A MIG profile of a model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name, e.g. `1g.10gb+me`.
    pub name: String,
    /// `NVML_GPU_INSTANCE_PROFILE_*`: what profile queries are asked with.
    pub index: u32,
    /// The profile's ID: what profile queries answer.
    pub id: u32,
    /// Compute slices.
    pub g: u32,
    /// Memory slices.
    pub size: u32,
    /// First memory slices it may be placed at.
    pub starts: Vec<u32>,
    /// Instances a GPU can have of this profile alone.
    pub max: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors.
    pub sm: u32,
    /// Engines that its compute instances share.
    pub engines: Engines,
    /// Fields that no real output for this board was seen for, or that differ between drivers.
    pub uncertain: Vec<String>,
    /// Fields that no source gives: made up from the model's siblings.
    #[serde(default)]
    pub estimated: Vec<String>,
}

/// Engines of a GPU instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Engines {
    pub copy: u32,
    pub decoders: u32,
    pub encoders: u32,
    pub jpeg: u32,
    pub ofa: u32,
}

impl Profile {
    /// Whether it holds media engines that only one instance can have.
    pub(crate) fn has_media(&self) -> bool {
        self.name.ends_with("+me")
    }

    /// Whether it takes all media engines of the GPU.
    pub(crate) fn has_all_media(&self) -> bool {
        self.name.ends_with("+me.all")
    }

    /// Whether it does without media engines, and so can stand beside one that takes them all.
    pub(crate) fn has_no_media(&self) -> bool {
        self.name.ends_with("-me")
    }
}

impl Model {
    /// Whether the model can be split at all.
    pub fn knows_mig(&self) -> bool {
        !self.profiles.is_empty()
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }
}

/// Every model.
pub fn models() -> &'static [Model] {
    static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
        #[derive(Deserialize)]
        struct File {
            models: Vec<Model>,
        }
        #[expect(clippy::expect_used, reason = "the text is compiled in, and a test reads it")]
        serde_saphyr::from_str::<File>(include_str!("../catalogue.yaml"))
            .expect("catalogue.yaml is well-formed")
            .models
    });
    &MODELS
}

/// The model of that key.
pub fn model(key: &str) -> Option<&'static Model> {
    models().iter().find(|model| model.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placement_lies_within_its_gpu() {
        assert_eq!(models().len(), 12);
        for model in models() {
            for profile in &model.profiles {
                assert!(profile.g <= model.compute_slices, "{} {}", model.key, profile.name);
                for start in &profile.starts {
                    assert!(start + profile.size <= model.memory_slices, "{} {}", model.key, profile.name);
                }
            }
        }
    }

    /// The rule that clients name profiles by: share of the memory, in eighths, of the whole in GiB.
    #[test]
    fn memory_sizes_give_the_profile_its_name() {
        for model in models() {
            for profile in &model.profiles {
                let eighths = (8 * profile.memory_mib).div_ceil(model.memory_mib);
                let whole_gib = model.memory_mib.div_ceil(1024);
                let gib = (eighths * whole_gib + 4) / 8;
                let name = format!("{}g.{gib}gb", profile.g);
                assert!(profile.name.starts_with(&name), "{}: {} is not {name}", model.key, profile.name);
            }
        }
    }
}

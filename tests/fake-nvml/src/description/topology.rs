//! How GPUs are connected: a known machine, or PCIe trees and `NVLinks` that are written out.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};

/// How the GPUs of a node are connected. GPUs are named by index. What is written out takes the place of
/// what the preset says about the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Topology {
    /// A machine that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Host bridges, each with what is below it. A GPU that is in none has a host bridge of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie: Option<Vec<Branch>>,
    /// GPUs that share a board.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub boards: Vec<Vec<u32>>,
    /// `NVLinks` from GPU to GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks: Option<Vec<NvLinks>>,
    /// `NVLinks` from GPUs to switches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvswitch: Option<NvSwitch>,
    /// Whether the `NVLinks` of a GPU in MIG mode are active; there is no peer-to-peer traffic over them either way.
    pub active_with_mig: bool,
}

/// A machine whose connections are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Preset {
    /// Eight GPUs in a cube mesh of `NVLinks`, pairs of them behind a PCIe switch, as the DGX-1 with V100.
    Dgx1,
    /// All GPUs on `NVSwitches`, as HGX boards.
    Hgx,
    /// Pairs of PCIe cards, each pair on a host bridge and joined by `NVLink` bridges.
    Bridges,
    /// No `NVLink`; pairs of GPUs behind a PCIe switch, two such switches behind a third, one or more of those
    /// on the host bridge of each NUMA node.
    PcieTree,
}

/// A place in a PCIe tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Branch {
    /// The GPU of this index.
    Gpu(u32),
    /// A switch, or at the top a host bridge, and what is below it.
    Switch(Vec<Branch>),
}

/// `NVLinks` between two GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NvLinks {
    /// The two GPUs.
    pub gpus: [u32; 2],
    /// How many.
    pub links: u32,
    /// Whether they are up.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub active: bool,
}

/// `NVLinks` between GPUs and switches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NvSwitch {
    /// The GPUs.
    pub gpus: Vec<u32>,
    /// How many links each GPU has.
    pub links: u32,
    /// How many switches they are spread over.
    #[serde(default = "four")]
    pub switches: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            preset: None,
            pcie: None,
            boards: Vec::new(),
            nvlinks: None,
            nvswitch: None,
            active_with_mig: true,
        }
    }
}

impl From<Preset> for Topology {
    fn from(preset: Preset) -> Self {
        Self { preset: Some(preset), ..Self::default() }
    }
}

impl Topology {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// With these `NVLinks`, as pairs of GPUs and a number, besides those that were added before.
    #[must_use]
    pub fn nvlinks(mut self, a: u32, b: u32, links: u32) -> Self {
        self.nvlinks.get_or_insert_default().push(NvLinks { gpus: [a, b], links, active: true });
        self
    }

    /// With this below one more host bridge.
    #[must_use]
    pub fn host_bridge(mut self, below: impl IntoIterator<Item = Branch>) -> Self {
        self.pcie.get_or_insert_default().push(Branch::switch(below));
        self
    }
}

impl Branch {
    /// A switch with this below it.
    pub fn switch(below: impl IntoIterator<Item = Self>) -> Self {
        Self::Switch(below.into_iter().collect())
    }

    /// A switch with these GPUs.
    pub fn gpus(gpus: impl IntoIterator<Item = u32>) -> Self {
        Self::switch(gpus.into_iter().map(Self::Gpu))
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_yes(active: &bool) -> bool {
    *active
}

fn four() -> u32 {
    4
}

impl<'de> Deserialize<'de> for Branch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Branch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the index of a GPU, or a list of what is below a PCIe switch, as [[0, 1], [2, 3]]",
                )
            }

            fn visit_u64<E: de::Error>(self, gpu: u64) -> Result<Branch, E> {
                let gpu = u32::try_from(gpu);
                gpu.map(Branch::Gpu)
                    .map_err(|_outside| E::invalid_value(de::Unexpected::Other("large number"), &self))
            }

            fn visit_i64<E: de::Error>(self, gpu: i64) -> Result<Branch, E> {
                let gpu = u32::try_from(gpu);
                gpu.map(Branch::Gpu)
                    .map_err(|_outside| E::invalid_value(de::Unexpected::Other("negative number"), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut below: A) -> Result<Branch, A::Error> {
                let mut branches = Vec::new();
                while let Some(branch) = below.next_element()? {
                    branches.push(branch);
                }
                Ok(Branch::Switch(branches))
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

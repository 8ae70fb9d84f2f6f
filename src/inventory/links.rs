//! How whole GPUs are connected with each other.

use std::collections::BTreeMap;

/// What two GPUs have between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Active NVLinks: those from one to the other, and where both are on switches, those of the GPU that has fewer.
    pub nvlinks: u32,
    /// The way over PCIe, where the driver tells it.
    pub pcie: Option<PciePath>,
}

/// What lies between two GPUs on the way over PCIe, the longest first (nvml.h, `nvmlGpuTopologyLevel_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PciePath {
    /// Two NUMA nodes.
    System,
    /// Host bridges of one NUMA node.
    Node,
    /// One host bridge.
    HostBridge,
    /// Several switches.
    Switches,
    /// One switch.
    Switch,
    /// Nothing but their board.
    Board,
}

/// The links of a node, by pairs of UUIDs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links(BTreeMap<(String, String), Link>);

impl Links {
    /// What is between two GPUs; `None` where nobody has asked, or the driver did not say.
    pub fn between(&self, a: &str, b: &str) -> Option<Link> {
        self.0.get(&key(a, b)).copied()
    }

    /// Takes what is between two GPUs.
    pub fn insert(&mut self, a: &str, b: &str, link: Link) {
        self.0.insert(key(a, b), link);
    }

    /// Takes all of `other`.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many pairs are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no pair is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key(a: &str, b: &str) -> (String, String) {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    (first.to_owned(), second.to_owned())
}

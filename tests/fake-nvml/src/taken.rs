//! What is derived for one GPU and must not be another's.

use std::collections::BTreeSet;

use crate::{Description, pci::default_pci};

/// Highest minor number of a GPU that has capability minors.
pub(crate) const LAST_GPU_MINOR: u32 = 31;

/// Minors and addresses that are taken: what is derived for one GPU must not be another's.
#[derive(Debug, Default)]
pub(crate) struct Written {
    minors: BTreeSet<u32>,
    addresses: BTreeSet<String>,
}

impl Written {
    pub(crate) fn of(description: &Description) -> Self {
        Self {
            minors: description.gpus.iter().filter_map(|gpu| gpu.minor).collect(),
            addresses: description.gpus.iter().filter_map(|gpu| gpu.pci.clone()).collect(),
        }
    }

    /// The index, or the next minor that is free.
    pub(crate) fn minor(&mut self, index: u32) -> u32 {
        let minors = (index..=LAST_GPU_MINOR).chain(0..index);
        let free = minors.into_iter().find(|minor| !self.minors.contains(minor)).unwrap_or(index);
        self.minors.insert(free);
        free
    }

    /// The index's address, or the next one that is free.
    pub(crate) fn address(&mut self, index: u32) -> String {
        let addresses = (index..=index + LAST_GPU_MINOR).map(default_pci);
        let free = addresses.into_iter().find(|address| !self.addresses.contains(address));
        let free = free.unwrap_or_else(|| default_pci(index));
        self.addresses.insert(free.clone());
        free
    }
}

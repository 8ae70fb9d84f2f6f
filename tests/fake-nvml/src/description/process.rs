//! Processes that use a GPU or an instance.

use serde::{Deserialize, Serialize};

use crate::state::GpuState;

/// A process that uses a GPU, or an instance of it. What it uses cannot be destroyed or reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Process {
    /// Process ID.
    pub pid: u32,
    /// What `nvmlSystemGetProcessName` answers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The GPU instance that it uses; where absent, the GPU as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gi: Option<u32>,
    /// The compute instance that it uses; where absent, all of the GPU instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci: Option<u32>,
    /// Memory that it uses, in MiB.
    #[serde(default)]
    pub memory_mib: u64,
    /// It holds what it uses and is in no list, as one that only subscribes to an instance.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub unlisted: bool,
}

impl Process {
    /// A process of this ID that uses a GPU as a whole.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self { pid, ..Self::default() }
    }

    /// Uses this compute instance.
    #[must_use]
    pub fn on_instance(mut self, gi: u32, ci: u32) -> Self {
        self.gi = Some(gi);
        self.ci = Some(ci);
        self
    }

    /// Uses so much memory.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Is in no list.
    #[must_use]
    pub fn unlisted(mut self) -> Self {
        self.unlisted = true;
        self
    }

    /// Whether it uses something of this GPU instance.
    pub(crate) fn uses_instance(&self, gi: u32) -> bool {
        self.gi == Some(gi)
    }

    /// Whether it uses this compute instance, or the whole GPU instance.
    pub(crate) fn uses_compute(&self, gi: u32, ci: u32) -> bool {
        self.gi == Some(gi) && self.ci.is_none_or(|own| own == ci)
    }

    /// What is wrong with it on this GPU.
    pub(crate) fn problem(&self, gpu: &GpuState) -> Option<String> {
        let Some(gi) = self.gi else {
            return self.ci.map(|ci| format!("ci: {ci} needs gi, whose compute instance it is"));
        };
        let Some(instance) = gpu.instance(gi) else {
            let ids: Vec<u32> = gpu.instances.iter().map(|instance| instance.gi).collect();
            return Some(format!("gi: {gi} is no GPU instance; there are {ids:?}"));
        };
        let ci = self.ci?;
        let ids: Vec<u32> = instance.compute.iter().map(|compute| compute.ci).collect();
        (!ids.contains(&ci)).then(|| format!("ci: {ci} is no compute instance of {gi}; there are {ids:?}"))
    }
}

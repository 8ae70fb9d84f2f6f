//! Events, and the file that carries them from a node's owner to the loaded library.
//!
//! `fake-nvml/events` has one line for each event: GPU UUID, type bits, data, GPU instance ID and compute
//! instance ID (`-` for none), and `split` or `whole` for whether the GPU had an instance. It only grows; a
//! client sees what was added after it registered.

use serde::{Deserialize, Serialize};

use crate::state::GpuState;

/// What NVML gives for an instance ID when an event belongs to no instance.
pub(crate) const NO_INSTANCE: u32 = u32::MAX;

const XID: u64 = 8;
pub(crate) const MIG_CONFIG_CHANGE: u64 = 0x100;

/// The types of events that a GPU can be said to offer: nvml.h's `nvmlEventType…` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[repr(u64)]
pub enum EventType {
    /// `SingleBitEccError`
    SingleBitEcc = 0x1,
    /// `DoubleBitEccError`
    DoubleBitEcc = 0x2,
    /// `PState`
    PState = 0x4,
    /// `XidCriticalError`
    Xid = XID,
    /// `Clock`
    Clock = 0x10,
    /// `PowerSourceChange`
    PowerSource = 0x80,
    /// `MigConfigChange`
    MigConfigChange = MIG_CONFIG_CHANGE,
    /// `NonFatalPoisonError`
    NonFatalPoison = 0x1000,
    /// `FatalPoisonError`
    FatalPoison = 0x2000,
    /// `GpuUnavailableError`
    GpuUnavailable = 0x4000,
    /// `GpuRecoveryAction`
    RecoveryAction = 0x8000,
}

/// Something that the driver tells clients that wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub(crate) gpu: u32,
    pub(crate) kind: u64,
    pub(crate) data: u64,
    pub(crate) gi: Option<u32>,
    pub(crate) ci: Option<u32>,
}

impl Event {
    /// A critical error of this Xid, on GPU 0 as a whole until told otherwise.
    #[must_use]
    pub fn xid(xid: u64) -> Self {
        Self::other(XID, xid)
    }

    /// MIG mode or a layout changed.
    #[must_use]
    pub fn mig_config_change() -> Self {
        Self::other(MIG_CONFIG_CHANGE, 0)
    }

    /// An event of any type: its `nvmlEventType…` bit, and what it carries as `eventData`.
    #[must_use]
    pub fn other(kind: u64, data: u64) -> Self {
        Self { gpu: 0, kind, data, gi: None, ci: None }
    }

    /// On the GPU of this index.
    #[must_use]
    pub fn on_gpu(mut self, index: u32) -> Self {
        self.gpu = index;
        self
    }

    /// On all of a GPU instance.
    #[must_use]
    pub fn on_gpu_instance(mut self, gi: u32) -> Self {
        self.gi = Some(gi);
        self.ci = None;
        self
    }

    /// On one compute instance of a GPU instance.
    #[must_use]
    pub fn on_instance(mut self, gi: u32, ci: u32) -> Self {
        self.gi = Some(gi);
        self.ci = Some(ci);
        self
    }

    pub(crate) fn line(&self, gpu: &GpuState) -> String {
        self.line_of(&gpu.uuid, !gpu.instances.is_empty())
    }

    /// The event's line, of the GPU with this UUID, which has an instance or has none.
    pub(crate) fn line_of(&self, uuid: &str, split: bool) -> String {
        let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let split = if split { SPLIT } else { WHOLE };
        format!("{uuid} {:#x} {} {} {} {split}\n", self.kind, self.data, id(self.gi), id(self.ci))
    }
}

const SPLIT: &str = "split";
const WHOLE: &str = "whole";

/// An event as a client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) gpu: String,
    pub(crate) kind: u64,
    pub(crate) data: u64,
    pub(crate) gi: u32,
    pub(crate) ci: u32,
    /// Whether the GPU had an instance when it happened.
    pub(crate) split: bool,
}

/// Reads a line; a broken one is nobody's event.
pub(crate) fn parse(line: &str) -> Option<Received> {
    let mut words = line.split_whitespace();
    let gpu = words.next()?.to_owned();
    let kind = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    let data = words.next()?.parse().ok()?;
    let mut id = || match words.next()? {
        "-" => Some(NO_INSTANCE),
        id => id.parse().ok(),
    };
    let (gi, ci) = (id()?, id()?);
    Some(Received { gpu, kind, data, gi, ci, split: words.next()? == SPLIT })
}

//! What the driver tells by itself.

use std::fmt;
use std::time::SystemTime;

use super::xid;

/// Something that happened to a GPU or to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEvent {
    /// `GPU-…`
    pub gpu_uuid: String,
    /// The GPU instance, of an Xid alone; `None` where the driver names none, and the whole GPU is meant.
    pub gpu_instance: Option<u32>,
    /// The compute instance within it; `None` where all of the GPU instance is meant.
    pub compute_instance: Option<u32>,
    /// What happened.
    pub kind: EventKind,
    /// When this program heard of it.
    pub at: SystemTime,
}

/// The kinds of events that are listened for (nvml.h, `nvmlEventType…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// `XidCriticalError`, with the Xid; NVML gives 999 for one that it does not know.
    Xid(u64),
    /// `DoubleBitEccError`
    DoubleBitEcc,
    /// `FatalPoisonError`
    FatalPoison,
    /// `GpuUnavailableError`
    GpuUnavailable,
    /// `GpuRecoveryAction`: what the GPU needs has changed, and can be read now.
    RecoveryAction,
    /// `MigConfigChange`: MIG mode or the instances of the GPU have changed.
    MigConfigChange,
}

/// The Xids that are about a whole GPU, whatever instances NVML names beside them. 79 (the GPU is lost) and 120 (its
/// firmware has crashed) are sent to every channel with GPU instance 0 and compute instance 0 (the open kernel modules'
/// `krcRcAndNotifyAllChannels_IMPL`); 48 and 95 are errors of memory that were not contained in an instance.
const OF_WHOLE_GPU: [u64; 4] = [48, 79, 95, 120];

impl EventKind {
    /// Whether it is about the GPU and all of its instances, even where an instance is named.
    pub(super) fn is_of_whole_gpu(self) -> bool {
        matches!(self, Self::Xid(number) if OF_WHOLE_GPU.contains(&number))
    }

    /// The number that NVML gives where it does not know the Xid (nvml.h, `nvmlEventData_t`).
    pub const UNKNOWN_TO_NVML: u64 = 999;

    /// One word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Xid(_) => "xid",
            Self::DoubleBitEcc => "double_bit_ecc",
            Self::FatalPoison => "fatal_poison",
            Self::GpuUnavailable => "gpu_unavailable",
            Self::RecoveryAction => "recovery_action",
            Self::MigConfigChange => "mig_config_change",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(number) => {
                write!(f, "Xid {number}")?;
                match xid::find(*number) {
                    Some(xid) => write!(f, " ({})", xid.name),
                    None if *number == Self::UNKNOWN_TO_NVML => f.write_str(" (one that NVML does not know)"),
                    None => Ok(()),
                }
            }
            Self::DoubleBitEcc => f.write_str("double-bit ECC error"),
            Self::FatalPoison => f.write_str("fatal poison error"),
            Self::GpuUnavailable => f.write_str("GPU unavailable"),
            Self::RecoveryAction => f.write_str("change of the recovery action"),
            Self::MigConfigChange => f.write_str("change of the MIG configuration"),
        }
    }
}

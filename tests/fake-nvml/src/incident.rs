//! Errors of a whole GPU, as the driver reports them: once for each channel, as if of the first instance.

use crate::{
    Description, Event, Lost, RecoveryAction,
    catalogue::Architecture,
    state::{GpuState, NodeState},
};

/// The `nvmlEventType…` bit of a changed recovery action.
const RECOVERY_ACTION: u64 = 0x8000;

/// What happens to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lost,
    GspCrash,
    GspFatal,
}

/// An error of a whole GPU. The driver tells of it for each channel that is open on the GPU, and for none where there
/// is none; each time with GPU instance 0 and compute instance 0, whether or not there are such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incident {
    kind: Kind,
    gpu: u32,
    channels: u32,
    ids: bool,
}

impl Incident {
    /// GPU 0 falls off the bus: Xid 79, and then `GPU_IS_LOST`.
    #[must_use]
    pub fn lost() -> Self {
        Self { kind: Kind::Lost, gpu: 0, channels: 1, ids: true }
    }

    /// The firmware of GPU 0 crashes: Xid 120, and then a reset is owed.
    #[must_use]
    pub fn gsp_crash() -> Self {
        Self { kind: Kind::GspCrash, ..Self::lost() }
    }

    /// The firmware of GPU 0 meets a fatal error, on Blackwell: Xid 94, and then a reset is owed.
    #[must_use]
    pub fn gsp_fatal() -> Self {
        Self { kind: Kind::GspFatal, ..Self::lost() }
    }

    /// On the GPU of this index.
    #[must_use]
    pub fn on_gpu(mut self, index: u32) -> Self {
        self.gpu = index;
        self
    }

    /// With so many channels open on the GPU.
    #[must_use]
    pub fn channels(mut self, channels: u32) -> Self {
        self.channels = channels;
        self
    }

    /// Told without IDs, should NVML not pass on those of the kernel.
    #[must_use]
    pub fn without_ids(mut self) -> Self {
        self.ids = false;
        self
    }

    /// The GPU that it happens to, or why it cannot happen.
    pub(crate) fn gpu(self, node: &NodeState) -> Result<&GpuState, String> {
        let gpu = node.gpus.get(self.gpu as usize);
        let gpu =
            gpu.ok_or_else(|| format!("incident: gpu {} is none of the {} GPUs", self.gpu, node.gpus.len()))?;
        if self.kind == Kind::GspFatal && gpu.model.architecture != Architecture::Blackwell {
            return Err(format!(
                "incident: {} reports no fatal error of its firmware so; only Blackwell does",
                gpu.model.key
            ));
        }
        Ok(gpu)
    }

    /// What clients are told first.
    pub(crate) fn xids(self, gpu: &GpuState) -> String {
        let xid = match self.kind {
            Kind::Lost => 79,
            Kind::GspCrash => 120,
            Kind::GspFatal => 94,
        };
        let event = if self.ids { Event::xid(xid).on_instance(0, 0) } else { Event::xid(xid) };
        event.line(gpu).repeat(self.channels as usize)
    }

    /// What becomes of the GPU.
    pub(crate) fn change(self, description: &mut Description) {
        match self.kind {
            Kind::Lost => description.gpu(self.gpu as usize).lost = Lost::IsLost,
            Kind::GspCrash | Kind::GspFatal => {
                description.gpu(self.gpu as usize).recovery_action = RecoveryAction::Reset;
            }
        }
    }

    /// What clients are told afterwards.
    pub(crate) fn aftermath(self, gpu: &GpuState) -> String {
        match self.kind {
            Kind::Lost => String::new(),
            Kind::GspCrash | Kind::GspFatal => Event::other(RECOVERY_ACTION, 0).line(gpu),
        }
    }
}

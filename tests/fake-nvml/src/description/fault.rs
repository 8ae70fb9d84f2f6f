//! What goes wrong in calls.

use serde::{Deserialize, Serialize};

use super::Lost;
use crate::{Code, driver::CALLS, suggest};

/// The calls that can fail late.
const DESTROYS: [&str; 2] = ["nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy"];

/// The calls that give a GPU's handle.
const HANDLE_CALLS: [&str; 6] = [
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleBySerial",
    "nvmlDeviceGetHandleByPciBusId",
    "nvmlDeviceGetHandleByPciBusId_v2",
];

/// Something that goes wrong, or takes long, in some calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// A function's name, or `*` for all but `nvmlInit…`, `nvmlShutdown` and `nvmlEventSetFree`.
    pub call: String,
    /// Only calls about the GPU of this index. With `*`, waits for events are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u32>,
    /// Only calls about this MIG device of that GPU, by MIG index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<u32>,
    /// The code to answer, e.g. `GPU_IS_LOST`. Without it the call goes on, after the delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How long the call takes, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The call takes until the fault is taken out.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub hangs: bool,
    /// Meanwhile every other call of the process waits: the library has a lock that this one holds.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub holds_library: bool,
    /// The error comes when the work has begun: a destroy has taken the capability file away by then.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub late: bool,
    /// When so many calls of a process were hit, the driver says that the GPU is unavailable, once: the event
    /// `GpuUnavailableError`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_after: Option<u32>,
}

impl Fault {
    /// `call` answers the code of that name.
    #[must_use]
    pub fn error(call: &str, code: &str) -> Self {
        Self { call: call.to_owned(), error: Some(code.to_owned()), ..Self::default() }
    }

    /// `call` takes `ms` milliseconds.
    #[must_use]
    pub fn delay(call: &str, ms: u64) -> Self {
        Self { call: call.to_owned(), delay_ms: Some(ms), ..Self::default() }
    }

    /// `call` takes until the fault is taken out.
    #[must_use]
    pub fn hang(call: &str) -> Self {
        Self { call: call.to_owned(), hangs: true, ..Self::default() }
    }

    /// Every other call of the process waits until this one is done.
    #[must_use]
    pub fn holding_library(mut self) -> Self {
        self.holds_library = true;
        self
    }

    /// What comes with Xid 119: each call about the GPU of this index takes `ms` and answers `TIMEOUT`, and after so
    /// many of them the GPU is said to be unavailable.
    #[must_use]
    pub fn gsp_timeouts(gpu: u32, ms: u64, calls: u32) -> Self {
        Self { unavailable_after: Some(calls), ..Self::error("*", "TIMEOUT").on_gpu(gpu).after_ms(ms) }
    }

    /// The error comes when the work has begun.
    #[must_use]
    pub fn late(mut self) -> Self {
        self.late = true;
        self
    }

    /// Only for this GPU, by index.
    #[must_use]
    pub fn on_gpu(mut self, index: u32) -> Self {
        self.gpu = Some(index);
        self
    }

    /// Only for this MIG device, by GPU index and MIG index.
    #[must_use]
    pub fn on_mig(mut self, gpu: u32, mig: u32) -> Self {
        self.gpu = Some(gpu);
        self.mig = Some(mig);
        self
    }

    /// As well takes `ms` milliseconds.
    #[must_use]
    pub fn after_ms(mut self, ms: u64) -> Self {
        self.delay_ms = Some(ms);
        self
    }

    /// What a lost GPU answers.
    pub(super) fn of_lost(gpu: u32, lost: Lost) -> Vec<Self> {
        let handles = HANDLE_CALLS.map(|call| Self::error(call, "UNKNOWN").on_gpu(gpu));
        let all = Self::error("*", "GPU_IS_LOST").on_gpu(gpu);
        match lost {
            Lost::No => Vec::new(),
            Lost::IsLost => vec![all],
            Lost::UnknownHandles => handles.into_iter().chain([all]).collect(),
        }
    }

    pub(crate) fn code(&self) -> Option<Code> {
        self.error.as_deref().and_then(Code::from_name)
    }

    /// Whether it makes calls slow.
    pub(crate) fn slows(&self) -> bool {
        self.hangs || self.delay_ms.is_some()
    }

    /// What is wrong with it, in a node of so many GPUs.
    pub(super) fn problems(&self, key: &str, gpus: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if self.call != "*" && !CALLS.contains(&self.call.as_str()) {
            let hint = suggest::allowed(&self.call, CALLS.iter().copied());
            problems.push(format!("{key}.call: no function {:?}; {hint}, or \"*\"", self.call));
        }
        if let Some(gpu) = self.gpu
            && gpu as usize >= gpus
        {
            problems.push(format!("{key}.gpu: {gpu} is none of the {gpus} GPUs"));
        }
        if self.mig.is_some() && self.gpu.is_none() {
            problems.push(format!("{key}.mig: needs gpu, whose MIG device it is"));
        }
        if self.hangs && self.delay_ms.is_some() {
            problems.push(format!("{key}.hangs: has no end; leave out delayMs"));
        }
        if self.holds_library && !self.slows() {
            problems.push(format!(
                "{key}.holdsLibrary: needs delayMs or hangs, or the call holds it for no time"
            ));
        }
        if self.unavailable_after.is_some() && (self.gpu.is_none() || self.unavailable_after == Some(0)) {
            problems.push(format!("{key}.unavailableAfter: needs gpu, and at least 1 call"));
        }
        if self.late && !(DESTROYS.contains(&self.call.as_str()) && self.error.is_some()) {
            problems.push(format!("{key}.late: needs error, and as call one of {}", DESTROYS.join(", ")));
        }
        match &self.error {
            Some(name) if self.code().is_none() => {
                let hint = suggest::allowed(name, Code::ALL.iter().map(|code| code.name()));
                problems.push(format!("{key}.error: no code {name:?}; {hint}"));
            }
            None if !self.slows() => problems.push(format!("{key}: needs error, delayMs or hangs")),
            _ => {}
        }
        problems
    }
}

//! Event sets: what the driver tells by itself.

use std::ptr;

use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use super::{check, handle};
use crate::nvml::error::CallError;

/// What NVML gives for an instance that an event does not name.
const NO_INSTANCE: u32 = u32::MAX;

/// A set of events that is waited on by one thread. It has to be freed: dropping it does nothing.
pub(in crate::nvml) struct EventSet<'nvml> {
    handle: sys::nvmlEventSet_t,
    nvml: &'nvml Nvml,
}

/// An event as NVML tells it.
pub(in crate::nvml) struct RawEvent<'nvml> {
    /// The GPU. Events are registered for whole GPUs alone.
    pub(in crate::nvml) gpu: Device<'nvml>,
    /// One `nvmlEventType…` bit.
    pub(in crate::nvml) kind: u64,
    /// The Xid, for an event that has one.
    pub(in crate::nvml) data: u64,
    /// The GPU instance that it is attributed to, where it is an Xid.
    pub(in crate::nvml) gpu_instance: Option<u32>,
    /// The compute instance within it.
    pub(in crate::nvml) compute_instance: Option<u32>,
}

/// A GPU's handle as a number, to know it again.
pub(in crate::nvml) fn number(gpu: &Device<'_>) -> usize {
    handle(gpu).addr()
}

/// Which events can be registered for `gpu`: `nvmlEventType…` bits.
pub(in crate::nvml) fn supported(gpu: &Device<'_>) -> Result<u64, CallError> {
    let function = function!(gpu.nvml(), nvmlDeviceGetSupportedEventTypes)?;
    let mut types = 0;
    // JUSTIFICATION: the safe wrapper knows seven of the bits, and fails on the others.
    // SAFETY: the handle belongs to this library, which stays open for the call; `types` outlives it.
    let code = unsafe { function(handle(gpu), &raw mut types) };
    check("nvmlDeviceGetSupportedEventTypes", code)?;
    Ok(types)
}

impl<'nvml> EventSet<'nvml> {
    /// An empty set.
    pub(in crate::nvml) fn create(nvml: &'nvml Nvml) -> Result<Self, CallError> {
        let function = function!(nvml, nvmlEventSetCreate)?;
        let mut set: sys::nvmlEventSet_t = ptr::null_mut();
        // JUSTIFICATION: the safe wrapper's set cannot be used without what is wrong with the calls below.
        // SAFETY: the library is open and initialised; `set` outlives the call.
        let code = unsafe { function(&raw mut set) };
        check("nvmlEventSetCreate", code)?;
        Ok(Self { handle: set, nvml })
    }

    /// Adds these events of `gpu`.
    pub(in crate::nvml) fn register(&self, gpu: &Device<'nvml>, types: u64) -> Result<(), CallError> {
        let function = function!(self.nvml, nvmlDeviceRegisterEvents)?;
        // JUSTIFICATION: the safe wrapper frees the whole set when one GPU says no.
        // SAFETY: both handles belong to this library, which stays open for the call, and the set is freed only by
        // `free`, which takes it.
        let code = unsafe { function(handle(gpu), types, self.handle) };
        check("nvmlDeviceRegisterEvents", code)
    }

    /// The next event; an error that is a time-out when there is none within `ms`.
    pub(in crate::nvml) fn wait(&self, ms: u32) -> Result<RawEvent<'nvml>, CallError> {
        let function = function!(self.nvml, nvmlEventSetWait_v2)?;
        let mut data = sys::nvmlEventData_t {
            device: ptr::null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        // JUSTIFICATION: the safe wrapper drops the instance IDs.
        // SAFETY: the set belongs to this library, which stays open for the call, and is freed only by `free`, which
        // takes it; `data` is a whole nvmlEventData_t that outlives the call.
        let code = unsafe { function(self.handle, &raw mut data, ms) };
        check("nvmlEventSetWait_v2", code)?;
        // JUSTIFICATION: there is no safe way from a handle to a device.
        // SAFETY: the driver gave this handle with the event, and the borrow of `nvml` keeps the library open; NVML
        // checks handles of its own accord, so that one that is no GPU's costs an error.
        let gpu = unsafe { Device::new(data.device, self.nvml) };
        let instance = |id| (id != NO_INSTANCE).then_some(id);
        Ok(RawEvent {
            gpu,
            kind: data.eventType,
            data: data.eventData,
            gpu_instance: instance(data.gpuInstanceId),
            compute_instance: instance(data.computeInstanceId),
        })
    }

    /// Gives the set back.
    pub(in crate::nvml) fn free(self) -> Result<(), CallError> {
        let function = function!(self.nvml, nvmlEventSetFree)?;
        // JUSTIFICATION: as for `create`.
        // SAFETY: the set came from this library, which is still open, and nobody can use it after this call.
        let code = unsafe { function(self.handle) };
        check("nvmlEventSetFree", code)
    }
}

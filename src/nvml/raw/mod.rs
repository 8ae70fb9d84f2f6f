//! The calls that nvml-wrapper lacks or gets wrong, as safe functions on its own handles. This is the only
//! folder with `unsafe` in it.
//!
//! - GPU and compute instance IDs, GPU instance handles and their placement have no method there.
//! - Its `possible_placements` always answers with an empty list: it never sets the length of its vector.
//! - Its `memory_info` is the second version of the call; profile names follow the first one's total.
//! - Its `profile_info` is the first version, which has no name in it.
//! - Its `topology_common_ancestor` takes one of the two GPUs away.
//! - Its events do not say which instance they are about, and a GPU that refuses one ends the set for all.

#![allow(
    unsafe_code,
    reason = "calling the driver's C functions; every pointer that is passed is made in this folder"
)]

use std::ptr;

use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use super::error::CallError;
use crate::inventory::Placement;

/// A GPU instance's handle. It dies with the instance, so it is never kept beyond one look.
pub(super) struct GpuInstance<'nvml> {
    handle: sys::nvmlGpuInstance_t,
    nvml: &'nvml Nvml,
}

/// Looks a function of the library up. nvml-wrapper resolves them all when the library is opened.
macro_rules! function {
    ($nvml:expr, $name:ident) => {
        $nvml.lib().$name.as_ref().map_err(|_missing| CallError::missing(stringify!($name)))
    };
}

// Behind the macro that they use.
pub(super) mod events;
mod links;
mod profiles;

pub(super) use links::common_ancestor;
pub(super) use profiles::{ProfileInfo, ProfileInfoVersion, possible_placements, profile_info};

fn check(call: &'static str, code: sys::nvmlReturn_t) -> Result<(), CallError> {
    if code == sys::nvmlReturn_enum_NVML_SUCCESS { Ok(()) } else { Err(CallError::from_code(call, code)) }
}

fn handle(device: &Device<'_>) -> sys::nvmlDevice_t {
    // JUSTIFICATION: the raw calls below need the handle, and there is no safe way to it.
    // SAFETY: the function only copies the pointer out; it is marked unsafe for what callers may do with
    // it. Here it goes only into calls made while `device`, and with it the library, is borrowed.
    unsafe { device.handle() }
}

/// Total memory in bytes, by the first version of the call: the one whose total profile names follow.
pub(super) fn memory_total(device: &Device<'_>) -> Result<u64, CallError> {
    let function = function!(device.nvml(), nvmlDeviceGetMemoryInfo)?;
    let mut memory = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
    // JUSTIFICATION: no safe wrapper of the first version.
    // SAFETY: the handle belongs to this library, which is initialised and stays open for the call;
    // `memory` is a whole nvmlMemory_t that outlives it.
    let code = unsafe { function(handle(device), &raw mut memory) };
    check("nvmlDeviceGetMemoryInfo", code)?;
    Ok(memory.total)
}

/// The GPU instance that the MIG device `device` lies in.
pub(super) fn gpu_instance_id(device: &Device<'_>) -> Result<u32, CallError> {
    let function = function!(device.nvml(), nvmlDeviceGetGpuInstanceId)?;
    let mut id = 0;
    // JUSTIFICATION: no safe wrapper.
    // SAFETY: the handle belongs to this library, which stays open for the call; `id` outlives it.
    let code = unsafe { function(handle(device), &raw mut id) };
    check("nvmlDeviceGetGpuInstanceId", code)?;
    Ok(id)
}

/// The compute instance that the MIG device `device` is.
pub(super) fn compute_instance_id(device: &Device<'_>) -> Result<u32, CallError> {
    let function = function!(device.nvml(), nvmlDeviceGetComputeInstanceId)?;
    let mut id = 0;
    // JUSTIFICATION: no safe wrapper.
    // SAFETY: the handle belongs to this library, which stays open for the call; `id` outlives it.
    let code = unsafe { function(handle(device), &raw mut id) };
    check("nvmlDeviceGetComputeInstanceId", code)?;
    Ok(id)
}

/// The GPU instance `id` of `gpu`. Needs privileges.
pub(super) fn gpu_instance_by_id<'nvml>(
    gpu: &Device<'nvml>,
    id: u32,
) -> Result<GpuInstance<'nvml>, CallError> {
    let nvml = gpu.nvml();
    let function = function!(nvml, nvmlDeviceGetGpuInstanceById)?;
    let mut instance: sys::nvmlGpuInstance_t = ptr::null_mut();
    // JUSTIFICATION: no safe wrapper.
    // SAFETY: the handle belongs to this library, which stays open for the call; `instance` outlives it.
    let code = unsafe { function(handle(gpu), id, &raw mut instance) };
    check("nvmlDeviceGetGpuInstanceById", code)?;
    Ok(GpuInstance { handle: instance, nvml })
}

impl GpuInstance<'_> {
    /// The ID of its profile, and where it lies.
    pub(super) fn info(&self) -> Result<(u32, Placement), CallError> {
        let function = function!(self.nvml, nvmlGpuInstanceGetInfo)?;
        let mut info = sys::nvmlGpuInstanceInfo_t {
            device: ptr::null_mut(),
            id: 0,
            profileId: 0,
            placement: sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 },
        };
        // JUSTIFICATION: no safe wrapper.
        // SAFETY: the handle came from this library in the same look, and the borrow of `nvml` keeps the
        // library open; `info` is a whole nvmlGpuInstanceInfo_t that outlives the call.
        let code = unsafe { function(self.handle, &raw mut info) };
        check("nvmlGpuInstanceGetInfo", code)?;
        let placement = Placement { start: info.placement.start, size: info.placement.size };
        Ok((info.profileId, placement))
    }
}

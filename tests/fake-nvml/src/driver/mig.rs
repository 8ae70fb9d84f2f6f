//! Calls about MIG mode and MIG devices.
#![allow(non_snake_case, reason = "NVML's names")]

use super::{
    abi::Attributes,
    call::{Device, gpu_handle, mig_handle},
    exports,
    ffi::{Handle, Out},
};
use crate::{Code, Situation};

exports! { call call;
    fn nvmlDeviceGetMigMode(device: Handle, current: Out<u32>, pending: Out<u32>) {
        let gpu = call.gpu(device)?;
        if !gpu.model.knows_mig() {
            return Err(call.code(Situation::WithoutMig));
        }
        if current.is_null() || pending.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        current.put(u32::from(gpu.mig_mode))?;
        pending.put(u32::from(gpu.mig_mode_pending))
    }
    fn nvmlDeviceIsMigDeviceHandle(device: Handle, is_mig: Out<u32>) {
        is_mig.put(u32::from(matches!(call.device(device)?, Device::Mig(..))))
    }
    /// As many as there could be, which is not as many as there are.
    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: Out<u32>) {
        let gpu = call.gpu(device)?;
        count.put(if gpu.mig_mode { gpu.model.compute_slices } else { 0 })
    }
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: u32, mig: Out<Handle>) {
        let gpu = call.gpu(device)?;
        if !gpu.model.knows_mig() {
            return Err(call.code(Situation::WithoutMig));
        }
        if gpu.mig_mode && index >= gpu.model.compute_slices {
            return Err(call.code(Situation::PastLastMigDevice));
        }
        // A hole is as good as the end: only NOT_FOUND up to the maximum says that nothing comes.
        let found = gpu.mig.iter().find(|mig| mig.index == index && call.shows(mig));
        let found = found.ok_or(Code::NOT_FOUND)?;
        call.fault(Some(gpu.index), Some(found.index))?;
        mig.put(mig_handle(call, gpu, found)?)
    }
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig: Handle, device: Out<Handle>) {
        let (gpu, _) = call.mig(mig)?;
        device.put(gpu_handle(gpu))
    }
    fn nvmlDeviceGetGpuInstanceId(device: Handle, id: Out<u32>) {
        id.put(call.mig(device)?.1.gi)
    }
    fn nvmlDeviceGetComputeInstanceId(device: Handle, id: Out<u32>) {
        id.put(call.mig(device)?.1.ci)
    }
    fn nvmlDeviceGetAttributes(device: Handle, attributes: Out<Attributes>) {
        attributes.put(attributes_of(call.readable(device)?)?)
    }
    fn nvmlDeviceGetAttributes_v2(device: Handle, attributes: Out<Attributes>) {
        attributes.put(attributes_of(call.readable(device)?)?)
    }
}

fn attributes_of(device: Device<'_>) -> Result<Attributes, Code> {
    let Device::Mig(gpu, mig) = device else { return Err(Code::NOT_SUPPORTED) };
    let instance = gpu.instance(mig.gi).ok_or(Code::NOT_FOUND)?;
    let compute = instance.compute.iter().find(|compute| compute.ci == mig.ci).ok_or(Code::NOT_FOUND)?;
    let engines = instance.profile.engines;
    Ok(Attributes {
        sm: mig.sm,
        copy_engines: engines.copy,
        decoders: engines.decoders,
        encoders: engines.encoders,
        jpeg: engines.jpeg,
        ofa: engines.ofa,
        gi_slices: instance.profile.g,
        ci_slices: compute.placement.size,
        memory_mib: mig.memory_mib,
    })
}

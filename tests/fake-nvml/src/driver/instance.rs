//! Calls about the GPU instances and compute instances that are there. Most are for those who may configure MIG.
#![allow(non_snake_case, reason = "NVML's names")]

use super::{
    abi::{ComputeInfo, InstanceInfo, Placement},
    call::{compute_handle, gpu_handle, instance_handle, mig_handle},
    exports,
    ffi::{Array, Handle, Out},
    profiles::compute_profile_id,
};
use crate::Code;

exports! { call call;
    /// All of one profile; the caller's array has room for as many as the profile can have.
    fn nvmlDeviceGetGpuInstances(device: Handle, profile: u32, instances: Array<Handle>, count: Out<u32>) {
        let gpu = call.mig_gpu(device)?;
        call.config()?;
        let known = gpu.model.profiles.iter().any(|known| known.id == profile);
        let found: Vec<Handle> = gpu
            .instances
            .iter()
            .filter(|instance| instance.profile.id == profile)
            .map(|instance| instance_handle(gpu, instance))
            .collect();
        if !known && found.is_empty() {
            return Err(Code::INVALID_ARGUMENT);
        }
        count.put_len(found.len())?;
        instances.put(found)
    }
    fn nvmlDeviceGetGpuInstanceById(device: Handle, id: u32, instance: Out<Handle>) {
        let gpu = call.mig_gpu(device)?;
        call.config()?;
        instance.put(instance_handle(gpu, gpu.instance(id).ok_or(Code::NOT_FOUND)?))
    }
    fn nvmlGpuInstanceGetInfo(instance: Handle, info: Out<InstanceInfo>) {
        let (gpu, instance) = call.instance(instance)?;
        let place = instance.placement;
        info.put(InstanceInfo {
            device: gpu_handle(gpu),
            id: instance.gi,
            profile_id: instance.profile.id,
            placement: Placement { start: place.start, size: place.size },
        })
    }
    fn nvmlGpuInstanceGetComputeInstances(
        instance: Handle, profile: u32, computes: Array<Handle>, count: Out<u32>,
    ) {
        let (gpu, instance) = call.instance(instance)?;
        call.config()?;
        let found: Vec<Handle> = instance
            .compute
            .iter()
            .filter(|compute| compute_profile_id(compute.placement.size) == Some(profile))
            .map(|compute| compute_handle(gpu, instance, compute.ci))
            .collect();
        count.put_len(found.len())?;
        computes.put(found)
    }
    fn nvmlGpuInstanceGetComputeInstanceById(instance: Handle, id: u32, compute: Out<Handle>) {
        let (gpu, instance) = call.instance(instance)?;
        call.config()?;
        let found = instance.compute.iter().find(|compute| compute.ci == id).ok_or(Code::NOT_FOUND)?;
        call.fault(Some(gpu.index), Some(found.index))?;
        compute.put(compute_handle(gpu, instance, found.ci))
    }
    fn nvmlComputeInstanceGetInfo(compute: Handle, info: Out<ComputeInfo>) {
        info.put(compute_info(call, compute)?)
    }
    fn nvmlComputeInstanceGetInfo_v2(compute: Handle, info: Out<ComputeInfo>) {
        info.put(compute_info(call, compute)?)
    }
}

fn compute_info(call: &super::call::Call, compute: Handle) -> Result<ComputeInfo, Code> {
    let (gpu, instance, compute) = call.compute(compute)?;
    let mig = gpu.mig.iter().find(|mig| mig.index == compute.index).ok_or(Code::UNKNOWN)?;
    Ok(ComputeInfo {
        device: mig_handle(call, gpu, mig)?,
        instance: instance_handle(gpu, instance),
        id: compute.ci,
        profile_id: compute_profile_id(compute.placement.size).unwrap_or(u32::MAX),
        placement: Placement { start: compute.placement.start, size: compute.placement.size },
    })
}

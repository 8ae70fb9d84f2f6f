//! Calls about what instances a GPU or a GPU instance could have.
#![allow(non_snake_case, reason = "NVML's names")]

use super::{
    abi::{
        ComputeProfileInfo, ComputeProfileInfoV2, ComputeProfileInfoV3, Placement, ProfileInfo,
        ProfileInfoV2, ProfileInfoV3, text, version_of,
    },
    call::Call,
    device::driver_major,
    exports,
    ffi::{Answer, Array, Handle, Out, put_counted},
};
use crate::{
    Code,
    catalogue::Profile,
    layout,
    state::{GpuInstanceState, GpuState},
};

/// The last driver that answers profile queries only with MIG mode on.
pub(super) const LAST_MODE_DEPENDENT_DRIVER: u32 = 535;

/// Profile indices that nvml.h has: the first that is not one ends an enumeration.
const PROFILES: u32 = 19;

/// Compute instance profiles of nvml.h: index and ID are the same, these are their slices.
const COMPUTE_PROFILES: [u32; 9] = [1, 2, 3, 4, 7, 8, 6, 1, 7];
/// The media-engine variants among them.
const COMPUTE_VARIANTS: std::ops::Range<u32> = 7..9;

exports! { call call;
    fn nvmlDeviceGetGpuInstanceProfileInfo(device: Handle, profile: u32, info: Out<ProfileInfo>) {
        info.put(info_v1(by_index(call, device, profile)?))
    }
    fn nvmlDeviceGetGpuInstanceProfileInfoV(device: Handle, profile: u32, info: Out<ProfileInfoV2>) {
        put_info(call, by_index(call, device, profile)?, info)
    }
    fn nvmlDeviceGetGpuInstanceProfileInfoByIdV(device: Handle, id: u32, info: Out<ProfileInfoV2>) {
        put_info(call, by_id(profile_gpu(call, device)?, id)?, info)
    }
    fn nvmlDeviceGetGpuInstancePossiblePlacements(
        device: Handle, id: u32, places: Array<Placement>, count: Out<u32>,
    ) {
        let placements = placements(by_id(profile_gpu(call, device)?, id)?);
        count.put_len(placements.len())?;
        if places.is_null() { Ok(()) } else { places.put(placements) }
    }
    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: Handle, id: u32, places: Array<Placement>, count: Out<u32>,
    ) {
        let profile = by_id(profile_gpu(call, device)?, id)?;
        put_counted(places, count, placements(profile))
    }
    fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: Handle, id: u32, count: Out<u32>) {
        let gpu = call.mig_gpu(device)?;
        call.config()?;
        count.put(remaining(gpu, by_id(gpu, id)?))
    }
    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        instance: Handle, profile: u32, engine: u32, info: Out<ComputeProfileInfo>,
    ) {
        let (_, instance) = call.instance(instance)?;
        let found = compute_info(instance, profile, engine)?;
        info.put(ComputeProfileInfo {
            id: found.id,
            slices: found.slices,
            instances: found.instances,
            sm: found.sm,
            copy_engines: found.copy_engines,
            decoders: found.decoders,
            encoders: found.encoders,
            jpeg: found.jpeg,
            ofa: found.ofa,
        })
    }
    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        instance: Handle, profile: u32, engine: u32, info: Out<ComputeProfileInfoV2>,
    ) {
        let (_, instance) = call.instance(instance)?;
        let found = compute_info(instance, profile, engine)?;
        let version = info.version()?;
        if version == found.version {
            info.put(found)
        } else if version == version_of::<ComputeProfileInfoV3>(3) {
            info.with_version().put(ComputeProfileInfoV3 {
                version,
                id: found.id,
                slices: found.slices,
                instances: found.instances,
                sm: found.sm,
                copy_engines: found.copy_engines,
                decoders: found.decoders,
                encoders: found.encoders,
                jpeg: found.jpeg,
                ofa: found.ofa,
                name: found.name,
                capabilities: 0,
            })
        } else {
            Err(Code::ARGUMENT_VERSION_MISMATCH)
        }
    }
    fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(
        instance: Handle, id: u32, places: Array<Placement>, count: Out<u32>,
    ) {
        let (_, instance) = call.instance(instance)?;
        let size = compute_info(instance, id, 0)?.slices;
        let starts = (0..instance.profile.g).step_by(size as usize);
        let fitting = starts.filter(|start| start + size <= instance.profile.g);
        put_counted(places, count, fitting.map(|start| Placement { start, size }).collect())
    }
    fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance: Handle, id: u32, count: Out<u32>) {
        let (_, instance) = call.instance(instance)?;
        call.config()?;
        let size = compute_info(instance, id, 0)?.slices;
        let used: u32 = instance.compute.iter().map(|compute| compute.placement.size).sum();
        count.put((instance.profile.g - used) / size)
    }
}

/// The GPU, if it answers queries about its profiles now.
fn profile_gpu(call: &Call, device: Handle) -> Result<&GpuState, Code> {
    let gpu = call.gpu(device)?;
    let answers = gpu.mig_mode || driver_major(call) > LAST_MODE_DEPENDENT_DRIVER;
    if gpu.model.knows_mig() && answers { Ok(gpu) } else { Err(Code::NOT_SUPPORTED) }
}

/// By the number that nvml.h gives a profile's shape, which is another for each shape of all GPUs.
fn by_index(call: &Call, device: Handle, index: u32) -> Result<&Profile, Code> {
    let gpu = profile_gpu(call, device)?;
    if index >= PROFILES {
        return Err(Code::INVALID_ARGUMENT);
    }
    gpu.model.profiles.iter().find(|profile| profile.index == index).ok_or(Code::NOT_SUPPORTED)
}

/// By the GPU's own number for a profile.
fn by_id(gpu: &GpuState, id: u32) -> Result<&Profile, Code> {
    gpu.model.profiles.iter().find(|profile| profile.id == id).ok_or(Code::INVALID_ARGUMENT)
}

fn placements(profile: &Profile) -> Vec<Placement> {
    profile.starts.iter().map(|start| Placement { start: *start, size: profile.size }).collect()
}

/// How many more instances of a profile fit, beside those that are there.
fn remaining(gpu: &GpuState, profile: &Profile) -> u32 {
    let used: u32 = gpu.instances.iter().map(|instance| instance.profile.g).sum();
    let compute = gpu.model.compute_slices.saturating_sub(used) / profile.g;
    let same = gpu.instances.iter().filter(|instance| instance.profile.name == profile.name).count();
    let media = profile.has_media() && gpu.instances.iter().any(|instance| instance.profile.has_media());
    let mut end = 0;
    let mut free = 0;
    for start in &profile.starts {
        let taken = gpu.instances.iter().any(|instance| {
            let place = instance.placement;
            *start < place.start + place.size && place.start < start + profile.size
        });
        if !taken && *start >= end {
            free += 1;
            end = start + profile.size;
        }
    }
    let more = profile.max.saturating_sub(u32::try_from(same).unwrap_or(u32::MAX));
    if media { 0 } else { compute.min(free).min(more) }
}

fn info_v1(profile: &Profile) -> ProfileInfo {
    let engines = profile.engines;
    ProfileInfo {
        id: profile.id,
        p2p: 0,
        slices: profile.g,
        instances: profile.max,
        sm: profile.sm,
        copy_engines: engines.copy,
        decoders: engines.decoders,
        encoders: engines.encoders,
        jpeg: engines.jpeg,
        ofa: engines.ofa,
        memory_mib: profile.memory_mib,
    }
}

/// Version 2 or 3, as the caller's struct says and the driver knows.
fn put_info(call: &Call, profile: &Profile, info: Out<ProfileInfoV2>) -> Answer {
    let version = info.version()?;
    let v1 = info_v1(profile);
    let name = text(&format!("MIG {}", profile.name));
    let known = |number| call.state.profile_info_versions.contains(&number);
    if version == version_of::<ProfileInfoV2>(2) && known(2) {
        info.put(ProfileInfoV2 {
            version,
            id: v1.id,
            p2p: v1.p2p,
            slices: v1.slices,
            instances: v1.instances,
            sm: v1.sm,
            copy_engines: v1.copy_engines,
            decoders: v1.decoders,
            encoders: v1.encoders,
            jpeg: v1.jpeg,
            ofa: v1.ofa,
            memory_mib: v1.memory_mib,
            name,
        })
    } else if version == version_of::<ProfileInfoV3>(3) && known(3) {
        info.with_version().put(ProfileInfoV3 {
            version,
            id: v1.id,
            slices: v1.slices,
            instances: v1.instances,
            sm: v1.sm,
            copy_engines: v1.copy_engines,
            decoders: v1.decoders,
            encoders: v1.encoders,
            jpeg: v1.jpeg,
            ofa: v1.ofa,
            memory_mib: v1.memory_mib,
            name,
            capabilities: 0,
        })
    } else {
        Err(Code::ARGUMENT_VERSION_MISMATCH)
    }
}

/// The ID of the compute instance profile with this many slices.
pub(super) fn compute_profile_id(slices: u32) -> Option<u32> {
    COMPUTE_PROFILES.iter().position(|known| *known == slices).and_then(|index| u32::try_from(index).ok())
}

/// Slices of a compute instance profile, if a GPU instance can have it.
pub(super) fn compute_profile_slices(instance: &GpuInstanceState, profile: u32) -> Result<u32, Code> {
    let slices = COMPUTE_PROFILES.get(profile as usize).copied().ok_or(Code::INVALID_ARGUMENT)?;
    let supported = layout::compute_sizes(instance.profile.g).any(|size| size == slices);
    if supported && !COMPUTE_VARIANTS.contains(&profile) { Ok(slices) } else { Err(Code::NOT_SUPPORTED) }
}

fn compute_info(
    instance: &GpuInstanceState,
    profile: u32,
    engine: u32,
) -> Result<ComputeProfileInfoV2, Code> {
    // NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED is the only engine profile there is.
    if engine != 0 {
        return Err(Code::INVALID_ARGUMENT);
    }
    let slices = compute_profile_slices(instance, profile)?;
    let g = instance.profile.g;
    let engines = instance.profile.engines;
    let name = if slices == g {
        format!("MIG {}", instance.profile.name)
    } else {
        format!("MIG {slices}c.{}", instance.profile.name)
    };
    Ok(ComputeProfileInfoV2 {
        version: version_of::<ComputeProfileInfoV2>(2),
        id: profile,
        slices,
        instances: g / slices,
        sm: instance.profile.sm * slices / g,
        copy_engines: engines.copy,
        decoders: engines.decoders,
        encoders: engines.encoders,
        jpeg: engines.jpeg,
        ofa: engines.ofa,
        name: text(&name),
    })
}

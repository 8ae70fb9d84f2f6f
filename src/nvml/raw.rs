//! The calls that nvml-wrapper lacks or gets wrong, as safe functions on its own handles. This is the only
//! file with `unsafe` in it.
//!
//! - GPU and compute instance IDs, GPU instance handles and their placement have no method there.
//! - Its `possible_placements` always answers with an empty list: it never sets the length of its vector.
//! - Its `memory_info` is the second version of the call; profile names follow the first one's total.
//! - Its `profile_info` is the first version, which has no name in it.

#![allow(
    unsafe_code,
    reason = "calling the driver's C functions; every pointer that is passed is made in this file"
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

/// Which of the driver's three forms of profile information is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProfileInfoVersion {
    /// With a name and capability bits.
    V3,
    /// With a name.
    V2,
    /// Without a name.
    V1,
}

/// What the driver says of a GPU instance profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProfileInfo {
    /// The ID by which this GPU model knows the profile, e.g. 19.
    pub(super) id: u32,
    /// Compute slices.
    pub(super) slice_count: u32,
    /// Multiprocessors.
    pub(super) sm_count: u32,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// `MIG 1g.10gb`, where the form has a name and the driver fills it.
    pub(super) name: Option<String>,
}

/// Looks a function of the library up. nvml-wrapper resolves them all when the library is opened.
macro_rules! function {
    ($nvml:expr, $name:ident) => {
        $nvml.lib().$name.as_ref().map_err(|_missing| CallError::missing(stringify!($name)))
    };
}

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

/// What the driver says of the profile with this enum index (not ID) on `gpu`.
pub(super) fn profile_info(
    gpu: &Device<'_>,
    version: ProfileInfoVersion,
    index: u32,
) -> Result<ProfileInfo, CallError> {
    match version {
        ProfileInfoVersion::V3 => profile_info_v3(gpu, index),
        ProfileInfoVersion::V2 => profile_info_v2(gpu, index),
        ProfileInfoVersion::V1 => profile_info_v1(gpu, index),
    }
}

fn profile_info_v3(gpu: &Device<'_>, index: u32) -> Result<ProfileInfo, CallError> {
    let function = function!(gpu.nvml(), nvmlDeviceGetGpuInstanceProfileInfoV)?;
    let mut info = sys::nvmlGpuInstanceProfileInfo_v3_t {
        version: struct_version::<sys::nvmlGpuInstanceProfileInfo_v3_t>(3),
        id: 0,
        sliceCount: 0,
        instanceCount: 0,
        multiprocessorCount: 0,
        copyEngineCount: 0,
        decoderCount: 0,
        encoderCount: 0,
        jpegCount: 0,
        ofaCount: 0,
        memorySizeMB: 0,
        name: [0; 96],
        capabilities: 0,
    };
    // JUSTIFICATION: no safe wrapper.
    // SAFETY: the handle belongs to this library, which stays open for the call. The bindings declare the
    // second version's struct, but nvml.h lets the caller pass any version and tell which in its first
    // field: the driver writes what that version, and the size encoded in it, say, which is the whole of
    // `info` and no more. It outlives the call.
    let code = unsafe { function(handle(gpu), index, (&raw mut info).cast()) };
    check("nvmlDeviceGetGpuInstanceProfileInfoV", code)?;
    Ok(ProfileInfo {
        id: info.id,
        slice_count: info.sliceCount,
        sm_count: info.multiprocessorCount,
        memory_mib: info.memorySizeMB,
        name: text(&info.name),
    })
}

fn profile_info_v2(gpu: &Device<'_>, index: u32) -> Result<ProfileInfo, CallError> {
    let function = function!(gpu.nvml(), nvmlDeviceGetGpuInstanceProfileInfoV)?;
    let mut info = sys::nvmlGpuInstanceProfileInfo_v2_t {
        version: struct_version::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2),
        id: 0,
        isP2pSupported: 0,
        sliceCount: 0,
        instanceCount: 0,
        multiprocessorCount: 0,
        copyEngineCount: 0,
        decoderCount: 0,
        encoderCount: 0,
        jpegCount: 0,
        ofaCount: 0,
        memorySizeMB: 0,
        name: [0; 96],
    };
    // JUSTIFICATION: no safe wrapper.
    // SAFETY: the handle belongs to this library, which stays open for the call; `info` is a whole struct
    // of the version that its first field names, and outlives it.
    let code = unsafe { function(handle(gpu), index, &raw mut info) };
    check("nvmlDeviceGetGpuInstanceProfileInfoV", code)?;
    Ok(ProfileInfo {
        id: info.id,
        slice_count: info.sliceCount,
        sm_count: info.multiprocessorCount,
        memory_mib: info.memorySizeMB,
        name: text(&info.name),
    })
}

fn profile_info_v1(gpu: &Device<'_>, index: u32) -> Result<ProfileInfo, CallError> {
    let info = gpu
        .profile_info(index)
        .map_err(|error| CallError::from_wrapper("nvmlDeviceGetGpuInstanceProfileInfo", error))?;
    Ok(ProfileInfo {
        id: info.id,
        slice_count: info.slice_count,
        sm_count: info.multiprocessor_count,
        memory_mib: info.memory_size_mb,
        name: None,
    })
}

/// Where the profile with this ID (not index) can be placed on `gpu`.
pub(super) fn possible_placements(gpu: &Device<'_>, profile_id: u32) -> Result<Vec<Placement>, CallError> {
    const CALL: &str = "nvmlDeviceGetGpuInstancePossiblePlacements_v2";
    let function = function!(gpu.nvml(), nvmlDeviceGetGpuInstancePossiblePlacements_v2)?;
    let mut count = 0;
    // JUSTIFICATION: the safe wrapper always answers with an empty list.
    // SAFETY: the handle belongs to this library, which stays open for the call. nvml.h allows a null
    // pointer for the placements and then only writes their number to `count`, which outlives the call.
    let code = unsafe { function(handle(gpu), profile_id, ptr::null_mut(), &raw mut count) };
    check(CALL, code)?;
    let none = sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 };
    let mut placements = vec![none; count as usize];
    if placements.is_empty() {
        return Ok(Vec::new());
    }
    // JUSTIFICATION: as above.
    // SAFETY: as above, and `placements` has room for as many as the driver just said the profile has, a
    // number that is fixed for a GPU and a profile.
    let code = unsafe { function(handle(gpu), profile_id, placements.as_mut_ptr(), &raw mut count) };
    check(CALL, code)?;
    placements.truncate(count as usize);
    Ok(placements.iter().map(|place| Placement { start: place.start, size: place.size }).collect())
}

/// `NVML_STRUCT_VERSION`: the size of the struct in the low 24 bits, its version above.
fn struct_version<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | (version << 24)
}

/// The text up to the terminating zero; `None` where there is none. A buffer without a zero is taken whole.
fn text(buffer: &[std::ffi::c_char]) -> Option<String> {
    let bytes: Vec<u8> =
        buffer.iter().map(|c| u8::from_ne_bytes(c.to_ne_bytes())).take_while(|byte| *byte != 0).collect();
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn struct_versions_are_those_of_the_header() {
        // nvml.h: (sizeof(struct) | (version << 24)); 152 bytes each on x86-64 and aarch64.
        assert_eq!(struct_version::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2), 0x0200_0098);
        assert_eq!(struct_version::<sys::nvmlGpuInstanceProfileInfo_v3_t>(3), 0x0300_0098);
    }

    #[test]
    fn a_names_end_is_its_first_zero_or_the_buffers() {
        let buffer =
            |text: &str| text.bytes().map(|b| std::ffi::c_char::from_ne_bytes([b])).collect::<Vec<_>>();
        assert_eq!(text(&buffer("MIG 1g.10gb\0junk")).as_deref(), Some("MIG 1g.10gb"));
        assert_eq!(text(&buffer("full")).as_deref(), Some("full"));
        assert_eq!(text(&buffer("\0")), None);
    }
}

//! GPU instance profiles, and where they can be placed.

use std::ptr;

use nvml_wrapper::Device;
use nvml_wrapper_sys::bindings as sys;

use super::{check, handle};
use crate::inventory::Placement;
use crate::nvml::calls::Caller;
use crate::nvml::error::CallError;

/// Which of the driver's three forms of profile information is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nvml) enum ProfileInfoVersion {
    /// With a name and capability bits.
    V3,
    /// With a name.
    V2,
    /// Without a name.
    V1,
}

impl ProfileInfoVersion {
    /// The function that answers in this form.
    pub(in crate::nvml) fn call(self) -> &'static str {
        match self {
            Self::V3 | Self::V2 => "nvmlDeviceGetGpuInstanceProfileInfoV",
            Self::V1 => "nvmlDeviceGetGpuInstanceProfileInfo",
        }
    }
}

/// What the driver says of a GPU instance profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nvml) struct ProfileInfo {
    /// The ID by which this GPU model knows the profile, e.g. 19.
    pub(in crate::nvml) id: u32,
    /// Compute slices.
    pub(in crate::nvml) slice_count: u32,
    /// Multiprocessors.
    pub(in crate::nvml) sm_count: u32,
    /// Memory in MiB.
    pub(in crate::nvml) memory_mib: u64,
    /// `MIG 1g.10gb`, where the form has a name and the driver fills it.
    pub(in crate::nvml) name: Option<String>,
}

/// What the driver says of the profile with this enum index (not ID) on `gpu`.
pub(in crate::nvml) fn profile_info(
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
pub(in crate::nvml) fn possible_placements(
    calls: &Caller,
    gpu: &Device<'_>,
    profile_id: u32,
) -> Result<Vec<Placement>, CallError> {
    const CALL: &str = "nvmlDeviceGetGpuInstancePossiblePlacements_v2";
    let function = function!(gpu.nvml(), nvmlDeviceGetGpuInstancePossiblePlacements_v2)?;
    let mut count = 0;
    calls.ask(CALL, || {
        // JUSTIFICATION: the safe wrapper always answers with an empty list.
        // SAFETY: the handle belongs to this library, which stays open for the call. nvml.h allows a null
        // pointer for the placements and then only writes their number to `count`, which outlives the call.
        let code = unsafe { function(handle(gpu), profile_id, ptr::null_mut(), &raw mut count) };
        check(CALL, code)
    })?;
    let none = sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 };
    let mut placements = vec![none; count as usize];
    if placements.is_empty() {
        return Ok(Vec::new());
    }
    calls.ask(CALL, || {
        // JUSTIFICATION: as above.
        // SAFETY: as above, and `placements` has room for as many as the driver just said the profile has, a
        // number that is fixed for a GPU and a profile.
        let code = unsafe { function(handle(gpu), profile_id, placements.as_mut_ptr(), &raw mut count) };
        check(CALL, code)
    })?;
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

//! NVML's structs, as nvml.h lays them out. A test compares their sizes with another's bindings.

use std::ffi::{c_char, c_int};

use super::ffi::Handle;

/// The version word of a struct: its size and its version.
pub(crate) const fn version_of<T>(version: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "no struct is that large")]
    let size = size_of::<T>() as u32;
    size | version << 24
}

/// Text in a fixed field, cut to fit, with its final zero.
pub(crate) fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (place, byte) in field[..N - 1].iter_mut().zip(text.bytes()) {
        *place = c_char::from_ne_bytes([byte]);
    }
    field
}

macro_rules! structs {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Clone, Copy, Debug)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $type,)* }
        )*
    };
}

structs! {
    PciInfo {
        bus_id_legacy: [c_char; 16], domain: u32, bus: u32, device: u32, device_id: u32, subsystem_id: u32,
        bus_id: [c_char; 32],
    }
    PciInfoV2 {
        bus_id: [c_char; 16], domain: u32, bus: u32, device: u32, device_id: u32, subsystem_id: u32,
        reserved: [u32; 4],
    }
    Memory { total: u64, free: u64, used: u64 }
    MemoryV2 { version: u32, total: u64, reserved: u64, free: u64, used: u64 }
    Bar1Memory { total: u64, free: u64, used: u64 }
    Utilization { gpu: u32, memory: u32 }
    ProcessInfo { pid: u32, used_memory: u64, gi: u32, ci: u32 }
    Attributes {
        sm: u32, copy_engines: u32, decoders: u32, encoders: u32, jpeg: u32, ofa: u32, gi_slices: u32,
        ci_slices: u32, memory_mib: u64,
    }
    Placement { start: u32, size: u32 }
    ProfileInfo {
        id: u32, p2p: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32, decoders: u32,
        encoders: u32, jpeg: u32, ofa: u32, memory_mib: u64,
    }
    ProfileInfoV2 {
        version: u32, id: u32, p2p: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32,
        decoders: u32, encoders: u32, jpeg: u32, ofa: u32, memory_mib: u64, name: [c_char; 96],
    }
    ProfileInfoV3 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32, decoders: u32,
        encoders: u32, jpeg: u32, ofa: u32, memory_mib: u64, name: [c_char; 96], capabilities: u32,
    }
    ComputeProfileInfo {
        id: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32, decoders: u32, encoders: u32,
        jpeg: u32, ofa: u32,
    }
    ComputeProfileInfoV2 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32, decoders: u32,
        encoders: u32, jpeg: u32, ofa: u32, name: [c_char; 96],
    }
    ComputeProfileInfoV3 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, copy_engines: u32, decoders: u32,
        encoders: u32, jpeg: u32, ofa: u32, name: [c_char; 96], capabilities: u32,
    }
    InstanceInfo { device: Handle, id: u32, profile_id: u32, placement: Placement }
    ComputeInfo { device: Handle, instance: Handle, id: u32, profile_id: u32, placement: Placement }
    EventData { device: Handle, kind: u64, data: u64, gi: u32, ci: u32 }
    EventDataV1 { device: Handle, kind: u64, data: u64 }
    FieldValue {
        id: u32, scope: u32, timestamp: i64, latency_us: i64, kind: u32, answer: c_int, value: u64,
    }
    RowRemapperHistogram { max: u32, high: u32, partial: u32, low: u32, none: u32 }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper_sys::bindings as sys;

    use super::*;

    #[test]
    fn structs_have_the_sizes_of_other_bindings() {
        let sizes = [
            (size_of::<PciInfo>(), size_of::<sys::nvmlPciInfo_t>()),
            (size_of::<Memory>(), size_of::<sys::nvmlMemory_t>()),
            (size_of::<MemoryV2>(), size_of::<sys::nvmlMemory_v2_t>()),
            (size_of::<Utilization>(), size_of::<sys::nvmlUtilization_t>()),
            (size_of::<ProcessInfo>(), size_of::<sys::nvmlProcessInfo_v2_t>()),
            (size_of::<Attributes>(), size_of::<sys::nvmlDeviceAttributes_t>()),
            (size_of::<Placement>(), size_of::<sys::nvmlGpuInstancePlacement_t>()),
            (size_of::<ProfileInfo>(), size_of::<sys::nvmlGpuInstanceProfileInfo_t>()),
            (size_of::<ProfileInfoV2>(), size_of::<sys::nvmlGpuInstanceProfileInfo_v2_t>()),
            (size_of::<ProfileInfoV3>(), size_of::<sys::nvmlGpuInstanceProfileInfo_v3_t>()),
            (size_of::<ComputeProfileInfo>(), size_of::<sys::nvmlComputeInstanceProfileInfo_t>()),
            (size_of::<ComputeProfileInfoV2>(), size_of::<sys::nvmlComputeInstanceProfileInfo_v2_t>()),
            (size_of::<ComputeProfileInfoV3>(), size_of::<sys::nvmlComputeInstanceProfileInfo_v3_t>()),
            (size_of::<InstanceInfo>(), size_of::<sys::nvmlGpuInstanceInfo_t>()),
            (size_of::<ComputeInfo>(), size_of::<sys::nvmlComputeInstanceInfo_t>()),
            (size_of::<EventData>(), size_of::<sys::nvmlEventData_t>()),
            (size_of::<FieldValue>(), size_of::<sys::nvmlFieldValue_t>()),
        ];
        for (index, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "struct {index}");
        }
    }
}

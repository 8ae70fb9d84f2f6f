//! Calls about a GPU, and about a MIG device where those answer too.
#![allow(non_snake_case, reason = "NVML's names")]

use std::{
    ffi::c_int,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    abi::{
        Bar1Memory, FieldValue, Memory, MemoryV2, PciInfo, PciInfoV2, ProcessInfo, RowRemapperHistogram,
        Utilization, text, version_of,
    },
    call::{Call, Device, gpu_handle, mig_handle},
    exports,
    ffi::{Answer, Array, Handle, Out, TextIn, TextOut, put_counted},
};
use crate::{
    Code, Process, UuidLookup, catalogue::Architecture, event::NO_INSTANCE, pci::parse_pci, state::GpuState,
};

const MIB: u64 = 1024 * 1024;

exports! { call call;
    fn nvmlDeviceGetCount(count: Out<u32>) {
        count.put(gpu_count(call))
    }
    fn nvmlDeviceGetCount_v2(count: Out<u32>) {
        count.put(gpu_count(call))
    }
    fn nvmlDeviceGetHandleByIndex(index: u32, device: Out<Handle>) {
        device.put(gpu_handle(call.gpu_at(index as usize)?))
    }
    fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<Handle>) {
        device.put(gpu_handle(call.gpu_at(index as usize)?))
    }
    fn nvmlDeviceGetHandleByUUID(uuid: TextIn, device: Out<Handle>) {
        by_uuid(call, &uuid.get()?, device)
    }
    fn nvmlDeviceGetHandleBySerial(serial: TextIn, device: Out<Handle>) {
        let serial = serial.get()?;
        let index = call.state.gpus.iter().position(|gpu| gpu.serial == serial).ok_or(Code::NOT_FOUND)?;
        device.put(gpu_handle(call.gpu_at(index)?))
    }
    fn nvmlDeviceGetHandleByPciBusId(address: TextIn, device: Out<Handle>) {
        by_pci(call, &address.get()?, device)
    }
    fn nvmlDeviceGetHandleByPciBusId_v2(address: TextIn, device: Out<Handle>) {
        by_pci(call, &address.get()?, device)
    }
    fn nvmlDeviceGetName(device: Handle, name: TextOut, length: u32) {
        match call.readable(device)? {
            Device::Gpu(gpu) => name.put(&gpu.name, length),
            Device::Mig(gpu, mig) => name.put(&format!("{} MIG {}", gpu.name, mig.profile), length),
        }
    }
    fn nvmlDeviceGetUUID(device: Handle, uuid: TextOut, length: u32) {
        match call.readable(device)? {
            Device::Gpu(gpu) => uuid.put(&gpu.uuid, length),
            Device::Mig(_, mig) => uuid.put(&mig.uuid, length),
        }
    }
    fn nvmlDeviceGetIndex(device: Handle, index: Out<u32>) {
        match call.device(device)? {
            Device::Gpu(gpu) => index.put(gpu.index),
            Device::Mig(_, mig) => index.put(mig.index),
        }
    }
    fn nvmlDeviceGetMinorNumber(device: Handle, minor: Out<u32>) {
        match call.device(device)? {
            Device::Gpu(gpu) => minor.put(gpu.minor),
            Device::Mig(..) => Err(Code::NOT_SUPPORTED),
        }
    }
    fn nvmlDeviceGetSerial(device: Handle, serial: TextOut, length: u32) {
        serial.put(&call.device(device)?.gpu().serial, length)
    }
    fn nvmlDeviceGetBoardPartNumber(device: Handle, number: TextOut, length: u32) {
        call.device(device)?;
        number.put("900-00000-0000-000", length)
    }
    fn nvmlDeviceGetVbiosVersion(device: Handle, version: TextOut, length: u32) {
        call.device(device)?;
        version.put("96.00.00.00.01", length)
    }
    /// `NVML_BRAND_NVIDIA` 14, `NVML_BRAND_TESLA` 2, `NVML_BRAND_NVIDIA_RTX` 12.
    fn nvmlDeviceGetBrand(device: Handle, brand: Out<c_int>) {
        let gpu = call.device(device)?.gpu();
        brand.put(if gpu.name.contains("RTX") { 12 } else if gpu.name.contains("Tesla") { 2 } else { 14 })
    }
    fn nvmlDeviceGetArchitecture(device: Handle, architecture: Out<u32>) {
        architecture.put(match call.device(device)?.gpu().model.architecture {
            Architecture::Volta => 5,
            Architecture::Turing => 6,
            Architecture::Ampere => 7,
            Architecture::Hopper => 9,
            Architecture::Blackwell => 10,
        })
    }
    fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: Out<c_int>, minor: Out<c_int>) {
        let capability = &call.device(device)?.gpu().model.compute_capability;
        let (whole, part) = capability.split_once('.').ok_or(Code::UNKNOWN)?;
        major.put(whole.parse().ok().ok_or(Code::UNKNOWN)?)?;
        minor.put(part.parse().ok().ok_or(Code::UNKNOWN)?)
    }
    fn nvmlDeviceGetPciInfo(device: Handle, info: Out<PciInfo>) {
        info.put(pci(call.device(device)?.gpu())?)
    }
    fn nvmlDeviceGetPciInfo_v2(device: Handle, info: Out<PciInfoV2>) {
        let pci = pci(call.device(device)?.gpu())?;
        info.put(PciInfoV2 {
            bus_id: pci.bus_id_legacy,
            domain: pci.domain,
            bus: pci.bus,
            device: pci.device,
            device_id: pci.device_id,
            subsystem_id: pci.subsystem_id,
            reserved: [0; 4],
        })
    }
    fn nvmlDeviceGetPciInfo_v3(device: Handle, info: Out<PciInfo>) {
        info.put(pci(call.device(device)?.gpu())?)
    }
    fn nvmlDeviceGetMemoryInfo(device: Handle, info: Out<Memory>) {
        let (total, used) = memory(call, device)?;
        info.put(Memory { total, free: total - used, used })
    }
    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, info: Out<MemoryV2>) {
        let (total, used) = memory(call, device)?;
        let version = info.version()?;
        if version != version_of::<MemoryV2>(2) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        info.put(MemoryV2 { version, total, reserved: 0, free: total - used, used })
    }
    /// A slice has as large a part of it as of the memory.
    fn nvmlDeviceGetBAR1MemoryInfo(device: Handle, info: Out<Bar1Memory>) {
        let device = call.readable(device)?;
        let gpu = device.gpu();
        let whole = gpu.memory_mib.next_power_of_two() * MIB;
        let total = match device {
            Device::Gpu(gpu) => {
                call.monitor(gpu)?;
                whole
            }
            Device::Mig(_, mig) => whole * u64::from(mig.placement.size) / u64::from(gpu.model.memory_slices),
        };
        info.put(Bar1Memory { total, free: total, used: 0 })
    }
    fn nvmlDeviceGetUtilizationRates(device: Handle, utilization: Out<Utilization>) {
        // With MIG on, the parts are busy each for itself and no sum is known.
        if call.gpu(device)?.mig_mode {
            return Err(Code::NOT_SUPPORTED);
        }
        utilization.put(Utilization { gpu: 0, memory: 0 })
    }
    fn nvmlDeviceGetTemperature(device: Handle, _sensor: c_int, celsius: Out<u32>) {
        call.gpu(device)?;
        celsius.put(35)
    }
    fn nvmlDeviceGetPowerUsage(device: Handle, milliwatts: Out<u32>) {
        call.gpu(device)?;
        milliwatts.put(70_000)
    }
    fn nvmlDeviceGetPersistenceMode(device: Handle, mode: Out<c_int>) {
        mode.put(c_int::from(call.gpu(device)?.start.is_none()))
    }
    fn nvmlDeviceGetComputeMode(device: Handle, mode: Out<c_int>) {
        call.device(device)?;
        mode.put(0)
    }
    fn nvmlDeviceSetComputeMode(device: Handle, _mode: c_int) {
        call.admin()?;
        call.device(device).map(drop)
    }
    fn nvmlDeviceGetPerformanceState(device: Handle, state: Out<c_int>) {
        call.gpu(device)?;
        state.put(0)
    }
    fn nvmlDeviceGetEccMode(device: Handle, current: Out<c_int>, pending: Out<c_int>) {
        call.gpu(device)?;
        current.put(1)?;
        pending.put(1)
    }
    fn nvmlDeviceGetTotalEccErrors(device: Handle, _kind: c_int, _counter: c_int, count: Out<u64>) {
        call.device(device)?;
        count.put(0)
    }
    fn nvmlDeviceGetRemappedRows(
        device: Handle, corrected: Out<u32>, uncorrected: Out<u32>, pending: Out<u32>, failed: Out<u32>,
    ) {
        remappable(call, device)?;
        [corrected, uncorrected, pending, failed].into_iter().try_for_each(|out| out.put(0))
    }
    fn nvmlDeviceGetRowRemapperHistogram(device: Handle, histogram: Out<RowRemapperHistogram>) {
        remappable(call, device)?;
        histogram.put(RowRemapperHistogram { max: 640, high: 0, partial: 0, low: 0, none: 0 })
    }
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: Handle, count: Out<u32>, list: Array<ProcessInfo>) {
        processes(call, device, count, list)
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: Handle, count: Out<u32>, list: Array<ProcessInfo>) {
        processes(call, device, count, list)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Handle, count: Out<u32>, list: Array<ProcessInfo>) {
        no_processes(call, device, count, list)
    }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Handle, count: Out<u32>, list: Array<ProcessInfo>) {
        no_processes(call, device, count, list)
    }
    /// `NVML_GPU_VIRTUALIZATION_MODE_NONE`.
    fn nvmlDeviceGetVirtualizationMode(device: Handle, mode: Out<c_int>) {
        call.gpu(device)?;
        mode.put(0)
    }
    fn nvmlDeviceGetFieldValues(device: Handle, count: c_int, values: Array<FieldValue>) {
        let device = call.device(device)?;
        let count = usize::try_from(count).ok().ok_or(Code::INVALID_ARGUMENT)?;
        let driver = driver_major(call);
        let links = call.state.connections.links(device.gpu()).len();
        values.each(count, |value| field(device.gpu(), driver, u32::try_from(links).unwrap_or(0), value))
    }
    fn nvmlDeviceGetNumaNodeId(device: Handle, _node: Out<u32>) {
        not_supported(call, device)
    }
    fn nvmlDeviceGetAddressingMode(device: Handle, _mode: Out<u32>) {
        not_supported(call, device)
    }
    fn nvmlDeviceGetFanSpeed(device: Handle, _percent: Out<u32>) {
        not_supported(call, device)
    }
    fn nvmlDeviceGetDisplayMode(device: Handle, mode: Out<c_int>) {
        call.gpu(device)?;
        mode.put(0)
    }
    fn nvmlDeviceGetDisplayActive(device: Handle, active: Out<c_int>) {
        call.gpu(device)?;
        active.put(0)
    }
    fn nvmlDeviceGetGpuFabricInfo(device: Handle, _info: Out<u32>) {
        not_supported(call, device)
    }
    fn nvmlDeviceGetGpuFabricInfoV(device: Handle, _info: Out<u32>) {
        not_supported(call, device)
    }
}

fn gpu_count(call: &Call) -> u32 {
    u32::try_from(call.state.gpus.len()).unwrap_or(u32::MAX)
}

/// The driver's major version: some answers changed with it.
pub(super) fn driver_major(call: &Call) -> u32 {
    call.state.driver_version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

fn not_supported(call: &Call, device: Handle) -> Answer {
    call.device(device)?;
    Err(Code::NOT_SUPPORTED)
}

/// By `GPU-…`, by `MIG-…`, or by the form of drivers before 470: `MIG-GPU-…/gi/ci`.
fn by_uuid(call: &Call, uuid: &str, device: Out<Handle>) -> Answer {
    let is_lost = |gpu: &GpuState| {
        call.faults(Some(gpu.index), None).any(|fault| fault.code() == Some(Code::GPU_IS_LOST))
    };
    if call.state.uuid_lookup == UuidLookup::AnyGpu && call.state.gpus.iter().any(is_lost) {
        return Err(Code::GPU_IS_LOST);
    }
    for gpu in &call.state.gpus {
        if gpu.uuid == uuid {
            call.fault(Some(gpu.index), None)?;
            return device.put(gpu_handle(gpu));
        }
        for mig in gpu.mig.iter().filter(|mig| call.shows(mig)) {
            if mig.uuid == uuid || format!("MIG-{}/{}/{}", gpu.uuid, mig.gi, mig.ci) == uuid {
                call.fault(Some(gpu.index), Some(mig.index))?;
                return device.put(mig_handle(call, gpu, mig)?);
            }
        }
    }
    Err(Code::NOT_FOUND)
}

fn by_pci(call: &Call, address: &str, device: Out<Handle>) -> Answer {
    let wanted = parse_pci(&address.to_lowercase()).ok_or(Code::INVALID_ARGUMENT)?;
    let index = call.state.gpus.iter().position(|gpu| parse_pci(&gpu.pci) == Some(wanted));
    device.put(gpu_handle(call.gpu_at(index.ok_or(Code::NOT_FOUND)?)?))
}

pub(super) fn pci(gpu: &GpuState) -> Result<PciInfo, Code> {
    let (domain, bus, device) = parse_pci(&gpu.pci).ok_or(Code::UNKNOWN)?;
    Ok(PciInfo {
        bus_id_legacy: text(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        device_id: gpu.model.pci_device_id,
        subsystem_id: gpu.model.pci_device_id,
        bus_id: text(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    })
}

/// Memory in bytes, and how much of it processes use. The sum over a GPU with instances is for those who may see all
/// of them.
fn memory(call: &Call, device: Handle) -> Result<(u64, u64), Code> {
    let device = call.readable(device)?;
    let total = match device {
        Device::Gpu(gpu) => {
            call.monitor(gpu)?;
            gpu.memory_mib * MIB
        }
        Device::Mig(_, mig) => mig.memory_mib * MIB,
    };
    let used: u64 = users(device).map(|process| process.memory_mib * MIB).sum();
    Ok((total, used.min(total)))
}

/// Processes that use a GPU or anything of it, or the GPU instance of a MIG device, whose memory its compute instances
/// share.
fn users(device: Device<'_>) -> impl Iterator<Item = &Process> {
    let gi = match device {
        Device::Gpu(_) => None,
        Device::Mig(_, mig) => Some(mig.gi),
    };
    device.gpu().processes.iter().filter(move |process| gi.is_none_or(|gi| process.uses_instance(gi)))
}

/// Row remapping is not answered for while a GPU has instances, nor by models before Ampere.
fn remappable(call: &Call, device: Handle) -> Answer {
    let gpu = call.gpu(device)?;
    let known = gpu.model.architecture >= Architecture::Ampere && gpu.instances.is_empty();
    if known { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

fn processes(call: &Call, device: Handle, count: Out<u32>, list: Array<ProcessInfo>) -> Answer {
    let device = call.readable(device)?;
    if let Device::Gpu(gpu) = device {
        call.monitor(gpu)?;
    }
    let here = |process: &&Process| match device {
        Device::Gpu(_) => true,
        Device::Mig(_, mig) => process.uses_compute(mig.gi, mig.ci),
    };
    let listed = device.gpu().processes.iter().filter(|process| !process.unlisted).filter(here);
    let info = |process: &Process| ProcessInfo {
        pid: process.pid,
        used_memory: process.memory_mib * MIB,
        gi: process.gi.unwrap_or(NO_INSTANCE),
        ci: process.ci.unwrap_or(NO_INSTANCE),
    };
    let found: Vec<ProcessInfo> = listed.map(info).collect();
    // Asking for the number alone is answered with a code of its own, as nvml.h says of these calls.
    if count.get()? == 0 && !found.is_empty() {
        count.put_len(found.len())?;
        return Err(Code::INSUFFICIENT_SIZE);
    }
    put_counted(list, count, found)
}

/// Processes of a kind that the fake has none of.
fn no_processes(call: &Call, device: Handle, count: Out<u32>, list: Array<ProcessInfo>) -> Answer {
    if let Device::Gpu(gpu) = call.readable(device)? {
        call.monitor(gpu)?;
    }
    put_counted(list, count, Vec::new())
}

/// The fields that the fake knows; for others the value says that it is not supported.
fn field(gpu: &GpuState, driver: u32, links: u32, value: &mut FieldValue) {
    /// `NVML_VALUE_TYPE_UNSIGNED_INT`.
    const UNSIGNED: u32 = 1;
    let mig = gpu.model.knows_mig();
    let answer = match value.id {
        // NVML_FI_DEV_NVLINK_LINK_COUNT
        91 if links > 0 => Some(links),
        // NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
        184 if mig => Some(u32::from(gpu.model.architecture != Architecture::Ampere)),
        // NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE
        199 if mig => Some(u32::from(driver > super::profiles::LAST_MODE_DEPENDENT_DRIVER)),
        // NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        230 if mig => Some(gpu.recovery_action as u32),
        _ => None,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    value.timestamp = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    value.latency_us = 0;
    value.answer = answer.map_or(Code::NOT_SUPPORTED as c_int, |_| 0);
    value.kind = UNSIGNED;
    // A C union: its first bytes are those of the unsigned int, which on these machines are the low ones.
    value.value = u64::from(answer.unwrap_or(0));
}

//! Functions that the fake has nothing to say to: they answer `NOT_SUPPORTED`, or what is wrong with the GPU.
//!
//! They are exported because some clients are linked in a way that a missing function ends the process. Each
//! is declared with its first parameter alone: a C caller that passes more does no harm, as the caller cleans
//! up after itself on the platforms that there are drivers for.
#![allow(non_snake_case, reason = "NVML's names")]

use super::{
    call::Call,
    exports,
    ffi::{Answer, Handle},
};
use crate::Code;

fn refuse(call: &Call, device: Handle) -> Answer {
    call.device(device)?;
    Err(Code::NOT_SUPPORTED)
}

exports! { call call;
    fn nvmlDeviceGetBoardId(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMultiGpuBoard(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetBusType(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetBridgeChipInfo(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetCapabilities(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetC2cModeInfoV(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetClockInfo(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMaxClockInfo(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetApplicationsClock(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDefaultApplicationsClock(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetClock(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetCurrentClocksEventReasons(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedClocksEventReasons(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedClocksThrottleReasons(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedMemoryClocks(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedGraphicsClocks(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetConfComputeMemSizeInfo(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetCurrPcieLinkGeneration(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetCurrPcieLinkWidth(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMaxPcieLinkWidth(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPcieThroughput(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPcieReplayCounter(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPcieLinkMaxSpeed(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPcieSpeed(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDecoderUtilization(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetEncoderUtilization(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetEncoderStats(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetFBCStats(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetJpgUtilization(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetOfaUtilization(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDetailedEccErrors(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMemoryErrorCounter(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDefaultEccMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSramEccErrorStatus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRetiredPages(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRetiredPages_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRetiredPagesPendingStatus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRemappedRows_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRepairStatus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDriverModel(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetDriverModel_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGpuFabricInfo_v4(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGpuOperationMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGraphicsRunningProcesses(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetComputeRunningProcesses(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetRunningProcessDetailList(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetProcessUtilization(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetAccountingMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetAccountingPids(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGridLicensableFeatures_v4(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGspFirmwareMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetGspFirmwareVersion(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetHostVgpuMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetInforomVersion(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetInforomImageVersion(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetInforomConfigurationChecksum(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetIrqNum(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMemoryBusWidth(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetModuleId(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetNumGpuCores(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetNumFans(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetFanSpeed_v2(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPciInfoExt(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPdi(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPlatformInfo(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPowerManagementLimit(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPowerManagementLimitConstraints(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPowerManagementDefaultLimit(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPowerManagementMode(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetEnforcedPowerLimit(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetPowerState(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetTotalEnergyConsumption(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetTemperatureThreshold(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetTemperatureV(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetMarginTemperature(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSamples(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedPerformanceStates(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetSupportedVgpus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetActiveVgpus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetViolationStatus(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetNvLinkErrorCounter(device: Handle) { refuse(call, device) }
    fn nvmlDeviceGetNvLinkUtilizationCounter(device: Handle) { refuse(call, device) }
}

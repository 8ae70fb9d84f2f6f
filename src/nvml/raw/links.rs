//! How GPUs are connected.

use nvml_wrapper::Device;
use nvml_wrapper_sys::bindings as sys;

use super::{check, handle};
use crate::inventory::PciePath;
use crate::nvml::error::CallError;

/// What lies between two GPUs on the way over PCIe; `None` for a level that this program does not know.
pub(in crate::nvml) fn common_ancestor(
    a: &Device<'_>,
    b: &Device<'_>,
) -> Result<Option<PciePath>, CallError> {
    let function = function!(a.nvml(), nvmlDeviceGetTopologyCommonAncestor)?;
    let mut level = 0;
    // JUSTIFICATION: the safe wrapper takes the second device away from its owner, who needs it for the next pair.
    // SAFETY: both handles belong to this library, which stays open for the call; `level` outlives it.
    let code = unsafe { function(handle(a), handle(b), &raw mut level) };
    check("nvmlDeviceGetTopologyCommonAncestor", code)?;
    Ok(match level {
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL => Some(PciePath::Board),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SINGLE => Some(PciePath::Switch),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_MULTIPLE => Some(PciePath::Switches),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_HOSTBRIDGE => Some(PciePath::HostBridge),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE => Some(PciePath::Node),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM => Some(PciePath::System),
        _ => None,
    })
}

//! What one GPU says.

use std::collections::BTreeMap;
use std::sync::Mutex;

use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};

use super::Told;
use crate::inventory::{Gpu, MigMode, Problem, RecoveryAction, Trouble};
use crate::nvml::calls::{Caller, lock};
use crate::nvml::caps::{self, MigMinors};
use crate::nvml::error::CallError;
use crate::nvml::models::Models;
use crate::nvml::places::{Roots, sysfs_address};
use crate::nvml::raw;
use crate::nvml::stamps::Stamps;

/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`
const RECOVERY_ACTION: FieldId = FieldId(230);

/// Stands for a GPU's name where the driver does not tell it.
pub(super) const UNKNOWN_NAME: &str = "unknown";

/// Reads one GPU.
pub(super) struct Reader<'a> {
    pub(super) nvml: &'a Nvml,
    pub(super) calls: &'a Caller,
    pub(super) roots: &'a Roots,
    pub(super) minors: Option<&'a MigMinors>,
    pub(super) models: &'a mut Models,
    pub(super) told: &'a Mutex<BTreeMap<String, Told>>,
    pub(super) stamps: &'a Stamps,
    /// Its NVML index.
    pub(super) index: u32,
    /// Its UUID, once told.
    pub(super) uuid: Option<String>,
    pub(super) problems: Vec<Problem>,
    pub(super) sees_instances: Option<bool>,
}

impl Reader<'_> {
    /// Notes that a detail is missing, of the GPU or of the MIG device with this index.
    pub(super) fn incomplete(&mut self, mig_device: Option<u32>, reason: Trouble) {
        let gpu = self.index;
        self.problems.push(Problem { gpu, mig_device, uuid: None, reason, left_out: false });
    }

    /// The answer, or `None` where only a detail is missing: then with a problem, except where the driver
    /// just does not tell this process.
    pub(super) fn detail<T>(
        &mut self,
        mig_device: Option<u32>,
        answer: Result<T, CallError>,
    ) -> Result<Option<T>, CallError> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.driver_is_gone() || error.gpu_is_gone() => Err(error),
            Err(error) if error.is_refusal() => Ok(None),
            Err(error) => {
                self.incomplete(mig_device, error.trouble());
                Ok(None)
            }
        }
    }

    pub(super) fn gpu(&mut self) -> Result<Gpu, CallError> {
        let (nvml, calls, index) = (self.nvml, self.calls, self.index);
        let device = calls.ask("nvmlDeviceGetHandleByIndex_v2", || nvml.device_by_index(index))?;
        let uuid = calls.ask("nvmlDeviceGetUUID", || device.uuid())?;
        self.uuid = Some(uuid.clone());
        let minor = calls.ask("nvmlDeviceGetMinorNumber", || device.minor_number())?;
        let mut told = lock(self.told).get(&uuid).cloned().unwrap_or_default();
        let mig_mode = match calls.ask("nvmlDeviceGetMigMode", || device.mig_mode()) {
            Ok(mode) => Some(MigMode { current: mode.current != 0, pending: mode.pending != 0 }),
            // The GPU or its driver is older than MIG. One that has told its mode is not, and whether it is cut into
            // slices is unknown then.
            Err(error) if error.is_refusal() && !told.knows_mig => None,
            Err(error) => return Err(error),
        };
        told.knows_mig |= mig_mode.is_some();
        let name = calls.ask("nvmlDeviceGetName", || device.name());
        let name = self.detail(None, name)?.unwrap_or_else(|| UNKNOWN_NAME.to_owned());
        let pci = calls.ask("nvmlDeviceGetPciInfo_v3", || device.pci_info());
        let pci_bus_id = self.detail(None, pci)?.map(|pci| sysfs_address(&pci.bus_id)).unwrap_or_default();
        // In MIG mode the aggregate can need privileges.
        let total = calls.ask("nvmlDeviceGetMemoryInfo", || raw::memory_total(&device));
        let memory_mib = self.detail(None, total)?.map(|bytes| bytes / (1024 * 1024));
        let recovery_action = self.recovery_action(&device, told.recovery_action)?;
        told.recovery_action = recovery_action;
        lock(self.told).insert(uuid.clone(), told);

        let mut gpu = Gpu {
            index,
            uuid,
            name,
            numa_node: self.roots.numa_node(&pci_bus_id),
            pci_bus_id,
            minor,
            memory_mib,
            memory_slices: None,
            mig_mode,
            node: caps::gpu_node(self.roots, minor),
            mig_devices: Vec::new(),
            empty_gpu_instances: Vec::new(),
            hidden: Vec::new(),
            recovery_action,
            problem: None,
        };
        if gpu.mig_enabled() {
            self.mig_devices(&device, &mut gpu)?;
        }
        let files = gpu.mig_devices.iter().filter_map(|found| found.access_file.as_deref()).collect();
        self.stamps.retain(&caps::mig_folder(self.roots, minor), &files);
        Ok(gpu)
    }

    /// What the GPU needs. A driver that does not know the field says so in one of several ways; where it has told the
    /// field before, only a plain "not supported" takes that back.
    fn recovery_action(
        &mut self,
        device: &Device<'_>,
        told: Option<RecoveryAction>,
    ) -> Result<Option<RecoveryAction>, CallError> {
        let answer = self.calls.ask("nvmlDeviceGetFieldValues", || {
            let values = device.field_values_for(&[RECOVERY_ACTION])?;
            values.into_iter().next().transpose()?.map(|sample| sample.value).transpose()
        });
        let kept = answer.as_ref().err().filter(|error| !error.is_not_supported()).and(told);
        let value = match answer {
            Err(error) if error.is_about_the_argument() => None,
            answer => self.detail(None, answer)?.flatten(),
        };
        let number = match value {
            Some(SampleValue::U32(number)) => Some(u64::from(number)),
            Some(SampleValue::U64(number)) => Some(number),
            Some(SampleValue::I64(number)) => u64::try_from(number).ok(),
            Some(SampleValue::F64(_)) | None => None,
        };
        Ok(number.map(RecoveryAction::from_nvml).or(kept))
    }
}

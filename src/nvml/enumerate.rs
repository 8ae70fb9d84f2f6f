//! One look at the driver: what it says, as an [`Inventory`].
//!
//! Per GPU these are some ten calls, and per MIG device seven; a model's profiles and what its kinds of
//! device are called are asked only once. All else is asked on every look: instances come and go.

use std::path::PathBuf;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::DeviceAttributes;
use nvml_wrapper::{Device, Nvml};

use super::caps::{self, MigMinors};
use super::error::{CallError, DriverError};
use super::models::{Model, Models};
use super::places::{Paths, Roots, sysfs_address};
use super::{library, raw};
use crate::inventory::{Gpu, Inventory, MigDevice, MigMode, Placement, Problem, Profile, Trouble};

/// The opened and initialised library, and what is kept with it. Dropping it shuts NVML down.
pub(super) struct Driver {
    nvml: Nvml,
    library: PathBuf,
    version: String,
    cuda_version: Option<String>,
    models: Models,
    minors: Option<MigMinors>,
}

impl Driver {
    /// Opens the library that `paths` lead to.
    pub(super) fn open(paths: &Paths) -> Result<Self, DriverError> {
        let (nvml, library) = library::open(&paths.driver_root)?;
        let version = nvml
            .sys_driver_version()
            .map_err(named("nvmlSystemGetDriverVersion"))
            .map_err(|call| DriverError::from_call(library.clone(), call))?;
        // Old drivers lack the call, and nothing depends on it.
        let cuda_version = nvml.sys_cuda_driver_version().ok().map(cuda_version);
        Ok(Self { nvml, library, version, cuda_version, models: Models::default(), minors: None })
    }

    /// The file that was opened.
    pub(super) fn library(&self) -> &std::path::Path {
        &self.library
    }

    /// The driver's version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Looks at everything. An error means that the driver as a whole is gone.
    pub(super) fn look(&mut self, paths: &Paths) -> Result<Inventory, DriverError> {
        let failed = |call| DriverError::from_call(self.library.clone(), call);
        let roots = paths.roots();
        if self.minors.is_none() {
            self.minors = MigMinors::read(&roots.proc).ok();
        }
        let count = self.nvml.device_count().map_err(named("nvmlDeviceGetCount_v2")).map_err(failed)?;
        self.models.forget_incomplete();
        let mut look = Look {
            nvml: &self.nvml,
            roots: &roots,
            minors: self.minors.as_ref(),
            models: &mut self.models,
            problems: Vec::new(),
        };
        let mut gpus = Vec::with_capacity(count as usize);
        for index in 0..count {
            match look.gpu(index) {
                Ok(gpu) => gpus.push(gpu),
                Err(error) if error.driver_is_gone() => return Err(failed(error)),
                Err(error) => {
                    // What was said of its parts goes with it.
                    look.problems.retain(|problem| problem.gpu != index);
                    look.problem(index, None, error.trouble(), true);
                }
            }
        }
        let problems = look.problems;
        Ok(Inventory {
            driver_version: self.version.clone(),
            cuda_version: self.cuda_version.clone(),
            library: self.library.clone(),
            gpus,
            control_nodes: caps::control_nodes(&roots),
            problems,
            sees_instances: None,
        })
    }
}

struct Look<'a> {
    nvml: &'a Nvml,
    roots: &'a Roots,
    minors: Option<&'a MigMinors>,
    models: &'a mut Models,
    problems: Vec<Problem>,
}

/// Stands for a GPU's name where the driver does not tell it.
const UNKNOWN_NAME: &str = "unknown";

/// What reading a MIG device needs to know of its GPU.
struct Parent<'gpu, 'nvml> {
    device: &'gpu Device<'nvml>,
    index: u32,
    /// Its name, as far as that tells models apart.
    model: &'gpu str,
    minor: u32,
    total_mib: Option<u64>,
    /// GPU instances asked for so far. Several compute instances can lie in one.
    instances: Vec<(u32, Option<Instance>)>,
    /// Cleared by the first "no permission", which would be the answer for the others as well.
    may_ask_for_instances: bool,
}

/// Profile ID and placement of a GPU instance.
type Instance = (u32, Placement);

impl Look<'_> {
    fn problem(&mut self, gpu: u32, mig_device: Option<u32>, reason: Trouble, left_out: bool) {
        self.problems.push(Problem { gpu, mig_device, uuid: None, reason, left_out });
    }

    /// The answer, or `None` where only a detail is missing: then with a problem, except where the driver
    /// just does not tell this process.
    fn detail<T>(
        &mut self,
        gpu: u32,
        mig_device: Option<u32>,
        answer: Result<T, CallError>,
    ) -> Result<Option<T>, CallError> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.driver_is_gone() || error.gpu_is_gone() => Err(error),
            Err(error) if error.is_refusal() => Ok(None),
            Err(error) => {
                self.problem(gpu, mig_device, error.trouble(), false);
                Ok(None)
            }
        }
    }

    fn gpu(&mut self, index: u32) -> Result<Gpu, CallError> {
        let device = self.nvml.device_by_index(index).map_err(named("nvmlDeviceGetHandleByIndex_v2"))?;
        let uuid = device.uuid().map_err(named("nvmlDeviceGetUUID"))?;
        let minor = device.minor_number().map_err(named("nvmlDeviceGetMinorNumber"))?;
        let mig_mode = match device.mig_mode().map_err(named("nvmlDeviceGetMigMode")) {
            Ok(mode) => Some(MigMode { current: mode.current != 0, pending: mode.pending != 0 }),
            // The GPU or its driver is older than MIG.
            Err(error) if error.is_refusal() => None,
            Err(error) => return Err(error),
        };
        let name = device.name().map_err(named("nvmlDeviceGetName"));
        let name = self.detail(index, None, name)?.unwrap_or_else(|| UNKNOWN_NAME.to_owned());
        let pci = device.pci_info().map_err(named("nvmlDeviceGetPciInfo_v3"));
        let pci_bus_id =
            self.detail(index, None, pci)?.map(|pci| sysfs_address(&pci.bus_id)).unwrap_or_default();
        // In MIG mode the aggregate can need privileges.
        let total = raw::memory_total(&device);
        let memory_mib = self.detail(index, None, total)?.map(|bytes| bytes / (1024 * 1024));

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
            recovery_action: None,
            problem: None,
        };
        if gpu.mig_enabled() {
            self.mig_devices(&device, &mut gpu)?;
        }
        Ok(gpu)
    }

    fn mig_devices(&mut self, device: &Device<'_>, gpu: &mut Gpu) -> Result<(), CallError> {
        let model = if gpu.name == UNKNOWN_NAME { &gpu.uuid } else { &gpu.name };
        gpu.memory_slices = self.models.of(device, model, gpu.memory_mib)?.memory_slices;
        let most = device.mig_device_count().map_err(named("nvmlDeviceGetMaxMigDeviceCount"))?;
        let mut parent = Parent {
            device,
            index: gpu.index,
            model,
            minor: gpu.minor,
            total_mib: gpu.memory_mib,
            instances: Vec::new(),
            may_ask_for_instances: true,
        };
        for index in 0..most {
            match self.mig_device(&mut parent, index) {
                Ok(Some(found)) => gpu.mig_devices.push(found),
                Ok(None) => {}
                Err(error) if error.driver_is_gone() || error.gpu_is_gone() => return Err(error),
                Err(error) => {
                    self.problem(gpu.index, Some(index), error.trouble(), true);
                }
            }
        }
        gpu.mig_devices.sort_by_key(|found| (found.gpu_instance, found.compute_instance));
        gpu.empty_gpu_instances = caps::empty_gpu_instances(self.roots, gpu.minor);
        gpu.empty_gpu_instances.retain(|gi| gpu.mig_devices.iter().all(|found| found.gpu_instance != *gi));
        if self.minors.is_none() && !gpu.mig_devices.is_empty() {
            let reason = format!(
                "{} cannot be read: the capability nodes of its MIG devices are unknown",
                MigMinors::path(&self.roots.proc).display()
            );
            self.problem(gpu.index, None, Trouble::unreadable(reason), false);
        }
        Ok(())
    }

    /// The MIG device with this index, or `None` where the index is a hole.
    fn mig_device(
        &mut self,
        parent: &mut Parent<'_, '_>,
        index: u32,
    ) -> Result<Option<MigDevice>, CallError> {
        let handle = parent.device.mig_device_by_index(index);
        let device = match handle.map_err(named("nvmlDeviceGetMigDeviceHandleByIndex")) {
            Ok(device) => device,
            Err(error) if error.is_hole() => return Ok(None),
            Err(error) => return Err(error),
        };
        let gi = raw::gpu_instance_id(&device)?;
        let ci = raw::compute_instance_id(&device)?;
        // Before anything that identifies the device, so that a change in between shows.
        let (access_file, access_stamp) = caps::access_file(self.roots, parent.minor, gi, ci).unzip();
        let uuid = device.uuid().map_err(named("nvmlDeviceGetUUID"))?;
        let instance = self.gpu_instance(parent, index, gi)?;
        let profile_id = instance.map(|(id, _)| id);
        let attributes = self.attributes(parent, index, &device, profile_id)?;
        let profile = self.profile(parent, &device, profile_id, &attributes)?;

        let minors = self.minors;
        let gpu_instance_node = minors.and_then(|all| all.gpu_instance_node(self.roots, parent.minor, gi));
        let compute_instance_node =
            minors.and_then(|all| all.compute_instance_node(self.roots, parent.minor, gi, ci));
        if minors.is_some() && (gpu_instance_node.is_none() || compute_instance_node.is_none()) {
            let reason = format!(
                "{} has no line for gpu{}/gi{gi}/ci{ci}: the device's capability nodes are unknown",
                MigMinors::path(&self.roots.proc).display(),
                parent.minor
            );
            self.problem(parent.index, Some(index), Trouble::unreadable(reason), false);
        }
        Ok(Some(MigDevice {
            index,
            uuid,
            gpu_instance: gi,
            compute_instance: ci,
            profile,
            profile_id,
            placement: instance.map(|(_, placement)| placement),
            memory_mib: attributes.memory_size_mb,
            sm_count: attributes.multiprocessor_count,
            gpu_instance_node,
            compute_instance_node,
            access_file,
            access_stamp,
            problem: None,
        }))
    }

    fn gpu_instance(
        &mut self,
        parent: &mut Parent<'_, '_>,
        mig_device: u32,
        gi: u32,
    ) -> Result<Option<Instance>, CallError> {
        if let Some((_, known)) = parent.instances.iter().find(|(known, _)| *known == gi) {
            return Ok(*known);
        }
        if !parent.may_ask_for_instances {
            return Ok(None);
        }
        let answer = raw::gpu_instance_by_id(parent.device, gi).and_then(|instance| instance.info());
        parent.may_ask_for_instances = !answer.as_ref().is_err_and(CallError::is_refusal);
        let instance = self.detail(parent.index, Some(mig_device), answer)?;
        parent.instances.push((gi, instance));
        Ok(instance)
    }

    /// Sizes of the device. Where the driver does not tell, those of its profile.
    fn attributes(
        &mut self,
        parent: &Parent<'_, '_>,
        mig_device: u32,
        device: &Device<'_>,
        profile_id: Option<u32>,
    ) -> Result<DeviceAttributes, CallError> {
        let error = match device.attributes().map_err(named("nvmlDeviceGetAttributes_v2")) {
            Ok(attributes) => return Ok(attributes),
            Err(error) if error.is_refusal() => error,
            Err(error) => return Err(error),
        };
        let model = self.model(parent)?;
        let profile = profile_id.and_then(|id| model.profile(id)).cloned();
        self.problem(parent.index, Some(mig_device), error.trouble(), false);
        let size = |of: fn(&raw::ProfileInfo) -> u32| profile.as_ref().map_or(0, of);
        Ok(DeviceAttributes {
            multiprocessor_count: size(|profile| profile.sm_count),
            shared_copy_engine_count: 0,
            shared_decoder_count: 0,
            shared_encoder_count: 0,
            shared_jpeg_count: 0,
            shared_ofa_count: 0,
            gpu_instance_slice_count: size(|profile| profile.slice_count),
            compute_instance_slice_count: size(|profile| profile.slice_count),
            memory_size_mb: profile.as_ref().map_or(0, |profile| profile.memory_mib),
        })
    }

    fn profile(
        &mut self,
        parent: &Parent<'_, '_>,
        device: &Device<'_>,
        profile_id: Option<u32>,
        attributes: &DeviceAttributes,
    ) -> Result<Profile, CallError> {
        let device_name = || match device.name().map_err(named("nvmlDeviceGetName")) {
            Ok(name) => Ok(Some(name)),
            Err(error) if error.driver_is_gone() || error.gpu_is_gone() => Err(error),
            // There are other ways to the name.
            Err(_) => Ok(None),
        };
        self.model(parent)?.name_of(profile_id, attributes, parent.total_mib, device_name)
    }

    fn model(&mut self, parent: &Parent<'_, '_>) -> Result<&mut Model, CallError> {
        self.models.of(parent.device, parent.model, parent.total_mib)
    }
}

/// Puts the call's name to an error of nvml-wrapper's.
fn named(call: &'static str) -> impl Fn(NvmlError) -> CallError {
    move |error| CallError::from_wrapper(call, error)
}

/// `13000` is CUDA 13.0.
fn cuda_version(version: i32) -> String {
    format!(
        "{}.{}",
        nvml_wrapper::cuda_driver_version_major(version),
        nvml_wrapper::cuda_driver_version_minor(version)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn cuda_versions_have_a_point() {
        assert_eq!(super::cuda_version(13000), "13.0");
        assert_eq!(super::cuda_version(12080), "12.8");
    }
}

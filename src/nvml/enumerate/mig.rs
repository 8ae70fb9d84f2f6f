//! What a GPU's MIG devices say.

use std::collections::BTreeSet;
use std::time::Instant;

use nvml_wrapper::Device;
use nvml_wrapper::struct_wrappers::device::DeviceAttributes;

use super::SETTLING;
use super::gpu::{Reader, UNKNOWN_NAME};
use crate::inventory::{Gpu, HiddenSlice, MigDevice, Placement, Problem, Profile, Trouble};
use crate::nvml::calls::lock;
use crate::nvml::caps::{self, Instances, MigMinors};
use crate::nvml::error::CallError;
use crate::nvml::models::Model;
use crate::nvml::raw;

/// What reading a MIG device needs to know of its GPU.
struct Parent<'gpu, 'nvml> {
    device: &'gpu Device<'nvml>,
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

/// What is at a MIG index.
enum Found {
    Device(Box<MigDevice>),
    /// Nothing: the index is a hole.
    Nothing,
    /// One device when the reading began, and another one when it ended: a handle is used again for the next device
    /// when its own is destroyed.
    Several,
}

/// How often an index is read at which each time there is another device.
const TRIES: usize = 3;

impl Reader<'_> {
    pub(super) fn mig_devices(&mut self, device: &Device<'_>, gpu: &mut Gpu) -> Result<(), CallError> {
        let model = if gpu.name == UNKNOWN_NAME { &gpu.uuid } else { &gpu.name };
        gpu.memory_slices = self.models.of(self.calls, device, model, gpu.memory_mib)?.memory_slices;
        let most = self.calls.ask("nvmlDeviceGetMaxMigDeviceCount", || device.mig_device_count())?;
        let mut parent = Parent {
            device,
            model,
            minor: gpu.minor,
            total_mib: gpu.memory_mib,
            instances: Vec::new(),
            may_ask_for_instances: true,
        };
        for index in 0..most {
            let mut uuid = None;
            let mut found = Ok(Found::Several);
            let known = self.problems.len();
            for _ in 0..TRIES {
                // What was said of two devices at once is about none.
                self.problems.truncate(known);
                found = self.mig_device(&mut parent, index, &mut uuid);
                if !matches!(found, Ok(Found::Several)) {
                    break;
                }
            }
            match found {
                Ok(Found::Device(found)) => gpu.mig_devices.push(*found),
                Ok(Found::Nothing) => {}
                Ok(Found::Several) => {
                    let reason = Trouble::unreadable("it became another device while it was read");
                    let (gpu, mig_device) = (self.index, Some(index));
                    self.problems.push(Problem { gpu, mig_device, uuid: None, reason, left_out: true });
                }
                Err(error) if error.driver_is_gone() || error.gpu_is_gone() => return Err(error),
                Err(error) => {
                    let (gpu, mig_device, reason) = (self.index, Some(index), error.trouble());
                    self.problems.push(Problem { gpu, mig_device, uuid, reason, left_out: true });
                }
            }
        }
        gpu.mig_devices.sort_by_key(|found| (found.gpu_instance, found.compute_instance));
        self.compare_with_files(gpu);
        if self.minors.is_none() && !gpu.mig_devices.is_empty() {
            let reason = format!(
                "{} cannot be read: the capability nodes of its MIG devices are unknown",
                MigMinors::path(&self.roots.proc).display()
            );
            self.incomplete(None, Trouble::unreadable(reason));
        }
        Ok(())
    }

    /// Compares what NVML lists with the capability files, which come before their slice is listed and go before it is not
    /// any more.
    fn compare_with_files(&mut self, gpu: &mut Gpu) {
        if !caps::are_visible(self.roots) {
            return;
        }
        for device in gpu.mig_devices.iter_mut().filter(|device| device.access_file.is_none()) {
            device.problem = Some(Trouble::unreadable(
                "its capability file has gone: it is being destroyed, or was only destroyed in part",
            ));
        }
        let listed: BTreeSet<_> =
            gpu.mig_devices.iter().map(|device| (device.gpu_instance, device.compute_instance)).collect();
        let Instances { slices, empty } = caps::instances(self.roots, gpu.minor);
        gpu.empty_gpu_instances =
            empty.into_iter().filter(|gi| listed.iter().all(|(listed, _)| listed != gi)).collect();
        let now = Instant::now();
        let mut told = lock(self.told);
        let since = &mut told.entry(gpu.uuid.clone()).or_default().hidden;
        since.retain(|slice, _| slices.contains(slice) && !listed.contains(slice));
        for (gpu_instance, compute_instance) in slices.difference(&listed).copied() {
            let since = *since.entry((gpu_instance, compute_instance)).or_insert(now);
            let settled = now.duration_since(since) >= SETTLING;
            gpu.hidden.push(HiddenSlice { gpu_instance, compute_instance, settled });
        }
        drop(told);
        // What is listed and cannot be read may be any of those that are not.
        let left_out = |problem: &Problem| problem.left_out && problem.mig_device.is_some();
        if self.problems.iter().any(left_out) {
            return;
        }
        let settled: Vec<_> = gpu.hidden.iter().filter(|slice| slice.settled).collect();
        if let Some(first) = settled.first() {
            let names =
                settled.iter().map(|slice| format!("gi{}/ci{}", slice.gpu_instance, slice.compute_instance));
            let names = names.collect::<Vec<_>>().join(", ");
            let text = format!("MIG devices that /proc shows are {} ({names})", first.trouble());
            self.incomplete(None, Trouble::unreadable(text));
        }
    }

    /// What is at this index. Its UUID goes to `known` as soon as it is told, so that it can be named if something fails
    /// later.
    fn mig_device(
        &mut self,
        parent: &mut Parent<'_, '_>,
        index: u32,
        known: &mut Option<String>,
    ) -> Result<Found, CallError> {
        let calls = self.calls;
        let handle = || parent.device.mig_device_by_index(index);
        let device = match calls.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle) {
            Ok(device) => device,
            Err(error) if error.is_hole() => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let uuid = || calls.ask("nvmlDeviceGetUUID", || device.uuid());
        let ids = || {
            let gi = calls.ask("nvmlDeviceGetGpuInstanceId", || raw::gpu_instance_id(&device))?;
            let ci = calls.ask("nvmlDeviceGetComputeInstanceId", || raw::compute_instance_id(&device))?;
            Ok((gi, ci))
        };
        let (gi, ci) = match ids() {
            Ok(ids) => ids,
            Err(error) => {
                *known = uuid().ok();
                return Err(error);
            }
        };
        // Before anything that identifies the device, so that a change in between shows.
        let access_file = caps::access_file(self.roots, parent.minor, gi, ci);
        let access_stamp = self.stamps.of(&access_file);
        let access_file = access_stamp.map(|_| access_file);
        let uuid = uuid()?;
        *known = Some(uuid.clone());
        let instance = self.gpu_instance(parent, index, gi)?;
        let profile_id = instance.map(|(id, _)| id);
        let attributes = self.attributes(parent, index, &device, profile_id)?;
        let profile = self.profile(parent, &device, profile_id, &attributes)?;
        if ids()? != (gi, ci) {
            return Ok(Found::Several);
        }

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
            self.incomplete(Some(index), Trouble::unreadable(reason));
        }
        Ok(Found::Device(Box::new(MigDevice {
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
        })))
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
        let by_id = || raw::gpu_instance_by_id(parent.device, gi);
        let answer = self.calls.ask("nvmlDeviceGetGpuInstanceById", by_id);
        match &answer {
            Ok(_) => self.sees_instances = Some(true),
            Err(error) if error.is_no_permission() => self.sees_instances = Some(false),
            Err(_) => {}
        }
        let answer = answer.and_then(|instance| self.calls.ask("nvmlGpuInstanceGetInfo", || instance.info()));
        parent.may_ask_for_instances = !answer.as_ref().is_err_and(CallError::is_refusal);
        let instance = self.detail(Some(mig_device), answer)?;
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
        let error = match self.calls.ask("nvmlDeviceGetAttributes_v2", || device.attributes()) {
            Ok(attributes) => return Ok(attributes),
            Err(error) if error.is_refusal() => error,
            Err(error) => return Err(error),
        };
        let model = self.model(parent)?;
        let profile = profile_id.and_then(|id| model.profile(id)).cloned();
        self.incomplete(Some(mig_device), error.trouble());
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
        let calls = self.calls;
        let device_name = || match calls.ask("nvmlDeviceGetName", || device.name()) {
            Ok(name) => Ok(Some(name)),
            Err(error) if error.driver_is_gone() || error.gpu_is_gone() => Err(error),
            // There are other ways to the name.
            Err(_) => Ok(None),
        };
        self.model(parent)?.name_of(profile_id, attributes, parent.total_mib, device_name)
    }

    fn model(&mut self, parent: &Parent<'_, '_>) -> Result<&mut Model, CallError> {
        self.models.of(self.calls, parent.device, parent.model, parent.total_mib)
    }
}

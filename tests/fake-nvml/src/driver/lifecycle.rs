//! Calls that change MIG mode, and make and destroy instances: they edit the node's description.
//!
//! MIG mode is for administrators, the rest for those who may configure MIG, too. A change by one process is seen by all, as an edit by hand is.
#![allow(non_snake_case, reason = "NVML's names")]

use std::ffi::c_int;

use super::{
    abi::Placement,
    call::{Call, compute_handle, instance_handle},
    exports,
    ffi::{Answer, Handle, In, Out},
    node,
    profiles::compute_profile_slices,
};
use crate::{
    Code, ComputeInstance, Description, Instance, MigOff, Node, NodeError, NodeState, Situation,
    catalogue::Architecture, description::Gpu, state::GpuState,
};

exports! { call call;
    /// From Hopper on at once. Ampere's boards have to be reset, which the call does where no other client has the GPU
    /// open; else the mode is pending, and `activation` says `IN_USE`.
    fn nvmlDeviceSetMigMode(device: Handle, mode: u32, activation: Out<c_int>) {
        let gpu = call.gpu(device)?;
        call.admin()?;
        if !gpu.model.knows_mig() {
            return Err(call.code(Situation::WithoutMig));
        }
        if mode > 1 || activation.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        set_mode(call, gpu, mode == 1, activation)
    }
    fn nvmlDeviceCreateGpuInstance(device: Handle, profile: u32, instance: Out<Handle>) {
        create(call, device, profile, None, instance)
    }
    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: Handle, profile: u32, placement: In<Placement>, instance: Out<Handle>,
    ) {
        create(call, device, profile, Some(placement.get()?), instance)
    }
    fn nvmlGpuInstanceDestroy(instance: Handle) {
        let (gpu, instance) = call.instance(instance)?;
        call.config()?;
        let used = gpu.processes.iter().any(|process| process.uses_instance(instance.gi));
        if used || !instance.compute.is_empty() {
            return Err(call.code(Situation::InUse));
        }
        let fails = call.fails_late(gpu.index, None);
        change(gpu, |gpu| match fails {
            Some(_) => {
                if let Some(failed) = gpu.layout.iter_mut().find(|other| other.gi == Some(instance.gi)) {
                    failed.access_file_gone = true;
                }
            }
            None => gpu.layout.retain(|other| other.gi != Some(instance.gi)),
        })?;
        fails.map_or(Ok(()), Err)
    }
    fn nvmlGpuInstanceCreateComputeInstance(instance: Handle, profile: u32, compute: Out<Handle>) {
        create_compute(call, instance, profile, None, compute)
    }
    fn nvmlGpuInstanceCreateComputeInstanceWithPlacement(
        instance: Handle, profile: u32, placement: In<Placement>, compute: Out<Handle>,
    ) {
        create_compute(call, instance, profile, Some(placement.get()?), compute)
    }
    fn nvmlComputeInstanceDestroy(compute: Handle) {
        let (gpu, instance, compute) = call.compute(compute)?;
        call.config()?;
        if gpu.processes.iter().any(|process| process.uses_compute(instance.gi, compute.ci)) {
            return Err(call.code(Situation::InUse));
        }
        let fails = call.fails_late(gpu.index, Some(compute.index));
        change(gpu, |gpu| {
            let Some(list) = compute_list(gpu, instance.gi, instance.profile.g) else { return };
            let mine = |other: &ComputeInstance| other.ci.unwrap_or(0) == compute.ci;
            match fails {
                Some(_) => {
                    if let Some(failed) = list.iter_mut().find(|other| mine(other)) {
                        failed.access_file_gone = true;
                    }
                }
                None => list.retain(|other| !mine(other)),
            }
        })?;
        fails.map_or(Ok(()), Err)
    }
}

fn set_mode(call: &Call, gpu: &GpuState, on: bool, activation: Out<c_int>) -> Answer {
    if gpu.mig_mode == on {
        change(gpu, |gpu| gpu.mig_pending = None)?;
        return activation.put(0);
    }
    if !gpu.instances.is_empty() && call.state.mig_off_with_instances == MigOff::InUse {
        return Err(call.code(Situation::InUse));
    }
    if gpu.model.architecture > Architecture::Ampere {
        if !gpu.processes.is_empty() {
            return Err(call.code(Situation::InUse));
        }
    } else if !gpu.processes.is_empty() || node::others().iter().any(|client| client.gpus.contains(&gpu.uuid))
    {
        change(gpu, |gpu| gpu.mig_pending = Some(on))?;
        return activation.put(Code::IN_USE as c_int);
    }
    change(gpu, |gpu| {
        gpu.layout.clear();
        gpu.mig = on;
        gpu.mig_pending = None;
    })?;
    activation.put(0)
}

/// Edits a GPU's description, with IDs and placements written down, and answers what came of it.
fn change(gpu: &GpuState, edit: impl FnOnce(&mut Gpu)) -> Result<NodeState, Code> {
    let root = node::root().ok_or(Code::DRIVER_NOT_LOADED)?;
    let edit = |description: &mut Description| {
        let described = description.gpus.iter_mut().find(|other| other.uuid.as_ref() == Some(&gpu.uuid));
        if let Some(described) = described {
            edit(described);
        }
    };
    Node::open(root).and_then(|node| node.change(edit)).map_err(|error| match error {
        // What does not fit the node does not fit the GPU: the rest of the description was good before.
        NodeError::Invalid { .. } => Code::INSUFFICIENT_RESOURCES,
        _ => Code::OPERATING_SYSTEM,
    })
}

fn create(call: &Call, device: Handle, profile: u32, at: Option<Placement>, instance: Out<Handle>) -> Answer {
    let gpu = call.mig_gpu(device)?;
    call.config()?;
    if instance.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    let profile = gpu.model.profiles.iter().find(|known| known.id == profile);
    let profile = profile.ok_or(Code::INVALID_ARGUMENT)?;
    let start = at.map(|place| place.start);
    let allowed = at.is_none_or(|place| place.size == profile.size && profile.starts.contains(&place.start));
    if !allowed {
        return Err(Code::INVALID_ARGUMENT);
    }
    // Work on the whole GPU has to end before there is a first instance.
    if gpu.instances.is_empty() && !gpu.processes.is_empty() {
        return Err(call.code(Situation::InUse));
    }
    let state = change(gpu, |gpu| {
        gpu.layout.push(Instance { start, ..Instance::new(&profile.name).compute(&[]) });
    });
    let state = fitted(call, at, state)?;
    let gpu = state.gpus.iter().find(|other| other.uuid == gpu.uuid).ok_or(Code::GPU_IS_LOST)?;
    instance.put(instance_handle(gpu, gpu.instances.last().ok_or(Code::UNKNOWN)?))
}

/// What came of a new instance, or the code for one that does not fit.
fn fitted(call: &Call, at: Option<Placement>, state: Result<NodeState, Code>) -> Result<NodeState, Code> {
    let situation = if at.is_some() { Situation::PlacementTaken } else { Situation::NoRoom };
    state.map_err(|code| if code == Code::INSUFFICIENT_RESOURCES { call.code(situation) } else { code })
}

fn create_compute(
    call: &Call,
    instance: Handle,
    profile: u32,
    at: Option<Placement>,
    compute: Out<Handle>,
) -> Answer {
    let (gpu, instance) = call.instance(instance)?;
    call.config()?;
    if compute.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    let slices = compute_profile_slices(instance, profile)?;
    if at.is_some_and(|place| place.size != slices) {
        return Err(Code::INVALID_ARGUMENT);
    }
    let state = change(gpu, |gpu| {
        if let Some(list) = compute_list(gpu, instance.gi, instance.profile.g) {
            list.push(ComputeInstance { start: at.map(|place| place.start), ..ComputeInstance::new(slices) });
        }
    });
    let state = fitted(call, at, state)?;
    let gpu = state.gpus.iter().find(|other| other.uuid == gpu.uuid).ok_or(Code::GPU_IS_LOST)?;
    let instance = gpu.instance(instance.gi).ok_or(Code::NOT_FOUND)?;
    let made = instance.compute.last().ok_or(Code::UNKNOWN)?;
    compute.put(compute_handle(gpu, instance, made.ci))
}

/// The compute instances of a GPU instance, written out even where one spans it: to be changed.
fn compute_list(gpu: &mut Gpu, gi: u32, g: u32) -> Option<&mut Vec<ComputeInstance>> {
    let instance = gpu.layout.iter_mut().find(|instance| instance.gi == Some(gi))?;
    let (index, uuid) = (instance.index.take(), instance.uuid.take());
    let list = instance.compute.get_or_insert_with(|| {
        vec![ComputeInstance { ci: Some(0), start: Some(0), ..ComputeInstance::new(g) }]
    });
    if let [only] = list.as_mut_slice() {
        only.index = only.index.or(index);
        only.uuid = only.uuid.take().or(uuid);
    }
    Some(list)
}

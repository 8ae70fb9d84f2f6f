//! Handles: numbers that name GPUs and instances, and stop doing so when an instance is destroyed.

use std::collections::HashMap;

use super::ffi::Handle;
use crate::state::NodeState;

/// What a handle names. An instance that was destroyed and made again is another one, unless nobody looked
/// in between and it is the same in all that NVML shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// A GPU, by UUID.
    Gpu(String),
    /// A GPU instance.
    Instance(InstanceKey),
    /// A compute instance, of which the number is the ID.
    Compute(InstanceKey, u32),
    /// The MIG device that is a compute instance.
    Mig(InstanceKey, u32),
    /// Whatever MIG device is at this MIG index of the GPU, by UUID.
    Slot(String, u32),
}

/// A GPU instance: on this GPU, with this ID, of this profile, at this memory slice, the so many-th one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InstanceKey {
    pub(crate) gpu: String,
    pub(crate) gi: u32,
    pub(crate) profile_id: u32,
    pub(crate) start: u32,
    pub(crate) generation: u32,
}

/// What a handle is good for.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    /// It names this.
    Object(Object),
    /// It named what is no more.
    Gone,
    /// It was never given out.
    Never,
}

/// All handles that were ever given out. None is used twice: a client may still hold it.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    objects: Vec<Option<Object>>,
    numbers: HashMap<Object, usize>,
}

/// The first handle's number: far from any address, so that following one is noticed.
const BASE: usize = 0x0fa4_0000_0000;
const STEP: usize = 16;

impl Handles {
    /// The handle that names this object.
    pub(crate) fn of(&mut self, object: Object) -> Handle {
        let objects = &mut self.objects;
        let number = *self.numbers.entry(object.clone()).or_insert_with(|| {
            objects.push(Some(object));
            objects.len() - 1
        });
        Handle(BASE + STEP * number)
    }

    /// What this handle names.
    pub(crate) fn get(&self, handle: Handle) -> Named {
        let distance = handle.0.checked_sub(BASE).filter(|distance| distance % STEP == 0);
        match distance.and_then(|distance| self.objects.get(distance / STEP)) {
            Some(Some(object)) => Named::Object(object.clone()),
            Some(None) => Named::Gone,
            None => Named::Never,
        }
    }

    /// Lets handles go whose instances are no more. A GPU's stay: it may come back.
    pub(crate) fn forget_gone(&mut self, state: &NodeState) {
        for object in &mut self.objects {
            if object.as_ref().is_some_and(|object| !exists(object, state)) {
                let gone = object.take();
                gone.and_then(|gone| self.numbers.remove(&gone));
            }
        }
    }
}

fn exists(object: &Object, state: &NodeState) -> bool {
    let (key, ci) = match object {
        Object::Gpu(_) | Object::Slot(..) => return true,
        Object::Instance(key) => (key, None),
        Object::Compute(key, ci) | Object::Mig(key, ci) => (key, Some(*ci)),
    };
    let gpu = state.gpus.iter().find(|gpu| gpu.uuid == key.gpu);
    let instance = gpu
        .and_then(|gpu| gpu.instance(key.gi))
        .filter(|instance| instance.profile.id == key.profile_id && instance.placement.start == key.start)
        .filter(|instance| instance.generation == key.generation);
    instance
        .is_some_and(|instance| ci.is_none_or(|ci| instance.compute.iter().any(|compute| compute.ci == ci)))
}

//! A call in progress: counted, delayed or failed as the faults say, then answered from one state.

use std::{
    ffi::c_int,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{
    ffi::{Answer, Handle},
    handles::{InstanceKey, Named, Object},
    node, rights,
};
use crate::{
    Code, Fault, Right, Situation, UnopenableSlices,
    driver::CALLS,
    host,
    state::{ComputeInstanceState, GpuInstanceState, GpuState, MigState, NodeState},
};

/// How often a slow call looks whether it is still to be slow.
const STEP_OF_A_DELAY: Duration = Duration::from_millis(20);

/// A function's name and its place in [`CALLS`].
#[derive(Debug)]
pub(super) struct Id {
    name: &'static str,
    place: OnceLock<usize>,
}

impl Id {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, place: OnceLock::new() }
    }

    fn count(&self) {
        let place = self
            .place
            .get_or_init(|| CALLS.iter().position(|name| *name == self.name).unwrap_or(CALLS.len()));
        node::count(*place);
    }
}

/// Runs the body of a function that needs no initialised NVML. Only faults that name it apply.
pub(super) fn init(id: &Id, body: impl FnOnce(&Call) -> Answer) -> c_int {
    answer(id, |name| {
        let state = node::state()?;
        node::move_times(&state);
        let call = Call { name, exempt: true, state };
        call.fault(None, None)?;
        body(&call)
    })
}

/// Runs the body of a function.
pub(super) fn call(id: &Id, body: impl FnOnce(&Call) -> Answer) -> c_int {
    answer(id, |name| {
        if node::shared().clients == 0 {
            return Err(Code::UNINITIALIZED);
        }
        let state = node::state()?;
        node::move_times(&state);
        // A set that cannot be freed says nothing about the driver, and clients free them in destructors: so it can be
        // given back when the driver has gone, too.
        let exempt = name == "nvmlEventSetFree";
        if !exempt {
            node::check_driver(&state)?;
        }
        let call = Call { name, exempt, state };
        call.fault(None, None)?;
        body(&call)
    })
}

fn answer(id: &Id, body: impl FnOnce(&'static str) -> Answer) -> c_int {
    // A mistake in the fake must not take the client down.
    let answered = catch_unwind(AssertUnwindSafe(|| {
        id.count();
        // Waits while another call holds the library.
        drop(library());
        body(id.name)
    }));
    match answered {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code as c_int,
        Err(_panic) => Code::UNKNOWN as c_int,
    }
}

/// The lock that a slow call of the library can hold, so that every other call of the process waits.
static LIBRARY: Mutex<()> = Mutex::new(());

fn library() -> MutexGuard<'static, ()> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes as long as these faults say, or until they are taken out of the description.
pub(super) fn delay<'a>(faults: impl IntoIterator<Item = &'a Fault>) {
    for fault in faults.into_iter().filter(|fault| fault.slows()) {
        let _held = fault.holds_library.then(library);
        let end = fault.delay_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        while node::state().is_ok_and(|now| now.faults.contains(fault)) {
            let left = end.map_or(STEP_OF_A_DELAY, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            host::pause(left.min(STEP_OF_A_DELAY));
        }
    }
}

/// A call in progress.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: &'static str,
    /// Not touched by faults of all calls.
    exempt: bool,
    pub(super) state: Arc<NodeState>,
}

/// What a device handle names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Device<'a> {
    Gpu(&'a GpuState),
    Mig(&'a GpuState, &'a MigState),
}

impl<'a> Device<'a> {
    /// The GPU, or the one that the MIG device is on.
    pub(super) fn gpu(self) -> &'a GpuState {
        match self {
            Self::Gpu(gpu) | Self::Mig(gpu, _) => gpu,
        }
    }
}

impl Call {
    /// The same call in a later state: for one that waits.
    pub(super) fn at(&self, state: Arc<NodeState>) -> Self {
        Self { name: self.name, exempt: self.exempt, state }
    }

    /// Delays and fails this call, if a fault says so for calls about this GPU or MIG device.
    pub(super) fn fault(&self, gpu: Option<u32>, mig: Option<u32>) -> Answer {
        for fault in self.faults(gpu, mig) {
            delay([fault]);
            if let (Some(calls), Some(gpu)) = (fault.unavailable_after, gpu) {
                node::note_hit(&self.state, fault, calls, gpu);
            }
            if let Some(code) = fault.code().filter(|_| !fault.late) {
                return Err(code);
            }
        }
        Ok(())
    }

    /// The code with which this call fails when its work has begun.
    pub(super) fn fails_late(&self, gpu: u32, mig: Option<u32>) -> Option<Code> {
        let faults = self.faults(None, None).chain(self.faults(Some(gpu), mig));
        faults.filter(|fault| fault.late).find_map(Fault::code)
    }

    /// The faults that apply to calls about exactly this GPU (`None`: about no certain one) or MIG device.
    pub(super) fn faults(&self, gpu: Option<u32>, mig: Option<u32>) -> impl Iterator<Item = &Fault> {
        self.state.faults.iter().filter(move |fault| {
            let named = fault.call == self.name || fault.call == "*" && !self.exempt;
            named && fault.gpu == gpu && (fault.mig.is_none() || fault.mig == mig)
        })
    }

    /// The code for a situation.
    pub(super) fn code(&self, situation: Situation) -> Code {
        self.state.codes.get(&situation).copied().unwrap_or_else(|| situation.default_code())
    }

    /// What a handle names, if it names anything.
    fn object(&self, handle: Handle) -> Result<Object, Code> {
        match node::shared().handles.get(handle) {
            Named::Object(object) => Ok(object),
            Named::Gone => Err(self.code(Situation::GoneHandle)),
            Named::Never => Err(Code::INVALID_ARGUMENT),
        }
    }

    /// The GPU of that index; faults of that GPU apply.
    pub(super) fn gpu_at(&self, index: usize) -> Result<&GpuState, Code> {
        let gpu = self.state.gpus.get(index).ok_or(Code::INVALID_ARGUMENT)?;
        self.fault(Some(gpu.index), None)?;
        Ok(gpu)
    }

    /// What a handle names, for what is told only to those who can use it.
    pub(super) fn readable(&self, handle: Handle) -> Result<Device<'_>, Code> {
        let device = self.device(handle)?;
        self.reads(device)?;
        Ok(device)
    }

    /// What a handle names; its faults apply.
    pub(super) fn device(&self, handle: Handle) -> Result<Device<'_>, Code> {
        let object = self.object(handle)?;
        match object {
            Object::Gpu(uuid) => {
                // It has fallen off the bus: it was there when the handle was given out.
                let gpu = self.state.gpus.iter().find(|gpu| gpu.uuid == uuid).ok_or(Code::GPU_IS_LOST)?;
                self.fault(Some(gpu.index), None)?;
                Ok(Device::Gpu(gpu))
            }
            Object::Mig(key, ci) => {
                let (gpu, _) = self.find(&key)?;
                let mig = gpu.mig.iter().find(|mig| mig.gi == key.gi && mig.ci == ci);
                let mig =
                    mig.filter(|mig| self.shows(mig)).ok_or_else(|| self.code(Situation::GoneHandle))?;
                self.fault(Some(gpu.index), Some(mig.index))?;
                Ok(Device::Mig(gpu, mig))
            }
            Object::Slot(uuid, index) => {
                let gpu = self.state.gpus.iter().find(|gpu| gpu.uuid == uuid).ok_or(Code::GPU_IS_LOST)?;
                let mig = gpu.mig.iter().find(|mig| mig.index == index);
                let mig = mig.ok_or_else(|| self.code(Situation::GoneHandle))?;
                self.fault(Some(gpu.index), Some(mig.index))?;
                Ok(Device::Mig(gpu, mig))
            }
            Object::Instance(_) | Object::Compute(..) => Err(Code::INVALID_ARGUMENT),
        }
    }

    /// The GPU that a handle names; a MIG device's is no good argument.
    pub(super) fn gpu(&self, handle: Handle) -> Result<&GpuState, Code> {
        match self.device(handle)? {
            Device::Gpu(gpu) => Ok(gpu),
            Device::Mig(..) => Err(Code::INVALID_ARGUMENT),
        }
    }

    /// The MIG device that a handle names; a GPU's is no good argument.
    pub(super) fn mig(&self, handle: Handle) -> Result<(&GpuState, &MigState), Code> {
        match self.device(handle)? {
            Device::Gpu(_) => Err(Code::INVALID_ARGUMENT),
            Device::Mig(gpu, mig) => Ok((gpu, mig)),
        }
    }

    /// The GPU that a handle names, if MIG mode is on.
    pub(super) fn mig_gpu(&self, handle: Handle) -> Result<&GpuState, Code> {
        let gpu = self.gpu(handle)?;
        if gpu.mig_mode { Ok(gpu) } else { Err(Code::NOT_SUPPORTED) }
    }

    /// The GPU instance that a handle names; faults of its GPU apply.
    pub(super) fn instance(&self, handle: Handle) -> Result<(&GpuState, &GpuInstanceState), Code> {
        let Object::Instance(key) = self.object(handle)? else {
            return Err(Code::INVALID_ARGUMENT);
        };
        let (gpu, instance) = self.find(&key)?;
        self.fault(Some(gpu.index), None)?;
        Ok((gpu, instance))
    }

    /// The compute instance that a handle names; faults of its MIG device apply.
    pub(super) fn compute(
        &self,
        handle: Handle,
    ) -> Result<(&GpuState, &GpuInstanceState, &ComputeInstanceState), Code> {
        let Object::Compute(key, ci) = self.object(handle)? else {
            return Err(Code::INVALID_ARGUMENT);
        };
        let (gpu, instance) = self.find(&key)?;
        let compute = instance.compute.iter().find(|compute| compute.ci == ci);
        let compute = compute.ok_or_else(|| self.code(Situation::GoneHandle))?;
        self.fault(Some(gpu.index), Some(compute.index))?;
        Ok((gpu, instance, compute))
    }

    fn find(&self, key: &InstanceKey) -> Result<(&GpuState, &GpuInstanceState), Code> {
        let gpu = self.state.gpus.iter().find(|gpu| gpu.uuid == key.gpu);
        let gpu = gpu.ok_or_else(|| self.code(Situation::GoneHandle))?;
        let instance = gpu.instance(key.gi).ok_or_else(|| self.code(Situation::GoneHandle))?;
        Ok((gpu, instance))
    }

    /// Refuses a client that is no administrator.
    pub(super) fn admin(&self) -> Answer {
        self.one_of(&[Right::Admin])
    }

    /// Refuses a client that may neither configure MIG nor do anything.
    pub(super) fn config(&self) -> Answer {
        self.one_of(&[Right::Config, Right::Admin])
    }

    /// Refuses a client that may not see a whole GPU that has instances; administrators are no exception.
    pub(super) fn monitor(&self, gpu: &GpuState) -> Answer {
        if gpu.instances.is_empty() { Ok(()) } else { self.one_of(&[Right::Monitor]) }
    }

    fn one_of(&self, rights: &[Right]) -> Answer {
        let held = rights.iter().any(|right| rights::has(&self.state, *right));
        if held { Ok(()) } else { Err(Code::NO_PERMISSION) }
    }

    /// Whether this client is shown a slice.
    pub(super) fn shows(&self, mig: &MigState) -> bool {
        let hides = self.state.unopenable_slices == UnopenableSlices::Hidden;
        !mig.hidden && (!hides || rights::can_open(&self.state, mig))
    }

    /// Refuses what is told only to those who can use the slice, or see all.
    pub(super) fn reads(&self, device: Device<'_>) -> Answer {
        let Device::Mig(_, mig) = device else { return Ok(()) };
        let refuses = self.state.unopenable_slices == UnopenableSlices::Unreadable;
        if refuses && !rights::can_open(&self.state, mig) { self.one_of(&[Right::Monitor]) } else { Ok(()) }
    }
}

/// A GPU's handle.
pub(super) fn gpu_handle(gpu: &GpuState) -> Handle {
    node::open(gpu);
    node::shared().handles.of(Object::Gpu(gpu.uuid.clone()))
}

/// A GPU instance's handle.
pub(super) fn instance_handle(gpu: &GpuState, instance: &GpuInstanceState) -> Handle {
    node::shared().handles.of(Object::Instance(key(gpu, instance)))
}

/// A compute instance's handle.
pub(super) fn compute_handle(gpu: &GpuState, instance: &GpuInstanceState, ci: u32) -> Handle {
    node::shared().handles.of(Object::Compute(key(gpu, instance), ci))
}

/// A MIG device's handle.
pub(super) fn mig_handle(call: &Call, gpu: &GpuState, mig: &MigState) -> Result<Handle, Code> {
    node::open(gpu);
    node::make_nodes(&call.state, &[mig.gi_minor, mig.ci_minor]);
    if call.state.handles_reused {
        return Ok(node::shared().handles.of(Object::Slot(gpu.uuid.clone(), mig.index)));
    }
    let instance = gpu.instance(mig.gi).ok_or(Code::NOT_FOUND)?;
    Ok(node::shared().handles.of(Object::Mig(key(gpu, instance), mig.ci)))
}

fn key(gpu: &GpuState, instance: &GpuInstanceState) -> InstanceKey {
    InstanceKey {
        gpu: gpu.uuid.clone(),
        gi: instance.gi,
        profile_id: instance.profile.id,
        start: instance.placement.start,
        generation: instance.generation,
    }
}

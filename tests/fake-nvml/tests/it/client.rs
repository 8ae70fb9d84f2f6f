//! A client: the calls of nvml.h, through another's bindings, with codes as errors.

use std::{
    ffi::{CStr, c_char},
    mem::MaybeUninit,
};

use fake_nvml::Node;
use nvml_wrapper_sys::bindings::{self as sys, NvmlLib, nvmlDevice_t, nvmlEventSet_t};

/// A loaded and initialised library.
pub struct Client {
    pub lib: NvmlLib,
}

/// An event set's handle.
#[derive(Clone, Copy)]
pub struct Set(pub nvmlEventSet_t);

// SAFETY: NVML's handles can be used by any thread.
unsafe impl Send for Set {}
// SAFETY: as above.
unsafe impl Sync for Set {}

/// A code that is not success.
pub type Answer<T> = Result<T, u32>;

/// Calls a function of the library by name.
#[macro_export]
macro_rules! call {
    ($client:expr, $name:ident($($arg:expr),*)) => {{
        let function = $client.lib.$name.as_ref().expect(stringify!($name));
        #[allow(clippy::macro_metavars_in_unsafe, reason = "all arguments are plain values")]
        // SAFETY: the arguments fit the bindings' declaration; out-pointers are to live places.
        let code = unsafe { function($($arg),*) };
        if code == 0 { Ok(()) } else { Err(code) }
    }};
}

impl Client {
    /// Loads the node's library and initialises it.
    pub fn of(node: &Node) -> Self {
        let client = Self::loaded(node);
        call!(client, nvmlInit_v2()).expect("init");
        client
    }

    /// Loads the node's library.
    pub fn loaded(node: &Node) -> Self {
        // SAFETY: the library's initialisers do nothing.
        let lib = unsafe { NvmlLib::new(node.library()) }.expect("the library loads");
        Self { lib }
    }

    /// A second client in this process: another file of the same library is loaded for itself.
    pub fn another(node: &Node) -> Self {
        let path = node.root().join("usr/lib64/another.so");
        std::fs::copy(node.library(), &path).expect("a copy");
        // SAFETY: the library's initialisers do nothing.
        let client = Self { lib: unsafe { NvmlLib::new(path) }.expect("the library loads") };
        call!(client, nvmlInit_v2()).expect("init");
        client
    }

    pub fn gpu(&self, index: u32) -> Answer<nvmlDevice_t> {
        let mut device = std::ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2(index, &raw mut device))?;
        Ok(device)
    }

    pub fn mig(&self, gpu: nvmlDevice_t, index: u32) -> Answer<nvmlDevice_t> {
        let mut device = std::ptr::null_mut();
        call!(self, nvmlDeviceGetMigDeviceHandleByIndex(gpu, index, &raw mut device))?;
        Ok(device)
    }

    /// All MIG devices of a GPU, as clients find them: holes are skipped.
    pub fn migs(&self, gpu: nvmlDevice_t) -> Vec<nvmlDevice_t> {
        let mut count = 0;
        call!(self, nvmlDeviceGetMaxMigDeviceCount(gpu, &raw mut count)).expect("count");
        (0..count).filter_map(|index| self.mig(gpu, index).ok()).collect()
    }

    pub fn uuid(&self, device: nvmlDevice_t) -> Answer<String> {
        text(|buffer, length| call!(self, nvmlDeviceGetUUID(device, buffer, length)))
    }

    pub fn name(&self, device: nvmlDevice_t) -> Answer<String> {
        text(|buffer, length| call!(self, nvmlDeviceGetName(device, buffer, length)))
    }

    pub fn ids(&self, mig: nvmlDevice_t) -> Answer<(u32, u32)> {
        let (mut gi, mut ci) = (0, 0);
        call!(self, nvmlDeviceGetGpuInstanceId(mig, &raw mut gi))?;
        call!(self, nvmlDeviceGetComputeInstanceId(mig, &raw mut ci))?;
        Ok((gi, ci))
    }

    pub fn mig_mode(&self, gpu: nvmlDevice_t) -> Answer<(u32, u32)> {
        let (mut current, mut pending) = (9, 9);
        call!(self, nvmlDeviceGetMigMode(gpu, &raw mut current, &raw mut pending))?;
        Ok((current, pending))
    }

    /// An event set that listens to these GPUs.
    pub fn listen(&self, gpus: &[nvmlDevice_t], types: u64) -> Set {
        let mut set = std::ptr::null_mut();
        call!(self, nvmlEventSetCreate(&raw mut set)).expect("create");
        for gpu in gpus {
            call!(self, nvmlDeviceRegisterEvents(*gpu, types, set)).expect("register");
        }
        Set(set)
    }

    pub fn wait(&self, set: Set, ms: u32) -> Answer<sys::nvmlEventData_t> {
        filled(|place| call!(self, nvmlEventSetWait_v2(set.0, place, ms)))
    }
}

/// Text that a call writes.
pub fn text(call: impl FnOnce(*mut c_char, u32) -> Answer<()>) -> Answer<String> {
    let mut buffer = [0; 96];
    call(buffer.as_mut_ptr(), 96)?;
    // SAFETY: the call succeeded, so the buffer holds text and its zero.
    let text = unsafe { CStr::from_ptr(buffer.as_ptr()) };
    Ok(text.to_string_lossy().into_owned())
}

/// A struct that a call fills; all of the bindings' structs may be zero.
pub fn filled<T>(call: impl FnOnce(*mut T) -> Answer<()>) -> Answer<T> {
    let mut place = MaybeUninit::zeroed();
    call(place.as_mut_ptr())?;
    // SAFETY: the place was zero, which is a value of these structs, or the call wrote one.
    Ok(unsafe { place.assume_init() })
}

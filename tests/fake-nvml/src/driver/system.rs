//! Calls about the driver as a whole.
#![allow(non_snake_case, reason = "NVML's names")]

use std::ffi::{c_char, c_int};

use super::{
    exports,
    ffi::{Out, TextOut},
};
use crate::Code;

/// Starting and ending: what works without being initialised.
pub(super) mod init {
    use crate::{
        Code,
        driver::{exports, ffi::Answer, node},
        state::NodeState,
    };

    exports! { init call;
        fn nvmlInit() {
            start(&call.state)
        }
        fn nvmlInit_v2() {
            start(&call.state)
        }
        fn nvmlInitWithFlags(_flags: u32) {
            start(&call.state)
        }
        fn nvmlShutdown() {
            let mut shared = node::shared();
            shared.clients = shared.clients.checked_sub(1).ok_or(Code::UNINITIALIZED)?;
            node::tell_clients(&mut shared);
            Ok(())
        }
    }

    fn start(state: &NodeState) -> Answer {
        node::check_driver(state)?;
        let mut shared = node::shared();
        node::note_rights(&mut shared, state);
        shared.clients += 1;
        node::tell_clients(&mut shared);
        Ok(())
    }
}

/// What a code means. The one function that answers no code, so that it has no count and no faults.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_int) -> *const c_char {
    if code == 0 {
        return c"Success".as_ptr();
    }
    Code::from_number(code).unwrap_or(Code::UNKNOWN).message().as_ptr()
}

exports! { call call;
    fn nvmlSystemGetDriverVersion(version: TextOut, length: u32) {
        version.put(&call.state.driver_version, length)
    }
    /// NVML's own version: the CUDA major it was made for, then the driver's.
    fn nvmlSystemGetNVMLVersion(version: TextOut, length: u32) {
        version.put(&format!("{}.{}", call.state.cuda_version / 1000, call.state.driver_version), length)
    }
    fn nvmlSystemGetCudaDriverVersion(version: Out<c_int>) {
        version.put(call.state.cuda_version)
    }
    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<c_int>) {
        version.put(call.state.cuda_version)
    }
    fn nvmlSystemGetProcessName(pid: u32, name: TextOut, length: u32) {
        let mut processes = call.state.gpus.iter().flat_map(|gpu| &gpu.processes);
        let process = processes.find(|process| process.pid == pid).ok_or(Code::NOT_FOUND)?;
        name.put(&process.name, length)
    }
}

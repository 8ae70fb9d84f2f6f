//! Calls about how GPUs are connected: what allocation by closeness asks.
#![allow(non_snake_case, reason = "NVML's names")]

use std::ffi::{c_int, c_ulong};

use super::{
    abi::PciInfo,
    exports,
    ffi::{Array, Handle, Out},
};
use crate::Code;

/// `nvmlGpuTopologyLevel_t`: the same board, the same NUMA node, another one.
const INTERNAL: c_int = 0;
const NODE: c_int = 40;
const SYSTEM: c_int = 50;

exports! { call call;
    fn nvmlDeviceGetTopologyCommonAncestor(a: Handle, b: Handle, level: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        level.put(if a.index == b.index { INTERNAL } else if a.numa == b.numa { NODE } else { SYSTEM })
    }
    /// `NVML_P2P_STATUS_OK`, or not supported with MIG on, which knows no peers.
    fn nvmlDeviceGetP2PStatus(a: Handle, b: Handle, _kind: c_int, status: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        status.put(if a.mig_mode || b.mig_mode { 5 } else { 0 })
    }
    fn nvmlDeviceGetNvLinkState(device: Handle, _link: u32, _active: Out<c_int>) {
        call.gpu(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceGetNvLinkVersion(device: Handle, _link: u32, _version: Out<u32>) {
        call.gpu(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceGetNvLinkCapability(device: Handle, _link: u32, _capability: c_int, _value: Out<u32>) {
        call.gpu(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo(device: Handle, _link: u32, _info: Out<PciInfo>) {
        call.gpu(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, _link: u32, _info: Out<PciInfo>) {
        call.gpu(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceOnSameBoard(a: Handle, b: Handle, same: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        same.put(c_int::from(a.index == b.index))
    }
    /// Bits of NUMA nodes, `_scope` being NUMA node or socket, which are the same here.
    fn nvmlDeviceGetMemoryAffinity(device: Handle, size: u32, set: Array<c_ulong>, _scope: u32) {
        let gpu = call.device(device)?.gpu();
        let node = gpu.numa.ok_or(Code::NOT_SUPPORTED)?;
        let (word, bit) = (node / c_ulong::BITS, node % c_ulong::BITS);
        if word >= size {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        set.put((0..size).map(|at| if at == word { 1 << bit } else { 0 }))
    }
    fn nvmlDeviceGetCpuAffinity(device: Handle, _size: u32, _set: Array<c_ulong>) {
        call.device(device)?;
        Err(Code::NOT_SUPPORTED)
    }
    fn nvmlDeviceGetCpuAffinityWithinScope(device: Handle, _size: u32, _set: Array<c_ulong>, _scope: u32) {
        call.device(device)?;
        Err(Code::NOT_SUPPORTED)
    }
}

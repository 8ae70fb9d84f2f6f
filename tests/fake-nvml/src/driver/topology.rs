//! Calls about how GPUs are connected: what allocation by closeness asks.
#![allow(non_snake_case, reason = "NVML's names")]

use std::ffi::{c_int, c_ulong};

use super::{
    abi::{PciInfo, text},
    call::{Call, gpu_handle},
    device::pci,
    exports,
    ffi::{Answer, Array, Handle, Out, put_counted},
};
use crate::{
    Code,
    catalogue::Architecture,
    pci::parse_pci,
    state::GpuState,
    topology::{Level, Link, Peer},
};

/// `nvmlGpuP2PStatus_t`: two sockets between them, and not supported.
const TOO_FAR: c_int = 3;
const UNSUPPORTED: c_int = 5;

/// `NVML_GPU_NVSWITCH`'s PCI ID, of no certain generation.
const SWITCH_ID: u32 = 0x22A3_10DE;

exports! { call call;
    fn nvmlDeviceGetTopologyCommonAncestor(a: Handle, b: Handle, level: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        level.put(call.state.connections.level(a, b) as c_int)
    }
    /// The other GPUs at exactly this level.
    fn nvmlDeviceGetTopologyNearestGpus(device: Handle, level: c_int, count: Out<u32>, gpus: Array<Handle>) {
        let gpu = call.gpu(device)?;
        let at = |other: &&GpuState| {
            other.index != gpu.index && call.state.connections.level(gpu, other) as c_int == level
        };
        put_counted(gpus, count, call.state.gpus.iter().filter(at).map(gpu_handle).collect())
    }
    fn nvmlDeviceGetP2PStatus(a: Handle, b: Handle, kind: c_int, status: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        status.put(peers(call, a, b, kind)?)
    }
    fn nvmlDeviceGetNvLinkState(device: Handle, link: u32, active: Out<c_int>) {
        active.put(c_int::from(link_of(call, device, link)?.active))
    }
    fn nvmlDeviceGetNvLinkVersion(device: Handle, link: u32, version: Out<u32>) {
        link_of(call, device, link)?;
        version.put(match call.gpu(device)?.model.architecture {
            Architecture::Volta | Architecture::Turing => 2,
            Architecture::Ampere => 3,
            Architecture::Hopper => 4,
            Architecture::Blackwell => 5,
        })
    }
    /// `nvmlNvLinkCapability_t`: peer-to-peer and system memory with atomics, no SLI bridge, valid.
    fn nvmlDeviceGetNvLinkCapability(device: Handle, link: u32, capability: c_int, value: Out<u32>) {
        let link = link_of(call, device, link)?;
        match capability {
            0..=3 => value.put(u32::from(link.active)),
            4 => value.put(0),
            5 => value.put(1),
            _ => Err(Code::INVALID_ARGUMENT),
        }
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo(device: Handle, link: u32, info: Out<PciInfo>) {
        remote(call, device, link, info)
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, link: u32, info: Out<PciInfo>) {
        remote(call, device, link, info)
    }
    /// `nvmlIntNvLinkDeviceType_t`: a GPU 0, a switch 2.
    fn nvmlDeviceGetNvLinkRemoteDeviceType(device: Handle, link: u32, kind: Out<c_int>) {
        kind.put(match link_of(call, device, link)?.to {
            Peer::Gpu(_) => 0,
            Peer::Switch(_) => 2,
        })
    }
    fn nvmlDeviceOnSameBoard(a: Handle, b: Handle, same: Out<c_int>) {
        let (a, b) = (call.gpu(a)?, call.gpu(b)?);
        same.put(c_int::from(call.state.connections.level(a, b) == Level::Internal))
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

/// A link by its number: a GPU that has none does not know of links at all.
fn link_of(call: &Call, device: Handle, link: u32) -> Result<Link, Code> {
    let links = call.state.connections.links(call.gpu(device)?);
    if links.is_empty() {
        return Err(Code::NOT_SUPPORTED);
    }
    links.into_iter().nth(link as usize).ok_or(Code::INVALID_ARGUMENT)
}

fn remote(call: &Call, device: Handle, link: u32, info: Out<PciInfo>) -> Answer {
    let link = link_of(call, device, link)?;
    if !link.active {
        return Err(Code::NOT_SUPPORTED);
    }
    match link.to {
        Peer::Gpu(index) => info.put(pci(call.state.gpus.get(index as usize).ok_or(Code::UNKNOWN)?)?),
        Peer::Switch(address) => {
            let (domain, bus, device) = parse_pci(&address).ok_or(Code::UNKNOWN)?;
            info.put(PciInfo {
                bus_id_legacy: text(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
                domain,
                bus,
                device,
                device_id: SWITCH_ID,
                subsystem_id: SWITCH_ID,
                bus_id: text(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
            })
        }
    }
}

/// `nvmlGpuP2PStatus_t` for reading, writing, by `NVLink`, atomic, by PCIe: none with MIG on, which knows no peers;
/// without a link no way from one NUMA node to another.
fn peers(call: &Call, a: &GpuState, b: &GpuState, kind: c_int) -> Result<c_int, Code> {
    let linked = call.state.connections.linked(a, b);
    let near = call.state.connections.level(a, b) != Level::System;
    let yes = |able: bool, otherwise: c_int| if able { 0 } else { otherwise };
    let status = match kind {
        0 | 1 => yes(linked || near, TOO_FAR),
        2 | 3 => yes(linked, UNSUPPORTED),
        4 => yes(near, TOO_FAR),
        _ => return Err(Code::INVALID_ARGUMENT),
    };
    Ok(if a.mig_mode || b.mig_mode { UNSUPPORTED } else { status })
}

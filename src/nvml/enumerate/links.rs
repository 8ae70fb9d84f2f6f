//! How GPUs are connected: asked once for each pair, after the first list, since nothing else waits for it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::Device;

use super::Driver;
use crate::inventory::{Gpu, Link, Links};
use crate::nvml::calls::Caller;
use crate::nvml::error::CallError;
use crate::nvml::places::sysfs_address;
use crate::nvml::raw;

/// More than any GPU has; `NVML_NVLINK_MAX_LINKS` is 18 so far.
const MOST_LINKS: u32 = 64;

/// A GPU whose connections are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nvml) struct Peer {
    index: u32,
    uuid: String,
    pci_bus_id: String,
}

/// The NVLinks of one GPU.
#[derive(Default)]
struct NvLinks {
    /// By PCI address of the GPU at the other end.
    to_gpus: BTreeMap<String, u32>,
    /// By that of a switch: anything that is no GPU.
    to_switches: BTreeMap<String, u32>,
}

impl NvLinks {
    /// How many lead to another GPU with this address and these links, directly or over switches.
    fn to(&self, address: &str, other: &Self) -> u32 {
        let direct = self.to_gpus.get(address).copied().unwrap_or_default();
        let switched = self.to_switches.iter();
        let switched = switched.filter_map(|(switch, own)| Some((*own).min(*other.to_switches.get(switch)?)));
        direct + switched.sum::<u32>()
    }
}

impl Peer {
    /// A GPU that can be handed out as a whole and talk to others. In MIG mode there is no peer-to-peer.
    pub(in crate::nvml) fn of(gpu: &Gpu) -> Option<Self> {
        let able = !gpu.mig_enabled() && gpu.problem.is_none();
        able.then(|| Self { index: gpu.index, uuid: gpu.uuid.clone(), pci_bus_id: gpu.pci_bus_id.clone() })
    }
}

/// Which pairs of `peers` are not among `known`.
pub(in crate::nvml) fn unknown_pairs(peers: &[Peer], known: &Links) -> Vec<(Peer, Peer)> {
    let pairs = peers.iter().enumerate().flat_map(|(n, a)| peers[n + 1..].iter().map(move |b| (a, b)));
    let unknown = pairs.filter(|(a, b)| known.between(&a.uuid, &b.uuid).is_none());
    unknown.map(|(a, b)| (a.clone(), b.clone())).collect()
}

impl Driver {
    /// What lies between the GPUs of each pair; `addresses` are those of all GPUs, to tell them from switches. A pair of
    /// which the driver tells nothing is one without links, and is not asked again; one with a GPU that is lost just now
    /// is left out. An error means that the driver as a whole is gone, or that this was given up.
    pub(in crate::nvml) fn links(
        &self,
        calls: &Caller,
        pairs: &[(Peer, Peer)],
        addresses: &BTreeSet<String>,
    ) -> Result<Links, CallError> {
        let mut gpus: BTreeMap<u32, Option<(Device<'_>, NvLinks)>> = BTreeMap::new();
        for peer in pairs.iter().flat_map(|(a, b)| [a, b]) {
            if let Entry::Vacant(place) = gpus.entry(peer.index) {
                place.insert(self.linked_gpu(calls, peer, addresses)?);
            }
        }
        let mut links = Links::default();
        for (a, b) in pairs {
            let both =
                gpus.get(&a.index).and_then(Option::as_ref).zip(gpus.get(&b.index).and_then(Option::as_ref));
            let Some(((from, own), (to, others))) = both else { continue };
            let ancestor =
                calls.ask("nvmlDeviceGetTopologyCommonAncestor", || raw::common_ancestor(from, to));
            if ancestor.as_ref().is_err_and(CallError::gpu_is_gone) {
                continue;
            }
            let link = Link { nvlinks: own.to(&b.pci_bus_id, others), pcie: answered(ancestor)?.flatten() };
            links.insert(&a.uuid, &b.uuid, link);
        }
        Ok(links)
    }

    /// The GPU and its NVLinks; `None` where it is another one by now, or is lost.
    fn linked_gpu(
        &self,
        calls: &Caller,
        peer: &Peer,
        addresses: &BTreeSet<String>,
    ) -> Result<Option<(Device<'_>, NvLinks)>, CallError> {
        let nvml = &self.nvml;
        let device = calls.ask("nvmlDeviceGetHandleByIndex_v2", || nvml.device_by_index(peer.index));
        let Some(device) = answered(device)? else { return Ok(None) };
        let uuid = answered(calls.ask("nvmlDeviceGetUUID", || device.uuid()))?;
        if uuid.as_ref() != Some(&peer.uuid) {
            return Ok(None);
        }
        let mut links = NvLinks::default();
        for number in 0..MOST_LINKS {
            let link = device.link_wrapper_for(number);
            let active = calls.ask("nvmlDeviceGetNvLinkState", || link.is_active());
            if active.as_ref().is_err_and(CallError::gpu_is_gone) {
                return Ok(None);
            }
            // A GPU without NVLinks does not know of any, and one that has them none behind the last.
            let Some(active) = answered(active)? else { break };
            if !active {
                continue;
            }
            let remote = calls.ask("nvmlDeviceGetNvLinkRemotePciInfo_v2", || link.remote_pci_info());
            let Some(remote) = answered(remote)? else { continue };
            let address = sysfs_address(&remote.bus_id);
            let others =
                if addresses.contains(&address) { &mut links.to_gpus } else { &mut links.to_switches };
            *others.entry(address).or_default() += 1;
        }
        Ok(Some((device, links)))
    }
}

/// What is refused or fails for one GPU is not known; nobody has to hear of it.
fn answered<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Err(error) if error.driver_is_gone() => Err(error),
        answer => Ok(answer.ok()),
    }
}

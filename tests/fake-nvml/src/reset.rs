//! Resets of GPUs and reboots of the node: what ends, what stays, and who stands in the way.

use crate::{
    Description, Node, NodeError, RecoveryAction,
    catalogue::{self, Architecture},
    clients::{self, Client},
    description::{AfterReset, Gpu, Lost},
    node::Tell,
    state::{GpuState, NodeState},
    tree,
};

impl Node {
    /// Resets a GPU, or all of them, as `nvidia-smi -r` does: refuses while a client has it open or a process uses it.
    pub fn reset(&self, gpu: Option<u32>) -> Result<(), NodeError> {
        self.restart(|description, state, clients| {
            let chosen = |index: usize| gpu.is_none_or(|gpu| gpu as usize == index);
            if let Some(index) = gpu.filter(|index| *index as usize >= state.gpus.len()) {
                let problem = format!("reset: gpu {index} is none of the {} GPUs", state.gpus.len());
                return Err(NodeError::Invalid { file: None, problems: vec![problem] });
            }
            for gpu in state.gpus.iter().filter(|gpu| chosen(gpu.index as usize)) {
                refuse(&format!("GPU {} cannot be reset", gpu.index), users(gpu, clients))?;
            }
            let after = description.instances_after_reset;
            for (_, gpu) in description.gpus.iter_mut().enumerate().filter(|(index, _)| chosen(*index)) {
                reset(gpu, after);
            }
            Ok(())
        })
    }

    /// Reboots the node: instances, device nodes of instances and, from Hopper on, MIG mode are gone. Refuses while a
    /// client is there, which a reboot would have ended.
    pub fn reboot(&self) -> Result<(), NodeError> {
        self.restart(|description, _, clients| {
            refuse("the node cannot be rebooted", clients.iter().map(|client| client.pid).collect())?;
            for gpu in &mut description.gpus {
                gpu.processes.clear();
                reset(gpu, AfterReset::Gone);
                gpu.recovery_action = RecoveryAction::None;
                // It lives in the InfoROM of Ampere's boards, and in the kernel module's memory later.
                if catalogue::model(&gpu.model).is_some_and(|model| model.architecture > Architecture::Ampere)
                {
                    gpu.mig = false;
                }
                gpu.layout.clear();
            }
            description.recovery_action = RecoveryAction::None;
            tree::forget_nodes(self.root())
        })
    }

    /// The clients that have NVML open.
    pub fn client_list(&self) -> Result<Vec<Client>, NodeError> {
        tree::locked(self.root(), || {
            Ok(clients::all(self.root()).into_iter().map(|(_, client)| client).collect())
        })
    }

    fn restart(
        &self,
        change: impl FnOnce(&mut Description, &NodeState, &[Client]) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        let clients =
            |root| -> Vec<Client> { clients::all(root).into_iter().map(|(_, client)| client).collect() };
        self.try_change(Tell::Nobody, |description, state| change(description, state, &clients(self.root())))
            .map(drop)
    }
}

/// Processes that have a GPU open or use it.
fn users(gpu: &GpuState, clients: &[Client]) -> Vec<u32> {
    let open = clients.iter().filter(|client| client.gpus.contains(&gpu.uuid)).map(|client| client.pid);
    let mut pids: Vec<u32> = open.chain(gpu.processes.iter().map(|process| process.pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn refuse(what: &str, by: Vec<u32>) -> Result<(), NodeError> {
    if by.is_empty() { Ok(()) } else { Err(NodeError::InUse { what: what.to_owned(), by }) }
}

/// What a reset makes of a GPU that nobody uses.
pub(crate) fn reset(gpu: &mut Gpu, after: AfterReset) {
    let mode = gpu.mig_pending.take().unwrap_or(gpu.mig);
    if mode != gpu.mig || after == AfterReset::Gone {
        gpu.layout.clear();
    }
    gpu.mig = mode;
    gpu.lost = Lost::No;
    if matches!(gpu.recovery_action, RecoveryAction::Reset | RecoveryAction::DrainAndReset) {
        gpu.recovery_action = RecoveryAction::None;
    }
}

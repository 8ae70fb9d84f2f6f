//! Asks how GPUs are connected, beside the looks: no list waits for it, and nothing is asked twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::coordinator::Coordinator;
use super::threads::{OpenDriver, spawn};
use super::{Id, Message};
use crate::inventory::{Gpu, Links};
use crate::nvml::calls::Caller;
use crate::nvml::enumerate::{Peer, unknown_pairs};

/// The thread that asks, while there is one. One that hangs is waited for, for the GPU's looks tell of that.
#[derive(Default)]
pub(super) struct Linking(Option<(Id, Caller)>);

impl Linking {
    /// Asks what is not known of these GPUs, which a look has just found.
    pub(super) fn want(&mut self, session: &mut Coordinator, driver: &Arc<OpenDriver>, gpus: &[Gpu]) {
        let peers: Vec<Peer> = gpus.iter().filter_map(Peer::of).collect();
        let pairs = unknown_pairs(&peers, &session.status.links());
        if self.0.is_some() || pairs.is_empty() {
            return;
        }
        let (id, calls) = (session.new_id(), session.status.caller());
        let (driver, caller, asks) = (Arc::clone(driver), calls.clone(), session.asks.clone());
        let addresses: BTreeSet<String> = gpus.iter().map(|gpu| gpu.pci_bus_id.clone()).collect();
        let work = move || {
            // An error is one of the driver as a whole, which a look will meet too.
            let links = driver.links(&caller, &pairs, &addresses).unwrap_or_default();
            asks.send(Message::Linked(id, links));
        };
        match spawn("nvml-links", work) {
            Ok(()) => self.0 = Some((id, calls)),
            Err(error) => {
                tracing::warn!(%error, "no thread can be started to ask how GPUs are connected");
            }
        }
    }

    /// Takes what the thread was told, which ends with it.
    pub(super) fn take(&mut self, session: &Coordinator, id: Id, links: Links) {
        if self.0.as_ref().is_some_and(|(asking, _)| *asking == id) {
            self.0 = None;
            if !links.is_empty() {
                tracing::debug!(pairs = links.len(), "GPUs have told how they are connected");
                session.status.add_links(links);
            }
        }
    }

    /// Lets the thread ask nothing more.
    pub(super) fn stop(&self) {
        if let Some((_, calls)) = &self.0 {
            calls.give_up();
        }
    }
}

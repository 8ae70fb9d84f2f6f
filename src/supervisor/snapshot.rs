//! What is known and what is served at one moment, for people and for machines that watch: whoever answers them reads
//! this, and never waits for the supervisor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Pulse;
use crate::health::Rule;
use crate::inventory::Inventory;
use crate::kubelet::EndpointStatus;
use crate::nvml;
use crate::resource::{Device, MigStrategy, ResourceName, Withheld};

/// Everything that can be shown.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What the driver said last; `None` before it first did.
    pub inventory: Option<Arc<Inventory>>,
    /// Why there is no driver, while there is none.
    pub no_driver: Option<String>,
    /// Why nothing can be asked of a driver that is there, while that is so: what is known may have changed since.
    pub no_answer: Option<String>,
    /// Whether the driver is left alone (SIGUSR1).
    pub on_hold: bool,
    /// `--mig-strategy`
    pub strategy: MigStrategy,
    /// What is served.
    pub resources: BTreeMap<ResourceName, Served>,
    /// What should be, and for a moment at the start is not yet.
    pub offered: Vec<ResourceName>,
    /// What exists and is not offered.
    pub withheld: Vec<Withheld>,
    /// What of the configuration has no effect on this node.
    pub warnings: Vec<String>,
    /// How a GPU's devices get well, by its UUID.
    pub recovery: BTreeMap<String, Rule>,
    /// Where the driver is looked for (`--driver-root-ctr-path`).
    pub driver_root: PathBuf,
    /// Why it cannot be known whether a device is free, where the kubelet's checkpoint cannot be used.
    pub held_unknown: Option<String>,
    /// Where the kubelet tells which pods hold devices.
    pub pod_resources_socket: PathBuf,
    /// What is known of the driver's threads.
    pub driver: Arc<nvml::Status>,
    /// Whoever sends something here gets it answered by the supervisor itself, which shows that it goes on.
    pub pulse: mpsc::Sender<Pulse>,
}

/// One resource.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its list, as the kubelet is told.
    pub devices: Vec<Device>,
    /// Whether it is registered.
    pub endpoint: Arc<EndpointStatus>,
}

//! Which devices the kubelet says containers hold: what podresources answers and what its checkpoint has, at once.
//!
//! Neither is enough. After its start the kubelet answers without the API server's pods and without an error, and it
//! never names ordinary init containers; the checkpoint may be missing, and has pods that ended until it is written
//! again.

use std::path::Path;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::checkpoint::{CHECKPOINT, Checkpoint, CheckpointError};
use super::podresources::{Holding, PodResourcesError, holdings};
use super::registration::is_alive;
use crate::resource::DeviceId;

/// Reading a file of some megabytes takes milliseconds; longer means that the disk does not answer.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// A device that some container holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// As it was registered: ours and other plugins'.
    pub resource: String,
    /// As it was advertised.
    pub device: DeviceId,
    /// The NUMA node that it had when it was handed out.
    pub numa_node: Option<u32>,
}

/// All that the kubelet says of it at one moment.
#[derive(Debug)]
pub struct Look {
    /// What podresources answered.
    pub listed: Result<Vec<Claim>, PodResourcesError>,
    /// The checkpoint, read after that answer.
    pub checkpoint: Result<Checkpoint, CheckpointError>,
    /// Whether the kubelet accepts connections.
    pub alive: bool,
}

impl From<Holding> for Claim {
    fn from(Holding { resource, device, numa_node, .. }: Holding) -> Self {
        Self { resource, device, numa_node }
    }
}

/// Asks podresources, then reads the checkpoint beside `kubelet_socket`. Takes 15 s at most.
pub async fn look(pod_resources_socket: &Path, kubelet_socket: &Path) -> Look {
    let listed = holdings(pod_resources_socket).await;
    let listed = listed.map(|holdings| holdings.into_iter().map(Claim::from).collect());
    let path = kubelet_socket.with_file_name(CHECKPOINT);
    let unreadable = |source| CheckpointError::Unreadable { path: path.clone(), source };
    let read = {
        let path = path.clone();
        spawn_blocking(move || Checkpoint::read(&path))
    };
    let checkpoint = match timeout(READ_LIMIT, read).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(unreadable(error.into())),
        Err(elapsed) => Err(unreadable(elapsed.into())),
    };
    let alive = listed.is_ok() || is_alive(kubelet_socket).await;
    Look { listed, checkpoint, alive }
}

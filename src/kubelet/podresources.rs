//! `v1.PodResourcesLister`: which devices pods hold, without the API server.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::api::podresources as wire;
use crate::resource::DeviceId;

/// The kubelet answers from memory; longer means that it is not well.
const LIMIT: Duration = Duration::from_secs(2);

/// A node with thousands of pods; tonic's default is 4 MiB.
const MAX_ANSWER: usize = 16 << 20;

/// It is not known which devices are held.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask {} which pods hold devices: {why}", socket.display())]
pub struct PodResourcesError {
    socket: PathBuf,
    why: String,
}

impl PodResourcesError {
    pub(crate) fn new(socket: &Path, why: impl Into<String>) -> Self {
        Self { socket: socket.to_owned(), why: why.into() }
    }
}

/// The IDs of all devices, of any resource, that containers hold, as they were advertised.
pub async fn held_devices(socket: &Path) -> Result<HashSet<DeviceId>, PodResourcesError> {
    // tonic's own limits end with an answer's beginning.
    timeout(2 * LIMIT, ask(socket))
        .await
        .unwrap_or_else(|_| Err(PodResourcesError::new(socket, format!("no answer within {:?}", 2 * LIMIT))))
}

async fn ask(socket: &Path) -> Result<HashSet<DeviceId>, PodResourcesError> {
    let failed = |why: String| PodResourcesError::new(socket, why);
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))
        .map_err(|error| failed(error.to_string()))?
        .connect_timeout(LIMIT)
        .timeout(LIMIT)
        .connect()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut client = wire::pod_resources_lister_client::PodResourcesListerClient::new(channel)
        .max_decoding_message_size(MAX_ANSWER);
    let answer = client.list(wire::ListPodResourcesRequest {}).await;
    let pods = answer.map_err(|status| failed(status.message().to_owned()))?.into_inner().pod_resources;
    let containers = pods.into_iter().flat_map(|pod| pod.containers);
    let devices = containers.flat_map(|container| container.devices);
    Ok(devices.flat_map(|devices| devices.device_ids).map(DeviceId).collect())
}

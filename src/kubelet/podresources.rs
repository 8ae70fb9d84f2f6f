//! `v1.PodResourcesLister`: which devices pods hold, without the API server.

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

/// One device in a container's hands, of any resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// As it was registered: ours and other plugins'.
    pub resource: String,
    /// As it was advertised.
    pub device: DeviceId,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// The NUMA node that the device had when it was handed out.
    pub numa_node: Option<u32>,
}

/// What containers hold, in a fixed order.
pub async fn holdings(socket: &Path) -> Result<Vec<Holding>, PodResourcesError> {
    // tonic's own limits end with an answer's beginning.
    timeout(2 * LIMIT, ask(socket))
        .await
        .unwrap_or_else(|_| Err(PodResourcesError::new(socket, format!("no answer within {:?}", 2 * LIMIT))))
}

async fn ask(socket: &Path) -> Result<Vec<Holding>, PodResourcesError> {
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
    let mut holdings: Vec<_> = pods.into_iter().flat_map(of_pod).collect();
    holdings.sort();
    Ok(holdings)
}

fn of_pod(pod: wire::PodResources) -> impl Iterator<Item = Holding> {
    let wire::PodResources { name: pod, namespace, containers, .. } = pod;
    containers.into_iter().flat_map(move |container| {
        let (namespace, pod, name) = (namespace.clone(), pod.clone(), container.name);
        container.devices.into_iter().flat_map(move |devices| {
            let (namespace, pod, container) = (namespace.clone(), pod.clone(), name.clone());
            let resource = devices.resource_name;
            let node = devices.topology.and_then(|topology| topology.nodes.first().map(|node| node.id));
            let numa_node = node.and_then(|node| u32::try_from(node).ok());
            devices.device_ids.into_iter().map(move |id| Holding {
                resource: resource.clone(),
                device: DeviceId(id),
                namespace: namespace.clone(),
                pod: pod.clone(),
                container: container.clone(),
                numa_node,
            })
        })
    })
}
